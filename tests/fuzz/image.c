// A whole point: one image with its .hashes, or two that are a chain. What can be read is right, or an error.
//
// Input, numbers little endian: for the tip and for the full behind it (all 0: the tip is the full) 12 bytes: length of
// the image, of its pieces, of its .hashes. Then pieces and .hashes of the tip, and of the full. An image is mostly
// zeros: what is not comes in pieces, each an offset of 4 bytes, a length of 2, and the bytes.
#include "fuzz.h"

#include "image/metadata.h"
#include "image/reader.h"
#include "repair.h"

#define LAYERS 2
#define HASHES_AT_IMAGE_BYTES (HASHES_AT_NUMBERS + 6 * 8) // of the trailer
#define IMAGE_MAX (1u << 18)
#define DISK_LOOKED_AT (UINT64_C(1) << 17)

typedef struct Bytes {
    uint8_t *p;
    size_t n;
} Bytes;

typedef struct Point {
    Bytes images[LAYERS], hashes[LAYERS];
    size_t layers;
} Point;

static Bytes bytes_new(size_t n)
{
    Bytes b = {calloc(n + 1, 1), n};
    fuzz_check(b.p != NULL);
    return b;
}

static Bytes unpack(const uint8_t *p, size_t n, uint32_t length)
{
    Bytes image = bytes_new(MIN(length, IMAGE_MAX));
    while (n >= 6) {
        size_t at = fuzz_get32(p), len = MIN((size_t)p[4] | (size_t)p[5] << 8, n - 6);
        if (at < image.n)
            memcpy(image.p + at, p + 6, MIN(len, image.n - at));
        p += 6 + len;
        n -= 6 + len;
    }
    return image;
}

static bool split(const uint8_t *data, size_t n, Point *ret)
{
    size_t at = 12 * LAYERS;
    if (n < at)
        return false;
    for (size_t i = 0; i < LAYERS; i++) {
        const uint8_t *lengths = data + 12 * i;
        size_t pieces = MIN(fuzz_get32(lengths + 4), n - at), hashes = MIN(fuzz_get32(lengths + 8), n - at - pieces);
        ret->images[i] = unpack(data + at, pieces, fuzz_get32(lengths));
        ret->hashes[i] = bytes_new(hashes);
        memcpy(ret->hashes[i].p, data + at + pieces, hashes);
        at += pieces + hashes;
    }
    ret->layers = ret->images[1].n > 0 ? 2 : 1;
    return true;
}

// Ascending, without a gap, and zero only where every byte is.
static void check_extents(Reader *r, const uint8_t *bytes, uint64_t n)
{
    Err err = ERR_INIT;
    ExtentVec v = {0};
    uint64_t at = 0;
    if (!reader_extents(r, 0, n, &v, &err)) {
        fuzz_check(err.code == ERR_DAMAGED);
        return;
    }
    for (size_t i = 0; i < v.len; i++) {
        fuzz_check(v.items[i].offset == at && v.items[i].length > 0);
        if (bytes && v.items[i].zero)
            fuzz_check(hash_is_zero(bytes + at, v.items[i].length));
        at += v.items[i].length;
    }
    fuzz_check(at == n);
    extent_vec_clear(&v);
}

// The promise: bytes that were handed out give the root that the tip's .hashes has.
static void check_root(const HashGeometry *geo, const uint8_t *bytes, uint64_t size, const char *hashes)
{
    Err err = ERR_INIT;
    HashesFile *f = NULL;
    Hash root;
    uint64_t groups = hash_groups(geo, size), clusters = (size + geo->cluster_size - 1) / geo->cluster_size;
    cleanup_free Hash *leaves = malloc(geo->leaves * sizeof(Hash)), *nodes = calloc(groups, sizeof(Hash));
    cleanup_free uint8_t *cluster = malloc(geo->cluster_size);
    fuzz_check(leaves && nodes && cluster);
    for (uint64_t g = 0; g < groups; g++) {
        for (uint64_t i = 0; i < geo->leaves; i++) {
            uint64_t c = g * geo->leaves + i, at = c * geo->cluster_size;
            leaves[i] = geo->zero_leaf;
            if (c >= clusters)
                continue;
            memset(cluster, 0, geo->cluster_size);
            memcpy(cluster, bytes + at, MIN(size - at, geo->cluster_size));
            hash_bytes(&geo->spec, cluster, geo->cluster_size, &leaves[i]);
        }
        hash_node(geo, leaves, &nodes[g]);
    }
    hash_root(geo, size, nodes, groups, &root);
    fuzz_check(hashes_open(hashes, geo, &f, &err));
    fuzz_check(hash_equal(&root, &hashes_summary(f)->root));
    hashes_free(f);
}

static void check_reader(Reader *r, const HashGeometry *geo, const char *hashes)
{
    Err err = ERR_INIT;
    uint64_t size = reader_size(r), n = MIN(size, DISK_LOOKED_AT);
    cleanup_free uint8_t *whole = malloc(n), *piece = malloc(n);
    fuzz_check(whole && piece);
    bool ok = reader_read(r, whole, 0, (uint32_t)n, &err);
    fuzz_check(ok || err.code == ERR_DAMAGED || err.code == ERR_UNSUPPORTED);
    check_extents(r, ok ? whole : NULL, n);
    // Pieces are what the whole is, also where the whole cannot be read.
    for (uint64_t at = 0, k = 1; at < n; at += k, k = k * 3 + 1) {
        uint32_t length = (uint32_t)MIN(n - at, k);
        err_clear(&err);
        if (reader_read(r, piece, at, length, &err))
            fuzz_check(!ok || memcmp(whole + at, piece, length) == 0);
        else
            fuzz_check(!ok);
    }
    if (ok && n == size)
        check_root(geo, whole, size, hashes);
    err_clear(&err);
    uint8_t last, layer;
    (void)(reader_read(r, &last, size - 1, 1, &err) && reader_layer_at(r, size - 1, &layer, &err)); // may be damaged
}

static void check_metadata(const char *image, const HashGeometry *geo, size_t n)
{
    Err err = ERR_INIT;
    Hash h;
    uint64_t length = 0;
    if (image_metadata_hash(image, geo, &h, &length, &err))
        fuzz_check(length == n);
    else
        fuzz_check(err.code == ERR_DAMAGED || err.code == ERR_UNSUPPORTED);
}

static void check_point(const Point *p, const HashGeometry *geo)
{
    Err err = ERR_INIT;
    ReaderLayer layers[2] = {0};
    Reader *r = NULL;
    for (unsigned i = 0; i < p->layers; i++) {
        layers[i].image = fuzz_file(2 * i, p->images[i].p, p->images[i].n);
        layers[i].hashes = fuzz_file(2 * i + 1, p->hashes[i].p, p->hashes[i].n);
    }
    layers[0].backing_name = p->layers == 2 ? "base.qcow2" : NULL;
    check_metadata(layers[0].image, geo, p->images[0].n);
    if (!reader_open(layers, p->layers, geo, &r, &err)) {
        fuzz_check(err.code == ERR_DAMAGED || err.code == ERR_UNSUPPORTED);
        return;
    }
    check_reader(r, geo, layers[0].hashes);
    reader_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Point p = {0};
    if (!split(data, n, &p))
        return 0;
    const HashGeometry *geo = repair_geometry(p.hashes[0].p, p.hashes[0].n);
    check_point(&p, geo);
    for (size_t i = 0; i < LAYERS; i++) {
        Bytes h = p.hashes[i];
        if (h.n >= HASHES_HEADER_BYTES + HASHES_TRAILER_BYTES) // they are of the image that is there
            hashes_put64(h.p + h.n - HASHES_TRAILER_BYTES + HASHES_AT_IMAGE_BYTES, p.images[i].n);
        repair_hashes(h.p, h.n, geo);
    }
    check_point(&p, geo);
    for (size_t i = 0; i < LAYERS; i++) {
        free(p.images[i].p);
        free(p.hashes[i].p);
    }
    return 0;
}
