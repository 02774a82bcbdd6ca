/* Pagestone | api/object_api — keys, lookups, views and listings.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/store.h"
#include "libshm/txn/txn.h"

int pgs_key_check(const void *key, size_t len, struct pgs_error *err)
{
    return pgs__name_check(key, len, err);
}

/* Damage is believed only while the pin holds. */
static int believe(const struct pgs_snapshot *sn, int rc, struct pgs_error *err)
{
    if (rc != -PGS_ECORRUPT || pgs__pin_valid(sn->s, &sn->pin)) return rc;
    if (err) *err = (struct pgs_error){0};
    return pgs__fail(err, PGS_EEXPIRED, "the version was dropped while it was being read; take a new snapshot");
}

int pgs_get(pgs_snapshot *sn, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err)
{
    struct pgs__tree catalog = pgs__root_catalog(sn->s, &sn->root);
    struct pgs__object o;
    struct pgs_span rec;
    int rc = pgs__session_check(sn->s, err);
    if (rc) return rc;
    if (len == 0 || len > PGS_MAX_KEY)
        return pgs__fail(err, PGS_ENOENT, "no such key: a key has 1 to %d bytes", PGS_MAX_KEY);
    rc = pgs__object_lookup(sn->s, &catalog, key, len, &o, &rec, err);
    if (rc) return believe(sn, rc, err);
    pgs__object_publish(&o, rec, out);
    return 0;
}

static int open_view(struct pgs_snapshot *sn, const struct pgs_object *obj, bool verify, bool private_cow,
                     struct pgs_view **out, struct pgs_error *err)
{
    struct pgs__object o;
    int rc = pgs__session_check(sn->s, err);
    if (rc) return rc;
    if (!obj->record) return pgs__fail(err, PGS_EINVAL, "this object is of a transaction: use pgs_txn_view");
    rc = pgs__object_decode(&sn->s->pf, (struct pgs_span){"", 0}, (struct pgs_span){obj->record, obj->record_len}, &o,
                            err);
    if (rc == 0 && (o.id != obj->id || o.version != obj->version))
        rc = pgs__fail(err, PGS_EINVAL, "this object is not of this snapshot");
    struct pgs__home home = {obj->record, sn->root.version};
    if (rc == 0) rc = pgs__view_open(sn->s, &sn->pin, &home, &o, verify, private_cow, out, err);
    return believe(sn, rc, err);
}

int pgs_view_open(pgs_snapshot *sn, const struct pgs_object *obj, int verify, pgs_view **out, struct pgs_error *err)
{
    return open_view(sn, obj, verify != 0, false, out, err);
}

int pgs_view_private(pgs_snapshot *sn, const struct pgs_object *obj, pgs_view **out, struct pgs_error *err)
{
    return open_view(sn, obj, false, true, out, err);
}

void *pgs_view_data(const pgs_view *v)
{
    return v->mem.addr;
}

uint64_t pgs_view_size(const pgs_view *v)
{
    return v->mem.n_bytes;
}

uint64_t pgs_view_gen(const pgs_view *v)
{
    struct pgs_view *w = (struct pgs_view *)(uintptr_t)v; /* constant to its user; its pin moves */
    return pgs__hold_gen(w->s, &w->hold);
}

int pgs_view_keep(pgs_view *v, pgs_snapshot *sn, struct pgs_error *err)
{
    if (v->hold.pinned) return 0;
    if (v->s != sn->s || v->hold.pin.gen != sn->root.gen)
        return pgs__fail(err, PGS_EINVAL, "this view is not of this snapshot");
    pgs__hold_take(v->s, &v->hold, &sn->pin);
    return 0;
}

int pgs_view_lease(pgs_view *v, uint64_t ns, uint64_t *gen, uint64_t *version, struct pgs_error *err)
{
    int rc = pgs__session_check(v->s, err);
    if (rc) return rc;
    *gen = pgs__hold_stay(v->s, &v->hold).gen;
    *version = v->hold.version;
    return pgs__lease_set(v->s, *gen, ns, err);
}

pgs_view *pgs_view_ref(pgs_view *v)
{
    atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed); /* relaxed: who adds one already has one */
    return v;
}

void pgs_view_unref(pgs_view *v)
{
    if (!v || atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) > 1) return; /* pairs with other droppers */
    pgs__mem_close(&v->s->pf, &v->mem);
    pgs__hold_drop(v->s, &v->hold);
    pgs__session_unref(v->s);
    pgs__free(v);
}

int pgs_iter_snapshot(pgs_snapshot *sn, const void *prefix, size_t len, pgs_iter **out, struct pgs_error *err)
{
    int rc = pgs__session_check(sn->s, err);
    return rc ? rc : pgs__iter_new(sn, NULL, prefix, len, out, err);
}

int pgs_iter_txn(pgs_txn *t, const void *prefix, size_t len, pgs_iter **out, struct pgs_error *err)
{
    return pgs__iter_new(NULL, t, prefix, len, out, err);
}

int pgs_iter_next(pgs_iter *it, const void **key, size_t *len, struct pgs_object *obj, struct pgs_error *err)
{
    struct pgs_span k;
    int rc = pgs__iter_next(it, &k, obj, err);
    if (rc) return believe(it->sn, rc, err);
    *key = k.p;
    *len = k.len;
    return 0;
}

int pgs_iter_seek(pgs_iter *it, const void *key, size_t len, struct pgs_error *err)
{
    return pgs__iter_seek(it, key, len, err);
}

void pgs_iter_free(pgs_iter *it)
{
    pgs__iter_free(it);
}

int pgs_find_id(pgs_snapshot *sn, uint64_t id, const void *prefix, size_t len, void *buf, size_t *key_len,
                struct pgs_error *err)
{
    struct pgs__tree catalog = pgs__root_catalog(sn->s, &sn->root);
    struct pgs__cursor cursor;
    int rc = pgs__session_check(sn->s, err);
    if (rc == 0) rc = pgs__cursor_seek(&cursor, &catalog, PGS__SEEK_GE, prefix, len, err);
    for (; rc == 0; rc = pgs__cursor_next(&cursor, err)) {
        struct pgs_span key, val;
        pgs__cursor_entry(&cursor, &key, &val);
        if (key.len < len || memcmp(key.p, prefix, len) != 0) break;
        if (val.len < 24 || pgs__get_u64((const uint8_t *)val.p + 8) != id || key.len > PGS_MAX_KEY) continue;
        memcpy(buf, key.p, key.len);
        *key_len = key.len;
        return 0;
    }
    if (rc && rc != -PGS_ENOENT) return believe(sn, rc, err);
    return pgs__fail(err, PGS_ENOENT, "no object %llu in version %llu", (unsigned long long)id,
                     (unsigned long long)sn->root.version);
}
