/* Pagestone | tests/unit/test_platform — errors, memory, injection, files, hashes, capabilities, clocks.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "tests/unit/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/error.h"
#include "libshm/platform/file.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"

/* --- errors ----------------------------------------------------------------------------------------------------------- */
TEST(every_code_has_a_phrase_of_its_own)
{
    for (int i = 0; i <= PGS_EBUG; i++) {
        CHECK(strcmp(pgs_strerror(i), "unknown error") != 0);
        CHECK(strcmp(pgs_strerror(i), pgs_strerror(-i)) == 0);
        for (int j = 0; j < i; j++) CHECK(strcmp(pgs_strerror(i), pgs_strerror(j)) != 0);
    }
    CHECK(strcmp(pgs_strerror(PGS_EBUG + 1), "unknown error") == 0);
    CHECK(strcmp(pgs_strerror(INT_MIN), "unknown error") == 0);
}

TEST(an_error_is_filled_once)
{
    struct pgs_error err = {0};
    CHECK_EQ(pgs__fail(&err, PGS_EINVAL, "first %d", 1), -PGS_EINVAL);
    CHECK_EQ(pgs__fail_corrupt(&err, "x", "second"), -PGS_ECORRUPT);
    CHECK_EQ(err.code, PGS_EINVAL);
    CHECK(strcmp(err.text, "first 1") == 0 && err.object[0] == 0);
    CHECK_EQ(pgs__fail(NULL, PGS_EINVAL, "nobody listens"), -PGS_EINVAL);
}

TEST(an_error_of_the_system_is_mapped_and_named)
{
    static const struct {
        int e, code;
    } rows[] = {{ENOSPC, PGS_EFULL},  {EDQUOT, PGS_EFULL},  {ENOMEM, PGS_ENOMEM}, {ENOENT, PGS_ENOENT},
                {EEXIST, PGS_EEXIST}, {EACCES, PGS_EACCES}, {EPERM, PGS_EACCES},  {EROFS, PGS_EACCES},
                {EIO, PGS_EIO},       {EMFILE, PGS_EIO}};
    for (size_t i = 0; i < PGS_ARRAY_LEN(rows); i++) {
        struct pgs_error a = {0}, b = {0};
        CHECK_EQ(pgs__fail_os(&a, rows[i].e, "cannot open %s", "f"), -rows[i].code);
        CHECK_EQ(pgs__fail_os(&b, -rows[i].e, "cannot open %s", "f"), -rows[i].code); /* as the file table says it */
        CHECK_EQ(a.os_errno, rows[i].e);
        CHECK(strcmp(a.text, b.text) == 0);
    }
    struct pgs_error err = {0};
    pgs__fail_os(&err, ENOSPC, "cannot grow");
    CHECK(strcmp(err.text, "cannot grow: ENOSPC") == 0);
    err = (struct pgs_error){0};
    pgs__fail_os(&err, 4000, "odd");
    CHECK(strcmp(err.text, "odd: errno 4000") == 0);
}

TEST(a_long_text_is_cut_between_characters_and_keeps_the_errno)
{
    char path[600];
    memset(path, 'p', sizeof path);
    for (size_t i = 0; i + 1 < sizeof path; i += 2) memcpy(path + i, "\xc3\xa9", 2);
    path[sizeof path - 1] = 0;
    for (int shift = 0; shift < 3; shift++) {
        struct pgs_error err = {0};
        pgs__fail_os(&err, EIO, "%.*s%s", shift, "xxx", path);
        size_t n = strlen(err.text);
        CHECK(n < sizeof err.text && n > 460);
        CHECK(strcmp(err.text + n - 5, ": EIO") == 0);
        CHECK_EQ((unsigned char)err.text[n - 6], 0xa9); /* a whole character before it */
    }
}

TEST(an_error_text_is_one_line_of_utf8)
{
    struct pgs_error err = {0};
    pgs__fail(&err, PGS_EINVAL, "a\nb\x1b[31m\xff \xc3\xa9 \xed\xa0\x80 \xc0\x80 \xe2\x82");
    CHECK(strcmp(err.text, "a?b?[31m? \xc3\xa9 ??? ?? ") == 0);
}

TEST(a_damage_is_named_by_who_knows_the_object)
{
    struct pgs_error err = {0};
    CHECK_EQ(pgs__name_object(&err, pgs__fail_corrupt(&err, NULL, "bad node"), "key\n1", 5), -PGS_ECORRUPT);
    CHECK(strcmp(err.object, "key?1") == 0);
    CHECK_EQ(pgs__name_object(&err, -PGS_ECORRUPT, "other", 5), -PGS_ECORRUPT);
    CHECK(strcmp(err.object, "key?1") == 0);
    CHECK_EQ(pgs__name_object(NULL, -PGS_EIO, "k", 1), -PGS_EIO);
}

/* --- memory and injection ------------------------------------------------------------------------------------------------ */
TEST(an_array_grows_and_refuses_what_no_size_t_holds)
{
    uint32_t *a = NULL;
    size_t cap = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        CHECK_EQ(pgs__grow(&a, &cap, i + 1, sizeof *a), 0);
        a[i] = i;
    }
    for (uint32_t i = 0; i < 1000; i++) CHECK_EQ(a[i], i);
    size_t before = cap;
    CHECK_EQ(pgs__grow(&a, &cap, SIZE_MAX / 2, sizeof *a), -PGS_ENOMEM);
    CHECK_EQ(cap, before);
    CHECK_EQ(a[999], 999);
    pgs__free(a);
}

TEST(the_nth_call_fails_once_or_for_good)
{
    pgs__inject_fail(PGS__FAIL_MEM, 2, ENOMEM, false);
    void *a = pgs__malloc(1), *b = pgs__malloc(1), *c = pgs__calloc(1, 1);
    CHECK(a && !b && c);
    pgs__inject_fail(PGS__FAIL_MEM, 1, ENOMEM, true);
    CHECK(!pgs__malloc(1) && !pgs__realloc(a, 9) && !pgs__calloc(2, 2) && !pgs__hasher_new());
    pgs__inject_clear();
    CHECK((b = pgs__malloc(1)));
    pgs__free(a), pgs__free(b), pgs__free(c);

    pgs__inject_fail(PGS__FAIL_FILE, 1, ENOSPC, false);
    CHECK_EQ(pgs__file_ops->memfd("t"), -ENOSPC);
    int fd = pgs__file_ops->memfd("t"), rc;
    CHECK(fd >= 0);
    pgs__inject_fail(PGS__FAIL_MAP, 1, ENOMEM, false);
    CHECK(pgs__file_ops->map(fd, PGS__MAP_READ, NULL, 4096, 0, &rc) == MAP_FAILED && rc == -ENOMEM);
    pgs__inject_fail(PGS__FAIL_MAP, 1, ENOMEM, false);
    CHECK(!pgs__vm_reserve(4096, 4096));
    pgs__inject_fail(PGS__FAIL_FILE, 1, EIO, false);
    CHECK_EQ(pgs__file_ops->close(fd), -EIO);
    CHECK(fcntl(fd, F_GETFD) < 0); /* closed all the same */
}

TEST(a_failure_can_come_from_the_environment)
{
    setenv("PAGESTONE_FAIL", "file:2:ENOSPC:forever", 1);
    int fd = pgs__file_ops->memfd("t");
    CHECK(fd >= 0);
    for (int i = 0; i < 3; i++) CHECK_EQ(pgs__file_ops->ftruncate(fd, 1), -ENOSPC);
}

static int wait_for(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, WUNTRACED) < 0) CHECK_EQ(errno, EINTR);
    return status;
}

TEST(a_kill_point_kills_at_its_nth_visit)
{
    pid_t pid = fork();
    if (pid == 0) {
        setenv("PAGESTONE_KILL", "here:3", 1);
        PGS_KILL_POINT("her");
        PGS_KILL_POINT("here_too");
        PGS_KILL_POINT("here");
        PGS_KILL_POINT("here");
        setenv("PAGESTONE_KILL", "there", 1); /* another point: counts anew */
        PGS_KILL_POINT("here");
        PGS_KILL_POINT("there");
        _exit(0);
    }
    int status = wait_for(pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    if ((pid = fork()) == 0) {
        setenv("PAGESTONE_STOP", "here", 1);
        PGS_KILL_POINT("here");
        _exit(5);
    }
    CHECK(WIFSTOPPED(wait_for(pid)));
    kill(pid, SIGCONT);
    status = wait_for(pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

TEST(a_planted_bug_is_there_when_asked_for)
{
    CHECK(!PGS_PLANTED(3));
    pgs__inject_plant(3);
    CHECK(PGS_PLANTED(3) && !PGS_PLANTED(4));
    pgs__inject_clear();
    setenv("PAGESTONE_PLANT", "4", 1);
    CHECK(!PGS_PLANTED(3) && PGS_PLANTED(4));
}

/* --- files ------------------------------------------------------------------------------------------------------------------ */
TEST(a_full_transfer_is_whole_or_an_error)
{
    int fd = pgs__file_ops->memfd("t");
    char out[100], in[100];
    for (int i = 0; i < 100; i++) out[i] = (char)i;
    CHECK_EQ(pgs__pwrite_full(fd, out, sizeof out, 5000), 0);
    CHECK_EQ(pgs__pread_full(fd, in, sizeof in, 5000), 0);
    CHECK(memcmp(in, out, sizeof in) == 0);
    CHECK_EQ(pgs__pread_full(fd, in, sizeof in, 5001), -EIO); /* one byte beyond the end */
    CHECK_EQ(pgs__pread_full(fd, in, sizeof in, UINT64_MAX - 50), -EINVAL);
    CHECK_EQ(pgs__pwrite_full(fd, in, sizeof in, (uint64_t)INT64_MAX), -EINVAL);
    CHECK_EQ(pgs__pread_full(fd, in, 0, 9999), 0);
}

TEST(descriptors_are_not_inherited_by_exec)
{
    int fd = pgs__file_ops->open("/dev/null", O_RDONLY, 0),
        dir = pgs__file_ops->open("/tmp", O_RDONLY | O_DIRECTORY, 0);
    int sub = pgs__file_ops->openat(dir, ".", O_RDONLY | O_DIRECTORY, 0), mem = pgs__file_ops->memfd("t");
    int fds[] = {fd, dir, sub, mem};
    for (size_t i = 0; i < PGS_ARRAY_LEN(fds); i++) CHECK_EQ(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
    CHECK_EQ(pgs__file_ops->open("/nonexistent/x", O_RDONLY, 0), -ENOENT);
}

TEST(the_kinds_of_mapping_share_and_protect_as_they_say)
{
    int fd = pgs__file_ops->memfd("t"), rc;
    CHECK_EQ(pgs__file_ops->ftruncate(fd, 8192), 0);
    char *w = pgs__file_ops->map(fd, PGS__MAP_WRITE, NULL, 8192, 0, &rc);
    char *r = pgs__file_ops->map(fd, PGS__MAP_READ, NULL, 8192, 0, &rc);
    char *c = pgs__file_ops->map(fd, PGS__MAP_COW, NULL, 8192, 0, &rc);
    char *cr = pgs__file_ops->map(fd, PGS__MAP_COW_READ, NULL, 4096, 4096, &rc);
    CHECK(w != MAP_FAILED && r != MAP_FAILED && c != MAP_FAILED && cr != MAP_FAILED);
    w[4097] = 7;
    CHECK(r[4097] == 7 && c[4097] == 7 && cr[1] == 7);
    c[4097] = 8;
    CHECK(r[4097] == 7 && c[4097] == 8 && w[4097] == 7);
    /* In place over the shared one: now private, and stores no longer arrive. */
    CHECK(pgs__file_ops->map(fd, PGS__MAP_COW, w, 8192, 0, &rc) == w && rc == 0);
    w[4097] = 9;
    CHECK_EQ(r[4097], 7);
    CHECK(pgs__file_ops->map(-1, PGS__MAP_READ, NULL, 4096, 0, &rc) == MAP_FAILED && rc == -EBADF);
    CHECK_EQ(pgs__file_ops->unmap(w, 8192), 0);
}

TEST(the_kind_of_a_file_system_is_known)
{
    enum pgs__fs_kind kind;
    char name[32];
    int fd = pgs__file_ops->memfd("t");
    CHECK_EQ(pgs__fs_kind(fd, &kind, name), 0);
    CHECK(kind == PGS__FS_TMPFS && strcmp(name, "tmpfs") == 0);
    CHECK_EQ(pgs__fs_kind(-1, &kind, name), -EBADF);
    NEEDS_PROC();
    fd = pgs__file_ops->open("/proc/self", O_RDONLY | O_DIRECTORY, 0); /* one that is in no table */
    CHECK_EQ(pgs__fs_kind(fd, &kind, name), 0);
    CHECK_EQ(kind, PGS__FS_DISK);
}

/* --- hashes -------------------------------------------------------------------------------------------------------------------- */
static uint64_t stream_hash(const uint8_t *p, size_t n, size_t step)
{
    struct pgs__hasher *h = pgs__hasher_new();
    CHECK(h);
    for (size_t at = 0; at < n; at += step) pgs__hasher_update(h, p + at, n - at < step ? n - at : step);
    uint64_t x = pgs__hasher_digest(h);
    pgs__hasher_free(h);
    return x;
}

TEST(a_hash_is_xxh3_and_the_same_at_every_width)
{
    static uint8_t buf[70000];
    for (size_t i = 0; i < sizeof buf; i++) buf[i] = (uint8_t)(i * 2654435761u >> 13);
    CHECK(pgs__hash("", 0) == 0x2d06800538d394c2u); /* published test values of XXH3_64bits, seed 0 */
    static const size_t sizes[] = {1, 16, 128, 129, 240, 241, 256, 1023, 1024, 1025, 4096, 65536, 70000};
    static const char *const without[] = {"avx2,avx512", "avx512", ""};
    for (size_t s = 0; s < PGS_ARRAY_LEN(sizes); s++) {
        uint64_t want = 0;
        for (size_t w = 0; w < PGS_ARRAY_LEN(without); w++) {
            setenv("PAGESTONE_WITHOUT", without[w], 1);
            pgs__caps_reset();
            uint64_t got = pgs__hash(buf + s, sizes[s] - s * (sizes[s] > 60000));
            if (w == 0) want = got;
            CHECK(got == want);
            CHECK(stream_hash(buf + s, sizes[s] - s * (sizes[s] > 60000), 317) == want);
        }
    }
    CHECK(pgs__hash_page(buf) == pgs__hash(buf, 4096));
}

/* --- capabilities ----------------------------------------------------------------------------------------------------------------- */
TEST(a_capability_can_be_switched_off_and_says_why)
{
    NEEDS_PROC(); /* for one that is on */
    setenv("PAGESTONE_WITHOUT", "pagemap_scan, proc_fd,map_write", 1);
    pgs__caps_reset();
    CHECK(!pgs__cap(PGS__CAP_PAGEMAP_SCAN) && !pgs__cap(PGS__CAP_PROC_FD) && !pgs__cap(PGS__CAP_MAP_WRITE));
    CHECK(strcmp(pgs__cap_reason(PGS__CAP_PROC_FD), "switched off by PAGESTONE_WITHOUT") == 0);
    CHECK(pgs__cap(PGS__CAP_PAGEMAP)); /* a prefix of an excluded name is another name */
    CHECK(strcmp(pgs__cap_reason(PGS__CAP_PAGEMAP), "") == 0);
    setenv("PAGESTONE_WITHOUT", "map,map_write_too", 1); /* neither is its name */
    pgs__caps_reset();
    CHECK(pgs__cap(PGS__CAP_MAP_WRITE) && pgs__cap(PGS__CAP_OFD));
    for (int i = 0; i < PGS__CAP_N; i++)
        CHECK(strlen(pgs__cap_name((enum pgs__cap)i)) > 0 &&
              pgs__cap((enum pgs__cap)i) == (*pgs__cap_reason((enum pgs__cap)i) == 0));
}

TEST(a_limit_of_address_space_switches_the_big_window_off)
{
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = (rlim_t)1 << 46;
    CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    pgs__caps_reset();
    CHECK(!pgs__cap(PGS__CAP_BIG_WINDOW));
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static long count_maps(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    long n = 0;
    for (int c; f && (c = fgetc(f)) != EOF;) n += c == '\n';
    if (f) fclose(f);
    return n;
}

static void *probe_all(void *arg)
{
    for (int i = 0; i < PGS__CAP_N; i++) pgs__cap((enum pgs__cap)i);
    return arg;
}

TEST(probes_leave_nothing_behind_and_may_race)
{
    probe_all(NULL);
    count_maps();
    int fds = count_fds();
    long maps = count_maps();
    for (int round = 0; round < 20; round++) {
        pgs__caps_reset();
        probe_all(NULL);
    }
    CHECK_EQ(count_fds(), fds);
    CHECK(count_maps() <= maps + 1); /* the heap may have split */
    pgs__caps_reset();
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, probe_all, NULL);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

/* --- clocks ------------------------------------------------------------------------------------------------------------------------- */
TEST(the_boot_has_an_identity_and_randomness_differs)
{
    uint8_t a[16], b[16];
    CHECK_EQ(pgs__boot_id(a), 0);
    CHECK_EQ(pgs__boot_id(b), 0);
    CHECK(memcmp(a, b, 16) == 0);
    pgs__random(a, 16);
    pgs__random(b, 16);
    CHECK(memcmp(a, b, 16) != 0);
    CHECK(pgs__clock_boot_ns() >= pgs__clock_mono_ns() - 1000000000u);
    CHECK(pgs__clock_real_ns() > UINT64_C(1600000000) * 1000000000u);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
