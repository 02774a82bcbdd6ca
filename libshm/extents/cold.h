/* Pagestone | extents/cold — the image of compressed data: its page numbers, and how its bytes are reached.
 * SPDX-License-Identifier: Apache-2.0
 *
 * docs/design/cold.md has the whole. A run of a map whose page number is at least PGS__COLD_FIRST lies in the image: an endless virtual file of the decompressed form of all blocks, in slots of
 * 32 pages. Maps treat such runs like any other; only who wants bytes has to ask whether a page is cold, and then goes through the two calls that the owner of the page file set.
 *
 *   I1  A slot's number is never given out again, so an image page has one content for ever.
 *   I2  An EXTENT is never cold: contents that have cold pages have form MAP.
 *   I3  Pages of a slot behind the end of its block (which may be shorter than 32 pages) read as zeros; no map refers to them.
 */
#ifndef PGS_EXTENTS_COLD_H
#define PGS_EXTENTS_COLD_H

#include "libshm/pages/pagefile.h"

#define PGS__COLD_PAGES 32u /* of a slot */
#define PGS__COLD_BYTES (PGS__COLD_PAGES * PGS_PAGE_SIZE)
#define PGS__COLD_GROUP                                                                                                \
    16u /* slots: 2 MiB, more than the kernel reads at once. A group has blocks of one commit only */
#define PGS__COLD_FIRST (1ull << 48) /* page number of slot 0 */
#define PGS__COLD_SLOTS (1ull << 45) /* byte offsets in the image stay below 2^62 */
#define PGS__COLD_END (PGS__COLD_FIRST + PGS__COLD_PAGES * PGS__COLD_SLOTS)

static inline bool pgs__is_cold(uint64_t page)
{
    return page >= PGS__COLD_FIRST;
}
static inline uint64_t pgs__cold_slot(uint64_t page)
{
    return (page - PGS__COLD_FIRST) / PGS__COLD_PAGES;
}
static inline uint64_t pgs__cold_page_of(uint64_t slot)
{
    return PGS__COLD_FIRST + slot * PGS__COLD_PAGES;
}

/* Both: 0 or -PGS_E…; -PGS_ECORRUPT for damage, also for a slot that is absent. The caller holds a pin of a generation that refers to the pages. Thread-safe. */
struct pgs__cold_ops {
    /* Map pages [page, page + n_pages) of the image over addr (a reservation), readable, or private and writable. The mapping ends with munmap. -PGS_ENOTSUP: there is no way to. */
    int (*map)(void *ctx, uint64_t page, uint64_t n_pages, void *addr, bool cow, struct pgs_error *err);
    /* Their bytes into buf, decompressed and verified. */
    int (*read)(void *ctx, uint64_t page, uint64_t n_pages, void *buf, struct pgs_error *err);
};

/* A block as the table ('z' slot) has it. 40 bytes, on disk. */
struct pgs__cold_block {
    uint64_t page; /* of the page file, where the compressed bytes begin */
    uint64_t xxh;  /* XXH3-64 of the decompressed bytes */
    uint32_t z_bytes;
    uint32_t n_bytes;  /* decompressed: whole pages, at most PGS__COLD_BYTES */
    uint32_t itemsize; /* 2 to 255: bytes were shuffled by it; 0 and 1: not */
    uint16_t live;     /* pages of the slot in the head (each once) and in deadlists */
    uint16_t codec;    /* PGS__COLD_ZSTD */
    uint64_t birth;    /* generation that froze it */
};
PGS_STATIC(sizeof(struct pgs__cold_block) == 40, "on disk");
#define PGS__COLD_ZSTD 1u

/* Is this entry possible? Everything but `page`, which only the ledger can judge. */
static inline bool pgs__cold_block_sane(const struct pgs__cold_block *b)
{
    return b->codec == PGS__COLD_ZSTD && b->itemsize <= 255 && b->n_bytes && b->n_bytes <= PGS__COLD_BYTES &&
           b->n_bytes % PGS_PAGE_SIZE == 0 && b->z_bytes && b->z_bytes < b->n_bytes && b->live &&
           b->live <= b->n_bytes / PGS_PAGE_SIZE && b->birth;
}

/* --- codec (cold_codec.c). A context per thread is kept for its next call and ends with the thread. ------------------------------------------------ */
/* Compress n_bytes at src. *z_bytes: how many came out, at dst (NULL: in the thread's own buffer, pgs__cold_packed, until its next call). 1: more than cap would have, and nothing is there. */
int pgs__cold_compress(const void *src, size_t n_bytes, uint32_t itemsize, void *dst, size_t cap, size_t *z_bytes,
                       uint64_t *xxh, struct pgs_error *err);
const void *pgs__cold_packed(void);
/* The other way: exactly n_bytes, and their checksum, must come out. Everything is input. -PGS_ECORRUPT; dst is undefined then. */
int pgs__cold_decompress(const void *src, size_t z_bytes, void *dst, size_t n_bytes, uint32_t itemsize, uint64_t xxh,
                         struct pgs_error *err);
/* Byte k of every element together; what does not fill an element stays at the end. dst and src do not overlap. */
void pgs__cold_shuffle(void *dst, const void *src, size_t n_bytes, uint32_t itemsize);
void pgs__cold_unshuffle(void *dst, const void *src, size_t n_bytes, uint32_t itemsize);

/* --- one block at hand, for who reads page after page ---------------------------------------------------------------------------------------------- */
struct pgs__cold_cache { /* zeroed: empty */
    const struct pgs__cold_ops *ops;
    void *ctx;
    uint64_t slot; /* + 1; 0: none */
    uint8_t *buf;
};
/* Address of one cold page, until the next call. NULL and *rc. */
const void *pgs__cold_page(struct pgs__pagefile *pf, struct pgs__cold_cache *c, uint64_t page, int *rc,
                           struct pgs_error *err);
void pgs__cold_cache_free(struct pgs__cold_cache *c);
/* pf's read, or an error where nobody set it. */
int pgs__cold_read(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, void *buf, struct pgs_error *err);

#endif
