/* Pagestone | txn/image_eager — the image in memory, for processes that reach no pager.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A sparse memory file, laid out as the image, one for all processes of a user that have the store open:
 *
 *     128 KiB × slot      the block, decompressed
 *     2^62 + 4 × slot     its state, u32: 0 absent, 1 being written or punched, else CLOCK_BOOTTIME in seconds of its last mapping
 *     2^62 + 2^47         struct header: whose image it is
 *
 * It is found through the slots of the control file (the word that also names a pager's descriptor: a process has one or the other), and lives as long as somebody has it open or mapped.
 *
 *   E1  Who maps or fills slots [lo, hi) holds an OFD *read* lock on bytes [lo, hi) of the file, on a description of its own. The mapping keeps that description, and so the lock, for as long as it lives, in
 *       whatever process. Who punches a slot holds its *write* lock: nobody maps it then.
 *   E2  A block is decompressed into private memory and then written. Two processes may write the same one at the same time: the bytes are equal, and no other bytes are ever there.
 *   E3  State 1 is stored before the first byte is written or punched, the final one after the last. So a death leaves a slot that counts as absent, and that eviction finds.
 *   E4  Whoever fills holds the lock of byte FILL: one at a time, since each uses all processors and the budget is one for all. That is for speed only: who waits ten seconds without seeing the file grow goes on without.
 *   E5  The budget compares with the blocks that the file really has, so no death makes a count wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/file.h"
#include "libshm/platform/mem.h"
#include "libshm/platform/parallel.h"
#include "libshm/platform/procfd.h"
#include "libshm/platform/ram.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/image.h"
#include "libshm/txn/session_impl.h"

#define LLU(x) ((unsigned long long)(x))
#define STATE_AT (UINT64_C(1) << 62)
#define HEADER_AT (STATE_AT + 4 * PGS__COLD_SLOTS)
#define FILE_BYTES (HEADER_AT + PGS_PAGE_SIZE)
#define FILL (UINT64_C(1) << 62)
#define BUSY 1u
#define MAGIC UINT64_C(0x31656761726d4943)
#define GROUP 16u /* blocks that a thread does with one buffer */
#define PATIENCE_NS UINT64_C(10000000000)

struct header {
    uint64_t magic;
    uint8_t uuid[16];
};

static void nap(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* --- the budget ------------------------------------------------------------------------------------------------------------------------ */
static bool parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (unit) end++;
    if (unit && *end == 'i') end++;
    if (*end == 'B') end++;
    if (errno || end == text || *end || text[0] == '-' || n > UINT64_MAX >> shift) return false;
    *bytes = (uint64_t)n << shift;
    return true;
}

int pgs__eager_budget(uint64_t *bytes, struct pgs_error *err)
{
    const char *text = getenv("PAGESTONE_COLD_BUDGET");
    struct pgs__ram ram = {0};
    if (text && *text) {
        if (parse_size(text, bytes)) return 0;
        return pgs__fail(err, PGS_EINVAL, "PAGESTONE_COLD_BUDGET is \"%.40s\", which is no size such as 500M or 4G",
                         text);
    }
    pgs__ram_look(0, &ram);
    *bytes = ram.by == PGS__RAM_NOTHING ? UINT64_MAX : ram.total / 4;
    return 0;
}

static uint64_t used_bytes(int fd)
{
    struct stat st;
    return pgs__file_ops->fstat(fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static int over(struct pgs__session *s, uint64_t used, uint64_t need, uint64_t budget, struct pgs_error *err)
{
    return pgs__fail(err, PGS_ENOMEM,
                     "compressed data that is in use takes %llu MiB of memory, and %llu MiB more are needed, which is "
                     "beyond the budget of %llu MiB: raise PAGESTONE_COLD_BUDGET, or make FUSE work (%s)",
                     LLU(used >> 20), LLU((need + (1u << 20) - 1) >> 20), LLU(budget >> 20),
                     s->image->why[0] ? s->image->why : "no pager");
}

/* --- the file ---------------------------------------------------------------------------------------------------------------------------- */
/* A new description of the same file: locks are a description's. */
static int open_again(int fd, int flags)
{
    char path[PGS__PROC_FD_PATH];
    pgs__proc_fd_path(path, fd);
    return pgs__file_ops->open(path, flags, 0);
}

/* Descriptor n of a process, if it is this store's image in memory. Looked at before it is opened: the number may be anything's by now. */
static int open_of(struct pgs__session *s, uint32_t pid, uint32_t n)
{
    char path[64];
    struct header h;
    struct statx st;
    snprintf(path, sizeof path, "/proc/%u/fd/%u", pid, n);
    int at = pgs__file_ops->open(path, O_PATH, 0);
    if (at < 0) return at;
    bool fits = statx(at, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &st) == 0 &&
                S_ISREG(st.stx_mode) && st.stx_size == FILE_BYTES && st.stx_uid == geteuid();
    int fd = fits ? open_again(at, O_RDWR) : -ESTALE;
    pgs__file_ops->close(at);
    if (fd < 0) return fd;
    int rc = pgs__pread_full(fd, &h, sizeof h, HEADER_AT);
    if (rc == 0 && h.magic == MAGIC && memcmp(h.uuid, s->pf.uuid, sizeof h.uuid) == 0) return fd;
    pgs__file_ops->close(fd);
    return -ESTALE;
}

static int find(struct pgs__session *s)
{
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used; i++) {
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
        uint32_t image = atomic_load(&slot->image);
        if (image == 0 || atomic_load(&slot->tag) == 0) continue;
        int fd = open_of(s, (uint32_t)atomic_load(&slot->pid), image - 1);
        if (fd >= 0) return fd;
    }
    return -ENOENT;
}

/* The first descriptor is closed at once, so that what follows is written through one that was opened by name. */
static int make(struct pgs__session *s)
{
    struct header h = {.magic = MAGIC};
    struct rlimit limit; /* asked first: going over it raises SIGXFSZ, which kills */
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) return -EFBIG;
    memcpy(h.uuid, s->pf.uuid, sizeof h.uuid);
    int first = pgs__file_ops->memfd(PGS__IMAGE_MEMFD);
    if (first < 0) return first;
    int fd = open_again(first, O_RDWR);
    pgs__file_ops->close(first);
    if (fd < 0) return fd;
    int rc = pgs__file_ops->ftruncate(fd, (off_t)FILE_BYTES);
    if (rc == 0) rc = pgs__pwrite_full(fd, &h, sizeof h, HEADER_AT);
    if (rc == 0) return fd;
    pgs__file_ops->close(fd);
    return rc;
}

/* Of several processes that need one at the same moment one makes it, under the lock that also says who starts a pager. */
static int find_or_make(struct pgs__session *s)
{
    int fd = find(s), lock = -1;
    if (fd >= 0) return fd;
    if (s->writable) lock = pgs__reopen(s, O_RDWR);
    for (int i = 0; lock >= 0 && fd < 0 && i < 200; i++) {
        int rc = pgs__ofd_lock(lock, PGS__PAGER_LOCK, true);
        fd = find(s);
        if (rc != -EAGAIN) break;
        nap(5);
    }
    if (fd < 0) fd = make(s);
    if (fd >= 0 && s->writable) atomic_store(&pgs__ctl_slot(&s->ctl, s->slot)->image, (uint32_t)fd + 1);
    if (lock >= 0) pgs__file_ops->close(lock);
    return fd;
}

/* A new description of the image, for the caller to close; or -errno. */
static int image(struct pgs__session *s, int flags)
{
    struct pgs__image *im = s->image;
    if (!pgs__cap(PGS__CAP_PROC_FD)) return -ENOTSUP;
    pgs__mutex_lock(&im->mx);
    if (!pgs__image_fd_is_ours(&im->memory)) {
        int fd = find_or_make(s);
        im->memory.fd = -1;
        if (fd >= 0) pgs__image_fd_note(&im->memory, fd);
    }
    int mine = im->memory.fd;
    if (mine >= 0 && s->writable) { /* also in a forked child, whose slot is new */
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, s->slot);
        if (atomic_load(&slot->image) == 0 && atomic_load(&slot->pid) == (uint64_t)getpid())
            atomic_store(&slot->image, (uint32_t)mine + 1);
    }
    int fd = mine < 0 ? -ENOTSUP : open_again(mine, flags);
    pgs__mutex_unlock(&im->mx);
    return fd;
}

/* --- making room --------------------------------------------------------------------------------------------------------------------------- */
struct old {
    uint64_t slot;
    uint32_t seconds;
};
static int by_age(const void *a, const void *b)
{
    const struct old *x = a, *y = b;
    return x->seconds < y->seconds ? -1 : x->seconds > y->seconds;
}

/* Every slot that is not absent, oldest first. */
static size_t list_old(int fd, struct old **list)
{
    uint32_t state[PGS_PAGE_SIZE / 4];
    size_t n = 0, cap = 0;
    uint64_t at = STATE_AT;
    *list = NULL;
    while (at < HEADER_AT) {
        off_t data = pgs__file_ops->seek(fd, (off_t)at, SEEK_DATA);
        if (data < 0 || (uint64_t)data >= HEADER_AT) break;
        at = (uint64_t)data & ~(uint64_t)(PGS_PAGE_SIZE - 1);
        if (pgs__pread_full(fd, state, sizeof state, at)) break;
        for (uint64_t i = 0; i < PGS_ARRAY_LEN(state); i++) {
            if (state[i] == 0) continue;
            if (pgs__grow(list, &cap, n + 1, sizeof **list)) break;
            (*list)[n++] = (struct old){(at - STATE_AT) / 4 + i, state[i]};
        }
        at += PGS_PAGE_SIZE;
    }
    if (n) qsort(*list, n, sizeof **list, by_age);
    return n;
}

static int set_state(int fd, uint64_t slot, uint32_t state)
{
    return pgs__pwrite_full(fd, &state, sizeof state, STATE_AT + 4 * slot);
}

static void punch(int fd, uint64_t slot)
{
    if (pgs__ofd_lock(fd, slot, true)) return; /* somebody maps it */
    if (set_state(fd, slot, BUSY) == 0 &&
        pgs__file_ops->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(slot * PGS__COLD_BYTES),
                                 PGS__COLD_BYTES) == 0)
        (void)set_state(fd, slot, 0);
    pgs__ofd_unlock(fd, slot);
}

/* Until no more than `most` bytes are used, if that can be had. fd's description has no locks on slots. */
static void evict(int fd, uint64_t most)
{
    struct old *list;
    uint64_t used = used_bytes(fd);
    if (used <= most) return;
    size_t n = list_old(fd, &list);
    for (size_t i = 0; i < n && used > most; i++) {
        punch(fd, list[i].slot);
        if (i % 64 == 63 || used < most + 64ull * PGS__COLD_BYTES) used = used_bytes(fd);
    }
    pgs__free(list);
}

/* --- filling --------------------------------------------------------------------------------------------------------------------------------- */
struct absent {
    uint64_t slot;
    struct pgs__cold_block block;
};
struct fill {
    struct pgs__session *s;
    int fd;
    uint64_t lo, hi;
    _Atomic uint32_t *state; /* of slot lo, …; mapped */
    void *states;            /* the mapping, whole pages */
    size_t states_len;
    struct absent *list;
    size_t n, cap;
    uint64_t bytes;
    uint32_t now;
};

/* The states of its slots, mapped. */
static int states_map(struct fill *f, struct pgs_error *err)
{
    uint64_t at = STATE_AT + 4 * f->lo, from = at & ~(uint64_t)(PGS_PAGE_SIZE - 1);
    int rc = 0;
    f->states_len = pgs__pages_of(STATE_AT + 4 * f->hi - from) << PGS_PAGE_SHIFT;
    uint8_t *p = pgs__file_ops->map(f->fd, PGS__MAP_WRITE, NULL, f->states_len, (off_t)from, &rc);
    if (rc) return pgs__fail_os(err, -rc, "cannot map the states of compressed blocks");
    f->states = p;
    f->state = (_Atomic uint32_t *)(void *)(p + (at - from));
    f->now = (uint32_t)(pgs__clock_boot_ns() / 1000000000u) + BUSY + 1;
    return 0;
}

static void fill_free(struct fill *f)
{
    if (f->states) pgs__file_ops->unmap(f->states, f->states_len);
    pgs__free(f->list);
}

static bool is_absent(const struct fill *f, uint64_t slot)
{
    /* Acquire: then the bytes are there. Pairs with the release in fill_one. */
    return atomic_load_explicit(&f->state[slot - f->lo], memory_order_acquire) <= BUSY;
}

static bool any_absent(const struct fill *f)
{
    for (uint64_t slot = f->lo; slot < f->hi; slot++)
        if (is_absent(f, slot)) return true;
    return false;
}

/* What the table says of all absent slots. Found under one pin of the meta data; the bytes are protected by the caller's own (C4). */
static int list_absent(struct fill *f, struct pgs_error *err)
{
    struct pgs__ledger l;
    f->n = 0;
    f->bytes = 0;
    int rc = pgs__meta_begin(f->s, &l, err);
    if (rc) return rc;
    for (uint64_t slot = f->lo; slot < f->hi && rc == 0; slot++) {
        if (!is_absent(f, slot)) continue;
        if (pgs__grow(&f->list, &f->cap, f->n + 1, sizeof *f->list)) {
            rc = pgs__fail(err, PGS_ENOMEM, "no memory for a list of blocks");
            break;
        }
        struct absent *a = &f->list[f->n++];
        a->slot = slot;
        rc = pgs__ledger_cold_get(&l, slot, &a->block, err);
        if (rc == -PGS_ENOENT) rc = pgs__fail_corrupt(err, "", "compressed block %llu is not in the table", LLU(slot));
        if (rc == 0) f->bytes += a->block.n_bytes;
    }
    pgs__meta_end(f->s, &l);
    return rc;
}

static int fill_one(struct fill *f, const struct absent *a, void *buf, struct pgs_error *err)
{
    _Atomic uint32_t *state = &f->state[a->slot - f->lo];
    int rc = pgs__cold_block_fetch(&f->s->pf, a->slot, &a->block, buf, err);
    if (rc) return rc;
    uint32_t absent = 0;
    atomic_compare_exchange_strong(state, &absent, BUSY); /* E3; another process may have it done already */
    rc = pgs__pwrite_full(f->fd, buf, a->block.n_bytes, a->slot * PGS__COLD_BYTES);
    if (rc) return pgs__fail(err, PGS_ENOMEM, "no memory for %u decompressed bytes", a->block.n_bytes);
    /* Release: the bytes are there before the state says so. Pairs with the acquire in is_absent. */
    atomic_store_explicit(state, f->now, memory_order_release);
    return 0;
}

static int fill_group(void *ctx, uint64_t group, struct pgs_error *err)
{
    struct fill *f = ctx;
    size_t first = group * GROUP, end = pgs__min_u64(first + GROUP, f->n);
    uint8_t *buf = pgs__malloc(PGS__COLD_BYTES);
    if (!buf) return pgs__fail(err, PGS_ENOMEM, "no memory to decompress a block");
    int rc = 0;
    for (size_t i = first; i < end && rc == 0; i++) rc = fill_one(f, &f->list[i], buf, err);
    pgs__free(buf);
    return rc;
}

/* E4. The description is for this lock and eviction's. */
static void lock_fill(int fd)
{
    uint64_t seen = used_bytes(fd), since = pgs__clock_boot_ns();
    while (pgs__ofd_lock(fd, FILL, true) == -EAGAIN) {
        uint64_t used = used_bytes(fd), now = pgs__clock_boot_ns();
        if (used != seen) since = now;
        if (now - since > PATIENCE_NS) return;
        seen = used;
        nap(2);
    }
}

/* Room for f->bytes: by the budget, and by the memory that there is. */
static int make_room(struct fill *f, int fd, struct pgs_error *err)
{
    uint64_t budget, used;
    struct pgs__ram ram;
    int rc = pgs__eager_budget(&budget, err);
    if (rc) return rc;
    uint64_t most = budget > f->bytes ? budget - f->bytes : 0;
    evict(fd, most);
    used = used_bytes(fd);
    if (f->bytes > budget || used > most) return over(f->s, used, f->bytes, budget, err);
    pgs__ram_look(f->bytes, &ram);
    if (ram.by == PGS__RAM_NOTHING || ram.left >= f->bytes) return 0;
    uint64_t lacking = f->bytes - ram.left;
    evict(fd, used > lacking ? used - lacking : 0);
    pgs__ram_look(f->bytes, &ram);
    return ram.left >= f->bytes ? 0 : over(f->s, used_bytes(fd), f->bytes, used + ram.left, err);
}

/* Make present what is absent, while a description of the caller's holds the read locks. */
static int fill(struct pgs__session *s, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    struct fill f = {.s = s, .lo = lo, .hi = hi};
    f.fd = image(s, O_RDWR);
    if (f.fd < 0) return -PGS_ENOTSUP;
    int rc = states_map(&f, err);
    if (rc == 0 && any_absent(&f)) {
        lock_fill(f.fd);
        rc = list_absent(&f, err);
        if (rc == 0 && f.n) rc = make_room(&f, f.fd, err);
        if (rc == 0) rc = pgs__parallel((f.n + GROUP - 1) / GROUP, fill_group, &f, err);
    }
    /* Relaxed: a hint of age. What was filled above has it. */
    if (rc == 0)
        for (uint64_t slot = lo; slot < hi; slot++)
            atomic_store_explicit(&f.state[slot - lo], f.now, memory_order_relaxed);
    fill_free(&f);
    pgs__ofd_unlock(f.fd, FILL); /* a child forked meanwhile has the description, too */
    pgs__file_ops->close(f.fd);
    return rc;
}

/* A description with the read locks of [lo, hi). Who punches one of them holds it for some microseconds. */
static int hold(struct pgs__session *s, uint64_t lo, uint64_t hi)
{
    int fd = image(s, O_RDONLY);
    if (fd < 0) return -PGS_ENOTSUP;
    for (int i = 0; i < 2000; i++) {
        int rc = pgs__ofd_lock_range(fd, lo, hi - lo, false);
        if (rc == 0) return fd;
        if (rc != -EAGAIN) break;
        nap(1);
    }
    pgs__file_ops->close(fd);
    return -PGS_ENOTSUP;
}

int pgs__eager_fill(struct pgs__session *s, uint64_t lo, uint64_t hi, struct pgs_error *err)
{
    int fd = hold(s, lo, hi);
    if (fd < 0) return fd;
    int rc = fill(s, lo, hi, err);
    pgs__file_ops->close(fd);
    return rc;
}

/* Nothing to map, so the caller will copy; that must fit the budget as well. */
static int refuse(struct pgs__session *s, uint64_t n_pages, struct pgs_error *err)
{
    uint64_t budget;
    int rc = pgs__eager_budget(&budget, err);
    if (rc) return rc;
    return n_pages > budget >> PGS_PAGE_SHIFT ? over(s, 0, n_pages << PGS_PAGE_SHIFT, budget, err) : -PGS_ENOTSUP;
}

int pgs__eager_map(struct pgs__session *s, uint64_t page, uint64_t n_pages, void *addr, bool cow, struct pgs_error *err)
{
    uint64_t lo = pgs__cold_slot(page), hi = pgs__cold_slot(page + n_pages - 1) + 1;
    int fd = hold(s, lo, hi);
    if (fd < 0) return refuse(s, n_pages, err);
    int rc = fill(s, lo, hi, err);
    if (rc == 0) {
        (void)pgs__file_ops->map(fd, cow ? PGS__MAP_COW : PGS__MAP_READ, addr, n_pages << PGS_PAGE_SHIFT,
                                 (off_t)((page - PGS__COLD_FIRST) << PGS_PAGE_SHIFT), &rc);
        if (rc) rc = pgs__fail_os(err, -rc, "cannot map %llu pages of decompressed data", LLU(n_pages));
    }
    pgs__file_ops->close(fd); /* the mapping keeps the locks: E1 */
    return rc;
}
