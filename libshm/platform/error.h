/* Pagestone | platform/error — error codes and the one place that words an error.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A function that can fail returns 0 or -PGS_E… (pagestone.h has the frozen table) and leaves its outputs
 * untouched on failure. The struct pgs_error is the caller's, may be NULL, is filled where the error is born
 * and is never overwritten on the way up. Text: one line, lower case, facts, then the cure.
 */
#ifndef PGS_PLATFORM_ERROR_H
#define PGS_PLATFORM_ERROR_H

#include "libshm/include/pagestone.h"
#include "libshm/platform/base.h"

/* Fill *err (if not NULL and still empty) and return -code. `code` is a positive PGS_E…. */
int pgs__fail(struct pgs_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same for a failed system call: maps errno_value to a code (ENOSPC, EDQUOT → PGS_EFULL; ENOMEM →
 * PGS_ENOMEM; ENOENT → PGS_ENOENT; EEXIST → PGS_EEXIST; EACCES, EPERM, EROFS → PGS_EACCES; others → PGS_EIO),
 * stores errno_value in err->os_errno and appends its name to the text. */
int pgs__fail_os(struct pgs_error *err, int errno_value, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Damage: PGS_ECORRUPT, `object` (a key, or "the catalog", …) goes to err->object. */
int pgs__fail_corrupt(struct pgs_error *err, const char *object, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Name the object of a damage error that was born below the layer that knows it: fills err->object where it is
 * empty and rc is -PGS_ECORRUPT. Returns rc. */
int pgs__name_object(struct pgs_error *err, int rc, const void *key, size_t key_len);

#endif
