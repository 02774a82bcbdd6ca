/* Pagestone | tests/unit/test_session — opening in every mode, what crashes leave there, durability, leases, waiting, pins of one process.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#include "tests/unit/session_fixture.h"

/* --- creating ------------------------------------------------------------------------------------------------------ */
TEST(a_new_store_is_version_zero_of_generation_one)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct pgs__root head = head_of(s);
    CHECK_EQ(head.gen, 1);
    CHECK_EQ(head.version, 0);
    CHECK_EQ(head.n_objects, 0);
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s, &l, &err));
    bool memory = s->pf.fs == PGS__FS_TMPFS; /* /dev/shm is a directory of the disk in a bare chroot */
    CHECK_EQ(l.meta.hdr.durability, memory ? PGS_DUR_NONE : PGS_DUR_FULL);
    CHECK_EQ(l.meta.hdr.next_id, 1);
    CHECK_EQ(l.meta.hdr.checksums, !memory);
    struct pgs__root found;
    CHECK_OK(pgs__ledger_find_version(&l, 0, &found, &err));
    CHECK_EQ(found.gen, 1);
    CHECK_OK(pgs__ledger_check(&l, NULL, NULL, NULL, &err));
    pgs__meta_end(s, &l);
    struct stat st;
    CHECK(stat(store_path, &st) == 0 && (st.st_mode & 0777) == 0700);
    CHECK(stat(in_store("pages"), &st) == 0 && (st.st_mode & 0777) == 0600);
    CHECK(stat(in_store("control"), &st) == 0 && (st.st_mode & 0777) == 0600);
    CHECK(access(in_store("pages.new"), F_OK) != 0 && access(in_store("control.new"), F_OK) != 0);
    pgs__session_unref(s);
}

TEST(settings_of_creation_are_kept_in_the_record)
{
    on_disk();
    struct pgs_options opt = {.mode = PGS_MODE_X,
                              .size = 5000000,
                              .durability = PGS_DUR_ORDERED,
                              .history = PGS_HIST_COUNT,
                              .history_value = 7,
                              .checksums = -1};
    struct pgs__session *s;
    CHECK_OK(pgs__session_open(store_path, &opt, &s, &err));
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s, &l, &err));
    CHECK_EQ(l.meta.hdr.quota_bytes, 5000000);
    CHECK_EQ(l.meta.hdr.durability, PGS_DUR_ORDERED);
    CHECK_EQ(l.meta.hdr.history_kind, PGS_HIST_COUNT);
    CHECK_EQ(l.meta.hdr.history_value, 7);
    CHECK_EQ(l.meta.hdr.checksums, 0);
    pgs__meta_end(s, &l);
    pgs__session_unref(s);
}

TEST(a_disk_store_is_durable_and_checksummed_by_default)
{
    on_disk();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(s, &l, &err));
    CHECK_EQ(l.meta.hdr.durability, PGS_DUR_FULL);
    CHECK_EQ(l.meta.hdr.checksums, 1);
    pgs__meta_end(s, &l);
    pgs__session_unref(s);
}

TEST(each_mode_accepts_and_refuses_what_it_should)
{
    in_memory();
    CHECK_ERR(try_open(PGS_MODE_R), PGS_ENOENT);
    CHECK_ERR(try_open(PGS_MODE_RPLUS), PGS_ENOENT);
    CHECK(access(store_path, F_OK) != 0);
    CHECK_EQ(try_open(PGS_MODE_X), 0);
    CHECK_ERR(try_open(PGS_MODE_X), PGS_EEXIST);
    CHECK_EQ(try_open(PGS_MODE_R), 0);
    CHECK_EQ(try_open(PGS_MODE_RPLUS), 0);
    CHECK_EQ(try_open(PGS_MODE_A), 0);
    CHECK_EQ(try_open(PGS_MODE_W), 0);
}

TEST(an_empty_directory_becomes_a_store_but_for_mode_x)
{
    in_memory();
    CHECK(mkdir(store_path, 0755) == 0);
    CHECK_ERR(try_open(PGS_MODE_X), PGS_EEXIST);
    CHECK_ERR(try_open(PGS_MODE_R), PGS_ENOTSTORE);
    CHECK_ERR(try_open(PGS_MODE_RPLUS), PGS_ENOTSTORE);
    CHECK_EQ(try_open(PGS_MODE_A), 0);
    CHECK_EQ(try_open(PGS_MODE_R), 0);
}

TEST(foreign_files_are_never_touched)
{
    in_memory();
    CHECK(mkdir(store_path, 0755) == 0);
    FILE *f = fopen(in_store("thesis.tex"), "w");
    CHECK(f && fputs("years of work", f) >= 0 && fclose(f) == 0);
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ENOTSTORE);
    CHECK_ERR(try_open(PGS_MODE_W), PGS_ENOTSTORE);
    CHECK(access(in_store("thesis.tex"), R_OK) == 0);
    f = fopen(in_store("pages"), "w");
    CHECK(f && fputs("of a book", f) >= 0 && fclose(f) == 0);
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ENOTSTORE);
    CHECK_ERR(try_open(PGS_MODE_W), PGS_ENOTSTORE);
    struct stat st;
    CHECK(stat(in_store("pages"), &st) == 0 && st.st_size == 9);
}

TEST(a_file_is_no_store_and_a_missing_parent_is_named)
{
    in_memory();
    int fd = open(store_path, O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0);
    close(fd);
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ENOTSTORE);
    CHECK_ERR(try_open(PGS_MODE_W), PGS_ENOTSTORE);
    CHECK_ERR(try_open(PGS_MODE_R), PGS_ENOTSTORE);
    CHECK(unlink(store_path) == 0);
    snprintf(store_path, sizeof store_path, "%s/no/s.ps", scratch);
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ENOENT);
    CHECK(strstr(err.text, "/no in which"));
}

TEST(two_opens_share_a_session_and_the_last_close_frees_the_slot)
{
    in_memory();
    struct pgs__session *a = must_open(PGS_MODE_A, 0), *b = must_open(PGS_MODE_R, 0);
    CHECK(a == b);
    CHECK_EQ(tagged_slots(a), 1);
    pgs__session_unref(a);
    CHECK_EQ(tagged_slots(b), 1);
    CHECK_OK(tiny_commit(b, &err));
    pgs__session_unref(b);
    a = must_open(PGS_MODE_RPLUS, 0);
    CHECK_EQ(tagged_slots(a), 1);
    CHECK_EQ(a->slot, 0);
    CHECK_EQ(head_of(a).version, 1);
    pgs__session_unref(a);
}

/* --- what lies there: control files of all kinds ------------------------------------------------------------------------------- */
static void commits_then_close(enum pgs_durability d, int n)
{
    struct pgs__session *s = must_open(PGS_MODE_A, d);
    for (int i = 0; i < n; i++) CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(s);
}

static void expect_version(uint64_t version)
{
    struct pgs__session *s = must_open(PGS_MODE_RPLUS, 0);
    CHECK_EQ(head_of(s).version, version);
    CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(s);
}

TEST(a_missing_control_file_is_rebuilt_from_the_superblock)
{
    in_memory();
    commits_then_close(0, 3);
    CHECK(unlink(in_store("control")) == 0);
    expect_version(3);
}

TEST(a_missing_control_file_is_not_rebuilt_under_a_living_process)
{
    in_memory();
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__session *s = must_open(PGS_MODE_A, 0);
        CHECK_OK(tiny_commit(s, &err));
        gate_open(&up);
        gate_wait(&down);
        _exit(0);
    }
    gate_wait(&up);
    CHECK(unlink(in_store("control")) == 0);
    CHECK_ERR(try_open(PGS_MODE_A), PGS_ELOCKED);
    CHECK_ERR(try_open(PGS_MODE_R), PGS_ELOCKED);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    expect_version(1);
}

/* A process that has mapped the control file and not claimed its slot yet is seen by nobody. */
TEST(an_opener_overtaken_by_a_rebuilt_control_file_begins_anew)
{
    in_memory();
    commits_then_close(0, 2);
    int status;
    struct gate down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        setenv("PAGESTONE_STOP", "joined", 1);
        struct pgs__session *s = must_open(PGS_MODE_A, 0);
        unsetenv("PAGESTONE_STOP");
        struct stat st;
        CHECK(stat(in_store("control"), &st) == 0);
        CHECK_EQ(st.st_ino, s->ctl.ino);
        CHECK_OK(tiny_commit(s, &err));
        gate_wait(&down);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    CHECK(unlink(in_store("control")) == 0);
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    CHECK_OK(tiny_commit(s, &err));
    for (int stops = 0; stops < 10 && head_of(s).version < 4; stops++) {
        kill(pid, SIGCONT); /* it comes by the point again when it begins anew */
        usleep(50000);
    }
    CHECK_EQ(head_of(s).version, 4);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    pgs__session_unref(s);
}

TEST(a_damaged_control_file_is_rebuilt)
{
    in_memory();
    uint8_t junk[4096];
    memset(junk, 0xa5, sizeof junk);
    commits_then_close(0, 2);
    overwrite(in_store("control"), 0, junk, sizeof junk);
    expect_version(2);
    CHECK(truncate(in_store("control"), 100) == 0);
    expect_version(3);
    CHECK(truncate(in_store("control"), 0) == 0);
    expect_version(4);
}

static void other_boot(void)
{
    uint8_t id[16] = {1, 2, 3};
    overwrite(in_store("control"), offsetof(struct pgs__control, boot_id), id, sizeof id);
}

/* As if the superblocks had been written in that boot, too. */
static void supers_of_other_boot(void)
{
    struct pgs__pagefile pf;
    struct pgs__super super;
    int fd = open(in_store("pages"), O_RDWR);
    CHECK(fd >= 0);
    CHECK_OK(pgs__pagefile_init(&pf, fd, -1, "/nowhere", true, &err));
    CHECK_OK(pgs__super_read(&pf, &super, false, &err));
    for (int i = 0; i < 2; i++) {
        super.seq++;
        memset(super.boot_id, 7, 16);
        CHECK_OK(pgs__super_write(&pf, &super, &err));
    }
    pgs__pagefile_fini(&pf);
}

/* A process that does not come to close: SIGKILL after n commits. */
static void commits_then_kill(enum pgs_durability d, int n)
{
    pid_t pid = fork_bounded();
    if (pid == 0) {
        struct pgs__session *s = must_open(PGS_MODE_A, d);
        for (int i = 0; i < n; i++) CHECK_OK(tiny_commit(s, &err));
        raise(SIGKILL);
    }
    CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
}

TEST(full_durability_loses_nothing_and_skips_no_number_after_a_power_loss)
{
    on_disk();
    commits_then_kill(PGS_DUR_FULL, 3);
    other_boot();
    supers_of_other_boot();
    expect_version(3);
    expect_version(4);
}

TEST(ordered_durability_never_gives_out_a_number_twice_after_a_power_loss)
{
    on_disk();
    commits_then_kill(PGS_DUR_ORDERED, 5); /* the first wrote a superblock, the others did not */
    other_boot();
    supers_of_other_boot();
    struct pgs__session *s = must_open(PGS_MODE_RPLUS, 0);
    uint64_t old = head_of(s).version;
    CHECK(old >= 1 && old <= 5);
    CHECK(pgs__next_version(s) > 5);
    CHECK_OK(tiny_commit(s, &err));
    CHECK(head_of(s).version > 5);
    pgs__session_unref(s);
}

TEST(ordered_durability_loses_nothing_to_a_kill)
{
    on_disk();
    commits_then_kill(PGS_DUR_ORDERED, 5);
    expect_version(5);
}

TEST(ordered_durability_is_settled_by_closing)
{
    on_disk();
    commits_then_close(PGS_DUR_ORDERED, 5);
    other_boot();
    supers_of_other_boot();
    struct pgs__session *s = must_open(PGS_MODE_RPLUS, 0);
    CHECK_EQ(head_of(s).version, 5);
    CHECK_EQ(pgs__next_version(s), 6);
    pgs__session_unref(s);
}

TEST(a_barrier_of_gc_or_close_never_overtakes_a_commit)
{
    on_disk();
    struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_ORDERED);
    CHECK_OK(tiny_commit(s, &err));
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK_OK(pgs__commit_lock(s, NULL, &err));
        gate_open(&up);
        gate_wait(&down);
        pgs__commit_unlock(s);
        CHECK_OK(tiny_commit(s, &err));
        _exit(0);
    }
    gate_wait(&up);
    uint64_t seq = atomic_load(&s->ctl.c->super_seq);
    CHECK_ERR(pgs__make_durable(s, &(struct pgs__wait){.timeout_ns = 120000000}, &err), PGS_ELOCKED);
    CHECK_EQ(atomic_load(&s->ctl.c->super_seq), seq);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    err = (struct pgs_error){0};
    CHECK_OK(pgs__make_durable(s, NULL, &err));
    struct pgs__super super;
    CHECK_OK(pgs__super_read(&s->pf, &super, false, &err));
    CHECK_EQ(super.root.gen, head_of(s).gen);
    pgs__session_unref(s);
}

TEST(durability_none_survives_kills_and_closing_but_admits_a_power_loss)
{
    on_disk();
    commits_then_kill(PGS_DUR_NONE, 3);
    expect_version(3); /* and closes */
    CHECK(unlink(in_store("control")) == 0);
    supers_of_other_boot();
    expect_version(4);
    commits_then_kill(0, 1);
    other_boot();
    supers_of_other_boot();
    CHECK_ERR(try_open(PGS_MODE_RPLUS), PGS_ECORRUPT);
    CHECK_ERR(try_open(PGS_MODE_R), PGS_ECORRUPT);
    CHECK(strstr(err.text, "mode \"w\""));
    CHECK_EQ(try_open(PGS_MODE_W), 0);
    CHECK_EQ(try_open(PGS_MODE_A), 0);
}

static pthread_barrier_t both;
static void *let_go(void *s)
{
    pthread_barrier_wait(&both);
    pgs__session_unref(s);
    return NULL;
}

TEST(two_threads_that_let_go_at_once_settle_the_store)
{
    on_disk();
    CHECK(pthread_barrier_init(&both, NULL, 2) == 0);
    for (int i = 0; i < 20; i++) {
        pthread_t th;
        struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_ORDERED);
        CHECK_OK(tiny_commit(s, &err));
        CHECK(pthread_create(&th, NULL, let_go, pgs__session_ref(s)) == 0);
        let_go(s);
        pthread_join(th, NULL);
        struct pgs__super super;
        int fd = open(in_store("pages"), O_RDONLY);
        CHECK(pgs__pread_full(fd, &super, sizeof super, 0) == 0);
        uint64_t seq = super.seq, flags = super.flags;
        CHECK(pgs__pread_full(fd, &super, sizeof super, PGS__SUPER_PAGE_1 * PGS_PAGE_SIZE) == 0);
        close(fd);
        CHECK((seq > super.seq ? flags : super.flags) & PGS__SUPER_CLEAN);
    }
}

/* What the medium has for certain of the superblocks: as they were at the last barrier. */
static uint8_t *synced_supers; /* shared: two pages */
static int keeping_fdatasync(int fd)
{
    for (int i = 0; i < 2; i++) {
        off_t at = i ? PGS__SUPER_PAGE_1 * (off_t)PGS_PAGE_SIZE : 0;
        CHECK(pread(fd, synced_supers + (size_t)i * PGS_PAGE_SIZE, PGS_PAGE_SIZE, at) == PGS_PAGE_SIZE);
    }
    return pgs__file_ops_real.fdatasync(fd);
}

/* What a steady superblock names may be written over under "none": it must not be what a power loss leaves. */
TEST(durability_none_leaves_no_older_superblock_to_come_back_to)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.fdatasync = keeping_fdatasync;
    synced_supers = mmap(NULL, 2 * PGS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(synced_supers != MAP_FAILED);
    on_disk();
    commits_then_close(PGS_DUR_NONE, 2); /* steady */
    int fd = open(in_store("pages"), O_RDONLY);
    keeping_fdatasync(fd);
    close(fd);
    pgs__file_ops = &ops;
    commits_then_kill(0, 2);
    pgs__file_ops = &pgs__file_ops_real;
    overwrite(in_store("pages"), 0, synced_supers, PGS_PAGE_SIZE);
    overwrite(in_store("pages"), PGS__SUPER_PAGE_1 * PGS_PAGE_SIZE, synced_supers + PGS_PAGE_SIZE, PGS_PAGE_SIZE);
    other_boot();
    supers_of_other_boot();
    CHECK_ERR(try_open(PGS_MODE_RPLUS), PGS_ECORRUPT);
}

TEST(a_copied_store_is_a_store)
{
    in_memory();
    char cmd[320];
    commits_then_close(0, 2);
    snprintf(cmd, sizeof cmd, "cp -r '%s' '%s/copy.ps'", store_path, scratch);
    CHECK(system(cmd) == 0);
    snprintf(store_path, sizeof store_path, "%s/copy.ps", scratch);
    expect_version(2);
}

/* --- replacing ------------------------------------------------------------------------------------------------------------------- */
TEST(mode_w_puts_a_new_store_in_place_and_the_old_one_stays_readable)
{
    in_memory();
    struct pgs__session *old = must_open(PGS_MODE_A, 0);
    CHECK_OK(tiny_commit(old, &err));
    struct pgs__session *new = must_open(PGS_MODE_W, 0);
    CHECK(new != old);
    CHECK(memcmp(new->pf.uuid, old->pf.uuid, 16) != 0);
    CHECK_EQ(head_of(new).version, 0);
    CHECK_ERR(tiny_commit(old, &err), PGS_ESTALE);
    struct pgs__root root;
    struct pgs__pin pin;
    CHECK_OK(pgs__pin_head(old, &root, &pin, &err));
    CHECK_EQ(root.version, 1);
    struct pgs__ledger l;
    CHECK_OK(pgs__meta_begin(old, &l, &err));
    pgs__meta_end(old, &l);
    pgs__pin_drop(old, &pin);
    CHECK_OK(tiny_commit(new, &err));
    struct pgs__session *again = must_open(PGS_MODE_A, 0);
    CHECK(again == new);
    pgs__session_unref(again);
    pgs__session_unref(new);
    pgs__session_unref(old);
}

TEST(a_crash_in_the_middle_of_creation_is_finished_or_done_anew)
{
    static const char *const points[] = {"super_write",    "ctl_create_wiped", "ctl_create_before_magic",
                                         "control_filled", "create_written",   "create_marked",
                                         "create_control", "create_pages"};
    for (size_t i = 0; i < PGS_ARRAY_LEN(points); i++) {
        in_memory();
        pid_t pid = fork_bounded();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", points[i], 1);
            must_open(PGS_MODE_A, 0);
            _exit(0);
        }
        CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
        struct pgs__session *s = must_open(PGS_MODE_A, 0);
        CHECK_EQ(head_of(s).version, 0);
        CHECK_OK(tiny_commit(s, &err));
        pgs__session_unref(s);
        expect_version(1);
        CHECK(access(in_store("pages.new"), F_OK) != 0);
    }
}

TEST(a_crash_in_the_middle_of_replacement_leaves_the_old_store_or_the_new_one)
{
    static const char *const points[] = {"super_write",   "control_filled", "create_written",
                                         "create_marked", "create_control", "create_pages"};
    for (size_t i = 0; i < PGS_ARRAY_LEN(points); i++) {
        in_memory();
        struct pgs__session *old = must_open(PGS_MODE_A, 0);
        CHECK_OK(tiny_commit(old, &err));
        pid_t pid = fork_bounded();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", points[i], 1);
            must_open(PGS_MODE_W, 0);
            _exit(0);
        }
        CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
        struct pgs__session *s = must_open(PGS_MODE_RPLUS, 0);
        bool replaced = s != old;
        CHECK_EQ(replaced, i >= 4);
        CHECK_EQ(head_of(s).version, replaced ? 0 : 1);
        CHECK_OK(tiny_commit(s, &err));
        if (replaced) CHECK_ERR(tiny_commit(old, &err), PGS_ESTALE);
        pgs__session_unref(s);
        pgs__session_unref(old);
        expect_version(replaced ? 1 : 2);
    }
}

TEST(a_crash_while_the_control_file_is_rebuilt_is_rebuilt_again)
{
    static const char *const points[] = {"rebuild", "ctl_create_wiped", "ctl_create_before_magic", "control_filled"};
    for (size_t i = 0; i < 2 * PGS_ARRAY_LEN(points); i++) {
        in_memory();
        commits_then_close(0, 2);
        if (i % 2)
            other_boot();
        else
            CHECK(unlink(in_store("control")) == 0);
        pid_t pid = fork_bounded();
        if (pid == 0) {
            setenv("PAGESTONE_KILL", points[i / 2], 1);
            must_open(PGS_MODE_A, 0);
            _exit(0);
        }
        CHECK_EQ(wait_for(pid), 1000 + SIGKILL);
        expect_version(2);
    }
}

/* --- a disk that fails ------------------------------------------------------------------------------------------------------------- */
static _Atomic int barriers_left = -1; /* < 0: all succeed */
static int failing_fdatasync(int fd)
{
    if (barriers_left == 0) return -EIO;
    if (barriers_left > 0) barriers_left--;
    return pgs__file_ops_real.fdatasync(fd);
}

TEST(a_failed_barrier_poisons_the_store_until_it_is_reopened_by_everybody)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.fdatasync = failing_fdatasync;
    pgs__file_ops = &ops;
    for (int fail_at = 0; fail_at < 2; fail_at++) {
        on_disk();
        barriers_left = -1;
        struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_FULL);
        CHECK_OK(tiny_commit(s, &err));
        barriers_left = fail_at;
        err = (struct pgs_error){0};
        CHECK_ERR(tiny_commit(s, &err), PGS_EIO);
        CHECK_EQ(head_of(s).version, 1);
        barriers_left = -1;
        CHECK_ERR(tiny_commit(s, &err), PGS_EREADONLY);
        struct pgs__root root;
        struct pgs__pin pin;
        CHECK_OK(pgs__pin_head(s, &root, &pin, &err)); /* reading goes on */
        CHECK_EQ(root.version, 1);
        pgs__pin_drop(s, &pin);
        struct gate down = gate_new();
        pid_t pid = fork_bounded(); /* a second process */
        if (pid == 0) {
            gate_wait(&down);
            _exit(0);
        }
        pgs__session_unref(s);
        s = must_open(PGS_MODE_A, 0);
        CHECK_ERR(tiny_commit(s, &err), PGS_EREADONLY);
        pgs__session_unref(s);
        gate_open(&down);
        CHECK_EQ(wait_for(pid), 0);
        s = must_open(PGS_MODE_A, 0);
        CHECK_EQ(head_of(s).version, 1);
        CHECK_OK(tiny_commit(s, &err));
        pgs__session_unref(s);
        expect_version(2);
    }
}

static char sequence[64];
static int noting_fdatasync(int fd)
{
    strncat(sequence, "b", sizeof sequence - strlen(sequence) - 1);
    return pgs__file_ops_real.fdatasync(fd);
}
static ssize_t noting_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    bool super = off == 0 || off == PGS__SUPER_PAGE_1 * (off_t)PGS_PAGE_SIZE;
    strncat(sequence, super ? "S" : "d", sizeof sequence - strlen(sequence) - 1);
    return pgs__file_ops_real.pwrite(fd, buf, n, off);
}

TEST(full_writes_data_barrier_superblock_barrier_and_planted_omissions_show)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.fdatasync = noting_fdatasync;
    ops.pwrite = noting_pwrite;
    pgs__file_ops = &ops;
    on_disk();
    struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_FULL);
    static const struct {
        int plant;
        const char *expected;
    } cases[] = {{0, "dbSb"}, {1, "dSb"}, {2, "dbS"}};
    for (size_t i = 0; i < PGS_ARRAY_LEN(cases); i++) {
        pgs__inject_plant(cases[i].plant);
        sequence[0] = 0;
        CHECK_OK(tiny_commit(s, &err));
        if (strcmp(sequence, cases[i].expected) != 0) TEST_FAIL("plant %d: %s", cases[i].plant, sequence);
    }
    pgs__inject_clear();
    pgs__session_unref(s);
}

TEST(ordered_batches_barriers_by_time_and_bytes)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.fdatasync = noting_fdatasync;
    ops.pwrite = noting_pwrite;
    pgs__file_ops = &ops;
    on_disk();
    struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_ORDERED);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err)); /* reserves version numbers */
    CHECK(strcmp(sequence, "dbSb") == 0);
    CHECK_EQ(atomic_load(&s->ctl.c->durable_gen), head_of(s).gen);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    CHECK_OK(tiny_commit(s, &err));
    CHECK(strcmp(sequence, "dd") == 0);
    CHECK_EQ(atomic_load(&s->ctl.c->durable_gen), head_of(s).gen - 2);
    atomic_fetch_add(&s->ctl.c->barrier_bytes, 64u << 20);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    CHECK(strcmp(sequence, "dbSb") == 0);
    atomic_fetch_sub(&s->ctl.c->barrier_ns, 2000000000u);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    CHECK(strcmp(sequence, "dbSb") == 0);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(s);
    CHECK(strcmp(sequence, "dbSb") == 0); /* by closing */
}

TEST(none_makes_its_first_superblock_weak_for_good_and_then_syncs_no_more)
{
    static struct pgs__file_ops ops;
    ops = pgs__file_ops_real;
    ops.fdatasync = noting_fdatasync;
    ops.pwrite = noting_pwrite;
    pgs__file_ops = &ops;
    on_disk();
    struct pgs__session *s = must_open(PGS_MODE_A, PGS_DUR_NONE);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    CHECK(strcmp(sequence, "dSb") == 0);
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    CHECK(strcmp(sequence, "dS") == 0);
    CHECK_OK(pgs__make_durable(s, NULL, &err)); /* steady again */
    sequence[0] = 0;
    CHECK_OK(tiny_commit(s, &err));
    CHECK(strcmp(sequence, "dSb") == 0);
    pgs__session_unref(s);
}

/* --- pins of one process --------------------------------------------------------------------------------------------------------------- */
TEST(a_pin_is_one_cell_per_generation_and_goes_with_its_last_reference)
{
    struct pgs__session *s = must_open_anonymous();
    struct pgs__root root;
    struct pgs__pin a, b, c;
    CHECK_OK(pgs__pin_head(s, &root, &a, &err));
    CHECK_OK(pgs__pin_head(s, &root, &b, &err));
    CHECK_EQ(a.index, b.index);
    CHECK_OK(tiny_commit(s, &err));
    CHECK_OK(pgs__pin_head(s, &root, &c, &err));
    CHECK(c.index != a.index && c.gen == a.gen + 1);
    CHECK_EQ(is_pinned(s, a.gen), 1);
    pgs__pin_dup(s, &a);
    pgs__pin_drop(s, &a);
    pgs__pin_drop(s, &b);
    CHECK_EQ(is_pinned(s, a.gen), 1);
    CHECK(pgs__pin_valid(s, &a));
    pgs__pin_drop(s, &a);
    CHECK_EQ(is_pinned(s, a.gen), 0);
    CHECK(!pgs__pin_valid(s, &a));
    CHECK_EQ(is_pinned(s, c.gen), 1);
    pgs__pin_drop(s, &c);
    CHECK_EQ(atomic_load(&pgs__ctl_slot(&s->ctl, s->slot)->n_pins), 0);
    pgs__session_unref(s);
}

/* A root without pages: these tests look at pins only. */
static void fake_commit(struct pgs__session *s)
{
    struct pgs__root root = head_of(s);
    root.gen++;
    root.version++;
    pgs__ctl_stage(&s->ctl, &root);
    pgs__ctl_publish(&s->ctl, root.gen);
}

TEST(a_process_pins_up_to_4108_generations_and_then_says_so)
{
    struct pgs__session *s = must_open_anonymous();
    struct pgs__root root;
    static struct pgs__pin pins[PGS__MAX_PINS];
    for (uint32_t i = 0; i < PGS__MAX_PINS; i++) {
        CHECK_OK(pgs__pin_head(s, &root, &pins[i], &err));
        fake_commit(s);
    }
    struct pgs__pin more;
    CHECK_ERR(pgs__pin_head(s, &root, &more, &err), PGS_ENOMEM);
    CHECK(strstr(err.text, "4108 generations: close snapshots"));
    struct pgs__pinned_set set;
    CHECK_OK(pgs__pinned_collect(s, &set, &err));
    CHECK_EQ(set.n, PGS__MAX_PINS);
    for (uint32_t i = 0; i < PGS__MAX_PINS; i++) CHECK_EQ(pgs__pinned(&set, pins[i].gen), 1);
    CHECK_EQ(pgs__pinned(&set, root.gen + 1), 0);
    pgs__pinned_free(&set);
    pgs__pin_drop(s, &pins[100]);
    CHECK_OK(pgs__pin_head(s, &root, &pins[100], &err));
    for (uint32_t i = PGS__MAX_PINS; i-- > 0;) pgs__pin_drop(s, &pins[i]);
    CHECK_EQ(atomic_load(&pgs__ctl_slot(&s->ctl, s->slot)->n_pins), 0);
    pgs__session_unref(s);
}

static int find_version(struct pgs__ledger *l, void *ctx, struct pgs__root *root, struct pgs_error *e)
{
    return pgs__ledger_find_version(l, *(uint64_t *)ctx, root, e);
}

TEST(versions_and_generations_are_found_and_pinned)
{
    struct pgs__session *s = must_open_anonymous();
    struct pgs__root root;
    struct pgs__pin pin, again;
    for (int i = 0; i < 3; i++) CHECK_OK(tiny_commit(s, &err));
    uint64_t v = 1;
    CHECK_OK(pgs__pin_find(s, find_version, &v, &root, &pin, &err));
    CHECK_EQ(root.version, 1);
    CHECK_EQ(is_pinned(s, root.gen), 1);
    CHECK_OK(pgs__pin_gen(s, root.gen, -1, &root, &again, &err));
    CHECK_EQ(again.index, pin.index);
    v = 77;
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__pin_find(s, find_version, &v, &root, &again, &err), PGS_EINVAL);
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__pin_gen(s, 9999, -1, &root, &again, &err), PGS_EEXPIRED);
    pgs__pin_drop(s, &pin);
    pgs__pin_drop(s, &pin);
    pgs__session_unref(s);
}

TEST(an_expired_generation_is_pinned_by_number_as_long_as_it_is_in_the_chain)
{
    struct pgs__session *s = must_open_anonymous();
    struct pgs__root root;
    struct pgs__pin pin;
    CHECK_OK(tiny_commit(s, &err));
    uint64_t gen = head_of(s).gen;
    CHECK_OK(commit_kind(s, false, &err)); /* maintenance: the superseded head is expired at once */
    CHECK_OK(pgs__pin_gen(s, gen, 1000000000, &root, &pin, &err));
    CHECK_EQ(root.gen, gen);
    CHECK_EQ(is_pinned(s, gen), 1);
    pgs__pin_drop(s, &pin);
    pgs__session_unref(s);
}

TEST(readers_of_meta_data_are_known_by_their_oldest_head)
{
    struct pgs__session *s = must_open_anonymous();
    struct pgs__ledger a, b, c;
    CHECK(pgs__min_meta_pin(s) == UINT64_MAX);
    CHECK_OK(pgs__meta_begin(s, &a, &err));
    CHECK_OK(tiny_commit(s, &err));
    CHECK_OK(pgs__meta_begin(s, &b, &err));
    CHECK_OK(pgs__meta_begin(s, &c, &err));
    CHECK_EQ(pgs__min_meta_pin(s), 1);
    pgs__meta_end(s, &a);
    CHECK_EQ(pgs__min_meta_pin(s), 2);
    pgs__meta_end(s, &b);
    CHECK_EQ(pgs__min_meta_pin(s), 2);
    CHECK_OK(tiny_commit(s, &err));
    CHECK_OK(pgs__meta_begin(s, &a, &err));
    pgs__meta_end(s, &c);
    CHECK_EQ(pgs__min_meta_pin(s), 3);
    pgs__meta_end(s, &a);
    CHECK(pgs__min_meta_pin(s) == UINT64_MAX);
    pgs__session_unref(s);
}

/* --- the commit lock --------------------------------------------------------------------------------------------------------------------- */
TEST(a_lock_that_cannot_be_had_names_its_holder)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK_OK(pgs__commit_lock(s, NULL, &err));
        gate_open(&up);
        gate_wait(&down);
        pgs__commit_unlock(s);
        _exit(0);
    }
    gate_wait(&up);
    char who[64];
    snprintf(who, sizeof who, "held by process %d (test_session", (int)pid);
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__commit_lock(s, &(struct pgs__wait){.timeout_ns = 120000000}, &err), PGS_ELOCKED);
    if (!strstr(err.text, who) || !strstr(err.text, " for 0.1") || !strstr(err.text, " s; raise timeout="))
        TEST_FAIL("%s", err.text);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(s);
}

static int stop_at_third(void *ctx)
{
    return ++*(int *)ctx == 3;
}

TEST(waiting_for_the_lock_can_be_interrupted)
{
    struct pgs__session *s = must_open_anonymous();
    int n = 0;
    struct gate up = gate_new(), down = gate_new();
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK_OK(pgs__commit_lock(s, NULL, &err));
        gate_open(&up);
        gate_wait(&down);
        _exit(0); /* with the lock: recovered below */
    }
    gate_wait(&up);
    struct pgs__wait w = {.timeout_ns = -1, .interrupted = stop_at_third, .ctx = &n};
    CHECK_ERR(pgs__commit_lock(s, &w, &err), PGS_EINTR);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_OK(tiny_commit(s, &err));
    pgs__session_unref(s);
}

/* --- leases -------------------------------------------------------------------------------------------------------------------------------- */
TEST(a_lease_pins_until_its_deadline_and_is_only_prolonged)
{
    struct pgs__session *s = must_open_anonymous();
    CHECK_OK(tiny_commit(s, &err));
    CHECK_EQ(is_pinned(s, 1), 0);
    CHECK_OK(pgs__lease_set(s, 1, 60000000000, &err));
    CHECK_OK(pgs__lease_set(s, 1, 1000, &err));
    CHECK_EQ(is_pinned(s, 1), 1);
    CHECK_EQ(is_pinned(s, 2), 0);
    uint32_t n = 0;
    for (uint32_t i = 0; i < PGS__N_LEASES; i++) n += atomic_load(&pgs__ctl_lease(&s->ctl, i)->gen) != 0;
    CHECK_EQ(n, 1);
    CHECK_OK(pgs__lease_set(s, 2, 1000000, &err));
    nanosleep(&(struct timespec){.tv_nsec = 40000000}, NULL);
    CHECK_EQ(is_pinned(s, 2), 0);
    CHECK_EQ(is_pinned(s, 1), 1);
    CHECK_EQ(pgs__leases_clean(s, false), 1);
    CHECK_EQ(pgs__leases_clean(s, true), 1);
    CHECK_EQ(is_pinned(s, 1), 0);
    pgs__session_unref(s);
}

TEST(a_full_table_of_leases_keeps_more_rather_than_less)
{
    struct pgs__session *s = must_open_anonymous();
    uint32_t n = PGS__N_LEASES + 300;
    for (uint32_t i = 1; i <= 2 * n; i++) fake_commit(s);
    for (uint32_t i = 1; i <= n; i++) CHECK_OK(pgs__lease_set(s, 2 * i, 60000000000, &err));
    CHECK_OK(pgs__lease_set(s, 1, 60000000000, &err)); /* before all others */
    struct pgs__pinned_set set;
    CHECK_OK(pgs__pinned_collect(s, &set, &err));
    for (uint32_t i = 1; i <= n; i++) CHECK_EQ(pgs__pinned(&set, 2 * i), 1);
    CHECK_EQ(pgs__pinned(&set, 1), 1);
    pgs__pinned_free(&set);
    pgs__session_unref(s);
}

/* --- waiting --------------------------------------------------------------------------------------------------------------------------------- */
static void *commit_soon(void *s)
{
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    struct pgs_error e = {0};
    CHECK(commit_kind(s, false, &e) == 0);
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    CHECK(tiny_commit(s, &e) == 0);
    return NULL;
}

TEST(waiting_ends_with_a_version_and_not_with_maintenance)
{
    struct pgs__session *s = must_open_anonymous();
    pthread_t t;
    uint64_t version = 0;
    struct pgs__wait w = {.timeout_ns = 10000000};
    CHECK_ERR(pgs__wait_version(s, 0, &w, &version, &err), PGS_ETIMEDOUT);
    CHECK(pthread_create(&t, NULL, commit_soon, s) == 0);
    w.timeout_ns = 10000000000;
    uint64_t start = pgs__clock_mono_ns();
    CHECK_OK(pgs__wait_version(s, 0, &w, &version, &err));
    CHECK_EQ(version, 1);
    CHECK(pgs__clock_mono_ns() - start > 50000000);
    CHECK_EQ(atomic_load(&s->ctl.c->n_waiters), 0);
    pthread_join(t, NULL);
    CHECK_OK(pgs__wait_version(s, 0, &w, &version, &err));
    int n = 0;
    w.interrupted = stop_at_third;
    w.ctx = &n;
    CHECK_ERR(pgs__wait_version(s, 1, &w, &version, &err), PGS_EINTR);
    pgs__session_unref(s);
}

/* --- handles ----------------------------------------------------------------------------------------------------------------------------------- */
TEST(a_handle_of_a_store_with_a_path_is_the_path)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0), *t;
    char handle[200];
    size_t n = pgs__session_handle(s, handle, sizeof handle);
    CHECK_EQ(n, strlen(store_path));
    CHECK(memcmp(handle, store_path, n) == 0);
    CHECK_OK(pgs__session_open_handle(handle, n, NULL, &t, &err));
    CHECK(s == t);
    pgs__session_unref(t);
    pgs__session_unref(s);
}

TEST(anonymous_stores_are_reached_by_handle_from_unrelated_processes)
{
    struct gate up = gate_new(), down = gate_new();
    int to[2];
    CHECK(pipe(to) == 0);
    pid_t pid = fork_bounded(); /* before the store exists */
    if (pid == 0) {
        uint8_t handle[256];
        ssize_t n = read(to[0], handle, sizeof handle);
        struct pgs__session *s;
        CHECK(n > 0);
        CHECK_OK(pgs__session_open_handle(handle, (size_t)n, NULL, &s, &err));
        CHECK_OK(tiny_commit(s, &err));
        CHECK_EQ(tagged_slots(s), 2);
        n = (ssize_t)pgs__session_handle(s, handle, sizeof handle); /* lists both members */
        if (pgs__cap(PGS__CAP_PROC_FD)) CHECK_EQ(n, 36 + 2 * 12);
        gate_open(&up);
        gate_wait(&down);
        pgs__session_unref(s);
        _exit(0);
    }
    struct pgs__session *s = must_open_anonymous(), *t;
    uint8_t handle[256];
    size_t n = pgs__session_handle(s, handle, sizeof handle);
    CHECK(n <= 200);
    CHECK(write(to[1], handle, n) == (ssize_t)n);
    gate_wait(&up);
    CHECK_EQ(head_of(s).version, 1);
    CHECK_OK(pgs__session_open_handle(handle, n, NULL, &t, &err));
    CHECK(t == s);
    n = pgs__session_handle(s, handle, sizeof handle);
    if (pgs__cap(PGS__CAP_PROC_FD)) CHECK_EQ(n, 36 + 2 * 12);
    pgs__session_unref(t);
    pgs__session_unref(s); /* the child still has it */
    CHECK_OK(pgs__session_open_handle(handle, n, NULL, &s, &err));
    CHECK_EQ(head_of(s).version, 1);
    gate_open(&down);
    CHECK_EQ(wait_for(pid), 0);
    pgs__session_unref(s);
    err = (struct pgs_error){0};
    CHECK_ERR(pgs__session_open_handle(handle, n, NULL, &s, &err), PGS_ENOENT); /* gone with the last */
    CHECK_ERR(pgs__session_open_handle(handle, n - 1, NULL, &s, &err), PGS_EINVAL);
    handle[0] ^= 1;
    CHECK_ERR(pgs__session_open_handle(handle, n, NULL, &s, &err), PGS_EINVAL);
    CHECK_ERR(pgs__session_open_handle(handle, 0, NULL, &s, &err), PGS_EINVAL);
}

/* --- a hostile host program ----------------------------------------------------------------------------------------------------------------------- */
static void close_everything(void)
{
    for (int fd = 3; fd < 256; fd++) close(fd);
}

TEST(closing_all_descriptors_loses_neither_slot_nor_pins_nor_the_ability_to_commit)
{
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct pgs__root root;
    struct pgs__pin pin;
    CHECK_OK(pgs__pin_head(s, &root, &pin, &err));
    close_everything();
    for (int i = 0; i < 5; i++) CHECK(open("/dev/null", O_RDWR) >= 0); /* the numbers mean something else now */
    pid_t pid = fork_bounded();
    if (pid == 0) {
        CHECK_EQ(pgs__sweep(s, true), 0);
        CHECK_EQ(is_pinned(s, pin.gen), 1);
        _exit(0);
    }
    CHECK_EQ(wait_for(pid), 0);
    CHECK_OK(tiny_commit(s, &err));
    CHECK_EQ(is_pinned(s, pin.gen), 1);
    pgs__pin_drop(s, &pin);
    pgs__session_unref(s);
    expect_version(1);
}

TEST(opening_fails_cleanly_wherever_a_file_operation_fails)
{
    in_memory();
    commits_then_close(0, 1);
    for (int creating = 0; creating < 2; creating++) {
        int failures = 0;
        for (uint64_t n = 1; n < 200; n++) {
            if (creating) snprintf(store_path, sizeof store_path, "%s/n%d.ps", scratch, (int)n);
            uint64_t before = pgs__inject_count(PGS__FAIL_FILE);
            pgs__inject_fail(PGS__FAIL_FILE, n, EIO, false);
            int rc = try_open(PGS_MODE_A);
            bool reached = pgs__inject_count(PGS__FAIL_FILE) - before >= n;
            pgs__inject_clear();
            failures += rc != 0;
            CHECK(rc == 0 || err.text[0]);
            CHECK_EQ(try_open(PGS_MODE_A), 0);
            if (!reached) break;
        }
        CHECK(failures > 5);
    }
}

TEST(opening_fails_cleanly_wherever_memory_runs_out)
{
    in_memory();
    commits_then_close(0, 1);
    for (uint64_t n = 1; n < 200; n++) {
        uint64_t before = pgs__inject_count(PGS__FAIL_MEM);
        pgs__inject_fail(PGS__FAIL_MEM, n, ENOMEM, false);
        int rc = try_open(PGS_MODE_A);
        bool reached = pgs__inject_count(PGS__FAIL_MEM) - before >= n;
        pgs__inject_clear();
        CHECK(rc == 0 || rc == -PGS_ENOMEM);
        if (!reached) break;
        CHECK_EQ(try_open(PGS_MODE_A), 0);
    }
}

TEST(speed_of_a_pin_and_of_opening)
{
    if (!getenv("TEST_SPEED")) SKIP("TEST_SPEED is not set");
    in_memory();
    struct pgs__session *s = must_open(PGS_MODE_A, 0);
    struct pgs__root root;
    struct pgs__pin pin;
    uint64_t start = pgs__clock_mono_ns(), n = 2000000;
    for (uint64_t i = 0; i < n; i++) {
        pgs__pin_head(s, &root, &pin, NULL);
        pgs__pin_drop(s, &pin);
    }
    double cold = (double)(pgs__clock_mono_ns() - start) / (double)n;
    struct pgs__pin held;
    pgs__pin_head(s, &root, &held, NULL);
    start = pgs__clock_mono_ns();
    for (uint64_t i = 0; i < n; i++) {
        pgs__pin_head(s, &root, &pin, NULL);
        pgs__pin_drop(s, &pin);
    }
    double warm = (double)(pgs__clock_mono_ns() - start) / (double)n;
    pgs__pin_drop(s, &held);
    pgs__session_unref(s);
    start = pgs__clock_mono_ns();
    for (int i = 0; i < 200; i++) pgs__session_unref(must_open(PGS_MODE_RPLUS, 0));
    double opening = (double)(pgs__clock_mono_ns() - start) / 200e3;
    fprintf(stderr, "pin + unpin of the head: %.0f ns; while pinned: %.0f ns; open + close: %.0f us\n", cold, warm,
            opening);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
