/* Pagestone | txn/policy — freezing by itself what has not changed for some time.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The age is kept in the store; who commits, collects or closes does a bounded part of the work, outside all locks. A pass over the catalog freezes each object that was changed last between the version where the
 * pass before ended and the newest one that is old enough. So nothing is looked at twice: what does not shrink is not tried again, and what somebody thawed stays raw until it is changed.
 */
#ifndef PGS_TXN_POLICY_H
#define PGS_TXN_POLICY_H

#include "libshm/txn/session.h"

struct pgs__policy {       /* value of 'F' in the meta tree */
    uint64_t age_ns;       /* 0: none */
    uint64_t done;         /* objects whose version is not above it were dealt with */
    uint64_t mark_version; /* at mark_ns this was the newest: where the log does not reach back that far */
    uint64_t mark_ns;      /* real time; 0: there is no mark */
};
PGS_STATIC(sizeof(struct pgs__policy) == 32, "on disk");

#define PGS__POLICY_STEP (UINT64_C(64) << 20) /* bytes of content that one call looks at */

/* Zero where there is none. */
int pgs__policy_get(struct pgs__ledger *l, struct pgs__policy *out, struct pgs_error *err);
int pgs__policy_put(struct pgs__ledger *l, const struct pgs__policy *p, struct pgs_error *err);
/* age_ns as in pgs_options: UINT64_MAX switches it off. true: p has changed. */
bool pgs__policy_edit(struct pgs__policy *p, uint64_t age_ns, uint64_t version, uint64_t now_ns);

/* Freeze for so many bytes of content, or to the end of the pass. *more (may be NULL): there is some left. What cannot be frozen is left; errors are those of commits. Not with a lock held. */
int pgs__policy_step(struct pgs__session *s, const struct pgs__wait *w, uint64_t bytes, bool *more,
                     struct pgs_error *err);
/* After a commit: at most once a minute, one step, and no errors. */
void pgs__policy_after_commit(struct pgs__session *s);
void pgs__policy_forked(struct pgs__session *s); /* in the child, from the hook */

#endif
