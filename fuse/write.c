/* Pagestone | fuse/write — requests about files that are being written.
 * SPDX-License-Identifier: Apache-2.0
 *
 * With the kernel's write-back cache, sizes and times of files are the kernel's while it holds their inode: WRITE comes in whole pages when it likes, SETATTR with the mtime before FLUSH and FSYNC, and
 * appending is done up there. All of these have come when FLUSH, FSYNC or RELEASE does; pages that were changed through a mapping, with RELEASE or FSYNC.
 *
 * The content of a staging inode changes only through the kernel, so its cached pages stay right (keep_cache).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuse/stage.h"

static struct inode *inode_of_req(fuse_req_t req, fuse_ino_t ino, struct view **v)
{
    *v = fuse_req_userdata(req);
    return inode_at(&(*v)->share, ino);
}

static bool wants_to_write(const struct fuse_file_info *fi)
{
    return (fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC);
}

/* --- the kernel's cache of what is written ---------------------------------------------------------------------------------------- */
static void put_number(const char *device, const char *name, const char *number)
{
    char path[100];
    snprintf(path, sizeof path, "/sys/class/bdi/%s/%s", device, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = write(fd, number, strlen(number));
    (void)n; /* only root may, and older kernels have less */
    close(fd);
}

/* "\040" of mountinfo is a space */
static bool same_path(const char *shown, const char *path)
{
    for (; *shown && *path; path++) {
        char c = *shown++;
        if (c == '\\' && shown[0] && shown[1] && shown[2]) {
            c = (char)((shown[0] - '0') * 64 + (shown[1] - '0') * 8 + (shown[2] - '0'));
            shown += 3;
        }
        if (c != *path) return false;
    }
    return !*shown && !*path;
}

/* Linux lets a FUSE file system have 1 % of the memory for dirty pages, strictly, so that writers sleep most of the time; a fifth, as others share it, makes cp several times as fast. */
static void allow_dirty_pages(const struct view *v)
{
    char *line = NULL, device[32], at[4097];
    size_t cap = 0;
    FILE *f = fopen("/proc/self/mountinfo", "re"); /* no request to our own mount, as statx would be */
    while (f && getline(&line, &cap, f) > 0) {
        if (sscanf(line, "%*s %*s %31s %*s %4096s", device, at) != 2 || !same_path(at, v->server->opt->mountpoint))
            continue;
        if (!strstr(line, " - fuse")) continue;
        put_number(device, "max_ratio", "20");
        put_number(device, "strict_limit", "0");
    }
    free(line);
    if (f) fclose(f);
}

static void before_first_write(const struct view *v)
{
    static _Atomic bool done;
    if (!atomic_exchange(&done, true)) allow_dirty_pages(v);
}

/* --- making -------------------------------------------------------------------------------------------------------------------------- */
/* A new staging file takes a name: the one that had it is nobody's any more. */
static void take_name(struct writing *w, const char *path, size_t len)
{
    struct stage *g = stage_find(w, path, len);
    if (!g) return;
    stage_lock(w, g);
    if (g->path_len == len && !memcmp(g->path, path, len)) stage_set_path(w, g, "", 0);
    stage_unlock(w, g);
    stage_put(w, g);
}

/* May a file be made under this path? 0; -ESTALE: there is one; -EEXIST, -ENOENT, … */
static int may_create(struct view *v, const char *path, size_t len, int flags)
{
    pgs_snapshot *sn;
    struct found f;
    enum wish wish;
    size_t key_len;
    int rc = scope_open(v, SCOPE_HEAD, &sn);
    if (rc) return rc;
    rc = find_path(sn, path, len, &f);
    if (rc == 0) {
        if (f.kind == INODE_FILE)
            rc = flags & O_EXCL ? -EEXIST : -ESTALE;
        else if (f.kind != INODE_FREE)
            rc = -EEXIST;
        else if (!dir_exists(sn, path, parent_len(path, len)))
            rc = -ENOENT;
        else
            rc = publish_check(NULL, sn, path, len, &wish, &key_len);
        found_release(&f);
    }
    pgs_snapshot_unref(sn);
    return rc;
}

/* A staging file for CREATE, in use by the caller. */
static int make_or_find(struct view *v, const char *path, size_t len, mode_t mode, int flags, struct stage **out)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_find(w, path, len);
    if (g && stage_shows(w, g)) {
        *out = g;
        if (flags & O_EXCL ? server_resent() : stage_hold(w, g, path, len)) return 0;
        stage_put(w, g);
        return flags & O_EXCL ? -EEXIST : -ESTALE;
    }
    if (g) stage_put(w, g);
    int rc = may_create(v, path, len, flags);
    if (rc) return rc;
    take_name(w, path, len);
    return stage_make(w, path, len, (uint32_t)mode, STAGE_CREATED, out);
}

static void forget_open(struct writing *w, struct stage *g, bool writer)
{
    stage_recount(g, writer ? COUNT_WRITERS : COUNT_READERS, COUNT_NONE);
    server_closed(w->v->server);
}

void write_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    struct view *v = fuse_req_userdata(req);
    struct writing *w = writing_of(v);
    struct fuse_entry_param e;
    struct stage *g;
    char path[VIEW_PATH_MAX];
    size_t len;
    share_count(&v->share, REQ_NAME);
    before_first_write(v);
    int rc = name_path(v, parent, name, path, &len);
    if (rc == 0) rc = make_or_find(v, path, len, mode, fi->flags, &g);
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    stage_lock(w, g);
    if (g->path_len == 0) rc = -ESTALE; /* one that was there, and went meanwhile: what is written would be nobody's */
    if (rc == 0) stage_opened(w, g, true); /* one who only reads has made it all the same */
    stage_unlock(w, g);
    if (rc) {
        stage_put(w, g);
        fuse_reply_err(req, -rc);
        return;
    }
    stage_entry(w, g, &e);
    fi->fh = 1;
    fi->keep_cache = 1;
    if (fuse_reply_create(req, &e, fi) == -ENOENT) { /* the client has gone: no FORGET and no RELEASE will come */
        inode_forget(&v->share, e.ino, 1);
        forget_open(w, g, true);
    }
    stage_open_answered(g);
    stage_put(w, g);
}

void write_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    struct view *v = fuse_req_userdata(req);
    struct writing *w = writing_of(v);
    struct fuse_entry_param e;
    struct stage *g;
    char path[VIEW_PATH_MAX];
    size_t len;
    (void)rdev;
    share_count(&v->share, REQ_NAME);
    int rc = S_ISREG(mode) ? name_path(v, parent, name, path, &len) : -EPERM;
    if (rc == 0) rc = make_or_find(v, path, len, mode, O_EXCL, &g);
    if (rc == 0) {
        stage_lock(w, g);
        rc = publish_stage(w, g);
        stage_unlock(w, g);
        if (rc == 0) stage_entry(w, g, &e);
        if (rc == 0) stage_set_path(w, g, "", 0);
        if (rc == 0 && fuse_reply_entry(req, &e) == -ENOENT) inode_forget(&v->share, e.ino, 1);
        stage_put(w, g);
    }
    if (rc) fuse_reply_err(req, -rc);
}

/* --- opening --------------------------------------------------------------------------------------------------------------------------- */
/* Make a staging file of the committed file under a name, and let the name show it: 1. 0: there is none. */
static int stage_name(struct view *v, const char *path, size_t len, bool empty, uint64_t limit)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_find(w, path, len);
    pgs_snapshot *sn;
    struct found f;
    if (g) { /* it was just published, or somebody else is about to open it */
        bool good = (stage_shows(w, g) || stage_agrees(w, g)) && stage_hold(w, g, path, len);
        stage_put(w, g);
        if (good) return 1;
    }
    int rc = scope_open(v, SCOPE_HEAD, &sn);
    if (rc) return rc;
    rc = find_path(sn, path, len, &f);
    bool file = rc == 0 && f.kind == INODE_FILE;
    struct inode *n = file ? inode_of(v, sn, SCOPE_HEAD, path, len, &f) : NULL;
    if (file && !n) rc = -ENOMEM;
    if (n) {
        struct stat st;
        take_name(w, path, len);
        inode_stat(v, n, &st);
        inode_forget(&v->share, inode_number(&v->share, n), 1);
        rc = stage_make(w, path, len, st.st_mode, empty ? STAGE_CREATED : 0, &g);
        if (rc == 0) {
            if (!empty) rc = stage_fill(w, g, sn, &f, limit);
            g->base_id = empty ? 0 : f.obj.id;
            g->base_version = empty ? 0 : f.obj.version;
            g->mtime_ns = st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
            if (rc)
                stage_set_path(w, g, "", 0);
            else
                stage_wait_for_open(g, STAGE_SOON_NS);
            stage_put(w, g);
        }
    }
    found_release(&f);
    pgs_snapshot_unref(sn);
    return rc ? rc : file;
}

static bool is_at_home(struct view *v, const struct inode *n)
{
    pgs_snapshot *sn;
    struct found f;
    if (scope_open(v, SCOPE_HEAD, &sn)) return true;
    bool yes = find_path(sn, n->path, n->path_len, &f) == 0 && f.kind == INODE_FILE && f.obj.id == n->a;
    found_release(&f);
    pgs_snapshot_unref(sn);
    return yes;
}

/* The name that was asked for may be the inode's, one that it was moved to a moment ago, or one that this path has by now for another object. The kernel asks once more, not twice: what it will
 * find then is to be a staging file already. */
static int stage_committed(struct view *v, const struct inode *n, bool empty, uint64_t limit)
{
    char to[VIEW_PATH_MAX];
    size_t len;
    bool moved = rename_target(n->path, n->path_len, to, &len) && !is_at_home(v, n);
    int rc = stage_name(v, n->path, n->path_len, empty && !moved, limit);
    if (rc >= 0 && moved) rc = stage_name(v, to, len, empty, limit);
    return rc < 0 ? rc : 0;
}

void stage_from_committed(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi)
{
    int rc = v->read_only || n->scope != SCOPE_HEAD ? -EROFS : 0;
    before_first_write(v);
    if (rc == 0) rc = stage_committed(v, n, (fi->flags & O_TRUNC) != 0, UINT64_MAX);
    fuse_reply_err(req, rc ? -rc : ESTALE);
}

static int open_locked(struct writing *w, struct stage *g, bool writer, bool empty)
{
    if (writer && g->path_len == 0) return -ESTALE; /* or removed, and reached through /proc */
    if (writer && g->base_version && !(atomic_load(&g->flags) & STAGE_CHANGED) && !stage_agrees(w, g)) return -ESTALE;
    if (empty) {
        int rc = stage_truncate(w, g, 0);
        if (rc) return rc;
        atomic_fetch_or(&g->flags, STAGE_CREATED);
        atomic_fetch_and(&g->flags, ~(uint32_t)STAGE_DATA);
        g->base_id = g->base_version = 0;
    }
    stage_opened(w, g, writer);
    return 0;
}

void stage_open(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_get(w, n);
    bool writer = wants_to_write(fi);
    int rc = -ESTALE;
    if (g) {
        stage_lock(w, g);
        rc = open_locked(w, g, writer, (fi->flags & O_TRUNC) != 0);
        stage_unlock(w, g);
    }
    fi->fh = writer;
    fi->keep_cache = 1;
    if (rc)
        fuse_reply_err(req, -rc);
    else if (fuse_reply_open(req, fi) == -ENOENT)
        forget_open(w, g, writer);
    if (g && rc == 0) stage_open_answered(g);
    if (g) stage_put(w, g);
}

/* --- reading and writing ------------------------------------------------------------------------------------------------------------------ */
void stage_read(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_get(w, n);
    (void)fi;
    if (!g) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    struct fuse_bufvec from = FUSE_BUFVEC_INIT(size);
    from.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    from.buf[0].fd = stage_local(w, g)->fd;
    from.buf[0].pos = off;
    fuse_reply_data(req, &from, (enum fuse_buf_copy_flags)0);
    stage_put(w, g);
}

/* More than the quota can never be stored; better now than when it fills the machine. */
static bool beyond_quota(struct view *v, uint64_t end)
{
    struct pgs_info info;
    if (end < 1u << 20 || pgs_store_info(v->store, &info, NULL)) return false;
    return info.quota && end > info.quota;
}

void write_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *bufv, off_t off, struct fuse_file_info *fi)
{
    struct view *v;
    struct inode *n = inode_of_req(req, ino, &v);
    struct writing *w = writing_of(v);
    struct stage *g = n && atomic_load(&n->kind) == INODE_STAGE ? stage_get(w, n) : NULL;
    (void)fi;
    share_count(&v->share, REQ_WRITE);
    if (!g) {
        fuse_reply_err(req, n ? EBADF : ESTALE);
        return;
    }
    struct fuse_bufvec to = FUSE_BUFVEC_INIT(fuse_buf_size(bufv));
    to.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    to.buf[0].fd = stage_local(w, g)->fd;
    to.buf[0].pos = off;
    ssize_t done = -ENOSPC;
    pthread_rwlock_rdlock(&stage_local(w, g)->lock);
    if (!beyond_quota(v, (uint64_t)off + to.buf[0].size)) done = fuse_buf_copy(&to, bufv, (enum fuse_buf_copy_flags)0);
    if (done > 0) stage_wrote(w, g, (uint64_t)off, (uint64_t)off + (uint64_t)done);
    pthread_rwlock_unlock(&stage_local(w, g)->lock);
    stage_put(w, g);
    if (done < 0)
        fuse_reply_err(req, (int)-done);
    else
        fuse_reply_write(req, (size_t)done);
}

void write_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
    struct view *v;
    struct inode *n = inode_of_req(req, ino, &v);
    struct writing *w = writing_of(v);
    struct stage *g = n && atomic_load(&n->kind) == INODE_STAGE ? stage_get(w, n) : NULL;
    int rc = g ? 0 : -EBADF, content = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
    (void)fi;
    share_count(&v->share, REQ_WRITE);
    if (rc == 0 && (mode & ~(content | FALLOC_FL_KEEP_SIZE))) rc = -EOPNOTSUPP;
    if (rc == 0) {
        stage_lock(w, g);
        uint64_t had = stage_size(w, g), end = (uint64_t)off + (uint64_t)len;
        if (beyond_quota(v, end))
            rc = -ENOSPC;
        else if (fallocate(stage_local(w, g)->fd, mode, off, len))
            rc = -errno;
        if (rc == 0 && (mode & content)) stage_wrote(w, g, (uint64_t)off, end < had ? end : had);
        if (rc == 0 && stage_size(w, g) != had) stage_truncate(w, g, stage_size(w, g));
        stage_unlock(w, g);
    }
    if (g) stage_put(w, g);
    fuse_reply_err(req, -rc);
}

/* --- publishing --------------------------------------------------------------------------------------------------------------------------- */
/* At a close: if it is clear that all of it is there. What was only made or emptied waits for the last close, since a shell closes a descriptor that it has copied before anything is written. */
static int flush_locked(struct writing *w, struct stage *g)
{
    uint32_t flags = atomic_load(&g->flags);
    if (g->path_len == 0) return 0;
    if ((flags & STAGE_CREATED) && !(flags & STAGE_DATA)) return 0;
    if ((flags & STAGE_DATA) && (!stage_covered(w, g) || publish_is_half(w, g))) return 0;
    int rc = publish_stage(w, g);
    if (rc == 0 && g->base_version && stage_writers(g) == 1) atomic_fetch_or(&g->flags, STAGE_CLOSING);
    return rc;
}

static void publish_request(fuse_req_t req, fuse_ino_t ino, enum share_request what, const struct fuse_file_info *fi)
{
    struct view *v;
    struct inode *n = inode_of_req(req, ino, &v);
    struct writing *w = writing_of(v);
    struct stage *g = w && n && atomic_load(&n->kind) == INODE_STAGE ? stage_get(w, n) : NULL;
    int rc = 0;
    share_count(&v->share, what);
    if (g && (!fi || fi->fh & 1)) {
        stage_lock(w, g);
        rc = what == REQ_FLUSH ? flush_locked(w, g) : publish_stage(w, g);
        stage_unlock(w, g);
    }
    if (g) stage_put(w, g);
    fuse_reply_err(req, -rc);
}

void write_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    publish_request(req, ino, REQ_FLUSH, fi);
}

void write_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)datasync;
    publish_request(req, ino, REQ_FSYNC, fi);
}

void write_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct view *v = fuse_req_userdata(req);
    (void)ino, (void)datasync, (void)fi;
    share_count(&v->share, REQ_FSYNC);
    fuse_reply_err(req, 0); /* names change in transactions */
}

/* One writer less; with the last one the name belongs to what is committed, whether or not this could be. What is set before the count changes is done again if this worker dies. */
static void release_writer(struct writing *w, struct stage *g)
{
    bool last = stage_writers(g) <= 1;
    bool half = last && g->path_len && (atomic_load(&g->flags) & STAGE_DATA) && publish_is_half(w, g);
    if (last && g->path_len && !half && g->failed != g->changes + 1) {
        int rc = publish_stage(w, g);
        if (rc) server_log("not stored: %.*s: %s", (int)g->path_len, g->path, strerror(-rc));
    }
    if (half) stage_wait_for_open(g, STAGE_HALF_NS);
    stage_let_go(w, g);
}

void stage_release(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_get(w, n);
    if (g) {
        stage_lock(w, g);
        if (stage_released_before(g))
            stage_recount(g, COUNT_NONE, COUNT_RELEASING); /* and it may be asked yet again */
        else if (fi->fh & 1)
            release_writer(w, g);
        else
            stage_recount(g, COUNT_READERS, COUNT_RELEASING);
        stage_unlock(w, g);
    }
    server_closed(v->server);
    fuse_reply_err(req, 0);
    if (!g) return;
    stage_release_answered(g);
    stage_put(w, g);
}

/* --- attributes ---------------------------------------------------------------------------------------------------------------------------- */
static int64_t mtime_of(const struct stat *attr, int to_set)
{
    return to_set & FUSE_SET_ATTR_MTIME_NOW ? now_real_ns()
                                            : attr->st_mtim.tv_sec * INT64_C(1000000000) + attr->st_mtim.tv_nsec;
}

static int setattr_locked(struct writing *w, struct stage *g, const struct stat *attr, int to_set)
{
    bool changed = false;
    if (to_set & FUSE_SET_ATTR_SIZE) {
        uint64_t size = (uint64_t)attr->st_size;
        if (attr->st_size < 0 || (size > stage_size(w, g) && beyond_quota(w->v, size))) return -EFBIG;
        int rc = stage_truncate(w, g, size);
        if (rc) return rc;
    }
    if ((to_set & FUSE_SET_ATTR_MODE) && (attr->st_mode & 07777) != g->mode) {
        g->mode = attr->st_mode & 07777;
        changed = true;
    }
    if ((to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) && mtime_of(attr, to_set) != g->mtime_ns) {
        g->mtime_ns = mtime_of(attr, to_set);
        changed = true;
    }
    if (changed) {
        g->changes++;
        atomic_fetch_or(&g->flags, STAGE_ATTR);
    }
    if (!(atomic_load(&g->flags) & STAGE_CHANGED)) return 0;
    if (stage_writers(g) && !(atomic_load(&g->flags) & STAGE_CLOSING)) return 0;
    if (publish_is_half(w, g)) return 0;
    int rc = publish_stage(w, g); /* no close will do it */
    if (stage_writers(g) == 0) {
        atomic_fetch_and(&g->flags, ~(uint32_t)STAGE_PENDING);
        stage_set_path(w, g, "", 0);
    }
    return rc;
}

static int setattr_stage(struct view *v, struct inode *n, const struct stat *attr, int to_set, struct stat *out)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_get(w, n);
    if (!g) return -ESTALE;
    stage_lock(w, g);
    int rc = g->path_len == 0 && stage_writers(g) == 0 && stage_count(g, COUNT_READERS) == 0
                 ? -ESTALE
                 : setattr_locked(w, g, attr, to_set);
    stage_stat(v, n, out);
    stage_unlock(w, g);
    stage_put(w, g);
    return rc;
}

/* Does the kernel write back the times that it gave an inode when its name was moved or removed? fsync would report our ESTALE. utimensat(2) sets the access time, too. */
static bool is_cached_time(int to_set)
{
    return (to_set & ~(FUSE_SET_ATTR_CTIME)) == FUSE_SET_ATTR_MTIME;
}

static int setattr_committed(struct view *v, struct inode *n, const struct stat *attr, int to_set, struct stat *out)
{
    uint32_t kind = atomic_load(&n->kind);
    if (v->read_only || n->scope != SCOPE_HEAD) return -EROFS;
    if (to_set & FUSE_SET_ATTR_SIZE) {
        if (kind != INODE_FILE) return -EINVAL;
        int rc = stage_committed(v, n, false, (uint64_t)attr->st_size);
        return rc ? rc : -ESTALE;
    }
    int rc = to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)
                 ? name_setattr(v, n, attr, to_set)
                 : 0;
    if (rc == -ESTALE && kind == INODE_FILE && atomic_load(&n->open) && is_cached_time(to_set)) rc = 0;
    if (rc) return rc;
    if (kind == INODE_DIR) return dir_stat(v, n, out);
    inode_stat(v, n, out);
    if (to_set & FUSE_SET_ATTR_MODE) out->st_mode = (out->st_mode & S_IFMT) | (attr->st_mode & 07777);
    if (to_set & FUSE_SET_ATTR_MTIME) out->st_mtim = attr->st_mtim;
    return 0;
}

void write_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    struct view *v;
    struct inode *n = inode_of_req(req, ino, &v);
    struct stat st = {0};
    int rc = -EPERM;
    (void)fi;
    share_count(&v->share, REQ_SETATTR);
    uint32_t kind = n ? atomic_load(&n->kind) : 0;
    if (!n)
        rc = ino == ROOT_INO ? -EPERM : -ESTALE;
    else if (kind == INODE_STAGE)
        rc = setattr_stage(v, n, attr, to_set, &st);
    else if (kind != INODE_META)
        rc = setattr_committed(v, n, attr, to_set, &st);
    if (rc)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_attr(req, &st, 0);
}

static int start(struct view *v, char *why, size_t why_len)
{
    return v->read_only ? 0 : stage_start(v, why, why_len);
}

static void stop(struct view *v)
{
    if (v->writing) stage_stop(v);
}

static void forgotten(struct view *v, struct inode *n)
{
    (void)v, (void)n; /* a slot in use holds a count of its own: S2 */
}

static const struct view_writer writer = {.start = start,
                                          .stop = stop,
                                          .lookup = stage_lookup,
                                          .hides = stage_hides,
                                          .list = stage_list,
                                          .open = stage_from_committed,
                                          .stage_stat = stage_stat,
                                          .stage_open = stage_open,
                                          .stage_read = stage_read,
                                          .stage_release = stage_release,
                                          .forgotten = forgotten};
const struct view_writer *const view_writer_part = &writer;
