/* Pagestone | platform/inject — kill points, planted bugs and failing calls: the state behind the macros.
 * SPDX-License-Identifier: Apache-2.0
 *
 * All state is process-wide atomics: a test forks, sets the environment and runs into the point, with any number of threads.
 * Nothing here locks or allocates, so that a kill point may stand anywhere, in a fork hook as well.
 */
#define _GNU_SOURCE
#include "libshm/platform/inject.h"

#ifdef PGS_TESTING

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libshm/platform/errname.h"

/* --- kill points ---------------------------------------------------------------------------------------------------- */
static _Atomic uint64_t kill_visits, kill_spec; /* kill_spec: hash of the text that kill_visits counts for */

static uint64_t text_hash(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h | 1;
}

/* Does "name:N" (or "name") in `spec` mean this point? *nth gets N. */
static bool spec_names(const char *spec, const char *name, uint64_t *nth)
{
    size_t n = strlen(name);
    if (strncmp(spec, name, n) != 0 || (spec[n] != 0 && spec[n] != ':')) return false;
    *nth = spec[n] == ':' ? strtoull(spec + n + 1, NULL, 10) : 1;
    return true;
}

void pgs__kill_point(const char *name)
{
    uint64_t nth;
    const char *spec = getenv("PAGESTONE_KILL"); /* each time: tests set it between fork and the run */
    if (spec && spec_names(spec, name, &nth)) {
        uint64_t h = text_hash(spec);
        if (atomic_exchange(&kill_spec, h) != h) atomic_store(&kill_visits, 0);
        if (atomic_fetch_add(&kill_visits, 1) + 1 == nth) {
            kill(getpid(), SIGKILL);
            for (;;) pause(); /* another thread was chosen to die first */
        }
    }
    spec = getenv("PAGESTONE_STOP");
    if (spec && spec_names(spec, name, &nth)) raise(SIGSTOP);
}

/* --- planted bugs --------------------------------------------------------------------------------------------------- */
#define PLANT_UNREAD 0
#define PLANT_NONE (-1)
static _Atomic int plant = PLANT_UNREAD;

bool pgs__planted(int n)
{
    int p = atomic_load_explicit(&plant, memory_order_relaxed); /* a flag of tests: orders nothing */
    if (PGS_UNLIKELY(p == PLANT_UNREAD)) {
        const char *s = getenv("PAGESTONE_PLANT");
        int unread = PLANT_UNREAD;
        p = s && atoi(s) > 0 ? atoi(s) : PLANT_NONE;
        if (!atomic_compare_exchange_strong(&plant, &unread, p)) p = unread;
    }
    return p == n;
}

void pgs__inject_plant(int n)
{
    atomic_store(&plant, n > 0 ? n : PLANT_NONE);
}

/* --- failing calls ----------------------------------------------------------------------------------------------------- */
static struct failure {
    _Atomic uint64_t count;   /* calls so far */
    _Atomic uint64_t fail_at; /* absolute number of the failing call; 0: none */
    _Atomic int errno_value;  /* stored before fail_at */
    _Atomic bool for_good;
} failures[PGS__FAIL_N_KINDS];
static _Atomic bool env_read;

void pgs__inject_fail(enum pgs__fail_kind kind, uint64_t nth, int errno_value, bool for_good)
{
    struct failure *f = &failures[kind];
    atomic_store(&env_read, true); /* a call wins over the environment */
    atomic_store(&f->fail_at, 0);
    atomic_store(&f->errno_value, errno_value);
    atomic_store(&f->for_good, for_good);
    atomic_store(&f->fail_at, nth ? atomic_load(&f->count) + nth : 0);
}

void pgs__inject_clear(void)
{
    for (int i = 0; i < PGS__FAIL_N_KINDS; i++) atomic_store(&failures[i].fail_at, 0);
    atomic_store(&env_read, true);
    atomic_store(&plant, PLANT_UNREAD);
    atomic_store(&kill_visits, 0);
}

/* PAGESTONE_FAIL="kind:n:errno[:forever]"; malformed text is a mistake in a test, so it is loud. */
static void read_env(void)
{
    static const char *const names[] = {"file", "mem", "map"};
    const char *s = getenv("PAGESTONE_FAIL");
    if (!s || !*s) return;
    char kind[8], value[24], rest[16] = "";
    unsigned long long nth;
    int n = sscanf(s, "%7[a-z]:%llu:%23[A-Z0-9]:%15s", kind, &nth, value, rest);
    PGS_BUG_ON(n < 3 || (n == 4 && strcmp(rest, "forever") != 0));
    for (int i = 0; i < PGS__FAIL_N_KINDS; i++)
        if (strcmp(kind, names[i]) == 0) {
            pgs__inject_fail((enum pgs__fail_kind)i, nth, pgs__errno_of(value), n == 4);
            return;
        }
    pgs__bug(__FILE__, __LINE__, "PAGESTONE_FAIL names no kind");
}

int pgs__inject_check(enum pgs__fail_kind kind)
{
    if (PGS_UNLIKELY(!atomic_load(&env_read)) && !atomic_exchange(&env_read, true)) read_env();
    struct failure *f = &failures[kind];
    uint64_t n = atomic_fetch_add(&f->count, 1) + 1, at = atomic_load(&f->fail_at);
    if (at == 0 || n < at || (n > at && !atomic_load(&f->for_good))) return 0;
    return atomic_load(&f->errno_value);
}

uint64_t pgs__inject_count(enum pgs__fail_kind kind)
{
    return atomic_load(&failures[kind].count);
}

#else
/* ISO C wants a declaration in every file. */
extern int pgs__inject_unused;
#endif
