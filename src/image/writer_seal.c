// Sealing: from what arrived to a finished image and its hashes. One thread, once.
#include "image/writer_parts.h"

#include "base/file.h"
#include "codec/qcow2.h"
#include "image/metadata.h"
#include "image/usage.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

// Clusters that are appended one after the other, gathered to large writes.
typedef struct Tail {
    uint8_t *buffer; // chunk_bytes
    uint32_t used;
    uint64_t offset; // in the file, of buffer[0]
} Tail;

typedef struct Seal {
    Tail tail;
    HashesWriter *hashes;
    uint64_t *l1; // host byte order
    Hash *nodes;
    uint8_t *marks; // of one group
    uint8_t *header;
    HashesSummary summary;
} Seal;

static bool tail_flush(Writer *w, Tail *t, Err *err)
{
    if (!file_pwrite(w->fd, t->buffer, t->used, t->offset, err))
        return err_context(err, "image");
    t->offset += t->used;
    t->used = 0;
    return true;
}

// A zeroed cluster to fill in before the next call, and where it will be.
static bool tail_next(Writer *w, Tail *t, uint8_t **ret, uint64_t *ret_offset, Err *err)
{
    if (t->used == w->chunk_bytes && !tail_flush(w, t, err))
        return false;
    *ret = t->buffer + t->used;
    memset(*ret, 0, w->cluster_size);
    *ret_offset = t->offset + t->used;
    t->used += w->cluster_size;
    return true;
}

// An interrupted run's cluster that nobody confirmed is not of this point.
static bool check_held(Writer *w, Err *err)
{
    for (uint64_t number = 0; w->held && number < w->groups; number++) {
        WriterGroup *g;
        if (!writer_groups_changed(w, number))
            continue;
        if (!writer_groups_get(w, number, &g, err))
            return false;
        uint64_t stray = UINT64_MAX;
        for (uint32_t k = 0; stray == UINT64_MAX && k < w->geo.leaves; k++)
            if (g->entries[k] != 0 && !covered_has_cluster(w->covered, number * w->geo.leaves + k))
                stray = number * w->geo.leaves + k;
        writer_groups_put(w, g, false);
        if (stray != UINT64_MAX)
            return err_set(err, ERR_CONFLICT, "the interrupted backup's cluster at %llu was neither confirmed nor sent",
                           (unsigned long long)(stray << w->cluster_bits));
    }
    return true;
}

static bool check_arrived(Writer *w, const WriterExpect *expect, HashesSummary *s, Err *err)
{
    Coverage got;
    uint64_t offset, length;
    if (!covered_sum(w->covered, &got, err))
        return false;
    if (w->mode != DISK_TRACKED && covered_first_hole(w->covered, &offset, &length))
        return err_set(err, ERR_CONFLICT, "not everything has arrived: %llu bytes at %llu are missing",
                       (unsigned long long)length, (unsigned long long)offset);
    if (w->mode == DISK_TRACKED && !expect)
        return err_set(err, ERR_INVALID, "a tracked disk is sealed with what was to arrive");
    if (expect && (expect->extents != got.extents || expect->bytes != got.bytes || expect->digest != got.digest))
        return err_set(err, ERR_CONFLICT,
                       "what arrived is not what was announced: %llu bytes in %llu extents, digest %016llx, "
                       "instead of %llu bytes in %llu extents, digest %016llx",
                       (unsigned long long)got.bytes, (unsigned long long)got.extents, (unsigned long long)got.digest,
                       (unsigned long long)expect->bytes, (unsigned long long)expect->extents,
                       (unsigned long long)expect->digest);
    if (!check_held(w, err))
        return false;
    s->covered_extents = got.extents;
    s->covered_bytes = got.bytes;
    s->covered_digest = got.digest;
    return true;
}

// A group of which this image says something: its leaves, node and L2 table.
static bool seal_group(Writer *w, Seal *s, const WriterGroup *g, Err *err)
{
    uint64_t stored = 0, zeroed = 0;
    for (uint32_t k = 0; k < w->geo.leaves; k++) {
        uint64_t entry = g->entries[k];
        s->marks[k] = HASH_ABSENT;
        if (writer_is_zero(entry))
            s->marks[k] = HASH_ZERO;
        else if (entry != 0)
            s->marks[k] = HASH_DATA;
        stored += s->marks[k] == HASH_DATA;
        zeroed += s->marks[k] == HASH_ZERO;
    }
    hash_node(&w->geo, g->leaves, &s->nodes[g->number]);
    if (stored + zeroed == 0)
        return true;
    uint8_t *table;
    uint64_t offset;
    if (!hashes_writer_add(s->hashes, g->number, s->marks, g->leaves, err) ||
        !tail_next(w, &s->tail, &table, &offset, err))
        return false;
    for (uint32_t k = 0; k < w->geo.leaves; k++)
        qcow2_put64(table + 8 * (size_t)k, g->entries[k]);
    s->l1[g->number] = offset | QCOW2_OFLAG_COPIED;
    s->summary.stored_clusters += stored;
    s->summary.zeroed_clusters += zeroed;
    return true;
}

// The node of a group of which this image says nothing.
static bool untouched_node(const Writer *w, uint64_t number, Hash *ret, Err *err)
{
    if (!w->parent) {
        *ret = w->geo.zero_node;
        return true;
    }
    if (number + 1 < w->groups || chain_hashes_size(w->parent) == w->size) {
        *ret = *chain_hashes_node(w->parent, number);
        return true;
    }
    // The disk was resized, and may end elsewhere within this group.
    cleanup_free Hash *leaves = mem_calloc(w->geo.leaves, sizeof(Hash), err);
    if (!leaves || !writer_groups_initial(w, number, leaves, err))
        return false;
    hash_node(&w->geo, leaves, ret);
    return true;
}

static bool seal_groups(Writer *w, Seal *s, Err *err)
{
    for (uint64_t number = 0; number < w->groups; number++) {
        if (!writer_groups_changed(w, number)) {
            if (!untouched_node(w, number, &s->nodes[number], err))
                return false;
            continue;
        }
        WriterGroup *g;
        if (!writer_groups_get(w, number, &g, err))
            return false;
        bool ok = seal_group(w, s, g, err);
        writer_groups_put(w, g, false);
        if (!ok)
            return false;
    }
    hash_root(&w->geo, w->size, s->nodes, w->groups, &s->summary.root);
    return true;
}

static bool put_l1(Writer *w, Seal *s, uint64_t *ret_offset, Err *err)
{
    uint64_t per_cluster = w->cluster_size / 8, first = 0, offset;
    uint8_t *table = NULL;
    for (uint64_t i = 0; i < w->groups; i++) {
        if (i % per_cluster == 0) {
            if (!tail_next(w, &s->tail, &table, &offset, err))
                return false;
            first = i == 0 ? offset : first;
        }
        qcow2_put64(table + i % per_cluster * 8, s->l1[i]);
    }
    *ret_offset = first;
    return true;
}

static bool put_refcount_table(Writer *w, Seal *s, const Qcow2RefcountPlan *plan, Err *err)
{
    uint64_t per_table = w->cluster_size / 8, offset;
    uint64_t blocks = (plan->total - plan->blocks) << w->cluster_bits; // the first block's offset
    uint8_t *p;
    for (uint64_t t = 0; t < plan->table_clusters; t++) {
        if (!tail_next(w, &s->tail, &p, &offset, err))
            return false;
        for (uint64_t i = t * per_table; i < MIN((t + 1) * per_table, plan->blocks); i++)
            qcow2_put64(p + i % per_table * 8, blocks + (i << w->cluster_bits));
    }
    return true;
}

// From what the tables say that are in the file by now.
static bool put_refcounts(Writer *w, Seal *s, Err *err)
{
    uint64_t per_block = w->cluster_size / QCOW2_REFCOUNT_BYTES, offset;
    Usage usage;
    uint8_t *p = NULL;
    cleanup_close int fd = open(w->image_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", w->image_path);
    if (!usage_open(fd, s->header, &w->geo, &usage, err))
        return false;
    bool ok = true;
    for (uint64_t first = 0; ok && first < usage.clusters; first += usage.n) {
        ok = usage_window(&usage, first, err);
        for (uint64_t i = first; ok && i < first + usage.n; i++) {
            if (i % per_block == 0)
                ok = tail_next(w, &s->tail, &p, &offset, err);
            if (ok)
                qcow2_put16(p + i % per_block * QCOW2_REFCOUNT_BYTES, usage.refs[i - first]);
        }
    }
    usage_clear(&usage);
    return ok;
}

static bool put_tables(Writer *w, Seal *s, Err *err)
{
    uint64_t l1_offset = 0;
    if (!put_l1(w, s, &l1_offset, err))
        return false;
    Qcow2RefcountPlan plan;
    uint64_t table_offset = s->tail.offset + s->tail.used;
    if (!qcow2_refcount_plan(table_offset >> w->cluster_bits, w->cluster_bits, &plan, err) ||
        !put_refcount_table(w, s, &plan, err) || !tail_flush(w, &s->tail, err))
        return false;
    s->summary.image_bytes = plan.total << w->cluster_bits;
    if (ftruncate(w->fd, (off_t)s->summary.image_bytes) != 0) // what was allocated ahead goes
        return err_errno(err, errno, "cannot cut the image to its end");
    Qcow2Header header = {
        .cluster_bits = w->cluster_bits,
        .size = align_up(w->size, 512),
        .l1_size = (uint32_t)w->groups,
        .l1_offset = l1_offset,
        .refcount_table_offset = table_offset,
        .refcount_table_clusters = (uint32_t)plan.table_clusters,
        .compression = w->compression != 0 ? QCOW2_ZSTD : QCOW2_ZLIB,
    };
    if (w->backing_name)
        memcpy(header.backing_name, w->backing_name, strlen(w->backing_name) + 1);
    return qcow2_header_encode(&header, s->header, err) && put_refcounts(w, s, err) && tail_flush(w, &s->tail, err);
}

// The header is the last thing written: until then the file is no QCOW2.
static bool finish(Writer *w, Seal *s, Hash *ret_digest, Err *err)
{
    uint64_t length;
    if (fdatasync(w->fd) != 0)
        return err_errno(err, errno, "cannot sync the image");
    if (!image_metadata_hash_with(w->image_path, s->header, &w->geo, &s->summary.metadata, &length, err))
        return false;
    if (length != s->summary.image_bytes)
        return err_set(err, ERR_INTERNAL, "the image has another length than its tables");
    Hash digest;
    if (!hashes_writer_end(s->hashes, s->nodes, &s->summary, &digest, err) ||
        !file_pwrite(w->fd, s->header, w->cluster_size, 0, err))
        return false;
    if (fsync(w->fd) != 0)
        return err_errno(err, errno, "cannot sync the image");
    *ret_digest = digest;
    return true;
}

static bool run(Writer *w, Seal *s, Hash *ret_digest, Err *err)
{
    HashesSummary *sum = &s->summary;
    s->l1 = mem_calloc(w->groups, sizeof(uint64_t), err);
    s->nodes = mem_calloc(w->groups, sizeof(Hash), err);
    s->marks = mem_calloc(w->geo.leaves, 1, err);
    if (!s->l1 || !s->nodes || !s->marks || !writer_space_buffer(w, &s->tail.buffer, err) ||
        !writer_space_buffer(w, &s->header, err) ||
        !hashes_writer_open(w->hashes_path, &w->geo, w->size, &s->hashes, err))
        return false;
    s->tail.offset = w->next;
    if (!seal_groups(w, s, err))
        return false;
    WriterProgress progress;
    writer_progress(w, &progress);
    sum->size = w->size;
    sum->received_data = progress.received_data;
    sum->received_zero = progress.received_zero;
    uint64_t whole = sum->covered_bytes / w->cluster_size + (sum->covered_bytes % w->cluster_size != 0);
    sum->skipped_clusters = whole - MIN(whole, sum->stored_clusters + sum->zeroed_clusters);
    return put_tables(w, s, err) && finish(w, s, ret_digest, err);
}

bool writer_seal(Writer *w, const WriterExpect *expect, HashesSummary *ret, Hash *ret_hashes_digest, Err *err)
{
    // After everything that is under way: nothing starts any more once this range is held.
    WriterRange range = {.first = 0, .end = UINT64_MAX};
    if (!writer_range_lock(w, &range, err))
        return false;
    Seal s = {0};
    Hash digest;
    if (!check_arrived(w, expect, &s.summary, err)) { // nothing was changed: what is missing may still come
        writer_range_unlock(w, &range);
        return false;
    }
    bool ok = run(w, &s, &digest, err);
    if (!ok)
        writer_break(w, err);
    else
        writer_journal_end(w);
    pthread_mutex_lock(&w->lock);
    w->sealed = true;
    pthread_mutex_unlock(&w->lock);
    writer_range_unlock(w, &range);
    hashes_writer_free(s.hashes);
    writer_space_buffer_back(w, s.tail.buffer);
    writer_space_buffer_back(w, s.header);
    free(s.l1);
    free(s.nodes);
    free(s.marks);
    if (!ok)
        return false;
    *ret = s.summary;
    *ret_hashes_digest = digest;
    return true;
}
