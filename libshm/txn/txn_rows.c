/* Pagestone | txn/txn_rows — append and resize, along axis 0.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Appends are declared: two transactions' rows both land, in commit order (rebase.c), so nothing may depend on where. Rows wait in a tail until
 * somebody asks for the array's memory. A resize that is no append makes the array a new object: whatever others did to the old one conflicts.
 *
 * Views keep their address while the reservation lasts (4 times the size, at least 1 GiB). Beyond it the memory moves, if nobody else holds a view.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

static int may_resize(struct pgs__op *op, const struct pgs__array *a, struct pgs_error *err)
{
    const char *key = (const char *)op->key;
    if (a->o.ndim == 0) return pgs__fail(err, PGS_EINVAL, "'%.*s' has no axis to grow along", (int)op->len, key);
    if (a->o.order == 'F' && a->o.ndim > 1)
        return pgs__fail(err, PGS_EINVAL,
                         "'%.*s' is in Fortran order: rows are not contiguous; store it in C order to append",
                         (int)op->len, key);
    if (a->n_runs)
        return pgs__fail(err, PGS_E2BIG,
                         "'%.*s' was made by empty() and cannot change its size before commit; make it with create()",
                         (int)op->len, key);
    return 0;
}

/* Bytes of the array with `rows` rows. */
static int bytes_with(const struct pgs__array *a, int64_t rows, uint64_t *n_bytes, struct pgs_error *err)
{
    struct pgs_type type = {.itemsize = a->o.itemsize, .ndim = a->o.ndim, .order = a->o.order};
    memcpy(type.shape, a->o.shape, a->o.ndim * sizeof *type.shape);
    type.shape[0] = rows;
    return pgs__type_bytes(&type, n_bytes, err);
}

struct move {
    uint8_t *to;
    const uint8_t *from;
    uint64_t limit;
};
static int move_range(void *ctx, uint64_t lo, uint64_t hi)
{
    struct move *m = ctx;
    hi = pgs__min_u64(hi, m->limit);
    if (lo < hi) memcpy(m->to + lo, m->from + lo, (size_t)(hi - lo));
    return 0;
}

/* The same content in a larger reservation; only while nobody else holds the view. */
static int move_memory(struct pgs_txn *t, struct pgs__op *op, struct pgs__array *a, uint64_t n_bytes,
                       struct pgs_error *err)
{
    struct pgs__mem *m = &a->view->mem, bigger = {0};
    if (atomic_load(&a->view->refs) > 1)
        return pgs__fail(err, PGS_E2BIG,
                         "'%.*s' cannot grow to %llu bytes while views of it are held: %llu are reserved; drop them, "
                         "or commit and begin anew",
                         (int)op->len, (const char *)op->key, (unsigned long long)n_bytes,
                         (unsigned long long)m->reserved);
    int rc = pgs__mem_cow(&t->s->pf, &a->o.content, pgs__mem_room(n_bytes), &bigger, err);
    if (rc) return rc;
    rc = pgs__mem_resize(&t->s->pf, &bigger, m->n_bytes, err);
    struct move mv = {bigger.addr, m->addr, m->n_bytes};
    if (rc == 0) rc = pgs__mem_dirty(&t->s->pf, m, move_range, &mv, err);
    if (rc) {
        pgs__mem_close(&t->s->pf, &bigger);
        return rc;
    }
    pgs__mem_close(&t->s->pf, m);
    *m = bigger;
    return 0;
}

static int set_size(struct pgs_txn *t, struct pgs__op *op, struct pgs__array *a, uint64_t n_bytes,
                    struct pgs_error *err)
{
    struct pgs__mem *m = &a->view->mem;
    int rc = 0;
    if (n_bytes > m->reserved) rc = move_memory(t, op, a, n_bytes, err);
    return rc ? rc : pgs__mem_resize(&t->s->pf, m, n_bytes, err);
}

static int append_locked(struct pgs_txn *t, struct pgs__op *op, const void *values, uint64_t n_rows,
                         struct pgs_error *err)
{
    struct pgs__array *a = op->now->a;
    uint64_t n_bytes;
    int rc = may_resize(op, a, err);
    if (rc || n_rows == 0) return rc;
    if (n_rows > INT64_MAX - (uint64_t)a->o.shape[0])
        return pgs__fail(err, PGS_E2BIG, "an axis has at most 2^63 - 1 elements");
    rc = bytes_with(a, a->o.shape[0] + (int64_t)n_rows, &n_bytes, err);
    if (rc) return rc;
    size_t add = (size_t)(n_bytes - a->n_bytes);
    uint8_t *at;
    if (a->view) {
        rc = set_size(t, op, a, n_bytes, err);
        if (rc) return rc;
        at = (uint8_t *)a->view->mem.addr + a->n_bytes;
    } else {
        size_t have = (size_t)(a->n_bytes - a->base_bytes);
        if (pgs__grow(&a->tail, &a->tail_cap, have + add + 1, 1))
            return pgs__fail(err, PGS_ENOMEM, "no memory for %zu bytes of rows", add);
        at = a->tail + have;
    }
    if (add && values)
        memcpy(at, values, add);
    else if (add)
        memset(at, 0, add);
    a->n_bytes = n_bytes;
    a->o.shape[0] += (int64_t)n_rows;
    a->appended_rows += n_rows;
    return 0;
}

/* The transaction is locked and the key's array opened; or an error, and nothing is locked. */
static int lock_array(struct pgs_txn *t, const void *key, size_t len, struct pgs__op **op, struct pgs_error *err)
{
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, op, err);
    if (rc == 0) rc = pgs__array_open_locked(t, *op, err);
    if (rc) pgs__txn_unlock(t);
    return rc;
}

int pgs__txn_append(struct pgs_txn *t, const void *key, size_t len, const void *values, uint64_t n_rows,
                    struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = lock_array(t, key, len, &op, err);
    if (rc) return rc;
    rc = append_locked(t, op, values, n_rows, err);
    pgs__txn_unlock(t);
    return rc;
}

static int resize_locked(struct pgs_txn *t, struct pgs__op *op, const int64_t *shape, uint32_t ndim,
                         struct pgs_error *err)
{
    struct pgs__array *a = op->now->a;
    uint64_t n_bytes;
    if (ndim != a->o.ndim) return pgs__fail(err, PGS_EINVAL, "resize keeps the number of axes (%u)", a->o.ndim);
    bool same = true;
    for (uint32_t i = 0; i < ndim; i++) same = same && shape[i] == a->o.shape[i];
    if (same) return 0;
    int rc = may_resize(op, a, err);
    if (rc) return rc;
    for (uint32_t i = 1; i < ndim; i++)
        if (shape[i] != a->o.shape[i])
            return pgs__fail(err, PGS_EINVAL, "resize changes axis 0 only; axis %u is %lld", i,
                             (long long)a->o.shape[i]);
    if (shape[0] < 0) return pgs__fail(err, PGS_EINVAL, "a negative number of rows");
    rc = bytes_with(a, shape[0], &n_bytes, err);
    if (rc == 0) rc = pgs__array_map_locked(t, op, err);
    if (rc) return rc;
    a = op->now->a; /* mapping may have made another */
    rc = set_size(t, op, a, n_bytes, err);
    if (rc) return rc;
    a->n_bytes = n_bytes;
    a->o.shape[0] = shape[0];
    a->resized = true;
    return 0;
}

int pgs__txn_resize(struct pgs_txn *t, const void *key, size_t len, const int64_t *shape, uint32_t ndim,
                    struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = lock_array(t, key, len, &op, err);
    if (rc) return rc;
    rc = resize_locked(t, op, shape, ndim, err);
    pgs__txn_unlock(t);
    return rc;
}
