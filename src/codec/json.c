#include "codec/json.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"

#include <pthread.h>

// jansson's reader and writer go on when the buffer that collects a text cannot grow: what did not fit is left out,
// and both say that all is well; worse, the reader then writes behind the text. So it is we who watch for lack of
// memory, and a reader's buffer (32 bytes, 64, ...) then grows in a reserve. All else is refused, which it handles.
typedef struct Memory {
    bool lacking;
    char *reserve;
    size_t size, used;
} Memory;
static _Thread_local Memory memory;

static void *take_memory(size_t n)
{
    void *p = malloc(n);
    if (p)
        return p;
    memory.lacking = true;
    bool may_be_buffer = n >= 32 && (n & (n - 1)) == 0;
    if (!may_be_buffer || n > memory.size - memory.used)
        return NULL;
    p = memory.reserve + memory.used;
    memory.used += n;
    return p;
}

static void give_memory(void *p)
{
    uintptr_t at = (uintptr_t)p, reserve = (uintptr_t)memory.reserve;
    if (!memory.reserve || at < reserve || at - reserve >= memory.size)
        free(p);
}

// What was made before was made by malloc(), too, and is freed by free().
static void watch_memory(void)
{
    json_set_alloc_funcs(take_memory, give_memory);
}

static bool begin(size_t reserve, Err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, watch_memory);
    memory = (Memory){.size = reserve};
    return reserve == 0 || (memory.reserve = mem_calloc(1, reserve, err));
}

static bool end(Err *err)
{
    bool lacking = memory.lacking;
    free(memory.reserve);
    memory = (Memory){0};
    return !lacking || err_no_memory(err);
}

// Depth is looked at before jansson recurses. Strings are skipped; whatever else is wrong, jansson says.
static bool check_depth(const char *text, size_t n, Err *err)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH_MAX)
                return err_set(err, ERR_INVALID, "json: deeper than %d levels at byte %zu", JSON_DEPTH_MAX, i);
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

bool codec_json_parse(const char *text, size_t n, size_t max, json_t **ret, Err *err)
{
    if (n > max)
        return err_set(err, ERR_TOO_LARGE, "json: %zu bytes are more than %zu", n, max);
    if (memchr(text, '\0', n)) // which jansson takes for the end
        return err_set(err, ERR_INVALID, "json: a NUL byte");
    if (!check_depth(text, n, err))
        return false;
    json_error_t e;
    // per byte of text: a buffer that doubles, and whatever else could be taken for one
    if (!begin(16 * n + 4096, err))
        return false;
    json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (memory.lacking)
        json_decref(mem_take(value)); // while what it took from the reserve is known
    if (!end(err))
        return false;
    if (!value)
        return err_set(err, ERR_INVALID, "json: %s at line %d, column %d", e.text, e.line, e.column);
    *ret = value;
    return true;
}

bool codec_json_dump(const json_t *value, char **ret_text, Err *err)
{
    if (!begin(0, err))
        return false;
    char *text = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    if (!end(err)) {
        free(text);
        return false;
    }
    if (!text)
        return err_set(err, ERR_INTERNAL, "json: a value that cannot be written");
    *ret_text = text;
    return true;
}

void codec_json_cleanup(json_t **value)
{
    json_decref(*value);
}

bool codec_json_object(const json_t *value, const char *what, Err *err)
{
    return json_is_object(value) || err_set(err, ERR_INVALID, "%s is not an object", what);
}

bool codec_json_only(const json_t *object, const char *const *known, Err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        const char *const *k = known;
        while (*k && !str_eq(*k, key))
            k++;
        if (!*k)
            return err_set(err, ERR_INVALID, "unknown member \"%.64s\"", key);
    }
    return true;
}

// NULL for a missing or null member.
static const json_t *member(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

static bool missing(const char *key, Err *err)
{
    return err_set(err, ERR_INVALID, "missing %s", key);
}

bool codec_json_text_opt(const json_t *object, const char *key, size_t max, const char **ret, Err *err)
{
    const json_t *v = member(object, key);
    if (v && !json_is_string(v))
        return err_set(err, ERR_INVALID, "%s is not a string", key);
    if (v && json_string_length(v) > max)
        return err_set(err, ERR_INVALID, "%s is longer than %zu bytes", key, max);
    *ret = v ? json_string_value(v) : NULL;
    return true;
}

bool codec_json_text(const json_t *object, const char *key, size_t max, const char **ret, Err *err)
{
    const char *text = NULL;
    if (!codec_json_text_opt(object, key, max, &text, err))
        return false;
    if (!text)
        return missing(key, err);
    *ret = text;
    return true;
}

bool codec_json_u64_opt(const json_t *object, const char *key, uint64_t max, uint64_t *ret, bool *ret_present, Err *err)
{
    const json_t *v = member(object, key);
    if (v && !json_is_integer(v))
        return err_set(err, ERR_INVALID, "%s is not a whole number", key);
    if (v && (json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max))
        return err_set(err, ERR_INVALID, "%s is not between 0 and %llu", key, (unsigned long long)max);
    if (v)
        *ret = (uint64_t)json_integer_value(v);
    *ret_present = v != NULL;
    return true;
}

bool codec_json_u64(const json_t *object, const char *key, uint64_t max, uint64_t *ret, Err *err)
{
    bool present = false;
    if (!codec_json_u64_opt(object, key, max, ret, &present, err))
        return false;
    return present || missing(key, err);
}

bool codec_json_bool_opt(const json_t *object, const char *key, bool fallback, bool *ret, Err *err)
{
    const json_t *v = member(object, key);
    if (v && !json_is_boolean(v))
        return err_set(err, ERR_INVALID, "%s is not true or false", key);
    *ret = v ? json_is_true(v) : fallback;
    return true;
}

bool codec_json_array(const json_t *object, const char *key, size_t max_items, json_t **ret, Err *err)
{
    json_t *v = json_object_get(object, key);
    if (!v || json_is_null(v))
        return missing(key, err);
    if (!json_is_array(v))
        return err_set(err, ERR_INVALID, "%s is not a list", key);
    if (json_array_size(v) > max_items)
        return err_set(err, ERR_INVALID, "%s has more than %zu items", key, max_items);
    *ret = v;
    return true;
}

bool codec_json_hex64(const json_t *object, const char *key, uint64_t *ret, Err *err)
{
    const char *text = NULL;
    uint8_t bytes[8];
    if (!codec_json_text(object, key, 16, &text, err))
        return false;
    if (!str_unhex(text, bytes, sizeof bytes))
        return err_set(err, ERR_INVALID, "%s is not 16 hex digits", key);
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof bytes; i++)
        value = value << 8 | bytes[i];
    *ret = value;
    return true;
}

bool codec_json_set(json_t *object, const char *key, json_t *value, Err *err)
{
    return json_object_set_new(object, key, value) == 0 || err_no_memory(err);
}

bool codec_json_push(json_t *array, json_t *value, Err *err)
{
    return json_array_append_new(array, value) == 0 || err_no_memory(err);
}

bool codec_json_wrap(bool ok, const char *key, json_t *value, json_t **ret, Err *err)
{
    if (!ok) {
        json_decref(value);
        return false;
    }
    json_t *o = json_object();
    if (!codec_json_set(o, key, value, err)) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool codec_json_set_text(json_t *object, const char *key, const char *text, Err *err)
{
    if (!text)
        return codec_json_set(object, key, json_null(), err);
    if (!str_is_utf8(text, strlen(text)))
        return err_set(err, ERR_INVALID, "%s is not UTF-8", key);
    return codec_json_set(object, key, json_string_nocheck(text), err);
}

bool codec_json_set_u64(json_t *object, const char *key, uint64_t value, Err *err)
{
    if (value > INT64_MAX)
        return err_set(err, ERR_INTERNAL, "%s is too large for JSON", key);
    return codec_json_set(object, key, json_integer((json_int_t)value), err);
}

bool codec_json_set_bool(json_t *object, const char *key, bool value, Err *err)
{
    return codec_json_set(object, key, json_boolean(value), err);
}

bool codec_json_set_hex64(json_t *object, const char *key, uint64_t value, Err *err)
{
    uint8_t bytes[8];
    char text[17];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(value >> (56 - 8 * i));
    str_hex(bytes, sizeof bytes, text);
    return codec_json_set_text(object, key, text, err);
}

bool codec_json_set_time(json_t *object, const char *key, int64_t utc_us, Err *err)
{
    char text[CLOCK_TEXT];
    if (utc_us == 0)
        return codec_json_set(object, key, json_null(), err);
    clock_format(utc_us, text);
    return codec_json_set_text(object, key, text, err);
}
