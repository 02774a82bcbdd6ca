/* Pagestone | fuse/plain_pkl — plain values as pickle streams.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Protocol 4, without frames and memo. NumPy scalars are made by what NumPy's own pickles call, under the name that every NumPy has: numpy.core.multiarray.scalar(dtype, bytes). Where there
 * is no output the same code counts.
 */
#define _GNU_SOURCE
#include "fuse/literal.h"
#include "fuse/pkl.h"

#include <errno.h>
#include <string.h>

#define MAX_DEPTH 66 /* pymod/plain.c nests values 64 deep */

struct in {
    const char *p, *end;
    struct text *out; /* NULL: count */
    uint64_t size;
};

static void put(struct in *in, const void *p, size_t n)
{
    in->size += n;
    if (in->out) text_put(in->out, p, n);
}
static void put_op(struct in *in, int op)
{
    char c = (char)op;
    put(in, &c, 1);
}
static void put_le(struct in *in, uint64_t x, unsigned n)
{
    char b[8];
    for (unsigned i = 0; i < n; i++) b[i] = (char)(x >> 8 * i & 0xff);
    put(in, b, n);
}

/* Short and long form of an opcode with a counted argument. */
static void put_counted(struct in *in, int op1, int op4, const void *p, size_t n)
{
    put_op(in, n < 256 ? op1 : op4);
    put_le(in, n, n < 256 ? 1 : 4);
    put(in, p, n);
}
static void put_str(struct in *in, const char *p, size_t n)
{
    put_counted(in, 0x8c, 'X', p, n);
}
static void put_global(struct in *in, const char *module, const char *name)
{
    put_str(in, module, strlen(module));
    put_str(in, name, strlen(name));
    put_op(in, 0x93); /* STACK_GLOBAL */
}
static void put_int(struct in *in, int64_t x)
{
    if (x >= 0 && x < 256) {
        put_op(in, 'K');
        put_le(in, (uint64_t)x, 1);
    } else if (x >= 0 && x < 65536) {
        put_op(in, 'M');
        put_le(in, (uint64_t)x, 2);
    } else if (x >= INT32_MIN && x <= INT32_MAX) {
        put_op(in, 'J');
        put_le(in, (uint64_t)x, 4);
    } else {
        put_op(in, 0x8a); /* LONG1 */
        put_le(in, 8, 1);
        put_le(in, (uint64_t)x, 8);
    }
}
static void put_float(struct in *in, const char *le)
{
    char b[8];
    for (int i = 0; i < 8; i++) b[i] = le[7 - i];
    put_op(in, 'G');
    put(in, b, 8);
}

static const char *take(struct in *in, size_t n)
{
    if ((size_t)(in->end - in->p) < n) return NULL;
    const char *p = in->p;
    in->p += n;
    return p;
}
static const char *take_counted(struct in *in, uint32_t *n)
{
    const char *p = take(in, 4);
    if (!p) return NULL;
    memcpy(n, p, 4);
    return take(in, *n);
}

/* --- dtypes ------------------------------------------------------------------------------------------------------------------- */

static void put_literal(struct in *in, const struct literal *l, uint32_t v)
{
    const struct literal_value *x = &l->v[v];
    switch (x->type) {
    case LIT_NONE:
        put_op(in, 'N');
        return;
    case LIT_BOOL:
        put_op(in, x->i ? 0x88 : 0x89);
        return;
    case LIT_INT:
        put_int(in, x->i);
        return;
    case LIT_STR:
        put_str(in, x->len ? l->strings.p + x->at : "", x->len);
        return;
    default:
        break;
    }
    if (x->type != LIT_TUPLE) put_op(in, x->type == LIT_DICT ? '}' : ']');
    put_op(in, '(');
    for (uint32_t k = x->first; k != LITERAL_NONE; k = l->v[k].next) put_literal(in, l, k);
    put_op(in, x->type == LIT_TUPLE ? 't' : x->type == LIT_DICT ? 'u' : 'e');
}

/* numpy.dtype(description) */
static bool put_dtype(struct in *in, const char *p, size_t n)
{
    static const char foreign[] = "!ml_dtypes:";
    size_t prefix = sizeof foreign - 1;
    put_global(in, "numpy", "dtype");
    if (n && (*p == '{' || *p == '(')) {
        struct literal l;
        if (!literal_parse(p, n, false, &l)) return false;
        put_literal(in, &l, 0);
        literal_free(&l);
    } else if (n > prefix && !memcmp(p, foreign, prefix)) {
        put_str(in, "ml_dtypes", 9);
        put_str(in, p + prefix, n - prefix);
        put_op(in, 0x93);
    } else if (n && *p != '!')
        put_str(in, p, n);
    else
        return false;
    put_op(in, 0x85); /* TUPLE1 */
    put_op(in, 'R');
    return true;
}

static bool scalar(struct in *in)
{
    uint16_t dl;
    uint32_t n;
    const char *p = take(in, 2);
    if (!p) return false;
    memcpy(&dl, p, 2);
    const char *desc = take(in, dl), *data = desc ? take_counted(in, &n) : NULL;
    if (!data) return false;
    put_global(in, "numpy.core.multiarray", "scalar");
    if (!put_dtype(in, desc, dl)) return false;
    put_counted(in, 'C', 'B', data, n);
    put_op(in, 0x86); /* TUPLE2 */
    put_op(in, 'R');
    return true;
}

/* numpy.str_('…'), numpy.bytes_(b'…'): NumPy's own pickles of these lose NULs at the end. */
static bool text_scalar(struct in *in, char tag)
{
    uint32_t n;
    const char *p = take_counted(in, &n);
    if (!p) return false;
    put_global(in, "numpy", tag == 'S' ? "str_" : "bytes_");
    if (tag == 'S')
        put_str(in, p, n);
    else
        put_counted(in, 'C', 'B', p, n);
    put_op(in, 0x85);
    put_op(in, 'R');
    return true;
}

/* --- values ------------------------------------------------------------------------------------------------------------------- */

static bool value(struct in *in, int depth);

static bool items(struct in *in, bool dict, int depth)
{
    uint32_t n, len;
    const char *p = take(in, 4);
    if (!p) return false;
    memcpy(&n, p, 4);
    put_op(in, dict ? '}' : ']');
    if (n == 0) return true;
    put_op(in, '(');
    for (uint32_t i = 0; i < n; i++) {
        if (dict) {
            if (!(p = take_counted(in, &len))) return false;
            put_str(in, p, len);
        }
        if (!value(in, depth + 1)) return false;
    }
    put_op(in, dict ? 'u' : 'e');
    return true;
}

static bool number(struct in *in, char tag)
{
    int64_t x;
    uint32_t n;
    const char *p = tag == 'I' ? take_counted(in, &n) : take(in, tag == 'c' ? 16 : 8);
    if (!p) return false;
    if (tag == 'i') {
        memcpy(&x, p, 8);
        put_int(in, x);
    } else if (tag == 'd')
        put_float(in, p);
    else if (tag == 'c') {
        put_global(in, "builtins", "complex");
        put_float(in, p);
        put_float(in, p + 8);
        put_op(in, 0x86);
        put_op(in, 'R');
    } else if (n <= INT32_MAX)
        put_counted(in, 0x8a, 0x8b, p, n);
    else
        return false;
    return true;
}

static bool value(struct in *in, int depth)
{
    uint32_t n;
    const char *p = take(in, 1);
    if (!p || depth > MAX_DEPTH) return false;
    switch (*p) {
    case 'N':
        put_op(in, 'N');
        return true;
    case 'T':
    case 'F':
        put_op(in, *p == 'T' ? 0x88 : 0x89);
        return true;
    case 'i':
    case 'I':
    case 'd':
    case 'c':
        return number(in, *p);
    case 's':
        if ((p = take_counted(in, &n))) put_str(in, p, n);
        return p != NULL;
    case 'y':
        if ((p = take_counted(in, &n))) put_counted(in, 'C', 'B', p, n);
        return p != NULL;
    case 'l':
    case 'm':
        return items(in, *p == 'm', depth);
    case 'S':
    case 'Y':
        return text_scalar(in, *p);
    case 'n':
        return scalar(in);
    default:
        return false;
    }
}

int plain_pickle(const void *content, uint64_t n, struct text *out, uint64_t *size)
{
    struct in in = {.p = content, .end = (const char *)content + n, .out = out};
    put_op(&in, 0x80); /* PROTO */
    put_le(&in, 4, 1);
    if (!value(&in, 0) || in.p != in.end) return -EIO;
    put_op(&in, '.');
    *size = in.size;
    return out && out->failed ? -ENOMEM : 0;
}
