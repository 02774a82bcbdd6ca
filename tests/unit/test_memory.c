/* Pagestone | tests/unit/test_memory — contents as memory, against plain arrays of bytes: reading, writing, dirty pages, fresh memory, fork.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "libshm/extents/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/vm.h"
#include "tests/unit/content_fixture.h"

#define PAGE ((uint64_t)PGS_PAGE_SIZE)
#ifdef __SANITIZE_THREAD__
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif

/* A content together with its bytes. */
struct sample {
    struct pgs__content c;
    uint8_t *bytes; /* whole pages */
    uint64_t n_pages;
};

struct last_page {
    struct world *w;
    const uint8_t *bytes;
};
static int rewrite_page(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct last_page *l = ctx;
    (void)at, (void)birth;
    CHECK_OK(pgs__pages_write(&l->w->pf, run.page, l->bytes, 1, &err));
    return 0;
}
/* Zeros after the end, as every committed last page has (I2 of content.h). */
static void zero_tail(struct world *w, struct sample *s)
{
    uint64_t at = s->c.n_bytes / PAGE, rest = s->c.n_bytes % PAGE;
    if (rest == 0) return;
    memset(s->bytes + s->c.n_bytes, 0, PAGE - rest);
    struct last_page l = {w, s->bytes + at * PAGE};
    CHECK_OK(pgs__content_runs(&w->pf, &s->c, at, at + 1, rewrite_page, &l, &err));
}

static void sample_free(struct sample *s)
{
    free(s->bytes);
}

/* Runs of 1 to `longest` pages of new extents, holes between with chance 1 : gaps. */
static struct sample sample_runs(struct world *w, uint64_t n_pages, uint64_t longest, uint64_t gaps)
{
    struct sample s = {.n_pages = n_pages, .bytes = calloc(n_pages, PAGE)};
    struct pgs__content_edit *e = edit_of(w, NULL);
    CHECK_OK(pgs__content_resize(e, n_pages * PAGE - 24, &err));
    for (uint64_t at = 0; at < n_pages;) {
        uint64_t n = pgs__min_u64(1 + rnd_below(longest), n_pages - at);
        if (gaps && rnd_below(gaps) == 0) {
            at += n;
            continue;
        }
        take(w, rnd_below(3)); /* so that runs are rarely neighbours */
        uint64_t stamp = rnd();
        set_new(w, e, at, n, stamp);
        for (uint64_t i = 0; i < n; i++) pattern(s.bytes + (at + i) * PAGE, stamp + i);
        at += n;
    }
    s.c = commit(w, e);
    zero_tail(w, &s);
    return s;
}

/* One extent with many small replacements: the trace of small commits in a large array. */
static struct sample sample_patches(struct world *w, uint64_t n_pages, uint64_t n_patches, uint64_t n_holes)
{
    struct sample s = {.n_pages = n_pages, .bytes = calloc(n_pages, PAGE)};
    struct pgs__content_edit *e = edit_of(w, NULL);
    CHECK_OK(pgs__content_resize(e, n_pages * PAGE, &err));
    set_new(w, e, 0, n_pages, 1000);
    for (uint64_t i = 0; i < n_pages; i++) pattern(s.bytes + i * PAGE, 1000 + i);
    for (uint64_t k = 0; k < n_patches; k++) {
        uint64_t at = rnd_below(n_pages), n = pgs__min_u64(1 + rnd_below(3), n_pages - at), stamp = rnd();
        take(w, 1);
        set_new(w, e, at, n, stamp);
        for (uint64_t i = 0; i < n; i++) pattern(s.bytes + (at + i) * PAGE, stamp + i);
    }
    for (uint64_t k = 0; k < n_holes; k++) {
        uint64_t at = rnd_below(n_pages), n = pgs__min_u64(1 + rnd_below(3), n_pages - at);
        CHECK_OK(pgs__content_punch(e, at, at + n, &err));
        memset(s.bytes + at * PAGE, 0, n * PAGE);
    }
    s.c = commit(w, e);
    return s;
}

static struct sample sample_extent(struct world *w, uint64_t n_pages)
{
    struct sample s = {.n_pages = n_pages, .bytes = calloc(n_pages, PAGE)};
    struct pgs__content_edit *e = edit_of(w, NULL);
    CHECK_OK(pgs__content_resize(e, n_pages * PAGE - 5, &err));
    set_new(w, e, 0, n_pages, 77);
    for (uint64_t i = 0; i < n_pages; i++) pattern(s.bytes + i * PAGE, 77 + i);
    s.c = commit(w, e);
    CHECK_EQ(s.c.form, PGS__FORM_EXTENT);
    zero_tail(w, &s);
    return s;
}

static void check_bytes(const struct pgs__mem *m, const uint8_t *want)
{
    if (memcmp(m->addr, want, m->n_bytes) == 0) return;
    const uint8_t *p = m->addr;
    uint64_t i = 0;
    while (p[i] == want[i]) i++;
    TEST_FAIL("byte %llu (page %llu) is wrong", (unsigned long long)i, (unsigned long long)(i / PAGE));
}

static void without(const char *names)
{
    setenv("PAGESTONE_WITHOUT", names, 1);
    pgs__caps_reset();
}

/* --- reading ------------------------------------------------------------------------------------------------------------------ */
TEST(read_memory_shows_the_bytes_of_every_form)
{
    struct world w;
    world_open(&w);
    rng_state = 1;
    long before;
    for (int k = 0; k < 12; k++) {
        struct sample s = k % 4 == 0   ? sample_runs(&w, 300, 40, 3)
                          : k % 4 == 1 ? sample_runs(&w, 400, 4, 3)
                          : k % 4 == 2 ? sample_patches(&w, 500, 150, k > 4 ? 20 : 0)
                                       : sample_extent(&w, 1 + rnd_below(600));
        struct pgs__mem m;
        before = pgs__vm_charged(); /* the window's segments are charged when they are first used */
        CHECK_OK(pgs__mem_read(&w.pf, &s.c, &m, &err));
        check_bytes(&m, s.bytes);
        CHECK(m.kind == PGS__MEM_READ && m.n_bytes == s.c.n_bytes && m.n_maps >= 0);
        CHECK_EQ(pgs__vm_charged(), before + m.n_maps);
        if (s.c.form == PGS__FORM_EXTENT && w.pf.window) CHECK(m.mapped == 0 && m.n_maps == 0); /* the window */
        pgs__mem_close(&w.pf, &m);
        CHECK_EQ(pgs__vm_charged(), before);
        pgs__mem_close(&w.pf, &m); /* a zeroed one */
        sample_free(&s);
    }
    world_close(&w);
}

TEST(small_and_empty_contents_have_an_aligned_address)
{
    struct world w;
    world_open(&w);
    char record[600];
    memset(record, 'r', sizeof record);
    for (uint64_t n = 0; n <= 512; n += 37) {
        struct pgs__content c = {.form = PGS__FORM_INLINE, .n_bytes = n, .inline_data = record + 13};
        struct pgs__mem m;
        CHECK_OK(pgs__mem_read(&w.pf, &c, &m, &err));
        CHECK(m.addr && (uintptr_t)m.addr % 64 == 0 && memcmp(m.addr, record, n) == 0);
        pgs__mem_close(&w.pf, &m);
        CHECK_OK(pgs__mem_cow(&w.pf, &c, 3 * PAGE, &m, &err));
        CHECK((uintptr_t)m.addr % PAGE == 0 && memcmp(m.addr, record, n) == 0);
        pgs__mem_close(&w.pf, &m);
    }
    struct pgs__content none = {.form = PGS__FORM_MAP};
    struct pgs__mem m;
    CHECK_OK(pgs__mem_read(&w.pf, &none, &m, &err));
    CHECK(m.addr && *(volatile char *)m.addr == 0);
    pgs__mem_close(&w.pf, &m);
    CHECK_OK(pgs__mem_cow(&w.pf, &none, 0, &m, &err));
    CHECK(m.addr && *(volatile char *)m.addr == 0);
    pgs__mem_close(&w.pf, &m);
    world_close(&w);
}

static uint64_t resident(struct world *w)
{
    return pgs__pagefile_resident(&w->pf);
}

/* HAZARDS 17: reading an unbacked page through a mapping of a tmpfs file allocates it. */
TEST(reading_holes_allocates_nothing_in_the_file)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    uint64_t n_pages = 16384, sum = 0;
    CHECK_OK(pgs__content_resize(e, n_pages * PAGE, &err));
    set_new(&w, e, 5, 2, 1);
    set_new(&w, e, 9000, 20, 1);
    struct pgs__content c = commit(&w, e);
    uint64_t before = resident(&w);
    struct pgs__mem m, rw;
    CHECK_OK(pgs__mem_read(&w.pf, &c, &m, &err));
    CHECK_OK(pgs__mem_cow(&w.pf, &c, 0, &rw, &err));
    for (uint64_t i = 0; i < n_pages; i++)
        sum += ((const uint8_t *)m.addr)[i * PAGE] + ((const uint8_t *)rw.addr)[i * PAGE + 7];
    CHECK(sum > 0);
    CHECK_EQ(resident(&w), before);
    for (uint64_t i = 0; i < n_pages; i++)
        ((uint8_t *)rw.addr)[i * PAGE] = 1; /* nor does writing to the private view */
    CHECK_EQ(resident(&w), before);
    pgs__mem_close(&w.pf, &m);
    pgs__mem_close(&w.pf, &rw);
    world_close(&w);
}

static int see_one(void *ctx, uint64_t lo, uint64_t hi)
{
    uint64_t *found = ctx;
    found[0]++;
    found[1] = lo;
    found[2] = hi;
    return 0;
}

TEST(a_terabyte_of_holes_costs_nothing)
{
    if (!pgs__cap(PGS__CAP_PAGEMAP_SCAN) && !pgs__cap(PGS__CAP_PAGEMAP))
        SKIP("neither PAGEMAP_SCAN nor pagemap: a terabyte would be compared");
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    uint64_t size = UNDER_TSAN ? 1ull << 36 : 1ull << 40; /* its shadow memory leaves less address space */
    CHECK_OK(pgs__content_resize(e, size, &err));
    set_new(&w, e, 1000, 1, 1);
    struct pgs__content c = commit(&w, e);
    struct pgs__mem m;
    CHECK_OK(pgs__mem_read(&w.pf, &c, &m, &err));
    CHECK(((const uint8_t *)m.addr)[size - 1] == 0 && ((const uint8_t *)m.addr)[1000 * PAGE]);
    CHECK(m.n_maps <= 5);
    pgs__mem_close(&w.pf, &m);
    CHECK_OK(pgs__mem_cow(&w.pf, &c, size + size / 4, &m, &err));
    ((uint8_t *)m.addr)[size / 2] = 1;
    uint64_t found[3] = {0};
    CHECK_OK(pgs__mem_dirty(&w.pf, &m, see_one, found, &err));
    CHECK(found[0] == 1 && found[1] == size / 2 && found[2] == size / 2 + PAGE);
    pgs__mem_close(&w.pf, &m);
    world_close(&w);
}

TEST(many_small_runs_need_few_mappings)
{
    struct world w;
    world_open(&w);
    rng_state = 5;
    struct sample s = sample_patches(&w, 12000, 300, 10);
    struct pgs__mem m, rw;
    uint64_t before = resident(&w);
    CHECK_OK(pgs__mem_read(&w.pf, &s.c, &m, &err));
    CHECK_OK(pgs__mem_cow(&w.pf, &s.c, 0, &rw, &err));
    check_bytes(&m, s.bytes);
    check_bytes(&rw, s.bytes);
    if (w.pf.window && (m.n_maps > 6 || rw.n_maps > 6))
        TEST_FAIL("%ld and %ld mappings", m.n_maps, rw.n_maps); /* in segments a gap can seldom be looked at */
    CHECK_EQ(resident(&w), before);
    pgs__mem_close(&w.pf, &m);
    pgs__mem_close(&w.pf, &rw);
    sample_free(&s);
    world_close(&w);
}

/* Two runs at the same distance, and between them file pages that were never written: copying there would allocate them. */
TEST(a_gap_that_the_file_does_not_back_is_never_touched)
{
    struct world w;
    world_open(&w);
    struct pgs__content_edit *e = edit_of(&w, NULL);
    CHECK_OK(pgs__content_resize(e, 40000 * PAGE, &err));
    struct pgs_run run = take(&w, 40000);
    uint64_t stamp = 1, n_maps = 0;
    for (uint64_t at = 0; at + 200 < 40000; at += 300, stamp += 200) { /* 200 pages written, 100 pages never */
        struct pgs_run part = {{run.page.n + at}, 100};
        if (stamp > 20000) break;
        write_run(&w, part, stamp);
        CHECK_OK(pgs__content_set(e, (struct pgs_lpno){at}, part, 1, NULL, &err));
        set_new(&w, e, at + 150, 1, stamp); /* small ones: patched */
        n_maps++;
    }
    struct pgs__content c = commit(&w, e);
    uint64_t before = resident(&w);
    struct pgs__mem m;
    CHECK_OK(pgs__mem_cow(&w.pf, &c, 0, &m, &err));
    CHECK_EQ(resident(&w), before);
    CHECK((uint64_t)m.n_maps > n_maps);
    CHECK_EQ(*(const uint8_t *)m.addr, 1000003u % 256 + 1);
    pgs__mem_close(&w.pf, &m);
    world_close(&w);
}

TEST(a_short_budget_copies_instead_of_mapping)
{
    struct world w;
    world_open(&w);
    rng_state = 6;
    struct sample s = sample_runs(&w, 3000, 60, 4);
    struct pgs__mem m;
    CHECK_OK(pgs__mem_read(&w.pf, &s.c, &m, &err)); /* also makes the window's segments */
    check_bytes(&m, s.bytes);
    CHECK(m.n_maps > 50);
    pgs__mem_close(&w.pf, &m);
    long step = 4096, taken = 0;
    for (; step; step /= 2)
        while (pgs__vm_charge(step) == 0) taken += step;
    CHECK_ERR(pgs__mem_read(&w.pf, &s.c, &m, &err), PGS_ENOMEM);
    CHECK(strstr(err.text, "max_map_count"));
    for (long room = 2; room < 60; room += 10) {
        pgs__vm_uncharge(room);
        struct pgs_error e = {0};
        if (pgs__mem_read(&w.pf, &s.c, &m, &e)) TEST_FAIL("with room for %ld: %s", room, e.text);
        check_bytes(&m, s.bytes);
        CHECK(m.n_maps <= room);
        pgs__mem_close(&w.pf, &m);
        CHECK_OK(pgs__mem_cow(&w.pf, &s.c, 0, &m, &e));
        check_bytes(&m, s.bytes);
        pgs__mem_close(&w.pf, &m);
        CHECK_EQ(pgs__vm_charge(room), 0);
    }
    pgs__vm_uncharge(taken);
    sample_free(&s);
    world_close(&w);
}

static int add_bytes(void *ctx, uint64_t lo, uint64_t hi)
{
    *(uint64_t *)ctx += hi - lo;
    return 0;
}

TEST(small_copies_need_no_mapping_when_the_budget_is_short)
{
    struct world w;
    world_open(&w);
    rng_state = 9;
    struct pgs__mem m;
    for (int k = 0; k < 3; k++) {
        struct sample s = k == 0   ? sample_runs(&w, 12, 3, 2)
                          : k == 1 ? sample_patches(&w, 9, 4, 2)
                                   : sample_extent(&w, 16);
        CHECK_OK(pgs__mem_cow(&w.pf, &s.c, 0, &m, &err)); /* also makes the window's segments */
        CHECK(!m.heap && m.n_maps > 0);
        pgs__mem_close(&w.pf, &m);
        long step = 4096, taken = 0;
        for (; step; step /= 2)
            while (pgs__vm_charge(step) == 0) taken += step;
        uint64_t n_bytes = s.c.n_bytes, dirty = 0;
        CHECK_OK(pgs__mem_cow(&w.pf, &s.c, pgs__mem_room(n_bytes), &m, &err));
        CHECK(m.heap && m.n_maps == 0 && (uintptr_t)m.addr % PAGE == 0);
        check_bytes(&m, s.bytes);
        CHECK_OK(pgs__mem_dirty(&w.pf, &m, add_bytes, &dirty, &err));
        CHECK_EQ(dirty, 0);
        ((uint8_t *)m.addr)[2 * PAGE + 7] ^= 1;
        CHECK_OK(pgs__mem_dirty(&w.pf, &m, add_bytes, &dirty, &err));
        CHECK_EQ(dirty, PAGE);
        CHECK_OK(pgs__mem_resize(&w.pf, &m, 100, &err));
        CHECK_OK(pgs__mem_resize(&w.pf, &m, PGS__MEM_HEAP_MAX > m.reserved ? m.reserved : PGS__MEM_HEAP_MAX, &err));
        for (uint64_t i = 100; i < m.n_bytes; i++) CHECK_EQ(((uint8_t *)m.addr)[i], 0);
        ((uint8_t *)m.addr)[m.n_bytes - 1] = 1;
        CHECK_ERR(pgs__mem_resize(&w.pf, &m, m.reserved + 1, &err), PGS_E2BIG);
        CHECK_OK(pgs__mem_reset(&w.pf, &m, &err));
        CHECK_EQ(m.n_bytes, n_bytes);
        check_bytes(&m, s.bytes);
        dirty = 0;
        CHECK_OK(pgs__mem_dirty(&w.pf, &m, add_bytes, &dirty, &err));
        CHECK_EQ(dirty, 0);
        CHECK_OK(pgs__mem_resize(&w.pf, &m, m.reserved, &err)); /* what was there before the reset does not come back */
        for (uint64_t i = n_bytes; i < m.n_bytes; i++) CHECK_EQ(((uint8_t *)m.addr)[i], 0);
        pgs__mem_close(&w.pf, &m);
        pgs__vm_uncharge(taken);
        sample_free(&s);
    }
    world_close(&w);
}

TEST(a_closed_descriptor_is_named)
{
    struct world w;
    world_open(&w);
    rng_state = 7;
    struct sample s = sample_runs(&w, 30, 3, 2);
    struct pgs__mem m;
    close(w.pf.fd);
    CHECK_ERR(pgs__mem_cow(&w.pf, &s.c, 0, &m, &err), PGS_EIO);
    CHECK(strstr(err.text, "descriptor"));
    sample_free(&s);
    world_close(&w);
}

static sigjmp_buf after_fault;
static void on_fault(int sig)
{
    (void)sig;
    siglongjmp(after_fault, 1);
}

static bool faults(volatile uint8_t *p)
{
    if (sigsetjmp(after_fault, 1)) return true;
    *p = 1;
    return false;
}

TEST(read_memory_cannot_be_written)
{
    struct world w;
    world_open(&w);
    rng_state = 8;
    for (int k = 0; k < 3; k++) {
        struct sample s = k == 0   ? sample_extent(&w, 4)
                          : k == 1 ? sample_runs(&w, 40, 4, 2)
                                   : sample_patches(&w, 400, 120, 10);
        struct pgs__mem m;
        CHECK_OK(pgs__mem_read(&w.pf, &s.c, &m, &err));
        struct sigaction sa = {.sa_handler = on_fault}, old;
        sigaction(SIGSEGV, &sa, &old);
        for (uint64_t page = 0; page < s.n_pages; page += 3) CHECK(faults((volatile uint8_t *)m.addr + page * PAGE));
        sigaction(SIGSEGV, &old, NULL);
        pgs__mem_close(&w.pf, &m);
        sample_free(&s);
    }
    world_close(&w);
}

/* --- dirty pages ---------------------------------------------------------------------------------------------------------------- */
struct dirty {
    uint64_t last;
    bool any;
    uint8_t *page; /* one byte each */
    uint64_t n_pages;
};
static int see_dirty(void *ctx, uint64_t lo, uint64_t hi)
{
    struct dirty *d = ctx;
    CHECK(lo < hi && lo % PAGE == 0 && hi % PAGE == 0 && (!d->any || lo > d->last) && hi / PAGE <= d->n_pages);
    memset(d->page + lo / PAGE, 1, (hi - lo) / PAGE);
    d->last = hi;
    d->any = true;
    return 0;
}

/* What the memory shows, what the base was, and which pages must therefore be reported. */
static void check_dirty(struct world *w, struct pgs__mem *m, const struct sample *s)
{
    static const uint8_t zeros[PGS_PAGE_SIZE];
    uint64_t n_pages = pgs__pages_of(m->n_bytes);
    struct dirty d = {.page = calloc(n_pages + 1, 1), .n_pages = n_pages};
    CHECK_OK(pgs__mem_dirty(&w->pf, m, see_dirty, &d, &err));
    for (uint64_t i = 0; i < n_pages; i++) {
        const uint8_t *base = i < s->n_pages ? s->bytes + i * PAGE : zeros;
        bool want = memcmp(base, (const uint8_t *)m->addr + i * PAGE, PAGE) != 0;
        if (d.page[i] != want)
            TEST_FAIL("page %llu of %llu: reported %d", (unsigned long long)i, (unsigned long long)n_pages, d.page[i]);
    }
    free(d.page);
}

static struct sample any_sample(struct world *w, int k)
{
    static const char record[300] = "inline bytes that are not zero";
    switch (k % 5) {
    case 0:
        return sample_extent(w, 1 + rnd_below(200));
    case 1:
        return sample_runs(w, 1 + rnd_below(300), 30, 2);
    case 2:
        return sample_patches(w, 300, 120, 5);
    case 3: {
        struct sample s = {.n_pages = 1, .bytes = calloc(1, PAGE)};
        memcpy(s.bytes, record, sizeof record);
        s.c = (struct pgs__content){.form = PGS__FORM_INLINE, .n_bytes = sizeof record, .inline_data = record};
        return s;
    }
    default: {
        struct sample s = {.n_pages = 90, .bytes = calloc(90, PAGE)};
        s.c = (struct pgs__content){.form = PGS__FORM_MAP, .n_bytes = 90 * PAGE};
        return s;
    }
    }
}

static void scribble(struct pgs__mem *m, const struct sample *s, uint8_t *shadow)
{
    if (m->n_bytes == 0) return;
    for (uint64_t k = rnd_below(40); k > 0; k--) {
        uint64_t at = rnd_below(m->n_bytes),
                 n = 1 + rnd_below(pgs__min_u64(m->n_bytes - at, rnd_below(4) ? 9 : 3 * PAGE));
        uint8_t *p = (uint8_t *)m->addr + at;
        switch (rnd_below(4)) {
        case 0: /* a silent store: the value that is there */
            for (uint64_t i = 0; i < n; i++) ((volatile uint8_t *)p)[i] = shadow[at + i];
            continue;
        case 1: /* back to the base */
            for (uint64_t i = 0; i < n; i++) shadow[at + i] = at + i < s->n_pages * PAGE ? s->bytes[at + i] : 0;
            break;
        default:
            memset(shadow + at, (int)rnd(), n);
        }
        memcpy(p, shadow + at, n);
    }
    for (int k = 0; k < 20; k++) (void)((volatile uint8_t *)m->addr)[rnd_below(m->n_bytes)]; /* reading is no change */
}

static void random_writes(void)
{
    for (int k = 0; k < 25; k++) {
        struct world w;
        world_open(&w);
        struct sample s = any_sample(&w, k);
        struct pgs__mem m;
        uint64_t room = s.n_pages + 100;
        uint8_t *shadow = calloc(room, PAGE);
        memcpy(shadow, s.bytes, s.n_pages * PAGE);
        CHECK_OK(pgs__mem_cow(&w.pf, &s.c, room * PAGE, &m, &err));
        CHECK(m.reserved >= room * PAGE);
        check_bytes(&m, shadow);
        check_dirty(&w, &m, &s);
        uint8_t *committed = malloc(w.next * PAGE);
        CHECK_OK(pgs__pages_read(&w.pf, (struct pgs_pgno){1024}, committed, w.next - 1024, false, &err));
        for (int step = 0; step < 8; step++) {
            scribble(&m, &s, shadow);
            check_bytes(&m, shadow);
            check_dirty(&w, &m, &s);
            if (rnd_below(2)) {
                uint64_t size =
                    rnd_below(3) ? rnd_below(room * PAGE) : pgs__min_u64(m.n_bytes + rnd_below(5000), room * PAGE);
                if (size < room * PAGE && size < m.n_bytes) memset(shadow + size, 0, room * PAGE - size);
                CHECK_OK(pgs__mem_resize(&w.pf, &m, size, &err));
                CHECK_EQ(m.n_bytes, size);
                check_bytes(&m, shadow);
                check_dirty(&w, &m, &s);
            }
            if (rnd_below(6) == 0) {
                CHECK_OK(pgs__mem_reset(&w.pf, &m, &err));
                memset(shadow, 0, room * PAGE);
                memcpy(shadow, s.bytes, s.n_pages * PAGE);
                CHECK_EQ(m.n_bytes, s.c.n_bytes);
                check_bytes(&m, shadow);
                check_dirty(&w, &m, &s);
            }
        }
        uint8_t *now = malloc(w.next * PAGE);
        CHECK_OK(pgs__pages_read(&w.pf, (struct pgs_pgno){1024}, now, w.next - 1024, false, &err));
        CHECK(memcmp(now, committed, (w.next - 1024) * PAGE) == 0); /* nothing of it reached the file */
        CHECK_OK(pgs__mem_detach(&w.pf, &m, &err));
        pgs__mem_close(&w.pf, &m);
        free(now);
        free(committed);
        free(shadow);
        sample_free(&s);
        world_close(&w);
    }
}

TEST(dirty_pages_are_exactly_those_that_differ)
{
    rng_state = 11;
    random_writes();
}

TEST(dirty_pages_are_found_by_pagemap_too)
{
    without("pagemap_scan");
    rng_state = 12;
    random_writes();
}

TEST(dirty_pages_are_found_by_comparing_too)
{
    without("pagemap_scan,pagemap");
    rng_state = 13;
    random_writes();
}

static int stop_at_second(void *ctx, uint64_t lo, uint64_t hi)
{
    (void)lo, (void)hi;
    return ++*(int *)ctx == 2 ? 1234 : 0;
}

TEST(a_dirty_query_ends_when_told)
{
    struct world w;
    world_open(&w);
    struct sample s = sample_extent(&w, 50);
    struct pgs__mem m;
    int calls = 0;
    CHECK_OK(pgs__mem_cow(&w.pf, &s.c, 0, &m, &err));
    for (int i = 0; i < 50; i += 10) ((uint8_t *)m.addr)[i * 4096] ^= 1;
    CHECK_EQ(pgs__mem_dirty(&w.pf, &m, stop_at_second, &calls, &err), 1234);
    CHECK_EQ(calls, 2);
    CHECK_ERR(pgs__mem_resize(&w.pf, &m, 51 * PAGE, NULL), PGS_E2BIG);
    pgs__mem_close(&w.pf, &m);
    CHECK_OK(pgs__mem_read(&w.pf, &s.c, &m, &err));
    CHECK_ERR(pgs__mem_dirty(&w.pf, &m, stop_at_second, &calls, NULL), PGS_EINVAL);
    CHECK_ERR(pgs__mem_resize(&w.pf, &m, 51 * PAGE, NULL), PGS_EINVAL);
    CHECK_ERR(pgs__mem_reset(&w.pf, &m, NULL), PGS_EINVAL);
    CHECK_OK(pgs__mem_detach(&w.pf, &m, &err));
    pgs__mem_close(&w.pf, &m);
    sample_free(&s);
    world_close(&w);
}

TEST(system_calls_read_and_write_copy_on_write_memory)
{
    struct world w;
    world_open(&w);
    rng_state = 14;
    struct sample s = sample_patches(&w, 200, 100, 20);
    struct pgs__mem m;
    int fds[2];
    CHECK(pipe(fds) == 0);
    CHECK_OK(pgs__mem_cow(&w.pf, &s.c, 0, &m, &err));
    for (uint64_t i = 0; i + 16 < s.n_pages; i += 7) {
        CHECK(write(fds[1], (uint8_t *)m.addr + i * PAGE, PAGE) == (ssize_t)PAGE);
        CHECK(read(fds[0], (uint8_t *)m.addr + (i + 3) * PAGE, PAGE) == (ssize_t)PAGE);
        CHECK(memcmp((uint8_t *)m.addr + i * PAGE, (uint8_t *)m.addr + (i + 3) * PAGE, PAGE) == 0);
    }
    check_dirty(&w, &m, &s);
    pgs__mem_close(&w.pf, &m);
    sample_free(&s);
    world_close(&w);
}

/* --- fresh memory ---------------------------------------------------------------------------------------------------------------- */
static bool file_has(struct world *w, uint64_t page, uint64_t off, uint8_t byte)
{
    uint8_t buf[PGS_PAGE_SIZE];
    CHECK_OK(pgs__pages_read(&w->pf, (struct pgs_pgno){page}, buf, 1, false, &err));
    return buf[off] == byte;
}

static void fresh_open(struct world *w, struct pgs_run runs[2], bool zero, struct pgs__mem *m)
{
    runs[0] = take(w, 40);
    take(w, 3);
    runs[1] = take(w, 30);
    for (int i = 0; i < 2; i++) {
        write_run(w, runs[i], 5); /* recycled: stale bytes */
        CHECK_OK(pgs__fresh_reserve(&w->pf, runs[i], false, &err));
    }
    if (!pgs__fresh_can_map(&w->pf)) SKIP("no writable mappings here");
    CHECK_OK(pgs__mem_fresh(&w->pf, runs, 2, 60 * PAGE - 9, 0, zero, m, &err));
}

TEST(fresh_memory_is_the_file_until_it_is_detached)
{
    struct world w;
    struct pgs_run runs[2];
    struct pgs__mem m;
    world_open(&w);
    long before = pgs__vm_charged();
    fresh_open(&w, runs, true, &m);
    uint8_t *p = m.addr;
    for (uint64_t i = 0; i < 60 * PAGE; i++) CHECK(p[i] == 0);
    p[0] = 11;
    p[41 * PAGE + 2] = 12; /* in the second run */
    CHECK(file_has(&w, runs[0].page.n, 0, 11) && file_has(&w, runs[1].page.n + 1, 2, 12));
    CHECK_OK(pgs__mem_detach(&w.pf, &m, &err));
    CHECK(p[0] == 11 && p[41 * PAGE + 2] == 12);
    p[0] = 21;
    p[41 * PAGE + 2] = 22;
    CHECK(file_has(&w, runs[0].page.n, 0, 11) && file_has(&w, runs[1].page.n + 1, 2, 12));
    CHECK_OK(pgs__mem_detach(&w.pf, &m, &err)); /* again: nothing */
    CHECK(p[0] == 21);
    pgs__mem_close(&w.pf, &m);
    CHECK_EQ(pgs__vm_charged(), before);
    world_close(&w);
}

TEST(fresh_memory_keeps_stale_bytes_only_when_asked_to)
{
    struct world w;
    struct pgs_run runs[2];
    struct pgs__mem m;
    world_open(&w);
    fresh_open(&w, runs, false, &m);
    CHECK(((const uint8_t *)m.addr)[96] != 0);
    pgs__mem_close(&w.pf, &m);
    CHECK_ERR(pgs__mem_fresh(&w.pf, runs, 1, 41 * PAGE, 0, false, &m, NULL), PGS_EINVAL);
    CHECK_OK(pgs__mem_fresh(&w.pf, NULL, 0, 0, 0, true, &m, &err));
    CHECK(*(volatile uint8_t *)m.addr == 0);
    pgs__mem_close(&w.pf, &m);
    world_close(&w);
}

static _Atomic int writers_stop;
static void *writer(void *p)
{
    for (uint64_t n = 1; !atomic_load(&writers_stop); n++)
        for (uint64_t i = 0; i < 60; i++) __atomic_store_n((uint64_t *)p + i * 512, n, __ATOMIC_RELAXED);
    return NULL;
}

/* HAZARDS 7: the mapping is swapped under writing threads. */
TEST(no_store_after_detach_reaches_the_file)
{
    if (UNDER_TSAN) SKIP("a mapping that is replaced under its writers is a race by design");
    for (int round = 0; round < 40; round++) {
        struct world w;
        struct pgs_run runs[2];
        struct pgs__mem m;
        pthread_t t;
        world_open(&w);
        fresh_open(&w, runs, true, &m);
        atomic_store(&writers_stop, 0);
        CHECK(pthread_create(&t, NULL, writer, m.addr) == 0);
        while (__atomic_load_n((uint64_t *)m.addr + 59 * 512, __ATOMIC_RELAXED) < 3) {
        }
        CHECK_OK(pgs__mem_detach(&w.pf, &m, &err));
        static uint8_t a[60 * 4096], b[60 * 4096];
        for (int i = 0; i < 2; i++) {
            uint8_t *to = i ? b : a;
            CHECK_OK(pgs__pages_read(&w.pf, runs[0].page, to, 40, false, &err));
            CHECK_OK(pgs__pages_read(&w.pf, runs[1].page, to + 40 * PAGE, 20, false, &err));
            uint64_t seen = __atomic_load_n((uint64_t *)m.addr, __ATOMIC_RELAXED);
            while (i == 0 && __atomic_load_n((uint64_t *)m.addr, __ATOMIC_RELAXED) < seen + 5) {
            }
        }
        CHECK(memcmp(a, b, sizeof a) == 0);
        atomic_store(&writers_stop, 1);
        pthread_join(t, NULL);
        pgs__mem_close(&w.pf, &m);
        world_close(&w);
    }
}

static void child_writes(struct world *w, struct pgs__mem *m, const struct pgs_run runs[2], bool lose_fd)
{
    uint8_t *p = m->addr;
    p[7] = 1;
    p[59 * PAGE + 7] = 2;
    if (lose_fd) close(w->pf.fd);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(p[7] == 1 && p[59 * PAGE + 7] == 2); /* it still sees what was there */
        p[7] = 66;
        p[59 * PAGE + 7] = 77;
        CHECK_OK(pgs__mem_detach(&w->pf, m, &err));
        CHECK(p[7] == 66);
        pgs__mem_close(&w->pf, m);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(p[7] == 1 && p[59 * PAGE + 7] == 2);
    p[8] = 3; /* the parent's is shared as before */
    if (lose_fd) return;
    CHECK(file_has(w, runs[0].page.n, 7, 1) && file_has(w, runs[1].page.n + 19, 7, 2) &&
          file_has(w, runs[0].page.n, 8, 3));
}

TEST(a_forked_child_never_changes_the_file)
{
    struct world w;
    struct pgs_run runs[2];
    struct pgs__mem m, other;
    CHECK_EQ(pgs__fork_hooks(pgs__mem_fork_prepare, pgs__mem_fork_parent, pgs__mem_fork_child), 0);
    world_open(&w);
    fresh_open(&w, runs, true, &m);
    struct pgs_run more = take(&w, 5);
    CHECK_OK(pgs__fresh_reserve(&w.pf, more, false, &err));
    CHECK_OK(pgs__mem_fresh(&w.pf, &more, 1, 5 * PAGE, 64 * PAGE, true, &other, &err));
    for (int i = 0; i < 5; i++) child_writes(&w, &m, runs, false);
    pgs__mem_close(&w.pf, &other);
    child_writes(&w, &m, runs, false);
    pgs__mem_close(&w.pf, &m);
    fflush(NULL);
    pid_t pid = fork(); /* an empty list */
    if (pid == 0) _exit(0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    world_close(&w);
}

/* closerange in the parent, and a child that cannot map the file again: it gets a copy. */
TEST(a_forked_child_without_the_descriptor_gets_a_copy)
{
    struct world w;
    struct pgs_run runs[2];
    struct pgs__mem m;
    CHECK_EQ(pgs__fork_hooks(pgs__mem_fork_prepare, pgs__mem_fork_parent, pgs__mem_fork_child), 0);
    world_open(&w);
    fresh_open(&w, runs, true, &m);
    child_writes(&w, &m, runs, true);
    int foreign = open("/dev/zero", O_RDWR | O_CLOEXEC); /* the number names another file now */
    CHECK_EQ(foreign, w.pf.fd);
    child_writes(&w, &m, runs, true);
    pgs__mem_close(&w.pf, &m); /* by its name it is nobody's any more, but memory and budget are given back */
    world_close(&w);
    close(foreign);
}

TEST(failing_calls_leave_nothing_behind)
{
    struct world w;
    struct pgs_run runs[2];
    struct pgs__mem m;
    world_open(&w);
    rng_state = 21;
    struct sample s = sample_runs(&w, 60, 5, 3);
    fresh_open(&w, runs, true, &m);
    pgs__mem_close(&w.pf, &m);
    CHECK_OK(pgs__mem_cow(&w.pf, &s.c, 0, &m, &err));
    pgs__mem_close(&w.pf, &m);
    long before = pgs__vm_charged();
    enum pgs__fail_kind kinds[] = {PGS__FAIL_MEM, PGS__FAIL_MAP, PGS__FAIL_FILE};
    for (size_t k = 0; k < PGS_ARRAY_LEN(kinds); k++)
        for (int what = 0; what < 3; what++)
            for (uint64_t nth = 1;; nth++) {
                pgs__inject_fail(kinds[k], nth, ENOMEM, false);
                uint64_t calls = pgs__inject_count(kinds[k]);
                int rc = what == 0   ? pgs__mem_read(&w.pf, &s.c, &m, NULL)
                         : what == 1 ? pgs__mem_cow(&w.pf, &s.c, 0, &m, NULL)
                                     : pgs__mem_fresh(&w.pf, runs, 2, 60 * PAGE, 0, true, &m, NULL);
                calls = pgs__inject_count(kinds[k]) - calls;
                pgs__inject_clear();
                if (rc == 0) {
                    if (what < 2) check_bytes(&m, s.bytes);
                    pgs__mem_close(&w.pf, &m);
                }
                CHECK_EQ(pgs__vm_charged(), before);
                if (nth > calls) break;
            }
    sample_free(&s);
    world_close(&w);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
