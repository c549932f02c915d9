#include "unit.h"

#include "base/clock.h"
#include "base/mem.h"
#include "domain/daily.h"

static int64_t at(const char *text)
{
    int64_t us = 0;
    Err err = ERR_INIT;
    assert_ok(clock_parse(text, &us, &err), &err);
    return us;
}

static void test_when(void **state)
{
    (void)state;
    static const struct {
        const char *last, *now; // NULL: never
        unsigned hour;
        bool due;
    } cases[] = {
        {NULL, "2026-01-02T00:30:00Z", 1, true},
        {"2026-01-02T01:00:00Z", "2026-01-02T01:00:00Z", 1, false},
        {"2026-01-02T01:00:00Z", "2026-01-03T00:59:59Z", 1, false},
        {"2026-01-02T01:00:00Z", "2026-01-03T01:00:00Z", 1, true},
        {"2026-01-02T00:59:59Z", "2026-01-02T01:00:00Z", 1, true},
        {"2026-01-02T12:00:00Z", "2026-01-03T00:59:00Z", 1, false}, // by call, at noon
        {"2026-01-02T12:00:00Z", "2026-01-03T01:00:00Z", 1, true},
        {"2026-01-02T01:00:00Z", "2026-02-07T13:00:00Z", 1, true}, // long off
        {"2026-01-02T23:00:00Z", "2026-01-03T22:59:59Z", 23, false},
        {"2026-01-02T23:00:00Z", "2026-01-03T23:00:00Z", 23, true},
        {"2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", 0, true},
        {"2026-01-02T02:30:00Z", "2026-01-02T02:00:00Z", 1, false}, // set back a little: not again
        {"2036-01-02T01:00:00Z", "2026-01-02T12:00:00Z", 1, true},  // set back by years: not for years
        {"2026-01-02T01:00:00Z", "2036-01-02T12:00:00Z", 1, true},  // and forward
        {"1969-12-30T01:00:00Z", "1969-12-31T01:00:00Z", 1, true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        if (daily_is_due(cases[i].last ? at(cases[i].last) : 0, at(cases[i].now), cases[i].hour) != cases[i].due)
            fail_msg("case %zu", i);
}

static void test_which_are_kept(void **state)
{
    (void)state;
    static const struct {
        const char *made[8]; // the newest first
        unsigned days;
        const char *kept;
    } cases[] = {
        {{"2026-01-03T01:00:00Z", "2026-01-02T01:00:00Z", "2026-01-01T01:00:00Z"}, 14, "+++"},
        {{"2026-01-03T01:00:00Z", "2026-01-02T01:00:00Z", "2026-01-01T01:00:00Z"}, 2, "++-"},
        // many by call on one day push no older day out, and the newest two stay
        {{"2026-01-03T04:00:00Z", "2026-01-03T03:00:00Z", "2026-01-03T02:00:00Z", "2026-01-02T01:00:00Z",
          "2026-01-01T01:00:00Z"},
         2,
         "++-+-"},
        // the newest goes by its place, whatever the clock said
        {{"2026-01-03T01:00:00Z", "2036-01-02T01:00:00Z", "2026-01-02T01:00:00Z", "2026-01-01T01:00:00Z"}, 3, "+++-"},
        {{"2026-01-03T01:00:00Z", "2026-01-02T01:00:00Z"}, 1, "++"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        int64_t made[8];
        bool keep[8];
        size_t n = 0;
        for (; n < 8 && cases[i].made[n]; n++)
            made[n] = at(cases[i].made[n]);
        daily_keep(made, n, cases[i].days, keep);
        for (size_t k = 0; k < n; k++)
            if (keep[k] != (cases[i].kept[k] == '+'))
                fail_msg("case %zu: %zu", i, k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_when), cmocka_unit_test(test_which_are_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
