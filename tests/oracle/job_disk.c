// One disk of a backup: how it is backed up, its copy, its seal.
#include "job.h"

#include "merkle.h"
#include "world.h"

#include <inttypes.h>
#include <stdio.h>

static const RecordDisk *disk_of(const Record *rec, const char *key)
{
    for (size_t i = 0; rec && i < rec->disks_len; i++)
        if (str_eq(rec->disks[i].disk_key, key))
            return &rec->disks[i];
    return NULL;
}

static Reference *reference_of(History *h, const char *backup_id, const char *key)
{
    Point *p = history_find(h, backup_id);
    for (size_t i = 0; p && i < p->len; i++)
        if (str_eq(p->disks[i].key, key))
            return &p->disks[i];
    return NULL;
}

// ---- the mode

// As the hub does it: every layer's .hashes against its record.
static bool open_chain(Job *j, JobDisk *d, const Record *of, Err *err)
{
    History *h = j->h;
    if (!repo_chain(&h->site->repo, of, d->guest->key, history_find_record, &j->scan, &d->chain, err))
        return false;
    for (size_t i = 0; i < d->chain.len; i++)
        if (!repo_check_layer(&h->site->repo, d->chain.records[i], d->chain.disks[i], REPO_CHECK_HASHES, err)) {
            repo_chain_clear(&d->chain);
            return false;
        }
    return true;
}

// What the oracle knows of the damage, against what the repository's own check says.
static bool judge_damage(Job *j, JobDisk *d, bool damaged, const Err *why, Err *err)
{
    bool expected = false;
    const Record *rec = j->parent;
    const RecordDisk *x = d->parent;
    while (x) {
        const Reference *ref = reference_of(j->h, rec->backup_id, d->guest->key);
        expected = expected || (ref && ref->hidden);
        rec = x->parent_backup_id ? history_find_record(&j->scan, x->parent_backup_id) : NULL;
        x = disk_of(rec, d->guest->key);
    }
    if (damaged && !expected)
        return history_fail(err, "the chain of %s in %s is said to be damaged: %s", d->guest->key, j->parent->backup_id,
                            why->details);
    return damaged == expected || history_fail(err, "the damaged .hashes below %s was not noticed", d->guest->key);
}

// Planted: the image goes onto an older point than the newest. A stale parent's hashes are used too; with the wrong
// base, they are the newest one's.
static bool plant_base(Job *j, JobDisk *d, const RecordDisk **base, bool *damaged, Err *err)
{
    RepoChain newest = d->chain;
    Err cause = ERR_INIT;
    if (!d->parent)
        *base = NULL; // a new disk: no plant
    if (!*base || *damaged)
        return true;
    d->chain = (RepoChain){0};
    *damaged = !open_chain(j, d, j->base, &cause);
    if (j->h->spec->plant == PLANT_WRONG_BASE && !*damaged) {
        repo_chain_clear(&d->chain);
        d->chain = newest;
    } else {
        repo_chain_clear(&newest);
    }
    return cause.code == ERR_NONE || cause.code == ERR_DAMAGED || err_set(err, cause.code, "%s", cause.details);
}

static bool decide(Job *j, JobDisk *d, Err *err)
{
    Err damage = ERR_INIT;
    const RecordDisk *base = disk_of(j->base, d->guest->key);
    d->parent = disk_of(j->parent, d->guest->key);
    bool damaged = d->parent && !open_chain(j, d, j->parent, &damage);
    if (!judge_damage(j, d, damaged, &damage, err))
        return false;
    if (j->base != j->parent && !plant_base(j, d, &base, &damaged, err))
        return false;
    const Point *parent = j->parent ? history_find(j->h, j->parent->backup_id) : NULL;
    ChainInput in = {
        .full_requested = j->full_requested,
        .have_parent_point = j->parent != NULL,
        .chain_length = base ? base->chain_length : 0,
        .chain_limit = j->h->site->chain_limit,
        .have_parent_disk = base != NULL,
        .parent_damaged = damaged,
        .parent_suspect = parent && parent->suspect,
        .size = d->view.size,
        .parent_size = base ? base->size : 0,
        .source_tracks = d->guest->tracks,
        .base_change_id = d->view.base_change_id[0] ? d->view.base_change_id : NULL,
        .parent_change_id = d->parent ? d->parent->change_id : NULL,
        .parent_tracking = d->parent && d->parent->tracking,
    };
    d->mode = chain_decide(&in, &d->reason);
    d->chain_length = 1;
    if (d->mode == DISK_FULL)
        return true;
    d->chain_length = base->chain_length + 1;
    (void)snprintf(d->backing_name, sizeof d->backing_name, "%s", base->image);
    return true;
}

// ---- the engine

static bool number(Job *j, JobDisk *d, Err *err)
{
    unsigned next = 0, *mine = &j->at->numbers[d->guest->id - HISTORY_DISK_ID];
    for (size_t i = 0; i < HISTORY_KEYS; i++)
        next = MAX(next, j->at->numbers[i]);
    if (*mine == 0) {
        unsigned no;
        if (!repo_next_disk_no(&j->h->site->repo, j->at->context, next, &no, err))
            return false;
        *mine = no + 1;
    }
    d->no = *mine - 1;
    return true;
}

static bool name_files(Job *j, JobDisk *d, Err *err)
{
    const char *kind = d->mode == DISK_FULL ? "full" : "incr";
    cleanup_free char *folder = NULL;
    if (!number(j, d, err) || !repo_disk_folder(&j->h->site->repo, j->at->context, d->no, &folder, err))
        return false;
    (void)snprintf(d->image, sizeof d->image, "%s-%s.qcow2", j->stem, kind);
    (void)snprintf(d->hashes_name, sizeof d->hashes_name, "%s-%s.hashes", j->stem, kind);
    d->image_path = mem_printf(err, "%s/%s.partial-%s", folder, d->image, j->attempt);
    d->hashes_path = mem_printf(err, "%s/%s.partial-%s", folder, d->hashes_name, j->attempt);
    return d->image_path && d->hashes_path;
}

static bool open_hashes(JobDisk *d, const HashGeometry *geo, Err *err)
{
    cleanup_free ChainLayerPath *layers = mem_calloc(d->chain.len, sizeof *layers, err);
    if (!layers)
        return false;
    for (size_t i = 0; i < d->chain.len; i++)
        layers[i] = (ChainLayerPath){d->chain.layers[i].image, d->chain.layers[i].hashes};
    return chain_hashes_open(layers, d->chain.len, geo, &d->hashes, err);
}

bool job_disk_prepare(Job *j, JobDisk *d, Err *err)
{
    History *h = j->h;
    const RepositoryInfo *info = &h->site->repo.info;
    if (!decide(j, d, err) || !name_files(j, d, err))
        return err_context(err, "disk %s", d->guest->key);
    if (d->mode != DISK_FULL && !open_hashes(d, &h->site->repo.geo, err))
        return err_context(err, "disk %s", d->guest->key);
    WriterSpec spec = {
        .image_path = d->image_path,
        .hashes_path = d->hashes_path,
        .backing_name = d->mode == DISK_FULL ? NULL : d->backing_name,
        .size = d->view.size,
        .cluster_bits = (uint32_t)__builtin_ctz(info->cluster_size),
        .hash = info->hash,
        .mode = d->mode,
        .parent = d->hashes,
    };
    // One after the other: the order within an initializer is the compiler's.
    spec.direct_io = rng_chance(&h->rng, 10);
    spec.cache_groups = rng_chance(&h->rng, 50) ? (unsigned)rng_between(&h->rng, 1, 3) : 0;
    spec.compression = rng_chance(&h->rng, 40) ? (unsigned)rng_between(&h->rng, 1, 4) : 0;
    d->noise = rng_chance(&h->rng, 30) ? (unsigned)rng_between(&h->rng, 10, 60) : 0;
    history_note(h, "    %s: %" PRIu64 " bytes, %s%s%s%s%s", d->guest->key, d->view.size, disk_mode_name(d->mode),
                 d->reason ? ", " : "", chain_reason_name(d->reason), d->view.lost[0] ? ": " : "", d->view.lost);
    return writer_open(&spec, &d->writer, err) || err_context(err, "disk %s", d->guest->key);
}

// ---- the copy

static void meanwhile(void *ctx)
{
    Job *j = ctx;
    guest_burst(&j->vm->disks[rng_below(&j->h->rng, j->vm->len)], &j->h->rng);
}

static EndsPlant plant_of(const History *h)
{
    switch (h->spec->plant) {
    case PLANT_SKIP_ZERO_WRITE: return ENDS_SKIP_ZERO;
    case PLANT_DROP_LAST_WRITE: return ENDS_DROP_LAST;
    case PLANT_HOLE_AS_ZERO: return ENDS_HOLE_AS_ZERO;
    case PLANT_THAWED_VIEW: return ENDS_THAWED;
    case PLANT_RESIZE_BLIND: return ENDS_RESIZE_BLIND;
    default: return ENDS_HONEST;
    }
}

// Nothing of what went wrong may have been swallowed.
static bool judge_copy(const EndsRun *run, bool copied, const Err *why, bool *ret_killed, Err *err)
{
    bool must_fail = world_is_dead() || (run->failed && run->failure != ENDS_CANCEL);
    bool may_fail = must_fail || run->failed;
    if (copied && must_fail)
        return history_fail(err, "a request failed, and the copy went well");
    if (!copied && !may_fail)
        return err_set(err, why->code, "%s", why->details);
    *ret_killed = !copied;
    return true;
}

// What was sent, by the mover's account and by what came through.
static bool judge_account(const Job *j, JobDisk *d, Blocks *to, const MoverResult *r, Err *err)
{
    Coverage got;
    if (!ends_coverage(to, &got, err))
        return false;
    d->coverage = r->coverage;
    d->transferred = r->total.transferred_bytes;
    d->changed = r->total.changed_bytes;
    if (j->h->spec->plant != PLANT_NONE)
        d->coverage = got; // a client that lies does so everywhere
    if (d->coverage.bytes != got.bytes || d->coverage.extents != got.extents || d->coverage.digest != got.digest)
        return history_fail(err, "the mover's account is not of what it sent");
    if (j->h->spec->plant == PLANT_NONE &&
        (r->total.done_bytes != d->view.size || (d->mode != DISK_TRACKED && got.bytes != d->view.size)))
        return history_fail(err, "the mover did not send everything, and says it is done");
    return true;
}

bool job_disk_copy(Job *j, JobDisk *d, bool *ret_killed, Err *err)
{
    History *h = j->h;
    uint32_t cluster = h->site->repo.info.cluster_size;
    cleanup_blocks Blocks *from = NULL, *to = NULL;
    atomic_bool cancel = false;
    EndsRun run = {.rng = &h->rng,
                   .plant = plant_of(h),
                   .cancel = &cancel,
                   .live = d->guest,
                   .meanwhile = meanwhile,
                   .meanwhile_ctx = j,
                   .noise = d->noise};
    if (j->kill == KILL_REQUEST) {
        run.failure = (EndsFailure)rng_between(&h->rng, ENDS_FAIL_START, ENDS_CANCEL);
        run.fail_at = (unsigned)rng_between(&h->rng, 1, rng_chance(&h->rng, 50) ? 5 : 40);
    }
    bool tracked = d->mode == DISK_TRACKED;
    if (!ends_source(&d->view, tracked, cluster, &run, &from, err) ||
        !ends_sink(d->writer, &d->view, d->mode, cluster, &run, &to, err))
        return false;
    MoverSpec spec = {.from = from,
                      .to = to,
                      .size = d->view.size,
                      .cluster_size = cluster,
                      .plan = tracked ? MOVER_TRACKED : MOVER_ALL,
                      .cancel = &cancel};
    spec.request_bytes = rng_chance(&h->rng, 50) ? cluster * (uint32_t)rng_between(&h->rng, 1, 8) : 0;
    spec.in_flight = (unsigned)rng_between(&h->rng, 1, 8);
    if (j->kill == KILL_WRITE)
        world_kill_at((unsigned)rng_below(&h->rng, rng_chance(&h->rng, 60) ? 5 : 30));
    MoverResult result = {0};
    Err why = ERR_INIT;
    bool copied = mover_copy(&spec, &result, &why);
    bool ok = judge_copy(&run, copied, &why, ret_killed, err);
    world_revive();
    if (!ok)
        return err_context(err, "copying %s", d->guest->key);
    if (h->spec->plant == PLANT_LATE_BITMAP)
        for (size_t i = 0; i < d->guest->tracker.len; i++) // whatever was written since the freeze is not seen
            if (d->guest->tracker.bitmaps[i].recording)
                memset(d->guest->tracker.bitmaps[i].bits, 0, d->guest->tracker.bitmaps[i].granules);
    return !copied || judge_account(j, d, to, &result, err);
}

// ---- the seal

// The clusters that this image must hold: those that differ from what the parent shows, no more and no fewer.
static void count_clusters(const JobDisk *d, const Reference *parent, uint64_t cluster, uint64_t *ret_stored,
                           uint64_t *ret_zeroed)
{
    static uint8_t mine[2u << 20], theirs[2u << 20];
    *ret_stored = *ret_zeroed = 0;
    for (uint64_t at = 0; at < d->ref.size; at += cluster) {
        memset(mine, 0, cluster);
        memset(theirs, 0, cluster);
        memcpy(mine, d->ref.bytes + at, MIN(cluster, d->ref.size - at));
        if (parent && at < parent->size)
            memcpy(theirs, parent->bytes + at, MIN(cluster, parent->size - at));
        if (memcmp(mine, theirs, cluster) == 0)
            continue;
        *(hash_is_zero(mine, cluster) ? ret_zeroed : ret_stored) += 1;
    }
}

static bool judge_summary(Job *j, JobDisk *d, Err *err)
{
    const HashesSummary *s = &d->summary;
    uint64_t stored, zeroed;
    if (j->h->spec->plant != PLANT_NONE)
        return true; // what reads the point has to notice
    if (s->size != d->view.size || s->received_data + s->received_zero != d->coverage.bytes ||
        s->covered_bytes != d->coverage.bytes || s->covered_extents != d->coverage.extents ||
        s->covered_digest != d->coverage.digest)
        return history_fail(err, "%s: the engine's account is not of what arrived", d->guest->key);
    if (!hash_equal(&s->root, &d->ref.root))
        return history_fail(err, "%s: the root hash is not the disk's", d->guest->key);
    const Reference *parent = d->mode == DISK_FULL ? NULL : reference_of(j->h, j->parent->backup_id, d->guest->key);
    count_clusters(d, parent, j->h->site->repo.info.cluster_size, &stored, &zeroed);
    if (d->noise == 0 && (s->stored_clusters != stored || s->zeroed_clusters != zeroed))
        return history_fail(
            err, "%s: %" PRIu64 " clusters stored and %" PRIu64 " zeroed instead of %" PRIu64 " and %" PRIu64,
            d->guest->key, s->stored_clusters, s->zeroed_clusters, stored, zeroed);
    return true;
}

static WriterExpect lie_about(Job *j, WriterExpect e)
{
    switch (rng_below(&j->h->rng, 3)) {
    case 0: e.bytes += rng_chance(&j->h->rng, 50) ? 1 : UINT64_MAX; break;
    case 1: e.extents++; break;
    default: e.digest ^= UINT64_C(1) << rng_below(&j->h->rng, 64);
    }
    return e;
}

bool job_disk_seal(Job *j, JobDisk *d, bool lie, bool *ret_killed, Err *err)
{
    History *h = j->h;
    WriterExpect expect = {d->coverage.extents, d->coverage.bytes, d->coverage.digest};
    bool say = lie || d->mode == DISK_TRACKED || rng_chance(&h->rng, 50);
    Err why = ERR_INIT;
    if (lie)
        expect = lie_about(j, expect);
    if (j->kill == KILL_SEALING)
        world_kill_at((unsigned)rng_below(&h->rng, 9));
    bool ok = writer_seal(d->writer, say ? &expect : NULL, &d->summary, &d->digest, &why);
    bool died = world_is_dead();
    world_revive();
    *ret_killed = !ok;
    if (lie) {
        h->spec->stats->refused++;
        return (!ok && why.code == ERR_CONFLICT) ||
            history_fail(err, "a wrong coverage of %s was not refused: %s", d->guest->key, ok ? "sealed" : why.details);
    }
    if (ok && died)
        return history_fail(err, "%s was sealed although a write or a sync failed", d->guest->key);
    if (!ok && !died)
        return err_set(err, why.code, "sealing %s: %s", d->guest->key, why.details);
    return !ok || judge_summary(j, d, err);
}

void job_disk_clear(JobDisk *d)
{
    writer_free(d->writer);
    chain_hashes_free(d->hashes);
    repo_chain_clear(&d->chain);
    guest_view_clear(&d->view);
    free(d->ref.bytes);
    free(d->image_path);
    free(d->hashes_path);
    *d = (JobDisk){0};
}
