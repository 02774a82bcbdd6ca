/* Pagestone | tests/unit/test_merge — merging by elements, against a model.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two or three transactions begin together, write random byte ranges into one array, some append, and commit in order. The model knows elements only: a later committer conflicts where an
 * element differs from its base in both; else its changed elements are laid over what is there. What the store says must be the model's
 * answer, cell by cell. The planted bugs 10 (conflict check skipped) and 11 (widening skipped) must make the same harness fail.
 */
#include "libshm/platform/inject.h"
#include "tests/unit/txn_testing.h"

static uint64_t seed;
static uint64_t draw(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % n;
}

struct writer {
    pgs_txn *t;
    pgs_view *v;
    uint8_t *image; /* base, as this one changed it */
    uint8_t *rows;  /* appended elements */
    size_t n_rows;
};

/* Random stores, of pieces that begin and end anywhere in the bytes: fields of records. */
static void write_some(struct writer *w, size_t n_bytes, uint32_t size)
{
    uint8_t *p = pgs_view_data(w->v);
    int n = 1 + (int)draw(6);
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)draw(n_bytes), len = 1 + (size_t)draw(draw(3) == 0 ? 3 * size : 4);
        if (draw(3) == 0) at = (at / 4096 + 1) * 4096 - 1 - (size_t)draw(6); /* near the end of a page */
        if (at >= n_bytes) at = n_bytes - 1;
        if (len > n_bytes - at) len = n_bytes - at;
        for (size_t k = 0; k < len; k++) {
            uint8_t b = draw(4) ? (uint8_t)draw(256) : p[at + k]; /* sometimes what is there */
            p[at + k] = w->image[at + k] = b;
        }
    }
}

/* 0: as the model says; 1: not. */
static int commit_as_model(struct writer *w, const uint8_t *base, uint8_t *model, size_t *n_model, size_t n_base,
                           uint32_t size)
{
    static uint8_t hit[1 << 20];
    size_t n_elements = n_base / size, n_cells = 0, n_listed = 0;
    for (size_t e = 0; e < n_elements; e++) {
        int ours = memcmp(w->image + e * size, base + e * size, size) != 0;
        int theirs = memcmp(model + e * size, base + e * size, size) != 0;
        hit[e] = (uint8_t)(ours && theirs);
        n_cells += hit[e];
    }
    const struct pgs_conflict *list;
    size_t n;
    uint64_t version;
    int rc = pgs_txn_commit(w->t, NULL, &version, &err);
    if (n_cells == 0) {
        if (rc) return 1;
        for (size_t e = 0; e < n_elements; e++)
            if (memcmp(w->image + e * size, base + e * size, size) != 0)
                memcpy(model + e * size, w->image + e * size, size);
        int64_t row = -1;
        if (w->n_rows && (pgs_txn_landed(w->t, KEY("x"), &row, &err) || (size_t)row != *n_model / size)) return 1;
        if (w->n_rows) memcpy(model + *n_model, w->rows, w->n_rows * size);
        *n_model += w->n_rows * size;
        return 0;
    }
    if (rc != -PGS_ECONFLICT) return 1;
    pgs_txn_conflicts(w->t, &list, &n, &version);
    for (size_t i = 0; i < n; i++)
        for (uint64_t e = list[i].lo; e < list[i].hi; e++, n_listed++)
            if (e >= n_elements || !hit[e]) return 1;
    return n_listed != n_cells;
}

static int history(pgs_store *s, uint32_t size, int appends)
{
    size_t n_base = size * (1 + draw(size > 1000 ? 6 : (draw(4) ? 40000 : 700) / size)), /* sometimes inline */
        most = n_base + 3 * 6000 + 3 * 8 * (size_t)size;
    uint8_t *base = malloc(most), *model = malloc(most);
    for (size_t i = 0; i < n_base; i++) base[i] = (uint8_t)draw(256);
    memcpy(model, base, n_base);
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", base, (int64_t)(n_base / size), size));
    commit(t);
    struct writer w[3] = {0};
    int n = 2 + (int)draw(2), bad = 0;
    size_t n_model = n_base;
    for (int i = 0; i < n; i++) {
        w[i].t = begin(s);
        w[i].image = malloc(n_base);
        memcpy(w[i].image, base, n_base);
        CHECK_OK(pgs_txn_edit(w[i].t, KEY("x"), &w[i].v, &err));
        if (draw(5)) write_some(&w[i], n_base, size);
        if (appends && draw(2)) {
            w[i].n_rows = 1 + (size_t)draw(1 + 6000 / size);
            w[i].rows = malloc(w[i].n_rows * size);
            for (size_t k = 0; k < w[i].n_rows * size; k++) w[i].rows[k] = (uint8_t)draw(256);
            CHECK_OK(pgs_txn_append(w[i].t, KEY("x"), w[i].rows, w[i].n_rows, &err));
        }
    }
    for (int i = 0; i < n && !bad; i++) {
        bad = commit_as_model(&w[i], base, model, &n_model, n_base, size);
        if (!bad && !head_is(s, "x", model, n_model)) bad = 1;
    }
    for (int i = 0; i < n; i++) {
        pgs_view_unref(w[i].v);
        pgs_txn_unref(w[i].t);
        free(w[i].image);
        free(w[i].rows);
    }
    free(base);
    free(model);
    return bad;
}

/* How many of n histories the store got wrong. */
static int histories(int n, uint64_t first_seed)
{
    static const uint32_t sizes[] = {1, 2, 3, 4, 8, 12, 16, 4096, 5000};
    pgs_store *s = open_memory();
    int bad = 0;
    for (int i = 0; i < n; i++) {
        seed = first_seed + (uint64_t)i * 2654435761u + 88172645463325252u;
        bad += history(s, sizes[i % 9], i % 3 == 0);
    }
    if (!bad) check_store(s);
    pgs_store_unref(s);
    return bad;
}

TEST(disjoint_elements_merge_and_shared_ones_conflict)
{
    CHECK_EQ(histories(450, 1), 0);
}
TEST(the_harness_finds_a_skipped_conflict_check)
{
    pgs__inject_plant(10);
    CHECK(histories(90, 2) > 0);
}
TEST(the_harness_finds_skipped_widening)
{
    pgs__inject_plant(11);
    CHECK(histories(270, 3) > 0);
}

/* HAZARDS 3 as it was told: itemsize 12, record 341 lies on both sides of byte 4096. */
TEST(fields_of_one_record_on_two_pages_conflict)
{
    pgs_store *s = open_memory();
    uint8_t zeros[12000] = {0};
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", zeros, 1000, 12));
    commit(t);
    pgs_txn *a = begin(s), *b = begin(s);
    pgs_view *v, *w;
    edit(a, "x", &v)[341 * 12] = 1;
    edit(b, "x", &w)[341 * 12 + 8] = 2;
    commit(a);
    CHECK_ERR(pgs_txn_commit(b, NULL, NULL, NULL), PGS_ECONFLICT);
    const struct pgs_conflict *list;
    size_t n;
    uint64_t version;
    pgs_txn_conflicts(b, &list, &n, &version);
    CHECK_EQ(n, 1);
    CHECK_EQ(list[0].lo, 341);
    CHECK_EQ(list[0].hi, 342);
    CHECK_EQ(version, 2);
    pgs_txn_unref(b);
    pgs_view_unref(v);
    pgs_view_unref(w);
    pgs_store_unref(s);
}

TEST(writing_the_same_value_conflicts_and_writing_the_old_one_does_not)
{
    pgs_store *s = open_memory();
    double data[100] = {0};
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", data, 100, 8));
    commit(t);
    pgs_txn *a = begin(s), *b = begin(s), *c = begin(s);
    pgs_view *u, *v, *w;
    ((double *)(void *)edit(a, "x", &u))[5] = 1;
    ((double *)(void *)edit(b, "x", &v))[5] = 1;
    double *p = (double *)(void *)edit(c, "x", &w);
    p[5] = 0;
    p[6] = 2;
    commit(a);
    CHECK_ERR(pgs_txn_commit(b, NULL, NULL, NULL), PGS_ECONFLICT);
    commit(c);
    data[5] = 1;
    data[6] = 2;
    CHECK(head_is(s, "x", data, sizeof data));
    pgs_txn_unref(b);
    pgs_view_unref(u);
    pgs_view_unref(v);
    pgs_view_unref(w);
    pgs_store_unref(s);
}

/* More than 1 MiB to compare: unlocked, rebased upon a pinned generation, locked again. */
TEST(large_merges_with_checksums)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .checksums = 1};
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    size_t n = 6u << 20;
    uint8_t *want = calloc(1, n);
    pgs_txn *t = begin(s);
    struct pgs_type type = type_of((int64_t)n, 1);
    CHECK_OK(pgs_txn_create(t, KEY("x"), &type, &err));
    commit(t);
    pgs_txn *a = begin(s), *b = begin(s);
    pgs_view *v, *w;
    uint8_t *p = edit(a, "x", &v), *q = edit(b, "x", &w);
    for (size_t i = 0; i < n; i += 64) {
        p[i] = want[i] = 1;
        q[i + 1] = want[i + 1] = 2;
    }
    commit(a);
    commit(b);
    CHECK(head_is(s, "x", want, n));
    check_store(s);
    pgs_view_unref(v);
    pgs_view_unref(w);
    free(want);
    pgs_store_unref(s);
}

TEST(an_array_written_in_crumbs_stays_readable)
{
    pgs_store *s = open_memory();
    size_t n = 4u << 20;
    uint8_t *want = calloc(1, n);
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "x", want, (int64_t)n, 1));
    commit(t);
    seed = 12345;
    for (int i = 0; i < 300; i++) {
        size_t at = (size_t)draw(n);
        pgs_view *v;
        t = begin(s);
        uint8_t *p = edit(t, "x", &v);
        p[at] = want[at] = (uint8_t)(p[at] + 1);
        commit(t);
        pgs_view_unref(v);
    }
    CHECK(head_is(s, "x", want, n));
    check_store(s);
    free(want);
    pgs_store_unref(s);
}

/* Compaction moves pages and changes nothing: it conflicts with nobody. */
TEST(maintenance_between_begin_and_commit_is_no_conflict)
{
    pgs_store *s = open_memory();
    size_t n = 3u << 20;
    uint8_t *want = calloc(1, n);
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, "hole", want, (int64_t)n, 1));
    CHECK_OK(put_array(t, "x", want, (int64_t)n, 1));
    CHECK_OK(put_array(t, "y", want, 5000, 1));
    commit(t);
    t = begin(s);
    CHECK_OK(pgs_txn_delete(t, KEY("hole"), &err));
    commit(t);
    for (int i = 0; i < 40; i++) {
        pgs_view *v;
        t = begin(s);
        edit(t, "x", &v)[i * 70000] = want[i * 70000] = 9;
        commit(t);
        pgs_view_unref(v);
    }
    t = begin(s);
    pgs_view *v;
    edit(t, "x", &v)[77] = want[77] = 4;
    CHECK_OK(pgs_txn_move(t, KEY("y"), KEY("z"), &err));
    CHECK_OK(pgs_compact(s, &err));
    commit(t);
    CHECK(head_is(s, "x", want, n) && exists(s, "z") && !exists(s, "y"));
    check_store(s);
    pgs_view_unref(v);
    free(want);
    pgs_store_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
