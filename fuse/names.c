/* Pagestone | fuse/names — making and removing names under head, and the attributes of what is committed.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each request is one transaction (publish.c runs it again where others were first). A directory that a tool has seen does not vanish with its last entry: it gets a marker then.
 *
 * A resent request may find done what it asks for; then that is its answer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "fuse/stage.h"

/* --- paths ------------------------------------------------------------------------------------------------------------------------------ */
size_t parent_len(const char *path, size_t len)
{
    while (len && path[len - 1] != '/') len--;
    return len ? len - 1 : 0;
}

bool dir_exists(pgs_snapshot *sn, const char *path, size_t len)
{
    struct found f;
    if (len == 0) return true;
    if (find_path(sn, path, len, &f)) return false;
    bool yes = f.kind == INODE_DIR;
    found_release(&f);
    return yes;
}

int name_path(struct view *v, fuse_ino_t parent, const char *name, char path[VIEW_PATH_MAX], size_t *len)
{
    struct inode *dir = inode_at(&v->share, parent);
    if (v->read_only || !v->writing) return -EROFS;
    if (!dir) return parent == ROOT_INO ? -EROFS : -ESTALE;
    if (atomic_load(&dir->kind) != INODE_DIR || dir->scope != SCOPE_HEAD) return -EROFS;
    int rc = path_join(dir, name, path, len);
    if (rc) return rc;
    size_t n = *len - (wish_of(path, *len) == WISH_BYTES ? 0 : 4);
    if (n > PGS_MAX_KEY || strlen(name) - (*len - n) > PGS_MAX_KEY_PART) return -ENAMETOOLONG;
    return pgs_key_check(path, n, NULL) ? -EILSEQ : 0;
}

/* After something below it was removed: the directory stays. */
int keep_parent(pgs_txn *t, const char *path, size_t len)
{
    struct pgs_object o;
    struct pgs_iter *it;
    const void *key;
    size_t n = parent_len(path, len), key_len;
    if (n == 0 || pgs_txn_peek(t, path, n, &o, NULL) == 0) return 0;
    int rc = pgs_iter_txn(t, path, n + 1, &it, NULL); /* its '/', too */
    if (rc) return view_errno(rc);
    rc = pgs_iter_next(it, &key, &key_len, NULL, NULL);
    pgs_iter_free(it);
    if (rc != -PGS_ENOENT) return rc ? view_errno(rc) : 0;
    return view_errno(pgs_txn_put(t, path, n, PGS_KIND_DIR, NULL, NULL, 0, NULL));
}

/* --- removing ----------------------------------------------------------------------------------------------------------------------------- */
static int unlink_in(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    struct name *a = ctx;
    struct found f;
    (void)v;
    int rc = find_path(base, a->path, a->len, &f);
    if (rc) return rc;
    if (f.kind == INODE_FREE)
        rc = -ENOENT;
    else if (f.kind == INODE_DIR)
        rc = -EISDIR;
    else
        rc = found_delete(t, &f, a->path, a->len);
    found_release(&f);
    return rc ? rc : keep_parent(t, a->path, a->len);
}

void write_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct view *v = fuse_req_userdata(req);
    struct writing *w = writing_of(v);
    struct stage *g = NULL;
    char path[VIEW_PATH_MAX];
    struct name a = {path, 0};
    share_count(&v->share, REQ_NAME);
    int rc = name_path(v, parent, name, path, &a.len);
    if (rc == 0) {
        g = stage_find(w, path, a.len);
        if (g) stage_lock(w, g);
        bool shown = g && stage_shows(w, g);
        rc = publish_change(v, unlink_in, &a, NULL);
        if (rc == -ENOENT && (shown || server_resent())) rc = 0;
        if (g && rc == 0) stage_set_path(w, g, "", 0);
        if (g) stage_unlock(w, g);
        if (g) stage_put(w, g);
    }
    fuse_reply_err(req, -rc);
}

/* Delete records below a directory that belong to nothing any more. */
static int clear_records(pgs_txn *t, const char *path, size_t len)
{
    char key[PGS_MAX_KEY];
    size_t n = record_key(path, len, key);
    if (n == 0 || n == sizeof key) return 0;
    key[n++] = '/';
    return view_errno(pgs_txn_clear(t, key, n, NULL));
}

static int rmdir_in(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    struct name *a = ctx;
    struct found f;
    (void)v;
    int rc = find_path(base, a->path, a->len, &f);
    if (rc) return rc;
    rc = f.kind == INODE_FREE ? -ENOENT : f.kind != INODE_DIR ? -ENOTDIR : dir_has_entries(base, a->path, a->len);
    if (rc > 0) rc = -ENOTEMPTY;
    if (rc == 0) rc = found_delete(t, &f, a->path, a->len);
    if (rc == 0) rc = clear_records(t, a->path, a->len);
    found_release(&f);
    return rc ? rc : keep_parent(t, a->path, a->len);
}

bool is_written_below(struct writing *w, const char *path, size_t len)
{
    struct inode *n;
    char name[256];
    uint64_t i = 0;
    if (!stage_list(w->v, path, len, &i, name, &n)) return false;
    inode_forget(&w->v->share, inode_number(&w->v->share, n), 1);
    return true;
}

void write_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct view *v = fuse_req_userdata(req);
    char path[VIEW_PATH_MAX];
    struct name a = {path, 0};
    share_count(&v->share, REQ_NAME);
    int rc = name_path(v, parent, name, path, &a.len);
    if (rc == 0 && is_written_below(writing_of(v), path, a.len)) rc = -ENOTEMPTY;
    if (rc == 0) rc = publish_change(v, rmdir_in, &a, NULL);
    fuse_reply_err(req, rc == -ENOENT && server_resent() ? 0 : -rc);
}

/* --- making -------------------------------------------------------------------------------------------------------------------------------- */
struct making {
    struct name a;
    struct record rec;
};

static int make_in(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    struct making *m = ctx;
    struct pgs_object o;
    struct found f;
    (void)v;
    int rc = find_path(base, m->a.path, m->a.len, &f);
    if (rc) return rc;
    if (f.kind != INODE_FREE) rc = -EEXIST;
    found_release(&f);
    if (rc == 0 && !dir_exists(base, m->a.path, parent_len(m->a.path, m->a.len))) rc = -ENOENT;
    if (rc == 0 && (m->rec.flags & REC_DIR)) {
        rc = pgs_get(base, m->a.path, m->a.len, &o, NULL) == 0 ? -EEXIST : 0; /* "x", and there is x.npy */
        if (rc == 0) rc = view_errno(pgs_txn_put(t, m->a.path, m->a.len, PGS_KIND_DIR, NULL, NULL, 0, NULL));
    }
    return rc ? rc : record_put(t, m->a.path, m->a.len, &m->rec);
}

/* Make it, and answer with its inode. */
static void make(fuse_req_t req, fuse_ino_t parent, const char *name, struct record rec)
{
    struct view *v = fuse_req_userdata(req);
    struct fuse_entry_param e;
    struct inode *n = NULL;
    struct found f;
    pgs_snapshot *sn;
    char path[VIEW_PATH_MAX];
    struct making m = {{path, 0}, rec};
    share_count(&v->share, REQ_NAME);
    int rc = name_path(v, parent, name, path, &m.a.len);
    if (rc == 0 && stage_hides(v, path, m.a.len)) rc = -EEXIST;
    if (rc == 0) rc = publish_change(v, make_in, &m, NULL);
    if (rc == -EEXIST && server_resent()) rc = 0;
    if (rc == 0 && (rc = scope_open(v, SCOPE_HEAD, &sn)) == 0) {
        rc = find_path(sn, path, m.a.len, &f);
        if (rc == 0) {
            if (f.kind != INODE_FREE) n = inode_of(v, sn, SCOPE_HEAD, path, m.a.len, &f);
            rc = n ? 0 : f.kind == INODE_FREE ? -ESTALE : -ENOMEM;
            found_release(&f);
        }
        pgs_snapshot_unref(sn);
    }
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    inode_entry(v, n, &e);
    if (rec.flags & REC_DIR) dir_stat(v, n, &e.attr);
    if (fuse_reply_entry(req, &e) == -ENOENT) inode_forget(&v->share, e.ino, 1); /* the client has gone */
}

void write_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    make(req, parent, name, (struct record){.flags = REC_DIR | REC_MODE, .mode = mode & 07777});
}

void write_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    make(req, parent, name,
         (struct record){.flags = REC_LINK | REC_MTIME,
                         .mode = 0777,
                         .mtime_ns = now_real_ns(),
                         .tail = target,
                         .tail_len = (uint32_t)strlen(target)});
}

void write_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
    (void)ino, (void)newparent, (void)newname;
    fuse_reply_err(req, EPERM); /* as file systems without hard links say; git, tar and rsync then copy or rename */
}

/* --- attributes ------------------------------------------------------------------------------------------------------------------------------- */
struct attributes {
    const struct inode *n;
    const struct stat *attr;
    int to_set;
};

static int setattr_in(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    const struct attributes *a = ctx;
    const struct inode *n = a->n;
    struct found f;
    (void)v;
    int rc = find_path(base, n->path, n->path_len, &f);
    if (rc) return rc;
    struct record r = f.rec;
    if (f.kind == INODE_FREE || (uint32_t)f.kind != atomic_load(&n->kind)) rc = -ESTALE;
    if (f.kind == INODE_FILE && (f.obj.id != n->a || f.obj.version != n->b)) rc = -ESTALE;
    if (r.id == 0) r = (struct record){0};
    r.flags &= ~(uint32_t)REC_NEXT;
    if (f.kind == INODE_FILE && r.version != f.obj.version) r.flags &= REC_MODE;
    if (f.kind == INODE_DIR) r.flags |= REC_DIR;
    if (!(r.flags & (REC_HEADER | REC_LINK))) r.tail_len = 0;
    r.object = f.kind == INODE_FILE ? f.obj.id : 0;
    r.version = f.kind == INODE_FILE ? f.obj.version : 0;
    if ((a->to_set & FUSE_SET_ATTR_MODE) && f.kind != INODE_LINK) {
        r.flags |= REC_MODE;
        r.mode = a->attr->st_mode & 07777;
    }
    if (a->to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
        r.flags |= REC_MTIME;
        r.mtime_ns = a->to_set & FUSE_SET_ATTR_MTIME_NOW
                         ? now_real_ns()
                         : a->attr->st_mtim.tv_sec * INT64_C(1000000000) + a->attr->st_mtim.tv_nsec;
    }
    if (rc == 0) rc = record_put(t, n->path, n->path_len, &r);
    found_release(&f);
    return rc;
}

int name_setattr(struct view *v, struct inode *n, const struct stat *attr, int to_set)
{
    struct attributes a = {n, attr, to_set};
    if (n->path_len == 0) return 0; /* head itself: cp -a and rsync try */
    return publish_change(v, setattr_in, &a, NULL);
}
