// Names from outside, and what they are called on disk (safety rule 20).
#pragma once

#include "base/mem.h"

#define NAME_MAX_BYTES 255
#define NAME_SLUG 80 // a slug with NUL fits

// A VM's or repository's name: 1..255 bytes of UTF-8, no control characters, not only blanks.
bool name_check(const char *what, const char *name, Err *err) must_check;
// On disk: [A-Za-z0-9._-], 1 to 64 bytes in all, never starting with '.' or '-'; when anything had to be
// changed (each run of other bytes is one '_', too long is cut): it ends with "-" and the first 8 hex digits of
// the UUID. A slug's slug is itself. Two VMs can have the same slug: identity is the UUID's alone.
void name_slug(const char *name, const char *uuid, char out[NAME_SLUG]);

// Backup IDs: "backup-<vm name>-<unix seconds>". The VM's name as it is (the ID is data: it is
// percent-encoded in URLs, and never a path: files use the slug). At most 300 bytes.
#define NAME_BACKUP_ID 300
bool name_backup_id(const char *vm_name, int64_t unix_seconds, char out[NAME_BACKUP_ID], Err *err)
    must_check;
// A job ID from outside: 1..299 bytes of UTF-8 without control characters.
bool name_check_job_id(const char *id, Err *err) must_check;
// The stem of file names of a backup: "backup-<slug>-<seconds>" with the seconds of its ID. ERR_INVALID for an
// ID that is not of that form; ERR_INTERNAL for a slug that is none.
#define NAME_STEM 120
bool name_stem(const char *backup_id, const char *slug, char out[NAME_STEM], Err *err) must_check;
