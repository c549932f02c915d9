// Secrets: tokens and passwords. A type of its own, so that no log or print function takes one;
// wiped when cleared; compared in constant time (libsodium).
#pragma once

#include "base/mem.h"

#define SECRET_MAX 1024

typedef struct Secret {
    char *bytes_; // NUL-terminated; NULL: none. Only secret_reveal() looks at it
} Secret;

// Copies, in place of what it held; NULL or "": none. Above SECRET_MAX bytes: ERR_INVALID. A zeroed struct is none.
bool secret_set(Secret *s, const char *text, Err *err) must_check;
bool secret_random(Secret *s, Err *err) must_check; // 32 random bytes as hex
bool secret_is_set(const Secret *s);
bool secret_equal(const Secret *s, const char *text); // constant time; false if none
const char *secret_reveal(const Secret *s);           // "" if none; for the one place that sends it
void secret_clear(Secret *s);
// SHA-256 of the secret as hex, to keep in a database instead of the secret (tokens are random,
// so no salt is needed).
#define SECRET_DIGEST_TEXT 65
bool secret_digest(const char *text, char out[SECRET_DIGEST_TEXT], Err *err) must_check;
