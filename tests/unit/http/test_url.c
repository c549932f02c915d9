// Splitting before decoding: what a path's segments and a query's parameters are.
#include "unit.h"

#include "http/url.h"

static HttpUrl parse(const char *target)
{
    Err err = ERR_INIT;
    HttpUrl url;
    assert_ok(http_url_parse(target, &url, &err), &err);
    return url;
}

static void refuse(const char *target, ErrCode code)
{
    Err err = ERR_INIT;
    HttpUrl url;
    bool ok = http_url_parse(target, &url, &err);
    if (ok)
        fail_msg("accepted: %s", target);
    assert_int_equal(err.code, code);
    assert_true(err.details[0] != '\0');
}

static void segments(void **state)
{
    (void)state;
    HttpUrl url = parse("/api/v1/backups/backup-a-1");
    assert_int_equal(url.n_segments, 4);
    assert_string_equal(url.segments[0], "api");
    assert_string_equal(url.segments[3], "backup-a-1");
    assert_string_equal(url.raw, "/api/v1/backups/backup-a-1");
    assert_int_equal(url.n_query, 0);
    http_url_clear(&url);

    url = parse("/");
    assert_int_equal(url.n_segments, 1);
    assert_string_equal(url.segments[0], "");
    http_url_clear(&url);

    url = parse("/a//b/");
    assert_int_equal(url.n_segments, 4);
    assert_string_equal(url.segments[1], "");
    assert_string_equal(url.segments[2], "b");
    assert_string_equal(url.segments[3], "");
    http_url_clear(&url);
}

// A character of which one half is encoded was text once decoded, and none where it was logged.
static void half_encoded(void **state)
{
    (void)state;
    refuse("/vms/\xc3%A9", ERR_INVALID);
    refuse("/vms/%C3\xa9", ERR_INVALID);
    refuse("/vms?a=\xc3%A9", ERR_INVALID);
}

static void decoded_after_the_split(void **state)
{
    (void)state;
    HttpUrl url = parse("/vms/a%2Fb%2f..%3Fx%23/%C3%A9t%c3%a9%20+");
    assert_int_equal(url.n_segments, 3);
    assert_string_equal(url.segments[1], "a/b/..?x#");
    assert_string_equal(url.segments[2], "\xc3\xa9t\xc3\xa9 +");
    http_url_clear(&url);

    url = parse("/vms/%252F");
    assert_string_equal(url.segments[1], "%2F"); // decoded once
    http_url_clear(&url);

    url = parse("/vms/B\xc3\xbcro"); // not legal, and what shells send
    assert_string_equal(url.segments[1], "B\xc3\xbcro");
    http_url_clear(&url);
}

static void bad_paths(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",     "*",      "api",   "/a%",      "/a%4",    "/a%4/b",      "/%zz",        "/%+1",  "/%-1",
        "/% 1", "/a%00b", "/%ff",  "/%C3/%A9", "/%C0%AF", "/%ED%A0%80",  "/a%0Ab",      "/a%7f", "/a%C2%85",
        "/a b", "/a#b",   "/a\tb", "/\xff",    "http:/x", "https://h/x", "http://host", "//%00",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        refuse(bad[i], ERR_INVALID);
    refuse("/1/2/3/4/5/6/7/8/9/10/11/12/13", ERR_NOT_FOUND);
}

static void absolute_form(void **state)
{
    (void)state;
    HttpUrl url = parse("HTTP://hub:8082/api/v1?x=1");
    assert_int_equal(url.n_segments, 2);
    assert_string_equal(url.segments[1], "v1");
    assert_string_equal(url.raw, "/api/v1");
    assert_string_equal(url.query[0].value, "1");
    http_url_clear(&url);
}

static void query(void **state)
{
    (void)state;
    HttpUrl url = parse("/b?vm_name=a%26b%3Dc+d%2B&limit=5&empty=&x=a=b?/");
    assert_int_equal(url.n_segments, 1);
    assert_int_equal(url.n_query, 4);
    assert_string_equal(url.query[0].name, "vm_name");
    assert_string_equal(url.query[0].value, "a&b=c d+");
    assert_string_equal(url.query[1].value, "5");
    assert_string_equal(url.query[2].value, "");
    assert_string_equal(url.query[3].value, "a=b?/");
    http_url_clear(&url);

    url = parse("/b?");
    assert_int_equal(url.n_query, 0);
    http_url_clear(&url);
}

static void bad_queries(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "/b?x",
        "/b?=1",
        "/b?x=1&x=2",
        "/b?x=1&%78=2",
        "/b?x=1&&y=2",
        "/b?&",
        "/b?x=%00",
        "/b?x=%f",
        "/b?x=%ff",
        "/b?%00=1",
        "/b?x=%0d%0a",
        "/b?x=1#y",
        "/b?a=&b=&c=&d=&e=&f=&g=&h=&i=&j=&k=&l=&m=&n=&o=&p=&q=",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        refuse(bad[i], ERR_INVALID);
}

// Any bytes: either an error, or as many segments as there are slashes, all of them clean text. Run under ASan too.
static void any_bytes(void **state)
{
    (void)state;
    static const char alphabet[] = "/%?&=+ab01Ff\xc3\xa9# .";
    UnitRandom random = unit_random();
    for (int round = 0; round < 200000; round++) {
        char text[40] = "/";
        size_t n = 1 + unit_random_below(&random, sizeof(text) - 2);
        for (size_t i = 1; i < n; i++)
            text[i] = alphabet[unit_random_below(&random, sizeof(alphabet) - 1)];
        size_t slashes = 0;
        for (size_t i = 0; i < strcspn(text, "?"); i++)
            slashes += text[i] == '/';
        Err err = ERR_INIT;
        HttpUrl url;
        if (!http_url_parse(text, &url, &err))
            continue;
        assert_int_equal(url.n_segments, slashes);
        for (size_t i = 0; i < url.n_segments; i++)
            assert_true(strlen(url.segments[i]) <= strlen(text));
        for (size_t i = 0; i < url.n_query; i++)
            assert_true(url.query[i].name[0] != '\0');
        http_url_clear(&url);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments),      cmocka_unit_test(decoded_after_the_split),
        cmocka_unit_test(half_encoded),  cmocka_unit_test(bad_paths),
        cmocka_unit_test(absolute_form), cmocka_unit_test(query),
        cmocka_unit_test(bad_queries),   cmocka_unit_test(any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
