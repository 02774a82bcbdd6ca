/* Pagestone | pages/super — writing and reading the two superblocks.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Reading happens under a busy writer, on disks that lost power, and on files that are no stores at all. Each copy is put into
 * one of five classes; the two classes together decide. A copy with our magic and a wrong checksum is read again as long as
 * its bytes change: a writer is at it. Only bytes that stand still are damage.
 */
#include <errno.h>
#include <time.h>

#include "libshm/pages/pagefile.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"

#define BYTE_ORDER_MARK 0x01020304u
#define READ_TRIES 100u
#define STILL_TRIES 4u /* identical bad reads in a row before they are believed */

enum copy_class {
    COPY_NONE,     /* beyond the end, zeros, or something else's bytes */
    COPY_VALID,    /* ours, and whole */
    COPY_DAMAGED,  /* ours, and the checksum is wrong */
    COPY_FOREIGN,  /* ours and whole, but of a format that this library does not read */
    COPY_REVERSED, /* ours, by a machine of the other endianness */
};

static uint64_t super_page(unsigned slot)
{
    return slot ? PGS__SUPER_PAGE_1 : PGS__SUPER_PAGE_0;
}

static uint64_t super_hash(const struct pgs__super *s)
{
    return pgs__hash(s, offsetof(struct pgs__super, xxh));
}

int pgs__super_write(struct pgs__pagefile *pf, struct pgs__super *super, struct pgs_error *err)
{
    super->magic = PGS__SUPER_MAGIC;
    super->format_version = PGS__FORMAT_VERSION;
    super->byte_order = BYTE_ORDER_MARK;
    super->page_size = PGS_PAGE_SIZE;
    super->layout = pgs__control_layout();
    super->xxh = super_hash(super);
    PGS_KILL_POINT("super_write");
    return pgs__pages_write(pf, (struct pgs_pgno){super_page(super->seq & 1)}, super, 1, err);
}

static bool format_known(const struct pgs__super *s)
{
    return s->format_version == PGS__FORMAT_VERSION && s->byte_order == BYTE_ORDER_MARK &&
           s->page_size == PGS_PAGE_SIZE && s->feature_bits == 0;
}

static enum copy_class classify(const struct pgs__super *s, unsigned slot)
{
    if (s->magic == __builtin_bswap64(PGS__SUPER_MAGIC)) return COPY_REVERSED;
    if (s->magic != PGS__SUPER_MAGIC) return COPY_NONE;
    if (s->xxh != super_hash(s)) return COPY_DAMAGED;
    if (!format_known(s)) return COPY_FOREIGN;
    return s->seq != 0 && (s->seq & 1) == slot ? COPY_VALID : COPY_DAMAGED; /* a copy in the other's place is no copy */
}

/* Name what is foreign about it: the order matters, because later fields mean nothing where an earlier one differs. */
static int fail_format(const struct pgs__super *s, struct pgs_error *err)
{
    if (s->magic != PGS__SUPER_MAGIC)
        return pgs__fail(err, PGS_EFORMAT, "written by a machine of the other endianness: open it on such a machine");
    if (s->format_version > PGS__FORMAT_VERSION)
        return pgs__fail(err, PGS_EFORMAT, "written by a newer Pagestone (format %u; this library reads %u): upgrade",
                         s->format_version, PGS__FORMAT_VERSION);
    if (s->format_version < PGS__FORMAT_VERSION)
        return pgs__fail(err, PGS_EFORMAT, "unknown format %u (this library reads %u)", s->format_version,
                         PGS__FORMAT_VERSION);
    if (s->page_size != PGS_PAGE_SIZE)
        return pgs__fail(err, PGS_EFORMAT, "the store has pages of %u bytes (this library reads %u)", s->page_size,
                         PGS_PAGE_SIZE);
    if (s->byte_order != BYTE_ORDER_MARK)
        return pgs__fail(err, PGS_EFORMAT, "the store has byte order %08x (this library reads %08x)", s->byte_order,
                         BYTE_ORDER_MARK);
    return pgs__fail(err, PGS_EFORMAT, "written with features %#x that this library does not know: upgrade",
                     s->feature_bits);
}

/* One copy, read until it is whole or stands still. A copy beyond the end of the file is zeros. */
static int read_copy(struct pgs__pagefile *pf, unsigned slot, bool direct, struct pgs__super *s, enum copy_class *class,
                     struct pgs_error *err)
{
    uint64_t before = 0;
    const struct timespec pause = {.tv_nsec = 50000};
    for (unsigned i = 0, still = 0; i < READ_TRIES && still < STILL_TRIES; i++) {
        memset(s, 0, sizeof *s);
        uint64_t page = super_page(slot);
        if (page < atomic_load(&pf->n_pages)) {
            int rc = pgs__pages_read(pf, (struct pgs_pgno){page}, s, 1, direct, err);
            if (rc) return rc;
        }
        *class = classify(s, slot);
        if (*class != COPY_DAMAGED) return 0;
        uint64_t now = pgs__hash(s, sizeof *s);
        still = i > 0 && now == before ? still + 1 : 0;
        before = now;
        nanosleep(&pause, NULL);
    }
    return 0;
}

static bool all_zero(const struct pgs__super *s)
{
    const uint8_t *p = (const uint8_t *)s;
    return p[0] == 0 && memcmp(p, p + 1, sizeof *s - 1) == 0;
}

/* Copy `valid` is to be used: is the other one what a store of this age has there? */
static bool other_is_bad(const struct pgs__super *valid, const struct pgs__super *other, enum copy_class class)
{
    if (class == COPY_VALID) return false;
    return !(valid->seq == 1 && all_zero(other)); /* a store that has seen one superblock only */
}

int pgs__super_read(struct pgs__pagefile *pf, struct pgs__super *out, bool direct, struct pgs_error *err)
{
    struct pgs__super s[2];
    enum copy_class class[2] = {COPY_NONE, COPY_NONE};
    pgs__pagefile_refresh(pf);
    for (unsigned i = 0; i < 2; i++) {
        int rc = read_copy(pf, i, direct, &s[i], &class[i], err);
        if (rc) return rc;
    }
    for (unsigned i = 0; i < 2;
         i++) /* a whole copy of a newer format: falling back to an older one would lose commits */
        if (class[i] == COPY_FOREIGN) return fail_format(&s[i], err);
    int best = -1;
    for (int i = 0; i < 2; i++)
        if (class[i] == COPY_VALID && (best < 0 || s[i].seq > s[best].seq)) best = i;
    if (best >= 0) {
        pf->super_bad = other_is_bad(&s[best], &s[!best], class[!best]) ? 1u << !best : 0;
        *out = s[best];
        return 0;
    }
    for (unsigned i = 0; i < 2; i++) /* reversed, or a format whose checksum lies elsewhere */
        if (class[i] == COPY_REVERSED || (class[i] == COPY_DAMAGED && s[i].format_version > PGS__FORMAT_VERSION))
            return fail_format(&s[i], err);
    if (class[0] == COPY_DAMAGED || class[1] == COPY_DAMAGED)
        return pgs__fail_corrupt(err, "the superblock", "both superblocks are damaged");
    return pgs__fail(err, PGS_ENOTSTORE, "the page file is no Pagestone store (no superblock)");
}
