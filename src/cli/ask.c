#include "cli/ask.h"

#include "base/file.h"
#include "base/num.h"
#include "cli/terminal.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

static bool take_line(char *text, const char *where, const char *what, Secret *ret, Err *err)
{
    size_t n = strlen(text);
    if (n > 0 && text[n - 1] == '\n')
        text[--n] = '\0';
    if (n > 0 && text[n - 1] == '\r')
        text[--n] = '\0';
    if (n == 0 || strchr(text, '\n'))
        return err_set(err, ERR_USAGE, "%s holds %s; it is to hold the %s, in one line", where,
                       n == 0 ? "nothing" : "several lines", what);
    return secret_set(ret, text, err);
}

static bool from_file(const char *path, const char *what, Secret *ret, Err *err)
{
    char *text = NULL, where[48];
    (void)snprintf(where, sizeof(where), "the %s file", what);
    if (!file_read(path, SECRET_MAX + 2, &text, NULL, err))
        return err_context(err, "%s", where); // by an option, or SENDENSE_TOKEN_FILE
    bool ok = take_line(text, where, what, ret, err);
    explicit_bzero(text, strlen(text));
    free(text);
    return ok;
}

static bool from_fd(const char *number, const char *what, Secret *ret, Err *err)
{
    char text[SECRET_MAX + 3];
    uint64_t fd;
    size_t n = 0;
    if (!num_u64(number, 0, INT32_MAX, &fd, err)) {
        err->code = ERR_USAGE;
        return err_context(err, "option --%s-fd", what);
    }
    ssize_t got = 1;
    while (got > 0 && n < sizeof(text) - 1) {
        got = read((int)fd, text + n, sizeof(text) - 1 - n);
        if (got < 0 && errno == EINTR)
            got = 1;
        else if (got > 0)
            n += (size_t)got;
    }
    text[n] = '\0';
    bool ok = got < 0 ? err_errno(err, errno, "descriptor %s", number)
        : n == sizeof(text) - 1 || strlen(text) != n
        ? err_set(err, ERR_USAGE, "descriptor %s gives no %s: too long, or not text", number, what)
        : take_line(text, "the descriptor", what, ret, err);
    explicit_bzero(text, sizeof(text));
    return ok;
}

bool ask_secret(const char *what, const char *file, const char *fd, Secret *ret, Err *err)
{
    char prompt[32], hint[64];
    if (file && fd)
        return err_set(err, ERR_USAGE, "--%s-file and --%s-fd exclude each other", what, what);
    (void)snprintf(prompt, sizeof(prompt), "%s: ", what);
    (void)snprintf(hint, sizeof(hint), "--%s-file or --%s-fd", what, what);
    return file ? from_file(file, what, ret, err)
        : fd    ? from_fd(fd, what, ret, err)
                : terminal_password(prompt, hint, ret, err);
}
