#include "http/request.h"

#include "base/num.h"
#include "http/request_internal.h"

#include "http/server.h"
#include <stdio.h>

#include <strings.h>

const char *http_request_method(const HttpRequest *req)
{
    return req->method;
}

const char *http_request_path(const HttpRequest *req)
{
    return req->url.raw;
}

const char *http_request_remote(const HttpRequest *req)
{
    return req->remote;
}

const char *http_request_actor(const HttpRequest *req)
{
    return req->actor;
}

const char *http_request_role(const HttpRequest *req)
{
    return req->role;
}

void http_request_set_object(HttpRequest *req, const char *object)
{
    (void)snprintf(req->object, sizeof(req->object), "%s", object);
    str_make_utf8(req->object); // where it was cut
}

void http_request_set_actor(HttpRequest *req, const char *actor, const char *role)
{
    (void)snprintf(req->actor, sizeof(req->actor), "%s", actor);
    (void)snprintf(req->role, sizeof(req->role), "%s", role ? role : "");
}

const char *http_request_param(const HttpRequest *req, const char *name)
{
    for (size_t i = 0; i < req->n_params; i++) {
        if (str_eq(req->params[i].name, name))
            return req->params[i].value;
    }
    abort(); // a handler asked for what its own pattern does not have: the first call of it shows
}

const char *http_request_query(const HttpRequest *req, const char *name)
{
    for (size_t i = 0; i < req->url.n_query; i++) {
        if (str_eq(req->url.query[i].name, name))
            return req->url.query[i].value;
    }
    return NULL;
}

bool http_request_query_u64(const HttpRequest *req, const char *name, uint64_t min, uint64_t max, uint64_t fallback,
                            uint64_t *ret, Err *err)
{
    const char *text = http_request_query(req, name);
    if (!text) {
        *ret = fallback;
        return true;
    }
    Err why = ERR_INIT;
    if (!num_u64(text, min, max, ret, &why))
        return err_set(err, ERR_INVALID, "query parameter %s: %s", name, why.details);
    return true;
}

bool http_request_query_bool(const HttpRequest *req, const char *name, bool fallback, bool *ret, Err *err)
{
    const char *text = http_request_query(req, name);
    if (text && !str_eq(text, "true") && !str_eq(text, "false"))
        return err_set(err, ERR_INVALID, "query parameter %s is neither true nor false", name);
    *ret = text ? str_eq(text, "true") : fallback;
    return true;
}

const char *http_request_body(const HttpRequest *req, size_t *ret_len)
{
    *ret_len = req->body.len;
    return req->body.s ? req->body.s : "";
}

bool http_request_bad_body(Err *err)
{
    if (err->code == ERR_INVALID && !err->title[0])
        err_title(err, "invalid request body");
    return false;
}

static bool parse_body(HttpRequest *req, Err *err)
{
    if (req->json)
        return true;
    if (req->body.len == 0)
        return err_set(err, ERR_INVALID, "there is no body; send a JSON object");
    return codec_json_parse(req->body.s, req->body.len, HTTP_BODY_MAX, &req->json, err) &&
        codec_json_object(req->json, "the request body", err);
}

bool http_request_json(HttpRequest *req, const char *const *known, const json_t **ret, Err *err)
{
    if (!parse_body(req, err) || (known && !codec_json_only(req->json, known, err)))
        return http_request_bad_body(err);
    *ret = req->json;
    return true;
}

bool http_request_no_body(HttpRequest *req, Err *err)
{
    static const char *const none[] = {NULL};
    const json_t *object;
    return req->body.len == 0 || http_request_json(req, none, &object, err);
}

bool http_request_token(HttpRequest *req, const Secret **ret, Err *err)
{
    static const char scheme[] = "Bearer ";
    if (req->authorization && !secret_is_set(&req->token)) {
        if (strncasecmp(req->authorization, scheme, sizeof(scheme) - 1) != 0)
            return err_set(err, ERR_FORBIDDEN, "only \"Authorization: Bearer TOKEN\" is understood");
        const char *text = req->authorization + sizeof(scheme) - 1;
        size_t n = strlen(text);
        if (n == 0 || n >= SECRET_MAX || strpbrk(text, " \t"))
            return err_set(err, ERR_FORBIDDEN, "the bearer token is empty, too long, or not one word");
        if (!secret_set(&req->token, text, err))
            return false;
    }
    *ret = &req->token;
    return true;
}

// RFC 6265, 5.4: "name=value; name=value".
static const char *find_cookie(const char *cookies, const char *name, size_t *ret_len)
{
    size_t n = strlen(name);
    for (const char *p = cookies; p && *p; p += strcspn(p, ";")) {
        p += strspn(p, "; ");
        if (strncmp(p, name, n) == 0 && p[n] == '=') {
            *ret_len = strcspn(p + n + 1, "; ");
            return p + n + 1;
        }
    }
    return NULL;
}

bool http_request_cookie(HttpRequest *req, const char *name, const Secret **ret, Err *err)
{
    char text[SECRET_MAX];
    size_t n = 0;
    const char *value = find_cookie(req->cookies, name, &n);
    secret_clear(&req->cookie);
    if (value && (n == 0 || n >= sizeof(text)))
        return err_set(err, ERR_FORBIDDEN, "the cookie %s is empty or too long", name);
    if (value) {
        memcpy(text, value, n);
        text[n] = '\0';
        bool ok = secret_set(&req->cookie, text, err);
        explicit_bzero(text, n);
        if (!ok)
            return false;
    }
    *ret = &req->cookie;
    return true;
}

const char *http_request_csrf(const HttpRequest *req)
{
    return req->csrf;
}

bool http_request_encrypted(const HttpRequest *req)
{
    return req->encrypted;
}

bool http_request_is_upgrade(const HttpRequest *req, Err *err)
{
    if (str_eq(req->method, "GET") && str_eq(req->version, "HTTP/1.1") && req->upgrade && req->hop &&
        strcasecmp(req->upgrade, HTTP_RELAY_PROTOCOL) == 0 && strcasestr(req->hop, "upgrade"))
        return true;
    return err_set(err, ERR_INVALID,
                   "this call is for programs that speak NBD: a GET of HTTP/1.1 with the headers \"Connection: "
                   "Upgrade\" and \"Upgrade: " HTTP_RELAY_PROTOCOL "\"");
}

bool http_request_has_token(const HttpRequest *req)
{
    return req->authorization != NULL;
}

void http_request_clear(HttpRequest *req)
{
    http_url_clear(&req->url);
    secret_clear(&req->cookie);
    secret_clear(&req->token);
    str_clear(&req->body);
    json_decref(req->json);
    req->json = NULL;
}
