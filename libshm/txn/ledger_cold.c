/* Pagestone | txn/ledger_cold — the table of compressed blocks: 'z' slot -> block, 'Z' -> the next slot and what all blocks occupy.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Pages of the image are born, die, are shared and revive like pages of the file, by the same code (ledger_share.c, ledger_dead.c). Two things differ:
 *
 *   - no counter of pages (dead, limbo, expired) has them in it: they occupy nothing;
 *   - where a page of the file goes from a deadlist to limbo, a page of the image takes one off `live` of its slot. The last one takes the slot out of the table, and the block's pages go to limbo.
 *
 *     C1  live = pages of the slot in the head (each once) + pages of it in deadlists. So it changes when a block is made and when pages leave the deadlists for good, and nowhere else.
 *     C2  A slot that is not in the table is needed by nobody.
 *     C3  An entry never changes but for `live`.
 *
 * Numbers below `next` that have no entry will never have one: the pager lets the kernel keep zeros for them, and for no others. Hence pgs__ledger_cold_seal: so that what the kernel reads ahead does not reach
 * into numbers that are still to be given out.
 *
 * A slot's number is never given out again while anybody lives who may know it: a store falls back to an older root only when nobody has it open. Beyond that, the first block of each boot skips some SKIP numbers (`tag` says
 * how many), so that a root to which two boots fall back does not make both begin at one number.
 */
#include "libshm/platform/inject.h"
#include "libshm/txn/ledger_impl.h"

#define SKIP (1ull << 24)
#define LLU(x) ((unsigned long long)(x))

/* --- entries ------------------------------------------------------------------------------------------------------------------- */
static int slot_bad(uint64_t slot, const char *what, struct pgs_error *err)
{
    return pgs__fail_corrupt(err, "the ledger", "compressed block %llu %s", LLU(slot), what);
}

static int decode(const struct pgs__ledger *l, uint64_t slot, struct pgs_span val, struct pgs__cold_block *out,
                  struct pgs_error *err)
{
    uint64_t hw = l->meta.hdr.hw_pages;
    if (val.len != sizeof *out) return slot_bad(slot, "has an entry of a wrong size", err);
    memcpy(out, val.p, sizeof *out);
    uint64_t n = pgs__pages_of(out->z_bytes);
    if (slot >= PGS__COLD_SLOTS || !pgs__cold_block_sane(out)) return slot_bad(slot, "is impossible", err);
    if (n > hw || out->page > hw - n || out->page == PGS__SUPER_PAGE_0 ||
        (out->page <= PGS__SUPER_PAGE_1 && out->page + n > PGS__SUPER_PAGE_1))
        return slot_bad(slot, "lies beyond the file", err);
    return 0;
}

int pgs__ledger_cold_get(struct pgs__ledger *l, uint64_t slot, struct pgs__cold_block *out, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs_span val;
    l->n_touched++;
    int rc = pgs__meta_get(&l->meta, key, pgs__meta_key1(key, 'z', slot), &val, err);
    return rc ? rc : decode(l, slot, val, out, err);
}

int pgs__ledger_cold_walk(struct pgs__ledger *l,
                          int (*fn)(void *ctx, uint64_t slot, const struct pgs__cold_block *b,
                                    struct pgs_error *damage),
                          void *ctx, struct pgs_error *err)
{
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, (const uint8_t *)"z", 1, err);
    for (; rc == 0; rc = pgs__lnext(l, &c, 'z', err)) {
        struct pgs__cold_block b;
        struct pgs_error damage = {0};
        uint64_t slot = 0;
        rc = pgs__lkey(&c, 1, &slot, err);
        if (rc) return rc;
        rc = decode(l, slot, c.val, &b, &damage);
        rc = fn(ctx, slot, rc ? NULL : &b, &damage);
        if (rc) return rc;
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

int pgs__ledger_cold_total(struct pgs__ledger *l, struct pgs__cold_total *out, struct pgs_error *err)
{
    struct pgs_span val;
    l->n_touched++;
    *out = (struct pgs__cold_total){0};
    int rc = pgs__meta_get(&l->meta, "Z", 1, &val, err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    if (val.len != sizeof *out)
        return pgs__fail_corrupt(err, "the ledger", "its count of compressed blocks has %zu bytes", val.len);
    memcpy(out, val.p, sizeof *out);
    return 0;
}

static int put_total(struct pgs__ledger *l, const struct pgs__cold_total *t, struct pgs_error *err)
{
    l->n_touched++;
    return pgs__meta_put(&l->meta, "Z", 1, t, sizeof *t, err);
}

/* --- blocks come ------------------------------------------------------------------------------------------------------------------ */
int pgs__ledger_cold_add(struct pgs__ledger *l, uint64_t tag, const struct pgs__cold_block *b, uint64_t *slot,
                         struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__cold_total t;
    if (!l->gen || !pgs__cold_block_sane(b)) return pgs__fail(err, PGS_EBUG, "an impossible compressed block");
    int rc = pgs__ledger_cold_total(l, &t, err);
    if (rc) return rc;
    if (t.tag != tag || t.next == 0) t.next = (t.next / SKIP + 1 + tag % 64) * SKIP;
    if (t.next >= PGS__COLD_SLOTS) return pgs__fail(err, PGS_EFULL, "this store has frozen all that it ever can");
    t.tag = tag;
    *slot = t.next++;
    t.n_pages += pgs__pages_of(b->z_bytes);
    t.n_blocks++;
    rc = put_total(l, &t, err);
    l->n_touched++;
    return rc ? rc : pgs__meta_add(&l->meta, key, pgs__meta_key1(key, 'z', *slot), b, sizeof *b, err);
}

int pgs__ledger_cold_seal(struct pgs__ledger *l, bool last, struct pgs_error *err)
{
    struct pgs__cold_total t;
    int rc = pgs__ledger_cold_total(l, &t, err);
    if (rc) return rc;
    uint64_t next = (t.next + PGS__COLD_GROUP - 1) / PGS__COLD_GROUP * PGS__COLD_GROUP;
    if (last) next += PGS__COLD_GROUP;
    if (next == t.next) return 0;
    t.next = next;
    return put_total(l, &t, err);
}

/* --- pages go ---------------------------------------------------------------------------------------------------------------------- */
static int slot_gone(struct pgs__ledger *l, uint64_t slot, const struct pgs__cold_block *b, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__cold_total t;
    uint64_t n = pgs__pages_of(b->z_bytes);
    int rc = pgs__ledger_cold_total(l, &t, err);
    if (!rc) rc = pgs__lcounter_sub(&t.n_pages, n, "compressed pages", err);
    if (!rc) rc = pgs__lcounter_sub(&t.n_blocks, 1, "compressed blocks", err);
    if (!rc) rc = put_total(l, &t, err);
    if (!rc) rc = pgs__ldel(l, key, pgs__meta_key1(key, 'z', slot), err);
    return rc ? rc : pgs__llimbo_add(l, b->page, n, false, err);
}

static int slot_release(struct pgs__ledger *l, uint64_t slot, uint64_t n, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__cold_block b;
    int rc = pgs__ledger_cold_get(l, slot, &b, err);
    if (PGS_PLANTED(13) && rc == -PGS_ENOENT) return 0;
    if (rc == -PGS_ENOENT) return slot_bad(slot, "is not in the table, but pages of it are dead", err);
    if (rc) return rc;
    if (n > b.live) return slot_bad(slot, "has more dead pages than it counts", err);
    if (PGS_PLANTED(14)) return 0;
    b.live = (uint16_t)(b.live - n);
    if (b.live == 0 || PGS_PLANTED(13)) return slot_gone(l, slot, &b, err);
    l->n_touched++;
    return pgs__meta_put(&l->meta, key, pgs__meta_key1(key, 'z', slot), &b, sizeof b, err);
}

int pgs__lcold_release(struct pgs__ledger *l, uint64_t page, uint64_t n, uint64_t *budget, uint64_t *n_done,
                       struct pgs_error *err)
{
    *n_done = 0;
    while (*n_done<n && * budget> 0) {
        uint64_t at = page + *n_done, slot = pgs__cold_slot(at);
        uint64_t part = pgs__min_u64(n - *n_done, pgs__cold_page_of(slot + 1) - at);
        int rc = slot_release(l, slot, part, err);
        if (rc) return rc;
        *n_done += part;
        --*budget;
    }
    return 0;
}

int pgs__lcold_present(struct pgs__ledger *l, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    for (uint64_t slot = pgs__cold_slot(lo); slot <= pgs__cold_slot(hi - 1); slot++) {
        struct pgs__cold_block b;
        int rc = pgs__ledger_cold_get(l, slot, &b, err);
        if (rc == -PGS_ENOENT)
            return pgs__fail(err, PGS_EBUG, "compressed block %llu is gone and cannot be shared", LLU(slot));
        if (rc) return rc;
    }
    return 0;
}
