/* Pagestone | platform/caps — probes of the running kernel and CPU.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A probe does the thing itself, in miniature, rather than compare kernel versions: containers and gVisor answer for themselves. Probes leave nothing
 * behind. The result is one atomic word per capability, and probing twice gives the same word: no lock, so that a fork in the middle of a probe
 * hangs nobody, and a fork hook may ask.
 */
#define _GNU_SOURCE
#include "libshm/platform/caps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "libshm/platform/errname.h"
#include "libshm/platform/pagemap.h"
#include "libshm/platform/procfd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#endif
#if !defined(__has_feature)
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || __has_feature(address_sanitizer) ||               \
    __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define UNDER_SANITIZER true
#else
#define UNDER_SANITIZER false
#endif

/* A result: on, or off with a reason. Positive numbers below are errno values. */
enum {
    ON = 0,
    OFF_ENV = -1,
    OFF_CPU = -2,
    OFF_LIMIT = -3,
    OFF_SANITIZER = -4,
    OFF_WRONG = -5, /* the call works, but its answer is not what Linux says */
};
#define UNKNOWN INT32_MIN
static _Atomic int32_t results[PGS__CAP_N] = {UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN,
                                              UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN};
PGS_STATIC(PGS__CAP_N == 11, "one initial UNKNOWN each");

static const char *const names[PGS__CAP_N] = {
    [PGS__CAP_PAGEMAP_SCAN] = "pagemap_scan",
    [PGS__CAP_PAGEMAP] = "pagemap",
    [PGS__CAP_COLLAPSE] = "collapse",
    [PGS__CAP_BIG_WINDOW] = "big_window",
    [PGS__CAP_PROC_FD] = "proc_fd",
    [PGS__CAP_MAP_WRITE] = "map_write",
    [PGS__CAP_OFD] = "ofd",
    [PGS__CAP_AVX2] = "avx2",
    [PGS__CAP_AVX512] = "avx512",
    [PGS__CAP_MEMORY_LIMIT] = "memory_limit",
    [PGS__CAP_FUSE] = "fuse",
};

/* Is the capability in PAGESTONE_WITHOUT=name,name? Spaces around names are allowed. */
static bool switched_off(const char *name)
{
    const char *s = getenv("PAGESTONE_WITHOUT");
    size_t len = strlen(name);
    while (s && *s) {
        s += strspn(s, ", ");
        size_t n = strcspn(s, ", ");
        if (n == len && memcmp(s, name, n) == 0) return true;
        s += n;
    }
    return false;
}

static int probe_pagemap_scan(void)
{
    int fd = pgs__pagemap_open();
    if (fd < 0) return -fd;
    char *p = mmap(NULL, 2 * PGS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        close(fd);
        return ENOMEM;
    }
    madvise(p, 2 * PGS_PAGE_SIZE, MADV_NOHUGEPAGE);
    p[0] = 1;
    struct pgs__page_region region = {0, 0, 0};
    uint64_t start = (uintptr_t)p;
    int n = pgs__pagemap_scan(fd, start, start + 2 * PGS_PAGE_SIZE, &region, 1);
    munmap(p, 2 * PGS_PAGE_SIZE);
    close(fd);
    if (n < 0) return -n;
    return n == 1 && region.start == start && region.end == start + PGS_PAGE_SIZE ? ON : OFF_WRONG;
}

/* Entry of one touched page, with `flags` telling its kind. */
static int pagemap_entry_of(int fd, int flags, uint64_t *entry)
{
    char *p = mmap(NULL, PGS_PAGE_SIZE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return ENOMEM;
    p[0] = 1;
    ssize_t n = pread(fd, entry, 8, (off_t)(((uintptr_t)p >> PGS_PAGE_SHIFT) * 8));
    int e = n < 0 ? errno : n == 8 ? 0 : EIO;
    munmap(p, PGS_PAGE_SIZE);
    return e;
}

static int probe_pagemap(void)
{
    int fd = pgs__pagemap_open();
    if (fd < 0) return -fd;
    uint64_t mine = 0, shared = 0;
    int e = pagemap_entry_of(fd, MAP_PRIVATE, &mine);
    if (e == 0) e = pagemap_entry_of(fd, MAP_SHARED, &shared);
    close(fd);
    if (e) return e;
    uint64_t bits = PGS__PM_PRESENT | PGS__PM_FILE;
    return (mine & bits) == PGS__PM_PRESENT && (shared & bits) == bits ? ON : OFF_WRONG;
}

static int probe_collapse(void)
{
    /* Of no bytes: the kernel checks the advice first, then has nothing to do. */
    static char here;
    void *p = (void *)((uintptr_t)&here & ~(uintptr_t)(PGS_PAGE_SIZE - 1));
    return madvise(p, 0, MADV_COLLAPSE) < 0 ? errno : ON;
}

static int probe_big_window(void)
{
    if (UNDER_SANITIZER) return OFF_SANITIZER;
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) return OFF_LIMIT;
    size_t len = (size_t)16 << 40;
    void *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return errno;
    munmap(p, len);
    return ON;
}

static int probe_proc_fd(void)
{
    int fd = memfd_create("pagestone-probe", MFD_CLOEXEC);
    if (fd < 0) return errno;
    char path[PGS__PROC_FD_PATH];
    pgs__proc_fd_path(path, fd);
    int again = open(path, O_RDWR | O_CLOEXEC), e = again < 0 ? errno : ON;
    if (again >= 0) close(again);
    close(fd);
    return e;
}

static int probe_ofd(void)
{
    int fd = memfd_create("pagestone-probe", MFD_CLOEXEC);
    if (fd < 0) return errno;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    int e = fcntl(fd, F_OFD_GETLK, &lock) < 0 ? errno : ON;
    close(fd);
    return e;
}

/* Whether a mount succeeds is seen when one is wanted; this is what never changes. */
static int probe_fuse(void)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return errno;
    close(fd);
    if (geteuid() == 0 || access("/usr/bin/fusermount3", X_OK) == 0 || access("/bin/fusermount3", X_OK) == 0) return ON;
    return errno;
}

static int probe_cpu(enum pgs__cap cap)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (cap == PGS__CAP_AVX2) return __builtin_cpu_supports("avx2") ? ON : OFF_CPU;
    return __builtin_cpu_supports("avx512f") ? ON : OFF_CPU;
#else
    (void)cap;
    return OFF_CPU;
#endif
}

static int probe(enum pgs__cap cap)
{
    if (switched_off(names[cap])) return OFF_ENV;
    switch (cap) {
    case PGS__CAP_PAGEMAP_SCAN:
        return probe_pagemap_scan();
    case PGS__CAP_PAGEMAP:
        return probe_pagemap();
    case PGS__CAP_COLLAPSE:
        return probe_collapse();
    case PGS__CAP_BIG_WINDOW:
        return probe_big_window();
    case PGS__CAP_PROC_FD:
        return probe_proc_fd();
    case PGS__CAP_MAP_WRITE:
    case PGS__CAP_MEMORY_LIMIT:
        return ON; /* a choice, not a feature: every kernel can */
    case PGS__CAP_OFD:
        return probe_ofd();
    case PGS__CAP_AVX2:
    case PGS__CAP_AVX512:
        return probe_cpu(cap);
    case PGS__CAP_FUSE:
        return probe_fuse();
    case PGS__CAP_N:
        break;
    }
    pgs__bug(__FILE__, __LINE__, "no such capability");
}

static int result_of(enum pgs__cap cap)
{
    /* Relaxed: the word is all there is, and a second probe gives the same. */
    int r = atomic_load_explicit(&results[cap], memory_order_relaxed);
    if (PGS_LIKELY(r != UNKNOWN)) return r;
    int saved = errno;
    r = probe(cap);
    errno = saved;
    atomic_store_explicit(&results[cap], r, memory_order_relaxed);
    return r;
}

bool pgs__cap(enum pgs__cap cap)
{
    return result_of(cap) == ON;
}

const char *pgs__cap_name(enum pgs__cap cap)
{
    return names[cap];
}

const char *pgs__cap_reason(enum pgs__cap cap)
{
    int r = result_of(cap);
    switch (r) {
    case ON:
        return "";
    case OFF_ENV:
        return "switched off by PAGESTONE_WITHOUT";
    case OFF_CPU:
        return "the CPU has none";
    case OFF_LIMIT:
        return "RLIMIT_AS is set";
    case OFF_SANITIZER:
        return "built with a sanitizer";
    case OFF_WRONG:
        return "the kernel's answer is not Linux's";
#define CASE(e)                                                                                                        \
    case e:                                                                                                            \
        return "kernel: " #e;
        PGS__ERRNO_NAMES(CASE)
#undef CASE
    default:
        return "kernel: unknown errno";
    }
}

void pgs__caps_reset(void)
{
    for (int i = 0; i < PGS__CAP_N; i++)
        atomic_store_explicit(&results[i], UNKNOWN, memory_order_relaxed); /* as above */
}
