// The reader: what QEMU reads, byte for byte; wrong bytes never; foreign images never. Oracles: the model's
// memory, and qemu-img convert.
#include "model.h"

#include "base/str.h"
#include "image/reader_parts.h"

#include <pthread.h>
#include <sys/stat.h>

// ---- chains of our own engine

static size_t reader_layers(const Model *m, ReaderLayer *out)
{
    for (size_t i = 0; i < m->len; i++) {
        const ModelPoint *p = &m->points[m->len - 1 - i];
        out[i] = (ReaderLayer){.image = p->image,
                               .hashes = p->hashes,
                               .backing_name = i + 1 < m->len ? model_base_name(m->points[m->len - 2 - i].image) : NULL};
    }
    return m->len;
}

static Reader *open_model(const Model *m)
{
    Err err = ERR_INIT;
    ReaderLayer layers[MODEL_POINTS];
    Reader *r;
    size_t n = reader_layers(m, layers);
    assert_ok(reader_open(layers, n, &m->geo, &r, &err), &err);
    return r;
}

static void compare_all(Reader *r, const uint8_t *want, uint64_t size, UnitRandom *random, unsigned reads)
{
    Err err = ERR_INIT;
    uint8_t *got = malloc(size + 1);
    assert_non_null(got);
    assert_int_equal(reader_size(r), size);
    assert_ok(reader_read(r, got, 0, (uint32_t)size, &err), &err);
    assert_memory_equal(got, want, size);
    for (unsigned i = 0; i < reads; i++) {
        uint64_t at = unit_random_below(random, size), n = unit_random_below(random, MIN(size - at, 300000) + 1);
        got[n] = 0xa5;
        assert_ok(reader_read(r, got, at, (uint32_t)n, &err), &err);
        assert_memory_equal(got, want + at, n);
        assert_int_equal(got[n], 0xa5);
    }
    assert_fails(reader_read(r, got, size, 1, &err), &err, ERR_INVALID);
    assert_fails(reader_read(r, got, size - 1, 2, &err), &err, ERR_INVALID);
    assert_fails(reader_read(r, got, UINT64_MAX, 2, &err), &err, ERR_INVALID);
    assert_ok(reader_read(r, got, size, 0, &err), &err);
    free(got);
}

// Extents: whole range, ascending, alternating, and zero only where every byte is.
static void check_extents(Reader *r, const uint8_t *want, uint64_t offset, uint64_t length)
{
    Err err = ERR_INIT;
    ExtentVec v = {0};
    uint64_t at = offset;
    assert_ok(reader_extents(r, offset, length, &v, &err), &err);
    for (size_t i = 0; i < v.len; i++) {
        assert_int_equal(v.items[i].offset, at);
        assert_true(v.items[i].length > 0);
        assert_true(i == 0 || v.items[i].zero != v.items[i - 1].zero);
        if (v.items[i].zero)
            assert_true(hash_is_zero(want + at, v.items[i].length));
        at += v.items[i].length;
    }
    assert_int_equal(at, offset + length);
    extent_vec_clear(&v);
}

// A, then zero, then A again; shrunk and grown; odd tails. Each point is read as it was.
static void build_chain(Model *m)
{
    static const uint64_t sizes[] = {5 << 20, 5 << 20, 3000001, (3 << 20) + 70000, (6 << 20) + 513};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        Writer *w = model_begin(m, i == 0 ? DISK_FULL : DISK_COMPARE, sizes[i]);
        ModelPoint *p = &m->points[m->len];
        for (int k = 0; k < 12; k++) {
            uint64_t at = unit_random_below(&m->random, p->size), n = MIN(p->size - at, 150000);
            if (k % 3 == 2)
                memset(p->bytes + at, 0, n);
            else
                model_fill(m, p->bytes + at, n);
        }
        model_cover(m, w);
        model_end(m, w);
    }
}

static void chains(void **state)
{
    static const uint32_t bits[] = {12, 16, 16};
    for (size_t i = 0; i < ARRAY_LEN(bits); i++) {
        Err err = ERR_INIT;
        Model m = model_new(state, bits[i], i == 2 ? HASH_SHA256 : HASH_XXH3_128);
        build_chain(&m);
        for (size_t all = m.len; m.len > 0; m.len--) { // each of its points
            const ModelPoint *p = &m.points[m.len - 1];
            Reader *r = open_model(&m);
            compare_all(r, p->bytes, p->size, &m.random, 60);
            check_extents(r, p->bytes, 0, p->size);
            for (int k = 0; k < 20; k++) {
                uint64_t at = unit_random_below(&m.random, p->size);
                check_extents(r, p->bytes, at, unit_random_below(&m.random, p->size - at + 1));
                uint8_t layer = 77;
                assert_ok(reader_layer_at(r, at, &layer, &err), &err);
                assert_true(layer < m.len || layer == 255);
            }
            reader_free(r);
            if (m.len == 1) {
                m.len = all;
                break;
            }
        }
        model_clear(&m);
    }
}

// The cache holds two groups, eight threads want all of them.
typedef struct Racer {
    Reader *r;
    const uint8_t *want;
    uint64_t size;
    UnitRandom random;
    bool ok;
} Racer;

static void *race(void *arg)
{
    Racer *c = arg;
    Err err = ERR_INIT;
    uint8_t *got = malloc(1 << 17);
    c->ok = got != NULL;
    for (int i = 0; i < 400 && c->ok; i++) {
        uint64_t at = unit_random_below(&c->random, c->size), n = MIN(c->size - at, 1 << 17);
        c->ok = reader_read(c->r, got, at, (uint32_t)n, &err) && memcmp(got, c->want + at, n) == 0;
    }
    free(got);
    return NULL;
}

static void many_threads(void **state)
{
    Model m = model_new(state, 12, HASH_XXH3_128);
    build_chain(&m);
    Reader *r = open_model(&m);
    r->cache.max = 2;
    Racer racers[8];
    pthread_t threads[8];
    for (size_t i = 0; i < 8; i++) {
        racers[i] = (Racer){.r = r, .want = m.points[m.len - 1].bytes, .size = m.points[m.len - 1].size, .random = {i}};
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    }
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(racers[i].ok);
    }
    assert_true(r->cache.len <= 2);
    reader_free(r);
    model_clear(&m);
}

// ---- damage

static uint8_t flip(const char *path, uint64_t at, uint8_t mask)
{
    uint8_t b;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &b, 1, (off_t)at), 1);
    b ^= mask;
    assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
    (void)close(fd);
    return b;
}

// A flipped bit of data is found when it is read, and the error says where, and in which layer.
static void flips_in_data(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    build_chain(&m);
    const ModelPoint *p = &m.points[m.len - 1];
    uint8_t *got = malloc(p->size);
    assert_non_null(got);
    unsigned found = 0;
    for (uint64_t cluster = 0; cluster < p->size >> 16; cluster++) {
        Reader *r = open_model(&m);
        uint64_t at = cluster << 16;
        MapGroup *g;
        assert_ok(reader_map_get(r, at / ((uint64_t)m.geo.leaves << 16), &g, &err), &err);
        uint32_t i = (uint32_t)(cluster % m.geo.leaves);
        unsigned layer = g->layers[i];
        bool data = g->kinds[i] == MAP_DATA;
        uint64_t host = g->offsets[i] + unit_random_below(&m.random, 1000);
        reader_map_put(r, g);
        if (data) {
            char where[64], which[64];
            (void)snprintf(where, sizeof where, "offset %llu:", (unsigned long long)at);
            (void)snprintf(which, sizeof which, "layer %u ", layer);
            (void)flip(r->files[layer].path, host, 0x10);
            uint64_t read_at = at + (cluster % 2 ? 0 : 777); // whole and in part
            assert_false(reader_read(r, got, read_at, 1000, &err));
            assert_int_equal(err.code, ERR_DAMAGED);
            if (!strstr(err.details, where) || !strstr(err.details, which))
                fail_msg("%s: %s%s", err.details, where, which);
            err_clear(&err);
            assert_fails(reader_read(r, got, 0, (uint32_t)p->size, &err), &err, ERR_DAMAGED); // in a run
            (void)flip(r->files[layer].path, host, 0x10);
            assert_ok(reader_read(r, got, 0, (uint32_t)p->size, &err), &err);
            found++;
        }
        reader_free(r);
    }
    assert_true(found > 10);
    free(got);
    model_clear(&m);
}

// Whatever byte of whatever file is flipped: refused, or the right bytes; never wrong ones.
static void try_flipped(const ReaderLayer *layers, size_t n, const HashGeometry *geo, const uint8_t *want, uint64_t size,
                        uint8_t *got, unsigned *ret_refused)
{
    Err err = ERR_INIT;
    Reader *r = NULL;
    bool ok = reader_open(layers, n, geo, &r, &err);
    if (ok) {
        ExtentVec v = {0};
        bool map = reader_extents(r, 0, size, &v, &err);
        for (size_t i = 0; map && i < v.len; i++)
            if (v.items[i].zero)
                assert_true(hash_is_zero(want + v.items[i].offset, v.items[i].length));
        extent_vec_clear(&v);
        err_clear(&err);
        memset(got, 0xee, size);
        assert_int_equal(reader_size(r), size);
        ok = reader_read(r, got, 0, (uint32_t)size, &err);
        if (ok)
            assert_memory_equal(got, want, size);
        assert_true(map || !ok);
    }
    if (!ok) {
        (*ret_refused)++;
        assert_true(err.code == ERR_DAMAGED || err.code == ERR_UNSUPPORTED);
    }
    reader_free(r);
}

static void flips_anywhere(void **state)
{
    Model m = model_new(state, 12, HASH_XXH3_128);
    build_chain(&m);
    const ModelPoint *p = &m.points[m.len - 1];
    uint8_t *got = malloc(p->size);
    assert_non_null(got);
    ReaderLayer layers[MODEL_POINTS];
    size_t n = reader_layers(&m, layers);
    unsigned refused = 0, tables = 0, tries = 0;
    for (size_t i = 0; i < n; i++) {
        Reader *r = open_model(&m);
        uint64_t l1 = r->files[i].header.l1_offset, bytes = r->files[i].bytes;
        uint64_t l2 = r->files[i].tables[0];
        reader_free(r);
        for (int k = 0; k < 60; k++) {
            uint64_t at = k < 15 ? (uint64_t)k : k < 20 ? l1 + (unsigned)k % 8 : unit_random_below(&m.random, bytes);
            uint8_t mask = (uint8_t)(1u << unit_random_below(&m.random, 8));
            if (l2 != 0 && k >= 20 && k < 40)
                at = l2 + unit_random_below(&m.random, 4096);
            (void)flip(layers[i].image, at, mask);
            unsigned before = refused;
            try_flipped(layers, n, &m.geo, p->bytes, p->size, got, &refused);
            (void)flip(layers[i].image, at, mask);
            tries++;
            tables += k < 8 && refused > before;
            struct stat st;
            assert_int_equal(stat(layers[i].hashes, &st), 0);
            at = unit_random_below(&m.random, (uint64_t)st.st_size);
            (void)flip(layers[i].hashes, at, mask);
            try_flipped(layers, n, &m.geo, p->bytes, p->size, got, &refused);
            (void)flip(layers[i].hashes, at, mask);
        }
    }
    assert_int_equal(tables, 8 * n); // magic and version, in every layer
    assert_true(refused > tries / 2);
    free(got);
    model_clear(&m);
}

// An L2 entry that says "not here" where the parent holds the same bytes would read well today, and not tomorrow.
static void lost_entry_is_seen(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    build_chain(&m);
    Reader *r = open_model(&m);
    uint64_t l2 = r->files[0].tables[0];
    uint32_t i = 0;
    MapGroup *g;
    assert_ok(reader_map_get(r, 0, &g, &err), &err);
    while (g->layers[i] != 0 || g->kinds[i] != MAP_DATA)
        i++;
    reader_map_put(r, g);
    reader_free(r);
    uint8_t none[8] = {0}, was[8], got[16];
    int fd = open(m.points[m.len - 1].image, O_RDWR);
    assert_int_equal(pread(fd, was, 8, (off_t)(l2 + i * 8)), 8);
    assert_int_equal(pwrite(fd, none, 8, (off_t)(l2 + i * 8)), 8);
    r = open_model(&m);
    assert_fails(reader_read(r, got, 0, 16, &err), &err, ERR_DAMAGED);
    assert_fails(reader_layer_at(r, 0, got, &err), &err, ERR_DAMAGED);
    ExtentVec v = {0};
    assert_fails(reader_extents(r, 0, 16, &v, &err), &err, ERR_DAMAGED);
    // Put right again, the same reader reads it: a failure is not kept.
    assert_int_equal(pwrite(fd, was, 8, (off_t)(l2 + i * 8)), 8);
    assert_ok(reader_read(r, got, 0, 16, &err), &err);
    (void)close(fd);
    reader_free(r);
    model_clear(&m);
}

// ---- images that QEMU made

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
            marks[i] = !e.subclusters && (e.kind == QCOW2_ZERO_PLAIN || e.kind == QCOW2_ZERO_ALLOC) ? HASH_ZERO : HASH_DATA;
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
    assert_ok(hash_root(&f->geo, f->size, nodes, groups, &s.root, &err), &err);
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

// zstd clusters below, two layers with subclusters above, smaller and larger than what is below.
static void foreign_chain(void **state, Foreign *f, UnitRandom *random)
{
    const char *raw = unit_path(state, "source");
    random_raw(raw, 3000320, random);
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw,
        unit_path(state, "a.qcow2"));
    foreign_add(state, f, "a.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "-F", "qcow2", "-b", "a.qcow2",
        unit_path(state, "b.qcow2"), "2621440");
    scribble(unit_path(state, "b.qcow2"), 2621440, 40, random);
    foreign_add(state, f, "b.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k,compression_type=zstd", "-F",
        "qcow2", "-b", "b.qcow2", unit_path(state, "c.qcow2"), "3500032");
    scribble(unit_path(state, "c.qcow2"), 3500032, 40, random);
    foreign_add(state, f, "c.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "c.qcow2", unit_path(state, "d.qcow2"));
    scribble(unit_path(state, "d.qcow2"), 3500032, 10, random);
    foreign_add(state, f, "d.qcow2");
}

static void qemu_images(void **state)
{
    UnitRandom random = unit_random();
    for (int round = 0; round < 6; round++) {
        Foreign f = foreign_new();
        foreign_chain(state, &f, &random);
        foreign_check(&f, &random);
        foreign_clear(&f);
    }
}

static void qemu_images_flipped(void **state)
{
    UnitRandom random = unit_random();
    Foreign f = foreign_new();
    foreign_chain(state, &f, &random);
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
            (void)flip(f.layers[i].image, at, mask);
            try_flipped(f.layers, f.len, &f.geo, f.raw, f.size, got, &refused);
            (void)flip(f.layers[i].image, at, mask);
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
        in_folder(chains),           in_folder(many_threads),       in_folder(flips_in_data),
        in_folder(flips_anywhere),   in_folder(lost_entry_is_seen), in_folder(qemu_images),
        in_folder(qemu_images_flipped), in_folder(refuses_foreign), in_folder(refuses_patched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
