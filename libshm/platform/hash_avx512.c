/* Pagestone | platform/hash_avx512 — XXH3 with 512-bit vectors.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Called by hash.c only, after pgs__cap(PGS__CAP_AVX512). All of this file is compiled for AVX512: nothing else belongs here.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libshm/platform/hash_wide.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif
#define XXH_VECTOR 3 /* XXH_AVX512 */
#include "libshm/platform/hash_impl.h"

uint64_t pgs__hash_avx512(const void *p, size_t n_bytes)
{
    return XXH3_64bits(p, n_bytes);
}

void pgs__hash_avx512_update(void *state, const void *p, size_t n_bytes)
{
    XXH3_64bits_update(state, p, n_bytes);
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
extern int pgs__hash_avx512_unused;
#endif
