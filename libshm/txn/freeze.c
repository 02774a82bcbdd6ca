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
#include "libshm/platform/mem.h"
#include "libshm/txn/freeze_impl.h"
#include "libshm/txn/image.h"
#include "libshm/txn/store.h"

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
        rc = pgs__freeze_make(f, err);
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

/* Of a round: no more than it can have, and than are left. */
static size_t most_blocks(const struct pgs__freeze *f, size_t wanted)
{
    uint64_t left = f->next < f->stop ? (f->stop - f->next - 1) / PGS__COLD_PAGES + 1 : 1;
    return (size_t)pgs__min_u64(pgs__min_u64(wanted, PGS__FREEZE_BLOCKS), left);
}

static int rounds(struct pgs__freeze *f, uint64_t *bytes, struct pgs_error *err)
{
    struct squeeze q = {false};
    uint64_t total = 0;
    int rc = 0;
    f->limit = most_blocks(f, PGS__FREEZE_BLOCKS);
    while (rc == 0 && f->next < f->stop) {
        struct pgs_error local = {0};
        uint64_t from = f->next;
        rc = interrupted(f, err);
        if (rc) break;
        rc = round_of(f, &local);
        total += f->gain;
        if (rc == 0) {
            q.collected = false;
            f->limit = most_blocks(f, 2 * f->limit);
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
                  uint64_t *next, uint64_t most, uint64_t *bytes, struct pgs_error *err)
{
    struct pgs__freeze *f = pgs__calloc(1, sizeof *f);
    if (!f) return pgs__fail(err, PGS_ENOMEM, "no memory to freeze or thaw");
    f->s = s;
    f->w = w;
    f->key = key;
    f->len = len;
    f->thaw = thaw;
    f->next = *next;
    f->stop = most < UINT64_MAX - *next ? *next + most : UINT64_MAX;
    int rc = rounds(f, bytes, err);
    *next = f->next;
    pgs__free(f->parts);
    pgs__free(f->page_xxh);
    pgs__free(f);
    return rc;
}

int pgs__freeze(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *bytes,
                struct pgs_error *err)
{
    uint64_t next = 0;
    return change(s, w, key, len, false, &next, UINT64_MAX, bytes, err);
}

int pgs__thaw(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *bytes,
              struct pgs_error *err)
{
    uint64_t next = 0;
    return change(s, w, key, len, true, &next, UINT64_MAX, bytes, err);
}

int pgs__freeze_part(struct pgs__session *s, const struct pgs__wait *w, const void *key, size_t len, uint64_t *next,
                     uint64_t most, uint64_t *done, struct pgs_error *err)
{
    uint64_t from = *next;
    int rc = change(s, w, key, len, false, next, most, NULL, err);
    *done = *next == UINT64_MAX ? most : *next - from;
    return rc;
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

int pgs__cold_ahead(struct pgs__session *s, const struct pgs__content *c, uint64_t lo, uint64_t hi,
                    struct pgs_error *err)
{
    struct ahead a = {.s = s, .err = err};
    if (c->form == PGS__FORM_INLINE || lo >= hi) return 0;
    int rc = pgs__content_runs(&s->pf, c, lo >> PGS_PAGE_SHIFT, pgs__pages_of(hi), ahead_run, &a, err);
    if (rc == 0) rc = pgs__image_ahead(s, a.slots, a.n, err);
    pgs__free(a.slots);
    return rc;
}
