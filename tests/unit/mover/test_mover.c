#include "mem_blocks.h"

#include "base/clock.h"
#include "mover/mover.h"

#include <pthread.h>

#define CLUSTER 4096u
#define REQUEST (8 * CLUSTER)

typedef struct Case {
    MemBlocks *from, *to;
    MoverSpec spec;
    Coverage expected;
    uint64_t dirty_bytes; // planned as data
    MemBlocks *leaves;    // of what `to` holds before; NULL: nobody asks
    MoverKnown known;
    uint64_t same_bytes;
} Case;

static void add_ranges(UnitRandom *r, uint64_t size, unsigned n, ExtentVec *ret)
{
    Err err = ERR_INIT;
    uint64_t at = 0;
    for (unsigned i = 0; i < n && at < size; i++) {
        uint64_t offset = at + unit_random_below(r, size / n + 1);
        uint64_t length = 1 + unit_random_below(r, unit_random_below(r, 3) == 0 ? 10 * CLUSTER : CLUSTER);
        if (offset >= size)
            break;
        length = MIN(length, size - offset);
        assert_ok(extent_vec_push(ret, (Extent){.offset = offset, .length = length}, &err), &err);
        at = offset + length;
    }
}

// Data with zero clusters in between, and what the map vouches for as zero.
static void fill_source(UnitRandom *r, MemBlocks *m)
{
    for (uint64_t at = 0; at < m->blocks.size; at += CLUSTER) {
        uint64_t n = MIN(CLUSTER, m->blocks.size - at);
        switch (unit_random_below(r, 4)) {
        case 0: break;                                             // zero, but nobody says so
        case 1: m->bytes[at + unit_random_below(r, n)] = 1; break; // a lone byte
        default: memset(m->bytes + at, (int)(1 + unit_random_below(r, 255)), n); break;
        }
    }
    add_ranges(r, m->blocks.size, 1 + (unsigned)unit_random_below(r, 8), &m->zeros);
    for (size_t i = 0; i < m->zeros.len; i++)
        memset(m->bytes + m->zeros.items[i].offset, 0, m->zeros.items[i].length);
}

// The reference, cluster by cluster: what has to be sent, and what the target holds before.
static void model(Case *c, bool tracked)
{
    Err err = ERR_INIT;
    for (uint64_t at = 0; at < c->spec.size; at += CLUSTER) {
        uint64_t end = MIN(at + CLUSTER, c->spec.size);
        bool zero = mem_covers(&c->from->zeros, at, end);
        bool dirty = !tracked || mem_overlaps(&c->from->changed, at, end);
        if (zero || dirty)
            assert_ok(coverage_add(&c->expected, at, end - at, &err), &err);
        if (dirty && !zero)
            c->dirty_bytes += end - at;
        bool same = c->leaves && at / CLUSTER % 3 == 0;
        if ((zero || dirty) && !same)
            memset(c->to->bytes + at, 0xee, end - at); // the parent's, to be overwritten
        else
            memcpy(c->to->bytes + at, c->from->bytes + at, end - at);
    }
    coverage_end(&c->expected);
}

// The hashes of what `to` holds; what is equal and not zero need not travel.
static void fill_leaves(Case *c)
{
    for (uint64_t at = 0; at < c->spec.size; at += CLUSTER) {
        uint64_t n = MIN(CLUSTER, c->spec.size - at);
        uint8_t cluster[CLUSTER] = {0};
        Hash hash;
        memcpy(cluster, c->to->bytes + at, n);
        hash_bytes(&c->known.hash, cluster, CLUSTER, &hash);
        memcpy(c->leaves->bytes + at / CLUSTER * 16, hash.bytes, 16);
        if (!hash_is_zero(c->from->bytes + at, n) && memcmp(c->from->bytes + at, c->to->bytes + at, n) == 0)
            c->same_bytes += n;
    }
}

static Case make_case(UnitRandom *r, bool tracked, bool later)
{
    Case c = {0};
    uint64_t size = 1 + unit_random_below(r, 60 * CLUSTER);
    c.from = mem_new(size, CLUSTER, later, r);
    c.to = mem_new(size, CLUSTER, later, r);
    c.spec = (MoverSpec){.from = &c.from->blocks,
                         .to = &c.to->blocks,
                         .size = size,
                         .cluster_size = CLUSTER,
                         .plan = tracked ? MOVER_TRACKED : MOVER_ALL,
                         .request_bytes = REQUEST,
                         .in_flight = 1 + (unsigned)unit_random_below(r, 6)};
    fill_source(r, c.from);
    add_ranges(r, size, 1 + (unsigned)unit_random_below(r, 8), &c.from->changed);
    if (!tracked && unit_random_below(r, 2)) {
        c.leaves = mem_new((size + CLUSTER - 1) / CLUSTER * 16, 16, later, r);
        c.known = (MoverKnown){.leaves = &c.leaves->blocks, .hash = {.seed = unit_random_next(r)}};
    }
    model(&c, tracked);
    if (c.leaves)
        fill_leaves(&c);
    return c;
}

static void free_case(Case *c)
{
    mem_free(&c->from->blocks);
    mem_free(&c->to->blocks);
    if (c->leaves)
        mem_free(&c->leaves->blocks);
}

static void check_result(const Case *c, const MoverResult *result)
{
    assert_memory_equal(c->to->bytes, c->from->bytes, c->spec.size);
    assert_int_equal(result->coverage.bytes, c->expected.bytes);
    assert_int_equal(result->coverage.extents, c->expected.extents);
    assert_true(result->coverage.digest == c->expected.digest);
    assert_int_equal(result->total.transferred_bytes + result->total.zero_bytes + result->total.same_bytes,
                     c->expected.bytes);
    assert_int_equal(result->total.same_bytes, c->to->bytes_same);
    assert_int_equal(result->total.same_bytes, c->same_bytes);
    assert_int_equal(result->total.transferred_bytes, c->to->bytes_written);
    assert_int_equal(result->total.zero_bytes, c->to->bytes_zeroed);
    assert_int_equal(result->total.changed_bytes, c->dirty_bytes);
    assert_int_equal(result->total.changed_bytes, c->from->bytes_read);
    assert_int_equal(result->total.done_bytes, c->spec.size);
    uint64_t sent = 0;
    for (uint64_t at = 0; at < c->spec.size; at += CLUSTER) {
        assert_true(c->to->touched[at / CLUSTER] <= 1);
        sent += c->to->touched[at / CLUSTER] ? MIN(CLUSTER, c->spec.size - at) : 0;
    }
    assert_int_equal(sent, c->expected.bytes);
    assert_true(c->to->flushed);
    assert_false(c->to->aborted || c->from->aborted);
}

static void copies(bool tracked, bool later)
{
    UnitRandom r = unit_random();
    for (int i = 0; i < 300; i++) {
        Err err = ERR_INIT;
        MoverResult result;
        Case c = make_case(&r, tracked, later);
        c.spec.known = c.leaves ? &c.known : NULL;
        assert_ok(mover_copy(&c.spec, &result, &err), &err);
        check_result(&c, &result);
        free_case(&c);
    }
}

static void all_at_once(void **state)
{
    (void)state;
    copies(false, false);
}

static void all_later(void **state)
{
    (void)state;
    copies(false, true);
}

static void tracked_at_once(void **state)
{
    (void)state;
    copies(true, false);
}

static void tracked_later(void **state)
{
    (void)state;
    copies(true, true);
}

static bool never_asked(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    (void)b, (void)offset, (void)length, (void)changed, (void)zeros;
    return err_set(err, ERR_INTERNAL, "asked for its map");
}

// A source that calls zero what is not.
static void a_disk_that_is_read_whatever_its_map_says(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 200; i++) {
        Err err = ERR_INIT;
        MoverResult result;
        Case c = make_case(&r, false, i % 2 == 0);
        c.from->zeros.len = 0;
        BlocksOps ops = *c.from->blocks.ops;
        ops.extents = never_asked;
        c.from->blocks.ops = &ops;
        c.spec.plan = MOVER_READ;
        assert_ok(mover_copy(&c.spec, &result, &err), &err);
        assert_memory_equal(c.to->bytes, c.from->bytes, c.spec.size);
        assert_int_equal(c.from->bytes_read, c.spec.size);
        assert_int_equal(result.coverage.bytes, c.spec.size);
        free_case(&c);
    }
}

static void count_planned(void *ctx, uint64_t offset, uint64_t length)
{
    uint64_t *sum = ctx;
    (void)offset;
    *sum += length;
}

// An audit draws from what was not read; zeros that the source vouches for are not among it.
static void zeros_on_the_hypervisors_word_are_for_the_audit(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 200; i++) {
        Err err = ERR_INIT;
        MoverResult result;
        uint64_t planned = 0;
        Case c = make_case(&r, i % 4 < 2, false);
        c.from->blocks.zeros_on_word = i % 2 == 0;
        c.spec.planned = count_planned;
        c.spec.planned_ctx = &planned;
        assert_ok(mover_copy(&c.spec, &result, &err), &err);
        assert_memory_equal(c.to->bytes, c.from->bytes, c.spec.size);
        assert_int_equal(planned, i % 2 == 0 ? c.from->bytes_read : result.coverage.bytes);
        free_case(&c);
    }
}

// The sink has some clusters of an interrupted copy. Those that are the same since are confirmed, whether the change
// set names them or not; all others are read and written.
static void resumed_copy(UnitRandom *r, bool tracked, bool later)
{
    Err err = ERR_INIT;
    MoverResult result;
    Case c = make_case(r, tracked, later);
    MemBlocks *since = mem_new(c.spec.size, CLUSTER, later, r);
    MoverResume resume = {.since = unit_random_below(r, 4) ? &since->blocks : NULL};
    Coverage expected = {0};
    uint64_t kept = 0;
    if (resume.since)
        add_ranges(r, c.spec.size, 1 + (unsigned)unit_random_below(r, 6), &since->changed);
    for (uint64_t at = 0; at < c.spec.size; at += CLUSTER) {
        uint64_t end = MIN(at + CLUSTER, c.spec.size);
        bool held = unit_random_below(r, 2) == 0, newer = mem_overlaps(&since->changed, at, end);
        bool zero = mem_covers(&c.from->zeros, at, end);
        bool planned = held || zero || !tracked || mem_overlaps(&c.from->changed, at, end);
        if (held && !newer) {
            memcpy(c.to->bytes + at, c.from->bytes + at, end - at);
            kept += end - at;
        } else if (planned) {
            memset(c.to->bytes + at, 0xdd, end - at);
        }
        if (!held)
            assert_ok(extent_vec_push(&c.to->zeros, (Extent){.offset = at, .length = end - at}, &err), &err);
        if (planned)
            assert_ok(coverage_add(&expected, at, end - at, &err), &err);
    }
    coverage_end(&expected);
    c.spec.resume = &resume;
    assert_ok(mover_copy(&c.spec, &result, &err), &err);
    assert_memory_equal(c.to->bytes, c.from->bytes, c.spec.size);
    assert_int_equal(result.coverage.extents, expected.extents);
    assert_int_equal(result.coverage.bytes, expected.bytes);
    assert_true(result.coverage.digest == expected.digest);
    assert_int_equal(result.total.kept_bytes, kept);
    assert_int_equal(c.to->bytes_same, kept);
    assert_int_equal(result.total.changed_bytes, c.from->bytes_read);
    for (uint64_t at = 0; at < c.spec.size; at += CLUSTER)
        assert_true(c.to->touched[at / CLUSTER] <= 1);
    free_case(&c);
    mem_free(&since->blocks);
}

static void resumed(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 400; i++)
        resumed_copy(&r, i % 2 == 0, i % 4 < 2);
}

// A map of the sink that cuts a cluster would leave a hole, or keep what changed.
static void a_sink_with_a_crooked_map(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    MoverResult result;
    UnitRandom r = unit_random();
    MoverResume resume = {0};
    Case c;
    do
        c = make_case(&r, false, false);
    while (c.spec.size < 2 * CLUSTER && (free_case(&c), true));
    assert_ok(extent_vec_push(&c.to->zeros, (Extent){.offset = 100, .length = CLUSTER}, &err), &err);
    c.spec.resume = &resume;
    assert_fails(mover_copy(&c.spec, &result, &err), &err, ERR_PROTOCOL);
    free_case(&c);
}

// One run for each request of each end, with that request failing; the fault is what is reported, and nothing stays in
// flight.
static void every_request_fails_of(UnitRandom r, MemFault fault, bool later)
{
    UnitRandom again = r;
    MoverResult result;
    Err err = ERR_INIT;
    Case clean = make_case(&again, true, later);
    assert_ok(mover_copy(&clean.spec, &result, &err), &err);
    for (int end = 0; end < 2; end++) {
        unsigned n = end == 0 ? clean.from->requests : clean.to->requests;
        for (unsigned at = 1; at <= n; at++) {
            again = r;
            atomic_bool cancel = false;
            Case c = make_case(&again, true, later);
            MemBlocks *m = end == 0 ? c.from : c.to;
            m->fault_at = at;
            m->fault = fault;
            m->cancel = &cancel;
            c.spec.cancel = &cancel;
            bool fine = mover_copy(&c.spec, &result, &err);
            if (fault != MEM_FAULT_CANCEL) {
                assert_false(fine);
                assert_int_equal(err.code, ERR_IO);
                assert_non_null(strstr(err.details, "injected"));
            } else if (!fine) { // a cancel during the last request comes too late
                assert_int_equal(err.code, ERR_CANCELLED);
            }
            assert_true(fine || (c.from->aborted && c.to->aborted));
            err_clear(&err);
            free_case(&c);
        }
    }
    free_case(&clean);
}

static void every_request_fails(MemFault fault, bool later)
{
    UnitRandom r = unit_random();
    for (int i = 0; i < 5; i++) {
        unit_random_next(&r);
        every_request_fails_of(r, fault, later);
    }
}

static void faults_on_start(void **state)
{
    (void)state;
    every_request_fails(MEM_FAULT_START, false);
    every_request_fails(MEM_FAULT_START, true);
}

static void faults_on_completion(void **state) // CVE-2022-0485: an error in a completion must not be lost
{
    (void)state;
    every_request_fails(MEM_FAULT_DONE, false);
    every_request_fails(MEM_FAULT_DONE, true);
}

static void cancels(void **state)
{
    (void)state;
    every_request_fails(MEM_FAULT_CANCEL, false);
    every_request_fails(MEM_FAULT_CANCEL, true);
}

static void *cancel_soon(void *flag)
{
    (void)poll(NULL, 0, 30);
    atomic_store((atomic_bool *)flag, true);
    return NULL;
}

static void cancel_of_a_hanging_end(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int end = 0; end < 3; end++) {
        Err err = ERR_INIT;
        MoverResult result;
        atomic_bool cancel = false;
        Case c = make_case(&r, false, true);
        for (; end == 2 && !c.leaves; c = make_case(&r, false, true))
            free_case(&c);
        (end == 0 ? c.from : end == 1 ? c.to : c.leaves)->silent = true;
        c.spec.known = end == 2 ? &c.known : NULL;
        c.spec.cancel = &cancel;
        memset(c.from->bytes, 1, 1); // there is something to read
        extent_vec_clear(&c.from->zeros);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &cancel), 0);
        int64_t before = clock_mono_ms();
        assert_fails(mover_copy(&c.spec, &result, &err), &err, ERR_CANCELLED);
        assert_true(clock_mono_ms() - before < unit_patience(20000)); // else it hangs for ever
        assert_int_equal(pthread_join(thread, NULL), 0);
        free_case(&c);
    }
}

// A cluster that lies at a window's border, and zeros far longer than a request.
static void windows(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20, size = 150 * mib + 77, border = 64 * mib;
    UnitRandom r = unit_random();
    Err err = ERR_INIT;
    MoverResult result;
    MemBlocks *from = mem_new(size, CLUSTER, false, &r), *to = mem_new(size, CLUSTER, false, &r);
    memset(from->bytes + border - 3 * CLUSTER - 5, 0xab, 6 * CLUSTER);
    uint64_t end = border + 3 * CLUSTER - 5;
    assert_ok(extent_vec_push(&from->zeros, (Extent){.offset = 0, .length = border - 3 * CLUSTER - 5}, &err), &err);
    assert_ok(extent_vec_push(&from->zeros, (Extent){.offset = end, .length = size - end}, &err), &err);
    MoverSpec spec = {.from = &from->blocks, .to = &to->blocks, .size = size, .cluster_size = CLUSTER};
    assert_ok(mover_copy(&spec, &result, &err), &err);
    assert_memory_equal(to->bytes, from->bytes, size);
    assert_int_equal(from->bytes_read, 7 * CLUSTER); // rounded outward
    assert_int_equal(result.coverage.extents, 1);
    assert_int_equal(result.coverage.bytes, size);
    mem_free(&from->blocks);
    mem_free(&to->blocks);
}

typedef struct Seen {
    uint64_t last;
    unsigned finished, calls;
} Seen;

static void see_progress(void *ctx, const MoverProgress *p)
{
    Seen *s = ctx;
    assert_true(p->done_bytes >= s->last);
    s->last = p->done_bytes;
    s->calls++;
    s->finished += p->done_bytes == p->size;
}

static void progress_rises_and_ends_once(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    Err err = ERR_INIT;
    MoverResult result;
    Seen seen = {0};
    Case c = make_case(&r, false, true);
    c.spec.progress = see_progress;
    c.spec.progress_ctx = &seen;
    assert_ok(mover_copy(&c.spec, &result, &err), &err);
    assert_int_equal(seen.finished, 1);
    free_case(&c);
}

static Extent bad_map[2];

static bool bad_extents(Blocks *b, uint64_t offset, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    (void)b, (void)offset, (void)length, (void)changed;
    return extent_vec_push(zeros, bad_map[0], err) && extent_vec_push(zeros, bad_map[1], err);
}

static void broken_maps_are_refused(void **state)
{
    (void)state;
    static const Extent bad[][2] = {{{.offset = 8192, .length = 4096}, {.offset = 4096, .length = 4096}}, // order
                                    {{.offset = 0, .length = 8192}, {.offset = 4096, .length = 4096}},    // overlap
                                    {{.offset = 0, .length = 4096}, {.offset = 4096, .length = 0}},       // empty
                                    {{.offset = 0, .length = 4096}, {.offset = 1 << 20, .length = 4096}}, // outside
                                    {{.offset = 0, .length = 4096}, {.offset = 4096, .length = UINT64_MAX - 4096}}};
    UnitRandom r = unit_random();
    BlocksOps ops = mem_ops;
    ops.extents = bad_extents;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        MoverResult result;
        MemBlocks *from = mem_new(1 << 20, CLUSTER, false, &r), *to = mem_new(1 << 20, CLUSTER, false, &r);
        memcpy(bad_map, bad[i], sizeof(bad_map));
        from->blocks.ops = &ops;
        MoverSpec spec = {.from = &from->blocks, .to = &to->blocks, .size = 1 << 20, .cluster_size = CLUSTER};
        assert_fails(mover_copy(&spec, &result, &err), &err, ERR_PROTOCOL);
        mem_free(&from->blocks);
        mem_free(&to->blocks);
    }
}

static void wrong_specs_are_refused(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    Err err = ERR_INIT;
    MoverResult result;
    MemBlocks *from = mem_new(1 << 20, CLUSTER, false, &r), *to = mem_new((1 << 20) - 512, CLUSTER, false, &r);
    MoverSpec spec = {.from = &from->blocks, .to = &to->blocks, .size = 1 << 20, .cluster_size = CLUSTER};
    assert_fails(mover_copy(&spec, &result, &err), &err, ERR_PROTOCOL); // the target is smaller
    spec.size = (1 << 20) - 512;
    assert_fails(mover_copy(&spec, &result, &err), &err,
                 ERR_PROTOCOL); // the source larger than rounding explains
    spec.cluster_size = 3 * CLUSTER;
    assert_fails(mover_copy(&spec, &result, &err), &err, ERR_INVALID);
    spec.cluster_size = CLUSTER;
    spec.size = 0;
    assert_fails(mover_copy(&spec, &result, &err), &err, ERR_INVALID);
    assert_int_equal(from->requests + to->requests, 0);
    mem_free(&from->blocks);
    mem_free(&to->blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_at_once),
        cmocka_unit_test(all_later),
        cmocka_unit_test(tracked_at_once),
        cmocka_unit_test(tracked_later),
        cmocka_unit_test(a_disk_that_is_read_whatever_its_map_says),
        cmocka_unit_test(zeros_on_the_hypervisors_word_are_for_the_audit),
        cmocka_unit_test(resumed),
        cmocka_unit_test(a_sink_with_a_crooked_map),
        cmocka_unit_test(faults_on_start),
        cmocka_unit_test(faults_on_completion),
        cmocka_unit_test(cancels),
        cmocka_unit_test(cancel_of_a_hanging_end),
        cmocka_unit_test(windows),
        cmocka_unit_test(progress_rises_and_ends_once),
        cmocka_unit_test(broken_maps_are_refused),
        cmocka_unit_test(wrong_specs_are_refused),
    };
    return cmocka_run_group_tests_name("mover", tests, NULL, NULL);
}
