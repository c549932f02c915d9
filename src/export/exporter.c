#include "export/exporter.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/str.h"
#include "base/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define START_MS 15000
#define STOP_MS 3000
#define READY_MS 2  // between two looks whether a new one listens
#define LOOK_MS 100 // between two looks whether a call is to end
#define CONFIG_NAME "config.json"
#define CONFIG_ARG "config=%s/" CONFIG_NAME
#define CONTROL_NAME "ctl.sock"

static bool unix_address(const char *path, struct sockaddr_un *ret, Err *err)
{
    if (strlen(path) >= sizeof(ret->sun_path))
        return err_set(err, ERR_USAGE, "socket path %s is longer than %zu bytes; choose a shorter run folder", path,
                       sizeof(ret->sun_path) - 1);
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(ret->sun_path, path, strlen(path) + 1);
    return true;
}

static bool listen_on(const char *path, int *ret_fd, Err *err)
{
    struct sockaddr_un address;
    if (!unix_address(path, &address, err))
        return false;
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, errno, "socket");
    // the folder is 0700: nobody else comes near the socket
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 64) != 0)
        return err_errno(err, errno, "cannot listen on %s", path);
    *ret_fd = mem_take_fd(&fd);
    return true;
}

typedef struct Limit { // of a call
    int64_t deadline;
    const atomic_bool *stop; // may be NULL
} Limit;

static bool wait_fd(int fd, short events, const Limit *limit, Err *err)
{
    for (;;) {
        int64_t left = limit->deadline - clock_mono_ms();
        if (left <= 0)
            return err_set(err, ERR_TIMEOUT, "the exporter did not answer in time");
        if (limit->stop && atomic_load(limit->stop))
            return err_set(err, ERR_CANCELLED, "cancelled while the exporter was at work");
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, (int)MIN(left, LOOK_MS));
        if (n > 0)
            return true;
        if (n < 0 && errno != EINTR)
            return err_errno(err, errno, "poll");
    }
}

bool exporter_connect(const char *path, int timeout_ms, int *ret_fd, Err *err)
{
    struct sockaddr_un address;
    struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 + 1}; // 0: for ever
    if (!unix_address(path, &address, err))
        return false;
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // while the engine seals, calls that were given up fill its queue: the next one would wait in connect()
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0)
        return err_errno(err, errno, "socket");
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
        return err_set(err, errno == EAGAIN ? ERR_TIMEOUT : ERR_UNAVAILABLE, "the exporter %s: %s: %s",
                       errno == EAGAIN ? "does not answer" : "is gone", path, strerrordesc_np(errno));
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        return err_errno(err, errno, "fcntl");
    *ret_fd = mem_take_fd(&fd);
    return true;
}

static bool send_all(int fd, const char *p, size_t n, const Limit *limit, Err *err)
{
    while (n > 0) {
        if (!wait_fd(fd, POLLOUT, limit, err))
            return false;
        ssize_t w = send(fd, p, n, MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN && errno != EINTR)
            return err_set(err, ERR_UNAVAILABLE, "the exporter is gone: %s", strerrordesc_np(errno));
        if (w > 0) {
            p += w;
            n -= (size_t)w;
        }
    }
    return true;
}

static bool receive_line(int fd, const Limit *limit, StrBuf *line, Err *err)
{
    for (;;) {
        char buf[4096];
        if (!wait_fd(fd, POLLIN, limit, err))
            return false;
        ssize_t n = recv(fd, buf, sizeof(buf), 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return err_set(err, ERR_UNAVAILABLE, "the exporter ended without an answer");
        const char *end = memchr(buf, '\n', (size_t)n);
        if (!str_add_bytes(line, buf, end ? (size_t)(end - buf) : (size_t)n, err))
            return false;
        if (end)
            return true;
    }
}

bool exporter_call_until(const char *control, const EngineRequest *req, int timeout_ms, const atomic_bool *stop,
                         EngineAnswer *ret, Err *err)
{
    Limit limit = {.deadline = clock_mono_ms() + timeout_ms, .stop = stop};
    cleanup_close int fd = -1;
    cleanup_free char *text = NULL;
    StrBuf line = STR_BUF(ENGINE_LINE_MAX);
    EngineAnswer answer = {0};
    bool ok = engine_request_encode(req, &text, err) && exporter_connect(control, timeout_ms, &fd, err) &&
        send_all(fd, text, strlen(text), &limit, err) && (str_ends(text, "\n") || send_all(fd, "\n", 1, &limit, err)) &&
        receive_line(fd, &limit, &line, err) && engine_answer_decode(line.s, line.len, &answer, err);
    str_clear(&line);
    if (!ok)
        return false;
    if (!answer.ok)
        return err_set(err, answer.code, "%s", answer.details);
    *ret = answer;
    return true;
}

bool exporter_call(const char *control, const EngineRequest *req, int timeout_ms, EngineAnswer *ret, Err *err)
{
    return exporter_call_until(control, req, timeout_ms, NULL, ret, err);
}

char *exporter_uri(const char *socket, const char *export_name, Err *err)
{
    // both are of our own making: nothing in them needs escaping but a blank or a '%' in the run folder
    StrBuf b = STR_BUF(4096);
    bool ok = str_addf(&b, err, "nbd+unix:///%s?socket=", export_name);
    for (const char *p = socket; ok && *p; p++) {
        bool plain = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
            strchr("/._-~", *p) != NULL;
        ok = plain ? str_add_bytes(&b, p, 1, err) : str_addf(&b, err, "%%%02X", (unsigned char)*p);
    }
    if (!ok)
        str_clear(&b);
    return b.s;
}

// Why the engine ended at its start, in its own words: the last "nbdkit: error: CODE: details" of its log.
static bool engine_failed(const char *folder, Err *err)
{
    static const char mark[] = "nbdkit: error: ";
    Err reading = ERR_INIT; // a log that cannot be read explains nothing
    cleanup_free char *path = file_join(folder, "log", &reading);
    cleanup_free char *text = NULL;
    char *said = NULL, code[32] = "";
    if (path && file_read(path, 1u << 20, &text, NULL, &reading))
        for (char *p = text; (p = strstr(p, mark)); p += sizeof(mark) - 1)
            said = p + sizeof(mark) - 1;
    if (!said)
        return err_set(err, ERR_INTERNAL, "the exporter ended at its start without a word");
    said[strcspn(said, "\n")] = '\0';
    size_t n = strcspn(said, ":");
    if (n < sizeof(code) && said[n] == ':')
        memcpy(code, said, n);
    return err_set(err, err_code(code), "%s", code[0] && err_code(code) != ERR_INTERNAL ? said + n + 2 : said);
}

static bool wait_ready(Exporter *x, Err *err)
{
    int64_t deadline = clock_mono_ms() + START_MS;
    for (;;) {
        Err attempt = ERR_INIT;
        EngineAnswer answer;
        if (exporter_call(x->control, &(EngineRequest){.op = ENGINE_STATUS}, START_MS, &answer, &attempt))
            return true;
        if (attempt.code != ERR_UNAVAILABLE) {
            *err = attempt;
            return false;
        }
        // not listening yet: wait for the child's end, or look again
        int status;
        Err waiting = ERR_INIT;
        if (proc_wait(&x->proc, READY_MS, &status, &waiting))
            return engine_failed(x->folder, err);
        if (clock_mono_ms() > deadline)
            return err_set(err, ERR_TIMEOUT, "the exporter did not start in %d s", START_MS / 1000);
    }
}

static bool spawn(Exporter *x, const char *plugin, Err *err)
{
    cleanup_free char *log_path = file_join(x->folder, "log", err);
    cleanup_free char *config_arg = mem_printf(err, CONFIG_ARG, x->folder);
    cleanup_close int log_fd = -1, listen_fd = -1;
    if (!log_path || !config_arg || !listen_on(x->socket, &listen_fd, err))
        return false;
    log_fd = open(log_path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return err_errno(err, errno, "cannot create %s", log_path);
    // Threads of each connection: with the client's four as many as it has requests in flight. More only cost, each
    // has a buffer of its own.
    const char *argv[] = {"nbdkit", "--foreground", "--log=stderr", "--threads=4", plugin, config_arg, NULL};
    return proc_spawn(&(ProcSpec){.argv = argv,
                                  .stdin_fd = -1,
                                  .stdout_fd = log_fd,
                                  .stderr_fd = log_fd,
                                  .listen_fd = listen_fd,
                                  .new_session = true},
                      &x->proc, err);
}

static void remove_folder(const char *folder)
{
    Err ignored = ERR_INIT; // swept again at the hub's next start
    (void)!file_remove_tree(folder, &ignored);
}

bool exporter_start(const char *run, const char *plugin, const char *label, EngineConfig *config, Exporter *ret,
                    Err *err)
{
    char id[UUID_TEXT];
    cleanup_free char *text = NULL, *config_path = NULL;
    Exporter x = EXPORTER_NONE;
    if (!uuid_new(id, err))
        return false;
    id[8] = '\0';
    bool ok = (x.folder = file_join(run, id, err)) && file_mkdir_p(run, 0700, err) && file_mkdir(x.folder, 0700, err) &&
        (x.socket = file_join(x.folder, "nbd.sock", err)) && (x.control = file_join(x.folder, CONTROL_NAME, err)) &&
        (x.export_name = mem_printf(err, "%s-%s", label, id)) &&
        (config_path = file_join(x.folder, CONFIG_NAME, err)) &&
        mem_replace(&config->export_name, x.export_name, err) && mem_replace(&config->control, x.control, err) &&
        engine_config_encode(config, &text, err) && file_create_durable(config_path, text, strlen(text), 0600, err) &&
        spawn(&x, plugin, err) && wait_ready(&x, err);
    if (!ok) {
        exporter_stop(&x);
        return false;
    }
    *ret = x;
    return true;
}

bool exporter_adopt(int64_t pid, uint64_t start, const char *socket, const char *control, const char *export_name,
                    Exporter *ret, Err *err)
{
    Exporter x = EXPORTER_NONE;
    const char *slash = strrchr(socket, '/');
    bool ok = slash && proc_adopt((pid_t)pid, start, &x.proc, err) && mem_replace(&x.socket, socket, err) &&
        mem_replace(&x.control, control, err) && mem_replace(&x.export_name, export_name, err) &&
        (x.folder = mem_printf(err, "%.*s", (int)(slash - socket), socket));
    if (!ok) {
        exporter_clear(&x);
        return err_set(err, ERR_NOT_FOUND, "the exporter's socket %s has no folder", socket);
    }
    *ret = x;
    return true;
}

void exporter_stop(Exporter *x)
{
    if (x->proc.pid > 0) {
        Err ignored = ERR_INIT; // asked politely first; what does not listen gets a signal
        EngineAnswer answer;
        int status;
        if (exporter_call(x->control, &(EngineRequest){.op = ENGINE_STOP}, 1000, &answer, &ignored))
            (void)!proc_wait(&x->proc, STOP_MS, &status, &ignored);
        proc_stop(&x->proc, STOP_MS);
    }
    if (x->folder)
        remove_folder(x->folder);
    exporter_clear(x);
}

void exporter_kill(Exporter *x)
{
    proc_stop(&x->proc, 0);
    if (x->folder)
        remove_folder(x->folder);
    exporter_clear(x);
}

// The exporter is known by its folder alone, as where a hub was killed between starting and noting it.
static void sweep_folder(const char *folder)
{
    Err memory = ERR_INIT;
    cleanup_free char *config_arg = mem_printf(&memory, CONFIG_ARG, folder);
    remove_folder(folder); // first: one that has not read its configuration yet then ends by itself
    if (config_arg)
        proc_stop_by_argument(config_arg, STOP_MS);
}

void exporter_stop_recorded(int64_t pid, uint64_t start, const char *socket, const char *control)
{
    Exporter x = EXPORTER_NONE;
    Err gone = ERR_INIT;
    if (!socket || !control)
        return;
    if (pid > 0 && exporter_adopt(pid, start, socket, control, "", &x, &gone)) {
        exporter_stop(&x);
        return;
    }
    const char *slash = strrchr(socket, '/');
    Err memory = ERR_INIT;
    cleanup_free char *folder = slash ? mem_printf(&memory, "%.*s", (int)(slash - socket), socket) : NULL;
    if (folder)
        sweep_folder(folder); // also where it is there, and could only not be taken hold of
}

void exporter_clear(Exporter *x)
{
    proc_clear(&x->proc);
    free(x->folder);
    free(x->socket);
    free(x->control);
    free(x->export_name);
    *x = EXPORTER_NONE;
}

#define NAME_CHARS 8 // of a folder below run

static bool is_name(const char *name)
{
    return strlen(name) >= NAME_CHARS && strspn(name, "0123456789abcdef") == NAME_CHARS;
}

// Is there a socket in the folder of this name that is to be kept?
static bool is_kept(const char *run, const char *name, const char *const *sockets, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        const char *rest = sockets[i] + strlen(run);
        if (str_starts(sockets[i], run) && *rest == '/' && strncmp(rest + 1, name, NAME_CHARS) == 0 &&
            rest[1 + NAME_CHARS] == '/')
            return true;
    }
    return false;
}

static bool push_name(FileList *list, const char *name, Err *err)
{
    for (size_t i = 0; i < list->len; i++)
        if (strcmp(list->names[i], name) == 0)
            return true;
    char **more = reallocarray(list->names, list->len + 1, sizeof(*more));
    if (!more)
        return err_no_memory(err);
    list->names = more;
    return (list->names[list->len] = mem_strdup(name, err)) && ++list->len;
}

static bool stray_folders(const char *run, const char *const *keep, size_t keep_len, FileList *found, Err *err)
{
    FileList list;
    if (!file_is_dir(run))
        return true;
    if (!file_list(run, 100000, &list, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < list.len; i++) {
        const char *name = list.names[i];
        if (!is_name(name) || name[NAME_CHARS] || is_kept(run, name, keep, keep_len))
            continue;
        cleanup_free char *folder = file_join(run, name, err);
        ok = folder && (!file_is_dir(folder) || push_name(found, name, err));
    }
    file_list_clear(&list);
    return ok;
}

// Processes that have lost their folder.
static bool stray_processes(const char *run, const char *const *keep, size_t keep_len, FileList *found, Err *err)
{
    FileList list;
    cleanup_free char *prefix = mem_printf(err, "config=%s/", run);
    if (!prefix || !proc_find_arguments(prefix, &list, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < list.len; i++) {
        char name[NAME_CHARS + 1] = "";
        const char *rest = list.names[i] + strlen(prefix);
        if (!is_name(rest) || strcmp(rest + NAME_CHARS, "/" CONFIG_NAME) != 0)
            continue;
        memcpy(name, rest, NAME_CHARS);
        ok = is_kept(run, name, keep, keep_len) || push_name(found, name, err);
    }
    file_list_clear(&list);
    return ok;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool exporter_strays(const char *run, const char *const *keep_sockets, size_t keep_len, FileList *ret_names, Err *err)
{
    FileList found = {0};
    if (!stray_folders(run, keep_sockets, keep_len, &found, err) ||
        !stray_processes(run, keep_sockets, keep_len, &found, err)) {
        file_list_clear(&found);
        return false;
    }
    if (found.len > 0)
        qsort(found.names, found.len, sizeof(*found.names), compare_names);
    *ret_names = found;
    return true;
}

bool exporter_stray_is_read(const char *run, const char *name)
{
    EngineAnswer a;
    Err silent = ERR_INIT; // whoever does not answer serves nobody
    cleanup_free char *control = mem_printf(&silent, "%s/%s/" CONTROL_NAME, run, name);
    return control && exporter_call(control, &(EngineRequest){.op = ENGINE_STATUS}, STOP_MS, &a, &silent) &&
        a.connections > 0;
}

bool exporter_stray_end(const char *run, const char *name, Err *err)
{
    FileList left;
    cleanup_free char *folder = file_join(run, name, err);
    if (!folder)
        return false;
    sweep_folder(folder);
    if (!exporter_strays(run, NULL, 0, &left, err))
        return false;
    bool there = false;
    for (size_t i = 0; i < left.len; i++)
        there = there || strcmp(left.names[i], name) == 0;
    file_list_clear(&left);
    Err why = ERR_INIT;
    if (there && file_remove_tree(folder, &why))
        (void)err_set(&why, ERR_IO, "its process does not end");
    return !there || err_set(err, ERR_IO, "the exporter %s is still there: %s", name, why.details);
}

bool exporter_sweep(const char *run, const char *const *keep_sockets, size_t keep_len, Err *err)
{
    FileList list;
    if (!exporter_strays(run, keep_sockets, keep_len, &list, err))
        return false;
    for (size_t i = 0; i < list.len; i++) {
        cleanup_free char *folder = file_join(run, list.names[i], err);
        if (folder)
            sweep_folder(folder);
    }
    file_list_clear(&list);
    return err->code == ERR_NONE;
}
