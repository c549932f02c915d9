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

// A password as argon2id makes it, with its salt and parameters, to keep in a database: 64 MiB and some hundredths of a
// second each time. Thread-safe.
#define SECRET_PASSWORD_TEXT 128
bool secret_password_hash(const Secret *password, char out[SECRET_PASSWORD_TEXT], Err *err) must_check;
// *ret: is it the one that hash was made of? hash NULL: as long as it takes, and false: who asks for a user that is not
// there learns nothing by the time. ERR_NO_MEMORY.
bool secret_password_check(const Secret *password, const char *hash, bool *ret, Err *err) must_check;
