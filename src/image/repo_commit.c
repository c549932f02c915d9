// Making and unmaking restore points. The order of the steps is the whole point: docs/internals/repository.md
// numbers them, and says why a crash or another hub between any two of them does no harm.

#include "base/str.h"
#include "image/repo_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MODE 0640

// A point on its way: paths, and what is to be in the record.
typedef struct Commit {
    const Repo *repo;
    const Record *rec;
    const char *attempt;
    char *context; // path
    char *record;  // path of the final name
    char *partial; // path of the temporary one
    char *text;
} Commit;

static void commit_clear(Commit *c)
{
    free(c->context);
    free(c->record);
    free(c->partial);
    free(c->text);
}

// The record must be one of this repository, with file names of this stem.
static bool check_names(const Repo *r, const Record *rec, const char *stem, Err *err)
{
    if (!str_eq(rec->repository_uuid, r->info.uuid))
        return err_set(err, ERR_INVALID, "the record is one of repository %s, this is %s", rec->repository_uuid,
                       r->info.uuid);
    for (size_t i = 0; i < rec->disks_len; i++) {
        LayoutName n;
        if (!layout_parse(rec->disks[i].image, &n) || !str_eq(n.stem, stem))
            return err_set(err, ERR_INVALID, "the image %s does not belong to %s", rec->disks[i].image, stem);
    }
    return true;
}

static bool commit_init(const Repo *r, const Record *rec, const char *stem, const char *attempt, Commit *c, Err *err)
{
    char name[LAYOUT_NAME];
    *c = (Commit){.repo = r, .rec = rec, .attempt = attempt};
    return record_encode(rec, &r->info.hash, &c->text, err) && check_names(r, rec, stem, err) &&
        layout_name(LAYOUT_RECORD, stem, attempt, name, err) && repo_recheck(r, err) &&
        (c->record = repo_path_record(r, rec->context, stem, err)) != NULL &&
        (c->context = file_join(r->path, rec->context, err)) != NULL &&
        (c->partial = file_join(c->context, name, err)) != NULL;
}

static char *partial_of(const char *path, const char *attempt, Err *err)
{
    return mem_printf(err, "%s.partial-%s", path, attempt);
}

// The point exists: what this attempt still has beside it may go. What stays is an orphan for
// repo_recover(), and no reason to call the commit failed; so the results are not looked at.
static void tidy(const Commit *c)
{
    Err ignored = ERR_INIT;
    for (size_t i = 0; i < c->rec->disks_len; i++) {
        const RecordDisk *d = &c->rec->disks[i];
        const char *const files[] = {d->image, d->hashes};
        for (size_t f = 0; f < ARRAY_LEN(files); f++) {
            cleanup_free char *path = repo_path_disk_file(c->repo, c->rec->context, d->disk_no, files[f], &ignored);
            cleanup_free char *partial = path ? partial_of(path, c->attempt, &ignored) : NULL;
            if (partial)
                (void)!file_unlink(partial, &ignored);
        }
    }
    (void)!file_unlink(c->partial, &ignored);
}

// Is the record that has the final name ours? Then an earlier run of this very commit came that far. Only the time
// of completion may differ: a second run has another one.
static bool is_ours(const Commit *c, bool *ret_ours, Err *err)
{
    cleanup_free char *text = NULL, *again = NULL;
    size_t n;
    Record there;
    Err why = ERR_INIT;
    *ret_ours = false;
    if (!file_read(c->record, RECORD_MAX_BYTES, &text, &n, err))
        return false;
    if (!record_decode(text, n, &c->repo->info.hash, &there, &why)) // damaged, or newer: not what we would write
        return why.code == ERR_DAMAGED || why.code == ERR_UNSUPPORTED || err_set(err, why.code, "%s", why.details);
    there.completed_us = c->rec->completed_us;
    bool ok = record_encode(&there, &c->repo->info.hash, &again, err);
    record_clear(&there);
    if (ok)
        *ret_ours = str_eq(again, c->text);
    return ok;
}

// Safety rule 14, step 2: at its full length, and durable.
static bool sync_file(const char *path, const uint64_t *bytes, Err *err)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        return err_errno(err, errno, "cannot open %s; was the attempt removed?", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_DAMAGED, "%s is not a regular file", path);
    if (bytes && (uint64_t)st.st_size != *bytes)
        return err_set(err, ERR_DAMAGED, "%s has %llu bytes, its record says %llu", path,
                       (unsigned long long)st.st_size, (unsigned long long)*bytes);
    if (fsync(fd) != 0)
        return err_errno(err, errno, "cannot make %s durable", path);
    return true;
}

// Gives a sealed file its final name. The partial name stays until the point exists: that it is still there
// shows that nobody has removed the attempt (the fence of docs/internals/repository.md).
static bool link_final(const char *partial, const char *final, Err *err)
{
    Err cause = ERR_INIT;
    if (file_link(partial, final, &cause))
        return true;
    if (cause.code == ERR_EXISTS) {
        bool same;
        if (!repo_same_file(partial, final, &same, err))
            return false;
        if (same) // an earlier run of this commit
            return true;
        return err_set(err, ERR_EXISTS, "%s is there already, from another attempt; abort that one first", final);
    }
    return err_set(err, cause.code, "%s", cause.details);
}

static bool link_disk(const Commit *c, const RecordDisk *d, Err *err)
{
    cleanup_free char *image = repo_path_disk_file(c->repo, c->rec->context, d->disk_no, d->image, err);
    cleanup_free char *hashes = repo_path_disk_file(c->repo, c->rec->context, d->disk_no, d->hashes, err);
    if (!image || !hashes)
        return false;
    cleanup_free char *image_partial = partial_of(image, c->attempt, err);
    cleanup_free char *hashes_partial = partial_of(hashes, c->attempt, err);
    if (!image_partial || !hashes_partial)
        return false;
    return sync_file(image_partial, &d->image_bytes, err) && sync_file(hashes_partial, NULL, err) &&
        link_final(image_partial, image, err) && link_final(hashes_partial, hashes, err) &&
        repo_check_layer(c->repo, c->rec, d, REPO_CHECK_HASHES, err);
}

static bool sync_folders(const Commit *c, Err *err)
{
    for (size_t i = 0; i < c->rec->disks_len; i++) {
        cleanup_free char *folder = mem_printf(err, "%s/disk-%u", c->context, c->rec->disks[i].disk_no);
        if (!folder || !file_fsync_dir(folder, err))
            return false;
    }
    return file_fsync_dir(c->context, err) && file_fsync_dir(c->repo->path, err);
}

static bool link_record(const Commit *c, Err *err)
{
    Err cause = ERR_INIT;
    if (!file_link(c->partial, c->record, &cause)) {
        bool same = false;
        // A network filesystem may say "exists" of what its own first try made.
        if (cause.code == ERR_EXISTS && !repo_same_file(c->partial, c->record, &same, err))
            return false;
        if (!same)
            return err_set(err, cause.code, "%s", cause.details);
    }
    return file_fsync_dir(c->context, err);
}

static bool commit_run(const Commit *c, Err *err)
{
    bool there, ours;
    if (!repo_there(c->record, &there, err))
        return false;
    if (there) {
        if (!is_ours(c, &ours, err))
            return false;
        if (!ours)
            return err_set(err, ERR_EXISTS, "%s is there already: another hub has committed this point", c->record);
        if (!file_fsync_dir(c->context, err)) // the run before may have ended between link and this
            return false;
        tidy(c);
        return true;
    }
    // The record goes first under its temporary name: who removes this attempt removes the images' partial
    // names, then this one. So either a link below fails, or the other sees the point.
    if (!file_unlink(c->partial, err) || !file_create_durable(c->partial, c->text, strlen(c->text), FILE_MODE, err))
        return false;
    for (size_t i = 0; i < c->rec->disks_len; i++)
        if (!link_disk(c, &c->rec->disks[i], err))
            return false;
    if (!sync_folders(c, err) || !link_record(c, err))
        return false;
    tidy(c);
    return true;
}

bool repo_commit(const Repo *r, const Record *rec, const char *stem, const char *attempt, Err *err)
{
    Commit c;
    bool ok = commit_init(r, rec, stem, attempt, &c, err) && commit_run(&c, err);
    commit_clear(&c);
    return ok || err_context(err, "commit of %s", stem);
}

// ---- abort

static bool is_data(const LayoutName *n)
{
    return n->kind != LAYOUT_RECORD && n->kind != LAYOUT_DELETED;
}

static bool remove_in(const char *folder, const char *name, Err *err)
{
    cleanup_free char *path = file_join(folder, name, err);
    return path && file_unlink(path, err);
}

static bool remove_partials(const RepoView *v, const char *attempt, Err *err)
{
    for (size_t i = 0; i < v->disks_len; i++) {
        const RepoViewDisk *d = &v->disks[i];
        for (size_t f = 0; f < d->files.len; f++) {
            LayoutName n;
            if (layout_parse(d->files.names[f], &n) && is_data(&n) && str_eq(n.attempt, attempt) &&
                !remove_in(d->path, d->files.names[f], err))
                return false;
        }
    }
    return true;
}

// Final names of stem, except what an attempt that is under way has given. The order of the two looks matters: a
// commit removes its partial names only when the record is there.
static bool remove_finals(const RepoView *v, const char *stem, const char *record, Err *err)
{
    for (size_t i = 0; i < v->disks_len; i++) {
        const RepoViewDisk *d = &v->disks[i];
        for (size_t f = 0; f < d->files.len; f++) {
            LayoutName n;
            bool claimed, committed;
            const char *name = d->files.names[f];
            if (!layout_parse(name, &n) || !is_data(&n) || n.attempt[0] || !str_eq(n.stem, stem))
                continue;
            if (!repo_claimed(d, name, &claimed, err) || !repo_there(record, &committed, err) ||
                (!claimed && !committed && !remove_in(d->path, name, err)))
                return false;
        }
        if (!file_fsync_dir(d->path, err))
            return false;
    }
    return true;
}

static bool abort_in(const Repo *r, const RepoView *v, const char *stem, const char *attempt, Err *err)
{
    char name[LAYOUT_NAME];
    cleanup_free char *record = repo_path_record(r, v->name, stem, err);
    // The fence's other side: images first, then the record's temporary name, and only then the look
    // whether the point exists, before each final name goes.
    if (!record || !layout_name(LAYOUT_RECORD, stem, attempt, name, err) || !remove_partials(v, attempt, err) ||
        !remove_in(v->path, name, err) || !file_fsync_dir(v->path, err))
        return false;
    // Listed anew: a commit that went on meanwhile may have given final names.
    RepoView now;
    if (!repo_view_open(r, v->name, &now, err))
        return false;
    bool ok = remove_finals(&now, stem, record, err);
    repo_view_clear(&now);
    return ok;
}

bool repo_abort(const Repo *r, const char *context, const char *stem, const char *attempt, Err *err)
{
    RepoView v;
    Err cause = ERR_INIT;
    char name[LAYOUT_NAME];
    if (!layout_name(LAYOUT_RECORD, stem, attempt, name, err) || !repo_recheck(r, err))
        return false;
    if (!repo_view_open(r, context, &v, &cause))
        return cause.code == ERR_NOT_FOUND || err_set(err, cause.code, "%s", cause.details);
    bool ok = abort_in(r, &v, stem, attempt, err);
    repo_view_clear(&v);
    return ok || err_context(err, "removing what the attempt %s of %s left", attempt, stem);
}

// ---- delete

// What a record that was not read means for a deletion: a damaged one says nothing that could be relied on, and neither
// does one that went meanwhile; the point's own may be whatever it likes. Any other could be that of a child.
static bool passed_over(const Err *why, bool own)
{
    return why->code == ERR_DAMAGED || why->code == ERR_NOT_FOUND || (own && why->code == ERR_IO);
}

// Is what has the record's name the point that is to go, and does nothing stand on it?
static bool check_delete(const Repo *r, const Record *rec, const RepoView *v, const char *stem, Err *err)
{
    bool ok = true;
    for (size_t i = 0; i < v->files.len && ok; i++) {
        LayoutName n;
        Record other;
        Err why = ERR_INIT;
        if (!layout_parse(v->files.names[i], &n) || n.kind != LAYOUT_RECORD || n.attempt[0])
            continue;
        if (!repo_read_record(r, v->name, n.stem, LAYOUT_RECORD, &other, &why)) {
            ok = passed_over(&why, str_eq(n.stem, stem)) ||
                err_set(err, why.code, "what stands on it cannot be told: %s", why.details);
            continue;
        }
        if (str_eq(n.stem, stem) && !str_eq(other.backup_id, rec->backup_id))
            ok = err_set(err, ERR_CONFLICT, "%s is the record of %s", v->files.names[i], other.backup_id);
        else if (repo_child_of(&other, 1, rec->backup_id))
            ok = err_set(err, ERR_CONFLICT, "%s stands on it; delete that one first", other.backup_id);
        record_clear(&other);
    }
    return ok;
}

static bool remove_stem(const char *folder, const FileList *files, const char *stem, Err *err)
{
    for (size_t f = 0; f < files->len; f++) {
        LayoutName n;
        if (layout_parse(files->names[f], &n) && str_eq(n.stem, stem) && (is_data(&n) || n.attempt[0]) &&
            !remove_in(folder, files->names[f], err))
            return false;
    }
    return file_fsync_dir(folder, err);
}

bool repo_finish_delete(const RepoView *v, const char *stem, Err *err)
{
    char name[LAYOUT_NAME];
    if (!file_fsync_dir(v->path, err)) // whoever gave the name may have been killed before this
        return false;
    for (size_t i = 0; i < v->disks_len; i++)
        if (!remove_stem(v->disks[i].path, &v->disks[i].files, stem, err))
            return false;
    return remove_stem(v->path, &v->files, stem, err) && layout_name(LAYOUT_DELETED, stem, NULL, name, err) &&
        remove_in(v->path, name, err) && file_fsync_dir(v->path, err);
}

static bool delete_in(const Repo *r, const Record *rec, const RepoView *v, const char *stem, Err *err)
{
    char name[LAYOUT_NAME];
    bool there, begun;
    cleanup_free char *record = repo_path_record(r, v->name, stem, err), *deleted = NULL;
    if (!record || !layout_name(LAYOUT_DELETED, stem, NULL, name, err) || !(deleted = file_join(v->path, name, err)) ||
        !repo_there(record, &there, err) || !repo_there(deleted, &begun, err))
        return false;
    if (!there && !begun) // an earlier run came to the end
        return true;
    if (!check_delete(r, rec, v, stem, err))
        return false;
    if (there && !file_rename(record, deleted, err))
        return false;
    return repo_finish_delete(v, stem, err);
}

bool repo_delete(const Repo *r, const Record *rec, const char *stem, Err *err)
{
    RepoView v;
    Err cause = ERR_INIT;
    if (!check_names(r, rec, stem, err) || !repo_recheck(r, err))
        return err_context(err, "deleting %s", stem);
    if (!repo_view_open(r, rec->context, &v, &cause)) // no folder: nothing is left of it
        return cause.code == ERR_NOT_FOUND || err_set(err, cause.code, "deleting %s: %s", stem, cause.details);
    bool ok = delete_in(r, rec, &v, stem, err);
    repo_view_clear(&v);
    return ok || err_context(err, "deleting %s", stem);
}
