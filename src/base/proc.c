#include "base/proc.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"
#include "base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_SAFE_FD 10 // above every number that the child will use: no dup2 can hit a source
#define LISTEN_PID_NAME "LISTEN_PID="

#define CMDLINE_MAX (4u << 20)
#define PROCESSES_MAX (4u << 20) // the kernel's limit

static int pidfd_open_(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0U); // close-on-exec by itself
}

// ---- identity ----

// Field 22 of /proc/<pid>/stat. Field 2, the name, may hold blanks and parentheses: count from its end.
static bool read_start_time(pid_t pid, uint64_t *ret, Err *err)
{
    char path[48];
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    cleanup_free char *text = NULL;
    if (!file_read(path, 4096, &text, NULL, err))
        return false;
    char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++) {
        p = strchr(p, ' ');
        if (p)
            p++;
    }
    if (!p)
        return err_set(err, ERR_INTERNAL, "%s is not as proc(5) has it", path);
    p[strcspn(p, " ")] = '\0';
    return num_u64(p, 0, UINT64_MAX, ret, err);
}

// ---- what the child needs, made before the fork ----

typedef struct Launch {
    char *path;
    const char **env;
    char listen_pid[sizeof(LISTEN_PID_NAME) + 3 * sizeof(pid_t)];
    int fds[5];   // in, out, err, listen, secret: all FIRST_SAFE_FD or above
    int error_fd; // the child's end: closes at a successful exec
    int error_read_fd;
    pid_t parent;
} Launch;

typedef struct ExecError {
    int errnum;
    int step;
} ExecError;

enum { STEP_FDS, STEP_SESSION, STEP_DEATHSIG, STEP_EXEC };

static void launch_clear(Launch *l)
{
    free(l->path);
    free(l->env);
    for (size_t i = 0; i < ARRAY_LEN(l->fds); i++)
        mem_cleanup_close(&l->fds[i]);
    mem_cleanup_close(&l->error_fd);
    mem_cleanup_close(&l->error_read_fd);
}

static bool is_program(const char *path)
{
    return !file_is_dir(path) && faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0;
}

static bool find_program(const char *name, char **ret, Err *err)
{
    if (strchr(name, '/'))
        return mem_replace(ret, name, err);
    const char *path = getenv("PATH");
    if (!path)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    while (*path) {
        size_t n = strcspn(path, ":");
        if (n > 0 && *path == '/') { // a relative entry would run what lies in the working folder
            cleanup_free char *candidate = mem_printf(err, "%.*s/%s", (int)n, path, name);
            if (!candidate)
                return false;
            if (is_program(candidate)) {
                *ret = mem_take(candidate);
                return true;
            }
        }
        path += n + (path[n] == ':');
    }
    return err_set(err, ERR_NOT_FOUND, "program %s is not in PATH; is its package installed?", name);
}

static bool same_variable(const char *a, const char *b)
{
    size_t n = strcspn(a, "=");
    return strncmp(a, b, n) == 0 && b[n] == '=';
}

static bool keeps(const char *variable, const char *const *set_env)
{
    // What the service manager says is for this process: LISTEN_… speaks of its descriptors, and only it may report.
    // So are secrets that it was started with; what a child needs of them it is given.
    static const char *const own[] = {
        "LISTEN_FDS=",   LISTEN_PID_NAME,     "LISTEN_FDNAMES=", "NOTIFY_SOCKET=",     "WATCHDOG_USEC=",
        "WATCHDOG_PID=", "SENDENSE_DB_PASS=", "SENDENSE_TOKEN=", "SENDENSE_JOB_TOKEN="};
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        if (str_starts(variable, own[i]))
            return false;
    for (size_t i = 0; set_env && set_env[i]; i++)
        if (same_variable(set_env[i], variable))
            return false;
    return true;
}

static bool make_env(const ProcSpec *spec, Launch *l, Err *err)
{
    size_t n = 0, added = 0;
    while (environ[n])
        n++;
    while (spec->set_env && spec->set_env[added])
        added++;
    l->env = mem_calloc(n + added + 3, sizeof(*l->env), err);
    if (!l->env)
        return false;
    size_t at = 0;
    for (size_t i = 0; i < n; i++)
        if (keeps(environ[i], spec->set_env))
            l->env[at++] = environ[i];
    for (size_t i = 0; i < added; i++)
        l->env[at++] = spec->set_env[i];
    if (spec->listen_fd >= 0) {
        l->env[at++] = "LISTEN_FDS=1";
        l->env[at++] = l->listen_pid; // the number is put in by the child
    }
    return true;
}

static bool lift_fd(int from, int *ret, Err *err)
{
    int fd = fcntl(from, F_DUPFD_CLOEXEC, FIRST_SAFE_FD);
    if (fd < 0)
        return err_errno(err, errno, "cannot pass descriptor %d on", from);
    *ret = fd;
    return true;
}

static bool make_fds(const ProcSpec *spec, Launch *l, Err *err)
{
    cleanup_close int null_fd = -1;
    if (spec->stdin_fd < 0) {
        null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null_fd < 0)
            return err_errno(err, errno, "cannot open /dev/null");
    }
    if (!lift_fd(spec->stdin_fd < 0 ? null_fd : spec->stdin_fd, &l->fds[0], err) ||
        !lift_fd(spec->stdout_fd < 0 ? STDERR_FILENO : spec->stdout_fd, &l->fds[1], err) ||
        !lift_fd(spec->stderr_fd < 0 ? STDERR_FILENO : spec->stderr_fd, &l->fds[2], err) ||
        (spec->listen_fd >= 0 && !lift_fd(spec->listen_fd, &l->fds[3], err)) ||
        (spec->secret_fd > 0 && !lift_fd(spec->secret_fd, &l->fds[4], err)))
        return false;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_errno(err, errno, "cannot make a pipe");
    cleanup_close int write_end = ends[1];
    l->error_read_fd = ends[0];
    return lift_fd(write_end, &l->error_fd, err);
}

// ---- in the child: async-signal-safe calls only, no memory, no errno of libraries ----

static void write_number(char *at, pid_t pid)
{
    char digits[3 * sizeof(pid)];
    size_t n = 0;
    for (pid_t v = pid; v > 0; v /= 10)
        digits[n++] = (char)('0' + v % 10);
    while (n > 0)
        *at++ = digits[--n];
    *at = '\0';
}

static bool child_fds(const Launch *l)
{
    unsigned first = 3;
    for (int i = 0; i < 5; i++) {
        if (l->fds[i] < 0)
            continue;
        if (dup2(l->fds[i], i) < 0) // clears close-on-exec of the copy
            return false;
        if (i >= 3)
            first = (unsigned)i + 1;
    }
    unsigned keep = (unsigned)l->error_fd;
    return close_range(first, keep - 1, 0) == 0 && close_range(keep + 1, ~0U, 0) == 0;
}

static void child_signals(void)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    for (int i = 1; i < NSIG; i++)
        (void)sigaction(i, &dfl,
                        NULL); // SIGKILL, SIGSTOP and libc's own two refuse, and need nothing
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void child_fail(const Launch *l, int step)
{
    ExecError e = {.errnum = errno, .step = step};
    ssize_t n = write(l->error_fd, &e, sizeof(e));
    _exit(n == (ssize_t)sizeof(e) ? 127 : 126);
}

static _Noreturn void child_main(const ProcSpec *spec, Launch *l)
{
    if (!child_fds(l))
        child_fail(l, STEP_FDS);
    if (spec->new_session && setsid() < 0)
        child_fail(l, STEP_SESSION);
    if (spec->die_with_parent) {
        if (prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL) != 0)
            child_fail(l, STEP_DEATHSIG);
        if (getppid() != l->parent) // it died before the kernel had our wish
            _exit(126);
    }
    write_number(l->listen_pid + strlen(LISTEN_PID_NAME), getpid());
    child_signals();
    // execve does not write to its vectors; its prototype predates const.
    execve(l->path, (char *const *)(uintptr_t)spec->argv, (char *const *)(uintptr_t)l->env);
    child_fail(l, STEP_EXEC);
}

// ---- in the parent ----

static bool reap(pid_t pid)
{
    int r;
    do
        r = waitpid(pid, NULL, 0);
    while (r < 0 && errno == EINTR);
    return r == pid;
}

// Waits for the exec, or for what went wrong on the way to it.
static bool await_exec(const ProcSpec *spec, const Launch *l, Err *err)
{
    ExecError e;
    ssize_t n;
    do
        n = read(l->error_read_fd, &e, sizeof(e));
    while (n < 0 && errno == EINTR);
    if (n == 0)
        return true;
    if (n != (ssize_t)sizeof(e))
        return err_errno(err, n < 0 ? errno : EIO, "cannot learn whether %s started", spec->argv[0]);
    static const char *const steps[] = {
        [STEP_FDS] = "its descriptors",
        [STEP_SESSION] = "its session",
        [STEP_DEATHSIG] = "its death signal",
        [STEP_EXEC] = "the program",
    };
    return err_errno(err, e.errnum, "cannot start %s (%s)", spec->argv[0], steps[e.step]);
}

static bool launch(const ProcSpec *spec, Launch *l, Proc *ret_proc, Err *err)
{
    l->parent = getpid();
    memcpy(l->listen_pid, LISTEN_PID_NAME, sizeof(LISTEN_PID_NAME));
    // No handler of ours may run in the child, where it would find a world that is gone.
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = fork();
    if (pid == 0)
        child_main(spec, l);
    int e = errno;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        return err_errno(err, e, "cannot fork for %s", spec->argv[0]);

    mem_cleanup_close(&l->error_fd);
    l->error_fd = -1;
    if (!await_exec(spec, l, err)) {
        (void)kill(pid, SIGKILL); // our child, not reaped yet: its pid cannot be another's
        (void)reap(pid);
        return false;
    }
    Proc p = {.pid = pid, .pidfd = pidfd_open_(pid)};
    if (p.pidfd < 0)
        (void)err_errno(err, errno, "cannot take hold of %s", spec->argv[0]);
    if (p.pidfd < 0 || !read_start_time(pid, &p.start_time, err)) {
        (void)kill(pid, SIGKILL);
        (void)reap(pid);
        proc_clear(&p);
        return false;
    }
    *ret_proc = p;
    return true;
}

bool proc_spawn(const ProcSpec *spec, Proc *ret_proc, Err *err)
{
    if (!spec->argv || !spec->argv[0] || !*spec->argv[0])
        return err_set(err, ERR_INTERNAL, "no program to start");
    Launch l = {.fds = {-1, -1, -1, -1, -1}, .error_fd = -1, .error_read_fd = -1};
    bool ok = find_program(spec->argv[0], &l.path, err) && make_env(spec, &l, err) && make_fds(spec, &l, err) &&
        launch(spec, &l, ret_proc, err);
    launch_clear(&l);
    return ok;
}

// True once the process has ended. Waits at most timeout_ms; -1: for ever.
static bool wait_end(const Proc *p, int timeout_ms)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    for (;;) {
        int left = timeout_ms < 0 ? -1 : (int)MAX(deadline - clock_mono_ms(), 0);
        struct pollfd f = {.fd = p->pidfd, .events = POLLIN};
        int r = poll(&f, 1, left);
        if (r > 0)
            return true;
        if (r == 0 && left == 0)
            return false;
        if (r < 0 && errno != EINTR && errno != EAGAIN && errno != ENOMEM)
            return false; // cannot be with one valid descriptor
    }
}

// waitpid's status of a child that has ended, through the pidfd: an adopted process is not ours to reap, and
// by its number we might meet a younger child of ours.
static int reap_status(const Proc *p)
{
    siginfo_t si = {0};
    int r;
    do
        r = waitid(P_PIDFD, (id_t)p->pidfd, &si, WEXITED);
    while (r != 0 && errno == EINTR);
    if (r != 0)
        return -1;
    if (si.si_code == CLD_EXITED)
        return (si.si_status & 0xff) << 8;
    return (si.si_status & 0x7f) | (si.si_code == CLD_DUMPED ? 0x80 : 0);
}

bool proc_adopt(pid_t pid, uint64_t start_time, Proc *ret_proc, Err *err)
{
    if (pid <= 0)
        return err_set(err, ERR_NOT_FOUND, "no process has the number %d", (int)pid);
    // First the pidfd, then the look: whatever the look finds to be right, the pidfd cannot be younger than it.
    Proc p = {.pid = pid, .start_time = start_time, .pidfd = pidfd_open_(pid)};
    if (p.pidfd < 0 && (errno == ESRCH || errno == EINVAL)) // EINVAL: by now the number of a thread
        return err_set(err, ERR_NOT_FOUND, "process %d is gone", (int)pid);
    if (p.pidfd < 0)
        return err_errno(err, errno, "cannot take hold of process %d", (int)pid);
    uint64_t found = 0;
    Err look = ERR_INIT;
    bool same = read_start_time(pid, &found, &look) && found == start_time;
    if (same && wait_end(&p, 0)) {
        (void)reap_status(&p); // a child of ours whose Proc was dropped would stay as a zombie
        same = false;
    }
    if (!same) {
        proc_clear(&p);
        return err_set(err, ERR_NOT_FOUND, "process %d is gone, or another has its number", (int)pid);
    }
    *ret_proc = p;
    return true;
}

bool proc_alive(const Proc *p)
{
    return p->pidfd >= 0 && !wait_end(p, 0);
}

void proc_signal(const Proc *p, int signo)
{
    if (p->pidfd >= 0)
        (void)syscall(SYS_pidfd_send_signal, p->pidfd, signo, NULL, 0U); // ESRCH: it ended before
}

bool proc_wait(Proc *p, int timeout_ms, int *ret_status, Err *err)
{
    if (p->pidfd < 0)
        return err_set(err, ERR_NOT_FOUND, "no process to wait for");
    if (!wait_end(p, timeout_ms))
        return err_set(err, ERR_TIMEOUT, "process %d has not ended within %d ms", (int)p->pid, timeout_ms);
    int status = reap_status(p);
    proc_clear(p);
    if (ret_status)
        *ret_status = status;
    return true;
}

void proc_stop(Proc *p, int term_ms)
{
    if (p->pidfd < 0)
        return;
    proc_signal(p, SIGTERM);
    if (!wait_end(p, MAX(term_ms, 0))) {
        proc_signal(p, SIGKILL);
        (void)wait_end(p, -1);
    }
    (void)reap_status(p); // how it ended is of no interest to who stopped it
    proc_clear(p);
}

void proc_clear(Proc *p)
{
    mem_cleanup_close(&p->pidfd);
    *p = PROC_NONE;
}

// The first argument that is `arg`, or begins like it. New memory; NULL: there is none, or it is not ours to look at.
static char *find_argument(pid_t pid, const char *arg, bool whole)
{
    char path[48];
    cleanup_free char *text = NULL;
    size_t n = 0;
    Err gone = ERR_INIT;
    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
    if (!file_read(path, CMDLINE_MAX, &text, &n, &gone))
        return NULL;
    for (size_t at = 0; at < n; at += strlen(text + at) + 1) // file_read() ends it with a NUL
        if (whole ? strcmp(text + at, arg) == 0 : strncmp(text + at, arg, strlen(arg)) == 0)
            return mem_strdup(text + at, &gone);
    return NULL;
}

static bool has_argument(pid_t pid, const char *arg)
{
    cleanup_free char *found = find_argument(pid, arg, true);
    return found != NULL;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool proc_find_arguments(const char *prefix, FileList *ret, Err *err)
{
    FileList processes, found = {0};
    if (!file_list("/proc", PROCESSES_MAX, &processes, err))
        return false;
    found.names = mem_calloc(processes.len, sizeof(*found.names), err);
    for (size_t i = 0; found.names && i < processes.len; i++) {
        uint64_t pid;
        Err other = ERR_INIT; // no process
        if (num_u64(processes.names[i], 1, INT32_MAX, &pid, &other) &&
            (found.names[found.len] = find_argument((pid_t)pid, prefix, false)))
            found.len++;
    }
    file_list_clear(&processes);
    if (!found.names)
        return false;
    qsort(found.names, found.len, sizeof(*found.names), compare_texts);
    size_t n = 0;
    for (size_t i = 0; i < found.len; i++)
        if (n > 0 && strcmp(found.names[n - 1], found.names[i]) == 0)
            free(found.names[i]);
        else
            found.names[n++] = found.names[i];
    found.len = n;
    *ret = found;
    return true;
}

void proc_stop_by_argument(const char *arg, int term_ms)
{
    FileList list;
    Err err = ERR_INIT; // what cannot be seen cannot be ended
    if (!file_list("/proc", PROCESSES_MAX, &list, &err))
        return;
    for (size_t i = 0; i < list.len; i++) {
        Proc p = PROC_NONE;
        uint64_t pid, start;
        Err look = ERR_INIT;
        if (!num_u64(list.names[i], 1, INT32_MAX, &pid, &look) || (pid_t)pid == getpid())
            continue;
        // the start time before the look: a number that changes hands in between is not adopted
        if (read_start_time((pid_t)pid, &start, &look) && has_argument((pid_t)pid, arg) &&
            proc_adopt((pid_t)pid, start, &p, &look))
            proc_stop(&p, term_ms);
    }
    file_list_clear(&list);
}
