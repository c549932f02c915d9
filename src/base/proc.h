// Child processes: argument vectors only, never a shell; every descriptor that is not passed on
// is closed in the child; identity is pid + start time, so that a recycled pid is never killed.
#pragma once

#include "base/file.h"
#include "base/uuid.h"

#include <sys/types.h>

typedef struct Proc {
    pid_t pid;           // 0: none
    uint64_t start_time; // field 22 of /proc/<pid>/stat
    int pidfd;           // -1: none; owned
} Proc;

#define PROC_NONE ((Proc){.pidfd = -1})

typedef struct ProcSpec {
    const char *const *argv;    // argv[0] is looked up in PATH (absolute entries) when it has no slash
    const char *const *set_env; // "NAME=value", NULL-terminated, added to (or over) our own; may be NULL
    int stdin_fd;               // -1: /dev/null
    int stdout_fd;              // -1: our stderr
    int stderr_fd;              // -1: our stderr
    int listen_fd;              // >= 0: passed as descriptor 3 with LISTEN_FDS=1 and LISTEN_PID=<child>
    int secret_fd;              // > 0: passed as descriptor 4, beside a listen_fd; 0: none
    bool new_session;           // setsid(): outlives our terminal and our process group
    bool die_with_parent;       // PR_SET_PDEATHSIG SIGKILL (fires when the calling thread ends)
} ProcSpec;

// Start; the error of a failing exec is reported here (ERR_NOT_FOUND for a missing program).
// Async-signal-safe between fork and exec: callable from any thread.
bool proc_spawn(const ProcSpec *spec, Proc *ret_proc, Err *err) must_check;

// Take hold of a process that another run of us started. ERR_NOT_FOUND if pid is gone or is
// somebody else's by now. A start time counts from the boot: keep proc_boot_id() beside it, and
// adopt nothing of another boot. A child of ours that has ended is gone as well, and is reaped.
bool proc_adopt(pid_t pid, uint64_t start_time, Proc *ret_proc, Err *err) must_check;
bool proc_alive(const Proc *p);
// Send a signal through the pidfd; fine if it is gone.
void proc_signal(const Proc *p, int signo);
// Wait at most timeout_ms (-1: for ever; 0: look). ERR_TIMEOUT if it is still there. For a child
// of ours *ret_status is waitpid's status and it is reaped; for an adopted one it is -1. Afterwards
// *p is PROC_NONE; waiting for PROC_NONE is ERR_NOT_FOUND. ret_status may be NULL.
bool proc_wait(Proc *p, int timeout_ms, int *ret_status, Err *err) must_check;
// SIGTERM, wait term_ms (0: SIGKILL at once after it), SIGKILL, reap. Always succeeds in the end; fine on
// PROC_NONE, which it leaves behind. It waits for as long as the kernel needs (a hung NFS server).
void proc_stop(Proc *p, int term_ms);
void proc_clear(Proc *p); // closes the pidfd; the process goes on
// proc_stop() for every process that has exactly this argument: those that a run of us started, which was killed before
// it could note them. The argument must be one that nobody else can have.
void proc_stop_by_argument(const char *arg, int term_ms);
// The arguments, of whatever processes, that begin like this: what may be given to proc_stop_by_argument(). Each once,
// sorted; what cannot be seen is left out.
bool proc_find_arguments(const char *prefix, FileList *ret, Err *err) must_check;

// Run to the end with a deadline; collects at most max bytes of standard output and the tail of
// standard error (4 KiB). Above max (ERR_TOO_LARGE) or past the deadline (ERR_TIMEOUT; -1: none) the
// child is killed. Exit status in *ret_exit (128 + signal when killed). ret_out may be NULL, and the
// output is then thrown away, however long; ret_errors may be NULL. The child dies with the caller.
// Both texts end with a NUL and are the caller's.
bool proc_run(const char *const *argv, const char *const *set_env, int timeout_ms, size_t max, char **ret_out,
              char **ret_errors, int *ret_exit, Err *err) must_check;

// For main(), first of all: makes 0, 1 and 2 /dev/null where they are closed. A file of ours that got such a number
// would be written into by whatever logs or prints.
bool proc_fill_standard_fds(Err *err) must_check;

// Folder of the running program (/proc/self/exe), e.g. to find its sibling programs.
bool proc_own_folder(char **ret_path, Err *err) must_check;

// The kernel's UUID of this boot. Start times of two boots must not be compared.
bool proc_boot_id(char out[UUID_TEXT], Err *err) must_check;
