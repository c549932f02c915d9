#include "unit.h"

#include "base/file.h"
#include "mover/sink_file.h"
#include "mover/sink_hasher.h"
#include "mover/sink_image.h"
#include "mover/sink_path.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLUSTER 4096u

typedef struct Waiter {
    BlocksReq req;
    unsigned calls;
} Waiter;

static void on_done(BlocksReq *req, const Err *err)
{
    assert_null(err);
    ((Waiter *)req->ctx)->calls++;
}

static void put(Blocks *b, const void *p, uint64_t offset, uint32_t length)
{
    Err err = ERR_INIT;
    Waiter w = {.req = {.done = on_done, .ctx = &w}};
    assert_ok(p ? b->ops->write(b, p, offset, length, &w.req, &err) : b->ops->zero(b, offset, length, &w.req, &err),
              &err);
    assert_int_equal(w.calls, 1);
}

static void flush(Blocks *b)
{
    Err err = ERR_INIT;
    Waiter w = {.req = {.done = on_done, .ctx = &w}};
    assert_ok(b->ops->flush(b, &w.req, &err), &err);
    assert_int_equal(w.calls, 1);
}

static size_t names_in_folder(void **state)
{
    Err err = ERR_INIT;
    FileList list;
    assert_ok(file_list(*state, 100, &list, &err), &err);
    size_t n = list.len;
    file_list_clear(&list);
    return n;
}

// ---- raw file

static void file_is_sparse_and_right(void **state)
{
    const uint64_t size = (8 << 20) + 77;
    cleanup_free uint8_t *model = calloc(1, size);
    cleanup_free char *text = NULL;
    size_t len;
    Err err = ERR_INIT;
    Blocks *b = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk.raw"), .size = size};
    assert_ok(sink_file_open(&spec, &b, &err), &err);
    memset(model + (4 << 20), 0x5a, 1 << 20);
    put(b, model + (4 << 20), 4 << 20, 1 << 20);
    put(b, NULL, 4 << 20, 512 << 10); // data that was written becomes zero again
    memset(model + (4 << 20), 0, 512 << 10);
    put(b, NULL, 0, 4 << 20);
    memset(model + size - 77, 0x11, 77);
    put(b, model + size - 77, size - 77, 77);
    put(b, NULL, 6 << 20, 1 << 20);
    flush(b);
    assert_false(file_exists(spec.path)); // not before it is finished
    assert_ok(sink_file_finish(b, &err), &err);
    b->ops->free(b);
    assert_ok(file_read(spec.path, size, &text, &len, &err), &err);
    assert_int_equal(len, size);
    assert_memory_equal(text, model, size);
    struct stat st;
    assert_int_equal(stat(spec.path, &st), 0);
    assert_true((uint64_t)st.st_blocks * 512 < (2 << 20));
    assert_int_equal(names_in_folder(state), 1);
}

static void unfinished_file_leaves_nothing(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk.raw"), .size = 100};
    assert_ok(sink_file_open(&spec, &b, &err), &err);
    put(b, "x", 0, 1);
    b->ops->free(b);
    assert_int_equal(names_in_folder(state), 0);
}

static void existing_target_stays_until_the_end(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    cleanup_free char *text = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk.raw"), .size = 3};
    assert_ok(file_create_durable(spec.path, "old", 3, 0600, &err), &err);
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_EXISTS);
    spec.replace = true;
    assert_ok(sink_file_open(&spec, &b, &err), &err);
    put(b, "new", 0, 3);
    b->ops->free(b);
    assert_ok(file_read(spec.path, 10, &text, NULL, &err), &err);
    assert_string_equal(text, "old");
    free(mem_take(text));
    assert_ok(sink_file_open(&spec, &b, &err), &err);
    put(b, "new", 0, 3);
    flush(b);
    assert_ok(sink_file_finish(b, &err), &err);
    b->ops->free(b);
    assert_ok(file_read(spec.path, 10, &text, NULL, &err), &err);
    assert_string_equal(text, "new");
}

static void target_that_appears_meanwhile_is_kept(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    cleanup_free char *text = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk.raw"), .size = 3};
    assert_ok(sink_file_open(&spec, &b, &err), &err);
    assert_ok(file_create_durable(spec.path, "his", 3, 0600, &err), &err);
    assert_fails(sink_file_finish(b, &err), &err, ERR_EXISTS);
    b->ops->free(b);
    assert_ok(file_read(spec.path, 10, &text, NULL, &err), &err);
    assert_string_equal(text, "his");
    assert_int_equal(names_in_folder(state), 1);
}

static void odd_targets_are_refused(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "fifo"), .size = 3, .replace = true};
    assert_int_equal(mkfifo(spec.path, 0600), 0);
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_CONFLICT);
    spec.path = *state; // a folder
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_CONFLICT);
    spec.path = unit_path(state, "none/disk.raw");
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_NOT_FOUND);
}

// A killed restore once left its file under a new name each time, until the disk was full.
static void the_rest_of_a_killed_restore_is_replaced(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    cleanup_free char *text = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk.raw"), .size = 3};
    const char *partial = unit_path(state, "disk.raw.partial"), *other = unit_path(state, "other");
    assert_ok(file_create_durable(partial, "a longer rest", 13, 0666, &err), &err);
    assert_int_equal(link(partial, other), 0); // whoever else knows the file gets nothing of the disk
    assert_ok(sink_file_open(&spec, &b, &err), &err);
    put(b, "new", 0, 3);
    flush(b);
    assert_ok(sink_file_finish(b, &err), &err);
    b->ops->free(b);
    assert_ok(file_read(spec.path, 100, &text, NULL, &err), &err);
    assert_string_equal(text, "new");
    free(mem_take(text));
    assert_ok(file_read(other, 100, &text, NULL, &err), &err);
    assert_string_equal(text, "a longer rest");
    assert_int_equal(names_in_folder(state), 2);
    assert_ok(sink_path_remove_rest(spec.path, &err), &err); // none
    assert_ok(file_create_durable(partial, "rest", 4, 0600, &err), &err);
    assert_ok(sink_path_remove_rest(spec.path, &err), &err);
    assert_false(file_exists(partial));
}

static void a_partial_file_in_use_is_left_alone(void **state)
{
    Err err = ERR_INIT;
    Blocks *first = NULL, *second = NULL;
    cleanup_free char *text = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk"), .size = 3, .replace = true};
    SinkImageSpec image = {.path = spec.path, .size = 3, .cluster_size = CLUSTER, .replace = true};
    assert_ok(sink_file_open(&spec, &first, &err), &err);
    put(first, "new", 0, 3);
    assert_fails(sink_file_open(&spec, &second, &err), &err, ERR_BUSY);
    assert_fails(sink_image_open(&image, &second, &err), &err, ERR_BUSY);
    assert_fails(sink_path_remove_rest(spec.path, &err), &err, ERR_BUSY);
    flush(first);
    assert_ok(sink_file_finish(first, &err), &err);
    first->ops->free(first);
    assert_ok(file_read(spec.path, 10, &text, NULL, &err), &err);
    assert_string_equal(text, "new");
    assert_ok(sink_image_open(&image, &first, &err), &err);
    assert_fails(sink_file_open(&spec, &second, &err), &err, ERR_BUSY);
    first->ops->free(first);
    assert_int_equal(names_in_folder(state), 1);
}

static void what_is_in_the_way_of_the_partial_file_is_refused(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    cleanup_free char *text = NULL;
    SinkFileSpec spec = {.path = unit_path(state, "disk"), .size = 3};
    const char *partial = unit_path(state, "disk.partial"), *mine = unit_path(state, "mine");
    assert_ok(file_create_durable(mine, "mine", 4, 0600, &err), &err);
    assert_int_equal(symlink("mine", partial), 0);
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_CONFLICT);
    assert_int_equal(unlink(partial), 0);
    assert_int_equal(mkfifo(partial, 0600), 0);
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_CONFLICT);
    assert_int_equal(unlink(partial), 0);
    assert_ok(file_mkdir(partial, 0700, &err), &err);
    assert_fails(sink_file_open(&spec, &b, &err), &err, ERR_CONFLICT);
    assert_ok(file_read(mine, 10, &text, NULL, &err), &err);
    assert_string_equal(text, "mine");
    assert_false(file_exists(spec.path));
}

typedef struct Race {
    SinkFileSpec spec;
    atomic_int holders, faults, finished;
} Race;

static void *restore_again_and_again(void *arg)
{
    Race *r = arg;
    for (int i = 0; i < 1000; i++) {
        Blocks *b;
        Err err = ERR_INIT;
        if (!sink_file_open(&r->spec, &b, &err)) {
            r->faults += err.code != ERR_BUSY;
            continue;
        }
        r->faults += atomic_fetch_add(&r->holders, 1) != 0;
        (void)sched_yield();
        (void)atomic_fetch_sub(&r->holders, 1);
        if (i % 2 == 0) { // from here on another one may have the name
            r->faults += !sink_file_finish(b, &err);
            r->finished++;
        }
        b->ops->free(b);
    }
    return NULL;
}

// Each looks for a rest, removes it and makes its own while the others do.
static void one_of_many_restores_to_a_path_has_it(void **state)
{
    Race r = {.spec = {.path = unit_path(state, "disk"), .size = 3, .replace = true}};
    pthread_t t[4];
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, restore_again_and_again, &r), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    assert_int_equal(r.faults, 0);
    assert_true(r.finished > 0);
    assert_int_equal(names_in_folder(state), 1);
}

// ---- hasher

static HashGeometry geometry(HashAlgorithm algorithm)
{
    HashGeometry g;
    Err err = ERR_INIT;
    HashSpec spec = {.algorithm = algorithm, .seed = 77};
    assert_ok(hash_geometry_init(&g, &spec, CLUSTER, &err), &err);
    return g;
}

// The root by the definition in image/hash.h, without groups that are known in advance.
static Hash root_by_definition(const HashGeometry *g, const uint8_t *bytes, uint64_t size)
{
    uint64_t groups = hash_groups(g, size);
    cleanup_free Hash *nodes = calloc(groups, sizeof(*nodes));
    cleanup_free Hash *leaves = calloc(g->leaves, sizeof(*leaves));
    cleanup_free uint8_t *cluster = calloc(1, CLUSTER);
    Hash root;
    assert_true(nodes && leaves && cluster);
    for (uint64_t i = 0; i < groups; i++) {
        for (uint64_t k = 0; k < g->leaves; k++) {
            uint64_t at = (i * g->leaves + k) * CLUSTER;
            memset(cluster, 0, CLUSTER);
            if (at < size)
                memcpy(cluster, bytes + at, MIN(CLUSTER, size - at));
            hash_bytes(&g->spec, cluster, CLUSTER, &leaves[k]);
        }
        hash_node(g, leaves, &nodes[i]);
    }
    hash_root(g, size, nodes, groups, &root);
    return root;
}

// Runs of clusters in random order, the zero ones as zeros where that is possible.
static void hasher_agrees(HashAlgorithm algorithm)
{
    UnitRandom r = unit_random();
    HashGeometry g = geometry(algorithm);
    for (int i = 0; i < 30; i++) {
        Err err = ERR_INIT;
        Blocks *b = NULL;
        Hash root;
        uint64_t size = 1 + unit_random_below(&r, 3 * CLUSTER * g.leaves);
        uint64_t clusters = (size + CLUSTER - 1) / CLUSTER, run = 1 + unit_random_below(&r, 700);
        cleanup_free uint8_t *bytes = calloc(1, size);
        assert_non_null(bytes);
        for (uint64_t k = 0; k < clusters; k += run)
            if (unit_random_below(&r, 2))
                memset(bytes + k * CLUSTER, (int)unit_random_next(&r) | 1, MIN(run * CLUSTER, size - k * CLUSTER));
        assert_ok(sink_hasher_open(&g, size, &b, &err), &err);
        uint64_t runs = (clusters + run - 1) / run, start = unit_random_below(&r, runs);
        for (uint64_t k = 0; k < runs; k++) {
            assert_fails(sink_hasher_root(b, &root, &err), &err, ERR_CONFLICT);
            uint64_t at = (start + k) % runs * run * CLUSTER, n = MIN(run * CLUSTER, size - at);
            put(b, hash_is_zero(bytes + at, n) ? NULL : bytes + at, at, (uint32_t)n);
        }
        flush(b);
        assert_ok(sink_hasher_root(b, &root, &err), &err);
        Hash expected = root_by_definition(&g, bytes, size);
        assert_true(hash_equal(&root, &expected));
        b->ops->free(b);
    }
}

static void hasher_agrees_xxh3(void **state)
{
    (void)state;
    hasher_agrees(HASH_XXH3_128);
}

static void hasher_agrees_sha256(void **state)
{
    (void)state;
    hasher_agrees(HASH_SHA256);
}

static void hasher_wants_each_cluster_once(void **state)
{
    (void)state;
    static uint8_t data[2 * CLUSTER];
    HashGeometry g = geometry(HASH_XXH3_128);
    Err err = ERR_INIT;
    Blocks *b = NULL;
    Waiter w = {.req = {.done = on_done, .ctx = &w}};
    assert_ok(sink_hasher_open(&g, 3 * CLUSTER + 5, &b, &err), &err);
    put(b, data, CLUSTER, CLUSTER);
    assert_fails(b->ops->write(b, data, 0, 2 * CLUSTER, &w.req, &err), &err,
                 ERR_INVALID);                                                        // the second again
    assert_fails(b->ops->zero(b, CLUSTER, CLUSTER, &w.req, &err), &err, ERR_INVALID); // again
    assert_fails(b->ops->write(b, data, 100, CLUSTER, &w.req, &err), &err,
                 ERR_INVALID); // not aligned
    assert_fails(b->ops->write(b, data, 2 * CLUSTER, 100, &w.req, &err), &err,
                 ERR_INVALID); // a part
    assert_fails(b->ops->zero(b, 3 * CLUSTER, CLUSTER, &w.req, &err), &err,
                 ERR_INVALID); // beyond the end
    assert_fails(b->ops->zero(b, 0, UINT64_MAX, &w.req, &err), &err, ERR_INVALID);
    assert_int_equal(w.calls, 0);
    b->ops->free(b);
}

// ---- image

static void image_has_a_valid_header(void **state)
{
    static uint8_t data[CLUSTER];
    Err err = ERR_INIT;
    Blocks *b = NULL;
    cleanup_free char *text = NULL;
    size_t len;
    SinkImageSpec spec = {.path = unit_path(state, "disk.qcow2"), .size = 5 * CLUSTER + 100, .cluster_size = CLUSTER};
    memset(data, 1, sizeof(data));
    assert_ok(sink_image_open(&spec, &b, &err), &err);
    put(b, NULL, 0, 4 * CLUSTER);
    put(b, data, 4 * CLUSTER, CLUSTER);
    put(b, data, 5 * CLUSTER, 100);
    flush(b);
    assert_ok(sink_image_finish(b, &err), &err);
    b->ops->free(b);
    assert_ok(file_read(spec.path, 1 << 20, &text, &len, &err), &err);
    assert_memory_equal(text, "QFI\xfb\0\0\0\3", 8);
    assert_int_equal(names_in_folder(state), 1); // no hashes stay
}

// Killed while it sealed: its hashes are there, too.
static void the_rest_of_a_killed_image_is_replaced(void **state)
{
    static uint8_t data[CLUSTER];
    Err err = ERR_INIT;
    Blocks *b = NULL;
    cleanup_free char *text = NULL;
    SinkImageSpec spec = {.path = unit_path(state, "disk.qcow2"), .size = CLUSTER, .cluster_size = CLUSTER};
    assert_ok(file_create_durable(unit_path(state, "disk.qcow2.partial"), "rest", 4, 0600, &err), &err);
    assert_ok(file_create_durable(unit_path(state, "disk.qcow2.partial.hashes"), "rest", 4, 0600, &err), &err);
    assert_ok(sink_image_open(&spec, &b, &err), &err);
    put(b, data, 0, CLUSTER);
    flush(b);
    assert_ok(sink_image_finish(b, &err), &err);
    b->ops->free(b);
    assert_ok(file_read(spec.path, 1 << 20, &text, &(size_t){0}, &err), &err);
    assert_memory_equal(text, "QFI\xfb\0\0\0\3", 8);
    assert_int_equal(names_in_folder(state), 1);
}

static void image_with_a_hole_is_not_finished(void **state)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    SinkImageSpec spec = {.path = unit_path(state, "disk.qcow2"), .size = 8 * CLUSTER, .cluster_size = CLUSTER};
    assert_ok(sink_image_open(&spec, &b, &err), &err);
    put(b, NULL, 0, 4 * CLUSTER);
    flush(b);
    assert_fails(sink_image_finish(b, &err), &err, ERR_CONFLICT);
    b->ops->free(b);
    assert_int_equal(names_in_folder(state), 0);
}

#define folder_test(f) cmocka_unit_test_setup_teardown(f, unit_folder_setup, unit_folder_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(file_is_sparse_and_right),
        folder_test(unfinished_file_leaves_nothing),
        folder_test(existing_target_stays_until_the_end),
        folder_test(target_that_appears_meanwhile_is_kept),
        folder_test(odd_targets_are_refused),
        folder_test(the_rest_of_a_killed_restore_is_replaced),
        folder_test(a_partial_file_in_use_is_left_alone),
        folder_test(what_is_in_the_way_of_the_partial_file_is_refused),
        folder_test(one_of_many_restores_to_a_path_has_it),
        cmocka_unit_test(hasher_agrees_xxh3),
        cmocka_unit_test(hasher_agrees_sha256),
        cmocka_unit_test(hasher_wants_each_cluster_once),
        folder_test(image_has_a_valid_header),
        folder_test(the_rest_of_a_killed_image_is_replaced),
        folder_test(image_with_a_hole_is_not_finished),
    };
    return cmocka_run_group_tests_name("sinks", tests, NULL, NULL);
}
