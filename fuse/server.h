/* Pagestone | fuse/server — what a worker program is, and what the supervisor does for it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two programs run on this: the view of a store (view.h) and the pager of its cold data (pager.c). The supervisor mounts, holds /dev/fuse, and forks workers; a worker runs a
 * libfuse session over the descriptor and may die at any instruction. What the next worker needs of the last one is in `share` and in kept descriptors, nothing else.
 *
 *   S1  `share` is zero-filled when the first worker starts and mapped at the same address in every worker. Its writer orders its stores so that a death between any two of
 *       them leaves something the next worker can use.
 *   S2  The supervisor has one thread, opens no store, and allocates nothing after its start.
 *   S3  No worker notifies the kernel from a thread that answers requests.
 */
#ifndef PAGESTONE_FUSE_SERVER_H
#define PAGESTONE_FUSE_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse/lib.h"

#define SHARE_BYTES (16ull << 30) /* address space; pages are taken as they are touched */

struct server_options {
    const char *store;      /* path */
    const char *mountpoint; /* an existing directory, absolute */
    const char *fsname;     /* what /proc/mounts shows as source */
    bool read_only, allow_other, foreground;
    int ready_fd; /* -1, or: one line "ready\n" or "error: …\n" is written there, then it is closed */
    int hold_fd; /* -1, or: at its end of file the mount loses its name, and the directory is removed; open files live on */
};

struct server { /* as a worker sees it */
    const struct server_options *opt;
    void *share;
    size_t share_len;
    bool reborn;                  /* another worker was here before */
    struct fuse_session *session; /* set before start() */
    int keeper;                   /* socket to the supervisor (keep.c) */
};

/* The supervisor keeps duplicates of descriptors under a number below KEEP_MAX for the workers to come. */
#define KEEP_MAX 4096u
int server_keep(struct server *s, uint32_t number, int fd); /* waits until the supervisor has it: 0 or -errno */
int server_kept(struct server *s, uint32_t number);         /* a new descriptor, or -errno */
void server_drop(struct server *s, uint32_t number);

struct worker_program {
    const char *name;
    struct fuse_lowlevel_ops ops; /* init and destroy are the server's own */
    /* Before the first request. *data becomes the session's userdata. 0, or -1 with one line in `why`. */
    int (*start)(struct server *s, void **data, char *why, size_t why_len);
    void (*stop)(void *data); /* orderly end only */
    unsigned want;            /* FUSE_CAP_… to be asked for where the kernel has them */
    unsigned refuse;          /* FUSE_CAP_… that libfuse would set by itself and that are not wanted */
    unsigned
        idle_seconds; /* end when no file was open for so long; 0: never. The program counts: server_opened, server_closed */
};
void server_opened(struct server *s);
void server_closed(struct server *s);

/* Reply with n bytes of memory that may not be mapped in yet, such as a view of the store. Like fuse_reply_buf, but a worker that is killed in the middle of
 * it does not make the client's read fail: what the kernel has to fault in while it copies from a dying process is EIO, so it is faulted in before. */
int server_reply_memory(fuse_req_t req, const void *p, size_t n);

/* Of the request that this thread is answering: it was read by a worker that died before it had answered, which may have done what it asks. */
bool server_resent(void);

/* One line, no newline: stderr in the foreground, else syslog. */
void server_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Mount, then supervise until unmounted. Returns the exit status. */
int server_main(const struct worker_program *program, const struct server_options *opt);

extern const struct worker_program view_program;  /* view.c */
extern const struct worker_program pager_program; /* pager.c */

#endif
