#include "image/journal.h"

#include "base/file.h"
#include "base/uuid.h"
#include "image/hashes_format.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC "SDJOURN1"
#define HEADER_BYTES 64
#define RECORD_BYTES 24 // count, next, checksum
#define ITEM_BYTES 24   // first, count, kind, entry; the leaf follows

enum { // in the header
    AT_ALGORITHM = 8,
    AT_MODE = 12,
    AT_SEED = 16,
    AT_SIZE = 24,
    AT_CLUSTER = 32,
    AT_NONCE = 40,
    AT_CHECKSUM = 56, // XXH3-64 of all that is before it
};

struct Journal {
    int fd;
    uint64_t offset; // of the next record
    uint64_t chain;  // checksum of what was written last
    size_t hash_bytes;
    uint8_t header[HEADER_BYTES];
};

static void make_header(const JournalSpec *s, uint8_t out[HEADER_BYTES])
{
    memset(out, 0, HEADER_BYTES);
    memcpy(out, MAGIC, 8);
    hashes_put32(out + AT_ALGORITHM, (uint32_t)s->hash.algorithm);
    hashes_put32(out + AT_MODE, (uint32_t)s->mode);
    hashes_put64(out + AT_SEED, s->hash.seed);
    hashes_put64(out + AT_SIZE, s->size);
    hashes_put32(out + AT_CLUSTER, s->cluster_size);
}

bool journal_create(const char *path, const JournalSpec *spec, Journal **ret, Err *err)
{
    Journal *j = mem_calloc(1, sizeof *j, err);
    if (!j)
        return false;
    j->hash_bytes = hash_size(spec->hash.algorithm);
    j->offset = HEADER_BYTES;
    make_header(spec, j->header);
    j->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (j->fd < 0) {
        (void)err_errno(err, errno, "cannot create %s", path);
        free(j);
        return false;
    }
    if (!uuid_random_bytes(j->header + AT_NONCE, 8, err)) {
        journal_free(j);
        return false;
    }
    j->chain = XXH3_64bits(j->header, AT_CHECKSUM);
    hashes_put64(j->header + AT_CHECKSUM, j->chain);
    *ret = j;
    return true;
}

void journal_free(Journal *j)
{
    if (!j)
        return;
    (void)close(j->fd); // each record was synced
    free(j);
}

// Of a record's head, but for the checksum, and its items.
static uint64_t checksum(const uint8_t *record, size_t bytes, uint64_t chain)
{
    uint64_t items = XXH3_64bits_withSeed(record + RECORD_BYTES, bytes - RECORD_BYTES, chain);
    return XXH3_64bits_withSeed(record, RECORD_BYTES - 8, items);
}

static void put_item(uint8_t *p, const JournalItem *item, size_t hash_bytes)
{
    hashes_put64(p, item->first);
    hashes_put32(p + 8, item->count);
    hashes_put32(p + 12, (uint32_t)item->kind);
    hashes_put64(p + 16, item->entry);
    memcpy(p + ITEM_BYTES, item->leaf.bytes, hash_bytes);
}

bool journal_append(Journal *j, const JournalItem *items, size_t n, uint64_t next, Err *err)
{
    size_t stride = ITEM_BYTES + j->hash_bytes, bytes = RECORD_BYTES + n * stride;
    cleanup_free uint8_t *record = mem_calloc(1, bytes, err);
    if (!record)
        return false;
    hashes_put64(record, n);
    hashes_put64(record + 8, next);
    for (size_t i = 0; i < n; i++)
        put_item(record + RECORD_BYTES + i * stride, &items[i], j->hash_bytes);
    uint64_t sum = checksum(record, bytes, j->chain);
    hashes_put64(record + 16, sum);
    if ((j->offset == HEADER_BYTES && !file_pwrite(j->fd, j->header, HEADER_BYTES, 0, err)) ||
        !file_pwrite(j->fd, record, bytes, j->offset, err))
        return err_context(err, "journal");
    if (fdatasync(j->fd) != 0)
        return err_errno(err, errno, "cannot sync the journal");
    j->offset += bytes;
    j->chain = sum;
    return true;
}

// ---- reading

typedef struct Reading {
    int fd;
    const JournalSpec *spec;
    uint64_t clusters, bytes; // of the disk; of the file
    uint64_t offset, chain;
    size_t hash_bytes;
    uint8_t *record; // as large as the largest
    JournalItem *items;
} Reading;

static bool read_header(Reading *r, Err *err)
{
    uint8_t header[HEADER_BYTES], expected[HEADER_BYTES];
    struct stat st;
    if (fstat(r->fd, &st) != 0)
        return err_errno(err, errno, "cannot look at the journal");
    r->bytes = (uint64_t)st.st_size;
    if (!S_ISREG(st.st_mode) || r->bytes < HEADER_BYTES)
        return err_set(err, ERR_DAMAGED, "the journal has no header");
    if (!file_pread(r->fd, header, HEADER_BYTES, 0, err))
        return false;
    r->chain = hashes_get64(header + AT_CHECKSUM);
    if (memcmp(header, MAGIC, 8) != 0 || XXH3_64bits(header, AT_CHECKSUM) != r->chain)
        return err_set(err, ERR_DAMAGED, "the journal's header is not what was written");
    make_header(r->spec, expected);
    if (memcmp(header, expected, AT_NONCE) != 0)
        return err_set(err, ERR_CONFLICT, "the journal is of another disk, or another kind of backup");
    r->offset = HEADER_BYTES;
    return true;
}

static bool get_item(const Reading *r, const uint8_t *p, JournalItem *ret, Err *err)
{
    uint32_t kind = hashes_get32(p + 12);
    *ret = (JournalItem){.first = hashes_get64(p),
                         .count = hashes_get32(p + 8),
                         .kind = (JournalKind)kind,
                         .entry = hashes_get64(p + 16)};
    memcpy(ret->leaf.bytes, p + ITEM_BYTES, r->hash_bytes);
    bool one = kind == JOURNAL_CLUSTER || kind == JOURNAL_PART;
    if (kind > JOURNAL_PART || ret->count == 0 || (one && ret->count != 1) || ret->first >= r->clusters ||
        ret->count > r->clusters - ret->first || one != (ret->entry != 0))
        return err_set(err, ERR_DAMAGED, "the journal has an item that cannot be");
    return true;
}

// *ret_any false: there is no whole one (any more).
static bool read_record(Reading *r, size_t *ret_n, uint64_t *ret_next, bool *ret_any, Err *err)
{
    size_t stride = ITEM_BYTES + r->hash_bytes;
    *ret_any = false;
    if (r->bytes - r->offset < RECORD_BYTES)
        return true;
    if (!file_pread(r->fd, r->record, RECORD_BYTES, r->offset, err))
        return false;
    uint64_t n = hashes_get64(r->record);
    if (n > JOURNAL_ITEMS_MAX || n * stride > r->bytes - r->offset - RECORD_BYTES)
        return true;
    size_t bytes = RECORD_BYTES + (size_t)n * stride;
    if (!file_pread(r->fd, r->record + RECORD_BYTES, bytes - RECORD_BYTES, r->offset + RECORD_BYTES, err))
        return false;
    uint64_t sum = hashes_get64(r->record + 16);
    if (checksum(r->record, bytes, r->chain) != sum)
        return true;
    for (size_t i = 0; i < n; i++)
        if (!get_item(r, r->record + RECORD_BYTES + i * stride, &r->items[i], err))
            return false;
    r->offset += bytes;
    r->chain = sum;
    *ret_n = (size_t)n;
    *ret_next = hashes_get64(r->record + 8);
    *ret_any = true;
    return true;
}

static bool read_all(Reading *r, JournalOnRecord on_record, void *ctx, uint64_t *ret_records, Err *err)
{
    uint64_t records = 0, next = 0;
    size_t n = 0;
    for (bool any = true; any;) {
        if (!read_record(r, &n, &next, &any, err) || (any && !on_record(ctx, r->items, n, next, err)))
            return false;
        records += any;
    }
    *ret_records = records;
    return true;
}

bool journal_read(const char *path, const JournalSpec *spec, JournalOnRecord on_record, void *ctx,
                  uint64_t *ret_records, Err *err)
{
    Reading r = {.spec = spec,
                 .clusters = spec->size / spec->cluster_size + (spec->size % spec->cluster_size != 0),
                 .hash_bytes = hash_size(spec->hash.algorithm)};
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    r.fd = fd;
    cleanup_free uint8_t *record = mem_calloc(1, RECORD_BYTES + JOURNAL_ITEMS_MAX * (ITEM_BYTES + r.hash_bytes), err);
    cleanup_free JournalItem *items = mem_calloc(JOURNAL_ITEMS_MAX, sizeof *items, err);
    r.record = record;
    r.items = items;
    return record && items && read_header(&r, err) && read_all(&r, on_record, ctx, ret_records, err);
}
