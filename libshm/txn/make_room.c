/* Pagestone | txn/make_room — a full store: the ladder that frees what may be freed, and the error when that was not enough.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Freeing takes several commits: one expires, one drops (after everybody could see the expiry), one reclaims (after the drop is durable, on disk). They run in a row here, as "freeing" commits, which may
 * write into the reserve: a store that is full to the last page can still free.
 *
 * How much such a commit does at once decides how many pages of its own it needs: expiring ten thousand versions rewrites half of the meta tree. So if it finds no room itself, it does less.
 *
 * A full file system is harder than a full quota: pages that the ledger calls free need not be backed. So backed ones are taken first (claim_alloc.c), free chunks are punched, which gives their blocks to
 * whoever needs them, this store or others, and before a call fails all other free pages are punched, too: then what was scattered can be had in one piece. Memory that is short (pages/room.h) is such a
 * file system.
 */
#include "libshm/pages/room.h"
#include "libshm/platform/lock.h"
#include "libshm/txn/upkeep.h"

#include <errno.h>
#include <stdio.h>

#define ROUNDS_LEAST 3
#define ROUNDS_MOST 64
#define GAIN_WORTH_IT 8u
#define BUDGET_FIRST 1024u /* entries of work, when everything at once did not fit */
#define BUDGET_LEAST 2u
#define PUNCH_BATCH 64u
#define PUNCH_PER_COMMIT 16u
#define PUNCH_SLACK (64ull << 20)
#define PARTS_ROOM (64ull << 20) /* bytes: with so much, neither the file system nor memory is what is full */
#define PARTS_WORTH_IT 8u

static int head_record(struct pgs__session *s, struct pgs__record *out, struct pgs_error *err)
{
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    *out = l.meta.hdr;
    pgs__meta_end(s, &l);
    return 0;
}

/* --- upkeep commits -------------------------------------------------------------------------------------------------------------------- */

struct tidy {
    struct pgs__session *s;
    const struct pgs__wait *w;
    struct pgs__claim *lender; /* of the transaction that waits for room; may be NULL */
    bool expire_all;
    uint64_t budget; /* stays what it came down to */
};

static int tidy_step(struct tidy *t, struct pgs__record *after, struct pgs_error *err)
{
    struct pgs__commit c;
    int rc = pgs__commit_begin(&c, t->s, t->w, err);
    if (rc) return rc;
    if (t->lender) pgs__claim_lend(&c.claim, t->lender);
    c.freeing = true;
    c.expire_all = t->expire_all;
    if (t->expire_all) (void)pgs__leases_clean(t->s, false);
    c.budget = t->budget;
    rc = pgs__commit_start(&c, false, err);
    if (rc) {
        pgs__commit_abandon(&c);
        return rc;
    }
    rc = pgs__commit_end(&c, NULL, err);
    if (rc == 0 && after) *after = c.after;
    return rc;
}

/* One commit, as large as there is room for. */
static int tidy_as_fits(struct tidy *t, struct pgs__record *after, struct pgs_error *err)
{
    for (;;) {
        struct pgs_error local = {0};
        int rc = tidy_step(t, after, &local);
        if (rc == -PGS_EFULL && t->budget > BUDGET_LEAST) {
            t->budget = t->budget == PGS__BUDGET_ALL ? BUDGET_FIRST : t->budget / 8;
            continue;
        }
        if (rc && err && err->code == 0) *err = local;
        return rc;
    }
}

int pgs__commit_upkeep(struct pgs__session *s, const struct pgs__wait *w, bool expire_all, struct pgs__record *after,
                       struct pgs_error *err)
{
    struct tidy t = {.s = s, .w = w, .expire_all = expire_all, .budget = PGS__BUDGET_ALL};
    return tidy_as_fits(&t, after, err);
}

/* Until they gain nothing. On disk limbo waits for the superblock, so each round ends with a barrier. */
static int drain(struct tidy *t, uint64_t *freed, struct pgs_error *err)
{
    struct pgs__record before, now;
    int rc = head_record(t->s, &before, err), idle = 0;
    uint64_t first = before.pages_free + before.reserve_n, last = first;
    t->budget = PGS__BUDGET_ALL;
    for (int round = 0; rc == 0 && round < ROUNDS_MOST; round++) {
        rc = tidy_as_fits(t, &now, err);
        if (rc == 0 && now.durability == PGS_DUR_ORDERED) rc = pgs__make_durable(t->s, t->w, err);
        if (rc) break;
        uint64_t have = now.pages_free + now.reserve_n;
        idle = have <= last + GAIN_WORTH_IT ? idle + 1 : 0;
        last = have;
        if (round + 1 >= ROUNDS_LEAST && idle > 0) break;
    }
    if (freed) *freed = last > first ? last - first : 0;
    return rc;
}

int pgs__drain(struct pgs__session *s, const struct pgs__wait *w, bool expire_all, uint64_t *freed,
               struct pgs_error *err)
{
    struct tidy t = {.s = s, .w = w, .expire_all = expire_all};
    return drain(&t, freed, err);
}

/* --- the ladder ------------------------------------------------------------------------------------------------------------------------ */
static bool reserve_low(struct pgs__session *s)
{
    struct pgs__ledger l;
    if (pgs__meta_begin(s, &l, NULL)) return false;
    bool low = l.meta.hdr.reserve_n < pgs__reserve_least(&l);
    pgs__meta_end(s, &l);
    return low;
}

/* Before anybody else takes what became free, the reserve is filled up, which these commits lived on: else each put that succeeds after all would have eaten a part of it. */
int pgs__make_room_lent(struct pgs__session *s, const struct pgs__wait *w, struct pgs__claim *lender, int level,
                        uint64_t *freed, struct pgs_error *err)
{
    struct tidy t = {.s = s, .w = w, .lender = lender, .expire_all = level >= 1};
    struct pgs_error local = {0};
    uint64_t n = 0;
    pgs__set_scarce(s, true);
    if (level >= 2) (void)pgs__sweep(s, true);
    pgs__advance_ask(s, true); /* before history goes: views that need no old version hold it up, perhaps */
    int rc = drain(&t, &n, &local);
    while (rc == 0 && pgs__punch(s, PUNCH_BATCH) > 0) {
    }
    bool full = rc == -PGS_EFULL, low = reserve_low(s);
    if (level >= 2 || full || low) pgs__punch_parts(s);
    if (full) {
        local = (struct pgs_error){0};
        rc = drain(&t, &n, &local);
    } else if (low && rc == 0) {
        t.expire_all = false;
        (void)tidy_as_fits(&t, NULL, NULL);
    }
    if (rc && err && err->code == 0) *err = local;
    if (freed) *freed = n;
    return rc;
}

int pgs__make_room(struct pgs__session *s, const struct pgs__wait *w, int level, uint64_t *freed, struct pgs_error *err)
{
    return pgs__make_room_lent(s, w, NULL, level, freed, err);
}

/* --- punching ------------------------------------------------------------------------------------------------------------------------ */

static int count_pages(void *ctx, struct pgs_run run)
{
    *(uint64_t *)ctx += run.n_pages;
    return 0;
}

/* Ours by the owner words. What is not free any more is released again. */
static void punch_claimed(struct pgs__session *s, uint64_t *list, uint64_t n)
{
    struct pgs__ledger l;
    bool open = pgs__meta_begin(s, &l, NULL) == 0; /* not older than the claims */
    for (uint64_t i = 0; i < n; i++) {
        uint64_t pages = 0;
        if (open && pgs__space_runs_of(&l, list[i], count_pages, &pages, NULL) == 0 && pages == PGS_CHUNK_PAGES &&
            list[i] >= 2)
            pgs__pagefile_punch(&s->pf, list[i], 1);
        pgs__owner_release(&s->ctl, list[i], s->tag);
    }
    if (open) pgs__meta_end(s, &l);
}

uint64_t pgs__punch(struct pgs__session *s, uint64_t max_chunks)
{
    uint64_t list[PUNCH_BATCH], n = 0, ours = 0;
    struct pgs__space *sp = pgs__space_of(s);
    struct pgs__ledger l;
    if (!sp || pgs__meta_begin(s, &l, NULL)) return 0;
    pgs__mutex_lock(&s->space_mx);
    uint64_t below = sp->punch_below ? sp->punch_below : PGS__N_OWNERS;
    pgs__mutex_unlock(&s->space_mx);
    int rc = pgs__space_free_below(&l, below, pgs__min_u64(max_chunks, PUNCH_BATCH), list, &n, NULL);
    if (n) below = list[n - 1];
    uint64_t hw_chunks = l.meta.hdr.hw_pages / PGS_CHUNK_PAGES;
    pgs__meta_end(s, &l);
    /* Words that nobody stored in this boot are holes of the control file, and a store into one on a full tmpfs is SIGBUS. */
    if (rc == 0 && n) rc = pgs__owner_reserve(&s->ctl, hw_chunks, NULL);
    for (uint64_t i = 0; rc == 0 && i < n; i++)
        if (list[i] < hw_chunks && pgs__owner_claim(&s->ctl, list[i], s->tag)) list[ours++] = list[i];
    if (ours) punch_claimed(s, list, ours);
    pgs__mutex_lock(&s->space_mx);
    sp->punch_below = n ? below : 0;
    pgs__mutex_unlock(&s->space_mx);
    return rc ? 0 : n;
}

static int punch_run(void *ctx, struct pgs_run run)
{
    struct pgs__session *s = ctx;
    pgs__pagefile_punch_pages(&s->pf, run);
    return 0;
}

/* What is free in one chunk. */
static void punch_part(struct pgs__session *s, uint64_t chunk)
{
    struct pgs__ledger l;
    if (!pgs__owner_claim(&s->ctl, chunk, s->tag)) return;
    if (pgs__meta_begin(s, &l, NULL) == 0) { /* not older than the claim */
        (void)pgs__space_runs_of(&l, chunk, punch_run, s, NULL);
        pgs__meta_end(s, &l);
    }
    pgs__owner_release(&s->ctl, chunk, s->tag);
}

/* Every free page goes back to the file system, whose room then serves runs of any length; also those that were allocated and never written, and what a put that failed left beyond the
 * high-water mark. */
void pgs__punch_parts(struct pgs__session *s)
{
    struct pgs__record hdr;
    if (head_record(s, &hdr, NULL)) return;
    uint64_t used = hdr.hw_pages - pgs__min_u64(hdr.hw_pages, hdr.pages_free);
    uint64_t n = atomic_load_explicit(&s->pf.n_pages, memory_order_relaxed) / PGS_CHUNK_PAGES;
    if (pgs__room_of(&s->pf) >= PARTS_ROOM) return; /* that is not what is missing */
    if (pgs__pagefile_resident(&s->pf) >> PGS_PAGE_SHIFT <= used + PARTS_WORTH_IT) return;
    for (uint64_t chunk = 0; chunk < n; chunk++)
        if (pgs__claim_owner_words(s, chunk, NULL) == 0) punch_part(s, chunk);
}

/* Due when much more is resident than used, or when whole chunks became free while the file system is short of room: others need it, too. What a commit like the late ones takes is no excess: who
 * overwrites a large array again and again would punch pages only to fault them in again. `bytes`: of data in this commit. */
void pgs__punch_if_due(struct pgs__session *s, const struct pgs__record *after, uint64_t bytes)
{
    struct pgs__space *sp = pgs__space_of(s);
    if (!sp) return;
    bool scarce = pgs__is_scarce(s);
    pgs__mutex_lock(&s->space_mx);
    sp->demand_bytes = pgs__max_u64(bytes, sp->demand_bytes - sp->demand_bytes / 8);
    uint64_t demand = sp->demand_bytes + sp->demand_bytes / 4;
    bool look = sp->freed_pages >= (scarce ? PGS_CHUNK_PAGES : PUNCH_SLACK >> PGS_PAGE_SHIFT);
    pgs__mutex_unlock(&s->space_mx);
    if (!look) return;
    uint64_t used = (after->hw_pages - pgs__min_u64(after->hw_pages, after->pages_free)) << PGS_PAGE_SHIFT;
    uint64_t not_live = (after->pages_dead + after->pages_limbo) << PGS_PAGE_SHIFT;
    uint64_t live = used - pgs__min_u64(used, not_live), resident = pgs__pagefile_resident(&s->pf);
    uint64_t slack = pgs__max_u64(PUNCH_SLACK, pgs__max_u64(live / 4, demand));
    bool due = resident > used && resident - used > (scarce ? PGS_CHUNK_SIZE : slack);
    if (due && pgs__punch(s, PUNCH_PER_COMMIT) > 0) return; /* the next commit goes on */
    pgs__mutex_lock(&s->space_mx);
    sp->freed_pages = 0;
    pgs__mutex_unlock(&s->space_mx);
}

/* --- the error ---------------------------------------------------------------------------------------------------------------------------- */

/* "4.0 MB": decimal units, as in size="2GB". */
static const char *human(uint64_t bytes, char buf[16])
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double v = (double)bytes;
    unsigned u = 0;
    while (v >= 1000 && u + 1 < PGS_ARRAY_LEN(unit)) v /= 1000, u++;
    snprintf(buf, 16, u == 0 || v >= 100 ? "%.0f %s" : "%.1f %s", v, unit[u]);
    return buf;
}

struct worst {
    uint64_t pid, bytes, first, last;
    size_t n;
    char command[64];
};
static int find_worst(void *ctx, const struct pgs_reader *r)
{
    struct worst *w = ctx;
    if (r->n_versions == 0 || r->bytes <= w->bytes) return 0;
    *w = (struct worst){.pid = r->pid,
                        .bytes = r->bytes,
                        .first = r->versions[0],
                        .last = r->versions[r->n_versions - 1],
                        .n = r->n_versions};
    snprintf(w->command, sizeof w->command, "%s", r->command ? r->command : "?");
    return 0;
}

/* Bytes of free pages that are backed, and of holes that the file system, and memory, can back. */
static uint64_t can_back(struct pgs__session *s, const struct pgs__record *h)
{
    uint64_t room = pgs__room_of(&s->pf), resident = pgs__pagefile_resident(&s->pf);
    uint64_t used = (h->hw_pages - pgs__min_u64(h->hw_pages, h->pages_free)) << PGS_PAGE_SHIFT;
    return room == UINT64_MAX ? room : room + (resident > used ? resident - used : 0);
}

static uint64_t quota_leaves(const struct pgs__record *h)
{
    uint64_t quota = h->quota_bytes >> PGS_PAGE_SHIFT, beyond = quota > h->hw_pages ? quota - h->hw_pages : 0;
    return quota ? (h->pages_free + beyond) << PGS_PAGE_SHIFT : UINT64_MAX;
}

uint64_t pgs__room_left(struct pgs__session *s, const struct pgs__record *hdr)
{
    return pgs__min_u64(can_back(s, hdr), quota_leaves(hdr));
}

/* Is it memory that leaves the least? The error then. */
static bool fail_ram(struct pgs__session *s, const char *need, const char *have, const char *who, struct pgs_error *err)
{
    struct pgs__ram ram;
    char total[16], kept[16];
    if (!pgs__room_ram(&s->pf, UINT64_MAX, &ram) || ram.left >= pgs__fs_room(s->pf.fd)) return false;
    bool group = ram.by == PGS__RAM_CGROUP;
    pgs__fail(
        err, PGS_EFULL,
        "%s is full: the store needs %s, %s free%s, and of %s in all %s are kept for programs; delete keys, close old "
        "snapshots, lower history=, %s, or set size= to be limited by that alone",
        group ? "the memory cgroup" : "the machine's memory", need, have, who, human(ram.total, total),
        human(ram.kept, kept), group ? "raise the cgroup's limit" : "free memory");
    err->os_errno = ENOSPC;
    return true;
}

int pgs__fail_full(struct pgs__session *s, uint64_t need_bytes, int os_errno, struct pgs_error *err)
{
    struct pgs__record hdr = {0};
    struct worst w = {0};
    char need[16], have[16], quota[16], held[16], who[160] = "", limit[64] = "in the file system";
    if (err) memset(err, 0, sizeof *err); /* lower layers said less */
    if (!err) return -PGS_EFULL;
    (void)head_record(s, &hdr, NULL);
    (void)pgs__readers(s, find_worst, &w, NULL);
    uint64_t by_fs = can_back(s, &hdr), by_quota = quota_leaves(&hdr), can = pgs__min_u64(by_fs, by_quota);
    uint64_t used = (hdr.hw_pages - pgs__min_u64(hdr.hw_pages, hdr.pages_free)) << PGS_PAGE_SHIFT;
    if (hdr.quota_bytes) /* free pages behind the quota's end help nobody */
        can = pgs__min_u64(can, hdr.quota_bytes > used ? hdr.quota_bytes - used : 0);
    if (hdr.quota_bytes) snprintf(limit, sizeof limit, "of a quota of %s", human(hdr.quota_bytes, quota));
    (void)human(need_bytes, need);
    if (w.n && w.first == w.last)
        snprintf(who, sizeof who, "; process %llu (%s) pins version %llu (%s)", (unsigned long long)w.pid, w.command,
                 (unsigned long long)w.first, human(w.bytes, held));
    else if (w.n)
        snprintf(who, sizeof who, "; process %llu (%s) pins versions %llu\xe2\x80\x93%llu (%s)",
                 (unsigned long long)w.pid, w.command, (unsigned long long)w.first, (unsigned long long)w.last,
                 human(w.bytes, held));
    if (hdr.quota_bytes == 0 && fail_ram(s, need, human(can, have), who, err)) return -PGS_EFULL;
    if (os_errno || by_fs < by_quota) {
        pgs__fail(
            err, PGS_EFULL,
            "the file system is full: the store needs %s there, %s free%s; free space on it, delete keys, close old "
            "snapshots, or lower history=",
            human(need_bytes, need), human(can, have), who);
        err->os_errno = os_errno ? os_errno : ENOSPC;
        return -PGS_EFULL;
    }
    return pgs__fail(err, PGS_EFULL,
                     "store full: needs %s, %s free %s%s; close old snapshots, raise size=, or lower history=",
                     human(need_bytes, need), human(can, have), limit, who);
}
