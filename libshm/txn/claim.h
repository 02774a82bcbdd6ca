/* Pagestone | txn/claim — pages for writing: chunks claimed by one transaction or commit, and the runs taken from them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A claim owns whole 2 MiB chunks (owner words in the control file) from its first allocation until the commit is published or abandoned. What is free in a chunk is read
 * from the newest meta data *after* the chunk was claimed: others can only add to it from then on. Nothing is recorded as used before the commit takes it
 * (pgs__claim_record), so a process that dies leaves nothing but owner words, which the sweeper clears.
 *
 *   I1  Between claims of one process too: the owner word is claimed once, whoever asks.
 *   I2  Node pages and data pages come from different chunks as long as there is room.
 *   I3  ≥ 2 MiB of data: whole chunks, aligned, consecutive if possible.
 *   I4  The last PGS__RESERVE_PAGES are touched only with `emergency`. They are a run that the record names: neither free nor used, backed by the file system,
 *       carved from the front by commits that free (`locked` is needed), filled up again by pgs__commit_end when there is room. The last PGS__RESERVE_LAST of them are for
 *       the commits of pgs__make_room alone: whatever somebody deleted can become room.
 *   I5  A claim inherited through fork is the parent's: releasing it in the child frees memory and touches no owner word.
 */
#ifndef PGS_TXN_CLAIM_H
#define PGS_TXN_CLAIM_H

#include "libshm/txn/session.h"

#define PGS__MAX_DIRECT 12u
struct pgs__taken {
    struct pgs_run run;
    bool is_node;
    bool from_reserve; /* came from the reserve: the ledger does not know it as free */
    bool given;        /* from_reserve and given back: becomes free at pgs__claim_record */
};
struct pgs__claim {
    struct pgs__session *s;
    uint64_t tag, fork_count; /* of the session when the first chunk was claimed */
    uint64_t *chunks;         /* claimed */
    size_t n_chunks, cap_chunks;
    struct pgs__taken *taken;
    size_t n_taken, cap_taken;
    size_t n_sealed;          /* taken[0 … n_sealed) were recorded: later runs are not joined to them */
    struct pgs_run *avail[2]; /* free runs of claimed chunks: [0] data, [1] nodes */
    size_t n_avail[2], cap_avail[2];
    /* The chunk claimed last, of which only the run [lo, hi) is in avail yet: the rest is looked up when it is needed. hi 0: none */
    struct {
        uint64_t chunk, lo, hi;
        int kind; /* of avail */
    } light;
    uint64_t direct[PGS__MAX_DIRECT]; /* claimed by pgs__claim_nodes: what is free there is in the ledger alone */
    unsigned n_direct;
    struct pgs__claim *lender; /* the chunks are its; they go back when this claim is released */
};
void pgs__claim_init(struct pgs__claim *c, struct pgs__session *s);

enum {
    PGS__ALLOC_CONTIGUOUS = 1,
    PGS__ALLOC_EMERGENCY = 2,
    PGS__ALLOC_LOWEST = 4,  /* lowest address first, not what was freed last (compact) */
    PGS__ALLOC_LAST = 16,   /* with EMERGENCY: the last of the reserve, too */
    PGS__ALLOC_DEEP = 32,   /* with EMERGENCY: nearly so, where make_room could not help */
    PGS__ALLOC_REFILL = 64, /* for the reserve itself. Others leave on a scarce store what it lacks */
    PGS__ALLOC_NO_NEW =
        8, /* only from chunks that are in use already, in pieces if need be: keeps the file from growing by fragments */
};
/* n_pages of data or node pages. locked: the ledger of the commit in progress (commit lock held), or NULL: the meta data is opened for reading. Contiguous, or else up to
 * max_runs runs in *runs; *n_runs of them. The file is grown as needed. -PGS_EFULL: neither quota nor file system has room (nothing was taken). */
int pgs__claim_alloc(struct pgs__claim *c, struct pgs__ledger *locked, bool is_node, uint64_t n_pages, int flags,
                     struct pgs_run *runs, size_t max_runs, size_t *n_runs, struct pgs_error *err);
/* At most `most` node pages that touch `at`, a run inside one chunk, whose neighbours they become. The commit lock is held. 1: there are none. */
int pgs__claim_beside(struct pgs__claim *c, struct pgs__ledger *locked, struct pgs_run at, uint64_t most,
                      struct pgs_run *out, struct pgs_error *err);
/* n_pages for nodes or the record, under the commit lock, found in a few looks and entered into the ledger at once (claim_nodes.c). In *n_runs runs, ascending as found. 0; 1: not found so
 * quickly, nothing was taken, ask pgs__claim_alloc; -PGS_E…: the commit fails. */
enum pgs__life { PGS__SHORT_LIVED, PGS__LONG_LIVED, PGS__RECORD };
int pgs__claim_nodes(struct pgs__claim *c, struct pgs__ledger *l, enum pgs__life life, uint64_t n_pages,
                     struct pgs_run *runs, size_t max_runs, size_t *n_runs, struct pgs_error *err);
/* claim*.c only: note whose claim this is, when it begins; back the owner word of a chunk by memory. */
void pgs__claim_stamp(struct pgs__claim *c);
int pgs__claim_owner_words(struct pgs__session *s, uint64_t chunk, struct pgs_error *err);
/* Give back part of what this claim took (a put replaced within the transaction). It is an error to give what was not taken, or what was recorded. */
void pgs__claim_give(struct pgs__claim *c, struct pgs_run run, bool is_node);
/* Commit: enter everything taken into the ledger as used. */
int pgs__claim_record(struct pgs__claim *c, struct pgs__ledger *l, struct pgs_error *err);
/* The same for taken[first …): what was taken since. */
int pgs__claim_record_from(struct pgs__claim *c, size_t first, struct pgs__ledger *l, struct pgs_error *err);
/* After publish, or to abandon: release the chunks. Idempotent; afterwards the claim is empty and may be used again. */
void pgs__claim_release(struct pgs__claim *c);
/* Move everything of `from` to `to` (a transaction's claim joins the commit's). */
int pgs__claim_join(struct pgs__claim *to, struct pgs__claim *from);
/* The chunks of `from` serve `to`, which must be empty, until `to` is released. What `from` has taken is left alone; it must not be used meanwhile. In a small store, a transaction's
 * claim may own most chunks, and what is free there is what its own commit needs. */
void pgs__claim_lend(struct pgs__claim *to, struct pgs__claim *from);
/* Does the run cover whole chunks only (so that it may be collapsed)? */
bool pgs__run_is_whole(struct pgs_run run);

/* Pages that the quota (0: none) and the owner table allow. */
uint64_t pgs__page_limit(const struct pgs__ledger *l);

/* --- what this process knows about free space ------------------------------------------------------------------------------ */
#define PGS__N_RECYCLED 16u
struct pgs__space {
    uint64_t fork_count; /* of the session when this was made */
    struct pgs__space
        *inherited; /* the parent's, never looked into: another thread may have been in a commit at the fork */
    /* under s->space_mx */
    struct {
        uint64_t first, n;
    } recycled[PGS__N_RECYCLED]; /* whole chunks that this process freed, newest last: perhaps still resident */
    unsigned n_recycled;
    uint64_t owners_reserved; /* owner words of chunks below were reserved by this process */
    uint64_t freed_pages;     /* since the last look at what is resident */
    uint64_t demand_bytes;    /* of data in one commit: the largest of late, forgotten by an eighth with each commit */
    uint64_t punch_below;     /* chunk below which the punching goes on; 0: from the top */
    /* under the commit lock */
    bool reclaimed[3];          /* claim_nodes.c, by enum pgs__life: something was, since the last search */
    uint64_t node_end[3];       /* end of the free run that was used last */
    uint64_t node_hint[2];      /* claim_nodes.c, by enum pgs__life: where the log goes on */
    struct pgs__meta_kept kept; /* the ledger as this process published it last */
    struct pgs__edit *edit;     /* of the last commit, for the next one */
    void *buf;                  /* images of the pages that a commit writes */
    size_t buf_bytes;
};
struct pgs__space *pgs__space_of(struct pgs__session *s); /* NULL: no memory */
/* Was an allocation refused lately, by the quota or the file system, in any process? Then pages that are backed already are preferred, and history goes at once. */
bool pgs__is_scarce(struct pgs__session *s);
void pgs__set_scarce(struct pgs__session *s, bool on);
/* Pages that the reserve should have at least while the store is scarce. */
uint64_t pgs__reserve_least(const struct pgs__ledger *l);
/* Bytes that can still be written: free pages that are backed, and as many holes as the file system can back; within the quota (make_room.c). */
uint64_t pgs__room_left(struct pgs__session *s, const struct pgs__record *hdr);
/* Callback for pgs__ledger_reclaim: remember the run (ctx: the session). A hint: what it says is verified before use. */
void pgs__space_freed(void *session, struct pgs_run run);

#endif
