/* Pagestone | platform/procfd — the path that names an open descriptor, without stdio.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Opening it gives a new open file description of the same file (dup would not). Fork hooks use it, so no snprintf.
 */
#ifndef PGS_PLATFORM_PROCFD_H
#define PGS_PLATFORM_PROCFD_H

#include "libshm/platform/base.h"

#define PGS__PROC_FD_PATH 32

static inline void pgs__proc_fd_path(char out[PGS__PROC_FD_PATH], int fd)
{
    char digits[12];
    size_t n = 0, at = sizeof "/proc/self/fd/" - 1;
    unsigned v = fd < 0 ? 0u : (unsigned)fd;
    memcpy(out, "/proc/self/fd/", at);
    do digits[n++] = (char)('0' + v % 10);
    while ((v /= 10) > 0);
    while (n > 0) out[at++] = digits[--n];
    out[at] = 0;
}

#endif
