/* Pagestone | txn/lease — generations kept alive for a time, whoever dies.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A table in the control file, per generation and not per handle. The deadline word also holds how many generations after the first it is meant for, so that a full table widens an
 * entry to a range instead of failing; 2^24 ns is the resolution of deadlines, rounded up.
 *
 *   L1  Only under the commit lock an entry changes its generation. That happens when its deadline has passed (deadline 0, then gen, then the new deadline: dead at every step) or
 *       when it is widened (every step means at least the old range).
 *   L2  Without the lock a deadline is only raised, by compare-and-swap, and the generation is compared again afterwards: an entry that changed meanwhile is at
 *       worst somebody else's, kept a little longer.
 *   L3  The caller holds a pin from before until the entry is there; collectors look at slots first and at leases then.
 */
#include "libshm/txn/session_impl.h"

#define SPAN 0xffffffu

static uint64_t span_of(uint64_t word)
{
    return word & SPAN;
}
static uint64_t deadline_of(uint64_t word)
{
    return word & ~(uint64_t)SPAN;
}
static uint64_t round_up(uint64_t ns)
{
    return ns > UINT64_MAX - SPAN ? ~(uint64_t)SPAN : (ns + SPAN) & ~(uint64_t)SPAN;
}

static bool covers(uint64_t first, uint64_t word, uint64_t gen)
{
    return first != 0 && first <= gen && gen - first <= span_of(word);
}

/* Raise the deadline of a living entry; its span only grows, and stays. False: it is dead or somebody else's now. */
static bool extend(struct pgs__lease *lease, uint64_t gen, uint64_t now, uint64_t deadline)
{
    uint64_t first = atomic_load(&lease->gen), word = atomic_load(&lease->deadline_ns);
    while (covers(first, word, gen) && deadline_of(word) > now) {
        uint64_t raised = pgs__max_u64(deadline, deadline_of(word)) | span_of(word);
        if (raised == word || atomic_compare_exchange_weak(&lease->deadline_ns, &word, raised))
            return atomic_load(&lease->gen) == first;
    }
    return false;
}

static bool extend_any(struct pgs__session *s, uint64_t gen, uint64_t now, uint64_t deadline)
{
    for (uint32_t i = 0; i < PGS__N_LEASES; i++)
        if (extend(pgs__ctl_lease(&s->ctl, i), gen, now, deadline)) return true;
    return false;
}

/* Under the lock, an entry that is free or whose time has passed; a raised deadline in between wins (L2). */
static bool take_over(struct pgs__lease *lease, uint64_t gen, uint64_t now, uint64_t deadline)
{
    uint64_t word = atomic_load(&lease->deadline_ns);
    if (atomic_load(&lease->gen) != 0 && deadline_of(word) > now) return false;
    if (!atomic_compare_exchange_strong(&lease->deadline_ns, &word, 0)) return false;
    atomic_store(&lease->gen, gen);
    atomic_store(&lease->deadline_ns, deadline);
    return true;
}

static uint64_t distance(uint64_t first, uint64_t word, uint64_t gen)
{
    if (gen < first) return first - gen;
    return gen - first <= span_of(word) ? 0 : gen - first - span_of(word);
}

/* The table is full of living leases: the nearest one is made to cover gen too. Concurrent raises make the swap fail: again. */
static bool widen(struct pgs__session *s, uint64_t gen, uint64_t deadline)
{
    struct pgs__lease *best = NULL;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < PGS__N_LEASES; i++) {
        struct pgs__lease *lease = pgs__ctl_lease(&s->ctl, i);
        uint64_t d = distance(atomic_load(&lease->gen), atomic_load(&lease->deadline_ns), gen);
        if (d >= least) continue;
        least = d;
        best = lease;
    }
    uint64_t first = atomic_load(&best->gen), word = atomic_load(&best->deadline_ns), raised;
    do {
        uint64_t last = pgs__max_u64(first + span_of(word), gen), lo = pgs__min_u64(first, gen);
        if (last - lo > SPAN) return false;
        raised = pgs__max_u64(deadline, deadline_of(word)) | (last - lo);
    } while (!atomic_compare_exchange_weak(&best->deadline_ns, &word, raised));
    if (gen < first) atomic_store(&best->gen, gen); /* until here [first, first + larger span]: more than before */
    return true;
}

int pgs__lease_set(struct pgs__session *s, pgs_gen_t gen, uint64_t ns, struct pgs_error *err)
{
    int rc = pgs__session_check(s, err);
    if (rc) return rc;
    if (!s->writable)
        return pgs__fail(err, PGS_EREADONLY, "no permission to write this store: only your own views keep it");
    if (gen == 0) return pgs__fail(err, PGS_EINVAL, "no generation is numbered 0");
    uint64_t now = pgs__clock_boot_ns(), deadline = round_up(ns > UINT64_MAX - now ? UINT64_MAX : now + ns);
    if (extend_any(s, gen, now, deadline)) return 0;

    struct pgs__wait w = {.timeout_ns = PGS__DEFAULT_TIMEOUT_NS};
    rc = pgs__commit_lock(s, &w, err);
    if (rc) return rc;
    bool done = extend_any(s, gen, now, deadline);
    for (uint32_t i = 0; i < PGS__N_LEASES && !done; i++)
        done = take_over(pgs__ctl_lease(&s->ctl, i), gen, now, deadline);
    if (!done) done = widen(s, gen, deadline);
    pgs__commit_unlock(s);
    return done ? 0
                : pgs__fail(err, PGS_EFULL, "%u generations far apart have leases: no room for another", PGS__N_LEASES);
}

uint32_t pgs__leases_clean(struct pgs__session *s, bool all)
{
    uint32_t n = 0;
    uint64_t now = pgs__clock_boot_ns();
    for (uint32_t i = 0; i < PGS__N_LEASES; i++) {
        struct pgs__lease *lease = pgs__ctl_lease(&s->ctl, i);
        uint64_t word = atomic_load(&lease->deadline_ns);
        if (atomic_load(&lease->gen) == 0 || (!all && deadline_of(word) > now)) continue;
        if (!atomic_compare_exchange_strong(&lease->deadline_ns, &word, 0)) continue;
        atomic_store(&lease->gen, 0);
        n++;
    }
    return n;
}
