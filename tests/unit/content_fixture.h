/* Pagestone | tests/unit/content_fixture — a page file in memory, runs of pages with known bytes, and contents committed to it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A data page written with stamp s holds pattern words made of s; reading any word tells which page of which time it is.
 */
#ifndef PGS_TESTS_UNIT_CONTENT_FIXTURE_H
#define PGS_TESTS_UNIT_CONTENT_FIXTURE_H

#include "libshm/extents/content.h"
#include "libshm/platform/hash.h"
#include "tests/unit/testing.h"

static struct pgs_error err;

static uint64_t rng_state;
static inline uint64_t rnd(void)
{
    rng_state += 0x9e3779b97f4a7c15u;
    return pgs__mix(rng_state);
}
static inline uint64_t rnd_below(uint64_t n)
{
    return rnd() % n;
}

struct world {
    struct pgs__pagefile pf;
    uint64_t next; /* bump allocator */
    pgs_gen_t gen;
};

static inline void world_open(struct world *w)
{
    memset(w, 0, sizeof *w);
    int fd = pgs__file_ops->memfd("content");
    CHECK(fd >= 0);
    CHECK_OK(pgs__pagefile_init(&w->pf, fd, -1, NULL, true, &err));
    CHECK_OK(pgs__pagefile_grow(&w->pf, 4096, &err));
    w->next = 1024;
    w->gen = 1;
}
static inline void world_close(struct world *w)
{
    pgs__pagefile_fini(&w->pf);
}
static inline struct pgs_run take(struct world *w, uint64_t n_pages)
{
    struct pgs_run run = {{w->next}, n_pages};
    w->next += n_pages;
    if (w->next > atomic_load(&w->pf.n_pages)) CHECK_OK(pgs__pagefile_grow(&w->pf, w->next, &err));
    return run;
}

static inline void pattern(void *page, uint64_t stamp)
{
    uint64_t *w = page;
    for (unsigned i = 0; i < PGS_PAGE_SIZE / 8; i++) w[i] = stamp * 1000003u + i + 1;
}
/* Stamps stamp, stamp + 1, … */
static inline void write_run(struct world *w, struct pgs_run run, uint64_t stamp)
{
    uint64_t page[PGS_PAGE_SIZE / 8];
    for (uint64_t i = 0; i < run.n_pages; i++) {
        pattern(page, stamp + i);
        CHECK_OK(pgs__pages_write(&w->pf, (struct pgs_pgno){run.page.n + i}, page, 1, &err));
    }
}

/* Finish the edit, write its nodes; the edit stays. */
static inline struct pgs__content commit_keep(struct world *w, struct pgs__content_edit *e)
{
    struct pgs__content out;
    uint64_t n = pgs__content_n_dirty(e);
    struct pgs_pgno *pages = malloc((n + 1) * sizeof *pages);
    uint8_t *buf = malloc((n + 1) * PGS_PAGE_SIZE);
    struct pgs_run run = take(w, n);
    for (uint64_t i = 0; i < n; i++) pages[i].n = run.page.n + i;
    CHECK_OK(pgs__content_finish(e, w->gen, pages, buf, &out, &err));
    if (n) CHECK_OK(pgs__pages_write(&w->pf, run.page, buf, n, &err));
    free(pages);
    free(buf);
    w->gen++;
    return out;
}
static inline struct pgs__content commit(struct world *w, struct pgs__content_edit *e)
{
    struct pgs__content c = commit_keep(w, e);
    pgs__content_edit_free(e);
    return c;
}
static inline struct pgs__content_edit *edit_of(struct world *w, const struct pgs__content *base)
{
    struct pgs__content_edit *e = pgs__content_edit_new(&w->pf, base);
    CHECK(e != NULL);
    return e;
}
/* A new run, written with `stamp`, set at logical page `at`. */
static inline struct pgs_run set_new(struct world *w, struct pgs__content_edit *e, uint64_t at, uint64_t n,
                                     uint64_t stamp)
{
    struct pgs_run run = take(w, n);
    write_run(w, run, stamp);
    CHECK_OK(pgs__content_set(e, (struct pgs_lpno){at}, run, w->gen, NULL, &err));
    return run;
}

#endif
