/* Pagestone | fuse/npy — headers of .npy files.
 * SPDX-License-Identifier: Apache-2.0
 *
 * NumPy's descr of a structured dtype is a list of fields in the order of their offsets, with nameless void fields for the gaps; the library's has explicit offsets. Both are
 * Python literals, so either direction is parse, walk, print. Walks are recursive, no deeper than LITERAL_DEPTH.
 */
#define _GNU_SOURCE
#include "fuse/npy.h"

#include "fuse/literal.h"

#include <errno.h>
#include <string.h>

#define SIZE_LIMIT ((uint64_t)1 << 46) /* the library's largest array */

/* --- one simple type ------------------------------------------------------------------------------------------------------- */

/* "[25s]" or nothing */
static bool datetime_unit(const char *p, size_t len)
{
    static const char *const units[] = {"Y",  "M",  "W",  "D",  "h",  "m",  "s",
                                        "ms", "us", "ns", "ps", "fs", "as", "generic"};
    if (len == 0) return true;
    if (len < 3 || p[0] != '[' || p[len - 1] != ']') return false;
    p++;
    len -= 2;
    for (size_t n = 0; len && *p >= '0' && *p <= '9'; p++, len--)
        if (++n > 9) return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strlen(units[i]) == len && !memcmp(units[i], p, len)) return true;
    return false;
}

static bool known_size(char kind, uint64_t n)
{
    switch (kind) {
    case 'b':
        return n == 1;
    case 'i':
    case 'u':
        return n == 1 || n == 2 || n == 4 || n == 8;
    case 'f':
        return n == 2 || n == 4 || n == 8 || n == 12 || n == 16;
    case 'c':
        return n == 8 || n == 16 || n == 24 || n == 32;
    case 'm':
    case 'M':
        return n == 8;
    default:
        return kind == 'S' || kind == 'U' || kind == 'V';
    }
}

/* "<f8": its item size; `out` gets the string in NumPy's own form. False: no such type (or objects). */
static bool simple(const char *p, size_t len, uint64_t *size, struct text *out)
{
    const char *end = p + len;
    char order = len && strchr("<>|=", *p) && *p ? *p++ : '=';
    if (p == end) return false;
    char kind = *p++ == 'a' ? 'S' : p[-1];
    uint64_t n = 0;
    const char *start = p;
    for (; p < end && *p >= '0' && *p <= '9' && n < UINT32_MAX; p++) n = n * 10 + (uint64_t)(*p - '0');
    if (p == start || n > INT32_MAX / 4 || !kind || !known_size(kind, n)) return false;
    bool time = kind == 'm' || kind == 'M';
    if (time ? !datetime_unit(p, (size_t)(end - p)) : p != end) return false;
    *size = kind == 'U' ? 4 * n : n;
    bool orderless = kind == 'S' || kind == 'V' || kind == 'b' || (n == 1 && kind != 'U');
    if (order == '=' || order == '|') order = '<'; /* the library runs on little-endian machines only */
    if (out) {
        text_format(out, "%c%c%llu", orderless ? '|' : order, kind, (unsigned long long)n);
        text_put(out, p, (size_t)(end - p));
    }
    return true;
}

static bool simple_value(const struct literal *l, uint32_t v, uint64_t *size, struct text *out)
{
    const struct literal_value *s = &l->v[v];
    return s->type == LIT_STR && s->len && simple(l->strings.p + s->at, s->len, size, out);
}

/* --- shapes ------------------------------------------------------------------------------------------------------------------ */

/* The product of a tuple of integers; a single integer stands for a tuple of one. */
static bool shape_of(const struct literal *l, uint32_t v, int64_t *shape, uint32_t *ndim, uint64_t *n)
{
    bool one = l->v[v].type == LIT_INT;
    if (!one && l->v[v].type != LIT_TUPLE) return false;
    if (!one && l->v[v].n > PGS_MAX_NDIM) return false;
    *n = 1;
    *ndim = 0;
    bool empty = false;
    for (uint32_t k = one ? v : l->v[v].first; k != LITERAL_NONE; k = one ? LITERAL_NONE : l->v[k].next) {
        int64_t x = l->v[k].i;
        if (l->v[k].type != LIT_INT || x < 0) return false;
        if (shape) shape[*ndim] = x;
        ++*ndim;
        if (x == 0)
            empty = true;
        else if (__builtin_mul_overflow(*n, (uint64_t)x, n) || *n > SIZE_LIMIT)
            return false;
    }
    if (empty) *n = 0;
    return true;
}

static void put_shape(struct text *out, const int64_t *shape, uint32_t ndim)
{
    text_str(out, "(");
    for (uint32_t i = 0; i < ndim; i++) text_format(out, i ? ", %lld" : "%lld", (long long)shape[i]);
    text_str(out, ndim == 1 ? ",)" : ")");
}

/* --- descr → the library's description --------------------------------------------------------------------------------------- */

static bool from_descr(const struct literal *l, uint32_t v, int depth, uint64_t *size, struct text *out);

static bool from_subarray(const struct literal *l, uint32_t base, uint32_t dims, int depth, uint64_t *size,
                          struct text *out)
{
    int64_t shape[PGS_MAX_NDIM];
    uint32_t ndim;
    uint64_t n, item;
    if (!shape_of(l, dims, shape, &ndim, &n)) return false;
    text_str(out, "(");
    if (!from_descr(l, base, depth + 1, &item, out)) return false;
    text_str(out, ", ");
    put_shape(out, shape, ndim);
    text_str(out, ")");
    return !__builtin_mul_overflow(item, n, size) && *size <= INT32_MAX;
}

struct field {
    uint32_t name, title, type, shape;
};

/* ('x', '<f8') or ('x', '<f8', (2, 3)); the name may be ('title', 'x'). */
static bool read_field(const struct literal *l, uint32_t v, struct field *f)
{
    if (l->v[v].type != LIT_TUPLE || l->v[v].n < 2 || l->v[v].n > 3) return false;
    f->name = l->v[v].first;
    f->type = l->v[f->name].next;
    f->shape = l->v[f->type].next;
    f->title = LITERAL_NONE;
    if (l->v[f->name].type == LIT_TUPLE) {
        if (l->v[f->name].n != 2) return false;
        f->title = l->v[f->name].first;
        f->name = l->v[f->title].next;
    }
    return l->v[f->name].type == LIT_STR && (f->title == LITERAL_NONE || l->v[f->title].type == LIT_STR);
}

static bool is_padding(const struct literal *l, const struct field *f)
{
    if (l->v[f->name].len || f->shape != LITERAL_NONE || l->v[f->type].type != LIT_STR) return false;
    const struct literal_value *t = &l->v[f->type];
    const char *p = t->len ? l->strings.p + t->at : "";
    return t->len >= 2 && (*p == 'V' || p[1] == 'V');
}

static bool has_name(const struct literal *l, uint32_t list, uint32_t before, const struct literal_value *name)
{
    struct field f;
    for (uint32_t k = l->v[list].first; k != before; k = l->v[k].next) {
        if (!read_field(l, k, &f) || is_padding(l, &f)) continue;
        const struct literal_value *s = &l->v[f.name];
        if (s->len == name->len && !memcmp(l->strings.p + s->at, l->strings.p + name->at, s->len)) return true;
    }
    return false;
}

/* [('a', '<i4'), ('', '|V4'), ('b', '<f8')] */
static bool from_fields(const struct literal *l, uint32_t v, int depth, uint64_t *size, struct text *out)
{
    struct text names = {0}, formats = {0}, offsets = {0}, titles = {0};
    struct field f;
    uint64_t at = 0, item;
    bool ok = l->v[v].n <= 4096, titled = false; /* finding equal names takes n² steps */
    uint32_t n = 0;
    for (uint32_t k = l->v[v].first; ok && k != LITERAL_NONE; k = l->v[k].next) {
        if (!(ok = read_field(l, k, &f))) break;
        bool pad = is_padding(l, &f);
        const struct literal_value *name = &l->v[f.name];
        struct text ignored = {0}, *to = pad ? &ignored : &formats;
        ok = pad || (name->len && !has_name(l, v, k, name));
        if (!pad && n) text_str(&formats, ", ");
        ok = ok && (f.shape == LITERAL_NONE ? from_descr(l, f.type, depth + 1, &item, to)
                                            : from_subarray(l, f.type, f.shape, depth, &item, to));
        text_free(&ignored);
        if (!ok) break;
        if (!pad) {
            const char *comma = n++ ? ", " : "";
            text_str(&names, comma);
            text_python(&names, l->strings.p + name->at, name->len);
            text_format(&offsets, "%s%llu", comma, (unsigned long long)at);
            text_str(&titles, comma);
            if (f.title == LITERAL_NONE)
                text_str(&titles, "None");
            else
                text_python(&titles, l->strings.p + l->v[f.title].at, l->v[f.title].len);
            titled |= f.title != LITERAL_NONE;
        }
        at += item;
        ok = at <= INT32_MAX;
    }
    text_str(out, "{'names': [");
    text_put(out, names.p, names.len);
    text_str(out, "], 'formats': [");
    text_put(out, formats.p, formats.len);
    text_str(out, "], 'offsets': [");
    text_put(out, offsets.p, offsets.len);
    text_format(out, "], 'itemsize': %llu", (unsigned long long)at);
    if (titled) {
        text_str(out, ", 'titles': [");
        text_put(out, titles.p, titles.len);
        text_str(out, "]");
    }
    text_str(out, "}");
    ok = ok && !names.failed && !formats.failed && !offsets.failed && !titles.failed;
    text_free(&names);
    text_free(&formats);
    text_free(&offsets);
    text_free(&titles);
    *size = at;
    return ok;
}

static bool from_descr(const struct literal *l, uint32_t v, int depth, uint64_t *size, struct text *out)
{
    if (depth > LITERAL_DEPTH) return false;
    switch (l->v[v].type) {
    case LIT_STR:
        if (depth) text_str(out, "'"); /* alone it is no literal: "<f8" */
        if (!simple_value(l, v, size, out)) return false;
        if (depth) text_str(out, "'");
        return true;
    case LIT_TUPLE:
        return l->v[v].n == 2 && from_subarray(l, l->v[v].first, l->v[l->v[v].first].next, depth, size, out);
    case LIT_LIST:
        return from_fields(l, v, depth, size, out);
    default:
        return false;
    }
}

/* --- the library's description → descr ---------------------------------------------------------------------------------------- */

/* `meaningless`: NPY cannot say it. */
static bool to_descr(const struct literal *l, uint32_t v, int depth, uint64_t *size, bool *meaningless,
                     struct text *out);

static void put_padding(struct text *out, bool first, uint64_t n)
{
    text_format(out, "%s('', '|V%llu')", first ? "" : ", ", (unsigned long long)n);
}

/* A field's type: ('<f8', (2, 3)) is written without brackets, as the second and third item of the field's tuple. */
static bool to_field_type(const struct literal *l, uint32_t v, int depth, uint64_t *size, bool *meaningless,
                          struct text *out)
{
    if (l->v[v].type != LIT_TUPLE) return to_descr(l, v, depth + 1, size, meaningless, out);
    int64_t shape[PGS_MAX_NDIM];
    uint32_t ndim, base = l->v[v].first;
    uint64_t n, item;
    if (l->v[v].n != 2 || !shape_of(l, l->v[base].next, shape, &ndim, &n)) return false;
    if (!to_descr(l, base, depth + 1, &item, meaningless, out)) return false;
    text_str(out, ", ");
    put_shape(out, shape, ndim);
    return !__builtin_mul_overflow(item, n, size) && *size <= INT32_MAX;
}

static bool to_fields(const struct literal *l, uint32_t v, int depth, uint64_t *size, bool *meaningless,
                      struct text *out)
{
    uint32_t names = literal_item(l, v, "names"), formats = literal_item(l, v, "formats");
    uint32_t offsets = literal_item(l, v, "offsets"), total = literal_item(l, v, "itemsize"),
             titles = literal_item(l, v, "titles");
    if (names == LITERAL_NONE || formats == LITERAL_NONE || offsets == LITERAL_NONE || total == LITERAL_NONE)
        return false;
    bool titled = titles != LITERAL_NONE && l->v[titles].type == LIT_LIST && l->v[titles].n == l->v[names].n;
    if (l->v[names].type != LIT_LIST || l->v[formats].type != LIT_LIST || l->v[offsets].type != LIT_LIST ||
        l->v[formats].n != l->v[names].n || l->v[offsets].n != l->v[names].n || l->v[total].type != LIT_INT ||
        l->v[total].i < 0)
        return false;
    uint64_t at = 0, end = (uint64_t)l->v[total].i, item;
    bool first = true;
    text_str(out, "[");
    uint32_t n = l->v[names].first, f = l->v[formats].first, o = l->v[offsets].first,
             t = titled ? l->v[titles].first : LITERAL_NONE;
    for (; n != LITERAL_NONE; n = l->v[n].next, f = l->v[f].next, o = l->v[o].next) {
        if (l->v[n].type != LIT_STR || l->v[o].type != LIT_INT || l->v[o].i < 0) return false;
        uint64_t off = (uint64_t)l->v[o].i;
        if (off < at) *meaningless = true; /* overlapping, or out of order */
        if (off > at) put_padding(out, first, off - at), first = false;
        text_str(out, first ? "(" : ", (");
        first = false;
        bool has_title = titled && l->v[t].type == LIT_STR;
        if (has_title) {
            text_str(out, "(");
            text_python(out, l->v[t].len ? l->strings.p + l->v[t].at : "", l->v[t].len);
            text_str(out, ", ");
        }
        text_python(out, l->v[n].len ? l->strings.p + l->v[n].at : "", l->v[n].len);
        text_str(out, has_title ? "), " : ", ");
        if (!to_field_type(l, f, depth, &item, meaningless, out)) return false;
        text_str(out, ")");
        at = off + item;
        if (titled) t = l->v[t].next;
    }
    if (at > end) *meaningless = true;
    if (at < end) put_padding(out, first, end - at);
    text_str(out, "]");
    *size = end;
    return true;
}

static bool to_descr(const struct literal *l, uint32_t v, int depth, uint64_t *size, bool *meaningless,
                     struct text *out)
{
    if (depth > LITERAL_DEPTH) return false;
    if (l->v[v].type == LIT_DICT) return to_fields(l, v, depth, size, meaningless, out);
    if (l->v[v].type == LIT_TUPLE) {
        text_str(out, "(");
        bool ok = to_field_type(l, v, depth, size, meaningless, out);
        text_str(out, ")");
        return ok;
    }
    struct text name = {0};
    bool ok = l->v[v].type == LIT_STR;
    *size = 0;
    if (ok && simple_value(l, v, size, &name))
        text_python(out, name.p, name.len);
    else
        *meaningless = true; /* "!ml_dtypes:bfloat16" */
    text_free(&name);
    return ok;
}

static bool put_descr(const struct pgs_type *type, struct text *out)
{
    struct literal l;
    struct text descr = {0}, name = {0};
    uint64_t size = 0;
    bool meaningless = false, ok = true;
    if (type->dtype_len && strchr("({", type->dtype[0])) {
        if (!literal_parse(type->dtype, type->dtype_len, false, &l)) return false;
        ok = to_descr(&l, 0, 0, &size, &meaningless, &descr);
        literal_free(&l);
    } else if (simple(type->dtype, type->dtype_len, &size, &name))
        text_python(&descr, name.p, name.len);
    else
        meaningless = true;
    if (ok && (meaningless || size != type->itemsize)) {
        descr.len = 0;
        text_format(&descr, "'|V%u'", type->itemsize);
    }
    ok = ok && !descr.failed && !name.failed;
    text_put(out, descr.p, descr.len);
    text_free(&descr);
    text_free(&name);
    return ok;
}

/* --- whole headers ------------------------------------------------------------------------------------------------------------- */

static bool is_ascii(const struct text *t)
{
    for (size_t i = 0; i < t->len; i++)
        if ((unsigned char)t->p[i] > 127) return false;
    return true;
}

bool npy_write(const struct pgs_type *type, struct text *out)
{
    struct text dict = {0};
    if (type->ndim > PGS_MAX_NDIM) return false;
    text_str(&dict, "{'descr': ");
    bool ok = put_descr(type, &dict);
    text_str(&dict, type->order == 'F' ? ", 'fortran_order': True, 'shape': " : ", 'fortran_order': False, 'shape': ");
    put_shape(&dict, type->shape, type->ndim);
    text_str(&dict, ", }");
    bool utf8 = !is_ascii(&dict); /* what latin-1 could say, version 3 says as well */
    unsigned version = utf8 ? 3 : dict.len + 64 > UINT16_MAX ? 2 : 1;
    size_t lead = version == 1 ? 10 : 12, align = lead + dict.len + 1 <= 2 * NPY_PAGE ? NPY_PAGE : 64;
    size_t total = (lead + dict.len + 1 + align - 1) / align * align, len = total - lead;
    char head[12] = {'\x93', 'N', 'U', 'M', 'P', 'Y', (char)version, 0};
    for (size_t i = 0; i < lead - 8; i++) head[8 + i] = (char)(len >> 8 * i & 0xff);
    ok = ok && !dict.failed;
    if (ok) {
        text_put(out, head, lead);
        text_put(out, dict.p, dict.len);
        text_fill(out, ' ', len - dict.len - 1);
        text_str(out, "\n");
    }
    text_free(&dict);
    return ok && !out->failed;
}

uint64_t npy_header_len(const void *bytes, size_t len)
{
    const unsigned char *p = bytes;
    if (len < 10 || memcmp(p, "\x93NUMPY", 6) || p[6] < 1 || p[6] > 3 || p[7] != 0) return 0;
    if (p[6] == 1) return 10 + (uint64_t)(p[8] | p[9] << 8);
    if (len < 12) return 0;
    return 12 + (p[8] | (uint64_t)p[9] << 8 | (uint64_t)p[10] << 16 | (uint64_t)p[11] << 24);
}

static bool read_dict(const struct literal *l, struct npy *out)
{
    uint32_t descr = literal_item(l, 0, "descr"), fortran = literal_item(l, 0, "fortran_order"),
             shape = literal_item(l, 0, "shape");
    uint64_t items, size;
    if (l->v[0].type != LIT_DICT || l->v[0].n != 6) return false;
    if (descr == LITERAL_NONE || fortran == LITERAL_NONE || shape == LITERAL_NONE) return false;
    if (l->v[fortran].type != LIT_BOOL || l->v[shape].type != LIT_TUPLE) return false;
    if (!shape_of(l, shape, out->type.shape, &out->type.ndim, &items)) return false;
    if (!from_descr(l, descr, 0, &size, &out->dtype) || size > INT32_MAX) return false;
    if (l->v[descr].type == LIT_TUPLE) return false; /* NumPy makes dimensions of a sub-array: nobody writes one here */
    if (__builtin_mul_overflow(items, size, &out->n_bytes) || out->n_bytes > SIZE_LIMIT) return false;
    out->type.order = l->v[fortran].i ? 'F' : 'C';
    out->type.itemsize = (uint32_t)size;
    return out->dtype.len <= UINT16_MAX;
}

int npy_parse(const void *p, size_t len, struct npy *out)
{
    struct literal l;
    uint64_t end = npy_header_len(p, len);
    *out = (struct npy){0};
    if (end == 0 || end > len || end > NPY_HEADER_MAX) return -EINVAL;
    unsigned version = ((const unsigned char *)p)[6];
    size_t lead = version == 1 ? 10 : 12;
    if (!literal_parse((const char *)p + lead, (size_t)end - lead, version < 3, &l)) return -EINVAL;
    bool ok = read_dict(&l, out), full = out->dtype.failed;
    literal_free(&l);
    if (!ok || full) {
        npy_free(out);
        return full ? -ENOMEM : -EINVAL;
    }
    out->data_at = end;
    out->type.dtype = out->dtype.p;
    out->type.dtype_len = (uint32_t)out->dtype.len;
    return 0;
}

void npy_free(struct npy *n)
{
    text_free(&n->dtype);
    *n = (struct npy){0};
}
