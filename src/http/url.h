// The request target of HTTP (RFC 9112, 3.2), split first and percent-decoded after: "%2F" stays inside its segment.
#pragma once

#include "base/mem.h"

#define HTTP_SEGMENTS_MAX 12
#define HTTP_QUERY_MAX 16

typedef struct HttpPair {
    const char *name;
    const char *value;
} HttpPair;

typedef struct HttpUrl {
    char *raw;     // the path as it was sent, without the query
    char *decoded; // what segments and pairs point into
    const char *segments[HTTP_SEGMENTS_MAX];
    size_t n_segments;
    HttpPair query[HTTP_QUERY_MAX];
    size_t n_query;
} HttpUrl;

// "/a/b?x=1" or "http://host/a/b?x=1". "/a//b" has an empty segment; "/" has one, and it is empty. In the query '+' is
// a blank. ERR_INVALID: no path, a bad percent sequence, decoded text with control characters or that is not UTF-8, a
// query parameter without name or value, or sent twice; also too many parameters; ERR_NOT_FOUND: more segments
// than any path of ours has.
bool http_url_parse(const char *target, HttpUrl *ret, Err *err) must_check;
void http_url_clear(HttpUrl *url);
