/* Pagestone | extents/memory — contents as memory: read views, copy-on-write views, fresh memory, dirty pages.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A pgs__mem is a range of this process's addresses that shows one content. It does not know about pins: the caller keeps the generation pinned as
 * long as the memory lives.
 *
 *   READ    a pointer into the window (one extent without holes: no system call), or a composed read-only mapping, or, for INLINE contents, a
 *           64-byte-aligned heap copy.
 *   COW     MAP_PRIVATE | MAP_NORESERVE over the runs, anonymous zero memory over holes, inside a reservation that leaves room to grow. Small contents, while the budget
 *           of mappings is short: a copy on the heap, page by page as if it were mapped.
 *   FRESH   MAP_SHARED, writable, over runs that the caller claimed (t.empty); turned private at publish, at abort and in forked children.
 *
 *   I1  Holes are anonymous zero memory, never unbacked pages of the file (HAZARDS 17); in writable memory with MADV_NOHUGEPAGE (18).
 *   I2  Never more mappings than the budget: small isolated runs are copied into a private base mapping. The kernel takes them for written; the comparison with
 *       the base, which every reported page undergoes, takes them out again.
 *   I3  After pgs__mem_detach a COW or FRESH memory is harmless private memory; the file cannot be reached through it.
 *   I4  The list of FRESH memories of the process is walked by the fork hook of the child without allocation.
 */
#ifndef PGS_EXTENTS_MEMORY_H
#define PGS_EXTENTS_MEMORY_H

#include "libshm/extents/content.h"
#include "libshm/pages/fresh.h"

/* Small: less than what malloc maps by itself (128 KiB). */
#define PGS__MEM_HEAP_MAX (64u << 10)

enum pgs__mem_kind { PGS__MEM_READ = 1, PGS__MEM_COW, PGS__MEM_FRESH };

struct pgs__mem {
    enum pgs__mem_kind kind;
    void *addr;        /* of byte 0; never NULL (zero-size contents get one readable page or a static 64 bytes) */
    uint64_t n_bytes;  /* logical size now */
    uint64_t mapped;   /* bytes mapped from addr, whole pages; 0: window pointer or an inline content on the heap */
    uint64_t reserved; /* bytes of address space held, ≥ mapped */
    long n_maps;       /* charged to the budget */
    bool heap;         /* addr - pad is heap memory */
    struct pgs__mem_priv *priv; /* base content, fresh runs; NULL for READ */
};

int pgs__mem_read(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__mem *out, struct pgs_error *err);
/* Room to grow for a memory of `want` bytes. */
uint64_t pgs__mem_room(uint64_t want);
/* reserve: address space to hold from addr on (0: just the content). -PGS_ENOMEM names vm.max_map_count or the address space limit. */
int pgs__mem_cow(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t reserve, struct pgs__mem *out,
                 struct pgs_error *err);
/* runs: claimed, reserved (pgs__fresh_reserve) and together at least pages_of(n_bytes) pages. They are mapped in order; contents zeroed by the caller's choice:
 * `zero` punches stale bytes of recycled pages by memset. */
int pgs__mem_fresh(struct pgs__pagefile *pf, const struct pgs_run *runs, size_t n_runs, uint64_t n_bytes,
                   uint64_t reserve, bool zero, struct pgs__mem *out, struct pgs_error *err);
void pgs__mem_close(struct pgs__pagefile *pf, struct pgs__mem *m); /* accepts a zeroed one */

/* Byte offsets of pages [lo, hi) that differ or may differ from the base, whole pages, ascending. `exact` ones were written; after comparing, pages with equal bytes are left
 * out: a page is reported only if its bytes differ from the base. COW only. */
int pgs__mem_dirty(struct pgs__pagefile *pf, struct pgs__mem *m, pgs__range_fn fn, void *ctx, struct pgs_error *err);
/* Grow or shrink within the reservation: new bytes read zero, also where the base had bytes before it was shrunk (such pages are reported as dirty unless the base has a
 * hole there). -PGS_E2BIG: the reservation is too small and somebody may hold pointers. COW only. */
int pgs__mem_resize(struct pgs__pagefile *pf, struct pgs__mem *m, uint64_t n_bytes, struct pgs_error *err);
/* COW: drop all private pages so that it shows `c` again, in its size (rollback: the caller then resizes and copies saved pages back). After an error what it shows is
 * undefined. */
int pgs__mem_reset(struct pgs__pagefile *pf, struct pgs__mem *m, struct pgs_error *err);
/* FRESH: make it private (before checksums are taken and the root is published). COW: nothing to do. */
int pgs__mem_detach(struct pgs__pagefile *pf, struct pgs__mem *m, struct pgs_error *err);
/* In a forked child, from the fork hook: every FRESH memory of this process becomes private. */
void pgs__mem_fork_child(void);
void pgs__mem_fork_prepare(void); /* takes the list's lock */
void pgs__mem_fork_parent(void);

#endif
