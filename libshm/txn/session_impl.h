/* Pagestone | txn/session_impl — what the files of the session share: registry, slots, superblocks, opening.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Only session.c and its neighbours (open, found, join, slot, pin, pinned, publish, recover, forking, anonymous, lease, waiting) include this.
 */
#ifndef PGS_TXN_SESSION_IMPL_H
#define PGS_TXN_SESSION_IMPL_H

#include "libshm/txn/session.h"

#define PGS__SUPER_WEAK                                                                                                \
    4u /* flag of a superblock: on disk, but written without a barrier ("none"): only its own boot may trust it */
#define PGS__DEFAULT_TIMEOUT_NS INT64_C(30000000000)

/* The two fences of the pin protocol. On x86 a locked instruction; elsewhere a full barrier. */
static inline void pgs__fence(void)
{
    pgs__fence_as(memory_order_seq_cst);
}
static inline bool pgs__on_disk(const struct pgs__pagefile *pf)
{
    return !pf->anonymous && pf->fs != PGS__FS_TMPFS;
}
static inline int64_t pgs__timeout_of(const struct pgs_options *opt)
{
    return opt && opt->timeout_ns ? opt->timeout_ns : PGS__DEFAULT_TIMEOUT_NS;
}

/* --- session.c: the registry ------------------------------------------------------------------------------------- */
extern struct pgs__mutex pgs__registry_mx; /* REGISTRY */
extern struct pgs__session *pgs__registry; /* list by next */
/* One reference more of the session over that page file, or NULL. Takes the registry's lock. */
struct pgs__session *pgs__session_find(uint64_t dev, uint64_t ino, bool writable);
struct pgs__session *pgs__session_find_uuid(const uint8_t uuid[16]);
/* A session over pf and ctl, which it owns on success: claims a slot (or the reader's locks) and registers it; or another thread was first: then its
 * session, and pf and ctl are closed. PGS__OPEN_AGAIN: a writer came while a reader without one settled, or the control file was made anew since it was mapped (o: where it
 * lies; NULL: nobody else can have seen it yet, or nobody but us). */
struct pgs__opening;
int pgs__session_make(struct pgs__pagefile *pf, struct pgs__ctl *ctl, uint64_t created_ns, bool frozen,
                      const struct pgs__opening *o, struct pgs__session **out, struct pgs_error *err);
/* True in a process that came into being behind the fork hooks' back. */
bool pgs__session_lost(void);
/* In the fork hook of the child. */
void pgs__session_found_again(void);

/* --- slot.c ---------------------------------------------------------------------------------------------------------- */
extern struct pgs__mutex pgs__sweep_mx; /* LEAF: one sweeper of this process at a time */
/* A fresh description of the page file, whatever the host program did to our descriptors and whatever the name means today. fd or -errno. */
int pgs__reopen(struct pgs__session *s, int flags);
bool pgs__fd_is_pages(const struct pgs__session *s, int fd); /* still, and of the right inode */
/* Claim a slot: lock, clean what a dead owner left, tag. No malloc, no stdio: the fork hook calls it. With PINS or REGISTRY held. */
int pgs__slot_claim(struct pgs__session *s, bool dont_fork, uint32_t flags, struct pgs__held_lock *lock, uint32_t *slot,
                    uint64_t *tag);
void pgs__slot_release(struct pgs__session *s); /* the session's own, and the spare */
void pgs__slot_name(char command[96]);
/* Is any slot's lock held by anybody else than this description? 1, 0, -errno. */
int pgs__slots_alive(int fd);
/* The lowest byte in [lo, hi) that somebody else has locked: 1 and *at; 0; -errno. */
int pgs__ofd_first(int fd, uint64_t lo, uint64_t hi, uint64_t *at);
/* Give up what the session has at the end of its life, or get a spare slot where there is none. */
void pgs__spare_refill(struct pgs__session *s);

/* --- pin.c ------------------------------------------------------------------------------------------------------------- */
int pgs__reader_open(struct pgs__session *s, bool dont_fork, int *fd, struct pgs__held_lock *lock); /* 0, -errno */
int pgs__cells_reserve(struct pgs__session *s, uint32_t slot, uint32_t n_cells);
/* With PINS held. */
int pgs__pin_head_locked(struct pgs__session *s, struct pgs__root *root, struct pgs__pin *pin, struct pgs_error *err);
void pgs__pin_put_locked(struct pgs__session *s, uint32_t index);

/* --- advance.c --------------------------------------------------------------------------------------------------------- */
void pgs__advance_forked(struct pgs__session *s); /* in the child, from the hook, with PINS held */

/* --- publish.c ----------------------------------------------------------------------------------------------------------- */
/* Write the superblock after seq. */
int pgs__super_put(struct pgs__session *s, const struct pgs__root *root, uint64_t flags, uint64_t ceiling,
                   struct pgs_error *err);
/* The last use of this process: what pgs_close promises. */
void pgs__session_settle(struct pgs__session *s);
void pgs__poison(struct pgs__session *s, uint64_t durable_seq);
/* After a weak superblock, under the commit lock: make sure that the medium has one. durable_seq: the newest steady one's, should the barrier fail. */
int pgs__weaken(struct pgs__session *s, uint64_t durable_seq, struct pgs_error *err);

/* --- found.c: a new store -------------------------------------------------------------------------------------------------- */
/* Fill an empty page file: first generation, both superblocks, on disk down to the medium. *root, *created_ns. The uuid is pf's, or random where that is zero. */
int pgs__found(struct pgs__pagefile *pf, const struct pgs_options *opt, struct pgs__super *super,
               struct pgs_error *err);
/* Fill a control file that nobody uses yet from a superblock, and make it ready. */
int pgs__control_fill(struct pgs__ctl *ctl, int fd, const struct pgs__pagefile *pf, const struct pgs__super *super,
                      struct pgs_error *err);

/* --- anonymous_dir.c: where there is no /proc/self/fd ------------------------------------------------------------------------ */
#define PGS__ANONYMOUS_BASE_MAX 1000u /* bytes of the path of the directory in which they are made */
int pgs__anonymous_dir_make(const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err);
/* base and uuid are input. -PGS_ENOENT: gone. */
int pgs__anonymous_dir_join(const char *base, size_t base_len, const uint8_t uuid[16], const struct pgs_options *opt,
                            struct pgs__session **out, struct pgs_error *err);
/* This process has given up its slot: if it was the last one, the directory goes. For every other store nothing. */
void pgs__anonymous_dir_leave(const struct pgs__pagefile *pf);

/* --- open.c, join.c ----------------------------------------------------------------------------------------------------------- */
struct pgs__opening {
    const struct pgs_options *opt;
    enum pgs_mode mode;
    const char *path; /* as given */
    int dir_fd;
    bool made_dir, locked;
};
/* flock of the store's directory, in slices; idempotent. -PGS_ELOCKED, -PGS_EINTR. */
int pgs__open_lock(struct pgs__opening *o, struct pgs_error *err);
void pgs__open_unlock(struct pgs__opening *o);
enum { PGS__OPEN_AGAIN = 1 }; /* the directory changed meanwhile: begin anew */
/* Map the control file that belongs to pf, or make it. 0, PGS__OPEN_AGAIN or -PGS_E…. */
int pgs__join(struct pgs__opening *o, struct pgs__pagefile *pf, struct pgs__ctl *ctl, bool *frozen,
              struct pgs_error *err);
/* Is the control file that s mapped still the one that others find, and fit for use? Asked when s has its slot or its reader's lock: before, nobody could see it. */
bool pgs__join_holds(const struct pgs__opening *o, struct pgs__session *s);
/* Under the open lock: a crash in the middle of creation or replacement left "pages.new" beside the control file that names it: finish. 1 if so. */
int pgs__finish_rename(int dir_fd);
/* Does the name "pages" still mean this file? */
bool pgs__is_named(int dir_fd, const struct pgs__pagefile *pf);

#endif
