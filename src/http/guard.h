// Looks at the head of a request (request line and headers) as it came, byte for byte, before any parser acts on it.
// Refused is whatever two parsers in a row could read differently (request smuggling), and what is too large.
// Stricter than RFC 9112 asks for: no bare line feeds, no folded lines, no empty lines before the request. Pure.
#pragma once

#include "base/mem.h"

#define HTTP_HEADER_COUNT_MAX 100

typedef struct HttpSlice {
    const char *s;
    size_t len;
} HttpSlice;

typedef struct HttpHead {
    HttpSlice method;
    HttpSlice target;
    HttpSlice host;          // as sent, with a port; none in HTTP/1.0
    uint64_t content_length; // 0 when chunked or absent
} HttpHead;

// *ret_len: bytes of the head, the empty line at its end included; 0 if more has to come.
// On false the connection has to be closed after the answer: where a next request would start is not known. ret_head
// then has what was recognised; *ret_status is the status to answer (err's own, or 413, 414, 431, 501).
bool http_guard_check(const char *bytes, size_t n, HttpHead *ret_head, size_t *ret_len, int *ret_status, Err *err)
    must_check;

// Is that a name which nobody else's DNS can point at this machine: an address in numbers, localhost, or `own`? A page
// whose own name leads to a loopback address (DNS rebinding) has an origin that fits, and is known by nothing else.
bool http_guard_host_is_local(HttpSlice host, const char *own);
