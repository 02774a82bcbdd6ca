/* Pagestone | tests/unit/txn_testing — stores, puts and reads in one line each, for tests of transactions.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_TESTS_UNIT_TXN_TESTING_H
#define PGS_TESTS_UNIT_TXN_TESTING_H

#include "tests/unit/testing.h"

#define KEY(k) (k), strlen(k)

static struct pgs_error err; /* of the call that CHECK_OK looks at */

__attribute__((unused)) static pgs_store *open_memory(void)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A};
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    return s;
}

__attribute__((unused)) static pgs_txn *begin(pgs_store *s)
{
    pgs_txn *t;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    return t;
}

__attribute__((unused)) static uint64_t commit(pgs_txn *t)
{
    uint64_t v;
    CHECK_OK(pgs_txn_commit(t, NULL, &v, &err));
    pgs_txn_unref(t);
    return v;
}

/* One axis of n elements of `size` bytes. */
__attribute__((unused)) static struct pgs_type type_of(int64_t n, uint32_t size)
{
    struct pgs_type type = {.dtype = "|V", .dtype_len = 2, .itemsize = size, .ndim = 1, .order = 'C'};
    type.shape[0] = n;
    return type;
}

__attribute__((unused)) static int put_array(pgs_txn *t, const char *key, const void *p, int64_t n, uint32_t size)
{
    struct pgs_type type = type_of(n, size);
    struct pgs_part part = {p, (size_t)n * size};
    return pgs_txn_put(t, KEY(key), PGS_KIND_ARRAY, &type, &part, 1, &err);
}

__attribute__((unused)) static int put_bytes(pgs_txn *t, const char *key, const char *text)
{
    struct pgs_part part = {text, strlen(text)};
    return pgs_txn_put(t, KEY(key), PGS_KIND_BYTES, NULL, &part, 1, &err);
}

__attribute__((unused)) static uint8_t *edit(pgs_txn *t, const char *key, pgs_view **v)
{
    CHECK_OK(pgs_txn_edit(t, KEY(key), v, &err));
    return pgs_view_data(*v);
}

__attribute__((unused)) static pgs_view *open_head(pgs_store *s, const char *key, struct pgs_object *o)
{
    pgs_snapshot *sn;
    pgs_view *v;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY(key), o, &err));
    CHECK_OK(pgs_view_open(sn, o, 1, &v, &err));
    pgs_snapshot_unref(sn);
    return v;
}

/* Is the newest content of `key` exactly these bytes? */
__attribute__((unused)) static int head_is(pgs_store *s, const char *key, const void *p, size_t n)
{
    struct pgs_object o;
    pgs_view *v = open_head(s, key, &o);
    int same = pgs_view_size(v) == n && (n == 0 || memcmp(pgs_view_data(v), p, n) == 0);
    pgs_view_unref(v);
    return same;
}

__attribute__((unused)) static int exists(pgs_store *s, const char *key)
{
    pgs_snapshot *sn;
    struct pgs_object o;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    int rc = pgs_get(sn, KEY(key), &o, NULL);
    pgs_snapshot_unref(sn);
    return rc == 0;
}

__attribute__((unused)) static int say_problem(void *ctx, const char *object, const char *problem)
{
    (void)ctx;
    fprintf(stderr, "check: %s: %s\n", object, problem);
    return 0;
}

/* The verifier finds nothing: no damage, no leaked page. */
__attribute__((unused)) static void check_store(pgs_store *s)
{
    struct pgs_check_report r;
    CHECK_OK(pgs_check(s, 1, say_problem, NULL, &r, &err));
    CHECK_EQ(r.n_errors, 0);
    CHECK_EQ(r.n_leaked_pages, 0);
}

#endif
