/* Pagestone | txn/txn_names — delete, clear, move: writes that touch names only.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

static void remove_op(struct pgs_txn *t, struct pgs__op *op)
{
    if (op->base.p) {
        pgs__op_set(t, op, &t->deleted);
        return;
    }
    pgs__op_set(t, op, NULL);
}

int pgs__txn_delete(struct pgs_txn *t, const void *key, size_t len, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, &op, err);
    if (rc == 0 && !pgs__op_exists(t, op)) {
        pgs__op_note_read(t, op);
        rc = pgs__fail_missing(err, key, len);
    }
    if (rc == 0) remove_op(t, op);
    pgs__txn_unlock(t);
    return rc;
}

int pgs__txn_clear(struct pgs_txn *t, const void *prefix, size_t len, struct pgs_error *err)
{
    struct pgs_iter *it;
    struct pgs_span key;
    int rc = pgs__iter_new(NULL, t, prefix, len, &it, err);
    if (rc) return rc;
    while ((rc = pgs__iter_next(it, &key, NULL, err)) == 0) {
        rc = pgs__txn_delete(t, key.p, key.len, err);
        if (rc == -PGS_ENOENT) { /* another thread was first */
            if (err) *err = (struct pgs_error){0};
            rc = 0;
        }
        if (rc) break;
    }
    pgs__iter_free(it);
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* The pending object that stands for what the op has; for an object of the base one is made. */
static int op_pending(struct pgs_txn *t, struct pgs__op *op, struct pgs_error *err)
{
    if (op->now) return 0;
    struct pgs__pend *p = pgs__pend_new(t, op->base.p, op->base.len);
    if (!p) return pgs__fail(err, PGS_ENOMEM, "no memory for one more object of a transaction");
    p->home = op;
    pgs__op_set(t, op, p);
    return 0;
}

static int move_locked(struct pgs_txn *t, struct pgs__op *from, struct pgs__op *to, struct pgs_error *err)
{
    if (!pgs__op_exists(t, from)) {
        pgs__op_note_read(t, from);
        return pgs__fail_missing(err, from->key, from->len);
    }
    if (from == to) return 0;
    if (pgs__op_exists(t, to))
        return pgs__fail(err, PGS_EEXIST, "cannot move '%.*s': there is a key '%.*s' already; delete it first",
                         (int)from->len, (const char *)from->key, (int)to->len, (const char *)to->key);
    int rc = op_pending(t, from, err);
    if (rc) return rc;
    struct pgs__pend *p = from->now;
    if (to->len + p->rec_len > PGS__TREE_MAX_CELL)
        return pgs__fail(err, PGS_E2BIG,
                         "the key '%.*s' is too long for what is small enough to lie beside it; copy it instead",
                         (int)to->len, (const char *)to->key);
    enum pgs_kind kind = (enum pgs_kind)p->rec[0];
    p->refs++; /* the target's; the source's goes with remove_op */
    remove_op(t, from);
    rc = pgs__op_name_fits(t, to, kind, err);
    pgs__op_set(t, rc ? from : to, p);
    return rc;
}

int pgs__txn_move(struct pgs_txn *t, const void *from, size_t from_len, const void *to, size_t to_len,
                  struct pgs_error *err)
{
    struct pgs__op *a, *b;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, from, from_len, &a, err);
    if (rc == 0) rc = pgs__op_get(t, to, to_len, &b, err);
    if (rc == 0) rc = move_locked(t, a, b, err);
    pgs__txn_unlock(t);
    return rc;
}
