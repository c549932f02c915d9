#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    const char *title;
    int http;
    int exit_status;
    bool retryable;
} err_table[ERR_CODES] = {
    [ERR_NONE] = {"none", "no error", 200, 0, false},
    [ERR_INTERNAL] = {"internal", "internal error", 500, 1, false},
    [ERR_NO_MEMORY] = {"no_memory", "out of memory", 500, 1, true},
    [ERR_USAGE] = {"usage", "wrong usage", 400, 2, false},
    [ERR_INVALID] = {"invalid", "invalid request", 400, 1, false},
    [ERR_UNAUTHORIZED] = {"unauthorized", "token missing", 401, 1, false},
    [ERR_FORBIDDEN] = {"forbidden", "token not accepted", 403, 1, false},
    [ERR_NOT_FOUND] = {"not_found", "not found", 404, 1, false},
    [ERR_METHOD] = {"method", "method not allowed", 405, 1, false},
    [ERR_CONFLICT] = {"conflict", "conflict", 409, 1, false},
    [ERR_BUSY] = {"busy", "busy", 409, 1, true},
    [ERR_EXISTS] = {"exists", "already exists", 409, 1, false},
    [ERR_LIMITED] = {"limited", "too many attempts", 429, 1, true},
    [ERR_TOO_LARGE] = {"too_large", "request too large", 413, 1, false},
    [ERR_UNSUPPORTED] = {"unsupported", "not supported", 501, 1, false},
    [ERR_NO_SPACE] = {"no_space", "no space left", 507, 1, true},
    [ERR_IO] = {"io", "input/output error", 500, 1, false},
    [ERR_DAMAGED] = {"damaged", "stored data is damaged", 422, 3, false},
    [ERR_PROTOCOL] = {"protocol", "peer refused or broke the protocol", 502, 1, false},
    [ERR_UNAVAILABLE] = {"unavailable", "not reachable", 503, 1, true},
    [ERR_TIMEOUT] = {"timeout", "deadline passed", 504, 1, true},
    [ERR_CANCELLED] = {"cancelled", "cancelled", 409, 1, false},
};

// A text that was cut at the ceiling must not end within a character: JSON would refuse all of it.
static void trim_utf8(char *s)
{
    size_t n = strlen(s), start = n;
    while (start > 0 && n - start < 4 && ((unsigned char)s[start - 1] & 0xc0) == 0x80)
        start--;
    if (start == 0)
        return;
    unsigned char lead = (unsigned char)s[start - 1];
    size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (n - start + 1 < want)
        s[start - 1] = '\0';
}

bool err_set(Err *err, ErrCode code, const char *fmt, ...)
{
    if (err->code != ERR_NONE)
        return false;
    err->code = code;
    err->title[0] = '\0';
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(err->details, sizeof(err->details), fmt, ap); // cut at the ceiling on purpose
    va_end(ap);
    trim_utf8(err->details);
    return false;
}

bool err_errno(Err *err, int errnum, const char *fmt, ...)
{
    if (err->code != ERR_NONE)
        return false;
    char text[ERR_DETAILS_MAX - 128]; // room for strerror's words
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    trim_utf8(text);

    ErrCode code = ERR_IO;
    if (errnum == ENOSPC || errnum == EDQUOT)
        code = ERR_NO_SPACE;
    else if (errnum == ENOMEM)
        code = ERR_NO_MEMORY;
    else if (errnum == ENOENT)
        code = ERR_NOT_FOUND;
    else if (errnum == EEXIST)
        code = ERR_EXISTS;
    char buf[128];
    return err_set(err, code, "%s: %s", text, strerror_r(errnum, buf, sizeof(buf)));
}

bool err_no_memory(Err *err)
{
    return err_set(err, ERR_NO_MEMORY, "the system gave no memory");
}

bool err_title(Err *err, const char *title)
{
    (void)snprintf(err->title, sizeof(err->title), "%s", title);
    return false;
}

bool err_context(Err *err, const char *fmt, ...)
{
    if (err->code == ERR_NONE)
        return false;
    char text[ERR_DETAILS_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(text) - 2)
        return false;
    // What the new words push over the ceiling falls off.
    size_t room = sizeof(text) - (size_t)n, old = strnlen(err->details, room - 3);
    memcpy(text + n, ": ", 2);
    memcpy(text + n + 2, err->details, old);
    text[(size_t)n + 2 + old] = '\0';
    trim_utf8(text);
    memcpy(err->details, text, sizeof(text));
    return false;
}

void err_clear(Err *err)
{
    *err = ERR_INIT;
}

const char *err_short(const Err *err)
{
    return err->title[0] ? err->title : err_table[err->code].title;
}

ErrCode err_code(const char *name)
{
    for (int c = 0; c < ERR_CODES; c++)
        if (strcmp(name, err_table[c].name) == 0)
            return (ErrCode)c;
    return ERR_INTERNAL;
}

const char *err_name(ErrCode code)
{
    return err_table[code].name;
}

int err_http(ErrCode code)
{
    return err_table[code].http;
}

int err_exit(ErrCode code)
{
    return err_table[code].exit_status;
}

bool err_retryable(ErrCode code)
{
    return err_table[code].retryable;
}
