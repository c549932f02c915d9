// The REST API: every route of api/openapi.yaml, each bytes to a request, one service call, an answer to bytes.
// The server's ctx is a Hub *.
#pragma once

#include "http/route.h"

HttpRoutes api_routes(void);
