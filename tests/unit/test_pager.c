/* Pagestone | tests/unit/test_pager — the image of a store's cold data: right in every byte, one server for all, and nothing is left behind.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "libshm/platform/hash.h"
#include "libshm/platform/lock.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/pager.h"
#include "libshm/txn/store.h"
#include "tests/unit/txn_testing.h"

#define N_BYTES (6u << 20)
static char why[400];
static char scratch[64], path[96];

static void needs_fuse(void)
{
    static char program[4200];
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0) SKIP("/dev/fuse cannot be opened");
    close(fd);
    if (geteuid() != 0 && access("/usr/bin/fusermount3", X_OK)) SKIP("fusermount3 is not there");
    const char *without = getenv("PAGESTONE_WITHOUT");
    if (without && strstr(without, "fuse")) SKIP("fuse is switched off");
    if (!getenv("PAGESTONE_SERVER") && realpath("pymod/pagestone/bin/pagestone-fuse", program))
        setenv("PAGESTONE_SERVER", program, 1);
    if (!getenv("PAGESTONE_SERVER")) SKIP("the server is not built: PAGESTONE_SERVER");
}

static void remove_scratch(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    if (scratch[0] && system(command)) return;
}

static void make_scratch(void)
{
    static bool registered;
    snprintf(scratch, sizeof scratch, "/dev/shm/pgs-pager-XXXXXX");
    CHECK(mkdtemp(scratch));
    snprintf(path, sizeof path, "%s/s.ps", scratch);
    setenv("XDG_RUNTIME_DIR", scratch, 1); /* the mount's name, too */
    if (!registered) atexit(remove_scratch);
    registered = true;
}

static pgs_store *open_it(const char *where)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .checksums = 1};
    CHECK_OK(pgs_open(where, &o, &s, &err));
    return s;
}

static void put_cold(pgs_store *s)
{
    uint64_t bytes = 0, *p = malloc(N_BYTES), x = 0;
    for (size_t i = 0; i < N_BYTES / 8; i++) p[i] = x += pgs__mix(i) % 9;
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", p, N_BYTES / 8, 8));
    commit(t);
    CHECK_OK(pgs_freeze(s, KEY("x"), &bytes, &err));
    CHECK(bytes > 0);
    free(p);
}

static int attach(pgs_store *s)
{
    int fd = pgs__pager_attach(s->s, why, sizeof why);
    if (fd < 0) TEST_FAIL("attach -> %d: %s", fd, why);
    return fd;
}

static uint32_t server_of(int fd)
{
    struct statx st;
    CHECK(statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &st) == 0);
    return st.stx_atime.tv_nsec;
}

/* The newest slots, and some behind them that are never used; how many there are. */
static unsigned compare(pgs_store *s, int fd)
{
    enum { SLOTS = 64 };
    static uint8_t block[PGS__COLD_BYTES];
    struct pgs__ledger l;
    struct pgs__cold_total total;
    unsigned n = 0;
    CHECK_OK(pgs__meta_begin(s->s, &l, &err));
    CHECK_OK(pgs__ledger_cold_total(&l, &total, &err));
    pgs__meta_end(s->s, &l);
    uint64_t first = total.next < SLOTS ? 0 : total.next - SLOTS;
    uint8_t *image =
        mmap(NULL, SLOTS * (size_t)PGS__COLD_BYTES, PROT_READ, MAP_SHARED, fd, (off_t)(first * PGS__COLD_BYTES));
    CHECK(image != MAP_FAILED);
    for (uint64_t i = 0; i < SLOTS; i++) {
        size_t len = 0;
        int rc = pgs__cold_block_read(s->s, first + i, block, &len, NULL);
        CHECK(rc == 0 || rc == -PGS_ENOENT);
        if (rc) len = 0;
        memset(block + len, 0, sizeof block - len);
        CHECK(memcmp(image + i * PGS__COLD_BYTES, block, sizeof block) == 0);
        n += rc == 0;
    }
    munmap(image, SLOTS * (size_t)PGS__COLD_BYTES);
    /* Numbers that are still to be given out: whatever the kernel kept for them would be wrong one day. */
    CHECK(pread(fd, block, 1, (off_t)(total.next * PGS__COLD_BYTES)) < 0);
    return n;
}

static bool gone(uint32_t pid)
{
    char stat[32];
    snprintf(stat, sizeof stat, "/proc/%u", pid);
    for (int i = 0; i < 500; i++) {
        if (access(stat, F_OK)) return true;
        usleep(10000);
    }
    return false;
}

static bool mounts_are_gone(void)
{
    char command[160];
    snprintf(command, sizeof command,
             "for i in $(seq 100); do grep -q '%s' /proc/mounts || exit 0; sleep .05; done; exit 1", scratch);
    return system(command) == 0;
}

static void in_child(void (*f)(void *), void *arg)
{
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        f(arg);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
}

/* --- the tests ------------------------------------------------------------------------------------------------------------------- */
TEST(the_image_has_every_block_and_zeros_elsewhere)
{
    needs_fuse();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    int fd = attach(s);
    CHECK(pgs__pager_lives(fd));
    CHECK_EQ(compare(s, fd), N_BYTES / PGS__COLD_BYTES);
    CHECK(mounts_are_gone());
    pgs__pager_detach(s->s, fd);
    pgs_store_unref(s);
}

TEST(a_store_without_a_path_has_one_too)
{
    needs_fuse();
    NEEDS_PROC();
    make_scratch();
    pgs_store *s = open_it(NULL);
    put_cold(s);
    int fd = attach(s);
    CHECK_EQ(compare(s, fd), N_BYTES / PGS__COLD_BYTES);
    pgs__pager_detach(s->s, fd);
    pgs_store_unref(s);
}

static uint32_t first_server;
static void find_it(void *arg)
{
    pgs_store *s = arg ? arg : open_it(path);
    int fd = attach(s);
    CHECK_EQ(server_of(fd), first_server);
    CHECK_EQ(compare(s, fd), N_BYTES / PGS__COLD_BYTES);
    pgs__pager_detach(s->s, fd);
}

TEST(others_find_the_image_through_the_slot_of_who_has_it)
{
    needs_fuse();
    NEEDS_PROC();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    int fd = attach(s);
    first_server = server_of(fd);
    in_child(find_it, s);    /* forked with the store open */
    in_child(find_it, NULL); /* opened anew in another process */
    pgs__pager_detach(s->s, fd);
    pgs_store_unref(s);
}

static void start_together(void *arg)
{
    _Atomic uint32_t *shared = arg;
    pgs_store *s = open_it(path);
    int fd = attach(s);
    shared[atomic_fetch_add(&shared[0], 1) + 1] = server_of(fd);
    for (int i = 0; i < 500 && shared[0] < 4; i++) usleep(10000); /* nobody lets go before all have it */
    pgs__pager_detach(s->s, fd);
}

TEST(of_those_who_start_together_one_starts_a_server)
{
    needs_fuse();
    NEEDS_PROC();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    pgs_store_unref(s);
    _Atomic uint32_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid[4];
    for (int i = 0; i < 4; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            start_together(shared);
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++) {
        int status;
        CHECK(waitpid(pid[i], &status, 0) == pid[i]);
        CHECK_EQ(status, 0);
    }
    for (int i = 2; i <= 4; i++) CHECK_EQ(shared[i], shared[1]);
}

TEST(the_server_ends_with_its_last_user)
{
    needs_fuse();
    NEEDS_PROC();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    int fd = attach(s);
    uint32_t server = server_of(fd);
    uint8_t *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    pgs__pager_detach(s->s, fd);
    usleep(200000);
    CHECK(p[0] + 1); /* a mapping is a user, and the page comes now */
    munmap(p, 4096);
    CHECK(gone(server));
    fd = attach(s);
    CHECK(server_of(fd) != server);
    pgs__pager_detach(s->s, fd);
    pgs_store_unref(s);
}

static void die_starting(void *arg)
{
    pgs_store *s = open_it(path);
    (void)arg;
    attach(s);
    pause();
}

TEST(a_starter_that_is_killed_leaves_nothing)
{
    needs_fuse();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    pgs_store_unref(s);
    for (int i = 0; i < 12; i++) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            die_starting(NULL);
            _exit(0);
        }
        usleep((useconds_t)(i * 4000));
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &status, 0) == pid);
    }
    CHECK(mounts_are_gone());
    char command[160];
    snprintf(command, sizeof command, "sleep .3; ls -d %s/pagestone-pager-* 2>/dev/null | grep -q . && exit 1; exit 0",
             scratch);
    int rc = -1;
    for (int i = 0; i < 20 && rc != 0; i++) rc = system(command);
    if (rc) { /* killed between mkdir and spawn: an empty directory is all */
        snprintf(command, sizeof command, "rmdir %s/pagestone-pager-*", scratch);
        CHECK(system(command) == 0);
    }
}

static pid_t worker_of(uint32_t supervisor)
{
    char name[64], text[64] = "";
    snprintf(name, sizeof name, "/proc/%u/task/%u/children", supervisor, supervisor);
    int fd = open(name, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    return n > 0 ? atoi(text) : 0;
}

TEST(a_server_that_was_killed_is_replaced)
{
    needs_fuse();
    NEEDS_PROC();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    int fd = attach(s);
    uint32_t server = server_of(fd);
    pid_t worker = worker_of(server);
    CHECK(worker > 0);
    kill((pid_t)server, SIGKILL);
    kill(worker, SIGKILL);
    CHECK(gone(server));
    CHECK(!pgs__pager_lives(fd));
    int next = attach(s); /* the dead one's descriptor is in our own slot */
    CHECK(server_of(next) != server);
    CHECK_EQ(compare(s, next), N_BYTES / PGS__COLD_BYTES);
    pgs__pager_detach(s->s, fd);
    pgs__pager_detach(s->s, next);
    pgs_store_unref(s);
}

TEST(reads_are_right_while_the_worker_is_killed)
{
    needs_fuse();
    NEEDS_PROC();
    make_scratch();
    pgs_store *s = open_it(path);
    put_cold(s);
    int fd = attach(s);
    uint32_t server = server_of(fd);
    pid_t killer = fork();
    if (killer == 0) {
        for (int i = 0; i < 20; i++) {
            pid_t w = worker_of(server);
            if (w > 0) kill(w, SIGKILL);
            usleep(30000);
        }
        _exit(0);
    }
    int status;
    do {
        CHECK_EQ(compare(s, fd), N_BYTES / PGS__COLD_BYTES);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    } while (waitpid(killer, &status, WNOHANG) == 0);
    CHECK(pgs__pager_lives(fd));
    pgs__pager_detach(s->s, fd);
    pgs_store_unref(s);
}

static void must_refuse(pgs_store *s, const char *text)
{
    int fd = pgs__pager_attach(s->s, why, sizeof why);
    CHECK_EQ(fd, -PGS_ENOTSUP);
    if (!strstr(why, text)) TEST_FAIL("\"%s\" is not in: %s", text, why);
}

TEST(what_is_missing_is_said_in_one_line)
{
    needs_fuse();
    make_scratch();
    pgs_store *s = open_it(path);
    char *server = strdup(getenv("PAGESTONE_SERVER"));
    setenv("PAGESTONE_WITHOUT", "avx2, fuse", 1);
    must_refuse(s, "PAGESTONE_WITHOUT");
    unsetenv("PAGESTONE_WITHOUT");
    setenv("PAGESTONE_LIBFUSE", "/nowhere/libfuse3.so", 1);
    must_refuse(s, "apt install fuse3");
    unsetenv("PAGESTONE_LIBFUSE");
    setenv("PAGESTONE_SERVER", "/nowhere/pagestone-fuse", 1);
    must_refuse(s, "/nowhere/pagestone-fuse");
    setenv("PAGESTONE_SERVER", "/bin/true", 1);
    must_refuse(s, "ended before it was ready");
    unsetenv("PAGESTONE_SERVER");
    setenv("PAGESTONE_SERVER", server, 1);
    pgs__pager_detach(s->s, attach(s));
    pgs_store_unref(s);
    free(server);
}

TEST(a_server_that_does_not_answer_is_given_up)
{
    needs_fuse();
    make_scratch();
    pgs_store *s = open_it(path);
    char script[128];
    snprintf(script, sizeof script, "%s/slow", scratch);
    FILE *f = fopen(script, "w");
    fputs("#!/bin/sh\nexec sleep 20\n", f);
    fclose(f);
    chmod(script, 0700);
    setenv("PAGESTONE_SERVER", script, 1);
    uint64_t before = pgs__clock_boot_ns();
    must_refuse(s, "did not start in time");
    CHECK(pgs__clock_boot_ns() - before < UINT64_C(8000000000));
    pgs_store_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
