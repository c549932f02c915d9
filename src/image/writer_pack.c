// Compressed clusters: zstd frames, packed one behind the other into host clusters. Each begins and ends with a sector
// of the file, so that whoever checks an image knows from its tables alone which bytes are whose (usage.h). What one
// piece of a request compresses is written together, aligned.
#include "image/writer_parts.h"

#include "base/file.h"
#include "codec/qcow2.h"

// ---- presses

static void press_free(WriterPress *p)
{
    if (!p)
        return;
    zframe_press_free(p->z);
    free(p->out);
    free(p);
}

static WriterPress *press_new(const Writer *w, Err *err)
{
    WriterPress *p = mem_calloc(1, sizeof *p, err);
    if (!p)
        return NULL;
    p->out = aligned_alloc(WRITER_ALIGN, w->chunk_bytes);
    if ((!p->out && !err_no_memory(err)) || !zframe_press_new(w->compression, &p->z, err)) {
        press_free(p);
        return NULL;
    }
    return p;
}

bool writer_press_take(Writer *w, WriterPress **ret, Err *err)
{
    WriterPress *p = NULL;
    pthread_mutex_lock(&w->lock);
    while (w->presses_free == 0 && w->presses_made == WRITER_PRESSES)
        pthread_cond_wait(&w->press_freed, &w->lock);
    if (w->presses_free > 0)
        p = w->presses[--w->presses_free];
    else if ((p = press_new(w, err)))
        w->presses_made++;
    pthread_mutex_unlock(&w->lock);
    if (!p)
        return false;
    p->used = 0;
    *ret = p;
    return true;
}

void writer_press_back(Writer *w, WriterPress *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&w->lock);
    w->presses[w->presses_free++] = p;
    pthread_cond_signal(&w->press_freed);
    pthread_mutex_unlock(&w->lock);
}

void writer_press_clear(Writer *w)
{
    while (w->presses_free > 0)
        press_free(w->presses[--w->presses_free]);
}

// ---- frames

uint32_t writer_press_add(const Writer *w, WriterPress *p, const uint8_t *cluster)
{
    // at least an eighth less, or a plain cluster is better: it is read without inflating
    size_t bytes =
        zframe_press(p->z, cluster, w->cluster_size, p->out + p->used, w->cluster_size - w->cluster_size / 8);
    p->used += (uint32_t)bytes;
    return (uint32_t)bytes;
}

// How many of the frames fit into `room`, and their bytes.
static uint32_t fitting(const uint32_t *lengths, uint32_t n, uint64_t room, uint32_t *ret_bytes)
{
    uint32_t k = 0;
    for (*ret_bytes = 0; k < n && *ret_bytes + lengths[k] <= room; k++)
        *ret_bytes += lengths[k];
    return k;
}

bool writer_press_store(Writer *w, WriterPress *p, const uint32_t *lengths, uint32_t n, uint64_t *ret_offsets, Err *err)
{
    while (n > 0) {
        uint64_t offset, room;
        uint32_t bytes;
        if (!writer_space_pack(w, align_up(lengths[0], WRITER_ALIGN), align_up(p->used, WRITER_ALIGN), &offset, &room,
                               err))
            return false;
        uint32_t k = fitting(lengths, n, room, &bytes);
        uint32_t run = (uint32_t)align_up(bytes, WRITER_ALIGN);
        if (run > p->used) // what fills up the last run; behind the others it is the start of the next one's
            memset(p->out + p->used, 0, run - p->used);
        if (!writer_space_write(w, p->out, run, offset, err))
            return err_context(err, "image");
        atomic_fetch_add_explicit(&w->stored_bytes, run, memory_order_relaxed);
        p->used -= bytes;
        memmove(p->out, p->out + bytes, p->used);
        for (uint32_t i = 0; i < k; i++) {
            ret_offsets[i] = offset;
            offset += lengths[i];
        }
        lengths += k;
        ret_offsets += k;
        n -= k;
    }
    return true;
}

bool writer_host_read(Writer *w, uint64_t entry, uint8_t *place, Err *err)
{
    Qcow2Entry e;
    if (!qcow2_l2_decode(entry, w->cluster_bits, INT64_MAX, &e, err))
        return false;
    if (e.kind != QCOW2_COMPRESSED)
        return file_pread(w->fd, place, w->cluster_size, e.offset, err);
    uint64_t start = align_down(e.offset, WRITER_ALIGN), end = align_up(e.offset + e.length, WRITER_ALIGN);
    cleanup_free uint8_t *around = aligned_alloc(WRITER_ALIGN, end - start);
    if (!around)
        return err_no_memory(err);
    return file_pread(w->fd, around, end - start, start, err) &&
        zframe_inflate(around + (e.offset - start), e.length, place, w->cluster_size, err);
}
