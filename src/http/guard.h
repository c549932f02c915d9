// What is refused on the request line and the headers before anybody acts on them: whatever two HTTP parsers in a row
// could read differently (request smuggling), and what is too large. Pure; RFC 9110 and 9112.
#pragma once

#include "base/mem.h"

#define HTTP_HEADER_COUNT_MAX 100

typedef struct HttpHeader {
    const char *name;
    size_t name_len;
    const char *value;
    size_t value_len;
} HttpHeader;

typedef struct HttpHead {
    const char *method;
    const char *version;
    size_t target_len;
    const HttpHeader *headers;
    size_t n_headers;
} HttpHead;

typedef struct HttpFraming {
    uint64_t content_length;   // 0 when chunked or absent
    const char *authorization; // NULL: none; borrowed
} HttpFraming;

// On false the connection has to be closed after the answer: where the next request starts is not known.
// *ret_status is 0 (go by err) or 414, 431.
bool http_guard_check(const HttpHead *head, HttpFraming *ret, int *ret_status, Err *err) must_check;
