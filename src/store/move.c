#include "store/move.h"

#include "base/file.h"
#include "base/str.h"
#include "store/db.h"

#include <inttypes.h>
#include <sodium.h>

#define SQL_MAX (1u << 20)
#define TABLES_MAX 200
#define COLUMNS_MAX 200
#define NAME_BYTES 65
#define BATCH_VALUES 2000 // of one INSERT: SQLite takes 32766, MariaDB 65535
#define BATCH_BYTES (1u << 20)
#define SUFFIX ".migrating"

typedef struct Column {
    char name[NAME_BYTES];
    unsigned key; // place in the primary key, from 1; 0: no part of it
} Column;

typedef struct Table {
    char name[NAME_BYTES];
    Column *columns;
    unsigned columns_len;
} Table;

typedef struct Schema {
    Table *tables; // all but that of the migrations
    unsigned len;
    bool has_migrations;
} Schema;

typedef struct Cell {
    DbValue value;
    int64_t number;
    char *text;
    size_t size;
} Cell;

static void close_db(Db *db)
{
    if (db)
        db->ops->close(db);
}

// ---- what there is

static void schema_clear(Schema *s)
{
    for (unsigned i = 0; i < s->len; i++)
        free(s->tables[i].columns);
    free(s->tables);
    *s = (Schema){0};
}

// Ours are plain; another one is never written into a statement.
static bool take_name(const char *name, char ret[NAME_BYTES], Err *err)
{
    if (!name || !name[0] || strlen(name) >= NAME_BYTES ||
        strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != strlen(name))
        return err_set(err, ERR_CONFLICT, "database: \"%.80s\" is no table or column of this program's",
                       name ? name : "");
    memcpy(ret, name, strlen(name) + 1);
    return true;
}

static bool read_columns(Db *db, Table *t, Err *err)
{
    DbStmt *s = NULL;
    bool row = true;
    t->columns = mem_calloc(COLUMNS_MAX, sizeof(*t->columns), err);
    bool ok = t->columns && db->ops->prepare(db, db->ops->columns, &s, err) && db->ops->bind_text(s, 0, t->name, err);
    while (ok && (ok = db->ops->step(s, &row, err)) && row) {
        if (t->columns_len == COLUMNS_MAX)
            ok = err_set(err, ERR_TOO_LARGE, "database: table %s has too many columns", t->name);
        else
            ok = take_name(db->ops->column_text(s, 0), t->columns[t->columns_len].name, err);
        if (ok)
            t->columns[t->columns_len++].key = (unsigned)db->ops->column_int(s, 1);
    }
    db->ops->finish(s);
    return ok;
}

static bool read_tables(Db *db, Schema *schema, Err *err)
{
    DbStmt *s = NULL;
    bool row = true;
    bool ok = db->ops->prepare(db, db->ops->tables, &s, err);
    while (ok && (ok = db->ops->step(s, &row, err)) && row) {
        const char *name = db->ops->column_text(s, 0);
        if (name && str_eq(name, DB_MIGRATIONS))
            schema->has_migrations = true;
        else if (schema->len == TABLES_MAX)
            ok = err_set(err, ERR_TOO_LARGE, "database: too many tables");
        else if ((ok = take_name(name, schema->tables[schema->len].name, err)))
            schema->len++;
    }
    db->ops->finish(s);
    return ok;
}

static bool read_schema(Db *db, Schema *ret, Err *err)
{
    Schema schema = {.tables = mem_calloc(TABLES_MAX, sizeof(*schema.tables), err)};
    bool ok = schema.tables && read_tables(db, &schema, err);
    for (unsigned i = 0; ok && i < schema.len; i++)
        ok = read_columns(db, &schema.tables[i], err);
    if (!ok) {
        schema_clear(&schema);
        return false;
    }
    *ret = schema;
    return true;
}

static const Table *find_table(const Schema *s, const char *name)
{
    for (unsigned i = 0; i < s->len; i++)
        if (str_eq(s->tables[i].name, name))
            return &s->tables[i];
    return NULL;
}

static const Column *find_column(const Table *t, const char *name)
{
    for (unsigned i = 0; i < t->columns_len; i++)
        if (str_eq(t->columns[i].name, name))
            return &t->columns[i];
    return NULL;
}

// Whatever a has b has, too.
static bool is_part_of(const Schema *a, const char *whose, const Schema *b, Err *err)
{
    for (unsigned i = 0; i < a->len; i++) {
        const Table *mine = &a->tables[i], *other = find_table(b, mine->name);
        if (!other)
            return err_set(err, ERR_CONFLICT,
                           "table %s is in the %s's database only; HINT: it is none of this program's", mine->name,
                           whose);
        for (unsigned c = 0; c < mine->columns_len; c++) {
            const Column *same = find_column(other, mine->columns[c].name);
            if (!same || same->key != mine->columns[c].key)
                return err_set(err, ERR_CONFLICT, "column %s of table %s is in the %s's database only",
                               mine->columns[c].name, mine->name, whose);
        }
    }
    return true;
}

static bool fits(const Schema *from, const Schema *to, Err *err)
{
    return is_part_of(from, "source", to, err) && is_part_of(to, "target", from, err);
}

static bool check_version(Db *db, const Schema *schema, Err *err)
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
static bool count_rows(Db *db, const Schema *schema, StrBuf *ret_text, Err *err)
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

// Rows that no row of another table stands behind: a database that checks would not take them.
static bool references_hold(Db *sqlite, Err *err)
{
    DbStmt *s = NULL;
    bool row = false;
    bool ok = sqlite->ops->prepare(sqlite, "PRAGMA foreign_key_check", &s, err) && sqlite->ops->step(s, &row, err) &&
        (!row ||
         err_set(err, ERR_CONFLICT, "table %s has a row that belongs to one of table %s which is not there",
                 sqlite->ops->column_text(s, 0), sqlite->ops->column_text(s, 2)));
    sqlite->ops->finish(s);
    return ok;
}

// ---- reading and writing rows

// All rows, in the order of the primary key, the same in both: numbers as numbers, text byte for byte.
static bool start_reading(Db *db, const Table *t, DbStmt **ret, Err *err)
{
    StrBuf sql = STR_BUF(SQL_MAX);
    unsigned keys = 0;
    bool ok = str_add(&sql, "SELECT ", err);
    for (unsigned i = 0; ok && i < t->columns_len; i++) {
        ok = str_addf(&sql, err, "%s%s", i ? ", " : "", t->columns[i].name);
        keys += t->columns[i].key > 0;
    }
    ok = ok && str_addf(&sql, err, " FROM %s", t->name);
    for (unsigned place = 1; ok && place <= keys; place++)
        for (unsigned i = 0; ok && i < t->columns_len; i++)
            if (t->columns[i].key == place)
                ok = str_addf(&sql, err, "%s%s", place == 1 ? " ORDER BY " : ", ", t->columns[i].name);
    for (unsigned i = 0; ok && keys == 0 && i < t->columns_len; i++)
        ok = str_addf(&sql, err, "%s%s", i == 0 ? " ORDER BY " : ", ", t->columns[i].name);
    ok = ok && db->ops->prepare(db, sql.s, ret, err);
    str_clear(&sql);
    return ok;
}

static bool copy_cell(Db *from, DbStmt *s, unsigned i, const Table *t, Cell *ret, Err *err)
{
    const char *text = NULL;
    free(mem_take(ret->text));
    ret->value = from->ops->column_value(s, i);
    switch (ret->value) {
    case DB_VALUE_NULL: return true;
    case DB_VALUE_NUMBER: ret->number = from->ops->column_int(s, i); return true;
    case DB_VALUE_TEXT:
        text = from->ops->column_text(s, i);
        ret->size = from->ops->column_size(s, i);
        ret->text = text ? mem_calloc(ret->size + 1, 1, err) : NULL;
        if (!ret->text)
            return text ? false : err_no_memory(err);
        memcpy(ret->text, text, ret->size);
        return true;
    case DB_VALUE_OTHER: break;
    }
    return err_set(err, ERR_CONFLICT, "column %s of table %s has a value that is neither number nor text",
                   t->columns[i].name, t->name);
}

static bool bind_cell(Db *to, DbStmt *s, unsigned i, const Cell *c, Err *err)
{
    switch (c->value) {
    case DB_VALUE_NUMBER: return to->ops->bind_int(s, i, c->number, err);
    case DB_VALUE_TEXT: return to->ops->bind_bytes(s, i, c->text, c->size, err);
    default: return to->ops->bind_null(s, i, err);
    }
}

static bool prepare_insert(Db *to, const Table *t, unsigned rows, DbStmt **ret, Err *err)
{
    StrBuf sql = STR_BUF(SQL_MAX);
    bool ok = str_addf(&sql, err, "INSERT INTO %s (", t->name);
    for (unsigned i = 0; ok && i < t->columns_len; i++)
        ok = str_addf(&sql, err, "%s%s", i ? ", " : "", t->columns[i].name);
    for (unsigned r = 0; ok && r < rows; r++) {
        ok = str_add(&sql, r ? "), (" : ") VALUES (", err);
        for (unsigned i = 0; ok && i < t->columns_len; i++)
            ok = str_add(&sql, i ? ", ?" : "?", err);
    }
    ok = ok && str_add(&sql, ")", err) && to->ops->prepare(to, sql.s, ret, err);
    str_clear(&sql);
    return ok;
}

typedef struct Batch {
    Cell *cells;
    unsigned rows, rows_max;
    size_t bytes;
    DbStmt *full; // the statement for rows_max of them; NULL: none was needed yet
} Batch;

static bool write_batch(Db *to, const Table *t, Batch *b, Err *err)
{
    DbStmt *s = NULL;
    bool any, is_full = b->rows == b->rows_max;
    if (b->rows == 0)
        return true;
    bool ok = is_full && b->full ? to->ops->again(b->full, err) : prepare_insert(to, t, b->rows, &s, err);
    if (ok && is_full && !b->full)
        b->full = mem_take(s);
    DbStmt *insert = is_full ? b->full : s;
    for (unsigned i = 0; ok && i < b->rows * t->columns_len; i++)
        ok = bind_cell(to, insert, i, &b->cells[i], err);
    ok = ok && to->ops->step(insert, &any, err);
    to->ops->finish(s);
    b->rows = 0;
    b->bytes = 0;
    return ok;
}

static bool add_row(Db *from, DbStmt *s, const Table *t, Batch *b, Err *err)
{
    Cell *row = b->cells + (size_t)b->rows * t->columns_len;
    for (unsigned i = 0; i < t->columns_len; i++) {
        if (!copy_cell(from, s, i, t, &row[i], err))
            return false;
        b->bytes += row[i].value == DB_VALUE_TEXT ? row[i].size : 0;
    }
    b->rows++;
    return true;
}

static bool copy_table(Db *from, Db *to, const Table *t, Err *err)
{
    DbStmt *s = NULL;
    bool row = true;
    Batch b = {.rows_max = MAX(1, BATCH_VALUES / t->columns_len)};
    size_t n = (size_t)b.rows_max * t->columns_len;
    b.cells = mem_calloc(n, sizeof(*b.cells), err);
    bool ok = b.cells && start_reading(from, t, &s, err);
    while (ok && (ok = from->ops->step(s, &row, err)) && row)
        ok = add_row(from, s, t, &b, err) &&
            ((b.rows < b.rows_max && b.bytes < BATCH_BYTES) || write_batch(to, t, &b, err));
    ok = ok && write_batch(to, t, &b, err);
    from->ops->finish(s);
    to->ops->finish(b.full);
    for (size_t i = 0; b.cells && i < n; i++)
        free(b.cells[i].text);
    free(b.cells);
    return ok || err_context(err, "table %s", t->name);
}

static bool counter_of(Db *db, const Table *t, int64_t *ret, Err *err)
{
    return db_number(db, db->ops->counter, DB_ARGS(DB_T(t->name)), 0, ret, err);
}

// All of them or none. Counters come first: for MariaDB they are no part of a transaction, and without rows they tell
// nothing.
static bool fill(Db *from, Db *to, Db *sqlite, Err *err)
{
    Schema a = {0}, b = {0};
    int64_t next;
    bool ok = db_migrate(to, NULL, err) && read_schema(from, &a, err) && read_schema(to, &b, err) && fits(&a, &b, err);
    for (unsigned i = 0; ok && i < a.len; i++)
        ok = counter_of(from, &a.tables[i], &next, err) &&
            (next <= 1 || to->ops->set_counter(to, a.tables[i].name, next, err));
    // in whatever order they come
    ok = ok && to->ops->references(to, false, err) && to->ops->begin(to, err);
    if (ok) {
        for (unsigned i = 0; ok && i < a.len; i++)
            ok = copy_table(from, to, &a.tables[i], err);
        ok = ok && references_hold(sqlite, err) && to->ops->commit(to, err);
        if (!ok)
            to->ops->rollback(to);
    }
    schema_clear(&a);
    schema_clear(&b);
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

static bool same_rows(Db *a, DbStmt *x, Db *b, DbStmt *y, const Table *t, uint64_t *ret_rows,
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

static bool compare_table(Db *from, Db *to, const Table *t, const StoreMove *m, Err *err)
{
    DbStmt *x = NULL, *y = NULL;
    int64_t next, has;
    uint64_t rows = 0;
    char digest[STORE_DIGEST_TEXT];
    if (!counter_of(from, t, &next, err) || !counter_of(to, t, &has, err))
        return false;
    if (has < next && next > 1)
        return err_set(err, ERR_DAMAGED, "table %s would give the number %" PRId64 " once more", t->name, MAX(has, 1));
    bool ok = start_reading(from, t, &x, err) && start_reading(to, t, &y, err) &&
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
    Schema a = {0}, b = {0};
    bool ok = read_schema(from, &a, err) && read_schema(to, &b, err) && check_version(to, &b, err) && fits(&a, &b, err);
    for (unsigned i = 0; ok && i < a.len; i++)
        ok = compare_table(from, to, &a.tables[i], m, err);
    schema_clear(&a);
    schema_clear(&b);
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
    Schema schema = {0};
    bool ok = read_schema(to, &schema, err) && count_rows(to, &schema, ret_rows, err);
    schema_clear(&schema);
    return ok;
}

// What was written and is not right is not left for a hub to find.
static bool empty_again(Db *to, Err *err)
{
    Schema schema = {0};
    bool ok = read_schema(to, &schema, err) && to->ops->references(to, false, err) && to->ops->begin(to, err);
    for (unsigned i = 0; ok && i < schema.len; i++) {
        cleanup_free char *sql = mem_printf(err, "DELETE FROM %s", schema.tables[i].name);
        ok = sql && to->ops->exec(to, sql, err);
    }
    ok = ok && to->ops->commit(to, err);
    if (!ok)
        to->ops->rollback(to);
    schema_clear(&schema);
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
    StrBuf rows = STR_BUF(SQL_MAX);
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

static bool unlink_with_logs(const char *path, Err *err)
{
    static const char *const suffixes[] = {"-wal", "-shm", "-journal", ""};
    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
        cleanup_free char *each = mem_printf(err, "%s%s", path, suffixes[i]);
        if (!each || !file_unlink(each, err))
            return false;
    }
    return true;
}

// Its log is empty and gone, so that the file can be another one's.
static bool settle(const char *path, Err *err)
{
    Db *db = NULL;
    cleanup_free char *wal = mem_printf(err, "%s-wal", path);
    if (!wal || !db_sqlite_open(path, &db, err))
        return false;
    bool ok = db->ops->exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", err);
    close_db(db);
    return ok && (!file_exists(wal) || err_set(err, ERR_BUSY, "another program has %s open", path));
}

static bool make_sqlite(Db *from, const char *path, const StoreMove *m, Err *err)
{
    Db *to = NULL;
    bool ok = unlink_with_logs(path, err) && db_sqlite_open(path, &to, err) && fill(from, to, to, err);
    close_db(to);
    to = NULL;
    ok = ok && settle(path, err) && db_sqlite_open_to_read(path, &to, err) && compare(from, to, m, err);
    close_db(to);
    return ok;
}

// The file is complete and compared before it has its name.
static bool to_embedded(Db *from, const StoreMove *m, bool *ret_before, Err *err)
{
    Db *old = NULL;
    StrBuf rows = STR_BUF(SQL_MAX);
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
    ok = make_sqlite(from, made, m, err) && settle(made, err) && (!there || settle(m->sqlite, err)) &&
        file_rename(made, m->sqlite, err) && file_fsync_dir(folder, err);
    Err ending = ERR_INIT;
    (void)!unlink_with_logs(made, &ending); // the next run does
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
    Schema schema = {0};
    bool ok = open_source(m, &from, err) && read_schema(from, &schema, err) &&
        (check_version(from, &schema, err) || err_context(err, "the source"));
    schema_clear(&schema);
    ok = ok && (m->to_mariadb ? to_mariadb(from, m, ret_before, err) : to_embedded(from, m, ret_before, err));
    close_db(from);
    return ok;
}
