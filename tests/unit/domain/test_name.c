#include "unit.h"

#include "base/str.h"
#include "domain/name.h"

#define UUID "52D0eb97-27ad-4c3d-874a-c34e85f2ea95"

static void test_check(void **state)
{
    (void)state;
    char long255[256], long256[257];
    memset(long255, 'x', 255), long255[255] = '\0';
    memset(long256, 'x', 256), long256[256] = '\0';
    const char *const good[] = {
        "a", "pgtest1", "web server, 1: /\"'-disk", "Größe", "日本", " x ", long255, "..", "%2F"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        Err err = ERR_INIT;
        assert_ok(name_check("vm_name", good[i], &err), &err);
    }
    const char *const bad[] = {"",     " ",        "    ", long256,    "a\nb",     "a\x1b[2J",
                               "\x7f", "\xc2\x9b", "\xff", "\xc0\x80", "a\xe2\x82"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        assert_false(name_check("vm_name", bad[i], &err));
        assert_int_equal(err.code, ERR_INVALID);
        assert_true(str_starts(err.details, "vm_name ")); // says which field
        assert_true(str_is_utf8(err.details, strlen(err.details)));
    }
}

static void expect_slug(const char *name, const char *want)
{
    char out[NAME_SLUG];
    name_slug(name, UUID, out);
    assert_string_equal(out, want);
}

static void test_slug(void **state)
{
    (void)state;
    expect_slug("pgtest1", "pgtest1");
    expect_slug("Web-1.example_com", "Web-1.example_com");
    expect_slug("a..b", "a..b");
    expect_slug("web server", "web_server-52d0eb97");
    expect_slug("nbd:host:10809", "nbd_host_10809-52d0eb97"); // QEMU would take it for a protocol
    expect_slug("a/../../etc", "a_.._.._etc-52d0eb97");
    expect_slug(".", "_-52d0eb97");
    expect_slug("..", "_.-52d0eb97");
    expect_slug("-rf", "_rf-52d0eb97");
    expect_slug(".hidden", "_hidden-52d0eb97");
    expect_slug("日本", "_-52d0eb97");
    expect_slug("Größe", "Gr_e-52d0eb97");
}

static void test_slug_is_always_a_file_name(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    static const char alphabet[] = "aZ0._-/: %\xc3\xb6\n\"\\~";
    for (int i = 0; i < 5000; i++) {
        char name[256], out[NAME_SLUG], stem[NAME_STEM];
        size_t n = 1 + unit_random_below(&r, 255);
        size_t letters = unit_random_below(&r, 2) ? 3 : sizeof(alphabet) - 1;
        for (size_t k = 0; k < n; k++)
            name[k] = alphabet[unit_random_below(&r, letters)];
        name[n] = '\0';
        name_slug(name, UUID, out);
        assert_in_range(strlen(out), 1, 64);
        assert_int_equal(
            strspn(out, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"),
            strlen(out));
        assert_true(out[0] != '.' && out[0] != '-');
        assert_true(str_eq(out, name) || str_ends(out, "-52d0eb97"));
        char again[NAME_SLUG];
        name_slug(out, UUID, again); // a slug is its own
        assert_string_equal(again, out);
        Err err = ERR_INIT;
        assert_ok(name_stem("backup-x-1", out, stem, &err), &err);
    }
}

static void test_slug_length(void **state)
{
    (void)state;
    char name[256], out[NAME_SLUG];
    memset(name, 'x', 255), name[255] = '\0';
    name_slug(name, UUID, out);
    assert_int_equal(strlen(out), 64);
    assert_true(str_ends(out, "x-52d0eb97"));
    name[65] = '\0';
    name_slug(name, UUID, out);
    assert_true(str_ends(out, "-52d0eb97")); // cutting is a change
    name[64] = '\0';
    name_slug(name, UUID, out);
    assert_string_equal(out, name);
}

static void test_backup_id(void **state)
{
    (void)state;
    char id[NAME_BACKUP_ID] = "untouched", name[257], stem[NAME_STEM];
    Err err = ERR_INIT;
    assert_fails(name_backup_id("", 1, id, &err), &err, ERR_INVALID);
    assert_fails(name_backup_id("web", -1, id, &err), &err, ERR_INVALID);
    memset(name, 'x', 256), name[256] = '\0';
    assert_fails(name_backup_id(name, 1, id, &err), &err, ERR_INVALID);
    assert_string_equal(id, "untouched");
    assert_ok(name_backup_id("web: \"1\"", 1759900000, id, &err), &err);
    assert_string_equal(id, "backup-web: \"1\"-1759900000");
    assert_ok(name_check_job_id(id, &err), &err);
    assert_ok(name_stem(id, "web_1-52d0eb97", stem, &err), &err);
    assert_string_equal(stem, "backup-web_1-52d0eb97-1759900000");
    name[255] = '\0';
    assert_ok(name_backup_id(name, INT64_MAX, id, &err), &err);
    assert_true(str_ends(id, "x-9223372036854775807"));
    assert_ok(name_check_job_id(id, &err), &err);
    name[64] = '\0';
    assert_ok(name_stem(id, name, stem, &err), &err);
    assert_true(str_ends(stem, "x-9223372036854775807"));
}

static void test_stem_refuses(void **state)
{
    (void)state;
    static const char *const ids[] = {"",
                                      "backup",
                                      "backup-",
                                      "backup-web",
                                      "backup-web-",
                                      "backup-web-1x",
                                      "backup-web- 1",
                                      "backup-web-01",
                                      "backup-web-9223372036854775808",
                                      "replication-web-1",
                                      "Backup-web-1",
                                      "backup-1"};
    static const char *const slugs[] = {"", ".", "..", "-x", "a/b", "a b", "x:y", "gr\xc3\xb6"};
    char stem[NAME_STEM] = "untouched";
    Err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        assert_fails(name_stem(ids[i], "web", stem, &err), &err, ERR_INVALID);
    for (size_t i = 0; i < ARRAY_LEN(slugs); i++)
        assert_fails(name_stem("backup-web-1", slugs[i], stem, &err), &err, ERR_INTERNAL);
    assert_string_equal(stem, "untouched");
    assert_ok(name_stem("backup-a-b-0", "a-b", stem, &err), &err);
    assert_string_equal(stem, "backup-a-b-0");
}

static void test_job_id(void **state)
{
    (void)state;
    char id[301];
    Err err = ERR_INIT;
    memset(id, 'x', 300), id[300] = '\0';
    assert_fails(name_check_job_id(id, &err), &err, ERR_INVALID);
    id[299] = '\0';
    assert_ok(name_check_job_id(id, &err), &err);
    assert_fails(name_check_job_id("", &err), &err, ERR_INVALID);
    assert_fails(name_check_job_id("a\nb", &err), &err, ERR_INVALID);
    assert_fails(name_check_job_id("\xff", &err), &err, ERR_INVALID);
    assert_ok(name_check_job_id("replication-web-1", &err), &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_slug),
        cmocka_unit_test(test_slug_is_always_a_file_name),
        cmocka_unit_test(test_slug_length),
        cmocka_unit_test(test_backup_id),
        cmocka_unit_test(test_stem_refuses),
        cmocka_unit_test(test_job_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
