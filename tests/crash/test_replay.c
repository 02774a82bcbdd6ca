/* Pagestone | tests/crash/test_replay — power loss: every prefix of a run's writes, torn superblocks, and what a page cache may drop.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two processes take turns in changing one store while the recorder keeps every operation on its files, stores through mappings included. A mark behind each
 * returned operation, and its contents, are the expected states. Then the replayer builds the files as a power loss could have left them, and a store is
 * opened there as on another boot:
 *
 *     "full"      the last returned operation or the one in flight; nothing that any process could see is missing
 *     "ordered"   an earlier one, not older than the last superblock with a barrier behind it
 *     "none"      refused, or as "ordered"; after the death of all processes (same boot, control file gone) as "full"
 *
 * In every case: each kept version holds what was committed under its number, the verifier finds no error and no leak, the next commit works and its
 * number was never given out before.
 *
 * Some operations freeze and thaw an array, so that blocks, and pages of blocks, come and go in all of that.
 *
 * Each plant_N test shows that the harness is not blind: with that bug in the library it must find a state that breaks a promise.
 *
 *     TEST_SEED=…  another run      TEST_STATE=i  only this state, its image kept      TORTURE=1  ten times as many states
 */
#define _GNU_SOURCE
#include <sched.h>

#include "libshm/platform/record.h"
#include "tests/crash/world.h"

#define MAX_OPS 200
#define N_TAGS 3
#define N_WORKERS 2

#define KEY_OF(k) key_names[k], strlen(key_names[k])

/* --- the recorded run ------------------------------------------------------------------------------------------------- */
struct op { /* the state after an operation returned */
    uint64_t version, gen;
    uint64_t tag[N_TAGS]; /* version, or 0 */
    struct world_state state;
};
struct run {
    enum pgs_durability durability;
    int n_ops, plant;
    _Atomic int turn; /* number of the next operation */
    struct op ops[MAX_OPS];
    struct model model;
};
static char dir[500], path[520];

static void note_op(struct run *r, pgs_store *s, int k)
{
    pgs_snapshot *sn;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    r->ops[k].version = pgs_snapshot_version(sn);
    r->ops[k].gen = pgs_snapshot_gen(sn);
    r->ops[k].state = r->model.now;
    pgs_snapshot_unref(sn);
    pgs__record_mark((uint64_t)k);
}

static void one_commit(struct run *r, pgs_store *s, int k)
{
    pgs_txn *t;
    uint64_t version;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    if (k == 3)
        CHECK_OK(w_put(&r->model, t, 6, PGS_KIND_ARRAY, 2500000)); /* the file grows */
    else if (k == 7)
        CHECK_OK(w_delete(&r->model, t, 6));
    else
        for (uint64_t n = 1 + rng_below(3); n > 0; n--) CHECK_OK(w_random(&r->model, t));
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_txn_unref(t);
}

/* An array of which most shrinks, of several blocks. */
#define COLD 13
static void put_cold(struct run *r, pgs_store *s)
{
    pgs_txn *t;
    uint64_t version, len = 4 * (50000 + rng_below(60000));
    struct pgs_type type = type_u4(len);
    struct pgs_part part = {r->model.bytes[COLD], len};
    fill(r->model.bytes[COLD], len);
    for (uint64_t i = 0; i < len / 2; i++) r->model.bytes[COLD][i] = (uint8_t)(i % 4 ? 0 : i / 1000);
    model_set(&r->model, COLD, PGS_KIND_ARRAY, len);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_put(t, KEY_OF(COLD), PGS_KIND_ARRAY, &type, &part, 1, &err));
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_txn_unref(t);
}

static void cold_op(struct run *r, pgs_store *s)
{
    pgs_txn *t;
    uint64_t version, bytes;
    switch (rng_below(r->model.now.k[COLD].kind ? 5 : 1)) {
    case 0:
        put_cold(r, s);
        break;
    case 1:
    case 2:
        CHECK_OK(pgs_freeze(s, KEY_OF(COLD), &bytes, &err));
        break;
    case 3:
        CHECK_OK(pgs_thaw(s, KEY_OF(COLD), &bytes, &err));
        break;
    default:
        CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
        CHECK_OK(w_edit(&r->model, t, COLD, 2));
        CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
        pgs_txn_unref(t);
    }
}

static void one_op(struct run *r, pgs_store *s, int k)
{
    char name[3] = {'t', (char)('0' + rng_below(N_TAGS)), 0};
    int i = name[1] - '0';
    r->ops[k] = r->ops[k - 1];
    if (k == 4) { /* at least one of each, however few operations */
        put_cold(r, s);
        note_op(r, s, k);
        return;
    }
    switch (k == 5 || k == 11 ? 2 : k > 8 ? rng_below(13) : 12) {
    case 2:
        if (k == 5)
            CHECK_OK(pgs_freeze(s, KEY_OF(COLD), NULL, &err));
        else if (k == 11)
            CHECK_OK(pgs_thaw(s, KEY_OF(COLD), NULL, &err));
        else
            cold_op(r, s);
        break;
    case 3:
    case 4:
        cold_op(r, s);
        break;
    case 0:
        if (r->ops[k].tag[i])
            CHECK_OK(pgs_untag(s, name, 2, &err));
        else
            CHECK_OK(pgs_tag(s, name, 2, -1, &err));
        r->ops[k].tag[i] = r->ops[k].tag[i] ? 0 : r->ops[k].version;
        break;
    case 1:
        CHECK_OK(pgs_gc(s, &err));
        break;
    default:
        one_commit(r, s, k);
    }
    note_op(r, s, k);
}

static void writer(struct run *r, int me)
{
    struct pgs_options opt = {
        .mode = PGS_MODE_A, .durability = r->durability, .history = PGS_HIST_COUNT, .history_value = 2, .checksums = 1};
    pgs_store *s;
    pgs__inject_plant(r->plant);
    while (atomic_load(&r->turn) < me) usleep(50);
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    rng_state = test_seed() * 1000 + (uint64_t)me * 77 + (uint64_t)r->durability;
    if (me == 0) note_op(r, s, 0), atomic_store(&r->turn, 1);
    for (int k; (k = atomic_load(&r->turn)) <= r->n_ops;) {
        if ((k / 3) % 2 != me) {
            usleep(50);
            continue;
        }
        one_op(r, s, k);
        atomic_store(&r->turn, k + 1);
    }
    while (atomic_load(&r->turn) <= r->n_ops + me) usleep(50);
    pgs_store_unref(s);
    atomic_fetch_add(&r->turn, 1);
}

/* Before a superblock is written all stores through mappings are in the log: "none" has no barrier that would see to it. */
static struct pgs__file_ops scan_ops;
static ssize_t (*recorder_pwrite)(int, const void *, size_t, off_t);
static ssize_t scan_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    if (off == 0 || off == (off_t)PGS__SUPER_PAGE_1 * PGS_PAGE_SIZE) pgs__record_scan();
    return recorder_pwrite(fd, buf, n, off);
}

static void record(struct run *r)
{
    without_syncs();
    if (pgs__record_start(dir, NULL) != 0) TEST_FAIL("the recorder does not start");
    const struct pgs__file_ops *recorder = pgs__file_ops;
    scan_ops = *recorder;
    recorder_pwrite = recorder->pwrite;
    if (r->durability == PGS_DUR_NONE) scan_ops.pwrite = scan_pwrite;
    pgs__file_ops = &scan_ops;
    pid_t pid[2];
    for (int i = 0; i < 2; i++) {
        fflush(NULL);
        pid[i] = fork();
        if (pid[i] == 0) {
            limit(50);
            writer(r, i);
            _exit(0);
        }
    }
    int status, bad = 0;
    for (int i = 0; i < 2; i++) {
        while (waitpid(pid[i], &status, 0) < 0) {
        }
        bad |= status;
    }
    pgs__file_ops = recorder;
    pgs__record_stop();
    if (bad) TEST_FAIL("a recorded process failed (status %#x)", (unsigned)bad);
}

/* --- what each prefix promises ------------------------------------------------------------------------------------------ */
struct promise {
    int returned; /* newest operation that returned; -1: not even creation */
    int durable;  /* newest one in a superblock with a barrier behind it */
    int seen;     /* newest one that any process could see */
};
static struct pgs__log rec_log;
static struct promise *promises; /* [n]: of the first n records */

static int op_of_gen(const struct run *r, uint64_t gen)
{
    int j = -1;
    while (j < r->n_ops && r->ops[j + 1].gen <= gen) j++;
    return j;
}

static void make_promises(const struct run *r)
{
    uint32_t pages = 0, control = 0;
    uint64_t in_super = 0, durable = 0, seen = 0;
    struct promise p = {-1, -1, -1};
    promises = calloc(rec_log.n + 1, sizeof *promises);
    promises[0] = p;
    for (size_t i = 0; i < rec_log.n; i++) {
        const struct pgs__rec *e = &rec_log.recs[i];
        if (e->kind == PGS__REC_CREATE && strstr(e->path, "pages.new")) pages = e->file;
        if (e->kind == PGS__REC_CREATE && strstr(e->path, "control.new")) control = e->file;
        if (e->kind == PGS__REC_MARK) p.returned = (int)e->off;
        if (e->kind == PGS__REC_STORE && e->file == control && e->off == 0)
            memcpy(&seen, e->data + offsetof(struct pgs__control, head_gen), 8);
        bool super = e->kind == PGS__REC_WRITE && e->file == pages && e->len == PGS_PAGE_SIZE &&
                     (e->off == 0 || e->off == (uint64_t)PGS__SUPER_PAGE_1 * PGS_PAGE_SIZE);
        if (super) memcpy(&in_super, e->data + offsetof(struct pgs__super, root), 8);
        if (e->kind == PGS__REC_BARRIER && e->file == pages) durable = in_super;
        p.durable = op_of_gen(r, durable);
        p.seen = op_of_gen(r, seen);
        promises[i + 1] = p;
    }
}

/* --- crash states ---------------------------------------------------------------------------------------------------------- */
struct state {
    struct pgs__replay how;
    enum { NEW_BOOT, NO_CONTROL, ALL_DIED } kind; /* ALL_DIED: same boot, but nobody knows the control file */
};
static struct state *states;
static size_t n_states, cap_states;

static void add_state(struct state st)
{
    if (n_states == cap_states) {
        cap_states = cap_states ? cap_states * 2 : 1024;
        states = realloc(states, cap_states * sizeof *states);
        if (!states) TEST_FAIL("no memory for states");
    }
    states[n_states++] = st;
}

static bool is_super_write(size_t i)
{
    const struct pgs__rec *e = &rec_log.recs[i];
    uint64_t magic = 0;
    if (e->kind == PGS__REC_WRITE && e->len == PGS_PAGE_SIZE) memcpy(&magic, e->data, 8);
    return magic == PGS__SUPER_MAGIC;
}

static void choose_states(const struct run *r, size_t budget)
{
    bool none = r->durability == PGS_DUR_NONE;
    n_states = 0;
    rng_state = test_seed() * 31 + (uint64_t)r->durability;
    for (size_t n = rec_log.n_base; n <= rec_log.n; n++) { /* every prefix */
        struct state st = {.how = {.n_records = n}, .kind = none ? ALL_DIED : n % 2 ? NEW_BOOT : NO_CONTROL};
        if (budget < rec_log.n && rng_below(rec_log.n) >= budget) continue; /* under valgrind only some */
        add_state(st);
        if (n == 0 || !is_super_write(n - 1)) continue;
        for (unsigned bits = 0; bits < 20; bits++) { /* every way for a superblock to be cut, and some others */
            st.how.tear_unit = 512;
            st.how.tear_mask = bits < 8 ? (1u << bits) - 1 : bits < 15 ? 0xffu << (bits - 7) & 0xff : rng_below(256);
            add_state(st);
            if (!none && bits % 5 == 1) {
                struct state lossy = st;
                lossy.how.lossy = true;
                lossy.how.names_stable = rng_below(2);
                lossy.how.seed = rng();
                add_state(lossy);
            }
        }
    }
    while (n_states < budget) { /* what no barrier protects is there or not, page by page */
        struct state st = {.how = {.lossy = true, .seed = rng(), .names_stable = rng_below(4) != 0}};
        st.how.n_records = rec_log.n_base + rng_below(rec_log.n - rec_log.n_base + 1);
        st.kind = none || rng_below(2) ? NEW_BOOT : NO_CONTROL;
        add_state(st);
    }
}

static void print_state(const struct run *r, size_t i)
{
    const struct state *st = &states[i];
    const struct promise *p = &promises[st->how.n_records];
    char text[200] = "";
    if (st->how.n_records)
        pgs__rec_print(&rec_log.recs[st->how.n_records - 1], st->how.n_records - 1, text, sizeof text);
    fprintf(
        stderr,
        "    state %zu of %zu, durability %d: %zu of %zu records%s, tear %u mask %#llx, kind %d; returned %d durable "
        "%d seen %d\n    last record: %s\n    repeat: TEST_SEED=%llu TEST_STATE=%zu\n",
        i, n_states, (int)r->durability, st->how.n_records, rec_log.n, st->how.lossy ? " (lossy)" : "",
        st->how.tear_unit, (unsigned long long)st->how.tear_mask, (int)st->kind, p->returned, p->durable, p->seen, text,
        (unsigned long long)test_seed(), i);
}

/* --- opening one ------------------------------------------------------------------------------------------------------------ */
/* The store as it stands is that of an operation in [lo, hi]. */
static void check_head(const struct run *r, pgs_store *s, int lo, int hi)
{
    struct pgs_tag_info *tags;
    size_t n_tags;
    uint64_t tag[N_TAGS] = {0}, version = pgs_store_version(s);
    CHECK_OK(pgs_tags(s, &tags, &n_tags, &err));
    for (size_t i = 0; i < n_tags; i++) {
        CHECK(tags[i].len == 2 && tags[i].name[1] >= '0' && tags[i].name[1] < '0' + N_TAGS);
        tag[tags[i].name[1] - '0'] = tags[i].version;
    }
    pgs_free(tags);
    for (int j = lo; j <= hi; j++)
        if (r->ops[j].version == version && memcmp(r->ops[j].tag, tag, sizeof tag) == 0) return;
    TEST_FAIL("version %llu with %zu tags is none of operations %d (version %llu) to %d (version %llu)",
              (unsigned long long)version, n_tags, lo, (unsigned long long)r->ops[lo].version, hi,
              (unsigned long long)r->ops[hi].version);
}

static const struct world_state *state_of(const struct run *r, uint64_t version)
{
    for (int j = 0; j <= r->n_ops; j++)
        if (r->ops[j].version == version) return &r->ops[j].state;
    TEST_FAIL("version %llu was never committed", (unsigned long long)version);
}

static void check_versions(const struct run *r, pgs_store *s)
{
    uint64_t *list;
    size_t n;
    pgs_snapshot *sn;
    CHECK_OK(pgs_versions(s, &list, &n, &err));
    CHECK(n > 0 && list[n - 1] == pgs_store_version(s));
    for (size_t i = 0; i < n; i++) {
        CHECK_OK(pgs_snapshot_at(s, (int64_t)list[i], &sn, &err));
        check_state(sn, state_of(r, list[i]));
        pgs_snapshot_unref(sn);
    }
    pgs_free(list);
}

static void check_next_commit(pgs_store *s, uint64_t newest)
{
    pgs_txn *t;
    pgs_snapshot *sn;
    struct pgs_object obj;
    uint64_t version;
    struct pgs_part part = {"after the crash", 15};
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_put(t, "after", 5, PGS_KIND_BYTES, NULL, &part, 1, &err));
    CHECK_OK(pgs_txn_put(t, "large", 5, PGS_KIND_BYTES, NULL, &(struct pgs_part){NULL, 90000}, 1, &err));
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_txn_unref(t);
    if (version <= newest)
        TEST_FAIL("version %llu was given out a second time (newest before: %llu)", (unsigned long long)version,
                  (unsigned long long)newest);
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_EQ(pgs_snapshot_version(sn), version);
    CHECK_OK(pgs_get(sn, "after", 5, &obj, &err));
    CHECK_EQ(obj.n_bytes, 15);
    pgs_snapshot_unref(sn);
}

/* Before creation had returned nobody was promised anything, but the place must be usable. */
static void check_half_created(const char *image)
{
    struct pgs_options opt = {.mode = PGS_MODE_A};
    pgs_store *s;
    int rc = pgs_open(image, &opt, &s, &err);
    if (rc) TEST_FAIL("a half-created store is in the way: %d %s", rc, err.text);
    CHECK_EQ(pgs_store_version(s), 0);
    check_next_commit(s, 0);
    check_sound(s);
    pgs_store_unref(s);
}

static void try_state(const struct run *r, const struct state *st, const char *image_dir)
{
    char image[700];
    const struct promise *p = &promises[st->how.n_records];
    struct pgs_options opt = {.mode = PGS_MODE_RPLUS};
    pgs_store *s;
    snprintf(image, sizeof image, "%s/s.ps", image_dir);
    remove_tree(image_dir);
    int rc = pgs__replay(&rec_log, &st->how, image_dir);
    if (rc) TEST_FAIL("the replayer fails: %s", strerror(-rc));
    other_boot(image);
    if (st->kind != ALL_DIED) other_boot_supers(image);
    if (st->kind != NEW_BOOT) drop_control(image);

    memset(&err, 0, sizeof err);
    if (p->returned < 0) {
        check_half_created(image);
        return;
    }
    rc = pgs_open(image, &opt, &s, &err);
    bool none = r->durability == PGS_DUR_NONE;
    if (rc == -PGS_ECORRUPT && none && st->kind == NEW_BOOT && strstr(err.text, "may be torn")) return;
    if (rc) TEST_FAIL("the store does not open: %d %s", rc, err.text);

    int lo = p->durable, hi = p->returned < r->n_ops ? p->returned + 1 : r->n_ops;
    if (r->durability == PGS_DUR_FULL || st->kind == ALL_DIED) {
        if (lo < p->returned) lo = p->returned;
        if (lo < p->seen) lo = p->seen;
    }
    if (hi < lo) hi = lo;
    check_head(r, s, lo < 0 ? 0 : lo, hi);
    check_versions(r, s);
    check_sound_after(s, true);
    check_next_commit(s, r->ops[p->returned].version);
    if (st->how.seed % 4 == 0) check_sound_after(s, r->durability != PGS_DUR_FULL);
    pgs_store_unref(s);
}

/* --- all of them ------------------------------------------------------------------------------------------------------------ */
struct progress {
    _Atomic uint64_t at[N_WORKERS], failed;
};

static void work(const struct run *r, struct progress *pr, uint64_t me)
{
    char image[700];
    snprintf(image, sizeof image, "%s/image%d", dir, (int)me);
    without_syncs();
    pgs__inject_plant(0);
    for (uint64_t i = me; i < n_states && !atomic_load(&pr->failed); i += N_WORKERS) {
        atomic_store(&pr->at[me], i);
        limit(20); /* per state: opening must not hang */
        try_state(r, &states[i], image);
    }
}

/* The number of states that were tried; dies at the first bad one. */
static void try_all(const struct run *r, size_t budget)
{
    struct progress *pr = shared_memory(sizeof *pr);
    double start = seconds();
    make_promises(r);
    choose_states(r, budget);
    const char *only = getenv("TEST_STATE");
    if (only) {
        size_t i = strtoull(only, NULL, 10);
        char image[700];
        CHECK(i < n_states);
        print_state(r, i);
        snprintf(image, sizeof image, "/tmp/pagestone-image");
        without_syncs();
        try_state(r, &states[i], image);
        return;
    }
    pid_t pid[N_WORKERS];
    for (uint64_t w = 0; w < N_WORKERS; w++) {
        fflush(NULL);
        pid[w] = fork();
        if (pid[w] == 0) {
            work(r, pr, w);
            _exit(0);
        }
    }
    bool bad = false;
    for (int w = 0; w < N_WORKERS; w++) {
        int status;
        while (waitpid(pid[w], &status, 0) < 0) {
        }
        if (status == 0) continue;
        bad = true;
        atomic_store(&pr->failed, 1);
        if (WIFSIGNALED(status)) fprintf(stderr, "    killed by %s\n", strsignal(WTERMSIG(status)));
        print_state(r, atomic_load(&pr->at[w]));
    }
    if (bad) _exit(1);
    fprintf(stderr, "    durability %d: %zu crash states of %zu records and %d operations, seed %llu, %.1f s\n",
            (int)r->durability, n_states, rec_log.n, r->n_ops, (unsigned long long)test_seed(), seconds() - start);
}

struct job {
    enum pgs_durability durability;
    int n_ops, plant;
    size_t budget;
};
static void run_job(void *arg)
{
    NEEDS_PROC(); /* the recorder finds names through it */
    const struct job *j = arg;
    snprintf(dir, sizeof dir, "%s/run", scratch(NULL));
    CHECK(mkdir(dir, 0700) == 0);
    snprintf(path, sizeof path, "%s/s.ps", dir);
    struct run *r = shared_memory(sizeof *r);
    r->durability = j->durability;
    r->n_ops = j->n_ops;
    r->plant = j->plant;
    limit(300);
    record(r);
    int rc = pgs__log_load(NULL, &rec_log);
    CHECK_EQ(rc, 0);
    snprintf(dir, sizeof dir, "%s", scratch_path);
    try_all(r, j->budget);
    scratch_end();
}

TEST(full_loses_nothing_that_returned)
{
    run_job(&(struct job){PGS_DUR_FULL, 40, 0, scaled(2200)});
}

TEST(ordered_is_never_torn)
{
    run_job(&(struct job){PGS_DUR_ORDERED, 60, 0, scaled(2200)});
}

TEST(none_survives_its_processes_and_refuses_what_may_be_torn)
{
    run_job(&(struct job){PGS_DUR_NONE, 40, 0, scaled(1000)});
}

/* The harness must turn red with this bug in the library. */
static void must_find(int plant, enum pgs_durability durability, int n_ops)
{
    NEEDS_PROC();
    struct job j = {durability, n_ops, plant, 2200}; /* as many as it takes */
    unsetenv("TEST_STATE");
    int rc = in_child(getenv("TEST_LOUD") == NULL, run_job, &j);
    if (rc != 1) TEST_FAIL("planted bug %d was not found (%d)", plant, rc);
}

TEST(plant_1_a_barrier_skipped_before_the_superblock_is_found)
{
    must_find(1, PGS_DUR_FULL, 24);
}

TEST(plant_2_a_barrier_skipped_behind_the_superblock_is_found)
{
    must_find(2, PGS_DUR_FULL, 24);
}

TEST(plant_3_a_page_reused_one_generation_early_is_found)
{
    must_find(3, PGS_DUR_ORDERED, 60);
}

TEST(plant_6_reuse_before_it_is_durable_is_found)
{
    must_find(6, PGS_DUR_ORDERED, 60);
}

TEST(plant_8_visible_before_durable_is_found)
{
    must_find(8, PGS_DUR_FULL, 24);
}

int main(int argc, char **argv)
{
    setenv("TEST_SECONDS", slowness() > 1 ? "1500" : "300", 0);
    return run_tests(argc, argv);
}
