/* Pagestone | extents/content_refs — references to physical pages, gained and lost by an edit. Internal to extents/.
 * SPDX-License-Identifier: Apache-2.0
 *
 * An edit notes each run that its map loses (−1) or gains (+1). What a page has lost in the end is the sum over all notes: a page that was set and replaced
 * within the edit sums up to 0, a page of the base that was moved elsewhere too, one that is gone to −1. So the order of the changes does not matter and nothing has to be
 * looked up while they are made. When many notes have gathered they are summed up in between, so memory follows the outcome and not the number of calls.
 */
#ifndef PGS_EXTENTS_CONTENT_REFS_H
#define PGS_EXTENTS_CONTENT_REFS_H

#include "libshm/extents/content.h"

struct pgs__ref_note {
    uint64_t page, n_pages;
    uint64_t birth; /* of what was lost; of gains it does not matter */
    int64_t delta;
};
struct pgs__refs {
    struct pgs__ref_note *note;
    size_t n, cap;
    size_t sum_at; /* sum up when n reaches this; 0: the default */
};
int pgs__refs_add(struct pgs__refs *r, uint64_t page, uint64_t n_pages, uint64_t birth, int delta,
                  struct pgs_error *err);
/* Sum up: afterwards the notes are ascending, do not overlap, and none has delta 0. */
int pgs__refs_sum(struct pgs__refs *r, struct pgs_error *err);
void pgs__refs_free(struct pgs__refs *r);

#endif
