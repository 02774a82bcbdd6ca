/* Pagestone | pages/fresh — writing into pages that nobody can see yet, as fast as the kernel allows.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Big fresh data is bound by page faults, not by copying: see fresh.c for what was measured. On tmpfs and memfd, chunk by chunk: touch a page by
 * pwrite (ENOSPC is an error there, a store would be SIGBUS), MADV_COLLAPSE into a huge page (best effort), fallocate (its ENOSPC is
 * PGS_EFULL), and only then the first store. On ext4 and xfs: pwrite for copies; for memory handed to users fallocate, then map. Elsewhere:
 * pwrite only.
 *
 *   I1  A writable mapping exists only over pages that the caller claimed, for the time of the put or until publish.
 *   I2  Only chunks without any committed page are collapsed or mapped as a whole: those inside the run, and with `whole` those that it
 *       touches.
 *
 * `whole` says: every chunk that the run touches belongs to the caller, down to its last page. Other pages of those chunks keep
 * their bytes. Each function checks the descriptor first (pagefile.h, I4). Thread-safe for disjoint runs.
 */
#ifndef PGS_PAGES_FRESH_H
#define PGS_PAGES_FRESH_H

#include "libshm/pages/pagefile.h"

/* Can this store hand out writable shared mappings (t.empty)? */
bool pgs__fresh_can_map(const struct pgs__pagefile *pf);

/* Reserve a run so that stores cannot fail any more (where the store can map; elsewhere best effort). The run's bytes
 * are undefined afterwards: fresh pages are zero, recycled ones hold something old. -PGS_EFULL: no space; the chunks inside the run are given back then. */
int pgs__fresh_reserve(struct pgs__pagefile *pf, struct pgs_run run, bool whole, struct pgs_error *err);

/* Map a reserved run for writing. addr: NULL or a reservation to map over (MAP_FIXED). One mapping of the budget. It is an error to
 * store through it before the run is reserved: SIGBUS. */
int pgs__fresh_map(struct pgs__pagefile *pf, struct pgs_run run, void *addr, void **out, struct pgs_error *err);
/* Ends what pgs__fresh_map began, private by now or not. A hole stays where it lay over a reservation. */
void pgs__fresh_unmap(void *addr, uint64_t n_pages);
/* Turn [addr, addr + n_pages) from a shared writable mapping of the run into a private one of the same pages, atomically (MAP_FIXED under
 * writing threads): from here on no store through it reaches the file. No allocation: usable in a fork hook's child. */
int pgs__fresh_make_private(struct pgs__pagefile *pf, struct pgs_run run, void *addr, struct pgs_error *err);

/* For who fills a run of whole chunks bit by bit, from several threads. NULL: not here, or not now; then everything goes through pgs__fresh_copy, and may at any time: both show the same bytes. No child inherits the mapping. pgs__fresh_unmap. */
void *pgs__fresh_window(struct pgs__pagefile *pf, struct pgs_run run);
/* Before the first store into a chunk of it, mapped at `at`, none of whose pages is committed. true: it is one huge page, all there. false: don't store. */
bool pgs__fresh_ready(struct pgs__pagefile *pf, uint64_t chunk, void *at);

/* Copy n_bytes from src into the run, choosing pwrite or a mapping by size and file system; the rest of the last page written is zeroed,
 * pages after it are not touched. If page_xxh != NULL: the checksum of each page as it was copied goes into page_xxh[i], also if another thread changes the source meanwhile. Reserves as needed.
 * -PGS_EFULL: no space, never SIGBUS; the run's bytes are then undefined. */
int pgs__fresh_copy(struct pgs__pagefile *pf, struct pgs_run run, bool whole, const void *src, uint64_t n_bytes,
                    uint64_t *page_xxh, struct pgs_error *err);

#endif
