/* Pagestone | fuse/inode — names in a snapshot, the inodes that they are, and what stat(2) says of those.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One inode stands for one object in one revision (id, version) with one attribute record under one path. Files under head and files of versions are different inodes even
 * where their content is the same, because the ones can be written and the others cannot, and a request on an inode does not say by which name it came; all versions share one.
 * st_ino is the same for all of them.
 */
#define _GNU_SOURCE
#include "fuse/view.h"

#include <errno.h>
#include <string.h>

/* --- keys ----------------------------------------------------------------------------------------------------------------------- */

const char *suffix_of(enum pgs_kind kind)
{
    return kind == PGS_KIND_ARRAY ? ".npy" : kind == PGS_KIND_PLAIN || kind == PGS_KIND_PICKLE ? ".pkl" : "";
}

size_t key_of(enum pgs_kind kind, const char *path, size_t len, char *key)
{
    const char *suffix = suffix_of(kind);
    size_t n = strlen(suffix);
    if (len <= n || memcmp(path + len - n, suffix, n) || path[len - n - 1] == '/' || len - n > PGS_MAX_KEY) return 0;
    memcpy(key, path, len - n);
    return len - n;
}

int path_join(const struct inode *dir, const char *name, char path[VIEW_PATH_MAX], size_t *len)
{
    size_t n = strlen(name), at = dir->path_len;
    if (n > 255 || at + 1 + n > VIEW_PATH_MAX) return -ENAMETOOLONG;
    memcpy(path, dir->path, at);
    if (at) path[at++] = '/';
    memcpy(path + at, name, n);
    *len = at + n;
    return 0;
}

/* --- finding --------------------------------------------------------------------------------------------------------------------- */

/* Is there an object whose file has this path, being of such a kind? 1, 0, -errno. */
static int try_kind(pgs_snapshot *sn, enum pgs_kind kind, const char *path, size_t len, struct pgs_object *obj)
{
    char key[PGS_MAX_KEY + 4];
    size_t n = key_of(kind, path, len, key);
    int rc = n ? pgs_get(sn, key, n, obj, NULL) : -PGS_ENOENT;
    if (rc == -PGS_ENOENT) return 0;
    if (rc) return view_errno(rc);
    return obj->kind == PGS_KIND_DIR ? *suffix_of(kind) == 0 : !strcmp(suffix_of(obj->kind), suffix_of(kind));
}

static int find_object(pgs_snapshot *sn, const char *path, size_t len, struct found *out)
{
    static const enum pgs_kind kinds[] = {PGS_KIND_ARRAY, PGS_KIND_PICKLE, PGS_KIND_BYTES};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        int rc = try_kind(sn, kinds[i], path, len, &out->obj);
        if (rc < 0) return rc;
        if (rc == 0) continue;
        out->kind = out->obj.kind == PGS_KIND_DIR ? INODE_DIR : INODE_FILE;
        return 0;
    }
    int rc = dir_has_entries(sn, path, len);
    if (rc > 0) out->kind = INODE_DIR;
    return rc < 0 ? rc : 0;
}

int find_path(pgs_snapshot *sn, const char *path, size_t len, struct found *out)
{
    memset(out, 0, sizeof *out);
    if (len == 0) {
        out->kind = INODE_DIR;
        return 0;
    }
    int rc = find_object(sn, path, len, out);
    if (rc == 0) rc = record_get(sn, path, len, &out->rec);
    if (rc) return rc;
    bool counts = out->kind == INODE_FILE  ? out->rec.object == out->obj.id && !(out->rec.flags & (REC_LINK | REC_DIR))
                  : out->kind == INODE_DIR ? !(out->rec.flags & REC_LINK)
                                           : (out->rec.flags & REC_LINK) != 0;
    if (!counts) record_release(&out->rec);
    if (out->rec.id && out->kind == INODE_FREE) out->kind = INODE_LINK;
    return 0;
}

void found_release(struct found *f)
{
    record_release(&f->rec);
}

/* --- inodes ------------------------------------------------------------------------------------------------------------------------- */

static uint64_t file_scope(uint64_t scope)
{
    return scope == SCOPE_HEAD ? SCOPE_HEAD : SCOPE_NONE;
}

static int64_t mtime_of(struct view *v, const struct found *f, uint64_t sn_version)
{
    bool file = f->kind == INODE_FILE;
    if (f->rec.id && (f->rec.flags & REC_MTIME) && (!file || f->rec.version == f->obj.version)) return f->rec.mtime_ns;
    return version_time(v, file ? f->obj.version : sn_version);
}

static struct inode *seen_in(struct inode *n, uint64_t version)
{
    uint64_t seen = n ? atomic_load(&n->seen) : UINT64_MAX;
    while (n && seen < version && !atomic_compare_exchange_weak(&n->seen, &seen, version)) {
    }
    return n;
}

struct inode *inode_of(struct view *v, pgs_snapshot *sn, uint64_t scope, const char *path, size_t len,
                       const struct found *f)
{
    if (f->kind == INODE_DIR) return inode_of_dir(v, scope, path, len);
    struct inode_id id = {f->kind, file_scope(scope), 0, 0, f->rec.id, path, len};
    uint64_t version = pgs_snapshot_version(sn);
    if (f->kind == INODE_FILE) {
        id.a = f->obj.id;
        id.b = f->obj.version;
    }
    struct inode *n = inode_find(&v->share, &id);
    if (n) return seen_in(n, version);
    struct inode_fill fill = {.seen = version, .mtime_ns = mtime_of(v, f, version), .mode = 0777};
    if (f->kind == INODE_FILE) {
        fill.object_kind = (uint8_t)f->obj.kind;
        fill.mode = f->rec.flags & REC_MODE ? f->rec.mode : v->dir_mode & 0666u;
        if (content_size(sn, &f->obj, &f->rec, &fill.size)) {
            fill.flags = INODE_DAMAGED; /* it is listed, and cannot be read */
            fill.size = f->obj.n_bytes;
        }
    } else
        fill.size = f->rec.tail_len;
    return seen_in(inode_make(&v->share, &id, &fill), version);
}

struct inode *inode_of_dir(struct view *v, uint64_t scope, const char *path, size_t len)
{
    struct inode_id id = {INODE_DIR, scope, 0, 0, 0, path, len};
    struct inode_fill fill = {0};
    return inode_make(&v->share, &id, &fill);
}

/* --- stat ------------------------------------------------------------------------------------------------------------------------ */

static void set_time(struct stat *st, int64_t ns)
{
    int64_t s = ns / 1000000000, rest = ns % 1000000000;
    if (rest < 0) s--, rest += 1000000000;
    st->st_mtim = st->st_ctim = st->st_atim = (struct timespec){.tv_sec = s, .tv_nsec = (long)rest};
}

static mode_t writable(const struct view *v, uint64_t scope, mode_t mode)
{
    return scope == SCOPE_HEAD && !v->read_only ? mode : mode & ~0222u;
}

void inode_stat(struct view *v, const struct inode *n, struct stat *st)
{
    enum inode_kind kind = (enum inode_kind)atomic_load(&n->kind);
    if (kind == INODE_STAGE && v->writer) {
        v->writer->stage_stat(v, n, st);
        return;
    }
    struct inode_id id = {kind, n->scope, n->a, n->b, n->c, n->path, n->path_len};
    memset(st, 0, sizeof *st);
    st->st_ino = inode_public_number(&id);
    st->st_uid = v->uid;
    st->st_gid = v->gid;
    st->st_nlink = 1;
    st->st_blksize = 131072;
    st->st_size = (off_t)atomic_load(&n->size);
    st->st_blocks = (blkcnt_t)((atomic_load(&n->size) + 511) / 512);
    set_time(st, atomic_load(&n->mtime_ns));
    if (kind == INODE_FILE)
        st->st_mode = S_IFREG | writable(v, n->scope, atomic_load(&n->mode));
    else if (kind == INODE_LINK)
        st->st_mode = S_IFLNK | 0777;
    else if (kind == INODE_META && n->a)
        st->st_mode = S_IFREG | (v->dir_mode & 0444);
    else
        st->st_mode = S_IFDIR | writable(v, n->scope, v->dir_mode);
}

void root_stat(struct view *v, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = ROOT_INO;
    st->st_uid = v->uid;
    st->st_gid = v->gid;
    st->st_nlink = 1;
    st->st_blksize = 4096;
    st->st_mode = S_IFDIR | (v->dir_mode & ~0222u);
    set_time(st, version_time(v, pgs_store_version(v->store)));
}

int dir_stat(struct view *v, const struct inode *n, struct stat *st)
{
    pgs_snapshot *sn;
    struct record rec = {0};
    inode_stat(v, n, st);
    if (atomic_load(&n->kind) != INODE_DIR) {
        if (atomic_load(&n->kind) == INODE_META) set_time(st, version_time(v, pgs_store_version(v->store)));
        return 0;
    }
    int rc = scope_open(v, n->scope, &sn);
    if (rc) return rc;
    if (n->path_len) rc = record_get(sn, n->path, n->path_len, &rec);
    if (rec.flags & REC_LINK) record_release(&rec);
    struct found f = {.kind = INODE_DIR, .rec = rec};
    set_time(st, mtime_of(v, &f, pgs_snapshot_version(sn)));
    if (rec.id && (rec.flags & REC_MODE)) st->st_mode = S_IFDIR | writable(v, n->scope, rec.mode);
    record_release(&rec);
    pgs_snapshot_unref(sn);
    return rc;
}

double attr_timeout(const struct inode *n)
{
    switch (atomic_load(&n->kind)) {
    case INODE_FILE:
    case INODE_LINK:
        return FOREVER;
    case INODE_DIR:
        return n->scope == SCOPE_HEAD ? DIR_SECONDS : FOREVER;
    case INODE_META:
        return n->a ? 0 : DIR_SECONDS;
    default:
        return 0;
    }
}

void inode_entry(struct view *v, const struct inode *n, struct fuse_entry_param *e)
{
    memset(e, 0, sizeof *e);
    e->ino = inode_number(&v->share, n);
    e->generation = n->generation;
    e->attr_timeout = attr_timeout(n);
    inode_stat(v, n, &e->attr);
}
