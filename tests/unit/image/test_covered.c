#include "image/covered.h"
#include "unit.h"

// Against a byte for each byte.
typedef struct Reference {
    uint64_t size;
    uint8_t *bytes;
} Reference;

static uint64_t reference_add(Reference *r, uint64_t offset, uint64_t length)
{
    uint64_t fresh = 0;
    for (uint64_t i = offset; i < offset + length; i++) {
        fresh += !r->bytes[i];
        r->bytes[i] = 1;
    }
    return fresh;
}

static void check(const Covered *c, const Reference *r)
{
    Err err = ERR_INIT;
    Coverage want = {0}, got = {0};
    bool hole = false;
    uint64_t hole_offset = 0, hole_length = 0, offset, length;
    for (uint64_t at = 0, end; at < r->size; at = end) {
        for (end = at + 1; end < r->size && r->bytes[end] == r->bytes[at];)
            end++;
        if (r->bytes[at]) {
            assert_ok(coverage_add(&want, at, end - at, &err), &err);
        } else if (!hole) {
            hole = true;
            hole_offset = at;
            hole_length = end - at;
        }
    }
    coverage_end(&want);
    assert_ok(covered_sum(c, &got, &err), &err);
    assert_int_equal(got.bytes, want.bytes);
    assert_int_equal(got.extents, want.extents);
    assert_int_equal(got.digest, want.digest);
    assert_int_equal(covered_first_hole(c, &offset, &length), hole);
    if (hole) {
        assert_int_equal(offset, hole_offset);
        assert_int_equal(length, hole_length);
    }
}

static void test_random(void **state)
{
    (void)state;
    UnitRandom random = unit_random();
    for (int round = 0; round < 60; round++) {
        Err err = ERR_INIT;
        uint32_t cluster = 64u << unit_random_below(&random, 3);
        Reference r = {.size = 1 + unit_random_below(&random, 60000)};
        Covered *c = NULL;
        r.bytes = calloc(1, r.size);
        assert_ok(covered_new(r.size, cluster, 64, &c, &err), &err);
        for (int i = 0; i < 80; i++) {
            uint64_t offset = unit_random_below(&random, r.size), fresh;
            uint64_t most = round % 3 == 0 ? 100 : 20000;
            uint64_t length = 1 + unit_random_below(&random, MIN(r.size - offset, most));
            if (round % 3 == 2) {
                uint64_t end = MIN(r.size, align_up(offset + length, cluster));
                offset = align_down(offset, cluster);
                length = end - offset;
            }
            uint64_t want = reference_add(&r, offset, length);
            assert_ok(covered_add(c, offset, length, &fresh, &err), &err);
            assert_int_equal(fresh, want);
            if (i % 8 == 0)
                check(c, &r);
        }
        uint64_t fresh, want = reference_add(&r, 0, r.size);
        assert_ok(covered_add(c, 0, r.size, &fresh, &err), &err);
        assert_int_equal(fresh, want);
        check(c, &r);
        covered_free(c);
        free(r.bytes);
    }
}

static void test_parts_have_a_ceiling(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Covered *c = NULL;
    uint64_t fresh;
    assert_ok(covered_new(UINT64_C(1) << 40, 65536, 8192, &c, &err), &err);
    for (uint64_t i = 0; i < COVERED_PARTS_MAX; i++)
        assert_ok(covered_add(c, i * 65536 + 5, 10, &fresh, &err), &err);
    assert_fails(covered_add(c, UINT64_C(65536) * COVERED_PARTS_MAX + 1, 1, &fresh, &err), &err, ERR_TOO_LARGE);
    assert_ok(covered_add(c, 15, 10, &fresh, &err), &err); // grows one that is there
    assert_ok(covered_add(c, 0, 65536, &fresh, &err), &err);
    assert_int_equal(fresh, 65536 - 20);
    covered_free(c);
    covered_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_parts_have_a_ceiling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
