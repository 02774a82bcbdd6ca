/* Pagestone | tree/check — visiting every node of a tree, and checking all that a tree promises.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Both carry the range of keys that the ancestors allow for a node. Ranges of different children do not overlap and no node is
 * without keys, so a damaged tree whose pointers meet again cannot make the walk longer than the pages of the file.
 */
#include "libshm/platform/hash.h"
#include "libshm/tree/node.h"

/* What is known about a node that is being visited. */
struct visit {
    const struct pgs__node *node;
    struct pgs_ptr ptr;
    struct pgs_span lo, hi; /* keys lie in [lo, hi); p NULL: no bound */
    unsigned index;         /* next child to visit */
};

struct walk {
    const struct pgs__tree *t;
    int (*fn)(struct walk *w, const struct visit *v, int depth, struct pgs_error *err);
    pgs__bad_node_fn fn_bad;
    pgs__node_fn user_fn;
    void *ctx;
    struct visit stack[PGS__TREE_MAX_DEPTH];
};

/* Load and look at the node; *ok = false: damaged, reported, not to be entered. */
static int enter(struct walk *w, int depth, int level, bool *ok, struct pgs_error *err)
{
    struct visit *v = &w->stack[depth];
    struct pgs_error local = {0};
    int rc = pgs__node_load(w->t, &v->ptr, level, &v->node, &local);
    if (rc == 0 && !pgs__node_in_range(v->node, v->lo, v->hi))
        rc = pgs__fail_corrupt(&local, "", "page %llu: keys of a node lie outside of what its parent says",
                               (unsigned long long)v->ptr.page);
    *ok = rc == 0;
    if (rc == 0) return w->fn(w, v, depth, err);
    if (rc == -PGS_ECORRUPT && w->fn_bad) return w->fn_bad(w->ctx, &v->ptr, local.text);
    if (err && err->code == 0) *err = local;
    return rc;
}

static void set_child(struct walk *w, int depth)
{
    struct visit *v = &w->stack[depth], *child = v + 1;
    unsigned i = v->index++;
    child->ptr = pgs__node_child(v->node, i);
    child->lo = i > 0 ? pgs__node_key(v->node, i) : v->lo;
    child->hi = i + 1 < v->node->n ? pgs__node_key(v->node, i + 1) : v->hi;
    child->index = 0;
}

static int walk_run(struct walk *w, struct pgs_error *err)
{
    bool ok;
    memset(&w->stack[0], 0, sizeof w->stack[0]);
    w->stack[0].ptr = pgs__tree_root(w->t);
    if (w->stack[0].ptr.page == 0) return 0;
    int rc = enter(w, 0, -1, &ok, err), depth = ok ? 1 : 0;
    while (rc == 0 && depth > 0) {
        struct visit *v = &w->stack[depth - 1];
        if (v->node->level == 0 || v->index == v->node->n) {
            depth--;
            continue;
        }
        set_child(w, depth - 1);
        rc = enter(w, depth, v->node->level - 1, &ok, err);
        if (ok) depth++; /* levels fall by one: within PGS__TREE_MAX_DEPTH */
    }
    return rc;
}

static int visit_user(struct walk *w, const struct visit *v, int depth, struct pgs_error *err)
{
    (void)depth;
    (void)err;
    return w->user_fn ? w->user_fn(w->ctx, &v->ptr, v->node->level) : 0;
}

int pgs__tree_walk(const struct pgs__tree *t, pgs__node_fn fn, pgs__bad_node_fn fn_bad, void *ctx,
                   struct pgs_error *err)
{
    struct walk w = {.t = t, .fn = visit_user, .fn_bad = fn_bad, .user_fn = fn, .ctx = ctx};
    return walk_run(&w, err);
}

static bool gap_is_zero(const struct pgs__node *nd)
{
    const uint8_t *p = (const uint8_t *)nd;
    for (unsigned i = PGS__NODE_HEAD + PGS__NODE_SLOT * nd->n; i < nd->low; i++)
        if (p[i]) return false;
    return true;
}

static int bad(const struct visit *v, const char *why, struct pgs_error *err)
{
    return pgs__fail_corrupt(err, "", "page %llu: %s", (unsigned long long)v->ptr.page, why);
}

/* The right edge may be less than a quarter full: appends leave the nodes behind them full instead. */
static int visit_check(struct walk *w, const struct visit *v, int depth, struct pgs_error *err)
{
    (void)w;
    bool exempt = depth == 0 || !v->hi.p;
    bool image = pgs__ptr_is_dirty(&v->ptr);
    if (image ? pgs__node_validate_image(v->node) : pgs__node_validate(v->node))
        return bad(v, "structure of a node", err);
    if (!gap_is_zero(v->node)) return bad(v, "bytes in the unused part of a node", err);
    if (!exempt && pgs__node_underfull(v->node)) return bad(v, "a node is less than a quarter full", err);
    if (image) return 0;
    if (v->node->birth != v->ptr.birth) return bad(v, "birth of a node and of its pointer differ", err);
    return pgs__hash_page(v->node) == v->ptr.xxh ? 0 : bad(v, "checksum of a node", err);
}

int pgs__tree_check(const struct pgs__tree *t, struct pgs_error *err)
{
    struct walk w = {.t = t, .fn = visit_check};
    return walk_run(&w, err);
}
