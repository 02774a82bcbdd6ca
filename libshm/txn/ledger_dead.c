/* Pagestone | txn/ledger_dead — runs that the head lost: deadlists, limbo, and back to free.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A run that dies in generation g + 1 goes to bucket g, under its birth: ('d', g, birth, page). Whoever holds the bucket is the newest needed generation before the
 * death, so the run is needed for certain as long as birth ≤ holder, and by nobody else newer. From the deadlists runs go to limbo (ledger_expire.c), from limbo to free space,
 * here, when no power loss and no reader of meta data can lead back to a generation that counts them as used. Runs of the image (ledger_cold.c) die the same way and are counted nowhere.
 */
#include "libshm/platform/inject.h"
#include "libshm/txn/ledger_impl.h"

static int overlap_bug(const char *where, uint64_t page, uint64_t n, struct pgs_error *err)
{
    return pgs__fail(err, PGS_EBUG, "pages %llu + %llu are in %s already", (unsigned long long)page,
                     (unsigned long long)n, where);
}

/* Put [page, page + n) under prefix (key: letter, numbers…, page), joined with its neighbours of the same prefix and kind. Prefixes
 * name this commit (its limbo, the bucket of what it kills), so nothing under them is older. */
static int run_insert(struct pgs__ledger *l, const uint8_t *prefix, size_t prefix_len, struct pgs__entry e,
                      const char *where, struct pgs_error *err)
{
    struct pgs__meta_cursor c;
    uint8_t key[KEY_MAX];
    bool extends = false;
    uint64_t end = e.page + e.n;
    memcpy(key, prefix, prefix_len);
    size_t len = prefix_len + pgs__meta_key_num(key + prefix_len, end);
    int rc = pgs__lseek_new(l, &c, PGS__SEEK_LE, key, len, err);
    for (int i = 0; i < 2 && rc == 0; i++) { /* the run behind, the run before */
        struct pgs__entry o;
        if (c.key.len < prefix_len || memcmp(c.key.p, prefix, prefix_len) != 0) break;
        rc = pgs__lentry(l, &c, &o, err);
        if (rc) return rc;
        if (o.page < end && o.page + o.n > e.page) return overlap_bug(where, e.page, e.n, err);
        if (o.page != end) {
            extends = o.page + o.n == e.page && o.node == e.node;
            if (extends) {
                e.page = o.page;
                e.n += o.n;
            }
            break;
        }
        if (o.node == e.node) {
            e.n += o.n; /* its key is the one that was looked for */
            rc = pgs__ldel(l, key, len, err);
            if (!rc) rc = pgs__lseek_new(l, &c, PGS__SEEK_LT, key, len, err);
        } else {
            rc = pgs__lprev(l, &c, (char)prefix[0], err);
        }
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    len = prefix_len + pgs__meta_key_num(key + prefix_len, e.page);
    return pgs__lput_u64(l, key, len, e.n << 1 | e.node, !extends, err);
}

int pgs__ldead_add(struct pgs__ledger *l, const struct pgs__entry *e, struct pgs_error *err)
{
    uint8_t prefix[KEY_MAX];
    l->meta.hdr.pages_dead += pgs__lraw(e);
    return run_insert(l, prefix, pgs__meta_key2(prefix, 'd', e->a, e->b), *e, "a deadlist", err);
}

int pgs__llimbo_add(struct pgs__ledger *l, uint64_t page, uint64_t n, bool node, struct pgs_error *err)
{
    uint8_t prefix[KEY_MAX];
    l->meta.hdr.pages_limbo += n;
    struct pgs__entry e = {.page = page, .n = n, .node = node};
    return run_insert(l, prefix, pgs__meta_key1(prefix, 'm', l->gen), e, "limbo", err);
}

int pgs__ledger_limbo(struct pgs__ledger *l, struct pgs_run run, bool is_node, struct pgs_error *err)
{
    uint64_t hw = l->meta.hdr.hw_pages;
    if (!l->gen || run.n_pages == 0 || run.n_pages > hw || run.page.n > hw - run.n_pages)
        return pgs__fail(err, PGS_EBUG, "limbo of pages %llu + %llu", (unsigned long long)run.page.n,
                         (unsigned long long)run.n_pages);
    return pgs__llimbo_add(l, run.page.n, run.n_pages, is_node, err);
}

/* --- what expired entries hold ----------------------------------------------------------------------------------------------- */
static int held_in_bucket(struct pgs__ledger *l, pgs_gen_t bucket, pgs_gen_t floor, uint64_t *pages, uint64_t *visited,
                          struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    struct pgs__entry e;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key3(key, 'd', bucket, floor + 1, 0), err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 'd', err)) {
        rc = pgs__lentry(l, &c, &e, err);
        if (rc) return rc;
        if (e.a != bucket) return 0;
        *pages += pgs__lraw(&e);
        ++*visited;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

int pgs__lhung(struct pgs__ledger *l, pgs_gen_t holder, pgs_gen_t bucket, pgs_gen_t *out, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    uint64_t k[2];
    if (l->nothing_hung) return -PGS_ENOENT;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key2(key, 'b', holder, bucket), err);
    if (rc == -PGS_ENOENT) { /* none at this holder or a newer one; at none at all? */
        rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'b', 0), err);
        l->nothing_hung = rc == -PGS_ENOENT;
        return rc ? rc : -PGS_ENOENT;
    }
    if (rc) return rc;
    rc = pgs__lkey(&c, 2, k, err);
    *out = k[1];
    return rc || k[0] == holder ? rc : -PGS_ENOENT;
}

int pgs__lheld(struct pgs__ledger *l, pgs_gen_t gen, pgs_gen_t floor, uint64_t *pages, uint64_t *visited,
               struct pgs_error *err)
{
    pgs_gen_t bucket;
    int rc = pgs__lhung(l, gen, 0, &bucket, err);
    for (; rc == 0; rc = pgs__lhung(l, gen, bucket + 1, &bucket, err)) {
        ++*visited;
        rc = held_in_bucket(l, bucket, floor, pages, visited, err);
        if (rc) return rc;
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    return held_in_bucket(l, gen, floor, pages, visited, err);
}

int pgs__ledger_bytes_held(struct pgs__ledger *l, pgs_gen_t lo, pgs_gen_t hi, uint64_t *bytes, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    uint64_t floor, pages = 0, visited = 0;
    int rc = pgs__lchain_prev(l, lo, &floor, err);
    if (rc) return rc;
    rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'c', lo), err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 'c', err)) {
        uint64_t gen;
        rc = pgs__lkey(&c, 1, &gen, err);
        if (rc) return rc;
        if (gen > hi) break;
        rc = pgs__lheld(l, gen, floor, &pages, &visited, err);
        if (rc) return rc;
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    *bytes = pages << PGS_PAGE_SHIFT;
    return 0;
}

/* --- limbo to free ------------------------------------------------------------------------------------------------------------ */
#define RECLAIM_BATCH 64

static int oldest_limbo(struct pgs__ledger *l, pgs_gen_t limit, struct pgs__entry *out, uint64_t max, size_t *n,
                        struct pgs_error *err)
{
    struct pgs__meta_cursor c;
    *n = 0;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, (const uint8_t *)"m", 1, err);
    while (rc == 0 && *n < max) {
        rc = pgs__lentry(l, &c, &out[*n], err);
        if (rc || out[*n].a > limit) return rc;
        ++*n;
        rc = *n < max ? pgs__lnext(l, &c, 'm', err) : 0;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

static int leave_limbo(struct pgs__ledger *l, const struct pgs__entry *e, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    int rc = pgs__ldel(l, key, pgs__meta_key2(key, 'm', e->a, e->page), err);
    return rc ? rc : pgs__lcounter_sub(&l->meta.hdr.pages_limbo, e->n, "pages in limbo", err);
}

/* By page, neighbours of one kind joined: pages that are taken one after the other come back one after the other. Returns how many are left. */
static size_t join_runs(struct pgs__entry *e, size_t n)
{
    size_t out = 0;
    for (size_t i = 1; i < n; i++) { /* nearly sorted as a rule */
        struct pgs__entry x = e[i];
        size_t k = i;
        for (; k > 0 && e[k - 1].page > x.page; k--) e[k] = e[k - 1];
        e[k] = x;
    }
    for (size_t i = 1; i < n; i++) {
        if (e[out].page + e[out].n == e[i].page && e[out].node == e[i].node)
            e[out].n += e[i].n;
        else
            e[++out] = e[i];
    }
    return n ? out + 1 : 0;
}

int pgs__ledger_reclaim(struct pgs__ledger *l, pgs_gen_t durable, pgs_gen_t min_meta_pin, uint64_t budget,
                        void (*freed)(void *ctx, struct pgs_run run), void *ctx, struct pgs_error *err)
{
    pgs_gen_t limit = pgs__min_u64(PGS_PLANTED(6) ? UINT64_MAX : durable, min_meta_pin);
    limit = PGS_PLANTED(3) && limit < UINT64_MAX ? limit + 1 : pgs__min_u64(limit, l->gen - 1);
    while (budget > 0) {
        struct pgs__entry batch[RECLAIM_BATCH];
        size_t n;
        int rc = oldest_limbo(l, limit, batch, pgs__min_u64(budget, RECLAIM_BATCH), &n, err);
        for (size_t i = 0; i < n && !rc; i++) rc = leave_limbo(l, &batch[i], err);
        size_t n_runs = rc ? 0 : join_runs(batch, n);
        for (size_t i = 0; i < n_runs && !rc; i++) {
            struct pgs_run run = {{batch[i].page}, batch[i].n};
            rc = pgs__ledger_give(l, run, batch[i].node, err);
            if (!rc && freed) freed(ctx, run);
        }
        if (rc || n < RECLAIM_BATCH) return rc;
        budget -= n;
    }
    return 0;
}
