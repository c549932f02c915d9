#include "image/metadata.h"

#include "base/file.h"
#include "image/usage.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

typedef struct Check {
    int fd;
    const uint8_t *header; // of a cluster; NULL: the file's
    uint64_t cluster_size;
    Usage usage;
    HashStream *hash;
    uint8_t *buffer; // one cluster
    uint8_t *block;  // the refcounts of the clusters that are looked at
} Check;

static bool damaged(Err *err, const char *what, uint64_t at)
{
    return err_set(err, ERR_DAMAGED, "image: %s (at %llu)", what, (unsigned long long)at);
}

static bool read_cluster(const Check *c, uint64_t offset, uint8_t *p, Err *err)
{
    if (offset == 0 && c->header) {
        memcpy(p, c->header, c->cluster_size);
        return true;
    }
    return file_pread(c->fd, p, c->cluster_size, offset, err);
}

// What compressed data leaves of a cluster.
static void hash_gaps(const Check *c, uint32_t i)
{
    uint32_t sectors = (uint32_t)(c->cluster_size / 512);
    for (uint32_t from = 0, to; from < sectors; from = to) {
        bool packed = usage_packed(&c->usage, i, from);
        for (to = from + 1; to < sectors && usage_packed(&c->usage, i, to) == packed;)
            to++;
        if (!packed)
            hash_stream_add(c->hash, c->buffer + (size_t)from * 512, (size_t)(to - from) * 512);
    }
}

static bool check_cluster(Check *c, uint32_t i, Err *err)
{
    const Usage *u = &c->usage;
    uint64_t number = u->first + i, per_block = c->cluster_size / QCOW2_REFCOUNT_BYTES;
    if (number % per_block == 0 && !read_cluster(c, usage_refcount_block(u, number / per_block), c->block, err))
        return false;
    if (qcow2_get16(c->block + number % per_block * QCOW2_REFCOUNT_BYTES) != u->refs[i])
        return damaged(err, "a refcount is not what it must be", usage_refcount_block(u, number / per_block));
    // Only compressed data that was replaced leaves a cluster to nobody.
    if (u->kinds[i] == USAGE_FREE && (!u->packed || number + 1 == u->clusters))
        return damaged(err, "a cluster that nothing uses", number << u->h.cluster_bits);
    if (u->kinds[i] == USAGE_DATA)
        return true;
    if (!read_cluster(c, number << u->h.cluster_bits, c->buffer, err))
        return false;
    if (u->kinds[i] == USAGE_PACKED)
        hash_gaps(c, i);
    else
        hash_stream_add(c->hash, c->buffer, c->cluster_size);
    return true;
}

// Behind the file's end every refcount is 0.
static bool check_rest_of_block(const Check *c, Err *err)
{
    const Usage *u = &c->usage;
    uint64_t per_block = c->cluster_size / QCOW2_REFCOUNT_BYTES;
    for (uint64_t i = u->clusters; i % per_block != 0; i++)
        if (qcow2_get16(c->block + i % per_block * QCOW2_REFCOUNT_BYTES) != 0)
            return damaged(err, "a refcount behind the end", usage_refcount_block(u, i / per_block));
    return true;
}

static bool check(Check *c, const HashGeometry *geo, Err *err)
{
    c->cluster_size = geo->cluster_size;
    c->buffer = mem_calloc(1, c->cluster_size, err);
    c->block = mem_calloc(1, c->cluster_size, err);
    if (!c->buffer || !c->block)
        return false;
    if (!usage_open(c->fd, c->header, geo, &c->usage, err) || !hash_stream_new(&geo->spec, &c->hash, err))
        return false;
    for (uint64_t first = 0; first < c->usage.clusters; first += c->usage.n) {
        if (!usage_window(&c->usage, first, err))
            return false;
        for (uint32_t i = 0; i < c->usage.n; i++)
            if (!check_cluster(c, i, err))
                return false;
    }
    return check_rest_of_block(c, err);
}

bool image_metadata_hash_with(const char *image_path, const uint8_t *header, const HashGeometry *geo, Hash *ret,
                              uint64_t *ret_length, Err *err)
{
    cleanup_close int fd = open(image_path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", image_path);
    Check c = {.fd = fd, .header = header};
    bool ok = check(&c, geo, err);
    if (ok) {
        hash_stream_end(c.hash, ret);
        *ret_length = c.usage.clusters << c.usage.h.cluster_bits;
    }
    hash_stream_free(c.hash);
    usage_clear(&c.usage);
    free(c.buffer);
    free(c.block);
    return ok || err_context(err, "%s", image_path);
}

bool image_metadata_hash(const char *image_path, const HashGeometry *geo, Hash *ret, uint64_t *ret_length, Err *err)
{
    return image_metadata_hash_with(image_path, NULL, geo, ret, ret_length, err);
}
