// Announcing the disks: how each is backed up, and on what it stands; its exporter.
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "service/hub/internal.h"

#include <stdio.h>
#include <sys/stat.h>

#define SPACE_RESERVE (UINT64_C(64) << 20)

typedef struct Plan { // of one announce call
    Hub *h;
    Running *running;
    StoreBackup b;
    StoreRepository repository;
    Repo repo;
    Points points;
    char slug_stem[NAME_STEM];
    StoreDisk *disks;
    size_t disks_len;
    EngineConfig *configs;   // same index
    StoreBackup interrupted; // whose images may be gone on from; no id: none's
    StoreDisk *interrupted_disks;
    size_t interrupted_len;
    bool begun;     // past the checks that change nothing
    bool anew;      // of an earlier call the rows are there, and nothing that writes
    bool unwritten; // the database did not take what this call is to note: the caller may repeat it
    bool lost;      // it is another hub's by now, or that cannot be told
} Plan;

static void plan_clear(Plan *p)
{
    STORE_LIST_FREE(p->disks, p->disks_len, store_disk_clear);
    free(p->configs);
    STORE_LIST_FREE(p->interrupted_disks, p->interrupted_len, store_disk_clear);
    store_backup_clear(&p->interrupted);
    hub_points_clear(&p->points);
    repo_clear(&p->repo);
    store_repository_clear(&p->repository);
    store_backup_clear(&p->b);
}

// A key gets its folder number and its disk number once, and keeps both.
static bool number(Plan *p, const AnnounceDisk *a, StoreDisk *d, Err *err)
{
    StoreDiskNumber n = {.repository_id = p->b.repository_id};
    bool found, ok;
    unsigned folder;
    if (!store_disk_number_get(p->h->store, n.repository_id, p->b.vm_id, a->disk_key, &n, &found, err))
        return false;
    if (!found) {
        n.repository_id = p->b.repository_id;
        n.disk_id = a->disk_id;
        ok = mem_replace(&n.vm_id, p->b.vm_id, err) && mem_replace(&n.disk_key, a->disk_key, err) &&
            (a->disk_id || store_disk_id_pick(p->h->store, p->b.vm_id, a->disk_key, &n.disk_id, err)) &&
            store_disk_no_next(p->h->store, n.repository_id, p->b.vm_id, &n.disk_no, err) &&
            repo_next_disk_no(&p->repo, p->b.context, (unsigned)n.disk_no, &folder, err);
        if (ok) {
            n.disk_no = folder;
            ok = store_disk_number_add(p->h->store, &n, err);
        }
        if (!ok) {
            store_disk_number_clear(&n);
            return false;
        }
    }
    d->disk_id = a->disk_id ? a->disk_id : n.disk_id;
    d->disk_no = n.disk_no;
    store_disk_number_clear(&n);
    return true;
}

static const StoreDisk *row_of(const StoreDisk *rows, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(rows[i].disk_key, key) == 0)
            return &rows[i];
    return NULL;
}

// How this disk is backed up, and on what it stands. A parent whose files are not what was written makes it a full.
static bool decide(Plan *p, const AnnounceDisk *a, const StoreDisk *parent, const StoreBackup *point, StoreDisk *d,
                   EngineConfig *c, Err *err)
{
    RepoChain chain = {0};
    Err damage = ERR_INIT;
    bool intact =
        parent && hub_chain_open(&p->points, p->b.parent_id, a->disk_key, REPO_CHECK_HASHES, &chain, NULL, &damage);
    if (parent && !intact && damage.code == ERR_CANCELLED) {
        *err = damage;
        return false;
    }
    // a backing file is a sibling: there is none in another folder, as after a scan of what an earlier catalogue held
    if (intact && (strcmp(chain.records[0]->context, p->b.context) != 0 || chain.disks[0]->disk_no != d->disk_no))
        intact = err_set(&damage, ERR_CONFLICT, "the previous backup's image lies in another folder, %s/disk-%u",
                         chain.records[0]->context, chain.disks[0]->disk_no);
    ChainReason reason;
    ChainInput in = {
        .full_requested = strcmp(p->b.reason, chain_reason_name(CHAIN_REQUESTED)) == 0,
        .have_parent_point = p->b.parent_id != NULL || strcmp(p->b.reason, chain_reason_name(CHAIN_LIMIT)) == 0,
        .chain_length = strcmp(p->b.reason, chain_reason_name(CHAIN_LIMIT)) == 0 ? p->h->chain_limit
            : parent                                                             ? (unsigned)parent->chain_length
                                                                                 : 0,
        .chain_limit = p->h->chain_limit,
        .have_parent_disk = parent != NULL,
        // damage would show through an increment, which leaves out what has not changed; a point that is suspect for
        // another reason still holds what its hashes say
        .parent_damaged = parent && (!intact || point->damaged),
        .parent_refuted = parent && parent->refuted,
        .parent_suspect = point->suspect,
        .size = a->size,
        .parent_size = parent ? parent->size : 0,
        .source_tracks = strcmp(a->tracking, "none") != 0,
        .base_change_id = a->base_change_id,
        .parent_change_id = parent ? parent->change_id : NULL,
        .parent_tracking = parent && parent->tracking && strcmp(parent->tracking, "none") != 0,
        .lost = a->lost_code,
    };
    d->chain_length = 1;
    DiskMode mode = chain_decide(&in, &reason);
    bool sources_own = chain_reason_is_loss(reason) || reason == CHAIN_NOT_TRACKED;
    const char *why = damage.code != ERR_NONE ? damage.details
        : sources_own && a->lost              ? a->lost
        : reason == CHAIN_NONE                ? ""
                                              : chain_reason_text(reason);
    bool ok = mem_replace(&d->mode, disk_mode_name(mode), err) &&
        mem_replace(&d->reason, chain_reason_name(reason), err) && mem_replace(&d->reason_text, why, err);
    if (ok && mode != DISK_FULL) {
        d->chain_length = parent->chain_length + 1;
        ok = mem_replace(&d->parent_backup_id, p->b.parent_id, err) &&
            mem_replace(&d->backing_name, parent->image, err) && mem_replace(&c->backing_name, parent->image, err) &&
            hub_engine_layers(&chain, c, err);
    }
    c->mode = mode;
    repo_chain_clear(&chain);
    return ok;
}

static bool same_text(const char *a, const char *b)
{
    return (!a && !b) || (a && b && strcmp(a, b) == 0);
}

// The same disk, on the same parent, of which the source can tell what changed: then the interrupted job's image is
// gone on from. docs/internals/resume.md. Not where an audit has found that the source cannot tell.
static bool plan_resume(Plan *p, const AnnounceDisk *a, const StoreDisk *parent, StoreDisk *d, EngineConfig *c,
                        Err *err)
{
    const StoreDisk *old = row_of(p->interrupted_disks, p->interrupted_len, a->disk_key);
    bool doubted = (old && old->wrong_blocks > 0) || (parent && parent->refuted) ||
        str_eq(d->reason, chain_reason_name(CHAIN_AUDIT_FAILED)) ||
        str_eq(d->reason, chain_reason_name(CHAIN_PARENT_SUSPECT));
    if (doubted || !c->journal || !a->resumes || !old || !old->token || old->size != d->size ||
        !same_text(old->mode, d->mode) || old->disk_no != d->disk_no ||
        !same_text(old->parent_backup_id, d->parent_backup_id) || !same_text(p->interrupted.context, p->b.context))
        return true;
    if (!hub_resume_paths(&p->repo, &p->interrupted, old, &c->resume_image, &c->resume_journal, err))
        return false;
    d->resumed = file_exists(c->resume_image) && file_exists(c->resume_journal);
    if (d->resumed)
        return mem_replace(&p->b.resumed_from, p->interrupted.id, err);
    return mem_replace(&c->resume_image, NULL, err) && mem_replace(&c->resume_journal, NULL, err);
}

static bool find_interrupted(Plan *p, Err *err)
{
    bool found = false;
    return p->h->keep_hours == 0 ||
        (store_backup_interrupted(p->h->store, p->b.repository_id, p->b.vm_id, &p->interrupted, &found, err) &&
         (!found || store_disk_list(p->h->store, p->interrupted.id, &p->interrupted_disks, &p->interrupted_len, err)));
}

static bool plan_disk(Plan *p, const AnnounceDisk *a, const StoreDisk *parent, const StoreBackup *point, Err *err)
{
    StoreDisk *d = &p->disks[p->disks_len];
    EngineConfig *c = &p->configs[p->disks_len];
    p->disks_len++;
    cleanup_free char *folder = NULL;
    d->size = a->size;
    bool ok = mem_replace(&d->backup_id, p->b.id, err) && mem_replace(&d->disk_key, a->disk_key, err) &&
        mem_replace(&d->label, a->label, err) && mem_replace(&d->backing_identity, a->backing_identity, err) &&
        mem_replace(&d->change_id, a->change_id, err) && mem_replace(&d->tracking, a->tracking, err) &&
        mem_replace(&d->token, a->token, err) && number(p, a, d, err) && decide(p, a, parent, point, d, c, err) &&
        repo_disk_folder(&p->repo, p->b.context, (unsigned)d->disk_no, &folder, err);
    if (!ok)
        return err_context(err, "disk %s", a->disk_key);
    const char *kind = c->mode == DISK_FULL ? "full" : "incr";
    d->image = mem_printf(err, "%s-%s.qcow2", p->b.stem, kind);
    d->hashes = mem_printf(err, "%s-%s.hashes", p->b.stem, kind);
    c->role = ENGINE_INGEST;
    c->size = a->size;
    c->compression = (unsigned)p->repository.compression;
    c->cluster_size = p->repo.info.cluster_size;
    c->hash_seed = p->repo.info.hash.seed;
    c->image = d->image ? mem_printf(err, "%s/%s.partial-%s", folder, d->image, p->b.attempt) : NULL;
    c->hashes = d->hashes ? mem_printf(err, "%s/%s.partial-%s", folder, d->hashes, p->b.attempt) : NULL;
    c->checkpoint_bytes = p->h->checkpoint_bytes;
    if (p->h->keep_hours > 0 && a->token &&
        !(c->journal = mem_printf(err, "%s/%s-%s.journal.partial-%s", folder, p->b.stem, kind, p->b.attempt)))
        return false;
    return c->image && c->hashes &&
        mem_replace(&c->hash_algorithm, hash_algorithm_name(p->repo.info.hash.algorithm), err) &&
        plan_resume(p, a, parent, d, c, err);
}

// What a disk will store, as far as anybody can tell before: a comparison finds that out as it goes.
static uint64_t bytes_needed(const AnnounceDisk *a, DiskMode mode)
{
    switch (mode) {
    case DISK_FULL: return MIN(a->allocated_bytes, a->size);
    case DISK_TRACKED: return MIN(a->estimated_bytes, a->size);
    case DISK_COMPARE: return 0;
    }
    return a->size;
}

// Room for what the client means to send, before anything is written.
static bool check_space(const Plan *p, const Announce *a, Err *err)
{
    uint64_t need = SPACE_RESERVE, free_bytes, total;
    for (size_t i = 0; i < a->disks_len; i++) {
        uint64_t bytes = bytes_needed(&a->disks[i], p->configs[i].mode);
        struct stat st; // what is there already
        if (p->configs[i].resume_image && lstat(p->configs[i].resume_image, &st) == 0)
            bytes -= MIN(bytes, (uint64_t)st.st_blocks * 512);
        if (!add_u64(need, bytes, &need) || !add_u64(need, bytes / 64, &need))
            return err_set(err, ERR_INVALID, "the disks' sizes are out of range");
    }
    if (!file_space(p->repo.path, &free_bytes, &total, err))
        return false;
    if (free_bytes < need &&
        (!hub_resume_make_way(p->h, p->b.repository_id, p->b.vm_id, err) ||
         !file_space(p->repo.path, &free_bytes, &total, err)))
        return false;
    char want[STR_SIZE_MAX], have[STR_SIZE_MAX];
    str_size(need, want);
    str_size(free_bytes, have);
    return free_bytes >= need ||
        err_set(err, ERR_NO_SPACE,
                "this backup may need %s and repository \"%s\" has %s free; delete old points or "
                "add space",
                want, p->repository.name, have);
}

// An increment lies beside its parent. A folder that somebody removed is replaced by a new one.
static bool choose_context(Plan *p, Err *err)
{
    StoreBackup cleanup_backup parent = {0};
    cleanup_free char *existing = NULL;
    Err gone = ERR_INIT;
    if (p->b.parent_id ? !store_backup_get(p->h->store, p->b.parent_id, &parent, err)
                       : !store_context_get(p->h->store, p->b.repository_id, p->b.vm_id, &existing, err))
        return false;
    if (parent.context)
        existing = mem_take(parent.context);
    if (existing &&
        !repo_context(&p->repo, existing, p->b.vm_name, p->b.vm_id, p->b.created_us, &p->b.context, &gone) &&
        gone.code != ERR_NOT_FOUND) {
        *err = gone;
        return false;
    }
    return (p->b.context ||
            repo_context(&p->repo, NULL, p->b.vm_name, p->b.vm_id, p->b.created_us, &p->b.context, err)) &&
        store_context_set(p->h->store, p->b.repository_id, p->b.vm_id, p->b.context, err);
}

static bool plan_context(Plan *p, const Announce *a, Err *err)
{
    unsigned char random[4];
    char attempt[9], slug[NAME_SLUG];
    json_t *left_out = json_array();
    bool ok = (left_out != NULL || err_no_memory(err)) && choose_context(p, err) &&
        uuid_random_bytes(random, sizeof(random), err);
    for (size_t i = 0; ok && i < a->left_out_len; i++)
        ok = codec_json_push(left_out, json_string(a->left_out[i]), err);
    if (ok) {
        str_hex(random, sizeof(random), attempt);
        name_slug(p->b.vm_name, p->b.vm_id, slug);
        free(mem_take(p->b.left_out));
        ok = name_stem(p->b.id, slug, p->slug_stem, err) && mem_replace(&p->b.stem, p->slug_stem, err) &&
            mem_replace(&p->b.attempt, attempt, err) && codec_json_dump(left_out, &p->b.left_out, err) &&
            mem_replace(&p->b.consistency, a->consistency, err) &&
            mem_replace(&p->b.consistency_detail, a->consistency_detail, err);
    }
    json_decref(left_out);
    p->b.partial = a->left_out_len > 0;
    return ok;
}

// What a record may not hold: one number for two disks (given by the source here, by us there), or sizes whose sum
// nobody can note.
static bool check_disks(Plan *p, Err *err)
{
    uint64_t total = 0;
    for (size_t i = 0; i < p->disks_len; i++) {
        const StoreDisk *d = &p->disks[i];
        if (!add_u64(total, d->size, &total) || total > INT64_MAX)
            return err_set(err, ERR_INVALID, "the disks' sizes are out of range");
        for (size_t k = 0; k < i; k++)
            if (p->disks[k].disk_id == d->disk_id)
                return err_set(err, ERR_INVALID, "disks %s and %s have the same disk_id, %llu", p->disks[k].disk_key,
                               d->disk_key, (unsigned long long)d->disk_id);
    }
    p->b.total_bytes = total;
    return true;
}

// The job's reason is that of the first disk that is not read by its tracking, unless it had one before.
static bool say_why(Plan *p, Err *err)
{
    for (size_t i = 0; i < p->disks_len && !p->b.reason[0]; i++)
        if (!mem_replace(&p->b.reason, p->disks[i].reason, err) ||
            !mem_replace(&p->b.reason_text, p->disks[i].reason_text, err))
            return false;
    return true;
}

static bool plan_disks(Plan *p, const Announce *a, Err *err)
{
    StoreBackup cleanup_backup parent = {0};
    StoreDisk *rows = NULL;
    size_t rows_len = 0;
    bool all_full = true;
    bool ok = find_interrupted(p, err) && (p->disks = mem_calloc(a->disks_len, sizeof(*p->disks), err)) &&
        (p->configs = mem_calloc(a->disks_len, sizeof(*p->configs), err)) &&
        (!p->b.parent_id ||
         (store_backup_get(p->h->store, p->b.parent_id, &parent, err) &&
          store_disk_list(p->h->store, p->b.parent_id, &rows, &rows_len, err)));
    for (size_t i = 0; ok && i < a->disks_len; i++) {
        if (atomic_load(&p->running->interrupted))
            ok = err_set(err, ERR_CANCELLED, "cancelled while the disks were looked at");
        ok = ok && plan_disk(p, &a->disks[i], row_of(rows, rows_len, a->disks[i].disk_key), &parent, err);
        all_full = all_full && ok && p->configs[i].mode == DISK_FULL;
    }
    STORE_LIST_FREE(rows, rows_len, store_disk_clear);
    ok = ok && check_disks(p, err);
    if (ok && all_full && strcmp(p->b.backup_type, "incremental") == 0) // asked for, and not to be had
        ok = mem_replace(&p->b.parent_id, NULL, err);
    ok = ok && say_why(p, err);
    // full only if every disk is
    return ok && mem_replace(&p->b.backup_type, backup_type_name(all_full ? BACKUP_FULL : BACKUP_INCREMENTAL), err);
}

static bool answer_disk(const Plan *p, const StoreDisk *d, AnnounceAnswer *answer, Err *err)
{
    AnnounceAnswerDisk *a = &answer->disks[answer->disks_len++];
    a->disk_id = d->disk_id;
    a->disk_no = (unsigned)d->disk_no;
    a->resume = d->resumed;
    if (!disk_mode_parse(d->mode, &a->mode, err) || !chain_reason_parse(d->reason, &a->reason, err) ||
        !mem_replace(&a->disk_key, d->disk_key, err) || !(a->uri = exporter_uri(d->socket, d->export_name, err)))
        return false;
    // what equals the parent need not travel; and audits of what is not read
    cleanup_free char *leaves = mem_printf(err, "%s" ENGINE_LEAVES, d->export_name);
    a->hash_seed = p->repo.info.hash.seed;
    return leaves && (a->leaves_uri = exporter_uri(d->socket, leaves, err)) &&
        mem_replace(&a->hash_algorithm, hash_algorithm_name(p->repo.info.hash.algorithm), err);
}

static bool start_one(Plan *p, StoreDisk *d, EngineConfig *c, Exporter *x, Err *err)
{
    Err why = ERR_INIT;
    if (exporter_start(p->h->run_dir, p->h->plugin, "disk", c, x, &why))
        return true;
    if (!c->resume_image || why.code == ERR_CANCELLED) {
        *err = why;
        return false;
    }
    // what an interrupted job left cannot be used: from the start, then
    log_warn("a backup does not go on from the interrupted one", LOG_STR("job", p->b.id), LOG_STR("disk", d->disk_key),
             LOG_ERR(&why));
    d->resumed = false;
    return file_unlink(c->image, err) && file_unlink(c->hashes, err) && file_unlink(c->journal, err) &&
        mem_replace(&c->resume_image, NULL, err) && mem_replace(&c->resume_journal, NULL, err) &&
        exporter_start(p->h->run_dir, p->h->plugin, "disk", c, x, err);
}

static bool note_exporter(Plan *p, StoreDisk *d, const Exporter *x, Err *err)
{
    d->exporter_pid = x->proc.pid;
    d->exporter_start = x->proc.start_time;
    if (!mem_replace(&d->socket, x->socket, err) || !mem_replace(&d->control, x->control, err) ||
        !mem_replace(&d->export_name, x->export_name, err))
        return false;
    if (store_disk_set_exporter(p->h->store, d, err))
        return true;
    p->unwritten = err->code == ERR_UNAVAILABLE;
    return false;
}

static bool start_exporters(Plan *p, AnnounceAnswer *answer, Err *err)
{
    Running *r = p->running;
    r->exporters = mem_calloc(p->disks_len, sizeof(*r->exporters), err);
    answer->disks = mem_calloc(p->disks_len, sizeof(*answer->disks), err);
    if (!r->exporters || !answer->disks)
        return false;
    for (size_t i = 0; i < p->disks_len; i++) {
        StoreDisk *d = &p->disks[i];
        Exporter *x = &r->exporters[i];
        hub_exporting(p->h);
        bool ok = start_one(p, d, &p->configs[i], x, err) || err_context(err, "disk %s", d->disk_key);
        r->exporters_len += ok;
        ok = ok && note_exporter(p, d, x, err);
        hub_exporting_done(p->h);
        if (!ok || !answer_disk(p, d, answer, err))
            return false;
    }
    // what was not taken over goes
    return !p->interrupted.id || store_backup_set_resumable(p->h->store, p->interrupted.id, false, err);
}

// Is the job still what it was when the disks were looked at, which may take long?
static bool still_runs(const Plan *p, Err *err)
{
    StoreBackup cleanup_backup now = {0};
    return store_backup_get(p->h->store, p->b.id, &now, err) && hub_is_ours(p->h, now.hub_id, "backup", now.id, err) &&
        (strcmp(now.status, "running") == 0 ||
         err_set(err, ERR_CONFLICT, "backup %s is %s, not running", now.id, now.status));
}

// Another hub may have taken the job over, and have removed its files, before the exporters made theirs. From here on
// they are there to be removed.
static bool is_still_ours(Plan *p, Err *err)
{
    p->lost = !still_runs(p, err);
    return !p->lost;
}

static bool insert_in(Plan *p, Err *err)
{
    bool ok = still_runs(p, err) && (!p->anew || store_disk_remove(p->h->store, p->b.id, err)) &&
        store_backup_set_plan(p->h->store, &p->b, err);
    for (size_t i = 0; ok && i < p->disks_len; i++)
        ok = store_disk_add(p->h->store, &p->disks[i], err);
    return ok;
}

static bool insert_disks(Plan *p, Err *err)
{
    StoreTurn t = STORE_TURN(p->h->store);
    while (store_turn(&t, err))
        t.ok = insert_in(p, err);
    p->unwritten = !t.ok && err->code == ERR_UNAVAILABLE;
    return t.ok;
}

// Announced before, and the answer was lost on the way, or came too late? Then it is given again.
static bool answer_again(Plan *p, const StoreDisk *rows, size_t n, const Announce *a, AnnounceAnswer *answer, Err *err)
{
    if (!(answer->disks = mem_calloc(n, sizeof(*answer->disks), err)))
        return false;
    for (size_t i = 0; i < n; i++) {
        const StoreDisk *d = i < a->disks_len ? row_of(rows, n, a->disks[i].disk_key) : NULL;
        if (!d || n != a->disks_len || d->size != a->disks[i].size || !d->change_id ||
            strcmp(d->change_id, a->disks[i].change_id) != 0 || !d->socket || !d->export_name)
            return err_set(err, ERR_CONFLICT, "other disks were announced already");
        if (!answer_disk(p, d, answer, err))
            return false;
    }
    return true;
}

static bool announce(Plan *p, const Announce *a, AnnounceAnswer *answer, Err *err)
{
    StoreDisk *before = NULL;
    size_t before_len = 0;
    if (!store_backup_get(p->h->store, p->running->id, &p->b, err))
        return false;
    if (strcmp(p->b.status, "running") != 0)
        return err_set(err, ERR_CONFLICT, "backup %s is %s, not running", p->b.id, p->b.status);
    if (!hub_is_ours(p->h, p->b.hub_id, "backup", p->b.id, err))
        return false;
    if (!store_disk_list(p->h->store, p->b.id, &before, &before_len, err))
        return false;
    p->points = (Points){.hub = p->h, .repo = &p->repo, .stop = &p->running->interrupted};
    p->anew = before_len > 0 && p->running->exporters_len == 0;
    p->begun = before_len == 0 || p->anew;
    bool ok = store_repository_get(p->h->store, p->b.repository_id, &p->repository, err) &&
        hub_repo_open(p->h, &p->repository, &p->repo, err);
    if (ok && p->anew && p->b.context && p->b.stem && p->b.attempt)
        ok = repo_abort(&p->repo, p->b.context, p->b.stem, p->b.attempt, err);
    if (ok && !p->begun)
        ok = answer_again(p, before, before_len, a, answer, err);
    else if (ok)
        ok = plan_context(p, a, err) && plan_disks(p, a, err) && check_space(p, a, err) && insert_disks(p, err) &&
            start_exporters(p, answer, err) && is_still_ours(p, err);
    STORE_LIST_FREE(before, before_len, store_disk_clear);
    for (size_t i = 0; i < p->disks_len; i++)
        engine_config_clear(&p->configs[i]);
    return ok;
}

// As if the call had not been: what it started ends, and its files go. Whether its rows are there nobody knows.
static void undo(Plan *p)
{
    Running *r = p->running;
    Err aborting = ERR_INIT;
    for (size_t i = 0; i < r->exporters_len; i++)
        exporter_kill(&r->exporters[i]);
    hub_running_stop_exporters(r);
    if (!repo_abort(&p->repo, p->b.context, p->b.stem, p->b.attempt, &aborting))
        log_warn("partial images of an announcement could not be removed; the next one, or the job's end, does it",
                 LOG_STR("job", p->b.id), LOG_ERR(&aborting));
}

bool hub_job_announce(Hub *h, const char *id, const Announce *a, AnnounceAnswer *ret, Err *err)
{
    Plan p = {.h = h};
    AnnounceAnswer answer = {0};
    if (!hub_running_lock(h, id, &p.running, err))
        return false;
    bool ok = announce(&p, a, &answer, err);
    if (!ok) {
        announce_answer_clear(&answer);
        // a job that could not be set up is over; a refused second announcement changes nothing
        Err ending = ERR_INIT;
        const char *status = err->code == ERR_CANCELLED ? "cancelled" : "failed";
        if (p.unwritten || p.lost)
            undo(&p);
        else if (p.begun && !hub_job_end(h, p.running, status, err_short(err), err->details, true, &ending))
            log_error("a failed job could not be ended", LOG_STR("job", id), LOG_ERR(&ending));
    } else {
        for (size_t i = 0; i < p.disks_len; i++)
            log_info("disk announced", LOG_STR("job", id), LOG_STR("disk", p.disks[i].disk_key),
                     LOG_STR("mode", p.disks[i].mode), LOG_STR("reason", p.disks[i].reason),
                     LOG_STR("why", p.disks[i].reason_text));
        *ret = answer;
    }
    hub_running_unlock(h, p.running);
    plan_clear(&p);
    return ok;
}
