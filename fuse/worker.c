/* Pagestone | fuse/worker — a libfuse session over a descriptor that somebody else mounted.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The connection is older than the worker: its INIT request was read by the supervisor. Every worker, the first as well, feeds those bytes to its new session, whose reply goes into a pipe.
 * The first one writes the reply to the kernel; the others compare it with what the first had said, since that is what the kernel goes by. Then the session's descriptor, so far the pipe,
 * becomes /dev/fuse.
 *
 * The loop is our own: libfuse's would not tell which requests are resent, and its buffers are not mapped in. A worker that is killed while the kernel copies a request to memory
 * that it must fault in first makes that request fail with EIO; so the buffers are populated.
 *
 * There is always a thread that waits for requests: whoever takes the last idle one's place starts another. Commits block for long, and a client that holds the store's lock may be waiting for us.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <syslog.h>
#include <unistd.h>

#include "fuse/child.h"
#include "fuse/keep.h"
#include "fuse/supervise.h"

#define MAX_WRITE (1u << 20)
#define BUFFER (MAX_WRITE + 4096u)
#define MAX_THREADS 64u
#define NOTIFY_RESEND 7 /* FUSE_NOTIFY_RESEND, which Debian 12's header lacks */
#define UNIQUE_RESEND (UINT64_C(1) << 63)
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

static const struct worker_program *program;
static struct server_shared *shared;
static struct server self;
static void *userdata; /* what start() gave; fuse_req_userdata reads it through the pointer that libfuse has */
static int device;
static _Thread_local bool resent;

/* --- small services ------------------------------------------------------------------------------------------------------------ */
static bool to_stderr = true;

void server_log_to_stderr(bool yes)
{
    to_stderr = yes;
}

static void log_line(const char *fmt, va_list ap) __attribute__((format(printf, 1, 0)));
static void log_line(const char *fmt, va_list ap)
{
    char line[600];
    vsnprintf(line, sizeof line, fmt, ap);
    if (to_stderr)
        fprintf(stderr, "pagestone-fuse: %s\n", line);
    else
        syslog(LOG_DAEMON | LOG_WARNING, "%s", line);
}

void server_log(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    log_line(fmt, ap);
    va_end(ap);
}

static void libfuse_log(enum fuse_log_level level, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void libfuse_log(enum fuse_log_level level, const char *fmt, va_list ap)
{
    if (level <= FUSE_LOG_WARNING) log_line(fmt, ap);
}

bool server_resent(void)
{
    return resent;
}

/* A resent request was counted by the worker that died. If it was not, the mount loses its name too early at worst, which harms no open file. */
void server_opened(struct server *s)
{
    (void)s;
    if (!resent) atomic_fetch_add(&shared->n_open, 1);
}

void server_closed(struct server *s)
{
    (void)s;
    if (resent) return;
    if (atomic_fetch_sub(&shared->n_open, 1) <= 1) atomic_store(&shared->idle_since_ns, now_ns());
}

int server_reply_memory(fuse_req_t req, const void *p, size_t n)
{
    uintptr_t from = (uintptr_t)p & ~(uintptr_t)4095, to = ((uintptr_t)p + n + 4095) & ~(uintptr_t)4095;
    if (n > 0)
        madvise((void *)from, to - from,
                MADV_POPULATE_READ); /* Linux 5.14; without it a death in the wrong moment is an EIO */
    return fuse_reply_buf(req, p, n);
}

_Noreturn static void give_up(int status, const char *why)
{
    struct keep_message m = {.what = KEEP_FAILED};
    snprintf(m.text, sizeof m.text, "%s", why);
    keep_send(self.keeper, &m, -1);
    _exit(status);
}

/* --- INIT ---------------------------------------------------------------------------------------------------------------------- */
static void on_init(void *data, struct fuse_conn_info *conn)
{
    (void)data;
    unsigned want = FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_EXPLICIT_INVAL_DATA | program->want;
    unsigned refuse = FUSE_CAP_AUTO_INVAL_DATA | program->refuse;
    conn->want = (conn->want | (want & conn->capable)) & ~refuse;
    conn->max_background = 64;
    conn->congestion_threshold = 48;
    if (conn->max_write > MAX_WRITE) conn->max_write = MAX_WRITE;
}

static struct fuse_session *make_session(int fd)
{
    char name[] = "pagestone-fuse", path[32];
    char *argv[] = {name, NULL};
    struct fuse_args args = {.argc = 1, .argv = argv};
    static struct fuse_lowlevel_ops ops;
    ops = program->ops;
    ops.init = on_init;
    ops.destroy = NULL;
    struct fuse_session *se = fuse_session_new(&args, &ops, sizeof ops, &userdata);
    if (!se) return NULL;
    snprintf(path, sizeof path, "/dev/fd/%d", fd); /* "mounted already, here": every libfuse since 3.3 */
    if (fuse_session_mount(se, path) == 0) return se;
    fuse_session_destroy(se);
    return NULL;
}

static void process(const void *request, size_t len)
{
    union {
        struct fuse_buf buf;
        char newer[256]; /* later libraries have more members, and may copy them */
    } u;
    memset(&u, 0, sizeof u);
    u.buf.size = len;
    u.buf.mem = (void *)(uintptr_t)request;
    u.buf.fd = -1;
    fuse_session_process_buf(self.session, &u.buf);
}

/* The reply that the session gives to the saved INIT must be the one that the kernel has. */
static void answer_init(int pipe_end)
{
    uint8_t reply[INIT_MAX];
    process(shared->init, shared->init_len);
    ssize_t n = read(pipe_end, reply, sizeof reply);
    if (n < (ssize_t)sizeof(struct fuse_out_header))
        give_up(WORKER_HOPELESS, "libfuse gave no answer to the kernel's first request");
    struct fuse_out_header head;
    memcpy(&head, reply, sizeof head);
    if (head.error) give_up(WORKER_HOPELESS, "libfuse refuses this kernel");
    uint32_t had = atomic_load(&shared->reply_len);
    if (had == 0) {
        memcpy(shared->reply, reply, (size_t)n);
        atomic_store(&shared->reply_len, (uint32_t)n);
    } else if (had != (uint32_t)n || memcmp(shared->reply, reply, (size_t)n) != 0) {
        give_up(WORKER_HOPELESS, "libfuse came to another agreement with the kernel than before");
    }
    if (!atomic_load(&shared->replied)) {
        ssize_t w = write(device, reply, (size_t)n);
        if (w < 0 && errno != ENOENT && errno != ENODEV)
            give_up(WORKER_HOPELESS, "the kernel refuses libfuse's answer to its first request");
        atomic_store(&shared->replied, true);
    }
}

static void ask_for_resend(void)
{
    struct fuse_out_header out = {.len = sizeof out, .error = NOTIFY_RESEND, .unique = 0};
    if (write(device, &out, sizeof out) != (ssize_t)sizeof out && errno != ENODEV && errno != ENOTCONN)
        give_up(WORKER_HOPELESS, "the kernel does not send again what was not answered");
}

/* --- the loop -------------------------------------------------------------------------------------------------------------------- */
static _Atomic unsigned n_idle, n_threads;
static _Atomic bool ending;

static void *serve(void *arg);

static void another_thread(void)
{
    pthread_t t;
    if (atomic_fetch_add(&n_threads, 1) < MAX_THREADS && pthread_create(&t, NULL, serve, NULL) == 0) {
        pthread_detach(t);
        return;
    }
    atomic_fetch_sub(&n_threads, 1);
}

/* One request: its length; 0: none, try again; -1: no more will come. */
static ssize_t receive(void *buffer)
{
    ssize_t n = read(device, buffer, BUFFER);
    if (n >= (ssize_t)sizeof(struct fuse_in_header)) return n;
    if (n >= 0 || errno == EINTR || errno == EAGAIN || errno == ENOENT) return 0; /* ENOENT: taken back meanwhile */
    if (errno != ENODEV && errno != ECONNABORTED) server_log("cannot read from /dev/fuse: %s", strerror(errno));
    return -1;
}

static void *serve(void *arg)
{
    void *buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ssize_t n = buffer == MAP_FAILED ? -1 : 0;
    /* Without writes no request is longer than two names. */
    bool writes = program->ops.write || program->ops.write_buf;
    if (n == 0) madvise(buffer, writes ? BUFFER : 16384, MADV_POPULATE_WRITE);
    atomic_fetch_add(&n_idle, 1);
    while (n >= 0) {
        n = receive(buffer);
        if (n <= 0) continue;
        struct fuse_in_header *in = buffer;
        resent = (in->unique & UNIQUE_RESEND) != 0;
        if (atomic_fetch_sub(&n_idle, 1) == 1) another_thread();
        process(buffer, (size_t)n);
        atomic_fetch_add(&n_idle, 1);
    }
    atomic_fetch_sub(&n_idle, 1);
    if (buffer != MAP_FAILED) {
        munmap(buffer, BUFFER);
        if (!atomic_exchange(&ending, true)) {
            struct keep_message m = {.what = KEEP_ENDING};
            keep_send(self.keeper, &m, -1);
        }
    }
    atomic_fetch_sub(&n_threads, 1);
    return arg;
}

/* --- life of a worker ------------------------------------------------------------------------------------------------------------- */
static void settle(void)
{
    static const int ignored[] = {SIGINT, SIGHUP, SIGPIPE,
                                  SIGTSTP}; /* a terminal's keys are the supervisor's business */
    struct sigaction sa = {.sa_handler = SIG_IGN};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) sigaction(ignored[i], &sa, NULL);
    sa.sa_handler = SIG_DFL;
    sigaction(SIGTERM, &sa, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    char name[16];
    snprintf(name, sizeof name, "pgs-%s", program->name);
    prctl(PR_SET_NAME, name);
    if (fuse_lib_has(set_log_func)) fuse_set_log_func(libfuse_log);
}

/* Says that the program has started, and waits for the mount. */
static int get_device(void)
{
    struct keep_message m = {.what = KEEP_STARTED};
    int fd = -1;
    if (keep_send(self.keeper, &m, -1) || keep_receive(self.keeper, &m, &fd) || m.result || fd < 0)
        _exit(WORKER_FAILED);
    return fd;
}

_Noreturn void worker_run(const struct worker_program *p, const struct server_options *opt, struct server_shared *sh,
                          void *share, bool reborn, int keeper)
{
    int ends[2];
    char why[400] = "it does not say why";
    program = p;
    shared = sh;
    self = (struct server){.opt = opt, .share = share, .share_len = SHARE_BYTES, .reborn = reborn, .keeper = keeper};
    settle();
    if (pipe2(ends, O_CLOEXEC)) give_up(WORKER_FAILED, strerror(errno));
    self.session = make_session(ends[1]);
    if (!self.session) give_up(WORKER_HOPELESS, "libfuse cannot make a session");
    if (program->start && program->start(&self, &userdata, why, sizeof why)) give_up(WORKER_FAILED, why);
    device = get_device();
    answer_init(ends[0]);
    close(ends[0]);
    dup3(device, ends[1], O_CLOEXEC);
    if (reborn) ask_for_resend();
    struct keep_message m = {.what = KEEP_SERVING};
    keep_send(keeper, &m, -1);
    atomic_store(&n_threads, 1);
    serve(NULL);
    while (atomic_load(&n_threads) > 0) usleep(10000);
    if (program->stop) program->stop(userdata);
    _exit(0);
}
