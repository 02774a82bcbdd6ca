/* Pagestone | tests/unit/test_pagefile — the page file, its window, and its superblocks.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statfs.h>

#include "libshm/pages/pagefile.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/vm.h"
#include "tests/unit/testing.h"

static struct pgs_error err;

/* --- stores to test with ---------------------------------------------------------------------------------------- */

static void anonymous(struct pgs__pagefile *pf)
{
    int fd = pgs__file_ops->memfd("test");
    CHECK(fd >= 0);
    CHECK_OK(pgs__pagefile_init(pf, fd, -1, NULL, true, &err));
}

static char dir[64];
static void remove_dir(void)
{
    char name[128];
    for (const char *const *f = (const char *const[]){"pages", "moved", "foreign", NULL}; *f; f++) {
        snprintf(name, sizeof name, "%s/%s", dir, *f);
        unlink(name);
    }
    rmdir(dir);
}
static const char *in_dir(const char *name)
{
    static char path[2][128];
    static int i;
    i ^= 1;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}
/* A store's directory under `where`, and one opener's view of it. */
static void make_dir(const char *where)
{
    snprintf(dir, sizeof dir, "%s/pages-test-XXXXXX", where);
    CHECK(mkdtemp(dir));
    atexit(remove_dir);
}
static void open_in_dir(struct pgs__pagefile *pf)
{
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = openat(dir_fd, "pages", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(dir_fd >= 0 && fd >= 0);
    CHECK_OK(pgs__pagefile_init(pf, fd, dir_fd, dir, true, &err));
}
/* A tmpfs of our own at `dir`, gone when the test ends. */
static void unmount_dir(void)
{
    umount2(dir, MNT_DETACH);
}
static void make_tmpfs(const char *options)
{
    make_dir("/tmp");
    /* a mount namespace of our own: a test that dies leaves no mount behind */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("pagestone-test", dir, "tmpfs", 0, options) != 0) {
        rmdir(dir);
        SKIP("mounting a tmpfs is not permitted");
    }
    atexit(unmount_dir);
}

static uint64_t fill(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, int byte)
{
    uint8_t *buf = malloc(n_pages << PGS_PAGE_SHIFT);
    memset(buf, byte, n_pages << PGS_PAGE_SHIFT);
    CHECK_OK(pgs__pages_write(pf, (struct pgs_pgno){page}, buf, n_pages, &err));
    uint64_t xxh = pgs__hash(buf, n_pages << PGS_PAGE_SHIFT);
    free(buf);
    return xxh;
}

/* --- the window ------------------------------------------------------------------------------------------------- */

TEST(a_page_beyond_the_end_has_no_address)
{
    struct pgs__pagefile pf;
    anonymous(&pf);
    CHECK(!pgs__page(&pf, (struct pgs_pgno){0}));
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    uint64_t n = pf.n_pages;
    CHECK(n >= 1024 && n % PGS_CHUNK_PAGES == 0);
    CHECK(pgs__page(&pf, (struct pgs_pgno){n - 1}));
    CHECK(!pgs__page(&pf, (struct pgs_pgno){n}));
    CHECK(pgs__pages_at(&pf, (struct pgs_pgno){0}, n));
    CHECK(!pgs__pages_at(&pf, (struct pgs_pgno){1}, n));
    CHECK(!pgs__pages_at(&pf, (struct pgs_pgno){1}, UINT64_MAX));
    CHECK(!pgs__pages_at(&pf, (struct pgs_pgno){UINT64_MAX}, 2));
    CHECK_ERR(pgs__pages_explain(&pf, (struct pgs_pgno){n}, 1, "node", &err), PGS_ECORRUPT);
    pgs__pagefile_fini(&pf);
    CHECK_EQ(pgs__vm_charged(), 0);
}

static void growth_shows(const char *where)
{
    struct pgs__pagefile a, b;
    make_dir(where);
    open_in_dir(&a);
    open_in_dir(&b);
    CHECK_OK(pgs__pagefile_grow(&a, 1, &err));
    const uint8_t *before = pgs__page(&b, (struct pgs_pgno){3});
    CHECK(before);
    uint64_t far = 2 * a.n_pages;
    CHECK_OK(pgs__pagefile_grow(&a, far + 1, &err));
    fill(&a, far, 1, 0xab);
    fill(&a, 3, 1, 0xcd);
    const uint8_t *p = pgs__page(&b, (struct pgs_pgno){far});
    CHECK(p && p[0] == 0xab && p[4095] == 0xab && before[0] == 0xcd);
    CHECK(before == pgs__page(&b, (struct pgs_pgno){3}));
    pgs__pagefile_fini(&a);
    pgs__pagefile_fini(&b);
}
TEST(growth_by_another_appears_on_tmpfs)
{
    growth_shows("/dev/shm");
}
TEST(growth_by_another_appears_on_disk)
{
    growth_shows("/tmp");
}
TEST(growth_by_another_appears_in_segments)
{
    setenv("PAGESTONE_WITHOUT", "big_window", 1);
    pgs__caps_reset();
    growth_shows("/dev/shm");
}

TEST(the_window_reaches_past_every_file)
{
    if (!pgs__cap(PGS__CAP_BIG_WINDOW)) SKIP("no room for it here (a sanitizer, or a limit)");
    struct pgs__pagefile pf;
    anonymous(&pf);
    CHECK_EQ(pf.window_pages, PGS__MAX_PAGES);
    pgs__pagefile_fini(&pf);
    make_dir("/tmp");
    open_in_dir(&pf);
    CHECK(pf.window_pages >= PGS__MAX_PAGES / 2);
    pgs__pagefile_fini(&pf);
}

TEST(runs_of_a_chunk_never_span_two_segments)
{
    struct pgs__pagefile pf;
    setenv("PAGESTONE_WITHOUT", "big_window", 1);
    pgs__caps_reset();
    anonymous(&pf);
    CHECK(!pf.window && pf.window_pages == 0);
    uint64_t seg = (1ull << 30) >> PGS_PAGE_SHIFT;
    CHECK_OK(pgs__pagefile_grow(&pf, 3 * seg, &err));
    fill(&pf, seg - 1, 2, 0x5a);
    const uint8_t *p = pgs__pages_at(&pf, (struct pgs_pgno){seg - 1}, PGS_CHUNK_PAGES);
    CHECK(p && p[0] == 0x5a && p[2 * 4096 - 1] == 0x5a && p[2 * 4096] == 0);
    CHECK(!pgs__pages_at(&pf, (struct pgs_pgno){seg - 1}, PGS_CHUNK_PAGES + 2));
    CHECK_ERR(pgs__pages_explain(&pf, (struct pgs_pgno){seg - 1}, PGS_CHUNK_PAGES + 2, "extent", &err), PGS_E2BIG);
    CHECK(pgs__page(&pf, (struct pgs_pgno){seg - 1}) == (const void *)p);
    CHECK_EQ(pgs__vm_charged(), 1);
    pgs__pagefile_fini(&pf);
    CHECK_EQ(pgs__vm_charged(), 0);
}

TEST(without_address_space_a_read_is_enomem_and_not_damage)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("sanitizers need their address space");
#endif
    struct pgs__pagefile pf;
    const void *p;
    struct rlimit as = {3ull << 29, 3ull << 29}; /* 1.5 GiB: segments of 64 MiB */
    CHECK(setrlimit(RLIMIT_AS, &as) == 0);
    anonymous(&pf);
    CHECK(!pf.window);
    CHECK_OK(pgs__pagefile_grow(&pf, 1ull << 20, &err)); /* 4 GiB */
    uint64_t seg = (64ull << 20) >> PGS_PAGE_SHIFT;
    struct pgs_ptr ptr = {.page = 5, .birth = 1, .xxh = fill(&pf, 5, 1, 7)};
    CHECK_OK(pgs__page_verified(&pf, &ptr, 1, "node", NULL, &p, &err));
    unsigned n = 1;
    while (pgs__page(&pf, (struct pgs_pgno){n * seg})) n++;
    CHECK(n > 4 && n < 26);
    struct pgs_ptr far = {.page = n * seg, .birth = 1, .xxh = 0};
    CHECK_ERR(pgs__page_verified(&pf, &far, 1, "node", NULL, &p, &err), PGS_ENOMEM);
    CHECK(strstr(err.text, "address space"));
    CHECK_OK(pgs__page_verified(&pf, &ptr, 1, "node", NULL, &p, &err)); /* what was mapped stays */
    pgs__pagefile_fini(&pf);
}

static void *touch_segments(void *arg)
{
    struct pgs__pagefile *pf = arg;
    for (uint64_t i = 0; i < 64; i++) {
        const uint8_t *p = pgs__page(pf, (struct pgs_pgno){i * PGS_CHUNK_PAGES * 128});
        if (!p || p[0] != 0) return pf;
    }
    return NULL;
}
TEST(segments_are_mapped_once_whoever_is_first)
{
    struct pgs__pagefile pf;
    pthread_t t[4];
    setenv("PAGESTONE_WITHOUT", "big_window", 1);
    pgs__caps_reset();
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 64 * 128 * PGS_CHUNK_PAGES, &err));
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&t[i], NULL, touch_segments, &pf) == 0);
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(t[i], &failed);
        CHECK(!failed);
    }
    CHECK_EQ(pgs__vm_charged(), 16); /* 16 GiB */
    pgs__pagefile_fini(&pf);
    CHECK_EQ(pgs__vm_charged(), 0);
}

/* --- verified pages --------------------------------------------------------------------------------------------- */

static int validated, verdict;
static int count_validate(const void *bytes)
{
    (void)bytes;
    validated++;
    return verdict;
}

TEST(a_page_is_verified_once_and_a_wrong_one_never)
{
    struct pgs__pagefile pf;
    const void *p = &pf;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    struct pgs_ptr ptr = {.page = 9, .birth = 3, .xxh = fill(&pf, 9, 1, 0x11)}, bad = ptr;
    bad.xxh ^= 1;
    CHECK_ERR(pgs__page_verified(&pf, &bad, 1, "node", count_validate, &p, &err), PGS_ECORRUPT);
    CHECK(p == &pf && validated == 0); /* outputs untouched, and no look at bytes that nobody vouches for */
    for (int i = 0; i < 3; i++) CHECK_OK(pgs__page_verified(&pf, &ptr, 1, "node", count_validate, &p, &err));
    CHECK_EQ(validated, 1);
    CHECK(p == pgs__page(&pf, (struct pgs_pgno){9}));
    bad = (struct pgs_ptr){.page = 0, .birth = 1, .xxh = 1};
    CHECK_ERR(pgs__page_verified(&pf, &bad, 1, "node", NULL, &p, NULL), PGS_ECORRUPT);
    bad = (struct pgs_ptr){.page = UINT64_MAX, .birth = 1, .xxh = 1};
    CHECK_ERR(pgs__page_verified(&pf, &bad, 4, "node", NULL, &p, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__page_verified(&pf, &ptr, 0, "record", NULL, &p, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__page_verified(&pf, &ptr, UINT64_MAX, "record", NULL, &p, NULL), PGS_ECORRUPT);
    pgs__pagefile_fini(&pf);
}

TEST(a_malformed_page_is_not_remembered)
{
    struct pgs__pagefile pf;
    const void *p;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    struct pgs_ptr ptr = {.page = 9, .birth = 3, .xxh = fill(&pf, 9, 1, 0x11)};
    CHECK_OK(pgs__page_verified(&pf, &ptr, 1, "record", NULL, &p, &err)); /* remembered apart: this is not a node yet */
    verdict = -1;
    for (int i = 0; i < 2; i++)
        CHECK_ERR(pgs__page_verified(&pf, &ptr, 1, "node", count_validate, &p, &err), PGS_ECORRUPT);
    CHECK(strstr(err.text, "malformed") && validated == 2);
    pgs__pagefile_fini(&pf);
}

TEST(a_recycled_page_is_verified_again)
{
    struct pgs__pagefile pf;
    const void *p;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    struct pgs_ptr ptr = {.page = 9, .birth = 3, .xxh = fill(&pf, 9, 1, 0x11)};
    CHECK_OK(pgs__page_verified(&pf, &ptr, 1, "node", count_validate, &p, &err));
    struct pgs_ptr next = {
        .page = 9, .birth = 4, .xxh = ptr.xxh}; /* the same bytes by chance, as damage would have it */
    fill(&pf, 9, 1, 0x22);
    CHECK_ERR(pgs__page_verified(&pf, &next, 1, "node", count_validate, &p, &err), PGS_ECORRUPT);
    next.xxh = pgs__hash_page(pgs__page(&pf, (struct pgs_pgno){9}));
    pgs__page_mark_verified(&pf, &next);
    validated = 0;
    CHECK_OK(pgs__page_verified(&pf, &next, 1, "node", count_validate, &p, &err));
    CHECK_EQ(validated, 0);
    pgs__pagefile_fini(&pf);
}

TEST(a_longer_run_under_the_same_reference_is_verified_again)
{
    struct pgs__pagefile pf;
    const void *p;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    struct pgs_ptr ptr = {.page = 9, .birth = 3, .xxh = fill(&pf, 9, 2, 0x11)};
    CHECK_OK(pgs__page_verified(&pf, &ptr, 2, "record", NULL, &p, &err));
    CHECK_ERR(pgs__page_verified(&pf, &ptr, 3, "record", NULL, &p, &err), PGS_ECORRUPT);
    CHECK_ERR(pgs__page_verified(&pf, &ptr, 1, "record", NULL, &p, &err), PGS_ECORRUPT);
    pgs__pagefile_fini(&pf);
}

TEST(the_planted_bug_skips_the_hash)
{
    struct pgs__pagefile pf;
    const void *p;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    struct pgs_ptr ptr = {.page = 9, .birth = 3, .xxh = 12345};
    CHECK_ERR(pgs__page_verified(&pf, &ptr, 1, "node", NULL, &p, NULL), PGS_ECORRUPT);
    pgs__inject_plant(7);
    CHECK_OK(pgs__page_verified(&pf, &ptr, 1, "node", NULL, &p, &err));
    pgs__pagefile_fini(&pf);
}

/* --- growing and giving back ------------------------------------------------------------------------------------ */

static int no_fallocate(int fd, int mode, off_t off, off_t len)
{
    return mode == 0 ? -EOPNOTSUPP : pgs__file_ops_real.fallocate(fd, mode, off, len);
}
static unsigned pause_us;
static int slow_fstat(int fd, struct stat *st) /* what is known about the size is old when it is used */
{
    int rc = pgs__file_ops_real.fstat(fd, st);
    usleep(pause_us ? (unsigned)rand() % pause_us : 0);
    return rc;
}

/* Two processes, one much slower than the other, both always want more than there is, write into it and look at all that they
 * wrote. The limit stops the file from growing by more than what is asked for. */
static void grower(unsigned me, unsigned rounds)
{
    struct pgs__pagefile pf;
    static uint64_t mine[1000];
    uint64_t lead = me == 0 ? 8 * PGS_CHUNK_PAGES : 0; /* so that the slow one has something left to grow, too */
    pause_us = me == 0 ? 3000 : 100;
    open_in_dir(&pf);
    for (unsigned i = 0; i < rounds; i++) {
        pgs__pagefile_refresh(&pf);
        mine[i] = pf.n_pages + lead + 510 + me; /* the last page of a chunk, which growing allocates */
        CHECK_OK(pgs__pagefile_grow(&pf, mine[i] + 1, &err));
        fill(&pf, mine[i], 1, (int)(1 + me));
        struct stat st;
        CHECK(fstat(pf.fd, &st) == 0 && (uint64_t)st.st_size >= pf.n_pages
                                                                    << PGS_PAGE_SHIFT); /* or reading dies of SIGBUS */
        for (unsigned j = 0; j <= i; j++) {
            const uint8_t *p = pgs__page(&pf, (struct pgs_pgno){mine[j]});
            CHECK(p && p[0] == 1 + me && p[4095] == 1 + me);
        }
    }
    pgs__pagefile_fini(&pf);
    _exit(0);
}
static void two_growers(bool with_fallocate)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.fstat = slow_fstat;
    if (!with_fallocate) ops.fallocate = no_fallocate;
    struct rlimit limit = {64ull << 30, 64ull << 30};
    struct pgs__pagefile pf;
    make_dir("/dev/shm");
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    open_in_dir(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 60ull << 18, &err)); /* 60 GiB */
    pgs__pagefile_fini(&pf);
    pgs__file_ops = &ops;
    pid_t pid[2];
    for (unsigned i = 0; i < 2; i++)
        if ((pid[i] = fork()) == 0) grower(i, i == 0 ? 40 : 400);
    for (unsigned i = 0; i < 2; i++) {
        int status;
        CHECK(waitpid(pid[i], &status, 0) == pid[i] && status == 0);
    }
}
TEST(two_processes_that_grow_at_once_lose_nothing)
{
    two_growers(true);
}
TEST(two_processes_that_grow_at_once_lose_nothing_without_fallocate)
{
    two_growers(false);
}

TEST(a_limit_on_file_sizes_is_efull_and_no_signal)
{
    struct pgs__pagefile pf;
    struct rlimit limit = {8u << 20, 8u << 20};
    make_dir("/dev/shm");
    open_in_dir(&pf);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err)); /* less than it would like */
    CHECK_EQ(pf.n_pages, 1024);
    CHECK_OK(pgs__pagefile_grow(&pf, 2048, &err));
    CHECK_ERR(pgs__pagefile_grow(&pf, 2049, &err), PGS_EFULL);
    CHECK_EQ(pf.n_pages, 2048);
    CHECK_ERR(pgs__pagefile_grow(&pf, PGS__MAX_PAGES + 1, NULL), PGS_EFULL);
    CHECK_ERR(pgs__pagefile_grow(&pf, UINT64_MAX, NULL), PGS_EFULL);
    pgs__pagefile_fini(&pf);
}

TEST(a_full_disk_is_efull_when_growing_and_when_writing)
{
    struct pgs__pagefile pf;
    make_tmpfs("size=4m,mode=700");
    open_in_dir(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 2048, &err));
    uint8_t page[4096] = {1};
    uint64_t n = 0;
    int rc;
    while ((rc = pgs__pages_write(&pf, (struct pgs_pgno){n}, page, 1, NULL)) == 0) n++;
    CHECK_EQ(rc, -PGS_EFULL);
    CHECK(n > 900 && n < 1024);
    uint64_t size = pf.n_pages;
    CHECK_ERR(pgs__pagefile_grow(&pf, size + 1, &err), PGS_EFULL);
    CHECK_EQ(pf.n_pages, size);
    pgs__pagefile_fini(&pf);
}

TEST(punched_chunks_go_back_to_the_file_system)
{
    struct pgs__pagefile pf;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 8 * PGS_CHUNK_PAGES, &err));
    fill(&pf, 2 * PGS_CHUNK_PAGES, 2 * PGS_CHUNK_PAGES, 1);
    uint64_t before = pgs__pagefile_resident(&pf);
    CHECK(before >= 2 * PGS_CHUNK_SIZE);
    pgs__pagefile_punch(&pf, 2, 1);
    CHECK_EQ(before - pgs__pagefile_resident(&pf), PGS_CHUNK_SIZE);
    const uint8_t *p = pgs__page(&pf, (struct pgs_pgno){3 * PGS_CHUNK_PAGES});
    CHECK(p[0] == 1);
    pgs__pagefile_fini(&pf);
}

static int child_signal(void (*fn)(struct pgs__pagefile *), struct pgs__pagefile *pf)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        fn(pf);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}
static void punch_superblock(struct pgs__pagefile *pf)
{
    pgs__pagefile_punch(pf, 1, 1);
}
TEST(what_would_corrupt_the_store_aborts)
{
    struct pgs__pagefile pf;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    CHECK_EQ(child_signal(punch_superblock, &pf), SIGABRT);
    pgs__pagefile_fini(&pf);
}

TEST(a_page_beyond_the_end_is_not_written)
{
    struct pgs__pagefile pf;
    uint8_t page[4096] = {0};
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    struct pgs_pgno end = {pf.n_pages};
    CHECK_ERR(pgs__pages_write(&pf, end, page, 1, &err), PGS_ECORRUPT);
    CHECK_EQ(pf.n_pages, end.n);
    pgs__pagefile_fini(&pf);
}

/* --- reading around the mapping, barriers, failures ------------------------------------------------------------- */

static void direct_read(const char *where)
{
    struct pgs__pagefile pf;
    make_dir(where);
    open_in_dir(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    fill(&pf, 100, 100, 0x31);
    CHECK_OK(pgs__pagefile_barrier(&pf, &err));
    uint8_t *buf = malloc(102 * 4096 + 1);
    for (int direct = 0; direct < 2; direct++) {
        memset(buf, 0xff, 102 * 4096 + 1);
        CHECK_OK(pgs__pages_read(&pf, (struct pgs_pgno){99}, buf + 1, 102, direct, &err)); /* an odd address, too */
        CHECK(buf[1] == 0 && buf[1 + 4096] == 0x31 && buf[101 * 4096] == 0x31 && buf[101 * 4096 + 1] == 0);
        CHECK_ERR(pgs__pages_read(&pf, (struct pgs_pgno){pf.n_pages}, buf, 1, direct, NULL), PGS_EIO);
        CHECK_ERR(pgs__pages_read(&pf, (struct pgs_pgno){UINT64_MAX}, buf, 1, direct, NULL), PGS_ECORRUPT);
    }
    free(buf);
    pgs__pagefile_fini(&pf);
}
TEST(reads_around_the_cache_on_disk)
{
    direct_read("/tmp");
}
TEST(reads_around_the_cache_on_tmpfs)
{
    direct_read("/dev/shm");
}

TEST(a_failed_barrier_is_eio_whatever_the_reason)
{
    struct pgs__pagefile pf;
    anonymous(&pf);
    pgs__inject_fail(PGS__FAIL_FILE, 1, ENOSPC, false);
    CHECK_ERR(pgs__pagefile_barrier(&pf, &err), PGS_EIO);
    CHECK(err.code == PGS_EIO && err.os_errno == ENOSPC);
    CHECK_OK(pgs__pagefile_barrier(&pf, &err));
    pgs__pagefile_fini(&pf);
}

TEST(every_failing_call_at_open_is_an_error_and_leaves_nothing)
{
    make_dir("/dev/shm");
    for (int kind = 0; kind < PGS__FAIL_N_KINDS; kind++) {
        int opened = 0;
        for (uint64_t nth = 1; nth < 80 && !opened; nth++) {
            struct pgs__pagefile pf;
            int fd = open(in_dir("pages"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            pgs__inject_clear();
            uint64_t calls = pgs__inject_count((enum pgs__fail_kind)kind);
            pgs__inject_fail((enum pgs__fail_kind)kind, nth, kind == PGS__FAIL_FILE ? EIO : ENOMEM, false);
            memset(&err, 0, sizeof err);
            int rc = pgs__pagefile_init(&pf, fd, -1, dir, true, &err);
            opened = rc == 0 && pgs__inject_count((enum pgs__fail_kind)kind) - calls < nth;
            pgs__inject_clear();
            CHECK(rc == 0 || err.text[0]);
            if (rc == 0)
                pgs__pagefile_fini(&pf);
            else
                CHECK(close(fd) == 0); /* still the caller's */
            CHECK_EQ(pgs__vm_charged(), 0);
        }
        CHECK(opened);
    }
}

/* --- I4: whose descriptor? -------------------------------------------------------------------------------------- */

TEST(a_closed_descriptor_is_opened_again)
{
    struct pgs__pagefile pf;
    make_dir("/dev/shm");
    open_in_dir(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    close(pf.fd);
    CHECK_OK(pgs__pagefile_check_fd(&pf, &err));
    fill(&pf, 7, 1, 1);
    close(pf.fd);
    close(pf.dir_fd); /* daemons close everything: then by path */
    CHECK_OK(pgs__pagefile_grow(&pf, pf.n_pages + 1, &err));
    fill(&pf, 8, 1, 2);
    pgs__pagefile_fini(&pf);
}

TEST(a_foreign_file_under_our_number_is_never_written_nor_closed)
{
    struct pgs__pagefile pf;
    struct stat st;
    make_dir("/dev/shm");
    open_in_dir(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    uint64_t n = pf.n_pages;
    int was = pf.fd, foreign = open(in_dir("foreign"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(dup2(foreign, was) == was); /* closes ours */
    CHECK(ftruncate(foreign, 64l << 30) == 0);
    CHECK(!pgs__page(&pf, (struct pgs_pgno){n})); /* its size is not our size; this reopened ours, too */
    CHECK(pf.fd != was);
    CHECK(dup2(foreign, pf.fd) == pf.fd);
    CHECK_OK(pgs__pagefile_check_fd(&pf, &err));
    fill(&pf, 7, 1, 1);
    CHECK(dup2(foreign, pf.fd) == pf.fd);
    CHECK_EQ(pgs__pagefile_resident(&pf), 0);
    int last = pf.fd;
    pgs__pagefile_fini(&pf);
    CHECK(fcntl(last, F_GETFD) >= 0); /* not ours to close */
    CHECK(fstat(foreign, &st) == 0 && st.st_blocks == 0 && st.st_size == 64l << 30);
}

TEST(neither_holes_nor_barriers_go_to_a_foreign_file)
{
    struct pgs__pagefile pf;
    struct stat st;
    uint8_t chunk[4096];
    memset(chunk, 7, sizeof chunk);
    make_dir("/dev/shm");
    open_in_dir(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 3 * PGS_CHUNK_PAGES, &err));
    int foreign = open(in_dir("foreign"), O_RDWR | O_CREAT | O_CLOEXEC, 0600), was = pf.fd;
    CHECK(pwrite(foreign, chunk, sizeof chunk, 2 * (off_t)PGS_CHUNK_SIZE) == sizeof chunk);
    CHECK(dup2(foreign, was) == was);
    pgs__pagefile_punch(&pf, 2, 1);
    CHECK(fstat(foreign, &st) == 0 && st.st_blocks > 0);
    CHECK_OK(pgs__pagefile_barrier(&pf, &err));
    CHECK(pf.fd != was); /* ours was synced */
    pgs__pagefile_fini(&pf);
}

TEST(a_closed_descriptor_without_a_name_is_an_error)
{
    struct pgs__pagefile pf;
    anonymous(&pf);
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    uint64_t n = pf.n_pages;
    const uint8_t *p = pgs__page(&pf, (struct pgs_pgno){3});
    close(pf.fd);
    CHECK_ERR(pgs__pagefile_check_fd(&pf, &err), PGS_EIO);
    CHECK(strstr(err.text, "closed by the program"));
    CHECK_ERR(pgs__pagefile_grow(&pf, n + 1, NULL), PGS_EIO);
    CHECK(p[0] == 0 && !pgs__page(&pf, (struct pgs_pgno){n})); /* readers go on */
    pgs__pagefile_fini(&pf);

    make_dir("/dev/shm"); /* the same for a file that was replaced meanwhile */
    open_in_dir(&pf);
    CHECK(rename(in_dir("pages"), in_dir("moved")) == 0);
    close(pf.fd);
    close(open(in_dir("pages"), O_RDWR | O_CREAT, 0600));
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs__pagefile_check_fd(&pf, &err), PGS_EIO);
    pgs__pagefile_fini(&pf);
}

/* --- superblocks ------------------------------------------------------------------------------------------------ */

static struct pgs__super super_of(uint64_t seq)
{
    struct pgs__super s = {.seq = seq, .version_ceiling = 4096 + seq, .root = {.gen = seq * 3, .version = seq}};
    memset(s.uuid, 0x42, 16);
    return s;
}
static void put_super(struct pgs__pagefile *pf, uint64_t seq)
{
    struct pgs__super s = super_of(seq);
    CHECK_OK(pgs__super_write(pf, &s, &err));
}
/* Overwrite bytes of a copy; `seal`: and make its checksum right again. */
static void spoil(struct pgs__pagefile *pf, unsigned slot, size_t off, const void *bytes, size_t n, bool seal)
{
    struct pgs__super s;
    struct pgs_pgno page = {slot ? PGS__SUPER_PAGE_1 : PGS__SUPER_PAGE_0};
    CHECK_OK(pgs__pages_read(pf, page, &s, 1, false, &err));
    memcpy((uint8_t *)&s + off, bytes, n);
    if (seal) s.xxh = pgs__hash(&s, offsetof(struct pgs__super, xxh));
    CHECK_OK(pgs__pages_write(pf, page, &s, 1, &err));
}
#define SPOIL(pf, slot, field, value, seal)                                                                            \
    spoil(pf, slot, offsetof(struct pgs__super, field), &(value), sizeof(value), seal)

static void with_supers(struct pgs__pagefile *pf, uint64_t n)
{
    anonymous(pf);
    CHECK_OK(pgs__pagefile_grow(pf, 1, &err));
    for (uint64_t seq = 1; seq <= n; seq++) put_super(pf, seq);
}

TEST(the_newest_superblock_wins)
{
    struct pgs__pagefile pf;
    struct pgs__super s;
    with_supers(&pf, 0);
    for (uint64_t seq = 1; seq < 8; seq++) {
        put_super(&pf, seq);
        for (int direct = 0; direct < 2; direct++) {
            CHECK_OK(pgs__super_read(&pf, &s, direct, &err));
            CHECK(s.seq == seq && s.root.gen == 3 * seq && s.version_ceiling == 4096 + seq);
            CHECK(s.page_size == 4096 && s.format_version == 1 && s.layout == pgs__control_layout());
            CHECK_EQ(pf.super_bad, 0);
        }
    }
    pgs__pagefile_fini(&pf);
}

TEST(one_flipped_bit_anywhere_falls_back_to_the_other_superblock)
{
    struct pgs__pagefile pf;
    struct pgs__super s, good = super_of(4);
    with_supers(&pf, 3);
    for (size_t off = 0; off < 4096; off += off < 320 ? 9 : 509) {
        CHECK_OK(pgs__super_write(&pf, &good, &err));
        uint8_t byte = ((uint8_t *)&good)[off] ^ (uint8_t)(1u << off % 8);
        spoil(&pf, 0, off, &byte, 1, false);
        CHECK_OK(pgs__super_read(&pf, &s, false, &err));
        CHECK_EQ(s.seq, 3);
        CHECK_EQ(pf.super_bad, 1);
    }
    uint8_t byte = 0xee;
    spoil(&pf, 1, 300, &byte, 1, false);
    CHECK_ERR(pgs__super_read(&pf, &s, false, &err), PGS_ECORRUPT);
    CHECK(err.object[0]);
    pgs__pagefile_fini(&pf);
}

TEST(foreign_formats_are_named)
{
    struct pgs__pagefile pf;
    struct pgs__super s;
    uint32_t seven = 7, pages16k = 16384, one = 1;
    uint64_t reversed = __builtin_bswap64(PGS__SUPER_MAGIC);
    with_supers(&pf, 2);

    SPOIL(&pf, 0, format_version, seven, true); /* a newer copy beside an older one: falling back would lose commits */
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs__super_read(&pf, &s, false, &err), PGS_EFORMAT);
    CHECK(strstr(err.text, "written by a newer Pagestone (format 7; this library reads 1): upgrade"));

    SPOIL(&pf, 0, format_version, one, true);
    SPOIL(&pf, 0, page_size, pages16k, true);
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs__super_read(&pf, &s, false, &err), PGS_EFORMAT);
    CHECK(strstr(err.text, "16384"));

    put_super(&pf, 2);
    SPOIL(&pf, 1, feature_bits, one, true);
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs__super_read(&pf, &s, false, &err), PGS_EFORMAT);
    CHECK(strstr(err.text, "features 0x1"));

    SPOIL(&pf, 0, magic, reversed, false);
    SPOIL(&pf, 1, magic, reversed, false);
    memset(&err, 0, sizeof err);
    CHECK_ERR(pgs__super_read(&pf, &s, false, &err), PGS_EFORMAT);
    CHECK(strstr(err.text, "endianness"));

    put_super(&pf, 1);
    put_super(&pf, 2);
    SPOIL(&pf, 0, format_version, seven, false); /* newer, with its checksum elsewhere; nothing else to fall back to */
    SPOIL(&pf, 1, format_version, seven, false);
    CHECK_ERR(pgs__super_read(&pf, &s, false, NULL), PGS_EFORMAT);
    pgs__pagefile_fini(&pf);
}

TEST(what_is_no_store_is_not_called_a_damaged_one)
{
    struct pgs__pagefile pf;
    struct pgs__super s;
    make_dir("/dev/shm");
    open_in_dir(&pf);
    CHECK_ERR(pgs__super_read(&pf, &s, false, NULL), PGS_ENOTSTORE); /* empty */
    CHECK(pwrite(pf.fd, "PK\3\4 something else", 20, 0) == 20);
    CHECK_ERR(pgs__super_read(&pf, &s, false, NULL), PGS_ENOTSTORE); /* short */
    CHECK_OK(pgs__pagefile_grow(&pf, 1, &err));
    CHECK_ERR(pgs__super_read(&pf, &s, false, NULL), PGS_ENOTSTORE); /* foreign, and long enough */
    put_super(&pf, 1);
    CHECK_OK(pgs__super_read(&pf, &s, false, &err));
    CHECK_EQ(pf.super_bad, 1); /* that is not what a young store has in its other place */
    uint64_t two = 2;
    SPOIL(&pf, 1, seq, two, true); /* right in every way, but in the other's place */
    CHECK_ERR(pgs__super_read(&pf, &s, false, NULL), PGS_ECORRUPT);
    pgs__pagefile_fini(&pf);
}

static atomic_bool stop;
static void *write_supers(void *arg)
{
    struct pgs__super s;
    for (uint64_t seq = 1; !stop; seq++) {
        s = super_of(seq);
        memset(s.reserved, (int)seq, sizeof s.reserved);
        pgs__super_write(arg, &s, NULL);
    }
    return NULL;
}
TEST(a_busy_writer_never_looks_like_damage)
{
    struct pgs__pagefile pf;
    struct pgs__super s;
    pthread_t t;
    with_supers(&pf, 0);
    put_super(&pf, 1);
    CHECK(pthread_create(&t, NULL, write_supers, &pf) == 0);
    uint64_t last = 0;
    for (int i = 0; i < 20000; i++) {
        CHECK_OK(pgs__super_read(&pf, &s, false, &err));
        if (i > 0) CHECK(s.seq + 1 >= last);
        last = s.seq;
    }
    stop = true;
    pthread_join(t, NULL);
    pgs__pagefile_fini(&pf);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
