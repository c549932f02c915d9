// Keeps hold of the open connections: cuts those that are too slow, and drains them when the server stops.
// All functions are thread-safe. Lock order: the watch's lock is a leaf.
#pragma once

#include "base/mem.h"

#include <pthread.h>
#include <sys/queue.h>

typedef enum HttpPhase {
    HTTP_READING,   // to the last byte of the body; cut after the request time
    HTTP_HANDLING,  // a handler runs: never cut but by a stop
    HTTP_SENDING,   // cut after the sending time
    HTTP_STREAMING, // events; never cut but by a stop, or by the library when nothing can be sent
    HTTP_ANSWERED,  // nothing is to come; the library closes it
    HTTP_PHASES
} HttpPhase;

typedef struct HttpConn {
    int fd;
    HttpPhase phase;
    bool given_up;       // cut for another one, and not counted any more
    int64_t deadline_ms; // monotonic; INT64_MAX: none
    TAILQ_ENTRY(HttpConn) link;
} HttpConn;

typedef struct HttpWatch {
    pthread_mutex_t lock;
    pthread_cond_t changed; // a connection was answered or went; or stopping began
    pthread_t thread;
    TAILQ_HEAD(HttpConnList, HttpConn) conns;
    bool stopping;
    unsigned count;
    int64_t limit_ms[HTTP_PHASES]; // by phase; 0: none
} HttpWatch;

// limits by phase; 0: none. Starts the thread that cuts.
bool http_watch_start(HttpWatch *w, const int64_t limit_ms[HTTP_PHASES], Err *err) must_check;
// The descriptor stays the caller's, who calls remove before closing it. Begins as HTTP_READING.
// NULL on lack of memory.
HttpConn *http_watch_add(HttpWatch *w, int fd) must_check;
void http_watch_remove(HttpWatch *w, HttpConn *conn);
void http_watch_phase(HttpWatch *w, HttpConn *conn, HttpPhase phase);
// Is there a place below `most`? Where none is, who has been sending its request for the longest gives up its own, if
// that is more than stale_ms: bodies that never end keep nobody out.
bool http_watch_has_room(HttpWatch *w, unsigned most, int64_t stale_ms);
bool http_watch_stopping(HttpWatch *w);
// Waits that long, or until stopping begins; is the server going on?
bool http_watch_sleep(HttpWatch *w, int ms) must_check;
// From now on stopping: waits for what is under way up to deadline_ms, then cuts it.
void http_watch_drain(HttpWatch *w, int deadline_ms);
// After drain, when no connection is left.
void http_watch_clear(HttpWatch *w);
