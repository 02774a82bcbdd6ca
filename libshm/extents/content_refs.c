/* Pagestone | extents/content_refs — summing up which physical pages an edit gained and lost.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A sweep over the ends of all notes, in page order. Where several lost runs with different births cover a page the smallest birth is kept: births are lower
 * bounds, a smaller one only delays freeing.
 */
#include "libshm/extents/content_refs.h"

#include <stdlib.h>

#include "libshm/platform/mem.h"

#define SUM_AT 8192u

struct end { /* where a note begins (delta as it is) or ends (delta reversed) */
    uint64_t page;
    int64_t delta;
    uint64_t birth;
    bool begins;
};

static int by_page(const void *pa, const void *pb)
{
    const struct end *a = pa, *b = pb;
    if (a->page != b->page) return a->page < b->page ? -1 : 1;
    return (int)a->begins - (int)b->begins; /* ends first */
}

/* Births of the lost runs that cover the sweep's position; rarely more than two. */
struct births {
    uint64_t *birth;
    size_t n;
};

static void births_drop(struct births *b, uint64_t birth)
{
    for (size_t i = 0; i < b->n; i++) {
        if (b->birth[i] != birth) continue;
        b->birth[i] = b->birth[--b->n];
        return;
    }
    PGS_BUG_ON(true); /* each end was preceded by its beginning */
}

static uint64_t births_min(const struct births *b)
{
    uint64_t least = b->n ? b->birth[0] : 0;
    for (size_t i = 1; i < b->n; i++) least = pgs__min_u64(least, b->birth[i]);
    return least;
}

/* Write the sums to out[], which has room for as many notes as there are ends. */
static size_t sweep(const struct end *ends, size_t n, struct births *births, struct pgs__ref_note *out)
{
    size_t n_out = 0;
    int64_t sum = 0;
    for (size_t i = 0; i < n;) {
        uint64_t page = ends[i].page;
        for (; i < n && ends[i].page == page; i++) {
            bool lost = ends[i].begins ? ends[i].delta < 0 : ends[i].delta > 0;
            sum += ends[i].delta;
            if (!lost) continue;
            if (ends[i].begins)
                births->birth[births->n++] = ends[i].birth;
            else
                births_drop(births, ends[i].birth);
        }
        if (sum == 0 || i == n) continue;
        struct pgs__ref_note note = {.page = page, .n_pages = ends[i].page - page, .delta = sum};
        if (sum < 0) note.birth = births_min(births);
        struct pgs__ref_note *last = n_out ? &out[n_out - 1] : NULL;
        if (last && last->page + last->n_pages == page && last->delta == sum && last->birth == note.birth)
            last->n_pages += note.n_pages;
        else
            out[n_out++] = note;
    }
    return n_out;
}

int pgs__refs_sum(struct pgs__refs *r, struct pgs_error *err)
{
    if (r->n == 0) return 0;
    size_t n = 2 * r->n;
    struct end *ends = pgs__malloc(n * sizeof *ends);
    struct births births = {.birth = pgs__malloc(r->n * sizeof *births.birth)};
    struct pgs__ref_note *out = pgs__malloc(n * sizeof *out);
    int rc = 0;
    if (!ends || !births.birth || !out) {
        rc = pgs__fail(err, PGS_ENOMEM, "no memory for the list of replaced pages");
        goto done;
    }
    for (size_t i = 0; i < r->n; i++) {
        const struct pgs__ref_note *e = &r->note[i];
        ends[2 * i] = (struct end){e->page, e->delta, e->birth, true};
        ends[2 * i + 1] = (struct end){e->page + e->n_pages, -e->delta, e->birth, false};
    }
    qsort(ends, n, sizeof *ends, by_page);
    struct pgs__ref_note *old = r->note;
    r->n = sweep(ends, n, &births, out);
    r->note = out;
    r->cap = n;
    out = old;
    r->sum_at = 2 * r->n + SUM_AT;
done:
    pgs__free(ends);
    pgs__free(births.birth);
    pgs__free(out);
    return rc;
}

int pgs__refs_add(struct pgs__refs *r, uint64_t page, uint64_t n_pages, uint64_t birth, int delta,
                  struct pgs_error *err)
{
    if (n_pages == 0) return 0;
    struct pgs__ref_note *last = r->n ? &r->note[r->n - 1] : NULL;
    if (last && last->page + last->n_pages == page && last->delta == delta && last->birth == birth) {
        last->n_pages += n_pages;
        return 0;
    }
    if (r->n >= (r->sum_at ? r->sum_at : SUM_AT)) {
        int rc = pgs__refs_sum(r, err);
        if (rc) return rc;
    }
    if (r->n == r->cap && pgs__grow(&r->note, &r->cap, r->n + 1, sizeof *r->note))
        return pgs__fail(err, PGS_ENOMEM, "no memory for the list of replaced pages");
    r->note[r->n++] = (struct pgs__ref_note){.page = page, .n_pages = n_pages, .birth = birth, .delta = delta};
    return 0;
}

void pgs__refs_free(struct pgs__refs *r)
{
    pgs__free(r->note);
    *r = (struct pgs__refs){0};
}
