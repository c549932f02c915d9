#include "http/route.h"

#include "http/request_internal.h"

#include <stdio.h>

// One segment of a pattern, up to the next '/' or the end.
typedef struct Piece {
    const char *s;
    size_t len;
} Piece;

static Piece next_piece(const char **at)
{
    const char *s = *at + 1; // behind the '/'
    const char *stop = strchrnul(s, '/');
    *at = stop;
    return (Piece){.s = s, .len = (size_t)(stop - s)};
}

static bool is_param(Piece p)
{
    return p.len > 2 && p.s[0] == '{' && p.s[p.len - 1] == '}';
}

// Does the pattern fit? *ret_exact then has a bit for each exact segment, the leftmost the highest: larger is better.
static bool fits(const char *pattern, const HttpUrl *url, uint32_t *ret_exact)
{
    uint32_t exact = 0;
    const char *at = pattern;
    for (size_t i = 0; i < url->n_segments; i++) {
        if (!*at)
            return false;
        Piece p = next_piece(&at);
        exact <<= 1;
        if (is_param(p))
            continue;
        if (strlen(url->segments[i]) != p.len || memcmp(url->segments[i], p.s, p.len) != 0)
            return false;
        exact |= 1;
    }
    *ret_exact = exact;
    return !*at;
}

static bool is_method(const HttpRoute *route, const char *method)
{
    return str_eq(route->method, method) || (str_eq(method, "HEAD") && str_eq(route->method, "GET"));
}

static bool take_params(HttpRequest *req, const HttpRoute *route, Err *err)
{
    const char *at = route->pattern;
    req->n_params = 0;
    for (size_t i = 0; i < req->url.n_segments; i++) {
        Piece p = next_piece(&at);
        if (!is_param(p))
            continue;
        if (req->n_params == HTTP_PARAMS_MAX || p.len - 2 >= HTTP_PARAM_NAME_MAX)
            return err_set(err, ERR_INTERNAL, "the pattern %s has too many or too long parameters", route->pattern);
        HttpParam *param = &req->params[req->n_params++];
        (void)snprintf(param->name, sizeof(param->name), "%.*s", (int)(p.len - 2), p.s + 1);
        param->value = req->url.segments[i];
        if (!param->value[0]) {
            char title[ERR_SHORT_MAX];
            (void)snprintf(title, sizeof(title), "missing %s", param->name);
            err_set(err, ERR_INVALID, "the path has an empty segment; expected %s", route->pattern);
            return err_title(err, title);
        }
    }
    return true;
}

static bool is_known(const char *names, const char *name)
{
    size_t n = strlen(name);
    while (names && *names) {
        size_t len = strcspn(names, " ");
        if (len == n && memcmp(names, name, n) == 0)
            return true;
        names += len + (names[len] == ' ');
    }
    return false;
}

static bool check_query(const HttpRequest *req, const HttpRoute *route, Err *err)
{
    for (size_t i = 0; i < req->url.n_query; i++) {
        const char *name = req->url.query[i].name;
        if (!is_known(route->query, name))
            return err_set(err, ERR_INVALID, "unknown query parameter %.64s; this call takes %s", name,
                           route->query ? route->query : "none");
    }
    return true;
}

static void add_method(char allow[HTTP_ALLOW_MAX], const char *method)
{
    size_t n = strlen(allow);
    (void)snprintf(allow + n, HTTP_ALLOW_MAX - n, "%s%s%s", n ? ", " : "", method,
                   str_eq(method, "GET") ? ", HEAD" : "");
}

bool http_route_find(const HttpRoutes *routes, HttpRequest *req, const HttpRoute **ret, char allow[HTTP_ALLOW_MAX],
                     Err *err)
{
    bool found = false;
    uint32_t best = 0;
    for (size_t i = 0; i < routes->len; i++) {
        uint32_t exact;
        if (fits(routes->items[i].pattern, &req->url, &exact) && (!found || exact > best)) {
            found = true;
            best = exact;
        }
    }
    if (!found)
        return err_set(err, ERR_NOT_FOUND, "no such path: %.200s; the API is under /api/v1", req->url.raw);
    allow[0] = '\0';
    for (size_t i = 0; i < routes->len; i++) {
        const HttpRoute *route = &routes->items[i];
        uint32_t exact;
        if (!fits(route->pattern, &req->url, &exact) || exact != best)
            continue;
        if (is_method(route, req->method)) {
            if (!take_params(req, route, err) || !check_query(req, route, err))
                return false;
            *ret = route;
            return true;
        }
        add_method(allow, route->method);
    }
    return err_set(err, ERR_METHOD, "%.32s is not possible on this path; allowed: %s", req->method, allow);
}
