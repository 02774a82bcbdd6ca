/* Pagestone | tests/unit/test_txn_faults — the Nth call fails: a clean error, nothing lost, nothing leaked, nothing half done.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <errno.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "tests/unit/txn_testing.h"

#define N 30000

static uint8_t base[N];

/* One of everything. 0: committed. */
static int work(pgs_store *s)
{
    pgs_txn *t = NULL;
    pgs_view *v = NULL, *w = NULL, *x = NULL;
    struct pgs_type type = type_of(N, 1);
    uint64_t id;
    int64_t shape = N - 5000;
    memset(&err, 0, sizeof err);
    int rc = pgs_begin(s, PGS_ISO_SERIALIZABLE, &t, &err);
    if (rc) return rc;
    rc = put_array(t, "put", base, N, 1);
    if (rc == 0) rc = pgs_txn_edit(t, KEY("x"), &v, &err);
    if (rc == 0) memset((uint8_t *)pgs_view_data(v) + 5000, 7, 3000);
    if (rc == 0) rc = pgs_txn_savepoint(t, &id, &err);
    if (rc == 0) rc = pgs_txn_append(t, KEY("rows"), base, 9000, &err);
    if (rc == 0) rc = pgs_txn_empty(t, KEY("empty"), &type, &w, &err);
    if (rc == 0) memset(pgs_view_data(w), 3, N);
    if (rc == 0) rc = pgs_txn_rollback(t, id, &err);
    pgs_view_unref(w);
    w = NULL;
    if (rc == 0) rc = pgs_txn_append(t, KEY("rows"), base, 100, &err);
    if (rc == 0) rc = pgs_txn_empty(t, KEY("empty"), &type, &w, &err);
    if (rc == 0) rc = pgs_txn_copy(t, NULL, KEY("old"), KEY("copy"), NULL, &err);
    if (rc == 0) rc = pgs_txn_edit(t, KEY("put"), &x, &err);
    if (rc == 0) *(uint8_t *)pgs_view_data(x) = 9;
    if (rc == 0) rc = pgs_txn_resize(t, KEY("old"), &shape, 1, &err);
    if (rc == 0) rc = pgs_txn_move(t, KEY("a"), KEY("b"), &err);
    if (rc == 0) rc = pgs_txn_clear(t, KEY("g/"), &err);
    if (rc == 0) rc = pgs_txn_commit(t, "all", NULL, &err);
    pgs_view_unref(v);
    pgs_view_unref(w);
    pgs_view_unref(x);
    pgs_txn_unref(t);
    return rc;
}

static pgs_store *prepared(int checksums)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .checksums = checksums};
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    for (int i = 0; i < N; i++) base[i] = (uint8_t)(i % 201);
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", base, N, 1));
    CHECK_OK(put_array(t, "rows", base, 1000, 1));
    CHECK_OK(put_array(t, "old", base, N, 1));
    CHECK_OK(put_bytes(t, "a", "a"));
    CHECK_OK(put_bytes(t, "g/1", "a"));
    commit(t);
    return s;
}

/* Fails at `least` points at least: a missing block is made up for at most of them, by making room and trying again. */
static void fail_each(enum pgs__fail_kind kind, int os_errno, int step, int least)
{
    pgs_store *s = prepared(1);
    int failed = 0, rc = 0;
    for (uint64_t nth = 1; nth < 2000; nth += (uint64_t)step) {
        uint64_t before = pgs_store_version(s), calls = pgs__inject_count(kind);
        pgs__inject_fail(kind, nth, os_errno, false);
        rc = work(s);
        pgs__inject_clear();
        if (rc) {
            failed++;
            CHECK(err.code == -rc && err.text[0]);
            CHECK_EQ(pgs_store_version(s), before);
            CHECK(head_is(s, "x", base, N) && exists(s, "a") && !exists(s, "b") && exists(s, "g/1"));
            if (rc == -PGS_EREADONLY) break; /* poisoned by a failed barrier */
            continue;
        }
        if (pgs__inject_count(kind) - calls < nth) break; /* went through */
        pgs_store_unref(s);                               /* best effort covered the failure: begin anew */
        s = prepared(1);
    }
    CHECK_OK(rc);
    if (!pgs__cap(PGS__CAP_MAP_WRITE)) least = 1; /* without mappings for writing less can fail */
    if (failed < least) TEST_FAIL("only %d of the calls failed", failed);
    check_store(s);
    pgs_store_unref(s);
}

TEST(no_memory_at_any_point_is_a_clean_error)
{
    fail_each(PGS__FAIL_MEM, ENOMEM, 1, 4);
}
TEST(no_space_at_any_point_is_a_clean_error)
{
    fail_each(PGS__FAIL_FILE, ENOSPC, 1, 1);
}
TEST(an_io_error_at_any_point_is_a_clean_error)
{
    fail_each(PGS__FAIL_FILE, EIO, 1, 4);
}
TEST(no_mapping_at_any_point_is_a_clean_error)
{
    fail_each(PGS__FAIL_MAP, ENOMEM, 1, 4);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
