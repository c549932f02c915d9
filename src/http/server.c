#include "http/server.h"

#include "http/exchange.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <unistd.h>

#define CONNECTIONS_DEFAULT 256
#define IDLE_DEFAULT_S 60
#define REQUEST_DEFAULT_MS 30000
#define SENDING_MS 300000
#define BACKLOG 128
// The library's memory for a connection: request line and headers must fit, so that the guard's own, smaller
// ceilings answer in our form. What does not fit here the library refuses in HTML.
#define CONNECTION_MEMORY (64U * 1024)

struct HttpServer {
    HttpSite site;
    struct MHD_Daemon *daemon;
    int listen_fd;
    uint16_t port;
};

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    HttpSite *site = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
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
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV};
    int rc = getaddrinfo(address, service, &hints, ret);
    if (rc != 0)
        return err_set(
            err, ERR_USAGE,
            "%.100s is not an address to listen on: %s; give it in numbers, like 127.0.0.1 or ::",
            address, gai_strerror(rc));
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
            return err_set(err, ERR_BUSY,
                           "port %u of %s is taken; another hub? give another one by -port",
                           config->port, address);
        return err_errno(err, errno, "cannot listen on port %u of %s", config->port, address);
    }
    *ret_fd = mem_take_fd(&fd);
    return true;
}

static bool own_port(int fd, uint16_t *ret, Err *err)
{
    struct sockaddr_storage addr = {0};
    socklen_t n = sizeof(addr);
    if (getsockname(fd, (struct sockaddr *)&addr, &n) != 0)
        return err_errno(err, errno, "cannot ask for the port");
    *ret = addr.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)(void *)&addr)->sin6_port)
                                      : ntohs(((struct sockaddr_in *)(void *)&addr)->sin_port);
    return true;
}

static bool start_daemon(HttpServer *s, bool ipv6, Err *err)
{
    const HttpConfig *config = &s->site.config;
    unsigned flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD |
        MHD_USE_POLL | MHD_USE_ITC | (ipv6 ? (unsigned)MHD_USE_IPv6 : 0U);
    s->daemon = MHD_start_daemon(flags, 0, NULL, NULL, http_exchange_run,
                                 &s->site,                               // the port is the socket's
                                 MHD_OPTION_LISTEN_SOCKET, s->listen_fd, //
                                 MHD_OPTION_CONNECTION_LIMIT, config->max_connections,          //
                                 MHD_OPTION_CONNECTION_TIMEOUT, config->idle_timeout_s,         //
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, //
                                 MHD_OPTION_NOTIFY_CONNECTION, on_connection, &s->site,         //
                                 MHD_OPTION_URI_LOG_CALLBACK, http_exchange_begin, &s->site,    //
                                 MHD_OPTION_NOTIFY_COMPLETED, http_exchange_end, &s->site,      //
                                 MHD_OPTION_END);
    if (!s->daemon)
        return err_set(err, ERR_INTERNAL, "the HTTP library does not start");
    return true;
}

static void set_defaults(HttpConfig *config)
{
    if (!config->max_connections)
        config->max_connections = CONNECTIONS_DEFAULT;
    if (!config->idle_timeout_s)
        config->idle_timeout_s = IDLE_DEFAULT_S;
    if (!config->request_timeout_ms)
        config->request_timeout_ms = REQUEST_DEFAULT_MS;
}

bool http_server_start(const HttpConfig *config, HttpServer **ret, Err *err)
{
    HttpServer *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return false;
    s->site.config = *config;
    s->listen_fd = -1;
    set_defaults(&s->site.config);

    struct addrinfo *where;
    if (!resolve(config->address ? config->address : "127.0.0.1", config->port, &where, err)) {
        free(s);
        return false;
    }
    bool ipv6 = where->ai_family == AF_INET6;
    bool ok = listen_on(where, config, &s->listen_fd, err) && own_port(s->listen_fd, &s->port, err);
    freeaddrinfo(where);
    const int64_t limits[HTTP_STREAMING + 1] = {
        [HTTP_IDLE] = (int64_t)s->site.config.idle_timeout_s * 1000,
        [HTTP_READING] = s->site.config.request_timeout_ms,
        [HTTP_SENDING] = SENDING_MS,
    };
    if (ok && http_watch_start(&s->site.watch, limits, err)) {
        if (start_daemon(s, ipv6, err)) {
            *ret = s;
            return true;
        }
        http_watch_drain(&s->site.watch, 0);
        http_watch_clear(&s->site.watch);
    }
    mem_cleanup_close(&s->listen_fd);
    free(s);
    return false;
}

uint16_t http_server_port(const HttpServer *server)
{
    return server->port;
}

void http_server_stop(HttpServer *server, int deadline_ms)
{
    if (!server)
        return;
    // From here on the library accepts nothing, and the kernel refuses new connections instead of queueing them.
    (void)MHD_quiesce_daemon(server->daemon);     // our own descriptor comes back
    (void)shutdown(server->listen_fd, SHUT_RDWR); // nothing to do where it fails
    http_watch_drain(&server->site.watch, deadline_ms);
    MHD_stop_daemon(server->daemon);
    http_watch_clear(&server->site.watch);
    mem_cleanup_close(&server->listen_fd);
    free(server);
}
