/* Pagestone | tree/edit_state — the inside of an edit, shared by edit.c and balance.c.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A dirty node is a heap image in `node[]`; its pointer is PGS__DIRTY_BIT | index, in the parent's image as in any other. So moving cells
 * between images carries the children along, and cursors and lookups follow such pointers like others.
 *
 *   I1  Everything that can fail for want of memory is reserved (edit_reserve) before the first change of an operation: what then follows
 *       fails only when a neighbour's page is damaged; then `broken` is set and the edit can only be freed.
 *   I2  A committed node on the path of a change is copied once and listed in `dead`; its pointer is then nowhere in the edit.
 *   I3  Every node on a path, and every neighbour that is merged or borrowed from, has its keys within the bounds that its ancestors
 *       set; checked when it is loaded. So separators made from it fit where they go, also in a damaged tree with right hashes.
 *   I4  Scratch (`copy`, `items`, `key`) is valid within one step at one level.
 *   I5  The finger is the way to the leaf that was changed last. It is good while that leaf's place in the tree stands still: every node on it is an image,
 *       and no split, merge or collapse happened since; whatever may do that begins by letting it go.
 */
#ifndef PGS_TREE_EDIT_STATE_H
#define PGS_TREE_EDIT_STATE_H

#include "libshm/tree/node.h"

struct pgs__spare {
    struct pgs__spare *next;
};

/* The way from the root to a leaf. */
struct pgs__path {
    int depth;
    struct {
        struct pgs_ptr ptr;
        const struct pgs__node *node;
        unsigned index; /* of the child, or of the entry in the leaf */
    } step[PGS__TREE_MAX_DEPTH];
};

struct pgs__edit {
    struct pgs__pagefile *pf;
    enum pgs__tree_kind kind;
    bool changed;
    bool spent;
    int broken; /* -PGS_E… that left an operation half done */
    struct pgs_ptr root;
    struct pgs__node **node; /* by number; NULL: released. Numbers are not reused */
    size_t n_node, cap_node;
    uint64_t n_dirty;
    struct pgs__spare *spare; /* images ready for use */
    size_t n_spare;
    struct pgs_ptr *dead;
    size_t n_dead, cap_dead;
    bool has_finger;
    struct pgs_span finger_lo, finger_hi; /* what ancestors allow in its leaf; in their images */
    /* from here on scratch: undefined in a new edit */
    struct pgs__path finger;
    struct pgs__node copy[2]; /* of nodes that are rebuilt from their items */
    struct pgs__item items[2 * PGS__NODE_MAX_LEAF_ENTRIES + 2];
    uint8_t key[PGS__TREE_MAX_KEY]; /* a separator on its way up */
    uint8_t cell
        [PGS__TREE_MAX_CELL]; /* key and value of the operation: the caller's may lie in a node that is about to move */
};

/* --- edit.c --- */
/* The range of keys that ancestors allow below entry `index` of step d. */
void pgs__path_bounds(const struct pgs__path *path, int d, unsigned index, struct pgs_span *lo, struct pgs_span *hi);
int pgs__path_misfit(const struct pgs_ptr *ptr, struct pgs_error *err); /* -PGS_ECORRUPT: keys outside of them */
struct pgs__node *pgs__edit_image(struct pgs__edit *e, const struct pgs_ptr *ptr);
/* An image with undefined bytes. It is an error if none was reserved. */
struct pgs_ptr pgs__edit_take(struct pgs__edit *e);
/* The node is no longer part of the tree: back to the spares, or dead. */
void pgs__edit_release(struct pgs__edit *e, const struct pgs_ptr *ptr);

/* --- balance.c --- */
/* Insert into the node at step d, before entry i, splitting upwards as needed. it->key and it->payload must not lie in an image.
 * Returns true if the node at step d was split. */
bool pgs__edit_insert_at(struct pgs__edit *e, const struct pgs__path *path, int d, unsigned i,
                         const struct pgs__item *it);
/* After the leaf of an owned path shrank: merge, borrow, collapse. */
int pgs__edit_rebalance(struct pgs__edit *e, const struct pgs__path *path, struct pgs_error *err);

#endif
