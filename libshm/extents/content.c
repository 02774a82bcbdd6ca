/* Pagestone | extents/content — reading contents: runs, bytes, verification.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Everything here reads committed maps without a lock; the caller holds a pin. Entries are input from the file: each is validated when it
 * is decoded (I4 of content.h), and again at each visit, because a page table of what was checked would cost more than the check.
 *
 * Work is proportional to the runs that are visited, never to the pages of a hole: an all-hole content of 1 TB has no runs.
 */
#include "libshm/extents/content.h"

#include "libshm/extents/content_map.h"
#include "libshm/platform/hash.h"

static const uint8_t zero_page[PGS_PAGE_SIZE];

/* --- entries ------------------------------------------------------------------------------------------------------------ */
int pgs__map_letter(struct pgs_span key, struct pgs_error *err)
{
    const uint8_t *k = key.p;
    if (key.len != PGS__MAP_KEY_LEN || (k[0] != 'E' && k[0] != 'C'))
        return pgs__fail_corrupt(err, "", "a map has a key that is neither a run nor a checksum");
    return k[0];
}

static bool run_in_file(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages)
{
    if (page == PGS__SUPER_PAGE_0 || n_pages == 0 || n_pages > PGS__CONTENT_MAX_PAGES) return false;
    if (page > UINT64_MAX - n_pages) return false;
    if (pgs__is_cold(page)) return page + n_pages <= PGS__COLD_END;
    if (page <= PGS__SUPER_PAGE_1 && page + n_pages > PGS__SUPER_PAGE_1) return false;
    return pgs__pagefile_holds(pf, page, n_pages);
}

const void *pgs__content_page(struct pgs__pagefile *pf, uint64_t page, int *rc, struct pgs_error *err)
{
    const void *p = pgs__page(pf, (struct pgs_pgno){page});
    if (!p && pgs__pagefile_holds(pf, page, 1))
        *rc = pgs__fail(err, PGS_ENOMEM, "no address space to read page %llu of the store", (unsigned long long)page);
    else if (!p)
        *rc = pgs__fail_corrupt(err, "", "page %llu is beyond the end of the file", (unsigned long long)page);
    return p;
}

const void *pgs__content_page_via(struct pgs__pagefile *pf, struct pgs__cold_cache *cache, uint64_t page, int *rc,
                                  struct pgs_error *err)
{
    return pgs__is_cold(page) ? pgs__cold_page(pf, cache, page, rc, err) : pgs__content_page(pf, page, rc, err);
}

int pgs__map_decode_run(struct pgs__pagefile *pf, struct pgs_span key, struct pgs_span val, struct pgs__placed_run *out,
                        struct pgs_error *err)
{
    struct pgs__map_run r;
    uint64_t at = pgs__get_be64((const uint8_t *)key.p + 1);
    if (val.len != sizeof r)
        return pgs__fail_corrupt(err, "", "the run at page %llu has a wrong size", (unsigned long long)at);
    memcpy(&r, val.p, sizeof r);
    if (at >= PGS__CONTENT_MAX_PAGES || r.n_pages > PGS__CONTENT_MAX_PAGES - at || !run_in_file(pf, r.page, r.n_pages))
        return pgs__fail_corrupt(err, "", "the run at page %llu points outside the file", (unsigned long long)at);
    *out = (struct pgs__placed_run){.at = at, .page = r.page, .n_pages = r.n_pages, .birth = r.birth};
    return 0;
}

int pgs__content_check_extent(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs_error *err)
{
    if (c->n_bytes > PGS__CONTENT_MAX_BYTES || pgs__is_cold(c->page.n) ||
        !run_in_file(pf, c->page.n, pgs__pages_of(c->n_bytes)))
        return pgs__fail_corrupt(err, "", "an extent points outside the file");
    return 0;
}

/* --- walking runs --------------------------------------------------------------------------------------------------------- */
/* Take the entry under the cursor. -PGS_ENOENT: it is no run. */
static int walk_take(struct pgs__run_walk *w, struct pgs_error *err)
{
    struct pgs_span key, val;
    pgs__cursor_entry(&w->cursor, &key, &val);
    int rc = pgs__map_letter(key, err);
    if (rc < 0) return rc;
    if (rc != 'E') return -PGS_ENOENT;
    struct pgs__placed_run run;
    rc = pgs__map_decode_run(w->pf, key, val, &run, err);
    if (rc) return rc;
    if (run.at < w->end) return pgs__fail_corrupt(err, "", "two runs overlap at page %llu", (unsigned long long)run.at);
    if (run.at + run.n_pages > pgs__pages_of(w->c->n_bytes))
        return pgs__fail_corrupt(err, "", "the run at page %llu reaches beyond the object", (unsigned long long)run.at);
    w->run = run;
    w->end = run.at + run.n_pages;
    return 0;
}

static int walk_seek_map(struct pgs__run_walk *w, uint64_t lo, struct pgs_error *err)
{
    struct pgs__tree t = pgs__map_tree(w->pf, w->c);
    uint8_t key[PGS__MAP_KEY_LEN];
    pgs__map_key(key, 'E', lo);
    int rc = pgs__cursor_seek(&w->cursor, &t, PGS__SEEK_LE, key, sizeof key, err);
    if (rc == 0) {
        rc = walk_take(w, err);
        if (rc == 0 && w->end <= lo) rc = pgs__run_walk_next(w, err);
        if (rc != -PGS_ENOENT || w->end) return rc;
    }
    if (rc != -PGS_ENOENT) return rc;
    /* Nothing at or before lo but perhaps checksums, which sort before runs. */
    rc = pgs__cursor_seek(&w->cursor, &t, PGS__SEEK_GE, key, sizeof key, err);
    return rc ? rc : walk_take(w, err);
}

int pgs__run_walk_seek(struct pgs__run_walk *w, struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t lo,
                       struct pgs_error *err)
{
    *w = (struct pgs__run_walk){.pf = pf, .c = c};
    uint64_t n_pages = pgs__pages_of(c->n_bytes);
    if (lo >= n_pages) return -PGS_ENOENT;
    switch (c->form) {
    case PGS__FORM_EXTENT: {
        int rc = pgs__content_check_extent(pf, c, err);
        if (rc) return rc;
        w->run = (struct pgs__placed_run){.at = 0, .page = c->page.n, .n_pages = n_pages, .birth = c->birth};
        w->end = n_pages;
        return 0;
    }
    case PGS__FORM_MAP:
        return c->map.page ? walk_seek_map(w, lo, err) : -PGS_ENOENT;
    case PGS__FORM_INLINE:
        break;
    }
    return -PGS_ENOENT;
}

int pgs__run_walk_next(struct pgs__run_walk *w, struct pgs_error *err)
{
    if (w->c->form != PGS__FORM_MAP) return -PGS_ENOENT;
    int rc = pgs__cursor_next(&w->cursor, err);
    return rc ? rc : walk_take(w, err);
}

int pgs__content_runs(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t lo, uint64_t hi, pgs__run_fn fn,
                      void *ctx, struct pgs_error *err)
{
    struct pgs__run_walk w;
    hi = pgs__min_u64(hi, pgs__pages_of(c->n_bytes));
    if (lo >= hi) return 0;
    int rc = pgs__run_walk_seek(&w, pf, c, lo, err);
    for (; rc == 0 && w.run.at < hi; rc = pgs__run_walk_next(&w, err)) {
        uint64_t from = pgs__max_u64(w.run.at, lo), to = pgs__min_u64(w.run.at + w.run.n_pages, hi);
        struct pgs_run run = {.page = {w.run.page + (from - w.run.at)}, .n_pages = to - from};
        int stop = fn(ctx, (struct pgs_lpno){from}, run, w.run.birth);
        if (stop) return stop;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

int pgs__content_nodes(struct pgs__pagefile *pf, const struct pgs__content *c, pgs__node_fn fn, void *ctx,
                       struct pgs_error *err)
{
    if (c->form == PGS__FORM_INLINE || c->map.page == 0) return 0;
    struct pgs__tree t = pgs__map_tree(pf, c);
    return pgs__tree_walk(&t, fn, NULL, ctx, err);
}

/* --- bytes ------------------------------------------------------------------------------------------------------------------ */
/* Feed bytes [lo, hi) of the content to `sink`, in order and piece by piece: holes as zeros. */
typedef void (*sink_fn)(void *ctx, const void *p, size_t n);
struct feed {
    struct pgs__pagefile *pf;
    uint64_t pos, hi; /* next byte to feed; end */
    sink_fn sink;
    void *ctx;
    uint8_t **copy_to; /* the sink copies to there; NULL: it does something else */
    struct pgs__cold_cache *cache;
    struct pgs_error *err;
};

static void feed_zeros(struct feed *f, uint64_t to)
{
    while (f->pos < to) {
        uint64_t n = pgs__min_u64(to - f->pos, sizeof zero_page);
        f->sink(f->ctx, zero_page, n);
        f->pos += n;
    }
}

/* Up to byte `end` of a run of the image that begins at byte `first`, block by block. */
static int feed_cold(struct feed *f, struct pgs_run run, uint64_t first, uint64_t end)
{
    while (f->pos < end) {
        uint64_t page = run.page.n + ((f->pos - first) >> PGS_PAGE_SHIFT), skip = f->pos & (PGS_PAGE_SIZE - 1);
        uint64_t left = pgs__cold_page_of(pgs__cold_slot(page) + 1) - page;
        uint64_t n = pgs__min_u64((left << PGS_PAGE_SHIFT) - skip, end - f->pos);
        const struct pgs__cold_cache *k = f->cache;
        int rc = 0;
        if (f->copy_to && n == PGS__COLD_BYTES && k->slot != pgs__cold_slot(page) + 1) { /* to where it shall be */
            rc = k->ops ? k->ops->read(k->ctx, page, left, *f->copy_to, f->err)
                        : pgs__cold_read(f->pf, page, left, *f->copy_to, f->err);
            if (rc) return rc;
            *f->copy_to += n;
        } else {
            const uint8_t *p = pgs__cold_page(f->pf, f->cache, page, &rc, f->err);
            if (!p) return rc;
            f->sink(f->ctx, p + skip, n);
        }
        f->pos += n;
    }
    return 0;
}

static int feed_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct feed *f = ctx;
    (void)birth;
    uint64_t first = at.n << PGS_PAGE_SHIFT, end = pgs__min_u64((at.n + run.n_pages) << PGS_PAGE_SHIFT, f->hi);
    feed_zeros(f, pgs__min_u64(first, f->hi));
    if (pgs__is_cold(run.page.n)) return feed_cold(f, run, first, end);
    const uint8_t *whole = pgs__pages_at(f->pf, run.page, run.n_pages); /* NULL: page by page, across segments */
    for (int rc = 0; f->pos < end;) {
        uint64_t page = (f->pos - first) >> PGS_PAGE_SHIFT, skip = f->pos & (PGS_PAGE_SIZE - 1);
        const uint8_t *p =
            whole ? whole + (page << PGS_PAGE_SHIFT) : pgs__content_page(f->pf, run.page.n + page, &rc, f->err);
        if (!p) return rc;
        uint64_t n_pages = whole ? run.n_pages - page : 1;
        uint64_t n = pgs__min_u64((n_pages << PGS_PAGE_SHIFT) - skip, end - f->pos);
        f->sink(f->ctx, p + skip, n);
        f->pos += n;
    }
    return 0;
}

static void sink_copy(void *ctx, const void *p, size_t n)
{
    uint8_t **to = ctx;
    memcpy(*to, p, n);
    *to += n;
}

static int feed(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__cold_cache *cache, uint64_t lo,
                uint64_t hi, sink_fn sink, void *ctx, struct pgs_error *err)
{
    struct feed f = {.pf = pf, .pos = lo, .hi = hi, .sink = sink, .ctx = ctx, .cache = cache, .err = err};
    if (sink == sink_copy) f.copy_to = ctx;
    if (c->form == PGS__FORM_INLINE && lo < c->n_bytes) {
        f.pos = pgs__min_u64(hi, c->n_bytes);
        sink(ctx, (const uint8_t *)c->inline_data + lo, f.pos - lo);
    } else {
        int rc = pgs__content_runs(pf, c, lo >> PGS_PAGE_SHIFT, pgs__pages_of(hi), feed_run, &f, err);
        if (rc) return rc;
    }
    feed_zeros(&f, hi);
    return 0;
}

int pgs__content_read_via(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__cold_cache *cache,
                          uint64_t off, void *buf, uint64_t len, struct pgs_error *err)
{
    uint64_t size = pgs__pages_of(c->n_bytes) << PGS_PAGE_SHIFT;
    if (off > size || len > size - off)
        return pgs__fail(err, PGS_EINVAL, "bytes %llu to %llu are outside an object of %llu bytes",
                         (unsigned long long)off, (unsigned long long)(off + len), (unsigned long long)c->n_bytes);
    if (len == 0) return 0;
    uint8_t *to = buf;
    return feed(pf, c, cache, off, off + len, sink_copy, &to, err);
}

int pgs__content_read(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t off, void *buf, uint64_t len,
                      struct pgs_error *err)
{
    struct pgs__cold_cache cache = {0};
    int rc = pgs__content_read_via(pf, c, &cache, off, buf, len, err);
    pgs__cold_cache_free(&cache);
    return rc;
}

/* --- verification ------------------------------------------------------------------------------------------------------------- */
static void sink_hash(void *ctx, const void *p, size_t n)
{
    pgs__hasher_update(ctx, p, n);
}

int pgs__content_verify_stream(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs_error *err)
{
    struct pgs__cold_cache cache = {0};
    int rc = pgs__content_verify_stream_via(pf, c, &cache, err);
    pgs__cold_cache_free(&cache);
    return rc;
}

int pgs__content_verify_stream_via(struct pgs__pagefile *pf, const struct pgs__content *c,
                                   struct pgs__cold_cache *cache, struct pgs_error *err)
{
    uint64_t xxh;
    const void *whole = NULL;
    if (c->xxh_bytes == 0 || c->form == PGS__FORM_INLINE) return 0; /* the leaf that holds inline bytes was verified */
    if (c->form == PGS__FORM_EXTENT) {
        int rc = pgs__content_check_extent(pf, c, err);
        if (rc) return rc;
        whole = pgs__pages_at(pf, c->page, pgs__pages_of(c->xxh_bytes));
    }
    if (whole) {
        xxh = pgs__hash(whole, c->xxh_bytes);
    } else {
        struct pgs__hasher *h = pgs__hasher_new();
        if (!h) return pgs__fail(err, PGS_ENOMEM, "out of memory");
        int rc = feed(pf, c, cache, 0, c->xxh_bytes, sink_hash, h, err);
        xxh = pgs__hasher_digest(h);
        pgs__hasher_free(h);
        if (rc) return rc;
    }
    if (xxh != c->xxh) return pgs__fail_corrupt(err, "", "the bytes do not match their checksum");
    return 0;
}

struct page_check {
    struct pgs__pagefile *pf;
    struct pgs__tree map;
    uint64_t group; /* whose checksums are loaded; UINT64_MAX: none yet */
    uint64_t xxh[PGS__CSUM_GROUP];
    uint64_t stream_pages; /* of the front: covered by the stream's checksum */
    uint64_t n_unverified;
    struct pgs__cold_cache *cache;
    struct pgs_error *err;
};

static int page_check_load(struct page_check *k, uint64_t group)
{
    uint8_t key[PGS__MAP_KEY_LEN];
    struct pgs_span val;
    pgs__map_key(key, 'C', group);
    int rc = k->map.root.page ? pgs__tree_get(&k->map, key, sizeof key, &val, k->err) : -PGS_ENOENT;
    k->group = group;
    memset(k->xxh, 0, sizeof k->xxh);
    if (rc == -PGS_ENOENT) return 0;
    if (rc) return rc;
    if (val.len != sizeof k->xxh) return pgs__fail_corrupt(k->err, "", "a group of checksums has a wrong size");
    memcpy(k->xxh, val.p, sizeof k->xxh);
    return 0;
}

/* The block's checksum is checked when it is brought. */
static int page_check_cold(struct page_check *k, uint64_t page, uint64_t n_pages)
{
    int rc = 0;
    for (uint64_t end = page + n_pages; page < end && rc == 0;) {
        (void)pgs__cold_page(k->pf, k->cache, page, &rc, k->err);
        page = pgs__cold_page_of(pgs__cold_slot(page) + 1);
    }
    return rc;
}

static int page_check_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct page_check *k = ctx;
    (void)birth;
    if (pgs__is_cold(run.page.n)) return page_check_cold(k, run.page.n, run.n_pages);
    for (uint64_t i = at.n < k->stream_pages ? pgs__min_u64(k->stream_pages - at.n, run.n_pages) : 0; i < run.n_pages;
         i++) {
        uint64_t lpno = at.n + i;
        if (k->map.root.page == 0) {
            k->n_unverified += run.n_pages - i;
            return 0;
        }
        if (lpno / PGS__CSUM_GROUP != k->group) {
            int rc = page_check_load(k, lpno / PGS__CSUM_GROUP);
            if (rc) return rc;
        }
        uint64_t want = k->xxh[lpno % PGS__CSUM_GROUP];
        if (want == 0) {
            k->n_unverified++;
            continue;
        }
        int rc = 0;
        const void *p = pgs__content_page(k->pf, run.page.n + i, &rc, k->err);
        if (!p) return rc;
        if (pgs__hash_page(p) != want)
            return pgs__fail_corrupt(k->err, "", "page %llu of its bytes does not match its checksum",
                                     (unsigned long long)lpno);
    }
    return 0;
}

int pgs__content_verify_pages(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t lo, uint64_t hi,
                              struct pgs__cold_cache *cache, uint64_t *n_unverified, struct pgs_error *err)
{
    struct page_check k = {.pf = pf, .map = pgs__map_tree(pf, c), .group = UINT64_MAX, .cache = cache, .err = err};
    k.stream_pages = c->xxh_bytes >> PGS_PAGE_SHIFT; /* its last page may hold bytes behind it */
    *n_unverified = 0;
    int rc = pgs__content_runs(pf, c, lo, hi, page_check_run, &k, err);
    if (rc == 0) *n_unverified = k.n_unverified;
    return rc;
}

int pgs__content_verify_via(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__cold_cache *cache,
                            uint64_t *n_unverified, struct pgs_error *err)
{
    *n_unverified = 0;
    int rc = pgs__content_verify_stream_via(pf, c, cache, err);
    if (rc || c->form == PGS__FORM_INLINE || c->xxh_bytes == c->n_bytes) return rc;
    return pgs__content_verify_pages(pf, c, 0, UINT64_MAX, cache, n_unverified, err);
}

int pgs__content_verify(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t *n_unverified,
                        struct pgs_error *err)
{
    struct pgs__cold_cache cache = {0};
    int rc = pgs__content_verify_via(pf, c, &cache, n_unverified, err);
    pgs__cold_cache_free(&cache);
    return rc;
}
