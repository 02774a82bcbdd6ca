/* Pagestone | api/upkeep_api — public functions on a store's keep: statistics, readers, garbage, compaction, checks, capabilities.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/caps.h"
#include "libshm/platform/ram.h"
#include "libshm/txn/store.h"
#include "libshm/txn/upkeep.h"
#include "libshm/txn/verify.h"

int pgs_stat(pgs_store *s, struct pgs_stat *out, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__stat(s->s, out, err);
}

int pgs_readers(pgs_store *s, int (*fn)(void *ctx, const struct pgs_reader *r), void *ctx, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__readers(s->s, fn, ctx, err);
}

int pgs_gc(pgs_store *s, struct pgs_error *err)
{
    int rc = pgs__store_use(s, true, err);
    return rc ? rc : pgs__gc(s->s, &s->wait, err);
}

int pgs_compact(pgs_store *s, struct pgs_error *err)
{
    int rc = pgs__store_use(s, true, err);
    return rc ? rc : pgs__compact(s->s, &s->wait, err);
}

int pgs_check(pgs_store *s, int data, int (*fn)(void *ctx, const char *object, const char *problem), void *ctx,
              struct pgs_check_report *out, struct pgs_error *err)
{
    int rc = pgs__store_use(s, false, err);
    return rc ? rc : pgs__verify(s->s, data != 0, fn, ctx, out, err);
}

const char *pgs_capability(int i, int *on, const char **reason)
{
    if (i < 0 || i >= (int)PGS__CAP_N) return NULL;
    enum pgs__cap cap = (enum pgs__cap)i;
    if (on) *on = pgs__cap(cap);
    if (reason) *reason = pgs__cap_reason(cap);
    return pgs__cap_name(cap);
}

void pgs_memory_limit(struct pgs_memory *out)
{
    static const char *const names[] = {
        [PGS__RAM_NOTHING] = NULL, [PGS__RAM_CGROUP] = "memory cgroup", [PGS__RAM_MACHINE] = "machine"};
    struct pgs__ram ram = {.by = PGS__RAM_NOTHING, .left = UINT64_MAX};
    if (pgs__cap(PGS__CAP_MEMORY_LIMIT)) pgs__ram_look(UINT64_MAX, &ram);
    *out = (struct pgs_memory){names[ram.by], ram.left, ram.kept, ram.total};
}
