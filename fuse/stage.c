/* Pagestone | fuse/stage — slots of staging files: making, finding, showing and giving them back.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See stage.h for states and rules. Looking for a name walks the slots in use: there are as many as files are being written, so few.
 */
#define _GNU_SOURCE
#include "fuse/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SHOWN_NS INT64_C(500000000) /* whoever was shown it so recently may be about to open it */

int64_t now_real_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* --- slots (under `table`) ---------------------------------------------------------------------------------------------------- */
static bool expired(const struct stage *g)
{
    return (atomic_load(&g->flags) & STAGE_PENDING) && now_real_ns() > g->pending_until_ns;
}

static bool has_use(const struct stage *g)
{
    if (stage_count(g, COUNT_READERS) || stage_writers(g)) return true;
    return (atomic_load(&g->flags) & STAGE_PENDING) && g->path_len && !expired(g);
}

static struct inode *inode_of_slot(struct writing *w, const struct stage *g)
{
    struct inode *n = inode_at(&w->v->share, g->ino);
    return n && atomic_load(&n->kind) == INODE_STAGE && n->a == stage_index(w, g) && n->b == g->serial ? n : NULL;
}

static void free_slot(struct writing *w, struct stage *g)
{
    struct stage_local *l = stage_local(w, g);
    struct inode *n = inode_of_slot(w, g);
    if (n) { /* what a late GETATTR gets */
        atomic_store(&n->size, stage_size(w, g));
        atomic_store(&n->mtime_ns, g->mtime_ns);
        atomic_store(&n->mode, g->mode);
    }
    atomic_store(&g->state, 0); /* S1 */
    close(l->fd);
    l->fd = -1;
    server_drop(w->v->server, stage_index(w, g));
    if (n) inode_forget(&w->v->share, g->ino, 1);
    while (w->n_used && !atomic_load(&w->slot[w->n_used - 1].state)) w->n_used--;
}

static struct stage *find_locked(struct writing *w, const char *path, size_t len)
{
    for (uint32_t i = 0; i < w->n_used; i++) {
        struct stage *g = &w->slot[i];
        if (!atomic_load(&g->state) || g->path_len != len || len == 0 || memcmp(g->path, path, len)) continue;
        if (has_use(g) || w->local[i].users) return g;
    }
    return NULL;
}

/* Nobody came for these. */
static void reap_locked(struct writing *w)
{
    for (uint32_t i = w->n_used; i-- > 0;) {
        struct stage *g = &w->slot[i];
        if (!atomic_load(&g->state) || w->local[i].users || has_use(g)) continue;
        if (g->path_len && (atomic_load(&g->flags) & STAGE_DATA))
            server_log("not stored: %.*s: it is the header of an array only", (int)g->path_len, g->path);
        free_slot(w, g);
    }
}

struct stage *stage_find(struct writing *w, const char *path, size_t len)
{
    pthread_mutex_lock(&w->table);
    reap_locked(w);
    struct stage *g = find_locked(w, path, len);
    if (g) stage_local(w, g)->users++;
    pthread_mutex_unlock(&w->table);
    return g;
}

struct stage *stage_get(struct writing *w, const struct inode *n)
{
    struct stage *g = NULL;
    pthread_mutex_lock(&w->table);
    if (atomic_load(&n->kind) == INODE_STAGE && n->a < w->n_used) {
        g = &w->slot[n->a];
        if (!atomic_load(&g->state) || g->serial != n->b) g = NULL;
    }
    if (g) stage_local(w, g)->users++;
    pthread_mutex_unlock(&w->table);
    return g;
}

void stage_put(struct writing *w, struct stage *g)
{
    pthread_mutex_lock(&w->table);
    if (--stage_local(w, g)->users == 0 && !has_use(g)) free_slot(w, g);
    pthread_mutex_unlock(&w->table);
}

struct inode *stage_inode(struct writing *w, const struct stage *g)
{
    return inode_of_slot(w, g);
}

static bool is_below(const struct stage *g, const char *dir, size_t len)
{
    if (len == 0) return g->path_len > 0;
    return g->path_len > len && g->path[len] == '/' && !memcmp(g->path, dir, len);
}

uint32_t stage_below(struct writing *w, const char *dir, size_t len, struct stage **out, uint32_t max)
{
    uint32_t n = 0;
    pthread_mutex_lock(&w->table);
    for (uint32_t i = 0; i < w->n_used && n < max; i++) {
        struct stage *g = &w->slot[i];
        if (!atomic_load(&g->state) || !is_below(g, dir, len) || !(has_use(g) || w->local[i].users)) continue;
        w->local[i].users++;
        out[n++] = g;
    }
    pthread_mutex_unlock(&w->table);
    return n;
}

/* --- making one ------------------------------------------------------------------------------------------------------------------ */
static int make_file(struct view *v)
{
    int fd = v->path ? open(v->path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
    if (fd < 0) fd = memfd_create("pagestone-staging", MFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static struct inode *make_inode(struct writing *w, uint32_t i, uint64_t serial, uint32_t mode)
{
    struct inode_id id = {.kind = INODE_STAGE, .scope = SCOPE_HEAD, .a = i, .b = serial, .path = ""};
    struct inode_fill fill = {.mtime_ns = now_real_ns(), .mode = mode};
    return inode_make(&w->v->share, &id, &fill);
}

static int take_slot(struct writing *w, int fd, const char *path, size_t len, uint32_t mode, uint32_t flags,
                     struct stage **out)
{
    uint32_t i = 0;
    reap_locked(w);
    while (i < STAGES && atomic_load(&w->slot[i].state)) i++;
    if (i == STAGES) return -ENFILE;
    struct stage *g = &w->slot[i];
    uint64_t serial = atomic_fetch_add(&w->v->share.head->stage_next, 1) + 1;
    int rc = server_keep(w->v->server, i, fd);
    struct inode *n = rc ? NULL : make_inode(w, i, serial, mode);
    if (!n) {
        if (rc == 0) server_drop(w->v->server, i);
        return rc ? rc : -ENOMEM;
    }
    memset(g, 0, offsetof(struct stage, path));
    g->ino = (uint32_t)inode_number(&w->v->share, n);
    g->serial = serial;
    atomic_store(&g->flags, flags);
    g->mode = mode & 07777;
    g->mtime_ns = now_real_ns();
    memcpy(g->path, path, len);
    g->path_len = (uint32_t)len;
    w->local[i].fd = fd;
    w->local[i].users = 1;
    if (i >= w->n_used) w->n_used = i + 1;
    atomic_store(&g->state, 1); /* S1 */
    *out = g;
    return 0;
}

int stage_make(struct writing *w, const char *path, size_t len, uint32_t mode, uint32_t flags, struct stage **out)
{
    int fd = make_file(w->v);
    if (fd < 0) return fd;
    pthread_mutex_lock(&w->table);
    int rc = take_slot(w, fd, path, len, mode, flags, out);
    pthread_mutex_unlock(&w->table);
    if (rc) close(fd);
    return rc;
}

/* --- names ---------------------------------------------------------------------------------------------------------------------- */
/* Does the store still have what was last published from here? */
bool stage_agrees(struct writing *w, const struct stage *g)
{
    pgs_snapshot *sn;
    struct found f;
    if (scope_open(w->v, SCOPE_HEAD, &sn)) return true;
    int rc = find_path(sn, g->path, g->path_len, &f);
    bool same = rc != 0 || (f.kind == INODE_FILE && f.obj.version == g->base_version);
    if (rc == 0) found_release(&f);
    pgs_snapshot_unref(sn);
    return same;
}

bool stage_shows(struct writing *w, const struct stage *g)
{
    uint32_t flags = atomic_load(&g->flags);
    if (g->path_len == 0) return false;
    if (flags & STAGE_PENDING) return !expired(g);
    if (stage_writers(g) == 0) return false;
    if (flags & STAGE_CHANGED) return true;
    return !(flags & STAGE_CLOSING) && stage_agrees(w, g);
}

void stage_wait_for_open(struct stage *g, int64_t ns)
{
    g->pending_until_ns = now_real_ns() + ns;
    atomic_fetch_or(&g->flags, STAGE_PENDING);
}

/* What was seen without its lock may have been released since: the table's lock decides which of the two was first. A second ESTALE in a row would be the client's error. */
bool stage_hold(struct writing *w, struct stage *g, const char *path, size_t len)
{
    pthread_mutex_lock(&w->table);
    bool still = g->path_len == len && !memcmp(g->path, path, len);
    if (still) stage_wait_for_open(g, STAGE_SOON_NS);
    pthread_mutex_unlock(&w->table);
    return still;
}

void stage_let_go(struct writing *w, struct stage *g)
{
    pthread_mutex_lock(&w->table);
    bool last = stage_writers(g) <= 1;
    bool soon = !(atomic_load(&g->flags) & (STAGE_CHANGED | STAGE_CLOSING)) && now_real_ns() - g->shown_ns < SHOWN_NS;
    if (last && soon) stage_wait_for_open(g, STAGE_SOON_NS);
    stage_recount(g, COUNT_WRITERS, COUNT_RELEASING);
    if (last && !(atomic_load(&g->flags) & STAGE_PENDING)) g->path_len = 0;
    pthread_mutex_unlock(&w->table);
}

static struct inode *counted(struct writing *w, struct stage *g)
{
    struct inode *n = inode_of_slot(w, g);
    if (n) atomic_fetch_add(&n->n_lookup, 1);
    return n;
}

int stage_lookup(struct view *v, const char *path, size_t len, struct inode **out)
{
    struct writing *w = writing_of(v);
    if (!w || w->n_used == 0) return 0;
    struct stage *g = stage_find(w, path, len);
    if (!g) return 0;
    bool shows = stage_shows(w, g);
    pthread_mutex_lock(&w->table);
    shows = shows && g->path_len == len && !memcmp(g->path, path, len); /* see stage_hold */
    if (shows) g->shown_ns = now_real_ns();
    pthread_mutex_unlock(&w->table);
    struct inode *n = shows ? counted(w, g) : NULL;
    stage_put(w, g);
    if (n) *out = n;
    return n != NULL;
}

bool stage_hides(struct view *v, const char *path, size_t len)
{
    struct writing *w = writing_of(v);
    if (!w || w->n_used == 0) return false;
    struct stage *g = stage_find(w, path, len);
    if (!g) return false;
    bool yes = stage_shows(w, g);
    stage_put(w, g);
    return yes;
}

static struct stage *next_in(struct writing *w, const char *dir, size_t len, uint64_t *i)
{
    struct stage *g = NULL;
    pthread_mutex_lock(&w->table);
    for (; !g && *i < w->n_used; ++*i) {
        struct stage *at = &w->slot[*i];
        if (!atomic_load(&at->state) || !has_use(at) || !is_below(at, dir, len)) continue;
        size_t skip = len ? len + 1 : 0;
        if (memchr(at->path + skip, '/', at->path_len - skip)) continue;
        g = at;
        stage_local(w, g)->users++;
    }
    pthread_mutex_unlock(&w->table);
    return g;
}

int stage_list(struct view *v, const char *dir, size_t len, uint64_t *i, char name[256], struct inode **out)
{
    struct writing *w = writing_of(v);
    for (struct stage *g; w && w->n_used && (g = next_in(w, dir, len, i)) != NULL; stage_put(w, g)) {
        size_t skip = len ? len + 1 : 0;
        if (g->path_len - skip > 255 || !stage_shows(w, g)) continue;
        struct inode *n = counted(w, g);
        if (!n) continue;
        memcpy(name, g->path + skip, g->path_len - skip);
        name[g->path_len - skip] = 0;
        *out = n;
        stage_put(w, g);
        return 1;
    }
    return 0;
}

void stage_lock(struct writing *w, struct stage *g)
{
    pthread_rwlock_wrlock(&stage_local(w, g)->lock);
}

void stage_unlock(struct writing *w, struct stage *g)
{
    pthread_rwlock_unlock(&stage_local(w, g)->lock);
}

void stage_set_path(struct writing *w, struct stage *g, const char *path, size_t len)
{
    pthread_mutex_lock(&w->table);
    g->path_len = 0; /* a death here leaves it without a name */
    memcpy(g->path, path, len);
    g->path_len = (uint32_t)len;
    pthread_mutex_unlock(&w->table);
}

/* --- attributes -------------------------------------------------------------------------------------------------------------------- */
uint64_t stage_size(struct writing *w, const struct stage *g)
{
    struct stat st;
    return fstat(w->local[g - w->slot].fd, &st) ? 0 : (uint64_t)st.st_size;
}

static void fill_stat(struct view *v, struct stat *st, uint64_t serial, uint64_t size, int64_t mtime_ns, uint32_t mode)
{
    struct inode_id id = {.kind = INODE_STAGE, .scope = SCOPE_HEAD, .a = serial, .path = ""};
    *st = (struct stat){.st_ino = inode_public_number(&id),
                        .st_mode = S_IFREG | (mode & 07777),
                        .st_nlink = 1,
                        .st_uid = v->uid,
                        .st_gid = v->gid,
                        .st_size = (off_t)size,
                        .st_blksize = 4096,
                        .st_blocks = (blkcnt_t)((size + 511) / 512)};
    st->st_mtim.tv_sec = mtime_ns / 1000000000;
    st->st_mtim.tv_nsec = mtime_ns % 1000000000;
    if (st->st_mtim.tv_nsec < 0) st->st_mtim.tv_sec--, st->st_mtim.tv_nsec += 1000000000;
    st->st_atim = st->st_ctim = st->st_mtim;
}

void stage_stat(struct view *v, const struct inode *n, struct stat *st)
{
    struct writing *w = writing_of(v);
    struct stage *g = stage_get(w, n);
    if (!g) {
        fill_stat(v, st, n->b, atomic_load(&n->size), atomic_load(&n->mtime_ns), atomic_load(&n->mode));
        return;
    }
    fill_stat(v, st, g->serial, stage_size(w, g), g->mtime_ns, g->mode);
    if (g->path_len == 0) st->st_nlink = 0;
    stage_put(w, g);
}

void stage_entry(struct writing *w, struct stage *g, struct fuse_entry_param *e)
{
    struct inode *n = counted(w, g);
    *e = (struct fuse_entry_param){0};
    if (!n) return;
    e->ino = g->ino;
    e->generation = n->generation;
    stage_stat(w->v, n, &e->attr);
}

/* --- what was written ----------------------------------------------------------------------------------------------------------------- */
static void remove_range(struct stage *g, uint32_t i)
{
    memmove(&g->range[i], &g->range[i + 1], (--g->n_ranges - i) * sizeof g->range[0]);
}

static void add_range(struct stage *g, uint64_t lo, uint64_t hi)
{
    uint32_t i = 0;
    while (i < g->n_ranges && g->range[i].hi < lo) i++;
    while (i < g->n_ranges && g->range[i].lo <= hi) {
        if (g->range[i].lo < lo) lo = g->range[i].lo;
        if (g->range[i].hi > hi) hi = g->range[i].hi;
        remove_range(g, i);
    }
    if (g->n_ranges == STAGE_RANGES) { /* the smallest is forgotten: at worst the file is published at the last close */
        uint32_t least = 0;
        for (uint32_t k = 1; k < g->n_ranges; k++)
            if (g->range[k].hi - g->range[k].lo < g->range[least].hi - g->range[least].lo) least = k;
        if (g->range[least].hi - g->range[least].lo > hi - lo) return;
        remove_range(g, least);
        if (least < i) i--;
    }
    memmove(&g->range[i + 1], &g->range[i], (g->n_ranges++ - i) * sizeof g->range[0]);
    g->range[i] = (struct stage_range){lo, hi};
}

void stage_wrote(struct writing *w, struct stage *g, uint64_t lo, uint64_t hi)
{
    struct stage_local *l = stage_local(w, g);
    pthread_mutex_lock(&l->ranges);
    add_range(g, lo, hi);
    g->changes++;
    g->mtime_ns = now_real_ns();
    atomic_fetch_or(&g->flags, STAGE_DATA);
    atomic_fetch_and(&g->flags, ~(uint32_t)STAGE_CLOSING);
    pthread_mutex_unlock(&l->ranges);
}

bool stage_covered(struct writing *w, const struct stage *g)
{
    uint64_t size = stage_size(w, g);
    return size == 0 || (g->n_ranges == 1 && g->range[0].lo == 0 && g->range[0].hi >= size);
}

int stage_truncate(struct writing *w, struct stage *g, uint64_t size)
{
    if (ftruncate(stage_local(w, g)->fd, (off_t)size)) return -errno;
    while (g->n_ranges && g->range[g->n_ranges - 1].lo >= size) g->n_ranges--;
    if (g->n_ranges && g->range[g->n_ranges - 1].hi > size) g->range[g->n_ranges - 1].hi = size;
    g->changes++;
    g->mtime_ns = now_real_ns();
    atomic_fetch_or(&g->flags, STAGE_DATA);
    atomic_fetch_and(&g->flags, ~(uint32_t)STAGE_CLOSING);
    return 0;
}

static int write_all(int fd, const struct iovec *iov, int n, uint64_t off)
{
    for (int i = 0; i < n; i++)
        for (size_t done = 0; done < iov[i].iov_len;) {
            ssize_t got = pwrite(fd, (char *)iov[i].iov_base + done, iov[i].iov_len - done, (off_t)off);
            if (got < 0 && errno != EINTR) return -errno;
            if (got > 0) done += (size_t)got, off += (uint64_t)got;
        }
    return 0;
}

int stage_fill(struct writing *w, struct stage *g, pgs_snapshot *sn, const struct found *f, uint64_t limit)
{
    struct content *c;
    struct iovec iov[64];
    int rc = content_open(sn, f, &c), n, fd = stage_local(w, g)->fd;
    if (rc) return rc;
    uint64_t size = content_bytes(c);
    if (size > limit) size = limit;
    for (uint64_t at = 0; at < size && rc == 0;) {
        size_t want = size - at < 1u << 22 ? (size_t)(size - at) : 1u << 22;
        size_t got = content_pieces(c, at, want, iov, 64, &n);
        rc = got ? write_all(fd, iov, n, at) : -EIO;
        at += got;
    }
    content_close(c);
    if (rc == 0 && size) add_range(g, 0, size);
    return rc;
}

/* --- open files ------------------------------------------------------------------------------------------------------------------- */
/* A resent request may have been counted by the worker that died. */
static bool counted_before(_Atomic uint32_t *left)
{
    uint32_t n = atomic_load(left);
    while (server_resent() && n > 0)
        if (atomic_compare_exchange_weak(left, &n, n - 1)) return true;
    return false;
}

void stage_recount(struct stage *g, unsigned less, unsigned more)
{
    uint64_t had = atomic_load(&g->counts), want;
    do {
        want = had;
        if (less != COUNT_NONE && (had >> less & 0xffff)) want -= UINT64_C(1) << less;
        if (more != COUNT_NONE) want += UINT64_C(1) << more;
    } while (!atomic_compare_exchange_weak(&g->counts, &had, want));
}

void stage_opened(struct writing *w, struct stage *g, bool writer)
{
    if (counted_before(&g->opening_left)) {
        stage_recount(g, COUNT_NONE, COUNT_OPENING); /* it may be asked yet again */
    } else {
        atomic_fetch_add(&g->counts,
                         (UINT64_C(1) << COUNT_OPENING) + (UINT64_C(1) << (writer ? COUNT_WRITERS : COUNT_READERS)));
        server_opened(w->v->server);
    }
    atomic_fetch_and(&g->flags, ~(uint32_t)(STAGE_PENDING | (writer ? STAGE_CLOSING : 0)));
}

void stage_open_answered(struct stage *g)
{
    stage_recount(g, COUNT_OPENING, COUNT_NONE);
}

bool stage_released_before(struct stage *g)
{
    return counted_before(&g->releasing_left);
}

void stage_release_answered(struct stage *g)
{
    stage_recount(g, COUNT_RELEASING, COUNT_NONE);
}

/* --- life of a worker --------------------------------------------------------------------------------------------------------------- */
static void adopt(struct writing *w, uint32_t i)
{
    struct stage *g = &w->slot[i];
    if (!atomic_load(&g->state)) return;
    w->local[i].fd = server_kept(w->v->server, i);
    atomic_store(&g->opening_left, stage_count(g, COUNT_OPENING));
    atomic_store(&g->releasing_left, stage_count(g, COUNT_RELEASING));
    atomic_fetch_and(&g->counts, (UINT64_C(1) << COUNT_OPENING) - 1);
    w->n_used = i + 1;
    if (g->path_len > sizeof g->path) g->path_len = 0;
    if (g->n_ranges > STAGE_RANGES) g->n_ranges = 0;
    if (w->local[i].fd < 0) server_log("a file that was being written is lost: %.*s", (int)g->path_len, g->path);
    if (w->local[i].fd < 0 || !has_use(g)) free_slot(w, g);
}

int stage_start(struct view *v, char *why, size_t why_len)
{
    struct writing *w = calloc(1, sizeof *w);
    if (!w) {
        snprintf(why, why_len, "no memory");
        return -1;
    }
    w->v = v;
    w->slot = (struct stage *)(v->share.base + SHARE_STAGE_OFF);
    pthread_mutex_init(&w->table, NULL);
    for (uint32_t i = 0; i < STAGES; i++) {
        pthread_rwlock_init(&w->local[i].lock, NULL);
        pthread_mutex_init(&w->local[i].ranges, NULL);
        w->local[i].fd = -1;
    }
    v->writing = w;
    for (uint32_t i = 0; i < STAGES && v->server->reborn; i++) adopt(w, i);
    return 0;
}

/* Everything is closed by now; what is left had a close that nobody answered. */
void stage_stop(struct view *v)
{
    struct writing *w = writing_of(v);
    for (uint32_t i = 0; i < w->n_used; i++) {
        struct stage *g = &w->slot[i];
        if (!atomic_load(&g->state)) continue;
        w->local[i].users++;
        stage_lock(w, g);
        int rc = publish_stage(w, g);
        if (rc) server_log("not stored: %.*s: %s", (int)g->path_len, g->path, strerror(-rc));
        stage_unlock(w, g);
    }
}
