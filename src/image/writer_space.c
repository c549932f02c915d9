// Host clusters, and the memory that data passes through.
#include "image/writer_parts.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>

#define AHEAD_MAX (UINT64_C(256) << 20)
#define AHEAD_MIN (UINT64_C(1) << 20)
#define BEHIND_STEP (UINT64_C(8) << 20)
#define BEHIND_WAITS (UINT64_C(32) << 20)

// A write that extends a file is serialised by most filesystems; so the file is extended in steps that grow (a small
// increment takes little), and shrink again near a full disk. Not an error if it fails: the write will say.
static void extend(Writer *w)
{
    struct statvfs st;
    uint64_t step = w->ahead_step;
    if (fstatvfs(w->fd, &st) == 0) {
        uint64_t room = (uint64_t)st.f_bavail * st.f_frsize;
        step = MIN(step, room / 8);
    }
    uint64_t end = MIN(align_up(w->next + step, w->cluster_size), MAX(w->most, w->next));
    int r;
    do
        r = fallocate(w->fd, 0, (off_t)w->ahead, (off_t)(end - w->ahead));
    while (r != 0 && errno == EINTR);
    if (r == 0) {
        w->ahead = end;
        w->ahead_step = MIN(w->ahead_step * 2, AHEAD_MAX);
    } else if (errno == ENOSPC || errno == EDQUOT) {
        w->ahead_step = MAX(w->ahead_step / 4, AHEAD_MIN);
    } else {
        w->ahead_step = 0;
    }
}

bool writer_space_take(Writer *w, uint64_t clusters, uint64_t *ret_offset, Err *err)
{
    uint64_t bytes = clusters << w->cluster_bits;
    pthread_mutex_lock(&w->space_lock);
    bool ok = bytes <= w->most - w->next;
    if (ok) {
        *ret_offset = w->next;
        w->next += bytes;
        if (w->ahead_step > 0 && w->next > w->ahead)
            extend(w);
    }
    pthread_mutex_unlock(&w->space_lock);
    return ok || err_set(err, ERR_INTERNAL, "the image has more clusters than its disk");
}

// The clusters behind the last ones are taken to them, as long as nothing else was put there meanwhile.
static bool more_to_pack(Writer *w, uint64_t bytes)
{
    uint64_t clusters = align_up(bytes, w->cluster_size);
    if (clusters > w->most - w->next)
        return false;
    if (w->pack_end != w->next)
        w->pack_next = w->pack_end = w->next;
    w->next += clusters;
    w->pack_end = w->next;
    if (w->ahead_step > 0 && w->next > w->ahead)
        extend(w);
    return true;
}

bool writer_space_pack(Writer *w, uint64_t least, uint64_t most, uint64_t *ret_offset, uint64_t *ret_room, Err *err)
{
    pthread_mutex_lock(&w->space_lock);
    uint64_t left = w->pack_end - w->pack_next;
    bool ok = true;
    if (w->pack_end == w->next && left < most)
        ok = more_to_pack(w, most - left);
    else if (left < least)
        ok = more_to_pack(w, most);
    if (ok) {
        *ret_offset = w->pack_next;
        *ret_room = MIN(w->pack_end - w->pack_next, most);
        w->pack_next += *ret_room;
    }
    pthread_mutex_unlock(&w->space_lock);
    return ok || err_set(err, ERR_INTERNAL, "the image has more clusters than its disk");
}

// Starts to write the file's [from, to) to the disk, and waits for what lies some way before it, which the cache need
// not keep. Says nothing about what is durable; but who is told here of an error, is not told by fsync().
static bool write_behind(const Writer *w, uint64_t from, uint64_t to, Err *err)
{
    uint64_t start = from - MIN(from, BEHIND_WAITS), end = to - MIN(to, BEHIND_WAITS);
    if (sync_file_range(w->fd, (off_t)from, (off_t)(to - from), SYNC_FILE_RANGE_WRITE) != 0 ||
        (end > start &&
         sync_file_range(w->fd, (off_t)start, (off_t)(end - start),
                         SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) != 0))
        return err_errno(err, errno, "writing to the disk");
    if (end > start)
        (void)posix_fadvise(w->fd, (off_t)start, (off_t)(end - start), POSIX_FADV_DONTNEED); // a hint
    return true;
}

// Into the page cache a file takes one write at a time, and who waits for that in the kernel spins.
bool writer_space_write(Writer *w, const void *p, size_t n, uint64_t offset, Err *err)
{
    if (w->direct)
        return file_pwrite(w->fd, p, n, offset, err);
    pthread_mutex_lock(&w->write_lock);
    bool ok = file_pwrite(w->fd, p, n, offset, err);
    uint64_t from = w->behind, to = align_down(offset + n, BEHIND_STEP);
    bool due = ok && to > from;
    if (due)
        w->behind = to;
    pthread_mutex_unlock(&w->write_lock);
    return ok && (!due || write_behind(w, from, to, err));
}

bool writer_space_buffer(Writer *w, uint8_t **ret, Err *err)
{
    pthread_mutex_lock(&w->lock);
    while (w->buffers_free == 0 && w->buffers_made == w->buffers_max)
        pthread_cond_wait(&w->buffer_freed, &w->lock);
    void *p = NULL;
    if (w->buffers_free > 0) {
        p = w->buffers[--w->buffers_free];
    } else {
        p = aligned_alloc(WRITER_ALIGN, w->chunk_bytes);
        w->buffers_made += p != NULL;
    }
    pthread_mutex_unlock(&w->lock);
    if (!p)
        return err_no_memory(err);
    *ret = p;
    return true;
}

void writer_space_buffer_back(Writer *w, uint8_t *buffer)
{
    if (!buffer)
        return;
    pthread_mutex_lock(&w->lock);
    w->buffers[w->buffers_free++] = buffer;
    pthread_cond_signal(&w->buffer_freed);
    pthread_mutex_unlock(&w->lock);
}
