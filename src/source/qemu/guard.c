#include "source/qemu/guard.h"

#include "base/clock.h"
#include "source/qemu/freeze.h"
#include "source/qemu/sweep.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUARD_QMP_MS 60000
#define GUARD_PAUSE_MS 200

typedef struct GuardState {
    bool frozen, view, server;
    dev_t dev; // of the server's socket
    ino_t ino;
} GuardState;

// Until the pipe ends: with the client, or with guard_stop().
static GuardState listen_to(int fd, const GuardSpec *spec)
{
    GuardState st = {.frozen = false};
    char word;
    for (;;) {
        ssize_t n = read(fd, &word, 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return st;
        struct stat s;
        switch ((GuardWord)word) {
        case GUARD_FROZEN: st.frozen = true; break;
        case GUARD_THAWED: st.frozen = false; break;
        case GUARD_VIEW: st.view = true; break;
        case GUARD_SERVER:
            st.server = lstat(spec->scratch->socket, &s) == 0;
            st.dev = st.server ? s.st_dev : 0;
            st.ino = st.server ? s.st_ino : 0;
            break;
        case GUARD_CLEAN: st.view = st.server = false; break;
        }
    }
}

// True: nothing of the backup is in QEMU (any more).
static bool try_clean(const GuardSpec *spec, const Scratch *server)
{
    Err err = ERR_INIT;
    Qmp *q;
    if (!qmp_open(spec->qmp, QMP_GREETING_MS, sweep_events, &q, &err))
        return err.code == ERR_UNAVAILABLE || err.code == ERR_NOT_FOUND; // QEMU is gone, and all with it
    SweepSpec what = {.prefix = spec->prefix, .bitmap_prefix = spec->bitmap_prefix, .server = server};
    bool done = sweep(q, &what, &err);
    qmp_free(q);
    return done;
}

static void clean_qemu(const GuardSpec *spec, const GuardState *st)
{
    int64_t deadline = clock_mono_ms() + GUARD_QMP_MS;
    Scratch mine = *spec->scratch;
    mine.dev = st->dev;
    mine.ino = st->ino;
    do {
        // A later run may have put its own server in the place of ours.
        bool ours = st->server && scratch_is_same(&mine);
        if (try_clean(spec, ours ? &mine : NULL)) {
            if (ours)
                scratch_unlink(&mine);
            return;
        }
        (void)poll(NULL, 0, GUARD_PAUSE_MS); // another client has the monitor: nothing tells when it leaves
    } while (clock_mono_ms() < deadline);
}

static void become_quiet(int *pipe_fd)
{
    static const int ignored[] = {SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2};
    struct sigaction ign = {.sa_handler = SIG_IGN}, dfl = {.sa_handler = SIG_DFL};
    for (int i = 1; i < NSIG; i++)
        (void)sigaction(i, &dfl, NULL); // some refuse, and need nothing
    for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
        (void)sigaction(ignored[i], &ign, NULL);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setsid();
    (void)!chdir("/"); // no folder is to be kept busy; where that fails, one is
    (void)prctl(PR_SET_NAME, "sendense-guard");
    int lifted = fcntl(*pipe_fd, F_DUPFD, 10); // off the numbers that follow
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 3 && null_fd >= 0; i++)
        (void)dup2(null_fd, i);
    // Above all our copies of the client's connections: they would outlive it.
    *pipe_fd = dup2(lifted, 3);
    (void)close_range(4, ~0U, 0);
}

static _Noreturn void guard_main(int pipe_fd, const GuardSpec *spec)
{
    become_quiet(&pipe_fd);
    GuardState st = listen_to(pipe_fd, spec);
    if (st.frozen && spec->agent)
        (void)freeze_thaw(spec->agent, NULL);
    if (st.view)
        clean_qemu(spec, &st);
    _exit(0);
}

bool guard_start(const GuardSpec *spec, Guard *ret, Err *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_errno(err, errno, "pipe");
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); // no handler of the client's may run in the child
    pid_t pid = fork();
    if (pid == 0)
        guard_main(ends[0], spec);
    int e = errno;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    mem_cleanup_close(&ends[0]);
    if (pid < 0) {
        mem_cleanup_close(&ends[1]);
        return err_errno(err, e, "fork");
    }
    *ret = (Guard){.pipe = ends[1], .pid = pid};
    return true;
}

void guard_tell(const Guard *g, GuardWord word)
{
    char c = (char)word;
    ssize_t n;
    do
        n = write(g->pipe, &c, 1);
    while (n < 0 && errno == EINTR);
}

void guard_stop(Guard *g, bool idle)
{
    if (g->pipe < 0)
        return;
    mem_cleanup_close(&g->pipe);
    if (idle)
        while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    *g = GUARD_NONE;
}
