#include "unit.h"

#include "base/clock.h"
#include "base/file.h"
#include "domain/job.h"
#include "store/db.h"
#include "store/store.h"
#include "store/tables.h"

#include <mysql.h>

// Over SQLite; and, where SENDENSE_TEST_MARIADB names a server's socket (tests/tools/with-mariadb), over MariaDB.

#define DATABASE "sendense_test"

typedef struct Fixture {
    void *folder;
    Store *store;
    char path[256];
    int64_t repository;
    const char *mariadb; // its socket; NULL: SQLite
} Fixture;

static Fixture fx;

static StoreMariadb server(void)
{
    return (StoreMariadb){.host = fx.mariadb, .name = DATABASE, .user = "root"};
}

static bool open_store(Store **ret, Err *err)
{
    StoreMariadb spec = server();
    return fx.mariadb ? store_open_mariadb(&spec, ret, err) : store_open_sqlite(fx.path, ret, err);
}

static bool open_db(Db **ret, Err *err)
{
    StoreMariadb spec = server();
    return fx.mariadb ? db_mariadb_open(&spec, ret, err) : db_sqlite_open(fx.path, ret, err);
}

// What no user of the store does.
static void ask_server(const char *sql)
{
    MYSQL *m = mysql_init(NULL);
    unsigned protocol = MYSQL_PROTOCOL_SOCKET;
    assert_non_null(m);
    assert_int_equal(mysql_optionsv(m, MYSQL_OPT_PROTOCOL, (void *)&protocol), 0);
    assert_non_null(mysql_real_connect(m, NULL, "root", "", NULL, 0, fx.mariadb, 0));
    if (mysql_query(m, sql) != 0)
        fail_msg("%s: %s", sql, mysql_error(m));
    mysql_close(m);
}

static int setup(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    fx = (Fixture){0};
    if (unit_folder_setup(&fx.folder) != 0)
        return -1;
    (void)snprintf(fx.path, sizeof(fx.path), "%s", unit_path(&fx.folder, "sendense.db"));
    fx.mariadb = getenv("SENDENSE_TEST_MARIADB");
    if (fx.mariadb) {
        ask_server("DROP DATABASE IF EXISTS " DATABASE);
        ask_server("CREATE DATABASE " DATABASE " CHARACTER SET latin1"); // whatever it is, our tables have their own
    }
    StoreRepository r = {.name = (char *)"r",
                         .uuid = (char *)"u",
                         .path = (char *)"/r",
                         .hash_algorithm = (char *)"xxh3-128",
                         .cluster_size = 65536,
                         .created_us = 1};
    if (open_store(&fx.store, &err) && store_repository_add(fx.store, &r, &fx.repository, &err))
        return 0;
    print_error("%s\n", err.details);
    return -1;
}

static int teardown(void **state)
{
    (void)state;
    store_close(fx.store);
    return unit_folder_teardown(&fx.folder);
}

// A job of VM "v" in a state; active_vm as the service sets it.
static StoreBackup job(const char *id, const char *status, uint64_t sequence)
{
    JobState state = JOB_PENDING;
    Err err = ERR_INIT;
    assert_ok(job_state_parse(status, &state, &err), &err);
    StoreBackup b = {.repository_id = fx.repository, .sequence = sequence, .created_us = (int64_t)sequence * 1000000};
    b.id = (char *)id;
    b.vm_id = (char *)"v-id";
    b.vm_name = (char *)"v";
    b.backup_type = b.requested_type = (char *)"full";
    b.status = (char *)status;
    b.active_vm = job_state_is_final(state) ? NULL : (char *)"v-id";
    return b;
}

static void add(const char *id, const char *status, uint64_t sequence)
{
    Err err = ERR_INIT;
    StoreBackup b = job(id, status, sequence);
    assert_ok(store_backup_add(fx.store, &b, &err), &err);
}

static void assert_status(const char *id, const char *expected)
{
    Err err = ERR_INIT;
    StoreBackup b = {0};
    assert_ok(store_backup_get(fx.store, id, &b, &err), &err);
    assert_string_equal(b.status, expected);
    store_backup_clear(&b);
}

static void test_row_round_trip(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreBackup b = job("backup-v-1", "pending", 7), got = {0};
    b.reason_text = (char *)"it's \"odd\"; DROP TABLE backup_jobs; \xc3\xbc";
    b.total_bytes = UINT64_C(1) << 55;
    b.partial = true;
    b.last_seen_us = 1234567890123456;
    assert_ok(store_backup_add(fx.store, &b, &err), &err);
    assert_ok(store_backup_get(fx.store, "backup-v-1", &got, &err), &err);
    assert_string_equal(got.reason_text, b.reason_text);
    assert_int_equal(got.total_bytes, b.total_bytes);
    assert_int_equal(got.last_seen_us, b.last_seen_us);
    assert_true(got.partial);
    assert_false(got.suspect);
    assert_null(got.change_id);
    assert_int_equal(got.completed_us, 0);
    store_backup_clear(&got);
    assert_fails(store_backup_get(fx.store, "backup-v-2", &got, &err), &err, ERR_NOT_FOUND);
}

static void test_one_job_a_vm(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    bool ended;
    add("backup-v-1", "pending", 1);
    StoreBackup second = job("backup-v-2", "pending", 2);
    assert_fails(store_backup_add(fx.store, &second, &err), &err, ERR_BUSY);
    assert_ok(store_backup_end(fx.store, "backup-v-1", "failed", "e", "d", 5, &ended, &err), &err);
    assert_true(ended);
    assert_ok(store_backup_add(fx.store, &second, &err), &err);
}

// The affected rows were read before the UPDATE ran: a step that was taken said that it was not.
static void test_conditional_step_tells_whether_it_was_taken(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    bool done = false;
    add("backup-v-1", "pending", 1);
    assert_ok(store_backup_claim(fx.store, "backup-v-1", "c", 1, &done, &err), &err);
    assert_true(done);
    assert_ok(store_backup_claim(fx.store, "backup-v-1", "d", 1, &done, &err), &err);
    assert_false(done);
    assert_ok(store_backup_step(fx.store, "backup-v-1", "running", "committing", &done, &err), &err);
    assert_true(done);
    assert_ok(store_backup_step(fx.store, "backup-v-1", "running", "committing", &done, &err), &err);
    assert_false(done);
}

static void enter(const char *id)
{
    Err err = ERR_INIT;
    StoreHub h = {.id = (char *)(uintptr_t)id,
                  .name = (char *)(uintptr_t)id,
                  .version = "1",
                  .lease_s = 30,
                  .started_us = 1,
                  .beat_us = 1};
    assert_ok(store_hub_enter(fx.store, &h, &err), &err);
}

static StoreHub hub_row(const char *id)
{
    Err err = ERR_INIT;
    StoreHub *rows = NULL, found = {0};
    size_t len = 0;
    assert_ok(store_hub_list(fx.store, &rows, &len, &err), &err);
    for (size_t i = 0; i < len; i++)
        if (strcmp(rows[i].id, id) == 0)
            found = (StoreHub){.id = (char *)(uintptr_t)id, .beats = rows[i].beats};
    STORE_LIST_FREE(rows, len, store_hub_clear);
    assert_non_null(found.id);
    return found;
}

// Between any two lines of its code a hub may be stopped past its lease: each step of a job asks whose it is.
static void test_a_job_is_its_hub_s(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip(); // SQLite has one hub
    Err err = ERR_INIT;
    bool done;
    StoreBackup b = {0};
    enter("a");
    add("backup-v-1", "pending", 1);
    enter("b");
    assert_ok(store_backup_claim(fx.store, "backup-v-1", "c", 1, &done, &err), &err);
    assert_false(done);
    enter("a");
    assert_ok(store_backup_claim(fx.store, "backup-v-1", "c", 1, &done, &err), &err);
    assert_true(done);
    StoreHub a = hub_row("a");
    assert_ok(store_hub_beat(fx.store, &err), &err); // heard since it was looked at
    enter("b");
    assert_ok(store_backup_step(fx.store, "backup-v-1", "running", "committing", &done, &err), &err);
    assert_false(done);
    assert_ok(store_backup_end(fx.store, "backup-v-1", "failed", "e", "d", 5, &done, &err), &err);
    assert_false(done);
    assert_ok(store_backup_take_over(fx.store, "backup-v-1", &a, &done, &err), &err);
    assert_false(done);
    a = hub_row("a");
    assert_ok(store_backup_take_over(fx.store, "backup-v-1", &a, &done, &err), &err);
    assert_true(done);
    assert_ok(store_backup_take_over(fx.store, "backup-v-1", &a, &done, &err), &err);
    assert_false(done);
    assert_ok(store_backup_get(fx.store, "backup-v-1", &b, &err), &err);
    assert_string_equal(b.hub_id, "b");
    assert_true(b.taken_over);
    store_backup_clear(&b);
    enter("a"); // late
    assert_ok(store_backup_step(fx.store, "backup-v-1", "running", "committing", &done, &err), &err);
    assert_false(done);
    assert_ok(store_backup_end(fx.store, "backup-v-1", "failed", "e", "d", 5, &done, &err), &err);
    assert_false(done);
    enter("b");
    assert_ok(store_backup_end(fx.store, "backup-v-1", "failed", "e", "d", 5, &done, &err), &err);
    assert_true(done);
}

// A hub that was held up while it started a client gave its own token, and a process, to a job that another hub had
// taken over and started by then: that one's client was refused.
static void test_a_late_hub_gives_no_client(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip(); // SQLite has one hub
    Err err = ERR_INIT;
    bool done;
    StoreBackup b = {0};
    enter("a");
    add("backup-v-1", "pending", 1);
    StoreHub a = hub_row("a");
    enter("b");
    assert_ok(store_backup_take_over(fx.store, "backup-v-1", &a, &done, &err), &err);
    assert_true(done);
    assert_ok(store_backup_set_token(fx.store, "backup-v-1", "b's", &err), &err);
    assert_ok(store_backup_set_client(fx.store, "backup-v-1", 7, 70, &err), &err);
    enter("a"); // late
    assert_false(store_backup_set_token(fx.store, "backup-v-1", "a's", &err));
    assert_int_equal(err.code, ERR_CONFLICT);
    err_clear(&err);
    assert_false(store_backup_set_client(fx.store, "backup-v-1", 8, 80, &err));
    assert_int_equal(err.code, ERR_CONFLICT);
    err_clear(&err);
    assert_ok(store_backup_get(fx.store, "backup-v-1", &b, &err), &err);
    assert_string_equal(b.token_digest, "b's");
    assert_int_equal(b.client_pid, 7);
    store_backup_clear(&b);
}

// Every pair of states that the table of domain/job.h does not have is refused or has no effect.
static void test_illegal_transitions_are_impossible(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    for (int from = 0; from < JOB_STATES; from++)
        for (int to = 0; to < JOB_STATES; to++) {
            char id[32];
            bool done = false;
            const char *a = job_state_name((JobState)from), *b = job_state_name((JobState)to);
            (void)snprintf(id, sizeof(id), "backup-%d-%d", from, to);
            add(id, a, 1);
            bool legal = job_state_may_follow((JobState)from, (JobState)to);
            if (to == JOB_FAILED || to == JOB_CANCELLED) {
                assert_ok(store_backup_end(fx.store, id, b, "e", "d", 5, &done, &err), &err);
                assert_int_equal(done, legal);
            } else if (to == JOB_COMPLETED) {
                StoreBackup c = job(id, a, 1);
                c.change_id = (char *)"u/1";
                c.completed_us = 9;
                done = store_backup_complete(fx.store, &c, &err);
                assert_int_equal(done, from == JOB_COMMITTING);
                err_clear(&err);
            } else {
                done = store_backup_step(fx.store, id, a, b, &done, &err) && done;
                assert_int_equal(done, legal);
                err_clear(&err);
            }
            assert_status(id, done ? b : a);
            assert_ok(store_backup_remove(fx.store, id, &err), &err);
        }
}

// A heartbeat that came late changed the rows of a job that was committing: the next try of its commit wrote another
// record than the one that stood, and never succeeded.
static void test_late_progress_changes_nothing(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreDisk d = {.backup_id = (char *)"backup-v-1",
                   .disk_key = (char *)"disk-0",
                   .disk_id = 2000,
                   .mode = (char *)"full",
                   .transferred_bytes = 5};
    StoreBackup b = {0};
    bool done;
    add("backup-v-1", "running", 1);
    assert_ok(store_disk_add(fx.store, &d, &err), &err);
    for (unsigned i = 0; i < 2; i++) {
        d.transferred_bytes = 7 + i;
        assert_ok(store_disk_set_progress(fx.store, &d, &err), &err);
        assert_ok(store_backup_set_progress(fx.store, "backup-v-1", &err), &err);
        StoreDisk *rows = NULL;
        size_t len = 0;
        assert_ok(store_disk_list(fx.store, "backup-v-1", &rows, &len, &err), &err);
        assert_int_equal(rows[0].transferred_bytes, 7); // of the first round
        STORE_LIST_FREE(rows, len, store_disk_clear);
        assert_ok(store_backup_get(fx.store, "backup-v-1", &b, &err), &err);
        assert_int_equal(b.bytes_transferred, 7);
        store_backup_clear(&b);
        if (i == 0)
            assert_ok(store_backup_step(fx.store, "backup-v-1", "running", "committing", &done, &err), &err);
    }
}

// A VM's backups were found by its name, and so another VM's that once had the name.
static void test_list_by_identity(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreBackup other = job("backup-v-1", "completed", 1), *rows = NULL;
    other.vm_id = (char *)"other-id";
    assert_ok(store_backup_add(fx.store, &other, &err), &err);
    add("backup-v-2", "completed", 2);
    StoreBackupFilter by_id = {.vm_id = "other-id", .limit = 10}, by_name = {.vm_name = "v", .limit = 10};
    size_t len = 0;
    uint64_t total = 0;
    assert_ok(store_backup_list(fx.store, &by_id, &rows, &len, &total, &err), &err);
    assert_int_equal(len, 1);
    assert_int_equal(total, 1);
    assert_string_equal(rows[0].id, "backup-v-1");
    STORE_LIST_FREE(rows, len, store_backup_clear);
    assert_ok(store_backup_list(fx.store, &by_name, &rows, &len, &total, &err), &err);
    assert_int_equal(len, 2);
    STORE_LIST_FREE(rows, len, store_backup_clear);
}

static void test_newest_goes_by_sequence_among_completed(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreBackup b = {0};
    bool found;
    uint64_t next;
    assert_ok(store_backup_newest(fx.store, fx.repository, "v-id", &b, &found, &err), &err);
    assert_false(found);
    add("backup-v-3", "completed", 3);
    add("backup-v-9", "completed", 2); // a later clock, an earlier point
    add("backup-v-4", "failed", 4);
    add("backup-v-5", "running", 5);
    assert_ok(store_backup_newest(fx.store, fx.repository, "v-id", &b, &found, &err), &err);
    assert_true(found);
    assert_string_equal(b.id, "backup-v-3");
    store_backup_clear(&b);
    assert_ok(store_backup_sequence_next(fx.store, fx.repository, "v-id", &next, &err), &err);
    assert_int_equal(next, 6);
    assert_ok(store_backup_newest(fx.store, fx.repository + 1, "v-id", &b, &found, &err), &err);
    assert_false(found);
}

static void test_rollback_and_nesting(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    bool exists;
    assert_ok(store_begin(fx.store, &err), &err);
    add("backup-v-1", "pending", 1);
    store_rollback(fx.store);
    assert_ok(store_backup_exists(fx.store, "backup-v-1", &exists, &err), &err);
    assert_false(exists);
    assert_ok(store_begin(fx.store, &err), &err);
    add("backup-v-1", "pending", 1);
    assert_ok(store_commit(fx.store, &err), &err);
    assert_ok(store_backup_exists(fx.store, "backup-v-1", &exists, &err), &err);
    assert_true(exists);
}

static void test_it_says_how_large_it_is(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    uint64_t bytes = 0;
    assert_ok(store_bytes(fx.store, &bytes, &err), &err);
    assert_in_range(bytes, 4096, UINT64_C(1) << 30);
}

static void test_disk_numbers_are_given_once(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    uint64_t id, no;
    assert_ok(store_disk_id_pick(fx.store, "v-id", "a", &id, &err), &err);
    assert_int_equal(id, 2000);
    StoreDiskNumber n = {
        .repository_id = fx.repository, .vm_id = (char *)"v-id", .disk_key = (char *)"a", .disk_id = id};
    assert_ok(store_disk_number_add(fx.store, &n, &err), &err);
    assert_fails(store_disk_number_add(fx.store, &n, &err), &err, ERR_EXISTS);
    assert_ok(store_disk_id_pick(fx.store, "v-id", "b", &id, &err), &err);
    assert_int_equal(id, 2001);
    assert_ok(store_disk_id_pick(fx.store, "v-id", "a", &id, &err), &err);
    assert_int_equal(id, 2000);
    assert_ok(store_disk_no_next(fx.store, fx.repository, "v-id", &no, &err), &err);
    assert_int_equal(no, 1);
    assert_ok(store_disk_no_next(fx.store, fx.repository, "other", &no, &err), &err);
    assert_int_equal(no, 0);
}

// The same instant and the same number in another repository: each job is on exactly one page.
static void test_pages_of_jobs_that_are_alike(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char seen[64] = "", id[8] = "";
    StoreBackupPlace place = {0};
    StoreBackupFilter f = {.vm_name = "v", .limit = 2};
    for (unsigned i = 0; i < 6; i++) {
        char name[3] = {'b', (char)('0' + i), '\0'};
        StoreBackup b = job(name, "completed", i / 2); // two of each number, in two repositories; two instants
        b.repository_id += i % 2;
        b.created_us = (int64_t)(1 + i / 3) * 1000000;
        assert_ok(store_backup_add(fx.store, &b, &err), &err);
    }
    for (int pages = 0;; pages++) {
        StoreBackup *rows = NULL;
        size_t len = 0;
        uint64_t total;
        assert_true(pages < 4);
        assert_ok(store_backup_list(fx.store, &f, &rows, &len, &total, &err), &err);
        assert_int_equal(total, 6);
        for (size_t i = 0; i < len; i++)
            (void)snprintf(seen + strlen(seen), sizeof(seen) - strlen(seen), "%s", rows[i].id);
        if (len > 0) {
            place = (StoreBackupPlace){rows[len - 1].created_us, rows[len - 1].sequence, id};
            (void)snprintf(id, sizeof(id), "%s", rows[len - 1].id);
        }
        f.behind = &place;
        bool end = len < f.limit;
        STORE_LIST_FREE(rows, len, store_backup_clear);
        if (end)
            break;
    }
    // by time, then sequence, then ID, each falling
    assert_string_equal(seen, "b5b4b3b2b1b0");
}

static void test_migration_copies_an_older_database(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Db *db = NULL;
    char copy[300];
    Store *none = NULL;
    store_close(fx.store);
    fx.store = NULL;
    assert_ok(open_db(&db, &err), &err);
    int64_t newest, version;
    assert_ok(db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &newest, &err), &err);
    // as a program left it that knew no sources
    static const char *const back[] = {
        "DELETE FROM schema_migrations WHERE version > 16",
        "DROP TABLE vms",
        "DROP TABLE sources",
        "CREATE TABLE vms (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL UNIQUE, source TEXT NOT NULL,"
        " excluded_disks TEXT NOT NULL, created_at VARCHAR(32) NOT NULL)",
        "DROP TABLE api_tokens",
        "DROP TABLE audit_log",
        "DROP TABLE users",
        "DROP TABLE sessions",
        "DROP INDEX backup_jobs_by_time",
        "DROP INDEX backup_jobs_by_status",
        "DROP INDEX backup_jobs_by_repository",
        "DROP INDEX backup_jobs_by_both",
        "DROP INDEX backup_jobs_of_vm",
        "DROP INDEX backup_jobs_of_parent",
        "DROP INDEX backup_disks_of_parent",
        "DROP TABLE hub_state",
        "DROP TABLE hubs",
        "ALTER TABLE backup_jobs DROP COLUMN hub_id",
        "ALTER TABLE backup_jobs DROP COLUMN taken_over",
        "ALTER TABLE backup_jobs DROP COLUMN deleting_hub",
        "ALTER TABLE exports DROP COLUMN hub_id",
        "DROP INDEX backup_jobs_points",
        "DROP INDEX backup_jobs_stored",
        "ALTER TABLE backup_jobs DROP COLUMN doubted",
        "ALTER TABLE backup_disks DROP COLUMN areas",
        "ALTER TABLE backup_disks DROP COLUMN area_bytes",
        "ALTER TABLE backup_disks DROP COLUMN read_bytes",
        "ALTER TABLE backup_disks DROP COLUMN unchanged_blocks",
        "ALTER TABLE backup_disks DROP COLUMN checked_blocks",
        "ALTER TABLE backup_disks DROP COLUMN wrong_blocks",
        "ALTER TABLE backup_disks DROP COLUMN audited",
        "ALTER TABLE backup_disks DROP COLUMN refuted",
        "INSERT INTO vms VALUES ('i', 'old', '{}', '[]', '2026-01-02T03:04:05.000006Z')",
    };
    for (size_t i = 0; i < ARRAY_LEN(back); i++) {
        char sql[512]; // MariaDB wants to know whose index it is
        const char *table = strstr(back[i], "disks_of") ? " ON backup_disks" : " ON backup_jobs";
        bool of = fx.mariadb && strncmp(back[i], "DROP INDEX", 10) == 0;
        (void)snprintf(sql, sizeof(sql), "%s%s", back[i], of ? table : "");
        assert_ok(db->ops->define(db, sql, false, &err), &err);
    }
    (void)snprintf(copy, sizeof(copy), "%s.before-%lld", fx.path, (long long)newest);
    assert_false(file_exists(copy));
    if (!fx.mariadb) { // whose steps are noted one by one
        // It stops half way: nothing of it is left, or the next copy would be one of what is half way.
        assert_ok(db->ops->exec(db, "CREATE INDEX backup_jobs_stored ON backup_jobs (id)", &err), &err);
        assert_fails(open_store(&none, &err), &err, ERR_INTERNAL);
        assert_ok(db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &version, &err), &err);
        assert_int_equal(version, 16);
        assert_ok(db->ops->exec(db, "DROP INDEX backup_jobs_stored", &err), &err);
    }
    db->ops->close(db);
    assert_ok(open_store(&fx.store, &err), &err);
    assert_int_equal(file_exists(copy), !fx.mariadb); // that is copied with its own tools
    StoreRepository r = {0};
    assert_ok(store_repository_find(fx.store, "r", &r, &err), &err); // what was there is still there
    store_repository_clear(&r);
    StoreVm vm = {0};
    assert_ok(store_vm_find(fx.store, "old", &vm, &err), &err);
    assert_null(vm.source_id);
    assert_int_equal(vm.audit_blocks, -1);
    store_vm_clear(&vm);
    if (fx.mariadb)
        return;
    assert_ok(db_sqlite_open(copy, &db, &err), &err);
    int64_t rows;
    assert_ok(db_number(db, "SELECT COUNT(*) FROM repositories", DB_NO_ARGS, 0, &rows, &err), &err);
    assert_int_equal(rows, 1);
    assert_ok(db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &version, &err), &err);
    assert_int_equal(version, 16);
    db->ops->close(db);
}

static void test_newer_database_is_refused(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Db *db = NULL;
    Store *other = NULL;
    store_close(fx.store);
    fx.store = NULL;
    assert_ok(open_db(&db, &err), &err);
    assert_ok(
        db_run(db, "INSERT INTO schema_migrations (version, applied_at) VALUES (9999, 'x')", DB_NO_ARGS, NULL, &err),
        &err);
    db->ops->close(db);
    assert_fails(open_store(&other, &err), &err, ERR_UNSUPPORTED);
}

// DDL is no part of a transaction in MariaDB: a step whose number was not noted any more is run again, and is fine.
static void test_a_migration_that_was_cut_off_goes_on(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip(); // SQLite's are part of it
    Err err = ERR_INIT;
    Db *db = NULL;
    int64_t newest, noted;
    store_close(fx.store);
    fx.store = NULL;
    assert_ok(open_db(&db, &err), &err);
    assert_ok(db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &newest, &err), &err);
    assert_ok(db_run(db, "DELETE FROM schema_migrations WHERE version = ?", DB_ARGS(DB_N(newest)), NULL, &err), &err);
    db->ops->close(db);
    assert_ok(open_store(&fx.store, &err), &err);
    store_close(fx.store);
    fx.store = NULL;
    assert_ok(open_db(&db, &err), &err);
    assert_ok(db_number(db, "SELECT COUNT(*) FROM schema_migrations", DB_NO_ARGS, 0, &noted, &err), &err);
    assert_int_equal(noted, newest);
    db->ops->close(db);
    StoreRepository r = {0};
    assert_ok(open_store(&fx.store, &err), &err);
    assert_ok(store_repository_find(fx.store, "r", &r, &err), &err);
    store_repository_clear(&r);
}

// Another program's tables are not taken for ours.
static void test_a_database_of_somebody_else(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Store *other = NULL;
    store_close(fx.store);
    fx.store = NULL;
    Db *db = NULL;
    if (fx.mariadb) {
        ask_server("DROP DATABASE " DATABASE);
        ask_server("CREATE DATABASE " DATABASE);
    }
    if (!fx.mariadb)
        assert_ok(file_unlink(fx.path, &err), &err);
    assert_ok(open_db(&db, &err), &err);
    assert_ok(db->ops->exec(db, "CREATE TABLE backup_jobs (something INT)", &err), &err);
    db->ops->close(db);
    assert_false(open_store(&other, &err));
    assert_non_null(strstr(err.details, "already exists"));
}

// Names that differ in case, in a blank behind them or in an accent are different names, as in SQLite.
static void test_text_is_compared_byte_for_byte(void **state)
{
    (void)state;
    static const char *const names[] = {"web",
                                        "Web",
                                        "web ",
                                        "w\xc3\xa9"
                                        "b",
                                        "\xf0\x9f\x92\xbe",
                                        " web"};
    Err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char id[8];
        (void)snprintf(id, sizeof(id), "id-%zu", i);
        StoreVm v = {
            .id = id, .name = (char *)names[i], .source = (char *)"{}", .excluded = (char *)"[]", .created_us = 1};
        assert_ok(store_vm_add(fx.store, &v, &err), &err);
        assert_fails(store_vm_add(fx.store, &v, &err), &err, ERR_EXISTS);
    }
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        StoreVm got = {0};
        assert_ok(store_vm_find(fx.store, names[i], &got, &err), &err);
        assert_string_equal(got.name, names[i]);
        store_vm_clear(&got);
    }
}

// A VM's source may be a megabyte; a change of nothing counts as found.
static void test_large_and_unchanged(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    size_t n = 1000000;
    cleanup_free char *large = mem_calloc(n + 1, 1, &err);
    assert_non_null(large);
    memset(large, 'x', n);
    StoreVm v = {
        .id = (char *)"i", .name = (char *)"large", .source = large, .excluded = (char *)"[]", .created_us = 1};
    StoreVm got = {0};
    assert_ok(store_vm_add(fx.store, &v, &err), &err);
    assert_ok(store_vm_update(fx.store, &v, &err), &err); // nothing differs
    assert_ok(store_vm_find(fx.store, "large", &got, &err), &err);
    assert_string_equal(got.source, large);
    store_vm_clear(&got);
    store_close(fx.store);
    fx.store = NULL;
    Db *db = NULL;
    uint64_t found = 0;
    assert_ok(open_db(&db, &err), &err);
    assert_ok(db_run(db, "UPDATE vms SET name = 'large' WHERE name = ?", DB_ARGS(DB_T("large")), &found, &err), &err);
    assert_int_equal(found, 1);
    db->ops->close(db);
}

// Of MariaDB's DOUBLEs the first digit was read: the eleventh backup of a database was number 2 again, and an old one
// the newest. A question that makes one is refused.
static void test_numbers_of_several_digits(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    uint64_t number;
    int64_t got;
    for (uint64_t n = 1; n <= 12; n++) {
        assert_ok(store_dump_number(fx.store, 1, &number, &err), &err);
        assert_int_equal(number, n);
    }
    store_close(fx.store);
    fx.store = NULL;
    Db *db = NULL;
    assert_ok(open_db(&db, &err), &err);
    assert_ok(db_number(db, "SELECT SUM(n) FROM (SELECT 12345678901 AS n UNION SELECT 1) AS t", DB_NO_ARGS, 0, &got,
                        &err),
              &err);
    assert_int_equal(got, INT64_C(12345678902));
    if (fx.mariadb)
        assert_fails(db_number(db, "SELECT value + 0 FROM hub_state", DB_NO_ARGS, 0, &got, &err), &err, ERR_INTERNAL);
    db->ops->close(db);
}

// The server went away and came back: the next question is answered, a transaction that was open is not carried on.
static void test_a_connection_that_breaks(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip();
    Err err = ERR_INIT;
    StoreRepository r = {0};
    const char *kill = "BEGIN NOT ATOMIC FOR c IN (SELECT id FROM information_schema.processlist WHERE db = '" DATABASE
                       "') DO EXECUTE IMMEDIATE CONCAT('KILL ', c.id); END FOR; END";
    ask_server(kill);
    assert_ok(store_repository_find(fx.store, "r", &r, &err), &err);
    store_repository_clear(&r);
    add("backup-v-1", "running", 1);
    assert_ok(store_begin(fx.store, &err), &err);
    assert_ok(store_backup_end(fx.store, "backup-v-1", "failed", "x", "y", 1, &(bool){false}, &err), &err);
    ask_server(kill);
    assert_fails(store_repository_find(fx.store, "r", &r, &err), &err, ERR_UNAVAILABLE);
    assert_fails(store_commit(fx.store, &err), &err, ERR_UNAVAILABLE);
    assert_status("backup-v-1", "running"); // nothing of it was kept
    ask_server(kill);
    assert_ok(store_begin(fx.store, &err), &err);
    assert_ok(store_backup_end(fx.store, "backup-v-1", "failed", "x", "y", 1, &(bool){false}, &err), &err);
    assert_ok(store_commit(fx.store, &err), &err);
    assert_status("backup-v-1", "failed");
}

// The next n updates of jobs meet a conflict, as in a cluster any statement may.
static void conflicts(unsigned n)
{
    char sql[120];
    ask_server("CREATE TABLE IF NOT EXISTS " DATABASE ".faults (n INT) ENGINE=MyISAM"); // no part of a transaction
    ask_server("CREATE OR REPLACE TRIGGER " DATABASE ".fault BEFORE UPDATE ON " DATABASE ".backup_jobs FOR EACH ROW "
               "BEGIN IF (SELECT n FROM " DATABASE ".faults) > 0 THEN UPDATE " DATABASE ".faults SET n = n - 1; "
               "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'conflict'; END IF; END");
    ask_server("DELETE FROM " DATABASE ".faults");
    (void)snprintf(sql, sizeof(sql), "INSERT INTO " DATABASE ".faults VALUES (%u)", n);
    ask_server(sql);
}

static int64_t conflicts_left(void)
{
    Err err = ERR_INIT;
    int64_t n = -1;
    assert_ok(store_number(fx.store, "SELECT n FROM faults", DB_NO_ARGS, -1, &n, &err), &err);
    return n;
}

static bool end_job(const char *id, Err *err)
{
    bool done;
    return store_backup_end(fx.store, id, "failed", "x", "y", 1, &done, err);
}

// Outside of a transaction a statement is done again, for a bounded time: 20 times were over within a second.
static void test_a_statement_that_conflicts(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip();
    Err err = ERR_INIT;
    add("backup-v-1", "running", 1);
    conflicts(3);
    assert_ok(end_job("backup-v-1", &err), &err);
    assert_status("backup-v-1", "failed");
    assert_int_equal(conflicts_left(), 0);
    conflicts(100);
    assert_ok(store_backup_set_doubted(fx.store, "backup-v-1", &err), &err);
    assert_int_equal(conflicts_left(), 0);
}

// A transaction is done again from its start, also where its work did not look at what a statement said.
static void test_a_transaction_that_conflicts(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip();
    Err err = ERR_INIT;
    unsigned tries = 0;
    add("backup-v-1", "completed", 1);
    add("backup-v-2", "running", 2);
    conflicts(1);
    StoreTurn t = STORE_TURN(fx.store);
    while (store_turn(&t, &err)) {
        Err unseen = ERR_INIT;
        tries++;
        (void)!store_backup_set_doubted(fx.store, "backup-v-1", &unseen);
        // the server would take this one for a transaction of its own
        t.ok = end_job("backup-v-2", &err);
        assert_int_equal(t.ok, tries == 2);
    }
    assert_ok(t.ok, &err);
    assert_int_equal(tries, 2);
    StoreBackup b = {0};
    assert_ok(store_backup_get(fx.store, "backup-v-1", &b, &err), &err);
    assert_true(b.doubted);
    store_backup_clear(&b);

    // the last statement's is seen at COMMIT
    add("backup-v-3", "running", 3);
    conflicts(1);
    assert_ok(store_begin(fx.store, &err), &err);
    assert_fails(end_job("backup-v-3", &err), &err, ERR_UNAVAILABLE);
    assert_fails(store_commit(fx.store, &err), &err, ERR_UNAVAILABLE);
    assert_status("backup-v-3", "running");

    // it ends
    conflicts(1000000);
    t = STORE_TURN_BESIDE(fx.store);
    while (store_turn(&t, &err))
        t.ok = end_job("backup-v-3", &err);
    assert_false(t.ok);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_in_range(conflicts_left(), 900000, 999900);
    err_clear(&err);
    conflicts(0);

    // what fails for a reason of its own is not done again
    t = STORE_TURN(fx.store);
    for (tries = 0; store_turn(&t, &err); tries++)
        t.ok = err_set(&err, ERR_CONFLICT, "no");
    assert_int_equal(tries, 1);
    assert_int_equal(err.code, ERR_CONFLICT);
}

// Lost before COMMIT, nothing of it has happened.
static void test_a_transaction_whose_connection_breaks(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip();
    Err err = ERR_INIT;
    unsigned tries = 0;
    add("backup-v-1", "running", 1);
    StoreTurn t = STORE_TURN(fx.store);
    while (store_turn(&t, &err)) {
        if (++tries == 1)
            ask_server("BEGIN NOT ATOMIC FOR c IN (SELECT id FROM information_schema.processlist WHERE db = '" DATABASE
                       "') DO EXECUTE IMMEDIATE CONCAT('KILL ', c.id); END FOR; END");
        t.ok = end_job("backup-v-1", &err);
    }
    assert_ok(t.ok, &err);
    assert_int_equal(tries, 2);
    assert_status("backup-v-1", "failed");
}

// Where no lock tells two hubs of one ID apart, the row does.
static void test_a_hub_s_row_is_another_s(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreHub *rows = NULL, hub = {.id = (char *)"h", .name = (char *)"n", .version = (char *)"v", .lease_s = 3};
    size_t len = 0;
    hub.started_us = hub.beat_us = 1;
    assert_ok(store_hub_enter(fx.store, &hub, &err), &err);
    assert_ok(store_hub_beat(fx.store, &err), &err);
    assert_ok(store_run(fx.store, "UPDATE hubs SET started_at = '2026-01-01T00:00:00.000000Z'", DB_NO_ARGS, NULL, &err),
              &err);
    assert_fails(store_hub_beat(fx.store, &err), &err, ERR_BUSY);
    assert_ok(store_hub_leave(fx.store, &err), &err);
    assert_ok(store_hub_list(fx.store, &rows, &len, &err), &err);
    assert_int_equal(len, 1);
    assert_false(rows[0].stopped); // it is not ours to say so
    STORE_LIST_FREE(rows, len, store_hub_clear);
}

static void test_what_keeps_a_hub_out(void **state)
{
    (void)state;
    if (!fx.mariadb)
        skip();
    Err err = ERR_INIT;
    Store *other = NULL;
    assert_fails(open_store(&other, &err), &err, ERR_BUSY); // we have it
    StoreMariadb spec = server();
    spec.name = "no_such_database";
    assert_fails(store_open_mariadb(&spec, &other, &err), &err, ERR_NOT_FOUND);
    ask_server("CREATE OR REPLACE USER weak@localhost IDENTIFIED BY 'right'");
    ask_server("FLUSH PRIVILEGES");
    Secret password = {0};
    spec = server();
    spec.user = "weak";
    spec.password = &password;
    assert_ok(secret_set(&password, "wrong", &err), &err);
    assert_false(store_open_mariadb(&spec, &other, &err));
    assert_int_equal(err.code, ERR_FORBIDDEN);
    assert_true(strstr(err.details, "weak") && !strstr(err.details, "wrong"));
    err_clear(&err);
    assert_ok(secret_set(&password, "right", &err), &err);
    assert_fails(store_open_mariadb(&spec, &other, &err), &err, ERR_FORBIDDEN); // no rights there
    secret_clear(&password);
    ask_server("DROP USER weak@localhost");
    spec = server();
    spec.host = "/nowhere/s";
    assert_fails(store_open_mariadb(&spec, &other, &err), &err, ERR_UNAVAILABLE);
}

static void test_changeid_history(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreReplication r = {.id = (char *)"replication-1",
                          .vm_name = (char *)"v",
                          .status = (char *)"registered",
                          .created_us = 1,
                          .updated_us = 1},
                     got = {0};
    StoreChangeId *rows = NULL;
    size_t len = 0;
    assert_ok(store_replication_add(fx.store, &r, &err), &err);
    for (int i = 1; i <= 3; i++) {
        char id[16];
        (void)snprintf(id, sizeof(id), "u/%d", i);
        StoreChangeId c = {.job_id = r.id, .change_id = id, .disk_id = 2000 + i % 2, .recorded_us = i};
        assert_ok(store_replication_record(fx.store, &c, &err), &err);
    }
    assert_ok(store_replication_history(fx.store, r.id, &rows, &len, &err), &err);
    assert_int_equal(len, 3);
    assert_string_equal(rows[0].change_id, "u/3");
    STORE_LIST_FREE(rows, len, store_changeid_clear);
    assert_ok(store_replication_get(fx.store, r.id, &got, &err), &err);
    assert_string_equal(got.change_id, "u/3");
    store_replication_clear(&got);
}

static StoreSource source(const char *id, const char *name)
{
    StoreSource s = {.created_us = 5};
    s.id = (char *)id;
    s.name = (char *)name;
    s.type = (char *)"vsphere";
    s.address = (char *)"vc.example.org:443";
    s.user = (char *)"backup@vsphere.local";
    s.secret = (char *)"v1:00";
    s.thumbprint = (char *)"ab";
    return s;
}

static void test_sources(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreSource one = source("i1", "vc-2"), two = source("i2", "vc-1"), got = {0}, *rows = NULL;
    size_t len = 0;
    uint64_t n;
    assert_fails(store_source_find(fx.store, "vc-1", &got, &err), &err, ERR_NOT_FOUND);
    assert_ok(store_source_add(fx.store, &one, &err), &err);
    assert_ok(store_source_add(fx.store, &two, &err), &err);
    StoreSource same = source("i3", "vc-1");
    assert_fails(store_source_add(fx.store, &same, &err), &err, ERR_EXISTS);
    assert_ok(store_source_count(fx.store, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_ok(store_source_list(fx.store, &rows, &len, &err), &err);
    assert_int_equal(len, 2);
    assert_string_equal(rows[0].id, "i2");
    STORE_LIST_FREE(rows, len, store_source_clear);

    one.address = (char *)"other";
    one.secret = (char *)"v1:01";
    one.thumbprint = NULL;
    one.ca_pem = (char *)"-----BEGIN";
    assert_ok(store_source_update(fx.store, &one, &err), &err);
    assert_ok(store_source_find(fx.store, "i1", &got, &err), &err);
    assert_string_equal(got.name, "vc-2");
    assert_string_equal(got.address, "other");
    assert_string_equal(got.secret, "v1:01");
    assert_null(got.thumbprint);
    assert_string_equal(got.ca_pem, "-----BEGIN");
    assert_int_equal(got.created_us, 5);
    store_source_clear(&got);
    assert_ok(store_source_find(fx.store, "vc-1", &got, &err), &err);
    assert_string_equal(got.address, "vc.example.org:443"); // the other one was not touched
    store_source_clear(&got);
}

static StoreToken token_row(const char *id, const char *name, const char *role, int64_t expires_us)
{
    StoreToken t = {.created_us = 5, .expires_us = expires_us};
    t.id = (char *)id;
    t.name = (char *)name;
    t.role = (char *)role;
    t.digest = (char *)id; // of that name's own
    t.created_by = (char *)"test";
    return t;
}

static void test_tokens(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreToken one = token_row("i1", "b", "admin", 0), two = token_row("i2", "a", "admin", 2000000), got = {0};
    StoreToken same = token_row("i3", "b", "viewer", 0), *rows = NULL;
    size_t len = 0;
    uint64_t n;
    bool found;
    assert_ok(store_token_add(fx.store, &one, &err), &err);
    assert_ok(store_token_add(fx.store, &two, &err), &err);
    assert_fails(store_token_add(fx.store, &same, &err), &err, ERR_EXISTS);
    err_clear(&err);
    assert_ok(store_token_list(fx.store, &rows, &len, &err), &err);
    assert_int_equal(len, 2);
    assert_string_equal(rows[0].name, "a");
    STORE_LIST_FREE(rows, len, store_token_clear);
    assert_ok(store_token_count(fx.store, "admin", 1999999, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_ok(store_token_count(fx.store, "admin", 2000000, &n, &err), &err); // one is over
    assert_int_equal(n, 1);
    assert_ok(store_token_count(fx.store, "viewer", 0, &n, &err), &err);
    assert_int_equal(n, 0);
    assert_ok(store_token_set_used(fx.store, "i2", 7000000, &err), &err);
    assert_ok(store_token_by_digest(fx.store, "i2", &got, &found, &err), &err);
    assert_true(found);
    assert_string_equal(got.name, "a");
    assert_int_equal(got.used_us, 7000000);
    assert_int_equal(got.expires_us, 2000000);
    store_token_clear(&got);
    assert_ok(store_token_by_digest(fx.store, "I2", &got, &found, &err), &err); // byte for byte
    assert_false(found);
    assert_ok(store_token_find(fx.store, "b", &got, &err), &err);
    assert_int_equal(got.used_us, 0);
    store_token_clear(&got);
    assert_ok(store_token_remove(fx.store, "i1", &err), &err);
    assert_fails(store_token_find(fx.store, "b", &got, &err), &err, ERR_NOT_FOUND);
}

static void test_the_log_of_who_did_what(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreTrail row = {.at_us = 1000001}, got = {0}, *rows = NULL;
    StoreTrailFilter all = {.limit = 10}, failed = {.limit = 10, .status_least = 400, .newest_first = true},
                     mine = {.limit = 1, .actor = "me", .after = 1};
    size_t len = 0;
    bool found;
    assert_ok(store_trail_last(fx.store, &got, &found, &err), &err);
    assert_false(found);
    row.remote = row.hash = row.object = (char *)"x";
    row.role = (char *)"";
    row.method = (char *)"POST";
    row.path = (char *)"/a";
    for (row.id = 1; row.id <= 4; row.id++) {
        row.actor = (char *)(row.id % 2 ? "me" : "you");
        row.status = row.id < 3 ? 200 : 403;
        assert_ok(store_trail_add(fx.store, &row, &err), &err);
    }
    row.id = 4;
    assert_fails(store_trail_add(fx.store, &row, &err), &err, ERR_EXISTS);
    err_clear(&err);
    assert_ok(store_trail_last(fx.store, &got, &found, &err), &err);
    assert_int_equal(got.id, 4);
    assert_int_equal(got.at_us, 1000001);
    store_trail_clear(&got);
    assert_ok(store_trail_list(fx.store, &all, &rows, &len, &err), &err);
    assert_int_equal(len, 4);
    assert_int_equal(rows[0].id, 1);
    STORE_LIST_FREE(rows, len, store_trail_clear);
    assert_ok(store_trail_list(fx.store, &failed, &rows, &len, &err), &err);
    assert_int_equal(len, 2);
    assert_int_equal(rows[0].id, 4);
    STORE_LIST_FREE(rows, len, store_trail_clear);
    assert_ok(store_trail_list(fx.store, &mine, &rows, &len, &err), &err);
    assert_int_equal(len, 1);
    assert_int_equal(rows[0].id, 3);
    STORE_LIST_FREE(rows, len, store_trail_clear);
}

// A source that VMs are read through does not go from under them, whoever asks.
static void test_a_source_in_use_stays(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreSource one = source("i1", "vc-1"), two = source("i2", "vc-2");
    StoreVm vm = {.created_us = 1}, *rows = NULL;
    size_t len = 0;
    vm.id = (char *)"v1";
    vm.name = (char *)"web";
    vm.source = (char *)"{}";
    vm.excluded = (char *)"[]";
    vm.source_id = (char *)"i1";
    assert_fails(store_vm_add(fx.store, &vm, &err), &err, ERR_CONFLICT); // no such source
    assert_ok(store_source_add(fx.store, &one, &err), &err);
    assert_ok(store_source_add(fx.store, &two, &err), &err);
    assert_ok(store_vm_add(fx.store, &vm, &err), &err);
    assert_ok(store_source_vms(fx.store, "i1", &rows, &len, &err), &err);
    assert_int_equal(len, 1);
    assert_string_equal(rows[0].name, "web");
    assert_string_equal(rows[0].source_id, "i1");
    STORE_LIST_FREE(rows, len, store_vm_clear);
    assert_fails(store_source_remove(fx.store, "i1", &err), &err, ERR_CONFLICT);
    vm.source_id = (char *)"i2";
    assert_ok(store_vm_update(fx.store, &vm, &err), &err);
    assert_ok(store_source_remove(fx.store, "i1", &err), &err);
    assert_fails(store_source_remove(fx.store, "i2", &err), &err, ERR_CONFLICT);
    assert_ok(store_vm_remove(fx.store, "v1", &err), &err);
    assert_ok(store_source_remove(fx.store, "i2", &err), &err);
    assert_ok(store_source_vms(fx.store, "i2", &rows, &len, &err), &err);
    assert_int_equal(len, 0);
    STORE_LIST_FREE(rows, len, store_vm_clear);
}

static void add_job_of(const char *vm, uint64_t n, const char *status)
{
    Err err = ERR_INIT;
    char id[64];
    (void)snprintf(id, sizeof(id), "backup-%s-%llu", vm, (unsigned long long)n);
    StoreBackup b = job(id, status, n);
    b.vm_id = b.vm_name = (char *)(uintptr_t)vm;
    b.active_vm = NULL;
    b.created_us = (int64_t)n * 1000000;
    assert_ok(store_backup_add(fx.store, &b, &err), &err);
}

static void assert_summary(const StoreVmSummary *s, const char *vm, uint64_t points, const char *last)
{
    assert_string_equal(s->vm.id, vm);
    assert_int_equal(s->points, points);
    if (last)
        assert_string_equal(s->last_id, last);
    else
        assert_null(s->last_id);
}

// A list of VMs asked twice for each: with 10,000 of them it took seconds. And the same as one by one.
static void test_many_vms_are_one_question(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreVmSummary *rows = NULL, one = {0};
    StoreVmPoints *points = NULL;
    size_t len = 0;
    bool found;
    static const char *const names[] = {"a", "b", "c"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        StoreVm vm = {.id = (char *)(uintptr_t)names[i], .name = vm.id, .source = "{}", .excluded = "[]"};
        vm.created_us = 1;
        assert_ok(store_vm_add(fx.store, &vm, &err), &err);
    }
    for (uint64_t n = 1; n <= 3; n++)
        add_job_of("a", n, "completed");
    add_job_of("a", 4, "failed");
    add_job_of("b", 1, "cancelled");
    add_job_of("gone", 1, "completed");
    add_job_of("gone", 2, "completed");
    add_job_of("never", 1, "failed"); // no VM's, and no point

    assert_ok(store_vm_summaries(fx.store, NULL, 2, &rows, &len, &err), &err);
    assert_int_equal(len, 2);
    assert_summary(&rows[0], "a", 3, "backup-a-4");
    assert_string_equal(rows[0].last_status, "failed");
    assert_int_equal(rows[0].last_us, 4000000);
    assert_summary(&rows[1], "b", 0, "backup-b-1");
    STORE_LIST_FREE(rows, len, store_vm_summary_clear);
    assert_ok(store_vm_summaries(fx.store, "b", 2, &rows, &len, &err), &err);
    assert_int_equal(len, 1);
    assert_summary(&rows[0], "c", 0, NULL);
    STORE_LIST_FREE(rows, len, store_vm_summary_clear);

    assert_ok(store_vm_summary(fx.store, "a", &one, &found, &err), &err);
    assert_true(found);
    assert_summary(&one, "a", 3, "backup-a-4");
    store_vm_summary_clear(&one);
    assert_ok(store_vm_summary(fx.store, "gone", &one, &found, &err), &err);
    assert_false(found);
    assert_ok(store_vm_orphan_summaries(fx.store, &rows, &len, &err), &err);
    assert_int_equal(len, 1);
    assert_summary(&rows[0], "gone", 2, "backup-gone-2");
    assert_int_equal(rows[0].vm.created_us, 1000000);
    STORE_LIST_FREE(rows, len, store_vm_summary_clear);

    assert_ok(store_points_of_vms(fx.store, NULL, 2, &points, &len, &err), &err);
    assert_int_equal(len, 2);
    assert_string_equal(points[0].vm_name, "a");
    assert_int_equal(points[0].points, 3);
    assert_int_equal(points[0].good_us, 3000000);
    assert_int_equal(points[1].points, 0);
    STORE_LIST_FREE(points, len, store_vm_points_clear);
    assert_ok(store_points_of_vms(fx.store, "b", 2, &points, &len, &err), &err);
    assert_int_equal(len, 1);
    assert_string_equal(points[0].vm_name, "c");
    STORE_LIST_FREE(points, len, store_vm_points_clear);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_row_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_job_a_vm, setup, teardown),
        cmocka_unit_test_setup_teardown(test_conditional_step_tells_whether_it_was_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_illegal_transitions_are_impossible, setup, teardown),
        cmocka_unit_test_setup_teardown(test_late_progress_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list_by_identity, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages_of_jobs_that_are_alike, setup, teardown),
        cmocka_unit_test_setup_teardown(test_newest_goes_by_sequence_among_completed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rollback_and_nesting, setup, teardown),
        cmocka_unit_test_setup_teardown(test_disk_numbers_are_given_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_it_says_how_large_it_is, setup, teardown),
        cmocka_unit_test_setup_teardown(test_migration_copies_an_older_database, setup, teardown),
        cmocka_unit_test_setup_teardown(test_newer_database_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_migration_that_was_cut_off_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_database_of_somebody_else, setup, teardown),
        cmocka_unit_test_setup_teardown(test_text_is_compared_byte_for_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_and_unchanged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_numbers_of_several_digits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_connection_that_breaks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_statement_that_conflicts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_transaction_that_conflicts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_transaction_whose_connection_breaks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_hub_s_row_is_another_s, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_keeps_a_hub_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_job_is_its_hub_s, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_late_hub_gives_no_client, setup, teardown),
        cmocka_unit_test_setup_teardown(test_changeid_history, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sources, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tokens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_log_of_who_did_what, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_source_in_use_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_vms_are_one_question, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
