// HTTP requests over libcurl: one at a time, each with deadlines and a bounded answer. No redirects are followed,
// no proxy is used, TLS is verified, a connection has 5 s to come about. One HttpClient belongs to one thread.
#pragma once

#include "base/secret.h"
#include "wire/tls.h"

#include <stdatomic.h>

typedef struct HttpRequest {
    const char *method;        // "GET", "POST", "PATCH", "DELETE"
    const char *url;           // http:// or https://
    const char *body;          // NULL: none
    const char *content_type;  // of the body; NULL: JSON
    const char *header;        // one more line, "Name: value"; NULL: none
    const Secret *token;       // sent as "Authorization: Bearer …"; NULL or not set: none
    const Secret *cookie;      // sent as "Cookie: …"; NULL or not set: none
    bool once;                 // never sent twice: libcurl repeats what an idle connection that is closing swallowed
    int timeout_ms;            // of the whole exchange; 0: 30 s. With on_data, and open/read: of silence
    size_t max_answer;         // bytes of the answer's body, 0: 4 MiB. With on_data it bounds only error answers
    const atomic_bool *cancel; // looked at several times a second while waiting; may be NULL
    // A stream: each piece of a 200 answer's body as it arrives; false ends the exchange (which then went well).
    bool (*on_data)(void *ctx, const char *p, size_t n);
    void *ctx;
} HttpRequest;

typedef struct HttpAnswer {
    int status;
    char *body; // NUL-terminated; "" when there is none
    size_t body_len;
} HttpAnswer;

void http_answer_clear(HttpAnswer *a);

typedef struct HttpClient HttpClient;

bool http_client_new(HttpClient **ret, Err *err) must_check;
void http_client_free(HttpClient *c);
// Whom it trusts from now on, for a client that has made no call yet; copied. Without: the system's CAs.
bool http_client_trust(HttpClient *c, const TlsTrust *trust, Err *err) must_check;
// The certificate that the server of the newest connection showed; NULL: none was. Borrowed.
const TlsCertificate *http_client_shown(const HttpClient *c);

// True whenever the server answered, with whatever status. ERR_UNAVAILABLE: not reached, or the connection broke;
// ERR_TIMEOUT; ERR_TOO_LARGE; ERR_CANCELLED; ERR_PROTOCOL: it does not speak HTTP, or its certificate is not trusted
// (title "certificate not trusted").
bool http_client_call(HttpClient *c, const HttpRequest *r, HttpAnswer *ret, Err *err) must_check;

// The same in steps, for an answer that is read as it arrives: open() waits for the status, read() for some of the body
// (*ret_n 0: its end), end() gives the rest up and must follow an open() that went well. on_data and max_answer are not
// looked at; what *r points to must stay until end().
bool http_client_open(HttpClient *c, const HttpRequest *r, int *ret_status, Err *err) must_check;
bool http_client_read(HttpClient *c, void *buf, size_t cap, size_t *ret_n, Err *err) must_check;
void http_client_end(HttpClient *c);
// Between open() and end(): the index-th header of that name; NULL: there is none. Borrowed until the next call.
const char *http_client_header(HttpClient *c, const char *name, size_t index);

// Asks for another protocol on the same connection (RFC 9110, 7.8), by a GET. Of r only url, token, timeout_ms and
// cancel are looked at. True: either the server answered 101, and *ret is the connection, all that comes behind the
// answer still unread in it: fd is the caller's, ssl (OpenSSL's; NULL with http://) lives and dies with c, which makes
// no call any more. Or it refused, and *ret_refusal says how (its status is set); then ret->fd is -1.
typedef struct HttpUpgraded {
    int fd;
    void *ssl;
} HttpUpgraded;
bool http_client_upgrade(HttpClient *c, const HttpRequest *r, const char *protocol, HttpUpgraded *ret,
                         HttpAnswer *ret_refusal, Err *err) must_check;

// The certificate that the server of an https:// URL shows, trusted or not. Only a TLS handshake: nothing is sent.
bool http_client_certificate(const char *url, int timeout_ms, const atomic_bool *cancel, TlsCertificate *ret, Err *err)
    must_check;
