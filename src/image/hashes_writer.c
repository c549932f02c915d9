#include "image/hashes_format.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#define BUFFER_BYTES (256u << 10)

typedef struct Record {
    uint64_t group, offset, checksum;
    uint32_t data, zero;
} Record;

VEC_DEFINE(RecordVec, record_vec, Record)

struct HashesWriter {
    HashGeometry geo;
    uint64_t size, groups;
    int fd;
    uint64_t offset;     // of the next byte, the buffered ones counted
    HashStream *file;    // of every byte of the file
    XXH3_state_t *frame; // of header, index, nodes, trailer
    RecordVec records;
    uint64_t data, zero;
    uint8_t *record; // of one group, being put together
    uint8_t *buffer;
    size_t used;
};

static bool flush(HashesWriter *w, Err *err)
{
    if (!file_write(w->fd, w->buffer, w->used, err))
        return err_context(err, "hashes");
    w->used = 0;
    return true;
}

static bool put(HashesWriter *w, const void *p, size_t n, Err *err)
{
    hash_stream_add(w->file, p, n);
    w->offset += n;
    while (n > 0) {
        size_t some = MIN(n, BUFFER_BYTES - w->used);
        memcpy(w->buffer + w->used, p, some);
        w->used += some;
        p = (const uint8_t *)p + some;
        n -= some;
        if (w->used == BUFFER_BYTES && !flush(w, err))
            return false;
    }
    return true;
}

// What belongs to the frame: everything but the records.
static bool put_frame(HashesWriter *w, const void *p, size_t n, Err *err)
{
    (void)XXH3_64bits_update(w->frame, p, n); // fails on NULL only
    return put(w, p, n, err);
}

bool hashes_writer_open(const char *path, const HashGeometry *geo, uint64_t size, HashesWriter **ret, Err *err)
{
    HashesWriter *w = mem_calloc(1, sizeof *w, err);
    if (!w)
        return false;
    w->geo = *geo;
    w->size = size;
    w->groups = hash_groups(geo, size);
    w->fd = -1;
    w->buffer = mem_calloc(1, BUFFER_BYTES, err);
    w->record = mem_calloc(1, hashes_marks_bytes(geo) + geo->leaves * hash_size(geo->spec.algorithm), err);
    w->frame = XXH3_createState();
    if (!w->buffer || !w->record || !w->frame || !hash_stream_new(&geo->spec, &w->file, err)) {
        hashes_writer_free(w);
        return err_no_memory(err);
    }
    (void)XXH3_64bits_reset(w->frame); // fails on NULL only
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w->fd < 0) {
        err_errno(err, errno, "cannot create %s", path);
        hashes_writer_free(w);
        return false;
    }
    uint8_t header[HASHES_HEADER_BYTES];
    hashes_make_header(geo, size, header);
    if (!put_frame(w, header, sizeof header, err)) {
        hashes_writer_free(w);
        return false;
    }
    *ret = w;
    return true;
}

bool hashes_writer_add(HashesWriter *w, uint64_t group, const uint8_t *marks, const Hash *leaves, Err *err)
{
    if (group >= w->groups || (w->records.len > 0 && group <= w->records.items[w->records.len - 1].group))
        return err_set(err, ERR_INTERNAL, "hashes: group %llu out of order", (unsigned long long)group);
    size_t bytes = hash_size(w->geo.spec.algorithm), n = hashes_marks_bytes(&w->geo);
    Record r = {.group = group, .offset = w->offset};
    memset(w->record, 0, n);
    for (uint32_t i = 0; i < w->geo.leaves; i++) {
        w->record[i / 4] |= (uint8_t)(marks[i] << (i % 4 * 2));
        r.zero += marks[i] == HASH_ZERO;
        if (marks[i] != HASH_DATA)
            continue;
        r.data++;
        memcpy(w->record + n, leaves[i].bytes, bytes);
        n += bytes;
    }
    if (r.data == 0 && r.zero == 0)
        return true;
    r.checksum = XXH3_64bits_withSeed(w->record, n, group);
    w->data += r.data;
    w->zero += r.zero;
    return put(w, w->record, n, err) && record_vec_push(&w->records, r, err);
}

static bool put_index(HashesWriter *w, Err *err)
{
    for (size_t i = 0; i < w->records.len; i++) {
        const Record *r = &w->records.items[i];
        uint8_t entry[HASHES_INDEX_BYTES];
        hashes_put64(entry, r->group);
        hashes_put64(entry + 8, r->offset);
        hashes_put64(entry + 16, r->checksum);
        hashes_put32(entry + 24, r->data);
        hashes_put32(entry + 28, r->zero);
        if (!put_frame(w, entry, sizeof entry, err))
            return false;
    }
    return true;
}

static void make_trailer(const HashesSummary *s, uint8_t out[HASHES_TRAILER_BYTES])
{
    const uint64_t numbers[HASHES_NUMBERS] = {
        s->size,
        s->received_data,
        s->received_zero,
        s->stored_clusters,
        s->zeroed_clusters,
        s->skipped_clusters,
        s->image_bytes,
        s->covered_extents,
        s->covered_bytes,
        s->covered_digest,
    };
    memset(out, 0, HASHES_TRAILER_BYTES);
    memcpy(out, HASHES_TRAILER_MAGIC, 8);
    for (size_t i = 0; i < HASHES_NUMBERS; i++)
        hashes_put64(out + HASHES_AT_NUMBERS + 8 * i, numbers[i]);
    memcpy(out + HASHES_AT_ROOT, s->root.bytes, HASH_BYTES_MAX);
    memcpy(out + HASHES_AT_METADATA, s->metadata.bytes, HASH_BYTES_MAX);
}

bool hashes_writer_end(HashesWriter *w, const Hash *nodes, const HashesSummary *summary, Hash *ret_digest, Err *err)
{
    if (summary->size != w->size || summary->stored_clusters != w->data || summary->zeroed_clusters != w->zero)
        return err_set(err, ERR_INTERNAL, "hashes: the summary does not fit the records");
    uint8_t trailer[HASHES_TRAILER_BYTES];
    make_trailer(summary, trailer);
    hashes_put64(trailer + HASHES_AT_INDEX, w->offset);
    hashes_put64(trailer + HASHES_AT_RECORDS, w->records.len);
    if (!put_index(w, err))
        return false;
    hashes_put64(trailer + HASHES_AT_NODES, w->offset);
    hashes_put64(trailer + HASHES_AT_GROUPS, w->groups);
    for (uint64_t i = 0; i < w->groups; i++)
        if (!put_frame(w, nodes[i].bytes, hash_size(w->geo.spec.algorithm), err))
            return false;
    (void)XXH3_64bits_update(w->frame, trailer, HASHES_AT_CHECKSUM); // fails on NULL only
    hashes_put64(trailer + HASHES_AT_CHECKSUM, XXH3_64bits_digest(w->frame));
    if (!put(w, trailer, sizeof trailer, err) || !flush(w, err))
        return false;
    if (fsync(w->fd) != 0)
        return err_errno(err, errno, "hashes: cannot sync");
    hash_stream_end(w->file, ret_digest);
    return true;
}

void hashes_writer_free(HashesWriter *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        (void)close(w->fd);         // synced at the end, or thrown away
    (void)XXH3_freeState(w->frame); // always XXH_OK
    hash_stream_free(w->file);
    record_vec_clear(&w->records);
    free(w->record);
    free(w->buffer);
    free(w);
}
