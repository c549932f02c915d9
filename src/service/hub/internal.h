// Shared by the hub's use cases; nobody else includes it.
#pragma once

#include "domain/guess.h"
#include "export/exporter.h"
#include "image/repo.h"
#include "service/hub/hub.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

// A job that this process has to do with: its client and exporters. The entry's lock orders whoever changes the
// job: announce, audit, complete, fail, cancel, the supervisor. Lock order: entry, then store; never the other way
// round.
typedef struct Running {
    char *id;
    unsigned users; // waiting or holding
    bool locked;
    atomic_bool interrupted; // whoever holds the entry is to give up waiting for an exporter
    atomic_bool sealing;     // the holder waits for one that seals
    Proc client;
    Exporter *exporters;
    size_t exporters_len;
    int64_t cancel_ms;      // monotonic: the client was asked to end; 0: it was not
    int64_t cancel_seen_us; // when it had been heard then
    int64_t grace_ms;       // how long it may take to say that it closes its source
    int64_t silent_ms;      // monotonic: the supervisor found the client silent; 0: it is not
    atomic_llong heard_ms;  // monotonic: the client spoke, and the database could not note it; 0: it could
    struct Running *next;
} Running;

// What was done for one VM since this hub was started: for metrics.
#define HUB_ENDS 3  // completed, failed, cancelled
#define HUB_MODES 3 // of DiskMode
typedef struct HubCounters {
    char *vm_name;
    uint64_t ended[HUB_ENDS], disks[HUB_MODES][CHAIN_REASONS];
    uint64_t read_bytes, sent_bytes, stored_bytes, alarms;
    int64_t job_us;
    struct HubCounters *next;
} HubCounters;

#define HUB_DUMP_PROBLEM 400

struct Hub {
    Store *store;
    char *data_dir, *key_file, *run_dir, *plugin, *client, *log_dir;
    char *_Atomic url; // NULL until hub_set_url(); the supervisor looks at it
    atomic_uint max_jobs, chain_limit, lease_s, claim_s, export_idle_s, keep_hours, audit_blocks; // HubLimits
    atomic_uint_fast64_t checkpoint_bytes;
    pthread_rwlock_t exporting; // above the store's lock, below a job's entry (docs/internals/clean.md)
    HubReload reload;
    void *reload_ctx;
    pthread_mutex_t reload_lock; // one reload at a time
    bool auth;
    int64_t refused_since_ms; // monotonic: calls that were refused since then
    unsigned refused[2];      // without a known token, and with one
    int lock_fd, run_lock_fd;
    pthread_mutex_t lock; // of the members below
    char thumbprint[128]; // "": no TLS
    pthread_cond_t changed;
    Running *running;
    struct HubHold *holds;
    HubCounters *counters;
    void *counters_by_name;     // of tsearch(3)
    atomic_flag gathering;      // metrics
    pthread_mutex_t guess_lock; // a leaf; of the next two
    Guesses *guesses_by_address, *guesses_by_name;
    sem_t hashing; // as many passwords are looked at at a time
    bool stopping;
    atomic_bool supervising;
    bool look_started, looked_through; // the latter: under h->lock
    atomic_bool look_stop;
    pthread_t looker;
    atomic_int_fast64_t step_ms; // monotonic: the supervisor's last step began
    atomic_bool in_files;        // that step is one in a repository's files
    char *dump_to;               // repository that the database is backed up into; NULL: all
    atomic_uint dump_keep, dump_hour, dump_delay_s;
    atomic_flag dumping;
    atomic_bool dump_stop;
    bool keeping;
    pthread_t keeper;
    int64_t dump_from_ms;                // monotonic: when this hub was started
    int64_t dump_retry_ms;               // monotonic: not before
    char dump_problem[HUB_DUMP_PROBLEM]; // of the last backup of the database; "": none
    atomic_bool closing;                 // hub_quiesce() was called
    pthread_t supervisor;
    char hub_id[UUID_TEXT];
    unsigned hub_lease_s;
    bool beating;
    pthread_t beater;
    atomic_bool beat_stop;
    struct HubSeen *seen; // the other hubs
    size_t seen_len;
    int64_t looked_ms; // monotonic: at them, last
};

// A number that a client reports for one disk: a job's disks add up to what the database can hold.
#define HUB_BYTES_MAX ((uint64_t)INT64_MAX / WORK_DISKS_MAX)

// ---- tokens.c
// Where nobody could make a token, or another one is asked for: into a file of the data folder.
bool hub_tokens_begin(Hub *h, bool new_admin, Err *err) must_check;

// Is a name another's, or one that the audit log gives to somebody? ERR_INVALID, ERR_EXISTS.
bool hub_actor_name_check(Hub *h, const char *name, Err *err) must_check;
// trail.c: the row itself, whatever is of interest; of a database that no hub is on yet, too.
bool hub_trail_write(Store *s, const HubTrail *t, Err *err) must_check;

// ---- users.c
bool hub_users_begin(Hub *h, Err *err) must_check;
void hub_users_end(Hub *h);

// ---- hubs.c: docs/internals/hubs.md
bool hub_hubs_id(const char *data_dir, char ret[UUID_TEXT], Err *err) must_check; // made where there is none
bool hub_hubs_enter(Hub *h, const char *name, unsigned lease_s, Err *err) must_check;
bool hub_hubs_start(Hub *h, Err *err) must_check; // beats, and looks at the others
void hub_hubs_stop(Hub *h);
void hub_hubs_take_over(Hub *h); // what silent hubs have
// No other hub is there, as far as is known without waiting for a lease.
bool hub_is_alone(Hub *h, bool *ret, Err *err) must_check;
// ERR_CONFLICT, with the name of the hub to ask, where a row is another hub's. what, id: of the row.
bool hub_is_ours(Hub *h, const char *hub_id, const char *what, const char *id, Err *err) must_check;

// ---- deletion.c
bool hub_deletions_finish(Hub *h, Err *err) must_check; // own marks that nobody is at work on

// ---- metrics.c
void hub_count_end(Hub *h, const StoreBackup *b, const char *status);
void hub_count_disks(Hub *h, const StoreBackup *b, const StoreDisk *disks, size_t len); // of a completed one
void hub_count_alarm(Hub *h, const char *vm_name);
void hub_counters_free(Hub *h);

// ---- running.c
bool hub_running_lock(Hub *h, const char *id, Running **ret, Err *err) must_check;
// The same without waiting: *ret is NULL where somebody else is at work on the job. A seal may take an hour, and the
// supervisor has others to look after.
bool hub_running_try(Hub *h, const char *id, Running **ret, Err *err) must_check;
// Whoever holds the entry now gives up waiting for an exporter that seals: the job is to be cancelled.
void hub_running_interrupt(Hub *h, const char *id);
void hub_running_unlock(Hub *h, Running *r); // drops the entry when nothing is left in it
// Ends a job that is not final: exporters, client, partial images, then the row. The caller holds the entry.
// keep_client: it is the client itself that reports; it is given the time to go.
bool hub_job_end(Hub *h, Running *r, const char *status, const char *error, const char *details, bool keep_client,
                 Err *err) must_check;
void hub_running_stop_exporters(Running *r);
// Its cancel is on record: a client of ours is told by a signal, any other sees it in the answer to its next progress
// report, and the supervisor ends what does not listen. Again: nothing more.
void hub_running_ask_to_end(Hub *h, Running *r, const StoreBackup *b);
// The job is another hub's by now: client and exporters end, and nothing of what they wrote is touched.
void hub_running_drop(Running *r);
// Takes away what a job's attempt left in its repository; fine where there is nothing (any more).
bool hub_remove_partial(Hub *h, const StoreBackup *b, Err *err) must_check;
void hub_wake(Hub *h); // the supervisor looks at once

// ---- hold.c: what keeps cleaning up away from what is just coming to be, or going (docs/internals/clean.md)
// From an exporter's start to its record, and from the end of a record to its exporter's.
void hub_exporting(Hub *h);
void hub_exporting_done(Hub *h);
// Nobody is between these two until hub_exporting_done(). ERR_BUSY after 20 s.
bool hub_exporting_stop(Hub *h, Err *err) must_check;
// From here on no client of a job of this VM is started, and none claims one, until hub_vm_release(). ERR_BUSY: a job
// of it is active, a client of one still closes its source, or somebody else holds it.
bool hub_vm_hold(Hub *h, const char *vm_id, Err *err) must_check;
void hub_vm_release(Hub *h, const char *vm_id);
bool hub_vm_is_held(Hub *h, const char *vm_id);

// ---- clean.c
// Sockets of the exporters that jobs and exports on record own.
bool hub_exporters_on_record(Hub *h, char ***ret, size_t *ret_len, Err *err) must_check;
void hub_texts_free(char **texts, size_t len);

// ---- backups.c
// Ends an active job as a cancel does, and returns when that is done. A final one: fine. ERR_CONFLICT: it is a point by
// now, or is about to be.
bool hub_backup_end(Hub *h, const char *id, const char *why, Err *err) must_check;

// ---- complete.c
// From committing to completed: files, record, row; the exporters end. Re-runnable after a crash between any two steps.
// A commit that cannot succeed any more (what was sealed is gone) ends the job; after any other error it stays
// committing. The caller holds the entry.
bool hub_commit(Hub *h, Running *r, Err *err) must_check;
// Has a job's record its final name? ERR_UNAVAILABLE where the repository is away.
bool hub_point_stands(Hub *h, const char *id, bool *ret_stands, Err *err) must_check;

// ---- resume.c: partial images that the next job may go on from. docs/internals/resume.md.
// What an exporter that lives has received becomes durable, as far as it answers soon.
void hub_resume_checkpoint(const Running *r);
// Has the job's attempt left anything to go on from? False where the repository is away.
bool hub_resume_is_possible(Hub *h, const StoreBackup *b);
// Of all VMs in the repository but `vm_id`'s: where room is short, what may be of use later makes way.
bool hub_resume_make_way(Hub *h, int64_t repository_id, const char *vm_id, Err *err) must_check;
// Into the work order: the newest interrupted job of the VM in the repository.
bool hub_resume_order(Hub *h, const StoreBackup *b, WorkOrder *w, Err *err) must_check;
// Paths of an attempt's partial files of one disk; ERR_NOT_FOUND without an attempt. The journal of "x-full.qcow2" is
// "x-full.journal".
bool hub_resume_paths(const Repo *repo, const StoreBackup *b, const StoreDisk *d, char **ret_image, char **ret_journal,
                      Err *err) must_check;

// ---- supervisor.c
bool hub_supervisor_start(Hub *h, Err *err) must_check;
void hub_supervisor_stop(Hub *h);

// ---- recover.c
bool hub_recover(Hub *h, Err *err) must_check; // all that a job needs to go on
bool hub_end_exporters(Hub *h, const StoreBackup *b, Err *err) must_check; // those on record

// ---- look.c
// Looks through the repositories, beside all else from some seconds on.
bool hub_look_start(Hub *h, Err *err) must_check;
void hub_look_stop(Hub *h);

// ---- catalogue.c
int hub_compare_ids(const void *a, const void *b); // of pointers to texts
// Brings the catalogue in line with a repository's records. Counts may be NULL.
typedef struct ScanCounts {
    uint64_t added, unchanged;
    json_t *missing; // IDs of points in the catalogue without a record; may be NULL
    json_t *refused; // problems: records that clash with a point of another repository; may be NULL
} ScanCounts;
bool hub_catalogue_update(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                          ScanCounts *counts, Err *err) must_check;
// The same of a scan that is not of all of the repository, and the rest of it: IDs that were seen, sorted.
bool hub_catalogue_add(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan, Err *err)
    must_check;
bool hub_catalogue_missing(Hub *h, const StoreRepository *repository, const Repo *repo, const char *const *known,
                           size_t len, Err *err) must_check;

// ---- reconcile.c: docs/internals/database-backup.md
// A catalogue of a database that was restored, against what the scan found. The caller has a transaction open, and goes
// on with what a scan does else.
bool hub_reconcile(Hub *h, const StoreRepository *row, const Repo *repo, const RepoScan *scan, Err *err) must_check;
bool hub_reconcile_late(Hub *h, Err *err) must_check;                   // repositories that were away until now
bool hub_not_stale(Hub *h, int64_t repository_id, Err *err) must_check; // ERR_UNAVAILABLE

// ---- dump_folder.c: backups of hubs' databases in a repository
#define HUB_DUMP_FOLDER "database"
#define HUB_DUMP_PARTIAL ".partial"
#define HUB_DUMP_NAME 64
#define HUB_DUMP_NUMBER_MAX 99999999u
typedef struct HubDump {
    char file[HUB_DUMP_NAME], hub[9]; // the beginning of the hub's ID
    uint64_t number;
    int64_t created_us;
} HubDump;
bool hub_dump_name(const char *hub_id, uint64_t number, int64_t created_us, char ret[HUB_DUMP_NAME], Err *err)
    must_check;
// Of that hub, or of all (NULL); the newest, by number, first. None where there is no folder.
bool hub_dump_list(const char *folder, const char *hub_id, HubDump **ret, size_t *ret_len, Err *err) must_check;
char *hub_dump_folder(const char *repository, Err *err);                            // new memory
bool hub_dump_folder_make(const char *repository, char **ret, Err *err) must_check; // durably
// The folder was written to just now. Unfinished files stay where they are younger than spare_s.
bool hub_dump_prune(const char *folder, const char *hub_id, unsigned keep_days, unsigned spare_s, Err *err) must_check;

// ---- database.c
bool hub_database_start(Hub *h, Err *err) must_check; // the thread that backs it up daily
void hub_database_stop(Hub *h);
void hub_database_problem(Hub *h, char ret[HUB_DUMP_PROBLEM]); // "": none

// ---- points.c
bool hub_repo_open(Hub *h, const StoreRepository *r, Repo *ret, Err *err) must_check; // ERR_UNAVAILABLE with advice
bool hub_record_from_rows(const StoreBackup *b, const StoreDisk *disks, size_t n, const char *source_type,
                          const Repo *repo, Record *ret, Err *err) must_check;
bool hub_rows_from_record(const Record *rec, const char *stem, const StoreRepository *repository,
                          StoreBackup *ret_backup, StoreDisk **ret_disks, size_t *ret_len, Err *err) must_check;
// Records of a repository, read when asked for.
typedef struct Points {
    Hub *hub;
    const Repo *repo;
    Record **items;
    size_t len, cap;
    Err err;                 // of the last find that gave NULL
    const atomic_bool *stop; // may be NULL; true: a chain that is being looked at is left, with ERR_CANCELLED
} Points;
const Record *hub_points_find(void *points, const char *backup_id); // RepoFind
void hub_points_clear(Points *p);
// The chain of a point's disk, its files checked to depth. A damaged or missing one: ERR_DAMAGED and, in
// ret_layer_backup (may be NULL), the ID of the point whose files they are.
bool hub_chain_open(Points *p, const char *backup_id, const char *disk_key, RepoCheckDepth depth, RepoChain *ret,
                    char **ret_layer_backup, Err *err) must_check;
// Damage was met in the files of that point's disk: every completed point whose disk rests on them (itself included) is
// suspect and damaged from here on. Their IDs in *ret_ids.
bool hub_mark_damaged(Hub *h, const StoreBackup *layer, const char *disk_key, json_t **ret_ids, Err *err) must_check;
// The same; disk_key NULL: any disk. The caller has a transaction open.
bool hub_mark_damaged_in(Hub *h, const StoreBackup *layer, const char *disk_key, json_t **ret_ids, Err *err) must_check;
// A point that comes to be is as damaged as what it stands on.
bool hub_inherit_damage(Hub *h, const char *id, const StoreDisk *disks, size_t n, Err *err) must_check;
bool hub_engine_layers(const RepoChain *chain, EngineConfig *config, Err *err) must_check;

// ---- audit.c
// A disk's audit failed: the points that it rests on by tracking alone are suspect. first_id: the disk's parent, in
// that repository. Their IDs are added to ids (may be NULL). The caller has a transaction open.
bool hub_doubt(Hub *h, int64_t repository_id, const char *first_id, const char *disk_key, json_t *ids, Err *err)
    must_check;

// ---- sources.c
// ERR_UNAVAILABLE titled "key file not usable".
bool hub_source_password(Hub *h, const StoreSource *s, Secret *ret, Err *err) must_check;
void hub_sources_check(Hub *h); // logs which passwords cannot be opened
// Before a job begins: can its VM's password be opened? Fine for a VM without a source.
bool hub_source_of_vm(Hub *h, const char *vm, Err *err) must_check;
bool hub_source_order(Hub *h, const char *source_id, WorkVcenter *ret, Err *err) must_check;

// ---- vcenter.c
// Checks the spec of a VM of type "vsphere", looks the VM up, and adds to the spec what was found.
bool hub_vcenter_find(Hub *h, json_t *spec, char **ret_source_id, Err *err) must_check;

// ---- view.c: rows as the API shows them
bool hub_view_backup(Hub *h, const StoreBackup *b, uint64_t dependents, bool with_disks, json_t **ret, Err *err)
    must_check;
bool hub_view_backup_id(Hub *h, const char *id, json_t **ret, Err *err) must_check;
bool hub_view_strings(const char *json_list, json_t **ret, Err *err) must_check; // kept as JSON text; NULL: []

// The UTC time for "timestamp".
bool hub_set_now(json_t *object, const char *key, Err *err) must_check;

#define cleanup_backup cleanup(store_backup_clear)
#define cleanup_vm cleanup(store_vm_clear)
#define cleanup_repository cleanup(store_repository_clear)
#define cleanup_repo cleanup(repo_clear)
