// The hub's use cases: what an API call means, in transactions. One Hub for the process; every function is
// thread-safe. JSON objects that are returned belong to the caller and have the form of api/openapi.yaml.
// docs/internals/jobs.md tells how a job lives and dies.
#pragma once

#include "base/secret.h"
#include "codec/work.h"
#include "domain/role.h"
#include "store/store.h"

#include <jansson.h>

typedef struct HubLimits {   // what may change while the hub runs
    unsigned max_jobs;       // running at a time
    unsigned chain_limit;    // points in a chain, then a full
    unsigned lease_s;        // a client silent for longer has failed
    unsigned claim_s;        // a job that nobody claims has failed after this
    unsigned export_idle_s;  // an export that nobody reads from ends after this
    unsigned keep_hours;     // partial images of failed jobs are kept, for the next job to go on from; 0: none is
    unsigned checkpoint_mib; // stored between two points of time from which an interrupted backup goes on
    unsigned dump_keep;      // days of which a backup of the database is kept; 0: none is made by itself
    unsigned dump_hour;      // of the day (UTC) at which it is made
    unsigned dump_delay_s;   // after the hub's start, before one that is due is made
    unsigned audit_blocks;   // of each tracked disk, as far as its time allows (docs/internals/audit.md); 0: none
} HubLimits;

// Reads the settings anew and calls hub_set_limits(); adds the names of those that need a new start to the list.
typedef bool (*HubReload)(void *ctx, json_t *needs_restart, Err *err);

typedef struct HubConfig {
    const StoreMariadb *mariadb; // NULL: SQLite, in the data folder
    const char *data_dir;        // made if it is not there; locked
    const char *key_file;        // opens the sources' passwords; NULL: secret.key in the data folder
    const char *run_dir;         // sockets; NULL: a short default for this data folder
    const char *hub_name;        // that other hubs on the database show; NULL: the machine's
    unsigned hub_lease_s;        // a hub silent for longer has lost its jobs to another one
    const char *dump_to;         // repository for backups of the database; NULL: each
    const char *plugin;          // path of nbdkit-sendense-plugin.so
    const char *client;          // path of sendense-backup-client
    HubLimits limits;
    bool auth;        // callers need a token (docs/internals/auth.md)
    bool new_admin;   // make another token of an admin, whatever there is
    HubReload reload; // NULL: there is nothing to read
    void *reload_ctx;
} HubConfig;

typedef struct Hub Hub;

// Takes the lock of the data folder, opens and migrates the database, recovers what an earlier hub left, starts
// the supervisor. Nothing is served yet.
bool hub_open(const HubConfig *config, Hub **ret, Err *err) must_check;
// The URL that clients started by the hub use. Before it is set no client is started.
bool hub_set_url(Hub *h, const char *url, Err *err) must_check;
// SHA-256 of the certificate that the API shows, for health. Copied.
void hub_set_thumbprint(Hub *h, const char *sha256);
void hub_set_limits(Hub *h, const HubLimits *limits); // for whatever begins from now on
// One at a time. ERR_USAGE: the settings are wrong, and those of before stay.
bool hub_reload(Hub *h, json_t **ret, Err *err) must_check;
// Before the API is stopped: calls that wait for an exporter to seal give up, and their clients repeat them. The seal
// goes on, and the next hub joins it. The look through the repositories ends with the folder that it is at.
void hub_quiesce(Hub *h);
// Stops the supervisor. Jobs, exporters and clients that run go on: the next hub takes them over.
void hub_close(Hub *h);

bool hub_hubs_list(Hub *h, json_t **ret, Err *err) must_check; // all on this database
bool hub_health(Hub *h, json_t **ret, Err *err) must_check;
// Does the hub work: is its lock to be had, has the supervisor made a step in the last limit_ms (but for one in a
// repository's files, which takes as long as the disk does), and does the database answer? Where one of them hangs this
// call may hang, too. A MariaDB that is away is none of the hub's faults. docs/internals/service.md.
bool hub_pulse(Hub *h, int64_t limit_ms, Err *err) must_check;

// For Prometheus: text, new memory. docs/reference/metrics.md.
bool hub_metrics(Hub *h, char **ret, Err *err) must_check;

// ---- who calls, and what they did (docs/internals/auth.md)
#define HUB_ANYBODY "anybody" // without authentication, or without a token
#define HUB_ITSELF "sendense-hub"
typedef struct HubActor {
    char name[256];
    const char *role; // NULL: none
} HubActor;
bool hub_needs_tokens(const Hub *h);
// May whoever has this token make a call that these roles may make? ERR_UNAUTHORIZED: none, or it is not known;
// ERR_FORBIDDEN: of another role. *ret is set in any case, as far as it is known.
bool hub_admit(Hub *h, const Secret *token, unsigned roles, HubActor *ret, Err *err) must_check;
bool hub_whoami(Hub *h, const HubActor *actor, json_t **ret, Err *err) must_check;
bool hub_token_add(Hub *h, const json_t *body, const char *by, json_t **ret, Err *err) must_check;
bool hub_token_list(Hub *h, json_t **ret, Err *err) must_check;
bool hub_token_remove(Hub *h, const char *id_or_name, json_t **ret, Err *err) must_check;

// People, and the sessions of their browsers. Passwords are argon2id; too many wrong ones: ERR_LIMITED.
bool hub_user_add(Hub *h, const json_t *body, const char *by, json_t **ret, Err *err) must_check;
bool hub_user_list(Hub *h, json_t **ret, Err *err) must_check;
bool hub_user_change(Hub *h, const char *id_or_name, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_user_remove(Hub *h, const char *id_or_name, json_t **ret, Err *err) must_check;
// ERR_UNAUTHORIZED "login failed"; ret_actor's name is who tried, in any case. *ret_session is for the cookie.
bool hub_session_begin(Hub *h, const json_t *body, const char *remote, Secret *ret_session, HubActor *ret_actor,
                       json_t **ret, Err *err) must_check;
// As hub_admit(). csrf: what came with the call, NULL: nothing; needed where it may change something.
bool hub_admit_session(Hub *h, const Secret *session, const char *csrf, bool changes, unsigned roles, HubActor *ret,
                       Err *err) must_check;
bool hub_session_show(Hub *h, const Secret *session, json_t **ret, Err *err) must_check;
bool hub_session_end(Hub *h, const Secret *session, json_t **ret, Err *err) must_check;
// Ends the user's sessions, this one included.
bool hub_session_password(Hub *h, const Secret *session, const json_t *body, const char *remote, json_t **ret, Err *err)
    must_check;

typedef struct HubTrail { // a call that was answered; borrowed
    const char *actor, *role, *remote, *method, *path, *object;
    bool unlogged; // a call that comes once a second
    int status;
} HubTrail;
// Adds it to the audit log, if it is of interest: whatever may change something, and what was refused. A log that
// cannot be written to is told of in the hub's own: the call is answered already.
void hub_trail_add(Hub *h, const HubTrail *t);
bool hub_trail_list(Hub *h, const StoreTrailFilter *filter, json_t **ret, Err *err) must_check;

// ---- repositories
bool hub_repository_add(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_repository_list(Hub *h, json_t **ret, Err *err) must_check;
bool hub_repository_show(Hub *h, const char *repository, json_t **ret, Err *err) must_check;
bool hub_repository_remove(Hub *h, const char *repository, json_t **ret, Err *err) must_check;
bool hub_repository_scan(Hub *h, const char *repository, json_t **ret, Err *err) must_check;

// ---- the hub's own database (docs/internals/database-backup.md)
bool hub_database_backup(Hub *h, json_t **ret, Err *err) must_check; // ERR_BUSY: one is being made
bool hub_database_backup_list(Hub *h, json_t **ret, Err *err) must_check;
typedef struct HubRestore {
    const char *from;          // a file, its folder, or a repository; NULL: from nothing
    char *const *repositories; // to be taken in where they are now
    size_t repositories_len;
    bool force;                       // also over a database that is not empty: it is kept aside
    void (*say)(const char *message); // what whoever restores has to know
} HubRestore;
// No hub may run on it; config is the one that it will run with. ERR_CONFLICT: the database is not empty. After an
// error the database is what it was.
bool hub_database_restore(const HubConfig *config, const HubRestore *what, Err *err) must_check;

// ---- sources: vCenters, and what they hold
bool hub_source_add(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_source_list(Hub *h, json_t **ret, Err *err) must_check;
bool hub_source_show(Hub *h, const char *source, json_t **ret, Err *err) must_check;
bool hub_source_change(Hub *h, const char *source, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_source_remove(Hub *h, const char *source, json_t **ret, Err *err) must_check;
bool hub_source_certificate(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_source_test(Hub *h, const char *source, json_t **ret, Err *err) must_check;
bool hub_source_vms(Hub *h, const char *source, json_t **ret, Err *err) must_check;

// ---- VMs
bool hub_vm_add(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
typedef struct HubVmFilter {
    bool all;          // also those that have points and are not registered (any more)
    uint64_t limit;    // 0: without
    const char *after; // "next" of an answer before; NULL: from the first one on
} HubVmFilter;
bool hub_vm_list(Hub *h, const HubVmFilter *f, json_t **ret, Err *err) must_check;
bool hub_vm_show(Hub *h, const char *vm, json_t **ret, Err *err) must_check;
bool hub_vm_change(Hub *h, const char *vm, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_vm_remove(Hub *h, const char *vm, json_t **ret, Err *err) must_check;

// ---- backups
bool hub_backup_start(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
// after: "next" of an answer; NULL: from the newest on.
bool hub_backup_list(Hub *h, const StoreBackupFilter *filter, const char *repository, const char *after, json_t **ret,
                     Err *err) must_check;
bool hub_backup_show(Hub *h, const char *id, json_t **ret, Err *err) must_check;
bool hub_backup_is_final(Hub *h, const char *id, bool *ret, Err *err) must_check;
bool hub_backup_cancel(Hub *h, const char *id, json_t **ret, Err *err) must_check;
bool hub_backup_delete(Hub *h, const char *id, bool with_dependents, json_t **ret, Err *err) must_check;
bool hub_backup_verification(Hub *h, const char *id, const json_t *body, json_t **ret, Err *err) must_check;

// ---- the client's calls. required: no token is ERR_UNAUTHORIZED; else only one that is sent must be right.
bool hub_job_check_token(Hub *h, const char *id, const Secret *token, bool required, Err *err) must_check;
bool hub_job_claim(Hub *h, const char *id, const char *claim, WorkOrder *ret, Err *err) must_check;
bool hub_job_announce(Hub *h, const char *id, const Announce *a, AnnounceAnswer *ret, Err *err) must_check;
bool hub_job_progress(Hub *h, const char *id, const WorkProgress *p, WorkProgressAnswer *ret, Err *err) must_check;
bool hub_job_audit(Hub *h, const char *id, const WorkAudit *a, json_t **ret, Err *err) must_check;
bool hub_job_fail(Hub *h, const char *id, const WorkFailure *f, json_t **ret, Err *err) must_check;
// A connection to what the running job writes that disk to, for NBD; the caller's. ERR_CONFLICT: it does not run.
bool hub_job_disk_connect(Hub *h, const char *id, const char *disk_key, int *ret_fd, Err *err) must_check;
bool hub_job_complete(Hub *h, const char *id, const Completion *c, json_t **ret, Err *err) must_check;

// ---- exports of points
bool hub_export_start(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_export_list(Hub *h, json_t **ret, Err *err) must_check;
// A connection to what it serves, for NBD; the caller's.
bool hub_export_connect(Hub *h, const char *id, int *ret_fd, Err *err) must_check;
bool hub_export_end(Hub *h, const char *id, json_t **ret, Err *err) must_check;

// ---- what is left over: named, and with dry_run false taken away (docs/internals/clean.md)
bool hub_clean(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_clean_vm(Hub *h, const char *vm, const json_t *body, json_t **ret, Err *err) must_check;

// ---- replications: registered, listed, recorded; not run yet
bool hub_replication_add(Hub *h, const json_t *body, json_t **ret, Err *err) must_check;
bool hub_replication_list(Hub *h, json_t **ret, Err *err) must_check;
bool hub_replication_show(Hub *h, const char *id, json_t **ret, Err *err) must_check;
bool hub_replication_record(Hub *h, const char *id, const ChangeIdReport *r, json_t **ret, Err *err) must_check;
