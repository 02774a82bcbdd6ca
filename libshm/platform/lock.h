/* Pagestone | platform/lock — robust locks between processes, liveness by OFD locks, futexes, fork hooks, clocks.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_PLATFORM_LOCK_H
#define PGS_PLATFORM_LOCK_H

#include <pthread.h>
#include <stdatomic.h>

#include "libshm/include/pagestone.h"
#include "libshm/platform/base.h"

/* --- lock ranks: a thread takes locks in ascending rank only; checked with PGS_DEBUG --------------------------- */
enum pgs__lock_rank {
    PGS__RANK_REGISTRY = 1, /* process: table of open page files */
    PGS__RANK_STORE,        /* process: one open Store */
    PGS__RANK_TXN,          /* process: one transaction */
    PGS__RANK_COMMIT,       /* shared: the commit lock, in the control file */
    PGS__RANK_SPACE,        /* process: chunks claimed by this process */
    PGS__RANK_VIEWS,        /* process: table of views */
    PGS__RANK_PINS,         /* process: pin table; held across fork */
    PGS__RANK_LEAF,         /* anything that takes no further lock */
};
struct pgs__mutex { /* in-process */
    pthread_mutex_t m;
    int rank;
};
void pgs__mutex_init(struct pgs__mutex *m, enum pgs__lock_rank rank);
void pgs__mutex_destroy(struct pgs__mutex *m);
void pgs__mutex_lock(struct pgs__mutex *m);
void pgs__mutex_unlock(struct pgs__mutex *m);

/* --- fences ----------------------------------------------------------------------------------------------------- */
#if defined(__SANITIZE_THREAD__)
#define PGS__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PGS__TSAN 1
#endif
#endif
#ifdef PGS__TSAN
/* ThreadSanitizer knows no fences. A read-modify-write of one word stands in for them: it orders at least as much, and it sees that. */
extern _Atomic uint32_t pgs__fence_word; /* mutex.c */
#define pgs__fence_as(order) ((void)(order), (void)atomic_fetch_add(&pgs__fence_word, 0))
#else
#define pgs__fence_as(order) atomic_thread_fence(order)
#endif

/* --- the robust mutex in shared memory -------------------------------------------------------------------------- */
struct pgs__robust { /* lives in the control file; 128 bytes reserved there */
    pthread_mutex_t m;
    _Atomic uint32_t owner_pid; /* advisory, for LockedError; stored by the owner after locking */
};
int pgs__robust_init(struct pgs__robust *r);
/* Wait in slices of ≤ 50 ms; between slices calls `interrupted` (may be NULL), whose nonzero return ends the wait with
 * -PGS_EINTR. timeout_ns < 0: for ever. 0 = locked; 1 = locked and the previous owner's thread died inside: the caller must repair what
 * the lock protects and then call pgs__robust_consistent (also when the repair failed; then with a needs-repair flag); -PGS_ELOCKED. */
int pgs__robust_lock(struct pgs__robust *r, int64_t timeout_ns, int (*interrupted)(void *), void *ctx);
void pgs__robust_consistent(struct pgs__robust *r);
void pgs__robust_unlock(struct pgs__robust *r);

/* --- open-file-description locks ---------------------------------------------------------------------------------- */
/* One byte at `off`. 0, -EAGAIN (held elsewhere), other -errno. Never blocks. */
int pgs__ofd_lock(int fd, uint64_t off, bool exclusive);
int pgs__ofd_unlock(int fd, uint64_t off);
/* The same for n bytes: all or none. */
int pgs__ofd_lock_range(int fd, uint64_t off, uint64_t n, bool exclusive);
/* Would an exclusive lock of the byte conflict? 1 yes, 0 no, -errno. Use a description that owns no locks itself. */
int pgs__ofd_busy(int fd, uint64_t off);

/* A lock that a mapping holds (DESIGN §4, Slots): reopens `path_or_fd`, locks the byte exclusively, maps one page of that description and
 * closes the descriptor. The lock lives as long as the mapping; exec and death release it, closerange cannot reach it. With `dont_fork`
 * the mapping gets MADV_DONTFORK (fork and raw clone do not inherit the lock); without it a child keeps it too. Between open and close the
 * descriptor itself can be inherited: call with the pin table's lock held, which the fork hooks take. No malloc, no stdio: safe in a fork hook.
 * Through fd: -ENOTSUP without PGS__CAP_PROC_FD. The file must be writable for the caller. */
struct pgs__held_lock {
    void *map; /* NULL: not held */
};
int pgs__held_lock_take(int fd, uint64_t off, bool dont_fork,
                        struct pgs__held_lock *out); /* 0, -EAGAIN, -errno; reopens fd via /proc/self/fd */
int pgs__held_lock_take_at(int dir_fd, const char *name, uint64_t off, bool dont_fork,
                           struct pgs__held_lock *out); /* reopens by name */
int pgs__held_lock_dontfork(struct pgs__held_lock *l);  /* madvise only: safe in a fork hook */
void pgs__held_lock_drop(struct pgs__held_lock *l);     /* munmap only: safe in a fork hook; accepts an unheld one */

/* --- futexes (process-shared) ---------------------------------------------------------------------------------------- */
/* Sleep while *word == expected, at most timeout_ns (< 0: for ever). 0 woken or changed, -ETIMEDOUT, -EINTR. Works on PROT_READ maps. */
int pgs__futex_wait(const _Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
void pgs__futex_wake_all(_Atomic uint32_t *word);

/* --- clocks and boot identity ---------------------------------------------------------------------------------------- */
uint64_t pgs__clock_boot_ns(void); /* CLOCK_BOOTTIME: leases, timeouts */
uint64_t pgs__clock_real_ns(void); /* CLOCK_REALTIME, ns since 1970 */
uint64_t pgs__clock_mono_ns(void);
int pgs__boot_id(
    uint8_t out
        [16]); /* /proc/sys/kernel/random/boot_id; without /proc: from CLOCK_REALTIME − CLOCK_BOOTTIME in seconds/16 */
void pgs__random(void *buf, size_t n); /* getrandom */

/* --- fork ---------------------------------------------------------------------------------------------------------------- */
/* Registers the three process-wide hooks once. They may only do what is safe with other threads' locks held: no malloc, stdio or Python. */
int pgs__fork_hooks(void (*prepare)(void), void (*parent)(void), void (*child)(void));

#endif
