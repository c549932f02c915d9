// What is refused by the head of a request alone: the ways to smuggle a request past another parser, and what is
// too large. On the bytes as they come.
#include "unit.h"

#include "http/guard.h"
#include "http/server.h"

#define START "POST /api/v1/x HTTP/1.1\r\n"
#define HOST "Host: localhost:8082\r\n"

static HttpHead accept_bytes(const char *bytes, size_t n)
{
    Err err = ERR_INIT;
    HttpHead head;
    size_t len;
    int status;
    assert_ok(http_guard_check(bytes, n, &head, &len, &status, &err), &err);
    assert_int_equal(len, n);
    return head;
}

static HttpHead accept(const char *text)
{
    return accept_bytes(text, strlen(text));
}

static void refuse_bytes(const char *bytes, size_t n, ErrCode code, int expected)
{
    Err err = ERR_INIT;
    HttpHead head;
    size_t len;
    int status;
    if (http_guard_check(bytes, n, &head, &len, &status, &err))
        fail_msg("accepted: %.*s", (int)n, bytes);
    assert_int_equal(err.code, code);
    assert_int_equal(status, expected);
    assert_true(err.details[0] != '\0');
}

static void refuse(const char *text)
{
    refuse_bytes(text, strlen(text), ERR_INVALID, 400);
}

// One line beside a good start
static void refuse_line(const char *line)
{
    char text[512];
    (void)snprintf(text, sizeof(text), START HOST "%s\r\n\r\n", line);
    refuse(text);
}

static HttpHead accept_line(const char *line)
{
    static char text[512];
    (void)snprintf(text, sizeof(text), START HOST "%s\r\n\r\n", line);
    return accept(text);
}

static void plain(void **state)
{
    (void)state;
    HttpHead head = accept(START HOST "\r\n");
    assert_memory_equal(head.method.s, "POST", head.method.len);
    assert_memory_equal(head.target.s, "/api/v1/x", head.target.len);
    assert_int_equal(head.content_length, 0);
    (void)accept("GET / HTTP/1.0\r\n\r\n");
    (void)accept("GET /a?b=%20 HTTP/1.1\r\nhost:x\r\nAccept:\r\nX-A: tab\tis fine, \xc3\xa9 too \r\n\r\n");
    (void)accept_line("!#$%&'*+-.^_`|~09azAZ: x");
    assert_int_equal(accept_line("Content-Length: 12").content_length, 12);
    assert_int_equal(accept_line("content-length:\t 1048576 ").content_length, 1048576);
    assert_int_equal(accept_line("Transfer-Encoding: Chunked").content_length, 0);
}

// Every beginning of a good head waits for more, and nothing behind its end counts.
static void comes_in_parts(void **state)
{
    (void)state;
    static const char text[] = START HOST "Content-Length: 2\r\n\r\n{}GET / HTTP/1.1\nrubbish";
    size_t end = strlen(START HOST "Content-Length: 2\r\n\r\n");
    for (size_t n = 0; n < sizeof(text); n++) {
        Err err = ERR_INIT;
        HttpHead head;
        size_t len;
        int status;
        assert_ok(http_guard_check(text, n, &head, &len, &status, &err), &err);
        assert_int_equal(len, n < end ? 0 : end);
    }
}

static void framing(void **state)
{
    (void)state;
    refuse_line("Content-Length: 12\r\ncontent-length: 12"); // even if it says the same
    refuse_line("Transfer-Encoding: chunked\r\nContent-Length: 12");
    refuse_line("Content-Length: 12\r\nTransfer-Encoding: chunked");
    refuse_line("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked");
    refuse("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    static const char *const lengths[] = {
        "",        "-1", "+1", "1 1", "1,1", "0x10", "1e3", "12a", "9223372036854775808", "99999999999999999999999",
        "\xd9\xa1"};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        char line[64];
        (void)snprintf(line, sizeof(line), "Content-Length: %s", lengths[i]);
        refuse_line(line);
    }
    static const char *const encodings[] = {"",         "identity",         "gzip",        "gzip, chunked",
                                            "xchunked", "chunked, chunked", "chunked;q=1", "\"chunked\"",
                                            "chunked, "};
    for (size_t i = 0; i < ARRAY_LEN(encodings); i++) {
        char line[64];
        (void)snprintf(line, sizeof(line), "Transfer-Encoding: %s", encodings[i]);
        refuse_line(line);
    }
}

// libmicrohttpd 0.9.75 drops a header whose value stands on a second line: a body that nobody expects.
static void folded(void **state)
{
    (void)state;
    refuse_line("Transfer-Encoding:\r\n chunked");
    refuse_line("Content-Length:\r\n\t5");
    refuse_line("X: a\r\n b");
    refuse(START " " HOST "\r\n");
}

static void line_ends(void **state)
{
    (void)state;
    refuse("GET / HTTP/1.1\nHost: x\n\n");
    refuse(START HOST "\n\r\n");
    refuse(START "Host: x\rContent-Length: 3\r\n\r\n");
    refuse(START HOST "X: y\r\r\n\r\n");
    refuse("\r\n" START HOST "\r\n");
    refuse("\r\n\r\n");
    // as soon as they are there, not only when the head is complete
    refuse("GET / HTTP/1.1\nHo");
    refuse("\n");
    refuse("\x16\x03\x01");
    refuse_bytes("GET /\0", 6, ERR_INVALID, 400);
}

static void names_and_values(void **state)
{
    (void)state;
    static const char *const lines[] = {"Content-Length : 5",
                                        " Content-Length: 5",
                                        "Content Length: 5",
                                        ": x",
                                        "no colon",
                                        "X\t: 1",
                                        "X(: 1",
                                        "\xc3\xa9: 1",
                                        "X\": 1",
                                        "X: a\x01",
                                        "X: \x7f",
                                        "X\x0b: 1"};
    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        refuse_line(lines[i]);
    static const char nul_value[] = START HOST "X: a\0b\r\n\r\n";
    static const char nul_name[] = START HOST "X\0Y: a\r\n\r\n";
    refuse_bytes(nul_value, sizeof(nul_value) - 1, ERR_INVALID, 400);
    refuse_bytes(nul_name, sizeof(nul_name) - 1, ERR_INVALID, 400);
}

static void request_lines(void **state)
{
    (void)state;
    static const char *const lines[] = {"",
                                        "GET",
                                        "GET /",
                                        "GET / ",
                                        "GET  / HTTP/1.1",
                                        "GET /  HTTP/1.1",
                                        "GET / HTTP/1.1 ",
                                        " GET / HTTP/1.1",
                                        "GET\t/\tHTTP/1.1",
                                        "GET /a b HTTP/1.1",
                                        "GET / HTTP/1.2",
                                        "GET / HTTP/0.9",
                                        "GET / HTTP/2.0",
                                        "GET / http/1.1",
                                        "GET / HTTP/1.1x",
                                        "GET / HTTP/1.01",
                                        "G(T / HTTP/1.1",
                                        "AMETHODOFMORETHANTHIRTYTWOLETTERS / HTTP/1.1"};
    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        char text[128];
        (void)snprintf(text, sizeof(text), "%s\r\n" HOST "\r\n", lines[i]);
        refuse(text);
    }
}

static void single_headers(void **state)
{
    (void)state;
    refuse(START "\r\n"); // no Host
    refuse(START "Host:\r\n\r\n");
    refuse_line("host: other");
    refuse_line("Authorization: Bearer a\r\nauthorization: Bearer b");
    refuse_line("Origin: http://localhost:8082\r\nOrigin: http://localhost:8082");
    (void)accept_line("Authorization: Bearer a\r\nAccept: a\r\nAccept: b");
}

static void ceilings(void **state)
{
    (void)state;
    static char text[HTTP_URI_MAX + HTTP_HEADERS_MAX + 1000];
    size_t n = (size_t)snprintf(text, sizeof(text), "GET /");
    memset(text + n, 'a', HTTP_URI_MAX + 200);
    refuse_bytes(text, n + HTTP_URI_MAX + 200, ERR_TOO_LARGE, 414); // without waiting for its end
    n = (size_t)snprintf(text, sizeof(text), START HOST "X: ");
    memset(text + n, 'a', HTTP_HEADERS_MAX);
    refuse_bytes(text, n + HTTP_HEADERS_MAX, ERR_TOO_LARGE, 431);

    n = (size_t)snprintf(text, sizeof(text), START HOST);
    for (unsigned i = 1; i < HTTP_HEADER_COUNT_MAX; i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, "X: a\r\n");
    (void)snprintf(text + n, sizeof(text) - n, "\r\n");
    (void)accept(text);
    (void)snprintf(text + n, sizeof(text) - n, "X: a\r\n\r\n");
    refuse_bytes(text, strlen(text), ERR_TOO_LARGE, 431);

    static const char large[] = START HOST "Content-Length: 1048577\r\n\r\n";
    refuse_bytes(large, sizeof(large) - 1, ERR_TOO_LARGE, 413);
}

// The hub may run without tokens: a page from elsewhere must not make its reader's browser call it.
static void origins(void **state)
{
    (void)state;
    (void)accept_line("Origin: http://localhost:8082");
    (void)accept_line("Origin: https://LOCALHOST:8082");
    static const char *const bad[] = {"null",
                                      "",
                                      "http://localhost",
                                      "http://localhost:80820",
                                      "http://evil.example",
                                      "ftp://localhost:8082",
                                      "localhost:8082"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char text[256];
        (void)snprintf(text, sizeof(text), START HOST "Origin: %s\r\n\r\n", bad[i]);
        refuse_bytes(text, strlen(text), ERR_FORBIDDEN, 403);
    }
}

// A page whose name leads to a loopback address has an origin that fits its host.
static void local_hosts(void **state)
{
    (void)state;
    static const char *const local[] = {"localhost", "LOCALHOST:8082", "127.0.0.1",  "127.0.0.1:8082",
                                        "[::1]:82",  "[::1]",          "backup:8082"};
    static const char *const strange[] = {"evil.example",
                                          "evil.example:8082",
                                          "localhost.evil.example",
                                          "127.0.0.1.nip.io",
                                          "[evil]:1",
                                          "backup.evil",
                                          "",
                                          ":8082"};
    for (size_t i = 0; i < ARRAY_LEN(local); i++)
        assert_true(http_guard_host_is_local((HttpSlice){local[i], strlen(local[i])}, "backup"));
    for (size_t i = 0; i < ARRAY_LEN(strange); i++)
        assert_false(http_guard_host_is_local((HttpSlice){strange[i], strlen(strange[i])}, "backup"));
    assert_false(http_guard_host_is_local((HttpSlice){":8082", 5}, "")); // a machine without a name
    char longest[300];
    memset(longest, 'a', sizeof(longest));
    assert_false(http_guard_host_is_local((HttpSlice){longest, sizeof(longest)}, "backup"));
}

// Any bytes, cut anywhere: never past the end (run under ASan too), and what is accepted has one clear reading.
static void any_bytes(void **state)
{
    (void)state;
    static const char *const pieces[] = {
        "GET",  " ",   "/",  "HTTP/1.1",       "\r\n", "\r\n\r\n",          "Host",    ":",      "x",
        "\t",   "\n",  "\r", "Content-Length", "5",    "Transfer-Encoding", "chunked", "Origin", "http://x",
        "\xff", "\x01"};
    UnitRandom random = unit_random();
    for (int round = 0; round < 200000; round++) {
        char text[256];
        size_t n = 0;
        for (uint64_t k = unit_random_below(&random, 20); k > 0; k--) {
            const char *piece = pieces[unit_random_below(&random, ARRAY_LEN(pieces))];
            memcpy(text + n, piece, strlen(piece));
            n += strlen(piece);
        }
        char *exact = malloc(n ? n : 1); // so that a byte too far is noticed
        assert_non_null(exact);
        memcpy(exact, text, n);
        Err err = ERR_INIT;
        HttpHead head;
        size_t len;
        int status;
        if (http_guard_check(exact, n, &head, &len, &status, &err) && len > 0) {
            assert_true(len <= n && len >= 4);
            assert_memory_equal(exact + len - 4, "\r\n\r\n", 4);
            assert_true(head.method.len > 0 && head.target.len > 0);
        }
        free(exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain),         cmocka_unit_test(comes_in_parts), cmocka_unit_test(framing),
        cmocka_unit_test(folded),        cmocka_unit_test(line_ends),      cmocka_unit_test(names_and_values),
        cmocka_unit_test(request_lines), cmocka_unit_test(single_headers), cmocka_unit_test(ceilings),
        cmocka_unit_test(origins),       cmocka_unit_test(local_hosts),    cmocka_unit_test(any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
