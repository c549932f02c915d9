// What is refused by its headers alone: the ways to smuggle a request past another parser, and what is too large.
#include "unit.h"

#include "http/guard.h"
#include "http/server.h"

typedef struct Try {
    const char *method;
    const char *version;
    size_t target_len;
    HttpHeader headers[HTTP_HEADER_COUNT_MAX + 8];
    size_t n;
} Try;

static void add(Try *t, const char *name, const char *value)
{
    t->headers[t->n++] = (HttpHeader){
        .name = name, .name_len = strlen(name), .value = value, .value_len = strlen(value)};
}

static Try start(void)
{
    Try t = {.method = "POST", .version = "HTTP/1.1", .target_len = 10};
    add(&t, "Host", "localhost:8082");
    return t;
}

static bool check(const Try *t, HttpFraming *ret, int *ret_status, Err *err)
{
    const HttpHead head = {.method = t->method,
                           .version = t->version,
                           .target_len = t->target_len,
                           .headers = t->headers,
                           .n_headers = t->n};
    return http_guard_check(&head, ret, ret_status, err);
}

static void accept(const Try *t, uint64_t length)
{
    Err err = ERR_INIT;
    HttpFraming framing;
    int status;
    assert_ok(check(t, &framing, &status, &err), &err);
    assert_int_equal(framing.content_length, length);
    assert_int_equal(status, 0);
}

static void refuse_as(const Try *t, ErrCode code, int expected_status)
{
    Err err = ERR_INIT;
    HttpFraming framing;
    int status;
    assert_false(check(t, &framing, &status, &err));
    assert_int_equal(err.code, code);
    assert_int_equal(status, expected_status);
}

static void refuse(const Try *t)
{
    refuse_as(t, ERR_INVALID, 0);
}

static void refuse_header(const char *name, const char *value)
{
    Try t = start();
    add(&t, name, value);
    refuse(&t);
}

static void framing(void **state)
{
    (void)state;
    Try t = start();
    accept(&t, 0);
    add(&t, "content-length", "12");
    accept(&t, 12);
    add(&t, "Content-Length", "12"); // even if it says the same
    refuse(&t);

    t = start();
    add(&t, "Transfer-Encoding", "Chunked");
    accept(&t, 0);
    add(&t, "Content-Length", "12");
    refuse(&t);

    t = start();
    add(&t, "Transfer-Encoding", "chunked");
    add(&t, "Transfer-Encoding", "chunked");
    refuse(&t);

    t = start();
    add(&t, "Transfer-Encoding", "chunked");
    t.version = "HTTP/1.0";
    refuse(&t);

    static const char *const lengths[] = {"",
                                          "-1",
                                          "+1",
                                          " 1",
                                          "1 ",
                                          "1,1",
                                          "0x10",
                                          "1e3",
                                          "12a",
                                          "9223372036854775808",
                                          "99999999999999999999999",
                                          "1\t"};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++)
        refuse_header("Content-Length", lengths[i]);
    static const char *const encodings[] = {
        "",         "identity",  "gzip",     "gzip, chunked", "chunked, chunked",
        " chunked", "chunked\t", "xchunked", "chunked;q=1"};
    for (size_t i = 0; i < ARRAY_LEN(encodings); i++)
        refuse_header("Transfer-Encoding", encodings[i]);
}

static void names_and_values(void **state)
{
    (void)state;
    static const char *const names[] = {"",
                                        "Content-Length ",
                                        " Content-Length",
                                        "Content Length",
                                        "X:",
                                        "X\t",
                                        "X\r",
                                        "X(",
                                        "\xc3\xa9",
                                        "X\x7f",
                                        "X\""};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        refuse_header(names[i], "1");
    static const char *const values[] = {"a\nb", "a\rb", "a\x01", "\x7f"};
    for (size_t i = 0; i < ARRAY_LEN(values); i++)
        refuse_header("X-Any", values[i]);
    Try t = start();
    add(&t, "X-Any", "tab\tis fine, \xc3\xa9 too");
    add(&t, "!#$%&'*+-.^_`|~09azAZ", "");
    accept(&t, 0);
    t.headers[t.n - 1].value = "a\0b";
    t.headers[t.n - 1].value_len = 3;
    refuse(&t);
    t.headers[t.n - 1].value_len = 1;
    t.headers[t.n - 1].name = "X\0Y";
    t.headers[t.n - 1].name_len = 3;
    refuse(&t);
}

static void hosts_and_versions(void **state)
{
    (void)state;
    Try t = start();
    t.n = 0;
    refuse(&t);
    t.version = "HTTP/1.0";
    accept(&t, 0);
    t = start();
    add(&t, "host", "other");
    refuse(&t);
    t = start();
    add(&t, "Authorization", "Bearer a");
    Err err = ERR_INIT;
    HttpFraming f;
    int status;
    assert_ok(check(&t, &f, &status, &err), &err);
    assert_string_equal(f.authorization, "Bearer a");
    add(&t, "authorization", "Bearer b");
    refuse(&t);
    static const char *const versions[] = {"",          "HTTP/0.9", "HTTP/2.0", "HTTP/1.2",
                                           "HTTP/1.1x", "http/1.1", "HTTP/1.01"};
    for (size_t i = 0; i < ARRAY_LEN(versions); i++) {
        t = start();
        t.version = versions[i];
        refuse(&t);
    }
    t = start();
    t.method = "GE T";
    refuse(&t);
    t.method = "";
    refuse(&t);
}

static void ceilings(void **state)
{
    (void)state;
    Try t = start();
    t.target_len = HTTP_URI_MAX;
    accept(&t, 0);
    t.target_len++;
    refuse_as(&t, ERR_TOO_LARGE, 414);

    t = start();
    while (t.n < HTTP_HEADER_COUNT_MAX)
        add(&t, "X-Any", "");
    accept(&t, 0);
    add(&t, "X-Any", "");
    refuse_as(&t, ERR_TOO_LARGE, 431);

    static char large[HTTP_HEADERS_MAX];
    memset(large, 'a', sizeof(large) - 1);
    t = start();
    add(&t, "X-Any", large);
    refuse_as(&t, ERR_TOO_LARGE, 431);
}

// The hub may run without tokens: a page from elsewhere must not make its reader's browser call it.
static void origins(void **state)
{
    (void)state;
    static const char *const good[] = {"http://localhost:8082", "https://LOCALHOST:8082"};
    static const char *const bad[] = {"null",
                                      "",
                                      "http://localhost",
                                      "http://localhost:80820",
                                      "http://evil.example",
                                      "ftp://localhost:8082",
                                      "localhost:8082"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        Try t = start();
        add(&t, "Origin", good[i]);
        accept(&t, 0);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Try t = start();
        add(&t, "Origin", bad[i]);
        refuse_as(&t, ERR_FORBIDDEN, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(framing),
        cmocka_unit_test(names_and_values),
        cmocka_unit_test(hosts_and_versions),
        cmocka_unit_test(ceilings),
        cmocka_unit_test(origins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
