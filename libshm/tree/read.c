/* Pagestone | tree/read — point lookups and cursors.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Nothing here allocates or locks. Every step down checks kind and level, which bounds the depth; every step of a cursor to another
 * leaf checks that keys still ascend, which bounds the walk: a damaged tree whose pointers meet again in one leaf (hashes may have
 * been made to fit) is reported when that leaf comes round a second time.
 */
#include "libshm/tree/node.h"

#ifdef PGS_TESTING
static _Atomic uint64_t n_visits;
uint64_t pgs__tree_n_visits(void)
{
    return atomic_load_explicit(&n_visits, memory_order_relaxed); /* a statistic: orders nothing */
}
#define COUNT_VISIT() ((void)atomic_fetch_add_explicit(&n_visits, 1, memory_order_relaxed)) /* as above */
#else
#define COUNT_VISIT() ((void)0)
#endif

static __attribute__((noinline, cold)) int wrong_node(const struct pgs__tree *t, const struct pgs_ptr *ptr, int level,
                                                      const struct pgs__node *nd, struct pgs_error *err)
{
    if (!nd)
        return pgs__fail_corrupt(err, "", "page %llu: pointer to a node that no file holds",
                                 (unsigned long long)ptr->page);
    return pgs__fail_corrupt(err, "", "page %llu: node of kind %u level %u where kind %d level %d belongs",
                             (unsigned long long)ptr->page, nd->kind, nd->level, (int)t->kind, level);
}

int pgs__node_load(const struct pgs__tree *t, const struct pgs_ptr *ptr, int level, const struct pgs__node **out,
                   struct pgs_error *err)
{
    const void *bytes = NULL;
    COUNT_VISIT();
    if (PGS_UNLIKELY(pgs__ptr_is_dirty(ptr))) {
        bytes = t->edit ? pgs__edit_node(t->edit, ptr) : NULL;
        if (!bytes) return wrong_node(t, ptr, level, NULL, err);
    } else {
        int rc = pgs__page_verified(t->pf, ptr, 1, "node", pgs__node_validate, &bytes, err);
        if (PGS_UNLIKELY(rc)) return rc;
    }
    const struct pgs__node *nd = bytes;
    bool fits = nd->magic == PGS__NODE_MAGIC && nd->kind == (uint8_t)t->kind &&
                (level < 0 ? nd->level < PGS__TREE_MAX_DEPTH : nd->level == level);
    if (PGS_UNLIKELY(!fits)) return wrong_node(t, ptr, level, nd, err);
    *out = nd;
    return 0;
}

int pgs__tree_get(const struct pgs__tree *t, const void *key, size_t key_len, struct pgs_span *val,
                  struct pgs_error *err)
{
    struct pgs_ptr ptr = pgs__tree_root(t);
    const struct pgs__node *nd;
    if (ptr.page == 0) return -PGS_ENOENT;
    for (int level = -1;; level = nd->level - 1) {
        int rc = pgs__node_load(t, &ptr, level, &nd, err);
        if (rc) return rc;
        if (nd->level == 0) break;
        ptr = pgs__node_child(nd, pgs__node_find_child(nd, key, key_len));
    }
    bool found;
    unsigned i = pgs__node_search(nd, key, key_len, &found);
    if (!found) return -PGS_ENOENT;
    *val = pgs__node_val(nd, i);
    return 0;
}

/* --- cursors ------------------------------------------------------------------------------------------------------------ */

static int push(struct pgs__cursor *c, const struct pgs_ptr *ptr, int level, struct pgs_error *err)
{
    const struct pgs__node *nd = NULL;
    int rc = pgs__node_load(&c->t, ptr, level, &nd, err);
    if (rc) return rc;
    c->stack[c->depth].node = nd; /* levels fall by one: depth stays within PGS__TREE_MAX_DEPTH */
    c->stack[c->depth].index = 0;
    c->depth++;
    return 0;
}

/* Down to the first or last entry of the subtree that the top's index names. */
static int descend_edge(struct pgs__cursor *c, bool last, struct pgs_error *err)
{
    for (;;) {
        const struct pgs__node *nd = c->stack[c->depth - 1].node;
        if (nd->level == 0) return 0;
        struct pgs_ptr child = pgs__node_child(nd, c->stack[c->depth - 1].index);
        int rc = push(c, &child, nd->level - 1, err);
        if (rc) return rc;
        if (last) c->stack[c->depth - 1].index = ((const struct pgs__node *)c->stack[c->depth - 1].node)->n - 1u;
    }
}

/* From a leaf to the nearest entry of the next or previous one. */
static int step_leaf(struct pgs__cursor *c, bool forward, struct pgs_error *err)
{
    const struct pgs__node *from = c->stack[c->depth - 1].node, *to;
    for (c->depth--; c->depth > 0; c->depth--) {
        const struct pgs__node *nd = c->stack[c->depth - 1].node;
        uint32_t *index = &c->stack[c->depth - 1].index;
        if (forward ? *index + 1 < nd->n : *index > 0) {
            *index += forward ? 1u : UINT32_MAX;
            break;
        }
    }
    if (c->depth == 0) return -PGS_ENOENT;
    int rc = descend_edge(c, !forward, err);
    if (rc) return rc;
    to = c->stack[c->depth - 1].node;
    int order = forward ? pgs__key_cmp(pgs__node_key(from, from->n - 1u), pgs__node_key(to, 0))
                        : pgs__key_cmp(pgs__node_key(to, to->n - 1u), pgs__node_key(from, 0));
    return order < 0 ? 0 : pgs__fail_corrupt(err, "", "keys of two neighbouring leaves do not ascend");
}

/* Whatever ends a walk also empties the cursor. */
static int settle(struct pgs__cursor *c, int rc)
{
    if (rc) c->depth = 0;
    return rc;
}

static int seek_edge(struct pgs__cursor *c, bool last, struct pgs_error *err)
{
    const struct pgs__node *nd = c->stack[0].node;
    c->stack[0].index = last ? nd->n - 1u : 0;
    return descend_edge(c, last, err);
}

static int seek_key(struct pgs__cursor *c, enum pgs__seek how, const void *key, size_t key_len, struct pgs_error *err)
{
    const struct pgs__node *nd = c->stack[0].node;
    while (nd->level) {
        unsigned i = pgs__node_find_child(nd, key, key_len);
        struct pgs_ptr child = pgs__node_child(nd, i);
        c->stack[c->depth - 1].index = i;
        int rc = push(c, &child, nd->level - 1, err);
        if (rc) return rc;
        nd = c->stack[c->depth - 1].node;
    }
    bool found;
    uint32_t *index = &c->stack[c->depth - 1].index, i = pgs__node_search(nd, key, key_len, &found);
    if (how == PGS__SEEK_GE || how == PGS__SEEK_GT) {
        *index = i + (found && how == PGS__SEEK_GT);
        return *index < nd->n ? 0 : step_leaf(c, true, err);
    }
    if (!(found && how == PGS__SEEK_LE)) {
        if (i == 0) return step_leaf(c, false, err);
        i--;
    }
    *index = i;
    return 0;
}

int pgs__cursor_seek(struct pgs__cursor *c, const struct pgs__tree *t, enum pgs__seek how, const void *key,
                     size_t key_len, struct pgs_error *err)
{
    c->t = *t;
    c->depth = 0;
    struct pgs_ptr root = pgs__tree_root(t);
    if (root.page == 0) return -PGS_ENOENT;
    int rc = push(c, &root, -1, err);
    if (rc) return rc;
    if (how == PGS__SEEK_FIRST || how == PGS__SEEK_LAST) return settle(c, seek_edge(c, how == PGS__SEEK_LAST, err));
    return settle(c, seek_key(c, how, key, key_len, err));
}

int pgs__cursor_next(struct pgs__cursor *c, struct pgs_error *err)
{
    if (c->depth == 0) return -PGS_ENOENT;
    const struct pgs__node *nd = c->stack[c->depth - 1].node;
    uint32_t *index = &c->stack[c->depth - 1].index;
    if (PGS_LIKELY(*index + 1 < nd->n)) {
        ++*index;
        return 0;
    }
    return settle(c, step_leaf(c, true, err));
}

int pgs__cursor_prev(struct pgs__cursor *c, struct pgs_error *err)
{
    if (c->depth == 0) return -PGS_ENOENT;
    uint32_t *index = &c->stack[c->depth - 1].index;
    if (PGS_LIKELY(*index > 0)) {
        --*index;
        return 0;
    }
    return settle(c, step_leaf(c, false, err));
}

void pgs__cursor_entry(const struct pgs__cursor *c, struct pgs_span *key, struct pgs_span *val)
{
    PGS_BUG_ON(c->depth == 0);
    const struct pgs__node *nd = c->stack[c->depth - 1].node;
    uint32_t i = c->stack[c->depth - 1].index;
    if (key) *key = pgs__node_key(nd, i);
    if (val) *val = pgs__node_val(nd, i);
}
