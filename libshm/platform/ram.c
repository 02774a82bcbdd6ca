/* Pagestone | platform/ram — reading the memory cgroups and /proc/meminfo.
 * SPDX-License-Identifier: Apache-2.0
 *
 * /proc/self/cgroup names our group relative to the root of the hierarchy, /proc/self/mountinfo where a hierarchy is mounted and which of its groups that mount shows: in
 * a container often our own one only. What neither shows limits us all the same, and is not seen.
 */
#define _GNU_SOURCE
#include "libshm/platform/ram.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define HEAD_PART 16u
#define HEAD_LEAST (64ull << 20)
#define HEAD_MOST (4ull << 30)
#define NO_LIMIT (1ull << 60) /* version 1 writes a number near 2^63 */
#define PLENTY (1ull << 30)   /* so much beyond the need: it does not matter what could be dropped */
#define MAX_LEVELS 64u
#define PATH_SIZE 1024u
#define MOUNTINFO_SIZE (256u << 10)

void (*pgs__ram_source)(uint64_t need, struct pgs__ram *out);
const char *pgs__ram_root;

/* --- small files --------------------------------------------------------------------------------------------------------------- */

/* Up to cap - 1 bytes and a zero. false: it cannot be read. No stdio: its buffer is heap memory, and locks. */
static bool read_file(const char *path, char *buf, size_t cap)
{
    size_t n = 0;
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    while (n < cap - 1 && (got = read(fd, buf + n, cap - 1 - n)) > 0) n += (size_t)got;
    close(fd);
    buf[n] = 0;
    return got >= 0 && n > 0;
}

static bool read_below_root(const char *path, char *buf, size_t cap)
{
    char full[PATH_SIZE];
    int n = snprintf(full, sizeof full, "%s%s", pgs__ram_root ? pgs__ram_root : "", path);
    return n > 0 && (size_t)n < sizeof full && read_file(full, buf, cap);
}

/* The number in dir/name; UINT64_MAX for "max", and when there is none. */
static uint64_t number_in(const char *dir, const char *name)
{
    char path[PATH_SIZE], text[64], *end;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path) return UINT64_MAX;
    if (!read_file(path, text, sizeof text)) return UINT64_MAX;
    uint64_t v = strtoull(text, &end, 10);
    return end == text ? UINT64_MAX : v;
}

/* The number behind `key`, which ends with its separator, at the beginning of a line. false: there is no such line. */
static bool number_after(const char *text, const char *key, uint64_t *out)
{
    size_t len = strlen(key);
    for (const char *p = text; p; p = strchr(p, '\n')) {
        p += *p == '\n';
        if (strncmp(p, key, len) != 0) continue;
        *out = strtoull(p + len, NULL, 10);
        return true;
    }
    return false;
}

/* --- what limits --------------------------------------------------------------------------------------------------------------- */

uint64_t pgs__ram_head_room(uint64_t total)
{
    uint64_t part = pgs__min_u64(pgs__max_u64(total / HEAD_PART, HEAD_LEAST), HEAD_MOST);
    return pgs__min_u64(part, total / 4);
}

static void offer(struct pgs__ram *m, enum pgs__ram_by by, uint64_t total, uint64_t available)
{
    uint64_t kept = pgs__ram_head_room(total);
    uint64_t left = available > kept ? available - kept : 0;
    if (m->by != PGS__RAM_NOTHING && left >= m->left) return;
    *m = (struct pgs__ram){by, available, left, total, kept};
}

/* Page cache of a group that the kernel drops rather than kill. Used files count half: among them are the programs that run. */
static uint64_t droppable(const char *dir, bool v2)
{
    char path[PATH_SIZE], text[8192];
    uint64_t idle = 0, used = 0, slab = 0;
    if ((size_t)snprintf(path, sizeof path, "%s/memory.stat", dir) >= sizeof path) return 0;
    if (!read_file(path, text, sizeof text)) return 0;
    (void)number_after(text, v2 ? "inactive_file " : "total_inactive_file ", &idle);
    (void)number_after(text, v2 ? "active_file " : "total_active_file ", &used);
    if (v2) (void)number_after(text, "slab_reclaimable ", &slab);
    return idle + used / 2 + slab / 2;
}

static void look_group(const char *dir, bool v2, uint64_t need, struct pgs__ram *m)
{
    uint64_t limit = number_in(dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (limit >= NO_LIMIT) return;
    uint64_t used = number_in(dir, v2 ? "memory.current" : "memory.usage_in_bytes");
    if (used == UINT64_MAX) return;
    uint64_t free_bytes = limit > used ? limit - used : 0;
    if (need >= NO_LIMIT || free_bytes < need + pgs__ram_head_room(limit) + PLENTY)
        free_bytes += pgs__min_u64(droppable(dir, v2), used);
    offer(m, PGS__RAM_CGROUP, limit, free_bytes);
}

/* --- where the groups are -------------------------------------------------------------------------------------------------------- */

struct mount {
    char point[256], root[256]; /* point: with pgs__ram_root in front; "" when there is none */
};
struct mounts {
    struct mount v1, v2;
};

static bool has_word(const char *list, const char *end, const char *word)
{
    size_t len = strlen(word);
    for (const char *p = list; p < end; p += strcspn(p, ",\n") + 1)
        if ((size_t)(end - p) >= len && strncmp(p, word, len) == 0 && (p[len] == ',' || p + len == end)) return true;
    return false;
}

static bool copy_word(char *out, size_t cap, const char *from, const char *prefix)
{
    size_t n = strcspn(from, " \n"), have = strlen(prefix);
    if (n + have >= cap) return false;
    memcpy(out, prefix, have);
    memcpy(out + have, from, n);
    out[have + n] = 0;
    return true;
}

/* One line: id parent major:minor root point options … - type source options. */
static void note_mount(const char *line, size_t len, struct mounts *out)
{
    const char *end = line + len, *word = line, *root = NULL, *point = NULL;
    for (int i = 0; i < 5; i++) {
        if (i == 3) root = word;
        if (i == 4) point = word;
        word = memchr(word, ' ', (size_t)(end - word));
        if (!word) return;
        word++;
    }
    const char *type = memmem(word, (size_t)(end - word), " - ", 3);
    if (!type && strncmp(word, "- ", 2) == 0) type = word - 1;
    if (!type) return;
    type += 3;
    bool v2 = strncmp(type, "cgroup2 ", 8) == 0;
    const char *options = memchr(type, ' ', (size_t)(end - type));
    if (options) options = memchr(options + 1, ' ', (size_t)(end - options - 1));
    bool v1 = strncmp(type, "cgroup ", 7) == 0 && options && has_word(options + 1, end, "memory");
    if (!v1 && !v2) return;
    struct mount *m = v2 ? &out->v2 : &out->v1;
    if (m->point[0]) return; /* the first one */
    if (!copy_word(m->root, sizeof m->root, root, "") ||
        !copy_word(m->point, sizeof m->point, point, pgs__ram_root ? pgs__ram_root : ""))
        m->point[0] = 0;
}

static void find_mounts(struct mounts *out)
{
    *out = (struct mounts){0};
    char *text = malloc(MOUNTINFO_SIZE); /* not through platform/mem: a look that finds no memory finds no limit */
    if (text && read_below_root("/proc/self/mountinfo", text, MOUNTINFO_SIZE))
        for (const char *p = text; *p; p += p[strcspn(p, "\n")] ? strcspn(p, "\n") + 1 : strlen(p))
            note_mount(p, strcspn(p, "\n"), out);
    free(text);
}

/* Looked for once. Who comes while another thread looks, or did at the fork, looks for itself. */
static const struct mounts *mounts_of(struct mounts *own)
{
    static struct mounts kept;
    static _Atomic int state; /* 0: nobody looked, 1: somebody is looking, 2: kept is there */
    int none = 0;
    if (!pgs__ram_root) {
        if (atomic_load(&state) == 2) return &kept;
        if (atomic_compare_exchange_strong(&state, &none, 1)) {
            find_mounts(&kept);
            atomic_store(&state, 2);
            return &kept;
        }
    }
    find_mounts(own);
    return own;
}

/* Every group from `path` (of /proc/self/cgroup) up to what the mount shows. */
static void look_up_from(const struct mount *mt, const char *path, bool v2, uint64_t need, struct pgs__ram *m)
{
    char dir[PATH_SIZE];
    size_t base = strlen(mt->point), root = strcmp(mt->root, "/") == 0 ? 0 : strlen(mt->root), n = strcspn(path, "\n");
    if (base == 0) return;
    /* A group outside of what is mounted ("/..", or another root): the mount point is as near as we get. */
    bool below = n >= root && strncmp(path, mt->root, root) == 0 && (n == root || path[root] == '/') &&
                 strncmp(path, "/..", 3) != 0;
    if (!below) n = root = 0;
    if (base + (n - root) >= sizeof dir) return;
    memcpy(dir, mt->point, base);
    memcpy(dir + base, path + root, n - root);
    dir[base + n - root] = 0;
    for (unsigned level = 0; level < MAX_LEVELS; level++) {
        size_t len = strlen(dir);
        while (len > base && dir[len - 1] == '/') dir[--len] = 0;
        look_group(dir, v2, need, m);
        if (len <= base) return;
        while (len > base && dir[len - 1] != '/') dir[--len] = 0;
    }
}

static void look_groups(uint64_t need, struct pgs__ram *m)
{
    char text[4096];
    struct mounts own;
    if (!read_below_root("/proc/self/cgroup", text, sizeof text)) return;
    const struct mounts *mt = mounts_of(&own);
    for (const char *p = text; *p; p += p[strcspn(p, "\n")] ? strcspn(p, "\n") + 1 : strlen(p)) {
        const char *list = p + strcspn(p, ":\n");
        if (*list != ':') continue;
        list++;
        const char *path = list + strcspn(list, ":\n");
        if (*path != ':') continue;
        if (strncmp(p, "0::", 3) == 0)
            look_up_from(&mt->v2, path + 1, true, need, m);
        else if (has_word(list, path, "memory"))
            look_up_from(&mt->v1, path + 1, false, need, m);
    }
}

/* --- the machine ------------------------------------------------------------------------------------------------------------------- */

static void look_machine(struct pgs__ram *m)
{
    char text[4096];
    uint64_t total, available;
    struct sysinfo si;
    if (read_below_root("/proc/meminfo", text, sizeof text) && number_after(text, "MemTotal:", &total) &&
        number_after(text, "MemAvailable:", &available)) {
        offer(m, PGS__RAM_MACHINE, total << 10, available << 10);
        return;
    }
    if (sysinfo(&si) != 0) return;
    total = (uint64_t)si.totalram * si.mem_unit;
    available = ((uint64_t)si.freeram + si.bufferram) * si.mem_unit;
    uint64_t shared = (uint64_t)si.sharedram * si.mem_unit;
    if (total / 2 > shared) available = pgs__max_u64(available, total / 2 - shared);
    offer(m, PGS__RAM_MACHINE, total, available);
}

void pgs__ram_look(uint64_t need, struct pgs__ram *out)
{
    *out = (struct pgs__ram){.available = UINT64_MAX, .left = UINT64_MAX, .total = UINT64_MAX};
    if (pgs__ram_source) {
        pgs__ram_source(need, out);
        return;
    }
    look_machine(out);
    look_groups(need, out);
}
