/* Pagestone | txn/merge — which elements did both transactions change?
 * SPDX-License-Identifier: Apache-2.0
 *
 * The unit is the element, compared by bytes with the base; pages only tell where to look. Pages that do not meet are not enough: with itemsize 12
 * record 341 lies in bytes 4092 to 4104, so writing its first field dirties page 0 and writing its second page 1 (HAZARDS 3). Therefore both sides' pages are
 * widened to whole elements first, and where the widened ranges meet each element is looked at:
 *
 *     ours == base              theirs stays              theirs == base            ours stays
 *     both differ from base     a conflict cell, also when both wrote the same value
 *
 * An element may span any number of pages; it is compared piece by piece, and counts as changed if any piece is.
 */
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

#define BLOCK (64u << 10)

struct collect {
    struct pgs__range_list *out;
    struct pgs_error *err;
};
static int collect_range(void *ctx, uint64_t lo, uint64_t hi)
{
    struct collect *c = ctx;
    return pgs__ranges_add(c->out, lo, hi, c->err);
}

int pgs__merge_their_pages(struct pgs__pagefile *pf, const struct pgs__content *base, const struct pgs__content *theirs,
                           struct pgs__range_list *out, struct pgs_error *err)
{
    struct collect c = {out, err};
    return pgs__content_diff(pf, base, theirs, collect_range, &c, err);
}

/* Page ranges as bytes below n_bytes, widened to whole elements. */
static int widen(const struct pgs__merge *m, const struct pgs__range_list *pages, struct pgs__range_list *out,
                 struct pgs_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < pages->n && rc == 0; i++) {
        uint64_t lo = pages->v[i].lo << PGS_PAGE_SHIFT, hi = pgs__min_u64(pages->v[i].hi << PGS_PAGE_SHIFT, m->n_bytes);
        if (lo >= hi) break;
        if (!PGS_PLANTED(11)) {
            lo -= lo % m->itemsize;
            hi += (m->itemsize - hi % m->itemsize) % m->itemsize;
        }
        rc = pgs__ranges_add(out, lo, pgs__min_u64(hi, m->n_bytes), err);
    }
    return rc;
}

static int intersect(const struct pgs__range_list *a, const struct pgs__range_list *b, struct pgs__range_list *out,
                     struct pgs_error *err)
{
    int rc = 0;
    for (size_t i = 0, j = 0; i < a->n && j < b->n && rc == 0;) {
        uint64_t lo = pgs__max_u64(a->v[i].lo, b->v[j].lo), hi = pgs__min_u64(a->v[i].hi, b->v[j].hi);
        if (lo < hi) rc = pgs__ranges_add(out, lo, hi, err);
        if (a->v[i].hi < b->v[j].hi)
            i++;
        else
            j++;
    }
    return rc;
}

/* The element being compared. */
struct cell {
    uint64_t index;
    bool ours, theirs;
};

static int cell_end(struct cell *c, struct pgs__range_list *cells, struct pgs_error *err)
{
    bool both = c->ours && c->theirs;
    c->ours = c->theirs = false;
    return both ? pgs__ranges_add(cells, c->index, c->index + 1, err) : 0;
}

static int compare_block(const struct pgs__merge *m, struct cell *c, uint64_t at, const uint8_t *base,
                         const uint8_t *theirs, uint64_t len, struct pgs__range_list *cells, struct pgs_error *err)
{
    int rc = 0;
    bool same = memcmp(base, theirs, (size_t)len) == 0;
    for (uint64_t done = 0; done < len && rc == 0;) {
        uint64_t index = (at + done) / m->itemsize, end = (index + 1) * m->itemsize;
        uint64_t n = pgs__min_u64(end - (at + done), len - done);
        if (index != c->index) {
            rc = cell_end(c, cells, err);
            c->index = index;
        }
        if (m->ours)
            c->ours = c->ours || memcmp(m->ours + at + done, base + done, (size_t)n) != 0;
        else
            c->ours = true;
        if (!same) c->theirs = c->theirs || memcmp(theirs + done, base + done, (size_t)n) != 0;
        done += n;
    }
    return rc;
}

/* Two buffers, and a compressed block at hand for each side. */
struct scratch {
    uint8_t *buf;
    struct pgs__cold_cache base, theirs;
};

static int compare_range(const struct pgs__merge *m, uint64_t lo, uint64_t hi, struct scratch *s,
                         struct pgs__range_list *cells, struct pgs_error *err)
{
    struct cell c = {.index = lo / m->itemsize};
    uint8_t *buf = s->buf;
    int rc = 0;
    for (uint64_t at = lo; at < hi && rc == 0; at += BLOCK) {
        uint64_t len = pgs__min_u64(BLOCK, hi - at);
        rc = pgs__content_read_via(m->pf, m->base, &s->base, at, buf, len, err);
        if (rc == 0) rc = pgs__content_read_via(m->pf, m->theirs, &s->theirs, at, buf + BLOCK, len, err);
        if (rc == 0) rc = compare_block(m, &c, at, buf, buf + BLOCK, len, cells, err);
    }
    return rc ? rc : cell_end(&c, cells, err);
}

int pgs__merge_check(const struct pgs__merge *m, struct pgs__range_list *cells, struct pgs_error *err)
{
    struct pgs__range_list ours = {0}, theirs = {0}, meet = {0};
    if (m->itemsize == 0) return 0;
    struct scratch s = {.buf = pgs__malloc(2 * BLOCK)};
    int rc = s.buf ? 0 : pgs__fail(err, PGS_ENOMEM, "no memory to compare an array");
    if (rc == 0) rc = widen(m, m->our_pages, &ours, err);
    if (rc == 0) rc = widen(m, m->their_pages, &theirs, err);
    if (rc == 0) rc = intersect(&ours, &theirs, &meet, err);
    for (size_t i = 0; i < meet.n && rc == 0; i++) rc = compare_range(m, meet.v[i].lo, meet.v[i].hi, &s, cells, err);
    pgs__ranges_free(&ours);
    pgs__ranges_free(&theirs);
    pgs__ranges_free(&meet);
    pgs__cold_cache_free(&s.base);
    pgs__cold_cache_free(&s.theirs);
    pgs__free(s.buf);
    return rc;
}
