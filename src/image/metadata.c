#include "image/metadata.h"

#include "base/file.h"
#include "codec/qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Walk {
    int fd;
    const uint8_t *header; // of a cluster; NULL: the file's
    uint32_t cluster_bits;
    uint64_t cluster_size, clusters; // of the file
    Qcow2Header h;
    uint8_t *buffer;       // one cluster
    uint64_t *used, *data; // a bit for each cluster of the file
} Walk;

static bool damaged(Err *err, const char *what, uint64_t at)
{
    return err_set(err, ERR_DAMAGED, "image: %s (at %llu)", what, (unsigned long long)at);
}

static bool get_bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

static bool use(Walk *w, uint64_t offset, uint64_t clusters, Err *err)
{
    for (uint64_t i = offset >> w->cluster_bits; clusters > 0; i++, clusters--) {
        if (i >= w->clusters)
            return damaged(err, "a table reaches beyond the end", offset);
        if (get_bit(w->used, i))
            return damaged(err, "a cluster is used twice", i << w->cluster_bits);
        w->used[i / 64] |= UINT64_C(1) << (i % 64);
    }
    return true;
}

static bool read_cluster(const Walk *w, uint64_t offset, uint8_t *p, Err *err)
{
    if (offset == 0 && w->header) {
        memcpy(p, w->header, w->cluster_size);
        return true;
    }
    return file_pread(w->fd, p, w->cluster_size, offset, err);
}

static bool read_header(Walk *w, const HashGeometry *geo, Err *err)
{
    struct stat st;
    if (fstat(w->fd, &st) != 0)
        return err_errno(err, errno, "cannot look at it");
    uint64_t bytes = (uint64_t)st.st_size;
    if (!S_ISREG(st.st_mode) || bytes == 0 || bytes % geo->cluster_size != 0)
        return damaged(err, "its length is not a number of clusters", bytes);
    w->cluster_size = geo->cluster_size;
    w->clusters = bytes / geo->cluster_size;
    w->buffer = mem_calloc(1, w->cluster_size, err);
    w->used = mem_calloc(w->clusters / 64 + 1, 8, err);
    w->data = mem_calloc(w->clusters / 64 + 1, 8, err);
    if (!w->buffer || !w->used || !w->data || !read_cluster(w, 0, w->buffer, err) ||
        !qcow2_header_decode(w->buffer, QCOW2_HEADER_READ, bytes, &w->h, err))
        return false;
    w->cluster_bits = w->h.cluster_bits;
    if (UINT64_C(1) << w->cluster_bits != w->cluster_size)
        return damaged(err, "its cluster size is not the repository's", 0);
    if (w->h.extended_l2)
        return err_set(err, ERR_UNSUPPORTED, "image: extended L2 entries");
    return use(w, 0, 1, err);
}

static bool walk_l2(Walk *w, uint64_t offset, uint64_t first_cluster, Err *err)
{
    uint64_t bytes = w->clusters << w->cluster_bits, inside = align_up(w->h.size, w->cluster_size) >> w->cluster_bits;
    if (!use(w, offset, 1, err) || !read_cluster(w, offset, w->buffer, err))
        return false;
    for (uint64_t k = 0; k < w->cluster_size / 8; k++) {
        Qcow2Entry e;
        if (!qcow2_l2_decode(qcow2_get64(w->buffer + 8 * k), w->cluster_bits, bytes, &e, err))
            return false;
        if (e.kind == QCOW2_COMPRESSED)
            return err_set(err, ERR_UNSUPPORTED, "image: compressed clusters");
        if (e.kind != QCOW2_UNALLOCATED && first_cluster + k >= inside)
            return damaged(err, "an entry beyond the disk's end", offset);
        if (e.offset == 0)
            continue;
        if (!use(w, e.offset, 1, err))
            return false;
        uint64_t i = e.offset >> w->cluster_bits;
        if (e.kind == QCOW2_NORMAL)
            w->data[i / 64] |= UINT64_C(1) << (i % 64);
    }
    return true;
}

static bool walk_l1(Walk *w, Err *err)
{
    size_t bytes = (size_t)w->h.l1_size * 8;
    cleanup_free uint8_t *l1 = mem_calloc(bytes, 1, err);
    if (!l1 || !file_pread(w->fd, l1, bytes, w->h.l1_offset, err) ||
        !use(w, w->h.l1_offset, align_up(bytes, w->cluster_size) >> w->cluster_bits, err))
        return false;
    for (uint64_t i = 0; i < w->h.l1_size; i++) {
        uint64_t offset;
        if (!qcow2_l1_decode(qcow2_get64(l1 + 8 * i), w->cluster_bits, w->clusters << w->cluster_bits, &offset, err))
            return false;
        if (offset != 0 && !walk_l2(w, offset, i * (w->cluster_size / 8), err))
            return false;
    }
    return true;
}

static bool check_block(Walk *w, uint64_t offset, uint64_t first, Err *err)
{
    if (!use(w, offset, 1, err) || !read_cluster(w, offset, w->buffer, err))
        return false;
    for (uint64_t i = 0; i < w->cluster_size / QCOW2_REFCOUNT_BYTES; i++)
        if (qcow2_get16(w->buffer + i * QCOW2_REFCOUNT_BYTES) != (first + i < w->clusters ? 1 : 0))
            return damaged(err, "a refcount is not what it must be", offset);
    return true;
}

static bool walk_refcounts(Walk *w, Err *err)
{
    uint64_t per_block = w->cluster_size / QCOW2_REFCOUNT_BYTES, per_table = w->cluster_size / 8;
    uint64_t blocks = w->clusters / per_block + (w->clusters % per_block != 0);
    if (w->h.refcount_table_clusters != blocks / per_table + (blocks % per_table != 0))
        return damaged(err, "the refcount table has the wrong length", w->h.refcount_table_offset);
    cleanup_free uint8_t *table = mem_calloc(1, w->cluster_size, err);
    if (!table || !use(w, w->h.refcount_table_offset, w->h.refcount_table_clusters, err))
        return false;
    for (uint64_t i = 0; i < w->h.refcount_table_clusters * per_table; i++) {
        if (i % per_table == 0 &&
            !read_cluster(w, w->h.refcount_table_offset + i / per_table * w->cluster_size, table, err))
            return false;
        uint64_t offset = qcow2_get64(table + i % per_table * 8);
        if ((offset != 0) != (i < blocks) || offset % w->cluster_size != 0)
            return damaged(err, "the refcount table is not what it must be", w->h.refcount_table_offset);
        if (offset != 0 && !check_block(w, offset, i * per_block, err))
            return false;
    }
    for (uint64_t i = 0; i < w->clusters; i++)
        if (!get_bit(w->used, i))
            return damaged(err, "a cluster that nothing uses", i << w->cluster_bits);
    return true;
}

static bool hash_rest(Walk *w, const HashGeometry *geo, Hash *ret, Err *err)
{
    HashStream *s = NULL;
    if (!hash_stream_new(&geo->spec, &s, err))
        return false;
    bool ok = true;
    for (uint64_t i = 0; ok && i < w->clusters; i++) {
        if (i % 64 == 0 && w->data[i / 64] == UINT64_MAX) {
            i += 63;
            continue;
        }
        if (get_bit(w->data, i))
            continue;
        ok = read_cluster(w, i << w->cluster_bits, w->buffer, err);
        if (ok)
            hash_stream_add(s, w->buffer, w->cluster_size);
    }
    if (ok)
        hash_stream_end(s, ret);
    hash_stream_free(s);
    return ok;
}

bool image_metadata_hash_with(const char *image_path, const uint8_t *header, const HashGeometry *geo, Hash *ret,
                              uint64_t *ret_length, Err *err)
{
    cleanup_close int fd = open(image_path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", image_path);
    Walk w = {.fd = fd, .header = header};
    Hash hash;
    bool ok =
        read_header(&w, geo, err) && walk_l1(&w, err) && walk_refcounts(&w, err) && hash_rest(&w, geo, &hash, err);
    free(w.buffer);
    free(w.used);
    free(w.data);
    if (!ok)
        return err_context(err, "%s", image_path);
    *ret = hash;
    *ret_length = w.clusters << w.cluster_bits;
    return true;
}

bool image_metadata_hash(const char *image_path, const HashGeometry *geo, Hash *ret, uint64_t *ret_length, Err *err)
{
    return image_metadata_hash_with(image_path, NULL, geo, ret, ret_length, err);
}
