/* Pagestone | pages/room — whether there is room for fresh pages: in the file system, and in memory where pages are memory.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A full file system says ENOSPC. Full memory says nothing: the kernel kills a process (platform/ram.h). So where pages are memory and nobody set a quota, whatever backs
 * pages asks here first, and is told ENOSPC while there still is a head-room. To the layers above it is one more full file system: backed pages are taken first, free ones
 * are punched, history goes.
 *
 *   I1  Pages that are there already are never refused: writing them takes no memory.
 *   I2  Most calls cost two loads: a look at the system is good for ALLOWANCE bytes and a quarter of a second. So many bytes each process may take too much.
 *
 * Callers: pagefile.c and fresh.c before they write or allocate; the transaction layer switches the limit on (pgs__room_limit) and asks how much is left.
 */
#ifndef PGS_PAGES_ROOM_H
#define PGS_PAGES_ROOM_H

#include "libshm/pages/pagefile.h"
#include "libshm/platform/ram.h"

/* Is there no quota, so that memory is what limits? Without effect on a disk, and where capability "memory_limit" is off. */
void pgs__room_limit(struct pgs__pagefile *pf, bool no_quota);

/* Before these pages are written or allocated: 0, or -ENOSPC. deep: for the nodes of commits, which may use half of the head-room: deleting needs some. */
int pgs__room_take(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, bool deep);
/* Before a large run is begun, which may take long: the same answer, and nothing is taken. */
int pgs__room_holds(struct pgs__pagefile *pf, struct pgs_run run);

/* Does memory limit this store? Then *out is what it leaves (need: ram.h). */
bool pgs__room_ram(struct pgs__pagefile *pf, uint64_t need, struct pgs__ram *out);
/* Bytes of fresh pages that can be had. UINT64_MAX: unknown, or without limit. */
uint64_t pgs__room_of(struct pgs__pagefile *pf);
/* Bytes that could be had if nothing else were there. */
uint64_t pgs__room_most(struct pgs__pagefile *pf);

#endif
