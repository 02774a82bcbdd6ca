/* Pagestone | pages/pagefile — the page file of one store, as this process sees it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One per (device, inode) and process, shared by every Store over it. Owns: the descriptor, the read-only window (one mapping of the
 * whole file and 16 TiB past its end; smaller segments where address space is short), the table of verified nodes.
 *
 *   I1  Whatever is committed is never written in place: pgs__pages_write is given only pages that the caller claimed.
 *   I2  The file is never truncated while anyone lives; it grows in whole chunks and is punched by whole chunks.
 *   I3  A page number from the file is input: pgs__page() returns NULL beyond the end of the file, never a wild pointer.
 *   I4  The descriptor is checked (fstat) before each commit writes: a host program may have closed it (closerange) and the number may
 *       name another file by now. Then it is reopened by name, or the commit fails; never is a foreign file written.
 */
#ifndef PGS_PAGES_PAGEFILE_H
#define PGS_PAGES_PAGEFILE_H

#include <stdatomic.h>

#include "libshm/pages/super_format.h"
#include "libshm/platform/error.h"
#include "libshm/platform/file.h"

#define PGS__VERIFIED_BITS 15       /* 32,768 entries of 8 bytes */
#define PGS__MAX_PAGES (1ull << 32) /* 16 TiB: what the owner table can name */
#define PGS__PAGES_NAME "pages"     /* of the page file in the store's directory */

struct pgs__segments; /* window.c */
struct pgs__cold_ops; /* extents/cold.h */

struct pgs__pagefile {
    _Atomic int fd;        /* changes only when pgs__pagefile_check_fd had to reopen the file */
    int dir_fd;            /* of the store's directory; -1 for memfds */
    bool writable;         /* fd is O_RDWR */
    bool anonymous;        /* a memfd; or made in a directory that nobody knows (txn/anonymous_dir.c) */
    _Atomic bool unlinked; /* pgs__pagefile_check_fd saw a file without a name; never set for anonymous stores */
    enum pgs__fs_kind fs;
    uint64_t dev, ino;
    uint8_t uuid[16];
    char *path;                       /* of the directory, absolute; NULL for memfds */
    const uint8_t *window;            /* address of page 0; NULL when the whole file is reached through segments */
    uint64_t window_pages;            /* 0 without a window */
    _Atomic bool ram_limited;         /* no quota, and pages are memory; room.c, as the next three */
    _Atomic uint64_t allowance;       /* bytes that may be taken without another look, … */
    _Atomic uint64_t allowance_until; /* … until then; pgs__clock_mono_ns */
    _Atomic bool ram_short;           /* until then nothing is allowed without a look */
    _Atomic(struct pgs__segments *) segments; /* for pages beyond the window; made at first need; window.c */
    _Atomic uint64_t n_pages;                 /* file size in whole pages as last seen; grows only */
    _Atomic uint64_t *verified;       /* pgs__page_verified: mix(page, birth, xxh), direct-mapped, relaxed; window.c */
    const struct pgs__cold_ops *cold; /* how compressed pages are reached; set by the owner, NULL: not at all */
    void *cold_ctx;
    uint32_t super_bad; /* bit i: copy i was damaged at the last pgs__super_read that used the other one */
};

/* Wrap an open descriptor: takes ownership of fd and dir_fd (-1: none) on success. Maps the window. path may be NULL
 * (anonymous) and is copied. uuid is left zero: the caller fills it from the superblock. */
int pgs__pagefile_init(struct pgs__pagefile *pf, int fd, int dir_fd, const char *path, bool writable,
                       struct pgs_error *err);
void pgs__pagefile_fini(struct pgs__pagefile *pf);

/* Slow path of pgs__page: segmented window, or the file has grown. NULL: beyond the end, or no memory for a segment. */
const void *pgs__page_slow(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages);
/* Why pgs__pages_at gave NULL, as an error about `what`: -PGS_ENOMEM (a segment could not be mapped), -PGS_E2BIG (the run spans
 * two segments: compose a mapping of it) or -PGS_ECORRUPT (beyond the end of the file). Never 0. */
int pgs__pages_explain(struct pgs__pagefile *pf, struct pgs_pgno page, uint64_t n_pages, const char *what,
                       struct pgs_error *err);

/* Address of n_pages consecutive pages, readable until pgs__pagefile_fini, their bytes stable as long as their generation is pinned.
 * NULL: they reach beyond the end of the file, or (segmented windows) across two segments; runs of up to one chunk never do,
 * because segments overlap by a chunk. */
static inline const void *pgs__pages_at(struct pgs__pagefile *pf, struct pgs_pgno page, uint64_t n_pages)
{
    uint64_t size =
        atomic_load_explicit(&pf->n_pages, memory_order_relaxed); /* grows only: a stale value is only slow */
    if (PGS_LIKELY(n_pages <= size && page.n <= size - n_pages && page.n + n_pages <= pf->window_pages))
        return pf->window + (page.n << PGS_PAGE_SHIFT);
    return pgs__page_slow(pf, page.n, n_pages);
}
static inline const void *pgs__page(struct pgs__pagefile *pf, struct pgs_pgno page)
{
    return pgs__pages_at(pf, page, 1);
}

/* The bytes of `ptr` (n_pages long), verified against ptr->xxh once per process. `what` names it in errors ("node", "record"). `validate` (may be
 * NULL) checks the structure, once, after the hash matched and before the pointer is remembered as verified; nonzero means damaged.
 * One kind of bytes must always be read with the same `validate`: the table does not know which one ran.
 * -PGS_ECORRUPT: out of bounds, wrong hash or wrong structure; the caller must validate its pin again before it believes that. */
int pgs__page_verified(struct pgs__pagefile *pf, const struct pgs_ptr *ptr, uint64_t n_pages, const char *what,
                       int (*validate)(const void *bytes), const void **bytes, struct pgs_error *err);
/* After this process itself made and hashed the bytes, and is about to write them: keyed by hash, only exactly these will pass. The second is for what is read without `validate`. */
void pgs__page_mark_verified(struct pgs__pagefile *pf, const struct pgs_ptr *ptr);
void pgs__page_mark_hashed(struct pgs__pagefile *pf, const struct pgs_ptr *ptr, uint64_t n_pages);

/* Write n_pages from buf; the pages must be claimed by the caller (I1) and inside the file. 0 or -PGS_E… */
int pgs__pages_write(struct pgs__pagefile *pf, struct pgs_pgno page, const void *buf, uint64_t n_pages,
                     struct pgs_error *err);
/* Read by pread, around the mapping (recovery after a failed fsync uses O_DIRECT: `direct`). */
int pgs__pages_read(struct pgs__pagefile *pf, struct pgs_pgno page, void *buf, uint64_t n_pages, bool direct,
                    struct pgs_error *err);
/* Make the file at least n_pages long (rounded up to whole chunks, growing geometrically; sparse but for its last page). Never
 * shrinks it, whoever else grows at the same time. Both superblocks always fit. -PGS_EFULL: no space, or a limit on file sizes. */
int pgs__pagefile_grow(struct pgs__pagefile *pf, uint64_t n_pages, struct pgs_error *err);
/* Give whole chunks back to the file system. Best effort: errors are ignored. It is an error to name chunks 0 and 1: the
 * superblocks live there. */
void pgs__pagefile_punch(struct pgs__pagefile *pf, uint64_t first_chunk, uint64_t n_chunks);
/* The same for single pages, where every block counts: slower, and it splits huge pages. Not the superblocks'. */
void pgs__pagefile_punch_pages(struct pgs__pagefile *pf, struct pgs_run run);
/* fdatasync; -PGS_EIO on failure: the caller poisons the store. */
int pgs__pagefile_barrier(struct pgs__pagefile *pf, struct pgs_error *err);
/* I4: check that fd still is our file; reopen by name if not. Call at the start of each commit. -PGS_EIO: anonymous stores and
 * unlinked files cannot be reopened. */
int pgs__pagefile_check_fd(struct pgs__pagefile *pf, struct pgs_error *err);
/* Look at the file's size again; never believes a descriptor that names another file. */
void pgs__pagefile_refresh(struct pgs__pagefile *pf);
/* Are these pages inside the file? Looks again before it says no. */
bool pgs__pagefile_holds(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages);
/* st_blocks in bytes. */
uint64_t pgs__pagefile_resident(struct pgs__pagefile *pf);

/* --- superblocks ------------------------------------------------------------------------------------------------ */
/* Write the superblock of slot (seq & 1). Fills magic, version, byte order, page size, layout and xxh. No barrier. */
int pgs__super_write(struct pgs__pagefile *pf, struct pgs__super *super, struct pgs_error *err);
/* Read both with retries while torn, validate, return the newest valid one (pf->super_bad notes a damaged other one).
 * -PGS_ENOTSTORE: neither has the magic; -PGS_EFORMAT: a newer format, another endianness or page size (named in the text);
 * -PGS_ECORRUPT: has the magic, but no valid copy. `direct`: around the page cache. */
int pgs__super_read(struct pgs__pagefile *pf, struct pgs__super *out, bool direct, struct pgs_error *err);
/* Signature of all shared layouts: sizes and offsets, hashed. */
uint64_t pgs__control_layout(void);

#endif
