/* Pagestone | txn/ledger_impl — what the files of the ledger share: entries of the meta map, decoded and counted.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Only ledger*.c and space.c include this. Everything read here is input: a key of the wrong length, a run beyond the file or a counter that would
 * fall below zero is -PGS_ECORRUPT, never trusted.
 */
#ifndef PGS_TXN_LEDGER_IMPL_H
#define PGS_TXN_LEDGER_IMPL_H

#include "libshm/txn/ledger.h"

#define KEY_MAX PGS__KEY_MAX

/* A run under 'd' (a = bucket, b = birth), 'm' (a = gen) or 'r'. */
struct pgs__entry {
    uint64_t a, b;
    uint64_t page, n;
    bool node;
    uint64_t count; /* 'r' */
};

/* Cursors that stay within one letter: -PGS_ENOENT beyond it. Counted in n_touched. */
int pgs__lseek(struct pgs__ledger *l, struct pgs__meta_cursor *c, enum pgs__seek how, const uint8_t *key, size_t len,
               struct pgs_error *err);
/* Of keys that this commit made (pgs__meta_seek_new). */
int pgs__lseek_new(struct pgs__ledger *l, struct pgs__meta_cursor *c, enum pgs__seek how, const uint8_t *key,
                   size_t len, struct pgs_error *err);
int pgs__lnext(struct pgs__ledger *l, struct pgs__meta_cursor *c, char letter, struct pgs_error *err);
int pgs__lprev(struct pgs__ledger *l, struct pgs__meta_cursor *c, char letter, struct pgs_error *err);
int pgs__lput_u64(struct pgs__ledger *l, const uint8_t *key, size_t len, uint64_t val, bool fresh,
                  struct pgs_error *err);
int pgs__ldel(struct pgs__ledger *l, const uint8_t *key, size_t len, struct pgs_error *err);

/* The cursor's entry. `ints`: u64s in the key. */
int pgs__lkey(const struct pgs__meta_cursor *c, unsigned ints, uint64_t *out, struct pgs_error *err);
int pgs__lval_num(struct pgs_span val, char letter, uint64_t *out, struct pgs_error *err);
int pgs__lval_u64(const struct pgs__meta_cursor *c, uint64_t *out, struct pgs_error *err);
int pgs__lentry(struct pgs__ledger *l, const struct pgs__meta_cursor *c, struct pgs__entry *e, struct pgs_error *err);

int pgs__lcounter_sub(uint64_t *counter, uint64_t n, const char *what, struct pgs_error *err);

/* chain: ledger.c */
int pgs__lchain_get(struct pgs__ledger *l, pgs_gen_t gen, struct pgs__chain *out, struct pgs_error *err);
int pgs__lchain_raw(struct pgs__ledger *l, pgs_gen_t gen, struct pgs__chain *out,
                    struct pgs_error *err); /* without looking whether it is expired */
int pgs__lchain_put(struct pgs__ledger *l, pgs_gen_t gen, const struct pgs__chain *c, bool fresh,
                    struct pgs_error *err);
int pgs__lchain_prev(struct pgs__ledger *l, pgs_gen_t gen, pgs_gen_t *prev, struct pgs_error *err); /* 0: none */
int pgs__lversion_gen(struct pgs__ledger *l, uint64_t version, pgs_gen_t *gen,
                      struct pgs_error *err); /* -PGS_ENOENT: not listed */
int pgs__lexpired_mark(struct pgs__ledger *l, pgs_gen_t gen, uint64_t n_pages, struct pgs_error *err);
bool pgs__lexpired_now(const struct pgs__ledger *l, pgs_gen_t gen);

/* ledger_dead.c: pages in buckets that entry `gen` holds, with birth > floor; at most `limit` entries are looked at */
int pgs__lheld(struct pgs__ledger *l, pgs_gen_t gen, pgs_gen_t floor, uint64_t *pages, uint64_t *visited,
               struct pgs_error *err);
/* The next bucket that hangs at `holder`, from `bucket` on; -PGS_ENOENT: none. */
int pgs__lhung(struct pgs__ledger *l, pgs_gen_t holder, pgs_gen_t bucket, pgs_gen_t *out, struct pgs_error *err);
/* 'd' -> nothing or 'm' */
int pgs__ldead_add(struct pgs__ledger *l, const struct pgs__entry *e, struct pgs_error *err);
int pgs__llimbo_add(struct pgs__ledger *l, uint64_t page, uint64_t n, bool node, struct pgs_error *err);
/* ledger_cold.c: pages [page, page + n) of the image leave the deadlists for good, *n_done of them when the budget (1 for each slot) ends. */
int pgs__lcold_release(struct pgs__ledger *l, uint64_t page, uint64_t n, uint64_t *budget, uint64_t *n_done,
                       struct pgs_error *err);
/* All slots of [lo, hi) are in the table; else -PGS_EBUG. */
int pgs__lcold_present(struct pgs__ledger *l, uint64_t lo, uint64_t hi, struct pgs_error *err);
/* Pages of the file: what counters count. */
static inline uint64_t pgs__lraw(const struct pgs__entry *e)
{
    return pgs__is_cold(e->page) ? 0 : e->n;
}
/* ledger_log.c */
int pgs__llog_drop(struct pgs__ledger *l, uint64_t version, struct pgs_error *err);
/* space_find.c: the free run at a cursor under 'N' or 'D', in pages */
int pgs__lspace_run(struct pgs__ledger *l, const struct pgs__meta_cursor *c, uint64_t *lo, uint64_t *hi,
                    struct pgs_error *err);
/* space.c: pgs__ledger_take for who has just seen the free run `from` (pages) that contains `run` under that letter */
int pgs__lspace_take(struct pgs__ledger *l, char letter, struct pgs_run from, struct pgs_run run,
                     struct pgs_error *err);
/* space.c: the file's first two chunks */
int pgs__lspace_create(struct pgs__ledger *l, struct pgs_error *err);

#define PGS__LOG_KEPT                                                                                                  \
    8192u /* log entries; fewer than 10,000, so that a store has its final size after as many commits */
#define PGS__VERSIONS_MAX 16384u

#endif
