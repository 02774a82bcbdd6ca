/* Pagestone | tests/unit/test_meta — the meta map: messages over a tree, folded and not, against a plain model.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "tests/unit/ledger_fixture.h"

#define N_KEYS 400
struct model {
    bool on[N_KEYS];
    uint64_t val[N_KEYS];
};

struct map {
    struct store s;
    uint64_t next_page;
    struct model m;
};

static size_t key_of(uint8_t *buf, size_t i)
{
    return i % 3 ? pgs__meta_key2(buf, 'a', i / 7, i) : pgs__meta_key1(buf, 'b', i);
}
static int cmp_index(size_t i, size_t j)
{
    uint8_t a[32], b[32];
    size_t n = key_of(a, i), m = key_of(b, j);
    int c = memcmp(a, b, n < m ? n : m);
    return c ? c : (n > m) - (n < m);
}
static size_t order[N_KEYS];
static int by_key(const void *a, const void *b)
{
    return cmp_index(*(const size_t *)a, *(const size_t *)b);
}

static void check_all(struct map *t, struct pgs__meta *m)
{
    struct pgs__meta_cursor c;
    uint8_t key[32];
    for (size_t i = 0; i < N_KEYS; i++) {
        struct pgs_span v;
        int rc = pgs__meta_get(m, key, key_of(key, i), &v, &err);
        CHECK_EQ(rc, t->m.on[i] ? 0 : -PGS_ENOENT);
        if (rc == 0) CHECK(v.len == 8 && pgs__get_u64(v.p) == t->m.val[i]);
    }
    int rc = pgs__meta_seek(&c, m, PGS__SEEK_FIRST, "", 0, &err);
    for (size_t i = 0; i < N_KEYS; i++) {
        if (!t->m.on[order[i]]) continue;
        CHECK_OK(rc);
        size_t len = key_of(key, order[i]);
        CHECK(c.key.len == len && memcmp(c.key.p, key, len) == 0);
        rc = pgs__meta_next(&c, &err);
    }
    CHECK_EQ(rc, -PGS_ENOENT);
    rc = pgs__meta_seek(&c, m, PGS__SEEK_LAST, "", 0, &err);
    for (size_t i = N_KEYS; i-- > 0;) {
        if (!t->m.on[order[i]]) continue;
        CHECK_OK(rc);
        CHECK(pgs__get_u64(c.val.p) == t->m.val[order[i]]);
        rc = pgs__meta_prev(&c, &err);
    }
    CHECK_EQ(rc, -PGS_ENOENT);
}

/* Walk to and fro from a random place. */
static void check_walk(struct map *t, struct pgs__meta *m)
{
    struct pgs__meta_cursor c;
    uint8_t key[32];
    size_t at = below(N_KEYS);
    enum pgs__seek how = (enum pgs__seek)below(4);
    int rc = pgs__meta_seek(&c, m, how, key, key_of(key, order[at]), &err);
    long i = (long)at, step = how == PGS__SEEK_GE || how == PGS__SEEK_GT ? 1 : -1;
    if (how == PGS__SEEK_GT || how == PGS__SEEK_LT) i += step;
    for (int n = 0; n < 30; n++) {
        while (i >= 0 && i < N_KEYS && !t->m.on[order[i]]) i += step;
        if (i < 0 || i >= N_KEYS) {
            CHECK_EQ(rc, -PGS_ENOENT);
            return;
        }
        CHECK_OK(rc);
        size_t len = key_of(key, order[i]);
        CHECK(c.key.len == len && memcmp(c.key.p, key, len) == 0);
        step = chance(70) ? step : -step;
        rc = step > 0 ? pgs__meta_next(&c, &err) : pgs__meta_prev(&c, &err);
        i += step;
    }
}

static void change(struct map *t, struct pgs__meta *m)
{
    uint8_t key[32];
    size_t i = below(N_KEYS), len = key_of(key, i);
    uint64_t v = rnd();
    if (chance(40)) {
        CHECK_OK(pgs__meta_del(m, key, len, &err));
        t->m.on[i] = false;
        return;
    }
    if (!t->m.on[i] && chance(60))
        CHECK_OK(pgs__meta_add(m, key, len, &v, 8, &err));
    else
        CHECK_OK(pgs__meta_put(m, key, len, &v, 8, &err));
    t->m.on[i] = true;
    t->m.val[i] = v;
}

/* As a ledger does it, but pages come from a counter. */
static void write_out(struct map *t, struct pgs__meta *m)
{
    static uint8_t nodes[256 * PGS_PAGE_SIZE], record[4 * PGS_PAGE_SIZE];
    struct pgs_pgno pages[256];
    uint64_t n = pgs__meta_n_dirty(m), n_record = pgs__pages_of(m->msg_bytes + sizeof m->hdr);
    if (n_record > 4) {
        CHECK_OK(pgs__meta_fold(m, &err));
        n = pgs__meta_n_dirty(m);
        n_record = 1;
    }
    CHECK(n < 256);
    for (uint64_t i = 0; i < n; i++) pages[i].n = t->next_page++;
    struct pgs__root root = {.gen = t->s.root.gen + 1, .record_pages = n_record};
    m->hdr.gen = root.gen;
    CHECK_OK(pgs__meta_finish(m, root.gen, pages, nodes, (struct pgs_pgno){t->next_page}, n_record, record,
                              &root.record, &err));
    for (uint64_t i = 0; i < n; i++) CHECK_OK(pgs__pages_write(&t->s.pf, pages[i], nodes + i * PGS_PAGE_SIZE, 1, &err));
    CHECK_OK(pgs__pages_write(&t->s.pf, (struct pgs_pgno){t->next_page}, record, n_record, &err));
    t->next_page += n_record;
    t->s.root = root;
}

static void map_open(struct map *t)
{
    memset(t, 0, sizeof *t);
    store_open(&t->s);
    t->next_page = 1;
    for (size_t i = 0; i < N_KEYS; i++) order[i] = i;
    qsort(order, N_KEYS, sizeof *order, by_key);
}

TEST(a_map_of_messages_and_tree_is_one_map)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct map t;
        struct pgs__meta m;
        map_open(&t);
        rng_state = seed;
        pgs__meta_init_empty(&m, &t.s.pf);
        for (int commit = 0; commit < 25; commit++) {
            for (uint64_t n = below(commit % 5 == 4 ? 900 : 60); n > 0; n--) {
                change(&t, &m);
                if (chance(2)) CHECK_OK(pgs__meta_fold(&m, &err));
            }
            check_all(&t, &m);
            for (int i = 0; i < 10; i++) check_walk(&t, &m);
            write_out(&t, &m);
            pgs__meta_close(&m);
            CHECK_OK(pgs__meta_open(&m, &t.s.pf, &t.s.root, &err));
            check_all(&t, &m);
            for (int i = 0; i < 10; i++) check_walk(&t, &m);
        }
        pgs__meta_close(&m);
        store_close(&t.s);
    }
}

/* Every second commit begins with what the one before kept; sometimes somebody else commits in between. */
TEST(what_a_commit_keeps_is_what_its_record_says)
{
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct map t;
        struct pgs__meta m, other;
        struct pgs__meta_kept kept = {0};
        map_open(&t);
        rng_state = seed;
        pgs__meta_init_empty(&m, &t.s.pf);
        for (int commit = 0; commit < 40; commit++) {
            for (uint64_t n = below(30); n > 0; n--) change(&t, &m);
            write_out(&t, &m);
            if (commit % 2) pgs__meta_keep(&m, &t.s.root, &kept);
            pgs__meta_close(&m);
            if (commit % 8 == 7) {
                CHECK(kept.valid);
                CHECK_OK(pgs__meta_open(&other, &t.s.pf, &t.s.root, &err));
                change(&t, &other);
                write_out(&t, &other);
                pgs__meta_close(&other);
            }
            bool mine = kept.valid && kept.record.page == t.s.root.record.page;
            CHECK_EQ(mine, commit % 2 && commit % 8 != 7);
            CHECK_OK(pgs__meta_reopen(&m, &t.s.pf, &t.s.root, &kept, &err));
            CHECK(!kept.valid && !kept.msgs);
            CHECK_OK(pgs__meta_open(&other, &t.s.pf, &t.s.root, &err));
            CHECK(m.n_msgs == other.n_msgs && m.msg_bytes == other.msg_bytes);
            CHECK(memcmp(&m.hdr, &other.hdr, sizeof m.hdr) == 0);
            for (size_t i = 0; i < m.n_msgs; i++)
                CHECK(m.msgs[i].key == other.msgs[i].key && m.msgs[i].prefix == other.msgs[i].prefix &&
                      m.msgs[i].key_len == other.msgs[i].key_len && m.msgs[i].val_len == other.msgs[i].val_len &&
                      m.msgs[i].fresh == other.msgs[i].fresh);
            pgs__meta_close(&other);
            check_all(&t, &m);
        }
        pgs__meta_close(&m);
        pgs__meta_kept_free(&kept);
        store_close(&t.s);
    }
}

TEST(deleting_a_fresh_entry_leaves_no_message)
{
    struct map t;
    struct pgs__meta m;
    uint8_t key[32];
    uint64_t v = 7;
    map_open(&t);
    pgs__meta_init_empty(&m, &t.s.pf);
    size_t len = pgs__meta_key1(key, 'a', 1);
    CHECK_OK(pgs__meta_add(&m, key, len, &v, 8, &err));
    CHECK_OK(pgs__meta_put(&m, key, len, &v, 8, &err));
    CHECK_OK(pgs__meta_del(&m, key, len, &err));
    CHECK_EQ(m.n_msgs, 0);
    CHECK_EQ(m.msg_bytes, 0);
    CHECK_OK(pgs__meta_add(&m, key, len, &v, 8, &err));
    CHECK_OK(pgs__meta_fold(&m, &err));
    CHECK_OK(pgs__meta_del(&m, key, len, &err)); /* now the tree holds it */
    CHECK_EQ(m.n_msgs, 1);
    CHECK_OK(pgs__meta_add(&m, key, len, &v, 8, &err)); /* and the tombstone remembers that */
    CHECK_OK(pgs__meta_del(&m, key, len, &err));
    CHECK_EQ(m.n_msgs, 1);
    struct pgs_span s;
    CHECK_ERR(pgs__meta_get(&m, key, len, &s, &err), PGS_ENOENT);
    pgs__meta_close(&m);
    pgs__meta_close(&m);
    store_close(&t.s);
}

TEST(limits_of_keys_and_records_are_refused)
{
    struct map t;
    struct pgs__meta m;
    static uint8_t big[4096], images[16384];
    map_open(&t);
    pgs__meta_init_empty(&m, &t.s.pf);
    CHECK_ERR(pgs__meta_put(&m, big, PGS__TREE_MAX_KEY + 1, NULL, 0, &err), PGS_E2BIG);
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__meta_put(&m, big, 10, big, PGS__TREE_MAX_CELL, &err), PGS_E2BIG);
    err = (struct pgs_error){0};
    for (uint64_t i = 0; i < 5; i++) {
        uint8_t key[32];
        CHECK_OK(pgs__meta_put(&m, key, pgs__meta_key1(key, 'a', i), big, 1000, &err));
    }
    struct pgs_ptr record;
    struct pgs_pgno page = {1};
    CHECK_ERR(pgs__meta_finish(&m, 1, NULL, NULL, page, 1, images, &record, &err), PGS_EBUG);
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__meta_finish(&m, 1, NULL, NULL, page, 5, images, &record, &err), PGS_EBUG);
    err = (struct pgs_error){0};
    CHECK_OK(pgs__meta_finish(&m, 1, NULL, NULL, page, 2, images, &record, &err));
    pgs__meta_close(&m);
    store_close(&t.s);
}

/* Every bit of a record's bytes, and random bytes, with the hash made right again: refused or read, never a crash. */
TEST(a_damaged_record_is_an_error_and_never_a_crash)
{
    struct map t;
    struct pgs__meta m;
    static uint8_t page[PGS_PAGE_SIZE];
    map_open(&t);
    rng_state = 5;
    pgs__meta_init_empty(&m, &t.s.pf);
    for (int i = 0; i < 40; i++) change(&t, &m);
    write_out(&t, &m);
    pgs__meta_close(&m);
    CHECK_EQ(t.s.root.record_pages, 1);
    struct pgs_pgno at = {t.s.root.record.page};
    CHECK_OK(pgs__pages_read(&t.s.pf, at, page, 1, false, &err));
    int refused = 0, rounds = 20000;
    for (int i = 0; i < rounds; i++) {
        uint8_t copy[PGS_PAGE_SIZE];
        memcpy(copy, page, sizeof copy);
        size_t where = below(i % 2 ? 1500 : 64);
        if (i % 3)
            copy[where] ^= (uint8_t)(1u << below(8));
        else
            copy[where] = (uint8_t)rnd();
        struct pgs__root root = t.s.root;
        root.record.page = t.next_page;
        root.record.xxh = pgs__hash(copy, sizeof copy);
        CHECK_OK(pgs__pages_write(&t.s.pf, (struct pgs_pgno){t.next_page}, copy, 1, &err));
        struct pgs_error e = {0};
        int rc = pgs__meta_open(&m, &t.s.pf, &root, &e);
        CHECK(rc == 0 || rc == -PGS_ECORRUPT);
        refused += rc != 0;
        if (rc == 0) {
            struct pgs__meta_cursor c;
            int n = 0;
            for (rc = pgs__meta_seek(&c, &m, PGS__SEEK_FIRST, "", 0, &e); rc == 0; rc = pgs__meta_next(&c, &e)) n++;
            CHECK(n < 1000);
        }
        pgs__meta_close(&m);
    }
    CHECK(refused > rounds / 5);
    struct pgs__root root = t.s.root;
    root.record.xxh++;
    CHECK_ERR(pgs__meta_open(&m, &t.s.pf, &root, &err), PGS_ECORRUPT);
    root = t.s.root;
    root.record_pages = 7;
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__meta_open(&m, &t.s.pf, &root, &err), PGS_ECORRUPT);
    store_close(&t.s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
