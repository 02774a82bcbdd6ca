/* Pagestone | tests/fuse/test_pkl — stored objects as one pickle stream.
 * SPDX-License-Identifier: Apache-2.0
 *
 * That Python reads the streams is tested in test_view.py; here: sizes, random access, and contents that are damaged.
 */
#include "fuse/pkl.h"
#include "tests/unit/testing.h"

#include <errno.h>

struct made {
    char p[4096];
    uint64_t n;
};

/* A content of a stream and buffers of these lengths, filled with their number. */
static struct made make(const char *stream, size_t len, const uint64_t *buffers, uint32_t n)
{
    struct made m = {.n = 16 + 16 * (uint64_t)n + len};
    memcpy(m.p, &m.n, 8);
    memcpy(m.p + 8, &n, 4);
    memcpy(m.p + 16 + 16 * n, stream, len);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = (m.n + 63) / 64 * 64;
        memcpy(m.p + 16 + 16 * i, &at, 8);
        memcpy(m.p + 24 + 16 * i, &buffers[i], 8);
        memset(m.p + at, 'A' + (int)i, buffers[i]);
        m.n = at + buffers[i];
    }
    return m;
}

static size_t read_at(const struct pkl *k, uint64_t off, size_t len, char *out, int n_iov)
{
    struct iovec iov[8];
    int used;
    size_t got = 0, n;
    while (got < len && (n = pkl_pieces(k, off + got, len - got, iov, n_iov, &used)) > 0) {
        CHECK(used > 0 && used <= n_iov);
        for (int i = 0; i < used; i++) {
            memcpy(out + got, iov[i].iov_base, iov[i].iov_len);
            got += iov[i].iov_len;
        }
    }
    return got;
}

#define STREAM(s) (s), sizeof(s) - 1

TEST(buffers_are_spliced_in_and_frames_neutralized)
{
    static const char in[] = "\x80\5\x95\x09\0\0\0\0\0\0\0](\x97\x97\x98"
                             "K\1e.";
    static const char want[] = "\x80\5J\0\0\0\0"
                               "0K\0"
                               "0](\x96\3\0\0\0\0\0\0\0AAA\x8e\2\0\0\0\0\0\0\0BB\x98K\1e.";
    uint64_t lens[2] = {3, 2}, size;
    struct made m = make(STREAM(in), lens, 2);
    struct pkl *k;
    char out[200];
    CHECK(pkl_size(m.p, m.n, &size));
    CHECK_EQ(size, sizeof want - 1);
    CHECK_EQ(pkl_open(m.p, m.n, &k), 0);
    CHECK_EQ(pkl_bytes(k), size);
    CHECK_EQ(read_at(k, 0, sizeof out, out, 8), size);
    CHECK(!memcmp(out, want, size));
    for (uint64_t off = 0; off <= size + 2; off++)
        for (size_t len = 1; len < 12; len++) {
            size_t expect = off >= size ? 0 : size - off < len ? size - off : len;
            CHECK_EQ(read_at(k, off, len, out, 1 + (int)(off % 3)), expect);
            CHECK(!memcmp(out, want + (off < size ? off : 0), expect));
        }
    pkl_free(k);
}

TEST(a_stream_without_buffers_is_left_alone)
{
    static const char in[] = "\x80\5\x95\2\0\0\0\0\0\0\0N.";
    struct made m = make(STREAM(in), NULL, 0);
    struct pkl *k;
    char out[64];
    CHECK_EQ(pkl_open(m.p, m.n, &k), 0);
    CHECK_EQ(read_at(k, 0, sizeof out, out, 8), sizeof in - 1);
    CHECK(!memcmp(out, in, sizeof in - 1));
    pkl_free(k);
}

TEST(streams_and_tables_that_do_not_fit_are_refused)
{
    static const char in[] = "\x80\5](\x97\x97K\1e.";
    uint64_t lens[3] = {3, 2, 1}, size, bad;
    struct pkl *k;
    struct made m = make(STREAM(in), lens, 1); /* fewer buffers than NEXT_BUFFERs */
    CHECK_EQ(pkl_open(m.p, m.n, &k), -EIO);
    m = make(STREAM(in), lens, 3); /* more */
    CHECK_EQ(pkl_open(m.p, m.n, &k), -EIO);
    m = make(in, sizeof in - 2, lens, 2); /* no STOP */
    CHECK_EQ(pkl_open(m.p, m.n, &k), -EIO);
    m = make(STREAM(in), lens, 2);
    bad = UINT64_MAX - 1;
    memcpy(m.p + 24, &bad, 8);
    CHECK(!pkl_size(m.p, m.n, &size));
    CHECK_EQ(pkl_open(m.p, m.n, &k), -EIO);
    for (uint64_t n = 0; n < 16; n++) CHECK_EQ(pkl_open(m.p, n, &k), -EIO);
}

TEST(no_mutation_of_a_content_does_harm)
{
    static const char in[] = "\x80\5\x95\x20\0\0\0\0\0\0\0\x8c\5helloX\2\0\0\0hicos\nsystem\n](\x97\x97\x98"
                             "C\4abcdG\0\0\0\0\0\0\0\0e.";
    uint64_t lens[2] = {30, 70}, x = 88172645463325252u, size;
    struct made m = make(STREAM(in), lens, 2);
    char out[64];
    for (int i = 0; i < 50000; i++) {
        char *copy = malloc(m.n); /* of its exact size: the sanitizer sees a byte too many */
        struct pkl *k;
        memcpy(copy, m.p, m.n);
        for (int c = 0; c < 1 + i % 3; c++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            copy[x % (i % 2 ? 48 + sizeof in : m.n)] = (char)(x >> 40);
        }
        uint64_t n = i % 7 ? m.n : x % m.n;
        if (n >= 16 && pkl_table_len(copy, n)) pkl_size(copy, n, &size);
        if (pkl_open(copy, n, &k) == 0) {
            for (int r = 0; r < 4; r++) read_at(k, x % (pkl_bytes(k) + 9), sizeof out, out, 8);
            pkl_free(k);
        }
        free(copy);
    }
}

static const char plain[] = "m\3\0\0\0"
                            "\1\0\0\0al\3\0\0\0NTF"
                            "\1\0\0\0bi\xff\xff\xff\xff\xff\xff\xff\x7f"
                            "\1\0\0\0cn\3\0<f8\10\0\0\0\0\0\0\0\0\0\xf0\x3f";

TEST(a_plain_value_becomes_a_stream_of_the_size_that_is_told)
{
    uint64_t size, again;
    struct text t = {0};
    CHECK_EQ(plain_pickle(plain, sizeof plain - 1, NULL, &size), 0);
    CHECK_EQ(plain_pickle(plain, sizeof plain - 1, &t, &again), 0);
    CHECK_EQ(size, again);
    CHECK_EQ(size, t.len);
    CHECK(t.len > 4 && !memcmp(t.p, "\x80\4}(", 4) && !memcmp(t.p + t.len - 2, "u.", 2));
    text_free(&t);
    for (uint64_t n = 0; n < sizeof plain - 1; n++) CHECK_EQ(plain_pickle(plain, n, NULL, &size), -EIO);
    CHECK_EQ(plain_pickle("NN", 2, NULL, &size), -EIO);
}

TEST(no_mutation_of_a_plain_value_does_harm)
{
    uint64_t x = 88172645463325252u, size, again;
    for (int i = 0; i < 50000; i++) {
        char *copy = malloc(sizeof plain - 1);
        struct text t = {0};
        memcpy(copy, plain, sizeof plain - 1);
        for (int c = 0; c < 1 + i % 3; c++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            copy[x % (sizeof plain - 1)] = x >> 33 & 1 ? "NTFiIdcsylmSYn"[(x >> 40) % 14] : (char)(x >> 40);
        }
        int rc = plain_pickle(copy, sizeof plain - 1, NULL, &size);
        CHECK_EQ(plain_pickle(copy, sizeof plain - 1, &t, &again), rc);
        if (rc == 0) CHECK_EQ(size, t.len);
        text_free(&t);
        free(copy);
    }
}

TEST(values_nested_too_deep_are_refused)
{
    char deep[5 * 100 + 1];
    uint64_t size;
    for (int i = 0; i < 100; i++) memcpy(deep + 5 * i, "l\1\0\0\0", 5);
    deep[500] = 'N';
    CHECK_EQ(plain_pickle(deep, sizeof deep, NULL, &size), -EIO);
    CHECK_EQ(plain_pickle(deep + 500 - 5 * 64, 5 * 64 + 1, NULL, &size), 0);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
