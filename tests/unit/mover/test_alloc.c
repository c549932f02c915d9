// The n-th allocation fails, for every n, in a copy into each kind of target: ERR_NO_MEMORY, nothing lost, and no
// target that has its name and not its content.
#include "alloc.h"
#include "mem_blocks.h"

#include "base/file.h"
#include "mover/audit.h"
#include "mover/sink_file.h"
#include "mover/sink_hasher.h"
#include "mover/sink_image.h"

#define SIZE 300001u
#define CLUSTER 65536u

typedef struct Copy {
    UnitRandom random;
    MemBlocks *from, *leaves;
    HashGeometry geo;
    char path[600];
    Hash root;
} Copy;

static void begin_copy(void *ctx)
{
    Copy *c = ctx;
    Err err = ERR_INIT;
    c->from = mem_new(SIZE, CLUSTER, true, &c->random);
    for (uint32_t i = 0; i < SIZE; i++)
        c->from->bytes[i] = (uint8_t)(1 + i / 4096);
    memset(c->from->bytes + CLUSTER, 0, CLUSTER);
    assert_ok(extent_vec_push(&c->from->zeros, (Extent){.offset = CLUSTER, .length = CLUSTER}, &err), &err);
}

static bool copy(Copy *c, Blocks *to, Err *err)
{
    MoverSpec spec = {.from = &c->from->blocks,
                      .to = to,
                      .size = SIZE,
                      .cluster_size = CLUSTER,
                      .plan = MOVER_ALL,
                      .request_bytes = CLUSTER,
                      .in_flight = 2};
    MoverResult result;
    return mover_copy(&spec, &result, err);
}

static bool to_file(void *ctx, Err *err)
{
    Copy *c = ctx;
    cleanup_blocks Blocks *to = NULL;
    return sink_file_open(&(SinkFileSpec){.path = c->path, .size = SIZE}, &to, err) && copy(c, to, err) &&
        sink_file_finish(to, err);
}

static bool to_image(void *ctx, Err *err)
{
    Copy *c = ctx;
    cleanup_blocks Blocks *to = NULL;
    return sink_image_open(&(SinkImageSpec){.path = c->path, .size = SIZE, .cluster_size = CLUSTER}, &to, err) &&
        copy(c, to, err) && sink_image_finish(to, err);
}

static bool to_hasher(void *ctx, Err *err)
{
    Copy *c = ctx;
    cleanup_blocks Blocks *to = NULL;
    return sink_hasher_open(&c->geo, SIZE, &to, err) && copy(c, to, err) && sink_hasher_root(to, &c->root, err);
}

static void end_copy(Copy *c)
{
    c->from->pending_len = 0; // of a copy that gave up
    c->from->blocks.ops->free(&c->from->blocks);
}

static void filed(void *ctx, bool ok)
{
    Copy *c = ctx;
    Err err = ERR_INIT;
    cleanup_free char *text = NULL;
    size_t n = 0;
    if (file_exists(c->path)) {
        assert_ok(file_read(c->path, SIZE, &text, &n, &err), &err);
        assert_int_equal(n, SIZE);
        assert_memory_equal(text, c->from->bytes, SIZE);
        assert_int_equal(unlink(c->path), 0);
    } else {
        assert_false(ok);
    }
    end_copy(c);
}

static void imaged(void *ctx, bool ok)
{
    Copy *c = ctx;
    assert_true(!ok || file_exists(c->path));
    assert_true(unlink(c->path) == 0 || errno == ENOENT);
    end_copy(c);
}

static void hashed(void *ctx, bool ok)
{
    Copy *c = ctx;
    static Hash first;
    static bool have_first;
    if (ok && have_first)
        assert_true(hash_equal(&first, &c->root));
    if (ok)
        first = c->root;
    have_first = have_first || ok;
    end_copy(c);
}

static bool audited(void *ctx, Err *err)
{
    Copy *c = ctx;
    AuditSpec spec = {.size = SIZE, .cluster_size = CLUSTER, .blocks = 3};
    MoverKnown known = {.leaves = &c->leaves->blocks, .hash = c->geo.spec};
    AuditRun run = {.from = &c->from->blocks, .known = &known};
    AuditResult result;
    Audit *a = NULL;
    bool ok = audit_new(&spec, &a, err) && audit_run(a, &run, &result, err);
    if (ok)
        assert_true(result.figures.wrong > 0 && result.figures.unchanged == 5); // the hashes are none of this disk's
    audit_free(a);
    return ok;
}

static void begin_audit(void *ctx)
{
    Copy *c = ctx;
    begin_copy(c);
    c->from->zeros.len = 0; // every block may be looked at
    c->leaves = mem_new(5 * 32, 32, true, &c->random);
}

static void end_audit(void *ctx, bool ok)
{
    Copy *c = ctx;
    (void)ok;
    assert_int_equal(c->leaves->pending_len, 0);
    c->leaves->blocks.ops->free(&c->leaves->blocks);
    end_copy(c);
}

static void copies(void **state)
{
    Err err = ERR_INIT;
    Copy c = {.random = unit_random()};
    (void)snprintf(c.path, sizeof c.path, "%s", unit_path(state, "target"));
    assert_ok(hash_geometry_init(&c.geo, &(HashSpec){.algorithm = HASH_SHA256, .seed = 1}, CLUSTER, &err), &err);
    alloc_every(&(AllocStory){"to a file", begin_copy, to_file, filed, 2}, &c);
    alloc_every(&(AllocStory){"to an image", begin_copy, to_image, imaged, 2}, &c);
    alloc_every(&(AllocStory){"to a hasher", begin_copy, to_hasher, hashed, 0}, &c);
    alloc_every(&(AllocStory){"audited", begin_audit, audited, end_audit, 0}, &c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(copies, unit_folder_setup, unit_folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
