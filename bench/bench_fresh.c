/* Pagestone | bench/bench_fresh — what a put of big data costs, in times of memcpy between warm buffers.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     bench_fresh [DIRECTORY]        default /dev/shm; a file is made there and removed at once
 *
 * For each size the median, over several rounds, of pgs__fresh_copy / memcpy of the same bytes just before, into
 *     fresh     chunks that were just punched: the kernel has to find and clear memory
 *     recycled  the same chunks again, still resident
 *     shared    recycled, but beginning one page into a chunk that others use as well (whole = false)
 * with and without hashes of the pages. Build: make lib, then
 *     cc -O2 -std=gnu11 -I. bench/bench_fresh.c build/prod/libpagestone.a -pthread -o build/bench_fresh
 */
#define _GNU_SOURCE 1
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libshm/pages/fresh.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/lock.h"

#define MIB (1ull << 20)
#define MAX_ROUNDS 41

static struct pgs__pagefile pf;
static uint8_t *src, *warm;
static uint64_t *hashes;

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

enum how { MEMCPY, FRESH, RECYCLED, SHARED };

static uint64_t round_ns(enum how how, uint64_t n_bytes, bool hash)
{
    struct pgs_error err = {0};
    struct pgs_run run = {{2 * PGS_CHUNK_PAGES + (how == SHARED)}, pgs__pages_of(n_bytes)};
    if (how == FRESH) pgs__pagefile_punch(&pf, 2, n_bytes / PGS_CHUNK_SIZE + 2);
    uint64_t start = pgs__clock_mono_ns();
    if (how == MEMCPY) {
        memcpy(warm, src, n_bytes);
    } else if (pgs__fresh_copy(&pf, run, how != SHARED, src, n_bytes, hash ? hashes : NULL, &err) != 0) {
        fprintf(stderr, "bench_fresh: %s\n", err.text);
        exit(1);
    }
    return pgs__clock_mono_ns() - start;
}

/* Median of (copy / the memcpy just before it): other load of the machine slows both. */
static double ratio(enum how how, uint64_t n_bytes, bool hash)
{
    uint64_t permille[MAX_ROUNDS];
    int rounds = n_bytes > 32 * MIB ? 15 : MAX_ROUNDS;
    (void)round_ns(how, n_bytes, hash);
    for (int i = 0; i < rounds; i++) {
        uint64_t base = round_ns(MEMCPY, n_bytes, false);
        permille[i] = round_ns(how, n_bytes, hash) * 1000 / (base + 1);
    }
    qsort(permille, (size_t)rounds, sizeof permille[0], by_value);
    return (double)permille[rounds / 2] / 1000;
}

static double memcpy_gbs(uint64_t n_bytes)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < MAX_ROUNDS; i++) best = pgs__min_u64(best, round_ns(MEMCPY, n_bytes, false));
    return (double)n_bytes / (double)best;
}

int main(int argc, char **argv)
{
    static const uint64_t sizes[] = {MIB, 2 * MIB, 16 * MIB, 100 * MIB};
    const uint64_t max = 100 * MIB;
    struct pgs_error err = {0};
    char name[4096];
    snprintf(name, sizeof name, "%s/pagestone-bench-XXXXXX", argc > 1 ? argv[1] : "/dev/shm");
    int fd = mkstemp(name);
    if (fd < 0) {
        perror(name);
        return 1;
    }
    unlink(name);
    src = malloc(max);
    warm = malloc(max);
    hashes = calloc(max / PGS_PAGE_SIZE, sizeof *hashes);
    if (!src || !warm || !hashes) return 1;
    memset(src, 0x3c, max);
    memset(warm, 0x3c, max);
    if (pgs__pagefile_init(&pf, fd, -1, NULL, true, &err) != 0 ||
        pgs__pagefile_grow(&pf, 2 * PGS_CHUNK_PAGES + max / PGS_PAGE_SIZE + 2 * PGS_CHUNK_PAGES, &err) != 0) {
        fprintf(stderr, "bench_fresh: %s\n", err.text);
        return 1;
    }
    printf("collapse %s, writable mappings %s; times memcpy (median)\n", pgs__cap(PGS__CAP_COLLAPSE) ? "on" : "off",
           pgs__fresh_can_map(&pf) ? "on" : "off");
    printf("%8s %12s %8s %8s %8s %8s %8s %8s\n", "MiB", "memcpy GB/s", "fresh", "recycled", "shared", "fresh+h",
           "recyc+h", "shared+h");
    for (size_t i = 0; i < PGS_ARRAY_LEN(sizes); i++) {
        printf("%8llu %12.1f", (unsigned long long)(sizes[i] / MIB), memcpy_gbs(sizes[i]));
        for (int hash = 0; hash < 2; hash++)
            for (int how = FRESH; how <= SHARED; how++) printf(" %8.2f", ratio((enum how)how, sizes[i], hash));
        printf("\n");
    }
    pgs__pagefile_fini(&pf);
    return 0;
}
