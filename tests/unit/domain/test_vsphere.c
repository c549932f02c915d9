#include "unit.h"

#include "base/mem.h"
#include "base/str.h"
#include "domain/vsphere.h"

static void test_addresses(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char *const good[] = {
        "vc.example.org", "vc",        "192.0.2.1", "192.0.2.1:443", "vc.example.org:8443",
        "[2001:db8::1]",  "[::1]:443", "vc_1-a.lan"};
    // the last ones lead elsewhere in a URL
    static const char *const bad[] = {"",
                                      "vc:",
                                      "vc:0",
                                      "vc:65536",
                                      "vc:x",
                                      "[::1",
                                      "::1",
                                      "[]",
                                      ":443",
                                      "vc:443:1",
                                      "-vc",
                                      "vc example",
                                      "vc\n",
                                      "[::1]x",
                                      "vc/path",
                                      "u@vc",
                                      "vc?x",
                                      "vc#x",
                                      "https://vc",
                                      "u:p@vc",
                                      "vc%2f",
                                      "[::1%eth0]",
                                      "\xc3\xbc.example"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_ok(vsphere_check_address(good[i], &err), &err);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(vsphere_check_address(bad[i], &err), &err, ERR_INVALID);
    char longest[300];
    memset(longest, 'a', sizeof(longest));
    longest[256] = '\0';
    assert_fails(vsphere_check_address(longest, &err), &err, ERR_INVALID);
    longest[255] = '\0';
    assert_ok(vsphere_check_address(longest, &err), &err);
}

static void test_vms(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char *const good[] = {"vm-16", "/DC0/vm/NAME", "/D\xc3\xbc/vm/a b/c%2fd", "/x"};
    static const char *const bad[] = {
        "", "/", "vm-", "vm-1x", "NAME", "snapshot-4", "vm-123456789012345678901", "/DC/vm/a\nb", "/\xff"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_ok(vsphere_check_vm(good[i], &err), &err);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(vsphere_check_vm(bad[i], &err), &err, ERR_INVALID);
    assert_true(vsphere_is_moref("vm-1"));
    assert_false(vsphere_is_moref("/vm-1"));
}

static VsphereDisk disk(int32_t key)
{
    return (VsphereDisk){.key = key,
                         .backing = "FlatVer2",
                         .disk_mode = "persistent",
                         .compatibility_mode = "",
                         .sharing = "sharingNone",
                         .bus_sharing = "noSharing"};
}

static VsphereVm fine_vm(const VsphereDisk *disks, size_t len)
{
    return (VsphereVm){.hardware_version = 19,
                       .is_described = true,
                       .connection_state = "connected",
                       .cbt_on = true,
                       .disks = disks,
                       .disks_len = len};
}

static void assert_one(const VsphereVm *vm, const char *code)
{
    VsphereObstacle found[VSPHERE_VM_OBSTACLES + 2];
    assert_int_equal(vsphere_obstacles(vm, found), 1);
    assert_string_equal(found[0].code, code);
    assert_true(strlen(found[0].text) > 10);
}

static void test_obstacles_of_a_vm(void **state)
{
    (void)state;
    const VsphereDisk one = disk(2000);
    VsphereObstacle found[VSPHERE_VM_OBSTACLES + 1];
    VsphereVm vm = fine_vm(&one, 1);
    assert_int_equal(vsphere_obstacles(&vm, found), 0);
    vm.snapshots = 3; // tracking is on: snapshots do no harm
    assert_int_equal(vsphere_obstacles(&vm, found), 0);
    vm.cbt_on = false;
    assert_one(&vm, "cbt_off_with_snapshots");
    vm.snapshots = 0; // off, but the first backup may switch it on
    assert_int_equal(vsphere_obstacles(&vm, found), 0);

    vm.hardware_version = 6;
    assert_one(&vm, "hardware_version");
    vm.cbt_unsupported = true; // one word for one cause
    assert_one(&vm, "hardware_version");
    vm.hardware_version = 7;
    assert_one(&vm, "cbt_not_supported");
    vm.cbt_unsupported = false;
    assert_int_equal(vsphere_obstacles(&vm, found), 0);
    vm.hardware_version = 0; // not known: not judged
    assert_int_equal(vsphere_obstacles(&vm, found), 0);
    vm.consolidation_needed = true;
    assert_one(&vm, "consolidation_needed");
    vm.consolidation_needed = false;
    vm.is_template = true;
    assert_one(&vm, "template");
    vm.is_template = false;
    vm.connection_state = "orphaned";
    assert_one(&vm, "not_connected");
    vm.connection_state = "";
    assert_int_equal(vsphere_obstacles(&vm, found), 0);
    vm.disks_len = 0;
    assert_one(&vm, "no_disks");
    vm.is_described = false; // no word on disks, snapshots and tracking, of which nothing is known
    vm.cbt_on = false;
    assert_one(&vm, "not_described");
}

static void test_obstacles_of_disks(void **state)
{
    (void)state;
    enum { N = 10 };
    VsphereDisk disks[N];
    VsphereObstacle found[VSPHERE_VM_OBSTACLES + N];
    for (int32_t i = 0; i < N; i++)
        disks[i] = disk(2000 + i);
    disks[1].disk_mode = "independent_persistent";
    disks[2].disk_mode = "independent_nonpersistent";
    disks[3].backing = "RawDiskMappingVer1";
    disks[3].compatibility_mode = "virtualMode"; // is tracked
    disks[4].backing = "RawDiskMappingVer1";
    disks[4].compatibility_mode = "physicalMode";
    disks[4].disk_mode = "independent_persistent"; // one word a disk, the one that cannot be mended
    disks[5].backing = "LocalPMem";
    disks[6].backing = "SeSparse"; // a snapshot's delta on VMFS 6
    disks[7].sharing = "sharingMultiWriter";
    disks[8].bus_sharing = "physicalSharing";
    disks[9].sharing = disks[9].bus_sharing = "";
    const VsphereVm vm = fine_vm(disks, N);
    static const char *const codes[] = {"independent_disk", "independent_disk", "physical_rdm",
                                        "unknown_backing",  "shared_disk",      "shared_disk"};
    static const int32_t keys[] = {2001, 2002, 2004, 2005, 2007, 2008};
    assert_int_equal(vsphere_obstacles(&vm, found), ARRAY_LEN(codes));
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        assert_string_equal(found[i].code, codes[i]);
        assert_int_equal(found[i].disk->key, keys[i]);
    }
}

// All at once fit the array that the header asks for.
static void test_as_many_as_can_be(void **state)
{
    (void)state;
    VsphereDisk bad = disk(2000);
    bad.disk_mode = "independent_persistent";
    VsphereObstacle found[VSPHERE_VM_OBSTACLES + 1];
    const VsphereVm vm = {.hardware_version = 4,
                          .is_described = true,
                          .connection_state = "invalid",
                          .is_template = true,
                          .consolidation_needed = true,
                          .snapshots = 1,
                          .disks = &bad,
                          .disks_len = 1};
    size_t n = vsphere_obstacles(&vm, found);
    assert_int_equal(n, 6);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(found[i].code, found[j].code);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),

        cmocka_unit_test(test_vms),
        cmocka_unit_test(test_obstacles_of_a_vm),
        cmocka_unit_test(test_obstacles_of_disks),
        cmocka_unit_test(test_as_many_as_can_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
