/* Pagestone | fuse/keep — descriptors that outlive their worker, and the socket that carries them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * When the supervisor is gone no worker will come after this one, so there is nothing to keep: server_keep succeeds then.
 */
#define _GNU_SOURCE
#include "fuse/keep.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuse/server.h"

union control {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int))];
};

int keep_send(int sock, const struct keep_message *m, int fd)
{
    struct iovec iov = {(void *)(uintptr_t)m, sizeof *m};
    union control control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        msg.msg_control = control.space;
        msg.msg_controllen = sizeof control.space;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n;
    do n = sendmsg(sock, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof *m) return 0;
    return n < 0 && errno != ECONNRESET ? -errno : -EPIPE;
}

int keep_receive(int sock, struct keep_message *m, int *fd)
{
    struct iovec iov = {m, sizeof *m};
    union control control;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    ssize_t n;
    *fd = -1;
    do n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return -EPIPE;
    if (n < 0) return -errno;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof *fd))
        memcpy(fd, CMSG_DATA(c), sizeof *fd);
    if (n == (ssize_t)sizeof *m) return 0;
    if (*fd >= 0) close(*fd);
    *fd = -1;
    return -EPROTO;
}

/* --- the worker's side ----------------------------------------------------------------------------------------------------- */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* one question at a time */

static int ask(struct server *s, struct keep_message *m, int fd, int *answer_fd)
{
    pthread_mutex_lock(&turn);
    int rc = keep_send(s->keeper, m, fd);
    if (rc == 0) rc = keep_receive(s->keeper, m, answer_fd);
    pthread_mutex_unlock(&turn);
    return rc ? rc : m->result;
}

int server_keep(struct server *s, uint32_t number, int fd)
{
    struct keep_message m = {.what = KEEP_PUT, .number = number};
    int none = -1;
    if (number >= KEEP_MAX) return -EINVAL;
    int rc = ask(s, &m, fd, &none);
    if (none >= 0) close(none);
    return rc == -EPIPE ? 0 : rc;
}

int server_kept(struct server *s, uint32_t number)
{
    struct keep_message m = {.what = KEEP_GET, .number = number};
    int fd = -1;
    if (number >= KEEP_MAX) return -EINVAL;
    int rc = ask(s, &m, -1, &fd);
    if (rc == 0) return fd >= 0 ? fd : -EMFILE;
    if (fd >= 0) close(fd);
    return rc;
}

void server_drop(struct server *s, uint32_t number)
{
    struct keep_message m = {.what = KEEP_DROP, .number = number};
    if (number >= KEEP_MAX) return;
    pthread_mutex_lock(&turn);
    keep_send(s->keeper, &m, -1);
    pthread_mutex_unlock(&turn);
}
