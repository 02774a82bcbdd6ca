/* Pagestone | tests/unit/test_tree — trees against a sorted array, and what each operation may cost.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/inject.h"
#include "tests/unit/tree_fixture.h"

/* --- the model: a sorted array ------------------------------------------------------------------------------------------- */

struct pair {
    uint8_t *key, *val;
    size_t key_len, val_len;
};
struct model {
    struct pair *at;
    size_t n, cap;
};

static struct pgs_span key_of(const struct pair *p)
{
    return (struct pgs_span){p->key, p->key_len};
}
static size_t model_find(const struct model *m, struct pgs_span key, bool *found)
{
    size_t lo = 0, hi = m->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (pgs__key_cmp(key_of(&m->at[mid]), key) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *found = lo < m->n && pgs__key_cmp(key_of(&m->at[lo]), key) == 0;
    return lo;
}
static uint8_t *dup_bytes(const void *p, size_t n)
{
    uint8_t *q = malloc(n + 1);
    if (n) memcpy(q, p, n);
    return q;
}
static void model_put(struct model *m, struct pgs_span key, struct pgs_span val)
{
    bool found;
    size_t i = model_find(m, key, &found);
    if (!found) {
        if (m->n == m->cap) m->at = realloc(m->at, (m->cap = m->cap * 2 + 64) * sizeof *m->at);
        memmove(m->at + i + 1, m->at + i, (m->n - i) * sizeof *m->at);
        m->at[i] = (struct pair){dup_bytes(key.p, key.len), NULL, key.len, 0};
        m->n++;
    }
    free(m->at[i].val);
    m->at[i].val = dup_bytes(val.p, val.len);
    m->at[i].val_len = val.len;
}
static bool model_del(struct model *m, struct pgs_span key)
{
    bool found;
    size_t i = model_find(m, key, &found);
    if (!found) return false;
    free(m->at[i].key);
    free(m->at[i].val);
    memmove(m->at + i, m->at + i + 1, (m->n - i - 1) * sizeof *m->at);
    m->n--;
    return true;
}
static void model_free(struct model *m)
{
    for (size_t i = 0; i < m->n; i++) free(m->at[i].key), free(m->at[i].val);
    free(m->at);
    *m = (struct model){0};
}
static struct model model_copy(const struct model *m)
{
    struct model c = {malloc((m->n + 1) * sizeof *m->at), m->n, m->n + 1};
    for (size_t i = 0; i < m->n; i++)
        c.at[i] = (struct pair){dup_bytes(m->at[i].key, m->at[i].key_len), dup_bytes(m->at[i].val, m->at[i].val_len),
                                m->at[i].key_len, m->at[i].val_len};
    return c;
}

static void check_entry(const struct pgs__cursor *c, const struct pair *p)
{
    struct pgs_span key, val;
    pgs__cursor_entry(c, &key, &val);
    CHECK(pgs__span_eq(key, key_of(p)));
    CHECK(pgs__span_eq(val, (struct pgs_span){p->val, p->val_len}));
}

/* Every entry forwards, every entry backwards. */
static void check_same(const struct pgs__tree *t, const struct model *m)
{
    struct pgs__cursor c;
    size_t i = 0;
    int rc = pgs__cursor_seek(&c, t, PGS__SEEK_FIRST, NULL, 0, &err);
    for (; rc == 0; rc = pgs__cursor_next(&c, &err), i++) {
        CHECK(i < m->n);
        check_entry(&c, &m->at[i]);
    }
    CHECK_EQ(rc, -PGS_ENOENT);
    CHECK_EQ(c.depth, 0);
    CHECK_EQ(i, m->n);
    rc = pgs__cursor_seek(&c, t, PGS__SEEK_LAST, NULL, 0, &err);
    for (; rc == 0; rc = pgs__cursor_prev(&c, &err)) {
        CHECK(i > 0);
        check_entry(&c, &m->at[--i]);
    }
    CHECK_EQ(rc, -PGS_ENOENT);
    CHECK_EQ(i, 0);
}

static void check_seek(const struct pgs__tree *t, const struct model *m, struct pgs_span key)
{
    bool found;
    size_t i = model_find(m, key, &found), after = i + found;
    size_t want[] = {i, after, found ? i : i - 1, i - 1}; /* SIZE_MAX: none */
    for (int how = PGS__SEEK_GE; how <= PGS__SEEK_LT; how++) {
        struct pgs__cursor c;
        int rc = pgs__cursor_seek(&c, t, (enum pgs__seek)how, key.p, key.len, &err);
        if (want[how] >= m->n) {
            CHECK_EQ(rc, -PGS_ENOENT);
            CHECK_EQ(c.depth, 0);
            continue;
        }
        CHECK_OK(rc);
        check_entry(&c, &m->at[want[how]]);
        if (rnd() & 1) {
            rc = pgs__cursor_next(&c, &err);
            CHECK_EQ(rc, want[how] + 1 < m->n ? 0 : -PGS_ENOENT);
            if (rc == 0) check_entry(&c, &m->at[want[how] + 1]);
        } else {
            rc = pgs__cursor_prev(&c, &err);
            CHECK_EQ(rc, want[how] > 0 ? 0 : -PGS_ENOENT);
            if (rc == 0) check_entry(&c, &m->at[want[how] - 1]);
        }
    }
    struct pgs_span val;
    int rc = pgs__tree_get(t, key.p, key.len, &val, &err);
    CHECK_EQ(rc, found ? 0 : -PGS_ENOENT);
    if (found) CHECK(pgs__span_eq(val, (struct pgs_span){m->at[i].val, m->at[i].val_len}));
}

/* --- differences against the models ---------------------------------------------------------------------------------------- */

struct expect {
    const struct model *a, *b;
    size_t i, j;
};
/* The next difference of the two models. */
static bool expect_next(struct expect *x, struct pgs_span *key, const struct pair **pa, const struct pair **pb)
{
    while (x->i < x->a->n || x->j < x->b->n) {
        int c = x->i == x->a->n   ? 1
                : x->j == x->b->n ? -1
                                  : pgs__key_cmp(key_of(&x->a->at[x->i]), key_of(&x->b->at[x->j]));
        *pa = c <= 0 ? &x->a->at[x->i++] : NULL;
        *pb = c >= 0 ? &x->b->at[x->j++] : NULL;
        *key = key_of(*pa ? *pa : *pb);
        if (c || (*pa)->val_len != (*pb)->val_len || memcmp((*pa)->val, (*pb)->val, (*pa)->val_len)) return true;
    }
    return false;
}
static int on_diff(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b)
{
    struct pgs_span want;
    const struct pair *pa, *pb;
    CHECK(expect_next(ctx, &want, &pa, &pb));
    CHECK(pgs__span_eq(key, want));
    CHECK_EQ(a.p != NULL, pa != NULL);
    CHECK_EQ(b.p != NULL, pb != NULL);
    if (pa) CHECK(pgs__span_eq(a, (struct pgs_span){pa->val, pa->val_len}));
    if (pb) CHECK(pgs__span_eq(b, (struct pgs_span){pb->val, pb->val_len}));
    return 0;
}
static void check_diff(const struct pgs__tree *a, const struct model *ma, const struct pgs__tree *b,
                       const struct model *mb)
{
    struct expect x = {ma, mb, 0, 0};
    struct pgs_span key;
    const struct pair *pa, *pb;
    CHECK_OK(pgs__tree_diff(a, b, on_diff, &x, &err));
    CHECK(!expect_next(&x, &key, &pa, &pb));
}

/* --- reachable pages ---------------------------------------------------------------------------------------------------------- */

struct reach {
    uint8_t *map;
    uint64_t n;
};
static int on_node(void *ctx, const struct pgs_ptr *node, int level)
{
    struct reach *r = ctx;
    (void)level;
    CHECK(!r->map[node->page]);
    r->map[node->page] = 1;
    r->n++;
    return 0;
}
static struct reach reach_of(struct world *w, struct pgs_ptr root, uint64_t n_pages)
{
    struct reach r = {calloc(n_pages, 1), 0};
    struct pgs__tree t = tree_at(w, root);
    CHECK_OK(pgs__tree_walk(&t, on_node, NULL, &r, &err));
    return r;
}

/* Old minus new is dead, new minus old is what was written: both exactly. */
static void check_dead(struct world *w, struct pgs_ptr old, struct pgs_ptr new, const struct pgs__edit *e,
                       uint64_t n_written)
{
    struct reach a = reach_of(w, old, w->next_page), b = reach_of(w, new, w->next_page);
    size_t n_dead, n_both = 0;
    const struct pgs_ptr *dead = pgs__edit_dead(e, &n_dead);
    for (uint64_t p = 0; p < w->next_page; p++) n_both += a.map[p] && b.map[p];
    CHECK_EQ(n_dead, a.n - n_both);
    CHECK_EQ(n_written, b.n - n_both);
    for (size_t i = 0; i < n_dead; i++) {
        CHECK(a.map[dead[i].page] && !b.map[dead[i].page]);
        a.map[dead[i].page] = 0; /* none twice */
    }
    free(a.map);
    free(b.map);
}

/* --- the model test -------------------------------------------------------------------------------------------------------------- */

struct profile {
    size_t key_max, val_max; /* bytes */
    size_t universe;         /* different keys */
    enum { BYTES, NAMES, LONG_PREFIX, CLUSTERS } style;
    int n_ops;
};

static struct pgs_span make_key(const struct profile *p, uint8_t buf[PGS__TREE_MAX_KEY], size_t id)
{
    uint64_t h = pgs__mix(id * 77 + 5);
    if (p->style ==
        LONG_PREFIX) { /* neighbours differ at their ends only: separators of every length up to the limit */
        size_t len = h % 3 == 0 ? p->key_max : 9 + h % (p->key_max - 8);
        memset(buf, 'a' + (int)(id % 3), len);
        pgs__put_be64(buf + len - 8, h);
        return (struct pgs_span){buf, len};
    }
    if (p->style ==
        CLUSTERS) { /* long separators inside a cluster, short ones between them: replacing one fills or empties a parent */
        memset(buf, 'x', p->key_max);
        pgs__put_be64(buf, pgs__mix(id / 5));
        buf[p->key_max - 1] = (uint8_t)(id % 5);
        return (struct pgs_span){buf, p->key_max - (h & 1 ? 0 : id / 5 % 2 * 200)};
    }
    if (p->style == NAMES) {
        int n = snprintf((char *)buf, PGS__TREE_MAX_KEY, "experiment/%zu/run/%zu/%s", id % 7, id / 7,
                         h & 1 ? "weights" : "w");
        return (struct pgs_span){buf, (size_t)n};
    }
    size_t len = (size_t)(h % (p->key_max + 1));
    if (len < 8 && p->key_max >= 8) len += 8;
    for (size_t i = 0; i < len; i++) buf[i] = (uint8_t)(pgs__mix(h + i) % (i < 2 ? 3 : 256));
    return (struct pgs_span){buf, len};
}
static struct pgs_span make_val(const struct profile *p, struct pgs_span key, uint8_t buf[PGS__TREE_MAX_CELL])
{
    size_t max = p->val_max < PGS__TREE_MAX_CELL - key.len ? p->val_max : PGS__TREE_MAX_CELL - key.len;
    size_t len = rnd() % 8 ? rnd_below(max + 1) / (1 + rnd_below(8)) : max;
    uint8_t fill = (uint8_t)rnd();
    for (size_t i = 0; i < len; i++) buf[i] = (uint8_t)(fill + i);
    return (struct pgs_span){buf, len};
}

struct history {
    struct pgs_ptr root[4];
    struct model model[4];
};

static void one_op(const struct profile *p, struct pgs__edit *e, struct model *m, unsigned del_percent,
                   const struct pgs__tree *t)
{
    uint8_t key_buf[PGS__TREE_MAX_KEY], val_buf[PGS__TREE_MAX_CELL];
    struct pgs_span key = make_key(p, key_buf, rnd_below(p->universe));
    if (m->n && rnd() % 4 == 0) {
        struct pair *hit = &m->at[rnd_below(m->n)];
        memcpy(key_buf, hit->key, hit->key_len);
        key = (struct pgs_span){key_buf, hit->key_len};
    }
    if (rnd() % 100 < del_percent) {
        bool had = model_del(m, key);
        CHECK_EQ(pgs__edit_del(e, key.p, key.len, &err), had ? 0 : -PGS_ENOENT);
    } else {
        struct pgs_span val = make_val(p, key, val_buf);
        model_put(m, key, val);
        CHECK_OK(pgs__edit_put(e, key.p, key.len, val.p, val.len, &err));
    }
    if (rnd() % 16 == 0) check_seek(t, m, make_key(p, key_buf, rnd_below(p->universe)));
}

static void check_commit(struct world *w, struct history *h, struct pgs__edit *e, struct model *m, int step)
{
    struct pgs__tree t = tree_of(w, e), old = tree_at(w, h->root[0]);
    check_same(&t, m);
    CHECK_OK(pgs__tree_check(&t, &err));
    check_diff(&old, &h->model[0], &t, m);
    uint64_t n_dirty = pgs__edit_n_dirty(e);
    struct pgs_ptr root = commit_keep(w, e);
    t = tree_at(w, root);
    CHECK_OK(pgs__tree_check(&t, &err));
    check_same(&t, m);
    check_dead(w, h->root[0], root, e, n_dirty);
    pgs__edit_free(e);
    for (int i = 0; i < 4; i++) { /* older ones are still what they were, and differ by what they differ */
        old = tree_at(w, h->root[i]);
        check_same(&old, &h->model[i]);
        check_diff(&old, &h->model[i], &t, m);
        check_diff(&t, m, &old, &h->model[i]);
    }
    int slot = step % 4 ? 0 : 1 + step / 4 % 3;
    if (slot) {
        model_free(&h->model[slot]);
        h->model[slot] = model_copy(m);
        h->root[slot] = root;
    }
    model_free(&h->model[0]);
    h->model[0] = model_copy(m);
    h->root[0] = root;
}

static void run_model(const struct profile *p, uint64_t seed)
{
    struct world w;
    struct history h = {0};
    struct model m = {0};
    const char *shift = getenv("TEST_SEED"); /* other runs of the same test */
    rng_state = seed + (shift ? 1000 * strtoull(shift, NULL, 10) : 0);
    world_open(&w);
    for (int done = 0, step = 0; done < p->n_ops; step++) {
        struct pgs__edit *e = edit_at(&w, h.root[0]);
        struct pgs__tree t = tree_of(&w, e);
        int n = 1 + (int)rnd_below((size_t)p->n_ops / 12);
        unsigned dels = done < p->n_ops / 2 ? 25 : 70;
        for (int i = 0; i < n; i++) one_op(p, e, &m, dels, &t);
        check_commit(&w, &h, e, &m, step);
        done += n;
    }
    struct pgs__edit *e = edit_at(&w, h.root[0]); /* at last: empty it */
    while (m.n) {
        struct pair *x = &m.at[rnd_below(m.n)];
        CHECK_OK(pgs__edit_del(e, x->key, x->key_len, &err));
        model_del(&m, key_of(x));
    }
    CHECK_EQ(pgs__edit_n_dirty(e), 0);
    check_commit(&w, &h, e, &m, 1);
    CHECK_EQ(h.root[0].page, 0);
    for (int i = 0; i < 4; i++) model_free(&h.model[i]);
    model_free(&m);
    world_close(&w);
}

TEST(random_operations_agree_with_a_sorted_array_for_short_keys)
{
    struct profile p = {12, 40, 6000, BYTES, 20000};
    run_model(&p, 1);
    run_model(&p, 2);
}
TEST(random_operations_agree_with_a_sorted_array_for_names)
{
    struct profile p = {0, 100, 5000, NAMES, 16000};
    run_model(&p, 3);
    run_model(&p, 4);
}
TEST(random_operations_agree_with_a_sorted_array_for_the_longest_keys_and_values)
{
    struct profile p = {PGS__TREE_MAX_KEY, PGS__TREE_MAX_CELL, 900, BYTES, 4000};
    run_model(&p, 5);
    run_model(&p, 6);
    run_model(&p, 7);
}
TEST(random_operations_agree_with_a_sorted_array_for_long_separators)
{
    struct profile p = {PGS__TREE_MAX_KEY, 300, 700, LONG_PREFIX, 5000};
    run_model(&p, 10);
    run_model(&p, 11);
    struct profile clusters = {800, 900, 800, CLUSTERS, 6000};
    run_model(&clusters, 13);
    run_model(&clusters, 14);
    struct profile mixed = {400, 1500, 1500, LONG_PREFIX, 6000};
    run_model(&mixed, 12);
}
TEST(random_operations_agree_with_a_sorted_array_for_keys_of_every_length)
{
    struct profile p = {300, 8, 2500, BYTES, 9000};
    run_model(&p, 8);
    struct profile tiny = {2, 0, 400, BYTES, 6000};
    run_model(&tiny, 9);
}

/* --- one node ----------------------------------------------------------------------------------------------------------------- */

static void some_leaf(struct pgs__node *nd)
{
    struct pgs__item items[3] = {{{"aaa1", 4}, {"x", 1}}, {{"aaa22", 5}, {"yy", 2}}, {{"aab", 3}, {"", 0}}};
    pgs__node_build(nd, PGS__TREE_TEST, 0, items, 3);
}
static void some_inner(struct pgs__node *nd, struct pgs_ptr *child)
{
    *child = (struct pgs_ptr){7, 8, 9};
    struct pgs__item items[3] = {{{"", 0}, {child, 24}}, {{"k", 1}, {child, 24}}, {{"l", 1}, {child, 24}}};
    pgs__node_build(nd, PGS__TREE_TEST, 1, items, 3);
}
static void put_u16_at(struct pgs__node *nd, unsigned off, unsigned v)
{
    uint16_t x = (uint16_t)v;
    memcpy((uint8_t *)nd + off, &x, 2);
}
#define CHECK_REFUSED(some_, change_)                                                                                  \
    do {                                                                                                               \
        some_;                                                                                                         \
        CHECK_EQ(pgs__node_validate(&nd), 0);                                                                          \
        change_;                                                                                                       \
        if (pgs__node_validate(&nd) == 0) TEST_FAIL("accepted: %s", #change_);                                         \
    } while (0)

TEST(a_malformed_node_is_refused)
{
    static struct pgs__node nd;
    struct pgs_ptr child;
    CHECK_REFUSED(some_leaf(&nd), nd.magic ^= 1);
    CHECK_REFUSED(some_leaf(&nd), nd.zero = 1);
    CHECK_REFUSED(some_leaf(&nd), nd.level = PGS__TREE_MAX_DEPTH);
    CHECK_REFUSED(some_leaf(&nd), nd.level = 1);
    CHECK_REFUSED(some_leaf(&nd), nd.n = 0);
    CHECK_REFUSED(some_leaf(&nd), nd.n = 2);
    CHECK_REFUSED(some_leaf(&nd), nd.n = 4);
    CHECK_REFUSED(some_leaf(&nd), nd.n = UINT16_MAX);
    CHECK_REFUSED(some_leaf(&nd), nd.low--);
    CHECK_REFUSED(some_leaf(&nd), nd.low++);
    CHECK_REFUSED(some_leaf(&nd), nd.low = 0);
    CHECK_REFUSED(some_leaf(&nd), nd.low = UINT16_MAX);
    CHECK_REFUSED(some_leaf(&nd), nd.lcp = 1); /* right, but the heads are of another */
    CHECK_REFUSED(some_leaf(&nd), nd.lcp = 3);
    CHECK_REFUSED(some_leaf(&nd), nd.lcp = UINT16_MAX);
    CHECK_REFUSED(some_leaf(&nd), nd.slot[1].head++);
    CHECK_REFUSED(some_leaf(&nd), nd.slot[1].off = UINT16_MAX);
    CHECK_REFUSED(some_leaf(&nd), nd.slot[1].off = PGS__NODE_TAIL - 3);
    CHECK_REFUSED(some_leaf(&nd), nd.slot[1].off = 16);
    CHECK_REFUSED(some_leaf(&nd), nd.slot[1] = nd.slot[2]);
    CHECK_REFUSED(some_leaf(&nd), nd.slot[1] = nd.slot[0]);
    CHECK_REFUSED(some_leaf(&nd), put_u16_at(&nd, nd.slot[0].off, 5)); /* the first cell is the last in the page */
    CHECK_REFUSED(some_leaf(&nd), put_u16_at(&nd, nd.slot[0].off + 2u, 2));
    CHECK_REFUSED(some_leaf(&nd), put_u16_at(&nd, nd.slot[1].off, UINT16_MAX));
    CHECK_REFUSED(some_leaf(&nd), put_u16_at(&nd, nd.slot[1].off + 2u, UINT16_MAX));
    CHECK_REFUSED(some_inner(&nd, &child), (child.page = 0, pgs__node_set_child(&nd, 2, &child)));
    CHECK_REFUSED(some_inner(&nd, &child), (child.page = 1ull << 52, pgs__node_set_child(&nd, 0, &child)));
    CHECK_REFUSED(some_inner(&nd, &child), (child.page = PGS__DIRTY_BIT, pgs__node_set_child(&nd, 0, &child)));
    CHECK_REFUSED(some_inner(&nd, &child), (pgs__node_remove(&nd, 2), pgs__node_remove(&nd, 1)));
    CHECK_REFUSED(some_inner(&nd, &child), nd.level = 0);
    /* A cell that ends where the node ends, and one that would end behind it while the sum of all sizes is right. */
    struct pgs__item items[2] = {{{"a", 1}, {"xx", 2}}, {{"b", 1}, {"yyyy", 4}}};
    CHECK_REFUSED(pgs__node_build(&nd, PGS__TREE_TEST, 0, items, 2),
                  (put_u16_at(&nd, nd.slot[0].off + 2u, 3), put_u16_at(&nd, nd.slot[1].off + 2u, 3)));
}

/* Found by the fuzzer: sizes add up and every cell is in bounds, but two overlap, and the bytes between others belong to none. */
TEST(a_node_whose_cells_overlap_is_refused)
{
    static struct pgs__node nd;
    uint8_t val[40] = {1, 0, 1, 0, 'b', 'x'}; /* itself a cell: key "b", value "x" */
    struct pgs__item items[3] = {{{"a", 1}, {val, 40}}, {{"b", 1}, {"y", 1}}, {{"c", 1}, {"z", 1}}};
    CHECK_REFUSED(pgs__node_build(&nd, PGS__TREE_TEST, 0, items, 3),
                  nd.slot[1].off = (uint16_t)(nd.slot[0].off + PGS__LEAF_CELL_HEAD + 1));
}

TEST(keys_of_the_highest_bytes_are_found)
{
    struct pgs__node nd;
    uint8_t keys[24][24];
    struct pgs__item items[24];
    for (unsigned i = 0; i < 24; i++) {
        memset(keys[i], 0xff, sizeof keys[i]);
        items[i] = (struct pgs__item){{keys[i], i}, {"", 0}};
    }
    keys[23][0] = 0x7f; /* so that the others share nothing with the first */
    struct pgs__item first = items[23];
    memmove(items + 1, items, 23 * sizeof items[0]);
    items[0] = items[1];
    items[1] = first;
    pgs__node_build(&nd, PGS__TREE_TEST, 0, items, 24);
    CHECK_EQ(pgs__node_validate(&nd), 0);
    for (unsigned i = 0; i < 24; i++) {
        bool found;
        CHECK_EQ(pgs__node_search(&nd, items[i].key.p, items[i].key.len, &found), i);
        CHECK(found);
    }
    bool found;
    memset(keys[0], 0xff, 24);
    CHECK_EQ(pgs__node_search(&nd, keys[0], 24, &found), 24);
    CHECK(!found);
}

/* --- single promises --------------------------------------------------------------------------------------------------------------- */

static struct pgs_ptr build_numbered(struct world *w, size_t n, bool ascending)
{
    struct pgs__edit *e = edit_at(w, (struct pgs_ptr){0});
    char key[24];
    for (size_t i = 0; i < n; i++) {
        uint64_t id = ascending ? i : pgs__mix(i);
        int len = snprintf(key, sizeof key, "%020llu", (unsigned long long)id);
        CHECK_OK(pgs__edit_put(e, key, (size_t)len, &id, sizeof id, &err));
    }
    return commit(w, e);
}

TEST(an_empty_tree_has_no_entries)
{
    struct world w;
    world_open(&w);
    struct pgs__tree t = tree_at(&w, (struct pgs_ptr){0});
    struct pgs__cursor c;
    struct pgs_span val;
    for (int how = PGS__SEEK_GE; how <= PGS__SEEK_LAST; how++) {
        CHECK_ERR(pgs__cursor_seek(&c, &t, (enum pgs__seek)how, "k", 1, &err), PGS_ENOENT);
        CHECK_EQ(c.depth, 0);
        CHECK_ERR(pgs__cursor_next(&c, &err), PGS_ENOENT);
        CHECK_ERR(pgs__cursor_prev(&c, &err), PGS_ENOENT);
    }
    CHECK_ERR(pgs__tree_get(&t, "k", 1, &val, &err), PGS_ENOENT);
    CHECK_OK(pgs__tree_check(&t, &err));
    struct pgs__edit *e = edit_at(&w, t.root);
    CHECK_ERR(pgs__edit_del(e, "k", 1, &err), PGS_ENOENT);
    CHECK(pgs__edit_is_clean(e));
    CHECK_EQ(commit(&w, e).page, 0);
    CHECK_EQ(err.code, 0);
    world_close(&w);
}

TEST(keys_and_cells_up_to_the_limits_and_empty_ones_are_kept)
{
    struct world w;
    world_open(&w);
    static uint8_t bytes[PGS__TREE_MAX_CELL + 1];
    struct pgs__edit *e = edit_at(&w, (struct pgs_ptr){0});
    CHECK_ERR(pgs__edit_put(e, bytes, PGS__TREE_MAX_KEY + 1, "", 0, NULL), PGS_E2BIG);
    CHECK_ERR(pgs__edit_put(e, bytes, 1, bytes, PGS__TREE_MAX_CELL, NULL), PGS_E2BIG);
    CHECK_ERR(pgs__edit_put(e, bytes, 1, bytes, SIZE_MAX, NULL), PGS_E2BIG);
    CHECK(pgs__edit_is_clean(e));
    CHECK_OK(pgs__edit_put(e, NULL, 0, NULL, 0, &err));
    CHECK_OK(pgs__edit_put(e, bytes, PGS__TREE_MAX_KEY, bytes, PGS__TREE_MAX_CELL - PGS__TREE_MAX_KEY, &err));
    CHECK_OK(pgs__edit_put(e, "\1", 1, bytes, PGS__TREE_MAX_CELL - 1, &err));
    struct pgs__tree t = tree_at(&w, commit(&w, e));
    CHECK_OK(pgs__tree_check(&t, &err));
    struct pgs_span val;
    CHECK_OK(pgs__tree_get(&t, NULL, 0, &val, &err));
    CHECK(val.len == 0 && val.p != NULL);
    CHECK_OK(pgs__tree_get(&t, bytes, PGS__TREE_MAX_KEY, &val, &err));
    CHECK_EQ(val.len, PGS__TREE_MAX_CELL - PGS__TREE_MAX_KEY);
    CHECK_OK(pgs__tree_get(&t, "\1", 1, &val, &err));
    CHECK_EQ(val.len, PGS__TREE_MAX_CELL - 1);
    world_close(&w);
}

TEST(putting_what_is_there_copies_nothing)
{
    struct world w;
    world_open(&w);
    struct pgs_ptr root = build_numbered(&w, 20000, true);
    struct pgs__edit *e = edit_at(&w, root);
    uint64_t id = 777;
    CHECK_OK(pgs__edit_put(e, "00000000000000000777", 20, &id, sizeof id, &err));
    CHECK(pgs__edit_is_clean(e));
    CHECK_EQ(pgs__edit_n_dirty(e), 0);
    CHECK_ERR(pgs__edit_del(e, "nothing", 7, &err), PGS_ENOENT);
    CHECK(pgs__edit_is_clean(e));
    id = 778; /* another value: the path and nothing else */
    CHECK_OK(pgs__edit_put(e, "00000000000000000777", 20, &id, sizeof id, &err));
    CHECK(!pgs__edit_is_clean(e));
    CHECK_EQ(pgs__edit_n_dirty(e), 3);
    struct pgs_ptr same = root;
    struct pgs__edit *clean = edit_at(&w, root);
    CHECK(pgs__ptr_eq(&same, &root));
    struct pgs_ptr again = commit(&w, clean);
    CHECK(pgs__ptr_eq(&again, &root));
    pgs__edit_free(e);
    world_close(&w);
}

struct fill {
    struct world *w;
    uint64_t n_leaves, n_full, n_inner, n_inner_full;
};
static int on_fill(void *ctx, const struct pgs_ptr *node, int level)
{
    struct fill *f = ctx;
    const struct pgs__node *nd = pgs__page(&f->w->pf, (struct pgs_pgno){node->page});
    if (level) {
        f->n_inner++;
        f->n_inner_full += PGS__NODE_CAP - pgs__node_used(nd) < 2 * 52;
    } else {
        f->n_leaves++;
        f->n_full += PGS__NODE_CAP - pgs__node_used(nd) < 38;
    }
    return 0;
}
TEST(ascending_puts_fill_nodes_completely)
{
    struct world w;
    world_open(&w);
    struct pgs__tree t = tree_at(&w, build_numbered(&w, 50000, true));
    struct fill f = {.w = &w};
    CHECK_OK(pgs__tree_check(&t, &err));
    CHECK_OK(pgs__tree_walk(&t, on_fill, NULL, &f, &err));
    CHECK_EQ(f.n_leaves, (50000 + 106) / 107); /* 107 entries of 6 + 4 + 20 + 8 bytes fit into 4,072 */
    CHECK(f.n_full >= f.n_leaves - 1);
    CHECK(f.n_inner_full >= f.n_inner - 2);
    world_close(&w);
}
TEST(ascending_puts_fill_nodes_also_over_many_commits)
{
    struct world w;
    world_open(&w);
    struct pgs_ptr root = {0};
    for (unsigned i = 0; i < 3000; i++) {
        char key[24];
        int len = snprintf(key, sizeof key, "%020u", i);
        struct pgs__edit *e = edit_at(&w, root);
        CHECK_OK(pgs__edit_put(e, key, (size_t)len, "12345678", 8, &err));
        CHECK(pgs__edit_n_dirty(e) <= 4);
        root = commit(&w, e);
    }
    struct pgs__tree t = tree_at(&w, root);
    struct fill f = {.w = &w};
    CHECK_OK(pgs__tree_walk(&t, on_fill, NULL, &f, &err));
    CHECK_EQ(f.n_leaves, (3000 + 106) / 107);
    world_close(&w);
}

TEST(separators_are_as_short_as_they_can_be)
{
    struct world w;
    world_open(&w);
    struct pgs__edit *e = edit_at(&w, (struct pgs_ptr){0});
    for (unsigned i = 0; i < 2000; i++) {
        char key[300];
        memset(key, 'x', sizeof key);
        pgs__put_be64(key, pgs__mix(i));
        CHECK_OK(pgs__edit_put(e, key, sizeof key, "", 0, &err));
    }
    struct pgs__tree t = tree_at(&w, commit(&w, e));
    const struct pgs__node *nd;
    CHECK_OK(pgs__tree_check(&t, &err));
    CHECK_OK(pgs__node_load(&t, &t.root, -1, &nd, &err));
    CHECK(nd->level >= 1);
    for (unsigned i = 1; i < nd->n; i++) CHECK(pgs__node_key(nd, i).len <= 3);
    world_close(&w);
}

TEST(a_value_read_from_an_edit_can_be_put_into_it)
{
    struct world w;
    world_open(&w);
    struct pgs__edit *e = edit_at(&w, (struct pgs_ptr){0});
    struct pgs__tree t = tree_of(&w, e);
    uint8_t big[900];
    for (unsigned i = 0; i < sizeof big; i++) big[i] = (uint8_t)i;
    CHECK_OK(pgs__edit_put(e, "m", 1, big, sizeof big, &err));
    for (unsigned i = 0; i < 40; i++) {
        char key = (char)('A' + i);
        struct pgs_span val;
        CHECK_OK(pgs__tree_get(&t, "m", 1, &val, &err));
        CHECK_OK(pgs__edit_put(e, &key, 1, val.p, val.len, &err));
        CHECK_OK(pgs__tree_get(&t, &key, 1, &val, &err));
        CHECK(pgs__span_eq(val, (struct pgs_span){big, sizeof big}));
    }
    CHECK_OK(pgs__tree_check(&t, &err));
    pgs__edit_free(e);
    world_close(&w);
}

TEST(a_tree_of_another_kind_is_damage)
{
    struct world w;
    world_open(&w);
    struct pgs__tree t = tree_at(&w, build_numbered(&w, 10, true));
    struct pgs_span val;
    t.kind = PGS__TREE_META;
    CHECK_ERR(pgs__tree_get(&t, "x", 1, &val, &err), PGS_ECORRUPT);
    world_close(&w);
}

TEST(a_change_that_got_no_memory_left_the_edit_as_it_was)
{
    struct world w;
    world_open(&w);
    struct pgs_ptr root = build_numbered(&w, 3000, false);
    struct pgs__tree t = tree_at(&w, root);
    unsigned n_failed = 0;
    for (uint64_t nth = 1; nth < 400; nth += 1 + nth / 8) {
        struct pgs__edit *e = edit_at(&w, root);
        struct pgs__tree te = tree_of(&w, e);
        char key[1000] = "0000";
        pgs__inject_fail(PGS__FAIL_MEM, nth, 12, false);
        for (unsigned i = 0; i < 40; i++) {
            struct pgs_span val;
            memset(key + 4, 'a' + (int)(i % 26), sizeof key - 4);
            int rc = pgs__edit_put(e, key, sizeof key - i, key, 500, NULL);
            if (rc == 0) continue;
            CHECK_EQ(rc, -PGS_ENOMEM);
            n_failed++;
            CHECK_OK(pgs__tree_check(&te, &err));
            CHECK_ERR(pgs__tree_get(&te, key, sizeof key - i, &val, &err), PGS_ENOENT);
            CHECK_OK(pgs__edit_put(e, key, sizeof key - i, key, 500, &err)); /* the next try succeeds */
        }
        for (unsigned i = 0; i < 600; i++) {
            int len = snprintf(key, sizeof key, "%020llu", (unsigned long long)pgs__mix(i));
            int rc = pgs__edit_del(e, key, (size_t)len, NULL);
            if (rc == 0) continue;
            CHECK_EQ(rc, -PGS_ENOMEM);
            n_failed++;
            CHECK_OK(pgs__edit_del(e, key, (size_t)len, &err));
        }
        pgs__inject_clear();
        CHECK_OK(pgs__tree_check(&te, &err));
        pgs__edit_free(e);
    }
    CHECK(n_failed > 10);
    CHECK_OK(pgs__tree_check(&t, &err));
    world_close(&w);
}

/* --- cost ---------------------------------------------------------------------------------------------------------------------------------- */

static int count_diff(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b)
{
    (void)key, (void)a, (void)b;
    ++*(unsigned *)ctx;
    return 0;
}

TEST(a_lookup_visits_one_node_per_level)
{
    struct world w;
    world_open(&w);
    struct pgs__tree t = tree_at(&w, build_numbered(&w, 20000, true));
    struct pgs_span val;
    uint64_t before = pgs__tree_n_visits();
    CHECK_OK(pgs__tree_get(&t, "00000000000000012345", 20, &val, &err));
    CHECK_EQ(pgs__tree_n_visits() - before, 3);
    world_close(&w);
}

TEST(a_diff_reads_only_what_changed)
{
    struct world w;
    world_open(&w);
    struct pgs_ptr root = build_numbered(&w, 60000, false);
    struct pgs__tree a = tree_at(&w, root), b = a;
    unsigned n = 0;
    uint64_t before = pgs__tree_n_visits();
    CHECK_OK(pgs__tree_diff(&a, &b, count_diff, &n, &err));
    CHECK_EQ(pgs__tree_n_visits() - before, 0);
    rng_state = 11;
    for (unsigned round = 0; round < 60; round++) {
        struct pgs__edit *e = edit_at(&w, root);
        unsigned n_ops = 1 + round % 30, n_changes = 0;
        for (unsigned i = 0; i < n_ops; i++) { /* replace, insert enough to split, delete enough to merge */
            char key[24];
            uint64_t id = pgs__mix(round % 3 == 2 ? rnd_below(300) : rnd_below(60000)) + (round % 3 == 1 ? i : 0);
            int len = snprintf(key, sizeof key, "%020llu", (unsigned long long)id);
            if (round % 3 == 2)
                n_changes += pgs__edit_del(e, key, (size_t)len, &err) == 0;
            else
                CHECK_OK(pgs__edit_put(e, key, (size_t)len, &round, sizeof round, &err));
        }
        uint64_t n_dirty = pgs__edit_n_dirty(e);
        size_t n_dead;
        b = tree_at(&w, commit_keep(&w, e));
        pgs__edit_dead(e, &n_dead);
        pgs__edit_free(e);
        before = pgs__tree_n_visits();
        n = 0;
        CHECK_OK(pgs__tree_diff(&a, &b, count_diff, &n, &err));
        uint64_t visits = pgs__tree_n_visits() - before;
        if (round % 3 == 2) CHECK_EQ(n, n_changes);
        if (visits > n_dirty + n_dead + 2 * n + 4)
            TEST_FAIL("round %u: %llu visits for %llu written and %zu dead nodes", round, (unsigned long long)visits,
                      (unsigned long long)n_dirty, n_dead);
    }
    world_close(&w);
}

TEST(a_diff_steps_back_where_a_vanished_node_moved_a_separator)
{
    struct world w;
    world_open(&w);
    struct pgs__edit *e = edit_at(&w, (struct pgs_ptr){0});
    static const uint8_t val[1500];
    char key[24];
    for (unsigned i = 0; i < 300; i++) /* two to a leaf, three levels */
        CHECK_OK(pgs__edit_put(e, key, (size_t)snprintf(key, sizeof key, "%020u", i), val, sizeof val, &err));
    struct pgs__tree a = tree_at(&w, commit(&w, e));
    e = edit_at(&w, a.root); /* the first leaf goes: the second one's separator becomes the empty key */
    CHECK_OK(pgs__edit_del(e, "00000000000000000000", 20, &err));
    CHECK_OK(pgs__edit_del(e, "00000000000000000001", 20, &err));
    CHECK_EQ(pgs__edit_n_dirty(e), 2);
    struct pgs__tree b = tree_at(&w, commit(&w, e));
    for (int turn = 0; turn < 2; turn++) {
        unsigned n = 0;
        uint64_t before = pgs__tree_n_visits();
        CHECK_OK(turn ? pgs__tree_diff(&b, &a, count_diff, &n, &err) : pgs__tree_diff(&a, &b, count_diff, &n, &err));
        CHECK_EQ(n, 2);
        CHECK_EQ(pgs__tree_n_visits() - before, 2 + 3 + 1 + 2); /* written, dead, one neighbour; roots twice */
    }
    world_close(&w);
}

TEST(a_diff_of_trees_with_different_depth_is_right)
{
    struct world w;
    world_open(&w);
    struct pgs_ptr big = build_numbered(&w, 30000, true);
    struct pgs__edit *e = edit_at(&w, big);
    for (unsigned i = 40; i < 30000; i++) {
        char key[24];
        CHECK_OK(pgs__edit_del(e, key, (size_t)snprintf(key, sizeof key, "%020u", i), &err));
    }
    struct pgs__tree a = tree_at(&w, big), b = tree_at(&w, commit(&w, e)), empty = tree_at(&w, (struct pgs_ptr){0});
    unsigned n = 0;
    CHECK_OK(pgs__tree_check(&b, &err));
    CHECK_OK(pgs__tree_diff(&a, &b, count_diff, &n, &err));
    CHECK_EQ(n, 29960);
    n = 0;
    CHECK_OK(pgs__tree_diff(&b, &a, count_diff, &n, &err));
    CHECK_EQ(n, 29960);
    n = 0;
    CHECK_OK(pgs__tree_diff(&empty, &b, count_diff, &n, &err));
    CHECK_EQ(n, 40);
    world_close(&w);
}

TEST(a_dump_names_the_entries)
{
    struct world w;
    world_open(&w);
    struct pgs__tree t = tree_at(&w, build_numbered(&w, 500, true));
    const struct pgs__node *nd;
    char text[8192], tiny[30];
    CHECK_OK(pgs__node_load(&t, &t.root, -1, &nd, &err));
    pgs__node_dump(nd, text, sizeof text);
    CHECK(strstr(text, "level 1") && strstr(text, "-> page 1 "));
    for (size_t len = 1; len < sizeof tiny; len++) {
        memset(tiny, 'x', sizeof tiny);
        pgs__node_dump(nd, tiny, len);
        CHECK(strlen(tiny) < len && (len + 1 >= sizeof tiny || tiny[len + 1] == 'x'));
    }
    world_close(&w);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
