/* Pagestone | fuse/supervise — the process that holds the connection while workers come and go.
 * SPDX-License-Identifier: Apache-2.0
 *
 * State of the server                 event                              what follows
 *   starting (no mount)               STARTED                            mount, save INIT, hand over the device   -> mounted
 *                                     FAILED or death, hold_fd, signal   "error: …"                               -> end
 *   mounted                           SERVING (the first)                "ready"
 *                                     death, resend, not too often       a new worker                             -> mounted
 *                                     death otherwise                    the descriptors close: ENOTCONN          -> end, status 1
 *                                     hold_fd's end, idle                the mount loses its name                 -> mounted, nameless
 *                                     signal                             the same; a second one                   -> end, status 1
 *                                     ENDING                             the worker has 60 s to publish           -> mounted
 *                                     exit status 0                                                               -> end, status 0
 *
 * A dead mount point keeps its name: programs get ENOTCONN there rather than the directory below, into which they would write. Mounting again takes it away.
 *
 * What a death costs nobody: requests that were read and not answered are sent again by the kernel (FUSE_NOTIFY_RESEND, Linux 6.9), marked with bit 63 of their number. FORGETs have no answer, so
 * they are not: lookup counts may stay too high. Before Linux 6.9 nothing is sent again, clients would wait for ever: so this process ends, too.
 *
 * The supervisor runs one thread, opens no store, touches no mount, and allocates nothing once it has started (S2).
 */
#define _GNU_SOURCE
#include "fuse/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuse/child.h"
#include "fuse/keep.h"
#include "fuse/mount.h"

#define CRASHES_MAX 5u  /* in CRASHES_NS: the worker's own fault */
#define DEATHS_MAX 200u /* in CRASHES_NS: whoever kills it, the out-of-memory killer perhaps, will not stop */
#define CRASHES_NS UINT64_C(10000000000)
#define ENDING_NS UINT64_C(60000000000)
#define HAS_RESEND (UINT64_C(1) << 39) /* FUSE_HAS_RESEND, which Debian 12's header lacks */

enum { RUN_ON = -1 }; /* else an exit status */

struct supervisor {
    const struct worker_program *program;
    const struct server_options *opt;
    struct server_shared *shared;
    void *share;
    int device; /* -1: not mounted yet */
    int keeper; /* of the worker that lives */
    int signals, ready_fd, hold_fd;
    pid_t worker;
    bool served;   /* somebody was told "ready" */
    bool nameless; /* the mount has lost its name */
    uint64_t kill_at_ns;
    uint64_t crash_ns[CRASHES_MAX], death_ns[DEATHS_MAX]; /* rings */
    unsigned n_crashes, n_deaths;
    int kept[KEEP_MAX];
};
static struct supervisor sup;

/* --- who waits for us ------------------------------------------------------------------------------------------------------------- */
static void answer_starter(const char *line)
{
    if (sup.ready_fd < 0) return;
    char text[600];
    int n = snprintf(text, sizeof text, "%s\n", line);
    ssize_t w = write(sup.ready_fd, text, (size_t)n);
    (void)w;
    close(sup.ready_fd);
    sup.ready_fd = -1;
}

static int fail_start(const char *why)
{
    char line[500];
    snprintf(line, sizeof line, "error: %s", why);
    if (sup.ready_fd >= 0)
        answer_starter(line);
    else
        server_log("%s", why);
    return 1;
}

/* --- mounting ------------------------------------------------------------------------------------------------------------------------- */
static bool switched_off(const char *what)
{
    const char *list = getenv("PAGESTONE_WITHOUT");
    size_t len = strlen(what);
    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strncmp(p, what, len) == 0 && (p[len] == 0 || p[len] == ',')) return true;
    return false;
}

/* The kernel's first request. It waits since the mount. */
static int save_init(char *why, size_t why_len)
{
    static uint8_t buffer[16384];
    ssize_t n;
    do n = read(sup.device, buffer, sizeof buffer);
    while (n < 0 && (errno == EINTR || errno == EAGAIN));
    struct fuse_in_header head;
    struct fuse_init_in in = {0};
    if (n < (ssize_t)(sizeof head + 16) || n > (ssize_t)INIT_MAX) {
        snprintf(why, why_len, "the kernel does not begin with an INIT of known size");
        return -1;
    }
    memcpy(&head, buffer, sizeof head);
    size_t len = (size_t)n - sizeof head;
    memcpy(&in, buffer + sizeof head, len < sizeof in ? len : sizeof in);
    uint64_t flags = in.flags | (in.flags & FUSE_INIT_EXT ? (uint64_t)in.flags2 << 32 : 0);
    sup.shared->resend = (flags & HAS_RESEND) != 0 && !switched_off("resend");
    memcpy(sup.shared->init, buffer, (size_t)n);
    sup.shared->init_len = (uint32_t)n;
    return 0;
}

static int mount_now(char *why, size_t why_len)
{
    const struct mount_options mo = {sup.opt->fsname, sup.opt->read_only, sup.opt->allow_other};
    sup.device = mount_open(sup.opt->mountpoint, &mo, why, why_len);
    if (sup.device < 0) return -1;
    if (save_init(why, why_len) == 0) return 0;
    char unused[200];
    unmount(sup.opt->mountpoint, UNMOUNT_LAZY, unused, sizeof unused);
    return -1;
}

/* The name goes; what is open lives on, and the kernel ends the connection after the last close. */
static void lose_name(bool remove_dir)
{
    char why[300];
    if (sup.nameless || sup.device < 0) return;
    sup.nameless = true;
    if (unmount(sup.opt->mountpoint, UNMOUNT_LAZY, why, sizeof why) && remove_dir) server_log("%s", why);
    if (remove_dir) rmdir(sup.opt->mountpoint);
}

/* --- workers -------------------------------------------------------------------------------------------------------------------------- */
static void become_worker(bool reborn, int keeper)
{
    close(sup.signals);
    if (sup.ready_fd >= 0) close(sup.ready_fd);
    if (sup.hold_fd >= 0) close(sup.hold_fd);
    if (sup.device >= 0) close(sup.device);
    for (unsigned i = 0; i < KEEP_MAX; i++)
        if (sup.kept[i] >= 0) close(sup.kept[i]);
    worker_run(sup.program, sup.opt, sup.shared, sup.share, reborn, keeper);
}

static int start_worker(bool reborn)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        close(pair[0]);
        become_worker(reborn, pair[1]);
    }
    int e = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return -e;
    }
    sup.keeper = pair[0];
    sup.worker = pid;
    return 0;
}

/* Another one in this ring of n times: is that more than n within CRASHES_NS? */
static bool too_often(uint64_t *ring, unsigned n, unsigned *count)
{
    uint64_t now = now_ns(), *oldest = &ring[*count % n];
    bool yes = *count >= n && now - *oldest < CRASHES_NS;
    *oldest = now;
    ++*count;
    return yes;
}

static const char *how_it_died(int status, char *text, size_t len)
{
    if (WIFSIGNALED(status))
        snprintf(text, len, "it was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(text, len, "it ended with status %d", WEXITSTATUS(status));
    return text;
}

static int on_death(int status)
{
    char how[120];
    close(sup.keeper);
    sup.keeper = -1;
    sup.worker = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
    how_it_died(status, how, sizeof how);
    if (sup.device < 0) return fail_start(how);
    if (sup.kill_at_ns) return 0; /* the connection has ended */
    if (WIFEXITED(status) && WEXITSTATUS(status) == WORKER_HOPELESS) return fail_start("the worker gave up");
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    bool often = too_often(sup.death_ns, DEATHS_MAX, &sup.n_deaths);
    if (!killed) often |= too_often(sup.crash_ns, CRASHES_MAX, &sup.n_crashes);
    server_log("the worker of %s died: %s", sup.opt->mountpoint, how);
    if (!sup.shared->resend)
        return fail_start("this kernel cannot send requests again (Linux 6.9 can): the mount is dead");
    if (often) return fail_start("workers die again and again: the mount is dead");
    int rc = start_worker(true);
    return rc ? fail_start("cannot start another worker: the mount is dead") : RUN_ON;
}

/* --- what a worker says -------------------------------------------------------------------------------------------------------------- */
static int on_started(void)
{
    char why[400];
    struct keep_message answer = {.what = KEEP_STARTED};
    if (sup.device < 0 && mount_now(why, sizeof why)) return fail_start(why);
    keep_send(sup.keeper, &answer, sup.device);
    return RUN_ON;
}

static void on_put(const struct keep_message *m, int fd)
{
    struct keep_message answer = {.what = KEEP_PUT};
    if (m->number >= KEEP_MAX || fd < 0) {
        answer.result = fd < 0 ? -EMFILE : -EINVAL;
        if (fd >= 0) close(fd);
    } else {
        if (sup.kept[m->number] >= 0) close(sup.kept[m->number]);
        sup.kept[m->number] = fd;
    }
    keep_send(sup.keeper, &answer, -1);
}

static void on_get(const struct keep_message *m)
{
    int fd = m->number < KEEP_MAX ? sup.kept[m->number] : -1;
    struct keep_message answer = {.what = KEEP_GET, .result = fd < 0 ? -ENOENT : 0};
    keep_send(sup.keeper, &answer, fd);
}

static void on_drop(const struct keep_message *m)
{
    if (m->number >= KEEP_MAX || sup.kept[m->number] < 0) return;
    close(sup.kept[m->number]);
    sup.kept[m->number] = -1;
}

static int on_message(struct keep_message *m, int fd)
{
    if (fd >= 0 && m->what != KEEP_PUT) close(fd);
    switch (m->what) {
    case KEEP_STARTED:
        return on_started();
    case KEEP_SERVING:
        sup.served = true;
        answer_starter("ready");
        break;
    case KEEP_PUT:
        on_put(m, fd);
        break;
    case KEEP_GET:
        on_get(m);
        break;
    case KEEP_DROP:
        on_drop(m);
        break;
    case KEEP_ENDING:
        sup.kill_at_ns = now_ns() + ENDING_NS;
        break;
    case KEEP_FAILED:
        m->text[sizeof m->text - 1] = 0;
        if (sup.device < 0 || sup.ready_fd >= 0) return fail_start(m->text);
        server_log("a new worker for %s cannot start: %s", sup.opt->mountpoint, m->text);
        break;
    default:
        break;
    }
    return RUN_ON;
}

/* --- the loop ------------------------------------------------------------------------------------------------------------------------- */
static int on_signals(void)
{
    struct signalfd_siginfo si;
    int rc = RUN_ON, status;
    bool stop = false;
    while (read(sup.signals, &si, sizeof si) == (ssize_t)sizeof si) stop |= si.ssi_signo != SIGCHLD;
    for (pid_t pid; rc == RUN_ON && (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == sup.worker) rc = on_death(status);
    if (rc != RUN_ON || !stop) return rc;
    if (sup.device < 0 || sup.nameless) return fail_start("stopped by a signal");
    lose_name(false);
    server_log("%s is unmounted; what is open there stays until it is closed (a second signal ends it now)",
               sup.opt->mountpoint);
    return RUN_ON;
}

/* ms until something has to be looked at; -1: nothing has. */
static int patience(void)
{
    if (sup.kill_at_ns) return 1000;
    return sup.program->idle_seconds && sup.device >= 0 && !sup.nameless ? 1000 : -1;
}

static void on_time(void)
{
    uint64_t now = now_ns(), limit = sup.program->idle_seconds * UINT64_C(1000000000);
    if (sup.kill_at_ns && now > sup.kill_at_ns && sup.worker) kill(sup.worker, SIGKILL);
    if (limit == 0 || sup.device < 0 || sup.nameless || atomic_load(&sup.shared->n_open) > 0) return;
    if (now - atomic_load(&sup.shared->idle_since_ns) > limit) lose_name(sup.hold_fd >= 0);
}

static int loop(void)
{
    int rc = start_worker(false);
    if (rc) return fail_start("cannot start a worker");
    for (rc = RUN_ON; rc == RUN_ON;) {
        struct pollfd p[3] = {{sup.signals, POLLIN, 0}, {sup.keeper, POLLIN, 0}, {sup.hold_fd, POLLIN | POLLRDHUP, 0}};
        if (poll(p, 3, patience()) < 0 && errno != EINTR) return fail_start(strerror(errno));
        on_time();
        if (p[1].revents & POLLIN) { /* before a death is looked at: it may say why */
            struct keep_message m;
            int fd, got = keep_receive(sup.keeper, &m, &fd);
            if (got == 0) {
                rc = on_message(&m, fd);
                continue;
            }
        }
        if (p[0].revents)
            rc = on_signals();
        else if (p[1].revents)
            usleep(1000); /* its end closed: the signal comes */
        if (rc == RUN_ON && p[2].revents) {
            if (sup.device < 0) return fail_start("nobody waits for it any more");
            lose_name(true);
            close(sup.hold_fd); /* tells the starter that it is done */
            sup.hold_fd = -1;
        }
    }
    return rc;
}

/* --- the start ------------------------------------------------------------------------------------------------------------------------ */
static int prepare(const struct worker_program *program, const struct server_options *opt)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    sup = (struct supervisor){
        .program = program, .opt = opt, .device = -1, .keeper = -1, .ready_fd = opt->ready_fd, .hold_fd = opt->hold_fd};
    for (unsigned i = 0; i < KEEP_MAX; i++) sup.kept[i] = -1;
    sigset_t set;
    sigemptyset(&set);
    static const int wanted[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) sigaddset(&set, wanted[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sup.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (sup.signals < 0) return -errno;
    sup.shared = mmap(NULL, sizeof *sup.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sup.shared == MAP_FAILED) return -errno;
    atomic_store(&sup.shared->idle_since_ns, now_ns());
    /* A file in memory, since those are charged by the page whatever vm.overcommit_memory says. */
    int fd = memfd_create("pagestone-share", MFD_CLOEXEC);
    if (fd < 0) return -errno;
    if (ftruncate(fd, (off_t)SHARE_BYTES) == 0)
        sup.share = mmap(NULL, SHARE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    int e = errno;
    close(fd);
    if (!sup.share || sup.share == MAP_FAILED) return -e;
    madvise(sup.share, SHARE_BYTES, MADV_DONTDUMP);
    return 0;
}

/* The starter's exit status: waits for the line of the server that runs on in the background. */
static int wait_for(int fd, pid_t pid)
{
    char line[600];
    size_t n = 0;
    ssize_t got;
    while (n < sizeof line - 1 && (got = read(fd, line + n, sizeof line - 1 - n)) != 0) {
        if (got < 0 && errno != EINTR) break;
        if (got > 0) n += (size_t)got;
    }
    while (n > 0 && line[n - 1] == '\n') n--;
    line[n] = 0;
    if (strcmp(line, "ready") == 0) return 0;
    fprintf(stderr, "pagestone-fuse: %s\n", *line ? line : "error: the server ended before it was ready");
    waitpid(pid, NULL, 0);
    return 1;
}

static void detach_from_terminal(void)
{
    setsid();
    if (chdir("/")) server_log("cannot change to /: %s", strerror(errno));
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) return;
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    if (null > 2) close(null);
}

static int run(const struct worker_program *program, const struct server_options *opt)
{
    char name[] = "pgs-supervisor";
    int rc = prepare(program, opt);
    if (rc) return fail_start(rc == -ENOMEM ? "not enough address space (ulimit -v) for 16 GiB of it" : strerror(-rc));
    prctl(PR_SET_NAME, name);
    server_log_to_stderr(opt->foreground);
    if (!opt->foreground) detach_from_terminal();
    int status = loop();
    if (sup.worker) kill(sup.worker, SIGKILL);
    if (!sup.served) lose_name(false);
    if (opt->hold_fd >= 0 && (sup.device < 0 || !sup.served)) rmdir(opt->mountpoint);
    return status;
}

int server_main(const struct worker_program *program, const struct server_options *opt)
{
    char why[400];
    int p[2];
    /* Who waits for "ready" may be dead: hold_fd tells, and it is nothing to die of, which would leave a worker without a supervisor. */
    signal(SIGPIPE, SIG_IGN);
    sup.ready_fd = opt->ready_fd;
    if (fuse_lib_load(why, sizeof why) || mount_device_usable(why, sizeof why) ||
        mount_prepare(opt->mountpoint, why, sizeof why))
        return fail_start(why);
    if (opt->foreground || opt->ready_fd >= 0) return run(program, opt);
    if (pipe2(p, O_CLOEXEC)) return fail_start(strerror(errno));
    pid_t pid = fork();
    if (pid < 0) return fail_start(strerror(errno));
    if (pid > 0) {
        close(p[1]);
        return wait_for(p[0], pid);
    }
    close(p[0]);
    struct server_options mine = *opt;
    mine.ready_fd = p[1];
    _exit(run(program, &mine));
}
