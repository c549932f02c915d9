// Copies the disks of a job, some at a time, each with a pipeline and a thread of its own.
#include "base/clock.h"
#include "base/log.h"
#include "service/client/job.h"
#include "wire/hub_nbd.h"

#define CONNECT_MS 15000
#define PARALLEL_DEFAULT 2

typedef struct Copy {
    Job *job;
    JobDisk *disk;
    HubNbd *way, *leaves_way; // to the export; owned
    Blocks *from, *to;        // owned
    MoverKnown known;         // its leaves, owned; NULL: everything travels
    MoverResume resume;       // its end, owned; NULL: nothing changed since
    MoverProgress before;     // of a first pass, where this is a second
    pthread_t thread;
    bool started;
} Copy;

static void on_progress(void *ctx, const MoverProgress *p)
{
    Copy *c = ctx;
    pthread_mutex_lock(&c->job->lock);
    c->disk->progress = *p;
    c->disk->progress.transferred_bytes += c->before.transferred_bytes;
    c->disk->progress.zero_bytes += c->before.zero_bytes;
    c->disk->progress.changed_bytes += c->before.changed_bytes;
    c->disk->progress.kept_bytes += c->before.kept_bytes;
    if (c->before.size > 0) // a second pass: the bar does not begin anew
        c->disk->progress.done_bytes = c->before.done_bytes;
    pthread_mutex_unlock(&c->job->lock);
}

static void log_copied(const Copy *c, const MoverResult *r)
{
    log_info("disk copied", LOG_STR("job", c->job->spec->job_id), LOG_STR("disk", c->disk->source->key),
             LOG_STR("mode", disk_mode_name(c->disk->answer->mode)), LOG_NUM("size", c->disk->source->size),
             LOG_NUM("transferred_bytes", r->total.transferred_bytes), LOG_NUM("zero_bytes", r->total.zero_bytes),
             LOG_NUM("kept_bytes", r->total.kept_bytes));
}

static void close_ends(Copy *c)
{
    blocks_cleanup(&c->known.leaves);
    blocks_cleanup(&c->resume.since);
    blocks_cleanup(&c->to);
    blocks_cleanup(&c->from);
    hub_nbd_free(c->leaves_way);
    hub_nbd_free(c->way);
    c->way = c->leaves_way = NULL;
}

// Everything is read and sent once more; what the parent has the same is not stored.
static bool send_all(Copy *c, const MoverSpec *first, MoverResult *result, Err *err)
{
    MoverSpec spec = *first;
    MoverResult all;
    log_error("ALARM: change tracking had missed changes; all of the disk is compared",
              LOG_STR("job", c->job->spec->job_id), LOG_STR("disk", c->disk->source->key));
    c->before = result->total;
    spec.plan = MOVER_READ;
    spec.known = NULL; // of this pass: its leaves show what the first one sent
    spec.resume = NULL;
    spec.planned = NULL;
    if (!mover_copy(&spec, &all, err))
        return err_context(err, "comparing the disk, since its audit failed");
    result->total.transferred_bytes += all.total.transferred_bytes;
    result->total.changed_bytes += all.total.changed_bytes;
    result->total.kept_bytes = 0;
    result->coverage = all.coverage;
    return true;
}

static bool copy_audited(Copy *c, MoverSpec *spec, MoverResult *ret, uint64_t *ret_audited, Err *err)
{
    AuditSpec a = {.size = spec->size, .cluster_size = spec->cluster_size, .blocks = c->job->order.audit_blocks};
    Audit *audit = NULL;
    AuditResult found;
    int64_t began = clock_mono_ms();
    if (!audit_new(&a, &audit, err))
        return false;
    spec->planned = audit_planned;
    spec->planned_ctx = audit;
    bool fine = mover_copy(spec, ret, err) &&
        audit_disk(c->job, c->disk, audit, c->from, &c->known, clock_mono_ms() - began, &found, err) &&
        (found.figures.wrong == 0 || send_all(c, spec, ret, err));
    audit_free(audit);
    *ret_audited = fine ? found.read_bytes : 0;
    return fine;
}

// Does a full leave out what the hypervisor calls not in use? Only where an audit can prove something of it; and not in
// a comparison, whose parent has data that a wrong word would put zeros over.
static bool leaves_out(const Copy *c)
{
    const AnnounceAnswerDisk *a = c->disk->answer;
    uint64_t clusters = (c->disk->source->size + c->job->order.cluster_size - 1) / c->job->order.cluster_size;
    return c->from->zeros_on_word && a->mode == DISK_FULL && !c->disk->source->token && a->leaves_uri &&
        c->job->order.audit_blocks >= MIN(AUDIT_BLOCKS_CLEAN, MAX(1, clusters));
}

// Is some of what is not read looked at? The sink's hashes are needed for it.
static bool is_audited(const Copy *c)
{
    const AnnounceAnswerDisk *a = c->disk->answer;
    return (a->mode == DISK_TRACKED || a->resume || leaves_out(c)) && c->job->order.audit_blocks > 0 && a->leaves_uri;
}

static MoverPlan plan_of(const Copy *c)
{
    if (c->disk->answer->mode == DISK_TRACKED)
        return MOVER_TRACKED;
    return c->from->zeros_on_word && !leaves_out(c) ? MOVER_READ : MOVER_ALL;
}

static void *copy_thread(void *ctx)
{
    Copy *c = ctx;
    Job *j = c->job;
    MoverResult result;
    uint64_t audited_bytes = 0;
    Err err = ERR_INIT;
    DiskMode mode = c->disk->answer->mode;
    MoverSpec spec = {
        .from = c->from,
        .to = c->to,
        .size = c->disk->source->size,
        .cluster_size = j->order.cluster_size,
        .plan = plan_of(c),
        .known = c->known.leaves && mode == DISK_COMPARE ? &c->known : NULL,
        .resume = c->disk->answer->resume ? &c->resume : NULL,
        .cancel = j->spec->stop,
        .progress = on_progress,
        .progress_ctx = c,
    };
    bool fine =
        is_audited(c) ? copy_audited(c, &spec, &result, &audited_bytes, &err) : mover_copy(&spec, &result, &err);
    close_ends(c);
    if (fine) {
        log_copied(c, &result);
    } else {
        (void)err_context(&err, "disk %s", c->disk->source->key);
        job_fail(j, &err);
    }
    pthread_mutex_lock(&j->lock);
    if (fine)
        c->disk->result = result;
    c->disk->audited_bytes = audited_bytes;
    c->disk->copied = fine;
    j->copying--;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

static bool open_export(Copy *c, const char *uri, NbdSpec *nbd, HubNbd **ret_way, Blocks **ret, Err *err)
{
    cleanup_free char *path = NULL;
    const Job *j = c->job;
    if (!hub_api_disk_path(j->spec->job_id, c->disk->source->key, &path, err) ||
        !hub_nbd_new(j->hub, uri, path, ret_way, err))
        return false;
    hub_nbd_spec(*ret_way, nbd);
    return nbd_blocks_open(nbd, ret, err);
}

// What the parent holds: in a comparison only what differs travels; an audit looks there.
static bool open_leaves(Copy *c, Err *err)
{
    const AnnounceAnswerDisk *a = c->disk->answer;
    NbdSpec nbd = {.connections = 1, .read_only = true, .timeout_ms = CONNECT_MS};
    if (!a->leaves_uri || !(a->mode == DISK_COMPARE || is_audited(c)))
        return true;
    c->known.hash.seed = a->hash_seed;
    return hash_algorithm_parse(a->hash_algorithm, &c->known.hash.algorithm, err) &&
        open_export(c, a->leaves_uri, &nbd, &c->leaves_way, &c->known.leaves, err);
}

// Both ends are opened here, on the main thread: a source's child process dies with the thread that started it.
static bool open_ends(Copy *c, size_t index, Err *err)
{
    Source *source = c->job->source;
    bool tracked = c->disk->answer->mode == DISK_TRACKED;
    bool resume = c->disk->answer->resume;
    NbdSpec nbd = {.connections = c->job->spec->connections,
                   .require_zeros = resume, // what it holds of the interrupted backup
                   .timeout_ms = CONNECT_MS};
    if (resume && !c->disk->source->resumes)
        return err_set(err, ERR_PROTOCOL, "the hub goes on from a backup that the source cannot compare with");
    if (tracked && !c->disk->source->base_change_id)
        return err_set(err, ERR_PROTOCOL, "the hub wants only changes, and the source has no change set");
    return source->ops->blocks(source, index, tracked, &c->from, err) &&
        open_export(c, c->disk->answer->uri, &nbd, &c->way, &c->to, err) &&
        (!resume || source->ops->since(source, index, &c->resume.since, err)) && open_leaves(c, err);
}

static bool copy_start(Copy *c, size_t index, Err *err)
{
    Job *j = c->job;
    if (!open_ends(c, index, err)) {
        close_ends(c);
        return err_context(err, "disk %s", c->disk->source->key);
    }
    pthread_mutex_lock(&j->lock);
    j->copying++;
    pthread_mutex_unlock(&j->lock);
    int e = pthread_create(&c->thread, NULL, copy_thread, c);
    if (e == 0) {
        c->started = true;
        return true;
    }
    pthread_mutex_lock(&j->lock);
    j->copying--;
    pthread_mutex_unlock(&j->lock);
    close_ends(c);
    return err_errno(err, e, "starting a thread for disk %s", c->disk->source->key);
}

static void wait_until_below(Job *j, unsigned n)
{
    pthread_mutex_lock(&j->lock);
    while (j->copying >= n)
        pthread_cond_wait(&j->changed, &j->lock);
    pthread_mutex_unlock(&j->lock);
}

bool copy_disks(Job *j, Err *err)
{
    cleanup_free Copy *copies = mem_calloc(j->disks_len, sizeof(*copies), err);
    if (!copies)
        return false;
    unsigned best = j->source->parallel ? j->source->parallel : PARALLEL_DEFAULT;
    unsigned parallel = j->spec->parallel ? j->spec->parallel : best;
    bool fine = true;
    for (size_t i = 0; i < j->disks_len && fine; i++) {
        copies[i] = (Copy){.job = j, .disk = &j->disks[i]};
        wait_until_below(j, parallel);
        Err e = ERR_INIT;
        fine = job_goes_on(j, &e) && copy_start(&copies[i], i, &e);
        if (!fine)
            job_fail(j, &e);
    }
    for (size_t i = 0; i < j->disks_len; i++)
        if (copies[i].started)
            (void)pthread_join(copies[i].thread, NULL); // joinable, and joined once
    return job_goes_on(j, err);
}
