// What the files of a repository are called: the only place that makes or takes apart their names.
// Whatever does not match exactly is somebody else's file: never touched, never followed. Pure.
#pragma once

#include "base/mem.h"

#define LAYOUT_INFO "repository.json"
#define LAYOUT_INFO_PARTIAL LAYOUT_INFO ".partial-" // while it is created; 8 hex digits follow
#define LAYOUT_NAME 240                             // any name of ours with NUL
#define LAYOUT_STEM 160                             // "backup-<slug>-<seconds>"
#define LAYOUT_ATTEMPT 33                           // 1 to 32 lower-case hex digits
#define LAYOUT_DISK_MAX 99999u

bool layout_is_context(const char *name); // "ctx-<slug>-<YYYYMMDDhhmmss>"
bool layout_is_stem(const char *stem);
bool layout_is_attempt(const char *attempt);
// "disk-<n>": decimal, no leading zeros.
bool layout_disk_no(const char *name, unsigned *ret_no);

typedef enum LayoutKind {
    LAYOUT_RECORD,       // <stem>.json
    LAYOUT_DELETED,      // <stem>.json.deleted
    LAYOUT_FULL_IMAGE,   // <stem>-full.qcow2
    LAYOUT_FULL_HASHES,  // <stem>-full.hashes
    LAYOUT_INCR_IMAGE,   // <stem>-incr.qcow2
    LAYOUT_INCR_HASHES,  // <stem>-incr.hashes
    LAYOUT_FULL_JOURNAL, // <stem>-full.journal, and
    LAYOUT_INCR_JOURNAL, // <stem>-incr.journal: of an attempt only, never under a final name
    LAYOUT_KINDS
} LayoutKind;

typedef struct LayoutName {
    LayoutKind kind;
    char stem[LAYOUT_STEM];
    char attempt[LAYOUT_ATTEMPT]; // "" for a final name
} LayoutName;

// False for a name that is not ours.
bool layout_parse(const char *name, LayoutName *ret);
// attempt may be NULL: the final name. stem and attempt must be valid: ERR_INVALID.
bool layout_name(LayoutKind kind, const char *stem, const char *attempt, char out[LAYOUT_NAME], Err *err) must_check;
