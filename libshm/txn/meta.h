/* Pagestone | txn/meta — the meta tree with the head record's messages in front: one ordered map.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Reading looks into the messages, then into the tree; cursors merge the two. Writers collect messages; when they no longer fit a record they are
 * folded into an edit of the tree (in memory), and further messages go on top of it. So the pages that a fold needs can be taken from the free space that the
 * meta tree itself describes: pgs__meta_fold makes the number of pages known, taking them adds messages *after* the fold.
 *
 *   I1  A reader holds a meta pin (session) from before it reads the head cell until it is done.
 *   I2  Messages are sorted, each key once; a deletion of a key that the tree does not hold is dropped when that is known for free (the message is marked
 *       fresh), else kept.
 *   I3  What is put may not point into the map itself (a value from pgs__meta_get): a fold may come first.
 */
#ifndef PGS_TXN_META_H
#define PGS_TXN_META_H

#include "libshm/tree/tree.h"
#include "libshm/txn/record_format.h"

struct
    pgs__msg { /* as stored (record_format.h), in the record page (readers) or in `arena` (writers): key − 4 is its beginning */
    const uint8_t *key, *val;
    uint64_t prefix;           /* the key's first 8 bytes, big-endian: decides most comparisons */
    uint16_t key_len, val_len; /* val_len PGS__MSG_DELETED: deleted */
    bool fresh;                /* the tree holds no such key */
};
struct pgs__arena;
struct pgs__meta {
    struct pgs__pagefile *pf;
    struct pgs__record hdr; /* copy */
    struct pgs__tree tree;  /* committed, or the edit after a fold */
    struct pgs__edit *edit; /* NULL before the first fold */
    struct pgs__msg *msgs;
    size_t n_msgs, cap;
    size_t msg_bytes;         /* as they would be stored */
    struct pgs__arena *arena; /* meta.c */
    uint64_t n_folded;        /* messages folded so far (statistics, tests) */
};
/* The verified record of `root`, decoded. For readers nothing is copied but the header and the message index. */
int pgs__meta_open(struct pgs__meta *m, struct pgs__pagefile *pf, const struct pgs__root *root, struct pgs_error *err);
void pgs__meta_init_empty(struct pgs__meta *m, struct pgs__pagefile *pf); /* a new store: zero header, no tree */
void pgs__meta_close(struct pgs__meta *m);                                /* accepts a zeroed one */

/* The decoded messages of a record that this process has published. Keep takes them out of m, whose record was written as root->record; m can only be closed then. Reopen uses them
 * if root still is that record, else it opens anew; either way nothing is kept afterwards. A zeroed struct keeps nothing. Between the two the record's page must not be
 * reused: the caller knows that nobody looks at what is kept but under the commit lock, and then only if the record is the head's. */
struct pgs__meta_kept {
    bool valid;
    struct pgs_ptr record;
    struct pgs__record hdr;
    struct pgs__msg *msgs;
    size_t n_msgs, cap;
    struct pgs__arena *arena;
    bool nothing_hung; /* ledger.h */
};
void pgs__meta_keep(struct pgs__meta *m, const struct pgs__root *root, struct pgs__meta_kept *k);
int pgs__meta_reopen(struct pgs__meta *m, struct pgs__pagefile *pf, const struct pgs__root *root,
                     struct pgs__meta_kept *k, struct pgs_error *err);
void pgs__meta_kept_free(struct pgs__meta_kept *k);

/* 0 and *val (valid until the next change), or -PGS_ENOENT. */
int pgs__meta_get(const struct pgs__meta *m, const void *key, size_t len, struct pgs_span *val, struct pgs_error *err);
int pgs__meta_put(struct pgs__meta *m, const void *key, size_t len, const void *val, size_t val_len,
                  struct pgs_error *err);
/* The same for a key that the caller has just looked for and that the map does not hold: deleting it later may then cost nothing. */
int pgs__meta_add(struct pgs__meta *m, const void *key, size_t len, const void *val, size_t val_len,
                  struct pgs_error *err);
/* Deleting what is not there is no error. */
int pgs__meta_del(struct pgs__meta *m, const void *key, size_t len, struct pgs_error *err);

struct pgs__meta_cursor {
    const struct pgs__meta *m;
    struct pgs__cursor tree;
    bool tree_on;
    size_t msg; /* index of the next or current message */
    bool on_msg;
    bool forward;
    struct pgs_span key, val;
};
/* 0 or -PGS_ENOENT; the entry is in c->key, c->val. Any put or del invalidates the cursor: seek again. */
int pgs__meta_seek(struct pgs__meta_cursor *c, const struct pgs__meta *m, enum pgs__seek how, const void *key,
                   size_t len, struct pgs_error *err);
/* The same for keys that were not in the map before this commit: looks into the messages alone as long as nothing was folded. Steps only in the direction of `how`. */
int pgs__meta_seek_new(struct pgs__meta_cursor *c, const struct pgs__meta *m, enum pgs__seek how, const void *key,
                       size_t len, struct pgs_error *err);
int pgs__meta_next(struct pgs__meta_cursor *c, struct pgs_error *err);
int pgs__meta_prev(struct pgs__meta_cursor *c, struct pgs_error *err);

/* Move all messages into the tree edit. Called by itself when there are more than 512. */
int pgs__meta_fold(struct pgs__meta *m, struct pgs_error *err);
uint64_t pgs__meta_n_dirty(const struct pgs__meta *m); /* node pages that finish will need for the folded part */
/* Serialise: node images (pages[0 … n_dirty)) and the record (record_pages images at the end of buf). hdr must be final except meta, n_msgs, msg_bytes, n_pages. *root_record gets page, birth, xxh. */
int pgs__meta_finish(struct pgs__meta *m, pgs_gen_t birth, const struct pgs_pgno *node_pages, void *node_buf,
                     struct pgs_pgno record_page, uint64_t record_pages, void *record_buf, struct pgs_ptr *record,
                     struct pgs_error *err);
const struct pgs_ptr *pgs__meta_dead(const struct pgs__meta *m, size_t *n);

/* Keys (record_format.h). buf must hold PGS__KEY_MAX bytes. The key of fewer numbers is a prefix of the key of more. Their bytes are read and written by the ledger
 * alone (pgs__lkey): others ask the ledger, e.g. pgs__ledger_is_shared, pgs__space_free_below. */
#define PGS__KEY_MAX 32
size_t pgs__meta_key_num(uint8_t *buf, uint64_t a); /* one number: 1 to 9 bytes */
size_t pgs__meta_key1(uint8_t *buf, char letter, uint64_t a);
size_t pgs__meta_key2(uint8_t *buf, char letter, uint64_t a, uint64_t b);
size_t pgs__meta_key3(uint8_t *buf, char letter, uint64_t a, uint64_t b, uint64_t c);

#endif
