#include "unit.h"

#include "domain/extent.h"

#include <inttypes.h>

// ---- coverage ----

static void test_coverage_merges(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Coverage a = {0}, b = {0};
    assert_ok(coverage_add(&a, 0, 100, &err), &err);
    assert_ok(coverage_add(&a, 100, 50, &err), &err);
    assert_ok(coverage_add(&a, 150, 0, &err), &err);
    assert_ok(coverage_add(&a, 200, 8, &err), &err);
    assert_ok(coverage_add(&b, 0, 150, &err), &err);
    assert_ok(coverage_add(&b, 200, 8, &err), &err);
    coverage_end(&a);
    coverage_end(&b);
    coverage_end(&b);
    assert_int_equal(a.extents, 2);
    assert_int_equal(a.bytes, 158);
    assert_true(a.extents == b.extents && a.bytes == b.bytes && a.digest == b.digest);
    assert_true(a.digest != 0);
}

static void test_coverage_tells_apart(void **state)
{
    (void)state;
    static const uint64_t sets[][4] = {{0, 8, 16, 8}, {0, 8, 24, 8}, {8, 8, 24, 8},  {0, 16, 24, 8}, {0, 16, 32, 0},
                                       {0, 8, 8, 8},  {0, 24, 0, 0}, {8, 16, 32, 0}, {0, 0, 0, 0}};
    Coverage c[ARRAY_LEN(sets)];
    for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
        Err err = ERR_INIT;
        c[i] = (Coverage){0};
        for (size_t k = 0; k < 4; k += 2)
            if (sets[i][k + 1] > 0)
                assert_ok(coverage_add(&c[i], sets[i][k], sets[i][k + 1], &err), &err);
        coverage_end(&c[i]);
        for (size_t k = 0; k < i; k++)
            if (!(i == 5 && k == 4)) // the same bytes, cut differently
                assert_true(c[i].digest != c[k].digest);
    }
    assert_true(c[5].digest == c[4].digest && c[5].extents == 1);
    assert_true(c[8].digest == 0 && c[8].extents == 0 && c[8].bytes == 0);
}

static void test_coverage_refuses(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Coverage c = {0};
    assert_ok(coverage_add(&c, 100, 100, &err), &err);
    Coverage before = c;
    static const uint64_t bad[][2] = {{0, 10},
                                      {99, 1},
                                      {100, 100},
                                      {199, 1},
                                      {199, 0},
                                      {UINT64_MAX, 1},
                                      {UINT64_MAX, UINT64_MAX},
                                      {DISK_SIZE_MAX, 1},
                                      {200, DISK_SIZE_MAX}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(coverage_add(&c, bad[i][0], bad[i][1], &err), &err, ERR_INVALID);
    assert_memory_equal(&c, &before, sizeof(c));
    coverage_end(&c);
    assert_fails(coverage_add(&c, 199, 1, &err), &err,
                 ERR_INVALID); // still ascending after the end
    assert_ok(coverage_add(&c, 200, DISK_SIZE_MAX - 200, &err), &err);
    assert_true(c.bytes == DISK_SIZE_MAX - 100);
}

// The value is part of what the client and the engine agree on: it must not change by accident.
static void test_coverage_digest_is_fixed(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Coverage c = {0};
    assert_ok(coverage_add(&c, 65536, 131072, &err), &err);
    assert_ok(coverage_add(&c, 1048576, 65536, &err), &err);
    coverage_end(&c);
    assert_int_equal(c.digest, UINT64_C(0x9d8bc31a1ad302f5));
}

// The same bytes in random pieces: the same account.
static void test_coverage_ignores_how_it_was_cut(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int round = 0; round < 300; round++) {
        Coverage whole = {0}, pieces = {0};
        Err err = ERR_INIT;
        uint64_t at = 0, sum = 0, count = 0;
        for (uint64_t i = 0, n = unit_random_below(&r, 20); i < n; i++) {
            uint64_t offset = at + 1 + unit_random_below(&r, 100), length = 1 + unit_random_below(&r, 100);
            assert_ok(coverage_add(&whole, offset, length, &err), &err);
            for (uint64_t done = 0; done < length;) {
                uint64_t piece = 1 + unit_random_below(&r, length - done);
                assert_ok(coverage_add(&pieces, offset + done, piece, &err), &err);
                done += piece;
            }
            at = offset + length;
            sum += length;
            count++;
        }
        coverage_end(&whole);
        coverage_end(&pieces);
        assert_true(whole.extents == count && pieces.extents == count);
        assert_true(whole.bytes == sum && pieces.bytes == sum);
        assert_true(whole.digest == pieces.digest);
    }
}

// ---- rounding ----

static void test_round(void **state)
{
    (void)state;
    static const struct {
        uint64_t size, cluster, offset, length, want_offset, want_length;
    } cases[] = {
        {1000, 100, 0, 100, 0, 100},        {1000, 100, 1, 1, 0, 100},
        {1024, 64, 63, 2, 0, 128},          {1000, 64, 999, 1, 960, 40},
        {1000, 64, 0, 1000, 0, 1000},       {1000, 64, 900, 5000, 896, 104},
        {1000, 64, 100, 0, 100, 0},         {1000, 64, 1000, 10, 1000, 0},
        {1000, 64, 5000, 10, 5000, 0},      {DISK_SIZE_MAX, 65536, DISK_SIZE_MAX - 1, 1, DISK_SIZE_MAX - 65536, 65536},
        {1000, 64, 1, UINT64_MAX, 0, 1000}, {3, 65536, 2, 1, 0, 3},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        if (cases[i].cluster & (cases[i].cluster - 1))
            continue;
        uint64_t offset = cases[i].offset, length = cases[i].length;
        extent_round(cases[i].size, cases[i].cluster, &offset, &length);
        assert_int_equal(offset, cases[i].want_offset);
        assert_int_equal(length, cases[i].want_length);
    }
}

// ---- the tracked plan, against a map of single bytes ----

#define BYTES_MAX 700

typedef struct Model {
    uint64_t size, cluster;
    bool dirty[BYTES_MAX], zero[BYTES_MAX];
} Model;

// Random ranges, in order; `whole` also carries the rest, as a source's map does.
static void fill(UnitRandom *r, const Model *m, bool *map, bool set_zero, bool whole, ExtentVec *v)
{
    Err err = ERR_INIT;
    uint64_t at = 0, longest = 1 + unit_random_below(r, m->cluster * 4);
    while (at < m->size) {
        uint64_t n = 1 + unit_random_below(r, longest);
        n = MIN(n, m->size - at);
        bool on = unit_random_below(r, 3) != 0;
        if (on || whole)
            assert_ok(extent_vec_push(v, (Extent){at, n, set_zero && on}, &err), &err);
        if (on)
            memset(map + at, 1, n);
        at += n;
    }
}

static void show(const char *what, const ExtentVec *v)
{
    print_error("%s:", what);
    for (size_t i = 0; i < v->len; i++)
        print_error(" %" PRIu64 "+%" PRIu64 "%s", v->items[i].offset, v->items[i].length, v->items[i].zero ? "z" : "");
    print_error("\n");
}

// What the header promises, cluster by cluster.
static bool agrees(const Model *m, const ExtentVec *plan)
{
    int kind[BYTES_MAX] = {0}; // 0: not sent, 1: data, 2: zero
    uint64_t reached = 0;
    for (size_t i = 0; i < plan->len; i++) {
        const Extent *e = &plan->items[i];
        uint64_t end = e->offset + e->length;
        if (e->length == 0 || e->offset < reached || end > m->size || e->offset % m->cluster != 0 ||
            (end % m->cluster != 0 && end != m->size))
            return false;
        for (uint64_t b = e->offset; b < end; b++)
            kind[b] = e->zero ? 2 : 1;
        reached = end;
    }
    for (uint64_t c = 0; c < m->size; c += m->cluster) {
        bool any_dirty = false, all_zero = true;
        for (uint64_t b = c; b < MIN(c + m->cluster, m->size); b++) {
            any_dirty = any_dirty || m->dirty[b];
            all_zero = all_zero && m->zero[b];
        }
        int want = all_zero ? 2 : any_dirty ? 1 : 0;
        for (uint64_t b = c; b < MIN(c + m->cluster, m->size); b++)
            if (kind[b] != want)
                return false;
    }
    return true;
}

static void test_plan_against_a_map_of_bytes(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int round = 0; round < 20000; round++) {
        Model m = {.size = unit_random_below(&r, BYTES_MAX), .cluster = UINT64_C(1) << unit_random_below(&r, 8)};
        ExtentVec changed = {0}, zeros = {0}, plan = {0};
        fill(&r, &m, m.dirty, unit_random_below(&r, 2), false, &changed);
        fill(&r, &m, m.zero, true, unit_random_below(&r, 2), &zeros);
        Err err = ERR_INIT;
        assert_ok(extent_plan_tracked(&changed, &zeros, m.size, m.cluster, &plan, &err), &err);
        if (!agrees(&m, &plan)) {
            show("changed", &changed);
            show("zeros", &zeros);
            show("plan", &plan);
            fail_msg("round %d: size %" PRIu64 ", clusters of %" PRIu64, round, m.size, m.cluster);
        }
        for (size_t i = 1; i < plan.len; i++) // merged: nothing could be one
            assert_false(plan.items[i - 1].zero == plan.items[i].zero &&
                         plan.items[i - 1].offset + plan.items[i - 1].length == plan.items[i].offset);
        extent_vec_clear(&changed);
        extent_vec_clear(&zeros);
        extent_vec_clear(&plan);
    }
}

// Union, and difference by whole clusters, against a map of bytes.
static void test_sets_against_a_map_of_bytes(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int round = 0; round < 20000; round++) {
        uint8_t a[BYTES_MAX] = {0}, b[BYTES_MAX] = {0}, want[2][BYTES_MAX] = {0}, got[BYTES_MAX];
        uint64_t size = 1 + unit_random_below(&r, BYTES_MAX - 1), cluster = UINT64_C(1) << unit_random_below(&r, 6);
        ExtentVec va = {0}, vb = {0}, out = {0};
        Err err = ERR_INIT;
        for (uint64_t c = 0; c < size; c += cluster)
            if (unit_random_below(&r, 2))
                memset(a + c, 1, MIN(cluster, size - c));
        for (uint64_t at = unit_random_below(&r, 40); at < size; at += 1 + unit_random_below(&r, 60))
            b[at] = 1;
        for (uint64_t at = 0; at < size; at++) {
            if (a[at] && !extent_vec_push(&va, (Extent){.offset = at, .length = 1}, &err))
                fail();
            while (va.len > 1 && va.items[va.len - 2].offset + va.items[va.len - 2].length == at && a[at] &&
                   at % cluster != 0) { // whole clusters, neighbours apart
                va.items[va.len - 2].length++;
                va.len--;
            }
            if (b[at] && !extent_vec_push(&vb, (Extent){.offset = at, .length = 1}, &err))
                fail();
            want[0][at] = a[at] || b[at];
            want[1][at] = a[at];
        }
        for (uint64_t c = 0; c < size; c += cluster)
            if (memchr(b + c, 1, MIN(cluster, size - c)))
                memset(want[1] + c, 0, MIN(cluster, size - c));
        for (int k = 0; k < 2; k++) {
            if (k == 0)
                assert_ok(extent_union(&va, &vb, &out, &err), &err);
            else
                assert_ok(extent_without(&va, &vb, size, cluster, &out, &err), &err);
            memset(got, 0, sizeof got);
            for (size_t i = 0; i < out.len; i++) {
                assert_true(i == 0 || out.items[i - 1].offset + out.items[i - 1].length < out.items[i].offset);
                memset(got + out.items[i].offset, 1, out.items[i].length);
            }
            assert_memory_equal(got, want[k], size);
        }
        extent_vec_clear(&va);
        extent_vec_clear(&vb);
        extent_vec_clear(&out);
    }
}

static void test_plan_examples(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    enum { K = 1024 };
    Extent dirty[] = {{65 * K, 1, false}, {300 * K, 4 * K, true}};
    Extent zero[] = {{0, 100 * K, true}, {100 * K, 40 * K, true}, {256 * K, 64 * K - 1, true}, {999 * K, K + 1, true}};
    ExtentVec changed = {.items = dirty, .len = 2}, zeros = {.items = zero, .len = 4}, plan = {0};
    uint64_t size = 1000 * K + 1;
    assert_ok(extent_plan_tracked(&changed, &zeros, size, 64 * K, &plan, &err), &err);
    // 0..128K: zero though the map cut it within a cluster, and though a byte of it is dirty.
    // 256K..320K: dirty, and one byte of it is not vouched for. The odd tail is not zero as a whole.
    assert_int_equal(plan.len, 2);
    assert_true(plan.items[0].offset == 0 && plan.items[0].length == 128 * K && plan.items[0].zero);
    assert_true(plan.items[1].offset == 256 * K && plan.items[1].length == 64 * K && !plan.items[1].zero);
    extent_vec_clear(&plan);
    zero[3] = (Extent){960 * K, 40 * K + 1, true}; // now it is, up to the disk's end
    assert_ok(extent_plan_tracked(&changed, &zeros, size, 64 * K, &plan, &err), &err);
    assert_int_equal(plan.len, 3);
    assert_true(plan.items[2].offset == 960 * K && plan.items[2].length == 40 * K + 1 && plan.items[2].zero);
    extent_vec_clear(&plan);
}

// What the map does not call zero never becomes one, even if it stands in the list.
static void test_plan_never_guesses_zero(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Extent dirty[] = {{0, 64, false}}, map[] = {{0, 64, false}};
    ExtentVec changed = {.items = dirty, .len = 1}, zeros = {.items = map, .len = 1}, plan = {0};
    assert_ok(extent_plan_tracked(&changed, &zeros, 128, 64, &plan, &err), &err);
    assert_int_equal(plan.len, 1);
    assert_false(plan.items[0].zero);
    extent_vec_clear(&plan);
}

static void test_plan_large(void **state)
{
    (void)state;
    // The largest disk there is: by ranges, not by clusters.
    Err err = ERR_INIT;
    Extent dirty[] = {{DISK_SIZE_MAX - 1, 1, false}}, zero[] = {{0, DISK_SIZE_MAX - 1, true}};
    ExtentVec changed = {.items = dirty, .len = 1}, zeros = {.items = zero, .len = 1}, plan = {0};
    assert_ok(extent_plan_tracked(&changed, &zeros, DISK_SIZE_MAX, 65536, &plan, &err), &err);
    assert_int_equal(plan.len, 2);
    assert_true(plan.items[0].length == DISK_SIZE_MAX - 65536 && plan.items[0].zero);
    assert_true(plan.items[1].length == 65536 && !plan.items[1].zero);
    extent_vec_clear(&plan);
    ExtentVec none = {0};
    assert_ok(extent_plan_tracked(&none, &none, DISK_SIZE_MAX, 65536, &plan, &err), &err);
    assert_int_equal(plan.len, 0);
    assert_ok(extent_plan_tracked(&none, &none, 0, 65536, &plan, &err), &err);
    assert_int_equal(plan.len, 0);
}

static void test_plan_refuses(void **state)
{
    (void)state;
    static const Extent bad[][2] = {
        {{0, 0, true}, {10, 1, true}},         // empty
        {{10, 10, true}, {0, 5, true}},        // out of order
        {{10, 10, true}, {19, 1, true}},       // overlap
        {{90, 11, true}, {101, 1, true}},      // past the end
        {{0, 1, true}, {UINT64_MAX, 2, true}}, // past everything
        {{0, 1, true}, {1, UINT64_MAX, true}}, //
    };
    ExtentVec none = {0}, plan = {0};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Extent items[2] = {bad[i][0], bad[i][1]};
        ExtentVec v = {.items = items, .len = 2};
        Err err = ERR_INIT;
        assert_fails(extent_plan_tracked(&v, &none, 100, 16, &plan, &err), &err, ERR_INVALID);
        assert_fails(extent_plan_tracked(&none, &v, 100, 16, &plan, &err), &err, ERR_INVALID);
        assert_null(plan.items);
    }
    Err err = ERR_INIT;
    assert_fails(extent_plan_tracked(&none, &none, 100, 0, &plan, &err), &err, ERR_INVALID);
    assert_fails(extent_plan_tracked(&none, &none, 100, 48, &plan, &err), &err, ERR_INVALID);
    assert_fails(extent_plan_tracked(&none, &none, DISK_SIZE_MAX + 1, 64, &plan, &err), &err, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coverage_merges),
        cmocka_unit_test(test_coverage_tells_apart),
        cmocka_unit_test(test_coverage_refuses),
        cmocka_unit_test(test_coverage_digest_is_fixed),
        cmocka_unit_test(test_coverage_ignores_how_it_was_cut),
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_plan_against_a_map_of_bytes),
        cmocka_unit_test(test_sets_against_a_map_of_bytes),
        cmocka_unit_test(test_plan_examples),
        cmocka_unit_test(test_plan_never_guesses_zero),
        cmocka_unit_test(test_plan_large),
        cmocka_unit_test(test_plan_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
