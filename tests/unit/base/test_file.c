#include "unit.h"

#include "base/file.h"
#include "base/str.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void create(void **state, const char *name, const char *text)
{
    Err err = ERR_INIT;
    assert_ok(file_create_durable(unit_path(state, name), text, strlen(text), 0600, &err), &err);
}

static void test_create_and_read(void **state)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, "new");
    mode_t mask = umask(0);
    assert_ok(file_create_durable(path, "hello", 5, 0640, &err), &err);
    (void)umask(mask);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    char *text = NULL;
    size_t n = 0;
    assert_ok(file_read(path, 5, &text, &n, &err), &err);
    assert_int_equal(n, 5);
    assert_string_equal(text, "hello");
    free(text);
    assert_fails(file_read(path, 4, &text, &n, &err), &err, ERR_TOO_LARGE);

    // A name that is taken stays what it is.
    assert_fails(file_create_durable(path, "other", 5, 0600, &err), &err, ERR_EXISTS);
    assert_ok(file_read(path, SIZE_MAX, &text, NULL, &err), &err);
    assert_string_equal(text, "hello");
    free(text);
    assert_int_equal(symlink("nowhere", unit_path(state, "dangling")), 0);
    assert_fails(file_create_durable(unit_path(state, "dangling"), "x", 1, 0600, &err), &err,
                 ERR_EXISTS);
    assert_false(file_exists(unit_path(state, "nowhere")));
}

// What a full disk leaves behind would be taken for the file.
static void test_create_removes_what_failed(void **state)
{
    const char *path = unit_path(state, "too-large");
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct sigaction ignore = {.sa_handler = SIG_IGN};
        (void)sigaction(SIGXFSZ, &ignore, NULL);
        struct rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        static const char big[8192];
        Err err = ERR_INIT;
        bool ok = file_create_durable(path, big, sizeof(big), 0600, &err);
        _exit(!ok && err.code == ERR_IO && !file_exists(path) ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void test_read_refuses(void **state)
{
    Err err = ERR_INIT;
    char *text = (char *)state;
    assert_fails(file_read(unit_path(state, "absent"), 10, &text, NULL, &err), &err, ERR_NOT_FOUND);
    assert_fails(file_read((const char *)*state, 10, &text, NULL, &err), &err, ERR_INVALID);
    assert_fails(file_read("/dev/zero", 10, &text, NULL, &err), &err, ERR_INVALID);
    assert_int_equal(mkfifo(unit_path(state, "fifo"), 0600), 0);
    assert_fails(file_read(unit_path(state, "fifo"), 10, &text, NULL, &err), &err,
                 ERR_INVALID); // and does not wait
    assert_ok(file_create_durable(unit_path(state, "nul"), "a\0b", 3, 0600, &err), &err);
    assert_fails(file_read(unit_path(state, "nul"), 10, &text, NULL, &err), &err, ERR_INVALID);
    assert_ptr_equal(text, state);
    size_t n = 0;
    assert_ok(file_read(unit_path(state, "nul"), 10, &text, &n, &err), &err);
    assert_int_equal(n, 3);
    free(text);
}

static void test_read_sizes(void **state)
{
    // st_size is 0 for what the kernel makes up: reading goes by the end, not by the size.
    Err err = ERR_INIT;
    char *text = NULL;
    size_t n = 0;
    assert_ok(file_read("/proc/self/status", 1 << 20, &text, &n, &err), &err);
    assert_true(n > 100 && strlen(text) == n);
    free(text);
    assert_fails(file_read("/proc/self/status", 100, &text, &n, &err), &err, ERR_TOO_LARGE);
    create(state, "empty", "");
    assert_ok(file_read(unit_path(state, "empty"), 0, &text, &n, &err), &err);
    assert_int_equal(n, 0);
    assert_string_equal(text, "");
    free(text);
}

static void test_positions(void **state)
{
    Err err = ERR_INIT;
    cleanup_close int fd = open(unit_path(state, "data"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_ok(file_pwrite(fd, "world", 5, 6, &err), &err);
    assert_ok(file_write(fd, "hello ", 6, &err), &err);
    char buf[16] = "";
    assert_ok(file_pread(fd, buf, 11, 0, &err), &err);
    assert_string_equal(buf, "hello world");
    assert_ok(file_pread(fd, buf, 0, 11, &err), &err);
    assert_fails(file_pread(fd, buf, 12, 0, &err), &err, ERR_DAMAGED);
    assert_fails(file_pread(fd, buf, 1, 11, &err), &err, ERR_DAMAGED);
    assert_fails(file_pread(fd, buf, 1, INT64_MAX, &err), &err, ERR_INVALID);
    assert_fails(file_pread(fd, buf, 1, UINT64_MAX, &err), &err, ERR_INVALID);
    assert_fails(file_pwrite(fd, buf, 2, UINT64_MAX, &err), &err, ERR_INVALID);
    cleanup_close int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(full >= 0);
    assert_fails(file_write(full, "x", 1, &err), &err, ERR_NO_SPACE);
    assert_fails(file_pwrite(full, "x", 1, 0, &err), &err, ERR_NO_SPACE);
}

static void test_folders(void **state)
{
    Err err = ERR_INIT;
    assert_ok(file_mkdir(unit_path(state, "d"), 0700, &err), &err);
    assert_ok(file_mkdir(unit_path(state, "d"), 0700, &err), &err);
    assert_ok(file_mkdir_p(unit_path(state, "d/e//f/"), 0700, &err), &err);
    assert_ok(file_mkdir_p(unit_path(state, "d/e/f"), 0700, &err), &err);
    assert_true(file_is_dir(unit_path(state, "d/e/f")));
    assert_ok(file_mkdir_p("/", 0700, &err), &err);
    create(state, "file", "x");
    assert_fails(file_mkdir(unit_path(state, "file"), 0700, &err), &err, ERR_EXISTS);
    assert_false(file_mkdir_p(unit_path(state, "file/x"), 0700, &err));
    err_clear(&err);
    assert_fails(file_mkdir(unit_path(state, "no/x"), 0700, &err), &err, ERR_NOT_FOUND);
    assert_ok(file_fsync_dir(unit_path(state, "d"), &err), &err);
    assert_fails(file_fsync_dir(unit_path(state, "file"), &err), &err, ERR_IO);
    assert_false(file_is_dir(unit_path(state, "file")));
    assert_false(file_is_dir(unit_path(state, "absent")));
}

static void test_names(void **state)
{
    Err err = ERR_INIT;
    create(state, "a", "A");
    create(state, "b", "B");
    assert_fails(file_link(unit_path(state, "a"), unit_path(state, "b"), &err), &err, ERR_EXISTS);
    assert_ok(file_link(unit_path(state, "a"), unit_path(state, "c"), &err), &err);
    assert_ok(file_rename(unit_path(state, "a"), unit_path(state, "b"), &err), &err);
    assert_false(file_exists(unit_path(state, "a")));
    assert_fails(file_rename(unit_path(state, "a"), unit_path(state, "b"), &err), &err,
                 ERR_NOT_FOUND);
    assert_ok(file_unlink(unit_path(state, "b"), &err), &err);
    assert_ok(file_unlink(unit_path(state, "b"), &err), &err);
    assert_false(file_unlink((const char *)*state, &err)); // a folder
    err_clear(&err);
    assert_int_equal(symlink("c", unit_path(state, "to-c")), 0);
    char *real = NULL;
    assert_ok(file_realpath(unit_path(state, "./to-c"), &real, &err), &err);
    assert_true(str_ends(real, "/c"));
    free(real);
    assert_fails(file_realpath(unit_path(state, "a"), &real, &err), &err, ERR_NOT_FOUND);
    assert_int_equal(symlink("nowhere", unit_path(state, "dangling")), 0);
    assert_true(file_exists(unit_path(state, "dangling")));
    static const char *const joins[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}};
    for (size_t i = 0; i < ARRAY_LEN(joins); i++) {
        cleanup_free char *path = file_join(joins[i][0], joins[i][1], &err);
        assert_string_equal(path, joins[i][2]);
    }
}

static void test_list(void **state)
{
    Err err = ERR_INIT;
    FileList list = {.len = 4711};
    assert_ok(file_list((const char *)*state, 0, &list, &err), &err);
    assert_int_equal(list.len, 0);
    file_list_clear(&list);
    static const char *const names[] = {"b", "a", ".hidden", "c\n", "B", "10", "9"};
    static const char *const sorted[] = {".hidden", "10", "9", "B", "a", "b", "c\n"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        create(state, names[i], "");
    assert_fails(file_list((const char *)*state, 6, &list, &err), &err, ERR_TOO_LARGE);
    assert_ok(file_list((const char *)*state, 7, &list, &err), &err);
    assert_int_equal(list.len, 7);
    for (size_t i = 0; i < list.len; i++)
        assert_string_equal(list.names[i], sorted[i]);
    file_list_clear(&list);
    assert_fails(file_list(unit_path(state, "absent"), 7, &list, &err), &err, ERR_NOT_FOUND);
    assert_fails(file_list(unit_path(state, "a"), 7, &list, &err), &err, ERR_IO);
}

static void test_remove_tree(void **state)
{
    Err err = ERR_INIT;
    assert_ok(file_mkdir_p(unit_path(state, "outside"), 0700, &err), &err);
    create(state, "outside/precious", "x");
    assert_ok(file_mkdir_p(unit_path(state, "tree/a/b"), 0700, &err), &err);
    assert_ok(file_mkdir_p(unit_path(state, "tree/.c"), 0700, &err), &err);
    for (int i = 0; i < 500; i++) {
        char name[32];
        (void)snprintf(name, sizeof(name), "tree/a/file-%d", i);
        create(state, name, "");
    }
    assert_int_equal(symlink("../../outside", unit_path(state, "tree/a/link")), 0);
    assert_int_equal(symlink("outside", unit_path(state, "to-outside")), 0);
    int before = unit_open_fds();
    assert_ok(file_remove_tree(unit_path(state, "tree/"), &err), &err);
    assert_false(file_exists(unit_path(state, "tree")));
    assert_ok(file_remove_tree(unit_path(state, "tree"), &err), &err);
    assert_ok(file_remove_tree(unit_path(state, "no/tree"), &err), &err);
    assert_ok(file_remove_tree(unit_path(state, "to-outside"), &err),
              &err); // the link, not what it names
    assert_false(file_exists(unit_path(state, "to-outside")));
    assert_true(file_exists(unit_path(state, "outside/precious")));
    assert_ok(file_remove_tree(unit_path(state, "outside/precious"), &err), &err); // a file
    assert_int_equal(unit_open_fds(), before);
    static const char *const never[] = {"/", "//", ".", "..", "", "/tmp/..", "a/."};
    for (size_t i = 0; i < ARRAY_LEN(never); i++)
        assert_fails(file_remove_tree(never[i], &err), &err, ERR_INVALID);
}

static void test_remove_tree_depth(void **state)
{
    Err err = ERR_INIT;
    char path[4096];
    int n = snprintf(path, sizeof(path), "%s/deep", (const char *)*state);
    for (int i = 0; i < 99; i++)
        n += snprintf(path + n, sizeof(path) - (size_t)n, "/d");
    assert_ok(file_mkdir_p(path, 0700, &err), &err);
    assert_ok(file_remove_tree(unit_path(state, "deep"), &err), &err);
}

static int in_namespace_of_its_own(void **state)
{
    Err err = ERR_INIT;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(unit_path(state, "outside"), unit_path(state, "tree/mnt"), NULL, MS_BIND, NULL) != 0)
        return 77;
    if (file_remove_tree(unit_path(state, "tree"), &err) || err.code != ERR_BUSY)
        return 1;
    err_clear(&err);
    if (file_remove_tree(unit_path(state, "tree/mnt"), &err) || err.code != ERR_BUSY)
        return 2;
    return 0;
}

// A repository bind-mounted below a folder to remove was emptied with it: both are one device.
static void test_remove_tree_stops_at_a_mount(void **state)
{
    Err err = ERR_INIT;
    assert_ok(file_mkdir_p(unit_path(state, "outside"), 0700, &err), &err);
    assert_ok(file_mkdir_p(unit_path(state, "tree/mnt"), 0700, &err), &err);
    create(state, "outside/precious", "x");
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(in_namespace_of_its_own(state));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(file_exists(unit_path(state, "outside/precious")));
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip(); // needs CAP_SYS_ADMIN
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_space(void **state)
{
    Err err = ERR_INIT;
    uint64_t free_bytes = 0, total = 0;
    assert_ok(file_space((const char *)*state, &free_bytes, &total, &err), &err);
    assert_true(total > 0 && free_bytes <= total);
    assert_fails(file_space(unit_path(state, "absent"), &free_bytes, &total, &err), &err,
                 ERR_NOT_FOUND);
}

static void test_lock(void **state)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, "lock");
    int a = -1, b = 4711;
    assert_ok(file_lock(path, &a, &err), &err);
    assert_fails(file_lock(path, &b, &err), &err, ERR_BUSY);
    assert_int_equal(b, 4711);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(fcntl(a, F_GETFD) & FD_CLOEXEC);

    // Another process is refused, and gets it once ours is closed.
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)close(
            a); // the child's copy: the lock belongs to the open file, which the parent still has
        int c;
        Err child_err = ERR_INIT;
        _exit(!file_lock(path, &c, &child_err) && child_err.code == ERR_BUSY ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    (void)close(a);
    assert_ok(file_lock(path, &b, &err), &err);

    // The file was removed under its holder: the next one locks a new file, and knows.
    assert_int_equal(unlink(path), 0);
    assert_ok(file_lock(path, &a, &err), &err);
    (void)close(a);
    (void)close(b);
    assert_int_equal(symlink("lock", unit_path(state, "link")), 0);
    assert_fails(file_lock(unit_path(state, "link"), &a, &err), &err, ERR_IO);
}

typedef struct Race {
    const char *path;
    atomic_int holders, faults;
} Race;

// Each is held until its descriptor is closed, by one process or by several.
static void test_places(void **state)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, "places");
    int a = -1, b = -1, c = -1;
    assert_ok(file_lock_place(path, 2, &a, &err), &err);
    assert_ok(file_lock_place(path, 2, &b, &err), &err);
    assert_fails(file_lock_place(path, 2, &c, &err), &err, ERR_BUSY);
    assert_fails(file_lock_place(path, 1, &c, &err), &err, ERR_BUSY);
    assert_ok(file_lock_place(path, 3, &c, &err), &err);
    mem_cleanup_close(&c);
    mem_cleanup_close(&a);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        Err child_err = ERR_INIT;
        _exit(file_lock_place(path, 2, &c, &child_err) && // a's
                      !file_lock_place(path, 2, &a, &child_err) && child_err.code == ERR_BUSY
                  ? 0
                  : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_ok(file_lock_place(path, 2, &a, &err), &err); // it ended without a word
    mem_cleanup_close(&a);
    mem_cleanup_close(&b);
    assert_int_equal(symlink("places", unit_path(state, "link")), 0);
    assert_fails(file_lock_place(unit_path(state, "link"), 2, &a, &err), &err, ERR_IO);
}

static void test_private_folders(void **state)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, "ours");
    assert_ok(file_mkdir_private(path, &err), &err);
    assert_ok(file_mkdir_private(path, &err), &err); // as it is
    assert_int_equal(chmod(path, 0710), 0);
    assert_fails(file_mkdir_private(path, &err), &err, ERR_FORBIDDEN);
    assert_int_equal(chmod(path, 0700), 0);
    assert_int_equal(symlink("ours", unit_path(state, "link")), 0);
    assert_fails(file_mkdir_private(unit_path(state, "link"), &err), &err, ERR_FORBIDDEN);
    assert_fails(file_mkdir_private(unit_path(state, "no/where"), &err), &err, ERR_NOT_FOUND);
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 1, 1), 0);
        assert_fails(file_mkdir_private(path, &err), &err, ERR_FORBIDDEN);
    }
}

static void *lock_and_remove(void *arg)
{
    Race *r = arg;
    for (int i = 0; i < 3000; i++) {
        int fd = -1;
        Err err = ERR_INIT;
        if (!file_lock(r->path, &fd, &err)) {
            r->faults += err.code != ERR_BUSY;
            continue;
        }
        r->faults += atomic_fetch_add(&r->holders, 1) != 0;
        (void)sched_yield();
        (void)atomic_fetch_sub(&r->holders, 1);
        (void)unlink(r->path); // from here on others may have it
        (void)close(fd);
    }
    return NULL;
}

// Holders that remove the file as they leave: who had it open by then locked a file without a name, and two
// held "the" lock.
static void test_lock_whose_file_is_removed(void **state)
{
    Race r = {.path = unit_path(state, "race")};
    pthread_t t[4];
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, lock_and_remove, &r), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    assert_int_equal(r.faults, 0);
}

static bool says(const Err *err, const char *word)
{
    return err->code == ERR_BUSY && strstr(err->details, word);
}

// Between two opened descriptors, also of one process; QEMU's locks are told from others'.
static void test_locked_bytes(void **state)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, "image");
    int a = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), b = open(path, O_RDWR | O_CLOEXEC),
        reader = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(a >= 0 && b >= 0 && reader >= 0);
    assert_ok(file_lock_bytes(a, path, &err), &err);
    assert_ok(file_lock_bytes(a, path, &err), &err);
    assert_ok(file_bytes_are_free(a, path, &err), &err);
    assert_false(file_lock_bytes(b, path, &err));
    assert_true(says(&err, "another process"));
    err_clear(&err);
    assert_fails(file_bytes_are_free(reader, path, &err), &err, ERR_BUSY);
    assert_int_equal(close(a), 0);
    assert_ok(file_bytes_are_free(reader, path, &err), &err);
    // As QEMU's block/file-posix.c does: "I use the permission to write"
    struct flock qemu = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
    assert_int_equal(fcntl(reader, F_OFD_SETLK, &qemu), 0);
    assert_false(file_lock_bytes(b, path, &err));
    assert_true(says(&err, "QEMU"));
    err_clear(&err);
    assert_int_equal(close(reader), 0);
    assert_ok(file_lock_bytes(b, path, &err), &err);
    assert_int_equal(close(b), 0);
}

#define in_folder(f) cmocka_unit_test_setup_teardown(f, unit_folder_setup, unit_folder_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_create_and_read),
        in_folder(test_create_removes_what_failed),
        in_folder(test_read_refuses),
        in_folder(test_read_sizes),
        in_folder(test_positions),
        in_folder(test_folders),
        in_folder(test_names),
        in_folder(test_list),
        in_folder(test_remove_tree),
        in_folder(test_remove_tree_depth),
        in_folder(test_remove_tree_stops_at_a_mount),
        in_folder(test_space),
        in_folder(test_lock),
        in_folder(test_places),
        in_folder(test_private_folders),
        in_folder(test_lock_whose_file_is_removed),
        in_folder(test_locked_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
