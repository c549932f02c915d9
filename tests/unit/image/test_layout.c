// Names on disk: what is ours, exactly, and nothing else.
#include "image/layout.h"

#include "unit.h"

static void contexts(void **state)
{
    (void)state;
    const char *const good[] = {"ctx-web-20260102030405", "ctx-a.b_c-d-20260102030405", "ctx-1-00000000000000"};
    const char *const bad[] = {"",
                               "ctx-",
                               "ctx-web",
                               "ctx-web-2026010203040",
                               "ctx-web-202601020304055",
                               "ctx--20260102030405",
                               "ctx-20260102030405",
                               "ctx-.x-20260102030405",
                               "ctx-a/b-20260102030405",
                               "xctx-web-20260102030405",
                               "ctx-web-20260102030405 ",
                               "ctx-w\xc3\xa9-20260102030405",
                               "ctx--x-20260102030405"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(layout_is_context(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (layout_is_context(bad[i]))
            fail_msg("'%s' was accepted", bad[i]);
}

static void disks(void **state)
{
    (void)state;
    unsigned no = 7;
    assert_true(layout_disk_no("disk-0", &no));
    assert_int_equal(no, 0);
    assert_true(layout_disk_no("disk-99999", &no));
    assert_int_equal(no, 99999);
    const char *const bad[] = {"disk-", "disk-00", "disk-01", "disk-100000", "disk--1", "disk-1a", "disk-1 ", "Disk-1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(layout_disk_no(bad[i], &no));
    assert_int_equal(no, 99999);
}

static void names(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char out[LAYOUT_NAME];
    for (int k = 0; k < LAYOUT_KINDS; k++) {
        LayoutName n;
        assert_ok(layout_name((LayoutKind)k, "backup-x.partial-ab-17", NULL, out, &err), &err);
        assert_true(layout_parse(out, &n));
        assert_int_equal(n.kind, k);
        assert_string_equal(n.stem, "backup-x.partial-ab-17");
        assert_string_equal(n.attempt, "");
        if (k == LAYOUT_DELETED)
            continue;
        assert_ok(layout_name((LayoutKind)k, "backup-a.json-17", "0a1b", out, &err), &err);
        assert_true(layout_parse(out, &n));
        assert_int_equal(n.kind, k);
        assert_string_equal(n.stem, "backup-a.json-17");
        assert_string_equal(n.attempt, "0a1b");
    }
    assert_fails(layout_name(LAYOUT_RECORD, "../x", NULL, out, &err), &err, ERR_INVALID);
    assert_fails(layout_name(LAYOUT_RECORD, "backup-a-1", "A1", out, &err), &err, ERR_INVALID);
    assert_fails(layout_name(LAYOUT_RECORD, "backup-a-1", "", out, &err), &err, ERR_INVALID);
}

static void foreign(void **state)
{
    (void)state;
    const char *const bad[] = {"backup-a-1",
                               "backup-a-1.json.partial-",
                               "backup-a-1.json.partial-XY",
                               "backup-a-1.json.partial-0123456789abcdef0123456789abcdef0",
                               "backup-a-1.json.deleted.partial-ab",
                               "backup-a-1.json~",
                               "backup-a-1-full.qcow2.bak",
                               "backup-a-full.qcow2",
                               "backup-a-12345678901234567890-full.qcow2",
                               "backup-a/b-1-full.qcow2",
                               "backup-..-1-full.qcow2",
                               "my-backup-a-1-full.qcow2",
                               "backup--1.json",
                               ".json",
                               "backup-a-1-full.raw",
                               "notes.txt"};
    LayoutName n;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (layout_parse(bad[i], &n))
            fail_msg("'%s' was taken for ours", bad[i]);
    char longest[600];
    memset(longest, 'a', sizeof longest);
    memcpy(longest, "backup-", 7);
    memcpy(longest + sizeof longest - 8, "-1.json", 8);
    assert_false(layout_parse(longest, &n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contexts),
        cmocka_unit_test(disks),
        cmocka_unit_test(names),
        cmocka_unit_test(foreign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
