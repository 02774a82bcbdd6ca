/* Pagestone | fuse/lib — libfuse3's low-level API, found when the server starts.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Nothing links libfuse3: fuse_lib_load() opens libfuse3.so.3 and fills a table, and the macros below let code that calls fuse_reply_buf(…) read
 * as it does everywhere else. The declarations are those of libfuse 3.14 in third_party/libfuse.
 *
 * Rules
 *   - Only what has one layout in every libfuse of 3.3 and later: of the bits of struct fuse_file_info, direct_io and keep_cache (writepage, too);
 *     those behind them moved in 3.14.2 and back in 3.17. Where they are wanted, fuse_lib_cache_readdir sets them.
 *   - Functions that came later than 3.3 are under OPTIONAL: NULL where the library lacks them; ask fuse_lib_has(name) first.
 *   - fuse_req_userdata gives what the program's start() returned (server.h).
 *   - After a fork the table is the child's as well.
 */
#ifndef PAGESTONE_FUSE_LIB_H
#define PAGESTONE_FUSE_LIB_H

#define FUSE_USE_VERSION 314

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wundef"
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include "third_party/libfuse/fuse_lowlevel.h"
#pragma GCC diagnostic pop

#define FUSE_LIB_REQUIRED(X)                                                                                           \
    X(version)                                                                                                         \
    X(session_new)                                                                                                     \
    X(session_mount)                                                                                                   \
    X(session_exit)                                                                                                    \
    X(session_exited)                                                                                                  \
    X(session_destroy)                                                                                                 \
    X(session_fd)                                                                                                      \
    X(session_process_buf)                                                                                             \
    X(req_userdata)                                                                                                    \
    X(req_ctx)                                                                                                         \
    X(req_getgroups)                                                                                                   \
    X(req_interrupt_func)                                                                                              \
    X(req_interrupted)                                                                                                 \
    X(reply_err)                                                                                                       \
    X(reply_none)                                                                                                      \
    X(reply_entry)                                                                                                     \
    X(reply_create)                                                                                                    \
    X(reply_attr)                                                                                                      \
    X(reply_readlink)                                                                                                  \
    X(reply_open)                                                                                                      \
    X(reply_write)                                                                                                     \
    X(reply_buf)                                                                                                       \
    X(reply_data)                                                                                                      \
    X(reply_iov)                                                                                                       \
    X(reply_statfs)                                                                                                    \
    X(reply_xattr)                                                                                                     \
    X(reply_lock)                                                                                                      \
    X(reply_bmap)                                                                                                      \
    X(reply_ioctl)                                                                                                     \
    X(reply_poll)                                                                                                      \
    X(add_direntry)                                                                                                    \
    X(add_direntry_plus)                                                                                               \
    X(buf_size)                                                                                                        \
    X(buf_copy)                                                                                                        \
    X(lowlevel_notify_inval_inode)                                                                                     \
    X(lowlevel_notify_inval_entry)                                                                                     \
    X(lowlevel_notify_delete)                                                                                          \
    X(lowlevel_notify_store)

#define FUSE_LIB_OPTIONAL(X)                                                                                           \
    X(reply_lseek)                  /* 3.8 */                                                                          \
    X(pkgversion)                   /* 3.1 */                                                                          \
    X(set_log_func)                 /* 3.7 */                                                                          \
    X(session_custom_io)            /* 3.13 */                                                                         \
    X(lowlevel_notify_expire_entry) /* 3.13 */

struct fuse_lib {
#define X(name) __typeof__(fuse_##name) *name;
    FUSE_LIB_REQUIRED(X) FUSE_LIB_OPTIONAL(X)
#undef X
};
extern struct fuse_lib fuse_lib;

/* Fill the table. 0; -1 with one line in `why` that names the Debian package. Idempotent; one thread at a time. */
int fuse_lib_load(char *why, size_t why_len);
/* Let readdir's entries of this directory handle be cached by the kernel (struct fuse_file_info.cache_readdir, wherever it lies). */
void fuse_lib_cache_readdir(struct fuse_file_info *fi);

#define fuse_lib_has(name) (fuse_lib.name != NULL)

#define fuse_version fuse_lib.version
#define fuse_session_new fuse_lib.session_new
#define fuse_session_mount fuse_lib.session_mount
#define fuse_session_exit fuse_lib.session_exit
#define fuse_session_exited fuse_lib.session_exited
#define fuse_session_destroy fuse_lib.session_destroy
#define fuse_session_fd fuse_lib.session_fd
#define fuse_session_process_buf fuse_lib.session_process_buf
/* The server gives libfuse a pointer to the program's data, which does not exist yet when the session is made. */
#define fuse_req_userdata(req) (*(void **)fuse_lib.req_userdata(req))
#define fuse_req_ctx fuse_lib.req_ctx
#define fuse_req_getgroups fuse_lib.req_getgroups
#define fuse_req_interrupt_func fuse_lib.req_interrupt_func
#define fuse_req_interrupted fuse_lib.req_interrupted
#define fuse_reply_err fuse_lib.reply_err
#define fuse_reply_none fuse_lib.reply_none
#define fuse_reply_entry fuse_lib.reply_entry
#define fuse_reply_create fuse_lib.reply_create
#define fuse_reply_attr fuse_lib.reply_attr
#define fuse_reply_readlink fuse_lib.reply_readlink
#define fuse_reply_open fuse_lib.reply_open
#define fuse_reply_write fuse_lib.reply_write
#define fuse_reply_buf fuse_lib.reply_buf
#define fuse_reply_data fuse_lib.reply_data
#define fuse_reply_iov fuse_lib.reply_iov
#define fuse_reply_statfs fuse_lib.reply_statfs
#define fuse_reply_xattr fuse_lib.reply_xattr
#define fuse_reply_lock fuse_lib.reply_lock
#define fuse_reply_bmap fuse_lib.reply_bmap
#define fuse_reply_ioctl fuse_lib.reply_ioctl
#define fuse_reply_poll fuse_lib.reply_poll
#define fuse_reply_lseek fuse_lib.reply_lseek
#define fuse_add_direntry fuse_lib.add_direntry
#define fuse_add_direntry_plus fuse_lib.add_direntry_plus
#define fuse_buf_size fuse_lib.buf_size
#define fuse_buf_copy fuse_lib.buf_copy
#define fuse_lowlevel_notify_inval_inode fuse_lib.lowlevel_notify_inval_inode
#define fuse_lowlevel_notify_inval_entry fuse_lib.lowlevel_notify_inval_entry
#define fuse_lowlevel_notify_delete fuse_lib.lowlevel_notify_delete
#define fuse_lowlevel_notify_store fuse_lib.lowlevel_notify_store
#define fuse_lowlevel_notify_expire_entry fuse_lib.lowlevel_notify_expire_entry
#define fuse_session_custom_io fuse_lib.session_custom_io
#define fuse_pkgversion fuse_lib.pkgversion
#define fuse_set_log_func fuse_lib.set_log_func

#endif
