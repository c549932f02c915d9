// What is done once a day, and how many days of it are kept.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Is it to be done (again)? last_us: when it was, 0 for never; hour: of the day in UTC at which it is to be, 0 to 23.
// One that was missed is due at any later time, and so is one that lies in the future: the clock was set back.
bool daily_is_due(int64_t last_us, int64_t now_us, unsigned hour);

// Of things made at these times, the newest first (by a count, not by these times): the newest of each of the last
// `days` days that have any. Fills ret_keep; the first two are always kept: one may turn out to be damaged.
void daily_keep(const int64_t *made_us, size_t n, unsigned days, bool *ret_keep);
