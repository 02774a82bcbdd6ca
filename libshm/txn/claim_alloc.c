/* Pagestone | txn/claim_alloc — pages for writing: from a wish to the runs that fulfil it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * How an allocation goes: first from what the claim already owns; then a chunk of the same kind that is partly free; then whole chunks; and when nothing is left, the other
 * kind's chunks, several pieces, the chunks of dead processes, and for commits that free the reserve.
 *
 * On a full file system (PGS__CTL_SCARCE) most free pages may be holes that nothing can back any more. So pages that are there already are looked for first (`backed_only`): the search is the
 * same, but chunks without such pages are passed over, and what is found in the others is cut to them. What is still missing then comes from holes, as far as there is room.
 *
 *   I1  All or nothing: on -PGS_EFULL what was taken on the way is given back (undo).
 *   I2  Outside backed_begin … backed_end no hole is set aside.
 *   I3  The reserve is touched under the commit lock only, and last (claim.h, I4).
 */
#include "libshm/txn/claim_impl.h"

#include "libshm/pages/fresh.h"
#include "libshm/platform/mem.h"

#define MAX_TRIES 8
#define MAX_PARTIAL_TRIES 256

/* --- one run ------------------------------------------------------------------------------------------------------------------------- */

static char letter(int kind)
{
    return kind ? 'N' : 'D';
}

/* Chunks of `of`'s kind until one run of n pages is there. 1: there are none. */
static int partial_until(struct pgs__hunt *h, int kind, char of, uint64_t n, struct pgs_run *out)
{
    struct pgs__session *s = h->c->s;
    pgs__mutex_lock(&s->space_mx);
    uint64_t hint = of == 'N' ? s->hint_node : s->hint_data;
    pgs__mutex_unlock(&s->space_mx);
    int rc = 0;
    for (int i = 0; i < MAX_TRIES; i++) {
        rc = pgs__hunt_partial(h, kind, of, n, &hint);
        if (rc) break;
        if (pgs__avail_take(h->c, kind, n, out)) break;
    }
    pgs__mutex_lock(&s->space_mx);
    *(of == 'N' ? &s->hint_node : &s->hint_data) = hint;
    pgs__mutex_unlock(&s->space_mx);
    return rc == -PGS_ENOENT || (rc == 0 && out->n_pages == 0) ? 1 : rc;
}

/* One run of n < 512 pages. 1: there is none. */
static int one_small(struct pgs__hunt *h, int kind, uint64_t n, bool no_new, struct pgs_run *out)
{
    uint64_t chunk;
    out->n_pages = 0;
    h->least = n;
    if (pgs__avail_take(h->c, kind, n, out)) return 0;
    int rc = h->c->light.kind == kind ? pgs__hunt_load_light(h) : 0;
    if (rc) return rc;
    if (pgs__avail_take(h->c, kind, n, out)) return 0;
    rc = partial_until(h, kind, letter(kind), n, out);
    if (rc <= 0 || no_new) return rc;
    rc = pgs__hunt_whole(h, 1, &chunk);
    if (rc == 0) rc = pgs__hunt_runs_of(h, chunk, kind, NULL);
    if (rc && rc != -PGS_EFULL) return rc;
    if (rc == 0 && pgs__avail_take(h->c, kind, n, out)) return 0;
    rc = pgs__hunt_load_light(h);
    if (rc) return rc;
    if (pgs__avail_take(h->c, !kind, n, out)) return 0; /* small stores: both kinds share */
    return partial_until(h, kind, letter(!kind), n, out);
}

/* Up to n pages, wherever they are. 0 pages: nothing is left. */
static int any_piece(struct pgs__hunt *h, int kind, uint64_t n, bool no_new, struct pgs_run *out)
{
    uint64_t chunk;
    h->least = 1;
    for (int i = 0; i < 2; i++) { /* own kind first */
        int k = i ? !kind : kind;
        uint64_t hint = 0;
        int rc = pgs__hunt_load_light(h);
        if (rc) return rc;
        *out = pgs__avail_largest(h->c, k, n);
        if (out->n_pages) return 0;
        rc = -PGS_ENOENT;
        for (int tries = 0; tries < MAX_PARTIAL_TRIES && rc == -PGS_ENOENT; tries++) {
            uint64_t before = hint;
            rc = pgs__hunt_partial(h, kind, letter(k), 1, &hint);
            if (rc == -PGS_ENOENT && hint <= before) break; /* once around */
        }
        if (rc && rc != -PGS_ENOENT) return rc;
        *out = pgs__avail_largest(h->c, kind, n);
        if (out->n_pages) return 0;
    }
    if (!h->backed_only || no_new) return 0; /* else there is no whole chunk */
    int rc = pgs__hunt_whole(h, 1, &chunk);
    if (rc == 0) rc = pgs__hunt_runs_of(h, chunk, kind, NULL);
    if (rc == 0) *out = pgs__avail_largest(h->c, kind, n);
    return rc == -PGS_EFULL ? 0 : rc;
}

/* n_chunks whole chunks in one piece, n pages of them taken; the rest is available. -PGS_EFULL: no such piece. */
static int one_big(struct pgs__hunt *h, int kind, uint64_t n_chunks, uint64_t n, bool recycle, struct pgs_run *out)
{
    uint64_t first;
    h->least = PGS_CHUNK_PAGES;
    int rc = kind == 0 && recycle ? pgs__hunt_recycled(h, n_chunks, &first) : 1;
    if (rc == 1) rc = pgs__hunt_whole(h, n_chunks, &first);
    if (rc) return rc;
    struct pgs_run all = {{first * PGS_CHUNK_PAGES}, n_chunks * PGS_CHUNK_PAGES};
    all.n_pages = pgs__min_u64(all.n_pages, h->limit - all.page.n);
    *out = (struct pgs_run){all.page, pgs__min_u64(n, all.n_pages)};
    struct pgs_run rest = {{all.page.n + out->n_pages}, all.n_pages - out->n_pages};
    if (pgs__hunt_offer(h, kind, rest)) return pgs__fail(h->err, PGS_ENOMEM, "no memory for a list of free pages");
    return 0;
}

/* --- all that is wanted ------------------------------------------------------------------------------------------------------------------ */

struct wanted {
    bool is_node;
    int flags;
    uint64_t n_pages;
    struct pgs_run *runs;
    size_t max_runs, n_runs;
    size_t n_backed; /* of the runs: nothing need be done for them */
};

static bool is_contiguous(const struct wanted *w)
{
    return (w->flags & PGS__ALLOC_CONTIGUOUS) != 0 || w->max_runs == 1;
}

/* Pages that were not found yet. */
static uint64_t missing(const struct wanted *w)
{
    uint64_t left = w->n_pages;
    for (size_t i = 0; i < w->n_runs; i++) left -= w->runs[i].n_pages;
    return left;
}

static int put_run(struct pgs__hunt *h, struct wanted *w, struct pgs_run run)
{
    int rc = pgs__hunt_note(h, run, w->is_node, false);
    if (rc) return rc;
    if (w->n_runs > w->n_backed && w->runs[w->n_runs - 1].page.n + w->runs[w->n_runs - 1].n_pages == run.page.n)
        w->runs[w->n_runs - 1].n_pages += run.n_pages;
    else
        w->runs[w->n_runs++] = run;
    return 0;
}

/* What is missing. -PGS_EFULL without text: the caller words it. */
static int collect(struct pgs__hunt *h, struct wanted *w)
{
    uint64_t left = missing(w), piece = (left + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
    bool contiguous = is_contiguous(w), no_new = (w->flags & PGS__ALLOC_NO_NEW) != 0;
    if (no_new) piece = 0;
    while (left > 0) {
        struct pgs_run run = {{0}, 0};
        int rc;
        if (w->n_runs == w->max_runs) return -PGS_EFULL;
        piece = pgs__min_u64(piece, (left + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES);
        if (left < PGS_CHUNK_PAGES) {
            rc = one_small(h, w->is_node, left, no_new, &run);
            if (rc == 1) rc = contiguous ? -PGS_EFULL : any_piece(h, w->is_node, left, no_new, &run);
        } else if (piece > 0) {
            rc = one_big(h, w->is_node, piece, left, !(w->flags & PGS__ALLOC_LOWEST), &run);
            if (rc == -PGS_EFULL && !contiguous) {
                piece /= 2;
                continue;
            }
            if (rc == 0 && contiguous && run.n_pages < left) rc = -PGS_EFULL;
        } else {
            rc = any_piece(h, w->is_node, left, no_new, &run);
        }
        if (rc) return rc;
        if (run.n_pages == 0) return -PGS_EFULL;
        rc = put_run(h, w, run);
        if (rc) return rc;
        left -= run.n_pages;
    }
    return 0;
}

/* I4. The caller holds the commit lock, and has the reserve to itself. */
static int from_reserve(struct pgs__hunt *h, struct wanted *w)
{
    struct pgs__record *hdr = &h->l->meta.hdr;
    uint64_t left = missing(w), keep = w->flags & PGS__ALLOC_DEEP ? PGS__RESERVE_LAST / 4 : PGS__RESERVE_LAST;
    if (w->flags & PGS__ALLOC_LAST) keep = 0;
    if (!h->locked || !w->is_node || hdr->reserve_n < left + keep || w->n_runs == w->max_runs) return -PGS_EFULL;
    struct pgs_run run = {{hdr->reserve_page}, left};
    int rc = pgs__hunt_note(h, run, true, true);
    if (rc) return rc;
    hdr->reserve_n -= run.n_pages;
    hdr->reserve_page = hdr->reserve_n ? hdr->reserve_page + run.n_pages : 0;
    w->runs[w->n_runs++] = run;
    return 0;
}

static void undo(struct pgs__hunt *h, struct wanted *w, size_t keep)
{
    while (w->n_runs > keep) pgs__claim_give(h->c, w->runs[--w->n_runs], w->is_node);
    w->n_backed = pgs__min_u64(w->n_backed, w->n_runs);
}

/* --- backed pages first ------------------------------------------------------------------------------------------------------------------- */

/* From here on only backed pages are in avail. */
static int backed_begin(struct pgs__hunt *h)
{
    struct pgs__claim *c = h->c;
    int rc = pgs__hunt_load_light(h);
    h->backed = (struct pgs__backed){.pf = &c->s->pf};
    h->backed_only = true;
    for (int kind = 0; kind < 2 && rc == 0; kind++) {
        struct pgs_run *old = c->avail[kind];
        size_t n = c->n_avail[kind];
        c->avail[kind] = NULL;
        c->n_avail[kind] = c->cap_avail[kind] = 0;
        for (size_t i = 0; i < n && rc == 0; i++) rc = pgs__hunt_offer(h, kind, old[i]);
        pgs__free(old); /* without memory the rest is free again after the release */
    }
    return rc;
}

static int backed_end(struct pgs__hunt *h)
{
    int rc = 0;
    h->backed_only = false;
    for (int kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < h->n_holes[kind] && rc == 0; i++) rc = pgs__avail_add(h->c, kind, h->holes[kind][i]);
        pgs__free(h->holes[kind]);
        h->holes[kind] = NULL;
        h->n_holes[kind] = h->cap_holes[kind] = 0;
    }
    return rc;
}

static int collect_backed(struct pgs__hunt *h, struct wanted *w)
{
    int rc = backed_begin(h);
    if (rc == 0) rc = collect(h, w);
    int end = backed_end(h);
    if (rc == -PGS_EFULL && is_contiguous(w)) undo(h, w, 0);
    w->n_backed = w->n_runs;
    if (rc == -PGS_ENOMEM || end) return pgs__fail(h->err, PGS_ENOMEM, "no memory for a list of free pages");
    return rc;
}

/* Nodes are backed before they are written: a commit must not fail half-way. Data is copied where failing is easy. */
static int back(struct pgs__hunt *h, struct wanted *w)
{
    int rc = 0;
    for (size_t i = w->n_backed; w->is_node && i < w->n_runs && rc == 0; i++) {
        struct pgs_error local = {0};
        rc = pgs__fresh_reserve(&h->c->s->pf, w->runs[i], false, &local);
        if (rc && rc != -PGS_EFULL && h->err && h->err->code == 0) *h->err = local;
    }
    if (rc) undo(h, w, w->n_backed);
    return rc;
}

/* What became free goes to the reserve before anybody else may have it, or puts would eat it up bit by bit. */
static bool leaves_reserve(struct pgs__hunt *h, const struct wanted *w)
{
    const struct pgs__record *hdr = &h->l->meta.hdr;
    uint64_t least = pgs__reserve_least(h->l);
    if (w->flags & (PGS__ALLOC_EMERGENCY | PGS__ALLOC_REFILL) || hdr->reserve_n >= least) return true;
    return pgs__room_left(h->c->s, hdr) >> PGS_PAGE_SHIFT >= w->n_pages + least - hdr->reserve_n;
}

/* --- the search ---------------------------------------------------------------------------------------------------------------------------- */

/* -PGS_EFULL: what was found of backed pages is in w; they may not be enough for anybody. */
static int find(struct pgs__hunt *h, struct wanted *w)
{
    bool scarce = pgs__is_scarce(h->c->s);
    if (w->n_pages > h->limit || (scarce && !leaves_reserve(h, w))) return -PGS_EFULL;
    int rc = scarce ? collect_backed(h, w) : -PGS_EFULL;
    if (rc != -PGS_EFULL) return rc;
    rc = collect(h, w);
    if (rc == 0 && scarce) rc = back(h, w);
    if (rc) undo(h, w, w->n_backed);
    return rc;
}

static int find_harder(struct pgs__hunt *h, struct wanted *w)
{
    undo(h, w, 0);
    int rc = pgs__hunt_look_again(h, w->is_node);
    if (rc == 0 && h->foreign && pgs__sweep(h->c->s, true) > 0) rc = pgs__hunt_refresh(h);
    return rc ? rc : find(h, w);
}

int pgs__claim_alloc(struct pgs__claim *c, struct pgs__ledger *locked, bool is_node, uint64_t n_pages, int flags,
                     struct pgs_run *runs, size_t max_runs, size_t *n_runs, struct pgs_error *err)
{
    struct pgs__hunt h = {.c = c, .l = locked, .locked = locked != NULL, .err = err};
    struct wanted w = {.is_node = is_node, .flags = flags, .n_pages = n_pages, .runs = runs, .max_runs = max_runs};
    PGS_BUG_ON(n_pages == 0 || max_runs == 0);
    pgs__claim_stamp(c);
    if (locked)
        h.limit = pgs__page_limit(locked);
    else
        h.l = &h.own;
    int rc = pgs__hunt_open(&h);
    if (rc) return rc;
    if (c->n_direct) {
        PGS_BUG_ON(!locked);
        rc = pgs__hunt_adopt_direct(&h);
        if (rc) return rc;
    }
    rc = find(&h, &w);
    if (rc == -PGS_EFULL && !(flags & PGS__ALLOC_NO_NEW)) {
        if (h.rc == 0) rc = find_harder(&h, &w);
        if (rc == -PGS_EFULL && (flags & PGS__ALLOC_EMERGENCY)) rc = from_reserve(&h, &w);
    }
    if (rc) undo(&h, &w, 0);
    pgs__hunt_close(&h);
    if (rc == -PGS_EFULL) return pgs__fail(err, PGS_EFULL, "no room for %llu pages", (unsigned long long)n_pages);
    if (rc) return rc;
    *n_runs = w.n_runs;
    return 0;
}

int pgs__claim_beside(struct pgs__claim *c, struct pgs__ledger *locked, struct pgs_run at, uint64_t most,
                      struct pgs_run *out, struct pgs_error *err)
{
    struct pgs__hunt h = {.c = c, .l = locked, .locked = true, .limit = pgs__page_limit(locked), .err = err};
    uint64_t lo = at.page.n, hi = lo + at.n_pages;
    pgs__claim_stamp(c);
    int rc = c->n_direct ? pgs__hunt_adopt_direct(&h) : 0;
    if (rc == 0) rc = pgs__hunt_own(&h, lo / PGS_CHUNK_PAGES);
    for (int i = 0; i < 2 && rc == 0; i++)
        for (size_t k = 0; k < c->n_avail[i]; k++) {
            struct pgs_run a = c->avail[i][k];
            bool before = a.page.n + a.n_pages == lo && lo % PGS_CHUNK_PAGES;
            bool behind = a.page.n == hi && hi % PGS_CHUNK_PAGES;
            if (!before && !behind) continue;
            out->n_pages = pgs__min_u64(most, a.n_pages);
            out->page.n = before ? lo - out->n_pages : hi;
            pgs__avail_without(c, i, *out);
            return pgs__hunt_note(&h, *out, true, false);
        }
    return rc ? rc : 1;
}
