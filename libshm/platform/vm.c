/* Pagestone | platform/vm — reservations, zero memory, the budget of mappings, and which pages were written.
 * SPDX-License-Identifier: Apache-2.0
 *
 *   I1  A dirty query may report too much (the caller compares) only where it says *exact = false; it never reports too little, but for
 *       pages that other threads write while it runs.
 *   I2  pgs__vm_charged() never exceeds half of vm.max_map_count.
 *
 * The dirty query. A page of a MAP_PRIVATE mapping that was written is anonymous memory; one that was only read still belongs to the file, or
 * is the zero page over a hole. So: present or swapped, not of a file, not the zero page. PAGEMAP_SCAN asks for exactly that, and skips
 * unmapped ranges at once; reading pagemap cannot see the zero page. Neither needs a signal handler nor a privilege. The descriptor
 * is opened for each query: it names the address space of the opener, and a forked child has another one.
 */
#define _GNU_SOURCE
#include "libshm/platform/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/include/pagestone.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/pagemap.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* --- reservations ------------------------------------------------------------------------------------------------------- */
void *pgs__vm_reserve(size_t len, size_t align)
{
    pgs_assert(align >= PGS_PAGE_SIZE && (align & (align - 1)) == 0);
    size_t slack = align - PGS_PAGE_SIZE, total;
    if (PGS_INJECT(PGS__FAIL_MAP) || len == 0 || len > SIZE_MAX - PGS_PAGE_SIZE) return NULL;
    len = (len + PGS_PAGE_SIZE - 1) & ~(size_t)(PGS_PAGE_SIZE - 1);
    if (__builtin_add_overflow(len, slack, &total)) return NULL;

    char *p = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t head = (align - ((uintptr_t)p & (align - 1))) & (align - 1);
    if (head) munmap(p, head);
    if (slack > head) munmap(p + head + len, slack - head);
    return p + head;
}

void pgs__vm_release(void *addr, size_t len)
{
    if (addr) munmap(addr, len);
}

int pgs__vm_zero(void *addr, size_t len, bool writable)
{
    int injected = PGS_INJECT(PGS__FAIL_MAP);
    if (injected) return -injected;
    int prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *p = mmap(addr, len, prot, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return -errno;
    /* Writable: one written byte must not become 512 dirty pages. Read-only: the huge zero page makes a scan of a large hole cheap. Kernels
     * without huge pages refuse either, and need neither. */
    madvise(p, len, writable ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    return 0;
}

int pgs__vm_collapse(void *addr, size_t len)
{
    if (!pgs__cap(PGS__CAP_COLLAPSE)) return -ENOTSUP;
    return madvise(addr, len, MADV_COLLAPSE) < 0 ? -errno : 0;
}

/* --- the budget ----------------------------------------------------------------------------------------------------------- */
#define DEFAULT_MAX_MAP_COUNT 65530

static _Atomic long charged, budget; /* budget 0: not read yet */

static long budget_read(void)
{
    long n = 0;
    int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        char text[24] = "";
        if (read(fd, text, sizeof text - 1) > 0) n = strtol(text, NULL, 10);
        close(fd);
    }
    if (n < 64) n = DEFAULT_MAX_MAP_COUNT;
    return n / 2;
}

int pgs__vm_charge(long n)
{
    /* Relaxed throughout: a counter that guards no other memory. */
    long limit = atomic_load_explicit(&budget, memory_order_relaxed);
    if (PGS_UNLIKELY(limit == 0)) {
        limit = budget_read();
        atomic_store_explicit(&budget, limit, memory_order_relaxed);
    }
    long now = atomic_fetch_add_explicit(&charged, n, memory_order_relaxed) + n;
    if (now > limit) {
        atomic_fetch_sub_explicit(&charged, n, memory_order_relaxed);
        return -PGS_ENOMEM;
    }
    return 0;
}

void pgs__vm_uncharge(long n)
{
    long before = atomic_fetch_sub_explicit(&charged, n, memory_order_relaxed); /* as in pgs__vm_charge */
    pgs_assert(before >= n);
    (void)before;
}

long pgs__vm_charged(void)
{
    return atomic_load_explicit(&charged, memory_order_relaxed); /* as in pgs__vm_charge */
}

bool pgs__vm_is_short(void)
{
    long limit = atomic_load_explicit(&budget, memory_order_relaxed); /* as in pgs__vm_charge */
    return limit && pgs__vm_charged() >= limit / 4 * 3;
}

/* --- written pages ---------------------------------------------------------------------------------------------------------- */
int pgs__pagemap_open(void)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int pgs__pagemap_scan(int fd, uint64_t start, uint64_t end, struct pgs__page_region *vec, uint32_t vec_len)
{
    pgs_assert(vec_len <= PGS__SCAN_VEC);
    struct pgs__pm_scan_arg arg = {
        .size = sizeof arg,
        .start = start,
        .end = end,
        .vec = (uintptr_t)vec,
        .vec_len = vec_len,
        .category_inverted = PGS__PAGE_IS_FILE | PGS__PAGE_IS_PFNZERO,
        .category_mask = PGS__PAGE_IS_FILE | PGS__PAGE_IS_PFNZERO, /* after inversion: neither */
        .category_anyof_mask = PGS__PAGE_IS_PRESENT | PGS__PAGE_IS_SWAPPED,
        /* Nothing is returned by category, so that neighbours that differ only in present/swapped merge. */
        .return_mask = PGS__PAGE_IS_FILE | PGS__PAGE_IS_PFNZERO,
    };
    int n = ioctl(fd, PGS__PAGEMAP_SCAN, &arg);
    return n < 0 ? -errno : n;
}

/* Joins neighbouring runs before they reach the caller. */
struct joiner {
    int (*emit)(void *ctx, uint64_t first_page, uint64_t n_pages);
    void *ctx;
    uint64_t first, n;
};

static int joiner_flush(struct joiner *j)
{
    uint64_t n = j->n;
    j->n = 0;
    return n ? j->emit(j->ctx, j->first, n) : 0;
}

static int joiner_add(struct joiner *j, uint64_t first, uint64_t n)
{
    if (j->n && j->first + j->n == first) {
        j->n += n;
        return 0;
    }
    int rc = joiner_flush(j);
    j->first = first;
    j->n = n;
    return rc;
}

/* Nonzero of emit ends the query; distinguished from our own -errno by *stopped. */
static int dirty_by_scan(int fd, uint64_t base, uint64_t end, struct joiner *j, bool *stopped)
{
    struct pgs__page_region vec[PGS__SCAN_VEC] = {0}; /* valgrind does not know that the ioctl fills it */
    for (uint64_t at = base; at < end;) {
        int n = pgs__pagemap_scan(fd, at, end, vec, PGS__SCAN_VEC);
        if (n < 0) return n;
        for (int i = 0; i < n; i++) {
            int rc =
                joiner_add(j, (vec[i].start - base) >> PGS_PAGE_SHIFT, (vec[i].end - vec[i].start) >> PGS_PAGE_SHIFT);
            if (rc) {
                *stopped = true;
                return rc;
            }
        }
        if (n < PGS__SCAN_VEC) break;
        at = vec[n - 1].end; /* walk_end may be stale; this is never beyond what was returned */
    }
    return 0;
}

static int dirty_by_pagemap(int fd, uint64_t base, uint64_t end, struct joiner *j, bool *stopped)
{
    uint64_t entries[1024];
    for (uint64_t at = base; at < end;) {
        uint64_t want = pgs__min_u64((end - at) >> PGS_PAGE_SHIFT, PGS_ARRAY_LEN(entries));
        ssize_t got = pread(fd, entries, want * 8, (off_t)((at >> PGS_PAGE_SHIFT) * 8));
        if (got < 0 && errno == EINTR) continue;
        if (got < 8) return got < 0 ? -errno : -EIO;
        uint64_t n = (uint64_t)got / 8, first = (at - base) >> PGS_PAGE_SHIFT;
        for (uint64_t i = 0; i < n; i++) {
            if (!(entries[i] & (PGS__PM_PRESENT | PGS__PM_SWAPPED)) || (entries[i] & PGS__PM_FILE)) continue;
            int rc = joiner_add(j, first + i, 1);
            if (rc) {
                *stopped = true;
                return rc;
            }
        }
        at += n << PGS_PAGE_SHIFT;
    }
    return 0;
}

int pgs__vm_dirty(const void *addr, size_t len, int (*emit)(void *ctx, uint64_t first_page, uint64_t n_pages),
                  void *ctx, bool *exact)
{
    uint64_t base = (uintptr_t)addr, end = base + (pgs__pages_of(len) << PGS_PAGE_SHIFT);
    pgs_assert((base & (PGS_PAGE_SIZE - 1)) == 0 && end >= base);
    bool scan = pgs__cap(PGS__CAP_PAGEMAP_SCAN);
    if (!scan && !pgs__cap(PGS__CAP_PAGEMAP)) return -ENOTSUP;
    int fd = pgs__pagemap_open();
    if (fd < 0) return -ENOTSUP; /* out of descriptors, /proc gone: comparing still works */

    struct joiner j = {.emit = emit, .ctx = ctx};
    bool stopped = false;
    int rc = scan ? dirty_by_scan(fd, base, end, &j, &stopped) : dirty_by_pagemap(fd, base, end, &j, &stopped);
    close(fd);
    if (stopped) return rc;
    if (rc == 0)
        rc = joiner_flush(&j);
    else
        return -ENOTSUP; /* the caller starts over by comparing */
    if (rc == 0) *exact = scan;
    return rc;
}
