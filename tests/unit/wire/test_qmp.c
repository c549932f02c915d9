#include "fake_monitor.h"

#include "base/clock.h"
#include "wire/qmp.h"

#include <fcntl.h>

static const char *const kept[] = {"JOB_STATUS_CHANGE", NULL};

static char text[256];

static bool hear(int fd)
{
    return fake_hear(fd, text, sizeof(text));
}

// Greets, accepts the negotiation.
static void greet(int fd)
{
    fake_say(fd, GREETING);
    if (hear(fd))
        fake_say(fd, "{\"return\": {}, \"id\": 1}\r\n");
}

#define WITH(serve)               \
    FakeMonitor m;                \
    Err err = ERR_INIT;           \
    Qmp *q = NULL;                \
    fake_start(&m, state, serve); \
    assert_ok(qmp_open(m.path, unit_patience(5000), kept, &q, &err), &err)

#define DONE     \
    qmp_free(q); \
    fake_stop(&m)

static void serve_mute(int fd)
{
    fake_drain(fd);
}

static void serve_wrong(int fd)
{
    fake_say(fd, "{\"hello\": 1}\n");
    fake_drain(fd);
}

static void serve_array(int fd)
{
    fake_say(fd, "[1, 2]\n");
    fake_drain(fd);
}

static void serve_ssh(int fd)
{
    fake_say(fd, "SSH-2.0-OpenSSH {]\r\n");
    fake_drain(fd);
}

static void serve_closed(int fd)
{
    (void)fd;
}

static void serve_endless(int fd)
{
    static char junk[65536];
    memset(junk, 'x', sizeof(junk) - 1);
    fake_say(fd, "{\"QMP\": \"");
    for (int i = 0; i < 300; i++)
        fake_say(fd, junk);
    fake_drain(fd);
}

static void test_greetings_that_are_none(void **state)
{
    const struct {
        void (*serve)(int fd);
        ErrCode code;
    } cases[] = {{serve_mute, ERR_BUSY},    {serve_wrong, ERR_PROTOCOL},     {serve_array, ERR_PROTOCOL},
                 {serve_ssh, ERR_PROTOCOL}, {serve_closed, ERR_UNAVAILABLE}, {serve_endless, ERR_TOO_LARGE}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        FakeMonitor m;
        Err err = ERR_INIT;
        Qmp *q = NULL;
        int64_t before = clock_mono_ms();
        fake_start(&m, state, cases[i].serve);
        assert_fails(qmp_open(m.path, cases[i].code == ERR_BUSY ? 200 : unit_patience(5000), kept, &q, &err), &err,
                     cases[i].code);
        assert_true(clock_mono_ms() - before < unit_patience(4000));
        fake_stop(&m);
        (void)unlink(m.path);
        assert_fails(qmp_open(m.path, 200, kept, &q, &err), &err, ERR_NOT_FOUND);
    }
}

static void serve_pretty(int fd)
{
    greet(fd);
    while (hear(fd))
        fake_say(fd,
                 "{\r\n    \"return\": {\r\n"
                 "        \"a\\\"}{\": \"}]\\\\\",\r\n        \"n\": [\r\n            1\r\n        ]\r\n"
                 "    },\r\n    \"id\": 2\r\n}\r\n");
}

static void test_pretty_answers(void **state)
{
    WITH(serve_pretty);
    json_t *result = NULL;
    assert_int_equal(qmp_version(q), 7002);
    assert_ok(qmp_call(q, "query-x", NULL, &result, &err), &err);
    assert_string_equal(json_string_value(json_object_get(result, "a\"}{")), "}]\\");
    json_decref(result);
    DONE;
}

static void serve_refusals(int fd)
{
    greet(fd);
    static const char *const answers[] = {
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such luck\"}, \"id\": 2}\r\n",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"old\"}, \"id\": 3}\r\n",
        "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"gone\"}, \"id\": 4}\r\n",
        "{\"error\": 5, \"id\": 5}\r\n",
        "{\"id\": 6}\r\n",
        "{\"return\": 7, \"id\": 7}\r\n",
    };
    for (size_t i = 0; i < 6 && hear(fd); i++)
        fake_say(fd, answers[i]);
    fake_drain(fd);
}

static void test_refusals(void **state)
{
    WITH(serve_refusals);
    assert_false(qmp_call(q, "x", NULL, NULL, &err));
    assert_int_equal(err.code, ERR_PROTOCOL);
    assert_non_null(strstr(err.details, "no such luck"));
    err_clear(&err);
    assert_fails(qmp_call(q, "x", json_pack("{s:i}", "a", 1), NULL, &err), &err, ERR_UNSUPPORTED);
    assert_fails(qmp_call(q, "x", NULL, NULL, &err), &err, ERR_NOT_FOUND);
    assert_fails(qmp_call(q, "x", NULL, NULL, &err), &err, ERR_PROTOCOL);
    assert_fails(qmp_call(q, "x", NULL, NULL, &err), &err, ERR_PROTOCOL);
    assert_ok(qmp_call(q, "x", NULL, NULL, &err), &err);
    DONE;
}

static atomic_bool cancelled;

static void *cancel_soon(void *unused)
{
    (void)poll(NULL, 0, 100);
    atomic_store(&cancelled, true);
    return unused;
}

static void cancelled_call(Qmp *q)
{
    Err err = ERR_INIT;
    pthread_t t;
    atomic_store(&cancelled, false);
    qmp_set_cancel(q, &cancelled);
    assert_int_equal(pthread_create(&t, NULL, cancel_soon, NULL), 0);
    int64_t before = clock_mono_ms();
    assert_fails(qmp_call(q, "slow", NULL, NULL, &err), &err, ERR_CANCELLED);
    assert_true(clock_mono_ms() - before < unit_patience(4000));
    assert_int_equal(pthread_join(t, NULL), 0);
    qmp_set_cancel(q, NULL);
}

static void serve_late(int fd)
{
    greet(fd);
    if (hear(fd) && hear(fd)) // the first is answered when the second has come
        fake_say(fd, "{\"return\": \"first\", \"id\": 2}{\"return\": \"second\", \"id\": 3}\r\n");
    fake_drain(fd);
}

static void test_late_answer_is_passed_over(void **state)
{
    WITH(serve_late);
    json_t *result = NULL;
    cancelled_call(q);
    assert_ok(qmp_call(q, "quick", NULL, &result, &err), &err);
    assert_string_equal(json_string_value(result), "second");
    json_decref(result);
    DONE;
}

static void serve_flood(int fd)
{
    greet(fd);
    if (!hear(fd))
        return;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (poll(&p, 1, 0) == 0) // until the client says something else, or goes
        fake_say(fd, "{\"event\": \"JOB_STATUS_CHANGE\", \"data\": {\"id\": \"j\", \"status\": \"running\"}}\r\n");
    fake_drain(fd);
}

// Events without end neither keep a call from its end nor fill the memory.
static void test_flood(void **state)
{
    WITH(serve_flood);
    cancelled_call(q);
    qmp_free(q);
    fake_stop(&m);
}

static void serve_events(int fd)
{
    greet(fd);
    if (!hear(fd))
        return;
    fake_say(
        fd,
        "{\"event\": \"RTC_CHANGE\", \"data\": {}}{\"event\": \"JOB_STATUS_CHANGE\", \"data\": {\"id\": \"a\"}}\r\n"
        "{\"return\": {}, \"id\": 2}\r\n{\"event\": \"JOB_STATUS_CHANGE\"}\r\n");
    if (hear(fd))
        fake_say(fd, "{\"return\": {}, \"id\": 3}\r\n");
}

static void test_events_are_kept_in_order(void **state)
{
    WITH(serve_events);
    QmpEvent e;
    assert_ok(qmp_call(q, "x", NULL, NULL, &err), &err);
    assert_ok(qmp_await(q, 0, &e, &err), &err);
    assert_string_equal(e.name, "JOB_STATUS_CHANGE");
    assert_string_equal(json_string_value(json_object_get(e.data, "id")), "a");
    qmp_event_clear(&e);
    assert_ok(qmp_await(q, 5000, &e, &err), &err);
    assert_null(e.data);
    qmp_event_clear(&e);
    assert_fails(qmp_await(q, 0, &e, &err), &err, ERR_TIMEOUT);
    assert_ok(qmp_call(q, "x", NULL, NULL, &err), &err);
    assert_fails(qmp_await(q, 5000, &e, &err), &err, ERR_UNAVAILABLE); // the peer closed
    assert_true(qmp_is_lost(q));
    assert_fails(qmp_call(q, "x", NULL, NULL, &err), &err, ERR_UNAVAILABLE);
    DONE;
}

static void serve_descriptor(int fd)
{
    greet(fd);
    char data[256];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    int got = -1;
    if (recvmsg(fd, &msg, 0) > 0 && CMSG_FIRSTHDR(&msg))
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(got));
    if (got >= 0 && write(got, "through", 7) == 7)
        fake_say(fd, "{\"return\": {}, \"id\": 2}\r\n");
    (void)close(got);
    fake_drain(fd);
}

static void test_descriptors_are_passed(void **state)
{
    WITH(serve_descriptor);
    int ends[2];
    char got[8] = {0};
    assert_int_equal(pipe(ends), 0);
    assert_ok(qmp_call_fd(q, "getfd", json_pack("{s:s}", "fdname", "x"), ends[1], NULL, &err), &err);
    assert_int_equal(read(ends[0], got, sizeof(got)), 7);
    assert_string_equal(got, "through");
    (void)close(ends[0]);
    (void)close(ends[1]);
    DONE;
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, unit_folder_setup, unit_folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_greetings_that_are_none),    TEST(test_pretty_answers), TEST(test_refusals),
        TEST(test_late_answer_is_passed_over), TEST(test_flood),          TEST(test_events_are_kept_in_order),
        TEST(test_descriptors_are_passed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
