/* Pagestone | fuse/stage — files under head that are being written.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A staging file is an unlinked file (O_TMPFILE in the store's directory, else a memfd) with a slot in the shared table. The supervisor keeps its descriptor under the slot's number, so
 * both outlive a worker. Its inode (kind STAGE, a = slot, b = serial) has no path: the slot has it.
 *
 *     event                     slot                                              name shows
 *     CREATE                    CREATED                                           it
 *     OPEN of committed bytes   PENDING until it is opened; base = their version  it
 *     OPEN with O_TRUNC         CREATED, no base                                  it
 *     WRITE, truncate           DATA                                              it
 *     FSYNC, published          base = the new version                            it, while the store still has that and a writer has it open
 *     FLUSH, published          the same, and CLOSING if there is one writer      the committed inode
 *     last close, header only   PENDING for a minute                              it
 *     last writer's RELEASE     published if there is something to publish        the committed inode
 *     UNLINK, renamed over      no path: publishes nothing                        –
 *     last RELEASE              free
 *
 *   S1  `state` is stored last when a slot is taken and first when it is given back: a death leaves a whole slot or a free one.
 *   S2  A slot in use holds one look-up count of its inode, so that the number stays what it is.
 *   S3  `lock` (of the worker, per slot): shared by writes, exclusive for truncation, publishing and changes of the path. Who needs several takes them by number.
 *       `table` is over which slots there are, their paths and users; it is taken inside `lock`, and nothing that waits is done under it.
 *   S4  What a dead worker had counted before it answered is not counted again when the request is resent: `opening` and `releasing`.
 */
#ifndef PAGESTONE_FUSE_STAGE_H
#define PAGESTONE_FUSE_STAGE_H

#include "fuse/view.h"

#define STAGES KEEP_MAX
#define STAGE_SOON_NS INT64_C(2000000000) /* a client that was told to look again does that within this time */
#define STAGE_HALF_NS INT64_C(60000000000)
#define STAGE_RANGES 32u

enum {                    /* stage.flags */
       STAGE_CREATED = 1, /* made or emptied, and to be published even if nothing is written */
       STAGE_DATA = 2,    /* bytes were changed since it was published */
       STAGE_ATTR = 4,    /* mode or times were */
       STAGE_PENDING = 8, /* nobody has opened it yet: the kernel was told to look again */
       STAGE_CLOSING = 16 /* published at what seems to be the last close */
};
#define STAGE_CHANGED (STAGE_CREATED | STAGE_DATA | STAGE_ATTR)

struct stage_range {
    uint64_t lo, hi;
};
struct stage {              /* in SHARE_STAGE */
    _Atomic uint32_t state; /* 0 free, 1 in use: S1 */
    uint32_t ino;
    uint64_t serial;
    _Atomic uint32_t flags;
    _Atomic uint64_t counts;                       /* 16 bits each, so that two change at once: see below */
    _Atomic uint32_t opening_left, releasing_left; /* as many resent requests were counted by the worker that died */
    uint32_t mode;
    _Atomic int64_t mtime_ns, pending_until_ns, shown_ns; /* the last: when a look-up found it */
    uint64_t base_id, base_version;   /* of the committed bytes it goes on from; version 0: of none. id 0: not known */
    uint64_t changes, failed;         /* counts changes; the count at the last failure to publish */
    uint64_t commit_pid, commit_from; /* a commit is under way, by this process, from this version on; pid 0: none is */
    uint32_t n_ranges;
    uint32_t path_len;                      /* 0: it has no name */
    struct stage_range range[STAGE_RANGES]; /* what was written, sorted, apart from each other; may say less */
    char path[VIEW_PATH_MAX];
};
_Static_assert(sizeof(struct stage) * STAGES <= SHARE_STAGE_BYTES, "all slots fit");

struct stage_local { /* a worker's own part of a slot */
    pthread_rwlock_t lock;
    pthread_mutex_t ranges;
    int fd;
    uint32_t users; /* requests that look at it: under `table` */
};
struct writing {
    struct view *v;
    struct stage *slot; /* STAGES of them, in shared memory */
    pthread_mutex_t table;
    _Atomic uint32_t n_used; /* no slot from here on is in use */
    struct stage_local local[STAGES];
};

static inline struct writing *writing_of(struct view *v)
{
    return v->writing;
}
static inline uint32_t stage_index(struct writing *w, const struct stage *g)
{
    return (uint32_t)(g - w->slot);
}
static inline struct stage_local *stage_local(struct writing *w, const struct stage *g)
{
    return &w->local[g - w->slot];
}

/* In `counts`: open files, and of this worker what was counted but not answered yet (S4). */
enum { COUNT_READERS = 0, COUNT_WRITERS = 16, COUNT_OPENING = 32, COUNT_RELEASING = 48, COUNT_NONE = 64 };
static inline uint32_t stage_count(const struct stage *g, unsigned of)
{
    return (uint32_t)(atomic_load(&g->counts) >> of) & 0xffff;
}
static inline uint32_t stage_writers(const struct stage *g)
{
    return stage_count(g, COUNT_WRITERS);
}
void stage_recount(struct stage *g, unsigned less, unsigned more); /* one less of this, one more of that */

int stage_start(struct view *v, char *why, size_t why_len);
void stage_stop(struct view *v);

/* A new one with this name, in use by the caller. 0 or -errno. */
int stage_make(struct writing *w, const char *path, size_t len, uint32_t mode, uint32_t flags, struct stage **out);
/* What is behind an inode; NULL: it is gone. stage_put() when done with it. */
struct stage *stage_get(struct writing *w, const struct inode *n);
/* What has this name, whether or not the name shows it. NULL: nothing has. stage_put(). */
struct stage *stage_find(struct writing *w, const char *path, size_t len);
void stage_put(struct writing *w, struct stage *g); /* gives the slot back if nobody has a use for it any more */
struct inode *stage_inode(struct writing *w, const struct stage *g);
/* Does its name show it now? (Not the committed object.) */
bool stage_shows(struct writing *w, const struct stage *g);
bool stage_agrees(struct writing *w, const struct stage *g); /* does the store still have what it goes on from? */
void stage_wait_for_open(struct stage *g, int64_t ns);       /* make it PENDING */
/* Where has what was under this path been moved a moment ago? false: nowhere. rename.c */
bool rename_target(const char *path, size_t len, char to[VIEW_PATH_MAX], size_t *to_len);
bool stage_hold(struct writing *w, struct stage *g, const char *path,
                size_t len); /* the same for a moment, if it has this name */
void stage_let_go(
    struct writing *w,
    struct stage *g); /* one writer less: the name goes with the last, unless somebody was just shown it */
int stage_lookup(struct view *v, const char *path, size_t len, struct inode **out);
bool stage_hides(struct view *v, const char *path, size_t len);
int stage_list(struct view *v, const char *dir, size_t len, uint64_t *i, char name[256], struct inode **out);
/* Slots whose name begins with dir + "/", in use by the caller: how many, at most max. */
uint32_t stage_below(struct writing *w, const char *dir, size_t len, struct stage **out, uint32_t max);

void stage_lock(struct writing *w, struct stage *g); /* exclusive */
void stage_unlock(struct writing *w, struct stage *g);
void stage_set_path(struct writing *w, struct stage *g, const char *path, size_t len); /* len 0: it loses its name */
uint64_t stage_size(struct writing *w, const struct stage *g);
void stage_stat(struct view *v, const struct inode *n, struct stat *st);
void stage_entry(struct writing *w, struct stage *g, struct fuse_entry_param *e); /* counts one look-up */

/* Under the lock, shared or exclusive: bytes were written. */
void stage_wrote(struct writing *w, struct stage *g, uint64_t lo, uint64_t hi);
bool stage_covered(struct writing *w, const struct stage *g);
int stage_truncate(struct writing *w, struct stage *g, uint64_t size); /* exclusive */
/* Fill with what `f` of a snapshot is, at most `limit` bytes. 0 or -errno. */
int stage_fill(struct writing *w, struct stage *g, pgs_snapshot *sn, const struct found *f, uint64_t limit);

/* Count an open file of `g`; S4. */
void stage_opened(struct writing *w, struct stage *g, bool writer);
void stage_open_answered(struct stage *g);
bool stage_released_before(struct stage *g);
void stage_release_answered(struct stage *g);

/* --- publish.c ---------------------------------------------------------------------------------------------------------------- */
/* Is it the header of an array and nothing behind it? open_memmap writes that, closes the file and opens it again. */
bool publish_is_half(struct writing *w, struct stage *g);
/* One transaction that puts what the staging file has under its name. Under the exclusive lock. 0 (also when there is nothing to do) or -errno. */
int publish_stage(struct writing *w, struct stage *g);

/* What a name asks for. */
enum wish { WISH_BYTES, WISH_ARRAY, WISH_PICKLE };
enum wish wish_of(const char *path, size_t len);
/* The bytes of a file that is to be an object. */
struct source {
    int fd;                      /* or -1 */
    const struct content *bytes; /* else */
    uint64_t size;
};
/* In a transaction: put `src` under the path, in place of what `old` says is there (kind FREE: nothing), with the record's mode and times. 0 or -errno. */
int publish_put(struct view *v, pgs_txn *t, pgs_snapshot *base, const char *path, size_t len, const struct found *old,
                const struct source *src, struct record *rec);
/* Put, move or delete the record of a path. Nothing happens where it can have none. */
int record_put(pgs_txn *t, const char *path, size_t len, const struct record *r);
int record_delete(pgs_txn *t, const char *path, size_t len);
/* Remove what is at a path, its record too. */
int found_delete(pgs_txn *t, const struct found *f, const char *path, size_t len);
/* The kind and key that a file of this path gets beside what a transaction (NULL: its base) has: the key is the path's first bytes. 0, -EEXIST ("x" when there is x.npy), -EISDIR, … */
int publish_check(pgs_txn *t, pgs_snapshot *base, const char *path, size_t len, enum wish *wish, size_t *key_len);
/* Run `fn` in a transaction and commit; again, when others were first. 0 or -errno; what fn returns ends it. */
int publish_change(struct view *v, int (*fn)(struct view *v, pgs_txn *t, pgs_snapshot *base, void *ctx), void *ctx,
                   uint64_t *version);
int64_t now_real_ns(void);

/* --- write.c ------------------------------------------------------------------------------------------------------------------- */
void stage_open(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
void stage_read(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off, struct fuse_file_info *fi);
void stage_release(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
void stage_from_committed(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);

/* --- names.c ------------------------------------------------------------------------------------------------------------------- */
/* The path of a name in a directory of head that exists (in sn), where something may be made: 0, -EROFS, -ENOENT, -EINVAL, … */
int name_path(struct view *v, fuse_ino_t parent, const char *name, char path[VIEW_PATH_MAX], size_t *len);
bool dir_exists(pgs_snapshot *sn, const char *path, size_t len);
size_t parent_len(const char *path, size_t len); /* length of the directory's path */
struct name {
    const char *path;
    size_t len;
};
/* In a transaction that removed something: its directory stays, with a marker if need be. */
int keep_parent(pgs_txn *t, const char *path, size_t len);
bool is_written_below(struct writing *w, const char *path, size_t len); /* is a staging file shown in this directory? */
/* Change mode and mtime of what is committed. */
int name_setattr(struct view *v, struct inode *n, const struct stat *attr, int to_set);

#endif
