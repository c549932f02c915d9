#include "store/db.h"

#include "base/clock.h"
#include "base/str.h"

#define SQL_MAX 65536

bool db_go_on(const DbPatience *patience, Err *err)
{
    if (patience && patience->stop && *patience->stop)
        return err_set(err, ERR_CANCELLED, "the hub is stopping");
    if (patience && patience->until_ms > 0 && clock_mono_ms() > patience->until_ms)
        return err_set(err, ERR_TIMEOUT, "it took too long");
    return true;
}

static void *field(void *row, const DbColumn *c)
{
    return (char *)row + c->offset;
}

static const void *const_field(const void *row, const DbColumn *c)
{
    return (const char *)row + c->offset;
}

static bool bind_column(Db *db, DbStmt *s, unsigned i, const DbColumn *c, const void *row, Err *err)
{
    const void *p = const_field(row, c);
    char text[CLOCK_TEXT];
    switch (c->kind) {
    case DB_TEXT: return db->ops->bind_text(s, i, *(char *const *)p, err);
    case DB_U64: {
        uint64_t v = *(const uint64_t *)p;
        if (v > INT64_MAX)
            return err_set(err, ERR_INTERNAL, "%s is too large for the database", c->name);
        return db->ops->bind_int(s, i, (int64_t)v, err);
    }
    case DB_I64:
    case DB_SKIP_ON_INSERT_I64: return db->ops->bind_int(s, i, *(const int64_t *)p, err);
    case DB_BOOL: return db->ops->bind_int(s, i, *(const bool *)p ? 1 : 0, err);
    case DB_TIME:
        if (*(const int64_t *)p == 0)
            return db->ops->bind_null(s, i, err);
        clock_format(*(const int64_t *)p, text);
        return db->ops->bind_text(s, i, text, err);
    }
    return err_set(err, ERR_INTERNAL, "unknown kind of column");
}

static bool read_column(Db *db, DbStmt *s, unsigned i, const DbColumn *c, void *row, Err *err)
{
    void *p = field(row, c);
    const char *text;
    switch (c->kind) {
    case DB_TEXT: text = db->ops->column_text(s, i); return mem_replace((char **)p, text, err);
    case DB_U64: *(uint64_t *)p = (uint64_t)db->ops->column_int(s, i); return true;
    case DB_I64:
    case DB_SKIP_ON_INSERT_I64: *(int64_t *)p = db->ops->column_int(s, i); return true;
    case DB_BOOL: *(bool *)p = db->ops->column_int(s, i) != 0; return true;
    case DB_TIME:
        text = db->ops->column_text(s, i);
        *(int64_t *)p = 0;
        return !text || clock_parse(text, (int64_t *)p, err);
    }
    return err_set(err, ERR_INTERNAL, "unknown kind of column");
}

bool db_insert(Db *db, const DbTable *t, const void *row, Err *err)
{
    StrBuf names = STR_BUF(SQL_MAX), marks = STR_BUF(SQL_MAX), sql = STR_BUF(SQL_MAX);
    DbStmt *s = NULL;
    bool ok = true, any;
    const char *comma = "";
    for (unsigned i = 0; ok && i < t->columns_len; i++) {
        if (t->columns[i].kind == DB_SKIP_ON_INSERT_I64)
            continue;
        ok = str_addf(&names, err, "%s%s", comma, t->columns[i].name) && str_addf(&marks, err, "%s?", comma);
        comma = ", ";
    }
    ok = ok && str_addf(&sql, err, "INSERT INTO %s (%s) VALUES (%s)", t->name, names.s, marks.s) &&
        db->ops->prepare(db, sql.s, &s, err);
    unsigned n = 0;
    for (unsigned i = 0; ok && i < t->columns_len; i++)
        if (t->columns[i].kind != DB_SKIP_ON_INSERT_I64)
            ok = bind_column(db, s, n++, &t->columns[i], row, err);
    ok = ok && db->ops->step(s, &any, err);
    db->ops->finish(s);
    str_clear(&names);
    str_clear(&marks);
    str_clear(&sql);
    return ok;
}

void db_row_clear(const DbTable *t, void *row)
{
    for (unsigned i = 0; i < t->columns_len; i++)
        if (t->columns[i].kind == DB_TEXT)
            free(*(char **)field(row, &t->columns[i]));
    memset(row, 0, t->row_size);
}

static bool bind_args(Db *db, DbStmt *s, const DbArg *args, size_t n, Err *err)
{
    for (unsigned i = 0; i < n; i++) {
        bool ok = args[i].is_number ? db->ops->bind_int(s, i, args[i].number, err)
                                    : db->ops->bind_text(s, i, args[i].text, err);
        if (!ok)
            return false;
    }
    return true;
}

static bool select_start(Db *db, const DbTable *t, const char *tail, const DbArg *args, size_t n, DbStmt **ret,
                         Err *err)
{
    StrBuf sql = STR_BUF(SQL_MAX);
    bool ok = str_add(&sql, "SELECT ", err);
    for (unsigned i = 0; ok && i < t->columns_len; i++)
        ok = str_addf(&sql, err, "%s%s", i ? ", " : "", t->columns[i].name);
    ok = ok && str_addf(&sql, err, " FROM %s %s", t->name, tail) && db->ops->prepare(db, sql.s, ret, err);
    str_clear(&sql);
    if (ok && !bind_args(db, *ret, args, n, err)) {
        db->ops->finish(*ret);
        *ret = NULL;
        ok = false;
    }
    return ok;
}

static bool read_row(Db *db, DbStmt *s, const DbTable *t, void *row, Err *err)
{
    memset(row, 0, t->row_size);
    for (unsigned i = 0; i < t->columns_len; i++)
        if (!read_column(db, s, i, &t->columns[i], row, err)) {
            db_row_clear(t, row);
            return false;
        }
    return true;
}

bool db_select_one(Db *db, const DbTable *t, const char *tail, const DbArg *args, size_t n, void *row, bool *ret_found,
                   Err *err)
{
    DbStmt *s = NULL;
    bool found = false;
    if (!select_start(db, t, tail, args, n, &s, err))
        return false;
    bool ok = db->ops->step(s, &found, err) && (!found || read_row(db, s, t, row, err));
    db->ops->finish(s);
    if (ok)
        *ret_found = found;
    return ok;
}

bool db_select_all(Db *db, const DbTable *t, const char *tail, const DbArg *args, size_t n, void **ret_rows,
                   size_t *ret_len, Err *err)
{
    DbStmt *s = NULL;
    char *rows = NULL;
    size_t len = 0, cap = 0;
    if (!select_start(db, t, tail, args, n, &s, err))
        return false;
    bool ok = true, found = true;
    while (ok && (ok = db->ops->step(s, &found, err)) && found) {
        if (len == cap) {
            cap = cap ? cap * 2 : 16;
            char *more = reallocarray(rows, cap, t->row_size);
            if (!more) {
                ok = err_no_memory(err);
                break;
            }
            rows = more;
        }
        ok = read_row(db, s, t, rows + len * t->row_size, err);
        if (ok)
            len++;
    }
    db->ops->finish(s);
    if (!ok) {
        for (size_t i = 0; i < len; i++)
            db_row_clear(t, rows + i * t->row_size);
        free(rows);
        return false;
    }
    *ret_rows = rows;
    *ret_len = len;
    return true;
}

bool db_run(Db *db, const char *sql, const DbArg *args, size_t n, uint64_t *ret_affected, Err *err)
{
    DbStmt *s = NULL;
    bool any;
    if (!db->ops->prepare(db, sql, &s, err))
        return false;
    bool ok = bind_args(db, s, args, n, err) && db->ops->step(s, &any, err);
    db->ops->finish(s);
    if (ok && ret_affected)
        *ret_affected = db->ops->affected(db);
    return ok;
}

bool db_number(Db *db, const char *sql, const DbArg *args, size_t n, int64_t fallback, int64_t *ret, Err *err)
{
    DbStmt *s = NULL;
    bool found = false;
    if (!db->ops->prepare(db, sql, &s, err))
        return false;
    bool ok = bind_args(db, s, args, n, err) && db->ops->step(s, &found, err);
    int64_t v = fallback;
    if (ok && found && !db->ops->column_is_null(s, 0))
        v = db->ops->column_int(s, 0);
    db->ops->finish(s);
    if (ok)
        *ret = v;
    return ok;
}
