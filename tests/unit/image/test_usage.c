// Images that somebody made on purpose: every use of a cluster that our writer would not make is refused, in words.
#include "model.h"

#include <sys/stat.h>

typedef struct Image {
    const char *path;
    HashGeometry geo;
    uint64_t bytes, l2; // of the file; offset of the first L2 table
} Image;

static uint64_t read_number(const char *path, uint64_t at)
{
    Err err = ERR_INIT;
    uint8_t p[8];
    int fd = open(path, O_RDONLY);
    assert_ok(file_pread(fd, p, 8, at, &err), &err);
    (void)close(fd);
    return qcow2_get64(p);
}

static void write_number(const char *path, uint64_t at, uint64_t value)
{
    Err err = ERR_INIT;
    uint8_t p[8];
    int fd = open(path, O_WRONLY);
    qcow2_put64(p, value);
    assert_ok(file_pwrite(fd, p, 8, at, &err), &err);
    (void)close(fd);
}

static Image look_at(const Model *m)
{
    Image i = {.path = m->points[0].image, .geo = m->geo, .bytes = m->points[0].summary.image_bytes};
    i.l2 = read_number(i.path, read_number(i.path, 40)) & QCOW2_OFFSET_MASK;
    return i;
}

// Clusters of data, the first ones as they are or compressed, then one of zeros that keeps a host cluster.
static Image make(Model *m, unsigned compression)
{
    m->compression = compression;
    uint64_t size = 10 * m->cluster_size;
    Writer *w = model_begin(m, DISK_FULL, size);
    memset(m->points[0].bytes, 1, size);
    for (uint64_t i = 0; i < size; i += 7)
        m->points[0].bytes[i] = (uint8_t)(i / 7);
    model_cover(m, w);
    model_end(m, w);
    return look_at(m);
}

static void refused(const char *path, const HashGeometry *geo, ErrCode code, const char *words)
{
    Err err = ERR_INIT;
    Hash hash;
    uint64_t length;
    if (image_metadata_hash(path, geo, &hash, &length, &err))
        fail_msg("accepted, expected: %s", words);
    if (err.code != code || !strstr(err.details, words))
        fail_msg("%s: %s instead of %s", err_name(err.code), err.details, words);
}

// One number of the image changed, then put right.
static void refused_with(const Image *i, uint64_t at, uint64_t value, ErrCode code, const char *words)
{
    Err err = ERR_INIT;
    Hash hash;
    uint64_t length, was = read_number(i->path, at);
    write_number(i->path, at, value);
    refused(i->path, &i->geo, code, words);
    write_number(i->path, at, was);
    assert_ok(image_metadata_hash(i->path, &i->geo, &hash, &length, &err), &err);
}

static void plain(void **state)
{
    Model m = model_new(state, 12, HASH_XXH3_128);
    Image i = make(&m, 0);
    uint64_t first = read_number(i.path, i.l2), last = i.l2 + 9 * 8;
    refused_with(&i, i.l2 + 8, first, ERR_DAMAGED, "used twice");
    refused_with(&i, i.l2 + 8, QCOW2_OFLAG_COPIED | i.l2, ERR_DAMAGED, "used twice");
    refused_with(&i, i.l2 + 8, QCOW2_OFLAG_COMPRESSED | (first & QCOW2_OFFSET_MASK), ERR_UNSUPPORTED, "zlib");
    refused_with(&i, last + 8, qcow2_l2_zero(0), ERR_DAMAGED, "beyond the disk's end");
    // A refcount table that is longer than the file needs, in a file with room for it.
    uint64_t clusters = read_number(i.path, 56);
    assert_int_equal(truncate(i.path, (off_t)(i.bytes + 4096)), 0);
    write_number(i.path, 48, i.bytes - 4096);
    write_number(i.path, 56, clusters + (UINT64_C(1) << 32));
    refused(i.path, &i.geo, ERR_DAMAGED, "refcount table has the wrong length");
    model_clear(&m);
}

static void packed(void **state)
{
    Model m = model_new(state, 16, HASH_XXH3_128);
    Image i = make(&m, 1);
    uint64_t first = read_number(i.path, i.l2), second = read_number(i.path, i.l2 + 8);
    assert_true((first & QCOW2_OFLAG_COMPRESSED) && (second & QCOW2_OFLAG_COMPRESSED));
    refused_with(&i, i.l2 + 8, first, ERR_DAMAGED, "compressed data overlaps");
    refused_with(&i, i.l2 + 8, second + 1, ERR_DAMAGED, "begin and end with a sector");
    refused_with(&i, i.l2 + 8, QCOW2_OFLAG_COMPRESSED | i.l2, ERR_DAMAGED, "used twice");
    refused_with(&i, i.l2 + 8, qcow2_l2_normal(65536), ERR_DAMAGED, "used twice");
    // Whole clusters, and not the repository's.
    HashGeometry other;
    Err err = ERR_INIT;
    assert_ok(hash_geometry_init(&other, &m.hash, 4096, &err), &err);
    refused(i.path, &other, ERR_DAMAGED, "its cluster size is not the repository's");
    model_clear(&m);
}

// Our writer makes no subclusters, so that nothing here says who uses what of them.
static void subclusters(void **state)
{
    HashGeometry geo;
    HashSpec spec = {.algorithm = HASH_XXH3_128, .seed = 1};
    Err err = ERR_INIT;
    const char *image = unit_path(state, "q.qcow2");
    struct stat st;
    assert_ok(hash_geometry_init(&geo, &spec, 65536, &err), &err);
    model_run(
        (const char *const[]){"qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", image, "1M", NULL});
    assert_int_equal(stat(image, &st), 0);
    assert_int_equal(truncate(image, (off_t)align_up((uint64_t)st.st_size, 65536)), 0);
    refused(image, &geo, ERR_UNSUPPORTED, "extended L2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {in_folder(plain), in_folder(packed), in_folder(subclusters)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
