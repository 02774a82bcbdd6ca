/* Pagestone | fuse/scope — which version a directory of the root shows, and when versions were made.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "fuse/view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int view_errno(int rc)
{
    static const int of[] = {
        [PGS_ENOENT] = ENOENT,
        [PGS_EEXIST] = EEXIST,
        [PGS_EINVAL] = EINVAL,
        [PGS_ENOMEM] = ENOMEM,
        [PGS_EIO] = EIO,
        [PGS_EFULL] = ENOSPC,
        [PGS_ECORRUPT] = EIO,
        [PGS_ECONFLICT] = EBUSY,
        [PGS_EEXPIRED] = ESTALE,
        [PGS_EREADONLY] = EROFS,
        [PGS_ELOCKED] = EAGAIN,
        [PGS_ECLOSED] = EIO,
        [PGS_EINTR] = EINTR,
        [PGS_EACCES] = EACCES,
        [PGS_ENOTSTORE] = EIO,
        [PGS_EFORMAT] = EIO,
        [PGS_ENOTSUP] = EOPNOTSUPP,
        [PGS_EFORKED] = EIO,
        [PGS_E2BIG] = EFBIG,
        [PGS_ETYPE] = EINVAL,
        [PGS_ESTALE] = ENODEV,
        [PGS_ETIMEDOUT] = ETIMEDOUT,
        [PGS_ENAME] = EINVAL,
        [PGS_EWORKER] = EIO,
        [PGS_EBUG] = EIO,
    };
    if (rc >= 0) return 0;
    size_t i = (size_t)-rc;
    return i < sizeof of / sizeof *of && of[i] ? -of[i] : -EIO;
}

int scope_open(struct view *v, uint64_t scope, pgs_snapshot **out)
{
    if (scope == SCOPE_HEAD) return view_errno(pgs_snapshot_head(v->store, out, NULL));
    if (scope > INT64_MAX) return -ESTALE;
    return view_errno(pgs_snapshot_at(v->store, (int64_t)scope, out, NULL));
}

/* --- names of versions ------------------------------------------------------------------------------------------------------- */

struct reader {
    const char *p, *end;
};

static bool number(struct reader *r, size_t n_digits, int *out)
{
    *out = 0;
    if ((size_t)(r->end - r->p) < n_digits) return false;
    for (size_t i = 0; i < n_digits; i++, r->p++) {
        if (*r->p < '0' || *r->p > '9') return false;
        *out = *out * 10 + (*r->p - '0');
    }
    return true;
}

static bool take(struct reader *r, char c)
{
    if (r->p == r->end || *r->p != c) return false;
    r->p++;
    return true;
}

/* ".5", to nanoseconds */
static bool fraction(struct reader *r, long *ns)
{
    long scale = 100000000;
    *ns = 0;
    if (!take(r, '.') && !take(r, ',')) return true;
    const char *start = r->p;
    for (; r->p < r->end && *r->p >= '0' && *r->p <= '9'; r->p++, scale /= 10) *ns += (*r->p - '0') * scale;
    return r->p > start;
}

/* "Z", "+01:00", "-0530", "+01" or nothing (local) */
static bool zone(struct reader *r, bool *local, long *offset_s)
{
    int h, m = 0;
    *local = r->p == r->end;
    *offset_s = 0;
    if (*local || ((*r->p == 'Z' || *r->p == 'z') && ++r->p == r->end)) return true;
    if (r->p == r->end) return false;
    bool minus = *r->p == '-';
    if (!minus && *r->p != '+') return false;
    r->p++;
    if (!number(r, 2, &h)) return false;
    take(r, ':');
    if (r->p < r->end && !number(r, 2, &m)) return false;
    *offset_s = (h * 3600L + m * 60L) * (minus ? -1 : 1);
    return r->p == r->end && h < 24 && m < 60;
}

static bool date(struct reader *r, struct tm *t)
{
    if (!number(r, 4, &t->tm_year) || !take(r, '-') || !number(r, 2, &t->tm_mon) || !take(r, '-') ||
        !number(r, 2, &t->tm_mday))
        return false;
    t->tm_year -= 1900;
    t->tm_mon--;
    return t->tm_mon >= 0 && t->tm_mon < 12 && t->tm_mday >= 1 && t->tm_mday <= 31;
}

static bool clock_time(struct reader *r, struct tm *t, long *ns)
{
    if (!number(r, 2, &t->tm_hour)) return false;
    if (take(r, ':')) {
        if (!number(r, 2, &t->tm_min)) return false;
        if (take(r, ':') && (!number(r, 2, &t->tm_sec) || !fraction(r, ns))) return false;
    }
    return t->tm_hour < 24 && t->tm_min < 60 && t->tm_sec < 60;
}

bool scope_time(const char *p, size_t len, uint64_t *time_ns)
{
    struct reader r = {p, p + len};
    struct tm t = {.tm_isdst = -1};
    long ns = 0, offset = 0;
    bool local = true;
    if (!date(&r, &t)) return false;
    if (r.p < r.end) {
        if (!take(&r, 'T') && !take(&r, 't') && !take(&r, ' ')) return false;
        if (!clock_time(&r, &t, &ns) || !zone(&r, &local, &offset)) return false;
    }
    int day = t.tm_mday;
    time_t s = local ? mktime(&t) : timegm(&t);
    if (t.tm_mday != day && !local)
        return false; /* 31 April; a local time may move to another day by its zone's rules */
    if (s == (time_t)-1 || s - offset < 0) return false;
    *time_ns = (uint64_t)(s - offset) * 1000000000u + (uint64_t)ns;
    return true;
}

static bool all_digits(const char *p, size_t len)
{
    if (len == 0 || len > 18) return false;
    for (size_t i = 0; i < len; i++)
        if (p[i] < '0' || p[i] > '9') return false;
    return true;
}

int scope_parse(struct view *v, const char *name, size_t len, uint64_t *version)
{
    pgs_snapshot *sn;
    uint64_t t;
    int rc;
    bool minus = len && *name == '-';
    if (all_digits(name + minus, len - minus)) {
        int64_t n = 0;
        for (size_t i = minus; i < len; i++) n = n * 10 + (name[i] - '0');
        if (minus && n == 0) return -ENOENT;
        rc = pgs_snapshot_at(v->store, minus ? -n : n, &sn, NULL);
    } else if (len && *name >= '0' && *name <= '9') /* no tag begins with a digit */
        rc = scope_time(name, len, &t) ? pgs_snapshot_at_time(v->store, t, &sn, NULL) : -PGS_ENOENT;
    else
        rc = len ? pgs_snapshot_at_tag(v->store, name, len, &sn, NULL) : -PGS_ENOENT;
    if (rc == -PGS_EEXPIRED || rc == -PGS_EINVAL || rc == -PGS_ENAME) return -ENOENT; /* gone, or never was */
    if (rc) return view_errno(rc);
    *version = pgs_snapshot_version(sn);
    pgs_snapshot_unref(sn);
    return 0;
}

/* --- times of versions ---------------------------------------------------------------------------------------------------------- */

/* The log is read once; later only what is newer than the newest that is known. */
struct walk {
    struct view *v;
    uint64_t known;
};

static int note(void *ctx, const struct pgs_commit_info *c)
{
    struct walk *w = ctx;
    struct view *v = w->v;
    if (c->version <= w->known) return 1;
    if (v->n_times == v->cap_times) {
        size_t cap = v->cap_times ? 2 * v->cap_times : 1024;
        struct version_time *more = realloc(v->times, cap * sizeof *more);
        if (!more) return 1;
        v->times = more;
        v->cap_times = cap;
    }
    v->times[v->n_times++] = (struct version_time){c->version, c->time_ns};
    return 0;
}

static void learn(struct view *v)
{
    size_t n = v->n_times;
    struct walk w = {.v = v, .known = n ? v->times[n - 1].version : 0};
    pgs_log(v->store, 0, note, &w, NULL);
    for (size_t lo = n, hi = v->n_times; lo + 1 < hi; lo++, hi--) { /* it comes newest first */
        struct version_time t = v->times[lo];
        v->times[lo] = v->times[hi - 1];
        v->times[hi - 1] = t;
    }
}

int64_t version_time(struct view *v, uint64_t version)
{
    int64_t t = v->born_ns;
    pthread_mutex_lock(&v->times_lock);
    if (v->n_times == 0 || version > v->times[v->n_times - 1].version) learn(v);
    size_t lo = 0, hi = v->n_times;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (v->times[mid].version <= version)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo > 0) t = (int64_t)v->times[lo - 1].time_ns;
    pthread_mutex_unlock(&v->times_lock);
    return t;
}
