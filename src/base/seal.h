// Secrets at rest: a key file, and what is sealed with it (XChaCha20-Poly1305, libsodium). What is sealed is text, of
// one length whatever the secret's, and opens only with the same key and the same binding: what else the secret belongs
// to, such as where it may be sent.
#pragma once

#include "base/secret.h"

typedef struct SealKey {
    unsigned char *bytes_; // locked memory; NULL: none
} SealKey;

// The file holds 64 hex digits, a line end may follow; it is the caller's user's (or root's), and nobody else may read
// or write it. Else ERR_UNAVAILABLE, titled "key file not usable": when it is mended the same call works.
bool seal_key_read(const char *path, SealKey *ret, Err *err) must_check;
// Makes one, durably, mode 0600. ERR_EXISTS: there is one. One caller at a time.
bool seal_key_make(const char *path, Err *err) must_check;
void seal_key_clear(SealKey *k);

bool seal_secret(const SealKey *k, const Secret *s, const char *binding, char **ret_text, Err *err) must_check;
// Not what was sealed with this key and binding: ERR_UNAVAILABLE, titled as above.
bool seal_open(const SealKey *k, const char *text, const char *binding, Secret *ret, Err *err) must_check;
