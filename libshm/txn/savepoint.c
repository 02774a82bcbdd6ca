/* Pagestone | txn/savepoint — going back inside a transaction.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A savepoint remembers for every op what its pending object was (one reference keeps it and its pages), and for every array that was being
 * changed: shape, rows, and the bytes that differ from what its memory stands over, in a side buffer. Rolling back drops the private pages and copies
 * the saved ones back, so views keep their addresses and show the old bytes (HAZARDS 31). Cost: O(pages written so far); for t.empty the whole array.
 *
 * An array of the base that was opened only after the savepoint keeps its memory, too, reset to the base: views handed out meanwhile still alias.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

struct saved_page {
    uint64_t off, len, at; /* bytes [off, off + len) of the array are at bytes + at */
};
struct pgs__saved_op {
    struct pgs__op *op;
    struct pgs__pend *pend; /* one reference */
    bool had_a, mapped, resized;
    int64_t rows;
    uint64_t n_bytes, appended_rows;
    uint8_t *bytes; /* of the tail, of the pages, or of all of a fresh array */
    size_t n, cap;
    struct saved_page *pages;
    size_t n_pages, cap_pages;
};

static void saved_free(struct pgs_txn *t, struct pgs__saved_op *s)
{
    pgs__pend_drop(t, s->pend);
    pgs__free(s->bytes);
    pgs__free(s->pages);
}

static void savepoint_free(struct pgs_txn *t, struct pgs__savepoint *sp)
{
    for (size_t i = 0; i < sp->n; i++) saved_free(t, &sp->ops[i]);
    pgs__free(sp->ops);
    pgs__free(sp);
}

void pgs__savepoints_free_locked(struct pgs_txn *t, uint64_t above)
{
    while (t->saved && t->saved->id > above) {
        struct pgs__savepoint *sp = t->saved;
        t->saved = sp->below;
        savepoint_free(t, sp);
    }
}

/* --- saving --------------------------------------------------------------------------------------------------------------------------- */
struct saving {
    struct pgs__saved_op *s;
    const uint8_t *addr;
    uint64_t n_bytes;
    struct pgs_error *err;
};

static int save_bytes(struct pgs__saved_op *s, const void *p, size_t n, struct pgs_error *err)
{
    if (n == 0) return 0;
    if (pgs__grow(&s->bytes, &s->cap, s->n + n, 1)) return pgs__fail(err, PGS_ENOMEM, "no memory for a savepoint");
    memcpy(s->bytes + s->n, p, n);
    s->n += n;
    return 0;
}

static int save_range(void *ctx, uint64_t lo, uint64_t hi)
{
    struct saving *v = ctx;
    struct pgs__saved_op *s = v->s;
    hi = pgs__min_u64(hi, v->n_bytes);
    if (lo >= hi) return 0;
    if (pgs__grow(&s->pages, &s->cap_pages, s->n_pages + 1, sizeof *s->pages))
        return pgs__fail(v->err, PGS_ENOMEM, "no memory for a savepoint");
    s->pages[s->n_pages++] = (struct saved_page){lo, hi - lo, s->n};
    return save_bytes(s, v->addr + lo, (size_t)(hi - lo), v->err);
}

static int save_array(struct pgs_txn *t, struct pgs__saved_op *s, struct pgs__array *a, struct pgs_error *err)
{
    s->had_a = true;
    s->mapped = a->view != NULL;
    s->resized = a->resized;
    s->rows = a->o.ndim ? a->o.shape[0] : 0;
    s->n_bytes = a->n_bytes;
    s->appended_rows = a->appended_rows;
    if (!a->view) return a->tail ? save_bytes(s, a->tail, (size_t)(a->n_bytes - a->base_bytes), err) : 0;
    struct saving v = {s, a->view->mem.addr, a->n_bytes, err};
    if (a->fresh) return save_range(&v, 0, a->n_bytes);
    return pgs__mem_dirty(&t->s->pf, &a->view->mem, save_range, &v, err);
}

int pgs__txn_savepoint(struct pgs_txn *t, uint64_t *id, struct pgs_error *err)
{
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    struct pgs__savepoint *sp = pgs__calloc(1, sizeof *sp);
    if (!sp) rc = pgs__fail(err, PGS_ENOMEM, "no memory for a savepoint");
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0]) {
        if (!op->now) continue;
        if (pgs__grow(&sp->ops, &sp->cap, sp->n + 1, sizeof *sp->ops)) {
            rc = pgs__fail(err, PGS_ENOMEM, "no memory for a savepoint");
            break;
        }
        struct pgs__saved_op *s = &sp->ops[sp->n++];
        *s = (struct pgs__saved_op){.op = op, .pend = op->now};
        if (op->now != &t->deleted) op->now->refs++;
        if (op->now->a) rc = save_array(t, s, op->now->a, err);
    }
    if (rc == 0) {
        sp->id = t->next_savepoint++;
        sp->below = t->saved;
        t->saved = sp;
        *id = sp->id;
    } else if (sp) {
        savepoint_free(t, sp);
    }
    pgs__txn_unlock(t);
    return rc;
}

/* --- going back ------------------------------------------------------------------------------------------------------------------------ */
static int restore_memory(struct pgs_txn *t, const struct pgs__saved_op *s, struct pgs__array *a, struct pgs_error *err)
{
    struct pgs__mem *m = &a->view->mem;
    uint8_t *addr = m->addr;
    uint64_t n_bytes = s && s->had_a ? s->n_bytes : a->base_bytes;
    int rc = a->fresh ? 0 : pgs__mem_reset(&t->s->pf, m, err);
    if (rc == 0 && !a->fresh && m->n_bytes != n_bytes) rc = pgs__mem_resize(&t->s->pf, m, n_bytes, err);
    if (rc || !s || !s->had_a) return rc;
    if (!s->mapped && s->n) memcpy(addr + a->base_bytes, s->bytes, s->n);
    for (size_t i = 0; s->mapped && i < s->n_pages; i++)
        memcpy(addr + s->pages[i].off, s->bytes + s->pages[i].at, (size_t)s->pages[i].len);
    return 0;
}

/* The array as it was at the savepoint; s NULL or without an array: as its record says. */
static int restore_array(struct pgs_txn *t, const struct pgs__saved_op *s, struct pgs__op *op, struct pgs_error *err)
{
    struct pgs__pend *p = op->now;
    bool had = s && s->had_a;
    struct pgs__object o;
    int rc = 0;
    if (!p->a && had) rc = pgs__array_open_locked(t, op, err);
    if (rc || !p->a) return rc;
    struct pgs__array *a = p->a;
    rc = pgs__op_decode(t, op, (struct pgs_span){p->rec, p->rec_len}, &o, err);
    if (rc) return rc;
    uint8_t *tail = NULL;
    if (had && !s->mapped && s->n && !a->view) {
        tail = pgs__malloc(s->n);
        if (!tail) return pgs__fail(err, PGS_ENOMEM, "no memory to roll back");
        memcpy(tail, s->bytes, s->n);
    }
    if (a->view) rc = restore_memory(t, s, a, err);
    if (rc) return rc;
    pgs__free(a->tail);
    a->tail = tail;
    a->tail_cap = tail ? s->n : 0;
    a->resized = had && s->resized;
    a->n_bytes = had ? s->n_bytes : a->base_bytes;
    a->appended_rows = had ? s->appended_rows : 0;
    if (a->o.ndim) a->o.shape[0] = had ? s->rows : o.shape[0];
    return 0;
}

static int restore_op(struct pgs_txn *t, const struct pgs__saved_op *s, struct pgs__op *op, struct pgs_error *err)
{
    if (!s) {
        if (!op->now) return 0;
        if (op->now != &t->deleted && op->now->home == op && op->now->a && op->now->a->view)
            return restore_array(t, NULL, op, err);
        pgs__op_set(t, op, NULL);
        return 0;
    }
    if (op->now != s->pend) {
        if (s->pend != &t->deleted) s->pend->refs++;
        pgs__op_set(t, op, s->pend);
    }
    return op->now == &t->deleted ? 0 : restore_array(t, s, op, err);
}

int pgs__txn_rollback(struct pgs_txn *t, uint64_t id, struct pgs_error *err)
{
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    struct pgs__savepoint *sp = t->saved;
    while (sp && sp->id != id) sp = sp->below;
    if (!sp) {
        rc = pgs__fail(err, PGS_EINVAL, "no such savepoint: rolling back to an earlier one ended it");
        goto out;
    }
    size_t i = 0; /* both lists are in key order */
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0]) {
        bool saved = i < sp->n && sp->ops[i].op == op;
        rc = restore_op(t, saved ? &sp->ops[i] : NULL, op, err);
        i += saved;
    }
    if (rc == 0) pgs__savepoints_free_locked(t, id);
out:
    pgs__txn_unlock(t);
    return rc;
}
