/* Pagestone | txn/rebase — the pages of a changed array, made upon its newest content.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Three contents meet: the base that the transaction's memory stands over, theirs (the newest one of the same object; the base itself if nobody else
 * changed it), and ours: dirty pages of memory, and rows appended. The result is theirs, with some pages replaced by new ones:
 *
 *     page                            its bytes
 *     dirty, same in theirs           ours
 *     dirty, different in theirs      byte by byte: ours where it differs from the base, else theirs. That is the merge by elements, because
 *                                     merge.c has made sure that no element was changed by both
 *     holds appended rows             theirs up to their end, then our rows, which move to where theirs end (HAZARDS 16)
 *     in a crowded window             theirs: a window of 2 MiB in many pieces is written anew as one
 *
 * New pages are taken in logical order, contiguous if possible, so that a reader needs few mappings. Everything here may run outside the commit lock, upon a pinned
 * generation, or, when it is little, inside. Bytes past the logical end are zero in every page made here.
 */
#include "libshm/pages/fresh.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

#define COMPOSE_PAGES 64u
#define CROWDED 64u /* runs in one window */

struct rebase {
    struct pgs_txn *t;
    struct pgs__ledger *l;
    struct pgs__pagefile *pf;
    struct pgs__op *op;
    struct pgs__array *a;
    const struct pgs__content *theirs;
    bool same_bytes; /* of the base: its backing may differ (freeze, thaw, compact), its content does not */
    struct pgs__cold_cache base_cache, their_cache;
    const uint8_t *ours; /* memory, or NULL */
    const uint8_t *rows; /* appended bytes */
    uint64_t ours_bytes; /* of the memory that stand for the base's bytes */
    uint64_t rows_bytes, rows_at, n_bytes;
    struct pgs__range_list their_pages, work;
    uint64_t n_work;
    uint64_t *page_xxh;
    struct pgs_run *runs;
    size_t n_runs;
    struct pgs_error *err;
};

bool pgs__same_content(const struct pgs__content *a, const struct pgs__content *b)
{
    if (a->form != b->form || a->n_bytes != b->n_bytes) return false;
    if (a->form == PGS__FORM_INLINE)
        return a->n_bytes == 0 || memcmp(a->inline_data, b->inline_data, (size_t)a->n_bytes) == 0;
    return a->page.n == b->page.n && a->birth == b->birth && a->map.page == b->map.page &&
           a->map.birth == b->map.birth && a->map.xxh == b->map.xxh;
}

void pgs__prep_discard(struct pgs_txn *t, struct pgs__prep *p)
{
    pgs__own_give(t, &p->own);
    pgs__content_edit_free(p->edit);
    pgs__free(p->inline_buf);
    bool effective = p->effective;
    *p = (struct pgs__prep){.effective = effective};
}

/* --- what changed ------------------------------------------------------------------------------------------------------------------ */
struct scan {
    struct pgs__range_list *out;
    uint64_t limit; /* pages */
    struct pgs_error *err;
};
static int scan_range(void *ctx, uint64_t lo, uint64_t hi)
{
    struct scan *s = ctx;
    return pgs__ranges_add(s->out, lo >> PGS_PAGE_SHIFT, pgs__min_u64(hi >> PGS_PAGE_SHIFT, s->limit), s->err);
}

int pgs__rebase_scan(struct pgs_txn *t, struct pgs__op *op, bool *effective, struct pgs_error *err)
{
    struct pgs__array *a = op->now->a;
    int rc = 0;
    if (!a->scanned) {
        a->dirty.n = 0;
        struct scan s = {&a->dirty, pgs__pages_of(a->resized ? a->n_bytes : pgs__min_u64(a->base_bytes, a->n_bytes)),
                         err};
        if (a->view && a->n_runs == 0) rc = pgs__mem_dirty(&t->s->pf, &a->view->mem, scan_range, &s, err);
        if (rc) return rc;
        a->scanned = true;
    }
    a->prep.effective = !op->now->home || a->dirty.n || a->resized || a->appended_rows || a->n_bytes != a->base_bytes;
    *effective = a->prep.effective;
    return 0;
}

/* --- which pages to write ------------------------------------------------------------------------------------------------------------ */
struct window {
    struct pgs__range_list *work;
    uint64_t n_runs;
    struct pgs_error *err;
};
static int count_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    (void)at;
    (void)run;
    (void)birth;
    ((struct window *)ctx)->n_runs++;
    return 0;
}
static int add_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct window *w = ctx;
    (void)birth;
    if (pgs__grow(&w->work->v, &w->work->cap, w->work->n + 1, sizeof *w->work->v))
        return pgs__fail(w->err, PGS_ENOMEM, "no memory for a list of ranges");
    w->work->v[w->work->n++] = (struct pgs_range){at.n, at.n + run.n_pages};
    return 0;
}

/* Windows that we touch and that already lie in many pieces: all their pages. */
static int add_crowded(struct rebase *r)
{
    uint64_t next = 0; /* window */
    int rc = 0;
    if (r->theirs->form != PGS__FORM_MAP) return 0;
    for (size_t i = 0; i < r->a->dirty.n && rc == 0; i++) {
        uint64_t lo = r->a->dirty.v[i].lo / PGS_CHUNK_PAGES, hi = (r->a->dirty.v[i].hi - 1) / PGS_CHUNK_PAGES + 1;
        for (uint64_t w = pgs__max_u64(lo, next); w < hi && rc == 0; w++) {
            struct window c = {&r->work, 0, r->err};
            uint64_t from = w * PGS_CHUNK_PAGES, to = pgs__min_u64(from + PGS_CHUNK_PAGES, pgs__pages_of(r->n_bytes));
            rc = pgs__content_runs(r->pf, r->theirs, from, to, count_run, &c, r->err);
            if (rc == 0 && c.n_runs > CROWDED) rc = pgs__content_runs(r->pf, r->theirs, from, to, add_run, &c, r->err);
        }
        next = hi;
    }
    return rc;
}

static int plan(struct rebase *r)
{
    uint64_t end = pgs__pages_of(r->n_bytes);
    int rc = 0;
    for (size_t i = 0; i < r->a->dirty.n && rc == 0; i++)
        rc = pgs__ranges_add(&r->work, r->a->dirty.v[i].lo, pgs__min_u64(r->a->dirty.v[i].hi, end), r->err);
    if (rc == 0) rc = add_crowded(r);
    struct window w = {&r->work, 0, r->err};
    if (rc == 0 && r->rows_bytes) {
        uint64_t lo = r->rows_at >> PGS_PAGE_SHIFT;
        rc = add_run(&w, (struct pgs_lpno){lo}, (struct pgs_run){{0}, end - lo}, 0);
    }
    if (rc == 0 && r->theirs->form == PGS__FORM_INLINE && r->n_bytes)
        rc = add_run(&w, (struct pgs_lpno){0},
                     (struct pgs_run){{0}, pgs__pages_of(pgs__min_u64(r->theirs->n_bytes, r->n_bytes))}, 0);
    pgs__ranges_sort(&r->work);
    for (size_t i = 0; i < r->work.n; i++) {
        if (r->work.v[i].lo >= r->work.v[i].hi) continue;
        r->n_work += r->work.v[i].hi - r->work.v[i].lo;
    }
    return rc;
}

/* --- bytes of one page ------------------------------------------------------------------------------------------------------------------ */
static void merge_bytes(uint8_t *page, const uint8_t *ours, const uint8_t *base, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ours[i] != base[i]) page[i] = ours[i];
}

static int compose_page(struct rebase *r, uint64_t page, uint8_t *buf)
{
    uint64_t at = page << PGS_PAGE_SHIFT, their_end = pgs__pages_of(r->theirs->n_bytes) << PGS_PAGE_SHIFT;
    uint8_t base[PGS_PAGE_SIZE];
    int rc = 0;
    if (at < their_end)
        rc = pgs__content_read_via(r->pf, r->theirs, &r->their_cache, at, buf, PGS_PAGE_SIZE, r->err);
    else
        memset(buf, 0, PGS_PAGE_SIZE);
    if (rc) return rc;
    if (r->ours && at < r->ours_bytes && pgs__ranges_has(&r->a->dirty, page)) {
        size_t n = (size_t)pgs__min_u64(PGS_PAGE_SIZE, r->ours_bytes - at);
        if (pgs__ranges_has(&r->their_pages, page)) {
            rc = pgs__content_read_via(r->pf, &r->a->o.content, &r->base_cache, at, base, PGS_PAGE_SIZE, r->err);
            if (rc) return rc;
            merge_bytes(buf, r->ours + at, base, n);
        } else {
            memcpy(buf, r->ours + at, n);
        }
    }
    uint64_t lo = pgs__max_u64(at, r->rows_at), hi = pgs__min_u64(at + PGS_PAGE_SIZE, r->rows_at + r->rows_bytes);
    if (lo < hi) memcpy(buf + (lo - at), r->rows + (lo - r->rows_at), (size_t)(hi - lo));
    if (r->n_bytes < at + PGS_PAGE_SIZE) memset(buf + (r->n_bytes - at), 0, (size_t)(at + PGS_PAGE_SIZE - r->n_bytes));
    return 0;
}

/* Where the bytes of this page lie ready in memory, and stay in line with those of the page before; NULL: to be composed. */
static const uint8_t *direct(const struct rebase *r, uint64_t page)
{
    uint64_t at = page << PGS_PAGE_SHIFT, end = pgs__min_u64(at + PGS_PAGE_SIZE, r->n_bytes);
    if (r->rows_bytes && at >= r->rows_at) return r->rows + (at - r->rows_at);
    if (!r->ours || end > r->ours_bytes || (r->rows_bytes && end > r->rows_at)) return NULL;
    if (!pgs__ranges_has(&r->a->dirty, page) || pgs__ranges_has(&r->their_pages, page)) return NULL;
    return r->ours + at;
}

/* --- writing ------------------------------------------------------------------------------------------------------------------------------ */
/* Pages [lo, hi) of the array go to `run`. *done: how many; at least one. */
static int write_piece(struct rebase *r, uint64_t lo, uint64_t hi, struct pgs_run run, uint64_t *xxh, uint64_t *done)
{
    const uint8_t *from = direct(r, lo);
    uint64_t n = 1;
    if (from) {
        while (lo + n < hi && direct(r, lo + n) == from + (n << PGS_PAGE_SHIFT)) n++;
        uint64_t bytes = pgs__min_u64(n << PGS_PAGE_SHIFT, r->n_bytes - (lo << PGS_PAGE_SHIFT));
        struct pgs_run part = {run.page, n};
        *done = n;
        return pgs__fresh_copy(r->pf, part, pgs__run_is_whole(part), from, bytes, xxh, r->err);
    }
    while (lo + n < hi && n < COMPOSE_PAGES && !direct(r, lo + n)) n++;
    uint8_t *buf = pgs__malloc((size_t)n << PGS_PAGE_SHIFT);
    int rc = buf ? 0 : pgs__fail(r->err, PGS_ENOMEM, "no memory to merge an array");
    for (uint64_t i = 0; i < n && rc == 0; i++) rc = compose_page(r, lo + i, buf + (i << PGS_PAGE_SHIFT));
    if (rc == 0)
        rc = pgs__fresh_copy(r->pf, (struct pgs_run){run.page, n}, false, buf, n << PGS_PAGE_SHIFT, xxh, r->err);
    pgs__free(buf);
    *done = n;
    return rc;
}

static int write_all(struct rebase *r, struct pgs__content_edit *e)
{
    uint64_t birth = r->t->base->root.gen + 1, index = 0, used = 0; /* `used` of runs[k] */
    size_t k = 0;
    int rc = 0;
    for (size_t i = 0; i < r->work.n && rc == 0; i++)
        for (uint64_t at = r->work.v[i].lo; at < r->work.v[i].hi && rc == 0;) {
            uint64_t n = pgs__min_u64(r->work.v[i].hi - at, r->runs[k].n_pages - used), done = 0;
            struct pgs_run run = {{r->runs[k].page.n + used}, n};
            uint64_t *xxh = r->page_xxh ? r->page_xxh + index : NULL;
            rc = write_piece(r, at, at + n, run, xxh, &done);
            run.n_pages = done;
            if (rc == 0) rc = pgs__content_set(e, (struct pgs_lpno){at}, run, birth, xxh, r->err);
            at += done;
            index += done;
            used += done;
            if (used == r->runs[k].n_pages) used = 0, k++;
        }
    return rc;
}

static int make_pages(struct rebase *r, struct pgs__prep *prep)
{
    bool checksums;
    int rc = pgs__txn_checksums(r->t, &checksums, r->err);
    if (rc) return rc;
    prep->edit = pgs__content_edit_new(r->pf, r->theirs);
    if (checksums && r->n_work) r->page_xxh = pgs__malloc((size_t)r->n_work * sizeof *r->page_xxh);
    if (!prep->edit || (checksums && r->n_work && !r->page_xxh))
        return pgs__fail(r->err, PGS_ENOMEM, "no memory for a page map");
    if (r->n_work) rc = pgs__txn_alloc(r->t, r->l, false, r->n_work, &prep->own, &r->runs, &r->n_runs, r->err);
    if (rc == 0 && r->theirs->n_bytes != r->n_bytes) rc = pgs__content_resize(prep->edit, r->n_bytes, r->err);
    if (rc == 0) rc = write_all(r, prep->edit);
    if (rc == 0) rc = pgs__txn_finish_edit(r->t, r->l, prep->edit, &prep->own, &prep->result, r->err);
    prep->bytes = r->n_work << PGS_PAGE_SHIFT;
    return rc;
}

static int make_inline(struct rebase *r, struct pgs__prep *prep)
{
    uint8_t page[PGS_PAGE_SIZE] = {0};
    int rc = r->n_bytes ? compose_page(r, 0, page) : 0;
    prep->inline_buf = rc ? NULL : pgs__malloc(PGS__INLINE_MAX);
    if (!prep->inline_buf) return rc ? rc : pgs__fail(r->err, PGS_ENOMEM, "no memory for a small array");
    memcpy(prep->inline_buf, page, PGS__INLINE_MAX);
    prep->result =
        (struct pgs__content){.form = PGS__FORM_INLINE, .n_bytes = r->n_bytes, .inline_data = prep->inline_buf};
    return 0;
}

/* --- arrays in reserved pages (t.empty) ------------------------------------------------------------------------------------------------------ */
struct written {
    struct pgs__array *a;
    struct pgs__pagefile *pf;
    struct pgs_error *err;
};

/* Stores that came after the memory was turned private (a commit that could not have the lock, then more writing) are copied to the file. */
static int sync_page(struct written *w, uint64_t page)
{
    const uint8_t *from = (const uint8_t *)w->a->view->mem.addr + (page << PGS_PAGE_SHIFT);
    for (size_t i = 0; i < w->a->n_runs; i++) {
        if (page < w->a->runs[i].n_pages)
            return pgs__pages_write(w->pf, (struct pgs_pgno){w->a->runs[i].page.n + page}, from, 1, w->err);
        page -= w->a->runs[i].n_pages;
    }
    return 0;
}

static int compare_fresh(struct written *w)
{
    uint64_t page = 0;
    int rc = 0;
    for (size_t i = 0; i < w->a->n_runs; i++)
        for (uint64_t k = 0; k < w->a->runs[i].n_pages && rc == 0; k++, page++) {
            const void *in_file = pgs__page(w->pf, (struct pgs_pgno){w->a->runs[i].page.n + k});
            const uint8_t *mine = (const uint8_t *)w->a->view->mem.addr + (page << PGS_PAGE_SHIFT);
            if (!in_file || memcmp(in_file, mine, PGS_PAGE_SIZE)) rc = sync_page(w, page);
        }
    return rc;
}

/* Zero what users wrote past the logical end (HAZARDS 16). */
static int clean_end(struct pgs__pagefile *pf, struct pgs__array *a, struct pgs_error *err)
{
    uint64_t in_last = a->n_bytes & (PGS_PAGE_SIZE - 1);
    if (in_last == 0) return 0;
    struct pgs_run last = a->runs[a->n_runs - 1];
    struct pgs_pgno page = {last.page.n + last.n_pages - 1};
    uint8_t buf[PGS_PAGE_SIZE];
    const void *bytes = pgs__page(pf, page);
    if (!bytes) return pgs__pages_explain(pf, page, 1, "a fresh page", err);
    memcpy(buf, bytes, sizeof buf);
    memset(buf + in_last, 0, sizeof buf - in_last);
    return memcmp(buf, bytes, sizeof buf) ? pgs__pages_write(pf, page, buf, 1, err) : 0;
}

static int copy_reserved(struct pgs_txn *t, struct pgs__array *a, uint64_t *page_xxh, struct pgs_error *err)
{
    uint64_t done = 0;
    int rc = 0;
    for (size_t i = 0; i < a->n_runs && rc == 0; i++) {
        uint64_t n = pgs__min_u64(a->runs[i].n_pages << PGS_PAGE_SHIFT, a->n_bytes - done);
        rc = pgs__fresh_copy(&t->s->pf, a->runs[i], pgs__run_is_whole(a->runs[i]),
                             (const uint8_t *)a->view->mem.addr + done, n,
                             page_xxh ? page_xxh + (done >> PGS_PAGE_SHIFT) : NULL, err);
        done += n;
    }
    return rc;
}

static int hash_fresh(struct pgs_txn *t, const struct pgs__array *a, uint64_t *page_xxh, struct pgs_error *err)
{
    for (size_t i = 0; i < a->n_runs; i++)
        for (uint64_t k = 0; k < a->runs[i].n_pages; k++) {
            struct pgs_pgno page = {a->runs[i].page.n + k};
            const void *bytes = pgs__page(&t->s->pf, page); /* what is in the file, not what the memory shows */
            if (!bytes) return pgs__pages_explain(&t->s->pf, page, 1, "a fresh page", err);
            *page_xxh++ = pgs__hash_page(bytes);
        }
    return 0;
}

static int rebase_fresh(struct pgs_txn *t, struct pgs__array *a, struct pgs_error *err)
{
    struct pgs__prep *prep = &a->prep;
    struct written w = {a, &t->s->pf, err};
    bool checksums;
    uint64_t *page_xxh = NULL;
    int rc = pgs__txn_checksums(t, &checksums, err);
    if (rc == 0 && checksums) {
        page_xxh = pgs__malloc((size_t)pgs__pages_of(a->n_bytes) * sizeof *page_xxh);
        if (!page_xxh) rc = pgs__fail(err, PGS_ENOMEM, "no memory for the checksums of an array");
    }
    if (rc == 0 && a->fresh) {
        /* Private first: from here on no thread's store reaches the file (HAZARDS 7). */
        if (!a->detached && !PGS_PLANTED(12))
            rc = pgs__mem_detach(&t->s->pf, &a->view->mem, err);
        else if (a->detached)
            rc = compare_fresh(&w);
        a->detached = a->detached || rc == 0;
        if (rc == 0) rc = clean_end(&t->s->pf, a, err);
        if (rc == 0 && page_xxh) rc = hash_fresh(t, a, page_xxh, err);
    } else if (rc == 0) {
        rc = copy_reserved(t, a, page_xxh, err);
        prep->bytes = a->n_bytes;
    }
    if (rc == 0) /* birth: the base's, so that the base's pin keeps them for the view (txn.h I3) */
        rc = pgs__txn_content_of(t, a->runs, a->n_runs, a->n_bytes, t->base->root.gen, page_xxh, &prep->own,
                                 &prep->result, err);
    pgs__free(page_xxh);
    return rc;
}

/* --- the whole ------------------------------------------------------------------------------------------------------------------------------ */
static uint64_t meeting_bytes(const struct rebase *r)
{
    uint64_t n = 0;
    for (size_t i = 0, j = 0; i < r->a->dirty.n && j < r->their_pages.n;) {
        const struct pgs_range *x = &r->a->dirty.v[i], *y = &r->their_pages.v[j];
        uint64_t lo = pgs__max_u64(x->lo, y->lo), hi = pgs__min_u64(x->hi, y->hi);
        if (lo < hi) n += hi - lo;
        if (x->hi < y->hi)
            i++;
        else
            j++;
    }
    return n << PGS_PAGE_SHIFT;
}

static int check_meeting(struct rebase *r, const uint64_t *cost, struct pgs__range_list *cells)
{
    const struct pgs__content *base = &r->a->o.content;
    if (r->a->resized || r->same_bytes || pgs__same_content(base, r->theirs)) return 0;
    int rc = pgs__merge_their_pages(r->pf, base, r->theirs, &r->their_pages, r->err);
    if (rc) return rc;
    if (cost && meeting_bytes(r) + r->rows_bytes > *cost) return -PGS_ELOCKED;
    struct pgs__merge m = {.pf = r->pf,
                           .base = base,
                           .theirs = r->theirs,
                           .ours = r->ours,
                           .n_bytes = pgs__min_u64(base->n_bytes, r->theirs->n_bytes),
                           .itemsize = r->a->o.itemsize,
                           .our_pages = &r->a->dirty,
                           .their_pages = &r->their_pages};
    return r->ours && !PGS_PLANTED(10) ? pgs__merge_check(&m, cells, r->err) : 0;
}

static void describe(struct rebase *r)
{
    struct pgs__array *a = r->a;
    r->ours = a->view ? a->view->mem.addr : NULL;
    if (a->resized) {
        r->ours_bytes = r->n_bytes = a->n_bytes;
        return;
    }
    r->ours_bytes = a->base_bytes;
    r->rows_bytes = a->n_bytes - a->base_bytes;
    r->rows = a->view ? r->ours + a->base_bytes : a->tail;
    r->rows_at = r->theirs->n_bytes;
    r->n_bytes = r->rows_at + r->rows_bytes;
}

int pgs__rebase(struct pgs_txn *t, struct pgs__ledger *l, struct pgs__op *op, const struct pgs__object *theirs,
                const uint64_t *cost, struct pgs__range_list *cells, struct pgs_error *err)
{
    struct pgs__pend *p = op->now;
    struct pgs__array *a = p->a;
    struct pgs__prep *prep = &a->prep;
    struct rebase r = {.t = t, .l = l, .pf = &t->s->pf, .op = op, .a = a, .theirs = &theirs->content, .err = err};
    int rc;
    pgs__prep_discard(t, prep);
    prep->upon = theirs->content;
    prep->upon_version = theirs->version;
    if (a->n_runs) {
        rc = rebase_fresh(t, a, err);
    } else {
        describe(&r);
        r.same_bytes = pgs__object_same_revision(&a->o, theirs) && theirs->id && theirs->id != PGS__ID_PENDING &&
                       theirs->version != PGS__ID_PENDING;
        rc = check_meeting(&r, cost, cells);
        if (rc == 0 && cells->n) goto out;
        bool small = r.n_bytes <= pgs__object_inline_room(op->len, a->o.ndim, a->o.dtype_len);
        bool nothing_to_kill = theirs->content.form == PGS__FORM_INLINE ||
                               (!p->home && theirs->content.map.page == 0 && theirs->content.form == PGS__FORM_MAP);
        if (rc == 0 && small && nothing_to_kill)
            rc = make_inline(&r, prep);
        else if (rc == 0)
            rc = plan(&r);
        if (rc == 0 && !(small && nothing_to_kill)) rc = make_pages(&r, prep);
    }
    if (rc == 0)
        prep->done = true;
    else
        pgs__prep_discard(t, prep);
out:
    pgs__ranges_free(&r.their_pages);
    pgs__ranges_free(&r.work);
    pgs__cold_cache_free(&r.base_cache);
    pgs__cold_cache_free(&r.their_cache);
    pgs__free(r.page_xxh);
    pgs__free(r.runs);
    return rc;
}
