/* Pagestone | txn/ledger — opening a ledger, beginning a generation, and handing it over for writing.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The life of a commit here: begin (the superseded head enters the chain), any number of kill, share, take, give, drop, expire, reclaim, tag and log calls in any
 * order, prepare (how many pages?), take those, finish (the images). Nothing is written to the file by the ledger, so a crash anywhere leaves the old generation; see docs/design/ledger.md.
 *
 * Version times: the wall clock where it moved on, else 1 µs after the version before, so that times are strictly monotone at the resolution at which they are looked up. How far the wall clock may
 * lead is the caller's to limit, since that needs a clock that nobody sets.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/ledger_impl.h"

/* --- entries ---------------------------------------------------------------------------------------------------------------- */
static int same_letter(const struct pgs__meta_cursor *c, char letter)
{
    return c->key.len > 0 && *(const char *)c->key.p == letter ? 0 : -PGS_ENOENT;
}

int pgs__lseek(struct pgs__ledger *l, struct pgs__meta_cursor *c, enum pgs__seek how, const uint8_t *key, size_t len,
               struct pgs_error *err)
{
    l->n_touched++;
    int rc = pgs__meta_seek(c, &l->meta, how, key, len, err);
    return rc ? rc : same_letter(c, (char)key[0]);
}

int pgs__lseek_new(struct pgs__ledger *l, struct pgs__meta_cursor *c, enum pgs__seek how, const uint8_t *key,
                   size_t len, struct pgs_error *err)
{
    l->n_touched++;
    int rc = pgs__meta_seek_new(c, &l->meta, how, key, len, err);
    return rc ? rc : same_letter(c, (char)key[0]);
}

int pgs__lnext(struct pgs__ledger *l, struct pgs__meta_cursor *c, char letter, struct pgs_error *err)
{
    l->n_touched++;
    int rc = pgs__meta_next(c, err);
    return rc ? rc : same_letter(c, letter);
}

int pgs__lprev(struct pgs__ledger *l, struct pgs__meta_cursor *c, char letter, struct pgs_error *err)
{
    l->n_touched++;
    int rc = pgs__meta_prev(c, err);
    return rc ? rc : same_letter(c, letter);
}

int pgs__lput_u64(struct pgs__ledger *l, const uint8_t *key, size_t len, uint64_t val, bool fresh,
                  struct pgs_error *err)
{
    l->n_touched++;
    size_t n = val ? 8u - (unsigned)__builtin_clzll(val) / 8u : 1u; /* little-endian, as the whole format */
    return fresh ? pgs__meta_add(&l->meta, key, len, &val, n, err) : pgs__meta_put(&l->meta, key, len, &val, n, err);
}

int pgs__ldel(struct pgs__ledger *l, const uint8_t *key, size_t len, struct pgs_error *err)
{
    l->n_touched++;
    return pgs__meta_del(&l->meta, key, len, err);
}

int pgs__lkey(const struct pgs__meta_cursor *c, unsigned ints, uint64_t *out, struct pgs_error *err)
{
    const uint8_t *p = (const uint8_t *)c->key.p + 1, *end = p - 1 + c->key.len;
    for (unsigned i = 0; i < ints; i++) {
        if (p == end || *p > 8 || end - p <= *p) goto bad;
        out[i] = 0;
        for (unsigned n = *p++; n > 0; n--) out[i] = out[i] << 8 | *p++;
    }
    if (p == end) return 0;
bad:
    return pgs__fail_corrupt(err, "the ledger", "a key of %zu bytes under '%c'", c->key.len, *(const char *)c->key.p);
}

int pgs__lval_num(struct pgs_span val, char letter, uint64_t *out, struct pgs_error *err)
{
    if (val.len < 1 || val.len > 8)
        return pgs__fail_corrupt(err, "the ledger", "a value of %zu bytes under '%c'", val.len, letter);
    *out = 0;
    memcpy(out, val.p, val.len);
    return 0;
}

int pgs__lval_u64(const struct pgs__meta_cursor *c, uint64_t *out, struct pgs_error *err)
{
    return pgs__lval_num(c->val, *(const char *)c->key.p, out, err);
}

int pgs__lentry(struct pgs__ledger *l, const struct pgs__meta_cursor *c, struct pgs__entry *e, struct pgs_error *err)
{
    char letter = *(const char *)c->key.p;
    unsigned ints = letter == 'd' ? 3 : letter == 'm' ? 2 : 1;
    uint64_t k[3];
    int rc = pgs__lkey(c, ints, k, err);
    if (rc) return rc;
    if (letter == 'r') {
        if (c->val.len != 16) return pgs__fail_corrupt(err, "the ledger", "a count of %zu bytes", c->val.len);
        *e = (struct pgs__entry){
            .page = k[0], .n = pgs__get_u64(c->val.p), .count = pgs__get_u64((const uint8_t *)c->val.p + 8)};
    } else {
        uint64_t v;
        rc = pgs__lval_u64(c, &v, err);
        if (rc) return rc;
        *e = (struct pgs__entry){
            .a = k[0], .b = letter == 'd' ? k[1] : 0, .page = k[ints - 1], .n = v >> 1, .node = v & 1};
    }
    uint64_t hw = l->meta.hdr.hw_pages;
    bool cold = pgs__is_cold(e->page) && letter != 'm' && !e->node;
    if (cold) hw = PGS__COLD_END;
    if (e->n == 0 || e->n > hw || e->page > hw - e->n)
        return pgs__fail_corrupt(err, "the ledger", "pages %llu + %llu under '%c' are beyond the file",
                                 (unsigned long long)e->page, (unsigned long long)e->n, letter);
    return 0;
}

int pgs__lcounter_sub(uint64_t *counter, uint64_t n, const char *what, struct pgs_error *err)
{
    if (n > *counter)
        return pgs__fail_corrupt(err, "the ledger", "it counts %llu %s, and %llu more leave them",
                                 (unsigned long long)*counter, what, (unsigned long long)n);
    *counter -= n;
    return 0;
}

/* --- chain ------------------------------------------------------------------------------------------------------------------ */
int pgs__lchain_raw(struct pgs__ledger *l, pgs_gen_t gen, struct pgs__chain *out, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs_span val;
    l->n_touched++;
    int rc = pgs__meta_get(&l->meta, key, pgs__meta_key1(key, 'c', gen), &val, err);
    if (rc) return rc;
    if (val.len != sizeof *out)
        return pgs__fail_corrupt(err, "the ledger", "the chain entry of generation %llu has %zu bytes",
                                 (unsigned long long)gen, val.len);
    memcpy(out, val.p, sizeof *out);
    out->flags = 0;
    return 0;
}

int pgs__lchain_get(struct pgs__ledger *l, pgs_gen_t gen, struct pgs__chain *out, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs_span val;
    int rc = pgs__lchain_raw(l, gen, out, err);
    if (rc) return rc;
    rc = pgs__meta_get(&l->meta, key, pgs__meta_key1(key, 'x', gen), &val, err);
    if (rc && rc != -PGS_ENOENT) return rc;
    out->flags = rc == 0 ? PGS__CHAIN_EXPIRED : 0;
    return 0;
}

int pgs__lchain_put(struct pgs__ledger *l, pgs_gen_t gen, const struct pgs__chain *c, bool fresh, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__chain stored = *c;
    stored.flags = 0;
    size_t len = pgs__meta_key1(key, 'c', gen);
    l->n_touched++;
    return fresh ? pgs__meta_add(&l->meta, key, len, &stored, sizeof stored, err)
                 : pgs__meta_put(&l->meta, key, len, &stored, sizeof stored, err);
}

int pgs__lchain_prev(struct pgs__ledger *l, pgs_gen_t gen, pgs_gen_t *prev, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    *prev = 0;
    int rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key1(key, 'c', gen), err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    return pgs__lkey(&c, 1, prev, err);
}

int pgs__lversion_gen(struct pgs__ledger *l, uint64_t version, pgs_gen_t *gen, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs_span val;
    l->n_touched++;
    int rc = pgs__meta_get(&l->meta, key, pgs__meta_key1(key, 'v', version), &val, err);
    return rc ? rc : pgs__lval_num(val, 'v', gen, err);
}

int pgs__lexpired_mark(struct pgs__ledger *l, pgs_gen_t gen, uint64_t n_pages, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    if (pgs__grow(&l->expired_now, &l->cap_expired_now, l->n_expired_now + 1, sizeof *l->expired_now))
        return pgs__fail(err, PGS_ENOMEM, "out of memory for expired versions");
    int rc = pgs__lput_u64(l, key, pgs__meta_key1(key, 'x', gen), n_pages, true, err);
    if (rc) return rc;
    l->expired_now[l->n_expired_now++] = gen;
    l->meta.hdr.n_expired++;
    l->meta.hdr.pages_expired += n_pages;
    return 0;
}

bool pgs__lexpired_now(const struct pgs__ledger *l, pgs_gen_t gen)
{
    for (size_t i = 0; i < l->n_expired_now; i++)
        if (l->expired_now[i] == gen) return true;
    return false;
}

/* --- open, begin ------------------------------------------------------------------------------------------------------------ */
int pgs__ledger_open(struct pgs__ledger *l, struct pgs__pagefile *pf, const struct pgs__root *head,
                     struct pgs_error *err)
{
    memset(l, 0, sizeof *l);
    l->head = *head;
    if (head->gen != 0) return pgs__meta_open(&l->meta, pf, head, err);
    pgs__meta_init_empty(&l->meta, pf);
    return 0;
}

int pgs__ledger_reopen(struct pgs__ledger *l, struct pgs__pagefile *pf, const struct pgs__root *head,
                       struct pgs__meta_kept *kept, struct pgs_error *err)
{
    bool nothing_hung = kept->nothing_hung && memcmp(&kept->record, &head->record, sizeof head->record) == 0;
    memset(l, 0, sizeof *l);
    l->head = *head;
    l->nothing_hung = nothing_hung;
    return pgs__meta_reopen(&l->meta, pf, head, kept, err);
}

void pgs__ledger_keep(struct pgs__ledger *l, const struct pgs__root *root, struct pgs__meta_kept *kept)
{
    pgs__meta_keep(&l->meta, root, kept);
    kept->nothing_hung = l->nothing_hung;
}

void pgs__ledger_close(struct pgs__ledger *l)
{
    pgs__meta_close(&l->meta);
    pgs__free(l->expired_now);
    memset(l, 0, sizeof *l);
}

static int begin_first(struct pgs__ledger *l, uint64_t version, uint64_t now_ns, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    uint8_t key[KEY_MAX];
    h->version = h->first_version = h->expire_hint = version;
    h->time_ns = l->now_ns = now_ns;
    h->n_kept = 1;
    int rc = pgs__lput_u64(l, key, pgs__meta_key1(key, 'v', version), l->gen, true, err);
    return rc ? rc : pgs__lspace_create(l, err);
}

/* The superseded head becomes a version of its own: it keeps its number, its tags and the time at which it stopped being newest. */
static int begin_version(struct pgs__ledger *l, uint64_t version, uint64_t now_ns, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    uint8_t key[KEY_MAX];
    if (version <= l->head.version)
        return pgs__fail(err, PGS_EBUG, "version %llu after version %llu", (unsigned long long)version,
                         (unsigned long long)l->head.version);
    l->now_ns = now_ns > l->head.time_ns ? now_ns : l->head.time_ns + 1000;
    struct pgs__chain c = {.version = l->head.version,
                           .time_ns = l->head.time_ns,
                           .next_time_ns = l->now_ns,
                           .catalog = l->head.catalog,
                           .n_objects = l->head.n_objects,
                           .n_tags = h->head_tags};
    int rc = pgs__lchain_put(l, l->head.gen, &c, true, err);
    if (rc) return rc;
    h->n_tagged += h->head_tags > 0;
    h->head_tags = 0;
    h->version = version;
    h->time_ns = l->now_ns;
    h->n_kept++;
    return pgs__lput_u64(l, key, pgs__meta_key1(key, 'v', version), l->gen, true, err);
}

/* Maintenance: the version goes on in the new generation; the superseded one is expired at once and lives only while somebody has it pinned. */
static int begin_same(struct pgs__ledger *l, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor cur;
    struct pgs__chain c = {.version = l->head.version,
                           .time_ns = l->head.time_ns,
                           .next_time_ns = l->head.time_ns, /* answers no lookup by time */
                           .catalog = l->head.catalog,
                           .n_objects = l->head.n_objects};
    l->now_ns = l->head.time_ns;
    int rc = pgs__lchain_put(l, l->head.gen, &c, true, err);
    if (!rc) rc = pgs__lexpired_mark(l, l->head.gen, 0, err);
    if (!rc) rc = pgs__lput_u64(l, key, pgs__meta_key1(key, 'v', l->head.version), l->gen, false, err);
    if (rc) return rc;
    rc = pgs__lseek(l, &cur, PGS__SEEK_LT, key, pgs__meta_key1(key, 'v', l->head.version), err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    return pgs__lval_u64(&cur, &l->x_floor, err);
}

int pgs__ledger_begin(struct pgs__ledger *l, bool new_version, uint64_t version, uint64_t now_ns, struct pgs_error *err)
{
    if (l->gen) return pgs__fail(err, PGS_EBUG, "the ledger has begun a generation already");
    if (l->head.gen == 0 && !new_version) return pgs__fail(err, PGS_EBUG, "the first generation makes a version");
    l->gen = l->head.gen + 1;
    l->new_version = new_version;
    l->meta.hdr.gen = l->gen;
    if (l->head.gen == 0) return begin_first(l, version, now_ns, err);
    l->meta.hdr.n_chain++;
    return new_version ? begin_version(l, version, now_ns, err) : begin_same(l, err);
}

/* --- prepare, finish -------------------------------------------------------------------------------------------------------- */
/* Room for the messages of taking the pages that are asked for: one of 2 MiB may leave four entries behind, a run cut out of a free one two. */
static size_t take_slack(uint64_t n_pages)
{
    return 126u + 42u * (size_t)pgs__min_u64(n_pages + 3, 64);
}

/* Every replaced node since the last look into limbo. Doing that may itself fold, and so replace more: the list is fetched anew each time. */
static int bury_nodes(struct pgs__ledger *l, struct pgs_error *err)
{
    size_t n;
    const struct pgs_ptr *dead = pgs__meta_dead(&l->meta, &n);
    while (l->n_dead_done < n) {
        uint64_t page = dead[l->n_dead_done++].page;
        int rc = pgs__lcounter_sub(&l->meta.hdr.pages_meta, 1, "meta pages", err);
        if (!rc) rc = pgs__llimbo_add(l, page, 1, true, err);
        if (rc) return rc;
        dead = pgs__meta_dead(&l->meta, &n);
    }
    return 0;
}

static int bury_record(struct pgs__ledger *l, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    uint8_t key[KEY_MAX];
    int rc = 0;
    if (l->x_pages) {
        h->pages_expired += l->x_pages;
        rc = pgs__lput_u64(l, key, pgs__meta_key1(key, 'x', l->head.gen), l->x_pages, false, err);
        l->x_pages = 0;
    }
    if (rc || l->old_record_done || l->head.gen == 0) return rc;
    l->old_record_done = true;
    rc = pgs__lcounter_sub(&h->pages_meta, l->head.record_pages, "meta pages", err);
    return rc ? rc : pgs__llimbo_add(l, l->head.record.page, l->head.record_pages, true, err);
}

/* The record pages that the messages need now; 0: fold first. One page is the rule. After a fold the messages are only its own (replaced nodes in limbo),
 * and up to four pages are better than another fold. */
static uint64_t record_pages(const struct pgs__ledger *l, bool folded)
{
    if (l->n_record && l->meta.msg_bytes <= PGS__RECORD_ROOM(l->n_record)) return l->n_record;
    size_t need = l->meta.msg_bytes + take_slack(pgs__meta_n_dirty(&l->meta) + 1);
    uint64_t n = pgs__pages_of(need + sizeof(struct pgs__record));
    return n <= (folded ? PGS__RECORD_MAX_PAGES : 1) ? pgs__max_u64(n, l->n_record) : 0;
}

/* Ends: each further round is entered only when burying nodes brought more than four pages of messages, so at least 200 committed nodes were replaced since the last fold, and a node
 * is replaced once. In practice the second fold touches only the leaves of 'm' that the first one made. */
int pgs__ledger_prepare(struct pgs__ledger *l, uint64_t *n_nodes, uint64_t *n_record_pages, struct pgs_error *err)
{
    if (!l->gen) return pgs__fail(err, PGS_EBUG, "prepare without begin");
    int rc = bury_record(l, err);
    bool folded = false;
    for (;;) {
        if (!rc) rc = bury_nodes(l, err);
        if (rc) return rc;
        uint64_t n = record_pages(l, folded);
        if (n) {
            l->n_record = *n_record_pages = n;
            l->n_nodes = *n_nodes = pgs__meta_n_dirty(&l->meta);
            return 0;
        }
        rc = pgs__meta_fold(&l->meta, err);
        folded = true;
    }
}

int pgs__ledger_finish(struct pgs__ledger *l, const struct pgs_pgno *node_pages, void *node_buf,
                       struct pgs_pgno record_page, void *record_buf, struct pgs__root *root, struct pgs_error *err)
{
    struct pgs__record *h = &l->meta.hdr;
    if (!l->n_record || l->n_nodes != pgs__meta_n_dirty(&l->meta))
        return pgs__fail(err, PGS_EBUG, "the meta tree changed after prepare: %llu pages became %llu",
                         (unsigned long long)l->n_nodes, (unsigned long long)pgs__meta_n_dirty(&l->meta));
    h->pages_meta += l->n_nodes + l->n_record;
    struct pgs_ptr record;
    int rc =
        pgs__meta_finish(&l->meta, l->gen, node_pages, node_buf, record_page, l->n_record, record_buf, &record, err);
    if (rc) return rc;
    pgs__page_mark_hashed(l->meta.pf, &record, l->n_record);
    *root = (struct pgs__root){.gen = l->gen,
                               .version = h->version,
                               .time_ns = h->time_ns,
                               .record = record,
                               .record_pages = l->n_record,
                               .catalog = h->catalog,
                               .n_objects = h->n_objects};
    return 0;
}
