/* Pagestone | fuse/view — a store as a file system: the requests.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each request goes by the kind of its inode to the part that knows it. What the writing side alone has is in the table only if that side is linked.
 */
#define _GNU_SOURCE
#include "fuse/view.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct view *view_of(fuse_req_t req, enum share_request what)
{
    struct view *v = fuse_req_userdata(req);
    share_count(&v->share, what);
    return v;
}

/* --- LOOKUP ------------------------------------------------------------------------------------------------------------------------------ */

static void reply_inode(struct view *v, fuse_req_t req, struct inode *n, double timeout)
{
    struct fuse_entry_param e;
    inode_entry(v, n, &e);
    uint32_t kind = atomic_load(&n->kind);
    e.entry_timeout = timeout == 0 && kind == INODE_DIR && n->scope == SCOPE_HEAD ? DIR_SECONDS : timeout;
    int rc = kind == INODE_DIR || kind == INODE_META ? dir_stat(v, n, &e.attr) : 0;
    if (rc) {
        inode_forget(&v->share, e.ino, 1);
        fuse_reply_err(req, -rc);
        return;
    }
    if (fuse_reply_entry(req, &e) != 0) inode_forget(&v->share, e.ino, 1); /* interrupted: the kernel did not take it */
}

static int lookup_root(struct view *v, const char *name, struct inode **out, double *timeout)
{
    uint64_t version;
    *timeout = FOREVER;
    if (!strcmp(name, "head"))
        *out = inode_of_dir(v, SCOPE_HEAD, "", 0);
    else if (!strcmp(name, ".pagestone"))
        *out = info_lookup(v, NULL);
    else if (*name == '@') {
        int rc = scope_parse(v, name + 1, strlen(name + 1), &version);
        if (rc) return rc;
        *timeout = name[1] >= '0' && name[1] <= '9' && !strchr(name, ':') && !strchr(name + 1, '-')
                       ? DIR_SECONDS
                       : 0; /* the others may soon mean another version */
        *out = inode_of_dir(v, version, "", 0);
    } else
        return -ENOENT;
    return *out ? 0 : -ENOMEM;
}

static int lookup_in_dir(struct view *v, struct inode *dir, const char *name, struct inode **out)
{
    char path[VIEW_PATH_MAX];
    size_t len;
    pgs_snapshot *sn;
    struct found f;
    int rc = path_join(dir, name, path, &len);
    if (rc) return rc;
    if (v->writer && dir->scope == SCOPE_HEAD) {
        rc = v->writer->lookup(v, path, len, out);
        if (rc) return rc < 0 ? rc : 0;
    }
    rc = scope_open(v, dir->scope, &sn);
    if (rc) return rc;
    rc = find_path(sn, path, len, &f);
    if (rc == 0) {
        *out = f.kind == INODE_FREE ? NULL : inode_of(v, sn, dir->scope, path, len, &f);
        rc = *out ? 0 : f.kind == INODE_FREE ? -ENOENT : -ENOMEM;
        if (*out) atomic_store(&(*out)->asked_ns, now_monotonic_ns());
        found_release(&f);
    }
    pgs_snapshot_unref(sn);
    return rc;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct view *v = view_of(req, REQ_LOOKUP);
    struct inode *dir = inode_at(&v->share, parent), *n = NULL;
    double timeout = 0;
    int rc;
    if (parent == ROOT_INO)
        rc = lookup_root(v, name, &n, &timeout);
    else if (!dir)
        rc = -ESTALE;
    else if (atomic_load(&dir->kind) == INODE_META) {
        timeout = FOREVER;
        n = dir->a ? NULL : info_lookup(v, name);
        rc = n ? 0 : -ENOENT;
    } else if (atomic_load(&dir->kind) == INODE_DIR) {
        timeout = dir->scope == SCOPE_HEAD ? 0 : FOREVER;
        rc = lookup_in_dir(v, dir, name, &n);
    } else
        rc = -ENOTDIR;
    if (rc == -ENOENT && timeout > 0 && dir && dir->scope != SCOPE_HEAD) { /* nor will it ever be */
        struct fuse_entry_param none = {.entry_timeout = FOREVER};
        fuse_reply_entry(req, &none);
    } else if (rc)
        fuse_reply_err(req, -rc);
    else
        reply_inode(v, req, n, timeout);
}

static void freed(void *ctx, struct inode *n)
{
    struct view *v = ctx;
    if (atomic_load(&n->kind) == INODE_FILE)
        read_forgotten(v, n);
    else if (atomic_load(&n->kind) == INODE_STAGE && v->writer)
        v->writer->forgotten(v, n);
}

static void do_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
    struct view *v = view_of(req, REQ_FORGET);
    inode_forget(&v->share, ino, n);
    fuse_reply_none(req);
}

static void do_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    struct view *v = view_of(req, REQ_FORGET);
    for (size_t i = 0; i < count; i++) inode_forget(&v->share, forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

/* --- attributes ------------------------------------------------------------------------------------------------------------------------------ */

/* An inode's attributes are asked for again after somebody has set them: a name that came with a listing still leads to the record before. What an open file keeps is its object's version. */
static void newest_attributes(struct view *v, const struct inode *n, struct stat *st)
{
    pgs_snapshot *sn;
    struct found f;
    uint32_t kind = atomic_load(&n->kind);
    if (n->scope != SCOPE_HEAD || (kind != INODE_FILE && kind != INODE_LINK) || scope_open(v, SCOPE_HEAD, &sn)) return;
    if (find_path(sn, n->path, n->path_len, &f) == 0) {
        bool same = (uint32_t)f.kind == kind && f.rec.id != n->c;
        if (kind == INODE_FILE && (f.obj.id != n->a || f.obj.version != n->b)) same = false;
        struct inode *now = same ? inode_of(v, sn, SCOPE_HEAD, n->path, n->path_len, &f) : NULL;
        if (now) {
            ino_t number = st->st_ino;
            inode_stat(v, now, st);
            st->st_ino = number;
            inode_forget(&v->share, inode_number(&v->share, now), 1);
        }
        found_release(&f);
    }
    pgs_snapshot_unref(sn);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct view *v = view_of(req, REQ_GETATTR);
    struct inode *n = inode_at(&v->share, ino);
    struct stat st;
    int rc = 0;
    (void)fi;
    if (ino == ROOT_INO)
        root_stat(v, &st);
    else if (!n)
        rc = -ESTALE;
    else if (atomic_load(&n->kind) == INODE_DIR || atomic_load(&n->kind) == INODE_META)
        rc = dir_stat(v, n, &st);
    else {
        inode_stat(v, n, &st);
        newest_attributes(v, n, &st);
    }
    if (rc)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_attr(req, &st, n ? attr_timeout(n) : DIR_SECONDS);
}

static void do_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct view *v = view_of(req, REQ_READLINK);
    struct inode *n = inode_at(&v->share, ino);
    pgs_snapshot *sn;
    struct found f;
    char target[PATH_MAX];
    int rc = !n ? -ESTALE : atomic_load(&n->kind) != INODE_LINK ? -EINVAL : inode_snapshot(v, n, &sn, &f);
    if (rc == 0) {
        if (f.rec.tail_len < sizeof target) {
            memcpy(target, f.rec.tail, f.rec.tail_len);
            target[f.rec.tail_len] = 0;
        } else
            rc = -EIO;
        found_release(&f);
        pgs_snapshot_unref(sn);
    }
    if (rc)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_readlink(req, target);
}

static void do_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    info_statfs(view_of(req, REQ_STATFS), req);
}

static void do_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    xattr_get(view_of(req, REQ_XATTR), req, ino, name, size);
}

static void do_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    xattr_list(view_of(req, REQ_XATTR), req, ino, size);
}

/* --- files ----------------------------------------------------------------------------------------------------------------------------------------- */

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct view *v = view_of(req, REQ_OPEN);
    struct inode *n = inode_at(&v->share, ino);
    uint32_t kind = n ? atomic_load(&n->kind) : INODE_FREE;
    if (kind == INODE_FILE)
        read_open(v, req, n, fi);
    else if (kind == INODE_STAGE && v->writer)
        v->writer->stage_open(v, req, n, fi);
    else if (kind == INODE_META && n->a)
        info_open(v, req, n, fi);
    else
        fuse_reply_err(req, n ? EISDIR : ESTALE);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct view *v = view_of(req, REQ_READ);
    struct inode *n = inode_at(&v->share, ino);
    uint32_t kind = n ? atomic_load(&n->kind) : INODE_FREE;
    if (kind == INODE_FILE)
        read_read(v, req, n, size, off);
    else if (kind == INODE_STAGE && v->writer)
        v->writer->stage_read(v, req, n, size, off, fi);
    else if (kind == INODE_META && n->a)
        info_read(v, req, n, size, off, fi);
    else
        fuse_reply_err(req, n ? EISDIR : ESTALE);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct view *v = view_of(req, REQ_RELEASE);
    struct inode *n = inode_at(&v->share, ino);
    uint32_t kind = n ? atomic_load(&n->kind) : INODE_FREE;
    if (kind == INODE_STAGE && v->writer) {
        v->writer->stage_release(v, req, n, fi);
        return;
    }
    if (kind == INODE_FILE)
        read_release(v, n);
    else if (kind == INODE_META)
        info_release(fi);
    fuse_reply_err(req, 0);
}

/* --- directories ------------------------------------------------------------------------------------------------------------------------------------ */

static void do_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    dir_open(view_of(req, REQ_OPENDIR), req, ino, fi);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    dir_read(view_of(req, REQ_READDIR), req, ino, size, off, fi, false);
}

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    dir_read(view_of(req, REQ_READDIR), req, ino, size, off, fi, true);
}

static void do_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    dir_release(view_of(req, REQ_RELEASEDIR), req, fi);
}

/* --- life of a worker ---------------------------------------------------------------------------------------------------------------------------------- */

static void view_free(struct view *v)
{
    keeper_stop(v);
    files_close(v);
    pgs_store_unref(v->store);
    share_close(&v->share);
    free(v->times);
    free(v->path);
    free(v);
}

static int open_store(struct view *v, char *why, size_t why_len)
{
    struct pgs_options opt = {.mode = v->read_only ? PGS_MODE_R : PGS_MODE_RPLUS};
    struct pgs_error err = {0};
    struct pgs_info info;
    struct statx st;
    const char *path = v->server->opt->store;
    int rc = pgs_open(path, &opt, &v->store, &err);
    if ((rc == -PGS_EACCES || rc == -PGS_EREADONLY) && !v->read_only) { /* no permission to write it */
        v->read_only = true;
        opt.mode = PGS_MODE_R;
        rc = pgs_open(path, &opt, &v->store, &err);
    }
    if (rc == 0) rc = pgs_store_info(v->store, &info, &err);
    if (rc) {
        snprintf(why, why_len, "%s", err.text);
        return -1;
    }
    v->path = strdup(info.path ? info.path : path);
    if (!v->path || statx(AT_FDCWD, v->path, 0, STATX_BASIC_STATS | STATX_BTIME, &st)) {
        snprintf(why, why_len, "%s: %s", path, strerror(errno));
        return -1;
    }
    v->uid = st.stx_uid;
    v->gid = st.stx_gid;
    v->dir_mode = st.stx_mode & 0777;
    if (st.stx_mask & STATX_BTIME) v->born_ns = (int64_t)st.stx_btime.tv_sec * 1000000000 + st.stx_btime.tv_nsec;
    return 0;
}

static int view_start(struct server *s, void **data, char *why, size_t why_len)
{
    struct view *v = calloc(1, sizeof *v);
    if (!v) {
        snprintf(why, why_len, "out of memory");
        return -1;
    }
    v->server = s;
    v->read_only = s->opt->read_only;
    v->writer = &view_writer_part ? view_writer_part : NULL;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&v->keeper_cond, &monotonic);
    pthread_mutex_init(&v->keeper_lock, NULL);
    pthread_mutex_init(&v->times_lock, NULL);
    pthread_mutex_init(&v->files_lock, NULL);
    pthread_mutex_init(&v->dirs_lock, NULL);
    int rc = share_open(&v->share, s->share, s->share_len);
    v->share.freed = freed;
    v->share.freed_ctx = v;
    if (rc) snprintf(why, why_len, "%s", strerror(-rc));
    if (rc == 0) rc = open_store(v, why, why_len);
    if (rc == 0 && v->read_only) v->writer = NULL;
    if (rc == 0 && v->writer) rc = v->writer->start(v, why, why_len);
    if (rc == 0 && (rc = keeper_start(v))) snprintf(why, why_len, "%s", strerror(-rc));
    if (rc) {
        view_free(v);
        return -1;
    }
    *data = v;
    return 0;
}

static void view_stop(void *data)
{
    struct view *v = data;
    if (v->writer) v->writer->stop(v);
    for (uint32_t i = 0; i < SHARE_DIRS; i++) {
        struct fuse_file_info fi = {.fh = i};
        if (v->listings[i]) dir_release(v, NULL, &fi);
    }
    view_free(v);
}

const struct worker_program view_program = {
    .name = "view",
    .ops =
        {
            .lookup = do_lookup,
            .forget = do_forget,
            .forget_multi = do_forget_multi,
            .getattr = do_getattr,
            .readlink = do_readlink,
            .statfs = do_statfs,
            .getxattr = do_getxattr,
            .listxattr = do_listxattr,
            .open = do_open,
            .read = do_read,
            .release = do_release,
            .opendir = do_opendir,
            .readdir = do_readdir,
            .readdirplus = do_readdirplus,
            .releasedir = do_releasedir,
            .create = write_create,
            .mknod = write_mknod,
            .mkdir = write_mkdir,
            .rmdir = write_rmdir,
            .unlink = write_unlink,
            .rename = write_rename,
            .symlink = write_symlink,
            .link = write_link,
            .setattr = write_setattr,
            .write_buf = write_write_buf,
            .flush = write_flush,
            .fsync = write_fsync,
            .fsyncdir = write_fsyncdir,
            .fallocate = write_fallocate,
        },
    .start = view_start,
    .stop = view_stop,
    .refuse = FUSE_CAP_READDIRPLUS_AUTO,
};
