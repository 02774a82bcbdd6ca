/* Pagestone | txn/claim_impl — what the files of the claim share: one allocation under way, the lists, the chunks.
 * SPDX-License-Identifier: Apache-2.0
 *
 * For claim_alloc.c, claim_chunks.c, claim_lists.c and claim_space.c alone. claim_lists.c knows no chunks, claim_chunks.c no wishes: each calls the ones before it.
 */
#ifndef PGS_TXN_CLAIM_IMPL_H
#define PGS_TXN_CLAIM_IMPL_H

#include "libshm/pages/backed.h"
#include "libshm/txn/claim.h"

/* One allocation. */
struct pgs__hunt {
    struct pgs__claim *c;
    struct pgs__ledger *l; /* locked, or &own */
    struct pgs__ledger own;
    bool locked, open;
    bool foreign; /* a chunk that we looked at belongs to somebody */
    int rc;       /* of what went wrong inside a callback */
    uint64_t limit;
    bool backed_only; /* holes are set aside, by kind as in avail, until backed_end */
    uint64_t least;   /* backed_only: a chunk must have a backed free run of so many pages */
    struct pgs__backed backed;
    struct pgs_run *holes[2];
    size_t n_holes[2], cap_holes[2];
    struct pgs_error *err;
};

/* --- claim_space.c ---------------------------------------------------------------------------------------------------------- */
/* The newest hint of n consecutive chunks, in *first; what is left of it stays. false: none is large enough. */
bool pgs__space_recycled(struct pgs__session *s, struct pgs__space *sp, uint64_t n, uint64_t *first);

/* --- claim_lists.c. kind: 0 data, 1 nodes ----------------------------------------------------------------------------------- */
int pgs__avail_add(struct pgs__claim *c, int kind, struct pgs_run run); /* -PGS_ENOMEM without text */
/* The smallest available run that has n pages, from its front. */
bool pgs__avail_take(struct pgs__claim *c, int kind, uint64_t n, struct pgs_run *out);
/* The largest available run, at most n pages of it; 0 pages: there is none. */
struct pgs_run pgs__avail_largest(struct pgs__claim *c, int kind, uint64_t n);
/* Whatever of the run is available is so no more. */
void pgs__avail_without(struct pgs__claim *c, int kind, struct pgs_run run);
/* To avail, or, where only backed pages count, each part to where it belongs. -PGS_ENOMEM without text. */
int pgs__hunt_offer(struct pgs__hunt *h, int kind, struct pgs_run run);
/* The run is no longer available (the caller saw to that): it is taken. */
int pgs__hunt_note(struct pgs__hunt *h, struct pgs_run run, bool is_node, bool from_reserve);

/* --- claim_chunks.c --------------------------------------------------------------------------------------------------------- */
/* Meta data to look into: opened unless the commit lock is held. Closing is harmless where nothing is open. */
int pgs__hunt_open(struct pgs__hunt *h);
void pgs__hunt_close(struct pgs__hunt *h);
/* Newer meta data, if a commit was published since. */
int pgs__hunt_refresh(struct pgs__hunt *h);
/* What is free in a chunk that is ours goes to avail[kind] (−1: is only counted). n_pages may be NULL. */
int pgs__hunt_runs_of(struct pgs__hunt *h, uint64_t chunk, int kind, uint64_t *n_pages);
/* What was left out of avail when the chunk was claimed. */
int pgs__hunt_load_light(struct pgs__hunt *h);
/* A partly free chunk joins the claim, found from *hint on. of: whose it was ('N' or 'D'). -PGS_ENOENT: none. */
int pgs__hunt_partial(struct pgs__hunt *h, int kind, char of, uint64_t min_pages, uint64_t *hint);
/* n consecutive whole free chunks, claimed, in the claim's list, the file long enough; their pages are not in avail. -PGS_EFULL. */
int pgs__hunt_whole(struct pgs__hunt *h, uint64_t n, uint64_t *first);
/* The same from the chunks that this process freed last. 1: none. */
int pgs__hunt_recycled(struct pgs__hunt *h, uint64_t n, uint64_t *first);
/* Chunks of pgs__claim_nodes become ordinary ones: their words are ours already, and what is free there goes to avail. */
int pgs__hunt_adopt_direct(struct pgs__hunt *h);
/* What became free in our chunks since they were claimed, e.g. by pgs__make_room. All goes to avail[kind]. */
int pgs__hunt_look_again(struct pgs__hunt *h, int kind);
/* The chunk in our list, its free pages in avail. 1: somebody else's. */
int pgs__hunt_own(struct pgs__hunt *h, uint64_t chunk);

#endif
