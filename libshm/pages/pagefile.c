/* Pagestone | pages/pagefile — the page file: opening, writing, growing, giving back, and whose descriptor it is.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Addresses of pages are window.c's, superblocks super.c's, big fresh data fresh.c's. Here is what touches the descriptor.
 * A host program may close any descriptor (daemons close all of them) and the number may name another file a moment later, so nothing
 * here believes pf->fd where believing would do harm: the size is taken from the right inode only, a commit begins with
 * pgs__pagefile_check_fd, and pgs__pagefile_fini closes only what still is ours.
 */
#define _GNU_SOURCE 1
#include "libshm/pages/pagefile.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "libshm/pages/room.h"
#include "libshm/pages/window.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/mem.h"

#define GROW_MIN_CHUNKS 64u             /* 128 MiB of a sparse file cost nothing, and few files grow often */
#define GROW_LOCK ((1ull << 62) - 1)    /* OFD lock byte, below those of control_format.h */
#define GROW_LOCK_TRIES 20000u          /* of 100 µs */
#define DIRECT_BOUNCE (256u << 10)      /* bytes of an O_DIRECT read at a time */
#define DIRECT_ALIGN ((uintptr_t)4096u) /* no device asks for more */

/* --- opening and closing ---------------------------------------------------------------------------------------- */

static bool is_ours(const struct pgs__pagefile *pf, int fd, struct stat *st)
{
    return fd >= 0 && pgs__file_ops->fstat(fd, st) == 0 && (uint64_t)st->st_dev == pf->dev &&
           (uint64_t)st->st_ino == pf->ino;
}

static void see_size(struct pgs__pagefile *pf, const struct stat *st)
{
    uint64_t size = pgs__min_u64((uint64_t)st->st_size >> PGS_PAGE_SHIFT, PGS__MAX_PAGES);
    uint64_t seen = atomic_load_explicit(&pf->n_pages, memory_order_relaxed);
    /* relaxed: the number promises only that the file has so many pages; their bytes are ordered by whoever named the page */
    while (seen < size && !atomic_compare_exchange_weak_explicit(&pf->n_pages, &seen, size, memory_order_relaxed,
                                                                 memory_order_relaxed)) {
    }
}

int pgs__pagefile_init(struct pgs__pagefile *pf, int fd, int dir_fd, const char *path, bool writable,
                       struct pgs_error *err)
{
    struct stat st;
    char fs_name[32];
    int rc = pgs__file_ops->fstat(fd, &st);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot look at the page file");
    if (!S_ISREG(st.st_mode)) return pgs__fail(err, PGS_ENOTSTORE, "the page file is not a regular file");
    memset(pf, 0, sizeof *pf);
    rc = pgs__fs_kind(fd, &pf->fs, fs_name);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot find out the file system of the page file");
    atomic_init(&pf->fd, fd);
    pf->dir_fd = dir_fd;
    pf->writable = writable;
    pf->anonymous = path == NULL && dir_fd < 0;
    pf->dev = (uint64_t)st.st_dev;
    pf->ino = (uint64_t)st.st_ino;
    see_size(pf, &st);
    if (path) {
        size_t len = strlen(path) + 1;
        pf->path = pgs__malloc(len);
        if (!pf->path) return pgs__fail(err, PGS_ENOMEM, "no memory to open the store");
        memcpy(pf->path, path, len);
    }
    rc = pgs__window_init(pf, err);
    if (rc) {
        pgs__free(pf->path);
        pf->path = NULL;
    }
    return rc;
}

void pgs__pagefile_fini(struct pgs__pagefile *pf)
{
    struct stat st;
    pgs__window_fini(pf);
    int rc = pgs__file_ops->fstat(pf->fd, &st);
    bool foreign = rc == 0 && ((uint64_t)st.st_dev != pf->dev || (uint64_t)st.st_ino != pf->ino);
    if (rc != -EBADF && !foreign) pgs__file_ops->close(pf->fd);
    if (pf->dir_fd >= 0 && pgs__file_ops->fstat(pf->dir_fd, &st) == 0 && S_ISDIR(st.st_mode))
        pgs__file_ops->close(pf->dir_fd);
    pgs__free(pf->path);
    pf->path = NULL;
    pf->fd = pf->dir_fd = -1;
}

/* --- I4: is the descriptor still ours? -------------------------------------------------------------------------- */

/* Open the file again, with `flags`; the inode is checked. -1: not possible. */
static int reopen(struct pgs__pagefile *pf, int flags)
{
    struct stat st;
    char name[4200];
    int fd = -1;
    flags |= O_CLOEXEC | O_NOFOLLOW;
    if (pf->dir_fd >= 0) { /* the directory's number may be another file's too: then the inode does not match */
        fd = pgs__file_ops->openat(pf->dir_fd, PGS__PAGES_NAME, flags, 0);
        if (is_ours(pf, fd, &st)) return fd;
        if (fd >= 0) pgs__file_ops->close(fd);
    }
    if (pf->path && (size_t)snprintf(name, sizeof name, "%s/%s", pf->path, PGS__PAGES_NAME) < sizeof name) {
        fd = pgs__file_ops->open(name, flags, 0);
        if (is_ours(pf, fd, &st)) return fd;
        if (fd >= 0) pgs__file_ops->close(fd);
    }
    if (is_ours(pf, pf->fd, &st) && pgs__cap(PGS__CAP_PROC_FD)) { /* renamed, unlinked or anonymous, and still open */
        snprintf(name, sizeof name, "/proc/self/fd/%d", pf->fd);
        fd = pgs__file_ops->open(name, flags & ~O_NOFOLLOW, 0);
        if (is_ours(pf, fd, &st)) return fd;
        if (fd >= 0) pgs__file_ops->close(fd);
    }
    return -1;
}

int pgs__pagefile_check_fd(struct pgs__pagefile *pf, struct pgs_error *err)
{
    struct stat st;
    int old = pf->fd, rc = pgs__file_ops->fstat(old, &st);
    if (rc < 0 && rc != -EBADF) return pgs__fail_os(err, -rc, "cannot look at the page file");
    if (rc == 0 && (uint64_t)st.st_dev == pf->dev && (uint64_t)st.st_ino == pf->ino) {
        see_size(pf, &st);
        if (st.st_nlink == 0 && !pf->anonymous) atomic_store(&pf->unlinked, true);
        return 0;
    }
    if (pf->anonymous && !pf->path) return pgs__fail(err, PGS_EIO, "the store's descriptor was closed by the program");
    int fd = reopen(pf, pf->writable ? O_RDWR : O_RDONLY);
    if (fd < 0)
        return pgs__fail(err, PGS_EIO,
                         "the store's descriptor was closed by the program, and %s/%s is not the same file any more",
                         pf->path ? pf->path : "…", PGS__PAGES_NAME);
    if (!atomic_compare_exchange_strong(&pf->fd, &old, fd)) pgs__file_ops->close(fd); /* another thread was first */
    if (is_ours(pf, pf->fd, &st)) see_size(pf, &st);
    return 0;
}

void pgs__pagefile_refresh(struct pgs__pagefile *pf)
{
    struct stat st;
    if (is_ours(pf, pf->fd, &st))
        see_size(pf, &st);
    else
        (void)pgs__pagefile_check_fd(pf, NULL); /* sees the size, too; without success the old size stays */
}

bool pgs__pagefile_holds(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages)
{
    for (int i = 0; i < 2; i++) {
        /* relaxed: it only grows, and a stale value only costs another look */
        uint64_t size = atomic_load_explicit(&pf->n_pages, memory_order_relaxed);
        if (n_pages <= size && page <= size - n_pages) return true;
        if (i == 0) pgs__pagefile_refresh(pf);
    }
    return false;
}

/* --- writing and reading ---------------------------------------------------------------------------------------- */

int pgs__pages_write(struct pgs__pagefile *pf, struct pgs_pgno page, const void *buf, uint64_t n_pages,
                     struct pgs_error *err)
{
    /* Never beyond the end: it would grow the file by an odd amount. Claims grow it first, so somebody cut the file short. */
    if (!pgs__pagefile_holds(pf, page.n, n_pages))
        return pgs__fail_corrupt(err, "the page file", "the page file was cut short: page %llu lies beyond its end",
                                 (unsigned long long)page.n);
    int rc = pgs__room_take(pf, page.n, n_pages, true);
    if (rc == 0) rc = pgs__pwrite_full(pf->fd, buf, (size_t)n_pages << PGS_PAGE_SHIFT, page.n << PGS_PAGE_SHIFT);
    if (rc < 0)
        return pgs__fail_os(err, -rc, "cannot write %llu pages at page %llu", (unsigned long long)n_pages,
                            (unsigned long long)page.n);
    return 0;
}

static void *align_up(void *p)
{
    return (void *)(((uintptr_t)p + DIRECT_ALIGN - 1) & ~(DIRECT_ALIGN - 1));
}

/* 0 or -errno. -EINVAL: the file system does not do O_DIRECT. */
static int read_direct(struct pgs__pagefile *pf, uint64_t off, uint8_t *buf, uint64_t len)
{
    int fd = reopen(pf, O_RDONLY | O_DIRECT);
    if (fd < 0) return -EINVAL;
    void *heap = pgs__malloc(DIRECT_BOUNCE + DIRECT_ALIGN);
    int rc = heap ? 0 : -ENOMEM;
    for (uint64_t done = 0; rc == 0 && done < len;) {
        uint64_t n = pgs__min_u64(len - done, DIRECT_BOUNCE);
        rc = pgs__pread_full(fd, align_up(heap), (size_t)n, off + done);
        if (rc == 0) memcpy(buf + done, align_up(heap), (size_t)n);
        done += n;
    }
    pgs__free(heap);
    pgs__file_ops->close(fd);
    return rc;
}

int pgs__pages_read(struct pgs__pagefile *pf, struct pgs_pgno page, void *buf, uint64_t n_pages, bool direct,
                    struct pgs_error *err)
{
    if (page.n >= PGS__MAX_PAGES || n_pages > PGS__MAX_PAGES)
        return pgs__fail_corrupt(err, NULL, "page %llu lies beyond every file", (unsigned long long)page.n);
    uint64_t off = page.n << PGS_PAGE_SHIFT, len = n_pages << PGS_PAGE_SHIFT;
    int rc = -EINVAL;
    /* On tmpfs the page cache is the medium; elsewhere a file system without O_DIRECT has to be believed. */
    if (direct && pf->fs != PGS__FS_TMPFS) rc = read_direct(pf, off, buf, len);
    if (rc == -EINVAL) rc = pgs__pread_full(pf->fd, buf, (size_t)len, off);
    if (rc < 0)
        return pgs__fail_os(err, -rc, "cannot read %llu pages at page %llu", (unsigned long long)n_pages,
                            (unsigned long long)page.n);
    return 0;
}

/* --- growing and giving back ------------------------------------------------------------------------------------ */

/* Where the file system has no fallocate. ftruncate sets a size, so two processes that grow at once could cut off each other's
 * pages: one at a time, then, under a lock of a description of our own, and never to less than what is there. */
static int grow_locked(struct pgs__pagefile *pf, uint64_t size)
{
    struct stat st;
    int fd = reopen(pf, O_RDWR), rc = fd < 0 ? -EBADF : -EAGAIN;
    const struct timespec pause = {.tv_nsec = 100000};
    for (unsigned i = 0; fd >= 0 && i < GROW_LOCK_TRIES; i++) {
        rc = pgs__ofd_lock(fd, GROW_LOCK, true);
        if (rc != -EAGAIN) break;
        nanosleep(&pause, NULL);
    }
    if (rc == 0) rc = pgs__file_ops->fstat(fd, &st);
    if (rc == 0 && (uint64_t)st.st_size < size) {
        PGS_KILL_POINT("pagefile_grow_locked");
        rc = pgs__file_ops->ftruncate(fd, (off_t)size);
    }
    if (fd >= 0) pgs__file_ops->close(fd); /* and with it the lock */
    return rc;
}

/* fallocate of the last page grows the file in one step under the inode's lock: it can neither shrink the file nor change a
 * byte of a page that another process already uses (a pwrite of the last byte could). */
static int grow_to(struct pgs__pagefile *pf, uint64_t n_pages)
{
    uint64_t size = n_pages << PGS_PAGE_SHIFT;
    struct rlimit limit; /* asked first: going over it raises SIGXFSZ, which kills */
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && size > limit.rlim_cur) return -EFBIG;
    int rc = pgs__file_ops->fallocate(pf->fd, 0, (off_t)(size - PGS_PAGE_SIZE), PGS_PAGE_SIZE);
    if (rc == -EOPNOTSUPP || rc == -ENOSYS) rc = grow_locked(pf, size);
    return rc;
}

static bool is_full(int rc)
{
    return rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG;
}

static uint64_t chunks_up(uint64_t n_pages)
{
    return (n_pages + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES * PGS_CHUNK_PAGES;
}

int pgs__pagefile_grow(struct pgs__pagefile *pf, uint64_t n_pages, struct pgs_error *err)
{
    int rc = pgs__pagefile_check_fd(pf, err); /* sees the newest size */
    if (rc) return rc;
    uint64_t size = atomic_load(&pf->n_pages);
    if (n_pages > PGS__MAX_PAGES)
        return pgs__fail(err, PGS_EFULL, "a page file cannot grow beyond %llu pages", PGS__MAX_PAGES);
    uint64_t need = chunks_up(pgs__max_u64(n_pages, PGS__SUPER_PAGE_1 + 1));
    if (need <= size) return 0;
    uint64_t ample = chunks_up(size + pgs__max_u64(size / 4, GROW_MIN_CHUNKS * PGS_CHUNK_PAGES));
    ample = pgs__min_u64(pgs__max_u64(need, ample), PGS__MAX_PAGES);
    rc = grow_to(pf, ample);
    if (is_full(rc) && need < ample) rc = grow_to(pf, need);
    if (is_full(rc))
        return pgs__fail(err, PGS_EFULL,
                         rc == -EFBIG ? "the page file cannot grow to %llu pages: a limit on file sizes"
                                      : "no space to grow the page file to %llu pages",
                         (unsigned long long)need);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot grow the page file to %llu pages", (unsigned long long)need);
    pgs__pagefile_refresh(pf);
    if (atomic_load(&pf->n_pages) < n_pages)
        return pgs__fail(err, PGS_EIO, "the page file did not grow to %llu pages", (unsigned long long)need);
    return 0;
}

void pgs__pagefile_punch(struct pgs__pagefile *pf, uint64_t first_chunk, uint64_t n_chunks)
{
    struct stat st;
    PGS_BUG_ON(first_chunk < 2);           /* superblocks: pages 0 and 512 */
    if (!is_ours(pf, pf->fd, &st)) return; /* I4: a hole in somebody else's file */
    (void)pgs__file_ops->fallocate(pf->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   (off_t)(first_chunk * PGS_CHUNK_SIZE), (off_t)(n_chunks * PGS_CHUNK_SIZE));
}

void pgs__pagefile_punch_pages(struct pgs__pagefile *pf, struct pgs_run run)
{
    PGS_BUG_ON(run.page.n == PGS__SUPER_PAGE_0 || run.n_pages == 0 ||
               (run.page.n <= PGS__SUPER_PAGE_1 && PGS__SUPER_PAGE_1 < run.page.n + run.n_pages));
    (void)pgs__file_ops->fallocate(pf->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   (off_t)(run.page.n << PGS_PAGE_SHIFT), (off_t)(run.n_pages << PGS_PAGE_SHIFT));
}

int pgs__pagefile_barrier(struct pgs__pagefile *pf, struct pgs_error *err)
{
    int rc = pgs__pagefile_check_fd(pf, err); /* success on another file would be a promise that nobody kept */
    if (rc == 0) {
        rc = pgs__file_ops->fdatasync(pf->fd);
        if (rc < 0) pgs__fail_os(err, -rc, "the disk did not take the store's data (fdatasync)");
    }
    if (rc == 0) return 0;
    if (err) err->code = PGS_EIO; /* whatever the reason: the caller poisons the store */
    return -PGS_EIO;
}

uint64_t pgs__pagefile_resident(struct pgs__pagefile *pf)
{
    struct stat st;
    return is_ours(pf, pf->fd, &st) ? (uint64_t)st.st_blocks * 512 : 0;
}
