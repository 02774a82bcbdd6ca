/* Pagestone | tests/fuse/test_scope — times as names of versions.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "fuse/view.h"
#include "tests/unit/testing.h"

#include <time.h>

static uint64_t ns_of(const char *text)
{
    uint64_t ns;
    if (!scope_time(text, strlen(text), &ns)) TEST_FAIL("refused: %s", text);
    return ns;
}

TEST(times_with_a_zone_are_moments)
{
    const uint64_t s = 1000000000u, noon = 1795176000u; /* 2026-11-20T12:00Z */
    CHECK_EQ(ns_of("2026-11-20T12:00Z"), noon * s);
    CHECK_EQ(ns_of("2026-11-20 12:00:00z"), noon * s);
    CHECK_EQ(ns_of("2026-11-20T13:00+01:00"), noon * s);
    CHECK_EQ(ns_of("2026-11-20T06:30:00.25-0530"), noon * s + 250000000u);
    CHECK_EQ(ns_of("2026-11-20T12:00:00.123456789Z"), noon * s + 123456789u);
    CHECK_EQ(ns_of("2026-11-20T12:00:01,5+00"), (noon + 1) * s + 500000000u);
}

TEST(times_without_a_zone_are_local)
{
    setenv("TZ", "Europe/Berlin", 1);
    tzset();
    time_t winter = 0;
    struct tm t = {.tm_year = 126, .tm_mon = 10, .tm_mday = 20, .tm_hour = 10, .tm_min = 5, .tm_isdst = -1};
    winter = mktime(&t);
    CHECK_EQ(ns_of("2026-11-20T10:05"), (uint64_t)winter * 1000000000u);
    CHECK_EQ(ns_of("2026-11-20"), ((uint64_t)winter - 10 * 3600 - 300) * 1000000000u);
    setenv("TZ", "UTC0", 1);
    tzset();
    CHECK_EQ(ns_of("2026-11-20T10"), ns_of("2026-11-20T10:00Z"));
}

TEST(what_is_no_time_is_refused)
{
    static const char *const bad[] = {"",
                                      "2026",
                                      "2026-11",
                                      "2026-13-01",
                                      "2026-00-01",
                                      "2026-11-20T",
                                      "2026-11-20T24:00",
                                      "2026-11-20T10:60",
                                      "2026-11-20T10:00:00.",
                                      "2026-11-20T10:00Zulu",
                                      "2026-11-20T10:00+1",
                                      "2026-11-20T10:00+25:00",
                                      "2026-11-20X10:00",
                                      "2026-1-2",
                                      "-026-11-20",
                                      "1969-11-20T10:00Z"};
    uint64_t ns;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (scope_time(bad[i], strlen(bad[i]), &ns)) TEST_FAIL("accepted: %s", bad[i]);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
