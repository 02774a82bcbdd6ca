/* Pagestone | fuse/rename — moving names under head.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A rename moves objects and their records as they are; where the new name asks for another kind ("x.npy.tmp" → "x.npy") the object is made anew from its file's bytes in the same transaction, and a
 * ".npy" that does not parse makes the rename fail. A directory moves with all that is below it in one transaction.
 *
 * What is being written moves along: its staging file gets the new path and is published there. What it replaces stays in the store until then, hidden by its name.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fuse/stage.h"

#define NOREPLACE 1u /* RENAME_NOREPLACE */

/* --- moving a directory ------------------------------------------------------------------------------------------------------------------------ */
struct keys { /* u16 length and bytes, one after the other */
    char *p;
    size_t len, cap;
};

static int keys_add(struct keys *k, const void *key, size_t len)
{
    if (k->len + 2 + len > k->cap) {
        size_t cap = 2 * (k->cap + 2 + len);
        char *more = realloc(k->p, cap);
        if (!more) return -ENOMEM;
        k->p = more;
        k->cap = cap;
    }
    uint16_t n = (uint16_t)len;
    memcpy(k->p + k->len, &n, 2);
    memcpy(k->p + k->len + 2, key, len);
    k->len += 2 + len;
    return 0;
}

static int keys_below(pgs_snapshot *sn, const char *prefix, size_t len, struct keys *out)
{
    struct pgs_iter *it;
    const void *key;
    size_t n;
    int rc = pgs_iter_snapshot(sn, prefix, len, &it, NULL);
    if (rc) return view_errno(rc);
    while ((rc = pgs_iter_next(it, &key, &n, NULL, NULL)) == 0)
        if ((rc = keys_add(out, key, n)) != 0) break;
    pgs_iter_free(it);
    return rc == -PGS_ENOENT ? 0 : rc == -ENOMEM ? rc : view_errno(rc);
}

/* Move every key that begins with `from` to the same with `to` in its place. */
static int move_below(pgs_txn *t, pgs_snapshot *base, const char *from, size_t from_len, const char *to, size_t to_len)
{
    struct keys k = {0};
    char moved[PGS_MAX_KEY];
    int rc = keys_below(base, from, from_len, &k);
    for (size_t at = 0; at < k.len && rc == 0;) {
        uint16_t n;
        memcpy(&n, k.p + at, 2);
        const char *key = k.p + at + 2;
        at += 2 + (size_t)n;
        if (to_len + n - from_len > sizeof moved) {
            rc = -ENAMETOOLONG;
            break;
        }
        memcpy(moved, to, to_len);
        memcpy(moved + to_len, key + from_len, n - from_len);
        rc = view_errno(pgs_txn_move(t, key, n, moved, to_len + n - from_len, NULL));
    }
    free(k.p);
    return rc;
}

static int move_record(pgs_txn *t, const struct name *a, const struct name *b)
{
    char from[PGS_MAX_KEY], to[PGS_MAX_KEY];
    size_t n = record_key(a->path, a->len, from), m = record_key(b->path, b->len, to);
    if (n == 0) return 0;
    int rc = m ? pgs_txn_move(t, from, n, to, m, NULL) : pgs_txn_delete(t, from, n, NULL);
    return rc == -PGS_ENOENT ? 0 : view_errno(rc);
}

static int move_dir(pgs_txn *t, pgs_snapshot *base, const struct name *a, const struct name *b)
{
    char from[PGS_MAX_KEY + 8], to[PGS_MAX_KEY + 8];
    size_t n = record_key(a->path, a->len, from), m = record_key(b->path, b->len, to);
    if (n == 0 || m == 0) return -ENAMETOOLONG;
    int rc = pgs_txn_move(t, a->path, a->len, b->path, b->len, NULL); /* its marker, which it may lack */
    rc = rc == -PGS_ENOENT ? 0 : view_errno(rc);
    if (rc == 0) rc = move_record(t, a, b);
    from[n++] = to[m++] = '/';
    if (rc == 0) rc = move_below(t, base, from, n, to, m); /* records, which begin with NUL and 'f' */
    size_t lead = n - a->len - 1;
    return rc ? rc : move_below(t, base, from + lead, n - lead, to + lead, m - lead);
}

/* --- moving a file ------------------------------------------------------------------------------------------------------------------------------ */
struct renaming {
    struct name a, b;
    unsigned flags;
    bool drop;      /* a's content is superseded by a staging file */
    bool converted; /* out: the object is a new one */
};

/* Can the object keep its kind under the new name? Its key there. */
static bool keeps_kind(pgs_txn *t, pgs_snapshot *base, const struct found *f, const struct renaming *r, size_t *key_len)
{
    enum wish wish, was = wish_of(r->a.path, r->a.len);
    if (f->obj.kind == PGS_KIND_BYTES && was == wish_of(r->b.path, r->b.len)) {
        *key_len = r->b.len; /* a ".npy" that the API had put as bytes stays that */
        return true;
    }
    if (f->obj.kind == PGS_KIND_BYTES && wish_of(r->b.path, r->b.len) != WISH_BYTES) return false;
    if (publish_check(t, base, r->b.path, r->b.len, &wish, key_len)) return false;
    if (f->obj.kind == PGS_KIND_ARRAY) return wish == WISH_ARRAY;
    if (f->obj.kind == PGS_KIND_BYTES) return wish == WISH_BYTES;
    return wish == WISH_PICKLE;
}

static int convert(struct view *v, pgs_txn *t, pgs_snapshot *base, const struct found *fa, const struct found *fb,
                   struct renaming *r)
{
    struct content *c;
    int rc = content_open(base, fa, &c);
    if (rc) return rc;
    struct source src = {.fd = -1, .bytes = c, .size = content_bytes(c)};
    struct record rec = fa->rec;
    if (rec.id == 0) rec = (struct record){0};
    if (!(rec.flags & REC_MTIME)) rec.mtime_ns = version_time(v, fa->obj.version);
    rec.flags = (rec.flags & REC_MODE) | REC_MTIME;
    rc = found_delete(t, fa, r->a.path, r->a.len);
    if (rc == 0) rc = publish_put(v, t, base, r->b.path, r->b.len, fb, &src, &rec);
    content_close(c);
    r->converted = true;
    return rc;
}

static int move_file(struct view *v, pgs_txn *t, pgs_snapshot *base, const struct found *fa, const struct found *fb,
                     struct renaming *r)
{
    char from[PGS_MAX_KEY];
    size_t n = key_of(fa->obj.kind, r->a.path, r->a.len, from), m;
    if (r->drop) return found_delete(t, fa, r->a.path, r->a.len);
    if (!keeps_kind(t, base, fa, r, &m)) return convert(v, t, base, fa, fb, r);
    int rc = fb->kind == INODE_FREE ? record_delete(t, r->b.path, r->b.len) : found_delete(t, fb, r->b.path, r->b.len);
    if (rc == 0) rc = view_errno(pgs_txn_move(t, from, n, r->b.path, m, NULL));
    return rc ? rc : move_record(t, &r->a, &r->b);
}

static int may_replace(pgs_snapshot *base, const struct found *fa, const struct found *fb, const struct renaming *r)
{
    if (fa->kind == INODE_FREE) return -ENOENT;
    if (!dir_exists(base, r->b.path, parent_len(r->b.path, r->b.len))) return -ENOENT;
    if (fb->kind == INODE_FREE) return 0;
    if (r->flags & NOREPLACE) return -EEXIST;
    if (fa->kind != INODE_DIR) return fb->kind == INODE_DIR ? -EISDIR : 0;
    if (fb->kind != INODE_DIR) return -ENOTDIR;
    int rc = dir_has_entries(base, r->b.path, r->b.len);
    return rc > 0 ? -ENOTEMPTY : rc;
}

static int rename_in(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    struct renaming *r = ctx;
    struct found fa, fb;
    int rc = find_path(base, r->a.path, r->a.len, &fa);
    if (rc) return rc;
    rc = find_path(base, r->b.path, r->b.len, &fb);
    if (rc) {
        found_release(&fa);
        return rc;
    }
    r->converted = false;
    rc = may_replace(base, &fa, &fb, r);
    if (rc == 0 && fa.kind == INODE_FILE) {
        rc = move_file(v, t, base, &fa, &fb, r);
    } else if (rc == 0) {
        rc = fb.kind == INODE_FREE ? record_delete(t, r->b.path, r->b.len) : found_delete(t, &fb, r->b.path, r->b.len);
        if (rc == 0) rc = fa.kind == INODE_DIR ? move_dir(t, base, &r->a, &r->b) : move_record(t, &r->a, &r->b);
    }
    found_release(&fa);
    found_release(&fb);
    return rc || r->converted ? rc : keep_parent(t, r->a.path, r->a.len);
}

static int keep_parent_in(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    struct name *a = ctx;
    (void)v, (void)base;
    return keep_parent(t, a->path, a->len);
}

/* What is committed gets its new name. A new object and a marker are not made in one transaction (publish.c P1). */
static int rename_committed(struct view *v, struct renaming *r, uint64_t *version)
{
    int rc = publish_change(v, rename_in, r, version);
    if (rc == 0 && r->converted) publish_change(v, keep_parent_in, &r->a, NULL);
    return rc;
}

/* --- names that the kernel may still believe ----------------------------------------------------------------------------------------------------------- */
/* Names that came with a listing move along with their inodes in the kernel and are valid for a moment: the path of such an inode is the one before. */
#define RECENT 16
#define RECENT_NS INT64_C(1000000000)
static struct {
    pthread_mutex_t lock;
    struct {
        char *from, *to;
        int64_t when;
    } at[RECENT];
    unsigned next;
} recent = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void remember(const struct renaming *r)
{
    char *from = strndup(r->a.path, r->a.len), *to = strndup(r->b.path, r->b.len);
    pthread_mutex_lock(&recent.lock);
    unsigned i = recent.next++ % RECENT;
    free(recent.at[i].from);
    free(recent.at[i].to);
    recent.at[i].from = from;
    recent.at[i].to = to;
    recent.at[i].when = now_real_ns();
    pthread_mutex_unlock(&recent.lock);
}

bool rename_target(const char *path, size_t len, char to[VIEW_PATH_MAX], size_t *to_len)
{
    int64_t now = now_real_ns();
    bool found = false;
    memcpy(to, path, len);
    *to_len = len;
    pthread_mutex_lock(&recent.lock);
    for (unsigned k = recent.next > RECENT ? recent.next - RECENT : 0; k < recent.next; k++) { /* oldest first */
        const char *a = recent.at[k % RECENT].from, *b = recent.at[k % RECENT].to;
        size_t n = a ? strlen(a) : 0, m = b ? strlen(b) : 0;
        if (!a || !b || now - recent.at[k % RECENT].when > RECENT_NS) continue;
        if (*to_len < n || memcmp(to, a, n) || (*to_len > n && to[n] != '/')) continue;
        if (m + *to_len - n >= VIEW_PATH_MAX) continue;
        memmove(to + m, to + n, *to_len - n);
        memcpy(to, b, m);
        *to_len += m - n;
        found = true;
    }
    pthread_mutex_unlock(&recent.lock);
    return found;
}

/* --- rename, with what is being written ------------------------------------------------------------------------------------------------------------ */
static int check_target(struct view *v, const struct renaming *r)
{
    pgs_snapshot *sn;
    struct found f;
    enum wish wish;
    size_t n;
    int rc = scope_open(v, SCOPE_HEAD, &sn);
    if (rc) return rc;
    rc = find_path(sn, r->b.path, r->b.len, &f);
    if (rc == 0) {
        if (f.kind == INODE_DIR)
            rc = -EISDIR;
        else if (f.kind != INODE_FREE && (r->flags & NOREPLACE))
            rc = -EEXIST;
        else
            rc = publish_check(NULL, sn, r->b.path, r->b.len, &wish, &n);
        found_release(&f);
    }
    pgs_snapshot_unref(sn);
    return rc;
}

/* `ga` is to be under b. What it replaces there goes when it is published; what the store has under a goes now. */
static int rename_written(struct view *v, struct stage *ga, struct renaming *r)
{
    uint64_t version = 0;
    uint32_t flags = atomic_load(&ga->flags);
    int rc;
    if (flags & (STAGE_DATA | STAGE_CREATED)) {
        r->drop = true;
        rc = check_target(v, r);
        if (rc == 0) rc = rename_committed(v, r, &version);
        if (rc == -ENOENT) rc = 0;
        if (rc == 0) ga->base_id = ga->base_version = 0;
    } else { /* published: the object moves, and the open file goes on from it */
        rc = rename_committed(v, r, &version);
        if (rc == 0 && r->converted) ga->base_id = 0, ga->base_version = version;
        if (rc == -ENOENT && server_resent()) rc = 0;
    }
    if (rc) return rc;
    stage_set_path(v->writing, ga, r->b.path, r->b.len);
    if (stage_writers(ga) || publish_is_half(v->writing, ga)) return 0;
    return publish_stage(v->writing, ga); /* no close will do it */
}

static int rename_one(struct view *v, struct renaming *r)
{
    struct writing *w = writing_of(v);
    struct stage *ga = stage_find(w, r->a.path, r->a.len), *gb = stage_find(w, r->b.path, r->b.len);
    struct stage *first = ga && gb && gb < ga ? gb : ga, *second = first == ga ? gb : ga;
    int rc = 0;
    if (first) stage_lock(w, first);
    if (second) stage_lock(w, second);
    if (gb && (r->flags & NOREPLACE) && stage_shows(w, gb)) rc = -EEXIST;
    if (rc == 0) {
        bool written = ga && ga->path_len == r->a.len && !memcmp(ga->path, r->a.path, r->a.len);
        rc = written ? rename_written(v, ga, r) : rename_committed(v, r, NULL);
    }
    if (rc == -ENOENT && server_resent()) rc = 0; /* done by the worker that died */
    if (rc == 0 && gb) stage_set_path(w, gb, "", 0);
    if (second) stage_unlock(w, second);
    if (first) stage_unlock(w, first);
    if (ga) stage_put(w, ga);
    if (gb) stage_put(w, gb);
    return rc;
}

/* --- rename of a directory: what is known of things below it ---------------------------------------------------------------------------------------- */
struct below {
    const struct renaming *r;
    struct inode **list;
    size_t n, cap;
};

static void collect_dir(void *ctx, struct inode *n)
{
    struct below *b = ctx;
    const struct name *a = &b->r->a;
    if (n->scope != SCOPE_HEAD || n->path_len < a->len || memcmp(n->path, a->path, a->len)) return;
    if (n->path_len > a->len && n->path[a->len] != '/') return;
    if (b->n == b->cap) {
        size_t cap = b->cap ? 2 * b->cap : 64;
        struct inode **more = realloc(b->list, cap * sizeof *more);
        if (!more) return;
        b->list = more;
        b->cap = cap;
    }
    b->list[b->n++] = n;
}

/* Working directories and open directories below keep their meaning. */
static void move_inodes(struct view *v, const struct renaming *r)
{
    struct below b = {.r = r};
    char path[VIEW_PATH_MAX];
    inode_each(&v->share, INODE_DIR, collect_dir, &b);
    for (size_t i = 0; i < b.n; i++) {
        struct inode *n = b.list[i];
        size_t rest = n->path_len - r->a.len;
        if (r->b.len + rest > sizeof path) continue;
        memcpy(path, r->b.path, r->b.len);
        memcpy(path + r->b.len, n->path + r->a.len, rest);
        inode_rename(&v->share, n, path, r->b.len + rest);
    }
    free(b.list);
}

static void move_stages(struct view *v, const struct renaming *r)
{
    struct writing *w = writing_of(v);
    struct stage **list = calloc(STAGES, sizeof *list);
    char path[VIEW_PATH_MAX];
    uint32_t n = list ? stage_below(w, r->a.path, r->a.len, list, STAGES) : 0;
    for (uint32_t i = 0; i < n; i++) {
        struct stage *g = list[i];
        stage_lock(w, g); /* one that is being published now is published under its old name: its close comes after */
        size_t rest = g->path_len > r->a.len ? g->path_len - r->a.len : 0;
        if (rest && r->b.len + rest <= sizeof path) {
            memcpy(path, r->b.path, r->b.len);
            memcpy(path + r->b.len, g->path + r->a.len, rest);
            stage_set_path(w, g, path, r->b.len + rest);
        }
        stage_unlock(w, g);
        stage_put(w, g);
    }
    free(list);
}

static bool is_committed_dir(struct view *v, const struct name *a)
{
    pgs_snapshot *sn;
    if (scope_open(v, SCOPE_HEAD, &sn)) return false;
    bool yes = dir_exists(sn, a->path, a->len);
    pgs_snapshot_unref(sn);
    return yes;
}

void write_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
                  unsigned flags)
{
    struct view *v = fuse_req_userdata(req);
    char a[VIEW_PATH_MAX], b[VIEW_PATH_MAX];
    struct renaming r = {.a = {a, 0}, .b = {b, 0}, .flags = flags};
    share_count(&v->share, REQ_NAME);
    int rc = flags & ~NOREPLACE ? -EINVAL : name_path(v, parent, name, a, &r.a.len);
    if (rc == 0) rc = name_path(v, newparent, newname, b, &r.b.len);
    bool same = rc == 0 && r.a.len == r.b.len && !memcmp(a, b, r.a.len);
    if (rc == 0 && !same) {
        bool dir = is_committed_dir(v, &r.a);
        if (dir && is_written_below(writing_of(v), b, r.b.len))
            rc = -ENOTEMPTY;
        else
            rc = rename_one(v, &r);
        if (rc == 0) remember(&r);
        if (rc == 0 && !dir && server_resent()) dir = is_committed_dir(v, &r.b); /* it may have died before this: */
        if (rc == 0 && dir) {
            move_stages(v, &r);
            move_inodes(v, &r);
        }
    }
    fuse_reply_err(req, -rc);
}
