/* Pagestone | txn/ledger_expire — how versions leave history: expire, then drop.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Expire takes a version out of 'v' (nobody can pin it any more, but through a pin that exists) and notes it in 'x'. Drop, in a later commit, asks whether somebody still has it
 * pinned; if so it stays in the chain as a zombie, else its buckets are merged: with p the chain entry before it, runs with birth > p are needed by nobody and go to limbo, and if
 * something remains the bucket is hung at p.
 *
 *   listed --expire--> expired --drop: pinned--> expired
 *                      expired --drop: budget--> expired, partly merged (as if it were dropped for what was merged)
 *                      expired --drop--> gone
 *
 * Oldest first, p is "none" and a drop costs what it frees. With tags and zombies it costs one step more for each bucket that hangs at the entry.
 */
#include "libshm/txn/ledger_impl.h"

/* --- expire ------------------------------------------------------------------------------------------------------------------ */
static uint64_t live_pages(const struct pgs__record *h)
{
    uint64_t other = h->pages_free + h->pages_dead + h->pages_limbo + h->pages_meta;
    return h->hw_pages > other ? h->hw_pages - other : 0;
}

static bool counts_bytes(const struct pgs__record *h)
{
    return h->history_kind != PGS_HIST_COUNT && h->history_kind != PGS_HIST_AGE_NS && h->history_kind != PGS_HIST_ALL;
}

bool pgs__ledger_knows_expired(const struct pgs__record *h)
{
    return counts_bytes(h);
}

static bool over_bytes(const struct pgs__record *h)
{
    uint64_t limit = h->history_value;
    if (h->history_kind != PGS_HIST_BYTES) {
        limit = pgs__max_u64(64u << 20, live_pages(h) / 10 << PGS_PAGE_SHIFT);
        if (h->quota_bytes) limit = pgs__min_u64(limit, h->quota_bytes / 4);
    }
    uint64_t pages = h->pages_dead > h->pages_expired ? h->pages_dead - h->pages_expired : 0;
    return pages > limit >> PGS_PAGE_SHIFT;
}

/* Does the policy want the oldest untagged version gone? oldest NULL: can it be, whatever its age? */
static bool unwanted(const struct pgs__record *h, const struct pgs__chain *oldest, uint64_t now_ns, bool all)
{
    uint64_t besides = 1 + h->n_tagged; /* the head and tagged ones do not count */
    uint64_t untagged = h->n_kept > besides ? h->n_kept - besides : 0;
    if (all || h->n_kept > PGS__VERSIONS_MAX) return true;
    switch (h->history_kind) {
    case PGS_HIST_ALL:
        return false;
    case PGS_HIST_COUNT:
        return untagged > h->history_value;
    case PGS_HIST_AGE_NS:
        if (!oldest) return true;
        return now_ns > oldest->next_time_ns && now_ns - oldest->next_time_ns > h->history_value;
    default:
        return over_bytes(h);
    }
}

static int expire_one(struct pgs__ledger *l, uint64_t version, pgs_gen_t gen, uint64_t *visited, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    pgs_gen_t floor = 0; /* the next older version that stays: untagged ones go oldest first */
    uint64_t held = 0;
    int rc = 0;
    if (counts_bytes(h)) { /* others do not ask how much expired entries keep */
        if (h->n_tagged) rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key1(key, 'v', version), err);
        if (h->n_tagged && !rc) rc = pgs__lval_u64(&c, &floor, err);
        if (rc && rc != -PGS_ENOENT) return rc;
        rc = pgs__lheld(l, gen, floor, &held, visited, err);
    }
    if (!rc) rc = pgs__lexpired_mark(l, gen, held, err);
    if (!rc) rc = pgs__ldel(l, key, pgs__meta_key1(key, 'v', version), err);
    if (!rc) rc = pgs__lcounter_sub(&h->n_kept, 1, "versions", err);
    if (!rc && h->version >= PGS__LOG_KEPT && version <= h->version - PGS__LOG_KEPT)
        rc = pgs__llog_drop(l, version, err);
    return rc;
}

int pgs__ledger_expire(struct pgs__ledger *l, uint64_t now_ns, uint64_t budget, bool all, bool *any,
                       struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    *any = false;
    if (!l->gen) return pgs__fail(err, PGS_EBUG, "expire without begin");
    for (uint64_t visited = 0; visited < budget; visited++) {
        uint8_t key[KEY_MAX];
        struct pgs__meta_cursor c;
        struct pgs__chain entry;
        uint64_t version;
        pgs_gen_t gen;
        if (!unwanted(h, NULL, now_ns, all)) return 0;
        int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'v', h->expire_hint), err);
        if (!rc) rc = pgs__lkey(&c, 1, &version, err);
        if (rc) return rc == -PGS_ENOENT ? 0 : rc;
        h->expire_hint = version;
        if (version >= h->version) return 0;
        rc = pgs__lval_u64(&c, &gen, err);
        if (!rc) rc = pgs__lchain_raw(l, gen, &entry, err);
        if (rc == -PGS_ENOENT)
            return pgs__fail_corrupt(err, "the ledger", "version %llu is not in the chain",
                                     (unsigned long long)version);
        if (rc) return rc;
        if (entry.n_tags == 0) {
            if (!unwanted(h, &entry, now_ns, all)) return 0;
            rc = expire_one(l, version, gen, &visited, err);
            if (rc) return rc;
            *any = true;
        }
        h->expire_hint = version + 1;
    }
    return 0;
}

/* --- drop -------------------------------------------------------------------------------------------------------------------- */
struct drop {
    pgs_gen_t gen, prev; /* the entry, and the chain entry before it (0: none) */
    uint64_t x_pages;    /* of its 'x' */
    uint64_t budget;
    bool cut; /* a run of the image was not done to its end: the budget is used up */
};
#define MOVE_BATCH 32

/* Runs of `bucket` that nobody needs without d->gen, up to the batch or the budget. *last: there are no more. */
static int collect(struct pgs__ledger *l, const struct drop *d, pgs_gen_t bucket, struct pgs__entry *out, size_t *n,
                   bool *last, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    *n = 0;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key3(key, 'd', bucket, d->prev + 1, 0), err);
    while (rc == 0 && *n < MOVE_BATCH && *n < d->budget) {
        rc = pgs__lentry(l, &c, &out[*n], err);
        *last = out[*n].a != bucket;
        if (rc || *last) return rc;
        ++*n;
        rc = *n < MOVE_BATCH ? pgs__lnext(l, &c, 'd', err) : 0;
    }
    *last = rc == -PGS_ENOENT;
    return *last ? 0 : rc;
}

/* A dead run of the image: its slots count fewer pages. One run may be of very many slots, so what the budget does not allow goes back. */
static int cold_to_limbo(struct pgs__ledger *l, struct drop *d, const struct pgs__entry *e, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    uint64_t n_done;
    int rc = pgs__lcold_release(l, e->page, e->n, &d->budget, &n_done, err);
    if (rc || n_done == e->n) return rc;
    d->cut = true;
    size_t len = pgs__meta_key3(key, 'd', e->a, e->b, e->page + n_done);
    return pgs__lput_u64(l, key, len, (e->n - n_done) << 1, false, err);
}

static int to_limbo(struct pgs__ledger *l, struct drop *d, const struct pgs__entry *e, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    int rc = pgs__ldel(l, key, pgs__meta_key3(key, 'd', e->a, e->b, e->page), err);
    if (pgs__is_cold(e->page)) return rc ? rc : cold_to_limbo(l, d, e, err);
    if (!rc) rc = pgs__lcounter_sub(&l->meta.hdr.pages_dead, e->n, "dead pages", err);
    if (!rc) rc = pgs__llimbo_add(l, e->page, e->n, e->node, err);
    d->x_pages -= pgs__min_u64(d->x_pages, e->n);
    d->budget--;
    return rc;
}

/* Is anything left in the bucket? What is left has birth ≤ prev. */
static int bucket_empty(struct pgs__ledger *l, const struct drop *d, pgs_gen_t bucket, bool *empty,
                        struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    struct pgs__entry e;
    *empty = true;
    if (d->prev == 0) return 0; /* births begin at 1 */
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key3(key, 'd', bucket, 0, 0), err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    rc = pgs__lentry(l, &c, &e, err);
    *empty = e.a != bucket;
    return rc;
}

/* Merge one bucket. *done: false when the budget ended first. */
static int drop_bucket(struct pgs__ledger *l, struct drop *d, pgs_gen_t bucket, bool *done, struct pgs_error *err)
{
    struct pgs__entry batch[MOVE_BATCH];
    uint8_t key[KEY_MAX];
    size_t n;
    bool empty, last;
    int rc;
    do {
        *done = d->budget > 0;
        if (!*done) return 0;
        rc = collect(l, d, bucket, batch, &n, &last, err);
        for (size_t i = 0; i < n && !rc; i++) {
            *done = d->budget > 0; /* a run of the image may have used up what was meant for those behind it */
            if (!*done) return 0;
            rc = to_limbo(l, d, &batch[i], err);
        }
        if (rc) return rc;
        last = last && !d->cut;
    } while (!last);
    d->budget -= d->budget > 0;
    rc = bucket_empty(l, d, bucket, &empty, err);
    if (rc || empty) return rc;
    l->n_touched++;
    l->nothing_hung = false;
    return pgs__meta_add(&l->meta, key, pgs__meta_key2(key, 'b', d->prev, bucket), NULL, 0, err);
}

/* What the entry kept and did not free is now kept by the one before it; if that is expired, too, it stays out of the account of history. */
static int hand_over(struct pgs__ledger *l, const struct drop *d, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs_span val;
    uint64_t pages;
    int rc = d->prev && d->x_pages ? pgs__meta_get(&l->meta, key, pgs__meta_key1(key, 'x', d->prev), &val, err)
                                   : -PGS_ENOENT;
    if (rc == -PGS_ENOENT) {
        l->meta.hdr.pages_expired -= pgs__min_u64(l->meta.hdr.pages_expired, d->x_pages);
        return 0;
    }
    if (rc) return rc;
    rc = pgs__lval_num(val, 'x', &pages, err);
    if (rc) return rc;
    pages += d->x_pages;
    return pgs__lput_u64(l, key, pgs__meta_key1(key, 'x', d->prev), pages, false, err);
}

static int drop_finish(struct pgs__ledger *l, const struct drop *d, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    int rc = hand_over(l, d, err);
    if (!rc) rc = pgs__ldel(l, key, pgs__meta_key1(key, 'c', d->gen), err);
    if (!rc) rc = pgs__ldel(l, key, pgs__meta_key1(key, 'x', d->gen), err);
    if (!rc) rc = pgs__lcounter_sub(&l->meta.hdr.n_chain, 1, "chain entries", err);
    if (!rc) rc = pgs__lcounter_sub(&l->meta.hdr.n_expired, 1, "expired entries", err);
    return rc;
}

/* Hung buckets one by one, each leaving 'b' as it is done, then the entry's own. */
static int drop_buckets(struct pgs__ledger *l, struct drop *d, bool *done, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    for (;;) {
        pgs_gen_t bucket;
        int rc = pgs__lhung(l, d->gen, 0, &bucket, err);
        if (rc == -PGS_ENOENT) return drop_bucket(l, d, d->gen, done, err);
        if (!rc) rc = drop_bucket(l, d, bucket, done, err);
        if (rc || !*done) return rc;
        rc = pgs__ldel(l, key, pgs__meta_key2(key, 'b', d->gen, bucket), err);
        if (rc) return rc;
    }
}

/* The chain as far as a walk through expired entries knows it: `prev` is the newest entry up to `upto`. Where the next entry follows at once, that is the one before it. */
struct walk {
    pgs_gen_t upto, prev; /* upto 0: nothing is known */
};

static int drop_one(struct pgs__ledger *l, struct walk *w, pgs_gen_t gen, uint64_t x_pages, uint64_t *budget,
                    bool *done, struct pgs_error *err)
{
    struct drop d = {.gen = gen, .prev = w->prev, .x_pages = x_pages, .budget = *budget};
    uint8_t key[KEY_MAX];
    int rc = w->upto && w->upto + 1 == gen ? 0 : pgs__lchain_prev(l, gen, &d.prev, err);
    *w = (struct walk){gen, d.prev};
    if (!rc) rc = drop_buckets(l, &d, done, err);
    if (rc) return rc;
    l->meta.hdr.pages_expired -= pgs__min_u64(l->meta.hdr.pages_expired, x_pages - d.x_pages);
    *budget = d.budget;
    if (*done) return drop_finish(l, &d, err);
    return d.x_pages == x_pages ? 0 : pgs__lput_u64(l, key, pgs__meta_key1(key, 'x', gen), d.x_pages, false, err);
}

int pgs__ledger_drop(struct pgs__ledger *l, int (*pinned)(void *ctx, pgs_gen_t gen), void *ctx, uint64_t budget,
                     bool *any, bool *more, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    *any = *more = false;
    if (!l->gen) return pgs__fail(err, PGS_EBUG, "drop without begin");
    pgs_gen_t at = h->drop_hint;
    struct walk walk = {0};
    /* Once round: from the hint to the end and from the beginning, each entry that is there now at most once. */
    uint64_t n_old = h->n_expired > l->n_expired_now ? h->n_expired - l->n_expired_now : 0;
    for (uint64_t left = h->n_expired + 1; left > 0 && n_old > 0; left--) {
        uint8_t key[KEY_MAX];
        struct pgs__meta_cursor c;
        uint64_t gen, x_pages;
        int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'x', at), err);
        if (rc == -PGS_ENOENT) {
            if (at == 0) return 0;
            at = h->drop_hint = 0;
            continue;
        }
        if (!rc) rc = pgs__lkey(&c, 1, &gen, err);
        if (!rc) rc = pgs__lval_u64(&c, &x_pages, err);
        if (rc) return rc;
        at = gen + 1;
        if (pgs__lexpired_now(l, gen)) continue;
        n_old--;
        *more = budget == 0;
        if (*more) return 0;
        rc = pinned(ctx, gen);
        if (rc < 0) return rc;
        if (rc > 0) {
            walk = (struct walk){gen, gen};
            budget--;
        } else {
            bool done = true;
            rc = drop_one(l, &walk, gen, x_pages, &budget, &done, err);
            if (rc) return rc;
            *any = true;
            *more = !done;
            if (!done) return 0;
        }
        h->drop_hint = at;
    }
    return 0;
}
