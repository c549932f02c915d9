// Bytes between a connection, encrypted or not, and a descriptor in the clear: a thread for each pipe, both directions.
// The hub's end of TLS, the client's end of a relayed NBD connection (docs/internals/wire.md).
//
// The end of one side is passed on to the other, after all that came before it. A peer that says no more is not
// waited for longer than it takes (2 s) for what it still sends to be read away.
#pragma once

#include "base/mem.h"

typedef struct Pipe Pipe;

// outer: a connected socket; inner: a stream socket. Both are the pipe's from a start that went well.
// ssl: an OpenSSL SSL, in accepting state or with its handshake done and nothing read ahead; the pipe gives it BIOs of
// its own, in memory. It stays the caller's, who frees it in ended(). NULL: outer is in the clear, too.
// ended: called once, last of all, in the pipe's thread; the Pipe is no more. It may free what the ssl rests on.
typedef struct PipeSpec {
    int outer, inner;
    void *ssl;
    void (*ended)(void *ctx);
    void *ctx;
} PipeSpec;

bool pipe_start(const PipeSpec *spec, Pipe **ret, Err *err) must_check;

// Both: only while the caller knows that ended() has not been called, thread-safe otherwise.
// When inner ends: go on with this descriptor, whose bytes follow those of inner, and the other way round. The pipe's
// from here on. Once for a pipe; what outer sends before it has seen inner's last bytes may be lost.
void pipe_follow(Pipe *p, int inner);
// Ends it soon, whatever is under way.
void pipe_cut(Pipe *p);

// Room for what is sent to the other end of a unix socket, as far as the system's limit allows: inner has it, and the
// one who writes to inner's other end should.
void pipe_widen(int fd);
