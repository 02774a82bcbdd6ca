/* Pagestone | tests/mp/test_fork — what fork, exec, raw clone and closerange do to slots and pins.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "tests/unit/session_fixture.h"

static struct pgs__session *s;
static struct pgs__root root;
static struct pgs__pin pin;

static void pin_then_commit(void)
{
    in_memory();
    s = must_open(PGS_MODE_A, 0);
    CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
    CHECK_OK(tiny_commit(s, &err));
}

TEST(a_child_has_a_slot_of_its_own_with_copies_of_all_pins)
{
    pin_then_commit();
    uint32_t slot = s->slot;
    uint64_t tag = s->tag, forks = atomic_load(&s->fork_count);
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK(s->slot != slot && s->tag != tag);
        CHECK_EQ(atomic_load(&s->fork_count), forks + 1);
        CHECK_EQ(atomic_load(&pgs__ctl_slot(&s->ctl, s->slot)->pid), (uint64_t)getpid());
        CHECK(pgs__pin_valid(s, &pin));
        gate_open(&up);
        gate_wait(&down);
        CHECK_OK(tiny_commit(s, &err));
        pgs__pin_drop(s, &pin);
        gate_open(&up);
        gate_wait(&down);
        pgs__session_unref(s);
        _exit(0);
    }
    gate_wait(&up);
    CHECK_EQ(s->slot, slot);
    CHECK_EQ(s->tag, tag);
    CHECK_EQ(tagged_slots(s), 2);
    pgs__pin_drop(s, &pin);
    CHECK_EQ(is_pinned(s, pin.gen), 1); /* the child's */
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, pin.gen), 0);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

TEST(more_pins_than_fit_inline_are_copied_too)
{
    in_memory();
    s = must_open(PGS_MODE_A, 0);
    struct pgs__pin pins[100];
    for (int i = 0; i < 100; i++) {
        CHECK_OK(pgs__pin_head(s, &root, &pins[i], &err));
        CHECK_OK(tiny_commit(s, &err));
    }
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        for (int i = 0; i < 100; i++) CHECK(pgs__pin_valid(s, &pins[i]));
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    gate_wait(&up);
    for (int i = 0; i < 100; i++) pgs__pin_drop(s, &pins[i]);
    for (int i = 0; i < 100; i++) CHECK_EQ(is_pinned(s, pins[i].gen), 1);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    pgs__sweep(s, true);
    for (int i = 0; i < 100; i++) CHECK_EQ(is_pinned(s, pins[i].gen), 0);
    pgs__session_unref(s);
}

TEST(a_killed_parent_is_swept_and_its_child_keeps_its_pins)
{
    in_memory();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        s = must_open(PGS_MODE_A, 0);
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
        if (fork_bounded() == 0) {
            gate_open(&up);
            gate_wait(&down);
            CHECK(pgs__pin_valid(s, &pin));
            pgs__pin_drop(s, &pin);
            gate_open(&up);
            gate_wait(&down);
            _exit(0);
        }
        raise(SIGKILL);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    gate_wait(&up);
    s = must_open(PGS_MODE_A, 0);
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 2); /* the grandchild and we */
    CHECK_EQ(is_pinned(s, 1), 1);
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 0);
    gate_open(&down);
    pgs__session_unref(s);
}

TEST(closing_all_descriptors_in_a_child_keeps_its_slot)
{
    pin_then_commit();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        for (int fd = 3; fd < 256; fd++)
            if (fd != up.fd[1] && fd != down.fd[0]) close(fd);
        pid_t grandchild = fork_bounded(); /* with no descriptor left */
        if (grandchild == 0) {
            CHECK(pgs__pin_valid(s, &pin));
            CHECK_OK(tiny_commit(s, &err));
            _exit(0);
        }
        CHECK_EQ(wait_for(grandchild), 0);
        gate_open(&up);
        gate_wait(&down);
        CHECK_OK(tiny_commit(s, &err));
        _exit(0);
    }
    gate_wait(&up);
    pgs__pin_drop(s, &pin);
    pgs__sweep(s, true);
    CHECK_EQ(is_pinned(s, pin.gen), 1);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(head_of(s).version, 3);
    pgs__sweep(s, true);
    CHECK_EQ(is_pinned(s, pin.gen), 0);
    pgs__session_unref(s);
}

TEST(exec_gives_the_slot_up)
{
    pin_then_commit();
    struct gate down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        dup2(down.fd[0], 0);
        close(down.fd[1]);
        execlp("cat", "cat", (char *)NULL);
        _exit(1);
    }
    pgs__pin_drop(s, &pin);
    for (int i = 0; i < 2000 && is_pinned(s, pin.gen); i++) { /* until exec was reached */
        pgs__sweep(s, true);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    CHECK_EQ(is_pinned(s, pin.gen), 0);
    CHECK_EQ(tagged_slots(s), 1);
    CHECK_EQ(kill(pid, 0), 0);
    close(down.fd[0]);
    close(down.fd[1]);
    wait_for(pid);
    pgs__session_unref(s);
}

TEST(a_raw_clone_is_told_that_it_has_no_slot_and_keeps_none_alive)
{
    in_memory();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        s = must_open(PGS_MODE_A, 0);
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
        pid_t clone = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
        if (clone == 0) {
            struct pgs__pin other;
            if (pgs__session_check(s, NULL) != -PGS_EFORKED) _exit(1);
            if (pgs__pin_head(s, &root, &other, NULL) != -PGS_EFORKED) _exit(2);
            if (pgs__commit_lock(s, NULL, NULL) != -PGS_EFORKED) _exit(3);
            if (pgs__pin_valid(s, &pin)) _exit(4);
            pgs__pin_drop(s, &pin); /* must not touch the parent's cell */
            gate_open(&up);
            gate_wait(&down);
            _exit(0);
        }
        gate_wait(&up);
        CHECK(pgs__pin_valid(s, &pin));
        gate_open(&up);
        raise(SIGKILL);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    gate_wait(&up);
    s = must_open(PGS_MODE_A, 0);
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1); /* the clone is still there */
    CHECK_EQ(is_pinned(s, 1), 0);
    gate_open(&down);
    pgs__session_unref(s);
}

/* --- when nothing can be opened any more --------------------------------------------------------------------------------------- */
static struct rlimit files;
static void no_more_files(void)
{
    struct rlimit none = {.rlim_cur = 3};
    CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0);
    none.rlim_max = files.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
}
static void files_again(void)
{
    CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
}

TEST(a_fork_that_can_open_nothing_uses_the_spare_slot)
{
    pin_then_commit();
    uint32_t spare = s->spare_slot;
    CHECK(spare != PGS__NO_SLOT);
    struct gate up = gate_new(), down = gate_new();
    no_more_files();
    pid_t pid = fork_bounded();
    files_again();
    if (pid == 0) {
        CHECK_EQ(s->slot, spare);
        CHECK(!s->family);
        CHECK(pgs__pin_valid(s, &pin));
        gate_open(&up);
        gate_wait(&down);
        CHECK_OK(tiny_commit(s, &err));
        pgs__pin_drop(s, &pin);
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    CHECK_EQ(s->spare_slot, PGS__NO_SLOT);
    gate_wait(&up);
    pgs__pin_drop(s, &pin);
    CHECK_EQ(pgs__sweep(s, true), 0);
    CHECK(s->spare_slot != PGS__NO_SLOT); /* refilled */
    CHECK_EQ(is_pinned(s, pin.gen), 1);
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, pin.gen), 0);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(pgs__sweep(s, true), 1);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

TEST(a_second_one_shares_the_parents_slot_and_both_go_on_pinning)
{
    pin_then_commit();
    struct gate up = gate_new(), down = gate_new();
    no_more_files();
    pid_t first = fork_bounded();
    if (first == 0) {
        gate_wait(&down);
        _exit(0);
    }
    pid_t second = fork_bounded();
    files_again();
    if (second == 0) {
        struct pgs__pin mine;
        struct pgs__ledger l;
        CHECK(s->family && s->family_index == 1);
        CHECK(pgs__pin_valid(s, &pin));
        CHECK_OK(pgs__pin_head(s, &root, &mine, &err)); /* 2 */
        CHECK_OK(tiny_commit(s, &err));
        CHECK_OK(pgs__meta_begin(s, &l, &err)); /* 3 */
        gate_open(&up);
        gate_wait(&down);
        pgs__pin_drop(s, &mine);
        pgs__pin_drop(s, &pin);
        pgs__meta_end(s, &l);
        gate_open(&up);
        gate_wait(&down);
        raise(SIGKILL);
    }
    CHECK(s->family && s->family_index == 0);
    gate_wait(&up);
    CHECK_EQ(tagged_slots(s), 2);
    CHECK_EQ(is_pinned(s, 2), 1);
    CHECK_EQ(pgs__min_meta_pin(s), 3);
    struct pgs__pin ours;
    CHECK_OK(pgs__pin_head(s, &root, &ours, &err)); /* 3: another cell than the child's */
    CHECK_EQ(ours.gen, 3);
    pgs__pin_drop(s, &pin);
    CHECK_EQ(is_pinned(s, 1), 1);
    gate_open(&down); /* one of the two takes it */
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 1); /* was there at the fork: stays until both are gone */
    CHECK_EQ(is_pinned(s, 2), 0);
    CHECK_EQ(is_pinned(s, 3), 1);
    CHECK(pgs__min_meta_pin(s) == UINT64_MAX);
    pgs__pin_drop(s, &ours);
    CHECK_EQ(is_pinned(s, 3), 0);
    gate_open(&down);
    CHECK_EQ(wait_for(first), 0);
    CHECK_EQ(wait_for(second), 1000 + SIGKILL);
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1); /* ours, still: the parent lives */
    pgs__session_unref(s);
    s = must_open(PGS_MODE_A, 0);
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1);
    CHECK_EQ(is_pinned(s, 1), 0);
    pgs__session_unref(s);
}

/* --- in the middle of things ------------------------------------------------------------------------------------------------------ */
static void *pin_all_the_time(void *stop)
{
    struct pgs__root r;
    struct pgs__pin p;
    struct pgs__ledger l;
    struct pgs_error e = {0};
    while (!atomic_load((_Atomic bool *)stop)) {
        CHECK(pgs__pin_head(s, &r, &p, &e) == 0);
        CHECK(pgs__meta_begin(s, &l, &e) == 0);
        pgs__meta_end(s, &l);
        pgs__pin_drop(s, &p);
        pgs__sweep(s, true);
    }
    return NULL;
}
static void *commit_all_the_time(void *stop)
{
    struct pgs_error e = {0};
    while (!atomic_load((_Atomic bool *)stop)) CHECK(tiny_commit(s, &e) == 0);
    return NULL;
}

TEST(forks_under_busy_threads_neither_hang_nor_lose_locks)
{
    in_memory();
    s = must_open(PGS_MODE_A, 0);
    _Atomic bool stop = false;
    pthread_t t[3];
    CHECK(pthread_create(&t[0], NULL, pin_all_the_time, &stop) == 0);
    CHECK(pthread_create(&t[1], NULL, pin_all_the_time, &stop) == 0);
    CHECK(pthread_create(&t[2], NULL, commit_all_the_time, &stop) == 0);
    for (int i = 0; i < 100; i++) {
        pid_t pid = fork_bounded();
        if (pid == 0) {
            CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
            if (i % 4 == 0) CHECK_OK(tiny_commit(s, &err));
            CHECK(pgs__pin_valid(s, &pin));
            pgs__pin_drop(s, &pin);
            if (i % 2) raise(SIGKILL);
            pgs__session_unref(s);
            _exit(0);
        }
        int rc = wait_for(pid);
        CHECK_EQ(rc, i % 2 ? 1000 + SIGKILL : 0);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

TEST(a_process_killed_in_its_fork_hook_leaves_slots_to_sweep)
{
    pin_then_commit();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        setenv("PAGESTONE_KILL", "in_fork", 1);
        fork_bounded();
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    CHECK(tagged_slots(s) >= 3); /* its own and its unborn child's */
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

TEST(a_failed_fork_leaves_nothing_that_is_not_swept)
{
    pin_then_commit();
    struct rlimit procs, none = {0};
    CHECK(getrlimit(RLIMIT_NPROC, &procs) == 0);
    pid_t helper = fork_bounded(); /* RLIMIT_NPROC does not hold for root */
    if (helper == 0) {
        if (geteuid() == 0 && setuid(65533) != 0) _exit(77);
        if (setrlimit(RLIMIT_NPROC, &none) != 0) _exit(77);
        pid_t pid = fork_bounded();
        if (pid >= 0) _exit(77);
        CHECK(pgs__pin_valid(s, &pin));
        pgs__pin_drop(s, &pin);
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
        _exit(0);
    }
    int rc = wait_for(helper);
    if (rc == 77) SKIP("fork cannot be made to fail here");
    CHECK_EQ(rc, 0);
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

/* A pin that is handed down a chain of forks, each parent dropping its own at once, is seen by every collector (session.h, I5). */
static void relay(int hops)
{
    for (int i = 0; i < hops; i++) {
        pid_t pid = fork_bounded();
        if (pid < 0) _exit(1);
        if (pid > 0) { /* the parent's goes, its slot too */
            pgs__pin_drop(s, &pin);
            pgs__session_unref(s);
            _exit(0);
        }
    }
    pgs__pin_drop(s, &pin);
    pgs__session_unref(s);
}

TEST(a_pin_handed_down_a_chain_of_forks_is_never_out_of_sight)
{
    pin_then_commit();
    struct gate done = gate_new();
    int flags = fcntl(done.fd[0], F_GETFL);
    CHECK(fcntl(done.fd[0], F_SETFL, flags | O_NONBLOCK) == 0);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        gate_open(&done);
        relay(1500);
        gate_open(&done);
        _exit(0);
    }
    char c;
    while (read(done.fd[0], &c, 1) != 1) {
    }
    pgs__pin_drop(s, &pin);
    uint64_t looks = 0, last = 1;
    for (;;) {
        last = (uint64_t)is_pinned(s, pin.gen);
        if (!last) break;
        looks++;
    }
    for (int i = 0; i < 100 && read(done.fd[0], &c, 1) != 1; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        if (i > 50) TEST_FAIL("out of sight after %llu looks", (unsigned long long)looks);
    }
    CHECK(looks > 10);
    wait_for(pid);
    pgs__session_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
