#include "canned_server.h"

#include "wire/hub_api.h"

#define OK_HEAD "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
#define ERROR_BODY "{\"details\":\"no job backup-x\",\"error\":\"backup job not found\",\"timestamp\":\"t\"}"

typedef struct Fixture {
    CannedServer *server;
    HubApi *hub;
    Err err;
} Fixture;

static Fixture start(const char *answer)
{
    Fixture f = {.server = canned_start(&(Canned){.answer = answer}, 1), .err = ERR_INIT};
    char url[80];
    (void)snprintf(url, sizeof(url), "%s//", f.server->url); // slashes at the end do not matter
    assert_ok(hub_api_new(url, NULL, NULL, &f.hub, &f.err), &f.err);
    return f;
}

static void stop(Fixture *f)
{
    hub_api_free(f->hub);
    canned_stop(f->server);
}

static void segments_are_encoded(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StrBuf b = STR_BUF(200);
    assert_ok(hub_api_segment(&b, "az09-._~ /%:?#\"\\\xc3\xa4;..", &err), &err);
    assert_string_equal(b.s, "az09-._~%20%2F%25%3A%3F%23%22%5C%C3%A4%3B..");
    str_clear(&b);
}

static void generic_call(void **state)
{
    (void)state;
    Fixture f = start(OK_HEAD "{\"vms\":[]}");
    cleanup_json json_t *body = json_object(), *answer = NULL;
    assert_ok(codec_json_set_text(body, "name", "a", &f.err), &f.err);
    assert_ok(hub_api_call(f.hub, "PATCH", "/api/v1/vms/a%20b", body, &answer, &f.err), &f.err);
    assert_true(json_is_array(json_object_get(answer, "vms")));
    assert_int_equal(hub_api_status(f.hub), 200);
    assert_memory_equal(f.server->requests[0], "PATCH /api/v1/vms/a%20b HTTP/1.1\r\n", 34);
    assert_non_null(strstr(f.server->requests[0], "\r\n\r\n{\"name\":\"a\"}"));
    stop(&f);
}

static void errors_carry_the_hubs_words(void **state)
{
    (void)state;
    Fixture f = start("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n" ERROR_BODY);
    cleanup_json json_t *answer = NULL;
    assert_false(hub_api_call(f.hub, "GET", "/api/v1/backups/x", NULL, &answer, &f.err));
    assert_int_equal(f.err.code, ERR_NOT_FOUND);
    assert_string_equal(err_short(&f.err), "backup job not found");
    assert_string_equal(f.err.details, "no job backup-x");
    assert_false(hub_api_is_unknown(f.hub));
    stop(&f);
    f = start("HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n<html>");
    assert_fails(hub_api_call(f.hub, "GET", "/x", NULL, &answer, &f.err), &f.err, ERR_UNAVAILABLE);
    assert_true(hub_api_is_unknown(f.hub));
    stop(&f);
    f = start(OK_HEAD "{");
    assert_fails(hub_api_call(f.hub, "GET", "/x", NULL, &answer, &f.err), &f.err, ERR_PROTOCOL);
    stop(&f);
    assert_fails(hub_api_new("localhost:8082", NULL, NULL, &f.hub, &f.err), &f.err, ERR_USAGE);
}

// The contract's text, and its rule for the path.
static void recording_a_change_id(void **state)
{
    (void)state;
    static const struct {
        const char *job, *path;
    } cases[] = {{"backup-a b-1", "POST /api/v1/backups/backup-a%20b-1/complete "},
                 {"replication-1", "POST /api/v1/replications/replication-1/changeid "},
                 {"backup", "POST /api/v1/replications/backup/changeid "}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Fixture f = start("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n" ERROR_BODY);
        Completion c = {.change_id = (char[]){"u/2"}};
        ChangeIdReport r = {.change_id = (char[]){"u/2"}};
        bool fine = hub_api_is_backup(cases[i].job) ? hub_api_complete(f.hub, cases[i].job, &c, &f.err)
                                                    : hub_api_changeid(f.hub, cases[i].job, &r, &f.err);
        assert_false(fine);
        assert_int_equal(f.err.code, ERR_NOT_FOUND);
        assert_string_equal(f.err.details, "SHA API returned status 404: " ERROR_BODY);
        assert_memory_equal(f.server->requests[0], cases[i].path, strlen(cases[i].path));
        assert_non_null(strstr(f.server->requests[0], "\r\n\r\n{\"change_id\":\"u/2\"}"));
        stop(&f);
    }
    Fixture f = start("HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n{}"); // only 200 is success
    Completion c = {.change_id = (char[]){"u/2"}};
    assert_false(hub_api_complete(f.hub, "backup-a", &c, &f.err));
    assert_true(hub_api_is_unknown(f.hub));
    stop(&f);
}

typedef struct Events {
    char text[256];
    unsigned stop_after, n;
} Events;

static bool on_event(void *ctx, const char *event, const json_t *data)
{
    Events *e = ctx;
    size_t used = strlen(e->text);
    (void)snprintf(e->text + used, sizeof(e->text) - used, "%s=%lld ", event,
                   (long long)json_integer_value(json_object_get(data, "n")));
    return ++e->n != e->stop_after;
}

static void events_are_parsed(void **state)
{
    (void)state;
    const char *stream = OK_HEAD ": hello\n\nevent: progress\ndata: {\"n\":\ndata: 1}\n\r\n:\n\n"
                                 "data:{\"n\":2}\r\n\r\nid: 7\nevent: end\ndata: {\"n\":3}\n\nevent: late\n"
                                 "data: {\"n\":4}\n\n";
    Events e = {0};
    Fixture f = start(stream);
    assert_ok(hub_api_events(f.hub, "/events", on_event, &e, &f.err), &f.err);
    assert_string_equal(e.text, "progress=1 message=2 end=3 late=4 ");
    stop(&f);
    e = (Events){.stop_after = 3};
    f = start(stream);
    assert_ok(hub_api_events(f.hub, "/events", on_event, &e, &f.err), &f.err);
    assert_string_equal(e.text, "progress=1 message=2 end=3 ");
    stop(&f);
    f = start(OK_HEAD "data: {\n\n");
    assert_false(hub_api_events(f.hub, "/events", on_event, &e, &f.err));
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_are_encoded),        cmocka_unit_test(generic_call),
        cmocka_unit_test(errors_carry_the_hubs_words), cmocka_unit_test(recording_a_change_id),
        cmocka_unit_test(events_are_parsed),
    };
    return cmocka_run_group_tests_name("hub_api", tests, NULL, NULL);
}
