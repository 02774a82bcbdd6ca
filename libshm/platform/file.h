/* Pagestone | platform/file — files behind a table of functions.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Every file operation of the library goes through the table that pgs__file_ops points to: in production the
 * real calls, in tests a recorder, an injector or a replayer stacked on top of them. Nothing else in libshm calls open, pread,
 * pwrite, ftruncate, fallocate, fsync, mmap of a file, rename, unlink, mkdir or rmdir directly. (Anonymous memory, and munmap and madvise of
 * our own mappings, go through platform/vm.h or are called directly; platform itself reads /proc directly.)
 *
 * Conventions: functions return ≥ 0 or -errno (never set errno, never return short on success of a *_full call), handle EINTR,
 * are thread-safe, and always open with O_CLOEXEC.
 */
#ifndef PGS_PLATFORM_FILE_H
#define PGS_PLATFORM_FILE_H

#include <sys/stat.h>
#include <sys/types.h>

#include "libshm/platform/base.h"

/* What a mapping is for: the recorder compares WRITE mappings at every barrier. */
enum pgs__map_kind {
    PGS__MAP_READ,     /* MAP_SHARED, PROT_READ */
    PGS__MAP_WRITE,    /* MAP_SHARED, PROT_READ | PROT_WRITE: only over pages that nobody else can see */
    PGS__MAP_COW,      /* MAP_PRIVATE | MAP_NORESERVE, PROT_READ | PROT_WRITE */
    PGS__MAP_COW_READ, /* MAP_PRIVATE, PROT_READ */
};

#define PGS__IMAGE_MEMFD "pagestone-image" /* a cache: the recorder leaves it out */
struct pgs__file_ops {
    int (*open)(const char *path, int flags, mode_t mode); /* fd */
    int (*openat)(int dir_fd, const char *name, int flags, mode_t mode);
    int (*memfd)(const char *name); /* memfd_create(MFD_CLOEXEC) */
    int (*close)(int fd);
    ssize_t (*pread)(int fd, void *buf, size_t n, off_t off);
    ssize_t (*pwrite)(int fd, const void *buf, size_t n, off_t off);
    int (*ftruncate)(int fd, off_t size);
    int (*fallocate)(int fd, int mode, off_t off, off_t len); /* mode as in fallocate(2) */
    int (*fdatasync)(int fd);
    int (*fsync)(int fd);
    int (*fstat)(int fd, struct stat *st);
    off_t (*seek)(int fd, off_t off,
                  int whence); /* lseek(2) with SEEK_DATA, SEEK_HOLE: where; nobody uses the position */
    int (*renameat)(int dir_fd, const char *from, const char *to);
    int (*unlinkat)(int dir_fd, const char *name);
    int (*mkdir)(const char *path, mode_t mode);
    int (*rmdir)(const char *path);
    /* addr != NULL: MAP_FIXED over a range that the caller has reserved. Returns MAP_FAILED and sets *rc = -errno. */
    void *(*map)(int fd, enum pgs__map_kind kind, void *addr, size_t len, off_t off, int *rc);
    /* Every MAP_WRITE mapping ends here (also those that turn private), so that a recorder sees the last stores. */
    int (*unmap)(void *addr, size_t len);
};

extern const struct pgs__file_ops pgs__file_ops_real;
/* The table in force. Set once at start-up of a test, before any store is open. Never NULL. */
extern const struct pgs__file_ops *pgs__file_ops;

/* Whole transfers: 0 or -errno (-EIO for an unexpected end of file on read). */
int pgs__pread_full(int fd, void *buf, size_t n, uint64_t off);
int pgs__pwrite_full(int fd, const void *buf, size_t n, uint64_t off);

/* Kind of file system under fd. FUSE counts as network: nothing tells sshfs from a local one. Unknown ones are PGS__FS_DISK, named "fs 0x…".
 * -ENOTSUP, with the name filled: hugetlbfs, which has no pwrite. */
enum pgs__fs_kind {
    PGS__FS_TMPFS,
    PGS__FS_DISK_MAPWRITE /* ext4, xfs: stores after fallocate are safe */,
    PGS__FS_DISK,
    PGS__FS_NETWORK
};
int pgs__fs_kind(int fd, enum pgs__fs_kind *kind, char name[32]); /* name: "tmpfs", "nfs", …, for messages */
/* Bytes that the file system (in memory: the machine) could hold if it were empty; UINT64_MAX: unknown. */
uint64_t pgs__fs_most(int fd);
/* Bytes that the file system under fd still has for this user. UINT64_MAX: it does not say, or has no limit. */
uint64_t pgs__fs_room(int fd);

#endif
