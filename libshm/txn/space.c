/* Pagestone | txn/space — free space: taking and giving runs of pages.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Free space below the high-water mark is kept in three lists, keyed by the end of each run, so that one seek finds the run that contains or follows a page:
 *
 *   'W'  runs of whole free chunks, in chunks; always joined with their neighbours
 *   'N'  runs inside chunks whose first tenant was a node; never across a chunk's border
 *   'D'  the same where it was data
 *
 *   I1  All free runs of one chunk have one letter (I7 of ledger.h). So a chunk becomes whole exactly when joining its runs gives 512 pages. The letter is lost while a chunk is full; the first page that comes back sets it anew.
 *   I2  The superblocks (pages 0 and 512) are in no list: chunks 0 and 1 are never whole.
 *   I3  pages_free in the record is the sum of the lists.
 *
 * Nodes and data live in different chunks because scattered nodes would keep every chunk from becoming whole, and only whole chunks can be given back to the file system (HAZARDS 28).
 */
#include "libshm/txn/ledger_impl.h"

static int not_free(uint64_t page, uint64_t n, struct pgs_error *err)
{
    return pgs__fail(err, PGS_EBUG, "pages %llu + %llu are not free", (unsigned long long)page, (unsigned long long)n);
}

static int is_free_already(uint64_t page, uint64_t n, struct pgs_error *err)
{
    return pgs__fail(err, PGS_EBUG, "pages %llu + %llu are free already", (unsigned long long)page,
                     (unsigned long long)n);
}

/* The run under `letter` at the cursor: [*lo, *hi) in the letter's unit. */
static int run_at(struct pgs__ledger *l, const struct pgs__meta_cursor *c, uint64_t *lo, uint64_t *hi,
                  struct pgs_error *err)
{
    uint64_t n;
    int rc = pgs__lkey(c, 1, hi, err);
    if (!rc) rc = pgs__lval_u64(c, &n, err);
    if (rc) return rc;
    bool whole = *(const char *)c->key.p == 'W';
    uint64_t unit = whole ? PGS_CHUNK_PAGES : 1;
    bool crosses = !whole && n > 0 && n <= *hi && (*hi - n) / PGS_CHUNK_PAGES != (*hi - 1) / PGS_CHUNK_PAGES;
    if (n == 0 || n > *hi || *hi > l->meta.hdr.hw_pages / unit || crosses)
        return pgs__fail_corrupt(err, "the ledger", "a free run of %llu ends at %llu", (unsigned long long)n,
                                 (unsigned long long)*hi);
    *lo = *hi - n;
    return 0;
}

static int run_put(struct pgs__ledger *l, char letter, uint64_t lo, uint64_t hi, bool fresh, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    return pgs__lput_u64(l, key, pgs__meta_key1(key, letter, hi), hi - lo, fresh, err);
}

static int run_del(struct pgs__ledger *l, char letter, uint64_t hi, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    return pgs__ldel(l, key, pgs__meta_key1(key, letter, hi), err);
}

/* The first run whose end is ≥ `from`. */
static int run_seek(struct pgs__ledger *l, struct pgs__meta_cursor *c, char letter, uint64_t from, uint64_t *lo,
                    uint64_t *hi, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    int rc = pgs__lseek(l, c, PGS__SEEK_GE, key, pgs__meta_key1(key, letter, from), err);
    return rc ? rc : run_at(l, c, lo, hi, err);
}

/* --- taking ------------------------------------------------------------------------------------------------------------------ */
/* Cut [lo, hi) out of the run [a, b), which is there. */
static int cut_out(struct pgs__ledger *l, char letter, uint64_t a, uint64_t b, uint64_t lo, uint64_t hi,
                   struct pgs_error *err)
{
    int rc = b > hi ? run_put(l, letter, hi, b, false, err) : run_del(l, letter, b, err);
    return !rc && a < lo ? run_put(l, letter, a, lo, true, err) : rc;
}

/* Cut [lo, hi) out of the run that contains it; -PGS_ENOENT: none does. */
static int cut(struct pgs__ledger *l, char letter, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct pgs__meta_cursor c;
    uint64_t a, b;
    int rc = run_seek(l, &c, letter, hi, &a, &b, err);
    if (rc) return rc;
    return a > lo ? -PGS_ENOENT : cut_out(l, letter, a, b, lo, hi, err);
}

/* n pages within one chunk. A whole chunk that loses some becomes one of its first tenant's kind. */
static int take_part(struct pgs__ledger *l, uint64_t page, uint64_t n, bool is_node, struct pgs_error *err)
{
    uint64_t chunk = page / PGS_CHUNK_PAGES, first = chunk * PGS_CHUNK_PAGES, last = first + PGS_CHUNK_PAGES;
    char letter = is_node ? 'N' : 'D';
    int rc = cut(l, letter, page, page + n, err);
    if (rc == -PGS_ENOENT) rc = cut(l, is_node ? 'D' : 'N', page, page + n, err);
    if (rc != -PGS_ENOENT) return rc;
    rc = cut(l, 'W', chunk, chunk + 1, err);
    if (rc == -PGS_ENOENT) return not_free(page, n, err);
    if (!rc && page > first) rc = run_put(l, letter, first, page, true, err);
    if (!rc && page + n < last) rc = run_put(l, letter, page + n, last, true, err);
    return rc;
}

static int whole_join(struct pgs__ledger *l, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct pgs__meta_cursor c;
    uint64_t a = 0, b = 0, end = hi;
    int rc = run_seek(l, &c, 'W', lo, &a, &b, err);
    if (rc == 0 && b == lo) { /* the run before */
        uint64_t a2 = 0, b2 = 0;
        rc = pgs__lnext(l, &c, 'W', err);
        if (!rc) rc = run_at(l, &c, &a2, &b2, err);
        if (rc && rc != -PGS_ENOENT) return rc;
        int rc2 = run_del(l, 'W', b, err);
        if (rc2) return rc2;
        lo = a;
        a = a2;
        b = b2;
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    if (rc == 0 && a < end) return is_free_already(lo * PGS_CHUNK_PAGES, (end - lo) * PGS_CHUNK_PAGES, err);
    bool joins = rc == 0 && a == end;
    return run_put(l, 'W', lo, joins ? b : end, !joins, err);
}

/* Let the file's used part reach `end` pages; what is new is free. */
static int raise_hw(struct pgs__ledger *l, uint64_t end, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    uint64_t old = h->hw_pages / PGS_CHUNK_PAGES, now = (end + PGS_CHUNK_PAGES - 1) / PGS_CHUNK_PAGES;
    h->hw_pages = now * PGS_CHUNK_PAGES;
    h->pages_free += (now - old) * PGS_CHUNK_PAGES;
    return whole_join(l, old, now, err);
}

int pgs__ledger_take(struct pgs__ledger *l, struct pgs_run run, bool is_node, struct pgs_error *err)
{
    uint64_t page = run.page.n, n = run.n_pages;
    if (!l->gen || n == 0 || page >> 50 || n >> 50) return not_free(page, n, err);
    int rc = page + n > l->meta.hdr.hw_pages ? raise_hw(l, page + n, err) : 0;
    while (n > 0 && !rc) {
        uint64_t part = pgs__min_u64(n, PGS_CHUNK_PAGES - page % PGS_CHUNK_PAGES);
        if (part == PGS_CHUNK_PAGES) {
            uint64_t chunk = page / PGS_CHUNK_PAGES;
            part = n - n % PGS_CHUNK_PAGES;
            rc = cut(l, 'W', chunk, chunk + part / PGS_CHUNK_PAGES, err);
            if (rc == -PGS_ENOENT) return not_free(page, part, err);
        } else {
            rc = take_part(l, page, part, is_node, err);
        }
        if (!rc) rc = pgs__lcounter_sub(&l->meta.hdr.pages_free, part, "free pages", err);
        page += part;
        n -= part;
    }
    return rc;
}

int pgs__lspace_take(struct pgs__ledger *l, char letter, struct pgs_run from, struct pgs_run run, struct pgs_error *err)
{
    uint64_t a = from.page.n, lo = run.page.n;
    int rc = cut_out(l, letter, a, a + from.n_pages, lo, lo + run.n_pages, err);
    return rc ? rc : pgs__lcounter_sub(&l->meta.hdr.pages_free, run.n_pages, "free pages", err);
}

/* --- giving ------------------------------------------------------------------------------------------------------------------ */
struct around {          /* what lies about a run that is given back, under one letter */
    bool any;            /* the chunk has free runs of this letter */
    bool before, behind; /* one ends where the run begins; one begins where it ends */
    uint64_t lo, hi;     /* of the run with those joined */
};

/* Look at the runs of one chunk from the one that ends at `page` on; where there is none, also at the one before. */
static int look_around(struct pgs__ledger *l, char letter, uint64_t page, uint64_t n, struct around *r,
                       struct pgs_error *err)
{
    uint64_t first = page / PGS_CHUNK_PAGES * PGS_CHUNK_PAGES, last = first + PGS_CHUNK_PAGES, a, b;
    struct pgs__meta_cursor c;
    *r = (struct around){.lo = page, .hi = page + n};
    int rc = run_seek(l, &c, letter, pgs__max_u64(page, first + 1), &a, &b, err);
    if (rc == 0 && b == page) {
        r->any = r->before = true;
        r->lo = a;
        rc = pgs__lnext(l, &c, letter, err);
        if (!rc) rc = run_at(l, &c, &a, &b, err);
    }
    if (rc == 0 && b <= last) {
        if (a < page + n) return is_free_already(page, n, err);
        r->any = true;
        r->behind = a == page + n;
        if (r->behind) r->hi = b;
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    if (r->any) return 0;
    uint8_t key[KEY_MAX];
    rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key1(key, letter, pgs__max_u64(page, first + 1)), err);
    if (!rc) rc = run_at(l, &c, &a, &b, err);
    r->any = rc == 0 && b > first;
    return rc == -PGS_ENOENT ? 0 : rc;
}

static int give_part(struct pgs__ledger *l, uint64_t page, uint64_t n, bool is_node, struct pgs_error *err)
{
    char letter = is_node ? 'N' : 'D', other = is_node ? 'D' : 'N';
    struct around r, o;
    int rc = look_around(l, letter, page, n, &r, err);
    if (!rc && !r.any) { /* nothing of our kind: of the other one? */
        rc = look_around(l, other, page, n, &o, err);
        if (!rc && o.any) {
            r = o;
            letter = other;
        }
    }
    if (rc) return rc;
    if (r.before) rc = run_del(l, letter, page, err);
    if (rc || r.hi - r.lo < PGS_CHUNK_PAGES) return rc ? rc : run_put(l, letter, r.lo, r.hi, !r.behind, err);
    if (r.behind) rc = run_del(l, letter, r.hi, err);
    return rc ? rc : whole_join(l, r.lo / PGS_CHUNK_PAGES, r.lo / PGS_CHUNK_PAGES + 1, err);
}

int pgs__ledger_give(struct pgs__ledger *l, struct pgs_run run, bool is_node, struct pgs_error *err)
{
    uint64_t page = run.page.n, n = run.n_pages, hw = l->meta.hdr.hw_pages;
    if (!l->gen || n == 0 || n > hw || page > hw - n || page == PGS__SUPER_PAGE_0 ||
        (page <= PGS__SUPER_PAGE_1 && page + n > PGS__SUPER_PAGE_1))
        return pgs__fail(err, PGS_EBUG, "pages %llu + %llu cannot become free", (unsigned long long)page,
                         (unsigned long long)n);
    int rc = 0;
    while (n > 0 && !rc) {
        uint64_t part = pgs__min_u64(n, PGS_CHUNK_PAGES - page % PGS_CHUNK_PAGES);
        if (part == PGS_CHUNK_PAGES) {
            uint64_t chunk = page / PGS_CHUNK_PAGES;
            part = n - n % PGS_CHUNK_PAGES;
            rc = whole_join(l, chunk, chunk + part / PGS_CHUNK_PAGES, err);
        } else {
            rc = give_part(l, page, part, is_node, err);
        }
        if (!rc) l->meta.hdr.pages_free += part;
        page += part;
        n -= part;
    }
    return rc;
}

/* A new file: two chunks, for the two superblocks; the first for nodes, the second for data. */
int pgs__lspace_create(struct pgs__ledger *l, struct pgs_error *err)
{
    l->meta.hdr.hw_pages = 2 * PGS_CHUNK_PAGES;
    l->meta.hdr.pages_free = 2 * PGS_CHUNK_PAGES - 2;
    int rc = run_put(l, 'N', PGS__SUPER_PAGE_0 + 1, PGS_CHUNK_PAGES, true, err);
    return rc ? rc : run_put(l, 'D', PGS__SUPER_PAGE_1 + 1, 2 * PGS_CHUNK_PAGES, true, err);
}
