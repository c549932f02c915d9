#include "unit.h"

#include "base/str.h"

#include <errno.h>

static void test_first_error_wins(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    assert_false(err_set(&err, ERR_BUSY, "first %d", 1));
    assert_false(err_set(&err, ERR_IO, "second"));
    assert_false(err_errno(&err, ENOSPC, "third"));
    assert_int_equal(err.code, ERR_BUSY);
    assert_string_equal(err.details, "first 1");
    err_clear(&err);
    assert_int_equal(err.code, ERR_NONE);
    assert_false(err_set(&err, ERR_IO, "second"));
    assert_int_equal(err.code, ERR_IO);
}

static void test_errno(void **state)
{
    (void)state;
    static const struct {
        int errnum;
        ErrCode code;
    } cases[] = {{ENOSPC, ERR_NO_SPACE},  {EDQUOT, ERR_NO_SPACE}, {ENOMEM, ERR_NO_MEMORY},
                 {ENOENT, ERR_NOT_FOUND}, {EEXIST, ERR_EXISTS},   {EIO, ERR_IO},
                 {EACCES, ERR_IO}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        assert_false(err_errno(&err, cases[i].errnum, "cannot open %s", "x"));
        assert_int_equal(err.code, cases[i].code);
        assert_true(str_starts(err.details, "cannot open x: "));
    }
}

static void test_context(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    assert_false(err_context(&err, "nothing"));
    assert_int_equal(err.code, ERR_NONE);
    assert_string_equal(err.details, "");
    (void)err_set(&err, ERR_IO, "cause");
    (void)err_context(&err, "disk %d", 2);
    assert_string_equal(err.details, "disk 2: cause");
}

// A cut within a character made the whole answer invalid JSON.
static void test_cut_is_still_utf8(void **state)
{
    (void)state;
    char text[2 * ERR_DETAILS_MAX];
    for (size_t shift = 0; shift < 4; shift++) {
        memset(text, 'x', shift);
        static const char letter[] = "\xf0\x9f\x92\xbe";
        for (size_t i = 0; shift + 4 * i + 4 < sizeof(text); i++) {
            memcpy(text + shift + 4 * i, letter, 4);
            text[shift + 4 * i + 4] = '\0';
        }
        Err err = ERR_INIT;
        (void)err_set(&err, ERR_IO, "%s", text);
        assert_in_range(strlen(err.details), ERR_DETAILS_MAX - 4, ERR_DETAILS_MAX - 1);
        assert_true(str_is_utf8(err.details, strlen(err.details)));
        (void)err_context(&err, "%s", "a");
        assert_true(str_starts(err.details, "a: "));
        assert_true(str_is_utf8(err.details, strlen(err.details)));
        Err other = ERR_INIT;
        (void)err_errno(&other, ENOSPC, "%s", text);
        assert_true(str_is_utf8(other.details, strlen(other.details)));
        assert_true(str_ends(other.details, "No space left on device"));
        (void)err_context(&other, "%s", text); // nothing fits: the cause stays
        assert_true(str_ends(other.details, "No space left on device"));
    }
}

static void test_table(void **state)
{
    (void)state;
    for (ErrCode c = ERR_NONE; c < ERR_CODES; c++) {
        assert_non_null(err_name(c));
        assert_true(*err_name(c) != '\0');
        assert_in_range(err_http(c), 200, 599);
        assert_in_range(err_exit(c), 0, 3);
        assert_true((err_exit(c) == 0) == (c == ERR_NONE));
        for (ErrCode d = ERR_NONE; d < c; d++)
            assert_string_not_equal(err_name(c), err_name(d));
        Err err = {.code = c};
        assert_true(strlen(err_short(&err)) > 0 && strlen(err_short(&err)) < ERR_SHORT_MAX);
    }
    Err err = ERR_INIT;
    (void)err_set(&err, ERR_NOT_FOUND, "no such job");
    assert_string_equal(err_short(&err), "not found");
    (void)err_title(&err, "Job not found");
    assert_string_equal(err_short(&err), "Job not found");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_error_wins),
        cmocka_unit_test(test_errno),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_cut_is_still_utf8),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
