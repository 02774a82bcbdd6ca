/* Pagestone | platform/base — the words that every other file uses.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Sizes, page arithmetic, checks and small byte-order helpers. Nothing here has state.
 *
 * Checks come in three kinds, and the kind matters:
 *   - PGS_STATIC(expr, msg)   layouts; costs nothing.
 *   - pgs_assert(expr)        our own state; compiled in with PGS_DEBUG only (never depends on NDEBUG,
 *                             which Python builds define).
 *   - PGS_BUG_ON(expr)        always on: going on would corrupt the store. Aborts with file and line.
 * Bytes that were read from a file are none of these: they are input, and are validated.
 */
#ifndef PGS_PLATFORM_BASE_H
#define PGS_PLATFORM_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PGS_PAGE_SIZE 4096u
#define PGS_PAGE_SHIFT 12
#define PGS_CHUNK_PAGES 512u /* pages of a chunk: 2 MiB, one huge page */
#define PGS_CHUNK_SIZE ((uint64_t)PGS_CHUNK_PAGES * PGS_PAGE_SIZE)

#define PGS_STATIC(expr, msg) _Static_assert(expr, msg)
#define PGS_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define PGS_LIKELY(x) __builtin_expect(!!(x), 1)
#define PGS_UNLIKELY(x) __builtin_expect(!!(x), 0)

_Noreturn void pgs__bug(const char *file, int line, const char *what);
#define PGS_BUG_ON(expr)                                                                                               \
    do {                                                                                                               \
        if (PGS_UNLIKELY(expr)) pgs__bug(__FILE__, __LINE__, #expr);                                                   \
    } while (0)
#ifdef PGS_DEBUG
#define pgs_assert(expr) PGS_BUG_ON(!(expr))
#else
#define pgs_assert(expr) ((void)sizeof(!(expr)))
#endif

/* A physical page of the page file, and a logical page of an object. Distinct types, so that the
 * compiler rejects mixing them; `.n` is the number. */
struct pgs_pgno {
    uint64_t n;
};
struct pgs_lpno {
    uint64_t n;
};

/* A generation: every root switch has one; births, deaths, pins and deadlists count in it. Never
 * mixed with a version (the user's number), which only some root switches make. */
typedef uint64_t pgs_gen_t;

/* Half-open run [page, page + n_pages) of physical pages. */
struct pgs_run {
    struct pgs_pgno page;
    uint64_t n_pages;
};

/* Bytes owned by somebody else; the declaring function says until when. */
struct pgs_span {
    const void *p;
    size_t len;
};

static inline uint64_t pgs__min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t pgs__max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
/* Pages that n_bytes need; cannot overflow. */
static inline uint64_t pgs__pages_of(uint64_t n_bytes)
{
    return (n_bytes >> PGS_PAGE_SHIFT) + ((n_bytes & (PGS_PAGE_SIZE - 1)) != 0);
}

/* Big-endian integers: tree keys compare with memcmp. */
static inline void pgs__put_be64(void *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, 8);
}
static inline uint64_t pgs__get_be64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}
/* Little-endian fields at any alignment (the format is little-endian; others are refused at open). */
static inline uint64_t pgs__get_u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline uint32_t pgs__get_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline uint16_t pgs__get_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

#endif
