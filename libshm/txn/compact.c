/* Pagestone | txn/compact — rewriting scattered and high contents into the lowest free chunks.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Maintenance commits, each of which moves a bounded number of bytes under the commit lock: the pages of an object are copied to one new run, its map is made anew, its record keeps id and
 * version, and the old run dies. Who reads the old pages goes on reading them until the generation is dropped; who edits the object conflicts with nobody, since conflicts compare
 * revisions. Objects that share pages with others stay where they are: moving one of them would end the sharing.
 *
 * Compressed blocks stay where they are (a block's entry never changes), and so do pages of the image: what moves is the raw part of an object.
 *
 * What has page checksums is verified before it is copied, so that a damaged page is never given a checksum that fits. What cannot be moved (damage, no room) is left alone.
 */
#include "libshm/catalog/object.h"
#include "libshm/pages/fresh.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/store.h"
#include "libshm/txn/upkeep.h"

#define BYTES_PER_COMMIT (16ull << 20)
#define OBJECTS_PER_COMMIT 256u
#define SCANNED_PER_COMMIT 65536u

struct part { /* a run of the old content */
    struct pgs_lpno at;
    struct pgs_run run;
};
struct move {
    struct pgs__commit *c;
    struct pgs__object obj;
    struct part *parts;
    size_t n_parts, cap_parts;
    size_t n_pieces; /* of the file: parts that follow each other there are one */
    uint64_t n_pages, lowest;
    bool shared;
    struct pgs_error *err;
};

static int see_part(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct move *m = ctx;
    bool shared;
    (void)birth;
    if (pgs__is_cold(run.page.n)) return 0;
    int rc = pgs__ledger_is_shared(&m->c->l, run, &shared, m->err);
    if (rc) return rc;
    m->shared |= shared;
    m->n_pages += run.n_pages;
    m->lowest = pgs__min_u64(m->lowest, run.page.n);
    if (pgs__grow(&m->parts, &m->cap_parts, m->n_parts + 1, sizeof m->parts[0])) return -PGS_ENOMEM;
    const struct pgs_run *last = m->n_parts ? &m->parts[m->n_parts - 1].run : NULL;
    m->n_pieces += !last || last->page.n + last->n_pages != run.page.n;
    m->parts[m->n_parts++] = (struct part){at, run};
    return 0;
}

/* Copy all parts to `to`, one after the other; xxh (may be NULL): of each page copied. 1: a part cannot be reached in one piece. */
static int copy_parts(struct move *m, struct pgs_run to, uint64_t *xxh)
{
    struct pgs__pagefile *pf = &m->c->s->pf;
    int rc = pgs__fresh_reserve(pf, to, false, m->err);
    for (size_t i = 0; rc == 0 && i < m->n_parts; i++) {
        struct pgs_run run = m->parts[i].run;
        for (uint64_t done = 0, n; rc == 0 && done < run.n_pages; done += n) {
            n = pgs__min_u64(run.n_pages - done, PGS_CHUNK_PAGES);
            const void *src = pgs__pages_at(pf, (struct pgs_pgno){run.page.n + done}, n);
            struct pgs_run part = {to.page, n};
            if (!src) return 1;
            rc = pgs__fresh_copy(pf, part, false, src, n << PGS_PAGE_SHIFT, xxh, m->err);
            to.page.n += n;
            if (xxh) xxh += n;
        }
    }
    return rc;
}

static int write_nodes(struct move *m, struct pgs__content_edit *e, struct pgs__content *out)
{
    struct pgs__commit *c = m->c;
    uint64_t n = pgs__content_n_dirty(e), k = 0;
    struct pgs_run runs[64];
    size_t n_runs = 0;
    struct pgs_pgno *pages = NULL;
    uint8_t *buf = NULL;
    int rc = 0;
    if (n) {
        pages = pgs__malloc(n * sizeof *pages);
        buf = pgs__malloc(n << PGS_PAGE_SHIFT);
        if (!pages || !buf)
            rc = pgs__fail(m->err, PGS_ENOMEM, "no memory for a map of %llu nodes", (unsigned long long)n);
        if (rc == 0) rc = pgs__claim_alloc(&c->claim, &c->l, true, n, 0, runs, PGS_ARRAY_LEN(runs), &n_runs, m->err);
    }
    for (size_t i = 0; rc == 0 && i < n_runs; i++)
        for (uint64_t p = 0; p < runs[i].n_pages; p++) pages[k++] = (struct pgs_pgno){runs[i].page.n + p};
    if (rc == 0) rc = pgs__content_finish(e, c->l.gen, pages, buf, out, m->err);
    k = 0;
    for (size_t i = 0; rc == 0 && i < n_runs; k += runs[i].n_pages, i++)
        rc = pgs__pages_write(&c->s->pf, runs[i].page, buf + (k << PGS_PAGE_SHIFT), runs[i].n_pages, m->err);
    pgs__free(pages);
    pgs__free(buf);
    return rc;
}

static int kill_old(struct move *m, struct pgs__content_edit *e)
{
    const struct pgs__dead_run *dead;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes;
    int rc = pgs__content_dead(e, &dead, &n, &nodes, &n_nodes, m->err);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = pgs__ledger_kill(&m->c->l, dead[i].run, dead[i].birth, false, m->err);
    for (size_t i = 0; rc == 0 && i < n_nodes; i++) {
        struct pgs_run run = {{nodes[i].page}, 1};
        rc = pgs__ledger_kill(&m->c->l, run, nodes[i].birth, true, m->err);
    }
    return rc;
}

/* The object's pages are in `to` now: map, record, deaths. */
static int rewrite(struct move *m, struct pgs_span key, struct pgs_run to, const uint64_t *xxh)
{
    struct pgs__commit *c = m->c;
    struct pgs__content out;
    uint8_t record[PGS__RECORD_MAX];
    size_t len;
    struct pgs__content_edit *e = pgs__content_edit_new(&c->s->pf, &m->obj.content);
    int rc = e ? 0 : pgs__fail(m->err, PGS_ENOMEM, "no memory for a map");
    for (size_t i = 0; rc == 0 && i < m->n_parts; i++) {
        struct pgs_run run = {to.page, m->parts[i].run.n_pages};
        rc = pgs__content_set(e, m->parts[i].at, run, c->l.gen, xxh, m->err);
        to.page.n += run.n_pages;
        if (xxh) xxh += run.n_pages;
    }
    if (rc == 0) rc = kill_old(m, e);
    if (rc == 0) rc = write_nodes(m, e, &out);
    if (rc == 0) {
        out.xxh = m->obj.content.xxh;
        out.xxh_bytes = m->obj.content.xxh_bytes;
        m->obj.content = out;
        rc = pgs__object_encode(&m->obj, record, &len, m->err);
    }
    if (rc == 0) rc = pgs__edit_put(c->catalog, key.p, key.len, record, len, m->err);
    pgs__content_edit_free(e);
    return rc;
}

/* A run for n pages that is worth moving to. 1: none. */
static int place_for(struct move *m, struct pgs_run *to)
{
    struct pgs__commit *c = m->c;
    size_t n_runs;
    struct pgs_error local = {0};
    int rc = pgs__claim_alloc(&c->claim, &c->l, false, m->n_pages, PGS__ALLOC_CONTIGUOUS | PGS__ALLOC_LOWEST, to, 1,
                              &n_runs, &local);
    if (rc == -PGS_EFULL) return 1;
    if (rc) {
        if (m->err && m->err->code == 0) *m->err = local;
        return rc;
    }
    if (m->n_pieces > 1 || to->page.n < m->lowest) return 0;
    pgs__claim_give(&c->claim, *to, false);
    return 1;
}

/* The raw part against its checksums. *n_unverified: pages without one. */
static int verify_parts(struct move *m, uint64_t *n_unverified)
{
    struct pgs__pagefile *pf = &m->c->s->pf;
    int rc = pgs__content_verify_stream(pf, &m->obj.content, NULL);
    for (size_t i = 0; i < m->n_parts && rc == 0; i++) {
        uint64_t n = 0, lo = m->parts[i].at.n;
        struct pgs__cold_cache none = {0};
        rc = pgs__content_verify_pages(pf, &m->obj.content, lo, lo + m->parts[i].run.n_pages, &none, &n, NULL);
        *n_unverified += n;
    }
    return rc;
}

/* *moved: bytes. An object that cannot be moved is no error. */
static int consider(struct move *m, struct pgs_span key, struct pgs_span val, uint64_t *moved)
{
    struct pgs__pagefile *pf = &m->c->s->pf;
    struct pgs_error local = {0};
    struct pgs_run to;
    uint64_t n_unverified = 0, *xxh = NULL;
    m->n_parts = m->n_pieces = 0;
    m->n_pages = 0;
    m->lowest = UINT64_MAX;
    m->shared = false;
    if (pgs__object_decode(pf, key, val, &m->obj, &local)) return 0;
    if (m->obj.content.form == PGS__FORM_INLINE) return 0;
    int rc = pgs__content_runs(pf, &m->obj.content, 0, UINT64_MAX, see_part, m, &local);
    if (rc == -PGS_ENOMEM) return pgs__fail(m->err, PGS_ENOMEM, "no memory for a list of runs");
    if (rc || m->shared || m->n_pages == 0) return 0;
    rc = place_for(m, &to);
    if (rc) return rc == 1 ? 0 : rc;
    if (verify_parts(m, &n_unverified)) goto leave;
    if (m->obj.content.map.page && n_unverified < m->n_pages) {
        xxh = pgs__malloc(m->n_pages * sizeof *xxh);
        if (!xxh) goto leave;
    }
    rc = copy_parts(m, to, xxh);
    if (rc == 1 || rc == -PGS_EFULL) {
        if (m->err) memset(m->err, 0, sizeof *m->err);
        rc = 0;
        goto leave;
    }
    if (rc == 0) rc = rewrite(m, key, to, xxh);
    if (rc == 0) *moved += m->n_pages << PGS_PAGE_SHIFT;
    pgs__free(xxh);
    return rc;
leave:
    pgs__claim_give(&m->c->claim, to, false);
    pgs__free(xxh);
    return 0;
}

/* One commit's share of the catalog, from key `from` on; where to go on stands in `from` again, *len 0: done. */
static int step(struct pgs__session *s, const struct pgs__wait *w, uint8_t *from, size_t *len, struct pgs_error *err)
{
    struct pgs__commit c;
    struct move m = {.c = &c, .err = err};
    uint64_t moved = 0, n_moved = 0, n_scanned = 0;
    pgs__mutex_lock(&s->space_mx);
    s->hint_data = s->hint_node = 0; /* lowest first */
    pgs__mutex_unlock(&s->space_mx);
    int rc = pgs__commit_begin(&c, s, w, err);
    if (rc) return rc;
    rc = pgs__commit_start(&c, false, err);
    struct pgs__tree catalog = pgs__root_catalog(s, &c.base); /* the committed one: edits do not disturb the cursor */
    struct pgs__cursor cur;
    if (rc == 0) rc = pgs__cursor_seek(&cur, &catalog, *len ? PGS__SEEK_GE : PGS__SEEK_FIRST, from, *len, err);
    for (; rc == 0; rc = pgs__cursor_next(&cur, err)) {
        struct pgs_span key, val;
        uint64_t before = moved;
        pgs__cursor_entry(&cur, &key, &val);
        if (moved >= BYTES_PER_COMMIT || n_moved >= OBJECTS_PER_COMMIT || n_scanned++ >= SCANNED_PER_COMMIT) {
            *len = pgs__min_u64(key.len, PGS_MAX_KEY);
            memcpy(from, key.p, *len);
            break;
        }
        rc = consider(&m, key, val, &moved);
        if (rc) break;
        n_moved += moved > before;
    }
    pgs__free(m.parts);
    if (rc == -PGS_ENOENT) {
        *len = 0;
        rc = 0;
    }
    if (rc == 0 && n_moved) return pgs__commit_end(&c, NULL, err);
    pgs__commit_abandon(&c);
    return rc;
}

static int kill_node(void *ctx, const struct pgs_ptr *node, int level)
{
    struct pgs__commit *c = ctx;
    struct pgs_run run = {{node->page}, 1};
    (void)level;
    return pgs__ledger_kill(&c->l, run, node->birth, true, NULL);
}

/* The catalog in full nodes: entries are appended in order to an empty tree. */
static int rebuild_catalog(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err)
{
    struct pgs__commit c;
    int rc = pgs__commit_begin(&c, s, w, err);
    if (rc) return rc;
    rc = pgs__commit_start(&c, false, err);
    struct pgs__tree old = pgs__root_catalog(s, &c.base);
    struct pgs__edit *e = pgs__edit_new(&s->pf, PGS__TREE_CATALOG, &(struct pgs_ptr){0});
    struct pgs__cursor cur;
    if (!e && rc == 0) rc = pgs__fail(err, PGS_ENOMEM, "no memory for a catalog");
    if (rc == 0) rc = pgs__cursor_seek(&cur, &old, PGS__SEEK_FIRST, NULL, 0, err);
    for (; rc == 0; rc = pgs__cursor_next(&cur, err)) {
        struct pgs_span key, val;
        pgs__cursor_entry(&cur, &key, &val);
        rc = pgs__edit_put(e, key.p, key.len, val.p, val.len, err);
        if (rc) break;
    }
    uint64_t n_nodes = rc == -PGS_ENOENT ? pgs__edit_n_dirty(e) : 0;
    if (rc == -PGS_ENOENT && n_nodes > 0) {
        rc = pgs__tree_walk(&old, kill_node, NULL, &c, err);
        if (rc == 0) {
            pgs__edit_free(c.catalog);
            c.catalog = e;
            c.tree.edit = e;
            return pgs__commit_end(&c, NULL, err);
        }
    }
    pgs__edit_free(e);
    pgs__commit_abandon(&c);
    return rc == -PGS_ENOENT ? 0 : rc;
}

int pgs__compact(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err)
{
    uint8_t from[PGS_MAX_KEY];
    size_t len = 0;
    int rc = pgs__gc(s, w, err); /* what is free already is what we move into */
    do
        if (rc == 0) rc = step(s, w, from, &len, err);
    while (rc == 0 && len);
    if (rc == 0) rc = rebuild_catalog(s, w, err);
    return rc ? rc : pgs__gc(s, w, err);
}
