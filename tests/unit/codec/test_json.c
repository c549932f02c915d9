#include "codec/json.h"
#include "unit.h"

static bool parse(const char *text, size_t max, json_t **ret, Err *err)
{
    return codec_json_parse(text, strlen(text), max, ret, err);
}

static void test_strict(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "{",
                                      "{\"a\":1,\"a\":2}",
                                      "1 2",
                                      "{} x",
                                      "\"\\u0000\"",
                                      "\"\xff\"",
                                      "{\"a\":99999999999999999999}",
                                      "nul",
                                      "[1,]",
                                      "{'a':1}",
                                      "\"\\ud800\"",
                                      "\"\\",
                                      "{\"a\\u0000\":1}"};
    Err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        json_t *v = NULL;
        assert_fails(parse(bad[i], 1000, &v, &err), &err, ERR_INVALID);
        assert_null(v);
    }
    json_t *v = NULL;
    assert_fails(parse("{\"a\":1}", 6, &v, &err), &err, ERR_TOO_LARGE);
    assert_fails(codec_json_parse("1\0", 2, 10, &v, &err), &err, ERR_INVALID);
}

static void test_depth(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char text[200];
    json_t *v = NULL;
    for (int depth = JSON_DEPTH_MAX; depth <= JSON_DEPTH_MAX + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = '\0';
        if (depth == JSON_DEPTH_MAX)
            assert_ok(parse(text, sizeof text, &v, &err), &err);
        else
            assert_fails(parse(text, sizeof text, &v, &err), &err, ERR_INVALID);
    }
    json_decref(v);
    // Brackets within a string do not count.
    memset(text, '[', sizeof text);
    text[0] = '"';
    text[1] = '\\';
    text[2] = '"';
    memcpy(text + 198, "\"", 2);
    assert_ok(parse(text, sizeof text, &v, &err), &err);
    json_decref(v);
}

static void test_members(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_json json_t *o = NULL;
    assert_ok(parse("{\"t\":\"text\",\"n\":9007199254740993,\"neg\":-1,\"b\":true,\"null\":null,\"r\":1.5,"
                    "\"h\":\"00ff00000000000A\",\"l\":[1,2]}",
                    1000, &o, &err),
              &err);
    const char *text = NULL;
    uint64_t n = 7;
    bool present = true, b = false;
    json_t *list = NULL;
    assert_ok(codec_json_text(o, "t", 4, &text, &err), &err);
    assert_string_equal(text, "text");
    assert_fails(codec_json_text(o, "t", 3, &text, &err), &err, ERR_INVALID);
    assert_fails(codec_json_text(o, "n", 3, &text, &err), &err, ERR_INVALID);
    assert_fails(codec_json_text(o, "null", 3, &text, &err), &err, ERR_INVALID);
    assert_fails(codec_json_text(o, "none", 3, &text, &err), &err, ERR_INVALID);
    assert_ok(codec_json_text_opt(o, "null", 3, &text, &err), &err);
    assert_null(text);
    assert_ok(codec_json_u64(o, "n", UINT64_MAX, &n, &err), &err);
    assert_int_equal(n, 9007199254740993);
    assert_fails(codec_json_u64(o, "n", 9007199254740992, &n, &err), &err, ERR_INVALID);
    assert_fails(codec_json_u64(o, "neg", UINT64_MAX, &n, &err), &err, ERR_INVALID);
    assert_fails(codec_json_u64(o, "r", UINT64_MAX, &n, &err), &err, ERR_INVALID);
    assert_fails(codec_json_u64(o, "b", UINT64_MAX, &n, &err), &err, ERR_INVALID);
    assert_ok(codec_json_u64_opt(o, "null", 1, &n, &present, &err), &err);
    assert_false(present);
    assert_ok(codec_json_bool_opt(o, "b", false, &b, &err), &err);
    assert_true(b);
    assert_ok(codec_json_bool_opt(o, "none", true, &b, &err), &err);
    assert_true(b);
    assert_fails(codec_json_bool_opt(o, "t", true, &b, &err), &err, ERR_INVALID);
    assert_ok(codec_json_hex64(o, "h", &n, &err), &err);
    assert_int_equal(n, UINT64_C(0x00ff00000000000a));
    assert_fails(codec_json_hex64(o, "t", &n, &err), &err, ERR_INVALID);
    assert_ok(codec_json_array(o, "l", 2, &list, &err), &err);
    assert_fails(codec_json_array(o, "l", 1, &list, &err), &err, ERR_INVALID);
    assert_fails(codec_json_array(o, "t", 1, &list, &err), &err, ERR_INVALID);
    assert_fails(codec_json_array(o, "none", 1, &list, &err), &err, ERR_INVALID);
    assert_fails(codec_json_array(o, "null", 1, &list, &err), &err, ERR_INVALID);
    assert_ok(codec_json_object(o, "it", &err), &err);
    assert_fails(codec_json_object(list, "it", &err), &err, ERR_INVALID);
    assert_fails(codec_json_only(o, (const char *const[]){"t", "n", NULL}, &err), &err, ERR_INVALID);
}

static void test_build(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_json json_t *o = json_object();
    json_t *list = json_array();
    assert_ok(codec_json_set_text(o, "b", "\xc3\xa4", &err), &err);
    assert_ok(codec_json_set_text(o, "a", NULL, &err), &err);
    assert_ok(codec_json_set_u64(o, "n", INT64_MAX, &err), &err);
    assert_ok(codec_json_set_bool(o, "z", false, &err), &err);
    assert_ok(codec_json_set_hex64(o, "h", UINT64_C(0x1234), &err), &err);
    assert_ok(codec_json_set_time(o, "t", 0, &err), &err);
    assert_ok(codec_json_set_time(o, "u", 1000001, &err), &err);
    assert_ok(codec_json_set(o, "l", list, &err), &err);
    assert_ok(codec_json_push(list, json_integer(1), &err), &err);
    char *text = NULL;
    assert_ok(codec_json_dump(o, &text, &err), &err);
    assert_string_equal(text,
                        "{\"a\":null,\"b\":\"\xc3\xa4\",\"h\":\"0000000000001234\",\"l\":[1],"
                        "\"n\":9223372036854775807,\"t\":null,\"u\":\"1970-01-01T00:00:01.000001Z\",\"z\":false}");
    free(text);
    assert_fails(codec_json_set_text(o, "x", "\xff", &err), &err, ERR_INVALID);
    assert_fails(codec_json_set_u64(o, "x", UINT64_MAX, &err), &err, ERR_INTERNAL);
    assert_fails(codec_json_set(o, "x", NULL, &err), &err, ERR_NO_MEMORY);
    cleanup_json json_t *wrapped = NULL;
    err = (Err)ERR_INIT;
    assert_ok(codec_json_wrap(true, "l", json_pack("[i]", 1), &wrapped, &err), &err);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(wrapped, "l"), 0)), 1);
    assert_fails(codec_json_wrap(true, "l", NULL, &wrapped, &err), &err, ERR_NO_MEMORY);
    err = (Err){.code = ERR_BUSY};
    assert_false(codec_json_wrap(false, "l", json_array(), &wrapped, &err));
    assert_int_equal(err.code, ERR_BUSY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_build),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
