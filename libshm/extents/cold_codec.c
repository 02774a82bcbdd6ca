/* Pagestone | extents/cold_codec — a block of bytes, compressed and back: shuffle, zstd, XXH3.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The checksum is of the decompressed bytes: one check covers damage of the file and mistakes of both directions.
 *
 * zstd's contexts cost more to make than a block to compress, so each thread keeps its own, with a buffer for shuffled bytes, until it ends. A forked child inherits what the forking thread had, as its own memory.
 */
#define ZSTD_STATIC_LINKING_ONLY /* for its memory to come from platform/mem.h */
#include <pthread.h>

#include "libshm/extents/cold.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/mem.h"
#include "third_party/zstd/zstd.h"

#define LEVEL 1
/* Bytes k of all elements come in planes, of which some are noise and others nearly all the same. zstd counts and codes the bytes of one of its blocks together, 128 KiB if nobody says otherwise: then the noise is coded in vain, and the rest by
 * what noise makes of its counts. Halves are faster, 1.2 times for a random walk of doubles, and smaller; smaller pieces are smaller still, but slower. The format is zstd's own in any case. */
#define SHUFFLED_BLOCK (64 << 10)

/* --- what a thread keeps ------------------------------------------------------------------------------------------------------- */
struct tools {
    ZSTD_CCtx *c;
    ZSTD_DCtx *d;
    _Alignas(64) uint8_t shuffled[PGS__COLD_BYTES], packed[PGS__COLD_BYTES];
};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool have_key;
static __thread struct tools *mine; /* the same as under the key, which only ends it */

static void tools_free(void *p)
{
    struct tools *t = p;
    mine = NULL;
    if (!t) return;
    ZSTD_freeCCtx(t->c);
    ZSTD_freeDCtx(t->d);
    pgs__free(t);
}

static void make_key(void)
{
    have_key = pthread_key_create(&key, tools_free) == 0;
}

static void *from_mem(void *opaque, size_t n)
{
    (void)opaque;
    return pgs__malloc(n);
}
static void to_mem(void *opaque, void *p)
{
    (void)opaque;
    pgs__free(p);
}
static const ZSTD_customMem our_memory = {from_mem, to_mem, NULL};

static struct tools *tools(struct pgs_error *err)
{
    if (mine) return mine;
    (void)pthread_once(&once, make_key);
    struct tools *t = have_key ? pgs__malloc(sizeof *t) : NULL;
    if (t) {
        t->c = NULL;
        t->d = NULL;
        if (pthread_setspecific(key, t) == 0) return mine = t;
    }
    pgs__free(t);
    (void)pgs__fail(err, PGS_ENOMEM, "no memory for compressed data");
    return NULL;
}

static ZSTD_CCtx *compressor(struct tools *t, bool shuffled)
{
    if (!t->c) t->c = ZSTD_createCCtx_advanced(our_memory);
    if (!t->c || ZSTD_isError(ZSTD_CCtx_reset(t->c, ZSTD_reset_session_only)) || /* the last may have failed midway */
        ZSTD_isError(ZSTD_CCtx_setParameter(t->c, ZSTD_c_compressionLevel, LEVEL)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(t->c, ZSTD_c_maxBlockSize, shuffled ? SHUFFLED_BLOCK : 0)))
        return NULL;
    return t->c;
}

/* --- blocks -------------------------------------------------------------------------------------------------------------------------- */
static bool is_shuffled(uint32_t itemsize)
{
    return itemsize >= 2 && itemsize <= 255;
}

int pgs__cold_compress(const void *src, size_t n_bytes, uint32_t itemsize, void *dst, size_t cap, size_t *z_bytes,
                       uint64_t *xxh, struct pgs_error *err)
{
    struct tools *t = tools(err);
    if (!t) return -PGS_ENOMEM;
    if (n_bytes == 0 || n_bytes > PGS__COLD_BYTES)
        return pgs__fail(err, PGS_EBUG, "a block of %zu bytes cannot be compressed", n_bytes);
    if (!compressor(t, is_shuffled(itemsize))) return pgs__fail(err, PGS_ENOMEM, "no memory for compressed data");
    const void *from = src;
    if (!dst) {
        dst = t->packed;
        cap = pgs__min_u64(cap, sizeof t->packed);
    }
    if (is_shuffled(itemsize)) {
        pgs__cold_shuffle(t->shuffled, src, n_bytes, itemsize);
        from = t->shuffled;
    }
    size_t n = ZSTD_compress2(t->c, dst, cap, from, n_bytes);
    if (ZSTD_isError(n)) {
        if (ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall) return 1;
        ZSTD_freeCCtx(t->c); /* what it was doing is not to be relied on */
        t->c = NULL;
        return pgs__fail(err, ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? PGS_ENOMEM : PGS_EBUG,
                         "cannot compress: %s", ZSTD_getErrorName(n));
    }
    *z_bytes = n;
    *xxh = pgs__hash(src, n_bytes);
    return 0;
}

const void *pgs__cold_packed(void)
{
    return mine ? mine->packed : NULL;
}

int pgs__cold_decompress(const void *src, size_t z_bytes, void *dst, size_t n_bytes, uint32_t itemsize, uint64_t xxh,
                         struct pgs_error *err)
{
    struct tools *t = tools(err);
    if (!t) return -PGS_ENOMEM;
    if (n_bytes == 0 || n_bytes > PGS__COLD_BYTES || itemsize > 255)
        return pgs__fail_corrupt(err, "", "%zu bytes of items of %u bytes are no block", n_bytes, itemsize);
    if (!t->d) t->d = ZSTD_createDCtx_advanced(our_memory);
    if (!t->d) return pgs__fail(err, PGS_ENOMEM, "no memory for compressed data");
    size_t n = ZSTD_decompressDCtx(t->d, is_shuffled(itemsize) ? t->shuffled : dst, n_bytes, src, z_bytes);
    if (ZSTD_isError(n)) {
        if (ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation)
            return pgs__fail(err, PGS_ENOMEM, "no memory for compressed data");
        return pgs__fail_corrupt(err, "", "cannot be decompressed (%s)", ZSTD_getErrorName(n));
    }
    if (n != n_bytes) return pgs__fail_corrupt(err, "", "%zu bytes came out of it, not %zu", n, n_bytes);
    if (is_shuffled(itemsize)) pgs__cold_unshuffle(dst, t->shuffled, n_bytes, itemsize);
    if (pgs__hash(dst, n_bytes) != xxh) return pgs__fail_corrupt(err, "", "its bytes do not match their checksum");
    return 0;
}
