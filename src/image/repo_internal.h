// What the files repo*.c share: a context folder as it is listed, and looks at single files.
#pragma once

#include "base/file.h"
#include "image/layout.h"
#include "image/repo.h"

// Is repository.json there, and still the one that r was opened with? Before every job, delete and
// scan (safety rule 18): an unmounted share is an empty folder. ERR_UNAVAILABLE, ERR_CONFLICT.
bool repo_recheck(const Repo *r, Err *err) must_check;

// Unlike file_exists(): what cannot be looked at is an error, never "not there".
bool repo_there(const char *path, bool *ret_there, Err *err) must_check;
// A real folder, no link to one. Not there: false without an error.
bool repo_real_folder(const char *path, bool *ret_is, Err *err) must_check;
// One file under two names?
bool repo_same_file(const char *a, const char *b, bool *ret_same, Err *err) must_check;

typedef struct RepoViewDisk {
    unsigned no;
    char *path;
    FileList files;
} RepoViewDisk;

// A context folder's names at one moment.
typedef struct RepoView {
    char *name; // "ctx-..."
    char *path;
    FileList files;
    RepoViewDisk *disks; // its disk-<n> folders
    size_t disks_len;
} RepoView;

// ERR_NOT_FOUND when there is no such folder.
bool repo_view_open(const Repo *r, const char *context, RepoView *ret, Err *err) must_check;
void repo_view_clear(RepoView *v);
bool repo_list_has(const FileList *list, const char *name);

// Reads and decodes <context>/<stem>.json (kind: LAYOUT_RECORD or LAYOUT_DELETED), and checks that it belongs
// where it lies: this repository, this context, file names of this stem. Else ERR_DAMAGED.
bool repo_read_record(const Repo *r, const char *context, const char *stem, LayoutKind kind, Record *ret, Err *err)
    must_check;

// Was a final name given by an attempt that is under way, i.e. is it one file with a partial name
// beside it?
bool repo_claimed(const RepoViewDisk *d, const char *name, bool *ret_claimed, Err *err) must_check;

// <stem>.json.deleted has its name: makes that durable, removes everything else of stem, then it.
bool repo_finish_delete(const RepoView *v, const char *stem, Err *err) must_check;

bool repo_has_record(const RepoView *v, const char *stem); // readable or not
// Do images of other points stand on the one of this stem, in this disk folder or in any? Then it is nobody's to
// remove, even with its own record lost.
bool repo_is_needed(const Record *records, size_t len, const char *context, unsigned disk_no, const char *stem);
bool repo_is_needed_any(const Record *records, size_t len, const RepoView *v, const char *stem);
// Does a record of `records` stand on the point backup_id? NULL if none does. Borrowed.
const Record *repo_child_of(const Record *records, size_t len, const char *backup_id);
