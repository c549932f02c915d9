// Finishing what a crash interrupted. Whatever is removed here has a name of ours, and no record that is listed.

#include "base/str.h"
#include "image/repo_internal.h"

typedef struct Recover {
    const Repo *repo;
    const RepoScan *scan; // read before anything is removed
    RepoKeeps keeps;
    RepoForgets forgets;
    void *ctx;
    bool changed; // something was removed
} Recover;

static bool remove_in(const char *folder, const char *name, Err *err)
{
    cleanup_free char *path = file_join(folder, name, err);
    return path && file_unlink(path, err);
}

// One kind of name in one folder: partial ones of attempts that are not kept; and of those that are committed, which
// were cut off before they had tidied up.
static bool remove_partials(Recover *c, const RepoView *v, const char *folder, const FileList *files, Err *err)
{
    bool any = false;
    for (size_t i = 0; i < files->len; i++) {
        LayoutName n;
        if (!layout_parse(files->names[i], &n) || !n.attempt[0] ||
            (!repo_has_record(v, n.stem) && c->keeps && c->keeps(c->ctx, n.attempt)))
            continue;
        any = c->changed = true;
        if (!remove_in(folder, files->names[i], err))
            return false;
    }
    return !any || file_fsync_dir(folder, err);
}

static void forget(const Recover *c, const RepoView *v, const char *stem)
{
    Record rec = {0};
    Err unreadable = ERR_INIT;
    bool is = repo_read_record(c->repo, v->name, stem, LAYOUT_DELETED, &rec, &unreadable);
    c->forgets(c->ctx, is ? &rec : NULL);
    record_clear(&rec);
}

static bool finish_deletes(Recover *c, const RepoView *v, Err *err)
{
    for (size_t i = 0; i < v->files.len; i++) {
        LayoutName n;
        if (!layout_parse(v->files.names[i], &n) || n.kind != LAYOUT_DELETED || repo_has_record(v, n.stem) ||
            repo_is_needed_any(c->scan->records, c->scan->len, v, n.stem))
            continue;
        c->changed = true;
        if (c->forgets)
            forget(c, v, n.stem);
        if (!repo_finish_delete(v, n.stem, err))
            return false;
    }
    return true;
}

// Final names without a record. Each is looked at once more: a commit may have gone on since the folder was listed.
static bool remove_finals(Recover *c, const RepoView *v, const RepoViewDisk *d, Err *err)
{
    bool any = false;
    for (size_t i = 0; i < d->files.len; i++) {
        LayoutName n;
        bool claimed, committed;
        const char *name = d->files.names[i];
        if (!layout_parse(name, &n) || n.kind == LAYOUT_RECORD || n.kind == LAYOUT_DELETED || n.attempt[0] ||
            repo_has_record(v, n.stem) || repo_is_needed(c->scan->records, c->scan->len, v->name, d->no, n.stem))
            continue;
        // Partial names that are left by now are those of kept attempts.
        if (!repo_claimed(d, name, &claimed, err))
            return false;
        cleanup_free char *record = repo_path_record(c->repo, v->name, n.stem, err);
        if (!record || !repo_there(record, &committed, err))
            return false;
        if (claimed || committed)
            continue;
        any = c->changed = true;
        if (!remove_in(d->path, name, err))
            return false;
    }
    return !any || file_fsync_dir(d->path, err);
}

// The order is the fence's (docs/internals/repository.md): the images' partial names, the records' partial names,
// and only then final names, if there is still no record.
static bool recover_context(Recover *c, const RepoView *v, Err *err)
{
    for (size_t i = 0; i < v->disks_len; i++)
        if (!remove_partials(c, v, v->disks[i].path, &v->disks[i].files, err))
            return false;
    if (!remove_partials(c, v, v->path, &v->files, err) || !finish_deletes(c, v, err))
        return false;
    for (size_t i = 0; i < v->disks_len; i++)
        if (!remove_finals(c, v, &v->disks[i], err))
            return false;
    return true;
}

static bool recover_name(Recover *c, const char *name, Err *err)
{
    RepoView v;
    Err cause = ERR_INIT;
    if (str_starts(name, LAYOUT_INFO_PARTIAL)) {
        c->changed = true;
        return remove_in(c->repo->path, name, err);
    }
    if (!layout_is_context(name))
        return true;
    if (!repo_view_open(c->repo, name, &v, &cause))
        return cause.code != ERR_NO_MEMORY || err_no_memory(err); // the scan reports it
    bool ok = recover_context(c, &v, err);
    repo_view_clear(&v);
    return ok || err_context(err, "recovering %s", name);
}

bool repo_abort_orphan(const Repo *r, const RepoScan *scan, const char *context, const char *stem, const char *attempt,
                       Err *err)
{
    RepoView v;
    Err cause = ERR_INIT;
    if (!repo_view_open(r, context, &v, &cause))
        return cause.code == ERR_NOT_FOUND || err_set(err, cause.code, "%s", cause.details);
    bool needed = !repo_has_record(&v, stem) && repo_is_needed_any(scan->records, scan->len, &v, stem);
    repo_view_clear(&v);
    if (needed)
        return err_set(err, ERR_CONFLICT,
                       "other points stand on the images of %s, whose record is lost; nothing of it goes", stem);
    return repo_abort(r, context, stem, attempt, err);
}

bool repo_recover(const Repo *r, RepoKeeps keeps, void *ctx, RepoScan *ret_after, Err *err)
{
    RepoScan before;
    FileList names;
    if (!repo_scan(r, &before, err))
        return false;
    Recover c = {.repo = r, .scan = &before, .keeps = keeps, .ctx = ctx};
    bool ok = file_list(r->path, 1000000, &names, err);
    if (ok) {
        for (size_t i = 0; ok && i < names.len; i++)
            ok = recover_name(&c, names.names[i], err);
        file_list_clear(&names);
    }
    repo_scan_clear(&before);
    return ok && repo_scan(r, ret_after, err);
}

bool repo_recover_one(const Repo *r, const char *name, RepoKeeps keeps, RepoForgets forgets, void *ctx,
                      RepoScan *ret_after, Err *err)
{
    RepoScan before;
    if (!repo_scan_one(r, name, &before, err))
        return false;
    Recover c = {.repo = r, .scan = &before, .keeps = keeps, .forgets = forgets, .ctx = ctx};
    bool ok = recover_name(&c, name, err);
    if (ok && !c.changed) {
        *ret_after = before;
        return true;
    }
    repo_scan_clear(&before);
    return ok && repo_scan_one(r, name, ret_after, err);
}
