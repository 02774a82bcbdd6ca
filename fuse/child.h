/* Pagestone | fuse/child — throw-away processes with a time limit.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A system call on a mount whose server is stopped can wait for ever, and not even a signal ends it. So such calls are made by a process that is left to
 * itself when it takes too long: it ends when the server does. Call these from a process without other threads.
 */
#ifndef PAGESTONE_FUSE_CHILD_H
#define PAGESTONE_FUSE_CHILD_H

#include <stddef.h>
#include <stdint.h>

/* What f returns (0 to 255) in a process of its own; ETIMEDOUT; another errno if it could not be started or died. */
int child_ask(int (*f)(void *arg), void *arg, int timeout_ms);

enum { CHILD_TIMEOUT = -1, CHILD_MISSING = -2, CHILD_FAILED = -3 };
/* Run a program found in PATH or in /usr/bin, with one more environment variable (or NULL) and one descriptor that it inherits (or -1). Its exit status, or one of the above;
 * `said` gets the last line that it wrote to stderr. */
int child_run(const char *const argv[], const char *name, const char *value, int inherit, int timeout_ms, char *said,
              size_t said_len);

uint64_t now_ns(void); /* CLOCK_BOOTTIME */

#endif
