/* Pagestone | txn/commit — the driver of every root switch: transactions and maintenance alike.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     state        function                       a crash at this arrow leaves
 *     idle      -> locked    pgs__commit_begin    the lock's owner dead: the next one finds head == superblock or behind it, nothing else
 *     locked    -> edited    catalog edit, ledger memory only
 *     edited    -> written   pgs__commit_end      pages written that nobody refers to; owner words of a dead slot
 *     written   -> durable   pgs__publish (full)  the superblock is ahead of the control word: the next owner finishes (step 8)
 *     durable   -> published pgs__publish         done: linearized; waiters may sleep until the next wake
 *     published -> idle      claims released, one bounded step of dropping is part of the commit itself
 */
#ifndef PGS_TXN_COMMIT_H
#define PGS_TXN_COMMIT_H

#include "libshm/txn/claim.h"

struct pgs__commit {
    struct pgs__session *s;
    struct pgs__ledger l;
    struct pgs__claim claim;
    struct pgs__edit *catalog;
    struct pgs__tree tree;     /* over `catalog`: reads see the edit */
    struct pgs__root base;     /* the newest root, found under the lock */
    uint64_t n_objects;        /* maintained by the caller: put of a new key +1, delete −1 */
    uint64_t bytes;            /* written for data before: for the log and the barrier's budget */
    bool new_version, freeing; /* freeing: this commit only frees (delete, gc): may use the reserve */
    bool open;
};
/* Lock and open. new_version is decided at pgs__commit_start, once the caller has looked at c->base. */
int pgs__commit_begin(struct pgs__commit *c, struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err);
/* Begin the generation: from here on edits of the catalog and of the ledger. The version is c->l.… hdr.version. */
int pgs__commit_start(struct pgs__commit *c, bool new_version, struct pgs_error *err);
/* Upkeep (expire, drop, reclaim: bounded), allocate, write, publish, unlock. log: NULL for maintenance. On failure everything is abandoned and unlocked. */
int pgs__commit_end(struct pgs__commit *c, const struct pgs_commit_info *log, struct pgs_error *err);
void pgs__commit_abandon(struct pgs__commit *c); /* unlock, nothing happened; idempotent */

/* Drop an object's pages with this commit: data runs, map nodes, out-of-line dtype. */
int pgs__commit_kill_content(struct pgs__commit *c, const void *content_of /* struct pgs__object */,
                             struct pgs_error *err);

/* A freeing commit that makes room: the ladder of DESIGN §4. level 0: finish drops and reclaim; 1: expire all history; 2: expired leases and dead slots. *freed: pages that became free. */
int pgs__make_room(struct pgs__session *s, const struct pgs__wait *w, int level, uint64_t *freed,
                   struct pgs_error *err);
/* -PGS_EFULL with the text that names who pins what. */
int pgs__fail_full(struct pgs__session *s, uint64_t need_bytes, struct pgs_error *err);

#endif
