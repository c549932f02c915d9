#include "unit.h"

#include "base/clock.h"
#include "wire/child.h"
#include "wire/nbd.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static int folders_in_tmp(void)
{
    DIR *d = opendir("/tmp");
    assert_non_null(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));)
        n += strncmp(e->d_name, "sendense-", 9) == 0 && strlen(e->d_name) == 15;
    (void)closedir(d);
    return n;
}

static void test_serves_and_leaves_nothing(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    int folders = folders_in_tmp(), fds = unit_open_fds();
    Child *c = NULL;
    assert_ok(child_start((const char *const[]){"nbdkit", "-f", "memory", "1M", NULL}, NULL, &c, &err), &err);
    assert_int_equal(folders_in_tmp(), folders);
    assert_true(child_alive(c));
    Blocks *b = NULL;
    NbdSpec spec = {.socket = child_socket(c), .export_name = ""};
    assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
    b->ops->free(b);
    child_stop(c);
    child_stop(NULL);
    assert_int_equal(unit_open_fds(), fds);
}

static void test_says_why_it_failed(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Child *c = NULL;
    assert_ok(child_start((const char *const[]){"qemu-nbd", "-r", "/nonexistent/disk", NULL}, NULL, &c, &err), &err);
    char *said = NULL;
    assert_ok(child_said(c, &said, &err), &err);
    assert_non_null(strstr(said, "/nonexistent/disk"));
    free(said);
    assert_false(child_alive(c));
    child_stop(c);
    assert_fails(child_start((const char *const[]){"/nonexistent/program", NULL}, NULL, &c, &err), &err, ERR_NOT_FOUND);
}

// A child that says more than anybody reads is not held up by it.
static void test_talks_without_end(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Child *c = NULL;
    assert_ok(child_start((const char *const[]){"yes", "words", NULL}, NULL, &c, &err), &err);
    char *said = NULL;
    assert_ok(child_said(c, &said, &err), &err); // yes ends by itself: its output takes no more
    assert_in_range(strlen(said), 16000, 16384);
    free(said);
    child_stop(c);
}

// A password is in no argument and no file: the child reads it from a descriptor.
static void test_is_told_a_secret(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Child *c = NULL;
    cleanup(secret_clear) Secret secret = {0};
    assert_ok(secret_set(&secret, "s3cret word", &err), &err);
    const char *const argv[] = {"sh", "-c", "cat <&" CHILD_SECRET_FD "; ls /proc/self/fd | wc -l", NULL};
    assert_ok(child_start(argv, &secret, &c, &err), &err);
    char *said = NULL;
    assert_ok(child_said(c, &said, &err), &err);
    assert_string_equal(said, "s3cret word6"); // 0 to 4, and ls's own
    free(said);
    child_stop(c);
}

static void test_dies_with_its_parent(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        Err err = ERR_INIT;
        Child *c = NULL;
        // Nothing but the child holds the pipe's other end once we are gone.
        bool ok = child_start((const char *const[]){"nbdkit", "-f", "memory", "1M", NULL}, NULL, &c, &err);
        char word = ok ? 'y' : 'n';
        if (write(ends[1], &word, 1) != 1)
            _exit(2);
        (void)pause();
        _exit(1);
    }
    char word = 0;
    assert_int_equal(read(ends[0], &word, 1), 1);
    assert_int_equal(word, 'y');
    char path[64], text[256] = {0};
    (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof(text), f));
    (void)fclose(f);
    pid_t child = (pid_t)strtol(text, NULL, 10);
    assert_true(child > 0);
    (void)kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    int64_t deadline = clock_mono_ms() + unit_patience(10000);
    (void)snprintf(path, sizeof(path), "/proc/%d/fd/0", (int)child); // of a zombie, too, it cannot be reached
    while (access(path, F_OK) == 0) {
        assert_true(clock_mono_ms() < deadline);
        (void)poll(NULL, 0, 10);
    }
    (void)close(ends[0]);
    (void)close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_serves_and_leaves_nothing),
        cmocka_unit_test(test_says_why_it_failed),
        cmocka_unit_test(test_talks_without_end),
        cmocka_unit_test(test_is_told_a_secret),
        cmocka_unit_test(test_dies_with_its_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
