#include "base/seal.h"

#include "base/file.h"
#include "base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_BYTES crypto_aead_xchacha20poly1305_ietf_KEYBYTES
#define NONCE_BYTES crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define PLAIN_BYTES (SECRET_MAX + 1) // always as many: a database tells nothing of a password's length
#define SEALED_BYTES (NONCE_BYTES + PLAIN_BYTES + crypto_aead_xchacha20poly1305_ietf_ABYTES)
#define PREFIX "v1:"
#define FILE_MAX 256

static bool ready(Err *err)
{
    return sodium_init() >= 0 || err_set(err, ERR_INTERNAL, "libsodium does not start");
}

static bool not_usable(Err *err)
{
    err->code = ERR_UNAVAILABLE;
    return err_title(err, "key file not usable");
}

// ---- the key file

static bool is_ours_alone(int fd, const char *path, Err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_errno(err, errno, "%s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_UNAVAILABLE, "the key file %s is no regular file", path);
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return err_set(err, ERR_UNAVAILABLE, "the key file %s belongs to another user; HINT: chown it", path);
    if ((st.st_mode & 077) != 0)
        return err_set(err, ERR_UNAVAILABLE,
                       "the key file %s may be read or written by others (mode %03o); HINT: chmod 600, and think of "
                       "the passwords as known if somebody did",
                       path, (unsigned)(st.st_mode & 0777));
    return true;
}

static bool read_digits(const char *path, char text[FILE_MAX + 1], Err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return err_set(err, ERR_UNAVAILABLE,
                       "the key file %s is missing; HINT: put it back; where it is lost, make another "
                       "(openssl rand -hex 32, mode 600), and give each source its password again",
                       path);
    if (fd < 0)
        return err_errno(err, errno, "the key file %s", path);
    ssize_t n = -1;
    bool ok = is_ours_alone(fd, path, err);
    if (ok && (n = read(fd, text, FILE_MAX)) < 0)
        ok = err_errno(err, errno, "the key file %s", path);
    (void)close(fd); // only read from
    if (!ok)
        return false;
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
        n--;
    text[n] = '\0';
    if (n != 2 * KEY_BYTES)
        return err_set(err, ERR_UNAVAILABLE, "the key file %s has not %u hex digits, as a key has", path,
                       2 * KEY_BYTES);
    return true;
}

bool seal_key_read(const char *path, SealKey *ret, Err *err)
{
    char text[FILE_MAX + 1];
    if (!ready(err))
        return false;
    unsigned char *bytes = sodium_malloc(KEY_BYTES);
    if (!bytes)
        return err_no_memory(err);
    bool ok = read_digits(path, text, err) || not_usable(err);
    if (ok && !str_unhex(text, bytes, KEY_BYTES)) {
        (void)err_set(err, ERR_UNAVAILABLE, "the key file %s has other characters than hex digits", path);
        ok = not_usable(err);
    }
    sodium_memzero(text, sizeof(text));
    if (!ok) {
        sodium_free(bytes);
        return false;
    }
    seal_key_clear(ret);
    ret->bytes_ = bytes;
    return true;
}

bool seal_key_make(const char *path, Err *err)
{
    unsigned char raw[KEY_BYTES];
    char text[2 * sizeof(raw) + 2];
    cleanup_free char *partial = mem_printf(err, "%s.partial", path), *folder = mem_strdup(path, err);
    if (!partial || !folder || !ready(err))
        return false;
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    randombytes_buf(raw, sizeof(raw));
    str_hex(raw, sizeof(raw), text);
    text[2 * sizeof(raw)] = '\n';
    // by a link: a file that was cut short by a crash never has the name
    bool ok = file_unlink(partial, err) && file_create_durable(partial, text, 2 * sizeof(raw) + 1, 0600, err);
    if (ok) {
        // by a link: a file that was cut short by a crash never has the name
        bool named = file_link(partial, path, err);
        ok = file_unlink(partial, err) && named && file_fsync_dir(slash ? folder : ".", err);
    }
    sodium_memzero(raw, sizeof(raw));
    sodium_memzero(text, sizeof(text));
    return ok || err_context(err, "the key file");
}

void seal_key_clear(SealKey *k)
{
    if (k->bytes_)
        sodium_free(k->bytes_); // wipes
    k->bytes_ = NULL;
}

// ---- sealing

bool seal_secret(const SealKey *k, const Secret *s, const char *binding, char **ret_text, Err *err)
{
    unsigned char sealed[SEALED_BYTES];
    if (!ready(err))
        return false;
    char *plain = sodium_malloc(PLAIN_BYTES);
    if (!plain)
        return err_no_memory(err);
    memset(plain, 0, PLAIN_BYTES);
    memcpy(plain, secret_reveal(s), strlen(secret_reveal(s))); // at most SECRET_MAX
    randombytes_buf(sealed, NONCE_BYTES);
    (void)crypto_aead_xchacha20poly1305_ietf_encrypt(sealed + NONCE_BYTES, NULL, (unsigned char *)plain, PLAIN_BYTES,
                                                     (const unsigned char *)binding, strlen(binding), NULL, sealed,
                                                     k->bytes_); // always 0
    sodium_free(plain);
    char *text = mem_calloc(sizeof(PREFIX) + 2 * SEALED_BYTES, 1, err);
    if (!text)
        return false;
    memcpy(text, PREFIX, sizeof(PREFIX) - 1);
    str_hex(sealed, SEALED_BYTES, text + sizeof(PREFIX) - 1);
    *ret_text = text;
    return true;
}

bool seal_open(const SealKey *k, const char *text, const char *binding, Secret *ret, Err *err)
{
    unsigned char sealed[SEALED_BYTES];
    if (!ready(err))
        return false;
    char *plain = sodium_malloc(PLAIN_BYTES);
    if (!plain)
        return err_no_memory(err);
    bool ok = str_starts(text, PREFIX) && strlen(text) == sizeof(PREFIX) - 1 + 2 * SEALED_BYTES &&
        str_unhex(text + sizeof(PREFIX) - 1, sealed, SEALED_BYTES) &&
        crypto_aead_xchacha20poly1305_ietf_decrypt((unsigned char *)plain, NULL, NULL, sealed + NONCE_BYTES,
                                                   SEALED_BYTES - NONCE_BYTES, (const unsigned char *)binding,
                                                   strlen(binding), sealed, k->bytes_) == 0;
    if (ok) {
        ok = secret_set(ret, plain, err);
    } else {
        (void)err_set(err, ERR_UNAVAILABLE,
                      "this key file did not seal the password, or what it was sealed with was changed; HINT: put the "
                      "right key file back, or give the password again");
        ok = not_usable(err);
    }
    sodium_free(plain);
    return ok;
}
