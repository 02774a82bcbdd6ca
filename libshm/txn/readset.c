/* Pagestone | txn/readset — did others change what this transaction read or wrote?
 * SPDX-License-Identifier: Apache-2.0
 *
 * Revisions are compared, (id, version) of the records, not records: maintenance changes records and conflicts with nobody (HAZARDS 1b).
 *
 *     what this transaction did            conflicts when others
 *     read or listed a key (serializable)  changed, made or removed it
 *     listed a prefix (serializable)       made or removed a key below it
 *     declared elements (depends)          changed one of them
 *     put, deleted, moved, resized         changed, made or removed it
 *     edited or appended in place          replaced or removed it, or changed its type; elements: rebase.c
 *     anything (strict)                    committed
 *
 * The names themselves are looked at when the commit is applied (apply.c).
 */
#include <stdio.h>

#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/txn.h"

int pgs__conflict_add(struct pgs_txn *t, const void *key, size_t len, uint64_t lo, uint64_t hi, uint64_t version,
                      struct pgs_error *err)
{
    uint8_t *copy = pgs__malloc(len + 1);
    if (!copy || pgs__grow(&t->conflicts, &t->cap_conflicts, t->n_conflicts + 1, sizeof *t->conflicts)) {
        pgs__free(copy);
        return pgs__fail(err, PGS_ENOMEM, "no memory for the list of conflicts");
    }
    memcpy(copy, key, len);
    copy[len] = 0;
    t->conflicts[t->n_conflicts++] = (struct pgs_conflict){.key = copy, .key_len = len, .lo = lo, .hi = hi};
    t->conflict_version = pgs__max_u64(t->conflict_version, version);
    return 0;
}

int pgs__conflict_fail(struct pgs_txn *t, struct pgs_error *err)
{
    const struct pgs_conflict *c = t->conflicts;
    char what[96] = "", more[48] = "";
    if (!t->n_conflicts)
        return pgs__fail(err, PGS_ECONFLICT,
                         "conflict with version %llu: this transaction is strict; run it again from a new begin()",
                         (unsigned long long)t->conflict_version);
    if (c->lo < c->hi && c->hi - c->lo == 1)
        snprintf(what, sizeof what, ": element %llu", (unsigned long long)c->lo);
    else if (c->lo < c->hi)
        snprintf(what, sizeof what, ": elements %llu–%llu", (unsigned long long)c->lo, (unsigned long long)(c->hi - 1));
    if (t->n_conflicts > 1) snprintf(more, sizeof more, " and %zu more", t->n_conflicts - 1);
    return pgs__fail(err, PGS_ECONFLICT, "conflict on '%.*s' with version %llu%s%s; run it again from a new begin()",
                     (int)c->key_len, (const char *)c->key, (unsigned long long)t->conflict_version, what, more);
}

bool pgs__op_is_edit(const struct pgs_txn *t, const struct pgs__op *op)
{
    const struct pgs__pend *p = op->now;
    return p && p != &t->deleted && p->home == op && p->a && !p->a->resized;
}

bool pgs__op_writes(const struct pgs_txn *t, const struct pgs__op *op)
{
    const struct pgs__pend *p = op->now;
    if (!p) return false;
    if (p == &t->deleted || p->home != op) return true;
    return p->a && p->a->prep.effective;
}

struct check {
    struct pgs_txn *t;
    const struct pgs__root *newest;
    struct pgs_error *err;
};

/* The version of a record, which may be damaged: it is decoded elsewhere. A key that lost its object, or was given one by a move, does not
 * say when: the newest version then stands for all since the base. */
static uint64_t version_of(const struct check *k, struct pgs_span rec)
{
    uint64_t version = rec.p && rec.len >= 24 ? pgs__get_u64((const uint8_t *)rec.p + 16) : 0;
    return version > k->t->base->root.version ? version : k->newest->version;
}

static bool changed(const struct pgs__op *op)
{
    if (!op->base.p != !op->theirs.p) return true;
    if (!op->base.p || (op->base.p == op->theirs.p && op->base.len == op->theirs.len)) return false;
    if (op->base.len < 24 || op->theirs.len < 24) return true;
    return memcmp((const uint8_t *)op->base.p + 8, (const uint8_t *)op->theirs.p + 8, 16) != 0;
}

static int whole(struct check *k, const struct pgs__op *op)
{
    return pgs__conflict_add(k->t, op->key, op->len, 0, 0, version_of(k, op->theirs), k->err);
}

/* Both records, if they are arrays of one id and type; 1: they are not. */
static int same_array(struct check *k, const struct pgs__op *op, struct pgs__object *base, struct pgs__object *theirs)
{
    if (!op->base.p || !op->theirs.p) return 1;
    int rc = pgs__op_decode(k->t, op, op->base, base, k->err);
    if (rc == 0) rc = pgs__op_decode(k->t, op, op->theirs, theirs, k->err);
    if (rc) return rc;
    bool same = base->kind == PGS_KIND_ARRAY && base->id == theirs->id && pgs__object_same_type(base, theirs, true) &&
                theirs->content.n_bytes >= base->content.n_bytes;
    return same ? 0 : 1;
}

/* Did they change one of the declared elements? */
static int check_ranges(struct check *k, struct pgs__op *op)
{
    struct pgs__object base, theirs;
    struct pgs__range_list pages = {0}, wanted = {0}, cells = {0};
    int rc = same_array(k, op, &base, &theirs);
    if (rc) return rc < 0 ? rc : whole(k, op);
    for (size_t i = 0; i < op->needs.n && rc == 0 && base.itemsize; i++) {
        uint64_t end = pgs__min_u64(op->needs.v[i].hi, base.content.n_bytes / base.itemsize);
        if (op->needs.v[i].lo < end)
            rc = pgs__ranges_add(&wanted, (op->needs.v[i].lo * base.itemsize) >> PGS_PAGE_SHIFT,
                                 pgs__pages_of(end * base.itemsize), k->err);
    }
    struct pgs__merge m = {.pf = &k->t->s->pf,
                           .base = &base.content,
                           .theirs = &theirs.content,
                           .n_bytes = base.content.n_bytes,
                           .itemsize = base.itemsize,
                           .our_pages = &wanted,
                           .their_pages = &pages};
    if (rc == 0) rc = pgs__merge_their_pages(m.pf, m.base, m.theirs, &pages, k->err);
    if (rc == 0) rc = pgs__merge_check(&m, &cells, k->err);
    for (size_t i = 0, j = 0; i < cells.n && j < op->needs.n && rc == 0;) {
        uint64_t lo = pgs__max_u64(cells.v[i].lo, op->needs.v[j].lo),
                 hi = pgs__min_u64(cells.v[i].hi, op->needs.v[j].hi);
        if (lo < hi) rc = pgs__conflict_add(k->t, op->key, op->len, lo, hi, theirs.version, k->err);
        if (cells.v[i].hi < op->needs.v[j].hi)
            i++;
        else
            j++;
    }
    pgs__ranges_free(&pages);
    pgs__ranges_free(&wanted);
    pgs__ranges_free(&cells);
    return rc;
}

static int check_op(struct check *k, struct pgs__op *op)
{
    struct pgs__object base, theirs;
    if (!changed(op)) return 0;
    bool edit = pgs__op_is_edit(k->t, op), writes = pgs__op_writes(k->t, op);
    if (writes && !edit && !PGS_PLANTED(10)) return whole(k, op);
    if (op->needs.n && !op->whole) {
        size_t before = k->t->n_conflicts;
        pgs__ranges_sort(&op->needs);
        int rc = check_ranges(k, op);
        if (rc || k->t->n_conflicts > before) return rc;
    } else if (op->read & PGS__READ_KEY) {
        return whole(k, op);
    }
    if (!writes || !edit) return 0;
    int rc = same_array(k, op, &base, &theirs);
    return rc <= 0 ? rc : whole(k, op);
}

static int on_name(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b)
{
    struct check *k = ctx;
    if (a.p && b.p) return 0;
    for (size_t i = 0; i < k->t->n_prefixes; i++) {
        struct pgs_span p = k->t->prefixes[i];
        bool hidden = key.len && ((const uint8_t *)key.p)[0] == 0 && !(p.len && ((const uint8_t *)p.p)[0] == 0);
        if (!hidden && key.len >= p.len && memcmp(key.p, p.p, p.len) == 0)
            return pgs__conflict_add(k->t, key.p, key.len, 0, 0, version_of(k, b), k->err);
    }
    return 0;
}

int pgs__conflicts_find(struct pgs_txn *t, const struct pgs__root *newest, struct pgs_error *err)
{
    struct check k = {t, newest, err};
    struct pgs__tree theirs = pgs__root_catalog(t->s, newest);
    const struct pgs_ptr *a = &t->catalog.root, *b = &newest->catalog;
    bool same = a->page == b->page && a->birth == b->birth && a->xxh == b->xxh;
    if (t->iso == PGS_ISO_STRICT && newest->version != t->base->root.version) {
        t->conflict_version = newest->version;
        return pgs__conflict_fail(t, err);
    }
    for (struct pgs__op *op = pgs__op_first(t); op; op = op->next[0]) {
        op->theirs = op->base;
        if (same) continue;
        op->theirs = (struct pgs_span){0};
        int rc = pgs__tree_get(&theirs, op->key, op->len, &op->theirs, err);
        if (rc == 0)
            rc = check_op(&k, op);
        else if (rc == -PGS_ENOENT)
            rc = check_op(&k, op);
        if (rc) return rc;
    }
    if (!same && t->n_prefixes) {
        int rc = pgs__tree_diff(&t->catalog, &theirs, on_name, &k, err);
        if (rc) return rc;
    }
    return t->n_conflicts ? pgs__conflict_fail(t, err) : 0;
}
