/* Pagestone | tests/unit/test_vm — reservations, the budget of mappings, and exactly which pages were written.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "tests/unit/testing.h"

#include <errno.h>
#include <sys/mman.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/file.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/vm.h"

struct found {
    uint64_t n_pages, n_runs, next;
    uint8_t *map; /* one byte per page; may be NULL */
    uint64_t stop_after;
};

static int collect(void *ctx, uint64_t first, uint64_t n)
{
    struct found *f = ctx;
    CHECK(n > 0 && (f->n_runs == 0 || first > f->next)); /* ascending, joined */
    f->n_runs++;
    f->n_pages += n;
    f->next = first + n;
    if (f->map) memset(f->map + first, 1, n);
    return f->stop_after && f->n_runs == f->stop_after ? 1234 : 0;
}

static void without(const char *names)
{
    setenv("PAGESTONE_WITHOUT", names, 1);
    pgs__caps_reset();
}

/* Run `check` with each way of finding dirty pages that this kernel has. */
static void both_ways(void (*check)(bool exact))
{
    without("");
    if (pgs__cap(PGS__CAP_PAGEMAP_SCAN))
        check(true);
    else
        fprintf(stderr, "no PAGEMAP_SCAN: %s\n", pgs__cap_reason(PGS__CAP_PAGEMAP_SCAN));
    without("pagemap_scan");
    if (pgs__cap(PGS__CAP_PAGEMAP))
        check(false);
    else
        fprintf(stderr, "no pagemap: %s\n", pgs__cap_reason(PGS__CAP_PAGEMAP));
}

static uint8_t *map_cow(uint64_t n_pages, int *fd_out)
{
    int fd = pgs__file_ops->memfd("t"), rc;
    CHECK(fd >= 0);
    CHECK_EQ(pgs__file_ops->ftruncate(fd, (off_t)(n_pages * 4096)), 0);
    uint8_t *p = pgs__file_ops->map(fd, PGS__MAP_COW, NULL, n_pages * 4096, 0, &rc);
    CHECK(p != MAP_FAILED);
    *fd_out = fd;
    return p;
}

/* n_pages of resident file, read through the view; every seventh written, some runs. */
static void check_cow(uint8_t *p, uint64_t n_pages, bool exact)
{
    uint8_t *want = calloc(n_pages, 1), *got = calloc(n_pages, 1), sum = 0;
    struct found f = {.map = got};
    bool is_exact = !exact;
    for (uint64_t i = 0; i < n_pages; i++) sum = (uint8_t)(sum + p[i * 4096]);
    for (uint64_t i = 0; i < n_pages; i++)
        if (i % 7 == 3 || (i >= 100 && i < 130)) {
            p[i * 4096 + i % 4096] = 1;
            want[i] = 1;
        }
    CHECK_EQ(pgs__vm_dirty(p, n_pages * 4096, collect, &f, &is_exact), 0);
    CHECK(is_exact == exact);
    for (uint64_t i = 0; i < n_pages; i++)
        if (want[i] != got[i])
            TEST_FAIL("page %llu: written %d, found %d (%d)", (unsigned long long)i, want[i], got[i], sum);
    free(want);
    free(got);
}

static void written_pages_of_a_file(bool exact)
{
    enum { N = 5000 }; /* more than 512 runs */
    int fd;
    uint8_t *p = map_cow(N, &fd);
    for (int i = 0; i < N; i++) CHECK_EQ(pgs__pwrite_full(fd, "x", 1, (uint64_t)i * 4096), 0);
    check_cow(p, N, exact);
    munmap(p, (size_t)N * 4096);
    close(fd);
}

TEST(exactly_the_written_pages_of_a_private_view_are_found)
{
    both_ways(written_pages_of_a_file);
}

static void written_pages_of_a_sparse_file(bool exact)
{
    int fd;
    uint8_t *p = map_cow(3000, &fd);
    check_cow(p, 3000, exact); /* reading allocates in the file: still not dirty */
    munmap(p, 3000 * 4096);
    close(fd);
}

TEST(holes_of_the_file_that_were_read_are_not_dirty)
{
    both_ways(written_pages_of_a_sparse_file);
}

static void written_pages_over_collapsed(bool exact)
{
    enum { N = 3 * 512 };
    int fd, rc;
    uint8_t *p = map_cow(N, &fd);
    munmap(p, (size_t)N * 4096);
    uint8_t *space = pgs__vm_reserve((size_t)N * 4096, 2u << 20);
    uint8_t *w = pgs__file_ops->map(fd, PGS__MAP_WRITE, space, (size_t)N * 4096, 0, &rc);
    CHECK(w == space);
    memset(w, 5, (size_t)N * 4096);
    rc = pgs__vm_collapse(w, (size_t)N * 4096);
    if (rc) fprintf(stderr, "not collapsed: %s; checked with small pages\n", strerror(-rc));
    uint8_t *c = pgs__file_ops->map(fd, PGS__MAP_COW, w, (size_t)N * 4096, 0, &rc);
    CHECK(c == w);
    check_cow(c, N, exact);
    munmap(c, (size_t)N * 4096);
    close(fd);
}

TEST(pages_over_collapsed_chunks_are_found_one_by_one)
{
    both_ways(written_pages_over_collapsed);
}

static void zero_memory(bool exact)
{
    enum { N = 4 * 512 };
    uint8_t *p = pgs__vm_reserve((size_t)N * 4096, 2u << 20), sum = 0;
    CHECK_EQ(pgs__vm_zero(p, (size_t)N * 4096, true), 0);
    struct found f = {0};
    bool is_exact;
    for (int i = 0; i < N; i++) sum = (uint8_t)(sum + p[i * 4096]);
    CHECK_EQ(sum, 0);
    CHECK_EQ(pgs__vm_dirty(p, (size_t)N * 4096, collect, &f, &is_exact), 0);
    if (exact)
        CHECK_EQ(f.n_pages, 0);
    else
        CHECK(!is_exact); /* may report them, and says so */
    p[777 * 4096] = 1;
    uint8_t *map = calloc(N, 1);
    f = (struct found){.map = map};
    CHECK_EQ(pgs__vm_dirty(p, (size_t)N * 4096, collect, &f, &is_exact), 0);
    CHECK(map[777]);
    if (exact) CHECK_EQ(f.n_pages, 1); /* one byte is one page: no huge page came */
    free(map);
    pgs__vm_release(p, (size_t)N * 4096);
}

TEST(zero_pages_that_were_only_read_are_not_dirty)
{
    both_ways(zero_memory);
}

TEST(read_only_zero_memory_reads_zero_and_refuses_stores)
{
    uint8_t *p = pgs__vm_reserve(4u << 20, 2u << 20);
    CHECK_EQ(pgs__vm_zero(p, 4u << 20, false), 0);
    for (size_t i = 0; i < 4u << 20; i += 4096) CHECK_EQ(p[i], 0);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile uint8_t *)p = 1;
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
}

static void sparse_gigabyte(bool exact)
{
    uint64_t n = 1u << 18;
    int fd;
    uint8_t *p = map_cow(n, &fd);
    for (uint64_t i = 0; i < n; i += 4096) p[i * 4096] = 1;
    struct found f = {0};
    bool is_exact;
    uint64_t t0 = pgs__clock_mono_ns();
    CHECK_EQ(pgs__vm_dirty(p, n * 4096, collect, &f, &is_exact), 0);
    uint64_t us = (pgs__clock_mono_ns() - t0) / 1000;
    fprintf(stderr, "1 GiB, 64 pages written, %s: %llu us\n", exact ? "PAGEMAP_SCAN" : "pagemap",
            (unsigned long long)us);
    CHECK_EQ(f.n_pages, 64);
    CHECK(us < 2000000); /* a hang, not a slow machine */
    munmap(p, n * 4096);
    close(fd);
}

TEST(a_sparse_gigabyte_is_scanned_quickly)
{
    both_ways(sparse_gigabyte);
}

TEST(the_callers_stop_ends_the_query)
{
    int fd;
    NEEDS_PROC();
    uint8_t *p = map_cow(100, &fd);
    for (int i = 0; i < 100; i += 2) p[i * 4096] = 1;
    static const char *const ways[] = {"", "pagemap_scan"};
    for (int w = 0; w < 2; w++) {
        without(ways[w]);
        struct found f = {.stop_after = 3};
        bool exact;
        CHECK_EQ(pgs__vm_dirty(p, 100 * 4096, collect, &f, &exact), 1234);
        CHECK_EQ(f.n_runs, 3);
    }
    without("pagemap_scan,pagemap");
    struct found f = {0};
    bool exact = true;
    CHECK_EQ(pgs__vm_dirty(p, 100 * 4096, collect, &f, &exact), -ENOTSUP);
    CHECK(exact && f.n_runs == 0);
}

TEST(a_forked_child_asks_about_its_own_memory)
{
    int fd;
    uint8_t *p = map_cow(64, &fd);
    struct found f = {0};
    bool exact;
    int rc = pgs__vm_dirty(p, 64 * 4096, collect, &f, &exact);
    if (rc == -ENOTSUP) SKIP("neither PAGEMAP_SCAN nor pagemap");
    CHECK_EQ(rc, 0);
    CHECK_EQ(f.n_pages, 0);
    pid_t pid = fork();
    if (pid == 0) {
        p[5 * 4096] = 1;
        CHECK_EQ(pgs__vm_dirty(p, 64 * 4096, collect, &f, &exact), 0);
        _exit(f.n_pages == 1 && f.next == 6 ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK_EQ(status, 0);
    CHECK_EQ(pgs__vm_dirty(p, 64 * 4096, collect, &f, &exact), 0);
    CHECK_EQ(f.n_pages, 0);
}

TEST(a_reservation_is_aligned_and_costs_one_mapping)
{
    for (size_t align = 4096; align <= 1u << 30; align <<= 3) {
        char *p = pgs__vm_reserve(12345, align);
        CHECK(p && ((uintptr_t)p & (align - 1)) == 0);
        CHECK_EQ(pgs__vm_zero(p, 4096, true), 0);
        p[100] = 1;
        pgs__vm_release(p, 16384);
        CHECK(mincore(p, 4096, (unsigned char[1]){0}) < 0 && errno == ENOMEM); /* really gone */
    }
    CHECK(!pgs__vm_reserve(SIZE_MAX - 4096, 1u << 21));
    CHECK(!pgs__vm_reserve(0, 4096));
}

TEST(the_budget_ends_at_half_of_the_systems_limit)
{
    long limit = 65530;
    FILE *f = fopen("/proc/sys/vm/max_map_count", "r");
    if (f) {
        if (fscanf(f, "%ld", &limit) != 1) limit = 65530;
        fclose(f);
    }
    CHECK_EQ(pgs__vm_charge(limit / 2), 0);
    CHECK_ERR(pgs__vm_charge(1), PGS_ENOMEM);
    CHECK_EQ(pgs__vm_charged(), limit / 2);
    pgs__vm_uncharge(10);
    CHECK_EQ(pgs__vm_charge(10), 0);
    pgs__vm_uncharge(limit / 2);
    CHECK_EQ(pgs__vm_charged(), 0);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
