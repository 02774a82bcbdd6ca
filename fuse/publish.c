/* Pagestone | fuse/publish — a file that was written becomes an object, in one transaction.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The name decides the kind (wish_of): ".npy" that parses is an array, ".pkl" a pickle without buffers, all else bytes. "x.npy" is the key "x". Where that key is another file's already ("x", "x.pkl", or
 * something below "x/") the file is stored as bytes under its own name, which reads back the same; nothing is ever replaced that has another file name.
 *
 *   P1  A transaction makes at most one new record and one new object besides: so REC_NEXT is right (view.h).
 *   P2  What went on from committed bytes is put only in place of these: else EBUSY. What was made from nothing replaces what is there.
 *   P3  Before it commits, the slot says who commits upon what. A worker that is asked again by a resent request finds out from the log whether its predecessor had been done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuse/npy.h"
#include "fuse/stage.h"

#define TRIES 8
#define SEGMENTS_MAX 4096u
#define SPARSE_LEAST (UINT64_C(1) << 20)

/* --- names ---------------------------------------------------------------------------------------------------------------------------- */
enum wish wish_of(const char *path, size_t len)
{
    if (len > 4 && path[len - 5] != '/') {
        if (!memcmp(path + len - 4, ".npy", 4)) return WISH_ARRAY;
        if (!memcmp(path + len - 4, ".pkl", 4)) return WISH_PICKLE;
    }
    return WISH_BYTES;
}

/* What a key has, in a transaction or (t NULL) in its base. */
static int look(pgs_txn *t, pgs_snapshot *base, const char *key, size_t len, struct pgs_object *o)
{
    return t ? pgs_txn_peek(t, key, len, o, NULL) : pgs_get(base, key, len, o, NULL);
}

/* May a file be the object `key` (its path without the suffix)? 1, 0 or -errno. */
static int key_is_free(pgs_txn *t, pgs_snapshot *sn, const char *key, size_t len, enum wish wish)
{
    struct pgs_object o;
    if (len == 0 || len > PGS_MAX_KEY || pgs_key_check(key, len, NULL)) return 0;
    int rc = look(t, sn, key, len, &o);
    if (rc == 0)
        return wish == WISH_ARRAY ? o.kind == PGS_KIND_ARRAY : o.kind == PGS_KIND_PICKLE || o.kind == PGS_KIND_PLAIN;
    if (rc != -PGS_ENOENT) return view_errno(rc);
    rc = dir_has_entries(sn, key, len);
    return rc < 0 ? rc : !rc;
}

/* --- records -------------------------------------------------------------------------------------------------------------------------- */
int record_put(pgs_txn *t, const char *path, size_t len, const struct record *r)
{
    char key[PGS_MAX_KEY];
    unsigned char head[RECORD_HEAD];
    size_t n = record_key(path, len, key);
    if (n == 0) return r->flags & REC_LINK ? -ENAMETOOLONG : 0;
    record_encode(r, head);
    struct pgs_part parts[2] = {{head, sizeof head}, {r->tail, r->tail_len}};
    return view_errno(pgs_txn_put(t, key, n, PGS_KIND_BYTES, NULL, parts, r->tail_len ? 2 : 1, NULL));
}

int record_delete(pgs_txn *t, const char *path, size_t len)
{
    char key[PGS_MAX_KEY];
    size_t n = record_key(path, len, key);
    int rc = n ? pgs_txn_delete(t, key, n, NULL) : 0;
    return rc == -PGS_ENOENT ? 0 : view_errno(rc);
}

int found_delete(pgs_txn *t, const struct found *f, const char *path, size_t len)
{
    char key[PGS_MAX_KEY];
    int rc = 0;
    if (f->kind == INODE_FILE) rc = pgs_txn_delete(t, key, key_of(f->obj.kind, path, len, key), NULL);
    if (f->kind == INODE_DIR) rc = pgs_txn_delete(t, path, len, NULL); /* its marker, which it may lack */
    if (rc == -PGS_ENOENT && f->kind == INODE_DIR) rc = 0;
    return rc ? view_errno(rc) : record_delete(t, path, len);
}

/* --- the bytes ------------------------------------------------------------------------------------------------------------------------ */
struct parts { /* of a file, from some offset on */
    struct pgs_part *p;
    size_t n, cap;
    void *map;
    size_t map_len;
    uint64_t n_zeros; /* bytes of holes */
};

static bool part_add(struct parts *l, const void *p, size_t len)
{
    if (len == 0) return true;
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 16;
        struct pgs_part *more = realloc(l->p, cap * sizeof *more);
        if (!more) return false;
        l->p = more;
        l->cap = cap;
    }
    l->p[l->n++] = (struct pgs_part){p, len};
    if (!p) l->n_zeros += len;
    return true;
}

static void parts_free(struct parts *l)
{
    free(l->p);
    if (l->map) munmap(l->map, l->map_len);
}

/* Holes are told apart, so that they need not be read: a fault would fill them. */
static int parts_of_file(struct parts *l, const struct source *s, uint64_t off)
{
    if (s->size > off) {
        l->map = mmap(NULL, s->size, PROT_READ, MAP_SHARED, s->fd, 0);
        if (l->map == MAP_FAILED) {
            l->map = NULL;
            return -ENOMEM;
        }
        l->map_len = s->size;
    }
    for (uint64_t at = off; at < s->size;) {
        off_t data = l->n < SEGMENTS_MAX ? lseek(s->fd, (off_t)at, SEEK_DATA) : (off_t)at;
        if (data < 0 && errno != ENXIO) data = (off_t)at; /* a file system that does not tell */
        uint64_t lo = data < 0 || (uint64_t)data > s->size ? s->size : (uint64_t)data;
        if (!part_add(l, NULL, lo - at)) return -ENOMEM;
        off_t hole = lo < s->size && l->n < SEGMENTS_MAX ? lseek(s->fd, (off_t)lo, SEEK_HOLE) : -1;
        uint64_t hi = hole < 0 || (uint64_t)hole > s->size ? s->size : (uint64_t)hole;
        if (hi > lo && !part_add(l, (char *)l->map + lo, hi - lo)) return -ENOMEM;
        at = hi;
    }
    return 0;
}

static int parts_of_content(struct parts *l, const struct source *s, uint64_t off)
{
    struct iovec iov[64];
    for (uint64_t at = off; at < s->size;) {
        int n;
        size_t got = content_pieces(s->bytes, at, s->size - at, iov, 64, &n);
        if (got == 0) return -EIO;
        for (int i = 0; i < n; i++)
            if (!part_add(l, iov[i].iov_base, iov[i].iov_len)) return -ENOMEM;
        at += got;
    }
    return 0;
}

static int parts_of(struct parts *l, const struct source *s, uint64_t off)
{
    return s->fd >= 0 ? parts_of_file(l, s, off) : parts_of_content(l, s, off);
}

static int source_read(const struct source *s, void *to, size_t len)
{
    struct iovec iov[8];
    int n;
    if (s->fd >= 0) return pread(s->fd, to, len, 0) == (ssize_t)len ? 0 : -EIO;
    for (size_t at = 0; at < len;) {
        size_t got = content_pieces(s->bytes, at, len - at, iov, 8, &n);
        if (got == 0) return -EIO;
        for (int i = 0; i < n; i++) memcpy((char *)to + at, iov[i].iov_base, iov[i].iov_len), at += iov[i].iov_len;
    }
    return 0;
}

/* --- objects -------------------------------------------------------------------------------------------------------------------------- */
/* The header of an .npy file. *header is the caller's. */
static int read_header(const struct source *s, struct npy *npy, char **header)
{
    char first[12];
    size_t n = s->size < sizeof first ? (size_t)s->size : sizeof first;
    int rc = source_read(s, first, n);
    uint64_t len = rc ? 0 : npy_header_len(first, n);
    if (rc) return rc;
    if (len == 0 || len > s->size || len > NPY_HEADER_MAX) return -EINVAL;
    if (!(*header = malloc((size_t)len))) return -ENOMEM;
    rc = source_read(s, *header, (size_t)len);
    if (rc == 0) rc = npy_parse(*header, (size_t)len, npy);
    if (rc) {
        free(*header);
        *header = NULL;
    }
    return rc;
}

/* Mostly holes: pages are taken for the rest only. */
static int put_sparse(pgs_txn *t, const char *key, size_t len, const struct pgs_type *type, const struct parts *l)
{
    pgs_view *view;
    int rc = pgs_txn_delete(t, key, len, NULL);
    if (rc == -PGS_ENOENT) rc = 0;
    if (rc == 0) rc = pgs_txn_create(t, key, len, type, NULL);
    if (rc == 0) rc = pgs_txn_edit(t, key, len, &view, NULL);
    if (rc) return view_errno(rc);
    char *to = pgs_view_data(view);
    for (size_t i = 0; i < l->n; to += l->p[i++].len)
        if (l->p[i].p) memcpy(to, l->p[i].p, l->p[i].len);
    pgs_view_unref(view);
    return 0;
}

static int put_array(pgs_txn *t, const char *key, size_t len, const struct npy *npy, const struct source *s)
{
    struct parts l = {0};
    int rc = parts_of(&l, s, npy->data_at);
    if (rc == 0 && npy->n_bytes >= SPARSE_LEAST && l.n_zeros > npy->n_bytes / 2)
        rc = put_sparse(t, key, len, &npy->type, &l);
    else if (rc == 0)
        rc = view_errno(pgs_txn_put(t, key, len, PGS_KIND_ARRAY, &npy->type, l.p, l.n, NULL));
    parts_free(&l);
    return rc;
}

/* The kind of a header that the library would have made itself needs no keeping. */
static bool is_own_header(const struct npy *npy, const char *header)
{
    struct text t = {0};
    bool same = npy_write(&npy->type, &t) && !t.failed && t.len == npy->data_at && !memcmp(t.p, header, t.len);
    text_free(&t);
    return same;
}

static int put_bytes(pgs_txn *t, const char *key, size_t len, enum wish wish, const struct source *s)
{
    struct parts l = {0};
    uint64_t head[2] = {16 + s->size, 0}; /* head_len; no buffers */
    unsigned char le[16] = {0};
    for (unsigned i = 0; i < 8; i++) le[i] = (unsigned char)(head[0] >> 8 * i);
    bool ok = wish != WISH_PICKLE || part_add(&l, le, sizeof le);
    int rc = ok ? parts_of(&l, s, 0) : -ENOMEM;
    if (rc == 0)
        rc = view_errno(
            pgs_txn_put(t, key, len, wish == WISH_PICKLE ? PGS_KIND_PICKLE : PGS_KIND_BYTES, NULL, l.p, l.n, NULL));
    parts_free(&l);
    return rc;
}

int publish_check(pgs_txn *t, pgs_snapshot *base, const char *path, size_t len, enum wish *wish, size_t *key_len)
{
    struct pgs_object o;
    *wish = wish_of(path, len);
    *key_len = len - (*wish == WISH_BYTES ? 0 : 4);
    if (*wish != WISH_BYTES) {
        int rc = key_is_free(t, base, path, *key_len, *wish);
        if (rc < 0) return rc;
        if (rc) return 0;
        *wish = WISH_BYTES;
        *key_len = len;
    }
    if (len > PGS_MAX_KEY) return -ENAMETOOLONG;
    int rc = look(t, base, path, len, &o);
    if (rc == -PGS_ENOENT) return 0;
    if (rc) return view_errno(rc);
    return o.kind == PGS_KIND_BYTES ? 0 : o.kind == PGS_KIND_DIR ? -EISDIR : -EEXIST; /* "x", and there is x.npy */
}

int publish_put(struct view *v, pgs_txn *t, pgs_snapshot *base, const char *path, size_t len, const struct found *old,
                const struct source *src, struct record *rec)
{
    enum wish wish;
    size_t key_len;
    char old_key[PGS_MAX_KEY], *header = NULL;
    struct npy npy = {0};
    (void)v;
    int rc = old->kind == INODE_DIR ? -EISDIR : publish_check(t, base, path, len, &wish, &key_len);
    if (rc == 0 && wish == WISH_ARRAY) rc = read_header(src, &npy, &header);
    if (rc == 0 && wish == WISH_ARRAY && npy.data_at + npy.n_bytes != src->size) rc = -EINVAL;
    if (rc == 0 && old->kind == INODE_FILE) {
        size_t n = key_of(old->obj.kind, path, len, old_key);
        if (n != key_len) rc = view_errno(pgs_txn_delete(t, old_key, n, NULL));
    }
    if (rc == 0)
        rc = wish == WISH_ARRAY ? put_array(t, path, key_len, &npy, src) : put_bytes(t, path, key_len, wish, src);
    if (rc == 0) {
        rec->flags = (rec->flags & (REC_MODE | REC_MTIME)) | REC_NEXT;
        rec->object = rec->version = 0;
        rec->tail_len = 0;
        if (wish == WISH_ARRAY && !is_own_header(&npy, header)) {
            rec->flags |= REC_HEADER;
            rec->tail = header;
            rec->tail_len = (uint32_t)npy.data_at;
        }
        rc = rec->flags == REC_NEXT ? record_delete(t, path, len) : record_put(t, path, len, rec);
    }
    rec->tail = NULL;
    free(header);
    npy_free(&npy);
    return rc;
}

/* --- transactions ------------------------------------------------------------------------------------------------------------------------ */
static int change_once(struct view *v, int (*fn)(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx), void *ctx,
                       uint64_t *version, bool *again)
{
    pgs_txn *t;
    int rc = pgs_begin(v->store, PGS_ISO_SNAPSHOT, &t, NULL);
    if (rc) return view_errno(rc);
    pgs_snapshot *base = pgs_txn_base(t);
    rc = base ? fn(v, t, base, ctx) : -EIO;
    pgs_snapshot_unref(base);
    if (rc == 0) {
        rc = pgs_txn_commit(t, NULL, version, NULL);
        *again = rc == -PGS_ECONFLICT;
        rc = view_errno(rc);
    }
    pgs_txn_unref(t);
    return rc;
}

int publish_change(struct view *v, int (*fn)(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx), void *ctx,
                   uint64_t *version)
{
    uint64_t unused;
    int rc = -EBUSY;
    bool again = true;
    if (v->read_only) return -EROFS;
    for (int i = 0; i < TRIES && again; i++) {
        again = false;
        rc = change_once(v, fn, ctx, version ? version : &unused, &again);
    }
    return rc;
}

/* --- a staging file ------------------------------------------------------------------------------------------------------------------------ */
struct publishing {
    struct writing *w;
    struct stage *g;
};

static int put_stage(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx)
{
    struct publishing *p = ctx;
    struct stage *g = p->g;
    struct found f;
    struct record rec = {.flags = REC_MODE | REC_MTIME, .mode = g->mode, .mtime_ns = g->mtime_ns};
    int rc = find_path(base, g->path, g->path_len, &f);
    if (rc) return rc;
    bool same = f.kind == INODE_FILE && f.obj.version == g->base_version && (!g->base_id || f.obj.id == g->base_id);
    if (g->base_version && !same) { /* P2 */
        rc = -EBUSY;
    } else if (same && !(atomic_load(&g->flags) & (STAGE_DATA | STAGE_CREATED))) {
        struct record now = f.rec;
        now.flags = (f.rec.id ? f.rec.flags : 0) | REC_MODE | REC_MTIME;
        now.flags &= ~(uint32_t)REC_NEXT;
        now.object = f.obj.id;
        now.version = f.obj.version;
        now.mode = g->mode;
        now.mtime_ns = g->mtime_ns;
        if (!(now.flags & REC_HEADER)) now.tail_len = 0;
        rc = record_put(t, g->path, g->path_len, &now);
    } else {
        struct source src = {.fd = stage_local(p->w, g)->fd, .size = stage_size(p->w, g)};
        rc = publish_put(v, t, base, g->path, g->path_len, &f, &src, &rec);
    }
    found_release(&f);
    g->commit_from = pgs_snapshot_version(base); /* P3 */
    g->commit_pid = (uint64_t)getpid();
    return rc;
}

bool publish_is_half(struct writing *w, struct stage *g)
{
    struct source src = {.fd = stage_local(w, g)->fd, .size = stage_size(w, g)};
    struct npy npy = {0};
    char *header = NULL;
    if (src.size > NPY_HEADER_MAX || wish_of(g->path, g->path_len) != WISH_ARRAY) return false;
    bool half = read_header(&src, &npy, &header) == 0 && npy.data_at == src.size && npy.n_bytes > 0;
    if (header) npy_free(&npy);
    free(header);
    return half;
}

static int first_pid(void *ctx, const struct pgs_commit_info *c)
{
    struct pgs_commit_info *out = ctx;
    *out = (struct pgs_commit_info){.version = c->version, .pid = c->pid};
    return 1;
}

/* P3: the version that a dead worker had published; 0: it had not. */
static uint64_t landed(struct view *v, const struct stage *g)
{
    pgs_snapshot *sn;
    struct found f;
    struct pgs_commit_info c = {0};
    uint64_t version = 0;
    if (g->commit_pid == 0 || scope_open(v, SCOPE_HEAD, &sn)) return 0;
    if (find_path(sn, g->path, g->path_len, &f) == 0) {
        if (f.kind == INODE_FILE && f.obj.version > g->commit_from) version = f.obj.version;
        found_release(&f);
    }
    pgs_snapshot_unref(sn);
    if (version == 0) return 0;
    pgs_log(v->store, version + 1, first_pid, &c, NULL);
    return c.version == version && c.pid == g->commit_pid ? version : 0;
}

int publish_stage(struct writing *w, struct stage *g)
{
    struct publishing p = {w, g};
    if (g->path_len == 0 || !(atomic_load(&g->flags) & STAGE_CHANGED)) return 0;
    uint64_t version = landed(w->v, g);
    int rc = version ? 0 : publish_change(w->v, put_stage, &p, &version);
    g->commit_pid = 0;
    if (rc) {
        g->failed = g->changes + 1;
        return rc;
    }
    g->base_id = 0; /* nobody has said which: its version is enough */
    g->base_version = version;
    atomic_fetch_and(&g->flags, ~(uint32_t)STAGE_CHANGED);
    return 0;
}
