/* Pagestone | fuse/blocks — decompressed blocks at hand, for the threads of the pager.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The kernel asks for pages where a program touched one, not at the edges of blocks; what it asks for next begins in the middle of the block that it got half of. So the last blocks
 * are kept for a while, and a block that is being decompressed is waited for rather than done twice.
 *
 *     state      lock                      who
 *     FREE       blocks.lock               anyone takes it: FILLING
 *     FILLING    the thread that took it   bytes are written without the lock; then READY, or FREE after an error
 *     READY      users > 0: constant       blocks_get; at users == 0 it may be taken for another slot, the one used longest ago first
 */
#ifndef PAGESTONE_FUSE_BLOCKS_H
#define PAGESTONE_FUSE_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "libshm/include/pagestone.h"

struct block;
/* Bytes of a slot, PGS_COLD_BLOCK of them: what the block lacks, and slots that will never be used again, are zeros. -EAGAIN: not used yet. 0 with a block that is the caller's until blocks_put; -errno. */
int blocks_get(pgs_store *store, uint64_t slot, struct block **out, const uint8_t **bytes);
void blocks_put(struct block *b); /* accepts NULL */

/* n ≤ 16 consecutive slots, by several threads. All or nothing: 0 or -errno. */
#define BLOCKS_MAX 16u
int blocks_get_many(pgs_store *store, uint64_t slot, unsigned n, struct block **out, const uint8_t **bytes);

#endif
