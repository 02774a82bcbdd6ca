/* Pagestone | txn/found — a new store: its first generation, its superblocks, its control file.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Generation 1 is version 0: no objects, a head record with an empty meta tree behind it, all pages but that record's and the superblocks' free. Both
 * superblocks name it, so that either may be torn later.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/session_impl.h"

#define FIRST_GEN 1u
#define FIRST_RECORD_PAGE 1u

static enum pgs_durability durability_of(const struct pgs__pagefile *pf, const struct pgs_options *opt)
{
    if (opt->durability != PGS_DUR_KEEP) return opt->durability;
    return pgs__on_disk(pf) ? PGS_DUR_FULL : PGS_DUR_NONE;
}

static void settings(struct pgs__record *hdr, const struct pgs__pagefile *pf, const struct pgs_options *opt)
{
    hdr->next_id = 1;
    hdr->quota_bytes = opt->size == UINT64_MAX ? 0 : opt->size;
    hdr->durability = durability_of(pf, opt);
    hdr->history_kind = opt->history != PGS_HIST_KEEP ? opt->history : PGS_HIST_DEFAULT;
    hdr->history_value = opt->history != PGS_HIST_KEEP ? opt->history_value : 0;
    hdr->checksums = opt->checksums ? opt->checksums > 0 : pgs__on_disk(pf);
}

/* The ledger's first commit, whose record goes to page 1. */
static int first_record(struct pgs__ledger *l, struct pgs__pagefile *pf, const struct pgs_options *opt, uint64_t now,
                        uint8_t *image, struct pgs__root *root, struct pgs_error *err)
{
    uint64_t n_nodes, n_pages;
    struct pgs_run run = {{FIRST_RECORD_PAGE}, 1};
    pgs__meta_init_empty(&l->meta, pf);
    int rc = pgs__ledger_begin(l, true, 0, now, err);
    if (rc) return rc;
    settings(&l->meta.hdr, pf, opt);
    rc = pgs__ledger_prepare(l, &n_nodes, &n_pages, err);
    if (rc) return rc;
    if (n_nodes != 0 || n_pages != 1) return pgs__fail(err, PGS_EBUG, "the first record does not fit one page");
    rc = pgs__ledger_take(l, run, true, err);
    if (rc) return rc;
    rc = pgs__ledger_finish(l, NULL, NULL, run.page, image, root, err);
    if (rc == 0 && root->gen != FIRST_GEN) return pgs__fail(err, PGS_EBUG, "the first generation is not %u", FIRST_GEN);
    return rc;
}

static int write_supers(struct pgs__pagefile *pf, struct pgs__super *super, struct pgs_error *err)
{
    for (uint64_t seq = 1; seq <= 2; seq++) {
        super->seq = seq;
        int rc = pgs__super_write(pf, super, err);
        if (rc) return rc;
    }
    return 0;
}

int pgs__found(struct pgs__pagefile *pf, const struct pgs_options *opt, struct pgs__super *super, struct pgs_error *err)
{
    struct pgs__ledger l = {0};
    uint64_t now = pgs__clock_real_ns();
    *super = (struct pgs__super){.version_ceiling = 1, .flags = PGS__SUPER_CLEAN, .created_ns = now};
    if (memcmp(pf->uuid, super->uuid, sizeof pf->uuid) == 0) pgs__random(pf->uuid, sizeof pf->uuid); /* zero */
    memcpy(super->uuid, pf->uuid, sizeof pf->uuid);
    int rc = pgs__boot_id(super->boot_id);
    if (rc) return pgs__fail(err, PGS_EIO, "cannot tell this boot from another");
    uint8_t *image = pgs__calloc(1, PGS_PAGE_SIZE);
    if (!image) return pgs__fail(err, PGS_ENOMEM, "no memory to create a store");
    rc = pgs__pagefile_grow(pf, 2 * PGS_CHUNK_PAGES, err);
    if (rc == 0) {
        rc = first_record(&l, pf, opt, now, image, &super->root, err);
        pgs__ledger_close(&l);
    }
    if (rc == 0) rc = pgs__pages_write(pf, (struct pgs_pgno){FIRST_RECORD_PAGE}, image, 1, err);
    if (rc == 0) rc = write_supers(pf, super, err);
    if (rc == 0 && pgs__on_disk(pf)) rc = pgs__pagefile_barrier(pf, err);
    pgs__free(image);
    return rc;
}

int pgs__control_fill(struct pgs__ctl *ctl, int fd, const struct pgs__pagefile *pf, const struct pgs__super *super,
                      struct pgs_error *err)
{
    int rc = pgs__ctl_create(ctl, fd, super->uuid, pf->ino, err);
    if (rc) return rc;
    struct pgs__control *c = ctl->c;
    pgs__ctl_stage(ctl, &super->root);
    pgs__ctl_publish(ctl, super->root.gen);
    atomic_store(&c->durable_gen, super->root.gen);
    atomic_store(&c->super_seq, super->seq);
    atomic_store(&c->version_floor, super->version_ceiling);
    atomic_store(&c->version_ceiling, 0);
    atomic_store(&c->barrier_ns, pgs__clock_boot_ns());
    atomic_store(&c->raw_time_ns, super->root.time_ns);
    PGS_KILL_POINT("control_filled");
    atomic_store(&c->state, 1);
    return 0;
}
