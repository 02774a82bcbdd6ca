/* Pagestone | txn/txn_space — pages for a transaction: taken from its claim, given back, made into contents.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Everything that a transaction writes goes to pages of its claim, at once, so that little is left for the time under the commit lock. A step
 * that may fail half-way notes what it took in a struct pgs__own, and gives it back.
 *
 * A full store climbs a ladder before a call fails (DESIGN §4): pgs__make_room commits by itself, so the ladder is climbed outside the lock only.
 */
#include <errno.h>

#include "libshm/pages/room.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

#define MAX_PIECES 4096u
#define HUGE_NEED (64ull << 20) /* worth a look at the system */

void pgs__own_forget(struct pgs__own *own)
{
    pgs__free(own->v);
    *own = (struct pgs__own){0};
}

void pgs__own_give(struct pgs_txn *t, struct pgs__own *own)
{
    for (size_t i = 0; i < own->n; i++) pgs__claim_give(&t->claim, own->v[i].run, own->v[i].is_node);
    pgs__own_forget(own);
}

void pgs__txn_claim_shrink(struct pgs_txn *t)
{
    if (t->claim.n_taken == 0) pgs__claim_release(&t->claim);
}

int pgs__txn_could_hold(struct pgs_txn *t, uint64_t need_bytes, struct pgs_error *err)
{
    if (need_bytes < HUGE_NEED || need_bytes <= pgs__room_most(&t->s->pf)) return 0;
    return pgs__fail_full(t->s, need_bytes, ENOSPC, err);
}

int pgs__txn_with_room(struct pgs_txn *t, int (*fn)(void *ctx, struct pgs_error *err), void *ctx, uint64_t need_bytes,
                       struct pgs_error *err)
{
    struct pgs_error local = {0};
    if (t->climbing) return fn(ctx, err); /* a step of a step: the outer one climbs */
    t->climbing = true;
    int rc = fn(ctx, &local);
    for (int level = 0; rc == -PGS_EFULL && level <= 2; level++) {
        uint64_t freed = 0;
        pgs__txn_claim_shrink(t);
        int made = pgs__make_room_lent(t->s, &t->wait, &t->claim, level, &freed, NULL);
        local = (struct pgs_error){0};
        if (made == -PGS_ELOCKED || made == -PGS_EINTR)
            rc = pgs__fail(&local, -made, "the store is full, and waiting to make room: %s", pgs_strerror(made));
        else
            rc = fn(ctx, &local);
    }
    t->climbing = false;
    if (rc == -PGS_EFULL) return pgs__fail_full(t->s, need_bytes, local.os_errno, err);
    if (rc && err && err->code == 0) *err = local;
    return rc;
}

/* --- taking pages ------------------------------------------------------------------------------------------------------------- */
struct take {
    struct pgs_txn *t;
    struct pgs__ledger *l;
    bool is_node;
    uint64_t n_pages;
    struct pgs_run *runs;
    size_t max, n;
};
static int take(void *ctx, struct pgs_error *err)
{
    struct take *k = ctx;
    return pgs__claim_alloc(&k->t->claim, k->l, k->is_node, k->n_pages, 0, k->runs, k->max, &k->n, err);
}

int pgs__txn_alloc(struct pgs_txn *t, struct pgs__ledger *l, bool is_node, uint64_t n_pages, struct pgs__own *own,
                   struct pgs_run **runs, size_t *n, struct pgs_error *err)
{
    struct take k = {.t = t, .l = l, .is_node = is_node, .n_pages = n_pages};
    k.max = (size_t)pgs__min_u64(n_pages, MAX_PIECES);
    k.runs = pgs__malloc(k.max * sizeof *k.runs);
    if (!k.runs) return pgs__fail(err, PGS_ENOMEM, "no memory for a list of runs");
    int rc = l ? take(&k, err) : pgs__txn_with_room(t, take, &k, n_pages << PGS_PAGE_SHIFT, err);
    if (rc == 0 && pgs__grow(&own->v, &own->cap, own->n + k.n, sizeof *own->v)) {
        for (size_t i = 0; i < k.n; i++) pgs__claim_give(&t->claim, k.runs[i], is_node);
        rc = pgs__fail(err, PGS_ENOMEM, "no memory for a list of runs");
    }
    if (rc) {
        pgs__free(k.runs);
        return rc;
    }
    for (size_t i = 0; i < k.n; i++) own->v[own->n++] = (struct pgs__taken){.run = k.runs[i], .is_node = is_node};
    *runs = k.runs;
    *n = k.n;
    return 0;
}

int pgs__txn_checksums(struct pgs_txn *t, bool *on, struct pgs_error *err)
{
    if (t->checksums < 0) { /* kept for the transaction's life: a page without a checksum is allowed at any time */
        struct pgs__ledger l;
        int rc = pgs__meta_begin(t->s, &l, err);
        if (rc) return rc;
        t->checksums = l.meta.hdr.checksums != 0;
        pgs__meta_end(t->s, &l);
    }
    *on = t->checksums;
    return 0;
}

/* --- contents ------------------------------------------------------------------------------------------------------------------- */
struct nodes {
    struct pgs_txn *t;
    const struct pgs_run *runs;
    size_t n;
    const uint8_t *images;
};
static int write_nodes(void *ctx, struct pgs_error *err)
{
    struct nodes *w = ctx;
    const uint8_t *image = w->images;
    int rc = 0;
    for (size_t i = 0; i < w->n && rc == 0; i++) {
        rc = pgs__pages_write(&w->t->s->pf, w->runs[i].page, image, w->runs[i].n_pages, err);
        image += w->runs[i].n_pages << PGS_PAGE_SHIFT;
    }
    return rc;
}

int pgs__txn_finish_edit(struct pgs_txn *t, struct pgs__ledger *l, struct pgs__content_edit *e, struct pgs__own *own,
                         struct pgs__content *out, struct pgs_error *err)
{
    uint64_t n_nodes = pgs__content_n_dirty(e), birth = t->base->root.gen + 1;
    if (n_nodes == 0) return pgs__content_finish(e, birth, NULL, NULL, out, err);
    struct pgs_run *runs = NULL;
    size_t n = 0;
    struct pgs_pgno *pages = pgs__malloc((size_t)n_nodes * sizeof *pages);
    uint8_t *images = pgs__malloc((size_t)n_nodes << PGS_PAGE_SHIFT);
    int rc = pages && images
                 ? 0
                 : pgs__fail(err, PGS_ENOMEM, "no memory for %llu nodes of a page map", (unsigned long long)n_nodes);
    if (rc == 0) rc = pgs__txn_alloc(t, l, true, n_nodes, own, &runs, &n, err);
    if (rc == 0) {
        uint64_t k = 0;
        for (size_t i = 0; i < n; i++)
            for (uint64_t j = 0; j < runs[i].n_pages; j++) pages[k++].n = runs[i].page.n + j;
        rc = pgs__content_finish(e, birth, pages, images, out, err);
    }
    struct nodes w = {t, runs, n, images};
    if (rc == 0) rc = l ? write_nodes(&w, err) : pgs__txn_with_room(t, write_nodes, &w, n_nodes << PGS_PAGE_SHIFT, err);
    pgs__free(runs);
    pgs__free(images);
    pgs__free(pages);
    return rc;
}

int pgs__txn_content_of(struct pgs_txn *t, const struct pgs_run *runs, size_t n, uint64_t n_bytes, uint64_t birth,
                        const uint64_t *page_xxh, struct pgs__own *own, struct pgs__content *out, struct pgs_error *err)
{
    if (n == 1 && !page_xxh) {
        *out = (struct pgs__content){.form = PGS__FORM_EXTENT,
                                     .n_bytes = n_bytes,
                                     .n_stored = runs[0].n_pages,
                                     .page = runs[0].page,
                                     .birth = birth};
        return 0;
    }
    struct pgs__content_edit *e = pgs__content_edit_new(&t->s->pf, NULL);
    if (!e) return pgs__fail(err, PGS_ENOMEM, "no memory for a page map");
    int rc = pgs__content_resize(e, n_bytes, err);
    uint64_t at = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = pgs__content_set(e, (struct pgs_lpno){at}, runs[i], birth, page_xxh ? page_xxh + at : NULL, err);
        at += runs[i].n_pages;
    }
    if (rc == 0) rc = pgs__txn_finish_edit(t, NULL, e, own, out, err);
    pgs__content_edit_free(e);
    return rc;
}

static int give_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    (void)at;
    (void)birth;
    pgs__claim_give(&((struct pgs_txn *)ctx)->claim, run, false);
    return 0;
}
struct node_list {
    struct pgs_ptr *v;
    size_t n, cap;
};
static int note_node(void *ctx, const struct pgs_ptr *node, int level)
{
    struct node_list *l = ctx;
    (void)level;
    if (pgs__grow(&l->v, &l->cap, l->n + 1, sizeof *l->v)) return -PGS_ENOMEM;
    l->v[l->n++] = *node;
    return 0;
}

void pgs__txn_give_object(struct pgs_txn *t, const struct pgs__object *o, bool runs)
{
    struct node_list nodes = {0};
    if (o->content.form != PGS__FORM_INLINE) {
        /* Whatever cannot be walked stays claimed until the transaction ends. */
        if (runs) pgs__content_runs(&t->s->pf, &o->content, 0, UINT64_MAX, give_run, t, NULL);
        pgs__content_nodes(&t->s->pf, &o->content, note_node, &nodes, NULL);
        for (size_t i = 0; i < nodes.n; i++) pgs__claim_give(&t->claim, (struct pgs_run){{nodes.v[i].page}, 1}, true);
        pgs__free(nodes.v);
    }
    if (o->dtype_ext.page) pgs__claim_give(&t->claim, (struct pgs_run){{o->dtype_ext.page}, o->dtype_ext_pages}, true);
}

struct place {
    struct pgs_txn *t;
    const uint8_t *bytes;
    uint64_t n_pages;
    struct pgs_run run;
};
static int place(void *ctx, struct pgs_error *err)
{
    struct place *p = ctx;
    size_t n;
    int rc = pgs__claim_alloc(&p->t->claim, NULL, true, p->n_pages, PGS__ALLOC_CONTIGUOUS, &p->run, 1, &n, err);
    if (rc) return rc;
    rc = pgs__pages_write(&p->t->s->pf, p->run.page, p->bytes, p->n_pages, err);
    if (rc) pgs__claim_give(&p->t->claim, p->run, true);
    return rc;
}

int pgs__txn_place_type(struct pgs_txn *t, struct pgs__object *o, struct pgs__own *own, struct pgs_error *err)
{
    if (o->dtype_len <= PGS__DTYPE_INLINE_MAX) return 0;
    uint64_t n_pages = pgs__pages_of(o->dtype_len);
    size_t len = (size_t)n_pages << PGS_PAGE_SHIFT;
    uint8_t *bytes = pgs__calloc(1, len);
    if (!bytes) return pgs__fail(err, PGS_ENOMEM, "no memory for a dtype of %u bytes", o->dtype_len);
    memcpy(bytes, o->dtype, o->dtype_len);
    struct place p = {.t = t, .bytes = bytes, .n_pages = n_pages};
    int rc = pgs__txn_with_room(t, place, &p, len, err);
    if (rc == 0 && pgs__grow(&own->v, &own->cap, own->n + 1, sizeof *own->v)) {
        pgs__claim_give(&t->claim, p.run, true);
        rc = pgs__fail(err, PGS_ENOMEM, "no memory for a list of runs");
    }
    if (rc == 0) {
        own->v[own->n++] = (struct pgs__taken){.run = p.run, .is_node = true};
        o->dtype_ext = (struct pgs_ptr){p.run.page.n, t->base->root.gen + 1, pgs__hash(bytes, len)};
        o->dtype_ext_pages = n_pages;
    }
    pgs__free(bytes);
    return rc;
}
