/* Pagestone | platform/record — records what a run does to its files, and builds the files as a power loss could leave them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Only with PGS_TESTING.
 *
 * Recorder. A table of file operations stacked on the real one. Every successful operation that changes a file or a name under one directory
 * (and every memfd) is appended to a log, in the order in which it was applied: a lock in shared memory covers operation and
 * record, also across forked children, which inherit the recorder and write to the same log. Failed operations are not recorded. Files
 * that exist at the start are logged first, as created, written and synced.
 *
 *   Stores through a PGS__MAP_WRITE mapping are invisible to a table of functions, so each such mapping has a shadow copy. At every
 *   barrier (before it), at unmap or replacement (after it, so that no last store is missed) and on demand, the file's bytes
 *   are compared with the shadow and each changed 4 KiB page becomes one PGS__REC_STORE. Comparison reads the file, never the mapping:
 *   looking at a hole through a mapping would allocate it. A mapping is watched by the process that made it; a forked child watches
 *   only its own. Our pwrites into a watched range update the shadow.
 *
 * Replayer. Builds a directory from the first n_records of a log. The model of the disk, with `lossy`:
 *   - What was written to a file before the last barrier of that file is there.
 *   - Of what came later each 4 KiB page stands, independently, at its state after some prefix of the records that touch it: the page cache
 *     writes pages in any order, but never a page that was not. Sizes count as one more page.
 *   - Names (create, rename, unlink, mkdir) come from a journal: some prefix of them survives, at least up to the last one
 *     whose directory was synced after it. A file without a surviving name is gone.
 *   - The last write may also be torn into sectors.
 * Without `lossy` all n_records are applied: the page cache after a process died, or a disk that keeps order.
 *
 * Not modelled: hard links, O_TMPFILE, symbolic links, renames in or out of the recorded directory.
 */
#ifndef PGS_PLATFORM_RECORD_H
#define PGS_PLATFORM_RECORD_H

#ifdef PGS_TESTING
#include "libshm/platform/base.h"

enum pgs__rec_kind {
    PGS__REC_CREATE = 1,    /* file, path, mode: a new, empty file */
    PGS__REC_WRITE,         /* file, off, data[len] */
    PGS__REC_STORE,         /* the same, one page seen through a mapping: some time before this point */
    PGS__REC_TRUNCATE,      /* file, off = new size */
    PGS__REC_FALLOCATE,     /* file, mode, off, len */
    PGS__REC_RENAME,        /* path, path2 */
    PGS__REC_UNLINK,        /* path */
    PGS__REC_MKDIR,         /* path, mode */
    PGS__REC_BARRIER,       /* file: fsync or fdatasync returned 0 */
    PGS__REC_NAMES_BARRIER, /* path: fsync of this directory returned 0 */
    PGS__REC_MARK,          /* off: the value given to pgs__record_mark */
};

struct pgs__rec {
    enum pgs__rec_kind kind;
    uint32_t file; /* identity of the file, from 1: survives renames, never reused */
    int mode;
    uint64_t off, len;
    const char *path, *path2; /* relative to the recorded directory ("" is itself); memfds: "memfd-<file>" */
    const uint8_t *data;
};

/* Start recording changes under directory `dir` (which must exist; NULL: only memfds) and put the recorder in place of pgs__file_ops.
 * The log is `log_path`, created, or an anonymous file when NULL. Call before any store is open. 0 or -errno. */
int pgs__record_start(const char *dir, const char *log_path);
/* Compare all watched mappings now. */
void pgs__record_scan(void);
/* Put a mark of the test into the log ("commit 7 has returned"). Scans first. */
void pgs__record_mark(uint64_t value);
/* Scan, and restore the table that was in force. The log stays until the next start. */
void pgs__record_stop(void);

struct pgs__log {
    struct pgs__rec *recs;
    size_t n;
    size_t n_base; /* the first n_base records describe what existed at the start */
    void *bytes;   /* backs path, path2, data */
    size_t n_bytes;
};
/* Load the log of the last recording of this process, or of another from log_path.
 * A torn last record (its writer was killed) is left out. 0 or -errno. */
int pgs__log_load(const char *log_path, struct pgs__log *out);
void pgs__log_free(struct pgs__log *log);
/* One line for people. */
void pgs__rec_print(const struct pgs__rec *r, size_t index, char *out, size_t cap);

struct pgs__replay {
    size_t n_records;  /* the prefix */
    bool lossy;        /* drop what no barrier protects, chosen by `seed` */
    bool names_stable; /* with lossy: all names of the prefix survive */
    uint64_t seed;
    uint32_t tear_unit; /* 512 or 4096: tear the last record if it is a write; 0: don't */
    uint64_t tear_mask; /* unit i of it is applied when bit i % 64 is set */
};
/* Build the image in `out_dir`, which must not exist or be empty. 0 or -errno. */
int pgs__replay(const struct pgs__log *log, const struct pgs__replay *how, const char *out_dir);

#endif
#endif
