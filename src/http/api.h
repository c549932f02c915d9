// The REST API: every route of api/openapi.yaml, each bytes to a request, one service call, an answer to bytes.
// The server's ctx is a Hub *.
#pragma once

#include "http/route.h"

HttpRoutes api_routes(void);
// HttpConfig.admit: who may make which call (docs/internals/auth.md).
bool api_admit(void *ctx, HttpRequest *req, const HttpRoute *route, Err *err) must_check;
