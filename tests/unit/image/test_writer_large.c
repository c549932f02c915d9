// Disks that are much larger than memory: time and memory go with what arrives, not with the size.
#include "model.h"

#include "base/clock.h"

#define TIB (UINT64_C(1) << 40)

static uint64_t resident_kib(void)
{
    char *text = NULL;
    size_t n = 0;
    Err err = ERR_INIT;
    assert_ok(file_read("/proc/self/status", 65536, &text, &n, &err), &err);
    const char *line = strstr(text, "VmRSS:");
    assert_non_null(line);
    uint64_t kib = strtoull(line + 6, NULL, 10);
    free(text);
    return kib;
}

static Writer *begin(Model *m, uint64_t size, DiskMode mode)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len];
    (void)snprintf(p->image, sizeof p->image, "%s/p%zu.qcow2", m->folder, m->len);
    (void)snprintf(p->hashes, sizeof p->hashes, "%s/p%zu.hashes", m->folder, m->len);
    p->size = size;
    WriterSpec spec = {
        .image_path = p->image,
        .hashes_path = p->hashes,
        .backing_name = mode == DISK_FULL ? NULL : model_base_name(m->points[m->len - 1].image),
        .size = size,
        .cluster_bits = m->cluster_bits,
        .hash = m->hash,
        .mode = mode,
        .parent = m->parent,
        .direct_io = true,
    };
    Writer *w = NULL;
    assert_ok(writer_open(&spec, &w, &err), &err);
    return w;
}

// Returns what is resident while the writer still has all it holds.
static uint64_t end(Model *m, Writer *w)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len++];
    assert_ok(writer_seal(w, NULL, &p->summary, &p->digest, &err), &err);
    uint64_t resident = resident_kib();
    writer_free(w);
    return resident;
}

// Zeros in requests of at most what NBD can say at once.
static void zero_all(Writer *w, uint64_t from, uint64_t size)
{
    Err err = ERR_INIT;
    for (uint64_t at = from, n; at < size; at += n) {
        n = MIN(size - at, UINT64_C(0xffff0000));
        assert_ok(writer_zero(w, at, n, &err), &err);
    }
}

// A terabyte with a little in each of 200 places: touches 200 groups, more than are kept in memory.
static void test_sparse_terabyte(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    int64_t start = clock_mono_ms();
    uint64_t before = resident_kib(), at = 0;
    uint8_t *data = malloc(65536);
    Writer *w = begin(&m, TIB, DISK_FULL);
    for (int i = 0; i < 200; i++) {
        model_fill(&m, data, 65536);
        uint64_t place = (uint64_t)i * (TIB / 200) / 65536 * 65536;
        zero_all(w, at, place);
        assert_ok(writer_write(w, data, place, 65536, &err), &err);
        at = place + 65536;
    }
    zero_all(w, at, TIB);
    uint64_t grown = end(&m, w) - before;
    int64_t ms = clock_mono_ms() - start;
    print_message("1 TiB, 200 clusters: %lld ms, %llu KiB more resident, image %llu bytes\n", (long long)ms,
                  (unsigned long long)grown, (unsigned long long)m.points[0].summary.image_bytes);
    assert_int_equal(m.points[0].summary.stored_clusters, 200);
    assert_true(grown < 64 << 10);
    assert_true(ms < unit_patience(20000));
    model_run((const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", m.points[0].image, NULL});
    // The last cluster again, and all of the rest zero: an increment that says so costs marks only.
    ChainLayerPath layer = {m.points[0].image, m.points[0].hashes};
    assert_ok(chain_hashes_open(&layer, 1, &m.geo, &m.parent, &err), &err);
    w = begin(&m, TIB, DISK_COMPARE);
    zero_all(w, 0, TIB - 65536);
    model_fill(&m, data, 65536);
    assert_ok(writer_write(w, data, TIB - 65536, 65536, &err), &err);
    (void)end(&m, w);
    assert_int_equal(m.points[1].summary.zeroed_clusters, 200);
    assert_int_equal(m.points[1].summary.stored_clusters, 1);
    model_run((const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", m.points[1].image, NULL});
    chain_hashes_free(m.parent);
    free(data);
}

static void test_zero_of_16_tib(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    int64_t start = clock_mono_ms();
    uint64_t before = resident_kib();
    Writer *w = begin(&m, 16 * TIB, DISK_FULL);
    assert_ok(writer_zero(w, 0, 16 * TIB, &err), &err);
    uint64_t grown = end(&m, w) - before;
    int64_t ms = clock_mono_ms() - start;
    print_message("16 TiB of zeros: %lld ms, %llu KiB more resident\n", (long long)ms, (unsigned long long)grown);
    assert_true(grown < 16 << 10);
    assert_true(ms < unit_patience(5000));
    model_run((const char *const[]){"qemu-img", "check", "-q", "-f", "qcow2", m.points[0].image, NULL});
}

// Above what QEMU can have as L1: refused before anything is written.
static void test_too_large(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 12, HASH_XXH3_128);
    WriterSpec spec = {.image_path = unit_path(state, "i"),
                       .hashes_path = unit_path(state, "h"),
                       .size = 9 * TIB,
                       .cluster_bits = 12,
                       .hash = m.hash,
                       .mode = DISK_FULL};
    Writer *w = NULL;
    assert_fails(writer_open(&spec, &w, &err), &err, ERR_TOO_LARGE);
    assert_false(file_exists(spec.image_path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_sparse_terabyte),
        in_folder(test_zero_of_16_tib),
        in_folder(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
