/* Pagestone | tests/unit/test_verify — the verifier accepts sound stores and finds every kind of planted damage.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "tests/unit/commit_fixture.h"

#include "libshm/txn/ledger_impl.h"

struct found {
    int n;
    char objects[2000], text[4000];
};
static int note(void *ctx, const char *object, const char *problem)
{
    struct found *f = ctx;
    f->n++;
    size_t a = strlen(f->objects), b = strlen(f->text);
    snprintf(f->objects + a, sizeof f->objects - a, "[%s]", object);
    snprintf(f->text + b, sizeof f->text - b, "%s\n", problem);
    return 0;
}

static struct pgs_check_report verify(struct pgs__session *s, struct found *f)
{
    struct pgs_check_report r;
    memset(f, 0, sizeof *f);
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs__verify(s, true, note, f, &r, &err));
    return r;
}

/* A store with everything: several versions, a tag's worth of history, maps, blobs, a folded meta tree. */
static struct pgs__session *rich_store(void)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 5);
    char key[32];
    for (int i = 0; i < 150; i++) {
        snprintf(key, sizeof key, "small%03d", i);
        CHECK_OK(put(s, key, PGS_KIND_BYTES, (uint64_t)i, 40));
    }
    CHECK_OK(put(s, "blob", PGS_KIND_BYTES, 1, 50000));
    CHECK_OK(put(s, "array", PGS_KIND_ARRAY, 2, 1000000));
    CHECK_OK(put(s, "array2", PGS_KIND_ARRAY, 3, 300000));
    CHECK_OK(put(s, "blob", PGS_KIND_BYTES, 4, 60000));
    CHECK_OK(put(s, "array", PGS_KIND_ARRAY, 5, 1100000));
    return s;
}

static void flip(struct pgs__session *s, uint64_t page, uint64_t byte)
{
    uint8_t b;
    off_t at = (off_t)(page * PGS_PAGE_SIZE + byte);
    CHECK_EQ(pread(s->pf.fd, &b, 1, at), 1);
    b ^= 0x10;
    CHECK_EQ(pwrite(s->pf.fd, &b, 1, at), 1);
}

static struct pgs__object object_of(struct pgs__session *s, const char *key)
{
    struct pgs__root root;
    struct pgs__object o;
    CHECK_EQ(pgs__ctl_head(&s->ctl, &root), 0);
    struct pgs__tree t = pgs__root_catalog(s, &root);
    CHECK_OK(pgs__object_find(s, &t, key, strlen(key), &o, &err));
    return o;
}

static int first_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    (void)at;
    (void)birth;
    *(struct pgs_run *)ctx = run;
    return 1;
}
static struct pgs_run run_of(struct pgs__session *s, const char *key)
{
    struct pgs__object o = object_of(s, key);
    struct pgs_run run = {{0}, 0};
    CHECK_EQ(pgs__content_runs(&s->pf, &o.content, 0, UINT64_MAX, first_run, &run, &err), 1);
    return run;
}

TEST(a_sound_store_has_no_problems)
{
    struct pgs__session *s = rich_store();
    struct found f;
    struct pgs_check_report r = verify(s, &f);
    CHECK_EQ(f.n, 0);
    CHECK_EQ(r.n_errors, 0);
    CHECK_EQ(r.n_leaked_pages, 0);
    CHECK_EQ(r.n_objects, 153);
    CHECK_EQ(r.n_versions, 6);
    CHECK_EQ(r.n_pages, record_of(s).hw_pages);
    CHECK_EQ(r.n_pages_unverified, 0);
    CHECK_OK(pgs__verify(s, false, NULL, NULL, &r, &err));
    CHECK_EQ(r.n_pages_unverified, pgs__pages_of(1100000) + pgs__pages_of(300000));
    pgs__session_unref(s);
}

TEST(a_flipped_bit_is_found_in_every_kind_of_page)
{
    struct pgs__session *s = rich_store();
    struct pgs__root root;
    struct found f;
    CHECK_EQ(pgs__ctl_head(&s->ctl, &root), 0);
    struct pgs__object array = object_of(s, "array");
    CHECK(array.content.map.page != 0 && record_of(s).meta.page != 0);
    struct {
        const char *what, *object;
        uint64_t page;
    } target[] = {
        {"record", "[the ledger]", root.record.page},
        {"catalog root", "[the catalog]", root.catalog.page},
        {"meta root", "[the ledger]", record_of(s).meta.page},
        {"map node", "[array]", array.content.map.page},
        {"array data", "[array]", run_of(s, "array").page.n + 7},
        {"array data of another", "[array2]", run_of(s, "array2").page.n},
        {"blob", "[blob]", run_of(s, "blob").page.n + 3},
    };
    for (size_t i = 0; i < PGS_ARRAY_LEN(target); i++)
        for (uint64_t byte = 5; byte < 4096; byte += 777) {
            if (strcmp(target[i].what, "record") == 0 && byte > 300)
                continue; /* its tail may be unused, and is hashed all the same */
            flip(s, target[i].page, byte);
            verify(s, &f);
            if (f.n == 0 || !strstr(f.objects, target[i].object))
                TEST_FAIL("%s, byte %llu: %d problems: %s %s", target[i].what, (unsigned long long)byte, f.n, f.objects,
                          f.text);
            flip(s, target[i].page, byte);
        }
    CHECK_EQ(verify(s, &f).n_errors, 0);
    pgs__session_unref(s);
}

static int some_leaf(void *ctx, const struct pgs_ptr *node, int level)
{
    if (level == 0) *(uint64_t *)ctx = node->page;
    return level == 0;
}
TEST(a_flipped_bit_in_a_leaf_of_the_catalog_is_found)
{
    struct pgs__session *s = rich_store();
    struct pgs__root root;
    struct found f;
    CHECK_EQ(pgs__ctl_head(&s->ctl, &root), 0);
    struct pgs__tree t = pgs__root_catalog(s, &root);
    uint64_t leaf = 0;
    CHECK_EQ(pgs__tree_walk(&t, some_leaf, NULL, &leaf, &err), 1);
    flip(s, leaf, 4000);
    struct pgs_check_report r = verify(s, &f);
    CHECK(f.n >= 1 && strstr(f.objects, "[the catalog]"));
    CHECK(r.n_objects > 50 && r.n_objects < 153); /* the others were checked */
    CHECK_EQ(r.n_leaked_pages, 0);                /* what hangs below is not called leaked */
    pgs__session_unref(s);
}

TEST(it_goes_on_after_errors_and_names_each_object)
{
    struct pgs__session *s = rich_store();
    struct found f;
    flip(s, run_of(s, "array").page.n, 1);
    flip(s, run_of(s, "array2").page.n, 1);
    flip(s, run_of(s, "blob").page.n, 1);
    CHECK(verify(s, &f).n_errors >= 3);
    CHECK(strstr(f.objects, "[array]") && strstr(f.objects, "[array2]") && strstr(f.objects, "[blob]"));
    pgs__session_unref(s);
}

TEST(a_damaged_superblock_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    for (uint64_t i = 0; i < 2; i++) {
        flip(s, i * 512, 200);
        CHECK_EQ(verify(s, &f).n_errors, 1);
        CHECK(strstr(f.objects, "[the superblock]"));
        flip(s, i * 512, 200);
    }
    CHECK_EQ(verify(s, &f).n_errors, 0);
    pgs__session_unref(s);
}

/* --- planted in the bookkeeping --------------------------------------------------------------------------------------------------------------- */

typedef void (*plant_fn)(struct pgs__session *s, struct pgs__commit *c);
static struct pgs_check_report planted(struct pgs__session *s, plant_fn plant, struct found *f)
{
    struct pgs__commit c;
    CHECK_OK(pgs__commit_begin(&c, s, NULL, &err));
    CHECK_OK(pgs__commit_start(&c, false, &err));
    plant(s, &c);
    CHECK_OK(pgs__commit_end(&c, NULL, &err));
    return verify(s, f);
}

static void plant_free(struct pgs__session *s, struct pgs__commit *c)
{
    struct pgs_run run = run_of(s, "array");
    run.page.n += 5;
    run.n_pages = 2;
    CHECK_OK(pgs__ledger_give(&c->l, run, false, &err));
}
TEST(a_run_that_is_free_and_used_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK(planted(s, plant_free, &f).n_errors >= 1);
    CHECK(strstr(f.objects, "[array]") && strstr(f.text, "free"));
    pgs__session_unref(s);
}

static int some_free(void *ctx, struct pgs_run run)
{
    *(struct pgs_run *)ctx = run;
    return run.n_pages > 20;
}
static void plant_leak(struct pgs__session *s, struct pgs__commit *c)
{
    struct pgs_run run = {{0}, 0};
    (void)s;
    for (uint64_t chunk = 0; chunk < 8 && run.n_pages <= 20; chunk++) {
        int rc = pgs__space_runs_of(&c->l, chunk, some_free, &run, &err);
        CHECK(rc >= 0);
    }
    CHECK(run.n_pages > 20);
    run.page.n += run.n_pages - 3; /* away from where this commit itself takes pages */
    run.n_pages = 3;
    CHECK_OK(pgs__ledger_take(&c->l, run, false, &err));
}
TEST(a_leaked_page_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    struct pgs_check_report r = planted(s, plant_leak, &f);
    CHECK_EQ(r.n_leaked_pages, 3);
    CHECK(r.n_errors >= 1 && strstr(f.text, "leaked"));
    pgs__session_unref(s);
}

static void plant_count(struct pgs__session *s, struct pgs__commit *c)
{
    struct pgs__object o = object_of(s, "blob");
    CHECK_OK(pgs__ledger_share(&c->l, run_of(s, "blob"), o.content.birth, c->base.gen, &err));
}
TEST(a_reference_count_that_is_too_high_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK_EQ(planted(s, plant_count, &f).n_errors, 1);
    CHECK(strstr(f.text, "refers to them 1 times, the ledger counts 2"));
    pgs__session_unref(s);
}

static void plant_twin(struct pgs__session *s, struct pgs__commit *c)
{
    struct pgs__object o = object_of(s, "blob");
    uint8_t record[PGS__RECORD_MAX];
    size_t len;
    o.id = c->l.meta.hdr.next_id++;
    CHECK_OK(pgs__object_encode(&o, record, &len, &err));
    CHECK_OK(pgs__edit_put(c->catalog, "twin", 4, record, len, &err));
    c->n_objects++;
}
TEST(a_run_that_two_objects_use_uncounted_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK_EQ(planted(s, plant_twin, &f).n_errors, 1);
    CHECK(strstr(f.text, "refers to them 2 times, the ledger counts 0"));
    pgs__session_unref(s);
}

static void plant_shared_twin(struct pgs__session *s, struct pgs__commit *c)
{
    plant_twin(s, c);
    plant_count(s, c);
}
TEST(a_run_that_two_objects_share_is_sound)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK_EQ(planted(s, plant_shared_twin, &f).n_errors, 0);
    pgs__session_unref(s);
}

static void plant_objects(struct pgs__session *s, struct pgs__commit *c)
{
    (void)s;
    c->n_objects++;
}
TEST(a_wrong_number_of_objects_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK_EQ(planted(s, plant_objects, &f).n_errors, 1);
    CHECK(strstr(f.text, "154"));
    pgs__session_unref(s);
}

/* A deadlist entry becomes free although a kept version needs its pages. */
static void plant_early_free(struct pgs__session *s, struct pgs__commit *c)
{
    struct pgs__meta_cursor cur;
    struct pgs__entry e;
    uint8_t key[PGS__KEY_MAX];
    (void)s;
    int rc = pgs__lseek(&c->l, &cur, PGS__SEEK_GE, (const uint8_t *)"d", 1, &err);
    for (; rc == 0; rc = pgs__lnext(&c->l, &cur, 'd', &err)) {
        CHECK_OK(pgs__lentry(&c->l, &cur, &e, &err));
        if (e.node || e.n < 10) continue;
        struct pgs_run run = {{e.page}, e.n};
        CHECK_OK(pgs__meta_del(&c->l.meta, key, pgs__meta_key3(key, 'd', e.a, e.b, e.page), &err));
        c->l.meta.hdr.pages_dead -= e.n;
        CHECK_OK(pgs__ledger_give(&c->l, run, false, &err));
        return;
    }
    TEST_FAIL("no dead data");
}
TEST(a_page_of_history_that_was_freed_early_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK(planted(s, plant_early_free, &f).n_errors >= 1);
    CHECK(strstr(f.text, "version") && strstr(f.text, "is used as data of an object, but is free"));
    pgs__session_unref(s);
}

static void plant_bad_id(struct pgs__session *s, struct pgs__commit *c)
{
    struct pgs__object o = object_of(s, "small007");
    uint8_t record[PGS__RECORD_MAX];
    size_t len;
    o.id = 1u << 30;
    o.version = c->l.meta.hdr.version + 5;
    CHECK_OK(pgs__object_encode(&o, record, &len, &err));
    CHECK_OK(pgs__edit_put(c->catalog, "small007", 8, record, len, &err));
}
TEST(numbers_that_were_never_given_are_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK_EQ(planted(s, plant_bad_id, &f).n_errors, 2);
    CHECK(strstr(f.objects, "[small007]"));
    pgs__session_unref(s);
}

static void plant_garbage_record(struct pgs__session *s, struct pgs__commit *c)
{
    (void)s;
    CHECK_OK(pgs__edit_put(c->catalog, "small007", 8, "garbage", 7, &err));
}
TEST(a_record_that_does_not_decode_is_found)
{
    struct pgs__session *s = rich_store();
    struct found f;
    CHECK_EQ(planted(s, plant_garbage_record, &f).n_errors, 1);
    CHECK(strstr(f.objects, "[small007]"));
    pgs__session_unref(s);
}

TEST(it_is_exact_while_another_process_commits)
{
    struct pgs__session *s = memory_store(0, PGS_HIST_COUNT, 3);
    CHECK_OK(put(s, "k0", PGS_KIND_ARRAY, 1, 100000));
    pid_t pid = fork();
    if (pid == 0) {
        char key[8];
        for (uint64_t i = 0; i < 100000; i++) {
            snprintf(key, sizeof key, "k%d", (int)(i % 7));
            if (put(s, key, i & 1 ? PGS_KIND_ARRAY : PGS_KIND_BYTES, i, 40 + 30000 * (i % 5))) _exit(1);
        }
        _exit(0);
    }
    uint64_t first = record_of(s).gen;
    for (int i = 0; i < 60 || record_of(s).gen < first + 200; i++)
        check_store(s); /* the test's time limit ends it otherwise */
    CHECK_EQ(kill(pid, SIGKILL), 0);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    check_store(s);
    pgs__session_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
