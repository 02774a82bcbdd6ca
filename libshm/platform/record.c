/* Pagestone | platform/record — the recorder: a table of file operations that keeps a log.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See record.h for the model. Files are known by (device, inode), looked up at every operation, so that dup, reopening through /proc and closed
 * descriptors need no bookkeeping; a creation takes the inode over from a file that was unlinked. The table of files and the lock live in
 * shared memory for the sake of forked children; shadows are private.
 *
 * This is test code: a failure of its own (no memory, log full) is a BUG, not an error.
 */
#define _GNU_SOURCE
#include "libshm/platform/record.h"

#ifdef PGS_TESTING

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "libshm/platform/file.h"
#include "libshm/platform/procfd.h"
#include "libshm/platform/recorder_log.h"

#define MAX_FILES 4096

struct shared {
    pthread_mutex_t m; /* robust: a recorded process may be killed anywhere */
    uint32_t n_files;
    struct {
        uint64_t dev, ino;
    } files[MAX_FILES]; /* [id - 1]; ino 0: its inode belongs to a later file now */
};

/* One watched mapping, or what is left of it. */
struct watch {
    uint8_t *addr;
    size_t len;
    uint64_t off;
    uint32_t file;
    int fd; /* our own description, read only */
    uint8_t *shadow;
    uint8_t *used; /* [block]: the shadow may hold something other than zeros there */
    struct watch *next;
};
#define WATCH_BLOCK (16 * PGS_PAGE_SIZE)

static struct {
    const struct pgs__file_ops *below;
    char root[PATH_MAX];
    size_t root_len; /* 0: memfds only */
    int log_fd;
    pid_t pid; /* whose watches these are */
    struct watch *watches;
    struct shared *sh;
} rec = {.log_fd = -1};

static void rec_lock(void)
{
    int rc = pthread_mutex_lock(&rec.sh->m);
    if (rc == EOWNERDEAD)
        rc = pthread_mutex_consistent(&rec.sh->m); /* worst: one applied operation is not in the log */
    PGS_BUG_ON(rc != 0);
    if (rec.pid != getpid()) { /* forked: the parent's watches are the parent's */
        rec.pid = getpid();
        rec.watches = NULL;
    }
}

static void rec_unlock(void)
{
    PGS_BUG_ON(pthread_mutex_unlock(&rec.sh->m) != 0);
}

/* --- the log -------------------------------------------------------------------------------------------------------------- */
static void log_write(const void *p, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t put = write(rec.log_fd, (const char *)p + done, n - done);
        PGS_BUG_ON(put <= 0 && errno != EINTR);
        if (put > 0) done += (size_t)put;
    }
}

static void log_rec(enum pgs__rec_kind kind, uint32_t file, int mode, uint64_t off, uint64_t len, const char *path,
                    const char *path2, const void *data)
{
    struct pgs__rec_head h = {
        .magic = PGS__REC_MAGIC,
        .kind = (uint32_t)kind,
        .file = file,
        .mode = mode,
        .off = off,
        .len = len,
        .path_bytes = path ? (uint32_t)strlen(path) + 1 : 0,
        .path2_bytes = path2 ? (uint32_t)strlen(path2) + 1 : 0,
        .data_bytes = data ? len : 0,
    };
    log_write(&h, sizeof h);
    if (path) log_write(path, h.path_bytes);
    if (path2) log_write(path2, h.path2_bytes);
    if (data) log_write(data, len);
}

int pgs__record_log_fd(void)
{
    return rec.log_fd;
}

/* --- names and files ------------------------------------------------------------------------------------------------------ */
/* The part of an absolute path below the root; NULL: elsewhere. */
static const char *below_root(const char *path)
{
    if (rec.root_len == 0 || strncmp(path, rec.root, rec.root_len) != 0) return NULL;
    if (path[rec.root_len] == 0) return path + rec.root_len;
    return path[rec.root_len] == '/' ? path + rec.root_len + 1 : NULL;
}

/* Path of an open descriptor relative to the root, in buf; NULL: elsewhere. */
static const char *path_of_fd(int fd, char buf[PATH_MAX])
{
    char link[PGS__PROC_FD_PATH];
    pgs__proc_fd_path(link, fd);
    ssize_t n = readlink(link, buf, PATH_MAX - 1);
    if (n < 0) return NULL;
    buf[n] = 0;
    return below_root(buf);
}

/* Path of `name` in directory dir_fd, relative to the root; its directory must exist. */
static const char *path_at(int dir_fd, const char *name, char buf[PATH_MAX])
{
    char dir[PATH_MAX];
    const char *slash = strrchr(name, '/'), *base = slash ? slash + 1 : name;
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - name + 1) : 1, slash ? name : ".");
    int fd = openat(dir_fd, dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return NULL;
    const char *rel = path_of_fd(fd, dir);
    close(fd);
    if (!rel) return NULL;
    PGS_BUG_ON(snprintf(buf, PATH_MAX, "%s%s%s", rel, *rel ? "/" : "", base) >= PATH_MAX);
    return buf;
}

static uint32_t file_lookup(const struct stat *st)
{
    for (uint32_t i = rec.sh->n_files; i-- > 0;)
        if (rec.sh->files[i].ino == st->st_ino && rec.sh->files[i].dev == st->st_dev) return i + 1;
    return 0;
}

static uint32_t file_of_fd(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? file_lookup(&st) : 0;
}

static uint32_t file_new(const struct stat *st)
{
    uint32_t old = file_lookup(st);
    if (old) rec.sh->files[old - 1].ino = 0;
    PGS_BUG_ON(rec.sh->n_files == MAX_FILES);
    rec.sh->files[rec.sh->n_files].dev = st->st_dev;
    rec.sh->files[rec.sh->n_files].ino = st->st_ino;
    return ++rec.sh->n_files;
}

/* Log a file with contents: created, written (without its zero pages), synced. */
static void log_existing(int fd, const struct stat *st, const char *path)
{
    uint32_t file = file_new(st);
    uint8_t page[PGS_PAGE_SIZE];
    log_rec(PGS__REC_CREATE, file, (int)(st->st_mode & 07777), 0, 0, path, NULL, NULL);
    log_rec(PGS__REC_TRUNCATE, file, 0, (uint64_t)st->st_size, 0, NULL, NULL, NULL);
    for (off_t at = 0; (at = lseek(fd, at, SEEK_DATA)) >= 0 && at < st->st_size;) {
        at &= ~(off_t)(PGS_PAGE_SIZE - 1);
        ssize_t n = pread(fd, page, sizeof page, at);
        if (n <= 0) break;
        log_rec(PGS__REC_WRITE, file, 0, (uint64_t)at, (uint64_t)n, NULL, NULL, page);
        at += PGS_PAGE_SIZE;
    }
    log_rec(PGS__REC_BARRIER, file, 0, 0, 0, NULL, NULL, NULL);
}

static void note_open(int fd, int flags, bool existed)
{
    char buf[PATH_MAX];
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return;
    const char *path = path_of_fd(fd, buf);
    uint32_t file = existed ? file_lookup(&st) : 0;
    if (file && (flags & O_TRUNC)) log_rec(PGS__REC_TRUNCATE, file, 0, 0, 0, NULL, NULL, NULL);
    if (file || !path) return;
    if (!existed)
        log_rec(PGS__REC_CREATE, file_new(&st), (int)(st.st_mode & 07777), 0, 0, path, NULL, NULL);
    else if ((flags & O_ACCMODE) != O_WRONLY)
        log_existing(fd, &st, path); /* made behind the table's back */
}

/* --- watched mappings ----------------------------------------------------------------------------------------------------- */
/* Bytes of the file; zeros beyond its end. */
static void read_zero_filled(int fd, uint8_t *buf, size_t n, uint64_t off)
{
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, buf + done, n - done, (off_t)(off + done));
        if (got < 0 && errno == EINTR) continue;
        PGS_BUG_ON(got < 0);
        if (got == 0) break;
        done += (size_t)got;
    }
    memset(buf + done, 0, n - done);
}

/* Where the file's data goes on at or after `off`: a control file is 128 MiB of holes. */
static uint64_t next_data(int fd, uint64_t off)
{
    off_t at = lseek(fd, (off_t)off, SEEK_DATA);
    return at >= 0 ? (uint64_t)at : errno == ENXIO ? UINT64_MAX : off;
}

static void watch_compare(struct watch *w)
{
    uint8_t buf[WATCH_BLOCK];
    uint64_t data = 0; /* holes from where we looked last up to here */
    for (size_t at = 0; at < w->len; at += sizeof buf) {
        size_t n = pgs__min_u64(sizeof buf, w->len - at);
        if (data <= w->off + at) data = next_data(w->fd, w->off + at);
        if (data >= w->off + at + n && !w->used[at / WATCH_BLOCK]) continue;
        w->used[at / WATCH_BLOCK] = 1;
        read_zero_filled(w->fd, buf, n, w->off + at);
        for (size_t i = 0; i < n; i += PGS_PAGE_SIZE) {
            uint8_t *old = w->shadow + at + i;
            if (memcmp(old, buf + i, PGS_PAGE_SIZE) == 0) continue;
            memcpy(old, buf + i, PGS_PAGE_SIZE);
            log_rec(PGS__REC_STORE, w->file, 0, w->off + at + i, PGS_PAGE_SIZE, NULL, NULL, old);
        }
    }
}

static void compare_all(void)
{
    for (struct watch *w = rec.watches; w; w = w->next) watch_compare(w);
}

/* Watch [addr, addr+len) of the file behind fd. shadow: a copy of the bytes as known, or NULL to read them. */
static void watch_add(uint8_t *addr, size_t len, uint64_t off, uint32_t file, int fd, const uint8_t *shadow)
{
    char path[PGS__PROC_FD_PATH];
    struct watch *w = malloc(sizeof *w);
    PGS_BUG_ON(!w);
    pgs__proc_fd_path(path, fd);
    *w = (struct watch){.addr = addr, .len = len, .off = off, .file = file, .next = rec.watches};
    w->fd = open(path, O_RDONLY | O_CLOEXEC); /* a fresh description: a dup would keep OFD locks alive */
    w->shadow = calloc(1, len);
    w->used = calloc(1, len / WATCH_BLOCK + 1);
    PGS_BUG_ON(w->fd < 0 || !w->shadow || !w->used);
    for (size_t at = 0; at < len; at += WATCH_BLOCK) {
        size_t n = pgs__min_u64(WATCH_BLOCK, len - at);
        if (!shadow && next_data(w->fd, off + at) >= off + at + n) continue;
        w->used[at / WATCH_BLOCK] = 1;
        if (shadow)
            memcpy(w->shadow + at, shadow + at, n);
        else
            read_zero_filled(w->fd, w->shadow + at, n, off + at);
    }
    rec.watches = w;
}

static void watch_free(struct watch *w)
{
    close(w->fd);
    free(w->shadow);
    free(w->used);
    free(w);
}

/* [addr, addr+len) is no longer a writable mapping: log its last stores, keep watching what lies beside it. */
static void watch_end(const uint8_t *addr, size_t len)
{
    for (struct watch **at = &rec.watches, *w; (w = *at);) {
        const uint8_t *lo = w->addr > addr ? w->addr : addr;
        const uint8_t *hi = w->addr + w->len < addr + len ? w->addr + w->len : addr + len;
        if (lo >= hi) {
            at = &w->next;
            continue;
        }
        watch_compare(w);
        *at = w->next;
        size_t head = (size_t)(lo - w->addr), tail = (size_t)(w->addr + w->len - hi), skip = w->len - tail;
        if (head) watch_add(w->addr, head, w->off, w->file, w->fd, w->shadow);
        if (tail) watch_add(w->addr + skip, tail, w->off + skip, w->file, w->fd, w->shadow + skip);
        watch_free(w);
        at = &rec.watches; /* the new ones lie outside the range */
    }
}

/* Our own operation changed [off, off+len) of the file: not a store. Call before it, to log stores so far, then after it. */
static void watch_file_changed(uint32_t file, uint64_t off, uint64_t len, bool before)
{
    for (struct watch *w = rec.watches; w; w = w->next) {
        uint64_t lo = pgs__max_u64(off, w->off), hi = off > UINT64_MAX - len ? UINT64_MAX : off + len;
        hi = pgs__min_u64(hi, w->off + w->len);
        if (w->file != file || lo >= hi) continue;
        if (before) {
            watch_compare(w);
        } else {
            for (size_t b = (lo - w->off) / WATCH_BLOCK; b <= (hi - 1 - w->off) / WATCH_BLOCK; b++) w->used[b] = 1;
            read_zero_filled(w->fd, w->shadow + (lo - w->off), hi - lo, lo);
        }
    }
}

/* --- the table ------------------------------------------------------------------------------------------------------------ */
static int rec_openat(int dir_fd, const char *name, int flags, mode_t mode)
{
    struct stat st;
    rec_lock();
    bool existed = fstatat(dir_fd, name, &st, 0) == 0;
    int fd = rec.below->openat(dir_fd, name, flags, mode);
    if (fd >= 0) note_open(fd, flags, existed);
    rec_unlock();
    return fd;
}

static int rec_open(const char *path, int flags, mode_t mode)
{
    struct stat st;
    rec_lock();
    bool existed = stat(path, &st) == 0;
    int fd = rec.below->open(path, flags, mode);
    if (fd >= 0) note_open(fd, flags, existed);
    rec_unlock();
    return fd;
}

/* The image of cold data (txn/image.c) is a cache: no crash state has it, and it is larger than any file that could be replayed. */
static int rec_memfd(const char *name)
{
    struct stat st;
    char path[32];
    bool cache = strcmp(name, PGS__IMAGE_MEMFD) == 0;
    rec_lock();
    int fd = rec.below->memfd(name);
    if (fd >= 0 && !cache && fstat(fd, &st) == 0) {
        uint32_t file = file_new(&st);
        snprintf(path, sizeof path, "memfd-%u", file);
        log_rec(PGS__REC_CREATE, file, 0600, 0, 0, path, NULL, NULL);
    }
    rec_unlock();
    return fd;
}

static ssize_t rec_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    rec_lock();
    uint32_t file = file_of_fd(fd);
    if (file) watch_file_changed(file, (uint64_t)off, n, true);
    ssize_t put = rec.below->pwrite(fd, buf, n, off);
    if (file && put > 0) {
        log_rec(PGS__REC_WRITE, file, 0, (uint64_t)off, (uint64_t)put, NULL, NULL, buf);
        watch_file_changed(file, (uint64_t)off, (uint64_t)put, false);
    }
    rec_unlock();
    return put;
}

static int rec_ftruncate(int fd, off_t size)
{
    rec_lock();
    uint32_t file = file_of_fd(fd);
    if (file) watch_file_changed(file, (uint64_t)size, UINT64_MAX, true);
    int rc = rec.below->ftruncate(fd, size);
    if (file && rc == 0) {
        log_rec(PGS__REC_TRUNCATE, file, 0, (uint64_t)size, 0, NULL, NULL, NULL);
        watch_file_changed(file, (uint64_t)size, UINT64_MAX, false);
    }
    rec_unlock();
    return rc;
}

static int rec_fallocate(int fd, int mode, off_t off, off_t len)
{
    rec_lock();
    uint32_t file = file_of_fd(fd);
    if (file) watch_file_changed(file, (uint64_t)off, (uint64_t)len, true);
    int rc = rec.below->fallocate(fd, mode, off, len);
    if (file && rc == 0) {
        log_rec(PGS__REC_FALLOCATE, file, mode, (uint64_t)off, (uint64_t)len, NULL, NULL, NULL);
        watch_file_changed(file, (uint64_t)off, (uint64_t)len, false);
    }
    rec_unlock();
    return rc;
}

static int barrier(int fd, int (*call)(int))
{
    char buf[PATH_MAX];
    struct stat st;
    rec_lock();
    compare_all();
    int rc = call(fd);
    if (rc == 0 && fstat(fd, &st) == 0) {
        uint32_t file = S_ISREG(st.st_mode) ? file_lookup(&st) : 0;
        const char *dir = S_ISDIR(st.st_mode) ? path_of_fd(fd, buf) : NULL;
        if (file) log_rec(PGS__REC_BARRIER, file, 0, 0, 0, NULL, NULL, NULL);
        if (dir) log_rec(PGS__REC_NAMES_BARRIER, 0, 0, 0, 0, dir, NULL, NULL);
    }
    rec_unlock();
    return rc;
}

static int rec_fdatasync(int fd)
{
    return barrier(fd, rec.below->fdatasync);
}

static int rec_fsync(int fd)
{
    return barrier(fd, rec.below->fsync);
}

static int rec_renameat(int dir_fd, const char *from, const char *to)
{
    char a[PATH_MAX], b[PATH_MAX];
    rec_lock();
    const char *rel_from = path_at(dir_fd, from, a), *rel_to = path_at(dir_fd, to, b);
    int rc = rec.below->renameat(dir_fd, from, to);
    if (rc == 0 && rel_from && rel_to) log_rec(PGS__REC_RENAME, 0, 0, 0, 0, rel_from, rel_to, NULL);
    rec_unlock();
    return rc;
}

static int rec_unlinkat(int dir_fd, const char *name)
{
    char a[PATH_MAX];
    rec_lock();
    const char *rel = path_at(dir_fd, name, a);
    int rc = rec.below->unlinkat(dir_fd, name);
    if (rc == 0 && rel) log_rec(PGS__REC_UNLINK, 0, 0, 0, 0, rel, NULL, NULL);
    rec_unlock();
    return rc;
}

static int rec_mkdir(const char *path, mode_t mode)
{
    char abs[PATH_MAX];
    struct stat st;
    rec_lock();
    int rc = rec.below->mkdir(path, mode);
    if (rc == 0 && realpath(path, abs) && stat(abs, &st) == 0 && below_root(abs))
        log_rec(PGS__REC_MKDIR, 0, (int)(st.st_mode & 07777), 0, 0, below_root(abs), NULL, NULL);
    rec_unlock();
    return rc;
}

static void *rec_map(int fd, enum pgs__map_kind kind, void *addr, size_t len, off_t off, int *rc)
{
    rec_lock();
    void *p = rec.below->map(fd, kind, addr, len, off, rc);
    if (p != MAP_FAILED) {
        size_t whole = pgs__pages_of(len) << PGS_PAGE_SHIFT;
        uint32_t file = kind == PGS__MAP_WRITE ? file_of_fd(fd) : 0;
        if (addr) watch_end(p, whole); /* after the replacement: no store can come behind the comparison */
        if (file) watch_add(p, whole, (uint64_t)off, file, fd, NULL);
    }
    rec_unlock();
    return p;
}

static int rec_unmap(void *addr, size_t len)
{
    rec_lock();
    int rc = rec.below->unmap(addr, len);
    if (rc == 0) watch_end(addr, pgs__pages_of(len) << PGS_PAGE_SHIFT);
    rec_unlock();
    return rc;
}

static struct pgs__file_ops recorder;

/* --- starting and stopping ------------------------------------------------------------------------------------------------ */
static void shared_init(void)
{
    pthread_mutexattr_t attr;
    if (!rec.sh) rec.sh = mmap(NULL, sizeof *rec.sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    PGS_BUG_ON(rec.sh == MAP_FAILED);
    memset(rec.sh, 0, sizeof *rec.sh);
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    PGS_BUG_ON(pthread_mutex_init(&rec.sh->m, &attr) != 0);
    pthread_mutexattr_destroy(&attr);
}

static int log_base_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    const char *rel = below_root(path);
    (void)ftw;
    if (!rel || !*rel) return 0;
    if (type == FTW_D) log_rec(PGS__REC_MKDIR, 0, (int)(st->st_mode & 07777), 0, 0, rel, NULL, NULL);
    if (type == FTW_F && S_ISREG(st->st_mode)) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        PGS_BUG_ON(fd < 0);
        log_existing(fd, st, rel);
        close(fd);
    }
    return 0;
}

int pgs__record_start(const char *dir, const char *log_path)
{
    PGS_BUG_ON(pgs__file_ops == &recorder);
    rec.root_len = 0;
    if (dir && !realpath(dir, rec.root)) return -errno;
    if (dir) rec.root_len = strlen(rec.root);
    if (rec.log_fd >= 0) close(rec.log_fd);
    rec.log_fd = log_path ? open(log_path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600)
                          : memfd_create("pagestone-log", MFD_CLOEXEC);
    if (rec.log_fd < 0 || fcntl(rec.log_fd, F_SETFL, O_APPEND) < 0) return -errno;

    shared_init();
    rec.pid = getpid();
    rec.watches = NULL;
    rec.below = pgs__file_ops;
    if (dir && nftw(rec.root, log_base_entry, 16, FTW_PHYS) != 0) return -EIO;
    /* Everything up to here is on disk: one barrier of names closes the base. */
    log_rec(PGS__REC_NAMES_BARRIER, 0, 1, 0, 0, "", NULL, NULL);

    recorder = *rec.below; /* what it does not replace goes straight through */
    recorder.open = rec_open;
    recorder.openat = rec_openat;
    recorder.memfd = rec_memfd;
    recorder.pwrite = rec_pwrite;
    recorder.ftruncate = rec_ftruncate;
    recorder.fallocate = rec_fallocate;
    recorder.fdatasync = rec_fdatasync;
    recorder.fsync = rec_fsync;
    recorder.renameat = rec_renameat;
    recorder.unlinkat = rec_unlinkat;
    recorder.mkdir = rec_mkdir;
    recorder.map = rec_map;
    recorder.unmap = rec_unmap;
    pgs__file_ops = &recorder;
    return 0;
}

void pgs__record_scan(void)
{
    rec_lock();
    compare_all();
    rec_unlock();
}

void pgs__record_mark(uint64_t value)
{
    rec_lock();
    compare_all();
    log_rec(PGS__REC_MARK, 0, 0, value, 0, NULL, NULL, NULL);
    rec_unlock();
}

void pgs__record_stop(void)
{
    PGS_BUG_ON(pgs__file_ops != &recorder);
    rec_lock();
    compare_all();
    while (rec.watches) {
        struct watch *w = rec.watches;
        rec.watches = w->next;
        watch_free(w);
    }
    rec_unlock();
    pgs__file_ops = rec.below;
}

#else
extern int pgs__record_unused;
#endif
