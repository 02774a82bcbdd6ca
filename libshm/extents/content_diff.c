/* Pagestone | extents/content_diff — where two contents of one object have different backing.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The two lists of runs are swept side by side, in logical order. Two maps are not read whole: the tree diff delivers only the entries that differ,
 * and that is enough. A page that an equal entry covers in both contents is covered by no differing entry (runs of one map do not
 * overlap), so leaving the equal entries out of both lists leaves the answer as it is. A run that was split by a change in its middle comes as
 * three entries on one side and one on the other; the sweep finds that their ends show the same pages and reports only the middle.
 *
 *   I1  At most one piece of each side is pending: entries come in order, so everything before the newest entry's start is decided.
 *   I2  "The same" means same page and same birth. Reporting too much is allowed (bytes may be equal), too little is not.
 */
#include "libshm/extents/content.h"

#include "libshm/extents/content_map.h"

struct sweep {
    struct pgs__pagefile *pf;
    struct pgs__placed_run side[2]; /* pending; n_pages 0: none */
    uint64_t limit;                 /* pages that both contents have; what is beyond is reported at the end, whole */
    uint64_t lo, hi;                /* the range being collected; empty: none */
    pgs__range_fn fn;
    void *ctx;
    struct pgs_error *err;
};

static int sweep_flush(struct sweep *s)
{
    uint64_t lo = s->lo, hi = s->hi;
    s->lo = s->hi = 0;
    return lo < hi ? s->fn(s->ctx, lo, hi) : 0;
}

static int sweep_emit(struct sweep *s, uint64_t lo, uint64_t hi)
{
    if (lo >= hi) return 0;
    int rc = 0;
    if (s->lo < s->hi && s->hi == lo) {
        s->hi = hi;
        return 0;
    }
    rc = sweep_flush(s);
    s->lo = lo;
    s->hi = hi;
    return rc;
}

static void piece_skip(struct pgs__placed_run *p, uint64_t n)
{
    p->at += n;
    p->page += n;
    p->n_pages -= n;
}

/* Decide every page before `upto`. */
static int sweep_advance(struct sweep *s, uint64_t upto)
{
    struct pgs__placed_run *a = &s->side[0], *b = &s->side[1];
    for (;;) {
        uint64_t a_at = a->n_pages ? a->at : UINT64_MAX, b_at = b->n_pages ? b->at : UINT64_MAX;
        uint64_t at = pgs__min_u64(a_at, b_at), end = upto;
        if (at >= upto) return 0;
        bool has_a = a_at == at, has_b = b_at == at;
        end = pgs__min_u64(end, has_a ? a->at + a->n_pages : a_at);
        end = pgs__min_u64(end, has_b ? b->at + b->n_pages : b_at);
        bool same = has_a && has_b && a->page == b->page && a->birth == b->birth;
        int rc = same ? 0 : sweep_emit(s, at, pgs__min_u64(end, s->limit));
        if (rc) return rc;
        if (has_a) piece_skip(a, end - at);
        if (has_b) piece_skip(b, end - at);
    }
}

static int sweep_add(struct sweep *s, int side, const struct pgs__placed_run *run)
{
    if (s->side[side].n_pages)
        return pgs__fail_corrupt(s->err, "", "two runs overlap at page %llu", (unsigned long long)run->at);
    s->side[side] = *run;
    return 0;
}

/* --- feeding it ----------------------------------------------------------------------------------------------------------- */
static int on_entry(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b)
{
    struct sweep *s = ctx;
    int rc = pgs__map_letter(key, s->err);
    if (rc < 0 || rc == 'C') return rc < 0 ? rc : 0;
    rc = sweep_advance(s, pgs__get_be64((const uint8_t *)key.p + 1));
    for (int side = 0; side < 2 && rc == 0; side++) {
        struct pgs_span val = side ? b : a;
        struct pgs__placed_run run;
        if (!val.p) continue;
        rc = pgs__map_decode_run(s->pf, key, val, &run, s->err);
        if (rc == 0) rc = sweep_add(s, side, &run);
    }
    return rc;
}

static int diff_maps(struct sweep *s, const struct pgs__content *a, const struct pgs__content *b)
{
    struct pgs__tree ta = pgs__map_tree(s->pf, a), tb = pgs__map_tree(s->pf, b);
    return pgs__tree_diff(&ta, &tb, on_entry, s, s->err);
}

/* At least one EXTENT: merge the two walks. Every run of a map beside one extent is a difference or borders on one. */
static int diff_walks(struct sweep *s, const struct pgs__content *a, const struct pgs__content *b)
{
    struct pgs__run_walk w[2];
    int rc[2] = {pgs__run_walk_seek(&w[0], s->pf, a, 0, s->err), pgs__run_walk_seek(&w[1], s->pf, b, 0, s->err)};
    for (;;) {
        for (int i = 0; i < 2; i++)
            if (rc[i] && rc[i] != -PGS_ENOENT) return rc[i];
        if (rc[0] && rc[1]) return 0;
        int i = rc[0] || (rc[1] == 0 && w[1].run.at < w[0].run.at);
        if (w[i].run.at >= s->limit) { /* nothing from here on matters */
            rc[i] = -PGS_ENOENT;
            continue;
        }
        int bad = sweep_advance(s, w[i].run.at);
        if (bad == 0) bad = sweep_add(s, i, &w[i].run);
        if (bad) return bad;
        rc[i] = pgs__run_walk_next(&w[i], s->err);
    }
}

int pgs__content_diff(struct pgs__pagefile *pf, const struct pgs__content *a, const struct pgs__content *b,
                      pgs__range_fn fn, void *ctx, struct pgs_error *err)
{
    uint64_t pages_a = pgs__pages_of(a->n_bytes), pages_b = pgs__pages_of(b->n_bytes),
             all = pgs__max_u64(pages_a, pages_b);
    struct sweep s = {.pf = pf, .limit = pgs__min_u64(pages_a, pages_b), .fn = fn, .ctx = ctx, .err = err};
    int rc = 0;
    if (a->form == PGS__FORM_INLINE || b->form == PGS__FORM_INLINE) {
        bool same = a->form == b->form && a->n_bytes == b->n_bytes &&
                    (a->n_bytes == 0 || memcmp(a->inline_data, b->inline_data, a->n_bytes) == 0);
        return same || all == 0 ? 0 : fn(ctx, 0, all);
    }
    rc = a->form == PGS__FORM_MAP && b->form == PGS__FORM_MAP ? diff_maps(&s, a, b) : diff_walks(&s, a, b);
    if (rc == 0) rc = sweep_advance(&s, UINT64_MAX);
    if (rc == 0) rc = sweep_emit(&s, s.limit, all);
    return rc ? rc : sweep_flush(&s);
}
