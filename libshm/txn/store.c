/* Pagestone | txn/store — what the public handles share: lookups, snapshots, views.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/txn/store.h"

#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

int pgs__store_use(struct pgs_store *s, bool write, struct pgs_error *err)
{
    if (atomic_load_explicit(&s->closed, memory_order_acquire)) /* pairs with the exchange in pgs_close */
        return pgs__fail(err, PGS_ECLOSED, "the store was closed; open it again");
    int rc = pgs__session_check(s->s, err);
    if (rc) return rc;
    pgs__advance_if_asked(s->s);
    if (!write) return 0;
    if (s->mode == PGS_MODE_R)
        return pgs__fail(err, PGS_EREADONLY,
                         "the store was opened read only; open it with mode 'r+' or 'a' to change it");
    if (!s->s->writable) return pgs__fail(err, PGS_EREADONLY, "no permission to write this store");
    return 0;
}

struct pgs__tree pgs__root_catalog(struct pgs__session *s, const struct pgs__root *root)
{
    return (struct pgs__tree){.pf = &s->pf, .kind = PGS__TREE_CATALOG, .root = root->catalog};
}

int pgs__object_lookup(struct pgs__session *s, const struct pgs__tree *catalog, const void *key, size_t len,
                       struct pgs__object *out, struct pgs_span *rec, struct pgs_error *err)
{
    struct pgs_span val;
    int rc = pgs__tree_get(catalog, key, len, &val, err);
    if (rc == -PGS_ENOENT) return pgs__fail_missing(err, key, len);
    if (rc) return pgs__name_object(err, rc, key, len);
    rc = pgs__object_decode(&s->pf, (struct pgs_span){key, len}, val, out, err);
    if (rc == 0 && rec) *rec = val;
    return rc;
}

int pgs__object_find(struct pgs__session *s, const struct pgs__tree *catalog, const void *key, size_t len,
                     struct pgs__object *out, struct pgs_error *err)
{
    return pgs__object_lookup(s, catalog, key, len, out, NULL, err);
}

void pgs__object_publish(const struct pgs__object *o, struct pgs_span rec, struct pgs_object *out)
{
    pgs__object_export(o, out);
    if (o->id == PGS__ID_PENDING) out->id = 0;
    if (o->version == PGS__ID_PENDING) out->version = 0;
    out->record = rec.p;
    out->record_len = rec.len;
}

int pgs__snapshot_new(struct pgs__session *s, const struct pgs__root *root, const struct pgs__pin *pin,
                      struct pgs_snapshot **out, struct pgs_error *err)
{
    struct pgs_snapshot *sn = pgs__malloc(sizeof *sn);
    if (!sn) return pgs__fail(err, PGS_ENOMEM, "no memory for a snapshot");
    atomic_init(&sn->refs, 1);
    sn->s = pgs__session_ref(s);
    sn->root = *root;
    sn->pin = *pin;
    *out = sn;
    return 0;
}

int pgs__view_new(struct pgs__session *s, const struct pgs__pin *pin, const struct pgs__home *home,
                  const struct pgs__mem *mem, const struct pgs__object *obj, struct pgs_view **out,
                  struct pgs_error *err)
{
    struct pgs_view *v = pgs__calloc(1, sizeof *v);
    if (!v) return pgs__fail(err, PGS_ENOMEM, "no memory for a view");
    atomic_init(&v->refs, 1);
    v->s = pgs__session_ref(s);
    if (home) {
        v->hold.record = home->record;
        v->hold.version = home->version;
    }
    if (pin) pgs__hold_take(s, &v->hold, pin);
    v->mem = *mem;
    v->id = obj->id;
    v->version = obj->version;
    *out = v;
    return 0;
}

/* Bytes that were taken for damage may be a recycled page, if the pin was lost: then the version is gone, and nothing is damaged. */
static int believe(struct pgs__session *s, const struct pgs__pin *pin, int rc, struct pgs_error *err)
{
    if (rc != -PGS_ECORRUPT || pgs__pin_valid(s, pin)) return rc;
    if (err) *err = (struct pgs_error){0};
    return pgs__fail(err, PGS_EEXPIRED, "the version was dropped while it was being read; take a new snapshot");
}

int pgs__view_open(struct pgs__session *s, const struct pgs__pin *pin, const struct pgs__home *home,
                   const struct pgs__object *o, bool verify, bool private_cow, struct pgs_view **out,
                   struct pgs_error *err)
{
    struct pgs__mem mem = {0};
    uint64_t n_unverified;
    bool is_inline = o->content.form == PGS__FORM_INLINE;
    int rc = 0;
    /* Inline bytes are part of a leaf, which was verified. */
    if (!is_inline)
        rc = verify ? pgs__content_verify(&s->pf, &o->content, &n_unverified, err)
                    : pgs__content_verify_stream(&s->pf, &o->content, err);
    if (rc == 0)
        rc = private_cow ? pgs__mem_cow(&s->pf, &o->content, 0, &mem, err)
                         : pgs__mem_read(&s->pf, &o->content, &mem, err);
    if (rc) return believe(s, pin, rc, err);
    rc = pgs__view_new(s, is_inline ? NULL : pin, home, &mem, o, out, err);
    if (rc)
        pgs__mem_close(&s->pf, &mem);
    else if (is_inline)
        (*out)->hold.pin.gen = pin->gen; /* also without a pin: handles name the generation */
    return rc;
}
