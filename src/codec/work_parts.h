// Pieces that the decoders and encoders of work.h share. Private to codec/work*.c.
#pragma once

#include "codec/work.h"

#define WORK_KEY_MAX 255 // bytes of a disk key
#define WORK_NUMBER_MAX ((uint64_t)INT64_MAX)

// Text of min..max bytes, copied. work_text_opt: NULL when absent.
bool work_text(const json_t *object, const char *key, size_t min, size_t max, char **ret, Err *err) must_check;
bool work_text_opt(const json_t *object, const char *key, size_t max, char **ret, Err *err) must_check;
bool work_uuid(const json_t *object, const char *key, char **ret, Err *err) must_check;
// An array of texts, each 1..WORK_KEY_MAX bytes, at most WORK_DISKS_MAX.
bool work_keys(const json_t *object, const char *key, char ***ret, size_t *ret_len, Err *err) must_check;
bool work_set_keys(json_t *object, const char *key, char *const *keys, size_t len, Err *err) must_check;
void work_keys_clear(char ***keys, size_t *len);
// Parses text as one object with, if known is not NULL, no other members.
bool work_parse(const char *text, size_t n, const char *const *known, json_t **ret, Err *err) must_check;
// An array of objects; "disks[i]" context for errors is the caller's.
bool work_disks(const json_t *object, const char *key, json_t **ret, Err *err) must_check;
json_t *work_object(Err *err) must_check;
json_t *work_array(Err *err) must_check;
