// Brings the catalogue in line with a repository's records. What differs is looked for beside everybody else, however
// many points there are; the transaction, in which all is looked at again, has to do with that only.
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "service/hub/internal.h"

typedef struct Differences {
    size_t *fresh; // of the scan's records: those that no completed row of the repository has
    size_t fresh_len;
    char **missing; // IDs of rows that no record of the scan has
    size_t missing_len, missing_cap;
} Differences;

static void differences_clear(Differences *d)
{
    free(d->fresh);
    hub_texts_free(d->missing, d->missing_len);
}

int hub_compare_ids(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool find_fresh(Hub *h, int64_t repository_id, const RepoScan *scan, Differences *d, Err *err)
{
    if (!(d->fresh = mem_calloc(MAX(scan->len, (size_t)1), sizeof(*d->fresh), err)))
        return false;
    for (size_t at = 0; at < scan->len; at += STORE_IDS_MAX) {
        const char *ids[STORE_IDS_MAX];
        bool are[STORE_IDS_MAX];
        size_t n = MIN(scan->len - at, (size_t)STORE_IDS_MAX);
        for (size_t i = 0; i < n; i++)
            ids[i] = scan->records[at + i].backup_id;
        if (!store_backup_are_points(h->store, repository_id, ids, n, are, err))
            return false;
        for (size_t i = 0; i < n; i++)
            if (!are[i])
                d->fresh[d->fresh_len++] = at + i;
    }
    return true;
}

static bool push_missing(Differences *d, char **id, Err *err)
{
    if (d->missing_len == d->missing_cap) {
        size_t cap = d->missing_cap ? d->missing_cap * 2 : 16;
        char **more = reallocarray(d->missing, cap, sizeof(*more));
        if (!more)
            return err_no_memory(err);
        d->missing = more;
        d->missing_cap = cap;
    }
    d->missing[d->missing_len++] = mem_take(*id);
    return true;
}

static bool find_missing(Hub *h, int64_t repository_id, const char *const *known, size_t known_len, Differences *d,
                         Err *err)
{
    cleanup_free char *place = NULL;
    bool ok = true;
    do {
        char **ids = NULL;
        size_t len = 0;
        ok = store_backup_point_ids(h->store, repository_id, &place, &ids, &len, err);
        for (size_t i = 0; ok && i < len; i++)
            ok = bsearch(&ids[i], known, known_len, sizeof(*known), hub_compare_ids) || push_missing(d, &ids[i], err);
        hub_texts_free(ids, len);
    } while (ok && place);
    return ok;
}

// The records' backup IDs, sorted, borrowed from the scan.
static bool sort_ids(const RepoScan *scan, const char ***ret, Err *err)
{
    const char **ids = mem_calloc(MAX(scan->len, (size_t)1), sizeof(*ids), err);
    if (!ids)
        return false;
    for (size_t i = 0; i < scan->len; i++)
        ids[i] = scan->records[i].backup_id;
    qsort(ids, scan->len, sizeof(*ids), hub_compare_ids);
    *ret = ids;
    return true;
}

// whole: the scan is of all of the repository.
static bool find_differences(Hub *h, int64_t repository_id, const RepoScan *scan, bool whole, Differences *d, Err *err)
{
    cleanup_free const char **known = NULL;
    return find_fresh(h, repository_id, scan, d, err) &&
        (!whole || (sort_ids(scan, &known, err) && find_missing(h, repository_id, known, scan->len, d, err)));
}

static bool add_context(Hub *h, const StoreRepository *repository, const Record *rec, Err *err)
{
    if (!store_context_set(h->store, repository->id, rec->vm_id, rec->context, err))
        return false;
    for (size_t i = 0; i < rec->disks_len; i++) {
        StoreDiskNumber n = {0};
        bool found;
        if (!store_disk_number_get(h->store, repository->id, rec->vm_id, rec->disks[i].disk_key, &n, &found, err))
            return false;
        store_disk_number_clear(&n);
        if (found)
            continue;
        n = (StoreDiskNumber){.repository_id = repository->id,
                              .vm_id = rec->vm_id,
                              .disk_key = rec->disks[i].disk_key,
                              .disk_id = rec->disks[i].disk_id,
                              .disk_no = rec->disks[i].disk_no};
        // a number that another key has by now: this key gets a new one with its next backup
        Err taken = ERR_INIT;
        if (!store_disk_number_add(h->store, &n, &taken) && taken.code != ERR_EXISTS) {
            *err = taken;
            return false;
        }
    }
    return true;
}

// Nothing to do for a record: its row is completed, or comes to it by itself, or the record was deleted since the scan
// read it (a deletion takes its row in the same transaction, so this look is the last word).
static bool nothing_to_add(Hub *h, const Repo *repo, const Record *rec, const char *stem, const StoreBackup *old,
                           bool *ret_nothing, Err *err)
{
    JobState state = JOB_FAILED;
    if (old->status && !job_state_parse(old->status, &state, err))
        return false;
    cleanup_free char *path = repo_path_record(repo, rec->context, stem, err);
    if (!path)
        return false;
    // at the start nobody is at work on a job; later its own commit ends it
    *ret_nothing = state == JOB_COMPLETED ||
        (!job_state_is_final(state) && (h->supervising || strcmp(old->hub_id, h->hub_id) != 0)) ||
        (!old->id && !file_exists(path));
    return true;
}

// A record without a completed row: the point exists, whatever the database thought of its job.
static bool add_point(Hub *h, const StoreRepository *repository, const Repo *repo, const Record *rec, const char *stem,
                      bool *ret_added, Err *err)
{
    StoreBackup cleanup_backup old = {0}, row = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    bool exists, nothing;
    if (!store_backup_exists(h->store, rec->backup_id, &exists, err) ||
        (exists && !store_backup_get(h->store, rec->backup_id, &old, err)))
        return false;
    if (exists && old.repository_id != repository->id)
        return err_set(err, ERR_CONFLICT, "point %s is in another repository too; remove that one first", old.id);
    if (!nothing_to_add(h, repo, rec, stem, &old, &nothing, err))
        return false;
    if (nothing) {
        *ret_added = false;
        return true;
    }
    bool ok = hub_rows_from_record(rec, stem, repository, &row, &disks, &len, err) &&
        // the client may still repeat its `complete`: its token stays good
        mem_replace(&row.token_digest, old.token_digest, err) && (!exists || hub_end_exporters(h, &old, err)) &&
        (!exists || store_backup_remove(h->store, rec->backup_id, err)) && store_backup_add(h->store, &row, err);
    for (size_t i = 0; ok && i < len; i++)
        ok = store_disk_add(h->store, &disks[i], err);
    ok = ok && hub_inherit_damage(h, row.id, disks, len, err);
    STORE_LIST_FREE(disks, len, store_disk_clear);
    *ret_added = true;
    return ok && add_context(h, repository, rec, err);
}

static bool refuse_point(const Record *rec, const char *stem, const Err *why, json_t *refused, Err *err)
{
    log_error("a record is not taken into the catalogue", LOG_STR("job", rec->backup_id), LOG_ERR(why));
    if (!refused)
        return true;
    cleanup_free char *path = mem_printf(err, "%s/%s.json", rec->context, stem);
    json_t *o = path ? json_object() : NULL;
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "path", path, err) &&
        codec_json_set_text(o, "backup_id", NULL, err) && codec_json_set_text(o, "error", err_short(why), err) &&
        codec_json_set_text(o, "details", why->details, err);
    return codec_json_push(refused, o, err) && ok;
}

static bool add_points(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                       const Differences *d, ScanCounts *counts, Err *err)
{
    counts->unchanged += scan->len - d->fresh_len;
    for (size_t n = 0; n < d->fresh_len; n++) {
        size_t i = d->fresh[n];
        const Record *rec = &scan->records[i];
        bool added = false;
        Err why = ERR_INIT;
        if (!add_point(h, repository, repo, rec, scan->stems[i], &added, &why)) {
            // one that clashes with another repository's point keeps nobody else out
            if (why.code == ERR_CONFLICT && refuse_point(rec, scan->stems[i], &why, counts->refused, err))
                continue;
            if (err->code == ERR_NONE)
                *err = why;
            return err_context(err, "record of %s", rec->backup_id);
        }
        if (added) {
            counts->added++;
            log_info("point taken into the catalogue", LOG_STR("job", rec->backup_id));
        } else {
            counts->unchanged++;
        }
    }
    return true;
}

static bool is_of_doubt(const RecordDisk *d)
{
    return d->reason == CHAIN_AUDIT_FAILED && d->parent_backup_id;
}

// A point that was compared because of an audit says so in its record: a catalogue made anew doubts the same ones.
static bool mark_doubted(Hub *h, const StoreRepository *repository, const RepoScan *scan, Err *err)
{
    for (size_t i = 0; i < scan->len; i++)
        for (size_t k = 0; k < scan->records[i].disks_len; k++) {
            const RecordDisk *d = &scan->records[i].disks[k];
            if (is_of_doubt(d) && !hub_doubt(h, repository->id, d->parent_backup_id, d->disk_key, NULL, err))
                return false;
        }
    return true;
}

// A point that the catalogue lists and the repository does not hold: it stays listed, as suspect, and is named.
static bool mark_missing_one(Points *points, int64_t repository_id, const char *id, json_t *missing, Err *err)
{
    Hub *h = points->hub;
    StoreBackup cleanup_backup row = {0};
    bool exists;
    if (!store_backup_exists(h->store, id, &exists, err) || (exists && !store_backup_get(h->store, id, &row, err)))
        return false;
    // deleted, or going, since it was looked for; or completed after the scan had read its folder, and there now
    if (!exists || row.deleting || row.repository_id != repository_id || strcmp(row.status, "completed") != 0 ||
        hub_points_find(points, id))
        return true;
    log_error("a listed point has no readable record", LOG_STR("job", id), LOG_ERR(&points->err));
    json_t *ids = NULL;
    // one that cannot be read now, as no damage would be, is suspect, and nothing that rests on it
    bool ok = (points->err.code == ERR_DAMAGED ? hub_mark_damaged_in(h, &row, NULL, &ids, err)
                                               : store_backup_set_suspect(h->store, id, true, row.damaged, err)) &&
        (!missing || codec_json_push(missing, json_string(id), err));
    json_decref(ids);
    return ok;
}

static bool mark_missing(Hub *h, int64_t repository_id, const Repo *repo, const Differences *d, json_t *missing,
                         Err *err)
{
    Points points = {.hub = h, .repo = repo};
    bool ok = true;
    for (size_t i = 0; ok && i < d->missing_len; i++)
        ok = mark_missing_one(&points, repository_id, d->missing[i], missing, err);
    hub_points_clear(&points);
    return ok;
}

static bool is_broken(const struct RepoProblem *p)
{
    return p->backup_id && p->error.code == ERR_DAMAGED;
}

// Listed points that are not whole, and what rests on them.
static bool mark_broken(Hub *h, const StoreRepository *repository, const RepoScan *scan, Err *err)
{
    for (size_t i = 0; i < scan->problems_len; i++) {
        const struct RepoProblem *p = &scan->problems[i];
        StoreBackup cleanup_backup row = {0};
        bool exists;
        json_t *ids = NULL;
        if (!is_broken(p))
            continue;
        if (!store_backup_exists(h->store, p->backup_id, &exists, err) ||
            (exists && !store_backup_get(h->store, p->backup_id, &row, err)))
            return false;
        if (!exists || row.repository_id != repository->id || row.deleting || strcmp(row.status, "completed") != 0)
            continue; // gone or going since the scan looked, or another repository's
        if (!hub_mark_damaged_in(h, &row, p->disk_key, &ids, err))
            return false;
        json_decref(ids);
    }
    return true;
}

static bool is_anything(const RepoScan *scan, const Differences *d)
{
    bool is = d->fresh_len > 0 || d->missing_len > 0;
    for (size_t i = 0; !is && i < scan->problems_len; i++)
        is = is_broken(&scan->problems[i]);
    for (size_t i = 0; !is && i < scan->len; i++)
        for (size_t k = 0; !is && k < scan->records[i].disks_len; k++)
            is = is_of_doubt(&scan->records[i].disks[k]);
    return is;
}

// The caller has a transaction open.
static bool apply(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                  const Differences *d, ScanCounts *counts, Err *err)
{
    StoreRepository cleanup_repository still = {0};
    return store_repository_get(h->store, repository->id, &still, err) && // not removed since the scan began
        add_points(h, repository, repo, scan, d, counts, err) && mark_doubted(h, repository, scan, err) &&
        mark_missing(h, repository->id, repo, d, counts->missing, err) && mark_broken(h, repository, scan, err);
}

// Of a turn that is done again.
static void begin_anew(ScanCounts *counts)
{
    counts->added = counts->unchanged = 0;
    (void)json_array_clear(counts->missing); // where there is one
    (void)json_array_clear(counts->refused);
}

// The rows are a backup's: what differs is known when they are in line with the repository.
static bool update_stale(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                         ScanCounts *counts, Err *err)
{
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        Differences d = {0};
        begin_anew(counts);
        t.ok = hub_reconcile(h, repository, repo, scan, err) && store_not_stale(h->store, repository->id, err) &&
            find_differences(h, repository->id, scan, true, &d, err) &&
            apply(h, repository, repo, scan, &d, counts, err);
        differences_clear(&d);
    }
    return t.ok;
}

static bool apply_alone(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                        const Differences *d, ScanCounts *counts, Err *err)
{
    if (!is_anything(scan, d)) {
        counts->unchanged += scan->len;
        return true;
    }
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        begin_anew(counts);
        t.ok = apply(h, repository, repo, scan, d, counts, err);
    }
    return t.ok;
}

bool hub_catalogue_update(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan,
                          ScanCounts *counts, Err *err)
{
    ScanCounts unused = {0};
    Differences d = {0};
    bool stale;
    if (!store_is_stale(h->store, repository->id, &stale, err))
        return false;
    if (stale)
        return update_stale(h, repository, repo, scan, counts ? counts : &unused, err);
    bool ok = find_differences(h, repository->id, scan, true, &d, err) &&
        apply_alone(h, repository, repo, scan, &d, counts ? counts : &unused, err);
    differences_clear(&d);
    return ok;
}

bool hub_catalogue_add(Hub *h, const StoreRepository *repository, const Repo *repo, const RepoScan *scan, Err *err)
{
    ScanCounts unused = {0};
    Differences d = {0};
    bool ok = find_differences(h, repository->id, scan, false, &d, err) &&
        apply_alone(h, repository, repo, scan, &d, &unused, err);
    differences_clear(&d);
    return ok;
}

bool hub_catalogue_missing(Hub *h, const StoreRepository *repository, const Repo *repo, const char *const *known,
                           size_t len, Err *err)
{
    static const RepoScan nothing = {0};
    ScanCounts unused = {0};
    Differences d = {0};
    bool ok = find_missing(h, repository->id, known, len, &d, err) &&
        apply_alone(h, repository, repo, &nothing, &d, &unused, err);
    differences_clear(&d);
    return ok;
}
