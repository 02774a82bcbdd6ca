/* Pagestone | tests/unit/ledger_fixture — a page file in memory and the commit around a ledger: what txn/commit does, without processes.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_TESTS_UNIT_LEDGER_FIXTURE_H
#define PGS_TESTS_UNIT_LEDGER_FIXTURE_H

#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/txn/ledger.h"
#include "tests/unit/testing.h"

static struct pgs_error err;

static uint64_t rng_state;
static inline uint64_t rnd(void)
{
    rng_state += 0x9e3779b97f4a7c15u;
    return pgs__mix(rng_state);
}
static inline uint64_t below(uint64_t n)
{
    return rnd() % n;
}
static inline bool chance(unsigned percent)
{
    return below(100) < percent;
}

#define STORE_CHUNKS 64
struct store {
    struct pgs__pagefile pf;
    struct pgs__root root;
    uint64_t hints[2];
    void (*taken)(struct store *s, struct pgs_run run); /* sees every run that is handed out */
    uint64_t max_chunks;
    struct pgs__meta_kept kept; /* of every second commit */
};

static inline void store_open(struct store *s)
{
    memset(s, 0, sizeof *s);
    int fd = pgs__file_ops->memfd("ledger");
    CHECK(fd >= 0);
    CHECK_OK(pgs__pagefile_init(&s->pf, fd, -1, NULL, true, &err));
    CHECK_OK(pgs__pagefile_grow(&s->pf, STORE_CHUNKS * PGS_CHUNK_PAGES, &err));
    s->max_chunks = STORE_CHUNKS;
}
static inline void store_close(struct store *s)
{
    pgs__meta_kept_free(&s->kept);
    pgs__pagefile_fini(&s->pf);
}

static inline int claim_any(void *ctx, uint64_t chunk)
{
    (void)ctx, (void)chunk;
    return true;
}
static inline void unclaim_any(void *ctx, uint64_t chunk)
{
    (void)ctx, (void)chunk;
}

#define MAX_RUNS 512
struct runs {
    struct pgs_run at[MAX_RUNS];
    size_t n;
};
static inline int note_run(void *ctx, struct pgs_run run)
{
    struct runs *r = ctx;
    if (r->n < MAX_RUNS) r->at[r->n++] = run;
    return 0;
}

/* n pages, as few runs as the free space gives, taken. contiguous: one run. */
static inline void store_take(struct store *s, struct pgs__ledger *l, uint64_t n, bool node, bool contiguous,
                              struct runs *out)
{
    struct pgs__free_query q = {claim_any, unclaim_any, NULL, s->max_chunks};
    while (n > 0) {
        uint64_t chunk, want = contiguous ? n : 1;
        struct runs have = {.n = 0};
        int rc = -PGS_ENOENT;
        if (n < PGS_CHUNK_PAGES)
            rc = pgs__space_find_partial(l, &q, node ? 'N' : 'D', want, &s->hints[node], &chunk, &err);
        if (rc == -PGS_ENOENT) {
            uint64_t whole = (n + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
            CHECK_OK(pgs__space_find_chunks(l, &q, whole, &chunk, &err));
            note_run(&have, (struct pgs_run){{chunk * PGS_CHUNK_PAGES}, whole * PGS_CHUNK_PAGES});
        } else {
            CHECK_OK(rc);
            CHECK_OK(pgs__space_runs_of(l, chunk, note_run, &have, &err));
        }
        for (size_t i = 0; i < have.n && n > 0; i++) {
            struct pgs_run run = have.at[i];
            if (run.n_pages < want) continue;
            run.n_pages = pgs__min_u64(run.n_pages, n);
            if (s->taken) s->taken(s, run);
            CHECK_OK(pgs__ledger_take(l, run, node, &err));
            note_run(out, run);
            n -= run.n_pages;
        }
    }
}

/* prepare, take, finish, write, switch. */
static inline void store_commit(struct store *s, struct pgs__ledger *l)
{
    static uint8_t node_buf[MAX_RUNS * PGS_PAGE_SIZE], record_buf[PGS__RECORD_MAX_PAGES * PGS_PAGE_SIZE];
    struct pgs_pgno pages[MAX_RUNS];
    struct runs runs = {.n = 0}, record = {.n = 0};
    uint64_t n_nodes, n_record, have = 0, have_record = 0;
    for (;;) { /* again while taking pages made the need grow */
        CHECK_OK(pgs__ledger_prepare(l, &n_nodes, &n_record, &err));
        CHECK(n_nodes < MAX_RUNS);
        if (n_nodes == have && n_record == have_record) break;
        if (n_nodes > have) store_take(s, l, n_nodes - have, true, false, &runs);
        have = n_nodes;
        if (n_record == have_record) continue;
        for (size_t i = 0; i < record.n; i++) CHECK_OK(pgs__ledger_give(l, record.at[i], true, &err));
        record.n = 0;
        store_take(s, l, n_record, true, true, &record);
        have_record = n_record;
    }
    uint64_t k = 0;
    for (size_t i = 0; i < runs.n; i++)
        for (uint64_t j = 0; j < runs.at[i].n_pages; j++) pages[k++].n = runs.at[i].page.n + j;
    CHECK_EQ(k, n_nodes);
    struct pgs__root root;
    CHECK_OK(pgs__ledger_finish(l, pages, node_buf, record.at[0].page, record_buf, &root, &err));
    uint64_t done = 0;
    for (size_t i = 0; i < runs.n; i++) {
        CHECK_OK(pgs__pages_write(&s->pf, runs.at[i].page, node_buf + done * PGS_PAGE_SIZE, runs.at[i].n_pages, &err));
        done += runs.at[i].n_pages;
    }
    CHECK_OK(pgs__pages_write(&s->pf, record.at[0].page, record_buf, n_record, &err));
    s->root = root;
}

/* A new store with version 0. */
static inline void store_create(struct store *s, enum pgs_history_kind kind, uint64_t value)
{
    struct pgs__ledger l;
    store_open(s);
    CHECK_OK(pgs__ledger_open(&l, &s->pf, &s->root, &err));
    CHECK_OK(pgs__ledger_begin(&l, true, 0, 1000000, &err));
    l.meta.hdr.history_kind = kind;
    l.meta.hdr.history_value = value;
    store_commit(s, &l);
    pgs__ledger_close(&l);
}

static inline void store_begin(struct store *s, struct pgs__ledger *l, bool new_version)
{
    CHECK_OK(pgs__ledger_reopen(l, &s->pf, &s->root, &s->kept, &err));
    CHECK_OK(pgs__ledger_begin(l, new_version, s->root.version + 1, s->root.time_ns + 1000000, &err));
}
static inline void store_end(struct store *s, struct pgs__ledger *l)
{
    store_commit(s, l);
    if (s->root.gen & 1) pgs__ledger_keep(l, &s->root, &s->kept);
    pgs__ledger_close(l);
}

#endif
