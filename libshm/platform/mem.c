/* Pagestone | platform/mem — malloc and friends behind the failure injector.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/platform/mem.h"

#include <stdlib.h>

#include "libshm/include/pagestone.h"
#include "libshm/platform/inject.h"

void *pgs__malloc(size_t n_bytes)
{
    pgs_assert(n_bytes > 0);
    if (PGS_INJECT(PGS__FAIL_MEM)) return NULL;
    return malloc(n_bytes);
}

void *pgs__calloc(size_t n, size_t size)
{
    pgs_assert(n > 0 && size > 0);
    if (PGS_INJECT(PGS__FAIL_MEM)) return NULL;
    return calloc(n, size);
}

void *pgs__realloc(void *p, size_t n_bytes)
{
    pgs_assert(n_bytes > 0); /* realloc(p, 0) frees on some systems */
    if (PGS_INJECT(PGS__FAIL_MEM)) return NULL;
    return realloc(p, n_bytes);
}

void pgs__free(void *p)
{
    free(p);
}

int pgs__grow(void *array, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap) return 0;
    size_t n = *cap > SIZE_MAX / 2 ? need : *cap * 2, n_bytes;
    if (n < 8) n = 8;
    if (n < need) n = need;
    if (__builtin_mul_overflow(n, size, &n_bytes)) return -PGS_ENOMEM;

    void *old; /* `array` is the address of a T *: copied as bytes, for T may be anything */
    memcpy(&old, array, sizeof old);
    void *p = pgs__realloc(old, n_bytes);
    if (!p) return -PGS_ENOMEM;
    memcpy(array, &p, sizeof p);
    *cap = n;
    return 0;
}
