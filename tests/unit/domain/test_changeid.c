#include "unit.h"

#include "domain/changeid.h"

#define UUID "52d0eb97-27ad-4c3d-874a-c34e85f2ea95"

static void test_check(void **state)
{
    (void)state;
    char longest[257];
    memset(longest, 'x', 256);
    longest[1] = '/';
    longest[255] = longest[256] = '\0';
    const char *const good[] = {UUID "/446", "52 3c ec 11 9e 2c 4c 3d-87 4a c3 4e 85 f2 ea 95/446",
                                "a/b", "*/0", longest};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        Err err = ERR_INIT;
        assert_ok(changeid_check(good[i], &err), &err);
    }
    char above[258];
    memset(above, 'x', 257);
    above[1] = '/';
    above[256] = above[257] = '\0';
    const char *const bad[] = {"",
                               "/",
                               "a",
                               UUID,
                               UUID "/",
                               "/446",
                               "a/b/c",
                               "a//b",
                               "a/b\n",
                               "a\t/b",
                               "a/\x7f",
                               " a/b",
                               "a/b ",
                               "gr\xc3\xb6\xc3\x9f"
                               "e/1",
                               "a\x80/b",
                               above};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        assert_fails(changeid_check(bad[i], &err), &err, ERR_INVALID);
    }
}

static void test_mint(void **state)
{
    (void)state;
    char out[CHANGEID_MINTED] = "untouched";
    Err err = ERR_INIT;
    assert_fails(changeid_mint("not a uuid", 1, out, &err), &err, ERR_INTERNAL);
    assert_fails(changeid_mint(UUID, 0, out, &err), &err, ERR_INTERNAL);
    assert_string_equal(out, "untouched");
    assert_ok(changeid_mint("52D0EB97-27AD-4C3D-874A-C34E85F2EA95", UINT64_MAX, out, &err), &err);
    assert_string_equal(out, UUID "/18446744073709551615");
    assert_ok(changeid_check(out, &err), &err);
}

static void test_parse(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 500; i++) {
        char id[CHANGEID_MINTED], uuid[37] = "";
        uint64_t want = (unit_random_next(&r) >> unit_random_below(&r, 64)) | 1, sequence = 0;
        Err err = ERR_INIT;
        assert_ok(changeid_mint(UUID, want, id, &err), &err);
        assert_ok(changeid_parse(id, uuid, &sequence, &err), &err);
        assert_string_equal(uuid, UUID);
        assert_true(sequence == want);
    }
    static const char *const bad[] = {
        "",
        "/",
        UUID,
        UUID "/",
        UUID "/0",
        UUID "/01",
        UUID "/-1",
        UUID "/1 ",
        UUID "/18446744073709551616",
        UUID "/1/1",
        "52D0EB97-27AD-4C3D-874A-C34E85F2EA95/1",              // not as it is minted
        "52 3c ec 11 9e 2c 4c 3d-87 4a c3 4e 85 f2 ea 95/446", // VMware's own
        "a/1",
        UUID "0/1",
        " " UUID "/1",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char uuid[37] = "x";
        uint64_t sequence = 4711;
        Err err = ERR_INIT;
        assert_fails(changeid_parse(bad[i], uuid, &sequence, &err), &err, ERR_INVALID);
        assert_string_equal(uuid, "x");
        assert_true(sequence == 4711);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_mint),
        cmocka_unit_test(test_parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
