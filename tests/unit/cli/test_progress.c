#include "unit.h"

#include "cli/progress.h"

#include <locale.h>

#define MIB (UINT64_C(1) << 20)

static void rate_is_of_the_last_seconds(void **state)
{
    (void)state;
    Rate r = {0};
    uint64_t seconds;
    assert_int_equal(rate_per_second(&r), 0);
    assert_false(rate_left(&r, 1, &seconds));
    rate_add(&r, 1000, 0);
    assert_int_equal(rate_per_second(&r), 0);
    rate_add(&r, 1100, 50 * MIB); // too close to the last
    assert_int_equal(r.len, 1);
    rate_add(&r, 2000, 100 * MIB);
    assert_int_equal(rate_per_second(&r), 100 * MIB);
    assert_true(rate_left(&r, 250 * MIB, &seconds));
    assert_int_equal(seconds, 3);
    // Fast at first, then slow: the ring forgets the beginning
    for (int i = 1; i <= 2 * RATE_SAMPLES; i++)
        rate_add(&r, 2000 + i * 1000, 100 * MIB + (uint64_t)i * MIB);
    assert_int_equal(rate_per_second(&r), MIB);
    // Nothing moves any more
    for (int i = 1; i <= 2 * RATE_SAMPLES; i++)
        rate_add(&r, 200000 + i * 1000, 200 * MIB);
    assert_int_equal(rate_per_second(&r), 0);
    assert_false(rate_left(&r, 1, &seconds));
}

static void rate_begins_anew(void **state)
{
    (void)state;
    Rate r = {0};
    rate_add(&r, 1000, 500);
    rate_add(&r, 2000, 600);
    rate_add(&r, 3000, 10);
    assert_int_equal(r.len, 1);
    assert_int_equal(rate_per_second(&r), 0);
}

static void words_say_it_all(void **state)
{
    (void)state;
    Rate r = {0};
    char out[PROGRESS_LINE];
    ProgressItem item = {.label = "disk-0", .done = 0, .size = 200 * MIB};
    progress_words(&item, &r, out);
    assert_string_equal(out, "0%, 0 B of 200.0 MiB, 0 B/s");
    rate_add(&r, 1000, 0);
    rate_add(&r, 2000, 50 * MIB);
    item.done = 50 * MIB;
    progress_words(&item, &r, out);
    assert_string_equal(out, "25%, 50.0 MiB of 200.0 MiB, 50.0 MiB/s, 0:03 left");
    item.done = item.size;
    progress_words(&item, &r, out);
    assert_string_equal(out, "100%, 200.0 MiB of 200.0 MiB, 50.0 MiB/s");
}

static void bars_fit_the_terminal(void **state)
{
    (void)state;
    Rate r = {0};
    char out[PROGRESS_LINE];
    ProgressItem item = {.label = "disk-0", .done = 50 * MIB, .size = 100 * MIB};
    progress_bar(&item, &r, 80, out);
    assert_non_null(strstr(out, "disk-0               ["));
    assert_non_null(strstr(out, "#-"));
    for (unsigned columns = 20; columns < 240; columns++) {
        static const char *const labels[] = {"disk-0", "a label that is much longer than there is room for",
                                             "日本日本日本日本日本日本日本日本", "\033[2J", ""};
        for (size_t i = 0; i < ARRAY_LEN(labels); i++) {
            item.label = labels[i];
            progress_bar(&item, &r, columns, out);
            assert_true(text_width(out) <= columns);
            assert_true(*out != '\0');
            assert_null(strchr(out, '\033'));
        }
    }
}

// What is printed elsewhere than on a terminal: notes only, bars never.
static void a_file_gets_no_bars(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    Progress p = {.f = f};
    ProgressItem items[] = {{.label = "disk-0", .done = 1, .size = 2}, {.label = "disk-1", .done = 3, .size = 2}};
    p.shown_ms = INT64_MAX / 2; // not due yet
    progress_show(&p, "backup-1", items, 2);
    p.shown_ms = -PROGRESS_PLAIN_MS;
    progress_show(&p, "backup-1", items, 2);
    progress_note(&p, "a note with \033[2J");
    p.quiet = true;
    p.shown_ms = -PROGRESS_PLAIN_MS;
    progress_show(&p, "backup-1", items, 2);
    progress_end(&p);
    assert_int_equal(fclose(f), 0);
    assert_string_equal(text, "backup-1: 75%, 3 B of 4 B, 0 B/s\na note with ?[2J\n");
    free(text);
}

int main(void)
{
    if (!setlocale(LC_CTYPE, "C.UTF-8"))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rate_is_of_the_last_seconds),
        cmocka_unit_test(rate_begins_anew),
        cmocka_unit_test(words_say_it_all),
        cmocka_unit_test(bars_fit_the_terminal),
        cmocka_unit_test(a_file_gets_no_bars),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
