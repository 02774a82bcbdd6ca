/* Pagestone | txn/anonymous — stores without a name: two memfds, and the handles by which other processes find them.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A descriptor's number means nothing in another process that did not inherit it, but /proc/<pid>/fd/<n> of any living member does, for the same user in the same PID namespace
 * (HAZARDS 23). Members publish their two numbers in their slots; a handle lists some of them, so that it works as long as one of those lives and keeps the store open:
 *
 *     offset  what
 *     0       magic
 *     8       uuid of the store
 *     24      inode of the page file
 *     32      number of members, 1 to 8
 *     36      per member: u32 pid, u32 descriptor of the page file, u32 of the control file
 *
 * A handle is input: what is found behind a number is believed only when superblock and control file carry the uuid.
 *
 * Where memfds cannot be opened again the store lies in a directory (anonymous_dir.c), and its handle is magic, uuid,
 * length (u32) and path of the base.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "libshm/platform/caps.h"
#include "libshm/txn/session_impl.h"

#define HANDLE_MAGIC 0x31646e61686e6f41ull
#define HANDLE_HEAD 36u
#define DIR_MAGIC 0x31726964686e6f41ull
#define DIR_HEAD 28u
#define MEMBER_BYTES 12u
#define MEMBERS_MAX 8u

static const struct pgs_options defaults = {.mode = PGS_MODE_A};

struct member {
    uint32_t pid, pages, control;
};

/* --- making one --------------------------------------------------------------------------------------------------------- */
static int make_control(struct pgs__pagefile *pf, const struct pgs__super *super, struct pgs__ctl *ctl,
                        struct pgs_error *err)
{
    int fd = pgs__file_ops->memfd("pagestone-control");
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot create anonymous memory");
    int rc = pgs__control_fill(ctl, fd, pf, super, err);
    if (rc) pgs__file_ops->close(fd);
    return rc;
}

static int usable(struct pgs_error *err)
{
    if (sysconf(_SC_PAGESIZE) != PGS_PAGE_SIZE)
        return pgs__fail(err, PGS_ENOTSUP, "this kernel has pages of %ld bytes; Pagestone needs 4096",
                         sysconf(_SC_PAGESIZE));
    if (!pgs__cap(PGS__CAP_OFD))
        return pgs__fail(err, PGS_ENOTSUP, "this system has no open-file-description locks (%s)",
                         pgs__cap_reason(PGS__CAP_OFD));
    return 0;
}

int pgs__session_open_anonymous(const struct pgs_options *opt, struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__ctl ctl = {.fd = -1};
    struct pgs__super super;
    if (!opt) opt = &defaults;
    if (opt->mode == PGS_MODE_R || opt->mode == PGS_MODE_RPLUS)
        return pgs__fail(err, PGS_EINVAL, "a store without a path is always a new one: modes \"a\", \"w\" and \"x\"");
    int rc = usable(err);
    if (rc) return rc;
    if (!pgs__cap(PGS__CAP_PROC_FD)) return pgs__anonymous_dir_make(opt, out, err);
    int fd = pgs__file_ops->memfd("pagestone-pages");
    if (fd < 0) return pgs__fail_os(err, -fd, "cannot create anonymous memory");
    rc = pgs__pagefile_init(&pf, fd, -1, NULL, true, err);
    if (rc) {
        pgs__file_ops->close(fd);
        return rc;
    }
    rc = pgs__found(&pf, opt, &super, err);
    if (rc == 0) rc = make_control(&pf, &super, &ctl, err);
    if (rc == 0) rc = pgs__session_make(&pf, &ctl, super.created_ns, false, NULL, out, err);
    if (rc == 0) return 0;
    pgs__ctl_unmap(&ctl);
    pgs__pagefile_fini(&pf);
    return rc;
}

/* --- handles ----------------------------------------------------------------------------------------------------------------- */
/* This process first, then others that have published their numbers. */
static uint32_t list_members(struct pgs__session *s, struct member *m)
{
    uint32_t n = 0;
    m[n++] = (struct member){(uint32_t)getpid(), (uint32_t)s->pf.fd, (uint32_t)s->ctl.fd};
    uint32_t used = pgs__min_u64(atomic_load(&s->ctl.c->n_slots_used), PGS__N_SLOTS) & UINT32_MAX;
    for (uint32_t i = 0; i < used && n < MEMBERS_MAX; i++) {
        struct pgs__slot *slot = pgs__ctl_slot(&s->ctl, i);
        uint64_t fds = atomic_load(&slot->fds), pid = atomic_load(&slot->pid);
        if (i == s->slot || atomic_load(&slot->tag) == 0 || atomic_load(&slot->flags) & PGS__SLOT_SPARE || fds == 0)
            continue;
        m[n++] = (struct member){(uint32_t)pid, (uint32_t)fds, (uint32_t)(fds >> 32)};
    }
    return n;
}

static size_t dir_handle(const struct pgs__session *s, void *buf, size_t cap)
{
    uint8_t out[DIR_HEAD + PGS__ANONYMOUS_BASE_MAX];
    uint64_t magic = DIR_MAGIC;
    uint32_t base = (uint32_t)(strrchr(s->pf.path, '/') - s->pf.path);
    pgs_assert(base <= PGS__ANONYMOUS_BASE_MAX);
    memcpy(out, &magic, 8);
    memcpy(out + 8, s->pf.uuid, 16);
    memcpy(out + 24, &base, 4);
    memcpy(out + DIR_HEAD, s->pf.path, base);
    if (cap) memcpy(buf, out, pgs__min_u64(DIR_HEAD + base, cap));
    return DIR_HEAD + base;
}

size_t pgs__session_handle(struct pgs__session *s, void *buf, size_t cap)
{
    uint8_t out[HANDLE_HEAD + MEMBERS_MAX * MEMBER_BYTES];
    struct member m[MEMBERS_MAX];
    if (!s->pf.anonymous) {
        size_t len = strlen(s->pf.path);
        if (cap) memcpy(buf, s->pf.path, pgs__min_u64(len, cap));
        return len;
    }
    if (s->pf.path) return dir_handle(s, buf, cap);
    uint32_t n = list_members(s, m);
    uint64_t magic = HANDLE_MAGIC;
    memcpy(out, &magic, 8);
    memcpy(out + 8, s->pf.uuid, 16);
    memcpy(out + 24, &s->pf.ino, 8);
    memcpy(out + 32, &n, 4);
    memcpy(out + HANDLE_HEAD, m, n * MEMBER_BYTES);
    size_t len = HANDLE_HEAD + n * MEMBER_BYTES;
    if (cap) memcpy(buf, out, pgs__min_u64(len, cap));
    return len;
}

static int open_fd_of(uint32_t pid, uint32_t n)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/fd/%u", pid, n);
    return pgs__file_ops->open(path, O_RDWR, 0);
}

/* A page file of ours with that uuid behind fd, which is owned in any case. */
static int wrap_member(int fd, const uint8_t uuid[16], struct pgs__pagefile *pf, struct pgs__super *super)
{
    struct stat st;
    enum pgs__fs_kind kind;
    char name[32];
    /* Only files in memory are looked at further: the number may be anything's by now, a device's for instance. */
    int rc = pgs__file_ops->fstat(fd, &st);
    if (rc == 0 && !S_ISREG(st.st_mode)) rc = -ESTALE;
    if (rc == 0) rc = pgs__fs_kind(fd, &kind, name);
    if (rc == 0 && kind != PGS__FS_TMPFS) rc = -ESTALE;
    if (rc == 0) rc = pgs__pagefile_init(pf, fd, -1, NULL, true, NULL);
    if (rc) {
        pgs__file_ops->close(fd);
        return rc;
    }
    rc = pgs__super_read(pf, super, false, NULL);
    if (rc == 0 && memcmp(super->uuid, uuid, 16) == 0) {
        memcpy(pf->uuid, uuid, 16);
        return 0;
    }
    pgs__pagefile_fini(pf);
    return -ESTALE;
}

static int map_member(int fd, const struct pgs__pagefile *pf, struct pgs__ctl *ctl)
{
    bool fresh = false;
    int rc = pgs__ctl_map(ctl, fd, true, pf->uuid, pf->ino, &fresh, NULL);
    if (rc == 0 && !fresh) return 0;
    pgs__file_ops->close(fd);
    return -ESTALE;
}

static int join_member(const struct member *m, const uint8_t uuid[16], struct pgs__session **out, struct pgs_error *err)
{
    struct pgs__pagefile pf;
    struct pgs__super super;
    struct pgs__ctl ctl = {.fd = -1};
    int fd = open_fd_of(m->pid, m->pages);
    if (fd < 0) return fd;
    int rc = wrap_member(fd, uuid, &pf, &super);
    if (rc) return rc;
    fd = open_fd_of(m->pid, m->control);
    rc = fd < 0 ? fd : map_member(fd, &pf, &ctl);
    if (rc == 0) rc = pgs__session_make(&pf, &ctl, super.created_ns, false, NULL, out, err);
    if (rc == 0) return 0;
    pgs__ctl_unmap(&ctl);
    pgs__pagefile_fini(&pf);
    return rc;
}

/* A path is a handle, too. */
static int open_path_handle(const char *handle, size_t len, const struct pgs_options *opt, struct pgs__session **out,
                            struct pgs_error *err)
{
    char path[4200];
    if (len >= sizeof path) return pgs__fail(err, PGS_EINVAL, "a handle with a path of %zu bytes", len);
    memcpy(path, handle, len);
    path[len] = 0;
    return pgs__session_open(path, opt, out, err);
}

static bool is_dir_handle(const uint8_t *p, size_t len)
{
    return len > DIR_HEAD && len <= DIR_HEAD + PGS__ANONYMOUS_BASE_MAX && pgs__get_u64(p) == DIR_MAGIC &&
           pgs__get_u32(p + 24) == len - DIR_HEAD && p[DIR_HEAD] == '/' &&
           memchr(p + DIR_HEAD, 0, len - DIR_HEAD) == NULL;
}

int pgs__session_open_handle(const void *handle, size_t len, const struct pgs_options *opt, struct pgs__session **out,
                             struct pgs_error *err)
{
    const uint8_t *p = handle;
    if (len > 0 && p[0] == '/') return open_path_handle(handle, len, opt, out, err);
    bool in_dir = is_dir_handle(p, len);
    uint32_t n = len >= HANDLE_HEAD ? pgs__get_u32(p + 32) : 0;
    if (!in_dir &&
        (n < 1 || n > MEMBERS_MAX || len != HANDLE_HEAD + n * MEMBER_BYTES || pgs__get_u64(p) != HANDLE_MAGIC))
        return pgs__fail(err, PGS_EINVAL, "these %zu bytes are no handle of a store", len);
    struct pgs__session *s = pgs__session_find_uuid(p + 8);
    if (s) {
        *out = s;
        return 0;
    }
    int rc = usable(err);
    if (rc) return rc;
    if (in_dir)
        return pgs__anonymous_dir_join((const char *)p + DIR_HEAD, len - DIR_HEAD, p + 8, opt ? opt : &defaults, out,
                                       err);
    if (!pgs__cap(PGS__CAP_PROC_FD))
        return pgs__fail(err, PGS_ENOTSUP, "the anonymous store is a memfd, which only /proc/self/fd can open again");
    for (uint32_t i = 0; i < n; i++) {
        struct member m;
        memcpy(&m, p + HANDLE_HEAD + i * MEMBER_BYTES, sizeof m);
        struct pgs_error e = {0};
        if (join_member(&m, p + 8, out, &e) == 0) return 0;
        if (e.code && err) *err = e; /* found, and something else failed */
    }
    if (err && err->code) return -err->code;
    return pgs__fail(
        err, PGS_ENOENT,
        "no process that has the anonymous store open can be reached (same user and PID namespace needed)");
}
