// How fast something goes, over the last seconds, and how long it will take.
#pragma once

#include "base/mem.h"

#define RATE_SAMPLES 32
#define RATE_SPACING_MS 250

typedef struct Rate {
    struct {
        int64_t ms;
        uint64_t bytes;
    } samples[RATE_SAMPLES]; // a ring; samples closer than RATE_SPACING_MS to the last are left out
    size_t len, next;
} Rate;

// now_ms: monotonic. Fewer bytes than before (it began anew): forgets what was.
void rate_add(Rate *r, int64_t now_ms, uint64_t bytes);
uint64_t rate_per_second(const Rate *r);
// False while that cannot be said.
bool rate_left(const Rate *r, uint64_t bytes_to_go, uint64_t *ret_seconds);
