#include "wire/child.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CHILD_SAID_MAX 16384 // bytes that are kept of what a child says
#define CHILD_BACKLOG 64
#define CHILD_FAIL_MS 1000
#define CHILD_STOP_MS 2000

struct Child {
    Proc proc;
    int said;      // memfd
    int socket_fd; // O_PATH of the socket, which has no name any more
    char socket[32];
};

// A listening socket, and a descriptor that names it: connect() takes /proc/self/fd/<n> for a path. The name in
// the file system is needed for an instant only.
static bool listen_unnamed(int *ret_listen, int *ret_name, Err *err)
{
    char folder[] = "/tmp/sendense-XXXXXX";
    if (!mkdtemp(folder)) // 0700
        return err_errno(err, errno, "mkdtemp %s", folder);
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/s", folder);
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cleanup_close int name = -1;
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(fd, CHILD_BACKLOG) == 0;
    if (ok) {
        name = open(sa.sun_path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
        ok = name >= 0;
    }
    if (!ok)
        (void)err_errno(err, errno, "a listening socket at %s", sa.sun_path);
    (void)unlink(sa.sun_path); // may not have come to be
    (void)rmdir(folder);
    if (!ok)
        return false;
    *ret_listen = mem_take_fd(&fd);
    *ret_name = mem_take_fd(&name);
    return true;
}

// A file in memory that takes CHILD_SAID_MAX bytes and no more: a child that is never read neither blocks nor
// fills anything.
static bool said_open(int *ret, Err *err)
{
    cleanup_close int fd = memfd_create("sendense-child", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, CHILD_SAID_MAX) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) != 0)
        return err_errno(err, errno, "memfd");
    *ret = mem_take_fd(&fd);
    return true;
}

// In memory, and gone with the child: no name, no argument, no environment has it.
static bool secret_open(const Secret *secret, int *ret, Err *err)
{
    const char *text = secret_reveal(secret);
    cleanup_close int fd = memfd_create("sendense-secret", MFD_CLOEXEC);
    if (fd < 0 || !file_write(fd, text, strlen(text), err) || lseek(fd, 0, SEEK_SET) != 0)
        return err->code != ERR_NONE ? false : err_errno(err, errno, "memfd");
    *ret = mem_take_fd(&fd);
    return true;
}

bool child_start(const char *const *argv, const Secret *secret, Child **ret, Err *err)
{
    Child *c = mem_calloc(1, sizeof(*c), err);
    if (!c)
        return false;
    *c = (Child){.proc = PROC_NONE, .said = -1, .socket_fd = -1};
    cleanup_close int listener = -1, secret_fd = -1;
    bool ok = (!secret || secret_open(secret, &secret_fd, err)) && listen_unnamed(&listener, &c->socket_fd, err) &&
        said_open(&c->said, err);
    if (ok) {
        (void)snprintf(c->socket, sizeof(c->socket), "/proc/self/fd/%d", c->socket_fd);
        // qemu-nbd takes a buffer for nearly every request; left to itself, malloc maps and unmaps each one,
        // which costs a third of its CPU time
        static const char *const keep_memory[] = {"MALLOC_MMAP_THRESHOLD_=268435456",
                                                  "MALLOC_TRIM_THRESHOLD_=536870912", "MALLOC_ARENA_MAX=2", NULL};
        ProcSpec spec = {
            .argv = argv,
            .set_env = keep_memory,
            .stdin_fd = -1,
            .stdout_fd = c->said,
            .stderr_fd = c->said,
            .listen_fd = listener,
            .secret_fd = secret ? secret_fd : 0,
            .new_session = true, // a Ctrl-C is for us, who clean up
            .die_with_parent = true,
        };
        ok = proc_spawn(&spec, &c->proc, err);
    }
    if (!ok) {
        child_stop(c);
        return false;
    }
    *ret = c;
    return true;
}

const char *child_socket(const Child *c)
{
    return c->socket;
}

bool child_alive(const Child *c)
{
    return proc_alive(&c->proc);
}

bool child_said(Child *c, char **ret_text, Err *err)
{
    Err ignored = ERR_INIT; // still there: then it is asked without waiting any longer
    int status;
    (void)!proc_wait(&c->proc, CHILD_FAIL_MS, &status, &ignored);
    char *text = mem_calloc(1, CHILD_SAID_MAX + 1, err);
    if (!text)
        return false;
    if (!file_pread(c->said, text, CHILD_SAID_MAX, 0, err)) {
        free(text);
        return false;
    }
    for (size_t n = strlen(text); n > 0 && text[n - 1] == '\n'; n--)
        text[n - 1] = '\0';
    *ret_text = text;
    return true;
}

void child_stop(Child *c)
{
    if (!c)
        return;
    proc_stop(&c->proc, CHILD_STOP_MS);
    proc_clear(&c->proc);
    mem_cleanup_close(&c->said);
    mem_cleanup_close(&c->socket_fd);
    free(c);
}
