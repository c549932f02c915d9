// JSON in and out, strictly, over jansson: input from outside is bounded and checked before anybody
// looks at it (no duplicate keys, no NUL, valid UTF-8, depth <= 32, nothing after the value).
#pragma once

#include "base/mem.h"

#include <jansson.h>

#define JSON_DEPTH_MAX 32

// ERR_INVALID with a position on anything that is not one JSON value; ERR_TOO_LARGE above max bytes.
bool codec_json_parse(const char *text, size_t n, size_t max, json_t **ret, Err *err) must_check;
// Compact, keys sorted: canonical. New memory.
bool codec_json_dump(const json_t *value, char **ret_text, Err *err) must_check;

void codec_json_cleanup(json_t **value);
#define cleanup_json cleanup(codec_json_cleanup)

// Members of an object. A missing or null member: *ret_present false (optional) or ERR_INVALID "missing X"
// (required). A wrong type or a value out of range: ERR_INVALID that names the member. Text is borrowed
// from the object and lives as long as it; its length is checked against max bytes.
bool codec_json_object(const json_t *value, const char *what, Err *err) must_check; // is it an object?
// Every key of the object is in the NULL-terminated list, else ERR_INVALID that names it.
bool codec_json_only(const json_t *object, const char *const *known, Err *err) must_check;
bool codec_json_text(const json_t *object, const char *key, size_t max, const char **ret, Err *err) must_check;
bool codec_json_text_opt(const json_t *object, const char *key, size_t max, const char **ret, Err *err)
    must_check; // NULL if absent
bool codec_json_u64(const json_t *object, const char *key, uint64_t max, uint64_t *ret, Err *err) must_check;
bool codec_json_u64_opt(const json_t *object, const char *key, uint64_t max, uint64_t *ret, bool *ret_present, Err *err)
    must_check;
bool codec_json_bool_opt(const json_t *object, const char *key, bool fallback, bool *ret, Err *err) must_check;
bool codec_json_array(const json_t *object, const char *key, size_t max_items, json_t **ret, Err *err)
    must_check; // borrowed
// 64-bit patterns (digests, seeds) travel as 16 hex digits.
bool codec_json_hex64(const json_t *object, const char *key, uint64_t *ret, Err *err) must_check;

// Building: each adds one member to object; false on lack of memory or text that is not UTF-8. NULL text adds null.
bool codec_json_set_text(json_t *object, const char *key, const char *text, Err *err) must_check;
bool codec_json_set_u64(json_t *object, const char *key, uint64_t value, Err *err) must_check; // above INT64_MAX: error
bool codec_json_set_bool(json_t *object, const char *key, bool value, Err *err) must_check;
bool codec_json_set_hex64(json_t *object, const char *key, uint64_t value, Err *err) must_check;
bool codec_json_set_time(json_t *object, const char *key, int64_t utc_us, Err *err) must_check; // 0 adds null
bool codec_json_set(json_t *object, const char *key, json_t *value, Err *err)
    must_check; // steals value, also on failure; NULL value: no memory
bool codec_json_push(json_t *array, json_t *value, Err *err) must_check; // the same
// {key: value}. Steals value, also on failure; NULL value: no memory. ok: false: value is not all that it should be; it
// is freed, and err is set already.
bool codec_json_wrap(bool ok, const char *key, json_t *value, json_t **ret, Err *err) must_check;
