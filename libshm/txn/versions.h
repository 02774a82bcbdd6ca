/* Pagestone | txn/versions — history as its users see it: lists, tags, the log, differences, waiting.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The logic behind api/versions_api.c. Sessions in, malloc'ed lists out; nothing here checks whether a store was closed.
 */
#ifndef PGS_TXN_VERSIONS_H
#define PGS_TXN_VERSIONS_H

#include "libshm/txn/store.h"

/* As pgs_versions, pgs_tags, pgs_log: lists are one block of pgs__malloc. */
int pgs__versions_list(struct pgs__session *s, uint64_t **list, size_t *n, struct pgs_error *err);
int pgs__tags_list(struct pgs__session *s, struct pgs_tag_info **list, size_t *n, struct pgs_error *err);
int pgs__log(struct pgs__session *s, uint64_t before, int (*fn)(void *ctx, const struct pgs_commit_info *c), void *ctx,
             struct pgs_error *err);

/* 0 or -PGS_EINVAL: 1 to 200 bytes of UTF-8, no '/', no NUL, not beginning with a digit or '-'. */
int pgs__tag_check(const char *name, size_t len, struct pgs_error *err);
/* One maintenance commit. version < 0: index into the list of kept ones. */
int pgs__tag(struct pgs__session *s, const struct pgs__wait *w, const char *name, size_t len, int64_t version,
             struct pgs_error *err);
int pgs__untag(struct pgs__session *s, const struct pgs__wait *w, const char *name, size_t len, struct pgs_error *err);

/* As pgs_diff and pgs_wait. */
typedef int (*pgs__change_fn)(void *ctx, const void *key, size_t len, enum pgs_change what,
                              const struct pgs_range *ranges, size_t n);
int pgs__diff(struct pgs_snapshot *a, struct pgs_snapshot *b, pgs__change_fn fn, void *ctx, struct pgs_error *err);
int pgs__wait_key(struct pgs__session *s, uint64_t after, const void *key, size_t len, const struct pgs__wait *w,
                  uint64_t *version, struct pgs_error *err);

/* Roots for pgs__pin_find. */
int pgs__find_version(struct pgs__ledger *l, void *version /* int64_t */, struct pgs__root *root,
                      struct pgs_error *err);

#endif
