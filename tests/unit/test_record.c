/* Pagestone | tests/unit/test_record — what was recorded is what was done, and what is replayed is what a power loss can leave.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "tests/unit/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "libshm/platform/file.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/record.h"

static char top[32]; /* holds "live", the recorded directory, and images */

static const char *in_top(const char *name)
{
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", top, name);
    return path[turn];
}

__attribute__((format(printf, 1, 2))) static void shell(const char *fmt, ...)
{
    char cmd[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    int rc = system(cmd);
    if (rc != 0) TEST_FAIL("%s -> %d", cmd, rc);
}

static void begin(void)
{
    NEEDS_PROC(); /* the recorder finds names through it */
    strcpy(top, "/tmp/pgs-record-XXXXXX");
    CHECK(mkdtemp(top));
    CHECK_EQ(mkdir(in_top("live"), 0700), 0);
}

static void end(void)
{
    shell("rm -rf '%s'", top);
}

static void same(const char *a, const char *b)
{
    shell("diff -r '%s' '%s'", in_top(a), in_top(b));
}

static int file_open(const char *name, int flags)
{
    int dir = pgs__file_ops->open(in_top("live"), O_RDONLY | O_DIRECTORY, 0);
    int fd = pgs__file_ops->openat(dir, name, flags, 0640);
    CHECK(fd >= 0);
    pgs__file_ops->close(dir);
    return fd;
}

static void put(int fd, uint64_t off, int byte, size_t n)
{
    uint8_t *buf = malloc(n);
    memset(buf, byte, n);
    CHECK_EQ(pgs__pwrite_full(fd, buf, n, off), 0);
    free(buf);
}

static struct pgs__log load(void)
{
    struct pgs__log log;
    CHECK_EQ(pgs__log_load(NULL, &log), 0);
    CHECK(log.n_base > 0);
    return log;
}

static void replay(const struct pgs__log *log, struct pgs__replay how)
{
    shell("rm -rf '%s'", in_top("image"));
    CHECK_EQ(pgs__replay(log, &how, in_top("image")), 0);
}

/* Byte at `off` of a file of the image; -1: no such file, -2: beyond its end. */
static int image_byte(const char *name, uint64_t off)
{
    char path[80];
    uint8_t b;
    snprintf(path, sizeof path, "image/%s", name);
    int fd = open(in_top(path), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = pread(fd, &b, 1, (off_t)off);
    close(fd);
    return n == 1 ? b : -2;
}

static size_t count_kind(const struct pgs__log *log, enum pgs__rec_kind kind)
{
    size_t n = 0;
    for (size_t i = log->n_base; i < log->n; i++) n += log->recs[i].kind == kind;
    return n;
}

/* Steps of every kind; a copy of the directory after each one. */
TEST(every_prefix_replays_to_what_was_there)
{
    begin();
    shell("cd '%s' && mkdir old && printf before >old/f && truncate -s 20000 old/sparse && printf x >>old/sparse",
          in_top("live"));
    CHECK_EQ(pgs__record_start(in_top("live"), NULL), 0);
    int a = -1, b = -1, dir = -1, rc = 0;
    uint8_t *w = NULL;
    for (int i = 0; i <= 25; i++) {
        switch (i) {
        case 0:
            a = file_open("a", O_RDWR | O_CREAT | O_EXCL);
            break;
        case 1:
            put(a, 0, 'A', 10000);
            break;
        case 2:
            CHECK_EQ(pgs__file_ops->ftruncate(a, 64 * 4096), 0);
            break;
        case 3:
            CHECK_EQ(pgs__file_ops->mkdir(in_top("live/sub"), 0700), 0);
            break;
        case 4:
            b = pgs__file_ops->open(in_top("live/sub/b"), O_RDWR | O_CREAT, 0600);
            break;
        case 5:
            put(b, 5000, 'B', 9000);
            break;
        case 6:
            w = pgs__file_ops->map(a, PGS__MAP_WRITE, NULL, 16 * 4096, 4096, &rc);
            break;
        case 7:
            w[100] = 'm', w[4096 * 7] = 'n', w[4096 * 15 + 4095] = 'o';
            break;
        case 8:
            CHECK_EQ(pgs__file_ops->fdatasync(a), 0);
            break;
        case 9:
            CHECK_EQ(pgs__file_ops->fallocate(b, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 6000), 0);
            break;
        case 10:
            CHECK_EQ(pgs__file_ops->fallocate(b, 0, 0, 30000), 0);
            break;
        case 11:
            w[200] = 'p', put(a, 4096 * 3, 'q', 100);
            break; /* a pwrite into the mapped range */
        case 12:
            CHECK(pgs__file_ops->map(a, PGS__MAP_COW, w + 4096, 4096, 8192, &rc) == w + 4096);
            break;
        case 13:
            w[4096 + 1] = 'z', w[8192 + 1] = 'r';
            break; /* the first is private now */
        case 14:
            CHECK_EQ(pgs__file_ops->unmap(w, 8 * 4096), 0);
            break;
        case 15:
            w[4096 * 9] = 's';
            break; /* the rest is still watched */
        case 16:
            CHECK_EQ(pgs__file_ops->unmap(w + 8 * 4096, 8 * 4096), 0);
            break;
        case 17:
            dir = open(in_top("live"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            break;
        case 18:
            CHECK_EQ(pgs__file_ops->renameat(dir, "a", "old/f"), 0);
            break; /* over a file that was there */
        case 19:
            CHECK_EQ(pgs__file_ops->renameat(dir, "sub", "moved"), 0);
            break;
        case 20:
            put(a, 1, 'R', 3), put(b, 1, 'S', 3);
            break; /* through descriptors older than the names */
        case 21:
            CHECK_EQ(pgs__file_ops->unlinkat(dir, "old/sparse"), 0);
            break;
        case 22:
            close(file_open("old/sparse", O_RDWR | O_CREAT));
            break; /* perhaps the same inode */
        case 23:
            close(file_open("moved/b", O_RDWR | O_TRUNC));
            break;
        case 24:
            CHECK_EQ(pgs__file_ops->fsync(dir), 0);
            break;
        case 25:
            CHECK_EQ(pgs__file_ops->ftruncate(a, 5000), 0);
            break;
        }
        pgs__record_mark((uint64_t)i);
        char copy[20];
        snprintf(copy, sizeof copy, "step%d", i);
        shell("cp -a '%s' '%s'", in_top("live"), in_top(copy));
    }
    pgs__record_stop();
    CHECK(pgs__file_ops == &pgs__file_ops_real);
    struct pgs__log log = load();
    int seen = 0;
    for (size_t n = log.n_base; n <= log.n; n++) {
        replay(&log, (struct pgs__replay){.n_records = n}); /* every prefix can be built */
        if (log.recs[n - 1].kind != PGS__REC_MARK) continue;
        char copy[20];
        snprintf(copy, sizeof copy, "step%d", (int)log.recs[n - 1].off);
        same(copy, "image");
        seen++;
    }
    CHECK_EQ(seen, 26);
    CHECK_EQ(count_kind(&log, PGS__REC_STORE), 3 + 1 + 1 + 1); /* one per changed page, none twice */
    char line[300];
    for (size_t i = 0; i < log.n; i++) pgs__rec_print(&log.recs[i], i, line, sizeof line);
    pgs__log_free(&log);
    end();
}

/* A toy of a store: data, barrier, header that names the data. */
static void toy_commits(bool barrier)
{
    int fd = file_open("toy", O_RDWR | O_CREAT), rc;
    CHECK_EQ(pgs__file_ops->ftruncate(fd, 64 * 4096), 0);
    uint8_t *w = pgs__file_ops->map(fd, PGS__MAP_WRITE, NULL, 63 * 4096, 4096, &rc);
    CHECK(w != MAP_FAILED);
    for (int v = 1; v <= 4; v++) {
        put(fd, (uint64_t)(v * 10) * 4096, v, 2 * 4096);
        w[(v * 10 + 2 - 1) * 4096] = (uint8_t)v; /* and a third page through the mapping */
        if (barrier) CHECK_EQ(pgs__file_ops->fdatasync(fd), 0);
        put(fd, 0, v, 1);
        CHECK_EQ(pgs__file_ops->fdatasync(fd), 0);
        pgs__record_mark((uint64_t)v);
    }
    CHECK_EQ(pgs__file_ops->unmap(w, 63 * 4096), 0);
    close(fd);
}

/* Images in which the header names data that is not there, or commits that returned are lost. */
static int toy_torn(const struct pgs__log *log)
{
    int torn = 0, committed = 0, states = 0;
    for (size_t n = log->n_base; n <= log->n; n++) {
        if (log->recs[n - 1].kind == PGS__REC_MARK) committed = (int)log->recs[n - 1].off;
        for (uint64_t seed = 0; seed < 12; seed++) {
            replay(log, (struct pgs__replay){.n_records = n, .lossy = true, .names_stable = true, .seed = seed});
            int v = image_byte("toy", 0);
            if (v < 0) v = 0;
            states |= 1 << v;
            bool bad = v < committed;
            for (int p = 0; v > 0 && p < 3; p++) bad |= image_byte("toy", (uint64_t)(v * 10 + p) * 4096) != v;
            torn += bad;
        }
    }
    CHECK_EQ(states, 31); /* every version was seen: the images do differ */
    return torn;
}

TEST(a_skipped_barrier_is_visible_and_a_kept_one_is_safe)
{
    for (int barrier = 1; barrier >= 0; barrier--) {
        begin();
        CHECK_EQ(pgs__record_start(in_top("live"), NULL), 0);
        toy_commits(barrier);
        pgs__record_stop();
        struct pgs__log log = load();
        int torn = toy_torn(&log);
        if (barrier)
            CHECK_EQ(torn, 0);
        else
            CHECK(torn > 0);
        pgs__log_free(&log);
        end();
    }
}

TEST(the_last_write_tears_into_sectors_as_asked)
{
    begin();
    CHECK_EQ(pgs__record_start(in_top("live"), NULL), 0);
    int fd = file_open("f", O_RDWR | O_CREAT);
    put(fd, 0, 1, 8192);
    CHECK_EQ(pgs__file_ops->fdatasync(fd), 0);
    put(fd, 0, 2, 4096);
    pgs__record_stop();
    struct pgs__log log = load();
    for (uint64_t mask = 0; mask < 256; mask += 37) {
        replay(&log, (struct pgs__replay){.n_records = log.n, .tear_unit = 512, .tear_mask = mask});
        for (unsigned s = 0; s < 16; s++)
            for (unsigned at = 0; at < 512; at += 511) /* first and last byte of the sector */
                CHECK_EQ(image_byte("f", s * 512 + at), s < 8 && ((mask >> s) & 1) ? 2 : 1);
    }
    replay(&log, (struct pgs__replay){.n_records = log.n, .tear_unit = 4096, .tear_mask = 0});
    CHECK_EQ(image_byte("f", 0), 1);
    pgs__log_free(&log);
    end();
}

TEST(a_name_without_a_synced_directory_may_be_lost)
{
    begin();
    CHECK_EQ(pgs__record_start(in_top("live"), NULL), 0);
    int fd = file_open("synced", O_RDWR | O_CREAT), dir = open(in_top("live"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_EQ(pgs__file_ops->fsync(dir), 0);
    int late = file_open("late", O_RDWR | O_CREAT);
    put(late, 0, 1, 10);
    CHECK_EQ(pgs__file_ops->fsync(late), 0); /* its bytes, not its name */
    CHECK_EQ(pgs__file_ops->renameat(dir, "synced", "renamed"), 0);
    pgs__record_stop();
    struct pgs__log log = load();
    int lost = 0, renamed = 0, orders = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        replay(&log, (struct pgs__replay){.n_records = log.n, .lossy = true, .seed = seed});
        bool has_late = image_byte("late", 0) == 1, has_old = image_byte("synced", 0) != -1,
             has_new = image_byte("renamed", 0) != -1;
        CHECK(has_old != has_new); /* a rename is atomic, and a synced name stays */
        lost += !has_late;
        renamed += has_new;
        orders += has_new && !has_late; /* the journal keeps its order */
    }
    CHECK(lost > 0 && lost < 40 && renamed > 0 && renamed < 40 && orders == 0);
    pgs__log_free(&log);
    end();
    (void)fd;
}

TEST(a_seed_repeats_its_image)
{
    begin();
    CHECK_EQ(pgs__record_start(in_top("live"), NULL), 0);
    int fd = file_open("f", O_RDWR | O_CREAT);
    for (int i = 0; i < 40; i++) put(fd, (uint64_t)i * 4096, i + 1, 4096);
    pgs__record_stop();
    struct pgs__log log = load();
    int differ = 0;
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct pgs__replay how = {.n_records = log.n, .lossy = true, .names_stable = true, .seed = seed};
        uint64_t bits[2] = {0, 0};
        for (int round = 0; round < 2; round++) {
            replay(&log, how);
            for (int i = 0; i < 40; i++) bits[round] |= (uint64_t)(image_byte("f", (uint64_t)i * 4096) > 0) << i;
        }
        CHECK(bits[0] == bits[1]);
        differ += bits[0] != 0 && bits[0] != (UINT64_C(1) << 40) - 1;
    }
    CHECK(differ >= 6);
    pgs__log_free(&log);
    end();
}

TEST(children_and_memfds_are_recorded_too)
{
    begin();
    CHECK_EQ(pgs__record_start(in_top("live"), in_top("log")), 0);
    int mem = pgs__file_ops->memfd("m"), map_rc;
    put(mem, 0, 'm', 10);
    CHECK_EQ(pgs__file_ops->ftruncate(mem, 4096), 0);
    uint8_t *mine = pgs__file_ops->map(mem, PGS__MAP_WRITE, NULL, 4096, 0, &map_rc);
    mine[9] = 'M'; /* seen by the parent alone, once */
    for (int c = 0; c < 3; c++) {
        pid_t pid = fork();
        if (pid == 0) {
            int rc, fd = file_open("shared", O_RDWR | O_CREAT);
            for (int i = 0; i < 50; i++) put(fd, (uint64_t)(c * 4096 + i), c + 1, 1);
            uint8_t *w = pgs__file_ops->map(fd, PGS__MAP_WRITE, NULL, 4096, 40960 + c * 4096, &rc);
            CHECK_EQ(pgs__file_ops->fallocate(fd, 0, 40960 + c * 4096, 4096), 0);
            w[5] = (uint8_t)(c + 1);
            CHECK_EQ(pgs__file_ops->unmap(w, 4096), 0);
            pgs__record_scan();
            _exit(0);
        }
    }
    int status;
    for (int c = 0; c < 3; c++) CHECK(wait(&status) > 0 && status == 0);
    pgs__record_stop();
    struct pgs__log log;
    CHECK_EQ(pgs__log_load(in_top("log"), &log), 0);
    CHECK_EQ(count_kind(&log, PGS__REC_WRITE), 151);
    CHECK_EQ(count_kind(&log, PGS__REC_STORE), 3 + 1);
    CHECK_EQ(count_kind(&log, PGS__REC_CREATE), 2);
    replay(&log, (struct pgs__replay){.n_records = log.n});
    CHECK_EQ(image_byte("memfd-1", 8), 'm');
    CHECK_EQ(image_byte("memfd-1", 9), 'M');
    shell("cmp '%s' '%s'", in_top("live/shared"), in_top("image/shared"));

    /* A log whose last writer was killed: the cut record is left out. */
    struct stat st;
    CHECK_EQ(stat(in_top("log"), &st), 0);
    size_t n = log.n;
    pgs__log_free(&log);
    CHECK_EQ(truncate(in_top("log"), st.st_size - 1), 0);
    CHECK_EQ(pgs__log_load(in_top("log"), &log), 0);
    CHECK_EQ(log.n, n - 1);
    pgs__log_free(&log);
    end();
}

TEST(failed_and_foreign_operations_are_not_recorded)
{
    begin();
    CHECK_EQ(pgs__record_start(in_top("live"), NULL), 0);
    int fd = file_open("f", O_RDWR | O_CREAT);
    pgs__inject_fail(PGS__FAIL_FILE, 1, EIO, true);
    CHECK_EQ(pgs__pwrite_full(fd, "x", 1, 0), -EIO);
    CHECK_EQ(pgs__file_ops->fdatasync(fd), -EIO);
    CHECK_EQ(pgs__file_ops->ftruncate(fd, 9), -EIO);
    pgs__inject_clear();
    int other = pgs__file_ops->open(in_top("outside"), O_RDWR | O_CREAT, 0600);
    put(other, 0, 1, 1);
    CHECK_EQ(pgs__file_ops->fdatasync(other), 0);
    pgs__record_stop();
    struct pgs__log log = load();
    CHECK_EQ(log.n, log.n_base + 1);
    pgs__log_free(&log);
    end();
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
