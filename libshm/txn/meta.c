/* Pagestone | txn/meta — the meta tree with the head record's messages in front: one ordered map.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The messages are an index sorted by key over bytes that lie in the record page (as opened) or in an arena (as changed by this commit). A lookup
 * is a binary search there and, if it finds nothing, one in the tree; a cursor walks both and lets the message win. A deletion is a message too, unless
 * the message that it deletes is known to have nothing below it ("fresh").
 *
 * The record is input. Its hash proves only that it is what somebody wrote: each length is checked against the room left, keys against the limits of the
 * tree and against their order, before anything else sees them.
 */
#include "libshm/txn/meta.h"

#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"

#define FOLD_AT 512u
#define MSG_HEAD 4u
#define ARENA_BLOCK 8192u
#define ARENA_FIRST 992u /* enough for a small commit, and a size that malloc keeps at hand */

/* --- arena: bytes of changed messages; all go at a fold or at close ------------------------------------------------------- */
struct block {
    struct block *next;
    size_t used, size;
    uint8_t bytes[];
};
struct pgs__arena {
    struct block *head;
};

static void arena_clear(struct pgs__arena *a, bool keep_one)
{
    while (a->head && (a->head->next || !keep_one)) {
        struct block *b = a->head;
        a->head = b->next;
        pgs__free(b);
    }
    if (a->head) a->head->used = 0;
}

static void *arena_alloc(struct pgs__arena *a, size_t n)
{
    if (!a->head || a->head->size - a->head->used < n) {
        size_t least = a->head ? ARENA_BLOCK : ARENA_FIRST, size = n > least ? n : least;
        struct block *b = pgs__malloc(sizeof *b + size);
        if (!b) return NULL;
        *b = (struct block){.next = a->head, .size = size};
        a->head = b;
    }
    void *p = a->head->bytes + a->head->used;
    a->head->used += n;
    return p;
}

/* --- keys ------------------------------------------------------------------------------------------------------------------ */
size_t pgs__meta_key_num(uint8_t *buf, uint64_t a)
{
    unsigned n = a ? 8u - (unsigned)__builtin_clzll(a) / 8u : 0u;
    uint8_t be[8];
    pgs__put_be64(be, a);
    buf[0] = (uint8_t)n;
    memcpy(buf + 1, be + 8 - n, n);
    return 1 + n;
}

size_t pgs__meta_key1(uint8_t *buf, char letter, uint64_t a)
{
    buf[0] = (uint8_t)letter;
    return 1 + pgs__meta_key_num(buf + 1, a);
}

size_t pgs__meta_key2(uint8_t *buf, char letter, uint64_t a, uint64_t b)
{
    size_t n = pgs__meta_key1(buf, letter, a);
    return n + pgs__meta_key_num(buf + n, b);
}

size_t pgs__meta_key3(uint8_t *buf, char letter, uint64_t a, uint64_t b, uint64_t c)
{
    size_t n = pgs__meta_key2(buf, letter, a, b);
    return n + pgs__meta_key_num(buf + n, c);
}

static int key_cmp(const void *a, size_t a_len, const void *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

/* The first 8 bytes as a number that orders like them; zeros follow a shorter key, so equal prefixes say nothing. */
static uint64_t key_prefix(const uint8_t *key, size_t len)
{
    if (PGS_LIKELY(len >= 8)) return pgs__get_be64(key);
    uint64_t v = 0;
    for (size_t i = 0; i < len; i++) v |= (uint64_t)key[i] << (56 - 8 * i);
    return v;
}

static int msg_cmp(const struct pgs__msg *g, uint64_t prefix, const void *key, size_t len)
{
    if (g->prefix != prefix) return g->prefix < prefix ? -1 : 1;
    return key_cmp(g->key, g->key_len, key, len);
}

static size_t msg_size(const struct pgs__msg *g)
{
    return MSG_HEAD + g->key_len + (g->val_len == PGS__MSG_DELETED ? 0u : g->val_len);
}

/* --- opening --------------------------------------------------------------------------------------------------------------- */
static int parse_message(struct pgs__msg *g, const uint8_t *p, size_t left, struct pgs_error *err)
{
    if (left < MSG_HEAD) return pgs__fail_corrupt(err, "the head record", "a message begins beyond the end");
    uint16_t raw = pgs__get_u16(p), val_len = pgs__get_u16(p + 2), key_len = raw & (uint16_t)~PGS__MSG_FRESH;
    size_t body = (size_t)key_len + (val_len == PGS__MSG_DELETED ? 0 : val_len);
    if (key_len == 0 || key_len > PGS__TREE_MAX_KEY || body > PGS__TREE_MAX_CELL || body > left - MSG_HEAD)
        return pgs__fail_corrupt(err, "the head record", "a message of %u + %u bytes does not fit", key_len, val_len);
    *g = (struct pgs__msg){.key = p + MSG_HEAD,
                           .val = p + MSG_HEAD + key_len,
                           .prefix = key_prefix(p + MSG_HEAD, key_len),
                           .key_len = key_len,
                           .val_len = val_len,
                           .fresh = (raw & PGS__MSG_FRESH) != 0};
    return 0;
}

static int parse_messages(struct pgs__meta *m, const uint8_t *p, struct pgs_error *err)
{
    size_t left = m->hdr.msg_bytes;
    for (size_t i = 0; i < m->hdr.n_msgs; i++) {
        struct pgs__msg *g = &m->msgs[i];
        int rc = parse_message(g, p, left, err);
        if (rc) return rc;
        if (i > 0 && msg_cmp(&g[-1], g->prefix, g->key, g->key_len) >= 0)
            return pgs__fail_corrupt(err, "the head record", "messages are out of order");
        p += msg_size(g);
        left -= msg_size(g);
        m->n_msgs = i + 1;
    }
    if (left) return pgs__fail_corrupt(err, "the head record", "%zu bytes after the last message", left);
    m->msg_bytes = m->hdr.msg_bytes;
    return 0;
}

static int check_header(const struct pgs__record *h, const struct pgs__root *root, struct pgs_error *err)
{
    if (h->magic != PGS__RECORD_MAGIC) return pgs__fail_corrupt(err, "the head record", "it does not begin as one");
    if (h->gen != root->gen || h->n_pages != root->record_pages || h->version != root->version)
        return pgs__fail_corrupt(err, "the head record", "it belongs to generation %llu, not %llu",
                                 (unsigned long long)h->gen, (unsigned long long)root->gen);
    if (h->msg_bytes > PGS__RECORD_ROOM(h->n_pages) || h->n_msgs > h->msg_bytes / 5)
        return pgs__fail_corrupt(err, "the head record", "%u messages of %u bytes do not fit", h->n_msgs, h->msg_bytes);
    if (h->hw_pages % PGS_CHUNK_PAGES || h->hw_pages >> 50)
        return pgs__fail_corrupt(err, "the head record", "the high-water mark %llu is impossible",
                                 (unsigned long long)h->hw_pages);
    return 0;
}

int pgs__meta_open(struct pgs__meta *m, struct pgs__pagefile *pf, const struct pgs__root *root, struct pgs_error *err)
{
    memset(m, 0, sizeof *m);
    if (root->record_pages < 1 || root->record_pages > PGS__RECORD_MAX_PAGES)
        return pgs__fail_corrupt(err, "the head record", "%llu pages", (unsigned long long)root->record_pages);
    const void *bytes;
    int rc = pgs__page_verified(pf, &root->record, root->record_pages, "record", NULL, &bytes, err);
    if (rc) return pgs__name_object(err, rc, "the head record", sizeof "the head record" - 1);
    memcpy(&m->hdr, bytes, sizeof m->hdr);
    rc = check_header(&m->hdr, root, err);
    if (rc) return rc;
    m->pf = pf;
    m->tree = (struct pgs__tree){.pf = pf, .kind = PGS__TREE_META, .root = m->hdr.meta};
    if (m->hdr.n_msgs == 0) return 0;
    m->cap = m->hdr.n_msgs + 32u; /* a small commit adds about twenty */
    m->msgs = pgs__malloc(m->cap * sizeof *m->msgs);
    if (!m->msgs) return pgs__fail(err, PGS_ENOMEM, "out of memory for %u messages", m->hdr.n_msgs);
    rc = parse_messages(m, (const uint8_t *)bytes + sizeof m->hdr, err);
    if (rc) pgs__meta_close(m);
    return rc;
}

void pgs__meta_init_empty(struct pgs__meta *m, struct pgs__pagefile *pf)
{
    memset(m, 0, sizeof *m);
    m->pf = pf;
    m->hdr.magic = PGS__RECORD_MAGIC;
    m->tree = (struct pgs__tree){.pf = pf, .kind = PGS__TREE_META};
}

void pgs__meta_close(struct pgs__meta *m)
{
    pgs__edit_free(m->edit);
    if (m->arena) arena_clear(m->arena, false);
    pgs__free(m->arena);
    pgs__free(m->msgs);
    memset(m, 0, sizeof *m);
}

void pgs__meta_keep(struct pgs__meta *m, const struct pgs__root *root, struct pgs__meta_kept *k)
{
    pgs__meta_kept_free(k);
    const uint8_t *p = pgs__pages_at(m->pf, (struct pgs_pgno){root->record.page}, root->record_pages);
    if (!p) return;
    p += sizeof m->hdr;
    for (size_t i = 0; i < m->n_msgs; i++) { /* as they lie in the record */
        struct pgs__msg *g = &m->msgs[i];
        g->key = p + MSG_HEAD;
        g->val = g->key + g->key_len;
        p += msg_size(g);
    }
    *k = (struct pgs__meta_kept){.valid = true,
                                 .record = root->record,
                                 .hdr = m->hdr,
                                 .msgs = m->msgs,
                                 .n_msgs = m->n_msgs,
                                 .cap = m->cap,
                                 .arena = m->arena};
    if (m->arena) arena_clear(m->arena, true);
    m->msgs = NULL;
    m->n_msgs = m->cap = 0;
    m->arena = NULL;
}

int pgs__meta_reopen(struct pgs__meta *m, struct pgs__pagefile *pf, const struct pgs__root *root,
                     struct pgs__meta_kept *k, struct pgs_error *err)
{
    const struct pgs_ptr *a = &k->record, *b = &root->record;
    if (!k->valid || a->page != b->page || a->birth != b->birth || a->xxh != b->xxh || k->hdr.gen != root->gen) {
        pgs__meta_kept_free(k);
        return pgs__meta_open(m, pf, root, err);
    }
    *m = (struct pgs__meta){.pf = pf,
                            .hdr = k->hdr,
                            .tree = {.pf = pf, .kind = PGS__TREE_META, .root = k->hdr.meta},
                            .msgs = k->msgs,
                            .n_msgs = k->n_msgs,
                            .cap = k->cap,
                            .msg_bytes = k->hdr.msg_bytes,
                            .arena = k->arena};
    memset(k, 0, sizeof *k);
    return 0;
}

void pgs__meta_kept_free(struct pgs__meta_kept *k)
{
    if (k->arena) arena_clear(k->arena, false);
    pgs__free(k->arena);
    pgs__free(k->msgs);
    memset(k, 0, sizeof *k);
}

/* --- points ---------------------------------------------------------------------------------------------------------------- */
/* Index of the first message whose key is ≥ key; *equal says whether it is the key. */
static size_t msg_lower(const struct pgs__meta *m, const void *key, size_t len, bool *equal)
{
    size_t lo = 0, hi = m->n_msgs;
    uint64_t prefix = key_prefix(key, len);
    *equal = false;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = msg_cmp(&m->msgs[mid], prefix, key, len);
        if (c == 0) {
            *equal = true;
            return mid;
        }
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int pgs__meta_get(const struct pgs__meta *m, const void *key, size_t len, struct pgs_span *val, struct pgs_error *err)
{
    bool equal;
    size_t i = msg_lower(m, key, len, &equal);
    if (!equal) return pgs__tree_get(&m->tree, key, len, val, err);
    const struct pgs__msg *g = &m->msgs[i];
    if (g->val_len == PGS__MSG_DELETED) return -PGS_ENOENT;
    *val = (struct pgs_span){g->val, g->val_len};
    return 0;
}

/* Bytes of a message as it will be stored. g has val_len and fresh. */
static int msg_bytes_of(struct pgs__meta *m, const void *key, size_t len, const void *val, size_t val_len,
                        struct pgs__msg *g, struct pgs_error *err)
{
    if (!m->arena && !(m->arena = pgs__calloc(1, sizeof *m->arena))) return pgs__fail(err, PGS_ENOMEM, "out of memory");
    uint8_t *p = arena_alloc(m->arena, MSG_HEAD + len + val_len);
    if (!p) return pgs__fail(err, PGS_ENOMEM, "out of memory for a message");
    uint16_t raw = (uint16_t)(len | (g->fresh ? PGS__MSG_FRESH : 0u));
    memcpy(p, &raw, 2);
    memcpy(p + 2, &g->val_len, 2);
    p += MSG_HEAD;
    memcpy(p, key, len);
    if (val_len) memcpy(p + len, val, val_len);
    g->key = p;
    g->val = p + len;
    g->prefix = key_prefix(p, len);
    g->key_len = (uint16_t)len;
    return 0;
}

/* Insert or replace one message. deleted: a tombstone. */
static int msg_set(struct pgs__meta *m, const void *key, size_t len, const void *val, size_t val_len, bool deleted,
                   bool fresh, struct pgs_error *err)
{
    if (len == 0 || len > PGS__TREE_MAX_KEY || len + val_len > PGS__TREE_MAX_CELL)
        return pgs__fail(err, PGS_E2BIG, "a meta entry of %zu + %zu bytes", len, val_len);
    int rc = m->n_msgs > FOLD_AT ? pgs__meta_fold(m, err) : 0;
    if (rc) return rc;
    bool equal;
    size_t i = msg_lower(m, key, len, &equal);
    struct pgs__msg g = {.val_len = deleted ? PGS__MSG_DELETED : (uint16_t)val_len};
    g.fresh = equal ? m->msgs[i].fresh : fresh;
    if (!equal && pgs__grow(&m->msgs, &m->cap, m->n_msgs + 1, sizeof *m->msgs))
        return pgs__fail(err, PGS_ENOMEM, "out of memory for messages");
    rc = msg_bytes_of(m, key, len, val, val_len, &g, err);
    if (rc) return rc;
    if (equal) {
        m->msg_bytes -= msg_size(&m->msgs[i]);
    } else {
        memmove(m->msgs + i + 1, m->msgs + i, (m->n_msgs - i) * sizeof *m->msgs);
        m->n_msgs++;
    }
    m->msgs[i] = g;
    m->msg_bytes += msg_size(&g);
    return 0;
}

int pgs__meta_put(struct pgs__meta *m, const void *key, size_t len, const void *val, size_t val_len,
                  struct pgs_error *err)
{
    return msg_set(m, key, len, val, val_len, false, false, err);
}

int pgs__meta_add(struct pgs__meta *m, const void *key, size_t len, const void *val, size_t val_len,
                  struct pgs_error *err)
{
    return msg_set(m, key, len, val, val_len, false, true, err);
}

int pgs__meta_del(struct pgs__meta *m, const void *key, size_t len, struct pgs_error *err)
{
    bool equal;
    size_t i = msg_lower(m, key, len, &equal);
    if (equal && m->msgs[i].fresh) { /* nothing below: the message was all there is */
        m->msg_bytes -= msg_size(&m->msgs[i]);
        memmove(m->msgs + i, m->msgs + i + 1, (m->n_msgs - i - 1) * sizeof *m->msgs);
        m->n_msgs--;
        return 0;
    }
    return msg_set(m, key, len, NULL, 0, true, false, err);
}

/* --- cursors --------------------------------------------------------------------------------------------------------------- */
#define NO_MSG SIZE_MAX

static bool has_msg(const struct pgs__meta_cursor *c)
{
    return c->msg < c->m->n_msgs; /* NO_MSG is larger than any count */
}

static void msg_step(struct pgs__meta_cursor *c)
{
    c->msg += c->forward ? 1 : SIZE_MAX; /* 0 - 1 is NO_MSG */
}

static int tree_step(struct pgs__meta_cursor *c, struct pgs_error *err)
{
    int rc = c->forward ? pgs__cursor_next(&c->tree, err) : pgs__cursor_prev(&c->tree, err);
    c->tree_on = rc == 0;
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* Both sides stand on their first entry in the direction of travel: choose the nearer one, pass over deleted ones. Where both hold the key, the tree's side moves on, so
 * that a step moves exactly one side. */
static int settle(struct pgs__meta_cursor *c, struct pgs_error *err)
{
    while (has_msg(c) || c->tree_on) {
        const struct pgs__msg *g = has_msg(c) ? &c->m->msgs[c->msg] : NULL;
        struct pgs_span key, val;
        int side = -1; /* < 0: the message comes first, > 0: the tree's entry, 0: the same key */
        if (c->tree_on) {
            pgs__cursor_entry(&c->tree, &key, &val);
            side = g ? key_cmp(g->key, g->key_len, key.p, key.len) : 1;
            if (g && !c->forward) side = -side;
        }
        if (side > 0) {
            c->on_msg = false;
            c->key = key;
            c->val = val;
            return 0;
        }
        int rc = side == 0 ? tree_step(c, err) : 0;
        if (rc) return rc;
        if (g->val_len != PGS__MSG_DELETED) {
            c->on_msg = true;
            c->key = (struct pgs_span){g->key, g->key_len};
            c->val = (struct pgs_span){g->val, g->val_len};
            return 0;
        }
        msg_step(c);
    }
    return -PGS_ENOENT;
}

static size_t msg_seek(const struct pgs__meta *m, enum pgs__seek how, const void *key, size_t len)
{
    if (how == PGS__SEEK_FIRST) return 0;
    if (how == PGS__SEEK_LAST) return m->n_msgs - 1; /* NO_MSG when there is none */
    bool equal;
    size_t i = msg_lower(m, key, len, &equal);
    switch (how) {
    case PGS__SEEK_GT:
        return i + equal;
    case PGS__SEEK_LE:
        return equal ? i : i - 1;
    case PGS__SEEK_LT:
        return i - 1;
    default:
        return i;
    }
}

int pgs__meta_seek(struct pgs__meta_cursor *c, const struct pgs__meta *m, enum pgs__seek how, const void *key,
                   size_t len, struct pgs_error *err)
{
    c->m = m;
    c->forward = how == PGS__SEEK_GE || how == PGS__SEEK_GT || how == PGS__SEEK_FIRST;
    c->msg = msg_seek(m, how, key, len);
    int rc = pgs__cursor_seek(&c->tree, &m->tree, how, key, len, err);
    c->tree_on = rc == 0;
    if (rc && rc != -PGS_ENOENT) return rc;
    return settle(c, err);
}

int pgs__meta_seek_new(struct pgs__meta_cursor *c, const struct pgs__meta *m, enum pgs__seek how, const void *key,
                       size_t len, struct pgs_error *err)
{
    if (m->edit) return pgs__meta_seek(c, m, how, key, len, err);
    c->m = m;
    c->forward = how == PGS__SEEK_GE || how == PGS__SEEK_GT || how == PGS__SEEK_FIRST;
    c->msg = msg_seek(m, how, key, len);
    c->tree_on = false;
    return settle(c, err);
}

/* One step in direction `forward`. Turning round seeks again: each side must stand on its own nearest entry. */
static int step(struct pgs__meta_cursor *c, bool forward, struct pgs_error *err)
{
    if (c->forward != forward)
        return pgs__meta_seek(c, c->m, forward ? PGS__SEEK_GT : PGS__SEEK_LT, c->key.p, c->key.len, err);
    if (c->on_msg) {
        msg_step(c);
    } else {
        int rc = tree_step(c, err);
        if (rc) return rc;
    }
    return settle(c, err);
}

int pgs__meta_next(struct pgs__meta_cursor *c, struct pgs_error *err)
{
    return step(c, true, err);
}

int pgs__meta_prev(struct pgs__meta_cursor *c, struct pgs_error *err)
{
    return step(c, false, err);
}

/* --- folding and writing --------------------------------------------------------------------------------------------------- */
int pgs__meta_fold(struct pgs__meta *m, struct pgs_error *err)
{
    if (!m->edit) {
        m->edit = pgs__edit_new(m->pf, PGS__TREE_META, &m->hdr.meta);
        if (!m->edit) return pgs__fail(err, PGS_ENOMEM, "out of memory for an edit of the meta tree");
        m->tree.edit = m->edit;
    }
    for (size_t i = 0; i < m->n_msgs; i++) {
        const struct pgs__msg *g = &m->msgs[i];
        int rc;
        if (g->val_len != PGS__MSG_DELETED) {
            rc = pgs__edit_put(m->edit, g->key, g->key_len, g->val, g->val_len, err);
        } else {
            rc = pgs__edit_del(m->edit, g->key, g->key_len, err);
            if (rc == -PGS_ENOENT) rc = 0;
        }
        if (rc) return rc; /* the commit fails as a whole: half a fold is never seen */
    }
    m->n_folded += m->n_msgs;
    m->n_msgs = 0;
    m->msg_bytes = 0;
    if (m->arena) arena_clear(m->arena, true);
    return 0;
}

uint64_t pgs__meta_n_dirty(const struct pgs__meta *m)
{
    return m->edit ? pgs__edit_n_dirty(m->edit) : 0;
}

const struct pgs_ptr *pgs__meta_dead(const struct pgs__meta *m, size_t *n)
{
    *n = 0;
    return m->edit ? pgs__edit_dead(m->edit, n) : NULL;
}

/* Most messages lie as in the record before, one behind the other, and are copied with their neighbours. */
static uint8_t *store_messages(const struct pgs__meta *m, uint8_t *p)
{
    for (size_t i = 0, k; i < m->n_msgs; i = k) {
        const uint8_t *from = m->msgs[i].key - MSG_HEAD, *end = from + msg_size(&m->msgs[i]);
        for (k = i + 1; k < m->n_msgs && m->msgs[k].key == end + MSG_HEAD; k++) end += msg_size(&m->msgs[k]);
        memcpy(p, from, (size_t)(end - from));
        p += end - from;
    }
    return p;
}

int pgs__meta_finish(struct pgs__meta *m, pgs_gen_t birth, const struct pgs_pgno *node_pages, void *node_buf,
                     struct pgs_pgno record_page, uint64_t record_pages, void *record_buf, struct pgs_ptr *record,
                     struct pgs_error *err)
{
    if (record_pages < 1 || record_pages > PGS__RECORD_MAX_PAGES || m->msg_bytes > PGS__RECORD_ROOM(record_pages))
        return pgs__fail(err, PGS_EBUG, "%zu bytes of messages do not fit a record of %llu pages", m->msg_bytes,
                         (unsigned long long)record_pages);
    if (m->edit && !pgs__edit_is_clean(m->edit)) {
        int rc = pgs__edit_finish(m->edit, birth, node_pages, node_buf, &m->hdr.meta, err);
        if (rc) return rc;
    }
    m->hdr.n_pages = (uint32_t)record_pages;
    m->hdr.n_msgs = (uint32_t)m->n_msgs;
    m->hdr.msg_bytes = (uint32_t)m->msg_bytes;
    uint8_t *p = record_buf, *end = p + record_pages * PGS_PAGE_SIZE;
    memcpy(p, &m->hdr, sizeof m->hdr);
    p += sizeof m->hdr;
    p = store_messages(m, p);
    memset(p, 0, (size_t)(end - p));
    *record = (struct pgs_ptr){record_page.n, birth, pgs__hash(record_buf, record_pages * PGS_PAGE_SIZE)};
    return 0;
}
