/* Pagestone | platform/replay — builds files from a prefix of a recorder's log, as a power loss could leave them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See record.h for the model of the disk. Contents are applied to one nameless object per recorded file (".replay-N" in the
 * output directory), names to a list in memory; at the end each surviving name takes its object, and objects without a name go.
 * All randomness is a hash of the seed and of what is decided, so that a failure is repeated by its seed alone.
 */
#define _GNU_SOURCE
#include "libshm/platform/record.h"

#ifdef PGS_TESTING

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libshm/platform/file.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/recorder_log.h"

/* --- loading ---------------------------------------------------------------------------------------------------------------- */
static int slurp(const char *path, void **bytes, size_t *n_bytes)
{
    struct stat st;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : dup(pgs__record_log_fd());
    if (fd < 0) return -errno;
    int rc = fstat(fd, &st) < 0 ? -errno : 0;
    void *p = rc == 0 ? malloc((size_t)st.st_size + 1) : NULL;
    if (rc == 0 && !p) rc = -ENOMEM;
    for (size_t done = 0; rc == 0 && done < (size_t)st.st_size;) {
        ssize_t got = pread(fd, (char *)p + done, (size_t)st.st_size - done, (off_t)done);
        if (got <= 0)
            rc = got < 0 ? -errno : -EIO;
        else
            done += (size_t)got;
    }
    close(fd);
    if (rc) {
        free(p);
        return rc;
    }
    *bytes = p;
    *n_bytes = (size_t)st.st_size;
    return 0;
}

/* Parse the record at `at`; its size, 0 when it is cut off. */
static size_t parse(const uint8_t *bytes, size_t n_bytes, size_t at, struct pgs__rec *out, bool *base_end)
{
    struct pgs__rec_head h;
    if (n_bytes - at < sizeof h) return 0;
    memcpy(&h, bytes + at, sizeof h);
    PGS_BUG_ON(h.magic != PGS__REC_MAGIC);
    size_t size = sizeof h + h.path_bytes + h.path2_bytes + h.data_bytes;
    if (n_bytes - at < size) return 0;
    const uint8_t *p = bytes + at + sizeof h;
    *out = (struct pgs__rec){
        .kind = (enum pgs__rec_kind)h.kind, .file = h.file, .mode = h.mode, .off = h.off, .len = h.len};
    if (h.path_bytes) out->path = (const char *)p;
    if (h.path2_bytes) out->path2 = (const char *)p + h.path_bytes;
    if (h.data_bytes) out->data = p + h.path_bytes + h.path2_bytes;
    *base_end = h.kind == PGS__REC_NAMES_BARRIER && h.mode == 1;
    return size;
}

int pgs__log_load(const char *log_path, struct pgs__log *out)
{
    struct pgs__log log = {0};
    int rc = slurp(log_path, &log.bytes, &log.n_bytes);
    if (rc) return rc;
    size_t cap = 0, size;
    struct pgs__rec r;
    bool base_end;
    for (size_t at = 0; (size = parse(log.bytes, log.n_bytes, at, &r, &base_end)) > 0; at += size) {
        if (log.n == cap) {
            cap = cap ? cap * 2 : 256;
            void *p = realloc(log.recs, cap * sizeof r);
            PGS_BUG_ON(!p);
            log.recs = p;
        }
        log.recs[log.n++] = r;
        if (base_end && log.n_base == 0) log.n_base = log.n;
    }
    *out = log;
    return 0;
}

void pgs__log_free(struct pgs__log *log)
{
    free(log->recs);
    free(log->bytes);
    *log = (struct pgs__log){0};
}

void pgs__rec_print(const struct pgs__rec *r, size_t index, char *out, size_t cap)
{
    static const char *const kinds[] = {"?",      "create", "write", "store",   "truncate", "fallocate",
                                        "rename", "unlink", "mkdir", "barrier", "names",    "mark"};
    unsigned k = (unsigned)r->kind;
    snprintf(out, cap, "%zu %s file %u off %llu len %llu mode %#o %s%s%s", index,
             k < PGS_ARRAY_LEN(kinds) ? kinds[k] : "?", r->file, (unsigned long long)r->off, (unsigned long long)r->len,
             (unsigned)r->mode, r->path ? r->path : "", r->path2 ? " -> " : "", r->path2 ? r->path2 : "");
}

/* --- what survives ---------------------------------------------------------------------------------------------------------- */
struct replayer {
    const struct pgs__log *log;
    const struct pgs__replay *how;
    uint32_t n_files;
    size_t *durable; /* [file]: records of the file below this index are on disk */
    int *fds;        /* [file]: its object, -1: none */
    size_t names_end;
    int dir_fd;
    struct name {
        char *path;
        uint32_t file; /* 0: directory */
        mode_t mode;
    } * names;
    size_t n_names, cap_names;
};

#define SIZE_KEY UINT64_MAX /* the "page" that stands for a file's size */

/* A random moment in [lo, n_records], the ends with a quarter each. */
static size_t moment(const struct replayer *rp, size_t lo, uint64_t a, uint64_t b)
{
    size_t hi = rp->how->n_records;
    uint64_t r = pgs__mix(pgs__mix(rp->how->seed + 0x9e3779b97f4a7c15u * (a + 1)) + 0x632be59bd9b4e019u * (b + 1));
    if (lo >= hi || (r & 3) == 1) return hi;
    return (r & 3) == 0 ? lo : lo + (size_t)((r >> 2) % (hi - lo + 1));
}

/* Did record i reach this page of the file? */
static bool reached(const struct replayer *rp, size_t i, uint32_t file, uint64_t page)
{
    return !rp->how->lossy || i < rp->durable[file] || i < moment(rp, rp->durable[file], file, page);
}

static bool is_name_op(enum pgs__rec_kind k)
{
    return k == PGS__REC_CREATE || k == PGS__REC_RENAME || k == PGS__REC_UNLINK || k == PGS__REC_MKDIR;
}

/* Is `dir` the parent directory of path? */
static bool parent_is(const char *path, const char *dir)
{
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    return strlen(dir) == n && memcmp(path, dir, n) == 0;
}

/* Where the journal of names ends: at least behind the last operation whose directory was synced after it. */
static size_t names_end(const struct replayer *rp)
{
    size_t n = rp->how->n_records, lo = 0;
    if (!rp->how->lossy || rp->how->names_stable) return n;
    for (size_t i = 0; i < n; i++) {
        const struct pgs__rec *b = &rp->log->recs[i];
        if (b->kind != PGS__REC_NAMES_BARRIER) continue;
        if (b->mode == 1) lo = i + 1; /* the base */
        for (size_t j = i; j-- > lo;) {
            const struct pgs__rec *r = &rp->log->recs[j];
            if (!is_name_op(r->kind)) continue;
            if (parent_is(r->path2 ? r->path2 : r->path, b->path) || parent_is(r->path, b->path)) lo = j + 1;
        }
    }
    return moment(rp, lo, SIZE_KEY, 1);
}

/* --- contents ------------------------------------------------------------------------------------------------------------------ */
static int object_create(struct replayer *rp, uint32_t file, int mode)
{
    char name[32];
    snprintf(name, sizeof name, ".replay-%u", file);
    int fd = openat(rp->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -errno;
    rp->fds[file] = fd;
    return fchmod(fd, (mode_t)mode | 0600) < 0 ? -errno : 0;
}

static int put(int fd, const uint8_t *p, size_t n, uint64_t off)
{
    while (n > 0) {
        ssize_t done = pwrite(fd, p, n, (off_t)off);
        if (done < 0) return -errno;
        p += done, n -= (size_t)done, off += (uint64_t)done;
    }
    return 0;
}

/* Apply the pages (or sectors, of a torn last write) of one write that reached the disk. */
static int apply_write(struct replayer *rp, size_t i)
{
    const struct pgs__rec *r = &rp->log->recs[i];
    bool torn = rp->how->tear_unit && i + 1 == rp->how->n_records;
    if (!torn && (!rp->how->lossy || i < rp->durable[r->file])) return put(rp->fds[r->file], r->data, r->len, r->off);
    uint32_t unit = torn ? rp->how->tear_unit : PGS_PAGE_SIZE;
    int rc = 0;
    for (uint64_t at = 0, n; rc == 0 && at < r->len; at += n) {
        uint64_t off = r->off + at, index = off / unit - r->off / unit; /* units lie on the disk's grid */
        n = pgs__min_u64(r->len - at, unit - off % unit);
        bool there = torn ? (rp->how->tear_mask >> (index % 64)) & 1 : reached(rp, i, r->file, off >> PGS_PAGE_SHIFT);
        if (there) rc = put(rp->fds[r->file], r->data + at, n, off);
    }
    return rc;
}

static int apply_zero(struct replayer *rp, size_t i)
{
    static const uint8_t zeros[PGS_PAGE_SIZE];
    const struct pgs__rec *r = &rp->log->recs[i];
    struct stat st;
    if (fstat(rp->fds[r->file], &st) < 0) return -errno;
    uint64_t end = pgs__min_u64(r->off + r->len, (uint64_t)st.st_size); /* punching never extends */
    bool whole = !rp->how->lossy || i < rp->durable[r->file];           /* then in one call, if the file system can */
    int rc = 0;
    for (uint64_t off = r->off, n; rc == 0 && off < end; off += n) {
        n = pgs__min_u64(end - off, PGS_PAGE_SIZE - off % PGS_PAGE_SIZE);
        if (whole && fallocate(rp->fds[r->file], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
                               (off_t)(end - off)) == 0)
            break;
        if (!reached(rp, i, r->file, off >> PGS_PAGE_SHIFT)) continue;
        if (fallocate(rp->fds[r->file], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)n) < 0)
            rc = put(rp->fds[r->file], zeros, n, off);
    }
    return rc;
}

static int apply_size(struct replayer *rp, size_t i)
{
    const struct pgs__rec *r = &rp->log->recs[i];
    struct stat st;
    if (!reached(rp, i, r->file, SIZE_KEY)) return 0;
    if (r->kind == PGS__REC_FALLOCATE) { /* only its effect on the size: space is not content */
        if (fstat(rp->fds[r->file], &st) < 0) return -errno;
        if ((uint64_t)st.st_size >= r->off + r->len) return 0;
        return ftruncate(rp->fds[r->file], (off_t)(r->off + r->len)) < 0 ? -errno : 0;
    }
    return ftruncate(rp->fds[r->file], (off_t)r->off) < 0 ? -errno : 0;
}

static int apply_content(struct replayer *rp, size_t i)
{
    const struct pgs__rec *r = &rp->log->recs[i];
    switch (r->kind) {
    case PGS__REC_CREATE:
        return object_create(rp, r->file, r->mode);
    case PGS__REC_WRITE:
    case PGS__REC_STORE:
        return apply_write(rp, i);
    case PGS__REC_TRUNCATE:
        return apply_size(rp, i);
    case PGS__REC_FALLOCATE:
        if (r->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) return apply_zero(rp, i);
        return r->mode & FALLOC_FL_KEEP_SIZE ? 0 : apply_size(rp, i);
    default:
        return 0;
    }
}

/* --- names ------------------------------------------------------------------------------------------------------------------------ */
static struct name *name_find(struct replayer *rp, const char *path)
{
    for (size_t i = 0; i < rp->n_names; i++)
        if (strcmp(rp->names[i].path, path) == 0) return &rp->names[i];
    return NULL;
}

static void name_drop(struct replayer *rp, const char *path)
{
    struct name *n = name_find(rp, path);
    if (!n) return;
    free(n->path);
    *n = rp->names[--rp->n_names];
}

static void name_add(struct replayer *rp, const char *path, uint32_t file, mode_t mode)
{
    name_drop(rp, path);
    if (rp->n_names == rp->cap_names) {
        rp->cap_names = rp->cap_names * 2 + 16;
        rp->names = realloc(rp->names, rp->cap_names * sizeof *rp->names);
        PGS_BUG_ON(!rp->names);
    }
    rp->names[rp->n_names] = (struct name){strdup(path), file, mode};
    PGS_BUG_ON(!rp->names[rp->n_names].path);
    rp->n_names++;
}

/* The name itself, or everything below a renamed directory. */
static void name_move(struct replayer *rp, const char *from, const char *to)
{
    size_t n = strlen(from);
    if (strcmp(from, to) == 0) return;
    name_drop(rp, to);
    for (size_t i = 0; i < rp->n_names; i++) {
        const char *old = rp->names[i].path;
        if (strncmp(old, from, n) != 0 || (old[n] != 0 && old[n] != '/')) continue;
        char moved[PATH_MAX];
        PGS_BUG_ON(snprintf(moved, sizeof moved, "%s%s", to, old + n) >= PATH_MAX);
        free(rp->names[i].path);
        rp->names[i].path = strdup(moved);
        PGS_BUG_ON(!rp->names[i].path);
    }
}

static void apply_name(struct replayer *rp, const struct pgs__rec *r)
{
    if (r->kind == PGS__REC_CREATE)
        name_add(rp, r->path, r->file, 0);
    else if (r->kind == PGS__REC_MKDIR)
        name_add(rp, r->path, 0, (mode_t)r->mode);
    else if (r->kind == PGS__REC_UNLINK)
        name_drop(rp, r->path);
    else if (r->kind == PGS__REC_RENAME)
        name_move(rp, r->path, r->path2);
}

static int name_order(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->path, ((const struct name *)b)->path); /* parents come first */
}

/* Give each surviving name its object; remove the rest. */
static int settle(struct replayer *rp)
{
    char object[32];
    int rc = 0;
    if (rp->n_names) qsort(rp->names, rp->n_names, sizeof *rp->names, name_order);
    for (size_t i = 0; rc == 0 && i < rp->n_names; i++) {
        struct name *n = &rp->names[i];
        snprintf(object, sizeof object, ".replay-%u", n->file);
        int failed =
            n->file ? renameat(rp->dir_fd, object, rp->dir_fd, n->path) : mkdirat(rp->dir_fd, n->path, n->mode | 0700);
        if (failed) rc = -errno;
    }
    for (uint32_t f = 1; f <= rp->n_files; f++) {
        snprintf(object, sizeof object, ".replay-%u", f);
        unlinkat(rp->dir_fd, object, 0);
    }
    return rc;
}

/* --- the whole ---------------------------------------------------------------------------------------------------------------------- */
static int replayer_init(struct replayer *rp, const char *out_dir)
{
    const struct pgs__log *log = rp->log;
    for (size_t i = 0; i < log->n; i++)
        if (log->recs[i].file > rp->n_files) rp->n_files = log->recs[i].file;
    rp->durable = calloc(rp->n_files + 1, sizeof *rp->durable);
    rp->fds = malloc((rp->n_files + 1) * sizeof *rp->fds);
    PGS_BUG_ON(!rp->durable || !rp->fds);
    for (uint32_t f = 0; f <= rp->n_files; f++) rp->fds[f] = -1;
    for (size_t i = 0; i < rp->how->n_records; i++)
        if (log->recs[i].kind == PGS__REC_BARRIER) rp->durable[log->recs[i].file] = i;
    rp->names_end = names_end(rp);
    if (mkdir(out_dir, 0700) < 0 && errno != EEXIST) return -errno;
    rp->dir_fd = open(out_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return rp->dir_fd < 0 ? -errno : 0;
}

static void replayer_fini(struct replayer *rp)
{
    for (uint32_t f = 0; f <= rp->n_files; f++)
        if (rp->fds[f] >= 0) close(rp->fds[f]);
    for (size_t i = 0; i < rp->n_names; i++) free(rp->names[i].path);
    if (rp->dir_fd >= 0) close(rp->dir_fd);
    free(rp->names);
    free(rp->durable);
    free(rp->fds);
}

int pgs__replay(const struct pgs__log *log, const struct pgs__replay *how, const char *out_dir)
{
    if (how->n_records > log->n) return -EINVAL;
    struct replayer rp = {.log = log, .how = how, .dir_fd = -1};
    int rc = replayer_init(&rp, out_dir);
    for (size_t i = 0; rc == 0 && i < how->n_records; i++) {
        rc = apply_content(&rp, i);
        if (i < rp.names_end) apply_name(&rp, &log->recs[i]);
    }
    if (rc == 0) rc = settle(&rp);
    replayer_fini(&rp);
    return rc;
}

#else
extern int pgs__replay_unused;
#endif
