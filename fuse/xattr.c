/* Pagestone | fuse/xattr — user.pagestone.{dtype,shape,order,version,key}.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Names of the system's namespaces get EOPNOTSUPP, which ls remembers for the whole mount; ENODATA would be asked for again with every file.
 */
#define _GNU_SOURCE
#include "fuse/text.h"
#include "fuse/view.h"

#include <errno.h>
#include <string.h>

#define PREFIX "user.pagestone."
static const char *const names[] = {"key", "version", "dtype", "shape", "order"};
enum { KEY, VERSION, DTYPE, SHAPE, ORDER, N_NAMES };
#define N_OF_ANY 2 /* the first two */

static int which(const char *name)
{
    if (strncmp(name, PREFIX, sizeof PREFIX - 1) != 0) return strncmp(name, "user.", 5) ? -EOPNOTSUPP : -ENODATA;
    for (int i = 0; i < N_NAMES; i++)
        if (!strcmp(name + sizeof PREFIX - 1, names[i])) return i;
    return -ENODATA;
}

static void put_value(int i, const struct pgs_object *obj, const char *key, size_t key_len, struct text *t)
{
    const struct pgs_type *type = &obj->type;
    switch (i) {
    case KEY:
        text_put(t, key, key_len);
        return;
    case VERSION:
        text_format(t, "%llu", (unsigned long long)obj->version);
        return;
    case DTYPE:
        text_put(t, type->dtype, type->dtype_len);
        return;
    case SHAPE:
        text_str(t, "(");
        for (uint32_t d = 0; d < type->ndim; d++) text_format(t, d ? ", %lld" : "%lld", (long long)type->shape[d]);
        text_str(t, type->ndim == 1 ? ",)" : ")");
        return;
    default:
        text_format(t, "%c", type->order == 'F' ? 'F' : 'C');
    }
}

static void reply(fuse_req_t req, const struct text *t, size_t size)
{
    if (t->failed)
        fuse_reply_err(req, ENOMEM);
    else if (size == 0)
        fuse_reply_xattr(req, t->len);
    else if (t->len > size)
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, t->p, t->len);
}

void xattr_get(struct view *v, fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct inode *n = inode_at(&v->share, ino);
    struct text t = {0};
    struct found f;
    pgs_snapshot *sn;
    char key[PGS_MAX_KEY];
    int i = which(name), rc = i < 0 ? i : 0;
    enum inode_kind kind = n ? (enum inode_kind)atomic_load(&n->kind) : INODE_META;
    if (rc == 0 && kind == INODE_DIR && i == KEY && n->path_len)
        text_put(&t, n->path, n->path_len);
    else if (rc == 0 && kind == INODE_FILE && (i < N_OF_ANY || n->object_kind == PGS_KIND_ARRAY)) {
        rc = inode_snapshot(v, n, &sn, &f);
        if (rc == 0) {
            size_t len = key_of(f.obj.kind, n->path, n->path_len, key);
            put_value(i, &f.obj, key, len, &t);
            found_release(&f);
            pgs_snapshot_unref(sn);
        }
    } else if (rc == 0)
        rc = -ENODATA;
    if (rc)
        fuse_reply_err(req, -rc);
    else
        reply(req, &t, size);
    text_free(&t);
}

void xattr_list(struct view *v, fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct inode *n = inode_at(&v->share, ino);
    struct text t = {0};
    int count = 0;
    if (n && atomic_load(&n->kind) == INODE_FILE)
        count = n->object_kind == PGS_KIND_ARRAY ? N_NAMES : N_OF_ANY;
    else if (n && atomic_load(&n->kind) == INODE_DIR && n->path_len)
        count = 1;
    for (int i = 0; i < count; i++) {
        text_str(&t, PREFIX);
        text_put(&t, names[i], strlen(names[i]) + 1);
    }
    reply(req, &t, size);
    text_free(&t);
}
