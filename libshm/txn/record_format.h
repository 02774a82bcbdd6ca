/* Pagestone | txn/record_format — the head record: one generation's state, and the newest changes of the meta tree.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each commit writes one record of 1 to 4 consecutive pages. Its header is below; after it come *messages*: the newest changes to the meta tree that were not folded
 * into it yet (sorted by key, each key once). Whoever reads the meta data of a generation looks into the messages first, then into the tree. So a small commit writes its catalog nodes and one
 * record page, and the meta tree is rewritten only every so many commits ("fold").
 *
 *   message: u16 key_len, u16 val_len (0xffff: the key is deleted), key, value; no padding. Bit 15 of key_len: the tree below holds no such key, so a later
 *   deletion just removes the message.
 *
 * Keys of the meta tree: one letter, then numbers ("g" = generation, "p" = page). A number in a key is one byte that counts its significant bytes (0 to 8), then these, big-endian:
 * short, and memcmp orders them. A number as a value is its significant bytes, little-endian, at least one. The length of a run and what it held are one number: n_pages << 1 | node.
 *
 *   'c' g                      -> struct pgs__chain         every generation that is needed: kept, tagged, zombie. The head is not in it
 *   'x' g                      -> n_pages                   chain entry g is expired: no new pins, a zombie while somebody still pins it; dead pages that it alone held then
 *   'v' version                -> gen                       newest generation of each version that is listed (head's too)
 *   't' name                   -> version                   tags
 *   'b' holder g, bucket g     -> nothing                   bucket `bucket` hangs at chain entry `holder` (its own bucket is implied)
 *   'd' bucket g, birth g, p   -> n_pages << 1 | node        deadlist: run [p, p+n) with that birth, killed in the commit that superseded generation `bucket`
 *   'm' g, p                   -> n_pages << 1 | node        limbo: unreferenced since the commit of generation g; reusable when durable ≥ g and no meta reader < g
 *   'r' p                      -> n_pages, count (2 × u64)   head reference counts ≥ 2 of shared runs (absent = 1); entries do not overlap
 *   'W' end chunk              -> n_chunks                  free space: runs of whole free chunks
 *   'N' end page               -> n_pages                   free pages in chunks that hold nodes; never across a chunk boundary
 *   'D' end page               -> n_pages                   free pages in chunks that hold data; never across a chunk boundary
 *   'z' slot                   -> struct pgs__cold_block    a compressed block (extents/cold.h). Under 'd' and 'r', p may be a page of the image: no counter has those
 *   'Z'                        -> struct pgs__cold_total    the next slot, and what all blocks occupy (ledger.h)
 *   'F'                        -> struct pgs__policy        what is compressed by itself (policy.h)
 *   'l' version, part          -> log entry (ledger_log.c)  parts of ≤ 1,000 bytes
 */
#ifndef PGS_TXN_RECORD_FORMAT_H
#define PGS_TXN_RECORD_FORMAT_H

#include "libshm/pages/super_format.h"

#define PGS__RECORD_MAGIC 0x6472306365725350ull
#define PGS__RECORD_MAX_PAGES 4u
#define PGS__RESERVE_PAGES 64u /* kept for the commit that frees */
#define PGS__RESERVE_LAST 16u  /* of these, for commits that only tidy up */

struct pgs__record {
    uint64_t magic;
    uint64_t gen;
    uint64_t version;
    uint64_t time_ns;
    uint32_t n_pages;
    uint32_t n_msgs;
    uint32_t msg_bytes;
    uint32_t checksums; /* 1: array pages carry checksums */
    struct pgs_ptr catalog;
    struct pgs_ptr meta;
    uint64_t n_objects;
    uint64_t next_id;       /* of the next object */
    uint64_t first_version; /* smallest number ever made (0), and after a ceiling jump … */
    uint64_t n_kept;        /* versions listed in s.versions, the head's included */
    uint64_t hw_pages;      /* the file's high-water mark: whole chunks; beyond is free */
    uint64_t pages_free;    /* below hw: in 'W', 'N' and 'D' */
    uint64_t pages_dead;    /* in deadlists: history and pinned */
    uint64_t pages_limbo;
    uint64_t pages_meta;   /* of the meta tree and this record */
    uint64_t reserve_page; /* a run of reserve_n pages that only freeing commits may use; 0 none */
    uint64_t reserve_n;
    uint64_t quota_bytes;  /* 0 none */
    uint32_t durability;   /* enum pgs_durability */
    uint32_t history_kind; /* enum pgs_history_kind */
    uint64_t history_value;
    uint64_t expire_hint;   /* no listed, untagged version (but the head's) is smaller */
    uint64_t n_chain;       /* entries under 'c' */
    uint64_t n_expired;     /* of them: expired, waiting to be dropped: entries under 'x' */
    uint64_t drop_hint;     /* generation at which dropping goes on */
    uint64_t pages_expired; /* of pages_dead: kept by expired entries only; the sum of 'x' */
    uint32_t n_tagged;      /* chain entries with tags */
    uint32_t head_tags;     /* tags of the head's version; they move to its chain entry with the next version */
};
PGS_STATIC(sizeof(struct pgs__record) == 256, "on disk");

struct pgs__chain { /* value of 'c' */
    uint64_t version;
    uint64_t time_ns;
    uint64_t next_time_ns; /* commit time of the version after it: v answers t only if time ≤ t < next */
    struct pgs_ptr catalog;
    uint64_t n_objects;
    uint32_t n_tags; /* > 0: history= does not expire it */
    uint32_t
        flags; /* zero on disk. In memory PGS__CHAIN_EXPIRED: there is an 'x' entry. No new pins; a zombie while somebody still pins it */
};
PGS_STATIC(sizeof(struct pgs__chain) == 64, "on disk");
#define PGS__CHAIN_EXPIRED 1u
#define PGS__MSG_FRESH 0x8000u   /* in key_len */
#define PGS__MSG_DELETED 0xffffu /* as val_len */
#define PGS__RECORD_ROOM(n_pages) ((size_t)(n_pages)*PGS_PAGE_SIZE - sizeof(struct pgs__record))

#endif
