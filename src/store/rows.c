#include "store/rows.h"

#include "base/str.h"

#define SQL_MAX (1u << 20)
#define TABLES_MAX 200
#define COLUMNS_MAX 200
#define BATCH_VALUES 2000 // of one INSERT: SQLite takes 32766, MariaDB 65535
#define BATCH_BYTES (1u << 20)

typedef struct Cell {
    DbValue value;
    int64_t number;
    char *text;
    size_t size;
} Cell;

typedef struct Batch {
    Cell *cells;
    unsigned rows, rows_max;
    size_t bytes;
    DbStmt *full; // the statement for rows_max of them; NULL: none was needed yet
} Batch;

// ---- what there is

void rows_schema_clear(RowsSchema *s)
{
    for (unsigned i = 0; i < s->len; i++)
        free(s->tables[i].columns);
    free(s->tables);
    *s = (RowsSchema){0};
}

// Ours are plain; another one is never written into a statement.
static bool take_name(const char *name, char ret[ROWS_NAME_BYTES], Err *err)
{
    if (!name || !name[0] || strlen(name) >= ROWS_NAME_BYTES ||
        strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != strlen(name))
        return err_set(err, ERR_CONFLICT, "database: \"%.80s\" is no table or column of this program's",
                       name ? name : "");
    memcpy(ret, name, strlen(name) + 1);
    return true;
}

static bool read_columns(Db *db, RowsTable *t, Err *err)
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

static bool read_tables(Db *db, RowsSchema *schema, Err *err)
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

bool rows_read_schema(Db *db, RowsSchema *ret, Err *err)
{
    RowsSchema schema = {.tables = mem_calloc(TABLES_MAX, sizeof(*schema.tables), err)};
    bool ok = schema.tables && read_tables(db, &schema, err);
    for (unsigned i = 0; ok && i < schema.len; i++)
        ok = read_columns(db, &schema.tables[i], err);
    if (!ok) {
        rows_schema_clear(&schema);
        return false;
    }
    *ret = schema;
    return true;
}

// ---- reading and writing

bool rows_select(Db *db, const RowsTable *t, DbStmt **ret, Err *err)
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

static bool copy_cell(Db *from, DbStmt *s, unsigned i, const RowsTable *t, Cell *ret, Err *err)
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

static bool prepare_insert(Db *to, const RowsTable *t, unsigned rows, DbStmt **ret, Err *err)
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

static bool write_batch(Db *to, const RowsTable *t, Batch *b, const DbPatience *patience, Err *err)
{
    DbStmt *s = NULL;
    bool any, is_full = b->rows == b->rows_max;
    if (!db_go_on(patience, err))
        return false;
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

static bool add_row(Db *from, DbStmt *s, const RowsTable *t, Batch *b, Err *err)
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

static bool copy_table(Db *from, Db *to, const RowsTable *t, const DbPatience *patience, Err *err)
{
    DbStmt *s = NULL;
    bool row = true;
    Batch b = {.rows_max = MAX(1, BATCH_VALUES / t->columns_len)};
    size_t n = (size_t)b.rows_max * t->columns_len;
    b.cells = mem_calloc(n, sizeof(*b.cells), err);
    bool ok = b.cells && rows_select(from, t, &s, err);
    while (ok && (ok = from->ops->step(s, &row, err)) && row)
        ok = add_row(from, s, t, &b, err) &&
            ((b.rows < b.rows_max && b.bytes < BATCH_BYTES) || write_batch(to, t, &b, patience, err));
    ok = ok && write_batch(to, t, &b, patience, err);
    from->ops->finish(s);
    to->ops->finish(b.full);
    for (size_t i = 0; b.cells && i < n; i++)
        free(b.cells[i].text);
    free(b.cells);
    return ok || err_context(err, "table %s", t->name);
}

bool rows_copy(Db *from, Db *to, const RowsSchema *schema, const DbPatience *patience, Err *err)
{
    for (unsigned i = 0; i < schema->len; i++)
        if (!copy_table(from, to, &schema->tables[i], patience, err))
            return false;
    return true;
}

bool rows_delete_all(Db *db, const RowsSchema *schema, Err *err)
{
    for (unsigned i = 0; i < schema->len; i++) {
        cleanup_free char *sql = mem_printf(err, "DELETE FROM %s", schema->tables[i].name);
        if (!sql || !db->ops->exec(db, sql, err))
            return false;
    }
    return true;
}

bool rows_references_hold(Db *sqlite, Err *err)
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
