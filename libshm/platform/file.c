/* Pagestone | platform/file — the real table: system calls, EINTR, and nothing else.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each entry consults the failure injector first (constant 0 outside test builds). An injected failure of close and unmap is reported
 * after the deed, as Linux does it: a caller that ignores the error must not leak. Other tables (recorder, injector of a test)
 * are stacked on this one.
 */
#define _GNU_SOURCE
#include "libshm/platform/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "libshm/platform/inject.h"

PGS_STATIC(sizeof(off_t) == 8, "offsets of 64 bits");

#define INJECT_FILE()                                                                                                  \
    do {                                                                                                               \
        int injected = PGS_INJECT(PGS__FAIL_FILE);                                                                     \
        if (injected) return -injected;                                                                                \
    } while (0)
/* Repeat `call` while a signal interrupts it; -errno on failure. */
#define RETRY(type, call)                                                                                              \
    __extension__({                                                                                                    \
        type retry_rc;                                                                                                 \
        do retry_rc = (call);                                                                                          \
        while (retry_rc < 0 && errno == EINTR);                                                                        \
        retry_rc < 0 ? (type)-errno : retry_rc;                                                                        \
    })

static int real_open(const char *path, int flags, mode_t mode)
{
    INJECT_FILE();
    return RETRY(int, open(path, flags | O_CLOEXEC, mode));
}

static int real_openat(int dir_fd, const char *name, int flags, mode_t mode)
{
    INJECT_FILE();
    return RETRY(int, openat(dir_fd, name, flags | O_CLOEXEC, mode));
}

static int real_memfd(const char *name)
{
    INJECT_FILE();
    return RETRY(int, memfd_create(name, MFD_CLOEXEC));
}

static int real_close(int fd)
{
    int injected = PGS_INJECT(PGS__FAIL_FILE);
    /* EINTR: Linux has closed it all the same; a second close could hit another thread's descriptor. */
    int rc = close(fd) < 0 && errno != EINTR ? -errno : 0;
    return injected ? -injected : rc;
}

static ssize_t real_pread(int fd, void *buf, size_t n, off_t off)
{
    INJECT_FILE();
    return RETRY(ssize_t, pread(fd, buf, n, off));
}

static ssize_t real_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    INJECT_FILE();
    return RETRY(ssize_t, pwrite(fd, buf, n, off));
}

static int real_ftruncate(int fd, off_t size)
{
    INJECT_FILE();
    return RETRY(int, ftruncate(fd, size));
}

static int real_fallocate(int fd, int mode, off_t off, off_t len)
{
    INJECT_FILE();
    return RETRY(int, fallocate(fd, mode, off, len));
}

static int real_fdatasync(int fd)
{
    INJECT_FILE();
    /* Not retried on EINTR nor on anything else: a second call reports success for pages that the first one lost. */
    return fdatasync(fd) < 0 ? -errno : 0;
}

static int real_fsync(int fd)
{
    INJECT_FILE();
    return fsync(fd) < 0 ? -errno : 0; /* as fdatasync */
}

static int real_fstat(int fd, struct stat *st)
{
    INJECT_FILE();
    return RETRY(int, fstat(fd, st));
}

static off_t real_seek(int fd, off_t off, int whence)
{
    INJECT_FILE();
    return RETRY(off_t, lseek(fd, off, whence));
}

static int real_renameat(int dir_fd, const char *from, const char *to)
{
    INJECT_FILE();
    return RETRY(int, renameat(dir_fd, from, dir_fd, to));
}

static int real_unlinkat(int dir_fd, const char *name)
{
    INJECT_FILE();
    return RETRY(int, unlinkat(dir_fd, name, 0));
}

static int real_mkdir(const char *path, mode_t mode)
{
    INJECT_FILE();
    return RETRY(int, mkdir(path, mode));
}

static int real_rmdir(const char *path)
{
    INJECT_FILE();
    return RETRY(int, rmdir(path));
}

static void *real_map(int fd, enum pgs__map_kind kind, void *addr, size_t len, off_t off, int *rc)
{
    static const struct {
        int prot, flags;
    } kinds[] = {
        [PGS__MAP_READ] = {PROT_READ, MAP_SHARED},
        [PGS__MAP_WRITE] = {PROT_READ | PROT_WRITE, MAP_SHARED},
        [PGS__MAP_COW] = {PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE},
        [PGS__MAP_COW_READ] = {PROT_READ, MAP_PRIVATE},
    };
    int injected = PGS_INJECT(PGS__FAIL_MAP);
    if (injected) {
        *rc = -injected;
        return MAP_FAILED;
    }
    void *p = mmap(addr, len, kinds[kind].prot, kinds[kind].flags | (addr ? MAP_FIXED : 0), fd, off);
    *rc = p == MAP_FAILED ? -errno : 0;
    return p;
}

static int real_unmap(void *addr, size_t len)
{
    return munmap(addr, len) < 0 ? -errno : 0;
}

const struct pgs__file_ops pgs__file_ops_real = {
    .open = real_open,
    .openat = real_openat,
    .memfd = real_memfd,
    .close = real_close,
    .pread = real_pread,
    .pwrite = real_pwrite,
    .ftruncate = real_ftruncate,
    .fallocate = real_fallocate,
    .fdatasync = real_fdatasync,
    .fsync = real_fsync,
    .fstat = real_fstat,
    .seek = real_seek,
    .renameat = real_renameat,
    .unlinkat = real_unlinkat,
    .mkdir = real_mkdir,
    .rmdir = real_rmdir,
    .map = real_map,
    .unmap = real_unmap,
};
const struct pgs__file_ops *pgs__file_ops = &pgs__file_ops_real;

/* --- whole transfers -------------------------------------------------------------------------------------------------- */
/* Offsets often come from the file: one that no off_t holds is an error, not a negative number. */
static bool range_ok(size_t n, uint64_t off)
{
    return off <= INT64_MAX && n <= INT64_MAX - off;
}

int pgs__pread_full(int fd, void *buf, size_t n, uint64_t off)
{
    if (!range_ok(n, off)) return -EINVAL;
    for (size_t done = 0; done < n;) {
        ssize_t got = pgs__file_ops->pread(fd, (char *)buf + done, n - done, (off_t)(off + done));
        if (got < 0) return (int)got;
        if (got == 0) return -EIO;
        done += (size_t)got;
    }
    return 0;
}

int pgs__pwrite_full(int fd, const void *buf, size_t n, uint64_t off)
{
    if (!range_ok(n, off)) return -EINVAL;
    for (size_t done = 0; done < n;) {
        ssize_t put = pgs__file_ops->pwrite(fd, (const char *)buf + done, n - done, (off_t)(off + done));
        if (put < 0) return (int)put;
        if (put == 0) return -EIO; /* never seen on files; the loop must end nevertheless */
        done += (size_t)put;
    }
    return 0;
}

/* --- kinds of file systems -------------------------------------------------------------------------------------------- */
/* Numbers as in linux/magic.h and the file systems' own sources: old headers lack half of them. Network: page caches of two hosts, locks or
 * mappings that are not coherent. FUSE counts as network because nothing tells sshfs from a local file system. */
static const struct {
    uint32_t magic;
    enum pgs__fs_kind kind;
    const char *name;
} file_systems[] = {
    {0x01021994, PGS__FS_TMPFS, "tmpfs"},
    {0x858458f6, PGS__FS_TMPFS, "ramfs"},
    {0x0000ef53, PGS__FS_DISK_MAPWRITE, "ext4"},
    {0x58465342, PGS__FS_DISK_MAPWRITE, "xfs"},
    {0x9123683e, PGS__FS_DISK, "btrfs"},
    {0x2fc12fc1, PGS__FS_DISK, "zfs"},
    {0xca451a4e, PGS__FS_DISK, "bcachefs"},
    {0xf2f52010, PGS__FS_DISK, "f2fs"},
    {0x794c7630, PGS__FS_DISK, "overlay"},
    {0x6969, PGS__FS_NETWORK, "nfs"},
    {0xff534d42, PGS__FS_NETWORK, "cifs"},
    {0xfe534d42, PGS__FS_NETWORK, "smb2"},
    {0x517b, PGS__FS_NETWORK, "smb"},
    {0x65735546, PGS__FS_NETWORK, "fuse"},
    {0x01021997, PGS__FS_NETWORK, "9p"},
    {0x00c36400, PGS__FS_NETWORK, "ceph"},
    {0x5346414f, PGS__FS_NETWORK, "afs"},
    {0x6b414653, PGS__FS_NETWORK, "afs"},
    {0x0bd00bd0, PGS__FS_NETWORK, "lustre"},
    {0x01161970, PGS__FS_NETWORK, "gfs2"},
    {0x7461636f, PGS__FS_NETWORK, "ocfs2"},
    {0x73757245, PGS__FS_NETWORK, "coda"},
    {0x47504653, PGS__FS_NETWORK, "gpfs"},
    {0x19830326, PGS__FS_NETWORK, "beegfs"},
};

int pgs__fs_kind(int fd, enum pgs__fs_kind *kind, char name[32])
{
    struct statfs st;
    int rc = RETRY(int, fstatfs(fd, &st));
    if (rc < 0) return rc;
    uint32_t magic = (uint32_t)st.f_type; /* sign-extended on some systems */
    if (magic == 0x958458f6) {            /* hugetlbfs: pages of 2 MiB, no pwrite */
        snprintf(name, 32, "hugetlbfs");
        return -ENOTSUP;
    }
    for (size_t i = 0; i < PGS_ARRAY_LEN(file_systems); i++)
        if (file_systems[i].magic == magic) {
            *kind = file_systems[i].kind;
            snprintf(name, 32, "%s", file_systems[i].name);
            return 0;
        }
    *kind = PGS__FS_DISK; /* pwrite and read mappings: what every local file system can do */
    snprintf(name, 32, "fs 0x%x", magic);
    return 0;
}

uint64_t pgs__fs_most(int fd)
{
    struct statfs st;
    struct sysinfo si;
    if (RETRY(int, fstatfs(fd, &st)) < 0) return UINT64_MAX;
    uint64_t most = st.f_blocks ? (uint64_t)st.f_blocks * (uint64_t)st.f_bsize : UINT64_MAX; /* a memfd has no limit */
    if (st.f_type == 0x01021994 && sysinfo(&si) == 0)
        most = pgs__min_u64(most, ((uint64_t)si.totalram + si.totalswap) * si.mem_unit);
    return most;
}

uint64_t pgs__fs_room(int fd)
{
    struct statfs st;
    if (RETRY(int, fstatfs(fd, &st)) < 0 || st.f_blocks == 0 || st.f_bsize <= 0)
        return UINT64_MAX; /* tmpfs without size= */
    return (uint64_t)st.f_bavail * (uint64_t)st.f_bsize;
}
