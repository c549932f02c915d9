// What every kind of source does in the same way.
#pragma once

#include "source/source.h"

#define SOURCE_DISKS_MAX 256
#define SOURCE_TEXT_MAX 4096 // bytes of a path or a URI in a spec
#define SOURCE_KEY_MAX 255   // bytes of a disk's key

// 1..255 bytes of UTF-8 without control characters.
bool source_check_key(const char *key, Err *err) must_check;
// An absolute path that a unix socket may have is not longer than 107 bytes; a file's may be.
bool source_check_path(const char *what, const char *path, size_t max, Err *err) must_check;

bool source_is_excluded(const SourceRequest *req, const char *key);
bool source_leave_out(Source *s, const char *key, Err *err) must_check;
// The parent's entry for this key; NULL: the parent has no such disk.
const SourceParent *source_parent(const SourceRequest *req, const char *key);
// The interrupted run's entry for this key; NULL: there is none.
const SourceInterrupted *source_interrupted(const SourceRequest *req, const char *key);

bool source_cancelled(const SourceRequest *req);

// A change ID that nothing tracks: a fresh UUID, sequence 1.
bool source_mint(char **ret, Err *err) must_check;

// Frees what the public part of a source holds (disks, left_out, detail).
void source_clear(Source *s);
