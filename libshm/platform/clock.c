/* Pagestone | platform/clock — clocks, the identity of this boot, randomness.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "libshm/platform/lock.h"

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    PGS_BUG_ON(clock_gettime(clock, &t) != 0);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t pgs__clock_boot_ns(void)
{
    return clock_ns(CLOCK_BOOTTIME);
}

uint64_t pgs__clock_real_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

uint64_t pgs__clock_mono_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* "f81d4fae-7dec-…": 32 hexadecimal digits and dashes. */
static bool uuid_parse(const char *s, uint8_t out[16])
{
    uint8_t id[16] = {0};
    int n = 0;
    for (; *s && n < 32; s++) {
        int v;
        if (*s >= '0' && *s <= '9')
            v = *s - '0';
        else if (*s >= 'a' && *s <= 'f')
            v = *s - 'a' + 10;
        else if (*s == '-')
            continue;
        else
            return false;
        id[n / 2] = (uint8_t)(id[n / 2] << 4 | v);
        n++;
    }
    if (n != 32) return false;
    memcpy(out, id, 16);
    return true;
}

static void read_boot_id(uint8_t out[16])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        char text[64];
        ssize_t n;
        do n = read(fd, text, sizeof text - 1);
        while (n < 0 && errno == EINTR);
        close(fd);
        if (n > 0) {
            text[n] = 0;
            if (uuid_parse(text, out)) return;
        }
    }
    /* The moment of booting, rounded so that the clock's slewing rarely changes it; a false "new boot" costs a rebuild, no data. */
    uint64_t booted = (pgs__clock_real_ns() - pgs__clock_boot_ns()) / 1000000000u / 16;
    memset(out, 0, 16);
    memcpy(out, &booted, sizeof booted);
}

/* Asked once in the life of a process: every commit of a store in memory puts it into a superblock. Threads that ask at the same time store the same words. */
int pgs__boot_id(uint8_t out[16])
{
    static _Atomic uint64_t word[2];
    static _Atomic bool known;
    uint64_t id[2];
    /* acquire: the words were stored before. Pairs with the release below. */
    if (!atomic_load_explicit(&known, memory_order_acquire)) {
        read_boot_id((uint8_t *)id);
        for (int i = 0; i < 2; i++) atomic_store_explicit(&word[i], id[i], memory_order_relaxed); /* see known */
        atomic_store_explicit(&known, true, memory_order_release); /* pairs with the acquire above */
    }
    for (int i = 0; i < 2; i++) id[i] = atomic_load_explicit(&word[i], memory_order_relaxed); /* see known */
    memcpy(out, id, 16);
    return 0;
}

void pgs__random(void *buf, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = getrandom((char *)buf + done, n - done, 0);
        PGS_BUG_ON(got < 0 && errno != EINTR); /* Linux 3.17 has it; store identities must not repeat */
        if (got > 0) done += (size_t)got;
    }
}
