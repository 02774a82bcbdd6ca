/* Pagestone | tree/edit — changing a tree: path copying in memory, and the hand-over of finished pages.
 * SPDX-License-Identifier: Apache-2.0
 *
 * put and del first find their place without changing anything, so that what changes nothing copies nothing. Then memory is reserved, then
 * the path is copied (own_path), then the entry changes; splits and merges are balance.c's.
 *
 * Changes often come in the order of keys (the ledger folds its messages so), and most of a small change is finding its place. So the way to the leaf
 * that was changed last is kept as a finger: where the next key belongs into the same leaf, only that leaf is searched.
 */
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/tree/edit_state.h"

#define RESET_KEEPS 12u /* images */

/* --- nodes of an edit ------------------------------------------------------------------------------------------------------ */

struct pgs_ptr pgs__edit_root(const struct pgs__edit *e)
{
    return e->root;
}

const struct pgs__node *pgs__edit_node(const struct pgs__edit *e, const struct pgs_ptr *ptr)
{
    uint64_t i = ptr->page & ~PGS__DIRTY_BIT;
    return i < e->n_node ? e->node[i] : NULL;
}

struct pgs__node *pgs__edit_image(struct pgs__edit *e, const struct pgs_ptr *ptr)
{
    uint64_t i = ptr->page & ~PGS__DIRTY_BIT;
    PGS_BUG_ON(!pgs__ptr_is_dirty(ptr) || i >= e->n_node || !e->node[i]);
    return e->node[i];
}

struct pgs_ptr pgs__edit_take(struct pgs__edit *e)
{
    struct pgs__spare *image = e->spare;
    PGS_BUG_ON(!image || e->n_node == e->cap_node);
    e->spare = image->next;
    e->n_spare--;
    e->node[e->n_node] = (struct pgs__node *)(void *)image;
    e->n_dirty++;
    return (struct pgs_ptr){.page = PGS__DIRTY_BIT | e->n_node++};
}

static void push_spare(struct pgs__edit *e, void *image)
{
    struct pgs__spare *s = image;
    s->next = e->spare;
    e->spare = s;
    e->n_spare++;
}

static void push_dead(struct pgs__edit *e, const struct pgs_ptr *ptr)
{
    PGS_BUG_ON(e->n_dead == e->cap_dead);
    e->dead[e->n_dead++] = *ptr;
}

void pgs__edit_release(struct pgs__edit *e, const struct pgs_ptr *ptr)
{
    if (!pgs__ptr_is_dirty(ptr)) {
        push_dead(e, ptr);
        return;
    }
    push_spare(e, pgs__edit_image(e, ptr));
    e->node[ptr->page & ~PGS__DIRTY_BIT] = NULL;
    e->n_dirty--;
}

/* Room for n more images and as many dead nodes (edit_state.h, I1). */
static int edit_reserve(struct pgs__edit *e, size_t n, struct pgs_error *err)
{
    if (e->cap_node < e->n_node + n && pgs__grow(&e->node, &e->cap_node, e->n_node + n, sizeof *e->node)) goto none;
    if (e->cap_dead < e->n_dead + n && pgs__grow(&e->dead, &e->cap_dead, e->n_dead + n, sizeof *e->dead)) goto none;
    while (e->n_spare < n) {
        void *image = pgs__malloc(sizeof(struct pgs__node));
        if (!image) goto none;
        push_spare(e, image);
    }
    return 0;
none:
    return pgs__fail(err, PGS_ENOMEM, "no memory for the nodes of a change");
}

struct pgs__edit *pgs__edit_new(struct pgs__pagefile *pf, enum pgs__tree_kind kind, const struct pgs_ptr *root)
{
    struct pgs__edit *e = pgs__malloc(sizeof *e);
    if (!e) return NULL;
    memset(e, 0, offsetof(struct pgs__edit, finger)); /* the rest is scratch */
    e->pf = pf;
    e->kind = kind;
    e->root = *root;
    return e;
}

void pgs__edit_free(struct pgs__edit *e)
{
    if (!e) return;
    for (size_t i = 0; i < e->n_node; i++) pgs__free(e->node[i]);
    while (e->spare) {
        struct pgs__spare *s = e->spare;
        e->spare = s->next;
        pgs__free(s);
    }
    pgs__free(e->node);
    pgs__free(e->dead);
    pgs__free(e);
}

void pgs__edit_reset(struct pgs__edit *e, struct pgs__pagefile *pf, enum pgs__tree_kind kind,
                     const struct pgs_ptr *root)
{
    for (size_t i = 0; i < e->n_node; i++) {
        if (e->node[i] && e->n_spare < RESET_KEEPS)
            push_spare(e, e->node[i]);
        else
            pgs__free(e->node[i]);
    }
    while (e->n_spare > RESET_KEEPS) {
        struct pgs__spare *s = e->spare;
        e->spare = s->next;
        e->n_spare--;
        pgs__free(s);
    }
    e->n_node = e->n_dead = 0;
    e->n_dirty = 0;
    e->changed = e->spent = e->has_finger = false;
    e->broken = 0;
    e->pf = pf;
    e->kind = kind;
    e->root = *root;
}

bool pgs__edit_is_clean(const struct pgs__edit *e)
{
    return !e->changed;
}

uint64_t pgs__edit_n_dirty(const struct pgs__edit *e)
{
    return e->n_dirty;
}

const struct pgs_ptr *pgs__edit_dead(const struct pgs__edit *e, size_t *n)
{
    *n = e->n_dead;
    return e->dead;
}

static int usable(const struct pgs__edit *e, struct pgs_error *err)
{
    if (e->broken) return pgs__fail(err, -e->broken, "the change failed half-way before; start it anew");
    if (e->spent) return pgs__fail(err, PGS_EBUG, "change of a tree used after it was finished");
    return 0;
}

/* --- finding and owning a path ---------------------------------------------------------------------------------------------- */

void pgs__path_bounds(const struct pgs__path *path, int d, unsigned index, struct pgs_span *lo, struct pgs_span *hi)
{
    *lo = *hi = (struct pgs_span){NULL, 0};
    for (; d >= 0 && !(lo->p && hi->p); d--, index = d >= 0 ? path->step[d].index : 0) {
        const struct pgs__node *nd = path->step[d].node;
        if (!lo->p && index > 0) *lo = pgs__node_key(nd, index);
        if (!hi->p && index + 1 < nd->n) *hi = pgs__node_key(nd, index + 1);
    }
}

int pgs__path_misfit(const struct pgs_ptr *ptr, struct pgs_error *err)
{
    return pgs__fail_corrupt(err, "", "page %llu: keys of a node lie outside of what its parent says",
                             (unsigned long long)ptr->page);
}

/* Way to the leaf where the key is or belongs; the root must exist. */
static int find_path(struct pgs__edit *e, const void *key, size_t key_len, struct pgs__path *path, bool *found,
                     struct pgs_error *err)
{
    struct pgs__tree t = {.pf = e->pf, .kind = e->kind, .edit = e};
    struct pgs_ptr ptr = e->root;
    struct pgs_span lo = {NULL, 0}, hi = {NULL, 0};
    const struct pgs__node *nd = NULL;
    path->depth = 0;
    for (int level = -1;; level = nd->level - 1) {
        int rc = pgs__node_load(&t, &ptr, level, &nd, err);
        if (rc) return rc;
        if (!pgs__node_in_range(nd, lo, hi)) return pgs__path_misfit(&ptr, err);
        int d = path->depth++;
        path->step[d].ptr = ptr;
        path->step[d].node = nd;
        if (nd->level == 0) {
            path->step[d].index = pgs__node_search(nd, key, key_len, found);
            return 0;
        }
        unsigned i = path->step[d].index = pgs__node_find_child(nd, key, key_len);
        if (i > 0) lo = pgs__node_key(nd, i);
        if (i + 1 < nd->n) hi = pgs__node_key(nd, i + 1);
        ptr = pgs__node_child(nd, i);
    }
}

/* The same by the finger, or without it where it leads to another leaf. */
static int find_place(struct pgs__edit *e, struct pgs_span key, struct pgs__path *path, bool *found,
                      struct pgs_error *err)
{
    e->has_finger = e->has_finger && (!e->finger_lo.p || pgs__key_cmp(key, e->finger_lo) >= 0) &&
                    (!e->finger_hi.p || pgs__key_cmp(key, e->finger_hi) < 0);
    if (!e->has_finger) return find_path(e, key.p, key.len, path, found, err);
    int leaf = e->finger.depth - 1;
    path->depth = e->finger.depth;
    memcpy(path->step, e->finger.step, sizeof path->step[0] * (size_t)path->depth);
    path->step[leaf].index = pgs__node_search(path->step[leaf].node, key.p, key.len, found);
    return 0;
}

/* After a change of that leaf alone. */
static void keep_finger(struct pgs__edit *e, const struct pgs__path *path)
{
    if (e->has_finger) return; /* it led here */
    e->finger.depth = path->depth;
    memcpy(e->finger.step, path->step, sizeof path->step[0] * (size_t)path->depth);
    e->finger_lo = e->finger_hi = (struct pgs_span){NULL, 0};
    if (path->depth > 1)
        pgs__path_bounds(path, path->depth - 2, path->step[path->depth - 2].index, &e->finger_lo, &e->finger_hi);
    e->has_finger = true;
}

static size_t n_clean(const struct pgs__path *path)
{
    size_t n = 0;
    for (int d = 0; d < path->depth; d++) n += !pgs__ptr_is_dirty(&path->step[d].ptr);
    return n;
}

/* Make every node of the path an image of this edit, from the root down. */
static void own_path(struct pgs__edit *e, struct pgs__path *path)
{
    for (int d = 0; d < path->depth; d++) {
        if (pgs__ptr_is_dirty(&path->step[d].ptr)) continue;
        struct pgs_ptr old = path->step[d].ptr, own = pgs__edit_take(e);
        struct pgs__node *image = pgs__edit_image(e, &own);
        memcpy(image, path->step[d].node, sizeof *image);
        pgs__edit_release(e, &old);
        path->step[d].ptr = own;
        path->step[d].node = image;
        if (d == 0)
            e->root = own;
        else
            pgs__node_set_child(pgs__edit_image(e, &path->step[d - 1].ptr), path->step[d - 1].index, &own);
    }
    e->changed = true;
}

/* --- put ---------------------------------------------------------------------------------------------------------------------- */

static int put_first(struct pgs__edit *e, const struct pgs__item *it, struct pgs_error *err)
{
    int rc = edit_reserve(e, 1, err);
    if (rc) return rc;
    e->root = pgs__edit_take(e);
    pgs__node_build(pgs__edit_image(e, &e->root), (int)e->kind, 0, it, 1);
    e->changed = true;
    return 0;
}

/* The item with its bytes in e->cell, safe from moves. */
static struct pgs__item save_item(struct pgs__edit *e, const struct pgs__item *it)
{
    struct pgs__item own = {{e->cell, it->key.len}, {e->cell + it->key.len, it->payload.len}};
    if (it->key.len) memcpy(e->cell, it->key.p, it->key.len);
    if (it->payload.len) memcpy(e->cell + it->key.len, it->payload.p, it->payload.len);
    return own;
}

/* Out of reach of real trees: a split might need a level more. */
static int too_deep(struct pgs_error *err)
{
    return pgs__fail(err, PGS_E2BIG, "a tree of %d levels cannot be changed", PGS__TREE_MAX_DEPTH);
}

static int put_item(struct pgs__edit *e, struct pgs__path *path, bool found, const struct pgs__item *item,
                    struct pgs_error *err)
{
    int leaf = path->depth - 1;
    const struct pgs__node *nd = path->step[leaf].node;
    unsigned i = path->step[leaf].index;
    unsigned freed =
        found ? PGS__NODE_SLOT + PGS__LEAF_CELL_HEAD + (unsigned)(item->key.len + pgs__node_val(nd, i).len) : 0;
    unsigned used = pgs__node_used(nd) - freed + pgs__item_size(item, 0);
    /* A split needs one image per level and one for a new root; a merge one per level, and splits if separators grow. */
    bool shrinks = found && item->payload.len < pgs__node_val(nd, i).len && used < PGS__NODE_MIN_LEAF;
    size_t more = used > PGS__NODE_CAP || shrinks ? 2 * (size_t)path->depth + 2 : 0;
    if (more && path->depth == PGS__TREE_MAX_DEPTH) return too_deep(err);
    int rc = edit_reserve(e, n_clean(path) + more, err);
    if (rc) return rc;

    struct pgs__item own = save_item(e, item);
    own_path(e, path);
    struct pgs__node *image = pgs__edit_image(e, &path->step[leaf].ptr);
    if (more)
        e->has_finger = false;
    else
        keep_finger(e, path);
    if (found && pgs__node_val(image, i).len == own.payload.len) {
        pgs__node_set_val(image, i, own.payload);
        return 0;
    }
    if (found) pgs__node_remove(image, i);
    pgs__edit_insert_at(e, path, leaf, i, &own);
    return shrinks ? pgs__edit_rebalance(e, path, err) : 0;
}

int pgs__edit_put(struct pgs__edit *e, const void *key, size_t key_len, const void *val, size_t val_len,
                  struct pgs_error *err)
{
    int rc = usable(e, err);
    if (rc) return rc;
    if (key_len > PGS__TREE_MAX_KEY || val_len > PGS__TREE_MAX_CELL || key_len + val_len > PGS__TREE_MAX_CELL)
        return pgs__fail(err, PGS_E2BIG, "an entry of %zu + %zu bytes; the limits are %u for the key, %u for both",
                         key_len, val_len, PGS__TREE_MAX_KEY, PGS__TREE_MAX_CELL);
    struct pgs__item item = {{key, key_len}, {val, val_len}};
    if (e->root.page == 0) {
        item = save_item(e, &item);
        return put_first(e, &item, err);
    }
    struct pgs__path path;
    bool found = false;
    rc = find_place(e, item.key, &path, &found, err);
    if (rc) return rc;
    int leaf = path.depth - 1;
    if (found && pgs__span_eq(pgs__node_val(path.step[leaf].node, path.step[leaf].index), item.payload)) return 0;
    return put_item(e, &path, found, &item, err);
}

/* --- del ---------------------------------------------------------------------------------------------------------------------- */

int pgs__edit_del(struct pgs__edit *e, const void *key, size_t key_len, struct pgs_error *err)
{
    int rc = usable(e, err);
    if (rc) return rc;
    if (e->root.page == 0) return -PGS_ENOENT;
    struct pgs__path path;
    bool found = false;
    rc = find_place(e, (struct pgs_span){key, key_len}, &path, &found, err);
    if (rc) return rc;
    if (!found) return -PGS_ENOENT;
    if (path.depth == PGS__TREE_MAX_DEPTH) return too_deep(err);
    rc = edit_reserve(e, n_clean(&path) + 2 * (size_t)path.depth + 2, err);
    if (rc) return rc;
    own_path(e, &path);
    int leaf = path.depth - 1;
    struct pgs__node *image = pgs__edit_image(e, &path.step[leaf].ptr);
    pgs__node_remove(image, path.step[leaf].index);
    if (image->n > 0 && !pgs__node_underfull(image)) {
        keep_finger(e, &path);
        return 0;
    }
    e->has_finger = false;
    return pgs__edit_rebalance(e, &path, err);
}

/* --- finish --------------------------------------------------------------------------------------------------------------------- */

struct finish {
    struct pgs__pagefile *pf;
    pgs_gen_t birth;
    const struct pgs_pgno *pages;
    uint8_t *buf;
    uint64_t n; /* sealed so far */
};

/* All children have their pages: copy, stamp, hash. */
static struct pgs_ptr seal(struct finish *f, struct pgs__node *image)
{
    image->birth = f->birth;
    pgs__node_tighten(image);
    pgs_assert(pgs__node_validate(image) == 0);
    void *page = f->buf + f->n * PGS_PAGE_SIZE;
    memcpy(page, image, sizeof *image);
    struct pgs_ptr ptr = {f->pages[f->n].n, f->birth, pgs__hash_page(page)};
    PGS_BUG_ON(ptr.page == 0 || ptr.page >= PGS__NODE_PAGE_LIMIT);
    pgs__page_mark_verified(f->pf, &ptr); /* keyed by hash: only exactly these bytes will pass */
    f->n++;
    return ptr;
}

/* Number of the next dirty child at or after i; n if there is none. */
static unsigned next_dirty(const struct pgs__node *nd, unsigned i)
{
    if (nd->level == 0) return nd->n;
    for (; i < nd->n; i++) {
        struct pgs_ptr child = pgs__node_child(nd, i);
        if (pgs__ptr_is_dirty(&child)) break;
    }
    return i;
}

/* Post-order over the dirty nodes: a parent is sealed when it names the pages of all its children. */
static struct pgs_ptr seal_all(struct pgs__edit *e, struct finish *f)
{
    struct {
        struct pgs__node *node;
        unsigned index;
    } stack[PGS__TREE_MAX_DEPTH];
    int depth = 0;
    stack[depth].node = pgs__edit_image(e, &e->root);
    stack[depth++].index = 0;
    for (;;) {
        struct pgs__node *nd = stack[depth - 1].node;
        unsigned i = stack[depth - 1].index = next_dirty(nd, stack[depth - 1].index);
        if (i < nd->n) {
            struct pgs_ptr child = pgs__node_child(nd, i);
            PGS_BUG_ON(depth == PGS__TREE_MAX_DEPTH);
            stack[depth].node = pgs__edit_image(e, &child);
            stack[depth++].index = 0;
            continue;
        }
        struct pgs_ptr ptr = seal(f, nd);
        if (--depth == 0) return ptr;
        pgs__node_set_child(stack[depth - 1].node, stack[depth - 1].index, &ptr);
    }
}

int pgs__edit_finish(struct pgs__edit *e, pgs_gen_t birth, const struct pgs_pgno *pages, void *buf,
                     struct pgs_ptr *new_root, struct pgs_error *err)
{
    int rc = usable(e, err);
    if (rc) return rc;
    struct finish f = {e->pf, birth, pages, buf, 0};
    if (pgs__ptr_is_dirty(&e->root)) e->root = seal_all(e, &f);
    PGS_BUG_ON(f.n != e->n_dirty);
    *new_root = e->root;
    e->spent = true;
    return 0;
}
