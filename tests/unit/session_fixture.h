/* Pagestone | tests/unit/session_fixture — stores in scratch directories, and the smallest commit there is.
 * SPDX-License-Identifier: Apache-2.0
 *
 * tiny_commit uses the ledger and pgs__publish only: a head record and nothing else. So these tests need no catalog and no transactions.
 */
#ifndef PGS_TESTS_SESSION_FIXTURE_H
#define PGS_TESTS_SESSION_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "libshm/platform/caps.h"
#include "libshm/platform/inject.h"
#include "libshm/txn/session_impl.h"
#include "tests/unit/testing.h"

static struct pgs_error err __attribute__((unused));
static char scratch[64], store_path[96];

static pid_t scratch_owner;
static inline void remove_scratch(void)
{
    char cmd[128];
    if (!scratch[0] || scratch_owner != getpid()) return;
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", scratch);
    if (system(cmd)) {
    }
}

/* A directory that goes with the test; store_path is a name in it that does not exist yet. */
static inline void scratch_in(const char *where)
{
    remove_scratch();
    snprintf(scratch, sizeof scratch, "%s/pgs-session-XXXXXX", where);
    CHECK(mkdtemp(scratch));
    snprintf(store_path, sizeof store_path, "%s/s.ps", scratch);
    if (!scratch_owner) atexit(remove_scratch);
    scratch_owner = getpid();
}
static inline void in_memory(void)
{
    scratch_in("/dev/shm");
}
static inline void on_disk(void)
{
    scratch_in("/tmp");
}

static inline const char *in_store(const char *name)
{
    static char buf[160];
    snprintf(buf, sizeof buf, "%s/%s", store_path, name);
    return buf;
}

static inline struct pgs__session *must_open(enum pgs_mode mode, enum pgs_durability d)
{
    struct pgs_options opt = {.mode = mode, .durability = d, .timeout_ns = 5000000000};
    struct pgs__session *s = NULL;
    struct pgs_error e = {0};
    int rc = pgs__session_open(store_path, &opt, &s, &e);
    if (rc) TEST_FAIL("open mode %d: %d %s", (int)mode, rc, e.text);
    return s;
}

static inline int try_open(enum pgs_mode mode)
{
    struct pgs_options opt = {.mode = mode, .timeout_ns = 2000000000};
    struct pgs__session *s = NULL;
    err = (struct pgs_error){0};
    int rc = pgs__session_open(store_path, &opt, &s, &err);
    if (rc == 0) pgs__session_unref(s);
    return rc;
}

static inline struct pgs__session *must_open_anonymous(void)
{
    struct pgs__session *s = NULL;
    CHECK_OK(pgs__session_open_anonymous(NULL, &s, &err));
    return s;
}

struct tiny_space {
    uint64_t want;
    struct pgs_run found;
};
static inline int tiny_fits(void *ctx, struct pgs_run run)
{
    struct tiny_space *t = ctx;
    if (run.n_pages < t->want) return 0;
    t->found = (struct pgs_run){run.page, t->want};
    return 1;
}

/* Under the lock, after begin: pages, images, publish. */
static inline int tiny_finish(struct pgs__session *s, struct pgs__ledger *l, uint32_t durability, bool new_version,
                              bool epoch, struct pgs_error *e)
{
    uint64_t n_nodes, n_pages;
    struct pgs__root root;
    struct pgs_pgno nodes[64];
    int rc = pgs__ledger_prepare(l, &n_nodes, &n_pages, e);
    if (rc) return rc;
    struct tiny_space t = {.want = n_nodes + n_pages};
    CHECK(n_nodes <= 64);
    for (uint64_t chunk = 0; chunk < 64 && t.found.n_pages == 0; chunk++) {
        rc = pgs__space_runs_of(l, chunk, tiny_fits, &t, e);
        if (rc < 0) return rc;
    }
    CHECK(t.found.n_pages);
    rc = pgs__ledger_take(l, t.found, true, e);
    if (rc) return rc;
    uint64_t n_nodes2, n_pages2;
    rc = pgs__ledger_prepare(l, &n_nodes2, &n_pages2, e);
    if (rc) return rc;
    CHECK(n_nodes2 == n_nodes && n_pages2 == n_pages);
    for (uint64_t i = 0; i < n_nodes; i++) nodes[i].n = t.found.page.n + i;
    uint8_t *buf = malloc(t.found.n_pages * PGS_PAGE_SIZE);
    rc = pgs__ledger_finish(l, nodes, buf, (struct pgs_pgno){t.found.page.n + n_nodes}, buf + n_nodes * PGS_PAGE_SIZE,
                            &root, e);
    if (rc == 0) rc = pgs__pagefile_grow(&s->pf, t.found.page.n + t.found.n_pages, e);
    if (rc == 0) rc = pgs__pages_write(&s->pf, t.found.page, buf, t.found.n_pages, e);
    free(buf);
    if (rc == 0) rc = pgs__publish(s, &root, durability, new_version, epoch, t.found.n_pages * PGS_PAGE_SIZE, e);
    return rc;
}

static inline int commit_kind(struct pgs__session *s, bool new_version, struct pgs_error *e)
{
    struct pgs__root head;
    struct pgs__ledger l;
    int rc = pgs__commit_lock(s, &(struct pgs__wait){.timeout_ns = 5000000000}, e);
    if (rc) return rc;
    CHECK(pgs__ctl_head(&s->ctl, &head) == 0);
    rc = pgs__ledger_open(&l, &s->pf, &head, e);
    if (rc == 0) {
        rc = pgs__ledger_begin(&l, new_version, new_version ? pgs__next_version(s) : 0, pgs__clock_real_ns(), e);
        if (rc == 0)
            rc =
                pgs__ledger_reclaim(&l, atomic_load(&s->ctl.c->durable_gen), pgs__min_meta_pin(s), 1000, NULL, NULL, e);
        if (rc == 0) rc = tiny_finish(s, &l, l.meta.hdr.durability, new_version, !new_version, e);
        pgs__ledger_close(&l);
    }
    pgs__commit_unlock(s);
    return rc;
}
static inline int tiny_commit(struct pgs__session *s, struct pgs_error *e)
{
    return commit_kind(s, true, e);
}

static inline struct pgs__root head_of(struct pgs__session *s)
{
    struct pgs__root r;
    CHECK(pgs__ctl_head(&s->ctl, &r) == 0);
    return r;
}

/* What a dropper would find, asked under the commit lock. */
static inline int is_pinned(struct pgs__session *s, uint64_t gen)
{
    struct pgs__pinned_set set;
    CHECK_OK(pgs__commit_lock(s, &(struct pgs__wait){.timeout_ns = 5000000000}, &err));
    CHECK_OK(pgs__pinned_collect(s, &set, &err));
    int rc = pgs__pinned(&set, gen);
    pgs__pinned_free(&set);
    pgs__commit_unlock(s);
    return rc;
}

static inline uint32_t tagged_slots(struct pgs__session *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < PGS__N_SLOTS; i++) {
        struct pgs__slot *p = pgs__ctl_slot(&s->ctl, i);
        if (i < atomic_load(&s->ctl.c->n_slots_used) && atomic_load(&p->tag) &&
            !(atomic_load(&p->flags) & PGS__SLOT_SPARE))
            n++;
    }
    return n;
}

/* A child that ends by itself when its test failed and nobody opens its gate. */
static inline pid_t fork_bounded(void)
{
    pid_t pid = fork();
    if (pid == 0) alarm(60);
    return pid;
}

/* Two-way signals between processes: a byte through a pipe. */
struct gate {
    int fd[2];
};
static inline struct gate gate_new(void)
{
    struct gate g;
    CHECK(pipe(g.fd) == 0);
    return g;
}
static inline void gate_open(struct gate *g)
{
    CHECK(write(g->fd[1], "x", 1) == 1);
}
static inline void gate_wait(struct gate *g)
{
    char c;
    CHECK(read(g->fd[0], &c, 1) == 1);
}

static inline int wait_for(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static inline void overwrite(const char *file, uint64_t off, const void *bytes, size_t n)
{
    int fd = open(file, O_RDWR);
    CHECK(fd >= 0);
    CHECK(pwrite(fd, bytes, n, (off_t)off) == (ssize_t)n);
    close(fd);
}

#endif
