// JSON from anywhere: the codec, and the members that it hands out.
#include "fuzz.h"

#include "codec/json.h"

#include <stdio.h>
#include <strings.h>

#define TEXT_MAX 64

static void check_members(const json_t *object)
{
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)object, key, member)
    {
        Err err = ERR_INIT;
        const char *text = NULL;
        uint64_t number = 0, hex = 0;
        bool present = false, flag = false;
        json_t *array = NULL;
        if (codec_json_text(object, key, TEXT_MAX, &text, &err))
            fuzz_check(strlen(text) <= TEXT_MAX && str_is_utf8(text, strlen(text)));
        err_clear(&err);
        if (codec_json_u64(object, key, 1000, &number, &err))
            fuzz_check(number <= 1000 && json_is_integer(member));
        err_clear(&err);
        if (codec_json_u64_opt(object, key, UINT64_MAX, &number, &present, &err))
            fuzz_check(present == !json_is_null(member));
        err_clear(&err);
        if (codec_json_bool_opt(object, key, true, &flag, &err))
            fuzz_check(json_is_null(member) || json_is_boolean(member));
        err_clear(&err);
        if (codec_json_array(object, key, 3, &array, &err))
            fuzz_check(json_is_array(array) && json_array_size(array) <= 3);
        err_clear(&err);
        if (codec_json_hex64(object, key, &hex, &err)) {
            char again[17];
            (void)snprintf(again, sizeof(again), "%016llx", (unsigned long long)hex);
            fuzz_check(strcasecmp(again, json_string_value(member)) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Err err = ERR_INIT;
    json_t *value = NULL, *again = NULL;
    char *text = NULL, *text_again = NULL;
    if (!codec_json_parse((const char *)data, n, 4096, &value, &err)) {
        fuzz_check(err.code == (n > 4096 ? ERR_TOO_LARGE : ERR_INVALID));
        return 0;
    }
    fuzz_check(n <= 4096);
    fuzz_check(codec_json_dump(value, &text, &err));
    // Canonical JSON can be longer than what came, not much.
    fuzz_check(codec_json_parse(text, strlen(text), 8 * n + 64, &again, &err));
    fuzz_check(json_equal(value, again));
    fuzz_check(codec_json_dump(again, &text_again, &err));
    fuzz_check(str_eq(text, text_again));
    if (json_is_object(value))
        check_members(value);
    free(text);
    free(text_again);
    json_decref(value);
    json_decref(again);
    return 0;
}
