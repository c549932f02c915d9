#include "unit.h"

#include "cli/table.h"

#include <locale.h>

static void width_counts_columns(void **state)
{
    (void)state;
    assert_int_equal(text_width(""), 0);
    assert_int_equal(text_width("abc"), 3);
    assert_int_equal(text_width("Zürich"), 6);
    assert_int_equal(text_width("日本"), 4);
    assert_int_equal(text_width("e\xcc\x81"), 1); // a combining accent
    assert_int_equal(text_width("a\xff"
                                "b"),
                     3); // broken: a '?' stands for it
}

static void check_clean(const char *given, const char *expected)
{
    Err err = ERR_INIT;
    StrBuf b = STR_BUF(100);
    assert_ok(text_add_clean(&b, given, &err), &err);
    assert_string_equal(b.s, expected);
    str_clear(&b);
}

// A VM's name must not move a terminal's cursor, nor turn the direction of writing around.
static void clean_makes_names_harmless(void **state)
{
    (void)state;
    check_clean("web 1", "web 1");
    check_clean("", "");
    check_clean("a\033[2Jb", "a?[2Jb");
    check_clean("a\nb\tc", "a?b?c");
    check_clean("a\xc2\x9b"
                "b",
                "a??b");
    check_clean("a\xe2\x80\xae"
                "b",
                "a???b");
    check_clean("Zürich\xc3", "Zürich?");
    check_clean("\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80");
}

static void times_are_short(void **state)
{
    (void)state;
    char out[TEXT_TIME];
    text_time("2026-01-02T03:04:05.000006Z", out);
    assert_string_equal(out, "2026-01-02 03:04:05");
    text_time("2026-01-02T03:04:05+02:00", out);
    assert_string_equal(out, "2026-01-02 01:04:05");
    text_time("", out);
    assert_string_equal(out, "-");
    text_time("yesterday", out);
    assert_string_equal(out, "-");
    text_time(NULL, out);
    assert_string_equal(out, "-");
}

static void durations_grow(void **state)
{
    (void)state;
    char out[TEXT_DURATION];
    text_duration(0, out);
    assert_string_equal(out, "0:00");
    text_duration(67, out);
    assert_string_equal(out, "1:07");
    text_duration(3600, out);
    assert_string_equal(out, "1:00:00");
    text_duration(2 * 86400 + 3 * 3600 + 4 * 60 + 5, out);
    assert_string_equal(out, "2d 03:04:05");
    text_duration(UINT64_MAX, out); // fits
}

// 100% is said only when all is done.
static void percents_are_rounded_down(void **state)
{
    (void)state;
    char out[TEXT_PERCENT];
    text_percent(0, 10, out);
    assert_string_equal(out, "0%");
    text_percent(999999, 1000000, out);
    assert_string_equal(out, "99%");
    text_percent(UINT64_MAX - 1, UINT64_MAX, out);
    assert_string_equal(out, "99%");
    text_percent(10, 10, out);
    assert_string_equal(out, "100%");
    text_percent(0, 0, out);
    assert_string_equal(out, "-");
}

static void check_shell(const char *value, const char *expected)
{
    Err err = ERR_INIT;
    char *s = text_shell("X", value, &err);
    assert_non_null(s);
    assert_string_equal(s, expected);
    free(s);
}

static void shell_words_are_quoted(void **state)
{
    (void)state;
    check_shell("http://localhost:8082", "X=http://localhost:8082");
    check_shell("", "X=''");
    check_shell("backup-pg test-1", "X='backup-pg test-1'");
    check_shell("it's; rm -rf /", "X='it'\\''s; rm -rf /'");
    check_shell("$HOME", "X='$HOME'");
}

static char *printed(const Table *t)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    table_print(t, f);
    assert_int_equal(fclose(f), 0);
    return text;
}

static void tables_are_aligned(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Table t = {.titles = {"NAME", ">SIZE", "STATE"}};
    char *empty = printed(&t);
    assert_string_equal(empty, "NAME  SIZE  STATE\n");
    free(empty);
    assert_ok(table_row(&t, (const char *const[]){"Zürich", "1.0 GiB", "ok"}, &err), &err);
    assert_ok(table_row(&t, (const char *const[]){"b\033", NULL, "日本"}, &err), &err);
    char *text = printed(&t);
    assert_string_equal(text,
                        "NAME       SIZE  STATE\n"
                        "Zürich  1.0 GiB  ok\n"
                        "b?            -  日本\n");
    free(text);
    table_clear(&t);
    assert_int_equal(t.rows, 0);
}

int main(void)
{
    if (!setlocale(LC_CTYPE, "C.UTF-8"))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(width_counts_columns),      cmocka_unit_test(clean_makes_names_harmless),
        cmocka_unit_test(times_are_short),           cmocka_unit_test(durations_grow),
        cmocka_unit_test(percents_are_rounded_down), cmocka_unit_test(shell_words_are_quoted),
        cmocka_unit_test(tables_are_aligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
