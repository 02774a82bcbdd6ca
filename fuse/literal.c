/* Pagestone | fuse/literal — Python literals, as NPY headers and dtype descriptions are written in.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "fuse/literal.h"

#include <stdlib.h>
#include <string.h>

struct in {
    const char *p, *end;
    bool latin1;
    struct literal *out;
};

static void space(struct in *in)
{
    while (in->p < in->end && (*in->p == ' ' || *in->p == '\n' || *in->p == '\t' || *in->p == '\r')) in->p++;
}

static bool take(struct in *in, char c)
{
    space(in);
    if (in->p == in->end || *in->p != c) return false;
    in->p++;
    return true;
}

static uint32_t add(struct in *in, enum literal_type type)
{
    struct literal *l = in->out;
    if (l->n == LITERAL_MAX) return LITERAL_NONE;
    if (l->n == l->cap) {
        uint32_t cap = l->cap ? 2 * l->cap : 32;
        struct literal_value *v = realloc(l->v, cap * sizeof *v);
        if (!v) return LITERAL_NONE;
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n] = (struct literal_value){.type = type, .first = LITERAL_NONE, .next = LITERAL_NONE};
    return l->n++;
}

static void put_code_point(struct text *t, uint32_t c)
{
    unsigned char b[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (n == 1) b[0] = (unsigned char)c;
    for (size_t i = n; n > 1 && i-- > 0; c >>= 6)
        b[i] = (unsigned char)(i ? 0x80 | (c & 0x3f) : ((0xf00u >> n) & 0xff) | c);
    text_put(t, b, n);
}

static bool digits(struct in *in, int base, size_t least, size_t most, uint32_t *out)
{
    uint32_t c = 0;
    size_t n = 0;
    for (; n < most && in->p < in->end; n++, in->p++) {
        char d = *in->p;
        int x = d >= '0' && d <= '9'                 ? d - '0'
                : base == 16 && d >= 'a' && d <= 'f' ? d - 'a' + 10
                : base == 16 && d >= 'A' && d <= 'F' ? d - 'A' + 10
                                                     : 99;
        if (x >= base) break;
        c = c * (uint32_t)base + (uint32_t)x;
    }
    *out = c;
    return n >= least;
}

static bool escape(struct in *in)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    struct text *t = &in->out->strings;
    if (in->p == in->end) return false;
    char c = *in->p;
    const char *known = c ? strchr(from, c) : NULL;
    uint32_t cp;
    if (c >= '0' && c <= '7') {
        digits(in, 8, 1, 3, &cp);
    } else if (known) {
        in->p++;
        cp = (uint32_t)(unsigned char)to[known - from];
    } else {
        size_t n = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        in->p++;
        if (n == 0 || !digits(in, 16, n, n, &cp) || cp > 0x10ffff) return false;
    }
    put_code_point(t, cp);
    return true;
}

static bool string(struct in *in, uint32_t v)
{
    struct text *t = &in->out->strings;
    char quote = *in->p++;
    size_t at = t->len;
    while (in->p < in->end && *in->p != quote) {
        unsigned char c = (unsigned char)*in->p;
        uint32_t cp = c;
        if (c == '\n' || c == '\r' || c == 0) return false;
        if (c == '\\') {
            in->p++;
            if (!escape(in)) return false;
            continue;
        }
        size_t n = in->latin1 ? 1 : text_utf8(in->p, (size_t)(in->end - in->p), &cp);
        if (cp == UINT32_MAX) return false;
        put_code_point(t, cp);
        in->p += n;
    }
    if (in->p == in->end) return false;
    in->p++;
    in->out->v[v].at = at;
    in->out->v[v].len = t->len - at;
    return true;
}

static bool integer(struct in *in, uint32_t v)
{
    bool minus = *in->p == '-';
    int64_t x = 0;
    if (minus) in->p++;
    const char *start = in->p;
    for (; in->p < in->end && *in->p >= '0' && *in->p <= '9'; in->p++)
        if (__builtin_mul_overflow(x, (int64_t)10, &x) || __builtin_add_overflow(x, (int64_t)(*in->p - '0'), &x))
            return false;
    if (in->p == start) return false;
    if (in->p < in->end && *in->p == 'L') in->p++; /* Python 2 wrote these */
    in->out->v[v].i = minus ? -x : x;
    return true;
}

static bool word(struct in *in, const char *w)
{
    size_t n = strlen(w);
    if ((size_t)(in->end - in->p) < n || memcmp(in->p, w, n)) return false;
    in->p += n;
    return in->p == in->end || !((*in->p >= 'a' && *in->p <= 'z') || (*in->p >= 'A' && *in->p <= 'Z') ||
                                 (*in->p >= '0' && *in->p <= '9') || *in->p == '_');
}

static bool value(struct in *in, int depth, uint32_t *out);

/* Items up to `close`; the opening bracket is read. A dict's entries are two items each. */
static bool items(struct in *in, uint32_t v, char close, int depth, bool *comma)
{
    uint32_t last = LITERAL_NONE, n = 0, item;
    *comma = false;
    while (!take(in, close)) {
        if (n && !*comma) return false;
        for (int half = 0; half < (close == '}' ? 2 : 1); half++) {
            if (half && !take(in, ':')) return false;
            if (!value(in, depth + 1, &item)) return false;
            *(last == LITERAL_NONE ? &in->out->v[v].first : &in->out->v[last].next) = item;
            last = item;
            n++;
        }
        *comma = take(in, ',');
    }
    in->out->v[v].n = n;
    return true;
}

static bool value(struct in *in, int depth, uint32_t *out)
{
    bool comma;
    space(in);
    if (depth > LITERAL_DEPTH || in->p == in->end) return false;
    char c = *in->p;
    if (c == 'u' && in->end - in->p > 1 && (in->p[1] == '\'' || in->p[1] == '"')) c = *++in->p; /* Python 2, too */
    uint32_t v = *out = add(in, LIT_NONE);
    if (v == LITERAL_NONE) return false;
    if (c == '\'' || c == '"') {
        in->out->v[v].type = LIT_STR;
        return string(in, v);
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        in->out->v[v].type = LIT_INT;
        return integer(in, v);
    }
    if (c == '(' || c == '[' || c == '{') {
        in->p++;
        in->out->v[v].type = c == '(' ? LIT_TUPLE : c == '[' ? LIT_LIST : LIT_DICT;
        if (!items(in, v, c == '(' ? ')' : c == '[' ? ']' : '}', depth, &comma)) return false;
        if (c == '(' && in->out->v[v].n == 1 && !comma) { /* only a pair of brackets around a value */
            struct literal_value inner = in->out->v[in->out->v[v].first];
            in->out->v[v] = inner;
        }
        return true;
    }
    if (word(in, "None")) return true;
    in->out->v[v].type = LIT_BOOL;
    if (c == 'T') {
        in->out->v[v].i = 1;
        return word(in, "True");
    }
    return word(in, "False");
}

bool literal_parse(const char *p, size_t len, bool latin1, struct literal *out)
{
    *out = (struct literal){0};
    struct in in = {.p = p, .end = p + len, .latin1 = latin1, .out = out};
    uint32_t v;
    bool ok = value(&in, 0, &v);
    space(&in);
    if (ok && in.p == in.end && !out->strings.failed) return true;
    literal_free(out);
    return false;
}

void literal_free(struct literal *l)
{
    free(l->v);
    text_free(&l->strings);
    *l = (struct literal){0};
}

bool literal_is(const struct literal *l, uint32_t v, const char *s)
{
    return l->v[v].type == LIT_STR && l->v[v].len == strlen(s) && !memcmp(l->strings.p + l->v[v].at, s, l->v[v].len);
}

uint32_t literal_item(const struct literal *l, uint32_t dict, const char *name)
{
    if (l->v[dict].type != LIT_DICT) return LITERAL_NONE;
    for (uint32_t k = l->v[dict].first; k != LITERAL_NONE; k = l->v[l->v[k].next].next)
        if (literal_is(l, k, name)) return l->v[k].next;
    return LITERAL_NONE;
}
