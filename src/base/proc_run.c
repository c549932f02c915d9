// What base/proc.h says of running a program to its end, and of our own place.

#include "base/clock.h"
#include "base/file.h"
#include "base/proc.h"
#include "base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#define TAIL_MAX 4096  // of standard error: its end says why
#define DRAIN_ROUNDS 8 // twice what a pipe holds: all of it, yet no chatterbox outruns the deadline

typedef struct Run {
    Proc proc;
    int out_fd, err_fd; // our ends; -1 once at their end
    StrBuf out;
    bool keep_out;
    char tail[TAIL_MAX];
    size_t tail_len;
} Run;

static void add_tail(Run *r, const char *p, size_t n)
{
    if (n >= TAIL_MAX) {
        p += n - TAIL_MAX;
        n = TAIL_MAX;
    }
    size_t drop = r->tail_len + n > TAIL_MAX ? r->tail_len + n - TAIL_MAX : 0;
    memmove(r->tail, r->tail + drop, r->tail_len - drop);
    memcpy(r->tail + r->tail_len - drop, p, n);
    r->tail_len += n - drop;
}

// Takes what is there now, without waiting for more.
static bool drain(Run *r, int *fd, Err *err)
{
    char buf[16384];
    for (int round = 0; *fd >= 0 && round < DRAIN_ROUNDS; round++) {
        ssize_t n = read(*fd, buf, sizeof(buf));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0)
            return err_errno(err, errno, "cannot read a program's output");
        if (n == 0) {
            (void)close(*fd); // only read
            *fd = -1;
        } else if (fd == &r->err_fd) {
            add_tail(r, buf, (size_t)n);
        } else if (r->keep_out && !str_add_bytes(&r->out, buf, (size_t)n, err)) {
            return false;
        }
        if (n > 0 && (size_t)n < sizeof(buf))
            return true; // it was empty; poll says when there is more
    }
    return true;
}

static bool follow(Run *r, int timeout_ms, Err *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    for (bool ended = false; !ended;) {
        int left = -1;
        if (timeout_ms >= 0) {
            left = (int)MAX(deadline - clock_mono_ms(), 0);
            if (left == 0)
                return err_set(err, ERR_TIMEOUT, "not done within %d ms", timeout_ms);
        }
        struct pollfd f[3] = {
            {.fd = r->proc.pidfd, .events = POLLIN},
            {.fd = r->out_fd, .events = POLLIN}, // -1: poll passes over it
            {.fd = r->err_fd, .events = POLLIN},
        };
        if (poll(f, ARRAY_LEN(f), left) < 0 && errno != EINTR)
            return err_errno(err, errno, "cannot wait for a program");
        // When the program has ended, what it wrote is in the pipes. Their end may come later: somebody
        // it started can hold them open, and is not waited for.
        ended = f[0].revents != 0;
        if ((f[1].revents || ended) && !drain(r, &r->out_fd, err))
            return false;
        if ((f[2].revents || ended) && !drain(r, &r->err_fd, err))
            return false;
    }
    return true;
}

static bool make_pipe(int *ret_read, int *ret_write, Err *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_errno(err, errno, "cannot make a pipe");
    *ret_read = ends[0];
    *ret_write = ends[1];
    int flags = fcntl(ends[0], F_GETFL);
    if (flags < 0 || fcntl(ends[0], F_SETFL, flags | O_NONBLOCK) != 0)
        return err_errno(err, errno, "cannot set a pipe up");
    return true;
}

static bool start(Run *r, const char *const *argv, const char *const *set_env, Err *err)
{
    cleanup_close int out = -1, errors = -1;
    if (!make_pipe(&r->out_fd, &out, err) || !make_pipe(&r->err_fd, &errors, err))
        return false;
    ProcSpec spec = {
        .argv = argv,
        .set_env = set_env,
        .stdin_fd = -1,
        .stdout_fd = out,
        .stderr_fd = errors,
        .listen_fd = -1,
        .die_with_parent = true, // nobody is left to read what it says
    };
    return proc_spawn(&spec, &r->proc, err);
}

static bool finish(Run *r, char **ret_out, char **ret_errors, int *ret_exit, Err *err)
{
    int status = -1;
    if (!proc_wait(&r->proc, -1, &status, err))
        return false;
    if (status == -1)
        return err_set(err, ERR_INTERNAL, "its exit status is lost; SIGCHLD must not be ignored");
    cleanup_free char *errors = NULL;
    if (ret_errors) {
        errors = mem_calloc(r->tail_len + 1, 1, err);
        if (!errors)
            return false;
        memcpy(errors, r->tail, r->tail_len);
    }
    if (ret_out) {
        if (!str_add(&r->out, "", err)) // "" rather than NULL where there was no output
            return false;
        *ret_out = mem_take(r->out.s);
    }
    if (ret_errors)
        *ret_errors = mem_take(errors);
    *ret_exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

bool proc_run(const char *const *argv, const char *const *set_env, int timeout_ms, size_t max,
              char **ret_out, char **ret_errors, int *ret_exit, Err *err)
{
    Run r = {.proc = PROC_NONE,
             .out_fd = -1,
             .err_fd = -1,
             .out = STR_BUF(max),
             .keep_out = ret_out != NULL};
    bool ok = start(&r, argv, set_env, err) && follow(&r, timeout_ms, err) &&
        finish(&r, ret_out, ret_errors, ret_exit, err);
    if (!ok) {
        proc_stop(&r.proc, 0);
        (void)err_context(err, "%s", argv[0]);
    }
    mem_cleanup_close(&r.out_fd);
    mem_cleanup_close(&r.err_fd);
    free(r.out.s);
    return ok;
}

bool proc_fill_standard_fds(Err *err)
{
    for (;;) {
        // Inherited, as the real ones are. Not for writing: whoever prints is told that nobody hears it.
        int fd = open("/dev/null", O_RDONLY);
        if (fd < 0)
            return err_errno(err, errno, "cannot open /dev/null");
        if (fd > STDERR_FILENO) {
            (void)close(fd); // nothing was written
            return true;
        }
    }
}

bool proc_own_folder(char **ret_path, Err *err)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path));
    if (n <= 0 || (size_t)n >= sizeof(path))
        return err_errno(err, n < 0 ? errno : ENAMETOOLONG, "cannot find our own program");
    path[n] = '\0';
    // An upgrade under our feet adds " (deleted)" to the name, never to the folder.
    char *slash = strrchr(path, '/');
    if (!slash)
        return err_set(err, ERR_INTERNAL, "our own program has no folder");
    slash[slash == path ? 1 : 0] = '\0';
    char *copy = mem_strdup(path, err);
    if (!copy)
        return false;
    *ret_path = copy;
    return true;
}

bool proc_boot_id(char out[UUID_TEXT], Err *err)
{
    cleanup_free char *text = NULL;
    if (!file_read("/proc/sys/kernel/random/boot_id", 64, &text, NULL, err))
        return false;
    text[strcspn(text, "\n")] = '\0';
    if (!uuid_is_valid(text))
        return err_set(err, ERR_INTERNAL, "the kernel's boot_id is not a UUID");
    memcpy(out, text, UUID_TEXT);
    return true;
}
