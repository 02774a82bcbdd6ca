/* Pagestone | txn/versions — history as its users see it: lists, tags, the log, waiting.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Reading happens under a meta pin, which keeps the bookkeeping of one generation readable and nothing else; so a list may be out of date when the caller sees it, as any
 * list of a living store. Tags are maintenance commits.
 */
#include "libshm/txn/versions.h"

#include "libshm/platform/mem.h"
#include "libshm/txn/commit.h"

#define TAG_NAME_MAX 200u

struct u64_list {
    uint64_t *v;
    size_t n, cap;
};
static int add_version(void *ctx, uint64_t version)
{
    struct u64_list *l = ctx;
    if (pgs__grow(&l->v, &l->cap, l->n + 1, sizeof l->v[0])) return -PGS_ENOMEM;
    l->v[l->n++] = version;
    return 0;
}

int pgs__versions_list(struct pgs__session *s, uint64_t **list, size_t *n, struct pgs_error *err)
{
    struct pgs__ledger l;
    struct u64_list all = {0};
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = pgs__ledger_versions(&l, add_version, &all, err);
    pgs__meta_end(s, &l);
    if (rc == -PGS_ENOMEM) pgs__fail(err, PGS_ENOMEM, "no memory for the list of versions");
    if (rc) {
        pgs__free(all.v);
        return rc;
    }
    *list = all.v;
    *n = all.n;
    return 0;
}

/* --- tags -------------------------------------------------------------------------------------------------------------------------------- */

int pgs__tag_check(const char *name, size_t len, struct pgs_error *err)
{
    if (len == 0 || len > TAG_NAME_MAX)
        return pgs__fail(err, PGS_EINVAL, "a tag has 1 to %u bytes, not %zu", TAG_NAME_MAX, len);
    if ((name[0] >= '0' && name[0] <= '9') || name[0] == '-')
        return pgs__fail(err, PGS_EINVAL, "tag '%.*s' begins with a digit or '-', as versions do", (int)len, name);
    if (memchr(name, '/', len) || memchr(name, 0, len))
        return pgs__fail(err, PGS_EINVAL, "a tag contains no '/' and no NUL");
    return 0;
}

/* Names are copied to the end of the block when all are known: first pass counts, second fills. */
struct tag_list {
    struct pgs_tag_info *list;
    size_t n, cap;
    char *names;
    size_t n_bytes, cap_bytes;
};
static int add_tag(void *ctx, const char *name, size_t len, uint64_t version)
{
    struct tag_list *t = ctx;
    if (pgs__grow(&t->list, &t->cap, t->n + 1, sizeof t->list[0])) return -PGS_ENOMEM;
    if (pgs__grow(&t->names, &t->cap_bytes, t->n_bytes + len + 1, 1)) return -PGS_ENOMEM;
    memcpy(t->names + t->n_bytes, name, len);
    t->names[t->n_bytes + len] = 0;
    t->list[t->n++] = (struct pgs_tag_info){.name = NULL, .len = len, .version = version};
    t->n_bytes += len + 1;
    return 0;
}

int pgs__tags_list(struct pgs__session *s, struct pgs_tag_info **list, size_t *n, struct pgs_error *err)
{
    struct pgs__ledger l;
    struct tag_list t = {0};
    struct pgs_tag_info *block = NULL;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = pgs__ledger_tags(&l, add_tag, &t, err);
    pgs__meta_end(s, &l);
    if (rc == 0 && t.n) {
        block = pgs__malloc(t.n * sizeof *block + t.n_bytes);
        if (!block) rc = -PGS_ENOMEM;
    }
    if (rc == -PGS_ENOMEM) pgs__fail(err, PGS_ENOMEM, "no memory for the list of tags");
    if (rc == 0 && t.n) {
        char *at = (char *)(block + t.n);
        memcpy(block, t.list, t.n * sizeof *block);
        memcpy(at, t.names, t.n_bytes);
        for (size_t i = 0; i < t.n; at += block[i].len + 1, i++) block[i].name = at;
    }
    pgs__free(t.list);
    pgs__free(t.names);
    if (rc) return rc;
    *list = block;
    *n = t.n;
    return 0;
}

/* The lock, a generation; what `edit` says; done. */
static int tag_commit(struct pgs__session *s, const struct pgs__wait *w, const char *name, size_t len,
                      const int64_t *version, struct pgs_error *err)
{
    struct pgs__commit c;
    struct pgs__root root = {0};
    int64_t wanted = version ? *version : 0;
    int rc = pgs__commit_begin(&c, s, w, err);
    if (rc) return rc;
    c.freeing = !version;
    if (version) rc = pgs__find_version(&c.l, &wanted, &root, err);
    if (rc == 0) rc = pgs__commit_start(&c, false, err);
    if (rc == 0)
        rc = version ? pgs__ledger_tag_set(&c.l, name, len, root.version, err)
                     : pgs__ledger_tag_del(&c.l, name, len, err);
    if (rc == 0) return pgs__commit_end(&c, NULL, err);
    pgs__commit_abandon(&c);
    return rc;
}

int pgs__tag(struct pgs__session *s, const struct pgs__wait *w, const char *name, size_t len, int64_t version,
             struct pgs_error *err)
{
    int rc = pgs__tag_check(name, len, err);
    return rc ? rc : tag_commit(s, w, name, len, &version, err);
}

int pgs__untag(struct pgs__session *s, const struct pgs__wait *w, const char *name, size_t len, struct pgs_error *err)
{
    return tag_commit(s, w, name, len, NULL, err);
}

/* --- log, waiting ------------------------------------------------------------------------------------------------------------------------ */

int pgs__log(struct pgs__session *s, uint64_t before, int (*fn)(void *ctx, const struct pgs_commit_info *c), void *ctx,
             struct pgs_error *err)
{
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = pgs__ledger_log_walk(&l, before, fn, ctx, err);
    pgs__meta_end(s, &l);
    return rc;
}

struct revision {
    bool known, exists;
    uint64_t id, version;
};

static int revision_in(struct pgs__session *s, const struct pgs__root *root, const void *key, size_t len,
                       struct revision *out, struct pgs_error *err)
{
    struct pgs__tree catalog = pgs__root_catalog(s, root);
    struct pgs__object o;
    struct pgs_error local = {0};
    int rc = pgs__object_find(s, &catalog, key, len, &o, &local);
    if (rc && rc != -PGS_ENOENT) {
        if (err && err->code == 0) *err = local;
        return rc;
    }
    *out = (struct revision){.known = true, .exists = rc == 0};
    if (rc == 0) out->id = o.id, out->version = o.version;
    return 0;
}

/* The key's revision at a version (−1: the newest, whose number goes to *version). A version that is gone leaves it unknown. */
static int revision_at(struct pgs__session *s, int64_t at, const void *key, size_t len, struct revision *out,
                       uint64_t *version, struct pgs_error *err)
{
    struct pgs__root root;
    struct pgs__pin pin;
    struct pgs_error local = {0};
    int rc =
        at < 0 ? pgs__pin_head(s, &root, &pin, err) : pgs__pin_find(s, pgs__find_version, &at, &root, &pin, &local);
    if (at >= 0 && (rc == -PGS_EEXPIRED || rc == -PGS_EINVAL)) {
        *out = (struct revision){0};
        return 0;
    }
    if (rc) {
        if (err && err->code == 0) *err = local;
        return rc;
    }
    rc = revision_in(s, &root, key, len, out, err);
    if (rc == 0 && version) *version = root.version;
    pgs__pin_drop(s, &pin);
    return rc;
}

static bool changed(const struct revision *old, const struct revision *now, uint64_t after)
{
    if (!old->known) return !now->exists || now->version > after; /* the old state is gone: believe the record */
    if (old->exists != now->exists) return true;
    return now->exists && (old->id != now->id || old->version != now->version);
}

int pgs__wait_key(struct pgs__session *s, uint64_t after, const void *key, size_t len, const struct pgs__wait *w,
                  uint64_t *version, struct pgs_error *err)
{
    struct revision old, now;
    struct pgs__wait left = *w;
    uint64_t start = pgs__clock_boot_ns(), seen = after, newest;
    int rc = revision_at(s, (int64_t)pgs__min_u64(after, INT64_MAX), key, len, &old, NULL, err);
    while (rc == 0) {
        rc = pgs__wait_version(s, seen, &left, &newest, err);
        if (rc == 0) rc = revision_at(s, -1, key, len, &now, &newest, err);
        if (rc) break;
        if (changed(&old, &now, after)) {
            *version = newest;
            return 0;
        }
        seen = newest;
        if (w->timeout_ns >= 0) {
            uint64_t spent = pgs__clock_boot_ns() - start;
            left.timeout_ns = spent >= (uint64_t)w->timeout_ns ? 0 : w->timeout_ns - (int64_t)spent;
        }
    }
    return rc;
}
