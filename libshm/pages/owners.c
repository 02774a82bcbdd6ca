/* Pagestone | pages/owners — which process prepares pages in which chunk.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One word per 2 MiB chunk: 0, or the tag of a slot's incarnation. A claim is one compare-and-swap, so a process that dies
 * anywhere leaves either nothing or a word that names it; whoever then holds the slot's lock sweeps. Tags carry the
 * incarnation: the next owner of the same slot never mistakes a predecessor's chunk for its own.
 */
#include "libshm/pages/control.h"

static _Atomic uint64_t *owner_word(struct pgs__ctl *ctl, uint64_t chunk)
{
    PGS_BUG_ON(chunk >= PGS__N_OWNERS);
    return (_Atomic uint64_t *)(void *)((uint8_t *)ctl->c + PGS__OWNERS_OFFSET) + chunk;
}

/* Before the word: who sweeps a dead claimer's chunks looks at all below the mark. Relaxed look: it only grows. */
static void raise_end(struct pgs__ctl *ctl, uint64_t chunk)
{
    uint64_t seen = atomic_load_explicit(&ctl->c->owners_end, memory_order_relaxed);
    while (seen <= chunk && !atomic_compare_exchange_weak(&ctl->c->owners_end, &seen, chunk + 1)) {
    }
}

bool pgs__owner_claim(struct pgs__ctl *ctl, uint64_t chunk, uint64_t tag)
{
    uint64_t nobody = 0;
    pgs_assert(tag != 0);
    raise_end(ctl, chunk);
    /* acquire: what the former owner did before its release (it read or wrote pages of the chunk) is over. Pairs with the release in
     * pgs__owner_release and pgs__owner_sweep. */
    return atomic_compare_exchange_strong_explicit(owner_word(ctl, chunk), &nobody, tag, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

void pgs__owner_release(struct pgs__ctl *ctl, uint64_t chunk, uint64_t tag)
{
    uint64_t expected = tag;
    /* release: our stores into the chunk go before. Pairs with the acquire in pgs__owner_claim. */
    bool ours = atomic_compare_exchange_strong_explicit(owner_word(ctl, chunk), &expected, 0, memory_order_release,
                                                        memory_order_relaxed);
    PGS_BUG_ON(!ours);
}

uint64_t pgs__owner_of(struct pgs__ctl *ctl, uint64_t chunk)
{
    return atomic_load(owner_word(ctl, chunk));
}

int pgs__owner_reserve(struct pgs__ctl *ctl, uint64_t n_chunks, struct pgs_error *err)
{
    if (n_chunks > PGS__N_OWNERS)
        return pgs__fail(err, PGS_EFULL, "a page file cannot have more than %llu chunks",
                         (unsigned long long)PGS__N_OWNERS);
    return n_chunks ? pgs__ctl_reserve(ctl, PGS__OWNERS_OFFSET, 8 * n_chunks, err) : 0;
}

uint64_t pgs__owner_end(struct pgs__ctl *ctl)
{
    return pgs__min_u64(atomic_load(&ctl->c->owners_end), PGS__N_OWNERS);
}

uint64_t pgs__owner_sweep(struct pgs__ctl *ctl, uint64_t n_chunks, uint64_t tag)
{
    uint64_t swept = 0;
    for (uint64_t i = 0; i < n_chunks; i++) {
        _Atomic uint64_t *word = owner_word(ctl, i);
        uint64_t expected = tag;
        /* relaxed look first: a word that holds another tag cannot become `tag`, whose process is dead */
        if (atomic_load_explicit(word, memory_order_relaxed) == tag &&
            atomic_compare_exchange_strong_explicit(word, &expected, 0, memory_order_release, memory_order_relaxed))
            swept++;
    }
    return swept;
}
