/* Pagestone | fuse/read — open files of the store: their content, READ, and what keeps them alive.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The table has one entry for each inode that is open, whoever opened it how often: it holds the content's view, and so a pin. The kernel's reads name the inode, so a
 * new worker, whose table is empty, makes the entry again from what the inode says: a leased generation that has the revision, else any version that does.
 *
 * Leases may wait for the commit lock (V3): the keeper thread sets them, at once for what was opened and again every 30 s.
 */
#define _GNU_SOURCE
#include "fuse/view.h"

#include "fuse/npy.h"
#include "fuse/pkl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#define LEASE_NS (120ull * 1000000000u)
#define RENEW_S 30
#define N_BUCKETS 4096u
#define MAX_PIECES 64

/* --- content ----------------------------------------------------------------------------------------------------------------------- */

struct content {
    pgs_view *view;
    struct text head; /* NPY header, or the whole stream of a plain value */
    const char *data; /* behind it */
    uint64_t n_data;
    struct pkl *pkl; /* or this instead of both */
};

/* The header that the file was written with, if it still describes the array: appending changes the shape, editing does not. */
static bool header_counts(const struct pgs_object *obj, const struct record *rec)
{
    if (!rec || !rec->id || !(rec->flags & REC_HEADER) || rec->tail_len == 0) return false;
    if (rec->version == obj->version) return true;
    struct npy npy;
    const struct pgs_type *a = &obj->type, *b = &npy.type;
    if (npy_parse(rec->tail, rec->tail_len, &npy)) return false;
    bool same = a->dtype_len == b->dtype_len && !memcmp(a->dtype, b->dtype, a->dtype_len) && a->ndim == b->ndim &&
                a->order == b->order && !memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape);
    npy_free(&npy);
    return same;
}

static int array_head_len(const struct pgs_object *obj, const struct record *rec, uint64_t *len)
{
    if (header_counts(obj, rec)) {
        *len = rec->tail_len;
        return 0;
    }
    if (obj->type.dtype_len <= 512) { /* with 64 dimensions it still fits one page */
        *len = NPY_PAGE;
        return 0;
    }
    struct text t = {0};
    bool ok = npy_write(&obj->type, &t);
    *len = t.len;
    text_free(&t);
    return ok ? 0 : -EIO;
}

/* Bytes of an object that are needed now; *view is the caller's to drop, or NULL. */
static int look_at(pgs_snapshot *sn, const struct pgs_object *obj, const void **p, pgs_view **view)
{
    *view = NULL;
    *p = obj->inline_data;
    if (*p) return 0;
    int rc = pgs_view_open(sn, obj, 0, view, NULL);
    if (rc == 0) *p = pgs_view_data(*view);
    return view_errno(rc);
}

int content_size(pgs_snapshot *sn, const struct pgs_object *obj, const struct record *rec, uint64_t *size)
{
    uint64_t head;
    const void *p;
    pgs_view *view;
    if (obj->kind == PGS_KIND_BYTES) {
        *size = obj->n_bytes;
        return 0;
    }
    if (obj->kind == PGS_KIND_ARRAY) {
        int rc = array_head_len(obj, rec, &head);
        if (rc == 0) *size = head + obj->n_bytes;
        return rc;
    }
    int rc = look_at(sn, obj, &p, &view);
    if (rc) return rc;
    if (obj->kind == PGS_KIND_PLAIN)
        rc = plain_pickle(p, obj->n_bytes, NULL, size);
    else
        rc = pkl_size(p, obj->n_bytes, size) ? 0 : -EIO;
    pgs_view_unref(view);
    return rc;
}

static int fill_content(const struct found *f, struct content *c)
{
    const struct pgs_object *obj = &f->obj;
    uint64_t size;
    c->data = pgs_view_data(c->view);
    c->n_data = obj->n_bytes;
    switch (obj->kind) {
    case PGS_KIND_BYTES:
        return 0;
    case PGS_KIND_ARRAY:
        if (!header_counts(obj, &f->rec)) return npy_write(&obj->type, &c->head) ? 0 : -EIO;
        text_put(&c->head, f->rec.tail, f->rec.tail_len);
        return c->head.failed ? -ENOMEM : 0;
    case PGS_KIND_PICKLE:
        return pkl_open(c->data, obj->n_bytes, &c->pkl);
    default:
        c->n_data = 0;
        return plain_pickle(c->data, obj->n_bytes, &c->head, &size);
    }
}

int content_open(pgs_snapshot *sn, const struct found *f, struct content **out)
{
    struct content *c = calloc(1, sizeof *c);
    if (!c) return -ENOMEM;
    int rc = view_errno(pgs_view_open(sn, &f->obj, 0, &c->view, NULL));
    if (rc == 0) {
        pgs_view_keep(c->view, sn, NULL); /* a small one is a copy; but a worker to come must find it */
        rc = fill_content(f, c);
    }
    if (rc) {
        content_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

uint64_t content_bytes(const struct content *c)
{
    return c->pkl ? pkl_bytes(c->pkl) : c->head.len + c->n_data;
}

size_t content_pieces(const struct content *c, uint64_t off, size_t len, struct iovec *iov, int n_iov, int *n_used)
{
    if (c->pkl) return pkl_pieces(c->pkl, off, len, iov, n_iov, n_used);
    size_t got = 0;
    *n_used = 0;
    if (off < c->head.len && n_iov > 0) {
        size_t n = c->head.len - (size_t)off;
        got = n < len ? n : len;
        iov[(*n_used)++] = (struct iovec){c->head.p + off, got};
        off += got;
    }
    uint64_t at = off - c->head.len; /* meant only if off is behind the header */
    if (got < len && off >= c->head.len && at < c->n_data && *n_used < n_iov) {
        size_t n = c->n_data - at < len - got ? (size_t)(c->n_data - at) : len - got;
        iov[(*n_used)++] = (struct iovec){(void *)(uintptr_t)(c->data + at), n};
        got += n;
    }
    return got;
}

void content_close(struct content *c)
{
    if (!c) return;
    pkl_free(c->pkl);
    text_free(&c->head);
    pgs_view_unref(c->view);
    free(c);
}

/* --- from an inode back to its object ------------------------------------------------------------------------------------------------- */

/* Does this snapshot have the inode's revision? Takes the snapshot over if so. */
static bool has_revision(struct inode *n, pgs_snapshot *sn, pgs_snapshot **out, struct found *f)
{
    if (find_path(sn, n->path, n->path_len, f) == 0) {
        bool file = f->kind == INODE_FILE && f->obj.id == n->a && f->obj.version == n->b;
        bool link = f->kind == INODE_LINK && n->a == 0;
        if ((file || link) && f->rec.id == n->c) {
            *out = sn;
            return true;
        }
        found_release(f);
    }
    pgs_snapshot_unref(sn);
    return false;
}

static bool try_version(struct view *v, struct inode *n, uint64_t version, pgs_snapshot **sn, struct found *f)
{
    pgs_snapshot *s;
    return version <= INT64_MAX && pgs_snapshot_at(v->store, (int64_t)version, &s, NULL) == 0 &&
           has_revision(n, s, sn, f);
}

/* It was seen in a version that is gone: versions around it may have it, too. */
static int try_others(struct view *v, struct inode *n, pgs_snapshot **sn, struct found *f)
{
    uint64_t *list, seen = atomic_load(&n->seen);
    size_t count, tried = 0;
    if (pgs_versions(v->store, &list, &count, NULL)) return -ESTALE;
    bool found = false;
    for (size_t i = count; i-- > 0 && !found && tried < 16;) {
        if (list[i] < n->b || (list[i] > seen && i > 0 && list[i - 1] >= seen))
            continue; /* the first behind `seen` may */
        found = try_version(v, n, list[i], sn, f);
        tried++;
    }
    pgs_free(list);
    return found ? 0 : -ESTALE;
}

int inode_snapshot(struct view *v, struct inode *n, pgs_snapshot **sn, struct found *f)
{
    pgs_snapshot *s;
    uint64_t gen = atomic_load(&n->gen);
    if (gen && pgs_snapshot_gen_open(v->store, gen, &s, NULL) == 0 && has_revision(n, s, sn, f)) return 0;
    if (n->scope == SCOPE_HEAD && pgs_snapshot_head(v->store, &s, NULL) == 0 && has_revision(n, s, sn, f)) return 0;
    if (try_version(v, n, atomic_load(&n->seen), sn, f)) return 0;
    if (n->scope != SCOPE_HEAD && pgs_snapshot_head(v->store, &s, NULL) == 0 && has_revision(n, s, sn, f)) return 0;
    return try_others(v, n, sn, f);
}

uint64_t now_monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Must the kernel ask for the name again? If the name was valid without asking, and head has something else by now. What a LOOKUP has just given is opened, though
 * commits may be faster than any number of LOOKUPs. */
static bool outdated(struct view *v, struct inode *n)
{
    pgs_snapshot *s;
    struct found f;
    if (n->scope != SCOPE_HEAD || now_monotonic_ns() - atomic_load(&n->asked_ns) < 1000000000u) return false;
    if (pgs_snapshot_head(v->store, &s, NULL)) return false;
    if (!has_revision(n, s, &s, &f)) return true;
    found_release(&f);
    pgs_snapshot_unref(s);
    return false;
}

/* --- the table ------------------------------------------------------------------------------------------------------------------------ */

struct file {
    struct file *next;
    struct inode *n;
    struct content *c;
    unsigned users; /* requests at work on it */
    bool dead;      /* not in the table: the inode is forgotten, and its number may be another one's by now */
};

static struct file **bucket(struct view *v, const struct inode *n)
{
    return &v->files[(uintptr_t)n / SHARE_UNIT % N_BUCKETS];
}

static struct file *find_locked(struct view *v, const struct inode *n)
{
    if (!v->files) return NULL;
    for (struct file *f = *bucket(v, n); f; f = f->next)
        if (f->n == n) return f;
    return NULL;
}

static int open_content(struct view *v, struct inode *n, struct content **c)
{
    pgs_snapshot *sn;
    struct found found;
    int rc = inode_snapshot(v, n, &sn, &found);
    if (rc) return rc;
    rc = content_open(sn, &found, c);
    if (rc == 0 && content_bytes(*c) != atomic_load(&n->size)) { /* what getattr said, and the kernel goes by */
        content_close(*c);
        rc = -EIO;
    }
    if (rc == 0) atomic_store(&n->gen, pgs_view_gen((*c)->view) ? pgs_view_gen((*c)->view) : pgs_snapshot_gen(sn));
    found_release(&found);
    pgs_snapshot_unref(sn);
    return rc;
}

/* The inode's open file, made if need be; one user more. */
static int file_get(struct view *v, struct inode *n, struct file **out)
{
    struct content *c = NULL;
    pthread_mutex_lock(&v->files_lock);
    struct file *f = find_locked(v, n);
    if (f) f->users++;
    pthread_mutex_unlock(&v->files_lock);
    if (!f) {
        int rc = open_content(v, n, &c);
        struct file *mine = rc ? NULL : calloc(1, sizeof *mine);
        if (!mine) {
            content_close(c);
            return rc ? rc : -ENOMEM;
        }
        pthread_mutex_lock(&v->files_lock);
        f = find_locked(v, n);
        if (!v->files && !f) v->files = calloc(N_BUCKETS, sizeof *v->files);
        if (!f && v->files) {
            *mine = (struct file){.next = *bucket(v, n), .n = n, .c = c};
            *bucket(v, n) = f = mine;
            mine = NULL;
            c = NULL;
            v->n_files++;
        }
        if (f) f->users++;
        pthread_mutex_unlock(&v->files_lock);
        free(mine); /* another thread was first */
        content_close(c);
    }
    *out = f;
    return f ? 0 : -ENOMEM;
}

static void close_one(struct inode *n)
{
    uint32_t open = atomic_load(&n->open);
    while (open && !atomic_compare_exchange_weak(&n->open, &open, open - 1)) {
    }
}

/* Under the lock. */
static void unlink_file(struct view *v, struct file *f)
{
    struct file **at = bucket(v, f->n);
    while (*at != f) at = &(*at)->next;
    *at = f->next;
    v->n_files--;
    f->dead = true;
}

static void file_free(struct file *f)
{
    if (!f) return;
    content_close(f->c);
    free(f);
}

/* One user less; `not_opened`: the open that it counted was not. After its reply a request must not look at the inode any more: the kernel may have closed and forgotten it. */
static void file_put(struct view *v, struct file *f, bool not_opened)
{
    pthread_mutex_lock(&v->files_lock);
    if (not_opened && !f->dead) close_one(f->n);
    bool last = --f->users == 0;
    if (last && !f->dead && atomic_load(&f->n->open) == 0) unlink_file(v, f);
    bool gone = last && f->dead;
    pthread_mutex_unlock(&v->files_lock);
    if (gone) file_free(f);
}

/* Nobody has the inode open, or (`forgotten`) nobody has it at all. */
static void file_end(struct view *v, struct inode *n, bool forgotten)
{
    pthread_mutex_lock(&v->files_lock);
    struct file *f = find_locked(v, n);
    bool idle = f && f->users == 0;
    if (f && (forgotten || (idle && atomic_load(&n->open) == 0))) unlink_file(v, f);
    if (atomic_load(&n->open) == 0) atomic_store(&n->gen, 0);
    bool gone = idle && f->dead;
    pthread_mutex_unlock(&v->files_lock);
    if (gone) file_free(f);
}

void files_close(struct view *v)
{
    for (size_t i = 0; v->files && i < N_BUCKETS; i++)
        for (struct file *f = v->files[i], *next; f; f = next) {
            next = f->next;
            file_free(f);
        }
    free(v->files);
    v->files = NULL;
}

/* --- requests ------------------------------------------------------------------------------------------------------------------------- */

void read_open(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi)
{
    struct file *f;
    if ((fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC)) {
        if (n->scope != SCOPE_HEAD || v->read_only || !v->writer)
            fuse_reply_err(req, EROFS);
        else
            v->writer->open(v, req, n, fi);
        return;
    }
    int rc = outdated(v, n) ? -ESTALE : file_get(v, n, &f);
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    if (!server_resent()) atomic_fetch_add(&n->open, 1);
    fi->keep_cache = 1; /* the inode never changes */
    fi->fh = 0;
    bool taken = fuse_reply_open(req, fi) == 0;
    file_put(v, f, !taken); /* interrupted: no RELEASE will come */
    keeper_wake(v);
}

/* A page that cannot be read must be an error of this request: the kernel's copy from it would fail, and the request would be answered by nobody. */
static bool readable(const struct iovec *iov, int n)
{
    for (int i = 0; i < n; i++) {
        uintptr_t from = (uintptr_t)iov[i].iov_base & ~(uintptr_t)4095;
        uintptr_t to = ((uintptr_t)iov[i].iov_base + iov[i].iov_len + 4095) & ~(uintptr_t)4095;
        if (madvise((void *)from, to - from, MADV_POPULATE_READ) == 0) continue;
        if (errno == EFAULT || errno == EHWPOISON) return false;
    }
    return true;
}

/* Too many pieces for one reply. */
static int reply_copied(fuse_req_t req, const struct content *c, uint64_t off, size_t len)
{
    struct iovec iov[MAX_PIECES];
    int n;
    char *buf = malloc(len ? len : 1);
    if (!buf) return fuse_reply_err(req, ENOMEM);
    size_t at = 0, got;
    while (at < len && (got = content_pieces(c, off + at, len - at, iov, MAX_PIECES, &n)) > 0) {
        if (!readable(iov, n)) {
            free(buf);
            return fuse_reply_err(req, EIO);
        }
        for (int i = 0; i < n; i++) {
            memcpy(buf + at, iov[i].iov_base, iov[i].iov_len);
            at += iov[i].iov_len;
        }
    }
    int rc = fuse_reply_buf(req, buf, at);
    free(buf);
    return rc;
}

void read_read(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off)
{
    struct iovec iov[MAX_PIECES];
    struct file *f;
    int n_pieces, rc = off < 0 ? -EINVAL : file_get(v, n, &f);
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    uint64_t bytes = content_bytes(f->c), left = (uint64_t)off < bytes ? bytes - (uint64_t)off : 0;
    size_t want = left < size ? (size_t)left : size;
    size_t got = content_pieces(f->c, (uint64_t)off, want, iov, MAX_PIECES, &n_pieces);
    if (got < want)
        reply_copied(req, f->c, (uint64_t)off, want);
    else if (!readable(iov, n_pieces))
        fuse_reply_err(req, EIO);
    else
        fuse_reply_iov(req, iov, n_pieces);
    file_put(v, f, false);
}

void read_release(struct view *v, struct inode *n)
{
    close_one(n);
    file_end(v, n, false);
}

void read_forgotten(struct view *v, struct inode *n)
{
    atomic_store(&n->open, 0);
    file_end(v, n, true);
}

/* --- the keeper --------------------------------------------------------------------------------------------------------------------------- */

struct gens {
    uint64_t *p;
    size_t n, cap;
};

static void add_gen(struct gens *g, uint64_t gen)
{
    if (gen == 0) return;
    for (size_t i = g->n; i-- > 0 && g->n - i <= 64;) /* most are the same few */
        if (g->p[i] == gen) return;
    if (g->n == g->cap) {
        size_t cap = g->cap ? 2 * g->cap : 64;
        uint64_t *more = realloc(g->p, cap * sizeof *more);
        if (!more) return;
        g->p = more;
        g->cap = cap;
    }
    g->p[g->n++] = gen;
}

/* Views move to newer generations that have the same content: what the inode says follows. */
static void gens_of_files(struct view *v, struct gens *g)
{
    pthread_mutex_lock(&v->files_lock);
    for (size_t i = 0; v->files && i < N_BUCKETS; i++)
        for (struct file *f = v->files[i]; f; f = f->next) {
            uint64_t gen = pgs_view_gen(f->c->view);
            if (gen) atomic_store(&f->n->gen, gen);
            add_gen(g, atomic_load(&f->n->gen));
        }
    pthread_mutex_unlock(&v->files_lock);
}

static void gens_of_dirs(struct view *v, struct gens *g)
{
    for (uint32_t i = 0; i < atomic_load(&v->share.head->dirs_high); i++)
        if (atomic_load(&v->share.dirs[i].ino)) add_gen(g, atomic_load(&v->share.dirs[i].gen));
}

static void lease_all(struct view *v, struct gens *done, bool again)
{
    struct gens now = {0};
    gens_of_files(v, &now);
    gens_of_dirs(v, &now);
    for (size_t i = 0; i < now.n; i++) {
        bool have = false;
        for (size_t k = 0; !again && k < done->n && !have; k++) have = done->p[k] == now.p[i];
        if (!have) pgs_lease(v->store, now.p[i], LEASE_NS, NULL); /* without permission to write: pins only */
    }
    free(done->p);
    *done = now;
}

static void collect_open(void *ctx, struct inode *n)
{
    struct gens *g = ctx;
    if (atomic_load(&n->open) == 0) return;
    atomic_fetch_add(&n->n_lookup, 1); /* so that no FORGET frees it meanwhile */
    add_gen(g, (uintptr_t)n);
}

/* What the worker before had open: pins of our own, while its leases last. */
static void reopen_files(struct view *v)
{
    struct gens open = {0};
    inode_each(&v->share, INODE_FILE, collect_open, &open);
    for (size_t i = 0; i < open.n; i++) {
        struct file *f;
        struct inode *n = (struct inode *)(uintptr_t)open.p[i];
        if (file_get(v, n, &f) == 0) file_put(v, f, false);
        inode_forget(&v->share, inode_number(&v->share, n), 1);
    }
    free(open.p);
}

static void *keeper_main(void *arg)
{
    struct view *v = arg;
    struct gens done = {0};
    struct timespec next;
    if (v->server->reborn) reopen_files(v);
    clock_gettime(CLOCK_MONOTONIC, &next);
    next.tv_sec += RENEW_S;
    pthread_mutex_lock(&v->keeper_lock);
    while (!v->stopping) {
        bool again = false;
        if (!v->lease_now) again = pthread_cond_timedwait(&v->keeper_cond, &v->keeper_lock, &next) == ETIMEDOUT;
        v->lease_now = false;
        if (v->stopping) break;
        pthread_mutex_unlock(&v->keeper_lock);
        lease_all(v, &done, again);
        if (again) {
            clock_gettime(CLOCK_MONOTONIC, &next);
            next.tv_sec += RENEW_S;
        }
        pthread_mutex_lock(&v->keeper_lock);
    }
    pthread_mutex_unlock(&v->keeper_lock);
    free(done.p);
    return NULL;
}

void keeper_wake(struct view *v)
{
    pthread_mutex_lock(&v->keeper_lock);
    v->lease_now = true;
    pthread_cond_signal(&v->keeper_cond);
    pthread_mutex_unlock(&v->keeper_lock);
}

int keeper_start(struct view *v)
{
    v->lease_now = true;
    if (pthread_create(&v->keeper, NULL, keeper_main, v)) return -EAGAIN;
    v->keeper_on = true;
    return 0;
}

void keeper_stop(struct view *v)
{
    if (!v->keeper_on) return;
    pthread_mutex_lock(&v->keeper_lock);
    v->stopping = true;
    pthread_cond_signal(&v->keeper_cond);
    pthread_mutex_unlock(&v->keeper_lock);
    pthread_join(v->keeper, NULL);
    v->keeper_on = false;
}
