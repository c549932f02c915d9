// The database: one function for each question. Thread-safe: each call is a transaction of its own, unless the
// thread holds one open by store_begin(). What a question returns belongs to the caller: _clear it.
// docs/reference/tables.md maps endpoints to tables.
#pragma once

#include "base/secret.h"
#include "base/uuid.h"

typedef struct Store Store;

typedef enum StoreTls { // to MariaDB
    STORE_TLS_OFF,
    STORE_TLS_UNVERIFIED, // with whoever answers
    STORE_TLS_REQUIRED,   // the certificate is good for the host's name
} StoreTls;

typedef struct StoreMariadb {
    const char *host; // store/hosts.h: one or several
    unsigned port;    // of those that name none
    const char *name, *user;
    const Secret *password; // NULL: none
    StoreTls tls;
    const char *tls_ca; // NULL: what the system trusts
    const char *hub_id; // NULL: the database is wanted for oneself, without any hub
} StoreMariadb;

// Both migrate.
bool store_open_sqlite(const char *path, Store **ret, Err *err) must_check;
bool store_open_mariadb(const StoreMariadb *spec, Store **ret, Err *err) must_check;
void store_close(Store *s);
const char *store_engine(const Store *s); // "sqlite", "mariadb"
bool store_bytes(Store *s, uint64_t *ret, Err *err) must_check; // what all of it takes; MariaDB's word, which is near

// One writer at a time: the lock and the transaction are held until commit or rollback, by this thread. For who decides
// by what it reads: other hubs on the database wait, or their commit is refused. Most want a StoreTurn instead.
bool store_begin(Store *s, Err *err) must_check;
bool store_begin_beside(Store *s, Err *err) must_check; // other hubs' transactions may run meanwhile
bool store_commit(Store *s, Err *err) must_check;
void store_rollback(Store *s);

// A transaction that is done again, for a bounded time (15 s), where it came to nothing for another one's sake: in a
// cluster any COMMIT may. What is done in it has to be right when it is done again from the start.
//     StoreTurn t = STORE_TURN(store);
//     while (store_turn(&t, err))
//         t.ok = …;
//     return t.ok;
// A COMMIT whose answer was lost is not repeated: ERR_UNAVAILABLE, and nobody knows.
typedef struct StoreTurn {
    Store *store;
    bool beside; // as store_begin_beside()
    bool ok;     // of what was done; in the end, of all
    bool open;
    unsigned pause_ms;
    int64_t until_ms;
} StoreTurn;
#define STORE_TURN(s) ((StoreTurn){.store = (s)})
#define STORE_TURN_BESIDE(s) ((StoreTurn){.store = (s), .beside = true})
bool store_turn(StoreTurn *t, Err *err) must_check;

// ---- hubs on one database (docs/internals/hubs.md)
typedef struct StoreHub {
    char *id, *name, *version;
    uint64_t lease_s, beats; // beats: raised for as long as it lives
    bool stopped;            // in good order
    int64_t started_us, beat_us;
} StoreHub;
// Who uses this Store from here on: jobs, exports and deletions that are added are this hub's, and the functions that
// say "own" mean its. Before: nobody, whose ID is "". beats is not taken from h. What belonged to nobody is this hub's
// now; where it has the database to itself, everything. In a cluster it is looked first whether another hub with its ID
// lives: ERR_BUSY.
bool store_hub_enter(Store *s, const StoreHub *h, Err *err) must_check;
const char *store_hub(const Store *s);
bool store_is_shared(const Store *s); // other hubs may use the database
// How long to look whether a hub of that lease still raises its number, which it does four times within it.
#define STORE_LOOK_MS(lease_s) (MIN((int64_t)(lease_s), 240) * 500)
bool store_hub_beat(Store *s, Err *err) must_check; // ERR_BUSY: another one has entered with its ID
bool store_hub_leave(Store *s, Err *err) must_check;
bool store_hub_list(Store *s, StoreHub **ret, size_t *ret_len, Err *err) must_check; // by name
void store_hub_clear(StoreHub *h);
// What a hub that is silent had becomes this one's, unless it was heard meanwhile: beats is then another number. Its
// processes are forgotten. *ret_done: it was this call that did it.
bool store_backup_take_over(Store *s, const char *id, const StoreHub *silent, bool *ret_done, Err *err) must_check;
bool store_export_forget(Store *s, const StoreHub *silent, uint64_t *ret_gone, Err *err) must_check;
// All marks of deletions at once.
bool store_deleting_take_over(Store *s, const StoreHub *silent, uint64_t *ret_taken, Err *err) must_check;

// ---- repositories
typedef struct StoreRepository {
    int64_t id;
    char *name, *uuid, *path, *hash_algorithm;
    uint64_t cluster_size, compression; // level, 0: none
    int64_t created_us;
} StoreRepository;
bool store_repository_add(Store *s, const StoreRepository *r, int64_t *ret_id, Err *err)
    must_check; // name, path, uuid taken: ERR_EXISTS
// By number or by name (a number first). ERR_NOT_FOUND titled "repository not found".
bool store_repository_find(Store *s, const char *id_or_name, StoreRepository *ret, Err *err) must_check;
bool store_repository_get(Store *s, int64_t id, StoreRepository *ret, Err *err) must_check;
bool store_repository_list(Store *s, StoreRepository **ret, size_t *ret_len, Err *err) must_check;
// Its points, contexts and disk numbers go with it.
bool store_repository_remove(Store *s, int64_t id, Err *err) must_check;
bool store_repository_totals(Store *s, int64_t id, uint64_t *ret_points, uint64_t *ret_stored, Err *err) must_check;
void store_repository_clear(StoreRepository *r);

bool store_repository_place(Store *s, const StoreRepository *r, Err *err) must_check; // its path changes

// ---- the hub itself: its database's backups, and its restore (docs/internals/database-backup.md)
bool store_hub_id(Store *s, char ret[UUID_TEXT], Err *err) must_check; // made with the first question
// The next number of a backup of the database, at least this one.
bool store_dump_number(Store *s, uint64_t at_least, uint64_t *ret, Err *err) must_check;
bool store_dumped(Store *s, int64_t repository_id, int64_t *ret_us, Err *err) must_check; // when; 0: never
bool store_set_dumped(Store *s, int64_t repository_id, int64_t at_us, Err *err) must_check;
bool store_is_empty(Store *s, bool *ret, Err *err) must_check; // no repository, VM, source or job
// It came out of a backup: what ran then has failed, every point is suspect, every repository's catalogue stale.
bool store_restored(Store *s, int64_t now_us, Err *err) must_check;
bool store_is_stale(Store *s, int64_t repository_id, bool *ret, Err *err) must_check;
bool store_not_stale(Store *s, int64_t repository_id, Err *err) must_check;
bool store_forget_repository_state(Store *s, int64_t repository_id, Err *err) must_check;

// ---- sources: what VMs of one vCenter share
typedef struct StoreSource {
    char *id, *name, *type, *address, *user;
    char *secret;              // sealed: base/seal.h
    char *thumbprint, *ca_pem; // one of them, the other is NULL
    int64_t created_us;
} StoreSource;
bool store_source_add(Store *s, const StoreSource *source, Err *err) must_check; // name taken: ERR_EXISTS
bool store_source_find(Store *s, const char *id_or_name, StoreSource *ret, Err *err)
    must_check; // ERR_NOT_FOUND "source not found"
bool store_source_list(Store *s, StoreSource **ret, size_t *ret_len, Err *err) must_check; // by name
bool store_source_count(Store *s, uint64_t *ret, Err *err) must_check;
bool store_source_update(Store *s, const StoreSource *source, Err *err) must_check; // all but name, type, time
bool store_source_remove(Store *s, const char *id, Err *err) must_check; // while VMs use it the database refuses
void store_source_clear(StoreSource *source);

// ---- for metrics
typedef struct StoreVmPoints { // of a registered VM in a repository; without any point once, with no repository
    char *vm_name, *repository;
    uint64_t points;
    int64_t good_us, verified_us; // when the newest was made: not suspect; verified and right. 0: none
} StoreVmPoints;
// Of so many VMs after that name (NULL: from the first one on), by name.
bool store_points_of_vms(Store *s, const char *after, uint64_t vms, StoreVmPoints **ret, size_t *ret_len, Err *err)
    must_check;
void store_vm_points_clear(StoreVmPoints *v);
bool store_backup_count(Store *s, const char *status, uint64_t *ret, Err *err) must_check;
bool store_exporter_count(Store *s, uint64_t *ret, Err *err) must_check; // that jobs write to
bool store_export_count(Store *s, uint64_t *ret, Err *err) must_check;

// ---- tokens of the API, which are kept as digests
typedef struct StoreToken {
    char *id, *name, *role, *digest, *created_by;
    int64_t created_us, expires_us, used_us; // expires_us, used_us: 0: never
} StoreToken;
bool store_token_add(Store *s, const StoreToken *t, Err *err) must_check; // name taken: ERR_EXISTS
bool store_token_by_digest(Store *s, const char *digest, StoreToken *ret, bool *ret_found, Err *err) must_check;
bool store_token_by_name(Store *s, const char *name, StoreToken *ret, bool *ret_found, Err *err) must_check;
bool store_token_find(Store *s, const char *id_or_name, StoreToken *ret, Err *err)
    must_check; // ERR_NOT_FOUND "token not found"
bool store_token_list(Store *s, StoreToken **ret, size_t *ret_len, Err *err) must_check; // by name
bool store_token_count(Store *s, const char *role, int64_t now_us, uint64_t *ret, Err *err)
    must_check; // that have not expired
bool store_token_set_used(Store *s, const char *id, int64_t now_us, Err *err) must_check;
bool store_token_remove(Store *s, const char *id, Err *err) must_check;
void store_token_clear(StoreToken *t);

// ---- people, and the sessions of their browsers
typedef struct StoreUser {
    char *id, *name, *role;
    char *password; // its hash, as secret_password_hash() made it
    bool disabled;
    int64_t created_us;
    char *created_by;
    int64_t changed_us, login_us; // login_us: 0: never
} StoreUser;
bool store_user_add(Store *s, const StoreUser *u, Err *err) must_check; // name taken: ERR_EXISTS
bool store_user_find(Store *s, const char *id_or_name, StoreUser *ret, bool *ret_found, Err *err) must_check;
bool store_user_list(Store *s, StoreUser **ret, size_t *ret_len, Err *err) must_check; // by name
// Role, password, disabled, changed_us.
bool store_user_set(Store *s, const StoreUser *u, Err *err) must_check;
bool store_user_set_login(Store *s, const char *id, int64_t now_us, Err *err) must_check;
bool store_user_remove(Store *s, const char *id, Err *err) must_check; // and their sessions
void store_user_clear(StoreUser *u);

typedef struct StoreSession {
    char *digest, *user_id, *remote;
    int64_t created_us, used_us;
} StoreSession;
bool store_session_add(Store *s, const StoreSession *x, Err *err) must_check;
bool store_session_get(Store *s, const char *digest, StoreSession *ret, bool *ret_found, Err *err) must_check;
bool store_session_set_used(Store *s, const char *digest, int64_t now_us, Err *err) must_check;
bool store_session_remove(Store *s, const char *digest, Err *err) must_check;
bool store_session_remove_of(Store *s, const char *user_id, Err *err) must_check;
// Those that began, or were used last, before these.
bool store_session_remove_old(Store *s, int64_t created_us, int64_t used_us, Err *err) must_check;
void store_session_clear(StoreSession *x);

// ---- who did what: rows are added, and never changed
typedef struct StoreTrail {
    int64_t id; // 1, 2, 3, ... without a gap
    int64_t at_us;
    char *actor, *role, *remote, *method, *path, *object;
    int64_t status;
    char *hash; // over the row and the hash of the one before
} StoreTrail;
typedef struct StoreTrailFilter { // NULL, 0: any
    const char *actor, *method;
    int64_t status_least; // 400: what was refused or failed
    int64_t after;        // IDs above it
    bool newest_first;
    uint64_t limit;
} StoreTrailFilter;
bool store_trail_add(Store *s, const StoreTrail *row, Err *err) must_check; // its ID taken: ERR_EXISTS
bool store_trail_last(Store *s, StoreTrail *ret, bool *ret_found, Err *err) must_check;
bool store_trail_list(Store *s, const StoreTrailFilter *filter, StoreTrail **ret, size_t *ret_len, Err *err) must_check;
void store_trail_clear(StoreTrail *row);

// ---- VMs
typedef struct StoreVm {
    char *id, *name, *source, *excluded; // source, excluded: JSON text
    char *source_id;                     // of the registered source that it is read through; NULL: none
    int64_t audit_blocks;                // of each tracked disk, however long it takes; -1: as the hub has it
    int64_t created_us;
} StoreVm;
bool store_vm_add(Store *s, const StoreVm *v, Err *err) must_check;                      // name or id taken: ERR_EXISTS
bool store_vm_find(Store *s, const char *id_or_name, StoreVm *ret, Err *err) must_check; // ERR_NOT_FOUND "vm not found"
bool store_vm_list(Store *s, StoreVm **ret, size_t *ret_len, Err *err) must_check;
typedef struct StoreVmSummary {
    StoreVm vm;
    uint64_t points;
    char *last_id, *last_status; // of the newest job of any kind; NULL: there was none
    int64_t last_us;
} StoreVmSummary;
// By name, those after it (NULL: from the first one on), at most so many: a page costs what is on it.
bool store_vm_summaries(Store *s, const char *after, uint64_t limit, StoreVmSummary **ret, size_t *ret_len, Err *err)
    must_check;
bool store_vm_summary(Store *s, const char *vm_id, StoreVmSummary *ret, bool *ret_found, Err *err) must_check;
bool store_vm_orphan_summaries(Store *s, StoreVmSummary **ret, size_t *ret_len, Err *err) must_check;
void store_vm_summary_clear(StoreVmSummary *v);
bool store_vm_update(Store *s, const StoreVm *v, Err *err) must_check;
bool store_vm_remove(Store *s, const char *id, Err *err) must_check;
bool store_source_vms(Store *s, const char *source_id, StoreVm **ret, size_t *ret_len, Err *err) must_check; // its VMs
bool store_vm_points(Store *s, const char *vm_id, uint64_t *ret_points, Err *err) must_check;
// VMs that have points and are not registered (any more): id and newest name.
bool store_vm_orphans(Store *s, StoreVm **ret, size_t *ret_len, Err *err) must_check;
void store_vm_clear(StoreVm *v);

// ---- what a VM has in a repository
// Folder of the VM in the repository; NULL if it has none yet.
bool store_context_get(Store *s, int64_t repository_id, const char *vm_id, char **ret_folder, Err *err) must_check;
bool store_context_set(Store *s, int64_t repository_id, const char *vm_id, const char *folder, Err *err) must_check;
typedef struct StoreDiskNumber {
    int64_t repository_id;
    char *vm_id, *disk_key;
    uint64_t disk_id, disk_no;
} StoreDiskNumber;
bool store_disk_number_get(Store *s, int64_t repository_id, const char *vm_id, const char *disk_key,
                           StoreDiskNumber *ret, bool *ret_found, Err *err) must_check;
bool store_disk_number_add(Store *s, const StoreDiskNumber *n, Err *err) must_check;
// The number this VM's disk key has in any repository, else the next free one of the VM (from 2000).
bool store_disk_id_pick(Store *s, const char *vm_id, const char *disk_key, uint64_t *ret, Err *err) must_check;
bool store_disk_no_next(Store *s, int64_t repository_id, const char *vm_id, uint64_t *ret, Err *err) must_check;
void store_disk_number_clear(StoreDiskNumber *n);

// ---- backup jobs; the completed ones are the catalogue of restore points
typedef struct StoreBackup {
    char *id, *vm_id, *vm_name;
    int64_t repository_id;
    char *backup_type, *requested_type, *status, *phase;
    char *active_vm; // vm_id while the job is pending, running or committing, else NULL; unique: one job a VM
    char *change_id, *parent_id;
    uint64_t sequence;
    char *reason, *reason_text, *left_out; // left_out: JSON list of disk keys
    bool partial, suspect, cancel_requested, start_client;
    bool doubted;  // a later point's audit found its tracking wrong; suspect for good
    bool damaged;  // damage was met in what it rests on, and no verify found it right since; suspect then, too
    bool deleting; // its files are being removed: no parent, not exported
    char *consistency, *consistency_detail;
    char *verify_result;
    int64_t verified_us;
    char *error, *details;
    uint64_t bytes_transferred, stored_bytes, total_bytes, done_bytes;
    char *context, *stem, *attempt;
    char *token_digest, *claim;
    int64_t client_pid;
    uint64_t client_start;
    int64_t last_seen_us, created_us, started_us, completed_us;
    char *resumed_from; // the interrupted job that it goes on from
    bool resumable;     // failed, and its partial images are kept: the next job may go on from them
    char *hub_id;       // whose it is; of an added one: this hub's, whatever it says here
    bool taken_over;    // from a hub that was silent, and not claimed since
} StoreBackup;

typedef struct StoreDisk {
    char *backup_id, *disk_key;
    uint64_t disk_id, disk_no;
    char *label, *backing_identity;
    uint64_t size;
    char *mode, *reason, *reason_text, *change_id, *tracking, *parent_backup_id;
    char *image, *hashes, *backing_name; // file names in disk-<n>/
    uint64_t chain_length;
    uint64_t transferred_bytes, changed_bytes, zero_bytes, done_bytes, stored_bytes, image_bytes;
    char *root, *metadata, *hashes_digest;
    int64_t exporter_pid;
    uint64_t exporter_start;
    char *socket, *control, *export_name; // of the exporter while it runs
    char *token;                          // by which the source knows this instant; NULL: it would not
    bool resumed;                         // it goes on from the interrupted job's image
    uint64_t kept_bytes;                  // of that, and neither read nor sent again
    uint64_t areas, area_bytes;           // that the tracking named
    uint64_t read_bytes;                  // from the source, audit and comparison included
    bool audited;
    uint64_t unchanged_blocks, checked_blocks, wrong_blocks; // of its audit
    bool refuted; // an audit found wrong what tracking says of the time since this point
} StoreDisk;

typedef struct StoreBackupPlace { // of a job in a listing
    int64_t created_us;
    uint64_t sequence;
    const char *id;
} StoreBackupPlace;

typedef struct StoreBackupFilter {
    const char *vm_name; // NULL: any
    const char *vm_id;   // NULL: any
    const char *status;
    int64_t repository_id; // 0: any
    uint64_t limit, offset;
    const StoreBackupPlace *behind; // those that come after it; NULL: from the first one on
} StoreBackupFilter;
#define STORE_COUNT_MAX 10000 // a total above it is not counted out

// ERR_BUSY titled "a job of this vm is running" where active_vm is taken; ERR_EXISTS where the ID is.
bool store_backup_add(Store *s, const StoreBackup *b, Err *err) must_check;
bool store_backup_get(Store *s, const char *id, StoreBackup *ret, Err *err)
    must_check; // ERR_NOT_FOUND "backup job not found"
bool store_backup_exists(Store *s, const char *id, bool *ret, Err *err) must_check;
// Newest first. *ret_total: of all that fit the filter, wherever `behind` and offset are; at most STORE_COUNT_MAX + 1.
bool store_backup_list(Store *s, const StoreBackupFilter *f, StoreBackup **ret, size_t *ret_len, uint64_t *ret_total,
                       Err *err) must_check;
bool store_backup_active(Store *s, StoreBackup **ret, size_t *ret_len, Err *err) must_check; // not final
bool store_backup_active_of(Store *s, const char *hub_id, StoreBackup **ret, size_t *ret_len, Err *err) must_check;
// Own jobs that take a place of the hub's limit: running, or their client was started. Those that commit do not.
bool store_backup_count_running(Store *s, uint64_t *ret, Err *err) must_check;
bool store_backup_count_active(Store *s, uint64_t *ret, Err *err) must_check;
bool store_backup_points(Store *s, int64_t repository_id, const char *vm_id, StoreBackup **ret, size_t *ret_len,
                         Err *err) must_check; // completed ones; vm_id NULL: all; oldest first by sequence
// IDs of completed ones, some after the other. *place: NULL at first; then where the next call goes on, NULL once there
// are no more; the caller's to free.
bool store_backup_point_ids(Store *s, int64_t repository_id, char **place, char ***ret, size_t *ret_len, Err *err)
    must_check; // each and all to be freed
// Is each of these a completed one of the repository? At most STORE_IDS_MAX of them.
#define STORE_IDS_MAX 100
bool store_backup_are_points(Store *s, int64_t repository_id, const char *const *ids, size_t len, bool *ret, Err *err)
    must_check;
// Completed ones that are marked as being deleted, or suspect; by VM, oldest first.
bool store_backup_odd_points(Store *s, int64_t repository_id, StoreBackup **ret, size_t *ret_len, Err *err) must_check;
// Newest completed point of the VM in the repository, by sequence.
bool store_backup_newest(Store *s, int64_t repository_id, const char *vm_id, StoreBackup *ret, bool *ret_found,
                         Err *err) must_check;
bool store_backup_sequence_next(Store *s, int64_t repository_id, const char *vm_id, uint64_t *ret, Err *err) must_check;
// Jobs, of any state but failed and cancelled, that have it as parent (job or disk).
bool store_backup_dependents(Store *s, const char *id, StoreBackup **ret, size_t *ret_len, Err *err) must_check;
// How many each of them has, into ret[len].
bool store_backup_count_dependents(Store *s, const StoreBackup *rows, size_t len, uint64_t *ret, Err *err) must_check;
// Conditional steps; *ret_done false where the job was not in that state, or is another hub's.
bool store_backup_step(Store *s, const char *id, const char *from, const char *to, bool *ret_done, Err *err) must_check;
bool store_backup_claim(Store *s, const char *id, const char *claim, int64_t now_us, bool *ret_done, Err *err)
    must_check;
bool store_backup_end(Store *s, const char *id, const char *status, const char *error, const char *details,
                      int64_t now_us, bool *ret_done, Err *err)
    must_check; // to failed or cancelled, from any state that is not final
// Failed and cancelled jobs whose attempt may have left files that nobody goes on from (any more): those that are
// resumable only if they ended before kept_since_us.
bool store_backup_uncleaned(Store *s, int64_t kept_since_us, StoreBackup **ret, size_t *ret_len, Err *err) must_check;
bool store_backup_resumable(Store *s, StoreBackup **ret, size_t *ret_len, Err *err) must_check; // all
// The newest of them of the VM in the repository.
bool store_backup_interrupted(Store *s, int64_t repository_id, const char *vm_id, StoreBackup *ret, bool *ret_found,
                              Err *err) must_check;
bool store_backup_set_resumable(Store *s, const char *id, bool resumable, Err *err) must_check;
// Of the VM in the repository (0: in any), nobody goes on from.
bool store_backup_forget_interrupted(Store *s, int64_t repository_id, const char *vm_id, Err *err) must_check;
bool store_backup_cleaned(Store *s, const char *id, Err *err) must_check;
bool store_backup_set_plan(Store *s, const StoreBackup *b, Err *err)
    must_check; // parent, sequence, type, reason, context, stem, attempt, partial, left_out, consistency, resumed_from
// Of a client that was started now, or is to be; ERR_CONFLICT where the job is not the own hub's any more.
bool store_backup_set_client(Store *s, const char *id, int64_t pid, uint64_t start, Err *err) must_check;
bool store_backup_set_token(Store *s, const char *id, const char *digest, Err *err) must_check;
bool store_backup_seen(Store *s, const char *id, const char *phase, int64_t now_us, Err *err) must_check;
bool store_backup_set_progress(Store *s, const char *id, Err *err) must_check; // sums from its disks, while it runs
bool store_backup_request_cancel(Store *s, const char *id, Err *err) must_check;
bool store_backup_complete(Store *s, const StoreBackup *b, Err *err)
    must_check; // everything a completed job has; status too
// One that is doubted stays suspect.
bool store_backup_set_suspect(Store *s, const char *id, bool suspect, bool damaged, Err *err) must_check;
bool store_backup_set_doubted(Store *s, const char *id, Err *err) must_check; // and suspect
bool store_backup_give_reason(Store *s, const char *id, const char *reason, const char *text, Err *err)
    must_check; // where it has none
bool store_backup_set_verified(Store *s, const char *id, const char *result, int64_t now_us, Err *err) must_check;
bool store_backup_set_deleting(Store *s, const char *id, bool deleting, Err *err) must_check;
// Own marks; newest first.
bool store_backup_deleting(Store *s, StoreBackup **ret, size_t *ret_len, Err *err) must_check;
bool store_backup_forget_deleting(Store *s, Err *err) must_check; // own marks
bool store_backup_count_deleting(Store *s, int64_t repository_id, uint64_t *ret, Err *err) must_check;
bool store_backup_remove(Store *s, const char *id, Err *err) must_check; // with its disks, at once
// backup-<vm>-<unix second>: the first second that no removed job of the VM had, of those that a clock may yet come to.
bool store_id_free_from(Store *s, const char *vm_name, int64_t *ret_second, Err *err) must_check;
void store_backup_clear(StoreBackup *b);

bool store_disk_add(Store *s, const StoreDisk *d, Err *err) must_check;
bool store_disk_remove(Store *s, const char *backup_id, Err *err) must_check; // all of its disks
bool store_disk_list(Store *s, const char *backup_id, StoreDisk **ret, size_t *ret_len, Err *err)
    must_check; // by disk_no
bool store_disk_set_exporter(Store *s, const StoreDisk *d, Err *err)
    must_check; // pid, start, socket, control, export_name, resumed
// Only while the job is running: from committing on the rows are what the commit record is made of.
bool store_disk_set_progress(Store *s, const StoreDisk *d, Err *err) must_check;
bool store_disk_set_sealed(Store *s, const StoreDisk *d, Err *err)
    must_check; // change_id, tracking, bytes, areas, root, digests
bool store_disk_set_refuted(Store *s, const char *backup_id, const char *disk_key, Err *err) must_check;
bool store_disk_set_audit(Store *s, const StoreDisk *d, Err *err) must_check; // blocks, mode, reason, reason_text
bool store_disk_forget_exporters(Store *s, const char *backup_id, Err *err) must_check;
void store_disk_clear(StoreDisk *d);

// ---- exports of points
typedef struct StoreExport {
    char *id, *backup_id, *disk_key, *purpose;
    int64_t pid;
    uint64_t start;
    char *socket, *control, *export_name;
    int64_t created_us, used_us;
    char *hub_id; // whose it is; of an added one: this hub's
} StoreExport;
bool store_export_add(Store *s, const StoreExport *e, Err *err) must_check;
bool store_export_get(Store *s, const char *id, StoreExport *ret, Err *err) must_check;    // "export not found"
bool store_export_list(Store *s, StoreExport **ret, size_t *ret_len, Err *err) must_check; // all hubs'
bool store_export_used(Store *s, const char *id, int64_t now_us, Err *err) must_check;
bool store_export_remove(Store *s, const char *id, Err *err) must_check;
void store_export_clear(StoreExport *e);

// The machine was started anew: no process of this hub's on record is the one that was meant.
bool store_forget_processes(Store *s, Err *err) must_check;

// ---- replications
typedef struct StoreReplication {
    char *id, *vm_name, *target, *status, *change_id;
    int64_t created_us, updated_us;
} StoreReplication;
typedef struct StoreChangeId {
    int64_t id;
    char *job_id, *change_id;
    int64_t disk_id; // -1: not said
    int64_t recorded_us;
} StoreChangeId;
bool store_replication_add(Store *s, const StoreReplication *r, Err *err) must_check;
bool store_replication_get(Store *s, const char *id, StoreReplication *ret, Err *err) must_check; // "Job not found"
bool store_replication_list(Store *s, StoreReplication **ret, size_t *ret_len, Err *err) must_check;
// Appends to the history and sets the job's change_id, in one transaction.
bool store_replication_record(Store *s, const StoreChangeId *c, Err *err) must_check;
bool store_replication_history(Store *s, const char *job_id, StoreChangeId **ret, size_t *ret_len, Err *err)
    must_check; // newest first
void store_replication_clear(StoreReplication *r);
void store_changeid_clear(StoreChangeId *c);

#define STORE_LIST_FREE(list, len, clear)     \
    do {                                      \
        for (size_t i_ = 0; i_ < (len); i_++) \
            clear(&(list)[i_]);               \
        free(list);                           \
        (list) = NULL;                        \
        (len) = 0;                            \
    } while (0)
