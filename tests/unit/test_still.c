/* Pagestone | tests/unit/test_still — what stands still while everything around it moves.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Edits whose pages were moved under them, snapshots that outlive everything, memory of a transaction that ends while threads write, and descriptors that became another file's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "libshm/platform/file.h"
#include "tests/unit/txn_testing.h"

#define N ((int64_t)3 << 20)

static uint8_t *filled(int byte)
{
    uint8_t *p = malloc((size_t)N);
    memset(p, byte, (size_t)N);
    return p;
}

static void put_one(pgs_store *s, const char *key, const uint8_t *p)
{
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, key, p, N, 1));
    commit(t);
}

static pgs_store *without_history(void)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 0, .checksums = 1};
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    return s;
}

/* In pieces, and with low pages free: something for compact to do. */
static void scatter(pgs_store *s, uint8_t *want)
{
    uint8_t *other = filled(5);
    for (int i = 0; i < 4; i++) put_one(s, "low", other);
    put_one(s, "x", want);
    for (int round = 0; round < 3; round++) {
        pgs_view *v;
        pgs_txn *t = begin(s);
        uint8_t *p = edit(t, "x", &v);
        for (int64_t i = round * 5000; i < N; i += 70000) want[i] = p[i] = (uint8_t)(i + round);
        commit(t);
        pgs_view_unref(v);
    }
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_delete(t, KEY("low"), &err));
    commit(t);
    free(other);
}

static uint64_t first_page(pgs_store *s, const char *key)
{
    struct pgs_object o;
    pgs_view *v = open_head(s, key, &o);
    uint64_t at = (uint64_t)(uintptr_t)pgs_view_data(v);
    pgs_view_unref(v);
    return at;
}

TEST(edits_of_pages_that_compact_moved_land_on_the_new_ones)
{
    pgs_store *s = without_history();
    uint8_t *want = filled(1);
    scatter(s, want);
    for (int how = 0; how < 4; how++) { /* edit, append, move, delete */
        pgs_view *v = NULL;
        pgs_txn *t = begin(s);
        uint8_t *p = how < 2 ? edit(t, "x", &v) : NULL;
        uint8_t row = 9;
        if (how == 1) CHECK_OK(pgs_txn_append(t, KEY("x"), &row, 1, &err));
        if (how == 2) CHECK_OK(pgs_txn_move(t, KEY("x"), KEY("y"), &err));
        if (how == 3) CHECK_OK(pgs_txn_delete(t, KEY("y"), &err));
        uint64_t before = first_page(s, how < 3 ? "x" : "y");
        CHECK_OK(pgs_compact(s, &err));
        for (int64_t i = 100; p && i < N; i += 123457) want[i] = p[i] = (uint8_t)(200 + how);
        commit(t);
        if (v) pgs_view_unref(v);
        check_store(s);
        if (how == 0) {
            CHECK(first_page(s, "x") != before);
            CHECK(head_is(s, "x", want, (size_t)N));
            scatter(s, want);
        } else if (how == 1) {
            want = realloc(want, (size_t)N + 1);
            want[N] = row;
            CHECK(head_is(s, "x", want, (size_t)N + 1));
        } else if (how == 2) {
            CHECK(head_is(s, "y", want, (size_t)N + 1));
        }
        CHECK_OK(pgs_gc(s, &err));
        check_store(s);
    }
    struct pgs_stat st;
    CHECK_OK(pgs_stat(s, &st, &err));
    CHECK_EQ(st.objects, 0);
    CHECK_EQ(st.history, 0);
    pgs_store_unref(s);
    free(want);
}

TEST(copies_of_pages_that_compact_moved_are_the_old_bytes)
{
    pgs_store *s = without_history();
    uint8_t *want = filled(1);
    pgs_snapshot *sn;
    scatter(s, want);
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_copy(t, sn, KEY("x"), KEY("z"), NULL, &err));
    CHECK_OK(pgs_compact(s, &err)); /* the source's pages are dead now, and revive */
    commit(t);
    pgs_snapshot_unref(sn);
    for (int i = 0; i < 3; i++) CHECK_OK(pgs_gc(s, &err));
    CHECK(head_is(s, "x", want, (size_t)N));
    CHECK(head_is(s, "z", want, (size_t)N));
    check_store(s);
    pgs_store_unref(s);
    free(want);
}

TEST(a_snapshot_of_the_head_stands_still_for_a_thousand_commits_without_history)
{
    pgs_store *s = without_history();
    uint8_t *want = filled(7), small[3000], text[400];
    struct pgs_object o, named;
    pgs_snapshot *sn;
    pgs_view *v;
    put_one(s, "x", want);
    pgs_txn *t = begin(s);
    memset(small, 8, sizeof small);
    memset(text, 'a', sizeof text);
    CHECK_OK(put_array(t, "small", small, sizeof small, 1));
    commit(t);
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_OK(pgs_view_open(sn, &o, 0, &v, &err));
    for (int i = 0; i < 1000; i++) {
        char key[16];
        pgs_view *e;
        t = begin(s);
        memset(small, i, sizeof small);
        snprintf(key, sizeof key, "k%d", i % 40);
        CHECK_OK(put_array(t, "small", small, sizeof small, 1));
        CHECK_OK(put_array(t, key, small, 100 + i % 2000, 1));
        uint8_t *p = edit(t, "x", &e);
        for (int64_t at = i * 4099; at < N; at += 1 << 19) p[at]++;
        commit(t);
        pgs_view_unref(e);
        if (i % 100 == 50) CHECK_OK(pgs_compact(s, &err));
        if (i % 100 == 0) CHECK(memcmp(pgs_view_data(v), want, (size_t)N) == 0);
    }
    CHECK(memcmp(pgs_view_data(v), want, (size_t)N) == 0);
    pgs_view *w;
    CHECK_OK(pgs_get(sn, KEY("small"), &named, &err));
    CHECK_OK(pgs_view_open(sn, &named, 1, &w, &err));
    memset(small, 8, sizeof small);
    CHECK(pgs_view_size(w) == sizeof small && memcmp(pgs_view_data(w), small, sizeof small) == 0);
    CHECK_ERR(pgs_get(sn, KEY("k1"), &named, NULL), PGS_ENOENT);
    check_store(s);
    pgs_view_unref(w);
    pgs_snapshot_unref(sn);
    CHECK(memcmp(pgs_view_data(v), want, (size_t)N) == 0); /* the view has a pin of its own */
    pgs_view_unref(v);
    pgs_store_unref(s);
    free(want);
}

/* --- threads that do not know that the transaction ended ---------------------------------------------------------------------------- */
struct scribbler {
    uint8_t *p;
    _Atomic int stop, rounds;
};
__attribute__((no_sanitize("thread"))) static void *scribble(void *arg) /* races on purpose */
{
    struct scribbler *b = arg;
    for (uint8_t k = 1; !atomic_load(&b->stop); k++) {
        for (int64_t i = 0; i < N; i += 512) b->p[i] = k;
        atomic_fetch_add(&b->rounds, 1);
    }
    return NULL;
}

TEST(threads_that_write_into_fresh_memory_while_its_transaction_ends_reach_nothing)
{
    pgs_store *s = without_history();
    uint8_t *keep = filled(3);
    for (int round = 0; round < 12; round++) {
        struct pgs_type type = type_of(N, 1);
        struct scribbler b = {0};
        pthread_t th;
        pgs_view *v;
        pgs_txn *t = begin(s);
        CHECK_OK(pgs_txn_empty(t, KEY("e"), &type, &v, &err));
        b.p = pgs_view_data(v);
        CHECK(pthread_create(&th, NULL, scribble, &b) == 0);
        while (atomic_load(&b.rounds) < 2) usleep(100);
        if (round % 2) {
            CHECK_OK(pgs_txn_abort(t, &err));
        } else {
            CHECK_OK(pgs_txn_commit(t, NULL, NULL, &err));
        }
        pgs_txn_unref(t);
        struct pgs_object o;
        pgs_view *h = round % 2 ? NULL : open_head(s, "e", &o);
        uint8_t *was = h ? malloc((size_t)N) : NULL;
        if (h) memcpy(was, pgs_view_data(h), (size_t)N);
        put_one(s, "keep", keep); /* into the pages that an abort gave back */
        int seen = atomic_load(&b.rounds);
        while (atomic_load(&b.rounds) < seen + 2) usleep(100);
        CHECK(head_is(s, "keep", keep, (size_t)N));
        if (h) CHECK(memcmp(was, pgs_view_data(h), (size_t)N) == 0);
        check_store(s); /* page checksums, too */
        atomic_store(&b.stop, 1);
        pthread_join(th, NULL);
        if (h) pgs_view_unref(h);
        free(was);
        pgs_view_unref(v);
        t = begin(s);
        if (!(round % 2)) CHECK_OK(pgs_txn_delete(t, KEY("e"), &err));
        commit(t);
    }
    pgs_store_unref(s);
    free(keep);
}

/* --- descriptors -------------------------------------------------------------------------------------------------------------------------- */
#define FOREIGN 40

TEST(no_foreign_file_is_written_or_punched_under_a_number_that_was_ours)
{
    char dir[] = "/dev/shm/pgs-still-XXXXXX", store[64], name[64], cmd[96];
    CHECK(mkdtemp(dir));
    snprintf(store, sizeof store, "%s/s.ps", dir);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 0};
    CHECK_OK(pgs_open(store, &o, &s, &err));
    uint8_t *want = filled(4), *foreign = filled(99), *got = filled(0);
    put_one(s, "x", want);
    for (int round = 0; round < 5; round++) {
        int fds[FOREIGN];
        pgs_view *v = NULL;
        pgs_txn *t = begin(s);
        struct pgs_type type = type_of(N, 1);
        if (round == 1) memset(edit(t, "x", &v), 44, 9000);
        if (round == 2) CHECK_OK(pgs_txn_empty(t, KEY("e"), &type, &v, &err));
        for (int fd = 3; fd < 3 + FOREIGN; fd++) close(fd);
        for (int i = 0; i < FOREIGN; i++) {
            snprintf(name, sizeof name, "%s/f%d", dir, i);
            fds[i] = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
            CHECK(fds[i] >= 3 && pwrite(fds[i], foreign, (size_t)N, 0) == N);
        }
        if (round == 0) CHECK_OK(put_array(t, "big", want, N, 1));
        if (round == 1) memset(want, 44, 9000);
        if (round == 3) CHECK_OK(pgs_txn_delete(t, KEY("big"), &err));
        commit(t);
        if (v) pgs_view_unref(v);
        if (round >= 3) CHECK_OK(pgs_gc(s, &err)); /* punches */
        CHECK(head_is(s, "x", want, (size_t)N));
        check_store(s);
        for (int i = 0; i < FOREIGN; i++) {
            snprintf(name, sizeof name, "%s/f%d", dir, i);
            int fd = open(name, O_RDONLY);
            CHECK(fd >= 0 && lseek(fd, 0, SEEK_END) == N && pread(fd, got, (size_t)N, 0) == N);
            CHECK(memcmp(got, foreign, (size_t)N) == 0);
            close(fd);
        }
    }
    pgs_store_unref(s);
    CHECK(system(cmd) == 0);
    free(want);
    free(foreign);
    free(got);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
