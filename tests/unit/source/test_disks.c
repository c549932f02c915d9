#include "unit.h"

#include "source/qemu/disks.h"
#include "source/qemu/sweep.h"

#define IMAGE(size)                                                                     \
    "\"image\": {\"filename\": \"/d\", \"format\": \"qcow2\", \"virtual-size\": " #size \
    ", \"actual-size\": 4096, \"format-specific\": {\"data\": {\"compat\": \"1.1\"}}}"
#define INSERTED(node, size)                                                          \
    "\"inserted\": {\"node-name\": \"" node "\", \"ro\": false, \"drv\": \"qcow2\", " \
    "\"backing_file_depth\": 0, " IMAGE(size) "}"
#define DISK(qdev, node) "{\"qdev\": \"" qdev "\", \"removable\": false, " INSERTED(node, 1048576) "}"

static bool read_disks(const char *text, GuestDiskVec *v, json_t **keep, Err *err)
{
    *keep = json_loads(text, 0, NULL);
    assert_non_null(*keep);
    return guest_disks(*keep, v, err);
}

static void test_keys(void **state)
{
    (void)state;
    GuestDiskVec v = {0};
    Err err = ERR_INIT;
    json_t *keep;
    assert_ok(
        read_disks("[" DISK("/machine/peripheral/disk0/virtio-backend", "n0") ", " DISK("scsi1", "n1") ", " DISK(
                       "/machine/peripheral/disk10", "n2") ", " DISK("/machine/unattached/device[7]", "#block123") "]",
                   &v, &keep, &err),
        &err);
    static const char *const keys[] = {"disk0", "scsi1", "disk10", "unattached/device[7]"};
    assert_int_equal(v.len, 4);
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(v.items[i].key, keys[i]);
    assert_string_equal(v.items[3].node, "#block123");
    assert_int_equal(v.items[0].size, 1 << 20);
    assert_int_equal(v.items[0].allocated, 4096);
    assert_true(v.items[0].may_persist);
    guest_disks_clear(&v);
    json_decref(keep);
}

static void test_what_is_no_disk(void **state)
{
    (void)state;
    GuestDiskVec v = {0};
    Err err = ERR_INIT;
    json_t *keep;
    assert_ok(read_disks("[{\"device\": \"job\", " INSERTED(
                             "n", 512) "}," // no guest's device
                                       "{\"qdev\": \"cd\", \"removable\": true, " INSERTED(
                                           "n", 512) "},"
                                                     "{\"qdev\": \"empty\", \"removable\": false},"
                                                     "{\"qdev\": \"nothing\", " INSERTED("n", 0) "},"
                                                                                                 "7]",
                         &v, &keep, &err),
              &err);
    assert_int_equal(v.len, 0);
    json_decref(keep);
}

static void test_read_only(void **state)
{
    (void)state;
    GuestDiskVec v = {0};
    Err err = ERR_INIT;
    json_t *keep;
    assert_ok(
        read_disks("[" DISK("a", "n0") ", {\"qdev\": \"b\", \"inserted\": {\"node-name\": \"n1\", \"ro\": true, " IMAGE(
                       512) "}}]",
                   &v, &keep, &err),
        &err);
    assert_int_equal(v.len, 2);
    assert_false(v.items[0].read_only);
    assert_true(v.items[1].read_only);
    guest_disks_clear(&v);
    json_decref(keep);
}

static void test_where_bitmaps_can_live(void **state)
{
    (void)state;
    static const struct {
        const char *driver, *compat;
        bool may;
    } cases[] = {{"qcow2", "1.1", true}, {"qcow2", "0.10", false}, {"raw", "1.1", false}, {"throttle", "1.1", false}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        GuestDiskVec v = {0};
        Err err = ERR_INIT;
        json_t *list = json_pack("[{s:s, s:{s:s, s:b, s:s, s:i, s:{s:s, s:I, s:i, s:{s:{s:s}}}}}]", "qdev", "d",
                                 "inserted", "node-name", "n", "ro", 0, "drv", cases[i].driver, "backing_file_depth", 1,
                                 "image", "filename", "/d", "virtual-size", (json_int_t)1 << 30, "actual-size", 512,
                                 "format-specific", "data", "compat", cases[i].compat);
        assert_ok(guest_disks(list, &v, &err), &err);
        assert_int_equal(v.items[0].may_persist, cases[i].may);
        assert_int_equal(v.items[0].allocated, 1 << 30); // what lies in backing files is not told
        guest_disks_clear(&v);
        json_decref(list);
    }
}

static void test_answers_that_are_none(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        ErrCode code;
    } cases[] = {
        {"{}", ERR_PROTOCOL},
        {"[{\"qdev\": \"d\", \"inserted\": {}}]", ERR_PROTOCOL},
        {"[{\"qdev\": \"d\", \"inserted\": {\"node-name\": \"n\", "
         "\"image\": {\"filename\": \"f\", \"virtual-size\": -1}}}]",
         ERR_PROTOCOL},
        {"[{\"qdev\": \"d\", \"inserted\": {\"node-name\": \"n\", "
         "\"image\": {\"filename\": \"f\", \"virtual-size\": \"1\"}}}]",
         ERR_PROTOCOL},
        {"[" DISK("/machine/peripheral/d/a", "n") "," DISK("/machine/peripheral/d/b", "m") "]", ERR_CONFLICT},
        {"[" DISK("/machine/peripheral/", "n") "]", ERR_INVALID},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        GuestDiskVec v = {0};
        Err err = ERR_INIT;
        json_t *keep;
        assert_fails(read_disks(cases[i].text, &v, &keep, &err), &err, cases[i].code);
        json_decref(keep);
    }
}

static void test_names_fit_qemu(void **state)
{
    (void)state;
    char prefix[SWEEP_NAME];
    sweep_vm_prefix("ABCDEF01-2345-4789-8111-111111111111", prefix);
    assert_string_equal(prefix, "sndns-abcdef012345-");
    assert_true(strlen(prefix) + strlen("123456-w999") < SWEEP_NAME);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_what_is_no_disk),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_where_bitmaps_can_live),
        cmocka_unit_test(test_answers_that_are_none),
        cmocka_unit_test(test_names_fit_qemu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
