/* Pagestone | extents/content_map — entries of map trees, decoded and validated. Internal to extents/.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_EXTENTS_CONTENT_MAP_H
#define PGS_EXTENTS_CONTENT_MAP_H

#include "libshm/extents/content.h"

#define PGS__CONTENT_MAX_BYTES (1ull << 46)
#define PGS__CONTENT_MAX_PAGES (PGS__CONTENT_MAX_BYTES >> PGS_PAGE_SHIFT)
#define PGS__MAP_KEY_LEN 9u
#define PGS__CSUM_BYTES (PGS__CSUM_GROUP * sizeof(uint64_t))

/* A run in its logical place: pages [at, at + n_pages) of the object. */
struct pgs__placed_run {
    uint64_t at, page, n_pages, birth;
};

static inline void pgs__map_key(uint8_t key[PGS__MAP_KEY_LEN], char letter, uint64_t n)
{
    key[0] = (uint8_t)letter;
    pgs__put_be64(key + 1, n);
}
static inline struct pgs__tree pgs__map_tree(struct pgs__pagefile *pf, const struct pgs__content *c)
{
    return (struct pgs__tree){.pf = pf, .kind = PGS__TREE_MAP, .root = c->map};
}

/* The letter of an entry whose key is well formed: 'E' or 'C'; else -PGS_ECORRUPT. */
int pgs__map_letter(struct pgs_span key, struct pgs_error *err);
/* An 'E' entry. Validated: sizes, at most 2^34 logical pages, a run of the image or one inside the file that touches no superblock. */
int pgs__map_decode_run(struct pgs__pagefile *pf, struct pgs_span key, struct pgs_span val, struct pgs__placed_run *out,
                        struct pgs_error *err);
/* The same check for the run of an EXTENT. */
int pgs__content_check_extent(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs_error *err);

/* Address of one page of a validated run of the file. NULL, and -PGS_E… in *rc: the address space for a segment is not to be had, or the file ends before it. */
const void *pgs__content_page(struct pgs__pagefile *pf, uint64_t page, int *rc, struct pgs_error *err);

/* The same for any run, until the next call. */
const void *pgs__content_page_via(struct pgs__pagefile *pf, struct pgs__cold_cache *cache, uint64_t page, int *rc,
                                  struct pgs_error *err);

/* Runs of a content (EXTENT or MAP) in logical order, not clipped; INLINE has none. */
struct pgs__run_walk {
    struct pgs__pagefile *pf;
    const struct pgs__content *c;
    struct pgs__cursor cursor;
    uint64_t end; /* of the run before: the next must not begin earlier */
    struct pgs__placed_run run;
};
/* 0: w->run is the first run that ends after logical page `lo`; -PGS_ENOENT: there is none; -PGS_ECORRUPT. */
int pgs__run_walk_seek(struct pgs__run_walk *w, struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t lo,
                       struct pgs_error *err);
int pgs__run_walk_next(struct pgs__run_walk *w, struct pgs_error *err);

#endif
