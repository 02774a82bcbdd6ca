/* Pagestone | platform/ofd — locks of open file descriptions, and locks that a mapping holds.
 * SPDX-License-Identifier: Apache-2.0
 *
 * An OFD lock belongs to the open file description and falls when the last reference to it goes: descriptors *and mappings*. So a mapping of
 * one page, with the descriptor closed at once, is a lock that no stray close can drop (os.closerange in every daemon recipe does),
 * that exec and death release, and that MADV_DONTFORK keeps from children, raw clone included. The page is never touched: the file
 * may be shorter.
 *
 * Between open and close the descriptor itself could be inherited by a fork in another thread. Callers hold the pin table's
 * lock, which the fork hooks take.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/file.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/procfd.h"

#ifndef F_OFD_SETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

static int ofd_call(int fd, int cmd, short type, uint64_t off, uint64_t n, struct flock *lock)
{
    if (n == 0 || n > INT64_MAX || off > INT64_MAX - n) return -EINVAL;
    *lock = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)off, .l_len = (off_t)n};
    int rc;
    do rc = fcntl(fd, cmd, lock);
    while (rc < 0 && errno == EINTR);
    if (rc == 0) return 0;
    return errno == EACCES ? -EAGAIN : -errno; /* POSIX allows either for "held elsewhere" */
}

int pgs__ofd_lock(int fd, uint64_t off, bool exclusive)
{
    struct flock lock;
    return ofd_call(fd, F_OFD_SETLK, exclusive ? F_WRLCK : F_RDLCK, off, 1, &lock);
}

int pgs__ofd_lock_range(int fd, uint64_t off, uint64_t n, bool exclusive)
{
    struct flock lock;
    return ofd_call(fd, F_OFD_SETLK, exclusive ? F_WRLCK : F_RDLCK, off, n, &lock);
}

int pgs__ofd_unlock(int fd, uint64_t off)
{
    struct flock lock;
    return ofd_call(fd, F_OFD_SETLK, F_UNLCK, off, 1, &lock);
}

int pgs__ofd_busy(int fd, uint64_t off)
{
    struct flock lock;
    int rc = ofd_call(fd, F_OFD_GETLK, F_WRLCK, off, 1, &lock);
    return rc < 0 ? rc : lock.l_type != F_UNLCK;
}

/* Consumes fd, a fresh description. */
static int hold(int fd, uint64_t off, bool dont_fork, struct pgs__held_lock *out)
{
    int rc = pgs__ofd_lock(fd, off, true);
    if (rc == 0) {
        void *p = pgs__file_ops->map(fd, PGS__MAP_READ, NULL, PGS_PAGE_SIZE, 0, &rc);
        if (rc == 0) {
            struct pgs__held_lock l = {p};
            if (dont_fork) rc = pgs__held_lock_dontfork(&l);
            if (rc == 0)
                *out = l;
            else
                pgs__held_lock_drop(&l);
        }
    }
    pgs__file_ops->close(fd);
    return rc;
}

int pgs__held_lock_take(int fd, uint64_t off, bool dont_fork, struct pgs__held_lock *out)
{
    if (!pgs__cap(PGS__CAP_PROC_FD)) return -ENOTSUP;
    char path[PGS__PROC_FD_PATH];
    pgs__proc_fd_path(path, fd);
    int fresh = pgs__file_ops->open(path, O_RDWR, 0);
    return fresh < 0 ? fresh : hold(fresh, off, dont_fork, out);
}

int pgs__held_lock_take_at(int dir_fd, const char *name, uint64_t off, bool dont_fork, struct pgs__held_lock *out)
{
    int fresh = pgs__file_ops->openat(dir_fd, name, O_RDWR, 0);
    return fresh < 0 ? fresh : hold(fresh, off, dont_fork, out);
}

int pgs__held_lock_dontfork(struct pgs__held_lock *l)
{
    return madvise(l->map, PGS_PAGE_SIZE, MADV_DONTFORK) < 0 ? -errno : 0;
}

void pgs__held_lock_drop(struct pgs__held_lock *l)
{
    if (l->map) munmap(l->map, PGS_PAGE_SIZE);
    l->map = NULL;
}
