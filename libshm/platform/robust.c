/* Pagestone | platform/robust — the one lock that processes share, and what happens when its holder dies.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A PTHREAD_MUTEX_ROBUST, process-shared mutex in the control file. The kernel marks it when the owning *thread* ends (EOWNERDEAD);
 * other threads of that process may still be running, so the heir repairs only what the lock itself protects (HAZARDS 4).
 *
 * Waits are cut into slices: a signal does not interrupt pthread_mutex_lock, so the caller's `interrupted` is asked between slices; and a lost
 * wake-up costs one slice, not for ever. ERRORCHECK, so that an unlock by a forked child is seen.
 *
 * The mutex names its owner by thread id, and two containers that share a store each have a thread 1: EDEADLK only says that the holder has our number in
 * its own PID namespace. Whether it is us we know ourselves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/lock.h"
#include "libshm/platform/ranks.h"

#define SLICE_NS INT64_C(50000000)
#define NS_PER_S INT64_C(1000000000)

PGS_STATIC(sizeof(struct pgs__robust) <= 128, "reserved in the control file");

int pgs__robust_init(struct pgs__robust *r)
{
    pthread_mutexattr_t attr;
    int rc = pthread_mutexattr_init(&attr);
    if (rc) return -PGS_ENOMEM;
    if ((rc = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED)) == 0 &&
        (rc = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST)) == 0 &&
        (rc = pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK)) == 0)
        rc = pthread_mutex_init(&r->m, &attr);
    pthread_mutexattr_destroy(&attr);
    atomic_init(&r->owner_pid, 0);
    return rc ? -PGS_ENOTSUP : 0;
}

static _Thread_local const struct pgs__robust *mine; /* held by this thread: one at a time, by its rank */

/* Wait for at most `ns`; 0 or an errno value. */
#ifdef PGS__TSAN
/* ThreadSanitizer of gcc 12 does not see clocklock, nor that a timedlock with EOWNERDEAD has locked: poll. */
static int lock_slice(struct pgs__robust *r, int64_t ns)
{
    const struct timespec nap = {.tv_nsec = 1000000};
    int rc;
    while ((rc = pthread_mutex_trylock(&r->m)) == EBUSY) {
        if (ns <= 0) return ETIMEDOUT;
        nanosleep(&nap, NULL);
        ns -= nap.tv_nsec;
    }
    return rc;
}
#else
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 30)
#define HAVE_CLOCKLOCK 1
#endif
#endif
static int lock_slice(struct pgs__robust *r, int64_t ns)
{
#ifdef HAVE_CLOCKLOCK
    const clockid_t clock = CLOCK_MONOTONIC;
#else
    const clockid_t clock = CLOCK_REALTIME; /* a clock jump lengthens or shortens one slice */
#endif
    struct timespec t;
    clock_gettime(clock, &t);
    ns += t.tv_nsec;
    t.tv_sec += (time_t)(ns / NS_PER_S);
    t.tv_nsec = (long)(ns % NS_PER_S);
#ifdef HAVE_CLOCKLOCK
    return pthread_mutex_clocklock(&r->m, clock, &t);
#else
    return pthread_mutex_timedlock(&r->m, &t);
#endif
}
#endif

/* A system call of its own, for a name in messages: asked again after a fork only. */
static _Atomic uint32_t own_pid;
static void forget_pid(void)
{
    atomic_store_explicit(&own_pid, 0, memory_order_relaxed); /* orders nothing, as below */
}
__attribute__((constructor)) static void forget_pid_at_fork(void)
{
    pthread_atfork(NULL, NULL, forget_pid);
}
static uint32_t pid_of_owner(void)
{
    uint32_t pid = atomic_load_explicit(&own_pid, memory_order_relaxed);
    if (pid == 0) {
        pid = (uint32_t)getpid();
        atomic_store_explicit(&own_pid, pid, memory_order_relaxed);
    }
    return pid;
}

int pgs__robust_lock(struct pgs__robust *r, int64_t timeout_ns, int (*interrupted)(void *), void *ctx)
{
    const struct timespec nap = {.tv_nsec = 1000000};
    pgs__rank_check(PGS__RANK_COMMIT);
    if (mine == r) return -PGS_EBUG;
    int rc = pthread_mutex_trylock(&r->m);
    if ((rc == EBUSY || rc == EDEADLK) && timeout_ns != 0) {
        uint64_t start = pgs__clock_mono_ns();
        do {
            int64_t slice = SLICE_NS;
            if (timeout_ns > 0) {
                int64_t left = timeout_ns - (int64_t)(pgs__clock_mono_ns() - start);
                if (left <= 0) break;
                if (left < slice) slice = left;
            }
            if (interrupted && interrupted(ctx)) return -PGS_EINTR;
            rc = lock_slice(r, slice);
            if (rc == EDEADLK) nanosleep(&nap, NULL); /* a namesake: its release cannot be waited for */
        } while (rc == ETIMEDOUT || rc == EDEADLK);
    }
    switch (rc) {
    case 0:
    case EOWNERDEAD:
        pgs__rank_push(PGS__RANK_COMMIT);
        mine = r;
        /* Relaxed: a name for messages; the mutex orders everything else. */
        atomic_store_explicit(&r->owner_pid, pid_of_owner(), memory_order_relaxed);
        return rc == EOWNERDEAD;
    case EBUSY:
    case EDEADLK:
    case ETIMEDOUT:
        return -PGS_ELOCKED;
    default:
        return -PGS_EBUG; /* ENOTRECOVERABLE, or bytes that are no mutex */
    }
}

void pgs__robust_consistent(struct pgs__robust *r)
{
    PGS_BUG_ON(pthread_mutex_consistent(&r->m) != 0);
}

void pgs__robust_unlock(struct pgs__robust *r)
{
    pgs__rank_pop(PGS__RANK_COMMIT);
    mine = NULL;
    atomic_store_explicit(&r->owner_pid, 0, memory_order_relaxed); /* as in pgs__robust_lock */
    PGS_BUG_ON(pthread_mutex_unlock(&r->m) != 0);
}
