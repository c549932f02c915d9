// Where a database is: "host", "host:port", "[IPv6]:port", several of them separated by commas; or a socket's path.
#pragma once

#include "base/err.h"

#include <stddef.h>

#define STORE_HOSTS_MAX 8

typedef struct StoreHost {
    char name[256]; // or the absolute path of a unix socket
    unsigned port;
} StoreHost;

typedef struct StoreHosts {
    StoreHost at[STORE_HOSTS_MAX];
    size_t len; // at least 1
} StoreHosts;

// port: of those that name none. A path, and an IPv6 address without brackets, stand alone.
bool store_hosts_parse(const char *text, unsigned port, StoreHosts *ret, Err *err) must_check;
