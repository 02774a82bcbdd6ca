/* Pagestone | txn/claim_lists — the two lists of a claim: what is available in its chunks, and what was taken from them.
 * SPDX-License-Identifier: Apache-2.0
 *
 *   I1  A page of the claim's chunks is in `avail`, in `taken`, or in neither: then it is used, was not looked up yet, or was set aside as a hole.
 *   I2  avail[0] and avail[1] say whom a run serves (data, nodes), and a run may serve the other kind when nothing else is left. Neighbours are not joined.
 *   I3  A run that follows the one taken last becomes one entry with it, but for one that begins a chunk, one behind n_sealed, and what came from the reserve.
 *   I4  Where memory for a list is lacking, pages are forgotten and never doubled: an available run that is lost is free again after the release.
 */
#include "libshm/txn/claim_impl.h"

#include "libshm/platform/mem.h"

/* --- available ------------------------------------------------------------------------------------------------------------------------ */

int pgs__avail_add(struct pgs__claim *c, int kind, struct pgs_run run)
{
    if (run.n_pages == 0) return 0;
    if (pgs__grow(&c->avail[kind], &c->cap_avail[kind], c->n_avail[kind] + 1, sizeof(struct pgs_run)))
        return -PGS_ENOMEM;
    c->avail[kind][c->n_avail[kind]++] = run;
    return 0;
}

static int add_hole(struct pgs__hunt *h, int kind, uint64_t lo, uint64_t hi)
{
    if (lo >= hi) return 0;
    if (pgs__grow(&h->holes[kind], &h->cap_holes[kind], h->n_holes[kind] + 1, sizeof(struct pgs_run)))
        return -PGS_ENOMEM;
    h->holes[kind][h->n_holes[kind]++] = (struct pgs_run){{lo}, hi - lo};
    return 0;
}

int pgs__hunt_offer(struct pgs__hunt *h, int kind, struct pgs_run run)
{
    if (!h->backed_only) return pgs__avail_add(h->c, kind, run);
    uint64_t lo = run.page.n, hi = lo + run.n_pages;
    int rc = 0;
    while (rc == 0 && lo < hi) {
        struct pgs_run part = pgs__backed_first(&h->backed, lo, hi);
        rc = add_hole(h, kind, lo, part.page.n);
        if (rc == 0) rc = pgs__avail_add(h->c, kind, part);
        lo = part.page.n + part.n_pages;
    }
    return rc;
}

static void avail_cut(struct pgs__claim *c, int kind, size_t i, uint64_t n)
{
    struct pgs_run *r = &c->avail[kind][i];
    r->page.n += n;
    r->n_pages -= n;
    if (r->n_pages == 0) *r = c->avail[kind][--c->n_avail[kind]];
}

bool pgs__avail_take(struct pgs__claim *c, int kind, uint64_t n, struct pgs_run *out)
{
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < c->n_avail[kind]; i++) {
        if (c->avail[kind][i].n_pages < n) continue;
        if (best == SIZE_MAX || c->avail[kind][i].n_pages < c->avail[kind][best].n_pages) best = i;
    }
    if (best == SIZE_MAX) return false;
    *out = (struct pgs_run){c->avail[kind][best].page, n};
    avail_cut(c, kind, best, n);
    return true;
}

struct pgs_run pgs__avail_largest(struct pgs__claim *c, int kind, uint64_t n)
{
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < c->n_avail[kind]; i++)
        if (best == SIZE_MAX || c->avail[kind][i].n_pages > c->avail[kind][best].n_pages) best = i;
    if (best == SIZE_MAX) return (struct pgs_run){{0}, 0};
    struct pgs_run out = {c->avail[kind][best].page, pgs__min_u64(n, c->avail[kind][best].n_pages)};
    avail_cut(c, kind, best, out.n_pages);
    return out;
}

void pgs__avail_without(struct pgs__claim *c, int kind, struct pgs_run run)
{
    uint64_t lo = run.page.n, hi = lo + run.n_pages;
    for (size_t i = 0; i < c->n_avail[kind]; i++) {
        struct pgs_run *a = &c->avail[kind][i];
        uint64_t a_lo = a->page.n, a_hi = a_lo + a->n_pages;
        if (a_hi <= lo || a_lo >= hi) continue;
        if (a_lo < lo && a_hi > hi) { /* without memory the tail is free again after the release */
            a->n_pages = lo - a_lo;
            (void)pgs__avail_add(c, kind, (struct pgs_run){{hi}, a_hi - hi});
        } else if (a_lo < lo) {
            a->n_pages = lo - a_lo;
        } else {
            avail_cut(c, kind, i--, pgs__min_u64(hi, a_hi) - a_lo);
        }
    }
}

/* --- taken ---------------------------------------------------------------------------------------------------------------------------- */

int pgs__hunt_note(struct pgs__hunt *h, struct pgs_run run, bool is_node, bool from_reserve)
{
    struct pgs__claim *c = h->c;
    if (c->n_taken > c->n_sealed && !from_reserve) {
        struct pgs__taken *last = &c->taken[c->n_taken - 1];
        if (last->is_node == is_node && !last->from_reserve && last->run.page.n + last->run.n_pages == run.page.n &&
            run.page.n % PGS_CHUNK_PAGES != 0) {
            last->run.n_pages += run.n_pages;
            return 0;
        }
    }
    if (pgs__grow(&c->taken, &c->cap_taken, c->n_taken + 1, sizeof c->taken[0]))
        return pgs__fail(h->err, PGS_ENOMEM, "no memory for a list of taken pages");
    c->taken[c->n_taken++] = (struct pgs__taken){.run = run, .is_node = is_node, .from_reserve = from_reserve};
    return 0;
}

/* Cut `run` out of entry i; what is left of it may become two entries. */
static void taken_cut(struct pgs__claim *c, size_t i, struct pgs_run run)
{
    struct pgs__taken t = c->taken[i];
    uint64_t before = run.page.n - t.run.page.n, after = t.run.n_pages - before - run.n_pages;
    if (before && after) {
        struct pgs__taken tail = t;
        tail.run = (struct pgs_run){{run.page.n + run.n_pages}, after};
        c->taken[i].run.n_pages = before;
        PGS_BUG_ON(c->n_taken >= c->cap_taken); /* pgs__claim_give made room */
        c->taken[c->n_taken++] = tail;
    } else if (before) {
        c->taken[i].run.n_pages = before;
    } else if (after) {
        c->taken[i].run = (struct pgs_run){{run.page.n + run.n_pages}, after};
    } else {
        c->taken[i] = c->taken[--c->n_taken];
    }
}

/* A run that was asked for may lie in several entries. Without memory to split an entry it stays taken: its pages are recorded as used and leak, which the verifier
 * reports; nothing is lost. */
void pgs__claim_give(struct pgs__claim *c, struct pgs_run run, bool is_node)
{
    while (run.n_pages > 0) {
        size_t i = 0;
        while (i < c->n_taken &&
               !(c->taken[i].run.page.n <= run.page.n && run.page.n < c->taken[i].run.page.n + c->taken[i].run.n_pages))
            i++;
        PGS_BUG_ON(i == c->n_taken || c->taken[i].is_node != is_node);
        struct pgs_run part = run;
        uint64_t end = c->taken[i].run.page.n + c->taken[i].run.n_pages;
        part.n_pages = pgs__min_u64(run.n_pages, end - run.page.n);
        bool reserve = c->taken[i].from_reserve;
        if (pgs__grow(&c->taken, &c->cap_taken, c->n_taken + 2, sizeof c->taken[0]) == 0) {
            taken_cut(c, i, part);
            if (reserve)
                c->taken[c->n_taken++] =
                    (struct pgs__taken){.run = part, .is_node = is_node, .from_reserve = true, .given = true};
            else
                (void)pgs__avail_add(c, is_node, part); /* without memory they are free again after the release */
        }
        run.page.n += part.n_pages;
        run.n_pages -= part.n_pages;
    }
}
