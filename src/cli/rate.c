#include "cli/rate.h"

static size_t newest(const Rate *r)
{
    return (r->next + RATE_SAMPLES - 1) % RATE_SAMPLES;
}

static size_t oldest(const Rate *r)
{
    return (r->next + RATE_SAMPLES - r->len) % RATE_SAMPLES;
}

void rate_add(Rate *r, int64_t now_ms, uint64_t bytes)
{
    if (r->len > 0 && bytes < r->samples[newest(r)].bytes)
        *r = (Rate){0};
    if (r->len > 0 && now_ms - r->samples[newest(r)].ms < RATE_SPACING_MS)
        return;
    r->samples[r->next].ms = now_ms;
    r->samples[r->next].bytes = bytes;
    r->next = (r->next + 1) % RATE_SAMPLES;
    r->len = MIN(r->len + 1, RATE_SAMPLES);
}

uint64_t rate_per_second(const Rate *r)
{
    if (r->len < 2)
        return 0;
    int64_t ms = r->samples[newest(r)].ms - r->samples[oldest(r)].ms;
    uint64_t bytes = r->samples[newest(r)].bytes - r->samples[oldest(r)].bytes;
    return (uint64_t)((double)bytes * 1000.0 / (double)ms);
}

bool rate_left(const Rate *r, uint64_t bytes_to_go, uint64_t *ret_seconds)
{
    uint64_t speed = rate_per_second(r);
    if (speed == 0)
        return false;
    *ret_seconds = (bytes_to_go + speed - 1) / speed;
    return true;
}
