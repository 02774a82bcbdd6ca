/* Pagestone | platform/mem — the library's memory, behind one door so that tests can make it fail.
 * SPDX-License-Identifier: Apache-2.0
 *
 * malloc, realloc, calloc and free with the failure injector of platform/inject.h in front. A fork hook must
 * not call any of these (HAZARDS 36): hooks of other libraries' allocators run around ours.
 */
#ifndef PGS_PLATFORM_MEM_H
#define PGS_PLATFORM_MEM_H

#include "libshm/platform/base.h"

void *pgs__malloc(size_t n_bytes); /* NULL on failure; n_bytes > 0 */
void *pgs__calloc(size_t n, size_t size);
void *pgs__realloc(void *p, size_t n_bytes); /* p stays valid on failure */
void pgs__free(void *p);                     /* accepts NULL */

/* Grow *array (elements of `size` bytes, capacity *cap) so that at least `need` fit; doubling. 0 or -PGS_ENOMEM. */
int pgs__grow(void *array, size_t *cap, size_t need, size_t size);

#endif
