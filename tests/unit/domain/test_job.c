#include "unit.h"

#include "domain/job.h"

static void test_names(void **state)
{
    (void)state;
    static const char *const names[JOB_STATES] = {"pending",   "running", "committing",
                                                  "completed", "failed",  "cancelled"};
    for (JobState s = JOB_PENDING; s < JOB_STATES; s++) {
        assert_string_equal(job_state_name(s), names[s]);
        JobState again = JOB_STATES;
        Err err = ERR_INIT;
        assert_ok(job_state_parse(names[s], &again, &err), &err);
        assert_int_equal(again, s);
    }
    static const char *const bad[] = {"", "Pending", "pending ", "done", "complete", "completed\n"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        JobState s = JOB_FAILED;
        Err err = ERR_INIT;
        assert_fails(job_state_parse(bad[i], &s, &err), &err, ERR_INVALID);
        assert_int_equal(s, JOB_FAILED);
    }
}

static void test_transitions(void **state)
{
    (void)state;
    // from\to:     pend run com done fail canc
    static const char *const table[JOB_STATES] = {
        "0100"
        "11", // pending
        "0010"
        "11", // running
        "0001"
        "10", // committing: too late to cancel
        "000000",
        "000000",
        "000000",
    };
    for (JobState from = JOB_PENDING; from < JOB_STATES; from++) {
        bool any = false;
        for (JobState to = JOB_PENDING; to < JOB_STATES; to++) {
            assert_int_equal(job_state_may_follow(from, to), table[from][to] == '1');
            any = any || job_state_may_follow(from, to);
        }
        assert_int_equal(job_state_is_final(from), !any);
    }
}

static void test_backup_types(void **state)
{
    (void)state;
    BackupType t = BACKUP_FULL;
    Err err = ERR_INIT;
    assert_ok(backup_type_parse("incremental", &t, &err), &err);
    assert_int_equal(t, BACKUP_INCREMENTAL);
    assert_string_equal(backup_type_name(t), "incremental");
    assert_ok(backup_type_parse("full", &t, &err), &err);
    assert_int_equal(t, BACKUP_FULL);
    assert_string_equal(backup_type_name(t), "full");
    static const char *const bad[] = {"", "Full", "differential", "full ", "incr"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_fails(backup_type_parse(bad[i], &t, &err), &err, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_transitions),
        cmocka_unit_test(test_backup_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
