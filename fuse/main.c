/* Pagestone | fuse/main — the program pagestone-fuse.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Started by "pagestone mount" (the view), by the library (the pager), and by hand. What it prints on stdout is for programs: one mount a line, fields separated by tabs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fuse/mount.h"
#include "fuse/server.h"

static const char usage[] = "usage: pagestone-fuse --view STORE DIR [--read-only] [--allow-other] [--foreground]\n"
                            "       pagestone-fuse --umount DIR [--lazy | --force]\n"
                            "       pagestone-fuse --status [DIR]\n"
                            "       pagestone-fuse --can-mount\n"
                            "       pagestone-fuse --pager STORE DIR [--ready-fd N] [--hold-fd N] [--foreground]\n";

enum action { NOTHING, VIEW, PAGER, UMOUNT, STATUS, CAN_MOUNT };
struct arguments {
    enum action action;
    enum unmount_how how;
    struct server_options server;
};

enum {
    O_VIEW = 256,
    O_PAGER,
    O_UMOUNT,
    O_STATUS,
    O_CAN,
    O_RO,
    O_OTHER,
    O_FORE,
    O_LAZY,
    O_FORCE,
    O_READY,
    O_HOLD,
    O_HELP
};
static const struct option options[] = {
    {"view", no_argument, NULL, O_VIEW},
    {"pager", no_argument, NULL, O_PAGER},
    {"umount", no_argument, NULL, O_UMOUNT},
    {"status", no_argument, NULL, O_STATUS},
    {"can-mount", no_argument, NULL, O_CAN},
    {"read-only", no_argument, NULL, O_RO},
    {"allow-other", no_argument, NULL, O_OTHER},
    {"foreground", no_argument, NULL, O_FORE},
    {"lazy", no_argument, NULL, O_LAZY},
    {"force", no_argument, NULL, O_FORCE},
    {"ready-fd", required_argument, NULL, O_READY},
    {"hold-fd", required_argument, NULL, O_HOLD},
    {"help", no_argument, NULL, O_HELP},
    {NULL, 0, NULL, 0},
};

static int wrong(void)
{
    fputs(usage, stderr);
    return 2;
}

static int complain(const char *why)
{
    fprintf(stderr, "pagestone-fuse: %s\n", why);
    return 1;
}

/* A descriptor that the starter left open for us. It must not reach fusermount3. */
static bool descriptor(const char *text, int *fd)
{
    char *end;
    long v = strtol(text, &end, 10);
    if (*end || v < 3 || v > 1 << 20 || fcntl((int)v, F_SETFD, FD_CLOEXEC)) return false;
    *fd = (int)v;
    return true;
}

static bool choose(struct arguments *a, enum action action)
{
    if (a->action != NOTHING) return false;
    a->action = action;
    return true;
}

static bool option(struct arguments *a, int o)
{
    switch (o) {
    case O_VIEW:
        return choose(a, VIEW);
    case O_PAGER:
        return choose(a, PAGER);
    case O_UMOUNT:
        return choose(a, UMOUNT);
    case O_STATUS:
        return choose(a, STATUS);
    case O_CAN:
        return choose(a, CAN_MOUNT);
    case O_RO:
        a->server.read_only = true;
        return true;
    case O_OTHER:
        a->server.allow_other = true;
        return true;
    case O_FORE:
        a->server.foreground = true;
        return true;
    case O_LAZY:
        a->how = UNMOUNT_LAZY;
        return true;
    case O_FORCE:
        a->how = UNMOUNT_FORCE;
        return true;
    case O_READY:
        return descriptor(optarg, &a->server.ready_fd);
    case O_HOLD:
        return descriptor(optarg, &a->server.hold_fd);
    default:
        return false;
    }
}

/* The library's pager is started from any program, whatever that left open, and is nobody's child: the first process ends, so that the host program has nothing to wait for. */
static void leave_host(const struct server_options *o)
{
    if (o->ready_fd < 0 || o->foreground) return;
    for (int fd = 5; fd < 1024; fd++)
        if (fd != o->ready_fd && fd != o->hold_fd) close(fd);
#ifdef SYS_close_range
    syscall(SYS_close_range, 1024u, ~0u, 0u);
#endif
    if (fork() > 0) _exit(0);
}

/* What is opened later must not become one of the three. */
static void fill_standard(void)
{
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 3);
    if (fd >= 0) close(fd);
}

/* --- what it does --------------------------------------------------------------------------------------------------------------------- */
static int serve(struct arguments *a, const char *store, const char *dir)
{
    static char absolute[PATH_MAX], resolved[PATH_MAX];
    char why[500];
    const struct worker_program *program = a->action == VIEW ? &view_program : &pager_program;
    if (mount_resolve(dir, resolved, why, sizeof why)) return complain(why);
    /* The server changes to /. What is no path is a handle, which only the pager is given. */
    if (!realpath(store, absolute)) snprintf(absolute, sizeof absolute, "%s", store);
    a->server.store = absolute;
    a->server.mountpoint = resolved;
    a->server.fsname = absolute;
    leave_host(&a->server);
    return server_main(program, &a->server);
}

static int take_away(const struct arguments *a, const char *dir)
{
    char path[PATH_MAX], why[500];
    if (mount_resolve(dir, path, why, sizeof why)) return complain(why);
    return unmount(path, a->how, why, sizeof why) ? complain(why) : 0;
}

static const char *state_of(const char *dir)
{
    int rc = mount_probe(dir, 2000);
    if (rc == 0 || rc == -EACCES) return "answers";
    if (rc == -ETIMEDOUT) return "no answer";
    return rc == -ENOTCONN || rc == -ECONNABORTED ? "dead" : strerror(-rc);
}

static int show(const struct mount_entry *m, void *arg)
{
    const char *only = arg;
    if (strcmp(m->type, MOUNT_TYPE) != 0 || (only && strcmp(only, m->dir) != 0)) return 0;
    printf("%s\t%s\t%s\n", m->dir, m->source, state_of(m->dir));
    fflush(stdout);
    return 0;
}

static int show_all(const char *dir)
{
    char path[PATH_MAX], why[500];
    if (dir && mount_resolve(dir, path, why, sizeof why)) return complain(why);
    int rc = mount_each(show, dir ? path : NULL);
    return rc ? complain(strerror(-rc)) : 0;
}

static int can_mount(void)
{
    char why[500];
    if (fuse_lib_load(why, sizeof why) || mount_device_usable(why, sizeof why) || mount_right(why, sizeof why))
        return complain(why);
    printf("libfuse %s\n", fuse_lib_has(pkgversion) ? fuse_pkgversion() : "3");
    return 0;
}

int main(int argc, char **argv)
{
    fill_standard();
    struct arguments a = {.server = {.ready_fd = -1, .hold_fd = -1}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == O_HELP) return fputs(usage, stdout) < 0;
        if (!option(&a, o)) return wrong();
    }
    int n = argc - optind;
    char **rest = argv + optind;
    switch (a.action) {
    case VIEW:
    case PAGER:
        return n == 2 ? serve(&a, rest[0], rest[1]) : wrong();
    case UMOUNT:
        return n == 1 ? take_away(&a, rest[0]) : wrong();
    case STATUS:
        return n <= 1 ? show_all(n ? rest[0] : NULL) : wrong();
    case CAN_MOUNT:
        return n == 0 ? can_mount() : wrong();
    default:
        return wrong();
    }
}
