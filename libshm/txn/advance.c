/* Pagestone | txn/advance — pins that move: a view keeps its object's pages, not all pages of the version that it was read at.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A view shows one object. Where a newer head refers to that object by the very same record (id, revision, page numbers), pinning the head keeps the view's pages as well as pinning the
 * generation that it was read at, and everything else of that generation may go. A writer that has no room, or whose dead pages pile up behind pins, raises please_advance; each process
 * compares that word with its own at the beginning of calls, and then moves what can be moved, some views per call (a round ends with the last of them).
 *
 *     link       a hold is entered at its pin's entry when the view is made, under the lock that counts the pin anyway
 *     take       under the lock: an entry of an older generation that only holds refer to; references of it and of the head; up to 32 of its holds
 *     look up    without the lock: both generations are pinned, and so are both catalogs
 *     move       under the lock: those whose records are equal byte by byte go to the head's entry; the others stay for good and are not asked again
 *
 *   A1  The new pin is proven (pin.c) before the old one goes. docs/design/locking.md has the argument why a collector then needs no second look, as it does for forks.
 *   A2  Equal bytes of the record, and the old pages pinned in between: the same page numbers are the same pages. Equal revisions would not do: compaction moves pages and keeps revisions.
 *   A3  One thread at a time; its work lies in the session, so that the child of a fork finds the references and gives them back.
 *   A4  A hold that was dropped or told to stay while its object was looked up is taken out of the batch by who did that.
 */
#include <time.h>

#include "libshm/platform/inject.h"
#include "libshm/tree/node.h"
#include "libshm/txn/session_impl.h"

#define BATCHES_PER_CALL 2u
#define ROUNDS_WHEN_ASKING 64u /* of calls: 4,096 holds */
#define GROWTH_WORTH_IT 4096u  /* pages, 16 MiB */
#define PATIENCE 20u           /* looks, 1 ms apart */
#define LOOK_EVERY_NS 1000000

/* --- holds: all with PINS held ------------------------------------------------------------------------------------------ */
static void link_hold(struct pgs__session *s, struct pgs__hold *h)
{
    struct pgs__pin_entry *e = &s->pins[h->pin.index];
    h->prev = NULL;
    h->next = e->movable;
    if (h->next) h->next->prev = h;
    e->movable = h;
    e->n_movable++;
    h->linked = true;
}

static void unlink_hold(struct pgs__session *s, struct pgs__hold *h)
{
    struct pgs__pin_entry *e = &s->pins[h->pin.index];
    if (h->batch) s->advance.batch[h->batch - 1].hold = NULL;
    h->batch = 0;
    if (!h->linked) return;
    if (h->next) h->next->prev = h->prev;
    if (h->prev)
        h->prev->next = h->next;
    else
        e->movable = h->next;
    e->n_movable--;
    h->linked = false;
}

void pgs__hold_take(struct pgs__session *s, struct pgs__hold *h, const struct pgs__pin *pin)
{
    h->pin = *pin;
    h->pinned = pin->index != UINT32_MAX && !pgs__session_lost();
    if (!h->pinned) return;
    pgs__mutex_lock(&s->pins_mx);
    PGS_BUG_ON(pin->index >= s->n_pins || s->pins[pin->index].gen != pin->gen);
    s->pins[pin->index].refs++;
    if (h->record) link_hold(s, h);
    pgs__mutex_unlock(&s->pins_mx);
}

void pgs__hold_drop(struct pgs__session *s, struct pgs__hold *h)
{
    if (!h->pinned || pgs__session_lost()) return;
    pgs__mutex_lock(&s->pins_mx);
    PGS_BUG_ON(h->pin.index >= s->n_pins || s->pins[h->pin.index].gen != h->pin.gen);
    unlink_hold(s, h);
    pgs__pin_put_locked(s, h->pin.index);
    pgs__mutex_unlock(&s->pins_mx);
}

struct pgs__pin pgs__hold_stay(struct pgs__session *s, struct pgs__hold *h)
{
    if (!h->pinned) return h->pin;
    pgs__mutex_lock(&s->pins_mx);
    unlink_hold(s, h);
    struct pgs__pin pin = h->pin;
    pgs__mutex_unlock(&s->pins_mx);
    return pin;
}

pgs_gen_t pgs__hold_gen(struct pgs__session *s, struct pgs__hold *h)
{
    pgs__mutex_lock(&s->pins_mx);
    pgs_gen_t gen = h->pin.gen;
    pgs__mutex_unlock(&s->pins_mx);
    return gen;
}

/* --- one batch --------------------------------------------------------------------------------------------------------------- */
/* An entry whose cell would be emptied: with another reference, or with one that stays, moving would be for nothing. */
static bool worth_it(const struct pgs__pin_entry *e, uint64_t until)
{
    return e->gen && e->gen < until && e->proven && !e->frozen && e->n_movable && e->n_movable == e->refs;
}

static void end_round(struct pgs__session *s)
{
    s->advance.in_round = false;
    atomic_store_explicit(&s->advanced, s->advance.goal, memory_order_relaxed); /* as pgs__advance_if_asked */
}

/* False: the round is over. With PINS held. */
static bool take(struct pgs__session *s)
{
    struct pgs__advance *a = &s->advance;
    uint32_t i = 0;
    if (!a->in_round) { /* acquire: whoever asked had published what made it ask */
        a->goal = atomic_load_explicit(&s->ctl.c->please_advance, memory_order_acquire);
        a->until = atomic_load_explicit(&s->ctl.c->head_gen, memory_order_acquire);
        a->in_round = true;
    }
    while (i < s->n_pins && !worth_it(&s->pins[i], a->until)) i++;
    /* A table that is full, or a damaged head: nothing moves this time. */
    if (i == s->n_pins || pgs__pin_head_locked(s, &a->root, &a->to, NULL)) {
        end_round(s);
        return false;
    }
    struct pgs__pin_entry *e = &s->pins[i]; /* not before: the table may have moved */
    e->refs++;
    a->from = (struct pgs__pin){.index = i, .gen = e->gen};
    a->forks = atomic_load(&s->fork_count);
    a->busy = true;
    a->n = 0;
    for (struct pgs__hold *h = e->movable; h && a->n < PGS__ADVANCE_BATCH; h = h->next) {
        a->batch[a->n].hold = h;
        a->batch[a->n].record = h->record;
        h->batch = ++a->n;
    }
    return true;
}

/* The entry of the leaf that holds this record. The node was verified when the view was found through it, and is pinned; a caller may have mixed up snapshots, though. */
static int key_of(const void *record, struct pgs_span *key, struct pgs_span *val)
{
    const struct pgs__node *nd = (const void *)((uintptr_t)record & ~(uintptr_t)(PGS_PAGE_SIZE - 1));
    if (pgs__node_validate(nd) || nd->kind != PGS__TREE_CATALOG || nd->level != 0) return -PGS_ENOENT;
    for (unsigned i = 0; i < nd->n; i++) {
        *val = pgs__node_val(nd, i);
        if (val->p != record) continue;
        *key = pgs__node_key(nd, i);
        return 0;
    }
    return -PGS_ENOENT;
}

/* The record in the newer catalog if it is the same, else NULL. */
static const void *find_same(struct pgs__session *s, const struct pgs__root *root, const void *record)
{
    struct pgs__tree catalog = {.pf = &s->pf, .kind = PGS__TREE_CATALOG, .root = root->catalog};
    struct pgs_span key, old, now;
    if (key_of(record, &key, &old) || pgs__tree_get(&catalog, key.p, key.len, &now, NULL)) return NULL;
    return pgs__span_eq(old, now) || PGS_PLANTED(15) ? now.p : NULL;
}

/* With PINS held. */
static void move(struct pgs__session *s, struct pgs__hold *h, const void *found)
{
    struct pgs__advance *a = &s->advance;
    unlink_hold(s, h);
    if (!found) return; /* changed, moved or gone: it stays */
    h->pin = a->to;
    h->record = found;
    h->version = a->root.version;
    s->pins[a->to.index].refs++;
    link_hold(s, h);
    pgs__pin_put_locked(s, a->from.index); /* not the last: we have one, too */
}

static bool advance_batch(struct pgs__session *s)
{
    struct pgs__advance *a = &s->advance;
    pgs__mutex_lock(&s->pins_mx);
    bool mine = !a->busy && take(s);
    pgs__mutex_unlock(&s->pins_mx);
    if (!mine) return false;
    PGS_KILL_POINT("advance_taken");
    for (uint32_t i = 0; i < a->n; i++) a->batch[i].found = find_same(s, &a->root, a->batch[i].record);
    PGS_KILL_POINT("advance_found");
    pgs__mutex_lock(&s->pins_mx);
    if (a->busy && a->forks == atomic_load(&s->fork_count)) { /* else a signal handler forked: pgs__advance_forked */
        for (uint32_t i = 0; i < a->n; i++)
            if (a->batch[i].hold) move(s, a->batch[i].hold, a->batch[i].found);
        a->busy = false;
        pgs__pin_put_locked(s, a->from.index);
        pgs__pin_put_locked(s, a->to.index);
    }
    pgs__mutex_unlock(&s->pins_mx);
    return true;
}

void pgs__advance_forked(struct pgs__session *s)
{
    struct pgs__advance *a = &s->advance;
    a->in_round = false;
    if (!a->busy) return;
    for (uint32_t i = 0; i < a->n; i++)
        if (a->batch[i].hold) a->batch[i].hold->batch = 0;
    a->busy = false;
    pgs__pin_put_locked(s, a->from.index);
    pgs__pin_put_locked(s, a->to.index);
}

void pgs__advance(struct pgs__session *s)
{
    if (pgs__session_lost()) return;
    for (unsigned i = 0; i < BATCHES_PER_CALL && advance_batch(s); i++) {
    }
}

/* --- asking --------------------------------------------------------------------------------------------------------------------- */
static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ b * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;
    return x ^ x >> 32;
}

/* What others pin besides the head, as one number; 0: nothing. */
struct print {
    uint64_t head, sum;
};
static int add_print(void *ctx, const struct pgs__slot_info *i)
{
    struct print *p = ctx;
    for (size_t k = 0; !i->self && k < i->n_gens; k++)
        if (i->gens[k] < p->head) p->sum += mix(i->slot + 1u, i->gens[k]);
    return 0;
}
static uint64_t others(struct pgs__session *s)
{
    struct print p = {.head = atomic_load(&s->ctl.c->head_gen)};
    uint64_t at;
    (void)pgs__slots_walk(s, add_print, &p, NULL);
    if (pgs__ofd_first(s->pf.fd, PGS__LOCK_READ(1), PGS__LOCK_READ(p.head), &at) > 0) p.sum += mix(UINT64_MAX, at);
    return p.sum;
}

/* Those that are in the middle of calls answer within microseconds. Whoever did not last time sleeps or cannot, and is not waited for again. */
static void wait_for_others(struct pgs__session *s)
{
    uint64_t seen = others(s);
    for (unsigned i = 0; i < PATIENCE && seen && seen != atomic_load(&s->others_stayed); i++) {
        nanosleep(&(struct timespec){.tv_nsec = LOOK_EVERY_NS}, NULL);
        seen = others(s);
    }
    atomic_store(&s->others_stayed, seen);
}

void pgs__advance_ask(struct pgs__session *s, bool wait)
{
    if (!s->writable || pgs__session_lost()) return;
    atomic_fetch_add(&s->ctl.c->please_advance, 1);
    uint32_t goal = atomic_load(&s->ctl.c->please_advance);
    for (unsigned i = 0; i < ROUNDS_WHEN_ASKING && atomic_load(&s->advanced) != goal; i++) pgs__advance(s);
    if (wait) wait_for_others(s);
}

bool pgs__advance_is_due(struct pgs__session *s, uint64_t pages_dead, uint64_t pages_used, bool zombies)
{
    s->asked_dead = pgs__min_u64(s->asked_dead, pages_dead);
    if (!zombies || pages_dead - s->asked_dead < pgs__max_u64(GROWTH_WORTH_IT, pages_used / 16)) return false;
    s->asked_dead = pages_dead;
    return true;
}
