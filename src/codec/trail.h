// The log of who did what: its rows are chained by hashes, so that none can be changed or taken out unseen
// (docs/internals/auth.md).
#pragma once

#include "base/err.h"

#include <stdint.h>

#define TRAIL_HASH_TEXT 65
#define TRAIL_FIRST "0000000000000000000000000000000000000000000000000000000000000000" // stands before the first row

typedef struct TrailRow { // texts without line feeds, borrowed
    int64_t id;           // 1, 2, 3, ...
    const char *at;       // RFC 3339, as kept
    const char *actor, *role, *remote, *method, *path;
    const char *object; // what was made, by its name or ID; "" where the path says it
    int64_t status;
} TrailRow;

// SHA-256, in hex, of the row's members and the hash of the row before, one a line in the order above. ERR_INVALID for
// a text that is missing, too long or has a line feed.
bool trail_hash(const TrailRow *row, const char *before, char out[TRAIL_HASH_TEXT], Err *err) must_check;
