/* Pagestone | txn/txn_copy — a new object over the pages of an old one: copy, assign, revert.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Runs are shared, map nodes are not (content.h I1): the new object gets nodes of its own, with the same runs, births and page checksums, so a
 * copy costs O(extents). At commit the ledger counts one reference more for each run; until then the source is pinned by the pending object.
 *
 * What this transaction itself has written or is writing is copied byte by byte: its pages are not known to any ledger yet.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

/* --- sharing ---------------------------------------------------------------------------------------------------------------------- */
struct share {
    struct pgs__content_edit *e;
    struct pgs__tree map; /* of the source: checksums */
    uint64_t group;       /* loaded; UINT64_MAX: none */
    uint64_t xxh[PGS__CSUM_GROUP];
    struct pgs_error *err;
};

static int load_group(struct share *s, uint64_t group)
{
    uint8_t key[9] = {'C'};
    struct pgs_span val;
    if (s->group == group) return 0;
    pgs__put_be64(key + 1, group);
    memset(s->xxh, 0, sizeof s->xxh);
    s->group = group;
    int rc = pgs__tree_get(&s->map, key, sizeof key, &val, s->err);
    if (rc == -PGS_ENOENT) return 0;
    if (rc) return rc;
    if (val.len != sizeof s->xxh) return pgs__fail_corrupt(s->err, "", "a group of checksums has a wrong size");
    memcpy(s->xxh, val.p, sizeof s->xxh);
    return 0;
}

static int share_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct share *s = ctx;
    if (s->map.root.page == 0) return pgs__content_set(s->e, at, run, birth, NULL, s->err);
    for (uint64_t done = 0; done < run.n_pages;) { /* one group of checksums at a time */
        uint64_t lpno = at.n + done, in_group = lpno % PGS__CSUM_GROUP;
        struct pgs_run part = {{run.page.n + done}, pgs__min_u64(run.n_pages - done, PGS__CSUM_GROUP - in_group)};
        int rc = load_group(s, lpno / PGS__CSUM_GROUP);
        if (rc == 0) rc = pgs__content_set(s->e, (struct pgs_lpno){lpno}, part, birth, s->xxh + in_group, s->err);
        if (rc) return rc;
        done += part.n_pages;
    }
    return 0;
}

static int share_content(struct pgs_txn *t, const struct pgs__content *from, struct pgs__own *own,
                         struct pgs__content *out, struct pgs_error *err)
{
    *out = *from;
    if (from->form == PGS__FORM_INLINE || from->map.page == 0) return 0;
    struct share s = {.e = pgs__content_edit_new(&t->s->pf, NULL), .group = UINT64_MAX, .err = err};
    if (!s.e) return pgs__fail(err, PGS_ENOMEM, "no memory for a page map");
    s.map = (struct pgs__tree){.pf = &t->s->pf, .kind = PGS__TREE_MAP, .root = from->map};
    int rc = pgs__content_resize(s.e, from->n_bytes, err);
    if (rc == 0) rc = pgs__content_runs(&t->s->pf, from, 0, UINT64_MAX, share_run, &s, err);
    if (rc == 0) rc = pgs__txn_finish_edit(t, NULL, s.e, own, out, err);
    out->xxh = from->xxh;
    out->xxh_bytes = from->xxh_bytes;
    pgs__content_edit_free(s.e);
    return rc;
}

/* The type of the copy: another one over the same bytes, or the source's. */
static int copy_type(const struct pgs__object *from, const struct pgs_type *type, struct pgs__object *o,
                     struct pgs_error *err)
{
    *o = *from;
    if (type) {
        if (from->kind != PGS_KIND_ARRAY)
            return pgs__fail(err, PGS_ETYPE, "only an array can be copied under another type");
        int rc = pgs__type_object(type, o, err);
        if (rc) return rc;
        if (o->content.n_bytes != from->content.n_bytes)
            return pgs__fail(err, PGS_ETYPE, "the type of the copy needs %llu bytes, the source has %llu",
                             (unsigned long long)o->content.n_bytes, (unsigned long long)from->content.n_bytes);
        o->content = from->content;
    }
    o->id = o->version = PGS__ID_PENDING;
    o->dtype_ext = (struct pgs_ptr){0};
    o->dtype_ext_pages = 0;
    return 0;
}

/* Small contents must fit beside the new key, which may be longer. */
static int put_small(struct pgs_txn *t, struct pgs__op *to, const struct pgs__object *o, struct pgs_error *err)
{
    struct pgs_part part = {o->content.inline_data, (size_t)o->content.n_bytes};
    struct pgs_type type = {
        .dtype = o->dtype, .dtype_len = o->dtype_len, .itemsize = o->itemsize, .ndim = o->ndim, .order = o->order};
    memcpy(type.shape, o->shape, o->ndim * sizeof *o->shape);
    return pgs__put_locked(t, to, o->kind, o->kind == PGS_KIND_ARRAY ? &type : NULL, &part, 1, err);
}

static int copy_object(struct pgs_txn *t, struct pgs_snapshot *src, const struct pgs__object *from, struct pgs__op *to,
                       const struct pgs_type *type, struct pgs_error *err)
{
    struct pgs__object o;
    struct pgs__own own = {0};
    uint8_t rec[PGS__RECORD_MAX];
    size_t rec_len;
    int rc = copy_type(from, type, &o, err);
    if (rc) return rc;
    if (o.content.form == PGS__FORM_INLINE) return put_small(t, to, &o, err);
    rc = pgs__op_name_fits(t, to, o.kind, err);
    if (rc == 0) rc = share_content(t, &from->content, &own, &o.content, err);
    if (rc == 0) rc = pgs__txn_place_type(t, &o, &own, err);
    if (rc == 0) rc = pgs__object_encode(&o, rec, &rec_len, err);
    struct pgs__pend *p = rc ? NULL : pgs__pend_new(t, rec, rec_len);
    if (!p) {
        pgs__own_give(t, &own);
        return rc ? rc : pgs__fail(err, PGS_ENOMEM, "no memory for one more object of a transaction");
    }
    pgs__own_forget(&own);
    p->own = true;
    p->src = pgs_snapshot_ref(src);
    atomic_fetch_add_explicit(&t->s->bytes_shared, o.content.n_stored << PGS_PAGE_SHIFT,
                              memory_order_relaxed); /* a statistic */
    pgs__op_set(t, to, p);
    return 0;
}

/* --- this transaction's own objects ---------------------------------------------------------------------------------------------- */
static int copy_pending(struct pgs_txn *t, struct pgs__op *from, struct pgs__op *to, const struct pgs_type *type,
                        struct pgs_error *err)
{
    struct pgs__object o;
    struct pgs__mem mem = {0};
    int rc = pgs__op_object(t, from, &o, err);
    if (rc) return rc;
    if (o.kind == PGS_KIND_ARRAY && from->now->a) {
        rc = pgs__array_map_locked(t, from, err);
        if (rc) return rc;
        o = from->now->a->o;
        mem.addr = from->now->a->view->mem.addr;
        o.content.n_bytes = from->now->a->n_bytes;
    } else {
        rc = pgs__mem_read(&t->s->pf, &o.content, &mem, err);
        if (rc) return rc;
    }
    struct pgs_type own_type = {
        .dtype = o.dtype, .dtype_len = o.dtype_len, .itemsize = o.itemsize, .ndim = o.ndim, .order = o.order};
    memcpy(own_type.shape, o.shape, o.ndim * sizeof *o.shape);
    struct pgs_part part = {mem.addr, (size_t)o.content.n_bytes};
    rc = pgs__put_locked(t, to, o.kind, o.kind == PGS_KIND_ARRAY ? (type ? type : &own_type) : NULL, &part, 1, err);
    if (mem.kind) pgs__mem_close(&t->s->pf, &mem);
    return rc;
}

static int copy_within(struct pgs_txn *t, const void *key, size_t len, struct pgs__op *to, const struct pgs_type *type,
                       struct pgs_error *err)
{
    struct pgs__op *from;
    struct pgs__object o;
    int rc = pgs__op_get(t, key, len, &from, err);
    if (rc == 0) pgs__op_note_read(t, from);
    if (rc == 0) rc = pgs__op_object(t, from, &o, err);
    if (rc) return rc;
    if (from == to && !type) return 0;
    if (!from->now) return copy_object(t, t->base, &o, to, type, err);
    if (from == to)
        return pgs__fail(err, PGS_EINVAL,
                         "cannot give an object of this transaction another type in place; commit first");
    return copy_pending(t, from, to, type, err);
}

int pgs__txn_copy(struct pgs_txn *t, struct pgs_snapshot *src, const void *key, size_t len, const void *to,
                  size_t to_len, const struct pgs_type *type, struct pgs_error *err)
{
    struct pgs__op *op;
    struct pgs__object o;
    if (src && src->s != t->s)
        return pgs__fail(err, PGS_EINVAL, "the snapshot is of another store; copy the bytes instead");
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, to, to_len, &op, err);
    if (rc == 0 && src) {
        struct pgs__tree catalog = pgs__root_catalog(t->s, &src->root);
        rc = pgs__object_find(t->s, &catalog, key, len, &o, err);
        if (rc == 0) rc = copy_object(t, src, &o, op, type, err);
    } else if (rc == 0) {
        rc = copy_within(t, key, len, op, type, err);
    }
    pgs__txn_unlock(t);
    return rc;
}
