/* Pagestone | fuse/keep — what supervisor and worker say to each other.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One SOCK_SEQPACKET pair per worker. The worker asks, one question at a time; PUT, GET and STARTED are answered, the others are not. What a worker asked before it died may go
 * unheard: it had no answer, so it has promised nothing to anybody.
 *
 *     worker                              supervisor
 *     STARTED ------------------------->  mounts, the first time
 *             <------------------------- result, the descriptor of /dev/fuse
 *     SERVING ------------------------->  tells who waits that the mount is ready
 *     PUT n (descriptor) -------------->  keeps it
 *     GET n --------------------------->  a duplicate
 *     ENDING -------------------------->  the connection is gone: gives it a minute
 *     FAILED text --------------------->  it will exit
 */
#ifndef PAGESTONE_FUSE_KEEP_H
#define PAGESTONE_FUSE_KEEP_H

#include <stdint.h>

enum keep_what { KEEP_STARTED = 1, KEEP_SERVING, KEEP_PUT, KEEP_GET, KEEP_DROP, KEEP_ENDING, KEEP_FAILED };

struct keep_message {
    uint32_t what;
    uint32_t number;
    int32_t result; /* of an answer: 0 or -errno */
    uint32_t pad;
    char text[400]; /* FAILED */
};

/* fd: -1 for none. 0 or -errno; -EPIPE when the other side is gone. */
int keep_send(int sock, const struct keep_message *m, int fd);
/* Waits. *fd: the caller's, -1 for none. 0 or -errno; -EPIPE when the other side is gone. */
int keep_receive(int sock, struct keep_message *m, int *fd);

#endif
