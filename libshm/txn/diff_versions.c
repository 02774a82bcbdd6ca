/* Pagestone | txn/diff_versions — what differs between two snapshots of one store.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two tree diffs, one inside the other: of the catalogs, which skips every subtree that both share, and for an array that was changed in place, of its page maps. Pages that differ are then
 * compared byte by byte, since a page that was written again may hold the same bytes. So the time goes with the change, not with the store.
 *
 * Records that differ with the same revision (compact moved the pages) are no change, nor is a new object over the very pages of the old one (revert, copy, an array put back). Where a
 * new object has pages of its own it counts as changed as a whole: they are not read.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/versions.h"

#define MAX_RANGES 65536u
#define BLOCK_BYTES (64u << 10)

struct ranges {
    struct pgs_range *v;
    size_t n, cap;
    uint64_t slack; /* ranges closer than this are joined: 0, and more after MAX_RANGES were reached */
};

static int ranges_add(struct ranges *r, uint64_t lo, uint64_t hi)
{
    if (r->n && lo <= r->v[r->n - 1].hi + r->slack) {
        r->v[r->n - 1].hi = pgs__max_u64(r->v[r->n - 1].hi, hi);
        return 0;
    }
    if (r->n == MAX_RANGES) { /* coarser: neighbours join in pairs, and stay closer from now on */
        for (size_t i = 0; i < MAX_RANGES / 2; i++) r->v[i] = (struct pgs_range){r->v[2 * i].lo, r->v[2 * i + 1].hi};
        r->n = MAX_RANGES / 2;
        uint64_t span = r->v[r->n - 1].hi - r->v[0].lo;
        r->slack = pgs__max_u64(2 * r->slack + 1, span / MAX_RANGES);
        return ranges_add(r, lo, hi);
    }
    if (pgs__grow(&r->v, &r->cap, r->n + 1, sizeof r->v[0])) return -PGS_ENOMEM;
    r->v[r->n++] = (struct pgs_range){lo, hi};
    return 0;
}

struct compare {
    struct pgs__pagefile *pf;
    const struct pgs__content *a, *b;
    uint64_t itemsize, common; /* bytes that both have */
    struct ranges r;
    uint8_t *buf; /* two blocks */
    struct pgs_error *err;
};

/* Elements with a differing byte among n bytes from offset `off`. */
static int compare_bytes(struct compare *c, uint64_t off, const uint8_t *a, const uint8_t *b, uint64_t n)
{
    for (uint64_t i = 0; i < n;) {
        uint64_t page = pgs__min_u64(n, i + PGS_PAGE_SIZE - ((off + i) & (PGS_PAGE_SIZE - 1)));
        if (memcmp(a + i, b + i, page - i) == 0) {
            i = page;
            continue;
        }
        while (i < page) { /* the part of one element that lies in this page */
            uint64_t element = (off + i) / c->itemsize;
            uint64_t end = pgs__min_u64(page, (element + 1) * c->itemsize - off);
            if (memcmp(a + i, b + i, end - i) != 0) {
                int rc = ranges_add(&c->r, element, element + 1);
                if (rc) return rc;
            }
            i = end;
        }
    }
    return 0;
}

static int compare_pages(void *ctx, uint64_t lo, uint64_t hi)
{
    struct compare *c = ctx;
    uint64_t at = lo << PGS_PAGE_SHIFT, end = pgs__min_u64(hi << PGS_PAGE_SHIFT, c->common);
    for (uint64_t n; at < end; at += n) {
        n = pgs__min_u64(end - at, BLOCK_BYTES);
        int rc = pgs__content_read(c->pf, c->a, at, c->buf, n, c->err);
        if (rc == 0) rc = pgs__content_read(c->pf, c->b, at, c->buf + BLOCK_BYTES, n, c->err);
        if (rc == 0) rc = compare_bytes(c, at, c->buf, c->buf + BLOCK_BYTES, n);
        if (rc) return rc;
    }
    return 0;
}

static int compare_arrays(struct compare *c, const struct pgs__object *a, const struct pgs__object *b)
{
    uint64_t na = a->content.n_bytes, nb = b->content.n_bytes;
    c->a = &a->content;
    c->b = &b->content;
    c->itemsize = a->itemsize;
    c->common = pgs__min_u64(na, nb);
    c->r.n = 0;
    c->r.slack = 0;
    if (!c->buf) c->buf = pgs__malloc(2 * BLOCK_BYTES);
    if (!c->buf) return -PGS_ENOMEM;
    int rc = pgs__content_diff(c->pf, c->a, c->b, compare_pages, c, c->err);
    uint64_t more = pgs__max_u64(na, nb);
    if (rc == 0 && more > c->common) rc = ranges_add(&c->r, c->common / c->itemsize, more / c->itemsize);
    return rc;
}

struct diff {
    struct compare c;
    pgs__change_fn fn;
    void *ctx;
    struct pgs_error *err;
};

/* In place: the same object, and elements keep their flat numbers (rows at the end of axis 0 in C order, or one dimension). */
static bool in_place(const struct pgs__object *a, const struct pgs__object *b)
{
    if (a->id != b->id || a->kind != PGS_KIND_ARRAY || a->itemsize == 0) return false;
    if (pgs__object_same_type(a, b, false)) return true;
    return pgs__object_same_type(a, b, true) && (a->order != 'F' || a->ndim <= 1);
}

static int see_difference(void *ctx, uint64_t lo, uint64_t hi)
{
    (void)ctx;
    return lo < hi; /* one is enough */
}

/* 1: the same type over the same pages; 0: not, or not known. */
static int same_backing(struct diff *d, const struct pgs__object *a, const struct pgs__object *b)
{
    if (a->kind != b->kind || a->content.n_bytes != b->content.n_bytes || !pgs__object_same_type(a, b, false)) return 0;
    int rc = pgs__content_diff(d->c.pf, &a->content, &b->content, see_difference, NULL, d->err);
    return rc < 0 ? rc : rc == 0;
}

static int diff_changed(struct diff *d, struct pgs_span key, struct pgs_span va, struct pgs_span vb)
{
    struct pgs__object a, b;
    int rc = pgs__object_decode(d->c.pf, key, va, &a, d->err);
    if (rc == 0) rc = pgs__object_decode(d->c.pf, key, vb, &b, d->err);
    if (rc) return rc;
    if (pgs__object_same_revision(&a, &b)) return 0;
    if (!in_place(&a, &b)) {
        rc = same_backing(d, &a, &b);
        if (rc < 0) return pgs__name_object(d->err, rc, key.p, key.len);
        return rc ? 0 : d->fn(d->ctx, key.p, key.len, PGS_CHANGED, NULL, 0);
    }
    d->c.err = d->err;
    rc = compare_arrays(&d->c, &a, &b);
    if (rc) return pgs__name_object(d->err, rc, key.p, key.len);
    if (d->c.r.n == 0 && pgs__object_same_type(&a, &b, false)) return 0; /* written back and forth */
    return d->fn(d->ctx, key.p, key.len, PGS_CHANGED, d->c.r.v, d->c.r.n);
}

static int diff_entry(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b)
{
    struct diff *d = ctx;
    if (key.len > 0 && *(const char *)key.p == 0) return 0; /* hidden */
    if (!a.p) return d->fn(d->ctx, key.p, key.len, PGS_ADDED, NULL, 0);
    if (!b.p) return d->fn(d->ctx, key.p, key.len, PGS_REMOVED, NULL, 0);
    return diff_changed(d, key, a, b);
}

int pgs__diff(struct pgs_snapshot *a, struct pgs_snapshot *b, pgs__change_fn fn, void *ctx, struct pgs_error *err)
{
    if (a->s != b->s) return pgs__fail(err, PGS_EINVAL, "the two snapshots are of different stores");
    struct diff d = {.c = {.pf = &a->s->pf}, .fn = fn, .ctx = ctx, .err = err};
    struct pgs__tree ta = pgs__root_catalog(a->s, &a->root), tb = pgs__root_catalog(b->s, &b->root);
    int rc = pgs__tree_diff(&ta, &tb, diff_entry, &d, err);
    if (rc == -PGS_ENOMEM) pgs__fail(err, PGS_ENOMEM, "no memory for a list of changes");
    pgs__free(d.c.buf);
    pgs__free(d.c.r.v);
    if (rc == -PGS_ECORRUPT && !(pgs__pin_valid(a->s, &a->pin) && pgs__pin_valid(b->s, &b->pin))) {
        if (err) memset(err, 0, sizeof *err);
        return pgs__fail(err, PGS_EEXPIRED, "a version was dropped while it was being compared");
    }
    return rc;
}
