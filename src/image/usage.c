#include "image/usage.h"

#include "base/file.h"

#include <errno.h>
#include <sys/stat.h>

// Where in the file the clusters lie that a table names: a window that none of them is in need not look at it.
typedef struct Span {
    uint64_t table; // offset, 0 for none
    uint64_t low, high;
} Span;

struct UsageInside {
    int fd;
    uint64_t bytes; // of the file
    Span *spans;    // one for each L1 entry
    uint64_t *blocks;
    uint64_t blocks_len;
    uint8_t *table; // one cluster
};

static bool damaged(Err *err, const char *what, uint64_t at)
{
    return err_set(err, ERR_DAMAGED, "image: %s (at %llu)", what, (unsigned long long)at);
}

void usage_clear(Usage *u)
{
    if (u->inside) {
        free(u->inside->spans);
        free(u->inside->blocks);
        free(u->inside->table);
        free(u->inside);
    }
    free(u->kinds);
    free(u->refs);
    free(u->packed);
    *u = (Usage){0};
}

// ---- opening: every entry is looked at once

static bool read_header(Usage *u, const uint8_t *header, const HashGeometry *geo, Err *err)
{
    struct stat st;
    if (fstat(u->inside->fd, &st) != 0)
        return err_errno(err, errno, "cannot look at it");
    uint64_t bytes = (uint64_t)st.st_size;
    if (!S_ISREG(st.st_mode) || bytes == 0 || bytes % geo->cluster_size != 0)
        return damaged(err, "its length is not a number of clusters", bytes);
    if (!header && !file_pread(u->inside->fd, u->inside->table, geo->cluster_size, 0, err))
        return false;
    if (!qcow2_header_decode(header ? header : u->inside->table, MIN(geo->cluster_size, QCOW2_HEADER_READ), bytes,
                             &u->h, err))
        return false;
    if (UINT64_C(1) << u->h.cluster_bits != geo->cluster_size)
        return damaged(err, "its cluster size is not the repository's", 0);
    if (u->h.extended_l2)
        return err_set(err, ERR_UNSUPPORTED, "image: extended L2 entries");
    u->inside->bytes = bytes;
    u->clusters = bytes >> u->h.cluster_bits;
    return true;
}

static bool check_entry(const Usage *u, const Qcow2Entry *e, bool inside, uint64_t at, Err *err)
{
    if (e->kind != QCOW2_UNALLOCATED && !inside)
        return damaged(err, "an entry beyond the disk's end", at);
    if (e->kind != QCOW2_COMPRESSED)
        return true;
    if (u->h.compression != QCOW2_ZSTD)
        return err_set(err, ERR_UNSUPPORTED, "image: clusters that are compressed with zlib");
    if (e->offset % 512 != 0 || e->length > u->inside->bytes - e->offset)
        return damaged(err, "compressed data that does not begin and end with a sector of the file", at);
    return true;
}

// The next entry of the table that says anything, from *k on; *k is behind it then. *ret_any false: there is none.
static bool next_entry(const Usage *u, uint64_t *k, Qcow2Entry *ret, bool *ret_any, Err *err)
{
    uint64_t raw = 0, per_table = qcow2_l2_entries(u->h.cluster_bits, false);
    while (raw == 0 && *k < per_table)
        raw = qcow2_get64(u->inside->table + 8 * (*k)++);
    *ret_any = raw != 0;
    return raw == 0 || qcow2_l2_decode(raw, u->h.cluster_bits, u->inside->bytes, ret, err);
}

static bool look_at_table(Usage *u, uint64_t number, Span *span, Err *err)
{
    uint64_t inside = align_up(u->h.size, UINT64_C(1) << u->h.cluster_bits) >> u->h.cluster_bits;
    uint64_t first = number * qcow2_l2_entries(u->h.cluster_bits, false), k = 0;
    Qcow2Entry e;
    bool any;
    if (!file_pread(u->inside->fd, u->inside->table, (size_t)1 << u->h.cluster_bits, span->table, err))
        return false;
    span->low = UINT64_MAX;
    for (;;) {
        if (!next_entry(u, &k, &e, &any, err))
            return false;
        if (!any)
            return true;
        if (!check_entry(u, &e, first + k - 1 < inside, span->table, err))
            return false;
        if (e.offset == 0)
            continue;
        uint64_t last = e.kind == QCOW2_COMPRESSED ? e.offset + e.length - 1 : e.offset;
        span->low = MIN(span->low, e.offset >> u->h.cluster_bits);
        span->high = MAX(span->high, last >> u->h.cluster_bits);
    }
}

static bool read_l1(Usage *u, Err *err)
{
    size_t bytes = (size_t)u->h.l1_size * 8;
    cleanup_free uint8_t *l1 = mem_calloc(bytes, 1, err);
    u->inside->spans = mem_calloc(u->h.l1_size, sizeof *u->inside->spans, err);
    if (!l1 || !u->inside->spans || !file_pread(u->inside->fd, l1, bytes, u->h.l1_offset, err))
        return false;
    for (uint64_t i = 0; i < u->h.l1_size; i++) {
        Span *span = &u->inside->spans[i];
        if (!qcow2_l1_decode(qcow2_get64(l1 + 8 * i), u->h.cluster_bits, u->inside->bytes, &span->table, err) ||
            (span->table != 0 && !look_at_table(u, i, span, err)))
            return false;
    }
    return true;
}

// The refcount table names exactly the blocks that the file needs.
static bool read_refcount_table(Usage *u, Err *err)
{
    uint64_t cluster = UINT64_C(1) << u->h.cluster_bits, per_block = cluster / QCOW2_REFCOUNT_BYTES;
    uint64_t blocks = u->clusters / per_block + (u->clusters % per_block != 0), per_table = cluster / 8;
    if (u->h.refcount_table_clusters != blocks / per_table + (blocks % per_table != 0))
        return damaged(err, "the refcount table has the wrong length", u->h.refcount_table_offset);
    u->inside->blocks_len = blocks;
    u->inside->blocks = mem_calloc(blocks, sizeof *u->inside->blocks, err);
    if (!u->inside->blocks)
        return false;
    for (uint64_t i = 0; i < u->h.refcount_table_clusters * per_table; i++) {
        if (i % per_table == 0 &&
            !file_pread(u->inside->fd, u->inside->table, cluster, u->h.refcount_table_offset + i / per_table * cluster,
                        err))
            return false;
        uint64_t offset = qcow2_get64(u->inside->table + i % per_table * 8);
        if ((offset != 0) != (i < blocks) || offset % cluster != 0 || offset >= u->inside->bytes)
            return damaged(err, "the refcount table is not what it must be", u->h.refcount_table_offset);
        if (i < blocks)
            u->inside->blocks[i] = offset;
    }
    return true;
}

static bool make_room(Usage *u, Err *err)
{
    uint64_t n = MIN(u->clusters, USAGE_WINDOW);
    u->kinds = mem_calloc(n, 1, err);
    u->refs = mem_calloc(n, sizeof *u->refs, err);
    if (u->h.compression == QCOW2_ZSTD)
        u->packed = mem_calloc((n << (u->h.cluster_bits - 9)) / 64 + 1, 8, err);
    return u->kinds && u->refs && (u->packed || u->h.compression != QCOW2_ZSTD);
}

bool usage_open(int fd, const uint8_t *header, const HashGeometry *geo, Usage *ret, Err *err)
{
    Usage u = {.inside = mem_calloc(1, sizeof *u.inside, err)};
    if (!u.inside)
        return false;
    u.inside->fd = fd;
    u.inside->table = mem_calloc(1, geo->cluster_size, err);
    if (!u.inside->table || !read_header(&u, header, geo, err) || !read_l1(&u, err) || !read_refcount_table(&u, err) ||
        !make_room(&u, err)) {
        usage_clear(&u);
        return false;
    }
    *ret = u;
    return true;
}

// ---- a window

// Clusters of which each is used by one thing alone, as far as they are in the window.
static bool use(Usage *u, uint64_t offset, uint64_t clusters, UsageKind kind, Err *err)
{
    uint64_t at = offset >> u->h.cluster_bits;
    if (clusters > u->clusters || at > u->clusters - clusters)
        return damaged(err, "a table reaches beyond the end", offset);
    for (uint64_t end = MIN(at + clusters, u->first + u->n), i = MAX(at, u->first); i < end; i++) {
        if (u->kinds[i - u->first] != USAGE_FREE)
            return damaged(err, "a cluster is used twice", i << u->h.cluster_bits);
        u->kinds[i - u->first] = (uint8_t)kind;
        u->refs[i - u->first] = 1;
    }
    return true;
}

// Several may lie in one cluster, each in sectors of its own.
static bool use_packed(Usage *u, const Qcow2Entry *e, Err *err)
{
    uint64_t low = e->offset >> u->h.cluster_bits, high = (e->offset + e->length - 1) >> u->h.cluster_bits;
    for (uint64_t i = MAX(low, u->first); i <= high && i < u->first + u->n; i++) {
        uint8_t *kind = &u->kinds[i - u->first];
        if ((*kind != USAGE_FREE && *kind != USAGE_PACKED) || u->refs[i - u->first] == UINT16_MAX)
            return damaged(err, "a cluster is used twice", i << u->h.cluster_bits);
        *kind = USAGE_PACKED;
        u->refs[i - u->first]++;
    }
    uint64_t start = u->first << (u->h.cluster_bits - 9), end = (u->first + u->n) << (u->h.cluster_bits - 9);
    for (uint64_t s = MAX(e->offset / 512, start); s < MIN((e->offset + e->length) / 512, end); s++) {
        uint64_t bit = s - start;
        if (u->packed[bit / 64] >> (bit % 64) & 1)
            return damaged(err, "compressed data overlaps", s * 512);
        u->packed[bit / 64] |= UINT64_C(1) << (bit % 64);
    }
    return true;
}

static bool use_table(Usage *u, const Span *span, Err *err)
{
    uint64_t k = 0;
    Qcow2Entry e;
    bool any;
    if (!use(u, span->table, 1, USAGE_META, err))
        return false;
    if (span->low >= u->first + u->n || span->high < u->first)
        return true;
    if (!file_pread(u->inside->fd, u->inside->table, (size_t)1 << u->h.cluster_bits, span->table, err))
        return false;
    for (;;) {
        if (!next_entry(u, &k, &e, &any, err))
            return false;
        if (!any)
            return true;
        bool ok = true;
        if (e.kind == QCOW2_COMPRESSED)
            ok = use_packed(u, &e, err);
        else if (e.offset != 0)
            ok = use(u, e.offset, 1, e.kind == QCOW2_NORMAL ? USAGE_DATA : USAGE_META, err);
        if (!ok)
            return false;
    }
}

static bool use_metadata(Usage *u, Err *err)
{
    uint64_t cluster = UINT64_C(1) << u->h.cluster_bits;
    uint64_t l1 = align_up((uint64_t)u->h.l1_size * 8, cluster) >> u->h.cluster_bits;
    if (!use(u, 0, 1, USAGE_META, err) || !use(u, u->h.l1_offset, l1, USAGE_META, err) ||
        !use(u, u->h.refcount_table_offset, u->h.refcount_table_clusters, USAGE_META, err))
        return false;
    for (uint64_t i = 0; i < u->inside->blocks_len; i++)
        if (!use(u, u->inside->blocks[i], 1, USAGE_META, err))
            return false;
    return true;
}

bool usage_window(Usage *u, uint64_t first, Err *err)
{
    u->first = first;
    u->n = (uint32_t)MIN(u->clusters - first, USAGE_WINDOW);
    memset(u->kinds, USAGE_FREE, u->n);
    memset(u->refs, 0, u->n * sizeof *u->refs);
    if (u->packed)
        memset(u->packed, 0, (((size_t)u->n << (u->h.cluster_bits - 9)) / 64 + 1) * 8);
    if (!use_metadata(u, err))
        return false;
    for (uint64_t i = 0; i < u->h.l1_size; i++)
        if (u->inside->spans[i].table != 0 && !use_table(u, &u->inside->spans[i], err))
            return false;
    return true;
}

uint64_t usage_refcount_block(const Usage *u, uint64_t number)
{
    return u->inside->blocks[number];
}
