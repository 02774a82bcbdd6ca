/* Pagestone | pages/fresh — writing into pages that nobody can see yet, as fast as the kernel allows.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Big fresh data is bound by page faults, not by copying (DESIGN §6). On tmpfs and memfd: touch one byte per chunk by pwrite (ENOSPC is an
 * error there, a store would be SIGBUS), MADV_COLLAPSE chunk by chunk (best effort), fallocate the whole run (its ENOSPC is PGS_EFULL), and only
 * then the first store. On ext4 and xfs: pwrite for copies; for memory handed to users fallocate, then map. Elsewhere: pwrite only.
 *
 *   I1  A writable mapping exists only over pages that the caller claimed, for the time of the put or until publish.
 *   I2  Collapse only chunks that hold no committed page: `whole` says so.
 */
#ifndef PGS_PAGES_FRESH_H
#define PGS_PAGES_FRESH_H

#include "libshm/pages/pagefile.h"

/* Can this store hand out writable shared mappings (t.empty)? */
bool pgs__fresh_can_map(const struct pgs__pagefile *pf);

/* Reserve a run so that stores cannot fail any more. `whole`: run covers whole chunks owned by the caller (collapse them). */
int pgs__fresh_reserve(struct pgs__pagefile *pf, struct pgs_run run, bool whole, struct pgs_error *err);

/* Map a reserved run for writing. addr: NULL or a reservation to map over (MAP_FIXED). Charged to the mapping budget. */
int pgs__fresh_map(struct pgs__pagefile *pf, struct pgs_run run, void *addr, void **out, struct pgs_error *err);
void pgs__fresh_unmap(void *addr, uint64_t n_pages);
/* Turn [addr, addr + n_pages) from a shared writable mapping of the run into a private one of the same pages, atomically (MAP_FIXED under
 * writing threads, HAZARDS 7): from here on no store through it reaches the file. */
int pgs__fresh_make_private(struct pgs__pagefile *pf, struct pgs_run run, void *addr, struct pgs_error *err);

/* Copy n_bytes from src into the run (zero-filling its last page), choosing pwrite or a mapping by size and file system.
 * If page_xxh != NULL: hash each source page first, then copy it, into page_xxh[i]. Reserves as needed. */
int pgs__fresh_copy(struct pgs__pagefile *pf, struct pgs_run run, bool whole, const void *src, uint64_t n_bytes,
                    uint64_t *page_xxh, struct pgs_error *err);

#endif
