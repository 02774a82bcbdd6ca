/* Pagestone | catalog/object — object records: the values of the catalog tree.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The catalog maps a name (1 to 1,024 bytes of UTF-8; hidden ones begin with NUL) to a record. Record bytes, little-endian, no padding:
 *
 *      0  u8  kind (enum pgs_kind)    1  u8  form      2  u8  order 'C'/'F'/0     3  u8  ndim
 *      4  u16 flags                   6  u16 inline_len
 *      8  u64 id                     16  u64 version   24  u64 n_bytes            32  u64 n_stored (pages)
 *     40  u32 itemsize               44  u32 dtype_len            (arrays); u64 xxh_bytes, how much of a stream its checksum covers (others)
 *     48  EXTENT: u64 page, birth, xxh | MAP: u64 xxh, 0, 0 | INLINE: u64 xxh, 0, 0          (24 bytes)
 *     72  struct pgs_ptr map  (24 bytes)
 *     96  ndim × i64 shape
 *      …  dtype bytes (dtype_len ≤ 256), or struct pgs_ptr + u64 n_pages of an overflow extent that holds them (flag DTYPE_OUT)
 *      …  inline bytes
 *
 * (id, version) is the revision: two records with equal ones have equal content; freeze, thaw and compact change record bytes without changing them.
 *
 *   I1  Decoding validates everything; a record that decodes has ndim ≤ 64, sizes that multiply without overflow, n_bytes consistent with shape × itemsize.
 *   I2  A record fits a tree cell whatever the key: the encoder moves dtype and then inline data out of line if it does not (caller's job: PGS_E2BIG tells).
 */
#ifndef PGS_CATALOG_OBJECT_H
#define PGS_CATALOG_OBJECT_H

#include "libshm/extents/content.h"

#define PGS__DTYPE_INLINE_MAX 256u
#define PGS__OBJ_DTYPE_OUT 1u
#define PGS__RECORD_MAX 1400u /* bytes of an encoded record at most */

struct pgs__object {
    enum pgs_kind kind;
    uint64_t id, version;
    struct pgs__content content;
    char order;
    uint32_t ndim, itemsize;
    int64_t shape[PGS_MAX_NDIM];
    const char *dtype; /* borrowed: from the record or (out of line) the mapped page, verified */
    uint32_t dtype_len;
    struct pgs_ptr dtype_ext; /* flag DTYPE_OUT: one page run */
    uint64_t dtype_ext_pages;
};

/* Decode the value of `key`; spans point into `val`. -PGS_ECORRUPT with the key as object name. */
int pgs__object_decode(struct pgs__pagefile *pf, struct pgs_span key, struct pgs_span val, struct pgs__object *out,
                       struct pgs_error *err);
/* Encode into buf[PGS__RECORD_MAX]; *len. -PGS_E2BIG. */
int pgs__object_encode(const struct pgs__object *o, void *buf, size_t *len, struct pgs_error *err);
/* Largest inline content that fits beside this key and type: 0 to PGS__INLINE_MAX. */
size_t pgs__object_inline_room(size_t key_len, uint32_t ndim, uint32_t dtype_len);
bool pgs__object_same_revision(const struct pgs__object *a, const struct pgs__object *b);
/* Same kind, dtype, itemsize, ndim, order and shape (axis 0 may differ if `ignore_rows`). */
bool pgs__object_same_type(const struct pgs__object *a, const struct pgs__object *b, bool ignore_rows);
void pgs__object_export(const struct pgs__object *o, struct pgs_object *out); /* to the public struct */

/* n_bytes of shape × itemsize: 0, or -PGS_E2BIG beyond 2^46, -PGS_EINVAL for negative extents or ndim > 64. */
int pgs__type_bytes(const struct pgs_type *type, uint64_t *n_bytes, struct pgs_error *err);

/* --- names --------------------------------------------------------------------------------------------------------------- */
/* API.md: 1 to 1,024 bytes of UTF-8, parts (between '/') 1 to 250 bytes, none "." or "..", no NUL (hidden names: a leading NUL, then anything up to 1,024). */
int pgs__name_check(const void *key, size_t len, struct pgs_error *err);
/* Name rules of a set: `a` and `a/b` do not coexist, nor do names that meet in the file view ("x" an array shows as "x.npy": collides with bytes named "x.npy"; pickled "x" with "x.pkl").
 * Would adding `key` of `kind` to catalog `t` break them? 0; or -PGS_EEXIST naming both. An object that already has this very key is ignored: it is replaced. */
int pgs__name_fits(const struct pgs__tree *t, const void *key, size_t len, enum pgs_kind kind, struct pgs_error *err);
/* The name in the file view: key + ".npy" for arrays, ".pkl" for pickles and plain objects, as it is for bytes. Returns its length; buf ≥ PGS_MAX_KEY + 4. */
size_t pgs__name_in_view(const void *key, size_t len, enum pgs_kind kind, char *buf);

#endif
