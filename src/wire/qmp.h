// A client of QEMU's monitor (QMP, docs/interop/qmp-spec.rst of QEMU) on a unix socket. Not thread-safe.
#pragma once

#include "wire/stream.h"

typedef struct Qmp Qmp;

#define QMP_GREETING_MS 5000
#define QMP_CALL_MS 30000

// Connects and negotiates. A monitor serves one client at a time: a second one connects and hears nothing; without a
// greeting in greeting_ms it is ERR_BUSY. events: names of those that are kept for qmp_await(), NULL-terminated, all
// others are dropped; borrowed for the Qmp's lifetime.
bool qmp_open(const char *path, int greeting_ms, const char *const *events, Qmp **ret, Err *err) must_check;

// Looked at while waiting; NULL: never. Borrowed.
void qmp_set_cancel(Qmp *q, const atomic_bool *cancel);

// QEMU's version as major * 1000 + minor.
unsigned qmp_version(const Qmp *q);

// Runs a command. args is stolen, also on failure; NULL: none. A refusal is ERR_PROTOCOL (ERR_UNSUPPORTED: no such
// command, ERR_NOT_FOUND: no such device) with QEMU's own words. After ERR_TIMEOUT and ERR_CANCELLED the command may
// still be carried out, before any later one; its answer is passed over. ret may be NULL, else a new reference.
bool qmp_call(Qmp *q, const char *command, json_t *args, json_t **ret, Err *err) must_check;
// The same with a descriptor beside it (getfd, add-fd), which stays the caller's.
bool qmp_call_fd(Qmp *q, const char *command, json_t *args, int fd, json_t **ret, Err *err) must_check;

typedef struct QmpEvent {
    json_t *value;    // the whole of it; owned
    const char *name; // borrowed from it
    json_t *data;     // borrowed, may be NULL
} QmpEvent;
void qmp_event_clear(QmpEvent *e);

// The oldest event that was kept, or the next that comes within timeout_ms (0: only what has arrived). ERR_TIMEOUT.
bool qmp_await(Qmp *q, int timeout_ms, QmpEvent *ret, Err *err) must_check;

bool qmp_is_lost(const Qmp *q);
int qmp_fd(const Qmp *q); // to poll for input
void qmp_free(Qmp *q);    // fine on NULL
