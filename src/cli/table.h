// A table for people: aligned columns, as wide as what is in them.
#pragma once

#include "cli/text.h"

#define TABLE_COLUMNS 10

typedef struct Table {
    const char *titles
        [TABLE_COLUMNS]; // NULL ends them; borrowed. A title that starts with '>' stands, as its column, on the right
    char **cells;        // row by row
    size_t rows;
} Table;

// As many cells as there are titles; they are copied. A NULL cell is "-".
bool table_row(Table *t, const char *const *cells, Err *err) must_check;
// Titles and rows, two blanks between columns; nothing behind the last. Only titles when there are no rows.
void table_print(const Table *t, FILE *f);
void table_clear(Table *t);
