/* Pagestone | fuse/child — throw-away processes with a time limit.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See child.h. The answer comes over a pipe rather than as an exit status, so that a caller that reaps all its children (the supervisor) is in nobody's way.
 */
#define _GNU_SOURCE
#include "fuse/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int readable(int fd, uint64_t until_ns)
{
    for (;;) {
        uint64_t now = now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = poll(&p, 1, now >= until_ns ? 0 : (int)((until_ns - now) / 1000000u) + 1);
        if (n > 0) return 1;
        if (n == 0) return 0;
        if (errno != EINTR) return -1;
    }
}

/* Not before it has ended, if it ends soon: a caller without SIGCHLD handling is left without zombies. */
static void reap(pid_t pid)
{
    for (int i = 0; i < 100 && waitpid(pid, NULL, WNOHANG) == 0; i++) usleep(1000);
}

static void default_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void no_standard(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++) {
        if (null >= 0)
            dup2(null, fd);
        else
            close(fd);
    }
}

int child_ask(int (*f)(void *arg), void *arg, int timeout_ms)
{
    int p[2];
    if (pipe2(p, O_CLOEXEC)) return errno;
    pid_t pid = fork();
    if (pid < 0) {
        int e = errno;
        close(p[0]), close(p[1]);
        return e;
    }
    if (pid == 0) {
        default_signals();
        no_standard(); /* who reads our output must not wait for this process */
        unsigned char answer = (unsigned char)f(arg);
        _exit(write(p[1], &answer, 1) == 1 ? 0 : 1);
    }
    close(p[1]);
    unsigned char answer = EIO;
    int rc = readable(p[0], now_ns() + (uint64_t)timeout_ms * 1000000u);
    if (rc > 0 && read(p[0], &answer, 1) != 1) answer = EIO;
    close(p[0]);
    if (rc <= 0) {
        kill(pid, SIGKILL);
        return ETIMEDOUT;
    }
    reap(pid);
    return answer;
}

/* --- programs ------------------------------------------------------------------------------------------------------------------ */
#define EXEC_FAILED 127

static void run_here(const char *const argv[], const char *name, const char *value, int inherit, int err)
{
    char path[64] = "/usr/bin/";
    default_signals();
    if (name) setenv(name, value, 1);
    if (inherit >= 0) fcntl(inherit, F_SETFD, 0);
    int null = open("/dev/null", O_RDWR);
    if (null >= 0) dup2(null, 0), dup2(null, 1);
    dup2(err, 2);
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    strncat(path, argv[0], sizeof path - strlen(path) - 1);
    execv(path, (char *const *)(uintptr_t)argv);
    _exit(EXEC_FAILED);
}

/* All of what it says, the last line of it kept. 1: it closed its end; 0: time is up. */
static int listen_to(int fd, uint64_t until_ns, char *said, size_t said_len)
{
    size_t n = 0;
    int rc;
    char extra[256];
    while ((rc = readable(fd, until_ns)) > 0) {
        bool full = n + 1 >= said_len;
        ssize_t got = full ? read(fd, extra, sizeof extra) : read(fd, said + n, said_len - 1 - n);
        if (got <= 0) break;
        if (!full) n += (size_t)got;
    }
    while (n > 0 && said[n - 1] == '\n') n--;
    said[n] = 0;
    char *last = strrchr(said, '\n');
    if (last) memmove(said, last + 1, strlen(last));
    return rc;
}

static int status_of(pid_t pid, uint64_t until_ns)
{
    int status;
    for (;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : CHILD_FAILED;
        if (got < 0 && errno != EINTR) return CHILD_FAILED;
        if (now_ns() > until_ns) return CHILD_TIMEOUT;
        usleep(1000);
    }
}

int child_run(const char *const argv[], const char *name, const char *value, int inherit, int timeout_ms, char *said,
              size_t said_len)
{
    int p[2];
    uint64_t until = now_ns() + (uint64_t)timeout_ms * 1000000u;
    said[0] = 0;
    if (pipe2(p, O_CLOEXEC)) return CHILD_FAILED;
    pid_t pid = fork();
    if (pid == 0) run_here(argv, name, value, inherit, p[1]);
    close(p[1]);
    int status = CHILD_FAILED;
    if (pid > 0) {
        status = listen_to(p[0], until, said, said_len) == 0 ? CHILD_TIMEOUT : status_of(pid, until);
        if (status == CHILD_TIMEOUT) kill(pid, SIGKILL);
    }
    close(p[0]);
    return status == EXEC_FAILED ? CHILD_MISSING : status;
}
