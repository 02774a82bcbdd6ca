/* Pagestone | platform/recorder_log — one record in the log of platform/record.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A header, then path, path2 (each with its NUL) and data. Read on the machine that wrote it.
 */
#ifndef PGS_PLATFORM_RECORDER_LOG_H
#define PGS_PLATFORM_RECORDER_LOG_H

#include "libshm/platform/base.h"

#define PGS__REC_MAGIC 0x52534750u /* "PGSR" */

struct pgs__rec_head {
    uint32_t magic, kind;
    uint32_t file;
    int32_t mode;
    uint64_t off, len;
    uint32_t path_bytes, path2_bytes; /* with NUL; 0: none */
    uint64_t data_bytes;
};
PGS_STATIC(sizeof(struct pgs__rec_head) == 48, "no padding");

/* Descriptor of the log of this process; -1: none yet. */
int pgs__record_log_fd(void);

#endif
