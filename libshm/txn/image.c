/* Pagestone | txn/image — which way compressed data is mapped; the way through the pager.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The pager is looked for when something is mapped, not before: a process that reads no cold data has no server. If there is none, the reason is kept and it is looked for
 * again after half a minute. If the server of a descriptor has died, what is mapped of it stays as it is (what the kernel has cached can be read, the rest is SIGBUS), and the next mapping finds or
 * starts another one.
 *
 * An absent slot reads as zeros through the pager. So the first and the last slot of a mapping are looked up here; that a block in between is missing from a table whose nodes are all right can only be found by
 * looking at each, which `check` and prefetch do.
 */
#define _GNU_SOURCE
#include "libshm/txn/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/parallel.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/pager.h"
#include "libshm/txn/session_impl.h"

#define RETRY_NS UINT64_C(30000000000)
#define AHEAD_SLOTS 8u /* read at once: one request of the kernel */

/* --- a session's part -------------------------------------------------------------------------------------------------------------- */
void pgs__image_init(struct pgs__session *s)
{
    s->image = pgs__calloc(1, sizeof *s->image);
    if (!s->image) return;
    pgs__mutex_init(&s->image->mx, PGS__RANK_LEAF);
    s->image->pager.fd = s->image->memory.fd = -1;
}

static void unpublish(struct pgs__session *s, int fd)
{
    uint32_t mine = (uint32_t)fd + 1;
    if (s->writable && s->slot != PGS__NO_SLOT)
        atomic_compare_exchange_strong(&pgs__ctl_slot(&s->ctl, s->slot)->image, &mine, 0);
}

void pgs__image_free(struct pgs__session *s)
{
    struct pgs__image *im = s->image;
    if (!im) return;
    if (pgs__image_fd_is_ours(&im->pager)) pgs__file_ops->close(im->pager.fd);
    if (pgs__image_fd_is_ours(&im->memory)) pgs__file_ops->close(im->memory.fd);
    if (!pgs__session_lost()) pgs__mutex_destroy(&im->mx);
    pgs__free(im);
    s->image = NULL;
}

/* The descriptors were inherited, and are as good here. */
void pgs__image_forked(struct pgs__session *s)
{
    if (s->image) pgs__mutex_init(&s->image->mx, PGS__RANK_LEAF);
}

/* What the kernel has cached is enough: a server that hangs is not asked. */
static bool identity(int fd, uint64_t *dev, uint64_t *ino)
{
    struct statx st;
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &st)) return false;
    *dev = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor;
    *ino = st.stx_ino;
    return true;
}

void pgs__image_fd_note(struct pgs__image_fd *f, int fd)
{
    f->fd = identity(fd, &f->dev, &f->ino) ? fd : -1;
}

bool pgs__image_fd_is_ours(const struct pgs__image_fd *f)
{
    uint64_t dev, ino;
    return f->fd >= 0 && identity(f->fd, &dev, &ino) && dev == f->dev && ino == f->ino;
}

/* --- the pager ---------------------------------------------------------------------------------------------------------------------- */
/* The descriptor of a server that lives, or -1. With im->mx held. */
static int pager_locked(struct pgs__session *s, struct pgs__image *im)
{
    if (im->pager.fd >= 0 && !pgs__image_fd_is_ours(&im->pager)) {
        unpublish(s, im->pager.fd);
        im->pager.fd = -1;
    }
    if (im->pager.fd >= 0 && pgs__pager_lives(im->pager.fd)) return im->pager.fd;
    if (im->pager.fd >= 0) pgs__pager_detach(s, im->pager.fd);
    im->pager.fd = -1;
    if (!pgs__cap(PGS__CAP_FUSE)) {
        snprintf(im->why, sizeof im->why, "%s", pgs__cap_reason(PGS__CAP_FUSE));
        return -1;
    }
    uint64_t now = pgs__clock_boot_ns();
    if (now < im->retry_ns) return -1;
    int fd = pgs__pager_attach(s, im->why, sizeof im->why);
    if (fd >= 0)
        pgs__image_fd_note(&im->pager, fd);
    else
        im->retry_ns = now + RETRY_NS;
    return im->pager.fd;
}

static int check_ends(struct pgs__session *s, uint64_t page, uint64_t n_pages, struct pgs_error *err)
{
    const uint64_t ends[] = {pgs__cold_slot(page), pgs__cold_slot(page + n_pages - 1)};
    struct pgs__cold_block b;
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    for (size_t i = 0; i < 2 && rc == 0; i++) {
        rc = pgs__ledger_cold_get(&l, ends[i], &b, err);
        if (rc == -PGS_ENOENT)
            rc = pgs__fail_corrupt(err, "", "compressed block %llu is not in the table", (unsigned long long)ends[i]);
    }
    pgs__meta_end(s, &l);
    return rc;
}

static int map_pager(struct pgs__session *s, uint64_t page, uint64_t n_pages, void *addr, bool cow,
                     struct pgs_error *err)
{
    struct pgs__image *im = s->image;
    size_t len = n_pages << PGS_PAGE_SHIFT;
    off_t off = (off_t)((page - PGS__COLD_FIRST) << PGS_PAGE_SHIFT);
    int rc = 0;
    pgs__mutex_lock(&im->mx);
    int fd = pager_locked(s, im);
    bool there = fd >= 0;
    if (there) (void)pgs__file_ops->map(fd, cow ? PGS__MAP_COW : PGS__MAP_READ, addr, len, off, &rc);
    pgs__mutex_unlock(&im->mx);
    if (!there) return -PGS_ENOTSUP;
    if (rc) return pgs__fail_os(err, -rc, "cannot map %zu bytes of compressed data", len);
    /* The kernel then asks the server for up to 1 MiB at once instead of 128 KiB. Kernels that refuse read in smaller pieces. */
    (void)madvise(addr, len, MADV_HUGEPAGE);
    return check_ends(s, page, n_pages, err);
}

int pgs__image_map(void *session, uint64_t page, uint64_t n_pages, void *addr, bool cow, struct pgs_error *err)
{
    struct pgs__session *s = session;
    if (page < PGS__COLD_FIRST || page >= PGS__COLD_END || n_pages == 0 || n_pages > PGS__COLD_END - page)
        return pgs__fail_corrupt(err, "", "page %llu is not of the image", (unsigned long long)page);
    if (!s->image) return -PGS_ENOTSUP;
    int rc = map_pager(s, page, n_pages, addr, cow, err);
    return rc == -PGS_ENOTSUP ? pgs__eager_map(s, page, n_pages, addr, cow, err) : rc;
}

/* --- ahead of need ------------------------------------------------------------------------------------------------------------------- */
struct ahead {
    struct pgs__session *s;
    const uint64_t *slots;
    size_t n;
    int fd; /* of the pager's file, or -1 */
};

/* A group of slots: verified here, whatever the kernel has of them; then read through the server, so that it has. */
static int ahead_group(void *ctx, uint64_t group, struct pgs_error *err)
{
    const struct ahead *a = ctx;
    size_t first = group * AHEAD_SLOTS, end = pgs__min_u64(first + AHEAD_SLOTS, a->n);
    uint8_t *buf = pgs__malloc(PGS__COLD_BYTES);
    int rc = 0;
    if (!buf) return pgs__fail(err, PGS_ENOMEM, "no memory to decompress a block");
    for (size_t i = first; i < end && rc == 0; i++)
        rc = pgs__cold_read_pages(a->s, pgs__cold_page_of(a->slots[i]), PGS__COLD_PAGES, buf, err);
    for (size_t i = first; i < end && rc == 0 && a->fd >= 0; i++)
        if (pgs__file_ops->pread(a->fd, buf, PGS__COLD_BYTES, (off_t)(a->slots[i] * PGS__COLD_BYTES)) < 0) break;
    pgs__free(buf);
    return rc;
}

/* What is in memory already is verified as it was, on the disk, too. Not to have room is no error here. */
static void fill_all(struct pgs__session *s, const uint64_t *slots, size_t n)
{
    for (size_t i = 0, k; i < n; i = k) {
        for (k = i + 1; k < n && slots[k] == slots[k - 1] + 1;) k++;
        if (pgs__eager_fill(s, slots[i], slots[k - 1] + 1, NULL)) return;
    }
}

int pgs__image_ahead(struct pgs__session *s, const uint64_t *slots, size_t n, struct pgs_error *err)
{
    struct ahead a = {.s = s, .slots = slots, .n = n, .fd = -1};
    if (n == 0) return 0;
    if (s->image) {
        pgs__mutex_lock(&s->image->mx);
        int fd = pager_locked(s, s->image);
        if (fd >= 0) a.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        pgs__mutex_unlock(&s->image->mx);
    }
    int rc = pgs__parallel((n + AHEAD_SLOTS - 1) / AHEAD_SLOTS, ahead_group, &a, err);
    if (rc == 0 && a.fd < 0 && s->image) fill_all(s, slots, n);
    if (a.fd >= 0) pgs__file_ops->close(a.fd);
    return rc;
}
