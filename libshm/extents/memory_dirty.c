/* Pagestone | extents/memory_dirty — which pages of a copy-on-write memory differ from its base; dropping them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The kernel names the pages that were written (or patched at composing, or, where only pagemap can be read, zero pages of holes that were read). Each of them is compared with the
 * base, read through the window, so what comes out is exact whatever the kernel could tell: storing the value that is already there is no change.
 *
 *   D1  Pages between the smallest size that the memory had (low_pages) and the end of the base show zeros instead of the base, although nobody wrote to them.
 *       They are compared without asking the kernel, where the base has a run.
 *   D2  Cost: a walk of the page table, and two page reads for each page written. Where neither PAGEMAP_SCAN nor pagemap works every page of the
 *       memory is compared, holes included: reading a hole maps the zero page, 8 bytes of page table for each 4 KiB, so a memory of 1 TB of
 *       holes then costs minutes and 2 GB. Such kernels have no /proc; nothing better is known there.
 */
#define _GNU_SOURCE
#include "libshm/extents/memory.h"

#include <errno.h>
#include <sys/mman.h>

#include "libshm/extents/content_map.h"
#include "libshm/extents/memory_state.h"
#include "libshm/platform/vm.h"

struct query {
    struct pgs__pagefile *pf;
    struct pgs__mem *m;
    struct pgs__mem_priv *v;
    pgs__range_fn fn;
    void *ctx;
    struct pgs_error *err;
    uint64_t lo, hi; /* pages found different and not yet reported */
    uint64_t first;  /* page at which the kernel's answer begins */
    uint64_t done;   /* pages before it are decided */
    int stop;        /* nonzero answer of fn, or an error */
    struct pgs__cold_cache cache;
};

static const uint8_t *page_of(const struct query *q, uint64_t page)
{
    return (const uint8_t *)q->m->addr + (page << PGS_PAGE_SHIFT);
}

static int flush(struct query *q)
{
    uint64_t lo = q->lo, hi = q->hi;
    q->lo = q->hi = 0;
    if (q->stop == 0 && lo < hi) q->stop = q->fn(q->ctx, lo << PGS_PAGE_SHIFT, hi << PGS_PAGE_SHIFT);
    return q->stop;
}

static int differs(struct query *q, uint64_t page)
{
    if (q->lo < q->hi && q->hi == page) {
        q->hi++;
        return 0;
    }
    int rc = flush(q);
    q->lo = page;
    q->hi = page + 1;
    return rc;
}

/* --- comparing ------------------------------------------------------------------------------------------------------------------ */
static bool page_is_zero(const uint8_t *p)
{
    uint64_t word[8];
    for (size_t i = 0; i < PGS_PAGE_SIZE; i += sizeof word) {
        memcpy(word, p + i, sizeof word);
        if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] | word[6] | word[7]) return false;
    }
    return true;
}

static int compare_zeros(struct query *q, uint64_t lo, uint64_t hi)
{
    for (uint64_t page = lo; page < hi; page++)
        if (!page_is_zero(page_of(q, page)) && differs(q, page)) return q->stop;
    return 0;
}

static int compare_inline(struct query *q, uint64_t lo, uint64_t hi)
{
    PGS_STATIC(PGS__INLINE_MAX <= PGS_PAGE_SIZE, "inline contents are one page");
    if (lo > 0 || lo >= hi) return 0;
    uint8_t base[PGS_PAGE_SIZE] = {0};
    memcpy(base, q->v->inlined, q->v->base.n_bytes);
    return memcmp(base, page_of(q, 0), sizeof base) ? differs(q, 0) : 0;
}

/* Compares a run of the base, and the hole before it: q->done is where it begins. */
static int compare_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct query *q = ctx;
    (void)birth;
    int rc = compare_zeros(q, q->done, at.n);
    for (uint64_t i = 0; i < run.n_pages && rc == 0; i++) {
        const void *base = pgs__content_page_via(q->pf, &q->cache, run.page.n + i, &q->stop, q->err);
        if (!base) return q->stop;
        if (memcmp(base, page_of(q, at.n + i), PGS_PAGE_SIZE)) rc = differs(q, at.n + i);
    }
    q->done = at.n + run.n_pages;
    return rc;
}

/* Decide pages [lo, hi) by their bytes. */
static int compare(struct query *q, uint64_t lo, uint64_t hi)
{
    uint64_t end = pgs__min_u64(hi, q->v->base_pages);
    int rc = 0;
    q->done = lo;
    if (q->v->base.form == PGS__FORM_INLINE) {
        rc = compare_inline(q, lo, end);
        q->done = pgs__max_u64(lo, end);
    } else if (lo < end) {
        rc = pgs__content_runs(q->pf, &q->v->base, lo, end, compare_run, q, q->err);
    }
    if (rc == 0) rc = compare_zeros(q, q->done, hi);
    q->done = hi;
    if (rc && q->stop == 0) q->stop = rc;
    return rc;
}

/* --- asking the kernel ------------------------------------------------------------------------------------------------------------ */
static int on_written(void *ctx, uint64_t first_page, uint64_t n_pages)
{
    struct query *q = ctx;
    return compare(q, q->first + first_page, q->first + first_page + n_pages);
}

/* Decide pages [lo, hi), of which those that were not written show the base. */
static int ask(struct query *q, uint64_t lo, uint64_t hi)
{
    bool exact;
    if (lo >= hi) return 0;
    q->first = q->done = lo;
    int rc = pgs__vm_dirty(page_of(q, lo), (hi - lo) << PGS_PAGE_SHIFT, on_written, q, &exact);
    if (q->stop) return q->stop;
    if (rc == 0) return 0;
    if (rc != -ENOTSUP) return q->stop = pgs__fail_os(q->err, -rc, "cannot ask which pages were written");
    return compare(q, q->done, hi); /* perhaps after a part of the answer */
}

/* D1: a run of the base that is no longer shown, and the hole before it, which was never shown otherwise. */
struct beyond {
    struct query *q;
    uint64_t at;
};
static int beyond_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct beyond *b = ctx;
    (void)birth;
    int rc = ask(b->q, b->at, at.n);
    if (rc == 0) rc = compare(b->q, at.n, at.n + run.n_pages);
    b->at = at.n + run.n_pages;
    return rc;
}

int pgs__mem_dirty(struct pgs__pagefile *pf, struct pgs__mem *m, pgs__range_fn fn, void *ctx, struct pgs_error *err)
{
    if (m->kind != PGS__MEM_COW) return pgs__fail(err, PGS_EINVAL, "only copy-on-write memory knows what was written");
    struct query q = {.pf = pf, .m = m, .v = m->priv, .fn = fn, .ctx = ctx, .err = err};
    uint64_t n_pages = pgs__pages_of(m->n_bytes), low = pgs__min_u64(m->priv->low_pages, n_pages);
    uint64_t hidden = pgs__min_u64(m->priv->base_pages, n_pages); /* base pages [low, hidden) are not shown */
    struct beyond b = {.q = &q, .at = low};
    int rc = ask(&q, 0, low);
    if (rc == 0 && low < hidden && q.v->base.form == PGS__FORM_INLINE) {
        rc = compare(&q, low, hidden);
        b.at = hidden;
    } else if (rc == 0 && low < hidden) {
        rc = pgs__content_runs(pf, &q.v->base, low, hidden, beyond_run, &b, err);
    }
    if (rc == 0) rc = ask(&q, b.at, n_pages);
    pgs__cold_cache_free(&q.cache);
    return rc ? rc : flush(&q);
}

/* --- rollback ---------------------------------------------------------------------------------------------------------------------- */
static int drop_written(struct pgs__mem *m, uint64_t hi, struct pgs_error *err)
{
    if (madvise(m->addr, hi, MADV_DONTNEED) == 0) return 0;
    return pgs__fail_os(err, errno, "cannot drop the written pages");
}

int pgs__mem_reset(struct pgs__pagefile *pf, struct pgs__mem *m, struct pgs_error *err)
{
    struct pgs__mem_priv *v = m->priv;
    if (m->kind != PGS__MEM_COW) return pgs__fail(err, PGS_EINVAL, "only copy-on-write memory can be reset");
    uint64_t base_end = v->base_pages << PGS_PAGE_SHIFT;
    bool inlined = v->base.form == PGS__FORM_INLINE;
    int rc;
    if (m->heap) {
        rc = pgs__mem_fill_heap(m, err);
        if (rc) return rc;
    } else if (!inlined && (v->patched || v->low_pages < v->base_pages)) {
        /* Composed anew: over the old mappings, so that no other thread's mapping can get in between. */
        long n_maps = 0;
        rc = pgs__mem_zero(m, 0, m->mapped, err);
        if (rc == 0) rc = pgs__mem_compose(pf, &v->base, m->addr, true, &n_maps, &v->patched, err);
        if (rc) return rc;
        pgs__vm_uncharge(m->n_maps);
        m->n_maps = n_maps;
    } else {
        rc = drop_written(m, m->mapped, err);
        if (rc) return rc;
        if (inlined) memcpy(m->addr, v->inlined, v->base.n_bytes);
    }
    m->n_bytes = v->base.n_bytes;
    v->low_pages = v->base_pages;
    m->mapped = pgs__max_u64(m->mapped, base_end);
    return 0;
}
