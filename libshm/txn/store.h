/* Pagestone | txn/store — the handles behind the public types.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A pgs_store is one opener's use of a session: its own mode, its own time-out. Snapshots, views and transactions hold the session, not the store: closing a store
 * ends new calls through it and nothing else.
 */
#ifndef PGS_TXN_STORE_H
#define PGS_TXN_STORE_H

#include "libshm/catalog/object.h"
#include "libshm/extents/memory.h"
#include "libshm/txn/session.h"

struct pgs_store {
    _Atomic int64_t refs;
    _Atomic bool closed;
    struct pgs__session *s;
    enum pgs_mode mode;
    struct pgs__wait wait;
    bool owner_private;
};
struct pgs_snapshot {
    _Atomic int64_t refs;
    struct pgs__session *s;
    struct pgs__root root;
    struct pgs__pin pin;
};
struct pgs_view {
    _Atomic int64_t refs;
    struct pgs__session *s;
    struct pgs__hold hold; /* a pin, unless the memory is a copy (inline) */
    struct pgs__mem mem;
    uint64_t id, version;               /* of the object */
    struct pgs_view *next, **prev_next; /* views of one transaction; rooted at the txn's op */
};
/* -PGS_ECLOSED / -PGS_EREADONLY / fork checks for a call that reads or writes through `s`. */
int pgs__store_use(struct pgs_store *s, bool write, struct pgs_error *err);
struct pgs__tree pgs__root_catalog(struct pgs__session *s, const struct pgs__root *root);
/* Find and decode; names the object in damage errors and believes damage only while the pin is valid. */
int pgs__object_find(struct pgs__session *s, const struct pgs__tree *catalog, const void *key, size_t len,
                     struct pgs__object *out, struct pgs_error *err);
int pgs__snapshot_new(struct pgs__session *s, const struct pgs__root *root, const struct pgs__pin *pin,
                      struct pgs_snapshot **out, struct pgs_error *err); /* takes the pin */
struct pgs__home {      /* where a view's object was found: with it the view's pin may move */
    const void *record; /* in a leaf of the pinned catalog */
    uint64_t version;   /* of that root */
};
int pgs__view_new(struct pgs__session *s, const struct pgs__pin *pin /* dup'ed, or NULL */,
                  const struct pgs__home *home /* NULL: the pin stays */, const struct pgs__mem *mem,
                  const struct pgs__object *obj, struct pgs_view **out, struct pgs_error *err);

#endif
