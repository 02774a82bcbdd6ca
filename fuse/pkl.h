/* Pagestone | fuse/pkl — stored objects as one pickle stream.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A pickled content (pymod/value.c) is u64 head_len, u32 n_buffers, u32 0, n × (u64 offset, u64 len), stream … head_len, buffers. The file is the stream with each NEXT_BUFFER replaced by the buffer
 * itself: opcode, u64 length, bytes. The lengths of FRAMEs would be wrong then: nine bytes that push and pop something stand in their place. So the file's size is
 * (stream) + Σ (8 + buffer), which the head tells, and any range of it can be read without making the rest.
 *
 * A plain content (pymod/plain.c) is no pickle: a protocol 4 stream is made from it.
 *
 * Contents are input: what does not walk is -EIO, never a crash.
 */
#ifndef PAGESTONE_FUSE_PKL_H
#define PAGESTONE_FUSE_PKL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "fuse/text.h"

/* How long the head of a pickled content is that pkl_size needs, from its first 16 bytes; 0: malformed. */
uint64_t pkl_table_len(const void *p, uint64_t n);
/* Size of the file of a pickled content of n bytes, whose first pkl_table_len are at p. False: malformed. */
bool pkl_size(const void *p, uint64_t n, uint64_t *size);

struct pkl; /* a plan: which bytes come from where */
/* Walk the stream of a content that stays where it is as long as the plan. 0, -EIO, -ENOMEM. */
int pkl_open(const void *content, uint64_t n, struct pkl **out);
uint64_t pkl_bytes(const struct pkl *p);
/* Describe up to len bytes from off by at most n_iov pieces of memory. *n_used; returns how many bytes they have (0 at the end). */
size_t pkl_pieces(const struct pkl *p, uint64_t off, size_t len, struct iovec *iov, int n_iov, int *n_used);
void pkl_free(struct pkl *p);

/* The stream of a plain content. out NULL: only its size. 0, -EIO, -ENOMEM. */
int plain_pickle(const void *content, uint64_t n, struct text *out, uint64_t *size);

#endif
