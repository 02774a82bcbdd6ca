/* Pagestone | txn/freeze_plan — which blocks of a content are worth freezing or thawing.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A block is 32 logical pages, aligned in the content; the last one may be shorter. To be frozen it needs two raw pages at least, since one page in eight must be saved, and never less than one. Holes in it stay holes:
 * they are compressed as zeros, but the map does not refer to them. Pages of it that are cold already are compressed again with the rest, if that pays by the raw ones alone.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/freeze_impl.h"

struct plan {
    struct pgs__freeze *f;
    struct pgs__freeze_block now; /* being collected; n 0: none */
    struct pgs_error *err;
};
enum { ENOUGH = 1 };

/* The block is complete: keep it or not. */
static int finish(struct plan *p)
{
    struct pgs__freeze *f = p->f;
    if (p->now.n == 0) return 0;
    bool wanted = f->thaw ? p->now.n_cold > 0 : p->now.n_raw >= 2;
    f->next = p->now.at + p->now.n;
    if (wanted)
        f->blocks[f->n_blocks++] = p->now;
    else
        f->n_parts = p->now.first;
    p->now.n = 0;
    return f->n_blocks == f->limit ? ENOUGH : 0;
}

static int see_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct plan *p = ctx;
    struct pgs__freeze *f = p->f;
    uint64_t n_pages = pgs__pages_of(f->obj.content.n_bytes);
    for (uint64_t done = 0, n; done < run.n_pages; done += n) {
        uint64_t page = at.n + done, block = page - page % PGS__COLD_PAGES;
        uint64_t end = pgs__min_u64(block + PGS__COLD_PAGES, n_pages);
        n = pgs__min_u64(end - page, run.n_pages - done);
        if (p->now.n && p->now.at != block) {
            int rc = finish(p);
            if (rc) return rc;
        }
        if (p->now.n == 0) p->now = (struct pgs__freeze_block){.at = block, .n = end - block, .first = f->n_parts};
        if (pgs__grow(&f->parts, &f->cap_parts, f->n_parts + 1, sizeof *f->parts))
            return pgs__fail(p->err, PGS_ENOMEM, "no memory for a list of runs");
        f->parts[f->n_parts++] = (struct pgs__freeze_part){.at = page, .run = {{run.page.n + done}, n}, .birth = birth};
        p->now.n_parts++;
        if (pgs__is_cold(run.page.n))
            p->now.n_cold += (uint32_t)n;
        else
            p->now.n_raw += (uint32_t)n;
    }
    return 0;
}

int pgs__freeze_plan(struct pgs__freeze *f, struct pgs_error *err)
{
    struct plan p = {.f = f, .err = err};
    f->n_blocks = f->n_parts = 0;
    if (f->obj.content.form == PGS__FORM_INLINE) {
        f->next = UINT64_MAX;
        return 0;
    }
    int rc = pgs__content_runs(&f->s->pf, &f->obj.content, f->next, UINT64_MAX, see_run, &p, err);
    if (rc == ENOUGH) return 0;
    if (rc) return rc;
    if (finish(&p) != ENOUGH || f->next >= pgs__pages_of(f->obj.content.n_bytes)) f->next = UINT64_MAX;
    return 0;
}
