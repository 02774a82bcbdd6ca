/* Pagestone | platform/mutex — mutexes of one process, and the order in which a thread may take locks.
 * SPDX-License-Identifier: Apache-2.0
 *
 * With PGS_DEBUG each thread keeps the ranks that it holds; taking a lock whose rank is not above all of them is a bug, reported
 * at the second lock, before it can deadlock. Ranks are strictly ascending: two locks of one rank never nest, and nothing nests
 * in PGS__RANK_LEAF. Unlocking is free in its order. The mutexes are of the plain kind, because fork hooks unlock in the child what
 * the parent's thread locked.
 */
#define _GNU_SOURCE
#include "libshm/platform/lock.h"
#include "libshm/platform/ranks.h"

#ifdef PGS_DEBUG
static _Thread_local struct {
    int n;
    int rank[PGS__RANK_LEAF];
} held;

void pgs__rank_check(int rank)
{
    for (int i = 0; i < held.n; i++)
        if (held.rank[i] >= rank) pgs__bug(__FILE__, __LINE__, "a lock was taken out of order of ranks");
}

void pgs__rank_push(int rank)
{
    pgs__rank_check(rank);
    PGS_BUG_ON(held.n >= PGS__RANK_LEAF);
    held.rank[held.n++] = rank;
}

void pgs__rank_pop(int rank)
{
    for (int i = held.n - 1; i >= 0; i--)
        if (held.rank[i] == rank) {
            held.n--;
            memmove(&held.rank[i], &held.rank[i + 1], (size_t)(held.n - i) * sizeof held.rank[0]);
            return;
        }
    pgs__bug(__FILE__, __LINE__, "a lock was released that this thread does not hold");
}
#endif

#ifdef PGS__TSAN
_Atomic uint32_t pgs__fence_word;
#endif

void pgs__mutex_init(struct pgs__mutex *m, enum pgs__lock_rank rank)
{
    PGS_BUG_ON(pthread_mutex_init(&m->m, NULL) != 0);
    m->rank = (int)rank;
}

void pgs__mutex_destroy(struct pgs__mutex *m)
{
    PGS_BUG_ON(pthread_mutex_destroy(&m->m) != 0);
}

void pgs__mutex_lock(struct pgs__mutex *m)
{
    pgs__rank_check(m->rank);
    PGS_BUG_ON(pthread_mutex_lock(&m->m) != 0);
    pgs__rank_push(m->rank);
}

void pgs__mutex_unlock(struct pgs__mutex *m)
{
    pgs__rank_pop(m->rank);
    PGS_BUG_ON(pthread_mutex_unlock(&m->m) != 0);
}
