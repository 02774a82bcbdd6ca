/* Pagestone | tests/unit/test_tree_damage — whatever the bytes of a node are: right data or -PGS_ECORRUPT, no crash, no endless walk.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One bit is flipped in one node of a small tree, once as it is (the checksum is then wrong) and once with all checksums up to the root made to
 * fit again (as a fuzzer or a bug of ours would). Run under ASan this also shows that nothing outside of a node is read.
 */
#include "libshm/platform/inject.h"
#include "tests/unit/tree_fixture.h"

#define N_KEYS 200u
#define KEY_LEN 300u

/* Long common parts make long separators, so that few keys make three levels. */
static struct pgs_span key_at(unsigned i, char buf[KEY_LEN])
{
    memset(buf, 'a' + (int)(i % 3), KEY_LEN);
    pgs__put_be64(buf + 272, pgs__mix(i));
    return (struct pgs_span){buf, 280 + i % 20};
}
static struct pgs_span val_at(unsigned i, uint8_t buf[200])
{
    unsigned len = (unsigned)(pgs__mix(i + 1000) % 200);
    memset(buf, (int)i, 200);
    return (struct pgs_span){buf, len};
}

static struct pgs_ptr build_small(struct world *w)
{
    struct pgs__edit *e = edit_at(w, (struct pgs_ptr){0});
    char key_buf[KEY_LEN];
    uint8_t val_buf[200];
    for (unsigned i = 0; i < N_KEYS; i++) {
        struct pgs_span key = key_at(i, key_buf), val = val_at(i, val_buf);
        CHECK_OK(pgs__edit_put(e, key.p, key.len, val.p, val.len, &err));
    }
    return commit(w, e);
}

/* What reading a damaged tree gave. */
struct outcome {
    unsigned n_right, n_corrupt, n_wrong;
};

static void note(struct outcome *o, int rc, bool right)
{
    if (rc == -PGS_ECORRUPT)
        o->n_corrupt++;
    else if (rc == 0 && right)
        o->n_right++;
    else
        o->n_wrong++;
}

static int ignore_node(void *ctx, const struct pgs_ptr *node, int level)
{
    (void)node, (void)level;
    return ++*(unsigned *)ctx > 100000 ? 1 : 0;
}
static int ignore_bad(void *ctx, const struct pgs_ptr *node, const char *why)
{
    CHECK(why[0] != 0);
    return ignore_node(ctx, node, 0);
}
static int ignore_diff(void *ctx, struct pgs_span key, struct pgs_span a, struct pgs_span b)
{
    CHECK(key.p != NULL && (a.p || b.p));
    return ++*(unsigned *)ctx > 100000 ? 1 : 0;
}

static void scan(const struct pgs__tree *t, bool forward, struct outcome *o)
{
    struct pgs__cursor c;
    struct pgs_error e = {0};
    unsigned n = 0;
    uint64_t sum = 0;
    int rc = pgs__cursor_seek(&c, t, forward ? PGS__SEEK_FIRST : PGS__SEEK_LAST, NULL, 0, &e);
    while (rc == 0) {
        struct pgs_span key, val;
        pgs__cursor_entry(&c, &key, &val);
        sum += pgs__hash(key.p, key.len) ^ pgs__hash(val.p, val.len); /* touches every byte */
        CHECK(++n < 100000);
        rc = forward ? pgs__cursor_next(&c, &e) : pgs__cursor_prev(&c, &e);
    }
    CHECK_EQ(c.depth, 0);
    CHECK(rc != -PGS_ECORRUPT || e.code == PGS_ECORRUPT);
    static uint64_t right_sum; /* of the first scan, which is of the undamaged tree */
    if (right_sum == 0) right_sum = sum;
    note(o, rc == -PGS_ENOENT ? 0 : rc, sum == right_sum && n == N_KEYS);
}

static void read_all(struct world *w, struct pgs_ptr root, struct outcome *o)
{
    struct pgs__tree t = tree_at(w, root);
    char key_buf[KEY_LEN];
    uint8_t val_buf[200];
    struct pgs_span got;
    for (unsigned i = 0; i < N_KEYS; i++) {
        struct pgs_span key = key_at(i, key_buf);
        int rc = pgs__tree_get(&t, key.p, key.len, &got, NULL);
        note(o, rc, rc == 0 && pgs__span_eq(got, val_at(i, val_buf)));
    }
    scan(&t, true, o);
    scan(&t, false, o);
}

/* Everything else that parses nodes; only to come back in finite time with a sane code. */
static void use_all(struct world *w, struct pgs_ptr root, struct pgs_ptr good)
{
    struct pgs__tree t = tree_at(w, root), g = tree_at(w, good), te;
    unsigned n = 0;
    char text[2000], key_buf[KEY_LEN];
    int rc = pgs__tree_check(&t, NULL);
    CHECK(rc == 0 || rc == -PGS_ECORRUPT);
    rc = pgs__tree_walk(&t, ignore_node, ignore_bad, &n, NULL);
    CHECK_EQ(rc, 0);
    rc = pgs__tree_diff(&t, &g, ignore_diff, &n, NULL);
    CHECK(rc == 0 || rc == -PGS_ECORRUPT);
    rc = pgs__tree_diff(&g, &t, ignore_diff, &n, NULL);
    CHECK(rc == 0 || rc == -PGS_ECORRUPT);
    pgs__node_dump(pgs__page(&w->pf, (struct pgs_pgno){root.page}), text, sizeof text);

    struct pgs__edit *e = edit_at(w, root);
    for (unsigned i = 0; i < 60; i++) {
        struct pgs_span key = key_at((unsigned)rnd_below(N_KEYS + 20), key_buf);
        rc = rnd() & 1 ? pgs__edit_put(e, key.p, key.len, text, rnd_below(1000), NULL)
                       : pgs__edit_del(e, key.p, key.len, NULL);
        CHECK(rc == 0 || rc == -PGS_ECORRUPT || rc == -PGS_ENOENT || rc == -PGS_E2BIG);
    }
    te = tree_of(w, e);
    rc = pgs__tree_diff(&t, &te, ignore_diff, &n, NULL);
    CHECK(rc == 0 || rc == -PGS_ECORRUPT);
    uint64_t n_dirty = pgs__edit_n_dirty(e);
    struct pgs_pgno pages[400];
    static uint8_t buf[400 * PGS_PAGE_SIZE];
    CHECK(n_dirty < 400);
    for (uint64_t i = 0; i < n_dirty; i++) pages[i].n = 1000 + i;
    rc = pgs__edit_finish(e, 99, pages, buf, &root, NULL);
    CHECK(rc == 0 || rc == -PGS_ECORRUPT);
    pgs__edit_free(e);
}

/* The nodes of the tree, parents first, with the index of each one's parent. */
struct nodes {
    unsigned n;
    struct pgs_ptr ptr[64];
    unsigned parent[64], slot[64];
    struct pgs__node image[64];
};

static void list_nodes(struct world *w, struct pgs_ptr root, struct nodes *l)
{
    l->n = 1;
    l->ptr[0] = root;
    for (unsigned i = 0; i < l->n; i++) {
        memcpy(&l->image[i], pgs__page(&w->pf, (struct pgs_pgno){l->ptr[i].page}), PGS_PAGE_SIZE);
        for (unsigned k = 0; l->image[i].level && k < l->image[i].n; k++) {
            CHECK(l->n < PGS_ARRAY_LEN(l->ptr));
            l->ptr[l->n] = pgs__node_child(&l->image[i], k);
            l->parent[l->n] = i;
            l->slot[l->n++] = k;
        }
    }
}

/* A page file of its own for each case, so that nothing is remembered as verified. */
static struct pgs_ptr write_nodes(struct world *w, const struct nodes *l)
{
    world_open(w);
    for (unsigned i = 0; i < l->n; i++)
        CHECK_OK(pgs__pages_write(&w->pf, (struct pgs_pgno){l->ptr[i].page}, &l->image[i], 1, &err));
    return l->ptr[0];
}

/* Make all checksums on the way from node i to the root fit. */
static void fix_up(struct nodes *l, unsigned i)
{
    for (;; i = l->parent[i]) {
        l->ptr[i].xxh = pgs__hash_page(&l->image[i]);
        if (i == 0) return;
        pgs__node_set_child(&l->image[l->parent[i]], l->slot[i], &l->ptr[i]);
    }
}

/* Can fix_up patch the way to the root, or did an earlier flip break it? */
static bool ancestors_have_slots(const struct nodes *l, unsigned i)
{
    for (; i > 0; i = l->parent[i])
        if (pgs__node_validate(&l->image[l->parent[i]]) || l->slot[i] >= l->image[l->parent[i]].n) return false;
    return true;
}

static void flip_some_bit(struct nodes *l, unsigned i)
{
    unsigned slots_end = 16 + 6u * l->image[i].n, at;
    switch (rnd() % 4) { /* where it hurts most: header, slots, lengths and pointers in cells */
    case 0:
        at = (unsigned)rnd_below(16);
        break;
    case 1:
        at = 16 + (unsigned)rnd_below(slots_end - 16);
        break;
    case 2:
        at = l->image[i].slot[rnd_below(l->image[i].n)].off + (unsigned)rnd_below(26);
        break;
    default:
        at = (unsigned)rnd_below(PGS_PAGE_SIZE);
        break;
    }
    if (at >= PGS_PAGE_SIZE) at = PGS_PAGE_SIZE - 1;
    ((uint8_t *)&l->image[i])[at] ^= (uint8_t)(1u << (rnd() % 8));
}

/* Damage that a node alone does not show: children exchanged or twice, keys outside of the parent's range. */
static void break_sense(struct nodes *l, unsigned i)
{
    struct pgs__node *nd = &l->image[i];
    if (pgs__node_validate(nd)) return;
    if (nd->level && rnd() & 1) {
        struct pgs_ptr ptr = rnd() & 1 ? pgs__node_child(nd, (unsigned)rnd_below(nd->n)) : l->ptr[rnd_below(l->n)];
        pgs__node_set_child(nd, (unsigned)rnd_below(nd->n), &ptr);
    } else if (nd->lcp > 0) {
        for (unsigned k = nd->level != 0; k < nd->n; k++) {
            uint8_t *cell = (uint8_t *)nd + nd->slot[k].off;
            cell[nd->level ? PGS__INNER_CELL_HEAD : PGS__LEAF_CELL_HEAD] = (uint8_t)("Aabcz"[i % 5]);
        }
    }
}

static struct nodes good_nodes, twin_nodes; /* the same entries twice, at different pages */

static void prepare(struct outcome *o)
{
    struct world w;
    world_open(&w);
    struct pgs_ptr good_root = build_small(&w);
    w.next_page = 500;
    list_nodes(&w, build_small(&w), &twin_nodes);
    struct pgs__tree t = tree_at(&w, good_root);
    CHECK_OK(pgs__tree_check(&t, &err));
    list_nodes(&w, good_root, &good_nodes);
    CHECK(good_nodes.image[0].level == 2);
    *o = (struct outcome){0};
    read_all(&w, good_root, o);
    CHECK_EQ(o->n_right, N_KEYS + 2);
    *o = (struct outcome){0};
    world_close(&w);
}

static void flip_without_fixing(unsigned n_cases, struct outcome *o)
{
    prepare(o);
    for (unsigned k = 0; k < n_cases; k++) {
        struct nodes l = good_nodes;
        struct world w;
        flip_some_bit(&l, k % l.n);
        struct pgs_ptr root = write_nodes(&w, &l);
        unsigned before = o->n_corrupt;
        read_all(&w, root, o);
        struct pgs__tree t = tree_at(&w, root);
        if (o->n_wrong == 0 && !PGS_PLANTED(7)) {
            CHECK(o->n_corrupt >= before + 2); /* both scans meet it */
            CHECK_ERR(pgs__tree_check(&t, NULL), PGS_ECORRUPT);
        }
        world_close(&w);
    }
}

TEST(a_flipped_bit_is_found_or_does_not_matter)
{
    struct outcome o;
    rng_state = 1;
    flip_without_fixing(1500, &o);
    CHECK_EQ(o.n_wrong, 0);
    CHECK(o.n_right > 0);
}

TEST(the_test_above_would_notice_missing_verification)
{
    struct outcome o;
    rng_state = 1;
    pgs__inject_plant(7);
    flip_without_fixing(300, &o);
    CHECK(o.n_wrong > 0);
}

TEST(flipped_bits_behind_right_checksums_neither_crash_nor_hang)
{
    struct outcome o;
    const char *shift = getenv("TEST_SEED"); /* other runs of the same test */
    rng_state = 2 + (shift ? 1000 * strtoull(shift, NULL, 10) : 0);
    prepare(&o);
    struct world w;
    for (unsigned k = 0; k < 2500; k++) {
        struct nodes l = good_nodes;
        unsigned n_flips = 1 + (unsigned)rnd_below(3);
        for (unsigned f = 0; f < n_flips; f++) {
            unsigned i = (unsigned)rnd_below(l.n);
            if (rnd() % 3 == 0)
                break_sense(&l, i);
            else
                flip_some_bit(&l, i);
            if (ancestors_have_slots(&l, i)) fix_up(&l, i);
        }
        l.ptr[0].xxh = pgs__hash_page(&l.image[0]);
        struct pgs_ptr root = write_nodes(&w, &l);
        for (unsigned i = 0; i < twin_nodes.n; i++)
            CHECK_OK(pgs__pages_write(&w.pf, (struct pgs_pgno){twin_nodes.ptr[i].page}, &twin_nodes.image[i], 1, &err));
        read_all(&w, root, &o);
        use_all(&w, root, twin_nodes.ptr[0]);
        world_close(&w);
    }
    CHECK(o.n_corrupt > 1000 && o.n_right > 1000 &&
          o.n_wrong > 100); /* wrong data behind right checksums is to be expected */
}

/* --- trees that no hash can tell from good ones ------------------------------------------------------------------------------- */

static struct pgs_ptr write_node(struct world *w, struct pgs__node *nd)
{
    struct pgs_ptr ptr = {w->next_page++, 0, 0};
    CHECK_EQ(pgs__node_validate(nd), 0);
    ptr.xxh = pgs__hash_page(nd);
    CHECK_OK(pgs__pages_write(&w->pf, (struct pgs_pgno){ptr.page}, nd, 1, &err));
    return ptr;
}

TEST(pointers_that_meet_again_do_not_make_walks_endless)
{
    struct world w;
    world_open(&w);
    struct pgs__node nd;
    struct pgs__item leaf[2] = {{{"a", 1}, {"1", 1}}, {{"b", 1}, {"2", 1}}};
    pgs__node_build(&nd, PGS__TREE_TEST, 0, leaf, 2);
    struct pgs_ptr ptr = write_node(&w, &nd);
    for (int level = 1; level < PGS__TREE_MAX_DEPTH; level++) { /* 100 ^ 15 ways through 16 pages */
        struct pgs__item items[100];
        uint8_t keys[100][2];
        for (unsigned i = 0; i < 100; i++) {
            keys[i][0] = 'c';
            keys[i][1] = (uint8_t)i;
            items[i] = (struct pgs__item){{keys[i], 2}, {&ptr, sizeof ptr}};
        }
        pgs__node_build(&nd, PGS__TREE_TEST, level, items, 100);
        ptr = write_node(&w, &nd);
    }
    struct pgs__tree t = tree_at(&w, ptr), other = t;
    struct outcome o = {0};
    unsigned n = 0;
    CHECK_ERR(pgs__tree_check(&t, NULL), PGS_ECORRUPT);
    CHECK_OK(pgs__tree_walk(&t, ignore_node, ignore_bad, &n, &err));
    CHECK(n < 16 * 100 + 2);
    scan(&t, true, &o);
    scan(&t, false, &o);
    CHECK_EQ(o.n_corrupt, 2);
    pgs__node_build(&nd, PGS__TREE_TEST, 0, leaf, 1);
    other.root = write_node(&w, &nd);
    CHECK_ERR(pgs__tree_diff(&t, &other, ignore_diff, &n, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__tree_diff(&other, &t, ignore_diff, &n, NULL), PGS_ECORRUPT);
    struct pgs__edit *e = edit_at(&w, ptr);
    CHECK_ERR(pgs__edit_put(e, "c\62", 2, "", 0, NULL), PGS_ECORRUPT);
    CHECK(pgs__edit_is_clean(e));
    pgs__edit_free(e);
    world_close(&w);
}

TEST(pointers_to_no_page_are_damage)
{
    struct world w;
    world_open(&w);
    uint64_t pages[] = {1u << 20, 1ull << 51, 1ull << 52, PGS__DIRTY_BIT, PGS__DIRTY_BIT | 5, UINT64_MAX};
    for (unsigned i = 0; i < PGS_ARRAY_LEN(pages); i++) {
        struct pgs__tree t = tree_at(&w, (struct pgs_ptr){pages[i], 1, 2});
        struct pgs_span val;
        struct pgs_error e = {0};
        CHECK_ERR(pgs__tree_get(&t, "k", 1, &val, &e), PGS_ECORRUPT);
        CHECK(e.text[0]);
        CHECK_ERR(pgs__tree_check(&t, NULL), PGS_ECORRUPT);
    }
    world_close(&w);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
