/* Pagestone | examples/counter — a C program's first store: put, edit, commit, read; again on conflict.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     make lib
 *     cc -I libshm/include examples/counter.c build/prod/libpagestone.a -pthread -o counter
 *     ./counter /dev/shm/demo.ps & ./counter /dev/shm/demo.ps & wait
 *
 * Each run adds 1 to every element of an array, in a transaction of its own; whoever loses a race does it again upon what the winner
 * wrote, so no addition is ever lost, however many processes run at once.
 */
#include <pagestone.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define N 100000
static const char key[] = "numbers";

static int fail(const struct pgs_error *err)
{
    fprintf(stderr, "counter: %s\n", err->text);
    return 1;
}

/* Make the array, unless it is there. Two processes that both try: one wins, the other finds it. */
static int make(pgs_store *s, struct pgs_error *err)
{
    struct pgs_type type = {.dtype = "<i8", .dtype_len = 3, .itemsize = 8, .ndim = 1, .order = 'C', .shape = {N}};
    pgs_txn *t;
    int rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, err);
    if (rc) return rc;
    rc = pgs_txn_create(t, key, strlen(key), &type, err);
    if (rc == 0) rc = pgs_txn_commit(t, "make the array", NULL, err);
    pgs_txn_unref(t);
    return rc == -PGS_EEXIST || rc == -PGS_ECONFLICT ? 0 : rc;
}

/* One try to add 1 everywhere. */
static int add(pgs_store *s, uint64_t *version, struct pgs_error *err)
{
    pgs_txn *t;
    pgs_view *v = NULL;
    int rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, err);
    if (rc) return rc;
    rc = pgs_txn_edit(t, key, strlen(key), &v, err); /* plain memory, copied page by page as it is touched */
    if (rc == 0) {
        int64_t *x = pgs_view_data(v);
        for (int i = 0; i < N; i++) x[i]++;
        rc = pgs_txn_commit(t, "add 1", version, err);
    }
    pgs_view_unref(v);
    pgs_txn_unref(t);
    return rc;
}

int main(int argc, char **argv)
{
    pgs_store *s;
    pgs_snapshot *now;
    struct pgs_object o;
    pgs_view *v;
    struct pgs_error err = {0};
    uint64_t version = 0;
    int rc, tries = 0;
    if (pgs_open(argc > 1 ? argv[1] : NULL, NULL, &s, &err)) return fail(&err);
    if (make(s, &err)) return fail(&err);
    do {
        memset(&err, 0, sizeof err);
        rc = add(s, &version, &err);
        tries++;
    } while (rc == -PGS_ECONFLICT);
    if (rc) return fail(&err);

    if (pgs_snapshot_head(s, &now, &err)) return fail(&err); /* reading: no lock, no copy */
    if (pgs_get(now, key, strlen(key), &o, &err) || pgs_view_open(now, &o, 0, &v, &err)) return fail(&err);
    pgs_snapshot_unref(now);
    pgs_store_unref(s); /* the view stays */
    const int64_t *x = pgs_view_data(v);
    printf("version %" PRIu64 ", %d %s: %" PRId64 " … %" PRId64 "\n", version, tries, tries == 1 ? "try" : "tries",
           x[0], x[N - 1]);
    pgs_view_unref(v);
    return 0;
}
