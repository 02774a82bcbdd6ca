/* Pagestone | tree/tree — copy-on-write B+trees whose nodes are pages.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A tree is a struct pgs_ptr (page 0 = empty). Keys and values are byte strings; keys compare with memcmp, then length. Committed trees are immutable:
 * readers need no lock, only a pinned generation. A writer opens an *edit*, which copies the nodes it changes into memory, and writes them
 * out in one go when their number is known.
 *
 *   I1  A node is verified (bounds, hash, then structure) before it is parsed; nothing read from the file is trusted or asserted.
 *   I2  Committed nodes are never changed; an edit's nodes have no page number until pgs__edit_finish.
 *   I3  Depth ≤ PGS__TREE_MAX_DEPTH, every loop is bounded by a node's size or the depth, no recursion over file data.
 *   I4  Every node except the root and those at the right edge (which appends leave behind) is at least a quarter full; inner nodes at least
 *       900 bytes (docs/design/tree.md, "Split and merge").
 *   I5  birth of a pointer ≥ birth of … is NOT promised: births are lower bounds. Diff prunes by pointer equality only.
 */
#ifndef PGS_TREE_TREE_H
#define PGS_TREE_TREE_H

#include "libshm/pages/pagefile.h"

#define PGS__TREE_MAX_DEPTH 16
#define PGS__TREE_MAX_KEY 1100u  /* names have ≤ 1,024 bytes; prefixes add a few */
#define PGS__TREE_MAX_CELL 1900u /* key + value: two always fit into a node */

/* Tree kinds: in every node, so that a node of another tree at this place is damage, not data. */
enum pgs__tree_kind { PGS__TREE_CATALOG = 1, PGS__TREE_META = 2, PGS__TREE_MAP = 3, PGS__TREE_TEST = 9 };

struct pgs__edit;

/* A tree to read: a committed root, or an edit in progress (edit != NULL: root is ignored). */
struct pgs__tree {
    struct pgs__pagefile *pf;
    enum pgs__tree_kind kind;
    struct pgs_ptr root;
    struct pgs__edit *edit;
};

/* Point lookup. 0 and *val (valid while the generation is pinned, or until the edit changes), or -PGS_ENOENT (err untouched), -PGS_ECORRUPT. */
int pgs__tree_get(const struct pgs__tree *t, const void *key, size_t key_len, struct pgs_span *val,
                  struct pgs_error *err);

/* Cursors: plain structs, nothing to free. Any change of the edit invalidates them. */
struct pgs__cursor {
    struct pgs__tree t;
    int depth; /* levels in use; 0: before the first or after the last entry */
    struct {
        const void *node;
        uint32_t index;
    } stack[PGS__TREE_MAX_DEPTH];
};
enum pgs__seek { PGS__SEEK_GE, PGS__SEEK_GT, PGS__SEEK_LE, PGS__SEEK_LT, PGS__SEEK_FIRST, PGS__SEEK_LAST };
/* 0: on an entry; -PGS_ENOENT: there is none (err untouched); -PGS_ECORRUPT. */
int pgs__cursor_seek(struct pgs__cursor *c, const struct pgs__tree *t, enum pgs__seek how, const void *key,
                     size_t key_len, struct pgs_error *err);
int pgs__cursor_next(struct pgs__cursor *c, struct pgs_error *err);
int pgs__cursor_prev(struct pgs__cursor *c, struct pgs_error *err);
void pgs__cursor_entry(const struct pgs__cursor *c, struct pgs_span *key, struct pgs_span *val);

/* Differences of two trees, in key order: fn(key, val in a or p NULL, val in b or p NULL); equal entries are not reported; subtrees with the same
 * pointer are skipped unread. fn's nonzero return ends the walk and is returned. */
typedef int (*pgs__diff_fn)(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b);
int pgs__tree_diff(const struct pgs__tree *a, const struct pgs__tree *b, pgs__diff_fn fn, void *ctx,
                   struct pgs_error *err);

/* Visit every node page of a committed tree (for the verifier, for killing a whole tree, for statistics): pre-order. entries: the leaf's entries are then
 * readable by a cursor; fn's nonzero return ends the walk. With `keep_going` damage is reported through fn_bad and the walk goes on. */
typedef int (*pgs__node_fn)(void *ctx, const struct pgs_ptr *node, int level);
typedef int (*pgs__bad_node_fn)(void *ctx, const struct pgs_ptr *node, const char *why);
int pgs__tree_walk(const struct pgs__tree *t, pgs__node_fn fn, pgs__bad_node_fn fn_bad, void *ctx,
                   struct pgs_error *err);
/* All invariants of a committed tree: order within and between nodes, separators, levels, fill, kinds, sizes. */
int pgs__tree_check(const struct pgs__tree *t, struct pgs_error *err);

/* --- edits ------------------------------------------------------------------------------------------------------------ */
struct pgs__edit *pgs__edit_new(struct pgs__pagefile *pf, enum pgs__tree_kind kind,
                                const struct pgs_ptr *root); /* NULL: no memory */
void pgs__edit_free(struct pgs__edit *e);                    /* accepts NULL; drops what was not written */
/* As free and new, for who edits often: the memory of a small edit is used again. Cannot fail. */
void pgs__edit_reset(struct pgs__edit *e, struct pgs__pagefile *pf, enum pgs__tree_kind kind,
                     const struct pgs_ptr *root);
/* Insert or replace. -PGS_E2BIG when key or cell exceed the limits. Appending in ascending order fills nodes completely. key and val may point into
 * the edit itself. Putting what is there already changes nothing.
 *
 * Errors of put and del: -PGS_E2BIG, -PGS_ENOENT and -PGS_ENOMEM leave the edit as it was. -PGS_ECORRUPT may come half-way (a damaged neighbour in a
 * merge): then all later calls fail with it, and the edit can only be freed. */
int pgs__edit_put(struct pgs__edit *e, const void *key, size_t key_len, const void *val, size_t val_len,
                  struct pgs_error *err);
int pgs__edit_del(struct pgs__edit *e, const void *key, size_t key_len, struct pgs_error *err); /* -PGS_ENOENT */
bool pgs__edit_is_clean(const struct pgs__edit *e);    /* nothing was changed */
uint64_t pgs__edit_n_dirty(const struct pgs__edit *e); /* node pages that pgs__edit_finish will need; exact */
/* Give every dirty node a page from `pages` (exactly n_dirty of them, in the order used), stamp `birth`, hash bottom-up, fill images: buf has n_dirty pages, image i
 * goes to pages[i]. The caller writes them (contiguous runs in one call). Afterwards the edit is spent. */
int pgs__edit_finish(struct pgs__edit *e, pgs_gen_t birth, const struct pgs_pgno *pages, void *buf,
                     struct pgs_ptr *new_root, struct pgs_error *err);
/* Committed nodes that the edit replaced or dropped: they die with this commit. Valid until pgs__edit_free. */
const struct pgs_ptr *pgs__edit_dead(const struct pgs__edit *e, size_t *n);

#ifdef PGS_TESTING
/* Nodes that this process has loaded so far: what tests count work in. */
uint64_t pgs__tree_n_visits(void);
#endif

/* Human-readable dump of one node to a caller's buffer (debugging, tests). */
void pgs__node_dump(const void *node, char *buf, size_t len);

#endif
