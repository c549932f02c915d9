// Requests of no bytes, before anything has come, and after the seal.
#include "model.h"

static void no_bytes(void **state)
{
    Err err = ERR_INIT;
    WriterProgress progress;
    uint8_t byte = 7;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 3 * 65536 + 10;
    Writer *w = model_begin(&m, DISK_FULL, size);
    assert_ok(writer_write(w, &byte, size, 0, &err), &err);
    assert_ok(writer_zero(w, size, 0, &err), &err);
    assert_ok(writer_same(w, 100, 0, &err), &err);
    assert_ok(writer_read(w, &byte, size, 0, &err), &err);
    assert_int_equal(byte, 7);
    writer_progress(w, &progress);
    assert_int_equal(progress.received_data + progress.received_zero, 0);
    // behind the end a request of no bytes is none of ours, either
    assert_fails(writer_same(w, size + 1, 0, &err), &err, ERR_INVALID);
    assert_fails(writer_read(w, &byte, size + 1, 0, &err), &err, ERR_INVALID);
    model_fill(&m, m.points[0].bytes, size);
    model_cover(&m, w);
    model_end(&m, w);
    model_clear(&m);
}

// Of a disk of several groups: all of it is the same, though nothing was ever written into this image.
static void nothing_but_the_same(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 12, HASH_XXH3_128);
    uint64_t size = 3 * 512 * 4096 + 5000;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_fill(&m, m.points[0].bytes, size / 2);
    model_cover(&m, w);
    model_end(&m, w);
    w = model_begin(&m, DISK_COMPARE, size);
    assert_ok(writer_same(w, 0, size, &err), &err);
    memset(m.arrived, 1, size);
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.stored_clusters, 0);
    assert_true(hash_equal(&m.points[0].summary.root, &m.points[1].summary.root));
    model_clear(&m);
}

static void after_the_seal(void **state)
{
    Err err = ERR_INIT;
    uint8_t byte = 7;
    Model m = model_new(state, 16, HASH_XXH3_128);
    Writer *w = model_begin(&m, DISK_FULL, 65536);
    model_fill(&m, m.points[0].bytes, 65536);
    model_cover(&m, w);
    model_end(&m, w);
    w = model_begin(&m, DISK_COMPARE, 65536);
    model_cover(&m, w);
    ModelPoint *p = &m.points[1];
    assert_ok(writer_seal(w, NULL, &p->summary, &p->digest, &err), &err);
    assert_fails(writer_write(w, &byte, 0, 1, &err), &err, ERR_CONFLICT);
    assert_fails(writer_zero(w, 0, 65536, &err), &err, ERR_CONFLICT);
    assert_fails(writer_same(w, 0, 65536, &err), &err, ERR_CONFLICT);
    assert_fails(writer_read(w, &byte, 0, 1, &err), &err, ERR_CONFLICT);
    assert_int_equal(byte, 7);
    model_sealed(&m, w); // and the image is as it was sealed
    model_clear(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {in_folder(no_bytes), in_folder(nothing_but_the_same), in_folder(after_the_seal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
