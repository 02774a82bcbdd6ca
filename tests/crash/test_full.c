/* Pagestone | tests/crash/test_full — life on the edge: file systems and quotas that are full, are emptied, and are full again.
 * SPDX-License-Identifier: Apache-2.0
 *
 *   F1  A put that does not fit is PGS_EFULL, says so again when it is tried again, and changes nothing.
 *   F2  Deleting works on a full store, down to the last object, also while somebody else takes each block that becomes free.
 *   F3  What was deleted can be filled again, about as much. What the store does not need goes back to the file system.
 *   F4  Nobody dies of SIGBUS. The verifier finds nothing wrong and nothing leaked.
 *
 * Small file systems are mounted in a namespace of the test's own: without the right to mount, those tests are skipped.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mount.h>
#include <sys/statfs.h>

#include "tests/crash/world.h"

static char mount_dir[64], path[500];

static void unmount(void)
{
    umount2(mount_dir, MNT_DETACH);
    rmdir(mount_dir);
}

static void private_mounts(void)
{
    snprintf(mount_dir, sizeof mount_dir, "/tmp/pagestone-XXXXXX");
    CHECK(mkdtemp(mount_dir));
    if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0) return;
    rmdir(mount_dir);
    SKIP("mounting is not permitted");
}

static void small_tmpfs(const char *size)
{
    char options[64];
    snprintf(options, sizeof options, "size=%s,mode=700", size);
    private_mounts();
    if (mount("pagestone-test", mount_dir, "tmpfs", 0, options) != 0) {
        rmdir(mount_dir);
        SKIP("mounting a tmpfs is not permitted");
    }
    atexit(unmount);
    snprintf(path, sizeof path, "%s/s.ps", mount_dir);
}

static void small_ext4(unsigned mib)
{
    char command[2000];
    private_mounts();
    const char *image = scratch(NULL);
    snprintf(command, sizeof command,
             "truncate -s %uM %s/image && mkfs.ext4 -q -m 0 %s/image && mount -o loop %s/image %s", mib, image, image,
             image, mount_dir);
    fflush(NULL);
    int rc = system(command); /* NOLINT: constant words and a name of our own */
    if (rc != 0) {
        rmdir(mount_dir);
        SKIP("no ext4 in a loop device");
    }
    atexit(unmount);
    snprintf(path, sizeof path, "%s/s.ps", mount_dir);
}

static uint64_t room(void)
{
    struct statfs fs;
    CHECK(statfs(mount_dir, &fs) == 0);
    return (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
}

static pgs_store *open_store(uint64_t size, enum pgs_durability durability)
{
    struct pgs_options opt = {.mode = PGS_MODE_A, .size = size, .durability = durability, .checksums = 1};
    pgs_store *s;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    return s;
}

/* Deleted objects are history, which stays as long as nothing needs its room. */
static pgs_store *open_without_history(void)
{
    struct pgs_options opt = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 0};
    pgs_store *s;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    CHECK_OK(pgs_gc(s, &err));
    return s;
}

/* --- numbered objects whose bytes follow from their number ----------------------------------------------------------------- */
#define LARGEST (4u << 20)

static const uint8_t *pattern(uint64_t i, uint64_t len)
{
    static uint8_t bytes[LARGEST];
    uint64_t state = rng_state; /* the tests' own dice go on */
    rng_state = i * 7919 + 3;
    fill(bytes, len);
    rng_state = state;
    return bytes;
}

static size_t key_of(uint64_t i, char key[24])
{
    return (size_t)snprintf(key, 24, "n%llu", (unsigned long long)i);
}

/* what 0: put `len` bytes; 1: the same through t.empty; 2: delete */
static int change(pgs_store *s, uint64_t i, uint64_t len, int what)
{
    char key[24];
    pgs_txn *t;
    pgs_view *v = NULL;
    uint64_t version;
    size_t n = key_of(i, key);
    if (i % 2) len &= ~UINT64_C(3);
    struct pgs_type type = type_u4(len);
    memset(&err, 0, sizeof err);
    int rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err);
    if (rc) return rc;
    struct pgs_part part = {pattern(i, what == 2 ? 0 : len), len};
    if (what == 2)
        rc = pgs_txn_delete(t, key, n, &err);
    else if (what == 1)
        rc = pgs_txn_empty(t, key, n, &type, &v, &err);
    else
        rc = pgs_txn_put(t, key, n, i % 2 ? PGS_KIND_ARRAY : PGS_KIND_BYTES, i % 2 ? &type : NULL, &part, 1, &err);
    if (rc == 0 && v) memcpy(pgs_view_data(v), part.p, len);
    if (rc == 0) rc = pgs_txn_commit(t, NULL, &version, &err);
    if (v) pgs_view_unref(v);
    pgs_txn_unref(t);
    return rc;
}

static void delete_n(pgs_store *s, uint64_t i)
{
    int rc = change(s, i, 0, 2);
    if (rc) TEST_FAIL("deleting object %llu: %d %s", (unsigned long long)i, rc, err.text);
}

static void check_n(pgs_store *s, uint64_t i, uint64_t len)
{
    char key[24];
    pgs_snapshot *sn;
    pgs_view *v;
    struct pgs_object obj;
    size_t n = key_of(i, key);
    if (i % 2) len &= ~UINT64_C(3); /* as in change */
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, key, n, &obj, &err));
    CHECK_EQ(obj.n_bytes, len);
    CHECK_OK(pgs_view_open(sn, &obj, 1, &v, &err));
    if (memcmp(pgs_view_data(v), pattern(i, len), len) != 0) TEST_FAIL("%s has other bytes", key);
    pgs_view_unref(v);
    pgs_snapshot_unref(sn);
}

/* Puts lo, lo + 1, … until the store is full. Returns how many fitted. F1. */
static uint64_t put_until_full(pgs_store *s, uint64_t lo, uint64_t len, int what)
{
    for (uint64_t n = 0;; n++) {
        CHECK(n < 100000);
        int rc = change(s, lo + n, len, what);
        if (rc == 0) continue;
        if (rc != -PGS_EFULL || err.code != PGS_EFULL || err.text[0] == 0)
            TEST_FAIL("object %llu: %d %s", (unsigned long long)(lo + n), rc, err.text);
        for (int again = 0; again < 3; again++) {
            rc = change(s, lo + n, len, what);
            if (rc != -PGS_EFULL) TEST_FAIL("it is full, and then gives %d %s", rc, err.text);
        }
        return n;
    }
}

static void delete_range(pgs_store *s, uint64_t lo, uint64_t hi)
{
    for (; lo < hi; lo++) delete_n(s, lo);
}

static void check_range(pgs_store *s, uint64_t lo, uint64_t hi, uint64_t len)
{
    for (; lo < hi; lo++) check_n(s, lo, len);
}

/* Fill, empty to the last object, fill again; half of it, and again. */
static void fill_and_empty(pgs_store *s, uint64_t len, int what, uint64_t least)
{
    uint64_t n = put_until_full(s, 0, len, what), lo = 0, hi = n;
    if (n < least) TEST_FAIL("only %llu objects fitted", (unsigned long long)n);
    check_range(s, lo, hi, len);
    for (int round = 0; round < 4; round++) {
        uint64_t cut = round % 2 ? lo + (hi - lo + 1) / 2 : hi, gone = cut - lo;
        delete_range(s, lo, cut);
        lo = cut;
        uint64_t again = put_until_full(s, hi, len, what);
        hi += again;
        check_range(s, lo, hi, len);
        if (again + 1 + gone / 5 < gone) /* four fifths, and the last one for the fragments */
            TEST_FAIL("round %d: %llu of %llu were deleted, then %llu fitted", round, (unsigned long long)gone,
                      (unsigned long long)n, (unsigned long long)again);
        check_sound(s);
    }
    CHECK_OK(pgs_gc(s, &err));
    delete_range(s, lo, hi);
    CHECK_OK(pgs_gc(s, &err));
    check_sound(s);
}

static void fill_tmpfs(const char *size, uint64_t len, int what, uint64_t least)
{
    small_tmpfs(size);
    uint64_t before = room();
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    fill_and_empty(s, len, what, least);
    pgs_store_unref(s);
    s = open_without_history();
    if (room() < before / 2)
        TEST_FAIL("an empty store leaves %llu bytes of %llu", (unsigned long long)room(), (unsigned long long)before);
    check_sound(s);
    pgs_store_unref(s);
}

TEST(seven_mib_of_small_objects)
{
    fill_tmpfs("7m", 2000, 0, 1000);
}
TEST(seven_mib_of_medium_objects)
{
    fill_tmpfs("7m", 100000, 0, 50);
}
TEST(seven_mib_of_medium_arrays_in_place)
{
    fill_tmpfs("7m", 100000, 1, 50);
}
TEST(sixteen_mib_of_small_objects)
{
    fill_tmpfs("16m", 5000, 0, 1200);
}
TEST(sixteen_mib_of_medium_objects)
{
    fill_tmpfs("16m", 100000, 0, 130);
}
TEST(sixteen_mib_of_large_objects)
{
    fill_tmpfs("16m", 2500000, 0, 5);
}
TEST(sixteen_mib_of_large_arrays_in_place)
{
    fill_tmpfs("16m", 2500000, 1, 4);
}

static void fill_quota(uint64_t quota, uint64_t len, uint64_t least)
{
    snprintf(path, sizeof path, "%s/s.ps", scratch(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL));
    pgs_store *s = open_store(quota, PGS_DUR_KEEP);
    fill_and_empty(s, len, 0, least);
    pgs_store_unref(s);
}
TEST(a_quota_of_small_objects)
{
    fill_quota(5u << 20, 2000, 700);
}
TEST(a_quota_of_medium_objects)
{
    fill_quota(16u << 20, 200000, 70);
}
TEST(a_quota_of_large_objects)
{
    fill_quota(20u << 20, 2500000, 5);
}

TEST(a_full_disk_loses_nothing)
{
    small_ext4(24);
    pgs_store *s = open_store(0, PGS_DUR_ORDERED);
    fill_and_empty(s, 100000, 0, 100);
    pgs_store_unref(s);
    s = open_store(0, PGS_DUR_KEEP);
    check_sound(s);
    pgs_store_unref(s);
}

/* --- others on the same file system ------------------------------------------------------------------------------------------- */
static int ballast = -1;

static void open_ballast(void)
{
    char name[120];
    snprintf(name, sizeof name, "%s/ballast", mount_dir);
    ballast = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    CHECK(ballast >= 0);
}
static void take_all_blocks(void)
{
    static const uint8_t block[4096] = {1};
    while (write(ballast, block, sizeof block) > 0) {
    }
}

static void others_take_each_block(uint64_t len)
{
    small_tmpfs("7m");
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    open_ballast();
    uint64_t n = put_until_full(s, 0, len, 0);
    for (uint64_t i = 0; i < n; i++) {
        take_all_blocks();
        delete_n(s, i);
        if (i % 16 == 0 && i + 1 < n) check_n(s, n - 1, len);
    }
    take_all_blocks();
    CHECK_OK(pgs_gc(s, &err));
    check_sound(s);
    CHECK(ftruncate(ballast, 0) == 0);
    CHECK_OK(change(s, 7, len, 0));
    check_n(s, 7, len);
    check_sound(s);
    pgs_store_unref(s);
}
TEST(deleting_works_while_others_take_each_block)
{
    others_take_each_block(100000);
}
TEST(deleting_small_objects_works_while_others_take_each_block)
{
    others_take_each_block(3000);
}

TEST(what_is_deleted_from_a_full_file_system_serves_others)
{
    small_tmpfs("16m");
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    uint64_t n = put_until_full(s, 0, 100000, 0);
    CHECK_EQ(room(), 0);
    delete_range(s, 0, n - n / 4);
    pgs_store_unref(s);
    s = open_without_history();
    if (room() < 6u << 20) TEST_FAIL("others get %llu bytes", (unsigned long long)room());
    check_range(s, n - n / 4, n, 100000);
    pgs_store_unref(s);
}

/* --- arrays that are edited ------------------------------------------------------------------------------------------------------ */
static int edit_n(pgs_store *s, uint64_t i, uint64_t at, uint64_t len, uint8_t with)
{
    char key[24];
    pgs_txn *t;
    pgs_view *v;
    uint64_t version;
    size_t n = key_of(i, key);
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    int rc = pgs_txn_edit(t, key, n, &v, &err);
    if (rc == 0) {
        memset((uint8_t *)pgs_view_data(v) + at, with, len);
        rc = pgs_txn_commit(t, NULL, &version, &err);
        pgs_view_unref(v);
    }
    pgs_txn_unref(t);
    return rc;
}

TEST(edits_of_arrays_on_a_full_file_system_are_all_or_nothing)
{
    enum { N = 4, LEN = 1000000 };
    static uint8_t now[N][LEN];
    small_tmpfs("7m");
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    for (uint64_t i = 0; i < N; i++) {
        CHECK_OK(change(s, 2 * i + 1, LEN, 1));
        memcpy(now[i], pattern(2 * i + 1, LEN), LEN);
    }
    uint64_t pad = put_until_full(s, 1000, 20000, 0), done = 0, refused = 0;
    for (int round = 0; round < 400; round++) {
        uint64_t i = rng_below(N), len = 4096 * (1 + rng_below(round % 10 ? 8 : 120)), at = rng_below(LEN - len);
        uint8_t with = (uint8_t)rng();
        int rc = edit_n(s, 2 * i + 1, at, len, with);
        if (rc == 0) {
            memset(now[i] + at, with, len);
            done++;
        } else if (rc == -PGS_EFULL) {
            refused++;
            if (pad > 0 && refused % 4 == 0) delete_n(s, 1000 + --pad);
        } else {
            TEST_FAIL("edit: %d %s", rc, err.text);
        }
        if (round % 100 == 99) check_sound(s);
    }
    CHECK(done > 50);
    for (uint64_t i = 0; i < N; i++) {
        pgs_snapshot *sn;
        pgs_view *v;
        struct pgs_object obj;
        char key[24];
        size_t n = key_of(2 * i + 1, key);
        CHECK_OK(pgs_snapshot_head(s, &sn, &err));
        CHECK_OK(pgs_get(sn, key, n, &obj, &err));
        CHECK_OK(pgs_view_open(sn, &obj, 1, &v, &err));
        CHECK(memcmp(pgs_view_data(v), now[i], LEN) == 0);
        pgs_view_unref(v);
        pgs_snapshot_unref(sn);
    }
    pgs_store_unref(s);
}

/* --- anything, at the edge ----------------------------------------------------------------------------------------------------- */
static uint64_t any_size(void)
{
    switch (rng_below(12)) {
    case 0:
        return 1000000 + rng_below(1500000);
    case 1:
    case 2:
    case 3:
        return 20000 + rng_below(150000);
    default:
        return 1 + rng_below(6000);
    }
}

/* Keys lo, lo + step, …; what they hold is in len (0: nothing). */
static void mix(pgs_store *s, uint64_t lo, uint64_t step, uint64_t *len, uint64_t n_keys, uint64_t n_ops, bool check)
{
    uint64_t refused = 0;
    for (uint64_t k = 0; k < n_ops; k++) {
        uint64_t i = rng_below(n_keys), key = lo + step * i, want = any_size();
        if (len[i] && (rng_below(3) == 0 || refused > 3)) {
            delete_n(s, key);
            len[i] = 0;
            refused = 0;
            continue;
        }
        int rc = change(s, key, want, 0);
        if (rc == 0)
            len[i] = want;
        else if (rc == -PGS_EFULL)
            refused++;
        else
            TEST_FAIL("put %llu of %llu bytes: %d %s", (unsigned long long)key, (unsigned long long)want, rc, err.text);
        if (check && k % 500 == 499) check_sound(s);
    }
    for (uint64_t i = 0; i < n_keys; i++)
        if (len[i]) check_n(s, lo + step * i, len[i]);
}

static void mix_alone(const char *size, uint64_t n_ops)
{
    static uint64_t len[600];
    small_tmpfs(size);
    rng_state = test_seed();
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    mix(s, 0, 1, len, 600, scaled(n_ops), true);
    check_sound(s);
    for (uint64_t i = 0; i < 600; i++)
        if (len[i]) delete_n(s, i);
    CHECK_OK(pgs_gc(s, &err));
    check_sound(s);
    pgs_store_unref(s);
}
TEST(any_mix_of_puts_and_deletes_in_seven_mib)
{
    mix_alone("7m", 3000);
}
TEST(any_mix_of_puts_and_deletes_in_sixteen_mib)
{
    mix_alone("16m", 3000);
}

TEST(two_processes_share_a_full_file_system)
{
    enum { N = 200 };
    static uint64_t len[N];
    small_tmpfs("16m");
    pgs_store_unref(open_store(0, PGS_DUR_KEEP));
    pid_t pid = fork();
    uint64_t me = pid == 0;
    rng_state = test_seed() + me;
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    mix(s, me, 2, len, N, scaled(1000), me == 0);
    if (pid == 0) {
        for (uint64_t i = 0; i < N; i++)
            if (len[i]) delete_n(s, me + 2 * i);
        pgs_store_unref(s);
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    CHECK_EQ(status, 0);
    for (uint64_t i = 0; i < N; i++)
        if (len[i]) check_n(s, 2 * i, len[i]);
    check_sound(s);
    pgs_store_unref(s);
}

/* A second process can come to a full file system, to delete. */
TEST(a_full_store_can_be_opened_and_emptied)
{
    small_tmpfs("7m");
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    uint64_t n = put_until_full(s, 0, 30000, 0);
    open_ballast();
    take_all_blocks();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        pgs_store *other = open_store(0, PGS_DUR_KEEP);
        delete_range(other, 0, n);
        pgs_store_unref(other);
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    CHECK_EQ(status, 0);
    check_sound(s);
    pgs_store_unref(s);
}

/* Thousands of versions leave history at once: their bookkeeping is rewritten piece by piece, as there is room. */
TEST(a_long_history_makes_room_on_a_full_file_system)
{
    small_tmpfs("64m");
    struct pgs_options opt = {.mode = PGS_MODE_A, .history = PGS_HIST_ALL};
    pgs_store *s;
    uint64_t i = 0, n = 0;
    CHECK_OK(pgs_open(path, &opt, &s, &err));
    for (; n < 100; n++) CHECK_OK(change(s, 10000 + n, 60000, 0));
    for (; room() > 4096 * 8 && i < 20000; i++) CHECK_OK(change(s, i % 97, 300, 0));
    open_ballast();
    take_all_blocks();
    for (uint64_t k = 0; k < 500; k++) CHECK_OK(change(s, k % 97, 300, 0));
    for (uint64_t k = 0; k < 97; k++) check_n(s, k, 300);
    for (uint64_t k = 0; k < n; k++) {
        delete_n(s, 10000 + k);
        take_all_blocks();
    }
    check_sound(s);
    pgs_store_unref(s);
}

/* What the error calls free is what can be had. */
TEST(the_error_counts_only_what_can_be_had)
{
    double free_kb = -1;
    small_tmpfs("7m");
    pgs_store *s = open_store(0, PGS_DUR_KEEP);
    put_until_full(s, 0, 100000, 0);
    CHECK_ERR(change(s, 9999, 100000, 0), PGS_EFULL);
    const char *p = strstr(err.text, " there, ");
    CHECK(p && sscanf(p, " there, %lf kB free", &free_kb) == 1);
    if (free_kb < 0 || free_kb > 120) TEST_FAIL("%s", err.text);
    CHECK_EQ(err.os_errno, ENOSPC);
    pgs_store_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
