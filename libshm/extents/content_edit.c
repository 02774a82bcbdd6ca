/* Pagestone | extents/content_edit — a new content from an old one: set runs, punch holes, resize.
 * SPDX-License-Identifier: Apache-2.0
 *
 * All forms are edited as a map. The run of an EXTENT enters the map as its one 'E' entry at the first change; when the result is one run that covers everything
 * it leaves the map again ("settle"), so that only checksums, if any, stay there. INLINE contents have nothing stored: their pages are holes until set.
 *
 *   I1  Runs stay merged: no two neighbours in the map are adjacent logically and physically with the same birth.
 *   I2  n_stored is the sum of all runs. A record that says less than its map holds is damage.
 *   I3  Which pages die is the sum of the notes in `refs` (content_refs.h): every change of the map goes through drop_run and add_run.
 *   I4  After an error the edit only accepts pgs__content_edit_free: a change may have been half made.
 */
#include "libshm/extents/content.h"

#include "libshm/extents/content_map.h"
#include "libshm/extents/content_refs.h"
#include "libshm/platform/mem.h"

struct pgs__content_edit {
    struct pgs__pagefile *pf;
    struct pgs__content base;
    struct pgs__edit *map;
    uint64_t n_bytes, n_stored;
    bool expanded;              /* the base's EXTENT run is (or was) an 'E' entry */
    bool settled;               /* the form is decided; the map is as it will be written */
    struct pgs__map_run extent; /* settled: the run that left the map; n_pages 0: form MAP */
    int failed;                 /* I4 */
    struct pgs__refs refs;
    struct pgs__dead_run *dead;
};

struct pgs__content_edit *pgs__content_edit_new(struct pgs__pagefile *pf, const struct pgs__content *base)
{
    static const struct pgs_ptr none;
    struct pgs__content_edit *e = pgs__calloc(1, sizeof *e);
    if (!e) return NULL;
    e->pf = pf;
    e->base.form = PGS__FORM_MAP;
    if (base) e->base = *base;
    bool inlined = e->base.form == PGS__FORM_INLINE;
    e->n_bytes = e->base.n_bytes;
    e->n_stored = inlined ? 0 : e->base.n_stored;
    e->map = pgs__edit_new(pf, PGS__TREE_MAP, inlined ? &none : &e->base.map);
    if (e->map) return e;
    pgs__free(e);
    return NULL;
}

void pgs__content_edit_free(struct pgs__content_edit *e)
{
    if (!e) return;
    pgs__edit_free(e->map);
    pgs__refs_free(&e->refs);
    pgs__free(e->dead);
    pgs__free(e);
}

static int usable(struct pgs__content_edit *e, struct pgs_error *err)
{
    return e->failed ? pgs__fail(err, -e->failed, "an earlier change of this content failed") : 0;
}

static int remember(struct pgs__content_edit *e, int rc)
{
    if (rc) e->failed = rc;
    return rc;
}

/* --- entries -------------------------------------------------------------------------------------------------------------- */
static struct pgs__tree tree_of(struct pgs__content_edit *e)
{
    return (struct pgs__tree){.pf = e->pf, .kind = PGS__TREE_MAP, .edit = e->map};
}

static int put_run(struct pgs__content_edit *e, const struct pgs__placed_run *r, struct pgs_error *err)
{
    uint8_t key[PGS__MAP_KEY_LEN];
    struct pgs__map_run val = {.page = r->page, .n_pages = r->n_pages, .birth = r->birth};
    pgs__map_key(key, 'E', r->at);
    return pgs__edit_put(e->map, key, sizeof key, &val, sizeof val, err);
}

static int del_run(struct pgs__content_edit *e, uint64_t at, struct pgs_error *err)
{
    uint8_t key[PGS__MAP_KEY_LEN];
    pgs__map_key(key, 'E', at);
    int rc = pgs__edit_del(e->map, key, sizeof key, err);
    return rc == -PGS_ENOENT ? pgs__fail(err, PGS_EBUG, "a run of the map vanished during a change") : rc;
}

/* The run nearest to logical page `at`: GE or LT. 0, -PGS_ENOENT. It does not overlap the next one (checked: a trim would overwrite that). */
static int find_run(struct pgs__content_edit *e, enum pgs__seek how, uint64_t at, struct pgs__placed_run *out,
                    struct pgs_error *err)
{
    struct pgs__tree t = tree_of(e);
    struct pgs__cursor c;
    struct pgs_span key, val;
    struct pgs__placed_run run;
    uint8_t k[PGS__MAP_KEY_LEN];
    pgs__map_key(k, 'E', at);
    int rc = pgs__cursor_seek(&c, &t, how, k, sizeof k, err);
    if (rc) return rc;
    pgs__cursor_entry(&c, &key, &val);
    rc = pgs__map_letter(key, err);
    if (rc != 'E') return rc < 0 ? rc : -PGS_ENOENT;
    rc = pgs__map_decode_run(e->pf, key, val, &run, err);
    if (rc == 0) rc = pgs__cursor_next(&c, err);
    if (rc == 0) {
        pgs__cursor_entry(&c, &key, &val);
        rc = pgs__map_letter(key, err);
        if (rc < 0) return rc;
        if (pgs__get_be64((const uint8_t *)key.p + 1) < run.at + run.n_pages)
            return pgs__fail_corrupt(err, "", "two runs overlap at page %llu", (unsigned long long)run.at);
    } else if (rc != -PGS_ENOENT) {
        return rc;
    }
    *out = run;
    return 0;
}

/* The EXTENT's run becomes an entry; a settled map becomes one that can be changed. */
static int open_map(struct pgs__content_edit *e, struct pgs_error *err)
{
    struct pgs__placed_run run = {0};
    if (e->settled) {
        e->settled = false;
        if (e->extent.n_pages && (e->expanded || e->base.form != PGS__FORM_EXTENT)) {
            run = (struct pgs__placed_run){0, e->extent.page, e->extent.n_pages, e->extent.birth};
            return put_run(e, &run, err);
        }
    }
    if (e->expanded || e->base.form != PGS__FORM_EXTENT) return 0;
    int rc = pgs__content_check_extent(e->pf, &e->base, err);
    if (rc == 0) rc = find_run(e, PGS__SEEK_GE, 0, &run, err);
    if (rc == 0) return pgs__fail_corrupt(err, "", "an extent has runs besides");
    if (rc != -PGS_ENOENT) return rc;
    uint64_t n_pages = pgs__pages_of(e->base.n_bytes);
    if (e->base.n_stored != n_pages) return pgs__fail_corrupt(err, "", "an extent with a wrong number of pages");
    run = (struct pgs__placed_run){0, e->base.page.n, n_pages, e->base.birth};
    e->expanded = true;
    return put_run(e, &run, err);
}

/* --- checksums -------------------------------------------------------------------------------------------------------------- */
static int group_load(struct pgs__content_edit *e, uint64_t group, uint64_t xxh[PGS__CSUM_GROUP], struct pgs_error *err)
{
    struct pgs__tree t = tree_of(e);
    struct pgs_span val;
    uint8_t key[PGS__MAP_KEY_LEN];
    pgs__map_key(key, 'C', group);
    int rc = pgs__tree_get(&t, key, sizeof key, &val, err);
    memset(xxh, 0, PGS__CSUM_BYTES);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    if (val.len != PGS__CSUM_BYTES) return pgs__fail_corrupt(err, "", "a group of checksums has a wrong size");
    memcpy(xxh, val.p, PGS__CSUM_BYTES);
    return 0;
}

/* Groups without any checksum have no entry. */
static int group_store(struct pgs__content_edit *e, uint64_t group, const uint64_t xxh[PGS__CSUM_GROUP],
                       struct pgs_error *err)
{
    uint8_t key[PGS__MAP_KEY_LEN];
    uint64_t any = 0;
    pgs__map_key(key, 'C', group);
    for (unsigned i = 0; i < PGS__CSUM_GROUP; i++) any |= xxh[i];
    if (any) return pgs__edit_put(e->map, key, sizeof key, xxh, PGS__CSUM_BYTES, err);
    int rc = pgs__edit_del(e->map, key, sizeof key, err);
    return rc == -PGS_ENOENT ? 0 : rc;
}

static int csum_set(struct pgs__content_edit *e, uint64_t lo, uint64_t n, const uint64_t *page_xxh,
                    struct pgs_error *err)
{
    for (uint64_t at = lo; at < lo + n;) {
        uint64_t xxh[PGS__CSUM_GROUP], group = at / PGS__CSUM_GROUP;
        int rc = group_load(e, group, xxh, err);
        if (rc) return rc;
        for (; at < lo + n && at / PGS__CSUM_GROUP == group; at++) xxh[at % PGS__CSUM_GROUP] = page_xxh[at - lo];
        rc = group_store(e, group, xxh, err);
        if (rc) return rc;
    }
    return 0;
}

/* By the entries that exist, not by the groups of the range: a punch of 1 TB in an empty map visits nothing. */
static int csum_clear(struct pgs__content_edit *e, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    for (uint64_t group = lo / PGS__CSUM_GROUP;; group++) {
        struct pgs__tree t = tree_of(e);
        struct pgs__cursor c;
        struct pgs_span key, val;
        uint8_t k[PGS__MAP_KEY_LEN];
        pgs__map_key(k, 'C', group);
        int rc = pgs__cursor_seek(&c, &t, PGS__SEEK_GE, k, sizeof k, err);
        if (rc) return rc == -PGS_ENOENT ? 0 : rc;
        pgs__cursor_entry(&c, &key, &val);
        rc = pgs__map_letter(key, err);
        if (rc != 'C') return rc < 0 ? rc : 0;
        group = pgs__get_be64((const uint8_t *)key.p + 1);
        if (group > (hi - 1) / PGS__CSUM_GROUP) return 0;
        uint64_t xxh[PGS__CSUM_GROUP], first = group * PGS__CSUM_GROUP;
        rc = group_load(e, group, xxh, err);
        if (rc) return rc;
        uint64_t from = pgs__max_u64(lo, first), to = pgs__min_u64(hi, first + PGS__CSUM_GROUP);
        for (uint64_t at = from; at < to; at++) xxh[at % PGS__CSUM_GROUP] = 0;
        rc = group_store(e, group, xxh, err);
        if (rc) return rc;
    }
}

/* --- runs --------------------------------------------------------------------------------------------------------------------- */
/* Pages [lo, hi) of run `r` leave the map. */
static int drop_run(struct pgs__content_edit *e, const struct pgs__placed_run *r, uint64_t lo, uint64_t hi,
                    struct pgs_error *err)
{
    if (hi - lo > e->n_stored) return pgs__fail_corrupt(err, "", "the map holds more pages than the record says");
    e->n_stored -= hi - lo;
    return pgs__refs_add(&e->refs, r->page + (lo - r->at), hi - lo, r->birth, -1, err);
}

static int add_run(struct pgs__content_edit *e, const struct pgs__placed_run *r, struct pgs_error *err)
{
    e->n_stored += r->n_pages;
    return pgs__refs_add(&e->refs, r->page, r->n_pages, r->birth, 1, err);
}

/* Put back what of `r` lies at or after page hi. */
static int put_tail(struct pgs__content_edit *e, const struct pgs__placed_run *r, uint64_t hi, struct pgs_error *err)
{
    uint64_t end = r->at + r->n_pages;
    if (end <= hi) return 0;
    struct pgs__placed_run tail = {hi, r->page + (hi - r->at), end - hi, r->birth};
    return put_run(e, &tail, err);
}

/* Logical pages [lo, hi) have no run afterwards. *before: the run that ends at or before lo now, n_pages 0 if there is none. */
static int carve(struct pgs__content_edit *e, uint64_t lo, uint64_t hi, struct pgs__placed_run *before,
                 struct pgs_error *err)
{
    struct pgs__placed_run r;
    *before = (struct pgs__placed_run){0};
    int rc = find_run(e, PGS__SEEK_LT, lo, &r, err);
    if (rc && rc != -PGS_ENOENT) return rc;
    if (rc == 0) {
        uint64_t end = r.at + r.n_pages;
        *before = r;
        if (end > lo) {
            before->n_pages = lo - r.at;
            rc = put_run(e, before, err);
            if (rc == 0) rc = put_tail(e, &r, hi, err);
            if (rc == 0) rc = drop_run(e, &r, lo, pgs__min_u64(end, hi), err);
            if (rc || end >= hi) return rc;
        }
    }
    for (;;) { /* each round deletes an entry */
        rc = find_run(e, PGS__SEEK_GE, lo, &r, err);
        if (rc == -PGS_ENOENT || (rc == 0 && r.at >= hi)) return 0;
        if (rc == 0) rc = del_run(e, r.at, err);
        if (rc == 0) rc = put_tail(e, &r, hi, err);
        if (rc == 0) rc = drop_run(e, &r, r.at, pgs__min_u64(r.at + r.n_pages, hi), err);
        if (rc) return rc;
    }
}

static bool continues(const struct pgs__placed_run *a, const struct pgs__placed_run *b)
{
    return a->at + a->n_pages == b->at && a->page + a->n_pages == b->page && a->birth == b->birth;
}

/* Enter `r` over a hole, merged with its neighbours (I1). */
static int enter(struct pgs__content_edit *e, struct pgs__placed_run r, const struct pgs__placed_run *before,
                 struct pgs_error *err)
{
    struct pgs__placed_run next;
    int rc = find_run(e, PGS__SEEK_GE, r.at + r.n_pages, &next, err);
    if (rc == 0 && continues(&r, &next)) {
        rc = del_run(e, next.at, err);
        if (rc) return rc;
        r.n_pages += next.n_pages;
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    if (before->n_pages && continues(before, &r)) {
        r.page = before->page;
        r.n_pages += before->n_pages;
        r.at = before->at;
    }
    return put_run(e, &r, err);
}

static int set(struct pgs__content_edit *e, const struct pgs__placed_run *r, const uint64_t *page_xxh,
               struct pgs_error *err)
{
    struct pgs__placed_run before;
    int rc = open_map(e, err);
    if (rc == 0) rc = carve(e, r->at, r->at + r->n_pages, &before, err);
    if (rc == 0) rc = enter(e, *r, &before, err);
    if (rc == 0) rc = add_run(e, r, err);
    if (rc) return rc;
    return page_xxh ? csum_set(e, r->at, r->n_pages, page_xxh, err) : csum_clear(e, r->at, r->at + r->n_pages, err);
}

int pgs__content_set(struct pgs__content_edit *e, struct pgs_lpno at, struct pgs_run run, uint64_t birth,
                     const uint64_t *page_xxh, struct pgs_error *err)
{
    int rc = usable(e, err);
    if (rc || run.n_pages == 0) return rc;
    if (at.n >= PGS__CONTENT_MAX_PAGES || run.n_pages > PGS__CONTENT_MAX_PAGES - at.n)
        return pgs__fail(err, PGS_E2BIG, "page %llu is beyond the largest object", (unsigned long long)at.n);
    struct pgs__placed_run r = {.at = at.n, .page = run.page.n, .n_pages = run.n_pages, .birth = birth};
    return remember(e, set(e, &r, page_xxh, err));
}

static int punch(struct pgs__content_edit *e, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct pgs__placed_run before;
    int rc = open_map(e, err);
    if (rc == 0) rc = carve(e, lo, hi, &before, err);
    return rc ? rc : csum_clear(e, lo, hi, err);
}

int pgs__content_punch(struct pgs__content_edit *e, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    int rc = usable(e, err);
    hi = pgs__min_u64(hi, PGS__CONTENT_MAX_PAGES);
    if (rc || lo >= hi) return rc;
    return remember(e, punch(e, lo, hi, err));
}

int pgs__content_resize(struct pgs__content_edit *e, uint64_t n_bytes, struct pgs_error *err)
{
    int rc = usable(e, err);
    if (rc) return rc;
    if (n_bytes > PGS__CONTENT_MAX_BYTES)
        return pgs__fail(err, PGS_E2BIG, "%llu bytes are more than an object may have (64 TiB)",
                         (unsigned long long)n_bytes);
    uint64_t old_pages = pgs__pages_of(e->n_bytes), new_pages = pgs__pages_of(n_bytes);
    if (new_pages < old_pages)
        rc = punch(e, new_pages, PGS__CONTENT_MAX_PAGES, err);
    else if (new_pages > old_pages)
        rc = open_map(e, err); /* an EXTENT is no longer one run that covers everything */
    if (rc == 0) e->n_bytes = n_bytes;
    return remember(e, rc);
}

/* --- the result ----------------------------------------------------------------------------------------------------------------- */
/* Decide the form; afterwards the map holds what is to be written. Undone by open_map. */
static int settle(struct pgs__content_edit *e, struct pgs_error *err)
{
    if (e->settled) return 0;
    uint64_t n_pages = pgs__pages_of(e->n_bytes);
    struct pgs__placed_run r = {0}, last;
    e->extent = (struct pgs__map_run){0};
    if (e->base.form == PGS__FORM_EXTENT && !e->expanded) {
        e->extent = (struct pgs__map_run){e->base.page.n, n_pages, e->base.birth};
        e->settled = true;
        return 0;
    }
    int rc = find_run(e, PGS__SEEK_LT, PGS__CONTENT_MAX_PAGES, &last, err);
    if (rc == 0 && last.at + last.n_pages > n_pages)
        return pgs__fail(err, PGS_EBUG, "page %llu was set beyond the end of the object",
                         (unsigned long long)(last.at + last.n_pages - 1));
    if (rc == 0) rc = find_run(e, PGS__SEEK_GE, 0, &r, err);
    if (rc == 0 && r.at == 0 && r.n_pages == n_pages && !pgs__is_cold(r.page)) { /* I5 */
        rc = del_run(e, 0, err);
        if (rc == 0) e->extent = (struct pgs__map_run){r.page, r.n_pages, r.birth};
    }
    if (rc && rc != -PGS_ENOENT) return rc;
    e->settled = true;
    return 0;
}

static int dead_runs(struct pgs__content_edit *e, size_t *n_out, struct pgs_error *err)
{
    int rc = pgs__refs_sum(&e->refs, err);
    if (rc) return rc;
    size_t n = 0, total = 0;
    for (size_t i = 0; i < e->refs.n; i++)
        if (e->refs.note[i].delta < 0) total += (size_t)-e->refs.note[i].delta;
    pgs__free(e->dead);
    e->dead = total ? pgs__malloc(total * sizeof *e->dead) : NULL;
    if (total && !e->dead) return pgs__fail(err, PGS_ENOMEM, "no memory for the list of replaced pages");
    for (size_t i = 0; i < e->refs.n; i++) {
        const struct pgs__ref_note *r = &e->refs.note[i];
        /* A page that the object referred to twice (assigned pages may repeat) has lost two references. */
        for (int64_t k = r->delta; k < 0; k++)
            e->dead[n++] = (struct pgs__dead_run){.run = {{r->page}, r->n_pages}, .birth = r->birth};
    }
    *n_out = n;
    return 0;
}

int pgs__content_dead(struct pgs__content_edit *e, const struct pgs__dead_run **list, size_t *n,
                      const struct pgs_ptr **nodes, size_t *n_nodes, struct pgs_error *err)
{
    size_t n_dead = 0;
    int rc = usable(e, err);
    if (rc == 0) rc = settle(e, err);
    if (rc == 0) rc = dead_runs(e, &n_dead, err);
    if (rc) return remember(e, rc);
    *list = e->dead;
    *n = n_dead;
    *nodes = pgs__edit_dead(e->map, n_nodes);
    return 0;
}

uint64_t pgs__content_n_dirty(struct pgs__content_edit *e)
{
    /* The signature has no room for an error: pgs__content_finish returns it. */
    if (e->failed || remember(e, settle(e, NULL))) return 0;
    return pgs__edit_n_dirty(e->map);
}

int pgs__content_finish(struct pgs__content_edit *e, pgs_gen_t birth, const struct pgs_pgno *pages, void *buf,
                        struct pgs__content *out, struct pgs_error *err)
{
    struct pgs_ptr map = {0};
    int rc = usable(e, err);
    if (rc == 0) rc = settle(e, err);
    if (rc == 0) rc = pgs__edit_finish(e->map, birth, pages, buf, &map, err);
    if (rc) return remember(e, rc);
    bool same = pgs__edit_is_clean(e->map) && e->n_bytes == e->base.n_bytes && e->base.form != PGS__FORM_INLINE;
    *out = (struct pgs__content){.form = PGS__FORM_MAP, .n_bytes = e->n_bytes, .n_stored = e->n_stored, .map = map};
    if (e->extent.n_pages) {
        out->form = PGS__FORM_EXTENT;
        out->page.n = e->extent.page;
        out->birth = e->extent.birth;
    }
    if (same && e->refs.n == 0) {
        out->xxh = e->base.xxh;
        out->xxh_bytes = e->base.xxh_bytes;
    }
    return 0;
}
