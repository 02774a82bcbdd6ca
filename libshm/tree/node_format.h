/* Pagestone | tree/node_format — a tree node, byte by byte.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One node is one page. Slots (offsets, in key order) grow up behind the header, cells grow down from the birth; between them
 * lie zeros. docs/design/tree.md draws it.
 *
 *      offset   bytes  what
 *      0        4      magic "pgNd"
 *      4        1      kind of the tree (enum pgs__tree_kind)
 *      5        1      level: 0 leaf, parents one more than their children
 *      6        2      n: entries
 *      8        2      low: offset of the lowest cell byte
 *      10       2      lcp: leading bytes that all keys share (inner: all but the first separator, which is empty)
 *      12       4      zero
 *      16       6 n    slots, ascending by key: head u32, offset of the cell u16
 *      16+6n           zeros
 *      low             cells, without gaps
 *      4088     8      birth: generation that wrote the node (a lower bound)
 *
 *      leaf cell    key_len u16, val_len u16, key, value
 *      inner cell   key_len u16, child pgs_ptr (24 bytes), key
 *
 * The head of a key is the four bytes behind the first lcp, as a big-endian number, zeros behind the key's end (0 for the first
 * separator of inner nodes). A search so stays inside the slots until one candidate is left.
 *
 * The birth sits at the end so that loading 8 bytes from any place of any key stays inside the page.
 */
#ifndef PGS_TREE_NODE_FORMAT_H
#define PGS_TREE_NODE_FORMAT_H

#include "libshm/pages/super_format.h"
#include "libshm/platform/base.h"

#define PGS__NODE_MAGIC 0x644e6770u /* "pgNd" */
#define PGS__NODE_HEAD 16u
#define PGS__NODE_TAIL 4088u /* cells end here */
#define PGS__NODE_CAP (PGS__NODE_TAIL - PGS__NODE_HEAD)
#define PGS__LEAF_CELL_HEAD 4u
#define PGS__INNER_CELL_HEAD 26u
#define PGS__NODE_SLOT 6u
#define PGS__NODE_MAX_LEAF_ENTRIES (PGS__NODE_CAP / (PGS__NODE_SLOT + PGS__LEAF_CELL_HEAD))
/* Page numbers in nodes are below this: the bits above are an edit's mark for nodes that have no page yet. */
#define PGS__NODE_PAGE_LIMIT (1ull << 52)

struct pgs__node_slot {
    uint32_t head;
    uint16_t off;
} __attribute__((packed, aligned(2)));
PGS_STATIC(sizeof(struct pgs__node_slot) == PGS__NODE_SLOT, "on disk");

struct pgs__node {
    uint32_t magic;
    uint8_t kind;
    uint8_t level;
    uint16_t n;
    uint16_t low;
    uint16_t lcp;
    uint32_t zero;
    struct pgs__node_slot slot[PGS__NODE_CAP / PGS__NODE_SLOT];
    uint8_t pad[PGS__NODE_CAP % PGS__NODE_SLOT]; /* cells, too */
    uint64_t birth;
};
PGS_STATIC(sizeof(struct pgs__node) == PGS_PAGE_SIZE, "on disk");
PGS_STATIC(offsetof(struct pgs__node, slot) == PGS__NODE_HEAD, "on disk");
PGS_STATIC(offsetof(struct pgs__node, birth) == PGS__NODE_TAIL, "on disk");

#endif
