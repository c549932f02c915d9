// Numbers from text, with a range. Nothing but digits is accepted: no sign, blank, base prefix.
// Malformed, above 64 bits or out of min..max: ERR_INVALID.
#pragma once

#include "base/mem.h"

bool num_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret, Err *err) must_check;
// "64K", "1M", "2G", "1T" (binary, either case) or plain bytes.
bool num_size(const char *s, uint64_t min, uint64_t max, uint64_t *ret, Err *err) must_check;
