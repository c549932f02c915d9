// What the hub tells the service manager, where there is one (NOTIFY_SOCKET); else these do nothing.
// docs/internals/service.md. Thread-safe, but for the watchdog's start and stop.
#pragma once

#include "service/hub/hub.h"

void notify_starting(void);
// It listens at url; NULL: it has read its settings anew.
void notify_ready(const char *url);
void notify_reloading(void);
void notify_stopping(void);

// A thread that reports, twice in the time that the manager gives (WATCHDOG_USEC), that the hub works, as long as
// hub_pulse() finds that it does. No thread where no time is given. The hub outlives it.
bool notify_watchdog_start(Hub *hub, Err *err) must_check;
void notify_watchdog_stop(void);
