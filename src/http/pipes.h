// The pipes of a server (wire/pipe.h): connections that came with TLS, and those that have become a relay.
// All functions are thread-safe. Lock order: its lock is a leaf.
#pragma once

#include "wire/tls_server.h"

#include <pthread.h>
#include <sys/queue.h>

#define HTTP_RELAYS_MAX 512

typedef struct HttpPipes {
    TlsServer *tls; // borrowed; NULL: none
    pthread_mutex_t lock;
    pthread_cond_t changed; // one has ended
    LIST_HEAD(HttpPipeList, HttpPipe) pipes;
    unsigned max, count; // of all; the door and the library have let go of some of them already
    unsigned relays;     // and places that are reserved for some
    bool closing;
} HttpPipes;

void http_pipes_init(HttpPipes *p, TlsServer *tls, unsigned max);
// Takes over the connection fd, on which a TLS handshake begins. *ret: the end in the clear, not blocking.
bool http_pipes_unwrap(HttpPipes *p, int fd, int *ret, Err *err) must_check;
// Is that an end in the clear of ours?
bool http_pipes_encrypted(HttpPipes *p, int fd);
// A place for a relay. ERR_UNAVAILABLE: there are too many.
bool http_pipes_reserve(HttpPipes *p, Err *err) must_check;
void http_pipes_unreserve(HttpPipes *p);
// From now on the connection's bytes are exchanged with `to` instead, which is the pipes' from here on, also after a
// failure; fd (an end in the clear, or a connection without TLS) stays the caller's, who closes it. Uses up a reserved
// place.
bool http_pipes_relay(HttpPipes *p, int fd, int to, Err *err) must_check;
// Ends all of them, and waits for that: relays at once, the others when what was answered is sent, or seconds later.
void http_pipes_close(HttpPipes *p);
