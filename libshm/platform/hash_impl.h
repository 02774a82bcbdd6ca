/* Pagestone | platform/hash_impl — XXH3 compiled for one width of vectors; included once by each of hash*.c.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The including file has set XXH_VECTOR and the target pragma, and defines PGS__HASH_NAME(x). Results do not depend on the width.
 */
#define XXH_INLINE_ALL
#define XXH_NO_LONG_LONG_WARNINGS
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wundef"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wunused-function"
#include "third_party/xxhash/xxhash.h"
#pragma GCC diagnostic pop
