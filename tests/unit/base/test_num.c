#include "unit.h"

#include "base/num.h"

#include <inttypes.h>

static void test_u64_good(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"0", 0}, {"7", 7}, {"007", 7}, {"8082", 8082}, {"18446744073709551615", UINT64_MAX}};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        Err err = ERR_INIT;
        uint64_t v = 1;
        assert_ok(num_u64(good[i].text, 0, UINT64_MAX, &v, &err), &err);
        assert_true(v == good[i].value);
    }
}

static void test_u64_bad(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      " ",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1\n",
                                      "0x10",
                                      "1e3",
                                      "1.0",
                                      "1,000",
                                      "1K",
                                      "a",
                                      "٣",
                                      "18446744073709551616",
                                      "99999999999999999999999999999999999999999999999"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        uint64_t v = 4711;
        assert_fails(num_u64(bad[i], 0, UINT64_MAX, &v, &err), &err, ERR_INVALID);
        assert_true(v == 4711);
    }
}

static void test_u64_range(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    uint64_t v = 4711;
    assert_fails(num_u64("0", 1, 65535, &v, &err), &err, ERR_INVALID);
    assert_fails(num_u64("65536", 1, 65535, &v, &err), &err, ERR_INVALID);
    assert_true(v == 4711);
    assert_ok(num_u64("1", 1, 65535, &v, &err), &err);
    assert_ok(num_u64("65535", 1, 65535, &v, &err), &err);
    assert_true(v == 65535);
}

static void test_u64_round_trip(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 2000; i++) {
        uint64_t want = unit_random_next(&r) >> unit_random_below(&r, 64), v = 0;
        char text[32];
        (void)snprintf(text, sizeof(text), "%" PRIu64, want);
        Err err = ERR_INIT;
        assert_ok(num_u64(text, want, want, &v, &err), &err);
        assert_true(v == want);
    }
}

static void test_size(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {{"0", 0},
                {"512", 512},
                {"64K", 65536},
                {"64k", 65536},
                {"1M", 1048576},
                {"2G", UINT64_C(2) << 30},
                {"1T", UINT64_C(1) << 40},
                {"16777215T", UINT64_C(16777215) << 40}};
    static const char *const bad[] = {"",    "K",    "1KB",       "1KiB", "1P", "-1K",
                                      "1 K", "1.5G", "16777216T", "K1",   "1K1"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        Err err = ERR_INIT;
        uint64_t v = 1;
        assert_ok(num_size(good[i].text, 0, UINT64_MAX, &v, &err), &err);
        assert_true(v == good[i].value);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        uint64_t v = 4711;
        assert_fails(num_size(bad[i], 0, UINT64_MAX, &v, &err), &err, ERR_INVALID);
        assert_true(v == 4711);
    }
    Err err = ERR_INIT;
    uint64_t v = 4711;
    assert_fails(num_size("1M", 0, 1048575, &v, &err), &err, ERR_INVALID);
    assert_fails(num_size("511", 512, 1048576, &v, &err), &err, ERR_INVALID);
    assert_ok(num_size("1M", 0, 1048576, &v, &err), &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_u64_good),  cmocka_unit_test(test_u64_bad),
        cmocka_unit_test(test_u64_range), cmocka_unit_test(test_u64_round_trip),
        cmocka_unit_test(test_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
