/* Pagestone | bench/bench_freeze — what freezing and thawing cost beside the compression itself.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     bench_freeze [-m MIB] [-r ROUNDS] [-d DIRECTORY] [-s SITUATION] [-t TYPE]       default 256, 5, /dev/shm, both
 *
 * The measure is shuffle and zstd level 1 of the same bytes, 128 KiB at a time, between warm buffers on one core. In each round it is taken just before and just after what is compared with it, in processor time of the whole process, user and system, so
 * that other load counts little; and the median of the ratios is shown: 1.00 is as fast, per core, as the compression alone. Wall time is in GB/s, with as many threads as there are processors.
 *
 *     fresh       the store is new: the kernel has to find and clear pages for what comes out
 *     recycled    an array as large was deleted before: pages are resident
 *     thaw        the reverse, of what was just frozen; the measure is decompression and unshuffling
 *
 * Data: a random walk of doubles; int32 below 1000. Build: make lib, then
 *     cc -O2 -std=gnu11 -I. bench/bench_freeze.c build/prod/libpagestone.a -pthread -o build/bench_freeze
 */
#define _GNU_SOURCE 1
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "libshm/extents/cold.h"
#include "libshm/include/pagestone.h"
#include "libshm/platform/lock.h"
#include "third_party/zstd/zstd.h"

#define MIB (1ull << 20)
#define MAX_ROUNDS 41

struct cost {
    double cpu, wall; /* seconds */
};
static uint64_t n_bytes = 256 * MIB;
static uint32_t itemsize;
static uint8_t *data, *packed;
static size_t *z_bytes;
static const char *directory = "/dev/shm";

static void check(int rc, const struct pgs_error *err)
{
    if (rc == 0) return;
    fprintf(stderr, "bench_freeze: %s\n", err->text);
    exit(1);
}

static struct cost now(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (struct cost){(double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                             (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6,
                         (double)pgs__clock_mono_ns() * 1e-9};
}
static struct cost since(struct cost start)
{
    struct cost t = now();
    return (struct cost){t.cpu - start.cpu, t.wall - start.wall};
}

/* --- data ---------------------------------------------------------------------------------------------------------------------------- */
static uint64_t next_random(void)
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

static void fill(bool doubles)
{
    double walk = 0;
    itemsize = doubles ? 8 : 4;
    for (uint64_t at = 0; at < n_bytes; at += itemsize) {
        double step = -6; /* a sum of twelve: close to normal */
        for (int i = 0; doubles && i < 3; i++) {
            uint64_t r = next_random();
            for (int k = 0; k < 4; k++) step += (double)(r >> 16 * k & 0xffff) / 65536;
        }
        int32_t small = doubles ? 0 : (int32_t)(next_random() % 1000);
        walk += step * 0.73105857863000487; /* so that all bits of it are in use */
        memcpy(data + at, doubles ? (void *)&walk : (void *)&small, itemsize);
    }
}

/* --- the measure ----------------------------------------------------------------------------------------------------------------------- */
static double alone(bool thaw)
{
    static ZSTD_CCtx *c;
    static ZSTD_DCtx *d;
    static uint8_t between[PGS__COLD_BYTES], out[PGS__COLD_BYTES];
    if (!c) c = ZSTD_createCCtx();
    if (!d) d = ZSTD_createDCtx();
    struct cost start = now();
    for (uint64_t at = 0; at < n_bytes; at += PGS__COLD_BYTES) {
        uint8_t *z = packed + at;
        size_t *n = &z_bytes[at / PGS__COLD_BYTES];
        if (thaw) {
            ZSTD_decompressDCtx(d, between, sizeof between, z, *n);
            pgs__cold_unshuffle(out, between, sizeof between, itemsize);
        } else {
            pgs__cold_shuffle(between, data + at, sizeof between, itemsize);
            *n = ZSTD_compressCCtx(c, z, PGS__COLD_BYTES, between, sizeof between, 1);
        }
    }
    return since(start).cpu;
}

/* --- the store -------------------------------------------------------------------------------------------------------------------------- */
static void put(pgs_store *s, const char *key)
{
    struct pgs_error err = {0};
    struct pgs_type type = {.dtype = itemsize == 8 ? "<f8" : "<i4",
                            .dtype_len = 3,
                            .itemsize = itemsize,
                            .ndim = 1,
                            .order = 'C',
                            .shape = {(int64_t)(n_bytes / itemsize)}};
    struct pgs_part part = {data, n_bytes};
    pgs_txn *t;
    check(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err), &err);
    check(pgs_txn_put(t, key, strlen(key), PGS_KIND_ARRAY, &type, &part, 1, &err), &err);
    check(pgs_txn_commit(t, NULL, NULL, &err), &err);
    pgs_txn_unref(t);
}

static void drop(pgs_store *s, const char *key)
{
    struct pgs_error err = {0};
    pgs_txn *t;
    check(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err), &err);
    check(pgs_txn_delete(t, key, strlen(key), &err), &err);
    check(pgs_txn_commit(t, NULL, NULL, &err), &err);
    pgs_txn_unref(t);
}

static pgs_store *open_store(const char *path)
{
    struct pgs_error err = {0};
    struct pgs_options o = {.mode = PGS_MODE_W, .history = PGS_HIST_COUNT, .durability = PGS_DUR_NONE};
    pgs_store *s;
    check(pgs_open(path, &o, &s, &err), &err);
    return s;
}

/* --- rounds ------------------------------------------------------------------------------------------------------------------------------ */
enum situation { FRESH, RECYCLED, THAW, N_SITUATIONS };
static const char *const name_of[N_SITUATIONS] = {"fresh", "recycled", "thaw"};

static struct cost round_of(enum situation how, double *ratio)
{
    char dir[4096], path[4200];
    struct pgs_error err = {0};
    struct cost start;
    snprintf(dir, sizeof dir, "%s/pagestone-bench-XXXXXX", directory);
    if (!mkdtemp(dir)) {
        perror(dir);
        exit(1);
    }
    snprintf(path, sizeof path, "%s/s.pgs", dir);
    pgs_store *s = open_store(path);
    if (how == RECYCLED) put(s, "x");
    put(s, "a");
    if (how == RECYCLED) drop(s, "x");
    if (how == THAW) check(pgs_freeze(s, "a", 1, NULL, &err), &err);
    double before = alone(how == THAW);
    start = now();
    check(how == THAW ? pgs_thaw(s, "a", 1, NULL, &err) : pgs_freeze(s, "a", 1, NULL, &err), &err);
    struct cost took = since(start);
    *ratio = (before + alone(how == THAW)) / 2 / took.cpu;
    pgs_store_unref(s);
    char command[4300];
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    if (system(command) != 0) perror(command);
    return took;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *type, enum situation how, int rounds)
{
    double ratio[MAX_ROUNDS], wall[MAX_ROUNDS], cpu[MAX_ROUNDS];
    for (int i = 0; i < rounds; i++) {
        struct cost took = round_of(how, &ratio[i]);
        wall[i] = (double)n_bytes / took.wall * 1e-9;
        cpu[i] = (double)n_bytes / took.cpu * 1e-9;
    }
    qsort(ratio, (size_t)rounds, sizeof ratio[0], by_value);
    qsort(wall, (size_t)rounds, sizeof wall[0], by_value);
    qsort(cpu, (size_t)rounds, sizeof cpu[0], by_value);
    printf("%-8s %-9s %6.2f   %4.2f-%4.2f %12.2f %10.2f\n", type, name_of[how], ratio[rounds / 2], ratio[0],
           ratio[rounds - 1], cpu[rounds / 2], wall[rounds / 2]);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int rounds = 5, option, only = -1, type = -1;
    while ((option = getopt(argc, argv, "m:r:d:s:t:")) != -1) {
        if (option == 'm') n_bytes = strtoull(optarg, NULL, 10) * MIB;
        if (option == 'r') rounds = (int)pgs__min_u64(strtoull(optarg, NULL, 10), MAX_ROUNDS);
        if (option == 'd') directory = optarg;
        if (option == 's') only = optarg[0] == 'f' ? FRESH : optarg[0] == 'r' ? RECYCLED : THAW;
        if (option == 't') type = optarg[0] == 'i';
        if (option == '?') return 2;
    }
    data = malloc(n_bytes);
    packed = malloc(n_bytes);
    z_bytes = calloc(n_bytes / PGS__COLD_BYTES + 1, sizeof *z_bytes);
    if (!data || !packed || !z_bytes || rounds < 1) return 1;
    printf("%-8s %-9s %6s   %9s %12s %10s\n", "data", "", "ratio", "of rounds", "GB/s a core", "GB/s wall");
    for (int k = 0; k < 2; k++) {
        if (type >= 0 && k != type) continue;
        fill(k == 0);
        (void)alone(false);
        for (int how = 0; how < N_SITUATIONS; how++)
            if (only < 0 || how == only) measure(k == 0 ? "float64" : "int32", (enum situation)how, rounds);
    }
    return 0;
}
