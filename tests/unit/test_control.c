/* Pagestone | tests/unit/test_control — the control file: whose it is, head cells, owners of chunks.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "libshm/pages/control.h"
#include "libshm/platform/caps.h"
#include "libshm/platform/hash.h"
#include "libshm/platform/inject.h"
#include "libshm/platform/vm.h"
#include "tests/unit/testing.h"

static struct pgs_error err;
static struct pgs__ctl ctl;
static const uint8_t uuid[16] = "0123456789abcde";
#define INO 4711u

static char named[] = "/tmp/pgs-control-XXXXXX"; /* where memfds cannot be opened again */
static void remove_named(void)
{
    unlink(named);
}

static void create(void)
{
    bool proc = pgs__cap(PGS__CAP_PROC_FD);
    int fd = proc ? pgs__file_ops->memfd("control") : mkostemp(named, O_CLOEXEC);
    CHECK(fd >= 0);
    if (!proc) atexit(remove_named);
    CHECK_OK(pgs__ctl_create(&ctl, fd, uuid, INO, &err));
}
/* Another description of the same file. */
static int again(int flags)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", ctl.fd);
    int fd = open(pgs__cap(PGS__CAP_PROC_FD) ? name : named, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}
static int map_again(struct pgs__ctl *other, bool writable, bool *fresh)
{
    int fd = again(writable ? O_RDWR : O_RDONLY);
    memset(&err, 0, sizeof err);
    other->c = NULL;
    int rc = pgs__ctl_map(other, fd, writable, uuid, INO, fresh, &err);
    if (rc || *fresh) close(fd);
    return rc;
}

/* --- whose file it is ------------------------------------------------------------------------------------------- */

TEST(a_second_opener_sees_what_the_first_wrote)
{
    struct pgs__ctl rw, ro;
    bool fresh = true;
    create();
    CHECK(ctl.c->state == 0 && ctl.c->head_gen == 0);
    CHECK_OK(map_again(&rw, true, &fresh));
    CHECK(!fresh && rw.writable && rw.c != ctl.c);
    CHECK_OK(map_again(&ro, false, &fresh));
    atomic_store(&ctl.c->state, 1);
    CHECK(rw.c->state == 1 && ro.c->state == 1);
    atomic_store(pgs__ctl_pin(&ctl, 3, 5), 77);
    CHECK(*pgs__ctl_pin(&rw, 3, 5) == 77 && pgs__ctl_slot(&ro, 3)->pin[5] == 77);
    atomic_store(pgs__ctl_pin(&ctl, 1023, PGS__PINS_INLINE + PGS__PINS_OVERFLOW - 1), 78);
    CHECK((uint8_t *)pgs__ctl_pin(&ctl, 1023, PGS__PINS_INLINE + PGS__PINS_OVERFLOW - 1) <
          (uint8_t *)ctl.c + PGS__OWNERS_OFFSET);
    CHECK(*pgs__ctl_pin(&rw, 1023, PGS__PINS_INLINE + PGS__PINS_OVERFLOW - 1) == 78);
    atomic_store(&pgs__ctl_lease(&ctl, 1023)->gen, 79);
    CHECK(pgs__ctl_lease(&rw, 1023)->gen == 79 && pgs__ctl_slot(&ctl, 0)->tag == 0);
    CHECK_EQ(pgs__robust_lock(pgs__ctl_commit_lock(&ctl), 0, NULL, NULL), 0);
    pgs__robust_unlock(pgs__ctl_commit_lock(&ctl));
    int fd = rw.fd;
    pgs__ctl_unmap(&rw);
    CHECK(fcntl(fd, F_GETFD) < 0);
    pgs__ctl_unmap(&rw); /* idempotent */
    pgs__ctl_unmap(&ro);
    pgs__ctl_unmap(&ctl);
    CHECK_EQ(pgs__vm_charged(), 0);
}

TEST(the_parts_that_are_stored_to_first_are_allocated_and_the_rest_is_not)
{
    struct stat st;
    create();
    CHECK(fstat(ctl.fd, &st) == 0 && st.st_size == (off_t)PGS__CONTROL_SIZE);
    CHECK_EQ(st.st_blocks * 512, (64 << 10) + PGS__SLOTS_RESERVED * 512);
    CHECK_OK(pgs__ctl_reserve(&ctl, PGS__SLOTS_OFFSET + 1023 * 512, 512, &err));
    CHECK_OK(pgs__owner_reserve(&ctl, 513, &err));
    CHECK_OK(pgs__owner_reserve(&ctl, 0, &err));
    CHECK(fstat(ctl.fd, &st) == 0);
    CHECK_EQ(st.st_blocks * 512, (64 << 10) + PGS__SLOTS_RESERVED * 512 + 4096 + 2 * 4096);
    CHECK_ERR(pgs__owner_reserve(&ctl, PGS__N_OWNERS + 1, NULL), PGS_EFULL);
    pgs__ctl_unmap(&ctl);
}

TEST(another_boot_or_an_unfinished_file_is_made_anew)
{
    struct pgs__ctl other;
    bool fresh = false;
    create();
    atomic_store(&ctl.c->state, 1);
    atomic_store(&pgs__ctl_slot(&ctl, 900)->tag, 5);
    atomic_store(pgs__ctl_pin(&ctl, 7, 100), 6);
    ctl.c->boot_id[0] ^= 1;
    CHECK_OK(map_again(&other, true, &fresh));
    CHECK(fresh && !other.c);
    CHECK_OK(pgs__ctl_create(&other, again(O_RDWR), uuid, INO, &err)); /* while an earlier opener has it mapped */
    CHECK(ctl.c->state == 0 && pgs__ctl_slot(&ctl, 900)->tag == 0 && *pgs__ctl_pin(&ctl, 7, 100) == 0);
    pgs__ctl_unmap(&other);
    fresh = true;
    CHECK_OK(map_again(&other, false, &fresh));
    CHECK(!fresh);
    pgs__ctl_unmap(&other);

    ctl.c->magic = 0; /* its creator died */
    CHECK_OK(map_again(&other, true, &fresh));
    CHECK(fresh);
    for (int i = 0; i < 2; i++) { /* earlier still */
        CHECK(ftruncate(ctl.fd, i ? 0 : 4096) == 0);
        fresh = false;
        CHECK_OK(map_again(&other, false, &fresh));
        CHECK(fresh && !other.c);
    }
    pgs__ctl_unmap(&ctl);
    CHECK_EQ(pgs__vm_charged(), 0);
}

TEST(another_build_or_store_is_refused_by_name)
{
    struct pgs__ctl other;
    bool fresh;
    create();
    struct pgs__control saved;
    memcpy(&saved, ctl.c, sizeof saved);
    struct {
        size_t off;
        int rc;
        const char *text;
    } cases[] = {
        {offsetof(struct pgs__control, format_version), PGS_EFORMAT, "control format"},
        {offsetof(struct pgs__control, libc_abi), PGS_EFORMAT, "another C library"},
        {offsetof(struct pgs__control, layout), PGS_EFORMAT, "another build"},
        {offsetof(struct pgs__control, uuid), PGS_ESTALE, "replaced"},
        {offsetof(struct pgs__control, pages_ino), PGS_ESTALE, "replaced"},
        {offsetof(struct pgs__control, magic), PGS_ECORRUPT, "foreign"},
    };
    for (size_t i = 0; i < PGS_ARRAY_LEN(cases); i++) {
        ((uint8_t *)ctl.c)[cases[i].off] ^= 0x40;
        CHECK_ERR(map_again(&other, true, &fresh), cases[i].rc);
        CHECK(!other.c && strstr(err.text, cases[i].text));
        ctl.c->boot_id[3] ^= 1; /* of another boot all of that means nothing any more */
        if (cases[i].rc != PGS_ECORRUPT) {
            CHECK_OK(map_again(&other, true, &fresh));
            CHECK(fresh);
        }
        ctl.c->boot_id[3] ^= 1;
        ((uint8_t *)ctl.c)[cases[i].off] ^= 0x40;
    }
    CHECK(memcmp(&saved, ctl.c, sizeof saved) == 0);
    pgs__ctl_unmap(&ctl);
}

TEST(every_failing_call_is_an_error_and_leaves_nothing)
{
    for (int kind = 0; kind < PGS__FAIL_N_KINDS; kind++) {
        bool through = false;
        for (uint64_t nth = 1; nth < 40 && !through; nth++) {
            struct pgs__ctl other = {.fd = -1};
            bool fresh = false;
            int fd = memfd_create("control", MFD_CLOEXEC), fd2 = dup(fd);
            memset(&err, 0, sizeof err);
            uint64_t calls = pgs__inject_count((enum pgs__fail_kind)kind);
            pgs__inject_fail((enum pgs__fail_kind)kind, nth, kind == PGS__FAIL_FILE ? EIO : ENOMEM, false);
            int rc = pgs__ctl_create(&ctl, fd, uuid, INO, &err);
            bool created = rc == 0;
            if (created) rc = pgs__ctl_map(&other, fd2, true, uuid, INO, &fresh, &err);
            through = pgs__inject_count((enum pgs__fail_kind)kind) - calls < nth;
            pgs__inject_clear();
            CHECK(rc == 0 ? !fresh : err.text[0] != 0);
            CHECK(!through || rc == 0);
            pgs__ctl_unmap(&other);
            if (created) pgs__ctl_unmap(&ctl);
            close(fd);
            close(fd2);
            CHECK_EQ(pgs__vm_charged(), 0);
        }
        CHECK(through);
    }
}

/* --- full disks and closed descriptors -------------------------------------------------------------------------- */

static char dir[64];
static void leave_tmpfs(void)
{
    umount2(dir, MNT_DETACH);
    rmdir(dir);
}
static void create_in_tmpfs(const char *options)
{
    char name[96];
    snprintf(dir, sizeof dir, "/tmp/pages-control-XXXXXX");
    CHECK(mkdtemp(dir));
    atexit(leave_tmpfs);
    /* a mount namespace of our own: a test that dies leaves no mount behind */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("pagestone-test", dir, "tmpfs", 0, options) != 0) {
        rmdir(dir);
        SKIP("mounting a tmpfs is not permitted");
    }
    snprintf(name, sizeof name, "%s/control", dir);
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK_OK(pgs__ctl_create(&ctl, fd, uuid, INO, &err));
}

TEST(a_full_tmpfs_is_efull_and_never_a_signal)
{
    create_in_tmpfs("size=256k,mode=700");
    struct pgs__ctl other;
    char name[96];
    snprintf(name, sizeof name, "%s/second", dir);
    uint64_t n = 512;
    int rc;
    while ((rc = pgs__owner_reserve(&ctl, n, NULL)) == 0) n += 512;
    CHECK_EQ(rc, -PGS_EFULL);
    CHECK(n > 10 * 512 && n < 64 * 512);
    for (uint64_t i = 0; i < n - 512; i++) CHECK(pgs__owner_claim(&ctl, i, 1));
    CHECK(fallocate(ctl.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PGS__OWNERS_OFFSET, PGS__OWNERS_OFFSET) == 0);
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* 256 KiB do not hold a third of these */
    CHECK(fallocate(fd, 0, 0, 150 << 10) == 0);
    int fd3 = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd3 >= 0);
    CHECK_ERR(pgs__ctl_create(&other, fd3, uuid, INO, NULL), PGS_EFULL);
    CHECK(fcntl(fd3, F_GETFD) >= 0);
    close(fd);
    close(fd3);
    pgs__ctl_unmap(&ctl);
}

TEST(a_closed_descriptor_does_not_stop_reservations_nor_touch_foreign_files)
{
    struct stat st;
    create_in_tmpfs("size=256k,mode=700");
    int foreign = memfd_create("foreign", 0);
    CHECK(dup2(foreign, ctl.fd) == ctl.fd);
    uint64_t n = 512;
    int rc;
    while ((rc = pgs__owner_reserve(&ctl, n, NULL)) == 0) {
        for (uint64_t i = n - 512; i < n; i++) CHECK(pgs__owner_claim(&ctl, i, 9));
        n += 512;
    }
    if (rc == -PGS_EIO && n == 512) SKIP("no MADV_POPULATE_WRITE on this kernel");
    CHECK_EQ(rc, -PGS_EFULL);
    CHECK(n > 10 * 512);
    int fd = ctl.fd;
    pgs__ctl_unmap(&ctl);
    CHECK(fcntl(fd, F_GETFD) >= 0); /* not ours to close */
    CHECK(fstat(foreign, &st) == 0 && st.st_size == 0 && st.st_blocks == 0);
}

/* --- head cells ------------------------------------------------------------------------------------------------- */

/* Every word of a root follows from its generation. */
static struct pgs__root root_of(uint64_t gen)
{
    return (struct pgs__root){.gen = gen,
                              .version = gen * 3,
                              .time_ns = gen * 5,
                              .record = {gen * 7, gen * 11, gen * 13},
                              .record_pages = gen * 17,
                              .catalog = {gen * 19, gen * 23, gen * 29},
                              .n_objects = gen * 31};
}
static void publish(uint64_t gen)
{
    struct pgs__root root = root_of(gen);
    pgs__ctl_stage(&ctl, &root);
    pgs__ctl_publish(&ctl, gen);
}
static bool whole(const struct pgs__root *root)
{
    struct pgs__root expected = root_of(root->gen);
    return root->gen != 0 && memcmp(root, &expected, sizeof expected) == 0;
}

TEST(the_head_is_what_was_published_last)
{
    struct pgs__root root;
    create();
    publish(1000); /* a fresh control file begins anywhere */
    atomic_store(&ctl.c->state, 1);
    for (uint64_t gen = 1001; gen < 1020; gen++) {
        struct pgs__root next = root_of(gen);
        pgs__ctl_stage(&ctl, &next);
        CHECK_EQ(pgs__ctl_head(&ctl, &root), 0);
        CHECK(root.gen == gen - 1 && whole(&root)); /* staged is not published */
        pgs__ctl_publish(&ctl, gen);
        CHECK_EQ(pgs__ctl_head(&ctl, &root), 0);
        CHECK(root.gen == gen && whole(&root));
    }
    pgs__ctl_unmap(&ctl);
}

TEST(a_damaged_cell_is_an_error_and_no_endless_loop)
{
    struct pgs__root root;
    create();
    CHECK_EQ(pgs__ctl_head(&ctl, &root), -PGS_ECORRUPT); /* nothing published yet */
    publish(5);
    for (size_t off = 0; off < 96; off++) {
        ((uint8_t *)&ctl.c->cell[1])[off] ^= 4;
        CHECK_EQ(pgs__ctl_head(&ctl, &root), -PGS_ECORRUPT);
        CHECK(root.gen == 0);
        ((uint8_t *)&ctl.c->cell[1])[off] ^= 4;
    }
    CHECK_EQ(pgs__ctl_head(&ctl, &root), 0);
    pgs__ctl_unmap(&ctl);
}

static int child_signal(void (*fn)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(open("/dev/null", O_WRONLY), 2);
        fn();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}
static void skip_a_generation(void)
{
    publish(atomic_load(&ctl.c->head_gen) + 2);
}
static void repeat_a_generation(void)
{
    publish(atomic_load(&ctl.c->head_gen));
}
static void release_anothers(void)
{
    pgs__owner_release(&ctl, 5, 6);
}
static void reserve_beyond(void)
{
    pgs__ctl_reserve(&ctl, PGS__CONTROL_SIZE - 4096, 8192, NULL);
}
TEST(what_would_corrupt_the_store_aborts)
{
    create();
    publish(1);
    atomic_store(&ctl.c->state, 1);
    CHECK(pgs__owner_claim(&ctl, 5, 7));
    CHECK_EQ(child_signal(skip_a_generation), SIGABRT);
    CHECK_EQ(child_signal(repeat_a_generation), SIGABRT);
    CHECK_EQ(child_signal(release_anothers), SIGABRT);
    CHECK_EQ(child_signal(reserve_beyond), SIGABRT);
    pgs__ctl_unmap(&ctl);
}

#define ROUNDS 300000u
static void read_heads(struct pgs__ctl *c, uint64_t last_gen)
{
    struct pgs__root root;
    uint64_t seen = 0;
    do {
        if (pgs__ctl_head(c, &root) != 0 || !whole(&root) || root.gen < seen) TEST_FAIL("torn or older root");
        seen = root.gen;
    } while (seen < last_gen);
}
static void *reading_thread(void *arg)
{
    read_heads(arg, ROUNDS);
    return NULL;
}
/* One reads in this process, one in another, one writes: no torn root, and never an older one after a newer one. */
TEST(no_reader_ever_sees_a_torn_root)
{
    pthread_t t;
    struct pgs__ctl ro;
    bool fresh;
    create();
    publish(1);
    atomic_store(&ctl.c->state, 1);
    CHECK_OK(map_again(&ro, false, &fresh));
    pid_t pid = fork();
    if (pid == 0) {
        read_heads(&ro, ROUNDS);
        _exit(0);
    }
    CHECK(pthread_create(&t, NULL, reading_thread, &ctl) == 0);
    for (uint64_t gen = 2; gen <= ROUNDS; gen++) publish(gen);
    pthread_join(t, NULL);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    pgs__ctl_unmap(&ro);
    pgs__ctl_unmap(&ctl);
}

TEST(a_writer_that_dies_while_it_writes_a_cell_leaves_the_head)
{
    struct pgs__root root;
    create();
    publish(1);
    atomic_store(&ctl.c->state, 1);
    for (uint64_t gen = 2; gen < 12; gen++) {
        pid_t pid = fork();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", gen % 2 ? "ctl_stage_half" : "ctl_publish_before", 1);
            publish(gen);
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
        CHECK_EQ(pgs__ctl_head(&ctl, &root), 0);
        CHECK(root.gen == gen - 1 && whole(&root));
        publish(gen); /* the next committer uses the same generation */
    }
    pgs__ctl_unmap(&ctl);
}

/* --- owners of chunks ------------------------------------------------------------------------------------------- */

TEST(chunks_are_claimed_released_and_swept_by_tag)
{
    create();
    uint64_t a = PGS__SLOT_TAG(3, 1), b = PGS__SLOT_TAG(3, 2);
    CHECK(PGS__TAG_SLOT(a) == 3 && PGS__TAG_SLOT(PGS__SLOT_TAG(1023, UINT64_MAX)) == 1023);
    CHECK(pgs__owner_claim(&ctl, 0, a) && !pgs__owner_claim(&ctl, 0, a) && !pgs__owner_claim(&ctl, 0, b));
    CHECK(pgs__owner_of(&ctl, 0) == a && pgs__owner_of(&ctl, 1) == 0);
    CHECK(pgs__owner_claim(&ctl, PGS__N_OWNERS - 1, b));
    CHECK(pgs__owner_of(&ctl, PGS__N_OWNERS - 1) == b);
    pgs__owner_release(&ctl, 0, a);
    CHECK(pgs__owner_claim(&ctl, 0, b));
    for (uint64_t i = 10; i < 20; i++) CHECK(pgs__owner_claim(&ctl, i, i % 2 ? a : b));
    CHECK_EQ(pgs__owner_sweep(&ctl, 100, a), 5); /* the slot's former life; its present one keeps its chunks */
    for (uint64_t i = 10; i < 20; i++) CHECK(pgs__owner_of(&ctl, i) == (i % 2 ? 0 : b));
    CHECK_EQ(pgs__owner_sweep(&ctl, 100, a), 0);
    pgs__ctl_unmap(&ctl);
}

#define N_CLAIMS 4000u
static void *claimer(void *arg)
{
    uint64_t tag = (uint64_t)(uintptr_t)arg, n = 0;
    for (uint64_t i = 0; i < N_CLAIMS; i++) n += pgs__owner_claim(&ctl, i, tag);
    return (void *)(uintptr_t)n;
}
TEST(each_chunk_has_one_owner_however_many_want_it)
{
    pthread_t t[4];
    uint64_t total = 0;
    create();
    CHECK_OK(pgs__owner_reserve(&ctl, N_CLAIMS, &err));
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&t[i], NULL, claimer, (void *)(i + 1)) == 0);
    for (int i = 0; i < 4; i++) {
        void *n;
        pthread_join(t[i], &n);
        total += (uintptr_t)n;
    }
    CHECK_EQ(total, N_CLAIMS);
    for (uint64_t tag = 1; tag <= 4; tag++) total -= pgs__owner_sweep(&ctl, N_CLAIMS, tag);
    CHECK_EQ(total, 0);
    pgs__ctl_unmap(&ctl);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
