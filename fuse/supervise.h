/* Pagestone | fuse/supervise — what supervisor and worker process share below the programs.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PAGESTONE_FUSE_SUPERVISE_H
#define PAGESTONE_FUSE_SUPERVISE_H

#include <stdatomic.h>

#include "fuse/server.h"

#define INIT_MAX 512u

/* One page, mapped by supervisor and workers. */
struct server_shared {
    /* Written by the supervisor before the first worker is answered, then read only. */
    uint32_t init_len;
    bool resend; /* the kernel can send again what was not answered */
    uint8_t init[INIT_MAX];
    /* Written by the first worker: the answer to INIT, then its length. Later ones must come to the same answer. */
    uint8_t reply[INIT_MAX];
    _Atomic uint32_t reply_len;
    _Atomic bool
        replied; /* the kernel has it; set after the write: a worker that dies between makes the next one write it once more, which the kernel refuses */
    _Atomic int64_t n_open;
    _Atomic uint64_t idle_since_ns; /* when n_open became 0 */
};

/* Exit statuses of a worker: 0 is an orderly end. */
enum {
    WORKER_FAILED = 3 /* FAILED was sent; another try may work */,
    WORKER_HOPELESS = 4 /* no later worker can do better */
};

/* In the worker's process. Never returns. */
_Noreturn void worker_run(const struct worker_program *program, const struct server_options *opt,
                          struct server_shared *shared, void *share, bool reborn, int keeper);

void server_log_to_stderr(bool yes);

#endif
