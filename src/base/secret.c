#include "base/secret.h"

#include "base/str.h"

#include <sodium.h>

#define STORED_BYTES (SECRET_MAX + 1) // always as many, so that comparing tells nothing of the length

static bool ready(Err *err)
{
    if (sodium_init() < 0) // 1: was done before; thread-safe
        return err_set(err, ERR_INTERNAL, "libsodium does not start");
    return true;
}

bool secret_set(Secret *s, const char *text, Err *err)
{
    size_t n = text ? strnlen(text, STORED_BYTES) : 0;
    if (n > SECRET_MAX)
        return err_set(err, ERR_INVALID, "a secret has more than %d bytes", SECRET_MAX);
    if (n == 0) {
        secret_clear(s);
        return true;
    }
    if (!ready(err))
        return false;
    char *bytes = sodium_malloc(STORED_BYTES);
    if (!bytes)
        return err_no_memory(err);
    memset(bytes, 0, STORED_BYTES);
    memcpy(bytes, text, n);
    secret_clear(s); // only now: text may be what s holds
    s->bytes_ = bytes;
    return true;
}

bool secret_random(Secret *s, Err *err)
{
    if (!ready(err))
        return false;
    unsigned char raw[32];
    char text[2 * sizeof(raw) + 1];
    randombytes_buf(raw, sizeof(raw));
    str_hex(raw, sizeof(raw), text);
    bool ok = secret_set(s, text, err);
    sodium_memzero(raw, sizeof(raw));
    sodium_memzero(text, sizeof(text));
    return ok;
}

bool secret_is_set(const Secret *s)
{
    return s->bytes_ != NULL;
}

bool secret_equal(const Secret *s, const char *text)
{
    if (!s->bytes_ || !text)
        return false;
    size_t n = strnlen(text, STORED_BYTES);
    if (n > SECRET_MAX)
        return false;
    char padded[STORED_BYTES] = {0};
    memcpy(padded, text, n);
    bool same = sodium_memcmp(s->bytes_, padded, STORED_BYTES) == 0;
    sodium_memzero(padded, sizeof(padded));
    return same;
}

const char *secret_reveal(const Secret *s)
{
    return s->bytes_ ? s->bytes_ : "";
}

void secret_clear(Secret *s)
{
    if (s->bytes_)
        sodium_free(s->bytes_); // wipes
    s->bytes_ = NULL;
}

bool secret_digest(const char *text, char out[SECRET_DIGEST_TEXT], Err *err)
{
    if (!ready(err))
        return false;
    unsigned char digest[crypto_hash_sha256_BYTES];
    (void)crypto_hash_sha256(digest, (const unsigned char *)text, strlen(text)); // always 0
    str_hex(digest, sizeof(digest), out);
    return true;
}

bool secret_password_hash(const Secret *password, char out[SECRET_PASSWORD_TEXT], Err *err)
{
    _Static_assert(SECRET_PASSWORD_TEXT >= crypto_pwhash_argon2id_STRBYTES, "libsodium writes as many");
    const char *text = secret_reveal(password);
    if (!ready(err))
        return false;
    return crypto_pwhash_argon2id_str(out, text, strlen(text), crypto_pwhash_argon2id_OPSLIMIT_INTERACTIVE,
                                      crypto_pwhash_argon2id_MEMLIMIT_INTERACTIVE) == 0 ||
        err_no_memory(err); // the one thing that it fails for
}

bool secret_password_check(const Secret *password, const char *hash, bool *ret, Err *err)
{
    const char *text = secret_reveal(password);
    char other[SECRET_PASSWORD_TEXT];
    if (!hash) {
        *ret = false;
        return secret_password_hash(password, other, err);
    }
    if (!ready(err))
        return false;
    *ret = crypto_pwhash_argon2id_str_verify(hash, text, strlen(text)) == 0;
    return true;
}
