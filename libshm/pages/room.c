/* Pagestone | pages/room — allowances of memory, and exact looks where it is short.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include "libshm/pages/room.h"

#include <errno.h>
#include <unistd.h>

#include "libshm/pages/backed.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/lock.h"

#define ALLOWANCE (64ull << 20)
#define ALLOWANCE_PART 16u /* of what is left: several processes may hold one */
#define ALLOWANCE_LEAST (256u << 10)
#define ALLOWANCE_NS 250000000ull
#define WORTH_A_LOOK ((64ull << 20) >> PGS_PAGE_SHIFT) /* pages: copying them takes far longer */

/* Relaxed throughout: the numbers order nothing, and a stale one costs a look or lets a few pages through (I2). */

void pgs__room_limit(struct pgs__pagefile *pf, bool no_quota)
{
    bool on = no_quota && pf->fs == PGS__FS_TMPFS && pgs__cap(PGS__CAP_MEMORY_LIMIT);
    if (atomic_load_explicit(&pf->ram_limited, memory_order_relaxed) != on)
        atomic_store_explicit(&pf->ram_limited, on, memory_order_relaxed);
}

static bool is_limited(struct pgs__pagefile *pf)
{
    return atomic_load_explicit(&pf->ram_limited, memory_order_relaxed);
}

static bool draw(struct pgs__pagefile *pf, uint64_t bytes)
{
    uint64_t have = atomic_load_explicit(&pf->allowance, memory_order_relaxed);
    while (have >= bytes)
        if (atomic_compare_exchange_weak_explicit(&pf->allowance, &have, have - bytes, memory_order_relaxed,
                                                  memory_order_relaxed))
            return true;
    return false;
}

/* A new allowance, or none: so little is left that each page counts. */
static void renew(struct pgs__pagefile *pf, uint64_t now)
{
    struct pgs__ram ram;
    pgs__ram_look(ALLOWANCE * ALLOWANCE_PART, &ram);
    uint64_t n = pgs__min_u64(ram.left / ALLOWANCE_PART, ALLOWANCE);
    if (n < ALLOWANCE_LEAST) n = 0;
    atomic_store_explicit(&pf->allowance, n, memory_order_relaxed);
    atomic_store_explicit(&pf->ram_short, n == 0, memory_order_relaxed);
    atomic_store_explicit(&pf->allowance_until, now + ALLOWANCE_NS, memory_order_relaxed);
}

/* SEEK_DATA at a page that is there ends at once; SEEK_HOLE may walk through the rest of the file, which only a long run is worth. */
static uint64_t holes_page_by_page(struct pgs__pagefile *pf, uint64_t page, uint64_t end)
{
    uint64_t holes = 0;
    while (page < end) {
        off_t at = pgs__file_ops->seek(pf->fd, (off_t)(page << PGS_PAGE_SHIFT), SEEK_DATA);
        if (at == -ENXIO) return holes + (end - page);
        if (at < 0) return holes; /* it cannot tell */
        uint64_t data = pgs__min_u64((uint64_t)at >> PGS_PAGE_SHIFT, end);
        holes += data - page;
        page = data + 1;
    }
    return holes;
}

static uint64_t bytes_of_holes(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages)
{
    struct pgs__backed b = {.pf = pf};
    uint64_t holes = n_pages, end = page + n_pages;
    if (n_pages <= PGS_CHUNK_PAGES) return holes_page_by_page(pf, page, end) << PGS_PAGE_SHIFT;
    while (page < end) {
        struct pgs_run run = pgs__backed_first(&b, page, end);
        holes -= run.n_pages;
        page = run.page.n + run.n_pages;
    }
    return holes << PGS_PAGE_SHIFT;
}

/* What is there already counts nothing (I1). */
static int look_exactly(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, bool deep)
{
    struct pgs__ram ram;
    uint64_t need = bytes_of_holes(pf, page, n_pages);
    if (need == 0) return 0;
    pgs__ram_look(need, &ram);
    uint64_t half = ram.kept / 2, left = ram.left;
    if (deep && ram.by != PGS__RAM_NOTHING) left = ram.available > half ? ram.available - half : 0;
    return need <= left ? 0 : -ENOSPC;
}

int pgs__room_take(struct pgs__pagefile *pf, uint64_t page, uint64_t n_pages, bool deep)
{
    if (!is_limited(pf)) return 0;
    uint64_t now = pgs__clock_mono_ns(), bytes = n_pages << PGS_PAGE_SHIFT;
    bool fresh = now < atomic_load_explicit(&pf->allowance_until, memory_order_relaxed);
    if (fresh && draw(pf, bytes)) return 0;
    if (!fresh || !atomic_load_explicit(&pf->ram_short, memory_order_relaxed)) renew(pf, now);
    return draw(pf, bytes) ? 0 : look_exactly(pf, page, n_pages, deep);
}

int pgs__room_holds(struct pgs__pagefile *pf, struct pgs_run run)
{
    if (!is_limited(pf) || run.n_pages < WORTH_A_LOOK) return 0;
    return look_exactly(pf, run.page.n, run.n_pages, false);
}

bool pgs__room_ram(struct pgs__pagefile *pf, uint64_t need, struct pgs__ram *out)
{
    if (!is_limited(pf)) return false;
    pgs__ram_look(need, out);
    return out->by != PGS__RAM_NOTHING;
}

uint64_t pgs__room_of(struct pgs__pagefile *pf)
{
    struct pgs__ram ram;
    uint64_t room = pgs__fs_room(pf->fd);
    return pgs__room_ram(pf, UINT64_MAX, &ram) ? pgs__min_u64(room, ram.left) : room;
}

uint64_t pgs__room_most(struct pgs__pagefile *pf)
{
    struct pgs__ram ram;
    uint64_t most = pgs__fs_most(pf->fd);
    return pgs__room_ram(pf, 0, &ram) ? pgs__min_u64(most, ram.total - ram.kept) : most;
}
