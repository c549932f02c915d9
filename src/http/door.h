// Takes new connections, and holds each until the head of its request is there and clean (http/guard.h). Then the
// library gets it, with nothing read yet. Who does not pass is answered here: the library never sees it.
// One thread of its own; nothing in it blocks.
#pragma once

#include "http/answer.h"

#include <sys/socket.h>

// Whoever has been sending a request for longer makes room where there is none: a request comes in less.
#define HTTP_DOOR_STALE_MS 1000

typedef struct HttpDoorConfig {
    int listen_fd;   // not blocking; stays the caller's
    int64_t head_ms; // for the head of a request to arrive
    bool tls;        // a connection may begin with a TLS handshake; from other machines it has to
    bool local_only; // listens on a loopback address: a Host that could be a stranger's is refused
    unsigned max_waiting;
    void *ctx;
    // Takes over the descriptor. False: it cannot be served now, is still the door's, and is answered with 503.
    bool (*admit)(void *ctx, int fd, const struct sockaddr *addr, socklen_t addr_len);
    // A TLS handshake begins on fd: takes it over, *ret is the same connection in the clear. With tls alone.
    bool (*unwrap)(void *ctx, int fd, int *ret, Err *err);
    // Somebody was refused. May be NULL.
    void (*refused)(void *ctx, const struct sockaddr *addr, const char *method, int status, const Err *err);
} HttpDoorConfig;

typedef struct HttpDoor HttpDoor;

// Is the peer of fd a program on this machine: by a loopback address, or by the one that it called?
bool http_door_is_here(int fd, const struct sockaddr *peer);

bool http_door_open(const HttpDoorConfig *config, HttpDoor **ret, Err *err) must_check;
// Nobody is admitted any more; those who wait are sent away. Frees. NULL is fine.
void http_door_close(HttpDoor *door);
