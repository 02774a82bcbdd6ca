/* Pagestone | pages/control — the control file's mapping, the head cells, and the owner table of chunks.
 * SPDX-License-Identifier: Apache-2.0
 *
 * This layer knows the bytes and their atomic access; what they mean together (pins, recovery, commit) is txn's.
 */
#ifndef PGS_PAGES_CONTROL_H
#define PGS_PAGES_CONTROL_H

#include "libshm/pages/control_format.h"
#include "libshm/pages/pagefile.h"
#include "libshm/platform/lock.h"

struct pgs__ctl {
    struct pgs__control *c; /* the mapping; read-only if !writable */
    int fd;
    bool writable;
};

/* Create (ftruncate, fallocate of header, leases and first slots, header fields, robust lock; state = 0 until the caller stores 1). */
int pgs__ctl_create(struct pgs__ctl *ctl, int fd, const uint8_t uuid[16], uint64_t pages_ino, struct pgs_error *err);
/* Map an existing one and validate magic, version, layout, libc, uuid, inode. *fresh_boot: it was written in another boot: the caller
 * must rebuild it under the open lock. -PGS_ESTALE: uuid or inode do not match the page file. */
int pgs__ctl_map(struct pgs__ctl *ctl, int fd, bool writable, const uint8_t uuid[16], uint64_t pages_ino,
                 bool *fresh_boot, struct pgs_error *err);
void pgs__ctl_unmap(struct pgs__ctl *ctl);
/* fallocate [off, off+len) of the control file before first stores there: -PGS_EFULL instead of SIGBUS. */
int pgs__ctl_reserve(struct pgs__ctl *ctl, uint64_t off, uint64_t len, struct pgs_error *err);

static inline struct pgs__robust *pgs__ctl_commit_lock(struct pgs__ctl *ctl)
{
    return (struct pgs__robust *)(void *)ctl->c->commit_lock;
}
static inline struct pgs__slot *pgs__ctl_slot(struct pgs__ctl *ctl, uint32_t i)
{
    return (struct pgs__slot *)(void *)((uint8_t *)ctl->c + PGS__SLOTS_OFFSET) + i;
}
static inline struct pgs__lease *pgs__ctl_lease(struct pgs__ctl *ctl, uint32_t i)
{
    return (struct pgs__lease *)(void *)((uint8_t *)ctl->c + PGS__LEASES_OFFSET) + i;
}
/* Pin cell i of a slot: inline, then overflow. */
static inline _Atomic uint64_t *pgs__ctl_pin(struct pgs__ctl *ctl, uint32_t slot, uint32_t i)
{
    if (i < PGS__PINS_INLINE) return &pgs__ctl_slot(ctl, slot)->pin[i];
    return (_Atomic uint64_t *)(void *)((uint8_t *)ctl->c + PGS__PINS_OVERFLOW_OFFSET) +
           (uint64_t)slot * PGS__PINS_OVERFLOW + (i - PGS__PINS_INLINE);
}

/* Copy the newest root. Lock-free: head_gen (acquire), cell, fence, head_gen again; retries while the cell was being rewritten. */
void pgs__ctl_head(struct pgs__ctl *ctl, struct pgs__root *out);
/* Write the cell of root->gen (under the commit lock); pgs__ctl_publish makes it the head: the linearization point. */
void pgs__ctl_stage(struct pgs__ctl *ctl, const struct pgs__root *root);
void pgs__ctl_publish(struct pgs__ctl *ctl, pgs_gen_t gen);

/* --- who prepares pages in which chunk ------------------------------------------------------------------------------ */
/* CAS 0 -> tag. true: ours now. The table's page must have been reserved (pgs__owner_reserve) when the file grew. */
bool pgs__owner_claim(struct pgs__ctl *ctl, uint64_t chunk, uint64_t tag);
void pgs__owner_release(struct pgs__ctl *ctl, uint64_t chunk, uint64_t tag); /* BUG if not ours */
uint64_t pgs__owner_of(struct pgs__ctl *ctl, uint64_t chunk);                /* 0: nobody */
int pgs__owner_reserve(struct pgs__ctl *ctl, uint64_t n_chunks, struct pgs_error *err);
/* Clear every word of chunks [0, n_chunks) that carries `tag`. Only by who holds that slot's lock. Returns how many. */
uint64_t pgs__owner_sweep(struct pgs__ctl *ctl, uint64_t n_chunks, uint64_t tag);

#endif
