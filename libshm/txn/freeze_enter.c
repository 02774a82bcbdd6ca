/* Pagestone | txn/freeze_enter — the commit of a round of freezing or thawing.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Under the lock the object must have the same revision as when it was planned, and a block the same backing, page by page and birth by birth; else it is left out and its pages go back. What is entered then has the same bytes
 * as what it replaces, so the record keeps id and version, and who edits the object conflicts with nobody.
 *
 *     died before the commit is published     nothing: written pages belong to nobody, and their chunks are taken back with the slot
 *     after                                   everything of this round; the rounds before have commits of their own
 */
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/freeze_impl.h"
#include "libshm/txn/store.h"

/* --- is it as it was? ---------------------------------------------------------------------------------------------------------- */
struct compare {
    const struct pgs__freeze_part *part, *end;
    bool same;
};
static int compare_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct compare *c = ctx;
    const struct pgs__freeze_part *p = c->part;
    c->same = p < c->end && p->at == at.n && p->run.page.n == run.page.n && p->run.n_pages == run.n_pages &&
              p->birth == birth;
    c->part++;
    return c->same ? 0 : 1;
}

/* Blocks whose backing has changed lose their pages. */
static int leave_out(struct pgs__freeze *f, const struct pgs__content *now, size_t *n_left, struct pgs_error *err)
{
    *n_left = 0;
    for (size_t i = 0; i < f->n_blocks; i++) {
        struct pgs__freeze_block *b = &f->blocks[i];
        const struct pgs__freeze_part *parts = f->parts + b->first;
        struct compare c = {.part = parts, .end = parts + b->n_parts, .same = true};
        if (b->to.n_pages == 0) continue;
        int rc = pgs__content_runs(&f->s->pf, now, b->at, b->at + b->n, compare_run, &c, err);
        if (rc < 0) return rc;
        if (c.same && c.part == c.end) {
            ++*n_left;
            continue;
        }
        pgs__claim_give(&f->claim, b->to, false);
        b->to.n_pages = 0;
    }
    return 0;
}

/* --- map and table ----------------------------------------------------------------------------------------------------------------- */
/* Of this boot, as far as the control file knows: a new one, or one that was made anew, counts versions from another floor or has another boot_id. */
static uint64_t boot_tag(struct pgs__session *s)
{
    struct {
        uint8_t boot_id[16];
        uint64_t version_floor;
    } id;
    memcpy(id.boot_id, s->ctl.c->boot_id, sizeof id.boot_id);
    id.version_floor = atomic_load(&s->ctl.c->version_floor);
    return pgs__hash(&id, sizeof id);
}

static int enter_frozen(struct pgs__freeze *f, struct pgs__commit *c, struct pgs__content_edit *e,
                        const struct pgs__freeze_block *b, struct pgs_error *err)
{
    struct pgs__cold_block block = {.page = b->to.page.n,
                                    .xxh = b->xxh,
                                    .z_bytes = b->z_bytes,
                                    .n_bytes = (uint32_t)(b->n << PGS_PAGE_SHIFT),
                                    .itemsize = pgs__freeze_itemsize(&f->obj),
                                    .live = (uint16_t)(b->n_raw + b->n_cold),
                                    .codec = PGS__COLD_ZSTD,
                                    .birth = c->l.gen};
    uint64_t slot;
    int rc = pgs__ledger_cold_add(&c->l, boot_tag(f->s), &block, &slot, err);
    for (size_t i = 0; i < b->n_parts && rc == 0; i++) {
        const struct pgs__freeze_part *p = &f->parts[b->first + i];
        struct pgs_run run = {{pgs__cold_page_of(slot) + (p->at - b->at)}, p->run.n_pages};
        rc = pgs__content_set(e, (struct pgs_lpno){p->at}, run, c->l.gen, NULL, err);
    }
    return rc;
}

static int enter_thawed(struct pgs__freeze *f, struct pgs__commit *c, struct pgs__content_edit *e, size_t index,
                        struct pgs_error *err)
{
    const struct pgs__freeze_block *b = &f->blocks[index];
    struct pgs_run to = b->to;
    const uint64_t *xxh = f->page_xxh ? f->page_xxh + index * PGS__COLD_PAGES : NULL;
    int rc = 0;
    for (size_t i = 0; i < b->n_parts && rc == 0; i++) {
        const struct pgs__freeze_part *p = &f->parts[b->first + i];
        if (!pgs__is_cold(p->run.page.n)) continue;
        to.n_pages = p->run.n_pages;
        rc = pgs__content_set(e, (struct pgs_lpno){p->at}, to, c->l.gen, xxh, err);
        to.page.n += to.n_pages;
        if (xxh) xxh += to.n_pages;
    }
    return rc;
}

static int kill_old(struct pgs__commit *c, struct pgs__content_edit *e, struct pgs_error *err)
{
    const struct pgs__dead_run *dead;
    const struct pgs_ptr *nodes;
    size_t n, n_nodes;
    int rc = pgs__content_dead(e, &dead, &n, &nodes, &n_nodes, err);
    for (size_t i = 0; rc == 0 && i < n; i++) rc = pgs__ledger_kill(&c->l, dead[i].run, dead[i].birth, false, err);
    for (size_t i = 0; rc == 0 && i < n_nodes; i++) {
        struct pgs_run run = {{nodes[i].page}, 1};
        rc = pgs__ledger_kill(&c->l, run, nodes[i].birth, true, err);
    }
    return rc;
}

static int write_map(struct pgs__commit *c, struct pgs__content_edit *e, struct pgs__content *out,
                     struct pgs_error *err)
{
    uint64_t n = pgs__content_n_dirty(e), k = 0;
    size_t max_runs = (size_t)pgs__max_u64(n, 1), n_runs = 0;
    struct pgs_run *runs = pgs__malloc(max_runs * sizeof *runs);
    struct pgs_pgno *pages = pgs__malloc(max_runs * sizeof *pages);
    uint8_t *buf = pgs__malloc(max_runs << PGS_PAGE_SHIFT);
    int rc = runs && pages && buf
                 ? 0
                 : pgs__fail(err, PGS_ENOMEM, "no memory for a map of %llu nodes", (unsigned long long)n);
    if (rc == 0 && n) rc = pgs__claim_alloc(&c->claim, &c->l, true, n, 0, runs, max_runs, &n_runs, err);
    for (size_t i = 0; rc == 0 && i < n_runs; i++)
        for (uint64_t p = 0; p < runs[i].n_pages; p++) pages[k++] = (struct pgs_pgno){runs[i].page.n + p};
    if (rc == 0) rc = pgs__content_finish(e, c->l.gen, pages, buf, out, err);
    k = 0;
    for (size_t i = 0; rc == 0 && i < n_runs; k += runs[i].n_pages, i++)
        rc = pgs__pages_write(&c->s->pf, runs[i].page, buf + (k << PGS_PAGE_SHIFT), runs[i].n_pages, err);
    pgs__free(runs);
    pgs__free(pages);
    pgs__free(buf);
    return rc;
}

static int edit_object(struct pgs__freeze *f, struct pgs__commit *c, struct pgs__object *obj, struct pgs_error *err)
{
    struct pgs__content out;
    uint8_t record[PGS__RECORD_MAX];
    size_t len;
    struct pgs__content_edit *e = pgs__content_edit_new(&f->s->pf, &obj->content);
    int rc = e ? 0 : pgs__fail(err, PGS_ENOMEM, "no memory for a map");
    for (size_t i = 0; i < f->n_blocks && rc == 0; i++) {
        if (f->blocks[i].to.n_pages == 0) continue;
        rc = f->thaw ? enter_thawed(f, c, e, i, err) : enter_frozen(f, c, e, &f->blocks[i], err);
    }
    if (rc == 0 && !f->thaw) rc = pgs__ledger_cold_seal(&c->l, f->next == UINT64_MAX, err);
    if (rc == 0) rc = kill_old(c, e, err);
    if (rc == 0) rc = write_map(c, e, &out, err);
    if (rc == 0) {
        out.xxh = obj->content.xxh;
        out.xxh_bytes = obj->content.xxh_bytes;
        obj->content = out;
        rc = pgs__object_encode(obj, record, &len, err);
    }
    if (rc == 0) rc = pgs__edit_put(c->catalog, f->key, f->len, record, len, err);
    pgs__content_edit_free(e);
    return rc;
}

/* --- the commit ------------------------------------------------------------------------------------------------------------------------ */
static uint64_t gain_of(const struct pgs__freeze *f, uint64_t *written)
{
    uint64_t gain = 0;
    for (size_t i = 0; i < f->n_blocks; i++) {
        const struct pgs__freeze_block *b = &f->blocks[i];
        *written += b->to.n_pages << PGS_PAGE_SHIFT;
        if (b->to.n_pages) gain += f->thaw ? b->n_cold : b->n_raw - b->to.n_pages;
    }
    return gain << PGS_PAGE_SHIFT;
}

static int enter_locked(struct pgs__freeze *f, struct pgs__commit *c, bool *any, struct pgs_error *err)
{
    struct pgs__object obj;
    struct pgs_error local = {0};
    size_t n_left = 0;
    *any = false;
    int rc = pgs__object_find(f->s, &c->tree, f->key, f->len, &obj, &local);
    if (rc == -PGS_ENOENT) return 0; /* deleted meanwhile */
    if (rc) {
        if (err && err->code == 0) *err = local;
        return rc;
    }
    if (!pgs__object_same_revision(&obj, &f->obj) || obj.content.form == PGS__FORM_INLINE) return 0;
    rc = leave_out(f, &obj.content, &n_left, err);
    if (rc || n_left == 0) return rc;
    *any = true;
    if (pgs__claim_join(&c->claim, &f->claim)) return pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
    rc = pgs__commit_start(c, false, err);
    return rc ? rc : edit_object(f, c, &obj, err);
}

int pgs__freeze_enter(struct pgs__freeze *f, struct pgs_error *err)
{
    struct pgs__commit c;
    bool any;
    f->gain = 0;
    int rc = pgs__commit_begin(&c, f->s, f->w, err);
    if (rc) return rc;
    rc = enter_locked(f, &c, &any, err);
    if (rc == 0 && any) {
        uint64_t gain = gain_of(f, &c.bytes);
        rc = pgs__commit_end(&c, NULL, err);
        if (rc == 0) f->gain = gain;
    }
    pgs__commit_abandon(&c);
    return rc;
}
