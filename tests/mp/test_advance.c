/* Pagestone | tests/mp/test_advance — pins that move: views keep their own pages only, and never show others'.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"
#include "libshm/txn/store.h"
#include "tests/unit/txn_testing.h"

#define MB (1u << 20)
#define SMALL 8192u

static char path[64];
static pid_t path_owner;

static void remove_path(void)
{
    char cmd[128];
    if (path_owner != getpid()) return;
    snprintf(cmd, sizeof cmd, "rm -rf %s", path);
    if (system(cmd)) {
    }
}

static pgs_store *open_path(uint64_t size)
{
    pgs_store *s;
    struct pgs_options o = {
        .mode = PGS_MODE_A, .size = size, .timeout_ns = 20000000000, .history = PGS_HIST_COUNT, .history_value = 0};
    CHECK_OK(pgs_open(path, &o, &s, &err));
    return s;
}
static pgs_store *new_store(uint64_t size)
{
    snprintf(path, sizeof path, "/dev/shm/pgs-test-advance-%d.ps", (int)getpid());
    path_owner = getpid();
    atexit(remove_path);
    return open_path(size);
}

static pid_t child(void)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) alarm(60);
    return pid;
}
static int end_of(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* n bytes made from `what`. */
static void fill(uint8_t *p, size_t n, uint64_t what)
{
    for (size_t i = 0; i + 8 <= n; i += 8) memcpy(p + i, &what, 8);
}
static bool is_filled(const void *p, size_t n, uint64_t what)
{
    for (size_t i = 0; i + 8 <= n; i += 8)
        if (memcmp((const uint8_t *)p + i, &what, 8) != 0) return false;
    return true;
}
static int try_set(pgs_store *s, const char *key, size_t n, uint64_t what)
{
    pgs_txn *t;
    struct pgs_error e = {0};
    uint8_t *buf = malloc(n);
    CHECK(buf);
    fill(buf, n, what);
    CHECK_EQ(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &e), 0);
    struct pgs_type type = type_of((int64_t)n / 8, 8);
    struct pgs_part part = {buf, n};
    int rc = pgs_txn_put(t, KEY(key), PGS_KIND_ARRAY, &type, &part, 1, &e);
    if (rc == 0) rc = pgs_txn_commit(t, NULL, NULL, &e);
    pgs_txn_unref(t);
    free(buf);
    if (rc && rc != -PGS_EFULL && rc != -PGS_ECONFLICT) TEST_FAIL("%s: %d %s", key, rc, e.text);
    return rc;
}
static void set(pgs_store *s, const char *key, size_t n, uint64_t what)
{
    CHECK_EQ(try_set(s, key, n, what), 0);
}
static void del(pgs_store *s, const char *key)
{
    pgs_txn *t = begin(s);
    CHECK_OK(pgs_txn_delete(t, KEY(key), &err));
    commit(t);
}
static pgs_view *view_of(pgs_store *s, const char *key)
{
    struct pgs_object o;
    return open_head(s, key, &o);
}
static uint64_t head_gen(pgs_store *s)
{
    return atomic_load(&s->s->ctl.c->head_gen);
}
/* What a writer does that finds no room; then a call of this process, which notices. */
static void ask(pgs_store *s)
{
    atomic_fetch_add(&s->s->ctl.c->please_advance, 1);
    (void)exists(s, "x");
}
static uint64_t versions_pinned, bytes_held, n_readers;
static int note_reader(void *ctx, const struct pgs_reader *r)
{
    (void)ctx;
    n_readers++;
    bytes_held += r->bytes;
    versions_pinned = r->n_versions ? r->versions[0] : 0;
    return 0;
}
static void look_at_readers(pgs_store *s)
{
    n_readers = bytes_held = versions_pinned = 0;
    CHECK_OK(pgs_readers(s, note_reader, NULL, &err));
}

/* --- what moves and what does not --------------------------------------------------------------------------------------- */
TEST(a_view_of_an_unchanged_array_moves_to_the_head_when_it_is_asked_for)
{
    pgs_store *s = open_memory();
    set(s, "x", SMALL, 1);
    pgs_view *v = view_of(s, "x");
    uint64_t then = head_gen(s);
    const void *at = pgs_view_data(v);
    set(s, "y", SMALL, 2);
    (void)exists(s, "x");
    CHECK_EQ(pgs_view_gen(v), then); /* nobody asked */
    ask(s);
    CHECK_EQ(pgs_view_gen(v), head_gen(s));
    CHECK(pgs_view_data(v) == at && is_filled(at, SMALL, 1));
    set(s, "y", SMALL, 3);
    ask(s);
    CHECK_EQ(pgs_view_gen(v), head_gen(s)); /* and again */
    CHECK_EQ(s->s->n_pins, 1);
    pgs_view_unref(v);
    CHECK_EQ(s->s->n_pins, 0);
    check_store(s);
    pgs_store_unref(s);
}

TEST(views_of_changed_deleted_moved_or_compacted_objects_stay)
{
    enum { EDITED, REPLACED, DELETED, MADE_AGAIN, MOVED, COMPACTED, N };
    for (int how = 0; how < N; how++) {
        pgs_store *s = new_store(0);
        pgs_txn *t;
        pgs_view *w;
        size_t n = how == COMPACTED ? 4 * MB : SMALL;
        set(s, "a", 8 * MB, 7);
        set(s, "x", n, 1);
        set(s, "b", SMALL, 8);
        pgs_view *v = view_of(s, "x");
        uint64_t then = pgs_view_gen(v);
        switch (how) {
        case EDITED:
            t = begin(s);
            edit(t, "x", &w)[5000] = 99;
            pgs_view_unref(w);
            commit(t);
            break;
        case REPLACED:
            set(s, "x", SMALL, 1); /* equal bytes, another object */
            break;
        case DELETED:
            del(s, "x");
            break;
        case MADE_AGAIN:
            del(s, "x");
            set(s, "x", SMALL, 1);
            break;
        case MOVED:
            t = begin(s);
            CHECK_OK(pgs_txn_move(t, KEY("x"), KEY("z"), &err));
            commit(t);
            break;
        case COMPACTED:
            del(s, "a");
            ask(s);
            CHECK_OK(pgs_gc(s, &err)); /* a's pages are free */
            CHECK_OK(pgs_compact(s, &err));
            then = pgs_view_gen(v); /* as far as it could, until x was moved */
            w = view_of(s, "x");    /* the same revision, in other pages */
            CHECK(pgs_view_data(w) != pgs_view_data(v));
            pgs_view_unref(w);
            break;
        }
        set(s, "b", SMALL, 9);
        ask(s);
        CHECK_EQ(pgs_view_gen(v), then);
        for (uint64_t i = 0; i < 5; i++) set(s, "b", 4 * MB, i);
        CHECK_OK(pgs_gc(s, &err));
        for (uint64_t i = 0; i < 5; i++) set(s, "b", 4 * MB, i);
        CHECK(is_filled(pgs_view_data(v), n, 1));
        pgs_view_unref(v);
        check_store(s);
        pgs_store_unref(s);
        remove_path();
    }
}

TEST(snapshots_and_transactions_keep_the_version_that_they_began_on)
{
    pgs_store *s = open_memory();
    set(s, "x", SMALL, 1);
    set(s, "y", SMALL, 2);
    pgs_snapshot *sn;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    pgs_txn *t = begin(s);
    pgs_view *v = view_of(s, "x"), *w;
    uint64_t then = head_gen(s);
    set(s, "y", SMALL, 3);
    CHECK_OK(pgs_gc(s, &err));
    ask(s);
    CHECK_EQ(pgs_view_gen(v), then); /* nothing would be won */
    struct pgs_object o;
    CHECK_OK(pgs_get(sn, KEY("y"), &o, &err));
    CHECK_OK(pgs_view_open(sn, &o, 1, &w, &err));
    CHECK(is_filled(pgs_view_data(w), SMALL, 2));
    pgs_view_unref(w);
    CHECK_OK(pgs_txn_view(t, KEY("y"), &w, &err));
    CHECK(is_filled(pgs_view_data(w), SMALL, 2));
    pgs_view_unref(w);
    pgs_txn_unref(t);
    pgs_snapshot_unref(sn);
    ask(s);
    CHECK_EQ(pgs_view_gen(v), head_gen(s)); /* now it would */
    pgs_view_unref(v);
    pgs_store_unref(s);
}

TEST(private_and_small_views_move_too)
{
    pgs_store *s = open_memory();
    pgs_snapshot *sn;
    struct pgs_object o;
    pgs_view *p, *tiny;
    set(s, "x", SMALL, 1);
    set(s, "tiny", 64, 5);
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_OK(pgs_view_private(sn, &o, &p, &err));
    CHECK_OK(pgs_get(sn, KEY("tiny"), &o, &err));
    CHECK_OK(pgs_view_open(sn, &o, 0, &tiny, &err));
    CHECK_OK(pgs_view_keep(tiny, sn, &err));
    CHECK_OK(pgs_view_keep(tiny, sn, &err));
    pgs_snapshot_unref(sn);
    ((uint8_t *)pgs_view_data(p))[0] = 77;
    for (uint64_t i = 0; i < 20; i++) {
        set(s, "y", MB, i);
        ask(s);
        CHECK_EQ(pgs_view_gen(p), head_gen(s));
        CHECK_EQ(pgs_view_gen(tiny), head_gen(s));
    }
    CHECK_EQ(((uint8_t *)pgs_view_data(p))[0], 77);
    CHECK(is_filled((uint8_t *)pgs_view_data(p) + 8, SMALL - 8, 1)); /* also what was never touched before */
    CHECK(is_filled(pgs_view_data(tiny), 64, 5));
    set(s, "tiny", 64, 6);
    uint64_t stays = pgs_view_gen(tiny);
    ask(s);
    CHECK_EQ(pgs_view_gen(tiny), stays);
    pgs_view_unref(p);
    pgs_view_unref(tiny);
    CHECK_EQ(s->s->n_pins, 0);
    pgs_store_unref(s);
}

TEST(a_call_does_a_bounded_part_of_the_work_and_the_next_ones_the_rest)
{
    enum { N = 500 };
    pgs_store *s = open_memory();
    pgs_view *v[N];
    char key[16];
    pgs_txn *t = begin(s);
    for (int i = 0; i < N; i++) {
        uint64_t buf[128] = {(uint64_t)i};
        snprintf(key, sizeof key, "k%03d", i);
        CHECK_OK(put_array(t, key, buf, 128, 8));
    }
    commit(t);
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof key, "k%03d", i);
        v[i] = view_of(s, key);
        if (i == N / 2) set(s, "y", SMALL, 1);
    }
    set(s, "y", SMALL, 2);
    atomic_fetch_add(&s->s->ctl.c->please_advance, 1);
    int calls = 0, moved = 0;
    while (moved < N) {
        int before = moved;
        (void)pgs__store_use(s, false, NULL);
        calls++;
        moved = 0;
        for (int i = 0; i < N; i++) moved += pgs_view_gen(v[i]) == head_gen(s);
        CHECK(moved > before && moved - before <= 2 * (int)PGS__ADVANCE_BATCH);
    }
    CHECK(calls >= N / (2 * (int)PGS__ADVANCE_BATCH));
    (void)pgs__store_use(s, false, NULL);
    CHECK_EQ(atomic_load(&s->s->advanced), atomic_load(&s->s->ctl.c->please_advance));
    for (int i = 0; i < N; i++) {
        CHECK_EQ(((uint64_t *)pgs_view_data(v[i]))[0], i);
        pgs_view_unref(v[i]);
    }
    CHECK_EQ(s->s->n_pins, 0);
    pgs_store_unref(s);
}

/* --- room ---------------------------------------------------------------------------------------------------------------- */
TEST(a_small_view_does_not_fill_a_store_whose_big_array_is_overwritten)
{
    pgs_store *s = new_store(24 * MB);
    set(s, "x", SMALL, 1);
    set(s, "big", 8 * MB, 0);
    pgs_view *v = view_of(s, "x");
    for (uint64_t i = 1; i <= 30; i++) {
        set(s, "big", 8 * MB, i);
        CHECK(is_filled(pgs_view_data(v), SMALL, 1));
    }
    pgs_view_unref(v);
    check_store(s);
    pgs_store_unref(s);
}

TEST(without_a_quota_the_store_does_not_grow_either)
{
    pgs_store *s = new_store(0);
    struct pgs_stat st;
    pgs_view *v[30];
    set(s, "x", SMALL, 1);
    for (uint64_t i = 0; i < 30; i++) { /* each of another version */
        set(s, "big", 8 * MB, i);
        v[i] = view_of(s, "x");
    }
    CHECK_OK(pgs_stat(s, &st, &err));
    CHECK(st.resident < 80 * MB);
    for (uint64_t i = 0; i < 30; i++) {
        CHECK(is_filled(pgs_view_data(v[i]), SMALL, 1));
        pgs_view_unref(v[i]);
    }
    pgs_store_unref(s);
}

struct board {
    _Atomic int ready, stop, bad;
    _Atomic uint64_t done, value;
};
static struct board *new_board(void)
{
    struct board *b = mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(b != MAP_FAILED);
    return b;
}
static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}
static void wait_ready(struct board *b, int n)
{
    while (atomic_load(&b->ready) < n) nap();
}

TEST(a_process_that_makes_calls_moves_its_views_for_a_writer_elsewhere)
{
    pgs_store *s = new_store(24 * MB);
    struct board *b = new_board();
    set(s, "x", SMALL, 1);
    set(s, "big", 8 * MB, 0);
    pid_t pid = child();
    if (pid == 0) {
        pgs_view *v = view_of(s, "x");
        atomic_store(&b->ready, 1);
        while (!atomic_load(&b->stop)) {
            (void)exists(s, "x");
            nap();
        }
        CHECK(is_filled(pgs_view_data(v), SMALL, 1));
        pgs_view_unref(v);
        pgs_store_unref(s);
        _exit(0);
    }
    wait_ready(b, 1);
    for (uint64_t i = 1, failed = 0; i <= 30;
         i++) { /* on a busy machine a call may take longer than a writer's patience */
        while (try_set(s, "big", 8 * MB, i) != 0) {
            CHECK(++failed < 100);
            for (int k = 0; k < 50; k++) nap();
        }
    }
    atomic_store(&b->stop, 1);
    CHECK_EQ(end_of(pid), 0);
    check_store(s);
    pgs_store_unref(s);
}

TEST(a_process_that_makes_no_calls_keeps_its_version_and_is_named)
{
    pgs_store *s = new_store(24 * MB);
    struct board *b = new_board();
    set(s, "x", SMALL, 1);
    set(s, "big", 8 * MB, 0);
    pid_t pid = child();
    if (pid == 0) {
        pgs_view *v = view_of(s, "x");
        atomic_store(&b->ready, 1);
        while (!atomic_load(&b->stop)) nap();
        CHECK(is_filled(pgs_view_data(v), SMALL, 1));
        for (; atomic_load(&b->stop) == 1; nap()) (void)exists(s, "x");
        CHECK(is_filled(pgs_view_data(v), SMALL, 1));
        _exit(0);
    }
    wait_ready(b, 1);
    int rc = 0;
    for (uint64_t i = 1; i <= 5 && rc == 0; i++) rc = try_set(s, "big", 8 * MB, i);
    CHECK_EQ(rc, -PGS_EFULL);
    look_at_readers(s);
    CHECK(n_readers == 1 && versions_pinned == 2 && bytes_held >= 8 * MB);
    atomic_store(&b->stop, 1);
    for (int i = 0; i < 2000 && versions_pinned == 2; i++) {
        nap();
        look_at_readers(s);
    }
    CHECK(versions_pinned > 2);
    for (uint64_t i = 1; i <= 5; i++) set(s, "big", 8 * MB, i);
    atomic_store(&b->stop, 2);
    CHECK_EQ(end_of(pid), 0);
    pgs_store_unref(s);
}

TEST(readers_and_stat_say_what_is_still_pinned)
{
    pgs_store *s = new_store(0);
    struct pgs_stat before, after;
    set(s, "x", SMALL, 1);
    set(s, "big", 8 * MB, 0);
    pgs_view *v = view_of(s, "x");
    set(s, "big", 8 * MB, 1);
    set(s, "x2", SMALL, 1);
    CHECK_OK(pgs_stat(s, &before, &err));
    look_at_readers(s);
    CHECK(n_readers == 1 && versions_pinned == 2 && bytes_held >= 8 * MB);
    CHECK(before.pinned >= 8 * MB);
    CHECK_OK(pgs_gc(s, &err)); /* asks as well */
    CHECK_OK(pgs_stat(s, &after, &err));
    look_at_readers(s);
    CHECK_EQ(versions_pinned, pgs_store_version(s));
    CHECK(bytes_held < MB && after.pinned < MB);
    pgs_view_unref(v);
    look_at_readers(s);
    CHECK_EQ(n_readers, 0);
    pgs_store_unref(s);
}

/* --- without write permission ------------------------------------------------------------------------------------------------ */
TEST(views_of_a_reader_without_write_permission_move_as_well)
{
    if (geteuid() != 0) SKIP("needs root, to become somebody else");
    pgs_store *s = new_store(0);
    struct board *b = new_board();
    char cmd[256];
    set(s, "x", SMALL, 1);
    uint64_t then = head_gen(s);
    snprintf(cmd, sizeof cmd, "chmod 755 '%s' && chmod 644 '%s'/*", path, path);
    CHECK_EQ(system(cmd), 0);
    pid_t pid = child();
    if (pid == 0) {
        pgs_store *r;
        struct pgs_options o = {.mode = PGS_MODE_R};
        uint64_t gen, version;
        CHECK(setgid(65534) == 0 && setuid(65534) == 0);
        CHECK_OK(pgs_open(path, &o, &r, &err));
        CHECK(!r->s->writable);
        pgs_view *v = view_of(r, "x");
        atomic_store(&b->ready, 1);
        while (atomic_load(&b->stop) < 1) nap();
        (void)exists(r, "x");
        CHECK_EQ(pgs_view_gen(v), atomic_load(&b->value));
        CHECK_ERR(pgs_view_lease(v, 1000, &gen, &version, NULL), PGS_EREADONLY);
        CHECK_EQ(gen, atomic_load(&b->value));
        atomic_store(&b->ready, 2);
        while (atomic_load(&b->stop) < 2) nap();
        (void)exists(r, "x");
        CHECK_EQ(pgs_view_gen(v), gen); /* a handle names it, and nothing but this pin keeps it */
        CHECK(is_filled(pgs_view_data(v), SMALL, 1));
        pgs_view_unref(v);
        pgs_store_unref(r);
        _exit(0);
    }
    wait_ready(b, 1);
    CHECK_EQ(pgs__read_locked(s->s, then), 1);
    set(s, "y", SMALL, 2);
    atomic_store(&b->value, head_gen(s));
    atomic_fetch_add(&s->s->ctl.c->please_advance, 1);
    atomic_store(&b->stop, 1);
    wait_ready(b, 2);
    CHECK_EQ(pgs__read_locked(s->s, then), 0);
    CHECK_EQ(pgs__read_locked(s->s, atomic_load(&b->value)), 1);
    set(s, "y", SMALL, 3);
    atomic_fetch_add(&s->s->ctl.c->please_advance, 1);
    atomic_store(&b->stop, 2);
    CHECK_EQ(end_of(pid), 0);
    pgs_store_unref(s);
}

/* --- handles ----------------------------------------------------------------------------------------------------------------- */
TEST(a_view_that_moved_is_leased_where_it_is_and_stays_there)
{
    pgs_store *s = new_store(0);
    uint64_t gen, version;
    set(s, "x", SMALL, 1);
    pgs_view *v = view_of(s, "x");
    set(s, "y", SMALL, 2);
    ask(s);
    CHECK_OK(pgs_view_lease(v, 60000000000, &gen, &version, &err));
    CHECK_EQ(gen, head_gen(s));
    CHECK_EQ(version, pgs_store_version(s));
    for (uint64_t i = 0; i < 5; i++) set(s, "y", SMALL, i);
    ask(s);
    CHECK_EQ(pgs_view_gen(v), gen);
    pgs_view_unref(v);
    CHECK_OK(pgs_gc(s, &err));
    pid_t pid = child();
    if (pid == 0) { /* by the lease alone */
        pgs_store *o = open_path(0);
        pgs_snapshot *sn;
        struct pgs_object obj;
        CHECK_OK(pgs_snapshot_gen_open(o, gen, &sn, &err));
        CHECK_EQ(pgs_snapshot_version(sn), version);
        CHECK_OK(pgs_get(sn, KEY("x"), &obj, &err));
        CHECK_OK(pgs_view_open(sn, &obj, 1, &v, &err));
        CHECK(is_filled(pgs_view_data(v), SMALL, 1));
        _exit(0);
    }
    CHECK_EQ(end_of(pid), 0);
    pgs_store_unref(s);
}

/* --- everything at once ------------------------------------------------------------------------------------------------------- */
#define N_KEYS 6u
#define N_HELD 10u
#define PIECE (64u << 10)

static uint64_t next_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}
static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Views are kept for a while; each must show for ever what it showed at first. */
static void worker(struct board *b, uint64_t seed, uint64_t until)
{
    pgs_store *s = open_path(0);
    struct {
        pgs_view *v;
        uint64_t what;
    } held[N_HELD] = {0};
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    char key[8];
    while (!atomic_load(&b->bad) && now_ns() < until) {
        uint64_t r = next_random(&x), i = r / 7 % N_HELD;
        snprintf(key, sizeof key, "k%u", (unsigned)(r / 1000 % N_KEYS));
        switch (r % 16) {
        case 0:
        case 1:
            (void)try_set(s, key, PIECE, r);
            break;
        case 2:
            (void)try_set(s, "big", 2 * MB, r);
            break;
        case 3:
            if (r / 16 % 4 == 0) (void)pgs_gc(s, NULL);
            break;
        case 4:
            atomic_fetch_add(&s->s->ctl.c->please_advance, 1);
            break;
        case 5:
        case 6:
            pgs_view_unref(held[i].v);
            held[i].v = view_of(s, key);
            memcpy(&held[i].what, pgs_view_data(held[i].v), 8);
            break;
        default:
            (void)exists(s, key);
        }
        i = r / 300 % N_HELD;
        if (held[i].v && !is_filled(pgs_view_data(held[i].v), PIECE, held[i].what)) atomic_store(&b->bad, 1);
        atomic_fetch_add(&b->done, 1);
    }
    for (unsigned i = 0; i < N_HELD; i++) pgs_view_unref(held[i].v);
    if (s->s->n_pins != 0) atomic_store(&b->bad, 2);
    pgs_store_unref(s);
}

static int storm(int planted, double seconds)
{
    pgs_store *s = new_store(16 * MB);
    struct board *b = new_board();
    const char *seed = getenv("TEST_SEED");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1, until = now_ns() + (uint64_t)(seconds * 1e9);
    pid_t pid[4];
    char key[8];
    for (unsigned i = 0; i < N_KEYS; i++) {
        snprintf(key, sizeof key, "k%u", i);
        set(s, key, PIECE, i);
    }
    for (unsigned i = 0; i < 4; i++) {
        pid[i] = child();
        if (pid[i]) continue;
        if (planted) pgs__inject_plant(planted);
        worker(b, first * 10 + i, until);
        _exit(0);
    }
    for (int i = 0; i < 4; i++) CHECK_EQ(end_of(pid[i]), 0);
    int bad = atomic_load(&b->bad);
    printf("storm %d: %llu steps\n", planted, (unsigned long long)atomic_load(&b->done));
    CHECK(bad || atomic_load(&b->done) > 200);
    if (!planted) {
        CHECK_OK(pgs_gc(s, &err));
        check_store(s);
    }
    pgs_store_unref(s);
    return bad;
}

TEST(views_never_change_while_others_overwrite_collect_and_drop)
{
    CHECK_EQ(storm(0, getenv("TORTURE") ? 30 : 3), 0);
}

TEST(pins_that_move_without_a_look_at_the_object_are_found_out)
{
    CHECK_EQ(storm(15, 20), 1); /* ends with the first */
}

/* --- threads and forks ----------------------------------------------------------------------------------------------------------- */
static pgs_store *shared;
static struct board *flags;

static void *write_and_ask(void *ctx)
{
    (void)ctx;
    for (uint64_t i = 0; !atomic_load(&flags->stop); i++) {
        (void)try_set(shared, "y", 1024, i);
        ask(shared);
        atomic_fetch_add(&flags->done, 1);
    }
    return NULL;
}
#define DROPPED 24
static void *open_and_drop(void *ctx)
{
    (void)ctx;
    for (uint64_t i = 0; !atomic_load(&flags->stop); i++) {
        pgs_view *v[DROPPED];
        uint64_t gen, version, head = head_gen(shared);
        for (int k = 0; k < DROPPED; k++) v[k] = view_of(shared, "x");
        while (head_gen(shared) == head && !atomic_load(&flags->stop)) {
        }
        CHECK_OK(pgs_view_lease(v[i % DROPPED], 1, &gen, &version, &err)); /* while the other thread moves them */
        for (int k = 0; k < DROPPED; k++)
            if (k != (int)(i % DROPPED)) pgs_view_unref(v[k]);
        CHECK_EQ(pgs_view_gen(v[i % DROPPED]), gen);
        pgs_view_unref(v[i % DROPPED]);
    }
    return NULL;
}

TEST(forks_and_threads_in_the_middle_of_a_move_lose_no_pin)
{
    enum { N = 40, FORKS = 300 };
    shared = new_store(0);
    flags = new_board();
    set(shared, "x", SMALL, 1);
    pgs_view *v[N];
    pthread_t a, b;
    for (int i = 0; i < N; i++) v[i] = view_of(shared, "x");
    CHECK(pthread_create(&a, NULL, write_and_ask, NULL) == 0 && pthread_create(&b, NULL, open_and_drop, NULL) == 0);
    for (int i = 0; i < FORKS; i++) {
        pid_t pid = child();
        if (pid == 0) {
            struct pgs__session *s = shared->s;
            CHECK(!s->advance.busy);
            ask(shared);
            for (uint32_t k = 0; k < s->n_pins; k++)
                if (s->pins[k].gen) CHECK_EQ(atomic_load(pgs__ctl_pin(&s->ctl, s->slot, k)), s->pins[k].gen);
            for (int k = 0; k < N; k++) {
                CHECK(is_filled(pgs_view_data(v[k]), SMALL, 1));
                struct pgs__pin pin = v[k]->hold.pin;
                CHECK(pgs__pin_valid(s, &pin));
                pgs_view_unref(v[k]);
            }
            uint32_t left = 0; /* of other threads' calls: a few */
            for (uint32_t k = 0; k < s->n_pins; k++) left += s->pins[k].refs;
            CHECK(left <= DROPPED + 4);
            _exit(0);
        }
        CHECK_EQ(end_of(pid), 0);
    }
    atomic_store(&flags->stop, 1);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    CHECK(atomic_load(&flags->done) > 10);
    for (int i = 0; i < N; i++) pgs_view_unref(v[i]);
    CHECK_EQ(shared->s->n_pins, 0);
    check_store(shared);
    pgs_store_unref(shared);
}

/* A process killed while it moves pins: another takes its slot back, nothing stays pinned. */
TEST(a_process_that_is_killed_in_the_middle_of_a_move_leaves_nothing)
{
    static const char *const points[] = {"advance_taken", "advance_found"};
    for (int i = 0; i < 2; i++) {
        pgs_store *s = new_store(0);
        set(s, "x", SMALL, 1);
        pid_t pid = child();
        if (pid == 0) {
            pgs_view *v = view_of(s, "x");
            set(s, "y", SMALL, 2);
            setenv("PAGESTONE_KILL", points[i], 1);
            ask(s);
            pgs_view_unref(v);
            _exit(0);
        }
        CHECK_EQ(end_of(pid), 1000 + SIGKILL);
        CHECK_OK(pgs_gc(s, &err));
        look_at_readers(s);
        CHECK_EQ(n_readers, 0);
        check_store(s);
        pgs_store_unref(s);
        remove_path();
    }
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
