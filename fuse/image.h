/* Pagestone | fuse/image — how the pager's file shows whose it is.
 * SPDX-License-Identifier: Apache-2.0
 *
 * libshm/txn/pager.c reads what fuse/pager.c writes; neither includes the other, so these few lines stand in both. A difference shows in tests/fuse/test_server_pager.py.
 */
#ifndef PAGESTONE_FUSE_IMAGE_H
#define PAGESTONE_FUSE_IMAGE_H

#include <stdint.h>
#include <string.h>

#define IMAGE_INODE 2u
#define IMAGE_BYTES (UINT64_C(1) << 62)
#define IMAGE_MAGIC UINT64_C(0x0067657265676170) /* a time in seconds that no file has */
#define IMAGE_TICKS UINT64_C(1000000000)         /* start times are given modulo this, as nanoseconds */

/* Half of the uuid as a time in seconds. */
static inline uint64_t image_half(const uint8_t *half)
{
    uint64_t v;
    memcpy(&v, half, sizeof v);
    return v & ((UINT64_C(1) << 62) - 1);
}

#endif
