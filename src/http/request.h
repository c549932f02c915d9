// A request, as a handler sees it. All text is valid UTF-8 without NUL or other control characters, decoded, and lives
// as long as the request. Belongs to the connection's thread.
#pragma once

#include "base/secret.h"
#include "base/str.h"
#include "codec/json.h"

typedef struct HttpRequest HttpRequest;

const char *http_request_method(const HttpRequest *req);
const char *http_request_path(const HttpRequest *req);   // as it was sent, without the query
const char *http_request_remote(const HttpRequest *req); // the peer's address, "127.0.0.1"

// The value of a cookie, borrowed; none: unset. Too long, or not a word: ERR_FORBIDDEN.
bool http_request_cookie(HttpRequest *req, const char *name, const Secret **ret, Err *err) must_check;
const char *http_request_csrf(const HttpRequest *req); // the header X-CSRF-Token; NULL: none
bool http_request_encrypted(const HttpRequest *req);   // it came with TLS
// Does the caller ask for the connection to become NBD's (RFC 9110, 7.8)? ERR_INVALID. To be called before anything is
// done for it.
#define HTTP_RELAY_PROTOCOL "nbd"
bool http_request_is_upgrade(const HttpRequest *req, Err *err) must_check;
bool http_request_has_token(const HttpRequest *req);   // there is an Authorization header, whatever it holds

// Who calls, and as what, as far as HttpConfig.admit has found out; "" until then.
#define HTTP_ACTOR_MAX 256
#define HTTP_ROLE_MAX 16
const char *http_request_actor(const HttpRequest *req);
const char *http_request_role(const HttpRequest *req);
void http_request_set_actor(HttpRequest *req, const char *actor, const char *role); // cut at the ceilings
// What the call made, by its name or ID, for the log; cut.
#define HTTP_OBJECT_MAX 512
void http_request_set_object(HttpRequest *req, const char *object);

// The segment that stands for "{name}" in the route's pattern: never NULL, never empty.
const char *http_request_param(const HttpRequest *req, const char *name);

// A query parameter; NULL if it was not sent.
const char *http_request_query(const HttpRequest *req, const char *name);
bool http_request_query_u64(const HttpRequest *req, const char *name, uint64_t min, uint64_t max, uint64_t fallback,
                            uint64_t *ret, Err *err) must_check;
bool http_request_query_bool(const HttpRequest *req, const char *name, bool fallback, bool *ret, Err *err) must_check;

// The body: a JSON object, borrowed from the request. Members outside `known` (NULL-terminated) are refused;
// known == NULL lets all pass. All errors are ERR_INVALID titled "invalid request body".
bool http_request_json(HttpRequest *req, const char *const *known, const json_t **ret, Err *err) must_check;
// The body as it came, for the decoders of codec/work.h; "" if there is none. At most HTTP_BODY_MAX bytes.
const char *http_request_body(const HttpRequest *req, size_t *ret_len);
// Gives an untitled ERR_INVALID, from reading a member, the title "invalid request body". Returns false.
bool http_request_bad_body(Err *err);

// The bearer token, borrowed. Unset (secret_is_set() false) where none was sent. Another scheme than
// Bearer, or an empty or oversized token: ERR_FORBIDDEN.
bool http_request_token(HttpRequest *req, const Secret **ret, Err *err) must_check;
