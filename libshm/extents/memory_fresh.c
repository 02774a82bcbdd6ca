/* Pagestone | extents/memory_fresh — memory that is already the store's: shared, writable, over claimed runs; and its end.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A FRESH memory is the one kind through which stores reach the file. It must stop doing so before its pages are published, when its transaction is given up,
 * and in every forked child, whose stores would otherwise change what the parent commits (HAZARDS 7). "Turned private" is one MAP_FIXED
 * of the same pages MAP_PRIVATE over the shared mapping: threads that write meanwhile never see a moment without memory; each store lands before or after.
 *
 *   F1  A memory is in the list before its first run is mapped, and leaves it when nothing of it is shared any more and before its addresses are
 *       released: so a child never inherits a shared run that the hook does not know, and the hook never maps over somebody else's memory.
 *   F2  The child's hook allocates nothing and takes no lock but the one that prepare took. It calls mmap itself and not through the table
 *       of file operations: another thread may have held that table's lock when we forked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "libshm/extents/content_map.h"
#include "libshm/extents/memory_state.h"
#include "libshm/platform/lock.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/vm.h"

/* The process's FRESH memories that are still shared. Head of a doubly linked list; under `lock`. */
static struct pgs__mem_priv *fresh_list;
static struct pgs__mutex lock = {PTHREAD_MUTEX_INITIALIZER, PGS__RANK_LEAF};

static void list_add(struct pgs__mem_priv *v)
{
    pgs__mutex_lock(&lock);
    v->next = fresh_list;
    v->prev = NULL;
    if (fresh_list) fresh_list->prev = v;
    fresh_list = v;
    v->listed = true;
    pgs__mutex_unlock(&lock);
}

static void unlink_locked(struct pgs__mem_priv *v)
{
    if (v->prev)
        v->prev->next = v->next;
    else
        fresh_list = v->next;
    if (v->next) v->next->prev = v->prev;
    v->next = v->prev = NULL;
    v->listed = false;
}

static void list_remove(struct pgs__mem_priv *v)
{
    pgs__mutex_lock(&lock);
    if (v->listed) unlink_locked(v);
    pgs__mutex_unlock(&lock);
}

/* --- making it ---------------------------------------------------------------------------------------------------------------- */
/* The first n_pages of the runs. 0, or -PGS_EINVAL when they have fewer. */
static int take_runs(struct pgs__mem_priv *v, const struct pgs_run *runs, size_t n_runs, uint64_t n_pages,
                     struct pgs_error *err)
{
    if (n_runs && !(v->runs = pgs__malloc(n_runs * sizeof *runs))) return pgs__fail(err, PGS_ENOMEM, "out of memory");
    for (size_t i = 0; i < n_runs && n_pages; i++) {
        struct pgs_run run = {runs[i].page, pgs__min_u64(runs[i].n_pages, n_pages)};
        if (run.n_pages == 0) continue;
        v->runs[v->n_runs++] = run;
        n_pages -= run.n_pages;
    }
    return n_pages ? pgs__fail(err, PGS_EINVAL, "the runs are %llu pages short", (unsigned long long)n_pages) : 0;
}

static int map_runs(struct pgs__mem_priv *v, struct pgs_error *err)
{
    uint8_t *at = v->addr;
    for (size_t i = 0; i < v->n_runs; i++) {
        void *mapped;
        int rc = pgs__fresh_map(v->pf, v->runs[i], at, &mapped, err);
        if (rc) return rc;
        v->n_mapped = i + 1;
        at += v->runs[i].n_pages << PGS_PAGE_SHIFT;
    }
    return 0;
}

int pgs__mem_fresh(struct pgs__pagefile *pf, const struct pgs_run *runs, size_t n_runs, uint64_t n_bytes,
                   uint64_t reserve, bool zero, struct pgs__mem *out, struct pgs_error *err)
{
    if (n_bytes > PGS__CONTENT_MAX_BYTES || reserve > PGS__CONTENT_MAX_BYTES)
        return pgs__fail(err, PGS_E2BIG, "%llu bytes are more than an object may have (64 TiB)",
                         (unsigned long long)pgs__max_u64(n_bytes, reserve));
    struct pgs__mem_priv *v = pgs__calloc(1, sizeof *v);
    if (!v) return pgs__fail(err, PGS_ENOMEM, "out of memory");
    v->pf = pf;
    uint64_t n_pages = pgs__pages_of(n_bytes), len = pgs__max_u64(n_pages, 1) << PGS_PAGE_SHIFT;
    struct pgs__mem m = {.kind = PGS__MEM_FRESH, .n_bytes = n_bytes, .mapped = len, .priv = v};
    m.reserved = pgs__max_u64(len, pgs__pages_of(reserve) << PGS_PAGE_SHIFT);
    int rc = take_runs(v, runs, n_runs, n_pages, err);
    if (rc == 0) rc = pgs__mem_reserve(m.reserved, &v->addr, err);
    m.addr = v->addr;
    if (rc == 0 && pgs__vm_charge(1) != 0)
        rc = pgs__fail(err, PGS_ENOMEM, "too many memory mappings: close other arrays or raise vm.max_map_count");
    else if (rc == 0)
        m.n_maps = 1; /* the rest of the reservation; pgs__fresh_map charges the runs */
    if (rc == 0 && n_pages == 0) rc = pgs__mem_zero(&m, 0, len, err);
    if (rc == 0) {
        list_add(v);
        rc = map_runs(v, err);
    }
    if (rc) {
        pgs__mem_close(pf, &m);
        return rc;
    }
    /* All of it: which pages were recycled and which the file system made as zeros is not known here. */
    if (zero) memset(m.addr, 0, n_pages << PGS_PAGE_SHIFT);
    *out = m;
    return 0;
}

/* --- ending it ------------------------------------------------------------------------------------------------------------------ */
int pgs__mem_detach(struct pgs__pagefile *pf, struct pgs__mem *m, struct pgs_error *err)
{
    struct pgs__mem_priv *v = m->priv;
    if (m->kind != PGS__MEM_FRESH || v->detached) return 0;
    uint8_t *at = v->addr;
    for (size_t i = 0; i < v->n_mapped; i++) {
        int rc = pgs__fresh_make_private(pf, v->runs[i], at, err);
        if (rc) return rc;
        at += v->runs[i].n_pages << PGS_PAGE_SHIFT;
    }
    list_remove(v);
    v->detached = true;
    return 0;
}

void pgs__mem_fresh_close(struct pgs__mem *m)
{
    struct pgs__mem_priv *v = m->priv;
    if (!v) return;
    /* Private first (F1). Where that fails the run stays shared until it is unmapped below, which only a child forked just then would see. */
    (void)pgs__mem_detach(v->pf, m, NULL);
    list_remove(v);
    uint64_t done = 0;
    for (size_t i = 0; i < v->n_mapped; i++) {
        pgs__fresh_unmap(v->addr + done, v->runs[i].n_pages);
        done += v->runs[i].n_pages << PGS_PAGE_SHIFT;
    }
    /* Not the whole reservation at once: what was unmapped above may be another thread's by now. */
    if (v->addr && done < m->reserved) pgs__vm_release(v->addr + done, m->reserved - done);
    pgs__free(v->runs);
    v->runs = NULL;
}

/* --- fork ------------------------------------------------------------------------------------------------------------------------ */
void pgs__mem_fork_prepare(void)
{
    pgs__mutex_lock(&lock);
}

void pgs__mem_fork_parent(void)
{
    pgs__mutex_unlock(&lock);
}

static bool fd_is_ours(const struct pgs__pagefile *pf, int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && (uint64_t)st.st_dev == pf->dev && (uint64_t)st.st_ino == pf->ino;
}

/* The descriptor is gone or another file's: a copy of the bytes takes the place of the shared pages. */
static bool replace_by_copy(uint8_t *at, size_t len)
{
    void *copy = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (copy == MAP_FAILED) return false;
    memcpy(copy, at, len);
    if (mremap(copy, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED) return true;
    munmap(copy, len);
    return false;
}

static void run_to_private(struct pgs__mem_priv *v, size_t i, uint8_t *at)
{
    size_t len = v->runs[i].n_pages << PGS_PAGE_SHIFT;
    int fd = v->pf->fd;
    if (fd_is_ours(v->pf, fd) && mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd,
                                      (off_t)(v->runs[i].page.n << PGS_PAGE_SHIFT)) != MAP_FAILED)
        return;
    if (i >= v->n_mapped || replace_by_copy(at, len)) return; /* one that was not mapped yet is not shared either */
    /* Out of memory and out of the store's reach: reading stays possible, storing faults. */
    PGS_BUG_ON(mprotect(at, len, PROT_READ) != 0);
}

void pgs__mem_fork_child(void)
{
    while (fresh_list) {
        struct pgs__mem_priv *v = fresh_list;
        uint8_t *at = v->addr;
        for (size_t i = 0; i < v->n_runs; i++) {
            run_to_private(v, i, at);
            at += v->runs[i].n_pages << PGS_PAGE_SHIFT;
        }
        v->detached = true;
        unlink_locked(v);
    }
    pgs__mutex_unlock(&lock);
}
