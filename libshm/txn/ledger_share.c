/* Pagestone | txn/ledger_share — runs that the head refers to more than once, and runs that come back.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Copy, revert and assigning an Array let a second name refer to a run, or a name refer to a run that the head had lost. Without counting, the first of two names to go
 * would free the other's pages; without revival, dropping the old version would free pages of the head (HAZARDS 1). So: ('r', page) -> pages, count for runs that the head refers to
 * twice or more often (absent: once), and dead runs that revive leave their deadlist. A revived run has the interval [birth, ∞) again.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/ledger_impl.h"

typedef int (*gap_fn)(struct pgs__ledger *l, uint64_t page, uint64_t n, void *ctx, struct pgs_error *err);

/* --- reference counts -------------------------------------------------------------------------------------------------------- */
static int ref_put(struct pgs__ledger *l, uint64_t page, uint64_t n, uint64_t count, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    uint64_t val[2] = {n, count};
    l->n_touched++;
    return pgs__meta_put(&l->meta, key, pgs__meta_key1(key, 'r', page), val, sizeof val, err);
}

static int ref_del(struct pgs__ledger *l, uint64_t page, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    return pgs__ldel(l, key, pgs__meta_key1(key, 'r', page), err);
}

static int ref_seek(struct pgs__ledger *l, enum pgs__seek how, uint64_t page, struct pgs__entry *e,
                    struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(l, &c, how, key, pgs__meta_key1(key, 'r', page), err);
    if (rc) return rc;
    rc = pgs__lentry(l, &c, e, err);
    if (!rc && e->count < 2)
        return pgs__fail_corrupt(err, "the ledger", "a shared run is counted %llu times", (unsigned long long)e->count);
    return rc;
}

/* No entry reaches across `page` afterwards. */
static int ref_cut(struct pgs__ledger *l, uint64_t page, struct pgs_error *err)
{
    struct pgs__entry e;
    int rc = ref_seek(l, PGS__SEEK_LT, page, &e, err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    if (e.page + e.n <= page) return 0;
    rc = ref_put(l, e.page, page - e.page, e.count, err);
    return rc ? rc : ref_put(l, page, e.page + e.n - page, e.count, err);
}

/* Join equal neighbours from the entry before lo to the one at hi. */
static int ref_join(struct pgs__ledger *l, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct pgs__entry a, b;
    int rc = ref_seek(l, PGS__SEEK_LT, lo, &a, err);
    if (rc == -PGS_ENOENT) rc = ref_seek(l, PGS__SEEK_GE, lo, &a, err);
    while (rc == 0 && a.page <= hi) {
        rc = ref_seek(l, PGS__SEEK_GT, a.page, &b, err);
        if (rc) break;
        if (a.page + a.n == b.page && a.count == b.count) {
            a.n += b.n;
            rc = ref_del(l, b.page, err);
            if (!rc) rc = ref_put(l, a.page, a.n, a.count, err);
        } else {
            a = b;
        }
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* Change the count of every shared part of [lo, hi) by delta; `gap` gets the parts that the head refers to once. A count of 1 is no entry. */
static int ref_change(struct pgs__ledger *l, uint64_t lo, uint64_t hi, int delta, gap_fn gap, void *ctx,
                      struct pgs_error *err)
{
    int rc = ref_cut(l, lo, err);
    if (!rc) rc = ref_cut(l, hi, err);
    for (uint64_t at = lo; rc == 0 && at < hi;) {
        struct pgs__entry e;
        rc = ref_seek(l, PGS__SEEK_GE, at, &e, err);
        if (rc && rc != -PGS_ENOENT) return rc;
        if (rc || e.page >= hi) return gap(l, at, hi - at, ctx, err);
        rc = e.page > at ? gap(l, at, e.page - at, ctx, err) : 0;
        if (rc) return rc;
        uint64_t count = delta > 0 ? e.count + 1 : e.count - 1;
        rc = count < 2 ? ref_del(l, e.page, err) : ref_put(l, e.page, e.n, count, err);
        at = e.page + e.n;
    }
    return rc;
}

int pgs__ledger_is_shared(struct pgs__ledger *l, struct pgs_run run, bool *shared, struct pgs_error *err)
{
    struct pgs__entry e;
    int rc = ref_seek(l, PGS__SEEK_LT, run.page.n + run.n_pages, &e, err);
    if (rc && rc != -PGS_ENOENT) return rc;
    *shared = rc == 0 && e.page + e.n > run.page.n;
    return 0;
}

/* --- kill -------------------------------------------------------------------------------------------------------------------- */
struct death {
    pgs_gen_t birth;
    bool node;
};

static int die(struct pgs__ledger *l, uint64_t page, uint64_t n, void *ctx, struct pgs_error *err)
{
    const struct death *d = ctx;
    struct pgs__entry e = {.a = l->head.gen, .b = d->birth, .page = page, .n = n, .node = d->node};
    if (!l->new_version && d->birth > l->x_floor) l->x_pages += pgs__lraw(&e);
    return pgs__ldead_add(l, &e, err);
}

static int check_run(struct pgs__ledger *l, struct pgs_run run, pgs_gen_t birth, pgs_gen_t newest, const char *what,
                     struct pgs_error *err)
{
    uint64_t hw = pgs__is_cold(run.page.n) ? PGS__COLD_END : l->meta.hdr.hw_pages;
    if (!l->gen || run.n_pages == 0 || run.n_pages > hw || run.page.n > hw - run.n_pages || birth == 0 ||
        birth > newest)
        return pgs__fail(err, PGS_EBUG, "%s of pages %llu + %llu, born %llu, after generation %llu", what,
                         (unsigned long long)run.page.n, (unsigned long long)run.n_pages, (unsigned long long)birth,
                         (unsigned long long)l->head.gen);
    return 0;
}

int pgs__ledger_kill(struct pgs__ledger *l, struct pgs_run run, pgs_gen_t birth, bool is_node, struct pgs_error *err)
{
    uint64_t lo = run.page.n, hi = lo + run.n_pages;
    struct death d = {birth, is_node};
    bool shared = false;
    int rc = check_run(l, run, birth, l->head.gen, "kill", err);
    if (!rc && !is_node) rc = pgs__ledger_is_shared(l, run, &shared, err); /* nodes never are */
    if (rc) return rc;
    if (!shared) return die(l, lo, run.n_pages, &d, err);
    rc = ref_change(l, lo, hi, -1, die, &d, err);
    return rc ? rc : ref_join(l, lo, hi, err);
}

/* --- revive ------------------------------------------------------------------------------------------------------------------ */
/* The parts of the run that were not found dead yet. Kept as a list of disjoint ranges: usually one. */
struct parts {
    struct part {
        uint64_t lo, hi;
    } * at;
    size_t n, cap;
};

static int parts_remove(struct parts *p, size_t i, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct part old = p->at[i];
    if (old.lo < lo && hi < old.hi) {
        if (pgs__grow(&p->at, &p->cap, p->n + 1, sizeof *p->at)) return pgs__fail(err, PGS_ENOMEM, "out of memory");
        memmove(p->at + i + 1, p->at + i, (p->n - i) * sizeof *p->at);
        p->n++;
        p->at[i].hi = lo;
        p->at[i + 1].lo = hi;
    } else if (old.lo < lo) {
        p->at[i].hi = lo;
    } else if (hi < old.hi) {
        p->at[i].lo = hi;
    } else {
        memmove(p->at + i, p->at + i + 1, (p->n - i - 1) * sizeof *p->at);
        p->n--;
    }
    return 0;
}

/* Take [lo, hi) out of the dead run e. */
static int revive(struct pgs__ledger *l, const struct pgs__entry *e, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    uint64_t end = e->page + e->n; /* data: nodes are not shared */
    size_t len = pgs__meta_key3(key, 'd', e->a, e->b, e->page);
    int rc = lo > e->page ? pgs__lput_u64(l, key, len, (lo - e->page) << 1, false, err) : pgs__ldel(l, key, len, err);
    if (!rc && hi < end)
        rc = pgs__lput_u64(l, key, pgs__meta_key3(key, 'd', e->a, e->b, hi), (end - hi) << 1, true, err);
    if (rc || pgs__is_cold(lo)) return rc; /* C1: from a deadlist to the head, `live` stays */
    if (!l->new_version && e->a == l->head.gen && e->b > l->x_floor) l->x_pages -= hi - lo;
    return pgs__lcounter_sub(&l->meta.hdr.pages_dead, hi - lo, "dead pages", err);
}

/* Revive what overlaps [part.lo, part.hi) in one bucket. *changed: the list of parts is another one now. */
static int revive_in(struct pgs__ledger *l, pgs_gen_t bucket, pgs_gen_t birth, struct parts *p, size_t i, bool *changed,
                     struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    struct pgs__entry e;
    *changed = false;
    int rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key3(key, 'd', bucket, birth, p->at[i].hi), err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    rc = pgs__lentry(l, &c, &e, err);
    if (rc || e.a != bucket || e.b != birth || e.page + e.n <= p->at[i].lo) return rc;
    if (e.node) return pgs__fail(err, PGS_EBUG, "page %llu is a node and not shared", (unsigned long long)e.page);
    uint64_t lo = pgs__max_u64(e.page, p->at[i].lo), hi = pgs__min_u64(e.page + e.n, p->at[i].hi);
    rc = revive(l, &e, lo, hi, err);
    *changed = true;
    return rc ? rc : parts_remove(p, i, lo, hi, err);
}

/* Every bucket from src_gen on: from one to the next by seeking, so that the cost is in buckets, not in dead runs. */
static int revive_all(struct pgs__ledger *l, struct parts *p, pgs_gen_t birth, pgs_gen_t src_gen, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    pgs_gen_t bucket = src_gen;
    while (p->n > 0) {
        struct pgs__entry e;
        int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key3(key, 'd', bucket, 0, 0), err);
        if (rc) return rc == -PGS_ENOENT ? 0 : rc;
        rc = pgs__lentry(l, &c, &e, err);
        if (rc) return rc;
        bucket = e.a;
        for (size_t i = 0; i < p->n;) {
            bool changed;
            rc = revive_in(l, bucket, birth, p, i, &changed, err);
            if (rc) return rc;
            if (!changed) i++;
        }
        bucket++;
    }
    return 0;
}

/* --- share ------------------------------------------------------------------------------------------------------------------- */
static int share_gap(struct pgs__ledger *l, uint64_t page, uint64_t n, void *ctx, struct pgs_error *err)
{
    (void)ctx;
    return ref_put(l, page, n, 2, err);
}

/* A run in limbo is needed by nobody, so its source was not what it seemed to be. The newest 16 generations; all of them in debug builds. */
static int check_not_limbo(struct pgs__ledger *l, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    struct pgs__entry e;
    pgs_gen_t before = UINT64_MAX;
#ifdef PGS_DEBUG
    const int limit = 1 << 20;
#else
    const int limit = 16;
#endif
    for (int i = 0; i < limit; i++) {
        int rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key2(key, 'm', before, 0), err);
        if (rc) return rc == -PGS_ENOENT ? 0 : rc;
        rc = pgs__lentry(l, &c, &e, err);
        if (rc) return rc;
        before = e.a;
        rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key2(key, 'm', before, hi), err);
        if (rc == -PGS_ENOENT) return 0;
        if (!rc) rc = pgs__lentry(l, &c, &e, err);
        if (rc) return rc;
        if (e.a == before && e.page + e.n > lo)
            return pgs__fail(err, PGS_EBUG, "pages %llu + %llu are in limbo and cannot be shared",
                             (unsigned long long)lo, (unsigned long long)(hi - lo));
    }
    return 0;
}

int pgs__ledger_share(struct pgs__ledger *l, struct pgs_run run, pgs_gen_t birth, pgs_gen_t src_gen,
                      struct pgs_error *err)
{
    int rc = check_run(l, run, birth, l->gen, "sharing", err);
    if (rc) return rc;
    struct parts p = {0};
    if (pgs__grow(&p.at, &p.cap, 1, sizeof *p.at)) return pgs__fail(err, PGS_ENOMEM, "out of memory");
    p.at[p.n++] = (struct part){run.page.n, run.page.n + run.n_pages};
    rc = revive_all(l, &p, birth, src_gen, err);
    for (size_t i = 0; i < p.n && !rc; i++) { /* the head holds these already */
        rc = pgs__is_cold(p.at[i].lo) ? pgs__lcold_present(l, p.at[i].lo, p.at[i].hi, err)
                                      : check_not_limbo(l, p.at[i].lo, p.at[i].hi, err);
        if (!rc) rc = ref_change(l, p.at[i].lo, p.at[i].hi, 1, share_gap, NULL, err);
        if (!rc) rc = ref_join(l, p.at[i].lo, p.at[i].hi, err);
    }
    pgs__free(p.at);
    return rc;
}
