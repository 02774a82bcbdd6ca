/* Pagestone | fuse/npy — headers of .npy files.
 * SPDX-License-Identifier: Apache-2.0
 *
 * An NPY file is magic "\x93NUMPY", u8 major, u8 minor, u16 or (major ≥ 2) u32 length, a Python dict of that length with descr, fortran_order and shape; then the array's memory.
 * Bytes of a header are input from anybody. Types are the library's (pagestone.h): a dtype is its NumPy string or a dict of names, formats, offsets and itemsize.
 */
#ifndef PAGESTONE_FUSE_NPY_H
#define PAGESTONE_FUSE_NPY_H

#include "fuse/text.h"
#include "libshm/include/pagestone.h"

#define NPY_PAGE 4096u
#define NPY_HEADER_MAX (1u << 20) /* a longer one is refused */

struct npy {
    struct pgs_type type; /* dtype points into `dtype`; order is 'F' as the header says */
    struct text dtype;
    uint64_t data_at; /* length of the header */
    uint64_t n_bytes; /* of the data */
};

/* Append the header of an array of this type, padded so that the data begins at a multiple of NPY_PAGE (of 64, where NumPy would find so long a header unsafe).
 * What NPY cannot say (overlapping fields, types of other packages) is described as that many bytes without meaning. False: the dtype is malformed, or no memory. */
bool npy_write(const struct pgs_type *type, struct text *out);
/* How many bytes a header has, from its first 12: 0 if these begin none. */
uint64_t npy_header_len(const void *p, size_t len);
/* Read a header. 0; -EINVAL: it is none (or cut off), or describes objects, or sizes overflow; -ENOMEM. On success: npy_free. */
int npy_parse(const void *p, size_t len, struct npy *out);
void npy_free(struct npy *n);

#endif
