#include "fake_monitor.h"

#include "base/clock.h"
#include "wire/agent.h"

static char text[256];

static bool hear(int fd)
{
    return fake_hear(fd, text, sizeof(text));
}

static void answer_sync(int fd)
{
    const char *id = strstr(text, "\"id\":");
    char answer[64];
    (void)snprintf(answer, sizeof(answer), "\xff{\"return\": %ld}\n", id ? strtol(id + 5, NULL, 10) : 0);
    fake_say(fd, answer);
}

// Answers each command with the next of these, after what a line of rubbish an earlier client may have left.
static const char *const *answers;

static void serve_script(int fd)
{
    fake_say(fd, "{\"return\": \"for somebody else\"}\n{\"ret");
    fake_say(fd, "\xff{\"return\": 1}\n"); // an old synchronisation's
    size_t next = 0;
    while (hear(fd)) {
        if (strstr(text, "guest-sync-delimited"))
            answer_sync(fd);
        else if (strstr(text, "execute") && answers[next])
            fake_say(fd, answers[next++]);
    }
}

static void serve_mute(int fd)
{
    fake_drain(fd);
}

static void test_no_agent_in_the_guest(void **state)
{
    FakeMonitor m;
    Err err = ERR_INIT;
    Agent *a = NULL;
    fake_start(&m, state, serve_mute);
    int64_t before = clock_mono_ms();
    assert_fails(agent_open(m.path, 200, &a, &err), &err, ERR_TIMEOUT);
    assert_in_range(clock_mono_ms() - before, 150, unit_patience(4000));
    fake_stop(&m);
}

static void test_freeze_and_thaw(void **state)
{
    static const char *const script[] = {
        "{\"return\": 3}\n",
        "{\"return\": \"frozen\"}\n",
        "{\"return\": 3}\n",
        "{\"return\": \"thawed\"}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no way\"}}\n",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"disabled\"}}\n",
        "{\"return\": \"many\"}\n",
        "{\"return\": \"perhaps\"}\n",
        "{\"return\": -1}\n",
        NULL,
    };
    FakeMonitor m;
    Err err = ERR_INIT;
    Agent *a = NULL;
    uint64_t count = 0;
    bool frozen = false;
    answers = script;
    fake_start(&m, state, serve_script);
    assert_ok(agent_open(m.path, 5000, &a, &err), &err);
    assert_ok(agent_freeze(a, 5000, &count, &err), &err);
    assert_int_equal(count, 3);
    assert_ok(agent_is_frozen(a, 5000, &frozen, &err), &err);
    assert_true(frozen);
    assert_ok(agent_thaw(a, 5000, &count, &err), &err);
    assert_ok(agent_is_frozen(a, 5000, &frozen, &err), &err);
    assert_false(frozen);
    assert_fails(agent_freeze(a, 5000, &count, &err), &err, ERR_PROTOCOL);
    assert_fails(agent_freeze(a, 5000, &count, &err), &err, ERR_UNSUPPORTED);
    assert_fails(agent_freeze(a, 5000, &count, &err), &err, ERR_PROTOCOL);
    assert_fails(agent_is_frozen(a, 5000, &frozen, &err), &err, ERR_PROTOCOL);
    assert_fails(agent_thaw(a, 5000, &count, &err), &err, ERR_PROTOCOL);
    assert_fails(agent_freeze(a, 200, &count, &err), &err, ERR_TIMEOUT);
    agent_free(a);
    fake_stop(&m);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, unit_folder_setup, unit_folder_teardown)
    const struct CMUnitTest tests[] = {TEST(test_no_agent_in_the_guest), TEST(test_freeze_and_thaw)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
