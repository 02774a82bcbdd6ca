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
    bool zombies, ask;        /* drop met pinned generations; ask for their pins to move, after the lock */
    bool epoch;               /* something was expired or dropped: drop_epoch moves with the publish */
    bool deep;                /* freeing: the ladder did not help; nearly all of the reserve may go */
    bool expire_all;          /* upkeep: all untagged history goes (full stores) */
    uint64_t budget;          /* upkeep: entries of work; 0: in proportion to what this commit changed itself */
    struct pgs__record after; /* the published record's header, once pgs__commit_end returned 0 */
};
#define PGS__BUDGET_ALL (1ull << 40)
/* Lock and open. new_version is decided at pgs__commit_start, once the caller has looked at c->base. */
int pgs__commit_begin(struct pgs__commit *c, struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err);
/* Begin the generation: from here on edits of the catalog and of the ledger. The version is c->l.… hdr.version. */
int pgs__commit_start(struct pgs__commit *c, bool new_version, struct pgs_error *err);
/* Upkeep (expire, drop, reclaim: bounded), allocate, write, publish, unlock. log: NULL for maintenance. On failure everything is abandoned and unlocked. */
int pgs__commit_end(struct pgs__commit *c, const struct pgs_commit_info *log, struct pgs_error *err);
void pgs__commit_abandon(struct pgs__commit *c); /* unlock, nothing happened; idempotent */

/* Drop an object's pages with this commit: data runs, map nodes, out-of-line dtype (a node run). */
struct pgs__object;
int pgs__commit_kill_content(struct pgs__commit *c, const struct pgs__object *obj, struct pgs_error *err);

/* One commit that changes nothing but the bookkeeping: drops, reclaim, expiry with `expire_all`. *after: the new record's header. */
int pgs__commit_upkeep(struct pgs__session *s, const struct pgs__wait *w, bool expire_all, struct pgs__record *after,
                       struct pgs_error *err);
/* Upkeep commits, one after the other, until they gain nothing. *freed (may be NULL): pages. */
int pgs__drain(struct pgs__session *s, const struct pgs__wait *w, bool expire_all, uint64_t *freed,
               struct pgs_error *err);
/* A freeing commit that makes room: the ladder of DESIGN §4. level 0: finish drops and reclaim; 1: expire all history; 2: expired leases and dead slots. *freed: pages that became free. */
int pgs__make_room(struct pgs__session *s, const struct pgs__wait *w, int level, uint64_t *freed,
                   struct pgs_error *err);
/* The same for a transaction that holds chunks: its claim lends them (pgs__claim_lend). */
int pgs__make_room_lent(struct pgs__session *s, const struct pgs__wait *w, struct pgs__claim *lender, int level,
                        uint64_t *freed, struct pgs_error *err);
/* After a commit: give free chunks back to the file system when more than max(64 MiB, a quarter of what lives) of them are resident. Bounded; no lock is held. */
void pgs__punch_if_due(struct pgs__session *s, const struct pgs__record *after, uint64_t bytes);
/* Punch at most max_chunks free whole chunks, highest first, going on where the last call stopped. Returns how many it looked at; 0: once around. */
uint64_t pgs__punch(struct pgs__session *s, uint64_t max_chunks);
/* On a file system with little room: punch every free page, where others do not hold the chunk. */
void pgs__punch_parts(struct pgs__session *s);
/* -PGS_EFULL with the text that names who pins what. */
int pgs__fail_full(struct pgs__session *s, uint64_t need_bytes, int os_errno, struct pgs_error *err);

/* Wall clock for a commit on top of head, under the commit lock. The control file keeps the distance between the wall clock and CLOCK_BOOTTIME as of the last commit; a wall
 * clock that is more than a day ahead of it is not followed: then time goes on by what has elapsed (HAZARDS 14). The first commit after a boot believes the clock. */
uint64_t pgs__commit_clock(struct pgs__session *s);

#endif
