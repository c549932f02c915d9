#include "unit.h"

#include "base/mem.h"
#include "codec/trail.h"

static const TrailRow row = {.id = 7,
                             .at = "2026-01-02T03:04:05.000006Z",
                             .actor = "night",
                             .role = "operator",
                             .remote = "127.0.0.1",
                             .method = "POST",
                             .path = "/api/v1/backups",
                             .object = "backup-a-1",
                             .status = 201};

// Computed by sha256sum.
static void test_a_known_one(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char hash[TRAIL_HASH_TEXT];
    assert_ok(trail_hash(&row, TRAIL_FIRST, hash, &err), &err);
    assert_string_equal(hash, "d6a0eabee2a60b38aa690f4018dd556f4d8d26b220fa4193a897513591ef9cdf");
}

static void test_each_member_counts(void **state)
{
    (void)state;
    TrailRow rows[10];
    char hashes[11][TRAIL_HASH_TEXT];
    Err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        rows[i] = row;
    rows[1].id = 8;
    rows[2].at = "2026-01-02T03:04:05.000007Z";
    rows[3].actor = "nigh";
    rows[4].role = "toperator"; // no blur between members
    rows[5].remote = "127.0.0.2";
    rows[6].method = "PUT";
    rows[7].path = "";
    rows[8].status = 202;
    rows[9].object = "";
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        assert_ok(trail_hash(&rows[i], TRAIL_FIRST, hashes[i], &err), &err);
    assert_ok(trail_hash(&row, hashes[0], hashes[10], &err), &err);
    for (size_t i = 0; i < ARRAY_LEN(hashes); i++)
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(hashes[i], hashes[k]);
}

static void test_what_is_refused(void **state)
{
    (void)state;
    char hash[TRAIL_HASH_TEXT] = "as it was";
    TrailRow missing = row, two_lines = row;
    Err err = ERR_INIT;
    missing.remote = NULL;
    two_lines.path = "a\nb";
    assert_fails(trail_hash(&missing, TRAIL_FIRST, hash, &err), &err, ERR_INVALID);
    err_clear(&err);
    assert_fails(trail_hash(&two_lines, TRAIL_FIRST, hash, &err), &err, ERR_INVALID);
    assert_string_equal(hash, "as it was");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_known_one), cmocka_unit_test(test_each_member_counts),
                                       cmocka_unit_test(test_what_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
