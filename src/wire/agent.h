// A client of the QEMU guest agent (docs/interop/qemu-ga-ref of QEMU) on its unix socket: freezing file systems.
// Not thread-safe.
#pragma once

#include "wire/stream.h"

typedef struct Agent Agent;

// Connects and synchronises (0xFF-delimited: what an earlier client left half done is passed over). ERR_TIMEOUT: no
// agent runs in the guest, or another client holds the socket.
bool agent_open(const char *path, int timeout_ms, Agent **ret, Err *err) must_check;

// Number of file systems that were frozen. After a failure some, or later all, may be frozen: thaw.
bool agent_freeze(Agent *a, int timeout_ms, uint64_t *ret_count, Err *err) must_check;

// Number of file systems that were frozen until now. Fine if none was.
bool agent_thaw(Agent *a, int timeout_ms, uint64_t *ret_count, Err *err) must_check;

bool agent_is_frozen(Agent *a, int timeout_ms, bool *ret, Err *err) must_check;

void agent_free(Agent *a); // fine on NULL
