/* Pagestone | txn/ops — the table of touched keys, pending objects, and range lists.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The table is a skip list in key order: listing a transaction merges it with the base's catalog, and a commit edits the catalog in order. Ops
 * stay until the transaction is gone; a rollback only clears them.
 *
 * The name rules hold for the transaction's own picture of the names. While no name was added or removed that is the base's catalog; after that `names` is
 * an edit of it, kept in memory only, to which every change of a name is applied.
 */
#include <stdlib.h>

#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

/* --- the skip list -------------------------------------------------------------------------------------------------------- */
static int key_compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

/* Links to the first op ≥ key, at every height. */
static void seek(struct pgs_txn *t, const void *key, size_t len, struct pgs__op **links[PGS__OP_LEVELS])
{
    struct pgs__op **at = t->head;
    for (int h = PGS__OP_LEVELS - 1; h >= 0; h--) {
        while (at[h] && key_compare(at[h]->key, at[h]->len, key, len) < 0) at = at[h]->next;
        links[h] = &at[h];
    }
}

struct pgs__op *pgs__op_after(struct pgs_txn *t, const void *key, size_t len, bool or_equal)
{
    struct pgs__op **links[PGS__OP_LEVELS];
    seek(t, key, len, links);
    struct pgs__op *op = *links[0];
    if (op && !or_equal && key_compare(op->key, op->len, key, len) == 0) op = op->next[0];
    return op;
}

struct pgs__op *pgs__op_find(struct pgs_txn *t, const void *key, size_t len)
{
    struct pgs__op *op = pgs__op_after(t, key, len, true);
    return op && op->len == len && memcmp(op->key, key, len) == 0 ? op : NULL;
}

static struct pgs__op *op_new(struct pgs_txn *t, const void *key, size_t len)
{
    int height = 1;
    t->seed = pgs__mix(t->seed + 0x9e3779b97f4a7c15u);
    for (uint64_t bits = t->seed; (bits & 3) == 0 && height < PGS__OP_LEVELS; bits >>= 2) height++;
    size_t links = (size_t)height * sizeof(struct pgs__op *);
    struct pgs__op *op = pgs__calloc(1, sizeof *op + links + len);
    if (!op) return NULL;
    uint8_t *copy = (uint8_t *)op + sizeof *op + links;
    memcpy(copy, key, len);
    op->key = copy;
    op->len = len;
    op->height = height;
    op->landed = -1;
    return op;
}

int pgs__op_get(struct pgs_txn *t, const void *key, size_t len, struct pgs__op **out, struct pgs_error *err)
{
    struct pgs__op **links[PGS__OP_LEVELS];
    seek(t, key, len, links);
    struct pgs__op *op = *links[0];
    if (op && op->len == len && memcmp(op->key, key, len) == 0) {
        *out = op;
        return 0;
    }
    struct pgs_span base = {0};
    int rc = pgs__tree_get(&t->catalog, key, len, &base, err);
    if (rc && rc != -PGS_ENOENT) return rc;
    op = op_new(t, key, len);
    if (!op) return pgs__fail(err, PGS_ENOMEM, "no memory for one more key of a transaction");
    if (rc == 0) op->base = base;
    for (int h = 0; h < op->height; h++) {
        op->next[h] = *links[h];
        *links[h] = op;
    }
    t->n_ops++;
    *out = op;
    return 0;
}

int pgs__op_decode(struct pgs_txn *t, const struct pgs__op *op, struct pgs_span rec, struct pgs__object *out,
                   struct pgs_error *err)
{
    return pgs__object_decode(&t->s->pf, (struct pgs_span){op->key, op->len}, rec, out, err);
}

int pgs__op_object(struct pgs_txn *t, const struct pgs__op *op, struct pgs__object *out, struct pgs_error *err)
{
    if (!pgs__op_exists(t, op)) return pgs__fail_missing(err, op->key, op->len);
    return pgs__op_decode(t, op, pgs__op_record(op), out, err);
}

int pgs__fail_missing(struct pgs_error *err, const void *key, size_t len)
{
    return pgs__fail(err, PGS_ENOENT, "no key '%.*s'", (int)len, (const char *)key);
}

void pgs__op_note_read(struct pgs_txn *t, struct pgs__op *op)
{
    /* What the transaction put there itself says nothing about others. */
    if (t->iso == PGS_ISO_SERIALIZABLE && (!op->now || (op->now != &t->deleted && op->now->home)))
        op->read |= PGS__READ_KEY;
}

/* --- names -------------------------------------------------------------------------------------------------------------------- */
static int names_apply(struct pgs_txn *t, struct pgs__op *op, struct pgs_error *err)
{
    int rc;
    if (pgs__op_exists(t, op)) {
        struct pgs_span rec = pgs__op_record(op);
        return pgs__edit_put(t->names, op->key, op->len, rec.p, rec.len, err);
    }
    rc = pgs__edit_del(t->names, op->key, op->len, err);
    return rc == -PGS_ENOENT ? 0 : rc;
}

static int names_build(struct pgs_txn *t, struct pgs_error *err)
{
    t->names = pgs__edit_new(&t->s->pf, PGS__TREE_CATALOG, &t->catalog.root);
    if (!t->names) return pgs__fail(err, PGS_ENOMEM, "no memory for the names of a transaction");
    int rc = 0;
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0])
        if (op->now) rc = names_apply(t, op, err);
    if (rc) {
        pgs__edit_free(t->names);
        t->names = NULL;
    }
    return rc;
}

int pgs__op_name_fits(struct pgs_txn *t, struct pgs__op *op, enum pgs_kind kind, struct pgs_error *err)
{
    /* The kind is the first byte of a record; the same name of the same kind fitted before. */
    if (pgs__op_exists(t, op) && ((const uint8_t *)pgs__op_record(op).p)[0] == (uint8_t)kind) return 0;
    struct pgs__tree tree = t->catalog;
    if (t->renamed) {
        int rc = t->names ? 0 : names_build(t, err);
        if (rc) return rc;
        tree.edit = t->names;
    }
    return pgs__name_fits(&tree, op->key, op->len, kind, err);
}

void pgs__op_set(struct pgs_txn *t, struct pgs__op *op, struct pgs__pend *p)
{
    struct pgs__pend *old = op->now;
    struct pgs_span was = pgs__op_exists(t, op) ? pgs__op_record(op) : (struct pgs_span){0};
    op->now = p;
    struct pgs_span is = pgs__op_exists(t, op) ? pgs__op_record(op) : (struct pgs_span){0};
    bool names_change = !was.p != !is.p || (was.p && ((const uint8_t *)was.p)[0] != ((const uint8_t *)is.p)[0]);
    if (names_change) {
        t->renamed = true;
        if (t->names && names_apply(t, op, NULL)) { /* no memory: built anew when it is needed */
            pgs__edit_free(t->names);
            t->names = NULL;
        }
    }
    if (old) pgs__pend_drop(t, old);
}

/* --- pending objects ------------------------------------------------------------------------------------------------------------ */
struct pgs__pend *pgs__pend_new(struct pgs_txn *t, const void *rec, size_t len)
{
    struct pgs__pend *p = pgs__calloc(1, sizeof *p);
    uint8_t *copy = p ? pgs__malloc(len) : NULL;
    if (!copy) {
        pgs__free(p);
        return NULL;
    }
    memcpy(copy, rec, len);
    p->refs = 1;
    p->rec = copy;
    p->rec_len = len;
    p->next = t->pends;
    t->pends = p;
    return p;
}

void pgs__pend_drop(struct pgs_txn *t, struct pgs__pend *p)
{
    if (p == &t->deleted || --p->refs > 0) return;
    if (p->a) {
        pgs__prep_discard(t, &p->a->prep);
        pgs__array_orphan(t, p->a);
        for (size_t i = 0; i < p->a->n_runs; i++) pgs__claim_give(&t->claim, p->a->runs[i], false);
        pgs__array_free(t, p->a);
        p->a = NULL;
    }
    if (p->own) {
        struct pgs__object o;
        /* Our own bytes: they decode. If not, the pages come back with the claim. */
        if (pgs__object_decode(&t->s->pf, (struct pgs_span){"", 0}, (struct pgs_span){p->rec, p->rec_len}, &o, NULL) ==
            0)
            pgs__txn_give_object(t, &o, p->src == NULL);
        p->own = false;
    }
}

void pgs__pend_free(struct pgs__pend *p)
{
    pgs_snapshot_unref(p->src);
    pgs__free(p->rec);
    pgs__free(p);
}

/* --- range lists ------------------------------------------------------------------------------------------------------------------ */
int pgs__ranges_add(struct pgs__range_list *l, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    if (lo >= hi) return 0;
    if (l->n && lo <= l->v[l->n - 1].hi && lo >= l->v[l->n - 1].lo) {
        l->v[l->n - 1].hi = pgs__max_u64(l->v[l->n - 1].hi, hi);
        return 0;
    }
    if (pgs__grow(&l->v, &l->cap, l->n + 1, sizeof *l->v))
        return pgs__fail(err, PGS_ENOMEM, "no memory for a list of ranges");
    l->v[l->n++] = (struct pgs_range){lo, hi};
    return 0;
}

bool pgs__ranges_has(const struct pgs__range_list *l, uint64_t x)
{
    size_t lo = 0, hi = l->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->v[mid].hi <= x)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->n && l->v[lo].lo <= x;
}

static int by_lo(const void *a, const void *b)
{
    const struct pgs_range *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

void pgs__ranges_sort(struct pgs__range_list *l)
{
    if (l->n < 2) return;
    qsort(l->v, l->n, sizeof *l->v, by_lo);
    size_t n = 1;
    for (size_t i = 1; i < l->n; i++) {
        if (l->v[i].lo <= l->v[n - 1].hi)
            l->v[n - 1].hi = pgs__max_u64(l->v[n - 1].hi, l->v[i].hi);
        else
            l->v[n++] = l->v[i];
    }
    l->n = n;
}

void pgs__ranges_free(struct pgs__range_list *l)
{
    pgs__free(l->v);
    *l = (struct pgs__range_list){0};
}
