// The reader on images that QEMU wrote (subclusters), with qemu-img convert as the oracle; and on
// what it must refuse (safety rule 19).
#include "reader_check.h"

#include "base/str.h"

#include <sys/stat.h>

#define run(...) model_run((const char *const[]){__VA_ARGS__, NULL})

typedef struct Foreign {
    HashGeometry geo;
    char images[4][600], hashes[4][600], backing[4][64];
    ReaderLayer layers[4]; // newest first
    size_t len;
    uint8_t *raw; // what qemu-img reads of the newest
    uint64_t size;
} Foreign;

static Foreign foreign_new(void)
{
    Err err = ERR_INIT;
    Foreign f = {0};
    HashSpec spec = {.algorithm = HASH_XXH3_128, .seed = 99};
    assert_ok(hash_geometry_init(&f.geo, &spec, 65536, &err), &err);
    return f;
}

// What the newest image of the chain reads as, by QEMU.
static void foreign_convert(void **state, Foreign *f, const char *image)
{
    Err err = ERR_INIT;
    size_t n;
    char *text;
    const char *raw = unit_path(state, "raw");
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw);
    assert_ok(file_read(raw, 1u << 30, &text, &n, &err), &err);
    assert_int_equal(unlink(raw), 0);
    free(f->raw);
    f->raw = (uint8_t *)text;
    f->size = n;
}

// A cluster's mark by the image's own tables, its leaf by what QEMU reads.
static void foreign_group(const Foreign *f, const ReaderFile *file, uint64_t group, HashesWriter *w, HashesSummary *s,
                          Hash *node)
{
    Err err = ERR_INIT;
    uint32_t n = f->geo.leaves;
    uint8_t *marks = calloc(n, 1), *cluster = malloc(65536);
    Hash *leaves = calloc(n, sizeof *leaves);
    assert_true(marks && cluster && leaves);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = (group * n + i) << 16;
        Qcow2Entry e = {0};
        leaves[i] = f->geo.zero_leaf;
        if (at >= f->size)
            continue;
        memset(cluster, 0, 65536);
        memcpy(cluster, f->raw + at, MIN(65536, f->size - at));
        hash_bytes(&f->geo.spec, cluster, 65536, &leaves[i]);
        assert_ok(reader_file_lookup(file, at >> 16, &e, &err), &err);
        if (e.kind != QCOW2_UNALLOCATED || e.subclusters)
            marks[i] =
                !e.subclusters && (e.kind == QCOW2_ZERO_PLAIN || e.kind == QCOW2_ZERO_ALLOC) ? HASH_ZERO : HASH_DATA;
        s->stored_clusters += marks[i] == HASH_DATA;
        s->zeroed_clusters += marks[i] == HASH_ZERO;
    }
    assert_ok(hashes_writer_add(w, group, marks, leaves, &err), &err);
    hash_node(&f->geo, leaves, node);
    free(marks);
    free(cluster);
    free(leaves);
}

// The image's tables, opened without the checks that need its hashes.
static ReaderFile foreign_tables(const char *image)
{
    Err err = ERR_INIT;
    ReaderFile file = {.fd = open(image, O_RDONLY)};
    uint8_t start[QCOW2_HEADER_READ];
    struct stat st;
    assert_int_equal(fstat(file.fd, &st), 0);
    file.bytes = (uint64_t)st.st_size;
    assert_ok(file_pread(file.fd, start, sizeof start, 0, &err), &err);
    assert_ok(qcow2_header_decode(start, sizeof start, file.bytes, &file.header, &err), &err);
    file.tables = calloc(file.header.l1_size, 8);
    for (uint32_t i = 0; i < file.header.l1_size; i++) {
        uint8_t raw[8];
        assert_ok(file_pread(file.fd, raw, 8, file.header.l1_offset + i * 8, &err), &err);
        assert_ok(qcow2_l1_decode(qcow2_get64(raw), 16, file.bytes, &file.tables[i], &err), &err);
    }
    return file;
}

// Makes `image` the chain's newest layer: writes its .hashes.
static void foreign_add(void **state, Foreign *f, const char *name)
{
    Err err = ERR_INIT;
    size_t k = f->len++;
    (void)snprintf(f->images[k], sizeof f->images[k], "%s", unit_path(state, name));
    (void)snprintf(f->hashes[k], sizeof f->hashes[k], "%s.hashes", unit_path(state, name));
    (void)snprintf(f->backing[k], sizeof f->backing[k], "%s", name);
    foreign_convert(state, f, f->images[k]);
    ReaderFile file = foreign_tables(f->images[k]);
    HashesWriter *w;
    HashesSummary s = {.size = f->size, .image_bytes = file.bytes};
    uint64_t groups = hash_groups(&f->geo, f->size);
    Hash *nodes = calloc(groups, sizeof *nodes), digest;
    assert_ok(hashes_writer_open(f->hashes[k], &f->geo, f->size, &w, &err), &err);
    for (uint64_t g = 0; g < groups; g++)
        foreign_group(f, &file, g, w, &s, &nodes[g]);
    hash_root(&f->geo, f->size, nodes, groups, &s.root);
    assert_ok(hashes_writer_end(w, nodes, &s, &digest, &err), &err);
    hashes_writer_free(w);
    free(nodes);
    reader_file_clear(&file);
    for (size_t i = 0; i < f->len; i++) {
        size_t from = f->len - 1 - i;
        f->layers[i] = (ReaderLayer){.image = f->images[from],
                                     .hashes = f->hashes[from],
                                     .backing_name = from > 0 ? f->backing[from - 1] : NULL};
    }
}

static void foreign_check(Foreign *f, UnitRandom *random)
{
    Err err = ERR_INIT;
    Reader *r;
    assert_ok(reader_open(f->layers, f->len, &f->geo, &r, &err), &err);
    compare_all(r, f->raw, f->size, random, 40);
    check_extents(r, f->raw, 0, f->size);
    reader_free(r);
}

static void foreign_clear(Foreign *f)
{
    for (size_t i = 0; i < f->len; i++) {
        (void)unlink(f->images[i]);
        (void)unlink(f->hashes[i]);
    }
    free(f->raw);
}

static void random_raw(const char *path, uint64_t size, UnitRandom *random)
{
    uint8_t *p = calloc(1, size);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(p && fd >= 0);
    for (uint64_t at = 0; at < size; at += 4096)
        if (unit_random_below(random, 3) != 0)
            memset(p + at, (int)unit_random_below(random, 256), MIN(4096, size - at));
    assert_int_equal(write(fd, p, size), size);
    (void)close(fd);
    free(p);
}

// Small writes, zeros and discards at random, by QEMU.
static void scribble(const char *image, uint64_t size, unsigned count, UnitRandom *random)
{
    const char *argv[140] = {"qemu-io", "-f", "qcow2"};
    char *commands[64];
    size_t n = 3;
    assert_true(count <= 64);
    for (unsigned i = 0; i < count; i++) {
        static const char *const verbs[] = {"write", "write", "write -z", "write -z -u", "discard"};
        const char *verb = verbs[unit_random_below(random, 5)];
        uint64_t at = unit_random_below(random, size / 512) * 512, length = (1 + unit_random_below(random, 60)) * 512;
        char pattern[16];
        if (unit_random_below(random, 8) == 0)
            length += 65536;
        (void)snprintf(pattern, sizeof pattern, "-P %u ", (unsigned)unit_random_below(random, 256));
        commands[i] = malloc(100);
        (void)snprintf(commands[i], 100, "%s %s%llu %llu", verb, str_eq(verb, "write") ? pattern : "",
                       (unsigned long long)at, (unsigned long long)MIN(length, size - at));
        argv[n++] = "-c";
        argv[n++] = commands[i];
    }
    argv[n++] = image;
    argv[n] = NULL;
    model_run(argv);
    for (unsigned i = 0; i < count; i++)
        free(commands[i]);
}

// Layers with subclusters, smaller and larger than what is below.
static void foreign_chain(void **state, Foreign *f, bool subclusters, UnitRandom *random)
{
    const char *raw = unit_path(state, "source");
    random_raw(raw, 3000320, random);
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw,
        unit_path(state, "a.qcow2"));
    foreign_add(state, f, "a.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "-F", "qcow2", "-b",
        "a.qcow2", unit_path(state, "b.qcow2"), "2621440");
    scribble(unit_path(state, "b.qcow2"), 2621440, 40, random);
    foreign_add(state, f, "b.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
        subclusters ? "extended_l2=on,compression_type=zstd" : "compression_type=zstd", "-F", "qcow2", "-b", "b.qcow2",
        unit_path(state, "c.qcow2"), "2490368");
    scribble(unit_path(state, "c.qcow2"), 2490368, 30, random);
    // It ends with a cluster: behind an end within one our layers hold zeros, and QEMU's may hold anything.
    foreign_add(state, f, "c.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "-F", "qcow2", "-b",
        "c.qcow2", unit_path(state, "d.qcow2"), "3500032");
    scribble(unit_path(state, "d.qcow2"), 2400000, 10, random);
    foreign_add(state, f, "d.qcow2");
}

static void qemu_images(void **state)
{
    UnitRandom random = unit_random();
    for (int round = 0; round < 6; round++) {
        Foreign f = foreign_new();
        foreign_chain(state, &f, round % 2 == 0, &random);
        foreign_check(&f, &random);
        foreign_clear(&f);
    }
}

// One of ours, of compressed clusters or of zeros alone, below QEMU's subclusters, which reach beyond its end.
static void subclusters_over_ours(void **state)
{
    UnitRandom random = unit_random();
    for (unsigned compressed = 0; compressed < 2; compressed++) {
        Err err = ERR_INIT;
        Foreign f = foreign_new();
        Writer *w;
        HashesSummary s;
        Hash digest;
        char image[600], hashes[600];
        (void)snprintf(image, sizeof image, "%s", unit_path(state, "a.qcow2"));
        (void)snprintf(hashes, sizeof hashes, "%s", unit_path(state, "ours.hashes"));
        uint32_t size = 20 * 65536;
        WriterSpec spec = {.image_path = image,
                           .hashes_path = hashes,
                           .size = size,
                           .cluster_bits = 16,
                           .hash = f.geo.spec,
                           .mode = DISK_FULL,
                           .compression = compressed};
        uint8_t *p = calloc(1, size);
        assert_non_null(p);
        for (uint32_t i = 0; compressed && i < size; i += 100)
            p[i] = (uint8_t)unit_random_next(&random);
        assert_ok(writer_open(&spec, &w, &err), &err);
        assert_ok(writer_write(w, p, 0, size, &err), &err);
        assert_ok(writer_seal(w, NULL, &s, &digest, &err), &err);
        assert_int_equal(s.stored_clusters, compressed ? 20 : 0);
        assert_true(s.image_bytes < size);
        writer_free(w);
        free(p);
        assert_int_equal(unlink(hashes), 0);
        foreign_add(state, &f, "a.qcow2");
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "-F", "qcow2", "-b",
            "a.qcow2", unit_path(state, "b.qcow2"), "2621440");
        scribble(unit_path(state, "b.qcow2"), 2621440, 60, &random);
        foreign_add(state, &f, "b.qcow2");
        foreign_check(&f, &random);
        foreign_clear(&f);
    }
}

static void no_chain_and_too_long_a_chain(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Foreign f = foreign_new();
    ReaderLayer layers[CHAIN_LAYERS_MAX + 1] = {0};
    ChainLayerPath paths[CHAIN_LAYERS_MAX + 1] = {0};
    Reader *r;
    ChainHashes *chain;
    assert_fails(reader_open(layers, 0, &f.geo, &r, &err), &err, ERR_INVALID);
    assert_fails(reader_open(layers, CHAIN_LAYERS_MAX + 1, &f.geo, &r, &err), &err, ERR_INVALID);
    assert_fails(chain_hashes_open(paths, 0, &f.geo, &chain, &err), &err, ERR_INVALID);
    assert_fails(chain_hashes_open(paths, CHAIN_LAYERS_MAX + 1, &f.geo, &chain, &err), &err, ERR_INVALID);
}

static void qemu_images_flipped(void **state)
{
    UnitRandom random = unit_random();
    Foreign f = foreign_new();
    foreign_chain(state, &f, true, &random);
    uint8_t *got = malloc(f.size);
    assert_non_null(got);
    unsigned refused = 0;
    for (size_t i = 0; i < f.len; i++) {
        ReaderFile file = foreign_tables(f.layers[i].image);
        for (int k = 0; k < 150; k++) {
            uint64_t at = unit_random_below(&random, file.bytes);
            if (k % 2)
                at = file.tables[0] + unit_random_below(&random, 1000);
            uint8_t mask = (uint8_t)(1 + unit_random_below(&random, 255));
            flip(f.layers[i].image, at, mask);
            try_flipped(f.layers, f.len, &f.geo, f.raw, f.size, got, &refused);
            flip(f.layers[i].image, at, mask);
        }
        reader_file_clear(&file);
    }
    assert_true(refused > 100);
    free(got);
    foreign_check(&f, &random);
    foreign_clear(&f);
}

// ---- refused

static void refuse(Foreign *f, ErrCode code, const char *words)
{
    Err err = ERR_INIT;
    Reader *r = NULL;
    uint8_t *got = malloc(f->size);
    bool ok = reader_open(f->layers, f->len, &f->geo, &r, &err) && reader_read(r, got, 0, (uint32_t)f->size, &err);
    free(got);
    reader_free(r);
    if (ok)
        fail_msg("accepted, expected: %s", words);
    if (err.code != code || !strstr(err.details, words))
        fail_msg("%s: %s instead of %s", err_name(err.code), err.details, words);
}

static void patch(const char *path, uint64_t at, const void *p, size_t n)
{
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, p, n, (off_t)at), n);
    (void)close(fd);
}

// One of ours, then in its place what it is not.
static void refuses_foreign(void **state)
{
    static const struct {
        const char *options, *words;
        ErrCode code;
    } made[] = {
        {"compat=0.10", "version", ERR_UNSUPPORTED},
        {"lazy_refcounts=on", "compatible", ERR_UNSUPPORTED},
        {"refcount_bits=8", "refcounts", ERR_UNSUPPORTED},
        {"cluster_size=32k", "clusters of", ERR_DAMAGED},
        {"data_file=@,data_file_raw=on", "data file", ERR_UNSUPPORTED},
    };
    UnitRandom random = unit_random();
    Foreign f = foreign_new();
    const char *image = unit_path(state, "x.qcow2");
    char path[600];
    (void)snprintf(path, sizeof path, "%s", image);
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
    scribble(path, 1 << 20, 20, &random);
    foreign_add(state, &f, "x.qcow2");
    foreign_check(&f, &random);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);

    for (size_t i = 0; i < ARRAY_LEN(made); i++) {
        char options[700], data[600];
        (void)snprintf(data, sizeof data, "%s/external", (const char *)*state);
        const char *at = strchr(made[i].options, '@');
        if (at)
            (void)snprintf(options, sizeof options, "data_file=%s%s", data, at + 1);
        else
            (void)snprintf(options, sizeof options, "%s", made[i].options);
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M");
        assert_int_equal(truncate(path, st.st_size), 0); // of the length that the hashes say
        refuse(&f, made[i].code, made[i].words);
    }
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "2M");
    assert_int_equal(truncate(path, st.st_size), 0);
    refuse(&f, ERR_DAMAGED, "a disk of");
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
    run("qemu-img", "snapshot", "-c", "snap", path);
    assert_int_equal(truncate(path, st.st_size), 0);
    refuse(&f, ERR_UNSUPPORTED, "snapshots");
    // Safety rule 19: the file that a backing name points to is never opened; the name alone is enough to refuse.
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/hostname", path, "1M");
    assert_int_equal(truncate(path, st.st_size), 0);
    refuse(&f, ERR_UNSUPPORTED, "backing format");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "/etc/hostname", path, "1M");
    assert_int_equal(truncate(path, st.st_size), 0);
    refuse(&f, ERR_DAMAGED, "'/etc/hostname'");
    foreign_clear(&f);
}

static void refuses_patched(void **state)
{
    UnitRandom random = unit_random();
    Foreign f = foreign_new();
    char path[600];
    (void)snprintf(path, sizeof path, "%s", unit_path(state, "x.qcow2"));
    random_raw(unit_path(state, "source"), 1 << 20, &random);
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", unit_path(state, "source"), path);
    foreign_add(state, &f, "x.qcow2");
    foreign_check(&f, &random);
    ReaderFile file = foreign_tables(path);
    uint64_t l1 = file.header.l1_offset, l2 = file.tables[0];
    reader_file_clear(&file);
    const struct {
        uint64_t at;
        uint8_t bytes[8];
        size_t n;
        ErrCode code;
        const char *words;
    } patches[] = {
        {0, "QFI\xfc", 4, ERR_DAMAGED, "not a qcow2"},
        {32, {0, 0, 0, 1}, 4, ERR_UNSUPPORTED, "encrypted"},
        {72, {0, 0, 0, 0, 0, 0, 0, 1}, 8, ERR_UNSUPPORTED, "dirty"},
        {72, {0, 0, 0, 0, 0, 0, 0, 2}, 8, ERR_UNSUPPORTED, "corrupt"},
        {72, {0, 0, 0, 0, 0, 0, 0, 4}, 8, ERR_UNSUPPORTED, "data file"},
        {72, {0, 0, 0, 0, 0, 0, 0, 0x20}, 8, ERR_UNSUPPORTED, "unknown"},
        {72, {0x80}, 8, ERR_UNSUPPORTED, "unknown"},
        {36, {0x7f, 0xff, 0xff, 0xff}, 4, ERR_DAMAGED, "L1"},
        {40, {0, 0, 0, 0, 0, 0x03, 0, 1}, 8, ERR_DAMAGED, "L1"},
        {40, {0, 1, 0, 0, 0, 0, 0, 0}, 8, ERR_DAMAGED, "L1"},
        {40, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}, 8, ERR_DAMAGED, "L1"},
        {l1, {0x80, 0, 0, 0, 0, 1, 2, 0}, 8, ERR_DAMAGED, "L1 entry"},
        {l1, {0x80, 0, 0, 0, 0x10, 0, 0, 0}, 8, ERR_DAMAGED, "L1 entry"},
        {l1, {0, 0, 0, 0, 0, 0, 0, 0}, 8, ERR_DAMAGED, "do not agree"},
        {l2 + 8, {0x80, 0, 0, 0, 0, 5, 2, 0}, 8, ERR_DAMAGED, "L2 entry"},
        {l2 + 8, {0x80, 0, 0x10, 0, 0, 5, 0, 0}, 8, ERR_DAMAGED, "L2 entry"},
        {l2 + 8, {0x40, 0, 0, 0, 0, 5, 0, 0}, 8, ERR_UNSUPPORTED, "zlib"},
        {l2 + 8, {0, 0, 0, 0, 0, 0, 0, 1}, 8, ERR_DAMAGED, "zero by the map"},
    };
    for (size_t i = 0; i < ARRAY_LEN(patches); i++) {
        uint8_t was[8];
        int fd = open(path, O_RDONLY);
        assert_int_equal(pread(fd, was, 8, (off_t)patches[i].at), 8);
        (void)close(fd);
        patch(path, patches[i].at, patches[i].bytes, patches[i].n);
        refuse(&f, patches[i].code, patches[i].words);
        patch(path, patches[i].at, was, 8);
    }
    foreign_check(&f, &random);
    // Of another length than its hashes say; no regular file; not there; a chain that does not end, or goes on.
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size + 65536), 0);
    refuse(&f, ERR_DAMAGED, "bytes long");
    assert_int_equal(truncate(path, st.st_size), 0);
    f.layers[0].backing_name = "y.qcow2";
    refuse(&f, ERR_DAMAGED, "has a backing file");
    f.layers[1] = f.layers[0];
    f.layers[0].backing_name = NULL;
    f.len = 2;
    refuse(&f, ERR_DAMAGED, "lacks a backing file");
    f.len = 1;
    assert_int_equal(rename(path, unit_path(state, "moved")), 0);
    assert_int_equal(symlink("moved", path), 0);
    refuse(&f, ERR_IO, "symbolic links");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    refuse(&f, ERR_DAMAGED, "regular file");
    assert_int_equal(unlink(path), 0);
    refuse(&f, ERR_NOT_FOUND, "x.qcow2");
    foreign_clear(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(qemu_images),
        in_folder(subclusters_over_ours),
        cmocka_unit_test(no_chain_and_too_long_a_chain),
        in_folder(qemu_images_flipped),
        in_folder(refuses_foreign),
        in_folder(refuses_patched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
