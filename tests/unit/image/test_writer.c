#include "model.h"

// Any bytes, anywhere, in any order, on a full.
static void random_full_op(Model *m, Writer *w)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len];
    uint64_t offset = unit_random_below(&m->random, p->size);
    uint64_t most = unit_random_below(&m->random, 3) ? 9000 : 700000;
    uint64_t length = 1 + unit_random_below(&m->random, MIN(p->size - offset, most));
    if (unit_random_below(&m->random, 2) == 0) {
        uint64_t end = MIN(p->size, align_up(offset + length, m->cluster_size));
        offset = align_down(offset, m->cluster_size);
        length = end - offset;
    }
    switch (unit_random_below(&m->random, 5)) {
    case 0: model_zero(m, w, offset, length); break;
    case 1: // zeros that come as data
        memset(p->bytes + offset, 0, length);
        model_write(m, w, offset, (uint32_t)length);
        break;
    case 2: {
        uint8_t *got = malloc(length);
        assert_ok(writer_read(w, got, offset, (uint32_t)length, &err), &err);
        assert_memory_equal(got, p->bytes + offset, length);
        free(got);
        break;
    }
    default: model_fill(m, p->bytes + offset, length); model_write(m, w, offset, (uint32_t)length);
    }
    if (unit_random_below(&m->random, 20) == 0)
        assert_ok(writer_flush(w, &err), &err);
}

static void test_full_random(void **state)
{
    static const struct {
        uint32_t bits;
        uint64_t size;
        unsigned cache;
        bool direct;
        HashAlgorithm algorithm;
        unsigned compression;
    } cases[] = {
        {12, (9u << 20) + 4096, 2, true, HASH_XXH3_128, 0}, {12, (6u << 20) + 1, 1, false, HASH_SHA256, 0},
        {16, (5u << 20) + 777, 0, true, HASH_XXH3_128, 0},  {16, 70000, 0, false, HASH_XXH3_128, 0},
        {21, (7u << 20) - 512, 0, true, HASH_XXH3_128, 0},  {16, (5u << 20) + 777, 0, true, HASH_XXH3_128, 1},
        {14, (5u << 20) + 4096, 1, false, HASH_SHA256, 5},  {21, (7u << 20) - 512, 0, true, HASH_XXH3_128, 3},
        {12, (3u << 20) + 1, 1, true, HASH_XXH3_128, 1},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Model m = model_new(state, cases[i].bits, cases[i].algorithm);
        m.direct = cases[i].direct;
        m.cache_groups = cases[i].cache;
        m.compression = cases[i].compression;
        Writer *w = model_begin(&m, DISK_FULL, cases[i].size);
        for (int n = 0; n < 150; n++)
            random_full_op(&m, w);
        model_cover(&m, w);
        for (int n = 0; n < 50; n++)
            random_full_op(&m, w);
        WriterProgress progress;
        writer_progress(w, &progress);
        assert_int_equal(progress.received_data + progress.received_zero, cases[i].size);
        model_end(&m, w);
        model_clear(&m);
    }
}

// What comes whole and new is compressed, what comes again or in parts is not; a dead frame costs its space once.
static void test_compression(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    m.compression = 1;
    uint64_t size = 64 * 65536;
    Writer *w = model_begin(&m, DISK_FULL, size);
    for (uint64_t i = 0; i < size; i++)
        m.points[0].bytes[i] = (uint8_t)(i / 100);
    model_write(&m, w, 0, (uint32_t)size);
    model_end(&m, w);
    assert_int_equal(m.points[0].summary.stored_clusters, 64);
    assert_in_range(m.points[0].summary.image_bytes, 1, size / 8);

    w = model_begin(&m, DISK_TRACKED, size);
    WriterProgress progress;
    for (unsigned i = 0; i < 65536; i++)
        m.points[1].bytes[i] = (uint8_t)(i / 50);
    model_write(&m, w, 0, 65536);
    writer_progress(w, &progress);
    assert_in_range(progress.stored_bytes, 1, 8192);
    for (unsigned n = 0; n < 20; n++) {
        uint8_t got[3];
        m.points[1].bytes[5000 + n] ^= 0xff;
        model_write(&m, w, 5000 + n, 1);
        assert_ok(writer_read(w, got, 4999 + n, 3, &err), &err);
        assert_memory_equal(got, m.points[1].bytes + 4999 + n, 3);
    }
    writer_progress(w, &progress);
    assert_in_range(progress.stored_bytes, 65536, 65536 + 8192);
    memset(m.points[1].bytes, 7, 65536);
    model_write(&m, w, 0, 65536);
    model_zero(&m, w, 65536, 65536);
    model_end(&m, w);
    model_clear(&m);
}

// The smallest disks, and ends beside every kind of bound.
static void test_odd_sizes(void **state)
{
    static const uint64_t sizes[] = {1,     511,   512,    513,    4095,           4096,     4097,
                                     65535, 65536, 131071, 131073, (2u << 20) - 1, 2u << 20, (2u << 20) + 1,
                                     65537};
    for (uint32_t bits = 12; bits <= 16; bits += 4) {
        for (size_t i = bits / 16; i < ARRAY_LEN(sizes); i += bits / 8) { // some of them with larger clusters
            Model m = model_new(state, bits, HASH_XXH3_128);
            Writer *w = model_begin(&m, DISK_FULL, sizes[i]);
            model_fill(&m, m.points[0].bytes, sizes[i]);
            model_write(&m, w, 0, (uint32_t)sizes[i]);
            model_end(&m, w);
            // Grow, without a word about what is new.
            uint64_t grown = sizes[i] + 1 + unit_random_below(&m.random, 200000);
            w = model_begin(&m, DISK_COMPARE, grown);
            model_cover(&m, w);
            model_end(&m, w);
            model_clear(&m);
        }
    }
}

// Whole clusters of a point with a parent: new, zero, the parent's again.
static void random_incremental_op(Model *m, Writer *w)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len];
    const ModelPoint *before = &m->points[m->len - 1];
    uint64_t clusters = (p->size + m->cluster_size - 1) / m->cluster_size;
    uint64_t first = unit_random_below(&m->random, clusters),
             n = 1 + unit_random_below(&m->random, MIN(clusters - first, 40));
    uint64_t offset = first * m->cluster_size, length = MIN(p->size, (first + n) * m->cluster_size) - offset;
    uint64_t at;
    switch (unit_random_below(&m->random, 5)) {
    case 0: model_zero(m, w, offset, length); break;
    case 1: // as it was
        memset(p->bytes + offset, 0, length);
        if (offset < before->size)
            memcpy(p->bytes + offset, before->bytes + offset, MIN(length, before->size - offset));
        model_write(m, w, offset, (uint32_t)length);
        break;
    case 2: // a part of a cluster: only if the image holds it
        at = offset + unit_random_below(&m->random, length);
        if (writer_write(w, (const uint8_t[]){0xee}, at, 1, &err)) {
            p->bytes[at] = 0xee;
            m->arrived[at] = 1;
        } else {
            assert_int_equal(err.code, ERR_INVALID);
        }
        break;
    default:
        for (uint64_t i = 0; i < length; i += m->cluster_size)
            if (unit_random_below(&m->random, 3) > 0)
                model_fill(m, p->bytes + offset + i, MIN(length - i, m->cluster_size));
        model_write(m, w, offset, (uint32_t)length);
    }
}

// Chains of tracked and compared points, of any size, each checked after it was made.
static void test_chain_random(void **state)
{
    static const uint32_t bits[] = {12, 16, 12, 16, 14};
    for (int round = 0; round < 5; round++) {
        Model m = model_new(state, bits[round], round == 2 ? HASH_SHA256 : HASH_XXH3_128);
        m.compression = round >= 3;
        m.cache_groups = 1 + (unsigned)unit_random_below(&m.random, 3);
        uint64_t size = 3000000 + unit_random_below(&m.random, 4000000);
        Writer *w = model_begin(&m, DISK_FULL, size);
        for (int n = 0; n < 60; n++)
            random_full_op(&m, w);
        model_cover(&m, w);
        model_end(&m, w);
        while (m.len < 7) {
            bool resize = unit_random_below(&m.random, 2) == 0;
            if (resize)
                size = 1 + unit_random_below(&m.random, 7000000);
            bool compare = resize || unit_random_below(&m.random, 2) == 0;
            w = model_begin(&m, compare ? DISK_COMPARE : DISK_TRACKED, size);
            for (int n = 0; n < 25; n++)
                random_incremental_op(&m, w);
            if (compare)
                model_cover(&m, w);
            model_end(&m, w);
        }
        model_clear(&m);
    }
}

// Safety rule 1: a cluster that becomes zero must not let the parent's bytes through, and may come back.
static void test_a_zero_a(void **state)
{
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 10 * 65536;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_fill(&m, m.points[0].bytes, size);
    model_write(&m, w, 0, (uint32_t)size);
    model_end(&m, w);
    w = model_begin(&m, DISK_TRACKED, size);
    model_zero(&m, w, 3 * 65536, 2 * 65536);
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.zeroed_clusters, 2);
    assert_int_equal(m.points[1].summary.stored_clusters, 0);
    w = model_begin(&m, DISK_TRACKED, size);
    memcpy(m.points[2].bytes + 3 * 65536, m.points[0].bytes + 3 * 65536, 65536);
    model_write(&m, w, 3 * 65536, 65536);
    model_end(&m, w);
    assert_int_equal(m.points[2].summary.stored_clusters, 1);
    // Zero, data and zero again within one image: the host cluster stays, and is used again.
    w = model_begin(&m, DISK_TRACKED, size);
    model_zero(&m, w, 0, 65536);
    model_fill(&m, m.points[3].bytes, 65536);
    model_write(&m, w, 0, 65536);
    model_zero(&m, w, 0, 65536);
    model_fill(&m, m.points[3].bytes + 65536, 65536);
    model_write(&m, w, 65536, 65536);
    model_zero(&m, w, 65536, 65536);
    model_fill(&m, m.points[3].bytes + 65536, 65536);
    model_write(&m, w, 65536, 65536);
    model_end(&m, w);
    assert_int_equal(m.points[3].summary.zeroed_clusters, 1);
    assert_int_equal(m.points[3].summary.stored_clusters, 1);
    model_clear(&m);
}

// Safety rule 1: beyond a layer's size there is zero, whatever lies below, also when the disk grows again.
static void test_shrink_then_grow(void **state)
{
    static const uint64_t shrunk[] = {1, 5 * 4096, 5 * 4096 + 1, 2u << 20, (2u << 20) + 100, (3u << 20) - 512};
    for (size_t i = 0; i < ARRAY_LEN(shrunk); i++) {
        Model m = model_new(state, 12, HASH_XXH3_128);
        uint64_t size = 5u << 20;
        Writer *w = model_begin(&m, DISK_FULL, size);
        model_fill(&m, m.points[0].bytes, size);
        model_write(&m, w, 0, (uint32_t)size);
        model_end(&m, w);
        w = model_begin(&m, DISK_COMPARE, shrunk[i]);
        model_cover(&m, w);
        model_end(&m, w);
        // Only a tail that is cut within a cluster differs.
        assert_int_equal(m.points[1].summary.stored_clusters, shrunk[i] % 4096 != 0);
        w = model_begin(&m, DISK_COMPARE, size);
        assert_true(hash_is_zero(m.points[2].bytes + shrunk[i], size - shrunk[i]));
        model_cover(&m, w);
        model_end(&m, w);
        assert_int_equal(m.points[2].summary.stored_clusters, 0);
        model_clear(&m);
    }
}

static void test_compare_stores_differences(void **state)
{
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 64 * 65536;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_fill(&m, m.points[0].bytes, size / 2);
    model_cover(&m, w);
    model_end(&m, w);
    assert_int_equal(m.points[0].summary.stored_clusters, 32);
    w = model_begin(&m, DISK_COMPARE, size);
    m.points[1].bytes[7 * 65536 + 5] ^= 1;
    m.points[1].bytes[63 * 65536 + 65535] = 1;
    memset(m.points[1].bytes + 9 * 65536, 0, 65536);
    model_cover(&m, w);
    model_end(&m, w);
    const HashesSummary *s = &m.points[1].summary;
    assert_int_equal(s->stored_clusters, 2);
    assert_int_equal(s->zeroed_clusters, 1);
    assert_int_equal(s->skipped_clusters, 61);
    assert_int_equal(s->received_data + s->received_zero, size);
    model_clear(&m);
}

// What the client found to be the same counts as arrived, and only where this image has not said anything else.
static void test_same(void **state)
{
    Err err = ERR_INIT;
    HashesSummary summary;
    Hash digest, *leaves;
    Model m = model_new(state, 16, HASH_SHA256);
    uint64_t size = 20 * 65536 + 100;
    Writer *w = model_begin(&m, DISK_FULL, size);
    assert_fails(writer_same(w, 0, 65536, &err), &err, ERR_INVALID);
    model_fill(&m, m.points[0].bytes, size);
    model_cover(&m, w);
    model_end(&m, w);

    w = model_begin(&m, DISK_COMPARE, size);
    leaves = calloc(m.geo.leaves, sizeof(Hash));
    assert_ok(writer_leaves(w, 0, leaves, &err), &err);
    for (uint64_t i = 0; i < 20; i++) {
        Hash leaf;
        hash_bytes(&m.hash, m.points[0].bytes + i * 65536, 65536, &leaf);
        assert_true(hash_equal(&leaf, &leaves[i]));
    }
    assert_true(hash_equal(&leaves[21], &m.geo.zero_leaf));
    free(leaves);
    assert_fails(writer_same(w, 100, 65536, &err), &err, ERR_INVALID);
    assert_fails(writer_same(w, 0, 65535, &err), &err, ERR_INVALID);
    assert_fails(writer_same(w, 20 * 65536, 101, &err), &err, ERR_INVALID);
    m.points[1].bytes[3 * 65536] ^= 1;
    model_write(&m, w, 3 * 65536, 65536);
    assert_fails(writer_same(w, 2 * 65536, 2 * 65536, &err), &err, ERR_INVALID); // one of the two has come
    assert_fails(writer_seal(w, NULL, &summary, &digest, &err), &err, ERR_CONFLICT);
    assert_ok(writer_same(w, 0, 3 * 65536, &err), &err);
    assert_ok(writer_same(w, 4 * 65536, size - 4 * 65536, &err), &err); // up to the disk's end
    memset(m.arrived, 1, size);
    m.points[1].bytes[5 * 65536] ^= 1; // it may still change its mind
    model_write(&m, w, 5 * 65536, 65536);
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.stored_clusters, 2);
    model_clear(&m);
}

// A tracked disk whose audit failed is looked at once more: what has come shows its own leaf, the rest the parent's.
static void test_same_again_where_an_audit_failed(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 20 * 65536 + 100;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_fill(&m, m.points[0].bytes, size);
    model_cover(&m, w);
    model_end(&m, w);

    w = model_begin(&m, DISK_TRACKED, size);
    m.points[1].bytes[3 * 65536] ^= 1;
    model_write(&m, w, 3 * 65536, 65536); // what tracking named
    assert_ok(writer_same(w, 0, 7 * 65536, &err), &err);
    m.points[1].bytes[7 * 65536] ^= 1;
    model_write(&m, w, 7 * 65536, 65536); // what it missed
    assert_ok(writer_same(w, 8 * 65536, size - 8 * 65536, &err), &err);
    memset(m.arrived, 1, size);
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.stored_clusters, 2);
    assert_int_equal(m.points[1].summary.covered_bytes, size);
    model_clear(&m);
}

// Safety rule 6.
static void test_coverage(void **state)
{
    Err err = ERR_INIT;
    HashesSummary summary;
    Hash digest;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 20 * 65536 + 100;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_write(&m, w, 0, 65536);
    model_write(&m, w, 65536, 1000);
    assert_false(writer_seal(w, NULL, &summary, &digest, &err));
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_non_null(strstr(err.details, "1244284 bytes at 66536"));
    err_clear(&err);
    // A seal that came too early used to break the writer: the job could only fail.
    model_zero(&m, w, 0, size);
    model_end(&m, w);
    assert_int_equal(m.points[0].summary.stored_clusters, 0);

    for (int wrong = 0; wrong < 5; wrong++) {
        w = model_begin(&m, DISK_TRACKED, size);
        model_write(&m, w, 2 * 65536, 3 * 65536);
        model_write(&m, w, 20 * 65536, 100);
        model_write(&m, w, 2 * 65536, 65536);
        WriterExpect expect = model_expect(&m);
        assert_int_equal(expect.extents, 2);
        expect.extents += wrong == 1;
        expect.bytes -= wrong == 2;
        expect.digest ^= wrong == 3;
        if (wrong == 0) {
            model_end(&m, w);
        } else {
            assert_fails(writer_seal(w, wrong == 4 ? NULL : &expect, &summary, &digest, &err), &err,
                         wrong == 4 ? ERR_INVALID : ERR_CONFLICT);
            model_end(&m, w); // with the right numbers it is not too late
        }
    }
    model_clear(&m);
}

static void test_refused(void **state)
{
    Err err = ERR_INIT;
    HashesSummary summary;
    Hash digest;
    uint8_t byte = 1;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 5 * 65536 + 10;
    Writer *w = model_begin(&m, DISK_FULL, size);
    assert_fails(writer_write(w, &byte, size, 1, &err), &err, ERR_INVALID);
    assert_fails(writer_write(w, &byte, UINT64_MAX, 1, &err), &err, ERR_INVALID);
    assert_fails(writer_zero(w, 1, size, &err), &err, ERR_INVALID);
    assert_ok(writer_write(w, &byte, size, 0, &err), &err);
    model_cover(&m, w);
    WriterExpect expect = model_expect(&m);
    assert_ok(writer_seal(w, &expect, &summary, &digest, &err), &err);
    assert_fails(writer_write(w, &byte, 0, 1, &err), &err, ERR_CONFLICT); // sealed
    assert_fails(writer_seal(w, &expect, &summary, &digest, &err), &err, ERR_CONFLICT);
    m.points[0].summary = summary;
    m.points[0].digest = digest;
    m.len = 1;
    writer_free(w);
    free(m.arrived);
    // Safety rule 7: parts of clusters that an increment does not hold.
    w = model_begin(&m, DISK_COMPARE, size);
    assert_fails(writer_write(w, &byte, 100, 1, &err), &err, ERR_INVALID);
    assert_fails(writer_zero(w, 65536, 70000, &err), &err, ERR_INVALID);
    assert_fails(writer_read(w, &byte, 0, 1, &err), &err, ERR_INVALID);
    m.points[1].bytes[5 * 65536] = 9;
    model_write(&m, w, 5 * 65536, 10); // to the disk's end
    m.points[1].bytes[5 * 65536 + 3] = 7;
    model_write(&m, w, 5 * 65536 + 3, 1); // held now
    assert_ok(writer_read(w, &byte, 5 * 65536 + 3, 1, &err), &err);
    assert_int_equal(byte, 7);
    model_cover(&m, w);
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.stored_clusters, 1);
    model_clear(&m);
}

static void refuse_spec(const WriterSpec *spec)
{
    Err err = ERR_INIT;
    Writer *w;
    assert_fails(writer_open(spec, &w, &err), &err, ERR_INVALID);
    assert_false(file_exists(spec->image_path) || file_exists(spec->hashes_path));
}

static void test_wrong_specs(void **state)
{
    char image[600], hashes[600], longest[QCOW2_BACKING_MAX + 2];
    (void)snprintf(image, sizeof image, "%s", unit_path(state, "wrong.qcow2"));
    (void)snprintf(hashes, sizeof hashes, "%s", unit_path(state, "wrong.hashes"));
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    Model m = model_new(state, 16, HASH_XXH3_128);
    Writer *w = model_begin(&m, DISK_FULL, 65536);
    model_zero(&m, w, 0, 65536);
    model_cover(&m, w);
    model_end(&m, w);
    ChainLayerPath layers[MODEL_POINTS];
    ChainHashes *parent;
    Err err = ERR_INIT;
    assert_ok(chain_hashes_open(layers, model_layers(&m, m.len, layers), &m.geo, &parent, &err), &err);
    const WriterSpec full = {.image_path = image,
                             .hashes_path = hashes,
                             .size = 65536,
                             .cluster_bits = 16,
                             .hash = m.hash,
                             .mode = DISK_FULL};
    WriterSpec incr = full, spec = full;
    incr.mode = DISK_TRACKED;
    incr.parent = parent;
    incr.backing_name = "p0.qcow2";
    spec.size = 0;
    refuse_spec(&spec);
    spec.size = DISK_SIZE_MAX + 1;
    refuse_spec(&spec);
    spec = full;
    spec.cluster_bits = 8;
    refuse_spec(&spec);
    spec = full;
    spec.compression = 100;
    refuse_spec(&spec);
    spec = full;
    spec.backing_name = "p0.qcow2";
    refuse_spec(&spec);
    spec = incr;
    spec.parent = NULL;
    refuse_spec(&spec);
    spec = incr;
    spec.size = 65537; // only what was compared may have another
    refuse_spec(&spec);
    spec = incr;
    spec.backing_name = "";
    refuse_spec(&spec);
    spec.backing_name = longest;
    refuse_spec(&spec);
    chain_hashes_free(parent);
    model_clear(&m);
}

// A file whose header was not written is no QCOW2.
static void test_unsealed_is_nothing(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    Writer *w = model_begin(&m, DISK_FULL, 1u << 20);
    model_fill(&m, m.points[0].bytes, 1u << 20);
    model_cover(&m, w);
    assert_ok(writer_flush(w, &err), &err);
    uint8_t head[4096];
    int fd = open(m.points[0].image, O_RDONLY | O_CLOEXEC);
    assert_ok(file_pread(fd, head, sizeof head, 0, &err), &err);
    assert_true(hash_is_zero(head, sizeof head));
    assert_int_equal(close(fd), 0);
    model_abandon(&m, w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_same),
        in_folder(test_same_again_where_an_audit_failed),
        in_folder(test_full_random),
        in_folder(test_compression),
        in_folder(test_odd_sizes),
        in_folder(test_chain_random),
        in_folder(test_a_zero_a),
        in_folder(test_shrink_then_grow),
        in_folder(test_compare_stores_differences),
        in_folder(test_coverage),
        in_folder(test_refused),
        in_folder(test_wrong_specs),
        in_folder(test_unsealed_is_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
