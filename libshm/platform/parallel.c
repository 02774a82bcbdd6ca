/* Pagestone | platform/parallel — a parallel for.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "libshm/platform/parallel.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#define MAX_THREADS 64u
#define MOST_CPUS 65536u

struct work {
    uint64_t n;
    int (*fn)(void *ctx, uint64_t i, struct pgs_error *err);
    void *ctx;
    _Atomic uint64_t next;
    _Atomic bool stop;
    pthread_mutex_t m; /* of what follows */
    int rc;
    struct pgs_error err;
};

unsigned pgs__parallel_width(void)
{
    for (size_t n = 1024; n <= MOST_CPUS; n *= 2) { /* the kernel wants as many bits as it may have processors */
        cpu_set_t *set = CPU_ALLOC(n);
        if (!set) return 1;
        size_t size = CPU_ALLOC_SIZE(n);
        int rc = sched_getaffinity(0, size, set), e = errno, count = rc == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (rc == 0) return count > 0 ? (unsigned)count : 1;
        if (e != EINVAL) return 1;
    }
    return 1;
}

static void *run(void *arg)
{
    struct work *w = arg;
    for (;;) {
        /* Both relaxed: a number is given out once, whatever the order; stopping a little late is allowed. What fn made is seen by the caller after the join. */
        if (atomic_load_explicit(&w->stop, memory_order_relaxed)) return NULL;
        uint64_t i = atomic_fetch_add_explicit(&w->next, 1, memory_order_relaxed);
        if (i >= w->n) return NULL;
        struct pgs_error err = {0};
        int rc = w->fn(w->ctx, i, &err);
        if (rc == 0) continue;
        atomic_store_explicit(&w->stop, true, memory_order_relaxed);
        pthread_mutex_lock(&w->m);
        if (w->rc == 0) {
            w->rc = rc;
            w->err = err;
        }
        pthread_mutex_unlock(&w->m);
        return NULL;
    }
}

/* Signals are for the host program's threads: ours block them all from their first instruction on. */
static unsigned start(struct work *w, pthread_t *threads, unsigned most)
{
    sigset_t all, old;
    unsigned n = 0;
    sigfillset(&all);
    if (most == 0 || pthread_sigmask(SIG_SETMASK, &all, &old) != 0) return 0;
    while (n < most && pthread_create(&threads[n], NULL, run, w) == 0) n++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return n;
}

int pgs__parallel(uint64_t n, int (*fn)(void *ctx, uint64_t i, struct pgs_error *err), void *ctx, struct pgs_error *err)
{
    struct work w = {.n = n, .fn = fn, .ctx = ctx, .m = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[MAX_THREADS];
    uint64_t width = n > 1 ? pgs__min_u64(pgs__min_u64(pgs__parallel_width(), MAX_THREADS), n) : 1;
    unsigned n_threads = start(&w, threads, (unsigned)width - 1);
    run(&w);
    for (unsigned i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&w.m);
    if (w.rc && err && err->code == 0) *err = w.err;
    return w.rc;
}
