#include "http/exchange.h"

#include "base/clock.h"
#include "http/answer.h"
#include "http/guard.h"
#include "http/request_internal.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#define DISCARD_MAX \
    (UINT64_C(64) << 20) // of a body that is too large: so much is read before the 413
#define LINGER_MS 2000   // so long, and so much, after an answer that came before the body was read
#define LINGER_MAX (UINT64_C(64) << 20)

typedef struct Exchange {
    HttpSite *site;
    HttpConn *conn;
    char *target; // as it was sent
    HttpRequest req;
    const HttpRoute *route; // NULL: the request is answered by err
    char allow[HTTP_ALLOW_MAX];
    bool begun; // the headers were looked at
    bool early; // answered before the body was read: the connection ends with it
    uint64_t body_seen;
    int64_t started_ms;
    int status; // 0: nothing answered
    Err err;
} Exchange;

static HttpConn *conn_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

void *http_exchange_begin(void *site, const char *target, struct MHD_Connection *connection)
{
    HttpConn *conn = conn_of(connection);
    Exchange *ex = conn ? calloc(1, sizeof(*ex)) : NULL;
    if (!ex)
        return NULL;
    ex->site = site;
    ex->conn = conn;
    ex->started_ms = clock_mono_ms();
    ex->req.body.max = HTTP_BODY_MAX;
    ex->target = mem_strdup(target, &ex->err);
    http_watch_phase(&ex->site->watch, conn, HTTP_READING);
    return ex;
}

static void note_remote(HttpRequest *req, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *addr = info ? info->client_addr : NULL;
    const void *bytes = NULL;
    if (addr && addr->sa_family == AF_INET)
        bytes = &((const struct sockaddr_in *)(const void *)addr)->sin_addr;
    else if (addr && addr->sa_family == AF_INET6)
        bytes = &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr;
    if (!bytes || !inet_ntop(addr->sa_family, bytes, req->remote, sizeof(req->remote)))
        req->remote[0] = '\0';
}

typedef struct Headers {
    HttpHeader items[HTTP_HEADER_COUNT_MAX +
                     1]; // one more, so that the guard sees that there are too many
    size_t len;
} Headers;

static enum MHD_Result take_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                   size_t key_size, const char *value, size_t value_size)
{
    (void)kind;
    Headers *headers = cls;
    if (headers->len == ARRAY_LEN(headers->items))
        return MHD_NO;
    headers->items[headers->len++] = (HttpHeader){.name = key,
                                                  .name_len = key_size,
                                                  .value = value ? value : "",
                                                  .value_len = value ? value_size : 0};
    return MHD_YES;
}

static enum MHD_Result answer(Exchange *ex, struct MHD_Connection *connection,
                              struct MHD_Response *r, HttpPhase phase)
{
    if (!r)
        return MHD_NO; // out of memory: the connection is closed
    bool complete = true;
    if (ex->status == 405 && ex->allow[0])
        complete = MHD_add_response_header(r, "Allow", ex->allow) == MHD_YES;
    else if (ex->status == 401)
        complete = MHD_add_response_header(r, "WWW-Authenticate", "Bearer") == MHD_YES;
    // One request a connection: bytes that were meant to be taken for a second one are never looked at
    complete = complete && MHD_add_response_header(r, "Connection", "close") == MHD_YES;
    http_watch_phase(&ex->site->watch, ex->conn, phase);
    enum MHD_Result queued =
        complete ? MHD_queue_response(connection, (unsigned)ex->status, r) : MHD_NO;
    MHD_destroy_response(r); // our hold on it; the connection has its own
    return queued;
}

static enum MHD_Result answer_error(Exchange *ex, struct MHD_Connection *connection, int status)
{
    ex->status = status ? status : err_http(ex->err.code);
    return answer(ex, connection, http_answer_error(&ex->err), HTTP_SENDING);
}

static enum MHD_Result answer_early(Exchange *ex, struct MHD_Connection *connection, int status)
{
    ex->early = true;
    return answer_error(ex, connection, status);
}

// Looks at request line and headers. What can be answered only after the body was read is kept in ex->err.
static enum MHD_Result begin(Exchange *ex, struct MHD_Connection *connection, const char *method,
                             const char *version)
{
    if (ex->err.code != ERR_NONE)
        return answer_early(ex, connection, 0);
    Headers headers = {0};
    (void)MHD_get_connection_values_n(connection, MHD_HEADER_KIND, take_header,
                                      &headers); // a count, and ours is better
    const HttpHead head = {.method = method,
                           .version = version,
                           .target_len = strlen(ex->target),
                           .headers = headers.items,
                           .n_headers = headers.len};
    HttpFraming framing;
    int status;
    ex->req.method = method;
    note_remote(&ex->req, connection);
    if (!http_guard_check(&head, &framing, &status, &ex->err))
        return answer_early(ex, connection, status);
    ex->req.authorization = framing.authorization;
    if (framing.content_length > HTTP_BODY_MAX) {
        err_set(&ex->err, ERR_TOO_LARGE, "a request body has at most %d bytes", (int)HTTP_BODY_MAX);
        return answer_early(ex, connection, 0);
    }
    const HttpRoute *route;
    if (http_url_parse(ex->target, &ex->req.url, &ex->err) &&
        http_route_find(&ex->site->config.routes, &ex->req, &route, ex->allow, &ex->err))
        ex->route = route;
    return MHD_YES;
}

// Keeps the body, or only counts it where it is not wanted or above the ceiling.
static bool take_body(Exchange *ex, const char *data, size_t n)
{
    ex->body_seen += n;
    if (ex->body_seen > HTTP_BODY_MAX)
        err_set(&ex->err, ERR_TOO_LARGE, "a request body has at most %d bytes", (int)HTTP_BODY_MAX);
    if (ex->err.code != ERR_NONE)
        return ex->body_seen <= DISCARD_MAX;
    return str_add_bytes(&ex->req.body, data, n, &ex->err) || ex->err.code == ERR_NO_MEMORY;
}

static enum MHD_Result dispatch(Exchange *ex, struct MHD_Connection *connection)
{
    const HttpRoute *route = ex->route;
    HttpResponse response = {0};
    http_watch_phase(&ex->site->watch, ex->conn, HTTP_HANDLING);
    if (!(route->flags & HTTP_BODY) && !http_request_no_body(&ex->req, &ex->err))
        return answer_error(ex, connection, 0);
    if (!route->handler(&ex->req, ex->site->config.ctx, &response, &ex->err)) {
        http_answer_discard(&response);
        return answer_error(ex, connection, 0);
    }
    ex->status = response.status ? response.status : 200;
    if (response.stream.next) {
        bool with_body = str_eq(ex->req.method, "GET");
        struct MHD_Response *r = http_answer_stream(&response, &ex->site->watch, with_body);
        return answer(ex, connection, r, HTTP_STREAMING);
    }
    struct MHD_Response *r = http_answer_json(&response, &ex->err);
    return r ? answer(ex, connection, r, HTTP_SENDING) : answer_error(ex, connection, 0);
}

enum MHD_Result http_exchange_run(void *site, struct MHD_Connection *connection,
                                  const char *decoded_target, const char *method,
                                  const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **exchange)
{
    (void)site;
    (void)decoded_target; // decoded by the library: a "%2F" in it is a slash already
    Exchange *ex = *exchange;
    if (!ex)
        return MHD_NO;
    if (!ex->begun) {
        ex->begun = true;
        return begin(ex, connection, method, version);
    }
    if (*upload_data_size > 0) {
        bool going_on = take_body(ex, upload_data, *upload_data_size);
        *upload_data_size = 0;
        return going_on ? MHD_YES : MHD_NO;
    }
    if (ex->err.code != ERR_NONE)
        return answer_error(ex, connection, 0);
    return dispatch(ex, connection);
}

// Closing a socket with unread bytes resets the connection, and the peer may lose the answer. So what it still
// sends is read away, for a while.
static void linger(int fd)
{
    char waste[16384];
    int64_t until = clock_mono_ms() + LINGER_MS;
    uint64_t total = 0;
    (void)shutdown(fd, SHUT_WR); // fails only where the peer is gone
    for (int64_t now = clock_mono_ms(); now < until && total < LINGER_MAX; now = clock_mono_ms()) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, (int)(until - now)) <= 0)
            return;
        ssize_t n = recv(fd, waste, sizeof(waste), MSG_DONTWAIT);
        if (n <= 0)
            return;
        total += (uint64_t)n;
    }
}

void http_exchange_end(void *site, struct MHD_Connection *connection, void **exchange,
                       enum MHD_RequestTerminationCode how)
{
    (void)connection;
    Exchange *ex = *exchange;
    if (!ex)
        return;
    *exchange = NULL;
    const HttpConfig *config = &((HttpSite *)site)->config;
    if (ex->early && how == MHD_REQUEST_TERMINATED_COMPLETED_OK)
        linger(ex->conn->fd);
    if (config->done && ex->status) {
        const HttpDone done = {.method = ex->req.method,
                               .path = ex->req.url.raw ? ex->req.url.raw : "",
                               .remote = ex->req.remote,
                               .status = ex->status,
                               .duration_ms = clock_mono_ms() - ex->started_ms,
                               .err = &ex->err};
        config->done(config->ctx, &done);
    }
    http_watch_phase(&ex->site->watch, ex->conn, HTTP_IDLE);
    http_request_clear(&ex->req);
    free(ex->target);
    free(ex);
}
