/* Pagestone | txn/freeze — making contents cold, and raw again.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_TXN_FREEZE_H
#define PGS_TXN_FREEZE_H

#include "libshm/catalog/object.h"
#include "libshm/txn/session.h"

/* Compress what of the newest content of `key` gets smaller by that. *bytes: of pages that are no longer needed for it (less when only a part was done: a store without room; again later goes
 * on). Maintenance: no version, no conflict. What changes meanwhile is left out. -PGS_ENOENT; -PGS_ECORRUPT names the key: nothing damaged is frozen; -PGS_EFULL: there was no room for the first block. */
int pgs__freeze(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *bytes,
                struct pgs_error *err);
/* The same from logical page *next on, for about `most` pages, of which *done were passed. *next: where it stopped; UINT64_MAX: at the end. */
int pgs__freeze_part(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *next,
                     uint64_t most, uint64_t *done, struct pgs_error *err);
/* The reverse. *bytes: of pages that are raw now. */
int pgs__thaw(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *bytes,
              struct pgs_error *err);
/* Bring all compressed blocks that hold bytes [lo, hi) of the content, in parallel, and verify them. */
int pgs__cold_ahead(struct pgs__session *s, const struct pgs__content *c, uint64_t lo, uint64_t hi,
                    struct pgs_error *err);

#endif
