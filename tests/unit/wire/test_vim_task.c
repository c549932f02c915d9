// Tasks: switching CBT, making and removing snapshots, and what becomes of them when answers are lost.
#include "fake_soap.h"

static const char *const progress[] = {"pathSet", NULL};

static void vm_without_snapshots(void)
{
    fake_answer("RetrievePropertiesEx",
                "<returnval><objects><obj type=\"VirtualMachine\">vm-62</obj></objects></returnval>");
}

static void vm_with_snapshot(const char *name, const char *task)
{
    Err err = ERR_INIT;
    cleanup_free char *text = mem_printf(
        &err,
        "<returnval><objects><obj type=\"VirtualMachine\">vm-62</obj><propSet><name>recentTask</name><val>%s</val>"
        "</propSet><propSet><name>snapshot</name><val><rootSnapshotList><snapshot>snapshot-5</snapshot>"
        "<name>%s</name></rootSnapshotList></val></propSet></objects></returnval>",
        task, name);
    fake_answer("RetrievePropertiesEx", text);
}

static void filter_made(void)
{
    fake_answer("CreateFilter", "<returnval type=\"PropertyFilter\">filter-1</returnval>");
}

static void update(const char *task, const char *changes)
{
    Err err = ERR_INIT;
    cleanup_free char *text =
        mem_printf(&err,
                   "<returnval><version>2</version><filterSet><filter>filter-1</filter><objectSet>"
                   "<kind>modify</kind><obj type=\"Task\">%s</obj>%s</objectSet></filterSet>"
                   "</returnval>",
                   task, changes);
    fake_answer("WaitForUpdatesEx", text);
}

#define CHANGE(name, val) "<changeSet><name>" name "</name><op>assign</op>" val "</changeSet>"

static void ended_task(const char *task, const char *changes)
{
    filter_made();
    update(task, changes);
    fake_answer("DestroyPropertyFilter", "");
}

static bool make_snapshot(FakeSession *s, char **ret)
{
    return vim_snapshot_create(s->vim, "vm-62", "backup-snap", "temporary", true, 60000, ret, &s->err);
}

static void a_snapshot_as_recorded(void **state)
{
    FakeSession *s = *state;
    cleanup_free char *moref = NULL;
    fake_again();
    vm_without_snapshots();
    fake_fixture("13-CreateSnapshot");
    fake_fixture("14a-CreateFilter");
    fake_fixture("14b-WaitForUpdatesEx");
    fake_fixture("14c-DestroyFilter");
    assert_ok(make_snapshot(s, &moref), &s->err);
    assert_string_equal(moref, "snapshot-79");
    fake_assert_like(1, "13-CreateSnapshot", NULL);
    assert_true(fake.once[1]); // libcurl must not send it twice
    fake_assert_like(2, "14a-CreateFilter", progress);
    fake_assert_like(3, "14b-WaitForUpdatesEx", (const char *const[]){"maxWaitSeconds", NULL});
    fake_assert_like(4, "14c-DestroyFilter", NULL);

    fake_again();
    fake_fixture("25-RemoveSnapshot");
    fake_fixture("26a-CreateFilter");
    fake_fixture("26b-WaitForUpdatesEx");
    fake_fixture("26c-DestroyFilter");
    assert_ok(vim_snapshot_remove(s->vim, "snapshot-79", 60000, &s->err), &s->err);
    fake_assert_like(0, "25-RemoveSnapshot", NULL);
    fake_assert_like(1, "26a-CreateFilter", progress);
    fake_assert_like(3, "26c-DestroyFilter", NULL);

    fake_again();
    vm_without_snapshots();
    fake_fixture("10-ReconfigVM-CBT");
    fake_fixture("11a-CreateFilter");
    fake_fixture("11b-WaitForUpdatesEx");
    fake_fixture("11c-DestroyFilter");
    assert_ok(vim_set_cbt(s->vim, "vm-62", true, 60000, &s->err), &s->err);
    fake_assert_like(1, "10-ReconfigVM-CBT", NULL);
}

// Nothing happens for a while, then bit by bit, and other tasks' news come, too.
static void a_slow_task(void **state)
{
    FakeSession *s = *state;
    cleanup_free char *moref = NULL;
    fake_again();
    vm_without_snapshots();
    fake_answer("CreateSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    filter_made();
    update("task-1", CHANGE("info.state", "<val>queued</val>") CHANGE("info.error", "") CHANGE("info.result", ""));
    fake_answer("WaitForUpdatesEx", ""); // its time was over
    update("task-9", CHANGE("info.state", "<val>error</val>"));
    update("task-1", CHANGE("info.state", "<val>running</val>"));
    update("task-1", CHANGE("info.result", "<val type=\"VirtualMachineSnapshot\">snapshot-8</val>"));
    update("task-1", CHANGE("info.state", "<val>success</val>"));
    fake_answer("DestroyPropertyFilter", "");
    assert_ok(make_snapshot(s, &moref), &s->err);
    assert_string_equal(moref, "snapshot-8");
    fake_assert_asked(3, "<version></version>");
    fake_assert_asked(4, "<version>2</version>");
}

static void a_task_that_fails(void **state)
{
    FakeSession *s = *state;
    cleanup_free char *moref = NULL;
    fake_again();
    vm_without_snapshots();
    fake_answer("CreateSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    ended_task("task-1",
               CHANGE("info.error",
                      "<val xsi:type=\"LocalizedMethodFault\"><fault xsi:type=\""
                      "ApplicationQuiesceFault\"><faultMessage><key>msg.x</key></faultMessage>"
                      "</fault><localizedMessage>An error occurred while quiescing the virtual "
                      "machine.</localizedMessage></val>") CHANGE("info.state", "<val>error</val>"));
    assert_false(make_snapshot(s, &moref));
    assert_int_equal(s->err.code, ERR_CONFLICT);
    assert_true(str_starts(s->err.details, "ApplicationQuiesceFault: An error occurred while quiescing"));
    assert_true(vim_fault(s->vim)->quiescing);
    assert_null(moref);
    err_clear(&s->err);

    fake_again(); // without a word
    fake_answer("RemoveSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    ended_task("task-1", CHANGE("info.state", "<val>error</val>"));
    assert_fails(vim_snapshot_remove(s->vim, "snapshot-8", 60000, &s->err), &s->err, ERR_PROTOCOL);
    assert_string_equal(vim_fault(s->vim)->type, "Fault");
}

static void names_are_ours_alone(void **state)
{
    FakeSession *s = *state;
    cleanup_free char *moref = NULL;
    fake_again();
    vm_with_snapshot("backup-snap", "");
    assert_fails(make_snapshot(s, &moref), &s->err, ERR_EXISTS);
    static const char *const bad[] = {"", "a/b", "a\\b", "100%"};
    fake_again();
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(vim_snapshot_create(s->vim, "vm-62", bad[i], "", false, 1000, &moref, &s->err), &s->err,
                     ERR_INVALID);
    assert_null(moref);
}

// The answer to CreateSnapshot is lost: the snapshot was made, is being made, or was not.
static void a_lost_answer(void **state)
{
    FakeSession *s = *state;
    cleanup_free char *made = NULL, *awaited = NULL, *again = NULL, *unnamed = NULL;
    fake_again();
    vm_without_snapshots();
    fake_add(200, "")->fails = ERR_UNAVAILABLE;
    vm_with_snapshot("backup-snap", "");
    vm_with_snapshot("backup-snap", "");
    assert_ok(make_snapshot(s, &made), &s->err);
    assert_string_equal(made, "snapshot-5");

    fake_again();
    vm_without_snapshots();
    fake_answer("CreateSnapshot_Task", "")->cut = 60;
    fake.replies[1].breaks = true;
    vm_with_snapshot("another", "<ManagedObjectReference>task-3</ManagedObjectReference>");
    ended_task("task-3", CHANGE("info.state", "<val>error</val>")); // somebody else's, that failed
    vm_with_snapshot("backup-snap", "");
    assert_ok(make_snapshot(s, &awaited), &s->err);
    assert_string_equal(awaited, "snapshot-5");

    fake_again();
    vm_without_snapshots();
    fake_add(503, "");
    vm_without_snapshots();
    vm_without_snapshots();
    fake_answer("CreateSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    ended_task("task-1",
               CHANGE("info.state", "<val>success</val>")
                   CHANGE("info.result", "<val type=\"VirtualMachineSnapshot\">snapshot-6</val>"));
    assert_ok(make_snapshot(s, &again), &s->err);
    assert_string_equal(again, "snapshot-6");

    fake_again(); // a task that does not say what it made
    vm_without_snapshots();
    fake_answer("CreateSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    ended_task("task-1", CHANGE("info.state", "<val>success</val>"));
    vm_with_snapshot("backup-snap", "");
    assert_ok(make_snapshot(s, &unnamed), &s->err);
    assert_string_equal(unnamed, "snapshot-5");
}

// What waits for a task outlives the session and the connection.
static void waiting_goes_on(void **state)
{
    FakeSession *s = *state;
    fake_again();
    fake_answer("RemoveSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    filter_made();
    fake_fixture("02-NotAuthenticated");
    fake_fixture("03-Login");
    fake_answer("DestroyPropertyFilter", "");
    filter_made(); // of the new session
    update("task-1", CHANGE("info.state", "<val>running</val>"));
    fake_fault("InvalidCollectorVersion", "", "");
    fake_answer("DestroyPropertyFilter", "");
    ended_task("task-1", CHANGE("info.state", "<val>success</val>"));
    assert_ok(vim_snapshot_remove(s->vim, "snapshot-8", 60000, &s->err), &s->err);
}

static void a_removal_that_meets_another(void **state)
{
    FakeSession *s = *state;
    fake_again(); // gone already
    fake_fault("ManagedObjectNotFound", "", "<obj>snapshot-8</obj>");
    assert_ok(vim_snapshot_remove(s->vim, "snapshot-8", 60000, &s->err), &s->err);

    fake_again(); // our own of before, whose answer was lost
    fake_fault("TaskInProgress", "", "<task type=\"Task\">task-3</task>");
    ended_task("task-3", CHANGE("info.state", "<val>success</val>"));
    fake_fault("ManagedObjectNotFound", "", "<obj>snapshot-8</obj>");
    assert_ok(vim_snapshot_remove(s->vim, "snapshot-8", 60000, &s->err), &s->err);

    fake_again(); // a server that was started anew knows the task no more: that is not the snapshot being gone
    fake_answer("RemoveSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    fake_fault("ManagedObjectNotFound", "", "<obj>task-1</obj>");
    fake_answer("RemoveSnapshot_Task", "<returnval type=\"Task\">task-2</returnval>");
    ended_task("task-2", CHANGE("info.state", "<val>success</val>"));
    assert_ok(vim_snapshot_remove(s->vim, "snapshot-8", 60000, &s->err), &s->err);
}

static void deadlines(void **state)
{
    FakeSession *s = *state;
    fake_again();
    fake_answer("RemoveSnapshot_Task", "<returnval type=\"Task\">task-1</returnval>");
    filter_made();
    fake_answer("DestroyPropertyFilter", "");
    fake_answer("CancelTask", "");
    assert_fails(vim_snapshot_remove(s->vim, "snapshot-8", 0, &s->err), &s->err, ERR_TIMEOUT);
    fake_assert_asked(3, "<CancelTask");
}

static void cbt_and_snapshots(void **state)
{
    FakeSession *s = *state;
    fake_again(); // since vSphere 6.5 CBT would answer wrongly, without an error
    vm_with_snapshot("somebody's", "");
    assert_fails(vim_set_cbt(s->vim, "vm-62", true, 1000, &s->err), &s->err, ERR_CONFLICT);
    assert_int_equal(fake.asked, 1);
    fake_again(); // off is fine
    vm_with_snapshot("somebody's", "");
    fake_answer("ReconfigVM_Task", "<returnval type=\"Task\">task-1</returnval>");
    ended_task("task-1", CHANGE("info.state", "<val>success</val>"));
    assert_ok(vim_set_cbt(s->vim, "vm-62", false, 1000, &s->err), &s->err);
    fake_assert_asked(1, "<changeTrackingEnabled>false</changeTrackingEnabled>");
    fake_again();
    vm_without_snapshots();
    fake_fixture("30-Reconfig-by-nonexist");
    assert_fails(vim_set_cbt(s->vim, "vm-62", true, 1000, &s->err), &s->err, ERR_NOT_FOUND);
}

static bool remove_recorded(FakeSession *s)
{
    return vim_snapshot_remove(s->vim, "snapshot-79", 60000, &s->err);
}

static void truncated_replies(void **state)
{
    static const char *const call[] = {"25-RemoveSnapshot"};
    fake_truncate(*state, 1, call, remove_recorded);
}

#define IN_SESSION(test) cmocka_unit_test_setup_teardown(test, fake_open, fake_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SESSION(a_snapshot_as_recorded),
        IN_SESSION(a_slow_task),
        IN_SESSION(a_task_that_fails),
        IN_SESSION(names_are_ours_alone),
        IN_SESSION(a_lost_answer),
        IN_SESSION(waiting_goes_on),
        IN_SESSION(a_removal_that_meets_another),
        IN_SESSION(deadlines),
        IN_SESSION(cbt_and_snapshots),
        IN_SESSION(truncated_replies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
