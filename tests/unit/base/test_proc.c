#include "base/proc_roles.h"

#include <errno.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

// ---- starting ----

static void test_exit_status(void **state)
{
    (void)state;
    static const char *const codes[] = {"0", "1", "77", "255"};
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        const char *argv[] = {self, "exit", codes[i], NULL};
        ProcSpec spec = spec_of(argv);
        Proc p = PROC_NONE;
        Err err = ERR_INIT;
        int status = -1;
        assert_ok(proc_spawn(&spec, &p, &err), &err);
        assert_true(p.pid > 0 && p.pidfd >= 0 && p.start_time > 0);
        assert_ok(proc_wait(&p, SOON, &status, &err), &err);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), number_of(codes[i]));
        assert_int_equal(p.pidfd, -1);
        assert_int_equal(p.pid, 0);
        assert_false(proc_alive(&p));
        assert_fails(proc_wait(&p, 0, &status, &err), &err, ERR_NOT_FOUND);
        proc_stop(&p, 0);
        proc_clear(&p);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); // reaped
        assert_int_equal(errno, ECHILD);
    }
}

static void test_exec_failure_is_reported(void **state)
{
    Err err = ERR_INIT;
    const char *text = unit_path(state, "text"), *folder = unit_path(state, "folder"),
               *junk = unit_path(state, "junk");
    assert_ok(file_create_durable(text, "x", 1, 0600, &err), &err);
    assert_ok(file_create_durable(junk, "\x01\x02", 2, 0700, &err), &err);
    assert_ok(file_mkdir(folder, 0700, &err), &err);
    const struct {
        const char *program;
        ErrCode code;
    } cases[] = {
        {"/no/such/program", ERR_NOT_FOUND},
        {"./no-such-program", ERR_NOT_FOUND},
        {"no-such-program-in-path", ERR_NOT_FOUND},
        {text, ERR_IO},
        {folder, ERR_IO},
        {junk, ERR_IO},
        {"", ERR_INTERNAL},
    };
    int before = unit_open_fds();
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *argv[] = {cases[i].program, NULL};
        ProcSpec spec = spec_of(argv);
        Proc p = {.pid = 4711, .pidfd = -1};
        assert_fails(proc_spawn(&spec, &p, &err), &err, cases[i].code);
        assert_int_equal(p.pid, 4711);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); // nothing is left, not even a zombie
    }
    assert_int_equal(unit_open_fds(), before);
    const char *argv[] = {self, NULL};
    ProcSpec spec = spec_of(argv);
    spec.stdout_fd = 9999;
    Proc p = PROC_NONE;
    assert_fails(proc_spawn(&spec, &p, &err), &err, ERR_IO);
    assert_int_equal(unit_open_fds(), before);
}

static void test_path_lookup(void **state)
{
    Err err = ERR_INIT;
    const char *folder = unit_path(state, "bin"), *old = getenv("PATH");
    cleanup_free char *keep = strdup(old ? old : "");
    assert_ok(file_mkdir(folder, 0700, &err), &err);
    assert_ok(file_mkdir(unit_path(state, "dir"), 0700, &err), &err);
    assert_ok(file_mkdir(unit_path(state, "dir/sh"), 0700, &err),
              &err); // a folder is not a program
    assert_ok(file_create_durable(unit_path(state, "bin/sh"), "x", 1, 0600, &err),
              &err); // nor is this one
    cleanup_free char *path = mem_printf(&err, "%s:%s:::.:/bin", unit_path(state, "dir"), folder);
    assert_int_equal(setenv("PATH", path, 1), 0);
    const char *argv[] = {"sh", "-c", "exit 5", NULL};
    int status = -1;
    assert_ok(proc_run(argv, NULL, SOON, 10, NULL, NULL, &status, &err), &err);
    assert_int_equal(status, 5);
    // The working folder is never searched, whatever PATH says.
    assert_int_equal(setenv("PATH", ":.:", 1), 0);
    cleanup_free char *cwd = getcwd(NULL, 0);
    assert_int_equal(chdir("/bin"), 0);
    assert_fails(proc_run(argv, NULL, SOON, 10, NULL, NULL, &status, &err), &err, ERR_NOT_FOUND);
    assert_int_equal(chdir(cwd), 0);
    assert_int_equal(setenv("PATH", keep, 1), 0);
}

static void test_no_shell(void **state)
{
    (void)state;
    const char *argv[] = {self, "args", "$(id)", "a b", "", "'\";|&", NULL};
    Err err = ERR_INIT;
    char *out = NULL;
    int status;
    assert_ok(proc_run(argv, NULL, SOON, 1000, &out, NULL, &status, &err), &err);
    assert_string_equal(out, "[$(id)][a b][]['\";|&]");
    free(out);
}

static void test_environment(void **state)
{
    (void)state;
    assert_int_equal(setenv("UNIT_KEPT", "kept", 1), 0);
    assert_int_equal(setenv("UNIT_OVER", "old", 1), 0);
    assert_int_equal(setenv("UNIT_OVER_LONGER", "other", 1), 0);
    assert_int_equal(setenv("LISTEN_PID", "1", 1), 0);
    // clients and exporters had the database's password, where the hub had it from its environment
    static const char *const secrets[] = {"SENDENSE_DB_PASS", "SENDENSE_TOKEN", "SENDENSE_JOB_TOKEN"};
    for (size_t i = 0; i < ARRAY_LEN(secrets); i++)
        assert_int_equal(setenv(secrets[i], "sesame", 1), 0);
    const char *env[] = {"UNIT_OVER=new=1", "UNIT_ADDED=added", "SENDENSE_JOB_TOKEN=its own", NULL};
    static const char *const cases[][2] = {
        {"UNIT_KEPT", "kept"},          {"UNIT_OVER", "new=1"},       {"UNIT_OVER_LONGER", "other"},
        {"UNIT_ADDED", "added"},        {"LISTEN_PID", "(none)"},     {"UNIT_NONE", "(none)"},
        {"SENDENSE_DB_PASS", "(none)"}, {"SENDENSE_TOKEN", "(none)"}, {"SENDENSE_JOB_TOKEN", "its own"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        cleanup_free char *out = output_of("env", cases[i][0], env);
        assert_string_equal(out, cases[i][1]);
    }
    assert_string_equal(getenv("UNIT_OVER"), "old");
    assert_int_equal(unsetenv("LISTEN_PID"), 0);
    for (size_t i = 0; i < ARRAY_LEN(secrets); i++)
        assert_int_equal(unsetenv(secrets[i]), 0);
}

static void test_standard_input(void **state)
{
    cleanup_free char *nothing = output_of("cat", NULL, NULL); // /dev/null
    assert_string_equal(nothing, "");
    Err err = ERR_INIT;
    assert_ok(file_create_durable(unit_path(state, "in"), "words", 5, 0600, &err), &err);
    cleanup_close int in = open(unit_path(state, "in"), O_RDONLY | O_CLOEXEC);
    cleanup_close int out = open(unit_path(state, "out"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    const char *argv[] = {self, "cat", NULL};
    ProcSpec spec = spec_of(argv);
    spec.stdin_fd = in;
    spec.stdout_fd = out;
    Proc p = PROC_NONE;
    assert_ok(proc_spawn(&spec, &p, &err), &err);
    assert_ok(proc_wait(&p, SOON, NULL, &err), &err);
    char text[6] = "";
    assert_ok(file_pread(out, text, 5, 0, &err), &err);
    assert_string_equal(text, "words");
}

// A daemon's own 0, 1 and 2 may be closed: then our copies must not land there, where dup2() would do nothing.
static void test_own_input_is_closed(void **state)
{
    Err err = ERR_INIT;
    assert_ok(file_create_durable(unit_path(state, "closed"), "words", 5, 0600, &err), &err);
    cleanup_close int in = open(unit_path(state, "closed"), O_RDONLY | O_CLOEXEC);
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    int saved = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    (void)close(STDIN_FILENO);
    const char *argv[] = {self, "cat", NULL};
    ProcSpec spec = spec_of(argv);
    spec.stdin_fd = in;
    spec.stdout_fd = ends[1];
    Proc p = PROC_NONE;
    bool ok = proc_spawn(&spec, &p, &err);
    if (saved >= 0) {
        assert_int_equal(dup2(saved, STDIN_FILENO), STDIN_FILENO);
        (void)close(saved);
    }
    assert_ok(ok, &err);
    assert_ok(proc_wait(&p, SOON, NULL, &err), &err);
    (void)close(ends[1]);
    char text[6] = "";
    assert_int_equal(read(ends[0], text, 5), 5);
    assert_string_equal(text, "words");
    (void)close(ends[0]);
}

// A leaked descriptor kept an image's lock, and a listening port, for as long as the child lived.
static void test_no_descriptor_leaks(void **state)
{
    (void)state;
    int opened[40];
    for (size_t i = 0; i < ARRAY_LEN(opened); i++) {
        opened[i] = open("/dev/null", O_RDONLY); // not close-on-exec: as a library might leave it
        assert_true(opened[i] >= 0);
    }
    int high = fcntl(opened[0], F_DUPFD, 900);
    assert_true(high >= 900);
    int before = unit_open_fds();
    cleanup_free char *out = output_of("fds", NULL, NULL);
    assert_string_equal(out, "0 1 2 ");
    assert_int_equal(unit_open_fds(), before);
    (void)close(high);
    for (size_t i = 0; i < ARRAY_LEN(opened); i++)
        (void)close(opened[i]);
}

static void test_session(void **state)
{
    (void)state;
    for (int on = 0; on < 2; on++) {
        int ends[2];
        assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
        const char *argv[] = {self, "session", NULL};
        ProcSpec spec = spec_of(argv);
        spec.stdout_fd = ends[1];
        spec.new_session = on;
        Proc p = PROC_NONE;
        Err err = ERR_INIT;
        assert_ok(proc_spawn(&spec, &p, &err), &err);
        assert_ok(proc_wait(&p, SOON, NULL, &err), &err);
        (void)close(ends[1]);
        char c = 0;
        assert_int_equal(read(ends[0], &c, 1), 1);
        assert_int_equal(c, on ? '1' : '0');
        (void)close(ends[0]);
    }
}

static void on_signal(int signo)
{
    (void)signo;
}

// The child of a program that ignored SIGPIPE and blocked SIGTERM could not be stopped politely.
static void test_signals_are_reset(void **state)
{
    (void)state;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, handle = {.sa_handler = on_signal}, old_pipe,
                     old_usr, old_rt;
    assert_int_equal(sigaction(SIGPIPE, &ignore, &old_pipe), 0);
    assert_int_equal(sigaction(SIGRTMAX, &ignore, &old_rt), 0);
    assert_int_equal(sigaction(SIGUSR1, &handle, &old_usr), 0);
    sigset_t set, old, now;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGUSR2);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &set, &old), 0);
    cleanup_free char *out = output_of("signals", NULL, NULL);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &old, &now), 0);
    // 32 and 33 are the C library's own: it lets nobody reset them, and a parent may have left them ignored
    static const char none[] = "SigBlk:\t0000000000000000 SigIgn:\t";
    assert_true(strncmp(out, none, sizeof(none) - 1) == 0);
    assert_true((strtoull(out + sizeof(none) - 1, NULL, 16) & ~(3ULL << 31)) == 0);
    assert_true(sigismember(&now, SIGTERM) == 1 && sigismember(&now, SIGUSR2) == 1 &&
                sigismember(&now, SIGINT) == 0);
    (void)sigaction(SIGPIPE, &old_pipe, NULL);
    (void)sigaction(SIGRTMAX, &old_rt, NULL);
    (void)sigaction(SIGUSR1, &old_usr, NULL);
}

// The socket must come out as descriptor 3 whatever the numbers were before: 3 itself, or 3 taken by another.
static void test_listen_fd(void **state)
{
    (void)state;
    assert_int_equal(setenv("LISTEN_FDS", "7", 1), 0);
    assert_int_equal(setenv("LISTEN_FDNAMES", "other", 1), 0);
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un any = {.sun_family = AF_UNIX}; // an address of the kernel's choice: no file
    assert_int_equal(bind(sock, (struct sockaddr *)&any, sizeof(sa_family_t)), 0);
    assert_int_equal(listen(sock, 1), 0);
    int before = unit_open_fds();
    static const int numbers[] = {-1, 3, 4, 10, 11, 12, 13, 14, 15, 700};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        int ends[2];
        assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
        bool moved = numbers[i] >= 0 &&
            fcntl(numbers[i], F_GETFD) < 0; // leave alone what the runner has open
        int fd = moved ? dup3(sock, numbers[i], O_CLOEXEC) : sock;
        assert_true(fd >= 0);
        const char *argv[] = {self, "listen", NULL};
        ProcSpec spec = spec_of(argv);
        spec.stdout_fd = ends[1];
        spec.listen_fd = fd;
        Proc p = PROC_NONE;
        Err err = ERR_INIT;
        assert_ok(proc_spawn(&spec, &p, &err), &err);
        assert_ok(proc_wait(&p, SOON, NULL, &err), &err);
        char text[256] = "";
        assert_true(read(ends[0], text, sizeof(text) - 1) > 0);
        assert_string_equal(text, "fds=1 own=1 names=- accepting=1 0 1 2 3 ");
        assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC); // ours is as it was
        (void)close(ends[0]);
        (void)close(ends[1]);
        if (moved)
            (void)close(fd);
    }
    assert_int_equal(unit_open_fds(), before);
    (void)close(sock);
    cleanup_free char *out = output_of("listen", NULL, NULL);
    assert_string_equal(out, "fds=- own=0 names=- accepting=0 0 1 2 ");
    assert_int_equal(unsetenv("LISTEN_FDS"), 0);
    assert_int_equal(unsetenv("LISTEN_FDNAMES"), 0);
}

static void *spawn_many(void *arg)
{
    size_t *good = arg;
    for (int i = 0; i < 25; i++) {
        const char *argv[] = {self, "exit", "7", NULL};
        ProcSpec spec = spec_of(argv);
        Proc p = PROC_NONE;
        Err err = ERR_INIT;
        int status = -1;
        if (proc_spawn(&spec, &p, &err) && proc_wait(&p, SOON, &status, &err) &&
            WIFEXITED(status) && WEXITSTATUS(status) == 7)
            (*good)++;
    }
    return NULL;
}

static void test_from_many_threads(void **state)
{
    (void)state;
    int before = unit_open_fds();
    pthread_t t[4];
    size_t good[4] = {0};
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, spawn_many, &good[i]), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        assert_int_equal(pthread_join(t[i], NULL), 0);
        assert_int_equal(good[i], 25);
    }
    assert_int_equal(unit_open_fds(), before);
}

// ---- holding and ending ----

static void test_wait_and_alive(void **state)
{
    (void)state;
    Proc p = start_ready("pause");
    Err err = ERR_INIT;
    int status = 4711;
    assert_true(proc_alive(&p));
    assert_fails(proc_wait(&p, 0, &status, &err), &err, ERR_TIMEOUT);
    assert_fails(proc_wait(&p, 20, &status, &err), &err, ERR_TIMEOUT);
    assert_int_equal(status, 4711);
    assert_true(p.pid > 0 && p.pidfd >= 0);
    proc_signal(&p, SIGUSR1);
    assert_ok(proc_wait(&p, SOON, &status, &err), &err);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGUSR1);
    proc_signal(&p, SIGKILL); // of nobody
}

static void test_stop(void **state)
{
    (void)state;
    int before = unit_open_fds();
    Proc polite = start_ready("pause");
    proc_stop(&polite, SOON);
    assert_int_equal(polite.pid, 0);
    // One that does not listen is killed once its time is up.
    Proc deaf = start_ready("ignore-term");
    pid_t pid = deaf.pid;
    proc_stop(&deaf, 30);
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH);
    Proc at_once = start_ready("ignore-term");
    proc_stop(&at_once, 0);
    Proc ended = start_ready("pause");
    proc_signal(&ended, SIGKILL);
    proc_stop(&ended, SOON);
    Proc none = PROC_NONE;
    proc_stop(&none, SOON);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(unit_open_fds(), before);
}

// Of exactly this argument, not of one that begins or ends like it.
static void test_stop_by_argument(void **state)
{
    (void)state;
    char arg[64], longer[65];
    Err err = ERR_INIT;
    int before = unit_open_fds();
    (void)snprintf(arg, sizeof(arg), "config=/run/%d/config.json", (int)getpid());
    (void)snprintf(longer, sizeof(longer), "%sx", arg);
    Proc other = start_ready_with("pause", longer), one = start_ready_with("pause", arg),
         two = start_ready_with("pause", arg);
    proc_stop_by_argument(arg, SOON);
    assert_false(proc_alive(&one));
    assert_false(proc_alive(&two));
    assert_true(proc_alive(&other));
    assert_fails(proc_wait(&other, 20, NULL, &err), &err, ERR_TIMEOUT);
    proc_stop(&other, SOON);
    proc_clear(&one); // reaped by now
    proc_clear(&two);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(unit_open_fds(), before);
}

static void test_adopt(void **state)
{
    (void)state;
    Proc p = start_ready("pause"), again = PROC_NONE;
    Err err = ERR_INIT;
    int before = unit_open_fds();
    // The pid is there, but it is another process by now.
    assert_fails(proc_adopt(p.pid, p.start_time + 1, &again, &err), &err, ERR_NOT_FOUND);
    assert_fails(proc_adopt(p.pid, p.start_time - 1, &again, &err), &err, ERR_NOT_FOUND);
    assert_fails(proc_adopt(p.pid, 0, &again, &err), &err, ERR_NOT_FOUND);
    assert_fails(proc_adopt(0, p.start_time, &again, &err), &err, ERR_NOT_FOUND);
    assert_fails(proc_adopt(-1, p.start_time, &again, &err), &err, ERR_NOT_FOUND);
    assert_fails(proc_adopt(INT32_MAX, p.start_time, &again, &err), &err, ERR_NOT_FOUND);
    assert_int_equal(again.pidfd, -1);
    assert_true(proc_alive(&p));
    assert_int_equal(unit_open_fds(), before);
    assert_ok(proc_adopt(p.pid, p.start_time, &again, &err), &err);
    assert_true(proc_alive(&again));
    // A zombie has ended: there is nothing to adopt.
    uint64_t start_time = p.start_time;
    pid_t pid = p.pid;
    proc_signal(&p, SIGKILL);
    siginfo_t si;
    assert_int_equal(waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT), 0);
    assert_false(proc_alive(&p));
    Proc zombie = PROC_NONE;
    assert_fails(proc_adopt(pid, start_time, &zombie, &err), &err, ERR_NOT_FOUND);
    // A child that is known by its record alone has nobody else who would reap it.
    assert_int_equal(waitpid(pid, NULL, WNOHANG), -1);
    assert_ok(proc_wait(&p, SOON, NULL, &err), &err);
    // Reaped through one hold, the other knows.
    int status = 0;
    assert_ok(proc_wait(&again, SOON, &status, &err), &err);
    assert_int_equal(status, -1);
    assert_fails(proc_adopt(pid, start_time, &zombie, &err), &err, ERR_NOT_FOUND);
}

static void *tell_tid(void *arg)
{
    int *ends = arg;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    (void)!write(ends[1], &tid, sizeof(tid));
    char c;
    (void)!read(ends[2], &c, 1); // until the test is through
    return NULL;
}

// A pid on record may have become the number of somebody's thread.
static void test_adopt_refuses_a_thread(void **state)
{
    (void)state;
    int ends[4];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_int_equal(pipe2(ends + 2, O_CLOEXEC), 0);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, tell_tid, ends), 0);
    pid_t tid = 0;
    assert_int_equal(read(ends[0], &tid, sizeof(tid)), sizeof(tid));
    Err err = ERR_INIT;
    Proc p = PROC_NONE;
    assert_fails(proc_adopt(tid, 1, &p, &err), &err, ERR_NOT_FOUND);
    (void)close(ends[3]);
    assert_int_equal(pthread_join(t, NULL), 0);
    for (int i = 0; i < 3; i++)
        (void)close(ends[i]);
}

// Starts a parent that starts a child; gives the child, adopted, and lets the parent end.
static Proc orphan_of(const char *role)
{
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const char *argv[] = {self, role, NULL};
    ProcSpec spec = spec_of(argv);
    spec.stdin_fd = in[0];
    spec.stdout_fd = out[1];
    Proc parent = PROC_NONE, child = PROC_NONE;
    Err err = ERR_INIT;
    assert_ok(proc_spawn(&spec, &parent, &err), &err);
    (void)close(in[0]);
    (void)close(out[1]);
    char line[64] = "";
    assert_true(read(out[0], line, sizeof(line) - 1) > 0);
    char *blank = strchr(line, ' ');
    assert_non_null(blank);
    *blank = '\0';
    blank[1 + strcspn(blank + 1, "\n")] = '\0';
    uint64_t start_time = 0;
    assert_ok(num_u64(blank + 1, 1, UINT64_MAX, &start_time, &err), &err);
    assert_ok(proc_adopt(number_of(line), start_time, &child, &err), &err);
    assert_true(proc_alive(&child));
    (void)close(in[1]);
    int status;
    assert_ok(proc_wait(&parent, SOON, &status, &err), &err);
    assert_int_equal(status, 0);
    (void)close(out[0]);
    return child;
}

static void test_outlives_its_parent(void **state)
{
    (void)state;
    Proc p = orphan_of("parent");
    Err err = ERR_INIT;
    assert_fails(proc_wait(&p, 20, NULL, &err), &err, ERR_TIMEOUT);
    pid_t pid = p.pid;
    uint64_t start_time = p.start_time;
    proc_clear(&p); // we let go, it goes on
    assert_ok(proc_adopt(pid, start_time, &p, &err), &err);
    proc_stop(&p, SOON);
    assert_fails(proc_adopt(pid, start_time, &p, &err), &err, ERR_NOT_FOUND);
}

static void test_dies_with_its_parent(void **state)
{
    (void)state;
    Proc p = orphan_of("parent-die");
    Err err = ERR_INIT;
    int status = 0;
    assert_ok(proc_wait(&p, SOON, &status, &err), &err);
    assert_int_equal(status, -1); // not our child: how it ended is not ours to know
}

int main(int argc, char **argv)
{
    int status = play(argc, argv);
    if (status >= 0)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exit_status),
        cmocka_unit_test(test_exec_failure_is_reported),
        cmocka_unit_test(test_path_lookup),
        cmocka_unit_test(test_no_shell),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_standard_input),
        cmocka_unit_test(test_own_input_is_closed),
        cmocka_unit_test(test_no_descriptor_leaks),
        cmocka_unit_test(test_session),
        cmocka_unit_test(test_signals_are_reset),
        cmocka_unit_test(test_listen_fd),
        cmocka_unit_test(test_from_many_threads),
        cmocka_unit_test(test_wait_and_alive),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_by_argument),
        cmocka_unit_test(test_adopt),
        cmocka_unit_test(test_adopt_refuses_a_thread),
        cmocka_unit_test(test_outlives_its_parent),
        cmocka_unit_test(test_dies_with_its_parent),
    };
    return cmocka_run_group_tests(tests, unit_folder_setup, unit_folder_teardown);
}
