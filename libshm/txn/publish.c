/* Pagestone | txn/publish — the commit lock, and the two last steps of a commit: durable, then visible.
 * SPDX-License-Identifier: Apache-2.0
 *
 *   durability  superblock                      barriers                        durable_gen after the commit
 *   memory      at each commit                  none                            this generation
 *   none        at each commit, marked weak     after the first one             this generation: reuse is not gated, a power loss ends the store
 *   ordered     by time, bytes, ceiling, close  before and after                the last one with a superblock
 *   full        at each commit                  before and after                this generation
 *
 * The linearization point is the store of head_gen. A process killed between superblock and head_gen leaves the superblock ahead; the next owner of the lock finishes (recover.c). A barrier that
 * fails poisons the store: the page cache says clean what the disk does not have, so nothing written later may build on it.
 *
 * "none" must not leave a steady superblock as the newest one on the medium: what it names is written over as soon as this generation counts as durable, and a power loss would
 * bring it back, torn. So the first weak superblock after a steady one gets a barrier (PGS__CTL_WEAK says that this was done), and only then reuse goes on.
 *
 * Version numbers: each superblock reserves those below its ceiling. A commit that would reach it writes a new one first, whatever the durability, so no number is given out that
 * a power loss could make forgotten. ceiling 0 in the control file means: ask for a superblock at the next commit.
 */
#define _GNU_SOURCE
#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"

#define BARRIER_NS 1000000000u
#define BARRIER_BYTES (64ull << 20)
#define CEILING_AHEAD 4096u

/* --- the lock ---------------------------------------------------------------------------------------------------------- */
static void name_of(struct pgs__session *s, uint64_t pid, char command[96])
{
    command[0] = 0;
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used; i++) {
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
        if (atomic_load(&slot->tag) == 0 || atomic_load(&slot->pid) != pid) continue;
        memcpy(command, slot->command, 96);
        command[95] = 0;
        return;
    }
}

static int fail_locked(struct pgs__session *s, uint64_t waited_ns, struct pgs_error *err)
{
    char command[96];
    uint64_t pid = atomic_load(&pgs__ctl_commit_lock(&s->ctl)->owner_pid);
    double seconds = (double)waited_ns / 1e9;
    if (pid == 0)
        return pgs__fail(err, PGS_ELOCKED, "the commit lock was not free for %.3g s; raise timeout=", seconds);
    name_of(s, pid, command);
    return pgs__fail(err, PGS_ELOCKED,
                     "the commit lock is held by process %llu (%s) for %.3g s; raise timeout= or end that process",
                     (unsigned long long)pid, command[0] ? command : "unknown", seconds);
}

static int may_commit(struct pgs__session *s, struct pgs_error *err)
{
    if (atomic_load(&s->ctl.c->state) == 2)
        return pgs__fail(err, PGS_ESTALE, "the store was replaced (mode \"w\"): open it again");
    if (atomic_load(&s->ctl.c->flags) & PGS__CTL_POISONED)
        return pgs__fail(
            err, PGS_EREADONLY,
            "the disk failed to take the store's data (fdatasync): read only until every process has closed it "
            "and one opens it again");
    int rc = pgs__pagefile_check_fd(&s->pf, err);
    if (rc == 0 && atomic_load(&s->pf.unlinked)) /* what is committed there is gone with the last who has it open */
        rc = pgs__fail(err, PGS_ESTALE,
                       "the store at %s was deleted: what is open stays readable; copy it into a new store to keep it",
                       s->pf.path ? s->pf.path : "its path");
    return rc;
}

/* The last owner died inside, or its heir could not repair: do it now. Consistent in any case, or nobody could ever lock again. */
static int repair(struct pgs__session *s, bool owner_died, struct pgs_error *err)
{
    int rc = 0;
    if (!owner_died && !(atomic_load(&s->ctl.c->flags) & PGS__CTL_NEEDS_REPAIR)) return 0;
    if (!PGS_PLANTED(5)) rc = pgs__recover_locked(s, err);
    if (rc)
        atomic_fetch_or(&s->ctl.c->flags, PGS__CTL_NEEDS_REPAIR);
    else
        atomic_fetch_and(&s->ctl.c->flags, ~(uint64_t)PGS__CTL_NEEDS_REPAIR);
    if (owner_died) pgs__robust_consistent(pgs__ctl_commit_lock(&s->ctl));
    return rc;
}

int pgs__commit_lock(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err)
{
    struct pgs__wait forever = {.timeout_ns = -1};
    int rc = pgs__session_check(s, err);
    if (rc) return rc;
    if (!s->writable) return pgs__fail(err, PGS_EREADONLY, "no permission to write this store");
    if (!w) w = &forever;
    uint64_t start = pgs__clock_mono_ns();
    int got = pgs__robust_lock(pgs__ctl_commit_lock(&s->ctl), w->timeout_ns, w->interrupted, w->ctx);
    if (got == -PGS_ELOCKED) return fail_locked(s, pgs__clock_mono_ns() - start, err);
    if (got == -PGS_EINTR) return pgs__fail(err, PGS_EINTR, "interrupted while waiting for the commit lock");
    if (got < 0) return pgs__fail(err, -got, "the commit lock is unusable (taken twice by one thread, or overwritten)");
    pgs__fence(); /* owner_pid before anything this commit looks at; pairs with pin_waiting */
    rc = repair(s, got == 1, err);
    PGS_KILL_POINT("locked");
    if (rc == 0) rc = may_commit(s, err);
    if (rc) pgs__commit_unlock(s);
    return rc;
}

void pgs__commit_unlock(struct pgs__session *s)
{
    pgs__fence(); /* what was published before owner_pid is cleared; pairs with pin_waiting */
    pgs__robust_unlock(pgs__ctl_commit_lock(&s->ctl));
}

uint64_t pgs__next_version(struct pgs__session *s)
{
    struct pgs__root head;
    if (pgs__ctl_head(&s->ctl, &head)) return 0;
    return pgs__max_u64(head.version + 1, atomic_load(&s->ctl.c->version_floor));
}

/* --- superblocks ------------------------------------------------------------------------------------------------------------ */
int pgs__super_put(struct pgs__session *s, const struct pgs__root *root, uint64_t flags, uint64_t ceiling,
                   struct pgs_error *err)
{
    struct pgs__super super = {.seq = atomic_load(&s->ctl.c->super_seq) + 1,
                               .version_ceiling = ceiling,
                               .flags = flags,
                               .root = *root,
                               .created_ns = s->created_ns};
    memcpy(super.uuid, s->pf.uuid, 16);
    pgs__boot_id(super.boot_id);
    int rc = pgs__super_write(&s->pf, &super, err);
    /* Not counted when it failed: the next one goes to the same place, which is not that of the last good one. */
    if (rc == 0) atomic_store(&s->ctl.c->super_seq, super.seq);
    return rc;
}

/* A barrier failed. The newest superblock behind which one succeeded has number durable_seq; the place of the next may hold anything, on the disk or in the cache. So that place gets the durable root
 * once more, with the mark (best effort): the good copy is not touched. Here and now the flag in the control file tells everybody. */
void pgs__poison(struct pgs__session *s, uint64_t durable_seq)
{
    struct pgs__super super;
    atomic_fetch_or(&s->ctl.c->flags, PGS__CTL_POISONED);
    struct pgs_pgno page = {durable_seq & 1 ? PGS__SUPER_PAGE_1 : PGS__SUPER_PAGE_0};
    if (pgs__pages_read(&s->pf, page, &super, 1, false, NULL) || super.seq != durable_seq) return;
    super.flags |= PGS__SUPER_POISONED;
    super.seq = durable_seq + 1;
    (void)pgs__super_write(&s->pf, &super, NULL);
}

/* barrier | superblock | barrier */
static int super_steady(struct pgs__session *s, const struct pgs__root *root, uint64_t flags, uint64_t ceiling,
                        struct pgs_error *err)
{
    uint64_t durable_seq = atomic_load(&s->ctl.c->super_seq);
    int rc = PGS_PLANTED(1) ? 0 : pgs__pagefile_barrier(&s->pf, err);
    if (rc) goto poison;
    PGS_KILL_POINT("before_super");
    atomic_fetch_and(&s->ctl.c->flags, ~(uint64_t)PGS__CTL_WEAK); /* before: a death in between costs one barrier */
    rc = pgs__super_put(s, root, flags, ceiling, err);
    PGS_KILL_POINT("after_super");
    if (rc) return rc;
    rc = PGS_PLANTED(2) ? 0 : pgs__pagefile_barrier(&s->pf, err);
    if (rc) goto poison;
    atomic_store(&s->ctl.c->barrier_ns, pgs__clock_boot_ns());
    atomic_store(&s->ctl.c->barrier_bytes, 0);
    atomic_store(&s->ctl.c->version_ceiling, ceiling);
    return 0;
poison:
    pgs__poison(s, durable_seq);
    return rc;
}

int pgs__weaken(struct pgs__session *s, uint64_t durable_seq, struct pgs_error *err)
{
    if (atomic_load(&s->ctl.c->flags) & PGS__CTL_WEAK) return 0;
    int rc = pgs__pagefile_barrier(&s->pf, err);
    if (rc == 0)
        atomic_fetch_or(&s->ctl.c->flags, PGS__CTL_WEAK);
    else
        pgs__poison(s, durable_seq);
    return rc;
}

static int super_loose(struct pgs__session *s, const struct pgs__root *root, uint64_t flags, struct pgs_error *err)
{
    uint64_t durable_seq = atomic_load(&s->ctl.c->super_seq), floor = atomic_load(&s->ctl.c->version_floor);
    uint64_t ceiling = pgs__max_u64(root->version + (pgs__on_disk(&s->pf) ? CEILING_AHEAD : 1), floor);
    PGS_KILL_POINT("before_super");
    int rc = pgs__super_put(s, root, flags, ceiling, err);
    PGS_KILL_POINT("after_super");
    if (rc == 0 && flags & PGS__SUPER_WEAK) rc = pgs__weaken(s, durable_seq, err);
    if (rc == 0) atomic_store(&s->ctl.c->version_ceiling, ceiling);
    return rc;
}

static bool barrier_due(struct pgs__session *s, const struct pgs__root *root)
{
    struct pgs__control *c = s->ctl.c;
    return atomic_load(&c->flags) & PGS__CTL_WEAK || pgs__clock_boot_ns() - atomic_load(&c->barrier_ns) >= BARRIER_NS ||
           atomic_load(&c->barrier_bytes) >= BARRIER_BYTES || root->version >= atomic_load(&c->version_ceiling);
}

/* Step 7. *durable: this generation survives what the durability promises. */
static int make_it_last(struct pgs__session *s, const struct pgs__root *root, uint32_t durability, bool *durable,
                        struct pgs_error *err)
{
    uint64_t floor = atomic_load(&s->ctl.c->version_floor);
    *durable = true;
    if (!pgs__on_disk(&s->pf)) return super_loose(s, root, 0, err);
    if (durability == PGS_DUR_NONE) return super_loose(s, root, PGS__SUPER_WEAK, err);
    if (durability == PGS_DUR_ORDERED) {
        if (barrier_due(s, root))
            return super_steady(s, root, 0, pgs__max_u64(root->version + CEILING_AHEAD, floor), err);
        *durable = false;
        return 0;
    }
    return super_steady(s, root, 0, pgs__max_u64(root->version + 1, floor), err);
}

/* --- step 8 -------------------------------------------------------------------------------------------------------------------- */
static void make_it_seen(struct pgs__session *s, const struct pgs__root *root, bool new_version, bool epoch)
{
    struct pgs__control *c = s->ctl.c;
    pgs__ctl_stage(&s->ctl, root);
    PGS_KILL_POINT("before_publish");
    pgs__ctl_publish(&s->ctl, root->gen);
    PGS_KILL_POINT("after_publish");
    if (epoch) atomic_fetch_add(&c->drop_epoch, 1); /* after the switch: pin.c */
    if (!new_version) return;
    atomic_fetch_add(&c->wake, 1);
    if (atomic_load(&c->n_waiters)) pgs__futex_wake_all(&c->wake);
}

int pgs__publish(struct pgs__session *s, const struct pgs__root *root, uint32_t durability, bool new_version,
                 bool epoch, uint64_t bytes, struct pgs_error *err)
{
    bool durable;
    atomic_fetch_add(&s->ctl.c->barrier_bytes, bytes);
    if (PGS_PLANTED(8)) make_it_seen(s, root, new_version, epoch);
    int rc = make_it_last(s, root, durability, &durable, err);
    if (rc) return rc;
    if (!PGS_PLANTED(8)) make_it_seen(s, root, new_version, epoch);
    if (durable) atomic_store(&s->ctl.c->durable_gen, root->gen);
    return 0;
}

static int make_durable_locked(struct pgs__session *s, struct pgs_error *err)
{
    struct pgs__root head;
    if (pgs__ctl_head(&s->ctl, &head))
        return pgs__fail_corrupt(err, "the control file", "the newest root in the control file is damaged");
    uint64_t floor = atomic_load(&s->ctl.c->version_floor);
    int rc = super_steady(s, &head, 0, pgs__max_u64(head.version + CEILING_AHEAD, floor), err);
    if (rc == 0) atomic_store(&s->ctl.c->durable_gen, head.gen);
    return rc;
}

int pgs__make_durable(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err)
{
    if (!pgs__on_disk(&s->pf)) return 0; /* each commit wrote its superblock */
    /* Without the lock a commit could come between our look at the head and our superblock, which would then name an older generation with a newer number. */
    int rc = pgs__commit_lock(s, w, err);
    if (rc) return rc;
    rc = make_durable_locked(s, err);
    pgs__commit_unlock(s);
    return rc;
}

/* At the last close of this process: a clean superblock, if the newest one reserves numbers that nobody took or has no barrier behind it. The control file then asks for a new one
 * (ceiling 0), so that the first commit after this takes the mark away again. Whoever else has the store open does not matter. */
void pgs__session_settle(struct pgs__session *s)
{
    struct pgs__root head;
    struct pgs__control *c = s->ctl.c;
    if (!pgs__on_disk(&s->pf) || atomic_load(&c->version_ceiling) == 0) return;
    if (atomic_load(&c->state) != 1 || atomic_load(&c->flags) & PGS__CTL_POISONED) return;
    struct pgs__wait w = {.timeout_ns = 5000000000};
    if (pgs__commit_lock(s, &w, NULL)) return;
    uint64_t floor = atomic_load(&c->version_floor), ceiling = atomic_load(&c->version_ceiling);
    if (ceiling != 0 && pgs__ctl_head(&s->ctl, &head) == 0) {
        uint64_t next = pgs__max_u64(head.version + 1, floor);
        bool settled = ceiling == next && atomic_load(&c->durable_gen) == head.gen; /* as "full" leaves it */
        if (!settled && super_steady(s, &head, PGS__SUPER_CLEAN, next, NULL) == 0) {
            atomic_store(&c->durable_gen, head.gen);
            atomic_store(&c->version_ceiling, 0);
        }
    }
    pgs__commit_unlock(s);
}
