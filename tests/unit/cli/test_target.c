#include "unit.h"

#include "base/file.h"
#include "base/proc.h"
#include "cli/target.h"
#include "image/repo.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void make_folder(const char *path)
{
    Err err = ERR_INIT;
    assert_ok(file_mkdir_p(path, 0700, &err), &err);
}

static bool check(const char *path, bool force, Err *err)
{
    Target t = {0};
    bool fine = target_check(&target_system, path, force, &t, err);
    target_clear(&t);
    return fine;
}

static void a_new_file_is_welcome(void **state)
{
    Err err = ERR_INIT;
    Target t = {0};
    char real[4096];
    assert_non_null(realpath(*state, real));
    assert_ok(target_check(&target_system, unit_path(state, "new"), false, &t, &err), &err);
    assert_false(t.device);
    char *folder = target_folder(&t, &err);
    assert_string_equal(folder, real);
    free(folder);
    target_clear(&t);
}

static void what_is_there_needs_force(void **state)
{
    Err err = ERR_INIT;
    write_file(unit_path(state, "old"), "x");
    assert_fails(check(unit_path(state, "old"), false, &err), &err, ERR_EXISTS);
    assert_ok(check(unit_path(state, "old"), true, &err), &err);
    // A link: what it leads to is meant
    assert_int_equal(symlink("old", unit_path(state, "link")), 0);
    Target t = {0};
    assert_fails(check(unit_path(state, "link"), false, &err), &err, ERR_EXISTS);
    assert_ok(target_check(&target_system, unit_path(state, "link"), true, &t, &err), &err);
    assert_string_equal(strrchr(t.path, '/'), "/old");
    target_clear(&t);
}

static void odd_paths_are_refused(void **state)
{
    Err err = ERR_INIT;
    assert_fails(check("", true, &err), &err, ERR_USAGE);
    assert_fails(check(*state, true, &err), &err, ERR_EXISTS); // a folder
    assert_fails(check("/dev/null", true, &err), &err, ERR_CONFLICT);
    assert_fails(check(unit_path(state, "none/new"), true, &err), &err, ERR_NOT_FOUND);
    assert_fails(check(unit_path(state, "none/"), true, &err), &err, ERR_USAGE);
    assert_int_equal(symlink("nowhere", unit_path(state, "dangling")), 0);
    assert_fails(check(unit_path(state, "dangling"), true, &err), &err, ERR_CONFLICT);
    assert_int_equal(mkfifo(unit_path(state, "fifo"), 0600), 0);
    assert_fails(check(unit_path(state, "fifo"), true, &err), &err, ERR_CONFLICT);
    write_file(unit_path(state, "file"), "x");
    assert_false(check(unit_path(state, "file/new"), true, &err));
}

static void a_repository_is_never_written_to(void **state)
{
    Err err = ERR_INIT;
    Repo repo = {0};
    assert_ok(repo_create(unit_path(state, "repo"), 65536, HASH_XXH3_128, &repo, &err), &err);
    repo_clear(&repo);
    make_folder(unit_path(state, "repo/ctx-a/disk-0"));
    assert_fails(check(unit_path(state, "repo/new"), true, &err), &err, ERR_CONFLICT);
    assert_fails(check(unit_path(state, "repo/ctx-a/disk-0/new"), true, &err), &err, ERR_CONFLICT);
    assert_fails(check(unit_path(state, "repo/repository.json"), true, &err), &err, ERR_CONFLICT);
    // By a link from outside, to a folder and to a file
    assert_int_equal(symlink("repo/ctx-a", unit_path(state, "way")), 0);
    assert_fails(check(unit_path(state, "way/new"), true, &err), &err, ERR_CONFLICT);
    assert_int_equal(symlink("repo/repository.json", unit_path(state, "name")), 0);
    assert_fails(check(unit_path(state, "name"), true, &err), &err, ERR_CONFLICT);
    assert_fails(check(unit_path(state, "repo/ctx-a/../new"), true, &err), &err, ERR_CONFLICT);
    assert_ok(check(unit_path(state, "repository"), true, &err), &err); // only the beginning of its name
}

// A QEMU that has the image open, by its own lock.
static void an_image_that_qemu_holds_is_refused(void **state)
{
    Err err = ERR_INIT;
    Proc qemu = PROC_NONE;
    int in[2], out[2];
    char said[256];
    const char *image = unit_path(state, "held.raw");
    write_file(image, "");
    assert_int_equal(truncate(image, 1 << 20), 0);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const char *const argv[] = {"qemu-io", "-f", "raw", image, NULL};
    ProcSpec spec = {.argv = argv,
                     .stdin_fd = in[0],
                     .stdout_fd = out[1],
                     .stderr_fd = -1,
                     .listen_fd = -1,
                     .die_with_parent = true};
    assert_ok(proc_spawn(&spec, &qemu, &err), &err);
    // Its prompt says that it has opened the image
    assert_true(read(out[0], said, sizeof(said)) > 0);
    assert_fails(check(image, true, &err), &err, ERR_BUSY);
    proc_stop(&qemu, 2000);
    assert_ok(check(image, true, &err), &err);
    assert_int_equal(close(in[0]) + close(in[1]) + close(out[0]) + close(out[1]), 0);
}

static void a_file_that_is_open_is_refused(void **state)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, "open");
    write_file(path, "x");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    if (fcntl(fd, F_SETLEASE, F_UNLCK) != 0 && errno == EINVAL)
        skip(); // this filesystem has no leases
    assert_fails(check(path, true, &err), &err, ERR_BUSY);
    assert_int_equal(close(fd), 0);
    assert_ok(check(path, true, &err), &err);
}

// ---- devices, with an account of our own. 8:16 has the partition 8:17, on which 253:0 was made.

typedef struct Account {
    char mountinfo[4096], swaps[4096], devices[4096], processes[4096];
    TargetSystem system;
} Account;

static void make_account(void **state, Account *a, const char *mounts, const char *swaps)
{
    (void)snprintf(a->mountinfo, sizeof(a->mountinfo), "%s", unit_path(state, "mountinfo"));
    (void)snprintf(a->swaps, sizeof(a->swaps), "%s", unit_path(state, "swaps"));
    (void)snprintf(a->devices, sizeof(a->devices), "%s", unit_path(state, "block"));
    (void)snprintf(a->processes, sizeof(a->processes), "%s", unit_path(state, "proc"));
    a->system =
        (TargetSystem){.mountinfo = a->mountinfo, .swaps = a->swaps, .devices = a->devices, .processes = a->processes};
    write_file(a->mountinfo, mounts);
    write_file(a->swaps, swaps);
    make_folder(unit_path(state, "proc/1/fd")); // one that has nothing open, one that may not be looked at
    make_folder(unit_path(state, "proc/2"));
    make_folder(unit_path(state, "proc/self/fd"));
    make_folder(unit_path(state, "block/8:16/sdb1"));
    make_folder(unit_path(state, "block/8:16/holders"));
    make_folder(unit_path(state, "block/8:16/queue"));
    write_file(unit_path(state, "block/8:16/dev"), "8:16\n");
    write_file(unit_path(state, "block/8:16/size"), "100\n");
    write_file(unit_path(state, "block/8:16/sdb1/dev"), "8:17\n");
    write_file(unit_path(state, "block/8:16/sdb1/partition"), "1\n");
    make_folder(unit_path(state, "block/8:16/device")); // the driver's own, not a block device
    write_file(unit_path(state, "block/8:16/device/dev"), "8:1\n");
    make_folder(unit_path(state, "block/8:17/holders/dm-0"));
    write_file(unit_path(state, "block/8:17/holders/dm-0/dev"), "253:0\n");
    make_folder(unit_path(state, "block/253:0/holders"));
}

static const char no_swaps[] = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

static bool is_free(void **state, const char *mounts, const char *swaps, Err *err)
{
    Account a;
    make_account(state, &a, mounts, swaps);
    return target_device_is_free(&a.system, "/dev/sdb", makedev(8, 16), err);
}

static void an_unused_device_is_free(void **state)
{
    Err err = ERR_INIT;
    assert_ok(is_free(state,
                      "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
                      "27 1 8:1 / / rw,noatime shared:1 - ext4 /dev/sda1 rw\n",
                      no_swaps, &err),
              &err);
    assert_ok(is_free(state, "", "", &err), &err);
}

static void a_mounted_device_is_refused(void **state)
{
    Err err = ERR_INIT;
    static const char *const mounts[] = {
        "27 1 8:16 / /mnt/disk rw,noatime shared:1 - ext4 /dev/sdb rw\n",
        "27 1 8:17 / /mnt/part rw - ext4 /dev/sdb1 rw\n",           // a partition of it
        "27 1 253:0 / /mnt/with\\040blank rw - xfs /dev/dm-0 rw\n", // what was made of a partition
        "22 27 0:21 / /proc rw - proc proc rw\n27 1 8:17 / /x rw master:1 propagate_from:2 - ext4 /dev/sdb1 rw\n",
    };
    static const char *const places[] = {"/mnt/disk", "/mnt/part", "/mnt/with blank", "/x"};
    for (size_t i = 0; i < ARRAY_LEN(mounts); i++) {
        assert_false(is_free(state, mounts[i], no_swaps, &err));
        assert_int_equal(err.code, ERR_BUSY);
        assert_non_null(strstr(err.details, places[i]));
        err_clear(&err);
    }
}

// What cannot be looked at is not taken for unused.
static void an_unknown_account_is_an_error(void **state)
{
    Err err = ERR_INIT;
    Account a;
    make_account(state, &a, "", "");
    const char **parts[] = {&a.system.mountinfo, &a.system.swaps, &a.system.processes};
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        const char *was = *parts[i];
        *parts[i] = unit_path(state, "no");
        assert_fails(target_device_is_free(&a.system, "/dev/sdb", makedev(8, 16), &err), &err, ERR_NOT_FOUND);
        *parts[i] = was;
    }
    assert_ok(target_device_is_free(&a.system, "/dev/sdb", makedev(8, 16), &err), &err);
}

// A real device, where this machine has one that is mounted.
static void the_root_device_is_refused(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    struct stat st;
    assert_int_equal(stat("/", &st), 0);
    char sys[64];
    (void)snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
    cleanup_free char *mounts = NULL;
    char device[32];
    (void)snprintf(device, sizeof(device), " %u:%u ", major(st.st_dev), minor(st.st_dev));
    assert_ok(file_read("/proc/self/mountinfo", 1u << 20, &mounts, NULL, &err), &err);
    if (!file_exists(sys) || !strstr(mounts, device))
        skip(); // an overlay or the like, or a root folder that is no mount (chroot)
    assert_fails(target_device_is_free(&target_system, "/dev/root", st.st_dev, &err), &err, ERR_BUSY);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, unit_folder_setup, unit_folder_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_new_file_is_welcome),
        TEST(what_is_there_needs_force),
        TEST(odd_paths_are_refused),
        TEST(a_repository_is_never_written_to),
        TEST(an_image_that_qemu_holds_is_refused),
        TEST(a_file_that_is_open_is_refused),
        TEST(an_unused_device_is_free),
        TEST(a_mounted_device_is_refused),
        TEST(an_unknown_account_is_an_error),
        TEST(the_root_device_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
