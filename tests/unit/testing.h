/* Pagestone | tests/unit/testing — a unit test is a function; a test program is a list of them.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     TEST(an_empty_tree_has_no_entries) { CHECK(...); CHECK_EQ(a, b); CHECK_OK(call(..., &err)); CHECK_ERR(call, PGS_ENOENT); }
 *     int main(int argc, char **argv) { return run_tests(argc, argv); }
 *
 * Each test runs in a forked child with a time limit (TEST_SECONDS, default 60): a crash or a hang is a failure of that test only. With arguments only tests
 * whose name contains one of them run; with TEST_INPROC=1 they run in this process (debuggers, sanitizers' leak checks).
 * Closing line: `N passed, M failed`. Programs skip with SKIP("reason"), counted apart.
 */
#ifndef PGS_TESTS_UNIT_TESTING_H
#define PGS_TESTS_UNIT_TESTING_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libshm/include/pagestone.h"

struct test_case {
    const char *name;
    void (*fn)(void);
    struct test_case *next;
};
static struct test_case *test_list, **test_tail = &test_list;

#define TEST(name_)                                                                                                    \
    static void test_##name_(void);                                                                                    \
    static struct test_case case_##name_ = {#name_, test_##name_, NULL};                                               \
    __attribute__((constructor)) static void add_##name_(void)                                                         \
    {                                                                                                                  \
        *test_tail = &case_##name_;                                                                                    \
        test_tail = &case_##name_.next;                                                                                \
    }                                                                                                                  \
    static void test_##name_(void)

#define TEST_FAIL(...)                                                                                                 \
    do {                                                                                                               \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fputc('\n', stderr);                                                                                           \
        _exit(1);                                                                                                      \
    } while (0)
#define CHECK(expr)                                                                                                    \
    do {                                                                                                               \
        if (!(expr)) TEST_FAIL("not true: %s", #expr);                                                                 \
    } while (0)
#define CHECK_EQ(a_, b_)                                                                                               \
    do {                                                                                                               \
        long long va_ = (long long)(a_), vb_ = (long long)(b_);                                                        \
        if (va_ != vb_) TEST_FAIL("%s == %lld, expected %s == %lld", #a_, va_, #b_, vb_);                              \
    } while (0)
/* `err` must be a struct pgs_error in scope; it is printed on failure. */
#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        int rc_ = (call);                                                                                              \
        if (rc_ != 0) TEST_FAIL("%s -> %d: %s", #call, rc_, err.text);                                                 \
    } while (0)
#define CHECK_ERR(call, code_)                                                                                         \
    do {                                                                                                               \
        int rc_ = (call);                                                                                              \
        if (rc_ != -(code_)) TEST_FAIL("%s -> %d, expected -%s", #call, rc_, #code_);                                  \
    } while (0)
#define SKIP(reason)                                                                                                   \
    do {                                                                                                               \
        fprintf(stderr, "skipped: %s\n", reason);                                                                      \
        _exit(77);                                                                                                     \
    } while (0)

/* For tests that look at what /proc tells: a bare chroot has none. */
#define NEEDS_PROC()                                                                                                   \
    do {                                                                                                               \
        if (access("/proc/self/maps", R_OK) != 0) SKIP("/proc is not mounted");                                        \
    } while (0)

static int run_one(struct test_case *t)
{
    if (getenv("TEST_INPROC")) {
        t->fn();
        return 0;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        const char *s = getenv("TEST_SECONDS");
        alarm(s ? (unsigned)atoi(s) : 60u);
        t->fn();
        exit(0); /* exit, not _exit: leak checkers run at exit */
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
    }
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s: killed by signal %d (%s)\n", t->name, WTERMSIG(status), strsignal(WTERMSIG(status)));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int run_tests(int argc, char **argv)
{
    int passed = 0, failed = 0, skipped = 0;
    for (struct test_case *t = test_list; t; t = t->next) {
        int wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= strstr(t->name, argv[i]) != NULL;
        if (!wanted) continue;
        int rc = run_one(t);
        if (rc == 77)
            skipped++;
        else if (rc == 0)
            passed++;
        else
            failed++, fprintf(stderr, "FAILED %s\n", t->name);
    }
    printf("%s: %d passed, %d failed, %d skipped\n", argv[0], passed, failed, skipped);
    return failed != 0;
}

#endif
