/* Pagestone | txn/anonymous_dir — anonymous stores in a directory of their own, where memfds cannot be opened again.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Every process needs an open file description of its own for its slot lock, and a memfd gives one only through /proc/self/fd. Without that the store lies in
 *
 *     <base>/pagestone-anonymous-<uuid in hex>/{pages,control}     base: /dev/shm if it is memory, else $TMPDIR, else /tmp
 *
 * mode 0700, and the base with the uuid is its handle. It has a name, but is a store without one in every other respect: durability "none", no path for the user,
 * gone with its last process:
 *
 *     end of the last process                        who removes the directory
 *     it closes the store, or exits                  itself
 *     it was killed, or called _exit                 a process that makes an anonymous store in the same base: the next one,
 *                                                    unless so many live there that it looks at some of them only
 *
 * All who make, join or remove one hold the flock of its directory, and nobody removes while any lock is on the page file. So a joiner has its slot lock before
 * anybody looks, or finds nothing; and who closes gives up its slot first and looks then: of two, the second one sees that it was the last.
 *
 * Removed is only a directory of that name which belongs to this user alone, with nothing in it but the two files, of which "pages" is a regular file without
 * locks and carries the uuid of the name, or is what a maker leaves who was killed before the first superblock. Without "pages" it is the rest of a removal
 * that failed half-way, or of a maker that had not yet begun.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"

#define PREFIX "pagestone-anonymous-"
#define UUID_DIGITS 32u
#define NAME_LEN (sizeof PREFIX - 1 + UUID_DIGITS)
#define PATH_SIZE (PGS__ANONYMOUS_BASE_MAX + 1 + NAME_LEN + 1)
#define MAKE_TRIES 20
#define LEAVE_TRIES 500 /* of 2 ms: makers, joiners and removers hold the flock for much less */
#define SWEEP_STAY                                                                                                     \
    64 /* directories that a sweep may look at in vain: with more stores alive each new one is made as fast */
#define NEWBORN_BYTES (2 * PGS_CHUNK_SIZE)

struct home {
    char path[PATH_SIZE];
    uint8_t uuid[16];
    int fd; /* for the flock; -1 */
};

/* --- names ------------------------------------------------------------------------------------------------------------- */
static void home_name(struct home *h, const char *base, size_t base_len, const uint8_t uuid[16])
{
    pgs_assert(base_len <= PGS__ANONYMOUS_BASE_MAX);
    memcpy(h->path, base, base_len);
    char *at = h->path + base_len;
    at += sprintf(at, "/" PREFIX);
    for (size_t i = 0; i < 16; i++) at += sprintf(at, "%02x", uuid[i]);
    memcpy(h->uuid, uuid, 16);
    h->fd = -1;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool uuid_of(const char *name, uint8_t uuid[16])
{
    if (strncmp(name, PREFIX, sizeof PREFIX - 1) != 0 || strlen(name) != NAME_LEN) return false;
    for (const char *p = name + sizeof PREFIX - 1; *p; p += 2) {
        int high = hex(p[0]), low = hex(p[1]);
        if (high < 0 || low < 0) return false;
        *uuid++ = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* --- one directory --------------------------------------------------------------------------------------------------------- */
static bool is_mine(int fd, mode_t type)
{
    struct stat st;
    return pgs__file_ops->fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == type && st.st_uid == geteuid() &&
           (st.st_mode & (S_IRWXG | S_IRWXO)) == 0;
}

static int home_open(struct home *h)
{
    int fd = pgs__file_ops->open(h->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd < 0) return fd;
    if (is_mine(fd, S_IFDIR)) {
        h->fd = fd;
        return 0;
    }
    pgs__file_ops->close(fd);
    return -EPERM;
}

static bool home_lock(struct home *h, int tries)
{
    for (int i = 0; i < tries; i++) {
        if (i) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        if (flock(h->fd, LOCK_EX | LOCK_NB) == 0) return true;
    }
    return false;
}

static void home_close(struct home *h)
{
    if (h->fd < 0) return;
    flock(h->fd, LOCK_UN); /* said aloud: a child forked meanwhile has the descriptor too */
    pgs__file_ops->close(h->fd);
    h->fd = -1;
}

static bool remove_files(struct home *h)
{
    (void)pgs__file_ops->unlinkat(h->fd, PGS__CONTROL_NAME);
    PGS_KILL_POINT("anonymous_removing");
    (void)pgs__file_ops->unlinkat(h->fd, PGS__PAGES_NAME);
    return pgs__file_ops->rmdir(h->path) == 0;
}

/* --- removing ---------------------------------------------------------------------------------------------------------------- */
static bool only_ours_inside(const struct home *h)
{
    int fd = pgs__file_ops->openat(h->fd, ".", O_RDONLY | O_DIRECTORY, 0);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    bool ours = d != NULL;
    for (const struct dirent *e; ours && (e = readdir(d));)
        ours = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || strcmp(e->d_name, PGS__PAGES_NAME) == 0 ||
               strcmp(e->d_name, PGS__CONTROL_NAME) == 0;
    if (d)
        closedir(d);
    else if (fd >= 0)
        pgs__file_ops->close(fd);
    return ours;
}

/* The superblock at page 0 is the last thing that a maker writes into "pages". */
static bool carries_uuid(const struct home *h, int fd)
{
    struct stat st;
    uint64_t magic;
    uint8_t uuid[16];
    if (pgs__file_ops->fstat(fd, &st) < 0) return false;
    if (st.st_size == 0) return true;
    if (pgs__pread_full(fd, &magic, sizeof magic, 0)) return false;
    if (magic == 0) return (uint64_t)st.st_blocks * 512 <= NEWBORN_BYTES; /* long, but sparse */
    return magic == PGS__SUPER_MAGIC &&
           pgs__pread_full(fd, uuid, sizeof uuid, offsetof(struct pgs__super, uuid)) == 0 &&
           memcmp(uuid, h->uuid, sizeof uuid) == 0;
}

/* No lock on the page file, of readers or slots, but for those of two slots. */
static bool nobody_but(int fd, uint32_t slot, uint32_t spare)
{
    uint64_t at, from = PGS__LOCK_META(0), end = PGS__LOCK_SLOT(PGS__N_SLOTS);
    for (;;) {
        int rc = pgs__ofd_first(fd, from, end, &at);
        if (rc <= 0) return rc == 0;
        bool own = (slot != PGS__NO_SLOT && at == PGS__LOCK_SLOT(slot)) ||
                   (spare != PGS__NO_SLOT && at == PGS__LOCK_SLOT(spare));
        if (!own) return false;
        from = at + 1;
    }
}

/* Makers begin with "pages", and removers end with it: nobody uses a "control" beside which there is none. */
static bool only_rests(const struct home *h)
{
    int fd = pgs__file_ops->openat(h->fd, PGS__CONTROL_NAME, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    bool yes = fd == -ENOENT || (fd >= 0 && is_mine(fd, S_IFREG));
    if (fd >= 0) pgs__file_ops->close(fd);
    return yes && only_ours_inside(h);
}

/* Under the flock. Locks are asked first: as a rule somebody lives. */
static bool abandoned(const struct home *h, uint32_t slot, uint32_t spare)
{
    int fd = pgs__file_ops->openat(h->fd, PGS__PAGES_NAME, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd == -ENOENT) return only_rests(h);
    if (fd < 0) return false;
    bool yes = is_mine(fd, S_IFREG) && nobody_but(fd, slot, spare) && carries_uuid(h, fd) && only_ours_inside(h);
    pgs__file_ops->close(fd);
    return yes;
}

/* False: it stays. */
static bool remove_abandoned(struct home *h, int tries, uint32_t slot, uint32_t spare)
{
    if (home_open(h)) return false;
    bool removed = home_lock(h, tries) && abandoned(h, slot, spare) && remove_files(h);
    home_close(h);
    return removed;
}

static void leave(const struct pgs__pagefile *pf, uint32_t slot, uint32_t spare)
{
    struct home h;
    const char *name = strrchr(pf->path, '/');
    home_name(&h, pf->path, (size_t)(name - pf->path), pf->uuid);
    remove_abandoned(&h, LEAVE_TRIES, slot, spare);
}

void pgs__anonymous_dir_leave(const struct pgs__pagefile *pf)
{
    if (pf->anonymous && pf->path) leave(pf, PGS__NO_SLOT, PGS__NO_SLOT);
}

/* A program that exits with the store open. The names go, not what other threads still use. With the registry's lock no thread can be about to fork. */
__attribute__((destructor)) static void leave_at_exit(void)
{
    if (pgs__session_lost() || pthread_mutex_trylock(&pgs__registry_mx.m)) return;
    for (struct pgs__session *s = pgs__registry; s; s = s->next)
        if (s->pf.anonymous && s->pf.path && !s->family) leave(&s->pf, s->slot, s->spare_slot);
    pthread_mutex_unlock(&pgs__registry_mx.m);
}

/* Of the directories of stores in the base those from number `from` up to number `to`. Returns how many there are. */
static uint64_t sweep_some(DIR *d, const char *base, uint64_t from, uint64_t to, int *may_stay)
{
    struct home h;
    uint8_t uuid[16];
    uint64_t n = 0;
    rewinddir(d);
    for (const struct dirent *e; (e = readdir(d));) {
        if (!uuid_of(e->d_name, uuid)) continue;
        uint64_t i = n++;
        if (i < from || i >= to || *may_stay == 0) continue;
        home_name(&h, base, strlen(base), uuid);
        if (!remove_abandoned(&h, 1, PGS__NO_SLOT, PGS__NO_SLOT)) --*may_stay;
    }
    return n;
}

/* What killed processes left in this base, from anywhere on and all around: the living in front must not hide it for good. */
static void sweep(const char *base)
{
    int fd = pgs__file_ops->open(base, O_RDONLY | O_DIRECTORY, 0);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d && fd >= 0) pgs__file_ops->close(fd);
    if (!d) return;
    int may_stay = SWEEP_STAY;
    uint64_t start = 0, n = sweep_some(d, base, 0, 0, &may_stay);
    if (n > SWEEP_STAY) pgs__random(&start, sizeof start), start %= n;
    if (n) sweep_some(d, base, start, UINT64_MAX, &may_stay);
    if (start) sweep_some(d, base, 0, start, &may_stay);
    closedir(d);
}

/* --- the two files ------------------------------------------------------------------------------------------------------------- */
/* Owns fd in any case. */
static int wrap(struct home *h, int fd, struct pgs__pagefile *pf, struct pgs_error *err)
{
    int dir_fd = pgs__file_ops->openat(h->fd, ".", O_RDONLY | O_DIRECTORY, 0);
    int rc = dir_fd < 0 ? pgs__fail_os(err, -dir_fd, "cannot open the directory %s", h->path) : 0;
    if (rc == 0) rc = pgs__pagefile_init(pf, fd, dir_fd, h->path, true, err);
    if (rc == 0) {
        pf->anonymous = true;
        memcpy(pf->uuid, h->uuid, sizeof pf->uuid);
        return 0;
    }
    if (dir_fd >= 0) pgs__file_ops->close(dir_fd);
    pgs__file_ops->close(fd);
    return rc;
}

static int make_control(struct home *h, const struct pgs__pagefile *pf, const struct pgs__super *super,
                        struct pgs__ctl *ctl, struct pgs_error *err)
{
    int fd = pgs__file_ops->openat(h->fd, PGS__CONTROL_NAME, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot create a file in %s", h->path);
    int rc = pgs__control_fill(ctl, fd, pf, super, err);
    if (rc) pgs__file_ops->close(fd);
    return rc;
}

/* Under the flock. */
static int make_files(struct home *h, const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__ctl ctl = {.fd = -1};
    struct pgs__super super;
    int fd = pgs__file_ops->openat(h->fd, PGS__PAGES_NAME, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd == -ENOENT) return PGS__OPEN_AGAIN; /* a sweeper took the directory between mkdir and flock */
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot create a file in %s", h->path);
    PGS_KILL_POINT("anonymous_empty");
    int rc = wrap(h, fd, &pf, err);
    if (rc) return rc;
    rc = pgs__found(&pf, opt, &super, err);
    PGS_KILL_POINT("anonymous_founded");
    if (rc == 0) rc = make_control(h, &pf, &super, &ctl, err);
    PGS_KILL_POINT("anonymous_filled");
    if (rc == 0) rc = pgs__session_make(&pf, &ctl, super.created_ns, false, NULL, out, err);
    if (rc == 0) return 0;
    pgs__ctl_unmap(&ctl);
    pgs__pagefile_fini(&pf);
    return rc;
}

static int make_one(const char *base, const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err)
{
    struct home h;
    uint8_t uuid[16];
    pgs__random(uuid, sizeof uuid);
    home_name(&h, base, strlen(base), uuid);
    int rc = pgs__file_ops->mkdir(h.path, 0700);
    if (rc == -EEXIST) return PGS__OPEN_AGAIN;
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot create the directory %s", h.path);
    PGS_KILL_POINT("anonymous_mkdir");
    rc = home_open(&h);
    if (rc == -ENOENT) return PGS__OPEN_AGAIN;
    if (rc < 0) {
        (void)pgs__file_ops->rmdir(h.path);
        return pgs__fail_os(err, -rc, "cannot open the directory %s", h.path);
    }
    rc = home_lock(&h, 1) ? make_files(&h, opt, out, err)
                          : PGS__OPEN_AGAIN; /* locked: by a sweeper, who finds it empty */
    if (rc < 0) remove_files(&h);
    home_close(&h);
    return rc;
}

/* --- where ------------------------------------------------------------------------------------------------------------------------- */
static bool usable_base(const char *base, bool in_memory)
{
    char fs[32];
    enum pgs__fs_kind kind = PGS__FS_NETWORK;
    if (!base || base[0] != '/' || strlen(base) > PGS__ANONYMOUS_BASE_MAX) return false;
    if (faccessat(AT_FDCWD, base, W_OK | X_OK, AT_EACCESS) < 0) return false;
    int fd = pgs__file_ops->open(base, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return false;
    bool ok = pgs__fs_kind(fd, &kind, fs) == 0 && (in_memory ? kind == PGS__FS_TMPFS : kind != PGS__FS_NETWORK);
    pgs__file_ops->close(fd);
    return ok;
}

int pgs__anonymous_dir_make(const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err)
{
    const char *const bases[] = {"/dev/shm", secure_getenv("TMPDIR"), "/tmp"};
    struct pgs_error e = {0};
    for (size_t i = 0; i < PGS_ARRAY_LEN(bases); i++) {
        if (!usable_base(bases[i], i == 0)) continue;
        e = (struct pgs_error){0};
        sweep(bases[i]);
        int rc = PGS__OPEN_AGAIN;
        for (int n = 0; n < MAKE_TRIES && rc == PGS__OPEN_AGAIN; n++) rc = make_one(bases[i], opt, out, &e);
        if (rc == 0) return 0;
    }
    if (e.code) {
        if (err) *err = e;
        return -e.code;
    }
    return pgs__fail(
        err, PGS_ENOTSUP,
        "anonymous stores need /proc/self/fd, or one of /dev/shm (in memory), $TMPDIR and /tmp to write in: "
        "give a path");
}

/* --- joining --------------------------------------------------------------------------------------------------------------------------- */
/* Under the flock: the files cannot go, and our slot is locked before anybody looks again. */
static int join_files(struct home *h, struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__ctl ctl = {.fd = -1};
    struct pgs__super super;
    bool fresh = false;
    int fd = pgs__file_ops->openat(h->fd, PGS__PAGES_NAME, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot open the anonymous store in %s", h->path);
    int rc = wrap(h, fd, &pf, err);
    if (rc) return rc;
    rc = pgs__super_read(&pf, &super, false, err);
    if (rc == 0 && memcmp(super.uuid, h->uuid, sizeof super.uuid) != 0)
        rc = pgs__fail(err, PGS_ESTALE, "%s holds another store", h->path);
    fd = rc ? -1 : pgs__file_ops->openat(h->fd, PGS__CONTROL_NAME, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (rc == 0 && fd < 0) rc = pgs__fail_os(err, -fd, "cannot open the anonymous store in %s", h->path);
    if (rc == 0) rc = pgs__ctl_map(&ctl, fd, true, pf.uuid, pf.ino, &fresh, err);
    if (rc == 0 && fresh) rc = pgs__fail(err, PGS_ESTALE, "%s was left by an earlier boot", h->path);
    if (rc && fd >= 0) pgs__file_ops->close(fd);
    if (rc == 0) rc = pgs__session_make(&pf, &ctl, super.created_ns, false, NULL, out, err);
    if (rc == 0) return 0;
    pgs__ctl_unmap(&ctl);
    pgs__pagefile_fini(&pf);
    return rc;
}

int pgs__anonymous_dir_join(const char *base, size_t base_len, const uint8_t uuid[16], const struct pgs_options *opt,
                            struct pgs__session **out, struct pgs_error *err)
{
    struct home h;
    home_name(&h, base, base_len, uuid);
    int rc = home_open(&h);
    if (rc == -ENOENT) return pgs__fail(err, PGS_ENOENT, "the anonymous store is gone: its last process has ended");
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot open the anonymous store in %s", h.path);
    struct pgs__opening o = {.opt = opt, .path = h.path, .dir_fd = h.fd};
    rc = pgs__open_lock(&o, err);
    if (rc == 0) rc = join_files(&h, out, err);
    home_close(&h);
    return rc;
}
