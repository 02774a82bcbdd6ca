/* Pagestone | txn/session — the registry of open page files, and a session's beginning and end.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One session per page file and process, by (device, inode). A session whose last reference went is taken off the list before it is torn down; who opens
 * the file in that moment makes a new one, with another slot, which does no harm.
 *
 * Processes made by raw clone run no fork hooks: they have the parent's memory and none of its locks. One word of memory that the kernel wipes in every child
 * (MADV_WIPEONFORK) tells them; the hook of a proper child writes it again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libshm/platform/mem.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/forking.h"
#include "libshm/txn/image.h"
#include "libshm/txn/session_impl.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

struct pgs__mutex pgs__registry_mx = {PTHREAD_MUTEX_INITIALIZER, PGS__RANK_REGISTRY};
struct pgs__session *pgs__registry;

/* --- who am I --------------------------------------------------------------------------------------------------------- */
static _Atomic(uint64_t *) birth_mark; /* wiped in children; NULL: no session yet, or the kernel cannot */
static _Atomic uint64_t birth_pid;     /* then this one is compared */

static void mark_birth(void)
{
    atomic_store(&birth_pid, (uint64_t)getpid());
    uint64_t *page = atomic_load(&birth_mark);
    if (page) {
        *page = 1;
        return;
    }
    page = mmap(NULL, PGS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return;
    if (madvise(page, PGS_PAGE_SIZE, MADV_WIPEONFORK) < 0) {
        munmap(page, PGS_PAGE_SIZE);
        return;
    }
    *page = 1;
    atomic_store(&birth_mark, page);
}

bool pgs__session_lost(void)
{
    /* relaxed: set once before the first session, and then only by the fork hook of a child with one thread */
    const uint64_t *page = atomic_load_explicit(&birth_mark, memory_order_relaxed);
    if (PGS_LIKELY(page)) return *page == 0;
    return atomic_load_explicit(&birth_pid, memory_order_relaxed) != (uint64_t)getpid();
}

void pgs__session_found_again(void)
{
    mark_birth();
}

int pgs__session_check(struct pgs__session *s, struct pgs_error *err)
{
    (void)s;
    if (PGS_LIKELY(!pgs__session_lost())) return 0;
    return pgs__fail(err, PGS_EFORKED,
                     "this process was cloned without the fork hooks (clone, syscall): open the store again in it");
}

/* --- registry ----------------------------------------------------------------------------------------------------------- */
/* One more, unless the last reference is gone already. */
static bool ref_if_alive(struct pgs__session *s)
{
    int64_t n = atomic_load(&s->refs);
    while (n > 0)
        if (atomic_compare_exchange_weak(&s->refs, &n, n + 1)) return true;
    return false;
}

static struct pgs__session *find_locked(uint64_t dev, uint64_t ino, bool writable)
{
    for (struct pgs__session *s = pgs__registry; s; s = s->next)
        if (s->pf.dev == dev && s->pf.ino == ino && s->writable == writable && !s->frozen && ref_if_alive(s)) return s;
    return NULL;
}

struct pgs__session *pgs__session_find(uint64_t dev, uint64_t ino, bool writable)
{
    if (pgs__session_lost()) return NULL;
    pgs__mutex_lock(&pgs__registry_mx);
    struct pgs__session *s = find_locked(dev, ino, writable);
    pgs__mutex_unlock(&pgs__registry_mx);
    return s;
}

struct pgs__session *pgs__session_find_uuid(const uint8_t uuid[16])
{
    if (pgs__session_lost()) return NULL;
    struct pgs__session *found = NULL;
    pgs__mutex_lock(&pgs__registry_mx);
    for (struct pgs__session *s = pgs__registry; s && !found; s = s->next)
        if (s->pf.anonymous && memcmp(s->pf.uuid, uuid, 16) == 0 && ref_if_alive(s)) found = s;
    pgs__mutex_unlock(&pgs__registry_mx);
    return found;
}

static void list_add(struct pgs__session *s)
{
    s->next = pgs__registry;
    pgs__registry = s;
}

static void list_remove(struct pgs__session *s)
{
    struct pgs__session **at = &pgs__registry;
    while (*at && *at != s) at = &(*at)->next;
    if (*at) *at = s->next;
}

/* --- beginning -------------------------------------------------------------------------------------------------------------- */
static int fail_slot(struct pgs__session *s, int rc, struct pgs_error *err)
{
    if (rc == -EAGAIN)
        return pgs__fail(err, PGS_ELOCKED, "%u processes have the store open, and there are no more slots: end some",
                         PGS__N_SLOTS);
    return pgs__fail_os(err, -rc, "cannot lock a slot of the store%s%s", s->pf.path ? " at " : "",
                        s->pf.path ? s->pf.path : "");
}

/* A reader with a control file of its own: nobody tells it when the store moves on, so its generation and the meta data of that stay locked for good. Then look again:
 * a writer may have come between, and not have seen the locks. */
static int freeze(struct pgs__session *s, struct pgs_error *err)
{
    struct pgs__super super;
    uint64_t gen = atomic_load(&s->ctl.c->head_gen);
    int rc = pgs__ofd_lock(s->read_lock_fd, PGS__LOCK_READ(gen), false);
    if (rc == 0) rc = pgs__ofd_lock(s->read_lock_fd, PGS__LOCK_META(gen), false);
    if (rc) return pgs__fail_os(err, -rc, "cannot lock the page file for reading");
    rc = pgs__slots_alive(s->pf.fd);
    if (rc < 0) return pgs__fail_os(err, -rc, "cannot ask who has the store open");
    if (rc == 0) rc = pgs__super_read(&s->pf, &super, false, err);
    if (rc < 0) return rc;
    return rc == 1 || super.root.gen != gen ? PGS__OPEN_AGAIN : 0;
}

/* Become visible to other processes; registry's lock held. */
static int enter_locked(struct pgs__session *s, const struct pgs__opening *o, struct pgs_error *err)
{
    if (s->writable) {
        int rc = pgs__slot_claim(s, true, 0, &s->lock, &s->slot, &s->tag);
        if (rc) return fail_slot(s, rc, err);
        if (o && !pgs__join_holds(o, s)) {
            pgs__slot_release(s);
            return PGS__OPEN_AGAIN;
        }
        pgs__spare_refill(s);
        return 0;
    }
    int rc = pgs__reader_open(s, true, &s->read_lock_fd, &s->read_lock);
    if (rc) return pgs__fail_os(err, -rc, "cannot lock the page file for reading");
    if (s->frozen) return freeze(s, err);
    return o && !pgs__join_holds(o, s) ? PGS__OPEN_AGAIN : 0;
}

static void close_parts(struct pgs__pagefile *pf, struct pgs__ctl *ctl)
{
    pgs__ctl_unmap(ctl);
    pgs__pagefile_fini(pf);
}

/* The memory of a session that is not on the list. */
static void session_free(struct pgs__session *s)
{
    pgs__image_free(s);
    pgs__held_lock_drop(&s->read_lock);
    if (pgs__fd_is_pages(s, s->read_lock_fd)) pgs__file_ops->close(s->read_lock_fd);
    pgs__mutex_destroy(&s->pins_mx);
    pgs__mutex_destroy(&s->space_mx);
    pgs__free(s->pins);
    pgs__free(s->meta);
    pgs__free(s);
}

int pgs__session_make(struct pgs__pagefile *pf, struct pgs__ctl *ctl, uint64_t created_ns, bool frozen,
                      const struct pgs__opening *o, struct pgs__session **out, struct pgs_error *err)
{
    if (pgs__forking_init()) return pgs__fail(err, PGS_ENOMEM, "no memory for the fork hooks");
    struct pgs__session *s = pgs__calloc(1, sizeof *s);
    if (!s) return pgs__fail(err, PGS_ENOMEM, "no memory to open the store");
    s->pf = *pf;
    s->ctl = *ctl;
    s->created_ns = created_ns;
    s->writable = ctl->writable && !frozen;
    s->frozen = frozen;
    s->slot = s->spare_slot = PGS__NO_SLOT;
    s->read_lock_fd = s->fork.fd = -1;
    s->n_cells = PGS__PINS_INLINE;
    s->head_index = UINT32_MAX;
    atomic_init(&s->refs, 1);
    pgs__mutex_init(&s->pins_mx, PGS__RANK_PINS);
    pgs__mutex_init(&s->space_mx, PGS__RANK_SPACE);
    pgs__cold_attach(s);
    pgs__image_init(s);

    pgs__mutex_lock(&pgs__registry_mx);
    if (!pgs__registry) mark_birth();
    struct pgs__session *other = find_locked(s->pf.dev, s->pf.ino, s->writable);
    int rc = other ? 0 : enter_locked(s, o, err);
    if (!other && rc == 0) list_add(s);
    pgs__mutex_unlock(&pgs__registry_mx);
    if (rc || other) session_free(s);
    if (rc) return rc;
    if (other) close_parts(pf, ctl);
    *out = other ? other : s;
    return 0;
}

struct pgs__session *pgs__session_ref(struct pgs__session *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

/* --- end ----------------------------------------------------------------------------------------------------------------------- */
void pgs__session_unref(struct pgs__session *s)
{
    if (!s) return;
    if (atomic_fetch_sub(&s->refs, 1) != 1) return;
    bool lost = pgs__session_lost();
    /* After the last reference went, not before: of two threads that let go at once each would leave it to the other. */
    if (s->writable && !lost) pgs__session_settle(s);
    if (!lost) pgs__mutex_lock(&pgs__registry_mx); /* lost: perhaps locked for ever by a thread of the parent */
    list_remove(s);
    if (!lost) pgs__mutex_unlock(&pgs__registry_mx);
    if (s->writable && !lost) pgs__slot_release(s);
    if (s->writable && !lost) pgs__anonymous_dir_leave(&s->pf);
    pgs__space_end(s);
    struct pgs__pagefile pf = s->pf;
    struct pgs__ctl ctl = s->ctl;
    session_free(s);
    close_parts(&pf, &ctl);
}
