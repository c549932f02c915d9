// vsphere-simulator: what a backup client sees of a vCenter, for tests.
//
//     vsphere-simulator --state FILE --folder FOLDER --cert FILE --key FILE --control SOCKET [--port N]
//
// Prints {"port": N} when it listens, and runs until its standard input ends or SIGTERM comes: whoever started it holds
// a pipe, so that nothing is left where a test dies.
#include "simulator.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"

#include <errno.h>
#include <libxml/parser.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

Sim sim = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void no_memory(void)
{
    fputs("vsphere-simulator: no memory\n", stderr);
    _exit(1);
}

void *sim_more(void *array, size_t n, size_t size)
{
    uint8_t *more = array ? realloc(array, (n + 1) * size) : calloc(n + 1, size);
    if (!more)
        no_memory();
    if (array)
        memset(more + n * size, 0, size);
    return more;
}

char *sim_strdup(const char *s)
{
    char *copy = strdup(s);
    if (!copy)
        no_memory();
    return copy;
}

char *sim_printf(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *text = NULL;
    if (vasprintf(&text, fmt, args) < 0)
        no_memory();
    va_end(args);
    return text;
}

void sim_new_uuid(char out[UUID_TEXT])
{
    Err err = ERR_INIT;
    if (!uuid_new(out, &err))
        no_memory();
}

void sim_count(const char *name)
{
    pthread_cond_broadcast(&sim.changed); // somebody may wait for just this call
    for (size_t i = 0; i < sim.n_counts; i++) {
        if (strcmp(sim.counts[i].name, name) == 0) {
            sim.counts[i].n++;
            return;
        }
    }
    Count *count = grow(sim.counts, sim.n_counts);
    snprintf(count->name, sizeof count->name, "%s", name);
    count->n = 1;
}

void sim_wait(int64_t ms)
{
    int64_t until = clock_mono_ms() + ms;
    struct timespec t = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
    uint64_t healed = sim.healed;
    while (!sim.stopping && healed == sim.healed && pthread_cond_timedwait(&sim.changed, &sim.lock, &t) == 0)
        ;
}

typedef struct Options {
    const char *state, *folder, *cert, *key, *control;
    uint64_t port;
} Options;

static bool parse(int argc, char **argv, Options *o, Err *err)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--state") == 0)
            o->state = value;
        else if (strcmp(name, "--folder") == 0)
            o->folder = value;
        else if (strcmp(name, "--cert") == 0)
            o->cert = value;
        else if (strcmp(name, "--key") == 0)
            o->key = value;
        else if (strcmp(name, "--control") == 0)
            o->control = value;
        else if (strcmp(name, "--port") != 0)
            return err_set(err, ERR_USAGE, "no option %s", name);
        else if (!num_u64(value, 0, 65535, &o->port, err))
            return false;
    }
    if (argc % 2 == 0 || !o->state || !o->folder || !o->cert || !o->key || !o->control)
        return err_set(err, ERR_USAGE, "--state, --folder, --cert, --key and --control are needed");
    return true;
}

static bool run(int argc, char **argv, Err *err)
{
    Options o = {0};
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &ends, SFD_CLOEXEC);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&sim.changed, &attributes);
    xmlInitParser();

    if (!parse(argc, argv, &o, err))
        return false;
    sim.folder = sim_strdup(o.folder);
    uint16_t port;
    if (!file_mkdir_p(o.folder, 0700, err) || !state_load(o.state, err) || !http_certificate(o.cert, o.key, err) ||
        !task_start_thread(err) || !http_start("127.0.0.1", (uint16_t)o.port, &port, err) ||
        !control_start(o.control, err))
        return false;
    printf("{\"port\": %u}\n", port);
    fflush(stdout);

    struct pollfd wait[2] = {{.fd = 0, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    char byte;
    do {
        poll(wait, 2, -1);
    } while (!wait[1].revents && !(wait[0].revents && read(0, &byte, 1) <= 0));
    pthread_mutex_lock(&sim.lock);
    sim.stopping = true;
    pthread_cond_broadcast(&sim.changed);
    pthread_mutex_unlock(&sim.lock);
    http_stop();
    unlink(o.control);
    return true;
}

int main(int argc, char **argv)
{
    Err err = ERR_INIT;
    if (!run(argc, argv, &err)) {
        fprintf(stderr, "vsphere-simulator: %s\n", err.details);
        return err_exit(err.code);
    }
    fflush(NULL);
    _exit(0); // nothing is ever freed here, and detached threads run
}
