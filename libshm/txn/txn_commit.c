/* Pagestone | txn/txn_commit — from a set of ops to a version (DESIGN §5).
 * SPDX-License-Identifier: Apache-2.0
 *
 *     step                     where                 what may fail, and what then
 *     scan, prepare            outside the lock      full: room is made, else the transaction is aborted
 *     lock                     pgs__commit_begin     ELOCKED, EINTR: the transaction stays open, try again
 *     compare with newest      readset.c             conflict: aborted
 *     rebase changed arrays    rebase.c              under the lock when little must be read, else unlock, rebase upon a pinned newest, begin again;
 *                                                    from the third try under the lock, whatever it costs: progress is guaranteed
 *     apply                    apply.c               names that collide: conflict
 *     write and publish        pgs__commit_end       full: room is made and everything from the lock on is done again
 *
 * A transaction without effect makes no version.
 */
#include <stdio.h>

#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

#define CHEAP_BYTES (1ull << 20)
#define PATIENT_TRIES 2
#define MAX_RUNG 2 /* of pgs__make_room */
#define MAX_KEYS_BYTES 8192u
#define MAX_MESSAGE 4000u

/* --- outside the lock ----------------------------------------------------------------------------------------------------------------------- */
static bool has_array(const struct pgs_txn *t, const struct pgs__op *op)
{
    return op->now && op->now != &t->deleted && op->now->a;
}

static int scan_all(struct pgs_txn *t, bool *any, struct pgs_error *err)
{
    int rc = 0;
    *any = false;
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0]) {
        bool effective;
        if (has_array(t, op)) {
            op->now->a->scanned = false;
            rc = pgs__rebase_scan(t, op, &effective, err);
        }
        if (rc == 0 && pgs__op_writes(t, op)) *any = true;
    }
    return rc;
}

struct prepare {
    struct pgs_txn *t;
    struct pgs__op *op;
    const struct pgs__object *upon;
    struct pgs__range_list *cells;
};
static int prepare(void *ctx, struct pgs_error *err)
{
    struct prepare *p = ctx;
    return pgs__rebase(p->t, NULL, p->op, p->upon, NULL, p->cells, err);
}

static int note_cells(struct pgs_txn *t, struct pgs__op *op, uint64_t version, struct pgs__range_list *cells,
                      struct pgs_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < cells->n && rc == 0; i++)
        rc = pgs__conflict_add(t, op->key, op->len, cells->v[i].lo, cells->v[i].hi, version, err);
    cells->n = 0;
    return rc;
}

/* Upon `upon`, outside the lock: what is full makes room. */
static int prepare_op(struct pgs_txn *t, struct pgs__op *op, const struct pgs__object *upon, struct pgs_error *err)
{
    struct pgs__range_list cells = {0};
    struct prepare p = {t, op, upon, &cells};
    int rc = pgs__txn_with_room(t, prepare, &p, op->now->a->n_bytes, err);
    if (rc == 0) rc = note_cells(t, op, upon->version, &cells, err);
    pgs__ranges_free(&cells);
    return rc;
}

static int prepare_all(struct pgs_txn *t, struct pgs_error *err)
{
    int rc = 0;
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0]) {
        if (!has_array(t, op) || !op->now->a->prep.effective) continue;
        struct pgs__object upon = op->now->a->o;
        struct pgs__pend *p = op->now;
        rc = pgs__op_decode(t, op, (struct pgs_span){p->rec, p->rec_len}, &upon, err);
        if (rc == 0) rc = prepare_op(t, op, &upon, err);
    }
    return rc;
}

/* --- following what others committed ------------------------------------------------------------------------------------------------------ */
static bool is_behind(const struct pgs__prep *prep, const struct pgs__object *newest)
{
    return !prep->done || prep->upon_version != newest->version || !pgs__same_content(&prep->upon, &newest->content);
}

/* Under the lock. 1: too much for here. */
static int follow_locked(struct pgs_txn *t, struct pgs__commit *c, bool patient, struct pgs_error *err)
{
    struct pgs__range_list cells = {0};
    uint64_t cost = CHEAP_BYTES;
    int rc = 0;
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0]) {
        struct pgs__object newest;
        if (!has_array(t, op) || !op->now->home || !op->now->a->prep.effective) continue;
        rc = pgs__op_decode(t, op, op->now->home->theirs, &newest, err);
        if (rc || !is_behind(&op->now->a->prep, &newest)) continue;
        rc = pgs__rebase(t, &c->l, op, &newest, patient ? &cost : NULL, &cells, err);
        if (patient && rc == -PGS_ELOCKED) rc = 1;
        if (rc == 0) rc = note_cells(t, op, newest.version, &cells, err);
    }
    pgs__ranges_free(&cells);
    if (rc == 0 && t->n_conflicts) rc = pgs__conflict_fail(t, err);
    return rc;
}

/* Outside the lock, upon `newest`, which the caller has pinned. op->theirs was found in it. */
static int follow_outside(struct pgs_txn *t, struct pgs_error *err)
{
    int rc = 0;
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0]) {
        struct pgs__object newest;
        if (!has_array(t, op) || !op->now->home || !op->now->a->prep.effective) continue;
        rc = pgs__op_decode(t, op, op->now->home->theirs, &newest, err);
        if (rc == 0 && is_behind(&op->now->a->prep, &newest)) rc = prepare_op(t, op, &newest, err);
    }
    if (rc == 0 && t->n_conflicts) rc = pgs__conflict_fail(t, err);
    return rc;
}

/* --- the log entry ---------------------------------------------------------------------------------------------------------------------------- */
struct entry {
    struct pgs_commit_info info;
    char *keys;
    size_t n, cap;
    char message[MAX_MESSAGE + 1];
};

static int log_entry(struct pgs_txn *t, struct pgs__commit *c, const char *message, struct entry *e,
                     struct pgs_error *err)
{
    struct pgs__slot *slot = pgs__ctl_slot(&t->s->ctl, t->s->slot);
    e->info = (struct pgs_commit_info){.version = c->l.meta.hdr.version,
                                       .time_ns = c->l.now_ns,
                                       .pid = atomic_load_explicit(&slot->pid, memory_order_relaxed), /* our own slot */
                                       .command = slot->command,
                                       .bytes_written = c->bytes};
    for (struct pgs__op *op = pgs__op_first(t); op; op = op->next[0]) {
        if (!pgs__op_writes(t, op) || op->key[0] == 0) continue;
        if (e->n + op->len + 1 > MAX_KEYS_BYTES) {
            e->info.keys_truncated = 1;
            break;
        }
        if (pgs__grow(&e->keys, &e->cap, e->n + op->len + 1, 1))
            return pgs__fail(err, PGS_ENOMEM, "no memory for a log entry");
        memcpy(e->keys + e->n, op->key, op->len);
        e->keys[e->n + op->len] = 0;
        e->n += op->len + 1;
        e->info.n_keys++;
    }
    e->info.keys = e->keys ? e->keys : "";
    if (message) {
        size_t len = strnlen(message, MAX_MESSAGE + 1);
        if (len > MAX_MESSAGE) /* not in the middle of a character */
            for (len = MAX_MESSAGE; len && ((unsigned char)message[len] & 0xc0) == 0x80;) len--;
        memcpy(e->message, message, len);
        e->message[len] = 0;
        e->info.message = e->message;
    }
    return 0;
}

/* --- the commit ---------------------------------------------------------------------------------------------------------------------------------- */
static bool only_frees(const struct pgs_txn *t)
{
    for (const struct pgs__op *op = t->head[0]; op; op = op->next[0])
        if (op->now != &t->deleted && pgs__op_writes(t, op)) return false;
    return true;
}

/* Everything is decided: write it. The transaction's claim is entered into the ledger and stays ours, so that this can be done again; after the last rung of the ladder it joins
 * the commit's, and a failure is final. On a scarce store the commit may use what is left of its chunks for its own nodes: they are lent. */
static int finish(struct pgs_txn *t, struct pgs__commit *c, const char *message, int rungs, struct pgs_error *err)
{
    struct entry e = {0};
    bool join = rungs > MAX_RUNG;
    pgs__savepoints_free_locked(t, 0); /* pages that only they hold go back before the claim is entered */
    pgs__txn_claim_shrink(t);
    int rc = pgs__commit_start(c, true, err);
    if (rc == 0) rc = pgs__txn_apply(t, c, err);
    if (rc == 0 && !join) {
        rc = pgs__claim_record(&t->claim, &c->l, err);
        if (rc == 0 && pgs__is_scarce(t->s)) pgs__claim_lend(&c->claim, &t->claim);
    } else if (rc == 0 && pgs__claim_join(&c->claim, &t->claim))
        rc = pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
    if (rc == 0) rc = log_entry(t, c, message, &e, err);
    c->freeing = only_frees(t);
    c->deep = rungs > 0;
    if (rc == 0) rc = pgs__commit_end(c, &e.info, err);
    pgs__commit_abandon(c);
    pgs__free(e.keys);
    return rc;
}

struct attempt {
    struct pgs__pin pin; /* the newest generation that was rebased upon outside; gen 0: none */
    int tries, rungs;
    uint64_t version;
};

/* One round. 1: again. */
static int attempt(struct pgs_txn *t, struct attempt *a, const char *message, struct pgs_error *err)
{
    struct pgs__commit c;
    struct pgs_error local = {0};
    int rc = pgs__commit_begin(&c, t->s, &t->wait, err);
    if (rc) return rc;
    rc = pgs__conflicts_find(t, &c.base, err);
    if (rc == 0) rc = follow_locked(t, &c, a->tries < PATIENT_TRIES, err);
    if (rc < 0) goto abandon;
    if (rc == 1) {
        struct pgs__pin old = a->pin;
        struct pgs__root newest;
        rc = pgs__pin_head(t->s, &newest, &a->pin, err); /* under the lock: it is what was compared */
        pgs__commit_abandon(&c);
        if (old.gen) pgs__pin_drop(t->s, &old);
        a->tries++;
        if (rc) {
            a->pin.gen = 0;
            return rc;
        }
        PGS_KILL_POINT("rebase_outside");
        rc = follow_outside(t, err);
        return rc ? rc : 1;
    }
    bool last = a->rungs > MAX_RUNG;
    rc = finish(t, &c, message, a->rungs, &local);
    if (rc == 0) {
        a->version = c.after.version;
        return 0;
    }
    if (rc == -PGS_EFULL && !last) {
        uint64_t freed;
        pgs__make_room_lent(t->s, &t->wait, &t->claim, a->rungs++, &freed, NULL);
        return 1;
    }
    if (rc == -PGS_EFULL) return pgs__fail_full(t->s, PGS_PAGE_SIZE, local.os_errno, err);
    if (err && err->code == 0) *err = local;
    return rc;
abandon:
    pgs__commit_abandon(&c);
    return rc;
}

static int commit_locked(struct pgs_txn *t, const char *message, uint64_t *version, struct pgs_error *err)
{
    struct attempt a = {0};
    bool any;
    int rc = scan_all(t, &any, err);
    if (rc == 0 && !any) {
        *version = t->base->root.version;
        return 0;
    }
    if (rc == 0) rc = prepare_all(t, err);
    PGS_KILL_POINT("commit_prepared");
    if (rc) return rc;
    do rc = attempt(t, &a, message, err);
    while (rc == 1);
    if (a.pin.gen) pgs__pin_drop(t->s, &a.pin);
    if (rc == 0) *version = a.version;
    return rc;
}

int pgs__txn_commit(struct pgs_txn *t, const char *message, uint64_t *version, struct pgs_error *err)
{
    uint64_t made = 0;
    int rc = pgs__txn_lock(t, err);
    if (rc) return rc;
    rc = commit_locked(t, message, &made, err);
    if (rc == 0) {
        pgs__txn_finish_locked(t, PGS__TXN_COMMITTED);
        if (version) *version = made;
    } else if (rc != -PGS_ELOCKED && rc != -PGS_EINTR) {
        t->failed = true;
        pgs__txn_finish_locked(t, PGS__TXN_ABORTED);
    }
    pgs__txn_unlock(t);
    return rc;
}
