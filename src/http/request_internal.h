// What a HttpRequest is inside http/. Handlers use http/request.h.
#pragma once

#include "http/route.h"
#include "http/url.h"

#include <netinet/in.h>

#define HTTP_PARAMS_MAX 4
#define HTTP_PARAM_NAME_MAX 32

typedef struct HttpParam {
    char name[HTTP_PARAM_NAME_MAX];
    const char *value; // of the URL's segments
} HttpParam;

struct HttpRequest {
    const char *method; // borrowed from the connection
    char remote[INET6_ADDRSTRLEN];
    HttpUrl url;
    HttpParam params[HTTP_PARAMS_MAX];
    size_t n_params;
    char actor[HTTP_ACTOR_MAX], role[HTTP_ROLE_MAX], object[HTTP_OBJECT_MAX];
    const char *authorization;                            // borrowed from the connection; NULL: none sent
    const char *cookies, *csrf, *upgrade, *hop, *version; // the same
    bool encrypted;
    Secret token, cookie;
    StrBuf body;
    json_t *json; // of the body, once somebody asked
};

// Is there no body, or an empty object? Else ERR_INVALID "invalid request body".
bool http_request_no_body(HttpRequest *req, Err *err) must_check;
void http_request_clear(HttpRequest *req);
