/* Pagestone | txn/txn_put — whole writes.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Small contents go into the record; others are copied to claimed pages at once, in one run if there is one. Copies go through a mapping of the run
 * where the file system allows it, else through a bounce buffer, because parts need not end at pages.
 *
 * Of a pickle only the part that is unpickled is such a stream; the buffers behind it are treated as the pages of an array.
 * Array pages are hashed as they are copied (pgs__fresh_copy). A stream (bytes, pickle) is hashed afterwards, as it is in the pages:
 * its checksum decides whether it can be read at all, so it must be right even if another thread changed a buffer meanwhile.
 */
#include "libshm/pages/fresh.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

#define BOUNCE (256u << 10)
#define MAP_LEAST (256u << 10) /* below, a system call per piece is cheaper than a mapping */

int pgs__type_object(const struct pgs_type *type, struct pgs__object *o, struct pgs_error *err)
{
    uint64_t n_bytes;
    int rc = pgs__type_bytes(type, &n_bytes, err);
    if (rc) return rc;
    if (type->order != 'C' && type->order != 'F')
        return pgs__fail(err, PGS_EINVAL, "the order of an array is 'C' or 'F'");
    if (!type->dtype || !type->dtype_len) return pgs__fail(err, PGS_EINVAL, "an array needs a dtype");
    if (type->dtype_len > 65536)
        return pgs__fail(err, PGS_E2BIG, "a dtype description has at most 65536 bytes, not %u", type->dtype_len);
    *o = (struct pgs__object){.kind = PGS_KIND_ARRAY,
                              .id = PGS__ID_PENDING,
                              .version = PGS__ID_PENDING,
                              .order = type->order,
                              .ndim = type->ndim,
                              .itemsize = type->itemsize,
                              .dtype = type->dtype,
                              .dtype_len = type->dtype_len};
    memcpy(o->shape, type->shape, type->ndim * sizeof *type->shape);
    o->content.n_bytes = n_bytes;
    return 0;
}

/* --- gathering parts ---------------------------------------------------------------------------------------------------------- */
struct gather {
    const struct pgs_part *part;
    size_t i, n, at; /* the next byte: part[i], offset at */
};

static void gather(struct gather *g, uint8_t *to, size_t len)
{
    while (len) {
        const struct pgs_part *p = &g->part[g->i];
        size_t n = p->len - g->at < len ? p->len - g->at : len;
        if (n && p->p)
            memcpy(to, (const uint8_t *)p->p + g->at, n);
        else if (n)
            memset(to, 0, n);
        to += n;
        len -= n;
        g->at += n;
        if (g->at == p->len) g->at = 0, g->i++;
    }
}

/* The next bytes as they lie, if `len` of them are in one part. */
static const uint8_t *gather_direct(struct gather *g, size_t len)
{
    while (g->i < g->n && g->at == g->part[g->i].len) g->at = 0, g->i++;
    const struct pgs_part *p = &g->part[g->i];
    if (g->i == g->n || !p->p || p->len - g->at < len) return NULL;
    const uint8_t *from = (const uint8_t *)p->p + g->at;
    g->at += len;
    return from;
}

/* --- copying to pages ------------------------------------------------------------------------------------------------------------ */
struct put {
    struct pgs_txn *t;
    const struct pgs_part *parts;
    size_t n_parts;
    uint64_t n_bytes;
    uint64_t *page_xxh; /* or NULL */
    struct pgs_run *runs;
    size_t n_runs;
    struct pgs__own own;
};

static int copy_mapped(struct put *p, struct gather *g, struct pgs_run run, uint64_t n_bytes, struct pgs_error *err)
{
    void *at;
    struct pgs__pagefile *pf = &p->t->s->pf;
    int rc = pgs__fresh_reserve(pf, run, pgs__run_is_whole(run), err);
    if (rc == 0) rc = pgs__fresh_map(pf, run, NULL, &at, err);
    if (rc) return rc;
    gather(g, at, (size_t)n_bytes);
    memset((uint8_t *)at + n_bytes, 0, (size_t)((run.n_pages << PGS_PAGE_SHIFT) - n_bytes));
    pgs__fresh_unmap(at, run.n_pages);
    return 0;
}

static int copy_bounced(struct put *p, struct gather *g, struct pgs_run run, uint64_t n_bytes, uint64_t *xxh,
                        struct pgs_error *err)
{
    uint8_t *bounce = pgs__malloc((size_t)pgs__min_u64(n_bytes, BOUNCE));
    if (!bounce) return pgs__fail(err, PGS_ENOMEM, "no memory to copy an object");
    int rc = 0;
    for (uint64_t done = 0; done < n_bytes && rc == 0; done += BOUNCE) {
        size_t len = (size_t)pgs__min_u64(n_bytes - done, BOUNCE);
        struct pgs_run part = {{run.page.n + (done >> PGS_PAGE_SHIFT)}, pgs__pages_of(len)};
        gather(g, bounce, len);
        rc = pgs__fresh_copy(&p->t->s->pf, part, false, bounce, len, xxh ? xxh + (done >> PGS_PAGE_SHIFT) : NULL, err);
    }
    pgs__free(bounce);
    return rc;
}

static int copy_run(struct put *p, struct gather *g, struct pgs_run run, uint64_t n_bytes, uint64_t *xxh,
                    struct pgs_error *err)
{
    const uint8_t *direct = gather_direct(g, (size_t)n_bytes);
    if (direct) return pgs__fresh_copy(&p->t->s->pf, run, pgs__run_is_whole(run), direct, n_bytes, xxh, err);
    if (!xxh && n_bytes >= MAP_LEAST && pgs__fresh_can_map(&p->t->s->pf)) return copy_mapped(p, g, run, n_bytes, err);
    return copy_bounced(p, g, run, n_bytes, xxh, err);
}

/* Take pages and fill them; leaves nothing behind when it fails. */
static int fill(void *ctx, struct pgs_error *err)
{
    struct put *p = ctx;
    struct gather g = {.part = p->parts, .n = p->n_parts};
    uint64_t done = 0;
    int rc = pgs__txn_alloc(p->t, NULL, false, pgs__pages_of(p->n_bytes), &p->own, &p->runs, &p->n_runs, err);
    for (size_t i = 0; i < p->n_runs && rc == 0; i++) {
        uint64_t len = pgs__min_u64(p->runs[i].n_pages << PGS_PAGE_SHIFT, p->n_bytes - done);
        rc = copy_run(p, &g, p->runs[i], len, p->page_xxh ? p->page_xxh + (done >> PGS_PAGE_SHIFT) : NULL, err);
        done += len;
    }
    if (rc) {
        pgs__own_give(p->t, &p->own);
        pgs__free(p->runs);
        p->runs = NULL;
        p->n_runs = 0;
    }
    return rc;
}

/* How much of the content must be right before it is used: of a pickle the part up to its first u64, else all. */
static uint64_t stream_bytes(const struct put *p, enum pgs_kind kind)
{
    uint64_t head = 0;
    struct gather g = {.part = p->parts, .n = p->n_parts};
    if (kind != PGS_KIND_PICKLE || p->n_bytes < sizeof head) return p->n_bytes;
    gather(&g, (uint8_t *)&head, sizeof head);
    return head < sizeof head || head > p->n_bytes ? p->n_bytes : head;
}

static int hash_stream(struct put *p, uint64_t n_bytes, uint64_t *xxh, struct pgs_error *err)
{
    struct pgs__hasher *h = pgs__hasher_new();
    if (!h) return pgs__fail(err, PGS_ENOMEM, "no memory to hash an object");
    uint64_t left = n_bytes;
    int rc = 0;
    for (size_t i = 0; i < p->n_runs && rc == 0; i++)
        for (uint64_t at = 0; at < p->runs[i].n_pages && left && rc == 0; at += PGS_CHUNK_PAGES) {
            struct pgs_run r = {{p->runs[i].page.n + at}, pgs__min_u64(p->runs[i].n_pages - at, PGS_CHUNK_PAGES)};
            uint64_t len = pgs__min_u64(left, r.n_pages << PGS_PAGE_SHIFT);
            const void *bytes = pgs__pages_at(&p->t->s->pf, r.page, r.n_pages);
            if (!bytes)
                rc = pgs__pages_explain(&p->t->s->pf, r.page, r.n_pages, "a stream", err);
            else
                pgs__hasher_update(h, bytes, (size_t)len);
            left -= len;
        }
    *xxh = pgs__hasher_digest(h);
    pgs__hasher_free(h);
    return rc;
}

/* Contents too large for the record. */
static int put_pages(struct put *p, struct pgs__object *o, struct pgs_error *err)
{
    bool is_array = o->kind == PGS_KIND_ARRAY, checksums = false;
    uint64_t xxh = 0, xxh_bytes = is_array ? 0 : stream_bytes(p, o->kind);
    int rc = xxh_bytes < p->n_bytes ? pgs__txn_checksums(p->t, &checksums, err) : 0;
    if (rc) return rc;
    if (checksums) {
        p->page_xxh = pgs__malloc((size_t)pgs__pages_of(p->n_bytes) * sizeof *p->page_xxh);
        if (!p->page_xxh) return pgs__fail(err, PGS_ENOMEM, "no memory for the checksums of an array");
    }
    rc = pgs__txn_could_hold(p->t, p->n_bytes, err);
    if (rc == 0) rc = pgs__txn_with_room(p->t, fill, p, p->n_bytes, err);
    if (rc == 0 && !is_array) rc = hash_stream(p, xxh_bytes, &xxh, err);
    if (rc == 0)
        rc = pgs__txn_content_of(p->t, p->runs, p->n_runs, p->n_bytes, p->t->base->root.gen + 1, p->page_xxh, &p->own,
                                 &o->content, err);
    o->content.xxh = xxh;
    o->content.xxh_bytes = xxh_bytes;
    if (rc == 0) atomic_fetch_add_explicit(&p->t->s->bytes_copied, p->n_bytes, memory_order_relaxed); /* a statistic */
    pgs__free(p->runs);
    pgs__free(p->page_xxh);
    return rc;
}

int pgs__put_locked(struct pgs_txn *t, struct pgs__op *op, enum pgs_kind kind, const struct pgs_type *type,
                    const struct pgs_part *parts, size_t n_parts, struct pgs_error *err)
{
    struct pgs__object o = {.kind = kind, .id = PGS__ID_PENDING, .version = PGS__ID_PENDING};
    struct put p = {.t = t, .parts = parts, .n_parts = n_parts};
    uint8_t small[PGS__INLINE_MAX], rec[PGS__RECORD_MAX];
    size_t rec_len;
    int rc = type ? pgs__type_object(type, &o, err) : 0;
    if (rc) return rc;
    for (size_t i = 0; i < n_parts; i++) p.n_bytes += parts[i].len;
    if (type && p.n_bytes != o.content.n_bytes)
        return pgs__fail(err, PGS_ETYPE, "the array's shape needs %llu bytes, %llu were given",
                         (unsigned long long)o.content.n_bytes, (unsigned long long)p.n_bytes);
    if (p.n_bytes > 1ull << 46) return pgs__fail(err, PGS_E2BIG, "an object has at most 64 TiB");
    rc = pgs__op_name_fits(t, op, kind, err);
    if (rc == 0) rc = pgs__txn_place_type(t, &o, &p.own, err);
    if (rc) goto fail;
    size_t room = pgs__object_inline_room(op->len, o.ndim, o.dtype_len);
    if (p.n_bytes <= room) {
        struct gather g = {.part = parts, .n = n_parts};
        gather(&g, small, (size_t)p.n_bytes);
        o.content = (struct pgs__content){.form = PGS__FORM_INLINE, .n_bytes = p.n_bytes, .inline_data = small};
    } else {
        rc = put_pages(&p, &o, err);
    }
    if (rc == 0) rc = pgs__object_encode(&o, rec, &rec_len, err);
    if (rc) goto fail;
    struct pgs__pend *pend = pgs__pend_new(t, rec, rec_len);
    if (!pend) {
        rc = pgs__fail(err, PGS_ENOMEM, "no memory for one more object of a transaction");
        goto fail;
    }
    pend->own = true;
    pgs__own_forget(&p.own);
    pgs__op_set(t, op, pend);
    return 0;
fail:
    pgs__own_give(t, &p.own);
    return rc;
}

int pgs__txn_put(struct pgs_txn *t, const void *key, size_t len, enum pgs_kind kind, const struct pgs_type *type,
                 const struct pgs_part *parts, size_t n_parts, struct pgs_error *err)
{
    struct pgs__op *op;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = pgs__op_get(t, key, len, &op, err);
    if (rc == 0) rc = pgs__put_locked(t, op, kind, type, parts, n_parts, err);
    pgs__txn_unlock(t);
    return rc;
}
