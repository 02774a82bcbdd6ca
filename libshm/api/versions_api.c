/* Pagestone | api/versions_api — public functions on history: lists, tags, the log, differences, waiting, leases.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/versions.h"

int pgs_versions(pgs_store *s, uint64_t **list, size_t *n, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__versions_list(s->s, list, n, err);
}

int pgs_tag(pgs_store *s, const char *name, size_t len, int64_t version, struct pgs_error *err)
{
    int rc = pgs__store_use(s, true, err);
    return rc ? rc : pgs__tag(s->s, &s->wait, name, len, version, err);
}

int pgs_untag(pgs_store *s, const char *name, size_t len, struct pgs_error *err)
{
    int rc = pgs__store_use(s, true, err);
    return rc ? rc : pgs__untag(s->s, &s->wait, name, len, err);
}

int pgs_tags(pgs_store *s, struct pgs_tag_info **list, size_t *n, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__tags_list(s->s, list, n, err);
}

int pgs_log(pgs_store *s, uint64_t before, int (*fn)(void *ctx, const struct pgs_commit_info *c), void *ctx,
            struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__log(s->s, before, fn, ctx, err);
}

int pgs_diff(pgs_snapshot *a, pgs_snapshot *b,
             int (*fn)(void *ctx, const void *key, size_t len, enum pgs_change what, const struct pgs_range *ranges,
                       size_t n),
             void *ctx, struct pgs_error *err)
{
    return pgs__diff(a, b, fn, ctx, err);
}

/* Nobody else would end the wait of a thread whose store another thread closed. */
static int ended(void *ctx)
{
    pgs_store *s = ctx;
    return atomic_load(&s->closed) || (s->wait.interrupted && s->wait.interrupted(s->wait.ctx));
}

int pgs_wait(pgs_store *s, uint64_t after, const void *key, size_t len, int64_t timeout_ns, uint64_t *version,
             struct pgs_error *err)
{
    struct pgs__wait w = {.timeout_ns = timeout_ns, .interrupted = ended, .ctx = s};
    int rc = pgs__store_use(s, false, err);
    if (rc) return rc;
    if (key) rc = pgs__name_check(key, len, err);
    if (rc) return rc;
    if (key)
        rc = pgs__wait_key(s->s, after, key, len, &w, version, err);
    else
        rc = pgs__wait_version(s->s, after, &w, version, err);
    if (rc != -PGS_EINTR || !atomic_load(&s->closed)) return rc;
    if (err) *err = (struct pgs_error){0};
    return pgs__store_use(s, false, err);
}

int pgs_lease(pgs_store *s, uint64_t gen, uint64_t ns, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__lease_set(s->s, gen, ns, err);
}

void pgs_free(void *p)
{
    pgs__free(p);
}
