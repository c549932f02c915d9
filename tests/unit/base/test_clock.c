#include "unit.h"

#include "base/clock.h"

static void expect(const char *text, int64_t want)
{
    Err err = ERR_INIT;
    int64_t t = -1;
    assert_ok(clock_parse(text, &t, &err), &err);
    if (t != want)
        fail_msg("%s: %lld instead of %lld", text, (long long)t, (long long)want);
}

static void test_parse_good(void **state)
{
    (void)state;
    expect("1970-01-01T00:00:00Z", 0);
    expect("1970-01-01T00:00:00.000001Z", 1);
    expect("1969-12-31T23:59:59.999999Z", -1);
    expect("2026-01-02T03:04:05.000006Z", INT64_C(1767323045000006));
    expect("2026-01-02t03:04:05.000006z", INT64_C(1767323045000006));
    expect("2026-01-02T04:04:05.000006+01:00", INT64_C(1767323045000006));
    expect("2026-01-01T21:34:05.000006-05:30", INT64_C(1767323045000006));
    expect("2026-01-02T03:04:05.000006-00:00", INT64_C(1767323045000006));
    expect("2026-01-02T03:04:05.5Z", INT64_C(1767323045500000));
    expect("2026-01-02T03:04:05.123456789Z", INT64_C(1767323045123456)); // cut, not rounded
    expect("2000-02-29T00:00:00Z", INT64_C(951782400000000));
    expect("2016-12-31T23:59:60Z", INT64_C(1483228800000000)); // a leap second that was
    expect("2017-01-01T00:59:60+01:00", INT64_C(1483228800000000));
    expect("9999-12-31T23:59:59.999999Z", INT64_C(253402300799999999));
    expect("0000-01-01T00:00:00Z", INT64_C(-62167219200000000));
}

static void test_parse_bad(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "now",
        "1767323045",
        "2026-01-02",
        "2026-01-02T03:04:05",
        "2026-01-02 03:04:05Z",
        "2026-01-02T03:04Z",
        "2026-1-2T03:04:05Z",
        "26-01-02T03:04:05Z",
        "2026-00-02T03:04:05Z",
        "2026-13-02T03:04:05Z",
        "2026-01-00T03:04:05Z",
        "2026-01-32T03:04:05Z",
        "2026-02-29T03:04:05Z",
        "1900-02-29T03:04:05Z",
        "2026-04-31T03:04:05Z",
        "2026-01-02T24:00:00Z",
        "2026-01-02T03:60:05Z",
        "2026-01-02T03:04:61Z",
        "2026-01-02T03:04:60Z",
        "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05.1234567890Z",
        "2026-01-02T03:04:05,1Z",
        "2026-01-02T03:04:05+0100",
        "2026-01-02T03:04:05+01",
        "2026-01-02T03:04:05+24:00",
        "2026-01-02T03:04:05+01:60",
        "2026-01-02T03:04:05ZZ",
        "2026-01-02T03:04:05Z ",
        " 2026-01-02T03:04:05Z",
        "-026-01-02T03:04:05Z",
        "0000-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "2026-01-02T03:04:05 01:00",
        "2026-01-02T+3:04:05Z",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        int64_t t = 4711;
        if (clock_parse(bad[i], &t, &err))
            fail_msg("accepted: %s", bad[i]);
        assert_int_equal(err.code, ERR_INVALID);
        assert_true(t == 4711);
    }
}

static void test_every_prefix_is_refused(void **state)
{
    (void)state;
    static const char whole[] = "2026-01-02T03:04:05.123456+01:30";
    for (size_t n = 0; n < sizeof(whole) - 1; n++) {
        char part[sizeof(whole)];
        memcpy(part, whole, n);
        part[n] = '\0';
        Err err = ERR_INIT;
        int64_t t;
        assert_fails(clock_parse(part, &t, &err), &err, ERR_INVALID);
    }
}

static void test_round_trip_and_order(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 5000; i++) {
        int64_t span = INT64_C(253402300799999999) + INT64_C(62167219200000000);
        int64_t a = (int64_t)unit_random_below(&r, (uint64_t)span + 1) - INT64_C(62167219200000000);
        int64_t b = a + (int64_t)unit_random_below(&r, 3000000), again = 0;
        char ta[CLOCK_TEXT], tb[CLOCK_TEXT];
        clock_format(a, ta);
        clock_format(b, tb);
        assert_int_equal(strlen(ta), CLOCK_TEXT - 1);
        Err err = ERR_INIT;
        assert_ok(clock_parse(ta, &again, &err), &err);
        assert_true(again == a);
        assert_true(strcmp(ta, tb) <= 0);
        assert_true((strcmp(ta, tb) == 0) == (a == b) || b > INT64_C(253402300799999999));
    }
}

static void test_format_ends(void **state)
{
    (void)state;
    char out[CLOCK_TEXT];
    clock_format(0, out);
    assert_string_equal(out, "1970-01-01T00:00:00.000000Z");
    clock_format(-1, out);
    assert_string_equal(out, "1969-12-31T23:59:59.999999Z");
    clock_format(INT64_MAX, out);
    assert_string_equal(out, "9999-12-31T23:59:59.999999Z");
    clock_format(INT64_MIN, out);
    assert_string_equal(out, "0000-01-01T00:00:00.000000Z");
}

static void test_clocks_run(void **state)
{
    (void)state;
    assert_true(clock_utc_us() > INT64_C(1700000000000000)); // not before this was written
    int64_t before = clock_mono_ms();
    assert_true(clock_mono_ms() >= before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_good),
        cmocka_unit_test(test_parse_bad),
        cmocka_unit_test(test_every_prefix_is_refused),
        cmocka_unit_test(test_round_trip_and_order),
        cmocka_unit_test(test_format_ends),
        cmocka_unit_test(test_clocks_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
