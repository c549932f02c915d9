// Many threads on one writer. Built with -Db_sanitize=thread this is also the proof of its locks.
#include "model.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define THREADS 6
#define STRIPE 1777 // no relation to clusters: neighbours of other threads share nearly every cluster

typedef struct Job {
    Writer *w;
    uint8_t *bytes, *arrived; // of the whole disk; a thread's stripes are written by it alone
    uint64_t size;
    unsigned number;
    UnitRandom random;
} Job;

static void *write_stripes(void *arg)
{
    Job *j = arg;
    Err err = ERR_INIT;
    uint64_t stripes = j->size / STRIPE + 1, step = 1 + j->number * 2;
    for (uint64_t n = 0; n < stripes; n++) {
        uint64_t at = (n * step * 7919 + j->number) % stripes * STRIPE; // scattered
        if (at / STRIPE % THREADS != j->number || at >= j->size)
            continue;
        uint64_t length = MIN(STRIPE, j->size - at);
        uint64_t kind = unit_random_below(&j->random, 3);
        memset(j->bytes + at, kind == 0 ? 0 : (int)(1 + unit_random_below(&j->random, 255)), length);
        bool ok = kind == 0 ? writer_zero(j->w, at, length, &err)
                            : writer_write(j->w, j->bytes + at, at, (uint32_t)length, &err);
        if (!ok)
            return "write";
        memset(j->arrived + at, 1, length);
        if (unit_random_below(&j->random, 50) == 0 && !writer_flush(j->w, &err))
            return "flush";
    }
    return NULL;
}

static void run_threads(void *(*work)(void *), Job *jobs)
{
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work, &jobs[i]), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
}

static void test_stripes(void **state)
{
    for (unsigned round = 0; round < 3; round++) {
        Model m = model_new(state, round == 2 ? 14 : 12, HASH_XXH3_128);
        m.cache_groups = round == 1 ? 3 : 1; // groups come and go
        m.compression = round == 2;
        uint64_t size = (7u << 20) + 333;
        Writer *w = model_begin(&m, DISK_FULL, size);
        Job jobs[THREADS];
        for (unsigned i = 0; i < THREADS; i++)
            jobs[i] = (Job){w, m.points[0].bytes, m.arrived, size, i, {unit_random_next(&m.random)}};
        run_threads(write_stripes, jobs);
        model_cover(&m, w);
        model_end(&m, w);
        model_clear(&m);
    }
}

// All of them write whole ranges over each other: each cluster run shows one write, never a mixture.
static void *write_over(void *arg)
{
    Job *j = arg;
    Err err = ERR_INIT;
    uint8_t *mine = malloc(20 * 4096);
    bool ok = mine != NULL;
    for (int n = 0; ok && n < 80; n++) {
        uint64_t first = unit_random_below(&j->random, 5) * 20;
        memset(mine, (int)(1 + unit_random_below(&j->random, 250)), 20 * 4096);
        ok = unit_random_below(&j->random, 5) ? writer_write(j->w, mine, first * 4096, 20 * 4096, &err)
                                              : writer_zero(j->w, first * 4096, 20 * 4096, &err);
    }
    free(mine);
    return ok ? NULL : "overlap";
}

static void test_overlaps(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 12, HASH_XXH3_128);
    uint64_t size = 100 * 4096;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_cover(&m, w);
    Job jobs[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        jobs[i] = (Job){w, NULL, NULL, size, i, {unit_random_next(&m.random)}};
    run_threads(write_over, jobs);
    uint8_t *got = m.points[0].bytes;
    assert_ok(writer_read(w, got, 0, (uint32_t)size, &err), &err);
    for (uint64_t at = 0; at < size; at++)
        assert_int_equal(got[at], got[at / (20 * 4096) * (20 * 4096)]);
    model_end(&m, w);
    model_clear(&m);
}

static atomic_uint acknowledged;

// Until the seal ends it: what was acknowledged is in the image, what was refused is not.
static void *write_until_sealed(void *arg)
{
    Job *j = arg;
    Err err = ERR_INIT;
    uint8_t mine[4096];
    for (;;) {
        uint64_t at = (unit_random_below(&j->random, 50) * THREADS + j->number) * 4096;
        memset(mine, (int)unit_random_below(&j->random, 256), sizeof mine);
        if (!writer_write(j->w, mine, at, sizeof mine, &err))
            return err.code == ERR_CONFLICT ? NULL : "not as sealed";
        memcpy(j->bytes + at, mine, sizeof mine);
        atomic_fetch_add(&acknowledged, 1);
    }
}

static void *seal_soon(void *arg)
{
    Model *m = arg;
    ModelPoint *p = &m->points[0];
    Err err = ERR_INIT;
    WriterExpect expect = model_expect(m);
    while (atomic_load(&acknowledged) < 300) // all of them are at it
        (void)sched_yield();                 // cannot fail
    return writer_seal(m->writer, &expect, &p->summary, &p->digest, &err) ? NULL : "seal";
}

static void test_seal_while_writing(void **state)
{
    Model m = model_new(state, 12, HASH_XXH3_128);
    uint64_t size = 50 * THREADS * 4096;
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_cover(&m, w);
    Job jobs[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        jobs[i] = (Job){w, m.points[0].bytes, NULL, size, i, {unit_random_next(&m.random)}};
    pthread_t sealer;
    m.writer = w;
    assert_int_equal(pthread_create(&sealer, NULL, seal_soon, &m), 0);
    run_threads(write_until_sealed, jobs);
    void *failed = NULL;
    assert_int_equal(pthread_join(sealer, &failed), 0);
    assert_null(failed);
    model_sealed(&m, w);
    model_clear(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_stripes),
        in_folder(test_overlaps),
        in_folder(test_seal_while_writing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
