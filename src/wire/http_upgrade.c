#include "wire/http_client_parts.h"

#include "base/clock.h"
#include "base/num.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define HEAD_MAX 16384
#define REFUSAL_MAX ((size_t)64 << 10)

typedef struct Talk {
    HttpClient *c;
    curl_socket_t fd;
    int64_t deadline_ms;
} Talk;

static bool wait_for(const Talk *t, short events, Err *err)
{
    const HttpRequest *r = t->c->request;
    for (;;) {
        if (r->cancel && atomic_load(r->cancel))
            return err_set(err, ERR_CANCELLED, "%s was cancelled", r->url);
        int64_t left = t->deadline_ms - clock_mono_ms();
        if (left <= 0)
            return err_set(err, ERR_TIMEOUT, "%s: no answer in time", r->url);
        struct pollfd fd = {.fd = t->fd, .events = events};
        int n = poll(&fd, 1, (int)MIN(left, HTTP_CLIENT_POLL_MS));
        if (n > 0)
            return true;
        if (n < 0 && errno != EINTR)
            return err_errno(err, errno, "poll");
    }
}

static bool send_all(const Talk *t, const char *p, size_t n, Err *err)
{
    while (n > 0) {
        size_t sent = 0;
        CURLcode code = curl_easy_send(t->c->curl, p, n, &sent);
        if (code != CURLE_OK && code != CURLE_AGAIN)
            return http_client_error(t->c, code, err);
        if (code == CURLE_AGAIN && !wait_for(t, POLLOUT, err))
            return false;
        p += sent;
        n -= sent;
    }
    return true;
}

// One byte: what comes behind the head is not ours to read. *ret false: the end.
static bool read_byte(const Talk *t, char *byte, bool *ret, Err *err)
{
    for (;;) {
        size_t n = 0;
        CURLcode code = curl_easy_recv(t->c->curl, byte, 1, &n);
        if (code != CURLE_OK && code != CURLE_AGAIN)
            return http_client_error(t->c, code, err);
        if (code == CURLE_OK) {
            *ret = n > 0;
            return true;
        }
        if (!wait_for(t, POLLIN, err))
            return false;
    }
}

static bool read_head(const Talk *t, StrBuf *head, Err *err)
{
    while (head->len < 4 || memcmp(head->s + head->len - 4, "\r\n\r\n", 4) != 0) {
        char byte;
        bool some;
        if (!read_byte(t, &byte, &some, err))
            return false;
        if (!some)
            return err_set(err, ERR_UNAVAILABLE, "%s: the connection ended in the answer's head", t->c->request->url);
        if (byte == '\0')
            return err_set(err, ERR_PROTOCOL, "%s: the answer is no HTTP", t->c->request->url);
        if (!str_add_bytes(head, &byte, 1, err))
            return err_context(err, "the head of the answer of %s", t->c->request->url);
    }
    return true;
}

// Where there is no length, it goes to the connection's end.
static size_t length_of(const char *head)
{
    static const char name[] = "\r\nContent-Length:";
    const char *line = strcasestr(head, name);
    char digits[24] = "";
    uint64_t n = REFUSAL_MAX;
    Err ignored = ERR_INIT;
    if (!line)
        return REFUSAL_MAX - 1;
    line += strlen(name) + strspn(line + strlen(name), " ");
    (void)snprintf(digits, MIN(sizeof(digits), strcspn(line, "\r") + 1), "%s", line); // cut on purpose
    return num_u64(digits, 0, REFUSAL_MAX - 1, &n, &ignored) ? (size_t)n : REFUSAL_MAX - 1;
}

static bool read_refusal(const Talk *t, size_t length, StrBuf *body, Err *err)
{
    for (;;) {
        char byte;
        bool some;
        if (body->len == length)
            return str_add(body, "", err);
        if (!read_byte(t, &byte, &some, err))
            return false;
        if (!some)
            return str_add(body, "", err);
        if (!str_add_bytes(body, &byte, 1, err))
            return false;
    }
}

static bool status_of(const char *head, const char *url, int *ret, Err *err)
{
    static const char before[] = "HTTP/1.1 ";
    char digits[4] = "";
    uint64_t status = 0;
    Err ignored = ERR_INIT;
    if (str_starts(head, before))
        (void)snprintf(digits, sizeof(digits), "%s", head + strlen(before));
    if (!num_u64(digits, 100, 599, &status, &ignored))
        return err_set(err, ERR_PROTOCOL, "%s: the answer is no HTTP/1.1", url);
    *ret = (int)status;
    return true;
}

// "HOST:PORT", and the target, of http://HOST:PORT/TARGET.
static bool split_url(const char *url, StrBuf *host, const char **ret_target, Err *err)
{
    const char *start = strstr(url, "://");
    const char *slash = start ? strchr(start + 3, '/') : NULL;
    if (!slash)
        return err_set(err, ERR_USAGE, "%s has no path", url);
    *ret_target = slash;
    return str_add_bytes(host, start + 3, (size_t)(slash - start - 3), err) && str_add(host, "", err);
}

static bool send_request(const Talk *t, const char *protocol, Err *err)
{
    const HttpRequest *r = t->c->request;
    const char *target = NULL;
    StrBuf host = STR_BUF(1024), text = STR_BUF(HEAD_MAX);
    bool token = r->token && secret_is_set(r->token);
    // The server closes after a refusal: it is read to its end
    bool ok = split_url(r->url, &host, &target, err) &&
        str_addf(&text, err,
                 "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: sendense/" SENDENSE_VERSION
                 "\r\nConnection: Upgrade\r\nUpgrade: %s\r\n",
                 target, host.s, protocol) &&
        (!token || str_addf(&text, err, "Authorization: Bearer %s\r\n", secret_reveal(r->token))) &&
        str_add(&text, "\r\n", err) && send_all(t, text.s, text.len, err);
    if (text.s)
        explicit_bzero(text.s, text.len);
    str_clear(&text);
    str_clear(&host);
    return ok;
}

static bool take_connection(const Talk *t, HttpUpgraded *ret, Err *err)
{
    struct curl_tlssessioninfo *tls = NULL;
    void *ssl = NULL;
    if (str_starts(t->c->request->url, "https://")) {
        if (curl_easy_getinfo(t->c->curl, CURLINFO_TLS_SSL_PTR, &tls) == CURLE_OK && tls &&
            tls->backend == CURLSSLBACKEND_OPENSSL)
            ssl = tls->internals;
        if (!ssl)
            return err_set(err, ERR_INTERNAL, "libcurl does not give its TLS connection");
    }
    int fd = fcntl(t->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, errno, "dup");
    *ret = (HttpUpgraded){.fd = fd, .ssl = ssl};
    return true;
}

static bool talk(const Talk *t, const char *protocol, HttpUpgraded *ret, HttpAnswer *ret_refusal, Err *err)
{
    StrBuf head = STR_BUF(HEAD_MAX), body = STR_BUF(REFUSAL_MAX);
    int status = 0;
    bool ok = send_request(t, protocol, err) && read_head(t, &head, err) &&
        status_of(head.s, t->c->request->url, &status, err);
    size_t length = ok ? length_of(head.s) : 0;
    str_clear(&head);
    if (ok && status == 101)
        return take_connection(t, ret, err);
    ok = ok && read_refusal(t, length, &body, err);
    if (!ok) {
        str_clear(&body);
        return false;
    }
    *ret = (HttpUpgraded){.fd = -1};
    *ret_refusal = (HttpAnswer){.status = status, .body = body.s, .body_len = body.len};
    return true;
}

bool http_client_upgrade(HttpClient *c, const HttpRequest *r, const char *protocol, HttpUpgraded *ret,
                         HttpAnswer *ret_refusal, Err *err)
{
    Talk t = {.c = c, .fd = CURL_SOCKET_BAD, .deadline_ms = clock_mono_ms() + http_client_silence(r)};
    if (!http_client_connect(c, r, err))
        return false;
    if (curl_easy_getinfo(c->curl, CURLINFO_ACTIVESOCKET, &t.fd) != CURLE_OK || t.fd == CURL_SOCKET_BAD)
        return err_set(err, ERR_INTERNAL, "libcurl does not give its connection");
    return talk(&t, protocol, ret, ret_refusal, err);
}
