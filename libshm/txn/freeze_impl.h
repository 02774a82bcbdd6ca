/* Pagestone | txn/freeze_impl — one round of freezing or thawing, as its files share it.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     plan     freeze_plan.c     which blocks, upon a pinned generation
 *     make     freeze_make.c     their bytes, in parallel, in claimed pages. No lock is held
 *     enter    freeze_enter.c    one maintenance commit, for what is still as it was planned
 */
#ifndef PGS_TXN_FREEZE_IMPL_H
#define PGS_TXN_FREEZE_IMPL_H

#include "libshm/catalog/object.h"
#include "libshm/txn/commit.h"
#include "libshm/txn/freeze.h"

#define PGS__FREEZE_BLOCKS 256u /* a round: 32 MiB of content */

struct pgs__freeze_part { /* pages of the content, inside one block */
    uint64_t at;
    struct pgs_run run;
    uint64_t birth;
};
struct pgs__freeze_block {
    uint64_t at, n;         /* logical pages that it spans */
    size_t first, n_parts;  /* of parts */
    uint32_t n_raw, n_cold; /* pages, of n; the rest are holes */
    uint32_t z_bytes;       /* freezing; 0: it stays as it is */
    uint64_t xxh;
    struct pgs_run to; /* n_pages 0: none */
};
struct pgs__freeze {
    struct pgs__session *s;
    const struct pgs__wait *w;
    const uint8_t *key;
    size_t len;
    bool thaw;
    struct pgs__object obj; /* as pinned */
    struct pgs__pin pin;
    struct pgs__claim claim;
    struct pgs__freeze_block blocks[PGS__FREEZE_BLOCKS];
    size_t n_blocks, limit;
    struct pgs__freeze_part *parts;
    size_t n_parts, cap_parts;
    uint64_t stop; /* no round begins at this page or behind */
    uint64_t next; /* logical page at which the next round begins; UINT64_MAX: there is none */
    uint64_t *page_xxh;
    bool checked; /* the stream was verified in this call */
    bool checksums;
    uint64_t gain; /* bytes, of this round's commit */
};

/* What bytes are shuffled by. */
static inline uint32_t pgs__freeze_itemsize(const struct pgs__object *o)
{
    return o->kind == PGS_KIND_ARRAY && o->itemsize <= 255 ? o->itemsize : 0;
}

/* Blocks from logical page f->next on, at most f->limit of them; next moves behind them. */
int pgs__freeze_plan(struct pgs__freeze *f, struct pgs_error *err);
/* The new bytes, in pages of f->claim: `to` of each block that has some. Where pages ran out f->next goes back to the first block without. -PGS_EFULL: none has. */
int pgs__freeze_make(struct pgs__freeze *f, struct pgs_error *err);
/* Commit. Blocks without `to` are left out; pages of blocks that changed go back. f->gain. */
int pgs__freeze_enter(struct pgs__freeze *f, struct pgs_error *err);

#endif
