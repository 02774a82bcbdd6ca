/* Pagestone | txn/verify — one verifier that walks everything.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Serves pgs_check, `pagestone check`, and every crash and injection test. It reads one generation under a meta pin, so it is exact while others commit, needs no lock and works
 * for readers without write permission. While it runs no page that was in use at its start is reused, so a long check of a busy store costs space.
 */
#ifndef PGS_TXN_VERIFY_H
#define PGS_TXN_VERIFY_H

#include "libshm/txn/session.h"

/* A problem. object: a key (NUL bytes shown as '?'), "the catalog", "the ledger", …, or "". Nonzero ends the check and is returned. */
typedef int (*pgs__problem_fn)(void *ctx, const char *object, const char *problem);
/* Verify the newest generation and everything that it says about older ones. data: the bytes of arrays too, where checksums were recorded. fn may be NULL.
 * 0 also when problems were found; errors are those that prevented the check (-PGS_ENOMEM, …). */
int pgs__verify(struct pgs__session *s, bool data, pgs__problem_fn fn, void *ctx, struct pgs_check_report *report,
                struct pgs_error *err);

#endif
