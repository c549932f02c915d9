// A catalogue that came out of a backup of the database, against its repository, which is the truth.
// docs/internals/database-backup.md.
#include "base/log.h"
#include "base/str.h"
#include "service/hub/internal.h"

#include <errno.h>
#include <sys/stat.h>

typedef struct Found {
    const char *id;
    const Record *record;
    const char *stem;
} Found;

typedef struct Reconcile {
    Hub *hub;
    const StoreRepository *row;
    const Repo *repo;
    const RepoScan *scan;
    Found *found; // sorted
    uint64_t gone, remade;
} Reconcile;

static int by_id(const void *a, const void *b)
{
    return strcmp(((const Found *)a)->id, ((const Found *)b)->id);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? str_eq(a, b) : a == b;
}

static bool same_disk(const StoreDisk *a, const StoreDisk *b)
{
    return str_eq(a->disk_key, b->disk_key) && a->disk_id == b->disk_id && a->disk_no == b->disk_no &&
        a->size == b->size && a->image_bytes == b->image_bytes && a->chain_length == b->chain_length &&
        same_text(a->mode, b->mode) && same_text(a->change_id, b->change_id) && same_text(a->image, b->image) &&
        same_text(a->hashes, b->hashes) && same_text(a->backing_name, b->backing_name) &&
        same_text(a->parent_backup_id, b->parent_backup_id) && same_text(a->root, b->root) &&
        same_text(a->metadata, b->metadata) && same_text(a->hashes_digest, b->hashes_digest);
}

// Both lists are in the order of the disks' numbers, or the point is another one.
static bool same_disks(const StoreDisk *a, size_t n, const StoreDisk *b, size_t m)
{
    bool same = n == m;
    for (size_t i = 0; same && i < n; i++) {
        bool there = false;
        for (size_t k = 0; !there && k < m; k++)
            there = same_disk(&a[i], &b[k]);
        same = there;
    }
    return same;
}

static bool is_same(const Reconcile *r, const StoreBackup *b, const Found *f, bool *ret, Err *err)
{
    StoreBackup cleanup_backup made = {0};
    StoreDisk *disks = NULL, *made_disks = NULL;
    size_t n = 0, m = 0;
    bool ok = hub_rows_from_record(f->record, f->stem, r->row, &made, &made_disks, &m, err) &&
        store_disk_list(r->hub->store, b->id, &disks, &n, err);
    *ret = ok && b->sequence == made.sequence && str_eq(b->vm_id, made.vm_id) && same_text(b->context, made.context) &&
        same_text(b->stem, made.stem) && same_text(b->parent_id, made.parent_id) &&
        same_text(b->change_id, made.change_id) && same_disks(disks, n, made_disks, m);
    STORE_LIST_FREE(disks, n, store_disk_clear);
    STORE_LIST_FREE(made_disks, m, store_disk_clear);
    return ok;
}

// Certainly not there; what cannot be looked at is.
static bool is_absent(const char *path)
{
    struct stat st;
    return lstat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR);
}

static bool stands_on(const Record *rec, const char *id)
{
    for (size_t i = 0; i < rec->disks_len; i++)
        if (rec->disks[i].parent_backup_id && str_eq(rec->disks[i].parent_backup_id, id))
            return true;
    return false;
}

static bool is_stood_on(const Reconcile *r, const char *id, bool *ret, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    *ret = false;
    for (size_t i = 0; !*ret && i < r->scan->len; i++)
        *ret = stands_on(&r->scan->records[i], id);
    if (*ret || !store_backup_dependents(r->hub->store, id, &rows, &len, err))
        return *ret;
    *ret = len > 0;
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return true;
}

// Deleted since: no record, none of its images, nothing that stands on it. Else it is damage, and stays listed.
static bool is_gone(const Reconcile *r, const StoreBackup *b, bool *ret, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    bool needed;
    *ret = false;
    if (!b->context || !b->stem)
        return true;
    cleanup_free char *record = repo_path_record(r->repo, b->context, b->stem, err);
    if (!record)
        return false;
    if (!is_absent(record))
        return true;
    if (!is_stood_on(r, b->id, &needed, err) || !store_disk_list(r->hub->store, b->id, &disks, &len, err))
        return false;
    bool ok = true, gone = !needed;
    for (size_t i = 0; ok && gone && i < len; i++) {
        cleanup_free char *image = disks[i].image
            ? repo_path_disk_file(r->repo, b->context, (unsigned)disks[i].disk_no, disks[i].image, err)
            : NULL;
        ok = image || !disks[i].image;
        gone = image && is_absent(image);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    *ret = ok && gone;
    return ok;
}

static bool reconcile_point(Reconcile *r, const StoreBackup *b, Err *err)
{
    const Found key = {.id = b->id};
    const Found *f = r->scan->len ? bsearch(&key, r->found, r->scan->len, sizeof(*r->found), by_id) : NULL;
    bool yes;
    if (!f) {
        if (!is_gone(r, b, &yes, err))
            return false;
        if (!yes)
            return true; // the scan says what is wrong with it
        r->gone++;
        log_info("a point was deleted after the database's backup", LOG_STR("job", b->id));
        return store_backup_remove(r->hub->store, b->id, err);
    }
    if (!is_same(r, b, f, &yes, err))
        return false;
    if (!yes) {
        r->remade++;
        log_warn("a point's record says something else than the database's backup; the record counts",
                 LOG_STR("job", b->id));
        return store_backup_remove(r->hub->store, b->id, err); // the scan adds it anew
    }
    return !b->suspect || b->damaged || b->doubted || store_backup_set_suspect(r->hub->store, b->id, false, false, err);
}

bool hub_reconcile(Hub *h, const StoreRepository *row, const Repo *repo, const RepoScan *scan, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    Reconcile r = {.hub = h, .row = row, .repo = repo, .scan = scan};
    r.found = mem_calloc(scan->len + 1, sizeof(*r.found), err);
    bool ok = r.found && store_backup_points(h->store, row->id, NULL, &rows, &len, err);
    for (size_t i = 0; ok && i < scan->len; i++)
        r.found[i] = (Found){scan->records[i].backup_id, &scan->records[i], scan->stems[i]};
    if (ok)
        qsort(r.found, scan->len, sizeof(*r.found), by_id);
    for (size_t i = len; ok && i-- > 0;) // the newest first: nothing stands on what has gone by then
        ok = reconcile_point(&r, &rows[i], err);
    STORE_LIST_FREE(rows, len, store_backup_clear);
    free(r.found);
    if (ok)
        log_info("a restored catalogue was brought in line with its repository", LOG_STR("name", row->name),
                 LOG_NUM("gone", r.gone), LOG_NUM("remade", r.remade));
    return ok;
}

bool hub_not_stale(Hub *h, int64_t repository_id, Err *err)
{
    bool stale;
    if (!store_is_stale(h->store, repository_id, &stale, err))
        return false;
    if (!stale)
        return true;
    (void)err_set(err, ERR_UNAVAILABLE,
                  "the database was restored from a backup, and not brought in line with this repository yet; that is "
                  "done as soon as it is there, or by: sendense repo scan");
    return err_title(err, "repository not looked through yet");
}

// Repositories that were away when the database was restored.
bool hub_reconcile_late(Hub *h, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    bool ok = store_repository_list(h->store, &rows, &len, err), stale;
    for (size_t i = 0; ok && i < len; i++) {
        Repo cleanup_repo repo = {0};
        RepoScan scan = {0};
        Err why = ERR_INIT;
        ok = store_is_stale(h->store, rows[i].id, &stale, err);
        if (!ok || !stale || !hub_repo_open(h, &rows[i], &repo, &why))
            continue;
        if (!repo_scan(&repo, &scan, &why) || !hub_catalogue_update(h, &rows[i], &repo, &scan, NULL, &why))
            log_error("repository not taken into the catalogue", LOG_STR("name", rows[i].name), LOG_ERR(&why));
        repo_scan_clear(&scan);
    }
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}
