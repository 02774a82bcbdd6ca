/* Pagestone | txn/waiting — sleeping until something newer is committed.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A futex on a word that each version raises. The waiter counts itself first and then looks at the head; the committer publishes, raises the word, then looks at the count: one of the two
 * sees the other. The count is a hint that saves commits a system call. It stays too high when a waiter is killed, which costs that call; readers without write permission cannot count
 * themselves, and a committer may die between publishing and waking, so nobody sleeps longer than a slice without looking.
 */
#include "libshm/txn/session_impl.h"

#define SLICE_NS INT64_C(1000000000) /* a signal ends the sleep; this is for one that came just before it */
#define UNSEEN_NS INT64_C(50000000)  /* without write permission we cannot be counted as a waiter, and are not woken */

static int head_version(struct pgs__session *s, uint64_t *version, struct pgs_error *err)
{
    struct pgs__root head;
    if (pgs__ctl_head(&s->ctl, &head))
        return pgs__fail_corrupt(err, "the control file", "the newest root in the control file is damaged");
    *version = head.version;
    return 0;
}

static int wait_loop(struct pgs__session *s, uint64_t after, const struct pgs__wait *w, uint64_t *version,
                     struct pgs_error *err)
{
    uint64_t start = pgs__clock_mono_ns(), newest = 0;
    for (;;) {
        uint32_t word = atomic_load(&s->ctl.c->wake);
        int rc = head_version(s, &newest, err);
        if (rc) return rc;
        if (newest > after) {
            *version = newest;
            return 0;
        }
        if (w->interrupted && w->interrupted(w->ctx)) return pgs__fail(err, PGS_EINTR, "interrupted while waiting");
        int64_t slice = s->writable ? SLICE_NS : UNSEEN_NS;
        if (w->timeout_ns >= 0) {
            int64_t left = w->timeout_ns - (int64_t)(pgs__clock_mono_ns() - start);
            if (left <= 0)
                return pgs__fail(err, PGS_ETIMEDOUT, "nothing newer than version %llu", (unsigned long long)after);
            if (left < slice) slice = left;
        }
        (void)pgs__futex_wait(&s->ctl.c->wake, word, slice);
    }
}

int pgs__wait_version(struct pgs__session *s, uint64_t after, const struct pgs__wait *w, uint64_t *version,
                      struct pgs_error *err)
{
    int rc = pgs__session_check(s, err);
    if (rc) return rc;
    bool counted = s->writable;
    if (counted) atomic_fetch_add(&s->ctl.c->n_waiters, 1);
    rc = wait_loop(s, after, w, version, err);
    if (counted) atomic_fetch_sub(&s->ctl.c->n_waiters, 1);
    return rc;
}
