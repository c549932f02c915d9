// HTTP requests over libcurl: one at a time, each with deadlines and a bounded answer. No redirects are followed,
// no proxy is used, TLS is verified, a connection has 5 s to come about. One HttpClient belongs to one thread.
#pragma once

#include "base/secret.h"

#include <stdatomic.h>

typedef struct HttpRequest {
    const char *method;        // "GET", "POST", "PATCH", "DELETE"
    const char *url;           // http:// or https://
    const char *body;          // JSON; NULL: none
    const Secret *token;       // sent as "Authorization: Bearer …"; NULL or not set: none
    int timeout_ms;            // of the whole exchange; 0: 30 s. With on_data: of silence, in whole seconds
    size_t max_answer;         // bytes of the answer's body, 0: 4 MiB. With on_data it bounds only error answers
    const atomic_bool *cancel; // looked at about once a second while waiting; may be NULL
    // A stream: each piece of a 200 answer's body as it arrives; false ends the exchange (which then went well).
    bool (*on_data)(void *ctx, const char *p, size_t n);
    void *ctx;
} HttpRequest;

typedef struct HttpAnswer {
    int status;
    char *body; // NUL-terminated; "" when there is none
    size_t body_len;
} HttpAnswer;

void http_answer_clear(HttpAnswer *a);

typedef struct HttpClient HttpClient;

bool http_client_new(HttpClient **ret, Err *err) must_check;
void http_client_free(HttpClient *c);
// True whenever the server answered, with whatever status. ERR_UNAVAILABLE: not reached, or the connection broke;
// ERR_TIMEOUT; ERR_TOO_LARGE; ERR_CANCELLED; ERR_PROTOCOL: it does not speak HTTP, or its certificate is not trusted.
bool http_client_call(HttpClient *c, const HttpRequest *r, HttpAnswer *ret, Err *err) must_check;
