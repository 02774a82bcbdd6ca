/* Pagestone | platform/hash — XXH3-64: the baseline, and the choice among the widths.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Up to 240 bytes XXH3 uses no vectors at all, so short inputs go straight to the baseline, without an indirect step.
 */
#include "libshm/platform/hash.h"

#include <stdlib.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/hash_impl.h"
#include "libshm/platform/hash_wide.h"
#include "libshm/platform/mem.h"

#define SHORT_BYTES 240

uint64_t pgs__hash(const void *p, size_t n_bytes)
{
#if defined(__x86_64__)
    if (n_bytes > SHORT_BYTES) {
        if (pgs__cap(PGS__CAP_AVX512)) return pgs__hash_avx512(p, n_bytes);
        if (pgs__cap(PGS__CAP_AVX2)) return pgs__hash_avx2(p, n_bytes);
    }
#endif
    return XXH3_64bits(p, n_bytes);
}

uint64_t pgs__hash_page(const void *page)
{
    return pgs__hash(page, PGS_PAGE_SIZE);
}

struct pgs__hasher {
    XXH3_state_t state; /* first: aligned to 64 */
    void *block;        /* what malloc gave */
};

struct pgs__hasher *pgs__hasher_new(void)
{
    void *block = pgs__malloc(sizeof(struct pgs__hasher) + 63);
    if (!block) return NULL;
    struct pgs__hasher *h = (void *)(((uintptr_t)block + 63) & ~(uintptr_t)63);
    h->block = block;
    XXH3_INITSTATE(&h->state);
    XXH3_64bits_reset(&h->state);
    return h;
}

void pgs__hasher_update(struct pgs__hasher *h, const void *p, size_t n)
{
    if (n == 0) return; /* p may be NULL then */
#if defined(__x86_64__)
    if (pgs__cap(PGS__CAP_AVX512)) {
        pgs__hash_avx512_update(&h->state, p, n);
        return;
    }
    if (pgs__cap(PGS__CAP_AVX2)) {
        pgs__hash_avx2_update(&h->state, p, n);
        return;
    }
#endif
    XXH3_64bits_update(&h->state, p, n);
}

uint64_t pgs__hasher_digest(const struct pgs__hasher *h)
{
    return XXH3_64bits_digest(&h->state);
}

void pgs__hasher_free(struct pgs__hasher *h)
{
    if (h) pgs__free(h->block);
}
