// Time: UTC in microseconds since 1970 inside, RFC 3339 outside; monotonic for deadlines.
#pragma once

#include "base/mem.h"

#define CLOCK_TEXT 28 // "2026-01-02T03:04:05.000006Z" and NUL

int64_t clock_utc_us(void);
int64_t clock_mono_ms(void); // for deadlines and rates; never stored

// RFC 3339 in UTC with six digits, so that text order is time order. Cut to the years 0000 to 9999.
void clock_format(int64_t utc_us, char out[CLOCK_TEXT]);
// RFC 3339 with any offset and 0 to 9 digits of a second (below a microsecond: cut off). ERR_INVALID.
bool clock_parse(const char *s, int64_t *ret_utc_us, Err *err) must_check;
