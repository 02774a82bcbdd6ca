/* Pagestone | txn/claim_space — what this process knows about free space: hints, limits, and whether space is scarce.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One struct pgs__space per session and process. A forked child makes its own and never looks into its parent's, which another thread may have been changing at the fork.
 *
 *   I1  Nothing here is the truth: the ledger says what is free, the owner words whose a chunk is. A wrong hint costs time and nothing else.
 *   I2  What several threads share is under space_mx; the rest belongs to the holder of the commit lock.
 *
 * Recycling: chunks that this process freed lately are tried first, newest first. Their pages are probably still resident, which makes writing them
 * cheaper than fresh ones (bench/bench_fresh.c). The list is only a hint: the ledger is asked whether they are free.
 *
 * Callers: the rest of the claim, make_room.c, the commit, and pgs__ledger_reclaim by way of pgs__space_freed.
 */
#include "libshm/txn/claim_impl.h"

#include "libshm/platform/mem.h"

struct pgs__space *pgs__space_of(struct pgs__session *s)
{
    uint64_t fork_count = atomic_load_explicit(&s->fork_count, memory_order_relaxed); /* changes in a fork hook only */
    pgs__mutex_lock(&s->space_mx);
    struct pgs__space *sp = s->space;
    if (PGS_UNLIKELY(!sp || sp->fork_count != fork_count)) {
        sp = pgs__calloc(1, sizeof *sp);
        if (sp) {
            sp->fork_count = fork_count;
            sp->inherited = s->space;
            s->space = sp;
        }
    }
    pgs__mutex_unlock(&s->space_mx);
    return sp;
}

/* Those of parents, in a child that ended its session. */
static struct pgs__space *_Atomic left_behind;

/* What another thread of the parent may have been changing at the fork can be neither used nor freed. It stays reachable, so that leak checkers tell it from what was forgotten. */
static void leave_behind(struct pgs__space *sp)
{
    sp->inherited = atomic_load(&left_behind);
    while (!atomic_compare_exchange_weak(&left_behind, &sp->inherited, sp)) {
    }
}

void pgs__space_end(struct pgs__session *s)
{
    bool own = s->space && s->space->fork_count == atomic_load(&s->fork_count);
    for (struct pgs__space *sp = s->space, *next; sp; sp = next, own = false) {
        next = sp->inherited;
        if (!own) {
            leave_behind(sp);
            continue;
        }
        pgs__meta_kept_free(&sp->kept);
        pgs__edit_free(sp->edit);
        pgs__free(sp->buf);
        pgs__free(sp);
    }
    s->space = NULL;
}

/* --- recycling --------------------------------------------------------------------------------------------------------------------- */

void pgs__space_freed(void *session, struct pgs_run run)
{
    struct pgs__session *s = session;
    struct pgs__space *sp = pgs__space_of(s);
    if (!sp) return;
    uint64_t first = (run.page.n + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
    uint64_t end = (run.page.n + run.n_pages) / PGS_CHUNK_PAGES;
    pgs__mutex_lock(&s->space_mx);
    sp->freed_pages += run.n_pages;
    if (first >= end) {
        pgs__mutex_unlock(&s->space_mx);
        return;
    }
    if (sp->n_recycled == PGS__N_RECYCLED) {
        memmove(&sp->recycled[0], &sp->recycled[1], (PGS__N_RECYCLED - 1) * sizeof sp->recycled[0]);
        sp->n_recycled--;
    }
    sp->recycled[sp->n_recycled].first = first;
    sp->recycled[sp->n_recycled].n = end - first;
    sp->n_recycled++;
    pgs__mutex_unlock(&s->space_mx);
}

bool pgs__space_recycled(struct pgs__session *s, struct pgs__space *sp, uint64_t n, uint64_t *first)
{
    bool found = false;
    pgs__mutex_lock(&s->space_mx);
    for (unsigned i = sp->n_recycled; i-- > 0 && !found;) {
        if (sp->recycled[i].n < n) continue;
        *first = sp->recycled[i].first;
        sp->recycled[i].first += n;
        sp->recycled[i].n -= n;
        if (sp->recycled[i].n == 0) {
            memmove(&sp->recycled[i], &sp->recycled[i + 1], (sp->n_recycled - i - 1) * sizeof sp->recycled[0]);
            sp->n_recycled--;
        }
        found = true;
    }
    pgs__mutex_unlock(&s->space_mx);
    return found;
}

/* --- limits ------------------------------------------------------------------------------------------------------------------------ */

uint64_t pgs__page_limit(const struct pgs__ledger *l)
{
    uint64_t quota = l->meta.hdr.quota_bytes;
    return quota ? pgs__min_u64(quota >> PGS_PAGE_SHIFT, PGS__MAX_PAGES) : PGS__MAX_PAGES;
}

uint64_t pgs__reserve_least(const struct pgs__ledger *l)
{
    uint64_t want = pgs__min_u64(PGS__RESERVE_PAGES, pgs__page_limit(l) / 8);
    return want - want / 4;
}

bool pgs__is_scarce(struct pgs__session *s)
{
    return atomic_load_explicit(&s->ctl.c->flags, memory_order_relaxed) & PGS__CTL_SCARCE; /* a hint */
}

void pgs__set_scarce(struct pgs__session *s, bool on)
{
    if (on)
        atomic_fetch_or(&s->ctl.c->flags, PGS__CTL_SCARCE);
    else if (pgs__is_scarce(s))
        atomic_fetch_and(&s->ctl.c->flags, ~(uint64_t)PGS__CTL_SCARCE);
}

/* --- owner words ------------------------------------------------------------------------------------------------------------------- */

int pgs__claim_owner_words(struct pgs__session *s, uint64_t chunk, struct pgs_error *err)
{
    struct pgs__space *sp = pgs__space_of(s);
    if (!sp) return pgs__fail(err, PGS_ENOMEM, "no memory for the space table");
    if (chunk < sp->owners_reserved) return 0;
    uint64_t n = pgs__min_u64((chunk / 512 + 1) * 512, PGS__N_OWNERS);
    int rc = pgs__owner_reserve(&s->ctl, n, err);
    if (rc) return rc;
    pgs__mutex_lock(&s->space_mx);
    sp->owners_reserved = pgs__max_u64(sp->owners_reserved, n);
    pgs__mutex_unlock(&s->space_mx);
    return 0;
}
