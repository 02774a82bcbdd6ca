/* Pagestone | txn/cold_table — the blocks of a store, for who maps or serves the image.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The table belongs to the ledger ('z' in the meta tree). Each call looks into the newest head's, under a meta pin of its own. Who holds a pin of a generation that refers to a page of the slot finds it there, always the
 * same but for `live` (cold.md C3, C4); for others it may be gone at any moment.
 */
#ifndef PGS_TXN_COLD_TABLE_H
#define PGS_TXN_COLD_TABLE_H

#include "libshm/extents/cold.h"
#include "libshm/extents/content.h"
#include "libshm/txn/session.h"

/* Sets pf->cold of a new session: read from here, map from whoever maps. */
void pgs__cold_attach(struct pgs__session *s);

/* 0; -PGS_ENOENT (no text): the slot is absent; -PGS_ECORRUPT. */
int pgs__cold_find(struct pgs__session *s, uint64_t slot, struct pgs__cold_block *out, struct pgs_error *err);
/* The block decompressed and verified: *n_bytes of buf[PGS__COLD_BYTES]. Errors as above; -PGS_EINVAL (no text): absent, but there may be one of that number some day. */
int pgs__cold_block_read(struct pgs__session *s, uint64_t slot, void *buf, size_t *n_bytes, struct pgs_error *err);
/* The same for a block that was found already, under any pin that still protects it. */
int pgs__cold_block_fetch(struct pgs__pagefile *pf, uint64_t slot, const struct pgs__cold_block *b, void *buf,
                          struct pgs_error *err);
/* Bytes of a content that are cold, and those that their blocks occupy, each counted once. */
int pgs__cold_sizes(struct pgs__session *s, const struct pgs__content *c, uint64_t *cold, uint64_t *compressed,
                    struct pgs_error *err);
/* struct pgs__cold_ops.read; ctx is the session. */
int pgs__cold_read_pages(void *session, uint64_t page, uint64_t n_pages, void *buf, struct pgs_error *err);

#endif
