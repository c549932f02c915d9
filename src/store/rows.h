// The rows of a database whose tables are not known by name: read in the order of their keys, and written into another
// one of the same schema. Private to store/.
#pragma once

#include "store/db.h"

#define ROWS_NAME_BYTES 65

typedef struct RowsColumn {
    char name[ROWS_NAME_BYTES];
    unsigned key; // place in the primary key, from 1; 0: no part of it
} RowsColumn;

typedef struct RowsTable {
    char name[ROWS_NAME_BYTES];
    RowsColumn *columns;
    unsigned columns_len;
} RowsTable;

typedef struct RowsSchema {
    RowsTable *tables; // all but that of the migrations
    unsigned len;
    bool has_migrations;
} RowsSchema;

// ERR_CONFLICT: a table or column with a name that none of ours has.
bool rows_read_schema(Db *db, RowsSchema *ret, Err *err) must_check;
void rows_schema_clear(RowsSchema *s);

// The statement for all rows of a table, in an order that is the same in either database.
bool rows_select(Db *db, const RowsTable *t, DbStmt **ret, Err *err) must_check;
// All rows of all tables: numbers as numbers, text byte for byte. The caller has to's transaction open, and its foreign
// keys off. ERR_CONFLICT: a value that is neither.
bool rows_copy(Db *from, Db *to, const RowsSchema *schema, const DbPatience *patience, Err *err) must_check;
bool rows_delete_all(Db *db, const RowsSchema *schema, Err *err) must_check;
// ERR_CONFLICT: a row that belongs to one that is not there; a database that checks would not take it.
bool rows_references_hold(Db *sqlite, Err *err) must_check;
