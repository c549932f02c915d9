#include "image/hashes_format.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

typedef struct IndexEntry {
    uint64_t group, offset, checksum;
    uint32_t data, zero;
} IndexEntry;

struct HashesFile {
    HashGeometry geo;
    int fd;
    uint64_t clusters, groups;
    HashesSummary summary;
    IndexEntry *index; // ascending by group
    size_t index_len;
    Hash *nodes;
};

// Where things lie, from the trailer.
typedef struct Frame {
    uint64_t bytes; // of the file
    uint64_t index, records, nodes, groups;
    uint8_t header[HASHES_HEADER_BYTES];
    uint8_t trailer[HASHES_TRAILER_BYTES];
} Frame;

static bool damaged(Err *err, const char *what)
{
    return err_set(err, ERR_DAMAGED, "hashes: %s", what);
}

static bool read_frame(HashesFile *f, Frame *ret, Err *err)
{
    struct stat st;
    if (fstat(f->fd, &st) != 0)
        return err_errno(err, errno, "cannot look at it");
    if (!S_ISREG(st.st_mode) || st.st_size < HASHES_HEADER_BYTES + HASHES_TRAILER_BYTES)
        return damaged(err, "too short");
    ret->bytes = (uint64_t)st.st_size;
    if (!file_pread(f->fd, ret->header, sizeof ret->header, 0, err) ||
        !file_pread(f->fd, ret->trailer, sizeof ret->trailer, ret->bytes - HASHES_TRAILER_BYTES, err))
        return false;
    uint8_t want[HASHES_HEADER_BYTES];
    uint64_t size = hashes_get64(ret->header + HASHES_AT_SIZE);
    hashes_make_header(&f->geo, size, want);
    if (memcmp(want, ret->header, sizeof want) != 0)
        return damaged(err, "not a hashes file, or of another cluster size, algorithm or seed");
    if (size == 0 || size > DISK_SIZE_MAX || memcmp(ret->trailer, HASHES_TRAILER_MAGIC, 8) != 0 ||
        hashes_get64(ret->trailer + HASHES_AT_NUMBERS) != size)
        return damaged(err, "bad trailer");
    ret->index = hashes_get64(ret->trailer + HASHES_AT_INDEX);
    ret->records = hashes_get64(ret->trailer + HASHES_AT_RECORDS);
    ret->nodes = hashes_get64(ret->trailer + HASHES_AT_NODES);
    ret->groups = hashes_get64(ret->trailer + HASHES_AT_GROUPS);
    f->summary.size = size;
    f->groups = hash_groups(&f->geo, size);
    f->clusters = size / f->geo.cluster_size + (size % f->geo.cluster_size != 0);
    // The parts follow each other without a gap, which also bounds every number by the file's length.
    uint64_t end = ret->bytes - HASHES_TRAILER_BYTES;
    if (ret->index < HASHES_HEADER_BYTES || ret->index > end || ret->records > f->groups ||
        ret->records > (end - ret->index) / HASHES_INDEX_BYTES ||
        ret->nodes != ret->index + ret->records * HASHES_INDEX_BYTES || ret->groups != f->groups ||
        ret->groups > (end - ret->nodes) / hash_size(f->geo.spec.algorithm) ||
        ret->nodes + ret->groups * hash_size(f->geo.spec.algorithm) != end)
        return damaged(err, "its parts do not fit its length");
    return true;
}

static bool parse_index(HashesFile *f, const Frame *frame, const uint8_t *p, Err *err)
{
    f->index = mem_calloc(frame->records, sizeof *f->index, err);
    if (!f->index)
        return false;
    uint64_t offset = HASHES_HEADER_BYTES, data = 0, zero = 0;
    for (uint64_t i = 0; i < frame->records; i++, p += HASHES_INDEX_BYTES) {
        IndexEntry e = {
            .group = hashes_get64(p),
            .offset = hashes_get64(p + 8),
            .checksum = hashes_get64(p + 16),
            .data = hashes_get32(p + 24),
            .zero = hashes_get32(p + 28),
        };
        if (e.group >= f->groups || (i > 0 && e.group <= f->index[i - 1].group) || e.offset != offset ||
            (uint64_t)e.data + e.zero > f->geo.leaves || e.data + e.zero == 0)
            return damaged(err, "bad index");
        offset += hashes_marks_bytes(&f->geo) + e.data * hash_size(f->geo.spec.algorithm);
        if (offset > frame->index)
            return damaged(err, "bad index");
        data += e.data;
        zero += e.zero;
        f->index[i] = e;
    }
    f->index_len = frame->records;
    if (offset != frame->index || data != f->summary.stored_clusters || zero != f->summary.zeroed_clusters)
        return damaged(err, "its records are not what its trailer says");
    return true;
}

static void parse_summary(const uint8_t *trailer, HashesSummary *s)
{
    uint64_t *const numbers[HASHES_NUMBERS] = {
        &s->size,
        &s->received_data,
        &s->received_zero,
        &s->stored_clusters,
        &s->zeroed_clusters,
        &s->skipped_clusters,
        &s->image_bytes,
        &s->covered_extents,
        &s->covered_bytes,
        &s->covered_digest,
    };
    for (size_t i = 0; i < HASHES_NUMBERS; i++)
        *numbers[i] = hashes_get64(trailer + HASHES_AT_NUMBERS + 8 * i);
    memcpy(s->root.bytes, trailer + HASHES_AT_ROOT, HASH_BYTES_MAX);
    memcpy(s->metadata.bytes, trailer + HASHES_AT_METADATA, HASH_BYTES_MAX);
}

// Index and nodes, behind the checksum of the frame.
static bool read_tables(HashesFile *f, const Frame *frame, Err *err)
{
    size_t bytes = hash_size(f->geo.spec.algorithm);
    size_t n = (size_t)(frame->bytes - HASHES_TRAILER_BYTES - frame->index);
    cleanup_free uint8_t *p = mem_calloc(n, 1, err);
    XXH3_state_t *sum = XXH3_createState();
    f->nodes = mem_calloc(f->groups, sizeof(Hash), err);
    if (!p || !sum || !f->nodes || !file_pread(f->fd, p, n, frame->index, err)) {
        (void)XXH3_freeState(sum); // always XXH_OK
        return err_no_memory(err);
    }
    (void)XXH3_64bits_reset(sum); // these fail on NULL only
    (void)XXH3_64bits_update(sum, frame->header, sizeof frame->header);
    (void)XXH3_64bits_update(sum, p, n);
    (void)XXH3_64bits_update(sum, frame->trailer, HASHES_AT_CHECKSUM);
    uint64_t checksum = XXH3_64bits_digest(sum);
    (void)XXH3_freeState(sum);
    if (checksum != hashes_get64(frame->trailer + HASHES_AT_CHECKSUM))
        return damaged(err, "bytes have changed since it was written");
    parse_summary(frame->trailer, &f->summary);
    if (!parse_index(f, frame, p, err))
        return false;
    for (uint64_t i = 0; i < f->groups; i++)
        memcpy(f->nodes[i].bytes, p + frame->records * HASHES_INDEX_BYTES + i * bytes, bytes);
    Hash root;
    hash_root(&f->geo, f->summary.size, f->nodes, f->groups, &root);
    return hash_equal(&root, &f->summary.root) || damaged(err, "its nodes do not give its root");
}

bool hashes_open(const char *path, const HashGeometry *geo, HashesFile **ret, Err *err)
{
    HashesFile *f = mem_calloc(1, sizeof *f, err);
    if (!f)
        return false;
    f->geo = *geo;
    Frame frame = {0};
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); // a FIFO must not hold us
    bool ok = f->fd >= 0 || err_errno(err, errno, "cannot open it");
    if (!ok || !read_frame(f, &frame, err) || !read_tables(f, &frame, err)) {
        hashes_free(f);
        return err_context(err, "%s", path);
    }
    *ret = f;
    return true;
}

void hashes_free(HashesFile *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        (void)close(f->fd); // only read
    free(f->index);
    free(f->nodes);
    free(f);
}

const HashesSummary *hashes_summary(const HashesFile *f)
{
    return &f->summary;
}

const Hash *hashes_node(const HashesFile *f, uint64_t group)
{
    return &f->nodes[group];
}

static const IndexEntry *find(const HashesFile *f, uint64_t group)
{
    size_t low = 0, high = f->index_len;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (f->index[mid].group == group)
            return &f->index[mid];
        if (f->index[mid].group < group)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

// Counts and bounds of the marks, before anything is handed out.
static bool check_marks(const HashesFile *f, const IndexEntry *e, const uint8_t *packed)
{
    uint64_t first = e->group * f->geo.leaves, data = 0, zero = 0;
    for (uint32_t i = 0; i < f->geo.leaves; i++) {
        unsigned mark = (packed[i / 4] >> (i % 4 * 2)) & 3;
        if (mark > HASH_ZERO || (mark != HASH_ABSENT && first + i >= f->clusters))
            return false;
        data += mark == HASH_DATA;
        zero += mark == HASH_ZERO;
    }
    return data == e->data && zero == e->zero;
}

bool hashes_group(const HashesFile *f, uint64_t group, uint8_t *ret_marks, Hash *ret_leaves, bool *ret_any, Err *err)
{
    const IndexEntry *e = find(f, group);
    if (!e) {
        memset(ret_marks, HASH_ABSENT, f->geo.leaves);
        *ret_any = false;
        return true;
    }
    size_t bytes = hash_size(f->geo.spec.algorithm), at = hashes_marks_bytes(&f->geo);
    size_t n = at + e->data * bytes;
    cleanup_free uint8_t *p = mem_calloc(n, 1, err);
    if (!p || !file_pread(f->fd, p, n, e->offset, err))
        return false;
    if (XXH3_64bits_withSeed(p, n, group) != e->checksum || !check_marks(f, e, p))
        return err_set(err, ERR_DAMAGED, "hashes: group %llu has changed since it was written",
                       (unsigned long long)group);
    for (uint32_t i = 0; i < f->geo.leaves; i++) {
        ret_marks[i] = (p[i / 4] >> (i % 4 * 2)) & 3;
        if (ret_marks[i] == HASH_DATA) {
            ret_leaves[i] = (Hash){0};
            memcpy(ret_leaves[i].bytes, p + at, bytes);
            at += bytes;
        } else if (ret_marks[i] == HASH_ZERO) {
            ret_leaves[i] = f->geo.zero_leaf;
        }
    }
    *ret_any = true;
    return true;
}

bool hashes_file_digest(const char *path, const HashSpec *spec, Hash *ret, Err *err)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    enum { STEP = 256 << 10 };
    cleanup_free uint8_t *p = mem_calloc(STEP, 1, err);
    HashStream *s = NULL;
    if (!p || !hash_stream_new(spec, &s, err))
        return false;
    for (;;) {
        ssize_t n = read(fd, p, STEP);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            if (n == 0)
                hash_stream_end(s, ret);
            else
                err_errno(err, errno, "cannot read %s", path);
            hash_stream_free(s);
            return n == 0;
        }
        hash_stream_add(s, p, (size_t)n);
    }
}
