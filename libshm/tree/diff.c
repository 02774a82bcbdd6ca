/* Pagestone | tree/diff — what differs between two trees, reading little more than what differs.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two sides walk in key order. The current *item* of a side is an entry of a leaf or a subtree that was not opened yet, and covers a range of keys
 * [lo, hi); everything before it has been dealt with. One step, by the first rule that fits:
 *
 *   1  both items are the same subtree: skip both, unread
 *   2  one item is a subtree that the other side has opened but not consumed anything of: the other side closes it; then rule 1
 *   3  one item ends before the other begins: it exists on its side only: report it (entry) or open it (subtree)
 *   4  both are entries of one key: compare the values
 *   5  both overlap: open the one of the higher level
 *
 * A node is opened only if the other tree has no node with that pointer, or beside a place where a separator moved, which itself
 * means a changed node: O(changed nodes) in all. Levels fall with every opening, and a leaf's keys must lie behind the last one
 * consumed, so that damage cannot make the walk endless.
 */
#include "libshm/tree/node.h"

struct side {
    const struct pgs__tree *t;
    bool done;
    int depth; /* opened nodes; 0: the item is the whole tree */
    struct {
        const struct pgs__node *node;
        struct pgs_ptr ptr;
        unsigned index;
    } s[PGS__TREE_MAX_DEPTH];
    struct pgs_ptr root;
    int root_level;
    struct pgs_span last; /* the last key consumed; p NULL: none yet */
};

static const struct pgs__node *top(const struct side *x)
{
    return x->depth ? x->s[x->depth - 1].node : NULL;
}
/* 0: an entry; l + 1: a subtree whose root has level l. */
static int item_height(const struct side *x)
{
    return x->depth ? top(x)->level : x->root_level + 1;
}
static struct pgs_ptr item_ptr(const struct side *x)
{
    return x->depth ? pgs__node_child(top(x), x->s[x->depth - 1].index) : x->root;
}
static struct pgs_span item_lo(const struct side *x)
{
    for (int d = x->depth - 1; d >= 0; d--)
        if (x->s[d].index > 0 || x->s[d].node->level == 0) return pgs__node_key(x->s[d].node, x->s[d].index);
    return (struct pgs_span){NULL, 0};
}
static struct pgs_span item_hi(const struct side *x) /* of subtrees */
{
    for (int d = x->depth - 1; d >= 0; d--)
        if (x->s[d].index + 1 < x->s[d].node->n) return pgs__node_key(x->s[d].node, x->s[d].index + 1);
    return (struct pgs_span){NULL, 0};
}

static int side_start(struct side *x, const struct pgs__tree *t, struct pgs_error *err)
{
    memset(x, 0, sizeof *x);
    x->t = t;
    x->root = pgs__tree_root(t);
    x->done = x->root.page == 0;
    if (x->done) return 0;
    const struct pgs__node *nd = NULL;
    int rc = pgs__node_load(t, &x->root, -1, &nd, err);
    if (rc == 0) x->root_level = nd->level;
    return rc;
}

/* Past the item. */
static void consume(struct side *x)
{
    for (; x->depth > 0; x->depth--)
        if (++x->s[x->depth - 1].index < top(x)->n) return;
    x->done = true;
}

static int open_item(struct side *x, struct pgs_error *err)
{
    struct pgs_ptr ptr = item_ptr(x);
    const struct pgs__node *nd = NULL;
    int rc = pgs__node_load(x->t, &ptr, item_height(x) - 1, &nd, err);
    if (rc) return rc;
    if (nd->level == 0 && x->last.p && pgs__key_cmp(x->last, pgs__node_key(nd, 0)) >= 0)
        return pgs__fail_corrupt(err, "", "page %llu: keys of two neighbouring leaves do not ascend",
                                 (unsigned long long)ptr.page);
    x->s[x->depth].node = nd; /* levels fall by one: depth stays within PGS__TREE_MAX_DEPTH */
    x->s[x->depth].ptr = ptr;
    x->s[x->depth].index = 0;
    x->depth++;
    return 0;
}

static bool same_node(const struct pgs_ptr *a, const struct pgs_ptr *b)
{
    return !pgs__ptr_is_dirty(a) && pgs__ptr_eq(a, b); /* nodes of two edits may carry the same number */
}

/* Rule 2: if x stands at the very beginning of an opened node `ptr`, close it. */
static bool close_again(struct side *x, const struct pgs_ptr *ptr)
{
    for (int d = x->depth - 1; d >= 0 && x->s[d].index == 0; d--)
        if (same_node(&x->s[d].ptr, ptr)) {
            x->depth = d;
            return true;
        }
    return false;
}

/* Rules 1 and 2. */
static bool skip_shared(struct side *a, struct side *b)
{
    int ha = item_height(a), hb = item_height(b);
    struct pgs_ptr pa = {0}, pb = {0};
    if (ha) pa = item_ptr(a);
    if (hb) pb = item_ptr(b);
    bool shared = ha && hb && ha == hb && same_node(&pa, &pb);
    if (!shared && ha > hb) shared = close_again(b, &pa);
    if (!shared && hb > ha) shared = close_again(a, &pb);
    if (!shared) return false;
    consume(a);
    consume(b);
    return true;
}

/* Rule 3: does x's item end before y's begins? */
static bool is_before(const struct side *x, const struct side *y)
{
    if (y->done) return true;
    struct pgs_span lo = item_lo(y);
    if (!lo.p) return false;
    if (item_height(x) == 0) return pgs__key_cmp(item_lo(x), lo) < 0;
    struct pgs_span hi = item_hi(x);
    return hi.p && pgs__key_cmp(hi, lo) <= 0;
}

static struct pgs_span take_val(struct side *x)
{
    struct pgs_span val = pgs__node_val(top(x), x->s[x->depth - 1].index);
    x->last = item_lo(x);
    consume(x);
    return val;
}

/* x's item exists on its side only. */
static int step_alone(struct side *x, bool is_a, pgs__diff_fn fn, void *ctx, struct pgs_error *err)
{
    if (item_height(x)) return open_item(x, err);
    struct pgs_span none = {NULL, 0}, val = take_val(x);
    return is_a ? fn(ctx, x->last, val, none) : fn(ctx, x->last, none, val);
}

static int step(struct side *a, struct side *b, pgs__diff_fn fn, void *ctx, struct pgs_error *err)
{
    if (!a->done && !b->done && skip_shared(a, b)) return 0;
    if (!a->done && is_before(a, b)) return step_alone(a, true, fn, ctx, err);
    if (!b->done && is_before(b, a)) return step_alone(b, false, fn, ctx, err);
    int ha = item_height(a), hb = item_height(b);
    if (ha || hb) return open_item(ha >= hb ? a : b, err);
    struct pgs_span va = take_val(a), vb = take_val(b);
    return pgs__span_eq(va, vb) ? 0 : fn(ctx, a->last, va, vb);
}

int pgs__tree_diff(const struct pgs__tree *a, const struct pgs__tree *b, pgs__diff_fn fn, void *ctx,
                   struct pgs_error *err)
{
    struct pgs_ptr ra = pgs__tree_root(a), rb = pgs__tree_root(b);
    struct side x, y;
    if (same_node(&ra, &rb)) return 0;
    int rc = side_start(&x, a, err);
    if (rc == 0) rc = side_start(&y, b, err);
    while (rc == 0 && !(x.done && y.done)) rc = step(&x, &y, fn, ctx, err);
    return rc;
}
