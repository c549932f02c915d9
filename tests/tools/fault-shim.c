// A library to be preloaded into the hub, the client, the exporters and the CLI: ends the process just before its n-th
// call of a kind, or lets that call fail. docs/internals/faults.md.
//
// SENDENSE_FAULT_FILE names a file that the test maps as well (tests/it/lib/shim.py). Who is meant, what and when
// stands there, so that one hub serves many tries; the counter is there too, and counts the calls of all threads.
// Nothing happens while `armed` is 0, which is how a story before the one that matters is not counted.

#undef _FORTIFY_SOURCE   // the checked forms have wrappers of their own
#undef _FILE_OFFSET_BITS // and so have the 64-bit ones

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { HUB = 1, CLIENT, EXPORTER, CLI };
enum { WRITE, SYNC, NAME, READ, LOOK, START, ALLOC, KINDS };
enum { KILL = -1, SHORT = -2 }; // else the action is an errno

typedef struct Control {
    _Atomic uint32_t armed;
    uint32_t program;
    uint32_t kind;
    int32_t action;
    uint64_t at; // 1: the first call of the kind; 0: only count
    _Atomic uint64_t seen[KINDS];
    uint32_t hit;
    uint32_t pid; // of the process that was hit
    char call[32];
    uint32_t signal; // what a process of ours crashed with, whenever
    uint32_t crashed;
} Control;

static Control *control;
static uint32_t self;

// ---- who we are

static void on_crash(int number)
{
    control->signal = (uint32_t)number;
    control->crashed = (uint32_t)getpid();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static uint32_t program(void)
{
    static const struct {
        const char *name;
        uint32_t program;
    } known[] = {{"sendense-hub", HUB}, {"sendense-backup-client", CLIENT}, {"sendense", CLI}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(program_invocation_short_name, known[i].name) == 0)
            return known[i].program;
    if (strcmp(program_invocation_short_name, "nbdkit") != 0)
        return 0;
    char line[4096];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof(line));
    if (fd >= 0)
        (void)close(fd);
    static const char plugin[] = "nbdkit-sendense-plugin";
    return n > 0 && memmem(line, (size_t)n, plugin, sizeof(plugin) - 1) ? EXPORTER : 0; // other plugins are the test's
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("SENDENSE_FAULT_FILE");
    uint32_t me = program();
    int fd = path && me ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *p = mmap(NULL, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (p == MAP_FAILED)
        return;
    self = me;
    control = p;
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE};
    for (size_t i = 0; i < sizeof(crashes) / sizeof(crashes[0]); i++)
        (void)signal(crashes[i], on_crash);
}

// ---- the decision: 0 to carry the call out, else the action

static int fault(uint32_t kind, const char *call)
{
    Control *c = control;
    if (!c || !atomic_load(&c->armed) || c->program != self)
        return 0;
    if (atomic_fetch_add(&c->seen[kind], 1) + 1 != c->at || c->kind != kind)
        return 0;
    c->pid = (uint32_t)getpid();
    size_t n = strlen(call);
    memcpy(c->call, call, n < sizeof(c->call) ? n : sizeof(c->call) - 1);
    c->hit = 1;
    if (c->action != KILL)
        return c->action;
    (void)syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) // until the signal is there
        (void)syscall(SYS_pause);
}

static int fault_name(const char *call)
{
    return fault(NAME, call);
}

// Files, sockets, pipes and folders. What wakes threads up (eventfd and the like) has no fault to show, and neither has
// the log.
static int fault_fd(uint32_t kind, int fd, const char *call)
{
    struct stat st;
    if (!control || !atomic_load(&control->armed) || fd == STDERR_FILENO || syscall(SYS_fstat, fd, &st) != 0)
        return 0;
    bool counts = S_ISREG(st.st_mode) || S_ISSOCK(st.st_mode) || S_ISFIFO(st.st_mode) || S_ISDIR(st.st_mode);
    return counts ? fault(kind, call) : 0;
}

// How much of n bytes a short call may move; direct I/O moves whole blocks.
static size_t shorter(int fd, size_t n)
{
    if (n >= 8192)
        return n / 2 / 4096 * 4096;
    return n < 2 || (fcntl(fd, F_GETFL) & O_DIRECT) ? n : n / 2;
}

static bool fails(int f)
{
    if (f <= 0)
        return false;
    errno = f;
    return true;
}

#define NEXT(name)                              \
    static __typeof__(&name) next;              \
    if (!next) {                                \
        void *found_ = dlsym(RTLD_NEXT, #name); \
        memcpy(&next, &found_, sizeof(next));   \
    }

#define PUBLIC __attribute__((visibility("default")))

// ---- reads and writes

#define MOVES(kind, result, name, params, buffer, n_, ...)      \
    PUBLIC result name params                                   \
    {                                                           \
        NEXT(name)                                              \
        int f_ = fault_fd(kind, fd, #name);                     \
        if (fails(f_))                                          \
            return -1;                                          \
        if (f_ == SHORT)                                        \
            n_ = shorter(fd, n_);                               \
        return next(fd, buffer, n_ __VA_OPT__(, ) __VA_ARGS__); \
    }

MOVES(WRITE, ssize_t, write, (int fd, const void *p, size_t n), p, n)
MOVES(WRITE, ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), p, n, at)
MOVES(WRITE, ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t at), p, n, at)
MOVES(WRITE, ssize_t, send, (int fd, const void *p, size_t n, int flags), p, n, flags)
MOVES(WRITE, ssize_t, sendto, (int fd, const void *p, size_t n, int flags, const struct sockaddr *to, socklen_t len), p,
      n, flags, to, len)
MOVES(READ, ssize_t, read, (int fd, void *p, size_t n), p, n)
MOVES(READ, ssize_t, pread, (int fd, void *p, size_t n, off_t at), p, n, at)
MOVES(READ, ssize_t, pread64, (int fd, void *p, size_t n, off64_t at), p, n, at)
MOVES(READ, ssize_t, recv, (int fd, void *p, size_t n, int flags), p, n, flags)
MOVES(READ, ssize_t, recvfrom, (int fd, void *p, size_t n, int flags, struct sockaddr *from, socklen_t *len), p, n,
      flags, from, len)

// With _FORTIFY_SOURCE these are what is called; `size` is the buffer's.
ssize_t __read_chk(int fd, void *p, size_t n, size_t size);
ssize_t __pread_chk(int fd, void *p, size_t n, off_t at, size_t size);
ssize_t __pread64_chk(int fd, void *p, size_t n, off64_t at, size_t size);
ssize_t __recv_chk(int fd, void *p, size_t n, size_t size, int flags);
MOVES(READ, ssize_t, __read_chk, (int fd, void *p, size_t n, size_t size), p, n, size)
MOVES(READ, ssize_t, __pread_chk, (int fd, void *p, size_t n, off_t at, size_t size), p, n, at, size)
MOVES(READ, ssize_t, __pread64_chk, (int fd, void *p, size_t n, off64_t at, size_t size), p, n, at, size)
MOVES(READ, ssize_t, __recv_chk, (int fd, void *p, size_t n, size_t size, int flags), p, n, size, flags)

// Of vectors, a short call moves half of the first piece.
#define MOVES_VECTOR(kind, name, params, v, len, ...)                   \
    PUBLIC ssize_t name params                                          \
    {                                                                   \
        NEXT(name)                                                      \
        int f_ = fault_fd(kind, fd, #name);                             \
        if (fails(f_))                                                  \
            return -1;                                                  \
        if (f_ != SHORT || len < 1)                                     \
            return next(fd, v, len __VA_OPT__(, ) __VA_ARGS__);         \
        struct iovec one_ = {v[0].iov_base, shorter(fd, v[0].iov_len)}; \
        return next(fd, &one_, 1 __VA_OPT__(, ) __VA_ARGS__);           \
    }

MOVES_VECTOR(WRITE, writev, (int fd, const struct iovec *v, int len), v, len)
MOVES_VECTOR(WRITE, pwritev, (int fd, const struct iovec *v, int len, off_t at), v, len, at)
MOVES_VECTOR(WRITE, pwritev64, (int fd, const struct iovec *v, int len, off64_t at), v, len, at)
MOVES_VECTOR(READ, readv, (int fd, const struct iovec *v, int len), v, len)
MOVES_VECTOR(READ, preadv, (int fd, const struct iovec *v, int len, off_t at), v, len, at)
MOVES_VECTOR(READ, preadv64, (int fd, const struct iovec *v, int len, off64_t at), v, len, at)

PUBLIC ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    NEXT(sendmsg)
    int f = fault_fd(WRITE, fd, "sendmsg");
    if (fails(f))
        return -1;
    if (f != SHORT || m->msg_iovlen < 1)
        return next(fd, m, flags);
    struct iovec one = {m->msg_iov[0].iov_base, shorter(fd, m->msg_iov[0].iov_len)};
    struct msghdr less = *m;
    less.msg_iov = &one;
    less.msg_iovlen = 1;
    return next(fd, &less, flags);
}

PUBLIC ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
    NEXT(recvmsg)
    return fails(fault_fd(READ, fd, "recvmsg")) ? -1 : next(fd, m, flags);
}

// ---- calls that are carried out or fail

#define FAILS(kind_and_fd, result, failed, name, params, ...)          \
    PUBLIC result name params                                          \
    {                                                                  \
        NEXT(name)                                                     \
        return fails(kind_and_fd(#name)) ? failed : next(__VA_ARGS__); \
    }

#define WRITES_FD(call) fault_fd(WRITE, fd, call)
#define SYNCS_FD(call) fault_fd(SYNC, fd, call)
#define LOOKS(call) fault(LOOK, call)
#define STARTS(call) fault(START, call)

FAILS(WRITES_FD, int, -1, ftruncate, (int fd, off_t size), fd, size)
FAILS(WRITES_FD, int, -1, ftruncate64, (int fd, off64_t size), fd, size)
FAILS(WRITES_FD, int, -1, fallocate, (int fd, int mode, off_t at, off_t n), fd, mode, at, n)
FAILS(WRITES_FD, int, -1, fallocate64, (int fd, int mode, off64_t at, off64_t n), fd, mode, at, n)

FAILS(SYNCS_FD, int, -1, fsync, (int fd), fd)
FAILS(SYNCS_FD, int, -1, fdatasync, (int fd), fd)
FAILS(SYNCS_FD, int, -1, sync_file_range, (int fd, off64_t at, off64_t n, unsigned flags), fd, at, n, flags)

FAILS(fault_name, int, -1, rename, (const char *from, const char *to), from, to)
FAILS(fault_name, int, -1, renameat2, (int from_fd, const char *from, int to_fd, const char *to, unsigned flags),
      from_fd, from, to_fd, to, flags)
FAILS(fault_name, int, -1, link, (const char *from, const char *to), from, to)
FAILS(fault_name, int, -1, unlink, (const char *path), path)
FAILS(fault_name, int, -1, unlinkat, (int fd, const char *path, int flags), fd, path, flags)
FAILS(fault_name, int, -1, mkdir, (const char *path, mode_t mode), path, mode)
FAILS(fault_name, int, -1, rmdir, (const char *path), path)
FAILS(fault_name, int, -1, bind, (int fd, const struct sockaddr *a, socklen_t n), fd, a, n)

FAILS(LOOKS, int, -1, stat, (const char *path, struct stat *st), path, st)
FAILS(LOOKS, int, -1, stat64, (const char *path, struct stat64 *st), path, st)
FAILS(LOOKS, int, -1, lstat, (const char *path, struct stat *st), path, st)
FAILS(LOOKS, int, -1, lstat64, (const char *path, struct stat64 *st), path, st)
FAILS(LOOKS, int, -1, fstat, (int fd, struct stat *st), fd, st)
FAILS(LOOKS, int, -1, fstat64, (int fd, struct stat64 *st), fd, st)
FAILS(LOOKS, int, -1, statvfs, (const char *path, struct statvfs *st), path, st)
FAILS(LOOKS, int, -1, statvfs64, (const char *path, struct statvfs64 *st), path, st)
FAILS(LOOKS, int, -1, faccessat, (int fd, const char *path, int mode, int flags), fd, path, mode, flags)

// A VM's folder in a repository does not open for as long as the file that the environment names is there.
PUBLIC DIR *opendir(const char *path)
{
    NEXT(opendir)
    const char *held = control && strstr(path, "/ctx-") ? getenv("SENDENSE_FAULT_HOLD") : NULL;
    while (held && syscall(SYS_access, held, F_OK) == 0)
        (void)syscall(SYS_nanosleep, &(struct timespec){.tv_nsec = 10000000}, NULL);
    return fails(fault(LOOK, "opendir")) ? NULL : next(path);
}

FAILS(LOOKS, struct dirent *, NULL, readdir, (DIR * d), d)
FAILS(LOOKS, struct dirent64 *, NULL, readdir64, (DIR * d), d)

FAILS(STARTS, pid_t, -1, fork, (void))
FAILS(STARTS, int, -1, socket, (int domain, int type, int protocol), domain, type, protocol)
FAILS(STARTS, int, -1, connect, (int fd, const struct sockaddr *a, socklen_t n), fd, a, n)
FAILS(STARTS, int, -1, accept4, (int fd, struct sockaddr *a, socklen_t *n, int flags), fd, a, n, flags)
FAILS(STARTS, int, -1, execve, (const char *path, char *const argv[], char *const env[]), path, argv, env)

PUBLIC int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg)
{
    NEXT(pthread_create)
    int e = fault(START, "pthread_create");
    return e > 0 ? e : next(t, a, f, arg);
}

// ---- open: a name where it may make one, else a look

static int fault_open(const char *call, int flags)
{
    return flags & (O_CREAT | __O_TMPFILE) ? fault_name(call) : fault(LOOK, call);
}

#define OPENS(name, params, last, ...)                                                \
    PUBLIC int name params                                                            \
    {                                                                                 \
        NEXT(name)                                                                    \
        va_list ap;                                                                   \
        va_start(ap, last);                                                           \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;       \
        va_end(ap);                                                                   \
        return fails(fault_open(#name, flags)) ? -1 : next(__VA_ARGS__, flags, mode); \
    }

OPENS(open, (const char *path, int flags, ...), flags, path)
OPENS(open64, (const char *path, int flags, ...), flags, path)
OPENS(openat, (int fd, const char *path, int flags, ...), flags, fd, path)
OPENS(openat64, (int fd, const char *path, int flags, ...), flags, fd, path)

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int fd, const char *path, int flags);
int __openat64_2(int fd, const char *path, int flags);
FAILS(LOOKS, int, -1, __open_2, (const char *path, int flags), path, flags)
FAILS(LOOKS, int, -1, __open64_2, (const char *path, int flags), path, flags)
FAILS(LOOKS, int, -1, __openat_2, (int fd, const char *path, int flags), fd, path, flags)
FAILS(LOOKS, int, -1, __openat64_2, (int fd, const char *path, int flags), fd, path, flags)

// ---- memory, by glibc's second names: dlsym() would want memory itself

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

static bool no_memory(const char *call)
{
    int f = fault(ALLOC, call);
    if (f == 0)
        return false;
    errno = ENOMEM;
    return true;
}

PUBLIC void *malloc(size_t n)
{
    return no_memory("malloc") ? NULL : __libc_malloc(n);
}

PUBLIC void *calloc(size_t n, size_t size)
{
    return no_memory("calloc") ? NULL : __libc_calloc(n, size);
}

PUBLIC void *realloc(void *p, size_t n)
{
    return no_memory("realloc") ? NULL : __libc_realloc(p, n);
}

PUBLIC void *aligned_alloc(size_t align, size_t n)
{
    return no_memory("aligned_alloc") ? NULL : __libc_memalign(align, n);
}

PUBLIC int posix_memalign(void **ret, size_t align, size_t n)
{
    void *p = no_memory("posix_memalign") ? NULL : __libc_memalign(align, n);
    if (p)
        *ret = p;
    return p ? 0 : ENOMEM;
}
