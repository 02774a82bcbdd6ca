/* Pagestone | tests/mp/test_txn_mp — transactions of several processes: nothing is lost, nothing is torn.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <sys/stat.h>

#include "tests/unit/txn_testing.h"

static char path[64];

static pgs_store *open_path(void)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .timeout_ns = -1};
    CHECK_OK(pgs_open(path, &o, &s, &err));
    return s;
}

static void new_path(const char *name)
{
    snprintf(path, sizeof path, "/dev/shm/pgs-test-%s-%d.ps", name, (int)getpid());
}

static void remove_path(void)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf %s", path);
    CHECK_EQ(system(cmd), 0);
}

/* n children, each with its own open. All must end well. */
static void in_children(int n, void (*fn)(int i))
{
    pid_t pid[16];
    for (int i = 0; i < n; i++) {
        fflush(NULL);
        pid[i] = fork();
        if (pid[i] == 0) {
            fn(i);
            exit(0);
        }
    }
    for (int i = 0; i < n; i++) {
        int status;
        CHECK_EQ(waitpid(pid[i], &status, 0), pid[i]);
        CHECK_EQ(status, 0);
    }
}

static void increment(int i)
{
    pgs_store *s = open_path();
    (void)i;
    for (int done = 0; done < 300;) {
        pgs_txn *t = begin(s);
        pgs_view *v;
        CHECK_OK(pgs_txn_depends(t, KEY("n"), 0, 0, &err));
        ((int64_t *)(void *)edit(t, "n", &v))[0]++;
        memset(&err, 0, sizeof err);
        int rc = pgs_txn_commit(t, NULL, NULL, &err);
        if (rc == 0)
            done++;
        else if (rc != -PGS_ECONFLICT)
            TEST_FAIL("%d: %s", rc, err.text);
        pgs_view_unref(v);
        pgs_txn_unref(t);
    }
    pgs_store_unref(s);
}
TEST(increments_by_four_processes_are_not_lost)
{
    new_path("inc");
    pgs_store *s = open_path();
    int64_t n = 0;
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "n", &n, 1, 8));
    commit(t);
    in_children(4, increment);
    n = 1200;
    CHECK(head_is(s, "n", &n, 8));
    CHECK_EQ(pgs_store_version(s), 1201);
    check_store(s);
    pgs_store_unref(s);
    remove_path();
}

/* Each process appends (process, count) pairs; sizes make pages split records. */
struct row {
    int32_t who, count, pad;
};
static void append(int i)
{
    pgs_store *s = open_path();
    for (int k = 0; k < 100;) {
        struct row rows[40];
        int n = 1 + k % 37;
        if (n > 100 - k) n = 100 - k;
        for (int j = 0; j < n; j++) rows[j] = (struct row){i, k + j, 7};
        pgs_txn *t = begin(s);
        CHECK_OK(pgs_txn_append(t, KEY("log"), rows, (uint64_t)n, &err));
        CHECK_OK(pgs_txn_commit(t, NULL, NULL, &err));
        int64_t at;
        CHECK_OK(pgs_txn_landed(t, KEY("log"), &at, &err));
        pgs_txn_unref(t);
        struct pgs_object o;
        pgs_view *v = open_head(s, "log", &o);
        CHECK(memcmp((struct row *)pgs_view_data(v) + at, rows, (size_t)n * sizeof *rows) == 0);
        pgs_view_unref(v);
        k += n;
    }
    pgs_store_unref(s);
}
TEST(appends_by_processes_all_land)
{
    new_path("app");
    pgs_store *s = open_path();
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "log", NULL, 0, sizeof(struct row)));
    commit(t);
    in_children(3, append);
    struct pgs_object o;
    pgs_view *v = open_head(s, "log", &o);
    struct row *r = pgs_view_data(v);
    int next[3] = {0};
    CHECK_EQ(o.type.shape[0], 300);
    for (int i = 0; i < 300; i++) {
        CHECK(r[i].who >= 0 && r[i].who < 3 && r[i].pad == 7);
        CHECK_EQ(r[i].count, next[r[i].who]++);
    }
    pgs_view_unref(v);
    check_store(s);
    pgs_store_unref(s);
    remove_path();
}

/* ZODB's race tests in spirit: a == b, written together, in two arrays and in two names. */
#define SPREAD 3000
static void keep_equal(int i)
{
    pgs_store *s = open_path();
    int64_t text[2];
    for (int k = 0; k < 150; k++) {
        if (i < 2) {
            pgs_txn *t = begin(s);
            pgs_view *a, *b;
            int64_t *p = (int64_t *)(void *)edit(t, "a", &a), *q = (int64_t *)(void *)edit(t, "b", &b);
            for (int j = 0; j < SPREAD; j += 500) q[j] = p[j] = p[j] + 1;
            text[0] = text[1] = p[0];
            struct pgs_part part = {text, 16};
            CHECK_OK(pgs_txn_put(t, KEY("text"), PGS_KIND_BYTES, NULL, &part, 1, &err));
            int rc = pgs_txn_commit(t, NULL, NULL, &err);
            CHECK(rc == 0 || rc == -PGS_ECONFLICT);
            pgs_view_unref(a);
            pgs_view_unref(b);
            pgs_txn_unref(t);
            continue;
        }
        pgs_snapshot *sn;
        struct pgs_object oa, ob, ot;
        pgs_view *a, *b;
        CHECK_OK(pgs_snapshot_head(s, &sn, &err));
        CHECK_OK(pgs_get(sn, KEY("a"), &oa, &err));
        CHECK_OK(pgs_get(sn, KEY("b"), &ob, &err));
        CHECK_OK(pgs_get(sn, KEY("text"), &ot, &err));
        CHECK_OK(pgs_view_open(sn, &oa, 1, &a, &err));
        CHECK_OK(pgs_view_open(sn, &ob, 1, &b, &err));
        int64_t *p = pgs_view_data(a);
        CHECK(memcmp(p, pgs_view_data(b), SPREAD * 8) == 0);
        memcpy(text, ot.inline_data, 16);
        CHECK(text[0] == p[0] && text[1] == p[500]);
        pgs_view_unref(a);
        pgs_view_unref(b);
        pgs_snapshot_unref(sn);
        if (k % 20 == 0) { /* reopen */
            pgs_store_unref(s);
            s = open_path();
        }
    }
    pgs_store_unref(s);
}
TEST(what_is_written_together_is_read_together)
{
    new_path("eq");
    pgs_store *s = open_path();
    int64_t zeros[SPREAD] = {0};
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "a", zeros, SPREAD, 8));
    CHECK_OK(put_array(t, "b", zeros, SPREAD, 8));
    struct pgs_part part = {zeros, 16};
    CHECK_OK(pgs_txn_put(t, KEY("text"), PGS_KIND_BYTES, NULL, &part, 1, &err));
    commit(t);
    in_children(5, keep_equal);
    check_store(s);
    pgs_store_unref(s);
    remove_path();
}

/* Elements of one page, each process its own: all merge, none conflicts. */
static void own_elements(int i)
{
    pgs_store *s = open_path();
    for (int k = 1; k <= 60; k++) {
        pgs_txn *t = begin(s);
        pgs_view *v;
        int32_t *p = (int32_t *)(void *)edit(t, "x", &v);
        for (int j = i; j < 2000; j += 4) p[j] = k;
        CHECK_OK(pgs_txn_commit(t, NULL, NULL, &err));
        pgs_view_unref(v);
        pgs_txn_unref(t);
    }
    pgs_store_unref(s);
}
TEST(processes_that_write_their_own_elements_never_conflict)
{
    new_path("own");
    pgs_store *s = open_path();
    int32_t want[2000] = {0};
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", want, 2000, 4));
    commit(t);
    in_children(4, own_elements);
    for (int i = 0; i < 2000; i++) want[i] = 60;
    CHECK(head_is(s, "x", want, sizeof want));
    check_store(s);
    pgs_store_unref(s);
    remove_path();
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
