#include "image/writer_parts.h"

#include "base/file.h"
#include "codec/qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define AHEAD_FIRST (UINT64_C(16) << 20)
#define COMPRESSED_CLUSTER_MIN 16384 // what is saved of smaller ones goes into alignment

static bool overlaps(const WriterRange *a, const WriterRange *b)
{
    return a->first < b->end && b->first < a->end;
}

static bool must_wait(const Writer *w, const WriterRange *range)
{
    for (const WriterRange *r = w->ranges; r != range; r = r->next)
        if (overlaps(r, range))
            return true;
    return false;
}

bool writer_range_lock(Writer *w, WriterRange *range, Err *err)
{
    pthread_mutex_lock(&w->lock);
    WriterRange **last = &w->ranges;
    while (*last)
        last = &(*last)->next;
    range->next = NULL;
    *last = range;
    while (must_wait(w, range))
        pthread_cond_wait(&w->ranges_changed, &w->lock);
    Err error = w->error;
    bool sealed = w->sealed;
    pthread_mutex_unlock(&w->lock);
    if (error.code == ERR_NONE && !sealed)
        return true;
    writer_range_unlock(w, range);
    if (error.code == ERR_NONE)
        return err_set(err, ERR_CONFLICT, "the image is sealed");
    return err_set(err, error.code, "%s", error.details);
}

void writer_range_unlock(Writer *w, WriterRange *range)
{
    pthread_mutex_lock(&w->lock);
    WriterRange **at = &w->ranges;
    while (*at != range)
        at = &(*at)->next;
    *at = range->next;
    pthread_cond_broadcast(&w->ranges_changed);
    pthread_mutex_unlock(&w->lock);
}

bool writer_break(Writer *w, const Err *err)
{
    pthread_mutex_lock(&w->lock);
    if (w->error.code == ERR_NONE)
        w->error = *err;
    pthread_mutex_unlock(&w->lock);
    return false;
}

static bool check_spec(const WriterSpec *spec, Err *err)
{
    if (spec->size == 0 || spec->size > DISK_SIZE_MAX)
        return err_set(err, ERR_INVALID, "a disk has 1 to %llu bytes", (unsigned long long)DISK_SIZE_MAX);
    if (spec->cluster_bits < QCOW2_CLUSTER_BITS_MIN || spec->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return err_set(err, ERR_INVALID, "cluster size out of range");
    bool full = spec->mode == DISK_FULL;
    if (full != !spec->parent || full != !spec->backing_name)
        return err_set(err, ERR_INVALID, "a full has no parent, everything else has one");
    if (spec->compression > ZFRAME_LEVEL_MAX)
        return err_set(err, ERR_INVALID, "compression is 1 to %d, 0 for none", ZFRAME_LEVEL_MAX);
    if (spec->backing_name && (strlen(spec->backing_name) == 0 || strlen(spec->backing_name) > QCOW2_BACKING_MAX))
        return err_set(err, ERR_INVALID, "bad backing file name");
    if (!spec->resume_image != !spec->resume_journal || (spec->resume_image && !spec->journal_path))
        return err_set(err, ERR_INVALID, "an interrupted run has an image and a journal, and is gone on from with one");
    if (spec->mode == DISK_TRACKED && chain_hashes_size(spec->parent) != spec->size)
        return err_set(err, ERR_INVALID, "a tracked disk has its parent's size");
    return true;
}

// What the finished image can need at most, with every cluster of the disk in it.
static bool set_limits(Writer *w, Err *err)
{
    Qcow2RefcountPlan plan;
    uint64_t l1_bytes = w->groups * 8;
    if (l1_bytes > QCOW2_L1_BYTES_MAX)
        return err_set(err, ERR_TOO_LARGE, "a disk of this size needs larger clusters");
    uint64_t l1 = align_up(l1_bytes, w->cluster_size) >> w->cluster_bits;
    if (!qcow2_refcount_plan(1 + w->clusters + w->groups + l1, w->cluster_bits, &plan, err))
        return false;
    // with compression what came first may be replaced by a plain cluster
    w->most = (w->compression != 0 ? plan.total + 2 * w->clusters : plan.total) << w->cluster_bits;
    w->next = w->cluster_size; // 0 is the header
    w->ahead_step = AHEAD_FIRST;
    w->chunk_bytes = MAX(WRITER_CHUNK, w->cluster_size);
    w->buffers_max = WRITER_BUFFERS / w->chunk_bytes;
    return true;
}

// An interrupted run's image gets our name, and ends where its journal says. It may be shorter by what compressed data
// leaves of its last cluster: only where the filesystem allocates ahead is that there.
static bool take_over(Writer *w, const WriterSpec *spec, Err *err)
{
    struct stat st;
    uint64_t used;
    if (!writer_journal_measure(w, spec, &used, err))
        return false;
    if (file_exists(w->image_path))
        return err_set(err, ERR_EXISTS, "%s is there", w->image_path);
    if (lstat(spec->resume_image, &st) != 0)
        return err_errno(err, errno, "%s", spec->resume_image);
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < used)
        return err_set(err, ERR_DAMAGED, "%s is shorter than its journal says", spec->resume_image);
    if (truncate(spec->resume_image, (off_t)w->next) != 0)
        return err_errno(err, errno, "%s", spec->resume_image);
    return file_rename(spec->resume_image, w->image_path, err);
}

// Zeros where the header will be: no valid image, and a trial of direct I/O.
static bool create_image(Writer *w, const WriterSpec *spec, Err *err)
{
    if (spec->resume_image && !take_over(w, spec, err))
        return false;
    bool there = spec->image_is_there || spec->resume_image;
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (there ? 0 : O_CREAT | O_EXCL);
    w->fd = open(w->image_path, flags, 0600);
    if (w->fd < 0)
        return err_errno(err, errno, "cannot create %s", w->image_path);
    // Ahead of direct writes, not in memory: there each page would be cleared once more.
    w->ahead = w->next;
    struct statfs fs;
    bool memory = fstatfs(w->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
    if (memory)
        w->ahead_step = 0;
    // The clusters of an increment come one by one: in the page cache they come together, as neighbours in the file.
    w->direct = spec->direct_io && w->mode == DISK_FULL && !memory && fcntl(w->fd, F_SETFL, O_DIRECT) == 0;
    uint8_t *zeros;
    if (!writer_space_buffer(w, &zeros, err))
        return false;
    memset(zeros, 0, w->cluster_size);
    ssize_t n = w->direct ? pwrite(w->fd, zeros, w->cluster_size, 0) : -1;
    bool ok = n == (ssize_t)w->cluster_size;
    if (!ok && w->direct && fcntl(w->fd, F_SETFL, 0) == 0)
        w->direct = false;
    ok = ok || file_pwrite(w->fd, zeros, w->cluster_size, 0, err);
    writer_space_buffer_back(w, zeros);
    return ok;
}

static bool set_up(Writer *w, const WriterSpec *spec, Err *err)
{
    if (!hash_geometry_init(&w->geo, &spec->hash, w->cluster_size, err))
        return false;
    w->groups = hash_groups(&w->geo, w->size);
    w->clusters = w->size / w->cluster_size + (w->size % w->cluster_size != 0);
    if (!set_limits(w, err) || !mem_replace(&w->image_path, spec->image_path, err) ||
        !mem_replace(&w->hashes_path, spec->hashes_path, err) ||
        !mem_replace(&w->backing_name, spec->backing_name, err))
        return false;
    w->buffers = mem_calloc(w->buffers_max, sizeof(void *), err);
    return w->buffers && covered_new(w->size, w->cluster_size, w->geo.leaves, &w->covered, err) &&
        writer_groups_init(w, spec->cache_groups, err) && create_image(w, spec, err) &&
        writer_journal_open(w, spec, err);
}

bool writer_open(const WriterSpec *spec, Writer **ret, Err *err)
{
    if (!check_spec(spec, err))
        return false;
    Writer *w = mem_calloc(1, sizeof *w, err);
    if (!w)
        return false;
    w->fd = w->spill_fd = -1;
    w->mode = spec->mode;
    w->parent = spec->parent;
    w->size = spec->size;
    w->cluster_bits = spec->cluster_bits;
    w->cluster_size = 1u << spec->cluster_bits;
    w->compression = w->cluster_size < COMPRESSED_CLUSTER_MIN ? 0 : spec->compression;
    pthread_mutex_init(&w->lock, NULL); // these never fail on Linux
    pthread_mutex_init(&w->cache_lock, NULL);
    pthread_mutex_init(&w->space_lock, NULL);
    pthread_mutex_init(&w->write_lock, NULL);
    pthread_mutex_init(&w->account_lock, NULL);
    pthread_mutex_init(&w->checkpoint_lock, NULL);
    pthread_mutex_init(&w->journal_lock, NULL);
    pthread_cond_init(&w->ranges_changed, NULL);
    pthread_cond_init(&w->buffer_freed, NULL);
    pthread_cond_init(&w->press_freed, NULL);
    if (!set_up(w, spec, err)) {
        writer_free(w);
        return false;
    }
    *ret = w;
    return true;
}

void writer_free(Writer *w)
{
    if (!w)
        return;
    writer_groups_clear(w);
    writer_journal_clear(w);
    covered_free(w->covered);
    writer_press_clear(w);
    for (unsigned i = 0; i < w->buffers_free; i++)
        free(w->buffers[i]);
    free(w->buffers);
    if (w->fd >= 0)
        (void)close(w->fd); // sealed and synced, or thrown away
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->cache_lock);
    pthread_mutex_destroy(&w->space_lock);
    pthread_mutex_destroy(&w->write_lock);
    pthread_mutex_destroy(&w->account_lock);
    pthread_mutex_destroy(&w->checkpoint_lock);
    pthread_mutex_destroy(&w->journal_lock);
    pthread_cond_destroy(&w->ranges_changed);
    pthread_cond_destroy(&w->buffer_freed);
    pthread_cond_destroy(&w->press_freed);
    free(w->image_path);
    free(w->hashes_path);
    free(w->backing_name);
    free(w);
}

bool writer_flush(Writer *w, Err *err)
{
    pthread_mutex_lock(&w->lock);
    Err error = w->error;
    pthread_mutex_unlock(&w->lock);
    if (error.code != ERR_NONE)
        return err_set(err, error.code, "%s", error.details);
    if (fdatasync(w->fd) == 0)
        return true;
    err_errno(err, errno, "cannot sync the image");
    return writer_break(w, err); // the kernel tells a lost write only once
}

void writer_progress(Writer *w, WriterProgress *ret)
{
    ret->received_data = atomic_load_explicit(&w->received_data, memory_order_relaxed);
    ret->received_zero = atomic_load_explicit(&w->received_zero, memory_order_relaxed);
    ret->stored_bytes = atomic_load_explicit(&w->stored_bytes, memory_order_relaxed);
}
