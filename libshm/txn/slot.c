/* Pagestone | txn/slot — a process's place in the control file: claiming, releasing, sweeping, listing.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A slot belongs to the process that holds the OFD lock of its byte on the page file; a mapping keeps that lock (platform/ofd.c), so it lives as long as
 * the process, whatever descriptors are closed, and falls after its last thread has stopped.
 *
 *     state        words in the slot                 lock     who changes it
 *     free         tag 0, no pins                    nobody
 *     claimed      tag = index, incarnation          process  pgs__slot_claim
 *     dead         as its process left it            nobody   the kernel
 *     being swept  pins and chunks go, then tag 0    sweeper  clean_locked; killed in the middle: dead again
 *
 * Only the lock tells alive from dead: no pid is looked at, no time-out guessed. Whoever got the lock of a slot with a tag has a dead process's
 * slot in hand (I4). One description does not conflict with itself, so sweepers of one process take turns (pgs__sweep_mx), each with a fresh one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/procfd.h"
#include "libshm/txn/session_impl.h"

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#endif
#define SWEEP_EVERY_NS 1000000000u

struct pgs__mutex pgs__sweep_mx = {PTHREAD_MUTEX_INITIALIZER, PGS__RANK_LEAF};

/* --- descriptions of the page file ------------------------------------------------------------------------------------- */
bool pgs__fd_is_pages(const struct pgs__session *s, int fd)
{
    struct stat st;
    return fd >= 0 && pgs__file_ops->fstat(fd, &st) == 0 && (uint64_t)st.st_dev == s->pf.dev &&
           (uint64_t)st.st_ino == s->pf.ino;
}

static int checked(struct pgs__session *s, int fd)
{
    if (fd < 0) return fd;
    if (pgs__fd_is_pages(s, fd)) return fd;
    pgs__file_ops->close(fd);
    return -ESTALE;
}

/* "<directory>/pages" without stdio. */
static bool pages_path(const struct pgs__session *s, char *out, size_t size)
{
    size_t n = s->pf.path ? strlen(s->pf.path) : 0;
    if (n == 0 || n + sizeof "/" PGS__PAGES_NAME > size) return false;
    memcpy(out, s->pf.path, n);
    memcpy(out + n, "/" PGS__PAGES_NAME, sizeof "/" PGS__PAGES_NAME);
    return true;
}

int pgs__reopen(struct pgs__session *s, int flags)
{
    char path[4200];
    int fd = -ENOENT;
    if (pgs__fd_is_pages(s, s->pf.fd) && pgs__cap(PGS__CAP_PROC_FD)) {
        pgs__proc_fd_path(path, s->pf.fd);
        fd = checked(s, pgs__file_ops->open(path, flags, 0));
        if (fd >= 0 || fd == -EMFILE || fd == -ENFILE) return fd;
    }
    if (s->pf.dir_fd >= 0) fd = checked(s, pgs__file_ops->openat(s->pf.dir_fd, PGS__PAGES_NAME, flags, 0));
    if (fd < 0 && pages_path(s, path, sizeof path)) fd = checked(s, pgs__file_ops->open(path, flags, 0));
    return fd;
}

int pgs__ofd_first(int fd, uint64_t lo, uint64_t hi, uint64_t *at)
{
    uint64_t found = hi;
    while (found > lo) { /* the kernel names any conflicting lock, not the lowest: look again below it */
        struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)lo, .l_len = (off_t)(found - lo)};
        int rc;
        do rc = fcntl(fd, F_OFD_GETLK, &l);
        while (rc < 0 && errno == EINTR);
        if (rc < 0) return -errno;
        if (l.l_type == F_UNLCK) break;
        found = pgs__max_u64((uint64_t)l.l_start, lo);
    }
    if (found == hi) return 0;
    *at = found;
    return 1;
}

int pgs__slots_alive(int fd)
{
    uint64_t at;
    return pgs__ofd_first(fd, PGS__LOCK_SLOT(0), PGS__LOCK_SLOT(PGS__N_SLOTS), &at);
}

/* --- cleaning a dead process's slot: its lock is held by the caller -------------------------------------------------------------- */
/* 0; or the slot stays as it is, dead and tagged, for a later sweep. */
static int clean_locked(struct pgs__session *s, uint32_t i)
{
    struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
    uint64_t tag = atomic_load(&slot->tag);
    if (tag && !PGS_PLANTED(9)) {
        uint64_t n_chunks = pgs__owner_end(&s->ctl); /* not the file's: claims come before it grows */
        /* reading a hole of the table allocates, and dies of SIGBUS on a full tmpfs */
        int rc = pgs__owner_reserve(&s->ctl, n_chunks, NULL);
        if (rc) return rc;
        pgs__owner_sweep(&s->ctl, n_chunks, tag);
    }
    PGS_KILL_POINT("in_sweep");
    uint32_t n = atomic_load(&slot->n_pins);
    if (n > PGS__MAX_PINS) n = PGS__MAX_PINS;
    for (uint32_t j = 0; j < n; j++) atomic_store(pgs__ctl_pin(&s->ctl, i, j), 0);
    for (uint32_t j = 0; j < PGS__SLOT_FAMILY; j++) atomic_store(&slot->family_meta[j], 0);
    atomic_store(&slot->n_family, 0);
    atomic_store(&slot->meta_pin, 0);
    atomic_store(&slot->n_pins, 0);
    atomic_store(&slot->fds, 0);
    atomic_store(&slot->image, 0);
    atomic_store(&slot->pid, 0);
    atomic_store(&slot->tag, 0); /* last: a sweeper that dies before leaves a dead slot */
    return 0;
}

/* --- claiming ------------------------------------------------------------------------------------------------------------------------ */
/* The lock of slot i, held by a mapping of a fresh description (as pgs__held_lock_take, but by pgs__reopen: the name may mean another file today). */
static int lock_slot(struct pgs__session *s, uint32_t i, bool dont_fork, struct pgs__held_lock *out)
{
    int fd = pgs__reopen(s, O_RDWR);
    if (fd < 0) return fd;
    int rc = pgs__ofd_lock(fd, PGS__LOCK_SLOT(i), true);
    if (rc == 0) {
        void *p = pgs__file_ops->map(fd, PGS__MAP_READ, NULL, PGS_PAGE_SIZE, 0, &rc);
        struct pgs__held_lock l = {rc == 0 ? p : NULL};
        if (rc == 0 && dont_fork) rc = pgs__held_lock_dontfork(&l);
        if (rc == 0)
            *out = l;
        else
            pgs__held_lock_drop(&l);
    }
    pgs__file_ops->close(fd);
    return rc;
}

/* n_slots_used ≥ i + 1, before anything of the slot is looked at by others. */
static void raise_used(struct pgs__ctl *ctl, uint32_t i)
{
    uint32_t seen = atomic_load(&ctl->c->n_slots_used);
    while (seen <= i && !atomic_compare_exchange_weak(&ctl->c->n_slots_used, &seen, i + 1)) {
    }
}

static int try_claim(struct pgs__session *s, uint32_t i, bool dont_fork, struct pgs__held_lock *lock)
{
    if (i >= PGS__SLOTS_RESERVED) {
        uint64_t off = PGS__SLOTS_OFFSET + (uint64_t)i * sizeof(struct pgs__slot);
        if (pgs__ctl_reserve(&s->ctl, off, sizeof(struct pgs__slot), NULL)) return -ENOSPC;
    }
    int rc = lock_slot(s, i, dont_fork, lock);
    if (rc) return rc;
    if (clean_locked(s, i)) {
        pgs__held_lock_drop(lock);
        return -EAGAIN; /* somebody's dead slot that cannot be cleaned now: another one, then */
    }
    return 0;
}

/* First free ones below the mark, then new ones, then those of dead processes. */
static int find_and_claim(struct pgs__session *s, bool dont_fork, struct pgs__held_lock *lock, uint32_t *slot)
{
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (int pass = 0; pass < 3; pass++) {
        uint32_t lo = pass == 1 ? used : 0, hi = pass == 1 ? PGS__N_SLOTS : used;
        for (uint32_t i = lo; i < hi; i++) {
            if (pass == 0 && atomic_load(&pgs__ctl_slot(&s->ctl, i)->tag) != 0) continue;
            int rc = try_claim(s, i, dont_fork, lock);
            if (rc == 0) *slot = i;
            if (rc != -EAGAIN) return rc;
        }
    }
    return -EAGAIN;
}

int pgs__slot_claim(struct pgs__session *s, bool dont_fork, uint32_t flags, struct pgs__held_lock *lock, uint32_t *slot,
                    uint64_t *tag)
{
    uint32_t i;
    int rc = find_and_claim(s, dont_fork, lock, &i);
    if (rc) return rc;
    raise_used(&s->ctl, i);
    struct pgs__slot *p = pgs__ctl_slot(&s->ctl, i);
    uint64_t incarnation = atomic_fetch_add(&p->incarnation, 1) + 1;
    p->start_ns = pgs__clock_real_ns();
    if (s->slot != PGS__NO_SLOT) /* a spare, or a child's: the same program */
        memcpy(p->command, pgs__ctl_slot(&s->ctl, s->slot)->command, sizeof p->command);
    else
        pgs__slot_name(p->command);
    atomic_store(&p->flags, flags);
    atomic_store(&p->image, 0);
    atomic_store(&p->fds, s->pf.anonymous ? (uint64_t)(uint32_t)s->pf.fd | (uint64_t)(uint32_t)s->ctl.fd << 32 : 0);
    atomic_store(&p->pid, (uint64_t)getpid());
    *slot = i;
    *tag = PGS__SLOT_TAG(i, incarnation);
    atomic_store(&p->tag, *tag);
    return 0;
}

void pgs__spare_refill(struct pgs__session *s)
{
    if (!s->writable || s->spare_slot != PGS__NO_SLOT) return;
    if (atomic_load(&s->ctl.c->n_slots_used) >= PGS__N_SLOTS / 2) return; /* slots are worth more to other processes */
    uint64_t tag;
    if (pgs__slot_claim(s, true, PGS__SLOT_SPARE, &s->spare_lock, &s->spare_slot, &tag)) s->spare_slot = PGS__NO_SLOT;
}

/* Ours, alive until the lock goes: no sweeper comes between. */
static void give_up(struct pgs__session *s, uint32_t *slot, struct pgs__held_lock *lock)
{
    if (*slot == PGS__NO_SLOT) return;
    clean_locked(s, *slot);
    pgs__held_lock_drop(lock);
    *slot = PGS__NO_SLOT;
}

void pgs__slot_release(struct pgs__session *s)
{
    pgs__mutex_lock(&s->pins_mx);
    give_up(s, &s->spare_slot, &s->spare_lock);
    if (s->family) { /* a relative lives in it, perhaps */
        pgs__held_lock_drop(&s->lock);
        s->slot = PGS__NO_SLOT;
    } else {
        give_up(s, &s->slot, &s->lock);
    }
    pgs__mutex_unlock(&s->pins_mx);
}

/* --- who am I, for people ---------------------------------------------------------------------------------------------------------------- */
static ssize_t slurp(const char *path, char *buf, size_t size)
{
    int fd = pgs__file_ops->open(path, O_RDONLY, 0);
    if (fd < 0) return fd;
    ssize_t n = pgs__file_ops->pread(fd, buf, size, 0);
    pgs__file_ops->close(fd);
    return n;
}

void pgs__slot_name(char command[96])
{
    char buf[512];
    size_t at = 0, from = 0;
    ssize_t got = slurp("/proc/self/cmdline", buf, sizeof buf);
    if (got <= 0) got = slurp("/proc/self/comm", buf, sizeof buf);
    if (got <= 0) { /* no /proc */
        got = (ssize_t)strnlen(program_invocation_short_name, sizeof buf);
        memcpy(buf, program_invocation_short_name, (size_t)got);
    }
    size_t n = (size_t)got;
    for (size_t i = 0; i < n && buf[i]; i++) /* of the program only its name */
        if (buf[i] == '/') from = i + 1;
    while (n > from && (buf[n - 1] == 0 || buf[n - 1] == '\n')) n--;
    for (size_t i = from; i < n && at < 95; i++) {
        char c = buf[i] ? buf[i] : ' ';
        command[at++] = c < ' ' || c > '~' ? '?' : c;
    }
    memset(command + at, 0, 96 - at);
}

/* --- sweeping --------------------------------------------------------------------------------------------------------------------------------- */
/* Own slots and those of living processes refuse the lock: nothing has to be known about them. */
static int sweep_with(struct pgs__session *s, int fd)
{
    int n = 0;
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used; i++) {
        if (atomic_load(&pgs__ctl_slot(&s->ctl, i)->tag) == 0) continue;
        if (pgs__ofd_lock(fd, PGS__LOCK_SLOT(i), true)) continue;
        if (atomic_load(&pgs__ctl_slot(&s->ctl, i)->tag) != 0 && clean_locked(s, i) == 0) n++;
        pgs__ofd_unlock(fd, PGS__LOCK_SLOT(i));
    }
    return n;
}

int pgs__sweep(struct pgs__session *s, bool force)
{
    if (!s->writable || pgs__session_lost()) return 0;
    uint64_t now = pgs__clock_boot_ns(), last = atomic_load(&s->last_sweep_ns);
    if (!force && now - last < SWEEP_EVERY_NS) return 0;
    if (!atomic_compare_exchange_strong(&s->last_sweep_ns, &last, now) && !force) return 0;
    int n = 0;
    pgs__mutex_lock(&s->pins_mx);
    pgs__spare_refill(s);
    pgs__mutex_unlock(&s->pins_mx);
    pgs__mutex_lock(&pgs__sweep_mx); /* fork waits for it: no child inherits the description */
    int fd = pgs__reopen(s, O_RDWR);
    if (fd >= 0) {
        n = sweep_with(s, fd);
        pgs__file_ops->close(fd);
    }
    pgs__mutex_unlock(&pgs__sweep_mx);
    return n;
}

/* --- listing --------------------------------------------------------------------------------------------------------------------------------------- */
static int cmp_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* One slot's pins, as far as they stand still; 0 when its owner changed meanwhile. */
static size_t read_slot(struct pgs__session *s, uint32_t i, struct pgs__slot_info *info, char command[96],
                        uint64_t *gens)
{
    struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
    uint64_t tag = atomic_load(&slot->tag);
    uint32_t n = atomic_load(&slot->n_pins);
    size_t k = 0, out = 0;
    if (tag == 0) return 0;
    if (n > PGS__MAX_PINS) n = PGS__MAX_PINS;
    for (uint32_t j = 0; j < n; j++) {
        uint64_t gen = atomic_load(pgs__ctl_pin(&s->ctl, i, j));
        if (gen) gens[k++] = gen;
    }
    info->pid = atomic_load(&slot->pid);
    info->start_ns = slot->start_ns;
    memcpy(command, slot->command, 96);
    command[95] = 0;
    if (atomic_load(&slot->tag) != tag || k == 0) return 0;
    qsort(gens, k, sizeof *gens, cmp_u64);
    for (size_t j = 0; j < k; j++)
        if (out == 0 || gens[out - 1] != gens[j]) gens[out++] = gens[j];
    return out;
}

int pgs__slots_walk(struct pgs__session *s, int (*fn)(void *ctx, const struct pgs__slot_info *i), void *ctx,
                    struct pgs_error *err)
{
    char command[96];
    int rc = 0;
    uint64_t *gens = pgs__malloc(PGS__MAX_PINS * sizeof *gens);
    if (!gens) return pgs__fail(err, PGS_ENOMEM, "no memory to list readers");
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used && rc == 0; i++) {
        struct pgs__slot_info info = {.slot = i, .self = s->writable && i == s->slot, .command = command, .gens = gens};
        info.n_gens = read_slot(s, i, &info, command, gens);
        if (info.n_gens) rc = fn(ctx, &info);
    }
    pgs__free(gens);
    return rc;
}
