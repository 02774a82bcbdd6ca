/* Pagestone | txn/claim — the life of a claim: begun, recorded in the ledger, lent, joined to another, released.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A claim is filled by claim_alloc.c (what is wanted), claim_chunks.c (chunks and what is free in them) and claim_nodes.c (a commit's own nodes); claim_lists.c keeps
 * its lists, claim_space.c what the process knows about free space between claims. Here is what happens to it as a whole.
 *
 *   empty ── alloc ──▶ owns chunks ── record ──▶ its pages are used in the ledger of a commit ── publish ──▶ release ──▶ empty
 *                          │                                                                                   ▲
 *                          └────────────────────────── abandoned, or the process dies ─────────────────────────┘
 *
 * A crash at any arrow leaves owner words and no more: pgs__sweep clears those of the dead, and pages that no published record names as used are free.
 *
 *   I1  Each owner word has one claim to give it back: a claim that lends or joins loses its chunks in the same step.
 *   I2  tag and fork_count are set before the first word is claimed (pgs__claim_stamp) and stay until the release, which clears words only where both are still the session's.
 */
#include "libshm/txn/claim.h"

#include "libshm/platform/mem.h"

void pgs__claim_init(struct pgs__claim *c, struct pgs__session *s)
{
    memset(c, 0, sizeof *c);
    c->s = s;
}

void pgs__claim_stamp(struct pgs__claim *c)
{
    if (c->n_chunks || c->n_taken || c->n_direct) return;
    c->tag = c->s->tag;
    c->fork_count = atomic_load(&c->s->fork_count);
}

bool pgs__run_is_whole(struct pgs_run run)
{
    return run.page.n % PGS_CHUNK_PAGES == 0 && run.n_pages % PGS_CHUNK_PAGES == 0;
}

/* --- recording --------------------------------------------------------------------------------------------------------------------------- */

int pgs__claim_record_from(struct pgs__claim *c, size_t first, struct pgs__ledger *l, struct pgs_error *err)
{
    for (size_t i = first; i < c->n_taken; i++) {
        const struct pgs__taken *t = &c->taken[i];
        int rc = 0;
        if (t->from_reserve && t->given)
            rc = pgs__ledger_give(l, t->run, t->is_node, err);
        else if (!t->from_reserve)
            rc = pgs__ledger_take(l, t->run, t->is_node, err);
        if (rc) return rc;
    }
    c->n_sealed = c->n_taken;
    return 0;
}

int pgs__claim_record(struct pgs__claim *c, struct pgs__ledger *l, struct pgs_error *err)
{
    return pgs__claim_record_from(c, 0, l, err);
}

/* --- lending, releasing, joining ---------------------------------------------------------------------------------------------------------- */

static void move_chunks(struct pgs__claim *to, struct pgs__claim *from)
{
    PGS_BUG_ON(to->n_chunks || to->n_avail[0] || to->n_avail[1]);
    pgs__free(to->chunks);
    to->chunks = from->chunks;
    to->n_chunks = from->n_chunks;
    to->cap_chunks = from->cap_chunks;
    from->chunks = NULL;
    from->n_chunks = from->cap_chunks = 0;
    for (int k = 0; k < 2; k++) {
        pgs__free(to->avail[k]);
        to->avail[k] = from->avail[k];
        to->n_avail[k] = from->n_avail[k];
        to->cap_avail[k] = from->cap_avail[k];
        from->avail[k] = NULL;
        from->n_avail[k] = from->cap_avail[k] = 0;
    }
    to->light = from->light;
    from->light.hi = 0;
}

void pgs__claim_lend(struct pgs__claim *to, struct pgs__claim *from)
{
    PGS_BUG_ON(to->n_chunks || to->n_taken || to->n_direct || to->lender || from->n_direct || from->lender);
    if (from->n_chunks == 0) return;
    to->tag = from->tag;
    to->fork_count = from->fork_count;
    to->lender = from;
    move_chunks(to, from);
}

void pgs__claim_release(struct pgs__claim *c)
{
    struct pgs__session *s = c->s;
    if (!s) return;
    if (c->lender) move_chunks(c->lender, c); /* with what was claimed since */
    if ((c->n_chunks || c->n_direct) && c->tag == s->tag && c->fork_count == atomic_load(&s->fork_count)) { /* I5 */
        for (size_t i = 0; i < c->n_chunks; i++) pgs__owner_release(&s->ctl, c->chunks[i], c->tag);
        for (unsigned i = 0; i < c->n_direct; i++) pgs__owner_release(&s->ctl, c->direct[i], c->tag);
    }
    pgs__free(c->chunks);
    pgs__free(c->taken);
    pgs__free(c->avail[0]);
    pgs__free(c->avail[1]);
    pgs__claim_init(c, s);
}

int pgs__claim_join(struct pgs__claim *to, struct pgs__claim *from)
{
    if (pgs__grow(&to->chunks, &to->cap_chunks, to->n_chunks + from->n_chunks, sizeof to->chunks[0]) ||
        pgs__grow(&to->taken, &to->cap_taken, to->n_taken + from->n_taken, sizeof to->taken[0]) ||
        pgs__grow(&to->avail[0], &to->cap_avail[0], to->n_avail[0] + from->n_avail[0], sizeof(struct pgs_run)) ||
        pgs__grow(&to->avail[1], &to->cap_avail[1], to->n_avail[1] + from->n_avail[1], sizeof(struct pgs_run)))
        return -PGS_ENOMEM;
    PGS_BUG_ON(from->n_direct);
    if (to->n_chunks == 0 && to->n_taken == 0 && to->n_direct == 0) {
        to->tag = from->tag;
        to->fork_count = from->fork_count;
    }
    for (size_t i = 0; i < from->n_chunks; i++) to->chunks[to->n_chunks++] = from->chunks[i];
    for (size_t i = 0; i < from->n_taken; i++) to->taken[to->n_taken++] = from->taken[i];
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < from->n_avail[k]; i++) to->avail[k][to->n_avail[k]++] = from->avail[k][i];
    if (to->light.hi == 0) to->light = from->light;
    from->n_chunks = 0; /* the words are `to`'s now */
    pgs__claim_release(from);
    return 0;
}
