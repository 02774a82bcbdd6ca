/* Pagestone | fuse/dir — listings.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A directory handle keeps a snapshot and walks its keys: one step for each file, one seek to skip a group, however much lies below it. Then come symlinks, which are attribute records
 * without an object, then staging files. Which these are is noted before the snapshot is taken, and they are left out of it: a file that is published meanwhile appears once all the same. Offsets count entries; a handle whose walk is elsewhere (rewinddir, a new worker) starts again and skips.
 *
 * READDIRPLUS gives inodes along: those of versions are valid for ever, those of head for a moment, so that ls -l need not ask for each name again.
 */
#define _GNU_SOURCE
#include "fuse/view.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum phase { DOT, DOTDOT, NAMES, OBJECTS, LINKS, STAGED, END };

struct item {
    enum inode_kind kind; /* INODE_FREE: something damaged */
    char name[256];
    struct found found;
    struct inode *stage;
};

struct listing {
    pthread_mutex_t lock;
    struct inode *dir; /* NULL: the root */
    pgs_snapshot *sn;
    pgs_iter *it;
    enum phase phase;
    uint64_t i;   /* within NAMES and STAGED */
    off_t next;   /* offset of the item that comes next */
    bool have;    /* item is that one */
    char **names; /* of the root; elsewhere those of staging files */
    size_t n_names;
    struct item item;
};

/* --- walking groups ---------------------------------------------------------------------------------------------------------------- */

/* path + "/", or "" for the top; `hidden`: of attribute records. */
static size_t prefix_of(const char *path, size_t len, bool hidden, char out[PGS_MAX_KEY + 8])
{
    size_t n = hidden ? 2 : 0;
    if (hidden) memcpy(out, "\0f", 2);
    memcpy(out + n, path, len);
    n += len;
    if (len) out[n++] = '/';
    return n;
}

int dir_has_entries(pgs_snapshot *sn, const char *path, size_t len)
{
    char prefix[VIEW_PATH_MAX + 8];
    const void *key;
    size_t n;
    pgs_iter *it;
    for (int hidden = 0; hidden < 2; hidden++) {
        size_t plen = prefix_of(path, len, hidden, prefix);
        if (plen > PGS_MAX_KEY) continue;
        int rc = pgs_iter_snapshot(sn, prefix, plen, &it, NULL);
        if (rc) return view_errno(rc);
        while ((rc = pgs_iter_next(it, &key, &n, NULL, NULL)) == 0) {
            if (!hidden) break;
            struct record rec = {0}; /* of records only symlinks are something by themselves */
            struct pgs_object obj;
            bool link =
                pgs_get(sn, key, n, &obj, NULL) == 0 && record_decode(sn, &obj, &rec) == 0 && (rec.flags & REC_LINK);
            record_release(&rec);
            if (link) break;
        }
        pgs_iter_free(it);
        if (rc != -PGS_ENOENT) return rc ? view_errno(rc) : 1;
    }
    return 0;
}

/* Past everything below a group whose prefix (with its '/') is `key`: '0' follows '/'. */
static void skip_group(pgs_iter *it, const char *key, size_t len)
{
    char to[PGS_MAX_KEY];
    memcpy(to, key, len);
    to[len - 1] = '0';
    pgs_iter_seek(it, to, len, NULL);
}

static int set_name(struct item *item, const char *p, size_t len, const char *suffix)
{
    if (len + strlen(suffix) >= sizeof item->name) return -ENAMETOOLONG;
    memcpy(item->name, p, len);
    strcpy(item->name + len, suffix);
    return 0;
}

/* The next file or group. 1, 0 (the end) or -errno. */
static int next_object(struct listing *l)
{
    const void *k;
    size_t len, at = l->dir->path_len ? l->dir->path_len + 1u : 0;
    struct item *item = &l->item;
    for (;;) {
        struct pgs_object marker;
        int rc = pgs_iter_next(l->it, &k, &len, &item->found.obj, NULL);
        bool damaged = rc == -PGS_ECORRUPT;
        if (damaged) rc = pgs_iter_next(l->it, &k, &len, NULL, NULL); /* its name can be listed */
        if (rc == -PGS_ENOENT) return 0;
        if (rc) return view_errno(rc);
        const char *key = k, *slash = memchr(key + at, '/', len - at);
        if (slash) {
            size_t group = (size_t)(slash - key);
            char copy[PGS_MAX_KEY];
            memcpy(copy, key, group + 1);
            skip_group(l->it, copy, group + 1);
            if (pgs_get(l->sn, copy, group, &marker, NULL) == 0 && marker.kind == PGS_KIND_DIR) continue; /* listed */
            item->kind = INODE_DIR;
            return set_name(item, copy + at, group - at, "") ? -EIO : 1;
        }
        item->kind = damaged ? INODE_FREE : item->found.obj.kind == PGS_KIND_DIR ? INODE_DIR : INODE_FILE;
        const char *suffix = item->kind == INODE_FILE ? suffix_of(item->found.obj.kind) : "";
        if (set_name(item, key + at, len - at, suffix) == 0) return 1;
    }
}

/* The next symlink, or a directory that has nothing but symlinks. */
static int next_link(struct listing *l)
{
    const void *k;
    size_t len, at = 2 + (l->dir->path_len ? l->dir->path_len + 1u : 0);
    struct item *item = &l->item;
    struct pgs_object obj;
    for (;;) {
        int rc = pgs_iter_next(l->it, &k, &len, &obj, NULL);
        if (rc == -PGS_ECORRUPT && pgs_iter_next(l->it, &k, &len, NULL, NULL) == 0) continue;
        if (rc == -PGS_ENOENT) return 0;
        if (rc) return view_errno(rc);
        char copy[PGS_MAX_KEY];
        memcpy(copy, k, len);
        const char *slash = memchr(copy + at, '/', len - at);
        if (slash) {
            size_t group = (size_t)(slash - copy);
            char marker[PGS_MAX_KEY];
            const void *below;
            size_t n;
            pgs_iter *it;
            skip_group(l->it, copy, group + 1);
            memcpy(marker, copy + 2, group - 1);
            if (pgs_get(l->sn, marker, group - 2, &obj, NULL) == 0) continue;
            if (pgs_iter_snapshot(l->sn, marker, group - 1, &it, NULL)) continue;
            rc = pgs_iter_next(it, &below, &n, NULL, NULL);
            pgs_iter_free(it);
            if (rc == 0 || dir_has_entries(l->sn, copy + 2, group - 2) <= 0) continue;
            item->kind = INODE_DIR;
            return set_name(item, copy + at, group - at, "") ? -EIO : 1;
        }
        if (record_decode(l->sn, &obj, &item->found.rec)) continue;
        if (item->found.rec.flags & REC_LINK && set_name(item, copy + at, len - at, "") == 0) {
            item->kind = item->found.kind = INODE_LINK;
            return 1;
        }
        record_release(&item->found.rec);
    }
}

/* --- a listing ----------------------------------------------------------------------------------------------------------------------------- */

static void clear_item(struct view *v, struct listing *l)
{
    struct item *item = &l->item;
    if (item->stage) inode_forget(&v->share, inode_number(&v->share, item->stage), 1);
    record_release(&item->found.rec);
    item->stage = NULL;
    item->kind = INODE_FREE;
    l->have = false;
}

static int start_phase(struct listing *l, enum phase phase)
{
    char prefix[PGS_MAX_KEY + 8];
    pgs_iter_free(l->it);
    l->it = NULL;
    l->i = 0;
    l->phase = phase;
    if (phase != OBJECTS && phase != LINKS) return 0;
    size_t len = prefix_of(l->dir->path, l->dir->path_len, phase == LINKS, prefix);
    if (len > PGS_MAX_KEY) return 0; /* nothing can be below */
    return view_errno(pgs_iter_snapshot(l->sn, prefix, len, &l->it, NULL));
}

static bool is_staged(const struct listing *l)
{
    for (size_t i = 0; i < l->n_names; i++)
        if (!strcmp(l->names[i], l->item.name)) return true;
    return false;
}

static int next_name(struct listing *l)
{
    const char *name;
    if (!l->dir) {
        if (l->i >= l->n_names) return 0;
        l->item.kind = INODE_DIR;
        return set_name(&l->item, l->names[l->i], strlen(l->names[l->i]), "") ? -EIO : (l->i++, 1);
    }
    if (info_name((unsigned)l->i, &name)) return 0;
    l->i++;
    l->item.kind = INODE_META;
    return set_name(&l->item, name, strlen(name), "") ? -EIO : 1;
}

/* What has become of the staging files: they are still that, or were published. */
static int next_staged(struct view *v, struct listing *l)
{
    struct item *item = &l->item;
    char path[VIEW_PATH_MAX];
    size_t len;
    while (l->i < l->n_names) {
        const char *name = l->names[l->i++];
        pgs_snapshot *head;
        if (path_join(l->dir, name, path, &len) || set_name(item, name, strlen(name), "")) continue;
        if (v->writer->lookup(v, path, len, &item->stage) > 0) {
            item->kind = INODE_STAGE;
            return 1;
        }
        if (find_path(l->sn, path, len, &item->found) == 0) {
            if ((item->kind = item->found.kind) != INODE_FREE) return 1;
            found_release(&item->found);
        }
        if (scope_open(v, SCOPE_HEAD, &head)) continue;
        if (find_path(head, path, len, &item->found) == 0) item->kind = item->found.kind;
        pgs_snapshot_unref(head);
        if (item->kind != INODE_FREE) return 1;
        record_release(&item->found.rec);
    }
    return 0;
}

/* Make l->item the item at l->next. 1, 0 (the end), -errno. */
static int fetch(struct view *v, struct listing *l)
{
    bool names = !l->dir || atomic_load(&l->dir->kind) == INODE_META;
    while (!l->have && l->phase != END) {
        int rc = 0;
        if (l->phase == DOT || l->phase == DOTDOT) {
            strcpy(l->item.name, l->phase == DOT ? "." : "..");
            l->item.kind = INODE_DIR;
            l->have = true;
            rc = start_phase(l, l->phase == DOT ? DOTDOT : names ? NAMES : OBJECTS);
            if (rc) return rc;
            continue;
        }
        rc = l->phase == NAMES     ? next_name(l)
             : l->phase == STAGED  ? next_staged(v, l)
             : !l->it              ? 0
             : l->phase == OBJECTS ? next_object(l)
                                   : next_link(l);
        if (rc < 0) return rc;
        if (rc == 0) {
            rc = start_phase(l, l->phase == NAMES ? END : (enum phase)(l->phase + 1));
            if (rc) return rc;
            continue;
        }
        if (l->phase != STAGED && !names && is_staged(l))
            clear_item(v, l);
        else
            l->have = true;
    }
    return l->have;
}

static void advance(struct view *v, struct listing *l)
{
    clear_item(v, l);
    l->next++;
}

static int seek(struct view *v, struct listing *l, off_t off)
{
    if (off == l->next) return 0;
    if (off < l->next) {
        clear_item(v, l);
        l->next = 0;
        int rc = start_phase(l, DOT);
        if (rc) return rc;
    }
    while (l->next < off) {
        int rc = fetch(v, l);
        if (rc <= 0) return rc;
        advance(v, l);
    }
    return 0;
}

/* --- the root ---------------------------------------------------------------------------------------------------------------------------------- */

static bool add_name(struct listing *l, const char *prefix, const char *name, size_t len)
{
    char *s = malloc(len + 2);
    if (!s) return false;
    size_t n = strlen(prefix);
    memcpy(s, prefix, n);
    memcpy(s + n, name, len);
    s[n + len] = 0;
    l->names[l->n_names++] = s;
    return true;
}

static int name_versions(struct view *v, struct listing *l)
{
    uint64_t *versions = NULL;
    struct pgs_tag_info *tags = NULL;
    size_t n = 0, n_tags = 0;
    int rc = view_errno(pgs_versions(v->store, &versions, &n, NULL));
    if (rc == 0) rc = view_errno(pgs_tags(v->store, &tags, &n_tags, NULL));
    if (rc == 0 && !(l->names = calloc(n + n_tags + 2, sizeof *l->names))) rc = -ENOMEM;
    bool ok = rc == 0 && add_name(l, "", "head", 4) && add_name(l, "", ".pagestone", 10);
    for (size_t i = 0; ok && i < n; i++) {
        char digits[24];
        int len = snprintf(digits, sizeof digits, "%llu", (unsigned long long)versions[i]);
        ok = add_name(l, "@", digits, (size_t)len);
    }
    for (size_t i = 0; ok && i < n_tags; i++) ok = add_name(l, "@", tags[i].name, tags[i].len);
    pgs_free(versions);
    pgs_free(tags);
    return rc ? rc : ok ? 0 : -ENOMEM;
}

/* --- staging files of a directory ---------------------------------------------------------------------------------------------------------------- */

static int note_staged(struct view *v, struct listing *l)
{
    struct inode *n;
    char name[256];
    size_t cap = 0;
    uint64_t i = 0;
    if (!v->writer || l->dir->scope != SCOPE_HEAD) return 0;
    while (v->writer->list(v, l->dir->path, l->dir->path_len, &i, name, &n) > 0) {
        inode_forget(&v->share, inode_number(&v->share, n), 1);
        if (l->n_names == cap) {
            char **more = realloc(l->names, (cap = 2 * cap + 8) * sizeof *more);
            if (!more) return -ENOMEM;
            l->names = more;
        }
        if (!add_name(l, "", name, strlen(name))) return -ENOMEM;
    }
    return 0;
}

/* --- requests ------------------------------------------------------------------------------------------------------------------------------------- */

static void listing_free(struct view *v, struct listing *l)
{
    if (!l) return;
    clear_item(v, l);
    for (size_t i = 0; i < l->n_names; i++) free(l->names[i]);
    free(l->names);
    pgs_iter_free(l->it);
    pgs_snapshot_unref(l->sn);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

/* gen 0: as things are now. */
static int listing_new(struct view *v, fuse_ino_t ino, uint64_t gen, struct listing **out)
{
    struct listing *l = calloc(1, sizeof *l);
    if (!l) return -ENOMEM;
    pthread_mutex_init(&l->lock, NULL);
    l->dir = inode_at(&v->share, ino);
    int rc = 0;
    if (ino == ROOT_INO)
        rc = name_versions(v, l);
    else if (!l->dir)
        rc = -ESTALE;
    else if (atomic_load(&l->dir->kind) == INODE_DIR) {
        int noted = note_staged(v, l); /* before the snapshot: what is published in between is in both */
        rc = gen ? view_errno(pgs_snapshot_gen_open(v->store, gen, &l->sn, NULL)) : -ESTALE;
        if (noted)
            rc = noted;
        else if (rc)
            rc = scope_open(v, l->dir->scope, &l->sn);
    } else if (atomic_load(&l->dir->kind) != INODE_META || l->dir->a)
        rc = -ENOTDIR;
    if (rc)
        listing_free(v, l);
    else
        *out = l;
    return rc;
}

void dir_open(struct view *v, fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct listing *l;
    int rc = listing_new(v, ino, 0, &l);
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    uint64_t gen = l->sn ? pgs_snapshot_gen(l->sn) : 0;
    uint32_t at = share_dir_open(&v->share, ino, gen);
    if (at == UINT32_MAX) {
        listing_free(v, l);
        fuse_reply_err(req, ENFILE);
        return;
    }
    pthread_mutex_lock(&v->dirs_lock);
    struct listing *old = v->listings[at];
    v->listings[at] = l;
    pthread_mutex_unlock(&v->dirs_lock);
    listing_free(v, old);
    fi->fh = at;
    if (fuse_reply_open(req, fi) != 0) dir_release(v, NULL, fi);
    if (gen) keeper_wake(v);
}

/* The handle's listing, locked; made again in a new worker. */
static int listing_get(struct view *v, fuse_ino_t ino, uint64_t fh, struct listing **out)
{
    if (fh >= SHARE_DIRS || atomic_load(&v->share.dirs[fh].ino) != ino) return -EBADF;
    pthread_mutex_lock(&v->dirs_lock);
    struct listing *l = v->listings[fh];
    int rc = l ? 0 : listing_new(v, ino, atomic_load(&v->share.dirs[fh].gen), &l);
    if (rc == 0) {
        v->listings[fh] = l;
        pthread_mutex_lock(&l->lock);
        *out = l;
    }
    pthread_mutex_unlock(&v->dirs_lock);
    return rc;
}

/* d_ino and d_type without making an inode. */
static void item_stat(struct view *v, struct listing *l, struct stat *st)
{
    char path[VIEW_PATH_MAX];
    struct inode_id id = {.kind = l->item.kind, .path = path};
    memset(st, 0, sizeof *st);
    st->st_mode = id.kind == INODE_DIR    ? S_IFDIR
                  : id.kind == INODE_LINK ? S_IFLNK
                  : id.kind == INODE_FREE ? 0
                                          : S_IFREG;
    st->st_ino = 1;
    if (l->item.stage) inode_stat(v, l->item.stage, st);
    if (l->item.stage || !l->dir || l->next < 2 || path_join(l->dir, l->item.name, path, &id.path_len)) return;
    id.scope = id.kind != INODE_DIR && l->dir->scope != SCOPE_HEAD ? SCOPE_NONE : l->dir->scope;
    if (id.kind == INODE_FILE) {
        id.a = l->item.found.obj.id;
        id.b = l->item.found.obj.version;
    }
    if (id.kind == INODE_LINK) id.c = l->item.found.rec.id;
    st->st_ino = inode_public_number(&id);
}

/* The inode of an item. NULL: none, the kernel will look it up: under head what a listing of an older version has may be there no more. */
static struct inode *item_inode(struct view *v, struct listing *l)
{
    char path[VIEW_PATH_MAX];
    size_t len;
    if (!l->dir || atomic_load(&l->dir->kind) != INODE_DIR || l->next < 2) return NULL;
    if (l->dir->scope == SCOPE_HEAD && pgs_store_version(v->store) != pgs_snapshot_version(l->sn)) return NULL;
    if (l->item.kind == INODE_FREE || l->item.stage || path_join(l->dir, l->item.name, path, &len)) return NULL;
    if (l->item.kind == INODE_DIR) return inode_of_dir(v, l->dir->scope, path, len);
    struct found f = l->item.found;
    f.kind = l->item.kind;
    struct record own = {0};
    if (f.kind == INODE_FILE) { /* links bring theirs */
        if (record_get(l->sn, path, len, &own)) return NULL;
        if (own.object != f.obj.id || (own.flags & (REC_LINK | REC_DIR))) record_release(&own);
        f.rec = own;
    }
    struct inode *n = inode_of(v, l->sn, l->dir->scope, path, len, &f);
    record_release(&own);
    if (n) atomic_store(&n->asked_ns, 0);
    return n;
}

static size_t put_item(struct view *v, struct listing *l, fuse_req_t req, char *buf, size_t room, bool plus)
{
    struct stat st;
    size_t need = plus ? fuse_add_direntry_plus(req, NULL, 0, l->item.name, NULL, 0)
                       : fuse_add_direntry(req, NULL, 0, l->item.name, NULL, 0);
    if (need > room) return need;
    if (!plus) {
        item_stat(v, l, &st);
        return fuse_add_direntry(req, buf, room, l->item.name, &st, l->next + 1);
    }
    struct fuse_entry_param e = {0};
    struct inode *n = item_inode(v, l);
    if (n) {
        inode_entry(v, n, &e);
        if (atomic_load(&n->kind) == INODE_DIR) dir_stat(v, n, &e.attr);
        e.entry_timeout = l->dir->scope != SCOPE_HEAD          ? FOREVER
                          : atomic_load(&n->kind) == INODE_DIR ? DIR_SECONDS
                                                               : LISTED_SECONDS;
    } else
        item_stat(v, l, &e.attr);
    return fuse_add_direntry_plus(req, buf, room, l->item.name, &e, l->next + 1);
}

void dir_read(struct view *v, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi,
              bool plus)
{
    struct listing *l;
    size_t used = 0;
    char *buf = malloc(size ? size : 1);
    int rc = buf ? listing_get(v, ino, fi->fh, &l) : -ENOMEM;
    if (rc == 0) {
        rc = seek(v, l, off);
        while (rc >= 0 && l->next >= off && (rc = fetch(v, l)) > 0) {
            size_t n = put_item(v, l, req, buf + used, size - used, plus);
            if (n > size - used) break;
            used += n;
            advance(v, l);
        }
        pthread_mutex_unlock(&l->lock);
    }
    if (rc < 0 && used == 0)
        fuse_reply_err(req, -rc);
    else
        fuse_reply_buf(req, buf, used);
    free(buf);
}

void dir_release(struct view *v, fuse_req_t req, struct fuse_file_info *fi)
{
    if (fi->fh < SHARE_DIRS) {
        pthread_mutex_lock(&v->dirs_lock);
        struct listing *l = v->listings[fi->fh];
        v->listings[fi->fh] = NULL;
        pthread_mutex_unlock(&v->dirs_lock);
        listing_free(v, l);
        share_dir_close(&v->share, (uint32_t)fi->fh);
    }
    if (req) fuse_reply_err(req, 0);
}
