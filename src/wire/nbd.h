// NBD client ends over libnbd, asynchronous, several connections.
#pragma once

#include "wire/blocks.h"

typedef struct NbdDial { // *ret_fd: a connected stream socket, the caller's
    bool (*connect)(void *ctx, int timeout_ms, int *ret_fd, Err *err);
    void *ctx;
} NbdDial;

typedef struct NbdSpec {
    const char *uri;     // nbd+unix:///EXPORT?socket=PATH
    const char *socket;  // instead of uri: a unix socket path, with export_name
    const NbdDial *dial; // instead of both: makes the connections, with export_name. Borrowed, outlives the Blocks
    const char *export_name;
    unsigned connections; // 1..16; cut to 1 where the server is not multi-conn safe
    bool read_only;       // refuse nothing, but never write
    bool want_zeros;      // negotiate base:allocation; not granted: fine unless require_zeros
    bool require_zeros;
    const char *dirty_context; // "qemu:dirty-bitmap:NAME", must be granted; NULL: none
    int timeout_ms;            // connect and handshake, and each extents call; default 15000
    unsigned reconnects;       // lost connections reopened, to an export of the same size, name and description, and
                               // what was in flight on them sent again: this many times in all; 0, or an export that
                               // the server gives neither for: a lost connection fails
} NbdSpec;

bool nbd_blocks_open(const NbdSpec *spec, Blocks **ret, Err *err) must_check;

// Two ends of nbd_blocks_open(): as far as the servers' words go, are they the same export?
bool nbd_blocks_same(const Blocks *a, const Blocks *b);
