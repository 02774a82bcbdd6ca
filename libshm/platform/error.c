/* Pagestone | platform/error — words an error once, where it is born.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The text is one line of valid UTF-8 whatever was formatted into it (keys and paths are the user's bytes): control characters become
 * '?', and a cut never leaves half a character, because bindings decode it. Nothing here allocates: PGS_ENOMEM is worded here, too.
 */
#define _GNU_SOURCE
#include "libshm/platform/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libshm/platform/errname.h"

static const char *const phrases[] = {
    [PGS_OK] = "success",
    [PGS_ENOENT] = "no such key, tag or store",
    [PGS_EEXIST] = "exists already",
    [PGS_EINVAL] = "invalid argument",
    [PGS_ENOMEM] = "out of memory or mappings",
    [PGS_EIO] = "input/output error",
    [PGS_EFULL] = "store, disk or quota full",
    [PGS_ECORRUPT] = "damaged data",
    [PGS_ECONFLICT] = "conflicting transaction",
    [PGS_EEXPIRED] = "version is gone",
    [PGS_EREADONLY] = "read only",
    [PGS_ELOCKED] = "locked by another",
    [PGS_ECLOSED] = "closed",
    [PGS_EINTR] = "interrupted",
    [PGS_EACCES] = "permission denied",
    [PGS_ENOTSTORE] = "not a store",
    [PGS_EFORMAT] = "unknown format",
    [PGS_ENOTSUP] = "not supported here",
    [PGS_EFORKED] = "transaction of another process",
    [PGS_E2BIG] = "too large",
    [PGS_ETYPE] = "wrong kind, dtype or shape",
    [PGS_ESTALE] = "store was replaced",
    [PGS_ETIMEDOUT] = "timed out",
    [PGS_ENAME] = "malformed key",
    [PGS_EWORKER] = "worker lost",
    [PGS_EBUG] = "internal inconsistency",
};

const char *pgs_strerror(int code)
{
    /* Unsigned negation: INT_MIN is somebody's wrong argument, not undefined behaviour of ours. */
    unsigned c = code < 0 ? 0u - (unsigned)code : (unsigned)code;
    return c < PGS_ARRAY_LEN(phrases) && phrases[c] ? phrases[c] : "unknown error";
}

const char *pgs_version_string(void)
{
    return "0.1.0";
}

_Noreturn void pgs__bug(const char *file, int line, const char *what)
{
    /* Straight to the descriptor: stdio may be locked by the thread that we interrupted. */
    char text[512];
    int n = snprintf(text, sizeof text, "pagestone: bug at %s:%d: %s\n", file, line, what);
    if (n > 0) {
        ssize_t ignored = write(STDERR_FILENO, text, pgs__min_u64((uint64_t)n, sizeof text - 1));
        (void)ignored;
    }
    abort();
}

const char *pgs__errno_name(int errno_value)
{
    switch (errno_value) {
#define CASE(e)                                                                                                        \
    case e:                                                                                                            \
        return #e;
        PGS__ERRNO_NAMES(CASE)
#undef CASE
    default:
        return NULL;
    }
}

int pgs__errno_of(const char *name)
{
#define MATCH(e)                                                                                                       \
    if (strcmp(name, #e) == 0) return e;
    PGS__ERRNO_NAMES(MATCH)
#undef MATCH
    return atoi(name);
}

/* Bytes of the UTF-8 sequence that `lead` begins; 0: no sequence begins so. */
static size_t utf8_len(unsigned char lead)
{
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead < 0xe0) return 2;
    if (lead >= 0xe0 && lead < 0xf0) return 3;
    return lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
}

/* Make text[] one line of valid UTF-8, in place. */
static void tidy(char *text)
{
    size_t len = strlen(text), i = 0;
    while (i < len) {
        unsigned char *p = (unsigned char *)text + i;
        size_t n = utf8_len(*p), have = 1;
        while (have < n && (p[have] & 0xc0) == 0x80) have++; /* the NUL ends it */
        /* Overlong forms, surrogates and values above U+10FFFF are refused by decoders. */
        bool bad = n == 0 || have < n || *p < 0x20 || *p == 0x7f || (*p == 0xe0 && p[1] < 0xa0) ||
                   (*p == 0xed && p[1] >= 0xa0) || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] >= 0x90);
        if (n > 1 && have < n && i + have == len) { /* cut by the end of the buffer */
            *p = 0;
            return;
        }
        if (bad) *p = '?', n = 1;
        i += n;
    }
}

static bool wanted(struct pgs_error *err, int code)
{
    pgs_assert(code > 0);
    if (!err || err->code != 0) return false;
    err->code = code;
    err->os_errno = 0;
    err->object[0] = 0;
    return true;
}

int pgs__fail(struct pgs_error *err, int code, const char *fmt, ...)
{
    if (wanted(err, code)) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        tidy(err->text);
    }
    return -code;
}

static int code_of_errno(int e)
{
    switch (e) {
    case ENOSPC:
    case EDQUOT:
        return PGS_EFULL;
    case ENOMEM:
        return PGS_ENOMEM;
    case ENOENT:
        return PGS_ENOENT;
    case EEXIST:
        return PGS_EEXIST;
    case EACCES:
    case EPERM:
    case EROFS:
        return PGS_EACCES;
    default:
        return PGS_EIO;
    }
}

int pgs__fail_os(struct pgs_error *err, int errno_value, const char *fmt, ...)
{
    if (errno_value < 0) errno_value = -errno_value; /* the file table speaks in -errno */
    int code = code_of_errno(errno_value);
    if (wanted(err, code)) {
        const char *name = pgs__errno_name(errno_value);
        char tail[40];
        if (name)
            snprintf(tail, sizeof tail, ": %s", name);
        else
            snprintf(tail, sizeof tail, ": errno %d", errno_value);

        err->os_errno = errno_value;
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text - strlen(tail), fmt, ap);
        va_end(ap);
        tidy(err->text); /* before the tail: a cut character must not swallow the name */
        strcat(err->text, tail);
    }
    return -code;
}

int pgs__fail_corrupt(struct pgs_error *err, const char *object, const char *fmt, ...)
{
    if (wanted(err, PGS_ECORRUPT)) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        tidy(err->text);
        if (object) {
            snprintf(err->object, sizeof err->object, "%s", object);
            tidy(err->object);
        }
    }
    return -PGS_ECORRUPT;
}

int pgs__name_object(struct pgs_error *err, int rc, const void *key, size_t key_len)
{
    if (err && rc == -PGS_ECORRUPT && err->object[0] == 0) {
        size_t n = pgs__min_u64(key_len, sizeof err->object - 1);
        memcpy(err->object, key, n);
        err->object[n] = 0;
        /* Hidden keys begin with NUL: show it rather than an empty name. */
        for (size_t i = 0; i < n; i++)
            if (err->object[i] == 0) err->object[i] = '?';
        tidy(err->object);
    }
    return rc;
}
