/* Pagestone | txn/recover — what the heir of the commit lock does when its owner died inside.
 * SPDX-License-Identifier: Apache-2.0
 *
 * EOWNERDEAD is the death of a thread: others of its process may still be inside a pwrite of data. So only what the lock itself protects is repaired here (HAZARDS 4): the head, the
 * superblock's number, the words that follow a publication. Slots, pins and chunks wait for the sweeper, who holds the slot's lock.
 *
 *     the owner died             superblock   head_gen    what is done here
 *     before the superblock      old          old         nothing: the pages it wrote belong to nobody
 *     inside its pwrite          old or new   old         the old copy counts, or as the next line
 *     before head_gen            new          old         step 8 is finished: stage, publish
 *     before epoch or wake       new          new         both are raised
 *
 * Everything here is idempotent: the heir may be killed anywhere, and its own heir does it again.
 */
#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"

static int finish(struct pgs__session *s, const struct pgs__super *super, struct pgs_error *err)
{
    bool weak = super->flags & PGS__SUPER_WEAK;
    if (weak) {
        int rc = pgs__weaken(s, super->seq - 1, err);
        if (rc) return rc;
    } else if (pgs__on_disk(&s->pf)) { /* the dead owner's second barrier, perhaps not reached */
        int rc = pgs__pagefile_barrier(&s->pf, err);
        if (rc) {
            pgs__poison(s, super->seq - 1);
            return rc;
        }
    }
    PGS_KILL_POINT("in_recovery");
    pgs__ctl_stage(&s->ctl, &super->root);
    pgs__ctl_publish(&s->ctl, super->root.gen);
    atomic_store(&s->ctl.c->version_ceiling, super->version_ceiling);
    atomic_store(&s->ctl.c->durable_gen, super->root.gen);
    return 0;
}

int pgs__recover_locked(struct pgs__session *s, struct pgs_error *err)
{
    struct pgs__super super;
    struct pgs__control *c = s->ctl.c;
    PGS_KILL_POINT("in_recovery");
    if (atomic_load(&c->flags) & PGS__CTL_POISONED) return 0; /* nothing is finished on a disk that failed */
    int rc = pgs__super_read(&s->pf, &super, false, err);
    if (rc) return rc;
    uint64_t head = atomic_load(&c->head_gen);
    if (super.root.gen > head + 1)
        return pgs__fail_corrupt(err, "the superblock", "it names generation %llu, but the newest is %llu",
                                 (unsigned long long)super.root.gen, (unsigned long long)head);
    if (super.seq > atomic_load(&c->super_seq)) atomic_store(&c->super_seq, super.seq);
    if (super.root.gen == head + 1) rc = finish(s, &super, err);
    if (rc) return rc;
    /* It may have published without coming to these: see make_it_seen. Raising them once too often costs a second look. */
    atomic_fetch_add(&c->drop_epoch, 1);
    atomic_fetch_add(&c->wake, 1);
    pgs__futex_wake_all(&c->wake);
    return 0;
}
