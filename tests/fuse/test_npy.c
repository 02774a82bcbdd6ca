/* Pagestone | tests/fuse/test_npy — headers of .npy files, written, read, and made up.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "fuse/npy.h"
#include "tests/unit/testing.h"

#include <errno.h>

static struct pgs_type type_of(const char *dtype, uint32_t itemsize, char order, uint32_t ndim, const int64_t *shape)
{
    struct pgs_type t = {
        .dtype = dtype, .dtype_len = (uint32_t)strlen(dtype), .itemsize = itemsize, .ndim = ndim, .order = order};
    for (uint32_t i = 0; i < ndim; i++) t.shape[i] = shape[i];
    return t;
}

static int same_type(const struct pgs_type *a, const struct pgs_type *b)
{
    return a->dtype_len == b->dtype_len && !memcmp(a->dtype, b->dtype, a->dtype_len) && a->itemsize == b->itemsize &&
           a->ndim == b->ndim && a->order == b->order && !memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape);
}

static const struct {
    const char *dtype;
    uint32_t itemsize;
} dtypes[] = {
    {"<f8", 8},
    {">i4", 4},
    {"|i1", 1},
    {"|b1", 1},
    {"|u1", 1},
    {"<c16", 16},
    {"|S10", 10},
    {"<U5", 20},
    {">U1", 4},
    {"|V7", 7},
    {"<M8[ns]", 8},
    {">m8[25s]", 8},
    {"<M8", 8},
    {"{'names': ['a', 'b'], 'formats': ['<i4', '>f8'], 'offsets': [0, 4], 'itemsize': 12}", 12},
    {"{'names': ['a', 'b'], 'formats': ['|i1', '<f8'], 'offsets': [0, 8], 'itemsize': 24}", 24},
    {"{'names': ['x'], 'formats': [('<f4', (2, 3))], 'offsets': [4], 'itemsize': 28}", 28},
    {"{'names': ['it\\'s \"q\"', 'b\\\\c\\n'], 'formats': ['|i1', '|i1'], 'offsets': [0, 1], 'itemsize': 2}", 2},
    {"{'names': ['größe'], 'formats': ['<f8'], 'offsets': [0], 'itemsize': 8}", 8},
    {"{'names': ['p'], 'formats': [{'names': ['x', 'y'], 'formats': ['<f4', '<f4'], 'offsets': [0, 4], 'itemsize': "
     "8}], 'offsets': [0], 'itemsize': 8}",
     8},
    {"{'names': ['a', 'b'], 'formats': ['|i1', '|i1'], 'offsets': [0, 1], 'itemsize': 2, 'titles': ['T', None]}", 2},
    {"{'names': [], 'formats': [], 'offsets': [], 'itemsize': 8}", 8},
};

TEST(a_written_header_reads_as_the_type_it_was_made_of)
{
    static const int64_t shapes[][3] = {{0}, {5}, {3, 4}, {2, 0, 7}};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        for (uint32_t ndim = 0; ndim < 4; ndim++) {
            struct pgs_type t = type_of(dtypes[i].dtype, dtypes[i].itemsize, ndim == 2 ? 'F' : 'C', ndim, shapes[ndim]);
            struct text h = {0};
            struct npy n;
            CHECK(npy_write(&t, &h));
            CHECK_EQ(h.len % NPY_PAGE, 0);
            CHECK_EQ(npy_header_len(h.p, h.len), h.len);
            if (npy_parse(h.p, h.len, &n)) TEST_FAIL("%s does not parse: %.*s", dtypes[i].dtype, (int)h.len, h.p + 10);
            if (!same_type(&t, &n.type))
                TEST_FAIL("%s became %.*s", dtypes[i].dtype, (int)n.type.dtype_len, n.type.dtype);
            CHECK_EQ(n.data_at, h.len);
            npy_free(&n);
            text_free(&h);
        }
}

static void becomes_void(const char *dtype, uint32_t itemsize)
{
    struct pgs_type t = type_of(dtype, itemsize, 'C', 0, NULL);
    struct text h = {0};
    struct npy n;
    char want[16];
    CHECK(npy_write(&t, &h));
    CHECK_EQ(npy_parse(h.p, h.len, &n), 0);
    snprintf(want, sizeof want, "|V%u", itemsize);
    CHECK(n.type.dtype_len == strlen(want) && !memcmp(n.type.dtype, want, strlen(want)));
    npy_free(&n);
    text_free(&h);
}

TEST(what_npy_cannot_say_is_bytes_of_that_size)
{
    becomes_void("!ml_dtypes:bfloat16", 2);
    becomes_void("{'names': ['a', 'b'], 'formats': ['<i4', '<i4'], 'offsets': [0, 2], 'itemsize': 6}", 6);
    becomes_void("{'names': ['a', 'b'], 'formats': ['<i4', '<i4'], 'offsets': [4, 0], 'itemsize': 8}", 8);
}

TEST(a_malformed_description_makes_no_header)
{
    static const char *const bad[] = {"{'names': ['a']}", "{", "('<f8'",
                                      "{'names': 3, 'formats': 4, 'offsets': 5, 'itemsize': 6}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pgs_type t = type_of(bad[i], 8, 'C', 0, NULL);
        struct text h = {0};
        CHECK(!npy_write(&t, &h));
        text_free(&h);
    }
}

/* A header of a version around a dict. */
static size_t header(unsigned version, const char *dict, unsigned char *buf)
{
    size_t n = strlen(dict), lead = version == 1 ? 10 : 12;
    memcpy(buf, "\x93NUMPY", 6);
    buf[6] = (unsigned char)version;
    buf[7] = 0;
    for (size_t i = 8; i < lead; i++) buf[i] = (unsigned char)(n >> 8 * (i - 8) & 0xff);
    memcpy(buf + lead, dict, n);
    return lead + n;
}

TEST(headers_of_other_writers_are_read)
{
    static const struct {
        unsigned version;
        const char *dict, *dtype;
        uint64_t n_bytes;
    } good[] = {
        {1, "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }   \n", "<f8", 24},
        {2, "{'shape': (2L, 3L), 'descr': u'<f8', 'fortran_order': True}", "<f8", 48},
        {3, "{\"descr\":\"|u1\",\"fortran_order\":False,\"shape\":()}", "|u1", 1},
        {1, "{'descr': '<i1', 'fortran_order': False, 'shape': (0,), }", "|i1", 0},
        {1, "{'descr': '=f4', 'fortran_order': False, 'shape': (1, 2, 3), }", "<f4", 24},
        {1, "{'descr': 'f4', 'fortran_order': False, 'shape': (1,), }", "<f4", 4},
        {1, "{'descr': [('a', '<i4'), ('', '|V4'), ('b', '<f8', (2,))], 'fortran_order': False, 'shape': (1,), }",
         "{'names': ['a', 'b'], 'formats': ['<i4', ('<f8', (2,))], 'offsets': [0, 8], 'itemsize': 24}", 24},
        {1, "{'descr': [('\xe4', '<i4')], 'fortran_order': False, 'shape': (1,), }",
         "{'names': ['\xc3\xa4'], 'formats': ['<i4'], 'offsets': [0], 'itemsize': 4}", 4},
    };
    unsigned char buf[512];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct npy n;
        size_t len = header(good[i].version, good[i].dict, buf);
        if (npy_parse(buf, len, &n)) TEST_FAIL("refused: %s", good[i].dict);
        if (n.type.dtype_len != strlen(good[i].dtype) || memcmp(n.type.dtype, good[i].dtype, n.type.dtype_len))
            TEST_FAIL("%s became %.*s", good[i].dict, (int)n.type.dtype_len, n.type.dtype);
        CHECK_EQ(n.n_bytes, good[i].n_bytes);
        npy_free(&n);
    }
}

TEST(bad_headers_are_refused)
{
    static const char *const bad[] = {
        "",
        "{}",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'more': 1}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)} + 1",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 3}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': ('3',)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775808,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '|O8', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f9', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<M8[parsec]', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<U9999999999', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a', '<i4'), ('a', '<i4')], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('', '<i4')], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a',)], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': ('<f8', (2,)), 'fortran_order': False, 'shape': (3,)}",
        "{'descr': __import__('os'), 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': Falsey, 'shape': (3,)}",
        "{'descr': '<f\\x38\\', 'fortran_order': False, 'shape': (3,)}",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    };
    unsigned char buf[512];
    struct npy n;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (npy_parse(buf, header(1, bad[i], buf), &n) != -EINVAL) TEST_FAIL("accepted: %s", bad[i]);
    size_t len = header(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}", buf);
    for (size_t i = 0; i < len; i++) CHECK_EQ(npy_parse(buf, i, &n), -EINVAL); /* cut off */
    buf[6] = 4;
    CHECK_EQ(npy_parse(buf, len, &n), -EINVAL);
    memcpy(buf, "\x93NUMPY\2\0\xff\xff\xff\xff", 12);
    CHECK_EQ(npy_parse(buf, len, &n), -EINVAL);
}

TEST(no_mutation_of_a_header_does_harm)
{
    unsigned char buf[600], copy[600];
    uint64_t x = 88172645463325252u;
    size_t len =
        header(1,
               "{'descr': [('a', '<i4'), (('t', 'b'), '<f8', (2, 3)), ('c', [('x', '|S3')])], 'fortran_order': "
               "False, 'shape': (3, 4), }",
               buf);
    for (int i = 0; i < 20000; i++) {
        struct npy n;
        struct text again = {0};
        memcpy(copy, buf, len);
        for (int k = 0; k < 1 + i % 4; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            static const char likely[] = "(){}[],:'\"\\<>|0123456789 VUSMmO-L";
            copy[8 + x % (len - 8)] = x >> 32 & 1 ? (unsigned char)(x >> 40) : (unsigned char)likely[(x >> 40) % 33];
        }
        if (npy_parse(copy, len, &n)) continue;
        if (npy_write(&n.type, &again)) { /* what is accepted can be written, and reads the same */
            struct npy m;
            CHECK_EQ(npy_parse(again.p, again.len, &m), 0);
            CHECK(same_type(&n.type, &m.type) || n.type.dtype_len > 0);
            npy_free(&m);
        }
        text_free(&again);
        npy_free(&n);
    }
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
