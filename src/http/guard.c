#include "http/guard.h"

#include "base/num.h"
#include "base/str.h"
#include "http/server.h"

#include <arpa/inet.h>
#include <strings.h>

#define METHOD_MAX 32
#define LENGTH_DIGITS_MAX 19

// The headers that may be there once at most, and count here.
typedef struct Known {
    HttpSlice host, content_length, transfer_encoding, authorization, origin;
} Known;

static bool refuse(int *ret_status, int status, const char *title, Err *err)
{
    *ret_status = status;
    return err_title(err, title);
}

// Line ends are CR LF, and no other control character but a tab is in between: checked on every byte before anything
// is made of them. *ret_len: of the head; 0 if its end is not there yet.
static bool find_end(const char *bytes, size_t n, size_t *ret_len, Err *err)
{
    *ret_len = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '\r') {
            if (i + 1 < n && bytes[i + 1] != '\n')
                return err_set(err, ERR_INVALID, "a carriage return without a line feed in the head of the request");
        } else if (c == '\n') {
            if (i == 0 || bytes[i - 1] != '\r')
                return err_set(err, ERR_INVALID, "a line feed without a carriage return in the head of the request");
            if (i >= 3 && bytes[i - 2] == '\n') {
                *ret_len = i + 1;
                return true;
            }
        } else if ((c < 0x20 && c != '\t') || c == 0x7f) {
            return err_set(err, ERR_INVALID, "a control character in the head of the request");
        }
    }
    return true;
}

// tchar of RFC 9110, 5.6.2
static bool is_token(HttpSlice t)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < t.len; i++) {
        char c = t.s[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && (c == '\0' || !strchr(others, c)))
            return false;
    }
    return t.len > 0;
}

static bool is_text(HttpSlice t, const char *text)
{
    return t.len == strlen(text) && strncasecmp(t.s, text, t.len) == 0;
}

// The line at *at, without its CR LF; moves *at behind it.
static HttpSlice next_line(const char **at, const char *end)
{
    const char *s = *at;
    const char *lf = memchr(s, '\n', (size_t)(end - s));
    *at = lf + 1;
    return (HttpSlice){s, (size_t)(lf - 1 - s)};
}

// method SP target SP version
static bool check_request_line(HttpSlice line, HttpHead *head, bool *ret_newest, Err *err)
{
    const char *end = line.s + line.len;
    const char *blank = memchr(line.s, ' ', line.len);
    head->method = (HttpSlice){line.s, blank ? (size_t)(blank - line.s) : line.len};
    if (!is_token(head->method) || head->method.len > METHOD_MAX || !blank)
        return err_set(err, ERR_INVALID, "the request does not start with a method");
    const char *target = blank + 1;
    blank = memchr(target, ' ', (size_t)(end - target));
    if (!blank || blank == target || memchr(target, '\t', (size_t)(end - target)))
        return err_set(err, ERR_INVALID, "the request line is not METHOD URL VERSION");
    head->target = (HttpSlice){target, (size_t)(blank - target)};
    HttpSlice version = {blank + 1, (size_t)(end - blank - 1)};
    *ret_newest = version.len == 8 && memcmp(version.s, "HTTP/1.1", 8) == 0;
    if (!*ret_newest && (version.len != 8 || memcmp(version.s, "HTTP/1.0", 8) != 0))
        return err_set(err, ERR_INVALID, "the request is not HTTP/1.1; a blank in the URL is sent as %%20");
    return true;
}

static bool sort_in(Known *known, HttpSlice name, HttpSlice value, Err *err)
{
    const struct {
        const char *name;
        HttpSlice *place;
    } single[] = {
        {"Host", &known->host},
        {"Content-Length", &known->content_length},
        {"Transfer-Encoding", &known->transfer_encoding},
        {"Authorization", &known->authorization},
        {"Origin", &known->origin},
    };
    for (size_t i = 0; i < ARRAY_LEN(single); i++) {
        if (!is_text(name, single[i].name))
            continue;
        if (single[i].place->s)
            return err_set(err, ERR_INVALID, "the header %s is there twice", single[i].name);
        *single[i].place = value;
    }
    return true;
}

static bool check_header(HttpSlice line, Known *known, Err *err)
{
    const char *colon = memchr(line.s, ':', line.len);
    HttpSlice name = {line.s, colon ? (size_t)(colon - line.s) : line.len};
    if (!colon || !is_token(name))
        return err_set(err, ERR_INVALID,
                       "a header is not NAME: VALUE, has a blank in its name, or goes on in a second line");
    HttpSlice value = {colon + 1, line.len - name.len - 1};
    while (value.len > 0 && (value.s[0] == ' ' || value.s[0] == '\t')) {
        value.s++;
        value.len--;
    }
    while (value.len > 0 && (value.s[value.len - 1] == ' ' || value.s[value.len - 1] == '\t'))
        value.len--;
    return sort_in(known, name, value, err);
}

static bool check_framing(const Known *known, bool newest, HttpHead *head, int *ret_status, Err *err)
{
    HttpSlice length = known->content_length;
    HttpSlice encoding = known->transfer_encoding;
    if (length.s && encoding.s)
        return err_set(err, ERR_INVALID, "Content-Length and Transfer-Encoding exclude each other");
    if (encoding.s && (!is_text(encoding, "chunked") || !newest))
        return err_set(err, ERR_INVALID, "the only transfer encoding is chunked, of HTTP/1.1");
    if (!length.s)
        return true;
    char digits[LENGTH_DIGITS_MAX + 1] = "";
    Err why = ERR_INIT;
    if (length.len > 0 && length.len <= LENGTH_DIGITS_MAX)
        memcpy(digits, length.s, length.len);
    if (!num_u64(digits, 0, INT64_MAX, &head->content_length, &why))
        return err_set(err, ERR_INVALID, "Content-Length is not a number of bytes");
    if (head->content_length > HTTP_BODY_MAX) {
        err_set(err, ERR_TOO_LARGE, "a request body has at most %d bytes", (int)HTTP_BODY_MAX);
        return refuse(ret_status, 413, "request too large", err);
    }
    return true;
}

// A web page of another origin must not drive a hub that its reader can reach (the hub may run without tokens).
static bool check_origin(const Known *known, Err *err)
{
    HttpSlice origin = known->origin;
    if (!origin.s)
        return true;
    static const char *const schemes[] = {"http://", "https://"};
    for (size_t i = 0; known->host.len > 0 && i < ARRAY_LEN(schemes); i++) {
        size_t n = strlen(schemes[i]);
        if (origin.len == n + known->host.len && strncasecmp(origin.s, schemes[i], n) == 0 &&
            strncasecmp(origin.s + n, known->host.s, known->host.len) == 0)
            return true;
    }
    err_set(err, ERR_FORBIDDEN, "a page of another origin may not use this API");
    return err_title(err, "origin not accepted");
}

static bool url_too_long(int *ret_status, Err *err)
{
    err_set(err, ERR_TOO_LARGE, "the URL is longer than %d bytes", HTTP_URI_MAX);
    return refuse(ret_status, 414, "URL too long", err);
}

static bool too_large(const char *bytes, size_t n, int *ret_status, Err *err)
{
    const char *lf = memchr(bytes, '\n', n);
    size_t line = lf ? (size_t)(lf - bytes) : n;
    if (line > HTTP_URI_MAX + METHOD_MAX + 16)
        return url_too_long(ret_status, err);
    if (n - line > HTTP_HEADERS_MAX) {
        err_set(err, ERR_TOO_LARGE, "the headers are longer than %d bytes", HTTP_HEADERS_MAX);
        return refuse(ret_status, 431, "request headers too large", err);
    }
    return true;
}

static bool check_all(const char *bytes, const char *end, HttpHead *head, int *ret_status, Err *err)
{
    const char *at = bytes;
    bool newest;
    if (!check_request_line(next_line(&at, end), head, &newest, err))
        return false;
    if (head->target.len > HTTP_URI_MAX)
        return url_too_long(ret_status, err);
    Known known = {0};
    size_t count = 0;
    for (HttpSlice line = next_line(&at, end); line.len > 0; line = next_line(&at, end)) {
        if (!check_header(line, &known, err))
            return false;
        if (++count > HTTP_HEADER_COUNT_MAX) {
            err_set(err, ERR_TOO_LARGE, "there are more than %d headers", HTTP_HEADER_COUNT_MAX);
            return refuse(ret_status, 431, "request headers too large", err);
        }
    }
    if (newest && known.host.len == 0)
        return err_set(err, ERR_INVALID, "the header Host is missing");
    head->host = known.host;
    return check_framing(&known, newest, head, ret_status, err) && check_origin(&known, err);
}

static bool is_numeric(const char *name)
{
    struct in6_addr addr;
    return inet_pton(AF_INET, name, &addr) == 1 || inet_pton(AF_INET6, name, &addr) == 1;
}

bool http_guard_host_is_local(HttpSlice host, const char *own)
{
    char name[256];
    if (host.len >= sizeof(name))
        return false;
    memcpy(name, host.s, host.len);
    name[host.len] = '\0';
    char *begin = name, *end;
    if (name[0] == '[') { // an IPv6 address
        begin++;
        end = strchr(name, ']');
    } else {
        end = strchr(name, ':');
    }
    if (end)
        *end = '\0';
    return is_numeric(begin) || strcasecmp(begin, "localhost") == 0 || (*begin && strcasecmp(begin, own) == 0);
}

bool http_guard_check(const char *bytes, size_t n, HttpHead *ret_head, size_t *ret_len, int *ret_status, Err *err)
{
    *ret_head = (HttpHead){0};
    *ret_status = 0;
    bool ok = find_end(bytes, n, ret_len, err) && too_large(bytes, *ret_len ? *ret_len : n, ret_status, err) &&
        (*ret_len == 0 || check_all(bytes, bytes + *ret_len, ret_head, ret_status, err));
    if (!ok && *ret_status == 0)
        *ret_status = err_http(err->code);
    return ok;
}
