/* Pagestone | bench/bench_cold — what reading compressed arrays costs beside the decompression itself.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     PAGESTONE_SERVER=pymod/pagestone/bin/pagestone-fuse bench_cold [-m MIB] [-r ROUNDS] [-d DIRECTORY] [-t TYPE]
 *
 * Default: 512, 7, /dev/shm, double. The measure is one thread that decompresses blocks of 128 KiB, shuffled and packed by zstd level 1 as a whole, one after the other into one buffer: zstd, unshuffling, XXH3. It is taken in each round just before
 * and just after the others; figures are medians of ratios: 2.00 is twice as fast. (The store's own blocks decompress faster than that: extents/cold_codec.c.)
 *
 *     eager         opening the array without FUSE: decompressed by all processors into the shared image. Then reading it, in GB/s
 *     sequential    through a pager that has nothing yet: every word, in order
 *     random        the same, block after block in random order
 *     again         every word once more, against private memory of the same size
 *     first byte    from pgs_view_open to the first byte, with a server that runs; and how much was brought for it
 *
 * Data: a random walk of doubles, which zstd decompresses at one or two GB/s; or with -t int one of int64, five times as fast, where moving pages is what is measured. Build: make lib and the module (for the server), then
 *     cc -O2 -std=gnu11 -I. bench/bench_cold.c build/prod/libpagestone.a -pthread -o build/bench_cold
 */
#define _GNU_SOURCE 1
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/extents/cold.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/lock.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/image.h"
#include "libshm/txn/store.h"
#include "third_party/zstd/zstd.h"

#define MIB (1ull << 20)
#define MAX_ROUNDS 41

static uint64_t n_bytes = 512 * MIB;
static const char *directory = "/dev/shm";
static char path[4096];
static volatile uint64_t sink;

static void check(int rc, const struct pgs_error *err)
{
    if (rc == 0) return;
    fprintf(stderr, "bench_cold: %s\n", err->text);
    exit(1);
}

static double seconds(void)
{
    return (double)pgs__clock_mono_ns() * 1e-9;
}

static uint64_t next_random(void)
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

/* --- the store -------------------------------------------------------------------------------------------------------------------- */
static pgs_store *open_store(void)
{
    struct pgs_error err = {0};
    struct pgs_options o = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .durability = PGS_DUR_NONE};
    pgs_store *s;
    check(pgs_open(path, &o, &s, &err), &err);
    return s;
}

static void put_cold(pgs_store *s, const char *key, const void *p, uint64_t n)
{
    struct pgs_error err = {0};
    struct pgs_type type = {.dtype = "<i8", .dtype_len = 3, .itemsize = 8, .ndim = 1, .order = 'C'};
    struct pgs_part part = {p, n};
    uint64_t version, saved;
    pgs_txn *t;
    type.shape[0] = (int64_t)(n / 8);
    check(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err), &err);
    check(pgs_txn_put(t, key, strlen(key), PGS_KIND_ARRAY, &type, &part, 1, &err), &err);
    check(pgs_txn_commit(t, NULL, &version, &err), &err);
    pgs_txn_unref(t);
    check(pgs_freeze(s, key, strlen(key), &saved, &err), &err);
    printf("%s: %llu MiB, frozen to %.1f %%\n", key, (unsigned long long)(n / MIB),
           100.0 - 100.0 * (double)saved / (double)n);
}

static pgs_view *view_of(pgs_store *s, const char *key)
{
    struct pgs_error err = {0};
    struct pgs_object o;
    pgs_snapshot *sn;
    pgs_view *v;
    check(pgs_snapshot_head(s, &sn, &err), &err);
    check(pgs_get(sn, key, strlen(key), &o, &err), &err);
    check(pgs_view_open(sn, &o, 0, &v, &err), &err);
    pgs_snapshot_unref(sn);
    return v;
}

/* --- what is timed ------------------------------------------------------------------------------------------------------------------ */
static int decompress(void *ctx, uint64_t slot, const struct pgs__cold_block *b, struct pgs_error *damage)
{
    static uint8_t buf[PGS__COLD_BYTES];
    pgs_store *s = ctx;
    struct pgs_error err = {0};
    if (!b) check(-PGS_ECORRUPT, damage);
    check(pgs__cold_block_fetch(&s->s->pf, slot, b, buf, &err), &err);
    sink += buf[7];
    return 0;
}

static double own_blocks(pgs_store *s)
{
    struct pgs_error err = {0};
    struct pgs__ledger l;
    double start = seconds();
    check(pgs__meta_begin(s->s, &l, &err), &err);
    check(pgs__ledger_cold_walk(&l, decompress, s, &err), &err);
    pgs__meta_end(s->s, &l);
    return seconds() - start;
}

/* zstd, level 1, of shuffled blocks, one after the other, as anybody would do it. */
static uint8_t *packed;
static size_t *z_bytes;
static void pack(const uint8_t *p)
{
    static uint8_t shuffled[PGS__COLD_BYTES];
    uint64_t n = n_bytes / PGS__COLD_BYTES, at = 0;
    packed = malloc(n * ZSTD_compressBound(PGS__COLD_BYTES));
    z_bytes = malloc(n * sizeof *z_bytes);
    for (uint64_t i = 0; i < n; i++) {
        pgs__cold_shuffle(shuffled, p + i * PGS__COLD_BYTES, PGS__COLD_BYTES, 8);
        z_bytes[i] = ZSTD_compress(packed + at, ZSTD_compressBound(PGS__COLD_BYTES), shuffled, PGS__COLD_BYTES, 1);
        at += z_bytes[i];
    }
}

static double alone(void)
{
    static uint8_t shuffled[PGS__COLD_BYTES], out[PGS__COLD_BYTES];
    uint64_t n = n_bytes / PGS__COLD_BYTES, at = 0;
    double start = seconds();
    for (uint64_t i = 0; i < n; i++) {
        if (ZSTD_decompress(shuffled, sizeof shuffled, packed + at, z_bytes[i]) != sizeof shuffled) exit(1);
        pgs__cold_unshuffle(out, shuffled, sizeof out, 8);
        sink += pgs__hash(out, sizeof out);
        at += z_bytes[i];
    }
    return seconds() - start;
}

static void read_words(const void *p, uint64_t n)
{
    const uint64_t *w = p;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (uint64_t i = 0; i + 4 <= n / 8; i += 4) {
        a += w[i];
        b += w[i + 1];
        c += w[i + 2];
        d += w[i + 3];
    }
    sink += a + b + c + d;
}

static double read_in_order(const uint8_t *p)
{
    double start = seconds();
    read_words(p, n_bytes);
    return seconds() - start;
}

static double read_at_random(const uint8_t *p)
{
    uint64_t n = n_bytes / PGS__COLD_BYTES, *order = malloc(n * sizeof *order);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t k = next_random() % (i + 1);
        order[i] = order[k];
        order[k] = i;
    }
    double start = seconds();
    for (uint64_t i = 0; i < n; i++) read_words(p + order[i] * PGS__COLD_BYTES, PGS__COLD_BYTES);
    double t = seconds() - start;
    free(order);
    return t;
}

static uint64_t resident(uint8_t *p)
{
    unsigned char *in = malloc(n_bytes / PGS_PAGE_SIZE);
    uint64_t n = 0;
    if (mincore(p, n_bytes, in) == 0)
        for (uint64_t i = 0; i < n_bytes / PGS_PAGE_SIZE; i++) n += in[i] & 1;
    free(in);
    return n * PGS_PAGE_SIZE;
}

/* --- rounds ---------------------------------------------------------------------------------------------------------------------------- */
enum what { EAGER, EAGER_READ, SEQUENTIAL, RANDOM, AGAIN, FIRST, N_FIGURES };
static double figure[N_FIGURES][MAX_ROUNDS], brought;
static uint8_t *private_memory;

static void without_fuse(bool without)
{
    if (without)
        setenv("PAGESTONE_WITHOUT", "fuse", 1);
    else
        unsetenv("PAGESTONE_WITHOUT");
    pgs__caps_reset();
}

static void eager_round(unsigned round)
{
    without_fuse(true);
    pgs_store *s = open_store();
    double before = alone(), start = seconds();
    pgs_view *v = view_of(s, "x");
    double t = seconds() - start, read = read_in_order(pgs_view_data(v)), after = alone();
    figure[EAGER][round] = (before + after) / 2 / t;
    figure[EAGER_READ][round] = (double)n_bytes / read / 1e9;
    pgs_view_unref(v);
    pgs_store_unref(s);
}

static void pager_round(unsigned round, bool random)
{
    without_fuse(false);
    pgs_store *s = open_store();
    pgs_view *small = view_of(s, "small"); /* the server starts */
    read_words(pgs_view_data(small), pgs_view_size(small));
    if (s->s->image->pager.fd < 0) {
        fprintf(stderr, "bench_cold: no pager: %s\n", s->s->image->why);
        exit(1);
    }
    double before = alone(), start = seconds();
    pgs_view *v = view_of(s, "x");
    uint8_t *p = pgs_view_data(v);
    if (!random) {
        sink += p[0];
        figure[FIRST][round] = (seconds() - start) * 1e3;
        brought = (double)resident(p) / 1e6;
    }
    double t = random ? read_at_random(p) : read_in_order(p);
    if (!random) {
        double again = read_in_order(p);
        figure[AGAIN][round] = read_in_order(private_memory) / again;
    }
    double after = alone();
    figure[random ? RANDOM : SEQUENTIAL][round] = (before + after) / 2 / t;
    pgs_view_unref(v);
    pgs_view_unref(small);
    pgs_store_unref(s);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void show(const char *name, enum what what, unsigned rounds, const char *unit, double target, bool at_most)
{
    qsort(figure[what], rounds, sizeof(double), compare);
    double v = figure[what][rounds / 2];
    printf("%-12s %8.2f %-28s", name, v, unit);
    if (target > 0)
        printf(" target %s %.2f  %s", at_most ? "<=" : ">=", target,
               (at_most ? v <= target : v >= target) ? "ok" : "MISSED");
    putchar('\n');
}

static void fill(uint64_t *w, bool doubles)
{
    double at = 0;
    uint64_t x = 0;
    for (uint64_t i = 0; i < n_bytes / 8; i++) {
        double step = -6; /* a sum of twelve: close to normal */
        for (int k = 0; doubles && k < 12; k++) step += (double)(next_random() >> 11) * 0x1p-53;
        at += step;
        x += next_random() % 9;
        memcpy(&w[i], doubles ? (const void *)&at : (const void *)&x, 8);
    }
}

static void remove_store(void)
{
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    if (system(command)) return;
}

int main(int argc, char **argv)
{
    unsigned rounds = 7;
    bool doubles = true;
    for (int opt; (opt = getopt(argc, argv, "m:r:d:t:")) != -1;) {
        if (opt == 'm') n_bytes = strtoull(optarg, NULL, 10) * MIB;
        if (opt == 'r') rounds = (unsigned)strtoul(optarg, NULL, 10);
        if (opt == 'd') directory = optarg;
        if (opt == 't') doubles = optarg[0] == 'd';
        if (opt == '?') return 2;
    }
    if (rounds < 1 || rounds > MAX_ROUNDS || n_bytes == 0) return 2;
    snprintf(path, sizeof path, "%s/bench_cold.%d.ps", directory, getpid());
    atexit(remove_store);
    setenv("PAGESTONE_COLD_BUDGET", "1024G", 1);
    private_memory = malloc(n_bytes);
    uint64_t *w = (uint64_t *)(void *)private_memory;
    fill(w, doubles);
    pgs_store *s = open_store();
    put_cold(s, "small", w, MIB);
    put_cold(s, "x", w, n_bytes);
    pgs_store_unref(s);
    s = open_store();
    double t = own_blocks(s);
    pgs_store_unref(s);
    pack(private_memory);
    printf("one thread: zstd + XXH3 %.2f GB/s; blocks of the store %.2f GB/s\n", (double)n_bytes / alone() / 1e9,
           (double)n_bytes / t / 1e9);
    for (unsigned i = 0; i < rounds; i++) {
        eager_round(i);
        pager_round(i, false);
        pager_round(i, true);
    }
    show("eager", EAGER, rounds, "x one thread", 1.25, false);
    show(" then", EAGER_READ, rounds, "GB/s", 0, false);
    show("sequential", SEQUENTIAL, rounds, "x one thread", 1.1, false);
    show("random", RANDOM, rounds, "x one thread", 0.95, false);
    show("again", AGAIN, rounds, "x private memory", 0.95, false);
    show("first byte", FIRST, rounds, "ms", 2, true);
    printf("%-12s %8.2f MB\n", " brought", brought);
    return 0;
}
