#include "http/exchange.h"

#include "base/clock.h"
#include "base/log.h"
#include "http/answer.h"
#include "http/door.h"
#include "http/request_internal.h"

#include <arpa/inet.h>

// Of a chunked body that turns out too large so much is read before the 413
#define DISCARD_MAX (UINT64_C(64) << 20)

typedef struct Exchange {
    HttpSite *site;
    HttpConn *conn;
    char *target; // as it was sent
    HttpRequest req;
    const HttpRoute *route; // NULL: the request is answered by err
    char allow[HTTP_ALLOW_MAX];
    bool here;  // the peer is on this machine
    bool begun; // the headers were looked at
    uint64_t body_seen;
    int64_t started_ms;
    int relay;     // what the connection is to be passed on to; -1: nothing
    bool reserved; // a place for that
    int status;    // 0: nothing answered
    Err err;
} Exchange;

static HttpConn *conn_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
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
    ex->relay = -1;
    ex->started_ms = clock_mono_ms();
    ex->req.body.max = HTTP_BODY_MAX;
    ex->target = mem_strdup(target, &ex->err);
    http_watch_phase(&ex->site->watch, conn, HTTP_READING);
    return ex;
}

void http_exchange_remote(const struct sockaddr *addr, char out[INET6_ADDRSTRLEN])
{
    const void *bytes = NULL;
    if (addr && addr->sa_family == AF_INET)
        bytes = &((const struct sockaddr_in *)(const void *)addr)->sin_addr;
    else if (addr && addr->sa_family == AF_INET6)
        bytes = &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr;
    if (!bytes || !inet_ntop(addr->sa_family, bytes, out, INET6_ADDRSTRLEN))
        out[0] = '\0';
}

static enum MHD_Result answer(Exchange *ex, struct MHD_Connection *connection, struct MHD_Response *r, HttpPhase phase)
{
    if (!r)
        return MHD_NO; // out of memory: the connection is closed
    bool complete = true;
    if (ex->status == 405 && ex->allow[0])
        complete = MHD_add_response_header(r, "Allow", ex->allow) == MHD_YES;
    else if (ex->status == 401)
        complete = MHD_add_response_header(r, "WWW-Authenticate", "Bearer") == MHD_YES;
    // One request a connection: bytes that were meant to be taken for a second one are never looked at
    complete = complete &&
        (ex->status == 101 || // the library's own
         MHD_add_response_header(r, "Connection", "close") == MHD_YES);
    http_watch_phase(&ex->site->watch, ex->conn, phase);
    enum MHD_Result queued = complete ? MHD_queue_response(connection, (unsigned)ex->status, r) : MHD_NO;
    MHD_destroy_response(r); // our hold on it; the connection has its own
    return queued;
}

static enum MHD_Result answer_error(Exchange *ex, struct MHD_Connection *connection)
{
    ex->status = err_http(ex->err.code);
    return answer(ex, connection, http_answer_error(&ex->err), HTTP_SENDING);
}

// Looks at what was asked for. What is wrong with it is kept in ex->err, and answered once the body was read.
static void begin(Exchange *ex, struct MHD_Connection *connection, const char *method, const char *version)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    ex->req.method = method;
    ex->req.authorization = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Authorization");
    http_exchange_remote(info ? info->client_addr : NULL, ex->req.remote);
    ex->req.cookies = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Cookie");
    ex->req.csrf = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "X-CSRF-Token");
    ex->req.upgrade = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Upgrade");
    ex->req.hop = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Connection");
    ex->req.version = version;
    ex->req.encrypted = http_pipes_encrypted(&ex->site->pipes, ex->conn->fd);
    ex->here = info && info->client_addr && http_door_is_here(ex->conn->fd, info->client_addr);
    const HttpRoute *route;
    if (ex->target && http_url_parse(ex->target, &ex->req.url, &ex->err) &&
        http_route_find(&ex->site->config.routes, &ex->req, &route, ex->allow, &ex->err))
        ex->route = route;
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

// Nobody on the way may read, or write, what is relayed.
static bool check_encrypted(const Exchange *ex, Err *err)
{
    if (ex->here || ex->req.encrypted)
        return true;
    err_set(err, ERR_FORBIDDEN, "the blocks of disks are not sent without TLS; use https://");
    return err_title(err, "not encrypted");
}

// MHD_UpgradeHandler. The 101 is sent.
static void on_upgrade(void *cls, struct MHD_Connection *connection, void *exchange, const char *extra,
                       size_t extra_size, MHD_socket fd, struct MHD_UpgradeResponseHandle *handle)
{
    Exchange *ex = exchange;
    Err err = ERR_INIT;
    (void)cls;
    (void)connection;
    (void)extra;
    // The server speaks first: who has sent something already does not speak NBD
    if (extra_size == 0) {
        ex->reserved = false; // the place goes with it
        if (!http_pipes_relay(&ex->site->pipes, fd, mem_take_fd(&ex->relay), &err))
            log_error("a relayed connection is cut", LOG_STR("path", ex->req.url.raw), LOG_ERR(&err));
    }
    (void)MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE); // its hold on the connection, not the relay's
}

static enum MHD_Result dispatch(Exchange *ex, struct MHD_Connection *connection)
{
    const HttpRoute *route = ex->route;
    HttpResponse response = {.relay = -1};
    http_watch_phase(&ex->site->watch, ex->conn, HTTP_HANDLING);
    const HttpConfig *config = &ex->site->config;
    if (config->admit && !config->admit(config->ctx, &ex->req, route, &ex->err))
        return answer_error(ex, connection);
    if ((route->flags & HTTP_RELAY) && !check_encrypted(ex, &ex->err))
        return answer_error(ex, connection);
    if (!(route->flags & HTTP_BODY) && !http_request_no_body(&ex->req, &ex->err))
        return answer_error(ex, connection);
    if (route->flags & HTTP_RELAY) {
        ex->reserved = http_pipes_reserve(&ex->site->pipes, &ex->err);
        if (!ex->reserved)
            return answer_error(ex, connection);
    }
    if (!route->handler(&ex->req, config->ctx, &response, &ex->err)) {
        http_answer_discard(&response);
        return answer_error(ex, connection);
    }
    ex->status = response.status ? response.status : 200;
    if (response.relay >= 0) {
        ex->status = 101;
        ex->relay = response.relay;
        return answer(ex, connection, http_answer_upgrade(HTTP_RELAY_PROTOCOL, on_upgrade), HTTP_SENDING);
    }
    if (response.stream.next) {
        bool with_body = str_eq(ex->req.method, "GET");
        struct MHD_Response *r = http_answer_stream(&response, &ex->site->watch, with_body);
        return answer(ex, connection, r, HTTP_STREAMING);
    }
    struct MHD_Response *r = http_answer_json(&response, &ex->err);
    return r ? answer(ex, connection, r, HTTP_SENDING) : answer_error(ex, connection);
}

enum MHD_Result http_exchange_run(void *site, struct MHD_Connection *connection, const char *decoded_target,
                                  const char *method, const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **exchange)
{
    (void)site;
    (void)decoded_target; // decoded by the library: a "%2F" in it is a slash already
    Exchange *ex = *exchange;
    if (!ex)
        return MHD_NO;
    if (!ex->begun) {
        ex->begun = true;
        begin(ex, connection, method, version);
        return MHD_YES;
    }
    if (*upload_data_size > 0) {
        bool going_on = take_body(ex, upload_data, *upload_data_size);
        *upload_data_size = 0;
        return going_on ? MHD_YES : MHD_NO;
    }
    if (ex->err.code != ERR_NONE)
        return answer_error(ex, connection);
    return dispatch(ex, connection);
}

void http_exchange_end(void *site, struct MHD_Connection *connection, void **exchange,
                       enum MHD_RequestTerminationCode how)
{
    (void)connection;
    (void)how;
    Exchange *ex = *exchange;
    if (!ex)
        return;
    *exchange = NULL;
    const HttpConfig *config = &((HttpSite *)site)->config;
    if (config->done && ex->status) {
        const HttpDone done = {.method = ex->req.method,
                               .path = ex->req.url.raw ? ex->req.url.raw : "",
                               .remote = ex->req.remote,
                               .actor = ex->req.actor,
                               .role = ex->req.role,
                               .object = ex->req.object,
                               .flags = ex->route ? ex->route->flags : 0,
                               .status = ex->status,
                               .duration_ms = clock_mono_ms() - ex->started_ms,
                               .err = &ex->err};
        config->done(config->ctx, &done);
    }
    http_watch_phase(&ex->site->watch, ex->conn, HTTP_ANSWERED);
    mem_cleanup_close(&ex->relay);
    if (ex->reserved)
        http_pipes_unreserve(&ex->site->pipes);
    http_request_clear(&ex->req);
    free(ex->target);
    free(ex);
}
