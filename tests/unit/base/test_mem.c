#include "unit.h"

#include "base/vec.h"

#include <fcntl.h>
#include <unistd.h>

VEC_DEFINE(NumVec, num_vec, uint32_t)

static void test_zeroed(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    void *p = mem_calloc(SIZE_MAX / 2, 3, &err);
    assert_null(p);
    assert_int_equal(err.code, ERR_NO_MEMORY);
    err_clear(&err);
    cleanup_free unsigned char *q = mem_calloc(3, 5, &err);
    assert_non_null(q);
    for (int i = 0; i < 15; i++)
        assert_int_equal(q[i], 0);
    cleanup_free void *empty = mem_calloc(0, 0, &err);
    assert_non_null(empty);
}

static void test_text(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_free char *a = mem_printf(&err, "%s-%d", "disk", 7);
    assert_string_equal(a, "disk-7");
    cleanup_free char *b = mem_strdup(a, &err);
    assert_string_equal(b, "disk-7");
    assert_ok(mem_replace(&b, b + 5, &err), &err); // of itself
    assert_string_equal(b, "7");
    assert_ok(mem_replace(&b, NULL, &err), &err);
    assert_null(b);
}

static void test_ownership(void **state)
{
    (void)state;
    int before = unit_open_fds(), kept;
    {
        cleanup_close int a = open("/dev/null", O_RDONLY | O_CLOEXEC);
        cleanup_close int b = open("/dev/null", O_RDONLY | O_CLOEXEC);
        assert_true(a >= 0 && b >= 0);
        kept = mem_take_fd(&b);
        assert_int_equal(b, -1);
        cleanup_free char *p = strdup("x");
        char *q = mem_take(p);
        assert_null(p);
        assert_string_equal(q, "x");
        free(q);
    }
    assert_int_equal(unit_open_fds(), before + 1);
    assert_int_equal(close(kept), 0);
}

static void test_arithmetic(void **state)
{
    (void)state;
    uint64_t v = 4711;
    assert_false(add_u64(UINT64_MAX, 1, &v));
    assert_false(mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
    assert_true(v == 4711);
    assert_true(add_u64(UINT64_MAX - 1, 1, &v) && v == UINT64_MAX);
    assert_true(mul_u64(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &v) &&
                v == UINT64_MAX - UINT32_MAX);
    assert_true(align_down(65535, 65536) == 0 && align_down(65536, 65536) == 65536);
    assert_true(align_up(0, 65536) == 0 && align_up(1, 65536) == 65536 &&
                align_up(65536, 65536) == 65536);
    assert_true(align_up(DISK_SIZE_MAX - 1, 65536) == DISK_SIZE_MAX);
}

static void test_vec(void **state)
{
    (void)state;
    NumVec v = {0};
    Err err = ERR_INIT;
    for (uint32_t i = 0; i < 10000; i++)
        assert_ok(num_vec_push(&v, i * 3, &err), &err);
    assert_int_equal(v.len, 10000);
    for (uint32_t i = 0; i < 10000; i++)
        assert_int_equal(v.items[i], i * 3);
    assert_fails(num_vec_reserve(&v, SIZE_MAX / 2, &err), &err, ERR_NO_MEMORY);
    assert_int_equal(v.len, 10000);
    assert_int_equal(v.items[9999], 29997);
    num_vec_clear(&v);
    assert_null(v.items);
    num_vec_clear(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zeroed),    cmocka_unit_test(test_text),
        cmocka_unit_test(test_ownership), cmocka_unit_test(test_arithmetic),
        cmocka_unit_test(test_vec),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
