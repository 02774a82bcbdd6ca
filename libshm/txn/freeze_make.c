/* Pagestone | txn/freeze_make — new bytes of a round's blocks, in claimed pages.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each thread takes a block, makes its bytes in a buffer of its own, which stays in its cache, takes pages for them and writes them. Pages for the worst case are claimed before, in one piece, so that blocks lie side by side whatever they shrink to,
 * and what is left over goes back. Where there is no such piece each block claims what it needs; the first that finds no room ends the round, whose blocks so far are entered.
 *
 * Writing by pwrite, page by page, was a fifth of freezing and more than half of thawing. So the piece is mapped where the kernel gives huge pages (pages/fresh.h), whoever comes first to a chunk makes it ready, and
 * blocks are stored there; thawed ones are decompressed to where they stay. What lies in a chunk that did not get ready goes through pwrite.
 */
#include <pthread.h>

#include "libshm/pages/fresh.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/parallel.h"
#include "libshm/txn/freeze_impl.h"

#define MAX_CHUNKS (PGS__FREEZE_BLOCKS * PGS__COLD_PAGES / PGS_CHUNK_PAGES)
#define GIVES_UP                                                                                                       \
    4u /* chunks that did not get ready, one after the other: the kernel searches long for huge pages that are not there */

enum chunk_state { UNSEEN, READY, REFUSED };
struct make {
    struct pgs__freeze *f;
    pthread_mutex_t m;   /* of what follows and of f->claim; taken before any lock of the library */
    struct pgs_run left; /* of the piece claimed before */
    bool full;
    uint64_t n_placed;
    struct pgs_run
        window; /* chunks of the piece; n_pages 0: they are not mapped. Like `map` set before threads begin */
    uint8_t *map;
    pthread_mutex_t window_m; /* of what follows; no other is taken under it */
    enum chunk_state chunks[MAX_CHUNKS];
    unsigned n_refused;
    pthread_mutex_t
        write_m; /* held during pwrite: the kernel lets one thread at a time write a file, and the others spin */
};

/* --- pages ------------------------------------------------------------------------------------------------------------------------- */
/* Most that a block may compress to: one page in eight is saved, and never less than one. */
static uint64_t worth(uint32_t n_raw)
{
    return n_raw - (n_raw + 7) / 8;
}

static void claim_worst(struct make *k)
{
    struct pgs__freeze *f = k->f;
    uint64_t most = 0;
    size_t n_runs;
    for (size_t i = 0; i < f->n_blocks; i++) most += f->thaw ? f->blocks[i].n_cold : worth(f->blocks[i].n_raw);
    if (pgs__claim_alloc(&f->claim, NULL, false, most, PGS__ALLOC_CONTIGUOUS, &k->left, 1, &n_runs, NULL))
        k->left.n_pages = 0;
}

/* --- the window ------------------------------------------------------------------------------------------------------------------------ */
static void open_window(struct make *k)
{
    const uint64_t mask = PGS_CHUNK_PAGES - 1;
    struct pgs_run all = {k->left.page, pgs__min_u64(k->left.n_pages, MAX_CHUNKS * PGS_CHUNK_PAGES) & ~mask};
    if (all.n_pages == 0 || (all.page.n & mask)) return;
    k->map = pgs__fresh_window(&k->f->s->pf, all);
    if (k->map) k->window = all;
}

static bool ready(struct make *k, uint64_t index)
{
    pthread_mutex_lock(&k->window_m);
    enum chunk_state *state = &k->chunks[index];
    if (*state == UNSEEN && k->n_refused < GIVES_UP) {
        bool ok =
            pgs__fresh_ready(&k->f->s->pf, k->window.page.n / PGS_CHUNK_PAGES + index, k->map + index * PGS_CHUNK_SIZE);
        *state = ok ? READY : REFUSED;
        k->n_refused = ok ? 0 : k->n_refused + 1;
    }
    bool is_ready = *state == READY;
    pthread_mutex_unlock(&k->window_m);
    return is_ready;
}

/* Where the pages may be stored to. NULL: pwrite. */
static uint8_t *address_of(struct make *k, struct pgs_run run)
{
    uint64_t at = run.page.n - k->window.page.n; /* wraps around for what lies before it */
    if (run.n_pages == 0 || at >= k->window.n_pages || run.n_pages > k->window.n_pages - at) return NULL;
    for (uint64_t i = at / PGS_CHUNK_PAGES; i <= (at + run.n_pages - 1) / PGS_CHUNK_PAGES; i++)
        if (!ready(k, i)) return NULL;
    return k->map + (at << PGS_PAGE_SHIFT);
}

/* --- taking and writing ------------------------------------------------------------------------------------------------------------- */
/* No room for this block: nor for any behind it in this round. */
static void no_room(struct make *k, const struct pgs__freeze_block *b)
{
    k->full = true;
    k->f->next = pgs__min_u64(k->f->next, b->at);
}

/* n pages for the block, or none (k->full). */
static int take(struct make *k, struct pgs__freeze_block *b, uint64_t n, struct pgs_error *err)
{
    struct pgs_error local = {0};
    size_t n_runs;
    int rc = 0;
    pthread_mutex_lock(&k->m);
    if (k->full) {
        no_room(k, b);
    } else if (k->left.n_pages >= n) {
        b->to = (struct pgs_run){k->left.page, n};
        k->left.page.n += n;
        k->left.n_pages -= n;
    } else {
        rc = pgs__claim_alloc(&k->f->claim, NULL, false, n, PGS__ALLOC_CONTIGUOUS, &b->to, 1, &n_runs, &local);
        if (rc) b->to.n_pages = 0;
        if (rc == -PGS_EFULL) {
            no_room(k, b);
            rc = 0;
        }
    }
    k->n_placed += b->to.n_pages > 0;
    pthread_mutex_unlock(&k->m);
    if (rc && err->code == 0) *err = local;
    return rc;
}

/* The bytes into the pages of the block, by pwrite. */
static int write_block(struct make *k, struct pgs__freeze_block *b, const void *bytes, uint64_t n_bytes,
                       struct pgs_error *err)
{
    struct pgs_error local = {0};
    pthread_mutex_lock(&k->write_m);
    int rc = pgs__fresh_copy(&k->f->s->pf, b->to, false, bytes, n_bytes, NULL, &local);
    pthread_mutex_unlock(&k->write_m);
    if (rc == 0) return 0;
    pthread_mutex_lock(&k->m);
    pgs__claim_give(&k->f->claim, b->to, false);
    b->to.n_pages = 0;
    k->n_placed--;
    if (rc == -PGS_EFULL) no_room(k, b);
    pthread_mutex_unlock(&k->m);
    if (rc != -PGS_EFULL) *err = local;
    return rc == -PGS_EFULL ? 0 : rc;
}

/* --- freezing ------------------------------------------------------------------------------------------------------------------------ */
/* The block's bytes: where they lie, or copied to a new *buf. What has checksums is verified before. */
static int gather(struct pgs__freeze *f, const struct pgs__freeze_block *b, const void **out, uint8_t **buf,
                  struct pgs_error *err)
{
    struct pgs__pagefile *pf = &f->s->pf;
    const struct pgs__content *c = &f->obj.content;
    const struct pgs__freeze_part *p = &f->parts[b->first];
    struct pgs__cold_cache cache = {0};
    uint64_t n_unverified;
    int rc = c->map.page ? pgs__content_verify_pages(pf, c, b->at, b->at + b->n, &cache, &n_unverified, err) : 0;
    *out = NULL;
    if (rc == 0 && b->n_raw == b->n && b->n_parts == 1) *out = pgs__pages_at(pf, p->run.page, p->run.n_pages);
    if (rc == 0 && !*out) {
        *out = *buf = pgs__malloc(PGS__COLD_BYTES);
        rc = *buf ? pgs__content_read_via(pf, c, &cache, b->at << PGS_PAGE_SHIFT, *buf, b->n << PGS_PAGE_SHIFT, err)
                  : pgs__fail(err, PGS_ENOMEM, "no memory to freeze a block");
    }
    pgs__cold_cache_free(&cache);
    return rc;
}

static int freeze_one(void *ctx, uint64_t i, struct pgs_error *err)
{
    struct make *k = ctx;
    struct pgs__freeze *f = k->f;
    struct pgs__freeze_block *b = &f->blocks[i];
    const void *bytes;
    uint8_t *buf = NULL;
    size_t z_bytes = 0, cap = (size_t)worth(b->n_raw) << PGS_PAGE_SHIFT;
    int rc = gather(f, b, &bytes, &buf, err);
    if (rc == 0)
        rc = pgs__cold_compress(bytes, b->n << PGS_PAGE_SHIFT, pgs__freeze_itemsize(&f->obj), NULL, cap, &z_bytes,
                                &b->xxh, err);
    pgs__free(buf);
    if (rc) return rc == 1 ? 0 : rc; /* 1: it stays raw */
    b->z_bytes = (uint32_t)z_bytes;
    rc = take(k, b, pgs__pages_of(z_bytes), err);
    if (rc || b->to.n_pages == 0) return rc;
    uint8_t *to = address_of(k, b->to);
    if (!to) return write_block(k, b, pgs__cold_packed(), z_bytes, err);
    memcpy(to, pgs__cold_packed(), z_bytes);
    memset(to + z_bytes, 0, (b->to.n_pages << PGS_PAGE_SHIFT) - z_bytes);
    return 0;
}

/* --- thawing -------------------------------------------------------------------------------------------------------------------------- */
/* Cold pages of the block, one after the other. */
static int bring(struct pgs__freeze *f, const struct pgs__freeze_block *b, uint8_t *buf, struct pgs_error *err)
{
    struct pgs__cold_cache cache = {0};
    int rc = 0;
    for (size_t j = 0; j < b->n_parts && rc == 0; j++) {
        const struct pgs__freeze_part *p = &f->parts[b->first + j];
        if (!pgs__is_cold(p->run.page.n)) continue;
        rc = pgs__content_read_via(&f->s->pf, &f->obj.content, &cache, p->at << PGS_PAGE_SHIFT, buf,
                                   p->run.n_pages << PGS_PAGE_SHIFT, err);
        buf += p->run.n_pages << PGS_PAGE_SHIFT;
    }
    pgs__cold_cache_free(&cache);
    return rc;
}

static int thaw_one(void *ctx, uint64_t i, struct pgs_error *err)
{
    struct make *k = ctx;
    struct pgs__freeze *f = k->f;
    struct pgs__freeze_block *b = &f->blocks[i];
    uint64_t *xxh = f->page_xxh ? f->page_xxh + i * PGS__COLD_PAGES : NULL;
    uint8_t *buf = NULL;
    int rc = take(k, b, b->n_cold, err);
    if (rc || b->to.n_pages == 0) return rc;
    uint8_t *stored = address_of(k, b->to), *to = stored;
    if (!to) to = buf = pgs__malloc(PGS__COLD_BYTES);
    rc = to ? bring(f, b, to, err) : pgs__fail(err, PGS_ENOMEM, "no memory to thaw a block");
    for (uint64_t p = 0; xxh && rc == 0 && p < b->n_cold; p++) xxh[p] = pgs__hash_page(to + (p << PGS_PAGE_SHIFT));
    if (rc == 0 && !stored) rc = write_block(k, b, buf, (uint64_t)b->n_cold << PGS_PAGE_SHIFT, err);
    pgs__free(buf);
    return rc;
}

/* --- a round ---------------------------------------------------------------------------------------------------------------------------- */
int pgs__freeze_make(struct pgs__freeze *f, struct pgs_error *err)
{
    bool hashed = f->thaw && f->checksums && (f->obj.kind == PGS_KIND_ARRAY || f->obj.kind == PGS_KIND_PICKLE);
    struct make k = {.f = f,
                     .m = PTHREAD_MUTEX_INITIALIZER,
                     .window_m = PTHREAD_MUTEX_INITIALIZER,
                     .write_m = PTHREAD_MUTEX_INITIALIZER};
    if (hashed && !f->page_xxh)
        f->page_xxh = pgs__malloc((size_t)PGS__FREEZE_BLOCKS * PGS__COLD_PAGES * sizeof *f->page_xxh);
    if (hashed && !f->page_xxh) return pgs__fail(err, PGS_ENOMEM, "no memory to thaw");
    if (!f->thaw && !f->checked) {
        int rc = pgs__content_verify_stream(&f->s->pf, &f->obj.content, err);
        if (rc) return rc;
        f->checked = true;
    }
    claim_worst(&k);
    open_window(&k);
    int rc = pgs__parallel(f->n_blocks, f->thaw ? thaw_one : freeze_one, &k, err);
    if (k.map) pgs__fresh_unmap(k.map, k.window.n_pages);
    if (k.left.n_pages) pgs__claim_give(&f->claim, k.left, false);
    pthread_mutex_destroy(&k.m);
    pthread_mutex_destroy(&k.window_m);
    pthread_mutex_destroy(&k.write_m);
    PGS_KILL_POINT("freeze_made");
    if (rc == 0 && k.full && k.n_placed == 0)
        rc = pgs__fail(err, PGS_EFULL, "no room for a block of %u pages", PGS__COLD_PAGES);
    return rc;
}
