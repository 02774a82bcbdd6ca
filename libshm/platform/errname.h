/* Pagestone | platform/errname — names of errno values, without malloc, locks or locale.
 * SPDX-License-Identifier: Apache-2.0
 *
 * strerrorname_np needs glibc 2.32; this table needs nothing. PGS__ERRNO_NAMES(X) calls X(E) once per value.
 */
#ifndef PGS_PLATFORM_ERRNAME_H
#define PGS_PLATFORM_ERRNAME_H

#include <errno.h>

#define PGS__ERRNO_NAMES(X)                                                                                            \
    X(EPERM)                                                                                                           \
    X(ENOENT)                                                                                                          \
    X(EINTR)                                                                                                           \
    X(EIO)                                                                                                             \
    X(ENXIO)                                                                                                           \
    X(E2BIG)                                                                                                           \
    X(EBADF)                                                                                                           \
    X(EAGAIN)                                                                                                          \
    X(ENOMEM)                                                                                                          \
    X(EACCES)                                                                                                          \
    X(EFAULT)                                                                                                          \
    X(EBUSY)                                                                                                           \
    X(EEXIST)                                                                                                          \
    X(EXDEV)                                                                                                           \
    X(ENODEV)                                                                                                          \
    X(ENOTDIR)                                                                                                         \
    X(EISDIR)                                                                                                          \
    X(EINVAL)                                                                                                          \
    X(ENFILE)                                                                                                          \
    X(EMFILE)                                                                                                          \
    X(ENOTTY)                                                                                                          \
    X(ETXTBSY)                                                                                                         \
    X(EFBIG)                                                                                                           \
    X(ENOSPC)                                                                                                          \
    X(ESPIPE)                                                                                                          \
    X(EROFS)                                                                                                           \
    X(EMLINK)                                                                                                          \
    X(EPIPE)                                                                                                           \
    X(EDEADLK)                                                                                                         \
    X(ENAMETOOLONG)                                                                                                    \
    X(ENOLCK)                                                                                                          \
    X(ENOSYS)                                                                                                          \
    X(ENOTEMPTY)                                                                                                       \
    X(ELOOP)                                                                                                           \
    X(ENODATA)                                                                                                         \
    X(EOVERFLOW)                                                                                                       \
    X(EOPNOTSUPP)                                                                                                      \
    X(ETIMEDOUT)                                                                                                       \
    X(ESTALE)                                                                                                          \
    X(EDQUOT)                                                                                                          \
    X(EOWNERDEAD)                                                                                                      \
    X(ENOTRECOVERABLE)

/* "EINVAL"; NULL for values outside the table. */
const char *pgs__errno_name(int errno_value);
/* The value of a name, 0 when unknown. Decimal numbers are taken too. */
int pgs__errno_of(const char *name);

#endif
