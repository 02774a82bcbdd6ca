/* Pagestone | txn/ledger_tag — names for versions: 't' name -> version.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A tagged version is never expired by history=. The count of its tags lies in its chain entry; that of the head's version in the record, until the next version makes a chain
 * entry of it. Tags never move: setting one that exists is an error.
 */
#include "libshm/txn/ledger_impl.h"

#define TAG_MAX 1024u

/* 't' + name. The names' rules are the caller's; here they only have to fit. */
static int tag_key(uint8_t *key, const char *name, size_t len, struct pgs_error *err)
{
    if (len == 0 || len > TAG_MAX) return pgs__fail(err, PGS_EINVAL, "a tag of %zu bytes", len);
    key[0] = 't';
    memcpy(key + 1, name, len);
    return 0;
}

int pgs__ledger_find_tag(struct pgs__ledger *l, const char *name, size_t len, uint64_t *version, struct pgs_error *err)
{
    uint8_t key[1 + TAG_MAX];
    struct pgs_span val;
    if (len == 0 || len > TAG_MAX) return -PGS_ENOENT;
    int rc = tag_key(key, name, len, err);
    l->n_touched++;
    if (!rc) rc = pgs__meta_get(&l->meta, key, 1 + len, &val, err);
    return rc ? rc : pgs__lval_num(val, 't', version, err);
}

int pgs__ledger_tags(struct pgs__ledger *l, int (*fn)(void *ctx, const char *name, size_t len, uint64_t version),
                     void *ctx, struct pgs_error *err)
{
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, (const uint8_t *)"t", 1, err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 't', err)) {
        uint64_t version;
        rc = pgs__lval_u64(&c, &version, err);
        if (!rc) rc = fn(ctx, (const char *)c.key.p + 1, c.key.len - 1, version);
        if (rc) return rc;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* One tag more (+1) or less (-1) on a listed version. */
static int count_tag(struct pgs__ledger *l, uint64_t version, int delta, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    struct pgs__chain e;
    pgs_gen_t gen;
    bool head = version == h->version;
    int rc = head ? 0 : pgs__lversion_gen(l, version, &gen, err);
    if (!rc && !head) rc = pgs__lchain_get(l, gen, &e, err);
    if (rc == -PGS_ENOENT)
        return pgs__fail_corrupt(err, "the ledger", "version %llu is tagged but not kept", (unsigned long long)version);
    if (rc) return rc;
    uint32_t *n = head ? &h->head_tags : &e.n_tags;
    if (delta < 0 && *n == 0)
        return pgs__fail_corrupt(err, "the ledger", "version %llu has more tags than it counts",
                                 (unsigned long long)version);
    *n = delta > 0 ? *n + 1 : *n - 1;
    if (head) return 0;
    if (delta > 0 && e.n_tags == 1) h->n_tagged++;
    if (delta < 0 && e.n_tags == 0) {
        if (h->n_tagged > 0) h->n_tagged--;
        h->expire_hint = pgs__min_u64(h->expire_hint, version);
    }
    return pgs__lchain_put(l, gen, &e, false, err);
}

int pgs__ledger_tag_set(struct pgs__ledger *l, const char *name, size_t len, uint64_t version, struct pgs_error *err)
{
    uint8_t key[1 + TAG_MAX];
    uint64_t old;
    struct pgs__root root;
    if (!l->gen) return pgs__fail(err, PGS_EBUG, "tag without begin");
    int rc = tag_key(key, name, len, err);
    if (rc) return rc;
    rc = pgs__ledger_find_tag(l, name, len, &old, err);
    if (rc == 0)
        return pgs__fail(err, PGS_EEXIST, "tag '%.*s' exists and names version %llu; untag it first", (int)len, name,
                         (unsigned long long)old);
    if (rc == -PGS_ENOENT) rc = pgs__ledger_find_version(l, version, &root, err);
    if (!rc) rc = count_tag(l, version, 1, err);
    return rc ? rc : pgs__lput_u64(l, key, 1 + len, version, true, err);
}

int pgs__ledger_tag_del(struct pgs__ledger *l, const char *name, size_t len, struct pgs_error *err)
{
    uint8_t key[1 + TAG_MAX];
    uint64_t version;
    if (!l->gen) return pgs__fail(err, PGS_EBUG, "untag without begin");
    int rc = pgs__ledger_find_tag(l, name, len, &version, err);
    if (rc == -PGS_ENOENT) return pgs__fail(err, PGS_ENOENT, "no tag '%.*s'", (int)pgs__min_u64(len, 200), name);
    if (!rc) rc = tag_key(key, name, len, err);
    if (!rc) rc = count_tag(l, version, -1, err);
    return rc ? rc : pgs__ldel(l, key, 1 + len, err);
}
