// The inside of an end, shared by ends.c and ends_perform.c.
#pragma once

#include "ends.h"

#define ENDS_PENDING_MAX 64

typedef struct EndsRequest { // neither read, write nor zero: a flush
    BlocksReq *req;
    uint8_t *read;
    const uint8_t *write;
    bool zero, fails;
    uint64_t offset, length;
} EndsRequest;

typedef struct End {
    Blocks blocks;
    EndsRun *run;
    const GuestView *view;
    uint32_t cluster_size;
    bool later;
    int fd;
    EndsRequest pending[ENDS_PENDING_MAX];
    size_t pending_len;
    // a source's
    ExtentVec changed, zeros;
    // a sink's
    Writer *writer;
    DiskMode mode;
    uint8_t *passed; // by cluster: given to the engine
    uint8_t *held;   // ENDS_DROP_LAST: the last write, until there is another one
    uint64_t held_offset, held_length;
} End;

// A request to the sink becomes calls of the engine.
bool ends_perform(End *e, const EndsRequest *r, Err *err) must_check;
