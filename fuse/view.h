/* Pagestone | fuse/view — a store as a file system: what its parts share.
 * SPDX-License-Identifier: Apache-2.0
 *
 * docs/design/view.md is the design. Parts, from below:
 *
 *     share.c    inodes and directory handles, in memory that outlives a worker
 *     attr.c     attribute records: mode, times, header bytes, symlink targets
 *     scope.c    "head", "@41", "@-1", "@tag", "@2026-11-20T10:00" → snapshots; versions → times
 *     inode.c    names in a snapshot → inodes, and inodes → struct stat
 *     read.c     open files: content as pieces of memory, READ
 *     dir.c      listings;  xattr.c  info.c (.pagestone);  view.c the requests
 *     stage.c … the writing side, reached only through `writer`
 *
 *   V1  No request is answered from anything but an immutable inode, a staging file, or a snapshot taken for that request.
 *   V2  The worker never calls into its own mount, and never notifies from a thread that answers requests.
 *   V3  No lock is held over a call that may wait for another process; leases, which may, are the keeper thread's.
 *
 * Errors inside are 0 or -errno; view_errno() makes one of the library's.
 */
#ifndef PAGESTONE_FUSE_VIEW_H
#define PAGESTONE_FUSE_VIEW_H

#include <sys/stat.h>
#include <sys/uio.h>

#include "fuse/server.h"
#include "fuse/share.h"
#include "libshm/include/pagestone.h"

/* A directory's inode stands for its path, so that nothing below it is stale when its name or attributes are; without this each stat(2) would ask for every directory on the way. */
#define DIR_SECONDS 1.0
/* Names under head that a listing gives along with their inodes: ls -l asks for each right away. open(2) never believes them (asked_ns). */
#define LISTED_SECONDS 0.1
#define FOREVER 1e9                       /* seconds */
#define VIEW_PATH_MAX (PGS_MAX_KEY + 4)   /* with ".npy" */
#define RECORD_PATH_MAX (PGS_MAX_KEY - 2) /* longer ones have no attribute record */

struct view_writer;
struct file;
struct view {
    struct server *server;
    pgs_store *store;
    struct share share;
    const struct view_writer *writer; /* NULL: reading only */
    void *writing;                    /* the writing side's own */
    char *path;                       /* of the store */
    bool read_only;
    uid_t uid; /* whom the store belongs to */
    gid_t gid;
    mode_t dir_mode;   /* of the store's directory: who may read the store may read the view */
    int64_t born_ns;   /* of the store: time of versions that the log has forgotten */
    uint64_t open_gen; /* generation when the worker started: nothing older has a lease of ours */

    pthread_mutex_t times_lock;
    struct version_time {
        uint64_t version, time_ns;
    } * times; /* sorted by version */
    size_t n_times, cap_times;

    pthread_mutex_t files_lock; /* the table of open files: read.c */
    struct file **files;
    size_t n_files;

    pthread_mutex_t dirs_lock;
    struct listing *listings[SHARE_DIRS]; /* by handle, of this worker: dir.c */

    pthread_mutex_t keeper_lock;
    pthread_cond_t keeper_cond;
    pthread_t keeper;
    bool keeper_on, stopping, lease_now;
};

int view_errno(
    int rc); /* of -PGS_E…: -errno. EFULL ENOSPC, ECONFLICT EBUSY, EREADONLY EROFS, ECORRUPT EIO, ELOCKED EAGAIN, EEXPIRED ESTALE, … */

/* --- scope.c --------------------------------------------------------------------------------------------------------------- */
/* A snapshot of a scope as it is now. */
int scope_open(struct view *v, uint64_t scope, pgs_snapshot **out);
/* "@…" without the @: the version that it names now. -ENOENT. */
int scope_parse(struct view *v, const char *name, size_t len, uint64_t *version);
/* "2026-11-20T10:00[:30[.5]][Z|+01:00]", "2026-11-20"; without a zone: local time. False: malformed. */
bool scope_time(const char *p, size_t len, uint64_t *time_ns);
/* When a version was committed. */
int64_t version_time(struct view *v, uint64_t version);

/* --- attr.c ------------------------------------------------------------------------------------------------------------------ */
/* The value of the hidden key NUL 'f' path (path in the view): little-endian
 *     0 u32 magic "PSa1"   4 u32 flags   8 u64 object id (0: none)   16 u64 version   24 i64 mtime_ns   32 u32 mode   36 u32 len   40 header or link target
 * It counts only while the path's object has that id; mtime and header only while it has that version, too. Directories and symlinks have no object. */
struct record {
    uint64_t id; /* of the record itself: another one with each change; 0: there is none */
    uint32_t flags;
    uint64_t object, version;
    int64_t mtime_ns;
    uint32_t mode; /* permission bits */
    const char *tail;
    uint32_t tail_len;
    pgs_view *view; /* what tail is in, if not in the snapshot */
};
enum { REC_MODE = 1, REC_MTIME = 2, REC_HEADER = 4, REC_LINK = 8, REC_DIR = 16, REC_NEXT = 32 };
/* REC_NEXT: the object is the one that was made in the record's own commit, whose number nobody knew yet. Numbers are given in the order of keys, and NUL comes first: so it
 * is the record's plus one, and the version is the record's. record_decode resolves that: object, version and flags are as if they had been written. */
/* *out has id 0 when there is none. 0 or -errno. The tail is valid until record_release and while the snapshot is. */
int record_get(pgs_snapshot *sn, const char *path, size_t len, struct record *out);
int record_decode(pgs_snapshot *sn, const struct pgs_object *obj, struct record *out);
void record_release(struct record *r);
#define RECORD_HEAD 40u
void record_encode(const struct record *r, unsigned char head[RECORD_HEAD]); /* the tail follows it */
/* The key of a path's record; 0: the path is too long for one. */
size_t record_key(const char *path, size_t len, char key[PGS_MAX_KEY]);

/* --- inode.c ------------------------------------------------------------------------------------------------------------------ */
/* A name in a snapshot. */
struct found {
    enum inode_kind kind;  /* INODE_FREE: there is none */
    struct pgs_object obj; /* FILE */
    struct record rec;     /* FILE, LINK, DIR: id 0 if it does not count */
};
/* What `path` (in the view) is in a snapshot. 0 or -errno; no such name is no error. found_release() when done. */
int find_path(pgs_snapshot *sn, const char *path, size_t len, struct found *out);
void found_release(struct found *f);
/* The key of an object whose file has this path, into key[PGS_MAX_KEY]: its length, or 0. */
size_t key_of(enum pgs_kind kind, const char *path, size_t len, char *key);
const char *suffix_of(enum pgs_kind kind); /* ".npy", ".pkl" or "" */
/* The inode of what was found, with one lookup more; NULL: no memory. `size` of a FILE is computed if it is new. */
struct inode *inode_of(struct view *v, pgs_snapshot *sn, uint64_t scope, const char *path, size_t len,
                       const struct found *f);
/* A directory's inode. */
struct inode *inode_of_dir(struct view *v, uint64_t scope, const char *path, size_t len);
void inode_stat(struct view *v, const struct inode *n, struct stat *st); /* all but directories' times */
void root_stat(struct view *v, struct stat *st);
int dir_stat(struct view *v, const struct inode *n, struct stat *st);
/* For a reply to LOOKUP, CREATE, READDIRPLUS, …: the timeouts that its kind has. */
void inode_entry(struct view *v, const struct inode *n, struct fuse_entry_param *e);
double attr_timeout(const struct inode *n);
/* parent's path + "/" + name; -ENAMETOOLONG, or -ENOENT for what can be no key. */
int path_join(const struct inode *dir, const char *name, char path[VIEW_PATH_MAX], size_t *len);

/* --- read.c --------------------------------------------------------------------------------------------------------------------- */
/* The content of a file in a snapshot, as pieces of memory. */
struct content;
int content_open(pgs_snapshot *sn, const struct found *f, struct content **out);
uint64_t content_bytes(const struct content *c);
/* At most n_iov pieces, len bytes; how many bytes they have. Memory that lives as long as the content. */
size_t content_pieces(const struct content *c, uint64_t off, size_t len, struct iovec *iov, int n_iov, int *n_used);
void content_close(struct content *c);
/* Size of a file without reading it. -EIO: the object is damaged. */
int content_size(pgs_snapshot *sn, const struct pgs_object *obj, const struct record *rec, uint64_t *size);
/* The revision that an inode stands for: a snapshot that has it. -ESTALE: none has. found_release and unref. */
int inode_snapshot(struct view *v, struct inode *n, pgs_snapshot **sn, struct found *f);
void read_open(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
void read_read(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off);
void read_release(struct view *v, struct inode *n);
void read_forgotten(struct view *v, struct inode *n); /* the kernel has it no more */
uint64_t now_monotonic_ns(void);
int keeper_start(struct view *v); /* leases, every 30 s and at once for what was opened */
void keeper_stop(struct view *v);
void keeper_wake(struct view *v); /* something was opened */
void files_close(struct view *v);

/* --- dir.c, xattr.c, info.c: one function for a request ---------------------------------------------------------------------- */
void dir_open(struct view *v, fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dir_read(struct view *v, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi,
              bool plus);
void dir_release(struct view *v, fuse_req_t req, struct fuse_file_info *fi);
/* Anything below this directory in a snapshot (a marker of its own does not count)? 1, 0 or -errno. */
int dir_has_entries(pgs_snapshot *sn, const char *path, size_t len);
void xattr_get(struct view *v, fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void xattr_list(struct view *v, fuse_req_t req, fuse_ino_t ino, size_t size);
struct inode *info_lookup(struct view *v, const char *name); /* NULL: none of these */
int info_name(unsigned i, const char **name);                /* i from 0; -ENOENT behind the last */
void info_open(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
void info_read(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off, struct fuse_file_info *fi);
void info_release(struct fuse_file_info *fi);
void info_statfs(struct view *v, fuse_req_t req);

/* --- the writing side ----------------------------------------------------------------------------------------------------------- */
/* Names under head that the store does not have yet, or no longer: asked before the store is. Requests on INODE_STAGE inodes go to it; the operations that only
 * it has (create, write, rename, …) are in `ops` and are put into the program's table at the start. */
struct view_writer {
    int (*start)(struct view *v, char *why, size_t why_len); /* before the first request; sets v->writing */
    void (*stop)(struct view *v);
    /* The staging inode that a path under head shows, one lookup counted: 1. 0: ask the store. -ENOENT: hidden. */
    int (*lookup)(struct view *v, const char *path, size_t len, struct inode **out);
    /* Is this path hidden from listings, because a staging file takes its place? */
    bool (*hides)(struct view *v, const char *path, size_t len);
    /* Staging files that a directory shows, from number *i on: 1 (name, *i moved on, one lookup counted) or 0. */
    int (*list)(struct view *v, const char *dir, size_t len, uint64_t *i, char name[256], struct inode **out);
    /* A committed file is opened for writing: replies (ESTALE, or an error). */
    void (*open)(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
    void (*stage_stat)(struct view *v, const struct inode *n, struct stat *st);
    void (*stage_open)(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
    void (*stage_read)(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off,
                       struct fuse_file_info *fi);
    void (*stage_release)(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi);
    /* A staging inode's last lookup is gone and its entry will be free; under the table's lock. While the writing side needs the entry it holds a lookup of its own. */
    void (*forgotten)(struct view *v, struct inode *n);
};
extern const struct view_writer *const view_writer_part __attribute__((weak)); /* absent: reading only */
/* The requests that only the writing side has, for view_program.ops (write.c, names.c); absent: ENOSYS. setattr, fsync and flush are for every inode. */
#define WRITE_OP __attribute__((weak))
WRITE_OP void write_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
WRITE_OP void write_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
WRITE_OP void write_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
WRITE_OP void write_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
WRITE_OP void write_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
WRITE_OP void write_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                           const char *newname, unsigned flags);
WRITE_OP void write_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
WRITE_OP void write_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
WRITE_OP void write_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi);
WRITE_OP void write_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *bufv, off_t off,
                              struct fuse_file_info *fi);
WRITE_OP void write_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
WRITE_OP void write_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
WRITE_OP void write_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
WRITE_OP void write_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                              struct fuse_file_info *fi);

#endif
