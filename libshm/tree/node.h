/* Pagestone | tree/node — one node: parsing, searching, and editing of its image in memory.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Knows bytes, not trees. The accessors trust offsets and lengths: call them only on nodes that pgs__node_validate accepted or
 * that this file built (tree.h, I1).
 *
 *   I1  Cells lie without gaps between low and the birth; the bytes between slots and cells are zero.
 *   I2  lcp is a common prefix of all keys (of inner nodes: all but the first), though after removals perhaps not the longest.
 *   I3  Heads belong to lcp: whatever changes lcp renews them.
 *   I4  The first separator of an inner node is the empty key: it stands for "everything below the second".
 */
#ifndef PGS_TREE_NODE_H
#define PGS_TREE_NODE_H

#include "libshm/tree/node_format.h"
#include "libshm/tree/tree.h"

/* Fill below which a node that is not at the right edge merges with or borrows from a neighbour, in bytes of PGS__NODE_CAP. With cells of
 * at most PGS__TREE_MAX_CELL any split point nearest to the middle leaves a quarter on both sides; inner nodes lose a separator of
 * up to PGS__TREE_MAX_KEY bytes to their parent, so they can promise only 900 (docs/design/tree.md, "Split and merge"). */
#define PGS__NODE_MIN_LEAF (PGS__NODE_CAP / 4)
#define PGS__NODE_MIN_INNER 900u

static inline const uint8_t *pgs__node_cell(const struct pgs__node *nd, unsigned i)
{
    return (const uint8_t *)nd + nd->slot[i].off;
}
static inline unsigned pgs__node_cell_head(const struct pgs__node *nd)
{
    return nd->level ? PGS__INNER_CELL_HEAD : PGS__LEAF_CELL_HEAD;
}
/* First entry that has a real key: 1 in inner nodes (I4). */
static inline unsigned pgs__node_first(const struct pgs__node *nd)
{
    return nd->level != 0;
}
static inline struct pgs_span pgs__node_key(const struct pgs__node *nd, unsigned i)
{
    const uint8_t *cell = pgs__node_cell(nd, i);
    return (struct pgs_span){cell + pgs__node_cell_head(nd), pgs__get_u16(cell)};
}
static inline struct pgs_span pgs__node_val(const struct pgs__node *nd, unsigned i) /* leaves */
{
    const uint8_t *cell = pgs__node_cell(nd, i);
    return (struct pgs_span){cell + PGS__LEAF_CELL_HEAD + pgs__get_u16(cell), pgs__get_u16(cell + 2)};
}
static inline struct pgs_ptr pgs__node_child(const struct pgs__node *nd, unsigned i) /* inner nodes */
{
    struct pgs_ptr ptr;
    memcpy(&ptr, pgs__node_cell(nd, i) + 2, sizeof ptr);
    return ptr;
}
static inline void pgs__node_set_child(struct pgs__node *nd, unsigned i, const struct pgs_ptr *ptr)
{
    memcpy((uint8_t *)nd + nd->slot[i].off + 2, ptr, sizeof *ptr);
}
static inline void pgs__node_set_val(struct pgs__node *nd, unsigned i,
                                     struct pgs_span val) /* leaves; of the same length */
{
    uint8_t *cell = (uint8_t *)nd + nd->slot[i].off;
    if (val.len) memcpy(cell + PGS__LEAF_CELL_HEAD + pgs__get_u16(cell), val.p, val.len);
}
/* Bytes in use of PGS__NODE_CAP, slots included. */
static inline unsigned pgs__node_used(const struct pgs__node *nd)
{
    return PGS__NODE_TAIL - nd->low + PGS__NODE_SLOT * nd->n;
}
static inline bool pgs__node_underfull(const struct pgs__node *nd)
{
    return pgs__node_used(nd) < (nd->level ? PGS__NODE_MIN_INNER : PGS__NODE_MIN_LEAF);
}

/* memcmp, then length. */
static inline int pgs__key_cmp(struct pgs_span a, struct pgs_span b)
{
    size_t m = a.len < b.len ? a.len : b.len;
    int c = m ? memcmp(a.p, b.p, m) : 0;
    return c ? c : (a.len > b.len) - (a.len < b.len);
}
static inline bool pgs__span_eq(struct pgs_span a, struct pgs_span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.p, b.p, a.len) == 0);
}
static inline bool pgs__ptr_eq(const struct pgs_ptr *a, const struct pgs_ptr *b)
{
    return a->page == b->page && a->birth == b->birth && a->xxh == b->xxh;
}
size_t pgs__key_lcp(struct pgs_span a, struct pgs_span b);
/* Shortest string above `left` and not above `right`, as a prefix of `right`. It is an error if left >= right. */
struct pgs_span pgs__key_separator(struct pgs_span left, struct pgs_span right);

/* Is this page a node whose every byte may be parsed? 0 yes. Needs no more than the 4,096 bytes; never reads outside. */
int pgs__node_validate(const void *bytes);
/* The same for a node of an edit, whose children may have no page yet. */
int pgs__node_validate_image(const struct pgs__node *nd);
/* Do all keys lie in [lo, hi)? A bound whose p is NULL is infinite. */
bool pgs__node_in_range(const struct pgs__node *nd, struct pgs_span lo, struct pgs_span hi);
/* Lower bound: the first entry with a key >= key (n if none). In inner nodes only entries 1 … n-1 are looked at. */
unsigned pgs__node_search(const struct pgs__node *nd, const void *key, size_t key_len, bool *found);
/* The child whose range holds the key. */
unsigned pgs__node_find_child(const struct pgs__node *nd, const void *key, size_t key_len);

/* --- images in memory ------------------------------------------------------------------------------------------------- */
/* An entry apart from a node. payload: the value in leaves, struct pgs_ptr in inner nodes. */
struct pgs__item {
    struct pgs_span key;
    struct pgs_span payload;
};
static inline unsigned pgs__item_size(const struct pgs__item *it, int level) /* slot included */
{
    return PGS__NODE_SLOT + (unsigned)it->key.len +
           (level ? PGS__INNER_CELL_HEAD : PGS__LEAF_CELL_HEAD + (unsigned)it->payload.len);
}
void pgs__node_init(struct pgs__node *nd, int kind, int level);
/* It is an error if the item does not fit (pgs__node_used + pgs__item_size > PGS__NODE_CAP). */
void pgs__node_insert(struct pgs__node *nd, unsigned i, const struct pgs__item *it);
/* Removing entry 0 of an inner node makes the next one the first: its separator becomes the empty key. */
void pgs__node_remove(struct pgs__node *nd, unsigned i);
/* Spans into nd; returns their number. */
unsigned pgs__node_gather(const struct pgs__node *nd, struct pgs__item *items);
/* Fill nd (level from the caller) with items, which must not point into nd. The first key of an inner node is stored empty. */
void pgs__node_build(struct pgs__node *nd, int kind, int level, const struct pgs__item *items, unsigned n);
unsigned pgs__items_size(const struct pgs__item *items, unsigned n,
                         int level); /* as pgs__node_used of the node built from them */
/* Where to cut items so that both sides fit and the smaller one is as large as possible: [0, k) and [k, n). */
unsigned pgs__items_cut(const struct pgs__item *items, unsigned n, int level);
/* The longest lcp (I2). */
void pgs__node_tighten(struct pgs__node *nd);

/* --- trees, inside this folder ------------------------------------------------------------------------------------------ */
/* Nodes of an edit have no page yet: their pointers carry this bit and their number in the edit. */
#define PGS__DIRTY_BIT (1ull << 63)
static inline bool pgs__ptr_is_dirty(const struct pgs_ptr *ptr)
{
    return (ptr->page & PGS__DIRTY_BIT) != 0;
}
struct pgs_ptr pgs__edit_root(const struct pgs__edit *e);
/* NULL: no such node. */
const struct pgs__node *pgs__edit_node(const struct pgs__edit *e, const struct pgs_ptr *ptr);
static inline struct pgs_ptr pgs__tree_root(const struct pgs__tree *t)
{
    return t->edit ? pgs__edit_root(t->edit) : t->root;
}
/* Verify and return a node. level: what the parent promises; -1 for a root. */
int pgs__node_load(const struct pgs__tree *t, const struct pgs_ptr *ptr, int level, const struct pgs__node **out,
                   struct pgs_error *err);

#endif
