/* Pagestone | txn/session — this process's membership in one store: slot, pins, commit lock, head, recovery.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One session per process and page file (device, inode), shared by every Store, snapshot, transaction and view over it; it ends with its last
 * reference. A process with write permission owns a slot in the control file; one without pins by OFD read locks.
 *
 * The pin protocol (HAZARDS 5; docs/design/locking.md has the proof):
 *     reader    e0 = drop_epoch (acquire); find the root; slot.pin[i] = gen; fence(seq_cst); drop_epoch == e0, or look again: a generation that is
 *               found once more, in a head that was read after the fence, is pinned as well
 *     dropper   publish a root in which the generation is expired or gone; drop_epoch += 1; fence(seq_cst); only commits after that ask for pins, under the
 *               commit lock, and only they move runs on
 * An expired generation gets no new pins but copies of an existing pin (fork, dup) or, under the commit lock, by handle.
 *
 *   I1  A pin cell is written by its process only (or by who holds the slot's lock after its death).
 *   I2  Locks in ascending rank (platform/lock.h). The pin table's mutex is held across fork.
 *   I3  After fork the child has a slot of its own, with copies of all pins, before fork returns; where that fails it shares the parent's (family slot).
 *   I4  A slot, its pins and its chunks are taken back only by a process that holds the slot's OFD lock (HAZARDS 4, 9).
 *   I5  A pin never vanishes between two looks of a collector: who copies pins to another slot counts pin_moves before the original may go; who turns a pin
 *       into a lease keeps the pin until the lease is in the table, and collectors look at slots first. Pins that move to the head need none of this:
 *       the new one is proven by itself before the old one goes (advance.c).
 */
#ifndef PGS_TXN_SESSION_H
#define PGS_TXN_SESSION_H

#include "libshm/pages/control.h"
#include "libshm/txn/ledger.h"

#define PGS__MAX_PINS (PGS__PINS_INLINE + PGS__PINS_OVERFLOW)
#define PGS__NO_SLOT UINT32_MAX

struct pgs__pin_entry { /* index = cell index in the slot */
    uint64_t gen;       /* 0: free */
    uint32_t refs;
    bool proven;               /* the protocol was gone through: it holds */
    bool frozen;               /* family slot: the cell was there at the fork and stays until both processes are gone */
    bool foreign;              /* family slot: the cell is the relative's */
    uint32_t n_movable;        /* of refs: those that may move to another entry */
    struct pgs__hold *movable; /* list of them */
};
/* A reference to a pin that its owner, a view, holds for one object, not for a generation: the library moves it to a newer one (advance.c). Lock: PINS. */
struct pgs__pin {
    uint32_t index; /* into pins */
    uint64_t gen;
};
struct pgs__hold {
    struct pgs__pin pin;           /* without one only gen, as it was */
    uint64_t version;              /* of that generation */
    const void *record;            /* the object's, in a leaf of the catalog of pin.gen; NULL: it stays where it is */
    struct pgs__hold *next, *prev; /* in pins[pin.index].movable */
    uint32_t batch;                /* place in advance.batch + 1; 0: none */
    bool linked;
    bool pinned; /* constant while others look: read without the lock */
};
#define PGS__ADVANCE_BATCH 32u
struct pgs__advance { /* the move that is going on, and where the round stands; lock: PINS */
    bool busy;        /* one thread looks objects up, without the lock; below is its work */
    bool in_round;
    uint32_t goal;            /* please_advance as the round began */
    uint64_t until;           /* the head then: what is pinned there or later is left alone */
    uint64_t forks;           /* fork_count as it began: in a child the work is not this thread's any more */
    struct pgs__pin from, to; /* a reference of each */
    struct pgs__root root;    /* of `to` */
    uint32_t n;
    struct {
        struct pgs__hold *hold; /* NULL: dropped meanwhile */
        const void *record, *found;
    } batch[PGS__ADVANCE_BATCH];
};
struct pgs__meta_entry { /* readers of meta data that saw the same head */
    uint64_t gen;        /* of that head */
    uint64_t pin;        /* what protects it: ≤ gen */
    uint32_t refs;
};
struct pgs__fork { /* what the prepare hook made ready for the child; between prepare and parent or child only */
    enum { PGS__FORK_NONE, PGS__FORK_SLOT, PGS__FORK_SPARE, PGS__FORK_FAMILY, PGS__FORK_READER } how;
    struct pgs__held_lock lock;
    uint32_t slot, family_index;
    uint64_t tag;
    int fd;
};
struct pgs__image;            /* txn/image.h */
struct pgs__policy_pass {     /* txn/policy.h: a pass over the catalog, of this process */
    _Atomic uint64_t next_ns; /* CLOCK_BOOTTIME: commits do nothing before */
    _Atomic bool busy;        /* a thread is at it; what follows is its */
    uint64_t target;          /* version; 0: no pass is under way */
    uint64_t page;            /* > 0: of the object `key`, where to go on */
    size_t len;               /* of key: the last one that was dealt with; 0: none */
    uint8_t key[PGS_MAX_KEY];
};
struct pgs__session {
    struct pgs__session *next; /* rooted at session.c: registry; lock: REGISTRY */
    _Atomic int64_t refs;
    struct pgs__pagefile pf;
    struct pgs__ctl ctl;
    uint64_t created_ns; /* of the store, from the superblock */
    bool writable;       /* has a slot */
    bool frozen; /* reader before any writer of this boot: ctl is private, its one generation pinned until the end */
    uint32_t slot;
    uint64_t tag; /* PGS__SLOT_TAG, the owner word of our chunks */
    struct pgs__held_lock lock, spare_lock;
    uint32_t spare_slot;             /* PGS__NO_SLOT: none; lock: PINS */
    bool family;                     /* the slot is shared with a relative; lock: PINS */
    uint32_t family_index;           /* 0: the slot's first process */
    int read_lock_fd;                /* reader without a slot: the description that carries its read locks; -1 */
    struct pgs__held_lock read_lock; /* keeps that description */
    _Atomic uint64_t fork_count;     /* +1 in every forked child: transactions compare */
    struct pgs__fork fork;
    struct pgs__mutex pins_mx; /* PINS: pins … head_index */
    struct pgs__pin_entry *pins;
    size_t cap_pins;
    uint32_t n_pins, n_cells; /* n_cells: pin cells that are backed by memory */
    struct pgs__meta_entry *meta;
    size_t cap_meta;
    uint32_t meta_readers; /* entries of meta */
    struct pgs__root head_root;
    uint32_t head_index;
    _Atomic uint32_t advanced;      /* please_advance, as far as this process has done it */
    _Atomic uint64_t others_stayed; /* pins of others that did not move when they were asked last */
    uint64_t asked_dead;            /* pages_dead when a commit of this process last asked; lock: COMMIT */
    struct pgs__mutex space_mx;     /* SPACE: hints and claims of this process (txn/claim_space.c) */
    uint64_t hint_node, hint_data;
    struct pgs__space *space; /* txn/claim_space.c: what this process knows about free space. Ends by pgs__space_end */
    _Atomic uint64_t bytes_copied, bytes_shared;
    _Atomic uint64_t last_sweep_ns;
    struct pgs__policy_pass policy;
    struct pgs__image *image; /* how compressed data is mapped; NULL: no memory for it */
    struct pgs__advance advance;
};

struct pgs__space;
void pgs__space_end(struct pgs__session *s); /* when the session ends; accepts one without */

/* --- opening ---------------------------------------------------------------------------------------------------------- */
/* Open, create or replace by mode (pgs_open's contract: PGS_ENOENT, PGS_EEXIST, PGS_ENOTSTORE, PGS_EFORMAT, PGS_ECORRUPT, PGS_ENOTSUP, PGS_EACCES …). Creation and replacement are
 * serialised by flock on the directory; a crash in the middle is finished by the next opener. *out has one reference more. */
int pgs__session_open(const char *path, const struct pgs_options *opt, struct pgs__session **out,
                      struct pgs_error *err);
int pgs__session_open_anonymous(const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err);
/* Handle of an anonymous store: uuid, inode, pids of members; or uuid and directory. */
int pgs__session_open_handle(const void *handle, size_t len, const struct pgs_options *opt, struct pgs__session **out,
                             struct pgs_error *err);
size_t pgs__session_handle(struct pgs__session *s, void *buf, size_t cap); /* of a store with a path: the path */
struct pgs__session *pgs__session_ref(struct pgs__session *s);
/* Accepts NULL. The last one: barrier for "ordered" and "none" on disk, superblock clean, slot released. It takes REGISTRY and COMMIT: it is an error to hold a lock here. */
void pgs__session_unref(struct pgs__session *s);
/* This process's state was inherited through fork and the hooks did not run (raw clone): -PGS_EFORKED. Cheap. */
int pgs__session_check(struct pgs__session *s, struct pgs_error *err);

/* --- pins ------------------------------------------------------------------------------------------------------------------ */
/* Pin the head: no system call with a slot. */
int pgs__pin_head(struct pgs__session *s, struct pgs__root *root, struct pgs__pin *pin, struct pgs_error *err);
/* Pin what `find` finds in the meta data of the head, by the protocol above; find is called again while the epoch moves. */
typedef int (*pgs__find_fn)(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *err);
int pgs__pin_find(struct pgs__session *s, pgs__find_fn find, void *ctx, struct pgs__root *root, struct pgs__pin *pin,
                  struct pgs_error *err);
/* Pin a generation named by a handle: kept (as above), or expired but still in the chain (then under the commit lock; a reader without write permission
 * pins first and then waits until the commit that was going on is over). -PGS_EEXPIRED. */
int pgs__pin_gen(struct pgs__session *s, pgs_gen_t gen, int64_t timeout_ns, struct pgs__root *root,
                 struct pgs__pin *pin, struct pgs_error *err);
void pgs__pin_dup(struct pgs__session *s, const struct pgs__pin *pin); /* one reference more */
void pgs__pin_drop(struct pgs__session *s, const struct pgs__pin *pin);
/* Is this pin still what it was? A pin whose index is UINT32_MAX is none and always valid. For damage: -PGS_ECORRUPT is believed only if so. */
bool pgs__pin_valid(struct pgs__session *s, const struct pgs__pin *pin);

/* --- pins that move (advance.c) ------------------------------------------------------------------------------------- */
/* One reference more of `pin`, which the caller holds. h->record and h->version are set before. */
void pgs__hold_take(struct pgs__session *s, struct pgs__hold *h, const struct pgs__pin *pin);
void pgs__hold_drop(struct pgs__session *s, struct pgs__hold *h);
/* From now on it stays where it is, wherever that is: for who hands the generation's number out. */
struct pgs__pin pgs__hold_stay(struct pgs__session *s, struct pgs__hold *h);
pgs_gen_t pgs__hold_gen(struct pgs__session *s, struct pgs__hold *h);
/* Bounded work: look at some holds of older generations, and move those whose object is unchanged to the head. */
void pgs__advance(struct pgs__session *s);
/* Ask all processes, and do what this one can. `wait`: give the others some milliseconds, unless they did not move the last time either. */
void pgs__advance_ask(struct pgs__session *s, bool wait);
/* Under the commit lock, for each commit: have dead pages grown much behind pins since this process asked last? Then ask. */
bool pgs__advance_is_due(struct pgs__session *s, uint64_t pages_dead, uint64_t pages_used, bool zombies);
/* At the beginning of calls. Relaxed: nothing follows from the word but more looking. */
static inline void pgs__advance_if_asked(struct pgs__session *s)
{
    if (PGS_UNLIKELY(atomic_load_explicit(&s->ctl.c->please_advance, memory_order_relaxed) !=
                     atomic_load_explicit(&s->advanced, memory_order_relaxed)))
        pgs__advance(s);
}

/* Meta data of the head, for reading; every begin needs an end. */
int pgs__meta_begin(struct pgs__session *s, struct pgs__ledger *l, struct pgs_error *err);
void pgs__meta_end(struct pgs__session *s, struct pgs__ledger *l);

/* --- under the commit lock -------------------------------------------------------------------------------------------------- */
struct pgs__wait { /* how to wait for the lock */
    int64_t timeout_ns;
    int (*interrupted)(void *ctx);
    void *ctx;
};
/* Lock; recover if the last owner died inside; refuse when replaced (PGS_ESTALE), poisoned or read only (PGS_EREADONLY). -PGS_ELOCKED names the holder's pid and command.
 * Also checks the descriptor (pages I4). */
int pgs__commit_lock(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err);
void pgs__commit_unlock(struct pgs__session *s);
/* The number that the next version gets: the head's + 1, or more after a power loss. Under the commit lock, or as a guess. */
uint64_t pgs__next_version(struct pgs__session *s);
/* Steps 7 and 8 of DESIGN §5: barrier and superblock by durability, head cell, linearization, wake. bytes: written by this commit. epoch: bump drop_epoch after the
 * switch. On -PGS_EIO (a failed barrier) the store is poisoned and the head has not moved. */
int pgs__publish(struct pgs__session *s, const struct pgs__root *root, uint32_t durability, bool new_version,
                 bool epoch, uint64_t bytes, struct pgs_error *err);
/* Barrier + superblock now (ordered: close, gc). Takes the commit lock itself, and fails where a commit would. */
int pgs__make_durable(struct pgs__session *s, const struct pgs__wait *w, struct pgs_error *err);
/* Fence, then collect every pinned or leased generation, of all slots; pgs__pinned looks a generation up there, then asks for OFD read locks on it. `who` (may be NULL) learns one slot. */
struct pgs__pinned_set {
    struct pgs__session *s;
    uint64_t *gens; /* sorted */
    size_t n, cap;
    bool all;  /* could not be collected: everything counts as pinned */
    bool open; /* somebody holds read locks: each generation is asked for */
};
int pgs__pinned_collect(struct pgs__session *s, struct pgs__pinned_set *set, struct pgs_error *err);
int pgs__pinned(void *set, pgs_gen_t gen); /* 1, 0, -PGS_E… */
void pgs__pinned_free(struct pgs__pinned_set *set);
pgs_gen_t pgs__min_meta_pin(struct pgs__session *s); /* UINT64_MAX: nobody reads meta data */
/* Take back what dead processes left: slots, pins, chunks. Returns how many slots. Rate-limited unless `force`. */
int pgs__sweep(struct pgs__session *s, bool force);
/* Finish or repair what a dead owner of the commit lock left (called by pgs__commit_lock). */
int pgs__recover_locked(struct pgs__session *s, struct pgs_error *err);

/* --- leases, waiting ------------------------------------------------------------------------------------------------------------ */
/* The caller holds a pin of gen. Lock-free when gen has a lease already, else under the commit lock (waits at most 30 s: -PGS_ELOCKED). -PGS_EREADONLY: a reader without
 * write permission cannot; its own pin is all. */
int pgs__lease_set(struct pgs__session *s, pgs_gen_t gen, uint64_t ns, struct pgs_error *err);
/* Forget leases whose deadline has passed (all: every one). Under the commit lock. Returns how many. */
uint32_t pgs__leases_clean(struct pgs__session *s, bool all);
/* Sleep until head's version > after, or timeout. Counts as a waiter. */
int pgs__wait_version(struct pgs__session *s, uint64_t after, const struct pgs__wait *w, uint64_t *version,
                      struct pgs_error *err);

/* Who pins what (readers()): fn per slot with pins; RO readers are found by asking each chain generation. */
struct pgs__slot_info {
    uint32_t slot;
    bool self;
    uint64_t pid, start_ns;
    const char *command;
    const uint64_t *gens; /* distinct, sorted */
    size_t n_gens;
};
int pgs__slots_walk(struct pgs__session *s, int (*fn)(void *ctx, const struct pgs__slot_info *i), void *ctx,
                    struct pgs_error *err);
int pgs__read_locked(struct pgs__session *s, pgs_gen_t gen); /* 1: a reader without write permission holds it */

#endif
