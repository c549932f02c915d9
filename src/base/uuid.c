#include "base/uuid.h"

#include "base/str.h"

#include <errno.h>
#include <sys/random.h>

bool uuid_random_bytes(void *p, size_t n, Err *err)
{
    unsigned char *at = p;
    while (n > 0) {
        ssize_t got = getrandom(at, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_errno(err, errno, "the kernel gave no random bytes");
        at += got;
        n -= (size_t)got;
    }
    return true;
}

bool uuid_new(char out[UUID_TEXT], Err *err)
{
    unsigned char b[16];
    if (!uuid_random_bytes(b, sizeof(b), err))
        return false;
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40); // version 4
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80); // variant of RFC 9562
    char hex[33];
    str_hex(b, sizeof(b), hex);
    const char *from = hex;
    for (int i = 0; i < 36; i++)
        out[i] = i == 8 || i == 13 || i == 18 || i == 23 ? '-' : *from++;
    out[36] = '\0';
    return true;
}

bool uuid_is_valid(const char *s)
{
    for (int i = 0; i < 36; i++) {
        char c = s[i];
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
        if (dash ? c != '-' : !hex) // also stops at an early NUL
            return false;
    }
    return s[36] == '\0';
}
