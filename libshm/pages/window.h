/* Pagestone | pages/window — how addresses of pages are had; inside the layer only.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_PAGES_WINDOW_H
#define PGS_PAGES_WINDOW_H

#include "libshm/pages/pagefile.h"

/* Map the window (or leave window NULL: segments at need) and make the table of verified pages. */
int pgs__window_init(struct pgs__pagefile *pf, struct pgs_error *err);
/* Unmap everything: it is an error to call this while anyone may still read through an address from here. */
void pgs__window_fini(struct pgs__pagefile *pf);

#endif
