/* Pagestone | bench/bench_commit — what a small commit costs: time by part, pages written, system calls.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     bench_commit [-n COMMITS] [-k KEYS] [-h HISTORY] [-r] [-d DIRECTORY] [-q]
 *
 * -n  commits to measure, after a quarter of that to warm up (default 20,000)      -k  keys in rotation (default: 1, then 1,000)
 * -h  versions kept; -1: the default of 64 MB (default: all three of -1, 100, 0)    -r  a reader pins a new snapshot every 64 commits
 * -d  where the store is made (default /dev/shm)                                   -q  one line, for scripts
 *
 * Each commit replaces one small pickle-like object. Times come in two kinds: `wall` is the median over groups of 100 commits, so that bursts of
 * other load do not count; `cpu` is what this thread used in all, the fairer number on a busy machine. The parts:
 *
 *     begin     pgs_begin: pins the head
 *     put       pgs_txn_put
 *     think     pgs_txn_commit up to its first write: the catalog's edit and the ledger, in memory
 *     pages     the write of nodes and record
 *     super     from there to the end of the write of the superblock
 *     after     publishing, unlocking, giving back
 *     end       pgs_txn_unref
 *
 * File operations are seen through the table that the library calls (platform/file.h); system calls beyond it (locks) are counted by strace -c. Build: make lib, then
 *     cc -O2 -std=gnu11 -I. bench/bench_commit.c build/prod/libpagestone.a -pthread -o build/bench_commit
 */
#define _GNU_SOURCE 1
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "libshm/include/pagestone.h"
#include "libshm/platform/file.h"

#define GROUP 100u

enum part { BEGIN, PUT, THINK, PAGES, SUPER, AFTER, END, N_PARTS };
static const char *const part_name[N_PARTS] = {"begin", "put", "think", "pages", "super", "after", "end"};

struct sums {
    uint64_t ns[N_PARTS], total;
};

/* --- what the library asks of files ---------------------------------------------------------------------------------------------- */
static struct pgs__file_ops counting;
static uint64_t n_writes, n_bytes, n_fstat, n_other;
static uint64_t write_begin[8], write_end[8];
static unsigned n_seen; /* writes of the commit that is going on */

static uint64_t now_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static uint64_t now(void)
{
    return now_of(CLOCK_MONOTONIC);
}

static ssize_t count_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    unsigned i = n_seen < PGS_ARRAY_LEN(write_begin) ? n_seen++ : n_seen - 1;
    n_writes++;
    n_bytes += n;
    write_begin[i] = now();
    ssize_t rc = pgs__file_ops_real.pwrite(fd, buf, n, off);
    write_end[i] = now();
    return rc;
}
static int count_fstat(int fd, struct stat *st)
{
    n_fstat++;
    return pgs__file_ops_real.fstat(fd, st);
}
static int count_fallocate(int fd, int mode, off_t off, off_t len)
{
    n_other++;
    return pgs__file_ops_real.fallocate(fd, mode, off, len);
}

/* --- one commit -------------------------------------------------------------------------------------------------------------------- */
static void check(int rc, const struct pgs_error *err)
{
    if (rc == 0) return;
    fprintf(stderr, "bench_commit: %s\n", err->text);
    exit(1);
}

static void one(pgs_store *s, uint64_t i, uint64_t n_keys, struct sums *to)
{
    struct pgs_error err = {0};
    char key[32];
    uint64_t value[4] = {i, i, i, i}, t[N_PARTS + 1];
    struct pgs_part part = {value, sizeof value};
    pgs_txn *txn;
    size_t len = (size_t)snprintf(key, sizeof key, "key-%06llu", (unsigned long long)(i * 7919 % n_keys));
    t[BEGIN] = now();
    check(pgs_begin(s, PGS_ISO_SNAPSHOT, &txn, &err), &err);
    t[PUT] = now();
    check(pgs_txn_put(txn, key, len, PGS_KIND_PLAIN, NULL, &part, 1, &err), &err);
    n_seen = 0;
    t[THINK] = now();
    check(pgs_txn_commit(txn, NULL, NULL, &err), &err);
    t[END] = now();
    t[PAGES] = write_begin[0];
    t[SUPER] = n_seen > 1 ? write_end[n_seen - 2] : write_end[0];
    t[AFTER] = write_end[n_seen - 1];
    pgs_txn_unref(txn);
    t[N_PARTS] = now();
    for (unsigned p = 0; p < N_PARTS; p++) to->ns[p] += t[p + 1] - t[p];
    to->total += t[N_PARTS] - t[BEGIN];
}

/* --- a run ---------------------------------------------------------------------------------------------------------------------------- */
struct setting {
    const char *dir;
    uint64_t n, n_keys;
    int64_t history;
    bool reader, quiet;
};

static int by_total(const void *a, const void *b)
{
    uint64_t x = ((const struct sums *)a)->total, y = ((const struct sums *)b)->total;
    return (x > y) - (x < y);
}

static void remove_store(const char *path)
{
    static const char *const names[] = {"pages", "control"};
    char name[4200];
    for (unsigned i = 0; i < PGS_ARRAY_LEN(names); i++) {
        snprintf(name, sizeof name, "%s/%s", path, names[i]);
        unlink(name);
    }
    rmdir(path);
}

static void report(const struct setting *o, struct sums *group, size_t n_groups, uint64_t cpu_ns,
                   const struct pgs_stat *st)
{
    char history[24] = "default";
    double n = (double)o->n;
    if (o->history >= 0) snprintf(history, sizeof history, "%lld", (long long)o->history);
    qsort(group, n_groups, sizeof *group, by_total);
    const struct sums *mid = &group[n_groups / 2], *low = &group[n_groups / 10];
    printf("keys %5llu  history %-8s wall %6.2f (best tenth %6.2f)  cpu %6.2f us |", (unsigned long long)o->n_keys,
           history, (double)mid->total / GROUP / 1e3, (double)low->total / GROUP / 1e3, (double)cpu_ns / n / 1e3);
    if (!o->quiet)
        for (unsigned p = 0; p < N_PARTS; p++) {
            uint64_t ns = 0; /* the quieter half */
            for (size_t i = 0; i < n_groups / 2; i++) ns += group[i].ns[p];
            printf(" %s %.2f", part_name[p], (double)ns / GROUP / (double)(n_groups / 2) / 1e3);
        }
    printf(" | pages %.2f pwrite %.2f fstat %.2f fallocate %.3f | file %llu kB\n", (double)n_bytes / 4096 / n,
           (double)n_writes / n, (double)n_fstat / n, (double)n_other / n,
           (unsigned long long)(st->file_size - st->free) / 1000);
    fflush(stdout);
}

static void run(const struct setting *o)
{
    struct pgs_error err = {0};
    struct pgs_options opt = {.mode = PGS_MODE_X};
    struct pgs_stat st;
    char path[4096];
    pgs_store *s;
    pgs_snapshot *pinned = NULL;
    size_t n_groups = o->n / GROUP;
    struct sums *group = calloc(n_groups + 1, sizeof *group), scratch = {0};
    if (!group) exit(1);
    snprintf(path, sizeof path, "%s/pagestone-bench-%d", o->dir, (int)getpid());
    opt.history = o->history >= 0 ? PGS_HIST_COUNT : PGS_HIST_DEFAULT;
    opt.history_value = o->history >= 0 ? (uint64_t)o->history : 0;
    check(pgs_open(path, &opt, &s, &err), &err);
    for (uint64_t i = 0; i < o->n_keys; i++) one(s, i, o->n_keys, &scratch);
    for (uint64_t i = 0; i < o->n / 4; i++) one(s, i, o->n_keys, &scratch);
    n_writes = n_bytes = n_fstat = n_other = 0;
    uint64_t cpu = now_of(CLOCK_THREAD_CPUTIME_ID);
    for (uint64_t i = 0; i < o->n; i++) {
        if (o->reader && i % 64 == 0) {
            pgs_snapshot_unref(pinned);
            check(pgs_snapshot_head(s, &pinned, &err), &err);
        }
        one(s, i, o->n_keys, &group[i / GROUP]);
    }
    cpu = now_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    pgs_snapshot_unref(pinned);
    check(pgs_stat(s, &st, &err), &err);
    report(o, group, n_groups, cpu, &st);
    struct pgs_check_report r;
    check(pgs_check(s, 1, NULL, NULL, &r, &err), &err);
    if (r.n_errors || r.n_leaked_pages)
        printf("    %llu errors, %llu leaked pages\n", (unsigned long long)r.n_errors,
               (unsigned long long)r.n_leaked_pages);
    pgs_store_unref(s);
    remove_store(path);
    free(group);
}

int main(int argc, char **argv)
{
    static const int64_t histories[] = {-1, 100, 0};
    static const uint64_t keys[] = {1, 1000};
    struct setting o = {.dir = "/dev/shm", .n = 20000};
    int64_t history = INT64_MIN;
    for (int c; (c = getopt(argc, argv, "n:k:h:rd:q")) != -1;) switch (c) {
        case 'n':
            o.n = strtoull(optarg, NULL, 10) / GROUP * GROUP;
            break;
        case 'k':
            o.n_keys = strtoull(optarg, NULL, 10);
            break;
        case 'h':
            history = strtoll(optarg, NULL, 10);
            break;
        case 'r':
            o.reader = true;
            break;
        case 'd':
            o.dir = optarg;
            break;
        case 'q':
            o.quiet = true;
            break;
        default:
            fprintf(stderr, "usage: bench_commit [-n commits] [-k keys] [-h history] [-r] [-d directory] [-q]\n");
            return 2;
        }
    counting = pgs__file_ops_real;
    counting.pwrite = count_pwrite;
    counting.fstat = count_fstat;
    counting.fallocate = count_fallocate;
    pgs__file_ops = &counting;
    if (o.n < 2 * GROUP) o.n = 2 * GROUP;
    uint64_t only = o.n_keys;
    for (unsigned k = 0; k < (only ? 1 : PGS_ARRAY_LEN(keys)); k++)
        for (unsigned h = 0; h < (history != INT64_MIN ? 1 : PGS_ARRAY_LEN(histories)); h++) {
            o.n_keys = only ? only : keys[k];
            o.history = history != INT64_MIN ? history : histories[h];
            run(&o);
        }
    return 0;
}
