/* Pagestone | platform/parallel — one piece of work, done by as many threads as there are processors for us.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Threads are made for the call and end with it: nothing is kept that a fork could break, and an idle library has none.
 */
#ifndef PGS_PLATFORM_PARALLEL_H
#define PGS_PLATFORM_PARALLEL_H

#include "libshm/include/pagestone.h"
#include "libshm/platform/base.h"

/* Processors that this thread may run on; at least 1. */
unsigned pgs__parallel_width(void);
/* fn(ctx, i, err) for each i < n, in ascending order of beginning, in this thread and others. The first nonzero return is returned, with its error, once all threads are done; no further i is begun
 * after it. fn must not rely on locks that the caller holds being its own. Blocks; other threads get no signals. Where no thread can be made, this one does everything. */
int pgs__parallel(uint64_t n, int (*fn)(void *ctx, uint64_t i, struct pgs_error *err), void *ctx,
                  struct pgs_error *err);

#endif
