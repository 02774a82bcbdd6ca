/* Pagestone | bench/bench_tree — what the B+tree costs: lookups, steps, edits, and the first visit of a node.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     make build/bench/bench_tree && build/bench/bench_tree
 *
 * Keys are decimal numbers of 20 bytes, values 8 bytes, the file a memfd. Each figure is the best of five rounds: the code and the caches, not the machine's other work.
 */
#include <stdio.h>
#include <stdlib.h>

#include "libshm/platform/lock.h"
#include "libshm/tree/tree.h"

#define ROUNDS 5
#define KEY_LEN 20

static struct pgs__pagefile pf;
static uint64_t next_page = 1;
static pgs_gen_t gen;
static struct pgs_error err;

static void check(int rc)
{
    if (rc == 0) return;
    fprintf(stderr, "bench_tree: %s\n", err.text);
    exit(1);
}

/* Numbered keys in an order that is far from theirs. */
static uint64_t scattered(uint64_t i, uint64_t n)
{
    return i * 7919 % n;
}

static const char *key_of(uint64_t id)
{
    static char key[KEY_LEN + 1];
    for (int i = KEY_LEN; i-- > 0; id /= 10) key[i] = (char)('0' + id % 10);
    return key;
}

static void put(struct pgs__edit *e, uint64_t id, uint64_t value)
{
    check(pgs__edit_put(e, key_of(id), KEY_LEN, &value, sizeof value, &err));
}

static struct pgs__edit *edit_at(struct pgs_ptr root)
{
    struct pgs__edit *e = pgs__edit_new(&pf, PGS__TREE_TEST, &root);
    if (!e) exit(1);
    return e;
}

static struct pgs_ptr commit(struct pgs__edit *e)
{
    uint64_t n = pgs__edit_n_dirty(e);
    struct pgs_pgno *pages = malloc((n + 1) * sizeof *pages);
    uint8_t *images = malloc((n + 1) * PGS_PAGE_SIZE);
    struct pgs_ptr root;
    if (!pages || !images) exit(1);
    for (uint64_t i = 0; i < n; i++) pages[i].n = next_page + i;
    check(pgs__edit_finish(e, ++gen, pages, images, &root, &err));
    if (next_page + n > atomic_load(&pf.n_pages)) check(pgs__pagefile_grow(&pf, next_page + n, &err));
    if (n) check(pgs__pages_write(&pf, pages[0], images, n, &err));
    next_page += n;
    pgs__edit_free(e);
    free(pages);
    free(images);
    return root;
}

static struct pgs_ptr build(uint64_t n)
{
    struct pgs__edit *e = edit_at((struct pgs_ptr){0});
    for (uint64_t i = 0; i < n; i++) put(e, i, i);
    return commit(e);
}

/* --- what is measured: nanoseconds for each of `n` ------------------------------------------------------------------------------- */
static struct pgs_ptr the_root;

static double lookups(uint64_t n)
{
    struct pgs__tree t = {.pf = &pf, .kind = PGS__TREE_TEST, .root = the_root};
    struct pgs_span val;
    uint64_t start = pgs__clock_mono_ns();
    for (uint64_t i = 0; i < n; i++) check(pgs__tree_get(&t, key_of(scattered(i, n)), KEY_LEN, &val, &err));
    return (double)(pgs__clock_mono_ns() - start) / (double)n;
}

static double steps(uint64_t n)
{
    struct pgs__tree t = {.pf = &pf, .kind = PGS__TREE_TEST, .root = the_root};
    struct pgs__cursor c;
    uint64_t start = pgs__clock_mono_ns();
    check(pgs__cursor_seek(&c, &t, PGS__SEEK_FIRST, NULL, 0, &err));
    for (uint64_t i = 1; i < n; i++) check(pgs__cursor_next(&c, &err));
    return (double)(pgs__clock_mono_ns() - start) / (double)n;
}

static double small_edits(uint64_t n)
{
    enum { EDITS = 2000 };
    static struct pgs_pgno pages[PGS__TREE_MAX_DEPTH];
    static uint8_t images[PGS__TREE_MAX_DEPTH * PGS_PAGE_SIZE];
    struct pgs_ptr root;
    for (uint64_t i = 0; i < PGS__TREE_MAX_DEPTH; i++)
        pages[i].n = next_page + i; /* never written: nobody reads them */
    uint64_t start = pgs__clock_mono_ns();
    for (uint64_t i = 0; i < EDITS; i++) {
        struct pgs__edit *e = edit_at(the_root);
        put(e, scattered(i, n), ~i);
        check(pgs__edit_finish(e, gen + 1, pages, images, &root, &err));
        pgs__edit_free(e);
    }
    return (double)(pgs__clock_mono_ns() - start) / EDITS;
}

static double appends(uint64_t n)
{
    struct pgs__edit *e = edit_at((struct pgs_ptr){0});
    uint64_t start = pgs__clock_mono_ns();
    for (uint64_t i = 0; i < n; i++) put(e, i, i);
    uint64_t ns = pgs__clock_mono_ns() - start;
    pgs__edit_free(e);
    return (double)ns / (double)n;
}

/* In an edit that has touched every node before. */
static double changes(uint64_t n, bool deletes)
{
    struct pgs__edit *e = edit_at(the_root);
    for (uint64_t i = 0; i < n; i++) put(e, i, ~i);
    uint64_t start = pgs__clock_mono_ns();
    for (uint64_t i = 0; i < n; i++)
        if (deletes)
            check(pgs__edit_del(e, key_of(scattered(i, n)), KEY_LEN, &err));
        else
            put(e, scattered(i, n), i);
    uint64_t ns = pgs__clock_mono_ns() - start;
    pgs__edit_free(e);
    return (double)ns / (double)n;
}
static double replacements(uint64_t n)
{
    return changes(n, false);
}
static double deletions(uint64_t n)
{
    return changes(n, true);
}

static double first_visits(uint64_t n)
{
    struct pgs_ptr kept = the_root;
    struct pgs_span val;
    uint64_t before = next_page;
    the_root = build(n); /* new pages, that nobody has looked at */
    struct pgs__tree t = {.pf = &pf, .kind = PGS__TREE_TEST, .root = the_root};
    uint64_t n_nodes = next_page - before, start = pgs__clock_mono_ns();
    for (uint64_t i = 0; i < n; i += 64)
        check(pgs__tree_get(&t, key_of(i), KEY_LEN, &val, &err)); /* comes to every leaf */
    the_root = kept;
    return (double)(pgs__clock_mono_ns() - start) / (double)n_nodes;
}

static double best(double (*what)(uint64_t), uint64_t n)
{
    double least = 0;
    for (int i = 0; i < ROUNDS; i++) {
        double ns = what(n);
        if (i == 0 || ns < least) least = ns;
    }
    return least;
}

int main(void)
{
    static const uint64_t sizes[] = {20000, 200000};
    int fd = pgs__file_ops->memfd("bench_tree");
    if (fd < 0) return 1;
    check(pgs__pagefile_init(&pf, fd, -1, NULL, true, &err));
    check(pgs__pagefile_grow(&pf, 4096, &err));
    printf("%8s %8s %8s %12s %8s %8s %8s %12s   ns each\n", "entries", "get", "next", "small edit", "append", "replace",
           "del", "first visit");
    for (size_t i = 0; i < PGS_ARRAY_LEN(sizes); i++) {
        uint64_t n = sizes[i];
        the_root = build(n);
        printf("%8llu %8.0f %8.1f %12.0f %8.0f %8.0f %8.0f %12.0f\n", (unsigned long long)n, best(lookups, n),
               best(steps, n), best(small_edits, n), best(appends, n), best(replacements, n), best(deletions, n),
               best(first_visits, n));
    }
    pgs__pagefile_fini(&pf);
    return 0;
}
