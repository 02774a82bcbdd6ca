/* Pagestone | txn/forking — the fork hooks of sessions.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_TXN_FORKING_H
#define PGS_TXN_FORKING_H

/* Registers the hooks once for the process. 0 or -PGS_ENOMEM. */
int pgs__forking_init(void);

#endif
