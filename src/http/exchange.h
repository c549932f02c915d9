// One request from its first line to the end of its answer: the library's callbacks.
#pragma once

#include "http/pipes.h"
#include "http/server.h"
#include "http/watch.h"

#include <microhttpd.h>
#include <netinet/in.h>

// What all requests of a server share.
typedef struct HttpSite {
    HttpConfig config;
    HttpWatch watch;
    HttpPipes pipes;
} HttpSite;

// MHD_OPTION_URI_LOG_CALLBACK: begins a request, with the target as it was sent. NULL on lack of memory.
void *http_exchange_begin(void *site, const char *target, struct MHD_Connection *connection);
// MHD_AccessHandlerCallback
enum MHD_Result http_exchange_run(void *site, struct MHD_Connection *connection, const char *decoded_target,
                                  const char *method, const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **exchange);
// The peer's address as text; "" where there is none.
void http_exchange_remote(const struct sockaddr *addr, char out[INET6_ADDRSTRLEN]);
// MHD_OPTION_NOTIFY_COMPLETED
void http_exchange_end(void *site, struct MHD_Connection *connection, void **exchange,
                       enum MHD_RequestTerminationCode how);
