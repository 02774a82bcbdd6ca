/* Pagestone | tests/crash/test_damage — one flipped bit in each byte of a store: right data or a clean refusal, never a signal, a hang or wrong bytes.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A small store with all kinds of objects, two versions and a tag is made once. For each byte of its used pages a copy with one seeded bit
 * flipped is opened, as on another boot (control file gone) and as on this one; everything is read in all versions, checked, and written to. Reads that
 * are verified may give -PGS_ECORRUPT or what was committed, nothing else. The same for files cut short, superblocks destroyed, pages that are
 * another's, or older.
 *
 * Batches run in forked children; a child that dies of a signal or of its alarm names the flip that it was at. The copies are changed and restored
 * in place, so a flip costs one write.
 *
 *     TEST_SEED=…  other bits      TEST_NUMBER=i  only that one
 */
#define _GNU_SOURCE
#include "tests/crash/world.h"

#define SMALL_ARRAY 6000u
static char path[520];
static struct counts {
    uint64_t at, n, refused, right, damaged;
} * progress; /* shared with the batches */

/* --- the store ------------------------------------------------------------------------------------------------------------ */
static struct world_state states[8]; /* [version] */
static struct model *model;
struct saved { /* a file's pages that hold something */
    char name[600];
    uint64_t bytes, n;
    uint64_t *off;
    uint8_t (*page)[PGS_PAGE_SIZE];
};
static struct saved pages, control, older; /* older: pages before the last commit */
static void save(struct saved *f, const char *name);

static pgs_store *open_rw(void)
{
    struct pgs_options opt = {
        .mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 3, .checksums = 1, .timeout_ns = 2000000000};
    pgs_store *s;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    return s;
}

static void commit(pgs_txn *t)
{
    uint64_t version;
    CHECK_OK(pgs_txn_commit(t, "a message", &version, &err));
    CHECK(version < 8);
    states[version] = model->now;
    pgs_txn_unref(t);
}

static void make_store(void)
{
    pgs_txn *t;
    pgs_store *s = open_rw();
    rng_state = 7;
    model = model_new();
    states[0] = model->now;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(w_put(model, t, 0, PGS_KIND_BYTES, 30));
    CHECK_OK(w_put(model, t, 1, PGS_KIND_PLAIN, 200));
    CHECK_OK(w_put(model, t, 4, PGS_KIND_BYTES, 5000));
    CHECK_OK(w_put(model, t, 7, PGS_KIND_PICKLE, 7000));
    CHECK_OK(w_put(model, t, 8, PGS_KIND_ARRAY, SMALL_ARRAY));
    CHECK_OK(w_create(model, t, 12, 60000)); /* holes */
    commit(t);
    CHECK_OK(pgs_tag(s, "tagged", 6, -1, &err));
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(w_edit(model, t, 12, 2)); /* runs and holes */
    CHECK_OK(w_edit(model, t, 8, 1));
    CHECK_OK(w_put(model, t, 7, PGS_KIND_PICKLE, 4500));
    commit(t);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    save(&older, "pages");
    CHECK_OK(w_edit(model, t, 12, 1));
    CHECK_OK(w_put(model, t, 5, PGS_KIND_BYTES, 100));
    commit(t);
    check_sound(s);
    pgs_store_unref(s);
    save(&control, "control");
}

static void save(struct saved *f, const char *name)
{
    static const uint8_t zeros[PGS_PAGE_SIZE];
    struct stat st;
    snprintf(f->name, sizeof f->name, "%s/%s", path, name);
    int fd = open(f->name, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && fstat(fd, &st) == 0);
    f->bytes = (uint64_t)st.st_size;
    f->n = 0;
    f->off = malloc(1000 * sizeof *f->off);
    f->page = malloc(1000 * sizeof *f->page);
    for (uint64_t off = 0; off < f->bytes; off += PGS_PAGE_SIZE) {
        off_t data = lseek(fd, (off_t)off, SEEK_DATA);
        if (data < 0) break;
        off = (uint64_t)data & ~(uint64_t)(PGS_PAGE_SIZE - 1);
        CHECK(f->n < 1000 && pread(fd, f->page[f->n], PGS_PAGE_SIZE, (off_t)off) == PGS_PAGE_SIZE);
        if (memcmp(f->page[f->n], zeros, PGS_PAGE_SIZE) != 0) f->off[f->n++] = off;
    }
    close(fd);
}

/* The same inode, for the control file names it. */
static void restore(const struct saved *f)
{
    int fd = open(f->name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)f->bytes) == 0);
    for (uint64_t i = 0; i < f->n; i++) CHECK(pwrite(fd, f->page[i], PGS_PAGE_SIZE, (off_t)f->off[i]) == PGS_PAGE_SIZE);
    close(fd);
}

static void patch(uint64_t off, const void *p, size_t n)
{
    char name[600];
    snprintf(name, sizeof name, "%s/pages", path);
    int fd = open(name, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && pwrite(fd, p, n, (off_t)off) == (ssize_t)n);
    close(fd);
}

/* --- looking at a damaged store --------------------------------------------------------------------------------------------- */
/* An answer about damage is a code of these, with a text. */
static void check_refusal(int rc, const char *what)
{
    if (rc != -PGS_ECORRUPT && rc != -PGS_EFORMAT && rc != -PGS_ENOTSTORE && rc != -PGS_EIO && rc != -PGS_EEXPIRED)
        TEST_FAIL("%s gives %d (%s)", what, rc, err.text);
    if (err.code != -rc || err.text[0] == 0) TEST_FAIL("%s gives %d without a text", what, rc);
    progress->refused++;
}

static void read_key(pgs_snapshot *sn, int k)
{
    uint64_t version = pgs_snapshot_version(sn);
    struct object_state got;
    memset(&err, 0, sizeof err);
    int rc = read_object(sn, k, &got);
    if (rc) {
        check_refusal(rc, key_names[k]);
        return;
    }
    const struct object_state *want = version < 8 ? &states[version].k[k] : &(struct object_state){0};
    if (memcmp(&got, want, sizeof got) != 0)
        TEST_FAIL("%s of version %llu has wrong bytes", key_names[k], (unsigned long long)version);
    progress->right++;
}

static void list_keys(pgs_snapshot *sn)
{
    pgs_iter *it;
    const void *key;
    size_t len;
    int rc, n = 0;
    memset(&err, 0, sizeof err);
    rc = pgs_iter_snapshot(sn, NULL, 0, &it, &err);
    if (rc) {
        check_refusal(rc, "iteration");
        return;
    }
    while ((rc = pgs_iter_next(it, &key, &len, NULL, &err)) == 0 && n < 1000) n++;
    if (n == 1000) TEST_FAIL("the listing does not end");
    if (rc != -PGS_ENOENT) check_refusal(rc, "iteration");
    pgs_iter_free(it);
}

static int see_log(void *ctx, const struct pgs_commit_info *c)
{
    (void)c;
    return ++*(int *)ctx > 1000;
}

static void look_at_all(pgs_store *s)
{
    pgs_snapshot *sn;
    int n = 0;
    for (int version = 1; version <= 3; version++) {
        memset(&err, 0, sizeof err);
        int rc = pgs_snapshot_at(s, version, &sn, &err);
        if (rc == -PGS_EINVAL && pgs_store_version(s) < (uint64_t)version) continue; /* the older superblock's */
        if (rc) {
            check_refusal(rc, "a version");
            continue;
        }
        CHECK_EQ(pgs_snapshot_version(sn), version);
        for (int k = 0; k < N_KEYS; k++) read_key(sn, k);
        list_keys(sn);
        pgs_snapshot_unref(sn);
    }
    memset(&err, 0, sizeof err);
    int rc = pgs_snapshot_at_tag(s, "tagged", 6, &sn, &err);
    if (rc == 0) {
        CHECK_EQ(pgs_snapshot_version(sn), 1);
        pgs_snapshot_unref(sn);
    } else {
        check_refusal(rc, "a tag");
    }
    memset(&err, 0, sizeof err);
    rc = pgs_log(s, 0, see_log, &n, &err);
    if (rc < 0) check_refusal(rc, "the log");
}

static int count_problem(void *ctx, const char *object, const char *problem)
{
    (void)object;
    if (problem[0] == 0) TEST_FAIL("a problem without a text");
    ++*(uint64_t *)ctx;
    return 0;
}

/* Verify; write; read what was written. */
static void write_to_it(pgs_store *s)
{
    pgs_txn *t;
    uint64_t version, n = 0;
    struct pgs_check_report r = {0};
    memset(&err, 0, sizeof err);
    int rc = pgs_check(s, 1, count_problem, &n, &r, &err);
    if (rc) check_refusal(rc, "check");
    if (n) progress->damaged++;
    memset(&err, 0, sizeof err);
    rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err);
    if (rc) {
        check_refusal(rc, "begin");
        return;
    }
    pgs_view *v;
    rc = pgs_txn_edit(t, "hole", 4, &v, &err);
    if (rc == 0) {
        memset(pgs_view_data(v), 1, 4096);
        pgs_view_unref(v);
    } else {
        check_refusal(rc, "edit");
    }
    memset(&err, 0, sizeof err);
    rc = pgs_txn_put(t, "new", 3, PGS_KIND_BYTES, NULL, &(struct pgs_part){"bytes", 5}, 1, &err);
    if (rc == 0) rc = pgs_txn_delete(t, "g/b0", 4, &err);
    if (rc == -PGS_ENOENT) rc = 0;
    if (rc == 0) rc = pgs_txn_commit(t, NULL, &version, &err);
    if (rc) check_refusal(rc, "commit");
    pgs_txn_unref(t);
    memset(&err, 0, sizeof err);
    rc = pgs_gc(s, &err);
    if (rc) check_refusal(rc, "gc");
}

static void look(bool write)
{
    struct pgs_options opt = {.mode = write ? PGS_MODE_RPLUS : PGS_MODE_R, .timeout_ns = 2000000000};
    pgs_store *s;
    memset(&err, 0, sizeof err);
    int rc = pgs_open(path, &opt, &s, &err);
    if (rc) {
        check_refusal(rc, "open");
        return;
    }
    look_at_all(s);
    if (write) write_to_it(s);
    pgs_store_unref(s);
}

/* --- many of them, in children ------------------------------------------------------------------------------------------------- */
struct damage {
    const char *what;
    uint64_t (*count)(void);
    void (*one)(uint64_t i);
    uint64_t every; /* only each one of so many */
    int plant;
};
static void batch(const struct damage *d, uint64_t lo, uint64_t hi, uint64_t step)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        for (uint64_t i = lo; i < hi; i += step) {
            progress->at = i;
            limit(10);
            d->one(i);
        }
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    if (status)
        TEST_FAIL("%s, number %llu: %s (status %#x); repeat with TEST_SEED=%llu TEST_NUMBER=%llu", d->what,
                  (unsigned long long)progress->at, WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "failed",
                  (unsigned)status, (unsigned long long)test_seed(), (unsigned long long)progress->at);
}

/* One of two workers, each with a store of its own. */
static void worker(const struct damage *d, uint64_t me)
{
    snprintf(path, sizeof path, "%s/w%d.ps", scratch_path, (int)me);
    progress = (void *)((char *)progress + me * 4096);
    without_syncs();
    make_store();
    save(&pages, "pages");
    pgs__inject_plant(d->plant);
    uint64_t n = d->count(), every = d->every * (n > 5000 ? slowness() * slowness() : 1), step = 2 * every;
    uint64_t lo = me * every + test_seed() % every;
    const char *only = getenv("TEST_NUMBER");
    if (only) {
        uint64_t i = strtoull(only, NULL, 10);
        if (i % 2 == me) batch(d, i, i + 1, 1);
        return;
    }
    for (; lo < n; lo += 512 * step) {
        uint64_t hi = lo + 512 * step;
        batch(d, lo, hi < n ? hi : n, step);
        progress->n += ((hi < n ? hi : n) - lo + step - 1) / step;
    }
}

static void run_damage(void *arg)
{
    const struct damage *d = arg;
    double begun = seconds();
    int bad = 0, status;
    pid_t pid[2];
    scratch(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL);
    limit(280);
    progress = shared_memory(2 * 4096);
    for (uint64_t w = 0; w < 2; w++) {
        fflush(NULL);
        pid[w] = fork();
        if (pid[w] == 0) {
            worker(d, w);
            _exit(0);
        }
    }
    for (int w = 0; w < 2; w++) {
        while (waitpid(pid[w], &status, 0) < 0) {
        }
        bad |= status;
    }
    const struct counts *a = (void *)progress, *b = (void *)((char *)progress + 4096);
    fprintf(stderr,
            "    %s: %llu times, seed %llu: %llu right answers, %llu refusals, check found damage %llu times, %.1f s\n",
            d->what, (unsigned long long)(a->n + b->n), (unsigned long long)test_seed(),
            (unsigned long long)(a->right + b->right), (unsigned long long)(a->refused + b->refused),
            (unsigned long long)(a->damaged + b->damaged), seconds() - begun);
    scratch_end();
    if (bad) _exit(1);
    if (a->n + b->n > 100 && (a->refused == 0 || a->right == 0)) TEST_FAIL("nothing was damaged, or everything");
}

/* --- flips --------------------------------------------------------------------------------------------------------------------- */
static uint64_t n_bytes(void)
{
    return pages.n * PGS_PAGE_SIZE;
}

static uint8_t flipped(uint64_t i)
{
    return pages.page[i / PGS_PAGE_SIZE][i % PGS_PAGE_SIZE] ^ (uint8_t)(1u << pgs__mix(test_seed() * 1000003 + i) % 8);
}

static uint64_t place(uint64_t i)
{
    return pages.off[i / PGS_PAGE_SIZE] + i % PGS_PAGE_SIZE;
}

static void unflip(uint64_t i)
{
    patch(place(i), &pages.page[i / PGS_PAGE_SIZE][i % PGS_PAGE_SIZE], 1);
}

/* Reads only leave the page file as it is: it needs no restoring. */
static void flip_before_another_boot(uint64_t i)
{
    uint8_t byte = flipped(i);
    bool write = i / 2 % 16 == 0;
    if (i / 2 % 2) /* what recovery finds: another boot's control file, or none */
        other_boot(path);
    else
        drop_control(path);
    patch(place(i), &byte, 1);
    look(write);
    if (write)
        restore(&pages);
    else
        unflip(i);
}

/* The control file knows the root, whatever the superblocks say. */
static void flip_of_this_boot(uint64_t i)
{
    uint8_t byte = flipped(i);
    bool write = i / 2 % 16 == 0;
    patch(place(i), &byte, 1);
    look(write);
    if (write)
        restore(&pages), restore(&control);
    else
        unflip(i);
}

static const struct damage another_boot = {"a bit flipped before another boot", n_bytes, flip_before_another_boot, 1,
                                           0};

TEST(a_flipped_bit_before_another_boot_is_refused_or_harmless)
{
    struct damage d = another_boot;
    if (getenv("PAGESTONE_WITHOUT")) d.every = 8;
    run_damage(&d);
}

TEST(a_flipped_bit_under_a_live_control_file_is_refused_or_harmless)
{
    struct damage d = {"a bit flipped on this boot", n_bytes, flip_of_this_boot, getenv("TORTURE") ? 1 : 4, 0};
    if (getenv("PAGESTONE_WITHOUT")) d.every = 16;
    run_damage(&d);
}

TEST(plant_7_a_node_whose_hash_is_not_verified_is_found)
{
    struct damage d = another_boot;
    d.plant = 7;
    d.every = 3;
    unsetenv("TEST_NUMBER");
    int rc = in_child(getenv("TEST_LOUD") == NULL, run_damage, &d);
    if (rc != 1) TEST_FAIL("planted bug 7 was not found (%d)", rc);
}

/* --- files cut short ---------------------------------------------------------------------------------------------------------------- */
static uint64_t n_lengths(void)
{
    return 2 * (pages.off[pages.n - 1] / PGS_PAGE_SIZE + 8);
}

/* Each page boundary, and a length in the page behind it. */
static void cut_short(uint64_t i)
{
    uint64_t length = i / 2 * PGS_PAGE_SIZE;
    if (i % 2) length += 1 + pgs__mix(i) % (PGS_PAGE_SIZE - 1);
    if (i % 4 < 2) drop_control(path);
    CHECK(truncate(pages.name, (off_t)length) == 0);
    look(i % 8 == 0);
    restore(&pages);
    restore(&control);
}

TEST(a_file_cut_short_is_refused_or_harmless)
{
    run_damage(&(struct damage){"a file cut short", n_lengths, cut_short, 1, 0});
}

/* --- whole pages --------------------------------------------------------------------------------------------------------------------- */
static uint64_t n_swaps(void)
{
    return 1000 + older.n;
}

/* A page holds what another one held, or what it held itself before the last commit, or rubbish. */
static void strange_page(uint64_t i)
{
    uint8_t rubbish[PGS_PAGE_SIZE];
    rng_state = test_seed() * 77 + i;
    fill(rubbish, sizeof rubbish);
    uint64_t k = rng_below(pages.n), other = rng_below(pages.n);
    if (i % 3) drop_control(path);
    if (i < older.n)
        patch(older.off[i], older.page[i], PGS_PAGE_SIZE);
    else if (i % 4 == 0)
        patch(pages.off[k], rubbish, PGS_PAGE_SIZE);
    else
        patch(pages.off[k], pages.page[other], PGS_PAGE_SIZE);
    look(i % 8 == 0);
    restore(&pages);
    restore(&control);
}

TEST(a_page_with_strange_or_older_bytes_is_refused_or_harmless)
{
    run_damage(&(struct damage){"a page that is another's, older or rubbish", n_swaps, strange_page, 1, 0});
}

static uint64_t two(void)
{
    return 8;
}
static void no_superblock(uint64_t i)
{
    uint8_t bytes[PGS_PAGE_SIZE] = {0};
    rng_state = i;
    if (i & 2) fill(bytes, sizeof bytes);
    if (i & 4)
        other_boot(path);
    else
        drop_control(path);
    patch(0, bytes, sizeof bytes);
    patch((uint64_t)PGS__SUPER_PAGE_1 * PGS_PAGE_SIZE, bytes, sizeof bytes);
    struct pgs_options opt = {.mode = PGS_MODE_A};
    pgs_store *s;
    memset(&err, 0, sizeof err);
    int rc = pgs_open(path, &opt, &s, &err);
    CHECK(rc != 0); /* and never made anew over what somebody may want to rescue */
    check_refusal(rc, "open");
    opt.mode = PGS_MODE_W; /* nor as something that it does not look like */
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs_open(path, &opt, &s, &err), PGS_ENOTSTORE);
    restore(&pages);
    drop_control(path);
}

TEST(without_superblocks_a_store_is_refused_and_not_overwritten)
{
    run_damage(&(struct damage){"both superblocks destroyed", two, no_superblock, 1, 0});
}

int main(int argc, char **argv)
{
    setenv("TEST_SECONDS", slowness() > 1 ? "1500" : "300", 0);
    return run_tests(argc, argv);
}
