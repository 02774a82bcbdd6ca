/* Pagestone | fuse/lib — libfuse3's low-level API, found when the server starts.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See lib.h. The names of libfuse's symbols are made from the table's, so that a name that is misspelt in one place does not compile.
 */
#define _GNU_SOURCE
#include "fuse/lib.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct fuse_lib fuse_lib;

/* PAGESTONE_LIBFUSE is for tests of what happens without the library, and for libraries in unusual places. */
static void *open_library(void)
{
    const char *named = getenv("PAGESTONE_LIBFUSE");
    if (named && *named) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
    void *lib = dlopen("libfuse3.so.3", RTLD_NOW | RTLD_LOCAL);
    return lib ? lib : dlopen("libfuse3.so.4", RTLD_NOW | RTLD_LOCAL); /* 3.17 and later */
}

int fuse_lib_load(char *why, size_t why_len)
{
    if (fuse_lib.session_new) return 0;
    void *lib = open_library();
    if (!lib) {
        snprintf(
            why, why_len,
            "libfuse3 is not there: install the package fuse3 (Debian: apt install fuse3, which brings libfuse3-3)");
        return -1;
    }
    struct fuse_lib found;
    const char *missing = NULL;
#define X(name)                                                                                                        \
    *(void **)&found.name = dlsym(lib, "fuse_" #name);                                                                 \
    if (!found.name && !missing) missing = "fuse_" #name;
    FUSE_LIB_REQUIRED(X)
#undef X
#define X(name) *(void **)&found.name = dlsym(lib, "fuse_" #name);
    FUSE_LIB_OPTIONAL(X)
#undef X
    if (missing) {
        snprintf(why, why_len, "libfuse3 lacks %s: install version 3.3 or newer (Debian: apt install fuse3)", missing);
        dlclose(lib);
        return -1;
    }
    fuse_lib = found;
    return 0;
}

void fuse_lib_cache_readdir(struct fuse_file_info *fi)
{
    /* writepage, direct_io, keep_cache, [3.14.2 to 3.16: parallel_direct_writes,] flush, nonseekable, flock_release, cache_readdir */
    int major = 3, minor = 14, patch = 0;
    if (fuse_lib_has(pkgversion)) sscanf(fuse_pkgversion(), "%d.%d.%d", &major, &minor, &patch);
    unsigned bit = minor < 14 || (minor == 14 && patch < 2) || minor > 16 ? 6 : 7;
    uint32_t *bits = (uint32_t *)((char *)fi + sizeof fi->flags);
    *bits |= 1u << bit;
}
