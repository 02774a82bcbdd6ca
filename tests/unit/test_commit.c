/* Pagestone | tests/unit/test_commit — the driver of root switches: what a commit writes, frees, keeps and survives.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mount.h>

#include "tests/unit/commit_fixture.h"

#include "libshm/platform/file.h"
#include "libshm/platform/inject.h"

/* --- counting what a commit does ----------------------------------------------------------------------------------------------------------- */
static uint64_t n_pwrites, n_pages_written, n_other;
static struct pgs__file_ops counting;
static ssize_t count_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    n_pwrites++;
    if (off != 0 && off != 512 * 4096) n_pages_written += n / 4096;
    return pgs__file_ops_real.pwrite(fd, buf, n, off);
}
static int count_fallocate(int fd, int mode, off_t off, off_t len)
{
    n_other++;
    return pgs__file_ops_real.fallocate(fd, mode, off, len);
}
static int count_fstat(int fd, struct stat *st)
{
    n_other++;
    return pgs__file_ops_real.fstat(fd, st);
}
static void count_calls(void)
{
    counting = pgs__file_ops_real;
    counting.pwrite = count_pwrite;
    counting.fallocate = count_fallocate;
    counting.fstat = count_fstat;
    pgs__file_ops = &counting;
}

TEST(what_was_committed_is_read_back)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 3);
    CHECK_OK(put(s, "small", PGS_KIND_BYTES, 1, 20));
    CHECK_OK(put(s, "blob", PGS_KIND_BYTES, 2, 100000));
    CHECK_OK(put(s, "array", PGS_KIND_ARRAY, 3, 5000000));
    check_head_bytes(s, "small", 1, 20);
    check_head_bytes(s, "blob", 2, 100000);
    check_head_bytes(s, "array", 3, 5000000);
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_small_commit_writes_three_pages_at_most)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 5);
    uint64_t most = 0, total = 0, over = 0;
    for (int i = 0; i < 200; i++) CHECK_OK(put(s, "k", PGS_KIND_BYTES, (uint64_t)i, 30));
    count_calls();
    for (int i = 0; i < 500; i++) {
        n_pages_written = n_pwrites = 0;
        CHECK_OK(put(s, "k", PGS_KIND_BYTES, (uint64_t)i, 30));
        total += n_pages_written;
        over += n_pages_written > 3;
        if (n_pages_written > most) most = n_pages_written;
        CHECK(n_pwrites <= 3);
    }
    fprintf(stderr, "    pages per commit: mean %.2f, most %llu, above 3 in %llu of 500\n", (double)total / 500,
            (unsigned long long)most, (unsigned long long)over);
    CHECK(total <= 3 * 500);
    CHECK(over <= 50);
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_small_commit_is_quick)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 100);
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < 10; round++) {
        uint64_t start = pgs__clock_mono_ns();
        for (int i = 0; i < 200; i++) CHECK_OK(put(s, "k", PGS_KIND_BYTES, (uint64_t)i, 30));
        best = pgs__min_u64(best, (pgs__clock_mono_ns() - start) / 200);
    }
    fprintf(stderr, "    %llu ns per commit\n", (unsigned long long)best);
    pgs__session_unref(s);
}

TEST(many_commits_with_short_history_do_not_grow_the_file)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 10);
    char key[32];
    for (int i = 0; i < 300; i++) {
        snprintf(key, sizeof key, "key%03d", i);
        CHECK_OK(put(s, key, PGS_KIND_BYTES, (uint64_t)i, 200));
    }
    uint64_t hw = 0;
    for (int i = 0; i < 6000; i++) {
        snprintf(key, sizeof key, "key%03d", (i * 7) % 300);
        CHECK_OK(put(s, key, PGS_KIND_BYTES, (uint64_t)i, i % 5 ? 50 : 9000));
        if (i == 1500) hw = record_of(s).hw_pages;
    }
    fprintf(stderr, "    high-water mark %llu, then %llu pages\n", (unsigned long long)hw,
            (unsigned long long)record_of(s).hw_pages);
    CHECK(record_of(s).hw_pages <= hw);
    CHECK_EQ(record_of(s).n_kept, 11); /* and the newest */
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_pinned_version_keeps_its_bytes_and_lets_go)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 0);
    struct pgs__root root;
    struct pgs__pin pin;
    CHECK_OK(put(s, "a", PGS_KIND_ARRAY, 1, 3000000));
    CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
    for (uint64_t i = 2; i < 60; i++) CHECK_OK(put(s, "a", PGS_KIND_ARRAY, i, 3000000));
    check_bytes(s, &root, "a", 1, 3000000);
    CHECK(record_of(s).n_expired >= 1);
    uint64_t hw = record_of(s).hw_pages;
    pgs__pin_drop(s, &pin);
    CHECK_OK(pgs__gc(s, NULL, &err));
    CHECK(record_of(s).pages_dead < 50 && record_of(s).n_expired <= 1);
    CHECK_EQ(record_of(s).hw_pages, hw);
    check_head_bytes(s, "a", 59, 3000000);
    check_store(s);
    pgs__session_unref(s);
}

TEST(an_abandoned_commit_leaves_nothing)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 2);
    struct pgs__commit c;
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, 1, 10000));
    struct pgs__record before = record_of(s);
    uint8_t *bytes = pattern_bytes(9, 3000000);
    CHECK_OK(pgs__commit_begin(&c, s, NULL, &err));
    CHECK_OK(pgs__commit_start(&c, true, &err));
    CHECK_OK(put_in(&c, "a", PGS_KIND_BYTES, bytes, 3000000));
    pgs__commit_abandon(&c);
    pgs__commit_abandon(&c);
    struct pgs__record after = record_of(s);
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    for (uint64_t i = 0; i < 16; i++) CHECK_EQ(pgs__owner_of(&s->ctl, i), 0);
    check_head_bytes(s, "a", 1, 10000);
    free(bytes);
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_full_store_says_so_and_can_be_emptied)
{
    struct pgs__session *s = memory_store(16000000, PGS_HIST_COUNT, 1000);
    struct pgs__root root;
    struct pgs__pin pin;
    char key[32];
    int n = 0, rc = 0;
    uint64_t freed;
    CHECK_OK(put(s, "pinned", PGS_KIND_BYTES, 77, 3000000));
    CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
    CHECK_OK(del(s, "pinned"));
    for (; n < 1000 && rc == 0; n++) {
        snprintf(key, sizeof key, "k%d", n);
        rc = put(s, key, PGS_KIND_BYTES, (uint64_t)n, 500000);
    }
    CHECK_EQ(rc, -PGS_EFULL);
    n--;
    CHECK(n >= 20);
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "k%d", i);
        check_head_bytes(s, key, (uint64_t)i, 500000);
    }
    check_store(s);
    CHECK_OK(pgs__make_room(s, NULL, 1, &freed, &err));
    CHECK_EQ(pgs__fail_full(s, 4000000, 0, &err), -PGS_EFULL);
    fprintf(stderr, "    %s\n", err.text);
    CHECK(strstr(err.text, "store full: needs 4.0 MB") && strstr(err.text, "of a quota of 16.0 MB"));
    CHECK(strstr(err.text, "pins version 1 (") || strstr(err.text, "pins versions 1"));
    check_bytes(s, &root, "pinned", 77, 3000000);
    pgs__pin_drop(s, &pin);
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "k%d", i);
        CHECK_OK(del(s, key));
    }
    CHECK_OK(pgs__make_room(s, NULL, 1, &freed, &err));
    CHECK(freed > 2000);
    CHECK_OK(put(s, "again", PGS_KIND_BYTES, 5, 8000000));
    check_head_bytes(s, "again", 5, 8000000);
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_store_full_to_the_last_page_can_still_delete)
{
    struct pgs__session *s = memory_store(4 << 20, PGS_HIST_COUNT, 1000);
    char key[32];
    int n = 0;
    uint64_t size = 200000, freed;
    for (; size > 50 && n < 5000;) {
        snprintf(key, sizeof key, "k%05d", n);
        if (put(s, key, PGS_KIND_BYTES, (uint64_t)n, size) == 0)
            n++;
        else
            size = size > 3000 ? size / 2 : size == 60 ? 0 : 60;
    }
    CHECK(n > 5 && n < 5000);
    CHECK_ERR(put(s, "x", PGS_KIND_BYTES, 1, 5000), PGS_EFULL);
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "k%05d", i);
        CHECK_OK(del(s, key));
    }
    CHECK_OK(pgs__make_room(s, NULL, 1, &freed, &err));
    CHECK(freed > 100);
    CHECK_OK(put(s, "x", PGS_KIND_BYTES, 1, 100000));
    CHECK(record_of(s).reserve_n > 0);
    check_store(s);
    pgs__session_unref(s);
}

TEST(compact_moves_pages_and_changes_nothing_else)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 0);
    char key[32];
    for (int i = 0; i < 40; i++) {
        snprintf(key, sizeof key, "k%02d", i);
        CHECK_OK(
            put(s, key, i & 1 ? PGS_KIND_ARRAY : PGS_KIND_BYTES, (uint64_t)i, 300000 + 100000 * (uint64_t)(i % 9)));
    }
    for (int i = 0; i < 40; i += 3) {
        snprintf(key, sizeof key, "k%02d", i);
        CHECK_OK(del(s, key));
    }
    uint64_t version = record_of(s).version, n = record_of(s).n_objects;
    struct pgs_stat before, after;
    CHECK_OK(pgs__stat(s, &before, &err));
    CHECK_OK(pgs__compact(s, NULL, &err));
    CHECK_OK(pgs__stat(s, &after, &err));
    fprintf(stderr, "    resident %llu -> %llu\n", (unsigned long long)before.resident,
            (unsigned long long)after.resident);
    CHECK(after.resident < before.resident);
    CHECK_EQ(record_of(s).version, version);
    CHECK_EQ(record_of(s).n_objects, n);
    for (int i = 0; i < 40; i++) {
        if (i % 3 == 0) continue;
        snprintf(key, sizeof key, "k%02d", i);
        check_head_bytes(s, key, (uint64_t)i, 300000 + 100000 * (uint64_t)(i % 9));
    }
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_clock_that_jumps_ahead_is_not_followed)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 5);
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, 1, 10));
    _Atomic uint64_t *kept = &s->ctl.c->raw_time_ns;
    uint64_t ahead = atomic_load(kept), two_days = 2 * 86400ull * 1000000000ull;
    CHECK(ahead != 0);
    atomic_store(kept, ahead - two_days); /* as if the last commit had seen a clock two days behind this one */
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, 2, 10));
    uint64_t t = record_of(s).time_ns, real = pgs__clock_real_ns();
    CHECK(t < real); /* not two days later: the version before is newer than that clock, so time only ticks */
    CHECK_EQ(atomic_load(kept), ahead - two_days);
    pgs__session_unref(s);
}

TEST(failing_writes_and_memory_leave_the_old_state)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 2);
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, 1, 10000));
    uint64_t seed = 1;
    int failed = 0;
    for (int kind = PGS__FAIL_FILE; kind <= PGS__FAIL_MEM; kind++)
        for (uint64_t nth = 1; nth < 40; nth++) {
            pgs__inject_fail((enum pgs__fail_kind)kind, nth, kind == PGS__FAIL_FILE ? 28 /* ENOSPC */ : 12, false);
            int rc = put(s, "a", PGS_KIND_BYTES, seed + 1, 10000);
            pgs__inject_clear();
            if (rc == 0)
                seed++;
            else
                failed++;
            check_head_bytes(s, "a", seed, 10000);
        }
    CHECK(failed > 5);
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, 5, 10000));
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_process_killed_inside_a_commit_leaves_the_old_state_or_the_new)
{
    static const char *const points[] = {"commit_locked",  "commit_written",     "super_write",   "ctl_stage_half",
                                         "before_publish", "ctl_publish_before", "after_publish", "commit_unlocked"};
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 2);
    uint64_t seed = 1, killed = 0;
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, seed, 3000000));
    for (size_t i = 0; i < 3 * PGS_ARRAY_LEN(points); i++) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", points[i % PGS_ARRAY_LEN(points)], 1);
            _exit(put(s, "a", PGS_KIND_BYTES, seed + 1, 3000000) != 0);
        }
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        if (WIFSIGNALED(status))
            killed++;
        else
            CHECK_EQ(status, 0);
        struct pgs__root root;
        struct pgs__commit c;
        CHECK_OK(pgs__commit_begin(&c, s, NULL, &err)); /* repairs */
        root = c.base;
        pgs__commit_abandon(&c);
        struct pgs__tree t = pgs__root_catalog(s, &root);
        struct pgs__object o;
        CHECK_OK(pgs__object_find(s, &t, "a", 1, &o, &err));
        uint8_t first;
        CHECK_OK(pgs__content_read(&s->pf, &o.content, 0, &first, 1, &err));
        if (first == pattern(seed + 1, 0)) seed++;
        check_bytes(s, &root, "a", seed, 3000000);
        (void)pgs__sweep(s, true);
        for (uint64_t k = 0; k < 64; k++) CHECK_EQ(pgs__owner_of(&s->ctl, k), 0);
        check_store(s);
    }
    CHECK(killed >= 18);
    CHECK(seed >= 3);
    pgs__session_unref(s);
}

/* --- a small file system ---------------------------------------------------------------------------------------------------------------------- */
static char mount_dir[] = "/tmp/pagestone-commit-XXXXXX";
static void unmount_dir(void)
{
    umount2(mount_dir, MNT_DETACH);
    rmdir(mount_dir);
}
static void mount_small(const char *options)
{
    CHECK(mkdtemp(mount_dir));
    /* a mount namespace of our own: a test that dies leaves no mount behind */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("pagestone-test", mount_dir, "tmpfs", 0, options) != 0) {
        rmdir(mount_dir);
        SKIP("mounting a tmpfs is not permitted");
    }
    atexit(unmount_dir);
}
TEST(a_full_file_system_is_an_error_and_can_be_emptied)
{
    char path[64], key[32];
    struct pgs_options opt = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 0};
    struct pgs__session *s;
    uint64_t freed;
    int n = 0, rc = 0;
    mount_small("size=24m");
    snprintf(path, sizeof path, "%s/store.ps", mount_dir);
    CHECK_OK(pgs__session_open(path, &opt, &s, &err));
    CHECK_OK(pgs__settings_apply(s, NULL, &opt, &err));
    for (uint64_t size = 700000; size >= 50; size = size / 5)
        for (rc = 0; rc == 0 && n < 3000;) {
            snprintf(key, sizeof key, "k%04d", n);
            rc = put(s, key, PGS_KIND_BYTES, (uint64_t)n, size);
            if (rc == 0) n++;
        }
    CHECK_EQ(rc, -PGS_EFULL);
    check_store(s);
    fprintf(stderr, "    %d objects\n", n);
    for (int i = 0; i < 12; i++) {
        snprintf(key, sizeof key, "k%04d", i);
        rc = del(s, key);
        if (rc == -PGS_EFULL) {
            CHECK_OK(pgs__make_room(s, NULL, 1, &freed, &err));
            rc = del(s, key);
        }
        CHECK_OK(rc);
    }
    CHECK_OK(pgs__make_room(s, NULL, 1, &freed, &err));
    CHECK_OK(put(s, "again", PGS_KIND_BYTES, 4, 4000000));
    check_head_bytes(s, "again", 4, 4000000);
    check_store(s);
    pgs__session_unref(s);
}

struct seen_reader {
    int n;
    uint64_t bytes, version;
};
static int see_reader(void *ctx, const struct pgs_reader *r)
{
    struct seen_reader *seen = ctx;
    seen->n++;
    seen->bytes += r->bytes;
    seen->version = r->versions[0];
    CHECK_EQ(r->pid, getpid());
    return 0;
}
TEST(readers_shows_who_keeps_how_much)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__root root;
    struct pgs__pin pin;
    CHECK_OK(put(s, "a", PGS_KIND_BYTES, 1, 2000000));
    CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
    for (uint64_t i = 2; i < 6; i++) CHECK_OK(put(s, "a", PGS_KIND_BYTES, i, 2000000));
    struct seen_reader seen = {0};
    CHECK_OK(pgs__readers(s, see_reader, &seen, &err));
    CHECK_EQ(seen.n, 1);
    CHECK_EQ(seen.version, 1);
    CHECK(seen.bytes >= 2000000 && seen.bytes < 2100000);
    struct pgs_stat st;
    CHECK_OK(pgs__stat(s, &st, &err));
    fprintf(stderr, "    live %llu history %llu pinned %llu\n", (unsigned long long)st.live,
            (unsigned long long)st.history, (unsigned long long)st.pinned);
    CHECK(st.pinned >= 2000000 && st.live >= 2000000 && st.live < 2200000);
    pgs__pin_drop(s, &pin);
    pgs__session_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
