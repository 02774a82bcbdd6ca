/* Pagestone | pages/window — addresses of pages, and which of them were verified.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A process sees the page file through one read-only mapping that reaches 16 TiB past its end: growth by anybody appears
 * in it without remapping, and a page's address is one addition. Where address space is short (RLIMIT_AS, sanitizers, a file
 * system whose files end earlier) the pages beyond the window are reached through segments that are mapped at first use.
 *
 * A process has 128 TiB for everything. Each further store therefore gets half of what is left of WINDOWS_MAX, so that a process may have any number of
 * them open and never meets the end of its addresses because of us.
 *
 *   W1  Nothing is unmapped before pgs__window_fini: an address once given stays readable.
 *   W2  A segment maps one chunk more than its own pages, so that no run of up to a chunk ever crosses two of them.
 *   W3  No address is given for a page that was not inside the file by fstat of the right inode.
 */
#define _GNU_SOURCE 1
#include "libshm/pages/window.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"

#if defined(__SANITIZE_THREAD__)
#define WINDOW_MAX (4ull << 30) /* its shadow memory leaves 1.5 TiB for everybody */
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WINDOW_MAX (4ull << 30)
#endif
#endif
#ifndef WINDOW_MAX
#define WINDOW_MAX (PGS__MAX_PAGES << PGS_PAGE_SHIFT)
#endif
#define WINDOWS_MAX (2 * WINDOW_MAX)
#define WINDOW_MIN (1ull << 30) /* below this, segments serve as well */
#define SEGMENT_MIN (64ull << 20)
#define SEGMENT_MAX (1ull << 30)

struct pgs__segments {
    uint64_t n_pages;                 /* of one segment, without the overlap */
    uint64_t n;                       /* entries */
    _Atomic(const uint8_t *) first[]; /* address of the segment's first page; NULL: not mapped yet; never cleared */
};

/* --- the window ------------------------------------------------------------------------------------------------- */

static const uint8_t *map_read(struct pgs__pagefile *pf, uint64_t off, uint64_t len, int *rc)
{
    if (pgs__vm_charge(1) != 0) {
        *rc = -ENOMEM;
        return NULL;
    }
    void *p = pgs__file_ops->map(pf->fd, PGS__MAP_READ, NULL, len, (off_t)off, rc);
    if (p == MAP_FAILED) {
        pgs__vm_uncharge(1);
        return NULL;
    }
    (void)madvise(p, len, MADV_DONTDUMP); /* a core of 16 TiB helps nobody */
    return p;
}

static void unmap_read(const uint8_t *p, uint64_t len)
{
    /* the cast drops const, not protection: the mapping itself is read only */
    pgs__file_ops->unmap((void *)(uintptr_t)p, len);
    pgs__vm_uncharge(1);
}

/* Bytes of all windows of this process, and how many there may be. Relaxed: two stores opened at once may overshoot a little, which the halving forgives. */
static _Atomic uint64_t windows_bytes;
static _Atomic uint64_t windows_max = WINDOWS_MAX;

static uint64_t window_share(void)
{
    uint64_t max = atomic_load_explicit(&windows_max, memory_order_relaxed),
             used = atomic_load_explicit(&windows_bytes, memory_order_relaxed);
    uint64_t share = used < max ? ((max - used) / 2) & ~(PGS_CHUNK_SIZE - 1) : 0;
    return pgs__min_u64(share, WINDOW_MAX);
}

/* The largest mapping that the kernel grants: ext4 ends one block below 16 TiB, 39-bit addresses earlier. */
static void window_map(struct pgs__pagefile *pf)
{
    uint64_t len = window_share();
    bool shaved = false, crowded = false;
    while (len >= WINDOW_MIN) {
        int rc = 0;
        const uint8_t *p = map_read(pf, 0, len, &rc);
        if (p) {
            pf->window = p;
            pf->window_pages = len >> PGS_PAGE_SHIFT;
            uint64_t used = atomic_fetch_add_explicit(&windows_bytes, len, memory_order_relaxed) + len;
            if (crowded) /* at least as much again was not there: the rest is not for us */
                atomic_store_explicit(&windows_max, used + len / 2, memory_order_relaxed);
            return;
        }
        crowded = crowded || rc == -ENOMEM;
        if (!shaved) {
            len -= PGS_CHUNK_SIZE;
            shaved = true;
        } else {
            len = (len / 2) & ~(PGS_CHUNK_SIZE - 1);
        }
    }
}

int pgs__window_init(struct pgs__pagefile *pf, struct pgs_error *err)
{
    pf->window = NULL;
    pf->window_pages = 0;
    atomic_init(&pf->segments, NULL);
    pf->verified = pgs__calloc((size_t)1 << PGS__VERIFIED_BITS, sizeof *pf->verified);
    if (!pf->verified) return pgs__fail(err, PGS_ENOMEM, "no memory for the table of verified pages");
    struct rlimit as;
    bool limited = getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY;
    /* Under a limit the window would take what the program itself needs: never, then. */
    if (!limited && pgs__cap(PGS__CAP_BIG_WINDOW)) window_map(pf);
    return 0;
}

/* --- segments --------------------------------------------------------------------------------------------------- */

static uint64_t segment_bytes(void)
{
    struct rlimit as;
    if (getrlimit(RLIMIT_AS, &as) != 0 || as.rlim_cur == RLIM_INFINITY) return SEGMENT_MAX;
    uint64_t len = SEGMENT_MAX;
    while (len > SEGMENT_MIN && len > as.rlim_cur / 64) len /= 2;
    return len;
}

/* The table, made at first need. NULL: no memory. */
static struct pgs__segments *segments_of(struct pgs__pagefile *pf)
{
    /* acquire: its fields were written before. Pairs with the release of the exchange below. */
    struct pgs__segments *s = atomic_load_explicit(&pf->segments, memory_order_acquire);
    if (s) return s;
    uint64_t n_pages = segment_bytes() >> PGS_PAGE_SHIFT;
    uint64_t n = PGS__MAX_PAGES / n_pages;
    struct pgs__segments *made = pgs__calloc(1, sizeof *made + n * sizeof made->first[0]);
    if (!made) return NULL;
    made->n_pages = n_pages;
    made->n = n;
    if (atomic_compare_exchange_strong_explicit(&pf->segments, &s, made, memory_order_acq_rel, memory_order_acquire))
        return made;
    pgs__free(made); /* another thread was first; s is its table */
    return s;
}

static uint64_t segment_len(const struct pgs__segments *s, uint64_t i)
{
    uint64_t lo = i * s->n_pages,
             hi = pgs__min_u64(lo + s->n_pages + PGS_CHUNK_PAGES, PGS__MAX_PAGES - PGS_CHUNK_PAGES);
    return (hi - lo) << PGS_PAGE_SHIFT;
}

static int segment_at(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, const void **out)
{
    struct pgs__segments *s = segments_of(pf);
    if (!s) return -PGS_ENOMEM;
    uint64_t i = page / s->n_pages, within = page % s->n_pages;
    pgs_assert(i < s->n); /* the page is inside a file of at most PGS__MAX_PAGES */
    uint64_t len = segment_len(s, i);
    if (within + n_pages > len >> PGS_PAGE_SHIFT) return -PGS_E2BIG;
    /* acquire/release only so that tools see the order: the address itself carries the dependency. */
    const uint8_t *first = atomic_load_explicit(&s->first[i], memory_order_acquire);
    if (!first) {
        int rc = 0;
        const uint8_t *made = map_read(pf, (i * s->n_pages) << PGS_PAGE_SHIFT, len, &rc);
        if (!made) return rc == -ENOMEM ? -PGS_ENOMEM : -PGS_EIO;
        if (atomic_compare_exchange_strong_explicit(&s->first[i], &first, made, memory_order_acq_rel,
                                                    memory_order_acquire))
            first = made;
        else
            unmap_read(made, len); /* nobody has seen it: not against W1 */
    }
    *out = first + (within << PGS_PAGE_SHIFT);
    return 0;
}

void pgs__window_fini(struct pgs__pagefile *pf)
{
    if (pf->window) {
        unmap_read(pf->window, pf->window_pages << PGS_PAGE_SHIFT);
        atomic_fetch_sub_explicit(&windows_bytes, pf->window_pages << PGS_PAGE_SHIFT,
                                  memory_order_relaxed); /* as above */
    }
    struct pgs__segments *s = atomic_load(&pf->segments);
    for (uint64_t i = 0; s && i < s->n; i++) {
        const uint8_t *first = atomic_load(&s->first[i]);
        if (first) unmap_read(first, segment_len(s, i));
    }
    pgs__free(s);
    pgs__free((void *)pf->verified);
    pf->window = NULL;
    pf->window_pages = 0;
    atomic_store(&pf->segments, NULL);
    pf->verified = NULL;
}

/* --- addresses -------------------------------------------------------------------------------------------------- */

/* 0, -PGS_ECORRUPT (beyond the end), -PGS_E2BIG (spans two segments), -PGS_ENOMEM or -PGS_EIO (no segment). */
static int locate(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, const void **out)
{
    if (!pgs__pagefile_holds(pf, page, n_pages)) return -PGS_ECORRUPT;
    if (page + n_pages > pf->window_pages) return segment_at(pf, page, n_pages, out);
    *out = pf->window + (page << PGS_PAGE_SHIFT);
    return 0;
}

const void *pgs__page_slow(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages)
{
    const void *p = NULL;
    return locate(pf, page, n_pages, &p) == 0 ? p : NULL;
}

static int explain(int rc, struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, const char *what,
                   struct pgs_error *err)
{
    unsigned long long p = page, n = n_pages;
    if (rc == -PGS_ENOMEM)
        return pgs__fail(err, PGS_ENOMEM, "no address space to read the %s at page %llu: raise the limit (ulimit -v)",
                         what, p);
    if (rc == -PGS_E2BIG)
        return pgs__fail(err, PGS_E2BIG, "the %s at page %llu (%llu pages) spans two segments of the window", what, p,
                         n);
    if (rc == -PGS_EIO) return pgs__fail(err, PGS_EIO, "cannot map the page file to read the %s at page %llu", what, p);
    return pgs__fail_corrupt(err, NULL, "the %s at page %llu (%llu pages) lies beyond the end of the file (%llu pages)",
                             what, p, n, (unsigned long long)atomic_load(&pf->n_pages));
}

int pgs__pages_explain(struct pgs__pagefile *pf, struct pgs_pgno page, uint64_t n_pages, const char *what,
                       struct pgs_error *err)
{
    const void *p;
    int rc = locate(pf, page.n, n_pages, &p);
    /* It works now (the file grew, memory came back) although the caller just failed: say what can only have been the reason. */
    return explain(rc == 0 ? -PGS_ENOMEM : rc, pf, page.n, n_pages, what, err);
}

/* --- verified pages --------------------------------------------------------------------------------------------- */

/* One word stands for (page, birth, hash): a recycled page has another birth and so another word. Direct-mapped; a collision of
 * slots costs a second verification, a collision of words (2^-64 a pair) nothing that can be measured. */
static uint64_t verified_key(const struct pgs_ptr *ptr)
{
    uint64_t key = pgs__mix(ptr->xxh ^ pgs__mix(ptr->birth ^ pgs__mix(ptr->page + 1)));
    return key ? key : 1; /* 0 is an empty entry */
}

/* Of bytes whose structure nobody looked at: never taken for a validated page. */
static uint64_t hashed_key(const struct pgs_ptr *ptr, uint64_t n_pages)
{
    return pgs__mix(verified_key(ptr) + n_pages);
}

static _Atomic uint64_t *verified_slot(struct pgs__pagefile *pf, uint64_t key)
{
    return &pf->verified[key & ((1u << PGS__VERIFIED_BITS) - 1)];
}

/* Relaxed on both sides: an entry is one word, so it is never torn, and it says something about bytes that nobody changes any
 * more and that this thread sees through its own pin. A stale value only leads to another verification. */
static bool verified_has(struct pgs__pagefile *pf, uint64_t key)
{
    return atomic_load_explicit(verified_slot(pf, key), memory_order_relaxed) == key;
}
static void verified_add(struct pgs__pagefile *pf, uint64_t key)
{
    atomic_store_explicit(verified_slot(pf, key), key, memory_order_relaxed);
}

static int verify(const struct pgs_ptr *ptr, uint64_t n_pages, const char *what, int (*validate)(const void *),
                  const void *p, struct pgs_error *err)
{
    uint64_t xxh = n_pages == 1 ? pgs__hash_page(p) : pgs__hash(p, (size_t)n_pages << PGS_PAGE_SHIFT);
    if (xxh != ptr->xxh && !PGS_PLANTED(7))
        return pgs__fail_corrupt(err, NULL, "wrong checksum of the %s at page %llu", what,
                                 (unsigned long long)ptr->page);
    if (validate && validate(p) != 0)
        return pgs__fail_corrupt(err, NULL, "malformed %s at page %llu", what, (unsigned long long)ptr->page);
    return 0;
}

int pgs__page_verified(struct pgs__pagefile *pf, const struct pgs_ptr *ptr, uint64_t n_pages, const char *what,
                       int (*validate)(const void *bytes), const void **bytes, struct pgs_error *err)
{
    const void *p;
    if (ptr->page == 0 || n_pages == 0) return pgs__fail_corrupt(err, NULL, "a reference to a %s names no page", what);
    p = pgs__pages_at(pf, (struct pgs_pgno){ptr->page}, n_pages);
    if (PGS_UNLIKELY(!p)) {
        int rc = locate(pf, ptr->page, n_pages, &p);
        if (rc) return explain(rc, pf, ptr->page, n_pages, what, err);
    }
    uint64_t key = n_pages != 1 || !validate ? hashed_key(ptr, n_pages) : verified_key(ptr);
    if (PGS_UNLIKELY(!verified_has(pf, key))) {
        int rc = verify(ptr, n_pages, what, validate, p, err);
        if (rc) return rc;
        verified_add(pf, key);
    }
    *bytes = p;
    return 0;
}

void pgs__page_mark_verified(struct pgs__pagefile *pf, const struct pgs_ptr *ptr)
{
    verified_add(pf, verified_key(ptr));
}

void pgs__page_mark_hashed(struct pgs__pagefile *pf, const struct pgs_ptr *ptr, uint64_t n_pages)
{
    verified_add(pf, hashed_key(ptr, n_pages));
}
