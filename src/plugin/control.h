// The hub's line to the engine: a unix socket, one JSON object a line, request then answer
// (codec/engine.h). One connection at a time, served by one thread; a newer one takes the place of one
// that says nothing, and no peer can hold the thread longer than a deadline.
#pragma once

#include "codec/engine.h"

#include <stdatomic.h>

// Answers a status or a seal, by filling *ret. Called by the control's thread only.
typedef void (*ControlAnswer)(const EngineRequest *request, EngineAnswer *ret);

typedef struct Control Control;

// Binds path (mode 0600; at most 107 bytes; must not exist) and listens. No thread yet. connections: how many
// clients the NBD server has (borrowed).
bool control_open(const char *path, ControlAnswer answer, const atomic_uint *connections, Control **ret, Err *err)
    must_check;
bool control_start(Control *c, Err *err) must_check; // after the server's fork
void control_free(Control *c);                       // ends the thread, removes the socket
