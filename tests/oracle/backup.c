// One backup from the order to the restore point, or to whatever ends it before.
#include "job.h"

#include "merkle.h"
#include "world.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static const char *const kill_names[JOB_KILLS] = {
    [KILL_NONE] = "completed",
    [KILL_FROZEN] = "killed after the freeze",
    [KILL_REQUEST] = "request failed",
    [KILL_WRITE] = "engine could not write",
    [KILL_COPIED] = "killed after the copy",
    [KILL_LIE] = "wrong coverage declared",
    [KILL_SEALING] = "engine could not write its tables",
    [KILL_SEALED] = "killed after the seal",
    [KILL_COMMIT] = "killed in the commit",
    [KILL_ANSWER] = "answer lost",
};

const char *job_kill_name(JobKill k)
{
    return kill_names[k];
}

// ---- the order

static bool choose_parent(Job *j, Err *err)
{
    History *h = j->h;
    if (!repo_scan(&h->site->repo, &j->scan, err))
        return false;
    for (size_t i = 0; i < j->scan.len; i++) {
        const Record *r = &j->scan.records[i];
        if (str_eq(r->vm_id, j->vm->id) && (!j->parent || r->sequence > j->parent->sequence))
            j->parent = r;
    }
    const Point *newest = history_newest(h, j->vm->index);
    if (!newest != !j->parent || (newest && !str_eq(newest->id, j->parent->backup_id)))
        return history_fail(err, "the newest point is %s and not %s", j->parent ? j->parent->backup_id : "none",
                            newest ? newest->id : "none");
    j->base = j->parent;
    if (h->spec->plant == PLANT_STALE_PARENT || h->spec->plant == PLANT_WRONG_BASE) {
        const char *older = j->parent ? j->parent->parent_backup_id : NULL;
        j->base = older ? history_find_record(&j->scan, older) : j->parent;
    }
    return true;
}

static bool name_job(Job *j, Err *err)
{
    History *h = j->h;
    char slug[NAME_SLUG];
    name_slug(j->vm->name, j->vm->id, slug);
    (void)snprintf(j->attempt, sizeof j->attempt, "%016" PRIx64, rng_next(&h->rng));
    j->sequence = ++j->at->sequence;
    if (!name_backup_id(j->vm->name, h->now_us / 1000000, j->id, err) || !name_stem(j->id, slug, j->stem, err))
        return false;
    char *context;
    if (!repo_context(&h->site->repo, j->at->context, j->vm->name, j->vm->id, h->now_us, &context, err))
        return false;
    free(j->at->context);
    j->at->context = context;
    return true;
}

// ---- the freeze: all disks of the VM at one instant

static bool freeze_disk(Job *j, GuestDisk *g, const BitmapsOwner *owner, Err *err)
{
    const HistorySpec *spec = j->h->spec;
    JobDisk *d = &j->disks[j->len++];
    GuestParent parent = {0};
    d->guest = g;
    for (size_t i = 0; j->parent && i < j->parent->disks_len; i++) {
        const RecordDisk *r = &j->parent->disks[i];
        if (str_eq(r->disk_key, g->key))
            parent = (GuestParent){.change_id = r->change_id, .tracking = r->tracking, .size = r->size};
    }
    GuestFault fault = spec->plant == PLANT_GAP_IN_LINE ? GUEST_FAULT_GAP : GUEST_FAULT_NONE;
    if (!guest_freeze(g, owner, &parent, fault, &d->view, err))
        return false;
    (void)snprintf(d->ref.key, sizeof d->ref.key, "%s", g->key);
    d->ref.size = g->size;
    d->ref.bytes = mem_calloc(1, g->size, err);
    if (!d->ref.bytes)
        return false;
    memcpy(d->ref.bytes, g->bytes, g->size);
    return merkle_root(&j->h->site->repo.info.hash, j->h->site->repo.info.cluster_size, d->ref.bytes, d->ref.size,
                       &d->ref.root, err);
}

static bool freeze(Job *j, Err *err)
{
    BitmapsOwner owner = {.repository = j->h->site->repo.info.uuid, .vm = j->vm->id};
    size_t out = j->vm->len > 1 && rng_chance(&j->h->rng, 6) ? (size_t)rng_below(&j->h->rng, j->vm->len) : SIZE_MAX;
    for (size_t i = 0; i < j->vm->len; i++) {
        if (i == out)
            (void)snprintf(j->left_out, sizeof j->left_out, "%s", j->vm->disks[i].key);
        else if (!freeze_disk(j, &j->vm->disks[i], &owner, err))
            return false;
    }
    if (j->h->spec->plant == PLANT_SWAPPED_DISKS && j->len > 1) {
        GuestView v = j->disks[0].view;
        j->disks[0].view = j->disks[1].view;
        j->disks[1].view = v;
    }
    return true;
}

// ---- how it ends

// The hub clears up after a job that failed: at once, or at its next start.
static bool give_up(Job *j, Err *err)
{
    History *h = j->h;
    for (size_t i = 0; i < j->len; i++) {
        writer_free(j->disks[i].writer);
        j->disks[i].writer = NULL;
    }
    if (rng_chance(&h->rng, 50))
        return repo_abort(&h->site->repo, j->at->context, j->stem, j->attempt, err);
    RepoScan after;
    if (!history_recover(h, j->attempt, &after, err))
        return false;
    bool listed = history_find_record(&after, j->id) != NULL;
    repo_scan_clear(&after);
    return !listed || history_fail(err, "%s is listed, and was never committed", j->id);
}

static bool is_listed(Job *j, bool *ret, Err *err)
{
    RepoScan scan;
    if (!repo_scan(&j->h->site->repo, &scan, err))
        return false;
    *ret = history_find_record(&scan, j->id) != NULL;
    repo_scan_clear(&scan);
    return true;
}

// The hub died in the commit. Whatever it does next: the point is listed, or nothing is left of it.
static bool after_death(Job *j, bool *ret_listed, Err *err)
{
    History *h = j->h;
    RepoScan after;
    uint64_t way = rng_below(&h->rng, 4);
    if (!history_reopen(h, err))
        return false;
    if (way <= 1) { // the database says committing: it goes on
        if (way == 1) {
            if (!history_recover(h, NULL, &after, err))
                return false;
            repo_scan_clear(&after);
        }
        if (!repo_commit(&h->site->repo, &j->rec, j->stem, j->attempt, err))
            return err_context(err, "committing again");
        *ret_listed = true;
        return true;
    }
    if (way == 2) { // another hub took over, or the database was lost
        if (!history_recover(h, j->attempt, &after, err))
            return false;
        repo_scan_clear(&after);
    } else if (!repo_abort(&h->site->repo, j->at->context, j->stem, j->attempt, err)) {
        return false;
    }
    return is_listed(j, ret_listed, err);
}

static bool commit(Job *j, bool *ret_listed, Err *err)
{
    History *h = j->h;
    Err why = ERR_INIT;
    if (!job_record_make(j, err))
        return false;
    if (j->kill == KILL_COMMIT)
        world_kill_at((unsigned)rng_below(&h->rng, 12 + 8 * j->len));
    bool ok = repo_commit(&h->site->repo, &j->rec, j->stem, j->attempt, &why);
    bool died = world_is_dead();
    world_revive();
    *ret_listed = true;
    if (!died)
        return ok || err_set(err, why.code, "%s", why.details);
    // Dead while it tidied up, after the point came to be: it may say so.
    h->spec->stats->kills[KILL_COMMIT]++;
    if (!after_death(j, ret_listed, err))
        return err_context(err, "after a death in the commit");
    history_note(h, "    died in the commit; %s", *ret_listed ? "the point is there" : "nothing is left of it");
    return !ok || *ret_listed || history_fail(err, "a commit went well, and its point is gone");
}

// Planted: one byte of the image turns over.
static bool flip_byte(Job *j, Err *err)
{
    const JobDisk *d = &j->disks[0];
    uint8_t byte;
    uint64_t at = j->h->site->repo.info.cluster_size +
        rng_below(&j->h->rng, d->summary.image_bytes - j->h->site->repo.info.cluster_size);
    cleanup_free char *path = repo_path_disk_file(&j->h->site->repo, j->at->context, d->no, d->image, err);
    if (!path)
        return false;
    cleanup_close int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || pread(fd, &byte, 1, (off_t)at) != 1)
        return err_set(err, ERR_IO, "%s cannot be changed", path);
    byte ^= 1;
    return pwrite(fd, &byte, 1, (off_t)at) == 1 || err_set(err, ERR_IO, "%s cannot be changed", path);
}

static bool add_point(Job *j, Err *err)
{
    Point p = {.vm = j->vm->index, .sequence = j->sequence};
    (void)snprintf(p.id, sizeof p.id, "%s", j->id);
    for (size_t i = 0; i < j->len; i++) {
        p.disks[p.len++] = j->disks[i].ref;
        j->disks[i].ref.bytes = NULL;
    }
    if (!history_add(j->h, &p, err)) {
        history_point_clear(&p);
        return false;
    }
    return j->h->spec->plant != PLANT_FLIPPED_BYTE || flip_byte(j, err);
}

static void settle(Job *j)
{
    BitmapsOwner owner = {.repository = j->h->site->repo.info.uuid, .vm = j->vm->id};
    if (rng_chance(&j->h->rng, 10)) // the client dies before it
        return;
    for (size_t i = 0; i < j->len; i++)
        if (j->disks[i].guest->tracks)
            guest_settle(j->disks[i].guest, &owner, j->disks[i].view.change_id);
}

// ---- the steps

static bool copy_all(Job *j, bool *ret_killed, Err *err)
{
    for (size_t i = 0; i < j->len && !*ret_killed; i++)
        if (!job_disk_prepare(j, &j->disks[i], err) || !job_disk_copy(j, &j->disks[i], ret_killed, err))
            return false;
    return true;
}

static bool seal_all(Job *j, bool *ret_killed, Err *err)
{
    size_t lie = j->kill == KILL_LIE ? (size_t)rng_below(&j->h->rng, j->len) : SIZE_MAX;
    for (size_t i = 0; i < j->len && !*ret_killed; i++)
        if (!job_disk_seal(j, &j->disks[i], i == lie, ret_killed, err))
            return false;
    return true;
}

static void count_point(const Job *j)
{
    HistoryStats *stats = j->h->spec->stats;
    for (size_t i = 0; i < j->len; i++) {
        stats->modes[j->disks[i].mode]++;
        stats->reasons[j->disks[i].reason]++;
    }
}

// While this job runs: the hub dies and adopts it, or another VM is backed up to the same repository.
static bool others(Job *j, Err *err)
{
    History *h = j->h;
    RepoScan after;
    if (rng_chance(&h->rng, 8)) {
        history_note(h, "    the hub starts anew, and the job goes on");
        if (!history_recover(h, NULL, &after, err))
            return false;
        repo_scan_clear(&after);
    }
    Vm *other = &h->vms[h->vms_len - 1 - j->vm->index];
    if (h->running_len == HISTORY_VMS || other == j->vm || other->len == 0 || !rng_chance(&h->rng, 15))
        return true;
    history_note(h, "    meanwhile:");
    h->now_us += 1000000;
    bool ok = backup_run(h, other, err);
    history_note(h, "    back to VM %zu", j->vm->index);
    return ok;
}

static bool run(Job *j, bool *ret_killed, Err *err)
{
    bool listed = false;
    *ret_killed = true;
    if (!choose_parent(j, err) || !name_job(j, err))
        return false;
    j->h->running[j->h->running_len++] = j->attempt;
    if (!freeze(j, err))
        return false;
    if (j->kill == KILL_FROZEN)
        return true;
    *ret_killed = false;
    if (!copy_all(j, ret_killed, err) || *ret_killed)
        return *ret_killed && err->code == ERR_NONE;
    *ret_killed = j->kill == KILL_COPIED;
    if (*ret_killed)
        return true;
    if (!others(j, err))
        return false;
    if (!seal_all(j, ret_killed, err) || *ret_killed)
        return *ret_killed && err->code == ERR_NONE;
    if (!others(j, err))
        return false;
    *ret_killed = j->kill == KILL_SEALED;
    if (*ret_killed)
        return true;
    if (!commit(j, &listed, err))
        return false;
    if (!listed) { // cleared up already
        j->kill = KILL_NONE;
        return true;
    }
    count_point(j);
    if (!add_point(j, err))
        return false;
    if (j->kill != KILL_ANSWER)
        settle(j);
    return true;
}

bool backup_run(History *h, Vm *vm, Err *err)
{
    Job *j = mem_calloc(1, sizeof *j, err);
    if (!j)
        return false;
    bool killed = false;
    size_t running = h->running_len;
    j->h = h;
    j->vm = vm;
    j->at = &h->site->vms[vm->index];
    j->full_requested = rng_chance(&h->rng, 7);
    j->kill = rng_chance(&h->rng, 35) ? (JobKill)rng_between(&h->rng, KILL_FROZEN, JOB_KILLS - 1) : KILL_NONE;
    history_note(h, "backup of VM %zu to repository %zu at %" PRId64 "%s; %s", vm->index, (size_t)(h->site - h->sites),
                 h->now_us / 1000000, j->full_requested ? ", full" : "", job_kill_name(j->kill));
    h->spec->stats->backups++;
    bool ok = run(j, &killed, err);
    if (ok && killed) {
        h->spec->stats->kills[j->kill]++;
        ok = give_up(j, err);
    } else if (ok && j->kill == KILL_ANSWER) {
        h->spec->stats->kills[j->kill]++;
    }
    if (!ok)
        (void)err_context(err, "backup %s", j->id);
    h->running_len = running;
    for (size_t i = 0; i < j->len; i++)
        job_disk_clear(&j->disks[i]);
    record_clear(&j->rec);
    repo_scan_clear(&j->scan);
    free(j);
    return ok;
}
