/* Pagestone | tree/node — one node: validation, search, and editing of its image.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Search compares four bytes of each key as one big-endian number, taken behind the prefix that all keys of the node share; names
 * are hierarchical, so without skipping that prefix the four bytes would nearly always be equal. They lie in the slots: of the cells
 * only those are touched whose heads equal the wanted one, as a rule one.
 */
#include "libshm/tree/node.h"

#include <stdio.h>

size_t pgs__key_lcp(struct pgs_span a, struct pgs_span b)
{
    const uint8_t *p = a.p, *q = b.p;
    size_t m = a.len < b.len ? a.len : b.len, i = 0;
    while (i < m && p[i] == q[i]) i++;
    return i;
}

struct pgs_span pgs__key_separator(struct pgs_span left, struct pgs_span right)
{
    return (struct pgs_span){right.p, pgs__key_lcp(left, right) + 1};
}

static inline uint32_t head_of(const uint8_t *p, size_t len)
{
    uint32_t v = 0;
    if (PGS_LIKELY(len >= 4)) {
        memcpy(&v, p, 4);
        return __builtin_bswap32(v);
    }
    for (size_t i = 0; i < len; i++) v |= (uint32_t)p[i] << (24 - 8 * i);
    return v;
}

/* Of entry i, for the node's lcp, which its key must have. */
static uint32_t stored_head(const struct pgs__node *nd, unsigned i)
{
    if (i < pgs__node_first(nd)) return 0;
    struct pgs_span key = pgs__node_key(nd, i);
    return head_of((const uint8_t *)key.p + nd->lcp, key.len - nd->lcp);
}

/* --- validation --------------------------------------------------------------------------------------------------------- */

static bool cell_fits(const uint8_t *page, unsigned off, unsigned low, unsigned level)
{
    unsigned head = level ? PGS__INNER_CELL_HEAD : PGS__LEAF_CELL_HEAD;
    if (off < low || off > PGS__NODE_TAIL - head) return false;
    unsigned key_len = pgs__get_u16(page + off);
    unsigned val_len = level ? 0 : pgs__get_u16(page + off + 2);
    if (key_len > PGS__TREE_MAX_KEY || key_len + val_len > PGS__TREE_MAX_CELL) return false;
    return off + head + key_len + val_len <= PGS__NODE_TAIL;
}

static bool child_is_sane(const struct pgs__node *nd, unsigned i, bool image)
{
    struct pgs_ptr ptr = pgs__node_child(nd, i);
    return (ptr.page != 0 && ptr.page < PGS__NODE_PAGE_LIMIT) || (image && pgs__ptr_is_dirty(&ptr));
}

/* The first and the last of ascending keys share it, so all do; then heads may be computed. */
static bool prefixes_are_sane(const struct pgs__node *nd)
{
    unsigned first = pgs__node_first(nd);
    struct pgs_span lo = pgs__node_key(nd, first), hi = pgs__node_key(nd, nd->n - 1u);
    if (nd->lcp > lo.len || nd->lcp > hi.len || memcmp(lo.p, hi.p, nd->lcp) != 0) return false;
    for (unsigned i = 0; i < nd->n; i++)
        if (nd->slot[i].head != stored_head(nd, i)) return false;
    return true;
}

/* The cells lie side by side from low to the birth: from each one's end the next one begins. Otherwise they overlap, and editing an image would
 * tear them. Their offsets and sizes are in bounds. */
static bool cells_tile(const struct pgs__node *nd)
{
    uint64_t starts[PGS_PAGE_SIZE / 64] = {0};
    unsigned head = pgs__node_cell_head(nd), at = nd->low, steps = 0;
    for (unsigned i = 0; i < nd->n; i++) starts[nd->slot[i].off / 64] |= 1ull << (nd->slot[i].off % 64);
    for (; at < PGS__NODE_TAIL; steps++) {
        if (!(starts[at / 64] >> (at % 64) & 1)) return false;
        const uint8_t *cell = (const uint8_t *)nd + at;
        at += head + pgs__get_u16(cell) + (nd->level ? 0u : pgs__get_u16(cell + 2));
    }
    return at == PGS__NODE_TAIL && steps == nd->n;
}

static int validate(const struct pgs__node *nd, bool image)
{
    unsigned n = nd->n, low = nd->low;
    if (nd->magic != PGS__NODE_MAGIC || nd->zero != 0 || nd->level >= PGS__TREE_MAX_DEPTH) return -1;
    if (n < 1 + pgs__node_first(nd) || low > PGS__NODE_TAIL || low < PGS__NODE_HEAD + PGS__NODE_SLOT * n) return -1;
    for (unsigned i = 0; i < n; i++) {
        if (!cell_fits((const uint8_t *)nd, nd->slot[i].off, low, nd->level)) return -1;
        if (nd->level && !child_is_sane(nd, i, image)) return -1;
        if (i == 0) {
            if (nd->level && pgs__node_key(nd, 0).len != 0) return -1;
        } else if (pgs__key_cmp(pgs__node_key(nd, i - 1), pgs__node_key(nd, i)) >= 0) {
            return -1;
        }
    }
    return cells_tile(nd) && prefixes_are_sane(nd) ? 0 : -1;
}

int pgs__node_validate(const void *bytes)
{
    return validate(bytes, false);
}

int pgs__node_validate_image(const struct pgs__node *nd)
{
    return validate(nd, true);
}

bool pgs__node_in_range(const struct pgs__node *nd, struct pgs_span lo, struct pgs_span hi)
{
    if (lo.p && pgs__key_cmp(pgs__node_key(nd, pgs__node_first(nd)), lo) < 0) return false;
    return !hi.p || pgs__key_cmp(pgs__node_key(nd, nd->n - 1u), hi) < 0;
}

/* --- search --------------------------------------------------------------------------------------------------------------- */

/* First slot in [lo, hi) whose head is >= want; without branches that depend on keys. */
static inline unsigned first_head(const struct pgs__node *nd, unsigned lo, unsigned hi, uint32_t want)
{
    unsigned count = hi - lo;
    if (count == 0) return lo;
    while (count > 1) {
        unsigned half = count / 2;
        lo = nd->slot[lo + half - 1].head < want ? lo + half : lo;
        count -= half;
    }
    return lo + (nd->slot[lo].head < want);
}

/* Lower bound among entries [lo, hi), whose heads do not decide. */
static unsigned search_keys(const struct pgs__node *nd, unsigned lo, unsigned hi, struct pgs_span key, bool *found)
{
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        int c = pgs__key_cmp(pgs__node_key(nd, mid), key);
        if (c == 0) {
            *found = true;
            return mid;
        }
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

unsigned pgs__node_search(const struct pgs__node *nd, const void *key, size_t key_len, bool *found)
{
    unsigned first = pgs__node_first(nd), lcp = nd->lcp, n = nd->n;
    const uint8_t *bytes = key;
    *found = false;
    if (lcp) {
        size_t m = key_len < lcp ? key_len : lcp;
        int c = m ? memcmp(key, pgs__node_key(nd, first).p, m) : 0;
        if (c > 0) return n;
        if (c < 0 || key_len < lcp) return first;
        bytes += lcp;
    }
    uint32_t want = head_of(bytes, key_len - lcp);
    unsigned lo = first_head(nd, first, n, want), hi = lo + 1;
    if (lo == n || nd->slot[lo].head != want) return lo;
    if (hi < n && nd->slot[hi].head == want) hi = want == UINT32_MAX ? n : first_head(nd, hi, n, want + 1);
    return search_keys(nd, lo, hi, (struct pgs_span){key, key_len}, found);
}

unsigned pgs__node_find_child(const struct pgs__node *nd, const void *key, size_t key_len)
{
    bool found;
    unsigned i = pgs__node_search(nd, key, key_len, &found);
    return found ? i : i - 1; /* i >= 1 in inner nodes */
}

/* --- images ----------------------------------------------------------------------------------------------------------------- */

void pgs__node_init(struct pgs__node *nd, int kind, int level)
{
    memset(nd, 0, sizeof *nd);
    nd->magic = PGS__NODE_MAGIC;
    nd->kind = (uint8_t)kind;
    nd->level = (uint8_t)level;
    nd->low = PGS__NODE_TAIL;
}

static void put_u16(uint8_t *p, size_t v)
{
    uint16_t x = (uint16_t)v;
    memcpy(p, &x, 2);
}

static void copy_span(uint8_t *to, struct pgs_span s)
{
    if (s.len) memcpy(to, s.p, s.len);
}

/* Write the cell below the others and set slot i, which must be free. */
static void write_cell(struct pgs__node *nd, unsigned i, struct pgs_span key, struct pgs_span payload)
{
    unsigned head = pgs__node_cell_head(nd);
    unsigned size = head + (unsigned)key.len + (nd->level ? 0 : (unsigned)payload.len);
    unsigned off = nd->low - size;
    uint8_t *cell = (uint8_t *)nd + off;
    put_u16(cell, key.len);
    copy_span(cell + head, key);
    if (nd->level) {
        memcpy(cell + 2, payload.p, sizeof(struct pgs_ptr));
    } else {
        put_u16(cell + 2, payload.len);
        copy_span(cell + head + key.len, payload);
    }
    nd->low = (uint16_t)off;
    nd->slot[i].off = (uint16_t)off;
}

/* Change lcp and renew the heads. */
static void set_lcp(struct pgs__node *nd, size_t lcp)
{
    nd->lcp = (uint16_t)lcp;
    for (unsigned i = 0; i < nd->n; i++) nd->slot[i].head = stored_head(nd, i);
}

void pgs__node_insert(struct pgs__node *nd, unsigned i, const struct pgs__item *it)
{
    unsigned first = pgs__node_first(nd);
    pgs_assert(pgs__node_used(nd) + pgs__item_size(it, nd->level) <= PGS__NODE_CAP);
    pgs_assert(i <= nd->n && i >= first);
    size_t lcp = it->key.len;
    if (nd->n > first) {
        struct pgs_span other = pgs__node_key(nd, first);
        other.len = nd->lcp;
        lcp = pgs__key_lcp(other, it->key);
    }
    memmove(&nd->slot[i + 1], &nd->slot[i], PGS__NODE_SLOT * (nd->n - i));
    write_cell(nd, i, it->key, it->payload);
    nd->n++;
    if (lcp != nd->lcp)
        set_lcp(nd, lcp);
    else
        nd->slot[i].head = stored_head(nd, i);
}

void pgs__node_remove(struct pgs__node *nd, unsigned i)
{
    if (nd->level && i == 0 && nd->n > 1) {
        struct pgs_ptr next = pgs__node_child(nd, 1);
        pgs__node_set_child(nd, 0, &next);
        i = 1;
    }
    uint8_t *page = (uint8_t *)nd;
    unsigned off = nd->slot[i].off, low = nd->low, head = pgs__node_cell_head(nd);
    unsigned size = head + pgs__get_u16(page + off) + (nd->level ? 0u : pgs__get_u16(page + off + 2));
    memmove(page + low + size, page + low, off - low);
    memset(page + low, 0, size);
    memmove(&nd->slot[i], &nd->slot[i + 1], PGS__NODE_SLOT * (nd->n - i - 1u));
    nd->n--;
    memset(&nd->slot[nd->n], 0, PGS__NODE_SLOT);
    for (unsigned j = 0; j < nd->n; j++)
        nd->slot[j].off = (uint16_t)(nd->slot[j].off + (nd->slot[j].off < off ? size : 0));
    nd->low = (uint16_t)(low + size);
    if (nd->n <= pgs__node_first(nd)) nd->lcp = 0;
}

unsigned pgs__node_gather(const struct pgs__node *nd, struct pgs__item *items)
{
    for (unsigned i = 0; i < nd->n; i++) {
        items[i].key = pgs__node_key(nd, i);
        items[i].payload =
            nd->level ? (struct pgs_span){pgs__node_cell(nd, i) + 2, sizeof(struct pgs_ptr)} : pgs__node_val(nd, i);
    }
    return nd->n;
}

static size_t longest_lcp(const struct pgs__node *nd)
{
    unsigned first = pgs__node_first(nd);
    return nd->n <= first ? 0 : pgs__key_lcp(pgs__node_key(nd, first), pgs__node_key(nd, nd->n - 1u));
}

void pgs__node_tighten(struct pgs__node *nd)
{
    size_t lcp = longest_lcp(nd);
    if (lcp != nd->lcp) set_lcp(nd, lcp);
}

void pgs__node_build(struct pgs__node *nd, int kind, int level, const struct pgs__item *items, unsigned n)
{
    pgs_assert(pgs__items_size(items, n, level) <= PGS__NODE_CAP);
    pgs__node_init(nd, kind, level);
    for (unsigned i = 0; i < n; i++) {
        struct pgs_span key = items[i].key;
        if (level && i == 0) key.len = 0;
        write_cell(nd, i, key, items[i].payload);
    }
    nd->n = (uint16_t)n;
    set_lcp(nd, longest_lcp(nd));
}

unsigned pgs__items_size(const struct pgs__item *items, unsigned n, int level)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < n; i++) sum += pgs__item_size(&items[i], level);
    return level && n ? sum - (unsigned)items[0].key.len : sum;
}

unsigned pgs__items_cut(const struct pgs__item *items, unsigned n, int level)
{
    unsigned total = pgs__items_size(items, n, level), left = 0, best = 0, best_min = 0;
    for (unsigned k = 1; k < n; k++) {
        left += pgs__item_size(&items[k - 1], level) - (level && k == 1 ? (unsigned)items[0].key.len : 0);
        unsigned right = total - left - (level ? (unsigned)items[k].key.len : 0);
        unsigned smaller = left < right ? left : right, larger = left < right ? right : left;
        if (larger <= PGS__NODE_CAP && smaller > best_min) {
            best_min = smaller;
            best = k;
        }
    }
    PGS_BUG_ON(best == 0); /* cells are limited so that a cut always exists */
    return best;
}

/* --- dump --------------------------------------------------------------------------------------------------------------------- */

static size_t dump_bytes(char *buf, size_t len, struct pgs_span s)
{
    const uint8_t *p = s.p;
    size_t at = 0, shown = s.len < 40 ? s.len : 40;
    for (size_t i = 0; i < shown && at + 5 < len; i++) {
        bool plain = p[i] >= 0x20 && p[i] < 0x7f && p[i] != '\\';
        at +=
            (size_t)(plain ? snprintf(buf + at, len - at, "%c", p[i]) : snprintf(buf + at, len - at, "\\x%02x", p[i]));
    }
    if (shown < s.len && at + 4 < len) at += (size_t)snprintf(buf + at, len - at, "...");
    return at;
}

static size_t dump_entry(char *buf, size_t len, const struct pgs__node *nd, unsigned i)
{
    size_t at = (size_t)snprintf(buf, len, "  %u \"", i);
    if (at >= len) return len - 1;
    at += dump_bytes(buf + at, len - at, pgs__node_key(nd, i));
    int more;
    if (nd->level) {
        struct pgs_ptr c = pgs__node_child(nd, i);
        more = snprintf(buf + at, len - at, "\" -> page %llu birth %llu xxh %016llx\n", (unsigned long long)c.page,
                        (unsigned long long)c.birth, (unsigned long long)c.xxh);
    } else {
        more = snprintf(buf + at, len - at, "\" %zu bytes\n", pgs__node_val(nd, i).len);
    }
    at += (size_t)more;
    return at < len ? at : len - 1;
}

void pgs__node_dump(const void *node, char *buf, size_t len)
{
    const struct pgs__node *nd = node;
    if (len == 0) return;
    bool sane = pgs__node_validate(node) == 0;
    int head = snprintf(buf, len, "node kind %u level %u n %u low %u lcp %u birth %llu%s\n", nd->kind, nd->level, nd->n,
                        nd->low, nd->lcp, (unsigned long long)nd->birth, sane ? "" : " (not a valid node)");
    size_t at = (size_t)head;
    for (unsigned i = 0; sane && i < nd->n && at + 8 < len; i++) at += dump_entry(buf + at, len - at, nd, i);
}
