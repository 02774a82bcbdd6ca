/* Pagestone | fuse/attr — attribute records: what a file in the view has beyond its object.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See view.h for the bytes. Keyed by the path in the view, not by the object's key: "x" as array and a symlink "x" are two names. A record that does not decode is damage (-EIO)
 * only if its head is: what it says about an object that is gone is not looked at.
 */
#define _GNU_SOURCE
#include "fuse/view.h"

#include <errno.h>
#include <string.h>

#define MAGIC 0x31615350u /* "PSa1" */

static uint32_t get_u32(const unsigned char *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint64_t get_u64(const unsigned char *p)
{
    return get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}
static void put(unsigned char *p, uint64_t x, unsigned n)
{
    for (unsigned i = 0; i < n; i++) p[i] = (unsigned char)(x >> 8 * i & 0xff);
}

size_t record_key(const char *path, size_t len, char key[PGS_MAX_KEY])
{
    if (len > RECORD_PATH_MAX) return 0;
    key[0] = 0;
    key[1] = 'f';
    memcpy(key + 2, path, len);
    return len + 2;
}

static int decode(const unsigned char *p, uint64_t n, struct record *r)
{
    if (n < RECORD_HEAD || get_u32(p) != MAGIC) return -EIO;
    r->flags = get_u32(p + 4);
    r->object = get_u64(p + 8);
    r->version = get_u64(p + 16);
    r->mtime_ns = (int64_t)get_u64(p + 24);
    r->mode = get_u32(p + 32) & 07777;
    r->tail_len = get_u32(p + 36);
    r->tail = (const char *)p + RECORD_HEAD;
    return r->tail_len <= n - RECORD_HEAD ? 0 : -EIO;
}

int record_decode(pgs_snapshot *sn, const struct pgs_object *obj, struct record *out)
{
    struct record r = {.id = obj->id};
    const void *p = obj->inline_data;
    int rc = obj->kind == PGS_KIND_BYTES ? 0 : -EIO;
    if (rc == 0 && !p) {
        rc = view_errno(pgs_view_open(sn, obj, 1, &r.view, NULL));
        if (rc == 0) p = pgs_view_data(r.view);
    }
    if (rc == 0) rc = decode(p, obj->n_bytes, &r);
    if (rc) {
        record_release(&r);
        return rc;
    }
    if (r.flags & REC_NEXT) {
        r.flags &= ~(uint32_t)REC_NEXT;
        r.object = obj->id + 1;
        r.version = obj->version;
    }
    *out = r;
    return 0;
}

int record_get(pgs_snapshot *sn, const char *path, size_t len, struct record *out)
{
    char key[PGS_MAX_KEY];
    struct pgs_object obj;
    size_t n = record_key(path, len, key);
    *out = (struct record){0};
    int rc = n ? pgs_get(sn, key, n, &obj, NULL) : -PGS_ENOENT;
    if (rc == -PGS_ENOENT) return 0;
    return rc ? view_errno(rc) : record_decode(sn, &obj, out);
}

void record_release(struct record *r)
{
    pgs_view_unref(r->view);
    *r = (struct record){0};
}

void record_encode(const struct record *r, unsigned char head[RECORD_HEAD])
{
    put(head, MAGIC, 4);
    put(head + 4, r->flags, 4);
    put(head + 8, r->object, 8);
    put(head + 16, r->version, 8);
    put(head + 24, (uint64_t)r->mtime_ns, 8);
    put(head + 32, r->mode, 4);
    put(head + 36, r->tail_len, 4);
}
