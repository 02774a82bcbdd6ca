/* Pagestone | txn/freeze — freezing and thawing one object, round by round.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each round pins the newest generation, plans at most 32 MiB of blocks, makes their new bytes in claimed pages on all processors, and enters them in one maintenance commit. Rounds are independent: an error, a death or a full store
 * leaves the rounds before it done and the rest as it was.
 *
 * On a store that is nearly full a round needs room before it gives any. It takes what there is: smaller and smaller rounds, with what the rounds before made free collected in between.
 *
 * Nothing damaged is frozen: what has checksums is verified first, since the block's own checksum would make it right for ever.
 */
#include "libshm/pages/fresh.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/parallel.h"
#include "libshm/txn/freeze_impl.h"
#include "libshm/txn/store.h"

#define STAGED (PGS__COLD_BYTES - PGS__COLD_BYTES / 8) /* most that a block may compress to */

/* --- making the bytes -------------------------------------------------------------------------------------------------------------- */
static uint64_t worth(uint32_t n_raw)
{
    return n_raw - (n_raw + 7) / 8; /* pages */
}

/* The block's bytes: where they lie, or copied to `buf`. */
static int gather(struct pgs__freeze *f, const struct pgs__freeze_block *b, uint8_t *buf, struct pgs__cold_cache *cache,
                  const void **out, struct pgs_error *err)
{
    const struct pgs__freeze_part *p = &f->parts[b->first];
    *out = NULL;
    if (b->n_raw == b->n && b->n_parts == 1) *out = pgs__pages_at(&f->s->pf, p->run.page, p->run.n_pages);
    if (*out) return 0;
    *out = buf;
    return pgs__content_read_via(&f->s->pf, &f->obj.content, cache, b->at << PGS_PAGE_SHIFT, buf,
                                 b->n << PGS_PAGE_SHIFT, err);
}

static int compress_one(void *ctx, uint64_t i, struct pgs_error *err)
{
    struct pgs__freeze *f = ctx;
    struct pgs__freeze_block *b = &f->blocks[i];
    struct pgs__cold_cache cache = {0};
    const void *bytes;
    uint64_t n_unverified;
    size_t z_bytes = 0, cap = (size_t)worth(b->n_raw) << PGS_PAGE_SHIFT;
    bool in_place = b->n_raw == b->n && b->n_parts == 1;
    uint8_t *buf = in_place ? NULL : pgs__malloc(PGS__COLD_BYTES);
    int rc = 0;
    if (f->obj.content.map.page)
        rc = pgs__content_verify_pages(&f->s->pf, &f->obj.content, b->at, b->at + b->n, &cache, &n_unverified, err);
    if (rc == 0 && in_place) rc = gather(f, b, NULL, &cache, &bytes, err);
    if (rc == 0 && !in_place)
        rc = buf ? gather(f, b, buf, &cache, &bytes, err) : pgs__fail(err, PGS_ENOMEM, "no memory to freeze a block");
    if (rc == 0)
        rc = pgs__cold_compress(bytes, b->n << PGS_PAGE_SHIFT, pgs__freeze_itemsize(&f->obj), f->staging + i * STAGED,
                                cap, &z_bytes, &b->xxh, err);
    b->z_bytes = rc == 0 ? (uint32_t)z_bytes : 0;
    pgs__cold_cache_free(&cache);
    pgs__free(buf);
    return rc == 1 ? 0 : rc;
}

static int write_one(void *ctx, uint64_t i, struct pgs_error *err)
{
    struct pgs__freeze *f = ctx;
    const struct pgs__freeze_block *b = &f->blocks[i];
    if (b->to.n_pages == 0) return 0;
    return pgs__fresh_copy(&f->s->pf, b->to, false, f->staging + i * STAGED, b->z_bytes, NULL, err);
}

/* Cold pages of the block, one after the other, to where they shall be raw. */
static int thaw_one(void *ctx, uint64_t i, struct pgs_error *err)
{
    struct pgs__freeze *f = ctx;
    const struct pgs__freeze_block *b = &f->blocks[i];
    struct pgs__cold_cache cache = {0};
    uint64_t n = 0;
    uint64_t *xxh = f->page_xxh ? f->page_xxh + i * PGS__COLD_PAGES : NULL;
    if (b->to.n_pages == 0) return 0;
    uint8_t *buf = pgs__malloc(PGS__COLD_BYTES);
    int rc = buf ? 0 : pgs__fail(err, PGS_ENOMEM, "no memory to thaw a block");
    for (size_t k = 0; k < b->n_parts && rc == 0; k++) {
        const struct pgs__freeze_part *p = &f->parts[b->first + k];
        if (!pgs__is_cold(p->run.page.n)) continue;
        rc = pgs__content_read_via(&f->s->pf, &f->obj.content, &cache, p->at << PGS_PAGE_SHIFT,
                                   buf + (n << PGS_PAGE_SHIFT), p->run.n_pages << PGS_PAGE_SHIFT, err);
        n += p->run.n_pages;
    }
    if (rc == 0) rc = pgs__fresh_copy(&f->s->pf, b->to, false, buf, n << PGS_PAGE_SHIFT, xxh, err);
    pgs__cold_cache_free(&cache);
    pgs__free(buf);
    return rc;
}

/* --- pages for them ------------------------------------------------------------------------------------------------------------------- */
static uint64_t need(const struct pgs__freeze *f, const struct pgs__freeze_block *b)
{
    return f->thaw ? b->n_cold : pgs__pages_of(b->z_bytes);
}

/* In one piece, or block by block as far as there is room: blocks from the first without pages on are left to the next round. */
static int place(struct pgs__freeze *f, struct pgs_error *err)
{
    struct pgs_run run;
    size_t n_runs;
    uint64_t total = 0, placed = 0;
    struct pgs_error local = {0};
    for (size_t i = 0; i < f->n_blocks; i++) total += need(f, &f->blocks[i]);
    if (total == 0) return 0;
    int rc = pgs__claim_alloc(&f->claim, NULL, false, total, PGS__ALLOC_CONTIGUOUS, &run, 1, &n_runs, &local);
    bool whole = rc == 0;
    for (size_t i = 0; i < f->n_blocks && (rc == 0 || rc == -PGS_EFULL); i++) {
        struct pgs__freeze_block *b = &f->blocks[i];
        uint64_t n = need(f, b);
        if (n == 0) continue;
        if (whole) {
            b->to = (struct pgs_run){run.page, n};
            run.page.n += n;
            continue;
        }
        memset(&local, 0, sizeof local);
        rc = pgs__claim_alloc(&f->claim, NULL, false, n, PGS__ALLOC_CONTIGUOUS, &b->to, 1, &n_runs, &local);
        if (rc == 0) {
            placed++;
            continue;
        }
        b->to.n_pages = 0;
        if (rc != -PGS_EFULL || placed == 0) break;
        f->next = b->at;
        f->n_blocks = i;
        return 0;
    }
    if (rc && err && err->code == 0) *err = local;
    return rc;
}

static int make_frozen(struct pgs__freeze *f, struct pgs_error *err)
{
    if (!f->staging) f->staging = pgs__malloc((size_t)PGS__FREEZE_BLOCKS * STAGED);
    if (!f->staging) return pgs__fail(err, PGS_ENOMEM, "no memory to freeze");
    int rc = 0;
    if (!f->checked) rc = pgs__content_verify_stream(&f->s->pf, &f->obj.content, err);
    f->checked = true;
    if (rc == 0) rc = pgs__parallel(f->n_blocks, compress_one, f, err);
    PGS_KILL_POINT("freeze_compressed");
    if (rc == 0) rc = place(f, err);
    return rc ? rc : pgs__parallel(f->n_blocks, write_one, f, err);
}

static int make_thawed(struct pgs__freeze *f, struct pgs_error *err)
{
    bool hashed = f->checksums && (f->obj.kind == PGS_KIND_ARRAY || f->obj.kind == PGS_KIND_PICKLE);
    if (hashed && !f->page_xxh)
        f->page_xxh = pgs__malloc((size_t)PGS__FREEZE_BLOCKS * PGS__COLD_PAGES * sizeof *f->page_xxh);
    if (hashed && !f->page_xxh) return pgs__fail(err, PGS_ENOMEM, "no memory to thaw");
    int rc = place(f, err);
    return rc ? rc : pgs__parallel(f->n_blocks, thaw_one, f, err);
}

/* --- rounds ---------------------------------------------------------------------------------------------------------------------------- */
/* The newest object, pinned. */
static int look(struct pgs__freeze *f, struct pgs_error *err)
{
    struct pgs__root root;
    struct pgs__ledger l;
    int rc = pgs__meta_begin(f->s, &l, err);
    if (rc) return rc;
    f->checksums = l.meta.hdr.checksums != 0;
    pgs__meta_end(f->s, &l);
    rc = pgs__pin_head(f->s, &root, &f->pin, err);
    if (rc) return rc;
    struct pgs__tree catalog = pgs__root_catalog(f->s, &root);
    struct pgs__object old = f->obj;
    rc = pgs__object_find(f->s, &catalog, f->key, f->len, &f->obj, err);
    if (rc) pgs__pin_drop(f->s, &f->pin);
    if (rc == 0 && !pgs__object_same_revision(&old, &f->obj)) f->checked = false;
    return rc;
}

static int round_of(struct pgs__freeze *f, struct pgs_error *err)
{
    f->gain = 0;
    int rc = look(f, err);
    if (rc) return rc;
    rc = pgs__freeze_plan(f, err);
    if (rc == 0 && f->n_blocks) {
        pgs__claim_init(&f->claim, f->s);
        rc = f->thaw ? make_thawed(f, err) : make_frozen(f, err);
        PGS_KILL_POINT("freeze_written");
        if (rc == 0) rc = pgs__freeze_enter(f, err);
        pgs__claim_release(&f->claim);
    }
    pgs__pin_drop(f->s, &f->pin);
    return rc;
}

/* What to do when there was no room: collect, then ask for less. false: nothing helps. */
struct squeeze {
    bool collected;
};
static bool squeeze(struct pgs__freeze *f, struct squeeze *q)
{
    uint64_t freed;
    if (!q->collected) {
        q->collected = true;
        (void)pgs__make_room(f->s, f->w, 0, &freed, NULL);
        return true;
    }
    if (f->limit == 1) return false;
    f->limit = (f->limit + 3) / 4;
    return true;
}

static int interrupted(const struct pgs__freeze *f, struct pgs_error *err)
{
    if (!f->w || !f->w->interrupted || !f->w->interrupted(f->w->ctx)) return 0;
    return pgs__fail(err, PGS_EINTR, "interrupted; what was done stays done");
}

static int rounds(struct pgs__freeze *f, uint64_t *bytes, struct pgs_error *err)
{
    struct squeeze q = {false};
    uint64_t total = 0;
    int rc = 0;
    f->limit = PGS__FREEZE_BLOCKS;
    while (rc == 0 && f->next != UINT64_MAX) {
        struct pgs_error local = {0};
        uint64_t from = f->next;
        rc = interrupted(f, err);
        if (rc) break;
        rc = round_of(f, &local);
        total += f->gain;
        if (rc == 0) {
            q.collected = false;
            f->limit = pgs__min_u64(2 * f->limit, PGS__FREEZE_BLOCKS);
        } else if (rc == -PGS_EFULL && squeeze(f, &q)) {
            f->next = from;
            rc = 0;
        } else if (total && (rc == -PGS_EFULL || rc == -PGS_ENOENT)) {
            rc = 0; /* as far as it could; or deleted meanwhile */
            break;
        } else if (rc == -PGS_EFULL) {
            return pgs__fail_full(f->s, PGS__COLD_BYTES, local.os_errno, err);
        } else if (err && err->code == 0) {
            *err = local;
            rc = pgs__name_object(err, rc, f->key, f->len);
        }
    }
    if (rc == 0 && bytes) *bytes = total;
    return rc;
}

static int change(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, bool thaw,
                  uint64_t *bytes, struct pgs_error *err)
{
    struct pgs__freeze *f = pgs__calloc(1, sizeof *f);
    if (!f) return pgs__fail(err, PGS_ENOMEM, "no memory to freeze or thaw");
    f->s = s;
    f->w = w;
    f->key = key;
    f->len = len;
    f->thaw = thaw;
    int rc = rounds(f, bytes, err);
    pgs__free(f->parts);
    pgs__free(f->staging);
    pgs__free(f->page_xxh);
    pgs__free(f);
    return rc;
}

int pgs__freeze(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *bytes,
                struct pgs_error *err)
{
    return change(s, w, key, len, false, bytes, err);
}

int pgs__thaw(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *bytes,
              struct pgs_error *err)
{
    return change(s, w, key, len, true, bytes, err);
}

/* --- ahead of need ---------------------------------------------------------------------------------------------------------------------- */
struct ahead {
    struct pgs__session *s;
    uint64_t *slots;
    size_t n, cap;
    struct pgs_error *err;
};
static int ahead_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct ahead *a = ctx;
    (void)at, (void)birth;
    if (!pgs__is_cold(run.page.n)) return 0;
    uint64_t slot = pgs__cold_slot(run.page.n), end = pgs__cold_slot(run.page.n + run.n_pages - 1);
    if (a->n && a->slots[a->n - 1] == slot) slot++; /* in pieces */
    for (; slot <= end; slot++) {
        if (pgs__grow(&a->slots, &a->cap, a->n + 1, sizeof *a->slots))
            return pgs__fail(a->err, PGS_ENOMEM, "no memory for a list of blocks");
        a->slots[a->n++] = slot;
    }
    return 0;
}

static int ahead_one(void *ctx, uint64_t i, struct pgs_error *err)
{
    struct ahead *a = ctx;
    uint8_t *buf = pgs__malloc(PGS__COLD_BYTES);
    if (!buf) return pgs__fail(err, PGS_ENOMEM, "no memory to decompress a block");
    int rc = a->s->pf.cold->read(a->s->pf.cold_ctx, pgs__cold_page_of(a->slots[i]), PGS__COLD_PAGES, buf, err);
    pgs__free(buf);
    return rc;
}

int pgs__cold_ahead(struct pgs__session *s, const struct pgs__content *c, uint64_t lo, uint64_t hi,
                    struct pgs_error *err)
{
    struct ahead a = {.s = s, .err = err};
    if (c->form == PGS__FORM_INLINE || lo >= hi) return 0;
    int rc = pgs__content_runs(&s->pf, c, lo >> PGS_PAGE_SHIFT, pgs__pages_of(hi), ahead_run, &a, err);
    if (rc == 0) rc = pgs__parallel(a.n, ahead_one, &a, err);
    pgs__free(a.slots);
    return rc;
}
