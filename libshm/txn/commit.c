/* Pagestone | txn/commit — the driver of every root switch: transactions and maintenance alike.
 * SPDX-License-Identifier: Apache-2.0
 *
 * commit.h has the table of states. Everything up to the write happens in memory: the catalog's edit, the ledger, the claim. Then the number of pages is known, they are taken, the
 * images are made and written in as few calls as there are runs (two, as a rule: catalog nodes; record and meta nodes — claim_nodes.c), and pgs__publish switches.
 *
 * Order of upkeep inside one commit: drop what earlier commits expired, then expire, then reclaim the limbo of earlier commits. Nothing that this commit expired is dropped by it, and
 * nothing that it dropped is reused by it: pins taken until the publish are seen by the next commit at the earliest (session.h, the pin protocol).
 *
 * The work under the lock is bounded: expiry and drops take a budget in proportion to what the commit itself changed, so that upkeep keeps up with any load and a small commit stays
 * small; reclaim waits until there is something to gain.
 */
#include "libshm/txn/commit.h"

#include "libshm/catalog/object.h"
#include "libshm/pages/fresh.h"
#include "libshm/pages/room.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"

#define UPKEEP_LEAST 256u
#define LIMBO_WORTH_IT 64u
#define LIMBO_BEFORE_FOLD 8u
#define DROPS_WORTH_IT 8u /* asking everybody for pins costs the same for one version as for many */
#define DEAD_WORTH_IT 4096u
#define DAY_NS (86400ull * 1000000000ull)
#define PREPARE_ROUNDS 8
#define RESERVE_WORTH_IT 4u
#define ROOM_AGAIN (4ull << 20) /* bytes */
#define RUNS_PLANNED 16u        /* prepare leaves room for more than that */

uint64_t pgs__commit_clock(struct pgs__session *s)
{
    uint64_t real = pgs__clock_real_ns(), boot = pgs__clock_boot_ns();
    _Atomic uint64_t *kept = &s->ctl.c->raw_time_ns; /* wall − boot; under the commit lock, so any order will do */
    uint64_t ahead = atomic_load_explicit(kept, memory_order_relaxed);
    if (ahead && real > ahead + boot + DAY_NS) return ahead + boot;
    atomic_store_explicit(kept, real - boot, memory_order_relaxed);
    return real;
}

int pgs__commit_begin(struct pgs__commit *c, struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err)
{
    memset(c, 0, sizeof *c);
    c->s = s;
    int rc = pgs__commit_lock(s, w, err);
    if (rc) return rc;
    PGS_KILL_POINT("commit_locked");
    c->open = true;
    pgs__claim_init(&c->claim, s);
    rc = pgs__ctl_head(&s->ctl, &c->base);
    if (rc) {
        rc = pgs__fail_corrupt(err, "the control file", "its cell of the newest generation is damaged");
        goto fail;
    }
    struct pgs__space *sp = pgs__space_of(s);
    rc = sp ? pgs__ledger_reopen(&c->l, &s->pf, &c->base, &sp->kept, err)
            : pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
    if (rc) goto fail;
    c->catalog = sp->edit;
    sp->edit = NULL;
    if (c->catalog)
        pgs__edit_reset(c->catalog, &s->pf, PGS__TREE_CATALOG, &c->base.catalog);
    else
        c->catalog = pgs__edit_new(&s->pf, PGS__TREE_CATALOG, &c->base.catalog);
    if (!c->catalog) {
        rc = pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
        goto fail;
    }
    c->tree = (struct pgs__tree){.pf = &s->pf, .kind = PGS__TREE_CATALOG, .root = c->base.catalog, .edit = c->catalog};
    c->n_objects = c->base.n_objects;
    return 0;
fail:
    pgs__commit_abandon(c);
    return rc;
}

int pgs__commit_start(struct pgs__commit *c, bool new_version, struct pgs_error *err)
{
    uint64_t version = c->base.version;
    if (new_version) version = pgs__next_version(c->s);
    c->new_version = new_version;
    int rc = pgs__ledger_begin(&c->l, new_version, version, pgs__commit_clock(c->s), err);
    if (rc == 0 && !new_version) c->epoch = true; /* the superseded head was expired at once */
    if (rc == 0) pgs__room_limit(&c->s->pf, c->l.meta.hdr.quota_bytes == 0);
    return rc;
}

/* Under the commit lock. */
static void put_edit_away(struct pgs__commit *c)
{
    struct pgs__space *sp = pgs__space_of(c->s);
    if (sp && !sp->edit)
        sp->edit = c->catalog;
    else
        pgs__edit_free(c->catalog);
    c->catalog = NULL;
}

void pgs__commit_abandon(struct pgs__commit *c)
{
    if (!c->open) return;
    c->open = false;
    put_edit_away(c);
    pgs__ledger_close(&c->l);
    pgs__claim_release(&c->claim);
    pgs__commit_unlock(c->s);
}

/* --- upkeep -------------------------------------------------------------------------------------------------------------------------- */

struct pinned_ctx {
    struct pgs__pinned_set set;
    pgs_gen_t base;
    bool any;
};
static int is_pinned(void *ctx, pgs_gen_t gen)
{
    struct pinned_ctx *p = ctx;
    if (gen >= p->base) return 1; /* the superseded head may be being pinned at this moment */
    int rc = pgs__pinned(&p->set, gen);
    if (rc > 0) p->any = true;
    return rc;
}

static int drop(struct pgs__commit *c, uint64_t budget, struct pgs_error *err)
{
    struct pinned_ctx p = {.base = c->base.gen};
    bool any = false, more = false;
    const struct pgs__record *h = &c->l.meta.hdr;
    uint64_t n = h->n_expired - pgs__min_u64(h->n_expired, !c->new_version); /* without the one that this commit made */
    uint64_t held = pgs__ledger_knows_expired(h) ? h->pages_expired : h->pages_dead; /* at most, by expired ones */
    bool worth = n >= DROPS_WORTH_IT || held >= DEAD_WORTH_IT || c->budget || c->freeing || pgs__is_scarce(c->s);
    if (n == 0 || !worth) return 0;
    int rc = pgs__pinned_collect(c->s, &p.set, err);
    if (rc == 0) rc = pgs__ledger_drop(&c->l, is_pinned, &p, budget, &any, &more, err);
    pgs__pinned_free(&p.set);
    if (any) c->epoch = true;
    c->zombies = p.any;
    return rc;
}

/* What enters and leaves limbo between two folds never reaches the meta tree: so the last moment before a fold is a good one. */
static bool reclaim_is_due(struct pgs__commit *c)
{
    const struct pgs__meta *m = &c->l.meta;
    bool fold_soon = m->msg_bytes > PGS__RECORD_ROOM(1) * 3 / 4;
    return m->hdr.pages_limbo >= (fold_soon ? LIMBO_BEFORE_FOLD : LIMBO_WORTH_IT) || c->freeing || pgs__is_scarce(c->s);
}

static uint64_t reserve_wants(const struct pgs__commit *c)
{
    return pgs__min_u64(PGS__RESERVE_PAGES, pgs__page_limit(&c->l) / 8);
}

/* A commit that frees while half of the reserve is gone lets all history go: deleting has to bring its pages back before the reserve is used up. */
static int upkeep(struct pgs__commit *c, struct pgs_error *err)
{
    struct pgs__session *s = c->s;
    uint64_t budget = c->budget ? c->budget : UPKEEP_LEAST + 2 * c->l.n_touched;
    bool any = false;
    int rc = drop(c, budget, err);
    if (rc) return rc;
    bool all = c->expire_all || (c->freeing && pgs__is_scarce(s) && reserve_wants(c) > c->l.meta.hdr.reserve_n * 2);
    rc = pgs__ledger_expire(&c->l, c->l.now_ns, budget, all, &any, err);
    if (rc) return rc;
    if (any) c->epoch = true;
    if (!reclaim_is_due(c)) return 0;
    /* acquire: pairs with the store after the barrier in pgs__publish */
    pgs_gen_t durable = atomic_load_explicit(&s->ctl.c->durable_gen, memory_order_acquire);
    struct pgs__space *sp = pgs__space_of(s); /* pgs__commit_begin made it */
    for (unsigned i = 0; i < PGS_ARRAY_LEN(sp->reclaimed); i++) sp->reclaimed[i] = true;
    return pgs__ledger_reclaim(&c->l, durable, pgs__min_meta_pin(s), budget, pgs__space_freed, s, err);
}

static int kill_catalog_nodes(struct pgs__commit *c, struct pgs_error *err)
{
    size_t n;
    const struct pgs_ptr *dead = pgs__edit_dead(c->catalog, &n);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        struct pgs_run run = {{dead[i].page}, 1};
        rc = pgs__ledger_kill(&c->l, run, dead[i].birth, true, err);
    }
    return rc;
}

/* Allocated is not enough: what was never written counts as a hole once it is free again (pages/backed.h). */
static int write_zeros(struct pgs__commit *c, struct pgs_run run, struct pgs_error *err)
{
    void *zeros = pgs__calloc(run.n_pages, PGS_PAGE_SIZE);
    if (!zeros) return pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
    int rc = pgs__fresh_reserve(&c->s->pf, run, false, err);
    if (rc == 0) rc = pgs__pages_write(&c->s->pf, run.page, zeros, run.n_pages, err);
    pgs__free(zeros);
    return rc;
}

/* A run of n pages that are there. 1: there is none. */
static int reserve_run(struct pgs__commit *c, uint64_t n, struct pgs_run *run, struct pgs_error *err)
{
    size_t n_runs = 0;
    struct pgs_error local = {0};
    int flags = PGS__ALLOC_CONTIGUOUS | PGS__ALLOC_REFILL;
    int rc = pgs__claim_alloc(&c->claim, &c->l, true, n, flags, run, 1, &n_runs, &local);
    if (rc == -PGS_EFULL) return 1;
    if (rc == 0 && write_zeros(c, *run, &local)) {
        pgs__claim_give(&c->claim, *run, true);
        return 1;
    }
    if (rc && err && err->code == 0) *err = local;
    return rc;
}

/* Free pages beside the reserve join it: those that tidying commits took from it come back here. */
static int extend_reserve(struct pgs__commit *c, uint64_t want, struct pgs_error *err)
{
    struct pgs__record *hdr = &c->l.meta.hdr;
    int rc = 0;
    for (uint64_t most = want; rc == 0 && hdr->reserve_n > 0 && hdr->reserve_n < want && most > 0;) {
        struct pgs_run run, reserve = {{hdr->reserve_page}, hdr->reserve_n};
        struct pgs_error local = {0};
        rc = pgs__claim_beside(&c->claim, &c->l, reserve, pgs__min_u64(most, want - hdr->reserve_n), &run, err);
        if (rc) break;
        if (write_zeros(c, run, &local)) {
            pgs__claim_give(&c->claim, run, true);
            most = run.n_pages / 2;
            continue;
        }
        hdr->reserve_page = pgs__min_u64(hdr->reserve_page, run.page.n);
        hdr->reserve_n += run.n_pages;
    }
    return rc == 1 ? 0 : rc;
}

/* Claims I4: the reserve is whole again as soon as there is room. Best effort: without it the store works, until it is full. On a full store commits that free fill it up, too, with
 * what earlier ones freed, in one piece as large as there is. */
static int refill_reserve(struct pgs__commit *c, struct pgs_error *err)
{
    struct pgs__record *hdr = &c->l.meta.hdr;
    bool scarce = pgs__is_scarce(c->s);
    uint64_t limit = pgs__page_limit(&c->l), want = reserve_wants(c);
    if (hdr->reserve_n >= (scarce ? pgs__reserve_least(&c->l) : want / 2) || (c->freeing && !scarce)) return 0;
    uint64_t beyond = limit > hdr->hw_pages ? limit - hdr->hw_pages : 0;
    if (!scarce && hdr->pages_free + beyond < 4 * want) return 0;
    struct pgs_run run;
    uint64_t had = hdr->reserve_n;
    int rc = scarce ? extend_reserve(c, want, err) : 0;
    if (rc || hdr->reserve_n > had) return rc; /* what joined it is not entered yet: nothing may be given back */
    rc = 1;
    while (rc == 1 && want > hdr->reserve_n + RESERVE_WORTH_IT) {
        rc = reserve_run(c, want, &run, err);
        if (rc == 1 && !scarce) break;
        if (rc == 1) want = want * 3 / 4;
    }
    if (rc) return rc == 1 ? 0 : rc;
    if (hdr->reserve_n) {
        struct pgs_run rest = {{hdr->reserve_page}, hdr->reserve_n};
        rc = pgs__ledger_give(&c->l, rest, true, err);
    }
    hdr->reserve_page = run.page.n;
    hdr->reserve_n = run.n_pages;
    return rc;
}

/* --- the images ------------------------------------------------------------------------------------------------------------------------ */

/* Pages that this commit writes: pages[0 … n_cat) the catalog's, then n_meta of the meta tree, and a run for the record. */
struct layout {
    uint64_t n_cat, n_meta, n_rec;
    struct pgs_pgno *pages; /* behind the images, in the space's buffer */
    uint64_t n_pages;       /* of pages that are filled in */
    uint64_t n_quick;       /* runs that pgs__claim_nodes found */
    struct pgs_run record;
    uint8_t *images;
};

static int buffer(struct pgs__commit *c, struct layout *y, struct pgs_error *err)
{
    struct pgs__space *sp = pgs__space_of(c->s);
    uint64_t n = y->n_cat + y->n_meta + y->n_rec;
    size_t need = (size_t)n * (PGS_PAGE_SIZE + sizeof(struct pgs_pgno));
    if (sp && sp->buf_bytes < need) {
        size_t bytes = need + need / 2;
        void *p = pgs__realloc(sp->buf, bytes);
        if (!p) return pgs__fail(err, PGS_ENOMEM, "no memory for %llu pages of a commit", (unsigned long long)n);
        sp->buf = p;
        sp->buf_bytes = bytes;
    }
    if (!sp) return pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
    y->images = sp->buf;
    return 0;
}

/* From chunks in use first: growing the file for the sake of one run would let fragments make it grow for ever. */
static int alloc_nodes(struct pgs__commit *c, uint64_t n, int flags, struct pgs_run *runs, size_t max_runs,
                       size_t *n_runs, struct pgs_error *err)
{
    struct pgs_error local = {0};
    int rc = pgs__claim_alloc(&c->claim, &c->l, true, n, flags | PGS__ALLOC_NO_NEW, runs, max_runs, n_runs, &local);
    if (rc == -PGS_EFULL) return pgs__claim_alloc(&c->claim, &c->l, true, n, flags, runs, max_runs, n_runs, err);
    if (rc && err && err->code == 0) *err = local;
    return rc;
}

/* What a commit may take besides free pages. Those of make_room have a budget. */
static int emergency(const struct pgs__commit *c)
{
    if (!c->freeing) return 0;
    return PGS__ALLOC_EMERGENCY | (c->budget ? PGS__ALLOC_LAST : 0) | (c->deep ? PGS__ALLOC_DEEP : 0);
}

static int take_nodes(struct pgs__commit *c, struct pgs_pgno *to, uint64_t n, struct pgs_error *err)
{
    struct pgs_run runs[64];
    uint64_t most = PGS_CHUNK_PAGES;
    while (n > 0) { /* many pieces in a nearly full store */
        size_t n_runs;
        uint64_t part = pgs__min_u64(n, most);
        struct pgs_error local = {0};
        int rc = alloc_nodes(c, part, emergency(c), runs, PGS_ARRAY_LEN(runs), &n_runs, &local);
        if (rc == -PGS_EFULL && part >= PGS_ARRAY_LEN(runs)) { /* single pages, perhaps */
            most = PGS_ARRAY_LEN(runs) - 1;
            continue;
        }
        if (rc && err && err->code == 0) *err = local;
        if (rc) return rc;
        for (size_t i = 0; i < n_runs; i++)
            for (uint64_t k = 0; k < runs[i].n_pages; k++) *to++ = (struct pgs_pgno){runs[i].page.n + k};
        n -= part;
    }
    return 0;
}

/* Pages of y from the first that has none up to `upto`. */
static int take_nodes_quickly(struct pgs__commit *c, struct layout *y, enum pgs__life life, uint64_t upto,
                              struct pgs_error *err)
{
    struct pgs_run runs[16];
    size_t n;
    if (y->n_pages >= upto) return 0;
    int rc = pgs__claim_nodes(&c->claim, &c->l, life, upto - y->n_pages, runs, PGS_ARRAY_LEN(runs), &n, err);
    if (rc) return rc;
    for (size_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < runs[i].n_pages; k++) y->pages[y->n_pages++] = (struct pgs_pgno){runs[i].page.n + k};
    y->n_quick += n;
    return 0;
}

/* The usual case: found in a few looks. 1: not everything. What was found is in y. */
static int take_quickly(struct pgs__commit *c, struct layout *y, struct pgs_error *err)
{
    size_t n;
    if (pgs__is_scarce(c->s)) return 1; /* backed pages first: pgs__claim_alloc knows */
    int rc = take_nodes_quickly(c, y, PGS__LONG_LIVED, y->n_cat, err);
    if (rc == 0) rc = take_nodes_quickly(c, y, PGS__SHORT_LIVED, y->n_cat + y->n_meta, err);
    if (rc || y->record.n_pages) return rc;
    y->n_quick++;
    enum pgs__life life = y->n_meta ? PGS__SHORT_LIVED : PGS__RECORD; /* behind the nodes: one write */
    return pgs__claim_nodes(&c->claim, &c->l, life, y->n_rec, &y->record, 1, &n, err);
}

/* What is missing of y, after prepare said how much is needed. The buffer may move: images are made later. */
static int take_pages(struct pgs__commit *c, struct layout *y, struct pgs_error *err)
{
    uint64_t old = y->n_pages, n_nodes = y->n_cat + y->n_meta;
    struct pgs_pgno *kept = NULL;
    if (old) { /* a later round: the table sits behind the images, whose number grew */
        kept = pgs__malloc((size_t)old * sizeof *kept);
        if (!kept) return pgs__fail(err, PGS_ENOMEM, "no memory for a commit");
        memcpy(kept, y->pages, (size_t)old * sizeof *kept);
    }
    int rc = buffer(c, y, err);
    if (rc) goto out;
    y->pages = (struct pgs_pgno *)(void *)(y->images + (size_t)(n_nodes + y->n_rec) * PGS_PAGE_SIZE);
    if (kept) memcpy(y->pages, kept, (size_t)old * sizeof *kept);
    rc = take_quickly(c, y, err);
    if (rc < 0) goto out;
    rc = 0;
    if (y->record.n_pages != y->n_rec) {
        size_t n_runs;
        int flags = PGS__ALLOC_CONTIGUOUS | emergency(c);
        rc = y->record.n_pages ? pgs__ledger_give(&c->l, y->record, true, err) : 0;
        if (rc == 0) rc = alloc_nodes(c, y->n_rec, flags, &y->record, 1, &n_runs, err);
    }
    if (rc == 0 && n_nodes > y->n_pages) rc = take_nodes(c, y->pages + y->n_pages, n_nodes - y->n_pages, err);
    y->n_pages = n_nodes;
out:
    pgs__free(kept);
    return rc;
}

static int lay_out(struct pgs__commit *c, struct layout *y, struct pgs_error *err)
{
    bool clean = pgs__edit_is_clean(c->catalog);
    y->n_cat = clean ? 0 : pgs__edit_n_dirty(c->catalog);
    int rc = pgs__claim_record(&c->claim, &c->l, err);
    for (int round = 0; rc == 0 && round < PREPARE_ROUNDS; round++) {
        uint64_t n_meta, n_rec;
        rc = pgs__ledger_prepare(&c->l, &n_meta, &n_rec, err);
        if (rc) return rc;
        if (round > 0 && n_meta == y->n_meta && n_rec == y->n_rec) return 0;
        y->n_meta = n_meta;
        y->n_rec = n_rec;
        size_t first = c->claim.n_taken;
        rc = take_pages(c, y, err);
        if (rc == 0) rc = pgs__claim_record_from(&c->claim, first, &c->l, err);
        if (rc == 0 && round == 0 && c->claim.n_taken - first + y->n_quick <= RUNS_PLANNED) return 0;
    }
    return rc ? rc : pgs__fail(err, PGS_EBUG, "the pages of a commit's bookkeeping could not be counted");
}

static int make_images(struct pgs__commit *c, struct layout *y, struct pgs__root *root, struct pgs_error *err)
{
    struct pgs__record *hdr = &c->l.meta.hdr;
    struct pgs_ptr catalog = c->base.catalog;
    if (!pgs__edit_is_clean(c->catalog)) {
        int rc = pgs__edit_finish(c->catalog, c->l.gen, y->pages, y->images, &catalog, err);
        if (rc) return rc;
    }
    hdr->catalog = catalog;
    hdr->n_objects = c->n_objects;
    uint8_t *meta = y->images + (size_t)y->n_cat * PGS_PAGE_SIZE;
    return pgs__ledger_finish(&c->l, y->pages + y->n_cat, meta, y->record.page,
                              meta + (size_t)y->n_meta * PGS_PAGE_SIZE, root, err);
}

/* Image i goes to page i of the table; the record's images are the last. One call per run. */
static int write_images(struct pgs__commit *c, const struct layout *y, struct pgs_error *err)
{
    uint64_t n_nodes = y->n_cat + y->n_meta, n = n_nodes + y->n_rec;
    for (uint64_t i = 0, k; i < n; i = k) {
        struct pgs_pgno at = i < n_nodes ? y->pages[i] : (struct pgs_pgno){y->record.page.n + (i - n_nodes)};
        for (k = i + 1; k < n; k++) {
            uint64_t next = k < n_nodes ? y->pages[k].n : y->record.page.n + (k - n_nodes);
            if (next != at.n + (k - i)) break;
        }
        int rc = pgs__pages_write(&c->s->pf, at, y->images + (size_t)i * PGS_PAGE_SIZE, k - i, err);
        if (rc) return rc;
    }
    return 0;
}

static int end_locked(struct pgs__commit *c, const struct pgs_commit_info *log, struct pgs_error *err)
{
    struct layout y = {0};
    struct pgs__root root;
    int rc = kill_catalog_nodes(c, err);
    if (rc == 0 && log) rc = pgs__ledger_log_add(&c->l, log, err);
    if (rc == 0) rc = upkeep(c, err);
    if (rc == 0) rc = refill_reserve(c, err);
    if (rc == 0) rc = lay_out(c, &y, err);
    if (rc == 0) rc = make_images(c, &y, &root, err);
    if (rc == 0) rc = write_images(c, &y, err);
    if (rc) return rc;
    PGS_KILL_POINT("commit_written");
    uint64_t bytes = c->bytes + ((y.n_cat + y.n_meta + y.n_rec) << PGS_PAGE_SHIFT);
    rc = pgs__publish(c->s, &root, c->l.meta.hdr.durability, c->new_version, c->epoch, bytes, err);
    if (rc) return rc;
    c->after = c->l.meta.hdr;
    c->ask = pgs__advance_is_due(c->s, c->after.pages_dead,
                                 c->after.hw_pages - pgs__min_u64(c->after.hw_pages, c->after.pages_free), c->zombies);
    pgs__ledger_keep(&c->l, &root, &pgs__space_of(c->s)->kept);
    return 0;
}

int pgs__commit_end(struct pgs__commit *c, const struct pgs_commit_info *log, struct pgs_error *err)
{
    PGS_BUG_ON(!c->open);
    int rc = end_locked(c, log, err);
    if (rc == -PGS_EFULL)
        pgs__set_scarce(c->s, true);
    else if (rc == 0 && !c->freeing && pgs__is_scarce(c->s) && c->after.reserve_n >= PGS__RESERVE_PAGES / 2 &&
             pgs__room_of(&c->s->pf) >= ROOM_AGAIN)
        pgs__set_scarce(c->s, false);
    if (rc == 0) {
        c->open = false; /* the claims go last: they are not needed for others to go on */
        put_edit_away(c);
        pgs__ledger_close(&c->l);
        pgs__commit_unlock(c->s);
        PGS_KILL_POINT("commit_unlocked");
        pgs__claim_release(&c->claim);
        if (c->ask) pgs__advance_ask(c->s, false);
        pgs__punch_if_due(c->s, &c->after, c->bytes);
    }
    pgs__commit_abandon(c);
    return rc;
}

/* --- an object's pages -------------------------------------------------------------------------------------------------------------------- */

struct kill_ctx {
    struct pgs__commit *c;
    struct pgs_error *err;
};
static int kill_run(void *ctx, struct pgs_lpno at, struct pgs_run run, uint64_t birth)
{
    struct kill_ctx *k = ctx;
    (void)at;
    return pgs__ledger_kill(&k->c->l, run, birth, false, k->err);
}
static int kill_node(void *ctx, const struct pgs_ptr *node, int level)
{
    struct kill_ctx *k = ctx;
    (void)level;
    struct pgs_run run = {{node->page}, 1};
    return pgs__ledger_kill(&k->c->l, run, node->birth, true, k->err);
}

int pgs__commit_kill_content(struct pgs__commit *c, const struct pgs__object *obj, struct pgs_error *err)
{
    struct kill_ctx k = {.c = c, .err = err};
    const struct pgs__content *content = &obj->content;
    int rc = 0;
    if (content->form != PGS__FORM_INLINE) {
        rc = pgs__content_runs(&c->s->pf, content, 0, UINT64_MAX, kill_run, &k, err);
        if (rc == 0) rc = pgs__content_nodes(&c->s->pf, content, kill_node, &k, err);
    }
    if (rc == 0 && obj->dtype_ext.page) {
        struct pgs_run run = {{obj->dtype_ext.page}, obj->dtype_ext_pages};
        rc = pgs__ledger_kill(&c->l, run, obj->dtype_ext.birth, true, err);
    }
    return rc;
}
