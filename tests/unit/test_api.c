/* Pagestone | tests/unit/test_api — opening, closing, describing; what wrong arguments get.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "libshm/platform/caps.h"
#include "tests/unit/txn_testing.h"

static char dir[64];
static const char *new_dir(void)
{
    snprintf(dir, sizeof dir, "/dev/shm/pgs-api-%d.ps", (int)getpid());
    return dir;
}
static void remove_dir(void)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    CHECK_EQ(system(cmd), 0);
}
static int open_mode(enum pgs_mode mode, pgs_store **s)
{
    struct pgs_options o = {.mode = mode};
    memset(&err, 0, sizeof err);
    return pgs_open(dir, &o, s, &err);
}

TEST(modes_open_create_and_refuse)
{
    pgs_store *s, *r;
    new_dir();
    CHECK_ERR(open_mode(PGS_MODE_R, &s), PGS_ENOENT);
    CHECK_ERR(open_mode(PGS_MODE_RPLUS, &s), PGS_ENOENT);
    CHECK_OK(open_mode(PGS_MODE_X, &s));
    CHECK_ERR(open_mode(PGS_MODE_X, &r), PGS_EEXIST);
    pgs_txn *t = begin(s);
    CHECK_OK(put_bytes(t, "a", "1"));
    commit(t);
    CHECK_OK(open_mode(PGS_MODE_R, &r)); /* two opens of one path, each with its own mode */
    CHECK(exists(r, "a"));
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs_begin(r, PGS_ISO_SNAPSHOT, &t, &err), PGS_EREADONLY);
    CHECK(strstr(err.text, "'r+'"));
    pgs_store_unref(s);
    CHECK(exists(r, "a"));
    pgs_store_unref(r);
    CHECK_OK(open_mode(0, &s));
    CHECK(exists(s, "a"));
    CHECK_OK(open_mode(PGS_MODE_W, &r));
    CHECK(!exists(r, "a"));
    CHECK(exists(s, "a")); /* keeps reading the old one */
    t = begin(s);
    CHECK_OK(put_bytes(t, "b", "1"));
    CHECK_ERR(pgs_txn_commit(t, NULL, NULL, NULL), PGS_ESTALE);
    pgs_txn_unref(t);
    pgs_store_unref(s);
    pgs_store_unref(r);
    remove_dir();
}

TEST(wrong_options_are_named)
{
    pgs_store *s;
    struct pgs_options o = {.mode = 77};
    CHECK_ERR(pgs_open("/dev/shm/x.ps", &o, &s, NULL), PGS_EINVAL);
    o = (struct pgs_options){.durability = 9};
    CHECK_ERR(pgs_open("/dev/shm/x.ps", &o, &s, NULL), PGS_EINVAL);
    o = (struct pgs_options){.mode = PGS_MODE_R};
    CHECK_ERR(pgs_open(NULL, &o, &s, NULL), PGS_EINVAL);
    CHECK_ERR(pgs_open("", NULL, &s, NULL), PGS_ENOENT);
    CHECK_ERR(pgs_open_handle("?x", 2, NULL, &s, NULL), PGS_EINVAL);
    CHECK_ERR(pgs_open("/etc/passwd", NULL, &s, NULL), PGS_ENOTSTORE);
    CHECK_ERR(pgs_open("/proc/self/status", NULL, &s, NULL),
              access("/proc/self", F_OK) == 0 ? PGS_ENOTSTORE : PGS_ENOENT);
}

/* /dev/shm is a directory of the disk in a bare chroot. */
static bool on_tmpfs(const char *path)
{
    struct statfs fs;
    CHECK_EQ(statfs(path, &fs), 0);
    return fs.f_type == TMPFS_MAGIC;
}

TEST(info_tells_what_a_store_is)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .size = 50000000, .history = PGS_HIST_COUNT, .history_value = 7};
    struct pgs_info i;
    CHECK_OK(pgs_open(new_dir(), &o, &s, &err));
    CHECK_OK(pgs_store_info(s, &i, &err));
    CHECK(strcmp(i.path, dir) == 0);
    CHECK_EQ(i.quota, 50000000);
    CHECK_EQ(i.history, PGS_HIST_COUNT);
    CHECK_EQ(i.history_value, 7);
    CHECK_EQ(i.durability, on_tmpfs(dir) ? PGS_DUR_NONE : PGS_DUR_FULL);
    CHECK_EQ(i.owner_private, 1);
    CHECK_EQ(i.read_only, 0);
    CHECK_EQ(strcmp(i.fs, "tmpfs") == 0, on_tmpfs(dir));
    pgs_store_unref(s);
    CHECK_OK(open_mode(PGS_MODE_R, &s)); /* kept in the store */
    CHECK_OK(pgs_store_info(s, &i, &err));
    CHECK_EQ(i.quota, 50000000);
    CHECK_EQ(i.read_only, 1);
    pgs_store_unref(s);
    CHECK_EQ(chmod(dir, 0777), 0);
    CHECK_OK(open_mode(PGS_MODE_A, &s));
    CHECK_OK(pgs_store_info(s, &i, &err));
    CHECK_EQ(i.owner_private, 0);
    pgs_store_unref(s);
    remove_dir();
    s = open_memory();
    CHECK_OK(pgs_store_info(s, &i, &err));
    CHECK(i.path == NULL && i.owner_private);
    CHECK_EQ(i.durability, PGS_DUR_NONE);
    CHECK_EQ(strcmp(i.fs, "memfd") == 0, pgs__cap(PGS__CAP_PROC_FD));
    CHECK_EQ(pgs_store_version(s), 0);
    pgs_store_unref(s);
}

TEST(after_close_calls_are_refused_and_views_stay)
{
    pgs_store *s = open_memory();
    pgs_txn *t = begin(s);
    uint8_t data[10000];
    memset(data, 5, sizeof data);
    CHECK_OK(put_array(t, "x", data, 10000, 1));
    commit(t);
    struct pgs_object o;
    pgs_view *v = open_head(s, "x", &o);
    pgs_txn *open = begin(s);
    CHECK_OK(pgs_close(s, &err));
    CHECK_OK(pgs_close(s, &err));
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err), PGS_ECLOSED);
    CHECK(strstr(err.text, "open it again"));
    struct pgs_info i;
    CHECK_ERR(pgs_store_info(s, &i, NULL), PGS_ECLOSED);
    CHECK_OK(put_bytes(open, "late", "x"));
    CHECK_OK(pgs_txn_commit(open, NULL, NULL, &err)); /* what was begun may end */
    pgs_txn_unref(open);
    pgs_store_unref(s);
    CHECK(memcmp(pgs_view_data(v), data, sizeof data) == 0);
    pgs_view_unref(v);
}

TEST(handles_open_the_same_store_elsewhere)
{
    char h[512];
    pgs_store *s, *other = open_memory();
    CHECK_OK(pgs_open(new_dir(), NULL, &s, &err));
    for (int k = 0; k < 2; k++) {
        pgs_store *from = k ? other : s, *to;
        size_t n = pgs_store_handle(from, h, sizeof h);
        CHECK(n > 1 && n < sizeof h);
        CHECK_EQ(pgs_store_handle(from, NULL, 0), n);
        pgs_txn *t = begin(from);
        CHECK_OK(put_bytes(t, "a", "1"));
        commit(t);
        CHECK_OK(pgs_open_handle(h, n, NULL, &to, &err));
        CHECK(exists(to, "a"));
        t = begin(to);
        CHECK_OK(put_bytes(t, "b", "1"));
        commit(t);
        CHECK(exists(from, "b"));
        pgs_store_unref(to);
    }
    pgs_store_unref(s);
    pgs_store_unref(other);
    remove_dir();
}

TEST(keys_are_checked)
{
    char long_key[PGS_MAX_KEY + 2];
    memset(long_key, 'k', sizeof long_key);
    pgs_store *s = open_memory();
    pgs_txn *t = begin(s);
    struct pgs_object o;
    const char *bad[] = {"", "a//b", ".", "a/..", "/a", "a/", "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_ERR(put_bytes(t, bad[i], "x"), PGS_ENAME);
        CHECK_ERR(pgs_key_check(KEY(bad[i]), NULL), PGS_ENAME);
        CHECK_ERR(pgs_txn_get(t, KEY(bad[i]), &o, NULL), PGS_ENOENT);
        CHECK_ERR(pgs_txn_delete(t, KEY(bad[i]), NULL), PGS_ENOENT);
    }
    CHECK_ERR(pgs_key_check(long_key, sizeof long_key, NULL), PGS_ENAME);
    pgs_snapshot *base = pgs_txn_base(t);
    CHECK_ERR(pgs_get(base, long_key, sizeof long_key, &o, NULL), PGS_ENOENT);
    pgs_snapshot_unref(base);
    CHECK_ERR(pgs_txn_put(t, KEY("a"), 99, NULL, NULL, 0, NULL), PGS_EINVAL);
    CHECK_ERR(pgs_txn_put(t, KEY("a"), PGS_KIND_ARRAY, NULL, NULL, 0, NULL), PGS_EINVAL);
    CHECK_ERR(pgs_begin(s, 9, &t, NULL), PGS_EINVAL);
    pgs_txn_unref(t);
    pgs_store_unref(s);
}

TEST(objects_are_found_by_id_and_private_views_are_private)
{
    pgs_store *s = open_memory();
    uint8_t data[9000] = {1};
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "g/x", data, 9000, 1));
    CHECK_OK(put_bytes(t, "g/y", "y"));
    commit(t);
    pgs_snapshot *sn;
    struct pgs_object o;
    char key[PGS_MAX_KEY];
    size_t len;
    pgs_view *v;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("g/y"), &o, &err));
    CHECK_OK(pgs_find_id(sn, o.id, KEY("g/"), key, &len, &err));
    CHECK(len == 3 && memcmp(key, "g/y", 3) == 0);
    CHECK_ERR(pgs_find_id(sn, 12345, KEY("g/"), key, &len, NULL), PGS_ENOENT);
    CHECK_ERR(pgs_find_id(sn, o.id, KEY("h"), key, &len, NULL), PGS_ENOENT);
    CHECK_OK(pgs_get(sn, KEY("g/x"), &o, &err));
    CHECK_OK(pgs_view_private(sn, &o, &v, &err));
    CHECK_EQ(pgs_view_gen(v), pgs_snapshot_gen(sn));
    ((uint8_t *)pgs_view_data(v))[4500] = 9;
    CHECK(head_is(s, "g/x", data, 9000));
    pgs_snapshot_unref(sn);
    CHECK_EQ(((uint8_t *)pgs_view_data(v))[0], 1);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

static int log_entry(void *ctx, const struct pgs_commit_info *c)
{
    int *n = ctx;
    if ((*n)++) return 0;
    CHECK_EQ(c->version, 2);
    CHECK_EQ(c->pid, getpid());
    CHECK(strcmp(c->message, "why") == 0);
    CHECK_EQ(c->n_keys, 2);
    CHECK(strcmp(c->keys, "a") == 0 && strcmp(c->keys + 2, "b") == 0);
    return 0;
}
TEST(the_log_names_keys_and_message)
{
    pgs_store *s = open_memory();
    pgs_txn *t = begin(s);
    CHECK_OK(put_bytes(t, "a", "1"));
    commit(t);
    t = begin(s);
    CHECK_OK(put_bytes(t, "b", "1"));
    CHECK_OK(pgs_txn_delete(t, KEY("a"), &err));
    CHECK_OK(pgs_txn_commit(t, "why", NULL, &err));
    pgs_txn_unref(t);
    int n = 0;
    CHECK_OK(pgs_log(s, 0, log_entry, &n, &err));
    CHECK_EQ(n, 2);
    pgs_store_unref(s);
}

static int stop(void *ctx)
{
    return ++*(int *)ctx > 1;
}
TEST(a_lock_that_cannot_be_had_leaves_the_transaction_open)
{
    new_dir();
    int ready[2], polls = 0;
    char byte;
    CHECK_EQ(pipe(ready), 0);
    pgs_store *s, *r;
    CHECK_OK(open_mode(PGS_MODE_A, &s));
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) { /* stops inside the commit lock */
        setenv("PAGESTONE_STOP", "commit_locked", 1);
        pgs_txn *t = begin(s);
        CHECK_OK(put_bytes(t, "child", "x"));
        CHECK_EQ(write(ready[1], "x", 1), 1);
        commit(t);
        _exit(0);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    struct pgs_options o = {.mode = PGS_MODE_A, .timeout_ns = 100 * 1000000};
    CHECK_OK(pgs_open(dir, &o, &r, &err));
    int64_t data[1000] = {7};
    struct pgs_type type = type_of(1000, 8);
    pgs_txn *t = begin(r);
    pgs_view *v;
    CHECK_OK(pgs_txn_empty(t, KEY("e"), &type, &v, &err));
    memcpy(pgs_view_data(v), data, sizeof data);
    CHECK_OK(put_bytes(t, "mine", "x"));
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs_txn_commit(t, NULL, NULL, &err), PGS_ELOCKED);
    data[999] = 5; /* it goes on */
    memcpy(pgs_view_data(v), data, sizeof data);
    CHECK_OK(put_bytes(t, "more", "x"));
    pgs_store *q;
    o = (struct pgs_options){.mode = PGS_MODE_A, .interrupted = stop, .interrupted_ctx = &polls};
    CHECK_OK(pgs_open(dir, &o, &q, &err));
    pgs_txn *u = begin(q);
    CHECK_OK(put_bytes(u, "u", "x"));
    CHECK_ERR(pgs_txn_commit(u, NULL, NULL, NULL), PGS_EINTR);
    CHECK_EQ(kill(pid, SIGCONT), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    commit(t);
    polls = -1000;
    commit(u);
    CHECK(exists(s, "mine") && exists(s, "more") && exists(s, "child") && exists(s, "u"));
    CHECK(head_is(s, "e", data, sizeof data));
    check_store(s);
    pgs_view_unref(v);
    pgs_store_unref(s);
    pgs_store_unref(r);
    pgs_store_unref(q);
    remove_dir();
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
