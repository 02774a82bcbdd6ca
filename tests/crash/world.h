/* Pagestone | tests/crash/world — a store's contents as a plain model, and what every proof of safety needs around it.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The model holds the bytes of a dozen keys in memory shared by all processes of a test. Each operation is done to the model and to a transaction; after a
 * commit the model's hashes are the expected state of that version. A store is right when every kept version hashes to what was committed under its number.
 *
 * All randomness comes from TEST_SEED (default 1), so a failure is repeated by its seed.
 */
#ifndef PGS_TESTS_CRASH_WORLD_H
#define PGS_TESTS_CRASH_WORLD_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "libshm/pages/control_format.h"
#include "libshm/platform/file.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "tests/unit/testing.h"

#define UNUSED_OK __attribute__((unused))

static struct pgs_error err UNUSED_OK;

/* --- seeds --------------------------------------------------------------------------------------------------------- */
static uint64_t rng_state UNUSED_OK = 1;

static inline uint64_t rng(void)
{
    rng_state += 0x9e3779b97f4a7c15u;
    return pgs__mix(rng_state);
}
static inline uint64_t rng_below(uint64_t n)
{
    return rng() % n;
}
static inline uint64_t test_seed(void)
{
    const char *s = getenv("TEST_SEED");
    return s ? strtoull(s, NULL, 10) : 1;
}
static inline uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);
    return s && *s ? strtoull(s, NULL, 10) : otherwise;
}
/* How many times slower than usual this runs: under valgrind, under sanitizers. */
static inline unsigned slowness(void)
{
    const char *preload = getenv("LD_PRELOAD");
    if (preload && strstr(preload, "vgpreload")) return 25;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return 5;
#else
    return 1;
#endif
}
/* How much of a harness to run: TORTURE=1 ten times as much; the pass without capabilities a quarter; less where all is slow. */
static inline uint64_t scaled(uint64_t n)
{
    if (getenv("TORTURE")) return n * 10;
    if (getenv("PAGESTONE_WITHOUT")) n /= 4;
    return n / slowness() ? n / slowness() : 1;
}
/* A hang is a death by SIGALRM. */
static inline void limit(unsigned limit_seconds)
{
    alarm(limit_seconds * (slowness() > 5 ? 10 : slowness()));
}
static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* --- scratch space ------------------------------------------------------------------------------------------------- */
static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}
static inline void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
static char scratch_path[400] UNUSED_OK;
static pid_t scratch_owner UNUSED_OK;
static inline void scratch_end(void)
{
    if (getpid() == scratch_owner && !getenv("TEST_KEEP")) remove_tree(scratch_path);
}
/* A new directory below `parent` (NULL: TMPDIR or /tmp), removed at exit of this process. */
static inline const char *scratch(const char *parent)
{
    if (!parent) parent = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    snprintf(scratch_path, sizeof scratch_path, "%s/pagestone-XXXXXX", parent);
    if (!mkdtemp(scratch_path)) TEST_FAIL("mkdtemp %s: %s", scratch_path, strerror(errno));
    scratch_owner = getpid();
    atexit(scratch_end);
    return scratch_path;
}

static inline void *shared_memory(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) TEST_FAIL("no shared memory: %s", strerror(errno));
    return p;
}

/* Run fn(arg) in a child whose stderr is thrown away (quiet); 0 when it passed, 77 skipped, else what it failed with. */
static inline int in_child(bool quiet, void (*fn)(void *), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (quiet) {
            int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
            dup2(fd, 2);
            dup2(fd, 1);
        }
        fn(arg);
        exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* --- the model ------------------------------------------------------------------------------------------------------ */
#define N_KEYS 14
#define KEY_CAP (3u << 20) /* bytes of one object */
static const char *const key_names[N_KEYS] = {"s0", "s1",     "s2",     "s3", "g/b0", "g/b1", "big",
                                              "p0", "arr/a0", "arr/a1", "a2", "log",  "hole", "pad"};

struct object_state { /* kind 0: absent */
    uint32_t kind;
    uint64_t len, hash;
};
struct world_state {
    struct object_state k[N_KEYS];
};
struct model {
    struct world_state now;
    uint8_t bytes[N_KEYS][KEY_CAP];
};

static inline struct model *model_new(void)
{
    return shared_memory(sizeof(struct model));
}

static inline void fill(uint8_t *p, uint64_t n)
{
    uint64_t x = rng();
    for (uint64_t i = 0; i < n; i++) {
        if ((i & 7) == 0) x = pgs__mix(x + 0x9e3779b97f4a7c15u);
        p[i] = (uint8_t)(x >> (8 * (i & 7)));
    }
}

/* The key's bytes are now len long and of that kind. */
static inline void model_set(struct model *m, int k, uint32_t kind, uint64_t len)
{
    m->now.k[k] = (struct object_state){kind, len, kind ? pgs__hash(m->bytes[k], len) : 0};
}

/* A 1-D array of little-endian 32-bit numbers. */
static inline struct pgs_type type_u4(uint64_t len)
{
    struct pgs_type t = {.dtype = "<u4", .dtype_len = 3, .itemsize = 4, .ndim = 1, .order = 'C'};
    t.shape[0] = (int64_t)(len / 4);
    return t;
}

/* The first call that failed, for harnesses that count failures instead of dying of them. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        int try_rc_ = (call);                                                                                          \
        if (try_rc_) return try_rc_;                                                                                   \
    } while (0)

static inline int w_put(struct model *m, pgs_txn *t, int k, enum pgs_kind kind, uint64_t len)
{
    fill(m->bytes[k], len);
    model_set(m, k, kind, len);
    struct pgs_type type = type_u4(len);
    struct pgs_part parts[2] = {{m->bytes[k], len / 2}, {m->bytes[k] + len / 2, len - len / 2}};
    return pgs_txn_put(t, key_names[k], strlen(key_names[k]), kind, kind == PGS_KIND_ARRAY ? &type : NULL, parts, 2,
                       &err);
}

static inline int w_create(struct model *m, pgs_txn *t, int k, uint64_t len)
{
    struct pgs_type type = type_u4(len);
    memset(m->bytes[k], 0, len);
    model_set(m, k, PGS_KIND_ARRAY, len);
    int rc = pgs_txn_delete(t, key_names[k], strlen(key_names[k]), &err);
    if (rc && rc != -PGS_ENOENT) return rc;
    err = (struct pgs_error){0};
    return pgs_txn_create(t, key_names[k], strlen(key_names[k]), &type, &err);
}

static inline int w_empty(struct model *m, pgs_txn *t, int k, uint64_t len)
{
    struct pgs_type type = type_u4(len);
    pgs_view *v;
    if (m->now.k[k].kind) TRY(pgs_txn_delete(t, key_names[k], strlen(key_names[k]), &err));
    TRY(pgs_txn_empty(t, key_names[k], strlen(key_names[k]), &type, &v, &err));
    fill(m->bytes[k], len);
    memcpy(pgs_view_data(v), m->bytes[k], len);
    model_set(m, k, PGS_KIND_ARRAY, len);
    pgs_view_unref(v);
    return 0;
}

/* Write n pieces of up to 6,000 bytes in place. */
static inline int w_edit(struct model *m, pgs_txn *t, int k, int n)
{
    pgs_view *v;
    uint64_t len = m->now.k[k].len;
    TRY(pgs_txn_edit(t, key_names[k], strlen(key_names[k]), &v, &err));
    for (int i = 0; i < n && len; i++) {
        uint64_t at = rng_below(len), part = 1 + rng_below(6000);
        if (part > len - at) part = len - at;
        fill(m->bytes[k] + at, part);
        memcpy((uint8_t *)pgs_view_data(v) + at, m->bytes[k] + at, part);
    }
    model_set(m, k, PGS_KIND_ARRAY, len);
    pgs_view_unref(v);
    return 0;
}

static inline int w_append(struct model *m, pgs_txn *t, int k, uint64_t n_rows)
{
    uint64_t len = m->now.k[k].len;
    fill(m->bytes[k] + len, n_rows * 4);
    TRY(pgs_txn_append(t, key_names[k], strlen(key_names[k]), m->bytes[k] + len, n_rows, &err));
    model_set(m, k, PGS_KIND_ARRAY, len + n_rows * 4);
    return 0;
}

static inline int w_resize(struct model *m, pgs_txn *t, int k, uint64_t n_rows)
{
    uint64_t len = m->now.k[k].len;
    int64_t shape = (int64_t)n_rows;
    TRY(pgs_txn_resize(t, key_names[k], strlen(key_names[k]), &shape, 1, &err));
    if (n_rows * 4 > len) memset(m->bytes[k] + len, 0, n_rows * 4 - len);
    model_set(m, k, PGS_KIND_ARRAY, n_rows * 4);
    return 0;
}

static inline int w_delete(struct model *m, pgs_txn *t, int k)
{
    TRY(pgs_txn_delete(t, key_names[k], strlen(key_names[k]), &err));
    model_set(m, k, 0, 0);
    return 0;
}

static inline int w_copy(struct model *m, pgs_txn *t, int from, int to)
{
    TRY(pgs_txn_copy(t, NULL, key_names[from], strlen(key_names[from]), key_names[to], strlen(key_names[to]), NULL,
                     &err));
    memcpy(m->bytes[to], m->bytes[from], m->now.k[from].len);
    model_set(m, to, m->now.k[from].kind, m->now.k[from].len);
    return 0;
}

static inline bool is_array(const struct model *m, int k)
{
    return m->now.k[k].kind == PGS_KIND_ARRAY;
}

/* One random operation: small puts, large ones, arrays in all their ways. */
static inline int w_random(struct model *m, pgs_txn *t)
{
    int array = 8 + (int)rng_below(3), blob = 4 + (int)rng_below(2), small = (int)rng_below(4);
    switch (rng_below(12)) {
    case 0:
        return w_put(m, t, small, PGS_KIND_BYTES, rng_below(50));
    case 1:
        return w_put(m, t, small, PGS_KIND_PLAIN, 65 + rng_below(3000));
    case 2:
        return w_put(m, t, blob, PGS_KIND_BYTES, 5000 + rng_below(150000));
    case 3:
        return w_put(m, t, 7, PGS_KIND_PICKLE, 3000 + rng_below(40000));
    case 4:
    case 5:
        return w_put(m, t, array, PGS_KIND_ARRAY, 4 * (1000 + rng_below(40000)));
    case 6:
        return w_empty(m, t, array, 4 * (1000 + rng_below(30000)));
    case 7:
    case 8:
        return is_array(m, array) ? w_edit(m, t, array, 1 + (int)rng_below(4))
                                  : w_put(m, t, array, PGS_KIND_ARRAY, 100000);
    case 9:
        if (!is_array(m, 11) || m->now.k[11].len > 200000) return w_put(m, t, 11, PGS_KIND_ARRAY, 4 * rng_below(300));
        return w_append(m, t, 11, 1 + rng_below(3000));
    case 10:
        if (!is_array(m, 12)) return w_create(m, t, 12, 200000);
        return rng_below(2) ? w_edit(m, t, 12, 2) : w_resize(m, t, 12, rng_below(60000));
    default:
        if (m->now.k[array].kind) return w_delete(m, t, array);
        return is_array(m, 11) ? w_copy(m, t, 11, array) : w_put(m, t, array, PGS_KIND_ARRAY, 4096);
    }
}

/* --- comparing -------------------------------------------------------------------------------------------------------- */
/* What the snapshot really holds under that key. 0 or -PGS_E…. */
static inline int read_object(pgs_snapshot *sn, int k, struct object_state *out)
{
    struct pgs_object obj;
    pgs_view *v;
    *out = (struct object_state){0};
    int rc = pgs_get(sn, key_names[k], strlen(key_names[k]), &obj, &err);
    if (rc == -PGS_ENOENT) return 0;
    if (rc) return rc;
    out->kind = obj.kind;
    out->len = obj.n_bytes;
    if (obj.inline_data) {
        out->hash = pgs__hash(obj.inline_data, obj.n_bytes);
        return 0;
    }
    rc = pgs_view_open(sn, &obj, 1, &v, &err);
    if (rc) return rc;
    if (pgs_view_size(v) != obj.n_bytes) {
        pgs_view_unref(v);
        return -PGS_EBUG;
    }
    out->hash = pgs__hash(pgs_view_data(v), obj.n_bytes);
    pgs_view_unref(v);
    return 0;
}

/* Fails the test unless the snapshot holds exactly that state. */
static inline void check_state(pgs_snapshot *sn, const struct world_state *want)
{
    uint64_t n = 0;
    for (int k = 0; k < N_KEYS; k++) {
        struct object_state got;
        int rc = read_object(sn, k, &got);
        if (rc)
            TEST_FAIL("version %llu: %s cannot be read: %d %s", (unsigned long long)pgs_snapshot_version(sn),
                      key_names[k], rc, err.text);
        const struct object_state *w = &want->k[k];
        if (got.kind != w->kind || got.len != w->len || got.hash != w->hash)
            TEST_FAIL("version %llu: %s is kind %u, %llu bytes, hash %016llx; committed was kind %u, %llu bytes, "
                      "hash %016llx",
                      (unsigned long long)pgs_snapshot_version(sn), key_names[k], got.kind, (unsigned long long)got.len,
                      (unsigned long long)got.hash, w->kind, (unsigned long long)w->len, (unsigned long long)w->hash);
        n += w->kind != 0;
    }
    if (pgs_snapshot_count(sn) != n)
        TEST_FAIL("version %llu counts %llu objects, not %llu", (unsigned long long)pgs_snapshot_version(sn),
                  (unsigned long long)pgs_snapshot_count(sn), (unsigned long long)n);
}

/* A power loss may tear the superblock that was being written: one good copy is what recovery needs, the next superblock repairs the other. */
static inline int print_problem(void *ctx, const char *object, const char *problem)
{
    if (ctx && strcmp(object, "the superblock") == 0 && strstr(problem, "one of the two copies")) {
        ++*(uint64_t *)ctx;
        return 0;
    }
    fprintf(stderr, "    [%s] %s\n", object, problem);
    return 0;
}

/* The verifier finds nothing, and nothing is leaked. */
static inline void check_sound_after(pgs_store *s, bool power_loss)
{
    uint64_t torn = 0;
    struct pgs_check_report r = {0};
    memset(&err, 0, sizeof err);
    CHECK_OK(pgs_check(s, 1, print_problem, power_loss ? &torn : NULL, &r, &err));
    CHECK_EQ(r.n_errors, torn);
    CHECK_EQ(r.n_leaked_pages, 0);
}
static inline void check_sound(pgs_store *s)
{
    check_sound_after(s, false);
}

/* --- another boot ------------------------------------------------------------------------------------------------------ */
/* The control file of store `path` was written by another boot. (Whatever else is in it may be torn.) */
static inline void other_boot(const char *path)
{
    static const char other[16] = "another boot id";
    char name[1024];
    snprintf(name, sizeof name, "%s/control", path);
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    if (pwrite(fd, other, 16, offsetof(struct pgs__control, boot_id)) != 16) TEST_FAIL("%s: %s", name, strerror(errno));
    close(fd);
}

/* So were its superblocks: what "none" on a disk distrusts. */
static inline void other_boot_supers(const char *path)
{
    static const uint32_t at[2] = {PGS__SUPER_PAGE_0, PGS__SUPER_PAGE_1};
    char name[1024];
    struct pgs__super super;
    snprintf(name, sizeof name, "%s/pages", path);
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    for (int i = 0; i < 2; i++) {
        off_t off = (off_t)at[i] * PGS_PAGE_SIZE;
        if (pread(fd, &super, sizeof super, off) != sizeof super) continue;
        if (super.xxh != pgs__hash(&super, offsetof(struct pgs__super, xxh))) continue;
        memcpy(super.boot_id, "another boot id", 16);
        super.xxh = pgs__hash(&super, offsetof(struct pgs__super, xxh));
        if (pwrite(fd, &super, sizeof super, off) != sizeof super) TEST_FAIL("%s: %s", name, strerror(errno));
    }
    close(fd);
}

static inline void drop_control(const char *path)
{
    char name[1024];
    snprintf(name, sizeof name, "%s/control", path);
    unlink(name);
}

/* --- what the dead leave --- */
/* Words of the dead in the control file: slots and owned chunks that are not of this process. */
static inline int words_left(const char *path)
{
    char name[1024];
    int n = 0, pid = (int)getpid();
    snprintf(name, sizeof name, "%s/control", path);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    struct pgs__slot *slots = malloc(PGS__N_SLOTS * sizeof *slots);
    uint64_t owners[512], own[8] = {0}, n_own = 0;
    CHECK(fd >= 0 && slots);
    ssize_t want = (ssize_t)(PGS__N_SLOTS * sizeof *slots);
    CHECK(pread(fd, slots, (size_t)want, PGS__SLOTS_OFFSET) == want);
    for (uint32_t i = 0; i < PGS__N_SLOTS; i++) {
        if (slots[i].tag == 0) continue;
        if (slots[i].pid == (uint64_t)pid && n_own < 8)
            own[n_own++] = slots[i].tag;
        else
            n++, fprintf(stderr, "    slot %u of process %llu is left\n", i, (unsigned long long)slots[i].pid);
    }
    CHECK(pread(fd, owners, sizeof owners, (off_t)PGS__OWNERS_OFFSET) == (ssize_t)sizeof owners);
    for (int i = 0; i < 512; i++) {
        bool ours = owners[i] == 0;
        for (uint64_t k = 0; k < n_own; k++) ours |= owners[i] == own[k];
        if (!ours) n++, fprintf(stderr, "    chunk %d is still owned by a dead slot\n", i);
    }
    close(fd);
    free(slots);
    return n;
}

/* --- a table without barriers: tests of order and of contents need no disk that waits ----------------------------------- */
static inline int no_sync(int fd)
{
    (void)fd;
    return 0;
}
static struct pgs__file_ops quick_ops UNUSED_OK;
static inline void without_syncs(void)
{
    quick_ops = pgs__file_ops_real;
    quick_ops.fdatasync = no_sync;
    quick_ops.fsync = no_sync;
    pgs__file_ops = &quick_ops;
}

#endif
