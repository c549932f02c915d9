#include "cli/text.h"

#include "base/clock.h"

#include <inttypes.h>
#include <wchar.h>

// The character at s: its bytes, 0 if it is broken or not to be shown.
static size_t character(const char *s, wchar_t *ret)
{
    unsigned char lead = (unsigned char)s[0];
    size_t n = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    char one[5] = {0};
    if (strnlen(s, n) < n)
        return 0;
    memcpy(one, s, n);
    if (!str_is_utf8(one, n) || !str_has_no_controls(one))
        return 0;
    static const unsigned char mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t code = (uint32_t)(lead & mask[n]);
    for (size_t i = 1; i < n; i++)
        code = code << 6 | ((unsigned char)s[i] & 0x3f);
    // What turns the direction of writing around can make a name look like another
    if ((code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069))
        return 0;
    *ret = (wchar_t)code;
    return n;
}

size_t text_width(const char *s)
{
    size_t width = 0;
    while (*s) {
        wchar_t wide;
        size_t n = character(s, &wide);
        int columns = n == 0 ? 1 : wcwidth(wide);
        width += columns < 0 ? 1 : (size_t)columns;
        s += n == 0 ? 1 : n;
    }
    return width;
}

bool text_add_clean(StrBuf *b, const char *s, Err *err)
{
    while (*s) {
        wchar_t wide;
        size_t n = character(s, &wide);
        if (!(n == 0 ? str_add(b, "?", err) : str_add_bytes(b, s, n, err)))
            return false;
        s += n == 0 ? 1 : n;
    }
    return str_add(b, "", err);
}

void text_print_clean(FILE *f, const char *s)
{
    while (*s) {
        wchar_t wide;
        size_t n = character(s, &wide);
        if (n == 0)
            (void)fputc('?', f); // main looks at the stream's error before it ends
        else
            (void)fwrite(s, 1, n, f);
        s += n == 0 ? 1 : n;
    }
}

void text_time(const char *rfc3339, char out[TEXT_TIME])
{
    int64_t us;
    Err bad = ERR_INIT;
    char whole[CLOCK_TEXT];
    if (!rfc3339 || !*rfc3339 || !clock_parse(rfc3339, &us, &bad)) {
        (void)snprintf(out, TEXT_TIME, "-");
        return;
    }
    clock_format(us, whole);
    (void)snprintf(out, TEXT_TIME, "%.10s %.8s", whole, whole + 11); // fits: 19 characters
}

void text_duration(uint64_t seconds, char out[TEXT_DURATION])
{
    uint64_t days = seconds / 86400, hours = seconds / 3600 % 24, minutes = seconds / 60 % 60, rest = seconds % 60;
    if (days > 0)
        (void)snprintf(out, TEXT_DURATION, "%" PRIu64 "d %02u:%02u:%02u", MIN(days, 99999999), (unsigned)hours,
                       (unsigned)minutes, (unsigned)rest);
    else if (hours > 0)
        (void)snprintf(out, TEXT_DURATION, "%u:%02u:%02u", (unsigned)hours, (unsigned)minutes, (unsigned)rest);
    else
        (void)snprintf(out, TEXT_DURATION, "%u:%02u", (unsigned)minutes, (unsigned)rest);
}

void text_percent(uint64_t done, uint64_t size, char out[TEXT_PERCENT])
{
    if (size == 0) {
        (void)snprintf(out, TEXT_PERCENT, "-");
        return;
    }
    unsigned percent = done >= size ? 100 : (unsigned)((double)done * 100.0 / (double)size);
    (void)snprintf(out, TEXT_PERCENT, "%u%%", done < size ? MIN(percent, 99) : 100);
}

char *text_shell(const char *name, const char *value, Err *err)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/:@%+=,";
    StrBuf b = STR_BUF(8192);
    bool quote = value[0] == '\0' || value[strspn(value, plain)] != '\0';
    bool fine = str_addf(&b, err, "%s=%s", name, quote ? "'" : "");
    for (const char *p = value; fine && *p; p++)
        fine = *p == '\'' ? str_add(&b, "'\\''", err) : str_add_bytes(&b, p, 1, err);
    if (!fine || !str_add(&b, quote ? "'" : "", err)) {
        str_clear(&b);
        return NULL;
    }
    return b.s;
}
