// A disk in memory beside the one that the engine writes, a chain of such points, and the oracles: qemu-img, and
// leaves computed from the memory.
#pragma once

#include "base/file.h"
#include "base/proc.h"
#include "codec/qcow2.h"
#include "image/metadata.h"
#include "image/writer.h"
#include "unit.h"

#include <fcntl.h>
#include <unistd.h>

#define MODEL_POINTS 12

// A test with a folder of its own.
#define in_folder(test) cmocka_unit_test_setup_teardown(test, unit_folder_setup, unit_folder_teardown)

typedef struct ModelPoint {
    uint8_t *bytes; // what a reader must see
    uint64_t size;
    char image[512], hashes[512];
    HashesSummary summary;
    Hash digest;
} ModelPoint;

typedef struct Model {
    const char *folder;
    uint32_t cluster_bits, cluster_size;
    HashSpec hash;
    HashGeometry geo;
    bool direct;
    unsigned compression; // then part of what model_fill() makes can be compressed
    unsigned cache_groups;
    const char *journal, *resume_image, *resume_journal; // of the point at work; NULL: none
    uint64_t checkpoint_bytes;
    ModelPoint points[MODEL_POINTS];
    size_t len;
    ChainHashes *parent; // of the point at work
    Writer *writer;      // for a test that seals by another thread
    UnitRandom random;
    uint8_t *arrived; // a byte for each byte of the point at work
} Model;

static inline Model model_new(void **state, uint32_t cluster_bits, HashAlgorithm algorithm)
{
    Err err = ERR_INIT;
    Model m = {.folder = *state, .cluster_bits = cluster_bits, .cluster_size = 1u << cluster_bits, .direct = true};
    m.hash = (HashSpec){.algorithm = algorithm, .seed = 0x1234567890abcdef};
    assert_ok(hash_geometry_init(&m.geo, &m.hash, m.cluster_size, &err), &err);
    m.random = unit_random();
    return m;
}

static inline void model_clear(Model *m)
{
    for (size_t i = 0; i < m->len; i++) {
        (void)unlink(m->points[i].image);
        (void)unlink(m->points[i].hashes);
        free(m->points[i].bytes);
    }
    m->len = 0;
}

static inline const char *model_base_name(const char *path)
{
    return strrchr(path, '/') + 1;
}

// Paths of the chain, newest first.
static inline size_t model_layers(const Model *m, size_t len, ChainLayerPath *out)
{
    for (size_t i = 0; i < len; i++)
        out[i] = (ChainLayerPath){m->points[len - 1 - i].image, m->points[len - 1 - i].hashes};
    return len;
}

// The next point; its memory starts as the parent's, cut or filled with zeros.
static inline Writer *model_begin(Model *m, DiskMode mode, uint64_t size)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len], *before = m->len ? &m->points[m->len - 1] : NULL;
    if (mode == DISK_FULL)
        before = NULL;
    p->size = size;
    (void)snprintf(p->image, sizeof p->image, "%s/p%zu.qcow2", m->folder, m->len);
    (void)snprintf(p->hashes, sizeof p->hashes, "%s/p%zu.hashes", m->folder, m->len);
    p->bytes = calloc(1, size);
    m->arrived = calloc(1, size);
    assert_non_null(p->bytes);
    assert_non_null(m->arrived);
    m->parent = NULL;
    if (before) {
        ChainLayerPath layers[MODEL_POINTS];
        memcpy(p->bytes, before->bytes, MIN(size, before->size));
        assert_ok(chain_hashes_open(layers, model_layers(m, m->len, layers), &m->geo, &m->parent, &err), &err);
    }
    WriterSpec spec = {
        .image_path = p->image,
        .hashes_path = p->hashes,
        .backing_name = before ? model_base_name(before->image) : NULL,
        .size = size,
        .cluster_bits = m->cluster_bits,
        .hash = m->hash,
        .mode = mode,
        .parent = m->parent,
        .direct_io = m->direct,
        .compression = m->compression,
        .cache_groups = m->cache_groups,
        .journal_path = m->journal,
        .checkpoint_bytes = m->checkpoint_bytes,
        .resume_image = m->resume_image,
        .resume_journal = m->resume_journal,
    };
    Writer *w = NULL;
    assert_ok(writer_open(&spec, &w, &err), &err);
    return w;
}

static inline void model_write(Model *m, Writer *w, uint64_t offset, uint32_t length)
{
    Err err = ERR_INIT;
    assert_ok(writer_write(w, m->points[m->len].bytes + offset, offset, length, &err), &err);
    memset(m->arrived + offset, 1, length);
}

static inline void model_zero(Model *m, Writer *w, uint64_t offset, uint64_t length)
{
    Err err = ERR_INIT;
    memset(m->points[m->len].bytes + offset, 0, length);
    assert_ok(writer_zero(w, offset, length, &err), &err);
    memset(m->arrived + offset, 1, length);
}

static inline void model_fill(Model *m, uint8_t *p, uint64_t n)
{
    uint64_t v = 0, mask = UINT64_MAX;
    for (uint64_t i = 0; i < n; i++) {
        if (i % 40000 == 0)
            mask = m->compression != 0 && unit_random_below(&m->random, 3) ? 0x0103010301030103 : UINT64_MAX;
        if (i % 8 == 0)
            v = unit_random_next(&m->random) & mask;
        p[i] = (uint8_t)(v >> (i % 8 * 8));
    }
}

// What has not arrived yet arrives, as it is in memory.
static inline void model_cover(Model *m, Writer *w)
{
    const ModelPoint *p = &m->points[m->len];
    for (uint64_t at = 0, end; at < p->size; at = end) {
        for (end = at + 1; end < p->size && m->arrived[end] == m->arrived[at] && end - at < (4u << 20);)
            end++;
        if (m->arrived[at])
            continue;
        if (hash_is_zero(p->bytes + at, end - at))
            model_zero(m, w, at, end - at);
        else
            model_write(m, w, at, (uint32_t)(end - at));
    }
}

static inline WriterExpect model_expect(const Model *m)
{
    Err err = ERR_INIT;
    Coverage c = {0};
    uint64_t size = m->points[m->len].size;
    for (uint64_t at = 0, end; at < size; at = end) {
        for (end = at + 1; end < size && m->arrived[end] == m->arrived[at];)
            end++;
        if (m->arrived[at])
            assert_ok(coverage_add(&c, at, end - at, &err), &err);
    }
    coverage_end(&c);
    return (WriterExpect){.extents = c.extents, .bytes = c.bytes, .digest = c.digest};
}

static inline void model_run(const char *const *argv)
{
    Err err = ERR_INIT;
    char *out = NULL, *errors = NULL;
    int status = -1;
    assert_ok(proc_run(argv, NULL, 60000, 1u << 20, &out, &errors, &status, &err), &err);
    if (status != 0)
        fail_msg("%s %s: %d\n%s\n%s", argv[0], argv[1], status, out, errors);
    free(out);
    free(errors);
}

// Leaves, nodes and root from memory alone; compared with what the chain's files say.
static inline void model_check_hashes(Model *m, size_t index)
{
    Err err = ERR_INIT;
    const ModelPoint *p = &m->points[index];
    ChainLayerPath layers[MODEL_POINTS];
    ChainHashes *chain = NULL;
    assert_ok(chain_hashes_open(layers, model_layers(m, index + 1, layers), &m->geo, &chain, &err), &err);
    uint64_t groups = hash_groups(&m->geo, p->size);
    Hash *leaves = calloc(m->geo.leaves, sizeof(Hash)), *flat = calloc(m->geo.leaves, sizeof(Hash));
    Hash *nodes = calloc(groups, sizeof(Hash)), root;
    uint8_t *cluster = calloc(1, m->cluster_size);
    Hash zero;
    hash_bytes(&m->hash, cluster, m->cluster_size, &zero);
    for (uint64_t g = 0; g < groups; g++) {
        for (uint64_t k = 0; k < m->geo.leaves; k++) {
            uint64_t at = (g * m->geo.leaves + k) * m->cluster_size;
            if (at >= p->size) {
                leaves[k] = zero;
                continue;
            }
            memset(cluster, 0, m->cluster_size);
            memcpy(cluster, p->bytes + at, MIN(m->cluster_size, p->size - at));
            hash_bytes(&m->hash, cluster, m->cluster_size, &leaves[k]);
        }
        hash_node(&m->geo, leaves, &nodes[g]);
        assert_true(hash_equal(&nodes[g], chain_hashes_node(chain, g)));
        assert_ok(chain_hashes_group(chain, g, flat, NULL, &err), &err);
        assert_memory_equal(flat, leaves, m->geo.leaves * sizeof(Hash));
    }
    hash_root(&m->geo, p->size, nodes, groups, &root);
    assert_true(hash_equal(&root, &p->summary.root));
    free(leaves);
    free(flat);
    free(nodes);
    free(cluster);
    chain_hashes_free(chain);
}

// What QEMU says of the point, and what it reads.
static inline void model_check_qemu(const Model *m, const ModelPoint *p)
{
    Err err = ERR_INIT;
    char raw[600], *bytes = NULL;
    size_t n = 0;
    (void)snprintf(raw, sizeof raw, "%s/raw", m->folder);
    model_run((const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", p->image, NULL});
    model_run(
        (const char *const[]){"qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-t", "unsafe", p->image, raw, NULL});
    assert_ok(file_read(raw, 1u << 30, &bytes, &n, &err), &err);
    assert_int_equal(n, align_up(p->size, 512));
    assert_memory_equal(bytes, p->bytes, p->size);
    assert_true(hash_is_zero(bytes + p->size, n - p->size));
    free(bytes);
    assert_int_equal(unlink(raw), 0);
}

static inline void model_check(Model *m, size_t index)
{
    Err err = ERR_INIT;
    const ModelPoint *p = &m->points[index];
    Hash metadata, digest;
    uint64_t length;
    assert_ok(image_metadata_hash(p->image, &m->geo, &metadata, &length, &err), &err);
    assert_true(hash_equal(&metadata, &p->summary.metadata));
    assert_int_equal(length, p->summary.image_bytes);
    assert_ok(hashes_file_digest(p->hashes, &m->hash, &digest, &err), &err);
    assert_true(hash_equal(&digest, &p->digest));
    model_check_hashes(m, index);
    model_check_qemu(m, p);
}

// The point at work is sealed: look at it with every oracle, and make it the newest.
static inline void model_sealed(Model *m, Writer *w)
{
    writer_free(w);
    chain_hashes_free(m->parent);
    free(m->arrived);
    m->len++;
    model_check(m, m->len - 1);
}

static inline void model_end(Model *m, Writer *w)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len];
    WriterExpect expect = model_expect(m);
    assert_ok(writer_seal(w, &expect, &p->summary, &p->digest, &err), &err);
    model_sealed(m, w);
}

// Give the point at work up.
static inline void model_abandon(Model *m, Writer *w)
{
    ModelPoint *p = &m->points[m->len];
    writer_free(w);
    chain_hashes_free(m->parent);
    free(m->arrived);
    free(p->bytes);
    (void)unlink(p->image);
    (void)unlink(p->hashes);
}
