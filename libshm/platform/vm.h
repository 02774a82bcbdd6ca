/* Pagestone | platform/vm — anonymous memory, page tables, and the budget of mappings.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Linux allows a process vm.max_map_count mappings; running out makes *other* code fail with ENOMEM. So we count ours
 * (pgs__vm_charge) and never use more than half of the limit.
 */
#ifndef PGS_PLATFORM_VM_H
#define PGS_PLATFORM_VM_H

#include "libshm/platform/base.h"

/* PROT_NONE address space that costs nothing; NULL on failure. align: a power of two ≥ 4096. */
void *pgs__vm_reserve(size_t len, size_t align);
void pgs__vm_release(void *addr, size_t len);
/* Anonymous zero pages over [addr, addr+len) of a reservation: MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE. `writable` ones get
 * MADV_NOHUGEPAGE so that the dirty query stays exact (HAZARDS 18). 0 or -errno. */
int pgs__vm_zero(void *addr, size_t len, bool writable);

/* Take n mappings from the budget: 0, or -PGS_ENOMEM when more than half of vm.max_map_count would be ours. */
int pgs__vm_charge(long n);
void pgs__vm_uncharge(long n);
long pgs__vm_charged(void);
/* Is three quarters of the budget taken? Time to do without mappings where that is possible. */
bool pgs__vm_is_short(void);

/* Pages of [addr, addr+len) that were written since mapping: those that are present or swapped and neither file-backed nor the
 * zero page. Calls emit(ctx, first_page, n_pages) with page indices relative to addr, ascending, not overlapping. Uses PAGEMAP_SCAN,
 * else /proc/self/pagemap (then *exact = false: zero pages of holes may be reported: compare with zeros). -ENOTSUP where neither
 * works: the caller compares every page with the base. Threads may write meanwhile; a page written during the scan may be missed. */
int pgs__vm_dirty(const void *addr, size_t len, int (*emit)(void *ctx, uint64_t first_page, uint64_t n_pages),
                  void *ctx, bool *exact);

/* MADV_COLLAPSE of one aligned chunk of a mapping; 0 or -errno. Best effort, never required. */
int pgs__vm_collapse(void *addr, size_t len);

#endif
