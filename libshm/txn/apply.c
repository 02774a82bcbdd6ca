/* Pagestone | txn/apply — a transaction's ops become edits of the newest catalog, under the commit lock.
 * SPDX-License-Identifier: Apache-2.0
 *
 * All data is in place; what is left is records, references and deaths. Order: references to shared runs are counted first, so that a run which the same commit
 * drops elsewhere does not die in between; then names go; then names come, each checked against the rules once more, because two
 * transactions may each have been right and together not (HAZARDS 11).
 *
 * May run twice in one commit (a store that turned out to be full): everything done to the commit is done again upon a new one, and what is done to the
 * transaction's own claim is remembered in prep.given.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

struct apply {
    struct pgs_txn *t;
    struct pgs__commit *c;
    uint64_t version;
    bool check_names; /* the catalog is not the one that the names were checked against */
    uint64_t src_gen;
    struct pgs_error *err;
};

/* --- references ---------------------------------------------------------------------------------------------------------------------- */
static int share_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct apply *ap = ctx;
    (void)at;
    return pgs__ledger_share(&ap->c->l, run, birth, ap->src_gen, ap->err);
}

static int share_all(struct apply *ap)
{
    int rc = 0;
    for (struct pgs__op *op = pgs__op_first(ap->t); op && rc == 0; op = op->next[0]) {
        struct pgs__object o;
        if (!op->now || !op->now->src) continue;
        rc = pgs__op_decode(ap->t, op, (struct pgs_span){op->now->rec, op->now->rec_len}, &o, ap->err);
        if (rc || o.content.form == PGS__FORM_INLINE) continue;
        ap->src_gen = op->now->src->root.gen;
        rc = pgs__content_runs(&ap->t->s->pf, &o.content, 0, UINT64_MAX, share_run, ap, ap->err);
    }
    return rc;
}

/* What the changed content no longer refers to: committed pages die, our own go back to the claim. */
static int bury(struct apply *ap, struct pgs__pend *p)
{
    struct pgs__prep *prep = &p->a->prep;
    const struct pgs__dead_run *runs;
    const struct pgs_ptr *nodes;
    size_t n_runs, n_nodes;
    if (!prep->edit) return 0;
    int rc = pgs__content_dead(prep->edit, &runs, &n_runs, &nodes, &n_nodes, ap->err);
    bool own_runs = !p->home && !p->src, own_nodes = !p->home;
    for (size_t i = 0; i < n_runs && rc == 0; i++) {
        if (!own_runs)
            rc = pgs__ledger_kill(&ap->c->l, runs[i].run, runs[i].birth, false, ap->err);
        else if (!prep->given)
            pgs__claim_give(&ap->t->claim, runs[i].run, false);
    }
    for (size_t i = 0; i < n_nodes && rc == 0; i++) {
        struct pgs_run run = {{nodes[i].page}, 1};
        if (!own_nodes)
            rc = pgs__ledger_kill(&ap->c->l, run, nodes[i].birth, true, ap->err);
        else if (!prep->given)
            pgs__claim_give(&ap->t->claim, run, true);
    }
    prep->given = true;
    return rc;
}

static int kill_theirs(struct apply *ap, const struct pgs__op *op)
{
    struct pgs__object o;
    if (op->kept) return 0;
    int rc = pgs__op_decode(ap->t, op, op->theirs, &o, ap->err);
    return rc ? rc : pgs__commit_kill_content(ap->c, &o, ap->err);
}

static void count(struct apply *ap, const struct pgs__op *op, int by)
{
    if (op->key[0] == 0) return; /* hidden names are not listed, so they do not count */
    if (by > 0)
        ap->c->n_objects++;
    else
        ap->c->n_objects--;
}

/* --- names that go ------------------------------------------------------------------------------------------------------------------------ */
static int remove_all(struct apply *ap)
{
    int rc = 0;
    for (struct pgs__op *op = pgs__op_first(ap->t); op && rc == 0; op = op->next[0]) {
        if (op->now != &ap->t->deleted || !op->theirs.p) continue;
        rc = kill_theirs(ap, op);
        if (rc == 0) rc = pgs__edit_del(ap->c->catalog, op->key, op->len, ap->err);
        if (rc == 0) count(ap, op, -1);
    }
    return rc;
}

/* --- names that come ------------------------------------------------------------------------------------------------------------------------ */
static int fits(struct apply *ap, struct pgs__op *op, enum pgs_kind kind)
{
    struct pgs_error local = {0};
    if (!ap->check_names || (op->theirs.p && ((const uint8_t *)op->theirs.p)[0] == (uint8_t)kind)) return 0;
    int rc = pgs__name_fits(&ap->c->tree, op->key, op->len, kind, &local);
    if (rc == -PGS_EEXIST) {
        rc = pgs__conflict_add(ap->t, op->key, op->len, 0, 0, ap->c->base.version, ap->err);
        return rc ? rc
                  : pgs__fail(ap->err, PGS_ECONFLICT,
                              "conflict on '%.*s' with version %llu: %s; run it again from a new begin()", (int)op->len,
                              (const char *)op->key, (unsigned long long)ap->c->base.version, local.text);
    }
    if (rc && ap->err && ap->err->code == 0) *ap->err = local;
    return rc;
}

static uint64_t next_id(struct apply *ap)
{
    return ap->c->l.meta.hdr.next_id++;
}

/* The record of an array that was changed. */
static int changed_record(struct apply *ap, struct pgs__op *op, uint8_t *rec, size_t *len)
{
    struct pgs__pend *p = op->now;
    struct pgs__array *a = p->a;
    struct pgs__object o = a->o;
    int64_t first_row = a->o.ndim ? a->o.shape[0] - (int64_t)a->appended_rows : 0;
    PGS_BUG_ON(!a->prep.done);
    if (p->home) {
        int rc = pgs__op_decode(ap->t, p->home, p->home->theirs, &o, ap->err);
        if (rc) return rc;
        if (a->resized) {
            memcpy(o.shape, a->o.shape, sizeof o.shape);
            o.id = next_id(ap);
        } else if (a->appended_rows) {
            first_row = o.shape[0];
            o.shape[0] += (int64_t)a->appended_rows;
        }
    } else {
        o.id = next_id(ap);
    }
    if (a->appended_rows) op->landed = first_row;
    o.version = ap->version;
    o.content = a->prep.result;
    int rc = bury(ap, p);
    ap->c->bytes += a->prep.bytes;
    return rc ? rc : pgs__object_encode(&o, rec, len, ap->err);
}

static int new_record(struct apply *ap, struct pgs__op *op, uint8_t *rec, size_t *len)
{
    struct pgs__pend *p = op->now;
    if (p->home) { /* moved: as it is */
        struct pgs_span theirs = p->home->theirs;
        if (theirs.len > PGS__RECORD_MAX)
            return pgs__fail_corrupt(ap->err, (const char *)op->key, "a record of %zu bytes", theirs.len);
        memcpy(rec, theirs.p, theirs.len);
        *len = theirs.len;
        return 0;
    }
    struct pgs__object o;
    int rc = pgs__op_decode(ap->t, op, (struct pgs_span){p->rec, p->rec_len}, &o, ap->err);
    if (rc) return rc;
    o.id = next_id(ap);
    o.version = ap->version;
    if (o.content.form != PGS__FORM_INLINE && !p->src) ap->c->bytes += o.content.n_stored << PGS_PAGE_SHIFT;
    return pgs__object_encode(&o, rec, len, ap->err);
}

static int put_op(struct apply *ap, struct pgs__op *op)
{
    struct pgs__pend *p = op->now;
    uint8_t rec[PGS__RECORD_MAX];
    size_t len = 0;
    int rc = fits(ap, op, (enum pgs_kind)p->rec[0]);
    if (rc == 0 && op->theirs.p && p->home != op) rc = kill_theirs(ap, op);
    if (rc == 0) rc = p->a && p->a->prep.effective ? changed_record(ap, op, rec, &len) : new_record(ap, op, rec, &len);
    if (rc == 0) rc = pgs__edit_put(ap->c->catalog, op->key, op->len, rec, len, ap->err);
    if (rc == 0 && !op->theirs.p) count(ap, op, 1);
    return rc;
}

int pgs__txn_apply(struct pgs_txn *t, struct pgs__commit *c, struct pgs_error *err)
{
    const struct pgs_ptr *a = &t->catalog.root, *b = &c->base.catalog;
    struct apply ap = {.t = t, .c = c, .err = err, .version = c->l.meta.hdr.version};
    ap.check_names = a->page != b->page || a->birth != b->birth || a->xxh != b->xxh;
    for (struct pgs__op *op = pgs__op_first(t); op; op = op->next[0]) op->kept = false;
    for (struct pgs__op *op = pgs__op_first(t); op; op = op->next[0])
        if (op->now && op->now != &t->deleted && op->now->home) op->now->home->kept = true;
    int rc = share_all(&ap);
    if (rc == 0) rc = remove_all(&ap);
    for (struct pgs__op *op = pgs__op_first(t); op && rc == 0; op = op->next[0])
        if (op->now != &t->deleted && pgs__op_writes(t, op)) rc = put_op(&ap, op);
    return rc;
}
