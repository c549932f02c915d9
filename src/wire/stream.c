#include "wire/stream.h"

#include "base/clock.h"
#include "codec/json.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define CANCEL_MS 100 // how long a wait goes on without a look at cancel
#define READ_STEP 65536

struct Stream {
    int fd;
    bool lost;
    const atomic_bool *cancel;
    char *buffer;
    size_t len, cap;
    // Where the scan for the end of the first value stands
    size_t scanned;
    unsigned depth;
    bool in_string, escaped;
};

static bool lose(Stream *s)
{
    s->lost = true;
    return false;
}

bool stream_open(const char *path, Stream **ret, Err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    size_t n = strlen(path);
    if (n == 0 || n > STREAM_PATH_MAX)
        return err_set(err, ERR_INVALID, "the path of a socket has 1 to %d bytes: %s", STREAM_PATH_MAX, path);
    memcpy(sa.sun_path, path, n);
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, errno, "socket");
    if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0) {
        if (errno == EAGAIN)
            return err_set(err, ERR_BUSY, "%s: others wait there already", path);
        if (errno == ECONNREFUSED)
            return err_set(err, ERR_UNAVAILABLE, "%s: nobody listens there", path);
        return err_errno(err, errno, "%s", path);
    }
    Stream *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return false;
    s->fd = mem_take_fd(&fd);
    *ret = s;
    return true;
}

void stream_set_cancel(Stream *s, const atomic_bool *cancel)
{
    s->cancel = cancel;
}

bool stream_is_lost(const Stream *s)
{
    return s->lost;
}

int stream_fd(const Stream *s)
{
    return s->fd;
}

void stream_free(Stream *s)
{
    if (!s)
        return;
    mem_cleanup_close(&s->fd);
    free(s->buffer);
    free(s);
}

static bool is_cancelled(const Stream *s, Err *err)
{
    if (!s->cancel || !atomic_load(s->cancel))
        return false;
    (void)err_set(err, ERR_CANCELLED, "cancelled");
    return true;
}

// A peer that sends without end must keep us neither beyond the deadline nor from a cancellation.
static bool may_go_on(const Stream *s, int64_t deadline, Err *err)
{
    if (is_cancelled(s, err))
        return false;
    return clock_mono_ms() <= deadline || err_set(err, ERR_TIMEOUT, "no answer in time");
}

// Until the socket is ready, in pieces short enough to notice a cancellation.
static bool await(Stream *s, short events, int64_t deadline, Err *err)
{
    for (;;) {
        if (is_cancelled(s, err))
            return false;
        int64_t left = deadline - clock_mono_ms();
        struct pollfd p = {.fd = s->fd, .events = events};
        int n = poll(&p, 1, (int)MAX(MIN(left, CANCEL_MS), 0));
        if (n > 0)
            return true;
        if (n < 0 && errno != EINTR)
            return err_errno(err, errno, "poll") || lose(s);
        if (left <= 0)
            return err_set(err, ERR_TIMEOUT, "no answer in time");
    }
}

static ssize_t send_some(int to, const char *text, size_t n, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = n};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof(control.bytes);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    return sendmsg(to, &m, MSG_NOSIGNAL);
}

bool stream_send(Stream *s, const char *text, size_t n, int fd, int64_t deadline, Err *err)
{
    if (s->lost)
        return err_set(err, ERR_UNAVAILABLE, "the connection is lost");
    size_t sent = 0;
    while (sent < n) {
        ssize_t r = send_some(s->fd, text + sent, n - sent, fd);
        if (r > 0) {
            sent += (size_t)r;
            fd = -1;
            continue;
        }
        if (r < 0 && errno != EAGAIN && errno != EINTR) {
            s->lost = true;
            return err_set(err, ERR_UNAVAILABLE, "the peer closed the connection");
        }
        if (!await(s, POLLOUT, deadline, err)) {
            s->lost = s->lost || sent > 0; // half a message cannot be taken back
            return false;
        }
    }
    return true;
}

static bool fill(Stream *s, int64_t deadline, Err *err)
{
    if (s->len > STREAM_MESSAGE_MAX)
        return err_set(err, ERR_TOO_LARGE, "a message of more than %zu bytes", STREAM_MESSAGE_MAX) || lose(s);
    if (s->cap - s->len < READ_STEP) {
        size_t cap = MAX(s->cap * 2, (size_t)2 * READ_STEP);
        char *grown = realloc(s->buffer, cap);
        if (!grown)
            return err_no_memory(err) || lose(s);
        s->buffer = grown;
        s->cap = cap;
    }
    for (;;) {
        ssize_t n = read(s->fd, s->buffer + s->len, s->cap - s->len);
        if (n > 0) {
            s->len += (size_t)n;
            return true;
        }
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            s->lost = true;
            return err_set(err, ERR_UNAVAILABLE, "the peer closed the connection");
        }
        if (!await(s, POLLIN, deadline, err))
            return false;
    }
}

static void drop(Stream *s, size_t n)
{
    memmove(s->buffer, s->buffer + n, s->len - n);
    s->len -= n;
    s->scanned = 0;
    s->depth = 0;
    s->in_string = s->escaped = false;
}

// Length of the first value with what stands before it; 0: not all of it is there. A monitor with pretty=on
// breaks lines within a value, so lines say nothing.
static size_t scan(Stream *s)
{
    while (s->scanned < s->len) {
        char c = s->buffer[s->scanned++];
        if (s->in_string) {
            if (s->escaped)
                s->escaped = false;
            else if (c == '\\')
                s->escaped = true;
            else if (c == '"')
                s->in_string = false;
        } else if (c == '"') {
            s->in_string = true;
        } else if (c == '{' || c == '[') {
            s->depth++;
        } else if (c == '}' || c == ']') {
            if (s->depth <= 1)
                return s->scanned;
            s->depth--;
        }
    }
    return 0;
}

bool stream_receive(Stream *s, int64_t deadline, json_t **ret, Err *err)
{
    if (s->lost)
        return err_set(err, ERR_UNAVAILABLE, "the connection is lost");
    size_t n;
    do {
        if (!may_go_on(s, deadline, err))
            return false;
        n = scan(s);
        if (n == 0 && !fill(s, deadline, err))
            return false;
    } while (n == 0);
    json_t *value = NULL;
    Err e = ERR_INIT;
    bool ok = codec_json_parse(s->buffer, n, n, &value, &e) && codec_json_object(value, "the message", &e);
    drop(s, n);
    if (!ok) {
        json_decref(value);
        s->lost = true;
        return err_set(err, e.code == ERR_NO_MEMORY ? e.code : ERR_PROTOCOL, "the peer sent no JSON object: %s",
                       e.details);
    }
    *ret = value;
    return true;
}

bool stream_skip(Stream *s, char mark, int64_t deadline, Err *err)
{
    if (s->lost)
        return err_set(err, ERR_UNAVAILABLE, "the connection is lost");
    for (;;) {
        if (!may_go_on(s, deadline, err))
            return false;
        char *at = s->len > 0 ? memchr(s->buffer, mark, s->len) : NULL;
        if (at) {
            drop(s, (size_t)(at - s->buffer) + 1);
            return true;
        }
        if (s->len > 0)
            drop(s, s->len);
        if (!fill(s, deadline, err))
            return false;
    }
}
