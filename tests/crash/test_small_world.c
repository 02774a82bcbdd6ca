/* Pagestone | tests/crash/test_small_world — full file systems, quotas, few descriptors, little address space, read-only mounts, views under pressure.
 * SPDX-License-Identifier: Apache-2.0
 *
 * On a full store nothing is lost, nobody dies of SIGBUS, deleting works, and then there is room again. Reading never allocates. What was handed out
 * stays what it was, whatever happens to the store.
 *
 * Small file systems are tmpfs in a mount namespace of the test's own: without the right to mount, those tests are skipped.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statfs.h>

#include "libshm/platform/caps.h"
#include "tests/crash/world.h"

static char mount_dir[64], path[500];

static void unmount(void)
{
    umount2(mount_dir, MNT_DETACH);
    rmdir(mount_dir);
}

static void small_tmpfs(const char *size)
{
    char options[64];
    snprintf(mount_dir, sizeof mount_dir, "/tmp/pagestone-XXXXXX");
    CHECK(mkdtemp(mount_dir));
    snprintf(options, sizeof options, "size=%s,mode=700", size);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("pagestone-test", mount_dir, "tmpfs", 0, options) != 0) {
        rmdir(mount_dir);
        SKIP("mounting a tmpfs is not permitted");
    }
    atexit(unmount);
    snprintf(path, sizeof path, "%s/s.ps", mount_dir);
}

static void on_shm(void)
{
    snprintf(path, sizeof path, "%s/s.ps", scratch(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL));
}

static pgs_store *open_store(uint64_t size)
{
    struct pgs_options opt = {.mode = PGS_MODE_A, .size = size, .checksums = 1};
    pgs_store *s;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    return s;
}

/* --- numbered objects whose bytes follow from their number ----------------------------------------------------------------- */
static uint8_t *pattern(uint64_t i, uint64_t len)
{
    static uint8_t *bytes;
    if (!bytes) bytes = malloc(8 << 20);
    rng_state = i * 7919 + 3;
    fill(bytes, len);
    return bytes;
}

static int put_n(pgs_store *s, uint64_t i, uint64_t len)
{
    char key[24];
    pgs_txn *t;
    uint64_t version;
    struct pgs_type type = type_u4(len);
    int rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err);
    if (rc) return rc;
    snprintf(key, sizeof key, "n%llu", (unsigned long long)i);
    rc = pgs_txn_put(t, key, strlen(key), i % 2 ? PGS_KIND_ARRAY : PGS_KIND_BYTES, i % 2 ? &type : NULL,
                     &(struct pgs_part){pattern(i, len), len}, 1, &err);
    if (rc == 0) rc = pgs_txn_commit(t, NULL, &version, &err);
    pgs_txn_unref(t);
    return rc;
}

static int delete_n(pgs_store *s, uint64_t i)
{
    char key[24];
    pgs_txn *t;
    uint64_t version;
    int rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err);
    if (rc) return rc;
    snprintf(key, sizeof key, "n%llu", (unsigned long long)i);
    rc = pgs_txn_delete(t, key, strlen(key), &err);
    if (rc == 0) rc = pgs_txn_commit(t, NULL, &version, &err);
    pgs_txn_unref(t);
    return rc;
}

static void check_n(pgs_store *s, uint64_t i, uint64_t len)
{
    char key[24];
    pgs_snapshot *sn;
    pgs_view *v;
    struct pgs_object obj;
    snprintf(key, sizeof key, "n%llu", (unsigned long long)i);
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, key, strlen(key), &obj, &err));
    CHECK_EQ(obj.n_bytes, len);
    CHECK_OK(pgs_view_open(sn, &obj, 1, &v, &err));
    if (memcmp(pgs_view_data(v), pattern(i, len), len) != 0) TEST_FAIL("%s has other bytes", key);
    pgs_view_unref(v);
    pgs_snapshot_unref(sn);
}

/* Put objects lo, lo + 1, … until the store is full, and still full at the next try; how many fitted. */
static uint64_t put_until_full(pgs_store *s, uint64_t lo, uint64_t len, uint64_t most)
{
    uint64_t n = 0;
    for (int refused = 0; n < most;) {
        memset(&err, 0, sizeof err);
        int rc = put_n(s, lo + n, len);
        if (rc == 0) {
            n++, refused = 0;
            continue;
        }
        if (rc != -PGS_EFULL || err.code != PGS_EFULL || err.text[0] == 0)
            TEST_FAIL("object %llu: %d %s", (unsigned long long)(lo + n), rc, err.text);
        if (++refused == 2) return n;
    }
    TEST_FAIL("%llu objects of %llu bytes fitted", (unsigned long long)most, (unsigned long long)len);
}

/* Fill; nothing lost; delete half on the full store; as many fit again; several times. */
static void fill_and_empty(pgs_store *s, uint64_t len, uint64_t least, uint64_t most)
{
    uint64_t n = put_until_full(s, 0, len, most), lo = 0, hi = n;
    if (n < least) TEST_FAIL("only %llu objects of %llu bytes fitted", (unsigned long long)n, (unsigned long long)len);
    for (int round = 0; round < 4; round++) {
        for (uint64_t i = lo; i < hi; i++) check_n(s, i, len);
        uint64_t half = lo + (hi - lo) / 2;
        for (; lo < half; lo++) {
            int rc = delete_n(s, lo);
            if (rc) TEST_FAIL("on the full store (round %d) delete gives %d %s", round, rc, err.text);
        }
        uint64_t again = put_until_full(s, hi, len, most);
        if (again < n / 4)
            TEST_FAIL("after deleting half of %llu only %llu fitted (round %d)", (unsigned long long)n,
                      (unsigned long long)again, round);
        hi += again;
    }
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs_gc(s, &err));
    for (uint64_t i = lo; i < hi; i++) check_n(s, i, len);
    check_sound(s);
    for (; lo < hi; lo++) CHECK_OK(delete_n(s, lo));
    CHECK_OK(pgs_gc(s, &err));
    CHECK_OK(put_n(s, 0, len));
    check_sound(s);
}

static void fill_tmpfs(const char *size, uint64_t len, uint64_t least, uint64_t most)
{
    small_tmpfs(size);
    pgs_store *s = open_store(0);
    fill_and_empty(s, len, least, most);
    pgs_store_unref(s);
    s = open_store(0);
    check_sound(s);
    pgs_store_unref(s);
}

TEST(a_full_tmpfs_of_7_mib_loses_nothing)
{
    fill_tmpfs("7m", 100000, 8, 200);
}
TEST(a_full_tmpfs_of_16_mib_loses_nothing)
{
    fill_tmpfs("16m", 100000, 40, 400);
}
TEST(a_tmpfs_full_of_small_objects_loses_nothing)
{
    fill_tmpfs("7m", 2000, 300, 20000);
}
TEST(a_tmpfs_full_of_large_arrays_loses_nothing)
{
    fill_tmpfs("32m", 3000000, 4, 100);
}
TEST(a_quota_that_is_reached_loses_nothing)
{
    struct stat st;
    char name[600];
    on_shm();
    pgs_store *s = open_store(16u << 20);
    fill_and_empty(s, 200000, 30, 200);
    snprintf(name, sizeof name, "%s/pages", path);
    CHECK(stat(name, &st) == 0);
    if ((uint64_t)st.st_blocks * 512 > 17u << 20)
        TEST_FAIL("a store of 16 MiB takes %llu bytes", (unsigned long long)st.st_blocks * 512);
    pgs_store_unref(s);
}

/* Reserving at once, or not at all: never a view that dies when it is written. */
TEST(an_empty_array_that_does_not_fit_is_refused_before_it_is_written)
{
    pgs_txn *t;
    pgs_view *v;
    uint64_t version;
    struct pgs_type large = type_u4(64u << 20), fits = type_u4(3u << 20);
    small_tmpfs("16m");
    pgs_store *s = open_store(0);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_ERR(pgs_txn_empty(t, "x", 1, &large, &v, &err), PGS_EFULL);
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs_txn_empty(t, "x", 1, &fits, &v, &err));
    memset(pgs_view_data(v), 1, 3u << 20);
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_view_unref(v);
    pgs_txn_unref(t);
    check_sound(s);
    pgs_store_unref(s);
}

/* --- sparse arrays ------------------------------------------------------------------------------------------------------------ */
static uint64_t free_blocks(void)
{
    struct statfs fs;
    CHECK(statfs(mount_dir, &fs) == 0);
    return fs.f_bfree;
}

static void scan_sparse(pgs_store *s, uint64_t len)
{
    pgs_snapshot *sn;
    struct pgs_object obj;
    pgs_view *v;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, "sparse", 6, &obj, &err));
    CHECK_OK(pgs_view_open(sn, &obj, 0, &v, &err));
    const uint64_t *p = pgs_view_data(v);
    uint64_t sum = 0, before = free_blocks();
    for (uint64_t i = 0; i < len / 8; i++) sum += p[i];
    CHECK_EQ(sum, 0x0505050505050505u * 512);
    CHECK_EQ(free_blocks(), before);
    pgs_view_unref(v);
    pgs_snapshot_unref(sn);
}

TEST(reading_a_sparse_array_allocates_nothing_and_works_when_full)
{
    uint64_t len = 64u << 20, version;
    struct pgs_type type = type_u4(len);
    pgs_txn *t;
    pgs_view *v;
    small_tmpfs("16m");
    pgs_store *s = open_store(0);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_create(t, "sparse", 6, &type, &err));
    CHECK_OK(pgs_txn_edit(t, "sparse", 6, &v, &err));
    memset((uint8_t *)pgs_view_data(v) + (30u << 20), 5, 4096);
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_view_unref(v);
    pgs_txn_unref(t);
    scan_sparse(s, len);
    put_until_full(s, 0, 100000, 400);
    char name[160];
    snprintf(name, sizeof name, "%s/ballast", mount_dir); /* not one block is left */
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    static const uint8_t block[4096] = {1};
    while (write(fd, block, sizeof block) > 0) {
    }
    close(fd);
    CHECK_EQ(free_blocks(), 0);
    scan_sparse(s, len);
    check_sound(s);
    pgs_store_unref(s);
    CHECK(unlink(name) == 0);
    s = open_store(0);
    scan_sparse(s, len);
    pgs_store_unref(s);
}

/* --- few descriptors, little address space ------------------------------------------------------------------------------------- */
static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 64; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

TEST(sixty_four_descriptors_are_enough_for_any_number_of_views)
{
    enum { N = 400 };
    pgs_view *views[N];
    pgs_snapshot *sn;
    struct pgs_object obj;
    char key[24];
    on_shm();
    pgs_store *s = open_store(0);
    for (uint64_t i = 0; i < N; i++) CHECK_OK(put_n(s, i, 8000));
    struct rlimit few = {64, 64};
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    int before = count_fds();
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    for (uint64_t i = 0; i < N; i++) {
        snprintf(key, sizeof key, "n%llu", (unsigned long long)i);
        CHECK_OK(pgs_get(sn, key, strlen(key), &obj, &err));
        CHECK_OK(pgs_view_open(sn, &obj, 1, &views[i], &err));
    }
    CHECK_EQ(count_fds(), before);
    int hog[64], n = 0;
    while (n < 64 && (hog[n] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0) n++; /* none is left */
    CHECK_OK(put_n(s, 1000, 8000));
    check_n(s, 1000, 8000);
    pid_t pid = fork();
    if (pid == 0) { /* it could not open anything for a slot of its own */
        check_n(s, 1000, 8000);
        if (memcmp(pgs_view_data(views[7]), pattern(7, 8000), 8000) != 0) _exit(1);
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    CHECK_EQ(status, 0);
    while (n > 0) close(hog[--n]);
    for (uint64_t i = 0; i < N; i++) {
        CHECK(memcmp(pgs_view_data(views[i]), pattern(i, 8000), 8000) == 0);
        pgs_view_unref(views[i]);
    }
    pgs_snapshot_unref(sn);
    check_sound(s);
    pgs_store_unref(s);
}

TEST(opening_without_a_descriptor_left_is_a_clean_error)
{
    struct pgs_options opt = {.mode = PGS_MODE_RPLUS};
    pgs_store *s;
    on_shm();
    pgs_store_unref(open_store(0));
    for (rlim_t left = 3; left < 12; left++) {
        struct rlimit few = {left, 64};
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        memset(&err, 0, sizeof err);
        int rc = pgs_open(path, &opt, &s, &err);
        if (rc == 0) {
            CHECK_OK(put_n(s, 1, 100));
            pgs_store_unref(s);
        } else if (rc > 0 || err.code != -rc || err.text[0] == 0) {
            TEST_FAIL("with %d descriptors: %d %s", (int)left, rc, err.text);
        }
    }
    s = open_store(0);
    check_sound(s);
    pgs_store_unref(s);
}

TEST(one_gibibyte_of_address_space_is_enough)
{
    on_shm();
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("sanitizers need more address space");
#endif
    struct rlimit little = {1u << 30, 1u << 30};
    CHECK(setrlimit(RLIMIT_AS, &little) == 0);
    pgs_store *s = open_store(0);
    for (uint64_t i = 0; i < 20; i++) CHECK_OK(put_n(s, i, 5000000));
    for (uint64_t i = 0; i < 20; i++) check_n(s, i, 5000000);
    pgs_txn *t;
    pgs_view *v;
    uint64_t version;
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_edit(t, "n1", 2, &v, &err));
    memset(pgs_view_data(v), 1, 100000);
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    pgs_view_unref(v);
    pgs_txn_unref(t);
    check_sound(s);
    pgs_store_unref(s);
}

/* --- a read-only mount ------------------------------------------------------------------------------------------------------------ */
TEST(a_read_only_mount_can_be_read)
{
    struct pgs_options opt = {.mode = PGS_MODE_R};
    pgs_store *s;
    pgs_txn *t;
    small_tmpfs("32m");
    s = open_store(0);
    for (uint64_t i = 0; i < 20; i++) CHECK_OK(put_n(s, i, 50000));
    pgs_store_unref(s);
    CHECK(mount("none", mount_dir, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0);
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    for (uint64_t i = 0; i < 20; i++) check_n(s, i, 50000);
    check_sound(s);
    CHECK_ERR(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err), PGS_EREADONLY);
    memset(&err, 0, sizeof err);
    pgs_store_unref(s);
    opt.mode = PGS_MODE_RPLUS;
    int rc = pgs_open(path, &opt, &s, &err);
    if (rc != -PGS_EACCES && rc != -PGS_EREADONLY) TEST_FAIL("opening for writing gives %d %s", rc, err.text);
    CHECK(err.text[0] != 0);
}

/* --- what was handed out --------------------------------------------------------------------------------------------------------- */
static void stray_writes(void *arg)
{
    int plant = *(int *)arg;
    uint64_t len = 3000000, version;
    struct pgs_type type = type_u4(len);
    pgs_txn *t;
    pgs_view *v;
    int ready[2], go[2];
    char c;
    on_shm();
    pgs__inject_plant(plant);
    pgs_store *s = open_store(0);
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    CHECK_OK(pgs_txn_empty(t, "n1", 2, &type, &v, &err));
    uint8_t *p = pgs_view_data(v);
    pid_t pid = fork();
    if (pid == 0) { /* has the view before anything is written, and writes after the commit */
        memset(p, 0x77, 4096);
        CHECK(write(ready[1], "r", 1) == 1 && read(go[0], &c, 1) == 1);
        memset(p, 0xee, len);
        _exit(0);
    }
    CHECK(read(ready[0], &c, 1) == 1);
    memcpy(p, pattern(1, len), len);
    CHECK_OK(pgs_txn_commit(t, NULL, &version, &err));
    check_n(s, 1, len);
    CHECK(write(go[1], "g", 1) == 1);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    CHECK_EQ(status, 0);
    check_n(s, 1, len);
    memset(p, 0xdd, len); /* our own view is private by now */
    check_n(s, 1, len);
    check_sound(s);
    pgs_txn_unref(t);
    pgs_view_unref(v);
    pgs_store_unref(s);
    scratch_end();
}

TEST(no_stray_write_reaches_what_was_committed)
{
    stray_writes(&(int){0});
}
TEST(plant_12_a_view_not_turned_private_is_found)
{
    if (!pgs__cap(PGS__CAP_MAP_WRITE)) SKIP("fresh arrays are private memory here: there is nothing to turn");
    int rc = in_child(getenv("TEST_LOUD") == NULL, stray_writes, &(int){12});
    if (rc != 1) TEST_FAIL("planted bug 12 was not found (%d)", rc);
}

enum { N_HELD = 6 };
static pgs_view *held[N_HELD], *held_private[N_HELD];

static void check_held(const char *when)
{
    for (uint64_t i = 0; i < N_HELD; i++) {
        const uint8_t *bytes = pattern(i, 150000);
        if (memcmp(pgs_view_data(held[i]), bytes, 150000) != 0) TEST_FAIL("a view changed after %s", when);
        const uint8_t *p = pgs_view_data(held_private[i]);
        if (p[100] != 0x5a || memcmp(p + 101, bytes + 101, 150000 - 101) != 0)
            TEST_FAIL("a private view changed after %s", when);
    }
}

TEST(views_outlive_close_delete_gc_and_pressure_unchanged)
{
    pgs_snapshot *sn;
    struct pgs_object obj;
    char key[24];
    on_shm();
    pgs_store *s = open_store(12u << 20), *other = open_store(0);
    for (uint64_t i = 0; i < N_HELD; i++) CHECK_OK(put_n(s, i, 150000));
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    for (uint64_t i = 0; i < N_HELD; i++) {
        snprintf(key, sizeof key, "n%llu", (unsigned long long)i);
        CHECK_OK(pgs_get(sn, key, strlen(key), &obj, &err));
        CHECK_OK(pgs_view_open(sn, &obj, 1, &held[i], &err));
        CHECK_OK(pgs_view_private(sn, &obj, &held_private[i], &err));
        ((uint8_t *)pgs_view_data(held_private[i]))[100] = 0x5a;
    }
    pgs_snapshot_unref(sn);
    check_held("opening");
    for (uint64_t i = 0; i < N_HELD; i++) CHECK_OK(delete_n(s, i));
    CHECK_OK(pgs_gc(s, &err));
    check_held("delete and gc");
    put_until_full(s, 100, 100000, 400);
    check_held("filling the quota");
    for (uint64_t i = 100; i < 110; i++) CHECK_OK(delete_n(s, i));
    CHECK_OK(pgs_gc(s, &err));
    put_until_full(s, 1000, 100000, 400);
    check_held("filling it again");
    CHECK_OK(pgs_compact(s, &err));
    check_held("compact");
    CHECK_OK(pgs_close(s, &err));
    check_held("close");
    pid_t pid = fork();
    if (pid == 0) {
        limit(30);
        check_held("fork");
        for (uint64_t i = 100; i < 1010; i++) (void)delete_n(other, i);
        (void)pgs_gc(other, &err);
        for (uint64_t i = 2000; i < 2010; i++) (void)put_n(other, i, 100000);
        check_held("the child's deletes");
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    CHECK_EQ(status, 0);
    check_held("another process's deletes");
    check_sound(other);
    pgs_store_unref(other);
    pgs_store_unref(s);
    check_held("the last close");
    for (int i = 0; i < N_HELD; i++) pgs_view_unref(held[i]), pgs_view_unref(held_private[i]);
}

int main(int argc, char **argv)
{
    setenv("TEST_SECONDS", slowness() > 1 ? "600" : "60", 0);
    return run_tests(argc, argv);
}
