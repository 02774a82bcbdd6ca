/* Pagestone | fuse/unmount — taking a mount away without ever hanging on it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * umount2 can wait for the server (it writes dirty pages back first), so it runs in a throw-away process. MNT_FORCE of FUSE aborts the connection: whoever waits
 * for an answer gets an error. Who is not root asks fusermount3, and aborts through the connection's file below /sys/fs/fuse.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "fuse/child.h"
#include "fuse/mount.h"

#define PATIENCE_MS 10000

struct job {
    const char *dir;
    int flags;
};

static int call(void *arg)
{
    struct job *j = arg;
    return umount2(j->dir, j->flags | UMOUNT_NOFOLLOW) ? errno : 0;
}

static int with_helper(const char *dir, bool lazy, char *said, size_t said_len)
{
    const char *plainly[] = {"fusermount3", "-u", "--", dir, NULL};
    const char *lazily[] = {"fusermount3", "-u", "-z", "--", dir, NULL};
    int status = child_run(lazy ? lazily : plainly, NULL, NULL, -1, PATIENCE_MS, said, said_len);
    if (status == CHILD_MISSING) {
        snprintf(said, said_len, "fusermount3 is not there (Debian: apt install fuse3)");
        return ENOENT;
    }
    if (status == CHILD_TIMEOUT) return ETIMEDOUT;
    if (status == 0) return 0;
    return strstr(said, "busy") ? EBUSY : EPERM;
}

/* Its users get errors from now on. Root's umount2 does it by itself. */
static void abort_connection(unsigned minor)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/fs/fuse/connections/%u/abort", minor);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = write(fd, "1", 1);
    (void)n;
    close(fd);
}

int unmount(const char *dir, enum unmount_how how, char *why, size_t why_len)
{
    struct mount_entry m;
    char said[256] = "";
    if (!mount_find(dir, &m)) {
        snprintf(why, why_len, "nothing is mounted at %s", dir);
        return -EINVAL;
    }
    struct job j = {dir, how == UNMOUNT_PLAIN ? 0 : MNT_DETACH};
    if (how == UNMOUNT_FORCE) {
        struct job force = {dir, MNT_FORCE};
        abort_connection(m.minor);
        if (child_ask(call, &force, PATIENCE_MS) == 0) return 0;
    }
    int rc = child_ask(call, &j, PATIENCE_MS);
    if (rc == EPERM) rc = with_helper(dir, how != UNMOUNT_PLAIN, said, sizeof said);
    if (rc == 0) return 0;
    if (rc == EBUSY)
        snprintf(why, why_len,
                 "%s is in use: close what is open there, or take the name away now and the rest with its last user: "
                 "pagestone umount --lazy %s",
                 dir, dir);
    else if (rc == ETIMEDOUT)
        snprintf(why, why_len, "the server of %s does not answer: pagestone umount --force %s", dir, dir);
    else
        snprintf(why, why_len, "cannot unmount %s: %s", dir, *said ? said : strerror(rc));
    return -rc;
}
