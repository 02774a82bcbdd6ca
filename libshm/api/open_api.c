/* Pagestone | api/open_api — opening, closing and describing stores.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdio.h>
#include <unistd.h>

#include "libshm/platform/mem.h"
#include "libshm/txn/policy.h"
#include "libshm/txn/store.h"
#include "libshm/txn/upkeep.h"

/* A store's own pages: superblocks, records and the trees of an empty store while a commit writes new ones beside them. Below this the first commits fail. */
#define MIN_SIZE (128u << 10)
#define DEFAULT_TIMEOUT_NS (30ll * 1000000000ll)
enum { HANDLE_PATH = 'P', HANDLE_MEMBERS = 'A' };

/* Owner is the caller or root, and nobody else may write. */
static bool is_private(int fd)
{
    struct stat st;
    if (fd < 0 || pgs__file_ops->fstat(fd, &st) < 0) return false;
    return (st.st_uid == geteuid() || st.st_uid == 0) && (st.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

static bool is_owner_private(struct pgs__session *s)
{
    if (s->pf.anonymous) return true;
    return is_private(s->pf.dir_fd) && is_private(s->pf.fd) && is_private(s->ctl.fd);
}

static int check_options(const struct pgs_options *o, struct pgs_error *err)
{
    if (o->mode < PGS_MODE_R || o->mode > PGS_MODE_X)
        return pgs__fail(err, PGS_EINVAL, "an unknown mode; use one of r, r+, a, w, x");
    if (o->size && o->size < MIN_SIZE)
        return pgs__fail(err, PGS_EINVAL, "size= of %llu bytes is too small: a store needs at least %u bytes (%u KiB)",
                         (unsigned long long)o->size, MIN_SIZE, MIN_SIZE >> 10);
    if (o->durability < PGS_DUR_KEEP || o->durability > PGS_DUR_FULL)
        return pgs__fail(err, PGS_EINVAL, "an unknown durability; use none, ordered or full");
    if (o->history < PGS_HIST_KEEP || o->history > PGS_HIST_ALL)
        return pgs__fail(err, PGS_EINVAL, "an unknown kind of history");
    if (o->checksums < -1 || o->checksums > 1)
        return pgs__fail(err, PGS_EINVAL, "checksums are 0 (as they are), 1 or -1");
    return 0;
}

static bool has_settings(const struct pgs_options *o)
{
    return o->size || o->durability || o->history || o->checksums || o->freeze_ns;
}

/* Takes the session's reference, also when it fails. */
static int make_store(struct pgs__session *s, const struct pgs_options *o, struct pgs_store **out,
                      struct pgs_error *err)
{
    struct pgs_store *st = pgs__calloc(1, sizeof *st);
    if (!st) {
        pgs__session_unref(s);
        return pgs__fail(err, PGS_ENOMEM, "no memory for a store");
    }
    atomic_init(&st->refs, 1);
    st->s = s;
    st->mode = o->mode;
    st->wait = (struct pgs__wait){.timeout_ns = o->timeout_ns ? o->timeout_ns : DEFAULT_TIMEOUT_NS,
                                  .interrupted = o->interrupted,
                                  .ctx = o->interrupted_ctx};
    st->owner_private = is_owner_private(s);
    if (o->mode != PGS_MODE_R && has_settings(o)) {
        int rc = pgs__settings_apply(s, &st->wait, o, err);
        if (rc) {
            pgs_store_unref(st);
            return rc;
        }
    }
    *out = st;
    return 0;
}

static struct pgs_options options_or(const struct pgs_options *opt, enum pgs_mode mode)
{
    struct pgs_options o = {0};
    if (opt) o = *opt;
    if (o.mode == 0) o.mode = mode;
    return o;
}

int pgs_open(const char *path, const struct pgs_options *opt, pgs_store **out, struct pgs_error *err)
{
    struct pgs_options o = options_or(opt, PGS_MODE_A);
    struct pgs__session *s;
    int rc = check_options(&o, err);
    if (rc) return rc;
    if (path && !*path) return pgs__fail(err, PGS_ENOENT, "an empty path names no store");
    if (!path && (o.mode == PGS_MODE_R || o.mode == PGS_MODE_RPLUS))
        return pgs__fail(err, PGS_EINVAL,
                         "an anonymous store is always new: open it with mode a, w or x, or by its handle");
    rc = path ? pgs__session_open(path, &o, &s, err) : pgs__session_open_anonymous(&o, &s, err);
    return rc ? rc : make_store(s, &o, out, err);
}

int pgs_open_handle(const void *handle, size_t len, const struct pgs_options *opt, pgs_store **out,
                    struct pgs_error *err)
{
    struct pgs_options o = options_or(opt, PGS_MODE_RPLUS);
    const char *h = handle;
    struct pgs__session *s;
    int rc = check_options(&o, err);
    if (rc) return rc;
    if (o.mode == PGS_MODE_W || o.mode == PGS_MODE_X)
        return pgs__fail(err, PGS_EINVAL, "a handle names a store that exists: open it with mode r, r+ or a");
    if (len < 2 || (h[0] != HANDLE_PATH && h[0] != HANDLE_MEMBERS))
        return pgs__fail(err, PGS_EINVAL, "this is no handle of a store");
    if (h[0] == HANDLE_MEMBERS) {
        rc = pgs__session_open_handle(h + 1, len - 1, &o, &s, err);
        return rc ? rc : make_store(s, &o, out, err);
    }
    char *path = pgs__malloc(len);
    if (!path) return pgs__fail(err, PGS_ENOMEM, "no memory for a path");
    memcpy(path, h + 1, len - 1);
    path[len - 1] = 0;
    if (o.mode == PGS_MODE_A) o.mode = PGS_MODE_RPLUS; /* what was passed on is never created anew */
    rc = pgs__session_open(path, &o, &s, err);
    pgs__free(path);
    return rc ? rc : make_store(s, &o, out, err);
}

size_t pgs_store_handle(pgs_store *st, void *buf, size_t cap)
{
    char *to = buf;
    if (st->s->pf.anonymous) {
        if (cap) to[0] = HANDLE_MEMBERS;
        return 1 + pgs__session_handle(st->s, cap ? to + 1 : to, cap ? cap - 1 : 0);
    }
    size_t len = strlen(st->s->pf.path);
    if (cap) {
        to[0] = HANDLE_PATH;
        memcpy(to + 1, st->s->pf.path, len < cap - 1 ? len : cap - 1);
    }
    return 1 + len;
}

pgs_store *pgs_store_ref(pgs_store *st)
{
    atomic_fetch_add_explicit(&st->refs, 1, memory_order_relaxed); /* relaxed: who adds one already has one */
    return st;
}

int pgs_close(pgs_store *st, struct pgs_error *err)
{
    if (atomic_exchange(&st->closed, true)) return 0;
    if (st->mode == PGS_MODE_R || !st->s->writable || pgs__session_check(st->s, NULL)) return 0;
    struct pgs__ledger l;
    int rc = pgs__meta_begin(st->s, &l, err);
    if (rc) return rc;
    static const struct pgs__wait soon = {.timeout_ns = 1000000000};
    bool ordered = l.meta.hdr.durability == PGS_DUR_ORDERED;
    pgs__meta_end(st->s, &l);
    if (atomic_load(&st->s->ctl.c->state) == 1) (void)pgs__policy_step(st->s, &soon, PGS__POLICY_STEP, NULL, NULL);
    if (!ordered || atomic_load(&st->s->ctl.c->state) != 1) return 0; /* replaced: its commits are nobody's any more */
    rc = pgs__make_durable(st->s, &st->wait, err);
    if (rc != -PGS_ESTALE) return rc;
    if (err) *err = (struct pgs_error){0}; /* deleted: as if replaced */
    return 0;
}

void pgs_store_unref(pgs_store *st)
{
    if (!st || atomic_fetch_sub_explicit(&st->refs, 1, memory_order_acq_rel) > 1)
        return; /* pairs with other droppers */
    pgs_close(st, NULL);
    pgs__session_unref(st->s);
    pgs__free(st);
}

int pgs_store_info(pgs_store *st, struct pgs_info *out, struct pgs_error *err)
{
    const struct pgs__pagefile *pf = &st->s->pf;
    struct pgs_info i = {.path = pf->anonymous ? NULL : pf->path, .mode = st->mode, .owner_private = st->owner_private};
    struct pgs__ledger l;
    struct pgs__policy policy;
    enum pgs__fs_kind kind;
    int rc = pgs__store_use(st, false, err);
    if (rc == 0) rc = pgs__meta_begin(st->s, &l, err);
    if (rc) return rc;
    const struct pgs__record *hdr = &l.meta.hdr;
    i.quota = hdr->quota_bytes;
    i.durability = (enum pgs_durability)hdr->durability;
    i.history = (enum pgs_history_kind)hdr->history_kind;
    i.history_value = hdr->history_value;
    i.checksums = hdr->checksums != 0;
    rc = pgs__policy_get(&l, &policy, err);
    pgs__meta_end(st->s, &l);
    if (rc) return rc;
    i.freeze_ns = policy.age_ns;
    memcpy(i.uuid, pf->uuid, sizeof i.uuid);
    i.read_only = st->mode == PGS_MODE_R || !st->s->writable;
    if (pf->anonymous && !pf->path)
        snprintf(i.fs, sizeof i.fs, "memfd");
    else if (pgs__fs_kind(pf->fd, &kind, i.fs) < 0)
        snprintf(i.fs, sizeof i.fs, "unknown");
    *out = i;
    return 0;
}

uint64_t pgs_store_version(pgs_store *st)
{
    struct pgs__root root = {0};
    pgs__ctl_head(&st->s->ctl, &root);
    return root.version;
}
