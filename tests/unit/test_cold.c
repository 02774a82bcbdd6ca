/* Pagestone | tests/unit/test_cold — freezing and thawing: the bytes never change, whatever happens around them, and no page is lost.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/commit.h"
#include "libshm/txn/freeze.h"
#include "libshm/txn/policy.h"
#include "libshm/txn/store.h"
#include "libshm/txn/upkeep.h"
#include "tests/unit/txn_testing.h"

#define MB (1u << 20)

static uint64_t seed = 1;
static uint64_t rnd(void)
{
    return pgs__mix(seed += 0x9e3779b97f4a7c15u);
}
static uint64_t below(uint64_t n)
{
    return rnd() % n;
}

/* Elements that walk: compressible once shuffled. Few different bytes at all for item size 1. */
static void walk(uint8_t *p, size_t n, uint32_t itemsize)
{
    uint64_t x = rnd() & 0xffffff;
    for (size_t i = 0; i < n; i++) {
        if (i % itemsize == 0) x += below(9);
        p[i] = (uint8_t)(x >> (itemsize < 3 ? 5 : 8 * (i % itemsize % 8)));
    }
}

static struct pgs_stat stat_of(pgs_store *s)
{
    struct pgs_stat st;
    CHECK_OK(pgs_stat(s, &st, &err));
    return st;
}

static uint64_t freeze(pgs_store *s, const char *key)
{
    uint64_t bytes = 7;
    CHECK_OK(pgs_freeze(s, KEY(key), &bytes, &err));
    return bytes;
}
static uint64_t thaw(pgs_store *s, const char *key)
{
    uint64_t bytes = 7;
    CHECK_OK(pgs_thaw(s, KEY(key), &bytes, &err));
    return bytes;
}

static void put(pgs_store *s, const char *key, const void *p, size_t n, uint32_t itemsize)
{
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, key, p, (int64_t)(n / itemsize), itemsize));
    commit(t);
}

static void all_is_well(pgs_store *s, const char *key, const void *p, size_t n)
{
    CHECK(head_is(s, key, p, n));
    check_store(s);
}

/* Nobody needs anything but the head any more, and nothing of it is cold. */
static void nothing_is_left(pgs_store *s)
{
    for (int i = 0; i < 3; i++) CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(stat_of(s).compressed, 0);
    check_store(s);
}

static pgs_store *open_counting(uint64_t versions, uint64_t quota)
{
    pgs_store *s;
    struct pgs_options o = {
        .mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = versions, .size = quota, .checksums = 1};
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    return s;
}

/* --- contents ---------------------------------------------------------------------------------------------------------------------------- */
static void one_shape(pgs_store *s, uint32_t itemsize, size_t n)
{
    uint8_t *p = malloc(n);
    pgs_snapshot *old;
    struct pgs_object before, after;
    walk(p, n, itemsize);
    put(s, "x", p, n, itemsize);
    uint64_t version = pgs_store_version(s);
    CHECK_OK(pgs_snapshot_head(s, &old, &err));
    CHECK_OK(pgs_get(old, KEY("x"), &before, &err));
    pgs_view *v = open_head(s, "x", &before);
    uint64_t id = before.id, saved = freeze(s, "x");
    struct pgs_stat st = stat_of(s);
    if (n >= 4 * PGS_PAGE_SIZE) CHECK(saved > 0);
    CHECK_EQ(saved > 0, st.compressed > 0);
    CHECK(st.compressed <= n);
    CHECK_EQ(pgs_store_version(s), version);
    pgs_view_unref(open_head(s, "x", &after));
    CHECK_EQ(after.id, id);
    CHECK_EQ(after.version, version);
    CHECK(memcmp(pgs_view_data(v), p, n) == 0); /* the raw pages are still its */
    all_is_well(s, "x", p, n);
    pgs_view_unref(v);
    CHECK_OK(pgs_get(old, KEY("x"), &before, &err));
    CHECK_OK(pgs_view_open(old, &before, 1, &v, &err));
    CHECK(memcmp(pgs_view_data(v), p, n) == 0);
    pgs_view_unref(v);
    pgs_snapshot_unref(old);
    CHECK_OK(pgs_gc(s, &err));
    all_is_well(s, "x", p, n);
    CHECK_EQ(freeze(s, "x"), 0);
    uint64_t raw = thaw(s, "x");
    CHECK_EQ(raw > 0, saved > 0);
    all_is_well(s, "x", p, n);
    CHECK_EQ(thaw(s, "x"), 0);
    nothing_is_left(s);
    CHECK(head_is(s, "x", p, n));
    free(p);
}

TEST(freezing_and_thawing_changes_no_byte_whatever_the_items_and_the_size)
{
    static const uint32_t items[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 255, 300};
    static const size_t sizes[] = {5000, 131072, 131073, 131071, 100000, 262144 + 4096, 700001};
    pgs_store *s = open_counting(0, 0);
    for (size_t i = 0; i < PGS_ARRAY_LEN(items); i++)
        for (size_t k = 0; k < PGS_ARRAY_LEN(sizes); k++) one_shape(s, items[i], sizes[k] / items[i] * items[i]);
    pgs_store_unref(s);
}

TEST(many_rounds_and_bytes_and_pickles_freeze_too)
{
    pgs_store *s = open_counting(0, 0);
    size_t n = 70 * MB;
    uint8_t *p = malloc(n);
    walk(p, n, 8);
    put(s, "x", p, n, 8);
    CHECK(freeze(s, "x") > n / 3);
    CHECK_OK(pgs_gc(s, &err));
    all_is_well(s, "x", p, n);
    CHECK_EQ(thaw(s, "x"), n);
    CHECK(head_is(s, "x", p, n));
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_delete(t, KEY("x"), &err));
    for (uint64_t i = 0; i < 600000; i++) p[i] = (uint8_t)(i / 100);
    struct pgs_part part = {p, 600000};
    uint64_t stream = 150000;
    CHECK_OK(pgs_txn_put(t, KEY("b"), PGS_KIND_BYTES, NULL, &part, 1, &err));
    memcpy(p, &stream, 8);
    CHECK_OK(pgs_txn_put(t, KEY("p"), PGS_KIND_PICKLE, NULL, &part, 1, &err));
    commit(t);
    CHECK(freeze(s, "b") > 0);
    CHECK(freeze(s, "p") > 0);
    all_is_well(s, "p", p, 600000);
    CHECK(thaw(s, "p") > 0);
    CHECK(thaw(s, "b") > 0);
    all_is_well(s, "p", p, 600000);
    nothing_is_left(s);
    free(p);
    pgs_store_unref(s);
}

TEST(what_does_not_shrink_stays_raw)
{
    pgs_store *s = open_counting(0, 0);
    uint8_t *p = malloc(MB);
    for (size_t i = 0; i < MB; i++) p[i] = (uint8_t)rnd();
    put(s, "x", p, MB, 8);
    CHECK_EQ(freeze(s, "x"), 0);
    CHECK_EQ(stat_of(s).compressed, 0);
    walk(p + 262144, 262144, 8); /* two blocks of eight */
    put(s, "x", p, MB, 8);
    CHECK(freeze(s, "x") > 0);
    CHECK(stat_of(s).compressed < 262144);
    all_is_well(s, "x", p, MB);
    uint64_t bytes;
    CHECK_ERR(pgs_freeze(s, KEY("none"), &bytes, NULL), PGS_ENOENT);
    CHECK_ERR(pgs_thaw(s, KEY("none"), &bytes, NULL), PGS_ENOENT);
    pgs_txn *t = begin(s);
    CHECK_OK(put_bytes(t, "small", "inline"));
    commit(t);
    CHECK_EQ(freeze(s, "small"), 0);
    CHECK_EQ(thaw(s, "small"), 0);
    free(p);
    pgs_store_unref(s);
}

TEST(holes_stay_holes)
{
    pgs_store *s = open_counting(0, 0);
    /* Where the kernel does not tell which pages were written to, the commit compares them all. */
    bool told = pgs__cap(PGS__CAP_PAGEMAP_SCAN) || pgs__cap(PGS__CAP_PAGEMAP);
    const uint64_t size = told ? 1ull << 40 : 1ull << 28;
    struct pgs_type type = type_of((int64_t)(size / 8), 8);
    struct pgs_object o;
    pgs_view *v;
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_create(t, KEY("x"), &type, &err));
    commit(t);
    t = begin(s);
    uint8_t *p = edit(t, "x", &v);
    const uint64_t at[] = {0, 300000, 5000000, size - 50000};
    static uint8_t want[4][50000];
    for (int i = 0; i < 4; i++) {
        walk(want[i], sizeof want[i], 8);
        memcpy(p + at[i], want[i], sizeof want[i]);
    }
    commit(t);
    pgs_view_unref(v);
    pgs_view_unref(open_head(s, "x", &o));
    uint64_t stored = o.n_stored;
    CHECK(freeze(s, "x") > 0);
    v = open_head(s, "x", &o);
    CHECK_EQ(o.n_stored, stored);
    p = pgs_view_data(v);
    for (int i = 0; i < 4; i++) CHECK(memcmp(p + at[i], want[i], sizeof want[i]) == 0);
    CHECK_EQ(p[60000], 0);
    CHECK_EQ(p[size / 2], 0);
    pgs_view_unref(v);
    CHECK_OK(pgs_gc(s, &err));
    check_store(s);
    CHECK(thaw(s, "x") > 0);
    nothing_is_left(s);
    pgs_store_unref(s);
}

TEST(frozen_pages_are_the_base_of_edits_and_equal_stores_are_no_change)
{
    pgs_store *s = open_counting(0, 0);
    uint8_t *p = malloc(MB);
    pgs_view *v;
    walk(p, MB, 8);
    put(s, "x", p, MB, 8);
    CHECK(freeze(s, "x") > 0);
    pgs_txn *t = begin(s);
    uint8_t *q = edit(t, "x", &v);
    for (size_t i = 0; i < MB; i += 4096) q[i] = p[i]; /* the values that are there */
    uint64_t version = pgs_store_version(s);
    CHECK_EQ(commit(t), version);
    pgs_view_unref(v);
    t = begin(s);
    q = edit(t, "x", &v);
    q[5] = p[5] = (uint8_t)(p[5] + 1);
    memset(q + 400000, 9, 300000);
    memset(p + 400000, 9, 300000);
    commit(t);
    pgs_view_unref(v);
    all_is_well(s, "x", p, MB);
    CHECK_OK(pgs_gc(s, &err));
    all_is_well(s, "x", p, MB);
    CHECK(freeze(s, "x") > 200000); /* two blocks are raw, two partly */
    CHECK_OK(pgs_gc(s, &err));
    all_is_well(s, "x", p, MB);
    free(p);
    pgs_store_unref(s);
}

TEST(a_transaction_that_began_before_conflicts_with_no_freeze_or_thaw)
{
    pgs_store *s = open_counting(0, 0);
    uint8_t *p = malloc(MB);
    walk(p, MB, 8);
    put(s, "x", p, MB, 8);
    for (int round = 0; round < 2; round++) {
        pgs_view *v, *w;
        pgs_txn *t = begin(s), *u = begin(s);
        uint8_t *q = edit(t, "x", &v), *r = edit(u, "x", &w);
        q[100] = p[100] = (uint8_t)(p[100] + 1);
        r[900000] = p[900000] = (uint8_t)(p[900000] + 1);
        if (round == 0)
            CHECK(freeze(s, "x") > 0);
        else
            CHECK(thaw(s, "x") > 0);
        commit(t);
        commit(u);
        pgs_view_unref(v);
        pgs_view_unref(w);
        all_is_well(s, "x", p, MB);
    }
    free(p);
    pgs_store_unref(s);
}

/* --- a model, for everything else -------------------------------------------------------------------------------------------------------------- */
#define KEYS 3
#define CAP (700 * 1024)
struct model_key {
    size_t n;
    uint8_t p[CAP];
};
struct model {
    struct model_key k[KEYS];
};
static const char *const names[KEYS] = {"a", "b", "c"};

static void compare(pgs_store *s, const struct model *m)
{
    for (int i = 0; i < KEYS; i++) {
        CHECK_EQ(exists(s, names[i]), m->k[i].n != 0);
        if (m->k[i].n) CHECK(head_is(s, names[i], m->k[i].p, m->k[i].n));
    }
}

static void change(pgs_store *s, struct model *m)
{
    int i = (int)below(KEYS), j = (int)below(KEYS);
    struct model_key *k = &m->k[i];
    pgs_txn *t = begin(s);
    pgs_view *v;
    int what = (int)below(6);
    if (k->n == 0 || what == 0) {
        k->n = 8 * (1 + below(CAP / 8));
        walk(k->p, k->n, 8);
        CHECK_OK(put_array(t, names[i], k->p, (int64_t)k->n / 8, 8));
    } else if (what == 1 && k->n + 80000 <= CAP) {
        size_t rows = 1 + below(10000);
        walk(k->p + k->n, rows * 8, 8);
        CHECK_OK(pgs_txn_append(t, KEY(names[i]), k->p + k->n, rows, &err));
        k->n += rows * 8;
    } else if (what == 2) {
        int64_t rows = 1 + (int64_t)below(CAP / 8);
        if ((size_t)rows * 8 > k->n) memset(k->p + k->n, 0, (size_t)rows * 8 - k->n);
        CHECK_OK(pgs_txn_resize(t, KEY(names[i]), &rows, 1, &err));
        k->n = (size_t)rows * 8;
    } else if (what == 3 && m->k[j].n && i != j) {
        CHECK_OK(pgs_txn_copy(t, NULL, KEY(names[j]), KEY(names[i]), NULL, &err));
        memcpy(k->p, m->k[j].p, m->k[j].n);
        k->n = m->k[j].n;
    } else if (what == 4 && below(3) == 0) {
        CHECK_OK(pgs_txn_delete(t, KEY(names[i]), &err));
        k->n = 0;
    } else {
        uint8_t *q = edit(t, names[i], &v);
        for (int pieces = 1 + (int)below(4); pieces > 0; pieces--) {
            size_t at = below(k->n), n = 1 + below(below(2) ? 100 : 60000);
            if (n > k->n - at) n = k->n - at;
            walk(k->p + at, n, 8);
            memcpy(q + at, k->p + at, n);
        }
        pgs_view_unref(v);
    }
    commit(t);
}

/* A version of before, with what it held. */
struct kept {
    pgs_snapshot *sn;
    struct model *m;
};
static void revert_one(pgs_store *s, struct model *m, struct kept *k)
{
    int i = (int)below(KEYS), j = (int)below(KEYS);
    if (!k->m->k[j].n) return;
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_copy(t, k->sn, KEY(names[j]), KEY(names[i]), NULL, &err));
    memcpy(&m->k[i], &k->m->k[j], sizeof m->k[i]);
    commit(t);
}
static void check_kept(struct kept *k)
{
    for (int i = 0; i < KEYS; i++) {
        struct pgs_object o;
        pgs_view *v;
        int rc = pgs_get(k->sn, KEY(names[i]), &o, NULL);
        CHECK_EQ(rc, k->m->k[i].n ? 0 : -PGS_ENOENT);
        if (rc) continue;
        CHECK_OK(pgs_view_open(k->sn, &o, 1, &v, &err));
        CHECK_EQ(pgs_view_size(v), k->m->k[i].n);
        CHECK(memcmp(pgs_view_data(v), k->m->k[i].p, k->m->k[i].n) == 0);
        pgs_view_unref(v);
    }
}

static void random_life(uint64_t with_seed, int steps)
{
    seed = with_seed * 7919;
    pgs_store *s = open_counting(below(4), 0);
    struct model *m = calloc(1, sizeof *m);
    struct kept kept[2] = {{NULL, calloc(1, sizeof *m)}, {NULL, calloc(1, sizeof *m)}};
    for (int step = 0; step < steps; step++) {
        struct kept *k = &kept[below(2)];
        int i = (int)below(KEYS);
        uint64_t bytes;
        switch (below(9)) {
        case 0:
        case 1:
        case 2:
            change(s, m);
            break;
        case 3:
        case 4:
            CHECK_EQ(pgs_freeze(s, KEY(names[i]), &bytes, NULL), m->k[i].n ? 0 : -PGS_ENOENT);
            break;
        case 5:
            if (below(2)) CHECK_EQ(pgs_thaw(s, KEY(names[i]), &bytes, NULL), m->k[i].n ? 0 : -PGS_ENOENT);
            break;
        case 6:
            if (k->sn) {
                check_kept(k);
                if (below(2)) revert_one(s, m, k);
                pgs_snapshot_unref(k->sn);
                k->sn = NULL;
            } else {
                CHECK_OK(pgs_snapshot_head(s, &k->sn, &err));
                memcpy(k->m, m, sizeof *m);
            }
            break;
        case 7:
            CHECK_OK(pgs_gc(s, &err));
            break;
        default:
            if (below(3) == 0) CHECK_OK(pgs_compact(s, &err));
            compare(s, m);
        }
        if (step % 8 == 7) check_store(s);
    }
    compare(s, m);
    for (int i = 0; i < 2; i++)
        if (kept[i].sn) {
            check_kept(&kept[i]);
            pgs_snapshot_unref(kept[i].sn);
        }
    for (int i = 0; i < KEYS; i++) (void)pgs_thaw(s, KEY(names[i]), NULL, NULL);
    compare(s, m);
    struct pgs_options none = {.history = PGS_HIST_COUNT, .history_value = 0};
    CHECK_OK(pgs__settings_apply(s->s, NULL, &none, &err));
    nothing_is_left(s);
    for (int i = 0; i < 2; i++) free(kept[i].m);
    free(m);
    pgs_store_unref(s);
}

TEST(random_lives_of_frozen_arrays_keep_every_byte_and_leak_no_page)
{
    for (uint64_t i = 1; i <= 12; i++) random_life(i, 60);
}

/* --- expiry ---------------------------------------------------------------------------------------------------------------------------------------- */
TEST(blocks_go_when_nobody_needs_a_page_of_them_and_not_before)
{
    pgs_store *s = open_counting(0, 0);
    uint8_t *p = malloc(MB);
    walk(p, MB, 8);
    put(s, "x", p, MB, 8);
    freeze(s, "x");
    uint64_t all = stat_of(s).compressed;
    pgs_snapshot *sn;
    struct pgs_object o;
    pgs_view *v;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_copy(t, NULL, KEY("x"), KEY("y"), NULL, &err));
    CHECK_OK(pgs_txn_delete(t, KEY("x"), &err));
    commit(t);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(stat_of(s).compressed, all);
    t = begin(s);
    CHECK_OK(pgs_txn_delete(t, KEY("y"), &err));
    commit(t);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(stat_of(s).compressed, all); /* sn */
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_OK(pgs_view_open(sn, &o, 1, &v, &err));
    CHECK(memcmp(pgs_view_data(v), p, MB) == 0);
    check_store(s);
    pgs_view_unref(v);
    pgs_snapshot_unref(sn);
    nothing_is_left(s);
    free(p);
    pgs_store_unref(s);
}

/* A dead run of very many blocks is released in steps. */
TEST(a_run_of_many_blocks_leaves_in_steps)
{
    pgs_store *s = open_counting(0, 0);
    size_t n = 24 * MB;
    uint8_t *p = calloc(1, n);
    for (size_t i = 0; i < n; i += 4096) p[i] = (uint8_t)(i >> 17);
    put(s, "x", p, n, 1);
    CHECK(freeze(s, "x") > 20 * MB);
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_delete(t, KEY("x"), &err));
    commit(t);
    uint64_t last = UINT64_MAX;
    for (int i = 0; i < 100 && stat_of(s).compressed; i++) {
        t = begin(s);
        CHECK_OK(put_bytes(t, "k", i % 2 ? "1" : "2"));
        commit(t);
        CHECK(stat_of(s).compressed <= last);
        last = stat_of(s).compressed;
        check_store(s);
    }
    nothing_is_left(s);
    free(p);
    pgs_store_unref(s);
}

/* --- little room ------------------------------------------------------------------------------------------------------------------------------------- */
TEST(a_store_that_is_nearly_full_freezes_all_the_same)
{
    pgs_store *s = open_counting(0, 32 * MB);
    size_t n = 27 * MB;
    uint8_t *p = malloc(n);
    walk(p, n, 8);
    put(s, "x", p, n, 8);
    uint64_t saved = freeze(s, "x");
    CHECK_OK(pgs_gc(s, &err));
    struct pgs_stat st = stat_of(s);
    printf("nearly full: saved %llu of %zu; live %llu\n", (unsigned long long)saved, n, (unsigned long long)st.live);
    CHECK(saved > n / 3);
    CHECK(st.live < n * 2 / 3);
    all_is_well(s, "x", p, n);
    int rc = pgs_thaw(s, KEY("x"), &saved, NULL);
    CHECK(rc == 0 || rc == -PGS_EFULL);
    all_is_well(s, "x", p, n);
    free(p);
    pgs_store_unref(s);
}

/* --- several at once --------------------------------------------------------------------------------------------------------------------------------- */
struct race {
    pgs_store *s;
    _Atomic int stop;
    uint64_t n_freezes;
};
static void *freeze_and_thaw(void *arg)
{
    struct race *r = arg;
    while (!atomic_load(&r->stop)) {
        struct pgs_error e = {0};
        uint64_t bytes;
        int rc = pgs_freeze(r->s, KEY("x"), &bytes, &e);
        if (rc == 0) rc = pgs_thaw(r->s, KEY("x"), &bytes, &e);
        if (rc) TEST_FAIL("%s", e.text);
        r->n_freezes++;
    }
    return NULL;
}

TEST(writers_and_freezers_do_not_disturb_each_other)
{
    pgs_store *s = open_counting(2, 0);
    struct race r = {.s = s};
    uint8_t *p = malloc(MB);
    pthread_t thread;
    walk(p, MB, 8);
    put(s, "x", p, MB, 8);
    pid_t pid = fork();
    if (pid == 0) { /* the same from another process */
        struct pgs_error e = {0};
        for (int i = 0; i < 10; i++) {
            uint64_t bytes;
            if (pgs_freeze(s, KEY("x"), &bytes, &e) || pgs_thaw(s, KEY("x"), &bytes, &e))
                TEST_FAIL("child: %s", e.text);
        }
        _exit(0);
    }
    CHECK_EQ(pthread_create(&thread, NULL, freeze_and_thaw, &r), 0);
    for (int i = 0; i < 40; i++) {
        pgs_view *v;
        pgs_txn *t = begin(s);
        uint8_t *q = edit(t, "x", &v);
        size_t at = below(MB - 5000), n = 1 + below(5000);
        walk(p + at, n, 8);
        memcpy(q + at, p + at, n);
        commit(t);
        pgs_view_unref(v);
        CHECK(head_is(s, "x", p, MB));
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    atomic_store(&r.stop, 1);
    pthread_join(thread, NULL);
    CHECK(r.n_freezes > 0);
    all_is_well(s, "x", p, MB);
    free(p);
    pgs_store_unref(s);
}

TEST(a_death_anywhere_in_a_freeze_or_a_thaw_loses_nothing)
{
    static const char *const points[] = {"freeze_made", "commit_locked", "commit_written", "commit_unlocked"};
    uint8_t *p = malloc(MB);
    walk(p, MB, 8);
    pgs_store *s = open_counting(0, 0);
    put(s, "x", p, MB, 8);
    for (int thawing = 0; thawing < 2; thawing++)
        for (size_t i = 0; i < PGS_ARRAY_LEN(points); i++) {
            if (thawing) (void)freeze(s, "x");
            pid_t pid = fork();
            if (pid == 0) {
                setenv("PAGESTONE_KILL", points[i], 1);
                (void)(thawing ? pgs_thaw(s, KEY("x"), NULL, NULL) : pgs_freeze(s, KEY("x"), NULL, NULL));
                _exit(0);
            }
            int status;
            CHECK_EQ(waitpid(pid, &status, 0), pid);
            if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) TEST_FAIL("%s was not visited", points[i]);
            all_is_well(s, "x", p, MB);
            CHECK_OK(pgs_gc(s, &err));
            all_is_well(s, "x", p, MB);
            (void)thaw(s, "x");
            nothing_is_left(s);
        }
    free(p);
    pgs_store_unref(s);
}

/* --- failing calls --------------------------------------------------------------------------------------------------------------------------------------- */
static void fail_everywhere(enum pgs__fail_kind kind, int errno_value)
{
    size_t n = 300000;
    uint8_t *p = malloc(n);
    walk(p, n, 4);
    for (int thawing = 0; thawing < 2; thawing++) {
        pgs_store *s = open_counting(0, 0);
        put(s, "x", p, n, 4);
        if (thawing) (void)freeze(s, "x");
        int clean = 0;
        for (uint64_t nth = 1; nth < 300 && clean < 3; nth++) {
            uint64_t bytes;
            struct pgs_error e = {0};
            pgs__inject_fail(kind, nth, errno_value, false);
            uint64_t before = pgs__inject_count(kind);
            int rc = thawing ? pgs_thaw(s, KEY("x"), &bytes, &e) : pgs_freeze(s, KEY("x"), &bytes, &e);
            uint64_t calls = pgs__inject_count(kind) - before;
            pgs__inject_clear();
            clean = calls < nth ? clean + 1 : 0;
            if (rc && e.text[0] == 0) TEST_FAIL("error %d without a text", rc);
            if (rc == -PGS_EREADONLY || rc == -PGS_ECORRUPT || rc == -PGS_EBUG)
                TEST_FAIL("call %llu: %d %s", (unsigned long long)nth, rc, e.text);
            if (nth % 4 == 0 || rc) all_is_well(s, "x", p, n);
            if (rc == 0) {
                if (thawing)
                    CHECK_OK(pgs_freeze(s, KEY("x"), &bytes, &err));
                else
                    CHECK_OK(pgs_thaw(s, KEY("x"), &bytes, &err));
            }
        }
        CHECK(clean > 0);
        (void)thaw(s, "x");
        nothing_is_left(s);
        CHECK(head_is(s, "x", p, n));
        pgs_store_unref(s);
    }
    free(p);
}

TEST(a_full_disk_at_any_call_is_an_error_and_nothing_more)
{
    fail_everywhere(PGS__FAIL_FILE, ENOSPC);
}
TEST(no_memory_at_any_call_is_an_error_and_nothing_more)
{
    fail_everywhere(PGS__FAIL_MEM, ENOMEM);
}
TEST(a_failing_device_at_any_call_is_an_error_and_nothing_more)
{
    fail_everywhere(PGS__FAIL_FILE, EIO);
}

/* --- damage ------------------------------------------------------------------------------------------------------------------------------------------------ */
struct first_block {
    uint64_t slot;
    struct pgs__cold_block b;
    bool found;
};
static int take_first(void *ctx, uint64_t slot, const struct pgs__cold_block *b, struct pgs_error *damage)
{
    struct first_block *f = ctx;
    (void)damage;
    if (!f->found && b) *f = (struct first_block){slot, *b, true};
    return 0;
}
static struct first_block first_block(pgs_store *s)
{
    struct first_block f = {0};
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s->s, &l, &err));
    CHECK_OK(pgs__ledger_cold_walk(&l, take_first, &f, &err));
    pgs__meta_end(s->s, &l);
    CHECK(f.found);
    return f;
}

static int problems;
static char problem_object[64], problem_text[500];
static int note_problem(void *ctx, const char *object, const char *problem)
{
    (void)ctx;
    if (problems++ == 0) {
        snprintf(problem_object, sizeof problem_object, "%s", object);
        snprintf(problem_text, sizeof problem_text, "%s", problem);
    }
    return 0;
}
static int check_finds(pgs_store *s)
{
    struct pgs_check_report r;
    problems = 0;
    CHECK_OK(pgs_check(s, 1, note_problem, NULL, &r, &err));
    CHECK_EQ(problems, r.n_errors);
    return problems;
}

TEST(damage_of_any_byte_of_a_block_is_found_by_copies_check_and_prefetch)
{
    pgs_store *s = open_counting(3, 0);
    size_t n = 65536;
    uint8_t *p = malloc(n), *q = malloc(n), page[PGS_PAGE_SIZE];
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(i / 500 + (below(80) == 0));
    put(s, "x", p, n, 8);
    put(s, "other", "some bytes that are long enough to be stored in a page of their own, or inline", 40, 8);
    CHECK(freeze(s, "x") > 0);
    struct first_block f = first_block(s);
    struct pgs__pagefile *pf = &s->s->pf;
    pgs_snapshot *sn;
    struct pgs_object o;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    struct pgs__object obj;
    CHECK_OK(
        pgs__object_decode(pf, (struct pgs_span){KEY("x")}, (struct pgs_span){o.record, o.record_len}, &obj, &err));
    size_t unseen = 0;
    for (size_t i = 0; i < f.b.z_bytes; i++) {
        struct pgs_pgno at = {f.b.page + i / PGS_PAGE_SIZE};
        memcpy(page, pgs__page(pf, at), sizeof page);
        page[i % PGS_PAGE_SIZE] ^= 0x10;
        CHECK_OK(pgs__pages_write(pf, at, page, 1, &err));
        int rc = pgs__content_read(pf, &obj.content, 0, q, n, NULL);
        if (rc == 0) {
            CHECK(memcmp(p, q, n) == 0); /* a bit of the frame's header that means nothing */
            unseen++;
        } else
            CHECK_EQ(rc, -PGS_ECORRUPT);
        if (i % 97 == 50 && rc) {
            CHECK_EQ(check_finds(s), 1);
            if (strcmp(problem_object, "x") != 0) TEST_FAIL("named '%s': %s", problem_object, problem_text);
            CHECK_ERR(pgs_prefetch(sn, &o, 0, n, NULL), PGS_ECORRUPT);
            pgs_view *v;
            CHECK_ERR(pgs_view_open(sn, &o, 1, &v, NULL), PGS_ECORRUPT);
            size_t len;
            static uint8_t block[PGS_COLD_BLOCK];
            CHECK_ERR(pgs_cold_read(s, f.slot, block, &len, NULL), PGS_ECORRUPT);
            CHECK_ERR(pgs_thaw(s, KEY("x"), NULL, NULL), PGS_ECORRUPT);
        }
        page[i % PGS_PAGE_SIZE] ^= 0x10;
        CHECK_OK(pgs__pages_write(pf, at, page, 1, &err));
    }
    if (unseen * 50 > f.b.z_bytes) TEST_FAIL("%zu of %u bytes changed nothing", unseen, f.b.z_bytes);
    CHECK_OK(pgs_prefetch(sn, &o, 0, n, &err));
    pgs_snapshot_unref(sn);
    all_is_well(s, "x", p, n);
    free(p);
    free(q);
    pgs_store_unref(s);
}

/* A commit that puts this value under 'z' slot, or takes it away. */
static void plant(pgs_store *s, uint64_t slot, const struct pgs__cold_block *b, bool gone)
{
    struct pgs__commit c;
    uint8_t key[PGS__KEY_MAX];
    CHECK_OK(pgs__commit_begin(&c, s->s, NULL, &err));
    CHECK_OK(pgs__commit_start(&c, false, &err));
    size_t len = pgs__meta_key1(key, 'z', slot);
    if (gone)
        CHECK_OK(pgs__meta_del(&c.l.meta, key, len, &err));
    else
        CHECK_OK(pgs__meta_put(&c.l.meta, key, len, b, sizeof *b, &err));
    CHECK_OK(pgs__commit_end(&c, NULL, &err));
}

TEST(a_table_that_is_wrong_is_found_and_believed_nowhere)
{
    pgs_store *s = open_counting(0, 0);
    size_t n = 300000;
    uint8_t *p = malloc(n), *q = malloc(n);
    walk(p, n, 4);
    put(s, "x", p, n, 4);
    CHECK(freeze(s, "x") > 0);
    struct first_block f = first_block(s);
    struct pgs__cold_block b;
#define WITH(change)                                                                                                   \
    b = f.b;                                                                                                           \
    change;                                                                                                            \
    plant(s, f.slot, &b, false);                                                                                       \
    CHECK(check_finds(s) > 0);                                                                                         \
    printf("%s: %s\n", #change, problem_text)
    WITH(b.live--);
    WITH(b.itemsize = 8);
    WITH(b.xxh++);
    WITH(b.z_bytes -= 5000);
    WITH(b.n_bytes -= 4096);
    WITH(b.n_bytes = 200000);
    WITH(b.codec = 9);
    WITH(b.page = 1ull << 40);
    WITH(b.page = 0);
    WITH(b.birth = 1u << 30);
    plant(s, f.slot, &f.b, true);
    CHECK(check_finds(s) > 0);
    struct pgs_object o;
    pgs_snapshot *sn;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_ERR(pgs_prefetch(sn, &o, 0, n, NULL), PGS_ECORRUPT);
    pgs_snapshot_unref(sn);
    plant(s, f.slot, &f.b, false);
    all_is_well(s, "x", p, n);
    free(p);
    free(q);
    pgs_store_unref(s);
}

/* --- reaching blocks ------------------------------------------------------------------------------------------------------------------------------------------ */
TEST(blocks_are_read_by_their_slot)
{
    pgs_store *s = open_counting(0, 0);
    size_t n = 300000, len;
    uint8_t *p = malloc(n), *q = malloc(PGS_COLD_BLOCK);
    walk(p, n, 4);
    put(s, "x", p, n, 4);
    CHECK_ERR(pgs_cold_read(s, 0, q, &len, NULL), PGS_EINVAL);
    freeze(s, "x");
    struct first_block f = first_block(s);
    for (uint64_t i = 0; i < 3; i++) {
        size_t want = i < 2 ? PGS_COLD_BLOCK : 40960; /* whole pages */
        CHECK_OK(pgs_cold_read(s, f.slot + i, q, &len, &err));
        CHECK_EQ(len, want);
        size_t used = i < 2 ? want : n - 2 * PGS_COLD_BLOCK;
        CHECK(memcmp(q, p + i * PGS_COLD_BLOCK, used) == 0);
    }
    CHECK_ERR(pgs_cold_read(s, f.slot + 3, q, &len, NULL), PGS_ENOENT);
    CHECK_ERR(pgs_cold_read(s, UINT64_MAX, q, &len, NULL), PGS_EINVAL);
    thaw(s, "x");
    CHECK_OK(pgs_gc(s, &err));
    CHECK_ERR(pgs_cold_read(s, f.slot, q, &len, NULL), PGS_ENOENT);
    freeze(s, "x");
    CHECK_EQ(first_block(s).slot, f.slot + 2 * PGS__COLD_GROUP); /* numbers are not given out again */
    free(p);
    free(q);
    pgs_store_unref(s);
}

TEST(a_store_on_disk_is_cold_when_it_is_opened_again_and_for_readers)
{
    char dir[64] = "/tmp/pagestone-cold-XXXXXX", path[80], file[100];
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/s.ps", dir);
    struct pgs_options o = {.mode = PGS_MODE_X, .checksums = 1}, r = {.mode = PGS_MODE_R};
    size_t n = 500000;
    uint8_t *p = malloc(n);
    pgs_store *s;
    walk(p, n, 4);
    CHECK_OK(pgs_open(path, &o, &s, &err));
    put(s, "x", p, n, 4);
    CHECK(freeze(s, "x") > 0);
    pgs_store_unref(s);
    for (int i = 0; i < 2; i++) { /* 1: without permission to write, where that says anything */
        if (i) {
            snprintf(file, sizeof file, "%s/pages", path);
            CHECK_EQ(chmod(file, 0400), 0);
        }
        CHECK_OK(pgs_open(path, &r, &s, &err));
        CHECK(stat_of(s).compressed > 0);
        all_is_well(s, "x", p, n);
        CHECK_ERR(pgs_freeze(s, KEY("x"), NULL, NULL), PGS_EREADONLY);
        pgs_store_unref(s);
    }
    CHECK_EQ(chmod(file, 0600), 0);
    o.mode = PGS_MODE_RPLUS;
    CHECK_OK(pgs_open(path, &o, &s, &err));
    CHECK(thaw(s, "x") > 0);
    all_is_well(s, "x", p, n);
    struct pgs_check_report report;
    CHECK_OK(pgs_check(s, 1, say_problem, NULL, &report, &err));
    CHECK_EQ(report.n_pages_unverified, 0); /* thawed pages have checksums again */
    pgs_store_unref(s);
    static const char *const files[] = {"pages", "control"};
    for (int i = 0; i < 2; i++) {
        snprintf(file, sizeof file, "%s/%s", path, files[i]);
        unlink(file);
    }
    rmdir(path);
    rmdir(dir);
    free(p);
}

/* --- the policy ------------------------------------------------------------------------------------------------------------------------------------------- */
static uint64_t cold_bytes(pgs_store *s, const char *key)
{
    pgs_snapshot *sn;
    struct pgs_object o;
    uint64_t cold, packed;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY(key), &o, &err));
    CHECK_OK(pgs_cold_size(sn, &o, &cold, &packed, &err));
    pgs_snapshot_unref(sn);
    return cold;
}

TEST(what_is_old_is_frozen_by_gc_once)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .freeze_ns = 300000000};
    struct pgs_info info;
    size_t n = 2 * MB;
    uint8_t *p = malloc(n);
    char key[16];
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    CHECK_OK(pgs_store_info(s, &info, &err));
    CHECK_EQ(info.freeze_ns, 300000000);
    walk(p, n, 8);
    for (int i = 0; i < 5; i++) {
        snprintf(key, sizeof key, "old%d", i);
        put(s, key, p, n, 8);
    }
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)rnd();
    put(s, "noise", p, n, 8);
    walk(p, n, 8);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(stat_of(s).compressed, 0); /* too young */
    usleep(350000);
    put(s, "new", p, n, 8);
    uint64_t version = pgs_store_version(s);
    CHECK_OK(pgs_gc(s, &err));
    for (int i = 0; i < 5; i++) {
        snprintf(key, sizeof key, "old%d", i);
        CHECK_EQ(cold_bytes(s, key), n);
    }
    CHECK_EQ(cold_bytes(s, "noise"), 0);
    CHECK_EQ(cold_bytes(s, "new"), 0);
    CHECK_EQ(pgs_store_version(s), version);
    thaw(s, "old3");
    usleep(350000);
    put(s, "newer", p, n, 8);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(cold_bytes(s, "new"), n);
    CHECK_EQ(cold_bytes(s, "old3"), 0); /* as somebody wanted it */
    put(s, "old3", p, n, 8);
    o.freeze_ns = UINT64_MAX;
    CHECK_OK(pgs__settings_apply(s->s, &s->wait, &o, &err));
    usleep(350000);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(cold_bytes(s, "old3"), 0);
    CHECK_EQ(cold_bytes(s, "newer"), 0);
    CHECK_OK(pgs_store_info(s, &info, &err));
    CHECK_EQ(info.freeze_ns, 0);
    o.freeze_ns = 1000;
    CHECK_OK(pgs__settings_apply(s->s, &s->wait, &o, &err));
    usleep(10000);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(cold_bytes(s, "old3"), n);
    all_is_well(s, "newer", p, n);
    pgs_store_unref(s);
    free(p);
}

TEST(a_pass_goes_on_where_it_stopped)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .freeze_ns = 1000};
    size_t n = 3 * MB;
    uint8_t *p = malloc(n);
    bool more = true;
    int steps = 0;
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    walk(p, n, 8);
    put(s, "a", p, n, 8);
    put(s, "b", p, n, 8);
    put(s, "c", p, 5000, 8);
    usleep(10000);
    for (; more; steps++) {
        CHECK_OK(pgs__policy_step(s->s, &s->wait, MB, &more, &err));
        if (steps == 0) {
            uint64_t cold = cold_bytes(s, "a");
            CHECK(cold >= MB && cold < 2 * MB);
        }
        if (steps == 3) put(s, "b", p, n, 8); /* changed while a part of it is cold */
        CHECK(steps < 20);
    }
    CHECK_EQ(cold_bytes(s, "a"), n);
    CHECK_EQ(cold_bytes(s, "b"), 0);
    usleep(10000);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(cold_bytes(s, "b"), n);
    all_is_well(s, "a", p, n);
    all_is_well(s, "b", p, n);
    pgs_store_unref(s);
    free(p);
}

TEST(who_commits_and_who_closes_freezes_what_is_old)
{
    pgs_store *s, *other;
    struct pgs_options o = {.mode = PGS_MODE_A, .freeze_ns = 1000};
    size_t n = MB;
    uint8_t *p = malloc(n);
    char handle[4096];
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    walk(p, n, 8);
    put(s, "a", p, n, 8);
    usleep(10000);
    put(s, "b", p, n, 8);
    CHECK_EQ(cold_bytes(s, "a"), 0); /* once a minute, and not at first */
    s->s->policy.next_ns = 1;
    put(s, "b", p, n, 8);
    CHECK_EQ(cold_bytes(s, "a"), n);
    size_t len = pgs_store_handle(s, handle, sizeof handle);
    usleep(10000);
    o.freeze_ns = 0;
    CHECK_OK(pgs_open_handle(handle, len, &o, &other, &err));
    pgs_store_unref(other);
    CHECK_EQ(cold_bytes(s, "b"), n);
    all_is_well(s, "b", p, n);
    pgs_store_unref(s);
    free(p);
}

TEST(where_the_log_ends_a_mark_says_what_is_old)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .freeze_ns = 200000000, .history = PGS_HIST_COUNT};
    struct pgs__ledger l;
    struct pgs__policy policy;
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    CHECK_OK(pgs__meta_begin(s->s, &l, &err));
    CHECK_OK(pgs__policy_get(&l, &policy, &err));
    pgs__meta_end(s->s, &l);
    CHECK(policy.mark_ns > 0 && policy.done == 0);
    usleep(250000);
    uint8_t *p = malloc(MB);
    walk(p, MB, 8);
    put(s, "a", p, MB, 8);
    CHECK_OK(pgs_gc(s, &err)); /* nothing is old; the mark is: a new one */
    CHECK_OK(pgs__meta_begin(s->s, &l, &err));
    CHECK_OK(pgs__policy_get(&l, &policy, &err));
    pgs__meta_end(s->s, &l);
    CHECK_EQ(policy.mark_version, pgs_store_version(s));
    CHECK_EQ(cold_bytes(s, "a"), 0);
    pgs_store_unref(s);
    free(p);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
