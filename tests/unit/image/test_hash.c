#include "image/hash.h"
#include "unit.h"

// Of xxHash's and SHA-256's own test vectors.
static void test_known_answers(void **state)
{
    (void)state;
    Hash h;
    char text[HASH_TEXT_MAX];
    HashSpec xxh = {.algorithm = HASH_XXH3_128};
    hash_bytes(&xxh, "", 0, &h);
    hash_text(&xxh, &h, text);
    assert_string_equal(text, "99aa06d3014798d86001c324468d497f");
    // The 8 bytes of the seed come first: with a seed that spells "abcdefgh" this is SHA-256("abcdefghxyz").
    HashSpec sha = {.algorithm = HASH_SHA256, .seed = UINT64_C(0x6867666564636261)};
    hash_bytes(&sha, "xyz", 3, &h);
    hash_text(&sha, &h, text);
    assert_string_equal(text, "190d34754ce5918525f6acd6062c491cb62a2ca7214020717f43fca0bbd55a06");
}

static void test_seed_matters(void **state)
{
    (void)state;
    for (int a = HASH_XXH3_128; a <= HASH_SHA256; a++) {
        Hash one, two;
        uint8_t data[5000] = {1, 2, 3};
        hash_bytes(&(HashSpec){(HashAlgorithm)a, 1}, data, sizeof data, &one);
        hash_bytes(&(HashSpec){(HashAlgorithm)a, 2}, data, sizeof data, &two);
        assert_false(hash_equal(&one, &two));
    }
}

static void test_stream_is_the_same(void **state)
{
    (void)state;
    UnitRandom random = unit_random();
    uint8_t data[10000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)unit_random_next(&random);
    for (int a = HASH_XXH3_128; a <= HASH_SHA256; a++) {
        Err err = ERR_INIT;
        HashSpec spec = {(HashAlgorithm)a, unit_random_next(&random)};
        HashStream *s = NULL;
        Hash whole, parts, back;
        char text[HASH_TEXT_MAX];
        hash_bytes(&spec, data, sizeof data, &whole);
        assert_ok(hash_stream_new(&spec, &s, &err), &err);
        for (size_t at = 0, n; at < sizeof data; at += n) {
            n = 1 + unit_random_below(&random, sizeof data - at);
            hash_stream_add(s, data + at, n);
        }
        hash_stream_end(s, &parts);
        hash_stream_free(s);
        assert_true(hash_equal(&whole, &parts));
        hash_text(&spec, &whole, text);
        assert_int_equal(strlen(text), 2 * hash_size(spec.algorithm));
        assert_ok(hash_from_text(&spec, text, &back, &err), &err);
        assert_true(hash_equal(&whole, &back));
        text[0] = 'g';
        assert_fails(hash_from_text(&spec, text, &back, &err), &err, ERR_INVALID);
        assert_fails(hash_from_text(&spec, "00", &back, &err), &err, ERR_INVALID);
    }
}

// Every length, every place.
static void test_is_zero(void **state)
{
    (void)state;
    uint8_t data[300] = {0};
    assert_true(hash_is_zero(data, 0));
    for (size_t n = 1; n <= sizeof data; n++) {
        assert_true(hash_is_zero(data, n));
        for (size_t i = 0; i < n; i++) {
            data[i] = 0x80;
            assert_false(hash_is_zero(data, n));
            data[i] = 0;
        }
    }
}

static void test_geometry_and_tree(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    HashSpec spec = {.algorithm = HASH_XXH3_128, .seed = 7};
    HashGeometry g;
    assert_fails(hash_geometry_init(&g, &spec, 2048, &err), &err, ERR_INVALID);
    assert_fails(hash_geometry_init(&g, &spec, 5000, &err), &err, ERR_INVALID);
    assert_fails(hash_geometry_init(&g, &spec, 4u << 20, &err), &err, ERR_INVALID);
    assert_ok(hash_geometry_init(&g, &spec, 4096, &err), &err);
    assert_int_equal(g.leaves, 512);
    assert_int_equal(hash_groups(&g, 1), 1);
    assert_int_equal(hash_groups(&g, 2u << 20), 1);
    assert_int_equal(hash_groups(&g, (2u << 20) + 1), 2);
    // A node is the hash of its leaves, packed; the root that of label, size, cluster size and nodes.
    Hash leaves[512] = {0}, node, want;
    uint8_t packed[512 * 16];
    for (size_t i = 0; i < 512; i++) {
        leaves[i].bytes[3] = (uint8_t)i;
        memcpy(packed + 16 * i, leaves[i].bytes, 16);
    }
    hash_node(&g, leaves, &node);
    hash_bytes(&spec, packed, sizeof packed, &want);
    assert_true(hash_equal(&node, &want));
    uint8_t root_bytes[15 + 16 + 16] = "sendense-root-1\x05\0\0\0\0\0\0\0\0\x10\0\0\0\0\0";
    memcpy(root_bytes + 31, node.bytes, 16);
    Hash root;
    hash_root(&g, 5, &node, 1, &root);
    hash_bytes(&spec, root_bytes, sizeof root_bytes, &want);
    assert_true(hash_equal(&root, &want));
}

static void test_names(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    HashAlgorithm a = HASH_XXH3_128;
    assert_ok(hash_algorithm_parse("sha256", &a, &err), &err);
    assert_int_equal(a, HASH_SHA256);
    assert_string_equal(hash_algorithm_name(HASH_XXH3_128), "xxh3-128");
    assert_fails(hash_algorithm_parse("md5", &a, &err), &err, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),      cmocka_unit_test(test_seed_matters),
        cmocka_unit_test(test_stream_is_the_same), cmocka_unit_test(test_is_zero),
        cmocka_unit_test(test_geometry_and_tree),  cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
