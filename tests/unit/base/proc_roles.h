// The children of the tests of base/proc.h: the test's own program, with the name of a role as its first
// argument.
#pragma once

#include "unit.h"

#include "base/file.h"
#include "base/num.h"
#include "base/proc.h"
#include "base/str.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOON 20000 // ms: a deadline that only a fault reaches

static char self[4096];

static inline int number_of(const char *text)
{
    Err err = ERR_INIT;
    uint64_t v;
    return num_u64(text, 0, INT32_MAX, &v, &err) ? (int)v : -1;
}

// ---- roles ----

static int role_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return 1;
    for (const struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && number_of(e->d_name) != dirfd(d))
            printf("%s ", e->d_name);
    (void)closedir(d);
    return 0;
}

static int role_listen(void)
{
    const char *fds = getenv("LISTEN_FDS"), *pid = getenv("LISTEN_PID"),
               *names = getenv("LISTEN_FDNAMES");
    int accepting = 0;
    socklen_t n = sizeof(accepting);
    (void)getsockopt(3, SOL_SOCKET, SO_ACCEPTCONN, &accepting, &n);
    printf("fds=%s own=%d names=%s accepting=%d ", fds ? fds : "-",
           pid && number_of(pid) == getpid(), names ? names : "-", accepting);
    return role_fds();
}

static int role_signals(void)
{
    char *text;
    Err err = ERR_INIT;
    if (!file_read("/proc/self/status", 65536, &text, NULL, &err))
        return 1;
    char *block = strstr(text, "SigBlk:"), *ignored = strstr(text, "SigIgn:");
    printf("%.24s %.24s", block ? block : "", ignored ? ignored : "");
    free(text);
    return 0;
}

static _Noreturn void role_ignore_term(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    for (int i = 1; i < NSIG; i++)
        (void)sigaction(i, &ignore, NULL); // all but SIGKILL and SIGSTOP
    (void)!write(STDOUT_FILENO, "r", 1);
    for (;;)
        (void)pause();
}

static _Noreturn void role_pause(void)
{
    (void)!write(STDOUT_FILENO, "r", 1);
    for (;;)
        (void)pause();
}

static int role_flood(int fd)
{
    static const char block[4096] = "flood";
    while (write(fd, block, sizeof(block)) > 0)
        ;
    return 0;
}

static int role_both(size_t bytes)
{
    char block[1000];
    memset(block, 'o', sizeof(block));
    for (size_t i = 0; i < bytes; i += sizeof(block)) {
        (void)!write(STDOUT_FILENO, block, sizeof(block));
        (void)!write(STDERR_FILENO, block, sizeof(block));
    }
    (void)!write(STDERR_FILENO, "the reason", 10);
    return 3;
}

// Leaves a grandchild behind that holds standard output and error open.
static int role_leave_grandchild(void)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            (void)pause();
    printf("%d", (int)pid);
    return 0;
}

// Starts "pause", says its number and start time, and ends when standard input does.
static int role_parent(bool die)
{
    const char *argv[] = {self, "pause", NULL};
    ProcSpec spec = {.argv = argv,
                     .stdin_fd = -1,
                     .stdout_fd = -1,
                     .stderr_fd = -1,
                     .listen_fd = -1,
                     .new_session = true,
                     .die_with_parent = die};
    int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    spec.stdout_fd = null_fd;
    Proc p = PROC_NONE;
    Err err = ERR_INIT;
    if (!proc_spawn(&spec, &p, &err))
        return 1;
    printf("%d %" PRIu64 "\n", (int)p.pid, p.start_time);
    (void)fflush(stdout);
    char c;
    (void)!read(STDIN_FILENO, &c, 1);
    return 0;
}

// The exit status of the role, or -1 where there is none to play. Comes first in main().
static int play(int argc, char **argv)
{
    if (readlink("/proc/self/exe", self, sizeof(self) - 1) <= 0)
        return 98;
    if (argc < 2)
        return -1;
    const char *role = argv[1];
    if (str_eq(role, "fds"))
        return role_fds();
    if (str_eq(role, "listen"))
        return role_listen();
    if (str_eq(role, "signals"))
        return role_signals();
    if (str_eq(role, "ignore-term"))
        role_ignore_term();
    if (str_eq(role, "pause"))
        role_pause();
    if (str_eq(role, "flood"))
        return role_flood(STDOUT_FILENO);
    if (str_eq(role, "flood-errors"))
        return role_flood(STDERR_FILENO);
    if (str_eq(role, "both"))
        return role_both(1000000);
    if (str_eq(role, "leave-grandchild"))
        return role_leave_grandchild();
    if (str_eq(role, "parent"))
        return role_parent(false);
    if (str_eq(role, "parent-die"))
        return role_parent(true);
    if (str_eq(role, "exit"))
        return number_of(argv[2]);
    if (str_eq(role, "kill-self"))
        return kill(getpid(), number_of(argv[2]));
    if (str_eq(role, "close-and-pause")) {
        (void)close(STDOUT_FILENO);
        (void)close(STDERR_FILENO);
        for (;;)
            (void)pause();
    }
    if (str_eq(role, "env")) {
        const char *v = getenv(argv[2]);
        printf("%s", v ? v : "(none)");
        return 0;
    }
    if (str_eq(role, "session")) {
        printf("%d", getsid(0) == getpid());
        return 0;
    }
    if (str_eq(role, "cat")) {
        for (int c; (c = getchar()) != EOF;)
            (void)putchar(c);
        return 0;
    }
    if (str_eq(role, "args")) {
        for (int i = 2; i < argc; i++)
            printf("[%s]", argv[i]);
        return 0;
    }
    return 99;
}

// ---- helpers ----

static inline ProcSpec spec_of(const char *const *argv)
{
    return (ProcSpec){
        .argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .listen_fd = -1};
}

// Runs a role to its end and gives its standard output.
static inline char *output_of(const char *role, const char *arg, const char *const *env)
{
    const char *argv[] = {self, role, arg, NULL};
    Err err = ERR_INIT;
    char *out = NULL;
    int status = -1;
    assert_ok(proc_run(argv, env, SOON, 65536, &out, NULL, &status, &err), &err);
    assert_int_equal(status, 0);
    return out;
}

// It has said that it plays the role: by then it has its command line, which an exec that is through may still lack.
static inline Proc start_ready_with(const char *role, const char *arg)
{
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    const char *argv[] = {self, role, arg, NULL};
    ProcSpec spec = spec_of(argv);
    spec.stdout_fd = ends[1];
    Proc p = PROC_NONE;
    Err err = ERR_INIT;
    assert_ok(proc_spawn(&spec, &p, &err), &err);
    (void)close(ends[1]);
    char c = 0;
    assert_int_equal(read(ends[0], &c, 1), 1);
    assert_int_equal(c, 'r');
    (void)close(ends[0]);
    return p;
}

static inline Proc start_ready(const char *role)
{
    return start_ready_with(role, NULL);
}
