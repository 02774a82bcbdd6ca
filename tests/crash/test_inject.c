/* Pagestone | tests/crash/test_inject — the Nth file operation, allocation or mapping of a call fails: a clean error, and nothing else.
 * SPDX-License-Identifier: Apache-2.0
 *
 * For each public call: a store is made, the call is made with its 1st, 2nd, 3rd … operation of one kind failing, once or for good, until it goes through without
 * meeting the failure. Each time
 *
 *     the call returns 0 (the operation was not needed) or a negative code, and then err says so with a text;
 *     the newest version is as before, or, when the call returned 0, as the call should make it;
 *     the verifier finds no error and, after gc, no leaked page; the next commit works;
 *     when all is closed no descriptor, no mapping and no charge against the budget of mappings is left.
 *
 * A failed barrier is the one failure that stays: the store is read only until everybody has closed it; opened again it is sound, and
 * holds the state before the call or after it.
 *
 *     TEST_INJECT="kind:n:errno:forever"   only this failure, e.g. "0:17:5:1", with the name of the test as argument
 */
#define _GNU_SOURCE
#include <fcntl.h>

#include "libshm/platform/vm.h"
#include "tests/crash/world.h"

/* --- one situation ----------------------------------------------------------------------------------------------------- */
struct situation {
    pgs_store *s;
    pgs_txn *t;
    pgs_snapshot *sn;
    struct model *m;
    struct world_state before;
    bool barrier_failed;
};
struct scenario {
    const char *name;
    bool closed;                       /* the store exists, but is not open when the call is made */
    bool absent;                       /* it does not exist */
    int (*setup)(struct situation *c); /* after the store is made; may begin a transaction */
    int (*call)(struct situation *c);  /* fails or not */
    bool commits;                      /* when it returns 0 the model's state is the newest */
};
static char path[500];
static bool on_disk;
static bool barrier_failed;

/* The disk's barriers cost nothing here, but may fail. */
static struct pgs__file_ops inject_ops;
static int inject_sync(int fd)
{
    (void)fd;
    int injected = pgs__inject_check(PGS__FAIL_FILE);
    if (injected) barrier_failed = true;
    return injected ? -injected : 0;
}

/* Never fails on an open descriptor; a library that could not tell whether a descriptor is still its own would be right to leave it open. */
static int sure_fstat(int fd, struct stat *st)
{
    return fstat(fd, st) < 0 ? -errno : 0;
}

static struct pgs_options options(enum pgs_mode mode)
{
    return (struct pgs_options){.mode = mode, .history = PGS_HIST_COUNT, .history_value = 2, .checksums = 1};
}

static int open_it(struct situation *c, enum pgs_mode mode)
{
    struct pgs_options opt = options(mode);
    return pgs_open(path, &opt, &c->s, &err);
}

static void fill_store(struct situation *c)
{
    uint64_t version;
    for (int round = 0; round < 3; round++) {
        CHECK_OK(pgs_begin(c->s, PGS_ISO_SNAPSHOT, &c->t, &err));
        CHECK_OK(w_put(c->m, c->t, 0, PGS_KIND_BYTES, 40));
        CHECK_OK(w_put(c->m, c->t, 4, PGS_KIND_BYTES, 30000));
        CHECK_OK(w_put(c->m, c->t, 8, PGS_KIND_ARRAY, 60000));
        if (round == 0) CHECK_OK(w_create(c->m, c->t, 12, 100000));
        if (round == 1) CHECK_OK(w_put(c->m, c->t, 11, PGS_KIND_ARRAY, 6000));
        if (round == 2) CHECK_OK(w_edit(c->m, c->t, 12, 2));
        CHECK_OK(pgs_txn_commit(c->t, NULL, &version, &err));
        pgs_txn_unref(c->t);
        c->t = NULL;
    }
    CHECK_OK(pgs_tag(c->s, "first", 5, 1, &err));
}

/* --- what is left --------------------------------------------------------------------------------------------------------- */
struct left {
    long fds, store_maps, charged;
    uint64_t address_space;
};
static struct left count_left(void)
{
    struct left l = {.charged = pgs__vm_charged()};
    for (int fd = 0; fd < 1024; fd++) l.fds += fcntl(fd, F_GETFD) >= 0;
    FILE *f = fopen("/proc/self/maps", "re");
    if (!f) return l; /* a bare chroot: descriptors and charges are still counted */
    char line[700];
    while (fgets(line, sizeof line, f))
        l.store_maps +=
            strstr(line, "s.ps") || strstr(line, "memfd:pagestone") || strstr(line, "/pagestone-anonymous-");
    fclose(f);
    f = fopen("/proc/self/statm", "re");
    unsigned long pages = 0;
    CHECK(fscanf(f, "%lu", &pages) == 1);
    l.address_space = (uint64_t)pages * PGS_PAGE_SIZE;
    fclose(f);
    return l;
}

static void check_left(const struct left *base, const char *what)
{
    struct left l = count_left();
    if (l.fds != base->fds) TEST_FAIL("%s: %ld descriptors were %ld", what, l.fds, base->fds);
    if (l.store_maps != base->store_maps)
        TEST_FAIL("%s: %ld mappings of the store were %ld", what, l.store_maps, base->store_maps);
    if (l.charged != base->charged) TEST_FAIL("%s: %ld charged mappings were %ld", what, l.charged, base->charged);
    if (l.address_space > base->address_space + (256u << 20))
        TEST_FAIL("%s: %llu MiB of address space more", what,
                  (unsigned long long)(l.address_space - base->address_space) >> 20);
}

/* --- one round --------------------------------------------------------------------------------------------------------------- */
static void arrange(struct situation *c, const struct scenario *sc)
{
    rng_state = test_seed();
    memset(&c->m->now, 0, sizeof c->m->now);
    c->s = NULL, c->t = NULL, c->sn = NULL;
    remove_tree(path);
    memset(&err, 0, sizeof err);
    if (sc->absent) {
        c->before = c->m->now;
        return;
    }
    CHECK_OK(open_it(c, PGS_MODE_X));
    fill_store(c);
    c->before = c->m->now;
    if (sc->closed) {
        pgs_store_unref(c->s);
        c->s = NULL;
    }
    int rc = sc->setup ? sc->setup(c) : 0;
    if (rc) TEST_FAIL("%s: the setup fails: %d %s", sc->name, rc, err.text);
}

static void let_go(struct situation *c)
{
    pgs_txn_unref(c->t);
    pgs_snapshot_unref(c->sn);
    pgs_store_unref(c->s);
    c->s = NULL, c->t = NULL, c->sn = NULL;
}

static bool head_is(pgs_store *s, const struct world_state *want)
{
    pgs_snapshot *sn;
    bool same = true;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    for (int k = 0; k < N_KEYS; k++) {
        struct object_state got;
        int rc = read_object(sn, k, &got);
        if (rc) TEST_FAIL("%s cannot be read: %d %s", key_names[k], rc, err.text);
        same &= memcmp(&got, &want->k[k], sizeof got) == 0;
    }
    pgs_snapshot_unref(sn);
    return same;
}

static int put_one(pgs_store *s)
{
    pgs_txn *t;
    uint64_t version;
    TRY(pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err));
    int rc = pgs_txn_put(t, "next", 4, PGS_KIND_BYTES, NULL, &(struct pgs_part){"next", 4}, 1, &err);
    if (rc == 0) rc = pgs_txn_commit(t, NULL, &version, &err);
    pgs_txn_unref(t);
    return rc;
}

/* The store after the call, with nothing failing any more. */
static struct {
    int rounds, poisoned;
    char what[300];
} * progress; /* shared with the parent, who says how to repeat a failure */

static void look_after(struct situation *c, const struct scenario *sc, int rc)
{
    pgs_txn_unref(c->t); /* aborts what the call left open */
    pgs_snapshot_unref(c->sn);
    c->t = NULL, c->sn = NULL;
    memset(&err, 0, sizeof err);
    bool poisoned = false;
    if (c->s && barrier_failed) { /* read only, until it is opened again */
        int next = put_one(c->s);
        if (next && next != -PGS_EREADONLY) TEST_FAIL("after a failed barrier a commit gives %d %s", next, err.text);
        poisoned = next != 0;
        progress->poisoned += poisoned;
        if (poisoned) {
            pgs_store_unref(c->s);
            c->s = NULL;
        }
    }
    if (!c->s) {
        int again = open_it(c, PGS_MODE_A);
        if (again) TEST_FAIL("afterwards the store does not open: %d %s", again, err.text);
    }
    struct world_state none = {0};
    const struct world_state *after = sc->commits ? &c->m->now : &c->before;
    bool was = head_is(c->s, &c->before), is = head_is(c->s, after);
    if (sc->absent) is = was = head_is(c->s, &none);
    if (rc == 0 && !is) TEST_FAIL("it returned 0, but the newest version is not what it made");
    if (rc != 0 && !was && !(poisoned && is)) TEST_FAIL("it failed, but the newest version has changed");
    memset(&err, 0, sizeof err);
    CHECK_OK(put_one(c->s));
    CHECK_OK(pgs_gc(c->s, &err));
    check_sound(c->s);
}

struct failing {
    enum pgs__fail_kind kind;
    uint64_t nth;
    int os_errno;
    bool for_good;
};

static void check_error(int rc, const struct failing *f)
{
    if (rc == 0) return;
    if (rc > 0 || err.code != -rc || err.text[0] == 0)
        TEST_FAIL("it returned %d, but the error says %d '%s'", rc, err.code, err.text);
    if (err.code == PGS_EBUG || err.code == PGS_ECORRUPT)
        TEST_FAIL("a failing call is reported as %s: %s", pgs_strerror(rc), err.text);
    if (f->kind == PGS__FAIL_MEM && err.code != PGS_ENOMEM)
        TEST_FAIL("no memory is reported as %s: %s", pgs_strerror(rc), err.text);
    if (strchr(err.text, '\n')) TEST_FAIL("more than one line: %s", err.text);
}

/* False: the call went through without meeting the failure. */
static bool one_round(struct situation *c, const struct scenario *sc, const struct failing *f, const struct left *base)
{
    arrange(c, sc);
    memset(&err, 0, sizeof err);
    barrier_failed = false;
    uint64_t first = pgs__inject_count(f->kind);
    pgs__inject_fail(f->kind, f->nth, f->os_errno, f->for_good);
    double begun = seconds();
    int rc = sc->call(c);
    double took = seconds() - begun;
    uint64_t met = pgs__inject_count(f->kind) - first;
    pgs__inject_clear();
    check_error(rc, f);
    if (took > 5 * slowness()) TEST_FAIL("a failing call took %.1f s", took);
    look_after(c, sc, rc);
    let_go(c);
    check_left(base, sc->name);
    return met >= f->nth;
}

static void run_failures(struct situation *c, const struct scenario *sc, struct failing f, const struct left *base)
{
    for (f.nth = 1; f.nth < 3000; f.nth++) {
        progress->rounds++;
        snprintf(progress->what, sizeof progress->what,
                 "TEST_SEED=%llu TEST_SCENARIO=%s TEST_INJECT=%d:%llu:%d:%d %s %s", (unsigned long long)test_seed(),
                 sc->name, (int)f.kind, (unsigned long long)f.nth, f.os_errno, f.for_good, program_invocation_name,
                 on_disk ? "on_disk" : "in_memory");
        if (!one_round(c, sc, &f, base)) return;
    }
    TEST_FAIL("%s does not end", sc->name);
}

static void run_scenario(const struct scenario *sc)
{
    static const int file_errnos[] = {EIO, ENOSPC};
    struct situation c = {.m = model_new()};
    struct failing never = {PGS__FAIL_FILE, 1u << 30, EIO, false};
    inject_ops = pgs__file_ops_real;
    inject_ops.fdatasync = inject_sync;
    inject_ops.fsync = inject_sync;
    inject_ops.fstat = sure_fstat;
    pgs__file_ops = &inject_ops;
    limit(250);
    struct left base = count_left();
    for (int i = 0; i < 2; i++) { /* what stays for good has come by now */
        arrange(&c, sc);
        let_go(&c);
        base = count_left();
    }
    one_round(&c, sc, &never, &base);
    const char *only = getenv("TEST_INJECT");
    if (only) {
        int kind, os, good;
        unsigned long long nth;
        CHECK(sscanf(only, "%d:%llu:%d:%d", &kind, &nth, &os, &good) == 4);
        one_round(&c, sc, &(struct failing){(enum pgs__fail_kind)kind, nth, os, good != 0}, &base);
        return;
    }
    for (int good = 0; good < (slowness() > 5 ? 1 : 2); good++) {
        for (size_t i = 0; i < (slowness() > 1 ? 1 : PGS_ARRAY_LEN(file_errnos)); i++)
            run_failures(&c, sc, (struct failing){PGS__FAIL_FILE, 1, file_errnos[i], good}, &base);
        run_failures(&c, sc, (struct failing){PGS__FAIL_MEM, 1, ENOMEM, good}, &base);
        run_failures(&c, sc, (struct failing){PGS__FAIL_MAP, 1, ENOMEM, good}, &base);
    }
    remove_tree(path);
    munmap(c.m, sizeof *c.m);
}

/* --- the calls -------------------------------------------------------------------------------------------------------------------- */
static int begin(struct situation *c)
{
    return pgs_begin(c->s, PGS_ISO_SNAPSHOT, &c->t, &err);
}
static int snap(struct situation *c)
{
    return pgs_snapshot_head(c->s, &c->sn, &err);
}
static int call_open(struct situation *c)
{
    return open_it(c, PGS_MODE_RPLUS);
}
static int call_open_read(struct situation *c)
{
    int rc = open_it(c, PGS_MODE_R);
    if (rc == 0) pgs_store_unref(c->s), c->s = NULL;
    return rc;
}
static int new_boot(struct situation *c)
{
    (void)c;
    other_boot(path);
    return 0;
}
static int no_control(struct situation *c)
{
    (void)c;
    drop_control(path);
    return 0;
}
static int call_create(struct situation *c)
{
    return open_it(c, PGS_MODE_A);
}
static int call_anonymous(struct situation *c)
{
    struct pgs_options opt = options(PGS_MODE_A);
    pgs_store *s;
    (void)c;
    int rc = pgs_open(NULL, &opt, &s, &err);
    if (rc == 0) {
        int put = put_one(s);
        if (put) rc = put;
        pgs_store_unref(s);
    }
    return rc;
}
static int call_close(struct situation *c)
{
    int rc = pgs_close(c->s, &err);
    pgs_store_unref(c->s);
    c->s = NULL;
    return rc;
}
static int call_begin(struct situation *c)
{
    return begin(c);
}
static int call_put_small(struct situation *c)
{
    return pgs_txn_put(c->t, "s0", 2, PGS_KIND_BYTES, NULL, &(struct pgs_part){"new", 3}, 1, &err);
}
static int call_put_large(struct situation *c)
{
    return pgs_txn_put(c->t, "g/b0", 4, PGS_KIND_PICKLE, NULL, &(struct pgs_part){c->m->bytes[8], 50000}, 1, &err);
}
static int call_put_array(struct situation *c)
{
    struct pgs_type type = type_u4(40000);
    return pgs_txn_put(c->t, "arr/a0", 6, PGS_KIND_ARRAY, &type, &(struct pgs_part){c->m->bytes[4], 40000}, 1, &err);
}
static int call_edit(struct situation *c)
{
    pgs_view *v;
    int rc = pgs_txn_edit(c->t, "hole", 4, &v, &err);
    if (rc == 0) memset(pgs_view_data(v), 7, 5000), pgs_view_unref(v);
    return rc;
}
static int call_empty(struct situation *c)
{
    struct pgs_type type = type_u4(80000);
    pgs_view *v;
    int rc = pgs_txn_empty(c->t, "a2", 2, &type, &v, &err);
    if (rc == 0) memset(pgs_view_data(v), 7, 80000), pgs_view_unref(v);
    return rc;
}
static int call_append(struct situation *c)
{
    return pgs_txn_append(c->t, "log", 3, c->m->bytes[8], 4000, &err);
}
static int call_resize(struct situation *c)
{
    int64_t shape = 30000;
    return pgs_txn_resize(c->t, "arr/a0", 6, &shape, 1, &err);
}
static int call_savepoint(struct situation *c)
{
    uint64_t id;
    TRY(pgs_txn_savepoint(c->t, &id, &err));
    TRY(call_put_large(c));
    TRY(call_edit(c));
    return pgs_txn_rollback(c->t, id, &err);
}
static int call_copy_and_move(struct situation *c)
{
    TRY(pgs_txn_copy(c->t, NULL, "arr/a0", 6, "a2", 2, NULL, &err));
    return pgs_txn_move(c->t, "g/b0", 4, "g/b1", 4, &err);
}

static int commit(struct situation *c)
{
    uint64_t version;
    return pgs_txn_commit(c->t, "a message", &version, &err);
}
static int ready_small(struct situation *c)
{
    TRY(begin(c));
    return w_put(c->m, c->t, 1, PGS_KIND_BYTES, 30);
}
static int ready_large(struct situation *c)
{
    TRY(begin(c));
    TRY(w_put(c->m, c->t, 4, PGS_KIND_BYTES, 90000));
    TRY(w_put(c->m, c->t, 9, PGS_KIND_ARRAY, 300000));
    return w_delete(c->m, c->t, 0);
}
static int ready_arrays(struct situation *c)
{
    TRY(begin(c));
    TRY(w_edit(c->m, c->t, 8, 2));
    TRY(w_edit(c->m, c->t, 12, 3));
    TRY(w_append(c->m, c->t, 11, 3000));
    return w_empty(c->m, c->t, 10, 70000);
}
static int ready_delete(struct situation *c)
{
    TRY(begin(c));
    TRY(w_delete(c->m, c->t, 8));
    return w_delete(c->m, c->t, 4);
}
static int ready_resize(struct situation *c)
{
    TRY(begin(c));
    TRY(w_resize(c->m, c->t, 8, 5000));
    return w_copy(c->m, c->t, 4, 5);
}
/* Another process's commit came between: the transaction is rebased. */
static int ready_rebase(struct situation *c)
{
    TRY(begin(c));
    TRY(w_edit(c->m, c->t, 8, 1));
    TRY(w_append(c->m, c->t, 11, 100));
    pgs_txn *other;
    uint64_t version;
    TRY(pgs_begin(c->s, PGS_ISO_SNAPSHOT, &other, &err));
    TRY(w_put(c->m, other, 2, PGS_KIND_BYTES, 7000));
    c->before.k[2] = c->m->now.k[2];
    int rc = pgs_txn_commit(other, NULL, &version, &err);
    pgs_txn_unref(other);
    return rc;
}

static int call_tag(struct situation *c)
{
    return pgs_tag(c->s, "second", 6, -1, &err);
}
static int call_untag(struct situation *c)
{
    return pgs_untag(c->s, "first", 5, &err);
}
static int call_snapshots(struct situation *c)
{
    TRY(snap(c));
    pgs_snapshot_unref(c->sn);
    c->sn = NULL;
    TRY(pgs_snapshot_at(c->s, -2, &c->sn, &err));
    pgs_snapshot_unref(c->sn);
    c->sn = NULL;
    return pgs_snapshot_at_tag(c->s, "first", 5, &c->sn, &err);
}
static int call_read(struct situation *c)
{
    for (int k = 0; k < N_KEYS; k++) {
        struct object_state got;
        int rc = read_object(c->sn, k, &got);
        if (rc) return rc;
        err = (struct pgs_error){0}; /* absent keys */
        if (memcmp(&got, &c->before.k[k], sizeof got) != 0) TEST_FAIL("%s reads wrong", key_names[k]);
    }
    return 0;
}
static int call_private(struct situation *c)
{
    static const char *const keys[] = {"arr/a0", "hole", "g/b0"};
    for (int i = 0; i < 3; i++) {
        struct pgs_object obj;
        pgs_view *v;
        TRY(pgs_get(c->sn, keys[i], strlen(keys[i]), &obj, &err));
        TRY(pgs_view_private(c->sn, &obj, &v, &err));
        memset(pgs_view_data(v), 1, 100);
        pgs_view_unref(v);
    }
    return 0;
}
static int call_iterate(struct situation *c)
{
    pgs_iter *it;
    const void *key;
    size_t len;
    struct pgs_object obj;
    int rc, n = 0;
    TRY(pgs_iter_snapshot(c->sn, NULL, 0, &it, &err));
    while ((rc = pgs_iter_next(it, &key, &len, &obj, &err)) == 0) n++;
    pgs_iter_free(it);
    if (rc == -PGS_ENOENT && n != 5) TEST_FAIL("%d keys", n);
    return rc == -PGS_ENOENT ? 0 : rc;
}
static int see_log(void *ctx, const struct pgs_commit_info *i)
{
    (void)i;
    ++*(int *)ctx;
    return 0;
}
static int call_history(struct situation *c)
{
    uint64_t *list;
    size_t n;
    struct pgs_tag_info *tags;
    int n_log = 0;
    TRY(pgs_versions(c->s, &list, &n, &err));
    pgs_free(list);
    TRY(pgs_tags(c->s, &tags, &n, &err));
    pgs_free(tags);
    return pgs_log(c->s, 0, see_log, &n_log, &err);
}
static int see_reader(void *ctx, const struct pgs_reader *r)
{
    (void)ctx;
    (void)r;
    return 0;
}
static int call_stat(struct situation *c)
{
    struct pgs_stat st;
    TRY(pgs_stat(c->s, &st, &err));
    return pgs_readers(c->s, see_reader, NULL, &err);
}
static int call_gc(struct situation *c)
{
    return pgs_gc(c->s, &err);
}
static int call_compact(struct situation *c)
{
    return pgs_compact(c->s, &err);
}
static int call_check(struct situation *c)
{
    struct pgs_check_report r = {0};
    int rc = pgs_check(c->s, 1, NULL, NULL, &r, &err);
    return rc;
}

static const struct scenario scenarios[] = {
    {"open", .closed = true, .call = call_open},
    {"open_for_reading", .closed = true, .call = call_open_read},
    {"open_after_a_boot", .closed = true, .setup = new_boot, .call = call_open},
    {"open_without_control_file", .closed = true, .setup = no_control, .call = call_open},
    {"create", .absent = true, .call = call_create},
    {"create_in_memory", .call = call_anonymous},
    {"close", .call = call_close},
    {"begin", .call = call_begin},
    {"put_small", .setup = begin, .call = call_put_small},
    {"put_large", .setup = begin, .call = call_put_large},
    {"put_array", .setup = begin, .call = call_put_array},
    {"edit", .setup = begin, .call = call_edit},
    {"empty", .setup = begin, .call = call_empty},
    {"append", .setup = begin, .call = call_append},
    {"resize", .setup = begin, .call = call_resize},
    {"savepoint", .setup = begin, .call = call_savepoint},
    {"copy_and_move", .setup = begin, .call = call_copy_and_move},
    {"commit_small", .setup = ready_small, .call = commit, .commits = true},
    {"commit_large", .setup = ready_large, .call = commit, .commits = true},
    {"commit_arrays", .setup = ready_arrays, .call = commit, .commits = true},
    {"commit_delete", .setup = ready_delete, .call = commit, .commits = true},
    {"commit_resize", .setup = ready_resize, .call = commit, .commits = true},
    {"commit_rebased", .setup = ready_rebase, .call = commit, .commits = true},
    {"tag", .call = call_tag},
    {"untag", .call = call_untag},
    {"snapshots", .call = call_snapshots},
    {"read", .setup = snap, .call = call_read},
    {"private", .setup = snap, .call = call_private},
    {"iterate", .setup = snap, .call = call_iterate},
    {"history", .call = call_history},
    {"stat", .call = call_stat},
    {"gc", .call = call_gc},
    {"compact", .call = call_compact},
    {"check", .call = call_check},
};

/* Every scenario in a child of its own; all are run, then the failed ones are counted. */
static void run_all(const char *parent, bool disk)
{
    int failed = 0;
    double begun = seconds();
    on_disk = disk;
    limit(280);
    snprintf(path, sizeof path, "%s/s.ps", scratch(parent));
    progress = shared_memory(sizeof *progress);
    const char *only = getenv("TEST_SCENARIO");
    for (size_t i = 0; i < PGS_ARRAY_LEN(scenarios); i++) {
        if (only && strcmp(only, scenarios[i].name) != 0) continue;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            run_scenario(&scenarios[i]);
            exit(0);
        }
        int status = 0;
        while (waitpid(pid, &status, 0) < 0) {
        }
        if (status) {
            failed++;
            fprintf(stderr, "    %s failed%s; repeat: %s\n", scenarios[i].name,
                    WIFSIGNALED(status) ? " by a signal" : "", progress->what);
        }
        remove_tree(path);
    }
    fprintf(stderr, "    %s: %d failures injected into %zu calls, %d times read only after a barrier, %.1f s\n",
            disk ? "on disk" : "in memory", progress->rounds, PGS_ARRAY_LEN(scenarios), progress->poisoned,
            seconds() - begun);
    if (disk && !only && progress->poisoned == 0) TEST_FAIL("no failed barrier made the store read only");
    if (failed) TEST_FAIL("%d scenarios failed", failed);
}

TEST(in_memory_every_failure_is_a_clean_error)
{
    run_all(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL, false);
}

TEST(on_disk_every_failure_is_a_clean_error)
{
    run_all(NULL, true);
}

int main(int argc, char **argv)
{
    setenv("TEST_SECONDS", slowness() > 1 ? "1500" : "300", 0);
    return run_tests(argc, argv);
}
