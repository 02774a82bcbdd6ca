/* Pagestone | extents/memory_compose — many runs, few mappings: what is mapped, what is copied.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A map of runs becomes one range of addresses. Each mapping costs 3 µs and one of the 65,530 that Linux gives a process, so an array with thousands of
 * scattered small runs (the traces of small commits in a large array) is not mapped run by run. The plan:
 *
 *     runs      [ A A A A A A A A ]b[ A A A A ]c[ A A A A A A A ]   …hole…   d   …hole…        small runs b, c, d
 *     mapped    [ A A A A A A A A A A A A A A A A A A A A A A A ]   one mapping of A
 *     copied                       b           c                             d                into private pages
 *
 *   - Runs that are neighbours in both orders are one piece, whatever their births.
 *   - Up to SMALL_MAX small pieces are mapped like the others. Beyond that they are patched: copied, page by page, into private memory that lies over the
 *     mapping of what is around them, or over zero memory.
 *   - Two pieces of one extent with only patched pages and holes between them share one mapping of the extent, the gap included. The gap's
 *     pages belong to somebody else by now, or to nobody; all of them are overwritten before the memory is shown to anybody.
 *   - Where the budget is short, larger and larger pieces are patched; more than 1 GiB and a quarter of what is stored is not copied, but an error.
 *
 * Writing to a page of the gap makes the kernel read the page below. If that page does not exist (never written, or punched), tmpfs would allocate it, or
 * kill us when it is full (HAZARDS 17). Hence gap_is_backed(): gaps are shorter than a chunk, so that a chunk which holds one also holds a page of ours
 * and is not punched, and on tmpfs each page must be resident, which only who may write the file is told.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "libshm/extents/content_map.h"
#include "libshm/extents/memory_state.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"

#define SMALL_PAGES 16u
#define SMALL_MAX 64u
#define PATCH_MAX_PAGES                                                                                                \
    (1ull                                                                                                              \
     << 18) /* copies rather than an error; more, unless it is little beside the rest, would be a surprise of its own */

struct piece { /* logical pages [at, at + n_pages) are physical pages from `page` on */
    uint64_t at, page, n_pages;
};
struct plan {
    struct pgs__pagefile *pf;
    struct pgs_error *err;
    struct piece *piece; /* of the content */
    size_t n, cap;
    struct piece *seg; /* to be mapped */
    size_t n_seg;
    uint64_t n_pages;     /* of the content */
    uint64_t patch_pages; /* pieces up to this size are patched */
    uint64_t n_patched;   /* pages */
    bool over;            /* some mapping has patched pages in it */
    bool holes;           /* somewhere no mapping shows */
    bool made;            /* some pages of the image were brought into private memory */
    long n_maps;
    struct pgs__cold_cache cache;
};

/* --- the plan ------------------------------------------------------------------------------------------------------------- */
static int on_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct plan *p = ctx;
    struct piece *last = p->n ? &p->piece[p->n - 1] : NULL;
    (void)birth;
    if (last && last->at + last->n_pages == at.n && last->page + last->n_pages == run.page.n) {
        last->n_pages += run.n_pages;
        return 0;
    }
    if (p->n == p->cap && pgs__grow(&p->piece, &p->cap, p->n + 1, sizeof *p->piece))
        return pgs__fail(p->err, PGS_ENOMEM, "no memory to list the runs of an array");
    p->piece[p->n++] = (struct piece){.at = at.n, .page = run.page.n, .n_pages = run.n_pages};
    return 0;
}

static bool gap_is_backed(struct plan *p, uint64_t page, uint64_t n_pages)
{
    unsigned char in_core[PGS_CHUNK_PAGES];
    if (n_pages >= PGS_CHUNK_PAGES) return false;
    if (page <= PGS__SUPER_PAGE_1 && page + n_pages > PGS__SUPER_PAGE_1) return false;
    if (p->pf->fs != PGS__FS_TMPFS) return true; /* elsewhere reading what is not there allocates only memory */
    const void *addr = pgs__pages_at(p->pf, (struct pgs_pgno){page}, n_pages);
    if (!addr || !p->pf->writable) return false; /* the kernel tells others that everything is resident */
    /* The cast drops const for the system call's prototype; mincore reads page tables only. */
    if (mincore((void *)(uintptr_t)addr, n_pages << PGS_PAGE_SHIFT, in_core) != 0) return false;
    for (uint64_t i = 0; i < n_pages; i++)
        if (!(in_core[i] & 1)) return false;
    return true;
}

/* `next` is to be mapped: can the mapping of `seg` simply go on to its end? */
static bool bridges(struct plan *p, const struct piece *seg, const struct piece *next)
{
    uint64_t end = seg->at + seg->n_pages, gap = next->at - end;
    if (pgs__is_cold(seg->page)) return false; /* what lies between may be gone */
    return p->patch_pages && gap > 0 && seg->page + (next->at - seg->at) == next->page &&
           gap_is_backed(p, seg->page + seg->n_pages, gap);
}

/* Decide for this `patch_pages` what is mapped; counts mappings, the zero memory between them included. */
static void plan_segments(struct plan *p)
{
    uint64_t shown = 0, n_shown = 0; /* logical end of the last mapping; pages in all of them */
    p->n_seg = 0;
    p->n_patched = 0;
    p->over = false;
    p->n_maps = 1; /* what is left of the reservation */
    for (size_t i = 0; i < p->n; i++) {
        const struct piece *q = &p->piece[i];
        struct piece *seg = p->n_seg ? &p->seg[p->n_seg - 1] : NULL;
        if (q->n_pages <= p->patch_pages) {
            p->n_patched += q->n_pages;
            continue;
        }
        if (seg && bridges(p, seg, q)) {
            n_shown += q->at - shown;
            seg->n_pages = q->at + q->n_pages - seg->at;
            p->over = true;
        } else {
            p->seg[p->n_seg++] = *q;
            p->n_maps += 1 + (q->at > shown);
        }
        shown = q->at + q->n_pages;
        n_shown += q->n_pages;
    }
    p->n_maps += shown < p->n_pages;
    p->holes = n_shown < p->n_pages;
}

/* Find a plan that the budget allows, and charge it. */
static int plan_charge(struct plan *p)
{
    size_t n_small = 0;
    uint64_t n_stored = 0;
    for (size_t i = 0; i < p->n; i++) {
        n_small += p->piece[i].n_pages <= SMALL_PAGES;
        n_stored += p->piece[i].n_pages;
    }
    p->patch_pages = n_small > SMALL_MAX ? SMALL_PAGES : 0;
    for (;;) {
        plan_segments(p);
        if (p->n_patched > pgs__max_u64(PATCH_MAX_PAGES, n_stored / 4)) break;
        if (pgs__vm_charge(p->n_maps) == 0) return 0;
        if (p->n_seg == 0) break;
        p->patch_pages = p->patch_pages ? p->patch_pages * 4 : SMALL_PAGES;
    }
    return pgs__fail(
        p->err, PGS_ENOMEM,
        "an array of %zu scattered runs needs more memory mappings than half of vm.max_map_count; close other "
        "arrays, raise that limit, or compact the store",
        p->n);
}

/* --- carrying it out -------------------------------------------------------------------------------------------------------- */
/* Pages of the image: mapped, or brought where nothing maps them. */
static int map_cold(struct plan *p, const struct piece *seg, uint8_t *addr, enum pgs__map_kind kind)
{
    uint8_t *to = addr + (seg->at << PGS_PAGE_SHIFT);
    size_t len = seg->n_pages << PGS_PAGE_SHIFT;
    struct pgs_error local = {0};
    int rc = p->pf->cold ? p->pf->cold->map(p->pf->cold_ctx, seg->page, seg->n_pages, to, kind == PGS__MAP_COW, &local)
                         : -PGS_ENOTSUP;
    if (rc && rc != -PGS_ENOTSUP && p->err && p->err->code == 0) *p->err = local;
    if (rc != -PGS_ENOTSUP) return rc;
    rc = pgs__vm_zero(to, len, true);
    if (rc) return pgs__fail_os(p->err, -rc, "cannot map %zu bytes of zero memory", len);
    rc = pgs__cold_read(p->pf, seg->page, seg->n_pages, to, p->err);
    p->made = true;
    if (rc == 0 && kind == PGS__MAP_READ && mprotect(to, len, PROT_READ) != 0)
        rc = pgs__fail_os(p->err, errno, "cannot protect %zu bytes", len);
    return rc;
}

static int map_segment(struct plan *p, const struct piece *seg, uint8_t *addr, enum pgs__map_kind kind)
{
    int rc = 0;
    if (pgs__is_cold(seg->page)) return map_cold(p, seg, addr, kind);
    if (pgs__file_ops->map(p->pf->fd, kind, addr + (seg->at << PGS_PAGE_SHIFT), seg->n_pages << PGS_PAGE_SHIFT,
                           (off_t)(seg->page << PGS_PAGE_SHIFT), &rc) != MAP_FAILED)
        return 0;
    if (rc == -EBADF)
        return pgs__fail(p->err, PGS_EIO,
                         "the program closed the store's file descriptor (closerange?): open the store again");
    return pgs__fail_os(p->err, -rc, "cannot map %llu pages of the store", (unsigned long long)seg->n_pages);
}

static int copy_piece(struct plan *p, const struct piece *q, uint8_t *addr)
{
    for (uint64_t i = 0; i < q->n_pages; i++) {
        int rc = 0;
        const void *from = pgs__content_page_via(p->pf, &p->cache, q->page + i, &rc, p->err);
        if (!from) return rc;
        memcpy(addr + ((q->at + i) << PGS_PAGE_SHIFT), from, PGS_PAGE_SIZE);
    }
    return 0;
}

/* Copy the patched pieces, and overwrite with zeros what a mapping shows of gaps where the content has holes. */
static int patch(struct plan *p, uint8_t *addr)
{
    size_t s = 0;
    uint64_t done = 0; /* pages before it show what they should */
    for (size_t i = 0; i < p->n; i++) {
        const struct piece *q = &p->piece[i];
        while (s < p->n_seg && p->seg[s].at + p->seg[s].n_pages <= q->at) s++;
        uint64_t from = s < p->n_seg ? pgs__max_u64(done, p->seg[s].at) : q->at;
        if (from < q->at) memset(addr + (from << PGS_PAGE_SHIFT), 0, (q->at - from) << PGS_PAGE_SHIFT);
        int rc = q->n_pages <= p->patch_pages ? copy_piece(p, q, addr) : 0;
        if (rc) return rc;
        done = q->at + q->n_pages;
    }
    return 0;
}

static int carry_out(struct plan *p, uint8_t *addr, bool cow)
{
    size_t len = p->n_pages << PGS_PAGE_SHIFT;
    bool copies = p->n_patched > 0 || p->over;
    int rc = p->holes ? pgs__vm_zero(addr, len, cow || copies) : 0;
    if (rc) return pgs__fail_os(p->err, -rc, "cannot map %zu bytes of zero memory", len);
    for (size_t i = 0; i < p->n_seg && rc == 0; i++)
        rc = map_segment(p, &p->seg[i], addr, cow || p->over ? PGS__MAP_COW : PGS__MAP_READ);
    if (rc == 0 && copies) rc = patch(p, addr);
    if (rc == 0 && copies && !cow && mprotect(addr, len, PROT_READ) != 0)
        rc = pgs__fail_os(p->err, errno, "cannot protect %zu bytes", len);
    return rc;
}

int pgs__mem_copy(struct pgs__pagefile *pf, const struct pgs__content *c, uint8_t *addr, struct pgs_error *err)
{
    struct plan p = {.pf = pf, .err = err, .n_pages = pgs__pages_of(c->n_bytes)};
    int rc = pgs__content_runs(pf, c, 0, UINT64_MAX, on_run, &p, err);
    for (size_t i = 0; i < p.n && rc == 0; i++) rc = copy_piece(&p, &p.piece[i], addr);
    pgs__cold_cache_free(&p.cache);
    pgs__free(p.piece);
    return rc;
}

int pgs__mem_compose(struct pgs__pagefile *pf, const struct pgs__content *c, uint8_t *addr, bool cow, long *n_maps,
                     bool *patched, struct pgs_error *err)
{
    struct plan p = {.pf = pf, .err = err, .n_pages = pgs__pages_of(c->n_bytes)};
    int rc = pgs__content_runs(pf, c, 0, UINT64_MAX, on_run, &p, err);
    if (rc == 0 && p.n && !(p.seg = pgs__malloc(p.n * sizeof *p.seg)))
        rc = pgs__fail(err, PGS_ENOMEM, "no memory to list the runs of an array");
    if (rc == 0) rc = plan_charge(&p);
    if (rc) goto out;
    rc = carry_out(&p, addr, cow);
    if (rc) {
        pgs__vm_uncharge(p.n_maps);
        goto out;
    }
    *n_maps = p.n_maps;
    *patched = p.n_patched > 0 || p.over || p.made;
out:
    pgs__cold_cache_free(&p.cache);
    pgs__free(p.piece);
    pgs__free(p.seg);
    return rc;
}
