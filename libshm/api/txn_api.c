/* Pagestone | api/txn_api — transactions: arguments are checked here, everything else is txn's.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/txn/policy.h"
#include "libshm/txn/txn.h"

static int check_key(const void *key, size_t len, struct pgs_error *err)
{
    return pgs__name_check(key, len, err);
}

/* Reading: a malformed key is one that does not exist. */
static int check_read(const void *key, size_t len, struct pgs_error *err)
{
    (void)key;
    return len && len <= PGS_MAX_KEY ? 0
                                     : pgs__fail(err, PGS_ENOENT, "no such key: a key has 1 to %d bytes", PGS_MAX_KEY);
}

int pgs_begin(pgs_store *s, enum pgs_isolation iso, pgs_txn **out, struct pgs_error *err)
{
    int rc = pgs__store_use(s, true, err);
    if (rc) return rc;
    if (iso < PGS_ISO_SNAPSHOT || iso > PGS_ISO_STRICT)
        return pgs__fail(err, PGS_EINVAL, "an unknown isolation; use snapshot, serializable or strict");
    return pgs__txn_begin(s, iso, out, err);
}

pgs_snapshot *pgs_txn_base(pgs_txn *t)
{
    if (pgs__txn_lock(t, NULL)) return NULL;
    pgs_snapshot *base = pgs_snapshot_ref(t->base);
    pgs__txn_unlock(t);
    return base;
}

void pgs_txn_unref(pgs_txn *t)
{
    pgs__txn_unref(t);
}

int pgs_txn_abort(pgs_txn *t, struct pgs_error *err)
{
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    pgs__txn_finish_locked(t, PGS__TXN_ABORTED);
    pgs__txn_unlock(t);
    return 0;
}

int pgs_txn_commit(pgs_txn *t, const char *message, uint64_t *version, struct pgs_error *err)
{
    int rc = pgs__txn_commit(t, message, version, err);
    if (rc == 0) pgs__policy_after_commit(t->s);
    return rc;
}

int pgs_txn_conflicts(pgs_txn *t, const struct pgs_conflict **list, size_t *n, uint64_t *version)
{
    int rc = pgs__txn_peek(t, NULL);
    if (rc) return rc;
    *list = t->conflicts;
    *n = t->n_conflicts;
    *version = t->conflict_version;
    pgs__mutex_unlock(&t->mx);
    return 0;
}

int pgs_txn_landed(pgs_txn *t, const void *key, size_t len, int64_t *first_row, struct pgs_error *err)
{
    int rc = pgs__txn_peek(t, err);
    if (rc) return rc;
    struct pgs__op *op = pgs__op_find(t, key, len);
    if (t->state != PGS__TXN_COMMITTED)
        rc = pgs__fail(err, PGS_EINVAL, "where rows land is known after commit");
    else if (!op || op->landed < 0)
        rc = pgs__fail(err, PGS_ENOENT, "nothing was appended to '%.*s'", (int)len, (const char *)key);
    else
        *first_row = op->landed;
    pgs__mutex_unlock(&t->mx);
    return rc;
}

int pgs_txn_get(pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_get(t, key, len, out, err);
}

int pgs_txn_peek(pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_peek_key(t, key, len, out, err);
}

int pgs_txn_fetch(pgs_txn *t, const void *key, size_t len, struct pgs_object *out, pgs_view **view,
                  struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_fetch(t, key, len, out, view, err);
}

int pgs_txn_view(pgs_txn *t, const void *key, size_t len, pgs_view **out, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_view(t, key, len, out, err);
}

int pgs_txn_edit(pgs_txn *t, const void *key, size_t len, pgs_view **out, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_edit(t, key, len, out, err);
}

int pgs_txn_depends(pgs_txn *t, const void *key, size_t len, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    int rc = check_key(key, len, err);
    return rc ? rc : pgs__txn_depends(t, key, len, lo, hi, err);
}

int pgs_txn_put(pgs_txn *t, const void *key, size_t len, enum pgs_kind kind, const struct pgs_type *type,
                const struct pgs_part *parts, size_t n_parts, struct pgs_error *err)
{
    int rc = check_key(key, len, err);
    if (rc) return rc;
    if (kind < PGS_KIND_ARRAY || kind > PGS_KIND_DIR) return pgs__fail(err, PGS_EINVAL, "an unknown kind of object");
    if ((kind == PGS_KIND_ARRAY) != (type != NULL))
        return pgs__fail(err, PGS_EINVAL, "arrays have a type, other objects have none");
    return pgs__txn_put(t, key, len, kind, type, parts, n_parts, err);
}

int pgs_txn_empty(pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, pgs_view **out,
                  struct pgs_error *err)
{
    int rc = check_key(key, len, err);
    return rc ? rc : pgs__txn_empty(t, key, len, type, false, out, err);
}

int pgs_txn_replace(pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, pgs_view **out,
                    struct pgs_error *err)
{
    int rc = check_key(key, len, err);
    return rc ? rc : pgs__txn_empty(t, key, len, type, true, out, err);
}

int pgs_txn_create(pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, struct pgs_error *err)
{
    int rc = check_key(key, len, err);
    return rc ? rc : pgs__txn_create(t, key, len, type, err);
}

int pgs_txn_delete(pgs_txn *t, const void *key, size_t len, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_delete(t, key, len, err);
}

int pgs_txn_clear(pgs_txn *t, const void *prefix, size_t len, struct pgs_error *err)
{
    return pgs__txn_clear(t, prefix, len, err);
}

int pgs_txn_move(pgs_txn *t, const void *from, size_t from_len, const void *to, size_t to_len, struct pgs_error *err)
{
    int rc = check_read(from, from_len, err);
    if (rc == 0) rc = check_key(to, to_len, err);
    return rc ? rc : pgs__txn_move(t, from, from_len, to, to_len, err);
}

int pgs_txn_copy(pgs_txn *t, pgs_snapshot *src, const void *key, size_t len, const void *to, size_t to_len,
                 const struct pgs_type *type, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    if (rc == 0) rc = check_key(to, to_len, err);
    return rc ? rc : pgs__txn_copy(t, src, key, len, to, to_len, type, err);
}

int pgs_txn_append(pgs_txn *t, const void *key, size_t len, const void *values, uint64_t n_rows, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_append(t, key, len, values, n_rows, err);
}

int pgs_txn_resize(pgs_txn *t, const void *key, size_t len, const int64_t *shape, uint32_t ndim, struct pgs_error *err)
{
    int rc = check_read(key, len, err);
    return rc ? rc : pgs__txn_resize(t, key, len, shape, ndim, err);
}

int pgs_txn_savepoint(pgs_txn *t, uint64_t *id, struct pgs_error *err)
{
    return pgs__txn_savepoint(t, id, err);
}

int pgs_txn_rollback(pgs_txn *t, uint64_t id, struct pgs_error *err)
{
    return pgs__txn_rollback(t, id, err);
}
