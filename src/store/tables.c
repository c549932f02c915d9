#include "store/tables.h"

#include <stddef.h>

#define C(member, column, kind)                         \
    {                                                   \
        column, kind, offsetof(StoreRepository, member) \
    }
static const DbColumn repository_columns[] = {
    C(id, "id", DB_SKIP_ON_INSERT_I64),
    C(name, "name", DB_TEXT),
    C(uuid, "uuid", DB_TEXT),
    C(path, "path", DB_TEXT),
    C(hash_algorithm, "hash_algorithm", DB_TEXT),
    C(cluster_size, "cluster_size", DB_U64),
    C(compression, "compression", DB_U64),
    C(created_us, "created_at", DB_TIME),
};
#undef C
const DbTable tables_repository = {"repositories", repository_columns, ARRAY_LEN(repository_columns),
                                   sizeof(StoreRepository)};

#define C(member, column, kind)                     \
    {                                               \
        column, kind, offsetof(StoreSource, member) \
    }
static const DbColumn source_columns[] = {
    C(id, "id", DB_TEXT),
    C(name, "name", DB_TEXT),
    C(type, "type", DB_TEXT),
    C(address, "address", DB_TEXT),
    C(user, "user_name", DB_TEXT),
    C(secret, "secret", DB_TEXT),
    C(thumbprint, "thumbprint", DB_TEXT),
    C(ca_pem, "ca_pem", DB_TEXT),
    C(created_us, "created_at", DB_TIME),
};
#undef C
const DbTable tables_source = {"sources", source_columns, ARRAY_LEN(source_columns), sizeof(StoreSource)};

#define C(member, column, kind)                 \
    {                                           \
        column, kind, offsetof(StoreVm, member) \
    }
static const DbColumn vm_columns[] = {
    C(id, "id", DB_TEXT),
    C(name, "name", DB_TEXT),
    C(source, "source", DB_TEXT),
    C(excluded, "excluded_disks", DB_TEXT),
    C(source_id, "source_id", DB_TEXT),
    C(audit_blocks, "audit_blocks", DB_I64),
    C(created_us, "created_at", DB_TIME),
};
#undef C
const DbTable tables_vm = {"vms", vm_columns, ARRAY_LEN(vm_columns), sizeof(StoreVm)};

#define C(member, column, kind)                         \
    {                                                   \
        column, kind, offsetof(StoreDiskNumber, member) \
    }
static const DbColumn disk_number_columns[] = {
    C(repository_id, "repository_id", DB_I64),
    C(vm_id, "vm_id", DB_TEXT),
    C(disk_key, "disk_key", DB_TEXT),
    C(disk_id, "disk_id", DB_U64),
    C(disk_no, "disk_no", DB_U64),
};
#undef C
const DbTable tables_disk_number = {"vm_disks", disk_number_columns, ARRAY_LEN(disk_number_columns),
                                    sizeof(StoreDiskNumber)};

#define C(member, column, kind)                     \
    {                                               \
        column, kind, offsetof(StoreBackup, member) \
    }
static const DbColumn backup_columns[] = {
    C(id, "id", DB_TEXT),
    C(vm_id, "vm_id", DB_TEXT),
    C(vm_name, "vm_name", DB_TEXT),
    C(repository_id, "repository_id", DB_I64),
    C(backup_type, "backup_type", DB_TEXT),
    C(requested_type, "requested_type", DB_TEXT),
    C(status, "status", DB_TEXT),
    C(phase, "phase", DB_TEXT),
    C(active_vm, "active_vm", DB_TEXT),
    C(change_id, "change_id", DB_TEXT),
    C(parent_id, "parent_id", DB_TEXT),
    C(sequence, "sequence", DB_U64),
    C(reason, "reason", DB_TEXT),
    C(reason_text, "reason_text", DB_TEXT),
    C(left_out, "left_out", DB_TEXT),
    C(partial, "partial", DB_BOOL),
    C(suspect, "suspect", DB_BOOL),
    C(damaged, "damaged", DB_BOOL),
    C(doubted, "doubted", DB_BOOL),
    C(deleting, "deleting", DB_BOOL),
    C(cancel_requested, "cancel_requested", DB_BOOL),
    C(start_client, "start_client", DB_BOOL),
    C(consistency, "consistency", DB_TEXT),
    C(consistency_detail, "consistency_detail", DB_TEXT),
    C(verify_result, "verify_result", DB_TEXT),
    C(verified_us, "verified_at", DB_TIME),
    C(error, "error", DB_TEXT),
    C(details, "details", DB_TEXT),
    C(bytes_transferred, "bytes_transferred", DB_U64),
    C(stored_bytes, "stored_bytes", DB_U64),
    C(total_bytes, "total_bytes", DB_U64),
    C(done_bytes, "done_bytes", DB_U64),
    C(context, "context", DB_TEXT),
    C(stem, "stem", DB_TEXT),
    C(attempt, "attempt", DB_TEXT),
    C(token_digest, "token_digest", DB_TEXT),
    C(claim, "claim", DB_TEXT),
    C(client_pid, "client_pid", DB_I64),
    C(client_start, "client_start", DB_U64),
    C(last_seen_us, "last_seen_at", DB_TIME),
    C(created_us, "created_at", DB_TIME),
    C(started_us, "started_at", DB_TIME),
    C(completed_us, "completed_at", DB_TIME),
    C(resumed_from, "resumed_from", DB_TEXT),
    C(resumable, "resumable", DB_BOOL),
    C(hub_id, "hub_id", DB_TEXT),
    C(taken_over, "taken_over", DB_BOOL),
};
#undef C
const DbTable tables_backup = {"backup_jobs", backup_columns, ARRAY_LEN(backup_columns), sizeof(StoreBackup)};

#define C(member, column, kind)                   \
    {                                             \
        column, kind, offsetof(StoreDisk, member) \
    }
static const DbColumn disk_columns[] = {
    C(backup_id, "backup_id", DB_TEXT),
    C(disk_key, "disk_key", DB_TEXT),
    C(disk_id, "disk_id", DB_U64),
    C(disk_no, "disk_no", DB_U64),
    C(label, "label", DB_TEXT),
    C(backing_identity, "backing_identity", DB_TEXT),
    C(size, "size", DB_U64),
    C(mode, "mode", DB_TEXT),
    C(reason, "reason", DB_TEXT),
    C(reason_text, "reason_text", DB_TEXT),
    C(change_id, "change_id", DB_TEXT),
    C(tracking, "tracking", DB_TEXT),
    C(parent_backup_id, "parent_backup_id", DB_TEXT),
    C(image, "image", DB_TEXT),
    C(hashes, "hashes", DB_TEXT),
    C(backing_name, "backing_name", DB_TEXT),
    C(chain_length, "chain_length", DB_U64),
    C(transferred_bytes, "transferred_bytes", DB_U64),
    C(changed_bytes, "changed_bytes", DB_U64),
    C(zero_bytes, "zero_bytes", DB_U64),
    C(done_bytes, "done_bytes", DB_U64),
    C(stored_bytes, "stored_bytes", DB_U64),
    C(image_bytes, "image_bytes", DB_U64),
    C(root, "root", DB_TEXT),
    C(metadata, "metadata", DB_TEXT),
    C(hashes_digest, "hashes_digest", DB_TEXT),
    C(exporter_pid, "exporter_pid", DB_I64),
    C(exporter_start, "exporter_start", DB_U64),
    C(socket, "socket", DB_TEXT),
    C(control, "control", DB_TEXT),
    C(export_name, "export_name", DB_TEXT),
    C(token, "token", DB_TEXT),
    C(resumed, "resumed", DB_BOOL),
    C(kept_bytes, "kept_bytes", DB_U64),
    C(areas, "areas", DB_U64),
    C(area_bytes, "area_bytes", DB_U64),
    C(read_bytes, "read_bytes", DB_U64),
    C(unchanged_blocks, "unchanged_blocks", DB_U64),
    C(checked_blocks, "checked_blocks", DB_U64),
    C(wrong_blocks, "wrong_blocks", DB_U64),
    C(audited, "audited", DB_BOOL),
    C(refuted, "refuted", DB_BOOL),
};
#undef C
const DbTable tables_disk = {"backup_disks", disk_columns, ARRAY_LEN(disk_columns), sizeof(StoreDisk)};

#define C(member, column, kind)                     \
    {                                               \
        column, kind, offsetof(StoreExport, member) \
    }
static const DbColumn export_columns[] = {
    C(id, "id", DB_TEXT),
    C(backup_id, "backup_id", DB_TEXT),
    C(disk_key, "disk_key", DB_TEXT),
    C(purpose, "purpose", DB_TEXT),
    C(pid, "pid", DB_I64),
    C(start, "start", DB_U64),
    C(socket, "socket", DB_TEXT),
    C(control, "control", DB_TEXT),
    C(export_name, "export_name", DB_TEXT),
    C(created_us, "created_at", DB_TIME),
    C(used_us, "used_at", DB_TIME),
    C(hub_id, "hub_id", DB_TEXT),
};
#undef C
const DbTable tables_export = {"exports", export_columns, ARRAY_LEN(export_columns), sizeof(StoreExport)};

#define C(member, column, kind)                          \
    {                                                    \
        column, kind, offsetof(StoreReplication, member) \
    }
static const DbColumn replication_columns[] = {
    C(id, "id", DB_TEXT),
    C(vm_name, "vm_name", DB_TEXT),
    C(target, "target", DB_TEXT),
    C(status, "status", DB_TEXT),
    C(change_id, "change_id", DB_TEXT),
    C(created_us, "created_at", DB_TIME),
    C(updated_us, "updated_at", DB_TIME),
};
#undef C
const DbTable tables_replication = {"replication_jobs", replication_columns, ARRAY_LEN(replication_columns),
                                    sizeof(StoreReplication)};

#define C(member, column, kind)                       \
    {                                                 \
        column, kind, offsetof(StoreChangeId, member) \
    }
static const DbColumn change_id_columns[] = {
    C(id, "id", DB_SKIP_ON_INSERT_I64), C(job_id, "job_id", DB_TEXT),           C(disk_id, "disk_id", DB_I64),
    C(change_id, "change_id", DB_TEXT), C(recorded_us, "recorded_at", DB_TIME),
};
#undef C
const DbTable tables_change_id = {"replication_change_ids", change_id_columns, ARRAY_LEN(change_id_columns),
                                  sizeof(StoreChangeId)};

#define C(member, column, kind)                    \
    {                                              \
        column, kind, offsetof(StoreToken, member) \
    }
static const DbColumn token_columns[] = {
    C(id, "id", DB_TEXT),
    C(name, "name", DB_TEXT),
    C(role, "role", DB_TEXT),
    C(digest, "digest", DB_TEXT),
    C(created_us, "created_at", DB_TIME),
    C(created_by, "created_by", DB_TEXT),
    C(expires_us, "expires_at", DB_TIME),
    C(used_us, "used_at", DB_TIME),
};
#undef C
const DbTable tables_token = {"api_tokens", token_columns, ARRAY_LEN(token_columns), sizeof(StoreToken)};

#define C(member, column, kind)                    \
    {                                              \
        column, kind, offsetof(StoreTrail, member) \
    }
static const DbColumn trail_columns[] = {
    C(id, "id", DB_I64),      C(at_us, "at", DB_TIME),      C(actor, "actor", DB_TEXT),
    C(role, "role", DB_TEXT), C(remote, "remote", DB_TEXT), C(method, "method", DB_TEXT),
    C(path, "path", DB_TEXT), C(object, "object", DB_TEXT), C(status, "status", DB_I64),
    C(hash, "hash", DB_TEXT),
};
#undef C
const DbTable tables_trail = {"audit_log", trail_columns, ARRAY_LEN(trail_columns), sizeof(StoreTrail)};

#define C(member, column, kind)                   \
    {                                             \
        column, kind, offsetof(StoreUser, member) \
    }
static const DbColumn user_columns[] = {
    C(id, "id", DB_TEXT),
    C(name, "name", DB_TEXT),
    C(role, "role", DB_TEXT),
    C(password, "password", DB_TEXT),
    C(disabled, "disabled", DB_BOOL),
    C(created_us, "created_at", DB_TIME),
    C(created_by, "created_by", DB_TEXT),
    C(changed_us, "changed_at", DB_TIME),
    C(login_us, "login_at", DB_TIME),
};
#undef C
const DbTable tables_user = {"users", user_columns, ARRAY_LEN(user_columns), sizeof(StoreUser)};

#define C(member, column, kind)                      \
    {                                                \
        column, kind, offsetof(StoreSession, member) \
    }
static const DbColumn session_columns[] = {
    C(digest, "digest", DB_TEXT),         C(user_id, "user_id", DB_TEXT), C(remote, "remote", DB_TEXT),
    C(created_us, "created_at", DB_TIME), C(used_us, "used_at", DB_TIME),
};
#undef C
const DbTable tables_session = {"sessions", session_columns, ARRAY_LEN(session_columns), sizeof(StoreSession)};
