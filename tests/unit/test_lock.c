/* Pagestone | tests/unit/test_lock — who holds what, and what is left when the holder dies.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "tests/unit/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/file.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/lock.h"

#define MS INT64_C(1000000)

struct shared {
    struct pgs__robust lock;
    _Atomic uint32_t word, ready;
    uint64_t a, b;
};

static struct shared *shared_new(void)
{
    struct shared *sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(sh != MAP_FAILED);
    CHECK_EQ(pgs__robust_init(&sh->lock), 0);
    return sh;
}

static void nap(int64_t ns)
{
    struct timespec t = {ns / 1000000000, ns % 1000000000};
    nanosleep(&t, NULL);
}

static void wait_word(_Atomic uint32_t *w, uint32_t v)
{
    for (uint32_t now; (now = atomic_load(w)) != v;) pgs__futex_wait(w, now, 100 * MS);
}

static void set_word(_Atomic uint32_t *w, uint32_t v)
{
    atomic_store(w, v);
    pgs__futex_wake_all(w);
}

static void reap(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0) CHECK_EQ(errno, EINTR);
}

static int exit_of(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0) CHECK_EQ(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A child that takes the lock and sleeps for ever. */
static pid_t holder(struct shared *sh)
{
    pid_t pid = fork();
    if (pid == 0) {
        if (pgs__robust_lock(&sh->lock, -1, NULL, NULL) < 0) _exit(1);
        set_word(&sh->ready, 1);
        for (;;) pause();
    }
    wait_word(&sh->ready, 1);
    return pid;
}

/* --- the robust lock --------------------------------------------------------------------------------------------------- */
TEST(the_heir_of_a_killed_holder_is_told)
{
    struct shared *sh = shared_new();
    for (int round = 0; round < 3; round++) {
        atomic_store(&sh->ready, 0);
        pid_t pid = holder(sh);
        CHECK_EQ(atomic_load(&sh->lock.owner_pid), (uint32_t)pid);
        kill(pid, SIGKILL);
        CHECK_EQ(pgs__robust_lock(&sh->lock, 5000 * MS, NULL, NULL), 1); /* also while waiting */
        CHECK_EQ(atomic_load(&sh->lock.owner_pid), (uint32_t)getpid());
        pgs__robust_consistent(&sh->lock);
        pgs__robust_unlock(&sh->lock);
        reap(pid);
        CHECK_EQ(pgs__robust_lock(&sh->lock, 0, NULL, NULL), 0);
        pgs__robust_unlock(&sh->lock);
    }
}

TEST(the_heir_may_die_before_its_repair_is_done)
{
    struct shared *sh = shared_new();
    for (int i = 0; i < 3; i++) {
        atomic_store(&sh->ready, 0);
        pid_t pid = holder(sh); /* from the second on: an heir */
        kill(pid, SIGKILL);
        reap(pid);
    }
    CHECK_EQ(pgs__robust_lock(&sh->lock, 0, NULL, NULL), 1);
    pgs__robust_consistent(&sh->lock);
    pgs__robust_unlock(&sh->lock);
}

TEST(an_unrepaired_lock_is_an_error_for_all_and_never_a_hang)
{
    struct shared *sh = shared_new();
    pid_t pid = holder(sh);
    kill(pid, SIGKILL);
    reap(pid);
    CHECK_EQ(pgs__robust_lock(&sh->lock, 0, NULL, NULL), 1);
    pgs__robust_unlock(&sh->lock); /* without consistent: a bug of the caller */
    CHECK_ERR(pgs__robust_lock(&sh->lock, -1, NULL, NULL), PGS_EBUG);
}

TEST(a_stopped_holder_costs_the_timeout_and_no_more)
{
    struct shared *sh = shared_new();
    pid_t pid = holder(sh);
    kill(pid, SIGSTOP);
    CHECK_ERR(pgs__robust_lock(&sh->lock, 0, NULL, NULL), PGS_ELOCKED);
    uint64_t t0 = pgs__clock_mono_ns();
    CHECK_ERR(pgs__robust_lock(&sh->lock, 120 * MS, NULL, NULL), PGS_ELOCKED);
    int64_t took = (int64_t)(pgs__clock_mono_ns() - t0);
    CHECK(took >= 120 * MS && took < 3000 * MS);
    kill(pid, SIGKILL);
    CHECK_EQ(pgs__robust_lock(&sh->lock, -1, NULL, NULL), 1);
    reap(pid);
}

static int interrupt_third(void *ctx)
{
    return ++*(int *)ctx == 3;
}

TEST(a_wait_can_be_interrupted_within_slices)
{
    struct shared *sh = shared_new();
    pid_t pid = holder(sh);
    int calls = 0;
    uint64_t t0 = pgs__clock_mono_ns();
    CHECK_ERR(pgs__robust_lock(&sh->lock, -1, interrupt_third, &calls), PGS_EINTR);
    int64_t took = (int64_t)(pgs__clock_mono_ns() - t0);
    CHECK_EQ(calls, 3);
    CHECK(took >= 90 * MS && took < 3000 * MS); /* two slices of 50 ms */
    kill(pid, SIGKILL);
    reap(pid);
}

TEST(processes_exclude_each_other)
{
    struct shared *sh = shared_new();
    pid_t pids[3];
    for (int p = 0; p < 3; p++)
        if ((pids[p] = fork()) == 0) {
            for (int i = 0; i < 2000; i++) {
                if (pgs__robust_lock(&sh->lock, -1, NULL, NULL) != 0) _exit(1);
                if (sh->a != sh->b) _exit(2);
                sh->a++;
                sh->b++;
                pgs__robust_unlock(&sh->lock);
            }
            _exit(0);
        }
    for (int p = 0; p < 3; p++) CHECK_EQ(exit_of(pids[p]), 0);
    CHECK_EQ(sh->a, 6000);
}

/* Runs fn as process 1 of a PID namespace of its own. */
static pid_t in_own_namespace(int (*fn)(struct shared *), struct shared *sh)
{
    pid_t outer = fork();
    if (outer) return outer;
    if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) _exit(77);
    pid_t pid = fork();
    if (pid < 0) _exit(77);
    if (pid == 0) _exit(getpid() == 1 ? fn(sh) : 99);
    _exit(exit_of(pid));
}
static int hold_a_while(struct shared *sh)
{
    if (pgs__robust_lock(&sh->lock, -1, NULL, NULL) != 0) return 1;
    atomic_store(&sh->ready, 1);
    usleep(300000);
    sh->a = 1;
    pgs__robust_unlock(&sh->lock);
    return 0;
}
static int want_it_too(struct shared *sh)
{
    if (pgs__robust_lock(&sh->lock, 0, NULL, NULL) != -PGS_ELOCKED) return 1;
    if (pgs__robust_lock(&sh->lock, 20000000, NULL, NULL) != -PGS_ELOCKED) return 2;
    if (pgs__robust_lock(&sh->lock, -1, NULL, NULL) != 0) return 3;
    if (sh->a != 1) return 4;
    pgs__robust_unlock(&sh->lock);
    return 0;
}

TEST(a_namesake_in_another_pid_namespace_is_waited_for)
{
    struct shared *sh = shared_new();
    pid_t a = in_own_namespace(hold_a_while, sh);
    for (int i = 0; i < 2000 && !atomic_load(&sh->ready); i++) usleep(1000);
    if (!atomic_load(&sh->ready)) SKIP("no PID namespaces here");
    pid_t b = in_own_namespace(want_it_too, sh);
    CHECK_EQ(exit_of(b), 0);
    CHECK_EQ(exit_of(a), 0);
}

/* --- ranks ------------------------------------------------------------------------------------------------------------------ */
static bool aborts(void (*fn)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2); /* the report is expected */
        signal(SIGABRT, SIG_DFL);
        fn();
        _exit(0);
    }
    int status;
    while (waitpid(pid, &status, 0) < 0) {
    }
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static struct pgs__mutex m_store, m_leaf, m_leaf2, m_pins;
static struct shared *rank_sh;

static void ranks_init(void)
{
    pgs__mutex_init(&m_store, PGS__RANK_STORE);
    pgs__mutex_init(&m_pins, PGS__RANK_PINS);
    pgs__mutex_init(&m_leaf, PGS__RANK_LEAF);
    pgs__mutex_init(&m_leaf2, PGS__RANK_LEAF);
    rank_sh = shared_new();
}
static void ascending(void)
{
    pgs__mutex_lock(&m_store);
    if (pgs__robust_lock(&rank_sh->lock, 0, NULL, NULL) != 0) _exit(1);
    pgs__mutex_lock(&m_pins);
    pgs__mutex_lock(&m_leaf);
    pgs__robust_unlock(&rank_sh->lock); /* any order of release */
    pgs__mutex_unlock(&m_leaf);
    pgs__mutex_unlock(&m_store);
    pgs__mutex_unlock(&m_pins);
    pgs__mutex_lock(&m_store); /* nothing is held any more */
    pgs__mutex_unlock(&m_store);
}
static void descending(void)
{
    pgs__mutex_lock(&m_pins);
    pgs__mutex_lock(&m_store);
}
static void robust_under_pins(void)
{
    pgs__mutex_lock(&m_pins);
    pgs__robust_lock(&rank_sh->lock, 0, NULL, NULL);
}
static void store_under_robust(void)
{
    pgs__robust_lock(&rank_sh->lock, 0, NULL, NULL);
    pgs__mutex_lock(&m_store);
}
static void two_leaves(void)
{
    pgs__mutex_lock(&m_leaf);
    pgs__mutex_lock(&m_leaf2);
}
static void foreign_unlock(void)
{
    pgs__mutex_unlock(&m_leaf);
}

TEST(locks_out_of_order_are_a_bug_at_once)
{
    ranks_init();
    CHECK(!aborts(ascending));
    CHECK(aborts(descending));
    CHECK(aborts(robust_under_pins));
    CHECK(aborts(store_under_robust));
    CHECK(aborts(two_leaves));
    CHECK(aborts(foreign_unlock));
}

/* --- locks of descriptions ----------------------------------------------------------------------------------------------------- */
#define SLOT ((UINT64_C(1) << 62) + 5)

static char file_dir[64];

static int file_new(void)
{
    strcpy(file_dir, "/tmp/pgs-lock-XXXXXX");
    CHECK(mkdtemp(file_dir));
    char path[80];
    snprintf(path, sizeof path, "%s/f", file_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    return fd;
}

static int file_again(int flags)
{
    char path[80];
    snprintf(path, sizeof path, "%s/f", file_dir);
    int fd = open(path, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static void file_remove(void)
{
    char path[80];
    snprintf(path, sizeof path, "%s/f", file_dir);
    unlink(path);
    rmdir(file_dir);
}

/* Busy as another description sees it. */
static int busy(uint64_t off)
{
    int fd = file_again(O_RDONLY), b = pgs__ofd_busy(fd, off);
    close(fd);
    return b;
}

/* Wait until the byte is free: a dying process lets go a little after waitpid's answer. */
static bool falls(uint64_t off)
{
    for (int i = 0; i < 200; i++) {
        if (busy(off) == 0) return true;
        nap(5 * MS);
    }
    return false;
}

TEST(a_description_lock_is_seen_by_others_only)
{
    int a = file_new(), b = file_again(O_RDWR), ro = file_again(O_RDONLY);
    CHECK_EQ(pgs__ofd_lock(a, SLOT, true), 0);
    CHECK_EQ(pgs__ofd_lock(a, SLOT, true), 0); /* its own never conflicts */
    CHECK_EQ(pgs__ofd_busy(a, SLOT), 0);
    CHECK_EQ(pgs__ofd_busy(b, SLOT), 1);
    CHECK_EQ(pgs__ofd_busy(ro, SLOT), 1);
    CHECK_EQ(pgs__ofd_busy(ro, SLOT + 1), 0);
    CHECK_EQ(pgs__ofd_lock(b, SLOT, true), -EAGAIN);
    CHECK_EQ(pgs__ofd_lock(b, SLOT + 1, true), 0);
    CHECK_EQ(pgs__ofd_unlock(a, SLOT), 0);
    CHECK_EQ(pgs__ofd_lock(ro, SLOT, false), 0); /* readers pin without write permission */
    CHECK_EQ(pgs__ofd_lock(b, SLOT, false), 0);
    CHECK_EQ(pgs__ofd_lock(a, SLOT, true), -EAGAIN);
    CHECK_EQ(pgs__ofd_lock(ro, SLOT + 9, true), -EBADF);
    CHECK_EQ(pgs__ofd_lock(a, UINT64_MAX, true), -EINVAL);
    file_remove();
}

/* Through /proc/self/fd, or by name where there is none. */
static int take(int fd, uint64_t off, bool dont_fork, struct pgs__held_lock *l)
{
    if (pgs__cap(PGS__CAP_PROC_FD)) return pgs__held_lock_take(fd, off, dont_fork, l);
    int dir = open(file_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = pgs__held_lock_take_at(dir, "f", off, dont_fork, l);
    close(dir);
    return rc;
}

TEST(a_held_lock_survives_close_and_closerange)
{
    int fd = file_new();
    struct pgs__held_lock l = {0};
    CHECK_EQ(take(fd, SLOT, true, &l), 0);
    CHECK_EQ(busy(SLOT), 1);
    close(fd);
    for (int i = 3; i < 256; i++) close(i);
    CHECK_EQ(busy(SLOT), 1);
    struct pgs__held_lock other = {0};
    fd = file_again(O_RDWR);
    CHECK_EQ(take(fd, SLOT, true, &other), -EAGAIN);
    CHECK(!other.map);
    CHECK_EQ(take(fd, SLOT + 1, true, &other), 0); /* a neighbour */
    pgs__held_lock_drop(&l);
    CHECK_EQ(busy(SLOT), 0);
    CHECK_EQ(busy(SLOT + 1), 1);
    pgs__held_lock_drop(&l); /* unheld: nothing */
    pgs__held_lock_drop(&other);
    CHECK_EQ(busy(SLOT + 1), 0);
    file_remove();
}

TEST(a_held_lock_can_be_taken_by_name)
{
    int fd = file_new(), dir = open(file_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct pgs__held_lock l = {0};
    setenv("PAGESTONE_WITHOUT", "proc_fd", 1);
    pgs__caps_reset();
    CHECK_EQ(pgs__held_lock_take(fd, SLOT, true, &l), -ENOTSUP);
    CHECK_EQ(pgs__held_lock_take_at(dir, "f", SLOT, true, &l), 0);
    CHECK_EQ(busy(SLOT), 1);
    pgs__held_lock_drop(&l);
    CHECK_EQ(pgs__held_lock_take_at(dir, "none", SLOT, true, &l), -ENOENT);
    file_remove();
}

TEST(a_held_lock_works_on_a_memfd_through_proc)
{
    int fd = pgs__file_ops->memfd("t"), again;
    char path[40];
    struct pgs__held_lock l = {0};
    if (!pgs__cap(PGS__CAP_PROC_FD)) SKIP("memfds cannot be opened again");
    CHECK_EQ(pgs__held_lock_take(fd, SLOT, true, &l), 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK((again = open(path, O_RDWR | O_CLOEXEC)) >= 0);
    CHECK_EQ(pgs__ofd_busy(again, SLOT), 1);
    CHECK_EQ(pgs__ofd_busy(fd, SLOT), 1); /* the memfd's own description does not hold it either */
    pgs__held_lock_drop(&l);
    CHECK_EQ(pgs__ofd_busy(again, SLOT), 0);
}

TEST(a_failed_take_leaves_nothing)
{
    int fd = file_new();
    struct pgs__held_lock l = {0};
    static const struct {
        enum pgs__fail_kind kind;
        int e;
    } cases[] = {{PGS__FAIL_FILE, EMFILE}, {PGS__FAIL_MAP, ENOMEM}};
    for (int i = 0; i < 2; i++) {
        pgs__inject_fail(cases[i].kind, 1, cases[i].e, false);
        CHECK_EQ(take(fd, SLOT, true, &l), -cases[i].e);
        CHECK(!l.map);
        CHECK_EQ(busy(SLOT), 0);
    }
    file_remove();
}

/* A child that holds SLOT, forks a grandchild that lives on until `word`, and is killed. */
static void parent_killed(bool dont_fork, bool kept)
{
    struct shared *sh = shared_new();
    int fd = file_new();
    pid_t pid = fork();
    if (pid == 0) {
        struct pgs__held_lock l = {0};
        if (take(fd, SLOT, dont_fork, &l) != 0) _exit(1);
        if (fork() == 0) {
            set_word(&sh->ready, 1);
            wait_word(&sh->word, 1);
            _exit(0);
        }
        for (;;) pause();
    }
    wait_word(&sh->ready, 1);
    CHECK_EQ(busy(SLOT), 1);
    kill(pid, SIGKILL);
    reap(pid);
    if (kept) {
        nap(50 * MS);
        CHECK_EQ(busy(SLOT), 1);
    } else {
        CHECK(falls(SLOT)); /* while the grandchild lives */
    }
    set_word(&sh->word, 1);
    CHECK(falls(SLOT));
    file_remove();
}

TEST(a_held_lock_with_dontfork_dies_with_its_process)
{
    parent_killed(true, false);
}

TEST(a_held_lock_without_dontfork_is_kept_by_children)
{
    parent_killed(false, true);
}

TEST(a_child_can_make_an_inherited_lock_its_own)
{
    struct shared *sh = shared_new();
    int fd = file_new();
    struct pgs__held_lock l = {0};
    CHECK_EQ(take(fd, SLOT, false, &l), 0); /* prepare hook: the child's */
    pid_t pid = fork();
    if (pid == 0) {
        if (pgs__held_lock_dontfork(&l) != 0) _exit(1); /* child hook */
        if (fork() == 0) {                              /* a grandchild has nothing of it */
            set_word(&sh->ready, 1);
            wait_word(&sh->word, 1);
            _exit(0);
        }
        for (;;) pause();
    }
    pgs__held_lock_drop(&l); /* parent hook */
    wait_word(&sh->ready, 1);
    CHECK_EQ(busy(SLOT), 1);
    kill(pid, SIGKILL);
    reap(pid);
    CHECK(falls(SLOT));
    set_word(&sh->word, 1);
    file_remove();
}

TEST(a_raw_clone_does_not_inherit_the_lock)
{
    struct shared *sh = shared_new();
    int fd = file_new();
    struct pgs__held_lock l = {0};
    CHECK_EQ(take(fd, SLOT, true, &l), 0);
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        set_word(&sh->ready, 1);
        wait_word(&sh->word, 1);
        _exit(0);
    }
    wait_word(&sh->ready, 1);
    pgs__held_lock_drop(&l);
    CHECK_EQ(busy(SLOT), 0);
    set_word(&sh->word, 1);
    reap(pid);
    file_remove();
}

TEST(exec_releases_a_held_lock)
{
    int fd = file_new(), out[2];
    CHECK_EQ(pipe(out), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct pgs__held_lock l = {0};
        if (take(fd, SLOT, true, &l) != 0 || busy(SLOT) != 1) _exit(1);
        dup2(out[1], 1);
        execl("/bin/sh", "sh", "-c", "echo; exec sleep 20", (char *)NULL);
        _exit(1);
    }
    char c;
    CHECK_EQ(read(out[0], &c, 1), 1); /* the new program runs */
    CHECK(falls(SLOT));
    CHECK_EQ(kill(pid, SIGKILL), 0);
    reap(pid);
    file_remove();
}

/* --- futexes, hooks ------------------------------------------------------------------------------------------------------------------ */
TEST(a_futex_wakes_times_out_and_works_read_only)
{
    int fd = pgs__file_ops->memfd("t"), rc;
    CHECK_EQ(pgs__file_ops->ftruncate(fd, 4096), 0);
    _Atomic uint32_t *w = pgs__file_ops->map(fd, PGS__MAP_WRITE, NULL, 4096, 0, &rc);
    const _Atomic uint32_t *r = pgs__file_ops->map(fd, PGS__MAP_READ, NULL, 4096, 0, &rc);
    CHECK_EQ(pgs__futex_wait(r, 1, -1), 0); /* changed already */
    uint64_t t0 = pgs__clock_mono_ns();
    CHECK_EQ(pgs__futex_wait(r, 0, 30 * MS), -ETIMEDOUT);
    CHECK((int64_t)(pgs__clock_mono_ns() - t0) >= 30 * MS);
    pid_t pid = fork();
    if (pid == 0) {
        nap(30 * MS);
        atomic_store(w, 1);
        pgs__futex_wake_all(w);
        _exit(0);
    }
    while (atomic_load(r) == 0) {
        rc = pgs__futex_wait(r, 0, 10000 * MS);
        CHECK(rc == 0 || rc == -EINTR); /* never a time-out: another mapping's wake arrives */
    }
    reap(pid);
}

static int hooks[3];
static void on_prepare(void)
{
    hooks[0]++;
}
static void on_parent(void)
{
    hooks[1]++;
}
static void on_child(void)
{
    hooks[2]++;
}

TEST(fork_hooks_run_once_each)
{
    CHECK_EQ(pgs__fork_hooks(on_prepare, on_parent, on_child), 0);
    CHECK_EQ(pgs__fork_hooks(on_prepare, on_parent, on_child), 0); /* the second time: nothing */
    pid_t pid = fork();
    if (pid == 0) _exit(hooks[0] == 1 && hooks[1] == 0 && hooks[2] == 1 ? 0 : 1);
    CHECK_EQ(exit_of(pid), 0);
    CHECK(hooks[0] == 1 && hooks[1] == 1 && hooks[2] == 0);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
