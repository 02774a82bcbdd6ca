/* Pagestone | tests/unit/test_million — a million commits do not grow the file.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Counts, no timing: with history=100 the file after a million small commits is within 5 % of its size after ten thousand. Runs once, not again with
 * capabilities switched off: it takes half a minute and meets none of them. TEST_COMMITS sets another number.
 */
#include "tests/unit/txn_testing.h"

static uint64_t file_size(pgs_store *s)
{
    struct pgs_stat st;
    CHECK_OK(pgs_stat(s, &st, &err));
    return st.file_size - st.free; /* what is in use: growth shows before the file's own steps of whole chunks do */
}

static void one(pgs_store *s, uint64_t i)
{
    char key[16];
    snprintf(key, sizeof key, "k%u", (unsigned)(i * 7919 % 50));
    pgs_txn *t = begin(s);
    struct pgs_part part = {&i, sizeof i};
    CHECK_OK(pgs_txn_put(t, KEY(key), PGS_KIND_BYTES, NULL, &part, 1, &err));
    commit(t);
}

TEST(a_million_commits_with_history_100_keep_the_file_within_5_percent)
{
    if (getenv("PAGESTONE_WITHOUT")) SKIP("ran once already, with all capabilities");
    const char *n_env = getenv("TEST_COMMITS");
    uint64_t n = n_env ? strtoull(n_env, NULL, 10) : 1000000, i = 0;
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .history = PGS_HIST_COUNT, .history_value = 100};
    struct pgs_stat early, late;
    CHECK_OK(pgs_open(NULL, &o, &s, &err));
    alarm(300);
    for (; i < 10000; i++) one(s, i);
    CHECK_OK(pgs_stat(s, &early, &err));
    uint64_t used = file_size(s);
    for (; i < n; i++) one(s, i);
    CHECK_OK(pgs_stat(s, &late, &err));
    fprintf(stderr, "    resident %llu -> %llu, meta %llu -> %llu\n", (unsigned long long)early.resident,
            (unsigned long long)late.resident, (unsigned long long)early.meta, (unsigned long long)late.meta);
    fprintf(stderr, "    file %llu -> %llu bytes, in use %llu -> %llu, after %llu commits\n",
            (unsigned long long)early.file_size, (unsigned long long)late.file_size, (unsigned long long)used,
            (unsigned long long)file_size(s), (unsigned long long)n);
    CHECK(late.file_size <= early.file_size + early.file_size / 20);
    CHECK(late.resident <= early.resident + early.resident / 20);
    CHECK_EQ(late.versions, early.versions);
    CHECK_EQ(pgs_store_version(s), n);
    check_store(s);
    pgs_store_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
