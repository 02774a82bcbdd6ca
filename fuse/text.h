/* Pagestone | fuse/text — a growing piece of text.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Calls after a failure do nothing: whoever builds a text asks once, at the end, whether `failed` is set (out of memory).
 */
#ifndef PAGESTONE_FUSE_TEXT_H
#define PAGESTONE_FUSE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text { /* all zero: empty */
    char *p;  /* not NUL-terminated */
    size_t len, cap;
    bool failed;
};

void text_put(struct text *t, const void *p, size_t len);
void text_str(struct text *t, const char *s);
void text_fill(struct text *t, char c, size_t n);
void text_format(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* As a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD. */
void text_json(struct text *t, const char *s, size_t len);
/* As Python's repr() of a str that these UTF-8 bytes are. */
void text_python(struct text *t, const char *s, size_t len);
void text_free(struct text *t);
/* One code point of (p, len): how many bytes it has; *cp is UINT32_MAX (and 1 is returned) where there is none. Surrogates pass. len > 0. */
size_t text_utf8(const char *p, size_t len, uint32_t *cp);

#endif
