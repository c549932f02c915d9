// JSON values over a unix socket, with deadlines and ceilings: what QMP and the guest agent have in common.
// Not thread-safe.
#pragma once

#include "base/mem.h"

#include <jansson.h>
#include <stdatomic.h>

#define STREAM_PATH_MAX 107                   // bytes of a unix socket's path
#define STREAM_MESSAGE_MAX ((size_t)16 << 20) // bytes of one message

typedef struct Stream Stream;

// ERR_UNAVAILABLE: nobody listens; ERR_NOT_FOUND: no such path; ERR_BUSY: the listener's queue is full.
bool stream_open(const char *path, Stream **ret, Err *err) must_check;

// Looked at while waiting; true there: ERR_CANCELLED. NULL: never. Borrowed.
void stream_set_cancel(Stream *s, const atomic_bool *cancel);

// All n bytes, the descriptor (-1: none) with the first of them, before deadline (clock_mono_ms()).
bool stream_send(Stream *s, const char *text, size_t n, int fd, int64_t deadline, Err *err) must_check;

// The next value, which must be an object; new reference. ERR_TIMEOUT; ERR_UNAVAILABLE: closed by the peer;
// ERR_PROTOCOL, ERR_TOO_LARGE: it sent something else. After any error but ERR_TIMEOUT and ERR_CANCELLED the stream
// is lost.
bool stream_receive(Stream *s, int64_t deadline, json_t **ret, Err *err) must_check;

// Throw away all up to the next byte `mark`, and that.
bool stream_skip(Stream *s, char mark, int64_t deadline, Err *err) must_check;

bool stream_is_lost(const Stream *s);
int stream_fd(const Stream *s); // to poll for input
void stream_free(Stream *s);    // fine on NULL
