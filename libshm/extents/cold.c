/* Pagestone | extents/cold — reading cold pages through what the page file's owner set.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Who reads a content page after page keeps one decompressed block at hand, so that a block costs one decompression whatever the pieces are in which its pages are asked for, as long as they come one after the other.
 */
#include "libshm/extents/cold.h"

#include "libshm/platform/mem.h"

static int no_way(struct pgs_error *err)
{
    return pgs__fail(err, PGS_ENOTSUP, "compressed pages cannot be reached here");
}

int pgs__cold_read(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, void *buf, struct pgs_error *err)
{
    return pf->cold ? pf->cold->read(pf->cold_ctx, page, n_pages, buf, err) : no_way(err);
}

const void *pgs__cold_page(struct pgs__pagefile *pf, struct pgs__cold_cache *c, uint64_t page, int *rc,
                           struct pgs_error *err)
{
    uint64_t slot = pgs__cold_slot(page);
    const struct pgs__cold_ops *ops = c->ops ? c->ops : pf->cold;
    void *ctx = c->ops ? c->ctx : pf->cold_ctx;
    if (c->slot != slot + 1) {
        c->slot = 0;
        if (!c->buf) c->buf = pgs__malloc(PGS__COLD_BYTES);
        if (!c->buf)
            *rc = pgs__fail(err, PGS_ENOMEM, "no memory to decompress a block");
        else
            *rc = ops ? ops->read(ctx, pgs__cold_page_of(slot), PGS__COLD_PAGES, c->buf, err) : no_way(err);
        if (*rc) return NULL;
        c->slot = slot + 1;
    }
    return c->buf + ((page - pgs__cold_page_of(slot)) << PGS_PAGE_SHIFT);
}

void pgs__cold_cache_free(struct pgs__cold_cache *c)
{
    pgs__free(c->buf);
    c->buf = NULL;
    c->slot = 0;
}
