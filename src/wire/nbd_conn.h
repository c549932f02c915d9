// One NBD connection over libnbd: opened with a deadline, asked for facts and maps. For nbd.c only.
#pragma once

#include "wire/nbd.h"

#include <libnbd.h>

// What the server said of the export; the same on each connection, or it is another export.
typedef struct NbdFacts {
    char *names; // its canonical name and description, a line each; "" where the server gives neither; owned
    uint64_t size;
    uint32_t max_request;
    bool multi_conn, can_zero, can_flush, can_cache, read_only;
    bool zeros; // base:allocation was granted
} NbdFacts;

void nbd_facts_clear(NbdFacts *f);

// Connect and shake hands before spec->timeout_ms is over. ERR_UNAVAILABLE: nobody there;
// ERR_NOT_FOUND: no such socket or export; ERR_TIMEOUT; ERR_PROTOCOL: a context that must be granted
// was not, or anything else.
bool nbd_conn_open(const NbdSpec *spec, struct nbd_handle **ret, NbdFacts *ret_facts, Err *err) must_check;

bool nbd_conn_is_lost(struct nbd_handle *h);

// Let libnbd handle what poll() found.
void nbd_conn_notify(struct nbd_handle *h, short revents);
short nbd_conn_events(struct nbd_handle *h); // what to poll for

// The map of a range, complete: added to the vectors. `changed` only with spec->dirty_context. Other
// commands in flight on h may complete meanwhile. After a failure h may hold a callback into freed memory:
// nbd_close() it before anything else.
bool nbd_conn_map(struct nbd_handle *h, const NbdSpec *spec, const NbdFacts *facts, uint64_t offset, uint64_t length,
                  ExtentVec *changed, ExtentVec *zeros, Err *err) must_check;

// An Err from the errno of a command or of the handshake.
bool nbd_conn_error(Err *err, int errnum, const char *what, const char *text);
