/* Pagestone | fuse/pager — the server of a store's cold data: one file, whose pages are decompressed as they are read.
 * SPDX-License-Identifier: Apache-2.0
 *
 * docs/design/cold.md has the whole. The file "image" is 2^62 bytes long; bytes [128 KiB × s, 128 KiB × (s + 1)) are the decompressed block of slot s, for ever: a slot's number is never given out again. So the
 * kernel may keep every page, attributes are valid for ever, and nothing is ever invalidated. Pages of slots
 * that are gone are zeros: nobody may look at them, but readahead reads them. Slots that are still to be used fail: the kernel may not keep anything for them, and the library leaves room behind its newest blocks
 * (pgs__ledger_cold_seal), so that readahead rarely gets there.
 *
 * The file says whose it is without asking the server: atime holds a magic number and, as nanoseconds, the supervisor's pid; mtime and ctime the store's uuid (62 bits each) and, as nanoseconds of ctime,
 * when the supervisor began; the owner is whoever runs it. A process that finds a descriptor of it by a number in another process's slot checks all that before it maps anything.
 *
 * OPEN is answered with ENOSYS: from the second one on the kernel does not ask, so opening cannot hang on a stopped server, and what is open needs no count: the mount has no name,
 * and the kernel ends the connection when the last descriptor or mapping is gone.
 *
 * The store may be named by its handle, "handle:" and hexadecimal digits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse/blocks.h"
#include "fuse/image.h"
#include "fuse/server.h"

#define FOREVER 1e9 /* seconds */
#define ROOT 1

struct pager {
    pgs_store *store;
    struct stat root, image;
};
static struct pager pager;

/* --- the store ------------------------------------------------------------------------------------------------------------------- */
static int digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int open_store(const char *name, pgs_store **out, struct pgs_error *err)
{
    static const char prefix[] = "handle:";
    const struct pgs_options opt = {.mode = PGS_MODE_R, .timeout_ns = INT64_C(4000000000)};
    uint8_t handle[4096];
    size_t n = 0;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return pgs_open(name, &opt, out, err);
    for (const char *p = name + sizeof prefix - 1; p[0] && p[1] && n < sizeof handle; p += 2) {
        int hi = digit(p[0]), lo = digit(p[1]);
        if (hi < 0 || lo < 0) break;
        handle[n++] = (uint8_t)(hi << 4 | lo);
    }
    return pgs_open_handle(handle, n, &opt, out, err);
}

/* Field 22 of /proc/<pid>/stat; the second field may contain anything. */
static uint64_t began(pid_t pid)
{
    char path[32], text[1024], *p;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[n < 0 ? 0 : n] = 0;
    p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++) p = strchr(p + 1, ' ');
    return p ? strtoull(p + 1, NULL, 10) % IMAGE_TICKS : 0;
}

static void describe(struct pager *p, const uint8_t uuid[16])
{
    struct stat *st = &p->image;
    p->root = (struct stat){
        .st_ino = ROOT, .st_mode = S_IFDIR | 0500, .st_nlink = 2, .st_uid = geteuid(), .st_gid = getegid()};
    *st = (struct stat){.st_ino = IMAGE_INODE,
                        .st_mode = S_IFREG | 0400,
                        .st_nlink = 1,
                        .st_uid = geteuid(),
                        .st_gid = getegid(),
                        .st_blksize = PGS_COLD_BLOCK};
    st->st_size = (off_t)IMAGE_BYTES;
    st->st_atim.tv_sec = (time_t)IMAGE_MAGIC;
    st->st_atim.tv_nsec = getppid();
    st->st_mtim.tv_sec = (time_t)image_half(uuid);
    st->st_ctim.tv_sec = (time_t)image_half(uuid + 8);
    st->st_ctim.tv_nsec = (long)began(getppid());
}

static int pager_start(struct server *s, void **data, char *why, size_t why_len)
{
    struct pgs_error err = {0};
    struct pgs_info info;
    int rc = open_store(s->opt->store, &pager.store, &err);
    if (rc == 0) rc = pgs_store_info(pager.store, &info, &err);
    if (rc) {
        snprintf(why, why_len, "%s", err.text[0] ? err.text : pgs_strerror(rc));
        return -1;
    }
    describe(&pager, info.uuid);
    *data = &pager;
    return 0;
}

static void pager_stop(void *data)
{
    struct pager *p = data;
    pgs_store_unref(p->store);
}

/* --- requests -------------------------------------------------------------------------------------------------------------------- */
static void pager_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct pager *p = fuse_req_userdata(req);
    if (parent != ROOT || strcmp(name, "image") != 0) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    struct fuse_entry_param e = {
        .ino = IMAGE_INODE, .attr = p->image, .attr_timeout = FOREVER, .entry_timeout = FOREVER};
    fuse_reply_entry(req, &e);
}

static void pager_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct pager *p = fuse_req_userdata(req);
    (void)fi;
    if (ino == ROOT || ino == IMAGE_INODE)
        fuse_reply_attr(req, ino == ROOT ? &p->root : &p->image, FOREVER);
    else
        fuse_reply_err(req, ENOENT);
}

static void pager_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    fuse_reply_err(req, ENOSYS); /* open, with keep_cache, and never ask again */
}

static void pager_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct pager *p = fuse_req_userdata(req);
    struct block *block[BLOCKS_MAX];
    const uint8_t *bytes[BLOCKS_MAX];
    struct iovec iov[BLOCKS_MAX];
    uint64_t at = (uint64_t)off, first = at / PGS_COLD_BLOCK;
    (void)fi;
    if (ino != IMAGE_INODE || off < 0 || at >= IMAGE_BYTES || size == 0) {
        fuse_reply_buf(req, NULL, 0);
        return;
    }
    if (size > IMAGE_BYTES - at) size = (size_t)(IMAGE_BYTES - at);
    if (size > (BLOCKS_MAX - 1) * PGS_COLD_BLOCK)
        size = (BLOCKS_MAX - 1) * PGS_COLD_BLOCK; /* more than the kernel asks for */
    unsigned n = (unsigned)((at + size - 1) / PGS_COLD_BLOCK - first) + 1;
    int rc = blocks_get_many(p->store, first, n, block, bytes);
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        size_t skip = i ? 0 : (size_t)(at % PGS_COLD_BLOCK), left = PGS_COLD_BLOCK - skip;
        iov[i] = (struct iovec){(void *)(uintptr_t)(bytes[i] + skip), left < size ? left : size};
        size -= iov[i].iov_len;
    }
    fuse_reply_iov(req, iov, (int)n);
    for (unsigned i = 0; i < n; i++) blocks_put(block[i]);
}

static void pager_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs st = {.f_bsize = PGS_COLD_BLOCK, .f_frsize = PGS_COLD_BLOCK, .f_namemax = 255};
    (void)ino;
    fuse_reply_statfs(req, &st);
}

const struct worker_program pager_program = {
    .name = "pager",
    .ops = {.lookup = pager_lookup,
            .getattr = pager_getattr,
            .open = pager_open,
            .read = pager_read,
            .statfs = pager_statfs},
    .start = pager_start,
    .stop = pager_stop,
    .refuse = FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_ATOMIC_O_TRUNC,
    .idle_seconds = 10, /* for who started it to open the file: then the name goes */
};
