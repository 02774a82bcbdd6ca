/* Pagestone | txn/verify_cold — compressed blocks as the verifier sees them: who refers to which of their pages, and whether their bytes are right.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The table is that of the generation that is being verified, not the newest head's: the verifier holds a meta pin, which keeps pages but no entry of newer tables.
 */
#include "libshm/txn/verify_cold.h"

#include <stdlib.h>

#include "libshm/platform/mem.h"

void pgs__seen_free(struct pgs__seen_blocks *t)
{
    pgs__free(t->v);
    *t = (struct pgs__seen_blocks){0};
}

int pgs__seen_add(struct pgs__seen_blocks *t, uint64_t slot, const struct pgs__cold_block *b)
{
    if (pgs__grow(&t->v, &t->cap, t->n + 1, sizeof *t->v)) return -PGS_ENOMEM;
    t->v[t->n++] = (struct pgs__seen_block){.slot = slot, .b = *b};
    return 0;
}

static int by_slot(const void *a, const void *b)
{
    const struct pgs__seen_block *x = a, *y = b;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

struct pgs__seen_block *pgs__seen_find(struct pgs__seen_blocks *t, uint64_t slot)
{
    struct pgs__seen_block want = {.slot = slot};
    return t->n ? bsearch(&want, t->v, t->n, sizeof want, by_slot) : NULL;
}

/* Bits [lo, hi), of 32. */
static uint32_t bits(uint64_t lo, uint64_t hi)
{
    return (uint32_t)(((1ull << hi) - 1) & ~((1ull << lo) - 1));
}

const char *pgs__seen_run(struct pgs__seen_blocks *t, struct pgs_run run, enum pgs__seen_role role, uint64_t *slot)
{
    if (run.page.n < PGS__COLD_FIRST || run.page.n >= PGS__COLD_END || run.n_pages > PGS__COLD_END - run.page.n)
        return "is beyond the image";
    for (uint64_t at = run.page.n, end = at + run.n_pages; at < end;) {
        *slot = pgs__cold_slot(at);
        struct pgs__seen_block *b = pgs__seen_find(t, *slot);
        uint64_t base = pgs__cold_page_of(*slot), lo = at - base, hi = pgs__min_u64(end - base, PGS__COLD_PAGES);
        if (!b) return "is not in the table";
        if (hi > b->b.n_bytes / PGS_PAGE_SIZE) return "is shorter than what refers to it";
        uint32_t part = bits(lo, hi);
        if (role == PGS__SEEN_DEAD) {
            if (b->dead & part) return "has pages that are dead twice";
            b->dead |= part;
        } else if (role == PGS__SEEN_HEAD) {
            if (b->dead & part) return "has pages that the newest version refers to, but are dead";
            b->head |= part;
        } else if (part & ~(b->head | b->dead)) {
            return "has pages that an older version refers to, but are counted nowhere";
        }
        at = base + hi;
    }
    return NULL;
}

const char *pgs__seen_count(const struct pgs__seen_block *b)
{
    int n = __builtin_popcount(b->head) + __builtin_popcount(b->dead);
    if (n == b->b.live) return NULL;
    return n == 0          ? "is needed by nobody"
           : n < b->b.live ? "counts more pages than are needed"
                           : "counts too few pages";
}

static int read_pages(void *ctx, uint64_t page, uint64_t n_pages, void *buf, struct pgs_error *err)
{
    struct pgs__seen_blocks *t = ctx;
    uint64_t slot = pgs__cold_slot(page);
    struct pgs__seen_block *b = pgs__seen_find(t, slot);
    if (page != pgs__cold_page_of(slot) || n_pages != PGS__COLD_PAGES)
        return pgs__fail(err, PGS_EBUG, "the verifier reads whole blocks");
    if (!b) return pgs__fail_corrupt(err, "", "compressed block %llu is not in the table", (unsigned long long)slot);
    int rc = pgs__cold_block_fetch(t->pf, slot, &b->b, buf, err);
    b->right |= rc == 0;
    b->wrong |= rc == -PGS_ECORRUPT;
    if (rc == 0) memset((uint8_t *)buf + b->b.n_bytes, 0, PGS__COLD_BYTES - b->b.n_bytes);
    return rc;
}

const struct pgs__cold_ops pgs__seen_ops = {.read = read_pages};
