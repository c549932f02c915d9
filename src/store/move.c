#include "store/move.h"

#include "base/file.h"
#include "base/str.h"
#include "store/dump.h"
#include "store/rows.h"

#include <inttypes.h>
#include <sodium.h>

#define SAID_MAX (1u << 20)
#define SUFFIX ".migrating"

static void close_db(Db *db)
{
    if (db)
        db->ops->close(db);
}

// ---- what there is

static const RowsTable *find_table(const RowsSchema *s, const char *name)
{
    for (unsigned i = 0; i < s->len; i++)
        if (str_eq(s->tables[i].name, name))
            return &s->tables[i];
    return NULL;
}

static const RowsColumn *find_column(const RowsTable *t, const char *name)
{
    for (unsigned i = 0; i < t->columns_len; i++)
        if (str_eq(t->columns[i].name, name))
            return &t->columns[i];
    return NULL;
}

// Whatever a has b has, too.
static bool is_part_of(const RowsSchema *a, const char *whose, const RowsSchema *b, Err *err)
{
    for (unsigned i = 0; i < a->len; i++) {
        const RowsTable *mine = &a->tables[i], *other = find_table(b, mine->name);
        if (!other)
            return err_set(err, ERR_CONFLICT,
                           "table %s is in the %s's database only; HINT: it is none of this program's", mine->name,
                           whose);
        for (unsigned c = 0; c < mine->columns_len; c++) {
            const RowsColumn *same = find_column(other, mine->columns[c].name);
            if (!same || same->key != mine->columns[c].key)
                return err_set(err, ERR_CONFLICT, "column %s of table %s is in the %s's database only",
                               mine->columns[c].name, mine->name, whose);
        }
    }
    return true;
}

static bool fits(const RowsSchema *from, const RowsSchema *to, Err *err)
{
    return is_part_of(from, "source", to, err) && is_part_of(to, "target", from, err);
}

static bool check_version(Db *db, const RowsSchema *schema, Err *err)
{
    int64_t version = 0, steps = 0, newest = db_schema_newest();
    if (schema->has_migrations &&
        (!db_number(db, "SELECT MAX(version) FROM " DB_MIGRATIONS, DB_NO_ARGS, 0, &version, err) ||
         !db_number(db, "SELECT COUNT(*) FROM " DB_MIGRATIONS, DB_NO_ARGS, 0, &steps, err)))
        return false;
    if (version == 0)
        return err_set(err, ERR_NOT_FOUND, "there is no catalogue of a hub's in it");
    if (version != newest || steps != newest)
        return err_set(err, ERR_UNSUPPORTED,
                       "it has schema %" PRId64 ", this program's is %" PRId64
                       "; HINT: start this version's hub on it once, and stop it, so that it gets the newest",
                       version, newest);
    return true;
}

// "vms 3, sources 1", of what has rows.
static bool count_rows(Db *db, const RowsSchema *schema, StrBuf *ret_text, Err *err)
{
    for (unsigned i = 0; i < schema->len; i++) {
        int64_t n;
        cleanup_free char *sql = mem_printf(err, "SELECT COUNT(*) FROM %s", schema->tables[i].name);
        if (!sql || !db_number(db, sql, DB_NO_ARGS, 0, &n, err) ||
            (n > 0 && !str_addf(ret_text, err, "%s%s %" PRId64, ret_text->len ? ", " : "", schema->tables[i].name, n)))
            return false;
    }
    return true;
}

static bool counter_of(Db *db, const RowsTable *t, int64_t *ret, Err *err)
{
    return db_number(db, db->ops->counter, DB_ARGS(DB_T(t->name)), 0, ret, err);
}

// All of them or none. Counters come first: for MariaDB they are no part of a transaction, and without rows they tell
// nothing.
static bool fill(Db *from, Db *to, Db *sqlite, Err *err)
{
    RowsSchema a = {0}, b = {0};
    int64_t next;
    bool ok = db_migrate(to, NULL, err) && rows_read_schema(from, &a, err) && rows_read_schema(to, &b, err) &&
        fits(&a, &b, err);
    for (unsigned i = 0; ok && i < a.len; i++)
        ok = counter_of(from, &a.tables[i], &next, err) &&
            (next <= 1 || to->ops->set_counter(to, a.tables[i].name, next, err));
    // in whatever order they come
    ok = ok && to->ops->references(to, false, err) && to->ops->begin(to, err);
    if (ok) {
        ok = rows_copy(from, to, &a, NULL, err) && rows_references_hold(sqlite, err) && to->ops->commit(to, err);
        if (!ok)
            to->ops->rollback(to);
    }
    rows_schema_clear(&a);
    rows_schema_clear(&b);
    return ok;
}

// ---- reading back

static void add_to_digest(crypto_hash_sha256_state *state, DbValue value, int64_t number, const char *text, size_t size)
{
    uint8_t head[9] = {(uint8_t)value};
    uint64_t n = value == DB_VALUE_TEXT ? size : value == DB_VALUE_NUMBER ? (uint64_t)number : 0;
    for (unsigned i = 0; i < 8; i++)
        head[1 + i] = (uint8_t)(n >> (8 * i));
    (void)crypto_hash_sha256_update(state, head, sizeof(head)); // cannot fail
    if (value == DB_VALUE_TEXT)
        (void)crypto_hash_sha256_update(state, (const uint8_t *)text, size);
}

static bool same_value(Db *a, DbStmt *x, Db *b, DbStmt *y, unsigned i, crypto_hash_sha256_state *digest)
{
    DbValue value = a->ops->column_value(x, i);
    if (value != b->ops->column_value(y, i) || value == DB_VALUE_OTHER)
        return false;
    int64_t number = value == DB_VALUE_NUMBER ? a->ops->column_int(x, i) : 0;
    const char *text = value == DB_VALUE_TEXT ? a->ops->column_text(x, i) : NULL;
    size_t size = text ? a->ops->column_size(x, i) : 0;
    add_to_digest(digest, value, number, text, size);
    if (value == DB_VALUE_NUMBER)
        return number == b->ops->column_int(y, i);
    const char *other = value == DB_VALUE_TEXT ? b->ops->column_text(y, i) : NULL;
    return value == DB_VALUE_NULL ||
        (text && other && b->ops->column_size(y, i) == size && memcmp(text, other, size) == 0);
}

static bool same_rows(Db *a, DbStmt *x, Db *b, DbStmt *y, const RowsTable *t, uint64_t *ret_rows,
                      char ret_digest[STORE_DIGEST_TEXT], Err *err)
{
    crypto_hash_sha256_state state;
    unsigned char digest[crypto_hash_sha256_BYTES];
    (void)crypto_hash_sha256_init(&state); // cannot fail
    for (uint64_t n = 0;; n++) {
        bool in_a, in_b;
        if (!a->ops->step(x, &in_a, err) || !b->ops->step(y, &in_b, err))
            return false;
        if (in_a != in_b)
            return err_set(err, ERR_DAMAGED, "table %s has more than %" PRIu64 " rows in the %s only", t->name, n,
                           in_a ? "source" : "target");
        if (!in_a) {
            (void)crypto_hash_sha256_final(&state, digest);
            str_hex(digest, sizeof(digest), ret_digest);
            *ret_rows = n;
            return true;
        }
        for (unsigned i = 0; i < t->columns_len; i++)
            if (!same_value(a, x, b, y, i, &state))
                return err_set(err, ERR_DAMAGED, "table %s, row %" PRIu64 " in the order of its key: column %s differs",
                               t->name, n + 1, t->columns[i].name);
    }
}

static bool compare_table(Db *from, Db *to, const RowsTable *t, const StoreMove *m, Err *err)
{
    DbStmt *x = NULL, *y = NULL;
    int64_t next, has;
    uint64_t rows = 0;
    char digest[STORE_DIGEST_TEXT];
    if (!counter_of(from, t, &next, err) || !counter_of(to, t, &has, err))
        return false;
    if (has < next && next > 1)
        return err_set(err, ERR_DAMAGED, "table %s would give the number %" PRId64 " once more", t->name, MAX(has, 1));
    bool ok = rows_select(from, t, &x, err) && rows_select(to, t, &y, err) &&
        same_rows(from, x, to, y, t, &rows, digest, err);
    from->ops->finish(x);
    to->ops->finish(y);
    if (ok && m->compared)
        m->compared(m->ctx, t->name, rows, digest);
    return ok;
}

// to only reads.
static bool compare(Db *from, Db *to, const StoreMove *m, Err *err)
{
    RowsSchema a = {0}, b = {0};
    bool ok = rows_read_schema(from, &a, err) && rows_read_schema(to, &b, err) && check_version(to, &b, err) &&
        fits(&a, &b, err);
    for (unsigned i = 0; ok && i < a.len; i++)
        ok = compare_table(from, to, &a.tables[i], m, err);
    rows_schema_clear(&a);
    rows_schema_clear(&b);
    return ok;
}

// ---- from one to the other

// There are rows: the very same, of a run that was cut off, or others, which nobody touches.
static bool is_the_same(Db *from, Db *to, const char *rows, const StoreMove *m, Err *err)
{
    Err differs = ERR_INIT;
    if (compare(from, to, m, &differs))
        return true;
    if (differs.code != ERR_DAMAGED && differs.code != ERR_CONFLICT && differs.code != ERR_UNSUPPORTED &&
        differs.code != ERR_NOT_FOUND) {
        *err = differs;
        return false;
    }
    return err_set(
        err, ERR_EXISTS,
        "the target has rows of its own (%.300s), and nothing was changed; HINT: give it an empty database, or"
        " move this one away; the first difference: %.300s",
        rows, differs.details);
}

static bool look_at_target(Db *to, StrBuf *ret_rows, Err *err)
{
    RowsSchema schema = {0};
    bool ok = rows_read_schema(to, &schema, err) && count_rows(to, &schema, ret_rows, err);
    rows_schema_clear(&schema);
    return ok;
}

// What was written and is not right is not left for a hub to find.
static bool empty_again(Db *to, Err *err)
{
    RowsSchema schema = {0};
    bool ok = rows_read_schema(to, &schema, err) && to->ops->references(to, false, err) && to->ops->begin(to, err) &&
        rows_delete_all(to, &schema, err) && to->ops->commit(to, err);
    if (!ok)
        to->ops->rollback(to);
    rows_schema_clear(&schema);
    return ok;
}

static bool read_back_mariadb(Db *from, const StoreMove *m, Err *err)
{
    Db *to = NULL;
    bool ok = db_mariadb_open(m->mariadb, &to, err) && to->ops->only_read(to, err) && compare(from, to, m, err);
    close_db(to);
    if (ok || err->code != ERR_DAMAGED)
        return ok;
    to = NULL;
    Err ending = ERR_INIT;
    bool emptied = db_mariadb_open(m->mariadb, &to, &ending) && empty_again(to, &ending);
    close_db(to);
    return err_context(err,
                       emptied ? "what was read back differs; the target was emptied again"
                               : "what was read back differs; DO NOT use the target, it could not be emptied");
}

static bool to_mariadb(Db *from, const StoreMove *m, bool *ret_before, Err *err)
{
    Db *to = NULL;
    StrBuf rows = STR_BUF(SAID_MAX);
    bool ok = db_mariadb_open(m->mariadb, &to, err) && look_at_target(to, &rows, err);
    bool before = rows.len > 0;
    if (ok && before)
        ok = to->ops->only_read(to, err) && is_the_same(from, to, rows.s, m, err);
    else if (ok)
        ok = fill(from, to, from, err);
    close_db(to);
    ok = ok && (before || read_back_mariadb(from, m, err));
    str_clear(&rows);
    if (ok)
        *ret_before = before;
    return ok;
}

static bool make_sqlite(Db *from, const char *path, const StoreMove *m, Err *err)
{
    Db *to = NULL;
    bool ok = dump_remove(path, err) && db_sqlite_open(path, &to, err) && fill(from, to, to, err);
    close_db(to);
    to = NULL;
    ok = ok && dump_settle(path, err) && db_sqlite_open_to_read(path, &to, err) && compare(from, to, m, err);
    close_db(to);
    return ok;
}

// The file is complete and compared before it has its name.
static bool to_embedded(Db *from, const StoreMove *m, bool *ret_before, Err *err)
{
    Db *old = NULL;
    StrBuf rows = STR_BUF(SAID_MAX);
    bool there = file_exists(m->sqlite);
    bool ok = !there || (db_sqlite_open_to_read(m->sqlite, &old, err) && look_at_target(old, &rows, err));
    bool before = rows.len > 0;
    if (ok && before)
        ok = is_the_same(from, old, rows.s, m, err);
    close_db(old);
    str_clear(&rows);
    if (!ok)
        return false;
    if (before) {
        *ret_before = true;
        return true;
    }
    cleanup_free char *made = mem_printf(err, "%s" SUFFIX, m->sqlite), *folder = mem_strdup(m->sqlite, err);
    if (!made || !folder)
        return false;
    *strrchr(folder, '/') = '\0'; // in the data folder, whose path is absolute
    ok = make_sqlite(from, made, m, err) && dump_settle(made, err) && (!there || dump_settle(m->sqlite, err)) &&
        file_rename(made, m->sqlite, err) && file_fsync_dir(folder, err);
    Err ending = ERR_INIT;
    (void)!dump_remove(made, &ending); // the next run does
    if (ok)
        *ret_before = false;
    return ok;
}

static bool open_source(const StoreMove *m, Db **ret, Err *err)
{
    if (!m->to_mariadb)
        return db_mariadb_open(m->mariadb, ret, err) && (*ret)->ops->only_read(*ret, err);
    if (!file_exists(m->sqlite))
        return err_set(err, ERR_NOT_FOUND, "there is no database %s", m->sqlite);
    return db_sqlite_open_to_read(m->sqlite, ret, err);
}

bool store_move(const StoreMove *m, bool *ret_before, Err *err)
{
    Db *from = NULL;
    RowsSchema schema = {0};
    bool ok = open_source(m, &from, err) && rows_read_schema(from, &schema, err) &&
        (check_version(from, &schema, err) || err_context(err, "the source"));
    rows_schema_clear(&schema);
    ok = ok && (m->to_mariadb ? to_mariadb(from, m, ret_before, err) : to_embedded(from, m, ret_before, err));
    close_db(from);
    return ok;
}
