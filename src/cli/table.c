#include "cli/table.h"

static size_t columns(const Table *t)
{
    size_t n = 0;
    while (n < TABLE_COLUMNS && t->titles[n])
        n++;
    return n;
}

bool table_row(Table *t, const char *const *cells, Err *err)
{
    size_t n = columns(t);
    char **longer = reallocarray(t->cells, (t->rows + 1) * n, sizeof(*longer));
    if (!longer)
        return err_no_memory(err);
    t->cells = longer;
    char **row = longer + t->rows * n;
    for (size_t i = 0; i < n; i++) {
        row[i] = mem_strdup(cells[i] ? cells[i] : "-", err);
        if (!row[i]) {
            while (i > 0)
                free(row[--i]);
            return false;
        }
    }
    t->rows++;
    return true;
}

static void pad(FILE *f, size_t n)
{
    (void)fprintf(f, "%*s", (int)n, "");
}

static void print_row(FILE *f, const Table *t, const char *const *cells, const size_t *widths, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool right = t->titles[i][0] == '>';
        size_t fill = widths[i] - text_width(cells[i]);
        if (right)
            pad(f, fill);
        text_print_clean(f, cells[i]);
        if (i + 1 < n)
            pad(f, (right ? 0 : fill) + 2);
    }
    (void)fputc('\n', f); // main looks at the stream's error before it ends
}

void table_print(const Table *t, FILE *f)
{
    size_t n = columns(t), widths[TABLE_COLUMNS] = {0};
    const char *titles[TABLE_COLUMNS];
    for (size_t i = 0; i < n; i++) {
        titles[i] = t->titles[i] + (t->titles[i][0] == '>' ? 1 : 0);
        widths[i] = text_width(titles[i]);
        for (size_t r = 0; r < t->rows; r++)
            widths[i] = MAX(widths[i], text_width(t->cells[r * n + i]));
    }
    print_row(f, t, titles, widths, n);
    for (size_t r = 0; r < t->rows; r++)
        print_row(f, t, (const char *const *)t->cells + r * n, widths, n);
}

void table_clear(Table *t)
{
    size_t n = columns(t);
    for (size_t i = 0; i < t->rows * n; i++)
        free(t->cells[i]);
    free(t->cells);
    t->cells = NULL;
    t->rows = 0;
}
