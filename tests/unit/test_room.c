/* Pagestone | tests/unit/test_room — memory that is short is an error in time: reading the limits, asking seldom, refusing only fresh pages.
 * SPDX-License-Identifier: Apache-2.0
 *
 * /proc and /sys are files that the test writes (pgs__ram_root), or the answer comes from the test altogether (pgs__ram_source).
 */
#include <sys/stat.h>

#include "libshm/pages/room.h"
#include "libshm/platform/caps.h"
#include "libshm/txn/store.h"
#include "tests/unit/commit_fixture.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

/* --- reading ---------------------------------------------------------------------------------------------------------------------- */

static char root[64];

static void remove_root(void)
{
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf %s", root);
    CHECK_EQ(system(cmd), 0);
}

/* The file, its directories with it. */
static void file(const char *path, const char *text)
{
    char full[512];
    if (!root[0]) {
        snprintf(root, sizeof root, "/tmp/pgs-room-XXXXXX");
        CHECK(mkdtemp(root));
        atexit(remove_root);
        pgs__ram_root = root;
    }
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    CHECK(f);
    fputs(text, f);
    CHECK_EQ(fclose(f), 0);
}

static void machine(void)
{
    file("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:          100000 kB\nMemAvailable:    8388608 kB\n");
}

TEST(the_machine_leaves_what_is_available_less_a_head_room)
{
    struct pgs__ram m;
    machine();
    pgs__ram_look(UINT64_MAX, &m);
    CHECK_EQ(m.by, PGS__RAM_MACHINE);
    CHECK_EQ(m.total, 16 * GIB);
    CHECK_EQ(m.available, 8 * GIB);
    CHECK_EQ(m.kept, GIB);
    CHECK_EQ(m.left, 7 * GIB);
}

TEST(the_head_room_is_a_part_with_bounds)
{
    CHECK_EQ(pgs__ram_head_room(64 * MIB), 16 * MIB);
    CHECK_EQ(pgs__ram_head_room(512 * MIB), 64 * MIB);
    CHECK_EQ(pgs__ram_head_room(32 * GIB), 2 * GIB);
    CHECK_EQ(pgs__ram_head_room(1024 * GIB), 4 * GIB);
}

TEST(the_tightest_group_on_the_way_up_limits)
{
    struct pgs__ram m;
    machine();
    file("/proc/self/cgroup", "0::/a/b/c\n");
    file("/proc/self/mountinfo", "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    file("/sys/fs/cgroup/a/b/c/memory.max", "max\n");
    file("/sys/fs/cgroup/a/b/c/memory.current", "1000\n");
    file("/sys/fs/cgroup/a/b/memory.max", "1073741824\n");
    file("/sys/fs/cgroup/a/b/memory.current", "1048576000\n");
    file("/sys/fs/cgroup/a/b/memory.stat",
         "anon 5\ninactive_anon 7\ninactive_file 104857600\nactive_file 209715200\nslab_reclaimable 0\n");
    file("/sys/fs/cgroup/a/memory.max", "2147483648\n");
    file("/sys/fs/cgroup/a/memory.current", "1048576000\n");
    pgs__ram_look(UINT64_MAX, &m);
    CHECK_EQ(m.by, PGS__RAM_CGROUP);
    CHECK_EQ(m.total, GIB);
    CHECK_EQ(m.available, 224 * MIB); /* 24 free, 100 idle, half of 200 */
    CHECK_EQ(m.left, 160 * MIB);
    file("/sys/fs/cgroup/a/memory.current", "2147483648\n");
    pgs__ram_look(UINT64_MAX, &m);
    CHECK_EQ(m.total, 2 * GIB);
    CHECK_EQ(m.left, 0);
}

TEST(version_1_is_read_too_where_a_container_sees_its_own_group_only)
{
    struct pgs__ram m;
    machine();
    file("/proc/self/cgroup", "12:cpu,cpuacct:/docker/abc\n5:hugetlb,memory:/docker/abc/in\n1:name=systemd:/\n0::/\n");
    file("/proc/self/mountinfo",
         "30 1 0:9 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
         "31 1 0:9 /docker/abc /sys/fs/cgroup/memory ro master:3 - cgroup cgroup rw,hugetlb,memory\n");
    file("/sys/fs/cgroup/memory/in/memory.limit_in_bytes", "9223372036854771712\n");
    file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
    file("/sys/fs/cgroup/memory/memory.usage_in_bytes", "268435456\n");
    file("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\ntotal_active_file 0\n");
    pgs__ram_look(UINT64_MAX, &m);
    CHECK_EQ(m.by, PGS__RAM_CGROUP);
    CHECK_EQ(m.left, (256 + 1 - 64) * MIB);
}

TEST(nonsense_limits_nothing)
{
    struct pgs__ram m;
    machine();
    static const char *const groups[] = {"",           "\n",       "0",          "0:", "0::", "0::/../../x\n",
                                         "7:memory\n", "::::::\n", "0::/\n0::/a"};
    static const char *const mounts[] = {"",
                                         "1 2 3\n",
                                         "1 2 3 4 5 - cgroup2\n",
                                         "- - - - - - -",
                                         "1 2 3 / / -",
                                         "1 2 3 / /x - cgroup",
                                         " \n \n",
                                         "1 2 3 / /sys/fs/cgroup - cgroup2 a b"};
    file("/sys/fs/cgroup/memory.max", "much\n");
    for (size_t i = 0; i < PGS_ARRAY_LEN(groups); i++)
        for (size_t k = 0; k < PGS_ARRAY_LEN(mounts); k++) {
            file("/proc/self/cgroup", groups[i]);
            file("/proc/self/mountinfo", mounts[k]);
            pgs__ram_look(0, &m);
            CHECK_EQ(m.by, PGS__RAM_MACHINE);
        }
}

TEST(without_proc_sysinfo_answers)
{
    struct pgs__ram m;
    file("/nothing", "x");
    pgs__ram_look(0, &m);
    CHECK_EQ(m.by, PGS__RAM_MACHINE);
    CHECK(m.total > 0 && m.available <= m.total && m.left < m.available);
}

/* --- stores ------------------------------------------------------------------------------------------------------------------------ */

static struct pgs__session *store;
static uint64_t memory, n_looks;
static enum pgs__ram_by by = PGS__RAM_CGROUP;

/* A group of `memory` bytes in which nothing is but the store. */
static void source(uint64_t need, struct pgs__ram *out)
{
    uint64_t used = pgs__pagefile_resident(&store->pf), kept = memory / 4;
    (void)need;
    n_looks++;
    out->by = by;
    out->total = memory;
    out->kept = kept;
    out->available = memory - pgs__min_u64(used, memory);
    out->left = out->available > kept ? out->available - kept : 0;
}

static void limited_store(uint64_t bytes, uint64_t quota, enum pgs_history_kind history, uint64_t value)
{
    if (!pgs__cap(PGS__CAP_MEMORY_LIMIT)) SKIP("PAGESTONE_WITHOUT=memory_limit");
    store = memory_store(quota, history, value);
    memory = bytes;
    pgs__ram_source = source;
}

/* Objects k0 … until one does not fit, of `size` bytes each, through the ladder as transactions climb it. */
static int fill(uint64_t size, int most)
{
    char key[32];
    int n = 0, rc = 0;
    for (; n < most && rc == 0; n++) {
        snprintf(key, sizeof key, "k%d", n);
        rc = put(store, key, PGS_KIND_BYTES, (uint64_t)n, size);
        for (int level = 0; rc == -PGS_EFULL && level <= 2; level++) {
            err = (struct pgs_error){0};
            (void)pgs__make_room(store, NULL, level, NULL, NULL);
            rc = put(store, key, PGS_KIND_BYTES, (uint64_t)n, size);
        }
    }
    if (rc == 0) return n;
    CHECK_EQ(rc, -PGS_EFULL);
    return n - 1;
}

TEST(a_store_without_a_quota_leaves_the_head_room)
{
    char key[32];
    limited_store(32 * MIB, 0, PGS_HIST_COUNT, 0);
    int n = fill(500000, 1000);
    CHECK(n >= 30 && n <= 50);
    CHECK(pgs__pagefile_resident(&store->pf) <= 28 * MIB); /* three quarters, and a few nodes */
    CHECK_EQ(pgs__fail_full(store, 4000000, 0, &err), -PGS_EFULL);
    fprintf(stderr, "    %d; %s\n", n, err.text);
    CHECK(strstr(err.text, "the memory cgroup is full: the store needs 4.0 MB") &&
          strstr(err.text, "of 33.6 MB in all"));
    CHECK_EQ(err.os_errno, 28);
    by = PGS__RAM_MACHINE;
    CHECK_EQ(pgs__fail_full(store, 4000000, 0, &err), -PGS_EFULL);
    CHECK(strstr(err.text, "the machine's memory is full"));
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "k%d", i);
        check_head_bytes(store, key, (uint64_t)i, 500000);
    }
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "k%d", i);
        CHECK_OK(del(store, key));
    }
    CHECK(fill(500000, 1000) >= n * 3 / 4);
    check_store(store);
    pgs__session_unref(store);
}

TEST(history_goes_before_a_put_fails)
{
    limited_store(32 * MIB, 0, PGS_HIST_ALL, 0);
    for (int i = 0; i < 60; i++) {
        int rc = put(store, "x", PGS_KIND_BYTES, (uint64_t)i, 1000000);
        for (int level = 0; rc == -PGS_EFULL && level <= 2; level++) {
            err = (struct pgs_error){0};
            CHECK_OK(pgs__make_room(store, NULL, level, NULL, &err));
            rc = put(store, "x", PGS_KIND_BYTES, (uint64_t)i, 1000000);
        }
        CHECK_EQ(rc, 0);
    }
    check_head_bytes(store, "x", 59, 1000000);
    check_store(store);
    pgs__session_unref(store);
}

TEST(with_a_quota_memory_is_not_looked_at)
{
    limited_store(8 * MIB, 64 * MIB, PGS_HIST_COUNT, 0);
    CHECK_EQ(fill(1000000, 20), 20);
    CHECK_EQ(n_looks, 0);
    pgs__session_unref(store);
}

TEST(looks_are_rare_while_there_is_plenty)
{
    limited_store(64 * GIB, 0, PGS_HIST_COUNT, 2);
    uint64_t start = pgs__clock_mono_ns();
    CHECK_EQ(fill(500, 500), 500);
    CHECK_EQ(fill(1000000, 60), 60);
    uint64_t quarters = (pgs__clock_mono_ns() - start) / 250000000u + 1;
    CHECK(n_looks > 0 && n_looks <= quarters + 2); /* 60 MB are less than two allowances */
    pgs__session_unref(store);
}

static uint64_t n_seeks;
static off_t counting_seek(int fd, off_t off, int whence)
{
    n_seeks++;
    return pgs__file_ops_real.seek(fd, off, whence);
}

TEST(an_allowance_that_is_used_up_to_the_last_byte_is_just_renewed)
{
    struct pgs__file_ops ops = pgs__file_ops_real;
    ops.seek = counting_seek;
    limited_store(64 * GIB, 0, PGS_HIST_COUNT, 2);
    pgs__room_limit(&store->pf, true);
    pgs__file_ops = &ops;
    for (uint64_t i = 0; i < 40000; i++) CHECK_EQ(pgs__room_take(&store->pf, 600 + i, 1, false), 0); /* 156 MiB */
    pgs__file_ops = &pgs__file_ops_real;
    CHECK_EQ(n_seeks, 0);
    CHECK(n_looks >= 3 && n_looks < 100);
    pgs__session_unref(store);
}

TEST(pages_that_are_there_are_never_refused)
{
    limited_store(64 * MIB, 0, PGS_HIST_COUNT, 0);
    struct pgs__pagefile *pf = &store->pf;
    CHECK_OK(pgs__pagefile_grow(pf, 8 * PGS_CHUNK_PAGES, &err));
    struct pgs_run run = {{5 * PGS_CHUNK_PAGES}, 64};
    uint8_t *bytes = pattern_bytes(1, 64 * PGS_PAGE_SIZE);
    pgs__room_limit(pf, true);
    CHECK_OK(pgs__fresh_copy(pf, run, false, bytes, 64 * PGS_PAGE_SIZE, NULL, &err));
    memory = PGS_PAGE_SIZE; /* somebody else took it */
    atomic_store(&pf->allowance_until, 0);
    CHECK_OK(pgs__fresh_copy(pf, run, false, bytes, 64 * PGS_PAGE_SIZE, NULL, &err));
    CHECK_OK(pgs__pages_write(pf, run.page, bytes, 64, &err));
    run.n_pages++;
    CHECK_ERR(pgs__fresh_reserve(pf, run, false, &err), PGS_EFULL);
    CHECK_EQ(err.os_errno, 28);
    pgs__room_limit(pf, false);
    err = (struct pgs_error){0};
    CHECK_OK(pgs__fresh_reserve(pf, run, false, &err));
    free(bytes);
    pgs__session_unref(store);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
