#include "http/url.h"

#include "base/str.h"

#include <strings.h>

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

// Decodes n bytes of s to *at, adds a NUL and moves *at behind it. Never writes more than n + 1 bytes.
static bool decode(const char *s, size_t n, bool plus_is_blank, char **at, const char **ret, Err *err)
{
    char *start = *at;
    char *out = start;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '%') {
            int high = i + 2 < n ? hex_digit(s[i + 1]) : -1;
            int low = i + 2 < n ? hex_digit(s[i + 2]) : -1;
            if (high < 0 || low < 0)
                return err_set(err, ERR_INVALID,
                               "a percent sign in the URL is not followed by two hex digits; send it as %%25");
            *out++ = (char)(high * 16 + low);
            i += 2;
        } else {
            *out++ = plus_is_blank && s[i] == '+' ? ' ' : s[i];
        }
    }
    size_t len = (size_t)(out - start);
    *out++ = '\0';
    if (!str_is_utf8(start, len))
        return err_set(err, ERR_INVALID, "the URL holds bytes that are not UTF-8, or %%00");
    if (!str_has_no_controls(start))
        return err_set(err, ERR_INVALID, "the URL holds a control character");
    *at = out;
    *ret = start;
    return true;
}

static bool parse_segments(HttpUrl *url, const char *path, size_t n, char **at, Err *err)
{
    const char *end = path + n;
    const char *s = path + 1; // behind the leading '/'
    for (;;) {
        const char *slash = memchr(s, '/', (size_t)(end - s));
        const char *stop = slash ? slash : end;
        if (url->n_segments == HTTP_SEGMENTS_MAX)
            return err_set(err, ERR_NOT_FOUND, "no such path: more than %d segments", HTTP_SEGMENTS_MAX);
        if (!decode(s, (size_t)(stop - s), false, at, &url->segments[url->n_segments], err))
            return false;
        url->n_segments++;
        if (!slash)
            return true;
        s = slash + 1;
    }
}

static bool parse_pair(HttpUrl *url, const char *s, size_t n, char **at, Err *err)
{
    const char *equals = memchr(s, '=', n);
    if (!equals || equals == s)
        return err_set(err, ERR_INVALID, "the query is not of the form name=value&name=value");
    if (url->n_query == HTTP_QUERY_MAX)
        return err_set(err, ERR_INVALID, "the query has more than %d parameters", HTTP_QUERY_MAX);
    HttpPair *pair = &url->query[url->n_query];
    size_t name_len = (size_t)(equals - s);
    if (!decode(s, name_len, true, at, &pair->name, err) ||
        !decode(equals + 1, n - name_len - 1, true, at, &pair->value, err))
        return false;
    for (size_t i = 0; i < url->n_query; i++) {
        if (str_eq(url->query[i].name, pair->name))
            return err_set(err, ERR_INVALID, "the query parameter %s is there twice", pair->name);
    }
    url->n_query++;
    return true;
}

static bool parse_query(HttpUrl *url, const char *query, char **at, Err *err)
{
    while (*query) {
        const char *stop = strchrnul(query, '&');
        if (!parse_pair(url, query, (size_t)(stop - query), at, err))
            return false;
        query = *stop ? stop + 1 : stop;
    }
    return true;
}

// What follows the authority of the absolute form, which servers must accept.
static const char *skip_authority(const char *target)
{
    if (strncasecmp(target, "http://", 7) != 0)
        return target;
    return strchrnul(target + 7, '/');
}

bool http_url_parse(const char *target, HttpUrl *ret, Err *err)
{
    const char *path = skip_authority(target);
    if (path[0] != '/')
        return err_set(err, ERR_INVALID, "the request's target is not a path");
    if (strpbrk(path, " #"))
        return err_set(err, ERR_INVALID, "the URL holds a blank or '#'; send them as %%20 and %%23");
    if (!str_is_utf8(path, strlen(path))) // half of a character, the other half encoded: it is logged as it came
        return err_set(err, ERR_INVALID, "the URL is not UTF-8; send other bytes than ASCII percent-encoded");
    size_t n = strcspn(path, "?");
    HttpUrl url = {0};
    url.raw = mem_calloc(n + 1, 1, err);
    url.decoded = mem_calloc(strlen(path) + 2, 1,
                             err); // each part and its NUL take the place of the part and its separator
    if (!url.raw || !url.decoded) {
        http_url_clear(&url);
        return false;
    }
    memcpy(url.raw, path, n);
    char *at = url.decoded;
    if (!parse_segments(&url, path, n, &at, err) || (path[n] == '?' && !parse_query(&url, path + n + 1, &at, err))) {
        http_url_clear(&url);
        return false;
    }
    *ret = url;
    return true;
}

void http_url_clear(HttpUrl *url)
{
    free(url->raw);
    free(url->decoded);
    *url = (HttpUrl){0};
}
