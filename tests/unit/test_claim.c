/* Pagestone | tests/unit/test_claim — where pages for writing come from, and that they go back.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <pthread.h>

#include "libshm/platform/hash.h"
#include "tests/unit/commit_fixture.h"

static int alloc(struct pgs__claim *c, bool is_node, uint64_t n, int flags, struct pgs_run *runs, size_t *n_runs)
{
    memset(&err, 0, sizeof err);
    return pgs__claim_alloc(c, NULL, is_node, n, flags, runs, 64, n_runs, &err);
}

static uint64_t owned(struct pgs__session *s)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < 512; i++) n += pgs__owner_of(&s->ctl, i) != 0;
    return n;
}

TEST(small_runs_share_a_chunk_and_kinds_do_not)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__claim c;
    struct pgs_run r[64], n[64];
    size_t k;
    pgs__claim_init(&c, s);
    CHECK_OK(alloc(&c, false, 3, 0, &r[0], &k));
    CHECK_OK(alloc(&c, false, 5, 0, &r[1], &k));
    CHECK_OK(alloc(&c, true, 4, 0, &n[0], &k));
    CHECK_EQ(r[0].page.n + 3, r[1].page.n);
    CHECK(r[0].page.n / 512 != n[0].page.n / 512);
    CHECK_EQ(owned(s), 2);
    pgs__claim_release(&c);
    pgs__claim_release(&c);
    CHECK_EQ(owned(s), 0);
    pgs__session_unref(s);
}

TEST(large_data_gets_whole_aligned_chunks_in_a_row)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__claim c;
    struct pgs_run r[64];
    size_t k;
    pgs__claim_init(&c, s);
    CHECK_OK(alloc(&c, false, 512 * 7 + 9, 0, r, &k));
    CHECK_EQ(k, 1);
    CHECK_EQ(r[0].page.n % 512, 0);
    CHECK(atomic_load(&s->pf.n_pages) >= r[0].page.n + 512 * 8);
    CHECK(!pgs__run_is_whole(r[0]));
    struct pgs_run more;
    CHECK_OK(alloc(&c, false, 20, 0, &more, &k)); /* from the rest of the last chunk */
    CHECK_EQ(more.page.n, r[0].page.n + 512 * 7 + 9);
    pgs__claim_release(&c);
    pgs__session_unref(s);
}

TEST(two_claims_never_get_the_same_page)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__claim c[4];
    static uint8_t used[1 << 16];
    uint64_t x = 1;
    for (int i = 0; i < 4; i++) pgs__claim_init(&c[i], s);
    for (int i = 0; i < 400; i++) {
        struct pgs_run r[64];
        size_t k;
        x = pgs__mix(x + 1);
        CHECK_OK(alloc(&c[x % 4], (x >> 8) & 1, (x >> 16) % 100 + 1, 0, r, &k));
        for (size_t j = 0; j < k; j++)
            for (uint64_t p = 0; p < r[j].n_pages; p++) CHECK_EQ(used[r[j].page.n + p]++, 0);
        if ((x >> 32) % 3 == 0) {
            pgs__claim_give(&c[x % 4], r[0], (x >> 8) & 1);
            for (uint64_t p = 0; p < r[0].n_pages; p++) used[r[0].page.n + p]--;
        }
    }
    for (int i = 0; i < 4; i++) pgs__claim_release(&c[i]);
    CHECK_EQ(owned(s), 0);
    pgs__session_unref(s);
}

TEST(a_quota_ends_in_the_middle_of_a_chunk)
{
    struct pgs__session *s = memory_store(5000000, PGS_HIST_COUNT, 1); /* 1,220 pages: 2 chunks and 196 pages */
    struct pgs__claim c;
    struct pgs_run r[64];
    size_t k;
    uint64_t total = 0, top = 0;
    pgs__claim_init(&c, s);
    for (uint64_t n = 256; n; n /= 2)
        while (alloc(&c, false, n, 0, r, &k) == 0)
            for (size_t i = 0; i < k; i++) {
                total += r[i].n_pages;
                if (r[i].page.n + r[i].n_pages > top) top = r[i].page.n + r[i].n_pages;
            }
    CHECK(total > 1000 && total < 1220);
    CHECK_EQ(top, 5000000 / 4096);
    CHECK_ERR(alloc(&c, true, 1, 0, r, &k), PGS_EFULL);
    pgs__claim_release(&c);
    CHECK_OK(alloc(&c, true, 1, 0, r, &k));
    pgs__claim_release(&c);
    pgs__session_unref(s);
}

TEST(a_big_run_that_does_not_fit_in_one_piece_comes_in_several)
{
    struct pgs__session *s = memory_store(40 << 20, PGS_HIST_COUNT, 1); /* 20 chunks */
    struct pgs__claim block, c;
    struct pgs_run r[64], keep;
    size_t k;
    pgs__claim_init(&block, s);
    pgs__claim_init(&c, s);
    for (int i = 0; i < 9; i++) { /* every second chunk is somebody's */
        struct pgs__claim gap;
        pgs__claim_init(&gap, s);
        CHECK_OK(alloc(&block, false, 512, 0, &keep, &k));
        CHECK_OK(alloc(&gap, false, 512, 0, &keep, &k));
        CHECK_OK(pgs__claim_join(i & 1 ? &c : &block, &gap));
    }
    CHECK_EQ(c.n_chunks + block.n_chunks, 18);
    pgs__claim_release(&c); /* 4 separate chunks are free */
    CHECK_ERR(alloc(&c, false, 3 * 512, PGS__ALLOC_CONTIGUOUS, r, &k), PGS_EFULL);
    CHECK_EQ(c.n_taken, 0);
    CHECK_OK(alloc(&c, false, 3 * 512, 0, r, &k));
    CHECK(k >= 2);
    uint64_t total = 0;
    for (size_t i = 0; i < k; i++) total += r[i].n_pages;
    CHECK_EQ(total, 3 * 512);
    pgs__claim_release(&c);
    pgs__claim_release(&block);
    pgs__session_unref(s);
}

TEST(what_was_freed_last_is_taken_first)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 0);
    CHECK_OK(put(s, "low", PGS_KIND_BYTES, 1, 4 << 20));
    CHECK_OK(put(s, "high", PGS_KIND_BYTES, 2, 4 << 20));
    CHECK_OK(put(s, "low", PGS_KIND_BYTES, 1, 10));
    CHECK_OK(pgs__drain(s, NULL, false, NULL, &err));
    CHECK_OK(put(s, "high", PGS_KIND_BYTES, 1, 10));
    CHECK_OK(pgs__drain(s, NULL, false, NULL, &err));
    struct pgs__claim c;
    struct pgs_run first, second;
    size_t k;
    pgs__claim_init(&c, s);
    CHECK_OK(alloc(&c, false, 1024, 0, &first, &k));
    CHECK_OK(alloc(&c, false, 1024, PGS__ALLOC_LOWEST, &second, &k));
    CHECK(first.page.n > second.page.n);
    pgs__claim_release(&c);
    check_store(s);
    pgs__session_unref(s);
}

static void begin_commit(struct pgs__commit *c, struct pgs__session *s)
{
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs__commit_begin(c, s, NULL, &err));
    CHECK_OK(pgs__commit_start(c, true, &err));
}
static struct pgs_run nodes(struct pgs__commit *c, enum pgs__life life, uint64_t n)
{
    struct pgs_run run = {{0}, 0};
    size_t k = 0;
    CHECK_OK(pgs__claim_nodes(&c->claim, &c->l, life, n, &run, 1, &k, &err));
    CHECK_EQ(run.n_pages, n);
    return run;
}

TEST(nodes_lie_apart_by_how_long_they_live)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__commit c;
    begin_commit(&c, s);
    struct pgs_run record = nodes(&c, PGS__RECORD, 1), brief = nodes(&c, PGS__SHORT_LIVED, 5);
    struct pgs_run lasting = nodes(&c, PGS__LONG_LIVED, 3), next = nodes(&c, PGS__LONG_LIVED, 2);
    CHECK(record.page.n < 256 && brief.page.n < 256);
    CHECK(lasting.page.n >= 256);
    CHECK_EQ(next.page.n, lasting.page.n + 3);
    CHECK_EQ(owned(s), 1);
    while (lasting.page.n < 512)
        lasting = nodes(&c, PGS__LONG_LIVED, 100); /* a new chunk when the list holds no more */
    CHECK_EQ(lasting.page.n % 512, 0);
    CHECK(pgs__pagefile_holds(&s->pf, lasting.page.n, 512));
    CHECK_EQ(owned(s), 2);
    struct pgs_run mixed[64]; /* the same claim the other way: no page twice */
    size_t k;
    CHECK_OK(pgs__claim_alloc(&c.claim, &c.l, true, 20, 0, mixed, 64, &k, &err));
    for (size_t i = 0; i < k; i++) {
        CHECK(mixed[i].page.n + mixed[i].n_pages <= lasting.page.n || mixed[i].page.n >= lasting.page.n + 100);
        CHECK(mixed[i].page.n != record.page.n);
    }
    pgs__commit_abandon(&c);
    CHECK_EQ(owned(s), 0);
    check_store(s);
    pgs__session_unref(s);
}

TEST(chunks_of_others_are_left_alone_by_a_commit)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__commit c;
    CHECK(pgs__claim_owner_words(s, 0, &err) == 0 &&
          pgs__owner_claim(&s->ctl, 0, s->tag)); /* as a transaction's claim */
    begin_commit(&c, s);
    CHECK(nodes(&c, PGS__RECORD, 1).page.n >= 1024);
    CHECK(nodes(&c, PGS__LONG_LIVED, 7).page.n >= 1024);
    pgs__commit_abandon(&c);
    CHECK_EQ(owned(s), 1);
    pgs__owner_release(&s->ctl, 0, s->tag);
    CHECK_OK(put(s, "k", PGS_KIND_BYTES, 1, 30));
    check_store(s);
    pgs__session_unref(s);
}

TEST(a_claim_inherited_through_fork_stays_the_parents)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 1);
    struct pgs__claim c;
    struct pgs_run r[64];
    size_t k;
    int status;
    pgs__claim_init(&c, s);
    CHECK_OK(alloc(&c, false, 10, 0, r, &k));
    pid_t pid = fork();
    if (pid == 0) {
        pgs__claim_release(&c);
        _exit(owned(s) == 1 ? 0 : 1);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK_EQ(owned(s), 1);
    pgs__claim_release(&c);
    CHECK_EQ(owned(s), 0);
    pgs__session_unref(s);
}

TEST(a_dead_processs_chunks_are_taken_back_before_the_store_is_full)
{
    struct pgs__session *s = memory_store(16 << 20, PGS_HIST_COUNT, 1);
    struct pgs_run r[64];
    size_t k;
    pid_t pid = fork();
    if (pid == 0) {
        struct pgs__claim c;
        pgs__claim_init(&c, s);
        int rc = alloc(&c, false, 5 * 512, 0, r, &k);
        _exit(rc != 0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK(owned(s) >= 5);
    struct pgs__claim c;
    pgs__claim_init(&c, s);
    CHECK_OK(alloc(&c, false, 5 * 512, 0, r, &k));
    pgs__claim_release(&c);
    CHECK_EQ(owned(s), 0);
    pgs__session_unref(s);
}

/* Threads claim without the lock and commit what they wrote; nobody's bytes are overwritten. */
struct worker {
    struct pgs__session *s;
    int id;
};
static void *work(void *ctx)
{
    struct worker *w = ctx;
    char key[16];
    for (int i = 0; i < 40; i++) {
        struct pgs__claim claim;
        struct pgs__commit c = {.s = w->s};
        struct pgs__content content;
        struct pgs_error e = {0};
        uint64_t n = 3000 + 20000 * (uint64_t)((i + w->id) % 7), seed = (uint64_t)(w->id * 1000 + i);
        uint8_t *bytes = pattern_bytes(seed, n), record[PGS__RECORD_MAX];
        size_t len;
        pgs__claim_init(&claim, w->s);
        CHECK_EQ(fill_content(&c, &claim, false, &content, bytes, n, false), 0);
        content.birth = 1;
        content.xxh = pgs__hash(bytes, n);
        content.xxh_bytes = n;
        snprintf(key, sizeof key, "w%d", w->id);
        CHECK_EQ(pgs__commit_begin(&c, w->s, NULL, &e), 0);
        CHECK_EQ(pgs__commit_start(&c, true, &e), 0);
        CHECK_EQ(pgs__claim_join(&c.claim, &claim), 0);
        struct pgs__object old, o = {.kind = PGS_KIND_BYTES, .content = content};
        o.id = ++c.l.meta.hdr.next_id;
        c.l.meta.hdr.next_id++;
        o.version = c.l.meta.hdr.version;
        int rc = pgs__object_find(w->s, &c.tree, key, strlen(key), &old, NULL);
        if (rc == 0)
            CHECK_EQ(pgs__commit_kill_content(&c, &old, &e), 0);
        else
            c.n_objects++;
        CHECK_EQ(pgs__object_encode(&o, record, &len, &e), 0);
        CHECK_EQ(pgs__edit_put(c.catalog, key, strlen(key), record, len, &e), 0);
        rc = pgs__commit_end(&c, NULL, &e);
        if (rc) TEST_FAIL("commit: %s", e.text);
        free(bytes);
    }
    return NULL;
}
TEST(claims_without_the_lock_do_not_meet)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 2);
    struct worker w[3];
    pthread_t t[3];
    for (int i = 0; i < 3; i++) {
        w[i] = (struct worker){s, i};
        CHECK_EQ(pthread_create(&t[i], NULL, work, &w[i]), 0);
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    char key[16];
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "w%d", i);
        check_head_bytes(s, key, (uint64_t)(i * 1000 + 39), 3000 + 20000 * (uint64_t)((39 + i) % 7));
    }
    CHECK_EQ(owned(s), 0);
    check_store(s);
    pgs__session_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
