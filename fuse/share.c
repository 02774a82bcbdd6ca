/* Pagestone | fuse/share — the table of inodes in memory that outlives a worker.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See share.h for the layout and what holds after a death. Freed entries are threaded through `hash`, which means nothing in a free entry.
 */
#define _GNU_SOURCE
#include "fuse/share.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC UINT64_C(0x3165726168735350) /* "PSshare1" */
#define DIRS_OFF ((size_t)1 << 20)
#define CHUNKS_OFF (SHARE_STAGE_OFF + SHARE_STAGE_BYTES)
#define CHUNK ((size_t)1 << 20)
#define N_CLASSES 5u

#define PATH_ROOM 1028u /* the longest path */

static const uint32_t class_size[N_CLASSES] = {128, 192, 320, 576, 1216};
const char *const share_request_names[REQ_N] = {"lookup",     "forget",   "getattr", "setattr", "open",    "read",
                                                "write",      "flush",    "release", "fsync",   "opendir", "readdir",
                                                "releasedir", "readlink", "statfs",  "xattr",   "name"};

_Static_assert(sizeof(struct inode) + PATH_ROOM <= 1216, "the longest path fits the largest class");
_Static_assert(sizeof(struct share_head) + 16384 <= DIRS_OFF, "classes of all chunks fit");
_Static_assert(DIRS_OFF + SHARE_DIRS * sizeof(struct share_dir) <= SHARE_STAGE_OFF, "directory handles fit");

/* --- numbers ----------------------------------------------------------------------------------------------------------------- */

static struct inode *entry(const struct share *s, uint32_t number)
{
    return (struct inode *)(s->base + (size_t)number * SHARE_UNIT);
}

uint64_t inode_number(struct share *s, const struct inode *n)
{
    return (uint64_t)((const char *)n - s->base) / SHARE_UNIT;
}

struct inode *inode_at(struct share *s, uint64_t ino)
{
    size_t off = ino > s->len / SHARE_UNIT ? s->len : (size_t)ino * SHARE_UNIT;
    if (off < CHUNKS_OFF) return NULL;
    size_t chunk = (off - CHUNKS_OFF) / CHUNK, within = (off - CHUNKS_OFF) % CHUNK;
    if (chunk >= atomic_load(&s->head->n_chunks)) return NULL;
    uint32_t size = class_size[atomic_load(&s->head->chunk_class[chunk]) % N_CLASSES];
    if (within % size || within + size > CHUNK) return NULL;
    struct inode *n = (struct inode *)(s->base + off);
    return atomic_load(&n->kind) == INODE_FREE ? NULL : n;
}

/* --- identity ----------------------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}

static uint64_t hash_path(uint64_t h, const char *p, size_t len)
{
    uint64_t w;
    for (; len >= 8; p += 8, len -= 8) {
        memcpy(&w, p, 8);
        h = mix(h, w);
    }
    w = 0;
    memcpy(&w, p, len);
    return mix(mix(h, w), len);
}

static uint32_t hash_of(const struct inode_id *id)
{
    uint64_t h = mix(mix(mix(mix(id->kind, id->scope), id->a), id->b), id->c);
    h = hash_path(h, id->path, id->path_len);
    return (uint32_t)(h >> 32);
}

uint64_t inode_public_number(const struct inode_id *id)
{
    uint64_t h = mix(7, id->kind);
    if (id->kind == INODE_FILE)
        h = mix(mix(h, id->a), id->b); /* one number under every name and in every version */
    else
        h = hash_path(mix(mix(mix(h, id->scope), id->a), id->c), id->path, id->path_len);
    h >>= 1; /* some programs take these for signed */
    return h < 16 ? h + 16 : h;
}

static bool same(const struct inode *n, const struct inode_id *id)
{
    return atomic_load(&n->kind) == (uint32_t)id->kind && n->a == id->a && n->b == id->b && n->c == id->c &&
           n->scope == id->scope && n->path_len == id->path_len && !memcmp(n->path, id->path, id->path_len);
}

/* --- the index (under the lock) ------------------------------------------------------------------------------------------------- */

static void index_put(struct share *s, uint32_t number)
{
    uint64_t i = entry(s, number)->hash;
    while (s->index[i & (s->n_index - 1)]) i++;
    s->index[i & (s->n_index - 1)] = number;
}

static bool index_grow(struct share *s)
{
    if (s->index && s->n_used * 10 < s->n_index * 7) return true;
    uint64_t n = s->n_index ? 2 * s->n_index : 1024, n_old = s->n_index;
    uint32_t *old = s->index, *more = calloc(n, sizeof *more);
    if (!more) return s->index && s->n_used + 1 < s->n_index;
    s->index = more;
    s->n_index = n;
    for (uint64_t i = 0; i < n_old; i++)
        if (old[i]) index_put(s, old[i]);
    free(old);
    return true;
}

/* Linear probing without gravestones: whatever could not be found across the gap moves into it. */
static void index_remove(struct share *s, const struct inode *n)
{
    uint64_t mask = s->n_index - 1, i = n->hash & mask;
    uint32_t number = (uint32_t)inode_number(s, n);
    while (s->index[i] && s->index[i] != number) i = (i + 1) & mask;
    if (!s->index[i]) return;
    for (uint64_t j = (i + 1) & mask; s->index[j]; j = (j + 1) & mask) {
        uint64_t home = entry(s, s->index[j])->hash & mask;
        if (((j - home) & mask) < ((j - i) & mask)) continue;
        s->index[i] = s->index[j];
        i = j;
    }
    s->index[i] = 0;
    s->n_used--;
}

static struct inode *find_locked(struct share *s, const struct inode_id *id, uint32_t hash)
{
    if (!s->index) return NULL;
    for (uint64_t i = hash;; i++) {
        uint32_t number = s->index[i & (s->n_index - 1)];
        if (!number) return NULL;
        struct inode *n = entry(s, number);
        if (n->hash == hash && same(n, id)) return n;
    }
}

/* --- entries -------------------------------------------------------------------------------------------------------------------- */

static bool new_chunk(struct share *s, unsigned cls)
{
    uint32_t chunk = atomic_load(&s->head->n_chunks);
    size_t off = CHUNKS_OFF + (size_t)chunk * CHUNK;
    if (off + CHUNK > s->len) return false;
    atomic_store(&s->head->chunk_class[chunk], (uint8_t)cls);
    atomic_store(&s->head->n_chunks, chunk + 1);
    s->next[cls] = (uint32_t)(off / SHARE_UNIT);
    s->end[cls] = s->next[cls] + (uint32_t)(CHUNK / class_size[cls] * class_size[cls] / SHARE_UNIT);
    return true;
}

static struct inode *take_entry(struct share *s, size_t path_len)
{
    unsigned cls = 0;
    while (cls < N_CLASSES && class_size[cls] < sizeof(struct inode) + path_len) cls++;
    if (cls == N_CLASSES) return NULL;
    if (s->free[cls]) {
        struct inode *n = entry(s, s->free[cls]);
        s->free[cls] = n->hash;
        return n;
    }
    if (s->next[cls] == s->end[cls] && !new_chunk(s, cls)) return NULL;
    struct inode *n = entry(s, s->next[cls]);
    s->next[cls] += class_size[cls] / SHARE_UNIT;
    return n;
}

static unsigned class_of(const struct share *s, const struct inode *n)
{
    size_t off = (size_t)((const char *)n - s->base);
    return atomic_load(&s->head->chunk_class[(off - CHUNKS_OFF) / CHUNK]) % N_CLASSES;
}

static void free_entry(struct share *s, struct inode *n)
{
    unsigned cls = class_of(s, n);
    if (s->freed) s->freed(s->freed_ctx, n);
    index_remove(s, n);
    atomic_store(&n->kind, INODE_FREE); /* I1: first */
    n->hash = s->free[cls];
    s->free[cls] = (uint32_t)inode_number(s, n);
}

struct inode *inode_find(struct share *s, const struct inode_id *id)
{
    uint32_t hash = hash_of(id);
    pthread_mutex_lock(&s->lock);
    struct inode *n = find_locked(s, id, hash);
    if (n) atomic_fetch_add(&n->n_lookup, 1);
    pthread_mutex_unlock(&s->lock);
    return n;
}

static struct inode *make_locked(struct share *s, const struct inode_id *id, uint32_t hash,
                                 const struct inode_fill *fill)
{
    /* A directory under head may get any other path, and the kernel goes on using its number (inode_rename). */
    bool movable = id->kind == INODE_DIR && id->scope == SCOPE_HEAD && id->path_len;
    struct inode *n = index_grow(s) ? take_entry(s, movable ? PATH_ROOM : id->path_len) : NULL;
    if (!n) return NULL;
    n->hash = hash;
    n->generation++;
    n->path_len = (uint16_t)id->path_len;
    n->object_kind = fill->object_kind;
    n->flags = fill->flags;
    n->scope = id->scope;
    n->a = id->a;
    n->b = id->b;
    n->c = id->c;
    atomic_store(&n->n_lookup, 1);
    atomic_store(&n->seen, fill->seen);
    atomic_store(&n->size, fill->size);
    atomic_store(&n->mtime_ns, fill->mtime_ns);
    atomic_store(&n->gen, 0);
    atomic_store(&n->asked_ns, 0);
    atomic_store(&n->mode, fill->mode);
    atomic_store(&n->open, 0);
    memcpy(n->path, id->path, id->path_len);
    atomic_store(&n->kind, (uint32_t)id->kind); /* I1: last */
    index_put(s, (uint32_t)inode_number(s, n));
    s->n_used++;
    return n;
}

struct inode *inode_make(struct share *s, const struct inode_id *id, const struct inode_fill *fill)
{
    uint32_t hash = hash_of(id);
    pthread_mutex_lock(&s->lock);
    struct inode *n = find_locked(s, id, hash);
    if (n)
        atomic_fetch_add(&n->n_lookup, 1);
    else
        n = make_locked(s, id, hash, fill);
    pthread_mutex_unlock(&s->lock);
    return n;
}

void inode_forget(struct share *s, uint64_t ino, uint64_t count)
{
    pthread_mutex_lock(&s->lock);
    struct inode *n = inode_at(s, ino);
    if (n) {
        uint64_t had = atomic_load(&n->n_lookup);
        atomic_store(&n->n_lookup, had > count ? had - count : 0);
        if (had <= count) free_entry(s, n);
    }
    pthread_mutex_unlock(&s->lock);
}

bool inode_rename(struct share *s, struct inode *n, const char *path, size_t path_len)
{
    if (sizeof(struct inode) + path_len > class_size[class_of(s, n)]) return false;
    pthread_mutex_lock(&s->lock);
    index_remove(s, n);
    memcpy(n->path, path, path_len);
    n->path_len = (uint16_t)path_len;
    struct inode_id id = {(enum inode_kind)atomic_load(&n->kind), n->scope, n->a, n->b, n->c, n->path, path_len};
    n->hash = hash_of(&id);
    index_put(s, (uint32_t)inode_number(s, n));
    s->n_used++;
    pthread_mutex_unlock(&s->lock);
    return true;
}

/* Under the lock: every slot of every chunk, free ones, too. */
static void each_slot(struct share *s, void (*fn)(struct share *s, struct inode *n, void *ctx), void *ctx)
{
    uint32_t n_chunks = atomic_load(&s->head->n_chunks);
    for (uint32_t c = 0; c < n_chunks; c++) {
        char *chunk = s->base + CHUNKS_OFF + (size_t)c * CHUNK;
        size_t size = class_size[atomic_load(&s->head->chunk_class[c]) % N_CLASSES];
        for (size_t off = 0; off + size <= CHUNK; off += size) fn(s, (struct inode *)(chunk + off), ctx);
    }
}

struct each {
    enum inode_kind kind;
    void (*fn)(void *ctx, struct inode *n);
    void *ctx;
};

static void call_each(struct share *s, struct inode *n, void *ctx)
{
    struct each *e = ctx;
    uint32_t number = (uint32_t)inode_number(s, n);
    for (unsigned cls = 0; cls < N_CLASSES; cls++)
        if (number >= s->next[cls] && number < s->end[cls]) return; /* never used: not even looked at */
    if (atomic_load(&n->kind) == (uint32_t)e->kind) e->fn(e->ctx, n);
}

void inode_each(struct share *s, enum inode_kind kind, void (*fn)(void *ctx, struct inode *n), void *ctx)
{
    struct each e = {kind, fn, ctx};
    pthread_mutex_lock(&s->lock);
    each_slot(s, call_each, &e);
    pthread_mutex_unlock(&s->lock);
}

/* --- a new worker ------------------------------------------------------------------------------------------------------------- */

static void adopt(struct share *s, struct inode *n, void *ctx)
{
    bool *ok = ctx;
    unsigned cls = class_of(s, n);
    size_t room = class_size[cls] - sizeof(struct inode);
    uint32_t kind = atomic_load(&n->kind);
    if (kind == INODE_FREE || kind > INODE_STAGE || n->path_len > room) {
        atomic_store(&n->kind, INODE_FREE);
        n->hash = s->free[cls];
        s->free[cls] = (uint32_t)inode_number(s, n);
        return;
    }
    struct inode_id id = {(enum inode_kind)kind, n->scope, n->a, n->b, n->c, n->path, n->path_len};
    n->hash = hash_of(&id); /* a rename may have been cut off between path and hash */
    if (!index_grow(s)) {
        *ok = false;
        return;
    }
    index_put(s, (uint32_t)inode_number(s, n));
    s->n_used++;
}

int share_open(struct share *s, void *base, size_t len)
{
    *s = (struct share){.base = base, .len = len, .head = base, .dirs = (void *)((char *)base + DIRS_OFF)};
    if (len < CHUNKS_OFF + CHUNK) return -EINVAL;
    if (s->len > (size_t)UINT32_MAX * SHARE_UNIT) s->len = (size_t)UINT32_MAX * SHARE_UNIT;
    if (s->len > CHUNKS_OFF + 16384 * CHUNK) s->len = CHUNKS_OFF + 16384 * CHUNK;
    pthread_mutex_init(&s->lock, NULL);
    bool ok = true;
    if (s->head->magic == MAGIC)
        each_slot(s, adopt, &ok);
    else
        s->head->magic = MAGIC;
    return ok ? 0 : -ENOMEM;
}

void share_close(struct share *s)
{
    free(s->index);
    s->index = NULL;
    pthread_mutex_destroy(&s->lock);
}

/* --- directory handles ----------------------------------------------------------------------------------------------------------- */

uint32_t share_dir_open(struct share *s, uint64_t ino, uint64_t gen)
{
    uint32_t found = UINT32_MAX;
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < SHARE_DIRS && found == UINT32_MAX; i++) {
        uint32_t at = (s->dir_hint + i) % SHARE_DIRS;
        if (atomic_load(&s->dirs[at].ino) != 0) continue;
        atomic_store(&s->dirs[at].gen, gen);
        atomic_store(&s->dirs[at].ino, ino);
        if (at >= atomic_load(&s->head->dirs_high)) atomic_store(&s->head->dirs_high, at + 1);
        s->dir_hint = at; /* the lowest ones are used again and again, and their pages stay few */
        found = at;
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

void share_dir_close(struct share *s, uint32_t index)
{
    if (index >= SHARE_DIRS) return;
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->dirs[index].ino, 0);
    if (index < s->dir_hint) s->dir_hint = index;
    pthread_mutex_unlock(&s->lock);
}
