/* Pagestone | pages/super_format — the superblock, byte by byte.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two of them, at pages 0 and 512 of the page file, written in turn (slot = durable_seq & 1). They are for recovery only: the
 * live root is a word in the control file. Each is one page; xxh covers the 4,088 bytes before it, so that a tear anywhere shows. Readers of a busy store may see a torn one: retry, never report damage at once.
 */
#ifndef PGS_PAGES_SUPER_FORMAT_H
#define PGS_PAGES_SUPER_FORMAT_H

#include "libshm/platform/base.h"

#define PGS__SUPER_MAGIC 0x31656e6f74736750ull /* "Pgstone1", little-endian: another endianness reads it reversed */
#define PGS__FORMAT_VERSION 1u
#define PGS__SUPER_PAGE_0 0u
#define PGS__SUPER_PAGE_1 512u

/* A verified reference to a node or a record: page number, birth and XXH3-64 of the bytes. page 0 = none. */
struct pgs_ptr {
    uint64_t page;
    uint64_t birth;
    uint64_t xxh;
};
PGS_STATIC(sizeof(struct pgs_ptr) == 24, "on disk");

/* What identifies one generation completely. Lives in superblocks and in the head cells of the control file. */
struct pgs__root {
    uint64_t gen;
    uint64_t version;
    uint64_t time_ns;       /* commit time of `version`, monotone */
    struct pgs_ptr record;  /* the head record (txn/record_format.h) */
    uint64_t record_pages;  /* its length, 1 to 4 */
    struct pgs_ptr catalog; /* the same as in the record: a reader by name needs nothing else */
    uint64_t n_objects;     /* len(store) */
};
PGS_STATIC(sizeof(struct pgs__root) == 88, "on disk");

struct pgs__super {
    uint64_t magic;
    uint32_t format_version;
    uint32_t byte_order; /* 0x01020304 as written by the writer */
    uint32_t page_size;
    uint32_t feature_bits; /* unknown bits: refuse to open */
    uint64_t layout;       /* signature of control_format.h, as pgs__control_layout() */
    uint8_t uuid[16];      /* of the store; fresh at creation and at mode "w" */
    uint64_t seq;          /* 1, 2, 3, …: the larger valid one is newer */
    uint64_t
        version_ceiling; /* version numbers below may have been given out; an unclean start on another boot begins there */
    uint64_t flags;      /* PGS__SUPER_POISONED: an fsync failed; PGS__SUPER_CLEAN: closed by the last process */
    uint8_t boot_id[16];   /* of the boot that wrote it: with durability "none" on disk only this boot may trust it */
    struct pgs__root root; /* the newest durable generation */
    uint64_t created_ns;
    uint8_t reserved[4096 - 184 - 8];
    uint64_t xxh; /* of the 4,088 bytes before it */
};
PGS_STATIC(sizeof(struct pgs__super) == PGS_PAGE_SIZE, "on disk");
PGS_STATIC(offsetof(struct pgs__super, uuid) == 32 && offsetof(struct pgs__super, boot_id) == 72, "on disk");
PGS_STATIC(offsetof(struct pgs__super, root) == 88 && offsetof(struct pgs__super, xxh) == 4088, "on disk");
#define PGS__SUPER_POISONED 1u
#define PGS__SUPER_CLEAN 2u

#endif
