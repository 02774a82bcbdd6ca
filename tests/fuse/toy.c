/* Pagestone | tests/fuse/toy — the smallest worker program, to try the supervisor with.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Takes the view's place in pagestone-fuse. It serves
 *     data     1 GiB; word i is i × 0x9e3779b97f4a7c15; each open reads it anew
 *     starts   how many workers there were, and how many resent requests they saw
 *     note     what was last written: kept in a memfd that the supervisor keeps
 * A store named "broken" fails in start(); reading data's last page kills the worker.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse/server.h"

#define DATA_BYTES (UINT64_C(1) << 30)

struct shared {
    _Atomic uint64_t starts, resent;
};
struct toy {
    struct server *server;
    struct shared *shared;
};
static struct toy toy;
enum { DATA = 2, STARTS, NOTE };

static int attributes(fuse_ino_t ino, struct stat *st)
{
    if (ino < 1 || ino > NOTE) return ENOENT;
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_mode = ino == 1 ? S_IFDIR | 0755 : S_IFREG | 0644;
    st->st_nlink = 1;
    st->st_uid = getuid();
    st->st_gid = getgid();
    st->st_size = ino == DATA ? (off_t)DATA_BYTES : 0;
    return 0;
}

static void toy_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    static const char *const names[] = {"data", "starts", "note"};
    struct fuse_entry_param e = {0};
    (void)parent;
    for (unsigned i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) e.ino = DATA + i;
    if (e.ino == 0 || attributes(e.ino, &e.attr))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_entry(req, &e);
}

static void toy_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    (void)fi;
    if (attributes(ino, &st))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_attr(req, &st, 0);
}

static void toy_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    (void)attr, (void)to_set;
    toy_getattr(req, ino, fi);
}

static void toy_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct toy *t = fuse_req_userdata(req);
    if (ino == NOTE && (fi->flags & O_ACCMODE) != O_RDONLY) {
        int fd = memfd_create("note", MFD_CLOEXEC);
        int rc = server_keep(t->server, 7, fd);
        close(fd);
        if (rc) {
            fuse_reply_err(req, -rc);
            return;
        }
    }
    fi->direct_io = ino != DATA;
    server_opened(t->server);
    fuse_reply_open(req, fi);
}

static void toy_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct toy *t = fuse_req_userdata(req);
    (void)ino, (void)fi;
    server_closed(t->server);
    fuse_reply_err(req, 0);
}

static void read_data(fuse_req_t req, size_t size, off_t off)
{
    uint64_t *p = malloc(size);
    if ((uint64_t)off + size > DATA_BYTES) size = DATA_BYTES - (uint64_t)off;
    if (size && (uint64_t)off + size == DATA_BYTES) abort();
    for (size_t i = 0; i < size / 8; i++) p[i] = ((uint64_t)off / 8 + i) * UINT64_C(0x9e3779b97f4a7c15);
    server_reply_memory(req, p, size);
    free(p);
}

static void toy_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct toy *t = fuse_req_userdata(req);
    char text[4096];
    ssize_t n = 0;
    (void)fi;
    if (server_resent()) atomic_fetch_add(&t->shared->resent, 1);
    if (ino == DATA) {
        read_data(req, size, off);
        return;
    }
    if (ino == STARTS) {
        n = snprintf(text, sizeof text, "%lu %lu\n", (unsigned long)t->shared->starts,
                     (unsigned long)t->shared->resent);
        n = off ? 0 : n;
    } else {
        int fd = server_kept(t->server, 7);
        n = fd < 0 ? fd : pread(fd, text, sizeof text, off);
        if (fd >= 0) close(fd);
    }
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_buf(req, text, (size_t)n < size ? (size_t)n : size);
}

static void toy_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                      struct fuse_file_info *fi)
{
    struct toy *t = fuse_req_userdata(req);
    (void)fi;
    int fd = ino == NOTE ? server_kept(t->server, 7) : -EACCES;
    ssize_t n = fd < 0 ? fd : pwrite(fd, buf, size, off);
    if (fd >= 0) close(fd);
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_write(req, (size_t)n);
}

static int toy_start(struct server *s, void **data, char *why, size_t why_len)
{
    if (strstr(s->opt->store, "broken")) {
        snprintf(why, why_len, "%s is no store", s->opt->store);
        return -1;
    }
    toy.server = s;
    toy.shared = s->share;
    atomic_fetch_add(&toy.shared->starts, 1);
    if (s->reborn != (toy.shared->starts > 1)) abort();
    *data = &toy;
    return 0;
}

const struct worker_program view_program = {
    .name = "toy",
    .ops = {.lookup = toy_lookup,
            .getattr = toy_getattr,
            .setattr = toy_setattr,
            .open = toy_open,
            .release = toy_release,
            .read = toy_read,
            .write = toy_write},
    .start = toy_start,
};

const struct worker_program pager_program = {.name = "none"};
