/* Pagestone | tests/unit/test_fresh — copying into fresh pages, full disks, and views that turn private.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "libshm/pages/fresh.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/vm.h"
#include "tests/unit/testing.h"

#define CHUNK PGS_CHUNK_PAGES
#define MIB (1u << 20)

static struct pgs_error err;
static struct pgs__pagefile pf;

static void anonymous(uint64_t n_chunks)
{
    int fd = pgs__file_ops->memfd("test");
    CHECK(fd >= 0);
    CHECK_OK(pgs__pagefile_init(&pf, fd, -1, NULL, true, &err));
    CHECK_OK(pgs__pagefile_grow(&pf, n_chunks * CHUNK, &err));
}

static char dir[64];
static void remove_dir(void)
{
    char name[128];
    snprintf(name, sizeof name, "%s/pages", dir);
    unlink(name);
    rmdir(dir);
}
static void unmount_dir(void)
{
    umount2(dir, MNT_DETACH);
}
static void in_dir(const char *where, uint64_t n_chunks)
{
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/pages-fresh-XXXXXX", where);
        CHECK(mkdtemp(dir));
        atexit(remove_dir);
    }
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = openat(dir_fd, "pages", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(dir_fd >= 0 && fd >= 0);
    CHECK_OK(pgs__pagefile_init(&pf, fd, dir_fd, dir, true, &err));
    CHECK_OK(pgs__pagefile_grow(&pf, n_chunks * CHUNK, &err));
}
static void in_tmpfs(const char *size, uint64_t n_chunks)
{
    char options[64];
    snprintf(dir, sizeof dir, "/tmp/pages-fresh-XXXXXX");
    CHECK(mkdtemp(dir));
    atexit(remove_dir);
    snprintf(options, sizeof options, "size=%s,mode=700", size);
    /* a mount namespace of our own: a test that dies leaves no mount behind */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("pagestone-test", dir, "tmpfs", 0, options) != 0) {
        rmdir(dir);
        SKIP("mounting a tmpfs is not permitted");
    }
    atexit(unmount_dir);
    in_dir(dir, n_chunks);
}

static void without(const char *caps)
{
    setenv("PAGESTONE_WITHOUT", caps, 1);
    pgs__caps_reset();
}

static uint8_t *source(size_t n, unsigned seed)
{
    uint8_t *p = malloc(n + 64);
    CHECK(p);
    uint64_t x = seed + 1;
    for (size_t i = 0; i < n + 56; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(p + i, &x, 8);
    }
    return p;
}

static struct pgs_run run_of(uint64_t page, uint64_t n_bytes)
{
    return (struct pgs_run){{page}, pgs__pages_of(n_bytes)};
}

/* Copy, then look through the window: the bytes, zeros after them, the pages around untouched, hashes right. */
static void copy_and_look(uint64_t page, uint64_t n, bool whole, bool hashes)
{
    struct pgs_run run = run_of(page, n);
    uint8_t *src = source(n, (unsigned)(page + n));
    uint64_t *xxh = hashes ? calloc(run.n_pages + 1, 8) : NULL;
    uint8_t mark[4096];
    memset(mark, 0x99, sizeof mark);
    CHECK_OK(pgs__pages_write(&pf, (struct pgs_pgno){page - 1}, mark, 1, &err));
    CHECK_OK(pgs__pages_write(&pf, (struct pgs_pgno){page + run.n_pages}, mark, 1, &err));
    struct pgs_pgno first = {page & ~(uint64_t)(CHUNK - 1)}; /* earlier data in the same chunk */
    if (first.n < page) CHECK_OK(pgs__pages_write(&pf, first, mark, 1, &err));
    CHECK_OK(pgs__fresh_copy(&pf, run, whole, src, n, xxh, &err));
    if (first.n < page) CHECK(memcmp(pgs__page(&pf, first), mark, 4096) == 0);
    const uint8_t *p = pgs__pages_at(&pf, run.page, run.n_pages);
    CHECK(p && memcmp(p, src, n) == 0);
    for (uint64_t i = n; i < run.n_pages << PGS_PAGE_SHIFT; i++) CHECK(p[i] == 0);
    CHECK(memcmp(p - 4096, mark, 4096) == 0);
    CHECK(memcmp(p + (run.n_pages << PGS_PAGE_SHIFT), mark, 4096) == 0);
    for (uint64_t i = 0; xxh && i < run.n_pages; i++) CHECK(xxh[i] == pgs__hash_page(p + (i << PGS_PAGE_SHIFT)));
    if (xxh) CHECK(xxh[run.n_pages] == 0);
    free(src);
    free(xxh);
    CHECK_EQ(pgs__vm_charged(), 1); /* the window, or its first segment */
}

static const uint64_t sizes[] = {1,           4095,        4096,        4097,         65 * 4096 + 7,
                                 MIB - 1,     MIB,         MIB + 1,     2 * MIB - 1,  2 * MIB,
                                 2 * MIB + 1, 3 * MIB + 5, 4 * MIB + 9, 6 * MIB - 77, 9 * MIB + 333};

static void every_size(void)
{
    for (size_t i = 0; i < PGS_ARRAY_LEN(sizes); i++)
        for (int hashes = 0; hashes < 2; hashes++) {
            copy_and_look(8 * CHUNK, sizes[i], true, hashes);         /* from a chunk's start, all ours */
            copy_and_look(8 * CHUNK + 100, sizes[i], true, hashes);   /* from its middle, all ours */
            copy_and_look(16 * CHUNK, sizes[i], false, hashes);       /* shared with others at the end */
            copy_and_look(16 * CHUNK + 300, sizes[i], false, hashes); /* and at both ends */
        }
}
/* Tests of mappings for writing have nothing to look at where none are given. */
static void needs_map_write(void)
{
    if (!pgs__cap(PGS__CAP_MAP_WRITE)) SKIP("no writable mappings: PAGESTONE_WITHOUT=map_write");
}

TEST(copies_of_every_size_arrive_on_memfd)
{
    anonymous(32);
    every_size();
    pgs__pagefile_fini(&pf);
    CHECK_EQ(pgs__vm_charged(), 0);
}
TEST(copies_of_every_size_arrive_on_tmpfs)
{
    in_dir("/dev/shm", 32);
    every_size();
    pgs__pagefile_fini(&pf);
}
TEST(copies_of_every_size_arrive_on_disk)
{
    in_dir("/tmp", 32);
    every_size();
    pgs__pagefile_fini(&pf);
}
TEST(copies_of_every_size_arrive_without_collapse)
{
    without("collapse");
    anonymous(32);
    every_size();
    pgs__pagefile_fini(&pf);
}
TEST(copies_of_every_size_arrive_without_writable_mappings)
{
    without("map_write");
    anonymous(32);
    CHECK(!pgs__fresh_can_map(&pf));
    every_size();
    pgs__pagefile_fini(&pf);
}

/* A table that counts what fresh data goes through. */
static unsigned n_maps, n_pwrites, n_small_pwrites;
static void *counting_map(int fd, enum pgs__map_kind kind, void *addr, size_t len, off_t off, int *rc)
{
    n_maps += kind == PGS__MAP_WRITE;
    return pgs__file_ops_real.map(fd, kind, addr, len, off, rc);
}
static ssize_t counting_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    if (n == 1)
        n_small_pwrites++;
    else
        n_pwrites++;
    return pgs__file_ops_real.pwrite(fd, buf, n, off);
}
static void count_calls(void)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.map = counting_map;
    ops.pwrite = counting_pwrite;
    pgs__file_ops = &ops;
}
static void copy_plain(uint64_t page, uint64_t n, bool whole)
{
    uint8_t *src = source(n, 3);
    n_maps = n_pwrites = n_small_pwrites = 0;
    CHECK_OK(pgs__fresh_copy(&pf, run_of(page, n), whole, src, n, NULL, &err));
    free(src);
}

TEST(a_writable_mapping_covers_only_chunks_that_are_ours)
{
    if (!pgs__cap(PGS__CAP_COLLAPSE)) SKIP("no MADV_COLLAPSE on this kernel");
    anonymous(32);
    count_calls();
    copy_plain(8 * CHUNK, 8 * MIB, true);
    CHECK(n_maps == 1 && n_small_pwrites == 4 && n_pwrites == 0);
    copy_plain(16 * CHUNK + 1, 4 * MIB, false); /* one chunk inside, two shared ones */
    CHECK(n_maps == 1 && n_small_pwrites == 1 && n_pwrites == 2);
    copy_plain(20 * CHUNK + 1, 3 * MIB, false); /* no chunk inside */
    CHECK(n_maps == 0 && n_pwrites == 1);
    copy_plain(24 * CHUNK, MIB - 1, true); /* too small to be worth it */
    CHECK(n_maps == 0 && n_pwrites == 2);
    pgs__pagefile_fini(&pf);
}

static bool is_huge(uint64_t page)
{
    /* 512 pages present after one of them was touched: mapped by one entry */
    struct pgs_run run = {{page}, CHUNK};
    void *p;
    unsigned char resident[CHUNK];
    char line[256];
    bool huge = false;
    CHECK_OK(pgs__fresh_map(&pf, run, NULL, &p, &err));
    *(volatile uint8_t *)p = *(volatile uint8_t *)p;
    CHECK(mincore(p, CHUNK * 4096, resident) == 0);
    FILE *f = fopen("/proc/self/smaps", "r");
    bool here = false;
    unsigned long lo, kb;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-", &lo) == 1 && strchr(line, '-') && strchr(line, ' ') > strchr(line, '-'))
            here = lo == (unsigned long)p;
        if (here && sscanf(line, "ShmemPmdMapped: %lu", &kb) == 1) huge = kb == 2048;
    }
    fclose(f);
    pgs__fresh_unmap(p, CHUNK);
    return huge;
}
TEST(whole_chunks_become_huge_pages)
{
    NEEDS_PROC();
    if (!pgs__cap(PGS__CAP_COLLAPSE)) SKIP("no MADV_COLLAPSE on this kernel");
    anonymous(32);
    copy_plain(8 * CHUNK, 4 * MIB, true);
    if (!is_huge(8 * CHUNK)) SKIP("no huge page to be had");
    CHECK(is_huge(9 * CHUNK));
    CHECK_OK(pgs__fresh_reserve(&pf, (struct pgs_run){{12 * CHUNK}, 2 * CHUNK}, true, &err));
    CHECK(is_huge(12 * CHUNK) && is_huge(13 * CHUNK));
    copy_plain(16 * CHUNK + 5, 4 * MIB, false);
    CHECK(!is_huge(16 * CHUNK) && is_huge(17 * CHUNK) && !is_huge(18 * CHUNK));
    pgs__pagefile_fini(&pf);
}

/* --- full disks ------------------------------------------------------------------------------------------------- */

/* Stores of growing size into a file system that has room for some: each ends in 0 or PGS_EFULL; nothing dies of SIGBUS, and after a
 * failure there is as much room as before. */
static void fill_up(const char *size, uint64_t room_mib)
{
    in_tmpfs(size, 16);
    uint64_t before = pgs__pagefile_resident(&pf);
    for (uint64_t mib = 1; mib <= room_mib + 4; mib++) {
        uint8_t *src = source(mib * MIB, 1);
        struct pgs_run run = run_of(2 * CHUNK, mib * MIB);
        memset(&err, 0, sizeof err);
        int rc = pgs__fresh_copy(&pf, run, true, src, mib * MIB, NULL, &err);
        free(src);
        if (mib < room_mib)
            CHECK_EQ(rc, 0);
        else
            CHECK_EQ(rc, -PGS_EFULL);
        if (rc) CHECK(err.os_errno == ENOSPC && err.text[0]);
        pgs__pagefile_punch(&pf, 2, 12);
        CHECK_EQ(pgs__pagefile_resident(&pf), before);
    }
    pgs__pagefile_fini(&pf);
}
/* The growth of the file itself allocates one page, so that the last MiB is never whole. */
TEST(a_full_tmpfs_of_4_mib_is_efull)
{
    fill_up("4m", 4);
}
TEST(a_full_tmpfs_of_7_mib_is_efull)
{
    fill_up("7m", 7);
}
TEST(a_full_tmpfs_is_efull_without_collapse)
{
    without("collapse");
    fill_up("7m", 7);
}

TEST(a_failed_copy_gives_back_the_chunks_it_took)
{
    in_tmpfs("7m", 16);
    uint64_t before = pgs__pagefile_resident(&pf);
    uint8_t *src = source(8 * MIB, 1);
    struct pgs_run run = {{2 * CHUNK}, 4 * CHUNK};
    CHECK_ERR(pgs__fresh_copy(&pf, run, true, src, 8 * MIB, NULL, NULL), PGS_EFULL);
    CHECK_EQ(pgs__pagefile_resident(&pf), before);
    CHECK_ERR(pgs__fresh_reserve(&pf, run, true, NULL), PGS_EFULL);
    CHECK_EQ(pgs__pagefile_resident(&pf), before);
    CHECK_OK(pgs__fresh_copy(&pf, (struct pgs_run){{2 * CHUNK}, 3 * CHUNK}, true, src, 6 * MIB, NULL, &err));
    free(src);
    pgs__pagefile_fini(&pf);
}

/* What reserve said yes to can be stored to, every byte of it; beside others' data, too. */
static void store_everywhere(const char *size, uint64_t max_pages)
{
    in_tmpfs(size, 16);
    unsigned full = 0, ok = 0;
    for (uint64_t n = 100; n <= max_pages; n += 177)
        for (int whole = 0; whole < 2; whole++) {
            struct pgs_run run = {{2 * CHUNK + n % 300}, n};
            void *p;
            int rc = pgs__fresh_reserve(&pf, run, whole, NULL);
            if (rc == 0) {
                CHECK_OK(pgs__fresh_map(&pf, run, NULL, &p, &err));
                memset(p, 0x5c, n << PGS_PAGE_SHIFT);
                pgs__fresh_unmap(p, n);
                ok++;
            } else {
                CHECK_EQ(rc, -PGS_EFULL);
                full++;
            }
            pgs__pagefile_punch(&pf, 2, 12);
        }
    CHECK(full > 3 && ok > 3);
    pgs__pagefile_fini(&pf);
}
TEST(reserved_pages_take_stores_on_a_full_tmpfs_of_7_mib)
{
    needs_map_write();
    store_everywhere("7m", 2600);
}
TEST(reserved_pages_take_stores_on_a_full_tmpfs_of_4_mib)
{
    needs_map_write();
    store_everywhere("4m", 1800);
}
TEST(reserved_pages_take_stores_on_a_full_tmpfs_without_collapse)
{
    without("collapse");
    store_everywhere("7m", 2600);
}

TEST(every_failing_call_is_an_error_and_leaves_no_mapping)
{
    needs_map_write();
    anonymous(32);
    uint8_t *src = source(5 * MIB, 9);
    long charged = pgs__vm_charged();
    for (int kind = 0; kind < PGS__FAIL_N_KINDS; kind++) {
        bool through = false;
        for (uint64_t nth = 1; nth < 60 && !through; nth++) {
            void *p;
            struct pgs_run run = {{8 * CHUNK + 17}, pgs__pages_of(5 * MIB)};
            memset(&err, 0, sizeof err);
            uint64_t calls = pgs__inject_count((enum pgs__fail_kind)kind);
            pgs__inject_fail((enum pgs__fail_kind)kind, nth, kind == PGS__FAIL_FILE ? EIO : ENOMEM, false);
            int rc = pgs__fresh_copy(&pf, run, false, src, 5 * MIB, NULL, &err);
            if (rc == 0) rc = pgs__fresh_reserve(&pf, run, false, &err);
            if (rc == 0) rc = pgs__fresh_map(&pf, run, NULL, &p, &err);
            if (rc == 0) {
                rc = pgs__fresh_make_private(&pf, run, p, &err);
                pgs__fresh_unmap(p, run.n_pages);
            }
            through = pgs__inject_count((enum pgs__fail_kind)kind) - calls < nth;
            pgs__inject_clear();
            CHECK(rc == 0 || (rc == -err.code && err.text[0]));
            CHECK(!through || rc == 0);
            CHECK_EQ(pgs__vm_charged(), charged);
        }
        CHECK(through);
    }
    free(src);
    pgs__pagefile_fini(&pf);
}

static int child_signal(void (*fn)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(open("/dev/null", O_WRONLY), 2);
        fn();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}
static void over_superblock(void)
{
    pgs__fresh_reserve(&pf, (struct pgs_run){{500}, 20}, false, NULL);
}
static void superblocks_chunk(void)
{
    pgs__fresh_reserve(&pf, (struct pgs_run){{600}, 20}, true, NULL);
}
static void beyond_the_end(void)
{
    pgs__fresh_reserve(&pf, (struct pgs_run){{pf.n_pages - 1}, 2}, false, NULL);
}
TEST(what_would_corrupt_the_store_aborts)
{
    anonymous(4);
    CHECK_EQ(child_signal(over_superblock), SIGABRT);
    CHECK_EQ(child_signal(superblocks_chunk), SIGABRT);
    CHECK_EQ(child_signal(beyond_the_end), SIGABRT);
    CHECK_OK(pgs__fresh_reserve(&pf, (struct pgs_run){{600}, 20}, false, &err));
    pgs__pagefile_fini(&pf);
}

/* --- views that turn private ------------------------------------------------------------------------------------ */

static atomic_bool stop;
static struct {
    _Atomic uint64_t *words;
    size_t n;
} area;
__attribute__((no_sanitize("thread"))) /* to which a mapping over memory in use is a race, as it is */
static void *
store_always(void *arg)
{
    (void)arg;
    for (uint64_t x = 1; !atomic_load_explicit(&stop, memory_order_relaxed); x++) /* relaxed: only to end */
        for (size_t i = 0; i < area.n; i += 64) atomic_store_explicit(&area.words[i], x, memory_order_relaxed);
    return NULL;
}

/* 20,000 times: a shared mapping under a writing thread turns private; from the moment that it has, the file is still. */
static void swap_under_a_writer(void)
{
    struct pgs_run run = {{4 * CHUNK}, 4};
    pthread_t t;
    size_t len = run.n_pages << PGS_PAGE_SHIFT;
    CHECK_OK(pgs__fresh_reserve(&pf, run, false, &err));
    void *at = pgs__vm_reserve(len, 4096), *p;
    CHECK_OK(pgs__fresh_map(&pf, run, at, &p, &err));
    CHECK(p == at);
    area.words = p;
    area.n = len / 8;
    const uint8_t *file = pgs__pages_at(&pf, run.page, run.n_pages);
    CHECK(pthread_create(&t, NULL, store_always, NULL) == 0);
    for (int i = 0; i < 20000; i++) {
        CHECK_OK(pgs__fresh_make_private(&pf, run, p, &err));
        uint64_t xxh = pgs__hash(file, len);
        if (i % 64 == 0) usleep(20);
        CHECK(pgs__hash(file, len) == xxh);
        pgs__vm_uncharge(1); /* the mapping below takes the place of this one */
        CHECK_OK(pgs__fresh_map(&pf, run, p, &p, &err));
    }
    CHECK_OK(pgs__fresh_make_private(&pf, run, p, &err));
    stop = true;
    pthread_join(t, NULL);
    memset(p, 0x77, len); /* private: never reaches the file */
    for (size_t i = 0; i < len; i += 8) CHECK(memcmp(file + i, "\x77\x77\x77\x77\x77\x77\x77\x77", 8) != 0);
    pgs__fresh_unmap(p, run.n_pages);
}
TEST(a_view_turns_private_under_a_writing_thread)
{
    needs_map_write();
    anonymous(8);
    swap_under_a_writer();
    pgs__pagefile_fini(&pf);
    CHECK_EQ(pgs__vm_charged(), 0);
}
TEST(a_view_turns_private_under_a_writing_thread_on_disk)
{
    needs_map_write();
    in_dir("/tmp", 8);
    CHECK(pgs__fresh_can_map(&pf) || pf.fs == PGS__FS_DISK);
    if (!pgs__fresh_can_map(&pf)) SKIP("this disk gives no writable mappings");
    swap_under_a_writer();
    pgs__pagefile_fini(&pf);
}

TEST(a_private_view_keeps_what_was_written_and_the_file_too)
{
    needs_map_write();
    anonymous(8);
    struct pgs_run run = {{4 * CHUNK}, 2 * CHUNK};
    uint8_t *p;
    void *out;
    CHECK_OK(pgs__fresh_reserve(&pf, run, true, &err));
    CHECK_OK(pgs__fresh_map(&pf, run, NULL, &out, &err));
    p = out;
    CHECK(((uintptr_t)p & (PGS_CHUNK_SIZE - 1)) == 0); /* or no huge page could be mapped */
    size_t len = run.n_pages << PGS_PAGE_SHIFT;
    memset(p, 1, len);
    CHECK_OK(pgs__fresh_make_private(&pf, run, p, &err));
    CHECK(p[0] == 1 && p[len - 1] == 1);
    memset(p, 2, len);
    const uint8_t *file = pgs__pages_at(&pf, run.page, run.n_pages);
    CHECK(file[0] == 1 && file[len / 2] == 1 && file[len - 1] == 1);
    pgs__fresh_unmap(p, run.n_pages);
    CHECK(file[0] == 1);
    pgs__pagefile_fini(&pf);
    CHECK_EQ(pgs__vm_charged(), 0);
}

TEST(the_planted_bug_leaves_the_view_shared)
{
    needs_map_write();
    anonymous(8);
    struct pgs_run run = {{4 * CHUNK}, 1};
    void *p;
    CHECK_OK(pgs__fresh_reserve(&pf, run, false, &err));
    CHECK_OK(pgs__fresh_map(&pf, run, NULL, &p, &err));
    pgs__inject_plant(12);
    CHECK_OK(pgs__fresh_make_private(&pf, run, p, &err));
    memset(p, 9, 4096);
    CHECK(*(const uint8_t *)pgs__page(&pf, run.page) == 9);
    pgs__fresh_unmap(p, 1);
    pgs__pagefile_fini(&pf);
}

/* Does a child forked now have a writable shared mapping of the page file? */
static bool child_has_mapping(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        char line[512];
        bool found = false;
        FILE *f = fopen("/proc/self/maps", "r");
        while (f && fgets(line, sizeof line, f)) found |= strstr(line, "rw-s") && strstr(line, "memfd:test");
        _exit(found);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}
static int n_inherited = -1;
static ssize_t forking_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    if (n == 1) n_inherited = child_has_mapping(); /* the touch: the put has its mapping by now */
    return pgs__file_ops_real.pwrite(fd, buf, n, off);
}
TEST(a_child_forked_during_a_put_does_not_inherit_its_mapping)
{
    static struct pgs__file_ops ops;
    NEEDS_PROC();
    if (!pgs__cap(PGS__CAP_COLLAPSE)) SKIP("no MADV_COLLAPSE on this kernel");
    anonymous(32);
    ops = pgs__file_ops_real;
    ops.pwrite = forking_pwrite;
    pgs__file_ops = &ops;
    copy_plain(8 * CHUNK, 2 * MIB, true);
    CHECK_EQ(n_inherited, 0);
    n_inherited = -1;
    CHECK_OK(pgs__fresh_reserve(&pf, (struct pgs_run){{10 * CHUNK}, CHUNK}, true, &err));
    CHECK_EQ(n_inherited, 0);
    void *p; /* what users get is inherited: the fork hook turns it private */
    CHECK_OK(pgs__fresh_map(&pf, (struct pgs_run){{10 * CHUNK}, CHUNK}, NULL, &p, &err));
    CHECK(child_has_mapping());
    pgs__fresh_unmap(p, CHUNK);
    pgs__pagefile_fini(&pf);
}

TEST(puts_check_whose_descriptor_it_is)
{
    needs_map_write();
    in_dir("/dev/shm", 8);
    struct pgs_run run = {{4 * CHUNK}, CHUNK};
    uint8_t *src = source(2 * MIB, 4);
    char foreign_name[] = "/dev/shm/pages-foreign-XXXXXX";
    struct stat st;
    int foreign = mkstemp(foreign_name);
    unlink(foreign_name);
    for (int i = 0; i < 3; i++) {
        CHECK(dup2(foreign, pf.fd) >= 0);
        if (i == 0) CHECK_OK(pgs__fresh_copy(&pf, run, true, src, 2 * MIB, NULL, &err));
        if (i == 1) CHECK_OK(pgs__fresh_reserve(&pf, run, true, &err));
        if (i == 2) {
            void *p;
            CHECK_OK(pgs__fresh_map(&pf, run, NULL, &p, &err));
            CHECK(memcmp((uint8_t *)p + 4096, src + 4096, 2 * MIB - 4096) == 0);
            pgs__fresh_unmap(p, CHUNK);
        }
    }
    CHECK(fstat(foreign, &st) == 0 && st.st_size == 0 && st.st_blocks == 0);
    free(src);
    pgs__pagefile_fini(&pf);
}

/* Stores through the window and pwrite show the same; what the chunk held stays; no child has it. */
TEST(a_window_takes_stores_where_a_chunk_is_ready)
{
    NEEDS_PROC();
    if (!pgs__cap(PGS__CAP_COLLAPSE)) SKIP("no MADV_COLLAPSE on this kernel");
    anonymous(32);
    struct pgs_run run = {{8 * CHUNK}, 2 * CHUNK};
    uint8_t *src = source(2 * MIB, 5);
    CHECK_OK(pgs__fresh_copy(&pf, run_of(9 * CHUNK + 3, 100000), false, src, 100000, NULL, &err));
    const void *seen = pgs__pages_at(&pf, run.page, CHUNK); /* before counting: may map a segment */
    long charged = pgs__vm_charged();
    uint8_t *map = pgs__fresh_window(&pf, run);
    CHECK(map && !child_has_mapping());
    for (uint64_t i = 0; i < 2; i++) {
        if (!pgs__fresh_ready(&pf, 8 + i, map + i * PGS_CHUNK_SIZE)) SKIP("no huge page to be had");
        CHECK(pgs__fresh_ready(&pf, 8 + i, map + i * PGS_CHUNK_SIZE)); /* again */
    }
    memcpy(map, src, 2 * MIB);
    CHECK(seen && memcmp(seen, src, 2 * MIB) == 0);
    CHECK(memcmp(map + PGS_CHUNK_SIZE + 3 * PGS_PAGE_SIZE, src, 100000) == 0);
    CHECK_OK(pgs__fresh_copy(&pf, run_of(8 * CHUNK + 7, 5000), false, src, 5000, NULL, &err));
    CHECK(memcmp(map + 7 * PGS_PAGE_SIZE, src, 5000) == 0);
    pgs__fresh_unmap(map, run.n_pages);
    CHECK_EQ(pgs__vm_charged(), charged);
    free(src);
    pgs__pagefile_fini(&pf);
}

/* Every store that was allowed succeeds: none is SIGBUS. */
TEST(no_chunk_is_ready_without_room)
{
    if (!pgs__cap(PGS__CAP_COLLAPSE)) SKIP("no MADV_COLLAPSE on this kernel");
    in_tmpfs("7m", 32);
    uint8_t *map = pgs__fresh_window(&pf, (struct pgs_run){{8 * CHUNK}, 8 * CHUNK});
    unsigned n = 0;
    CHECK(map);
    for (uint64_t i = 0; i < 8; i++) {
        if (!pgs__fresh_ready(&pf, 8 + i, map + i * PGS_CHUNK_SIZE)) continue;
        memset(map + i * PGS_CHUNK_SIZE, 0x5a, PGS_CHUNK_SIZE);
        n++;
    }
    CHECK(n <= 3);
    pgs__fresh_unmap(map, 8 * CHUNK);
    pgs__pagefile_fini(&pf);
}

TEST(a_window_is_refused_where_stores_would_not_be_safe)
{
    anonymous(32);
    struct pgs_run run = {{8 * CHUNK}, CHUNK};
    long charged = pgs__vm_charged();
    without("collapse");
    CHECK(!pgs__fresh_window(&pf, run));
    without("");
    for (uint64_t nth = 1; nth < 4; nth++) {
        pgs__inject_fail(PGS__FAIL_FILE, nth, EIO, false);
        uint8_t *map = pgs__fresh_window(&pf, run);
        if (map) {
            (void)pgs__fresh_ready(&pf, 8, map);
            pgs__fresh_unmap(map, CHUNK);
        }
        pgs__inject_clear();
        CHECK_EQ(pgs__vm_charged(), charged);
    }
    pgs__pagefile_fini(&pf);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
