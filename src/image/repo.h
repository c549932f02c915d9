// A repository's folder: layout, and the steps that make and unmake restore points (safety rules 14,
// 16, 18). No database here: what this file does is right with the database gone.
//
//   <path>/repository.json
//   <path>/ctx-<slug>-<YYYYMMDDhhmmss>/<stem>.json              commit records
//   <path>/ctx-.../disk-<n>/<stem>-full.qcow2|-incr.qcow2|.hashes
// While a backup runs, its files carry ".partial-<attempt>" (a random hex word) at the end.
#pragma once

#include "image/reader.h"
#include "image/record.h"

typedef struct Repo {
    char *path; // absolute, resolved
    RepositoryInfo info;
    HashGeometry geo;
} Repo;

// Create repository.json in an existing empty folder (or one that is made; its parent must exist). A folder that
// already is a repository: ERR_EXISTS. Not empty: ERR_CONFLICT. Inside another repository: ERR_CONFLICT.
bool repo_create(const char *path, uint32_t cluster_size, HashAlgorithm algorithm, Repo *ret, Err *err) must_check;
// Looks at repository.json; expect_uuid (may be NULL) must match: an unmounted share is an empty folder.
bool repo_open(const char *path, const char *expect_uuid, Repo *ret, Err *err) must_check;
void repo_clear(Repo *r);
// Is path (which need not exist) inside any repository? Walks up to the root. For restore's refusal.
bool repo_is_inside(const char *path, bool *ret_inside, Err *err) must_check;

// Context folder for a VM, made (and synced) if `existing` is NULL. ret_name is "ctx-...".
bool repo_context(const Repo *r, const char *existing, const char *vm_name, const char *vm_id, int64_t now_us,
                  char **ret_name, Err *err) must_check;
// Lowest disk number that no folder of the context and nothing in `taken` uses.
bool repo_next_disk_no(const Repo *r, const char *context, unsigned at_least, unsigned *ret_no, Err *err) must_check;
bool repo_disk_folder(const Repo *r, const char *context, unsigned disk_no, char **ret_path, Err *err) must_check; // makes it

// Paths (new memory).
char *repo_path_record(const Repo *r, const char *context, const char *stem, Err *err) must_check;
char *repo_path_disk_file(const Repo *r, const char *context, unsigned disk_no, const char *file, Err *err) must_check;

// Commit (rule 14, steps 2 to 5): the record's files exist as "<name>.partial-<attempt>", sealed and fsynced. Renames
// them, syncs folders, writes the record to "<stem>.json.partial-<attempt>", fsyncs, link()s it, syncs.
// ERR_EXISTS: another hub committed this very point. Re-runnable after a crash between any two steps.
bool repo_commit(const Repo *r, const Record *rec, const char *stem, const char *attempt, Err *err) must_check;

// Remove what an attempt left: every "*.partial-<attempt>" of the context, and final names of `stem` without a record.
bool repo_abort(const Repo *r, const char *context, const char *stem, const char *attempt, Err *err) must_check;

// Delete a point: the record is renamed to "<stem>.json.deleted" first (synced), then images and hashes, then that file.
bool repo_delete(const Repo *r, const Record *rec, const char *stem, Err *err) must_check;

// All commit records, context by context; a damaged or foreign record is reported, not skipped silently.
typedef struct RepoScan {
    Record *records;
    char **stems; // same index
    size_t len;
    struct RepoProblem {
        char *path;   // relative to the repository
        Err error;
    } *problems;
    size_t problems_len;
    char **orphans; // relative paths: *.partial-*, *.deleted, final names without a record
    size_t orphans_len;
} RepoScan;
bool repo_scan(const Repo *r, RepoScan *ret, Err *err) must_check;
void repo_scan_clear(RepoScan *s);
// Finish what a crash interrupted: deletions are completed, orphans not named in keep_attempts removed. Records are
// read before anything is deleted.
bool repo_recover(const Repo *r, const char *const *keep_attempts, size_t keep_len, RepoScan *ret_after, Err *err) must_check;

// The chain of a record's disk: layers[0] its own files, the last one the full. `find` gives the record of a
// backup ID (borrowed), NULL if there is none: ERR_DAMAGED then.
typedef const Record *(*RepoFind)(void *ctx, const char *backup_id);
typedef struct RepoChain {
    ReaderLayer *layers; // strings owned by the chain
    const Record **records; // borrowed, one for each layer
    const RecordDisk **disks;
    size_t len;
} RepoChain;
bool repo_chain(const Repo *r, const Record *rec, const char *disk_key, RepoFind find, void *ctx, RepoChain *ret,
                Err *err) must_check;
void repo_chain_clear(RepoChain *c);

// How much of a layer's files is looked at.
typedef enum RepoCheckDepth {
    REPO_CHECK_HASHES, // record's digest of .hashes, lengths of both files (before an image becomes a parent, or is read)
    REPO_CHECK_FILES,  // and the image's metadata clusters against the record, canonical refcounts: any flipped byte
} RepoCheckDepth;       // that is not in a data cluster. Data clusters are checked by reading them (reader.h)
// ERR_DAMAGED names the file.
bool repo_check_layer(const Repo *r, const Record *rec, const RecordDisk *disk, RepoCheckDepth depth, Err *err) must_check;
