/* Pagestone | txn/ledger_find — which generation is meant: by number, position, time or tag; and the lists.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Listed versions are exactly the entries under 'v'. A number that is not listed was once (-PGS_EEXPIRED) or never (-PGS_EINVAL); the difference is told by the
 * first and the newest number ever given out. Needs a meta pin or the commit lock.
 */
#include "libshm/txn/ledger_impl.h"

static void head_root(const struct pgs__ledger *l, struct pgs__root *out)
{
    const struct pgs__record *h = &l->meta.hdr;
    if (l->gen == 0)
        *out = l->head;
    else /* of the generation in progress: no record yet */
        *out = (struct pgs__root){.gen = h->gen,
                                  .version = h->version,
                                  .time_ns = h->time_ns,
                                  .catalog = h->catalog,
                                  .n_objects = h->n_objects};
}

int pgs__ledger_find_gen(struct pgs__ledger *l, pgs_gen_t gen, struct pgs__root *out, bool *expired,
                         struct pgs_error *err)
{
    struct pgs__chain c = {0};
    if (gen == l->meta.hdr.gen) {
        head_root(l, out);
        if (expired) *expired = false;
        return 0;
    }
    int rc = pgs__lchain_get(l, gen, &c, err);
    if (rc == -PGS_ENOENT)
        return pgs__fail(err, PGS_EEXPIRED, "generation %llu is no longer kept; the newest is %llu",
                         (unsigned long long)gen, (unsigned long long)l->meta.hdr.gen);
    if (rc) return rc;
    *out = (struct pgs__root){
        .gen = gen, .version = c.version, .time_ns = c.time_ns, .catalog = c.catalog, .n_objects = c.n_objects};
    if (expired) *expired = (c.flags & PGS__CHAIN_EXPIRED) != 0;
    return 0;
}

/* The generation of a listed version, which must be in the chain. */
static int listed_root(struct pgs__ledger *l, uint64_t version, pgs_gen_t gen, struct pgs__root *out,
                       struct pgs_error *err)
{
    struct pgs__root root;
    bool expired;
    int rc = pgs__ledger_find_gen(l, gen, &root, &expired, NULL);
    if (rc == -PGS_EEXPIRED || (rc == 0 && (expired || root.version != version)))
        return pgs__fail_corrupt(err, "the ledger", "version %llu is listed but not in the chain",
                                 (unsigned long long)version);
    if (rc) return pgs__fail(err, -rc, "the ledger is damaged at version %llu", (unsigned long long)version);
    *out = root;
    return 0;
}

int pgs__ledger_find_version(struct pgs__ledger *l, uint64_t version, struct pgs__root *out, struct pgs_error *err)
{
    const struct pgs__record *h = &l->meta.hdr;
    pgs_gen_t gen;
    if (version > h->version || version < h->first_version)
        return pgs__fail(err, PGS_EINVAL, "version %llu never was; the newest is %llu", (unsigned long long)version,
                         (unsigned long long)h->version);
    int rc = pgs__lversion_gen(l, version, &gen, err);
    if (rc == -PGS_ENOENT)
        return pgs__fail(err, PGS_EEXPIRED, "version %llu is gone; tag versions that must stay, or keep more history",
                         (unsigned long long)version);
    return rc ? rc : listed_root(l, version, gen, out, err);
}

static int cursor_root(struct pgs__ledger *l, const struct pgs__meta_cursor *c, struct pgs__root *out,
                       struct pgs_error *err)
{
    uint64_t version, gen;
    int rc = pgs__lkey(c, 1, &version, err);
    if (!rc) rc = pgs__lval_u64(c, &gen, err);
    return rc ? rc : listed_root(l, version, gen, out, err);
}

int pgs__ledger_find_index(struct pgs__ledger *l, int64_t index, struct pgs__root *out, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    uint64_t back = index < 0 ? 0 - (uint64_t)index : 0;
    int rc = -PGS_ENOENT;
    if (back >= 1 && back <= l->meta.hdr.n_kept) {
        rc = pgs__lseek(l, &c, PGS__SEEK_LE, key, pgs__meta_key1(key, 'v', UINT64_MAX), err);
        while (rc == 0 && --back > 0) rc = pgs__lprev(l, &c, 'v', err);
    }
    if (rc == -PGS_ENOENT)
        return pgs__fail(err, PGS_EINVAL, "no version at position %lld; %llu are kept", (long long)index,
                         (unsigned long long)l->meta.hdr.n_kept);
    return rc ? rc : cursor_root(l, &c, out, err);
}

/* Versions ascend in number, generation and time, so the newest one with time ≤ end is found by halving the range of numbers. lo: one that qualifies. */
static int newest_until(struct pgs__ledger *l, uint64_t lo, uint64_t hi, uint64_t end, struct pgs__root *best,
                        struct pgs_error *err)
{
    while (lo < hi) {
        uint8_t key[KEY_MAX];
        struct pgs__meta_cursor c;
        struct pgs__root r;
        uint64_t mid = lo + (hi - lo + 1) / 2;
        int rc = pgs__lseek(l, &c, PGS__SEEK_LE, key, pgs__meta_key1(key, 'v', mid), err);
        if (!rc) rc = cursor_root(l, &c, &r, err);
        if (rc == -PGS_ENOENT) return pgs__fail_corrupt(err, "the ledger", "listed versions are out of order");
        if (rc) return rc;
        if (r.time_ns <= end) {
            *best = r;
            lo = mid; /* nothing listed lies between r.version and mid */
        } else {
            hi = r.version - 1; /* r.version > lo, since lo qualifies */
            if (r.version <= lo) return pgs__fail_corrupt(err, "the ledger", "commit times are out of order");
        }
    }
    return 0;
}

static int time_gone(const struct pgs__ledger *l, bool before_first, struct pgs_error *err)
{
    if (before_first) return pgs__fail(err, PGS_EINVAL, "the store did not exist at that time");
    return pgs__fail(err, PGS_EEXPIRED, "the version of that time is gone; %llu are kept",
                     (unsigned long long)l->meta.hdr.n_kept);
}

int pgs__ledger_find_time(struct pgs__ledger *l, uint64_t time_ns, struct pgs__root *out, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    struct pgs__root best, head;
    uint64_t end = time_ns / 1000 > UINT64_MAX / 1000 - 1 ? UINT64_MAX : time_ns / 1000 * 1000 + 999;
    head_root(l, &head);
    if (head.time_ns <= end) {
        *out = head;
        return 0;
    }
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'v', 0), err);
    if (!rc) rc = cursor_root(l, &c, &best, err);
    if (rc == -PGS_ENOENT) return pgs__fail_corrupt(err, "the ledger", "no version is listed");
    if (rc) return rc;
    if (best.time_ns > end) return time_gone(l, best.version == l->meta.hdr.first_version, err);
    rc = newest_until(l, best.version, head.version, end, &best, err);
    if (rc) return rc;
    struct pgs__chain e;
    rc = pgs__lchain_get(l, best.gen, &e, err);
    if (rc == -PGS_ENOENT) return pgs__fail_corrupt(err, "the ledger", "a listed version is not in the chain");
    if (rc) return rc;
    if (e.next_time_ns <= end) return time_gone(l, false, err); /* another version was newest then, and is gone */
    *out = best;
    return 0;
}

/* --- lists ------------------------------------------------------------------------------------------------------------------- */
int pgs__ledger_versions(struct pgs__ledger *l, int (*fn)(void *ctx, uint64_t version), void *ctx,
                         struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'v', 0), err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 'v', err)) {
        uint64_t version;
        rc = pgs__lkey(&c, 1, &version, err);
        if (!rc) rc = fn(ctx, version);
        if (rc) return rc;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

int pgs__ledger_chain_walk(struct pgs__ledger *l, int (*fn)(void *ctx, pgs_gen_t gen, const struct pgs__chain *c),
                           void *ctx, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'c', 0), err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 'c', err)) {
        struct pgs__chain e;
        uint64_t gen;
        rc = pgs__lkey(&c, 1, &gen, err);
        if (!rc) rc = pgs__lchain_get(l, gen, &e, err);
        if (!rc) rc = fn(ctx, gen, &e);
        if (rc) return rc;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}
