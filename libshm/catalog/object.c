/* Pagestone | catalog/object — object records: bytes to struct and back, and what two objects have in common.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One function, check(), says what a well-formed object is. Decoding applies it to what was read (a violation is damage), encoding to what is to be written (a
 * violation is a bug of the caller, caught before it reaches the file). Every byte of a record is determined by the struct, so a
 * record that decodes encodes to the same bytes again; fields that a form does not use must be zero.
 */
#include "libshm/catalog/object.h"

#include "libshm/extents/content_map.h"

/* Offsets; the byte map is in object.h. */
enum {
    AT_FLAGS = 4,
    AT_INLINE_LEN = 6,
    AT_ID = 8,
    AT_VERSION = 16,
    AT_N_BYTES = 24,
    AT_N_STORED = 32,
    AT_ITEMSIZE = 40
};
enum { AT_DTYPE_LEN = 44, AT_FORM = 48, AT_MAP = 72, HEAD = 96, DTYPE_REF = 32 };

#define DTYPE_MAX 65536u

PGS_STATIC(HEAD + 8 * PGS_MAX_NDIM + PGS__DTYPE_INLINE_MAX + PGS__INLINE_MAX <= PGS__RECORD_MAX, "the largest record");
PGS_STATIC(PGS_MAX_KEY + HEAD + 8 * PGS_MAX_NDIM + PGS__DTYPE_INLINE_MAX <= PGS__TREE_MAX_CELL,
           "any key, shape and short type fit a cell; only inline data may have to move out");

/* --- sizes ---------------------------------------------------------------------------------------------------------------- */
/* Product of the shape and itemsize. false: beyond 2^46. An extent of 0 makes it 0, whatever the others are. */
static bool shape_bytes(uint32_t itemsize, uint32_t ndim, const int64_t *shape, uint64_t *n_bytes)
{
    uint64_t n = itemsize;
    for (uint32_t i = 0; i < ndim; i++)
        if (shape[i] == 0) n = 0;
    for (uint32_t i = 0; i < ndim && n; i++)
        if (__builtin_mul_overflow(n, (uint64_t)shape[i], &n) || n > PGS__CONTENT_MAX_BYTES) return false;
    *n_bytes = n;
    return n <= PGS__CONTENT_MAX_BYTES;
}

int pgs__type_bytes(const struct pgs_type *type, uint64_t *n_bytes, struct pgs_error *err)
{
    if (type->ndim > PGS_MAX_NDIM)
        return pgs__fail(err, PGS_EINVAL, "%u dimensions; at most %d are possible", type->ndim, PGS_MAX_NDIM);
    for (uint32_t i = 0; i < type->ndim; i++)
        if (type->shape[i] < 0)
            return pgs__fail(err, PGS_EINVAL, "negative extent %lld of axis %u", (long long)type->shape[i], i);
    if (!shape_bytes(type->itemsize, type->ndim, type->shape, n_bytes))
        return pgs__fail(err, PGS_E2BIG, "the array has more than 64 TiB");
    return 0;
}

/* --- what a well-formed object is --------------------------------------------------------------------------------------------- */
static bool ptr_is_none(const struct pgs_ptr *p)
{
    return p->page == 0 && p->birth == 0 && p->xxh == 0;
}

static const char *check_type(const struct pgs__object *o)
{
    bool out = o->dtype_ext.page != 0;
    if (o->kind != PGS_KIND_ARRAY) {
        bool typed = o->order || o->ndim || o->itemsize || o->dtype_len || out;
        return typed ? "an object that is no array has a type" : NULL;
    }
    if (o->order != 'C' && o->order != 'F') return "unknown memory order";
    if (o->ndim > PGS_MAX_NDIM) return "too many dimensions";
    for (uint32_t i = 0; i < o->ndim; i++)
        if (o->shape[i] < 0) return "negative extent";
    uint64_t n_bytes;
    if (!shape_bytes(o->itemsize, o->ndim, o->shape, &n_bytes) || n_bytes != o->content.n_bytes)
        return "shape and size do not agree";
    if (o->dtype_len == 0 || o->dtype_len > DTYPE_MAX) return "type description of a wrong size";
    if (!out && o->dtype_len > PGS__DTYPE_INLINE_MAX) return "type description of a wrong size";
    if (out && o->dtype_ext_pages != pgs__pages_of(o->dtype_len)) return "type description of a wrong size";
    return NULL;
}

static const char *check_content(const struct pgs__object *o)
{
    const struct pgs__content *c = &o->content;
    uint64_t n_pages = pgs__pages_of(c->n_bytes);
    if (c->n_bytes > PGS__CONTENT_MAX_BYTES) return "impossible size";
    if (o->kind == PGS_KIND_DIR && (c->form != PGS__FORM_INLINE || c->n_bytes)) return "an empty group has content";
    if (c->map.page == 0 && !ptr_is_none(&c->map)) return "map without a page";
    bool stream =
        o->kind != PGS_KIND_ARRAY && c->form != PGS__FORM_INLINE && c->n_bytes; /* these are never used unverified */
    if (stream ? !c->xxh_bytes || c->xxh_bytes > c->n_bytes : c->xxh_bytes || c->xxh)
        return "a checksum of a wrong size";
    switch (c->form) {
    case PGS__FORM_INLINE:
        if (c->n_bytes > PGS__INLINE_MAX || c->n_stored || c->map.page)
            return "inline content that is stored elsewhere";
        return NULL;
    case PGS__FORM_EXTENT:
        if (c->n_bytes == 0 || c->n_stored != n_pages) return "an extent of a wrong size";
        if (c->page.n == 0 || c->page.n > PGS__CONTENT_MAX_PAGES) return "an extent outside every file";
        return NULL;
    case PGS__FORM_MAP:
        if (c->n_stored > n_pages || (c->map.page == 0 && c->n_stored)) return "a map of a wrong size";
        return NULL;
    }
    return "unknown form";
}

static const char *check(const struct pgs__object *o)
{
    if (o->kind < PGS_KIND_ARRAY || o->kind > PGS_KIND_DIR) return "unknown kind";
    const char *why = check_content(o);
    return why ? why : check_type(o);
}

/* --- decoding ------------------------------------------------------------------------------------------------------------------- */
static int damaged(struct pgs_span key, struct pgs_error *err, const char *why)
{
    return pgs__name_object(err, pgs__fail_corrupt(err, "", "object record: %s", why), key.p, key.len);
}

static struct pgs_ptr get_ptr(const uint8_t *p)
{
    struct pgs_ptr ptr;
    memcpy(&ptr, p, sizeof ptr);
    return ptr;
}

/* The fixed part. NULL or why not. */
static const char *decode_head(const uint8_t *p, struct pgs__object *o)
{
    struct pgs__content *c = &o->content;
    uint64_t w[3] = {pgs__get_u64(p + AT_FORM), pgs__get_u64(p + AT_FORM + 8), pgs__get_u64(p + AT_FORM + 16)};
    o->kind = (enum pgs_kind)p[0];
    c->form = (enum pgs__content_form)p[1];
    o->order = (char)p[2];
    o->ndim = p[3];
    o->id = pgs__get_u64(p + AT_ID);
    o->version = pgs__get_u64(p + AT_VERSION);
    c->n_bytes = pgs__get_u64(p + AT_N_BYTES);
    c->n_stored = pgs__get_u64(p + AT_N_STORED);
    if (o->kind == PGS_KIND_ARRAY) {
        o->itemsize = pgs__get_u32(p + AT_ITEMSIZE);
        o->dtype_len = pgs__get_u32(p + AT_DTYPE_LEN);
    } else {
        c->xxh_bytes = pgs__get_u64(p + AT_ITEMSIZE);
    }
    c->map = get_ptr(p + AT_MAP);
    if (pgs__get_u16(p + AT_FLAGS) & ~PGS__OBJ_DTYPE_OUT) return "unknown flags";
    if (o->ndim > PGS_MAX_NDIM) return "too many dimensions";
    if (c->form == PGS__FORM_EXTENT) {
        c->page.n = w[0];
        c->birth = w[1];
        c->xxh = w[2];
    } else {
        c->xxh = w[0];
        if (w[1] || w[2]) return "bytes that mean nothing";
    }
    return NULL;
}

/* What follows the fixed part: shape, type, inline bytes; nothing may be left over. */
static const char *decode_tail(const uint8_t *p, size_t len, struct pgs__object *o)
{
    bool out = pgs__get_u16(p + AT_FLAGS) & PGS__OBJ_DTYPE_OUT;
    size_t inline_len = pgs__get_u16(p + AT_INLINE_LEN), shape_len = 8u * (size_t)o->ndim;
    if (!out && o->dtype_len > PGS__DTYPE_INLINE_MAX) return "type description of a wrong size";
    size_t dtype_len = out ? DTYPE_REF : o->dtype_len;
    if (len != HEAD + shape_len + dtype_len + inline_len) return "parts and length do not agree";
    if (inline_len != (o->content.form == PGS__FORM_INLINE ? o->content.n_bytes : 0))
        return "inline bytes of a wrong size";
    memcpy(o->shape, p + HEAD, shape_len);
    const uint8_t *type = p + HEAD + shape_len;
    if (out) {
        o->dtype_ext = get_ptr(type);
        o->dtype_ext_pages = pgs__get_u64(type + sizeof o->dtype_ext);
        if (o->dtype_ext.page == 0) return "type description without a page";
    } else {
        o->dtype = (const char *)type;
    }
    if (o->content.form == PGS__FORM_INLINE) o->content.inline_data = type + dtype_len;
    return NULL;
}

int pgs__object_decode(struct pgs__pagefile *pf, struct pgs_span key, struct pgs_span val, struct pgs__object *out,
                       struct pgs_error *err)
{
    if (val.len < HEAD || val.len > PGS__RECORD_MAX) return damaged(key, err, "impossible length");
    struct pgs__object o = {0};
    const char *why = decode_head(val.p, &o);
    if (!why) why = decode_tail(val.p, val.len, &o);
    if (!why) why = check(&o);
    if (why) return damaged(key, err, why);
    if (o.dtype_ext.page) {
        const void *type;
        int rc = pgs__page_verified(pf, &o.dtype_ext, o.dtype_ext_pages, "type description", NULL, &type, err);
        if (rc) return pgs__name_object(err, rc, key.p, key.len);
        o.dtype = type;
    }
    *out = o;
    return 0;
}

/* --- encoding ------------------------------------------------------------------------------------------------------------------------ */
int pgs__object_encode(const struct pgs__object *o, void *buf, size_t *len, struct pgs_error *err)
{
    const struct pgs__content *c = &o->content;
    bool out = o->dtype_ext.page != 0, inlined = c->form == PGS__FORM_INLINE;
    if (!out && o->dtype_len > PGS__DTYPE_INLINE_MAX)
        return pgs__fail(err, PGS_E2BIG, "a type description of %u bytes does not fit an object record", o->dtype_len);
    if (inlined && c->n_bytes > PGS__INLINE_MAX)
        return pgs__fail(err, PGS_E2BIG, "%llu bytes do not fit an object record", (unsigned long long)c->n_bytes);
    const char *why = check(o);
    if (why) return pgs__fail(err, PGS_EBUG, "object record to be written: %s", why);

    uint16_t flags = out ? PGS__OBJ_DTYPE_OUT : 0, inline_len = inlined ? (uint16_t)c->n_bytes : 0;
    uint64_t form[3] = {c->xxh, 0, 0};
    if (c->form == PGS__FORM_EXTENT) {
        form[0] = c->page.n;
        form[1] = c->birth;
        form[2] = c->xxh;
    }
    uint8_t *p = buf;
    p[0] = (uint8_t)o->kind;
    p[1] = (uint8_t)c->form;
    p[2] = (uint8_t)o->order;
    p[3] = (uint8_t)o->ndim;
    memcpy(p + AT_FLAGS, &flags, 2);
    memcpy(p + AT_INLINE_LEN, &inline_len, 2);
    memcpy(p + AT_ID, &o->id, 8);
    memcpy(p + AT_VERSION, &o->version, 8);
    memcpy(p + AT_N_BYTES, &c->n_bytes, 8);
    memcpy(p + AT_N_STORED, &c->n_stored, 8);
    if (o->kind == PGS_KIND_ARRAY) {
        memcpy(p + AT_ITEMSIZE, &o->itemsize, 4);
        memcpy(p + AT_DTYPE_LEN, &o->dtype_len, 4);
    } else {
        memcpy(p + AT_ITEMSIZE, &c->xxh_bytes, 8);
    }
    memcpy(p + AT_FORM, form, sizeof form);
    memcpy(p + AT_MAP, &c->map, sizeof c->map);
    p += HEAD;
    memcpy(p, o->shape, 8u * (size_t)o->ndim);
    p += 8u * (size_t)o->ndim;
    if (out) {
        memcpy(p, &o->dtype_ext, sizeof o->dtype_ext);
        memcpy(p + sizeof o->dtype_ext, &o->dtype_ext_pages, 8);
        p += DTYPE_REF;
    } else if (o->dtype_len) {
        memcpy(p, o->dtype, o->dtype_len);
        p += o->dtype_len;
    }
    if (inline_len) memcpy(p, c->inline_data, inline_len);
    *len = (size_t)(p - (uint8_t *)buf) + inline_len;
    return 0;
}

size_t pgs__object_inline_room(size_t key_len, uint32_t ndim, uint32_t dtype_len)
{
    size_t used = key_len + HEAD + 8u * (size_t)ndim + (dtype_len > PGS__DTYPE_INLINE_MAX ? DTYPE_REF : dtype_len);
    size_t room = used < PGS__TREE_MAX_CELL ? PGS__TREE_MAX_CELL - used : 0;
    return room < PGS__INLINE_MAX ? room : PGS__INLINE_MAX;
}

/* --- comparing, exporting --------------------------------------------------------------------------------------------------------- */
bool pgs__object_same_revision(const struct pgs__object *a, const struct pgs__object *b)
{
    return a->id == b->id && a->version == b->version;
}

bool pgs__object_same_type(const struct pgs__object *a, const struct pgs__object *b, bool ignore_rows)
{
    if (a->kind != b->kind || a->itemsize != b->itemsize || a->ndim != b->ndim || a->order != b->order) return false;
    if (a->dtype_len != b->dtype_len || (a->dtype_len && memcmp(a->dtype, b->dtype, a->dtype_len))) return false;
    for (uint32_t i = ignore_rows ? 1 : 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

void pgs__object_export(const struct pgs__object *o, struct pgs_object *out)
{
    memset(out, 0, sizeof *out);
    out->kind = o->kind;
    out->id = o->id;
    out->version = o->version;
    out->n_bytes = o->content.n_bytes;
    out->n_stored = o->content.n_stored << PGS_PAGE_SHIFT;
    out->type.dtype = o->dtype;
    out->type.dtype_len = o->dtype_len;
    out->type.itemsize = o->itemsize;
    out->type.ndim = o->ndim;
    out->type.order = o->order;
    memcpy(out->type.shape, o->shape, 8u * (size_t)o->ndim);
    if (o->content.form == PGS__FORM_INLINE) out->inline_data = o->content.inline_data;
}
