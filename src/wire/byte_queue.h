// Bytes that wait to be passed on, in one piece of memory that never grows; OpenSSL can read from it, or write to it.
// (OpenSSL's own memory BIO moves what is left and clears what it gains, at each call: a tenth of an encrypted copy.)
#pragma once

#include "base/mem.h"

#include <openssl/bio.h>

// [at, len) is there; both are 0 where nothing is. Not thread-safe.
typedef struct ByteQueue {
    char *bytes;
    size_t at, len, max;
} ByteQueue;

bool byte_queue_init(ByteQueue *q, size_t max, Err *err) must_check;
void byte_queue_clear(ByteQueue *q);

static inline size_t byte_queue_pending(const ByteQueue *q)
{
    return q->len - q->at;
}

// To add: write at the end, at most so much, and raise len.
static inline char *byte_queue_end(const ByteQueue *q)
{
    return q->bytes + q->len;
}

static inline size_t byte_queue_room(const ByteQueue *q)
{
    return q->max - q->len;
}

// n of the pending bytes, from the first on, were passed on.
void byte_queue_drop(ByteQueue *q, size_t n);

// Reads take what is there, and ask for a retry where nothing is; a write that does not fit whole fails. q outlives it.
bool byte_queue_bio(ByteQueue *q, BIO **ret, Err *err) must_check;
