// What the commands share: the command line's values, the hub, and how results are said.
//
// Standard output carries the result, and with --json exactly one JSON value, also on failure (then the API's error
// object). Everything else goes to standard error.
#pragma once

#include "base/opt.h"
#include "cli/table.h"
#include "wire/hub_api.h"

#define CLI_EXIT_FAILED 1
#define CLI_EXIT_DAMAGED 3
#define CLI_EXIT_PARTIAL 4
#define CLI_EXIT_ALARM 5

#define CLI_SLOW_MS (10 * 60000) // calls in which the hub reads or removes much

// One member for each option; text is owned.
typedef struct CliValues {
    char *hub, *path, *cluster_size, *compression, *hash, *qmp, *agent, *freeze, *scratch, *adopt, *name, *repo, *vm,
        *status, *disk, *to, *format, *vcenter, *user, *password_file, *password_fd, *thumbprint, *ca, *source,
        *quiesce, *disks_unsupported, *unallocated, *audit_blocks, *token_file, *token_fd, *role, *expires, *actor,
        *head;
    OptList file, exclude;
    uint64_t limit, older_than; // 0: not given
    bool json, quiet, help, version, inconsistent, all, full, incremental, no_client, detach, with_dependents,
        all_disks, force, yes, pin, ask_password, failed, disable, enable, exports, interrupted, jobs,
        bitmaps;
} CliValues;

typedef struct Cli {
    CliValues values;
    const char *const *words; // the command's arguments, NULL behind the last
    HubApi *hub;
    const char *hub_url;
    int exit_status; // of a command that went well but has more to say
    bool said_json;
} Cli;

// ---- the hub. path: from "/api/v1" on
bool cli_get(Cli *c, const char *path, json_t **ret, Err *err) must_check;
// body may be NULL. slow: the hub may take its time.
bool cli_send(Cli *c, const char *method, const char *path, const json_t *body, bool slow, json_t **ret, Err *err)
    must_check;
// "/api/v1/<kind>/<id>[/<call>]", encoded. call may be NULL. New memory.
char *cli_path(const char *kind, const char *id, const char *call, Err *err) must_check;
// Appends "?key=value" or "&key=value"; a NULL value adds nothing.
bool cli_query(StrBuf *path, const char *key, const char *value, Err *err) must_check;

// ---- members of answers, for showing: "", 0 or false when absent
const char *cli_text(const json_t *object, const char *key);
uint64_t cli_u64(const json_t *object, const char *key);
const char *cli_suspect(const json_t *backup); // why it is, for people
bool cli_flag(const json_t *object, const char *key);
json_t *cli_list(const json_t *object, const char *key); // borrowed; NULL when absent

// ---- saying
// With --json prints the value and returns true: nothing else is to be printed.
bool cli_said_json(Cli *c, const json_t *value);
void cli_note(const char *fmt, ...) printf_like(1, 2); // "sendense: …" on standard error, cleaned
void cli_print_error(const Err *err);                  // "sendense: short: details"
void cli_show(const char *name, const char *value);    // "name:        value"; nothing for NULL and ""

// ---- the command line
bool cli_need(const char *value, const char *option, Err *err) must_check; // ERR_USAGE when it was not given
// An absolute path: what is relative is relative to the working folder. Nothing is resolved. New memory.
char *cli_absolute(const char *path, Err *err) must_check;
