/* Pagestone | tests/crash/test_schedule — processes stopped and killed at named points, one after the other.
 * SPDX-License-Identifier: Apache-2.0
 *
 * What random kills meet by luck happens here on purpose. Each schedule is run twice: as the library is, and in a child with the bug planted that the
 * schedule was made for, which must be found.
 */
#define _GNU_SOURCE
#include "tests/crash/world.h"

#define X_BYTES 400000u
static char path[500];

static void new_path(void)
{
    snprintf(path, sizeof path, "%s/s.ps", scratch(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL));
}

static pgs_store *open_store(void)
{
    struct pgs_options opt = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 0};
    pgs_store *s;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    return s;
}

/* x: X_BYTES of a pattern that begins with `id`. */
static int try_put(pgs_store *s, uint64_t id, bool commit, uint64_t *version)
{
    static uint8_t bytes[X_BYTES];
    pgs_txn *t;
    for (uint32_t i = 0; i + 8 <= X_BYTES; i += 8) {
        uint64_t word = id + i * 0x9e3779b97f4a7c15u;
        memcpy(bytes + i, &word, 8);
    }
    TRY(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    int rc = pgs_txn_put(t, "x", 1, PGS_KIND_BYTES, NULL, &(struct pgs_part){bytes, X_BYTES}, 1, &err);
    if (rc == 0 && commit) rc = pgs_txn_commit(t, NULL, version, &err);
    if (commit || rc) pgs_txn_unref(t);
    return rc;
}

static uint64_t put_x(pgs_store *s, uint64_t id)
{
    uint64_t version;
    int rc = try_put(s, id, true, &version);
    if (rc == -PGS_ECONFLICT) rc = try_put(s, id, true, &version); /* a dead process's commit was finished by ours */
    CHECK_OK(rc);
    return version;
}

/* The id in x; 0 when it is damaged or not whole. */
static uint64_t read_x(pgs_snapshot *sn)
{
    struct pgs_object obj;
    pgs_view *v;
    uint64_t id, word;
    if (pgs_get(sn, "x", 1, &obj, &err) || obj.n_bytes != X_BYTES || pgs_view_open(sn, &obj, 1, &v, &err)) return 0;
    const uint8_t *p = pgs_view_data(v);
    memcpy(&id, p, 8);
    for (uint32_t i = 0; i + 8 <= X_BYTES && id; i += 8) {
        memcpy(&word, p + i, 8);
        if (word != id + i * 0x9e3779b97f4a7c15u) id = 0;
    }
    pgs_view_unref(v);
    return id;
}

/* --- children ------------------------------------------------------------------------------------------------------------ */
static pid_t start(void (*fn)(void *), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        limit(30);
        fn(arg);
        _exit(0);
    }
    return pid;
}

static void await_stop(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, WUNTRACED) < 0) {
    }
    if (!WIFSTOPPED(status)) TEST_FAIL("a child ended (status %#x) before its stop", (unsigned)status);
}

/* Wake it as often as it stops; its exit status, or 256 + signal. */
static int let_run(pid_t pid)
{
    int status;
    kill(pid, SIGCONT);
    for (;;) {
        if (waitpid(pid, &status, WUNTRACED) < 0) continue;
        if (!WIFSTOPPED(status)) return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
        kill(pid, SIGCONT);
    }
}

static int run(void (*fn)(void *), void *arg)
{
    return let_run(start(fn, arg));
}

/* A store with version 1 of x, as made by a process that is gone. */
static void make_store(void *arg)
{
    (void)arg;
    pgs_store *s = open_store();
    CHECK_EQ(put_x(s, 101), 1);
    pgs_store_unref(s);
}

static void commit_many(void *arg)
{
    pgs_store *s = open_store();
    for (int i = 0; i < *(int *)arg; i++) put_x(s, 200 + (uint64_t)i);
    CHECK_OK(pgs_gc(s, &err));
    put_x(s, 300);
    pgs_store_unref(s);
}

/* Pins, is stopped between finding the root and pinning it, stops again behind it, and reads. */
static void pin_and_read(void *arg)
{
    bool head = *(int *)arg;
    pgs_snapshot *sn;
    pgs_store *s = open_store();
    setenv("PAGESTONE_STOP", "pin_found", 1);
    int rc = head ? pgs_snapshot_head(s, &sn, &err) : pgs_snapshot_at(s, 1, &sn, &err);
    unsetenv("PAGESTONE_STOP");
    raise(SIGSTOP);
    if (rc == -PGS_EEXPIRED && !head) _exit(0);
    CHECK_OK(rc);
    uint64_t id = read_x(sn);
    if (id == 0) TEST_FAIL("version %llu changed under its reader", (unsigned long long)pgs_snapshot_version(sn));
    if (!head) CHECK_EQ(id, 101);
    pgs_snapshot_unref(sn);
    pgs_store_unref(s);
}

/* --- pins ------------------------------------------------------------------------------------------------------------------ */
/* A reader stops between finding a version and pinning it; meanwhile the version is expired, dropped and its pages written anew. */
static void late_pin(int head)
{
    int n = 40;
    new_path();
    CHECK_EQ(run(make_store, NULL), 0);
    pid_t reader = start(pin_and_read, &head);
    await_stop(reader);
    CHECK_EQ(run(commit_many, &n), 0);
    CHECK_EQ(let_run(reader), 0);
    scratch_end();
}
static void late_pin_by_number(void *arg)
{
    (void)arg;
    late_pin(0);
}
static void late_pin_of_head(void *arg)
{
    (void)arg;
    late_pin(1);
}

#define NOT_REACHED 3
static void die_at(void *point)
{
    setenv("PAGESTONE_KILL", point, 1);
    pgs_store *s = open_store();
    put_x(s, 400);
    _exit(NOT_REACHED);
}

static void stop_in_commit(void *point)
{
    uint64_t version;
    pgs_store *s = open_store();
    setenv("PAGESTONE_STOP", point, 1);
    CHECK_OK(try_put(s, 500, true, &version));
    pgs_store_unref(s);
}

static void stop_in_gc(void *point)
{
    pgs_store *s = open_store();
    setenv("PAGESTONE_STOP", point, 1);
    CHECK_OK(pgs_gc(s, &err));
    pgs_store_unref(s);
}

/* The owner of the commit lock dies behind the switch that expired version 1, before it could say so. Its heir has to say it, because a reader stands
 * between finding version 1 and pinning it, and the heir drops it. */
static void unsaid_expiry(void *arg)
{
    int by_number = 0, n = 40;
    (void)arg;
    new_path();
    CHECK_EQ(run(make_store, NULL), 0);
    pid_t reader = start(pin_and_read, &by_number);
    await_stop(reader);
    CHECK_EQ(run(die_at, (void *)(uintptr_t) "after_publish"), 256 + SIGKILL);
    pid_t heir = start(stop_in_gc, (void *)(uintptr_t) "commit_written");
    await_stop(heir); /* it has looked for pins already */
    kill(reader, SIGCONT);
    await_stop(reader);
    CHECK_EQ(let_run(heir), 0);
    CHECK_EQ(run(commit_many, &n), 0);
    CHECK_EQ(let_run(reader), 0);
    scratch_end();
}

/* --- what the dead own ------------------------------------------------------------------------------------------------------- */
static void claim_and_die(void *arg)
{
    (void)arg;
    pgs_store *s = open_store();
    put_x(s, 600);
    CHECK_OK(try_put(s, 601, false, NULL)); /* in chunks of ours, not committed */
    kill(getpid(), SIGKILL);
}

static void find_nothing_left(void *arg)
{
    (void)arg;
    pgs_store *s = open_store();
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(words_left(path), 0);
    check_sound(s);
    pgs_store_unref(s);
}

static void dead_owner(void *arg)
{
    (void)arg;
    new_path();
    CHECK_EQ(run(make_store, NULL), 0);
    CHECK_EQ(run(claim_and_die, NULL), 256 + SIGKILL);
    CHECK_EQ(run(find_nothing_left, NULL), 0);
    scratch_end();
}

/* --- the plants ---------------------------------------------------------------------------------------------------------------- */
struct planted {
    int plant;
    void (*schedule)(void *);
};
static void with_plant(void *arg)
{
    const struct planted *p = arg;
    pgs__inject_plant(p->plant);
    p->schedule(NULL);
}
static void must_find(int plant, void (*schedule)(void *))
{
    struct planted p = {plant, schedule};
    int rc = in_child(getenv("TEST_LOUD") == NULL, with_plant, &p);
    if (rc != 1) TEST_FAIL("planted bug %d was not found (%d)", plant, rc);
}

TEST(a_version_that_is_gone_before_it_is_pinned_is_expired)
{
    late_pin_by_number(NULL);
}
TEST(a_head_that_is_gone_before_it_is_pinned_is_looked_up_again)
{
    late_pin_of_head(NULL);
}
TEST(an_heir_says_what_its_dead_predecessor_could_not)
{
    unsaid_expiry(NULL);
}
TEST(space_that_a_dead_process_owned_comes_back)
{
    dead_owner(NULL);
}
TEST(plant_4_a_pin_not_looked_at_again_is_found)
{
    must_find(4, late_pin_by_number);
    must_find(4, late_pin_of_head);
}
TEST(plant_5_a_lock_not_repaired_is_found)
{
    must_find(5, unsaid_expiry);
}
TEST(plant_9_chunks_of_the_dead_not_taken_back_is_found)
{
    must_find(9, dead_owner);
}

/* --- every point once ------------------------------------------------------------------------------------------------------------ */
static void expect_old_or_new(void *arg)
{
    uint64_t old = *(uint64_t *)arg, id;
    pgs_snapshot *sn;
    pgs_store *s = open_store();
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    id = read_x(sn);
    if (id != old && id != 400)
        TEST_FAIL("x is %llu, neither %llu nor 400", (unsigned long long)id, (unsigned long long)old);
    pgs_snapshot_unref(sn);
    put_x(s, 700);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(words_left(path), 0);
    check_sound(s);
    pgs_store_unref(s);
}

TEST(a_death_at_any_point_of_a_commit_leaves_old_or_new)
{
    static const char *const points[] = {"locked",        "commit_locked",   "commit_written",     "before_super",
                                         "super_write",   "after_super",     "ctl_stage_half",     "before_publish",
                                         "after_publish", "commit_unlocked", "ctl_publish_before", "ctl_publish_after"};
    for (int disk = 0; disk < 2; disk++) {
        uint64_t old = 101;
        if (disk) without_syncs();
        new_path();
        if (disk) snprintf(path, sizeof path, "%s/s.ps", scratch(NULL));
        CHECK_EQ(run(make_store, NULL), 0);
        for (size_t i = 0; i < PGS_ARRAY_LEN(points); i++) {
            CHECK_EQ(run(die_at, (void *)(uintptr_t)points[i]), 256 + SIGKILL);
            if (i % 2) { /* the heir dies as well, in the middle of the repair, twice */
                int rc = run(die_at, (void *)(uintptr_t) "in_recovery:1");
                CHECK(rc == 256 + SIGKILL || rc == NOT_REACHED);
                rc = run(die_at, (void *)(uintptr_t) "in_recovery:2");
                CHECK(rc == 256 + SIGKILL || rc == NOT_REACHED);
            }
            int rc = run(expect_old_or_new, &old);
            if (rc) TEST_FAIL("after a death at %s (disk %d)", points[i], disk);
            old = 700;
        }
        remove_tree(scratch_path);
    }
}

/* --- stopped processes -------------------------------------------------------------------------------------------------------------- */
static void hold_version_1(void *arg)
{
    (void)arg;
    pgs_snapshot *sn;
    pgs_store *s = open_store();
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    raise(SIGSTOP);
    CHECK_EQ(read_x(sn), 101);
    pgs_snapshot_unref(sn);
    pgs_store_unref(s);
}

TEST(a_stopped_reader_delays_nobody_and_keeps_its_version)
{
    int n = 100;
    double begun = seconds();
    new_path();
    CHECK_EQ(run(make_store, NULL), 0);
    pid_t reader = start(hold_version_1, NULL);
    await_stop(reader);
    CHECK_EQ(run(commit_many, &n), 0);
    if (seconds() - begun > 20) TEST_FAIL("100 commits beside a stopped reader took %.1f s", seconds() - begun);
    CHECK_EQ(let_run(reader), 0);
    pgs_store *s = open_store(); /* one version of 100 pages, not a hundred */
    struct pgs_stat st;
    CHECK_OK(pgs_stat(s, &st, &err));
    if (st.resident > 32u << 20) TEST_FAIL("the store takes %llu bytes", (unsigned long long)st.resident);
    check_sound(s);
    pgs_store_unref(s);
}

TEST(a_stopped_committer_is_named_and_its_death_frees_the_lock)
{
    struct pgs_options opt = {.mode = PGS_MODE_RPLUS, .timeout_ns = 300000000};
    pgs_store *s;
    pgs_txn *t;
    uint64_t version;
    char pid[24];
    for (int killed = 0; killed < 2; killed++) {
        new_path();
        CHECK_EQ(run(make_store, NULL), 0);
        pid_t committer = start(stop_in_commit, (void *)(uintptr_t) "commit_locked");
        await_stop(committer);
        CHECK_OK(pgs_open(path, &opt, &s, &err));
        CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
        CHECK_OK(pgs_txn_put(t, "y", 1, PGS_KIND_BYTES, NULL, &(struct pgs_part){"mine", 4}, 1, &err));
        double begun = seconds();
        CHECK_ERR(pgs_txn_commit(t, NULL, &version, &err), PGS_ELOCKED);
        CHECK(seconds() - begun > 0.25 && seconds() - begun < 5);
        snprintf(pid, sizeof pid, "process %d", (int)committer);
        if (!strstr(err.text, pid)) TEST_FAIL("the holder is not named: %s", err.text);
        memset(&err, 0, sizeof err);
        if (killed) kill(committer, SIGKILL);
        CHECK_EQ(let_run(committer), killed ? 256 + SIGKILL : 0);
        CHECK_OK(pgs_txn_commit(t, NULL, &version, &err)); /* the transaction was left open */
        CHECK_EQ(version, killed ? 2 : 3);
        pgs_txn_unref(t);
        CHECK_OK(pgs_gc(s, &err));
        CHECK_EQ(words_left(path), 0);
        check_sound(s);
        pgs_store_unref(s);
        remove_tree(scratch_path);
    }
}

int main(int argc, char **argv)
{
    setenv("TEST_SECONDS", slowness() > 1 ? "600" : "60", 0);
    return run_tests(argc, argv);
}
