#include "image/reader_parts.h"

#define RUN_MAX (1u << 20) // bytes of neighbouring clusters that one read takes
#define SUBCLUSTERS 32

void reader_free(Reader *r)
{
    if (!r)
        return;
    reader_map_clear(r);
    for (size_t i = 0; i < r->len; i++)
        reader_file_clear(&r->files[i]);
    free(r->files);
    chain_hashes_free(r->chain);
    free(r);
}

static bool open_layers(Reader *r, const ReaderLayer *layers, size_t n, Err *err)
{
    cleanup_free ChainLayerPath *paths = mem_calloc(n, sizeof *paths, err);
    r->files = mem_calloc(n, sizeof *r->files, err);
    if (!paths || !r->files)
        return false;
    uint64_t limit = UINT64_MAX;
    for (size_t i = 0; i < n; i++) {
        if ((layers[i].backing_name != NULL) != (i + 1 < n))
            return err_set(err, ERR_DAMAGED, "layer %zu of %zu %s a backing file", i, n,
                           layers[i].backing_name ? "has" : "lacks");
        if (!reader_file_open(&layers[i], &r->geo, &r->files[i], err))
            return err_context(err, "layer %zu", i);
        r->len++;
        limit = MIN(limit, r->files[i].size);
        r->files[i].limit = limit;
        paths[i] = (ChainLayerPath){.image = layers[i].image, .hashes = layers[i].hashes};
    }
    r->size = r->files[0].size;
    r->cluster_bits = r->files[0].header.cluster_bits;
    return chain_hashes_open(paths, n, &r->geo, &r->chain, err);
}

bool reader_open(const ReaderLayer *layers, size_t n, const HashGeometry *geo, Reader **ret, Err *err)
{
    if (n == 0 || n > CHAIN_LAYERS_MAX)
        return err_set(err, ERR_INVALID, "a chain has 1 to %d layers, not %zu", CHAIN_LAYERS_MAX, n);
    Reader *r = mem_calloc(1, sizeof *r, err);
    if (!r)
        return false;
    r->geo = *geo;
    if (!reader_map_init(r, err)) {
        free(r);
        return false;
    }
    if (!open_layers(r, layers, n, err)) {
        reader_free(r);
        return false;
    }
    *ret = r;
    return true;
}

uint64_t reader_size(const Reader *r)
{
    return r->size;
}

// ---- clusters

// Bytes of a cluster that a layer can show: what lies beyond its size, or a size above it, is zero.
static uint64_t visible(const Reader *r, size_t layer, uint64_t cluster)
{
    uint64_t start = cluster << r->cluster_bits, limit = r->files[layer].limit;
    return limit <= start ? 0 : MIN(limit - start, r->geo.cluster_size);
}

// Subclusters that one layer's entry decides, of those in `open`.
static bool mix_layer(const Reader *r, size_t layer, uint64_t cluster, uint32_t *open, uint8_t *p, Err *err)
{
    const ReaderFile *f = &r->files[layer];
    uint64_t sub = r->geo.cluster_size / SUBCLUSTERS, seen = visible(r, layer, cluster);
    cleanup_free uint8_t *whole = NULL;
    Qcow2Entry e;
    if (!reader_file_lookup(f, cluster, &e, err))
        return false;
    uint32_t alloc = e.alloc, zero = e.zero;
    if (!e.subclusters) {
        alloc = e.kind == QCOW2_NORMAL || e.kind == QCOW2_COMPRESSED ? UINT32_MAX : 0;
        zero = e.kind == QCOW2_ZERO_PLAIN || e.kind == QCOW2_ZERO_ALLOC ? UINT32_MAX : 0;
    }
    if (!e.subclusters && e.kind == QCOW2_COMPRESSED) {
        whole = mem_calloc(r->geo.cluster_size, 1, err);
        if (!whole || !reader_file_inflate(f, e.offset, e.length, whole, err))
            return false;
    }
    for (unsigned k = 0; k < SUBCLUSTERS; k++) {
        uint64_t at = k * sub;
        if (!(*open & alloc & (UINT32_C(1) << k)) || at >= seen)
            continue;
        size_t n = (size_t)MIN(sub, seen - at);
        if (whole)
            memcpy(p + at, whole + at, n);
        else if (!reader_file_read(f, e.offset + at, p + at, n, err))
            return false;
    }
    *open &= ~(alloc | zero);
    return true;
}

// A cluster whose subclusters come from several layers, from `first` on.
static bool read_mixed(const Reader *r, size_t first, uint64_t cluster, uint8_t *p, Err *err)
{
    uint32_t open = UINT32_MAX;
    memset(p, 0, r->geo.cluster_size);
    for (size_t layer = first; layer < r->len && open != 0; layer++) {
        if (visible(r, layer, cluster) == 0)
            break;
        if (!mix_layer(r, layer, cluster, &open, p, err))
            return reader_file_context(r, layer, err);
    }
    return true;
}

static bool verify(const Reader *r, const MapGroup *g, uint32_t i, const uint8_t *p, Err *err)
{
    Hash h;
    hash_bytes(&r->geo.spec, p, r->geo.cluster_size, &h);
    if (hash_equal(&h, &g->leaves[i]))
        return true;
    return err_set(err, ERR_DAMAGED, "offset %llu: layer %u (%s): the data is not what was written",
                   (unsigned long long)((g->group * r->geo.leaves + i) << r->cluster_bits), g->layers[i],
                   r->files[g->layers[i]].path);
}

// A whole cluster, padded with zeros, checked.
static bool read_cluster(const Reader *r, const MapGroup *g, uint32_t i, uint8_t *p, Err *err)
{
    uint64_t cluster = g->group * r->geo.leaves + i;
    size_t layer = g->layers[i];
    if (g->kinds[i] == MAP_ZERO) { // the map's builder saw that the leaf says so too
        memset(p, 0, r->geo.cluster_size);
        return true;
    }
    const ReaderFile *f = &r->files[layer];
    bool ok;
    if (g->kinds[i] == MAP_MIXED)
        return read_mixed(r, layer, cluster, p, err) && verify(r, g, i, p, err);
    if (g->kinds[i] == MAP_COMPRESSED)
        ok = reader_file_inflate(f, g->offsets[i], g->lengths[i], p, err);
    else
        ok = reader_file_read(f, g->offsets[i], p, r->geo.cluster_size, err);
    if (!ok) {
        err_context(err, "offset %llu", (unsigned long long)(cluster << r->cluster_bits));
        return reader_file_context(r, layer, err);
    }
    // As a whole, with the zeros behind a layer's end: QEMU shows some of them, rounding the size up.
    return verify(r, g, i, p, err);
}

// How many clusters from i on lie one behind the other in one file, at most `max`?
static uint32_t run_length(const Reader *r, const MapGroup *g, uint32_t i, uint32_t max)
{
    uint32_t n = 1;
    if (g->kinds[i] != MAP_DATA)
        return n;
    while (n < max && g->kinds[i + n] == MAP_DATA && g->layers[i + n] == g->layers[i] &&
           g->offsets[i + n] == g->offsets[i] + ((uint64_t)n << r->cluster_bits))
        n++;
    return n;
}

// Whole clusters that lie side by side: one read.
static bool read_run(const Reader *r, const MapGroup *g, uint32_t i, uint32_t n, uint8_t *p, Err *err)
{
    if (n == 1)
        return read_cluster(r, g, i, p, err);
    size_t layer = g->layers[i];
    if (!reader_file_read(&r->files[layer], g->offsets[i], p, (size_t)n << r->cluster_bits, err))
        return reader_file_context(r, layer, err);
    for (uint32_t k = 0; k < n; k++)
        if (!verify(r, g, i + k, p + ((size_t)k << r->cluster_bits), err))
            return false;
    return true;
}

static bool check_range(const Reader *r, uint64_t offset, uint64_t length, Err *err)
{
    if (offset > r->size || length > r->size - offset)
        return err_set(err, ERR_INVALID, "%llu bytes at %llu are beyond the disk's %llu", (unsigned long long)length,
                       (unsigned long long)offset, (unsigned long long)r->size);
    return true;
}

// What one group has of [offset, offset + length).
static bool read_in_group(const Reader *r, const MapGroup *g, uint8_t *p, uint64_t offset, uint64_t length, Err *err)
{
    uint32_t size = r->geo.cluster_size;
    cleanup_free uint8_t *bounce = NULL;
    while (length > 0) {
        uint32_t i = (uint32_t)((offset >> r->cluster_bits) % r->geo.leaves);
        uint64_t in = offset & (size - 1), n;
        if (in == 0 && length >= size) {
            uint32_t max = (uint32_t)(MIN(length, MAX(RUN_MAX, size)) >> r->cluster_bits);
            uint32_t run = run_length(r, g, i, max);
            n = (uint64_t)run << r->cluster_bits;
            if (!read_run(r, g, i, run, p, err))
                return false;
        } else {
            n = MIN(size - in, length);
            if (!bounce && !(bounce = mem_calloc(size, 1, err)))
                return false;
            if (!read_cluster(r, g, i, bounce, err))
                return false;
            memcpy(p, bounce + in, n);
        }
        p += n;
        offset += n;
        length -= n;
    }
    return true;
}

bool reader_read(Reader *r, void *p, uint64_t offset, uint32_t length, Err *err)
{
    if (!check_range(r, offset, length, err))
        return false;
    uint64_t group_size = (uint64_t)r->geo.leaves << r->cluster_bits;
    for (uint64_t done = 0; done < length;) {
        uint64_t at = offset + done, n = MIN(group_size - at % group_size, length - done);
        MapGroup *g;
        if (!reader_map_get(r, at / group_size, &g, err))
            return false;
        bool ok = read_in_group(r, g, (uint8_t *)p + done, at, n, err);
        reader_map_put(r, g);
        if (!ok)
            return false;
        done += n;
    }
    return true;
}

// ---- maps

static bool add_extent(ExtentVec *v, uint64_t offset, uint64_t length, bool zero, Err *err)
{
    Extent *last = v->len > 0 ? &v->items[v->len - 1] : NULL;
    if (last && last->zero == zero) {
        last->length += length;
        return true;
    }
    return extent_vec_push(v, (Extent){.offset = offset, .length = length, .zero = zero}, err);
}

static bool extents_in(Reader *r, uint64_t offset, uint64_t length, ExtentVec *v, Err *err)
{
    uint64_t group_size = (uint64_t)r->geo.leaves << r->cluster_bits;
    for (uint64_t end = offset + length; offset < end;) {
        uint64_t group_end = MIN(end, (offset / group_size + 1) * group_size);
        MapGroup *g;
        if (!reader_map_get(r, offset / group_size, &g, err))
            return false;
        bool ok = true;
        while (ok && offset < group_end) {
            uint64_t next = MIN(group_end, align_down(offset, r->geo.cluster_size) + r->geo.cluster_size);
            uint32_t i = (uint32_t)((offset >> r->cluster_bits) % r->geo.leaves);
            ok = add_extent(v, offset, next - offset, g->kinds[i] == MAP_ZERO, err);
            offset = next;
        }
        reader_map_put(r, g);
        if (!ok)
            return false;
    }
    return true;
}

bool reader_extents(Reader *r, uint64_t offset, uint64_t length, ExtentVec *ret, Err *err)
{
    ExtentVec v = {0};
    if (!check_range(r, offset, length, err))
        return false;
    if (!extents_in(r, offset, length, &v, err)) {
        extent_vec_clear(&v);
        return false;
    }
    *ret = v;
    return true;
}

bool reader_layer_at(Reader *r, uint64_t offset, uint8_t *ret_layer, Err *err)
{
    MapGroup *g;
    if (!check_range(r, offset, 1, err) || !reader_map_get(r, (offset >> r->cluster_bits) / r->geo.leaves, &g, err))
        return false;
    *ret_layer = g->layers[(offset >> r->cluster_bits) % r->geo.leaves];
    reader_map_put(r, g);
    return true;
}
