#include "wire/hub_nbd.h"

#include "wire/hub_api_parts.h"
#include "wire/pipe.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define URI_MAX 2048
#define POLITE_S 3 // for the last words to a hub that takes them

struct HubNbd {
    char *socket, *export_name;
    NbdDial dial;
    bool remote;
    char *url;
    Secret token;
    TlsTrust trust; // texts owned
    pthread_mutex_t lock;
    pthread_cond_t ended;
    LIST_HEAD(LinkList, Link) links;
    const atomic_bool *cancel; // borrowed; NULL: none
};

typedef struct Link {
    HubNbd *owner;
    HttpClient *http; // its connection, and its SSL
    Pipe *pipe;
    LIST_ENTRY(Link) link;
} Link;

// PipeSpec's ended
static void on_end(void *ctx)
{
    Link *l = ctx;
    HubNbd *n = l->owner;
    http_client_free(l->http);
    pthread_mutex_lock(&n->lock);
    LIST_REMOVE(l, link);
    pthread_cond_broadcast(&n->ended);
    pthread_mutex_unlock(&n->lock);
    free(l);
}

static bool start_pipe(HubNbd *n, HttpClient *http, const HttpUpgraded *up, int inner, Err *err)
{
    Link *l = mem_calloc(1, sizeof(*l), err);
    if (!l)
        return false;
    *l = (Link){.owner = n, .http = http};
    PipeSpec spec = {.outer = up->fd, .inner = inner, .ssl = up->ssl, .ended = on_end, .ctx = l};
    pthread_mutex_lock(&n->lock);
    bool ok = pipe_start(&spec, &l->pipe, err);
    if (ok)
        LIST_INSERT_HEAD(&n->links, l, link);
    pthread_mutex_unlock(&n->lock);
    if (!ok)
        free(l);
    return ok;
}

// libnbd gets the other end of a socketpair. Takes over http where it goes well.
static bool decrypt(HubNbd *n, HttpClient *http, const HttpUpgraded *up, int *ret_fd, Err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return err_errno(err, errno, "socketpair");
    pipe_widen(pair[0]);
    if (start_pipe(n, http, up, pair[1], err)) {
        *ret_fd = pair[0];
        return true;
    }
    (void)close(pair[0]);
    (void)close(pair[1]);
    return false;
}

// NbdDial's connect
static bool dial(void *ctx, int timeout_ms, int *ret_fd, Err *err)
{
    HubNbd *n = ctx;
    HttpClient *http = NULL;
    HttpUpgraded up = {.fd = -1};
    cleanup(http_answer_clear) HttpAnswer refusal = {0};
    HttpRequest r = {.method = "GET", .url = n->url, .token = &n->token, .timeout_ms = timeout_ms, .cancel = n->cancel};
    bool ok = http_client_new(&http, err) && http_client_trust(http, &n->trust, err) &&
        http_client_upgrade(http, &r, "nbd", &up, &refusal, err);
    if (ok && up.fd < 0)
        ok = hub_api_refused("GET", n->url, &refusal, err);
    if (ok && up.ssl && decrypt(n, http, &up, ret_fd, err))
        return true;
    if (ok && !up.ssl) {
        *ret_fd = up.fd;
        http_client_free(http); // closes its own descriptor for the connection
        return true;
    }
    http_client_free(http); // first: its SSL may read from the connection still
    if (up.fd >= 0)
        (void)close(up.fd);
    return false;
}

// Percent-decoded. New memory.
static bool decode(const char *text, size_t n, char **ret, Err *err)
{
    int len = 0;
    char *plain = curl_easy_unescape(NULL, text, (int)MIN(n, (size_t)URI_MAX), &len);
    if (!plain)
        return err_no_memory(err);
    bool ok = (strlen(plain) == (size_t)len && len > 0) || err_set(err, ERR_PROTOCOL, "an export's URI holds no text");
    ok = ok && (*ret = mem_strdup(plain, err));
    curl_free(plain);
    return ok;
}

// libcurl's own parser takes what stands behind three slashes for a host.
static bool parse(const char *uri, char **ret_socket, char **ret_name, Err *err)
{
    static const char before[] = "nbd+unix:///", between[] = "?socket=";
    const char *name = uri + strlen(before), *split = str_starts(uri, before) ? strstr(name, between) : NULL;
    if (!split || strlen(uri) > URI_MAX)
        return err_set(err, ERR_PROTOCOL, "\"%.200s\" is no export's URI", uri);
    const char *socket = split + strlen(between);
    return decode(name, (size_t)(split - name), ret_name, err) && decode(socket, strlen(socket), ret_socket, err);
}

bool hub_nbd_new(const HubApi *h, const char *uri, const char *path, HubNbd **ret, Err *err)
{
    HubNbd *n = mem_calloc(1, sizeof(*n), err);
    if (!n)
        return false;
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->ended, NULL);
    LIST_INIT(&n->links);
    n->cancel = h->cancel;
    n->dial = (NbdDial){.connect = dial, .ctx = n};
    bool ok = parse(uri, &n->socket, &n->export_name, err);
    n->remote = ok && access(n->socket, R_OK | W_OK) != 0;
    n->url = ok ? mem_printf(err, "%s%s", h->url, path) : NULL;
    ok = ok && n->url && hub_trust_copy(&h->trust, &n->trust, err) &&
        (!secret_is_set(&h->token) || secret_set(&n->token, secret_reveal(&h->token), err));
    if (!ok) {
        hub_nbd_free(n);
        return false;
    }
    *ret = n;
    return true;
}

void hub_nbd_spec(HubNbd *n, NbdSpec *spec)
{
    spec->export_name = n->export_name;
    spec->socket = n->remote ? NULL : n->socket;
    spec->dial = n->remote ? &n->dial : NULL;
}

void hub_nbd_free(HubNbd *n)
{
    if (!n)
        return;
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until); // cannot fail for this clock
    until.tv_sec += POLITE_S;
    pthread_mutex_lock(&n->lock);
    while (!LIST_EMPTY(&n->links) && pthread_cond_timedwait(&n->ended, &n->lock, &until) != ETIMEDOUT)
        ;
    Link *l;
    LIST_FOREACH(l, &n->links, link)
    {
        pipe_cut(l->pipe);
    }
    while (!LIST_EMPTY(&n->links))
        pthread_cond_wait(&n->ended, &n->lock);
    pthread_mutex_unlock(&n->lock);
    pthread_cond_destroy(&n->ended);
    pthread_mutex_destroy(&n->lock);
    hub_trust_clear(&n->trust);
    secret_clear(&n->token);
    free(n->url);
    free(n->socket);
    free(n->export_name);
    free(n);
}
