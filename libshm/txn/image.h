/* Pagestone | txn/image — mapping compressed data: through the pager, or decompressed into memory that all processes share.
 * SPDX-License-Identifier: Apache-2.0
 *
 * docs/design/cold.md, section *Bringing a block*. image.c decides and maps the pager's file; image_eager.c has the image in memory.
 *
 *   I1  Nothing here is needed for the bytes to be right: whatever cannot be had (a pager, /proc, memory files), the answer is -PGS_ENOTSUP and the caller copies.
 *   I2  A descriptor is used only after a look whether it is still the file that we opened: a host program may have closed it.
 *   I3  A mapping needs none of our descriptors once it is made, and none of our locks: it lives on after the session and in forked children.
 */
#ifndef PGS_TXN_IMAGE_H
#define PGS_TXN_IMAGE_H

#include "libshm/extents/cold.h"
#include "libshm/txn/session.h"

struct pgs__image_fd { /* fd -1: none */
    int fd;
    uint64_t dev, ino;
};
struct pgs__image {
    struct pgs__mutex
        mx; /* LEAF: all that follows. Held while a pager is started, for five seconds at most. A forked child makes it anew */
    struct pgs__image_fd pager, memory;
    uint64_t retry_ns; /* CLOCK_BOOTTIME: no pager is looked for before */
    char why[256];     /* there is none */
};

/* For a new session; without memory it has none, and everything is copied. */
void pgs__image_init(struct pgs__session *s);
/* When the session ends. Also in a process that was cloned behind our back. */
void pgs__image_free(struct pgs__session *s);
void pgs__image_forked(struct pgs__session *s); /* in the child, from the hook */

/* struct pgs__cold_ops.map; ctx is the session. -PGS_ENOMEM: over the budget. */
int pgs__image_map(void *session, uint64_t page, uint64_t n_pages, void *addr, bool cow, struct pgs_error *err);
/* Verify these slots, ascending, and have them at hand for mappings, if that is possible: -PGS_ECORRUPT. */
int pgs__image_ahead(struct pgs__session *s, const uint64_t *slots, size_t n, struct pgs_error *err);

/* --- image_eager.c --------------------------------------------------------------------------------------------------------------- */
/* -PGS_ENOTSUP: there can be no shared image here, but the caller may copy. */
int pgs__eager_map(struct pgs__session *s, uint64_t page, uint64_t n_pages, void *addr, bool cow,
                   struct pgs_error *err);
/* Slots [lo, hi) are in memory when it returns, unless others need the room. */
int pgs__eager_fill(struct pgs__session *s, uint64_t lo, uint64_t hi, struct pgs_error *err);
/* PAGESTONE_COLD_BUDGET, or a quarter of the memory that the machine or cgroup has. -PGS_EINVAL: it is not a size. */
int pgs__eager_budget(uint64_t *bytes, struct pgs_error *err);
bool pgs__image_fd_is_ours(const struct pgs__image_fd *f);
void pgs__image_fd_note(struct pgs__image_fd *f, int fd);

#endif
