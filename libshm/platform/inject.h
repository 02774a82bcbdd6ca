/* Pagestone | platform/inject — kill points, planted bugs and failing calls, for tests.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Compiled in only with PGS_TESTING (the test builds of the library and of the Python module); without it
 * every macro is a constant and the optimiser removes it.
 *
 * PGS_KILL_POINT("name")    the process kills itself with SIGKILL when PAGESTONE_KILL="name:N" names this point and it is
 *                           the Nth visit (default 1). PAGESTONE_STOP="name" raises SIGSTOP instead.
 * PGS_PLANTED(n)            true when PAGESTONE_PLANT=n (or pgs__inject_plant(n)): a planted bug. Used to show that
 *                           a harness finds it. The list of numbers lives here:
 *                             1 barrier skipped before the superblock      2 barrier skipped after the superblock
 *                             3 page reused one generation early           4 pin not rechecked after the fence
 *                             5 lock not repaired after its owner's death  6 durable gate ignored on reuse
 *                             7 node hash not verified                     8 control word stored before the superblock
 *                             9 dead slot's chunks not taken back         10 conflict check skipped
 *                            11 element widening skipped at merge         12 private remap skipped at publish
 *                            13 a compressed block freed with the first of its pages
 *                            14 a compressed block never counts fewer pages
 *                            15 a pin moved without comparing the object
 * pgs__inject_fail(kind, n, errno_value, for_good)
 *                           the nth call (1 = next) of that kind fails with errno_value; for_good: all later ones too.
 *                           Also PAGESTONE_FAIL="kind:n:errno[:forever]" at the first use. kinds: "file", "mem", "map".
 */
#ifndef PGS_PLATFORM_INJECT_H
#define PGS_PLATFORM_INJECT_H

#include "libshm/platform/base.h"

enum pgs__fail_kind { PGS__FAIL_FILE, PGS__FAIL_MEM, PGS__FAIL_MAP, PGS__FAIL_N_KINDS };

#ifdef PGS_TESTING
void pgs__kill_point(const char *name);
bool pgs__planted(int n);
void pgs__inject_plant(int n);
void pgs__inject_fail(enum pgs__fail_kind kind, uint64_t nth, int errno_value, bool for_good);
void pgs__inject_clear(void);
/* 0: go on; else the errno to fail with. Counts a call of that kind. */
int pgs__inject_check(enum pgs__fail_kind kind);
uint64_t pgs__inject_count(enum pgs__fail_kind kind); /* calls so far */
#define PGS_KILL_POINT(name) pgs__kill_point(name)
#define PGS_PLANTED(n) pgs__planted(n)
#define PGS_INJECT(kind) pgs__inject_check(kind)
#else
#define PGS_KILL_POINT(name) ((void)0)
#define PGS_PLANTED(n) false
#define PGS_INJECT(kind) 0
#endif

#endif
