/* Pagestone | tests/unit/tree_fixture — a page file in memory and a bump allocator: what a tree needs to be committed.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef PGS_TESTS_UNIT_TREE_FIXTURE_H
#define PGS_TESTS_UNIT_TREE_FIXTURE_H

#include "libshm/platform/hash.h"
#include "libshm/tree/node.h"
#include "tests/unit/testing.h"

static struct pgs_error err;

static uint64_t rng_state;
static inline uint64_t rnd(void)
{
    rng_state += 0x9e3779b97f4a7c15u;
    return pgs__mix(rng_state);
}
static inline size_t rnd_below(size_t n)
{
    return (size_t)(rnd() % n);
}

struct world {
    struct pgs__pagefile pf;
    uint64_t next_page;
    pgs_gen_t gen;
};

static inline void world_open(struct world *w)
{
    memset(w, 0, sizeof *w);
    int fd = pgs__file_ops->memfd("tree");
    CHECK(fd >= 0);
    CHECK_OK(pgs__pagefile_init(&w->pf, fd, -1, NULL, true, &err));
    CHECK_OK(pgs__pagefile_grow(&w->pf, 4096, &err));
    w->next_page = 1;
}
static inline void world_close(struct world *w)
{
    pgs__pagefile_fini(&w->pf);
}

static inline struct pgs__tree tree_at(struct world *w, struct pgs_ptr root)
{
    return (struct pgs__tree){.pf = &w->pf, .kind = PGS__TREE_TEST, .root = root};
}
static inline struct pgs__tree tree_of(struct world *w, struct pgs__edit *e)
{
    return (struct pgs__tree){.pf = &w->pf, .kind = PGS__TREE_TEST, .edit = e};
}
static inline struct pgs__edit *edit_at(struct world *w, struct pgs_ptr root)
{
    struct pgs__edit *e = pgs__edit_new(&w->pf, PGS__TREE_TEST, &root);
    CHECK(e != NULL);
    return e;
}

/* Write the edit's nodes to new pages. Not marked verified: readers then check everything for themselves. */
static inline struct pgs_ptr commit_keep(struct world *w, struct pgs__edit *e)
{
    uint64_t n = pgs__edit_n_dirty(e);
    struct pgs_pgno *pages = malloc((n + 1) * sizeof *pages);
    uint8_t *buf = malloc((n + 1) * PGS_PAGE_SIZE);
    struct pgs_ptr root;
    for (uint64_t i = 0; i < n; i++) pages[i].n = w->next_page + i;
    CHECK_OK(pgs__edit_finish(e, ++w->gen, pages, buf, &root, &err));
    if (w->next_page + n > atomic_load(&w->pf.n_pages)) CHECK_OK(pgs__pagefile_grow(&w->pf, w->next_page + n, &err));
    if (n) CHECK_OK(pgs__pages_write(&w->pf, pages[0], buf, n, &err));
    w->next_page += n;
    free(pages);
    free(buf);
    return root;
}
static inline struct pgs_ptr commit(struct world *w, struct pgs__edit *e)
{
    struct pgs_ptr root = commit_keep(w, e);
    pgs__edit_free(e);
    return root;
}

#endif
