#include "model.h"

#include "image/hashes_format.h"

#include <xxhash.h>

// A small .hashes file by hand: 3 groups of 512 clusters, one of them empty.
typedef struct File {
    const char *path;
    HashGeometry geo;
    uint64_t size;
    HashesSummary summary;
    Hash nodes[3];
    uint8_t marks[3][512];
    Hash leaves[3][512];
} File;

static void write_file(void **state, File *f, UnitRandom *random)
{
    Err err = ERR_INIT;
    HashesWriter *w = NULL;
    Hash digest, again;
    HashSpec spec = {.algorithm = HASH_XXH3_128, .seed = 99};
    assert_ok(hash_geometry_init(&f->geo, &spec, 4096, &err), &err);
    f->path = unit_path(state, "x.hashes");
    f->size = (5u << 20) + 17;
    f->summary = (HashesSummary){.size = f->size,
                                 .received_data = 1,
                                 .received_zero = 2,
                                 .skipped_clusters = 3,
                                 .image_bytes = 4,
                                 .covered_extents = 5,
                                 .covered_bytes = 6,
                                 .covered_digest = 7};
    assert_ok(hashes_writer_open(f->path, &f->geo, f->size, &w, &err), &err);
    assert_fails(hashes_writer_add(w, 3, f->marks[0], f->leaves[0], &err), &err, ERR_INTERNAL);
    for (unsigned g = 0; g < 3; g++) {
        for (unsigned i = 0; i < (g == 2 ? 257 : 512); i++) {
            f->marks[g][i] = g == 1 ? HASH_ABSENT : (uint8_t)unit_random_below(random, 3);
            f->leaves[g][i] = f->geo.zero_leaf;
            if (f->marks[g][i] == HASH_DATA)
                hash_bytes(&spec, &(uint64_t){unit_random_next(random)}, 8, &f->leaves[g][i]);
            f->summary.stored_clusters += f->marks[g][i] == HASH_DATA;
            f->summary.zeroed_clusters += f->marks[g][i] == HASH_ZERO;
        }
        hash_bytes(&spec, &g, sizeof g, &f->nodes[g]);
        assert_ok(hashes_writer_add(w, g, f->marks[g], f->leaves[g], &err), &err);
    }
    assert_fails(hashes_writer_add(w, 0, f->marks[0], f->leaves[0], &err), &err, ERR_INTERNAL);
    hash_root(&f->geo, f->size, f->nodes, 3, &f->summary.root);
    hash_bytes(&spec, "m", 1, &f->summary.metadata);
    assert_ok(hashes_writer_end(w, f->nodes, &f->summary, &digest, &err), &err);
    hashes_writer_free(w);
    assert_ok(hashes_file_digest(f->path, &spec, &again, &err), &err);
    assert_true(hash_equal(&digest, &again));
    assert_fails(hashes_writer_open(f->path, &f->geo, f->size, &w, &err), &err, ERR_EXISTS);
}

// All of it, in new memory.
static char *written(void **state, File *f, UnitRandom *random, size_t *ret_n)
{
    Err err = ERR_INIT;
    char *bytes = NULL;
    write_file(state, f, random);
    assert_ok(file_read(f->path, 1u << 20, &bytes, ret_n, &err), &err);
    return bytes;
}

// Everything that can be asked; false if anything was refused.
static bool read_file(const File *f, const char *path, bool compare, Err *err)
{
    HashesFile *h = NULL;
    uint8_t marks[512];
    static Hash leaves[512];
    bool any, ok = hashes_open(path, &f->geo, &h, err);
    for (uint64_t g = 0; ok && g < 3; g++) {
        ok = hashes_group(h, g, marks, leaves, &any, err);
        if (!ok || !compare)
            continue;
        assert_int_equal(any, g != 1);
        assert_memory_equal(marks, f->marks[g], 512);
        assert_true(hash_equal(hashes_node(h, g), &f->nodes[g]));
        for (unsigned i = 0; i < 512; i++)
            if (marks[i] != HASH_ABSENT)
                assert_true(hash_equal(&leaves[i], &f->leaves[g][i]));
    }
    if (ok && compare)
        assert_memory_equal(hashes_summary(h), &f->summary, sizeof f->summary);
    hashes_free(h);
    return ok;
}

static void test_round_trip(void **state)
{
    Err err = ERR_INIT;
    static File f;
    UnitRandom random = unit_random();
    write_file(state, &f, &random);
    assert_ok(read_file(&f, f.path, true, &err), &err);
    File other = f;
    HashesFile *h = NULL;
    HashSpec spec = {.algorithm = HASH_XXH3_128, .seed = 98};
    assert_ok(hash_geometry_init(&other.geo, &spec, 4096, &err), &err);
    assert_fails(hashes_open(f.path, &other.geo, &h, &err), &err, ERR_DAMAGED);
    assert_fails(hashes_open("/dev/null", &f.geo, &h, &err), &err, ERR_DAMAGED);
    assert_fails(hashes_open(unit_path(state, "none"), &f.geo, &h, &err), &err, ERR_NOT_FOUND);
}

// Every byte of it matters: one flipped bit anywhere is seen, and so is every other length.
static void test_any_damage_is_seen(void **state)
{
    Err err = ERR_INIT;
    static File f;
    UnitRandom random = unit_random();
    size_t n;
    char *bytes = written(state, &f, &random, &n);
    int fd = open(f.path, O_RDWR | O_CLOEXEC);
    for (size_t i = 0; i < n; i++) {
        char c = (char)(bytes[i] ^ (1 << unit_random_below(&random, 8)));
        assert_ok(file_pwrite(fd, &c, 1, i, &err), &err);
        assert_false(read_file(&f, f.path, false, &err));
        if (err.code != ERR_DAMAGED)
            fail_msg("byte %zu: %s", i, err.details);
        err_clear(&err);
        assert_ok(file_pwrite(fd, bytes + i, 1, i, &err), &err);
    }
    assert_ok(read_file(&f, f.path, true, &err), &err);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(ftruncate(fd, (off_t)unit_random_below(&random, n)), 0);
        assert_fails(read_file(&f, f.path, false, &err), &err, ERR_DAMAGED);
        assert_ok(file_pwrite(fd, bytes, n, 0, &err), &err);
    }
    assert_ok(file_pwrite(fd, "more", 4, n, &err), &err);
    assert_fails(read_file(&f, f.path, false, &err), &err, ERR_DAMAGED);
    assert_int_equal(close(fd), 0);
    free(bytes);
}

// Numbers that lead outside the file are refused before anything is read by them (whatever the checksum says).
static void test_hostile_trailer(void **state)
{
    Err err = ERR_INIT;
    static File f;
    UnitRandom random = unit_random();
    size_t n;
    char *bytes = written(state, &f, &random, &n);
    int fd = open(f.path, O_RDWR | O_CLOEXEC);
    static const uint64_t values[] = {0, 1, 63, 64, 255, UINT64_MAX, UINT64_MAX / 32, UINT64_C(1) << 56, INT64_MAX};
    for (size_t field = 8; field <= 40; field += 8) {
        for (size_t v = 0; v < ARRAY_LEN(values); v++) {
            assert_ok(file_pwrite(fd, &values[v], 8, n - 256 + field, &err), &err);
            assert_fails(read_file(&f, f.path, false, &err), &err, ERR_DAMAGED);
        }
        assert_ok(file_pwrite(fd, bytes + n - 256 + field, 8, n - 256 + field, &err), &err);
    }
    assert_int_equal(close(fd), 0);
    free(bytes);
}

// The sums are no secret: the file, changed on purpose, with one that fits again, is refused with these words.
static void refused(const File *f, uint8_t *p, size_t n, const char *words)
{
    Err err = ERR_INIT;
    uint8_t *trailer = p + n - HASHES_TRAILER_BYTES;
    uint64_t index = hashes_get64(trailer + HASHES_AT_INDEX);
    XXH3_state_t *sum = XXH3_createState();
    (void)XXH3_64bits_reset(sum);
    (void)XXH3_64bits_update(sum, p, HASHES_HEADER_BYTES);
    (void)XXH3_64bits_update(sum, p + index, n - index - HASHES_TRAILER_BYTES + HASHES_AT_CHECKSUM);
    hashes_put64(trailer + HASHES_AT_CHECKSUM, XXH3_64bits_digest(sum));
    (void)XXH3_freeState(sum);
    int fd = open(f->path, O_WRONLY | O_CLOEXEC);
    assert_ok(file_pwrite(fd, p, n, 0, &err), &err);
    assert_int_equal(close(fd), 0);
    assert_false(read_file(f, f->path, false, &err));
    if (err.code != ERR_DAMAGED || !strstr(err.details, words))
        fail_msg("%s", err.details);
    err_clear(&err);
}

static void test_hostile_index(void **state)
{
    static const struct {
        size_t at, bytes;
        uint64_t value;
        const char *words;
    } cases[] = {
        {0, 8, 3, "bad index"},                                  // a group beyond the disk
        {HASHES_INDEX_BYTES, 8, 0, "bad index"},                 // the one before once more
        {8, 8, 65, "bad index"},                                 // a record that does not follow the one before
        {24, 4, 513, "bad index"},                               // more clusters than a group has
        {24, 8, 0, "bad index"},                                 // none at all
        {HASHES_INDEX_BYTES + 24, 8, 512, "bad index"},          // a record that reaches into the index
        {HASHES_INDEX_BYTES + 28, 4, 1, "what its trailer says"} // as many bytes, fewer clusters of zeros
    };
    static File f;
    UnitRandom random = unit_random();
    size_t n;
    char *text = written(state, &f, &random, &n);
    uint8_t *p = (uint8_t *)text, *trailer = p + n - HASHES_TRAILER_BYTES, *copy = malloc(n);
    uint64_t index = hashes_get64(trailer + HASHES_AT_INDEX);
    assert_int_equal(hashes_get64(trailer + HASHES_AT_RECORDS), 2);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        memcpy(copy, p, n);
        uint64_t value = htole64(cases[i].value);
        memcpy(p + index + cases[i].at, &value, cases[i].bytes);
        refused(&f, p, n, cases[i].words);
        memcpy(p, copy, n);
    }
    free(copy);
    free(text);
}

// Marks as nothing of ours makes them, in a record whose sum fits.
static void test_hostile_marks(void **state)
{
    enum { LAST = 257 }; // clusters of the last group, 2; its record is the second
    static File f;
    UnitRandom random = unit_random();
    size_t n;
    char *text = written(state, &f, &random, &n);
    uint8_t *p = (uint8_t *)text, *copy = malloc(n);
    uint8_t *entry = p + hashes_get64(p + n - HASHES_TRAILER_BYTES + HASHES_AT_INDEX) + HASHES_INDEX_BYTES;
    uint64_t record = hashes_get64(entry + 8);
    size_t bytes = hashes_marks_bytes(&f.geo) + hashes_get32(entry + 24) * hash_size(HASH_XXH3_128);
    unsigned zero = 0, absent = 0;
    while (f.marks[2][zero] != HASH_ZERO)
        zero++;
    while (f.marks[2][absent] != HASH_ABSENT)
        absent++;
    const struct {
        unsigned from, to; // clusters whose mark changes
        uint8_t from_mark, to_mark;
    } cases[] = {
        {absent, absent, 3, 3},                // no mark at all
        {zero, LAST, HASH_ABSENT, HASH_ZERO},  // beyond the disk, while the numbers are right
        {zero, zero, HASH_ABSENT, HASH_ABSENT} // one less than the index says
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        memcpy(copy, p, n);
        uint8_t *from = p + record + cases[i].from / 4, *to = p + record + cases[i].to / 4;
        unsigned from_shift = cases[i].from % 4 * 2, to_shift = cases[i].to % 4 * 2;
        *from = (uint8_t)((*from & ~(3u << from_shift)) | ((unsigned)cases[i].from_mark << from_shift));
        *to = (uint8_t)((*to & ~(3u << to_shift)) | ((unsigned)cases[i].to_mark << to_shift));
        hashes_put64(entry + 16, XXH3_64bits_withSeed(p + record, bytes, 2));
        refused(&f, p, n, "group 2 has changed");
        memcpy(p, copy, n);
    }
    free(copy);
    free(text);
}

// Layers of different chains: the tip's nodes do not fit what lies below it.
static void test_wrong_parent_is_seen(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 12, HASH_XXH3_128);
    for (int i = 0; i < 3; i++) { // a full, another full, an increment of the second
        Writer *w = model_begin(&m, i < 2 ? DISK_FULL : DISK_TRACKED, 20 * 4096);
        model_fill(&m, m.points[i].bytes, i < 2 ? 20 * 4096 : 4096);
        model_write(&m, w, 0, i < 2 ? 20 * 4096 : 4096);
        if (i < 2)
            model_end(&m, w);
        else {
            WriterExpect expect = model_expect(&m);
            assert_ok(writer_seal(w, &expect, &m.points[2].summary, &m.points[2].digest, &err), &err);
            writer_free(w);
            chain_hashes_free(m.parent);
            free(m.arrived);
            m.len++;
        }
    }
    Hash leaves[512];
    for (int parent = 0; parent < 2; parent++) {
        ChainLayerPath layers[] = {{NULL, m.points[2].hashes}, {NULL, m.points[parent].hashes}};
        ChainHashes *c = NULL;
        assert_ok(chain_hashes_open(layers, 2, &m.geo, &c, &err), &err);
        if (parent == 1) // model_begin's chain was: 2 over 1 over 0, and 1 is a full
            assert_ok(chain_hashes_group(c, 0, leaves, NULL, &err), &err);
        else
            assert_fails(chain_hashes_group(c, 0, leaves, NULL, &err), &err, ERR_DAMAGED);
        chain_hashes_free(c);
    }
    model_clear(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_round_trip),    in_folder(test_any_damage_is_seen), in_folder(test_hostile_trailer),
        in_folder(test_hostile_index), in_folder(test_hostile_marks),      in_folder(test_wrong_parent_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
