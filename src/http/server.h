// The HTTP/1.1 server: bytes to a request, one handler, an answer to bytes. One thread for each
// connection. docs/internals/http.md tells what is refused before a handler sees it, and why.
//
// With TLS the same port takes both; without it only callers on this machine (docs/internals/wire.md).
// Every answer is JSON, an event stream or text for Prometheus; every error {"error", "details", "timestamp"}.
#pragma once

#include "http/route.h"
#include "wire/tls_server.h"

#define HTTP_BODY_MAX (UINT64_C(1) << 20) // of a request; above it 413
#define HTTP_URI_MAX 8192                 // above it 414
#define HTTP_HEADERS_MAX 16384            // names and values together; above it 431

// One answered request, for the log. Text is borrowed for the call.
typedef struct HttpDone {
    const char *method;
    const char *path; // raw, without the query; "" where the request was not even looked at
    const char *remote;
    const char *actor, *role; // "" where nobody was asked, or it was not found out
    const char *object;       // "" where nothing was made
    unsigned flags;           // of the route, 0 where there is none
    int status;
    int64_t duration_ms;
    const Err *err; // ERR_NONE when the handler succeeded
} HttpDone;

typedef struct HttpConfig {
    const char *address; // numeric; NULL: 127.0.0.1
    TlsServer *tls;      // must outlive the server. NULL: no TLS; then other machines may come without
    uint16_t port;       // 0: any free one
    HttpRoutes routes;   // must outlive the server
    void *ctx;           // of the handlers and of done()
    // Before a handler: may the caller make this call? NULL: anybody may make all. On false the answer is the error's.
    bool (*admit)(void *ctx, HttpRequest *req, const HttpRoute *route, Err *err);
    void (*done)(void *ctx, const HttpDone *done); // in any thread; may be NULL
    unsigned max_connections;                      // 0: 256; one more is answered with 503
    unsigned request_timeout_ms;                   // 0: 30000; from the connection to a request's last byte
} HttpConfig;

typedef struct HttpServer HttpServer;

// Binds, listens and answers. ERR_BUSY when the port is taken, ERR_USAGE for a bad address.
bool http_server_start(const HttpConfig *config, HttpServer **ret, Err *err) must_check;
uint16_t http_server_port(const HttpServer *server);
// Stops accepting; ends streams; lets running requests finish within
// deadline_ms, then cuts the rest. Waits for handlers, which are bounded by themselves. Frees. NULL is fine.
void http_server_stop(HttpServer *server, int deadline_ms);
