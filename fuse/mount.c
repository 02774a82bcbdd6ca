/* Pagestone | fuse/mount — getting a mounted /dev/fuse descriptor.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Who may call mount(2) does so. For others fusermount3, which is setuid, opens the device, mounts, and sends the descriptor over the socket whose number it finds in
 * _FUSE_COMMFD. auto_unmount is not asked for: it keeps a process that unmounts when this one ends, also when the supervisor only meant to hand over.
 */
#define _GNU_SOURCE
#include "fuse/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuse/child.h"

#define DEVICE "/dev/fuse"

static int fail(char *why, size_t why_len, const char *fmt, const char *a, const char *b)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(why, why_len, fmt, a, b);
#pragma GCC diagnostic pop
    return -1;
}

/* --- the device ----------------------------------------------------------------------------------------------------------- */
static int open_device(char *why, size_t why_len)
{
    int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
    if (fd >= 0) return fd;
    struct stat st;
    char mode[16] = "?";
    switch (errno) {
    case ENOENT:
        return fail(
            why, why_len,
            "%s is not there: load the kernel's module (modprobe fuse); in a container, start it with --device %s",
            DEVICE, DEVICE);
    case EACCES:
    case EPERM:
        if (stat(DEVICE, &st) == 0) snprintf(mode, sizeof mode, "%03o", st.st_mode & 0777u);
        return fail(
            why, why_len,
            "no permission to open /dev/fuse (mode %s): as root, chmod 666 %s; or, in a container, allow the device",
            mode, DEVICE);
    case ENODEV:
    case ENXIO:
        return fail(why, why_len, "%s has no driver: load the kernel's module (modprobe fuse)%s", DEVICE, "");
    default:
        return fail(why, why_len, "cannot open %s: %s", DEVICE, strerror(errno));
    }
}

int mount_device_usable(char *why, size_t why_len)
{
    int fd = open_device(why, why_len);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}

/* --- mounting ------------------------------------------------------------------------------------------------------------------ */
static int mount_directly(int device, const char *dir, const struct mount_options *opt)
{
    char data[160];
    snprintf(data, sizeof data, "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions%s", device, geteuid(),
             getegid(), opt->allow_other ? ",allow_other" : "");
    unsigned long flags = MS_NOSUID | MS_NODEV | (opt->read_only ? MS_RDONLY : 0ul);
    return mount(opt->fsname, dir, MOUNT_TYPE, flags, data) ? -errno : 0;
}

/* Options are separated by commas, and a backslash makes a comma one of the name. */
static void append_escaped(char *out, size_t len, const char *name)
{
    size_t at = strlen(out);
    for (; *name && at + 3 < len; name++) {
        if (*name == ',' || *name == '\\') out[at++] = '\\';
        out[at++] = *name;
    }
    out[at] = 0;
}

static int receive_device(int sock)
{
    char byte;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    ssize_t n;
    do n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
        return -1;
    int fd;
    memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

static int mount_with_helper(const char *dir, const struct mount_options *opt, char *why, size_t why_len)
{
    char options[PATH_MAX + 128], number[16], said[256];
    int sock[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock))
        return fail(why, why_len, "cannot make a socket: %s%s", strerror(errno), "");
    snprintf(options, sizeof options,
             "%s,nosuid,nodev,default_permissions,subtype=pagestone%s,fsname=", opt->read_only ? "ro" : "rw",
             opt->allow_other ? ",allow_other" : "");
    append_escaped(options, sizeof options, opt->fsname);
    snprintf(number, sizeof number, "%d", sock[1]);
    const char *argv[] = {"fusermount3", "-o", options, "--", dir, NULL};
    int status = child_run(argv, "_FUSE_COMMFD", number, sock[1], 10000, said, sizeof said);
    close(sock[1]);
    int fd = status == 0 ? receive_device(sock[0]) : -1;
    close(sock[0]);
    if (fd >= 0) return fd;
    if (status == CHILD_MISSING)
        return fail(why, why_len,
                    "fusermount3 is not there, and only root can mount without it: install the package fuse3 (%s)%s",
                    "Debian: apt install fuse3", "");
    if (status == CHILD_TIMEOUT) return fail(why, why_len, "fusermount3 did not end%s%s", "", "");
    return fail(why, why_len, "cannot mount %s: %s", dir, *said ? said : "fusermount3 failed");
}

int mount_open(const char *dir, const struct mount_options *opt, char *why, size_t why_len)
{
    int device = open_device(why, why_len);
    if (device < 0) return -1;
    int rc = mount_directly(device, dir, opt);
    if (rc == 0) return device;
    close(device);
    if (rc == -EPERM && geteuid() != 0) return mount_with_helper(dir, opt, why, why_len);
    if (rc == -EPERM)
        return fail(
            why, why_len,
            "not allowed to mount %s: this needs CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN --device %s)", dir,
            DEVICE);
    if (rc == -ENODEV) return fail(why, why_len, "the kernel has no FUSE: load its module (modprobe fuse)%s%s", "", "");
    return fail(why, why_len, "cannot mount %s: %s", dir, strerror(-rc));
}

int mount_right(char *why, size_t why_len)
{
    char said[256];
    const char *argv[] = {"fusermount3", "--version", NULL};
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2] = {{0}};
    if (syscall(SYS_capget, &head, caps) == 0 && caps[0].effective & (1u << CAP_SYS_ADMIN)) return 0;
    if (geteuid() == 0)
        return fail(
            why, why_len,
            "not allowed to mount: this needs CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN --device %s)%s",
            DEVICE, "");
    if (child_run(argv, NULL, NULL, -1, 2000, said, sizeof said) == 0) return 0;
    return fail(why, why_len,
                "fusermount3 is not there, and only root can mount without it: install the package fuse3 (%s)%s",
                "Debian: apt install fuse3", "");
}

/* --- the mount point ------------------------------------------------------------------------------------------------------------ */
int mount_resolve(const char *dir, char out[PATH_MAX], char *why, size_t why_len)
{
    char copy[PATH_MAX], parent[PATH_MAX];
    size_t len = strlen(dir);
    while (len > 1 && dir[len - 1] == '/') len--;
    if (len == 0 || len >= sizeof copy) return fail(why, why_len, "%s is no usable path%s", *dir ? "this" : "\"\"", "");
    memcpy(copy, dir, len);
    copy[len] = 0;
    char *slash = strrchr(copy, '/');
    const char *last = slash ? slash + 1 : copy;
    if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0) { /* no last name that could be a mount's */
        if (!realpath(copy, out)) return fail(why, why_len, "%s: %s", copy, strerror(errno));
        return 0;
    }
    const char *above = !slash ? "." : slash == copy ? "/" : copy;
    if (slash && slash != copy) *slash = 0;
    if (!realpath(above, parent)) return fail(why, why_len, "%s: %s", above, strerror(errno));
    int n = snprintf(out, PATH_MAX, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, last);
    return n < PATH_MAX ? 0 : fail(why, why_len, "%s: %s", dir, strerror(ENAMETOOLONG));
}

int mount_prepare(const char *dir, char *why, size_t why_len)
{
    struct mount_entry m;
    struct stat st;
    for (int i = 0; i < 64 && mount_find(dir, &m) && strncmp(m.type, "fuse", 4) == 0; i++) {
        int rc = mount_probe(dir, 2000);
        if (rc == -ETIMEDOUT)
            return fail(why, why_len, "what is mounted at %s does not answer: pagestone umount --force %s", dir, dir);
        if (rc == 0 && strcmp(m.type, MOUNT_TYPE) == 0)
            return fail(why, why_len, "a store is mounted at %s already: pagestone umount %s first", dir, dir);
        if (rc != -ENOTCONN && rc != -ECONNABORTED) break;
        if (unmount(dir, UNMOUNT_LAZY, why, why_len)) return -1;
    }
    if (stat(dir, &st))
        return fail(why, why_len, errno == ENOENT ? "%s is not there: make the directory first" : "%s: %s", dir,
                    strerror(errno));
    if (!S_ISDIR(st.st_mode)) return fail(why, why_len, "%s is not a directory%s", dir, "");
    return 0;
}

/* --- what is mounted ---------------------------------------------------------------------------------------------------------- */
/* mountinfo writes blanks, tabs, newlines and backslashes as \ooo. */
static void unescape(char *out, size_t len, const char *in)
{
    size_t at = 0;
    while (*in && at + 1 < len) {
        if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] && in[3]) {
            out[at++] = (char)((in[1] - '0') * 64 + (in[2] - '0') * 8 + (in[3] - '0'));
            in += 4;
        } else {
            out[at++] = *in++;
        }
    }
    out[at] = 0;
}

/* "36 35 98:0 /root /dir options optional… - type source options" */
static bool parse(char *line, struct mount_entry *m)
{
    char *rest = strstr(line, " - "), *save = NULL, *dir = NULL;
    if (!rest) return false;
    *rest = 0;
    if (sscanf(line, "%*u %*u %u:%u", &m->major, &m->minor) != 2) return false;
    char *word = strtok_r(line, " ", &save);
    for (int i = 0; word && i < 5; i++, word = strtok_r(NULL, " ", &save)) dir = word;
    if (!dir) return false;
    unescape(m->dir, sizeof m->dir, dir);
    char *type = strtok_r(rest + 3, " \n", &save), *source = strtok_r(NULL, " \n", &save);
    unescape(m->type, sizeof m->type, type ? type : "");
    unescape(m->source, sizeof m->source, source ? source : "");
    return true;
}

int mount_each(int (*f)(const struct mount_entry *m, void *arg), void *arg)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (!file) return -errno;
    char *line = NULL;
    size_t cap = 0;
    int rc = 0;
    static struct mount_entry m;
    while (rc == 0 && getline(&line, &cap, file) >= 0)
        if (parse(line, &m)) rc = f(&m, arg);
    free(line);
    fclose(file);
    return rc;
}

struct search {
    const char *dir;
    struct mount_entry *out;
    bool found;
};
static int compare(const struct mount_entry *m, void *arg)
{
    struct search *s = arg;
    if (strcmp(m->dir, s->dir) == 0) {
        *s->out = *m; /* later ones lie on top */
        s->found = true;
    }
    return 0;
}

bool mount_find(const char *dir, struct mount_entry *out)
{
    struct search s = {dir, out, false};
    return mount_each(compare, &s) == 0 && s.found;
}

static int look(void *arg)
{
    struct statx st; /* whatever the kernel has cached, the server must answer */
    return statx(AT_FDCWD, arg, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &st) ? errno : 0;
}

int mount_probe(const char *dir, int timeout_ms)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/.", dir);
    return -child_ask(look, path, timeout_ms);
}
