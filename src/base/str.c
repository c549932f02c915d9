#include "base/str.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

bool str_add_bytes(StrBuf *b, const void *p, size_t n, Err *err)
{
    if (n > b->max - b->len)
        return err_set(err, ERR_TOO_LARGE, "text is above its ceiling of %zu bytes", b->max);
    if (b->len + n + 1 > b->cap) {
        size_t cap = MAX(b->len + n + 1, MIN(b->cap * 2, b->max + 1));
        char *s = realloc(b->s, cap);
        if (!s)
            return err_no_memory(err);
        b->s = s;
        b->cap = cap;
    }
    if (n > 0)
        memcpy(b->s + b->len, p, n);
    b->len += n;
    b->s[b->len] = '\0';
    return true;
}

bool str_add(StrBuf *b, const char *s, Err *err)
{
    return str_add_bytes(b, s, strlen(s), err);
}

bool str_addf(StrBuf *b, Err *err, const char *fmt, ...)
{
    cleanup_free char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        text = NULL;
        return err_no_memory(err);
    }
    return str_add_bytes(b, text, (size_t)n, err);
}

void str_clear(StrBuf *b)
{
    free(b->s);
    *b = STR_BUF(b->max);
}

bool str_starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && memcmp(s + n - m, suffix, m) == 0;
}

// Length of the well-formed sequence at p (Unicode 15, table 3-7), or 0.
static size_t utf8_sequence(const unsigned char *p, size_t n)
{
    if (p[0] < 0x80)
        return p[0] ? 1 : 0;
    size_t len;
    unsigned char lo = 0x80, hi = 0xbf;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        len = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef)
        len = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        len = 4;
    else
        return 0;
    if (p[0] == 0xe0)
        lo = 0xa0;
    else if (p[0] == 0xed)
        hi = 0x9f;
    else if (p[0] == 0xf0)
        lo = 0x90;
    else if (p[0] == 0xf4)
        hi = 0x8f;
    if (n < len || p[1] < lo || p[1] > hi)
        return 0;
    for (size_t i = 2; i < len; i++)
        if (p[i] < 0x80 || p[i] > 0xbf)
            return 0;
    return len;
}

bool str_is_utf8(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    while (n > 0) {
        size_t len = utf8_sequence(p, n);
        if (len == 0)
            return false;
        p += len;
        n -= len;
    }
    return true;
}

void str_make_utf8(char *s)
{
    for (size_t left = strlen(s); left > 0;) {
        size_t len = utf8_sequence((const unsigned char *)s, left);
        if (len == 0) {
            *s = '?';
            len = 1;
        }
        s += len;
        left -= len;
    }
}

bool str_has_no_controls(const char *s)
{
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            return false;
        if (*p == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
            return false;
    }
    return true;
}

void str_hex(const void *bytes, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[p[i] >> 4];
        out[2 * i + 1] = digits[p[i] & 15];
    }
    out[2 * n] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool str_unhex(const char *s, void *bytes, size_t n)
{
    if (strlen(s) != 2 * n)
        return false;
    unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++) {
        int hi = hex_value(s[2 * i]), lo = hex_value(s[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        p[i] = (unsigned char)(hi << 4 | lo);
    }
    return true;
}

void str_size(uint64_t bytes, char out[STR_SIZE_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < ARRAY_LEN(units)) {
        v /= 1024;
        u++;
    }
    if (u == 0)
        (void)snprintf(out, STR_SIZE_MAX, "%" PRIu64 " B", bytes);
    else
        (void)snprintf(out, STR_SIZE_MAX, "%.1f %s", v, units[u]);
}
