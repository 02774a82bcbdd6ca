/* Pagestone | extents/content — where the bytes of one object are: inline, one extent, or a map of runs.
 * SPDX-License-Identifier: Apache-2.0
 *
 * An object's content is n_bytes of logical bytes, seen as logical pages of 4 KiB. It is stored in one of these forms:
 *
 *   INLINE   up to PGS__INLINE_MAX bytes inside the catalog record itself
 *   EXTENT   one physical run holds all logical pages; `map` may exist beside it, for page checksums only
 *   MAP      a tree: runs and holes (a logical page without a run is a hole and reads as zeros); also page checksums
 *
 * An empty map (map.page == 0) with form MAP is all hole: s.create of 1 TB costs nothing.
 *
 * Map tree (PGS__TREE_MAP), keys are a letter and a big-endian u64:
 *   'E' first logical page   -> struct pgs__map_run      runs do not overlap; adjacent ones that are physically adjacent with the same birth are merged
 *   'C' group (logical page / 128) -> 128 u64            XXH3-64 of each 4 KiB page as stored; 0 = not recorded. Only with checksums on
 *
 *   I1  Map nodes belong to one object only; runs may be shared between objects (counted by the ledger).
 *   I2  Bytes past n_bytes in the last page are zero.
 *   I3  Streams (bytes, plain; of a pickle the part that is unpickled) carry `xxh` of their first xxh_bytes bytes and are verified before use. Arrays, and the
 *       buffers of a pickle behind its stream, carry page checksums or none.
 *   I5  Runs of the image (cold.h) stand in maps beside runs of the file; an EXTENT is always of the file.
 *   I4  Everything decoded from a map is validated: runs inside the file, not overlapping, inside the object.
 */
#ifndef PGS_EXTENTS_CONTENT_H
#define PGS_EXTENTS_CONTENT_H

#include "libshm/extents/cold.h"
#include "libshm/tree/tree.h"

#define PGS__INLINE_MAX 512u
#define PGS__CSUM_GROUP 128u

enum pgs__content_form { PGS__FORM_INLINE = 1, PGS__FORM_EXTENT = 2, PGS__FORM_MAP = 3 };

struct pgs__content {
    enum pgs__content_form form;
    uint64_t n_bytes;
    uint64_t n_stored;       /* physical pages in runs (holes excluded) */
    const void *inline_data; /* INLINE: borrowed from the record (or the transaction's heap) */
    struct pgs_pgno page;    /* EXTENT: the run covers pages_of(n_bytes) pages */
    uint64_t birth;          /* EXTENT: of the run */
    uint64_t xxh;            /* streams in EXTENT or MAP form: of the first xxh_bytes bytes; 0 for arrays */
    uint64_t xxh_bytes;      /* ≤ n_bytes; 0: no such checksum (arrays) */
    struct pgs_ptr map;      /* MAP: the tree; EXTENT: checksums only, or page 0 */
};

/* The value of an 'E' entry. */
struct pgs__map_run {
    uint64_t page;
    uint64_t n_pages;
    uint64_t birth;
};

/* --- reading ------------------------------------------------------------------------------------------------------------- */
/* Visit the runs that intersect logical pages [lo, hi), clipped to it, ascending; holes are the gaps. Works for all forms but INLINE.
 * fn's nonzero return ends the walk and is returned. */
typedef int (*pgs__run_fn)(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth);
int pgs__content_runs(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t lo, uint64_t hi, pgs__run_fn fn,
                      void *ctx, struct pgs_error *err);
/* Nodes of its map tree (to kill or verify them). */
int pgs__content_nodes(struct pgs__pagefile *pf, const struct pgs__content *c, pgs__node_fn fn, void *ctx,
                       struct pgs_error *err);
/* Copy bytes [off, off + len) to buf: holes as zeros. Up to the end of the last page may be asked for; beyond it is -PGS_EINVAL. For compares, copies out and verification. */
int pgs__content_read(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t off, void *buf, uint64_t len,
                      struct pgs_error *err);
/* The same for who reads piece after piece: compressed blocks through `cache`, whose ops (if set) stand for pf's. */
int pgs__content_read_via(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__cold_cache *cache,
                          uint64_t off, void *buf, uint64_t len, struct pgs_error *err);
/* Verify everything: the stream against xxh, what is behind it and arrays against page checksums. *n_unverified: pages that neither covers. -PGS_ECORRUPT
 * at the first bad page. A compressed page is verified by its block. */
int pgs__content_verify(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t *n_unverified,
                        struct pgs_error *err);
/* Verify the stream only: what must be right before the object is used. Nothing to do for arrays. */
int pgs__content_verify_stream(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs_error *err);
/* Both through `cache`, as above. */
int pgs__content_verify_via(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__cold_cache *cache,
                            uint64_t *n_unverified, struct pgs_error *err);
int pgs__content_verify_stream_via(struct pgs__pagefile *pf, const struct pgs__content *c,
                                   struct pgs__cold_cache *cache, struct pgs_error *err);
/* Page checksums and compressed blocks of logical pages [lo, hi) alone. */
int pgs__content_verify_pages(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t lo, uint64_t hi,
                              struct pgs__cold_cache *cache, uint64_t *n_unverified, struct pgs_error *err);
/* Logical page ranges [lo, hi) whose backing differs between two contents of the same object (different runs, hole against run, beyond the other's end): by map
 * diff, in time proportional to the difference. Bytes may still be equal. INLINE beside anything but the same bytes differs as a whole. fn's nonzero return ends the walk. */
typedef int (*pgs__range_fn)(void *ctx, uint64_t lo, uint64_t hi);
int pgs__content_diff(struct pgs__pagefile *pf, const struct pgs__content *a, const struct pgs__content *b,
                      pgs__range_fn fn, void *ctx, struct pgs_error *err);

/* --- changing ------------------------------------------------------------------------------------------------------------- */
/* An edit makes a new content from an old one. It collects the data runs that the old one loses (they die with this commit); node deaths come from the tree
 * edit. Nothing is written before pgs__content_finish. */
struct pgs__content_edit;
struct pgs__content_edit *
pgs__content_edit_new(struct pgs__pagefile *pf,
                      const struct pgs__content *base);   /* NULL base: empty MAP content of 0 bytes */
void pgs__content_edit_free(struct pgs__content_edit *e); /* accepts NULL */
/* After an error the edit can only be freed. */
/* Logical pages [at, at + run.n_pages) are now `run`; they may lie beyond the size until pgs__content_finish. page_xxh: its checksums, or NULL (recorded as 0). */
int pgs__content_set(struct pgs__content_edit *e, struct pgs_lpno at, struct pgs_run run, uint64_t birth,
                     const uint64_t *page_xxh, struct pgs_error *err);
/* Logical pages [lo, hi) become a hole. */
int pgs__content_punch(struct pgs__content_edit *e, uint64_t lo, uint64_t hi, struct pgs_error *err);
/* New logical size; shrinking drops pages beyond (the caller has zeroed the rest of a last partial page by pgs__content_set). */
int pgs__content_resize(struct pgs__content_edit *e, uint64_t n_bytes, struct pgs_error *err);
/* Runs of the base that are no longer referenced, as (run, birth); ascending, merged where adjacent, once for each reference that the base had. Valid until the next
 * call or free. */
struct pgs__dead_run {
    struct pgs_run run;
    uint64_t birth;
};
int pgs__content_dead(struct pgs__content_edit *e, const struct pgs__dead_run **list, size_t *n,
                      const struct pgs_ptr **nodes, size_t *n_nodes, struct pgs_error *err);
uint64_t pgs__content_n_dirty(struct pgs__content_edit *e);
/* As pgs__edit_finish. Picks the form: one run that covers everything becomes EXTENT (map kept only for checksums). xxh of streams is the caller's to set. */
int pgs__content_finish(struct pgs__content_edit *e, pgs_gen_t birth, const struct pgs_pgno *pages, void *buf,
                        struct pgs__content *out, struct pgs_error *err);

#endif
