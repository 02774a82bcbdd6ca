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

#define PGS__CONTROL_NAME "control" /* of the file in the store's directory */

struct pgs__ctl {
    struct pgs__control *c; /* the mapping; read-only if !writable; NULL when not mapped */
    int fd;
    bool writable;
    uint64_t dev, ino; /* of the control file: fd is not believed blindly (a host program may have closed it) */
};

/* Create, or make anew what another boot or a dead creator left: everything zeroed, header, leases and the first
 * PGS__SLOTS_RESERVED slots fallocated, header fields, robust lock; state = 0 until the caller stores 1. Under the open lock only.
 * Here and in pgs__ctl_map, ctl owns fd on success and pgs__ctl_unmap closes it; on failure fd stays the caller's. */
int pgs__ctl_create(struct pgs__ctl *ctl, int fd, const uint8_t uuid[16], uint64_t pages_ino, struct pgs_error *err);
/* Map an existing one and validate magic, version, layout, libc, uuid, inode. *fresh_boot: it was written in another boot, or was never
 * finished: returns 0 with ctl->c == NULL and fd still the caller's, who calls pgs__ctl_create with it under the open lock.
 * -PGS_ESTALE: uuid or inode do not match the page file; -PGS_EFORMAT: written by another build. The caller looks at c->state. */
int pgs__ctl_map(struct pgs__ctl *ctl, int fd, bool writable, const uint8_t uuid[16], uint64_t pages_ino,
                 bool *fresh_boot, struct pgs_error *err);
void pgs__ctl_unmap(struct pgs__ctl *ctl);
/* Allocate [off, off+len) of the control file before first stores (or loads) there: -PGS_EFULL instead of SIGBUS. Slots from
 * PGS__SLOTS_RESERVED on and pin overflows need it. */
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

/* Copy the newest root. Lock-free: head_gen (acquire), cell, fence, head_gen again; retries while the cell was being rewritten.
 * 0, or -PGS_ECORRUPT (and *out zeroed, gen 0): the cell is damaged, which no writer of ours leaves behind. */
int pgs__ctl_head(struct pgs__ctl *ctl, struct pgs__root *out);
/* Write the cell of root->gen (under the commit lock); pgs__ctl_publish makes it the head: the linearization point. Once the store is
 * ready, generations are consecutive: root->gen == head_gen + 1 (checked, always). */
void pgs__ctl_stage(struct pgs__ctl *ctl, const struct pgs__root *root);
void pgs__ctl_publish(struct pgs__ctl *ctl, pgs_gen_t gen);

/* --- who prepares pages in which chunk ------------------------------------------------------------------------------ */
/* CAS 0 -> tag. true: ours now. The table's page must have been reserved (pgs__owner_reserve) when the file grew. */
bool pgs__owner_claim(struct pgs__ctl *ctl, uint64_t chunk, uint64_t tag);
void pgs__owner_release(struct pgs__ctl *ctl, uint64_t chunk, uint64_t tag); /* BUG if not ours */
uint64_t pgs__owner_of(struct pgs__ctl *ctl, uint64_t chunk);                /* 0: nobody */
int pgs__owner_reserve(struct pgs__ctl *ctl, uint64_t n_chunks, struct pgs_error *err);
uint64_t pgs__owner_end(struct pgs__ctl *ctl); /* chunks at and above it have never had an owner */
/* Clear every word of chunks [0, n_chunks) that carries `tag`. Only by who holds that slot's lock. Returns how many. */
uint64_t pgs__owner_sweep(struct pgs__ctl *ctl, uint64_t n_chunks, uint64_t tag);

#endif
