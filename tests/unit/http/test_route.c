// Which route answers a path: exact before parameter, 404, 405, empty parameters, unknown queries.
#include "unit.h"

#include "http/request_internal.h"

static bool nothing(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)req;
    (void)ctx;
    (void)ret;
    (void)err;
    return true;
}

static const HttpRoute table[] = {
    {"GET", "/api/v1/backups/{backup_id}", nothing, 0, NULL},
    {"DELETE", "/api/v1/backups/{backup_id}", nothing, 0, "with_dependents"},
    {"GET", "/api/v1/backups/stats", nothing, 0, NULL},
    {"GET", "/api/v1/backups", nothing, 0, "vm_name limit offset"},
    {"POST", "/api/v1/backups", nothing, HTTP_BODY, NULL},
    {"POST", "/api/v1/backups/{backup_id}/complete", nothing, HTTP_BODY, NULL},
    {"POST", "/api/v1/backups/stats/{what}", nothing, HTTP_BODY, NULL},
    {"GET", "/api/v1/{a}/{b}/{c}/{d}", nothing, 0, NULL},
};
static const HttpRoutes routes = {table, ARRAY_LEN(table)};

typedef struct Found {
    HttpRequest req;
    const HttpRoute *route;
    char allow[HTTP_ALLOW_MAX];
    Err err;
} Found;

static Found find(const char *method, const char *target)
{
    Found f = {.req.method = method};
    Err err = ERR_INIT;
    assert_ok(http_url_parse(target, &f.req.url, &err), &err);
    if (!http_route_find(&routes, &f.req, &f.route, f.allow, &f.err))
        f.route = NULL;
    return f;
}

static void check(const char *method, const char *target, size_t expected)
{
    Found f = find(method, target);
    assert_int_equal(f.err.code, ERR_NONE);
    assert_ptr_equal(f.route, &table[expected]);
    http_request_clear(&f.req);
}

static void refuse(const char *method, const char *target, ErrCode code, const char *words, const char *allow)
{
    Found f = find(method, target);
    assert_null(f.route);
    assert_int_equal(f.err.code, code);
    if (!strstr(err_short(&f.err), words) && !strstr(f.err.details, words))
        fail_msg("%s %s: %s: %s", method, target, err_short(&f.err), f.err.details);
    if (allow)
        assert_string_equal(f.allow, allow);
    http_request_clear(&f.req);
}

static void exact_before_parameter(void **state)
{
    (void)state;
    check("GET", "/api/v1/backups/backup-a-1", 0);
    check("GET", "/api/v1/backups/stats", 2);
    check("GET", "/api/v1/backups/%73tats", 2);
    check("GET", "/api/v1/backups/statsx", 0);
    check("POST", "/api/v1/backups/x/complete", 5);
    check("POST", "/api/v1/backups/stats/complete", 6); // the leftmost exact segment wins
    check("GET", "/api/v1/w/x/y/z", 7);
    // never DELETE /backups/{backup_id} with a backup called "stats"
    refuse("DELETE", "/api/v1/backups/stats", ERR_METHOD, "DELETE", "GET, HEAD");
}

static void not_found(void **state)
{
    (void)state;
    static const char *const missing[] = {"/",
                                          "/api",
                                          "/api/v1",
                                          "/api/v1/",
                                          "/api/v2/backups",
                                          "/api/v1/backup",
                                          "/api/v1/Backups",
                                          "/api/v1/backups/x/complete/y/z",
                                          "/api/v1%2Fbackups",
                                          "//api/v1/backups"};
    for (size_t i = 0; i < ARRAY_LEN(missing); i++)
        refuse("GET", missing[i], ERR_NOT_FOUND, "no such path", NULL);
}

static void methods(void **state)
{
    (void)state;
    check("HEAD", "/api/v1/backups", 3);
    check("POST", "/api/v1/backups", 4);
    refuse("PUT", "/api/v1/backups", ERR_METHOD, "PUT", "GET, HEAD, POST");
    refuse("get", "/api/v1/backups", ERR_METHOD, "get", "GET, HEAD, POST");
    refuse("OPTIONS", "/api/v1/backups/x", ERR_METHOD, "allowed", "GET, HEAD, DELETE");
    refuse("HEAD", "/api/v1/backups/x/complete", ERR_METHOD, "HEAD", "POST");
}

static void parameters(void **state)
{
    (void)state;
    Found f = find("POST", "/api/v1/backups/backup-a%2Fb-1/complete");
    assert_string_equal(http_request_param(&f.req, "backup_id"), "backup-a/b-1");
    http_request_clear(&f.req);

    f = find("GET", "/api/v1/1/2/3/4");
    assert_string_equal(http_request_param(&f.req, "a"), "1");
    assert_string_equal(http_request_param(&f.req, "d"), "4");
    http_request_clear(&f.req);

    refuse("POST", "/api/v1/backups//complete", ERR_INVALID, "missing backup_id", NULL);
    f = find("POST", "/api/v1/backups//complete");
    assert_string_equal(err_short(&f.err), "missing backup_id");
    http_request_clear(&f.req);
    refuse("DELETE", "/api/v1/backups/", ERR_INVALID, "missing backup_id", NULL);
}

static void queries(void **state)
{
    (void)state;
    check("GET", "/api/v1/backups?vm_name=a&offset=1", 3);
    refuse("GET", "/api/v1/backups?vm=a", ERR_INVALID, "vm_name limit offset", NULL);
    refuse("GET", "/api/v1/backups?lim=1", ERR_INVALID, "lim", NULL);
    refuse("GET", "/api/v1/backups?limi+t=1", ERR_INVALID, "limi t", NULL);
    refuse("GET", "/api/v1/backups?vm_name+limit=1", ERR_INVALID, "vm_name limit", NULL);
    refuse("GET", "/api/v1/backups/x?limit=1", ERR_INVALID, "takes none", NULL);

    Err err = ERR_INIT;
    Found f = find("GET", "/api/v1/backups?limit=7&offset=x");
    uint64_t n;
    assert_ok(http_request_query_u64(&f.req, "limit", 1, 1000, 100, &n, &err), &err);
    assert_int_equal(n, 7);
    assert_ok(http_request_query_u64(&f.req, "none", 1, 1000, 100, &n, &err), &err);
    assert_int_equal(n, 100);
    assert_fails(http_request_query_u64(&f.req, "limit", 8, 1000, 100, &n, &err), &err, ERR_INVALID);
    assert_fails(http_request_query_u64(&f.req, "offset", 0, 1000, 100, &n, &err), &err, ERR_INVALID);
    bool b;
    assert_ok(http_request_query_bool(&f.req, "none", true, &b, &err), &err);
    assert_true(b);
    assert_fails(http_request_query_bool(&f.req, "limit", true, &b, &err), &err, ERR_INVALID);
    assert_null(http_request_query(&f.req, "vm_name"));
    http_request_clear(&f.req);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_before_parameter),
        cmocka_unit_test(not_found),
        cmocka_unit_test(methods),
        cmocka_unit_test(parameters),
        cmocka_unit_test(queries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
