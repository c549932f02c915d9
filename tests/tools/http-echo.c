// A server with a few routes, for the tests of src/http/ over real sockets (tests/it/test_http_hardening.py).
//
//     http-echo [--request-timeout MS] [--max-connections N] [--stop-deadline MS] [--tls FILE]
//
// --tls: with a certificate and its key in that file, made if it is not there.
// Prints "port N", and then one line for each answered request; "slow" when a slow one begins. Ends on SIGTERM.
#include "base/file.h"
#include "base/opt.h"
#include "http/server.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>

static bool reply(HttpResponse *ret, Err *err, json_t *body)
{
    ret->body = body;
    return body || err_no_memory(err);
}

static bool get_echo(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    const char *x = http_request_query(req, "x");
    return reply(ret, err,
                 json_pack("{s:s, s:s, s:s, s:s, s:s?}", "method", http_request_method(req), "path",
                           http_request_path(req), "remote", http_request_remote(req), "name",
                           http_request_param(req, "name"), "x", x));
}

static bool post_echo(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    const json_t *body;
    const Secret *token;
    if (!http_request_json(req, NULL, &body, err) || !http_request_token(req, &token, err))
        return false;
    ret->status = 201;
    return reply(ret, err,
                 json_pack("{s:s, s:O, s:b}", "name", http_request_param(req, "name"), "body", body, "token",
                           (int)secret_is_set(token)));
}

static bool complete(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    const json_t *body;
    const char *change_id;
    if (!http_request_json(req, NULL, &body, err) || !codec_json_text(body, "change_id", 100, &change_id, err))
        return http_request_bad_body(err);
    return reply(ret, err,
                 json_pack("{s:s, s:s}", "backup_id", http_request_param(req, "backup_id"), "change_id", change_id));
}

static bool stats(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)req;
    (void)ctx;
    return reply(ret, err, json_pack("{s:b}", "stats", 1));
}

static bool cancel(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    ret->status = 202;
    return reply(ret, err, json_pack("{s:s}", "backup_id", http_request_param(req, "backup_id")));
}

static bool slow(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    uint64_t ms;
    if (!http_request_query_u64(req, "ms", 0, 60000, 0, &ms, err))
        return false;
    (void)printf("slow\n");
    (void)fflush(stdout);
    (void)poll(NULL, 0, (int)ms); // the work of a slow handler
    return reply(ret, err, json_pack("{s:I}", "ms", (json_int_t)ms));
}

static bool large(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    uint64_t n;
    if (!http_request_query_u64(req, "bytes", 0, 64 << 20, 0, &n, err))
        return false;
    cleanup_free char *text = mem_calloc(n + 1, 1, err);
    if (!text)
        return false;
    memset(text, 'a', n);
    return reply(ret, err, json_pack("{s:s}", "text", text));
}

// Every code of the table, with a message that was cut inside a character
static bool fail(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    (void)ret;
    uint64_t code;
    if (!http_request_query_u64(req, "code", 1, ERR_CODES - 1, 1, &code, err))
        return false;
    return err_set(err, (ErrCode)code, "details of %d: \xc3\xa9, \xff, \n, \xc3", (int)code);
}

typedef struct Ticks {
    uint64_t left;
    uint64_t said;
    bool fails;
} Ticks;

static bool next_tick(void *ctx, StrBuf *out, bool *end, Err *err)
{
    Ticks *t = ctx;
    if (t->said == t->left) {
        *end = !t->fails;
        return t->fails ? err_set(err, ERR_INTERNAL, "as asked for") : true;
    }
    t->said++;
    return str_addf(out, err, "event: tick\ndata: {\"n\":%d}\n\n", (int)t->said);
}

static bool silence(void *ctx, StrBuf *out, bool *end, Err *err)
{
    (void)ctx;
    (void)out;
    (void)end;
    (void)err;
    return true;
}

static void close_ticks(void *ctx)
{
    free(ctx);
    (void)printf("stream closed\n");
    (void)fflush(stdout);
}

static bool events(HttpRequest *req, void *ctx, HttpResponse *ret, Err *err)
{
    (void)ctx;
    uint64_t n;
    bool fails;
    if (!http_request_query_u64(req, "n", 0, 1000, 0, &n, err) ||
        !http_request_query_bool(req, "fail", false, &fails, err))
        return false;
    Ticks *t = mem_calloc(1, sizeof(*t), err);
    if (!t)
        return false;
    *t = (Ticks){.left = n, .fails = fails};
    ret->stream = (HttpStream){.next = n ? next_tick : silence, .close = close_ticks, .ctx = t, .interval_ms = 20};
    return true;
}

static const HttpRoute table[] = {
    {"GET", "/api/v1/echo/{name}", get_echo, 0, "x"},
    {"POST", "/api/v1/echo/{name}", post_echo, HTTP_BODY, NULL},
    {"POST", "/api/v1/backups/{backup_id}/complete", complete, HTTP_BODY, NULL},
    {"POST", "/api/v1/backups/{backup_id}/cancel", cancel, 0, NULL},
    {"DELETE", "/api/v1/backups/{backup_id}", cancel, 0, NULL},
    {"GET", "/api/v1/backups/stats", stats, 0, NULL},
    {"GET", "/api/v1/slow", slow, 0, "ms"},
    {"GET", "/api/v1/large", large, 0, "bytes"},
    {"GET", "/api/v1/error", fail, 0, "code"},
    {"GET", "/api/v1/events", events, 0, "n fail"},
};

static void done(void *ctx, const HttpDone *d)
{
    (void)ctx;
    (void)printf("done %s %s %s %d %s\n", d->remote, d->method, d->path, d->status, err_name(d->err->code));
    (void)fflush(stdout);
}

int main(int argc, char **argv)
{
    uint64_t request = 30000, connections = 256, stop = 2000;
    cleanup_free char *pem = NULL;
    TlsServer *tls = NULL;
    const Opt options[] = {
        {.name = "request-timeout", .kind = OPT_U64, .target = &request, .min = 1, .max = 3600000},
        {.name = "max-connections", .kind = OPT_U64, .target = &connections, .min = 1, .max = 10000},
        {.name = "stop-deadline", .kind = OPT_U64, .target = &stop, .min = 0, .max = 60000},
        {.name = "tls", .kind = OPT_TEXT, .target = &pem},
        {.name = NULL},
    };
    OptList args = {0};
    Err err = ERR_INIT;
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigprocmask(SIG_BLOCK, &set, NULL); // of all threads
    (void)signal(SIGPIPE, SIG_IGN);
    HttpServer *server;
    const HttpRoutes routes = {table, ARRAY_LEN(table)};
    if (!opt_parse(argc, argv, options, false, &args, &err) ||
        (pem && !file_exists(pem) && !tls_server_make(pem, &err)) || (pem && !tls_server_load(pem, pem, &tls, &err)) ||
        !http_server_start(&(HttpConfig){.routes = routes,
                                         .done = done,
                                         .tls = tls,
                                         .max_connections = (unsigned)connections,
                                         .request_timeout_ms = (unsigned)request},
                           &server, &err)) {
        (void)fprintf(stderr, "http-echo: %s\n", err.details);
        return 1;
    }
    opt_list_clear_borrowed(&args);
    (void)printf("port %u\n", http_server_port(server));
    (void)fflush(stdout);
    int got;
    (void)sigwait(&set, &got);
    http_server_stop(server, (int)stop);
    tls_server_free(tls);
    (void)printf("stopped\n");
    return 0;
}
