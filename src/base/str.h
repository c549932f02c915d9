// A growing string with a ceiling, and small string helpers.
#pragma once

#include "base/mem.h"

// Always NUL-terminated once something was added; s is NULL before. Zeroed struct with max set
// is ready. Owner frees with str_clear().
typedef struct StrBuf {
    char *s;
    size_t len;
    size_t cap;
    size_t max; // ceiling in bytes without the NUL; adding beyond is ERR_TOO_LARGE
} StrBuf;

#define STR_BUF(ceiling) ((StrBuf){.max = (ceiling)})

bool str_add(StrBuf *b, const char *s, Err *err) must_check;
bool str_add_bytes(StrBuf *b, const void *p, size_t n, Err *err) must_check;
bool str_addf(StrBuf *b, Err *err, const char *fmt, ...) printf_like(3, 4) must_check;
void str_clear(StrBuf *b);

bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);
static inline bool str_eq(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

// Valid UTF-8 (no overlong forms, no surrogates), of exactly n bytes; NUL bytes are refused.
bool str_is_utf8(const char *s, size_t n);
void str_make_utf8(char *s); // each byte that is not part of a character becomes '?'
// No byte below 0x20 and no 0x7f, no C1 control character (U+0080..U+009F).
bool str_has_no_controls(const char *s);

// Lower-case hex of n bytes into out (2 * n + 1 bytes).
void str_hex(const void *bytes, size_t n, char *out);
// The opposite; s must have exactly 2 * n hex digits. False otherwise.
bool str_unhex(const char *s, void *bytes, size_t n) must_check;

// "1.5 GiB", for people.
#define STR_SIZE_MAX 16
void str_size(uint64_t bytes, char out[STR_SIZE_MAX]);
