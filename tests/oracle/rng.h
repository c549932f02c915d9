// The oracle's only source of chance: a history is its seed. SplitMix64.
#pragma once

#include "base/mem.h"

typedef struct Rng {
    uint64_t state;
} Rng;

static inline uint64_t rng_next(Rng *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static inline uint64_t rng_below(Rng *r, uint64_t n) // n > 0
{
    return rng_next(r) % n;
}

static inline uint64_t rng_between(Rng *r, uint64_t low, uint64_t high) // both included
{
    return low + rng_below(r, high - low + 1);
}

static inline bool rng_chance(Rng *r, unsigned percent)
{
    return rng_below(r, 100) < percent;
}

static inline void rng_fill(Rng *r, uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = rng_next(r);
        memcpy(p + i, &v, MIN(sizeof v, n - i));
    }
}
