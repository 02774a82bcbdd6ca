/* Pagestone | tests/crash/test_kill — processes killed at random moments and at named points lose nothing and hang nobody.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Writers (small and large puts, edits in place, deletes, a pair of counters that must stay equal), readers, a forker whose children read what they
 * inherited, and a collector work on one store. The parent kills them, and starts them anew, some with a kill point armed. After each kill a fresh process
 * must be able to commit within ten seconds.
 *
 * Expected states live in memory shared by all. Before a commit the writer notes what its keys will be and sets the pending flag; after it the
 * two change places in one store. So whoever takes over finds all keys of a writer old, or all new: anything else is a torn commit.
 * Each object carries the hash of its own bytes, so readers can judge what they see without knowing who wrote it.
 * Schedules that need no luck are in test_schedule.c.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/prctl.h>

#include "tests/crash/world.h"

/* --- what is expected ---------------------------------------------------------------------------------------------------- */
#define N_WRITERS 4 /* the last one forks */
#define N_OWN 4
#define BIG_CAP 300000u
enum { SMALL, BIG, ARR, TMP };
static const char *const own_names[N_OWN] = {"small", "big", "arr", "tmp"};

struct own {
    uint64_t kind, len, hash;
};
struct expect {
    _Atomic uint64_t word; /* bit 0: a commit is under way; bit 1: which of the two is committed */
    struct own k[2][N_OWN];
};
struct arena {
    struct expect w[N_WRITERS];
    _Atomic int stop;
    _Atomic uint64_t commits, reads, forks, gcs;
};
static struct arena *arena;
static char path[500];
static uint8_t buf[BIG_CAP];

static pgs_store *open_store(void)
{
    struct pgs_options opt = {
        .mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 3, .size = 256u << 20, .checksums = 1};
    pgs_store *s;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    return s;
}

static size_t own_key(char *key, int w, int k)
{
    return (size_t)sprintf(key, "w%d/%s", w, own_names[k]);
}

/* Random bytes that begin with the hash of the rest. */
static void make_object(uint8_t *p, uint64_t len)
{
    fill(p + 8, len - 8);
    uint64_t h = pgs__hash(p + 8, len - 8);
    memcpy(p, &h, 8);
}

/* What the snapshot holds; fails if the object is not whole. */
static struct own look(pgs_snapshot *sn, const char *key, size_t len)
{
    struct pgs_object obj;
    struct own own = {0};
    pgs_view *v = NULL;
    int rc = pgs_get(sn, key, len, &obj, &err);
    if (rc == -PGS_ENOENT) return own;
    if (rc) TEST_FAIL("%s: %d %s", key, rc, err.text);
    const uint8_t *p = obj.inline_data;
    if (!p) {
        rc = pgs_view_open(sn, &obj, 1, &v, &err);
        if (rc) TEST_FAIL("%s of version %llu: %d %s", key, (unsigned long long)pgs_snapshot_version(sn), rc, err.text);
        p = pgs_view_data(v);
    }
    CHECK(obj.n_bytes >= 16);
    own = (struct own){obj.kind, obj.n_bytes, pgs__hash(p, obj.n_bytes)};
    uint64_t h = pgs__hash(p + 8, obj.n_bytes - 8);
    if (memcmp(p, &h, 8) != 0)
        TEST_FAIL("%s of version %llu is torn", key, (unsigned long long)pgs_snapshot_version(sn));
    pgs_view_unref(v);
    return own;
}

/* All keys of writer w old, or all new; then that is what is committed. */
static void settle(pgs_snapshot *sn, int w, bool alive)
{
    struct expect *e = &arena->w[w];
    uint64_t word = atomic_load(&e->word), cur = word >> 1 & 1;
    bool old = true, new = word & 1;
    for (int k = 0; k < N_OWN; k++) {
        char key[32];
        size_t len = own_key(key, w, k);
        struct own own = look(sn, key, len);
        old &= memcmp(&own, &e->k[cur][k], sizeof own) == 0;
        new &= memcmp(&own, &e->k[1 - cur][k], sizeof own) == 0;
    }
    if (alive) return;
    if (!old && !new)
        TEST_FAIL("writer %d: its keys are neither what was committed nor what was%s under way (version %llu)", w,
                  word & 1 ? "" : " (nothing)", (unsigned long long)pgs_snapshot_version(sn));
    atomic_store(&e->word, old ? cur << 1 : (1 - cur) << 1);
}

/* --- roles ----------------------------------------------------------------------------------------------------------------- */
static int put_own(pgs_txn *t, int w, int k, struct own *own, uint64_t len)
{
    char key[32];
    size_t key_len = own_key(key, w, k);
    struct pgs_type type = type_u4(len);
    enum pgs_kind kind = k == ARR ? PGS_KIND_ARRAY : PGS_KIND_BYTES;
    make_object(buf, len);
    *own = (struct own){kind, len, pgs__hash(buf, len)};
    return pgs_txn_put(t, key, key_len, kind, k == ARR ? &type : NULL, &(struct pgs_part){buf, len}, 1, &err);
}

static int edit_own(pgs_txn *t, int w, struct own *own)
{
    char key[32];
    pgs_view *v;
    size_t key_len = own_key(key, w, ARR);
    TRY(pgs_txn_edit(t, key, key_len, &v, &err));
    uint8_t *p = pgs_view_data(v);
    if (pgs__hash(p, own->len) != own->hash) TEST_FAIL("writer %d edits an array that is not its own any more", w);
    for (int i = 0; i < 3; i++) {
        uint64_t at = 8 + rng_below(own->len - 8), n = 1 + rng_below(5000);
        fill(p + at, n < own->len - at ? n : own->len - at);
    }
    uint64_t h = pgs__hash(p + 8, own->len - 8);
    memcpy(p, &h, 8);
    own->hash = pgs__hash(p, own->len);
    pgs_view_unref(v);
    return 0;
}

static int change_own(pgs_txn *t, int w, struct own *k)
{
    char key[32];
    switch (rng_below(7)) {
    case 0:
        return put_own(t, w, BIG, &k[BIG], 5000 + rng_below(BIG_CAP - 5000));
    case 1:
        if (!k[TMP].kind) return put_own(t, w, TMP, &k[TMP], 16 + rng_below(20000));
        k[TMP] = (struct own){0};
        return pgs_txn_delete(t, key, own_key(key, w, TMP), &err);
    case 2:
    case 3:
    case 4:
        return k[ARR].kind ? edit_own(t, w, &k[ARR]) : put_own(t, w, ARR, &k[ARR], 100000);
    case 5: /* several keys in one commit */
        TRY(put_own(t, w, BIG, &k[BIG], 5000 + rng_below(50000)));
        TRY(put_own(t, w, TMP, &k[TMP], 16 + rng_below(3000)));
        return put_own(t, w, SMALL, &k[SMALL], 16 + rng_below(40));
    default:
        return put_own(t, w, SMALL, &k[SMALL], 16 + rng_below(40));
    }
}

static void commit_own(pgs_store *s, int w)
{
    struct expect *e = &arena->w[w];
    uint64_t cur = atomic_load(&e->word) >> 1 & 1, version;
    pgs_txn *t;
    memcpy(e->k[1 - cur], e->k[cur], sizeof e->k[0]);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(change_own(t, w, e->k[1 - cur]));
    atomic_store(&e->word, cur << 1 | 1);
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    atomic_store(&e->word, (1 - cur) << 1);
    pgs_txn_unref(t);
}

/* a and b go up together; other writers do it too, so conflicts are met. */
static void commit_pair(pgs_store *s)
{
    for (;;) {
        pgs_txn *t;
        struct pgs_object obj;
        uint64_t n = 0, version;
        CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
        int rc = pgs_txn_get(t, "a", 1, &obj, &err);
        if (rc == 0) memcpy(&n, obj.inline_data, 8);
        CHECK(rc == 0 || rc == -PGS_ENOENT);
        n++;
        CHECK_OK(pgs_txn_put(t, "a", 1, PGS_KIND_BYTES, NULL, &(struct pgs_part){&n, 8}, 1, &err));
        CHECK_OK(pgs_txn_put(t, "b", 1, PGS_KIND_BYTES, NULL, &(struct pgs_part){&n, 8}, 1, &err));
        rc = pgs_txn_commit(t, NULL, &version, &err);
        pgs_txn_unref(t);
        if (rc == 0) return;
        if (rc != -PGS_ECONFLICT) TEST_FAIL("the pair: %d %s", rc, err.text);
    }
}

static void read_pair(pgs_snapshot *sn)
{
    struct pgs_object a, b;
    int ra = pgs_get(sn, "a", 1, &a, &err), rb = pgs_get(sn, "b", 1, &b, &err);
    CHECK_EQ(ra, rb);
    if (ra == -PGS_ENOENT) return;
    CHECK_OK(ra);
    CHECK(a.n_bytes == 8 && b.n_bytes == 8 && memcmp(a.inline_data, b.inline_data, 8) == 0);
}

static void read_all(pgs_snapshot *sn)
{
    read_pair(sn);
    for (int w = 0; w < N_WRITERS; w++) settle(sn, w, true);
}

static bool go_on(void)
{
    limit(20); /* a step that hangs is a death that the parent notices */
    return !atomic_load(&arena->stop);
}

static void role_writer(int w)
{
    pgs_snapshot *sn;
    pgs_store *s = open_store();
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    settle(sn, w, false); /* our predecessor is gone: nobody else touches these keys */
    pgs_snapshot_unref(sn);
    while (go_on()) {
        if (rng_below(4) == 0)
            commit_pair(s);
        else
            commit_own(s, w);
        atomic_fetch_add(&arena->commits, 1);
    }
    pgs_store_unref(s);
}

static void role_reader(void)
{
    pgs_store *s = open_store();
    pgs_snapshot *held = NULL, *sn;
    for (int i = 0; go_on(); i++) {
        CHECK_OK(pgs_snapshot_head(s, &sn, &err));
        read_all(sn);
        if (i % 20 == 0) { /* an old one is still what it was */
            if (held) read_all(held);
            pgs_snapshot_unref(held);
            held = pgs_snapshot_ref(sn);
        }
        pgs_snapshot_unref(sn);
        atomic_fetch_add(&arena->reads, 1);
        usleep(500);
    }
    pgs_snapshot_unref(held);
    pgs_store_unref(s);
}

static void role_forker(int w)
{
    pgs_snapshot *sn, *own;
    pgs_store *s = open_store();
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    settle(sn, w, false);
    pgs_snapshot_unref(sn);
    while (go_on()) {
        CHECK_OK(pgs_snapshot_head(s, &sn, &err));
        pid_t pid = fork();
        if (pid == 0) { /* reads what it inherited and what is new */
            unsetenv("PAGESTONE_KILL");
            for (int i = 0; i < 3; i++) {
                read_all(sn);
                CHECK_OK(pgs_snapshot_head(s, &own, &err));
                read_all(own);
                pgs_snapshot_unref(own);
                usleep(1000);
            }
            _exit(0);
        }
        commit_own(s, w);
        atomic_fetch_add(&arena->commits, 1);
        pgs_snapshot_unref(sn);
        int status = 0;
        while (waitpid(pid, &status, 0) < 0) {
        }
        if (status) TEST_FAIL("a forked reader failed (status %#x)", (unsigned)status);
        atomic_fetch_add(&arena->forks, 1);
    }
    pgs_store_unref(s);
}

static void role_collector(void)
{
    pgs_store *s = open_store();
    for (int i = 0; go_on(); i++) {
        CHECK_OK(pgs_gc(s, &err));
        atomic_fetch_add(&arena->gcs, 1);
        usleep(10000);
    }
    pgs_store_unref(s);
}

#define N_WORKERS 8
static void play(int i)
{
    if (i < N_WRITERS - 1)
        role_writer(i);
    else if (i == N_WRITERS - 1)
        role_forker(i);
    else if (i == N_WORKERS - 1)
        role_collector();
    else
        role_reader();
}

/* --- the killer ----------------------------------------------------------------------------------------------------------------- */
static const char *const points[] = {"locked",
                                     "commit_locked",
                                     "commit_written",
                                     "before_super",
                                     "super_write",
                                     "after_super",
                                     "ctl_stage_half",
                                     "before_publish",
                                     "ctl_publish_before",
                                     "ctl_publish_after",
                                     "after_publish",
                                     "commit_unlocked",
                                     "in_recovery",
                                     "in_sweep",
                                     "in_fork",
                                     "pagefile_grow_locked"};
static pid_t pids[N_WORKERS];
static const char *armed[N_WORKERS]; /* point, or NULL */
static int n_at_points;

static void kill_workers(void)
{
    for (int i = 0; i < N_WORKERS; i++)
        if (pids[i] > 0) kill(pids[i], SIGKILL);
}

static void start_worker(int i)
{
    uint64_t seed = rng();
    char spec[64] = "";
    armed[i] = rng_below(5) < 3 ? points[rng_below(PGS_ARRAY_LEN(points))] : NULL;
    if (armed[i]) snprintf(spec, sizeof spec, "%s:%d", armed[i], 1 + (int)rng_below(12));
    fflush(NULL);
    pids[i] = fork();
    if (pids[i] == 0) {
        rng_state = seed;
        if (*spec) setenv("PAGESTONE_KILL", spec, 1);
        play(i);
        _exit(0);
    }
}

/* A fresh process commits. Seconds that it took. */
static double probe(void)
{
    double start = seconds();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        limit(10);
        pgs_store *s = open_store();
        commit_pair(s);
        pgs_store_unref(s);
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    if (status) {
        kill_workers();
        TEST_FAIL("after a kill a fresh process could not commit within 10 s (status %#x)", (unsigned)status);
    }
    return seconds() - start;
}

static int cmp_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One child that ended, if any: 1 when a worker was killed. */
static int reap(void)
{
    int status, i = 0;
    pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return 0;
    while (i < N_WORKERS && pids[i] != pid) i++;
    if (i == N_WORKERS && status == 0) return 0; /* a forker's child that we inherited */
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
        kill_workers();
        TEST_FAIL("worker %d failed (status %#x, kill point %s)", i, (unsigned)status,
                  i < N_WORKERS && armed[i] ? armed[i] : "none");
    }
    if (i == N_WORKERS) return 0;
    pids[i] = 0;
    return 1 + i;
}

static int run_kills(int n_kills, double *times)
{
    int n = 0;
    for (int i = 0; i < N_WORKERS; i++) start_worker(i);
    while (n < n_kills) {
        usleep((useconds_t)(500 + rng_below(6000)));
        int victim = (int)rng_below(N_WORKERS), dead;
        bool at_point = true;
        if (rng_below(armed[victim] ? 12 : 4) == 0) {
            kill(pids[victim], SIGKILL);
            usleep(200); /* killed already: only seen now */
            at_point = false;
        }
        while ((dead = reap()) > 0) {
            n_at_points += at_point;
            times[n++] = probe();
            start_worker(dead - 1);
            if (n == n_kills) break;
        }
    }
    return n;
}

static void stop_workers(void)
{
    int status;
    pid_t pid;
    double start = seconds();
    atomic_store(&arena->stop, 1);
    while ((pid = waitpid(-1, &status, WNOHANG)) >= 0) {
        if (pid == 0) usleep(1000);
        if (pid > 0 && status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
            TEST_FAIL("a process failed at the end (status %#x)", (unsigned)status);
        if (seconds() - start > 20) {
            kill_workers();
            TEST_FAIL("the workers do not end");
        }
    }
}

/* --- afterwards --------------------------------------------------------------------------------------------------------------------- */
static void after_all(void *arg)
{
    pgs_snapshot *sn;
    (void)arg;
    pgs_store *s = open_store();
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    read_pair(sn);
    for (int w = 0; w < N_WRITERS; w++) settle(sn, w, false);
    pgs_snapshot_unref(sn);
    CHECK_OK(pgs_gc(s, &err));
    CHECK_EQ(words_left(path), 0);
    check_sound(s);
    commit_pair(s);
    struct pgs_stat st;
    CHECK_OK(pgs_stat(s, &st, &err));
    CHECK_EQ(st.leaked, 0);
    pgs_store_unref(s);
}

static void new_arena(const char *parent)
{
    arena = shared_memory(sizeof *arena);
    snprintf(path, sizeof path, "%s/s.ps", scratch(parent));
}

static void kills(const char *parent, int n_kills)
{
    double *times = calloc((size_t)n_kills + 1, sizeof *times), start = seconds();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    new_arena(parent);
    rng_state = test_seed();
    int n = run_kills(n_kills, times);
    stop_workers();
    int rc = in_child(false, after_all, NULL);
    if (rc)
        TEST_FAIL("after %d kills with seed %llu the store is not sound (%d)", n, (unsigned long long)test_seed(), rc);
    qsort(times, (size_t)n, sizeof *times, cmp_double);
    fprintf(
        stderr,
        "    %d kills (%d at named points), %llu commits, %llu reads, %llu forks, %llu gcs, seed %llu, %.1f s; from a "
        "kill to the next commit of a fresh process: median %.1f ms, worst %.1f ms\n",
        n, n_at_points, (unsigned long long)arena->commits, (unsigned long long)arena->reads,
        (unsigned long long)arena->forks, (unsigned long long)arena->gcs, (unsigned long long)test_seed(),
        seconds() - start, times[n / 2] * 1e3, times[n - 1] * 1e3);
}

TEST(kills_in_memory_lose_nothing_and_hang_nobody)
{
    kills(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL, (int)scaled(220));
}

TEST(kills_on_disk_lose_nothing_and_hang_nobody)
{
    without_syncs();
    kills(NULL, (int)scaled(80));
}

int main(int argc, char **argv)
{
    setenv("TEST_SECONDS", slowness() > 1 ? "1500" : "200", 0);
    return run_tests(argc, argv);
}
