/* Pagestone | txn/claim — pages for writing: chunks claimed by one transaction or commit, and the runs taken from them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * How an allocation goes: first from what the claim already owns; then a chunk of the same kind that is partly free; then whole chunks; and when nothing is left, the other
 * kind's chunks, several pieces, the chunks of dead processes, and for commits that free the reserve.
 *
 * Without the commit lock the meta data is a snapshot: another process may claim a chunk, use it, publish and release it between our look and our compare-and-swap. So after
 * the claim the head is asked again, and what is free is read from meta data that is not older than the claim (`stale`). The release of an owner word comes
 * after its commit's head_gen, and the claim acquires it: whoever wins the word sees that head.
 *
 * Recycling: chunks that this process freed lately are tried first, newest first. Their pages are probably still resident, which makes writing them
 * two to six times cheaper than fresh ones. The list is only a hint: the ledger is asked whether they are free.
 *
 * On a full file system (PGS__CTL_SCARCE) most free pages may be holes that nothing can back any more. So pages that are there already are looked for first (`backed_only`): the search is the
 * same, but chunks without such pages are passed over, and what is found in the others is cut to them. What is still missing then comes from holes, as far as there is room.
 */
#include "libshm/txn/claim.h"

#include "libshm/pages/backed.h"
#include "libshm/pages/fresh.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/ledger_impl.h"

#define MAX_TRIES 8
#define MAX_PARTIAL_TRIES 256

/* One allocation. */
struct hunt {
    struct pgs__claim *c;
    struct pgs__ledger *l; /* locked, or &own */
    struct pgs__ledger own;
    bool locked, open;
    bool foreign; /* a chunk that we looked at belongs to somebody */
    int rc;       /* of what went wrong inside a callback */
    uint64_t limit;
    bool backed_only; /* holes are set aside, by kind as in avail, until backed_end */
    uint64_t least;   /* backed_only: a chunk must have a backed free run of so many pages */
    struct pgs__backed backed;
    struct pgs_run *holes[2];
    size_t n_holes[2], cap_holes[2];
    struct pgs_error *err;
};

void pgs__claim_init(struct pgs__claim *c, struct pgs__session *s)
{
    memset(c, 0, sizeof *c);
    c->s = s;
}

void pgs__claim_stamp(struct pgs__claim *c)
{
    if (c->n_chunks || c->n_taken || c->n_direct) return;
    c->tag = c->s->tag;
    c->fork_count = atomic_load(&c->s->fork_count);
}

bool pgs__run_is_whole(struct pgs_run run)
{
    return run.page.n % PGS_CHUNK_PAGES == 0 && run.n_pages % PGS_CHUNK_PAGES == 0;
}

uint64_t pgs__page_limit(const struct pgs__ledger *l)
{
    uint64_t quota = l->meta.hdr.quota_bytes;
    return quota ? pgs__min_u64(quota >> PGS_PAGE_SHIFT, PGS__MAX_PAGES) : PGS__MAX_PAGES;
}

/* --- what this process knows about free space ------------------------------------------------------------------------------ */

struct pgs__space *pgs__space_of(struct pgs__session *s)
{
    uint64_t fork_count = atomic_load_explicit(&s->fork_count, memory_order_relaxed); /* changes in a fork hook only */
    pgs__mutex_lock(&s->space_mx);
    struct pgs__space *sp = s->space;
    if (PGS_UNLIKELY(!sp || sp->fork_count != fork_count)) {
        sp = pgs__calloc(1, sizeof *sp);
        if (sp) {
            sp->fork_count = fork_count;
            sp->inherited = s->space;
            s->space = sp;
        }
    }
    pgs__mutex_unlock(&s->space_mx);
    return sp;
}

void pgs__space_end(struct pgs__session *s)
{
    bool own = s->space && s->space->fork_count == atomic_load(&s->fork_count);
    for (struct pgs__space *sp = s->space, *next; sp; sp = next, own = false) {
        next = sp->inherited;
        if (own) { /* what a parent was changing is left as it is */
            pgs__meta_kept_free(&sp->kept);
            pgs__edit_free(sp->edit);
            pgs__free(sp->buf);
        }
        pgs__free(sp);
    }
    s->space = NULL;
}

void pgs__space_freed(void *session, struct pgs_run run)
{
    struct pgs__session *s = session;
    struct pgs__space *sp = pgs__space_of(s);
    if (!sp) return;
    uint64_t first = (run.page.n + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
    uint64_t end = (run.page.n + run.n_pages) / PGS_CHUNK_PAGES;
    pgs__mutex_lock(&s->space_mx);
    sp->freed_pages += run.n_pages;
    if (first >= end) {
        pgs__mutex_unlock(&s->space_mx);
        return;
    }
    if (sp->n_recycled == PGS__N_RECYCLED) {
        memmove(&sp->recycled[0], &sp->recycled[1], (PGS__N_RECYCLED - 1) * sizeof sp->recycled[0]);
        sp->n_recycled--;
    }
    sp->recycled[sp->n_recycled].first = first;
    sp->recycled[sp->n_recycled].n = end - first;
    sp->n_recycled++;
    pgs__mutex_unlock(&s->space_mx);
}

/* The newest hint that is large enough; what is left of it stays. */
static bool recycled_take(struct pgs__session *s, struct pgs__space *sp, uint64_t n, uint64_t *first)
{
    bool found = false;
    pgs__mutex_lock(&s->space_mx);
    for (unsigned i = sp->n_recycled; i-- > 0 && !found;) {
        if (sp->recycled[i].n < n) continue;
        *first = sp->recycled[i].first;
        sp->recycled[i].first += n;
        sp->recycled[i].n -= n;
        if (sp->recycled[i].n == 0) {
            memmove(&sp->recycled[i], &sp->recycled[i + 1], (sp->n_recycled - i - 1) * sizeof sp->recycled[0]);
            sp->n_recycled--;
        }
        found = true;
    }
    pgs__mutex_unlock(&s->space_mx);
    return found;
}

bool pgs__is_scarce(struct pgs__session *s)
{
    return atomic_load_explicit(&s->ctl.c->flags, memory_order_relaxed) & PGS__CTL_SCARCE; /* a hint */
}

void pgs__set_scarce(struct pgs__session *s, bool on)
{
    if (on)
        atomic_fetch_or(&s->ctl.c->flags, PGS__CTL_SCARCE);
    else if (pgs__is_scarce(s))
        atomic_fetch_and(&s->ctl.c->flags, ~(uint64_t)PGS__CTL_SCARCE);
}

/* --- meta data, not older than the claim -------------------------------------------------------------------------------------- */

static int hunt_open(struct hunt *h)
{
    if (h->locked) return 0;
    int rc = pgs__meta_begin(h->c->s, &h->own, h->err);
    h->open = rc == 0;
    if (rc == 0) h->limit = pgs__page_limit(&h->own);
    return rc;
}

static void hunt_close(struct hunt *h)
{
    if (h->open) pgs__meta_end(h->c->s, &h->own);
    h->open = false;
}

/* Has a commit been published since the meta data was opened? acquire: pairs with the release of head_gen in pgs__ctl_publish. */
static bool stale(const struct hunt *h)
{
    return !h->locked && atomic_load_explicit(&h->c->s->ctl.c->head_gen, memory_order_acquire) != h->own.head.gen;
}

static int refresh(struct hunt *h)
{
    if (!stale(h)) return 0;
    hunt_close(h);
    return hunt_open(h);
}

/* --- chunks ---------------------------------------------------------------------------------------------------------------------- */

int pgs__claim_owner_words(struct pgs__session *s, uint64_t chunk, struct pgs_error *err)
{
    struct pgs__space *sp = pgs__space_of(s);
    if (!sp) return pgs__fail(err, PGS_ENOMEM, "no memory for the space table");
    if (chunk < sp->owners_reserved) return 0;
    uint64_t n = pgs__min_u64((chunk / 512 + 1) * 512, PGS__N_OWNERS);
    int rc = pgs__owner_reserve(&s->ctl, n, err);
    if (rc) return rc;
    pgs__mutex_lock(&s->space_mx);
    sp->owners_reserved = pgs__max_u64(sp->owners_reserved, n);
    pgs__mutex_unlock(&s->space_mx);
    return 0;
}

static bool chunk_backed(struct hunt *h, uint64_t chunk);

static int hunt_usable(void *ctx, uint64_t chunk)
{
    struct hunt *h = ctx;
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
    struct hunt *h = ctx;
    pgs__owner_release(&h->c->s->ctl, chunk, h->c->tag);
}

static struct pgs__free_query hunt_query(struct hunt *h)
{
    uint64_t chunks = (h->limit + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
    if (h->backed_only) /* a put that failed may have left some beyond the high-water mark */
        chunks =
            pgs__min_u64(chunks, atomic_load_explicit(&h->c->s->pf.n_pages, memory_order_relaxed) / PGS_CHUNK_PAGES);
    return (struct pgs__free_query){
        .usable = hunt_usable, .unclaim = hunt_unclaim, .ctx = h, .max_chunks = pgs__min_u64(chunks, PGS__N_OWNERS)};
}

static void unclaim_chunks(struct hunt *h, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) hunt_unclaim(h, first + i);
}

/* The chunks are ours (the words say so): remember them. The room was made before. */
static void keep_chunks(struct pgs__claim *c, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) c->chunks[c->n_chunks++] = first + i;
}

static int room_for_chunks(struct hunt *h, uint64_t n)
{
    struct pgs__claim *c = h->c;
    if (pgs__grow(&c->chunks, &c->cap_chunks, c->n_chunks + n, sizeof c->chunks[0]))
        return pgs__fail(h->err, PGS_ENOMEM, "no memory for a claim of %llu chunks", (unsigned long long)n);
    return 0;
}

static int add_avail(struct pgs__claim *c, int kind, struct pgs_run run)
{
    if (run.n_pages == 0) return 0;
    if (pgs__grow(&c->avail[kind], &c->cap_avail[kind], c->n_avail[kind] + 1, sizeof(struct pgs_run)))
        return -PGS_ENOMEM;
    c->avail[kind][c->n_avail[kind]++] = run;
    return 0;
}

static int add_hole(struct hunt *h, int kind, uint64_t lo, uint64_t hi)
{
    if (lo >= hi) return 0;
    if (pgs__grow(&h->holes[kind], &h->cap_holes[kind], h->n_holes[kind] + 1, sizeof(struct pgs_run)))
        return -PGS_ENOMEM;
    h->holes[kind][h->n_holes[kind]++] = (struct pgs_run){{lo}, hi - lo};
    return 0;
}

/* To avail, or, where only backed pages count, each part to where it belongs. */
static int offer(struct hunt *h, int kind, struct pgs_run run)
{
    if (!h->backed_only) return add_avail(h->c, kind, run);
    uint64_t lo = run.page.n, hi = lo + run.n_pages;
    int rc = 0;
    while (rc == 0 && lo < hi) {
        struct pgs_run part = pgs__backed_first(&h->backed, lo, hi);
        rc = add_hole(h, kind, lo, part.page.n);
        if (rc == 0) rc = add_avail(h->c, kind, part);
        lo = part.page.n + part.n_pages;
    }
    return rc;
}

struct gather {
    struct hunt *h;
    int kind;
    uint64_t n_pages;
    uint64_t skip_lo, skip_hi; /* pages that are in avail or taken already */
};
static int gather_clipped(struct gather *g, uint64_t lo, uint64_t hi);
static int gather_run(void *ctx, struct pgs_run run)
{
    struct gather *g = ctx;
    uint64_t lo = run.page.n, hi = pgs__min_u64(run.page.n + run.n_pages, g->h->limit);
    int rc = gather_clipped(g, lo, pgs__min_u64(hi, pgs__max_u64(g->skip_lo, lo)));
    return rc ? rc : gather_clipped(g, pgs__max_u64(lo, pgs__min_u64(g->skip_hi, hi)), hi);
}

static int gather_clipped(struct gather *g, uint64_t lo, uint64_t hi)
{
    if (lo >= hi) return 0;
    g->n_pages += hi - lo;
    if (g->kind < 0) return 0; /* only counting */
    if (offer(g->h, g->kind, (struct pgs_run){{lo}, hi - lo}))
        return pgs__fail(g->h->err, PGS_ENOMEM, "no memory for a list of free pages");
    return 0;
}

/* What is free in a chunk that we claimed goes to avail[kind] (−1: is only counted). */
static int chunk_runs(struct hunt *h, uint64_t chunk, int kind, uint64_t *n_pages)
{
    struct gather g = {.h = h, .kind = kind, .skip_lo = UINT64_MAX, .skip_hi = UINT64_MAX};
    int rc = pgs__space_runs_of(h->l, chunk, gather_run, &g, h->err);
    if (n_pages) *n_pages = g.n_pages;
    return rc;
}

struct longest {
    struct hunt *h;
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
static bool chunk_backed(struct hunt *h, uint64_t chunk)
{
    struct longest b = {.h = h};
    return pgs__space_runs_of(h->l, chunk, longest_backed, &b, NULL) == 0 && b.enough;
}

static int grow_file(struct hunt *h, uint64_t end_page)
{
    struct pgs__pagefile *pf = &h->c->s->pf;
    if (end_page <= atomic_load_explicit(&pf->n_pages, memory_order_relaxed)) return 0; /* grows only */
    return pgs__pagefile_grow(pf, end_page, h->err);
}

/* The free run of that letter that ends at page `hi`, as far as the quota goes. 0 pages: there is none. */
static struct pgs_run run_ending(struct hunt *h, char of, uint64_t hi)
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

/* What was left out of avail when the chunk was claimed. */
static int load_light(struct hunt *h)
{
    struct pgs__claim *c = h->c;
    if (c->light.hi == 0) return 0;
    struct gather g = {.h = h, .kind = c->light.kind, .skip_lo = c->light.lo, .skip_hi = c->light.hi};
    int rc = refresh(h);
    if (rc == 0) rc = pgs__space_runs_of(h->l, c->light.chunk, gather_run, &g, h->err);
    c->light.hi = 0;
    return rc;
}

/* A claimed chunk joins the claim, its free pages avail[kind]; where `of` names a list and its run that ends at `hi` is still what the search saw, that run only. */
static int adopt_chunk(struct hunt *h, uint64_t chunk, int kind, char of, uint64_t hi)
{
    bool same = !stale(h);
    int rc = same ? 0 : refresh(h);
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
    if (run.n_pages == 0 || run.page.n / PGS_CHUNK_PAGES != chunk) return chunk_runs(h, chunk, kind, NULL);
    if (add_avail(h->c, kind, run)) return pgs__fail(h->err, PGS_ENOMEM, "no memory for a list of free pages");
    h->c->light.chunk = chunk;
    h->c->light.kind = kind;
    h->c->light.lo = run.page.n;
    h->c->light.hi = hi;
    return 0;
}

/* A partly free chunk. of: whose ('N' or 'D'). -PGS_ENOENT: none. */
static int add_partial(struct hunt *h, int kind, char of, uint64_t min_pages, uint64_t *hint)
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

/* n consecutive whole free chunks, claimed, in the claim's list, the file long enough. -PGS_EFULL. */
static int whole_chunks(struct hunt *h, uint64_t n, uint64_t *first)
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
        if (again) rc = refresh(h);
        for (uint64_t k = 0; again && rc == 0 && k < n; k++) { /* were they used since? */
            uint64_t pages = 0;
            rc = chunk_runs(h, *first + k, -1, &pages);
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

/* The same from the chunks that this process freed last. 1: none. */
static int recycled_chunks(struct hunt *h, uint64_t n, uint64_t *first)
{
    struct pgs__space *sp = pgs__space_of(h->c->s);
    int rc = 0;
    if (!sp || sp->n_recycled == 0 || !recycled_take(h->c->s, sp, n, first)) return 1;
    if ((*first + n) * PGS_CHUNK_PAGES > pgs__min_u64(h->limit, h->l->meta.hdr.hw_pages)) return 1;
    rc = room_for_chunks(h, n);
    if (rc) return rc;
    uint64_t k = 0;
    while (k < n && hunt_usable(h, *first + k) > 0) k++;
    bool free_all = k == n && h->rc == 0;
    if (free_all) rc = refresh(h);
    for (uint64_t i = 0; free_all && rc == 0 && i < n; i++) {
        uint64_t pages = 0;
        rc = chunk_runs(h, *first + i, -1, &pages);
        free_all = pages == PGS_CHUNK_PAGES;
    }
    if (rc || !free_all) {
        unclaim_chunks(h, *first, k);
        return rc ? rc : h->rc ? h->rc : 1;
    }
    keep_chunks(h->c, *first, n);
    return 0;
}

/* --- taking runs ------------------------------------------------------------------------------------------------------------------- */

static int note_taken(struct hunt *h, struct pgs_run run, bool is_node, bool from_reserve)
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

static void avail_cut(struct pgs__claim *c, int kind, size_t i, uint64_t n)
{
    struct pgs_run *r = &c->avail[kind][i];
    r->page.n += n;
    r->n_pages -= n;
    if (r->n_pages == 0) *r = c->avail[kind][--c->n_avail[kind]];
}

/* The smallest available run that has n pages, from its front. */
static bool take_avail(struct pgs__claim *c, int kind, uint64_t n, struct pgs_run *out)
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

/* The largest available run, at most n pages of it; 0 pages: there is none. */
static struct pgs_run take_largest(struct pgs__claim *c, int kind, uint64_t n)
{
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < c->n_avail[kind]; i++)
        if (best == SIZE_MAX || c->avail[kind][i].n_pages > c->avail[kind][best].n_pages) best = i;
    if (best == SIZE_MAX) return (struct pgs_run){{0}, 0};
    struct pgs_run out = {c->avail[kind][best].page, pgs__min_u64(n, c->avail[kind][best].n_pages)};
    avail_cut(c, kind, best, out.n_pages);
    return out;
}

static char letter(int kind)
{
    return kind ? 'N' : 'D';
}

/* Chunks of `of`'s kind until one run of n pages is there. 1: there are none. */
static int partial_until(struct hunt *h, int kind, char of, uint64_t n, struct pgs_run *out)
{
    struct pgs__session *s = h->c->s;
    pgs__mutex_lock(&s->space_mx);
    uint64_t hint = of == 'N' ? s->hint_node : s->hint_data;
    pgs__mutex_unlock(&s->space_mx);
    int rc = 0;
    for (int i = 0; i < MAX_TRIES; i++) {
        rc = add_partial(h, kind, of, n, &hint);
        if (rc) break;
        if (take_avail(h->c, kind, n, out)) break;
    }
    pgs__mutex_lock(&s->space_mx);
    *(of == 'N' ? &s->hint_node : &s->hint_data) = hint;
    pgs__mutex_unlock(&s->space_mx);
    return rc == -PGS_ENOENT || (rc == 0 && out->n_pages == 0) ? 1 : rc;
}

/* One run of n < 512 pages. 1: there is none. */
static int one_small(struct hunt *h, int kind, uint64_t n, bool no_new, struct pgs_run *out)
{
    uint64_t chunk;
    out->n_pages = 0;
    h->least = n;
    if (take_avail(h->c, kind, n, out)) return 0;
    int rc = h->c->light.kind == kind ? load_light(h) : 0;
    if (rc) return rc;
    if (take_avail(h->c, kind, n, out)) return 0;
    rc = partial_until(h, kind, letter(kind), n, out);
    if (rc <= 0 || no_new) return rc;
    rc = whole_chunks(h, 1, &chunk);
    if (rc == 0) rc = chunk_runs(h, chunk, kind, NULL);
    if (rc && rc != -PGS_EFULL) return rc;
    if (rc == 0 && take_avail(h->c, kind, n, out)) return 0;
    rc = load_light(h);
    if (rc) return rc;
    if (take_avail(h->c, !kind, n, out)) return 0; /* small stores: both kinds share */
    return partial_until(h, kind, letter(!kind), n, out);
}

/* Up to n pages, wherever they are. 0 pages: nothing is left. */
static int any_piece(struct hunt *h, int kind, uint64_t n, bool no_new, struct pgs_run *out)
{
    uint64_t chunk;
    h->least = 1;
    for (int i = 0; i < 2; i++) { /* own kind first */
        int k = i ? !kind : kind;
        uint64_t hint = 0;
        int rc = load_light(h);
        if (rc) return rc;
        *out = take_largest(h->c, k, n);
        if (out->n_pages) return 0;
        rc = -PGS_ENOENT;
        for (int tries = 0; tries < MAX_PARTIAL_TRIES && rc == -PGS_ENOENT; tries++) {
            uint64_t before = hint;
            rc = add_partial(h, kind, letter(k), 1, &hint);
            if (rc == -PGS_ENOENT && hint <= before) break; /* once around */
        }
        if (rc && rc != -PGS_ENOENT) return rc;
        *out = take_largest(h->c, kind, n);
        if (out->n_pages) return 0;
    }
    if (!h->backed_only || no_new) return 0; /* else there is no whole chunk */
    int rc = whole_chunks(h, 1, &chunk);
    if (rc == 0) rc = chunk_runs(h, chunk, kind, NULL);
    if (rc == 0) *out = take_largest(h->c, kind, n);
    return rc == -PGS_EFULL ? 0 : rc;
}

/* n_chunks whole chunks in one piece, n pages of them taken; the rest is available. -PGS_EFULL: no such piece. */
static int one_big(struct hunt *h, int kind, uint64_t n_chunks, uint64_t n, bool recycle, struct pgs_run *out)
{
    uint64_t first;
    h->least = PGS_CHUNK_PAGES;
    int rc = kind == 0 && recycle ? recycled_chunks(h, n_chunks, &first) : 1;
    if (rc == 1) rc = whole_chunks(h, n_chunks, &first);
    if (rc) return rc;
    struct pgs_run all = {{first * PGS_CHUNK_PAGES}, n_chunks * PGS_CHUNK_PAGES};
    all.n_pages = pgs__min_u64(all.n_pages, h->limit - all.page.n);
    *out = (struct pgs_run){all.page, pgs__min_u64(n, all.n_pages)};
    struct pgs_run rest = {{all.page.n + out->n_pages}, all.n_pages - out->n_pages};
    if (offer(h, kind, rest)) return pgs__fail(h->err, PGS_ENOMEM, "no memory for a list of free pages");
    return 0;
}

/* Chunks of pgs__claim_nodes become ordinary ones: their words are ours already, and what is free there goes to avail. */
static int adopt_direct(struct hunt *h)
{
    struct pgs__claim *c = h->c;
    int rc = room_for_chunks(h, c->n_direct);
    while (rc == 0 && c->n_direct > 0) {
        uint64_t chunk = c->direct[--c->n_direct];
        keep_chunks(c, chunk, 1);
        rc = chunk_runs(h, chunk, 1, NULL);
    }
    return rc;
}

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

static int put_run(struct hunt *h, struct wanted *w, struct pgs_run run)
{
    int rc = note_taken(h, run, w->is_node, false);
    if (rc) return rc;
    if (w->n_runs > w->n_backed && w->runs[w->n_runs - 1].page.n + w->runs[w->n_runs - 1].n_pages == run.page.n)
        w->runs[w->n_runs - 1].n_pages += run.n_pages;
    else
        w->runs[w->n_runs++] = run;
    return 0;
}

/* What is missing. -PGS_EFULL without text: the caller words it. */
static int collect(struct hunt *h, struct wanted *w)
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
static int from_reserve(struct hunt *h, struct wanted *w)
{
    struct pgs__record *hdr = &h->l->meta.hdr;
    uint64_t left = missing(w), keep = w->flags & PGS__ALLOC_DEEP ? PGS__RESERVE_LAST / 4 : PGS__RESERVE_LAST;
    if (w->flags & PGS__ALLOC_LAST) keep = 0;
    if (!h->locked || !w->is_node || hdr->reserve_n < left + keep || w->n_runs == w->max_runs) return -PGS_EFULL;
    struct pgs_run run = {{hdr->reserve_page}, left};
    int rc = note_taken(h, run, true, true);
    if (rc) return rc;
    hdr->reserve_n -= run.n_pages;
    hdr->reserve_page = hdr->reserve_n ? hdr->reserve_page + run.n_pages : 0;
    w->runs[w->n_runs++] = run;
    return 0;
}

static void undo(struct hunt *h, struct wanted *w, size_t keep)
{
    while (w->n_runs > keep) pgs__claim_give(h->c, w->runs[--w->n_runs], w->is_node);
    w->n_backed = pgs__min_u64(w->n_backed, w->n_runs);
}

/* From here on only backed pages are in avail. */
static int backed_begin(struct hunt *h)
{
    struct pgs__claim *c = h->c;
    int rc = load_light(h);
    h->backed = (struct pgs__backed){.pf = &c->s->pf};
    h->backed_only = true;
    for (int kind = 0; kind < 2 && rc == 0; kind++) {
        struct pgs_run *old = c->avail[kind];
        size_t n = c->n_avail[kind];
        c->avail[kind] = NULL;
        c->n_avail[kind] = c->cap_avail[kind] = 0;
        for (size_t i = 0; i < n && rc == 0; i++) rc = offer(h, kind, old[i]);
        pgs__free(old); /* without memory the rest is free again after the release */
    }
    return rc;
}

static int backed_end(struct hunt *h)
{
    int rc = 0;
    h->backed_only = false;
    for (int kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < h->n_holes[kind] && rc == 0; i++) rc = add_avail(h->c, kind, h->holes[kind][i]);
        pgs__free(h->holes[kind]);
        h->holes[kind] = NULL;
        h->n_holes[kind] = h->cap_holes[kind] = 0;
    }
    return rc;
}

static int collect_backed(struct hunt *h, struct wanted *w)
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
static int back(struct hunt *h, struct wanted *w)
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

uint64_t pgs__reserve_least(const struct pgs__ledger *l)
{
    uint64_t want = pgs__min_u64(PGS__RESERVE_PAGES, pgs__page_limit(l) / 8);
    return want - want / 4;
}

/* What became free goes to the reserve before anybody else may have it, or puts would eat it up bit by bit. */
static bool leaves_reserve(struct hunt *h, const struct wanted *w)
{
    const struct pgs__record *hdr = &h->l->meta.hdr;
    uint64_t least = pgs__reserve_least(h->l);
    if (w->flags & (PGS__ALLOC_EMERGENCY | PGS__ALLOC_REFILL) || hdr->reserve_n >= least) return true;
    return pgs__room_left(h->c->s, hdr) >> PGS_PAGE_SHIFT >= w->n_pages + least - hdr->reserve_n;
}

/* -PGS_EFULL: what was found of backed pages is in w; they may not be enough for anybody. */
static int find(struct hunt *h, struct wanted *w)
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

static void avail_without(struct pgs__claim *c, int kind, struct pgs_run run)
{
    uint64_t lo = run.page.n, hi = lo + run.n_pages;
    for (size_t i = 0; i < c->n_avail[kind]; i++) {
        struct pgs_run *a = &c->avail[kind][i];
        uint64_t a_lo = a->page.n, a_hi = a_lo + a->n_pages;
        if (a_hi <= lo || a_lo >= hi) continue;
        if (a_lo < lo && a_hi > hi) { /* without memory the tail is free again after the release */
            a->n_pages = lo - a_lo;
            (void)add_avail(c, kind, (struct pgs_run){{hi}, a_hi - hi});
        } else if (a_lo < lo) {
            a->n_pages = lo - a_lo;
        } else {
            avail_cut(c, kind, i--, pgs__min_u64(hi, a_hi) - a_lo);
        }
    }
}

/* What became free in our chunks since they were claimed, e.g. by pgs__make_room. All goes to avail[kind]. */
static int look_again(struct hunt *h, int kind)
{
    struct pgs__claim *c = h->c;
    int rc = refresh(h);
    if (rc) return rc;
    c->light.hi = 0;
    c->n_avail[0] = c->n_avail[1] = 0;
    for (size_t i = 0; i < c->n_chunks && rc == 0; i++) rc = chunk_runs(h, c->chunks[i], kind, NULL);
    for (size_t i = 0; i < c->n_taken && rc == 0; i++) avail_without(c, kind, c->taken[i].run);
    for (size_t i = 0; c->lender && i < c->lender->n_taken && rc == 0; i++)
        avail_without(c, kind, c->lender->taken[i].run);
    return rc;
}

static int find_harder(struct hunt *h, struct wanted *w)
{
    undo(h, w, 0);
    int rc = look_again(h, w->is_node);
    if (rc == 0 && h->foreign && pgs__sweep(h->c->s, true) > 0) rc = refresh(h);
    return rc ? rc : find(h, w);
}

int pgs__claim_alloc(struct pgs__claim *c, struct pgs__ledger *locked, bool is_node, uint64_t n_pages, int flags,
                     struct pgs_run *runs, size_t max_runs, size_t *n_runs, struct pgs_error *err)
{
    struct hunt h = {.c = c, .l = locked, .locked = locked != NULL, .err = err};
    struct wanted w = {.is_node = is_node, .flags = flags, .n_pages = n_pages, .runs = runs, .max_runs = max_runs};
    PGS_BUG_ON(n_pages == 0 || max_runs == 0);
    pgs__claim_stamp(c);
    if (locked)
        h.limit = pgs__page_limit(locked);
    else
        h.l = &h.own;
    int rc = hunt_open(&h);
    if (rc) return rc;
    if (c->n_direct) {
        PGS_BUG_ON(!locked);
        rc = adopt_direct(&h);
        if (rc) return rc;
    }
    rc = find(&h, &w);
    if (rc == -PGS_EFULL && !(flags & PGS__ALLOC_NO_NEW)) {
        if (h.rc == 0) rc = find_harder(&h, &w);
        if (rc == -PGS_EFULL && (flags & PGS__ALLOC_EMERGENCY)) rc = from_reserve(&h, &w);
    }
    if (rc) undo(&h, &w, 0);
    hunt_close(&h);
    if (rc == -PGS_EFULL) return pgs__fail(err, PGS_EFULL, "no room for %llu pages", (unsigned long long)n_pages);
    if (rc) return rc;
    *n_runs = w.n_runs;
    return 0;
}

/* The chunk in our list, its free pages in avail. 1: somebody else's. */
static int own_chunk(struct hunt *h, uint64_t chunk)
{
    for (size_t i = 0; i < h->c->n_chunks; i++)
        if (h->c->chunks[i] == chunk) return look_again(h, 1);
    if (hunt_usable(h, chunk) != 1) return h->rc ? h->rc : 1;
    return adopt_chunk(h, chunk, 1, 0, UINT64_MAX);
}

int pgs__claim_beside(struct pgs__claim *c, struct pgs__ledger *locked, struct pgs_run at, uint64_t most,
                      struct pgs_run *out, struct pgs_error *err)
{
    struct hunt h = {.c = c, .l = locked, .locked = true, .limit = pgs__page_limit(locked), .err = err};
    uint64_t lo = at.page.n, hi = lo + at.n_pages;
    pgs__claim_stamp(c);
    int rc = c->n_direct ? adopt_direct(&h) : 0;
    if (rc == 0) rc = own_chunk(&h, lo / PGS_CHUNK_PAGES);
    for (int i = 0; i < 2 && rc == 0; i++)
        for (size_t k = 0; k < c->n_avail[i]; k++) {
            struct pgs_run a = c->avail[i][k];
            bool before = a.page.n + a.n_pages == lo && lo % PGS_CHUNK_PAGES;
            bool behind = a.page.n == hi && hi % PGS_CHUNK_PAGES;
            if (!before && !behind) continue;
            out->n_pages = pgs__min_u64(most, a.n_pages);
            out->page.n = before ? lo - out->n_pages : hi;
            avail_without(c, i, *out);
            return note_taken(&h, *out, true, false);
        }
    return rc ? rc : 1;
}

/* --- giving back, recording, releasing ----------------------------------------------------------------------------------------- */

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
                (void)add_avail(c, is_node, part); /* without memory they are free again after the release */
        }
        run.page.n += part.n_pages;
        run.n_pages -= part.n_pages;
    }
}

int pgs__claim_record_from(struct pgs__claim *c, size_t first, struct pgs__ledger *l, struct pgs_error *err)
{
    for (size_t i = first; i < c->n_taken; i++) {
        const struct pgs__taken *t = &c->taken[i];
        int rc = 0;
        if (t->from_reserve && t->given)
            rc = pgs__ledger_give(l, t->run, t->is_node, err);
        else if (!t->from_reserve)
            rc = pgs__ledger_take(l, t->run, t->is_node, err);
        if (rc) return rc;
    }
    c->n_sealed = c->n_taken;
    return 0;
}

int pgs__claim_record(struct pgs__claim *c, struct pgs__ledger *l, struct pgs_error *err)
{
    return pgs__claim_record_from(c, 0, l, err);
}

static void move_chunks(struct pgs__claim *to, struct pgs__claim *from)
{
    PGS_BUG_ON(to->n_chunks || to->n_avail[0] || to->n_avail[1]);
    pgs__free(to->chunks);
    to->chunks = from->chunks;
    to->n_chunks = from->n_chunks;
    to->cap_chunks = from->cap_chunks;
    from->chunks = NULL;
    from->n_chunks = from->cap_chunks = 0;
    for (int k = 0; k < 2; k++) {
        pgs__free(to->avail[k]);
        to->avail[k] = from->avail[k];
        to->n_avail[k] = from->n_avail[k];
        to->cap_avail[k] = from->cap_avail[k];
        from->avail[k] = NULL;
        from->n_avail[k] = from->cap_avail[k] = 0;
    }
    to->light = from->light;
    from->light.hi = 0;
}

void pgs__claim_lend(struct pgs__claim *to, struct pgs__claim *from)
{
    PGS_BUG_ON(to->n_chunks || to->n_taken || to->n_direct || to->lender || from->n_direct || from->lender);
    if (from->n_chunks == 0) return;
    to->tag = from->tag;
    to->fork_count = from->fork_count;
    to->lender = from;
    move_chunks(to, from);
}

void pgs__claim_release(struct pgs__claim *c)
{
    struct pgs__session *s = c->s;
    if (!s) return;
    if (c->lender) move_chunks(c->lender, c); /* with what was claimed since */
    if ((c->n_chunks || c->n_direct) && c->tag == s->tag && c->fork_count == atomic_load(&s->fork_count)) { /* I5 */
        for (size_t i = 0; i < c->n_chunks; i++) pgs__owner_release(&s->ctl, c->chunks[i], c->tag);
        for (unsigned i = 0; i < c->n_direct; i++) pgs__owner_release(&s->ctl, c->direct[i], c->tag);
    }
    pgs__free(c->chunks);
    pgs__free(c->taken);
    pgs__free(c->avail[0]);
    pgs__free(c->avail[1]);
    pgs__claim_init(c, s);
}

int pgs__claim_join(struct pgs__claim *to, struct pgs__claim *from)
{
    if (pgs__grow(&to->chunks, &to->cap_chunks, to->n_chunks + from->n_chunks, sizeof to->chunks[0]) ||
        pgs__grow(&to->taken, &to->cap_taken, to->n_taken + from->n_taken, sizeof to->taken[0]) ||
        pgs__grow(&to->avail[0], &to->cap_avail[0], to->n_avail[0] + from->n_avail[0], sizeof(struct pgs_run)) ||
        pgs__grow(&to->avail[1], &to->cap_avail[1], to->n_avail[1] + from->n_avail[1], sizeof(struct pgs_run)))
        return -PGS_ENOMEM;
    PGS_BUG_ON(from->n_direct);
    if (to->n_chunks == 0 && to->n_taken == 0 && to->n_direct == 0) {
        to->tag = from->tag;
        to->fork_count = from->fork_count;
    }
    for (size_t i = 0; i < from->n_chunks; i++) to->chunks[to->n_chunks++] = from->chunks[i];
    for (size_t i = 0; i < from->n_taken; i++) to->taken[to->n_taken++] = from->taken[i];
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < from->n_avail[k]; i++) to->avail[k][to->n_avail[k]++] = from->avail[k][i];
    if (to->light.hi == 0) to->light = from->light;
    from->n_chunks = 0; /* the words are `to`'s now */
    pgs__claim_release(from);
    return 0;
}
