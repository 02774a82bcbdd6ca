/* Pagestone | txn/txn_edit — arrays as memory: edit, create, empty, and views of what a transaction has.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     what the key has              memory for pgs_txn_edit
 *     an object of the base         copy-on-write over its pages; the base's pin keeps them
 *     a copy (txn_copy.c)           copy-on-write over the source's pages; the source's pin keeps them
 *     t.create                      copy-on-write over a hole
 *     t.empty                       shared and writable: the fresh pages themselves
 *     put in this transaction       a copy over a hole. Not copy-on-write over our own pages: a later put or an abort gives those back, and the
 *                                   untouched part of a view would show what others write there (I2)
 *
 * One memory for each array: every call hands out the same view with one reference more.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "libshm/pages/fresh.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"
#include "libshm/txn/txn.h"

#define RESERVE_LEAST (1ull << 30)

/* --- opening -------------------------------------------------------------------------------------------------------------------------- */
static int only_arrays(struct pgs__op *op, enum pgs_kind kind, struct pgs_error *err)
{
    if (kind == PGS_KIND_ARRAY) return 0;
    return pgs__fail(err, PGS_ETYPE, "'%.*s' is no array: read it, change the copy and assign that", (int)op->len,
                     (const char *)op->key);
}

static struct pgs__array *array_new(struct pgs_txn *t, struct pgs__op *op, struct pgs__pend *p, struct pgs_error *err)
{
    struct pgs__array *a = pgs__calloc(1, sizeof *a);
    if (!a) {
        pgs__fail(err, PGS_ENOMEM, "no memory for one more array of a transaction");
        return NULL;
    }
    if (pgs__op_decode(t, op, (struct pgs_span){p->rec, p->rec_len}, &a->o, err)) {
        pgs__free(a);
        return NULL;
    }
    a->base_bytes = a->n_bytes = a->o.content.n_bytes;
    return a;
}

int pgs__array_open_locked(struct pgs_txn *t, struct pgs__op *op, struct pgs_error *err)
{
    struct pgs__object o;
    int rc = pgs__op_object(t, op, &o, err);
    if (rc == 0) rc = only_arrays(op, o.kind, err);
    if (rc) return rc;
    struct pgs__pend *p = op->now;
    if (p && p->a) return 0;
    if (!p) {
        p = pgs__pend_new(t, op->base.p, op->base.len);
        if (!p) return pgs__fail(err, PGS_ENOMEM, "no memory for one more array of a transaction");
        p->home = op;
    }
    p->a = array_new(t, op, p, err);
    if (op->now != p) {
        if (!p->a) {
            pgs__pend_drop(t, p);
            return -PGS_ENOMEM;
        }
        pgs__op_set(t, op, p);
    }
    return p->a ? 0 : -PGS_ENOMEM;
}

static const struct pgs__pin *pin_of(struct pgs_txn *t, const struct pgs__pend *p)
{
    return p->src ? &p->src->pin : &t->base->pin;
}

/* The memory, with room to grow; less room where address space is short. */
static int cow_memory(struct pgs_txn *t, const struct pgs__content *c, uint64_t need, struct pgs__mem *out,
                      struct pgs_error *err)
{
    struct pgs_error local = {0};
    uint64_t want = pgs__max_u64(c->n_bytes, need), room = pgs__mem_room(want);
    if (!pgs__vm_is_short()) room = pgs__max_u64(room, RESERVE_LEAST);
    int rc = pgs__mem_cow(&t->s->pf, c, room, out, &local);
    if (rc == -PGS_ENOMEM || rc == -PGS_E2BIG) return pgs__mem_cow(&t->s->pf, c, want, out, err);
    if (rc && err && err->code == 0) *err = local;
    return rc;
}

static int publish_memory(struct pgs_txn *t, struct pgs__pend *p, struct pgs__mem *mem, struct pgs_error *err)
{
    int rc = pgs__view_new(t->s, pin_of(t, p), NULL, mem, &p->a->o, &p->a->view, err);
    if (rc)
        pgs__mem_close(&t->s->pf, mem);
    else if (p->a->o.id == PGS__ID_PENDING)
        p->a->view->id = p->a->view->version = 0;
    return rc;
}

static bool is_hole(const struct pgs__content *c)
{
    return c->form == PGS__FORM_MAP && c->map.page == 0;
}

/* Put in this transaction: from now on a copy. Savepoints may still need the record and its pages: they keep the old pending object. */
static int uncover(struct pgs_txn *t, struct pgs__op *op, struct pgs_error *err)
{
    struct pgs__pend *old = op->now, *p;
    struct pgs__content from = old->a->o.content, hole = {.form = PGS__FORM_MAP, .n_bytes = from.n_bytes};
    struct pgs__object o; /* of the record: without the rows appended since */
    struct pgs__mem mem = {0};
    struct pgs__own own = {0};
    uint8_t rec[PGS__RECORD_MAX];
    size_t rec_len;
    int rc = pgs__op_decode(t, op, (struct pgs_span){old->rec, old->rec_len}, &o, err);
    if (rc) return rc;
    rc = cow_memory(t, &hole, old->a->n_bytes, &mem, err);
    if (rc) return rc;
    rc = pgs__content_read(&t->s->pf, &from, 0, mem.addr, from.n_bytes, err);
    o.content = hole;
    o.dtype_ext = (struct pgs_ptr){0};
    if (rc == 0) rc = pgs__txn_place_type(t, &o, &own, err);
    if (rc == 0) rc = pgs__object_encode(&o, rec, &rec_len, err);
    p = rc ? NULL : pgs__pend_new(t, rec, rec_len);
    if (p) p->a = array_new(t, op, p, err);
    if (!p || !p->a) {
        pgs__own_give(t, &own);
        pgs__mem_close(&t->s->pf, &mem);
        return rc ? rc : pgs__fail(err, PGS_ENOMEM, "no memory for one more array of a transaction");
    }
    pgs__own_forget(&own);
    p->own = true;
    rc = publish_memory(t, p, &mem, err);
    if (rc) {
        pgs__pend_drop(t, p);
        return rc;
    }
    struct pgs__array *a = p->a, *was = old->a; /* the rows appended meanwhile move along */
    a->tail = was->tail;
    a->tail_cap = was->tail_cap;
    a->appended_rows = was->appended_rows;
    a->n_bytes = was->n_bytes;
    memcpy(a->o.shape, was->o.shape, sizeof a->o.shape);
    was->tail = NULL;
    was->n_bytes = was->base_bytes;
    if (old->refs > 1) { /* a savepoint's: as it was then, see savepoint.c */
        pgs__array_free(t, was);
        old->a = NULL;
    }
    pgs__op_set(t, op, p);
    return 0;
}

/* Appended rows join the memory. */
static int join_tail(struct pgs_txn *t, struct pgs__array *a, struct pgs_error *err)
{
    struct pgs__mem *m = &a->view->mem;
    if (m->n_bytes != a->n_bytes) {
        int rc = pgs__mem_resize(&t->s->pf, m, a->n_bytes, err);
        if (rc) return rc;
    }
    if (a->tail) memcpy((uint8_t *)m->addr + a->base_bytes, a->tail, (size_t)(a->n_bytes - a->base_bytes));
    pgs__free(a->tail);
    a->tail = NULL;
    a->tail_cap = 0;
    return 0;
}

int pgs__array_map_locked(struct pgs_txn *t, struct pgs__op *op, struct pgs_error *err)
{
    struct pgs__pend *p = op->now;
    struct pgs__mem mem = {0};
    if (p->a->view) return 0;
    int rc;
    if (p->own && !p->src && !is_hole(&p->a->o.content) && p->a->o.content.form != PGS__FORM_INLINE) {
        rc = uncover(t, op, err);
    } else {
        rc = cow_memory(t, &p->a->o.content, p->a->n_bytes, &mem, err);
        if (rc == 0) rc = publish_memory(t, p, &mem, err);
    }
    if (rc) return rc;
    rc = join_tail(t, op->now->a, err);
    if (rc) { /* without the memory it is as before */
        pgs__txn_drop_view_locked(t, op->now->a->view);
        op->now->a->view = NULL;
    }
    return rc;
}

/* The transaction is locked, and knows that the key was read; or an error, and nothing is locked. */
static int lock_to_read(struct pgs_txn *t, const void *key, size_t len, struct pgs__op **op, struct pgs_error *err)
{
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, op, err);
    if (rc)
        pgs__txn_unlock(t);
    else
        pgs__op_note_read(t, *op);
    return rc;
}

int pgs__txn_edit(struct pgs_txn *t, const void *key, size_t len, struct pgs_view **out, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = lock_to_read(t, key, len, &op, err);
    if (rc) return rc;
    rc = pgs__array_open_locked(t, op, err);
    if (rc == 0) rc = pgs__array_map_locked(t, op, err);
    if (rc == 0) *out = pgs_view_ref(op->now->a->view);
    pgs__txn_unlock(t);
    return rc;
}

/* --- views --------------------------------------------------------------------------------------------------------------------------- */
/* What this transaction has put: a copy, because its pages may be given back while the view lives (I2). */
static int view_copy(struct pgs_txn *t, const struct pgs__object *o, struct pgs_view **out, struct pgs_error *err)
{
    struct pgs__content hole = {.form = PGS__FORM_MAP, .n_bytes = o->content.n_bytes};
    struct pgs__mem mem = {0};
    int rc = pgs__mem_cow(&t->s->pf, &hole, 0, &mem, err);
    if (rc) return rc;
    rc = pgs__content_read(&t->s->pf, &o->content, 0, mem.addr, o->content.n_bytes, err);
    if (rc == 0) rc = pgs__view_new(t->s, NULL, NULL, &mem, o, out, err);
    if (rc)
        pgs__mem_close(&t->s->pf, &mem);
    else
        (*out)->id = (*out)->version = 0;
    return rc;
}

int pgs__txn_view_locked(struct pgs_txn *t, struct pgs__op *op, struct pgs_view **out, struct pgs_error *err)
{
    struct pgs__object o;
    int rc = pgs__op_object(t, op, &o, err);
    if (rc) return rc;
    struct pgs__pend *p = op->now;
    if (p && p->a) {
        rc = pgs__array_map_locked(t, op, err);
        if (rc == 0) *out = pgs_view_ref(op->now->a->view);
        return rc;
    }
    if (p && p->own && !p->src && o.content.form != PGS__FORM_INLINE) return view_copy(t, &o, out, err);
    return pgs__view_open(t->s, p ? pin_of(t, p) : &t->base->pin, NULL, &o, false, false, out, err);
}

int pgs__txn_view(struct pgs_txn *t, const void *key, size_t len, struct pgs_view **out, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = lock_to_read(t, key, len, &op, err);
    if (rc) return rc;
    rc = pgs__txn_view_locked(t, op, out, err);
    pgs__txn_unlock(t);
    return rc;
}

/* --- new arrays ---------------------------------------------------------------------------------------------------------------------- */
static int create_locked(struct pgs_txn *t, struct pgs__op *op, const struct pgs_type *type, bool replace,
                         struct pgs_error *err)
{
    struct pgs__object o;
    struct pgs__own own = {0};
    uint8_t rec[PGS__RECORD_MAX];
    size_t rec_len;
    int rc = pgs__type_object(type, &o, err);
    if (rc) return rc;
    if (!replace && pgs__op_exists(t, op))
        return pgs__fail(err, PGS_EEXIST, "there is a key '%.*s' already; delete it first", (int)op->len,
                         (const char *)op->key);
    rc = pgs__op_name_fits(t, op, PGS_KIND_ARRAY, err);
    if (rc) return rc;
    o.content.form = o.content.n_bytes ? PGS__FORM_MAP : PGS__FORM_INLINE;
    rc = pgs__txn_place_type(t, &o, &own, err);
    if (rc == 0) rc = pgs__object_encode(&o, rec, &rec_len, err);
    struct pgs__pend *p = rc ? NULL : pgs__pend_new(t, rec, rec_len);
    if (!p) {
        pgs__own_give(t, &own);
        return rc ? rc : pgs__fail(err, PGS_ENOMEM, "no memory for one more array of a transaction");
    }
    pgs__own_forget(&own);
    p->own = true;
    pgs__op_set(t, op, p);
    return 0;
}

int pgs__txn_create(struct pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, &op, err);
    if (rc == 0) rc = create_locked(t, op, type, false, err);
    pgs__txn_unlock(t);
    return rc;
}

struct fresh {
    struct pgs_txn *t;
    uint64_t n_pages;
    struct pgs_run *runs;
    size_t n;
};
/* Pages that no store can fail in any more. */
static int take_fresh(void *ctx, struct pgs_error *err)
{
    struct fresh *f = ctx;
    struct pgs__own own = {0};
    int rc = pgs__txn_alloc(f->t, NULL, false, f->n_pages, &own, &f->runs, &f->n, err);
    for (size_t i = 0; i < f->n && rc == 0; i++)
        rc = pgs__fresh_reserve(&f->t->s->pf, f->runs[i], pgs__run_is_whole(f->runs[i]), err);
    if (rc == 0) {
        pgs__own_forget(&own);
        return 0;
    }
    pgs__own_give(f->t, &own);
    pgs__free(f->runs);
    f->runs = NULL;
    f->n = 0;
    return rc;
}

static int empty_locked(struct pgs_txn *t, struct pgs__op *op, const struct pgs_type *type, bool replace,
                        struct pgs_error *err)
{
    struct fresh f = {.t = t};
    struct pgs__pend *old = op->now; /* comes back if there is no room */
    if (old && old != &t->deleted) old->refs++;
    int rc = create_locked(t, op, type, replace, err);
    if (rc) {
        if (old) pgs__pend_drop(t, old);
        return rc;
    }
    struct pgs__pend *p = op->now;
    rc = pgs__array_open_locked(t, op, err);
    if (rc) goto undo;
    if (p->a->n_bytes > PGS__INLINE_MAX) {
        f.n_pages = pgs__pages_of(p->a->n_bytes);
        rc = pgs__txn_could_hold(t, p->a->n_bytes, err);
        if (rc == 0) rc = pgs__txn_with_room(t, take_fresh, &f, p->a->n_bytes, err);
        if (rc) goto undo;
        p->a->runs = f.runs;
        p->a->n_runs = f.n;
        if (pgs__fresh_can_map(&t->s->pf)) {
            struct pgs__mem mem = {0};
            rc = pgs__mem_fresh(&t->s->pf, f.runs, f.n, p->a->n_bytes, 0, true, &mem, err);
            if (rc == 0) rc = publish_memory(t, p, &mem, err);
            if (rc) goto undo;
            p->a->fresh = true;
            goto done;
        }
    }
    rc = pgs__array_map_locked(t, op, err); /* copied to the reserved pages at commit */
    if (rc) goto undo;
done:
    if (old) pgs__pend_drop(t, old);
    return 0;
undo:
    pgs__op_set(t, op, old);
    return rc;
}

int pgs__txn_empty(struct pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, bool replace,
                   struct pgs_view **out, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, &op, err);
    if (rc == 0) rc = empty_locked(t, op, type, replace, err);
    if (rc == 0) *out = pgs_view_ref(op->now->a->view);
    pgs__txn_unlock(t);
    return rc;
}

/* --- endings --------------------------------------------------------------------------------------------------------------------------- */
void pgs__array_orphan(struct pgs_txn *t, struct pgs__array *a)
{
    struct pgs_view *v = a->view;
    if (!a->fresh || !v || atomic_load(&v->refs) < 2) return;
    void *addr = v->mem.addr;
    size_t len = (size_t)v->mem.mapped;
    pgs__mem_detach(&t->s->pf, &v->mem, NULL); /* where this fails the next lines still cut the memory off the file */
    void *copy = pgs__vm_reserve(len, PGS_PAGE_SIZE);
    if (copy && pgs__vm_zero(copy, len, true) == 0) {
        memcpy(copy, addr, len);
        if (mremap(copy, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == addr) return;
    }
    if (copy) pgs__vm_release(copy, len);
    /* No memory for the copy: zeros are wrong but harmless, the pages of the next owner would be neither. */
    PGS_BUG_ON(pgs__vm_zero(addr, len, true) != 0);
}

void pgs__array_free(struct pgs_txn *t, struct pgs__array *a)
{
    if (!a) return;
    if (a->view) pgs__txn_drop_view_locked(t, a->view);
    pgs__free(a->tail);
    pgs__free(a->runs);
    pgs__ranges_free(&a->dirty);
    pgs__content_edit_free(a->prep.edit);
    pgs__free(a->prep.inline_buf);
    pgs__own_forget(&a->prep.own);
    pgs__free(a);
}
