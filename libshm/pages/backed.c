/* Pagestone | pages/backed — asking the kernel which pages are there.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include "libshm/pages/backed.h"

#include <errno.h>
#include <unistd.h>

/* What holds for `page` and how far. A page of which only a part is there (blocks smaller than a page) is a hole. */
static void look(struct pgs__backed *b, uint64_t page)
{
    const struct pgs__file_ops *ops = pgs__file_ops;
    off_t at = (off_t)(page << PGS_PAGE_SHIFT);
    off_t data = ops->seek(b->pf->fd, at, SEEK_DATA);
    b->lo = page;
    b->hi = UINT64_MAX;
    b->data = data < 0 && data != -ENXIO; /* it cannot tell */
    if (data < 0) return;
    b->hi = ((uint64_t)data + PGS_PAGE_SIZE - 1) >> PGS_PAGE_SHIFT;
    if (b->hi > page) return;
    off_t hole = ops->seek(b->pf->fd, at, SEEK_HOLE);
    b->data = hole < 0 || (uint64_t)hole >> PGS_PAGE_SHIFT > page;
    b->hi = hole < 0 || !b->data ? page + 1 : (uint64_t)hole >> PGS_PAGE_SHIFT;
}

struct pgs_run pgs__backed_first(struct pgs__backed *b, uint64_t lo, uint64_t hi)
{
    while (lo < hi) {
        if (lo < b->lo || lo >= b->hi) look(b, lo);
        uint64_t end = pgs__min_u64(b->hi, hi);
        if (b->data) return (struct pgs_run){{lo}, end - lo};
        lo = end;
    }
    return (struct pgs_run){{hi}, 0};
}
