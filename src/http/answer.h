// Answers as libmicrohttpd's responses. Each is the caller's, NULL on lack of memory.
#pragma once

#include "http/route.h"
#include "http/watch.h"

#include <microhttpd.h>

// {"error", "details", "timestamp"}. Bytes in the details that are not UTF-8 become '?'.
char *http_answer_error_text(const Err *err) must_check;
struct MHD_Response *http_answer_error(const Err *err) must_check;
// Takes over response->body and response->text.
struct MHD_Response *http_answer_json(HttpResponse *response, Err *err) must_check;
// Takes over response->stream. Without with_body (HEAD) only its headers.
struct MHD_Response *http_answer_stream(HttpResponse *response, HttpWatch *watch, bool with_body) must_check;
// 101. The connection goes to on_upgrade when it is sent.
struct MHD_Response *http_answer_upgrade(const char *protocol, MHD_UpgradeHandler on_upgrade) must_check;
// Frees what a handler put in before it failed.
void http_answer_discard(HttpResponse *response);
