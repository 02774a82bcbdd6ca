/* Pagestone | tests/unit/test_ledger_rules — what each call of the ledger promises, one by one: lookups, tags, log, history, space, refusals.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "tests/unit/ledger_fixture.h"

static int nobody(void *ctx, pgs_gen_t gen)
{
    (void)ctx, (void)gen;
    return 0;
}
static int everybody(void *ctx, pgs_gen_t gen)
{
    (void)ctx, (void)gen;
    return 1;
}
static void clear_err(void)
{
    err = (struct pgs_error){0};
}
#define REFUSED(call, want_)                                                                                           \
    do {                                                                                                               \
        CHECK_ERR(call, want_);                                                                                        \
        CHECK(err.code == 0 || err.code == (want_));                                                                   \
        clear_err();                                                                                                   \
    } while (0)

static void check(struct store *s)
{
    struct pgs__ledger l;
    CHECK_OK(pgs__ledger_open(&l, &s->pf, &s->root, &err));
    CHECK_OK(pgs__ledger_check(&l, NULL, NULL, NULL, &err));
    pgs__ledger_close(&l);
}

static void empty_commit(struct store *s, bool new_version)
{
    struct pgs__ledger l;
    store_begin(s, &l, new_version);
    store_end(s, &l);
}

/* One page of data that lives for one version: each commit kills the one before it. */
static struct pgs_run one_page;
static pgs_gen_t one_birth;
static void churn(struct store *s, uint64_t n)
{
    struct pgs__ledger l;
    struct runs r = {.n = 0};
    store_begin(s, &l, true);
    if (one_page.n_pages) CHECK_OK(pgs__ledger_kill(&l, one_page, one_birth, false, &err));
    store_take(s, &l, n, false, true, &r);
    one_page = r.at[0];
    one_birth = l.gen;
    store_end(s, &l);
}

/* --- lookups -------------------------------------------------------------------------------------------------------------- */
TEST(an_empty_store_lists_version_0)
{
    struct store s;
    struct pgs__ledger l;
    struct pgs__root r;
    store_create(&s, PGS_HIST_ALL, 0);
    check(&s);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    CHECK_OK(pgs__ledger_find_version(&l, 0, &r, &err));
    CHECK_EQ(r.gen, 1);
    CHECK_EQ(r.record.page, s.root.record.page);
    REFUSED(pgs__ledger_find_version(&l, 1, &r, &err), PGS_EINVAL);
    CHECK_OK(pgs__ledger_find_index(&l, -1, &r, &err));
    REFUSED(pgs__ledger_find_index(&l, -2, &r, &err), PGS_EINVAL);
    REFUSED(pgs__ledger_find_index(&l, 0, &r, &err), PGS_EINVAL);
    CHECK_EQ(l.meta.hdr.hw_pages, 2 * PGS_CHUNK_PAGES);
    CHECK_EQ(l.meta.hdr.pages_free + l.meta.hdr.pages_meta, 2 * PGS_CHUNK_PAGES - 2);
    pgs__ledger_close(&l);
    store_close(&s);
}

/* Versions 0 … 9, of which COUNT 3 keeps 6 … 9 and the tag keeps 2. Commits are 1 ms apart. */
static void ten_versions(struct store *s)
{
    struct pgs__ledger l;
    bool any;
    store_create(s, PGS_HIST_COUNT, 3);
    for (int i = 1; i <= 9; i++) {
        empty_commit(s, true);
        if (i == 5) {
            store_begin(s, &l, false);
            CHECK_OK(pgs__ledger_tag_set(&l, "two", 3, 2, &err));
            CHECK_OK(pgs__ledger_tag_set(&l, "now", 3, 5, &err));
            REFUSED(pgs__ledger_tag_set(&l, "two", 3, 3, &err), PGS_EEXIST);
            REFUSED(pgs__ledger_tag_set(&l, "later", 5, 6, &err), PGS_EINVAL);
            REFUSED(pgs__ledger_tag_del(&l, "none", 4, &err), PGS_ENOENT);
            store_end(s, &l);
            check(s);
        }
    }
    store_begin(s, &l, false);
    CHECK_OK(pgs__ledger_tag_del(&l, "now", 3, &err)); /* meanwhile no longer the head */
    CHECK_OK(pgs__ledger_expire(&l, l.now_ns, 100, false, &any, &err));
    CHECK(any);
    store_end(s, &l);
    check(s);
}

TEST(versions_are_found_by_number_and_position)
{
    struct store s;
    struct pgs__ledger l;
    struct pgs__root r;
    const uint64_t kept[] = {2, 6, 7, 8, 9};
    ten_versions(&s);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    CHECK_EQ(l.meta.hdr.n_kept, 5);
    for (int64_t i = 1; i <= 5; i++) {
        CHECK_OK(pgs__ledger_find_index(&l, -i, &r, &err));
        CHECK_EQ(r.version, kept[5 - i]);
        CHECK_OK(pgs__ledger_find_version(&l, kept[5 - i], &r, &err));
        CHECK_EQ(r.version, kept[5 - i]);
    }
    REFUSED(pgs__ledger_find_index(&l, -6, &r, &err), PGS_EINVAL);
    REFUSED(pgs__ledger_find_index(&l, INT64_MIN, &r, &err), PGS_EINVAL);
    REFUSED(pgs__ledger_find_version(&l, 5, &r, &err), PGS_EEXPIRED);
    REFUSED(pgs__ledger_find_version(&l, 0, &r, &err), PGS_EEXPIRED);
    CHECK_ERR(pgs__ledger_find_version(&l, 12, &r, &err), PGS_EINVAL);
    CHECK(strstr(err.text, "version 12 never was; the newest is 9") != NULL);
    clear_err();
    uint64_t v;
    CHECK_OK(pgs__ledger_find_tag(&l, "two", 3, &v, &err));
    CHECK_EQ(v, 2);
    REFUSED(pgs__ledger_find_tag(&l, "now", 3, &v, &err), PGS_ENOENT);
    REFUSED(pgs__ledger_find_gen(&l, 99, &r, NULL, &err), PGS_EEXPIRED);
    bool expired;
    CHECK_OK(pgs__ledger_find_gen(&l, 1, &r, &expired, &err)); /* still in the chain: not dropped */
    CHECK(expired);
    CHECK_EQ(r.version, 0);
    pgs__ledger_close(&l);
    store_close(&s);
}

/* HAZARDS: {2 (tag), 6 … 9} kept, and the time of 4 is asked for: never 2. */
TEST(a_time_in_a_gap_is_expired_and_not_the_wrong_version)
{
    struct store s;
    struct pgs__ledger l;
    struct pgs__root r;
    const uint64_t ms = 1000000; /* version i was made at (i + 1) ms */
    ten_versions(&s);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    CHECK_OK(pgs__ledger_find_time(&l, 3 * ms, &r, &err));
    CHECK_EQ(r.version, 2);
    CHECK_OK(pgs__ledger_find_time(&l, 3 * ms + 999999 - 1000, &r, &err));
    CHECK_EQ(r.version, 2);
    REFUSED(pgs__ledger_find_time(&l, 4 * ms, &r, &err), PGS_EEXPIRED);
    REFUSED(pgs__ledger_find_time(&l, 5 * ms, &r, &err), PGS_EEXPIRED);
    REFUSED(pgs__ledger_find_time(&l, 7 * ms - 1, &r, &err), PGS_EEXPIRED); /* that microsecond ends before 7 ms */
    CHECK_OK(pgs__ledger_find_time(&l, 7 * ms, &r, &err));
    CHECK_EQ(r.version, 6);
    CHECK_OK(pgs__ledger_find_time(&l, 8 * ms + 5, &r, &err));
    CHECK_EQ(r.version, 7);
    CHECK_OK(pgs__ledger_find_time(&l, UINT64_MAX, &r, &err));
    CHECK_EQ(r.version, 9);
    REFUSED(pgs__ledger_find_time(&l, 2 * ms, &r, &err), PGS_EEXPIRED);
    REFUSED(pgs__ledger_find_time(&l, 5, &r, &err), PGS_EEXPIRED); /* 0 is gone: who knows */
    pgs__ledger_close(&l);
    store_close(&s);
    store_create(&s, PGS_HIST_ALL, 0);
    empty_commit(&s, true);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    REFUSED(pgs__ledger_find_time(&l, ms - 1000, &r, &err), PGS_EINVAL); /* before the store was made */
    CHECK_OK(pgs__ledger_find_time(&l, ms, &r, &err));
    CHECK_EQ(r.version, 0);
    pgs__ledger_close(&l);
    store_close(&s);
}

TEST(commit_times_ascend_whatever_the_clock_does)
{
    struct store s;
    struct pgs__ledger l;
    struct pgs__root r;
    uint64_t clocks[] = {5000000, 4000000, 4000000, 9000000, 9000000, 1}, times[6];
    store_create(&s, PGS_HIST_ALL, 0);
    for (size_t i = 0; i < 6; i++) {
        CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
        CHECK_OK(pgs__ledger_begin(&l, true, i + 1, clocks[i], &err));
        store_end(&s, &l);
        times[i] = s.root.time_ns;
        CHECK(i == 0 || times[i] / 1000 > times[i - 1] / 1000);
    }
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    for (size_t i = 0; i < 6; i++) {
        CHECK_OK(pgs__ledger_find_time(&l, times[i], &r, &err));
        CHECK_EQ(r.version, i + 1);
    }
    pgs__ledger_close(&l);
    store_close(&s);
}

TEST(version_numbers_may_jump_but_not_return)
{
    struct store s;
    struct pgs__ledger l;
    struct pgs__root r;
    store_create(&s, PGS_HIST_ALL, 0);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    CHECK_OK(pgs__ledger_begin(&l, true, 4097, 9000000, &err));
    store_end(&s, &l);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    REFUSED(pgs__ledger_find_version(&l, 17, &r, &err), PGS_EEXPIRED);
    REFUSED(pgs__ledger_begin(&l, true, 4097, 9000000, &err), PGS_EBUG);
    pgs__ledger_close(&l);
    check(&s);
    store_close(&s);
}

/* --- log -------------------------------------------------------------------------------------------------------------------- */
struct log_seen {
    uint64_t versions[20];
    size_t n;
    const struct pgs_commit_info *want;
};
static int see_log(void *ctx, const struct pgs_commit_info *c)
{
    struct log_seen *seen = ctx;
    if (seen->n < 20) seen->versions[seen->n] = c->version;
    seen->n++;
    const struct pgs_commit_info *w = seen->want;
    if (!w || w->version != c->version) return 0;
    CHECK_EQ(c->pid, w->pid);
    CHECK_EQ(c->time_ns, w->time_ns);
    CHECK_EQ(c->bytes_written, w->bytes_written);
    CHECK(strcmp(c->command, w->command) == 0);
    CHECK((c->message == NULL) == (w->message == NULL));
    if (w->message) CHECK(strcmp(c->message, w->message) == 0);
    CHECK_EQ(c->keys_truncated, w->keys_truncated);
    CHECK_EQ(c->n_keys, w->n_keys);
    const char *p = c->keys, *q = w->keys;
    for (uint64_t i = 0; i < w->n_keys; i++) {
        CHECK(strcmp(p, q) == 0);
        p += strlen(p) + 1;
        q += strlen(q) + 1;
    }
    return 0;
}

static void commit_logged(struct store *s, struct pgs_commit_info *c, uint64_t version)
{
    struct pgs__ledger l;
    CHECK_OK(pgs__ledger_open(&l, &s->pf, &s->root, &err));
    CHECK_OK(pgs__ledger_begin(&l, true, version, s->root.time_ns + 1000000, &err));
    c->version = version;
    CHECK_OK(pgs__ledger_log_add(&l, c, &err));
    store_end(s, &l);
}

static struct log_seen read_log(struct store *s, uint64_t before, const struct pgs_commit_info *want)
{
    struct log_seen seen = {.want = want};
    struct pgs__ledger l;
    CHECK_OK(pgs__ledger_open(&l, &s->pf, &s->root, &err));
    CHECK_OK(pgs__ledger_log_walk(&l, before, see_log, &seen, &err));
    pgs__ledger_close(&l);
    return seen;
}

TEST(log_entries_come_back_whole_newest_first)
{
    struct store s;
    static char keys[3000 * 24], message[30000];
    store_create(&s, PGS_HIST_ALL, 0);
    struct pgs_commit_info a = {
        .pid = 7, .time_ns = 123, .bytes_written = 99, .command = "python3", .keys = "x\0y/z", .n_keys = 2};
    commit_logged(&s, &a, 1);
    read_log(&s, 0, &a);
    memset(message, 'm', sizeof message - 1);
    struct pgs_commit_info b = {.pid = 8, .command = "", .message = message, .keys = keys, .n_keys = 2000};
    size_t at = 0;
    for (int i = 0; i < 3000; i++) at += (size_t)snprintf(keys + at, 24, "table/column-%06d", i) + 1;
    commit_logged(&s, &b, 2);
    struct log_seen seen = read_log(&s, 0, &b);
    CHECK_EQ(seen.n, 2);
    CHECK_EQ(seen.versions[0], 2);
    seen = read_log(&s, 2, &a);
    CHECK_EQ(seen.n, 1);
    seen = read_log(&s, 1, &a);
    CHECK_EQ(seen.n, 0);
    check(&s);
    store_close(&s);
}

TEST(more_than_64_kib_of_keys_are_cut_between_keys)
{
    struct store s;
    static char keys[5000 * 20];
    size_t at = 0;
    for (int i = 0; i < 5000; i++) at += (size_t)snprintf(keys + at, 20, "table/col-%06d", i) + 1;
    store_create(&s, PGS_HIST_ALL, 0);
    struct pgs_commit_info c = {.command = "c", .message = "", .keys = keys, .n_keys = 5000};
    commit_logged(&s, &c, 1);
    struct pgs_commit_info want = c;
    want.n_keys = 65536 / 17;
    want.keys_truncated = 1;
    CHECK_EQ(read_log(&s, 0, &want).n, 1);
    store_close(&s);
}

TEST(old_log_entries_go_unless_their_version_is_kept)
{
    struct store s;
    struct pgs__ledger l;
    bool any;
    struct pgs_commit_info c = {.command = "c"};
    store_create(&s, PGS_HIST_COUNT, 1);
    for (uint64_t v = 1; v <= 4; v++) commit_logged(&s, &c, v);
    store_begin(&s, &l, false);
    CHECK_OK(pgs__ledger_tag_set(&l, "t", 1, 3, &err));
    CHECK_OK(pgs__ledger_expire(&l, l.now_ns, 100, false, &any, &err)); /* 0, and 1: kept are 2, 3 (tag), 4 */
    store_end(&s, &l);
    CHECK_EQ(read_log(&s, 0, NULL).n, 4); /* all of them among the newest 8,192 */
    commit_logged(&s, &c, 10002);         /* a jump: of 1 and 2 only 2 is still listed */
    struct log_seen seen = read_log(&s, 0, NULL);
    CHECK_EQ(seen.n, 4);
    CHECK_EQ(seen.versions[3], 2);
    commit_logged(&s, &c, 10500);
    seen = read_log(&s, 0, NULL);
    CHECK_EQ(seen.n, 5); /* 10500, 10002, and the listed 4, 3, 2 */
    CHECK_EQ(seen.versions[4], 2);
    store_begin(&s, &l, false);
    CHECK_OK(pgs__ledger_expire(&l, l.now_ns, 100, false, &any, &err));
    store_end(&s, &l);
    seen = read_log(&s, 0, NULL); /* listed: 3 (tag), 10002, 10500: what expires takes its entry along */
    CHECK_EQ(seen.n, 3);
    CHECK_EQ(seen.versions[2], 3);
    check(&s);
    store_close(&s);
}

/* --- history -------------------------------------------------------------------------------------------------------------- */
static void set_history(struct store *s, enum pgs_history_kind kind, uint64_t value, uint64_t quota)
{
    struct pgs__ledger l;
    store_begin(s, &l, false);
    l.meta.hdr.history_kind = kind;
    l.meta.hdr.history_value = value;
    l.meta.hdr.quota_bytes = quota;
    store_end(s, &l);
}
static uint64_t kept_after(struct store *s, uint64_t now_ns, uint64_t budget, bool all)
{
    struct pgs__ledger l;
    bool any;
    store_begin(s, &l, false);
    CHECK_OK(pgs__ledger_expire(&l, now_ns, budget, all, &any, &err));
    uint64_t n = l.meta.hdr.n_kept;
    store_end(s, &l);
    check(s);
    return n;
}

static void drop_all(struct store *s)
{
    struct pgs__ledger l;
    bool any, more;
    store_begin(s, &l, false);
    CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 100000, &any, &more, &err));
    CHECK(!more);
    store_end(s, &l);
}

TEST(each_history_policy_keeps_what_it_says)
{
    struct store s;
    one_page.n_pages = 0;
    store_create(&s, PGS_HIST_ALL, 0);
    for (int i = 0; i < 30; i++) churn(&s, 100); /* 31 versions, 29 × 400 KiB of history */
    CHECK_EQ(kept_after(&s, 0, 1000, false), 31);
    set_history(&s, PGS_HIST_AGE_NS, 10000000, 0);             /* 1 ms apart; the newest at 31 ms */
    CHECK_EQ(kept_after(&s, s.root.time_ns, 1000, false), 12); /* 19 was the newest until 21 ms */
    set_history(&s, PGS_HIST_DEFAULT, 0, 0);                   /* 64 MiB */
    CHECK_EQ(kept_after(&s, 0, 1000, false), 12);
    drop_all(&s);                                         /* what the age policy expired was not counted apart */
    set_history(&s, PGS_HIST_DEFAULT, 0, 4 * 7 * 409600); /* a quarter of the quota */
    CHECK_EQ(kept_after(&s, 0, 1000, false), 8);
    set_history(&s, PGS_HIST_ALL, 0, 0);
    CHECK_EQ(kept_after(&s, 0, 1000, false), 8);
    CHECK_EQ(kept_after(&s, 0, 1000, true), 1);
    store_close(&s);
}

TEST(bytes_of_history_do_not_count_what_only_expired_versions_keep)
{
    struct store s;
    struct pgs__ledger l;
    bool any, more;
    one_page.n_pages = 0;
    store_create(&s, PGS_HIST_BYTES, 10 * 409600);
    for (int i = 0; i < 30; i++) churn(&s, 100);
    CHECK_EQ(kept_after(&s, 0, 1000, false), 11); /* the head, and ten that keep 100 pages each */
    CHECK_EQ(kept_after(&s, 0, 1000, false), 11); /* nothing was dropped yet, and no more expires */
    store_begin(&s, &l, false);
    CHECK_OK(pgs__ledger_drop(&l, everybody, NULL, 1000, &any, &more, &err)); /* zombies */
    CHECK(!any && !more);
    CHECK_OK(pgs__ledger_expire(&l, 0, 1000, false, &any, &err));
    CHECK(!any);
    CHECK_EQ(l.meta.hdr.n_kept, 11);
    store_end(&s, &l);
    store_begin(&s, &l, false);
    CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 1000, &any, &more, &err));
    CHECK_EQ(l.meta.hdr.pages_dead, 1000);
    store_end(&s, &l);
    check(&s);
    store_close(&s);
}

TEST(a_budget_expires_and_drops_a_little_at_a_time)
{
    struct store s;
    struct pgs__ledger l;
    one_page.n_pages = 0;
    store_create(&s, PGS_HIST_ALL, 0);
    for (int i = 0; i < 30; i++) churn(&s, 3);
    set_history(&s, PGS_HIST_COUNT, 0, 0);
    bool any = true, more = true;
    uint64_t last = 31;
    for (int i = 0; i < 40 && last > 1; i++) {
        uint64_t n = kept_after(&s, 0, 4, false);
        CHECK(n < last && n + 4 >= last);
        last = n;
    }
    CHECK_EQ(last, 1);
    for (int i = 0; i < 100 && more; i++) {
        store_begin(&s, &l, false);
        uint64_t dead = l.meta.hdr.pages_dead;
        CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 3, &any, &more, &err));
        CHECK(dead - l.meta.hdr.pages_dead <= 9);
        store_end(&s, &l);
        check(&s);
    }
    CHECK(!more);
    store_close(&s);
}

TEST(what_expires_in_a_commit_is_not_dropped_by_it)
{
    struct store s;
    struct pgs__ledger l;
    bool any, more;
    store_create(&s, PGS_HIST_COUNT, 0);
    for (int i = 0; i < 5; i++) empty_commit(&s, true);
    store_begin(&s, &l, false); /* the superseded head is expired by begin */
    uint64_t n_chain = l.meta.hdr.n_chain;
    CHECK_OK(pgs__ledger_expire(&l, 0, 100, false, &any, &err));
    CHECK(any);
    CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 100, &any, &more, &err));
    CHECK(!any && !more);
    CHECK_EQ(l.meta.hdr.n_chain, n_chain);
    store_end(&s, &l);
    store_begin(&s, &l, false);
    CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 100, &any, &more, &err));
    CHECK(any && !more);
    CHECK_EQ(l.meta.hdr.n_chain, 1); /* the superseded head */
    store_end(&s, &l);
    check(&s);
    store_close(&s);
}

TEST(pinned_zombies_do_not_keep_others_from_being_dropped)
{
    struct store s;
    struct pgs__ledger l;
    bool any, more;
    store_create(&s, PGS_HIST_COUNT, 0);
    for (int i = 0; i < 50; i++) empty_commit(&s, true);
    (void)kept_after(&s, 0, 100, false);
    for (int i = 0; i < 40; i++) { /* all pinned, budget 5: goes round */
        store_begin(&s, &l, false);
        CHECK_OK(pgs__ledger_drop(&l, everybody, NULL, 5, &any, &more, &err));
        CHECK(!any && more);
        store_end(&s, &l);
    }
    uint64_t n = 0, before;
    store_begin(&s, &l, false);
    before = l.meta.hdr.n_chain;
    CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 1000, &any, &more, &err));
    n = l.meta.hdr.n_chain;
    CHECK(any && !more && n == 1 && before > 80);
    store_end(&s, &l);
    check(&s);
    store_close(&s);
}

TEST(no_more_than_16384_versions_are_listed)
{
    struct store s;
    store_create(&s, PGS_HIST_ALL, 0);
    for (int i = 0; i < 16384 + 20; i++) {
        struct pgs__ledger l;
        bool any;
        store_begin(&s, &l, true);
        CHECK_OK(pgs__ledger_expire(&l, 0, 8, false, &any, &err));
        CHECK(l.meta.hdr.n_kept <= 16384);
        store_end(&s, &l);
    }
    check(&s);
    store_close(&s);
}

/* --- refusals ------------------------------------------------------------------------------------------------------------------ */
TEST(impossible_requests_are_refused)
{
    struct store s;
    struct pgs__ledger l;
    struct runs r = {.n = 0};
    store_create(&s, PGS_HIST_ALL, 0);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    struct pgs_run some = {{600}, 4};
    REFUSED(pgs__ledger_take(&l, some, false, &err), PGS_EBUG); /* before begin */
    REFUSED(pgs__ledger_kill(&l, some, 1, false, &err), PGS_EBUG);
    CHECK_OK(pgs__ledger_begin(&l, true, 1, 5, &err));
    REFUSED(pgs__ledger_begin(&l, true, 2, 5, &err), PGS_EBUG);
    store_take(&s, &l, 8, false, true, &r);
    struct pgs_run run = r.at[0];
    REFUSED(pgs__ledger_take(&l, run, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_take(&l, (struct pgs_run){{run.page.n - 2}, 4}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_take(&l, (struct pgs_run){{0}, 1}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_take(&l, (struct pgs_run){{512}, 1}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_take(&l, (struct pgs_run){{900}, 0}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_give(&l, (struct pgs_run){{0}, 4}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_give(&l, (struct pgs_run){{510}, 6}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_give(&l, (struct pgs_run){{run.page.n + 6}, 4}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_give(&l, (struct pgs_run){{1u << 20}, 4}, false, &err), PGS_EBUG);
    REFUSED(pgs__ledger_kill(&l, run, 2, false, &err), PGS_EBUG); /* born in this commit */
    REFUSED(pgs__ledger_kill(&l, run, 0, false, &err), PGS_EBUG);
    store_end(&s, &l);
    store_begin(&s, &l, true);
    CHECK_OK(pgs__ledger_kill(&l, (struct pgs_run){run.page, 4}, 2, false, &err));
    REFUSED(pgs__ledger_kill(&l, (struct pgs_run){{run.page.n + 3}, 4}, 2, false, &err), PGS_EBUG);
    CHECK_OK(pgs__ledger_limbo(&l, (struct pgs_run){{run.page.n + 4}, 4}, false, &err));
    REFUSED(pgs__ledger_share(&l, (struct pgs_run){{run.page.n + 5}, 1}, 2, 2, &err), PGS_EBUG);
    pgs__ledger_close(&l); /* given up: nothing happened */
    check(&s);
    store_close(&s);
}

/* --- space ------------------------------------------------------------------------------------------------------------------- */
struct owners {
    bool taken[32], claimed[32];
};
static int claim(void *ctx, uint64_t chunk)
{
    struct owners *o = ctx;
    CHECK(chunk < 32);
    if (o->taken[chunk]) return false;
    o->claimed[chunk] = true;
    return true;
}
static void unclaim(void *ctx, uint64_t chunk)
{
    struct owners *o = ctx;
    CHECK(o->claimed[chunk]);
    o->claimed[chunk] = false;
}

TEST(free_space_is_exact_under_random_taking_and_giving)
{
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct store s;
        struct pgs__ledger l;
        enum { N = 12 * PGS_CHUNK_PAGES };
        static uint8_t used[N], kind[N];
        memset(used, 0, sizeof used);
        rng_state = seed;
        store_create(&s, PGS_HIST_ALL, 0);
        CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
        CHECK_OK(pgs__ledger_begin(&l, true, 1, 9, &err));
        used[0] = used[512] = 2;
        used[s.root.record.page] = 2;
        for (int i = 0; i < 3000; i++) {
            uint64_t p = below(N), n = 1 + below(chance(5) ? 1500 : 40);
            n = pgs__min_u64(n, N - p);
            uint64_t same = 1;
            while (same < n && used[p + same] == used[p]) same++;
            bool node = chance(50);
            if (used[p] == 2) continue;
            if (used[p]) {
                CHECK_OK(pgs__ledger_give(&l, (struct pgs_run){{p}, same}, node, &err));
                if (chance(2)) REFUSED(pgs__ledger_give(&l, (struct pgs_run){{p}, 1}, node, &err), PGS_EBUG);
            } else {
                CHECK_OK(pgs__ledger_take(&l, (struct pgs_run){{p}, same}, node, &err));
                if (chance(2)) REFUSED(pgs__ledger_take(&l, (struct pgs_run){{p}, 1}, node, &err), PGS_EBUG);
            }
            for (uint64_t k = p; k < p + same; k++) used[k] = !used[k];
            if (i % 50) continue;
            CHECK_OK(pgs__ledger_check(&l, NULL, NULL, NULL, &err));
            for (uint64_t c = 0; c < 12; c++) {
                struct runs r = {.n = 0};
                memset(kind, 1, sizeof kind);
                CHECK_OK(pgs__space_runs_of(&l, c, note_run, &r, &err));
                for (size_t j = 0; j < r.n; j++)
                    for (uint64_t k = 0; k < r.at[j].n_pages; k++) kind[r.at[j].page.n + k] = 0;
                for (uint64_t k = c * 512; k < (c + 1) * 512; k++) CHECK_EQ(kind[k], used[k] != 0);
            }
        }
        pgs__ledger_close(&l);
        store_close(&s);
    }
}

TEST(searches_respect_owners_and_the_limit_and_hand_back_their_claims)
{
    struct store s;
    struct pgs__ledger l;
    struct owners o = {{0}, {0}};
    struct pgs__free_query q = {claim, unclaim, &o, 16};
    uint64_t first, hint = 0, n, list[16];
    store_create(&s, PGS_HIST_ALL, 0);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    CHECK_OK(pgs__ledger_begin(&l, true, 1, 9, &err));
    CHECK_OK(pgs__ledger_take(&l, (struct pgs_run){{7 * 512}, 512}, false, &err)); /* 2 … 6 are free, hw is 8 */
    o.taken[3] = o.taken[9] = true;
    CHECK_OK(pgs__space_find_chunks(&l, &q, 1, &first, &err));
    CHECK_EQ(first, 2);
    o.claimed[2] = false;
    CHECK_OK(pgs__space_find_chunks(&l, &q, 3, &first, &err));
    CHECK_EQ(first, 4);
    for (uint64_t i = 0; i < 32; i++) CHECK_EQ(o.claimed[i], i >= 4 && i <= 6);
    memset(o.claimed, 0, sizeof o.claimed);
    CHECK_OK(pgs__space_find_chunks(&l, &q, 6, &first, &err)); /* beyond the high-water mark, past chunk 9 */
    CHECK_EQ(first, 10);
    memset(o.claimed, 0, sizeof o.claimed);
    REFUSED(pgs__space_find_chunks(&l, &q, 7, &first, &err), PGS_EFULL);
    for (uint64_t i = 0; i < 32; i++) CHECK(!o.claimed[i]);
    CHECK_OK(pgs__space_free_below(&l, 6, 16, list, &n, &err));
    CHECK_EQ(n, 4);
    CHECK(list[0] == 5 && list[3] == 2);
    CHECK_OK(pgs__space_free_below(&l, UINT64_MAX >> 1, 2, list, &n, &err));
    CHECK(n == 2 && list[0] == 6 && list[1] == 5);
    CHECK_OK(pgs__space_find_partial(&l, &q, 'N', 1, &hint, &first, &err));
    CHECK_EQ(first, 0);
    REFUSED(pgs__space_find_partial(&l, &q, 'N', 512, &hint, &first, &err), PGS_ENOENT);
    o.taken[1] = true;
    hint = 0;
    REFUSED(pgs__space_find_partial(&l, &q, 'D', 1, &hint, &first, &err), PGS_ENOENT);
    pgs__ledger_close(&l);
    store_close(&s);
}

/* --- large and broken ----------------------------------------------------------------------------------------------------------- */
/* Every second page of many chunks dies: 20,000 runs in one commit, folded as they come. */
TEST(a_commit_may_kill_any_number_of_runs)
{
    struct store s;
    struct pgs__ledger l;
    bool any, more = true;
    store_create(&s, PGS_HIST_COUNT, 0);
    store_begin(&s, &l, true);
    CHECK_OK(pgs__ledger_take(&l, (struct pgs_run){{2 * 512}, 40 * 512}, false, &err));
    store_end(&s, &l);
    store_begin(&s, &l, true);
    for (uint64_t i = 0; i < 20 * 512; i++)
        CHECK_OK(pgs__ledger_kill(&l, (struct pgs_run){{2 * 512 + (i * 7919) % (20 * 512) * 2}, 1}, 2, false, &err));
    store_end(&s, &l);
    check(&s);
    CHECK(s.root.record_pages <= 4);
    (void)kept_after(&s, 0, 100000, false);
    for (int i = 0; i < 200 && more; i++) {
        store_begin(&s, &l, false);
        CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 1000, &any, &more, &err));
        CHECK_OK(pgs__ledger_reclaim(&l, s.root.gen, UINT64_MAX, 1000, NULL, NULL, &err));
        store_end(&s, &l);
    }
    for (int i = 0; i < 20; i++) {
        store_begin(&s, &l, false);
        CHECK_OK(pgs__ledger_drop(&l, nobody, NULL, 1000, &any, &more, &err));
        CHECK_OK(pgs__ledger_reclaim(&l, s.root.gen, UINT64_MAX, 1000, NULL, NULL, &err));
        store_end(&s, &l);
    }
    check(&s);
    CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
    CHECK_EQ(l.meta.hdr.pages_dead, 0);
    pgs__ledger_close(&l);
    store_close(&s);
}

/* Free pages are single ones: each node of the fold is a run of its own, and taking it changes the map that is being written. */
TEST(prepare_ends_when_free_space_is_dust)
{
    struct store s;
    struct pgs__ledger l;
    store_create(&s, PGS_HIST_ALL, 0);
    s.max_chunks = 12;
    store_begin(&s, &l, true);
    CHECK_OK(pgs__ledger_take(&l, (struct pgs_run){{2 * 512}, 10 * 512}, true, &err));
    store_end(&s, &l);
    store_begin(&s, &l, true);
    for (uint64_t p = 2 * 512; p < 12 * 512; p += 2)
        CHECK_OK(pgs__ledger_give(&l, (struct pgs_run){{p}, 1}, true, &err));
    uint64_t left = 0; /* and nothing else: only chunk 1 has room for a record */
    for (uint64_t p = 1; p < 511; p++) {
        int rc = pgs__ledger_take(&l, (struct pgs_run){{p}, 1}, true, &err);
        left += rc == 0;
        clear_err();
    }
    CHECK(left > 400);
    for (uint64_t v = 0; v < 300; v++) { /* spread over the whole map */
        CHECK_OK(pgs__ledger_limbo(&l, (struct pgs_run){{2 * 512 + 1 + 34 * v % 5000 / 2 * 2}, 1}, true, &err));
    }
    store_end(&s, &l);
    check(&s);
    for (int i = 0; i < 30; i++) {
        store_begin(&s, &l, true);
        for (uint64_t k = 0; k < 60; k++) {
            uint64_t p = 2 * 512 + 2 * below(10 * 256);
            struct runs r = {.n = 0};
            store_take(&s, &l, 1, true, true, &r);
            CHECK_OK(pgs__ledger_limbo(&l, r.at[0], true, &err));
            (void)p;
        }
        CHECK_OK(pgs__ledger_reclaim(&l, s.root.gen, UINT64_MAX, 40, NULL, NULL, &err));
        store_end(&s, &l);
        check(&s);
    }
    store_close(&s);
}

static int whole_commit(struct store *s, struct pgs_error *e)
{
    struct pgs__ledger l;
    static uint8_t nodes[512 * 4096], record[4 * 4096];
    static struct pgs_pgno pages[512];
    bool any, more;
    uint64_t n, m;
    struct pgs__root root;
    struct pgs_commit_info c = {.version = s->root.version + 1, .command = "c", .message = "m"};
    int rc = pgs__ledger_open(&l, &s->pf, &s->root, e);
    if (!rc) rc = pgs__ledger_begin(&l, true, s->root.version + 1, 0, e);
    if (!rc) rc = pgs__ledger_kill(&l, (struct pgs_run){{one_page.page.n}, 3}, one_birth, false, e);
    if (!rc) rc = pgs__ledger_share(&l, (struct pgs_run){{one_page.page.n}, 5}, one_birth, l.head.gen, e);
    if (!rc) rc = pgs__ledger_share(&l, (struct pgs_run){{one_page.page.n}, 2}, one_birth, l.head.gen, e);
    if (!rc) rc = pgs__ledger_kill(&l, (struct pgs_run){{one_page.page.n + 1}, 3}, one_birth, false, e);
    if (!rc) rc = pgs__ledger_log_add(&l, &c, e);
    if (!rc) rc = pgs__ledger_tag_set(&l, "t", 1, s->root.version, e);
    if (!rc) rc = pgs__ledger_drop(&l, nobody, NULL, 100, &any, &more, e);
    if (!rc) rc = pgs__ledger_expire(&l, 1u << 30, 100, false, &any, e);
    if (!rc) rc = pgs__ledger_reclaim(&l, s->root.gen, UINT64_MAX, 100, NULL, NULL, e);
    if (!rc) rc = pgs__meta_fold(&l.meta, e);
    if (!rc) rc = pgs__ledger_prepare(&l, &n, &m, e);
    if (!rc) rc = pgs__ledger_take(&l, (struct pgs_run){{30 * 512}, n + m}, true, e);
    for (uint64_t i = 0; i < 512; i++) pages[i].n = 30 * 512 + i;
    if (!rc) rc = pgs__ledger_finish(&l, pages, nodes, pages[n], record, &root, e);
    pgs__ledger_close(&l);
    return rc;
}

TEST(running_out_of_memory_anywhere_is_an_error_and_loses_nothing)
{
    struct store s;
    one_page.n_pages = 0;
    store_create(&s, PGS_HIST_COUNT, 3);
    for (int i = 0; i < 8; i++) churn(&s, 8);
    (void)kept_after(&s, 0, 2, false);
    int failed = 0;
    for (uint64_t nth = 1; nth < 500; nth++) {
        struct pgs_error e = {0};
        pgs__inject_fail(PGS__FAIL_MEM, nth, 12, false);
        int rc = whole_commit(&s, &e);
        pgs__inject_clear();
        if (rc == 0) break;
        CHECK_EQ(rc, -PGS_ENOMEM);
        CHECK(e.text[0] != 0);
        failed++;
    }
    CHECK(failed > 5);
    check(&s);
    store_close(&s);
}

/* Wrong keys and values under every letter: each call ends, with an error or not. */
TEST(damaged_entries_never_crash_or_hang)
{
    const char letters[] = "cvtbdmrWNDlxzZ";
    struct store s;
    one_page.n_pages = 0;
    rng_state = 3;
    store_create(&s, PGS_HIST_COUNT, 3);
    for (int i = 0; i < 8; i++) churn(&s, 8);
    (void)kept_after(&s, 0, 2, false);
    int refused = 0;
    for (int i = 0; i < 4000; i++) {
        struct pgs__ledger l;
        struct pgs_error e = {0};
        struct pgs__root r;
        struct log_seen seen = {.n = 0};
        uint8_t key[40], val[64];
        bool any, more;
        uint64_t v = 0, n = 0, m = 0;
        CHECK_OK(pgs__ledger_open(&l, &s.pf, &s.root, &err));
        for (uint64_t k = 1 + below(4); k > 0; k--) {
            char letter = letters[below(14)];
            size_t len = chance(40)   ? pgs__meta_key1(key, letter, below(12))
                         : chance(50) ? pgs__meta_key2(key, letter, below(12), below(1100))
                                      : pgs__meta_key3(key, letter, below(12), below(12), rnd() >> below(64));
            if (letter == 'd' && chance(40)) /* of the image */
                len = pgs__meta_key3(key, letter, below(12), below(12), PGS__COLD_FIRST + below(200));
            if (letter == 'r' && chance(40)) len = pgs__meta_key1(key, letter, PGS__COLD_FIRST + below(200));
            if (letter == 'Z' && chance(80)) len = 1;
            if (len > 1 && chance(20)) key[1 + below(len - 1)] = (uint8_t)rnd();
            for (size_t j = 0; j < sizeof val; j++) val[j] = (uint8_t)(chance(70) ? below(4) : rnd());
            struct pgs__cold_block b = {
                .page = 3 + below(900), .z_bytes = 4000, .n_bytes = 8192, .live = 1, .codec = 1, .birth = 1};
            bool block = letter == 'z' && chance(60);
            if (block) memcpy(val, &b, sizeof b);
            if (block && chance(30)) val[below(sizeof b)] = (uint8_t)rnd();
            size_t val_len = block           ? sizeof b
                             : letter == 'Z' ? sizeof(struct pgs__cold_total)
                             : chance(50)    ? 1
                             : chance(50)    ? 64
                                             : below(65);
            CHECK_OK(pgs__meta_put(&l.meta, key, len, val, val_len, &err));
        }
        int bad = pgs__ledger_check(&l, NULL, NULL, NULL, &e) != 0;
        (void)pgs__ledger_find_version(&l, below(10), &r, &e);
        (void)pgs__ledger_find_index(&l, -(int64_t)below(12), &r, &e);
        (void)pgs__ledger_find_time(&l, below(12) * 1000000, &r, &e);
        (void)pgs__ledger_log_walk(&l, 0, see_log, &seen, &e);
        (void)pgs__ledger_bytes_held(&l, 1, 9, &v, &e);
        bad |= pgs__ledger_begin(&l, chance(50), s.root.version + 1, 9, &e) != 0;
        bad |= pgs__ledger_kill(&l, one_page, one_birth, false, &e) != 0;
        bad |= pgs__ledger_share(&l, one_page, one_birth, 1 + below(9), &e) != 0;
        struct pgs_run cold = {{PGS__COLD_FIRST + below(200)}, 1 + below(100)};
        struct pgs__cold_block b;
        struct pgs__cold_total total;
        uint64_t slot;
        bad |= pgs__ledger_cold_get(&l, below(12), &b, &e) == -PGS_ECORRUPT;
        bad |= pgs__ledger_cold_total(&l, &total, &e) != 0;
        bad |= pgs__ledger_kill(&l, cold, 1 + below(3), false, &e) != 0;
        cold.page.n += 100;
        bad |= pgs__ledger_share(&l, cold, 1 + below(3), 1 + below(9), &e) != 0;
        b = (struct pgs__cold_block){.page = 700, .z_bytes = 4000, .n_bytes = 8192, .live = 1, .codec = 1, .birth = 1};
        bad |= pgs__ledger_cold_add(&l, 1, &b, &slot, &e) != 0;
        bad |= pgs__ledger_drop(&l, nobody, NULL, 1000, &any, &more, &e) != 0;
        bad |= pgs__ledger_expire(&l, 1u << 30, 1000, chance(50), &any, &e) != 0;
        bad |= pgs__ledger_reclaim(&l, s.root.gen, UINT64_MAX, 1000, NULL, NULL, &e) != 0;
        bad |= pgs__ledger_take(&l, (struct pgs_run){{600 + below(400)}, 3}, chance(50), &e) != 0;
        bad |= pgs__ledger_prepare(&l, &n, &m, &e) != 0;
        pgs__ledger_close(&l);
        refused += bad;
    }
    CHECK(refused > 1000);
    check(&s);
    store_close(&s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
