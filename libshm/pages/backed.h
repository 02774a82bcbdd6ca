/* Pagestone | pages/backed — which pages of the file have blocks of the file system behind them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Free pages are of two kinds that the ledger does not tell apart: those that were written once and can be written again whatever happens to the file system, and holes, which need a block each. As
 * long as there is room the difference does not matter. On a full file system only the first kind is worth taking.
 *
 * The kernel knows (SEEK_DATA, SEEK_HOLE). Pages that were allocated and never written count as holes: an allocation may take them for worse than they are. A file system that cannot tell
 * says that everything is data, and the write will tell.
 */
#ifndef PGS_PAGES_BACKED_H
#define PGS_PAGES_BACKED_H

#include "libshm/pages/pagefile.h"

/* Zeroed but for pf: nothing looked up yet. What was looked up is believed for the life of this struct: make it short, an allocation's. */
struct pgs__backed {
    struct pgs__pagefile *pf;
    uint64_t lo, hi; /* pages [lo, hi) are all data or all hole */
    bool data;
};
/* The first backed part of [lo, hi). 0 pages: there is none. Costs two system calls for each change between data and hole. */
struct pgs_run pgs__backed_first(struct pgs__backed *b, uint64_t lo, uint64_t hi);

#endif
