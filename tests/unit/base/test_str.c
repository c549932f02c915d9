#include "unit.h"

#include "base/str.h"

static void test_buffer(void **state)
{
    (void)state;
    StrBuf b = STR_BUF(10);
    Err err = ERR_INIT;
    assert_null(b.s);
    assert_ok(str_add(&b, "", &err), &err);
    assert_string_equal(b.s, "");
    assert_ok(str_addf(&b, &err, "%d-%s", 12, "abc"), &err);
    assert_ok(str_add_bytes(&b, "\0x", 2, &err), &err);
    assert_int_equal(b.len, 8);
    assert_memory_equal(b.s, "12-abc\0x", 9);
    assert_fails(str_add(&b, "123", &err), &err, ERR_TOO_LARGE);
    assert_fails(str_addf(&b, &err, "%s", "123"), &err, ERR_TOO_LARGE);
    assert_int_equal(b.len, 8);
    assert_ok(str_add(&b, "12", &err), &err);
    assert_fails(str_add(&b, "1", &err), &err, ERR_TOO_LARGE);
    assert_ok(str_add(&b, "", &err), &err);
    str_clear(&b);
    assert_null(b.s);
    assert_int_equal(b.max, 10);
    assert_ok(str_add(&b, "1234567890", &err), &err);
    str_clear(&b);
}

static void test_buffer_grows(void **state)
{
    (void)state;
    StrBuf b = STR_BUF(100000);
    Err err = ERR_INIT;
    for (int i = 0; i < 100000; i++)
        assert_ok(str_add_bytes(&b, &"0123456789"[i % 10], 1, &err), &err);
    assert_int_equal(b.len, 100000);
    assert_int_equal(strlen(b.s), 100000);
    for (size_t i = 0; i < b.len; i++)
        assert_int_equal(b.s[i], "0123456789"[i % 10]);
    assert_fails(str_add(&b, "x", &err), &err, ERR_TOO_LARGE);
    str_clear(&b);
}

static void test_starts_ends(void **state)
{
    (void)state;
    assert_true(str_starts("backup-x", "backup-") && str_starts("a", "") &&
                !str_starts("backup", "backup-"));
    assert_true(str_ends("a.qcow2", ".qcow2") && str_ends("a", "") && !str_ends("w2", ".qcow2"));
    assert_true(str_eq("a", "a") && !str_eq("a", "ab"));
}

static void test_utf8(void **state)
{
    (void)state;
    static const char *const good[] = {
        "",
        "a",
        "\x7f",
        "\xc2\x80",
        "\xdf\xbf",
        "\xe0\xa0\x80",
        "\xed\x9f\xbf",
        "\xee\x80\x80",
        "\xef\xbf\xbf",
        "\xf0\x90\x80\x80",
        "\xf4\x8f\xbf\xbf",
        "Größe",
        "日本",
        "a\xf0\x9f\x92\xbe-",
    };
    static const char *const bad[] = {
        "\x80",             // a continuation alone
        "a\xbf",            //
        "\xc0\x80",         // overlong NUL
        "\xc1\xbf",         // overlong
        "\xe0\x80\x80",     //
        "\xe0\x9f\xbf",     //
        "\xf0\x8f\xbf\xbf", //
        "\xed\xa0\x80",     // surrogates
        "\xed\xbf\xbf",     //
        "\xf4\x90\x80\x80", // above U+10FFFF
        "\xf5\x80\x80\x80", //
        "\xfe",
        "\xff", //
        "\xc2",
        "\xe2\x82",
        "\xf0\x9f\x92", // cut
        "\xc2-",
        "\xe2\x82-",
        "\xf0\x9f\x92-",
        "\xe2-\x82",
        "\xf8\x88\x80\x80\x80",
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(str_is_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (str_is_utf8(bad[i], strlen(bad[i])))
            fail_msg("bad[%zu] was accepted", i);
    char mixed[] = "a\xff\xc3\xbc\xe2\x82";
    str_make_utf8(mixed);
    assert_string_equal(mixed, "a?\xc3\xbc??");
    assert_false(str_is_utf8("a\0b", 3));
    assert_true(str_is_utf8("\xc3\xa9\xc3", 2));
    assert_false(str_is_utf8("\xc3\xa9", 1)); // never looks behind n
}

// Every code point in each encoded form against the definition: shortest form, no surrogates.
static void test_utf8_all_code_points(void **state)
{
    (void)state;
    for (uint32_t c = 1; c < 0x111000; c += c < 0x1000 ? 1 : 17) {
        char s[4];
        for (size_t len = 2; len <= 4; len++) {
            if (c >> (len == 2 ? 11 : len == 3 ? 16 : 21) != 0)
                continue;
            for (size_t i = len; i-- > 1;)
                s[i] = (char)(0x80 | ((c >> (6 * (len - 1 - i))) & 0x3f));
            s[0] = (char)((0xf00U >> len) | (c >> (6 * (len - 1))));
            bool shortest = c >= (len == 2 ? 0x80U : len == 3 ? 0x800U : 0x10000U);
            bool want = shortest && c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
            if (str_is_utf8(s, len) != want)
                fail_msg("U+%04X in %zu bytes", c, len);
        }
    }
}

static void test_controls(void **state)
{
    (void)state;
    static const char *const good[] = {"", "a b", "Größe", "\xc2\xa0", "\xc3\x80", "~"};
    static const char *const bad[] = {"\n",   "a\rb",     "\t",       "\x1b[2J", "\x7f",
                                      "\x01", "\xc2\x80", "\xc2\x9b", "\xc2\x9f"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(str_has_no_controls(good[i]));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(str_has_no_controls(bad[i]));
}

static void test_hex(void **state)
{
    (void)state;
    unsigned char all[256], again[256];
    char text[513];
    for (size_t i = 0; i < 256; i++)
        all[i] = (unsigned char)i;
    str_hex(all, 256, text);
    assert_int_equal(strlen(text), 512);
    assert_memory_equal(text, "000102030405060708090a", 22);
    assert_true(str_unhex(text, again, 256));
    assert_memory_equal(all, again, 256);
    assert_true(str_unhex("aBcD", again, 2));
    assert_int_equal(again[0], 0xab);
    assert_int_equal(again[1], 0xcd);
    assert_false(str_unhex("abc", again, 2));
    assert_false(str_unhex("abcde", again, 2));
    assert_false(str_unhex("abcg", again, 2));
    assert_false(str_unhex("ab d", again, 2));
    assert_true(str_unhex("", again, 0));
}

static void test_size(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {{0, "0 B"},
                 {1023, "1023 B"},
                 {1024, "1.0 KiB"},
                 {1610612736, "1.5 GiB"},
                 {UINT64_C(1) << 40, "1.0 TiB"},
                 {UINT64_MAX, "16.0 EiB"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char out[STR_SIZE_MAX];
        str_size(cases[i].bytes, out);
        assert_string_equal(out, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buffer),
        cmocka_unit_test(test_buffer_grows),
        cmocka_unit_test(test_starts_ends),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_utf8_all_code_points),
        cmocka_unit_test(test_controls),
        cmocka_unit_test(test_hex),
        cmocka_unit_test(test_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
