/* Pagestone | extents/cold_shuffle — byte k of every element together, and back.
 * SPDX-License-Identifier: Apache-2.0
 *
 * For sizes 2, 4, 8 and 16 elements are taken sixteen at a time, in vectors of 16 bytes that every machine has. Other sizes go byte by byte.
 *
 * The place of a byte among 16 elements is a number of four bits for the element and log2(size) for the byte. Putting all even places before all odd ones moves the lowest bit of that number to the top; done log2(size) times, the byte comes
 * before the element, which is the transposition. Joining the halves again moves the top bit to the bottom: the way back.
 */
#include "libshm/extents/cold.h"

/* The vectors have to stay in registers: every loop over them disappears. clang does that by itself at -O2. */
#ifdef __clang__
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef uint8_t vec __attribute__((vector_size(16)));

static inline vec load(const uint8_t *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(uint8_t *p, vec v)
{
    memcpy(p, &v, sizeof v);
}
static inline vec even(vec a, vec b)
{
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
static inline vec odd(vec a, vec b)
{
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
static inline vec join_lo(vec a, vec b)
{
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline vec join_hi(vec a, vec b)
{
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* Sixteen elements of 1 << bits bytes at a time, as many as there are; returns how many. `bits` is a constant where this is inlined. */
static inline __attribute__((always_inline)) size_t split(uint8_t *dst, const uint8_t *src, size_t n, unsigned bits)
{
    size_t i = 0, size = (size_t)1 << bits;
    for (; i + 16 <= n; i += 16) {
        vec v[16], w[16];
        UNROLL
        for (size_t k = 0; k < size; k++) v[k] = load(src + i * size + 16 * k);
        UNROLL
        for (unsigned round = 0; round < bits; round++) {
            UNROLL
            for (size_t k = 0; k < size / 2; k++) {
                w[k] = even(v[2 * k], v[2 * k + 1]);
                w[size / 2 + k] = odd(v[2 * k], v[2 * k + 1]);
            }
            UNROLL
            for (size_t k = 0; k < size; k++) v[k] = w[k];
        }
        UNROLL
        for (size_t k = 0; k < size; k++) store(dst + k * n + i, v[k]);
    }
    return i;
}

static inline __attribute__((always_inline)) size_t merge(uint8_t *dst, const uint8_t *src, size_t n, unsigned bits)
{
    size_t i = 0, size = (size_t)1 << bits;
    for (; i + 16 <= n; i += 16) {
        vec v[16], w[16];
        UNROLL
        for (size_t k = 0; k < size; k++) v[k] = load(src + k * n + i);
        UNROLL
        for (unsigned round = 0; round < bits; round++) {
            UNROLL
            for (size_t k = 0; k < size / 2; k++) {
                w[2 * k] = join_lo(v[k], v[size / 2 + k]);
                w[2 * k + 1] = join_hi(v[k], v[size / 2 + k]);
            }
            UNROLL
            for (size_t k = 0; k < size; k++) v[k] = w[k];
        }
        UNROLL
        for (size_t k = 0; k < size; k++) store(dst + i * size + 16 * k, v[k]);
    }
    return i;
}

void pgs__cold_shuffle(void *dst, const void *src, size_t n_bytes, uint32_t itemsize)
{
    uint8_t *to = dst;
    const uint8_t *from = src;
    size_t n = n_bytes / itemsize, done = 0;
    switch (itemsize) {
    case 2:
        done = split(to, from, n, 1);
        break;
    case 4:
        done = split(to, from, n, 2);
        break;
    case 8:
        done = split(to, from, n, 3);
        break;
    case 16:
        done = split(to, from, n, 4);
        break;
    default:
        break;
    }
    for (size_t k = 0; k < itemsize; k++)
        for (size_t i = done; i < n; i++) to[k * n + i] = from[i * itemsize + k];
    memcpy(to + n * itemsize, from + n * itemsize, n_bytes - n * itemsize);
}

void pgs__cold_unshuffle(void *dst, const void *src, size_t n_bytes, uint32_t itemsize)
{
    uint8_t *to = dst;
    const uint8_t *from = src;
    size_t n = n_bytes / itemsize, done = 0;
    switch (itemsize) {
    case 2:
        done = merge(to, from, n, 1);
        break;
    case 4:
        done = merge(to, from, n, 2);
        break;
    case 8:
        done = merge(to, from, n, 3);
        break;
    case 16:
        done = merge(to, from, n, 4);
        break;
    default:
        break;
    }
    for (size_t k = 0; k < itemsize; k++)
        for (size_t i = done; i < n; i++) to[i * itemsize + k] = from[k * n + i];
    memcpy(to + n * itemsize, from + n * itemsize, n_bytes - n * itemsize);
}
