// What a handler gets: the body as JSON, and the token.
#include "unit.h"

#include "http/request_internal.h"
#include "http/server.h"

static HttpRequest with_body(const char *body)
{
    HttpRequest req = {.method = "POST", .body = STR_BUF(HTTP_BODY_MAX)};
    Err err = ERR_INIT;
    assert_ok(str_add(&req.body, body, &err), &err);
    return req;
}

static void bodies(void **state)
{
    (void)state;
    static const char *const known[] = {"a", NULL};
    Err err = ERR_INIT;
    const json_t *object;
    HttpRequest req = with_body("{\"a\": 1}");
    assert_ok(http_request_json(&req, known, &object, &err), &err);
    assert_int_equal(json_integer_value(json_object_get(object, "a")), 1);
    http_request_clear(&req);

    req = with_body("{\"a\": 1, \"b\": 2}");
    assert_ok(http_request_json(&req, NULL, &object, &err), &err);
    assert_false(http_request_json(&req, known, &object, &err));
    assert_string_equal(err_short(&err), "invalid request body");
    assert_int_equal(err.code, ERR_INVALID);
    err_clear(&err);
    http_request_clear(&req);

    static const char *const bad[] = {"",
                                      " ",
                                      "x",
                                      "[]",
                                      "1",
                                      "null",
                                      "\"a\"",
                                      "{",
                                      "{} {}",
                                      "{\"a\":1,\"a\":2}",
                                      "{\"a\":\"\\u0000\"}",
                                      "{\"a\":\"\xff\"}",
                                      "{'a':1}",
                                      "{\"a\":01}",
                                      "{a:1}",
                                      "{\"a\":1,}",
                                      "{\"a\":NaN}",
                                      "{\"a\":\"\\ud800\"}"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        req = with_body(bad[i]);
        if (http_request_json(&req, NULL, &object, &err))
            fail_msg("accepted: %s", bad[i]);
        assert_string_equal(err_short(&err), "invalid request body");
        assert_int_equal(err.code, ERR_INVALID);
        err_clear(&err);
        http_request_clear(&req);
    }
}

static void no_body(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    HttpRequest req = with_body("");
    assert_ok(http_request_no_body(&req, &err), &err);
    http_request_clear(&req);
    req = with_body(" {} ");
    assert_ok(http_request_no_body(&req, &err), &err);
    http_request_clear(&req);
    req = with_body("{\"a\": 1}");
    assert_fails(http_request_no_body(&req, &err), &err, ERR_INVALID);
    http_request_clear(&req);
}

static void titles(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    err_set(&err, ERR_INVALID, "x");
    assert_false(http_request_bad_body(&err));
    assert_string_equal(err_short(&err), "invalid request body");
    err_title(&err, "missing change_id");
    assert_false(http_request_bad_body(&err));
    assert_string_equal(err_short(&err), "missing change_id");
    err_clear(&err);
    err_set(&err, ERR_NO_MEMORY, "x");
    assert_false(http_request_bad_body(&err));
    assert_string_equal(err_short(&err), "out of memory");
}

static void tokens(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    const Secret *token;
    HttpRequest req = {0};
    assert_ok(http_request_token(&req, &token, &err), &err);
    assert_false(secret_is_set(token));

    req.authorization = "bearer abc";
    assert_ok(http_request_token(&req, &token, &err), &err);
    assert_true(secret_equal(token, "abc"));
    assert_ok(http_request_token(&req, &token, &err), &err); // again
    assert_true(secret_equal(token, "abc"));
    http_request_clear(&req);

    static const char *const bad[] = {"", "Bearer", "Bearer ", "Bearer a b", "Basic YTpi", "abc", "Bearer  a"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        req = (HttpRequest){.authorization = bad[i]};
        assert_fails(http_request_token(&req, &token, &err), &err, ERR_FORBIDDEN);
        http_request_clear(&req);
    }
    char large[SECRET_MAX + 16] = "Bearer ";
    memset(large + 7, 'a', SECRET_MAX + 4);
    req = (HttpRequest){.authorization = large};
    assert_fails(http_request_token(&req, &token, &err), &err, ERR_FORBIDDEN);
    http_request_clear(&req);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bodies),
        cmocka_unit_test(no_body),
        cmocka_unit_test(titles),
        cmocka_unit_test(tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
