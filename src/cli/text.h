// Text for people: columns of a terminal, times, durations, and what comes from elsewhere made harmless.
#pragma once

#include "base/str.h"

#include <stdio.h>

// Columns that s takes once cleaned. Needs a UTF-8 LC_CTYPE; elsewhere what is not ASCII counts one a character.
size_t text_width(const char *s);
// Appends s with control characters and broken UTF-8 replaced by '?', so that a name cannot steer a terminal.
bool text_add_clean(StrBuf *b, const char *s, Err *err) must_check;
void text_print_clean(FILE *f, const char *s);

// "2026-01-02 03:04:05" of an RFC 3339 time in UTC; "-" of NULL, "" or what is no time.
#define TEXT_TIME 24
void text_time(const char *rfc3339, char out[TEXT_TIME]);
// "0:07", "1:02:03", "2d 03:04:05".
#define TEXT_DURATION 32
void text_duration(uint64_t seconds, char out[TEXT_DURATION]);
// "42%", rounded down: 100% only when all is done. "-" of nothing.
#define TEXT_PERCENT 8
void text_percent(uint64_t done, uint64_t size, char out[TEXT_PERCENT]);

// NAME=value for a shell, quoted where that is needed. New memory.
char *text_shell(const char *name, const char *value, Err *err) must_check;
