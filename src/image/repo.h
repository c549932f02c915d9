// A repository's folder: layout, and the steps that make and unmake restore points (safety rules 14,
// 16, 18). No database here: what this file does is right with the database gone.
//
//   <path>/repository.json
//   <path>/ctx-<slug>-<YYYYMMDDhhmmss>/<stem>.json              commit records
//   <path>/ctx-.../disk-<n>/<stem>-full.qcow2, <stem>-full.hashes, or -incr.qcow2, -incr.hashes
// While a backup runs, its files carry ".partial-<attempt>" (1 to 32 lower-case hex digits) at the end. image/layout.h
// makes and takes apart these names. Order of the steps, and why it is safe: docs/internals/repository.md.
#pragma once

#include "image/reader.h"
#include "image/record.h"

typedef struct Repo {
    char *path; // absolute, resolved
    RepositoryInfo info;
    HashGeometry geo;
} Repo;

// Create repository.json in an existing empty folder (or one that is made; its parent must exist). A folder that
// already is a repository: ERR_EXISTS. Not empty (but for lost+found): ERR_CONFLICT. Inside another repository, links
// resolved: ERR_CONFLICT.
bool repo_create(const char *path, uint32_t cluster_size, HashAlgorithm algorithm, Repo *ret, Err *err) must_check;
// Looks at repository.json; expect_uuid (may be NULL) must match: an unmounted share is an empty folder. Not there:
// ERR_NOT_FOUND, with expect_uuid ERR_UNAVAILABLE (it may come back); another one's: ERR_CONFLICT. Every function below
// that changes or lists anything looks again, with the same errors.
bool repo_open(const char *path, const char *expect_uuid, Repo *ret, Err *err) must_check;
void repo_clear(Repo *r);
// Is path (which need not exist) inside any repository? Walks up to the root. For restore's refusal. ERR_CONFLICT for a
// link that leads nowhere, ERR_INVALID for ".." behind what does not exist: nobody could tell where they end.
bool repo_is_inside(const char *path, bool *ret_inside, Err *err) must_check;

// Context folder for a VM, made (and synced) if `existing` is NULL; always a new one then, whatever others are called.
// ret_name is "ctx-...". ERR_NOT_FOUND when `existing` is not there.
bool repo_context(const Repo *r, const char *existing, const char *vm_name, const char *vm_id, int64_t now_us,
                  char **ret_name, Err *err) must_check;
// Lowest disk number from at_least on that nothing in the context uses.
bool repo_next_disk_no(const Repo *r, const char *context, unsigned at_least, unsigned *ret_no, Err *err) must_check;
bool repo_disk_folder(const Repo *r, const char *context, unsigned disk_no, char **ret_path, Err *err)
    must_check; // makes it

// Paths (new memory).
char *repo_path_record(const Repo *r, const char *context, const char *stem, Err *err) must_check;
char *repo_path_disk_file(const Repo *r, const char *context, unsigned disk_no, const char *file, Err *err) must_check;

// Commit (rule 14, steps 2 to 5): the record's files exist as "<name>.partial-<attempt>", sealed. Writes the record to
// "<stem>.json.partial-<attempt>", gives the files their final names (the partial ones stay for now), checks them as
// REPO_CHECK_HASHES does, syncs folders, link()s the record: now the point exists; syncs; removes the partial names.
// ERR_EXISTS: another attempt committed this point, or is at it. ERR_NOT_FOUND: this attempt's files are gone, somebody
// aborted it. After any error the point exists or not as repo_scan() says; call again, or repo_abort().
// Re-runnable after a crash between any two steps, with the same record (completed_us may differ).
bool repo_commit(const Repo *r, const Record *rec, const char *stem, const char *attempt, Err *err) must_check;

// Remove what an attempt left: every "*.partial-<attempt>" of the context, and, if there is no record of `stem`, final
// names of it that no other attempt is about to commit. However far that attempt's commit is, even on another machine:
// afterwards the point exists and is complete, or that commit fails. A missing context is fine.
bool repo_abort(const Repo *r, const char *context, const char *stem, const char *attempt, Err *err) must_check;

// The same for one that nobody knows any more, after a scan: what other points stand on without its record stays, all
// of it, with ERR_CONFLICT.
struct RepoScan;
bool repo_abort_orphan(const Repo *r, const struct RepoScan *scan, const char *context, const char *stem,
                       const char *attempt, Err *err) must_check;

// Delete a point: the record is renamed to "<stem>.json.deleted" first (synced), then everything else of `stem`, then
// that file. ERR_CONFLICT when a record of the context stands on the point. Of rec it uses backup_id, repository_uuid,
// context and the images' names; the record on disk may be damaged. What is deleted already is fine.
bool repo_delete(const Repo *r, const Record *rec, const char *stem, Err *err) must_check;

// All commit records, context by context. A damaged or foreign record is a problem, not listed; a listed one whose
// files are missing or of another length, or whose parent is not listed, is listed and a problem, and so are images
// that others stand on without their record.
typedef struct RepoScan {
    Record *records;
    char **stems; // same index
    size_t len;
    struct RepoProblem {
        char *path; // relative to the repository
        Err error;
        char *backup_id, *disk_key; // the listed point that is not whole, and its disk; else NULL
    } * problems;
    size_t problems_len;
    char **orphans; // relative paths: *.partial-*, *.deleted, final names without a record (readable or not)
    size_t orphans_len;
} RepoScan;
bool repo_scan(const Repo *r, RepoScan *ret, Err *err) must_check;
void repo_scan_clear(RepoScan *s);
// Is this attempt's work under way, or to be gone on from? Asked for each of its files, after that was seen: whoever
// makes files is known before.
typedef bool (*RepoKeeps)(void *ctx, const char *attempt);
// Finish what a crash interrupted: deletions are completed, orphans removed, but for those of attempts that are kept
// (also final names that their commit has given already). keeps NULL: none is. Records are read before anything is
// deleted. What a listed point needs, what a damaged record may stand for, and names that are not ours stay.
bool repo_recover(const Repo *r, RepoKeeps keeps, void *ctx, RepoScan *ret_after, Err *err) must_check;
// The same name by name, for a repository that is large: a chain lies in one folder, and nothing outside of it counts.
// Of the names in the repository's own folder; what is none of ours is nothing to do. *ret_after: of that folder.
bool repo_names(const Repo *r, char ***ret, size_t *ret_len, Err *err) must_check; // each and all to be freed
// forgets: called before the files of a deletion that was cut off go, with its record; NULL: that cannot be read.
typedef void (*RepoForgets)(void *ctx, const Record *deleted);
bool repo_recover_one(const Repo *r, const char *name, RepoKeeps keeps, RepoForgets forgets, void *ctx,
                      RepoScan *ret_after, Err *err) must_check;
bool repo_scan_one(const Repo *r, const char *name, RepoScan *ret, Err *err) must_check;

// The chain of a record's disk: layers[0] its own files, the last one the full. `find` gives the record of a
// backup ID (borrowed), NULL if there is none: ERR_DAMAGED then.
typedef const Record *(*RepoFind)(void *ctx, const char *backup_id);
typedef struct RepoChain {
    ReaderLayer *layers;    // strings owned by the chain
    const Record **records; // borrowed, one for each layer
    const RecordDisk **disks;
    size_t len;
} RepoChain;
bool repo_chain(const Repo *r, const Record *rec, const char *disk_key, RepoFind find, void *ctx, RepoChain *ret,
                Err *err) must_check;
void repo_chain_clear(RepoChain *c);

// How much of a layer's files is looked at.
typedef enum RepoCheckDepth {
    REPO_CHECK_HASHES, // record's digest of .hashes, lengths of both files (before an image becomes a parent, or is
                       // read)
    REPO_CHECK_FILES,  // and the image's metadata clusters against the record, canonical refcounts: any flipped byte
} RepoCheckDepth;      // that is not in a data cluster. Data clusters are checked by reading them (reader.h)
// ERR_DAMAGED names the file.
bool repo_check_layer(const Repo *r, const Record *rec, const RecordDisk *disk, RepoCheckDepth depth, Err *err)
    must_check;
