// Partial images of failed jobs that the next one may go on from.
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "image/layout.h"
#include "service/hub/internal.h"

#include <sys/stat.h>

#define CHECKPOINT_MS 10000
#define ROOM (UINT64_C(1) << 30) // a repository that has less free, or a twentieth, keeps nothing for later

void hub_resume_checkpoint(const Running *r)
{
    for (size_t i = 0; i < r->exporters_len; i++) {
        EngineAnswer a;
        Err err = ERR_INIT;
        if (!exporter_call(r->exporters[i].control, &(EngineRequest){.op = ENGINE_CHECKPOINT}, CHECKPOINT_MS, &a, &err))
            log_info("an exporter's last checkpoint is what there is", LOG_STR("job", r->id), LOG_ERR(&err));
    }
}

bool hub_resume_paths(const Repo *repo, const StoreBackup *b, const StoreDisk *d, char **ret_image, char **ret_journal,
                      Err *err)
{
    LayoutName n;
    char image[LAYOUT_NAME], journal[LAYOUT_NAME];
    if (!b->context || !b->attempt || !d->image || !layout_parse(d->image, &n))
        return err_set(err, ERR_NOT_FOUND, "backup %s has left nothing of disk %s", b->id, d->disk_key);
    LayoutKind kind = n.kind == LAYOUT_FULL_IMAGE ? LAYOUT_FULL_JOURNAL : LAYOUT_INCR_JOURNAL;
    if (!layout_name(n.kind, n.stem, b->attempt, image, err) || !layout_name(kind, n.stem, b->attempt, journal, err))
        return false;
    cleanup_free char *image_path = repo_path_disk_file(repo, b->context, (unsigned)d->disk_no, image, err);
    cleanup_free char *journal_path =
        image_path ? repo_path_disk_file(repo, b->context, (unsigned)d->disk_no, journal, err) : NULL;
    if (!journal_path)
        return false;
    *ret_image = mem_take(image_path);
    *ret_journal = mem_take(journal_path);
    return true;
}

// With a record in it.
static bool has_journal(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && st.st_size > 64;
}

bool hub_resume_is_possible(Hub *h, const StoreBackup *b)
{
    StoreRepository cleanup_repository row = {0};
    Repo cleanup_repo repo = {0};
    StoreDisk *disks = NULL;
    size_t len = 0;
    bool any = false;
    uint64_t room = 0, total = 0;
    Err err = ERR_INIT; // then there is nothing to go on from
    if (!b->context || !b->attempt || !store_repository_get(h->store, b->repository_id, &row, &err) ||
        !hub_repo_open(h, &row, &repo, &err) || !file_space(repo.path, &room, &total, &err) ||
        room < MIN(ROOM, total / 20) || !store_disk_list(h->store, b->id, &disks, &len, &err))
        return false;
    for (size_t i = 0; i < len && !any; i++) {
        cleanup_free char *image = NULL, *journal = NULL;
        any = disks[i].token && hub_resume_paths(&repo, b, &disks[i], &image, &journal, &err) && file_exists(image) &&
            has_journal(journal);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return any;
}

bool hub_resume_make_way(Hub *h, int64_t repository_id, const char *vm_id, Err *err)
{
    StoreBackup *rows = NULL;
    size_t len = 0;
    if (!store_backup_resumable(h->store, &rows, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        if (rows[i].repository_id != repository_id || strcmp(rows[i].vm_id, vm_id) == 0)
            continue;
        log_info("what a failed backup left makes way for another one", LOG_STR("job", rows[i].id));
        ok = store_backup_set_resumable(h->store, rows[i].id, false, err) && hub_remove_partial(h, &rows[i], err) &&
            store_backup_cleaned(h->store, rows[i].id, err);
    }
    STORE_LIST_FREE(rows, len, store_backup_clear);
    return ok;
}

bool hub_resume_order(Hub *h, const StoreBackup *b, WorkOrder *w, Err *err)
{
    StoreBackup cleanup_backup old = {0};
    StoreDisk *rows = NULL;
    size_t len = 0;
    bool found = false;
    if (h->keep_hours == 0 || !store_backup_interrupted(h->store, b->repository_id, b->vm_id, &old, &found, err) ||
        !found)
        return err->code == ERR_NONE;
    if (!store_disk_list(h->store, old.id, &rows, &len, err))
        return false;
    bool ok = (w->interrupted_disks = mem_calloc(len, sizeof(*w->interrupted_disks), err)) != NULL &&
        mem_replace(&w->interrupted_backup_id, old.id, err);
    for (size_t i = 0; ok && i < len; i++) {
        if (!rows[i].token)
            continue;
        WorkInterrupted *d = &w->interrupted_disks[w->interrupted_disks_len++];
        d->size = rows[i].size;
        ok = mem_replace(&d->disk_key, rows[i].disk_key, err) && mem_replace(&d->token, rows[i].token, err);
    }
    STORE_LIST_FREE(rows, len, store_disk_clear);
    return ok;
}
