/* Pagestone | tests/unit/test_anonymous_dir — anonymous stores without /proc/self/fd: who finds them, who removes them, and what is never removed.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Other test programs make and sweep such stores in the same base at the same time, so a test looks only at directories that it knows by name.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <sys/file.h>

#include "tests/unit/session_fixture.h"

static struct pgs__session *new_store(void)
{
    struct pgs__session *s;
    setenv("PAGESTONE_WITHOUT", "proc_fd", 1);
    pgs__caps_reset();
    CHECK_OK(pgs__session_open_anonymous(NULL, &s, &err));
    CHECK(s->pf.anonymous && s->pf.path && strstr(s->pf.path, "/pagestone-anonymous-"));
    return s;
}

/* What the next one that makes a store does, in the base of this one. */
static void sweep(void)
{
    pgs__session_unref(new_store());
}

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* A sweep took it. Another program's sweep may hold the directory when ours comes by, and have looked before it was abandoned: then the next one takes it. */
static bool swept(const char *path)
{
    for (int i = 0; i < 3 && there(path); i++) {
        if (i) usleep(20000);
        sweep();
    }
    return !there(path);
}

/* Opens a store and tells its directory, then waits for its end. */
struct member {
    pid_t pid;
    char path[PATH_MAX];
};
static struct member member_start(void)
{
    struct member m = {0};
    int to[2];
    CHECK(pipe(to) == 0);
    m.pid = fork_bounded();
    if (m.pid == 0) {
        struct pgs__session *s = new_store();
        CHECK(write(to[1], s->pf.path, strlen(s->pf.path)) > 0);
        pause();
        _exit(0);
    }
    CHECK(read(to[0], m.path, sizeof m.path - 1) > 0);
    close(to[0]);
    close(to[1]);
    return m;
}
static void member_kill(const struct member *m)
{
    CHECK(kill(m->pid, SIGKILL) == 0);
    CHECK_EQ(wait_for(m->pid), 1000 + SIGKILL);
}

/* --- life and end ----------------------------------------------------------------------------------------------------- */
TEST(the_directory_is_private_and_goes_with_the_last_reference)
{
    struct stat st;
    char path[PATH_MAX], name[PATH_MAX + 10];
    struct pgs__session *s = new_store();
    strcpy(path, s->pf.path);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 07777) == 0700 && st.st_uid == geteuid());
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s/%s", path, i ? "pages" : "control");
        CHECK(stat(name, &st) == 0 && (st.st_mode & 07777) == 0600);
    }
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s, &l, &err));
    CHECK_EQ(l.meta.hdr.durability, PGS_DUR_NONE);
    CHECK_EQ(l.meta.hdr.checksums, 0);
    pgs__meta_end(s, &l);
    CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(pgs__session_ref(s));
    CHECK(there(path));
    pgs__session_unref(s);
    CHECK(!there(path));
}

TEST(a_forked_child_keeps_it_and_removes_it)
{
    char path[PATH_MAX];
    struct gate up = gate_new(), down = gate_new();
    struct pgs__session *s = new_store();
    strcpy(path, s->pf.path);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK(!s->family);
        gate_wait(&down);
        CHECK_OK(tiny_commit(s, &err));
        CHECK(there(path));
        gate_open(&up);
        pid_t grandchild = fork_bounded();
        if (grandchild == 0) {
            CHECK_OK(tiny_commit(s, &err));
            pgs__session_unref(s);
            _exit(there(path) ? 0 : 1);
        }
        CHECK_EQ(wait_for(grandchild), 0);
        CHECK_EQ(head_of(s).version, 2);
        pgs__session_unref(s);
        _exit(there(path) ? 1 : 0);
    }
    pgs__session_unref(s);
    CHECK(there(path));
    sweep();
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(wait_for(pid), 0);
}

TEST(exit_with_the_store_open_removes_it)
{
    int to[2];
    char path[PATH_MAX] = "";
    CHECK(pipe(to) == 0);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__session *s = new_store();
        CHECK(write(to[1], s->pf.path, strlen(s->pf.path)) > 0);
        pid_t child = fork_bounded();
        if (child == 0) exit(there(s->pf.path) ? 0 : 1); /* not the last one */
        CHECK_EQ(wait_for(child), 0);
        CHECK(there(s->pf.path));
        exit(0);
    }
    CHECK(read(to[0], path, sizeof path - 1) > 0);
    CHECK_EQ(wait_for(pid), 0);
    CHECK(!there(path));
}

TEST(what_killed_processes_left_goes_with_the_next_store)
{
    struct member a = member_start(), b = member_start();
    CHECK(there(a.path) && there(b.path));
    member_kill(&a);
    CHECK(swept(a.path) && there(b.path));
    member_kill(&b);
    CHECK(swept(b.path));
}

/* The first mkdir tells where. */
static int told = -1;
static struct pgs__file_ops telling;
static int mkdir_and_tell(const char *path, mode_t mode)
{
    CHECK(write(told, path, strlen(path)) > 0);
    return pgs__file_ops_real.mkdir(path, mode);
}

TEST(a_maker_may_be_killed_anywhere)
{
    static const char *const points[] = {"anonymous_mkdir",  "anonymous_empty",   "anonymous_founded",
                                         "ctl_create_wiped", "control_filled",    "ctl_create_before_magic",
                                         "anonymous_filled", "anonymous_removing"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        int to[2];
        char path[PATH_MAX] = "";
        CHECK(pipe(to) == 0);
        pid_t pid = fork_bounded();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", points[i], 1);
            telling = pgs__file_ops_real;
            telling.mkdir = mkdir_and_tell;
            told = to[1];
            pgs__file_ops = &telling;
            sweep();
            _exit(0);
        }
        close(to[1]);
        ssize_t n = read(to[0], path, sizeof path - 1);
        int status = wait_for(pid);
        if (status != 1000 + SIGKILL) TEST_FAIL("%s was not reached: %d", points[i], status);
        close(to[0]);
        if (n <= 0) { /* while it removed what another program's process had left */
            CHECK(strcmp(points[i--], "anonymous_removing") == 0);
            sweep();
            continue;
        }
        if (!swept(path)) TEST_FAIL("killed at %s leaves %s", points[i], path);
    }
}

/* One of the three steps of a removal fails. */
static const char *failing_step;
static struct pgs__file_ops clumsy;
static int unlinkat_or_fail(int dir_fd, const char *name)
{
    return strcmp(name, failing_step) == 0 ? -EIO : pgs__file_ops_real.unlinkat(dir_fd, name);
}
static int rmdir_or_fail(const char *path)
{
    return strcmp("rmdir", failing_step) == 0 ? -EIO : pgs__file_ops_real.rmdir(path);
}

TEST(what_a_failed_removal_left_goes_with_the_next_store)
{
    static const char *const steps[] = {"control", "pages", "rmdir"};
    clumsy = pgs__file_ops_real;
    clumsy.unlinkat = unlinkat_or_fail;
    clumsy.rmdir = rmdir_or_fail;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        char path[PATH_MAX];
        struct pgs__session *s = new_store();
        strcpy(path, s->pf.path);
        failing_step = steps[i];
        pgs__file_ops = &clumsy;
        pgs__session_unref(s);
        pgs__file_ops = &pgs__file_ops_real;
        if (!swept(path)) TEST_FAIL("after a failed removal of %s %s stays", steps[i], path);
    }
}

/* --- many of them ----------------------------------------------------------------------------------------------------------- */
static int looked_at;
static struct pgs__file_ops counting;
static int open_and_count(const char *path, int flags, mode_t mode)
{
    if (strcmp(path, "/dev/shm") == 0) return -EACCES; /* so that the base is one of our own */
    looked_at += strstr(path, "/pagestone-anonymous-0000") != NULL;
    return pgs__file_ops_real.open(path, flags, mode);
}

TEST(a_sweep_looks_at_some_of_many_and_misses_none_for_good)
{
    enum { N = 300 };
    char path[200], command[200];
    const char *base = scratch;
    scratch_in("/tmp");
    setenv("TMPDIR", base, 1);
    counting = pgs__file_ops_real;
    counting.open = open_and_count;
    pgs__file_ops = &counting;
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "%s/pagestone-anonymous-0000%028x", base, i);
        CHECK(mkdir(path, 0700) == 0);
        strcat(path, "/somebody's"); /* so that it stays */
        CHECK(mkdir(path, 0700) == 0);
    }
    for (int i = 0; i < 10; i++) {
        looked_at = 0;
        sweep();
        if (looked_at == 0 || looked_at > 64) TEST_FAIL("a sweep has looked at %d of %d", looked_at, N);
    }
    struct member m = member_start();
    CHECK(strncmp(m.path, base, strlen(base)) == 0);
    member_kill(&m);
    for (int i = 0; there(m.path); i++) {
        if (i == 300) TEST_FAIL("300 sweeps have missed %s", m.path); /* by chance: 1 in 10^30 */
        sweep();
    }
    for (int i = 0; i < N; i++) { /* empty they go, however many there are */
        snprintf(path, sizeof path, "%s/pagestone-anonymous-0000%028x/somebody's", base, i);
        CHECK(rmdir(path) == 0);
    }
    sweep();
    snprintf(command, sizeof command, "! ls '%s' | grep -q pagestone-anonymous", base);
    CHECK_EQ(system(command), 0);
    pgs__file_ops = &pgs__file_ops_real;
}

/* --- what is not ours ------------------------------------------------------------------------------------------------------ */
static void shell(const char *command, const char *path)
{
    setenv("D", path, 1);
    CHECK_EQ(system(command), 0);
}

TEST(only_what_is_provably_an_abandoned_store_is_removed)
{
    static const char *const changes[] = {
        ">\"$D/mine\"",                               /* a file of somebody's */
        "chmod 750 \"$D\"",                           /* for a group */
        "rm \"$D/pages\" && echo text >\"$D/pages\"", /* not a page file */
        "rm \"$D/pages\" && mkdir \"$D/pages\"",
        "mv \"$D/pages\" \"$D/../pgs-pages-\"$PPID && ln -s ../pgs-pages-$PPID \"$D/pages\"",
        "printf xxxxxxxx | dd of=\"$D/pages\" bs=1 conv=notrunc status=none",
        "printf xxxxxxxx | dd of=\"$D/pages\" bs=1 seek=32 conv=notrunc status=none", /* another uuid */
        "rm \"$D/pages\" && >\"$D/mine\"",
        "rm \"$D/pages\" \"$D/control\" && mkdir \"$D/control\"",
        "rm \"$D/pages\" && chmod 640 \"$D/control\"",
        "test $(id -u) != 0 || chown 12345 \"$D\"",
        "test $(id -u) != 0 || chown 12345 \"$D/pages\"",
    };
    char moved[PATH_MAX];
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct member m = member_start();
        int fd = open(m.path, O_RDONLY | O_DIRECTORY); /* nobody else sweeps what is half changed */
        CHECK(flock(fd, LOCK_EX) == 0);
        shell(changes[i], m.path);
        member_kill(&m);
        close(fd);
        sweep();
        bool unchanged = i >= 10 && geteuid() != 0;
        if (!there(m.path) && !unchanged) TEST_FAIL("swept after: %s", changes[i]);
        if (i == 4) {
            snprintf(moved, sizeof moved, "%.*s/pgs-pages-%d", (int)(strrchr(m.path, '/') - m.path), m.path,
                     (int)getpid());
            CHECK(there(moved));
            unlink(moved);
        }
        shell("rm -rf \"$D\"", m.path);
    }
    struct member m = member_start(); /* another name: not one that we would give */
    snprintf(moved, sizeof moved, "%.*sX", (int)strlen(m.path) - 1, m.path);
    CHECK(rename(m.path, moved) == 0);
    member_kill(&m);
    sweep();
    CHECK(there(moved));
    shell("rm -rf \"$D\"", moved);
}

TEST(a_locked_directory_is_left_alone)
{
    struct member m = member_start();
    int fd = open(m.path, O_RDONLY | O_DIRECTORY);
    CHECK(flock(fd, LOCK_EX) == 0); /* waits for another program's sweep */
    member_kill(&m);
    sweep();
    CHECK(there(m.path));
    close(fd);
    CHECK(swept(m.path));
}

/* --- handles ------------------------------------------------------------------------------------------------------------------ */
TEST(a_handle_works_while_anybody_lives_with_or_without_proc)
{
    uint8_t handle[2000];
    struct gate down = gate_new();
    struct pgs__session *s = new_store();
    size_t n = pgs__session_handle(s, handle, sizeof handle);
    CHECK(n < 60);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        gate_wait(&down);
        _exit(0); /* by _exit: nobody removes it then */
    }
    pgs__session_unref(s);
    for (int i = 0; i < 2; i++) {
        if (i) unsetenv("PAGESTONE_WITHOUT");
        pgs__caps_reset();
        CHECK_OK(pgs__session_open_handle(handle, n, NULL, &s, &err));
        CHECK_OK(tiny_commit(s, &err));
        CHECK_EQ(head_of(s).version, i + 1);
        CHECK(s->pf.anonymous && s->pf.path);
        pgs__session_unref(s);
    }
    for (size_t cut = 0; cut < n; cut++) CHECK_ERR(pgs__session_open_handle(handle, cut, NULL, &s, &err), PGS_EINVAL);
    handle[10] ^= 1;
    CHECK_ERR(pgs__session_open_handle(handle, n, NULL, &s, &err), PGS_ENOENT);
    handle[10] ^= 1;
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    sweep();
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__session_open_handle(handle, n, NULL, &s, &err), PGS_ENOENT);
    CHECK(strstr(err.text, "gone"));
}

TEST(a_handle_opens_no_directory_of_others)
{
    uint8_t handle[2000];
    struct pgs__session *s = new_store(), *t;
    size_t n = pgs__session_handle(s, handle, sizeof handle);
    pid_t pid;
    CHECK(chmod(s->pf.path, 0755) == 0);
    if ((pid = fork_bounded()) == 0) {
        s->pf.uuid[0] ^= 1; /* not found in this process */
        CHECK_ERR(pgs__session_open_handle(handle, n, NULL, &t, &err), PGS_EACCES);
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 0);
    CHECK(chmod(s->pf.path, 0700) == 0);
    pgs__session_unref(s);
}

/* --- races ----------------------------------------------------------------------------------------------------------------------- */
TEST(makers_and_sweepers_do_not_disturb_each_other)
{
    pid_t pids[4];
    for (int i = 0; i < 4; i++)
        if ((pids[i] = fork_bounded()) == 0) {
            for (int k = 0; k < 60; k++) {
                struct pgs__session *s = new_store();
                CHECK_OK(tiny_commit(s, &err));
                CHECK(there(s->pf.path));
                if (k % 8 == 7) _exit(fork() ? 0 : (pgs__session_unref(s), 0)); /* some leave theirs behind */
                pgs__session_unref(s);
            }
            _exit(0);
        }
    for (int i = 0; i < 4; i++) CHECK_EQ(wait_for(pids[i]), 0);
    sweep();
}

/* Whoever joins while the last one leaves has the store, or learns that it is gone. */
TEST(a_joiner_finds_the_store_or_nothing)
{
    int to[2], joined = 0;
    CHECK(pipe(to) == 0);
    struct gate seen = gate_new(), done = gate_new(), left = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        new_store();
        for (int i = 0; i < 200; i++) {
            uint8_t handle[256];
            char path[PATH_MAX];
            struct pgs__session *s = NULL;
            ssize_t n = read(to[0], handle, sizeof handle);
            gate_open(&seen);
            for (volatile int wait = 0; wait < i * 500; wait++) {
            }
            err = (struct pgs_error){0};
            int rc = pgs__session_open_handle(handle, (size_t)n, NULL, &s, &err);
            if (rc == 0) {
                strcpy(path, s->pf.path);
                CHECK_OK(tiny_commit(s, &err));
                CHECK(there(path));
            } else if (rc != -PGS_ENOENT) {
                TEST_FAIL("%d %s", rc, err.text);
            }
            CHECK(write(done.fd[1], rc ? "n" : "y", 1) == 1);
            gate_wait(&left);
            if (rc == 0) {
                pgs__session_unref(s);
                CHECK(!there(path));
            }
        }
        exit(0);
    }
    for (int i = 0; i < 200; i++) {
        uint8_t handle[256];
        char c;
        struct pgs__session *s = new_store();
        size_t n = pgs__session_handle(s, handle, sizeof handle);
        CHECK(write(to[1], handle, n) == (ssize_t)n);
        gate_wait(&seen);
        pgs__session_unref(s);
        CHECK(read(done.fd[0], &c, 1) == 1);
        joined += c == 'y';
        gate_open(&left);
    }
    CHECK_EQ(wait_for(pid), 0);
    fprintf(stderr, "joined %d of 200\n", joined);
}

static void *open_and_close(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++) {
        struct pgs_error e = {0};
        struct pgs__session *s;
        if (pgs__session_open_anonymous(NULL, &s, &e)) TEST_FAIL("%s", e.text);
        if (tiny_commit(s, &e)) TEST_FAIL("%s", e.text);
        pgs__session_unref(s);
    }
    return NULL;
}

TEST(threads_open_and_close_while_others_fork)
{
#ifdef __SANITIZE_ADDRESS__
    SKIP("the sanitizer's malloc may hang in a child that was forked while other threads used it");
#endif
    pthread_t t[3];
    struct pgs__session *s = new_store();
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&t[i], NULL, open_and_close, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork_bounded();
        if (pid == 0) {
            CHECK_OK(tiny_commit(s, &err));
            pgs__session_unref(s);
            _exit(0);
        }
        CHECK_EQ(wait_for(pid), 0);
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    CHECK_EQ(head_of(s).version, 20);
    CHECK(there(s->pf.path));
    pgs__session_unref(s);
}

/* --- a hostile host program, a full table ------------------------------------------------------------------------------------------ */
TEST(descriptors_that_were_closed_are_opened_again)
{
    char path[PATH_MAX];
    struct pgs__session *s = new_store();
    strcpy(path, s->pf.path);
    for (int fd = 3; fd < 256; fd++) close(fd);
    CHECK_OK(tiny_commit(s, &err));
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK(!s->family);
        CHECK_OK(tiny_commit(s, &err));
        exit(0);
    }
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(head_of(s).version, 2);
    pgs__session_unref(s);
    CHECK(!there(path));
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
