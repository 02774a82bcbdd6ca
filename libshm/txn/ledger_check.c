/* Pagestone | txn/ledger_check — the ledger's own verifier: every key space walked, every promise of ledger.h checked.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Checks what can be known without the catalog: that all lists are disjoint, lie inside the file, add up to the counters, and agree with the chain. Whether what is in no list is reachable, and
 * the other way round, is for the verifier of the whole store, which gets every run from here. Memory is proportional to the number of entries.
 */
#include <stdlib.h>

#include "libshm/platform/mem.h"
#include "libshm/txn/ledger_impl.h"

struct link { /* a chain entry */
    pgs_gen_t gen;
    uint64_t version;
    bool expired, listed;
    uint32_t n_tags, tags_found;
};
struct hang { /* a bucket that hangs at another entry than its own */
    pgs_gen_t bucket, holder;
};
struct stretch {
    uint64_t lo, hi, count; /* count: 'r' */
    enum pgs__page_state state;
    char letter;
};
struct block { /* compressed */
    uint64_t slot;
    uint32_t n_pages, live, dead; /* dead: pages of it in deadlists */
};
struct check {
    struct pgs__ledger *l;
    struct pgs_error *err;
    struct link *links;
    size_t n_links, cap_links;
    struct hang *hangs;
    size_t n_hangs, cap_hangs;
    struct stretch *runs;
    size_t n_runs, cap_runs;
    struct block *blocks;
    size_t n_blocks, cap_blocks;
    uint64_t block_pages;
    uint64_t n_expired, x_pages, n_kept, n_tagged, head_tags, free, dead, limbo;
    pgs_gen_t last_bucket;
};

#define BAD(k, ...) pgs__fail_corrupt((k)->err, "the ledger", __VA_ARGS__)
#define LLU(x) ((unsigned long long)(x))

/* fn for each entry under `letter`. */
static int each(struct check *k, char letter, int (*fn)(struct check *k, const struct pgs__meta_cursor *c))
{
    uint8_t key[1] = {(uint8_t)letter};
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(k->l, &c, PGS__SEEK_GE, key, 1, k->err);
    for (; rc == 0; rc = pgs__lnext(k->l, &c, letter, k->err)) {
        rc = fn(k, &c);
        if (rc) return rc;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* The newest chain entry ≤ gen, or NULL. */
static struct link *link_at(struct check *k, pgs_gen_t gen)
{
    size_t lo = 0, hi = k->n_links;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (k->links[mid].gen <= gen)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? &k->links[lo - 1] : NULL;
}

static struct link *link_of(struct check *k, pgs_gen_t gen)
{
    struct link *at = link_at(k, gen);
    return at && at->gen == gen ? at : NULL;
}

/* --- chain ------------------------------------------------------------------------------------------------------------------- */
static int see_chain(struct check *k, const struct pgs__meta_cursor *c)
{
    struct pgs__chain e;
    uint64_t gen;
    int rc = pgs__lkey(c, 1, &gen, k->err);
    if (rc) return rc;
    if (c->val.len != sizeof e) return BAD(k, "the chain entry of generation %llu has a wrong size", LLU(gen));
    memcpy(&e, c->val.p, sizeof e);
    if (gen == 0 || gen >= k->l->meta.hdr.gen || e.flags != 0 || e.next_time_ns < e.time_ns)
        return BAD(k, "the chain entry of generation %llu is impossible", LLU(gen));
    if (k->n_links && e.version < k->links[k->n_links - 1].version)
        return BAD(k, "versions descend at generation %llu", LLU(gen));
    if (pgs__grow(&k->links, &k->cap_links, k->n_links + 1, sizeof *k->links))
        return pgs__fail(k->err, PGS_ENOMEM, "out of memory for the check");
    k->links[k->n_links++] = (struct link){.gen = gen, .version = e.version, .n_tags = e.n_tags};
    k->n_tagged += e.n_tags > 0;
    return 0;
}

static int see_expired(struct check *k, const struct pgs__meta_cursor *c)
{
    uint64_t gen, pages;
    int rc = pgs__lkey(c, 1, &gen, k->err);
    if (!rc) rc = pgs__lval_u64(c, &pages, k->err);
    if (rc) return rc;
    struct link *at = link_of(k, gen);
    if (!at) return BAD(k, "generation %llu is expired but not in the chain", LLU(gen));
    at->expired = true;
    k->n_expired++;
    k->x_pages += pages;
    return 0;
}

static int see_version(struct check *k, const struct pgs__meta_cursor *c)
{
    const struct pgs__record *h = &k->l->meta.hdr;
    uint64_t version, gen;
    int rc = pgs__lkey(c, 1, &version, k->err);
    if (!rc) rc = pgs__lval_u64(c, &gen, k->err);
    if (rc) return rc;
    k->n_kept++;
    if (version == h->version && gen == h->gen) return 0;
    struct link *at = link_of(k, gen);
    if (!at || at->version != version || at->expired)
        return BAD(k, "version %llu is listed with generation %llu, which is not its own", LLU(version), LLU(gen));
    if (at->n_tags == 0 && version < h->expire_hint) return BAD(k, "version %llu would never expire", LLU(version));
    at->listed = true;
    return 0;
}

static int see_tag(struct check *k, const struct pgs__meta_cursor *c)
{
    uint64_t version;
    pgs_gen_t gen;
    int rc = pgs__lval_u64(c, &version, k->err);
    if (rc) return rc;
    if (version == k->l->meta.hdr.version) {
        k->head_tags++;
        return 0;
    }
    rc = pgs__lversion_gen(k->l, version, &gen, k->err);
    if (rc && rc != -PGS_ENOENT) return rc;
    struct link *at = rc ? NULL : link_of(k, gen);
    if (!at) return BAD(k, "a tag names version %llu, which is not kept", LLU(version));
    at->tags_found++;
    return 0;
}

static int check_chain(struct check *k)
{
    const struct pgs__record *h = &k->l->meta.hdr;
    int rc = each(k, 'c', see_chain);
    if (!rc) rc = each(k, 'x', see_expired);
    if (!rc) rc = each(k, 'v', see_version);
    if (!rc) rc = each(k, 't', see_tag);
    if (rc) return rc;
    for (size_t i = 0; i < k->n_links; i++) {
        const struct link *at = &k->links[i];
        if (at->listed == at->expired || at->n_tags != at->tags_found)
            return BAD(k, "generation %llu: listed %d, expired %d, %u tags of %u", LLU(at->gen), at->listed,
                       at->expired, at->tags_found, at->n_tags);
    }
    if (k->n_links != h->n_chain || k->n_expired != h->n_expired || k->n_kept != h->n_kept ||
        k->n_tagged != h->n_tagged || k->head_tags != h->head_tags || k->x_pages != h->pages_expired)
        return BAD(
            k, "it counts %llu chained, %llu expired, %llu kept, %u + %u tagged, but has %zu, %llu, %llu, %llu + %llu",
            LLU(h->n_chain), LLU(h->n_expired), LLU(h->n_kept), h->n_tagged, h->head_tags, k->n_links,
            LLU(k->n_expired), LLU(k->n_kept), LLU(k->n_tagged), LLU(k->head_tags));
    return 0;
}

/* --- buckets ----------------------------------------------------------------------------------------------------------------- */
/* A bucket hangs at the newest chain entry before it; entries between the two can only be ones that are being dropped. */
static int see_hang(struct check *k, const struct pgs__meta_cursor *c)
{
    uint64_t key[2];
    int rc = pgs__lkey(c, 2, key, k->err);
    if (rc) return rc;
    struct link *holder = link_of(k, key[0]), *newest = link_at(k, key[1]);
    if (!holder || key[1] <= key[0] || link_of(k, key[1]))
        return BAD(k, "bucket %llu hangs at %llu", LLU(key[1]), LLU(key[0]));
    for (; newest > holder; newest--)
        if (!newest->expired) return BAD(k, "bucket %llu hangs too low, at %llu", LLU(key[1]), LLU(key[0]));
    if (pgs__grow(&k->hangs, &k->cap_hangs, k->n_hangs + 1, sizeof *k->hangs))
        return pgs__fail(k->err, PGS_ENOMEM, "out of memory for the check");
    k->hangs[k->n_hangs++] = (struct hang){.bucket = key[1], .holder = key[0]};
    return 0;
}

static int by_bucket(const void *a, const void *b)
{
    const struct hang *x = a, *y = b;
    return (x->bucket > y->bucket) - (x->bucket < y->bucket);
}

static int check_bucket(struct check *k, pgs_gen_t bucket)
{
    if (link_of(k, bucket)) return 0;
    struct hang want = {.bucket = bucket};
    if (k->n_hangs && bsearch(&want, k->hangs, k->n_hangs, sizeof want, by_bucket)) return 0;
    return BAD(k, "bucket %llu hangs nowhere", LLU(bucket));
}

/* --- runs -------------------------------------------------------------------------------------------------------------------- */
static int add_run(struct check *k, uint64_t lo, uint64_t n, enum pgs__page_state state, char letter, uint64_t count)
{
    if (pgs__grow(&k->runs, &k->cap_runs, k->n_runs + 1, sizeof *k->runs))
        return pgs__fail(k->err, PGS_ENOMEM, "out of memory for the check");
    k->runs[k->n_runs++] = (struct stretch){.lo = lo, .hi = lo + n, .state = state, .letter = letter, .count = count};
    return 0;
}

static int see_dead(struct check *k, const struct pgs__meta_cursor *c)
{
    struct pgs__entry e;
    int rc = pgs__lentry(k->l, c, &e, k->err);
    if (rc) return rc;
    if (e.b == 0 || e.b > e.a || e.a >= k->l->meta.hdr.gen)
        return BAD(k, "page %llu was born in %llu and is in bucket %llu", LLU(e.page), LLU(e.b), LLU(e.a));
    if (e.a != k->last_bucket) {
        k->last_bucket = e.a;
        rc = check_bucket(k, e.a);
        if (rc) return rc;
    }
    k->dead += pgs__lraw(&e);
    return add_run(k, e.page, e.n, PGS__PAGE_DEAD, 'd', 0);
}

static int see_limbo(struct check *k, const struct pgs__meta_cursor *c)
{
    struct pgs__entry e;
    int rc = pgs__lentry(k->l, c, &e, k->err);
    if (rc) return rc;
    if (e.a > k->l->meta.hdr.gen) return BAD(k, "limbo of generation %llu", LLU(e.a));
    k->limbo += e.n;
    return add_run(k, e.page, e.n, PGS__PAGE_LIMBO, 'm', 0);
}

/* --- compressed blocks ------------------------------------------------------------------------------------------------------- */
static int see_block(void *ctx, uint64_t slot, const struct pgs__cold_block *b, struct pgs_error *damage)
{
    struct check *k = ctx;
    if (!b) return BAD(k, "%s", damage->text);
    if (b->birth > k->l->meta.hdr.gen)
        return BAD(k, "compressed block %llu is of generation %llu, which is not yet", LLU(slot), LLU(b->birth));
    if (pgs__grow(&k->blocks, &k->cap_blocks, k->n_blocks + 1, sizeof *k->blocks))
        return pgs__fail(k->err, PGS_ENOMEM, "out of memory for the check");
    k->blocks[k->n_blocks++] = (struct block){.slot = slot, .n_pages = b->n_bytes / PGS_PAGE_SIZE, .live = b->live};
    k->block_pages += pgs__pages_of(b->z_bytes);
    return add_run(k, b->page, pgs__pages_of(b->z_bytes), PGS__PAGE_BLOCK, 'z', 0);
}

static int by_slot(const void *a, const void *b)
{
    const struct block *x = a, *y = b;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

/* Pages of the image that are dead or shared belong to a block, and are no more than it counts. */
static int check_image(struct check *k, const struct stretch *r)
{
    for (uint64_t at = r->lo, end; at < r->hi; at = end) {
        struct block want = {.slot = pgs__cold_slot(at)}, *b;
        end = pgs__min_u64(r->hi, pgs__cold_page_of(want.slot + 1));
        b = k->n_blocks ? bsearch(&want, k->blocks, k->n_blocks, sizeof want, by_slot) : NULL;
        if (!b || end - pgs__cold_page_of(want.slot) > b->n_pages)
            return BAD(k, "page %llu of compressed block %llu is under '%c', but the block is not there",
                       LLU(at - pgs__cold_page_of(want.slot)), LLU(want.slot), r->letter);
        if (r->state == PGS__PAGE_DEAD) b->dead += (uint32_t)(end - at);
        if (b->dead > b->live)
            return BAD(k, "compressed block %llu counts %u pages, and %u of them are dead", LLU(b->slot), b->live,
                       b->dead);
    }
    return 0;
}

static int check_blocks(struct check *k)
{
    struct pgs__cold_total t;
    int rc = pgs__ledger_cold_total(k->l, &t, k->err);
    if (rc) return rc;
    if (t.n_blocks != k->n_blocks || t.n_pages != k->block_pages ||
        (k->n_blocks && k->blocks[k->n_blocks - 1].slot >= t.next))
        return BAD(k, "it counts %llu compressed blocks of %llu pages below %llu, but has %zu of %llu", LLU(t.n_blocks),
                   LLU(t.n_pages), LLU(t.next), k->n_blocks, LLU(k->block_pages));
    for (size_t i = 0; i < k->n_runs && !rc; i++)
        if (pgs__is_cold(k->runs[i].lo)) rc = check_image(k, &k->runs[i]);
    return rc;
}

static int see_shared(struct check *k, const struct pgs__meta_cursor *c)
{
    struct pgs__entry e;
    int rc = pgs__lentry(k->l, c, &e, k->err);
    if (rc) return rc;
    if (e.count < 2) return BAD(k, "page %llu is shared %llu times", LLU(e.page), LLU(e.count));
    return add_run(k, e.page, e.n, PGS__PAGE_SHARED, 'r', e.count);
}

static int see_free(struct check *k, const struct pgs__meta_cursor *c)
{
    char letter = *(const char *)c->key.p;
    uint64_t unit = letter == 'W' ? PGS_CHUNK_PAGES : 1, hi, n, hw = k->l->meta.hdr.hw_pages / unit;
    int rc = pgs__lkey(c, 1, &hi, k->err);
    if (!rc) rc = pgs__lval_u64(c, &n, k->err);
    if (rc) return rc;
    if (n == 0 || n > hi || hi > hw) return BAD(k, "a free run of %llu ends at %llu", LLU(n), LLU(hi));
    if (letter != 'W' && ((hi - n) / PGS_CHUNK_PAGES != (hi - 1) / PGS_CHUNK_PAGES || n == PGS_CHUNK_PAGES))
        return BAD(k, "a free run of %llu pages before page %llu is not part of a chunk", LLU(n), LLU(hi));
    k->free += n * unit;
    return add_run(k, (hi - n) * unit, n * unit, PGS__PAGE_FREE, letter, 0);
}

static int by_page(const void *a, const void *b)
{
    const struct stretch *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

/* Neighbours in page order: disjoint; free ones of one chunk of one letter, and joined. */
static int check_neighbours(struct check *k)
{
    const struct stretch *last_free = NULL;
    for (size_t i = 0; i < k->n_runs; i++) {
        const struct stretch *r = &k->runs[i];
        if (i > 0 && r[-1].hi > r->lo)
            return BAD(k, "page %llu is under '%c' and under '%c'", LLU(r->lo), r[-1].letter, r->letter);
        if (r->state != PGS__PAGE_FREE) continue;
        if (last_free && last_free->letter != 'W' && r->letter != 'W' &&
            last_free->lo / PGS_CHUNK_PAGES == r->lo / PGS_CHUNK_PAGES && last_free->letter != r->letter)
            return BAD(k, "chunk %llu has free runs of both kinds", LLU(r->lo / PGS_CHUNK_PAGES));
        if (last_free && last_free->hi == r->lo && last_free->letter == r->letter &&
            (r->letter == 'W' || r->lo % PGS_CHUNK_PAGES))
            return BAD(k, "free runs that meet at page %llu are not joined", LLU(r->lo));
        last_free = r;
    }
    return 0;
}

static int check_runs(struct check *k)
{
    const struct pgs__record *h = &k->l->meta.hdr;
    int rc = add_run(k, PGS__SUPER_PAGE_0, 1, PGS__PAGE_SUPER, 's', 0);
    if (!rc) rc = add_run(k, PGS__SUPER_PAGE_1, 1, PGS__PAGE_SUPER, 's', 0);
    if (!rc && h->reserve_n) rc = add_run(k, h->reserve_page, h->reserve_n, PGS__PAGE_RESERVE, 'R', 0);
    if (!rc) rc = each(k, 'b', see_hang);
    if (k->n_hangs) qsort(k->hangs, k->n_hangs, sizeof *k->hangs, by_bucket);
    for (size_t i = 1; i < k->n_hangs && !rc; i++)
        if (k->hangs[i].bucket == k->hangs[i - 1].bucket)
            rc = BAD(k, "bucket %llu hangs at %llu and at %llu", LLU(k->hangs[i].bucket), LLU(k->hangs[i].holder),
                     LLU(k->hangs[i - 1].holder));
    if (!rc) rc = each(k, 'd', see_dead);
    if (!rc) rc = each(k, 'm', see_limbo);
    if (!rc) rc = each(k, 'r', see_shared);
    for (const char *p = "WND"; *p && !rc; p++) rc = each(k, *p, see_free);
    if (!rc) rc = pgs__ledger_cold_walk(k->l, see_block, k, k->err);
    if (!rc) rc = check_blocks(k);
    if (rc) return rc;
    qsort(k->runs, k->n_runs, sizeof *k->runs, by_page);
    rc = check_neighbours(k);
    if (!rc && (k->free != h->pages_free || k->dead != h->pages_dead || k->limbo != h->pages_limbo))
        rc = BAD(k, "it counts %llu free, %llu dead, %llu pages in limbo, but has %llu, %llu, %llu", LLU(h->pages_free),
                 LLU(h->pages_dead), LLU(h->pages_limbo), LLU(k->free), LLU(k->dead), LLU(k->limbo));
    return rc;
}

int pgs__ledger_check(struct pgs__ledger *l, int (*fn)(void *ctx, struct pgs_run run, enum pgs__page_state state),
                      int (*shared)(void *ctx, struct pgs_run run, uint64_t count), void *ctx, struct pgs_error *err)
{
    struct check k = {.l = l, .err = err};
    int rc = check_chain(&k);
    if (!rc) rc = check_runs(&k);
    for (size_t i = 0; i < k.n_runs && !rc; i++) {
        const struct stretch *r = &k.runs[i];
        struct pgs_run run = {{r->lo}, r->hi - r->lo};
        if (r->letter == 'r')
            rc = shared ? shared(ctx, run, r->count) : 0;
        else
            rc = fn ? fn(ctx, run, r->state) : 0;
    }
    pgs__free(k.links);
    pgs__free(k.hangs);
    pgs__free(k.runs);
    pgs__free(k.blocks);
    return rc;
}
