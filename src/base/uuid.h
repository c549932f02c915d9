// Random bytes and UUIDs (RFC 9562, version 4), from the kernel.
#pragma once

#include "base/mem.h"

#define UUID_TEXT 37 // 36 characters, lower case, and NUL

bool uuid_random_bytes(void *p, size_t n, Err *err) must_check;
bool uuid_new(char out[UUID_TEXT], Err *err) must_check;
bool uuid_is_valid(const char *s); // 8-4-4-4-12 lower- or upper-case hex digits
