// The table of routes: which handler answers which method and path.
//
// Patterns are split at '/' like paths; a segment "{name}" stands for any segment. Where several
// patterns fit, the one with the leftmost exact segment wins, whatever the method:
// "/backups/stats" is never taken for "/backups/{backup_id}". An empty segment in the place of
// "{name}" is ERR_INVALID titled "missing name".
#pragma once

#include "http/request.h"

#include <jansson.h>

// Server-sent events. next() is called in the connection's thread, every interval_ms (0: 50)
// until it says *end or fails, or the client is gone, or the server stops. It does not block. It
// adds whole events to out, or nothing; the server adds a heartbeat comment after 5 s without any.
// Failing cuts the connection, so that the client sees a stream without its end. close() is always
// called once, also when next() never was; either may outlive the handler, not the server.
typedef struct HttpStream {
    bool (*next)(void *ctx, StrBuf *out, bool *end, Err *err);
    void (*close)(void *ctx); // may be NULL
    void *ctx;
    int interval_ms;
} HttpStream;

// What a handler answers: status (200 when left 0) and one of these, owned by the response from here
// on: a JSON value, JSON as text, a stream, or a socket.
typedef struct HttpResponse {
    int status;
    json_t *body;
    char *text;
    char *cookie;      // Set-Cookie, besides; NULL: none
    const char *type;  // of the text, where it is not JSON; borrowed
    HttpStream stream; // next != NULL: a stream
    int relay;         // of a route with HTTP_RELAY: a connected socket; -1: none
} HttpResponse;

// ctx is the server's. On false the answer is the error's: status and text by err.
typedef bool (*HttpHandler)(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err);

enum {
    HTTP_BODY = 1 << 0,      // takes a JSON object; without this flag a body other than "{}" is 400
    HTTP_ANYBODY = 1 << 1,   // nobody is asked who they are
    HTTP_OFTEN = 1 << 3,     // comes once a second: of no interest to a log of who did what
    HTTP_RELAY = 1 << 4,     // its connection is passed on to a socket (101): NBD, with TLS or from this machine
    HTTP_OWN_TOKEN = 1 << 2, // the handler looks at the token, which is one for this thing alone
};

typedef struct HttpRoute {
    const char *method;  // "GET" answers HEAD as well
    const char *pattern; // "/api/v1/backups/{backup_id}/complete"
    HttpHandler handler;
    unsigned flags;
    const char *query; // names of the query parameters it knows, a blank between; others are 400. NULL: none
    unsigned roles;    // who may call it: a set of the API's own numbers, for HttpConfig.admit
} HttpRoute;

typedef struct HttpRoutes {
    const HttpRoute *items;
    size_t len;
} HttpRoutes;

#define HTTP_ALLOW_MAX 64

// The route for a request line. Fills req's parameters. ERR_NOT_FOUND; ERR_METHOD, then allow
// holds the methods that exist; ERR_INVALID for an empty or unknown parameter.
bool http_route_find(const HttpRoutes *routes, HttpRequest *req, const HttpRoute **ret, char allow[HTTP_ALLOW_MAX],
                     Err *err) must_check;
