/* Pagestone | txn/policy — passes over the catalog for what is old enough to be frozen.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Which version was the newest some time ago is read from the log, which has at least the newest 8,192. On a store that commits faster than that a mark, made at the end of the last pass, answers later: then an object is
 * frozen at an age between the one that was asked for and twice that.
 *
 * A pass belongs to one process; two may run at the same time and do a part of the work twice, no more. Where it stands is forgotten with the process: the next pass begins anew, and finds cold what was frozen.
 */
#include "libshm/txn/policy.h"

#include "libshm/platform/mem.h"
#include "libshm/txn/commit.h"
#include "libshm/txn/freeze.h"
#include "libshm/txn/store.h"

#define MINUTE_NS UINT64_C(60000000000)
#define LOOKED_AT 20000u /* objects that a step passes over */

/* --- what the store says ------------------------------------------------------------------------------------------------------------ */
int pgs__policy_get(struct pgs__ledger *l, struct pgs__policy *out, struct pgs_error *err)
{
    struct pgs_span val;
    *out = (struct pgs__policy){0};
    int rc = pgs__meta_get(&l->meta, "F", 1, &val, err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    if (val.len != sizeof *out)
        return pgs__fail_corrupt(err, "the ledger", "its policy of freezing has %zu bytes", val.len);
    memcpy(out, val.p, sizeof *out);
    return 0;
}

int pgs__policy_put(struct pgs__ledger *l, const struct pgs__policy *p, struct pgs_error *err)
{
    return pgs__meta_put(&l->meta, "F", 1, p, sizeof *p, err);
}

bool pgs__policy_edit(struct pgs__policy *p, uint64_t age_ns, uint64_t version, uint64_t now_ns)
{
    uint64_t age = age_ns == UINT64_MAX ? 0 : age_ns;
    if (age_ns == 0 || age == p->age_ns) return false;
    /* Switched on anew: what was left raw meanwhile is looked at. */
    if (p->age_ns == 0) *p = (struct pgs__policy){.mark_version = version, .mark_ns = now_ns};
    p->age_ns = age;
    return true;
}

static int save(struct pgs__session *s, const struct pgs__wait *w, const struct pgs__policy *want,
                struct pgs_error *err)
{
    struct pgs__commit c;
    struct pgs__policy now;
    int rc = pgs__commit_begin(&c, s, w, err);
    if (rc) return rc;
    rc = pgs__commit_start(&c, false, err);
    if (rc == 0) rc = pgs__policy_get(&c.l, &now, err);
    if (rc == 0 && now.age_ns &&
        want->done >= now.done) { /* else it was switched off, or another process came further */
        now.done = want->done;
        now.mark_version = want->mark_version;
        now.mark_ns = want->mark_ns;
        rc = pgs__policy_put(&c.l, &now, err);
        if (rc == 0) return pgs__commit_end(&c, NULL, err);
    }
    pgs__commit_abandon(&c);
    return rc;
}

/* --- how far a pass goes --------------------------------------------------------------------------------------------------------------- */
struct past {
    uint64_t limit_ns, version;
};
static int is_past(void *ctx, const struct pgs_commit_info *c)
{
    struct past *p = ctx;
    if (c->time_ns > p->limit_ns) return 0;
    p->version = c->version;
    return 1;
}

struct plan {
    struct pgs__policy p;
    uint64_t now_ns, limit_ns, head_version, target;
};
static int look(struct pgs__session *s, struct plan *n, struct pgs_error *err)
{
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = pgs__policy_get(&l, &n->p, err);
    n->now_ns = pgs__clock_real_ns();
    n->head_version = l.meta.hdr.version;
    n->limit_ns = n->now_ns > n->p.age_ns ? n->now_ns - n->p.age_ns : 0;
    struct past past = {n->limit_ns, 0};
    if (rc == 0 && n->p.age_ns) {
        rc = pgs__ledger_log_walk(&l, 0, is_past, &past, err);
        if (rc > 0) rc = 0;
    }
    pgs__meta_end(s, &l);
    n->target = past.version;
    if (n->p.mark_ns && n->p.mark_ns <= n->limit_ns) n->target = pgs__max_u64(n->target, n->p.mark_version);
    return rc;
}

/* --- a pass ------------------------------------------------------------------------------------------------------------------------------ */
static bool is_wanted(const struct pgs__object *o, const struct plan *n)
{
    return o->version > n->p.done && o->version <= n->target && o->content.form != PGS__FORM_INLINE &&
           o->content.n_stored >= 2;
}

static bool is_at(const struct pgs__policy_pass *pass, struct pgs_span key)
{
    return key.len == pass->len && memcmp(key.p, pass->key, key.len) == 0;
}

/* Move pass->key on to the next object that is wanted, or stay at one of which a part is left. *looked: objects, of which LOOKED_AT are the most. 1: there it is; 0: looked at enough; -PGS_ENOENT: the end. */
static int find(struct pgs__session *s, const struct plan *n, uint32_t *looked, struct pgs_error *err)
{
    struct pgs__policy_pass *pass = &s->policy;
    struct pgs__root root;
    struct pgs__pin pin;
    struct pgs__cursor c;
    struct pgs_error local = {0}; /* the end of a listing has no text */
    int rc = pgs__pin_head(s, &root, &pin, err);
    if (rc) return rc;
    struct pgs__tree catalog = pgs__root_catalog(s, &root);
    enum pgs__seek how = pass->len == 0 ? PGS__SEEK_FIRST : pass->page ? PGS__SEEK_GE : PGS__SEEK_GT;
    bool found = false;
    rc = pgs__cursor_seek(&c, &catalog, how, pass->key, pass->len, &local);
    for (; rc == 0; rc = pgs__cursor_next(&c, &local)) {
        struct pgs_span key, val;
        struct pgs__object o;
        pgs__cursor_entry(&c, &key, &val);
        rc = key.len > sizeof pass->key ? -PGS_ECORRUPT : pgs__object_decode(&s->pf, key, val, &o, &local);
        if (rc) break;
        if (!is_at(pass, key)) pass->page = 0;
        memcpy(pass->key, key.p, key.len);
        pass->len = key.len;
        found = is_wanted(&o, n);
        if (!found) pass->page = 0;
        if (found || ++*looked >= LOOKED_AT) break;
    }
    pgs__pin_drop(s, &pin);
    if (rc && rc != -PGS_ENOENT && err && err->code == 0) *err = local;
    return rc ? rc : found;
}

/* The object at pass->key, from pass->page on; *bytes: how much may still be looked at. What is gone, damaged (`check` says so) or without room is left. */
static int freeze_one(struct pgs__session *s, const struct pgs__wait *w, uint64_t *bytes, struct pgs_error *err)
{
    struct pgs__policy_pass *pass = &s->policy;
    struct pgs_error local = {0};
    uint64_t next = pass->page, most = pgs__max_u64(*bytes >> PGS_PAGE_SHIFT, PGS__COLD_PAGES), done;
    int rc = pgs__freeze_part(s, w, pass->key, pass->len, &next, most, &done, &local);
    bool left = rc == -PGS_ENOENT || rc == -PGS_ECORRUPT || rc == -PGS_EFULL;
    if (rc && !left) {
        if (err && err->code == 0) *err = local;
        return rc;
    }
    pass->page = left || next == UINT64_MAX ? 0 : next;
    *bytes -= pgs__min_u64(*bytes, pgs__max_u64(left ? 0 : done, 1) << PGS_PAGE_SHIFT);
    return 0;
}

static int pass_on(struct pgs__session *s, const struct pgs__wait *w, struct plan *n, uint64_t bytes, bool *more,
                   struct pgs_error *err)
{
    uint32_t looked = 0;
    int rc = 1;
    while (rc == 1 && bytes) {
        rc = find(s, n, &looked, err);
        if (rc == 1) {
            int bad = freeze_one(s, w, &bytes, err);
            if (bad) return bad;
        }
    }
    *more = rc != -PGS_ENOENT;
    if (rc != -PGS_ENOENT) return rc < 0 ? rc : 0;
    n->p.done = n->target;
    return 0;
}

static int step(struct pgs__session *s, const struct pgs__wait *w, uint64_t bytes, bool *more, struct pgs_error *err)
{
    struct pgs__policy_pass *pass = &s->policy;
    struct plan n;
    int rc = look(s, &n, err);
    if (rc || n.p.age_ns == 0) return rc;
    if (pass->target > n.p.done)
        n.target = pass->target; /* the one that is under way */
    else {
        pass->len = 0;
        pass->page = 0;
    }
    bool stale = n.p.mark_version < n.head_version && n.p.mark_ns <= n.limit_ns;
    if (n.target > n.p.done) {
        pass->target = n.target;
        rc = pass_on(s, w, &n, bytes, more, err);
        if (rc || *more) return rc;
        pass->target = 0;
    } else if (!stale) {
        return 0;
    }
    n.p.mark_version = n.head_version;
    n.p.mark_ns = n.now_ns;
    return save(s, w, &n.p, err);
}

int pgs__policy_step(struct pgs__session *s, const struct pgs__wait *w, uint64_t bytes, bool *more,
                     struct pgs_error *err)
{
    struct pgs__policy_pass *pass = &s->policy;
    bool left = false;
    int rc = 0;
    if (s->writable && !pgs__session_check(s, NULL) && !atomic_exchange(&pass->busy, true)) {
        rc = step(s, w, bytes, &left, err);
        atomic_store(&pass->busy, false);
    }
    if (more) *more = left;
    return rc;
}

void pgs__policy_after_commit(struct pgs__session *s)
{
    static const struct pgs__wait w = {.timeout_ns = 1000000000};
    struct pgs__policy_pass *pass = &s->policy;
    uint64_t now = pgs__clock_boot_ns();
    /* Relaxed: who is a little early or late does no harm. */
    uint64_t next = atomic_load_explicit(&pass->next_ns, memory_order_relaxed);
    if (PGS_LIKELY(now < next)) return;
    atomic_store_explicit(&pass->next_ns, now + MINUTE_NS, memory_order_relaxed);
    if (next) (void)pgs__policy_step(s, &w, PGS__POLICY_STEP, NULL, NULL); /* not with the first commit */
}

void pgs__policy_forked(struct pgs__session *s)
{
    s->policy.busy = false;
    s->policy.target = 0; /* a thread of the parent's may have been writing the rest */
}
