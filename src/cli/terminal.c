#include "cli/terminal.h"

#include "base/file.h"
#include "base/str.h"
#include "cli/stop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#define LINE_MAX_BYTES (SECRET_MAX + 2)
#define SLICE_MS 100 // a signal is seen this much later

static bool open_terminal(const char *hint, int *ret, Err *err)
{
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_set(err, ERR_USAGE, "there is no terminal to ask on; HINT: %s", hint);
    *ret = fd;
    return true;
}

// A line without its end. The terminal gives whole lines.
static bool read_line(int fd, char line[LINE_MAX_BYTES], Err *err)
{
    size_t n = 0;
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int rc = poll(&p, 1, SLICE_MS);
        if (stop_signal() != 0)
            return err_set(err, ERR_CANCELLED, "stopped by a signal");
        if (rc <= 0)
            continue; // EINTR, or nothing yet
        ssize_t got = read(fd, line + n, LINE_MAX_BYTES - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, errno, "reading from the terminal");
        n += (size_t)got;
        line[n] = '\0';
        char *end = strchr(line, '\n');
        if (end) {
            *end = '\0';
            return true;
        }
        if (got == 0)
            return err_set(err, ERR_CANCELLED, "the terminal ended without an answer");
        if (n == LINE_MAX_BYTES - 1)
            return err_set(err, ERR_TOO_LARGE, "the answer is longer than %d bytes", SECRET_MAX);
    }
}

bool terminal_password(const char *prompt, const char *hint, Secret *ret, Err *err)
{
    cleanup_close int fd = -1;
    char line[LINE_MAX_BYTES];
    struct termios before;
    if (!open_terminal(hint, &fd, err))
        return false;
    if (tcgetattr(fd, &before) != 0)
        return err_errno(err, errno, "/dev/tty");
    struct termios silent = before;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    silent.c_lflag |= ICANON;
    if (tcsetattr(fd, TCSAFLUSH, &silent) !=
        0) // before the prompt: what is typed after it is neither shown nor dropped
        return err_errno(err, errno, "/dev/tty");
    bool ok = file_write(fd, prompt, strlen(prompt), err) && read_line(fd, line, err) && secret_set(ret, line, err);
    explicit_bzero(line, sizeof(line));
    (void)tcsetattr(fd, TCSAFLUSH, &before); // there is nothing to do where it fails
    Err ignored = ERR_INIT;
    (void)!file_write(fd, "\n", 1, &ignored); // only the look of it
    return ok && (secret_is_set(ret) || err_set(err, ERR_CANCELLED, "no password was given"));
}

bool terminal_confirm(const char *question, const char *hint, bool *ret, Err *err)
{
    cleanup_close int fd = -1;
    char line[LINE_MAX_BYTES];
    if (!open_terminal(hint, &fd, err) || !file_write(fd, question, strlen(question), err) || !read_line(fd, line, err))
        return false;
    *ret = str_eq(line, "yes");
    return true;
}
