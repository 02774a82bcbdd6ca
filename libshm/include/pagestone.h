/* Pagestone | pagestone.h — the public C API.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A store is a directory with one sparse file of 4 KiB pages (or anonymous memory); everything in it lives in copy-on-write trees, and a
 * version is a root pointer. Reading needs no lock; a commit writes new pages and switches the root.
 *
 * Conventions
 *   - Functions return 0 or -PGS_E…; outputs are untouched on failure. `err` may be NULL; it is filled where the error is born, with one
 *     line that names the cure.
 *   - Keys are UTF-8 bytes with a length, 1 to 1,024 of them. Sizes are in bytes unless the name says otherwise; ranges are half-open.
 *   - Handles are opaque. A pgs_store and a pgs_txn may be used by many threads at once; a txn only in the process that began it.
 *     A snapshot and a view may be used by many threads and in forked children.
 *   - Nothing here needs Python; everything may be called without the GIL. Blocking calls poll options.interrupted about every 50 ms.
 *   - Memory handed out (views, spans) is valid until the handle that it came from is released; closing the store does not end it.
 */
#ifndef PAGESTONE_H
#define PAGESTONE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PGS_PUBLIC __attribute__((visibility("default")))
#else
#define PGS_PUBLIC
#endif

/* --- errors (frozen: numbers never change) ------------------------------------------------------------------------- */
enum {
    PGS_OK = 0,
    PGS_ENOENT = 1,     /* no such key, tag or store */
    PGS_EEXIST = 2,     /* the key or store exists, or names collide */
    PGS_EINVAL = 3,     /* a wrong argument */
    PGS_ENOMEM = 4,     /* memory or mappings exhausted */
    PGS_EIO = 5,        /* a system call failed; os_errno says how */
    PGS_EFULL = 6,      /* disk, memory or quota full */
    PGS_ECORRUPT = 7,   /* damaged bytes; `object` names what */
    PGS_ECONFLICT = 8,  /* another transaction was first; pgs_txn_conflicts has the details */
    PGS_EEXPIRED = 9,   /* the version is gone */
    PGS_EREADONLY = 10, /* opened read only, a snapshot, or poisoned by a failed fsync */
    PGS_ELOCKED = 11,   /* a lock could not be had within the timeout; the text names the holder */
    PGS_ECLOSED = 12,   /* used after close, commit or abort */
    PGS_EINTR = 13,     /* options.interrupted said stop */
    PGS_EACCES = 14,    /* permission */
    PGS_ENOTSTORE = 15, /* the path holds no store */
    PGS_EFORMAT = 16,   /* a newer format, another endianness, page size or library build */
    PGS_ENOTSUP = 17,   /* not possible on this system (network file system, 64 KiB pages, …) */
    PGS_EFORKED = 18,   /* a transaction used in another process than the one that began it */
    PGS_E2BIG = 19,     /* a key, shape or object beyond the limits */
    PGS_ETYPE = 20,     /* the object's kind, dtype or shape does not fit the call */
    PGS_ESTALE = 21,    /* the store was replaced (mode "w") or deleted; open it again */
    PGS_ETIMEDOUT = 22, /* pgs_wait: nothing happened */
    PGS_ENAME = 23,     /* a malformed key */
    PGS_EWORKER = 24,   /* a worker of a shared transaction was lost (reserved) */
    PGS_EBUG = 25,      /* an internal inconsistency that was caught before it did harm */
};
struct pgs_error {
    int code;         /* positive PGS_E…; 0: empty */
    int os_errno;     /* or 0 */
    char text[480];   /* one line */
    char object[256]; /* PGS_ECORRUPT: which object; else "" */
};
PGS_PUBLIC const char *pgs_strerror(int code); /* accepts both signs; never NULL */
PGS_PUBLIC const char *pgs_version_string(void);

/* --- opening ------------------------------------------------------------------------------------------------------------ */
typedef struct pgs_store pgs_store;
typedef struct pgs_snapshot pgs_snapshot;
typedef struct pgs_txn pgs_txn;
typedef struct pgs_view pgs_view;
typedef struct pgs_iter pgs_iter;

enum pgs_mode { PGS_MODE_R = 1, PGS_MODE_RPLUS, PGS_MODE_A, PGS_MODE_W, PGS_MODE_X };
enum pgs_durability { PGS_DUR_KEEP = 0, PGS_DUR_NONE = 1, PGS_DUR_ORDERED = 2, PGS_DUR_FULL = 3 };
enum pgs_history_kind {
    PGS_HIST_KEEP = 0,
    PGS_HIST_DEFAULT = 1,
    PGS_HIST_COUNT = 2,
    PGS_HIST_BYTES = 3,
    PGS_HIST_AGE_NS = 4,
    PGS_HIST_ALL = 5
};
struct pgs_options {
    enum pgs_mode mode; /* 0: PGS_MODE_A */
    uint64_t size;      /* quota in bytes, 128 KiB or more; 0: keep (new stores: none); UINT64_MAX: remove it */
    enum pgs_durability durability; /* KEEP: as stored; new stores: none on tmpfs and memfd, full on disk */
    enum pgs_history_kind history;
    uint64_t history_value; /* versions, bytes or ns */
    int64_t timeout_ns;     /* longest wait for another's lock; < 0: for ever; 0: 30 s */
    int checksums;          /* of array data: 0 keep (new stores: on, but off on tmpfs and memfd), 1 on, -1 off */
    uint64_t
        freeze_ns; /* compress what did not change for so long; 0: keep (new stores: nothing); UINT64_MAX: nothing */
    int (*interrupted)(void *ctx); /* polled while waiting; nonzero ends the call with PGS_EINTR. May be NULL */
    void *interrupted_ctx;
};
/* path NULL: an anonymous store in memory. */
PGS_PUBLIC int pgs_open(const char *path, const struct pgs_options *opt, pgs_store **out, struct pgs_error *err);
/* Open the anonymous store that `handle` (from pgs_store_handle) names. */
PGS_PUBLIC int pgs_open_handle(const void *handle, size_t len, const struct pgs_options *opt, pgs_store **out,
                               struct pgs_error *err);
/* Bytes that name this store for another process: the path, or the members of an anonymous store. Returns the length; writes at most cap bytes. */
PGS_PUBLIC size_t pgs_store_handle(pgs_store *s, void *buf, size_t cap);
/* Another Store over the same mappings: one reference more. */
PGS_PUBLIC pgs_store *pgs_store_ref(pgs_store *s);
/* Ends the store's use: later calls give PGS_ECLOSED; snapshots and views stay valid. Idempotent. With "ordered": a barrier. */
PGS_PUBLIC int pgs_close(pgs_store *s, struct pgs_error *err);
/* Drops the reference; closes first if need be. Accepts NULL. */
PGS_PUBLIC void pgs_store_unref(pgs_store *s);

struct pgs_info {     /* of an open store */
    const char *path; /* NULL: anonymous. Lives as long as the store */
    uint8_t uuid[16];
    enum pgs_mode mode;
    int read_only;
    int owner_private; /* directory and files belong to the calling user or uid 0, and nobody else can write them */
    uint64_t quota;    /* bytes; 0: none */
    enum pgs_durability durability;
    enum pgs_history_kind history;
    uint64_t history_value;
    int checksums;
    uint64_t freeze_ns; /* 0: nothing is compressed by itself */
    char fs[32];        /* "tmpfs", "memfd", "ext4", … */
};
PGS_PUBLIC int pgs_store_info(pgs_store *s, struct pgs_info *out, struct pgs_error *err);
PGS_PUBLIC uint64_t pgs_store_version(pgs_store *s); /* newest; no system call */

/* --- objects --------------------------------------------------------------------------------------------------------------- */
#define PGS_MAX_NDIM 64
#define PGS_MAX_KEY 1024
#define PGS_MAX_KEY_PART 250
/* PGS_KIND_PICKLE: the content begins with a little-endian u64, the length of the part (itself included) that is verified whenever the object is read; what is
 * behind it is verified like an array. A number that does not fit means all of it. */
enum pgs_kind {
    PGS_KIND_ARRAY = 1,
    PGS_KIND_BYTES = 2,
    PGS_KIND_PLAIN = 3,
    PGS_KIND_PICKLE = 4,
    PGS_KIND_DIR = 5 /* an empty group */
};

struct pgs_type {      /* of an array */
    const char *dtype; /* the binding's description, e.g. "<f8"; compared as bytes; up to 64 KiB */
    uint32_t dtype_len;
    uint32_t itemsize;
    uint32_t ndim;
    char order; /* 'C' or 'F' */
    int64_t shape[PGS_MAX_NDIM];
};
struct pgs_object {
    enum pgs_kind kind;
    uint64_t id;             /* of the object: a new one for each whole write */
    uint64_t version;        /* that last changed it */
    uint64_t n_bytes;        /* logical size */
    uint64_t n_stored;       /* bytes of pages that it occupies (holes excluded) */
    struct pgs_type type;    /* arrays; dtype points into the snapshot's memory */
    const void *inline_data; /* small objects: the bytes, readable while the snapshot or txn is; NULL: use pgs_view_… */
    const void *record;      /* the library's own: where pgs_view_open finds the content */
    size_t record_len;
};
/* Is this a well-formed key? 0 or -PGS_ENAME. A key with a leading NUL is hidden: C callers may use it, listings leave it out. */
PGS_PUBLIC int pgs_key_check(const void *key, size_t len, struct pgs_error *err);

/* --- snapshots ---------------------------------------------------------------------------------------------------------------- */
PGS_PUBLIC int pgs_snapshot_head(pgs_store *s, pgs_snapshot **out,
                                 struct pgs_error *err); /* no system call with write permission */
PGS_PUBLIC int pgs_snapshot_at(pgs_store *s, int64_t version, pgs_snapshot **out,
                               struct pgs_error *err); /* < 0: as in a list of kept ones */
PGS_PUBLIC int pgs_snapshot_at_time(pgs_store *s, uint64_t time_ns, pgs_snapshot **out,
                                    struct pgs_error *err); /* newest with time ≤ the end of that microsecond */
PGS_PUBLIC int pgs_snapshot_at_tag(pgs_store *s, const char *tag, size_t len, pgs_snapshot **out,
                                   struct pgs_error *err);
PGS_PUBLIC pgs_snapshot *pgs_snapshot_ref(pgs_snapshot *sn);
PGS_PUBLIC void pgs_snapshot_unref(pgs_snapshot *sn); /* accepts NULL; the pin goes with the last reference */
PGS_PUBLIC uint64_t pgs_snapshot_version(const pgs_snapshot *sn);
PGS_PUBLIC uint64_t pgs_snapshot_time_ns(const pgs_snapshot *sn);
PGS_PUBLIC uint64_t pgs_snapshot_gen(const pgs_snapshot *sn);
PGS_PUBLIC uint64_t pgs_snapshot_count(const pgs_snapshot *sn); /* objects */

PGS_PUBLIC int pgs_get(pgs_snapshot *sn, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err);
/* The object's bytes, read only. Owns a pin of its own; valid after the snapshot, the store and the key are gone, and in forked children. Pickled,
 * plain and bytes contents are verified here; arrays when `verify`. */
PGS_PUBLIC int pgs_view_open(pgs_snapshot *sn, const struct pgs_object *obj, int verify, pgs_view **out,
                             struct pgs_error *err);
/* A writable private copy-on-write view (s.private). */
PGS_PUBLIC int pgs_view_private(pgs_snapshot *sn, const struct pgs_object *obj, pgs_view **out, struct pgs_error *err);
PGS_PUBLIC void *pgs_view_data(const pgs_view *v); /* page-aligned or, for small objects, 64-byte aligned; never NULL */
PGS_PUBLIC uint64_t pgs_view_size(const pgs_view *v);
/* The generation that its pin keeps. The library moves it to newer ones in which the object is unchanged, so that a view keeps only its own pages; see pgs_view_lease. */
PGS_PUBLIC uint64_t pgs_view_gen(const pgs_view *v);
PGS_PUBLIC pgs_view *pgs_view_ref(pgs_view *v);
PGS_PUBLIC void pgs_view_unref(pgs_view *v); /* accepts NULL */

/* Ordered listing of keys that start with `prefix`, of one snapshot or one transaction. */
PGS_PUBLIC int pgs_iter_snapshot(pgs_snapshot *sn, const void *prefix, size_t len, pgs_iter **out,
                                 struct pgs_error *err);
PGS_PUBLIC int
pgs_iter_next(pgs_iter *it, const void **key, size_t *len, struct pgs_object *obj,
              struct pgs_error *err); /* obj may be NULL; -PGS_ENOENT: end. *key lives until the next call */
PGS_PUBLIC int pgs_iter_seek(pgs_iter *it, const void *key, size_t len,
                             struct pgs_error *err); /* the next entry is the first ≥ key */
PGS_PUBLIC void pgs_iter_free(pgs_iter *it);

/* --- handles: passing views between processes --------------------------------------------------------------------------- */
/* Keep this generation alive for ns from now on, whoever dies (ps.lease). */
PGS_PUBLIC int pgs_lease(pgs_store *s, uint64_t gen, uint64_t ns, struct pgs_error *err);
/* The same for a view's generation, which it names, with its version: for handles. From now on the view's pin stays there. -PGS_EREADONLY: without write permission
 * there is no lease; the generation is named all the same, and the view's own pin is what keeps it. */
PGS_PUBLIC int pgs_view_lease(pgs_view *v, uint64_t ns, uint64_t *gen, uint64_t *version, struct pgs_error *err);
/* Views of small objects are copies and need no pin. This gives such a view one, so that a handle can name its generation. sn: what it was opened from. */
PGS_PUBLIC int pgs_view_keep(pgs_view *v, pgs_snapshot *sn, struct pgs_error *err);
/* A snapshot of exactly this generation, kept, pinned or leased: -PGS_EEXPIRED when gone. */
PGS_PUBLIC int pgs_snapshot_gen_open(pgs_store *s, uint64_t gen, pgs_snapshot **out, struct pgs_error *err);
/* Find the key of object `id`, whose name begins with `prefix` (handles carry at most that much of a long key). buf: PGS_MAX_KEY bytes. */
PGS_PUBLIC int pgs_find_id(pgs_snapshot *sn, uint64_t id, const void *prefix, size_t len, void *buf, size_t *key_len,
                           struct pgs_error *err);

/* --- transactions ------------------------------------------------------------------------------------------------------------- */
enum pgs_isolation { PGS_ISO_SNAPSHOT = 0, PGS_ISO_SERIALIZABLE = 1, PGS_ISO_STRICT = 2 };
PGS_PUBLIC int pgs_begin(pgs_store *s, enum pgs_isolation iso, pgs_txn **out, struct pgs_error *err);
PGS_PUBLIC pgs_snapshot *
pgs_txn_base(pgs_txn *t);                  /* a reference of the caller's own; NULL once the transaction is over */
PGS_PUBLIC void pgs_txn_unref(pgs_txn *t); /* aborts if still open; accepts NULL */
PGS_PUBLIC int pgs_txn_abort(pgs_txn *t, struct pgs_error *err);
/* Commit. `message` may be NULL. *version: the new number, or the base's when nothing changed. Views handed out become private memory. After -PGS_ECONFLICT, -PGS_EFULL,
 * -PGS_ELOCKED or -PGS_EINTR: -PGS_ELOCKED and -PGS_EINTR leave the transaction open (try again); others abort it. */
PGS_PUBLIC int pgs_txn_commit(pgs_txn *t, const char *message, uint64_t *version, struct pgs_error *err);
struct pgs_conflict {
    const void *key;
    size_t key_len;
    uint64_t lo, hi; /* flat element range in memory order; lo == hi: the object as a whole */
};
/* After -PGS_ECONFLICT: what collided, and with which version. Memory of the transaction. */
PGS_PUBLIC int pgs_txn_conflicts(pgs_txn *t, const struct pgs_conflict **list, size_t *n, uint64_t *version);
/* After a commit with appends: where the rows of `key` landed. */
PGS_PUBLIC int pgs_txn_landed(pgs_txn *t, const void *key, size_t len, int64_t *first_row, struct pgs_error *err);

/* Reads see the transaction's own writes. In serializable isolation the key is recorded as read. */
PGS_PUBLIC int pgs_txn_get(pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err);
PGS_PUBLIC int pgs_txn_view(pgs_txn *t, const void *key, size_t len, pgs_view **out,
                            struct pgs_error *err); /* read only; pages written through pgs_txn_edit show for arrays */
/* What a key has without reading it: the kind and type, for calls that ask for nothing more (append). Never recorded as a read; no inline_data. */
PGS_PUBLIC int pgs_txn_peek(pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err);
/* pgs_txn_get and, of the same moment whatever other threads put, the bytes: pgs_txn_edit's view of an array, pgs_txn_view's of anything else;
 * *view is NULL where out->inline_data has them, of bytes and plain values. */
PGS_PUBLIC int pgs_txn_fetch(pgs_txn *t, const void *key, size_t len, struct pgs_object *out, pgs_view **view,
                             struct pgs_error *err);
/* A writable view of an array: copy-on-write, the same memory for every call in this transaction. In "serializable" also records the read. */
PGS_PUBLIC int pgs_txn_edit(pgs_txn *t, const void *key, size_t len, pgs_view **out, struct pgs_error *err);
PGS_PUBLIC int pgs_iter_txn(pgs_txn *t, const void *prefix, size_t len, pgs_iter **out, struct pgs_error *err);
/* Declare a read: elements [lo, hi) of an array in memory order; lo == hi == 0: all of it. */
PGS_PUBLIC int pgs_txn_depends(pgs_txn *t, const void *key, size_t len, uint64_t lo, uint64_t hi,
                               struct pgs_error *err);

struct pgs_part {  /* contents are the concatenation of parts */
    const void *p; /* NULL: zeros */
    size_t len;
};
/* Whole write: a new object. type: arrays only (dense in `order`). The parts are copied before the call returns. */
PGS_PUBLIC int pgs_txn_put(pgs_txn *t, const void *key, size_t len, enum pgs_kind kind, const struct pgs_type *type,
                           const struct pgs_part *parts, size_t n_parts, struct pgs_error *err);
/* A new array in the store's own memory, to be filled in place: committing copies nothing. Reserved at once (-PGS_EFULL here). Contents start as zeros. */
PGS_PUBLIC int pgs_txn_empty(pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, pgs_view **out,
                             struct pgs_error *err);
/* The same in place of whatever the key held, as pgs_txn_put; a failure leaves that as it was. */
PGS_PUBLIC int pgs_txn_replace(pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, pgs_view **out,
                               struct pgs_error *err);
/* A new, lazily allocated array of zeros. */
PGS_PUBLIC int pgs_txn_create(pgs_txn *t, const void *key, size_t len, const struct pgs_type *type,
                              struct pgs_error *err);
PGS_PUBLIC int pgs_txn_delete(pgs_txn *t, const void *key, size_t len, struct pgs_error *err);
PGS_PUBLIC int pgs_txn_clear(pgs_txn *t, const void *prefix, size_t len, struct pgs_error *err);
PGS_PUBLIC int pgs_txn_move(pgs_txn *t, const void *from, size_t from_len, const void *to, size_t to_len,
                            struct pgs_error *err);
/* `to` becomes a new object with the pages of `key` in `src` (a snapshot of the same store; NULL: this transaction): copy, revert, assigning an Array. No data is
 * copied; O(extents). type: another dense type of the same size over the same bytes, or NULL. */
PGS_PUBLIC int pgs_txn_copy(pgs_txn *t, pgs_snapshot *src, const void *key, size_t len, const void *to, size_t to_len,
                            const struct pgs_type *type, struct pgs_error *err);
/* Along axis 0. Views of the array keep their address while its reserved address space lasts. `values`: rows × row bytes, C order. */
PGS_PUBLIC int pgs_txn_append(pgs_txn *t, const void *key, size_t len, const void *values, uint64_t n_rows,
                              struct pgs_error *err);
PGS_PUBLIC int pgs_txn_resize(pgs_txn *t, const void *key, size_t len, const int64_t *shape, uint32_t ndim,
                              struct pgs_error *err);
PGS_PUBLIC int pgs_txn_savepoint(pgs_txn *t, uint64_t *id, struct pgs_error *err);
PGS_PUBLIC int pgs_txn_rollback(pgs_txn *t, uint64_t id,
                                struct pgs_error *err); /* later savepoints are gone, this one stays */

/* --- versions ------------------------------------------------------------------------------------------------------------------- */
/* Kept versions, oldest first: *list is malloc'ed, free with pgs_free. */
PGS_PUBLIC int pgs_versions(pgs_store *s, uint64_t **list, size_t *n, struct pgs_error *err);
PGS_PUBLIC int pgs_tag(pgs_store *s, const char *name, size_t len, int64_t version /* < 0: as in a list */,
                       struct pgs_error *err);
PGS_PUBLIC int pgs_untag(pgs_store *s, const char *name, size_t len, struct pgs_error *err);
struct pgs_tag_info {
    const char *name;
    size_t len;
    uint64_t version;
};
PGS_PUBLIC int pgs_tags(pgs_store *s, struct pgs_tag_info **list, size_t *n,
                        struct pgs_error *err); /* one block: pgs_free */
struct pgs_commit_info {
    uint64_t version, time_ns, pid, bytes_written;
    const char *command, *message; /* message NULL: none */
    const char *keys;              /* n_keys strings, each NUL-terminated, one after the other */
    uint64_t n_keys;
    int keys_truncated;
};
/* Newest first, below `before` (0: from the newest); fn's nonzero return ends the walk and is returned. */
PGS_PUBLIC int pgs_log(pgs_store *s, uint64_t before, int (*fn)(void *ctx, const struct pgs_commit_info *c), void *ctx,
                       struct pgs_error *err);
enum pgs_change { PGS_ADDED = 1, PGS_REMOVED = 2, PGS_CHANGED = 3 };
struct pgs_range {
    uint64_t lo, hi;
};
/* What differs between two snapshots, by key. ranges: n > 0 for arrays changed in place (elements, memory order); n == 0: the object as a whole. A new object over the pages of the
 * old one (revert, copy) does not differ; one with pages of its own does, whatever they hold. */
PGS_PUBLIC int pgs_diff(pgs_snapshot *a, pgs_snapshot *b,
                        int (*fn)(void *ctx, const void *key, size_t len, enum pgs_change what,
                                  const struct pgs_range *ranges, size_t n),
                        void *ctx, struct pgs_error *err);
/* Sleep until a version > `after` exists (and, with key, until that key's object differs from the one at `after`). *version: the newest. -PGS_ECLOSED within a second of a pgs_close by
 * another thread. */
PGS_PUBLIC int pgs_wait(pgs_store *s, uint64_t after, const void *key, size_t len, int64_t timeout_ns,
                        uint64_t *version, struct pgs_error *err);

/* --- upkeep ----------------------------------------------------------------------------------------------------------------------- */
struct pgs_stat {
    uint64_t live, history, pinned, free, resident, compressed, leaked; /* bytes */
    uint64_t objects, versions, bytes_copied, bytes_shared;             /* the last two: by this process since open */
    uint64_t quota, meta, file_size;
};
PGS_PUBLIC int pgs_stat(pgs_store *s, struct pgs_stat *out, struct pgs_error *err);
struct pgs_reader {
    uint64_t pid; /* 0: a reader without write permission */
    const char *command;
    uint64_t since_ns; /* real time */
    const uint64_t *versions;
    size_t n_versions;
    uint64_t bytes; /* kept alive only by it */
};
PGS_PUBLIC int pgs_readers(pgs_store *s, int (*fn)(void *ctx, const struct pgs_reader *r), void *ctx,
                           struct pgs_error *err);
PGS_PUBLIC int pgs_gc(pgs_store *s, struct pgs_error *err);
PGS_PUBLIC int pgs_compact(pgs_store *s, struct pgs_error *err);
struct pgs_check_report {
    uint64_t n_errors, n_objects, n_versions, n_pages, n_pages_unverified, n_leaked_pages;
};
/* Verify everything; problems go to fn (object may be ""). data: also the bytes of arrays. Returns 0 also when problems were found. */
PGS_PUBLIC int pgs_check(pgs_store *s, int data, int (*fn)(void *ctx, const char *object, const char *problem),
                         void *ctx, struct pgs_check_report *out, struct pgs_error *err);
PGS_PUBLIC void pgs_free(void *p);

/* --- cold data -------------------------------------------------------------------------------------------------------------------- */
/* Compress the newest content of `key` as far as that saves space, or make it raw again. Contents, ids and versions stay; nobody conflicts with it. *bytes (may be NULL): what was saved, or made raw. On a
 * store without room for all of it a part may be done: again later goes on. -PGS_EFULL: nothing could be. */
PGS_PUBLIC int pgs_freeze(pgs_store *s, const void *key, size_t len, uint64_t *bytes, struct pgs_error *err);
PGS_PUBLIC int pgs_thaw(pgs_store *s, const void *key, size_t len, uint64_t *bytes, struct pgs_error *err);
/* Bring what is cold of bytes [lo, hi) of an object and verify it: -PGS_ECORRUPT here instead of SIGBUS later. */
PGS_PUBLIC int pgs_prefetch(pgs_snapshot *sn, const struct pgs_object *obj, uint64_t lo, uint64_t hi,
                            struct pgs_error *err);
/* How much of an object is cold: bytes of it, and bytes that they occupy in the store. */
PGS_PUBLIC int pgs_cold_size(pgs_snapshot *sn, const struct pgs_object *obj, uint64_t *cold, uint64_t *compressed,
                             struct pgs_error *err);
/* For the pager: compressed block `slot`, decompressed and verified. buf: PGS_COLD_BLOCK bytes, of which *len are filled. -PGS_ENOENT: there is no such block, and never will be; -PGS_EINVAL: not yet. */
#define PGS_COLD_BLOCK 131072
PGS_PUBLIC int pgs_cold_read(pgs_store *s, uint64_t slot, void *buf, size_t *len, struct pgs_error *err);

/* Run-time capabilities, for doctor: i from 0 until NULL. */
PGS_PUBLIC const char *pgs_capability(int i, int *on, const char **reason);
/* What limits stores in memory that have no quota, for doctor. by: "memory cgroup", "machine", or NULL: nothing does, or capability "memory_limit" is off. left: bytes that may be
 * taken; kept: of the whole, so much stays free for programs. */
struct pgs_memory {
    const char *by;
    uint64_t left, kept, total;
};
PGS_PUBLIC void pgs_memory_limit(struct pgs_memory *out);

#ifdef __cplusplus
}
#endif
#endif
