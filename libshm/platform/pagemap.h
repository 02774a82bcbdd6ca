/* Pagestone | platform/pagemap — /proc/self/pagemap: what the kernel's headers say, for systems whose headers are older.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Private to caps.c (probes) and vm.c (the dirty query). Own names: a newer linux/fs.h may be included in the same file.
 */
#ifndef PGS_PLATFORM_PAGEMAP_H
#define PGS_PLATFORM_PAGEMAP_H

#include <sys/ioctl.h>

#include "libshm/platform/base.h"

/* Bits of one 64-bit entry per page. */
#define PGS__PM_PRESENT (UINT64_C(1) << 63)
#define PGS__PM_SWAPPED (UINT64_C(1) << 62)
#define PGS__PM_FILE (UINT64_C(1) << 61) /* of a file, or shared anonymous memory */

/* The PAGEMAP_SCAN ioctl, Linux 6.7. */
struct pgs__page_region {
    uint64_t start, end, categories;
};
struct pgs__pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
PGS_STATIC(sizeof(struct pgs__pm_scan_arg) == 96, "kernel ABI");
#define PGS__PAGEMAP_SCAN _IOWR('f', 16, struct pgs__pm_scan_arg)
#define PGS__PAGE_IS_FILE (UINT64_C(1) << 2)
#define PGS__PAGE_IS_PRESENT (UINT64_C(1) << 3)
#define PGS__PAGE_IS_SWAPPED (UINT64_C(1) << 4)
#define PGS__PAGE_IS_PFNZERO (UINT64_C(1) << 5)

#define PGS__SCAN_VEC 512 /* more: a full walk returns a stale walk_end */

/* One step of the dirty query over [start, end): number of regions in vec, or -errno. Fewer than vec_len: the range is done. */
int pgs__pagemap_scan(int fd, uint64_t start, uint64_t end, struct pgs__page_region *vec, uint32_t vec_len);
/* /proc/self/pagemap of this process; -errno. */
int pgs__pagemap_open(void);

#endif
