#include "cli/stop.h"

#include "base/clock.h"

#include <poll.h>
#include <signal.h>

#define SLICE_MS 100 // a signal between the look at the flag and poll() is seen this much later
#define PATIENCE 3

static atomic_bool flag;
static atomic_int last, count;

static void on_signal(int signo)
{
    atomic_store(&last, signo);
    atomic_store(&flag, true);
    if (atomic_fetch_add(&count, 1) + 2 < PATIENCE)
        return;
    struct sigaction normal = {.sa_handler = SIG_DFL};
    (void)sigaction(signo, &normal, NULL); // cannot fail: it was caught until now
}

void stop_catch(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction ask = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction before;
        (void)sigaction(signals[i], &ask, &before); // cannot fail: valid signals
        if (before.sa_handler == SIG_IGN)           // nohup, or a shell's background job
            (void)sigaction(signals[i], &ignore, NULL);
    }
    (void)sigaction(SIGPIPE, &ignore, NULL);
}

const atomic_bool *stop_flag(void)
{
    return &flag;
}

int stop_signal(void)
{
    return atomic_load(&flag) ? atomic_load(&last) : 0;
}

void stop_forget(void)
{
    atomic_store(&flag, false);
}

bool stop_wait(int ms)
{
    int64_t until = clock_mono_ms() + ms;
    for (;;) {
        int64_t left = until - clock_mono_ms();
        if (stop_signal() != 0)
            return false;
        if (left <= 0)
            return true;
        (void)poll(NULL, 0, (int)(left < SLICE_MS ? left : SLICE_MS)); // only a wait; EINTR is welcome
    }
}
