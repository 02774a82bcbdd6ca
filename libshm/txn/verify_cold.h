/* Pagestone | txn/verify_cold — the verifier's picture of compressed blocks.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_TXN_VERIFY_COLD_H
#define PGS_TXN_VERIFY_COLD_H

#include "libshm/txn/cold_table.h"

struct pgs__seen_block {
    uint64_t slot;
    struct pgs__cold_block b;
    uint32_t head, dead; /* bit i: page i of the slot is referred to by the newest version; is in a deadlist */
    bool right;          /* its bytes were decompressed, and match */
    bool wrong;
};
struct pgs__seen_blocks {
    struct pgs__pagefile *pf;
    struct pgs__seen_block *v; /* ascending */
    size_t n, cap;
};
void pgs__seen_free(struct pgs__seen_blocks *t);
int pgs__seen_add(struct pgs__seen_blocks *t, uint64_t slot,
                  const struct pgs__cold_block *b);                                /* ascending; -PGS_ENOMEM */
struct pgs__seen_block *pgs__seen_find(struct pgs__seen_blocks *t, uint64_t slot); /* or NULL */

/* What is wrong with a run of the image, by its first bad page; NULL: nothing. Pages of the head and of deadlists are noted. An older version's must be one or the other. */
enum pgs__seen_role { PGS__SEEN_HEAD, PGS__SEEN_DEAD, PGS__SEEN_OLD };
const char *pgs__seen_run(struct pgs__seen_blocks *t, struct pgs_run run, enum pgs__seen_role role, uint64_t *slot);
/* C1, once all pages were noted. NULL: it holds. */
const char *pgs__seen_count(const struct pgs__seen_block *b);
/* struct pgs__cold_ops.read over this table; ctx is the table. A block that is right counts as such. */
extern const struct pgs__cold_ops pgs__seen_ops;

#endif
