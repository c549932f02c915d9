#include "base/proc_roles.h"

#include "base/clock.h"
#include "base/num.h"

#include <sys/wait.h>

static void test_run(void **state)
{
    (void)state;
    int before = unit_open_fds();
    // Far more than a pipe holds on both: reading one after the other would stand still.
    const char *argv[] = {self, "both", NULL};
    char *out = NULL, *errors = NULL;
    int status = -1;
    Err err = ERR_INIT;
    assert_ok(proc_run(argv, NULL, SOON, 1000000, &out, &errors, &status, &err), &err);
    assert_int_equal(status, 3);
    assert_int_equal(strlen(out), 1000000);
    assert_int_equal(strlen(errors), 4096);
    assert_true(str_ends(errors, "oothe reason"));
    free(out);
    free(errors);
    assert_ok(proc_run(argv, NULL, SOON, 0, NULL, NULL, &status, &err),
              &err); // thrown away: no ceiling
    assert_int_equal(status, 3);
    const char *quiet[] = {self, "exit", "0", NULL};
    assert_ok(proc_run(quiet, NULL, -1, 0, &out, &errors, &status, &err), &err);
    assert_string_equal(out, "");
    assert_string_equal(errors, "");
    free(out);
    free(errors);
    const char *killed[] = {self, "kill-self", "15", NULL};
    assert_ok(proc_run(killed, NULL, SOON, 0, NULL, NULL, &status, &err), &err);
    assert_int_equal(status, 128 + SIGTERM);
    assert_int_equal(unit_open_fds(), before);
}

static void test_run_ceiling(void **state)
{
    (void)state;
    int before = unit_open_fds();
    const char *argv[] = {self, "flood", NULL}, *both[] = {self, "both", NULL};
    char *out = (char *)self, *errors = (char *)self;
    int status = 4711;
    Err err = ERR_INIT;
    assert_fails(proc_run(argv, NULL, SOON, 10000, &out, &errors, &status, &err), &err,
                 ERR_TOO_LARGE);
    assert_fails(proc_run(both, NULL, SOON, 999999, &out, &errors, &status, &err), &err,
                 ERR_TOO_LARGE);
    assert_ptr_equal(out, self);
    assert_ptr_equal(errors, self);
    assert_int_equal(status, 4711);
    assert_int_equal(unit_open_fds(), before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); // killed and reaped
}

static void test_run_deadline(void **state)
{
    (void)state;
    int before = unit_open_fds();
    static const char *const roles[] = {"pause", "ignore-term", "close-and-pause", "flood",
                                        "flood-errors"};
    for (size_t i = 0; i < ARRAY_LEN(roles); i++) {
        const char *argv[] = {self, roles[i], NULL};
        int status = 4711;
        Err err = ERR_INIT;
        int64_t start = clock_mono_ms();
        assert_fails(proc_run(argv, NULL, 50, 0, NULL, NULL, &status, &err), &err, ERR_TIMEOUT);
        assert_true(clock_mono_ms() - start >= 50);
        assert_true(clock_mono_ms() - start < SOON);
        assert_int_equal(status, 4711);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    }
    assert_int_equal(unit_open_fds(), before);
}

// A daemon that a tool left behind kept the tool's output open: who read to the end waited for ever.
static void test_run_does_not_wait_for_grandchildren(void **state)
{
    (void)state;
    cleanup_free char *out = output_of("leave-grandchild", NULL, NULL);
    uint64_t pid = 0;
    Err err = ERR_INIT;
    assert_ok(num_u64(out, 2, INT32_MAX, &pid, &err), &err);
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0); // it is alive: the run did not wait for it
}

static void test_own_place(void **state)
{
    (void)state;
    char *folder = NULL;
    Err err = ERR_INIT;
    assert_ok(proc_own_folder(&folder, &err), &err);
    assert_true(str_starts(self, folder));
    assert_int_equal(self[strlen(folder)], '/');
    assert_null(strchr(self + strlen(folder) + 1, '/'));
    free(folder);
    char a[UUID_TEXT], b[UUID_TEXT];
    assert_ok(proc_boot_id(a, &err), &err);
    assert_ok(proc_boot_id(b, &err), &err);
    assert_true(uuid_is_valid(a));
    assert_string_equal(a, b);
}

int main(int argc, char **argv)
{
    int status = play(argc, argv);
    if (status >= 0)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),
        cmocka_unit_test(test_run_ceiling),
        cmocka_unit_test(test_run_deadline),
        cmocka_unit_test(test_run_does_not_wait_for_grandchildren),
        cmocka_unit_test(test_own_place),
    };
    return cmocka_run_group_tests(tests, unit_folder_setup, unit_folder_teardown);
}
