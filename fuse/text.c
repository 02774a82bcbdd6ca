/* Pagestone | fuse/text — a growing piece of text.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "fuse/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *room(struct text *t, size_t n)
{
    if (t->failed) return NULL;
    if (t->cap - t->len < n) {
        size_t cap = t->cap ? t->cap : 128;
        while (cap - t->len < n && cap < SIZE_MAX / 2) cap *= 2;
        char *p = cap - t->len < n ? NULL : realloc(t->p, cap);
        if (!p) {
            t->failed = true;
            return NULL;
        }
        t->p = p;
        t->cap = cap;
    }
    t->len += n;
    return t->p + t->len - n;
}

void text_put(struct text *t, const void *p, size_t len)
{
    char *to = len ? room(t, len) : NULL;
    if (to) memcpy(to, p, len);
}

void text_str(struct text *t, const char *s)
{
    text_put(t, s, strlen(s));
}

void text_fill(struct text *t, char c, size_t n)
{
    char *to = n ? room(t, n) : NULL;
    if (to) memset(to, c, n);
}

void text_format(struct text *t, const char *format, ...)
{
    char buf[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(buf, sizeof buf, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof buf)
        t->failed = true; /* callers print numbers and short words */
    else
        text_put(t, buf, (size_t)n);
}

size_t text_utf8(const char *s, size_t len, uint32_t *cp)
{
    const unsigned char *p = (const unsigned char *)s;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf8 ? 4 : 0;
    *cp = UINT32_MAX;
    if (n == 0 || n > len) return 1;
    uint32_t c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) return 1;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (n > 1 && (c < least[n] || c > 0x10ffff)) return 1;
    *cp = c;
    return n;
}

void text_json(struct text *t, const char *s, size_t len)
{
    text_str(t, "\"");
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t c;
        n = text_utf8(s + i, len - i, &c);
        if (c == UINT32_MAX || (c >= 0xd800 && c < 0xe000))
            text_str(t, "\\ufffd");
        else if (c == '"' || c == '\\')
            text_format(t, "\\%c", (char)c);
        else if (c < 0x20 || c == 0x7f)
            text_format(t, "\\u%04x", c);
        else
            text_put(t, s + i, n);
    }
    text_str(t, "\"");
}

/* Python escapes what it cannot print; of what lies above ASCII these are the blocks that names of fields have been seen with. */
static bool printable(uint32_t c)
{
    if (c < 0x7f) return c >= 0x20;
    if (c < 0xa1 || c == 0xad) return false;
    if (c >= 0x2000 && c <= 0x206f) return (c >= 0x2010 && c <= 0x2027) || (c >= 0x2030 && c <= 0x205e);
    if (c >= 0xd800 && c < 0xf900) return false; /* surrogates and private use */
    return c != 0x3000 && c != 0xfeff && c < 0xe0000;
}

void text_python(struct text *t, const char *s, size_t len)
{
    bool both = memchr(s, '\'', len) != NULL && memchr(s, '"', len) == NULL; /* then Python takes double quotes */
    char quote = both ? '"' : '\'';
    text_format(t, "%c", quote);
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t c;
        n = text_utf8(s + i, len - i, &c);
        if (c == (uint32_t)quote || c == '\\')
            text_format(t, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            text_str(t, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (c != UINT32_MAX && printable(c))
            text_put(t, s + i, n);
        else if (c < 0x100)
            text_format(t, "\\x%02x", c);
        else if (c == UINT32_MAX)
            text_format(t, "\\x%02x", (unsigned)(unsigned char)s[i]);
        else
            text_format(t, c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    }
    text_format(t, "%c", quote);
}

void text_free(struct text *t)
{
    free(t->p);
    *t = (struct text){0};
}
