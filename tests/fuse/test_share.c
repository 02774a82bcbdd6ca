/* Pagestone | tests/fuse/test_share — the table of inodes, by one worker and by the next.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "fuse/share.h"
#include "tests/unit/testing.h"

#include <sys/mman.h>

#define LEN ((size_t)256 << 20)

static void *memory(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

static struct inode_id id_of(uint64_t i, char path[1100])
{
    size_t len = 1 + (size_t)(i * 37 % (i % 50 ? 40 : 1000));
    int n = snprintf(path, 1100, "%llu-", (unsigned long long)i);
    memset(path + n, 'p', len);
    return (struct inode_id){
        .kind = INODE_FILE, .scope = SCOPE_NONE, .a = i, .b = i / 3, .path = path, .path_len = (size_t)n + len};
}

TEST(one_identity_is_one_number_and_lookups_are_counted)
{
    struct share s;
    struct inode_fill fill = {.size = 5, .mode = 0644};
    char path[1100];
    CHECK_EQ(share_open(&s, memory(LEN), LEN), 0);
    struct inode_id id = id_of(7, path), other = id;
    CHECK(!inode_find(&s, &id));
    struct inode *n = inode_make(&s, &id, &fill);
    CHECK(n && inode_make(&s, &id, &fill) == n && inode_find(&s, &id) == n);
    uint64_t ino = inode_number(&s, n);
    CHECK(inode_at(&s, ino) == n && ino > ROOT_INO);
    other.c = 1;
    CHECK(inode_make(&s, &other, &fill) != n);
    inode_forget(&s, ino, 2);
    CHECK(inode_at(&s, ino) == n);
    inode_forget(&s, ino, 1);
    CHECK(!inode_at(&s, ino));
    CHECK(!inode_find(&s, &id));
    inode_forget(&s, ino, 1); /* of nothing: nothing */
    share_close(&s);
}

TEST(numbers_that_name_no_entry_are_nothing)
{
    struct share s;
    struct inode_fill fill = {0};
    char path[1100];
    CHECK_EQ(share_open(&s, memory(LEN), LEN), 0);
    struct inode_id id = id_of(1, path);
    uint64_t ino = inode_number(&s, inode_make(&s, &id, &fill));
    CHECK(inode_at(&s, ino));
    for (uint64_t d = 1; d < 1000; d++) CHECK(!inode_at(&s, ino + d) && !inode_at(&s, ino - d));
    CHECK(!inode_at(&s, 0) && !inode_at(&s, 1) && !inode_at(&s, UINT64_MAX) && !inode_at(&s, LEN / SHARE_UNIT));
    share_close(&s);
}

/* Some 20,000 entries made, found and forgotten at random; now and then another worker takes over. */
TEST(the_next_worker_knows_what_the_last_one_knew)
{
    enum { N = 20000 };
    static uint16_t count[N];
    static uint64_t ino[N];
    struct share s;
    struct inode_fill fill = {.size = 1};
    void *base = memory(LEN);
    char path[1100];
    uint64_t x = 88172645463325252u;
    CHECK_EQ(share_open(&s, base, LEN), 0);
    for (int step = 0; step < 300000; step++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint64_t i = x % N;
        struct inode_id id = id_of(i, path);
        if (x >> 40 & 1 || count[i] == 0) {
            struct inode *n = x >> 41 & 1 ? inode_find(&s, &id) : inode_make(&s, &id, &fill);
            CHECK((n != NULL) >= (count[i] > 0));
            if (n && count[i]) CHECK_EQ(inode_number(&s, n), ino[i]);
            if (n) ino[i] = inode_number(&s, n), count[i]++;
        } else {
            uint16_t less = (uint16_t)(1 + (x >> 42) % count[i]);
            inode_forget(&s, ino[i], less);
            count[i] = (uint16_t)(count[i] - less);
        }
        if (step % 60000 == 59999) {
            free(s.index); /* no farewell */
            memset(&s, 0xee, sizeof s);
            CHECK_EQ(share_open(&s, base, LEN), 0);
        }
    }
    uint64_t used = 0;
    for (uint64_t i = 0; i < N; i++) {
        struct inode_id id = id_of(i, path);
        struct inode *n = inode_find(&s, &id);
        CHECK_EQ(n != NULL, count[i] > 0);
        if (!n) continue;
        CHECK_EQ(atomic_load(&n->n_lookup), count[i] + 1);
        CHECK(n->path_len == id.path_len && !memcmp(n->path, path, id.path_len));
        used++;
    }
    CHECK_EQ(s.n_used, used);
    share_close(&s);
}

TEST(freed_entries_are_used_again)
{
    struct share s;
    struct inode_fill fill = {0};
    char path[1100];
    CHECK_EQ(share_open(&s, memory(LEN), LEN), 0);
    for (int round = 0; round < 50; round++) {
        uint64_t ino[500];
        for (uint64_t i = 0; i < 500; i++) {
            struct inode_id id = id_of(i + 1000u * (unsigned)round, path);
            ino[i] = inode_number(&s, inode_make(&s, &id, &fill));
        }
        for (uint64_t i = 0; i < 500; i++) inode_forget(&s, ino[i], 1);
    }
    CHECK(atomic_load(&s.head->n_chunks) <= 5);
    CHECK_EQ(s.n_used, 0);
    share_close(&s);
}

TEST(exhausted_memory_is_no_inode)
{
    struct share s;
    struct inode_fill fill = {0};
    char path[1100];
    size_t len = (size_t)36 << 20;
    uint64_t made = 0;
    CHECK_EQ(share_open(&s, memory(len), len), 0);
    for (;; made++) {
        struct inode_id id = {.kind = INODE_DIR, .a = made, .path = path, .path_len = 8};
        memcpy(path, "abcdefgh", 8);
        if (!inode_make(&s, &id, &fill)) break;
    }
    CHECK(made >= 4 * 8000 && made <= 4 * 8192);
    share_close(&s);
}

static void mark(void *ctx, struct inode *n)
{
    *(uint64_t *)ctx += n->a;
}

TEST(entries_of_a_kind_are_visited_and_renamed)
{
    struct share s;
    struct inode_fill fill = {0};
    uint64_t sum = 0;
    CHECK_EQ(share_open(&s, memory(LEN), LEN), 0);
    struct inode_id a = {.kind = INODE_STAGE, .scope = SCOPE_HEAD, .a = 3, .path = "x", .path_len = 1}, b = a;
    b.a = 40;
    b.kind = INODE_STAGE;
    struct inode *n = inode_make(&s, &a, &fill);
    CHECK(n && inode_make(&s, &b, &fill));
    b.kind = INODE_DIR;
    b.a = 500;
    CHECK(inode_make(&s, &b, &fill) != NULL);
    inode_each(&s, INODE_STAGE, mark, &sum);
    CHECK_EQ(sum, 43);
    CHECK(inode_rename(&s, n, "longer", 6));
    CHECK(!inode_find(&s, &a));
    a.path = "longer";
    a.path_len = 6;
    CHECK(inode_find(&s, &a) == n);
    char path[1000];
    memset(path, 'p', sizeof path);
    CHECK(!inode_rename(&s, n, path, sizeof path)); /* it would have to move */
    CHECK(inode_find(&s, &a) == n);
    share_close(&s);
}

TEST(handles_of_directories_are_few_numbers)
{
    struct share s;
    CHECK_EQ(share_open(&s, memory(LEN), LEN), 0);
    uint32_t a = share_dir_open(&s, 5, 77), b = share_dir_open(&s, 6, 0);
    CHECK(a != b && a < SHARE_DIRS && b < SHARE_DIRS);
    CHECK_EQ(atomic_load(&s.dirs[a].gen), 77);
    share_dir_close(&s, a);
    CHECK_EQ(share_dir_open(&s, 7, 1), a);
    share_dir_close(&s, UINT32_MAX);
    for (uint32_t i = 2; i < SHARE_DIRS; i++) CHECK(share_dir_open(&s, 8, 0) < SHARE_DIRS);
    CHECK_EQ(share_dir_open(&s, 9, 0), UINT32_MAX);
    share_close(&s);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
