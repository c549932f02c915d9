// Looking through a repository: what is there, what is wrong, what nobody owns.

#include "base/str.h"
#include "base/vec.h"
#include "image/repo_internal.h"

#include <errno.h>
#include <sys/stat.h>

#define CONTEXTS_MAX 1000000u

typedef struct RepoProblem Problem;
VEC_DEFINE(RecordVec, record_vec, Record)
VEC_DEFINE(TextVec, text_vec, char *)
VEC_DEFINE(ProblemVec, problem_vec, Problem)

typedef struct Scan {
    const Repo *repo;
    RecordVec records;
    TextVec stems, orphans;
    ProblemVec problems;
    bool unread; // a record of this context cannot be read now: what stands on it is not known to be damaged
} Scan;

static void clear_problem(Problem *p)
{
    free(p->path);
    free(p->backup_id);
    free(p->disk_key);
}

void repo_scan_clear(RepoScan *s)
{
    for (size_t i = 0; i < s->len; i++) {
        record_clear(&s->records[i]);
        free(s->stems[i]);
    }
    for (size_t i = 0; i < s->problems_len; i++)
        clear_problem(&s->problems[i]);
    for (size_t i = 0; i < s->orphans_len; i++)
        free(s->orphans[i]);
    free(s->records);
    free(s->stems);
    free(s->problems);
    free(s->orphans);
    *s = (RepoScan){0};
}

static RepoScan scan_take(Scan *s)
{
    return (RepoScan){.records = s->records.items,
                      .stems = s->stems.items,
                      .len = s->records.len,
                      .problems = s->problems.items,
                      .problems_len = s->problems.len,
                      .orphans = s->orphans.items,
                      .orphans_len = s->orphans.len};
}

const Record *repo_child_of(const Record *records, size_t len, const char *backup_id)
{
    for (size_t i = 0; i < len; i++)
        for (size_t d = 0; d < records[i].disks_len; d++)
            if (records[i].disks[d].parent_backup_id && str_eq(records[i].disks[d].parent_backup_id, backup_id))
                return &records[i];
    return NULL;
}

static bool check_place(const Repo *r, const char *context, const char *stem, const Record *rec, Err *err)
{
    if (!str_eq(rec->repository_uuid, r->info.uuid))
        return err_set(err, ERR_DAMAGED, "it belongs to repository %s", rec->repository_uuid);
    if (!str_eq(rec->context, context))
        return err_set(err, ERR_DAMAGED, "it belongs into the folder %s", rec->context);
    for (size_t i = 0; i < rec->disks_len; i++) {
        LayoutName n;
        if (!layout_parse(rec->disks[i].image, &n) || !str_eq(n.stem, stem))
            return err_set(err, ERR_DAMAGED, "it belongs to the image %s", rec->disks[i].image);
    }
    return true;
}

bool repo_read_record(const Repo *r, const char *context, const char *stem, LayoutKind kind, Record *ret, Err *err)
{
    char name[LAYOUT_NAME];
    cleanup_free char *path = NULL, *text = NULL;
    struct stat st;
    size_t n;
    Record rec;
    if (!layout_name(kind, stem, NULL, name, err) || !(path = mem_printf(err, "%s/%s/%s", r->path, context, name)))
        return false;
    if (lstat(path, &st) != 0)
        return err_errno(err, errno, "cannot look at %s", path);
    if (!S_ISREG(st.st_mode)) // not followed, should it be a link
        return err_set(err, ERR_DAMAGED, "%s is not a regular file", path);
    if (!file_read(path, RECORD_MAX_BYTES, &text, &n, err) || !record_decode(text, n, &r->info.hash, &rec, err))
        return false;
    if (!check_place(r, context, stem, &rec, err)) {
        record_clear(&rec);
        return false;
    }
    *ret = rec;
    return true;
}

static char *view_path(const RepoView *v, const RepoViewDisk *disk, const char *name, Err *err)
{
    return disk ? mem_printf(err, "%s/disk-%u/%s", v->name, disk->no, name) : mem_printf(err, "%s/%s", v->name, name);
}

static bool push_orphan(Scan *s, char *path, Err *err)
{
    if (!path)
        return false;
    if (text_vec_push(&s->orphans, path, err))
        return true;
    free(path);
    return false;
}

// rec, d: the listed point that is not whole, and the disk; else NULL. Takes the path.
static bool add_point_problem(Scan *s, char *path, const Err *what, const Record *rec, const RecordDisk *d, Err *err)
{
    Problem p = {.path = path, .error = *what};
    if (path &&
        (!rec || (mem_replace(&p.backup_id, rec->backup_id, err) && mem_replace(&p.disk_key, d->disk_key, err))) &&
        problem_vec_push(&s->problems, p, err))
        return true;
    clear_problem(&p);
    return false;
}

static bool add_problem(Scan *s, char *path, const Err *what, Err *err)
{
    return add_point_problem(s, path, what, NULL, NULL, err);
}

// A listed point is complete: every file of it is there, the images at their length. What is in them is
// for repo_check_layer() and the reader to say.
static bool check_file(Scan *s, const RepoView *v, const Record *rec, const RecordDisk *d, const char *file,
                       const uint64_t *bytes, Err *err)
{
    Err what = ERR_INIT;
    struct stat st;
    cleanup_free char *path = mem_printf(err, "%s/disk-%u/%s", v->path, d->disk_no, file);
    if (!path)
        return false;
    if (lstat(path, &st) != 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return err_errno(err, errno, "cannot look at %s", path);
        err_set(&what, ERR_DAMAGED, "the file is missing, though its point is on record");
    } else if (!S_ISREG(st.st_mode)) {
        err_set(&what, ERR_DAMAGED, "not a regular file");
    } else if (bytes && (uint64_t)st.st_size != *bytes) {
        err_set(&what, ERR_DAMAGED, "%llu bytes long, not %llu as on record", (unsigned long long)st.st_size,
                (unsigned long long)*bytes);
    }
    return what.code == ERR_NONE ||
        add_point_problem(s, mem_printf(err, "%s/disk-%u/%s", v->name, d->disk_no, file), &what, rec, d, err);
}

static bool add_record(Scan *s, const RepoView *v, const char *name, const char *stem, Err *err)
{
    Record rec = {0};
    Err what = ERR_INIT;
    if (!repo_read_record(s->repo, v->name, stem, LAYOUT_RECORD, &rec, &what)) {
        if (what.code == ERR_NOT_FOUND) // deleted since the folder was listed
            return true;
        if (what.code == ERR_NO_MEMORY)
            return err_no_memory(err);
        s->unread = s->unread || what.code == ERR_IO || err_retryable(what.code);
        return add_problem(s, mem_printf(err, "%s/%s", v->name, name), &what, err);
    }
    for (size_t i = 0; i < rec.disks_len; i++) {
        const RecordDisk *d = &rec.disks[i];
        if (!check_file(s, v, &rec, d, d->image, &d->image_bytes, err) ||
            !check_file(s, v, &rec, d, d->hashes, NULL, err)) {
            record_clear(&rec);
            return false;
        }
    }
    char *copy = mem_strdup(stem, err);
    if (!copy || !text_vec_reserve(&s->stems, s->stems.len + 1, err) || !record_vec_push(&s->records, rec, err)) {
        free(copy);
        record_clear(&rec);
        return false;
    }
    s->stems.items[s->stems.len++] = copy;
    return true;
}

bool repo_has_record(const RepoView *v, const char *stem)
{
    char name[LAYOUT_NAME];
    Err ignored = ERR_INIT; // a name that cannot be made is not there
    // Also one that cannot be read: what it may stand for is nobody's to remove.
    return layout_name(LAYOUT_RECORD, stem, NULL, name, &ignored) && repo_list_has(&v->files, name);
}

bool repo_is_needed(const Record *records, size_t len, const char *context, unsigned disk_no, const char *stem)
{
    for (size_t i = 0; i < len; i++) {
        if (!str_eq(records[i].context, context))
            continue;
        for (size_t d = 0; d < records[i].disks_len; d++) {
            const RecordDisk *disk = &records[i].disks[d];
            LayoutName b;
            if (disk->disk_no == disk_no && disk->backing_name && layout_parse(disk->backing_name, &b) &&
                str_eq(b.stem, stem))
                return true;
        }
    }
    return false;
}

bool repo_is_needed_any(const Record *records, size_t len, const RepoView *v, const char *stem)
{
    for (size_t i = 0; i < v->disks_len; i++)
        if (repo_is_needed(records, len, v->name, v->disks[i].no, stem))
            return true;
    return false;
}

// disk NULL: a name in the context folder itself.
static bool add_orphan(Scan *s, const RepoView *v, const RepoViewDisk *disk, const char *name, Err *err)
{
    LayoutName n;
    if (!layout_parse(name, &n) || (n.kind == LAYOUT_RECORD || n.kind == LAYOUT_DELETED) != !disk)
        return true; // somebody else's
    if (n.attempt[0])
        return push_orphan(s, view_path(v, disk, name, err), err);
    if (n.kind == LAYOUT_RECORD || (disk && repo_has_record(v, n.stem)))
        return true;
    bool needed = disk ? repo_is_needed(s->records.items, s->records.len, v->name, disk->no, n.stem)
                       : repo_is_needed_any(s->records.items, s->records.len, v, n.stem);
    if (!needed)
        return push_orphan(s, view_path(v, disk, name, err), err);
    Err what = ERR_INIT;
    err_set(&what, ERR_DAMAGED,
            disk ? "its commit record is missing, but other points stand on it"
                 : "its deletion was begun, but other points stand on it");
    return add_problem(s, view_path(v, disk, name, err), &what, err);
}

static bool add_orphans(Scan *s, const RepoView *v, Err *err)
{
    for (size_t i = 0; i < v->files.len; i++)
        if (!add_orphan(s, v, NULL, v->files.names[i], err))
            return false;
    for (size_t i = 0; i < v->disks_len; i++) {
        const RepoViewDisk *d = &v->disks[i];
        for (size_t f = 0; f < d->files.len; f++)
            if (!add_orphan(s, v, d, d->files.names[f], err))
                return false;
    }
    return true;
}

static bool is_listed(const Scan *s, size_t first, const char *backup_id)
{
    for (size_t i = first; i < s->records.len; i++)
        if (str_eq(s->records.items[i].backup_id, backup_id))
            return true;
    return false;
}

// A chain lies in one context: its records are those from `first` on.
static bool check_parents(Scan *s, size_t first, Err *err)
{
    for (size_t i = first; i < s->records.len; i++) {
        const Record *rec = &s->records.items[i];
        for (size_t k = 0; k < rec->disks_len; k++) {
            const RecordDisk *d = &rec->disks[k];
            if (!d->parent_backup_id || is_listed(s, first, d->parent_backup_id))
                continue;
            Err what = ERR_INIT;
            err_set(&what, s->unread ? ERR_IO : ERR_DAMAGED, "%s stands on %s, which has no record that could be read",
                    d->disk_key, d->parent_backup_id);
            if (!add_point_problem(s, mem_printf(err, "%s/%s.json", rec->context, s->stems.items[i]), &what, rec, d,
                                   err))
                return false;
        }
    }
    return true;
}

static bool scan_context(Scan *s, const char *context, Err *err)
{
    RepoView v;
    Err cause = ERR_INIT;
    if (!repo_view_open(s->repo, context, &v, &cause)) {
        if (cause.code == ERR_NO_MEMORY)
            return err_no_memory(err);
        return add_problem(s, mem_strdup(context, err), &cause, err);
    }
    bool ok = true;
    size_t first = s->records.len;
    s->unread = false;
    for (size_t i = 0; i < v.files.len && ok; i++) {
        LayoutName n;
        if (layout_parse(v.files.names[i], &n) && n.kind == LAYOUT_RECORD && !n.attempt[0])
            ok = add_record(s, &v, v.files.names[i], n.stem, err);
    }
    ok = ok && check_parents(s, first, err) && add_orphans(s, &v, err);
    repo_view_clear(&v);
    return ok;
}

static bool scan_name(Scan *s, const char *name, Err *err)
{
    return (!layout_is_context(name) || scan_context(s, name, err)) &&
        (!str_starts(name, LAYOUT_INFO_PARTIAL) || push_orphan(s, mem_strdup(name, err), err));
}

static bool give(Scan *s, bool ok, RepoScan *ret)
{
    RepoScan found = scan_take(s);
    if (ok)
        *ret = found;
    else
        repo_scan_clear(&found);
    return ok;
}

bool repo_scan(const Repo *r, RepoScan *ret, Err *err)
{
    Scan s = {.repo = r};
    FileList names;
    if (!repo_recheck(r, err) || !file_list(r->path, CONTEXTS_MAX, &names, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < names.len; i++)
        ok = scan_name(&s, names.names[i], err);
    file_list_clear(&names);
    return give(&s, ok, ret);
}

bool repo_scan_one(const Repo *r, const char *name, RepoScan *ret, Err *err)
{
    Scan s = {.repo = r};
    return repo_recheck(r, err) && give(&s, scan_name(&s, name, err), ret);
}

bool repo_names(const Repo *r, char ***ret, size_t *ret_len, Err *err)
{
    FileList names;
    if (!repo_recheck(r, err) || !file_list(r->path, CONTEXTS_MAX, &names, err))
        return false;
    *ret = names.names;
    *ret_len = names.len;
    return true;
}
