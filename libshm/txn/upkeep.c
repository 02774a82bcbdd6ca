/* Pagestone | txn/upkeep — statistics, readers, settings, collecting garbage.
 * SPDX-License-Identifier: Apache-2.0
 *
 * What the numbers of pgs_stat mean, in pages of the ledger's counters (record_format.h):
 *
 *     live      hw − free − dead − limbo − meta − reserve − superblocks: catalog nodes, map nodes and data that the newest version refers to
 *     history   dead − pinned: kept for older versions that may still be opened
 *     pinned    kept only by versions that left history: somebody pins them, or the next commits drop them
 *     free      free + limbo (unreferenced, but not yet safe to write again)
 *     meta      the bookkeeping, the reserve and the superblocks
 *     compressed   of live: what compressed blocks occupy, also those that only older versions need
 *     resident  blocks of the file, as the file system counts them
 *     leaked    0: only pgs_check can know, and reports it
 */
#include "libshm/txn/upkeep.h"

#include "libshm/platform/mem.h"
#include "libshm/txn/policy.h"

#include <stdlib.h>

/* Bytes that only expired entries of the chain keep: neighbours hold together what neither holds alone. */
struct held {
    struct pgs__ledger *l;
    pgs_gen_t lo, hi; /* of the group that is open; lo 0: none */
    uint64_t bytes;
    struct pgs_error *err;
};
static int held_close(struct held *h)
{
    uint64_t bytes = 0;
    int rc = h->lo ? pgs__ledger_bytes_held(h->l, h->lo, h->hi, &bytes, h->err) : 0;
    h->bytes += bytes;
    h->lo = 0;
    return rc;
}
static int held_entry(void *ctx, pgs_gen_t gen, const struct pgs__chain *c)
{
    struct held *h = ctx;
    if (!(c->flags & PGS__CHAIN_EXPIRED)) return held_close(h);
    if (!h->lo) h->lo = gen;
    h->hi = gen;
    return 0;
}
static int held_by_expired(struct pgs__ledger *l, uint64_t *bytes, struct pgs_error *err)
{
    struct held h = {.l = l, .err = err};
    *bytes = 0;
    if (l->meta.hdr.n_expired == 0) return 0;
    int rc = pgs__ledger_chain_walk(l, held_entry, &h, err);
    if (rc == 0) rc = held_close(&h);
    *bytes = h.bytes;
    return rc;
}

int pgs__stat(struct pgs__session *s, struct pgs_stat *out, struct pgs_error *err)
{
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    const struct pgs__record *h = &l.meta.hdr;
    uint64_t meta = h->pages_meta + h->reserve_n + 2;
    uint64_t rest = h->pages_free + h->pages_dead + h->pages_limbo + meta;
    struct pgs_stat st = {0};
    struct pgs__cold_total cold;
    st.live = (h->hw_pages - pgs__min_u64(h->hw_pages, rest)) << PGS_PAGE_SHIFT;
    rc = held_by_expired(&l, &st.pinned, err);
    if (rc == 0) rc = pgs__ledger_cold_total(&l, &cold, err);
    if (rc == 0) st.compressed = cold.n_pages << PGS_PAGE_SHIFT;
    st.pinned = pgs__min_u64(st.pinned, h->pages_dead << PGS_PAGE_SHIFT);
    st.history = (h->pages_dead << PGS_PAGE_SHIFT) - st.pinned;
    st.free = (h->pages_free + h->pages_limbo) << PGS_PAGE_SHIFT;
    st.meta = meta << PGS_PAGE_SHIFT;
    st.objects = l.head.n_objects;
    st.versions = h->n_kept;
    st.quota = h->quota_bytes;
    pgs__meta_end(s, &l);
    if (rc) return rc;
    st.resident = pgs__pagefile_resident(&s->pf);
    pgs__pagefile_refresh(&s->pf);
    st.file_size = atomic_load_explicit(&s->pf.n_pages, memory_order_relaxed) << PGS_PAGE_SHIFT; /* grows only */
    st.bytes_copied = atomic_load_explicit(&s->bytes_copied, memory_order_relaxed);              /* statistics */
    st.bytes_shared = atomic_load_explicit(&s->bytes_shared, memory_order_relaxed);
    *out = st;
    return 0;
}

/* --- readers -------------------------------------------------------------------------------------------------------------------------- */

struct reader {
    uint64_t pid, start_ns;
    char command[96];
    uint64_t *gens;
    size_t n_gens, cap_gens;
};
struct link { /* of the chain, the head last */
    pgs_gen_t gen;
    uint64_t version;
    bool expired;
    uint32_t n_pins; /* readers that pin it */
};
struct survey {
    struct pgs__session *s;
    struct reader *readers;
    size_t n_readers, cap_readers;
    struct link *chain;
    size_t n_chain, cap_chain;
};

static void survey_free(struct survey *v)
{
    for (size_t i = 0; i < v->n_readers; i++) pgs__free(v->readers[i].gens);
    pgs__free(v->readers);
    pgs__free(v->chain);
}

static int add_gen(struct reader *r, uint64_t gen)
{
    if (pgs__grow(&r->gens, &r->cap_gens, r->n_gens + 1, sizeof r->gens[0])) return -PGS_ENOMEM;
    r->gens[r->n_gens++] = gen;
    return 0;
}

static struct reader *add_reader(struct survey *v, uint64_t pid, uint64_t start_ns, const char *command)
{
    if (pgs__grow(&v->readers, &v->cap_readers, v->n_readers + 1, sizeof v->readers[0])) return NULL;
    struct reader *r = &v->readers[v->n_readers++];
    memset(r, 0, sizeof *r);
    r->pid = pid;
    r->start_ns = start_ns;
    strncpy(r->command, command ? command : "", sizeof r->command - 1);
    return r;
}

static int survey_slot(void *ctx, const struct pgs__slot_info *i)
{
    struct survey *v = ctx;
    if (i->n_gens == 0) return 0;
    struct reader *r = add_reader(v, i->pid, i->start_ns, i->command);
    if (!r) return -PGS_ENOMEM;
    for (size_t k = 0; k < i->n_gens; k++)
        if (add_gen(r, i->gens[k])) return -PGS_ENOMEM;
    return 0;
}

static int add_link(struct survey *v, pgs_gen_t gen, uint64_t version, bool expired)
{
    if (pgs__grow(&v->chain, &v->cap_chain, v->n_chain + 1, sizeof v->chain[0])) return -PGS_ENOMEM;
    v->chain[v->n_chain++] = (struct link){.gen = gen, .version = version, .expired = expired};
    return 0;
}

static int survey_chain(void *ctx, pgs_gen_t gen, const struct pgs__chain *c)
{
    return add_link(ctx, gen, c->version, (c->flags & PGS__CHAIN_EXPIRED) != 0);
}

static struct link *find_link(struct survey *v, pgs_gen_t gen)
{
    size_t lo = 0, hi = v->n_chain;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (v->chain[mid].gen < gen)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < v->n_chain && v->chain[lo].gen == gen ? &v->chain[lo] : NULL;
}

/* Readers without a slot have no name: one entry for all of them. */
static int survey_read_locks(struct survey *v)
{
    struct reader *r = NULL;
    for (size_t i = 0; i < v->n_chain; i++) {
        if (pgs__read_locked(v->s, v->chain[i].gen) != 1) continue;
        if (!r) r = add_reader(v, 0, 0, "a reader without write permission");
        if (!r || add_gen(r, v->chain[i].gen)) return -PGS_ENOMEM;
    }
    return 0;
}

static bool has_gen(const struct reader *r, pgs_gen_t gen)
{
    for (size_t i = 0; i < r->n_gens; i++)
        if (r->gens[i] == gen) return true;
    return false;
}

/* Groups of neighbours in the chain that only this reader keeps. */
static int reader_bytes(struct survey *v, struct pgs__ledger *l, const struct reader *r, uint64_t *bytes,
                        struct pgs_error *err)
{
    *bytes = 0;
    for (size_t i = 0, k; i < v->n_chain; i = k) {
        for (k = i; k < v->n_chain && v->chain[k].expired && v->chain[k].n_pins == 1 && has_gen(r, v->chain[k].gen);)
            k++;
        uint64_t held = 0;
        if (k > i) {
            int rc = pgs__ledger_bytes_held(l, v->chain[i].gen, v->chain[k - 1].gen, &held, err);
            if (rc) return rc;
        } else {
            k++;
        }
        *bytes += held;
    }
    return 0;
}

static int survey_fill(struct survey *v, struct pgs__ledger *l, struct pgs_error *err)
{
    int rc = pgs__ledger_chain_walk(l, survey_chain, v, err);
    if (rc == 0) rc = add_link(v, l->head.gen, l->head.version, false);
    if (rc == 0) rc = pgs__slots_walk(v->s, survey_slot, v, err);
    if (rc == 0) rc = survey_read_locks(v);
    for (size_t i = 0; rc == 0 && i < v->n_readers; i++)
        for (size_t k = 0; k < v->readers[i].n_gens; k++) {
            struct link *link = find_link(v, v->readers[i].gens[k]);
            if (link) link->n_pins++;
        }
    if (rc == -PGS_ENOMEM) pgs__fail(err, PGS_ENOMEM, "no memory for the list of readers");
    return rc;
}

static int cmp_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Versions that the reader's generations belong to: ascending, each once. gens is overwritten. */
static size_t versions_of(struct survey *v, struct reader *r)
{
    size_t n = 0, m = 0;
    for (size_t i = 0; i < r->n_gens; i++) {
        struct link *link = find_link(v, r->gens[i]);
        if (link) r->gens[n++] = link->version; /* a generation newer than our meta data is left out */
    }
    if (n) qsort(r->gens, n, sizeof r->gens[0], cmp_u64);
    for (size_t i = 0; i < n; i++)
        if (m == 0 || r->gens[m - 1] != r->gens[i]) r->gens[m++] = r->gens[i];
    return m;
}

int pgs__readers(struct pgs__session *s, int (*fn)(void *ctx, const struct pgs_reader *r), void *ctx,
                 struct pgs_error *err)
{
    struct survey v = {.s = s};
    struct pgs__ledger l;
    uint64_t *bytes = NULL;
    (void)pgs__sweep(s, true); /* the dead pin nothing, and a full store must not name them */
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = survey_fill(&v, &l, err);
    if (rc == 0 && v.n_readers) {
        bytes = pgs__calloc(v.n_readers, sizeof *bytes);
        if (!bytes) rc = pgs__fail(err, PGS_ENOMEM, "no memory for the list of readers");
    }
    for (size_t i = 0; rc == 0 && i < v.n_readers; i++) rc = reader_bytes(&v, &l, &v.readers[i], &bytes[i], err);
    pgs__meta_end(s, &l);
    for (size_t i = 0; rc == 0 && i < v.n_readers; i++) {
        struct reader *r = &v.readers[i];
        struct pgs_reader out = {.pid = r->pid, .command = r->command, .since_ns = r->start_ns, .bytes = bytes[i]};
        out.n_versions = versions_of(&v, r);
        out.versions = r->gens;
        if (out.n_versions) rc = fn(ctx, &out);
    }
    pgs__free(bytes);
    survey_free(&v);
    return rc;
}

/* --- settings ----------------------------------------------------------------------------------------------------------------------------- */

static bool settings_edit(struct pgs__record *h, const struct pgs_options *opt)
{
    struct pgs__record old = *h;
    if (opt->size) h->quota_bytes = opt->size == UINT64_MAX ? 0 : opt->size;
    if (opt->durability != PGS_DUR_KEEP) h->durability = (uint32_t)opt->durability;
    if (opt->history != PGS_HIST_KEEP) {
        h->history_kind = (uint32_t)opt->history;
        h->history_value = opt->history_value;
    }
    if (opt->checksums) h->checksums = opt->checksums > 0;
    return h->quota_bytes != old.quota_bytes || h->durability != old.durability ||
           h->history_kind != old.history_kind || h->history_value != old.history_value ||
           h->checksums != old.checksums;
}

int pgs__settings_apply(struct pgs__session *s, const struct pgs__wait *w, const struct pgs_options *opt,
                        struct pgs_error *err)
{
    struct pgs__ledger l;
    struct pgs__commit c;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    struct pgs__policy policy;
    bool differ = settings_edit(&l.meta.hdr, opt); /* a copy: nothing is written through it */
    rc = pgs__policy_get(&l, &policy, err);
    differ |= pgs__policy_edit(&policy, opt->freeze_ns, 0, 0);
    pgs__meta_end(s, &l);
    if (rc || !differ) return rc;
    rc = pgs__commit_begin(&c, s, w, err);
    if (rc) return rc;
    rc = pgs__commit_start(&c, false, err);
    if (rc == 0) {
        c.freeing = true; /* raising the quota of a full store must work */
        (void)settings_edit(&c.l.meta.hdr, opt);
        rc = pgs__policy_get(&c.l, &policy, err);
        if (rc == 0 && pgs__policy_edit(&policy, opt->freeze_ns, c.l.meta.hdr.version, pgs__clock_real_ns()))
            rc = pgs__policy_put(&c.l, &policy, err);
        if (rc == 0) return pgs__commit_end(&c, NULL, err);
    }
    pgs__commit_abandon(&c);
    return rc;
}

int pgs__gc(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err)
{
    bool more = true;
    int rc = 0;
    (void)pgs__sweep(s, true);
    pgs__advance_ask(s, false);
    while (rc == 0 && more) rc = pgs__policy_step(s, w, PGS__POLICY_STEP, &more, err);
    if (rc == 0) rc = pgs__drain(s, w, false, NULL, err);
    if (rc == 0) rc = pgs__make_durable(s, w, err);
    struct pgs__space *sp = pgs__space_of(s);
    if (sp) {
        pgs__mutex_lock(&s->space_mx);
        sp->punch_below = 0;
        pgs__mutex_unlock(&s->space_mx);
    }
    while (rc == 0 && pgs__punch(s, 64) > 0) {
    }
    if (rc == 0 && pgs__is_scarce(s)) pgs__punch_parts(s);
    return rc;
}
