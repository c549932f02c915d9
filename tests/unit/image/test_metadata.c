#include "model.h"

#include "image/reader.h"

// Packed or not: whatever the tables do not name as data is seen. A flip in compressed data is left to its leaf; one
// in what lies between, or was replaced, is not.
static void test_packed_damage_is_seen(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    m.compression = 1;
    Writer *w = model_begin(&m, DISK_FULL, 3000000);
    model_fill(&m, m.points[0].bytes, 3000000);
    model_cover(&m, w);
    model_fill(&m, m.points[0].bytes + 65536,
               65536); // compressed data that is replaced, by a plain cluster and by zeros
    model_write(&m, w, 65536, 65536);
    model_zero(&m, w, 5 * 65536, 65536);
    model_end(&m, w);
    const ModelPoint *p = &m.points[0];
    ReaderLayer layer = {p->image, p->hashes, NULL};
    uint8_t *got = malloc(p->size);
    int fd = open(p->image, O_RDWR | O_CLOEXEC);
    assert_non_null(got);
    for (uint64_t sector = 0; sector < p->summary.image_bytes / 512; sector++) {
        uint64_t at = sector * 512 + unit_random_below(&m.random, 512);
        char byte, flipped;
        Hash hash;
        uint64_t length;
        Reader *r = NULL;
        assert_ok(file_pread(fd, &byte, 1, at, &err), &err);
        flipped = (char)(byte ^ (1 << unit_random_below(&m.random, 8)));
        assert_ok(file_pwrite(fd, &flipped, 1, at, &err), &err);
        bool seen =
            !image_metadata_hash(p->image, &m.geo, &hash, &length, &err) || !hash_equal(&hash, &p->summary.metadata);
        err_clear(&err);
        if (!seen) // then reading the disk finds it
            assert_false(reader_open(&layer, 1, &m.geo, &r, &err) && reader_read(r, got, 0, (uint32_t)p->size, &err));
        reader_free(r);
        err_clear(&err);
        assert_ok(file_pwrite(fd, &byte, 1, at, &err), &err);
    }
    assert_int_equal(close(fd), 0);
    free(got);
    model_clear(&m);
}

// One flipped bit in any cluster that is not data is seen, by the checks or by the hash; one in data is not (its leaf
// sees that), and neither changes the answer for the intact file.
static void test_any_damage_is_seen(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 12, HASH_XXH3_128);
    Writer *w = model_begin(&m, DISK_FULL, 3000000);
    model_fill(&m, m.points[0].bytes, 40000);
    model_fill(&m, m.points[0].bytes + 2500000, 5000);
    model_cover(&m, w);
    model_zero(&m, w, 8192, 4096); // a host cluster that a zero mark keeps
    model_end(&m, w);
    const ModelPoint *p = &m.points[0];
    char *bytes = NULL;
    size_t n = 0;
    assert_ok(file_read(p->image, 1u << 24, &bytes, &n, &err), &err);
    assert_int_equal(n, p->summary.image_bytes);
    int fd = open(p->image, O_RDWR | O_CLOEXEC);
    unsigned unseen = 0;
    for (size_t cluster = 0; cluster < n / 4096; cluster++) {
        bool seen_one = false;
        for (int i = 0; i < 60; i++) {
            size_t at = cluster * 4096 + (i < 40 ? (size_t)i * 3 : unit_random_below(&m.random, 4096));
            char c = (char)(bytes[at] ^ (1 << unit_random_below(&m.random, 8)));
            Hash hash;
            uint64_t length;
            assert_ok(file_pwrite(fd, &c, 1, at, &err), &err);
            bool same =
                image_metadata_hash(p->image, &m.geo, &hash, &length, &err) && hash_equal(&hash, &p->summary.metadata);
            if (i > 0)
                assert_int_equal(!same, seen_one); // all of a cluster, or none of it
            seen_one = !same;
            err_clear(&err);
            assert_ok(file_pwrite(fd, bytes + at, 1, at, &err), &err);
        }
        unseen += !seen_one;
    }
    assert_int_equal(unseen, p->summary.stored_clusters);
    // A longer file, a shorter one.
    Hash hash;
    uint64_t length;
    assert_int_equal(ftruncate(fd, (off_t)n + 4096), 0);
    assert_fails(image_metadata_hash(p->image, &m.geo, &hash, &length, &err), &err, ERR_DAMAGED);
    assert_int_equal(ftruncate(fd, (off_t)n + 1), 0);
    assert_fails(image_metadata_hash(p->image, &m.geo, &hash, &length, &err), &err, ERR_DAMAGED);
    assert_int_equal(ftruncate(fd, (off_t)n - 4096), 0);
    assert_fails(image_metadata_hash(p->image, &m.geo, &hash, &length, &err), &err, ERR_DAMAGED);
    assert_int_equal(close(fd), 0);
    free(bytes);
    model_clear(&m);
}

// An image of QEMU's own is sound, and not one of ours: it has clusters to spare, or a compressed one.
static void test_images_of_others(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    const char *image = unit_path(state, "q.qcow2"), *raw = unit_path(state, "r");
    Hash hash;
    uint64_t length;
    uint8_t data[70000] = {1};
    assert_ok(file_create_durable(raw, data, sizeof data, 0600, &err), &err);
    model_run((const char *const[]){"qemu-img", "convert", "-c", "-O", "qcow2", raw, image, NULL});
    assert_false(image_metadata_hash(image, &m.geo, &hash, &length, &err));
    assert_true(err.code == ERR_UNSUPPORTED || err.code == ERR_DAMAGED);
    err_clear(&err);
    assert_fails(image_metadata_hash(raw, &m.geo, &hash, &length, &err), &err, ERR_DAMAGED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_any_damage_is_seen),
        in_folder(test_packed_damage_is_seen),
        in_folder(test_images_of_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
