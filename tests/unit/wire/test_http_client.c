#include "canned_server.h"

#include "base/clock.h"
#include "wire/http_client.h"

typedef struct Fixture {
    CannedServer *server;
    HttpClient *client;
    HttpRequest request;
    HttpAnswer answer;
    Err err;
} Fixture;

static Fixture start(const char *answer)
{
    Fixture f = {.server = canned_start(&(Canned){.answer = answer}, 1), .err = ERR_INIT};
    assert_ok(http_client_new(&f.client, &f.err), &f.err);
    f.request = (HttpRequest){.method = "GET", .timeout_ms = 20000};
    return f;
}

static bool call(Fixture *f)
{
    f->request.url = f->server->url;
    return http_client_call(f->client, &f->request, &f->answer, &f->err);
}

static void stop(Fixture *f)
{
    http_answer_clear(&f->answer);
    http_client_free(f->client);
    canned_stop(f->server);
}

static void sends_and_receives(void **state)
{
    (void)state;
    cleanup(secret_clear) Secret token = {0};
    Fixture f = start("HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
    assert_ok(secret_set(&token, "sesame", &f.err), &f.err);
    f.request.method = "POST";
    f.request.body = "{\"a\":1}";
    f.request.token = &token;
    assert_ok(call(&f), &f.err);
    assert_int_equal(f.answer.status, 201);
    assert_string_equal(f.answer.body, "{}");
    const char *sent = f.server->requests[0];
    assert_memory_equal(sent, "POST / HTTP/1.1\r\n", 17);
    assert_non_null(strstr(sent, "\r\nAuthorization: Bearer sesame\r\n"));
    assert_non_null(strstr(sent, "\r\nContent-Type: application/json\r\n"));
    assert_null(strstr(sent, "Expect:"));
    assert_string_equal(strstr(sent, "\r\n\r\n") + 4, "{\"a\":1}");
    stop(&f);
}

// Neither the body nor the token of one request goes with the next.
static void requests_are_independent(void **state)
{
    (void)state;
    cleanup(secret_clear) Secret token = {0};
    Fixture f = start("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_ok(secret_set(&token, "sesame", &f.err), &f.err);
    f.request = (HttpRequest){.method = "POST", .body = "{}", .token = &token};
    assert_ok(call(&f), &f.err);
    http_answer_clear(&f.answer);
    f.request = (HttpRequest){.method = "DELETE"};
    assert_ok(call(&f), &f.err);
    assert_string_equal(f.answer.body, "");
    assert_memory_equal(f.server->requests[1], "DELETE / ", 9);
    assert_null(strstr(f.server->requests[1], "Authorization"));
    assert_null(strstr(f.server->requests[1], "Content-"));
    stop(&f);
}

static void redirects_are_not_followed(void **state)
{
    (void)state;
    Fixture f = start("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_ok(call(&f), &f.err);
    assert_int_equal(f.answer.status, 302);
    assert_int_equal(atomic_load(&f.server->served), 1);
    stop(&f);
}

static void answers_are_bounded(void **state)
{
    (void)state;
    Fixture f = start("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n0123456789");
    f.request.max_answer = 9;
    assert_fails(call(&f), &f.err, ERR_TOO_LARGE);
    f.request.max_answer = 10;
    assert_ok(call(&f), &f.err);
    assert_int_equal(f.answer.body_len, 10);
    stop(&f);
}

static void silence_times_out(void **state)
{
    (void)state;
    Fixture f = start("");
    f.request.timeout_ms = 100;
    int64_t before = clock_mono_ms();
    assert_fails(call(&f), &f.err, ERR_TIMEOUT);
    assert_true(clock_mono_ms() - before < unit_patience(20000));
    stop(&f);
}

static void broken_connections_are_unavailable(void **state)
{
    (void)state;
    Fixture f = start(NULL);
    assert_fails(call(&f), &f.err, ERR_UNAVAILABLE);
    stop(&f);
    f = start("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    assert_fails(call(&f), &f.err, ERR_UNAVAILABLE);
    char url[64];
    memcpy(url, f.server->url, sizeof(url));
    canned_stop(f.server);
    f.request.url = url; // nobody listens there any more
    assert_fails(http_client_call(f.client, &f.request, &f.answer, &f.err), &f.err, ERR_UNAVAILABLE);
    http_client_free(f.client);
}

static void other_protocols_are_refused(void **state)
{
    (void)state;
    Fixture f = start("SSH-2.0-OpenSSH_9.2\r\n");
    assert_fails(call(&f), &f.err, ERR_PROTOCOL);
    f.request.url = "file:///etc/hostname";
    assert_fails(http_client_call(f.client, &f.request, &f.answer, &f.err), &f.err, ERR_USAGE);
    stop(&f);
}

static void cancel_ends_the_wait(void **state)
{
    (void)state;
    atomic_bool cancel = true;
    Fixture f = start("");
    f.request.cancel = &cancel;
    f.request.timeout_ms = 20000;
    int64_t before = clock_mono_ms();
    assert_fails(call(&f), &f.err, ERR_CANCELLED);
    assert_true(clock_mono_ms() - before < unit_patience(5000));
    stop(&f);
}

static bool two_pieces(void *ctx, const char *p, size_t n)
{
    (void)p;
    *(size_t *)ctx += n;
    return *(size_t *)ctx < 6;
}

static void streams_until_it_is_enough(void **state)
{
    (void)state;
    size_t seen = 0;
    Fixture f = start("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n0123456789");
    f.request.on_data = two_pieces;
    f.request.ctx = &seen;
    assert_ok(call(&f), &f.err);
    assert_int_equal(seen, 10);
    assert_int_equal(f.answer.status, 200);
    assert_string_equal(f.answer.body, "");
    stop(&f);
    f = start("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nnone"); // an error is no stream
    f.request.on_data = two_pieces;
    f.request.ctx = &seen;
    assert_ok(call(&f), &f.err);
    assert_int_equal(seen, 10);
    assert_string_equal(f.answer.body, "none");
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sends_and_receives),          cmocka_unit_test(requests_are_independent),
        cmocka_unit_test(redirects_are_not_followed),  cmocka_unit_test(answers_are_bounded),
        cmocka_unit_test(silence_times_out),           cmocka_unit_test(broken_connections_are_unavailable),
        cmocka_unit_test(other_protocols_are_refused), cmocka_unit_test(cancel_ends_the_wait),
        cmocka_unit_test(streams_until_it_is_enough),
    };
    return cmocka_run_group_tests_name("http_client", tests, NULL, NULL);
}
