// One image of a chain: opening it with every check, and its entries. All that is in it is hostile input.

#include "image/reader_parts.h"

#include "base/file.h"
#include "base/str.h"
#include "codec/zframe.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

void reader_file_clear(ReaderFile *f)
{
    if (f->fd >= 0)
        (void)close(f->fd); // only read
    free(f->path);
    free(f->tables);
    *f = (ReaderFile){.fd = -1};
}

bool reader_file_context(const Reader *r, size_t layer, Err *err)
{
    return err_context(err, "layer %zu (%s)", layer, r->files[layer].path);
}

static bool open_image(ReaderFile *f, Err *err)
{
    struct stat st;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK);
    if (f->fd < 0 || fstat(f->fd, &st) != 0)
        return err_errno(err, errno, "cannot open it");
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_DAMAGED, "not a regular file");
    f->bytes = (uint64_t)st.st_size;
    return true;
}

static bool read_header(ReaderFile *f, Err *err)
{
    uint8_t start[QCOW2_HEADER_READ];
    size_t n = (size_t)MIN(f->bytes, sizeof start);
    return file_pread(f->fd, start, n, 0, err) && qcow2_header_decode(start, n, f->bytes, &f->header, err);
}

// What the hashes' trailer says of the image; the trailer's own truth is the commit record's matter.
static bool read_summary(const ReaderLayer *layer, const HashGeometry *geo, ReaderFile *f, Err *err)
{
    HashesFile *h;
    if (!hashes_open(layer->hashes, geo, &h, err))
        return false;
    f->size = hashes_summary(h)->size;
    uint64_t bytes = hashes_summary(h)->image_bytes;
    hashes_free(h);
    if (bytes != f->bytes)
        return err_set(err, ERR_DAMAGED, "%llu bytes long, not %llu as its hashes say", (unsigned long long)f->bytes,
                       (unsigned long long)bytes);
    return true;
}

static bool check_header(const ReaderLayer *layer, const HashGeometry *geo, const ReaderFile *f, Err *err)
{
    const Qcow2Header *h = &f->header;
    if (UINT32_C(1) << h->cluster_bits != geo->cluster_size)
        return err_set(err, ERR_DAMAGED, "clusters of %u bytes, not %u", 1u << h->cluster_bits, geo->cluster_size);
    if (h->size != align_up(f->size, 512))
        return err_set(err, ERR_DAMAGED, "a disk of %llu bytes, not %llu", (unsigned long long)h->size,
                       (unsigned long long)f->size);
    // Safety rule 19: nothing is ever opened because an image names it.
    const char *want = layer->backing_name ? layer->backing_name : "";
    if (!str_eq(h->backing_name, want))
        return err_set(err, ERR_DAMAGED, "its backing file is called '%.200s', not '%.200s'", h->backing_name, want);
    return true;
}

static bool read_tables(ReaderFile *f, Err *err)
{
    const Qcow2Header *h = &f->header; // decoding bounded l1_size, and saw that L1 lies inside the file
    cleanup_free uint8_t *raw = mem_calloc(h->l1_size, 8, err);
    f->tables = mem_calloc(h->l1_size, sizeof *f->tables, err);
    if (!raw || !f->tables || !file_pread(f->fd, raw, (size_t)h->l1_size * 8, h->l1_offset, err))
        return false;
    for (uint32_t i = 0; i < h->l1_size; i++)
        if (!qcow2_l1_decode(qcow2_get64(raw + (size_t)i * 8), h->cluster_bits, f->bytes, &f->tables[i], err))
            return err_context(err, "L1 entry %u", i);
    return true;
}

bool reader_file_open(const ReaderLayer *layer, const HashGeometry *geo, ReaderFile *ret, Err *err)
{
    ReaderFile f = {.fd = -1};
    f.path = mem_strdup(layer->image, err);
    if (!f.path || !open_image(&f, err) || !read_header(&f, err) || !read_summary(layer, geo, &f, err) ||
        !check_header(layer, geo, &f, err) || !read_tables(&f, err)) {
        reader_file_clear(&f);
        return err_context(err, "%s", layer->image);
    }
    *ret = f;
    return true;
}

// ---- entries

bool reader_file_entry(const ReaderFile *f, const uint8_t *table, uint32_t index, Qcow2Entry *ret, Err *err)
{
    const uint8_t *p = table + (size_t)index * qcow2_l2_entry_bytes(f->header.extended_l2);
    uint32_t bits = f->header.cluster_bits;
    // QEMU leaves the last data cluster of a file short: what it lacks is zeros.
    uint64_t bytes = align_up(f->bytes, UINT64_C(1) << bits);
    if (f->header.extended_l2)
        return qcow2_l2_decode_extended(qcow2_get64(p), qcow2_get64(p + 8), bits, bytes, ret, err);
    return qcow2_l2_decode(qcow2_get64(p), bits, bytes, ret, err);
}

bool reader_file_lookup(const ReaderFile *f, uint64_t cluster, Qcow2Entry *ret, Err *err)
{
    uint32_t per_table = qcow2_l2_entries(f->header.cluster_bits, f->header.extended_l2);
    uint64_t table = cluster / per_table;
    if (table >= f->header.l1_size || f->tables[table] == 0) {
        *ret = (Qcow2Entry){.kind = QCOW2_UNALLOCATED};
        return true;
    }
    uint8_t raw[16];
    uint32_t bytes = qcow2_l2_entry_bytes(f->header.extended_l2);
    return file_pread(f->fd, raw, bytes, f->tables[table] + cluster % per_table * bytes, err) &&
        reader_file_entry(f, raw, 0, ret, err);
}

bool reader_file_read(const ReaderFile *f, uint64_t offset, void *p, size_t n, Err *err)
{
    size_t inside = offset >= f->bytes ? 0 : (size_t)MIN(n, f->bytes - offset);
    if (!file_pread(f->fd, p, inside, offset, err))
        return false;
    memset((uint8_t *)p + inside, 0, n - inside);
    return true;
}

// ---- compressed clusters

bool reader_file_inflate(const ReaderFile *f, uint64_t offset, uint32_t length, void *p, Err *err)
{
    if (f->header.compression != QCOW2_ZSTD)
        return err_set(err, ERR_UNSUPPORTED, "clusters compressed with zlib are not read; use qemu-img");
    cleanup_free uint8_t *raw = mem_calloc(length, 1, err);
    return raw && reader_file_read(f, offset, raw, length, err) && // the last sector may end behind the file
        zframe_inflate(raw, length, p, (size_t)1 << f->header.cluster_bits, err);
}
