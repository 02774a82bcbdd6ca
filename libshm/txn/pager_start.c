/* Pagestone | txn/pager_start — starting the server that pages cold data in.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     this process                                      pagestone-fuse --pager
 *     a private directory, two channels, posix_spawn -> forks; the child starts the server, mounts
 *     reads one line                              <---- "ready" or "error: …"
 *     opens <directory>/image
 *     ends its side of the second channel         ----> takes the mount's name away, removes the directory
 *     reads the end of the other side             <---- closes it
 *
 * If this process dies in between, its side ends, too; if the server does, this process takes the name away, as far as it may. The server is nobody's child (it forks before it answers), so the host program, which may wait for its own children in its own way, sees one child
 * that ends at once; it is waited for here.
 *
 * Descriptors: ours are close-on-exec; the program closes whatever else the host leaked to it. Signals: none blocked, none ignored, a session of its own, so that a terminal's keys do not reach it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/file.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/pager.h"

#define PROGRAM "pagestone-fuse"
#define READY 3 /* numbers of the two channels in the server */
#define HOLD 4

extern char **environ;

static int refuse(char *why, size_t why_len, const char *what, int e)
{
    snprintf(why, why_len, e ? "%s: %s" : "%s", what, strerror(e));
    return -PGS_ENOTSUP;
}

/* --- the program ------------------------------------------------------------------------------------------------------------------- */
static bool program_at(char *path, size_t len, const char *dir, size_t dir_len, const char *sub)
{
    int n = snprintf(path, len, "%.*s%s" PROGRAM, (int)dir_len, dir, sub);
    return n > 0 && (size_t)n < len && access(path, X_OK) == 0;
}

bool pgs__pager_program(char *path, size_t len, char *why, size_t why_len)
{
    const char *named = secure_getenv("PAGESTONE_SERVER");
    if (named && *named) {
        snprintf(path, len, "%s", named);
        if (access(path, X_OK) == 0) return true;
        snprintf(why, why_len, "PAGESTONE_SERVER names %s, which cannot be executed", named);
        return false;
    }
    Dl_info info;
    if (dladdr((const void *)(uintptr_t)pgs__pager_program, &info) && info.dli_fname) {
        const char *slash = strrchr(info.dli_fname, '/');
        size_t dir_len = slash ? (size_t)(slash - info.dli_fname) : 1;
        const char *dir = slash ? info.dli_fname : ".";
        if (program_at(path, len, dir, dir_len, "/bin/") || program_at(path, len, dir, dir_len, "/")) return true;
    }
    snprintf(why, why_len, "the program " PROGRAM " is not beside the library: set PAGESTONE_SERVER to its path");
    return false;
}

/* Where the mount has its name for some milliseconds. */
static int make_dir(char *path, size_t len)
{
    const char *const bases[] = {secure_getenv("XDG_RUNTIME_DIR"), secure_getenv("TMPDIR"), "/tmp", "/dev/shm"};
    int rc = -ENOENT;
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        uint64_t name;
        if (!bases[i] || bases[i][0] != '/') continue;
        pgs__random(&name, sizeof name);
        int n = snprintf(path, len, "%s/pagestone-pager-%016llx", bases[i], (unsigned long long)name);
        rc = n > 0 && (size_t)n < len ? pgs__file_ops->mkdir(path, 0700) : -ENAMETOOLONG;
        if (rc == 0) return 0;
    }
    return rc;
}

/* How the server finds the store: its path, or its handle in hexadecimal. The caller frees it. */
static char *name_of(struct pgs__session *s)
{
    static const char prefix[] = "handle:";
    uint8_t handle[4096] = {'A'}; /* "of an anonymous store", as in what pgs_store_handle gives (api/open_api.c) */
    size_t n = pgs__session_handle(s, handle + 1, sizeof handle - 1);
    if (n >= sizeof handle) return NULL;
    char *name = pgs__malloc(sizeof prefix + 2 * (n + 1));
    if (!name) return NULL;
    if (!s->pf.anonymous) {
        memcpy(name, handle + 1, n);
        name[n] = 0;
        return name;
    }
    memcpy(name, prefix, sizeof prefix);
    for (size_t i = 0; i <= n; i++) snprintf(name + sizeof prefix - 1 + 2 * i, 3, "%02x", handle[i]);
    return name;
}

/* --- starting it ------------------------------------------------------------------------------------------------------------------------ */
/* Both ends above the numbers that they get in the server: the renumbering there must not step on itself. */
static int channel(int p[2])
{
    int low[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, low)) return -errno;
    p[0] = fcntl(low[0], F_DUPFD_CLOEXEC, 10);
    p[1] = fcntl(low[1], F_DUPFD_CLOEXEC, 10);
    int e = errno;
    pgs__file_ops->close(low[0]);
    pgs__file_ops->close(low[1]);
    if (p[0] >= 0 && p[1] >= 0) return 0;
    if (p[0] >= 0) pgs__file_ops->close(p[0]);
    if (p[1] >= 0) pgs__file_ops->close(p[1]);
    return -e;
}

static int spawn(const char *program, char *const argv[], int ready, int hold, pid_t *pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    if (posix_spawn_file_actions_init(&files)) return ENOMEM;
    if (posix_spawnattr_init(&attr)) {
        posix_spawn_file_actions_destroy(&files);
        return ENOMEM;
    }
    int rc = posix_spawn_file_actions_adddup2(&files, ready, READY);
    if (rc == 0) rc = posix_spawn_file_actions_adddup2(&files, hold, HOLD);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr, (short)(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID));
    if (rc == 0) rc = posix_spawn(pid, program, &files, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    return rc;
}

/* The process that we started ends at once; false: it does not. ECHILD: the host ignores or reaps its children. */
static bool wait_for(pid_t pid, uint64_t until_ns)
{
    while (waitpid(pid, NULL, WNOHANG) == 0) {
        if (pgs__clock_boot_ns() > until_ns) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return true;
}

/* One line, to the end of the file. False: time is up. */
static bool read_line(int fd, uint64_t until_ns, char *line, size_t len)
{
    size_t n = 0;
    for (;;) {
        uint64_t now = pgs__clock_boot_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int got = poll(&p, 1, now >= until_ns ? 0 : (int)((until_ns - now) / 1000000u) + 1);
        if (got == 0 || (got < 0 && errno != EINTR)) return false;
        if (got < 0) continue;
        ssize_t r = read(fd, line + n, len - 1 - n);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) break;
        n += (size_t)r;
    }
    while (n > 0 && line[n - 1] == '\n') n--;
    line[n] = 0;
    return true;
}

static int converse(const char *dir, int ready, uint64_t until_ns, char *why, size_t why_len)
{
    char line[400], path[4300];
    if (!read_line(ready, until_ns, line, sizeof line))
        return refuse(why, why_len, "the pager did not start in time", 0);
    if (strcmp(line, "ready") != 0) {
        const char *text = strncmp(line, "error: ", 7) == 0 ? line + 7 : line;
        return refuse(why, why_len, *text ? text : "the pager ended before it was ready", 0);
    }
    snprintf(path, sizeof path, "%s/image", dir);
    int fd = pgs__file_ops->open(path, O_RDONLY, 0);
    return fd >= 0 ? fd : refuse(why, why_len, "cannot open the pager's file", -fd);
}

/* Returns when the mount has no name any more. */
static void let_go(int hold, const char *dir)
{
    char line[8];
    shutdown(hold, SHUT_WR);
    (void)read_line(hold, pgs__clock_boot_ns() + UINT64_C(1000000000), line, sizeof line);
    if (access(dir, F_OK) && errno == ENOENT) return;
    (void)umount2(dir, MNT_DETACH | UMOUNT_NOFOLLOW); /* the server died, or is slow */
    (void)pgs__file_ops->rmdir(dir);
}

static int start_in(struct pgs__session *s, const char *program, char *dir, uint64_t until_ns, char *why,
                    size_t why_len)
{
    int ready[2], hold[2], fd = -PGS_ENOTSUP;
    pid_t pid;
    char ready_number[4], hold_number[4], program_name[] = PROGRAM, o_pager[] = "--pager", o_ready[] = "--ready-fd",
                                          o_hold[] = "--hold-fd";
    char *store = name_of(s);
    if (!store) return refuse(why, why_len, "no memory to name the store", 0);
    snprintf(ready_number, sizeof ready_number, "%d", READY);
    snprintf(hold_number, sizeof hold_number, "%d", HOLD);
    char *argv[] = {program_name, o_pager, o_ready, ready_number, o_hold, hold_number, store, dir, NULL};
    int rc = channel(ready);
    if (rc) {
        pgs__free(store);
        return refuse(why, why_len, "no descriptors for a pager", -rc);
    }
    rc = channel(hold);
    if (rc == 0) {
        int e = spawn(program, argv, ready[1], hold[0], &pid);
        pgs__file_ops->close(ready[1]);
        pgs__file_ops->close(hold[0]);
        if (e == 0) {
            fd = wait_for(pid, until_ns) ? converse(dir, ready[0], until_ns, why, why_len)
                                         : refuse(why, why_len, "the pager did not start in time", 0);
        } else {
            refuse(why, why_len, program, e);
        }
        if (e == 0) let_go(hold[1], dir);
        pgs__file_ops->close(hold[1]);
    } else {
        refuse(why, why_len, "no descriptors for a pager", -rc);
        pgs__file_ops->close(ready[1]);
    }
    pgs__file_ops->close(ready[0]);
    pgs__free(store);
    return fd;
}

int pgs__pager_start(struct pgs__session *s, uint64_t until_ns, char *why, size_t why_len)
{
    char program[4200], dir[4200];
    if (!pgs__pager_program(program, sizeof program, why, why_len)) return -PGS_ENOTSUP;
    int rc = make_dir(dir, sizeof dir);
    if (rc) return refuse(why, why_len, "no directory for the pager's mount (XDG_RUNTIME_DIR, TMPDIR, /tmp)", -rc);
    int fd = start_in(s, program, dir, until_ns, why, why_len);
    if (fd < 0) (void)pgs__file_ops->rmdir(dir); /* where the server did not come so far as to do it */
    return fd;
}
