/* Pagestone | txn/txn_read — looking up keys in a transaction, and declaring reads.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

/* `op` may be NULL: not touched. */
static int get_locked(struct pgs_txn *t, struct pgs__op *op, const void *key, size_t len, struct pgs_object *out,
                      struct pgs_error *err)
{
    struct pgs__object o;
    struct pgs_span rec = {0};
    int rc;
    if (!op) {
        rc = pgs__object_lookup(t->s, &t->catalog, key, len, &o, &rec, err);
    } else {
        rc = pgs__op_object(t, op, &o, err);
        if (!op->now)
            rec = op->base; /* what is pending has no record that pgs_view_open may use: its pages may be given back */
    }
    if (rc == 0 && op && op->now &&
        op->now->a) { /* the record is behind: the bytes are in memory, the shape may have changed */
        o = op->now->a->o;
        o.content.n_bytes = op->now->a->n_bytes;
        o.content.inline_data = NULL;
        if (o.content.form == PGS__FORM_INLINE) o.content.form = PGS__FORM_MAP;
    }
    if (rc == 0) pgs__object_publish(&o, rec, out);
    return rc;
}

/* The op of a key that is read, or NULL: without "serializable" a read leaves no trace, the table holds what was written. */
static int note_read(struct pgs_txn *t, const void *key, size_t len, struct pgs__op **op, struct pgs_error *err)
{
    *op = NULL;
    if (t->iso != PGS_ISO_SERIALIZABLE) {
        *op = pgs__op_find(t, key, len);
        return 0;
    }
    int rc = pgs__op_get(t, key, len, op, err);
    if (rc == 0) pgs__op_note_read(t, *op);
    return rc;
}

int pgs__txn_get(struct pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = note_read(t, key, len, &op, err);
    if (rc == 0) rc = get_locked(t, op, key, len, out, err);
    pgs__txn_unlock(t);
    return rc;
}

int pgs__txn_peek_key(struct pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err)
{
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = get_locked(t, pgs__op_find(t, key, len), key, len, out, err);
    if (rc == 0) out->inline_data = NULL;
    pgs__txn_unlock(t);
    return rc;
}

/* Under one hold of the lock: a description and bytes of different moments would not fit each other. */
int pgs__txn_fetch(struct pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_view **view,
                   struct pgs_error *err)
{
    struct pgs__op *op;
    *view = NULL;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = note_read(t, key, len, &op, err);
    if (rc == 0) rc = get_locked(t, op, key, len, out, err);
    if (rc == 0 && (out->kind == PGS_KIND_ARRAY || out->kind == PGS_KIND_PICKLE || !out->inline_data)) {
        if (!op) rc = pgs__op_get(t, key, len, &op, err);
        if (rc == 0 && out->kind == PGS_KIND_ARRAY) rc = pgs__array_open_locked(t, op, err);
        if (rc == 0) rc = pgs__txn_view_locked(t, op, view, err); /* of an opened array: its memory, writable */
        if (rc == 0 && out->kind == PGS_KIND_ARRAY)               /* the memory may have taken the record's place */
            rc = get_locked(t, op, key, len, out, err);
    }
    pgs__txn_unlock(t);
    if (rc) {
        pgs_view_unref(*view);
        *view = NULL;
    }
    return rc;
}

int pgs__txn_depends(struct pgs_txn *t, const void *key, size_t len, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct pgs__op *op;
    struct pgs__object o;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, &op, err);
    bool is_array = rc == 0 && op->base.p && ((const uint8_t *)op->base.p)[0] == PGS_KIND_ARRAY;
    if (rc == 0 && lo > hi) {
        rc = pgs__fail(err, PGS_EINVAL, "a range of elements ends before it begins");
    } else if (rc == 0 && (hi == 0 || !is_array)) {
        op->read |= PGS__READ_KEY;
        op->whole = true;
    } else if (rc == 0 && lo < hi) {
        rc = pgs__op_decode(t, op, op->base, &o, err);
        if (rc == 0 && pgs__grow(&op->needs.v, &op->needs.cap, op->needs.n + 1, sizeof *op->needs.v))
            rc = pgs__fail(err, PGS_ENOMEM, "no memory for a list of ranges");
        if (rc == 0) op->needs.v[op->needs.n++] = (struct pgs_range){lo, hi};
    }
    pgs__txn_unlock(t);
    return rc;
}
