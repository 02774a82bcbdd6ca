/* Pagestone | catalog/names — which keys are well formed, and which may live in one catalog.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The catalog is shown as a directory tree, where each object is a file named after its key and kind, and each '/' makes a directory. Two keys may not both exist when their
 * files or directories would have one path. With "x" as array shown as "x.npy" and pickled as "x.pkl":
 *
 *     a and a/b        a file and a directory            (an empty group, kind DIR, may have keys below it)
 *     x (array)        and x.npy (bytes, or a group, or anything below x.npy/)
 *     x (pickled)      and x.pkl (the same)
 *
 * So an addition asks: is a part of its path an object; does something lie below it; is its file's name taken as bytes or as a group; and is its own name, or one of its groups' names,
 * some other object's file name. Each question is one lookup. Hidden keys have no file and follow none of this.
 */
#include "libshm/catalog/object.h"

#define SHOWN_MAX 180 /* bytes of a key in a message that names two */

/* --- one name ---------------------------------------------------------------------------------------------------------------- */
/* Length of the well-formed UTF-8 sequence at p (Unicode table 3-7: no surrogates, nothing overlong, nothing above U+10FFFF); 0: none. */
static size_t utf8_sequence(const uint8_t *p, size_t len)
{
    if (p[0] < 0x80) return 1;
    size_t n = p[0] >= 0xc2 && p[0] <= 0xdf   ? 2
               : p[0] >= 0xe0 && p[0] <= 0xef ? 3
               : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4
                                              : 0;
    if (n == 0 || n > len) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0;
    if (p[0] == 0xed && p[1] > 0x9f) return 0;
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
    return n;
}

static int check_part(const uint8_t *p, size_t len, struct pgs_error *err)
{
    if (len == 0) return pgs__fail(err, PGS_ENAME, "a key has an empty part: no '/' at its ends, nor two in a row");
    if (len > PGS_MAX_KEY_PART)
        return pgs__fail(err, PGS_ENAME, "a part of a key has %zu bytes; at most %d are possible between two '/'", len,
                         PGS_MAX_KEY_PART);
    if (p[0] == '.' && (len == 1 || (len == 2 && p[1] == '.')))
        return pgs__fail(err, PGS_ENAME, "a part of a key is '%.*s'", (int)len, (const char *)p);
    return 0;
}

int pgs__name_check(const void *key, size_t len, struct pgs_error *err)
{
    const uint8_t *p = key;
    if (len == 0 || len > PGS_MAX_KEY)
        return pgs__fail(err, PGS_ENAME, "a key of %zu bytes; 1 to %d are possible", len, PGS_MAX_KEY);
    if (p[0] == 0) return 0;
    size_t part = 0;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_sequence(p + i, len - i);
        if (n == 0) return pgs__fail(err, PGS_ENAME, "a key is not UTF-8 (at byte %zu)", i);
        if (p[i] == 0) return pgs__fail(err, PGS_ENAME, "a key contains a NUL (at byte %zu)", i);
        if (p[i] == '/') {
            int rc = check_part(p + part, i - part, err);
            if (rc) return rc;
            part = i + 1;
        }
        i += n;
    }
    return check_part(p + part, len - part, err);
}

/* What the file view appends to the key. */
static const char *suffix_of(enum pgs_kind kind)
{
    switch (kind) {
    case PGS_KIND_ARRAY:
        return ".npy";
    case PGS_KIND_PLAIN:
    case PGS_KIND_PICKLE:
        return ".pkl";
    case PGS_KIND_BYTES:
    case PGS_KIND_DIR:
        break;
    }
    return "";
}

size_t pgs__name_in_view(const void *key, size_t len, enum pgs_kind kind, char *buf)
{
    const char *suffix = suffix_of(kind);
    size_t n = strlen(suffix);
    memcpy(buf, key, len);
    memcpy(buf + len, suffix, n);
    return len + n;
}

/* --- a name among others -------------------------------------------------------------------------------------------------------- */
struct fit {
    const struct pgs__tree *t;
    const char *key; /* the new one */
    size_t len;
    struct pgs_error *err;
};

/* Kind of the object `key`; 0: there is none; -PGS_ECORRUPT. */
static int kind_at(const struct fit *f, const char *key, size_t len)
{
    struct pgs_span val;
    if (len == 0 || len > PGS_MAX_KEY) return 0;
    int rc = pgs__tree_get(f->t, key, len, &val, f->err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    int kind = val.len ? *(const uint8_t *)val.p : 0;
    if (kind < PGS_KIND_ARRAY || kind > PGS_KIND_DIR)
        return pgs__name_object(f->err, pgs__fail_corrupt(f->err, "", "object record: unknown kind"), key, len);
    return kind;
}

static int shown(size_t len)
{
    return (int)pgs__min_u64(len, SHOWN_MAX);
}

static int taken(const struct fit *f, const char *other, size_t len, const char *why)
{
    return pgs__fail(f->err, PGS_EEXIST, "'%.*s' and '%.*s' cannot both exist: %s", shown(f->len), f->key, shown(len),
                     other, why);
}

/* Nothing may lie below `key` + "/". */
static int nothing_below(const struct fit *f, const char *key, size_t len, const char *why)
{
    char dir[PGS_MAX_KEY + 8];
    struct pgs__cursor c;
    struct pgs_span found, val;
    memcpy(dir, key, len);
    dir[len++] = '/';
    if (len >= PGS_MAX_KEY) return 0; /* no key is longer */
    int rc = pgs__cursor_seek(&c, f->t, PGS__SEEK_GE, dir, len, f->err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    pgs__cursor_entry(&c, &found, &val);
    if (found.len < len || memcmp(found.p, dir, len)) return 0;
    return taken(f, found.p, found.len, why);
}

/* Some other object's file must not have the path [key, key + len), which the new key uses itself. */
static int not_a_file(const struct fit *f, size_t len)
{
    static const struct {
        char suffix[5];
        bool array;
    } kinds[] = {{".npy", true}, {".pkl", false}};
    for (size_t i = 0; i < PGS_ARRAY_LEN(kinds); i++) {
        if (len <= 4 || memcmp(f->key + len - 4, kinds[i].suffix, 4)) continue;
        int kind = kind_at(f, f->key, len - 4);
        if (kind < 0) return kind;
        bool array = kind == PGS_KIND_ARRAY, pickled = kind == PGS_KIND_PLAIN || kind == PGS_KIND_PICKLE;
        if (kinds[i].array ? array : pickled) return taken(f, f->key, len - 4, "they have one name in the file view");
    }
    return 0;
}

/* The parts of the path must be groups, and not be called like another object's file. */
static int check_path(const struct fit *f)
{
    for (size_t i = 1; i < f->len; i++) {
        if (f->key[i] != '/') continue;
        int kind = kind_at(f, f->key, i);
        if (kind < 0) return kind;
        if (kind != 0 && kind != PGS_KIND_DIR) return taken(f, f->key, i, "one would be a file and a directory");
        int rc = not_a_file(f, i);
        if (rc) return rc;
    }
    return 0;
}

/* The new object's file: is its path bytes, an empty group, or a group already? */
static int check_file(const struct fit *f, enum pgs_kind kind)
{
    char file[PGS_MAX_KEY + 8];
    size_t n = pgs__name_in_view(f->key, f->len, kind, file);
    if (n == f->len) return not_a_file(f, n); /* shown as it is called */
    int there = kind_at(f, file, n);
    if (there < 0) return there;
    if (there == PGS_KIND_BYTES || there == PGS_KIND_DIR)
        return taken(f, file, n, "they have one name in the file view");
    return nothing_below(f, file, n, "they have one name in the file view");
}

int pgs__name_fits(const struct pgs__tree *t, const void *key, size_t len, enum pgs_kind kind, struct pgs_error *err)
{
    struct fit f = {.t = t, .key = key, .len = len, .err = err};
    if (len && f.key[0] == 0) return 0;
    if (len == 0 || len > PGS_MAX_KEY) return pgs__name_check(key, len, err);
    int rc = check_path(&f);
    if (rc == 0 && kind != PGS_KIND_DIR) rc = nothing_below(&f, f.key, len, "one would be a file and a directory");
    return rc ? rc : check_file(&f, kind);
}
