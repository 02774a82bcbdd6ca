/* Pagestone | txn/ledger — what is needed, what is free: chain, deadlists, reference counts, free space, tags, log.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The bookkeeping of one commit, done in memory under the commit lock on top of struct pgs__meta. No file is written and no other process is asked here, so every
 * rule can be tested against a model (tests/unit/test_ledger.c): who is pinned, what is durable comes in by arguments.
 *
 * A run [p, p+n) has birth b and, once the head no longer refers to it, death d. It is needed while a generation of the chain (or the head) lies in [b, d).
 *
 *   I1  Each page below hw is exactly one of: reachable from the head (catalog nodes, map nodes, data), in one deadlist bucket, in limbo, free ('W', 'N', 'D'), a page of
 *       the meta tree or record, in the reserve, or page 0 / 512 (superblocks). The verifier walks this.
 *   I2  pages leave the deadlists only into limbo, limbo only into free; never reused in the commit that killed or dropped them.
 *   I3  Limbo of generation g is reusable when durable ≥ g (a power loss falls back to a generation that still counts them as used, at worst as dropped) and no
 *       reader of meta data holds a generation < g.
 *   I4  births are lower bounds of the real first generation, and holder < birth never: an entry (bucket B, birth b) has b ≤ B.
 *   I5  expire (no new pins) and drop (deadlist merge) are two commits at least; drop asks `pinned` under the commit lock.
 *   I6  A birth belongs to its pages: whoever splits or moves a run in a map keeps its birth, and runs of different births are never joined. (share finds a dead run by its birth.)
 *   I7  All free runs of one chunk have one letter, the kind of its first tenant; a chunk that is free as a whole is in 'W' and nowhere else.
 *
 * After an error other than -PGS_ENOENT, -PGS_EEXIST, -PGS_EEXPIRED and -PGS_EINVAL the ledger may be half changed: close it, nothing of it was published.
 */
#ifndef PGS_TXN_LEDGER_H
#define PGS_TXN_LEDGER_H

#include "libshm/extents/cold.h"
#include "libshm/txn/meta.h"

struct pgs__ledger {
    struct pgs__meta meta;
    struct pgs__root head; /* the generation that this commit supersedes */
    pgs_gen_t gen;         /* of this commit: head.gen + 1; 0 = opened for reading only */
    uint64_t now_ns;       /* commit time, monotone */
    bool new_version;
    uint64_t n_touched; /* meta entries visited (tests count work) */

    /* ledger*.c only */
    bool nothing_hung;      /* known: there is no entry under 'b' */
    pgs_gen_t *expired_now; /* expired by this commit, so not to be dropped by it (I5) */
    size_t n_expired_now, cap_expired_now;
    uint64_t x_pages;           /* killed so far and needed by nobody but the superseded head, where that is expired */
    pgs_gen_t x_floor;          /* newest chain entry before it that is not expired */
    bool old_record_done;       /* prepare: the record of `head` is in limbo */
    size_t n_dead_done;         /* prepare: of pgs__meta_dead, in limbo */
    uint64_t n_nodes, n_record; /* as the last prepare said */
};

/* --- reading (meta pin or commit lock) ------------------------------------------------------------------------------ */
int pgs__ledger_open(struct pgs__ledger *l, struct pgs__pagefile *pf, const struct pgs__root *head,
                     struct pgs_error *err);
void pgs__ledger_close(struct pgs__ledger *l);
/* For who commits often: after the commit's publication keep what is decoded, and begin the next one with it if nobody else committed meanwhile. Then close, as ever. */
int pgs__ledger_reopen(struct pgs__ledger *l, struct pgs__pagefile *pf, const struct pgs__root *head,
                       struct pgs__meta_kept *kept, struct pgs_error *err);
void pgs__ledger_keep(struct pgs__ledger *l, const struct pgs__root *root, struct pgs__meta_kept *kept);

/* The root of a generation that is needed (chain or head). *expired may be NULL. -PGS_EEXPIRED: not in the chain. */
int pgs__ledger_find_gen(struct pgs__ledger *l, pgs_gen_t gen, struct pgs__root *out, bool *expired,
                         struct pgs_error *err);
/* A listed version. -PGS_EEXPIRED: was and is gone; -PGS_EINVAL: never was (the text says the range). */
int pgs__ledger_find_version(struct pgs__ledger *l, uint64_t version, struct pgs__root *out, struct pgs_error *err);
int pgs__ledger_find_index(struct pgs__ledger *l, int64_t index /* < 0 */, struct pgs__root *out,
                           struct pgs_error *err);
/* The version that was newest at the end of the microsecond of time_ns. Gaps are -PGS_EEXPIRED; before the first: -PGS_EEXPIRED or EINVAL as for numbers. */
int pgs__ledger_find_time(struct pgs__ledger *l, uint64_t time_ns, struct pgs__root *out, struct pgs_error *err);
int pgs__ledger_find_tag(struct pgs__ledger *l, const char *name, size_t len, uint64_t *version,
                         struct pgs_error *err); /* -PGS_ENOENT */
int pgs__ledger_versions(struct pgs__ledger *l, int (*fn)(void *ctx, uint64_t version), void *ctx,
                         struct pgs_error *err);
int pgs__ledger_tags(struct pgs__ledger *l, int (*fn)(void *ctx, const char *name, size_t len, uint64_t version),
                     void *ctx, struct pgs_error *err);
int pgs__ledger_log_walk(struct pgs__ledger *l, uint64_t before, int (*fn)(void *ctx, const struct pgs_commit_info *c),
                         void *ctx, struct pgs_error *err);
int pgs__ledger_chain_walk(struct pgs__ledger *l, int (*fn)(void *ctx, pgs_gen_t gen, const struct pgs__chain *c),
                           void *ctx, struct pgs_error *err);
/* Bytes kept alive only by chain entries [lo, hi] (for readers(): entries whose only pins are one reader's): pages in buckets held there with birth > the chain entry before lo. */
int pgs__ledger_bytes_held(struct pgs__ledger *l, pgs_gen_t lo, pgs_gen_t hi, uint64_t *bytes, struct pgs_error *err);

/* --- one commit (commit lock held) -------------------------------------------------------------------------------- */
/* Start generation head.gen + 1. The superseded head enters the chain (expired at once when !new_version: its version moves to the new generation, 'v' follows).
 * now_ns: the wall clock, whose lead the caller has limited (HAZARDS 14); commit time becomes now_ns, or head.time + 1,000 ns where the clock did not get past that. `version`: the number
 * to make (new_version; larger than the head's).
 * From an empty ledger (head.gen 0): creation. The file is two chunks then, free but for the superblocks; new_version must be set. */
int pgs__ledger_begin(struct pgs__ledger *l, bool new_version, uint64_t version, uint64_t now_ns,
                      struct pgs_error *err);

/* The head no longer refers to this run once. Shared parts lose a reference; the rest goes to the deadlist of the superseded generation. */
int pgs__ledger_kill(struct pgs__ledger *l, struct pgs_run run, pgs_gen_t birth, bool is_node, struct pgs_error *err);
/* The head refers to this data run once more (copy, assigned Array, revert): parts found in deadlists (buckets ≥ src_gen) revive, parts that the head already holds gain a reference.
 * src_gen: a needed generation (or the superseded head's) that refers to the run; the head's own number where head refers to it: then nothing old is searched. -PGS_EBUG: the run is in limbo, so the source was not needed. */
int pgs__ledger_share(struct pgs__ledger *l, struct pgs_run run, pgs_gen_t birth, pgs_gen_t src_gen,
                      struct pgs_error *err);

/* free -> used. The run must be free (or beyond hw, which then rises; skipped chunks become 'W'). -PGS_EBUG if it is not. */
int pgs__ledger_take(struct pgs__ledger *l, struct pgs_run run, bool is_node, struct pgs_error *err);
/* used -> free, merging; for pages that this commit took and did not use. */
int pgs__ledger_give(struct pgs__ledger *l, struct pgs_run run, bool is_node, struct pgs_error *err);
/* Into limbo of this generation (meta nodes and records that were replaced). */
int pgs__ledger_limbo(struct pgs__ledger *l, struct pgs_run run, bool is_node, struct pgs_error *err);

int pgs__ledger_tag_set(struct pgs__ledger *l, const char *name, size_t len, uint64_t version,
                        struct pgs_error *err); /* -PGS_EEXIST, -PGS_EEXPIRED, -PGS_EINVAL */
int pgs__ledger_tag_del(struct pgs__ledger *l, const char *name, size_t len, struct pgs_error *err);
int pgs__ledger_log_add(struct pgs__ledger *l, const struct pgs_commit_info *c,
                        struct pgs_error *err); /* trims old entries: newest 8,192 and kept versions stay */

/* Mark versions expired by the history policy in hdr, oldest first, tagged ones never; at most `budget` of them. `all`: the full-store ladder, everything untagged but the head.
 * *any: something was expired (the caller bumps drop_epoch after publishing). */
int pgs__ledger_expire(struct pgs__ledger *l, uint64_t now_ns, uint64_t budget, bool all, bool *any,
                       struct pgs_error *err);
/* Does the policy ask how much expired entries keep, so that pages_expired says it? */
bool pgs__ledger_knows_expired(const struct pgs__record *h);
/* Drop expired entries that are not pinned: merge their buckets, move what nobody needs into limbo. At most ~budget entries of work; goes on where it stopped. `pinned(ctx, gen)`: 1, 0 or -PGS_E….
 * *any as above; *more: work is left. */
int pgs__ledger_drop(struct pgs__ledger *l, int (*pinned)(void *ctx, pgs_gen_t gen), void *ctx, uint64_t budget,
                     bool *any, bool *more, struct pgs_error *err);
/* Limbo -> free where I3 allows. `freed` (may be NULL) sees each run: recycling hints, punching. */
int pgs__ledger_reclaim(struct pgs__ledger *l, pgs_gen_t durable, pgs_gen_t min_meta_pin, uint64_t budget,
                        void (*freed)(void *ctx, struct pgs_run run), void *ctx, struct pgs_error *err);

/* How many pages finish will write: *n_nodes of the meta tree (0 while the messages fit into one record page) and 1 to 4 consecutive ones of the record. The old record and replaced nodes go to
 * limbo here. The caller then takes the pages (pgs__ledger_take: more messages; room for some 60 runs is planned). It may call prepare again after that: the numbers never fall, and where they rose it takes the difference. Call it last,
 * after kill, share, drop, expire, reclaim, log; only take and give may follow. */
int pgs__ledger_prepare(struct pgs__ledger *l, uint64_t *n_nodes, uint64_t *n_record_pages, struct pgs_error *err);
/* Fill the images: n_nodes pages at node_buf, n_record at record_buf; meta.hdr.catalog, n_objects and next_id must be set before. *root: the new root, all fields.
 * -PGS_EBUG: the messages outgrew the record since prepare (only after very many takes). */
int pgs__ledger_finish(struct pgs__ledger *l, const struct pgs_pgno *node_pages, void *node_buf,
                       struct pgs_pgno record_page, void *record_buf, struct pgs__root *root, struct pgs_error *err);

/* Does the head refer to any page of the run more than once? */
int pgs__ledger_is_shared(struct pgs__ledger *l, struct pgs_run run, bool *shared, struct pgs_error *err);

/* --- compressed blocks (ledger_cold.c) ------------------------------------------------------------------------------- */
/* kill and share take runs of the image (extents/cold.h) like any other data. What follows is the table behind it. */
struct pgs__cold_total { /* value of 'Z' */
    uint64_t next;       /* slot */
    uint64_t n_pages;    /* of the page file, that blocks occupy */
    uint64_t n_blocks;
    uint64_t tag; /* of the boot that added the newest one */
};
/* -PGS_ENOENT (no text): absent. */
int pgs__ledger_cold_get(struct pgs__ledger *l, uint64_t slot, struct pgs__cold_block *out, struct pgs_error *err);
/* Ascending. b is NULL for an entry that is damaged, which `damage` words. */
int pgs__ledger_cold_walk(struct pgs__ledger *l,
                          int (*fn)(void *ctx, uint64_t slot, const struct pgs__cold_block *b,
                                    struct pgs_error *damage),
                          void *ctx, struct pgs_error *err);
int pgs__ledger_cold_total(struct pgs__ledger *l, struct pgs__cold_total *out, struct pgs_error *err);
/* After the blocks of a commit: the next one's begin in another group of PGS__COLD_GROUP slots, with a whole group between if this was the last round of an object (cold.md: what the kernel reads ahead). */
int pgs__ledger_cold_seal(struct pgs__ledger *l, bool last, struct pgs_error *err);
/* A block whose pages were taken and written, for b->live pages of one map that this commit makes. Consecutive calls give consecutive slots. tag: of this boot; a new one skips numbers. */
int pgs__ledger_cold_add(struct pgs__ledger *l, uint64_t tag, const struct pgs__cold_block *b, uint64_t *slot,
                         struct pgs_error *err);

/* --- the ledger's own verifier --------------------------------------------------------------------------------------- */
enum pgs__page_state {
    PGS__PAGE_FREE = 1,
    PGS__PAGE_DEAD,
    PGS__PAGE_LIMBO,
    PGS__PAGE_RESERVE,
    PGS__PAGE_SUPER,
    PGS__PAGE_SHARED,
    PGS__PAGE_BLOCK /* compressed bytes: live, but known to the ledger */
};
/* Walk all key spaces: runs inside hw and disjoint, counters, 'v', 'x', 't' and 'c' agree, buckets hang at entries of the chain and hold something, chunk borders and letters (I7), shared runs are
 * not free, compressed blocks. -PGS_ECORRUPT with what is wrong. `fn` (may be NULL) sees every run that is not live nor meta, and the blocks, ascending; dead runs of the image come last; its nonzero return ends the walk and is returned.
 * `shared` (may be NULL) sees the runs with a reference count. */
int pgs__ledger_check(struct pgs__ledger *l, int (*fn)(void *ctx, struct pgs_run run, enum pgs__page_state state),
                      int (*shared)(void *ctx, struct pgs_run run, uint64_t count), void *ctx, struct pgs_error *err);

/* --- free space: finding it (no change) ---------------------------------------------------------------------------- */
struct pgs__free_query {
    /* Claim it. 1: ours (for the length of the query's answer); 0: somebody else's; < 0: nothing can be claimed, look no further. */
    int (*usable)(void *ctx, uint64_t chunk);
    void (*unclaim)(void *ctx, uint64_t chunk); /* a chunk that was claimed and is not needed */
    void *ctx;
    uint64_t max_chunks; /* quota, owner table: chunks below this number only */
};
/* n_chunks consecutive whole free chunks, each claimed. Lowest address first; beyond hw when there is none. -PGS_EFULL. */
int pgs__space_find_chunks(struct pgs__ledger *l, const struct pgs__free_query *q, uint64_t n_chunks, uint64_t *first,
                           struct pgs_error *err);
/* A partly free chunk of that kind ('N' or 'D') with at least min_pages in one run, claimed. -PGS_ENOENT: none (take a whole chunk instead). Looks at no more than 256 entries, beginning at `*hint` (a page number; 0 at first), which moves on. */
int pgs__space_find_partial(struct pgs__ledger *l, const struct pgs__free_query *q, char kind, uint64_t min_pages,
                            uint64_t *hint, uint64_t *chunk, struct pgs_error *err);
/* Whole free chunks below chunk number `below`, highest first, at most max of them. */
int pgs__space_free_below(struct pgs__ledger *l, uint64_t below, uint64_t max, uint64_t *list, uint64_t *n,
                          struct pgs_error *err);
/* All free runs inside one chunk, of both kinds and 'W' or beyond hw (then the whole chunk). */
int pgs__space_runs_of(struct pgs__ledger *l, uint64_t chunk, int (*fn)(void *ctx, struct pgs_run run), void *ctx,
                       struct pgs_error *err);

#endif
