/* Pagestone | txn/pinned — the other side of the pin protocol: who holds what, asked under the commit lock.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The caller has published, in an earlier commit, a head in which the generations that it asks about are expired or gone (pin.c has the proof). The collector fences, then
 * reads all cells of all slots, dead ones included: a dead process's pins count until its slot was swept.
 *
 * A pin may move: fork copies it to another slot and the parent drops its own. Looked at in the wrong order, neither is seen. So the fork hook raises
 * pin_moves between the two, and a collector whose round saw it raised looks at everything again (I5); what several rounds saw is put together.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "libshm/platform/mem.h"
#include "libshm/txn/session_impl.h"

#define ROUNDS 64u
#define LEASE_SPAN 0xffffffu

static int add(struct pgs__pinned_set *set, uint64_t gen)
{
    if (pgs__grow(&set->gens, &set->cap, set->n + 1, sizeof *set->gens)) return -PGS_ENOMEM;
    set->gens[set->n++] = gen;
    return 0;
}

static int add_slots(struct pgs__session *s, struct pgs__pinned_set *set)
{
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used; i++) {
        /* acquire: whatever its owner did before it lowered the mark or emptied a cell (a lease, a copy) is seen later. Pairs with pgs__pin_put_locked. */
        uint32_t n = atomic_load_explicit(&pgs__ctl_slot(&s->ctl, i)->n_pins, memory_order_acquire);
        if (n > PGS__MAX_PINS) n = PGS__MAX_PINS; /* shared memory is input */
        for (uint32_t j = 0; j < n; j++) {
            uint64_t gen = atomic_load_explicit(pgs__ctl_pin(&s->ctl, i, j), memory_order_acquire); /* as above */
            if (gen && add(set, gen)) return -PGS_ENOMEM;
        }
    }
    return 0;
}

/* Ranges go in generation by generation: they are short, and only a full table has them. */
static int add_leases(struct pgs__session *s, struct pgs__pinned_set *set)
{
    uint64_t now = pgs__clock_boot_ns(), head = atomic_load(&s->ctl.c->head_gen);
    for (uint32_t i = 0; i < PGS__N_LEASES; i++) {
        struct pgs__lease *lease = pgs__ctl_lease(&s->ctl, i);
        uint64_t gen = atomic_load(&lease->gen), word = atomic_load(&lease->deadline_ns);
        if (gen == 0 || gen > head || (word & ~(uint64_t)LEASE_SPAN) <= now) continue;
        uint64_t last = pgs__min_u64(gen + (word & LEASE_SPAN), head);
        for (; gen <= last; gen++)
            if (add(set, gen)) return -PGS_ENOMEM;
    }
    return 0;
}

static int cmp_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void sort_unique(struct pgs__pinned_set *set)
{
    size_t out = 0;
    if (set->n > 1) qsort(set->gens, set->n, sizeof *set->gens, cmp_u64);
    for (size_t i = 0; i < set->n; i++)
        if (out == 0 || set->gens[out - 1] != set->gens[i]) set->gens[out++] = set->gens[i];
    set->n = out;
}

int pgs__pinned_collect(struct pgs__session *s, struct pgs__pinned_set *set, struct pgs_error *err)
{
    *set = (struct pgs__pinned_set){.s = s};
    int rc = pgs__pagefile_check_fd(&s->pf, err); /* pgs__pinned asks through it */
    if (rc) return rc;
    for (unsigned round = 0; rc == 0; round++) {
        uint64_t moves = atomic_load(&s->ctl.c->pin_moves);
        pgs__fence();
        rc = add_slots(s, set);
        if (rc == 0) sort_unique(set);
        pgs__fence();
        if (atomic_load(&s->ctl.c->pin_moves) == moves) break;
        if (round == ROUNDS) {
            set->all = true; /* forks without end: nothing is dropped this time */
            break;
        }
    }
    if (rc == 0) rc = add_leases(s, set); /* after the slots: I5 */
    if (rc) {
        pgs__pinned_free(set);
        return pgs__fail(err, PGS_ENOMEM, "no memory to collect pins");
    }
    sort_unique(set);
    /* As a rule there is no reader without a slot: one question for all generations. Not 0: somebody, or unknown. */
    uint64_t at, head = atomic_load(&s->ctl.c->head_gen);
    set->open = pgs__ofd_first(s->pf.fd, PGS__LOCK_READ(0), PGS__LOCK_READ(head + 1), &at) != 0;
    return 0;
}

int pgs__pinned(void *ctx, pgs_gen_t gen)
{
    struct pgs__pinned_set *set = ctx;
    if (set->all) return 1;
    if (set->n && bsearch(&gen, set->gens, set->n, sizeof *set->gens, cmp_u64)) return 1;
    return set->open ? pgs__read_locked(set->s, gen) : 0;
}

void pgs__pinned_free(struct pgs__pinned_set *set)
{
    pgs__free(set->gens);
    *set = (struct pgs__pinned_set){.s = set->s};
}

int pgs__read_locked(struct pgs__session *s, pgs_gen_t gen)
{
    /* Our own descriptor owns no such locks, so it sees everybody's. A wrong one would see nobody's. */
    if (!pgs__fd_is_pages(s, s->pf.fd) && pgs__pagefile_check_fd(&s->pf, NULL)) return -PGS_EIO;
    int rc = pgs__ofd_busy(s->pf.fd, PGS__LOCK_READ(gen));
    return rc < 0 ? -PGS_EIO : rc;
}

pgs_gen_t pgs__min_meta_pin(struct pgs__session *s)
{
    uint64_t min = UINT64_MAX, at, head = atomic_load(&s->ctl.c->head_gen);
    pgs__fence(); /* after the publication of the head; pairs with the fence in meta_protect: either we see the pin, or its owner sees this head */
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used; i++) {
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
        uint64_t gen = atomic_load_explicit(&slot->meta_pin, memory_order_acquire); /* pairs with meta_unprotect */
        if (gen) min = pgs__min_u64(min, gen);
        if (atomic_load(&slot->n_family) == 0) continue;
        for (uint32_t j = 0; j < PGS__SLOT_FAMILY; j++) {
            gen = atomic_load(&slot->family_meta[j]);
            if (gen) min = pgs__min_u64(min, gen);
        }
    }
    if (!pgs__fd_is_pages(s, s->pf.fd) && pgs__pagefile_check_fd(&s->pf, NULL)) return 0;
    int rc = pgs__ofd_first(s->pf.fd, PGS__LOCK_META(0), PGS__LOCK_META(head + 1), &at);
    if (rc < 0) return 0; /* unknown: as if somebody read the oldest */
    return rc ? pgs__min_u64(min, at - PGS__LOCK_META(0)) : min;
}
