/* Pagestone | extents/memory_state — the inside of a pgs__mem. Internal to extents/.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_EXTENTS_MEMORY_STATE_H
#define PGS_EXTENTS_MEMORY_STATE_H

#include "libshm/extents/memory.h"

struct pgs__mem_priv {
    struct pgs__pagefile *pf;
    /* COW */
    struct pgs__content base; /* what it showed when it was made; inline_data points to `inlined` */
    uint64_t base_pages;
    uint64_t low_pages; /* the smallest size since then: base pages from here on show zeros now */
    bool patched;       /* some pages were copied: dropping private pages is not enough to show the base again */
    /* FRESH: `next` and `prev` under the lock of memory_fresh.c while `listed`; the rest constant */
    struct pgs__mem_priv *next, *prev;
    bool listed;
    bool detached; /* nothing of it is shared any more */
    uint8_t *addr;
    size_t n_runs, n_mapped; /* of them mapped: the rest is still reservation */
    struct pgs_run *runs;
    uint8_t inlined[PGS__INLINE_MAX];
};

/* Map the runs of `c` (not INLINE) and zeros for its holes over the reservation at `addr`, which has room for all its pages. Charges
 * *n_maps mappings; on failure none, and what the addresses show is undefined: release or compose again. */
int pgs__mem_compose(struct pgs__pagefile *pf, const struct pgs__content *c, uint8_t *addr, bool cow, long *n_maps,
                     bool *patched, struct pgs_error *err);
/* Pages of `c` (not INLINE) copied to `addr`, which holds zeros. */
int pgs__mem_copy(struct pgs__pagefile *pf, const struct pgs__content *c, uint8_t *addr, struct pgs_error *err);
/* COW on the heap: shows the base again. */
int pgs__mem_fill_heap(struct pgs__mem *m, struct pgs_error *err);
/* Address space of at least `len` bytes, aligned so that 2 MiB pages of the file can be mapped as such. */
int pgs__mem_reserve(uint64_t len, uint8_t **addr, struct pgs_error *err);
/* Zeros over [lo, hi) of a writable memory (bytes from m->addr, whole pages). */
int pgs__mem_zero(struct pgs__mem *m, uint64_t lo, uint64_t hi, struct pgs_error *err);
/* Unlink, make private, unmap the runs. */
void pgs__mem_fresh_close(struct pgs__mem *m);

#endif
