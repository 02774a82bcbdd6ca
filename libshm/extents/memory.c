/* Pagestone | extents/memory — making and ending memories: read views, copy-on-write views.
 * SPDX-License-Identifier: Apache-2.0
 *
 * What is composed of several mappings lies in a reservation of its own and is released with one munmap, whatever is mapped inside. A read view of one extent is a
 * pointer into the window: nothing is made, nothing is released. Small inline contents are copied to the heap, because the record that
 * holds them is not aligned.
 *
 *   I5  Whatever fails here leaves nothing behind: `out` is written last.
 */
#include "libshm/extents/memory.h"

#include "libshm/extents/content_map.h"
#include "libshm/extents/memory_state.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"

#define HEAP_ALIGN 64u

int pgs__mem_reserve(uint64_t len, uint8_t **addr, struct pgs_error *err)
{
    *addr = pgs__vm_reserve(len, len >= PGS_CHUNK_SIZE ? PGS_CHUNK_SIZE : PGS_PAGE_SIZE);
    if (*addr) return 0;
    return pgs__fail(err, PGS_ENOMEM,
                     "no address space for %llu bytes: a limit on address space (ulimit -v), or too many mappings "
                     "(vm.max_map_count)",
                     (unsigned long long)len);
}

int pgs__mem_zero(struct pgs__mem *m, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    if (lo >= hi) return 0;
    if (m->heap) {
        memset((uint8_t *)m->addr + lo, 0, hi - lo);
        return 0;
    }
    int rc = pgs__vm_zero((uint8_t *)m->addr + lo, hi - lo, true);
    return rc ? pgs__fail_os(err, -rc, "cannot map %llu bytes of zero memory", (unsigned long long)(hi - lo)) : 0;
}

/* --- reading ---------------------------------------------------------------------------------------------------------------- */
/* The heap block's address is kept in the eight bytes before the data. */
static uint8_t *heap_data(uint64_t n_bytes, uintptr_t align, struct pgs_error *err)
{
    uint8_t *block = pgs__malloc(n_bytes + HEAP_ALIGN + align), *data;
    if (!block) {
        pgs__fail(err, PGS_ENOMEM, "no memory for %llu bytes", (unsigned long long)n_bytes);
        return NULL;
    }
    data = block + HEAP_ALIGN;
    data += (align - ((uintptr_t)data & (align - 1))) & (align - 1);
    memcpy(data - sizeof block, &block, sizeof block);
    return data;
}

static void heap_free(void *data)
{
    void *block;
    memcpy(&block, (uint8_t *)data - sizeof block, sizeof block);
    pgs__free(block);
}

static int read_inline(const struct pgs__content *c, struct pgs__mem *out, struct pgs_error *err)
{
    uint8_t *data = heap_data(c->n_bytes, HEAP_ALIGN, err);
    if (!data) return -PGS_ENOMEM;
    memcpy(data, c->inline_data, c->n_bytes);
    *out = (struct pgs__mem){.kind = PGS__MEM_READ, .addr = data, .n_bytes = c->n_bytes, .heap = true};
    return 0;
}

/* The address of all of it in the window; NULL: several runs, holes, or segments in the way. */
static int read_window(struct pgs__pagefile *pf, const struct pgs__content *c, const void **p, struct pgs_error *err)
{
    struct pgs__run_walk w;
    uint64_t n_pages = pgs__pages_of(c->n_bytes);
    *p = NULL;
    int rc = pgs__run_walk_seek(&w, pf, c, 0, err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    if (w.run.at == 0 && w.run.n_pages == n_pages && !pgs__is_cold(w.run.page))
        *p = pgs__pages_at(pf, (struct pgs_pgno){w.run.page}, n_pages);
    return 0;
}

static int read_composed(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__mem *out,
                         struct pgs_error *err)
{
    uint64_t len = pgs__pages_of(c->n_bytes) << PGS_PAGE_SHIFT;
    uint8_t *addr;
    long n_maps;
    bool patched;
    int rc = pgs__mem_reserve(len, &addr, err);
    if (rc) return rc;
    rc = pgs__mem_compose(pf, c, addr, false, &n_maps, &patched, err);
    if (rc) {
        pgs__vm_release(addr, len);
        return rc;
    }
    *out = (struct pgs__mem){
        .kind = PGS__MEM_READ, .addr = addr, .n_bytes = c->n_bytes, .mapped = len, .reserved = len, .n_maps = n_maps};
    return 0;
}

int pgs__mem_read(struct pgs__pagefile *pf, const struct pgs__content *c, struct pgs__mem *out, struct pgs_error *err)
{
    static _Alignas(HEAP_ALIGN) const uint8_t nothing[HEAP_ALIGN];
    const void *p = nothing;
    if (c->n_bytes && c->form == PGS__FORM_INLINE) return read_inline(c, out, err);
    if (c->n_bytes) {
        int rc = read_window(pf, c, &p, err);
        if (rc) return rc;
    }
    if (!p) return read_composed(pf, c, out, err);
    /* The cast drops const of memory that is mapped read only: a store through it is a fault, not a change. */
    *out = (struct pgs__mem){.kind = PGS__MEM_READ, .addr = (void *)(uintptr_t)p, .n_bytes = c->n_bytes};
    return 0;
}

/* --- copy on write -------------------------------------------------------------------------------------------------------------- */
static int cow_fill(struct pgs__mem *m, struct pgs_error *err)
{
    struct pgs__mem_priv *v = m->priv;
    if (v->base.form != PGS__FORM_INLINE && v->base.n_bytes)
        return pgs__mem_compose(v->pf, &v->base, m->addr, true, &m->n_maps, &v->patched, err);
    if (pgs__vm_charge(2) != 0)
        return pgs__fail(err, PGS_ENOMEM, "too many memory mappings: close other arrays or raise vm.max_map_count");
    int rc = pgs__mem_zero(m, 0, m->mapped, err);
    if (rc) {
        pgs__vm_uncharge(2);
        return rc;
    }
    m->n_maps = 2;
    if (v->base.form == PGS__FORM_INLINE) memcpy(m->addr, v->inlined, v->base.n_bytes);
    return 0;
}

uint64_t pgs__mem_room(uint64_t want)
{
    if (want > (1ull << 43)) return want;
    if (want <= PGS__MEM_HEAP_MAX && pgs__vm_is_short())
        return pgs__min_u64(2 * want, PGS__MEM_HEAP_MAX); /* perhaps all resident: huge pages */
    return 4 * want;
}

int pgs__mem_fill_heap(struct pgs__mem *m, struct pgs_error *err)
{
    struct pgs__mem_priv *v = m->priv;
    memset(m->addr, 0, m->mapped);
    if (v->base.form != PGS__FORM_INLINE) return v->base.n_bytes ? pgs__mem_copy(v->pf, &v->base, m->addr, err) : 0;
    memcpy(m->addr, v->inlined, v->base.n_bytes);
    return 0;
}

/* Without a mapping of its own: whole pages of the heap, all of which count as written. */
static int cow_on_heap(struct pgs__mem *m, struct pgs_error *err)
{
    m->addr = heap_data(m->reserved, PGS_PAGE_SIZE, err);
    if (!m->addr) return -PGS_ENOMEM;
    m->heap = m->priv->patched = true;
    int rc = pgs__mem_fill_heap(m, err);
    if (rc) heap_free(m->addr);
    return rc;
}

static int cow_mapped(struct pgs__mem *m, struct pgs_error *err)
{
    uint8_t *addr;
    int rc = pgs__mem_reserve(m->reserved, &addr, err);
    if (rc) return rc;
    m->addr = addr;
    rc = cow_fill(m, err);
    if (rc) pgs__vm_release(addr, m->reserved);
    return rc;
}

int pgs__mem_cow(struct pgs__pagefile *pf, const struct pgs__content *c, uint64_t reserve, struct pgs__mem *out,
                 struct pgs_error *err)
{
    if (c->n_bytes > PGS__CONTENT_MAX_BYTES || reserve > PGS__CONTENT_MAX_BYTES)
        return pgs__fail(err, PGS_E2BIG, "%llu bytes are more than an object may have (64 TiB)",
                         (unsigned long long)pgs__max_u64(c->n_bytes, reserve));
    if (c->form == PGS__FORM_INLINE && c->n_bytes > PGS__INLINE_MAX)
        return pgs__fail_corrupt(err, "", "inline data of %llu bytes", (unsigned long long)c->n_bytes);
    struct pgs__mem_priv *v = pgs__calloc(1, sizeof *v);
    if (!v) return pgs__fail(err, PGS_ENOMEM, "out of memory");
    v->pf = pf;
    v->base = *c;
    v->base_pages = v->low_pages = pgs__pages_of(c->n_bytes);
    if (c->form == PGS__FORM_INLINE && c->n_bytes) memcpy(v->inlined, c->inline_data, c->n_bytes);
    v->base.inline_data = v->inlined;

    uint64_t n_pages = pgs__max_u64(v->base_pages, 1); /* an empty array has an address, too */
    struct pgs__mem m = {.kind = PGS__MEM_COW, .n_bytes = c->n_bytes, .mapped = n_pages << PGS_PAGE_SHIFT, .priv = v};
    m.reserved = pgs__max_u64(n_pages, pgs__pages_of(reserve)) << PGS_PAGE_SHIFT;
    int rc = m.reserved <= PGS__MEM_HEAP_MAX && pgs__vm_is_short() ? cow_on_heap(&m, err) : cow_mapped(&m, err);
    if (rc) {
        pgs__free(v);
        return rc;
    }
    *out = m;
    return 0;
}

/* Bytes [lo, hi), less than a page, become zero; a page that is zero there stays untouched. */
static void clear_tail(struct pgs__mem *m, uint64_t lo, uint64_t hi)
{
    uint8_t *p = (uint8_t *)m->addr + lo;
    for (uint64_t i = 0; i < hi - lo; i++) {
        if (p[i] == 0) continue;
        memset(p + i, 0, hi - lo - i);
        return;
    }
}

int pgs__mem_resize(struct pgs__pagefile *pf, struct pgs__mem *m, uint64_t n_bytes, struct pgs_error *err)
{
    (void)pf;
    if (m->kind != PGS__MEM_COW) return pgs__fail(err, PGS_EINVAL, "only copy-on-write memory can be resized");
    if (n_bytes > m->reserved)
        return pgs__fail(err, PGS_E2BIG, "%llu bytes do not fit the %llu reserved ones", (unsigned long long)n_bytes,
                         (unsigned long long)m->reserved);
    uint64_t old_end = pgs__pages_of(m->n_bytes) << PGS_PAGE_SHIFT, new_end = pgs__pages_of(n_bytes) << PGS_PAGE_SHIFT;
    /* Shrinking keeps the pages mapped, as zeros: views of the old shape stay readable. Growing zeroes again, for such a view may have been
     * written to since. */
    uint64_t lo = pgs__min_u64(old_end, new_end), hi = pgs__max_u64(old_end, new_end);
    int rc = pgs__mem_zero(m, lo, hi, err);
    if (rc) return rc;
    uint64_t keep = pgs__min_u64(m->n_bytes, n_bytes), keep_end = pgs__pages_of(keep) << PGS_PAGE_SHIFT;
    clear_tail(m, keep, keep_end);
    m->priv->low_pages = pgs__min_u64(m->priv->low_pages, new_end >> PGS_PAGE_SHIFT);
    m->mapped = pgs__max_u64(m->mapped, new_end);
    m->n_bytes = n_bytes;
    return 0;
}

void pgs__mem_close(struct pgs__pagefile *pf, struct pgs__mem *m)
{
    (void)pf;
    if (m->kind == PGS__MEM_FRESH) pgs__mem_fresh_close(m);
    if (m->kind != PGS__MEM_FRESH && m->reserved && !m->heap) pgs__vm_release(m->addr, m->reserved);
    if (m->heap) heap_free(m->addr);
    if (m->n_maps) pgs__vm_uncharge(m->n_maps);
    pgs__free(m->priv);
    *m = (struct pgs__mem){0};
}
