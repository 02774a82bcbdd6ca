/* Pagestone | tests/unit/test_cold_codec — blocks compressed and back; damage; contexts that end with their thread; the parallel for.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <pthread.h>
#include <stdatomic.h>

#include "libshm/extents/cold.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/parallel.h"
#include "tests/unit/testing.h"

static struct pgs_error err;
static uint8_t src[PGS__COLD_BYTES], out[PGS__COLD_BYTES], mid[PGS__COLD_BYTES], z[2 * PGS__COLD_BYTES];

static uint64_t seed = 1;
static uint64_t rnd(void)
{
    return pgs__mix(seed += 0x9e3779b97f4a7c15u);
}

/* Elements that walk, so that high bytes repeat. */
static void fill(uint8_t *p, size_t n, uint32_t itemsize)
{
    uint64_t x = rnd();
    for (size_t i = 0; i < n; i++) {
        if (itemsize == 0 || i % itemsize == 0) x += rnd() % 16;
        p[i] = (uint8_t)(x >> (8 * (i % (itemsize ? itemsize : 1) % 8)));
    }
}

TEST(shuffling_puts_byte_k_of_every_element_together_for_every_size)
{
    static const size_t sizes[] = {1, 7, 255, 4096, 4099, 65536, PGS__COLD_BYTES};
    for (uint32_t itemsize = 2; itemsize <= 255; itemsize++)
        for (size_t s = 0; s < PGS_ARRAY_LEN(sizes); s++) {
            size_t n = sizes[s], n_items = n / itemsize;
            if (n > 4099 && itemsize > 17 && itemsize % 37) continue;
            for (size_t i = 0; i < n; i++) src[i] = (uint8_t)rnd();
            pgs__cold_shuffle(mid, src, n, itemsize);
            for (size_t i = 0; i < n_items; i++)
                for (size_t k = 0; k < itemsize; k++)
                    if (mid[k * n_items + i] != src[i * itemsize + k])
                        TEST_FAIL("item size %u, %zu bytes: byte %zu of element %zu", itemsize, n, k, i);
            for (size_t i = n_items * itemsize; i < n; i++) CHECK_EQ(mid[i], src[i]);
            pgs__cold_unshuffle(out, mid, n, itemsize);
            CHECK(memcmp(out, src, n) == 0);
        }
}

TEST(a_block_comes_back_whatever_its_size_and_items)
{
    for (uint32_t itemsize = 0; itemsize <= 255; itemsize += itemsize < 18 ? 1 : 23)
        for (size_t n = PGS_PAGE_SIZE; n <= PGS__COLD_BYTES;
             n += itemsize % 4 == 0 ? PGS_PAGE_SIZE : 9 * PGS_PAGE_SIZE) {
            size_t z_bytes = 0;
            uint64_t xxh = 0;
            fill(src, n, itemsize);
            CHECK_OK(pgs__cold_compress(src, n, itemsize, z, sizeof z, &z_bytes, &xxh, &err));
            CHECK(itemsize < 2 || z_bytes < n);
            CHECK_EQ(xxh, pgs__hash(src, n));
            memset(out, 0xaa, n);
            CHECK_OK(pgs__cold_decompress(z, z_bytes, out, n, itemsize, xxh, &err));
            CHECK(memcmp(src, out, n) == 0);
        }
}

TEST(what_does_not_fit_is_said_to_be_too_large_and_the_next_block_works)
{
    size_t z_bytes;
    uint64_t xxh;
    for (size_t i = 0; i < sizeof src; i++) src[i] = (uint8_t)rnd();
    CHECK_EQ(pgs__cold_compress(src, sizeof src, 8, z, sizeof src - PGS_PAGE_SIZE, &z_bytes, &xxh, &err), 1);
    CHECK_EQ(err.code, 0);
    fill(src, sizeof src, 8);
    CHECK_OK(pgs__cold_compress(src, sizeof src, 8, z, sizeof src, &z_bytes, &xxh, &err));
    CHECK_OK(pgs__cold_decompress(z, z_bytes, out, sizeof out, 8, xxh, &err));
}

/* Each byte flipped, and the block cut short or grown: an error or, never, other bytes. */
TEST(damage_of_every_byte_is_found)
{
    size_t n = 4 * PGS_PAGE_SIZE, z_bytes;
    uint64_t xxh;
    fill(src, n, 8);
    CHECK_OK(pgs__cold_compress(src, n, 8, z, n, &z_bytes, &xxh, &err));
    for (size_t i = 0; i < z_bytes; i++)
        for (int bit = 0; bit < 8; bit += 7) {
            z[i] ^= (uint8_t)(1 << bit);
            struct pgs_error e = {0};
            int rc = pgs__cold_decompress(z, z_bytes, out, n, 8, xxh, &e);
            if (rc == 0)
                CHECK(memcmp(out, src, n) == 0); /* a bit that zstd does not look at */
            else
                CHECK_EQ(rc, -PGS_ECORRUPT);
            z[i] ^= (uint8_t)(1 << bit);
        }
    for (size_t len = 0; len < z_bytes; len += 13)
        CHECK_ERR(pgs__cold_decompress(z, len, out, n, 8, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes + 1, out, n, 8, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, n - 1, 8, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, n + 1, 8, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, n, 4, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, n, 8, xxh + 1, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, PGS__COLD_BYTES + 1, 8, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, 0, 8, xxh, NULL), PGS_ECORRUPT);
    CHECK_ERR(pgs__cold_decompress(z, z_bytes, out, n, 256, xxh, NULL), PGS_ECORRUPT);
    CHECK_OK(pgs__cold_decompress(z, z_bytes, out, n, 8, xxh, &err));
}

TEST(random_bytes_are_damage_and_nothing_worse)
{
    for (int i = 0; i < 20000; i++) {
        size_t n = 1 + rnd() % 600;
        for (size_t k = 0; k < n; k++) z[k] = (uint8_t)rnd();
        if (i % 2) memcpy(z, "\x28\xb5\x2f\xfd", n < 4 ? n : 4); /* a frame's beginning */
        int rc =
            pgs__cold_decompress(z, n, out, (1 + rnd() % 32) * PGS_PAGE_SIZE, (uint32_t)(rnd() % 300), rnd(), NULL);
        CHECK_EQ(rc, -PGS_ECORRUPT);
    }
}

static void *compress_a_few(void *arg)
{
    struct pgs_error e = {0};
    uint8_t *buf = malloc(2 * PGS__COLD_BYTES), *back = malloc(PGS__COLD_BYTES);
    (void)arg;
    for (int i = 0; i < 3; i++) {
        size_t n;
        uint64_t xxh;
        if (pgs__cold_compress(src, sizeof src, 8, buf, 2 * PGS__COLD_BYTES, &n, &xxh, &e) ||
            pgs__cold_decompress(buf, n, back, sizeof src, 8, xxh, &e) || memcmp(src, back, sizeof src))
            TEST_FAIL("thread: %s", e.text);
    }
    free(buf);
    free(back);
    return NULL;
}

static size_t heap_kb(void)
{
    size_t size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%zu %zu", &size, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return resident * 4;
}

TEST(threads_that_end_leave_nothing_behind)
{
    pthread_t t;
    size_t before = 0;
    fill(src, sizeof src, 8);
    for (int i = 0; i < 220; i++) {
        if (i == 20) before = heap_kb();
        CHECK_EQ(pthread_create(&t, NULL, compress_a_few, NULL), 0);
        pthread_join(t, NULL);
    }
    size_t grown = heap_kb() > before ? heap_kb() - before : 0;
#ifndef __SANITIZE_ADDRESS__  /* which keeps what was freed; and looks for leaks itself */
    CHECK(grown < 20u << 10); /* 200 contexts would be 80 MB */
#endif
    (void)grown;
}

TEST(without_memory_it_is_an_error_and_later_it_works)
{
    size_t n;
    uint64_t xxh = 0;
    fill(src, sizeof src, 8);
    for (uint64_t nth = 1; nth <= 3; nth++) { /* what a thread keeps: tools, a context to compress, one to decompress */
        pgs__inject_fail(PGS__FAIL_MEM, 1, 12, false);
        if (nth < 3)
            CHECK_ERR(pgs__cold_compress(src, sizeof src, 8, z, sizeof z, &n, &xxh, NULL), PGS_ENOMEM);
        else
            CHECK_ERR(pgs__cold_decompress(z, n, out, sizeof out, 8, xxh, NULL), PGS_ENOMEM);
        pgs__inject_clear();
        if (nth == 1) continue;
        CHECK_OK(pgs__cold_compress(src, sizeof src, 8, z, sizeof z, &n, &xxh, &err));
    }
    CHECK_OK(pgs__cold_decompress(z, n, out, sizeof out, 8, xxh, &err));
}

/* --- the parallel for ------------------------------------------------------------------------------------------------------------------- */
struct count {
    _Atomic uint64_t seen[1000];
    _Atomic uint64_t n;
    uint64_t bad;
};
static int count_one(void *ctx, uint64_t i, struct pgs_error *e)
{
    struct count *c = ctx;
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    atomic_fetch_add(&c->seen[i], 1);
    atomic_fetch_add(&c->n, 1);
    if (i != c->bad) return 0;
    e->code = PGS_EIO;
    snprintf(e->text, sizeof e->text, "number %llu", (unsigned long long)i);
    return -PGS_EIO;
}

TEST(the_parallel_for_does_each_once_and_stops_at_an_error)
{
    static struct count c;
    CHECK(pgs__parallel_width() >= 1);
    c.bad = UINT64_MAX;
    CHECK_OK(pgs__parallel(1000, count_one, &c, &err));
    for (int i = 0; i < 1000; i++) CHECK_EQ(atomic_load(&c.seen[i]), 1);
    CHECK_OK(pgs__parallel(0, count_one, &c, &err));
    CHECK_EQ(atomic_load(&c.n), 1000);
    c.bad = 10;
    CHECK_ERR(pgs__parallel(1000, count_one, &c, &err), PGS_EIO);
    CHECK(strcmp(err.text, "number 10") == 0);
    CHECK(atomic_load(&c.n) < 2000);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
