/* Pagestone | fuse/mount — getting a mounted /dev/fuse descriptor, and taking mounts away.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Nothing here waits for a file system to answer: what is mounted is read from /proc/self/mountinfo, and whether it answers is asked by a throw-away process.
 * No thread may be running (fork).
 */
#ifndef PAGESTONE_FUSE_MOUNT_H
#define PAGESTONE_FUSE_MOUNT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define MOUNT_TYPE "fuse.pagestone"

struct mount_options {
    const char *fsname;
    bool read_only, allow_other;
};

/* A descriptor of /dev/fuse whose INIT request is waiting; -1 with one line in `why`. dir: from mount_resolve. */
int mount_open(const char *dir, const struct mount_options *opt, char *why, size_t why_len);

/* The absolute path of a mount point, symbolic links followed but for the last name, which is not touched. 0; -1 with `why`. */
int mount_resolve(const char *dir, char out[PATH_MAX], char *why, size_t why_len);

/* Make a mount point fit for use: a stale mount of ours is taken away, a living one is an error, and what is left must be a directory. 0; -1 with `why`. */
int mount_prepare(const char *dir, char *why, size_t why_len);

/* Can this process use /dev/fuse? 0; -1 with `why`. */
int mount_device_usable(char *why, size_t why_len);
/* Would a mount be allowed, as far as one can tell without one? 0; -1 with `why`. */
int mount_right(char *why, size_t why_len);

enum unmount_how {
    UNMOUNT_PLAIN,
    UNMOUNT_LAZY /* the name goes now, the rest with its last user */,
    UNMOUNT_FORCE /* its users get errors */
};
/* 0; -errno with `why`. Bounded: gives up after 10 s (-ETIMEDOUT). */
int unmount(const char *dir, enum unmount_how how, char *why, size_t why_len);

/* Ask a file system for its root: 0, -errno, or -ETIMEDOUT. */
int mount_probe(const char *dir, int timeout_ms);

struct mount_entry {
    char dir[PATH_MAX], source[PATH_MAX], type[64];
    unsigned major, minor; /* of the device: the number of the connection is `minor` */
};
/* Calls f for each mount, in order; ends when it returns nonzero, with that. -errno: cannot be read. */
int mount_each(int (*f)(const struct mount_entry *m, void *arg), void *arg);
/* The mount that lies on top of that very path; false: none. */
bool mount_find(const char *dir, struct mount_entry *out);

#endif
