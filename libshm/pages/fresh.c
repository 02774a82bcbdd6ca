/* Pagestone | pages/fresh — copying and mapping fresh pages: touch, collapse, reserve, then store.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Times memcpy between warm buffers, on tmpfs with huge pages off in the system's settings (Linux 6.18, 2 cores), piece by piece;
 * bench/bench_fresh.c measures the whole:
 *
 *                                        2 MiB   16 MiB  100 MiB
 *     fresh: pwrite                       2.3     3.2     2.1
 *     fresh: fallocate, map, memcpy       5.7     8.1     3.9
 *     fresh: touch, collapse, memcpy      1.7     1.7     1.6     chunk by chunk: the zeroed page is still in the cache
 *     resident huge page: memcpy          1.1     1.0     1.0     the collapse finds it huge: 1 µs
 *     resident huge page: pwrite          1.3     1.4     1.6
 *     resident 4 KiB pages: collapse      2.9     3.3     2.4     once; the next user of the chunk has a huge page
 *     resident 4 KiB pages: pwrite        1.7     2.2     1.8
 *
 * So chunks that are ours as a whole go through a mapping and a collapse, everything else through pwrite. A chunk that did not collapse (no
 * huge page to be had, a pinned page, almost full) goes through pwrite too, whose ENOSPC is an error: this is why no store here can meet
 * SIGBUS. The fallocate after a collapse finds everything there (0.3 µs); it is the belt to that.
 */
#define _GNU_SOURCE 1
#include "libshm/pages/fresh.h"

#include <errno.h>
#include <sys/mman.h>

#include "libshm/pages/room.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"

#define MAP_MIN_BYTES (1u << 20)   /* smaller copies: a mapping's page faults cost more than pwrite */
#define WRITE_PAGES 64u            /* copied and hashed in the cache, then written */
#define RESERVE_STEP (16ull << 20) /* tmpfs undoes a fallocate that a signal interrupts: small steps always finish */
#define COLLAPSE_GIVES_UP 4u       /* failures in a row: the kernel searches long for huge pages that are not there */
#define CHUNK_MASK (PGS_CHUNK_PAGES - 1) /* pages */

bool pgs__fresh_can_map(const struct pgs__pagefile *pf)
{
    return pf->writable && pgs__cap(PGS__CAP_MAP_WRITE) && (pf->fs == PGS__FS_TMPFS || pf->fs == PGS__FS_DISK_MAPWRITE);
}

/* --- chunks of a run -------------------------------------------------------------------------------------------- */

/* Pages [lo, hi), whole chunks: what may be collapsed and mapped for a run (I2). Empty: hi <= lo. */
struct chunks {
    uint64_t lo, hi;
};

static struct chunks chunks_inside(struct pgs_run run)
{
    return (struct chunks){(run.page.n + CHUNK_MASK) & ~(uint64_t)CHUNK_MASK,
                           (run.page.n + run.n_pages) & ~(uint64_t)CHUNK_MASK};
}

static struct chunks chunks_ours(struct pgs_run run, bool whole)
{
    if (!whole) return chunks_inside(run);
    PGS_BUG_ON(run.page.n < 2 * PGS_CHUNK_PAGES); /* chunks 0 and 1 hold the superblocks: never anybody's as a whole */
    return (struct chunks){run.page.n & ~(uint64_t)CHUNK_MASK,
                           (run.page.n + run.n_pages + CHUNK_MASK) & ~(uint64_t)CHUNK_MASK};
}

static void check_run(struct pgs__pagefile *pf, struct pgs_run run)
{
    PGS_BUG_ON(run.n_pages == 0 || !pgs__pagefile_holds(pf, run.page.n, run.n_pages));
    PGS_BUG_ON(run.page.n <= PGS__SUPER_PAGE_1 && run.page.n + run.n_pages > PGS__SUPER_PAGE_1);
    PGS_BUG_ON(run.page.n == PGS__SUPER_PAGE_0);
}

static int fail_reserve(int rc, struct pgs_run run, struct pgs_error *err)
{
    return pgs__fail_os(err, -rc, "cannot allocate %llu pages", (unsigned long long)run.n_pages);
}

/* After ENOSPC: what this call may have allocated helps nobody here, and others badly. Only chunks inside the run: other pages of
 * the outer ones may hold the caller's earlier data. */
static void give_back(struct pgs__pagefile *pf, struct pgs_run run)
{
    struct chunks in = chunks_inside(run);
    if (in.lo < in.hi) pgs__pagefile_punch(pf, in.lo / PGS_CHUNK_PAGES, (in.hi - in.lo) / PGS_CHUNK_PAGES);
}

/* --- mapping ---------------------------------------------------------------------------------------------------- */

/* A writable mapping of pages [lo, hi), whose chunks lie at multiples of 2 MiB in memory too, or no huge page could be mapped. */
static void *map_pages(struct pgs__pagefile *pf, uint64_t lo, uint64_t hi, int *rc)
{
    size_t len = (size_t)(hi - lo) << PGS_PAGE_SHIFT;
    bool aligned = (lo & CHUNK_MASK) == 0 && hi - lo >= PGS_CHUNK_PAGES;
    if (pgs__vm_charge(1) != 0) {
        *rc = -ENOMEM;
        return NULL;
    }
    void *p = pgs__vm_reserve(len, aligned ? PGS_CHUNK_SIZE : PGS_PAGE_SIZE);
    *rc = p ? 0 : -ENOMEM;
    if (p && pgs__file_ops->map(pf->fd, PGS__MAP_WRITE, p, len, (off_t)(lo << PGS_PAGE_SHIFT), rc) == MAP_FAILED) {
        pgs__vm_release(p, len);
        p = NULL;
    }
    if (!p) pgs__vm_uncharge(1);
    return p;
}

static void unmap_pages(void *addr, uint64_t n_pages)
{
    pgs__file_ops->unmap(addr, (size_t)n_pages << PGS_PAGE_SHIFT);
    pgs__vm_uncharge(1);
}

int pgs__fresh_map(struct pgs__pagefile *pf, struct pgs_run run, void *addr, void **out, struct pgs_error *err)
{
    check_run(pf, run);
    int rc = pgs__pagefile_check_fd(pf, err);
    if (rc) return rc;
    if (!pgs__fresh_can_map(pf)) return pgs__fail(err, PGS_ENOTSUP, "this file system gives no writable shared memory");
    if (!addr) {
        addr = map_pages(pf, run.page.n, run.page.n + run.n_pages, &rc);
    } else if (pgs__vm_charge(1) != 0) {
        addr = NULL;
        rc = -ENOMEM;
    } else if (pgs__file_ops->map(pf->fd, PGS__MAP_WRITE, addr, (size_t)run.n_pages << PGS_PAGE_SHIFT,
                                  (off_t)(run.page.n << PGS_PAGE_SHIFT), &rc) == MAP_FAILED) {
        pgs__vm_uncharge(1);
        addr = NULL;
    }
    if (!addr) return pgs__fail_os(err, -rc, "cannot map %llu pages for writing", (unsigned long long)run.n_pages);
    *out = addr;
    return 0;
}

void pgs__fresh_unmap(void *addr, uint64_t n_pages)
{
    unmap_pages(addr, n_pages);
}

int pgs__fresh_make_private(struct pgs__pagefile *pf, struct pgs_run run, void *addr, struct pgs_error *err)
{
    int rc = pgs__pagefile_check_fd(pf, err);
    if (rc) return rc;
    if (PGS_PLANTED(12)) return 0;
    /* One mapping takes the place of another of the same length: nothing to charge, and never a moment without one. */
    if (pgs__file_ops->map(pf->fd, PGS__MAP_COW, addr, (size_t)run.n_pages << PGS_PAGE_SHIFT,
                           (off_t)(run.page.n << PGS_PAGE_SHIFT), &rc) == MAP_FAILED)
        return pgs__fail_os(err, -rc, "cannot make %llu pages private", (unsigned long long)run.n_pages);
    return 0;
}

/* --- touch, collapse, reserve ----------------------------------------------------------------------------------- */

/* Allocate one page of the run in this chunk, or there is nothing to collapse; then make the chunk one huge page. 0: it is. -ENOSPC and the
 * like: the touch failed. 1: the chunk consists of small pages, and not all of them may be there. The byte is of a page of the run:
 * other pages of the chunk may hold data already. */
static int collapse_chunk(struct pgs__pagefile *pf, struct pgs_run run, uint64_t chunk_page, void *at)
{
    static const uint8_t zero = 0;
    uint64_t page = pgs__max_u64(chunk_page, run.page.n);
    int rc = pgs__room_take(pf, chunk_page, PGS_CHUNK_PAGES, false);
    if (rc == 0) rc = pgs__pwrite_full(pf->fd, &zero, 1, page << PGS_PAGE_SHIFT);
    if (rc < 0) return rc;
    return pgs__vm_collapse(at, PGS_CHUNK_SIZE) == 0 ? 0 : 1;
}

static int reserve_bytes(struct pgs__pagefile *pf, uint64_t off, uint64_t len)
{
    int rc = 0;
    for (uint64_t done = 0; rc == 0 && done < len; done += RESERVE_STEP) {
        uint64_t n = pgs__min_u64(len - done, RESERVE_STEP);
        rc = pgs__room_take(pf, (off + done) >> PGS_PAGE_SHIFT, pgs__pages_of(n), false);
        if (rc == 0) rc = pgs__file_ops->fallocate(pf->fd, 0, (off_t)(off + done), (off_t)n);
    }
    return rc;
}

/* Best effort but for a failed touch. */
static int collapse_all(struct pgs__pagefile *pf, struct pgs_run run, struct chunks in)
{
    int rc;
    uint8_t *map = map_pages(pf, in.lo, in.hi, &rc);
    if (!map) return 0;
    (void)madvise(map, (size_t)(in.hi - in.lo) << PGS_PAGE_SHIFT, MADV_DONTFORK);
    unsigned failed = 0;
    rc = 0;
    for (uint64_t page = in.lo; page < in.hi && rc >= 0 && failed < COLLAPSE_GIVES_UP; page += PGS_CHUNK_PAGES) {
        rc = collapse_chunk(pf, run, page, map + ((page - in.lo) << PGS_PAGE_SHIFT));
        failed = rc == 1 ? failed + 1 : 0;
    }
    unmap_pages(map, in.hi - in.lo);
    return rc < 0 ? rc : 0;
}

static bool can_collapse(const struct pgs__pagefile *pf)
{
    return pf->fs == PGS__FS_TMPFS && pgs__fresh_can_map(pf) && pgs__cap(PGS__CAP_COLLAPSE);
}

int pgs__fresh_reserve(struct pgs__pagefile *pf, struct pgs_run run, bool whole, struct pgs_error *err)
{
    check_run(pf, run);
    int rc = pgs__pagefile_check_fd(pf, err);
    if (rc) return rc;
    struct chunks ours = chunks_ours(run, whole);
    rc = pgs__room_holds(pf, run);
    if (rc == 0 && can_collapse(pf) && ours.lo < ours.hi) rc = collapse_all(pf, run, ours);
    if (rc == 0) rc = reserve_bytes(pf, run.page.n << PGS_PAGE_SHIFT, run.n_pages << PGS_PAGE_SHIFT);
    if ((rc == -EOPNOTSUPP || rc == -ENOSYS) && !pgs__fresh_can_map(pf)) rc = 0; /* pwrite will tell */
    if (rc == 0) return 0;
    give_back(pf, run);
    return fail_reserve(rc, run, err);
}

void *pgs__fresh_window(struct pgs__pagefile *pf, struct pgs_run run)
{
    int rc;
    check_run(pf, run);
    PGS_BUG_ON((run.page.n | run.n_pages) & CHUNK_MASK);
    if (!can_collapse(pf) || pgs__pagefile_check_fd(pf, NULL) != 0) return NULL;
    void *map = map_pages(pf, run.page.n, run.page.n + run.n_pages, &rc);
    if (map) (void)madvise(map, (size_t)run.n_pages << PGS_PAGE_SHIFT, MADV_DONTFORK); /* as below (I1) */
    return map;
}

bool pgs__fresh_ready(struct pgs__pagefile *pf, uint64_t chunk, void *at)
{
    struct pgs_run run = {{chunk * PGS_CHUNK_PAGES}, PGS_CHUNK_PAGES};
    return pgs__pagefile_check_fd(pf, NULL) == 0 && collapse_chunk(pf, run, run.page.n, at) == 0 &&
           reserve_bytes(pf, chunk * PGS_CHUNK_SIZE, PGS_CHUNK_SIZE) == 0;
}

/* --- copying ---------------------------------------------------------------------------------------------------- */

struct copy {
    struct pgs__pagefile *pf;
    struct pgs_run run;
    const uint8_t *src;
    uint64_t n_bytes;
    uint64_t *xxh; /* may be NULL */
};

/* The source of `page` of the run: in place, or, for the last page when it is not full, in `tail` with zeros after it. */
static const uint8_t *source_of(const struct copy *c, uint64_t page, uint8_t tail[PGS_PAGE_SIZE])
{
    uint64_t off = (page - c->run.page.n) << PGS_PAGE_SHIFT;
    if (c->n_bytes - off >= PGS_PAGE_SIZE) return c->src + off;
    memcpy(tail, c->src + off, (size_t)(c->n_bytes - off));
    memset(tail + (c->n_bytes - off), 0, PGS_PAGE_SIZE - (size_t)(c->n_bytes - off));
    return tail;
}

static uint64_t full_pages_end(const struct copy *c)
{
    return c->run.page.n + (c->n_bytes >> PGS_PAGE_SHIFT);
}

/* Checksums are taken of the copy, while it is in the cache, never of the source: another thread may be writing there, and a page whose
 * checksum is of other bytes could never be read with verification again. */
static void copy_pages(const struct copy *c, uint64_t page, const uint8_t *from, uint64_t n, uint8_t *to)
{
    for (uint64_t i = 0; i < n; i++) {
        memcpy(to + (i << PGS_PAGE_SHIFT), from + (i << PGS_PAGE_SHIFT), PGS_PAGE_SIZE);
        c->xxh[page + i - c->run.page.n] = pgs__hash_page(to + (i << PGS_PAGE_SHIFT));
    }
}

/* Pages [lo, hi) of the file by pwrite, with checksums through a buffer. 0 or -errno. */
static int copy_write(const struct copy *c, uint64_t lo, uint64_t hi)
{
    uint8_t tail[PGS_PAGE_SIZE], *buf = NULL;
    uint64_t full = full_pages_end(c), step = c->xxh ? WRITE_PAGES : RESERVE_STEP >> PGS_PAGE_SHIFT;
    int rc = 0;
    if (c->xxh && lo < hi && !(buf = pgs__malloc(WRITE_PAGES << PGS_PAGE_SHIFT))) return -ENOMEM;
    for (uint64_t page = lo; rc == 0 && page < hi;) {
        uint64_t end = pgs__min_u64(hi, page + step);
        if (page < full) end = pgs__min_u64(end, full);
        const uint8_t *from = source_of(c, page, tail);
        if (buf) copy_pages(c, page, from, end - page, buf);
        rc = pgs__room_take(c->pf, page, end - page, false);
        if (rc == 0)
            rc = pgs__pwrite_full(c->pf->fd, buf ? buf : from, (size_t)(end - page) << PGS_PAGE_SHIFT,
                                  page << PGS_PAGE_SHIFT);
        page = end;
    }
    pgs__free(buf);
    return rc;
}

/* Pages [lo, hi), reserved, by stores: `to` is the address of page lo. */
static void copy_store(const struct copy *c, uint64_t lo, uint64_t hi, uint8_t *to)
{
    uint8_t tail[PGS_PAGE_SIZE];
    uint64_t page = lo, full = pgs__min_u64(hi, full_pages_end(c));
    if (!c->xxh && page < full) {
        memcpy(to, source_of(c, page, tail), (size_t)(full - page) << PGS_PAGE_SHIFT);
        page = full;
    }
    for (; page < hi; page++) {
        const uint8_t *from = source_of(c, page, tail);
        uint8_t *at = to + ((page - lo) << PGS_PAGE_SHIFT);
        if (c->xxh)
            copy_pages(c, page, from, 1, at);
        else
            memcpy(at, from, PGS_PAGE_SIZE);
    }
}

/* The pages [lo, hi) of one chunk, which is mapped at `at`. 0, 1: done, but not as a huge page; -errno. */
static int copy_chunk(const struct copy *c, uint64_t chunk_page, uint64_t lo, uint64_t hi, uint8_t *at)
{
    int rc = collapse_chunk(c->pf, c->run, chunk_page, at);
    if (rc == 1) {
        rc = copy_write(c, lo, hi);
        return rc ? rc : 1;
    }
    if (rc == 0) rc = reserve_bytes(c->pf, lo << PGS_PAGE_SHIFT, (hi - lo) << PGS_PAGE_SHIFT);
    if (rc == 0) copy_store(c, lo, hi, at + ((lo - chunk_page) << PGS_PAGE_SHIFT));
    return rc;
}

/* Pages [lo, hi) inside the chunks `in`. 0 or -errno. */
static int copy_mapped(const struct copy *c, struct chunks in, uint64_t lo, uint64_t hi)
{
    int rc;
    uint8_t *map = map_pages(c->pf, in.lo, in.hi, &rc);
    if (!map) return copy_write(c, lo, hi);
    (void)madvise(map, (size_t)(in.hi - in.lo) << PGS_PAGE_SHIFT, MADV_DONTFORK); /* no child may keep it (I1) */
    unsigned failed = 0;
    uint64_t page = in.lo;
    for (rc = 0; page < in.hi && rc >= 0 && failed < COLLAPSE_GIVES_UP; page += PGS_CHUNK_PAGES) {
        uint64_t from = pgs__max_u64(page, lo), to = pgs__min_u64(page + PGS_CHUNK_PAGES, hi);
        rc = copy_chunk(c, page, from, to, map + ((page - in.lo) << PGS_PAGE_SHIFT));
        failed = rc == 1 ? failed + 1 : 0;
    }
    unmap_pages(map, in.hi - in.lo);
    if (rc < 0) return rc;
    return page < hi ? copy_write(c, page, hi) : 0;
}

int pgs__fresh_copy(struct pgs__pagefile *pf, struct pgs_run run, bool whole, const void *src, uint64_t n_bytes,
                    uint64_t *page_xxh, struct pgs_error *err)
{
    if (n_bytes == 0) return 0;
    check_run(pf, run);
    PGS_BUG_ON(pgs__pages_of(n_bytes) > run.n_pages);
    int rc = pgs__pagefile_check_fd(pf, err);
    if (rc) return rc;
    run.n_pages = pgs__pages_of(n_bytes); /* what follows it is not touched, nor mapped unless it is ours */
    struct copy c = {.pf = pf, .run = run, .src = src, .n_bytes = n_bytes, .xxh = page_xxh};
    struct chunks in = chunks_ours(run, whole);
    uint64_t lo = run.page.n, hi = run.page.n + run.n_pages;
    rc = pgs__room_holds(pf, run);
    if (rc == 0 && (n_bytes < MAP_MIN_BYTES || !can_collapse(pf) || in.lo >= in.hi)) {
        rc = copy_write(&c, lo, hi);
    } else if (rc == 0) { /* the ends of the run, in shared chunks, by pwrite; what is between through a mapping */
        uint64_t mid_lo = pgs__max_u64(lo, in.lo), mid_hi = pgs__min_u64(hi, in.hi);
        rc = copy_write(&c, lo, mid_lo);
        if (rc == 0) rc = copy_mapped(&c, in, mid_lo, mid_hi);
        if (rc == 0) rc = copy_write(&c, mid_hi, hi);
    }
    if (rc == 0) return 0;
    if (rc == -ENOSPC || rc == -EDQUOT) give_back(pf, run);
    return pgs__fail_os(err, -rc, "cannot write %llu bytes into the store", (unsigned long long)n_bytes);
}
