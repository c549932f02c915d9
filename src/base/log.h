// The log: one logfmt line a call on stderr, e.g.
//   ts=2026-01-02T03:04:05.000006Z level=info msg="backup completed" job=backup-web-1 bytes=12
// Only programs and services log; libraries below return errors (debug is allowed).
// Values are quoted and escaped: a hostile name cannot forge a line, nor steer a terminal. Thread-safe;
// one write(2) a line of at most 4096 bytes; a value that was cut ends with "...", a line that had no
// room for all fields with cut=true. What a full disk took of a line ends where the room did, and is followed
// by a line's end once there is room. errno is kept. Secrets have a type of their own (base/secret.h)
// that no field takes.
#pragma once

#include "base/err.h"

#include <stdint.h>

typedef enum LogLevel { LOG_DEBUG_, LOG_INFO_, LOG_WARN_, LOG_ERROR_ } LogLevel;

typedef struct LogField {
    const char *key; // NULL ends the list
    const char *text;
    int64_t number;
    bool is_number;
} LogField;

#define LOG_STR(k, v) ((LogField){.key = (k), .text = (v)})
#define LOG_NUM(k, v) ((LogField){.key = (k), .number = (int64_t)(v), .is_number = true})
#define LOG_ERR(e) LOG_STR("error", err_name((e)->code)), LOG_STR("details", (e)->details)

// SENDENSE_LOG=debug|info|warn|error, read once; default info.
void log_line(LogLevel level, const char *msg, const LogField *fields);

#define log_at(level, msg, ...) \
    log_line((level), (msg), (const LogField[]){__VA_ARGS__ __VA_OPT__(, )(LogField){.key = NULL}})
#define log_debug(msg, ...) log_at(LOG_DEBUG_, msg __VA_OPT__(, ) __VA_ARGS__)
#define log_info(msg, ...) log_at(LOG_INFO_, msg __VA_OPT__(, ) __VA_ARGS__)
#define log_warn(msg, ...) log_at(LOG_WARN_, msg __VA_OPT__(, ) __VA_ARGS__)
#define log_error(msg, ...) log_at(LOG_ERROR_, msg __VA_OPT__(, ) __VA_ARGS__)
