/* Pagestone | txn/pin — pinning generations, and reading meta data.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The table of pins of this process and the cells of its slot have the same indices. An entry is made once per generation and counted; the protocol
 * (session.h) is gone through when the cell is stored, under the table's mutex, so that whoever finds a proven entry has nothing to prove.
 *
 * Why it is enough to look again. Let R store its cell, fence, and then find the generation not expired in a head h. The commit that expires it publishes some
 * h' > h, so its publication comes after R's read of h; a commit that drops it begins later and fences before it collects; R's fence is before that one in the one
 * order of all fences, so the collector sees the cell. An unmoved drop_epoch proves the same without looking: it is raised after h' is published.
 *
 * A process without write permission stores no cells; it holds read locks on bytes of the page file, one per generation, all on one description that a
 * mapping keeps. The kernel's list of locks takes the place of the cells in the proof.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>

#include "libshm/platform/inject.h"
#include "libshm/platform/mem.h"
#include "libshm/txn/session_impl.h"

#define FIND_TRIES 10000u
#define CELLS_PER_PAGE (PGS_PAGE_SIZE / 8)

/* --- read locks ----------------------------------------------------------------------------------------------------------- */
int pgs__reader_open(struct pgs__session *s, bool dont_fork, int *fd, struct pgs__held_lock *lock)
{
    int got = pgs__reopen(s, O_RDONLY), rc = 0;
    if (got < 0) return got;
    void *p = pgs__file_ops->map(got, PGS__MAP_READ, NULL, PGS_PAGE_SIZE, 0, &rc);
    struct pgs__held_lock l = {rc == 0 ? p : NULL};
    if (rc == 0) rc = pgs__ofd_lock(got, PGS__LOCK_READER, false);
    if (rc == 0 && dont_fork) rc = pgs__held_lock_dontfork(&l);
    if (rc) {
        pgs__held_lock_drop(&l);
        pgs__file_ops->close(got);
        return rc;
    }
    *fd = got;
    *lock = l;
    return 0;
}

/* The host program closed the descriptor. Its description lives by the mapping: lock everything anew on another one, then let go. */
static int reader_revive(struct pgs__session *s)
{
    int fd, rc = 0;
    struct pgs__held_lock lock;
    if (pgs__fd_is_pages(s, s->read_lock_fd)) return 0;
    rc = pgs__reader_open(s, true, &fd, &lock);
    if (rc) return rc;
    for (uint32_t i = 0; i < s->n_pins && rc == 0; i++)
        if (s->pins[i].gen) rc = pgs__ofd_lock(fd, PGS__LOCK_READ(s->pins[i].gen), false);
    for (uint32_t i = 0; i < s->meta_readers && rc == 0; i++)
        rc = pgs__ofd_lock(fd, PGS__LOCK_META(s->meta[i].pin), false);
    if (rc) {
        pgs__held_lock_drop(&lock);
        pgs__file_ops->close(fd);
        return rc;
    }
    if (!s->frozen) pgs__held_lock_drop(&s->read_lock); /* frozen: it also has the locks that are in no table */
    s->read_lock = lock;
    s->read_lock_fd = fd;
    return 0;
}

static int reader_lock(struct pgs__session *s, uint64_t byte)
{
    int rc = reader_revive(s);
    return rc ? rc : pgs__ofd_lock(s->read_lock_fd, byte, false);
}

static void reader_unlock(struct pgs__session *s, uint64_t byte)
{
    /* Shared with a relative: the lock is his as well. Without a descriptor: it falls with the next revival. */
    if (s->family || s->frozen || !pgs__fd_is_pages(s, s->read_lock_fd)) return;
    pgs__ofd_unlock(s->read_lock_fd, byte);
}

/* --- cells ------------------------------------------------------------------------------------------------------------------ */
int pgs__cells_reserve(struct pgs__session *s, uint32_t slot, uint32_t n_cells)
{
    if (n_cells <= PGS__PINS_INLINE) return 0;
    uint64_t off = PGS__PINS_OVERFLOW_OFFSET + (uint64_t)slot * PGS__PINS_OVERFLOW * 8;
    return pgs__ctl_reserve(&s->ctl, off, (uint64_t)(n_cells - PGS__PINS_INLINE) * 8, NULL);
}

static int fail_pin(int rc, struct pgs_error *err)
{
    switch (rc) {
    case -PGS_E2BIG:
        return pgs__fail(err, PGS_ENOMEM, "this process pins more than %u generations: close snapshots", PGS__MAX_PINS);
    case -PGS_ENOMEM:
        return pgs__fail(err, PGS_ENOMEM, "no memory for the table of pins");
    case -PGS_EFULL:
        return pgs__fail(err, PGS_EFULL, "no space for more pins in the control file: close snapshots");
    default:
        return pgs__fail_os(err, -rc, "cannot lock a generation for reading");
    }
}

/* Make entry and cell i usable. */
static int reach(struct pgs__session *s, uint32_t i)
{
    if (i >= PGS__MAX_PINS) return -PGS_E2BIG;
    if (i >= s->n_pins) {
        size_t old = s->cap_pins;
        if (pgs__grow(&s->pins, &s->cap_pins, i + 1u, sizeof *s->pins)) return -PGS_ENOMEM;
        if (s->cap_pins > old) memset(s->pins + old, 0, (s->cap_pins - old) * sizeof *s->pins);
    }
    if (!s->writable || i < s->n_cells) return 0;
    uint32_t n = s->n_cells + CELLS_PER_PAGE;
    if (n > PGS__MAX_PINS) n = PGS__MAX_PINS;
    if (pgs__cells_reserve(s, s->slot, n)) return -PGS_EFULL;
    s->n_cells = n;
    return 0;
}

/* The high-water mark that collectors go by. The stores before a fence: the cell's fence makes both visible. */
static void raise_n(struct pgs__session *s, uint32_t n)
{
    _Atomic uint32_t *mark = &pgs__ctl_slot(&s->ctl, s->slot)->n_pins;
    uint32_t seen = atomic_load_explicit(mark, memory_order_relaxed);
    while (seen < n && !atomic_compare_exchange_weak(mark, &seen, n)) {
    }
}

/* Relaxed stores: pgs__fence follows before anything is concluded, and collectors fence as well. False: a relative has the cell. */
static bool cell_set(struct pgs__session *s, uint32_t i, uint64_t gen)
{
    raise_n(s, i + 1);
    _Atomic uint64_t *cell = pgs__ctl_pin(&s->ctl, s->slot, i);
    uint64_t nothing = 0;
    if (s->family) return atomic_compare_exchange_strong(cell, &nothing, gen);
    atomic_store_explicit(cell, gen, memory_order_relaxed);
    return true;
}

/* The entry of gen with one reference more. *proven false: made now, the caller has to prove it (or to put it). Under the mutex. */
static int entry_get(struct pgs__session *s, uint64_t gen, uint32_t *index, bool *proven)
{
    uint32_t i = s->head_index, free_at = s->n_pins;
    if (i >= s->n_pins || s->pins[i].gen != gen || s->pins[i].foreign)
        for (i = 0; i < s->n_pins; i++) {
            if (s->pins[i].gen == gen && !s->pins[i].foreign) break;
            if (s->pins[i].gen == 0 && !s->pins[i].foreign && free_at == s->n_pins) free_at = i;
        }
    if (i == s->n_pins) {
        for (i = free_at;; i++) {
            int rc = reach(s, i);
            if (rc) return rc;
            if (i < s->n_pins && (s->pins[i].gen || s->pins[i].foreign)) continue;
            if (!s->writable) {
                rc = reader_lock(s, PGS__LOCK_READ(gen));
                if (rc) return rc;
                break;
            }
            if (cell_set(s, i, gen)) break;
            s->pins[i] = (struct pgs__pin_entry){.foreign = true};
            if (i >= s->n_pins) s->n_pins = i + 1;
        }
        s->pins[i] = (struct pgs__pin_entry){.gen = gen};
        if (i >= s->n_pins) s->n_pins = i + 1;
    }
    s->pins[i].refs++;
    *index = i;
    *proven = s->pins[i].proven;
    return 0;
}

void pgs__pin_put_locked(struct pgs__session *s, uint32_t i)
{
    struct pgs__pin_entry *e = &s->pins[i];
    PGS_BUG_ON(i >= s->n_pins || e->refs == 0);
    if (--e->refs || e->frozen) return;
    PGS_BUG_ON(e->movable);
    if (s->writable) /* release: what was read under the pin was read before. Pairs with the acquire of collectors */
        atomic_store_explicit(pgs__ctl_pin(&s->ctl, s->slot, i), 0, memory_order_release);
    else
        reader_unlock(s, PGS__LOCK_READ(e->gen));
    *e = (struct pgs__pin_entry){0};
    if (s->family) return;
    uint32_t n = s->n_pins;
    while (n > 0 && s->pins[n - 1].gen == 0) n--;
    if (n == s->n_pins) return;
    s->n_pins = n;
    if (s->writable) atomic_store_explicit(&pgs__ctl_slot(&s->ctl, s->slot)->n_pins, n, memory_order_release);
}

static uint64_t epoch(struct pgs__session *s)
{
    /* acquire: the head that is read next is at least the one that was published before the epoch was raised. Pairs with pgs__publish. */
    return atomic_load_explicit(&s->ctl.c->drop_epoch, memory_order_acquire);
}

/* --- the head ---------------------------------------------------------------------------------------------------------------------- */
static int read_head(struct pgs__session *s, struct pgs__root *root, struct pgs_error *err)
{
    if (pgs__ctl_head(&s->ctl, root) == 0) return 0;
    return pgs__fail_corrupt(err, "the control file", "the newest root in the control file is damaged");
}

static inline int pin_head(struct pgs__session *s, struct pgs__root *root, struct pgs__pin *pin, struct pgs_error *err)
{
    uint32_t i = UINT32_MAX;
    int rc = 0;
    for (;;) {
        bool proven;
        uint64_t e0 = epoch(s);
        uint64_t gen = atomic_load_explicit(&s->ctl.c->head_gen, memory_order_acquire);
        if (s->head_root.gen != gen) rc = read_head(s, &s->head_root, err);
        if (rc == 0) {
            gen = s->head_root.gen;
            PGS_KILL_POINT("pin_found");
            rc = entry_get(s, gen, &i, &proven);
            if (rc) rc = fail_pin(rc, err);
        }
        if (rc) break;
        s->head_index = i;
        if (proven) break;
        pgs__fence();
        /* An unmoved head is the looking again of the proof: a head is not expired. Relaxed: the fence orders them. */
        if (atomic_load_explicit(&s->ctl.c->drop_epoch, memory_order_relaxed) == e0 ||
            atomic_load_explicit(&s->ctl.c->head_gen, memory_order_relaxed) == gen || PGS_PLANTED(4)) {
            s->pins[i].proven = true;
            break;
        }
        pgs__pin_put_locked(s, i);
    }
    if (rc == 0) {
        *root = s->head_root;
        *pin = (struct pgs__pin){.index = i, .gen = root->gen};
    } else {
        s->head_root.gen = 0;
    }
    return rc;
}

int pgs__pin_head(struct pgs__session *s, struct pgs__root *root, struct pgs__pin *pin, struct pgs_error *err)
{
    int rc = pgs__session_check(s, err);
    if (PGS_UNLIKELY(rc)) return rc;
    pgs__mutex_lock(&s->pins_mx);
    rc = pin_head(s, root, pin, err);
    pgs__mutex_unlock(&s->pins_mx);
    return rc;
}

int pgs__pin_head_locked(struct pgs__session *s, struct pgs__root *root, struct pgs__pin *pin, struct pgs_error *err)
{
    return pin_head(s, root, pin, err);
}

/* --- what is found in the meta data ------------------------------------------------------------------------------------------------ */
static int look(struct pgs__session *s, pgs__find_fn find, void *ctx, struct pgs__root *root, struct pgs_error *err)
{
    struct pgs__ledger l;
    int rc = pgs__meta_begin(s, &l, err);
    if (rc) return rc;
    rc = find(&l, ctx, root, err);
    pgs__meta_end(s, &l);
    return rc;
}

/* One round: pin what was found at epoch e0. *held: what the round before pinned without proof, or UINT32_MAX. 0: proven. 1: again. */
static int pin_round(struct pgs__session *s, uint64_t gen, uint64_t e0, uint32_t *held)
{
    int rc = 0;
    bool proven = false;
    uint32_t i;
    pgs__mutex_lock(&s->pins_mx);
    if (*held != UINT32_MAX && s->pins[*held].gen == gen) { /* found again, in a head read after its fence */
        s->pins[*held].proven = true;
        goto out;
    }
    rc = entry_get(s, gen, &i, &proven);
    if (rc) goto out;
    if (*held != UINT32_MAX) pgs__pin_put_locked(s, *held);
    *held = i;
    if (proven) goto out;
    pgs__fence();
    if (atomic_load_explicit(&s->ctl.c->drop_epoch, memory_order_relaxed) == e0 || PGS_PLANTED(4)) /* fence as above */
        s->pins[i].proven = true;
    else
        rc = 1;
out:
    pgs__mutex_unlock(&s->pins_mx);
    return rc;
}

static void put_held(struct pgs__session *s, uint32_t held)
{
    if (held == UINT32_MAX) return;
    pgs__mutex_lock(&s->pins_mx);
    pgs__pin_put_locked(s, held);
    pgs__mutex_unlock(&s->pins_mx);
}

int pgs__pin_find(struct pgs__session *s, pgs__find_fn find, void *ctx, struct pgs__root *root, struct pgs__pin *pin,
                  struct pgs_error *err)
{
    struct pgs__root found;
    uint32_t held = UINT32_MAX;
    for (unsigned tries = 0; tries < FIND_TRIES; tries++) {
        uint64_t e0 = epoch(s);
        int rc = look(s, find, ctx, &found, err);
        if (rc == 0) {
            PGS_KILL_POINT("pin_found");
            rc = pin_round(s, found.gen, e0, &held);
            if (rc < 0) rc = fail_pin(rc, err);
        }
        if (rc < 0) {
            put_held(s, held);
            return rc;
        }
        if (rc == 0) {
            *root = found;
            *pin = (struct pgs__pin){.index = held, .gen = found.gen};
            return 0;
        }
    }
    put_held(s, held);
    return pgs__fail(err, PGS_EEXPIRED, "versions are dropped faster than this one could be found: try again");
}

/* --- by generation ---------------------------------------------------------------------------------------------------------------------- */
struct wanted {
    pgs_gen_t gen;
    bool expired;
};

static int find_gen(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *err)
{
    struct wanted *w = ctx;
    int rc = pgs__ledger_find_gen(l, w->gen, root, &w->expired, err);
    if (rc) return rc;
    return w->expired ? -PGS_EEXPIRED : 0; /* silently: another way is tried */
}

/* Expired, perhaps a zombie: nobody drops it while we have the commit lock. */
static int pin_locked(struct pgs__session *s, pgs_gen_t gen, int64_t timeout_ns, struct pgs__root *root,
                      struct pgs__pin *pin, struct pgs_error *err)
{
    struct pgs__ledger l;
    struct pgs__root head;
    uint32_t i;
    bool proven;
    int rc = pgs__commit_lock(s, &(struct pgs__wait){.timeout_ns = timeout_ns}, err);
    if (rc) return rc;
    rc = read_head(s, &head, err);
    if (rc == 0) rc = pgs__ledger_open(&l, &s->pf, &head, err);
    if (rc == 0) {
        rc = pgs__ledger_find_gen(&l, gen, root, NULL, err);
        pgs__ledger_close(&l);
    }
    if (rc == 0) {
        pgs__mutex_lock(&s->pins_mx);
        rc = entry_get(s, gen, &i, &proven);
        if (rc == 0) s->pins[i].proven = true; /* the next commit begins after our unlock, which orders the cell */
        pgs__mutex_unlock(&s->pins_mx);
        if (rc) rc = fail_pin(rc, err);
    }
    pgs__commit_unlock(s);
    if (rc == 0) *pin = (struct pgs__pin){.index = i, .gen = gen};
    return rc;
}

static int find_even_expired(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *err)
{
    return pgs__ledger_find_gen(l, ((struct wanted *)ctx)->gen, root, NULL, err);
}

/* Nobody has been inside a commit at some moment since the fence after our read lock. pgs__commit_lock and pgs__commit_unlock fence on their side. */
static bool commit_over(struct pgs__session *s, uint64_t head)
{
    if (atomic_load(&s->ctl.c->head_gen) != head) return true;
    return atomic_load(&pgs__ctl_commit_lock(&s->ctl)->owner_pid) == 0;
}

/* The same for a reader, who cannot lock: pin first; once the commit that was going on is over, later ones see the pin; then look whether the generation is still there. */
static int pin_waiting(struct pgs__session *s, pgs_gen_t gen, int64_t timeout_ns, struct pgs__root *root,
                       struct pgs__pin *pin, struct pgs_error *err)
{
    struct wanted w = {.gen = gen};
    uint32_t i;
    bool proven;
    pgs__mutex_lock(&s->pins_mx);
    int rc = entry_get(s, gen, &i, &proven);
    pgs__mutex_unlock(&s->pins_mx);
    if (rc) return fail_pin(rc, err);
    pgs__fence();
    uint64_t head = atomic_load(&s->ctl.c->head_gen), start = pgs__clock_mono_ns();
    while (!commit_over(s, head)) {
        if (timeout_ns >= 0 && pgs__clock_mono_ns() - start > (uint64_t)timeout_ns) {
            put_held(s, i);
            return pgs__fail(err, PGS_ELOCKED, "a commit is going on and does not end; raise timeout=");
        }
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    pgs__fence();
    rc = look(s, find_even_expired, &w, root, err);
    if (rc) {
        put_held(s, i);
        return rc;
    }
    pgs__mutex_lock(&s->pins_mx);
    s->pins[i].proven = true;
    pgs__mutex_unlock(&s->pins_mx);
    *pin = (struct pgs__pin){.index = i, .gen = gen};
    return 0;
}

int pgs__pin_gen(struct pgs__session *s, pgs_gen_t gen, int64_t timeout_ns, struct pgs__root *root,
                 struct pgs__pin *pin, struct pgs_error *err)
{
    struct wanted w = {.gen = gen};
    int rc = pgs__pin_find(s, find_gen, &w, root, pin, err);
    if (rc != -PGS_EEXPIRED || !w.expired) return rc;
    return s->writable ? pin_locked(s, gen, timeout_ns, root, pin, err)
                       : pin_waiting(s, gen, timeout_ns, root, pin, err);
}

/* --- copies ---------------------------------------------------------------------------------------------------------------------------------- */
void pgs__pin_dup(struct pgs__session *s, const struct pgs__pin *pin)
{
    if (pin->index == UINT32_MAX || pgs__session_lost()) return;
    pgs__mutex_lock(&s->pins_mx);
    PGS_BUG_ON(pin->index >= s->n_pins || s->pins[pin->index].gen != pin->gen);
    s->pins[pin->index].refs++;
    pgs__mutex_unlock(&s->pins_mx);
}

void pgs__pin_drop(struct pgs__session *s, const struct pgs__pin *pin)
{
    if (pin->index == UINT32_MAX || pgs__session_lost()) return;
    pgs__mutex_lock(&s->pins_mx);
    PGS_BUG_ON(pin->index >= s->n_pins || s->pins[pin->index].gen != pin->gen);
    pgs__pin_put_locked(s, pin->index);
    pgs__mutex_unlock(&s->pins_mx);
}

bool pgs__pin_valid(struct pgs__session *s, const struct pgs__pin *pin)
{
    if (pin->index == UINT32_MAX) return true;
    if (pgs__session_lost()) return false;
    pgs__mutex_lock(&s->pins_mx);
    bool ok = pin->index < s->n_pins && s->pins[pin->index].gen == pin->gen && s->pins[pin->index].refs > 0;
    if (ok && s->writable) {
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, s->slot);
        ok = atomic_load(&slot->tag) == s->tag && atomic_load(pgs__ctl_pin(&s->ctl, s->slot, pin->index)) == pin->gen;
    }
    pgs__mutex_unlock(&s->pins_mx);
    return ok;
}

/* --- meta data ----------------------------------------------------------------------------------------------------------------------------------- */
/* The word that collectors of meta pins read. */
static _Atomic uint64_t *meta_word(struct pgs__session *s)
{
    struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, s->slot);
    if (s->family_index == 0) return &slot->meta_pin;
    uint32_t i = s->family_index - 1;
    return &slot->family_meta[i < PGS__SLOT_FAMILY ? i : PGS__SLOT_FAMILY - 1];
}

/* Several relatives in the last word: it only falls, and stays until all are gone. */
static bool meta_word_shared(const struct pgs__session *s)
{
    return s->family_index >= PGS__SLOT_FAMILY;
}

static bool pin_used(const struct pgs__session *s, uint64_t pin)
{
    for (uint32_t i = 0; i < s->meta_readers; i++)
        if (s->meta[i].pin == pin) return true;
    return false;
}

/* Protect the meta data of generation gen and later ones: visible to everybody before the head is read. */
static int meta_protect(struct pgs__session *s, uint64_t gen)
{
    if (!s->writable) {
        int rc = reader_lock(s, PGS__LOCK_META(gen));
        pgs__fence();
        return rc;
    }
    _Atomic uint64_t *word = meta_word(s);
    if (meta_word_shared(s)) {
        uint64_t seen = atomic_load(word);
        while ((seen == 0 || seen > gen) && !atomic_compare_exchange_weak(word, &seen, gen)) {
        }
    } else if (s->meta_readers == 0) {
        atomic_store_explicit(word, gen, memory_order_relaxed); /* the fence follows */
    }                                                           /* else an older one stands there, and protects ours */
    pgs__fence();
    return 0;
}

static void meta_unprotect(struct pgs__session *s, uint64_t pin)
{
    if (pin_used(s, pin)) return;
    if (!s->writable) {
        reader_unlock(s, PGS__LOCK_META(pin));
        return;
    }
    if (meta_word_shared(s)) return;
    uint64_t min = UINT64_MAX;
    for (uint32_t i = 0; i < s->meta_readers; i++) min = pgs__min_u64(min, s->meta[i].pin);
    /* release: what was read before is done with. Pairs with the acquire in pgs__min_meta_pin. */
    atomic_store_explicit(meta_word(s), min == UINT64_MAX ? 0 : min, memory_order_release);
}

static int meta_enter(struct pgs__session *s, struct pgs__root *root, struct pgs_error *err)
{
    if (pgs__grow(&s->meta, &s->cap_meta, s->meta_readers + 1u, sizeof *s->meta))
        return pgs__fail(err, PGS_ENOMEM, "no memory to read the store's history");
    uint64_t pin = atomic_load_explicit(&s->ctl.c->head_gen, memory_order_acquire);
    int rc = meta_protect(s, pin);
    if (rc) return fail_pin(rc, err);
    rc = read_head(s, root, err);
    if (rc) {
        meta_unprotect(s, pin);
        return rc;
    }
    for (uint32_t i = 0; i < s->meta_readers; i++)
        if (s->meta[i].gen == root->gen) {
            s->meta[i].refs++;
            meta_unprotect(s, pin); /* that entry's own pin is as good */
            return 0;
        }
    s->meta[s->meta_readers++] = (struct pgs__meta_entry){.gen = root->gen, .pin = pin, .refs = 1};
    return 0;
}

static void meta_leave(struct pgs__session *s, uint64_t gen)
{
    for (uint32_t i = 0; i < s->meta_readers; i++)
        if (s->meta[i].gen == gen) {
            uint64_t pin = s->meta[i].pin;
            if (--s->meta[i].refs) return;
            s->meta[i] = s->meta[--s->meta_readers];
            meta_unprotect(s, pin);
            return;
        }
    PGS_BUG_ON(atomic_load(&s->fork_count) == 0); /* begun in the parent: the child has no meta pins */
}

int pgs__meta_begin(struct pgs__session *s, struct pgs__ledger *l, struct pgs_error *err)
{
    struct pgs__root root;
    int rc = pgs__session_check(s, err);
    if (rc) return rc;
    pgs__mutex_lock(&s->pins_mx);
    rc = meta_enter(s, &root, err);
    pgs__mutex_unlock(&s->pins_mx);
    if (rc) return rc;
    rc = pgs__ledger_open(l, &s->pf, &root, err);
    if (rc == 0) return 0;
    pgs__mutex_lock(&s->pins_mx);
    meta_leave(s, root.gen);
    pgs__mutex_unlock(&s->pins_mx);
    return rc;
}

void pgs__meta_end(struct pgs__session *s, struct pgs__ledger *l)
{
    uint64_t gen = l->head.gen;
    pgs__ledger_close(l);
    if (pgs__session_lost()) return;
    pgs__mutex_lock(&s->pins_mx);
    meta_leave(s, gen);
    pgs__mutex_unlock(&s->pins_mx);
}
