#include "unit.h"

#include "base/uuid.h"

static void test_new(void **state)
{
    (void)state;
    char a[UUID_TEXT] = "", b[UUID_TEXT] = "";
    static const char variants[] = "89ab";
    unsigned seen = 0;
    for (int i = 0; i < 200; i++) {
        Err err = ERR_INIT;
        memcpy(b, a, sizeof(a));
        assert_ok(uuid_new(a, &err), &err);
        assert_true(uuid_is_valid(a));
        assert_string_not_equal(a, b);
        assert_int_equal(a[14], '4');
        assert_non_null(strchr(variants, a[19]));
        seen |= 1U << (strchr(variants, a[19]) - variants);
        for (const char *p = a; *p; p++)
            assert_false(*p >= 'A' && *p <= 'F');
    }
    assert_true(__builtin_popcount(seen) > 1);
}

static void test_is_valid(void **state)
{
    (void)state;
    assert_true(uuid_is_valid("52d0eb97-27ad-4c3d-874a-c34e85f2ea95"));
    assert_true(uuid_is_valid("52D0EB97-27AD-4C3D-874A-C34E85F2EA95"));
    assert_true(uuid_is_valid("00000000-0000-0000-0000-000000000000"));
    static const char *const bad[] = {
        "",
        "5",
        "52d0eb97",
        "52d0eb9727ad4c3d874ac34e85f2ea95",
        "52d0eb97-27ad-4c3d-874a-c34e85f2ea9",
        "52d0eb97-27ad-4c3d-874a-c34e85f2ea955",
        "52d0eb97-27ad-4c3d-874a-c34e85f2ea9g",
        "52d0eb97-27ad-4c3d-874ac-34e85f2ea95",
        "{52d0eb97-27ad-4c3d-874a-c34e85f2ea95}",
        "52 d0 eb 97 27 ad 4c 3d-87 4a c3 4e ",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(uuid_is_valid(bad[i]));
}

static void test_random_bytes(void **state)
{
    (void)state;
    // Above 256 bytes getrandom may be interrupted half way: every part must be filled.
    enum { N = 100000 };
    unsigned char *p = calloc(N, 1);
    assert_non_null(p);
    Err err = ERR_INIT;
    assert_ok(uuid_random_bytes(p, N, &err), &err);
    for (size_t i = 0; i + 64 <= N; i += 64) {
        static const unsigned char zeros[64];
        assert_memory_not_equal(p + i, zeros, 64);
    }
    assert_ok(uuid_random_bytes(p, 0, &err), &err);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new),
        cmocka_unit_test(test_is_valid),
        cmocka_unit_test(test_random_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
