#include "unit.h"

#include "base/file.h"
#include "store/dump.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

// docs/internals/database-backup.md. Over MariaDB: tests/it/test_database_backup.py.

static void *folder;
static Store *store;
static int64_t repository;

static const char *path_of(const char *name, char out[256])
{
    (void)snprintf(out, 256, "%s", unit_path(&folder, name));
    return out;
}
#define PATH(name) path_of(name, (char[256]){0})

static int setup(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreRepository r = {.name = (char *)"r\xc3\xa9",
                         .uuid = (char *)"u",
                         .path = (char *)"/r",
                         .hash_algorithm = (char *)"xxh3-128",
                         .cluster_size = INT64_MAX,
                         .created_us = 1};
    if (unit_folder_setup(&folder) != 0)
        return -1;
    if (store_open_sqlite(PATH("live.db"), &store, &err) && store_repository_add(store, &r, &repository, &err))
        return 0;
    print_error("%s\n", err.details);
    return -1;
}

static int teardown(void **state)
{
    (void)state;
    store_close(store);
    return unit_folder_teardown(&folder);
}

static void add_vms(size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        char id[32], name[32];
        Err err = ERR_INIT;
        (void)snprintf(id, sizeof(id), "id-%zu", i);
        (void)snprintf(name, sizeof(name), "vm %zu", i);
        StoreVm v = {.id = id,
                     .name = name,
                     .source = (char *)"{\"a\": \"\\n'\"}",
                     .excluded = (char *)"[]",
                     .audit_blocks = -1,
                     .created_us = (int64_t)i + 1};
        assert_ok(store_vm_add(store, &v, &err), &err);
    }
}

static size_t count_vms(const char *path)
{
    Err err = ERR_INIT;
    Store *s = NULL;
    StoreVm *vms = NULL;
    size_t n = 0, all;
    assert_ok(store_open_sqlite(path, &s, &err), &err);
    assert_ok(store_vm_list(s, &vms, &n, &err), &err);
    for (all = 0; all < n; all++) {
        assert_string_equal(vms[all].source, "{\"a\": \"\\n'\"}");
        assert_null(vms[all].source_id);
        assert_int_equal(vms[all].audit_blocks, -1);
    }
    STORE_LIST_FREE(vms, n, store_vm_clear);
    store_close(s);
    return all;
}

static void take(const char *path)
{
    Err err = ERR_INIT;
    assert_ok(dump_take(store, path, NULL, &err), &err);
}

static const DumpInfo info = {.hub_id = "01234567-89ab-4cde-8f01-23456789abcd",
                              .number = 7,
                              .created_us = 1767322800000000,
                              .engine = "sqlite",
                              .version = "0.1.0"};

static bool pack(const char *database, const char *file, const DbPatience *patience, Err *err)
{
    int fd = open(file, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    bool ok = dump_file_pack(database, fd, &info, patience, err);
    assert_int_equal(close(fd), 0);
    return ok;
}

static void write_file(const char *path, const void *p, size_t n)
{
    Err err = ERR_INIT;
    assert_ok(file_unlink(path, &err), &err);
    assert_ok(file_create_durable(path, p, n, 0600, &err), &err);
}

static void test_rows_in_and_out(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 49, 50, 51, 100, 101}; // around a batch
    size_t had = 0;
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        Err err = ERR_INIT;
        const char *taken = PATH("taken.db"), *fresh = PATH("fresh.db");
        add_vms(had, counts[i]);
        had = counts[i];
        take(taken);
        assert_ok(dump_upgrade(taken, &err), &err);
        assert_ok(dump_new(fresh, &err), &err);
        assert_ok(dump_fill(taken, fresh, &err), &err);
        assert_ok(dump_settle(fresh, &err), &err);
        assert_int_equal(count_vms(fresh), counts[i]);
        Store *s = NULL;
        StoreRepository r = {0};
        assert_ok(store_open_sqlite(fresh, &s, &err), &err);
        assert_ok(store_repository_get(s, repository, &r, &err), &err);
        assert_string_equal(r.name, "r\xc3\xa9");
        assert_true(r.cluster_size == INT64_MAX);
        store_repository_clear(&r);
        store_close(s);
        assert_ok(file_unlink(taken, &err), &err);
        assert_ok(file_unlink(fresh, &err), &err);
    }
}

// As it is at one moment: what a transaction has not committed is not in it, and neither waits for the other.
static void test_beside_somebody_who_writes(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    add_vms(0, 3);
    assert_ok(store_begin(store, &err), &err);
    add_vms(3, 5);
    take(PATH("taken.db"));
    assert_ok(store_commit(store, &err), &err);
    assert_int_equal(count_vms(PATH("taken.db")), 3);
    assert_int_equal(count_vms(PATH("live.db")), 5);
}

static void test_whoever_stops_it(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    atomic_bool stop = true;
    DbPatience stopped = {.stop = &stop}, late = {.until_ms = 1};
    assert_fails(dump_take(store, PATH("a.db"), &stopped, &err), &err, ERR_CANCELLED);
    err_clear(&err);
    assert_fails(dump_take(store, PATH("b.db"), &late, &err), &err, ERR_TIMEOUT);
    take(PATH("c.db"));
    err_clear(&err);
    assert_fails(pack(PATH("c.db"), PATH("c.zst"), &stopped, &err), &err, ERR_CANCELLED);
}

static void test_the_file(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    DumpInfo got = {0};
    struct stat st;
    add_vms(0, 3);
    take(PATH("taken.db"));
    assert_ok(pack(PATH("taken.db"), PATH("file"), NULL, &err), &err);
    int fd = open(PATH("out.db"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_ok(dump_file_unpack(PATH("file"), fd, &got, NULL, &err), &err);
    assert_int_equal(close(fd), 0);
    assert_string_equal(got.hub_id, info.hub_id);
    assert_int_equal(got.number, 7);
    assert_true(got.created_us == info.created_us);
    assert_string_equal(got.engine, "sqlite");
    assert_true(got.schema >= 40);
    assert_int_equal(stat(PATH("out.db"), &st), 0);
    assert_int_equal(got.database_bytes, st.st_size);
    assert_int_equal(count_vms(PATH("out.db")), 3);
}

// One changed bit anywhere, a piece that is missing, something behind it.
static void test_any_damage_is_seen(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_free char *file = NULL;
    size_t n = 0;
    DumpInfo got;
    take(PATH("taken.db"));
    assert_ok(pack(PATH("taken.db"), PATH("file"), NULL, &err), &err);
    assert_ok(file_read(PATH("file"), 1u << 24, &file, &n, &err), &err);
    for (size_t i = 0; i < n; i++) {
        Err why = ERR_INIT;
        file[i] = (char)(file[i] ^ (1 << i % 8));
        write_file(PATH("bad"), file, n);
        assert_fails(dump_file_unpack(PATH("bad"), -1, &got, NULL, &why), &why, ERR_DAMAGED);
        file[i] = (char)(file[i] ^ (1 << i % 8));
    }
    for (size_t i = 0; i < n; i++) {
        Err why = ERR_INIT;
        write_file(PATH("bad"), file, i);
        assert_fails(dump_file_unpack(PATH("bad"), -1, &got, NULL, &why), &why, ERR_DAMAGED);
    }
    cleanup_free char *longer = mem_calloc(2 * n, 1, &err);
    memcpy(longer, file, n);
    memcpy(longer + n, file, n);
    static const size_t more[] = {1, 9};
    for (size_t i = 0; i < ARRAY_LEN(more); i++) {
        Err why = ERR_INIT;
        write_file(PATH("bad"), longer, n + more[i]);
        assert_fails(dump_file_unpack(PATH("bad"), -1, &got, NULL, &why), &why, ERR_DAMAGED);
    }
    Err why = ERR_INIT;
    write_file(PATH("bad"), longer, 2 * n);
    assert_fails(dump_file_unpack(PATH("bad"), -1, &got, NULL, &why), &why, ERR_DAMAGED);
}

static void test_what_is_no_database_of_ours(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Db *db = NULL;
    write_file(PATH("text"),
               "no database, and longer than a header of one has to be, which is a hundred bytes: "
               "so on, and so on, and so on",
               110);
    assert_fails(dump_upgrade(PATH("text"), &err), &err, ERR_DAMAGED);
    err_clear(&err);
    assert_ok(db_sqlite_open(PATH("empty.db"), &db, &err), &err);
    assert_ok(db->ops->exec(db, "CREATE TABLE t (a)", &err), &err);
    db->ops->close(db);
    assert_fails(dump_upgrade(PATH("empty.db"), &err), &err, ERR_DAMAGED);
    err_clear(&err);
    take(PATH("taken.db"));
    assert_ok(db_sqlite_open(PATH("taken.db"), &db, &err), &err);
    assert_ok(
        db_run(db, "INSERT INTO schema_migrations (version, applied_at) VALUES (9999, 'x')", DB_NO_ARGS, NULL, &err),
        &err);
    db->ops->close(db);
    assert_fails(dump_upgrade(PATH("taken.db"), &err), &err, ERR_UNSUPPORTED);
}

static void test_an_older_schema_is_migrated(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Db *db = NULL;
    add_vms(0, 3);
    take(PATH("taken.db"));
    assert_ok(db_sqlite_open(PATH("taken.db"), &db, &err), &err);
    assert_ok(db->ops->exec(db, "DROP INDEX backup_jobs_points", &err), &err);
    assert_ok(db->ops->exec(db, "DROP INDEX backup_jobs_stored", &err), &err);
    assert_ok(db->ops->exec(db, "ALTER TABLE exports DROP COLUMN hub_id", &err), &err);
    assert_ok(db->ops->exec(db, "DELETE FROM schema_migrations WHERE version >= 45", &err), &err);
    db->ops->close(db);
    assert_ok(dump_upgrade(PATH("taken.db"), &err), &err);
    assert_ok(dump_new(PATH("fresh.db"), &err), &err);
    assert_ok(dump_fill(PATH("taken.db"), PATH("fresh.db"), &err), &err);
    assert_int_equal(count_vms(PATH("fresh.db")), 3);
}

// A file may hold what a hub never writes: what comes out has our schema, and rows.
static void test_a_trigger_does_not_come_along(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Db *db = NULL;
    int64_t triggers;
    take(PATH("taken.db"));
    assert_ok(db_sqlite_open(PATH("taken.db"), &db, &err), &err);
    assert_ok(db->ops->exec(db, "CREATE TRIGGER t AFTER INSERT ON vms BEGIN DELETE FROM api_tokens; END", &err), &err);
    db->ops->close(db);
    assert_ok(dump_upgrade(PATH("taken.db"), &err), &err);
    assert_ok(dump_new(PATH("fresh.db"), &err), &err);
    assert_ok(dump_fill(PATH("taken.db"), PATH("fresh.db"), &err), &err);
    assert_ok(db_sqlite_open(PATH("fresh.db"), &db, &err), &err);
    assert_ok(
        db_number(db, "SELECT COUNT(*) FROM sqlite_master WHERE type = 'trigger'", DB_NO_ARGS, 1, &triggers, &err),
        &err);
    db->ops->close(db);
    assert_int_equal(triggers, 0);
}

static void test_is_it_empty(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    bool empty;
    assert_ok(dump_is_empty(PATH("live.db"), &empty, &err), &err);
    assert_false(empty);
    assert_ok(dump_new(PATH("new.db"), &err), &err);
    assert_ok(dump_is_empty(PATH("new.db"), &empty, &err), &err);
    assert_true(empty);
    write_file(PATH("junk.db"),
               "junk that is there is not nothing, whatever it once was: it may be mended yet, "
               "by somebody who can",
               90);
    assert_ok(dump_is_empty(PATH("junk.db"), &empty, &err), &err);
    assert_false(empty);
}

static void test_state(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char id[UUID_TEXT], again[UUID_TEXT];
    uint64_t number;
    int64_t at;
    bool stale;
    assert_ok(store_hub_id(store, id, &err) && store_hub_id(store, again, &err), &err);
    assert_string_equal(id, again);
    assert_ok(store_dump_number(store, 1, &number, &err), &err);
    assert_int_equal(number, 1);
    assert_ok(store_dump_number(store, 1, &number, &err), &err);
    assert_int_equal(number, 2);
    assert_ok(store_dump_number(store, 10, &number, &err), &err);
    assert_int_equal(number, 10);
    assert_ok(store_dumped(store, repository, &at, &err), &err);
    assert_true(at == 0);
    assert_ok(store_set_dumped(store, repository, 5000000, &err), &err);
    assert_ok(store_dumped(store, repository, &at, &err), &err);
    assert_true(at == 5000000);
    assert_ok(store_is_stale(store, repository, &stale, &err), &err);
    assert_false(stale);
    assert_ok(store_restored(store, 1, &err), &err);
    assert_ok(store_is_stale(store, repository, &stale, &err), &err);
    assert_true(stale);
    assert_ok(store_repository_remove(store, repository, &err), &err); // another may get its number
    assert_ok(store_is_stale(store, repository, &stale, &err) && store_dumped(store, repository, &at, &err), &err);
    assert_false(stale);
    assert_true(at == 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {TEST(test_rows_in_and_out),
                                       TEST(test_beside_somebody_who_writes),
                                       TEST(test_whoever_stops_it),
                                       TEST(test_the_file),
                                       TEST(test_any_damage_is_seen),
                                       TEST(test_what_is_no_database_of_ours),
                                       TEST(test_an_older_schema_is_migrated),
                                       TEST(test_a_trigger_does_not_come_along),
                                       TEST(test_is_it_empty),
                                       TEST(test_state)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
