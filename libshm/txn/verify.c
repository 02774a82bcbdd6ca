/* Pagestone | txn/verify — one verifier that walks everything.
 * SPDX-License-Identifier: Apache-2.0
 *
 * docs/design/verify.md says what is checked and why it finds what it claims to find. In short: each page below hw gets exactly one state, first from the ledger's lists, then from
 * what the record, the meta tree, the head's catalog and its objects refer to. What meets a page that has a state already is used twice or free and used; what has none in the end
 * is leaked. Older versions mark nothing: what they refer to must be either the head's or dead.
 *
 * Pages of the image have no byte of state but a bit with their block (verify_cold.c): what the head refers to and what is dead must be what the block counts.
 *
 * Nothing found is trusted: every node is hashed again here, whatever this process verified before, and no walk enters a page twice, so damage can neither hide nor loop.
 */
#include "libshm/txn/verify.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "libshm/catalog/object.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/tree/node.h"
#include "libshm/txn/verify_cold.h"

#define LLU(x) ((unsigned long long)(x))
#define MOST_OF_A_KIND 100u /* messages about ranges; all are counted */

/* States beside the ledger's. VISITED: a node that a walk has entered. */
enum { NODE = 32, MAP, DATA, META, VISITED = 128 };

struct edge { /* of a run that the head refers to (refs), or that the ledger counts as shared (counted) */
    uint64_t page;
    int64_t refs, counted;
};
struct verify {
    struct pgs__session *s;
    struct pgs__pagefile *pf;
    struct pgs__ledger l;
    bool data;
    pgs__problem_fn fn;
    void *ctx;
    struct pgs_check_report r;
    struct pgs_error *err;
    uint8_t *state; /* of each page below hw */
    uint64_t hw;
    struct pgs__seen_blocks blocks;
    struct pgs__cold_cache cache; /* over them */
    struct edge *edges;
    size_t n_edges, cap_edges;
    uint64_t *seen; /* open addressing: hashes of records that were checked */
    size_t n_seen, cap_seen;
    uint64_t history; /* version being walked; 0: the head */
    bool in_history, incomplete;
};

/* --- problems ----------------------------------------------------------------------------------------------------------------------------- */

static __attribute__((format(printf, 3, 4))) int problem(struct verify *v, struct pgs_span object, const char *fmt, ...)
{
    char name[PGS_MAX_KEY + 1], text[480];
    size_t n = pgs__min_u64(object.len, PGS_MAX_KEY);
    va_list ap;
    v->r.n_errors++;
    if (!v->fn) return 0;
    for (size_t i = 0; i < n; i++) name[i] = ((const char *)object.p)[i] ? ((const char *)object.p)[i] : '?';
    name[n] = 0;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return v->fn(v->ctx, name, text);
}
#define NAMED(text) ((struct pgs_span){text, sizeof(text) - 1})

/* A lower layer's verdict: damage is reported, anything else ends the check. */
static int verdict(struct verify *v, struct pgs_span object, int rc, struct pgs_error *local)
{
    if (rc == -PGS_ECORRUPT) {
        if (v->in_history) return problem(v, object, "version %llu: %s", LLU(v->history), local->text);
        return problem(v, object, "%s", local->text);
    }
    if (rc && v->err && v->err->code == 0) *v->err = *local;
    return rc;
}

static int no_memory(struct verify *v)
{
    return pgs__fail(v->err, PGS_ENOMEM, "no memory for the check");
}

/* --- pages --------------------------------------------------------------------------------------------------------------------------------- */

static const char *state_name(uint8_t state)
{
    switch (state & ~VISITED) {
    case PGS__PAGE_FREE:
        return "free";
    case PGS__PAGE_DEAD:
        return "dead (history)";
    case PGS__PAGE_LIMBO:
        return "in limbo";
    case PGS__PAGE_RESERVE:
        return "in the reserve";
    case PGS__PAGE_SUPER:
        return "a superblock";
    case PGS__PAGE_BLOCK:
        return "a compressed block";
    case NODE:
        return "a node of the catalog";
    case MAP:
        return "a node of an object's map";
    case DATA:
        return "data of an object";
    case META:
        return "of the ledger's own tree";
    default:
        return "in an unknown state";
    }
}

static bool inside(struct verify *v, struct pgs_run run)
{
    return run.n_pages <= v->hw && run.page.n <= v->hw - run.n_pages;
}

/* Pages of the newest generation get a state; one problem per run at most. *ok: nobody else has them. */
static int mark(struct verify *v, struct pgs_span object, struct pgs_run run, uint8_t state, bool *ok)
{
    uint64_t bad = 0, first = 0;
    uint8_t was = 0;
    *ok = inside(v, run) && run.n_pages > 0;
    if (!*ok) return problem(v, object, "pages %llu + %llu lie outside of the file", LLU(run.page.n), LLU(run.n_pages));
    for (uint64_t p = run.page.n; p < run.page.n + run.n_pages; p++) {
        uint8_t old = v->state[p];
        if (old && !(old == DATA && state == DATA)) {
            if (bad++ == 0) first = p, was = old;
        } else {
            v->state[p] = state;
        }
    }
    *ok = bad == 0;
    if (bad == 0) return 0;
    return problem(v, object, "page %llu is used as %s, but is also %s (%llu pages of %llu + %llu)", LLU(first),
                   state_name(state), state_name(was), LLU(bad), LLU(run.page.n), LLU(run.n_pages));
}

/* Pages of an older version: the head's in the same role, or dead. */
static int check_old(struct verify *v, struct pgs_span object, struct pgs_run run, uint8_t role, bool *ok)
{
    *ok = inside(v, run) && run.n_pages > 0;
    if (!*ok)
        return problem(v, object, "version %llu: pages %llu + %llu lie outside of the file", LLU(v->history),
                       LLU(run.page.n), LLU(run.n_pages));
    for (uint64_t p = run.page.n; p < run.page.n + run.n_pages; p++) {
        uint8_t state = v->state[p] & (uint8_t)~VISITED;
        if (state == role || state == PGS__PAGE_DEAD || state == 0) continue; /* 0: reported as leaked */
        *ok = false;
        return problem(v, object, "version %llu: page %llu is used as %s, but is %s", LLU(v->history), LLU(p),
                       state_name(role), state_name(state));
    }
    return 0;
}

static int check_image(struct verify *v, struct pgs_span object, struct pgs_run run, bool *ok)
{
    uint64_t slot = pgs__cold_slot(run.page.n);
    const char *bad = pgs__seen_run(&v->blocks, run, v->in_history ? PGS__SEEN_OLD : PGS__SEEN_HEAD, &slot);
    *ok = bad == NULL;
    if (!bad) return 0;
    if (v->in_history)
        return problem(v, object, "version %llu: compressed block %llu %s", LLU(v->history), LLU(slot), bad);
    return problem(v, object, "compressed block %llu %s", LLU(slot), bad);
}

static int place(struct verify *v, struct pgs_span object, struct pgs_run run, uint8_t role, bool *ok)
{
    return v->in_history ? check_old(v, object, run, role, ok) : mark(v, object, run, role, ok);
}

/* --- trees ---------------------------------------------------------------------------------------------------------------------------------- */

struct todo {
    struct pgs_ptr ptr;
    int level;
};
typedef int (*leaf_fn)(struct verify *v, const struct pgs__node *leaf);

/* Load a node and hash it here. *out NULL: damaged, reported. */
static int load_node(struct verify *v, const struct pgs__tree *t, struct pgs_span object, const struct todo *at,
                     const struct pgs__node **out)
{
    struct pgs_error local = {0};
    const struct pgs__node *nd;
    *out = NULL;
    int rc = pgs__node_load(t, &at->ptr, at->level, &nd, &local);
    if (rc == 0 && pgs__hash_page(nd) != at->ptr.xxh)
        rc = pgs__fail_corrupt(&local, "", "page %llu: checksum of a node", LLU(at->ptr.page));
    if (rc == 0 && pgs__node_validate(nd))
        rc = pgs__fail_corrupt(&local, "", "page %llu: structure of a node", LLU(at->ptr.page));
    if (rc) {
        v->incomplete = true;
        return verdict(v, object, rc, &local);
    }
    *out = nd;
    return 0;
}

/* Each node once: the second time it is used twice (the head) or was checked already (older versions). */
static int enter_node(struct verify *v, struct pgs_span object, const struct pgs_ptr *ptr, uint8_t role, bool *enter)
{
    struct pgs_run run = {ptr->page ? (struct pgs_pgno){ptr->page} : (struct pgs_pgno){UINT64_MAX}, 1};
    *enter = false;
    if (v->in_history && inside(v, run) && (v->state[run.page.n] & VISITED)) return 0;
    int rc = place(v, object, run, role, enter);
    if (inside(v, run)) v->state[run.page.n] |= VISITED;
    return rc;
}

static int walk_tree(struct verify *v, enum pgs__tree_kind kind, const struct pgs_ptr *root, struct pgs_span object,
                     uint8_t role, leaf_fn leaf)
{
    struct pgs__tree t = {.pf = v->pf, .kind = kind, .root = *root};
    struct todo *todo = NULL;
    size_t n = 0, cap = 0;
    int rc = 0;
    if (root->page == 0) return 0;
    if (pgs__grow(&todo, &cap, 1, sizeof *todo)) return no_memory(v);
    todo[n++] = (struct todo){*root, -1};
    while (rc == 0 && n > 0) {
        struct todo at = todo[--n];
        const struct pgs__node *nd = NULL;
        bool enter;
        rc = enter_node(v, object, &at.ptr, role, &enter);
        if (rc || !enter) continue;
        rc = load_node(v, &t, object, &at, &nd);
        if (rc || !nd) continue;
        if (nd->level == 0) {
            rc = leaf ? leaf(v, nd) : 0;
            continue;
        }
        if (pgs__grow(&todo, &cap, n + nd->n, sizeof *todo)) rc = no_memory(v);
        for (unsigned i = nd->n; rc == 0 && i-- > 0;) todo[n++] = (struct todo){pgs__node_child(nd, i), nd->level - 1};
    }
    pgs__free(todo);
    return rc;
}

/* --- objects -------------------------------------------------------------------------------------------------------------------------------- */

static int add_edges(struct verify *v, struct pgs_run run, int64_t refs, int64_t counted)
{
    if (pgs__grow(&v->edges, &v->cap_edges, v->n_edges + 2, sizeof v->edges[0])) return no_memory(v);
    v->edges[v->n_edges++] = (struct edge){run.page.n, refs, counted};
    v->edges[v->n_edges++] = (struct edge){run.page.n + run.n_pages, -refs, -counted};
    return 0;
}

struct runs_ctx {
    struct verify *v;
    struct pgs_span key;
    uint64_t n_pages;
    bool sound;
};
static int see_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct runs_ctx *c = ctx;
    struct verify *v = c->v;
    bool ok;
    bool cold = pgs__is_cold(run.page.n);
    c->n_pages += run.n_pages;
    int rc = cold ? check_image(v, c->key, run, &ok) : place(v, c->key, run, DATA, &ok);
    c->sound &= ok;
    if (rc == 0 && (birth == 0 || birth > v->l.head.gen))
        rc = problem(v, c->key, "page %llu was born in generation %llu, which is not yet", LLU(at.n), LLU(birth));
    if (rc == 0 && !v->in_history && (cold ? ok : inside(v, run))) rc = add_edges(v, run, 1, 0);
    return rc;
}

static int check_content(struct verify *v, struct pgs_span key, const struct pgs__object *o)
{
    struct runs_ctx c = {.v = v, .key = key, .sound = true};
    struct pgs_error local = {0};
    const struct pgs__content *content = &o->content;
    uint64_t n_unverified = 0;
    if (content->form == PGS__FORM_INLINE) return 0;
    uint64_t errors = v->r.n_errors;
    int rc = walk_tree(v, PGS__TREE_MAP, &content->map, key, MAP, NULL);
    if (rc || v->r.n_errors != errors) return rc; /* what a damaged map says about runs is worth nothing */
    rc = pgs__content_runs(v->pf, content, 0, UINT64_MAX, see_run, &c, &local);
    if (rc == -PGS_ECORRUPT) v->incomplete = true;
    if (rc) return verdict(v, key, rc, &local);
    if (c.n_pages != content->n_stored) {
        rc = problem(v, key, "its record counts %llu pages, its map has %llu", LLU(content->n_stored), LLU(c.n_pages));
        if (rc) return rc;
    }
    if (!c.sound) return 0;
    if (o->kind == PGS_KIND_ARRAY && !v->data) {
        if (!v->in_history) v->r.n_pages_unverified += c.n_pages;
        return 0;
    }
    if (v->data || content->xxh_bytes == content->n_bytes) {
        rc = pgs__content_verify_via(v->pf, content, &v->cache, &n_unverified, &local);
    } else {
        rc = pgs__content_verify_stream_via(v->pf, content, &v->cache, &local);
        n_unverified = c.n_pages - pgs__pages_of(content->xxh_bytes);
    }
    if (!v->in_history) v->r.n_pages_unverified += n_unverified;
    return verdict(v, key, rc, &local);
}

static int check_record(struct verify *v, struct pgs_span key, const struct pgs__object *o)
{
    const struct pgs__record *h = &v->l.meta.hdr;
    struct pgs_error local = {0};
    struct pgs__tree catalog = {.pf = v->pf, .kind = PGS__TREE_CATALOG, .root = v->l.head.catalog};
    int rc = 0;
    if (o->id == 0 || o->id >= h->next_id) rc = problem(v, key, "object number %llu was never given", LLU(o->id));
    if (rc == 0 && o->version > h->version)
        rc = problem(v, key, "it was changed in version %llu, which is not yet", LLU(o->version));
    if (rc == 0 && !v->in_history) {
        if (pgs__name_check(key.p, key.len, &local)) rc = problem(v, key, "malformed name: %s", local.text);
        memset(&local, 0, sizeof local);
        if (rc == 0 && pgs__name_fits(&catalog, key.p, key.len, o->kind, &local) == -PGS_EEXIST)
            rc = problem(v, key, "%s", local.text);
    }
    return rc;
}

static int check_object(struct verify *v, struct pgs_span key, struct pgs_span val)
{
    struct pgs__object o;
    struct pgs_error local = {0};
    bool hidden = key.len && ((const uint8_t *)key.p)[0] == 0; /* not listed, so not counted */
    if (!v->in_history && !hidden) v->r.n_objects++;
    int rc = pgs__object_decode(v->pf, key, val, &o, &local);
    if (rc == -PGS_ECORRUPT) v->incomplete = true;
    if (rc) return verdict(v, key, rc, &local);
    rc = check_record(v, key, &o);
    if (rc == 0 && o.dtype_ext.page) {
        bool ok;
        const void *bytes = pgs__pages_at(v->pf, (struct pgs_pgno){o.dtype_ext.page}, o.dtype_ext_pages);
        rc = place(v, key, (struct pgs_run){{o.dtype_ext.page}, o.dtype_ext_pages}, MAP, &ok);
        if (rc == 0 && (!bytes || pgs__hash(bytes, o.dtype_ext_pages << PGS_PAGE_SHIFT) != o.dtype_ext.xxh))
            rc = problem(v, key, "checksum of its dtype");
    }
    return rc ? rc : check_content(v, key, &o);
}

/* --- catalogs --------------------------------------------------------------------------------------------------------------------------------- */

/* Was this record (the same key, the same bytes) checked already? If not, it counts as checked from now on. */
static int seen_before(struct verify *v, struct pgs_span key, struct pgs_span val, bool *seen)
{
    uint64_t hash = pgs__mix(pgs__hash(key.p, key.len) + 3 * pgs__hash(val.p, val.len)) | 1;
    if (v->n_seen * 2 >= v->cap_seen) {
        size_t cap = v->cap_seen ? v->cap_seen * 2 : 1024;
        uint64_t *table = pgs__calloc(cap, sizeof *table);
        if (!table) return no_memory(v);
        for (size_t i = 0; i < v->cap_seen; i++) {
            size_t k = v->seen[i] & (cap - 1);
            if (!v->seen[i]) continue;
            while (table[k]) k = (k + 1) & (cap - 1);
            table[k] = v->seen[i];
        }
        pgs__free(v->seen);
        v->seen = table;
        v->cap_seen = cap;
    }
    size_t k = hash & (v->cap_seen - 1);
    while (v->seen[k] && v->seen[k] != hash) k = (k + 1) & (v->cap_seen - 1);
    *seen = v->seen[k] == hash;
    v->n_seen += !*seen;
    v->seen[k] = hash;
    return 0;
}

static int see_leaf(struct verify *v, const struct pgs__node *leaf)
{
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < leaf->n; i++) {
        struct pgs_span key = pgs__node_key(leaf, i), val = pgs__node_val(leaf, i);
        bool seen = false;
        rc = seen_before(v, key, val, &seen);
        if (rc == 0 && !(seen && v->in_history)) rc = check_object(v, key, val);
    }
    return rc;
}

static int check_head(struct verify *v)
{
    struct pgs_error local = {0};
    struct pgs__tree catalog = {.pf = v->pf, .kind = PGS__TREE_CATALOG, .root = v->l.head.catalog};
    struct pgs_span name = NAMED("the catalog");
    uint64_t errors = v->r.n_errors;
    if (!pgs__ptr_eq(&v->l.head.catalog, &v->l.meta.hdr.catalog)) {
        int rc = problem(v, name, "the record names another root than the head");
        if (rc) return rc;
    }
    int rc = walk_tree(v, PGS__TREE_CATALOG, &v->l.head.catalog, name, NODE, see_leaf);
    if (rc || v->incomplete || v->r.n_errors != errors) return rc;
    rc = pgs__tree_check(&catalog, &local);
    if (rc) return verdict(v, name, rc, &local);
    if (v->r.n_objects != v->l.head.n_objects || v->r.n_objects != v->l.meta.hdr.n_objects)
        return problem(v, name, "it has %llu objects, the head counts %llu, the record %llu", LLU(v->r.n_objects),
                       LLU(v->l.head.n_objects), LLU(v->l.meta.hdr.n_objects));
    return 0;
}

struct chain_list {
    struct pgs__chain *v;
    size_t n, cap;
};
static int add_chain(void *ctx, pgs_gen_t gen, const struct pgs__chain *c)
{
    struct chain_list *list = ctx;
    (void)gen;
    if (c->flags & PGS__CHAIN_EXPIRED) return 0; /* may be half dropped */
    if (pgs__grow(&list->v, &list->cap, list->n + 1, sizeof list->v[0])) return -PGS_ENOMEM;
    list->v[list->n++] = *c;
    return 0;
}

static int check_history(struct verify *v)
{
    struct chain_list list = {0};
    struct pgs_error local = {0};
    int rc = pgs__ledger_chain_walk(&v->l, add_chain, &list, &local);
    if (rc == -PGS_ENOMEM)
        rc = no_memory(v);
    else if (rc)
        rc = verdict(v, NAMED("the ledger"), rc, &local);
    v->in_history = true;
    for (size_t i = list.n; rc == 0 && i-- > 0;) {
        v->history = list.v[i].version;
        rc = walk_tree(v, PGS__TREE_CATALOG, &list.v[i].catalog, NAMED("the catalog"), NODE, see_leaf);
    }
    v->in_history = false;
    v->r.n_versions = list.n + 1;
    pgs__free(list.v);
    return rc;
}

/* --- the ledger and its pages ------------------------------------------------------------------------------------------------------------------ */

static int see_listed(void *ctx, struct pgs_run run, enum pgs__page_state state)
{
    struct verify *v = ctx;
    bool ok;
    if (pgs__is_cold(run.page.n)) {
        uint64_t slot = pgs__cold_slot(run.page.n);
        const char *bad = pgs__seen_run(&v->blocks, run, PGS__SEEN_DEAD, &slot);
        return bad ? problem(v, NAMED("the ledger"), "compressed block %llu %s", LLU(slot), bad) : 0;
    }
    return mark(ctx, NAMED("the ledger"), run, (uint8_t)state, &ok);
}

static int see_shared(void *ctx, struct pgs_run run, uint64_t count)
{
    return add_edges(ctx, run, 0, (int64_t)pgs__min_u64(count, INT64_MAX));
}

static int see_block(void *ctx, uint64_t slot, const struct pgs__cold_block *b, struct pgs_error *damage)
{
    struct verify *v = ctx;
    (void)damage; /* the ledger's own check says so */
    if (!b) return 0;
    return pgs__seen_add(&v->blocks, slot, b) ? no_memory(v) : 0;
}

/* C1; and with `data` what no object led to, pages of versions that are on their way out. */
static int check_blocks(struct verify *v)
{
    struct pgs_error local = {0};
    struct pgs_span name = NAMED("the ledger");
    uint64_t n_bad = 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < v->blocks.n; i++) {
        struct pgs__seen_block *b = &v->blocks.v[i];
        const char *bad = v->incomplete ? NULL : pgs__seen_count(b);
        v->r.n_errors += bad && n_bad >= MOST_OF_A_KIND;
        if (bad && n_bad++ < MOST_OF_A_KIND)
            rc = problem(v, name, "compressed block %llu %s (%u pages in use, %u dead, %u counted)", LLU(b->slot), bad,
                         (unsigned)__builtin_popcount(b->head), (unsigned)__builtin_popcount(b->dead), b->b.live);
        if (rc || !v->data || b->right || b->wrong) continue;
        memset(&local, 0, sizeof local);
        (void)pgs__cold_page(v->pf, &v->cache, pgs__cold_page_of(b->slot), &rc, &local);
        if (rc) rc = verdict(v, name, rc, &local);
    }
    return rc;
}

static int check_ledger(struct verify *v)
{
    struct pgs_error local = {0};
    struct pgs_span name = NAMED("the ledger");
    const struct pgs__root *head = &v->l.head;
    bool ok;
    int rc = pgs__ledger_cold_walk(&v->l, see_block, v, &local);
    if (rc == -PGS_ECORRUPT) v->incomplete = true;
    if (rc) rc = verdict(v, name, rc, &local);
    if (rc) return rc;
    memset(&local, 0, sizeof local);
    rc = pgs__ledger_check(&v->l, see_listed, see_shared, v, &local);
    if (rc == -PGS_ECORRUPT) v->incomplete = true;
    if (rc) rc = verdict(v, name, rc, &local);
    struct pgs_run record = {{head->record.page}, head->record_pages};
    if (rc == 0) rc = mark(v, name, record, META, &ok);
    const void *bytes = pgs__pages_at(v->pf, record.page, record.n_pages);
    if (rc == 0 && (!bytes || pgs__hash(bytes, record.n_pages << PGS_PAGE_SHIFT) != head->record.xxh))
        rc = problem(v, name, "page %llu: checksum of the newest record", LLU(record.page.n));
    return rc ? rc : walk_tree(v, PGS__TREE_META, &v->l.meta.hdr.meta, name, META, NULL);
}

static int by_page(const void *a, const void *b)
{
    const struct edge *x = a, *y = b;
    return (x->page > y->page) - (x->page < y->page);
}

/* How often the head refers to each page against how often the ledger says so (absent: once). */
static int check_counts(struct verify *v)
{
    int64_t refs = 0, counted = 0;
    uint64_t n_bad = 0;
    int rc = 0;
    if (v->n_edges) qsort(v->edges, v->n_edges, sizeof v->edges[0], by_page);
    for (size_t i = 0; rc == 0 && i < v->n_edges; i++) {
        refs += v->edges[i].refs;
        counted += v->edges[i].counted;
        uint64_t lo = v->edges[i].page, hi = i + 1 < v->n_edges ? v->edges[i + 1].page : lo;
        if (lo == hi || counted == (refs >= 2 ? refs : 0)) continue;
        v->r.n_errors += n_bad >= MOST_OF_A_KIND;
        if (n_bad++ >= MOST_OF_A_KIND) continue;
        rc = problem(v, NAMED("the ledger"),
                     "pages %llu to %llu: the newest version refers to them %lld times, the ledger counts %lld",
                     LLU(lo), LLU(hi - 1), (long long)refs, (long long)counted);
    }
    return rc;
}

static int check_leaks(struct verify *v)
{
    uint64_t n_runs = 0;
    int rc = 0;
    for (uint64_t p = 0, end; rc == 0 && p < v->hw; p = end) {
        for (end = p; end < v->hw && v->state[end] == 0;) end++;
        if (end == p) {
            end++;
            continue;
        }
        v->r.n_leaked_pages += end - p;
        v->r.n_errors += n_runs >= MOST_OF_A_KIND;
        if (n_runs++ >= MOST_OF_A_KIND) continue;
        rc = problem(v, NAMED(""), "pages %llu to %llu are leaked: nothing refers to them, no list has them", LLU(p),
                     LLU(end - 1));
    }
    return rc;
}

static int check_supers(struct verify *v)
{
    struct pgs_error local = {0};
    struct pgs__super *super = pgs__malloc(sizeof *super);
    struct pgs_span name = NAMED("the superblock");
    if (!super) return no_memory(v);
    int rc = pgs__super_read(v->pf, super, false, &local);
    pgs__free(super);
    if (rc) return rc == -PGS_ENOMEM ? rc : problem(v, name, "%s", local.text);
    return v->pf->super_bad ? problem(v, name, "one of the two copies is damaged") : 0;
}

static int verify_all(struct verify *v)
{
    int rc = check_supers(v);
    if (rc == 0) rc = check_ledger(v);
    if (rc == 0) rc = check_head(v);
    if (rc == 0) rc = check_history(v);
    if (rc == 0) rc = check_blocks(v);
    /* what hangs below damage cannot be told from leaks */
    if (rc == 0 && !v->incomplete) rc = check_counts(v);
    if (rc == 0 && !v->incomplete) rc = check_leaks(v);
    return rc;
}

int pgs__verify(struct pgs__session *s, bool data, pgs__problem_fn fn, void *ctx, struct pgs_check_report *report,
                struct pgs_error *err)
{
    struct verify v = {.s = s, .pf = &s->pf, .data = data, .fn = fn, .ctx = ctx, .err = err};
    struct pgs_error local = {0};
    int rc = pgs__meta_begin(s, &v.l, &local);
    if (rc) { /* the record itself */
        rc = verdict(&v, NAMED("the ledger"), rc, &local);
        if (rc == 0 && report) *report = v.r;
        return rc;
    }
    v.hw = v.l.meta.hdr.hw_pages;
    v.blocks.pf = v.pf;
    v.cache = (struct pgs__cold_cache){.ops = &pgs__seen_ops, .ctx = &v.blocks};
    v.r.n_pages = v.hw;
    pgs__pagefile_refresh(v.pf);
    if (v.hw > atomic_load(&v.pf->n_pages)) {
        rc = problem(&v, NAMED("the ledger"), "%llu pages are in use, the file has %llu", LLU(v.hw),
                     LLU(atomic_load(&v.pf->n_pages)));
        v.hw = atomic_load(&v.pf->n_pages);
        v.incomplete = true;
    }
    v.state = pgs__calloc(v.hw ? v.hw : 1, 1); /* untouched parts cost nothing */
    if (rc == 0) rc = v.state ? verify_all(&v) : no_memory(&v);
    pgs__meta_end(s, &v.l);
    pgs__free(v.state);
    pgs__free(v.edges);
    pgs__free(v.seen);
    pgs__cold_cache_free(&v.cache);
    pgs__seen_free(&v.blocks);
    if (rc == 0 && report) *report = v.r;
    return rc;
}
