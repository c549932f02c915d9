#include "http/server.h"

#include "http/door.h"
#include "http/exchange.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <unistd.h>

#define CONNECTIONS_DEFAULT 256
#define REQUEST_DEFAULT_MS 30000
#define SENDING_MS 300000
#define STALLED_S 60 // not a byte could be sent for so long: the peer is gone
#define SPARE 64     // connections of the library beyond ours: its own count lags behind
#define BACKLOG 128
// The library's memory for a connection: any head that the guard lets through must fit, and the answer's.
#define CONNECTION_MEMORY (64U * 1024)

struct HttpServer {
    HttpSite site;
    struct MHD_Daemon *daemon;
    HttpDoor *door;
    int listen_fd;
    uint16_t port;
    bool local_only;
};

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    HttpSite *site = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        *socket_context = info ? http_watch_add(&site->watch, info->connect_fd) : NULL;
    } else if (*socket_context) {
        http_watch_remove(&site->watch, *socket_context);
        *socket_context = NULL;
    }
}

static bool resolve(const char *address, uint16_t port, struct addrinfo **ret, Err *err)
{
    char service[8];
    (void)snprintf(service, sizeof(service), "%u", port);
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV};
    int rc = getaddrinfo(address, service, &hints, ret);
    if (rc != 0)
        return err_set(err, ERR_USAGE,
                       "%.100s is not an address to listen on: %s; give it in numbers, like 127.0.0.1 or ::", address,
                       gai_strerror(rc));
    return true;
}

static bool listen_on(const struct addrinfo *where, const HttpConfig *config, int *ret_fd, Err *err)
{
    const char *address = config->address ? config->address : "127.0.0.1";
    cleanup_close int fd = socket(where->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, errno, "cannot open a socket");
    int yes = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes,
                     sizeof(yes)); // without it only a restart is slower
    if (bind(fd, where->ai_addr, where->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        if (errno == EADDRINUSE)
            return err_set(err, ERR_BUSY, "port %u of %s is taken; another hub? give another one by -port",
                           config->port, address);
        return err_errno(err, errno, "cannot listen on port %u of %s", config->port, address);
    }
    *ret_fd = mem_take_fd(&fd);
    return true;
}

static bool own_port(int fd, uint16_t *ret, bool *ret_local_only, Err *err)
{
    struct sockaddr_storage addr = {0};
    socklen_t n = sizeof(addr);
    if (getsockname(fd, (struct sockaddr *)&addr, &n) != 0)
        return err_errno(err, errno, "cannot ask for the port");
    const struct sockaddr_in6 *six = (const void *)&addr;
    const struct sockaddr_in *four = (const void *)&addr;
    bool is_six = addr.ss_family == AF_INET6;
    *ret = ntohs(is_six ? six->sin6_port : four->sin_port);
    *ret_local_only = is_six ? IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) : ntohl(four->sin_addr.s_addr) >> 24 == 127;
    return true;
}

// HttpDoorConfig's admit. The library closes the descriptor also when it refuses.
static bool on_admitted(void *ctx, int fd, const struct sockaddr *addr, socklen_t addr_len)
{
    HttpServer *s = ctx;
    if (!http_watch_has_room(&s->site.watch, s->site.config.max_connections, HTTP_DOOR_STALE_MS))
        return false;
    (void)!MHD_add_connection(s->daemon, fd, addr, addr_len);
    return true;
}

// HttpDoorConfig's unwrap
static bool on_handshake(void *ctx, int fd, int *ret, Err *err)
{
    return http_pipes_unwrap(&((HttpServer *)ctx)->site.pipes, fd, ret, err);
}

// HttpDoorConfig's refused
static void on_refused(void *ctx, const struct sockaddr *addr, const char *method, int status, const Err *err)
{
    const HttpConfig *config = &((HttpServer *)ctx)->site.config;
    char remote[INET6_ADDRSTRLEN];
    http_exchange_remote(addr, remote);
    const HttpDone done = {.method = method,
                           .path = "",
                           .remote = remote,
                           .actor = "",
                           .role = "",
                           .object = "",
                           .status = status,
                           .err = err};
    if (config->done)
        config->done(config->ctx, &done);
}

static bool start_daemon(HttpServer *s, Err *err)
{
    const HttpConfig *config = &s->site.config;
    unsigned flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC |
        MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_UPGRADE;
    s->daemon = MHD_start_daemon(flags, 0, NULL, NULL, http_exchange_run, &s->site,             //
                                 MHD_OPTION_CONNECTION_LIMIT, config->max_connections + SPARE,  //
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)STALLED_S,            //
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, //
                                 MHD_OPTION_NOTIFY_CONNECTION, on_connection, &s->site,         //
                                 MHD_OPTION_URI_LOG_CALLBACK, http_exchange_begin, &s->site,    //
                                 MHD_OPTION_NOTIFY_COMPLETED, http_exchange_end, &s->site,      //
                                 MHD_OPTION_END);
    if (!s->daemon)
        return err_set(err, ERR_INTERNAL, "the HTTP library does not start");
    return true;
}

static bool open_door(HttpServer *s, Err *err)
{
    const HttpDoorConfig config = {.listen_fd = s->listen_fd,
                                   .head_ms = s->site.config.request_timeout_ms,
                                   .tls = s->site.config.tls != NULL,
                                   .local_only = s->local_only,
                                   .max_waiting = s->site.config.max_connections,
                                   .ctx = s,
                                   .admit = on_admitted,
                                   .unwrap = on_handshake,
                                   .refused = on_refused};
    return http_door_open(&config, &s->door, err);
}

static bool open_socket(HttpServer *s, Err *err)
{
    const HttpConfig *config = &s->site.config;
    struct addrinfo *where;
    if (!resolve(config->address ? config->address : "127.0.0.1", config->port, &where, err))
        return false;
    bool ok = listen_on(where, config, &s->listen_fd, err) && own_port(s->listen_fd, &s->port, &s->local_only, err);
    freeaddrinfo(where);
    return ok;
}

// In this order: no request can come before everything stands.
static bool start_all(HttpServer *s, Err *err)
{
    const int64_t limits[HTTP_PHASES] = {
        [HTTP_READING] = s->site.config.request_timeout_ms,
        [HTTP_SENDING] = SENDING_MS,
        [HTTP_ANSWERED] = s->site.config.request_timeout_ms,
    };
    if (!open_socket(s, err) || !http_watch_start(&s->site.watch, limits, err))
        return false;
    if (start_daemon(s, err) && open_door(s, err))
        return true;
    http_watch_drain(&s->site.watch, 0);
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    http_watch_clear(&s->site.watch);
    return false;
}

bool http_server_start(const HttpConfig *config, HttpServer **ret, Err *err)
{
    HttpServer *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return false;
    s->site.config = *config;
    s->listen_fd = -1;
    if (!config->max_connections)
        s->site.config.max_connections = CONNECTIONS_DEFAULT;
    if (!config->request_timeout_ms)
        s->site.config.request_timeout_ms = REQUEST_DEFAULT_MS;
    // served, at the door, and as many that are done and on their way out
    http_pipes_init(&s->site.pipes, config->tls, 3 * s->site.config.max_connections + HTTP_RELAYS_MAX);
    if (!start_all(s, err)) {
        http_pipes_close(&s->site.pipes);
        mem_cleanup_close(&s->listen_fd);
        free(s);
        return false;
    }
    *ret = s;
    return true;
}

uint16_t http_server_port(const HttpServer *server)
{
    return server->port;
}

void http_server_stop(HttpServer *server, int deadline_ms)
{
    if (!server)
        return;
    http_door_close(server->door);
    mem_cleanup_close(&server->listen_fd); // from here on the kernel refuses connections
    http_watch_drain(&server->site.watch, deadline_ms);
    MHD_stop_daemon(server->daemon);
    http_pipes_close(&server->site.pipes);
    http_watch_clear(&server->site.watch);
    free(server);
}
