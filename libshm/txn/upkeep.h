/* Pagestone | txn/upkeep — statistics, readers, settings, collecting garbage, compaction.
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a store's owner does to it beside committing. Nothing here changes what anybody reads: every write is a maintenance commit, which makes a generation and no version.
 */
#ifndef PGS_TXN_UPKEEP_H
#define PGS_TXN_UPKEEP_H

#include "libshm/txn/commit.h"

/* Sizes, from the head record and the file's blocks. */
int pgs__stat(struct pgs__session *s, struct pgs_stat *out, struct pgs_error *err);
/* Who pins what. fn is called without any lock and without a pin. */
int pgs__readers(struct pgs__session *s, int (*fn)(void *ctx, const struct pgs_reader *r), void *ctx,
                 struct pgs_error *err);
/* Quota, durability, history and checksums as opt says, for all openers. No commit when nothing changes. */
int pgs__settings_apply(struct pgs__session *s, const struct pgs__wait *w, const struct pgs_options *opt,
                        struct pgs_error *err);
/* Drop and reclaim until nothing more comes of it, then give all free chunks to the file system. */
int pgs__gc(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err);
/* Rewrite contents that are scattered or lie high into the lowest free chunks, then gc. Revisions do not change; nobody conflicts with it. */
int pgs__compact(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err);

#endif
