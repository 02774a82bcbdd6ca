/* Pagestone | tests/mp/test_pins — pins, slots, the commit lock and readers without permission, between processes.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mount.h>
#include <time.h>

#include "tests/unit/session_fixture.h"

/* --- seen by others ---------------------------------------------------------------------------------------------------- */
TEST(pins_are_seen_by_other_processes_until_they_are_dropped_or_swept)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin a, b;
        CHECK_OK(pgs__pin_head(s, &root, &a, &err));
        CHECK_OK(tiny_commit(s, &err));
        CHECK_OK(pgs__pin_head(s, &root, &b, &err));
        gate_open(&up);
        gate_wait(&down);
        pgs__pin_drop(s, &a);
        gate_open(&up);
        gate_wait(&down);
        raise(SIGKILL);
    }
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 1);
    CHECK_EQ(is_pinned(s, 2), 1);
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 0);
    CHECK_EQ(is_pinned(s, 2), 1);
    CHECK_EQ(pgs__sweep(s, true), 0);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    CHECK_EQ(is_pinned(s, 2), 1); /* counts until it is swept */
    CHECK(pgs__sweep(s, true) >= 1);
    CHECK_EQ(is_pinned(s, 2), 0);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

struct seen {
    int n;
    uint64_t pid, gen;
    bool self;
    char command[96];
};
static int note_slot(void *ctx, const struct pgs__slot_info *i)
{
    struct seen *seen = ctx;
    seen->n++;
    seen->pid = i->pid;
    seen->gen = i->gens[0];
    seen->self = i->self;
    memcpy(seen->command, i->command, 96);
    CHECK_EQ(i->n_gens, 1);
    return 0;
}

TEST(readers_are_listed_with_pid_and_command)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin pin;
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    gate_wait(&up);
    struct seen seen = {0};
    CHECK_OK(pgs__slots_walk(s, note_slot, &seen, &err));
    CHECK_EQ(seen.n, 1);
    CHECK_EQ(seen.pid, pid);
    CHECK_EQ(seen.gen, 1);
    CHECK(!seen.self && strstr(seen.command, "test_pins"));
    gate_open(&down);
    wait_for(pid);
    pgs__session_unref(s);
}

TEST(a_dead_process_loses_its_chunks_and_a_stopped_one_does_not)
{
    for (int planted = 0; planted < 2; planted++) {
        in_memory();
        struct pgs__session *s = must_open(PGS_MODE_A, 0);
        pid_t pid[2];
        struct gate up = gate_new();
        for (uint64_t i = 0; i < 2; i++) {
            pid[i] = fork_bounded();
            if (pid[i]) continue;
            CHECK_OK(pgs__owner_reserve(&s->ctl, 8, &err));
            CHECK(pgs__owner_claim(&s->ctl, i, s->tag));
            gate_open(&up);
            for (;;) pause();
        }
        gate_wait(&up);
        gate_wait(&up);
        kill(pid[0], SIGKILL);
        kill(pid[1], SIGSTOP);
        wait_for(pid[0]);
        if (planted) pgs__inject_plant(9);
        CHECK(pgs__sweep(s, true) >= 1);
        CHECK_EQ(pgs__owner_of(&s->ctl, 0) != 0, planted); /* the planted bug shows here */
        CHECK(pgs__owner_of(&s->ctl, 1) != 0);
        CHECK_EQ(tagged_slots(s), 2);
        kill(pid[1], SIGKILL);
        wait_for(pid[1]);
        pgs__inject_clear();
        pgs__sweep(s, true);
        CHECK_EQ(pgs__owner_of(&s->ctl, 1), 0);
        pgs__session_unref(s);
    }
}

/* A process may die between the claim of chunks and the growth of the file that they are for. */
TEST(chunks_beyond_the_end_of_the_file_are_taken_back_too)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    uint64_t end = atomic_load(&s->pf.n_pages) / PGS_CHUNK_PAGES, far = end + 3000;
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK_OK(pgs__owner_reserve(&s->ctl, far + 1, &err));
        CHECK(pgs__owner_claim(&s->ctl, end, s->tag) && pgs__owner_claim(&s->ctl, far, s->tag));
        raise(SIGKILL);
    }
    wait_for(pid);
    CHECK(pgs__owner_of(&s->ctl, far) != 0);
    CHECK(pgs__sweep(s, true) >= 1);
    CHECK_EQ(pgs__owner_of(&s->ctl, end), 0);
    CHECK_EQ(pgs__owner_of(&s->ctl, far), 0);
    pgs__session_unref(s);
}

TEST(a_sweeper_that_is_killed_leaves_a_dead_slot_for_the_next)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork_bounded();
        if (pid == 0) {
            struct pgs__root root;
            struct pgs__pin pin;
            if (i == 1) { /* the second one sweeps the first, and dies of it */
                setenv("PAGESTONE_KILL", "in_sweep", 1);
                pgs__sweep(s, true);
                _exit(0);
            }
            CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
            raise(SIGKILL);
        }
        CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    }
    CHECK_EQ(is_pinned(s, 1), 1);
    CHECK(pgs__sweep(s, true) >= 2);
    CHECK_EQ(is_pinned(s, 1), 0);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

TEST(many_processes_get_slots_of_their_own_and_give_them_back)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct gate up = gate_new(), down = gate_new();
    enum { N = 40 };
    pid_t pid[N];
    for (int i = 0; i < N; i++) {
        pid[i] = fork_bounded();
        if (pid[i]) continue;
        struct pgs__root root;
        struct pgs__pin pin;
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
        gate_open(&up);
        gate_wait(&down);
        pgs__pin_drop(s, &pin);
        pgs__session_unref(s);
        _exit(0);
    }
    for (int i = 0; i < N; i++) gate_wait(&up);
    CHECK_EQ(tagged_slots(s), N + 1);
    for (int i = 0; i < N; i++) gate_open(&down);
    for (int i = 0; i < N; i++) CHECK_EQ(wait_for(pid[i]), 0);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

/* In a child that is nobody: the store's directory and files readable for all. */
static void open_up(void)
{
    char cmd[384];
    snprintf(cmd, sizeof cmd, "chmod 755 '%s' '%s' && chmod 644 '%s'/*", scratch, store_path, store_path);
    CHECK(system(cmd) == 0);
}
static void become_nobody(void)
{
    CHECK(setgid(65534) == 0 && setuid(65534) == 0);
}

/* --- the protocol, for real: one process drops, several pin ------------------------------------------------------------------ */
#define RING 65536u
struct litmus {
    _Atomic uint64_t dropped[RING]; /* generation that was dropped last in this place */
    _Atomic bool stop, violated;
    _Atomic uint64_t rounds;
};

static void litmus_reader(struct pgs__session *s, struct litmus *m)
{
    struct pgs__root root;
    struct pgs__pin pin;
    while (!atomic_load(&m->stop)) {
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
        for (int i = 0; i < 20; i++)
            if (atomic_load(&m->dropped[root.gen % RING]) == root.gen) atomic_store(&m->violated, true);
        pgs__pin_drop(s, &pin);
        atomic_fetch_add_explicit(&m->rounds, 1, memory_order_relaxed);
    }
}

/* What a store does that keeps no history: each commit expires the head before it, and drops what was expired earlier and is not pinned. */
static void litmus_dropper(struct pgs__session *s, struct litmus *m, uint64_t until_ns)
{
    uint64_t zombies[256], n = 0;
    while (pgs__clock_mono_ns() < until_ns && !atomic_load(&m->violated)) {
        struct pgs__pinned_set set;
        struct pgs__root root = head_of(s);
        CHECK_OK(pgs__commit_lock(s, NULL, &err));
        CHECK_OK(pgs__pinned_collect(s, &set, &err));
        uint64_t left = 0;
        for (uint64_t i = 0; i < n; i++) {
            int pinned = pgs__pinned(&set, zombies[i]);
            CHECK(pinned >= 0);
            if (pinned)
                zombies[left++] = zombies[i];
            else
                atomic_store(&m->dropped[zombies[i] % RING], zombies[i]);
        }
        pgs__pinned_free(&set);
        n = left;
        CHECK(n < 250);
        zombies[n++] = root.gen;
        root.gen++;
        CHECK_OK(pgs__publish(s, &root, PGS_DUR_NONE, false, true, 0, &err));
        pgs__commit_unlock(s);
    }
    atomic_store(&m->stop, true);
}

static bool litmus(int plant, uint64_t ns, bool as_nobody)
{
    enum { N = 5 };
    pid_t pid[N];
    struct litmus *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(m != MAP_FAILED);
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    open_up();
    pgs__inject_plant(plant);
    for (int i = 0; i < N; i++) {
        pid[i] = fork_bounded();
        if (pid[i]) continue;
        if (as_nobody) {
            become_nobody();
            s = must_open(PGS_MODE_R, 0);
            CHECK(!s->writable);
        }
        litmus_reader(s, m);
        _exit(0);
    }
    litmus_dropper(s, m, pgs__clock_mono_ns() + ns);
    for (int i = 0; i < N; i++) CHECK_EQ(wait_for(pid[i]), 0);
    pgs__inject_clear();
    bool violated = atomic_load(&m->violated);
    CHECK(violated || atomic_load(&m->rounds) > 1000);
    munmap(m, sizeof *m);
    pgs__session_unref(s);
    return violated;
}

TEST(a_pinned_generation_is_never_dropped)
{
    CHECK(!litmus(0, 1500000000, false));
}

TEST(a_generation_pinned_by_a_read_lock_is_never_dropped)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    CHECK(!litmus(0, 1500000000, true));
}

TEST(a_pin_that_is_not_checked_again_is_found_out)
{
    CHECK(litmus(4, 20000000000, false)); /* ends with the first violation */
}

/* --- the owner of the commit lock dies ------------------------------------------------------------------------------------------ */
/* Kill a committer at a point; the next commit must work, and what is there must be one of the two states. */
static void kill_committer(const char *point, enum pgs_durability d, uint64_t lo, uint64_t hi)
{
    struct pgs__session *s = must_open(PGS_MODE_A, d);
    CHECK_OK(tiny_commit(s, &err));
    uint64_t before = head_of(s).version;
    pid_t pid = fork_bounded();
    if (pid == 0) {
        setenv("PAGESTONE_KILL", point, 1);
        if (tiny_commit(s, &err)) _exit(1);
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    CHECK_OK(tiny_commit(s, &err));
    uint64_t done = head_of(s).version - before - 1; /* of the killed one */
    if (done < lo || done > hi) TEST_FAIL("%s: %d commits of the dead process", point, (int)done);
    CHECK(!(atomic_load(&s->ctl.c->flags) & PGS__CTL_NEEDS_REPAIR));
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s, &l, &err));
    CHECK_OK(pgs__ledger_check(&l, NULL, NULL, NULL, &err));
    pgs__meta_end(s, &l);
    struct pgs__super super;
    CHECK_OK(pgs__super_read(&s->pf, &super, false, &err));
    CHECK(super.root.gen <= head_of(s).gen);
    if (d != PGS_DUR_ORDERED) CHECK_EQ(super.root.gen, head_of(s).gen);
    pgs__session_unref(s);
    s = must_open(PGS_MODE_RPLUS, 0);
    CHECK_EQ(head_of(s).version, before + 1 + done);
    pgs__session_unref(s);
}

TEST(a_committer_killed_anywhere_leaves_all_or_nothing_and_nobody_hangs)
{
    static const struct {
        const char *point;
        uint64_t done;
    } points[] = {{"locked", 0},        {"before_super", 0},       {"super_write", 0},
                  {"after_super", 1},   {"ctl_stage_half", 1},     {"before_publish", 1},
                  {"after_publish", 1}, {"ctl_publish_before", 1}, {"ctl_publish_after", 1}};
    for (size_t i = 0; i < PGS_ARRAY_LEN(points); i++) {
        in_memory();
        kill_committer(points[i].point, PGS_DUR_NONE, points[i].done, points[i].done);
        on_disk();
        kill_committer(points[i].point, PGS_DUR_FULL, points[i].done, points[i].done);
        on_disk();
        kill_committer(points[i].point, PGS_DUR_NONE, points[i].done, points[i].done);
        if (strstr(points[i].point, "super")) continue; /* "ordered" writes none here */
        on_disk();
        bool seen = strcmp(points[i].point, "after_publish") == 0 || strcmp(points[i].point, "ctl_publish_after") == 0;
        kill_committer(points[i].point, PGS_DUR_ORDERED, seen, seen);
    }
}

TEST(heirs_that_are_killed_in_recovery_leave_it_to_the_next)
{
    static const char *const deaths[] = {"in_recovery:1", "in_recovery:2", "ctl_stage_half", "ctl_publish_before",
                                         "ctl_publish_after"};
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        setenv("PAGESTONE_KILL", "after_super", 1);
        (void)tiny_commit(s, &err);
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    for (size_t i = 0; i < PGS_ARRAY_LEN(deaths); i++) {
        pid = fork_bounded();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", deaths[i], 1);
            CHECK_OK(pgs__commit_lock(s, NULL, &err));
            _exit(0);
        }
        CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    }
    CHECK_OK(tiny_commit(s, &err));
    CHECK_EQ(head_of(s).version, 2);
    pgs__session_unref(s);
}

TEST(recovery_raises_the_epoch_and_wakes_sleepers)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    uint64_t epoch = atomic_load(&s->ctl.c->drop_epoch);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        setenv("PAGESTONE_KILL", "after_publish", 1);
        (void)commit_kind(s, false, &err); /* expires the head before it; dies before it raises the epoch */
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    CHECK_EQ(atomic_load(&s->ctl.c->drop_epoch), epoch);
    CHECK_OK(pgs__commit_lock(s, NULL, &err));
    CHECK(atomic_load(&s->ctl.c->drop_epoch) > epoch);
    pgs__commit_unlock(s);
    pgs__session_unref(s);
}

static bool repaired(int plant)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        setenv("PAGESTONE_KILL", "after_super", 1);
        (void)tiny_commit(s, &err);
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    pgs__inject_plant(plant);
    CHECK_OK(pgs__commit_lock(s, NULL, &err));
    pgs__commit_unlock(s);
    pgs__inject_clear();
    bool done = head_of(s).version == 1;
    pgs__session_unref(s);
    return done;
}

TEST(a_lock_that_is_not_repaired_is_found_out)
{
    CHECK(repaired(0));
    CHECK(!repaired(5));
}

/* A power loss forgets the control file: what was seen must be in a superblock. */
static bool seen_is_durable(int plant)
{
    on_disk();
    struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_FULL);
    pid_t pid = fork_bounded();
    if (pid == 0) {
        pgs__inject_plant(plant);
        setenv("PAGESTONE_KILL", "before_super", 1);
        (void)tiny_commit(s, &err);
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    struct pgs__super super;
    CHECK_OK(pgs__super_read(&s->pf, &super, false, &err));
    bool ok = super.root.gen >= head_of(s).gen;
    pgs__session_unref(s);
    return ok;
}

TEST(a_control_word_stored_before_the_superblock_is_found_out)
{
    CHECK(seen_is_durable(0));
    CHECK(!seen_is_durable(8));
}

TEST(commits_of_many_processes_are_one_history_under_random_kills)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    _Atomic uint64_t *acknowledged = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(acknowledged != MAP_FAILED);
    unsigned seed = 12345;
    for (int round = 0; round < 30; round++) {
        pid_t pid[3];
        for (int i = 0; i < 3; i++) {
            pid[i] = fork_bounded();
            if (pid[i]) continue;
            for (;;) {
                if (tiny_commit(s, &err)) _exit(1);
                uint64_t v = head_of(s).version, seen = atomic_load(acknowledged);
                while (seen < v && !atomic_compare_exchange_weak(acknowledged, &seen, v)) {
                }
            }
        }
        for (int i = 0; i < 3; i++) {
            seed = seed * 1103515245 + 12345;
            nanosleep(&(struct timespec){.tv_nsec = (long)(seed >> 8) % 8000000}, NULL);
            kill(pid[i], SIGKILL);
        }
        for (int i = 0; i < 3; i++) CHECK_EQ(wait_for(pid[i]), 1000 + SIGKILL);
        CHECK_OK(tiny_commit(s, &err));
        CHECK(head_of(s).version > atomic_load(acknowledged));
        struct pgs__ledger l;
        CHECK_OK(pgs__meta_begin(s, &l, &err));
        CHECK_OK(pgs__ledger_check(&l, NULL, NULL, NULL, &err));
        pgs__meta_end(s, &l);
    }
    pgs__sweep(s, true);
    CHECK_EQ(tagged_slots(s), 1);
    pgs__session_unref(s);
}

/* --- readers without write permission ----------------------------------------------------------------------------------------------- */
TEST(a_reader_without_permission_pins_by_read_locks)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    CHECK_OK(tiny_commit(s, &err));
    open_up();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin pin, pin2;
        struct pgs__ledger l;
        pgs__session_unref(s); /* the one inherited; ours is another process's */
        become_nobody();
        CHECK_ERR(try_open(PGS_MODE_RPLUS), PGS_EACCES);
        struct pgs__session *r = must_open(PGS_MODE_R, 0);
        CHECK(!r->writable && !r->frozen);
        CHECK_OK(pgs__pin_head(r, &root, &pin, &err));
        CHECK_EQ(root.gen, 2);
        CHECK_ERR(tiny_commit(r, &err), PGS_EREADONLY);
        CHECK_OK(pgs__meta_begin(r, &l, &err));
        gate_open(&up);
        gate_wait(&down);
        pgs__meta_end(r, &l);
        gate_open(&up);
        gate_wait(&down); /* two commits later, one of them maintenance */
        CHECK_OK(pgs__pin_head(r, &root, &pin2, &err));
        CHECK_EQ(root.gen, 4);
        pgs__pin_drop(r, &pin);
        CHECK_OK(pgs__pin_gen(r, 3, 1000000000, &root, &pin, &err)); /* expired, still in the chain */
        CHECK_EQ(root.gen, 3);
        gate_open(&up);
        gate_wait(&down);
        for (int fd = 3; fd < 100; fd++)
            if (fd != up.fd[1] && fd != down.fd[0]) close(fd);
        struct pgs__pin pin3;
        CHECK_OK(pgs__pin_head(r, &root, &pin3, &err)); /* the same generation: no new lock */
        pgs__pin_drop(r, &pin2);
        pgs__pin_drop(r, &pin3);
        gate_open(&up);
        gate_wait(&down);
        raise(SIGKILL);
    }
    gate_wait(&up);
    CHECK_EQ(tagged_slots(s), 1);
    CHECK_EQ(is_pinned(s, 2), 1);
    CHECK_EQ(pgs__read_locked(s, 2), 1);
    CHECK_EQ(pgs__min_meta_pin(s), 2);
    gate_open(&down);
    gate_wait(&up);
    CHECK(pgs__min_meta_pin(s) == UINT64_MAX);
    CHECK_OK(tiny_commit(s, &err));
    CHECK_OK(commit_kind(s, false, &err));
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 2), 0);
    CHECK_EQ(is_pinned(s, 3), 1);
    CHECK_EQ(is_pinned(s, 4), 1);
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 3), 1);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    CHECK_EQ(is_pinned(s, 3), 0); /* the kernel swept */
    pgs__session_unref(s);
}

TEST(a_reader_that_pins_nothing_is_not_left_behind_by_a_new_control_file)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    CHECK_OK(tiny_commit(s, &err));
    open_up();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        pgs__session_unref(s);
        become_nobody();
        struct pgs__session *r = must_open(PGS_MODE_R, 0);
        CHECK(!r->writable && !r->frozen);
        gate_open(&up);
        gate_wait(&down);
        pgs__session_unref(r);
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    gate_wait(&up);
    pgs__session_unref(s);
    CHECK(unlink(in_store("control")) == 0);
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ELOCKED);
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(try_open(PGS_MODE_A), 0);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
}

TEST(a_reader_keeps_its_locks_when_its_descriptors_are_closed)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    open_up();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin pin, pin2;
        become_nobody();
        struct pgs__session *r = must_open(PGS_MODE_R, 0);
        CHECK_OK(pgs__pin_head(r, &root, &pin, &err));
        for (int fd = 3; fd < 100; fd++)
            if (fd != up.fd[1] && fd != down.fd[0]) close(fd);
        gate_open(&up);
        gate_wait(&down);
        CHECK_OK(pgs__pin_head(r, &root, &pin2, &err)); /* on another description, with all the locks */
        CHECK_EQ(root.gen, 2);
        gate_open(&up);
        gate_wait(&down);
        pgs__pin_drop(r, &pin);
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 1);
    CHECK_OK(tiny_commit(s, &err));
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 1);
    CHECK_EQ(is_pinned(s, 2), 1);
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 0);
    CHECK_EQ(is_pinned(s, 2), 1);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    pgs__session_unref(s);
}

TEST(a_reader_forks)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    open_up();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin pin;
        become_nobody();
        struct pgs__session *r = must_open(PGS_MODE_R, 0);
        CHECK_OK(pgs__pin_head(r, &root, &pin, &err));
        pid_t grandchild = fork_bounded();
        if (grandchild == 0) {
            gate_open(&up);
            gate_wait(&down);
            pgs__pin_drop(r, &pin);
            gate_open(&up);
            gate_wait(&down);
            _exit(0);
        }
        raise(SIGKILL);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 1); /* the grandchild's own lock */
    gate_open(&down);
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 0);
    gate_open(&down);
    pgs__session_unref(s);
}

TEST(a_reader_before_any_writer_of_this_boot_keeps_what_it_sees)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(s);
    CHECK(unlink(in_store("control")) == 0);
    open_up();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin pin;
        struct pgs__ledger l;
        become_nobody();
        struct pgs__session *r = must_open(PGS_MODE_R, 0);
        CHECK(r->frozen);
        CHECK_OK(pgs__pin_head(r, &root, &pin, &err));
        pgs__pin_drop(r, &pin);
        gate_open(&up);
        gate_wait(&down);
        CHECK_OK(pgs__pin_head(r, &root, &pin, &err));
        CHECK_EQ(root.gen, 2);
        CHECK_OK(pgs__meta_begin(r, &l, &err));
        CHECK_OK(pgs__ledger_check(&l, NULL, NULL, NULL, &err));
        pgs__meta_end(r, &l);
        _exit(0);
    }
    gate_wait(&up);
    /* Of this boot the control file is missing, and somebody reads: another boot's is what a reader meets. */
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ELOCKED);
    int fd = open(in_store("control"), O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0);
    close(fd);
    s = must_open(PGS_MODE_A, 0);
    for (int i = 0; i < 20; i++) CHECK_OK(tiny_commit(s, &err));
    CHECK_EQ(is_pinned(s, 2), 1);
    CHECK_EQ(pgs__min_meta_pin(s), 2);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(is_pinned(s, 2), 0);
    pgs__session_unref(s);
}

TEST(a_read_only_mount_can_be_read_while_others_write)
{
    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0) SKIP("no permission to mount");
    in_memory();
    char view[96];
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    snprintf(view, sizeof view, "%s/view.ps", scratch);
    CHECK(mkdir(view, 0755) == 0);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(store_path, view, NULL, MS_BIND, NULL) ||
        mount(NULL, view, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL))
        SKIP("no permission to mount");
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__root root;
        struct pgs__pin pin;
        uint64_t version;
        snprintf(store_path, sizeof store_path, "%s", view);
        struct pgs__session *r = must_open(PGS_MODE_R, 0);
        CHECK(!r->writable);
        CHECK_OK(pgs__pin_head(r, &root, &pin, &err));
        gate_open(&up);
        struct pgs__wait w = {.timeout_ns = 5000000000};
        CHECK_OK(pgs__wait_version(r, 0, &w, &version, &err));
        CHECK_EQ(version, 1);
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    gate_wait(&up);
    CHECK_OK(tiny_commit(s, &err));
    gate_wait(&up);
    CHECK_EQ(is_pinned(s, 1), 1);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(is_pinned(s, 1), 0);
    umount2(view, MNT_DETACH);
    pgs__session_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
