/* Pagestone | txn/open — opening, creating and replacing a store in a directory.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Creation and replacement (mode "w"), under flock of the directory:
 *
 *     step                                             a crash here leaves
 *     pages.new, control.new written, on disk synced   an old store as it was, or no store; the next creator starts anew
 *     old control: state = 2 (replaced)                commits of the old store refused; the next opener takes the mark back
 *     rename control.new -> control                    the next opener finishes: control names pages.new (join.c)
 *     rename pages.new -> pages                        done; directories synced
 *
 * The mark comes first, so that no commit of an old session succeeds into a file that has lost its name. Foreign files are never deleted: a directory
 * without "pages" becomes a store only when it holds nothing else.
 *
 * Reading needs no lock here. A file that is renamed over between our looking at it and mapping its control file shows as a control file that names another
 * page file; then everything begins anew, a few times.
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

#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"

#define CONTROL_NEW "control.new"
#define PAGES_NEW "pages.new"
#define TRIES 20

/* --- the open lock ----------------------------------------------------------------------------------------------------- */
int pgs__open_lock(struct pgs__opening *o, struct pgs_error *err)
{
    if (o->locked) return 0;
    int64_t timeout_ns = pgs__timeout_of(o->opt);
    uint64_t start = pgs__clock_mono_ns();
    for (long pause_ns = 1000000;; pause_ns = pause_ns < 20000000 ? pause_ns * 2 : pause_ns) {
        if (flock(o->dir_fd, LOCK_EX | LOCK_NB) == 0) break;
        if (errno != EWOULDBLOCK && errno != EINTR) return pgs__fail_os(err, errno, "cannot lock %s", o->path);
        if (o->opt->interrupted && o->opt->interrupted(o->opt->interrupted_ctx))
            return pgs__fail(err, PGS_EINTR, "interrupted while opening %s", o->path);
        if (timeout_ns >= 0 && pgs__clock_mono_ns() - start >= (uint64_t)timeout_ns)
            return pgs__fail(err, PGS_ELOCKED, "another process is creating or replacing %s; raise timeout=", o->path);
        nanosleep(&(struct timespec){.tv_nsec = pause_ns}, NULL);
    }
    o->locked = true;
    return 0;
}

void pgs__open_unlock(struct pgs__opening *o)
{
    if (o->locked) flock(o->dir_fd, LOCK_UN); /* said aloud: a child forked meanwhile has the descriptor too */
    o->locked = false;
}

/* --- the directory -------------------------------------------------------------------------------------------------------- */
static bool may_create(enum pgs_mode mode)
{
    return mode == PGS_MODE_A || mode == PGS_MODE_W || mode == PGS_MODE_X;
}

/* Whatever the path itself names, links not followed. */
static bool look(const char *path, struct stat *st)
{
    int fd = pgs__file_ops->open(path, O_PATH | O_NOFOLLOW, 0);
    bool found = fd >= 0 && pgs__file_ops->fstat(fd, st) == 0;
    if (fd >= 0) pgs__file_ops->close(fd);
    return found;
}

static bool is_link(const char *path)
{
    struct stat st;
    return look(path, &st) && S_ISLNK(st.st_mode);
}

static bool parent_exists(const char *path, int n)
{
    char parent[4096];
    struct stat st;
    if (n >= (int)sizeof parent) return false;
    snprintf(parent, sizeof parent, "%.*s", n ? n : 1, n ? path : path[0] == '/' ? "/" : ".");
    return look(parent, &st) && S_ISDIR(st.st_mode);
}

/* open() found nothing behind the link and mkdir() the link itself. */
static int fail_link(struct pgs__opening *o, struct pgs_error *err)
{
    if (o->mode == PGS_MODE_X) return pgs__fail(err, PGS_EEXIST, "%s exists already (mode \"x\"): a link", o->path);
    return pgs__fail(err, PGS_ENOENT, "%s is a link to a directory that does not exist: create that or remove the link",
                     o->path);
}

static int make_dir(struct pgs__opening *o, struct pgs_error *err)
{
    int rc = pgs__file_ops->mkdir(o->path, 0700);
    if (rc == 0) o->made_dir = true;
    if (rc == -EEXIST && is_link(o->path)) return fail_link(o, err);
    if (rc == 0 || rc == -EEXIST) return PGS__OPEN_AGAIN;
    if (rc != -ENOENT) return pgs__fail_os(err, -rc, "cannot create the store's directory %s", o->path);
    const char *slash = strrchr(o->path, '/');
    int n = slash ? (int)(slash - o->path) : 0;
    if (parent_exists(o->path, n))
        return pgs__fail(err, PGS_ENOENT,
                         "the file system at %.*s lets nobody create a directory: choose another place", n ? n : 1,
                         n ? o->path : "/");
    return pgs__fail(err, PGS_ENOENT, "no directory %.*s in which %s could be created", n ? n : 1, n ? o->path : ".",
                     o->path);
}

static int open_dir(struct pgs__opening *o, struct pgs_error *err)
{
    int fd = pgs__file_ops->open(o->path, O_RDONLY | O_DIRECTORY, 0);
    if (fd >= 0) {
        o->dir_fd = fd;
        return 0;
    }
    if (fd == -ENOENT && may_create(o->mode)) return make_dir(o, err);
    if (fd == -ENOENT) return pgs__fail(err, PGS_ENOENT, "no store at %s", o->path);
    struct stat st;
    if (fd == -ENOTDIR && o->mode == PGS_MODE_X && look(o->path, &st))
        return pgs__fail(err, PGS_EEXIST, "%s exists already (mode \"x\")", o->path);
    if (fd == -ENOTDIR) return pgs__fail(err, PGS_ENOTSTORE, "%s is not a directory, so no store", o->path);
    return pgs__fail_os(err, -fd, "cannot open the directory %s", o->path);
}

static int check_fs(struct pgs__opening *o, struct pgs_error *err)
{
    enum pgs__fs_kind kind = PGS__FS_DISK;
    char name[32] = "";
    int rc = pgs__fs_kind(o->dir_fd, &kind, name);
    if (rc == -ENOTSUP || (rc == 0 && kind == PGS__FS_NETWORK))
        return pgs__fail(err, PGS_ENOTSUP, "%s is on %s: stores need a local file system or memory", o->path, name);
    return rc ? pgs__fail_os(err, -rc, "cannot find out the file system of %s", o->path) : 0;
}

static bool our_leftover(const char *name)
{
    return strcmp(name, PAGES_NEW) == 0 || strcmp(name, CONTROL_NEW) == 0 || strcmp(name, PGS__CONTROL_NAME) == 0 ||
           strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* 1: nothing but what an interrupted creation of ours leaves. */
static int is_vacant(struct pgs__opening *o, struct pgs_error *err)
{
    int fd = pgs__file_ops->openat(o->dir_fd, ".", O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot list %s", o->path);
    DIR *d = fdopendir(fd);
    if (!d) {
        pgs__file_ops->close(fd);
        return pgs__fail(err, PGS_ENOMEM, "no memory to list %s", o->path);
    }
    int vacant = 1;
    for (const struct dirent *e; vacant && (e = readdir(d));) vacant = our_leftover(e->d_name);
    closedir(d);
    return vacant;
}

static int sync_dirs(struct pgs__opening *o, struct pgs_error *err)
{
    int rc = pgs__file_ops->fsync(o->dir_fd);
    int parent = rc < 0 ? rc : pgs__file_ops->openat(o->dir_fd, "..", O_RDONLY | O_DIRECTORY, 0);
    if (parent >= 0) {
        rc = pgs__file_ops->fsync(parent);
        pgs__file_ops->close(parent);
    } else if (rc == 0 && parent != -EACCES) { /* a parent that we may not read was made durable by others */
        rc = parent;
    }
    return rc < 0 ? pgs__fail_os(err, -rc, "cannot make the directory %s durable", o->path) : 0;
}

/* --- wrapping a page file ------------------------------------------------------------------------------------------------------ */
/* Owns fd in any case. */
static int wrap(struct pgs__opening *o, int fd, bool writable, struct pgs__pagefile *pf, struct pgs_error *err)
{
    char *real = realpath(o->path, NULL);
    int dir_fd = pgs__file_ops->openat(o->dir_fd, ".", O_RDONLY | O_DIRECTORY, 0);
    int rc = dir_fd < 0 ? pgs__fail_os(err, -dir_fd, "cannot open the directory %s", o->path) : 0;
    if (rc == 0) rc = pgs__pagefile_init(pf, fd, dir_fd, real ? real : o->path, writable, err);
    free(real); /* libc's */
    if (rc == 0) return 0;
    if (dir_fd >= 0) pgs__file_ops->close(dir_fd);
    pgs__file_ops->close(fd);
    return rc;
}

/* --- creating ----------------------------------------------------------------------------------------------------------------------- */
static int create_files(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl,
                        struct pgs__super *super, struct pgs_error *err)
{
    (void)pgs__file_ops->unlinkat(o->dir_fd, PAGES_NEW);
    (void)pgs__file_ops->unlinkat(o->dir_fd, CONTROL_NEW);
    int fd = pgs__file_ops->openat(o->dir_fd, PAGES_NEW, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot create a store in %s", o->path);
    int rc = wrap(o, fd, true, pf, err);
    if (rc) return rc;
    rc = pgs__found(pf, o->opt, super, err);
    int control = -1;
    if (rc == 0) {
        control = pgs__file_ops->openat(o->dir_fd, CONTROL_NEW, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (control < 0) rc = pgs__fail_os(err, -control, "cannot create a store in %s", o->path);
    }
    if (rc == 0) rc = pgs__control_fill(ctl, control, pf, super, err);
    if (rc == 0) return 0;
    if (control >= 0) pgs__file_ops->close(control);
    pgs__pagefile_fini(pf);
    (void)pgs__file_ops->unlinkat(o->dir_fd, PAGES_NEW);
    (void)pgs__file_ops->unlinkat(o->dir_fd, CONTROL_NEW);
    return rc;
}

/* The old store's control file, if there is one that can be believed: its commits are refused from the mark on. */
static void mark_replaced(struct pgs__ctl *old, uint64_t state)
{
    if (old->c) atomic_store(&old->c->state, state);
}

static int rename_both(struct pgs__opening *o, const struct pgs__pagefile *pf, struct pgs__ctl *old,
                       struct pgs_error *err)
{
    PGS_KILL_POINT("create_written");
    mark_replaced(old, 2);
    PGS_KILL_POINT("create_marked");
    int rc = pgs__file_ops->renameat(o->dir_fd, CONTROL_NEW, PGS__CONTROL_NAME);
    if (rc < 0) mark_replaced(old, 1);
    PGS_KILL_POINT("create_control");
    if (rc == 0) rc = pgs__file_ops->renameat(o->dir_fd, PAGES_NEW, PGS__PAGES_NAME);
    PGS_KILL_POINT("create_pages");
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot put the new store in place in %s", o->path);
    return pgs__on_disk(pf) ? sync_dirs(o, err) : 0;
}

static int create(struct pgs__opening *o, struct pgs__ctl *old, struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__ctl ctl;
    struct pgs__super super;
    int rc = create_files(o, &pf, &ctl, &super, err);
    if (rc) return rc;
    rc = rename_both(o, &pf, old, err);
    if (rc == 0) rc = pgs__session_make(&pf, &ctl, super.created_ns, false, NULL, out, err);
    if (rc == 0) return 0;
    pgs__ctl_unmap(&ctl);
    pgs__pagefile_fini(&pf);
    return rc;
}

/* Modes a, w, x in a directory without "pages": under the lock, so that one creates and the others then open. */
static int create_here(struct pgs__opening *o, struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__ctl none = {.fd = -1};
    int rc = pgs__open_lock(o, err);
    if (rc) return rc;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__PAGES_NAME, O_RDONLY, 0);
    if (fd >= 0) {
        pgs__file_ops->close(fd);
        return PGS__OPEN_AGAIN;
    }
    if (o->mode == PGS_MODE_A && pgs__finish_rename(o->dir_fd)) return PGS__OPEN_AGAIN;
    rc = is_vacant(o, err);
    if (rc < 0) return rc;
    if (rc == 0)
        return pgs__fail(err, PGS_ENOTSTORE,
                         "%s holds other files and no store: choose a new name or an empty directory", o->path);
    return create(o, &none, out, err);
}

/* --- replacing ------------------------------------------------------------------------------------------------------------------------- */
/* Only a store may be replaced, damaged or not; anything else called "pages" is somebody's file. */
static int check_replaceable(struct pgs__opening *o, int fd, uint8_t uuid[16], uint64_t *ino, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__super super;
    int rc = wrap(o, fd, true, &pf, err);
    if (rc) return rc;
    struct pgs_error e = {0};
    rc = pgs__super_read(&pf, &super, false, &e);
    *ino = pf.ino;
    memset(uuid, 0, 16);
    if (rc == 0) memcpy(uuid, super.uuid, 16);
    pgs__pagefile_fini(&pf);
    if (rc == 0 || rc == -PGS_ECORRUPT) return 0;
    if (err) *err = e;
    return rc;
}

static int replace(struct pgs__opening *o, struct pgs__session **out, struct pgs_error *err)
{
    uint8_t uuid[16];
    uint64_t ino;
    bool fresh = false;
    struct pgs__ctl old = {.fd = -1};
    int rc = pgs__open_lock(o, err);
    if (rc) return rc;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__PAGES_NAME, O_RDWR, 0);
    if (fd == -ENOENT) return create_here(o, out, err);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot replace the store at %s", o->path);
    rc = check_replaceable(o, fd, uuid, &ino, err);
    if (rc) return rc;
    int control = pgs__file_ops->openat(o->dir_fd, PGS__CONTROL_NAME, O_RDWR, 0);
    if (control >= 0 && (pgs__ctl_map(&old, control, true, uuid, ino, &fresh, NULL) != 0 || fresh)) {
        pgs__file_ops->close(control);
        old = (struct pgs__ctl){.fd = -1};
    }
    rc = create(o, &old, out, err);
    pgs__ctl_unmap(&old);
    return rc;
}

/* --- opening ------------------------------------------------------------------------------------------------------------------------------ */
/* A descriptor of "pages" with as much permission as there is and the mode needs. fd, or -errno. */
static int open_pages(struct pgs__opening *o, bool *writable)
{
    *writable = true;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__PAGES_NAME, O_RDWR, 0);
    if (o->mode != PGS_MODE_R || (fd != -EACCES && fd != -EPERM && fd != -EROFS)) return fd;
    *writable = false;
    return pgs__file_ops->openat(o->dir_fd, PGS__PAGES_NAME, O_RDONLY, 0);
}

/* May we write the control file as well? Otherwise a reader is all we can be. */
static bool control_writable(struct pgs__opening *o)
{
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__CONTROL_NAME, O_RDWR, 0);
    if (fd >= 0) pgs__file_ops->close(fd);
    if (fd == -ENOENT) return faccessat(o->dir_fd, ".", W_OK, AT_EACCESS) == 0; /* it would have to be made */
    return fd != -EACCES && fd != -EPERM && fd != -EROFS;
}

static int attach(struct pgs__opening *o, int fd, bool writable, struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__super super;
    struct pgs__ctl ctl = {.fd = -1};
    bool frozen;
    int rc = wrap(o, fd, writable, &pf, err);
    if (rc) return rc;
    rc = pgs__super_read(&pf, &super, false, err);
    if (rc == 0) {
        memcpy(pf.uuid, super.uuid, sizeof pf.uuid);
        rc = pgs__join(o, &pf, &ctl, &frozen, err);
    }
    PGS_KILL_POINT("joined");
    if (rc == 0) rc = pgs__session_make(&pf, &ctl, super.created_ns, frozen, o, out, err);
    if (rc == 0) return 0;
    pgs__ctl_unmap(&ctl);
    pgs__pagefile_fini(&pf);
    return rc;
}

/* Marked as replaced, but the file still has its name: the replacement died before its renames. */
static int unmark(struct pgs__opening *o, struct pgs__session *s, struct pgs_error *err)
{
    int rc = pgs__open_lock(o, err);
    if (rc) return rc;
    if (pgs__finish_rename(o->dir_fd) || !pgs__is_named(o->dir_fd, &s->pf)) return PGS__OPEN_AGAIN;
    mark_replaced(&s->ctl, 1);
    return 0;
}

static int open_existing(struct pgs__opening *o, struct pgs__session **out, struct pgs_error *err)
{
    struct stat st;
    bool writable;
    int fd = open_pages(o, &writable);
    if (fd == -ENOENT && may_create(o->mode)) return create_here(o, out, err);
    if (fd == -ENOENT) {
        if (pgs__open_lock(o, NULL) == 0 && pgs__finish_rename(o->dir_fd)) return PGS__OPEN_AGAIN;
        return pgs__fail(err, PGS_ENOTSTORE, "%s is a directory, but holds no store", o->path);
    }
    if (fd < 0)
        return pgs__fail_os(err, -fd, "cannot open the store at %s%s", o->path,
                            fd == -EACCES || fd == -EROFS ? " for writing; mode \"r\" may work" : "");
    if (o->mode == PGS_MODE_R && writable) writable = control_writable(o);
    int rc = pgs__file_ops->fstat(fd, &st);
    if (rc == 0) *out = pgs__session_find((uint64_t)st.st_dev, (uint64_t)st.st_ino, writable);
    if (rc == 0 && !*out) return attach(o, fd, writable, out, err);
    pgs__file_ops->close(fd);
    if (rc) return pgs__fail_os(err, -rc, "cannot look at the store at %s", o->path);
    if (writable && atomic_load(&(*out)->ctl.c->state) == 2) rc = unmark(o, *out, err);
    if (rc) pgs__session_unref(*out);
    return rc;
}

static int open_once(struct pgs__opening *o, struct pgs__session **out, struct pgs_error *err)
{
    int rc = open_dir(o, err);
    if (rc) return rc;
    rc = check_fs(o, err);
    if (rc == 0) switch (o->mode) {
        case PGS_MODE_X:
            rc = o->made_dir ? create_here(o, out, err)
                             : pgs__fail(err, PGS_EEXIST, "%s exists already (mode \"x\")", o->path);
            if (rc == PGS__OPEN_AGAIN) rc = pgs__fail(err, PGS_EEXIST, "%s was created meanwhile", o->path);
            break;
        case PGS_MODE_W:
            rc = replace(o, out, err);
            break;
        default:
            rc = open_existing(o, out, err);
        }
    pgs__open_unlock(o);
    pgs__file_ops->close(o->dir_fd);
    o->dir_fd = -1;
    return rc;
}

static int check_system(struct pgs_error *err)
{
    long page = sysconf(_SC_PAGESIZE);
    if (page != PGS_PAGE_SIZE)
        return pgs__fail(err, PGS_ENOTSUP, "this kernel has pages of %ld bytes; Pagestone needs 4096", page);
    if (!pgs__cap(PGS__CAP_OFD))
        return pgs__fail(err, PGS_ENOTSUP, "this system has no open-file-description locks (%s)",
                         pgs__cap_reason(PGS__CAP_OFD));
    return 0;
}

int pgs__session_open(const char *path, const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err)
{
    static const struct pgs_options defaults = {.mode = PGS_MODE_A};
    struct pgs__opening o = {.opt = opt ? opt : &defaults, .path = path, .dir_fd = -1};
    o.mode = o.opt->mode ? o.opt->mode : PGS_MODE_A;
    if (!path || !*path) return pgs__fail(err, PGS_EINVAL, "the path of a store is empty");
    int rc = check_system(err);
    if (rc) return rc;
    struct pgs__session *s = NULL;
    for (int i = 0; i < TRIES; i++) {
        rc = open_once(&o, &s, err);
        if (rc != PGS__OPEN_AGAIN) break;
    }
    if (rc == PGS__OPEN_AGAIN) return pgs__fail(err, PGS_ELOCKED, "%s keeps changing: it is being replaced", path);
    if (rc == 0) *out = s;
    return rc;
}
