/* Pagestone | platform/futex — sleeping on a word of shared memory.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Never FUTEX_PRIVATE: the sleepers are processes, each with its own mapping of the control file, perhaps read-only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/lock.h"

int pgs__futex_wait(const _Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec t = {.tv_sec = 0, .tv_nsec = 0}, *tp = NULL;
    if (timeout_ns >= 0) {
        t.tv_sec = (time_t)(timeout_ns / 1000000000);
        t.tv_nsec = (long)(timeout_ns % 1000000000);
        tp = &t;
    }
    /* FUTEX_WAIT: relative, CLOCK_MONOTONIC. */
    if (syscall(SYS_futex, word, FUTEX_WAIT, expected, tp, NULL, 0) == 0) return 0;
    return errno == EAGAIN ? 0 : -errno;
}

void pgs__futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
