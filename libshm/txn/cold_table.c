/* Pagestone | txn/cold_table — finding a block and bringing its bytes.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Compressed bytes are read through the window, so bringing a block copies nothing but what the decompression makes. What the table says is input: the ledger checks that a block lies in the file, the codec the
 * rest.
 */
#include "libshm/txn/cold_table.h"

#include "libshm/platform/mem.h"
#include "libshm/txn/image.h"

int pgs__cold_find(struct pgs__session *s, uint64_t slot, struct pgs__cold_block *out, struct pgs_error *err)
{
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = pgs__ledger_cold_get(&l, slot, out, err);
    pgs__meta_end(s, &l);
    return rc;
}

int pgs__cold_block_fetch(struct pgs__pagefile *pf, uint64_t slot, const struct pgs__cold_block *b, void *buf,
                          struct pgs_error *err)
{
    uint64_t n_pages = pgs__pages_of(b->z_bytes);
    const void *z = pgs__pages_at(pf, (struct pgs_pgno){b->page}, n_pages);
    if (!z) return pgs__pages_explain(pf, (struct pgs_pgno){b->page}, n_pages, "a compressed block", err);
    struct pgs_error local = {0};
    int rc = pgs__cold_decompress(z, b->z_bytes, buf, b->n_bytes, b->itemsize, b->xxh, &local);
    if (rc == -PGS_ECORRUPT)
        return pgs__fail_corrupt(err, "", "compressed block %llu, page %llu: %s", (unsigned long long)slot,
                                 (unsigned long long)b->page, local.text);
    if (rc && err && err->code == 0) *err = local;
    return rc;
}

int pgs__cold_block_read(struct pgs__session *s, uint64_t slot, void *buf, size_t *n_bytes, struct pgs_error *err)
{
    struct pgs__ledger l;
    struct pgs__cold_block b;
    int rc = pgs__meta_begin(s, &l, err); /* held to the end: it keeps the bytes, too */
    if (rc) return rc;
    rc = pgs__ledger_cold_get(&l, slot, &b, err);
    if (rc == -PGS_ENOENT) { /* of the same moment */
        struct pgs__cold_total total;
        int worse = pgs__ledger_cold_total(&l, &total, err);
        rc = worse ? worse : slot < total.next ? rc : -PGS_EINVAL;
    }
    if (rc == 0) rc = pgs__cold_block_fetch(&s->pf, slot, &b, buf, err);
    pgs__meta_end(s, &l);
    if (rc == 0) *n_bytes = b.n_bytes;
    return rc;
}

static int missing(uint64_t slot, struct pgs_error *err)
{
    return pgs__fail_corrupt(err, "", "compressed block %llu is not in the table", (unsigned long long)slot);
}

/* Pages [lo, hi) of one slot. */
static int read_slot(struct pgs__session *s, uint64_t slot, uint64_t lo, uint64_t hi, uint8_t *buf,
                     struct pgs_error *err)
{
    size_t n_bytes = 0, from = (size_t)lo << PGS_PAGE_SHIFT, to = (size_t)hi << PGS_PAGE_SHIFT;
    if (lo == 0 && hi == PGS__COLD_PAGES) {
        int rc = pgs__cold_block_read(s, slot, buf, &n_bytes, err);
        if (rc == -PGS_ENOENT || rc == -PGS_EINVAL) return missing(slot, err);
        if (rc == 0) memset(buf + n_bytes, 0, PGS__COLD_BYTES - n_bytes);
        return rc;
    }
    uint8_t *whole = pgs__malloc(PGS__COLD_BYTES);
    if (!whole) return pgs__fail(err, PGS_ENOMEM, "no memory to decompress a block");
    int rc = pgs__cold_block_read(s, slot, whole, &n_bytes, err);
    if (rc == -PGS_ENOENT || rc == -PGS_EINVAL) rc = missing(slot, err);
    if (rc == 0) {
        size_t have = pgs__min_u64(to, pgs__max_u64(n_bytes, from));
        memcpy(buf, whole + from, have - from);
        memset(buf + (have - from), 0, to - have);
    }
    pgs__free(whole);
    return rc;
}

int pgs__cold_read_pages(void *session, uint64_t page, uint64_t n_pages, void *buf, struct pgs_error *err)
{
    uint8_t *to = buf;
    if (page < PGS__COLD_FIRST || page >= PGS__COLD_END || n_pages > PGS__COLD_END - page)
        return pgs__fail_corrupt(err, "", "page %llu is not of the image", (unsigned long long)page);
    for (uint64_t end = page + n_pages; page < end;) {
        uint64_t slot = pgs__cold_slot(page), lo = page - pgs__cold_page_of(slot);
        uint64_t hi = pgs__min_u64(PGS__COLD_PAGES, lo + (end - page));
        int rc = read_slot(session, slot, lo, hi, to, err);
        if (rc) return rc;
        to += (hi - lo) << PGS_PAGE_SHIFT;
        page += hi - lo;
    }
    return 0;
}

struct sizes {
    struct pgs__ledger l;
    uint64_t n_cold, n_packed; /* pages */
    uint64_t done;             /* the slot counted last, + 1 */
    struct pgs_error *err;
};
static int size_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct sizes *z = ctx;
    (void)at, (void)birth;
    if (!pgs__is_cold(run.page.n)) return 0;
    z->n_cold += run.n_pages;
    uint64_t first = pgs__cold_slot(run.page.n), last = pgs__cold_slot(run.page.n + run.n_pages - 1);
    for (uint64_t slot = pgs__max_u64(first, z->done == first + 1 ? z->done : first); slot <= last; slot++) {
        struct pgs__cold_block b;
        int rc = pgs__ledger_cold_get(&z->l, slot, &b, z->err);
        if (rc) return rc == -PGS_ENOENT ? missing(slot, z->err) : rc;
        z->n_packed += pgs__pages_of(b.z_bytes);
        z->done = slot + 1;
    }
    return 0;
}

int pgs__cold_sizes(struct pgs__session *s, const struct pgs__content *c, uint64_t *cold, uint64_t *compressed,
                    struct pgs_error *err)
{
    struct sizes z = {.err = err};
    int rc = 0;
    if (c->form == PGS__FORM_MAP) {
        rc = pgs__meta_begin(s, &z.l, err);
        if (rc) return rc;
        rc = pgs__content_runs(&s->pf, c, 0, UINT64_MAX, size_run, &z, err);
        pgs__meta_end(s, &z.l);
    }
    if (rc) return rc;
    *cold = z.n_cold << PGS_PAGE_SHIFT;
    *compressed = z.n_packed << PGS_PAGE_SHIFT;
    return 0;
}

static const struct pgs__cold_ops cold_ops = {.map = pgs__image_map, .read = pgs__cold_read_pages};

void pgs__cold_attach(struct pgs__session *s)
{
    s->pf.cold = &cold_ops;
    s->pf.cold_ctx = s;
}
