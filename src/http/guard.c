#include "http/guard.h"

#include "base/num.h"
#include "base/str.h"
#include "http/server.h"

#include <strings.h>

// The headers that may be there once at most, and count here.
typedef struct Known {
    const HttpHeader *host;
    const HttpHeader *content_length;
    const HttpHeader *transfer_encoding;
    const HttpHeader *authorization;
    const HttpHeader *origin;
} Known;

// tchar of RFC 9110, 5.6.2
static bool is_token(const char *s, size_t n)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && (c == '\0' || !strchr(others, c)))
            return false;
    }
    return n > 0;
}

// No control characters but tabs
static bool is_value(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static bool is_named(const HttpHeader *h, const char *name)
{
    return h->name_len == strlen(name) && strncasecmp(h->name, name, h->name_len) == 0;
}

static bool is_text(const HttpHeader *h, const char *text)
{
    return h->value_len == strlen(text) && strncasecmp(h->value, text, h->value_len) == 0;
}

static bool sort_in(Known *known, const HttpHeader *h, Err *err)
{
    const struct {
        const char *name;
        const HttpHeader **place;
    } single[] = {
        {"Host", &known->host},
        {"Content-Length", &known->content_length},
        {"Transfer-Encoding", &known->transfer_encoding},
        {"Authorization", &known->authorization},
        {"Origin", &known->origin},
    };
    for (size_t i = 0; i < ARRAY_LEN(single); i++) {
        if (!is_named(h, single[i].name))
            continue;
        if (*single[i].place)
            return err_set(err, ERR_INVALID, "the header %s is there twice", single[i].name);
        *single[i].place = h;
    }
    return true;
}

static bool check_headers(const HttpHead *head, Known *known, int *ret_status, Err *err)
{
    size_t total = 0;
    for (size_t i = 0; i < head->n_headers; i++) {
        const HttpHeader *h = &head->headers[i];
        total += h->name_len + h->value_len;
        if (!is_token(h->name, h->name_len))
            return err_set(err, ERR_INVALID,
                           "a header's name holds a blank or another character that none may hold");
        if (!is_value(h->value, h->value_len))
            return err_set(err, ERR_INVALID, "the header %.64s holds a control character", h->name);
        if (!sort_in(known, h, err))
            return false;
    }
    if (total > HTTP_HEADERS_MAX || head->n_headers > HTTP_HEADER_COUNT_MAX) {
        *ret_status = 431;
        err_set(err, ERR_TOO_LARGE, "at most %d headers and %d bytes of them are taken",
                HTTP_HEADER_COUNT_MAX, HTTP_HEADERS_MAX);
        return err_title(err, "request headers too large");
    }
    return true;
}

static bool check_length(const Known *known, const HttpHead *head, uint64_t *ret_length, Err *err)
{
    const HttpHeader *length = known->content_length;
    const HttpHeader *encoding = known->transfer_encoding;
    if (length && encoding)
        return err_set(err, ERR_INVALID, "Content-Length and Transfer-Encoding exclude each other");
    if (encoding && (!is_text(encoding, "chunked") || !str_eq(head->version, "HTTP/1.1")))
        return err_set(err, ERR_INVALID, "the only transfer encoding is chunked, of HTTP/1.1");
    *ret_length = 0;
    if (!length)
        return true;
    Err why = ERR_INIT;
    if (strlen(length->value) != length->value_len ||
        !num_u64(length->value, 0, INT64_MAX, ret_length, &why))
        return err_set(err, ERR_INVALID, "Content-Length is not a number of bytes");
    return true;
}

// A web page of another origin must not drive a hub that its reader can reach (the hub may run without tokens).
static bool check_origin(const Known *known, Err *err)
{
    const HttpHeader *origin = known->origin;
    if (!origin)
        return true;
    static const char *const schemes[] = {"http://", "https://"};
    for (size_t i = 0; known->host && i < ARRAY_LEN(schemes); i++) {
        size_t n = strlen(schemes[i]);
        if (origin->value_len == n + known->host->value_len &&
            strncasecmp(origin->value, schemes[i], n) == 0 &&
            strncasecmp(origin->value + n, known->host->value, known->host->value_len) == 0)
            return true;
    }
    err_set(err, ERR_FORBIDDEN, "a page of another origin may not use this API");
    return err_title(err, "origin not accepted");
}

bool http_guard_check(const HttpHead *head, HttpFraming *ret, int *ret_status, Err *err)
{
    *ret_status = 0;
    bool newest = str_eq(head->version, "HTTP/1.1");
    if (!newest && !str_eq(head->version, "HTTP/1.0"))
        return err_set(err, ERR_INVALID, "the request is not HTTP/1.1");
    if (!is_token(head->method, strlen(head->method)))
        return err_set(err, ERR_INVALID, "the method is not a word");
    if (head->target_len > HTTP_URI_MAX) {
        *ret_status = 414;
        err_set(err, ERR_TOO_LARGE, "the URL is longer than %d bytes", HTTP_URI_MAX);
        return err_title(err, "URL too long");
    }
    Known known = {0};
    uint64_t length;
    if (!check_headers(head, &known, ret_status, err) ||
        !check_length(&known, head, &length, err) || !check_origin(&known, err))
        return false;
    if (newest && !known.host)
        return err_set(err, ERR_INVALID, "the header Host is missing");
    *ret = (HttpFraming){.content_length = length,
                         .authorization = known.authorization ? known.authorization->value : NULL};
    return true;
}
