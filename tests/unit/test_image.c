/* Pagestone | tests/unit/test_image — compressed data as memory: the same bytes as before it was frozen, whichever way they come.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Most tests run twice: with the image in memory, and through a pager where there is one (PAGESTONE_SERVER, /dev/fuse).
 */
#define _GNU_SOURCE
#include "libshm/txn/image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "libshm/extents/memory.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/lock.h"
#include "libshm/txn/cold_table.h"
#include "libshm/txn/pager.h"
#include "libshm/txn/store.h"
#include "tests/unit/txn_testing.h"

#define PAGE ((size_t)PGS_PAGE_SIZE)
#define MB ((size_t)1 << 20)

enum way { EAGER, PAGER, COPIED };
static enum way way;
static char scratch[64], path[96];

/* --- which way ------------------------------------------------------------------------------------------------------------------- */
static void without(const char *caps)
{
    setenv("PAGESTONE_WITHOUT", caps, 1);
    pgs__caps_reset();
}

static void choose(enum way w)
{
    static char program[4200];
    way = w;
    if (w == EAGER) {
        NEEDS_PROC();
        without("fuse");
    }
    if (w == COPIED) without("fuse,proc_fd");
    if (w != PAGER) return;
    const char *off = getenv("PAGESTONE_WITHOUT");
    if ((off && strstr(off, "fuse")) || !pgs__cap(PGS__CAP_FUSE)) SKIP("there is no FUSE");
    if (!getenv("PAGESTONE_SERVER") && realpath("pymod/pagestone/bin/pagestone-fuse", program))
        setenv("PAGESTONE_SERVER", program, 1);
    if (!getenv("PAGESTONE_SERVER")) SKIP("the server is not built: PAGESTONE_SERVER");
}
#define THREE_WAYS(name_)                                                                                              \
    static void name_(void);                                                                                           \
    TEST(name_##_eagerly)                                                                                              \
    {                                                                                                                  \
        choose(EAGER);                                                                                                 \
        name_();                                                                                                       \
    }                                                                                                                  \
    TEST(name_##_through_the_pager)                                                                                    \
    {                                                                                                                  \
        choose(PAGER);                                                                                                 \
        name_();                                                                                                       \
    }                                                                                                                  \
    TEST(name_##_copied)                                                                                               \
    {                                                                                                                  \
        choose(COPIED);                                                                                                \
        name_();                                                                                                       \
    }                                                                                                                  \
    static void name_(void)

/* It really went that way. */
static void way_was_taken(pgs_store *s)
{
    CHECK_EQ(s->s->image->pager.fd >= 0, way == PAGER);
    CHECK_EQ(s->s->image->memory.fd >= 0, way == EAGER);
}

static void remove_scratch(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    if (scratch[0] && system(command)) return;
}

static pgs_store *open_path(void)
{
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_A, .checksums = 1, .history = PGS_HIST_COUNT, .history_value = 5};
    CHECK_OK(pgs_open(path, &o, &s, &err));
    return s;
}

static pgs_store *make_store(void)
{
    static bool registered;
    snprintf(scratch, sizeof scratch, "/dev/shm/pgs-image-XXXXXX");
    CHECK(mkdtemp(scratch));
    snprintf(path, sizeof path, "%s/s.ps", scratch);
    setenv("XDG_RUNTIME_DIR", scratch, 1);
    if (!registered) atexit(remove_scratch);
    registered = true;
    return open_path();
}

/* --- arrays ------------------------------------------------------------------------------------------------------------------------ */
/* Kept until the test ends. */
static uint64_t *walk(size_t n_bytes, uint64_t seed)
{
    static __attribute__((used)) void *kept[16];
    static unsigned n_kept;
    uint64_t *p = malloc(n_bytes + 8), x = seed;
    kept[n_kept++ % 16] = p;
    for (size_t i = 0; i <= n_bytes / 8; i++) p[i] = x += pgs__mix(i + seed) % 9;
    return p;
}

static void put(pgs_store *s, const char *key, const void *p, size_t n)
{
    pgs_txn *t = begin(s);
    CHECK_OK(put_array(t, key, p, (int64_t)(n / 8), 8));
    commit(t);
}

static void put_cold(pgs_store *s, const char *key, const void *p, size_t n)
{
    uint64_t saved = 0;
    put(s, key, p, n);
    CHECK_OK(pgs_freeze(s, KEY(key), &saved, &err));
    CHECK(saved > 0);
}

/* The view as a transaction's and without anything verified: only mapped. */
static pgs_view *view_of(pgs_store *s, const char *key, bool private_cow)
{
    pgs_snapshot *sn;
    struct pgs_object o;
    pgs_view *v = NULL;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY(key), &o, &err));
    int rc = private_cow ? pgs_view_private(sn, &o, &v, &err) : pgs_view_open(sn, &o, 0, &v, &err);
    pgs_snapshot_unref(sn);
    return rc ? NULL : v;
}

static void in_child(void (*f)(void *), void *arg)
{
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        f(arg);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
}

/* --- reading and writing ------------------------------------------------------------------------------------------------------------ */
THREE_WAYS(cold_arrays_read_as_they_were)
{
    static const size_t sizes[] = {64 << 10, 128 << 10, (128 << 10) + 8, MB, 3 * MB + 4104, 9 * MB};
    pgs_store *s = make_store();
    for (size_t i = 0; i < PGS_ARRAY_LEN(sizes); i++) {
        uint64_t *p = walk(sizes[i], i);
        put_cold(s, "x", p, sizes[i]);
        pgs_view *v = view_of(s, "x", false);
        CHECK(v != NULL);
        CHECK(memcmp(pgs_view_data(v), p, sizes[i]) == 0);
        pgs_view_unref(v);
    }
    way_was_taken(s);
    pgs_store_unref(s);
}

THREE_WAYS(a_private_view_of_cold_data_can_be_written)
{
    pgs_store *s = make_store();
    uint64_t *p = walk(3 * MB, 1);
    put_cold(s, "x", p, 3 * MB);
    pgs_view *v = view_of(s, "x", true), *other = view_of(s, "x", false);
    uint64_t *q = pgs_view_data(v);
    for (size_t i = 0; i < 3 * MB / 8; i += 5000) q[i] = ~p[i];
    for (size_t i = 0; i < 3 * MB / 8; i++) CHECK(q[i] == (i % 5000 ? p[i] : ~p[i]));
    CHECK(memcmp(pgs_view_data(other), p, 3 * MB) == 0);
    pgs_view_unref(v);
    pgs_view_unref(other);
    way_was_taken(s);
    pgs_store_unref(s);
}

THREE_WAYS(a_transaction_edits_cold_data)
{
    pgs_store *s = make_store();
    size_t n = 4 * MB;
    uint64_t *p = walk(n, 2);
    put_cold(s, "x", p, n);
    for (int round = 0; round < 3; round++) {
        pgs_txn *t = begin(s);
        pgs_view *v;
        uint64_t *q = (uint64_t *)(void *)edit(t, "x", &v);
        CHECK(memcmp(q, p, n) == 0);
        for (size_t i = (size_t)round * 100; i < n / 8; i += 90001) q[i] = p[i] = i;
        pgs_view_unref(v);
        commit(t);
        CHECK(head_is(s, "x", p, n));
        uint64_t saved;
        CHECK_OK(pgs_freeze(s, KEY("x"), &saved, &err));
        CHECK(head_is(s, "x", p, n));
        check_store(s);
    }
    pgs_store_unref(s);
}

/* --- what was written ------------------------------------------------------------------------------------------------------------------ */
static int note_dirty(void *ctx, uint64_t lo, uint64_t hi)
{
    uint8_t *seen = ctx;
    for (uint64_t at = lo; at < hi; at += PAGE) seen[at / PAGE]++;
    return 0;
}

static void dirty_is_exact(struct pgs__session *s, const struct pgs__content *c)
{
    static uint8_t seen[1024], want[1024];
    struct pgs__mem m;
    size_t n_pages = c->n_bytes / PAGE;
    CHECK_OK(pgs__mem_cow(&s->pf, c, 0, &m, &err));
    uint8_t *p = m.addr;
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < n_pages; i++) sum += p[i * PAGE]; /* read, not written */
    memset(want, 0, sizeof want);
    for (size_t i = 3; i < n_pages; i += 37) {
        p[i * PAGE + i] ^= 1;
        want[i] = 1;
    }
    for (size_t i = 5; i < n_pages; i += 61) {
        uint8_t *same = p + i * PAGE + 9;
        *(volatile uint8_t *)same = *same; /* written, and no change */
    }
    memset(seen, 0, sizeof seen);
    CHECK_OK(pgs__mem_dirty(&s->pf, &m, note_dirty, seen, &err));
    CHECK(memcmp(seen, want, sizeof seen) == 0);
    CHECK_OK(pgs__mem_reset(&s->pf, &m, &err));
    memset(seen, 0, sizeof seen);
    CHECK_OK(pgs__mem_dirty(&s->pf, &m, note_dirty, seen, &err));
    for (size_t i = 0; i < n_pages; i++) CHECK_EQ(seen[i], 0);
    pgs__mem_close(&s->pf, &m);
}

THREE_WAYS(written_pages_over_cold_data_are_found_exactly)
{
    pgs_store *s = make_store();
    size_t n = 2 * MB;
    uint64_t *p = walk(n, 3);
    put_cold(s, "x", p, n);
    pgs_snapshot *sn;
    struct pgs_object o;
    struct pgs__object obj;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_OK(
        pgs__object_decode(&s->s->pf, (struct pgs_span){"", 0}, (struct pgs_span){o.record, o.record_len}, &obj, &err));
    static const char *const hows[] = {"", "pagemap_scan", "pagemap_scan,pagemap"};
    for (int i = 0; i < 3; i++) {
        char caps[64];
        snprintf(caps, sizeof caps, "%s,%s", way == PAGER ? "" : way == EAGER ? "fuse" : "fuse,proc_fd", hows[i]);
        without(caps);
        dirty_is_exact(s->s, &obj.content);
    }
    way_was_taken(s);
    pgs_snapshot_unref(sn);
    pgs_store_unref(s);
}

/* --- other processes ------------------------------------------------------------------------------------------------------------------- */
struct seen {
    pgs_store *s;
    pgs_view *v;
    const void *p;
    size_t n;
    uint64_t ino;
};
static void read_it(void *arg)
{
    struct seen *e = arg;
    CHECK(memcmp(pgs_view_data(e->v), e->p, e->n) == 0);
    pgs_view *v = view_of(e->s, "x", false);
    CHECK(v && memcmp(pgs_view_data(v), e->p, e->n) == 0);
    pgs_view_unref(v);
}

THREE_WAYS(forked_children_read_cold_pages)
{
    pgs_store *s = make_store();
    struct seen e = {.s = s, .n = 3 * MB};
    e.p = walk(e.n, 4);
    put_cold(s, "x", e.p, e.n);
    e.v = view_of(s, "x", false); /* nothing of it was touched */
    in_child(read_it, &e);
    read_it(&e);
    pgs_view_unref(e.v);
    way_was_taken(s);
    pgs_store_unref(s);
}

static void open_and_read(void *arg)
{
    struct seen *e = arg;
    pgs_store *s = open_path();
    pgs_view *v = view_of(s, "x", false);
    CHECK(v && memcmp(pgs_view_data(v), e->p, e->n) == 0);
    if (way == EAGER) CHECK_EQ(s->s->image->memory.ino, e->ino);
    if (way == PAGER) CHECK_EQ(s->s->image->pager.dev, e->ino);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

THREE_WAYS(all_processes_use_one_image)
{
    pgs_store *s = make_store();
    struct seen e = {.n = 3 * MB};
    e.p = walk(e.n, 5);
    put_cold(s, "x", e.p, e.n);
    pgs_view *v = view_of(s, "x", false);
    CHECK(v != NULL);
    e.ino = way == PAGER ? s->s->image->pager.dev : s->s->image->memory.ino;
    pid_t pid = fork(); /* a process that did not inherit the store's state: exec's stand-in */
    int status;
    if (pid == 0) {
        pgs_store_unref(s);
        open_and_read(&e);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

THREE_WAYS(the_kernel_reads_cold_memory_in_system_calls)
{
    pgs_store *s = make_store();
    size_t n = 2 * MB;
    uint64_t *p = walk(n, 6);
    put_cold(s, "x", p, n);
    pgs_view *v = view_of(s, "x", false);
    int fd = memfd_create("to", MFD_CLOEXEC);
    CHECK(write(fd, pgs_view_data(v), n) == (ssize_t)n);
    void *q = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(memcmp(p, q, n) == 0);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

THREE_WAYS(old_versions_and_views_outlive_thaw_and_store)
{
    pgs_store *s = make_store();
    size_t n = 2 * MB;
    uint64_t *p = walk(n, 7), *q = walk(n, 8), bytes;
    put_cold(s, "x", p, n);
    pgs_snapshot *old;
    struct pgs_object o;
    CHECK_OK(pgs_snapshot_head(s, &old, &err));
    pgs_view *v = view_of(s, "x", false), *w;
    CHECK_OK(pgs_thaw(s, KEY("x"), &bytes, &err));
    put(s, "x", q, n);
    for (int i = 0; i < 3; i++) CHECK_OK(pgs_gc(s, &err));
    CHECK(head_is(s, "x", q, n));
    CHECK_OK(pgs_get(old, KEY("x"), &o, &err));
    CHECK_OK(pgs_view_open(old, &o, 0, &w, &err));
    CHECK(memcmp(pgs_view_data(w), p, n) == 0);
    pgs_snapshot_unref(old);
    pgs_store_unref(s);
    CHECK(memcmp(pgs_view_data(v), p, n) == 0);
    pgs_view_unref(v);
    pgs_view_unref(w);
}

static void become_nobody_and_read(void *arg)
{
    struct seen *e = arg;
    CHECK(setregid(65534, 65534) == 0 && setreuid(65534, 65534) == 0);
    pgs_store *s;
    struct pgs_options o = {.mode = PGS_MODE_R};
    CHECK_OK(pgs_open(path, &o, &s, &err));
    CHECK(!s->s->writable);
    pgs_view *v = view_of(s, "x", false);
    CHECK(v && memcmp(pgs_view_data(v), e->p, e->n) == 0);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

THREE_WAYS(a_reader_without_write_permission_reads_cold_data)
{
    if (geteuid() != 0) SKIP("only root can become somebody else");
    pgs_store *s = make_store();
    struct seen e = {.n = MB};
    e.p = walk(e.n, 9);
    put_cold(s, "x", e.p, e.n);
    char command[400];
    snprintf(command, sizeof command, "chmod 755 %s %s && chmod a+r %s/*", scratch, path, path);
    CHECK(system(command) == 0);
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        pgs_store_unref(s);
        unsetenv("XDG_RUNTIME_DIR");
        become_nobody_and_read(&e);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
    pgs_store_unref(s);
}

/* --- descriptors ------------------------------------------------------------------------------------------------------------------------- */
THREE_WAYS(a_host_program_may_close_every_descriptor_of_the_image)
{
    pgs_store *s = make_store();
    size_t n = MB;
    uint64_t *p = walk(n, 10);
    put_cold(s, "x", p, n);
    pgs_view *v = view_of(s, "x", false);
    int *fd = way == PAGER ? &s->s->image->pager.fd : &s->s->image->memory.fd, was = *fd;
    if (way != COPIED) {
        int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
        CHECK(dup2(other, was) == was); /* somebody else's now */
    }
    CHECK(memcmp(pgs_view_data(v), p, n) == 0);
    pgs_view *w = view_of(s, "x", false);
    CHECK(w && memcmp(pgs_view_data(w), p, n) == 0);
    if (way != COPIED) CHECK(fcntl(was, F_GETFD) >= 0);
    pgs_view_unref(v);
    pgs_view_unref(w);
    pgs_store_unref(s);
}

/* --- damage ------------------------------------------------------------------------------------------------------------------------------ */
struct nth {
    uint64_t left;
    struct pgs__cold_block b;
};
static int count_down(void *ctx, uint64_t slot, const struct pgs__cold_block *b, struct pgs_error *damage)
{
    struct nth *n = ctx;
    (void)slot, (void)damage;
    n->b = *b;
    return n->left-- == 0;
}
static struct pgs__cold_block block_of(pgs_store *s, uint64_t nth)
{
    struct pgs__ledger l;
    struct nth n = {nth, {0}};
    CHECK_OK(pgs__meta_begin(s->s, &l, &err));
    CHECK_EQ(pgs__ledger_cold_walk(&l, count_down, &n, &err), 1);
    pgs__meta_end(s->s, &l);
    return n.b;
}

static void flip(pgs_store *s, uint64_t page)
{
    uint8_t byte;
    off_t at = (off_t)(page * PAGE + 100);
    CHECK(pread(s->s->pf.fd, &byte, 1, at) == 1);
    byte ^= 0x55;
    CHECK(pwrite(s->s->pf.fd, &byte, 1, at) == 1);
}

THREE_WAYS(damage_is_an_error_of_prefetch_and_of_nothing_else)
{
    pgs_store *s = make_store();
    size_t n = 4 * MB;
    uint64_t *p = walk(n, 11);
    put_cold(s, "x", p, n);
    flip(s, block_of(s, 20).page);
    pgs_snapshot *sn;
    struct pgs_object o;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_OK(pgs_prefetch(sn, &o, 0, 20 * PGS__COLD_BYTES, &err));
    CHECK_ERR(pgs_prefetch(sn, &o, 20 * PGS__COLD_BYTES + 5, 20 * PGS__COLD_BYTES + 6, &err), PGS_ECORRUPT);
    CHECK_ERR(pgs_prefetch(sn, &o, 0, UINT64_MAX, NULL), PGS_ECORRUPT);
    CHECK_OK(pgs_prefetch(sn, &o, 21 * PGS__COLD_BYTES, UINT64_MAX, &err));
    err = (struct pgs_error){0};
    pgs_view *v = view_of(s, "x", false);
    if (way != PAGER) { /* what is decompressed at once is verified at once */
        CHECK(v == NULL);
        CHECK_EQ(err.code, PGS_ECORRUPT);
        CHECK(strstr(err.text, "compressed block"));
    } else {
        CHECK(memcmp(pgs_view_data(v), p, 20 * PGS__COLD_BYTES - 17 * PAGE) == 0);
        int fd = memfd_create("to", MFD_CLOEXEC);
        CHECK(pwrite(fd, (uint8_t *)pgs_view_data(v) + 20 * PGS__COLD_BYTES, PAGE, 0) == -1 && errno == EFAULT);
        pgs_view_unref(v);
    }
    pgs_snapshot_unref(sn);
    pgs_store_unref(s);
}

static size_t n_resident(void *p, size_t n)
{
    unsigned char in[4096];
    size_t sum = 0;
    CHECK(mincore(p, n, in) == 0);
    for (size_t i = 0; i < n / PAGE; i++) sum += in[i] & 1;
    return sum;
}

TEST(prefetch_brings_what_will_be_read)
{
    choose(PAGER);
    pgs_store *s = make_store();
    size_t n = 8 * MB;
    uint64_t *p = walk(n, 12);
    put_cold(s, "x", p, n);
    pgs_snapshot *sn;
    struct pgs_object o;
    pgs_view *v;
    CHECK_OK(pgs_snapshot_head(s, &sn, &err));
    CHECK_OK(pgs_get(sn, KEY("x"), &o, &err));
    CHECK_OK(pgs_view_open(sn, &o, 0, &v, &err));
    CHECK_EQ(n_resident(pgs_view_data(v), n), 0);
    CHECK_OK(pgs_prefetch(sn, &o, 0, n / 2, &err));
    size_t half = n_resident(pgs_view_data(v), n);
    CHECK(half >= n / 2 / PAGE && half < n / PAGE);
    CHECK_OK(pgs_prefetch(sn, &o, 0, n, &err));
    CHECK_EQ(n_resident(pgs_view_data(v), n), n / PAGE);
    CHECK(memcmp(pgs_view_data(v), p, n) == 0);
    pgs_view_unref(v);
    pgs_snapshot_unref(sn);
    pgs_store_unref(s);
}

TEST(a_pager_that_died_is_replaced_by_the_next_mapping)
{
    choose(PAGER);
    NEEDS_PROC();
    pgs_store *s = make_store();
    size_t n = 2 * MB;
    uint64_t *p = walk(n, 13);
    put_cold(s, "x", p, n);
    pgs_view *v = view_of(s, "x", false);
    struct statx st;
    char file[64], text[64] = "";
    CHECK(statx(s->s->image->pager.fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st) == 0);
    pid_t server = (pid_t)st.stx_atime.tv_nsec;
    snprintf(file, sizeof file, "/proc/%d/task/%d/children", server, server);
    int fd = open(file, O_RDONLY);
    CHECK(read(fd, text, sizeof text - 1) > 0);
    kill(server, SIGKILL);
    kill(atoi(text), SIGKILL);
    for (int i = 0; i < 500 && pgs__pager_lives(s->s->image->pager.fd); i++) usleep(10000);
    pgs_view *w = view_of(s, "x", false);
    CHECK(w && memcmp(pgs_view_data(w), p, n) == 0);
    way_was_taken(s);
    pgs_view_unref(v);
    pgs_view_unref(w);
    pgs_store_unref(s);
}

/* --- the budget ---------------------------------------------------------------------------------------------------------------------------- */
static uint64_t image_bytes(pgs_store *s)
{
    struct stat st;
    CHECK(fstat(s->s->image->memory.fd, &st) == 0);
    return (uint64_t)st.st_blocks * 512;
}

TEST(what_nobody_maps_makes_room_oldest_first)
{
    choose(EAGER);
    setenv("PAGESTONE_COLD_BUDGET", "3500K", 1);
    pgs_store *s = make_store();
    uint64_t *p = walk(MB, 14);
    const char *const keys[] = {"a", "b", "c", "d", "e", "f"};
    for (size_t i = 0; i < 6; i++) put_cold(s, keys[i], p, MB);
    for (size_t round = 0; round < 3; round++)
        for (size_t i = 0; i < 6; i++) {
            pgs_view *v = view_of(s, keys[i], false);
            CHECK(v && memcmp(pgs_view_data(v), p, MB) == 0);
            CHECK(image_bytes(s) <= 3500 << 10);
            pgs_view_unref(v);
        }
    pgs_view *a = view_of(s, "a", false), *b = view_of(s, "b", false), *c = view_of(s, "c", false);
    CHECK(a && b && c);
    err = (struct pgs_error){0};
    CHECK(view_of(s, "d", false) == NULL);
    CHECK_EQ(err.code, PGS_ENOMEM);
    CHECK(strstr(err.text, "PAGESTONE_COLD_BUDGET") && strstr(err.text, "FUSE"));
    CHECK(memcmp(pgs_view_data(a), p, MB) == 0 && memcmp(pgs_view_data(c), p, MB) == 0);
    pgs_view_unref(b);
    pgs_view *d = view_of(s, "d", false);
    CHECK(d && memcmp(pgs_view_data(d), p, MB) == 0);
    CHECK(memcmp(pgs_view_data(a), p, MB) == 0 && memcmp(pgs_view_data(c), p, MB) == 0);
    setenv("PAGESTONE_COLD_BUDGET", "5 apples", 1);
    err = (struct pgs_error){0};
    CHECK(view_of(s, "e", false) == NULL);
    CHECK_EQ(err.code, PGS_EINVAL);
    pgs_store_unref(s);
}

TEST(one_array_beyond_the_budget_is_refused_however_it_would_come)
{
    static const enum way ways[] = {EAGER, COPIED};
    for (int i = 0; i < 2; i++) {
        choose(ways[i]);
        setenv("PAGESTONE_COLD_BUDGET", "1M", 1);
        pgs_store *s = make_store();
        uint64_t *p = walk(2 * MB, 15);
        put_cold(s, "x", p, 2 * MB);
        err = (struct pgs_error){0};
        CHECK(view_of(s, "x", false) == NULL);
        CHECK_EQ(err.code, PGS_ENOMEM);
        CHECK(strstr(err.text, "PAGESTONE_COLD_BUDGET"));
        pgs_store_unref(s);
        remove_scratch();
    }
}

static void map_and_sleep(void *arg)
{
    int *pipes = arg;
    pgs_store *s = open_path();
    pgs_view *v = view_of(s, "a", false);
    CHECK(v != NULL);
    CHECK(write(pipes[1], "x", 1) == 1);
    pause();
}

TEST(what_a_killed_process_had_mapped_makes_room)
{
    choose(EAGER);
    setenv("PAGESTONE_COLD_BUDGET", "1200K", 1);
    int pipes[2], status;
    char c;
    CHECK(pipe(pipes) == 0);
    pgs_store *s = make_store();
    uint64_t *p = walk(MB, 16);
    put_cold(s, "a", p, MB);
    put_cold(s, "b", p, MB);
    pgs_view *v = view_of(s, "a", false); /* the image exists before the other one looks for it */
    pgs_view_unref(v);
    pid_t pid = fork();
    if (pid == 0) {
        pgs_store_unref(s);
        map_and_sleep(pipes);
    }
    CHECK(read(pipes[0], &c, 1) == 1);
    CHECK(view_of(s, "b", false) == NULL);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid);
    v = view_of(s, "b", false);
    CHECK(v && memcmp(pgs_view_data(v), p, MB) == 0);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

static void scan_randomly(void *arg)
{
    uint64_t *p = arg;
    pgs_store *s = open_path();
    static const char *const keys[] = {"a", "b", "c", "d"};
    for (uint64_t i = 0; i < 60; i++) {
        uint64_t r = pgs__mix(i + (uint64_t)getpid() * 1000);
        pgs_view *v = view_of(s, keys[r % 4], r % 8 < 4);
        if (!v) {
            CHECK_EQ(err.code, PGS_ENOMEM);
            continue;
        }
        CHECK(memcmp(pgs_view_data(v), p + (r % 4), MB) == 0);
        if (r % 8 < 4) memset(pgs_view_data(v), 7, MB);
        pgs_view_unref(v);
    }
}

TEST(processes_that_evict_each_others_blocks_read_right_bytes)
{
    choose(EAGER);
    setenv("PAGESTONE_COLD_BUDGET", "2600K", 1);
    pgs_store *s = make_store();
    uint64_t *p = walk(MB + 32, 17);
    static const char *const keys[] = {"a", "b", "c", "d"};
    for (size_t i = 0; i < 4; i++) put_cold(s, keys[i], p + i, MB);
    pid_t pid[4];
    for (int i = 0; i < 4; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            scan_randomly(p);
            _exit(0);
        }
    }
    usleep(30000);
    kill(pid[3], SIGKILL);
    for (int i = 0; i < 4; i++) {
        int status;
        CHECK(waitpid(pid[i], &status, 0) == pid[i]);
        if (i < 3) CHECK_EQ(status, 0);
    }
    pgs_store_unref(s);
}

TEST(a_limit_on_file_sizes_is_no_reason_to_fail)
{
    choose(EAGER);
    pgs_store *s = make_store();
    uint64_t *p = walk(MB, 18);
    put_cold(s, "x", p, MB);
    struct rlimit limit = {1 << 30, 1 << 30};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    pgs_view *v = view_of(s, "x", false);
    CHECK(v && memcmp(pgs_view_data(v), p, MB) == 0);
    CHECK_EQ(s->s->image->memory.fd, -1);
    pgs_view_unref(v);
    pgs_store_unref(s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
