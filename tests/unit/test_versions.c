/* Pagestone | tests/unit/test_versions — history through the public functions: snapshots, tags, log, diff, wait, upkeep.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <pthread.h>
#include <time.h>

#include "libshm/include/pagestone.h"
#include "tests/unit/testing.h"

static struct pgs_error err;

static pgs_store *memory_store(enum pgs_history_kind history, uint64_t value)
{
    struct pgs_options opt = {.history = history, .history_value = value, .checksums = 1};
    pgs_store *s;
    CHECK_OK(pgs_open(NULL, &opt, &s, &err));
    return s;
}

static uint64_t put(pgs_store *s, const char *key, const char *text, const char *message)
{
    pgs_txn *t;
    uint64_t version;
    struct pgs_part part = {text, strlen(text)};
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_put(t, key, strlen(key), PGS_KIND_BYTES, NULL, &part, 1, &err));
    CHECK_OK(pgs_txn_commit(t, message, &version, &err));
    pgs_txn_unref(t);
    return version;
}

static uint64_t put_doubles(pgs_store *s, const char *key, int64_t n, double first)
{
    struct pgs_type type = {.dtype = "<f8", .dtype_len = 3, .itemsize = 8, .ndim = 1, .order = 'C', .shape = {n}};
    double *v = malloc((size_t)n * 8 + 8);
    struct pgs_part part = {v, (size_t)n * 8};
    pgs_txn *t;
    uint64_t version;
    for (int64_t i = 0; i < n; i++) v[i] = first + (double)i;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_put(t, key, strlen(key), PGS_KIND_ARRAY, &type, &part, 1, &err));
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_txn_unref(t);
    free(v);
    return version;
}

/* v[i] = value for i in [lo, hi), in place. */
static uint64_t edit(pgs_store *s, const char *key, int64_t lo, int64_t hi, double value)
{
    pgs_txn *t;
    pgs_view *view;
    uint64_t version;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_edit(t, key, strlen(key), &view, &err));
    double *v = pgs_view_data(view);
    for (int64_t i = lo; i < hi; i++) v[i] = value;
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_view_unref(view);
    pgs_txn_unref(t);
    return version;
}

static void delete_key(pgs_store *s, const char *key)
{
    pgs_txn *t;
    uint64_t version;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_delete(t, key, strlen(key), &err));
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_txn_unref(t);
}

static pgs_snapshot *at(pgs_store *s, int64_t version)
{
    pgs_snapshot *sn;
    CHECK_OK(pgs_snapshot_at(s, version, &sn, &err));
    return sn;
}

static int print_problem(void *ctx, const char *object, const char *problem)
{
    (void)ctx;
    fprintf(stderr, "    [%s] %s\n", object, problem);
    return 0;
}
static void check(pgs_store *s)
{
    struct pgs_check_report r;
    CHECK_OK(pgs_check(s, 1, print_problem, NULL, &r, &err));
    CHECK_EQ(r.n_errors, 0);
}

TEST(versions_are_listed_and_opened_by_number_index_and_time)
{
    pgs_store *s = memory_store(PGS_HIST_COUNT, 3);
    uint64_t *list;
    size_t n;
    for (int i = 0; i < 10; i++) put(s, "k", "value", NULL);
    CHECK_OK(pgs_versions(s, &list, &n, &err));
    CHECK_EQ(n, 4);
    for (size_t i = 0; i < n; i++) CHECK_EQ(list[i], 7 + i);
    pgs_free(list);
    pgs_snapshot *a = at(s, 8), *b = at(s, -3), *c, *head = at(s, -1);
    CHECK_EQ(pgs_snapshot_version(a), 8);
    CHECK_EQ(pgs_snapshot_version(b), 8);
    CHECK_EQ(pgs_snapshot_version(head), 10);
    CHECK_EQ(pgs_snapshot_count(head), 1);
    CHECK_OK(pgs_snapshot_at_time(s, pgs_snapshot_time_ns(a), &c, &err));
    CHECK_EQ(pgs_snapshot_version(c), 8);
    CHECK_ERR(pgs_snapshot_at(s, 2, &c, &err), PGS_EEXPIRED);
    CHECK_ERR(pgs_snapshot_at(s, 200, &c, &err), PGS_EINVAL);
    pgs_snapshot *again;
    CHECK_OK(pgs_snapshot_gen_open(s, pgs_snapshot_gen(a), &again, &err));
    CHECK_EQ(pgs_snapshot_version(again), 8);
    pgs_snapshot_unref(again);
    pgs_snapshot_unref(a);
    pgs_snapshot_unref(b);
    pgs_snapshot_unref(c);
    pgs_snapshot_unref(head);
    check(s);
    pgs_store_unref(s);
}

TEST(tags_keep_versions_and_obey_their_rules)
{
    pgs_store *s = memory_store(PGS_HIST_COUNT, 1);
    put(s, "k", "one", NULL);
    CHECK_OK(pgs_tag(s, "first", 5, -1, &err));
    for (int i = 0; i < 5; i++) put(s, "k", "more", NULL);
    CHECK_OK(pgs_tag(s, "old", 3, 5, &err));
    CHECK_ERR(pgs_tag(s, "first", 5, -1, &err), PGS_EEXIST);
    CHECK_ERR(pgs_tag(s, "gone", 4, 3, &err), PGS_EEXPIRED);
    CHECK_ERR(pgs_tag(s, "never", 5, 99, &err), PGS_EINVAL);
    const char *bad[] = {"", "1st", "-x", "a/b"};
    for (size_t i = 0; i < 4; i++) CHECK_ERR(pgs_tag(s, bad[i], strlen(bad[i]), -1, &err), PGS_EINVAL);
    CHECK_EQ(pgs_store_version(s), 6);
    struct pgs_tag_info *tags;
    size_t n;
    CHECK_OK(pgs_tags(s, &tags, &n, &err));
    CHECK_EQ(n, 2);
    CHECK(strcmp(tags[0].name, "first") == 0 && tags[0].version == 1);
    CHECK(strcmp(tags[1].name, "old") == 0 && tags[1].version == 5);
    pgs_free(tags);
    pgs_snapshot *sn;
    struct pgs_object o;
    CHECK_OK(pgs_snapshot_at_tag(s, "first", 5, &sn, &err));
    CHECK_OK(pgs_get(sn, "k", 1, &o, &err));
    CHECK_EQ(o.n_bytes, 3);
    pgs_snapshot_unref(sn);
    CHECK_ERR(pgs_snapshot_at_tag(s, "nope", 4, &sn, &err), PGS_ENOENT);
    check(s);
    CHECK_OK(pgs_untag(s, "first", 5, &err));
    CHECK_ERR(pgs_untag(s, "first", 5, &err), PGS_ENOENT);
    put(s, "k", "newer", NULL); /* now 1 is the older of two without a tag */
    CHECK_OK(pgs_gc(s, &err));
    CHECK_ERR(pgs_snapshot_at(s, 1, &sn, &err), PGS_EEXPIRED);
    check(s);
    pgs_store_unref(s);
}

struct logged {
    int n;
    uint64_t versions[64];
    char messages[400];
};
static int see_commit(void *ctx, const struct pgs_commit_info *c)
{
    struct logged *l = ctx;
    l->versions[l->n++] = c->version;
    if (c->message) strncat(l->messages, c->message, 50);
    CHECK_EQ(c->pid, getpid());
    CHECK(c->n_keys == 1 && strcmp(c->keys, "k") == 0);
    return l->n == 5;
}
TEST(the_log_is_walked_newest_first)
{
    pgs_store *s = memory_store(PGS_HIST_ALL, 0);
    struct logged l = {0};
    char m[8];
    for (int i = 1; i <= 9; i++) {
        snprintf(m, sizeof m, "m%d", i);
        put(s, "k", m, m);
    }
    CHECK_EQ(pgs_log(s, 0, see_commit, &l, &err), 1);
    CHECK_EQ(l.n, 5);
    CHECK_EQ(l.versions[0], 9);
    CHECK(strcmp(l.messages, "m9m8m7m6m5") == 0);
    memset(&l, 0, sizeof l);
    CHECK_OK(pgs_log(s, 4, see_commit, &l, &err));
    CHECK_EQ(l.versions[0], 3);
    CHECK_EQ(l.n, 3);
    pgs_store_unref(s);
}

struct changes {
    char text[2000];
};
static int see_change(void *ctx, const void *key, size_t len, enum pgs_change what, const struct pgs_range *r, size_t n)
{
    struct changes *c = ctx;
    size_t at_ = strlen(c->text);
    at_ += (size_t)snprintf(c->text + at_, sizeof c->text - at_, "%c%.*s", "?+-~"[what], (int)len, (const char *)key);
    for (size_t i = 0; i < n && i < 8; i++)
        at_ += (size_t)snprintf(c->text + at_, sizeof c->text - at_, "[%llu,%llu)", (unsigned long long)r[i].lo,
                                (unsigned long long)r[i].hi);
    snprintf(c->text + at_, sizeof c->text - at_, " ");
    return 0;
}
static void check_diff(pgs_store *s, int64_t a, int64_t b, const char *expected)
{
    struct changes c = {{0}};
    pgs_snapshot *sa = at(s, a), *sb = at(s, b);
    CHECK_OK(pgs_diff(sa, sb, see_change, &c, &err));
    if (strcmp(c.text, expected) != 0) TEST_FAIL("diff is '%s', expected '%s'", c.text, expected);
    pgs_snapshot_unref(sa);
    pgs_snapshot_unref(sb);
}
TEST(diff_names_keys_and_elements)
{
    pgs_store *s = memory_store(PGS_HIST_ALL, 0);
    put(s, "a", "1", NULL);         /* 1 */
    put_doubles(s, "x", 100000, 0); /* 2 */
    put(s, "b", "2", NULL);         /* 3 */
    edit(s, "x", 10, 12, -1);       /* 4 */
    edit(s, "x", 70000, 70001, -2); /* 5 */
    put(s, "a", "other", NULL);     /* 6 */
    delete_key(s, "b");             /* 7 */
    put_doubles(s, "x", 100000, 0); /* 8: a new object */
    check_diff(s, 1, 3, "+b +x ");
    check_diff(s, 3, 5, "~x[10,12)[70000,70001) ");
    check_diff(s, 5, 3, "~x[10,12)[70000,70001) ");
    check_diff(s, 3, 4, "~x[10,12) ");
    check_diff(s, 5, 7, "~a -b ");
    check_diff(s, 7, 8, "~x ");
    check_diff(s, 8, 8, "");
    pgs_txn *t;
    uint64_t version;
    double more[3] = {1, 2, 3};
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_append(t, "x", 1, more, 3, &err));
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_txn_unref(t);
    check_diff(s, 8, 9, "~x[100000,100003) ");
    pgs_snapshot *before = at(s, 9), *after;
    CHECK_OK(pgs_compact(s, &err));
    CHECK_OK(pgs_snapshot_head(s, &after, &err));
    struct changes none = {{0}};
    CHECK_OK(pgs_diff(before, after, see_change, &none, &err)); /* moving pages is no change */
    CHECK(none.text[0] == 0 && pgs_snapshot_gen(before) != pgs_snapshot_gen(after));
    pgs_snapshot_unref(before);
    pgs_snapshot_unref(after);
    check(s);
    pgs_store_unref(s);
}

TEST(diff_stays_coarse_when_everything_changed)
{
    pgs_store *s = memory_store(PGS_HIST_ALL, 0);
    put_doubles(s, "x", 400000, 0);
    pgs_txn *t;
    pgs_view *view;
    uint64_t version;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_edit(t, "x", 1, &view, &err));
    double *v = pgs_view_data(view);
    for (int i = 0; i < 400000; i += 2) v[i] = -1; /* 200,000 single elements */
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_view_unref(view);
    pgs_txn_unref(t);
    struct changes c = {{0}};
    pgs_snapshot *a = at(s, 1), *b = at(s, 2);
    CHECK_OK(pgs_diff(a, b, see_change, &c, &err));
    CHECK(strncmp(c.text, "~x[0,", 5) == 0);
    pgs_snapshot_unref(a);
    pgs_snapshot_unref(b);
    pgs_store_unref(s);
}

static void *later(void *ctx)
{
    struct timespec ts = {0, 50000000};
    nanosleep(&ts, NULL);
    put(ctx, "other", "x", NULL);
    nanosleep(&ts, NULL);
    put(ctx, "wanted", "x", NULL);
    return NULL;
}
TEST(wait_wakes_for_the_store_or_for_one_key)
{
    pgs_store *s = memory_store(PGS_HIST_COUNT, 100);
    pthread_t t;
    uint64_t version = 77;
    put(s, "wanted", "0", NULL);
    CHECK_ERR(pgs_wait(s, 1, NULL, 0, 10000000, &version, &err), PGS_ETIMEDOUT);
    CHECK_ERR(pgs_wait(s, 1, "wanted", 6, 10000000, &version, &err), PGS_ETIMEDOUT);
    CHECK_EQ(version, 77);
    CHECK_OK(pgs_wait(s, 0, NULL, 0, 10000000, &version, &err));
    CHECK_EQ(version, 1);
    CHECK_EQ(pthread_create(&t, NULL, later, s), 0);
    CHECK_OK(pgs_wait(s, 1, "wanted", 6, 5000000000, &version, &err));
    CHECK_EQ(version, 3);
    CHECK_OK(pgs_wait(s, 1, NULL, 0, 5000000000, &version, &err));
    CHECK_OK(pgs_wait(s, 2, "wanted", 6, 0, &version, &err)); /* it happened before we asked */
    CHECK_ERR(pgs_wait(s, 2, "other", 5, 0, &version, &err), PGS_ETIMEDOUT);
    pthread_join(t, NULL);
    pgs_store_unref(s);
}

TEST(settings_are_kept_and_changed_for_all)
{
    pgs_store *s = memory_store(PGS_HIST_COUNT, 7);
    struct pgs_info info;
    CHECK_OK(pgs_store_info(s, &info, &err));
    CHECK_EQ(info.history, PGS_HIST_COUNT);
    CHECK_EQ(info.history_value, 7);
    char handle[512];
    size_t len = pgs_store_handle(s, handle, sizeof handle);
    struct pgs_options opt = {.mode = PGS_MODE_RPLUS, .size = 50000000};
    pgs_store *two;
    CHECK_OK(pgs_open_handle(handle, len, &opt, &two, &err));
    CHECK_OK(pgs_store_info(s, &info, &err));
    CHECK_EQ(info.quota, 50000000);
    CHECK_EQ(info.history_value, 7);
    CHECK_EQ(pgs_store_version(s), 0); /* settings make no version */
    pgs_store_unref(two);
    check(s);
    pgs_store_unref(s);
}

TEST(capabilities_are_listed)
{
    const char *reason, *name;
    int on, n = 0;
    while ((name = pgs_capability(n, &on, &reason)) != NULL) {
        CHECK(name[0] && reason);
        n++;
    }
    CHECK(n >= 5);
    CHECK(pgs_capability(-1, &on, &reason) == NULL);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
