/* Pagestone | platform/ram — how much memory may still be taken before the kernel kills somebody.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Pages of memfds and tmpfs are memory. A memory cgroup that is full, and a machine that is, give no error: a process is killed. So whoever is about to
 * take many pages asks here first. Limits are the memory cgroups from this process's own up to the root (version 2: memory.max, version 1: memory.limit_in_bytes) and
 * MemAvailable of the machine. What the kernel can drop at once (page cache that nobody wrote into lately) counts as free; swap does not. Without /proc
 * and /sys sysinfo(2) is all there is, which does not tell the page cache: half of the memory less what is shared counts as there, as much as tmpfs takes by default.
 *
 * A part is kept free (head-room): programs need memory for themselves, and several may take pages at the same moment.
 *
 * Nothing is kept between calls but the cgroups' mount points. Thread- and fork-safe, without locks. A look costs about ten small files.
 */
#ifndef PGS_PLATFORM_RAM_H
#define PGS_PLATFORM_RAM_H

#include "libshm/platform/base.h"

enum pgs__ram_by { PGS__RAM_NOTHING, PGS__RAM_CGROUP, PGS__RAM_MACHINE };

struct pgs__ram {
    enum pgs__ram_by by; /* what leaves the least. NOTHING: left is UINT64_MAX */
    uint64_t available;  /* bytes that are there */
    uint64_t left;       /* what may be taken of them: the head-room is not */
    uint64_t total;      /* of what limits */
    uint64_t kept;       /* the head-room */
};

/* need: bytes that the caller wants to know about. Where clearly more is there the count may be too low, because a slower file was not read. UINT64_MAX: exactly. */
void pgs__ram_look(uint64_t need, struct pgs__ram *out);
/* A sixteenth of the whole, at least 64 MiB and at most 4 GiB, but never more than a quarter. */
uint64_t pgs__ram_head_room(uint64_t total);

/* In tests: what answers instead of the system (NULL: the system does), and a directory that stands for / in the paths of /proc and /sys (NULL: /). Set before threads are
 * made. */
extern void (*pgs__ram_source)(uint64_t need, struct pgs__ram *out);
extern const char *pgs__ram_root;

#endif
