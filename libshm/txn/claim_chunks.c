/* Pagestone | txn/claim_chunks — chunks become the claim's, and what is free in them is read.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Without the commit lock the meta data is a snapshot: another process may claim a chunk, use it, publish and release it between our look and our compare-and-swap. So after
 * the claim the head is asked again, and what is free is read from meta data that is not older than the claim (`stale`). The release of an owner word comes
 * after its commit's head_gen, and the claim acquires it: whoever wins the word sees that head.
 *
 *   I1  A chunk is in the claim's list when, and only when, its owner word is ours; a function that fails after claiming gives the word back.
 *   I2  The file is long enough for every chunk in the list before a page of it is offered.
 *   I3  Of the chunk claimed last only one run may be in avail yet (claim->light): most transactions need no more, and the rest is looked up when it is needed.
 *
 * On a scarce store (`backed_only`) chunks without backed pages are passed over before their word is touched.
 */
#include "libshm/txn/claim_impl.h"

#include "libshm/pages/room.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/ledger_impl.h"

#define MAX_TRIES 8

/* --- meta data, not older than the claim -------------------------------------------------------------------------------------- */

int pgs__hunt_open(struct pgs__hunt *h)
{
    if (h->locked) return 0;
    int rc = pgs__meta_begin(h->c->s, &h->own, h->err);
    h->open = rc == 0;
    if (rc) return rc;
    h->limit = pgs__page_limit(&h->own);
    pgs__room_limit(&h->c->s->pf, h->own.meta.hdr.quota_bytes == 0);
    return 0;
}

void pgs__hunt_close(struct pgs__hunt *h)
{
    if (h->open) pgs__meta_end(h->c->s, &h->own);
    h->open = false;
}

/* Has a commit been published since the meta data was opened? acquire: pairs with the release of head_gen in pgs__ctl_publish. */
static bool stale(const struct pgs__hunt *h)
{
    return !h->locked && atomic_load_explicit(&h->c->s->ctl.c->head_gen, memory_order_acquire) != h->own.head.gen;
}

int pgs__hunt_refresh(struct pgs__hunt *h)
{
    if (!stale(h)) return 0;
    pgs__hunt_close(h);
    return pgs__hunt_open(h);
}

/* --- what is free in a chunk -------------------------------------------------------------------------------------------------------- */

struct gather {
    struct pgs__hunt *h;
    int kind;
    uint64_t n_pages;
    uint64_t skip_lo, skip_hi; /* pages that are in avail or taken already */
};

static int gather_clipped(struct gather *g, uint64_t lo, uint64_t hi)
{
    if (lo >= hi) return 0;
    g->n_pages += hi - lo;
    if (g->kind < 0) return 0; /* only counting */
    if (pgs__hunt_offer(g->h, g->kind, (struct pgs_run){{lo}, hi - lo}))
        return pgs__fail(g->h->err, PGS_ENOMEM, "no memory for a list of free pages");
    return 0;
}

static int gather_run(void *ctx, struct pgs_run run)
{
    struct gather *g = ctx;
    uint64_t lo = run.page.n, hi = pgs__min_u64(run.page.n + run.n_pages, g->h->limit);
    int rc = gather_clipped(g, lo, pgs__min_u64(hi, pgs__max_u64(g->skip_lo, lo)));
    return rc ? rc : gather_clipped(g, pgs__max_u64(lo, pgs__min_u64(g->skip_hi, hi)), hi);
}

int pgs__hunt_runs_of(struct pgs__hunt *h, uint64_t chunk, int kind, uint64_t *n_pages)
{
    struct gather g = {.h = h, .kind = kind, .skip_lo = UINT64_MAX, .skip_hi = UINT64_MAX};
    int rc = pgs__space_runs_of(h->l, chunk, gather_run, &g, h->err);
    if (n_pages) *n_pages = g.n_pages;
    return rc;
}

struct longest {
    struct pgs__hunt *h;
    bool enough;
};
static int longest_backed(void *ctx, struct pgs_run run)
{
    struct longest *b = ctx;
    uint64_t lo = run.page.n, hi = pgs__min_u64(lo + run.n_pages, b->h->limit);
    while (!b->enough && lo < hi) {
        struct pgs_run part = pgs__backed_first(&b->h->backed, lo, hi);
        b->enough = part.n_pages >= b->h->least;
        lo = part.page.n + part.n_pages;
    }
    return 0;
}

/* Has the chunk, which is ours, a free run of h->least backed pages? */
static bool chunk_backed(struct pgs__hunt *h, uint64_t chunk)
{
    struct longest b = {.h = h};
    return pgs__space_runs_of(h->l, chunk, longest_backed, &b, NULL) == 0 && b.enough;
}

/* The free run of that letter that ends at page `hi`, as far as the quota goes. 0 pages: there is none. */
static struct pgs_run run_ending(struct pgs__hunt *h, char of, uint64_t hi)
{
    struct pgs__meta_cursor c;
    uint8_t key[PGS__KEY_MAX];
    uint64_t end, n;
    struct pgs_run none = {{0}, 0};
    if (pgs__lseek(h->l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, of, hi), NULL)) return none;
    if (pgs__lkey(&c, 1, &end, NULL) || end != hi || pgs__lval_u64(&c, &n, NULL) || n > hi || hi > h->limit)
        return none;
    return (struct pgs_run){{hi - n}, n};
}

int pgs__hunt_load_light(struct pgs__hunt *h)
{
    struct pgs__claim *c = h->c;
    if (c->light.hi == 0) return 0;
    struct gather g = {.h = h, .kind = c->light.kind, .skip_lo = c->light.lo, .skip_hi = c->light.hi};
    int rc = pgs__hunt_refresh(h);
    if (rc == 0) rc = pgs__space_runs_of(h->l, c->light.chunk, gather_run, &g, h->err);
    c->light.hi = 0;
    return rc;
}

/* --- whose it is ---------------------------------------------------------------------------------------------------------------------- */

static int hunt_usable(void *ctx, uint64_t chunk)
{
    struct pgs__hunt *h = ctx;
    uint64_t first = chunk * PGS_CHUNK_PAGES;
    if (h->rc || chunk >= PGS__N_OWNERS) return -1;
    if (h->backed_only && pgs__backed_first(&h->backed, first, first + PGS_CHUNK_PAGES).n_pages == 0) return 0;
    h->rc = pgs__claim_owner_words(h->c->s, chunk, h->err);
    if (h->rc) return -1;
    if (!pgs__owner_claim(&h->c->s->ctl, chunk, h->c->tag)) {
        h->foreign = true;
        return 0;
    }
    if (!h->backed_only || chunk_backed(h, chunk)) return 1;
    pgs__owner_release(&h->c->s->ctl, chunk, h->c->tag);
    return 0;
}

static void hunt_unclaim(void *ctx, uint64_t chunk)
{
    struct pgs__hunt *h = ctx;
    pgs__owner_release(&h->c->s->ctl, chunk, h->c->tag);
}

static struct pgs__free_query hunt_query(struct pgs__hunt *h)
{
    uint64_t chunks = (h->limit + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
    if (h->backed_only) /* a put that failed may have left some beyond the high-water mark */
        chunks =
            pgs__min_u64(chunks, atomic_load_explicit(&h->c->s->pf.n_pages, memory_order_relaxed) / PGS_CHUNK_PAGES);
    return (struct pgs__free_query){
        .usable = hunt_usable, .unclaim = hunt_unclaim, .ctx = h, .max_chunks = pgs__min_u64(chunks, PGS__N_OWNERS)};
}

static void unclaim_chunks(struct pgs__hunt *h, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) hunt_unclaim(h, first + i);
}

/* The chunks are ours (the words say so): remember them. The room was made before. */
static void keep_chunks(struct pgs__claim *c, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) c->chunks[c->n_chunks++] = first + i;
}

static int room_for_chunks(struct pgs__hunt *h, uint64_t n)
{
    struct pgs__claim *c = h->c;
    if (pgs__grow(&c->chunks, &c->cap_chunks, c->n_chunks + n, sizeof c->chunks[0]))
        return pgs__fail(h->err, PGS_ENOMEM, "no memory for a claim of %llu chunks", (unsigned long long)n);
    return 0;
}

static int grow_file(struct pgs__hunt *h, uint64_t end_page)
{
    struct pgs__pagefile *pf = &h->c->s->pf;
    if (end_page <= atomic_load_explicit(&pf->n_pages, memory_order_relaxed)) return 0; /* grows only */
    return pgs__pagefile_grow(pf, end_page, h->err);
}

/* --- chunks join the claim ------------------------------------------------------------------------------------------------------------- */

/* A claimed chunk joins the claim, its free pages avail[kind]; where `of` names a list and its run that ends at `hi` is still what the search saw, that run only. */
static int adopt_chunk(struct pgs__hunt *h, uint64_t chunk, int kind, char of, uint64_t hi)
{
    bool same = !stale(h);
    int rc = same ? 0 : pgs__hunt_refresh(h);
    if (rc == 0) rc = grow_file(h, (chunk + 1) * PGS_CHUNK_PAGES);
    if (rc == 0) rc = room_for_chunks(h, 1);
    if (rc) {
        unclaim_chunks(h, chunk, 1);
        return rc;
    }
    keep_chunks(h->c, chunk, 1);
    struct pgs_run run = {{0}, 0};
    if (same && !h->backed_only && h->c->light.hi == 0 && hi / PGS_CHUNK_PAGES <= chunk + 1)
        run = run_ending(h, of, hi);
    if (run.n_pages == 0 || run.page.n / PGS_CHUNK_PAGES != chunk) return pgs__hunt_runs_of(h, chunk, kind, NULL);
    if (pgs__avail_add(h->c, kind, run)) return pgs__fail(h->err, PGS_ENOMEM, "no memory for a list of free pages");
    h->c->light.chunk = chunk;
    h->c->light.kind = kind;
    h->c->light.lo = run.page.n;
    h->c->light.hi = hi;
    return 0;
}

int pgs__hunt_partial(struct pgs__hunt *h, int kind, char of, uint64_t min_pages, uint64_t *hint)
{
    struct pgs__free_query q = hunt_query(h);
    uint64_t chunk = 0;
    int rc = pgs__space_find_partial(h->l, &q, of, min_pages, hint, &chunk, h->err);
    if (h->rc) {
        if (rc == 0) unclaim_chunks(h, chunk, 1);
        return h->rc;
    }
    return rc ? rc : adopt_chunk(h, chunk, kind, of, *hint);
}

int pgs__hunt_whole(struct pgs__hunt *h, uint64_t n, uint64_t *first)
{
    int rc = room_for_chunks(h, n);
    for (int i = 0; rc == 0 && i < MAX_TRIES; i++) {
        struct pgs__free_query q = hunt_query(h);
        struct pgs_error local = {0}; /* -PGS_EFULL here need not be the caller's last word */
        rc = pgs__space_find_chunks(h->l, &q, n, first, &local);
        if (h->rc) {
            if (rc == 0) unclaim_chunks(h, *first, n);
            return h->rc;
        }
        if (rc) {
            if (rc != -PGS_EFULL && h->err && h->err->code == 0) *h->err = local;
            return rc;
        }
        bool again = stale(h);
        if (again) rc = pgs__hunt_refresh(h);
        for (uint64_t k = 0; again && rc == 0 && k < n; k++) { /* were they used since? */
            uint64_t pages = 0;
            rc = pgs__hunt_runs_of(h, *first + k, -1, &pages);
            if (rc == 0 && pages < pgs__min_u64(PGS_CHUNK_PAGES, h->limit - (*first + k) * PGS_CHUNK_PAGES)) goto taken;
        }
        if (rc == 0) rc = grow_file(h, (*first + n) * PGS_CHUNK_PAGES);
        if (rc) {
            unclaim_chunks(h, *first, n);
            return rc;
        }
        keep_chunks(h->c, *first, n);
        return 0;
    taken:
        unclaim_chunks(h, *first, n);
    }
    return rc ? rc : -PGS_EFULL;
}

int pgs__hunt_recycled(struct pgs__hunt *h, uint64_t n, uint64_t *first)
{
    struct pgs__space *sp = pgs__space_of(h->c->s);
    int rc = 0;
    if (!sp || sp->n_recycled == 0 || !pgs__space_recycled(h->c->s, sp, n, first)) return 1;
    if ((*first + n) * PGS_CHUNK_PAGES > pgs__min_u64(h->limit, h->l->meta.hdr.hw_pages)) return 1;
    rc = room_for_chunks(h, n);
    if (rc) return rc;
    uint64_t k = 0;
    while (k < n && hunt_usable(h, *first + k) > 0) k++;
    bool free_all = k == n && h->rc == 0;
    if (free_all) rc = pgs__hunt_refresh(h);
    for (uint64_t i = 0; free_all && rc == 0 && i < n; i++) {
        uint64_t pages = 0;
        rc = pgs__hunt_runs_of(h, *first + i, -1, &pages);
        free_all = pages == PGS_CHUNK_PAGES;
    }
    if (rc || !free_all) {
        unclaim_chunks(h, *first, k);
        return rc ? rc : h->rc ? h->rc : 1;
    }
    keep_chunks(h->c, *first, n);
    return 0;
}

int pgs__hunt_adopt_direct(struct pgs__hunt *h)
{
    struct pgs__claim *c = h->c;
    int rc = room_for_chunks(h, c->n_direct);
    while (rc == 0 && c->n_direct > 0) {
        uint64_t chunk = c->direct[--c->n_direct];
        keep_chunks(c, chunk, 1);
        rc = pgs__hunt_runs_of(h, chunk, 1, NULL);
    }
    return rc;
}

int pgs__hunt_look_again(struct pgs__hunt *h, int kind)
{
    struct pgs__claim *c = h->c;
    int rc = pgs__hunt_refresh(h);
    if (rc) return rc;
    c->light.hi = 0;
    c->n_avail[0] = c->n_avail[1] = 0;
    for (size_t i = 0; i < c->n_chunks && rc == 0; i++) rc = pgs__hunt_runs_of(h, c->chunks[i], kind, NULL);
    for (size_t i = 0; i < c->n_taken && rc == 0; i++) pgs__avail_without(c, kind, c->taken[i].run);
    for (size_t i = 0; c->lender && i < c->lender->n_taken && rc == 0; i++)
        pgs__avail_without(c, kind, c->lender->taken[i].run);
    return rc;
}

int pgs__hunt_own(struct pgs__hunt *h, uint64_t chunk)
{
    for (size_t i = 0; i < h->c->n_chunks; i++)
        if (h->c->chunks[i] == chunk) return pgs__hunt_look_again(h, 1);
    if (hunt_usable(h, chunk) != 1) return h->rc ? h->rc : 1;
    return adopt_chunk(h, chunk, 1, 0, UINT64_MAX);
}
