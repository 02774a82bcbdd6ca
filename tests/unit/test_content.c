/* Pagestone | tests/unit/test_content — contents against a plain array of pages: forms, runs, diff, dead pages, checksums.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "tests/unit/content_fixture.h"

#include <errno.h>

#include "libshm/extents/content_map.h"
#include "libshm/platform/inject.h"

/* --- the model -------------------------------------------------------------------------------------------------------------- */
#define MAX_LP 700  /* logical pages: several groups of checksums */
#define N_DATA 4096 /* physical data pages, recycled as soon as they are dead */
#define N_HISTORY 24

struct model {
    uint64_t n_bytes;
    struct {
        uint64_t page, birth, xxh; /* page 0: hole */
    } lp[MAX_LP];
};
static struct {
    uint64_t first;
    uint8_t used[N_DATA];
} data;

static uint64_t model_pages(const struct model *m)
{
    return pgs__pages_of(m->n_bytes);
}

static struct pgs_run data_take(uint64_t want)
{
    uint64_t i = rnd_below(N_DATA), n = 0;
    for (unsigned k = 0; k < N_DATA && data.used[i]; k++) i = (i + 1) % N_DATA;
    while (n < want && i + n < N_DATA && !data.used[i + n]) data.used[i + n++] = 1;
    return (struct pgs_run){{data.first + i}, n};
}

/* --- what one edit does -------------------------------------------------------------------------------------------------------- */
static void op_set_new(struct world *w, struct pgs__content_edit *e, struct model *m)
{
    uint64_t n_pages = model_pages(m), at = rnd_below(n_pages), longest = rnd_below(8) ? 8 : n_pages;
    struct pgs_run run = data_take(1 + rnd_below(pgs__min_u64(n_pages - at, longest)));
    bool sums = rnd_below(3) != 0;
    uint64_t xxh[MAX_LP];
    write_run(w, run, run.page.n * 100000 + w->gen);
    for (uint64_t i = 0; i < run.n_pages; i++) {
        xxh[i] = pgs__hash_page(pgs__page(&w->pf, (struct pgs_pgno){run.page.n + i}));
        m->lp[at + i].page = run.page.n + i;
        m->lp[at + i].birth = w->gen;
        m->lp[at + i].xxh = sums ? xxh[i] : 0;
    }
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){at}, run, w->gen, sums ? xxh : NULL, &err));
}

/* Runs of the base (or of this edit) come back, at their place or elsewhere: a revert, or theirs at a rebase. */
static void op_set_old(struct pgs__content_edit *e, struct model *m, const struct model *base)
{
    uint64_t n_pages = model_pages(m), from = rnd_below(pgs__max_u64(model_pages(base), 1));
    uint64_t at = rnd_below(4) ? from : rnd_below(n_pages + 1);
    if (from >= model_pages(base) || at >= n_pages || base->lp[from].page == 0) return;
    for (uint64_t i = 0; i < n_pages; i++) /* each page once, here as in real objects */
        if (i != at && m->lp[i].page == base->lp[from].page) return;
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){at}, (struct pgs_run){{base->lp[from].page}, 1},
                              base->lp[from].birth, NULL, &err));
    m->lp[at].page = base->lp[from].page;
    m->lp[at].birth = base->lp[from].birth;
    m->lp[at].xxh = 0;
}

static void op_punch(struct pgs__content_edit *e, struct model *m)
{
    uint64_t lo = rnd_below(MAX_LP), hi = lo + rnd_below(rnd_below(8) ? 10 : MAX_LP);
    CHECK_OK(pgs__content_punch(e, lo, hi, &err));
    for (uint64_t i = lo; i < hi && i < MAX_LP; i++) memset(&m->lp[i], 0, sizeof m->lp[i]);
}

static void op_resize(struct pgs__content_edit *e, struct model *m)
{
    uint64_t n_bytes = rnd_below(6) ? rnd_below(MAX_LP * (uint64_t)PGS_PAGE_SIZE) : m->n_bytes + rnd_below(3);
    n_bytes = pgs__min_u64(n_bytes, MAX_LP * (uint64_t)PGS_PAGE_SIZE);
    CHECK_OK(pgs__content_resize(e, n_bytes, &err));
    m->n_bytes = n_bytes;
    for (uint64_t i = model_pages(m); i < MAX_LP; i++) memset(&m->lp[i], 0, sizeof m->lp[i]);
}

/* One run over everything: the way to EXTENT. */
static void op_fill(struct world *w, struct pgs__content_edit *e, struct model *m)
{
    uint64_t n_pages = pgs__min_u64(model_pages(m), 1 + rnd_below(40));
    struct pgs_run run = data_take(n_pages);
    if (run.n_pages < n_pages) return;
    m->n_bytes = pgs__min_u64(m->n_bytes, n_pages << PGS_PAGE_SHIFT);
    for (uint64_t i = n_pages; i < MAX_LP; i++) memset(&m->lp[i], 0, sizeof m->lp[i]);
    CHECK_OK(pgs__content_resize(e, m->n_bytes, &err));
    write_run(w, run, run.page.n * 100000 + w->gen);
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){0}, run, w->gen, NULL, &err));
    for (uint64_t i = 0; i < run.n_pages; i++) {
        m->lp[i].page = run.page.n + i;
        m->lp[i].birth = w->gen;
        m->lp[i].xxh = 0;
    }
}

static void random_op(struct world *w, struct pgs__content_edit *e, struct model *m, const struct model *base)
{
    switch (rnd_below(12)) {
    case 0:
        op_resize(e, m);
        return;
    case 1:
    case 2:
        op_punch(e, m);
        return;
    case 3:
        op_set_old(e, m, base);
        return;
    case 4:
        if (m->n_bytes && rnd_below(4) == 0) op_fill(w, e, m);
        return;
    default:
        if (m->n_bytes) op_set_new(w, e, m);
    }
}

/* --- what is checked after a commit ----------------------------------------------------------------------------------------------- */
struct seen {
    const struct model *m;
    uint64_t next, n_stored; /* first logical page not yet seen */
    struct pgs_run last;
    uint64_t last_end, last_birth;
    bool clipped;
};

static int see_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct seen *s = ctx;
    CHECK(at.n >= s->next && run.n_pages > 0);
    for (uint64_t i = s->next; i < at.n; i++) CHECK_EQ(s->m->lp[i].page, 0);
    for (uint64_t i = 0; i < run.n_pages; i++) {
        CHECK_EQ(s->m->lp[at.n + i].page, run.page.n + i);
        CHECK_EQ(s->m->lp[at.n + i].birth, birth);
    }
    /* merged: this run does not continue the one before */
    CHECK(!(s->last_end == at.n && s->last.n_pages && s->last.page.n + s->last.n_pages == run.page.n &&
            s->last_birth == birth));
    s->last = run;
    s->last_birth = birth;
    s->last_end = s->next = at.n + run.n_pages;
    s->n_stored += run.n_pages;
    return 0;
}

static void check_runs(struct world *w, const struct pgs__content *c, const struct model *m)
{
    struct seen s = {.m = m};
    CHECK_EQ(c->n_bytes, m->n_bytes);
    CHECK_OK(pgs__content_runs(&w->pf, c, 0, UINT64_MAX, see_run, &s, &err));
    for (uint64_t i = s.next; i < model_pages(m); i++) CHECK_EQ(m->lp[i].page, 0);
    CHECK_EQ(s.n_stored, c->n_stored);
    for (int k = 0; k < 4; k++) {
        uint64_t lo = rnd_below(MAX_LP), hi = lo + rnd_below(40);
        s = (struct seen){.m = m, .next = lo};
        CHECK_OK(pgs__content_runs(&w->pf, c, lo, hi, see_run, &s, &err));
        CHECK(s.next <= pgs__max_u64(hi, lo));
        for (uint64_t i = s.next; i < hi && i < model_pages(m); i++) CHECK_EQ(m->lp[i].page, 0);
    }
}

static void check_form(struct world *w, const struct pgs__content *c, const struct model *m)
{
    bool one = model_pages(m) > 0 && m->lp[0].page;
    bool sums = false;
    for (uint64_t i = 0; i < model_pages(m); i++) {
        one = one && m->lp[i].page == m->lp[0].page + i && m->lp[i].birth == m->lp[0].birth;
        sums |= m->lp[i].xxh != 0;
    }
    CHECK_EQ(c->form, one ? PGS__FORM_EXTENT : PGS__FORM_MAP);
    if (one) CHECK_EQ(c->page.n, m->lp[0].page);
    if (one && !sums) CHECK_EQ(c->map.page, 0);
    if (c->map.page) {
        struct pgs__tree t = pgs__map_tree(&w->pf, c);
        CHECK_OK(pgs__tree_check(&t, &err));
    }
}

/* Pages of the base that the new content does not have, each once, with the base's birth. */
static void check_dead(struct world *w, struct pgs__content_edit *e, const struct model *base, const struct model *m)
{
    static uint64_t want[N_DATA], got[N_DATA];
    const struct pgs__dead_run *list;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes;
    (void)w;
    memset(want, 0, sizeof want);
    memset(got, 0, sizeof got);
    for (uint64_t i = 0; i < model_pages(base); i++)
        if (base->lp[i].page) want[base->lp[i].page - data.first] = base->lp[i].birth;
    for (uint64_t i = 0; i < model_pages(m); i++)
        if (m->lp[i].page) want[m->lp[i].page - data.first] = 0;
    CHECK_OK(pgs__content_dead(e, &list, &n, &nodes, &n_nodes, &err));
    for (size_t i = 0; i < n; i++) {
        if (i) { /* ascending and merged */
            uint64_t end = list[i - 1].run.page.n + list[i - 1].run.n_pages;
            CHECK(list[i].run.page.n >= end);
            CHECK(list[i].run.page.n > end || list[i].birth != list[i - 1].birth);
        }
        for (uint64_t k = 0; k < list[i].run.n_pages; k++) {
            uint64_t page = list[i].run.page.n + k - data.first;
            CHECK(page < N_DATA && got[page] == 0);
            got[page] = list[i].birth;
        }
    }
    for (unsigned i = 0; i < N_DATA; i++) CHECK_EQ(got[i], want[i]);
}

/* Everything that neither the base nor the new content uses is free again. */
static void data_sweep(const struct model *m)
{
    memset(data.used, 0, sizeof data.used);
    for (uint64_t i = 0; i < model_pages(m); i++)
        if (m->lp[i].page) data.used[m->lp[i].page - data.first] = 1;
}

struct node_set {
    uint64_t page[4096];
    size_t n;
};
static int add_node(void *ctx, const struct pgs_ptr *node, int level)
{
    struct node_set *s = ctx;
    (void)level;
    CHECK(s->n < PGS_ARRAY_LEN(s->page));
    s->page[s->n++] = node->page;
    return 0;
}
static bool has_node(const struct node_set *s, uint64_t page)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->page[i] == page) return true;
    return false;
}

static void check_dead_nodes(struct world *w, struct pgs__content_edit *e, const struct pgs__content *old,
                             const struct pgs__content *new)
{
    static struct node_set before, after;
    const struct pgs__dead_run *list;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes, n_gone = 0;
    before.n = after.n = 0;
    CHECK_OK(pgs__content_nodes(&w->pf, old, add_node, &before, &err));
    CHECK_OK(pgs__content_nodes(&w->pf, new, add_node, &after, &err));
    CHECK_OK(pgs__content_dead(e, &list, &n, &nodes, &n_nodes, &err));
    for (size_t i = 0; i < before.n; i++) n_gone += !has_node(&after, before.page[i]);
    CHECK_EQ(n_nodes, n_gone);
    for (size_t i = 0; i < n_nodes; i++) CHECK(has_node(&before, nodes[i].page) && !has_node(&after, nodes[i].page));
}

struct ranges {
    uint64_t last;
    bool any;
    uint8_t in[MAX_LP];
};
static int see_range(void *ctx, uint64_t lo, uint64_t hi)
{
    struct ranges *r = ctx;
    CHECK(lo < hi && hi <= MAX_LP && (!r->any || lo > r->last)); /* ascending, merged */
    memset(r->in + lo, 1, hi - lo);
    r->last = hi;
    r->any = true;
    return 0;
}

static void check_diff(struct world *w, const struct pgs__content *a, const struct model *ma,
                       const struct pgs__content *b, const struct model *mb)
{
    struct ranges r = {0};
    uint64_t shared = pgs__min_u64(model_pages(ma), model_pages(mb)),
             all = pgs__max_u64(model_pages(ma), model_pages(mb));
    CHECK_OK(pgs__content_diff(&w->pf, a, b, see_range, &r, &err));
    for (uint64_t i = 0; i < MAX_LP; i++) {
        bool want = i < all && (i >= shared || ma->lp[i].page != mb->lp[i].page ||
                                (ma->lp[i].page && ma->lp[i].birth != mb->lp[i].birth));
        CHECK_EQ(r.in[i], want);
    }
}

static void check_verify(struct world *w, const struct pgs__content *c, const struct model *m)
{
    uint64_t n_unverified, want = 0;
    for (uint64_t i = 0; i < model_pages(m); i++) want += m->lp[i].page && !m->lp[i].xxh;
    CHECK_OK(pgs__content_verify(&w->pf, c, &n_unverified, &err));
    CHECK_EQ(n_unverified, want);
}

/* Data pages are recycled, so only the newest content's bytes can be read; maps are never written over, so all can be compared. */
static void history_of_random_edits(uint64_t seed, int n_commits)
{
    static struct model m, history[N_HISTORY];
    static struct pgs__content content[N_HISTORY];
    struct world w;
    int extents = 0;
    world_open(&w);
    rng_state = seed;
    data.first = take(&w, N_DATA).page.n;
    memset(&m, 0, sizeof m);
    memset(history, 0, sizeof history);
    for (int i = 0; i < N_HISTORY; i++) content[i] = (struct pgs__content){.form = PGS__FORM_MAP};
    for (int k = 1; k <= n_commits; k++) {
        const struct model *base = &history[(k - 1) % N_HISTORY];
        struct pgs__content old = content[(k - 1) % N_HISTORY];
        struct pgs__content_edit *e = edit_of(&w, k == 1 ? NULL : &old);
        data_sweep(base);
        uint64_t n_ops = rnd_below(rnd_below(4) ? 6 : 60);
        for (uint64_t i = 0; i < n_ops; i++) {
            random_op(&w, e, &m, base);
            if (rnd_below(40) == 0) check_dead(&w, e, base, &m); /* asking in between changes nothing */
        }
        if (m.n_bytes && rnd_below(10) == 0) op_fill(&w, e, &m);
        check_dead(&w, e, base, &m);
        struct pgs__content new = commit_keep(&w, e);
        check_dead(&w, e, base, &m);
        check_dead_nodes(&w, e, &old, &new);
        pgs__content_edit_free(e);
        check_runs(&w, &new, &m);
        check_form(&w, &new, &m);
        check_verify(&w, &new, &m);
        for (int h = 0; h < 3; h++) {
            int i = h ? (int)rnd_below(N_HISTORY) : (k - 1) % N_HISTORY;
            check_diff(&w, &content[i], &history[i], &new, &m);
            check_diff(&w, &new, &m, &content[i], &history[i]);
        }
        history[k % N_HISTORY] = m;
        content[k % N_HISTORY] = new;
        extents += new.form == PGS__FORM_EXTENT;
    }
    CHECK(extents > 2); /* the other form was met, too */
    world_close(&w);
}

TEST(random_edits_leave_what_a_plain_array_of_pages_says)
{
    for (uint64_t seed = 1; seed <= 6; seed++) history_of_random_edits(seed, 150);
}

/* --- forms ------------------------------------------------------------------------------------------------------------------------- */
TEST(a_new_content_is_a_hole_that_costs_nothing)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 1ull << 40, &err));
    CHECK_EQ(pgs__content_n_dirty(e), 0);
    struct pgs__content c = commit(&w, e);
    CHECK(c.form == PGS__FORM_MAP && c.map.page == 0 && c.n_stored == 0 && c.n_bytes == 1ull << 40);
    struct seen s = {0};
    CHECK_OK(pgs__content_runs(&w.pf, &c, 0, UINT64_MAX, see_run, &s, &err));
    uint64_t word = 7;
    CHECK_OK(pgs__content_read(&w.pf, &c, (1ull << 40) - 8, &word, 8, &err));
    CHECK_EQ(word, 0);
    CHECK_ERR(pgs__content_read(&w.pf, &c, (1ull << 40) - 7, &word, 8, NULL), PGS_EINVAL);
    CHECK_ERR(pgs__content_read(&w.pf, &c, UINT64_MAX - 3, &word, 8, NULL), PGS_EINVAL);
    e = edit_of(&w, &c);
    CHECK_OK(pgs__content_punch(e, 0, UINT64_MAX, &err));
    CHECK_ERR(pgs__content_resize(e, (1ull << 46) + 1, NULL), PGS_E2BIG);
    pgs__content_edit_free(e);
    world_close(&w);
}

TEST(an_untouched_extent_stays_as_it_is)
{
    struct world w;
    world_open(&w);
    struct pgs_run run = take(&w, 3);
    write_run(&w, run, 5);
    struct pgs__content c = {.form = PGS__FORM_EXTENT,
                             .n_bytes = 10000,
                             .n_stored = 3,
                             .page = run.page,
                             .birth = 4,
                             .xxh = 9,
                             .xxh_bytes = 10000},
                        d;
    struct pgs__content_edit *e = edit_of(&w, &c);
    d = commit(&w, e);
    CHECK(d.form == PGS__FORM_EXTENT && d.page.n == run.page.n && d.birth == 4 && d.xxh == 9 && d.n_stored == 3);
    e = edit_of(&w, &c);
    CHECK_OK(pgs__content_resize(e, 12288, &err)); /* same pages */
    d = commit(&w, e);
    CHECK(d.form == PGS__FORM_EXTENT && d.n_bytes == 12288 && d.xxh == 0 && d.map.page == 0);
    e = edit_of(&w, &c);
    CHECK_OK(pgs__content_resize(e, 12289, &err));
    d = commit(&w, e);
    CHECK(d.form == PGS__FORM_MAP && d.n_stored == 3 && d.map.page);
    world_close(&w);
}

TEST(an_inline_base_has_nothing_stored)
{
    struct world w;
    world_open(&w);
    struct pgs__content c = {.form = PGS__FORM_INLINE, .n_bytes = 5, .inline_data = "hello"};
    char buf[8] = {0};
    CHECK_OK(pgs__content_read(&w.pf, &c, 1, buf, 4, &err));
    CHECK(memcmp(buf, "ello", 4) == 0);
    uint8_t page[PGS_PAGE_SIZE];
    CHECK_OK(pgs__content_read(&w.pf, &c, 0, page, sizeof page, &err)); /* to the end of the page: zeros */
    CHECK(memcmp(page, "hello\0\0", 7) == 0 && page[4095] == 0);
    struct pgs__content_edit *e = edit_of(&w, &c);
    CHECK_OK(pgs__content_resize(e, 8000, &err));
    set_new(&w, e, 0, 1, 1);
    const struct pgs__dead_run *list;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes;
    CHECK_OK(pgs__content_dead(e, &list, &n, &nodes, &n_nodes, &err));
    CHECK(n == 0 && n_nodes == 0);
    struct pgs__content d = commit(&w, e);
    CHECK(d.form == PGS__FORM_MAP && d.n_stored == 1);
    struct ranges r = {0};
    CHECK_OK(pgs__content_diff(&w.pf, &c, &d, see_range, &r, &err));
    CHECK(r.in[0] && r.in[1] && !r.in[2]);
    struct pgs__content same = {.form = PGS__FORM_INLINE, .n_bytes = 5, .inline_data = "hello"};
    memset(&r, 0, sizeof r);
    CHECK_OK(pgs__content_diff(&w.pf, &c, &same, see_range, &r, &err));
    CHECK(!r.any);
    world_close(&w);
}

TEST(setting_beyond_the_end_is_caught_before_it_is_written)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    set_new(&w, e, 3, 2, 1);
    struct pgs__content c;
    CHECK_EQ(pgs__content_n_dirty(e), 0);
    CHECK_ERR(pgs__content_finish(e, 1, NULL, NULL, &c, NULL), PGS_EBUG);
    pgs__content_edit_free(e);
    e = edit_of(&w, NULL); /* in this order it is fine */
    set_new(&w, e, 3, 2, 1);
    CHECK_OK(pgs__content_resize(e, 5 * 4096, &err));
    c = commit(&w, e);
    CHECK_EQ(c.n_stored, 2);
    world_close(&w);
}

TEST(pages_that_repeat_die_once_for_each_reference)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 10 * 4096, &err));
    struct pgs_run run = set_new(&w, e, 0, 2, 1);
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){5}, run, w.gen, NULL, &err));
    struct pgs__content c = commit(&w, e);
    CHECK_EQ(c.n_stored, 4);
    e = edit_of(&w, &c);
    CHECK_OK(pgs__content_punch(e, 0, 10, &err));
    const struct pgs__dead_run *list;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes;
    CHECK_OK(pgs__content_dead(e, &list, &n, &nodes, &n_nodes, &err));
    CHECK(n == 2 && list[0].run.page.n == run.page.n && list[1].run.page.n == run.page.n && list[1].run.n_pages == 2);
    pgs__content_edit_free(e);
    world_close(&w);
}

TEST(many_changes_in_one_edit_need_memory_for_their_outcome_only)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 64 * 4096, &err));
    set_new(&w, e, 0, 64, 1);
    struct pgs__content c = commit(&w, e);
    e = edit_of(&w, &c);
    struct pgs_run run = take(&w, 64);
    for (int i = 0; i < 30000; i++) { /* more notes than are kept unsummed */
        uint64_t at = rnd_below(64);
        CHECK_OK(pgs__content_set(e, (struct pgs_lpno){at}, (struct pgs_run){{run.page.n + at}, 1}, w.gen, NULL, &err));
    }
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){0}, run, w.gen, NULL, &err));
    const struct pgs__dead_run *list;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes;
    CHECK_OK(pgs__content_dead(e, &list, &n, &nodes, &n_nodes, &err));
    CHECK(n == 1 && list[0].run.n_pages == 64);
    struct pgs__content d = commit(&w, e);
    CHECK(d.form == PGS__FORM_EXTENT && d.page.n == run.page.n);
    world_close(&w);
}

/* A page that was freed and used again between the two contents has another birth. */
TEST(one_page_with_two_births_is_a_difference)
{
    struct world w;
    world_open(&w);
    struct pgs__content c[2];
    struct pgs_run run = take(&w, 3);
    for (uint64_t k = 0; k < 2; k++) {
        struct pgs__content_edit *e = edit_of(&w, NULL);
        CHECK_OK(pgs__content_resize(e, 9 * 4096, &err));
        CHECK_OK(pgs__content_set(e, (struct pgs_lpno){4}, run, 5 + k, NULL, &err));
        c[k] = commit(&w, e);
    }
    struct ranges r = {0};
    CHECK_OK(pgs__content_diff(&w.pf, &c[0], &c[1], see_range, &r, &err));
    CHECK(!r.in[3] && r.in[4] && r.in[6] && !r.in[7]);
    struct pgs__content x = {.form = PGS__FORM_EXTENT,
                             .n_bytes = 3 * 4096,
                             .n_stored = 3,
                             .page = run.page,
                             .birth = 5},
                        y = x;
    y.birth = 6;
    memset(&r, 0, sizeof r);
    CHECK_OK(pgs__content_diff(&w.pf, &x, &y, see_range, &r, &err));
    CHECK(r.in[0] && r.in[2] && !r.in[3]);
    world_close(&w);
}

/* --- bytes and checksums ------------------------------------------------------------------------------------------------------------ */
TEST(bytes_are_read_across_runs_and_holes)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 40 * 4096 - 100, &err));
    set_new(&w, e, 1, 3, 10);
    set_new(&w, e, 4, 2, 50);
    set_new(&w, e, 20, 9, 70);
    struct pgs__content c = commit(&w, e);
    static uint8_t want[40 * 4096], got[40 * 4096];
    for (uint64_t i = 0; i < 3; i++) pattern(want + (1 + i) * 4096, 10 + i);
    for (uint64_t i = 0; i < 2; i++) pattern(want + (4 + i) * 4096, 50 + i);
    for (uint64_t i = 0; i < 9; i++) pattern(want + (20 + i) * 4096, 70 + i);
    for (int k = 0; k < 500; k++) {
        uint64_t off = rnd_below(sizeof want), len = rnd_below(sizeof want - off + 1);
        memset(got, 0xee, sizeof got);
        CHECK_OK(pgs__content_read(&w.pf, &c, off, got, len, &err));
        CHECK(memcmp(got, want + off, len) == 0);
        CHECK(len == sizeof got || got[len] == 0xee);
    }
    c.xxh = pgs__hash(want, c.n_bytes); /* as a stream over runs and holes */
    c.xxh_bytes = c.n_bytes;
    uint64_t n;
    CHECK_OK(pgs__content_verify(&w.pf, &c, &n, &err));
    CHECK_EQ(n, 0);
    c.xxh++;
    CHECK_ERR(pgs__content_verify(&w.pf, &c, &n, NULL), PGS_ECORRUPT);
    c.xxh_bytes = 5000; /* the front only: one whole page and a part of one, which holds other bytes too */
    c.xxh = pgs__hash(want, 5000);
    CHECK_OK(pgs__content_verify_stream(&w.pf, &c, &err));
    CHECK_OK(pgs__content_verify(&w.pf, &c, &n, &err));
    CHECK_EQ(n, c.n_stored); /* page 0 is a hole, so no stored page is covered */
    c.xxh++;
    CHECK_ERR(pgs__content_verify_stream(&w.pf, &c, NULL), PGS_ECORRUPT);
    world_close(&w);
}

TEST(a_changed_byte_fails_the_check_of_its_page)
{
    struct world w;
    world_open(&w);
    struct pgs_run run = take(&w, 300);
    uint64_t xxh[300], n;
    write_run(&w, run, 1);
    for (uint64_t i = 0; i < 300; i++) xxh[i] = pgs__hash_page(pgs__page(&w.pf, (struct pgs_pgno){run.page.n + i}));
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 300 * 4096, &err));
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){0}, run, 1, xxh, &err));
    struct pgs__content c = commit(&w, e);
    CHECK(c.form == PGS__FORM_EXTENT && c.map.page);
    CHECK_OK(pgs__content_verify(&w.pf, &c, &n, &err));
    CHECK_EQ(n, 0);
    uint8_t page[PGS_PAGE_SIZE];
    pattern(page, 1 + 299);
    page[77] ^= 4;
    CHECK_OK(pgs__pages_write(&w.pf, (struct pgs_pgno){run.page.n + 299}, page, 1, &err));
    CHECK_ERR(pgs__content_verify(&w.pf, &c, &n, &err), PGS_ECORRUPT);
    CHECK(strstr(err.text, "299"));
    world_close(&w);
}

/* --- damage -------------------------------------------------------------------------------------------------------------------------- */
/* A map with these entries, whatever they say. */
static struct pgs__content forged(struct world *w, const struct pgs__placed_run *runs, size_t n, uint64_t n_bytes)
{
    static const struct pgs_ptr none;
    struct pgs__edit *e = pgs__edit_new(&w->pf, PGS__TREE_MAP, &none);
    struct pgs__content c = {.form = PGS__FORM_MAP, .n_bytes = n_bytes, .n_stored = 8};
    uint8_t key[9], buf[PGS_PAGE_SIZE];
    for (size_t i = 0; i < n; i++) {
        struct pgs__map_run r = {runs[i].page, runs[i].n_pages, runs[i].birth};
        pgs__map_key(key, 'E', runs[i].at);
        CHECK_OK(pgs__edit_put(e, key, 9, &r, sizeof r, &err));
    }
    CHECK_EQ(pgs__edit_n_dirty(e), 1);
    struct pgs_run node = take(w, 1);
    CHECK_OK(pgs__edit_finish(e, 1, &node.page, buf, &c.map, &err));
    CHECK_OK(pgs__pages_write(&w->pf, node.page, buf, 1, &err));
    pgs__edit_free(e);
    return c;
}
static int ignore_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    (void)ctx, (void)at, (void)run, (void)birth;
    return 0;
}
static int ignore_range(void *ctx, uint64_t lo, uint64_t hi)
{
    (void)ctx, (void)lo, (void)hi;
    return 0;
}

TEST(damaged_maps_are_errors_never_wild_pointers)
{
    struct world w;
    world_open(&w);
    static const struct pgs__placed_run bad[][2] = {
        {{0, 1u << 30, 4, 1}, {5, 2000, 1, 1}},          /* beyond the file */
        {{0, 2000, 0, 1}, {5, 2000, 1, 1}},              /* empty */
        {{0, 0, 2, 1}, {5, 2000, 1, 1}},                 /* page 0 */
        {{0, 510, 4, 1}, {5, 2000, 1, 1}},               /* over the second superblock */
        {{0, 2000, 6, 1}, {5, 3000, 1, 1}},              /* overlap */
        {{0, 2000, 1, 1}, {5, 3000, 9, 1}},              /* beyond the object */
        {{0, UINT64_MAX - 1, 4, 1}, {5, 2000, 1, 1}},    /* overflow */
        {{0, 2000, UINT64_MAX - 1, 1}, {5, 2000, 1, 1}}, /* overflow */
        {{0, 2000, 1, 1}, {UINT64_MAX, 2000, 2, 1}},     /* overflow of the logical page */
    };
    struct pgs_run good = take(&w, 8);
    struct pgs__content extent = {.form = PGS__FORM_EXTENT, .n_bytes = 8 * 4096, .n_stored = 8, .page = good.page};
    for (size_t i = 0; i < PGS_ARRAY_LEN(bad); i++) {
        struct pgs__content c = forged(&w, bad[i], 2, 8 * 4096);
        uint8_t buf[8 * 4096];
        CHECK_ERR(pgs__content_runs(&w.pf, &c, 0, UINT64_MAX, ignore_run, NULL, NULL), PGS_ECORRUPT);
        CHECK_ERR(pgs__content_read(&w.pf, &c, 0, buf, sizeof buf, NULL), PGS_ECORRUPT);
        (void)pgs__content_diff(&w.pf, &c, &extent, ignore_range, NULL, NULL);
        struct pgs__content none = {.form = PGS__FORM_MAP, .n_bytes = c.n_bytes};
        (void)pgs__content_diff(&w.pf, &none, &c, ignore_range, NULL, NULL);
        struct pgs__content_edit *e = edit_of(&w, &c);
        struct pgs__content out;
        int rc = pgs__content_punch(e, 0, 100, NULL);
        if (rc == 0) rc = pgs__content_finish(e, 1, NULL, NULL, &out, NULL);
        CHECK(i == 5 ? rc == 0 || rc == -PGS_ECORRUPT : rc == -PGS_ECORRUPT);
        pgs__content_edit_free(e);
    }
    extent.page.n = 1u << 30;
    CHECK_ERR(pgs__content_runs(&w.pf, &extent, 0, 1, ignore_run, NULL, NULL), PGS_ECORRUPT);
    world_close(&w);
}

TEST(an_edit_without_memory_fails_and_leaves_nothing)
{
    struct world w;
    world_open(&w);
    rng_state = 3;
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 2000 * 4096, &err));
    for (uint64_t i = 0; i < 1000; i++) set_new(&w, e, 2 * i, 1, i);
    struct pgs__content c = commit(&w, e);
    struct pgs_run run = take(&w, 500);
    struct pgs__tree t = pgs__map_tree(&w.pf, &c);
    CHECK_OK(pgs__tree_check(&t, &err)); /* the page file's own memory for addresses is there now */
    for (uint64_t nth = 1;; nth++) {
        struct pgs_error quiet = {0};
        struct pgs__content out;
        const struct pgs__dead_run *list;
        const struct pgs_ptr *nodes;
        size_t n, n_nodes;
        pgs__inject_fail(PGS__FAIL_MEM, nth, ENOMEM, false);
        e = pgs__content_edit_new(&w.pf, &c);
        int rc = e ? 0 : -PGS_ENOMEM;
        if (rc == 0) rc = pgs__content_set(e, (struct pgs_lpno){700}, run, 2, NULL, &quiet);
        if (rc == 0) rc = pgs__content_dead(e, &list, &n, &nodes, &n_nodes, &quiet);
        uint64_t n_dirty = rc == 0 ? pgs__content_n_dirty(e) : 0;
        static uint8_t buf[64 * PGS_PAGE_SIZE];
        static struct pgs_pgno pages[64];
        CHECK(n_dirty <= 64);
        for (unsigned i = 0; i < 64; i++) pages[i].n = 3000 + i;
        if (rc == 0) rc = pgs__content_finish(e, 2, pages, buf, &out, &quiet);
        pgs__inject_clear();
        if (rc) CHECK(rc == -PGS_ENOMEM && (!e || pgs__content_punch(e, 0, 1, NULL) == -PGS_ENOMEM));
        pgs__content_edit_free(e);
        if (rc == 0) {
            if (nth <= 3) TEST_FAIL("done at allocation %llu", (unsigned long long)nth);
            break;
        }
    }
    world_close(&w);
}

TEST(diff_of_two_large_maps_costs_what_differs)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 60000ull * 4096, &err));
    struct pgs_run run = take(&w, 30000);
    for (uint64_t i = 0; i < 30000; i++)
        CHECK_OK(pgs__content_set(e, (struct pgs_lpno){2 * i}, (struct pgs_run){{run.page.n + i}, 1}, 1, NULL, &err));
    struct pgs__content a = commit(&w, e);
    e = edit_of(&w, &a);
    struct pgs_run other = take(&w, 1);
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){500}, other, 2, NULL, &err));
    struct pgs__content b = commit(&w, e);
    /* Forget what was verified: the nodes that the diff reads are then entered again, and can be counted. */
    size_t n_entries = (size_t)1 << PGS__VERIFIED_BITS, n_read = 0;
    for (size_t i = 0; i < n_entries; i++) atomic_store(&w.pf.verified[i], 0);
    struct ranges r = {0};
    CHECK_OK(pgs__content_diff(&w.pf, &a, &b, see_range, &r, &err));
    CHECK(r.in[500] && r.last == 501);
    for (size_t i = 0; i < n_entries; i++) n_read += atomic_load(&w.pf.verified[i]) != 0;
    CHECK(n_read > 0 && n_read <= 8);
    world_close(&w);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
