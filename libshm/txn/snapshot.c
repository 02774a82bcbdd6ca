/* Pagestone | txn/snapshot — public snapshots: a root, and the pin that keeps it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A snapshot holds its session, not its store: it works after pgs_close and in forked children (the fork hooks copied the pin). Its root is a copy, so getters touch
 * no shared memory.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/versions.h"

static int wrap(struct pgs__session *s, const struct pgs__root *root, const struct pgs__pin *pin,
                struct pgs_snapshot **out, struct pgs_error *err)
{
    int rc = pgs__snapshot_new(s, root, pin, out, err);
    if (rc) pgs__pin_drop(s, pin);
    return rc;
}

static int open_found(struct pgs_store *st, pgs__find_fn find, void *ctx, struct pgs_snapshot **out,
                      struct pgs_error *err)
{
    struct pgs__root root;
    struct pgs__pin pin;
    int rc = pgs__store_use(st, false, err);
    if (rc == 0) rc = pgs__pin_find(st->s, find, ctx, &root, &pin, err);
    return rc ? rc : wrap(st->s, &root, &pin, out, err);
}

int pgs_snapshot_head(pgs_store *st, pgs_snapshot **out, struct pgs_error *err)
{
    struct pgs__root root;
    struct pgs__pin pin;
    int rc = pgs__store_use(st, false, err);
    if (rc == 0) rc = pgs__pin_head(st->s, &root, &pin, err);
    return rc ? rc : wrap(st->s, &root, &pin, out, err);
}

int pgs__find_version(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *err)
{
    int64_t version = *(const int64_t *)ctx;
    if (version < 0) return pgs__ledger_find_index(l, version, root, err);
    return pgs__ledger_find_version(l, (uint64_t)version, root, err);
}

int pgs_snapshot_at(pgs_store *st, int64_t version, pgs_snapshot **out, struct pgs_error *err)
{
    return open_found(st, pgs__find_version, &version, out, err);
}

static int find_time(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *err)
{
    return pgs__ledger_find_time(l, *(const uint64_t *)ctx, root, err);
}

int pgs_snapshot_at_time(pgs_store *st, uint64_t time_ns, pgs_snapshot **out, struct pgs_error *err)
{
    return open_found(st, find_time, &time_ns, out, err);
}

static int find_tag(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *err)
{
    const struct pgs_span *tag = ctx;
    uint64_t version;
    int rc = pgs__ledger_find_tag(l, tag->p, tag->len, &version, err);
    if (rc == -PGS_ENOENT)
        return pgs__fail(err, PGS_ENOENT, "no tag '%.*s'", (int)pgs__min_u64(tag->len, 200), (const char *)tag->p);
    return rc ? rc : pgs__ledger_find_version(l, version, root, err);
}

int pgs_snapshot_at_tag(pgs_store *st, const char *tag, size_t len, pgs_snapshot **out, struct pgs_error *err)
{
    struct pgs_span name = {tag, len};
    return open_found(st, find_tag, &name, out, err);
}

int pgs_snapshot_gen_open(pgs_store *st, uint64_t gen, pgs_snapshot **out, struct pgs_error *err)
{
    struct pgs__root root;
    struct pgs__pin pin;
    int rc = pgs__store_use(st, false, err);
    if (rc == 0) rc = pgs__pin_gen(st->s, gen, st->wait.timeout_ns, &root, &pin, err);
    return rc ? rc : wrap(st->s, &root, &pin, out, err);
}

pgs_snapshot *pgs_snapshot_ref(pgs_snapshot *sn)
{
    atomic_fetch_add_explicit(&sn->refs, 1,
                              memory_order_relaxed); /* the caller holds one: it cannot go away meanwhile */
    return sn;
}

void pgs_snapshot_unref(pgs_snapshot *sn)
{
    /* acq_rel: reads through other references happened before; pairs with itself */
    if (!sn || atomic_fetch_sub_explicit(&sn->refs, 1, memory_order_acq_rel) != 1) return;
    pgs__pin_drop(sn->s, &sn->pin);
    pgs__session_unref(sn->s);
    pgs__free(sn);
}

uint64_t pgs_snapshot_version(const pgs_snapshot *sn)
{
    return sn->root.version;
}

uint64_t pgs_snapshot_time_ns(const pgs_snapshot *sn)
{
    return sn->root.time_ns;
}

uint64_t pgs_snapshot_gen(const pgs_snapshot *sn)
{
    return sn->root.gen;
}

uint64_t pgs_snapshot_count(const pgs_snapshot *sn)
{
    return sn->root.n_objects;
}
