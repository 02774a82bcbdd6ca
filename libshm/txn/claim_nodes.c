/* Pagestone | txn/claim_nodes — the pages of a commit's own nodes and record, found in a few looks.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Every commit needs a few pages for catalog nodes, now and then some for nodes of the meta tree, and one for its record. Where they come from decides how long free runs
 * stay, and so how many writes and looks each later commit needs. What matters is when pages die together:
 *
 *   record        dies with the next commit. It takes the lowest free page, again and again the same few, which stay in the processor's caches.
 *   short-lived   meta nodes die with one of the next folds. They go round the first pages of the file, which are left to them and to records: 1 MiB, or four times what
 *                 meta data takes.
 *   long-lived    catalog nodes die in the order of their birth, when their version leaves history. They go round the rest of the file, but begin anew at its
 *                 lowest place as long as there is room: with a short history that is where the caches are warm.
 *
 * Going round like a log, behind what was used last, finds the oldest pages next, and those that died together lie together.
 *
 * Mixed, records would leave a hole behind every other page, and a commit would search hundreds of holes for a run, or write one page at a time.
 *
 * A search looks at MAX_LOOKS free runs at most. It takes the first one that is long enough, else pieces in their order: so holes are filled before the file grows. Only
 * when the list has no more than what was looked at, a whole chunk is taken. Whatever is out of the ordinary (no room, a quota's end, chunks of others) is left to
 * pgs__claim_alloc.
 *
 * The commit lock is held, so the ledger is the truth: what is taken here is entered at once. Owner words keep transactions out that prepare without the lock, and tell chunks that this claim owns
 * otherwise: those fail the compare-and-swap like anybody else's.
 */
#include "libshm/txn/claim.h"

#include "libshm/txn/ledger_impl.h"

#define SHORT_AREA 256u /* at least */
#define MAX_LOOKS 24u
#define LOW_LOOKS 4u
#define MAX_PIECES 8u

struct search {
    struct pgs__claim *c;
    struct pgs__ledger *l;
    uint64_t n_pages, lowest, limit; /* of pages that may be taken */
    struct pgs_run piece[MAX_PIECES];
    struct pgs_run from[MAX_PIECES]; /* the free run that it is a part of; 0 pages: a whole chunk */
    size_t n_pieces;
    uint64_t sum;
    unsigned looks, max_looks;
    struct pgs_error *err;
};

/* 1: the chunk is ours for the length of the commit; 0: somebody else has it; -1: no chunk can be claimed. */
static int own_chunk(struct search *f, uint64_t chunk)
{
    struct pgs__claim *c = f->c;
    for (unsigned i = 0; i < c->n_direct; i++)
        if (c->direct[i] == chunk) return 1;
    if (c->n_direct == PGS__MAX_DIRECT || chunk >= PGS__N_OWNERS || pgs__claim_owner_words(c->s, chunk, NULL))
        return -1;
    pgs__claim_stamp(c);
    if (!pgs__owner_claim(&c->s->ctl, chunk, c->tag)) return 0;
    c->direct[c->n_direct++] = chunk;
    return 1;
}

/* One free run. 1: it is long enough, and the only piece now. */
static int consider(struct search *f, uint64_t lo, uint64_t hi, bool whole)
{
    struct pgs_run from = {{lo}, whole ? 0 : hi - lo};
    lo = pgs__max_u64(lo, f->lowest);
    hi = pgs__min_u64(hi, f->limit);
    if (lo >= hi) return 0;
    uint64_t n = pgs__min_u64(hi - lo, f->n_pages);
    if (!pgs__pagefile_holds(&f->c->s->pf, lo, n)) return 0;
    bool enough = n == f->n_pages;
    if (!enough && f->n_pieces == MAX_PIECES) return 0;
    if (own_chunk(f, lo / PGS_CHUNK_PAGES) <= 0) return 0;
    if (enough) f->n_pieces = f->sum = 0;
    f->from[f->n_pieces] = from;
    f->piece[f->n_pieces++] = (struct pgs_run){{lo}, n};
    f->sum += n;
    return enough;
}

/* Free runs that end at `from` or later. 1: found one that is long enough. 0: no more runs, or no more looks. */
static int look_from(struct search *f, uint64_t from)
{
    uint8_t key[PGS__KEY_MAX];
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(f->l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'N', from), f->err);
    for (; rc == 0 && f->looks < f->max_looks; rc = pgs__lnext(f->l, &c, 'N', f->err)) {
        uint64_t lo, hi;
        f->looks++;
        rc = pgs__lspace_run(f->l, &c, &lo, &hi, f->err);
        if (rc == 0 && lo >= f->limit) return 0;
        if (rc || (rc = consider(f, lo, hi, false)) != 0) return rc;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

static int chunk_usable(void *ctx, uint64_t chunk)
{
    return own_chunk(ctx, chunk);
}
static void chunk_unclaim(void *ctx, uint64_t chunk)
{
    struct pgs__claim *c = ((struct search *)ctx)->c;
    PGS_BUG_ON(c->n_direct == 0 || c->direct[c->n_direct - 1] != chunk);
    c->n_direct--;
    pgs__owner_release(&c->s->ctl, chunk, c->tag);
}

/* A whole free chunk; the file grows if it lies beyond its end. 1: found; 0: there is none. */
static int look_whole(struct search *f)
{
    uint64_t chunk, end;
    struct pgs__free_query q = {
        .usable = chunk_usable, .unclaim = chunk_unclaim, .ctx = f, .max_chunks = f->limit / PGS_CHUNK_PAGES};
    struct pgs_error local = {0};
    int rc = pgs__space_find_chunks(f->l, &q, 1, &chunk, &local);
    if (rc == 0) {
        end = (chunk + 1) * PGS_CHUNK_PAGES;
        rc = pgs__pagefile_holds(&f->c->s->pf, end - 1, 1) ? 0 : pgs__pagefile_grow(&f->c->s->pf, end, &local);
    }
    if (rc == 0) return consider(f, end - PGS_CHUNK_PAGES, end, true);
    if (rc != -PGS_EFULL && f->err && f->err->code == 0) *f->err = local;
    return rc == -PGS_EFULL ? 0 : rc;
}

/* The lowest place, for long-lived nodes after something was reclaimed. */
static int look_low(struct search *f)
{
    f->max_looks = LOW_LOOKS;
    int rc = look_from(f, f->lowest + 1);
    if (rc == 0) f->n_pieces = f->sum = f->looks = 0;
    f->max_looks = MAX_LOOKS;
    return rc;
}

/* What is left of the run that was used last: one lookup instead of a search, and the usual case. */
static int look_last(struct search *f, uint64_t end)
{
    uint8_t key[PGS__KEY_MAX];
    struct pgs_span val;
    uint64_t n;
    if (end == 0) return 0;
    int rc = pgs__meta_get(&f->l->meta, key, pgs__meta_key1(key, 'N', end), &val, f->err);
    if (rc == 0) rc = pgs__lval_num(val, 'N', &n, f->err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    if (n < f->n_pages || n > end || end - n < f->lowest || end > f->l->meta.hdr.hw_pages) return 0;
    return consider(f, end - n, end, false);
}

/* From `hint` to the end, then from the beginning, where the pieces begin anew. */
static int look_round(struct search *f, uint64_t hint)
{
    uint64_t first = f->lowest + 1; /* keys are ends */
    int rc = look_from(f, pgs__max_u64(hint, first));
    if (rc || hint <= first || f->looks >= MAX_LOOKS) return rc;
    f->n_pieces = f->sum = 0;
    return look_from(f, first);
}

int pgs__claim_nodes(struct pgs__claim *c, struct pgs__ledger *l, enum pgs__life life, uint64_t n_pages,
                     struct pgs_run *runs, size_t max_runs, size_t *n_runs, struct pgs_error *err)
{
    struct pgs__space *sp = pgs__space_of(c->s);
    struct search f = {
        .c = c, .l = l, .n_pages = n_pages, .max_looks = MAX_LOOKS, .limit = pgs__page_limit(l), .err = err};
    uint64_t border = pgs__max_u64(SHORT_AREA, 4 * l->meta.hdr.pages_meta);
    if (!sp || n_pages > PGS_CHUNK_PAGES) return 1;
    if (life == PGS__LONG_LIVED)
        f.lowest = border;
    else
        f.limit = pgs__min_u64(f.limit, border);
    bool anew = sp->reclaimed[life] && life != PGS__SHORT_LIVED; /* lower places may be free again */
    int rc = anew ? 0 : look_last(&f, sp->node_end[life]);
    if (rc == 0 && life == PGS__LONG_LIVED && anew) rc = look_low(&f);
    sp->reclaimed[life] = false;
    if (rc == 0) rc = look_round(&f, life == PGS__RECORD ? 0 : sp->node_hint[life]);
    if (rc == 0 && f.sum < n_pages && life != PGS__LONG_LIVED) { /* their place is full */
        f.limit = pgs__page_limit(l);
        rc = look_from(&f, border + 1);
    }
    if (rc == 0 && f.sum < n_pages && f.looks < MAX_LOOKS) rc = look_whole(&f);
    if (rc < 0) return rc;
    if (f.sum < n_pages) return 1;
    size_t n = 0;
    for (uint64_t left = n_pages; left > 0; n++) {
        if (n == max_runs) return 1;
        f.piece[n].n_pages = pgs__min_u64(f.piece[n].n_pages, left);
        left -= f.piece[n].n_pages;
    }
    for (size_t i = 0; i < n; i++) {
        rc = f.from[i].n_pages ? pgs__lspace_take(l, 'N', f.from[i], f.piece[i], err)
                               : pgs__ledger_take(l, f.piece[i], true, err);
        if (rc) return rc;
        runs[i] = f.piece[i];
    }
    sp->node_end[life] = f.from[n - 1].page.n + f.from[n - 1].n_pages;
    if (life != PGS__RECORD)
        sp->node_hint[life] = runs[n - 1].page.n + runs[n - 1].n_pages + 1; /* in the rest of its run, or behind it */
    *n_runs = n;
    return 0;
}
