/* Pagestone | txn/txn — beginning and ending transactions.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A transaction ends three ways: committed, aborted by its owner, aborted by a commit that failed. Each gives back the claim, the
 * memory and the names; ops and records stay until the handle is gone, because pgs_txn_get handed out pointers into them.
 */
#include "libshm/txn/txn.h"

#include "libshm/platform/mem.h"

int pgs__txn_begin(struct pgs_store *st, enum pgs_isolation iso, struct pgs_txn **out, struct pgs_error *err)
{
    struct pgs_txn *t = pgs__calloc(1, sizeof *t);
    if (!t) return pgs__fail(err, PGS_ENOMEM, "no memory for a transaction");
    struct pgs__root root;
    struct pgs__pin pin;
    int rc = pgs__pin_head(st->s, &root, &pin, err);
    if (rc) goto fail;
    rc = pgs__snapshot_new(st->s, &root, &pin, &t->base, err);
    if (rc) {
        pgs__pin_drop(st->s, &pin);
        goto fail;
    }
    atomic_init(&t->refs, 1);
    pgs__mutex_init(&t->mx, PGS__RANK_TXN);
    t->s = pgs__session_ref(st->s);
    t->wait = st->wait;
    t->fork_count = atomic_load(&st->s->fork_count);
    t->iso = iso;
    t->catalog = pgs__root_catalog(st->s, &root);
    t->checksums = -1;
    t->seed = root.gen;
    t->deleted.refs = 1;
    t->next_savepoint = 1;
    pgs__claim_init(&t->claim, st->s);
    *out = t;
    return 0;
fail:
    pgs__free(t);
    return rc;
}

struct pgs_txn *pgs__txn_ref(struct pgs_txn *t)
{
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed); /* relaxed: who adds one already has one */
    return t;
}

static bool forked(const struct pgs_txn *t)
{
    return atomic_load(&t->s->fork_count) != t->fork_count;
}

int pgs__txn_peek(struct pgs_txn *t, struct pgs_error *err)
{
    /* Before mx: a thread of the parent may have held it at the fork. */
    if (forked(t))
        return pgs__fail(err, PGS_EFORKED, "this transaction was begun by another process: begin one in the child");
    pgs__mutex_lock(&t->mx);
    return 0;
}

int pgs__txn_lock(struct pgs_txn *t, struct pgs_error *err)
{
    int rc = pgs__session_check(t->s, err);
    if (rc == 0) rc = pgs__txn_peek(t, err);
    if (rc) return rc;
    pgs__advance_if_asked(t->s);
    if (t->state == PGS__TXN_OPEN) return 0;
    const char *how = t->state == PGS__TXN_COMMITTED ? "committed"
                      : t->failed                    ? "aborted by a failed commit"
                                                     : "aborted";
    pgs__mutex_unlock(&t->mx);
    return pgs__fail(err, PGS_ECLOSED, "transaction was %s; begin a new one", how);
}

void pgs__txn_unlock(struct pgs_txn *t)
{
    struct pgs_view *v = t->dead_views;
    t->dead_views = NULL;
    pgs__mutex_unlock(&t->mx);
    while (v) {
        struct pgs_view *next = v->next;
        v->next = NULL;
        pgs_view_unref(v);
        v = next;
    }
}

void pgs__txn_drop_view_locked(struct pgs_txn *t, struct pgs_view *v)
{
    v->next = t->dead_views;
    t->dead_views = v;
}

void pgs__txn_finish_locked(struct pgs_txn *t, enum pgs__txn_state state)
{
    if (t->state != PGS__TXN_OPEN) return;
    t->state = state;
    pgs__savepoints_free_locked(t, 0);
    /* Not through pgs__pend_drop: pages go back with the claim, all at once. */
    for (struct pgs__pend *p = t->pends; p; p = p->next) {
        if (!p->a) continue;
        if (state != PGS__TXN_COMMITTED) pgs__array_orphan(t, p->a);
        pgs__array_free(t, p->a);
        p->a = NULL;
    }
    pgs__edit_free(t->names);
    t->names = NULL;
    pgs__claim_release(&t->claim);
    /* Views own pins; a transaction that is over must not keep its base for as long as somebody happens to hold its handle. */
    pgs_snapshot_unref(t->base);
    t->base = NULL;
}

static void free_all(struct pgs_txn *t)
{
    for (struct pgs__op *op = pgs__op_first(t), *next; op; op = next) {
        next = op->next[0];
        pgs__ranges_free(&op->needs);
        pgs__free(op);
    }
    for (struct pgs__pend *p = t->pends, *next; p; p = next) {
        next = p->next;
        pgs__pend_free(p);
    }
    for (size_t i = 0; i < t->n_prefixes; i++) pgs__free((void *)(uintptr_t)t->prefixes[i].p);
    for (size_t i = 0; i < t->n_conflicts; i++) pgs__free((void *)(uintptr_t)t->conflicts[i].key);
    pgs__free(t->prefixes);
    pgs__free(t->conflicts);
    pgs_snapshot_unref(t->base);
    struct pgs__session *s = t->s;
    pgs__mutex_destroy(&t->mx);
    pgs__free(t);
    pgs__session_unref(s);
}

void pgs__txn_unref(struct pgs_txn *t)
{
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) > 1) return; /* pairs with other droppers */
    /* The last reference: nobody else uses it, so in a forked child a lock that was held at the fork does not matter. */
    if (forked(t)) pgs__mutex_init(&t->mx, PGS__RANK_TXN);
    pgs__mutex_lock(&t->mx);
    pgs__txn_finish_locked(t, PGS__TXN_ABORTED);
    pgs__txn_unlock(t);
    free_all(t);
}
