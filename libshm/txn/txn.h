/* Pagestone | txn/txn — a transaction: what was touched, and what it became.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A transaction reads one snapshot, its *base*, and keeps a table of *ops*, one for each key that was touched, in key order. An op knows the
 * record that the base has under its key, and the *pending* object that the transaction puts in its place, if any.
 *
 *     op.now            meaning
 *     NULL              as in the base (the op exists because the key was read)
 *     &txn.deleted      gone
 *     pending, home     an object of the base, changed in place or moved: keeps its id; home is the op under whose key the base has it
 *     pending, no home  a whole write: a new object
 *
 * A pending object is an encoded record; its content is inline in it, or in pages claimed by this transaction (`own`), or in pages of a committed
 * object (`src`: copy, revert; `home`: edit), or a hole (create). An array that is being changed also has a struct pgs__array: its
 * memory, what was appended, its present shape.
 *
 *   I1  Nothing here is visible to others before commit; pages are written only into claims.
 *   I2  No memory handed out shows pages that may be reused while it lives: copy-on-write views stand over pinned content only, views of own
 *       content are copies, and fresh memory is copied away before its pages are given back (pgs__array_orphan).
 *   I3  Runs written by this transaction carry birth base + 1, a lower bound (HAZARDS 12). Fresh runs carry birth base, one lower: then whoever pins the
 *       base keeps them, and the view that the user still holds needs no second pin.
 *   I4  A pending object lives as long as the transaction's handle: pointers into records stay good, and pages are given back earlier.
 *   I5  All fields are guarded by mx. Views are released after mx, because ending a session takes locks of lower rank.
 *
 * Called by: libshm/api only. See also docs/design/transactions.md.
 */
#ifndef PGS_TXN_TXN_H
#define PGS_TXN_TXN_H

#include "libshm/txn/commit.h"
#include "libshm/txn/store.h"

#define PGS__ID_PENDING UINT64_MAX /* id and version of a record whose number is not known yet */
#define PGS__OP_LEVELS 16

struct pgs__range_list { /* ascending, disjoint */
    struct pgs_range *v;
    size_t n, cap;
};

/* Pages that a step took from the claim, so that they can be given back when its result is not used. */
struct pgs__own {
    struct pgs__taken *v;
    size_t n, cap;
};

/* What a changed array will be, written but not yet referred to by anything (rebase.c). */
struct pgs__prep {
    bool done;                /* `result` is good */
    bool effective;           /* the transaction changes something */
    bool given;               /* what the result left of our own pages went back to the claim */
    struct pgs__content upon; /* the content that it was made from; `upon_version` its revision */
    uint64_t upon_version;
    struct pgs__content result;
    uint8_t *inline_buf;
    struct pgs__content_edit *edit; /* knows what dies; NULL: nothing, or everything (replaced) */
    struct pgs__own own;
    uint64_t bytes;
};

struct pgs__array {
    struct pgs__object o;  /* the type now; o.content is what the memory stands over */
    struct pgs_view *view; /* the memory; NULL until somebody needs it */
    uint8_t *tail;         /* rows appended while there is no memory */
    size_t tail_cap;
    uint64_t base_bytes; /* size of o.content */
    uint64_t n_bytes;    /* now */

    uint64_t appended_rows;
    bool resized;         /* changes of others conflict as a whole; a new id */
    bool fresh, detached; /* memory over `runs`: shared and writable, then private */
    struct pgs_run *runs; /* reserved (t.empty) */
    size_t n_runs;
    bool scanned;                 /* dirty is good: inside one commit */
    struct pgs__range_list dirty; /* pages of [0, base_bytes) that differ from the base */
    struct pgs__prep prep;
};

struct pgs__op;
struct pgs__pend {
    int64_t refs;           /* an op's now, savepoints */
    struct pgs__pend *next; /* rooted at txn.pends */
    struct pgs__op *home;
    struct pgs_snapshot *src; /* content shared with an object of this snapshot; own reference */
    bool own;                 /* map nodes and type pages are of our claim; the runs, too, if there is no src */
    uint8_t *rec;
    size_t rec_len;
    struct pgs__array *a;
};

enum { PGS__READ_KEY = 1 };
struct pgs__op {
    size_t len;
    const uint8_t *key;     /* behind the struct */
    struct pgs_span base;   /* record in the base; p NULL: absent. Pinned memory */
    struct pgs_span theirs; /* in the newest generation: inside one commit, under the lock */
    struct pgs__pend *now;
    unsigned read;                /* PGS__READ_KEY: conflicts if changed by others (serializable) */
    bool whole;                   /* pgs_txn_depends without a range: as a read, whatever else is declared */
    struct pgs__range_list needs; /* elements; they narrow a read of an array */
    bool kept;                    /* commit: the base's content lives on under another key */
    int64_t landed;               /* -1: nothing was appended */
    int height;
    struct pgs__op *next[];
};

struct pgs__saved_op;
struct pgs__savepoint {
    uint64_t id;
    struct pgs__savepoint *below;
    struct pgs__saved_op *ops;
    size_t n, cap;
};

enum pgs__txn_state { PGS__TXN_OPEN, PGS__TXN_COMMITTED, PGS__TXN_ABORTED };
struct pgs_txn {
    _Atomic int64_t refs;
    struct pgs__mutex mx; /* TXN */
    struct pgs__session *s;
    struct pgs__wait wait;
    uint64_t fork_count;
    enum pgs_isolation iso;
    enum pgs__txn_state state;
    bool failed; /* aborted by a failed commit */
    struct pgs_snapshot *base;
    struct pgs__tree catalog; /* of the base */
    struct pgs__claim claim;
    int checksums; /* -1: not asked yet */
    bool climbing; /* inside pgs__txn_with_room */
    struct pgs__op *head[PGS__OP_LEVELS];
    size_t n_ops;
    uint64_t seed;
    struct pgs__pend *pends;
    struct pgs__pend deleted;
    bool renamed;              /* the set of names differs from the base's */
    struct pgs__edit *names;   /* base catalog with our names: for the name rules; NULL: not needed, or out of date */
    struct pgs_span *prefixes; /* listed: others' additions and removals below conflict (serializable) */
    size_t n_prefixes, cap_prefixes;
    struct pgs__savepoint *saved;
    uint64_t next_savepoint;
    struct pgs_view *dead_views; /* to release after unlock */
    struct pgs_conflict *conflicts;
    size_t n_conflicts, cap_conflicts;
    uint64_t conflict_version;
};

/* --- life (txn.c) -------------------------------------------------------------------------------------------------------------- */
int pgs__txn_begin(struct pgs_store *st, enum pgs_isolation iso, struct pgs_txn **out, struct pgs_error *err);
struct pgs_txn *pgs__txn_ref(struct pgs_txn *t);
void pgs__txn_unref(struct pgs_txn *t);
/* Take mx and refuse a finished transaction (PGS_ECLOSED) or one of another process (PGS_EFORKED; then mx is not taken). */
int pgs__txn_lock(struct pgs_txn *t, struct pgs_error *err);
int pgs__txn_peek(struct pgs_txn *t, struct pgs_error *err); /* the same for what may be asked after the end */
void pgs__txn_unlock(struct pgs_txn *t);
void pgs__txn_finish_locked(struct pgs_txn *t, enum pgs__txn_state state); /* gives everything back; idempotent */
void pgs__txn_drop_view_locked(struct pgs_txn *t, struct pgs_view *v);

/* --- ops (ops.c): mx held ---------------------------------------------------------------------------------------------------- */
/* The op of a key: made, with the base's record looked up, if there is none. */
int pgs__op_get(struct pgs_txn *t, const void *key, size_t len, struct pgs__op **out, struct pgs_error *err);
struct pgs__op *pgs__op_find(struct pgs_txn *t, const void *key, size_t len); /* NULL: not touched */
struct pgs__op *pgs__op_after(struct pgs_txn *t, const void *key, size_t len, bool or_equal);
static inline struct pgs__op *pgs__op_first(struct pgs_txn *t)
{
    return t->head[0];
}
static inline bool pgs__op_exists(const struct pgs_txn *t, const struct pgs__op *op)
{
    return op->now ? op->now != &t->deleted : op->base.p != NULL;
}
/* The record as the transaction sees it; only if it exists. */
static inline struct pgs_span pgs__op_record(const struct pgs__op *op)
{
    return op->now ? (struct pgs_span){op->now->rec, op->now->rec_len} : op->base;
}
int pgs__op_object(struct pgs_txn *t, const struct pgs__op *op, struct pgs__object *out, struct pgs_error *err);
int pgs__op_decode(struct pgs_txn *t, const struct pgs__op *op, struct pgs_span rec, struct pgs__object *out,
                   struct pgs_error *err);
/* Note a read by `how` the isolation asks (serializable: whole object, or absence). */
void pgs__op_note_read(struct pgs_txn *t, struct pgs__op *op);
int pgs__fail_missing(struct pgs_error *err, const void *key, size_t len);
/* May `op` become an object of `kind`? PGS_EEXIST naming both. */
int pgs__op_name_fits(struct pgs_txn *t, struct pgs__op *op, enum pgs_kind kind, struct pgs_error *err);
/* Replace op->now (takes the reference to p; the old one is dropped). */
void pgs__op_set(struct pgs_txn *t, struct pgs__op *op, struct pgs__pend *p);
struct pgs__pend *pgs__pend_new(struct pgs_txn *t, const void *rec, size_t len); /* one reference; NULL: no memory */
void pgs__pend_drop(struct pgs_txn *t, struct pgs__pend *p); /* at 0: memory and pages go, the struct stays */
void pgs__pend_free(struct pgs__pend *p);
int pgs__ranges_add(struct pgs__range_list *l, uint64_t lo, uint64_t hi, struct pgs_error *err); /* lo ascending */
bool pgs__ranges_has(const struct pgs__range_list *l, uint64_t x);
void pgs__ranges_sort(struct pgs__range_list *l); /* any order -> ascending, disjoint */
void pgs__ranges_free(struct pgs__range_list *l);

/* --- space (txn_space.c) ----------------------------------------------------------------------------------------------------- */
/* Pages from our claim, up to *n runs in logical order: *runs is malloc'ed. l: the ledger of the commit in progress, or NULL; then a full store first makes room. */
int pgs__txn_alloc(struct pgs_txn *t, struct pgs__ledger *l, bool is_node, uint64_t n_pages, struct pgs__own *own,
                   struct pgs_run **runs, size_t *n, struct pgs_error *err);
void pgs__own_give(struct pgs_txn *t, struct pgs__own *own); /* back to the claim */
void pgs__own_forget(struct pgs__own *own);
/* Chunks of which nothing was taken are others' again: after an allocation that failed, before a commit that needs pages. */
void pgs__txn_claim_shrink(struct pgs_txn *t);
/* -PGS_EFULL for what could not be held by an empty store either: trying would take history and the machine's memory first, and a memfd has no other limit. */
int pgs__txn_could_hold(struct pgs_txn *t, uint64_t need_bytes, struct pgs_error *err);
/* fn, and again after each rung of the ladder while it says PGS_EFULL. fn must leave nothing behind when it fails. */
int pgs__txn_with_room(struct pgs_txn *t, int (*fn)(void *ctx, struct pgs_error *err), void *ctx, uint64_t need_bytes,
                       struct pgs_error *err);
int pgs__txn_checksums(struct pgs_txn *t, bool *on, struct pgs_error *err);
/* Nodes for an edit: allocated, written; the result in *out. */
int pgs__txn_finish_edit(struct pgs_txn *t, struct pgs__ledger *l, struct pgs__content_edit *e, struct pgs__own *own,
                         struct pgs__content *out, struct pgs_error *err);
/* A content over runs that hold n_bytes in order. xxh: of the pages, or NULL. */
int pgs__txn_content_of(struct pgs_txn *t, const struct pgs_run *runs, size_t n, uint64_t n_bytes, uint64_t birth,
                        const uint64_t *page_xxh, struct pgs__own *own, struct pgs__content *out,
                        struct pgs_error *err);
/* Give back the pages of an object that is ours: map nodes, type, and (unless they are shared) the runs. */
void pgs__txn_give_object(struct pgs_txn *t, const struct pgs__object *o, bool runs);
/* Type bytes too long for a record go to pages of their own: sets o->dtype_ext. */
int pgs__txn_place_type(struct pgs_txn *t, struct pgs__object *o, struct pgs__own *own, struct pgs_error *err);

/* --- reads (txn_read.c): each locks by itself ------------------------------------------------------------------------------------- */
int pgs__txn_get(struct pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err);
int pgs__txn_peek_key(struct pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_error *err);
int pgs__txn_fetch(struct pgs_txn *t, const void *key, size_t len, struct pgs_object *out, struct pgs_view **view,
                   struct pgs_error *err);
int pgs__txn_depends(struct pgs_txn *t, const void *key, size_t len, uint64_t lo, uint64_t hi, struct pgs_error *err);

/* --- writes: each locks by itself ---------------------------------------------------------------------------------------------- */
int pgs__txn_put(struct pgs_txn *t, const void *key, size_t len, enum pgs_kind kind, const struct pgs_type *type,
                 const struct pgs_part *parts, size_t n_parts, struct pgs_error *err); /* txn_put.c */
int pgs__put_locked(struct pgs_txn *t, struct pgs__op *op, enum pgs_kind kind, const struct pgs_type *type,
                    const struct pgs_part *parts, size_t n_parts, struct pgs_error *err);
int pgs__txn_delete(struct pgs_txn *t, const void *key, size_t len, struct pgs_error *err); /* txn_names.c */
int pgs__txn_clear(struct pgs_txn *t, const void *prefix, size_t len, struct pgs_error *err);
int pgs__txn_move(struct pgs_txn *t, const void *from, size_t from_len, const void *to, size_t to_len,
                  struct pgs_error *err);
int pgs__txn_copy(struct pgs_txn *t, struct pgs_snapshot *src, const void *key, size_t len, const void *to,
                  size_t to_len, const struct pgs_type *type, struct pgs_error *err); /* txn_copy.c */
int pgs__type_object(const struct pgs_type *type, struct pgs__object *o,
                     struct pgs_error *err); /* checks and copies a type */

/* --- arrays in memory (txn_edit.c, txn_rows.c) ---------------------------------------------------------------------------- */
int pgs__txn_create(struct pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, struct pgs_error *err);
int pgs__txn_empty(struct pgs_txn *t, const void *key, size_t len, const struct pgs_type *type, bool replace,
                   struct pgs_view **out, struct pgs_error *err);
int pgs__txn_edit(struct pgs_txn *t, const void *key, size_t len, struct pgs_view **out, struct pgs_error *err);
int pgs__txn_view(struct pgs_txn *t, const void *key, size_t len, struct pgs_view **out, struct pgs_error *err);
int pgs__txn_view_locked(struct pgs_txn *t, struct pgs__op *op, struct pgs_view **out, struct pgs_error *err);
int pgs__array_open_locked(struct pgs_txn *t, struct pgs__op *op,
                           struct pgs_error *err); /* op->now->a is there afterwards */
int pgs__array_map_locked(struct pgs_txn *t, struct pgs__op *op, struct pgs_error *err); /* and its memory */
void pgs__array_orphan(struct pgs_txn *t, struct pgs__array *a); /* its pages are about to be given back */
void pgs__array_free(struct pgs_txn *t, struct pgs__array *a);   /* t NULL: views are gone already */
int pgs__txn_append(struct pgs_txn *t, const void *key, size_t len, const void *values, uint64_t n_rows,
                    struct pgs_error *err);
int pgs__txn_resize(struct pgs_txn *t, const void *key, size_t len, const int64_t *shape, uint32_t ndim,
                    struct pgs_error *err);
int pgs__txn_rollback(struct pgs_txn *t, uint64_t id, struct pgs_error *err);
int pgs__txn_savepoint(struct pgs_txn *t, uint64_t *id, struct pgs_error *err);
void pgs__savepoints_free_locked(struct pgs_txn *t, uint64_t above); /* those with id > above */

/* --- merge and commit --------------------------------------------------------------------------------------------------------- */
struct pgs__merge {
    struct pgs__pagefile *pf;
    const struct pgs__content *base, *theirs;
    const uint8_t *ours; /* memory over base; NULL: every element counts as changed (depends) */
    uint64_t n_bytes;    /* compare below this */
    uint32_t itemsize;
    const struct pgs__range_list *our_pages, *their_pages;
};
/* Elements that both changed: flat ranges (merge.c). */
int pgs__merge_check(const struct pgs__merge *m, struct pgs__range_list *cells, struct pgs_error *err);
int pgs__merge_their_pages(struct pgs__pagefile *pf, const struct pgs__content *base, const struct pgs__content *theirs,
                           struct pgs__range_list *out, struct pgs_error *err);

/* Make prep.result of an array upon `theirs` (its own content, or the newest one of the same object). cells: conflicts, if any; then nothing is made. Reads at most
 * *cost bytes of theirs if cost != NULL; else -PGS_ELOCKED: too much for under the lock (rebase.c). */
int pgs__rebase(struct pgs_txn *t, struct pgs__ledger *l, struct pgs__op *op, const struct pgs__object *theirs,
                const uint64_t *cost, struct pgs__range_list *cells, struct pgs_error *err);
int pgs__rebase_scan(struct pgs_txn *t, struct pgs__op *op, bool *effective, struct pgs_error *err);
void pgs__prep_discard(struct pgs_txn *t, struct pgs__prep *p); /* its pages go back */
bool pgs__same_content(const struct pgs__content *a, const struct pgs__content *b);

/* Compare reads and writes with the newest root; fills t->conflicts (readset.c). op->theirs is set for every op. */
int pgs__conflicts_find(struct pgs_txn *t, const struct pgs__root *newest, struct pgs_error *err);
int pgs__conflict_add(struct pgs_txn *t, const void *key, size_t len, uint64_t lo, uint64_t hi, uint64_t version,
                      struct pgs_error *err);
int pgs__conflict_fail(struct pgs_txn *t, struct pgs_error *err);        /* words it: -PGS_ECONFLICT */
bool pgs__op_is_edit(const struct pgs_txn *t, const struct pgs__op *op); /* in place, under its own name */
bool pgs__op_writes(const struct pgs_txn *t, const struct pgs__op *op);  /* after the scan: does it change anything? */

int pgs__txn_commit(struct pgs_txn *t, const char *message, uint64_t *version,
                    struct pgs_error *err);                                          /* txn_commit.c */
int pgs__txn_apply(struct pgs_txn *t, struct pgs__commit *c, struct pgs_error *err); /* apply.c */

/* --- listing (iter.c) ------------------------------------------------------------------------------------------------------------ */
struct pgs_iter {
    struct pgs_snapshot *sn;
    struct pgs_txn *t; /* or NULL */
    struct pgs__tree catalog;
    struct pgs__cursor cursor;
    bool started, base_on; /* base_on: the cursor stands on an entry not yet delivered */
    bool ended;
    size_t prefix_len, last_len;
    bool or_equal; /* the next entry may equal `last` (seek) */
    uint8_t prefix[PGS_MAX_KEY], last[PGS_MAX_KEY];
};
int pgs__iter_new(struct pgs_snapshot *sn, struct pgs_txn *t, const void *prefix, size_t len, struct pgs_iter **out,
                  struct pgs_error *err);
int pgs__iter_next(struct pgs_iter *it, struct pgs_span *key, struct pgs_object *obj, struct pgs_error *err);
int pgs__iter_seek(struct pgs_iter *it, const void *key, size_t len, struct pgs_error *err);
void pgs__iter_free(struct pgs_iter *it);

/* Export for the public struct, with the record (store.c). */
void pgs__object_publish(const struct pgs__object *o, struct pgs_span rec, struct pgs_object *out);
int pgs__view_open(struct pgs__session *s, const struct pgs__pin *pin, const struct pgs__home *home,
                   const struct pgs__object *o, bool verify, bool private_cow, struct pgs_view **out,
                   struct pgs_error *err);
int pgs__object_lookup(struct pgs__session *s, const struct pgs__tree *catalog, const void *key, size_t len,
                       struct pgs__object *out, struct pgs_span *rec, struct pgs_error *err);

#endif
