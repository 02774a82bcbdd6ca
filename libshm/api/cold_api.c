/* Pagestone | api/cold_api — public functions on cold data.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/txn/cold_table.h"
#include "libshm/txn/freeze.h"
#include "libshm/txn/store.h"

PGS_STATIC(PGS_COLD_BLOCK == PGS__COLD_BYTES, "public");

static int use(pgs_store *s, const void *key, size_t len, struct pgs_error *err)
{
    int rc = pgs__store_use(s, true, err);
    if (rc) return rc;
    if (len == 0 || len > PGS_MAX_KEY || !key)
        return pgs__fail(err, PGS_ENOENT, "no such key: a key has 1 to %d bytes", PGS_MAX_KEY);
    return 0;
}

int pgs_freeze(pgs_store *s, const void *key, size_t len, uint64_t *bytes, struct pgs_error *err)
{
    int rc = use(s, key, len, err);
    return rc ? rc : pgs__freeze(s->s, &s->wait, key, len, bytes, err);
}

int pgs_thaw(pgs_store *s, const void *key, size_t len, uint64_t *bytes, struct pgs_error *err)
{
    int rc = use(s, key, len, err);
    return rc ? rc : pgs__thaw(s->s, &s->wait, key, len, bytes, err);
}

int pgs_cold_read(pgs_store *s, uint64_t slot, void *buf, size_t *len, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__cold_block_read(s->s, slot, buf, len, err);
}

/* What the object's record says now. */
static int object_of(pgs_snapshot *sn, const struct pgs_object *obj, struct pgs__object *o, struct pgs_error *err)
{
    int rc = pgs__session_check(sn->s, err);
    if (rc) return rc;
    if (!obj->record)
        return pgs__fail(err, PGS_EINVAL,
                         "this object is of a transaction: whether it is compressed is not known here");
    rc = pgs__object_decode(&sn->s->pf, (struct pgs_span){"", 0}, (struct pgs_span){obj->record, obj->record_len}, o,
                            err);
    if (rc == 0 && (o->id != obj->id || o->version != obj->version))
        rc = pgs__fail(err, PGS_EINVAL, "this object is not of this snapshot");
    return rc;
}

static int believe(pgs_snapshot *sn, int rc, struct pgs_error *err)
{
    if (rc != -PGS_ECORRUPT || pgs__pin_valid(sn->s, &sn->pin)) return rc;
    if (err) *err = (struct pgs_error){0};
    return pgs__fail(err, PGS_EEXPIRED, "the version was dropped while it was being read; take a new snapshot");
}

int pgs_prefetch(pgs_snapshot *sn, const struct pgs_object *obj, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct pgs__object o;
    int rc = object_of(sn, obj, &o, err);
    if (rc == 0 && hi > o.content.n_bytes) hi = o.content.n_bytes;
    if (rc == 0) rc = pgs__cold_ahead(sn->s, &o.content, lo, hi, err);
    return believe(sn, rc, err);
}

int pgs_cold_size(pgs_snapshot *sn, const struct pgs_object *obj, uint64_t *cold, uint64_t *compressed,
                  struct pgs_error *err)
{
    struct pgs__object o;
    int rc = object_of(sn, obj, &o, err);
    if (rc == 0) rc = pgs__cold_sizes(sn->s, &o.content, cold, compressed, err);
    return believe(sn, rc, err);
}
