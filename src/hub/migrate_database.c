#include "hub/migrate_database.h"

#include "base/file.h"
#include "base/str.h"
#include "store/move.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

typedef struct Sum {
    uint64_t tables, rows;
} Sum;

static void note(void *ctx, const char *table, uint64_t rows, const char *digest)
{
    Sum *sum = ctx;
    sum->tables++;
    sum->rows += rows;
    (void)printf("%-24s %10" PRIu64 "  %s\n", table, rows, digest);
}

// As a hub takes it.
static bool lock_data_dir(const char *data_dir, int *ret_fd, Err *err)
{
    Err locking = ERR_INIT;
    cleanup_free char *lock = file_join(data_dir, "lock", err);
    if (!lock)
        return false;
    return file_lock(lock, ret_fd, &locking) ||
        err_set(err, locking.code == ERR_BUSY ? ERR_BUSY : ERR_IO,
                "the data folder %s cannot be locked (%s); HINT: stop the hub first", data_dir, locking.details);
}

static bool move(const Settings *s, const char *data_dir, const StoreMariadb *mariadb, Err *err)
{
    Sum sum = {0};
    cleanup_free char *sqlite = file_join(data_dir, "sendense.db", err);
    StoreMove m = {
        .sqlite = sqlite, .mariadb = mariadb, .to_mariadb = str_eq(s->to, "mariadb"), .compared = note, .ctx = &sum};
    bool before = false;
    if (!sqlite)
        return false;
    (void)printf("%-24s %10s  %s\n", "table", "rows", "SHA-256");
    if (!store_move(&m, &before, err))
        return false;
    (void)printf("%" PRIu64 " tables, %" PRIu64 " rows: %s, read back from both, each row the same.\n", sum.tables,
                 sum.rows, before ? "there already" : "moved");
    if (m.to_mariadb)
        (void)printf(
            "Start the hub with --db-host %s and the others now. %s stays as it is: move it away, or a hub that"
            " is started without --db-host goes on with it.\n",
            mariadb->host, sqlite);
    else
        (void)printf("Start the hub without --db-host and the others now. The database %s at %s stays as it is.\n",
                     mariadb->name, mariadb->host);
    return fflush(stdout) == 0 || err_set(err, ERR_IO, "moved, but this could not be said");
}

bool migrate_database(const Settings *s, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    cleanup_free char *data_dir = NULL;
    cleanup_close int lock_fd = -1;
    StoreMariadb mariadb = {0};
    if (!s->to || (!str_eq(s->to, "mariadb") && !str_eq(s->to, "embedded")))
        return err_set(err, ERR_USAGE, "migrate-database needs --to mariadb or --to embedded");
    if (!s->db_host)
        return err_set(err, ERR_USAGE,
                       "migrate-database needs --db-host, --db-name and --db-user, in either direction");
    (void)signal(SIGPIPE, SIG_IGN);
    return settings_database_password(s, &password, err) && settings_mariadb(s, &password, &mariadb, err) &&
        file_realpath(settings_data_dir(s), &data_dir, err) && settings_check_owner(data_dir, err) &&
        lock_data_dir(data_dir, &lock_fd, err) && move(s, data_dir, &mariadb, err);
}
