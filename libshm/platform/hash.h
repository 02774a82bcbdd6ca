/* Pagestone | platform/hash — XXH3-64, dispatched at run time to the widest vectors that the CPU has.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_PLATFORM_HASH_H
#define PGS_PLATFORM_HASH_H

#include "libshm/platform/base.h"

uint64_t pgs__hash(const void *p, size_t n_bytes); /* XXH3_64bits, seed 0 */
uint64_t pgs__hash_page(const void *page);         /* of one 4 KiB page */

/* Streaming, for streams whose parts are apart. */
struct pgs__hasher;
struct pgs__hasher *pgs__hasher_new(void); /* NULL: no memory */
void pgs__hasher_update(struct pgs__hasher *h, const void *p, size_t n);
uint64_t pgs__hasher_digest(const struct pgs__hasher *h);
void pgs__hasher_free(struct pgs__hasher *h);

/* 64-bit finaliser (splitmix64), for hash tables. */
static inline uint64_t pgs__mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#endif
