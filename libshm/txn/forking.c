/* Pagestone | txn/forking — what fork does to sessions, before fork returns.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     prepare   all locks that a child would find locked for ever: registry, space, fresh memories, pin tables, sweeper. Then for each session a slot for the child: opened, locked and
 *               mapped without MADV_DONTFORK, the pins copied, pin_moves raised
 *     parent    unmaps the child's slot lock (the child's copy of the mapping keeps it; if fork failed nobody does, and the slot is swept like a dead one's), unlocks
 *     child     MADV_DONTFORK, takes over the slot; transactions and meta pins of the parent are not its own; fresh memory turns private; unlocks
 *
 * Nothing here may allocate, use stdio, or fail (HAZARDS 36). Where the page file cannot be opened again (setuid, EMFILE) or the table is full: the spare slot,
 * locked in advance, whose mapping is let through this one fork; and when that is used up a family slot, shared with the parent: alive until both are gone. In a family each process
 * writes only cells that it stored itself after the fork, and those that were there at the fork stay.
 *
 * Mutexes are locked past the rank checker: several of one rank, and the child's thread inherits the record of what the parent's thread held.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/extents/memory.h"
#include "libshm/platform/inject.h"
#include "libshm/txn/forking.h"
#include "libshm/txn/image.h"
#include "libshm/txn/policy.h"
#include "libshm/txn/session_impl.h"

static bool active; /* prepare did its part; lock: REGISTRY */

static void raw_lock(struct pgs__mutex *m)
{
    PGS_BUG_ON(pthread_mutex_lock(&m->m) != 0);
}
static void raw_unlock(struct pgs__mutex *m)
{
    PGS_BUG_ON(pthread_mutex_unlock(&m->m) != 0);
}

/* --- prepare ------------------------------------------------------------------------------------------------------------- */
/* Collectors of pins see the copies, or look again: I5. */
static bool copy_pins(struct pgs__session *s, uint32_t slot)
{
    struct pgs__slot *p = pgs__ctl_slot(&s->ctl, slot);
    if (pgs__cells_reserve(s, slot, s->n_pins)) return false;
    atomic_store(&p->n_pins, s->n_pins);
    for (uint32_t i = 0; i < s->n_pins; i++)
        atomic_store(pgs__ctl_pin(&s->ctl, slot, i), s->pins[i].foreign ? 0 : s->pins[i].gen);
    pgs__fence();
    atomic_fetch_add(&s->ctl.c->pin_moves, 1);
    return true;
}

static bool prepare_slot(struct pgs__session *s, struct pgs__fork *f)
{
    if (pgs__slot_claim(s, false, 0, &f->lock, &f->slot, &f->tag)) return false;
    if (copy_pins(s, f->slot)) {
        f->how = PGS__FORK_SLOT;
        return true;
    }
    pgs__held_lock_drop(&f->lock); /* the slot is dead, and swept some time */
    return false;
}

static bool prepare_spare(struct pgs__session *s, struct pgs__fork *f)
{
    if (s->spare_slot == PGS__NO_SLOT || madvise(s->spare_lock.map, PGS_PAGE_SIZE, MADV_DOFORK)) return false;
    if (!copy_pins(s, s->spare_slot)) {
        pgs__held_lock_dontfork(&s->spare_lock);
        return false;
    }
    struct pgs__slot *p = pgs__ctl_slot(&s->ctl, s->spare_slot);
    atomic_store(&p->flags, 0);
    f->how = PGS__FORK_SPARE;
    f->lock = s->spare_lock;
    f->slot = s->spare_slot;
    f->tag = atomic_load(&p->tag);
    s->spare_lock.map = NULL;
    s->spare_slot = PGS__NO_SLOT;
    return true;
}

static void prepare_family(struct pgs__session *s, struct pgs__fork *f)
{
    struct pgs__held_lock *lock = s->writable ? &s->lock : &s->read_lock;
    madvise(lock->map, PGS_PAGE_SIZE, MADV_DOFORK);
    f->how = PGS__FORK_FAMILY;
    if (s->writable) f->family_index = atomic_fetch_add(&pgs__ctl_slot(&s->ctl, s->slot)->n_family, 1) + 1;
    for (uint32_t i = 0; i < s->n_pins; i++)
        if (s->pins[i].gen) s->pins[i].frozen = true;
    s->family = true;
}

/* A description with locks of its own on everything that the parent has pinned. */
static bool prepare_reader(struct pgs__session *s, struct pgs__fork *f)
{
    if (s->frozen || pgs__reader_open(s, false, &f->fd, &f->lock)) return false;
    int rc = 0;
    for (uint32_t i = 0; i < s->n_pins && rc == 0; i++)
        if (s->pins[i].gen) rc = pgs__ofd_lock(f->fd, PGS__LOCK_READ(s->pins[i].gen), false);
    if (rc == 0) {
        f->how = PGS__FORK_READER;
        return true;
    }
    pgs__held_lock_drop(&f->lock);
    pgs__file_ops->close(f->fd);
    return false;
}

static void prepare_one(struct pgs__session *s)
{
    struct pgs__fork *f = &s->fork;
    *f = (struct pgs__fork){.how = PGS__FORK_NONE, .fd = -1};
    if (s->writable ? prepare_slot(s, f) || prepare_spare(s, f) : prepare_reader(s, f)) return;
    prepare_family(s, f);
}

static void prepare(void)
{
    raw_lock(&pgs__registry_mx);
    for (struct pgs__session *s = pgs__registry; s; s = s->next) raw_lock(&s->space_mx);
    pgs__mem_fork_prepare();
    for (struct pgs__session *s = pgs__registry; s; s = s->next) raw_lock(&s->pins_mx);
    raw_lock(&pgs__sweep_mx);
    active = !pgs__session_lost();
    if (!active) return;
    for (struct pgs__session *s = pgs__registry; s; s = s->next) prepare_one(s);
    PGS_KILL_POINT("in_fork");
}

/* --- parent ----------------------------------------------------------------------------------------------------------------- */
static void parent_one(struct pgs__session *s)
{
    struct pgs__fork *f = &s->fork;
    switch (f->how) {
    case PGS__FORK_SLOT:
    case PGS__FORK_SPARE:
        pgs__held_lock_drop(&f->lock);
        break;
    case PGS__FORK_READER:
        pgs__held_lock_drop(&f->lock);
        pgs__file_ops->close(f->fd);
        break;
    case PGS__FORK_FAMILY:
        pgs__held_lock_dontfork(s->writable ? &s->lock : &s->read_lock);
        break;
    case PGS__FORK_NONE:
        break;
    }
    f->how = PGS__FORK_NONE;
}

static void parent(void)
{
    raw_unlock(&pgs__sweep_mx);
    for (struct pgs__session *s = pgs__registry; s; s = s->next) {
        if (active) parent_one(s);
        raw_unlock(&s->pins_mx);
    }
    pgs__mem_fork_parent();
    for (struct pgs__session *s = pgs__registry; s; s = s->next) raw_unlock(&s->space_mx);
    raw_unlock(&pgs__registry_mx);
}

/* --- child --------------------------------------------------------------------------------------------------------------------- */
static void child_slot(struct pgs__session *s)
{
    struct pgs__fork *f = &s->fork;
    pgs__held_lock_dontfork(&f->lock);
    s->lock = f->lock; /* the parent's was not inherited */
    s->slot = f->slot;
    s->tag = f->tag;
    s->family = false;
    s->family_index = 0;
    s->n_cells = s->n_pins > PGS__PINS_INLINE ? s->n_pins : PGS__PINS_INLINE;
    atomic_store(&pgs__ctl_slot(&s->ctl, s->slot)->pid, (uint64_t)getpid());
}

static void child_reader(struct pgs__session *s)
{
    struct pgs__fork *f = &s->fork;
    pgs__held_lock_dontfork(&f->lock);
    if (pgs__fd_is_pages(s, s->read_lock_fd))
        pgs__file_ops->close(s->read_lock_fd); /* shared with the parent: never unlock through it */
    s->read_lock = f->lock;
    s->read_lock_fd = f->fd;
    s->family = false;
}

static void child_one(struct pgs__session *s)
{
    struct pgs__fork *f = &s->fork;
    if (f->how == PGS__FORK_SLOT || f->how == PGS__FORK_SPARE) child_slot(s);
    if (f->how == PGS__FORK_READER) child_reader(s);
    if (f->how == PGS__FORK_FAMILY) {
        pgs__held_lock_dontfork(s->writable ? &s->lock : &s->read_lock);
        s->family_index = f->family_index;
    } else { /* cells at the fork are this slot's own now; what no thread had proven yet, no thread waits for */
        for (uint32_t i = 0; i < s->n_pins; i++) {
            struct pgs__pin_entry *e = &s->pins[i];
            e->frozen = false;
            if (e->foreign || (e->gen && (!e->proven || e->refs == 0))) {
                if (s->writable) atomic_store(pgs__ctl_pin(&s->ctl, s->slot, i), 0);
                *e = (struct pgs__pin_entry){0};
            }
        }
    }
    pgs__advance_forked(s);
    /* The spare was not inherited; the next sweep gets another. */
    s->spare_lock.map = NULL;
    s->spare_slot = PGS__NO_SLOT;
    s->meta_readers = 0;
    pgs__image_forked(s);
    pgs__policy_forked(s);
    f->how = PGS__FORK_NONE;
    atomic_fetch_add(&s->fork_count, 1);
}

/* The thread that forked is the child's only one, and what it locked it may unlock. */
static void child(void)
{
    raw_unlock(&pgs__sweep_mx);
    if (active) pgs__session_found_again();
    for (struct pgs__session *s = pgs__registry; s; s = s->next) {
        if (active) child_one(s);
        raw_unlock(&s->pins_mx);
    }
    pgs__mem_fork_child();
    for (struct pgs__session *s = pgs__registry; s; s = s->next) raw_unlock(&s->space_mx);
    raw_unlock(&pgs__registry_mx);
}

int pgs__forking_init(void)
{
    return pgs__fork_hooks(prepare, parent, child);
}
