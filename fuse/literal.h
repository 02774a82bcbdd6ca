/* Pagestone | fuse/literal — Python literals, as NPY headers and dtype descriptions are written in.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Dicts, lists, tuples, strings, integers, True, False, None; nothing is evaluated. The text is input from anybody: nesting is limited to LITERAL_DEPTH, the number of values
 * to LITERAL_MAX, integers to 63 bits, and reading takes time linear in the text.
 */
#ifndef PAGESTONE_FUSE_LITERAL_H
#define PAGESTONE_FUSE_LITERAL_H

#include "fuse/text.h"

#define LITERAL_DEPTH 32
#define LITERAL_MAX 100000u
#define LITERAL_NONE UINT32_MAX /* no value */

enum literal_type { LIT_NONE, LIT_BOOL, LIT_INT, LIT_STR, LIT_TUPLE, LIT_LIST, LIT_DICT };

struct literal_value {
    enum literal_type type;
    uint32_t n;     /* items; a dict has two for each entry */
    uint32_t first; /* item, or LITERAL_NONE */
    uint32_t next;  /* in the container, or LITERAL_NONE */
    int64_t i;      /* LIT_INT, LIT_BOOL */
    size_t at, len; /* LIT_STR: UTF-8 in `strings` */
};
struct literal { /* value 0 is the whole */
    struct literal_value *v;
    uint32_t n, cap;
    struct text strings;
};

/* latin1: bytes above 127 are characters of that set, else UTF-8. False: malformed, or out of memory; *out is empty then. */
bool literal_parse(const char *p, size_t len, bool latin1, struct literal *out);
void literal_free(struct literal *l);
/* The value of a dict's entry, or LITERAL_NONE. */
uint32_t literal_item(const struct literal *l, uint32_t dict, const char *name);
bool literal_is(const struct literal *l, uint32_t v, const char *s); /* a string equal to s */

#endif
