/* Pagestone | pages/control — creating, validating and mapping the control file; head cells.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The control file is state of this boot. One of another boot, or one whose creator died, is made anew in place: it is never
 * unlinked or truncated, because another opener may have it mapped already and wait for the same open lock.
 *
 * Head cells. head_gen names generation g, whose root is in cell g & 3. A reader copies that cell without a lock:
 *
 *     reader                                        writer of g + 4, the next user of the cell
 *     g  = head_gen          (acquire)    H1        head_gen = g + 3          (release)    P
 *     copy cell g & 3        (relaxed)    H2        fence                     (release)    S1
 *     fence                  (acquire)    H3        write cell g & 3          (relaxed)    S2
 *     g2 = head_gen          (relaxed)    H4
 *
 * H1 pairs with P of generation g itself: the cell was written before. If H2 sees a word of S2, then fence H3 pairs with fence S1,
 * so that H4 sees g + 3 or later. Hence g2 - g < 3 proves that the copy is whole. This needs consecutive generations:
 * pgs__ctl_stage checks. The checksum in the cell finds damage from elsewhere (a stray write), not tears.
 */
#define _GNU_SOURCE 1
#include "libshm/pages/control.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/vm.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define HEAD_TRIES 1000000u /* each one means that three commits happened during a copy of 96 bytes */
#define CELL_WORDS 12u      /* root and xxh */

PGS_STATIC(sizeof(struct pgs__robust) <= sizeof(((struct pgs__control *)0)->commit_lock), "the lock's place");
PGS_STATIC(offsetof(struct pgs__control, commit_lock) % 64 == 0, "its own cache lines");
PGS_STATIC(sizeof(struct pgs__root) + 8 == CELL_WORDS * 8, "copied by words");
PGS_STATIC(PGS__SLOTS_OFFSET + PGS__N_SLOTS * sizeof(struct pgs__slot) <= PGS__PINS_OVERFLOW_OFFSET,
           "parts do not overlap");
PGS_STATIC(PGS__LEASES_OFFSET + PGS__N_LEASES * sizeof(struct pgs__lease) <= PGS__SLOTS_OFFSET, "parts do not overlap");
PGS_STATIC(PGS__PINS_OVERFLOW_OFFSET + 8ull * PGS__N_SLOTS * PGS__PINS_OVERFLOW <= PGS__OWNERS_OFFSET,
           "parts do not overlap");
PGS_STATIC(PGS__OWNERS_OFFSET + 8ull * PGS__N_OWNERS <= PGS__CONTROL_SIZE, "parts do not overlap");
PGS_STATIC(PGS__N_OWNERS *PGS_CHUNK_PAGES >= PGS__MAX_PAGES, "every chunk has an owner word");

static uint32_t libc_abi(void)
{
#ifdef __GLIBC__
    return (uint32_t)sizeof(pthread_mutex_t) << 8 | 1;
#else
    return (uint32_t)sizeof(pthread_mutex_t) << 8 | 2;
#endif
}

uint64_t pgs__control_layout(void)
{
#define FIELD(type, field) (uint64_t) offsetof(struct type, field)
    const uint64_t layout[] = {
        PGS__CONTROL_SIZE,
        PGS__LEASES_OFFSET,
        PGS__N_LEASES,
        PGS__SLOTS_OFFSET,
        PGS__N_SLOTS,
        PGS__PINS_INLINE,
        PGS__PINS_OVERFLOW_OFFSET,
        PGS__PINS_OVERFLOW,
        PGS__OWNERS_OFFSET,
        PGS__N_OWNERS,
        PGS__LOCK_SLOT(0),
        PGS__LOCK_READ(0),
        PGS_PAGE_SIZE,
        PGS_CHUNK_PAGES,
        PGS__SLOT_TAG(0, 0),
        PGS__CTL_POISONED,
        PGS__CTL_NEEDS_REPAIR,
        PGS__CTL_SCARCE,
        PGS__CTL_WEAK,
        sizeof(struct pgs_ptr),
        FIELD(pgs_ptr, page),
        FIELD(pgs_ptr, birth),
        FIELD(pgs_ptr, xxh),
        sizeof(struct pgs__root),
        FIELD(pgs__root, gen),
        FIELD(pgs__root, version),
        FIELD(pgs__root, time_ns),
        FIELD(pgs__root, record),
        FIELD(pgs__root, record_pages),
        FIELD(pgs__root, catalog),
        FIELD(pgs__root, n_objects),
        sizeof(struct pgs__head_cell),
        FIELD(pgs__head_cell, root),
        FIELD(pgs__head_cell, xxh),
        sizeof(struct pgs__control),
        FIELD(pgs__control, magic),
        FIELD(pgs__control, format_version),
        FIELD(pgs__control, libc_abi),
        FIELD(pgs__control, layout),
        FIELD(pgs__control, boot_id),
        FIELD(pgs__control, uuid),
        FIELD(pgs__control, pages_ino),
        FIELD(pgs__control, state),
        FIELD(pgs__control, commit_lock),
        FIELD(pgs__control, head_gen),
        FIELD(pgs__control, drop_epoch),
        FIELD(pgs__control, wake),
        FIELD(pgs__control, n_waiters),
        FIELD(pgs__control, durable_gen),
        FIELD(pgs__control, flags),
        FIELD(pgs__control, n_slots_used),
        FIELD(pgs__control, please_advance),
        FIELD(pgs__control, barrier_ns),
        FIELD(pgs__control, barrier_bytes),
        FIELD(pgs__control, super_seq),
        FIELD(pgs__control, raw_time_ns),
        FIELD(pgs__control, version_floor),
        FIELD(pgs__control, version_ceiling),
        FIELD(pgs__control, pin_moves),
        FIELD(pgs__control, owners_end),
        FIELD(pgs__control, cell),
        sizeof(struct pgs__lease),
        FIELD(pgs__lease, gen),
        FIELD(pgs__lease, deadline_ns),
        sizeof(struct pgs__slot),
        FIELD(pgs__slot, tag),
        FIELD(pgs__slot, incarnation),
        FIELD(pgs__slot, meta_pin),
        FIELD(pgs__slot, n_pins),
        FIELD(pgs__slot, flags),
        FIELD(pgs__slot, pin),
        FIELD(pgs__slot, pid),
        FIELD(pgs__slot, start_ns),
        FIELD(pgs__slot, command),
        FIELD(pgs__slot, fds),
        FIELD(pgs__slot, n_family),
        FIELD(pgs__slot, image),
        FIELD(pgs__slot, family_meta),
        sizeof(struct pgs__robust),
        FIELD(pgs__robust, m),
        FIELD(pgs__robust, owner_pid),
    };
#undef FIELD
    return pgs__hash(layout, sizeof layout);
}

/* --- mapping ---------------------------------------------------------------------------------------------------- */

static int map_control(struct pgs__ctl *ctl, int fd, bool writable, struct pgs_error *err)
{
    struct stat st;
    int rc = pgs__file_ops->fstat(fd, &st);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot look at the control file");
    rc = pgs__vm_charge(1);
    if (rc) return pgs__fail(err, PGS_ENOMEM, "no mapping left for the control file");
    void *p = pgs__file_ops->map(fd, writable ? PGS__MAP_WRITE : PGS__MAP_READ, NULL, PGS__CONTROL_SIZE, 0, &rc);
    if (p == MAP_FAILED) {
        pgs__vm_uncharge(1);
        return pgs__fail_os(err, -rc, "cannot map the control file");
    }
    (void)madvise(p, PGS__CONTROL_SIZE, MADV_DONTDUMP);
    /* a few words here and there of a sparse file: on ext4 each first touch would read megabytes of holes ahead (4 ms) */
    (void)madvise(p, PGS__CONTROL_SIZE, MADV_RANDOM);
    *ctl = (struct pgs__ctl){
        .c = p, .fd = fd, .writable = writable, .dev = (uint64_t)st.st_dev, .ino = (uint64_t)st.st_ino};
    return 0;
}

static void unmap_only(struct pgs__ctl *ctl)
{
    if (!ctl->c) return;
    pgs__file_ops->unmap(ctl->c, PGS__CONTROL_SIZE);
    pgs__vm_uncharge(1);
    ctl->c = NULL;
}

static bool fd_is_ours(const struct pgs__ctl *ctl)
{
    struct stat st;
    return ctl->fd >= 0 && pgs__file_ops->fstat(ctl->fd, &st) == 0 && (uint64_t)st.st_dev == ctl->dev &&
           (uint64_t)st.st_ino == ctl->ino;
}

void pgs__ctl_unmap(struct pgs__ctl *ctl)
{
    if (!ctl->c) return;
    unmap_only(ctl);
    if (fd_is_ours(ctl)) pgs__file_ops->close(ctl->fd);
    ctl->fd = -1;
}

/* Everything zero, nothing allocated, size right; other mappings of the file stay good. */
static int wipe(int fd)
{
    struct stat st;
    int rc = pgs__file_ops->fstat(fd, &st);
    if (rc == 0 && (uint64_t)st.st_size != PGS__CONTROL_SIZE)
        rc = pgs__file_ops->ftruncate(fd, (off_t)PGS__CONTROL_SIZE);
    if (rc < 0 || st.st_size == 0) return rc;
    rc = pgs__file_ops->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)PGS__CONTROL_SIZE);
    if (rc != -EOPNOTSUPP && rc != -ENOSYS) return rc;
    rc = pgs__file_ops->ftruncate(fd, 0); /* a mapping of another opener may die of it: only where holes are unknown */
    return rc < 0 ? rc : pgs__file_ops->ftruncate(fd, (off_t)PGS__CONTROL_SIZE);
}

/* 0 also where the file system cannot reserve. */
static int reserve_fd(int fd, uint64_t off, uint64_t len)
{
    int rc = pgs__file_ops->fallocate(fd, 0, (off_t)off, (off_t)len);
    return rc == -EOPNOTSUPP || rc == -ENOSYS ? 0 : rc;
}

int pgs__ctl_create(struct pgs__ctl *ctl, int fd, const uint8_t uuid[16], uint64_t pages_ino, struct pgs_error *err)
{
    struct pgs__ctl made = {.fd = -1};
    int rc = wipe(fd);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot make the control file");
    PGS_KILL_POINT("ctl_create_wiped");
    rc = reserve_fd(fd, 0, PGS__SLOTS_OFFSET + PGS__SLOTS_RESERVED * sizeof(struct pgs__slot));
    if (rc < 0) return pgs__fail_os(err, -rc, "no space for the control file");
    rc = map_control(&made, fd, true, err);
    if (rc) return rc;
    struct pgs__control *c = made.c;
    c->format_version = PGS__FORMAT_VERSION;
    c->libc_abi = libc_abi();
    c->layout = pgs__control_layout();
    memcpy(c->uuid, uuid, 16);
    c->pages_ino = pages_ino;
    rc = pgs__boot_id(c->boot_id);
    if (rc == 0) rc = pgs__robust_init(pgs__ctl_commit_lock(&made));
    if (rc) {
        unmap_only(&made);
        return pgs__fail(err, PGS_EIO, "cannot set up the control file");
    }
    PGS_KILL_POINT("ctl_create_before_magic");
    /* release: who reads the magic (without the open lock, to find out whether the file is finished) reads the rest, too.
     * Pairs with the acquire in pgs__ctl_map. */
    __atomic_store_n(&c->magic, PGS__CONTROL_MAGIC, __ATOMIC_RELEASE);
    *ctl = made;
    return 0;
}

static int validate(const struct pgs__control *c, const uint8_t uuid[16], uint64_t pages_ino, struct pgs_error *err)
{
    if (c->format_version != PGS__FORMAT_VERSION)
        return pgs__fail(err, PGS_EFORMAT,
                         "in use by another Pagestone (control format %u; this library has %u): close it there first",
                         c->format_version, PGS__FORMAT_VERSION);
    if (c->libc_abi != libc_abi())
        return pgs__fail(err, PGS_EFORMAT,
                         "in use by a program with another C library (%#x; this one has %#x): close it there first",
                         c->libc_abi, libc_abi());
    if (c->layout != pgs__control_layout())
        return pgs__fail(err, PGS_EFORMAT,
                         "in use by another build of Pagestone: close it there first, or use the same version");
    if (memcmp(c->uuid, uuid, 16) != 0 || c->pages_ino != pages_ino)
        return pgs__fail(err, PGS_ESTALE, "the store was replaced meanwhile: open it again");
    return 0;
}

int pgs__ctl_map(struct pgs__ctl *ctl, int fd, bool writable, const uint8_t uuid[16], uint64_t pages_ino,
                 bool *fresh_boot, struct pgs_error *err)
{
    struct stat st;
    uint8_t boot_id[16];
    struct pgs__ctl made = {.fd = -1};
    int rc = pgs__file_ops->fstat(fd, &st);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot look at the control file");
    rc = pgs__boot_id(boot_id);
    if (rc) return pgs__fail(err, PGS_EIO, "cannot tell this boot from another");
    bool fresh =
        (uint64_t)st.st_size < PGS__CONTROL_SIZE; /* its creator died; mapped bytes past the end would be SIGBUS */
    if (!fresh) {
        rc = map_control(&made, fd, writable, err);
        if (rc) return rc;
        uint64_t magic = __atomic_load_n(&made.c->magic, __ATOMIC_ACQUIRE); /* pairs with pgs__ctl_create */
        if (magic != 0 && magic != PGS__CONTROL_MAGIC)
            rc = pgs__fail_corrupt(err, "the control file",
                                   "the control file begins with foreign bytes: remove it while nobody uses the store");
        else
            fresh = magic == 0 || memcmp(made.c->boot_id, boot_id, 16) != 0;
        if (!fresh && rc == 0) rc = validate(made.c, uuid, pages_ino, err);
        if (fresh || rc) unmap_only(&made);
        if (rc) return rc;
    }
    *fresh_boot = fresh;
    *ctl = made;
    return 0;
}

int pgs__ctl_reserve(struct pgs__ctl *ctl, uint64_t off, uint64_t len, struct pgs_error *err)
{
    uint64_t lo = off & ~(uint64_t)(PGS_PAGE_SIZE - 1);
    uint64_t hi = (off + len + PGS_PAGE_SIZE - 1) & ~(uint64_t)(PGS_PAGE_SIZE - 1);
    int rc;
    PGS_BUG_ON(!ctl->writable || len == 0 || hi > PGS__CONTROL_SIZE || hi < off);
    if (fd_is_ours(ctl)) {
        rc = reserve_fd(ctl->fd, lo, hi - lo);
    } else { /* a host program closed it; the mapping is still there, and faulting pages in reports what stores would die of */
        rc = madvise((uint8_t *)ctl->c + lo, hi - lo, MADV_POPULATE_WRITE) == 0 ? 0 : -errno;
        if (rc == -EFAULT) rc = -ENOSPC;
    }
    if (rc < 0) return pgs__fail_os(err, -rc, "no space for %llu bytes of the control file", (unsigned long long)len);
    return 0;
}

/* --- head cells ------------------------------------------------------------------------------------------------- */

static uint64_t *cell_words(struct pgs__ctl *ctl, pgs_gen_t gen)
{
    return (uint64_t *)(void *)&ctl->c->cell[gen & 3];
}

int pgs__ctl_head(struct pgs__ctl *ctl, struct pgs__root *out)
{
    uint64_t copy[CELL_WORDS];
    for (unsigned tries = 0; tries < HEAD_TRIES; tries++) {
        pgs_gen_t gen = atomic_load_explicit(&ctl->c->head_gen, memory_order_acquire); /* H1, pairs with P */
        const uint64_t *cell = cell_words(ctl, gen);
        for (unsigned i = 0; i < CELL_WORDS; i++)
            copy[i] = __atomic_load_n(&cell[i], __ATOMIC_RELAXED);                              /* H2: see H3 */
        pgs__fence_as(memory_order_acquire);                                                    /* H3, pairs with S1 */
        if (atomic_load_explicit(&ctl->c->head_gen, memory_order_relaxed) - gen >= 3) continue; /* H4: may be torn */
        if (copy[0] != gen || copy[CELL_WORDS - 1] != pgs__hash(copy, sizeof(struct pgs__root))) break;
        memcpy(out, copy, sizeof *out);
        return 0;
    }
    memset(out, 0, sizeof *out);
    return -PGS_ECORRUPT;
}

void pgs__ctl_stage(struct pgs__ctl *ctl, const struct pgs__root *root)
{
    uint64_t copy[CELL_WORDS];
    uint64_t head = atomic_load(&ctl->c->head_gen);
    /* Before the store is ready nobody reads cells. After that a step of another size could overwrite the cell in use. */
    PGS_BUG_ON(atomic_load(&ctl->c->state) != 0 && root->gen != head + 1);
    memcpy(copy, root, sizeof *root);
    copy[CELL_WORDS - 1] = pgs__hash(root, sizeof *root);
    uint64_t *cell = cell_words(ctl, root->gen);
    pgs__fence_as(
        memory_order_release); /* S1: the head that was published before is seen before these. Pairs with H3 */
    for (unsigned i = 0; i < CELL_WORDS; i++) {
        __atomic_store_n(&cell[i], copy[i], __ATOMIC_RELAXED); /* S2: read between H1 and H4 only */
        if (i == 5) PGS_KILL_POINT("ctl_stage_half");
    }
}

void pgs__ctl_publish(struct pgs__ctl *ctl, pgs_gen_t gen)
{
    pgs_assert(cell_words(ctl, gen)[0] == gen);
    PGS_KILL_POINT("ctl_publish_before");
    atomic_store_explicit(&ctl->c->head_gen, gen,
                          memory_order_release); /* P: the cell and the pages go before. Pairs with H1 */
    PGS_KILL_POINT("ctl_publish_after");
}
