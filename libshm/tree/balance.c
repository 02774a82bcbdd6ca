/* Pagestone | tree/balance — splits, merges and borrowing inside an edit.
 * SPDX-License-Identifier: Apache-2.0
 *
 * All of them work the same way: copy the nodes to scratch, list their entries, cut the list at the best place, rebuild the images. The
 * hot case, an entry that fits, never comes here further than the first test. docs/design/tree.md proves that a cut exists and what
 * fill it leaves.
 */
#include "libshm/tree/edit_state.h"

/* Is entry i of step d behind every other entry of the tree? */
static bool at_right_edge(const struct pgs__path *path, int d, const struct pgs__node *nd, unsigned i)
{
    if (i != nd->n) return false;
    while (--d >= 0)
        if (path->step[d].index + 1 != path->step[d].node->n) return false;
    return true;
}

static bool insert_if_fits(struct pgs__node *nd, unsigned i, const struct pgs__item *it)
{
    if (pgs__node_used(nd) + pgs__item_size(it, nd->level) > PGS__NODE_CAP) return false;
    pgs__node_insert(nd, i, it);
    return true;
}

/* Separator of a cut at k, in e->key. */
static struct pgs_span cut_separator(struct pgs__edit *e, unsigned k, int level)
{
    struct pgs_span sep = level ? e->items[k].key : pgs__key_separator(e->items[k - 1].key, e->items[k].key);
    memmove(e->key, sep.p, sep.len);
    return (struct pgs_span){e->key, sep.len};
}

/* Split nd around the item that does not fit before entry i. Appends leave the left node full; an inner node keeps two children at least. */
static struct pgs__item split(struct pgs__edit *e, struct pgs__node *nd, unsigned i, const struct pgs__item *it,
                              bool append, struct pgs_ptr *right)
{
    int level = nd->level;
    e->copy[0] = *nd;
    unsigned n = pgs__node_gather(&e->copy[0], e->items);
    memmove(&e->items[i + 1], &e->items[i], (n - i) * sizeof e->items[0]);
    e->items[i] = *it;
    n++;
    unsigned k = !append ? pgs__items_cut(e->items, n, level) : level ? n - 2 : n - 1;
    *right = pgs__edit_take(e);
    pgs__node_build(nd, (int)e->kind, level, e->items, k);
    pgs__node_build(pgs__edit_image(e, right), (int)e->kind, level, e->items + k, n - k);
    return (struct pgs__item){cut_separator(e, k, level), {right, sizeof *right}};
}

static void grow_root(struct pgs__edit *e, const struct pgs__item *right)
{
    struct pgs_ptr left = e->root;
    int level = pgs__edit_image(e, &left)->level + 1;
    struct pgs__item items[2] = {{{"", 0}, {&left, sizeof left}}, *right};
    PGS_BUG_ON(level >= PGS__TREE_MAX_DEPTH);
    e->root = pgs__edit_take(e);
    pgs__node_build(pgs__edit_image(e, &e->root), (int)e->kind, level, items, 2);
}

bool pgs__edit_insert_at(struct pgs__edit *e, const struct pgs__path *path, int d, unsigned i,
                         const struct pgs__item *it)
{
    struct pgs__item up = *it;
    struct pgs_ptr child[2]; /* two: `up` may point to one while split fills the other */
    int start = d;
    for (;; d--) {
        struct pgs__node *nd = pgs__edit_image(e, &path->step[d].ptr);
        if (insert_if_fits(nd, i, &up)) return d < start;
        up = split(e, nd, i, &up, at_right_edge(path, d, nd, i), &child[d & 1]);
        if (d == 0) break;
        i = path->step[d - 1].index + 1;
    }
    grow_root(e, &up);
    return true;
}

/* --- shrinking --------------------------------------------------------------------------------------------------------------- */

/* Two neighbours and where they hang. */
struct pair {
    unsigned right_index; /* of the right one in the parent; the left one is before it */
    struct pgs_ptr left, right;
    int level;
    unsigned n_items; /* both nodes' entries, in e->items */
};

/* Neither the order of the entries nor the bounds from above are violated: always, unless the tree is damaged and its hashes are right. */
static bool pair_fits(const struct pgs__edit *e, const struct pair *p, struct pgs_span lo, struct pgs_span hi)
{
    const struct pgs__item *first = &e->items[p->level ? 1 : 0], *last = &e->items[p->n_items - 1];
    for (const struct pgs__item *it = first; it < last; it++)
        if (pgs__key_cmp(it[0].key, it[1].key) >= 0) return false;
    return !(lo.p && pgs__key_cmp(first->key, lo) < 0) && !(hi.p && pgs__key_cmp(last->key, hi) >= 0);
}

/* The node at step d + 1 and a neighbour: load both, copy them to scratch and list their entries. */
static int gather_pair(struct pgs__edit *e, const struct pgs__path *path, int d, struct pair *p, struct pgs_error *err)
{
    struct pgs__tree t = {.pf = e->pf, .kind = e->kind, .edit = e};
    const struct pgs__node *left = NULL, *right = NULL, *parent = path->step[d].node;
    unsigned index = path->step[d].index;
    struct pgs_span lo, hi, unused;
    p->right_index = index ? index : 1;
    p->level = parent->level - 1;
    p->left = pgs__node_child(parent, p->right_index - 1);
    p->right = pgs__node_child(parent, p->right_index);
    int rc = pgs__node_load(&t, &p->left, p->level, &left, err);
    if (rc == 0) rc = pgs__node_load(&t, &p->right, p->level, &right, err);
    if (rc) return rc;
    e->copy[0] = *left;
    e->copy[1] = *right;
    unsigned n = pgs__node_gather(&e->copy[0], e->items);
    p->n_items = n + pgs__node_gather(&e->copy[1], e->items + n);
    if (p->level) e->items[n].key = pgs__node_key(parent, p->right_index); /* its own is empty (node.h, I4) */
    pgs__path_bounds(path, d, p->right_index - 1, &lo, &unused);
    pgs__path_bounds(path, d, p->right_index, &unused, &hi);
    return pair_fits(e, p, lo, hi) ? 0 : pgs__path_misfit(index ? &p->left : &p->right, err);
}

static void merge_pair(struct pgs__edit *e, struct pgs__node *parent, const struct pair *p)
{
    struct pgs_ptr keep =
        pgs__ptr_is_dirty(&p->left) ? p->left : p->right; /* one of them is the shrunken node: dirty */
    const struct pgs_ptr *drop = pgs__ptr_is_dirty(&p->left) ? &p->right : &p->left;
    pgs__node_build(pgs__edit_image(e, &keep), (int)e->kind, p->level, e->items, p->n_items);
    pgs__node_set_child(parent, p->right_index - 1, &keep);
    pgs__node_remove(parent, p->right_index);
    pgs__edit_release(e, drop);
}

static struct pgs_ptr own_neighbour(struct pgs__edit *e, struct pgs_ptr ptr)
{
    if (pgs__ptr_is_dirty(&ptr)) return ptr;
    pgs__edit_release(e, &ptr);
    return pgs__edit_take(e);
}

/* Returns true if the parent was split, which ends the rebalancing: above it nodes only grew. */
static bool borrow(struct pgs__edit *e, const struct pgs__path *path, int d_parent, struct pair *p)
{
    struct pgs__node *parent = pgs__edit_image(e, &path->step[d_parent].ptr);
    unsigned k = pgs__items_cut(e->items, p->n_items, p->level);
    p->left = own_neighbour(e, p->left);
    p->right = own_neighbour(e, p->right);
    pgs__node_build(pgs__edit_image(e, &p->left), (int)e->kind, p->level, e->items, k);
    pgs__node_build(pgs__edit_image(e, &p->right), (int)e->kind, p->level, e->items + k, p->n_items - k);
    struct pgs__item sep = {cut_separator(e, k, p->level), {&p->right, sizeof p->right}};
    pgs__node_set_child(parent, p->right_index - 1, &p->left);
    pgs__node_remove(parent, p->right_index);
    return pgs__edit_insert_at(e, path, d_parent, p->right_index, &sep);
}

/* The root may be left with one child, or as a leaf without entries. */
static void collapse_root(struct pgs__edit *e)
{
    struct pgs__node *root = pgs__edit_image(e, &e->root);
    struct pgs_ptr old = e->root;
    if (root->n > pgs__node_first(root)) return;
    e->root = root->level ? pgs__node_child(root, 0) : (struct pgs_ptr){0};
    pgs__edit_release(e, &old);
}

int pgs__edit_rebalance(struct pgs__edit *e, const struct pgs__path *path, struct pgs_error *err)
{
    for (int d = path->depth - 1; d > 0; d--) {
        struct pgs__node *nd = pgs__edit_image(e, &path->step[d].ptr);
        struct pgs__node *parent = pgs__edit_image(e, &path->step[d - 1].ptr);
        unsigned index = path->step[d - 1].index;
        if (nd->n == 0) {
            pgs__node_remove(parent, index);
            pgs__edit_release(e, &path->step[d].ptr);
            continue;
        }
        if (!pgs__node_underfull(nd)) return 0;
        struct pair p;
        int rc = gather_pair(e, path, d - 1, &p, err);
        if (rc) return e->broken = rc;
        if (pgs__items_size(e->items, p.n_items, p.level) <= PGS__NODE_CAP)
            merge_pair(e, parent, &p);
        else if (borrow(e, path, d - 1, &p))
            return 0;
    }
    collapse_root(e);
    return 0;
}
