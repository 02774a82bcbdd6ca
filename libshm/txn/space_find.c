/* Pagestone | txn/space_find — where is free space? Looking only; pgs__ledger_take takes.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Free means: free in the newest generation *and* not being prepared by somebody. The second is a matter of the owner table in the control file, which is asked through the
 * query: usable() claims a chunk for the caller. Whatever was claimed and is not part of the answer is handed back before return. Lowest addresses first, so that the file's end becomes free.
 */
#include "libshm/txn/ledger_impl.h"

#define PARTIAL_LOOKS 256

static int free_run(struct pgs__ledger *l, const struct pgs__meta_cursor *c, uint64_t unit, uint64_t *lo, uint64_t *hi,
                    struct pgs_error *err)
{
    uint64_t n;
    int rc = pgs__lkey(c, 1, hi, err);
    if (!rc) rc = pgs__lval_u64(c, &n, err);
    if (rc) return rc;
    if (n == 0 || n > *hi || *hi > l->meta.hdr.hw_pages / unit)
        return pgs__fail_corrupt(err, "the ledger", "a free run of %llu ends at %llu", (unsigned long long)n,
                                 (unsigned long long)*hi);
    *lo = *hi - n;
    return 0;
}

int pgs__lspace_run(struct pgs__ledger *l, const struct pgs__meta_cursor *c, uint64_t *lo, uint64_t *hi,
                    struct pgs_error *err)
{
    return free_run(l, c, 1, lo, hi, err);
}

/* The first n claimable chunks in a row within [lo, hi); true and *first. */
static bool claim_row(const struct pgs__free_query *q, uint64_t lo, uint64_t hi, uint64_t n, uint64_t *first)
{
    uint64_t have = 0;
    for (uint64_t at = lo; hi >= at && hi - at >= n - have; at++) {
        if (have == n) break;
        int got = q->usable(q->ctx, at);
        if (got > 0) {
            have++;
            continue;
        }
        for (uint64_t i = at - have; i < at; i++) q->unclaim(q->ctx, i);
        if (got < 0) return false;
        have = 0;
        lo = at + 1;
    }
    if (have == n) {
        *first = lo;
        return true;
    }
    for (uint64_t i = 0; i < have; i++) q->unclaim(q->ctx, lo + i);
    return false;
}

int pgs__space_find_chunks(struct pgs__ledger *l, const struct pgs__free_query *q, uint64_t n_chunks, uint64_t *first,
                           struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    uint64_t hw = l->meta.hdr.hw_pages / PGS_CHUNK_PAGES, lo, hi, tail = hw;
    if (n_chunks == 0) return pgs__fail(err, PGS_EBUG, "a search for no chunks");
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'W', 0), err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 'W', err)) {
        rc = free_run(l, &c, PGS_CHUNK_PAGES, &lo, &hi, err);
        if (rc) return rc;
        if (hi == hw) tail = lo; /* goes on beyond the high-water mark */
        hi = pgs__min_u64(hi, q->max_chunks);
        if (hi > lo && hi - lo >= n_chunks && claim_row(q, lo, hi, n_chunks, first)) return 0;
    }
    if (rc != -PGS_ENOENT) return rc;
    if (tail < q->max_chunks && q->max_chunks - tail >= n_chunks && claim_row(q, tail, q->max_chunks, n_chunks, first))
        return 0;
    return pgs__fail(err, PGS_EFULL, "no %llu MiB in one piece are free", (unsigned long long)n_chunks * 2);
}

int pgs__space_find_partial(struct pgs__ledger *l, const struct pgs__free_query *q, char kind, uint64_t min_pages,
                            uint64_t *hint, uint64_t *chunk, struct pgs_error *err)
{
    uint64_t start = *hint, at = start, refused = UINT64_MAX;
    bool wrapped = start == 0;
    for (int looks = 0; looks < PARTIAL_LOOKS; looks++) {
        uint8_t key[KEY_MAX];
        struct pgs__meta_cursor c;
        uint64_t lo, hi;
        int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, kind, at), err);
        for (; rc == 0 && looks < PARTIAL_LOOKS; rc = pgs__lnext(l, &c, kind, err), looks++) {
            rc = free_run(l, &c, 1, &lo, &hi, err);
            if (rc) return rc;
            uint64_t of = lo / PGS_CHUNK_PAGES;
            *hint = hi + 1;
            if (hi - lo < min_pages || of == refused || of >= q->max_chunks) continue;
            int got = q->usable(q->ctx, of);
            if (got > 0) {
                *hint = hi; /* what is left of this run comes first next time */
                *chunk = of;
                return 0;
            }
            if (got < 0) return -PGS_ENOENT;
            refused = of; /* its other runs are somebody else's too */
        }
        if (rc != -PGS_ENOENT) return rc ? rc : -PGS_ENOENT;
        *hint = 0;
        if (wrapped) return -PGS_ENOENT;
        wrapped = true;
        at = 0;
    }
    return -PGS_ENOENT;
}

int pgs__space_free_below(struct pgs__ledger *l, uint64_t below, uint64_t max, uint64_t *list, uint64_t *n,
                          struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    *n = 0;
    /* The run that contains chunk `below` - 1 may end above it: begin with the first that ends at or above `below`. */
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'W', below), err);
    if (rc == -PGS_ENOENT) rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key1(key, 'W', below), err);
    for (; rc == 0 && *n < max; rc = pgs__lprev(l, &c, 'W', err)) {
        uint64_t lo, hi;
        rc = free_run(l, &c, PGS_CHUNK_PAGES, &lo, &hi, err);
        if (rc) return rc;
        for (uint64_t i = pgs__min_u64(hi, below); i > lo && *n < max; i--) list[(*n)++] = i - 1;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

int pgs__space_runs_of(struct pgs__ledger *l, uint64_t chunk, int (*fn)(void *ctx, struct pgs_run run), void *ctx,
                       struct pgs_error *err)
{
    uint64_t first = chunk * PGS_CHUNK_PAGES, last = first + PGS_CHUNK_PAGES, lo, hi;
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    if (chunk >> 41) return pgs__fail(err, PGS_EBUG, "chunk %llu", (unsigned long long)chunk);
    if (last > l->meta.hdr.hw_pages) return fn(ctx, (struct pgs_run){{first}, PGS_CHUNK_PAGES});
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, 'W', chunk + 1), err);
    if (!rc) rc = free_run(l, &c, PGS_CHUNK_PAGES, &lo, &hi, err);
    if (rc == 0 && lo <= chunk) return fn(ctx, (struct pgs_run){{first}, PGS_CHUNK_PAGES});
    if (rc && rc != -PGS_ENOENT) return rc;
    for (const char *kind = "ND"; *kind; kind++) {
        rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key1(key, *kind, first + 1), err);
        for (; rc == 0; rc = pgs__lnext(l, &c, *kind, err)) {
            rc = free_run(l, &c, 1, &lo, &hi, err);
            if (rc) return rc;
            if (hi > last) break;
            rc = fn(ctx, (struct pgs_run){{lo}, hi - lo});
            if (rc) return rc;
        }
        if (rc && rc != -PGS_ENOENT) return rc;
    }
    return 0;
}
