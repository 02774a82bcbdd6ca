/* Pagestone | fuse/info — .pagestone/{stat,log,readers}.json, and statfs.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Made when they are opened, read past the page cache (direct_io), so each open shows its own moment. A worker that was born after the open makes the text anew.
 */
#define _GNU_SOURCE
#include "fuse/text.h"
#include "fuse/view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_OPEN 256u
#define LOG_ENTRIES 1000

static const char *const file_names[] = {"stat.json", "log.json", "readers.json"};
#define N_FILES (sizeof file_names / sizeof *file_names)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct text *opened[MAX_OPEN]; /* under lock; a handle is (process id << 32) + index */

/* --- texts -------------------------------------------------------------------------------------------------------------------------- */

static void member(struct text *t, const char *name, uint64_t x)
{
    text_format(t, "  \"%s\": %llu,\n", name, (unsigned long long)x);
}

static int put_stat(struct view *v, struct text *t)
{
    struct pgs_stat s;
    int rc = pgs_stat(v->store, &s, NULL);
    if (rc) return view_errno(rc);
    text_str(t, "{\n  \"path\": ");
    text_json(t, v->path, strlen(v->path));
    text_str(t, ",\n");
    member(t, "version", pgs_store_version(v->store));
    member(t, "objects", s.objects);
    member(t, "versions", s.versions);
    member(t, "live", s.live);
    member(t, "history", s.history);
    member(t, "pinned", s.pinned);
    member(t, "free", s.free);
    member(t, "resident", s.resident);
    member(t, "compressed", s.compressed);
    member(t, "leaked", s.leaked);
    member(t, "meta", s.meta);
    member(t, "quota", s.quota);
    member(t, "file_size", s.file_size);
    member(t, "server_pid", (uint64_t)getpid());
    text_str(t, "  \"requests\": {");
    for (int i = 0; i < REQ_N; i++)
        text_format(t, "%s\"%s\": %llu", i ? ", " : "", share_request_names[i],
                    (unsigned long long)atomic_load(&v->share.head->requests[i]));
    text_str(t, "}\n}\n");
    return 0;
}

struct list {
    struct text *t;
    int n;
};

static void put_string(struct text *t, const char *name, const char *s)
{
    text_format(t, ", \"%s\": ", name);
    if (s)
        text_json(t, s, strlen(s));
    else
        text_str(t, "null");
}

static int put_commit(void *ctx, const struct pgs_commit_info *c)
{
    struct list *l = ctx;
    struct text *t = l->t;
    const char *key = c->keys;
    text_format(t, "%s\n  {\"version\": %llu, \"time_ns\": %llu, \"pid\": %llu, \"bytes_written\": %llu",
                l->n ? "," : "", (unsigned long long)c->version, (unsigned long long)c->time_ns,
                (unsigned long long)c->pid, (unsigned long long)c->bytes_written);
    put_string(t, "command", c->command);
    put_string(t, "message", c->message);
    text_str(t, ", \"keys\": [");
    for (uint64_t i = 0, n = 0; i < c->n_keys; i++, key += strlen(key) + 1) {
        if (*key == 0) continue; /* hidden */
        if (n++) text_str(t, ", ");
        text_json(t, key, strlen(key));
    }
    text_format(t, "], \"keys_truncated\": %s}", c->keys_truncated ? "true" : "false");
    return ++l->n >= LOG_ENTRIES;
}

static int put_reader(void *ctx, const struct pgs_reader *r)
{
    struct list *l = ctx;
    struct text *t = l->t;
    text_format(t, "%s\n  {\"pid\": %llu, \"since_ns\": %llu, \"bytes\": %llu", l->n++ ? "," : "",
                (unsigned long long)r->pid, (unsigned long long)r->since_ns, (unsigned long long)r->bytes);
    put_string(t, "command", r->command);
    text_str(t, ", \"versions\": [");
    for (size_t i = 0; i < r->n_versions; i++)
        text_format(t, "%s%llu", i ? ", " : "", (unsigned long long)r->versions[i]);
    text_str(t, "]}");
    return 0;
}

/* Of file 1 …; the caller frees. */
static int make_text(struct view *v, uint64_t file, struct text **out)
{
    struct text *t = calloc(1, sizeof *t);
    struct list l = {t, 0};
    int rc = 0;
    if (!t) return -ENOMEM;
    if (file == 1)
        rc = put_stat(v, t);
    else {
        text_str(t, "[");
        rc = file == 2 ? pgs_log(v->store, 0, put_commit, &l, NULL) : pgs_readers(v->store, put_reader, &l, NULL);
        rc = rc < 0 ? view_errno(rc) : 0;
        text_str(t, "\n]\n");
    }
    if (rc == 0 && t->failed) rc = -ENOMEM;
    if (rc) {
        text_free(t);
        free(t);
        return rc;
    }
    *out = t;
    return 0;
}

/* --- requests --------------------------------------------------------------------------------------------------------------------------- */

int info_name(unsigned i, const char **name)
{
    if (i >= N_FILES) return -ENOENT;
    *name = file_names[i];
    return 0;
}

struct inode *info_lookup(struct view *v, const char *name)
{
    struct inode_id id = {.kind = INODE_META, .scope = SCOPE_NONE, .path = ".pagestone", .path_len = 10};
    struct inode_fill fill = {0};
    if (name) {
        while (id.a < N_FILES && strcmp(file_names[id.a], name)) id.a++;
        if (id.a++ == N_FILES) return NULL;
    }
    return inode_make(&v->share, &id, &fill);
}

static uint64_t handle_of(uint32_t i)
{
    return (uint64_t)getpid() << 32 | i;
}

void info_open(struct view *v, fuse_req_t req, struct inode *n, struct fuse_file_info *fi)
{
    struct text *t = NULL;
    if ((fi->flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply_err(req, EACCES);
        return;
    }
    int rc = make_text(v, n->a, &t);
    uint32_t i = 0;
    pthread_mutex_lock(&lock);
    while (rc == 0 && i < MAX_OPEN && opened[i]) i++;
    if (rc == 0 && i < MAX_OPEN) opened[i] = t;
    pthread_mutex_unlock(&lock);
    if (rc == 0 && i == MAX_OPEN) {
        text_free(t);
        free(t);
        rc = -ENFILE;
    }
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    fi->fh = handle_of(i);
    fi->direct_io = 1;
    if (fuse_reply_open(req, fi) != 0) info_release(fi);
}

void info_read(struct view *v, fuse_req_t req, struct inode *n, size_t size, off_t off, struct fuse_file_info *fi)
{
    uint32_t i = (uint32_t)fi->fh;
    pthread_mutex_lock(&lock);
    struct text *t = i < MAX_OPEN && fi->fh == handle_of(i) ? opened[i] : NULL;
    pthread_mutex_unlock(&lock);
    struct text *own = NULL;
    int rc = t ? 0 : make_text(v, n->a, &own);
    if (!t) t = own;
    if (rc)
        fuse_reply_err(req, -rc);
    else if (off < 0 || (uint64_t)off >= t->len)
        fuse_reply_buf(req, NULL, 0);
    else
        fuse_reply_buf(req, t->p + off, t->len - (size_t)off < size ? t->len - (size_t)off : size);
    if (own) text_free(own);
    free(own);
}

void info_release(struct fuse_file_info *fi)
{
    uint32_t i = (uint32_t)fi->fh;
    if (i >= MAX_OPEN || fi->fh != handle_of(i)) return;
    pthread_mutex_lock(&lock);
    struct text *t = opened[i];
    opened[i] = NULL;
    pthread_mutex_unlock(&lock);
    if (t) text_free(t);
    free(t);
}

void info_statfs(struct view *v, fuse_req_t req)
{
    struct pgs_stat s;
    struct statvfs st, fs;
    int rc = view_errno(pgs_stat(v->store, &s, NULL));
    if (rc == 0 && statvfs(v->path, &fs)) rc = -errno;
    if (rc) {
        fuse_reply_err(req, -rc);
        return;
    }
    memset(&st, 0, sizeof st);
    st.f_bsize = st.f_frsize = 4096;
    st.f_namemax = 254; /* 250 bytes of a key and ".npy" */
    uint64_t used = (s.live + s.history + s.pinned + s.meta) / 4096, unit = fs.f_frsize ? fs.f_frsize : 4096;
    uint64_t room = fs.f_bavail * unit / 4096 + s.free / 4096; /* free pages of the file mostly have their place */
    st.f_blocks = s.quota ? s.quota / 4096 : used + room;
    uint64_t left = st.f_blocks > used ? st.f_blocks - used : 0;
    st.f_bfree = st.f_bavail = left < room ? left : room;
    st.f_files = s.objects + (UINT64_C(1) << 40);
    st.f_ffree = st.f_favail = UINT64_C(1) << 40;
    fuse_reply_statfs(req, &st);
}
