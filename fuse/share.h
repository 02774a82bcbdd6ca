/* Pagestone | fuse/share — what every worker of one mount must know: the inodes that the kernel holds, and what it has open.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The memory is the supervisor's (server.h): all zeros at first, at one address in every worker, of which one lives at a time. Threads of a worker share it under `lock`.
 *
 *     0        struct share_head: magic, request counters, class of each chunk
 *     1 MiB    directory handles: 65,536 × {inode, generation}
 *     8 MiB    SHARE_STAGE_BYTES for the writing side (stage.c): what it must know again of its staging files
 *     32 MiB   chunks of 1 MiB; each holds entries of one size (128 to 1,216 bytes)
 *
 * An inode number is the entry's offset / 64: it is found without looking, and 28 bits hold it. Number 1 is the root's directory, which has no entry.
 *
 *   I1  An entry is in use if `kind` is not 0. `kind` is stored last when one is made and first when one is freed: whatever a death leaves is a whole entry or a free one.
 *   I2  n_lookup is raised before the reply that tells the kernel of the number, lowered after FORGET was read. A death between leaves it too high: an entry that is
 *       not freed before the unmount, never one that is freed too early.
 *   I3  Entries of immutable things (FILE, LINK, and DIR of a version) don't change but for n_lookup, seen, opens and gen.
 *   I4  The index (hash of identity and path) is a worker's own heap memory, made from the entries at its start.
 */
#ifndef PAGESTONE_FUSE_SHARE_H
#define PAGESTONE_FUSE_SHARE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHARE_UNIT 64u
#define SHARE_STAGE_OFF ((size_t)8 << 20)
#define SHARE_STAGE_BYTES ((size_t)24 << 20)
#define SHARE_DIRS 65536u
#define SCOPE_HEAD UINT64_MAX /* else a scope is a version's number */
#define SCOPE_NONE (UINT64_MAX - 1)
#define ROOT_INO 1u

enum inode_kind {
    INODE_FREE = 0,
    INODE_DIR = 1, /* (scope, path); path "" is head or @version itself */
    INODE_FILE =
        2, /* a = object id, b = version, c = record's id or 0; scope HEAD or NONE: head's files can be written, those of all versions are one */
    INODE_LINK = 3, /* a = 0, b = 0, c = record's id; scope as FILE */
    INODE_META = 4, /* the directory .pagestone (a = 0) and the files in it (a = 1 …): info.c */
    INODE_STAGE = 5 /* the writing side's: a, b, c as it likes, identity included */
};

/* What makes two things one inode. */
struct inode_id {
    enum inode_kind kind;
    uint64_t scope, a, b, c;
    const char *path; /* in the view, from head or @version on; no '/' at its ends */
    size_t path_len;
};

struct inode {             /* 104 bytes and the path */
    _Atomic uint32_t kind; /* enum inode_kind; see I1 */
    uint32_t hash;
    uint32_t generation; /* raised whenever the number gets another meaning */
    uint16_t path_len;
    uint8_t object_kind;         /* FILE: enum pgs_kind */
    uint8_t flags;               /* INODE_… below */
    _Atomic uint64_t n_lookup;   /* the kernel's references */
    uint64_t scope, a, b, c;     /* identity, with path */
    _Atomic uint64_t seen;       /* FILE: the newest version that it was found in */
    _Atomic uint64_t size;       /* of the file; immutable but for STAGE */
    _Atomic int64_t mtime_ns;    /* the same */
    _Atomic uint64_t gen;        /* FILE that is open: a generation that has it, leased */
    _Atomic uint64_t asked_ns;   /* FILE of head: when a LOOKUP last gave it; 0: since then a listing did */
    _Atomic uint32_t mode, open; /* permission bits; open files */
    char path[];
};
#define INODE_DAMAGED 1u /* its content could not be looked at: reads are EIO */
#define INODE_RENAMED 2u /* for the writing side */

enum share_request { /* counted, for .pagestone/stat.json and tests */
                     REQ_LOOKUP,
                     REQ_FORGET,
                     REQ_GETATTR,
                     REQ_SETATTR,
                     REQ_OPEN,
                     REQ_READ,
                     REQ_WRITE,
                     REQ_FLUSH,
                     REQ_RELEASE,
                     REQ_FSYNC,
                     REQ_OPENDIR,
                     REQ_READDIR,
                     REQ_RELEASEDIR,
                     REQ_READLINK,
                     REQ_STATFS,
                     REQ_XATTR,
                     REQ_NAME /* mkdir, unlink, rename, … */,
                     REQ_N
};
extern const char *const share_request_names[REQ_N];

struct share_head {
    uint64_t magic;
    _Atomic uint32_t n_chunks;
    _Atomic uint32_t dirs_high; /* no handle of a directory was ever this or more */
    _Atomic uint64_t requests[REQ_N];
    _Atomic uint64_t stage_next; /* the writing side's: next number of a staging file */
    _Atomic uint8_t chunk_class[];
};
struct share_dir {             /* an open directory; free: ino 0, which is stored last and cleared first */
    _Atomic uint64_t ino, gen; /* gen of head's directories; 0: a version's, or one without a snapshot */
};

struct share {
    char *base;
    size_t len;
    struct share_head *head;
    struct share_dir *dirs;
    pthread_mutex_t lock; /* over everything below, and over making, finding and freeing entries */
    uint32_t *index;      /* open addressing: numbers of entries, 0 free */
    uint64_t n_index, n_used;
    uint32_t free[8];         /* by class: a list through the entries' first word after kind; rebuilt by each worker */
    uint32_t next[8], end[8]; /* by class: never used entries of the newest chunk */
    uint32_t dir_hint;
    /* An entry is about to be freed; under the lock. */
    void (*freed)(void *ctx, struct inode *n);
    void *freed_ctx;
};

/* Take over the memory, empty or another worker's. 0 or -errno. */
int share_open(struct share *s, void *base, size_t len);
void share_close(struct share *s);
static inline void share_count(struct share *s, enum share_request what)
{
    atomic_fetch_add_explicit(&s->head->requests[what], 1, memory_order_relaxed); /* a statistic */
}

/* What is behind a number that the kernel sent; NULL: nothing (a number is believed only when it names an entry in use). Stays while the kernel
 * holds it, so during any request about it. */
struct inode *inode_at(struct share *s, uint64_t ino);
uint64_t inode_number(struct share *s, const struct inode *n);
/* Find, and count one lookup. NULL: there is none. */
struct inode *inode_find(struct share *s, const struct inode_id *id);
/* Find or make, and count one lookup. `fill` sets size, mtime_ns, mode, object_kind, flags of a new one before anybody sees it. NULL: memory is exhausted. */
struct inode_fill {
    uint64_t size, seen;
    int64_t mtime_ns;
    uint32_t mode;
    uint8_t object_kind, flags;
};
struct inode *inode_make(struct share *s, const struct inode_id *id, const struct inode_fill *fill);
void inode_forget(struct share *s, uint64_t ino, uint64_t n);
/* For the writing side: another path (a rename). The entry moves if the path does not fit: false then, and the caller makes a new one. */
bool inode_rename(struct share *s, struct inode *n, const char *path, size_t path_len);
/* Every entry in use of a kind, for a new worker. fn runs under the lock. */
void inode_each(struct share *s, enum inode_kind kind, void (*fn)(void *ctx, struct inode *n), void *ctx);
/* A number for stat(2) that depends on what it is only: the same in every mount. */
uint64_t inode_public_number(const struct inode_id *id);

/* A handle of a directory: its index, or UINT32_MAX when there are too many. */
uint32_t share_dir_open(struct share *s, uint64_t ino, uint64_t gen);
void share_dir_close(struct share *s, uint32_t index);

#endif
