/* Pagestone | platform/caps — what this kernel can do, asked at run time.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each capability is probed once, at first use, and can be switched off by PAGESTONE_WITHOUT=name,name for tests and
 * old kernels. Code must work, perhaps slower, with every one of them off.
 */
#ifndef PGS_PLATFORM_CAPS_H
#define PGS_PLATFORM_CAPS_H

#include "libshm/platform/base.h"

enum pgs__cap {
    PGS__CAP_PAGEMAP_SCAN, /* "pagemap_scan": ioctl on /proc/self/pagemap, Linux 6.7 */
    PGS__CAP_PAGEMAP,      /* "pagemap": reading /proc/self/pagemap, bits 61-63 */
    PGS__CAP_COLLAPSE,     /* "collapse": MADV_COLLAPSE, Linux 6.1 */
    PGS__CAP_BIG_WINDOW,   /* "big_window": 16 TiB of PROT_READ address space */
    PGS__CAP_PROC_FD,      /* "proc_fd": reopen through /proc/self/fd (memfd, slot locks of anonymous stores) */
    PGS__CAP_MAP_WRITE,    /* "map_write": stores through writable mappings of fresh extents; else pwrite */
    PGS__CAP_OFD,          /* "ofd": open-file-description locks; required, listed for doctor */
    PGS__CAP_AVX2,         /* "avx2", "avx512": run-time dispatch of XXH3 */
    PGS__CAP_AVX512,
    PGS__CAP_MEMORY_LIMIT, /* "memory_limit": stores in memory without a quota stop before memory is full */
    PGS__CAP_FUSE,         /* "fuse": /dev/fuse is there, and we may mount: root, or fusermount3 */
    PGS__CAP_N
};

bool pgs__cap(enum pgs__cap cap);
const char *pgs__cap_name(enum pgs__cap cap);
/* Why it is off ("switched off by PAGESTONE_WITHOUT", "kernel: EINVAL", …); "" when on. */
const char *pgs__cap_reason(enum pgs__cap cap);
/* Forget all probes (tests, after setenv). */
void pgs__caps_reset(void);

#endif
