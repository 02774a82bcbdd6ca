/* Pagestone | platform/hash_wide — the variants of XXH3 that hash.c chooses from.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Private to hash*.c. `state` is an XXH3_state_t, whose layout does not depend on the vectors.
 */
#ifndef PGS_PLATFORM_HASH_WIDE_H
#define PGS_PLATFORM_HASH_WIDE_H

#include "libshm/platform/base.h"

#if defined(__x86_64__)
uint64_t pgs__hash_avx2(const void *p, size_t n_bytes);
void pgs__hash_avx2_update(void *state, const void *p, size_t n_bytes);
uint64_t pgs__hash_avx512(const void *p, size_t n_bytes);
void pgs__hash_avx512_update(void *state, const void *p, size_t n_bytes);
#endif

#endif
