/* Pagestone | txn/pager — reaching the server that pages a store's cold data in.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Who starts a server does so under an OFD lock of the page file, so that of many processes that need one at the same moment one starts it and the others find it. A reader without write permission has
 * no slot to publish its descriptor in and cannot take the lock: it looks for others', then starts its own.
 *
 * The image's attributes, which the kernel keeps for ever, say whose it is (fuse/image.h has the same lines; neither side includes the other):
 *
 *     inode 2, size 2^62, owner: who runs the server     atime   magic number; nanoseconds: pid of the server
 *     mtime, ctime: the store's uuid, 62 bits each       ctime   nanoseconds: when that process began, in clock ticks, modulo 10^9
 */
#define _GNU_SOURCE
#include "libshm/txn/pager.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/file.h"
#include "libshm/platform/procfd.h"
#include "libshm/txn/session_impl.h"

#define IMAGE_INODE 2u
#define IMAGE_BYTES (UINT64_C(1) << 62)
#define IMAGE_MAGIC UINT64_C(0x0067657265676170)
#define PATIENCE_NS UINT64_C(5000000000)

/* --- what a descriptor is -------------------------------------------------------------------------------------------------------- */
/* Whatever the kernel has cached: nobody is asked. */
static int look(int fd, struct statx *st)
{
    return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, st) ? -errno : 0;
}

static bool same_half(int64_t seconds, const uint8_t *half)
{
    return (uint64_t)seconds == (pgs__get_u64(half) & ((UINT64_C(1) << 62) - 1));
}

static bool is_image(const struct statx *st, const struct pgs__session *s)
{
    return S_ISREG(st->stx_mode) && st->stx_ino == IMAGE_INODE && st->stx_size == IMAGE_BYTES &&
           st->stx_uid == geteuid() && (uint64_t)st->stx_atime.tv_sec == IMAGE_MAGIC &&
           same_half(st->stx_mtime.tv_sec, s->pf.uuid) && same_half(st->stx_ctime.tv_sec, s->pf.uuid + 8);
}

/* Field 3, the state, and field 22, the start time, of /proc/<pid>/stat; the second field may contain anything. */
static bool process_lives(uint32_t pid, uint32_t began)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = pgs__file_ops->open(path, O_RDONLY, 0);
    if (fd < 0) return false;
    ssize_t n = pgs__file_ops->pread(fd, text, sizeof text - 1, 0);
    pgs__file_ops->close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    char *p = strrchr(text, ')');
    if (!p || p[1] != ' ' || strchr("ZXTt", p[2])) return false;
    for (int field = 2; p && field < 22; field++) p = strchr(p + 1, ' ');
    return p && strtoull(p + 1, NULL, 10) % 1000000000u == began;
}

static bool lives(const struct statx *st)
{
    return process_lives(st->stx_atime.tv_nsec, st->stx_ctime.tv_nsec);
}

bool pgs__pager_lives(int fd)
{
    struct statx st;
    return look(fd, &st) == 0 && lives(&st);
}

/* --- other processes' --------------------------------------------------------------------------------------------------------------- */
/* Descriptor n of that process, if it is this store's image. It is looked at before it is opened: the number may be anything's by now, a pipe's for instance, whose opening waits. */
static int open_of(const struct pgs__session *s, uint32_t pid, uint32_t n)
{
    char path[64];
    struct statx st;
    snprintf(path, sizeof path, "/proc/%u/fd/%u", pid, n);
    int fd = pgs__file_ops->open(path, O_PATH, 0);
    if (fd < 0) return fd;
    int rc = look(fd, &st);
    if (rc == 0 && !(is_image(&st, s) && lives(&st))) rc = -ESTALE;
    pgs__proc_fd_path(path, fd);
    int image = rc ? rc : pgs__file_ops->open(path, O_RDONLY, 0); /* the server is not asked: fuse/pager.c */
    pgs__file_ops->close(fd);
    return image;
}

static int find(struct pgs__session *s)
{
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used; i++) {
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
        uint32_t image = atomic_load(&slot->image);
        if (image == 0 || atomic_load(&slot->tag) == 0) continue;
        int fd = open_of(s, (uint32_t)atomic_load(&slot->pid), image - 1);
        if (fd >= 0) return fd;
    }
    return -ENOENT;
}

/* --- the start -------------------------------------------------------------------------------------------------------------------------- */
static bool switched_off(void)
{
    const char *p = getenv("PAGESTONE_WITHOUT");
    while (p && *p) {
        p += strspn(p, ", ");
        size_t n = strcspn(p, ", ");
        if (n == 4 && memcmp(p, "fuse", 4) == 0) return true;
        p += n;
    }
    return false;
}

/* The right to start a server, on a description of its own; somebody else may publish an image meanwhile. */
static int lock(struct pgs__session *s, uint64_t until_ns, int *image)
{
    int fd = pgs__reopen(s, O_RDWR);
    if (fd < 0) return fd;
    for (;;) {
        int rc = pgs__ofd_lock(fd, PGS__PAGER_LOCK, true);
        *image = find(s);
        if (rc == 0 || *image >= 0) return fd;
        if (rc != -EAGAIN || pgs__clock_boot_ns() > until_ns) {
            pgs__file_ops->close(fd);
            return rc == -EAGAIN ? -ETIMEDOUT : rc;
        }
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

static int start(struct pgs__session *s, char *why, size_t why_len)
{
    struct statx st;
    uint64_t until = pgs__clock_boot_ns() + PATIENCE_NS;
    int image = -1, lock_fd = s->writable ? lock(s, until, &image) : -1;
    if (s->writable && lock_fd < 0) {
        snprintf(why, why_len, "another process is starting a pager, and does not come to an end");
        return -PGS_ENOTSUP;
    }
    if (image < 0) image = pgs__pager_start(s, until, why, why_len);
    if (image >= 0 && (look(image, &st) || !is_image(&st, s))) {
        snprintf(why, why_len, "the pager serves another store: this one was replaced or moved");
        pgs__file_ops->close(image);
        image = -PGS_ENOTSUP;
    }
    if (image >= 0 && s->writable) atomic_store(&pgs__ctl_slot(&s->ctl, s->slot)->image, (uint32_t)image + 1);
    if (lock_fd >= 0) pgs__file_ops->close(lock_fd); /* after the descriptor is published: others look there next */
    return image;
}

int pgs__pager_attach(struct pgs__session *s, char *why, size_t why_len)
{
    if (switched_off()) {
        snprintf(why, why_len, "switched off by PAGESTONE_WITHOUT");
        return -PGS_ENOTSUP;
    }
    int fd = find(s);
    if (fd < 0) return start(s, why, why_len);
    if (s->writable) atomic_store(&pgs__ctl_slot(&s->ctl, s->slot)->image, (uint32_t)fd + 1);
    return fd;
}

void pgs__pager_detach(struct pgs__session *s, int fd)
{
    if (fd < 0) return;
    if (s->writable) {
        uint32_t mine = (uint32_t)fd + 1;
        atomic_compare_exchange_strong(&pgs__ctl_slot(&s->ctl, s->slot)->image, &mine, 0);
    }
    pgs__file_ops->close(fd);
}
