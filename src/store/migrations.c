// The schema, in numbered steps. One statement each, so that a database whose DDL is not
// transactional can run a step again. A step, once released, is never edited.
#include "base/clock.h"
#include "base/file.h"
#include "store/db.h"

static const char *const steps[] = {
    /* 1 */
    "CREATE TABLE repositories (id INTEGER PRIMARY KEY AUTOINCREMENT, name VARCHAR(255) NOT NULL UNIQUE,"
    " uuid VARCHAR(36) NOT NULL UNIQUE, path VARCHAR(1000) NOT NULL UNIQUE, hash_algorithm VARCHAR(16) NOT NULL,"
    " cluster_size BIGINT NOT NULL, compression BIGINT NOT NULL, created_at VARCHAR(32) NOT NULL)",
    /* 2 */
    "CREATE TABLE vms (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL UNIQUE, source TEXT NOT NULL,"
    " excluded_disks TEXT NOT NULL, created_at VARCHAR(32) NOT NULL)",
    /* 3 */
    "CREATE TABLE vm_contexts (repository_id BIGINT NOT NULL, vm_id VARCHAR(36) NOT NULL, folder VARCHAR(255) NOT NULL,"
    " PRIMARY KEY (repository_id, vm_id))",
    /* 4 */
    "CREATE TABLE vm_disks (repository_id BIGINT NOT NULL, vm_id VARCHAR(36) NOT NULL, disk_key VARCHAR(255) NOT NULL,"
    " disk_id BIGINT NOT NULL, disk_no BIGINT NOT NULL, PRIMARY KEY (repository_id, vm_id, disk_key),"
    " UNIQUE (repository_id, vm_id, disk_no))",
    /* 5 */
    "CREATE TABLE backup_jobs (id VARCHAR(300) PRIMARY KEY, vm_id VARCHAR(36) NOT NULL, vm_name VARCHAR(255) NOT NULL,"
    " repository_id BIGINT NOT NULL, backup_type VARCHAR(16) NOT NULL, requested_type VARCHAR(16) NOT NULL,"
    " status VARCHAR(16) NOT NULL, phase VARCHAR(64), active_vm VARCHAR(36) UNIQUE, change_id VARCHAR(255),"
    " parent_id VARCHAR(300), sequence BIGINT NOT NULL, reason VARCHAR(32), reason_text TEXT, left_out TEXT,"
    " partial INTEGER NOT NULL, suspect INTEGER NOT NULL, damaged INTEGER NOT NULL, deleting INTEGER NOT NULL,"
    " cancel_requested INTEGER NOT NULL, start_client INTEGER NOT NULL, consistency VARCHAR(32),"
    " consistency_detail TEXT, verify_result VARCHAR(16),"
    " verified_at VARCHAR(32), error TEXT, details TEXT, bytes_transferred BIGINT NOT NULL,"
    " stored_bytes BIGINT NOT NULL, total_bytes BIGINT NOT NULL, done_bytes BIGINT NOT NULL, context VARCHAR(255),"
    " stem VARCHAR(255), attempt VARCHAR(32), token_digest VARCHAR(64), claim VARCHAR(64), client_pid BIGINT NOT NULL,"
    " client_start BIGINT NOT NULL, last_seen_at VARCHAR(32), created_at VARCHAR(32) NOT NULL, started_at VARCHAR(32),"
    " completed_at VARCHAR(32))",
    /* 6 */ "CREATE INDEX backup_jobs_by_vm ON backup_jobs (repository_id, vm_id, sequence)",
    /* 7 */ "CREATE INDEX backup_jobs_by_name ON backup_jobs (vm_name, created_at)",
    /* 8 */
    "CREATE TABLE backup_disks (backup_id VARCHAR(300) NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,"
    " disk_key VARCHAR(255) NOT NULL, disk_id BIGINT NOT NULL, disk_no BIGINT NOT NULL, label TEXT,"
    " backing_identity TEXT, size BIGINT NOT NULL, mode VARCHAR(16) NOT NULL, reason VARCHAR(32), reason_text TEXT,"
    " change_id VARCHAR(255), tracking VARCHAR(16), parent_backup_id VARCHAR(300), image VARCHAR(255),"
    " hashes VARCHAR(255), backing_name VARCHAR(255), chain_length BIGINT NOT NULL, transferred_bytes BIGINT NOT NULL,"
    " changed_bytes BIGINT NOT NULL, zero_bytes BIGINT NOT NULL, done_bytes BIGINT NOT NULL,"
    " stored_bytes BIGINT NOT NULL, image_bytes BIGINT NOT NULL, root VARCHAR(64), metadata VARCHAR(64),"
    " hashes_digest VARCHAR(64), exporter_pid BIGINT NOT NULL, exporter_start BIGINT NOT NULL, socket TEXT,"
    " control TEXT, export_name TEXT, PRIMARY KEY (backup_id, disk_key))",
    /* 9 */
    "CREATE TABLE exports (id VARCHAR(36) PRIMARY KEY, backup_id VARCHAR(300) NOT NULL, disk_key VARCHAR(255) NOT NULL,"
    " purpose VARCHAR(16) NOT NULL, pid BIGINT NOT NULL, start BIGINT NOT NULL, socket TEXT, control TEXT,"
    " export_name TEXT, created_at VARCHAR(32) NOT NULL, used_at VARCHAR(32) NOT NULL)",
    /* 10 */
    "CREATE TABLE replication_jobs (id VARCHAR(300) PRIMARY KEY, vm_name VARCHAR(255) NOT NULL, target TEXT,"
    " status VARCHAR(16) NOT NULL, change_id VARCHAR(255), created_at VARCHAR(32) NOT NULL,"
    " updated_at VARCHAR(32) NOT NULL)",
    /* 11 */
    "CREATE TABLE replication_change_ids (id INTEGER PRIMARY KEY AUTOINCREMENT, job_id VARCHAR(300) NOT NULL REFERENCES"
    " replication_jobs (id) ON DELETE CASCADE, disk_id BIGINT NOT NULL, change_id VARCHAR(255) NOT NULL,"
    " recorded_at VARCHAR(32) NOT NULL)",
    /* 12 */ "ALTER TABLE backup_jobs ADD COLUMN resumed_from VARCHAR(300)",
    /* 13 */ "ALTER TABLE backup_jobs ADD COLUMN resumable INTEGER NOT NULL DEFAULT 0",
    /* 14 */ "ALTER TABLE backup_disks ADD COLUMN token TEXT",
    /* 15 */ "ALTER TABLE backup_disks ADD COLUMN resumed INTEGER NOT NULL DEFAULT 0",
    /* 16 */ "ALTER TABLE backup_disks ADD COLUMN kept_bytes BIGINT NOT NULL DEFAULT 0",
    /* 17 */
    "CREATE TABLE sources (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL UNIQUE, type VARCHAR(16) NOT NULL,"
    " address VARCHAR(300) NOT NULL, user_name VARCHAR(255) NOT NULL, secret TEXT NOT NULL, thumbprint VARCHAR(95),"
    " ca_pem TEXT, created_at VARCHAR(32) NOT NULL)",
    /* 18 */ "ALTER TABLE vms ADD COLUMN source_id VARCHAR(36) REFERENCES sources (id)",
    /* 19 */ "ALTER TABLE vms ADD COLUMN audit_blocks BIGINT NOT NULL DEFAULT -1",
    /* 20 */ "ALTER TABLE backup_jobs ADD COLUMN doubted INTEGER NOT NULL DEFAULT 0",
    /* 21 */ "ALTER TABLE backup_disks ADD COLUMN areas BIGINT NOT NULL DEFAULT 0",
    /* 22 */ "ALTER TABLE backup_disks ADD COLUMN area_bytes BIGINT NOT NULL DEFAULT 0",
    /* 23 */ "ALTER TABLE backup_disks ADD COLUMN read_bytes BIGINT NOT NULL DEFAULT 0",
    /* 24 */ "ALTER TABLE backup_disks ADD COLUMN unchanged_blocks BIGINT NOT NULL DEFAULT 0",
    /* 25 */ "ALTER TABLE backup_disks ADD COLUMN checked_blocks BIGINT NOT NULL DEFAULT 0",
    /* 26 */ "ALTER TABLE backup_disks ADD COLUMN wrong_blocks BIGINT NOT NULL DEFAULT 0",
    /* 27 */ "ALTER TABLE backup_disks ADD COLUMN audited INTEGER NOT NULL DEFAULT 0",
    /* 28 */ "ALTER TABLE backup_disks ADD COLUMN refuted INTEGER NOT NULL DEFAULT 0",
    /* 29 */
    "CREATE TABLE api_tokens (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL UNIQUE, role VARCHAR(16) NOT"
    " NULL, digest VARCHAR(64) NOT NULL UNIQUE, created_at VARCHAR(32) NOT NULL, created_by VARCHAR(300) NOT NULL,"
    " expires_at VARCHAR(32), used_at VARCHAR(32))",
    /* 30 */
    "CREATE TABLE audit_log (id BIGINT PRIMARY KEY, at VARCHAR(32) NOT NULL, actor VARCHAR(300) NOT NULL, role"
    " VARCHAR(16) NOT NULL, remote VARCHAR(64) NOT NULL, method VARCHAR(32) NOT NULL, path TEXT NOT NULL, object"
    " TEXT NOT NULL, status BIGINT NOT NULL, hash VARCHAR(64) NOT NULL)",
    /* 31 */
    "CREATE TABLE users (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL UNIQUE, role VARCHAR(16) NOT NULL,"
    " password VARCHAR(128) NOT NULL, disabled INTEGER NOT NULL DEFAULT 0, created_at VARCHAR(32) NOT NULL, created_by"
    " VARCHAR(300) NOT NULL, changed_at VARCHAR(32) NOT NULL, login_at VARCHAR(32))",
    /* 32 */
    "CREATE TABLE sessions (digest VARCHAR(64) PRIMARY KEY, user_id VARCHAR(36) NOT NULL, remote VARCHAR(64) NOT NULL,"
    " created_at VARCHAR(32) NOT NULL, used_at VARCHAR(32) NOT NULL)",
    // listings of a million points, in their order; what rests on a point; the points of a VM
    /* 33 */ "CREATE INDEX backup_jobs_by_time ON backup_jobs (created_at, sequence, id)",
    /* 34 */ "CREATE INDEX backup_jobs_by_status ON backup_jobs (status, created_at, sequence, id)",
    /* 35 */ "CREATE INDEX backup_jobs_by_repository ON backup_jobs (repository_id, created_at, sequence, id)",
    /* 36 */ "CREATE INDEX backup_jobs_by_both ON backup_jobs (repository_id, status, created_at, sequence, id)",
    /* 37 */ "CREATE INDEX backup_jobs_of_vm ON backup_jobs (vm_id, created_at, sequence, id)",
    /* 38 */ "CREATE INDEX backup_jobs_of_parent ON backup_jobs (parent_id)",
    /* 39 */ "CREATE INDEX backup_disks_of_parent ON backup_disks (parent_backup_id)",
    /* 40 */ "CREATE TABLE hub_state (name VARCHAR(64) PRIMARY KEY, value TEXT NOT NULL)",
    // several hubs: whose is what. docs/internals/hubs.md
    /* 41 */
    "CREATE TABLE hubs (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL, version VARCHAR(32) NOT NULL,"
    " lease_seconds BIGINT NOT NULL, beats BIGINT NOT NULL, stopped INTEGER NOT NULL, started_at VARCHAR(32) NOT NULL,"
    " beat_at VARCHAR(32) NOT NULL)",
    /* 42 */ "ALTER TABLE backup_jobs ADD COLUMN hub_id VARCHAR(36) NOT NULL DEFAULT ''",
    /* 43 */ "ALTER TABLE backup_jobs ADD COLUMN taken_over INTEGER NOT NULL DEFAULT 0",
    /* 44 */ "ALTER TABLE backup_jobs ADD COLUMN deleting_hub VARCHAR(36) NOT NULL DEFAULT ''",
    /* 45 */ "ALTER TABLE exports ADD COLUMN hub_id VARCHAR(36) NOT NULL DEFAULT ''",
    // what lists and metrics say of each VM and repository, without a look at the rows: docs/internals/scale.md
    /* 46 */
    "CREATE INDEX backup_jobs_points ON backup_jobs"
    " (vm_id, status, repository_id, deleting, suspect, verify_result, created_at)",
    /* 47 */ "CREATE INDEX backup_jobs_stored ON backup_jobs (repository_id, status, deleting, suspect,"
    " stored_bytes)",
};

unsigned db_schema_newest(void)
{
    return ARRAY_LEN(steps);
}

static bool run_step(Db *db, unsigned version, bool first, Err *err)
{
    char now[CLOCK_TEXT];
    clock_format(clock_utc_us(), now);
    return (db->ops->define(db, steps[version - 1], first, err) &&
            db_run(db, "INSERT INTO schema_migrations (version, applied_at) VALUES (?, ?)",
                   DB_ARGS(DB_N(version), DB_T(now)), NULL, err)) ||
        err_context(err, "migration %u", version);
}

// Steps from..to, in one transaction.
static bool run_steps(Db *db, unsigned from, unsigned to, bool first, Err *err)
{
    if (!db->ops->begin(db, err))
        return false;
    for (unsigned v = from; v <= to; v++) {
        if (!run_step(db, v, first, err)) {
            db->ops->rollback(db);
            return false;
        }
    }
    return db->ops->commit(db, err);
}

bool db_migrate(Db *db, const char *copy_path_prefix, Err *err)
{
    int64_t version;
    if (!db->ops->define(db,
                         "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY,"
                         " applied_at VARCHAR(32) NOT NULL)",
                         false, err) ||
        !db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &version, err))
        return false;
    if (version > (int64_t)ARRAY_LEN(steps))
        return err_set(err, ERR_UNSUPPORTED,
                       "the database has schema %lld, this program knows up to %zu; start the newer version again",
                       (long long)version, ARRAY_LEN(steps));
    if (version > 0 && version < (int64_t)ARRAY_LEN(steps) && copy_path_prefix) {
        cleanup_free char *copy = mem_printf(err, "%s.before-%zu", copy_path_prefix, ARRAY_LEN(steps));
        if (!copy || !file_unlink(copy, err) || !db->ops->backup(db, copy, NULL, err))
            return false;
    }
    // All or nothing where that can be: the copy of what was before is never one of what is half way.
    const unsigned next = (unsigned)version + 1, newest = ARRAY_LEN(steps);
    if (db->ops->defines_whole)
        return next > newest || run_steps(db, next, newest, true, err);
    for (unsigned v = next; v <= newest; v++)
        if (!run_steps(db, v, v, v == next, err))
            return false;
    return true;
}
