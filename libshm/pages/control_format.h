/* Pagestone | pages/control_format — the control file: state of this boot, shared by all processes.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Sparse file "control" beside "pages"; for anonymous stores a second memfd. Valid only while boot_id is this boot's; never
 * synced to disk (HAZARDS 44). Parts are fallocated before first use, so that a store never meets SIGBUS on a full disk.
 *
 *      offset        what                                     who writes
 *      0             struct pgs__control                      see the fields
 *      8 KiB         1,024 leases of 16 bytes                 under the commit lock; readers without it check twice
 *      64 KiB        1,024 slots of 512 bytes                 the owning process; whoever holds the slot's lock sweeps
 *      1 MiB         pin overflow, 32 KiB per slot            as the slot
 *      64 MiB        owner table: 8 bytes per 2 MiB chunk     CAS 0 -> tag by claimers; tag -> 0 by owner or sweeper
 *      128 MiB       end
 *
 * What no superblock can rebuild (slots, leases, live root, owner table) changes by single atomic stores (HAZARDS 26e).
 */
#ifndef PGS_PAGES_CONTROL_FORMAT_H
#define PGS_PAGES_CONTROL_FORMAT_H

#include <stdatomic.h>

#include "libshm/pages/super_format.h"

#define PGS__CONTROL_MAGIC 0x316c7274436e6f74ull
#define PGS__CONTROL_SIZE (128ull << 20)
#define PGS__LEASES_OFFSET 8192u
#define PGS__N_LEASES 1024u
#define PGS__SLOTS_OFFSET (64u << 10)
#define PGS__N_SLOTS 1024u
#define PGS__SLOTS_RESERVED 16u /* fallocated at creation; a claimer of a later one reserves it first */
#define PGS__PINS_INLINE 12u
#define PGS__SLOT_FAMILY 7u
#define PGS__PINS_OVERFLOW_OFFSET (1ull << 20)
#define PGS__PINS_OVERFLOW 4096u /* per slot, 8 bytes each */
#define PGS__OWNERS_OFFSET (64ull << 20)
#define PGS__N_OWNERS ((64ull << 20) / 8) /* 8,388,608 chunks: 16 TiB */

/* OFD locks, on the page file (never on the control file: a recreated one must not lose pins) */
#define PGS__LOCK_SLOT(i) ((1ull << 62) + (i))     /* exclusive: process of slot i lives */
#define PGS__LOCK_READ(gen) ((1ull << 61) + (gen)) /* shared: a reader without write permission pins gen */
#define PGS__LOCK_READER                                                                                               \
    PGS__LOCK_READ(0)                /* shared: a reader without write permission lives; no generation is numbered 0 */
#define PGS__PAGER_LOCK (1ull << 59) /* exclusive: is starting a pager (txn/pager.c) */
#define PGS__LOCK_META(gen) ((1ull << 60) + (gen)) /* shared: … reads meta data of gen or later */

/* A copy of one generation's root. Cell gen & 3 holds gen; rewritten three commits later at the earliest. */
struct pgs__head_cell {
    struct pgs__root root; /* written under the commit lock before head_gen names it */
    uint64_t xxh;          /* of root */
    uint8_t pad[128 - 96];
};
PGS_STATIC(sizeof(struct pgs__head_cell) == 128, "shared");

struct pgs__control {
    uint64_t magic;
    uint32_t format_version;
    uint32_t libc_abi; /* sizeof(pthread_mutex_t) << 8 | 1 glibc, 2 musl: the robust mutex differs */
    uint64_t layout;   /* pgs__control_layout(): mixed builds refuse each other */
    uint8_t boot_id[16];
    uint8_t uuid[16];       /* of the store */
    uint64_t pages_ino;     /* of the page file: a replaced one (mode "w") does not match */
    _Atomic uint64_t state; /* 0 not ready, 1 ready, 2 replaced by mode "w": commits raise */
    uint8_t pad0[256 - 72];

    /* offset 256: the commit lock */
    uint8_t commit_lock[128]; /* struct pgs__robust */

    /* offset 384: words that everybody reads */
    _Atomic uint64_t
        head_gen; /* THE LINEARIZATION POINT of a commit; store under the commit lock, release; read anywhere, acquire */
    _Atomic uint64_t
        drop_epoch;        /* +1 after each publish that expired or dropped a generation; see docs/design/locking.md */
    _Atomic uint32_t wake; /* futex: +1 after each commit that made a version */
    _Atomic uint32_t n_waiters;      /* how many sleep on wake (a hint that saves the syscall) */
    _Atomic uint64_t durable_gen;    /* newest generation that a superblock names, after its barrier */
    _Atomic uint64_t flags;          /* PGS__CTL_… */
    _Atomic uint32_t n_slots_used;   /* high-water mark: slots at and above were never used */
    _Atomic uint32_t please_advance; /* +1 by a starved writer: processes move the pins of unchanged views */
    _Atomic uint64_t barrier_ns;     /* CLOCK_BOOTTIME of the last barrier (ordered) */
    _Atomic uint64_t barrier_bytes;  /* written since */
    _Atomic uint64_t super_seq;      /* of the newest superblock; under the commit lock */
    _Atomic uint64_t raw_time_ns;    /* last commit time handed out; under the commit lock */
    /* No version number below may be made: given out before a power loss, perhaps (HAZARDS 13). Set when the file is made. */
    _Atomic uint64_t version_floor;
    /* Of the newest superblock: numbers below are reserved; 0: the next commit must write one. Under the commit lock. */
    _Atomic uint64_t version_ceiling;
    /* +1 by each fork after it copied pins to another slot: who collects pins meanwhile looks again. */
    _Atomic uint64_t pin_moves;
    /* No owner word at or above this chunk was ever stored: how far a sweeper has to look. Chunks are claimed before the file grows. */
    _Atomic uint64_t owners_end;
    uint8_t pad1[512 - 384 - 112];

    struct pgs__head_cell cell[4]; /* offset 512 */
    uint8_t pad2[8192 - 1024];
};
PGS_STATIC(sizeof(struct pgs__control) == 8192, "shared");
PGS_STATIC(offsetof(struct pgs__control, state) == 64 && offsetof(struct pgs__control, commit_lock) == 256, "shared");
PGS_STATIC(offsetof(struct pgs__control, head_gen) == 384, "shared");
PGS_STATIC(offsetof(struct pgs__control, cell) == 512, "shared");
#define PGS__CTL_POISONED 1u     /* an fsync failed: read-only until recovered */
#define PGS__CTL_NEEDS_REPAIR 2u /* recovery of a dead committer failed; the next owner tries again */
#define PGS__CTL_SCARCE 4u       /* an allocation was refused, and nothing shows that it would not be now */
#define PGS__CTL_WEAK 8u /* durability "none": the medium has a superblock that says so; under the commit lock */

struct pgs__lease {
    _Atomic uint64_t gen; /* 0: free */
    /* CLOCK_BOOTTIME, rounded up to 2^24 ns; the low 24 bits: how many generations after `gen` are meant too (full table). */
    _Atomic uint64_t deadline_ns;
};

struct pgs__slot {
    _Atomic uint64_t
        tag; /* 0 free; else PGS__SLOT_TAG(i, incarnation). Claimed by CAS while holding the slot's OFD lock */
    _Atomic uint64_t incarnation; /* +1 per claim: owner words of a former life do not match */
    _Atomic uint64_t meta_pin;    /* oldest generation whose head record or meta tree this process is reading; 0 none */
    _Atomic uint32_t n_pins;      /* high-water mark over inline + overflow */
    _Atomic uint32_t flags;       /* PGS__SLOT_… */
    _Atomic uint64_t pin[PGS__PINS_INLINE]; /* generations; 0 = empty */
    _Atomic uint64_t pid;
    uint64_t start_ns; /* CLOCK_REALTIME at claim */
    char command[96];  /* from /proc/self/comm and cmdline, NUL-terminated */
    /* Anonymous stores: descriptor of the page file | of the control file << 32, for /proc/<pid>/fd. */
    _Atomic uint64_t fds;
    /* Processes beyond the first that share this slot, because a fork could not get another one. */
    _Atomic uint32_t n_family;
    /* Descriptor + 1 of the image of the store's cold data (txn/pager.c), for /proc/<pid>/fd; 0: none. */
    _Atomic uint32_t image;
    _Atomic uint64_t family_meta[PGS__SLOT_FAMILY]; /* meta_pin of those; the last one serves all the rest */
    uint8_t pad1[512 - 32 - 8 * PGS__PINS_INLINE - 16 - 96 - 16 - 8 * PGS__SLOT_FAMILY];
};
PGS_STATIC(sizeof(struct pgs__slot) == 512, "shared");
PGS_STATIC(sizeof(struct pgs__lease) == 16, "shared");
#define PGS__SLOT_SPARE 1u /* locked in advance for a fork that cannot open anything; holds no pins */
#define PGS__SLOT_TAG(i, incarnation) (((uint64_t)((i) + 1) << 48) | ((incarnation)&0xffffffffffffull))
#define PGS__TAG_SLOT(tag) ((uint32_t)((tag) >> 48) - 1)

#endif
