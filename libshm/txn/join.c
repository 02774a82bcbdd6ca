/* Pagestone | txn/join — finding, mapping, completing or rebuilding the control file of an existing store.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     what lies there                                  what is done                              under the open lock
 *     of this boot, ready, ours                        mapped                                    no
 *     of this boot, marked replaced, but "pages" is    the replacement died before its renames:  yes
 *       still ours                                     the mark is taken back
 *     names another page file, which is "pages.new"    the replacement's second rename           yes
 *     names another page file, which is nowhere        rebuilt in place                          yes
 *     of another boot, or never finished               rebuilt in place from the superblock      yes
 *     missing                                          rebuilt as a new file                     yes
 *     poisoned, and nobody has the store open          rebuilt from what the disk really has     yes
 *
 * Rebuilding forgets what only the control file knew, so outside of a new boot it needs that nobody lives: every process that has the store open holds a lock on the
 * page file, and those are asked.
 *
 * Readers without write permission rebuild nothing: they make a control file of their own in memory and pin its one generation for good.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"

#define CONTROL_NEW "control.new"
#define PAGES_NEW "pages.new"

/* --- names in the directory --------------------------------------------------------------------------------------------- */
bool pgs__is_named(int dir_fd, const struct pgs__pagefile *pf)
{
    struct stat st;
    int fd = pgs__file_ops->openat(dir_fd, PGS__PAGES_NAME, O_RDONLY, 0);
    if (fd < 0) return false;
    bool same = pgs__file_ops->fstat(fd, &st) == 0 && (uint64_t)st.st_dev == pf->dev && (uint64_t)st.st_ino == pf->ino;
    pgs__file_ops->close(fd);
    return same;
}

/* 16 bytes at `off` of a file that begins with `magic`. */
static bool uuid_in(int dir_fd, const char *name, uint64_t magic, size_t off, uint8_t uuid[16], uint64_t *ino)
{
    uint64_t got = 0;
    struct stat st;
    int fd = pgs__file_ops->openat(dir_fd, name, O_RDONLY, 0);
    if (fd < 0) return false;
    bool ok = pgs__file_ops->fstat(fd, &st) == 0 && pgs__pread_full(fd, &got, sizeof got, 0) == 0 && got == magic &&
              pgs__pread_full(fd, uuid, 16, off) == 0;
    if (ok && ino) *ino = (uint64_t)st.st_ino;
    pgs__file_ops->close(fd);
    return ok;
}

/* Both were written completely before the first rename, so a control file that names pages.new proves it whole. */
int pgs__finish_rename(int dir_fd)
{
    uint8_t control[16], pages[16];
    if (!uuid_in(dir_fd, PAGES_NEW, PGS__SUPER_MAGIC, offsetof(struct pgs__super, uuid), pages, NULL)) return 0;
    if (!uuid_in(dir_fd, PGS__CONTROL_NAME, PGS__CONTROL_MAGIC, offsetof(struct pgs__control, uuid), control, NULL))
        return 0;
    if (memcmp(control, pages, 16) != 0) return 0;
    return pgs__file_ops->renameat(dir_fd, PAGES_NEW, PGS__PAGES_NAME) == 0;
}

/* --- rebuilding ------------------------------------------------------------------------------------------------------------ */
/* May the newest superblock be believed? */
static int trust(const struct pgs__pagefile *pf, const struct pgs__super *super, struct pgs_error *err)
{
    uint8_t boot_id[16];
    if (pgs__boot_id(boot_id)) return pgs__fail(err, PGS_EIO, "cannot tell this boot from another");
    bool weak = pgs__on_disk(pf) && (super->flags & PGS__SUPER_WEAK);
    if (!weak || memcmp(boot_id, super->boot_id, 16) == 0) return 0;
    return pgs__fail_corrupt(
        err, "the store",
        "the machine went down while this store with durability \"none\" was open: it may be torn; "
        "restore a copy, or create it anew with mode \"w\"");
}

/* 0: nobody who could know more than the superblock. Of this boot also readers count; at the first opening after a boot none can. */
static int must_be_alone(const struct pgs__pagefile *pf, bool same_boot, struct pgs_error *err)
{
    uint64_t at, lo = same_boot ? PGS__LOCK_META(0) : PGS__LOCK_SLOT(0);
    int rc = pgs__ofd_first(pf->fd, lo, PGS__LOCK_SLOT(PGS__N_SLOTS), &at);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot ask who has the store open");
    if (rc == 0) return 0;
    return pgs__fail(
        err, PGS_ELOCKED,
        "the control file of the store is missing, damaged or of another build, and other processes have the "
        "store open: end them, then open it again");
}

static int rebuild(struct pgs__pagefile *pf, int fd, bool same_boot, bool direct, struct pgs__ctl *ctl,
                   struct pgs_error *err)
{
    struct pgs__super super;
    int rc = must_be_alone(pf, same_boot, err);
    if (rc == 0) rc = pgs__super_read(pf, &super, direct, err);
    if (rc == 0) rc = trust(pf, &super, err);
    PGS_KILL_POINT("rebuild");
    return rc ? rc : pgs__control_fill(ctl, fd, pf, &super, err);
}

/* As a new file, which gets its name when it is finished. */
static int rebuild_missing(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl,
                           struct pgs_error *err)
{
    (void)pgs__file_ops->unlinkat(o->dir_fd, CONTROL_NEW);
    int fd = pgs__file_ops->openat(o->dir_fd, CONTROL_NEW, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot create %s/" PGS__CONTROL_NAME, o->path);
    int rc = rebuild(pf, fd, true, false, ctl, err);
    if (rc) {
        pgs__file_ops->close(fd);
        return rc;
    }
    rc = pgs__file_ops->renameat(o->dir_fd, CONTROL_NEW, PGS__CONTROL_NAME);
    if (rc == 0) return 0;
    pgs__ctl_unmap(ctl);
    return pgs__fail_os(err, -rc, "cannot create %s/" PGS__CONTROL_NAME, o->path);
}

/* --- with write permission ------------------------------------------------------------------------------------------------------ */
/* Everything that needs the open lock. Looks again: whoever had it may have done the work. */
static int join_locked(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl, struct pgs_error *err)
{
    bool fresh = false;
    struct pgs_error e = {0};
    if (pgs__finish_rename(o->dir_fd) || !pgs__is_named(o->dir_fd, pf)) return PGS__OPEN_AGAIN;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__CONTROL_NAME, O_RDWR, 0);
    if (fd == -ENOENT) return rebuild_missing(o, pf, ctl, err);
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot open %s/" PGS__CONTROL_NAME, o->path);
    int rc = pgs__ctl_map(ctl, fd, true, pf->uuid, pf->ino, &fresh, &e);
    if (rc == 0 && !fresh) {
        uint64_t state = atomic_load(&ctl->c->state);
        if (state == 2) atomic_store(&ctl->c->state, 1); /* replaced by nothing: "pages" is still ours */
        bool poisoned = atomic_load(&ctl->c->flags) & PGS__CTL_POISONED;
        if (state != 0 && !poisoned) return 0;
        if (poisoned && must_be_alone(pf, true, NULL)) return 0; /* to read with the others */
        struct pgs__ctl old = *ctl;
        old.fd = -1; /* the new one's, or closed below */
        *ctl = (struct pgs__ctl){.fd = -1};
        rc = rebuild(pf, fd, true, poisoned, ctl, err);
        pgs__ctl_unmap(&old);
    } else if (rc == 0 || rc == -PGS_ESTALE || rc == -PGS_EFORMAT || rc == -PGS_ECORRUPT) {
        rc = rebuild(pf, fd, rc != 0, false, ctl, err);
    } else {
        if (err) *err = e;
    }
    if (rc) pgs__file_ops->close(fd);
    return rc;
}

static int join_writer(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl, struct pgs_error *err)
{
    bool fresh = false;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__CONTROL_NAME, O_RDWR, 0);
    if (fd >= 0) {
        if (pgs__ctl_map(ctl, fd, true, pf->uuid, pf->ino, &fresh, NULL) != 0 || fresh) {
            pgs__file_ops->close(fd);
        } else {
            if (atomic_load(&ctl->c->state) == 1 && !(atomic_load(&ctl->c->flags) & PGS__CTL_POISONED)) return 0;
            pgs__ctl_unmap(ctl);
        }
    }
    int rc = pgs__open_lock(o, err);
    if (rc) return rc;
    rc = join_locked(o, pf, ctl, err);
    pgs__open_unlock(o);
    return rc;
}

/* --- without ------------------------------------------------------------------------------------------------------------------------ */
static int join_reader(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl, bool *frozen,
                       struct pgs_error *err)
{
    struct pgs__super super;
    bool fresh = false;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__CONTROL_NAME, O_RDONLY, 0);
    if (fd >= 0) {
        int rc = pgs__ctl_map(ctl, fd, false, pf->uuid, pf->ino, &fresh, NULL);
        if (rc == 0 && !fresh && atomic_load(&ctl->c->state) != 0) return 0;
        if (rc == 0 && !fresh)
            pgs__ctl_unmap(ctl);
        else
            pgs__file_ops->close(fd);
        if (rc == -PGS_ESTALE && !pgs__is_named(o->dir_fd, pf)) return PGS__OPEN_AGAIN;
    } else if (fd != -ENOENT) {
        return pgs__fail_os(err, -fd, "cannot open %s/" PGS__CONTROL_NAME, o->path);
    }
    int rc = must_be_alone(pf, false, err);
    if (rc == 0) rc = pgs__super_read(pf, &super, false, err);
    if (rc == 0) rc = trust(pf, &super, err);
    if (rc) return rc;
    fd = pgs__file_ops->memfd("pagestone-control");
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot make a control file in memory");
    rc = pgs__control_fill(ctl, fd, pf, &super, err);
    if (rc) pgs__file_ops->close(fd);
    *frozen = rc == 0;
    return rc;
}

/* Whoever makes a control file anew found it missing or not fit for use first, and asks then who lives. So if we have our lock, and after that still find the file in its place and
 * fit, all who come later see us; else it may have been made anew while nobody could know of us. */
bool pgs__join_holds(const struct pgs__opening *o, struct pgs__session *s)
{
    struct stat st;
    int fd = pgs__file_ops->openat(o->dir_fd, PGS__CONTROL_NAME, O_RDONLY, 0);
    if (fd < 0) return false;
    bool same =
        pgs__file_ops->fstat(fd, &st) == 0 && (uint64_t)st.st_dev == s->ctl.dev && (uint64_t)st.st_ino == s->ctl.ino;
    pgs__file_ops->close(fd);
    if (!same || atomic_load(&s->ctl.c->state) == 0) return false;
    if (!s->writable) return true; /* replaced, but still in its place: readable */
    return atomic_load(&s->ctl.c->state) == 1 && atomic_load(&pgs__ctl_slot(&s->ctl, s->slot)->tag) == s->tag &&
           atomic_load(&s->ctl.c->n_slots_used) > s->slot;
}

int pgs__join(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl, bool *frozen,
              struct pgs_error *err)
{
    *frozen = false;
    return pf->writable ? join_writer(o, pf, ctl, err) : join_reader(o, pf, ctl, frozen, err);
}
