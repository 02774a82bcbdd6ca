/* Pagestone | tests/unit/commit_fixture — objects put, read and dropped through the commit driver alone.
 * SPDX-License-Identifier: Apache-2.0
 *
 * What transactions do, without their conflicts: one commit per call, under the lock from begin to end.
 */
#ifndef PGS_TESTS_COMMIT_FIXTURE_H
#define PGS_TESTS_COMMIT_FIXTURE_H

#include "libshm/catalog/object.h"
#include "libshm/pages/fresh.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/store.h"
#include "libshm/txn/upkeep.h"
#include "libshm/txn/verify.h"
#include "tests/unit/testing.h"

static __thread struct pgs_error err __attribute__((unused));

static inline struct pgs__session *memory_store(uint64_t quota, enum pgs_history_kind history, uint64_t value)
{
    struct pgs_options opt = {
        .mode = PGS_MODE_A, .size = quota, .history = history, .history_value = value, .checksums = 1};
    struct pgs__session *s;
    CHECK_OK(pgs__session_open_anonymous(&opt, &s, &err));
    CHECK_OK(pgs__settings_apply(s, NULL, &opt, &err));
    return s;
}

static inline uint8_t pattern(uint64_t seed, uint64_t i)
{
    return (uint8_t)(pgs__mix(seed + (i >> 3)) >> (8 * (i & 7)));
}

static inline uint8_t *pattern_bytes(uint64_t seed, uint64_t n)
{
    uint8_t *p = malloc(n + 8);
    for (uint64_t i = 0; i < n; i++) p[i] = pattern(seed, i);
    return p;
}

/* Data of the object to freshly claimed pages: EXTENT, or MAP when the space is in pieces. page checksums for arrays. */
static inline int fill_content(struct pgs__commit *c, struct pgs__claim *claim, bool locked, struct pgs__content *out,
                               const uint8_t *bytes, uint64_t n_bytes, bool array)
{
    struct pgs_run runs[64], nodes[64];
    size_t n_runs, n_node_runs;
    uint64_t n_pages = pgs__pages_of(n_bytes), xxh[512] = {0};
    int rc = pgs__claim_alloc(claim, locked ? &c->l : NULL, false, n_pages, 0, runs, 64, &n_runs, &err);
    if (rc) return rc;
    struct pgs__content_edit *e = pgs__content_edit_new(&c->s->pf, NULL);
    rc = e ? pgs__content_resize(e, n_bytes, &err) : -PGS_ENOMEM;
    if (rc) {
        pgs__content_edit_free(e);
        return rc;
    }
    uint64_t at = 0;
    for (size_t i = 0; i < n_runs; i++) {
        uint64_t n = pgs__min_u64(n_bytes - (at << PGS_PAGE_SHIFT), runs[i].n_pages << PGS_PAGE_SHIFT);
        bool hash = array && runs[i].n_pages <= 512;
        rc = pgs__fresh_copy(&c->s->pf, runs[i], pgs__run_is_whole(runs[i]), bytes + (at << PGS_PAGE_SHIFT), n,
                             hash ? xxh : NULL, &err);
        if (rc == 0) rc = pgs__content_set(e, (struct pgs_lpno){at}, runs[i], c->base.gen + 1, hash ? xxh : NULL, &err);
        if (rc) break;
        at += runs[i].n_pages;
    }
    uint64_t n_dirty = rc ? 0 : pgs__content_n_dirty(e), k = 0;
    struct pgs_pgno *pages = malloc((n_dirty + 1) * sizeof *pages);
    uint8_t *buf = malloc((n_dirty + 1) * PGS_PAGE_SIZE);
    if (n_dirty) {
        rc = pgs__claim_alloc(claim, locked ? &c->l : NULL, true, n_dirty, 0, nodes, 64, &n_node_runs, &err);
        for (size_t i = 0; rc == 0 && i < n_node_runs; i++)
            for (uint64_t p = 0; p < nodes[i].n_pages; p++) pages[k++].n = nodes[i].page.n + p;
    }
    if (rc == 0) rc = pgs__content_finish(e, c->base.gen + 1, pages, buf, out, &err);
    for (uint64_t i = 0; rc == 0 && i < n_dirty; i++)
        rc = pgs__pages_write(&c->s->pf, pages[i], buf + i * PGS_PAGE_SIZE, 1, &err);
    pgs__content_edit_free(e);
    free(pages);
    free(buf);
    return rc;
}

/* An object in the open commit. n_bytes ≤ 64: inline. */
static inline int put_in(struct pgs__commit *c, const char *key, enum pgs_kind kind, const uint8_t *bytes, uint64_t n)
{
    struct pgs__object old, o = {.kind = kind, .order = 0};
    uint8_t record[PGS__RECORD_MAX];
    size_t len;
    bool array = kind == PGS_KIND_ARRAY;
    struct pgs__record *h = &c->l.meta.hdr;
    int rc = pgs__object_find(c->s, &c->tree, key, strlen(key), &old, NULL);
    if (rc && rc != -PGS_ENOENT) return rc;
    bool had = rc == 0;
    if (h->next_id == 0) h->next_id = 1;
    o.id = h->next_id++;
    o.version = h->version;
    if (array) {
        o.order = 'C';
        o.ndim = 1;
        o.itemsize = 1;
        o.shape[0] = (int64_t)n;
        o.dtype = "|u1";
        o.dtype_len = 3;
    }
    o.content.n_bytes = n;
    if (n <= 64) {
        o.content.form = PGS__FORM_INLINE;
        o.content.inline_data = bytes;
        rc = 0;
    } else {
        rc = fill_content(c, &c->claim, true, &o.content, bytes, n, array);
    }
    if (rc) return rc;
    if (!array && n > 64) o.content.xxh = pgs__hash(bytes, n), o.content.xxh_bytes = n;
    if (had) {
        rc = pgs__commit_kill_content(c, &old, &err);
        if (rc) return rc;
    }
    CHECK_OK(pgs__object_encode(&o, record, &len, &err));
    rc = pgs__edit_put(c->catalog, key, strlen(key), record, len, &err);
    if (!had) c->n_objects++;
    return rc;
}

static inline int finish(struct pgs__commit *c, int rc, const char *keys)
{
    struct pgs_commit_info log = {.version = c->l.meta.hdr.version,
                                  .time_ns = c->l.now_ns,
                                  .pid = 1,
                                  .command = "test",
                                  .keys = keys,
                                  .n_keys = 1};
    if (rc == 0) return pgs__commit_end(c, &log, &err);
    pgs__commit_abandon(c);
    return rc;
}

static inline int put(struct pgs__session *s, const char *key, enum pgs_kind kind, uint64_t seed, uint64_t n)
{
    struct pgs__commit c;
    uint8_t *bytes = pattern_bytes(seed, n);
    memset(&err, 0, sizeof err);
    int rc = pgs__commit_begin(&c, s, NULL, &err);
    if (rc == 0) {
        rc = pgs__commit_start(&c, true, &err);
        if (rc == 0) rc = put_in(&c, key, kind, bytes, n);
        rc = finish(&c, rc, key);
    }
    free(bytes);
    return rc;
}

static inline int del(struct pgs__session *s, const char *key)
{
    struct pgs__commit c;
    struct pgs__object o;
    memset(&err, 0, sizeof err);
    int rc = pgs__commit_begin(&c, s, NULL, &err);
    if (rc) return rc;
    c.freeing = true;
    rc = pgs__commit_start(&c, true, &err);
    if (rc == 0) rc = pgs__object_find(s, &c.tree, key, strlen(key), &o, &err);
    if (rc == 0) rc = pgs__commit_kill_content(&c, &o, &err);
    if (rc == 0) rc = pgs__edit_del(c.catalog, key, strlen(key), &err);
    if (rc == 0) c.n_objects--;
    return finish(&c, rc, key);
}

/* Does the key hold these bytes in that root? */
static inline void check_bytes(struct pgs__session *s, const struct pgs__root *root, const char *key, uint64_t seed,
                               uint64_t n)
{
    struct pgs__tree t = pgs__root_catalog(s, root);
    struct pgs__object o;
    CHECK_OK(pgs__object_find(s, &t, key, strlen(key), &o, &err));
    CHECK_EQ(o.content.n_bytes, n);
    uint8_t *buf = malloc(n + 1);
    CHECK_OK(pgs__content_read(&s->pf, &o.content, 0, buf, n, &err));
    for (uint64_t i = 0; i < n; i++)
        if (buf[i] != pattern(seed, i)) TEST_FAIL("%s: byte %llu differs", key, (unsigned long long)i);
    free(buf);
}

static inline void check_head_bytes(struct pgs__session *s, const char *key, uint64_t seed, uint64_t n)
{
    struct pgs__root root;
    struct pgs__pin pin;
    CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
    check_bytes(s, &root, key, seed, n);
    pgs__pin_drop(s, &pin);
}

static inline struct pgs__record record_of(struct pgs__session *s)
{
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s, &l, &err));
    struct pgs__record h = l.meta.hdr;
    pgs__meta_end(s, &l);
    return h;
}

static inline int print_problem(void *ctx, const char *object, const char *problem)
{
    (void)ctx;
    fprintf(stderr, "    [%s] %s\n", object, problem);
    return 0;
}

static inline void check_store(struct pgs__session *s)
{
    struct pgs_check_report r = {0};
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs__verify(s, true, print_problem, NULL, &r, &err));
    CHECK_EQ(r.n_errors, 0);
    CHECK_EQ(r.n_leaked_pages, 0);
}

#endif
