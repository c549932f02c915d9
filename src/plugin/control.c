#include "plugin/control.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PEER_MS 10000 // a peer that says nothing, or does not read, for so long is left
#define GRACE_MS 1000 // clients may leave by themselves after a stop, before their sockets are shut
#define FORCE_MS 5000 // and then may read their last replies
#define STEP_MS 100

struct Control {
    char *path;
    ControlAnswer answer;
    const atomic_uint *connections;
    int listen_fd, end_fd; // end_fd: an eventfd, readable when the thread is to end
    bool bound, started;
    pthread_t thread;
};

bool control_open(const char *path, ControlAnswer answer, const atomic_uint *connections, Control **ret, Err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof addr.sun_path)
        return err_set(err, ERR_INVALID, "the control socket's path has more than %zu bytes", sizeof addr.sun_path - 1);
    memcpy(addr.sun_path, path, strlen(path));
    Control *c = mem_calloc(1, sizeof *c, err);
    if (!c)
        return false;
    c->answer = answer;
    c->connections = connections;
    c->end_fd = eventfd(0, EFD_CLOEXEC);
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    c->path = mem_strdup(path, err);
    bool ok = c->path != NULL;
    if (ok && (c->end_fd < 0 || c->listen_fd < 0))
        ok = err_errno(err, errno, "cannot make the control socket");
    if (ok) {
        mode_t before = umask(077);
        c->bound = bind(c->listen_fd, (struct sockaddr *)&addr, sizeof addr) == 0;
        int errnum = errno;
        (void)umask(before); // cannot fail
        ok = c->bound || err_errno(err, errnum, "cannot bind %s", path);
    }
    if (ok && listen(c->listen_fd, 4) != 0)
        ok = err_errno(err, errno, "cannot listen on %s", path);
    if (!ok) {
        control_free(c);
        return false;
    }
    *ret = c;
    return true;
}

static void answer_error(EngineAnswer *a, const Err *err)
{
    *a = (EngineAnswer){.code = err->code};
    memcpy(a->details, err->details, sizeof a->details);
}

static bool send_all(int fd, const char *p, Err *err)
{
    int64_t deadline = clock_mono_ms() + PEER_MS;
    for (size_t n = strlen(p); n > 0;) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            p += sent;
            n -= (size_t)sent;
            continue;
        }
        int64_t left = deadline - clock_mono_ms();
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return err_errno(err, errno, "control");
        struct pollfd pfd = {.fd = fd, .events = POLLOUT};
        if (left <= 0 || poll(&pfd, 1, (int)left) == 0)
            return err_set(err, ERR_TIMEOUT, "control: the peer does not read");
    }
    return true;
}

// The next line, without its end. False: nothing more from this peer.
static bool read_line(const Control *c, int fd, char *buffer, size_t *used, size_t *ret_length)
{
    int64_t deadline = clock_mono_ms() + PEER_MS;
    for (;;) {
        const char *end = memchr(buffer, '\n', *used);
        if (end) {
            *ret_length = (size_t)(end - buffer);
            return true;
        }
        struct pollfd fds[] = {
            {.fd = fd, .events = POLLIN}, {.fd = c->end_fd, .events = POLLIN}, {.fd = c->listen_fd, .events = POLLIN}};
        int64_t left = deadline - clock_mono_ms();
        int n = left <= 0 ? 0 : poll(fds, 3, (int)left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || fds[1].revents != 0 || *used == ENGINE_LINE_MAX)
            return false;
        if (fds[0].revents == 0)
            return false; // somebody newer waits, and this one says nothing
        ssize_t got = recv(fd, buffer + *used, ENGINE_LINE_MAX - *used, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0)
            return false;
        *used += (size_t)got;
    }
}

// nbdkit waits for its clients without limit, and an idle one never leaves (it has no call to cut them):
// their sockets are shut. Not ours, not a listening one, and not what stands for standard error.
static void shut_clients(const Control *c, int how)
{
    FileList fds = {0};
    Err err = ERR_INIT;
    if (!file_list("/proc/self/fd", 65536, &fds, &err))
        return; // without /proc the hub has to kill
    for (size_t i = 0; i < fds.len; i++) {
        uint64_t fd;
        int value = 0;
        socklen_t n = sizeof value;
        err_clear(&err);
        if (!num_u64(fds.names[i], 3, INT32_MAX, &fd, &err) || (int)fd == c->listen_fd)
            continue;
        if (getsockopt((int)fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &n) != 0 || value != 0)
            continue;
        if (getsockopt((int)fd, SOL_SOCKET, SO_TYPE, &value, &n) == 0 && value == SOCK_STREAM)
            (void)shutdown((int)fd, how); // fine if it is gone by now
    }
    file_list_clear(&fds);
}

static void stop(const Control *c)
{
    nbdkit_shutdown();
    for (int waited = 0;; waited += STEP_MS) {
        struct pollfd pfd = {.fd = c->end_fd, .events = POLLIN};
        if (poll(&pfd, 1, STEP_MS) > 0)
            return;
        if (waited >= GRACE_MS || atomic_load(c->connections) == 0)
            shut_clients(c, waited >= GRACE_MS + FORCE_MS ? SHUT_RDWR : SHUT_RD);
    }
}

// One peer, request by request. True: it asked to stop.
static bool serve(const Control *c, int fd, char *buffer)
{
    size_t used = 0, length;
    while (read_line(c, fd, buffer, &used, &length)) {
        Err err = ERR_INIT;
        EngineRequest request = {0};
        EngineAnswer answer = {.ok = true};
        if (!engine_request_decode(buffer, length, &request, &err))
            answer_error(&answer, &err);
        else if (request.op != ENGINE_STOP)
            c->answer(&request, &answer);
        bool stopping = err.code == ERR_NONE && request.op == ENGINE_STOP;
        used -= length + 1;
        memmove(buffer, buffer + length + 1, used);
        cleanup_free char *line = NULL;
        err_clear(&err);
        bool ok = engine_answer_encode(&answer, &line, &err) && send_all(fd, line, &err);
        if (stopping)
            return true;
        if (!ok) {
            nbdkit_error("%s", err.details);
            return false;
        }
    }
    return false;
}

static void *run(void *arg)
{
    const Control *c = arg;
    static char buffer[ENGINE_LINE_MAX];
    bool stopping = false;
    while (!stopping) {
        struct pollfd fds[] = {{.fd = c->end_fd, .events = POLLIN}, {.fd = c->listen_fd, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return NULL;
        if (fds[0].revents != 0)
            return NULL;
        if (fds[1].revents == 0)
            continue;
        int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue; // the peer left again
        stopping = serve(c, fd, buffer);
        (void)close(fd); // nothing is lost: the answer was sent, or the peer is left
    }
    stop(c);
    return NULL;
}

bool control_start(Control *c, Err *err)
{
    int r = pthread_create(&c->thread, NULL, run, c);
    c->started = r == 0;
    return c->started || err_errno(err, r, "cannot start the control thread");
}

void control_free(Control *c)
{
    if (!c)
        return;
    if (c->started) {
        (void)eventfd_write(c->end_fd, 1); // cannot fail: the counter is 0
        pthread_join(c->thread, NULL);
    }
    if (c->bound)
        (void)unlink(c->path); // the hub removes the folder anyway
    if (c->listen_fd >= 0)
        (void)close(c->listen_fd);
    if (c->end_fd >= 0)
        (void)close(c->end_fd);
    free(c->path);
    free(c);
}
