/* Pagestone | platform/ranks — the checker of lock order, shared by mutex.c and robust.c.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_PLATFORM_RANKS_H
#define PGS_PLATFORM_RANKS_H

#ifdef PGS_DEBUG
void pgs__rank_check(int rank); /* BUG unless above all ranks that this thread holds */
void pgs__rank_push(int rank);
void pgs__rank_pop(int rank); /* BUG unless held */
#else
static inline void pgs__rank_check(int rank)
{
    (void)rank;
}
static inline void pgs__rank_push(int rank)
{
    (void)rank;
}
static inline void pgs__rank_pop(int rank)
{
    (void)rank;
}
#endif

#endif
