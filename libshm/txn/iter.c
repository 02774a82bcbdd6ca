/* Pagestone | txn/iter — ordered listings of a snapshot or of a transaction.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A transaction's listing merges the base's catalog with its ops. The base stands still; ops may come and go between two steps, so the merge looks for the first key
 * after the last one delivered, on both sides, each time. Hidden names (a leading NUL) are left out unless the prefix itself is hidden.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

static int note_prefix(struct pgs_txn *t, const void *prefix, size_t len, struct pgs_error *err)
{
    if (t->iso != PGS_ISO_SERIALIZABLE) return 0;
    for (size_t i = 0; i < t->n_prefixes; i++)
        if (t->prefixes[i].len == len && memcmp(t->prefixes[i].p, prefix, len) == 0) return 0;
    uint8_t *copy = pgs__malloc(len + 1);
    if (!copy || pgs__grow(&t->prefixes, &t->cap_prefixes, t->n_prefixes + 1, sizeof *t->prefixes)) {
        pgs__free(copy);
        return pgs__fail(err, PGS_ENOMEM, "no memory to note a listing");
    }
    if (len) memcpy(copy, prefix, len);
    t->prefixes[t->n_prefixes++] = (struct pgs_span){copy, len};
    return 0;
}

int pgs__iter_new(struct pgs_snapshot *sn, struct pgs_txn *t, const void *prefix, size_t len, struct pgs_iter **out,
                  struct pgs_error *err)
{
    int rc = 0;
    if (len > PGS_MAX_KEY) return pgs__fail(err, PGS_E2BIG, "a prefix has at most %d bytes", PGS_MAX_KEY);
    if (t) {
        rc = pgs__txn_lock(t, err);
        if (rc) return rc;
        rc = note_prefix(t, prefix, len, err);
        sn = pgs_snapshot_ref(t->base);
        pgs__txn_unlock(t);
    } else
        sn = pgs_snapshot_ref(sn);
    struct pgs_iter *it = rc ? NULL : pgs__calloc(1, sizeof *it);
    if (!it) {
        pgs_snapshot_unref(sn);
        return rc ? rc : pgs__fail(err, PGS_ENOMEM, "no memory for a listing");
    }
    it->sn = sn;
    it->t = t ? pgs__txn_ref(t) : NULL;
    it->catalog = pgs__root_catalog(sn->s, &sn->root);
    it->prefix_len = it->last_len = len;
    it->or_equal = true;
    if (len) {
        memcpy(it->prefix, prefix, len);
        memcpy(it->last, prefix, len);
    }
    *out = it;
    return 0;
}

void pgs__iter_free(struct pgs_iter *it)
{
    if (!it) return;
    pgs__txn_unref(it->t);
    pgs_snapshot_unref(it->sn);
    pgs__free(it);
}

static int compare(struct pgs_span a, struct pgs_span b)
{
    int c = memcmp(a.p, b.p, a.len < b.len ? a.len : b.len);
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

/* Put the cursor on the first entry of the base after `last`. */
static int base_step(struct pgs_iter *it, struct pgs_error *err)
{
    int rc = 0;
    struct pgs_span key, val, last = {it->last, it->last_len};
    if (!it->started) {
        rc = pgs__cursor_seek(&it->cursor, &it->catalog, it->or_equal ? PGS__SEEK_GE : PGS__SEEK_GT, it->last,
                              it->last_len, err);
        it->started = true;
        it->base_on = rc == 0;
        return rc == -PGS_ENOENT ? 0 : rc;
    }
    while (it->base_on) {
        pgs__cursor_entry(&it->cursor, &key, &val);
        int c = compare(key, last);
        if (c > 0 || (c == 0 && it->or_equal)) return 0;
        rc = pgs__cursor_next(&it->cursor, err);
        it->base_on = rc == 0;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

static bool wanted(const struct pgs_iter *it, struct pgs_span key)
{
    return key.len >= it->prefix_len && memcmp(key.p, it->prefix, it->prefix_len) == 0;
}
static bool hidden(const struct pgs_iter *it, struct pgs_span key)
{
    return key.len && ((const uint8_t *)key.p)[0] == 0 && !(it->prefix_len && it->prefix[0] == 0);
}

/* The next key and its op (or NULL), after `last`. -PGS_ENOENT: none. */
static int step(struct pgs_iter *it, struct pgs_span *key, struct pgs_span *rec, struct pgs__op **op,
                struct pgs_error *err)
{
    struct pgs_span base = {0};
    int rc = base_step(it, err);
    if (rc) return rc;
    *op = it->t ? pgs__op_after(it->t, it->last, it->last_len, it->or_equal) : NULL;
    if (it->base_on) pgs__cursor_entry(&it->cursor, &base, rec);
    if (!it->base_on && !*op) return -PGS_ENOENT;
    int c = !it->base_on ? 1 : !*op ? -1 : compare(base, (struct pgs_span){(*op)->key, (*op)->len});
    if (c < 0) *op = NULL;
    *key = *op ? (struct pgs_span){(*op)->key, (*op)->len} : base;
    return 0;
}

static int export(struct pgs_iter *it, struct pgs_span key, struct pgs_span rec, const struct pgs__op *op,
                  struct pgs_object *obj, struct pgs_error *err)
{
    struct pgs__object o;
    if (op) rec = pgs__op_record(op);
    int rc = pgs__object_decode(&it->sn->s->pf, key, rec, &o, err);
    if (rc) return rc;
    if (op && op->now && op->now->a) {
        o = op->now->a->o;
        o.content.n_bytes = op->now->a->n_bytes;
        o.content.inline_data = NULL;
        if (o.content.form == PGS__FORM_INLINE) o.content.form = PGS__FORM_MAP;
    }
    if (op && op->now) rec = (struct pgs_span){0}; /* pgs_view_open must not: see pgs__txn_get */
    pgs__object_publish(&o, rec, obj);
    return 0;
}

static int next_locked(struct pgs_iter *it, struct pgs_span *out, struct pgs_object *obj, struct pgs_error *err)
{
    while (!it->ended) {
        struct pgs_span key, rec = {0};
        struct pgs__op *op;
        int rc = step(it, &key, &rec, &op, err);
        if (rc == -PGS_ENOENT || (rc == 0 && !wanted(it, key))) break;
        if (rc) return rc;
        bool skip = (op && !pgs__op_exists(it->t, op)) || hidden(it, key);
        if (!skip && obj) {
            rc = export(it, key, rec, op, obj, err);
            if (rc) return rc;
        }
        memcpy(it->last, key.p, key.len);
        it->last_len = key.len;
        it->or_equal = false;
        if (skip) continue;
        *out = (struct pgs_span){it->last, it->last_len};
        return 0;
    }
    it->ended = true;
    return -PGS_ENOENT;
}

int pgs__iter_next(struct pgs_iter *it, struct pgs_span *key, struct pgs_object *obj, struct pgs_error *err)
{
    int rc = it->t ? pgs__txn_lock(it->t, err) : 0;
    if (rc) return rc;
    rc = next_locked(it, key, obj, err);
    if (it->t) pgs__txn_unlock(it->t);
    return rc;
}

int pgs__iter_seek(struct pgs_iter *it, const void *key, size_t len, struct pgs_error *err)
{
    if (len > PGS_MAX_KEY) return pgs__fail(err, PGS_E2BIG, "a key has at most %d bytes", PGS_MAX_KEY);
    struct pgs_span to = {key, len}, least = {it->prefix, it->prefix_len};
    if (compare(to, least) < 0) to = least;
    if (to.len) memmove(it->last, to.p, to.len);
    it->last_len = to.len;
    it->or_equal = true;
    it->started = it->ended = it->base_on = false;
    return 0;
}
