// VMs, their paths, disks and snapshots; privileges.
#include "fake_soap.h"

#define VAL(name, value) "<propSet><name>" name "</name><val>" value "</val></propSet>"
#define OBJ(type, moref, props) "<objects><obj type=\"" type "\">" moref "</obj>" props "</objects>"

static void objects(const char *method, const char *inside)
{
    Err err = ERR_INIT;
    cleanup_free char *text = mem_printf(&err, "<returnval>%s</returnval>", inside);
    (void)fake_answer(method, text);
}

static void a_vm_as_recorded(void **state)
{
    FakeSession *s = *state;
    VimVm vm = {0};
    fake_again();
    fake_fixture("09-VM-props");
    assert_ok(vim_vm(s->vim, "vm-62", &vm, &s->err), &s->err);
    fake_assert_asked(0, "<objectSet><obj type=\"VirtualMachine\">vm-62</obj>"); // and its folders, besides
    assert_string_equal(vm.moref, "vm-62");
    assert_string_equal(vm.vmx_file, "[LocalDS_0] DC0_H0_VM0/DC0_H0_VM0.vmx");
    assert_int_equal(vm.tracking, VIM_YES);
    assert_int_equal(vm.tracking_supported, VIM_YES);
    assert_true(vm.is_described);
    assert_int_equal(vm.disks.len, 1);
    const VimDisk *d = &vm.disks.items[0];
    assert_int_equal(d->key, 204);
    assert_int_equal(d->capacity, UINT64_C(10737418240));
    assert_string_equal(d->label, "disk-202-0");
    assert_string_equal(d->backing, "FlatVer2");
    assert_string_equal(d->file, "[LocalDS_0] DC0_H0_VM0/disk1.vmdk");
    assert_string_equal(d->disk_mode, "persistent");
    assert_string_equal(d->change_id, ""); // vcsim gives none
    assert_string_equal(d->bus_sharing, "noSharing");
    assert_string_equal(vm.power_state, ""); // not said: never NULL
    assert_string_equal(vm.path, "");        // its folders were not told
    vim_vm_clear(&vm);
}

static void a_snapshots_disks(void **state)
{
    FakeSession *s = *state;
    VimDisks disks = {0};
    static const char *const recorded[] = {"pathSet", NULL};
    fake_again();
    fake_fixture("15-Snapshot-config");
    assert_ok(vim_snapshot_disks(s->vim, "snapshot-79", &disks, &s->err), &s->err);
    fake_assert_like(0, "15-Snapshot-config", recorded);
    assert_int_equal(disks.len, 1);
    assert_int_equal(disks.items[0].key, 204);
    vim_disks_clear(&disks);
    // Without the property there is no telling: not a VM without disks
    fake_again();
    objects("RetrievePropertiesEx",
            OBJ("VirtualMachineSnapshot", "snapshot-79", "<missingSet><path>config</path></missingSet>"));
    assert_fails(vim_snapshot_disks(s->vim, "snapshot-79", &disks, &s->err), &s->err, ERR_FORBIDDEN);
    fake_again();
    fake_answer("RetrievePropertiesEx", "");
    assert_fails(vim_snapshot_disks(s->vim, "snapshot-79", &disks, &s->err), &s->err, ERR_FORBIDDEN);
}

static bool devices(FakeSession *s, const char *inside, VimDisks *ret)
{
    Err err = ERR_INIT;
    cleanup_free char *text = mem_printf(&err,
                                         "<returnval><objects><obj type=\"VirtualMachineSnapshot\">snapshot-1</obj>"
                                         "<propSet><name>config.hardware.device</name><val>%s</val></propSet></objects>"
                                         "</returnval>",
                                         inside);
    fake_again();
    fake_answer("RetrievePropertiesEx", text);
    return vim_snapshot_disks(s->vim, "snapshot-1", ret, &s->err);
}

static void disks_of_all_kinds(void **state)
{
    FakeSession *s = *state;
    VimDisks disks = {0};
    // A delta's own backing counts, not the one that it rests on; controllers come before or after
    static const char all[] =
        "<VirtualDevice xsi:type='VirtualDisk'><key>2016</key>"
        "<deviceInfo><label>Hard disk 2 &lt;b&gt;</label></deviceInfo>"
        "<backing xsi:type='VirtualDiskSeSparseBackingInfo'><fileName>[d] v/v_1-000001.vmdk</fileName>"
        "<uuid>6000C29a</uuid><changeId>52 66 8c 2d a7 c5 c5 68-c5 d2 8d 04 79 f5 fd 7d/5490</changeId>"
        "<parent><fileName>[d] v/v_1.vmdk</fileName><uuid>other</uuid><changeId>other/1</changeId></parent>"
        "<sharing>sharingMultiWriter</sharing></backing><controllerKey>1001</controllerKey>"
        "<capacityInKB>1</capacityInKB><capacityInBytes>1099511627776</capacityInBytes></VirtualDevice>"
        "<VirtualDevice xsi:type='ParaVirtualSCSIController'><key>1001</key><sharedBus>physicalSharing</sharedBus>"
        "</VirtualDevice>"
        "<VirtualDevice xsi:type='VirtualDisk'><key>-3</key>"
        "<backing xsi:type='VirtualDiskRawDiskMappingVer1BackingInfo'>"
        "<compatibilityMode>physicalMode</compatibilityMode><diskMode>independent_persistent</diskMode></backing>"
        "<capacityInKB>2048</capacityInKB></VirtualDevice>"
        "<VirtualDevice xsi:type='VirtualUSBController'><key>7000</key></VirtualDevice>"
        "<VirtualDevice xsi:type='VirtualDisk'><key>3000</key></VirtualDevice>";
    assert_ok(devices(s, all, &disks), &s->err);
    assert_int_equal(disks.len, 3);
    const VimDisk *d = disks.items;
    assert_int_equal(d[0].key, 2016);
    assert_string_equal(d[0].label, "Hard disk 2 <b>");
    assert_string_equal(d[0].file, "[d] v/v_1-000001.vmdk");
    assert_string_equal(d[0].uuid, "6000C29a");
    assert_string_equal(d[0].change_id, "52 66 8c 2d a7 c5 c5 68-c5 d2 8d 04 79 f5 fd 7d/5490"); // opaque, blanks too
    assert_string_equal(d[0].backing, "SeSparse");
    assert_string_equal(d[0].sharing, "sharingMultiWriter");
    assert_string_equal(d[0].bus_sharing, "physicalSharing");
    assert_int_equal(d[0].capacity, UINT64_C(1) << 40);
    assert_int_equal(d[1].key, -3);
    assert_string_equal(d[1].backing, "RawDiskMappingVer1");
    assert_string_equal(d[1].compatibility_mode, "physicalMode");
    assert_string_equal(d[1].disk_mode, "independent_persistent");
    assert_int_equal(d[1].capacity, 2 << 20); // an old server says only KiB
    assert_string_equal(d[2].backing, "");
    assert_int_equal(d[2].capacity, 0);
    vim_disks_clear(&disks);
    static const char *const bad[] = {
        "<d xsi:type='VirtualDisk'><capacityInBytes>1</capacityInBytes></d>",                   // no key
        "<d xsi:type='VirtualDisk'><key>1</key></d><d xsi:type='VirtualDisk'><key>1</key></d>", // two of one
        "<d xsi:type='VirtualDisk'><key>99999999999</key></d>",
        "<d xsi:type='VirtualDisk'><key>1</key><capacityInBytes>-1</capacityInBytes></d>",
        "<d xsi:type='VirtualDisk'><key>1</key><capacityInBytes>9223372036854775807</capacityInBytes></d>",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(devices(s, bad[i], &disks), &s->err, ERR_PROTOCOL);
    assert_ok(devices(s, "", &disks), &s->err);
    assert_int_equal(disks.len, 0);
}

static void a_vm_with_its_path_and_snapshots(void **state)
{
    FakeSession *s = *state;
    VimVm vm = {0};
    fake_again();
    fake_answer("FindByInventoryPath", "<returnval type=\"VirtualMachine\">vm-7</returnval>");
    objects("RetrievePropertiesEx",
            OBJ("VirtualMachine", "vm-7",
                VAL("config.changeTrackingEnabled", "false") VAL("config.template", "true") VAL(
                    "config.version", "vmx-19") VAL("datastore",
                                                    "<ManagedObjectReference type=\"Datastore\">"
                                                    "datastore-1</ManagedObjectReference>"
                                                    "<ManagedObjectReference>datastore-2"
                                                    "</ManagedObjectReference>") VAL("name", "web%2f1 100%25 %41")
                    VAL("parent", "group-v4") VAL("runtime.consolidationNeeded", "true") VAL("runtime.host", "host-3")
                        VAL("snapshot",
                            "<currentSnapshot>snapshot-3</currentSnapshot>"
                            "<rootSnapshotList><snapshot>snapshot-1</snapshot><vm>vm-7</vm><name>one</name>"
                            "<description>d &amp; e</description><id>1</id><createTime>2026-01-02T03:04:05Z"
                            "</createTime><quiesced>false</quiesced>"
                            "<childSnapshotList><snapshot>snapshot-2</snapshot><name>two</name>"
                            "<quiesced>true</quiesced><childSnapshotList><snapshot>snapshot-3</snapshot>"
                            "<name>three</name></childSnapshotList></childSnapshotList>"
                            "<childSnapshotList><snapshot>snapshot-4</snapshot></childSnapshotList>"
                            "</rootSnapshotList>"))
                OBJ("Folder", "group-v4", VAL("name", "a%2fb") VAL("parent", "group-v3"))
                    OBJ("Folder", "group-v3", VAL("name", "vm") VAL("parent", "datacenter-2"))
                        OBJ("Datacenter", "datacenter-2", VAL("name", "DC0") VAL("parent", "group-d1"))
                            OBJ("Folder", "group-d1", VAL("name", "Datacenters")));
    assert_ok(vim_find(s->vim, "/DC0/vm/a%2fb/web%2f1", &vm, &s->err), &s->err);
    fake_assert_asked(0, "<inventoryPath>DC0/vm/a%2fb/web%2f1</inventoryPath>");
    fake_assert_asked(1, "<obj type=\"VirtualMachine\">vm-7</obj>");
    assert_string_equal(vm.name, "web/1 100% %41");
    assert_string_equal(vm.path, "/DC0/vm/a%2fb/web%2f1 100%25 %41"); // as it is asked for
    assert_int_equal(vm.hardware_version, 19);
    assert_true(vm.is_template && vm.consolidation_needed && !vm.is_described);
    assert_int_equal(vm.tracking, VIM_NO);
    assert_int_equal(vm.tracking_supported, VIM_UNSAID);
    assert_int_equal(vm.datastores_len, 2);
    assert_string_equal(vm.datastores[1], "datastore-2");
    assert_string_equal(vm.host, "host-3");
    assert_string_equal(vm.current_snapshot, "snapshot-3");
    assert_int_equal(vm.snapshots_len, 4);
    const VimSnapshot *n = vm.snapshots;
    assert_string_equal(n[0].name, "one");
    assert_string_equal(n[0].description, "d & e");
    assert_string_equal(n[0].created, "2026-01-02T03:04:05Z");
    assert_int_equal(n[0].parent, -1);
    assert_string_equal(n[1].name, "two");
    assert_true(n[1].quiesced && !n[0].quiesced);
    assert_int_equal(n[1].parent, 0);
    assert_string_equal(n[2].moref, "snapshot-3");
    assert_int_equal(n[2].parent, 1);
    assert_string_equal(n[3].moref, "snapshot-4");
    assert_int_equal(n[3].parent, 0);
    vim_vm_clear(&vm);
}

static bool finds(FakeSession *s, const char *what)
{
    VimVm vm = {0};
    bool fine = vim_find(s->vim, what, &vm, &s->err);
    vim_vm_clear(&vm);
    return fine;
}

static void what_is_not_found(void **state)
{
    FakeSession *s = *state;
    fake_again();
    fake_fixture("05-FindByInventoryPath-none");
    assert_fails(finds(s, "/DC0/vm/nosuch"), &s->err, ERR_NOT_FOUND);
    fake_assert_like(0, "05-FindByInventoryPath-none", NULL);
    fake_again();
    fake_answer("FindByInventoryPath", "<returnval type=\"Folder\">group-v3</returnval>");
    assert_fails(finds(s, "/DC0/vm"), &s->err, ERR_NOT_FOUND); // no VM
    fake_again();
    fake_fixture("30-Reconfig-by-nonexist");
    assert_fails(finds(s, "vm-9999"), &s->err, ERR_NOT_FOUND);
    fake_again();
    fake_answer("RetrievePropertiesEx", "");
    assert_fails(finds(s, "vm-9999"), &s->err, ERR_NOT_FOUND);
}

typedef struct Listed {
    size_t n;
    char paths[8][128], morefs[8][32], hosts[8][32];
    size_t refuse_at;
} Listed;

static bool on_vm(void *ctx, const VimVm *vm, Err *err)
{
    Listed *l = ctx;
    assert_true(l->n < 8);
    (void)snprintf(l->paths[l->n], sizeof(l->paths[0]), "%s", vm->path);
    (void)snprintf(l->morefs[l->n], sizeof(l->morefs[0]), "%s", vm->moref);
    (void)snprintf(l->hosts[l->n], sizeof(l->hosts[0]), "%s", vm->host_name);
    return ++l->n != l->refuse_at || err_set(err, ERR_NO_SPACE, "enough");
}

static void places(void)
{
    fake_answer("CreateContainerView", "<returnval type=\"ContainerView\">session[1]view-1</returnval>");
    objects("RetrievePropertiesEx",
            "<token>t1</token>" OBJ("Datacenter", "datacenter-2", VAL("name", "DC0") VAL("parent", "group-d1"))
                OBJ("HostSystem", "host-3", VAL("name", "esx3")));
    objects("ContinueRetrievePropertiesEx",
            OBJ("Folder", "group-v3", VAL("name", "vm") VAL("parent", "datacenter-2"))
                OBJ("VirtualApp", "resgroup-v9",
                    VAL("name", "app") VAL("parent", "resgroup-1") VAL("parentFolder", "group-v3")));
    fake_answer("DestroyView", "");
}

static void lists_in_pages(void **state)
{
    FakeSession *s = *state;
    Listed l = {0};
    fake_again();
    places();
    fake_fixture("06-CreateContainerView");
    objects("RetrievePropertiesEx",
            "<token>e94c4b57-4e7c-4b89-8803-8250ce5b5035</token>" OBJ(
                "VirtualMachine", "vm-1", VAL("name", "one") VAL("parent", "group-v3") VAL("runtime.host", "host-3"))
                OBJ("VirtualMachine", "vm-2", VAL("name", "two") VAL("parentVApp", "resgroup-v9"))
                    OBJ("VirtualMachine", "vm-3", VAL("name", "orphan") VAL("parent", "group-v999")));
    fake_fixture("08-ContinueRetrievePropertiesEx");
    fake_answer("DestroyView", "");
    assert_ok(vim_list(s->vim, on_vm, &l, &s->err), &s->err);
    assert_int_equal(fake.asked, 8); // in proportion to pages, not to VMs
    assert_int_equal(l.n, 5);
    assert_string_equal(l.paths[0], "/DC0/vm/one");
    assert_string_equal(l.hosts[0], "esx3");
    assert_string_equal(l.paths[1], "/DC0/vm/app/two");
    assert_string_equal(l.paths[2], ""); // above it something cannot be seen
    assert_string_equal(l.morefs[2], "vm-3");
    assert_string_equal(l.morefs[3], "vm-68");
    assert_string_equal(l.morefs[4], "vm-71");
    static const char *const recorded[] = {"pathSet", "maxObjects", NULL};
    fake_assert_asked(2, "<token>t1</token>");
    fake_assert_asked(3, "<_this type=\"ContainerView\">session[1]view-1</_this>");
    fake_assert_like(4, "06-CreateContainerView", NULL);
    fake_assert_like(5, "07-RetrievePropertiesEx-view", recorded);
    fake_assert_asked(5, "<maxObjects>200</maxObjects>");
    fake_assert_like(6, "08-ContinueRetrievePropertiesEx", NULL);
    assert_true(fake.once[6]); // libcurl must not ask twice: the second would be the next page
}

static void a_list_that_ends_early(void **state)
{
    FakeSession *s = *state;
    Listed l = {.refuse_at = 1};
    fake_again(); // the caller's own error; the view is destroyed all the same
    places();
    fake_fixture("06-CreateContainerView");
    fake_fixture("07-RetrievePropertiesEx-view");
    fake_answer("DestroyView", "");
    assert_fails(vim_list(s->vim, on_vm, &l, &s->err), &s->err, ERR_NO_SPACE);

    fake_again(); // a page that is lost is not asked for again: VMs would be given twice, or left out
    l = (Listed){0};
    places();
    fake_fixture("06-CreateContainerView");
    fake_fixture("07-RetrievePropertiesEx-view");
    fake_add(200, "")->fails = ERR_UNAVAILABLE;
    fake_answer("DestroyView", "");
    assert_fails(vim_list(s->vim, on_vm, &l, &s->err), &s->err, ERR_UNAVAILABLE);

    fake_again(); // the session ends: its view has gone with it
    l = (Listed){0};
    places();
    fake_fixture("06-CreateContainerView");
    fake_fixture("02-NotAuthenticated");
    fake_fixture("03-Login");
    fake_answer("DestroyView", "");
    assert_fails(vim_list(s->vim, on_vm, &l, &s->err), &s->err, ERR_UNAVAILABLE);
    assert_int_equal(l.n, 0);
}

static bool get_vm(FakeSession *s)
{
    return finds(s, "vm-62");
}

static void truncated_replies(void **state)
{
    static const char *const vm[] = {"09-VM-props"};
    fake_truncate(*state, 1, vm, get_vm);
}

#define GRANTED(name) "<privAvailability><privId>" name "</privId><isGranted>true</isGranted></privAvailability>"
#define REFUSED(name) "<privAvailability><privId>" name "</privId><isGranted>false</isGranted></privAvailability>"

static void privileges(void **state)
{
    FakeSession *s = *state;
    const char **missing = NULL;
    static const char root[] = "<returnval><entity type=\"Folder\">group-d1</entity>" //
        GRANTED("VirtualMachine.Config.ChangeTracking")                               //
        GRANTED("VirtualMachine.Provisioning.DiskRandomRead")                         //
        GRANTED("VirtualMachine.Provisioning.GetVmFiles")                             //
        REFUSED("VirtualMachine.State.CreateSnapshot")                                //
        GRANTED("Datastore.Browse") "</returnval>";
    fake_again();
    fake_answer("HasPrivilegeOnEntities", root);
    assert_ok(vim_privileges(s->vim, NULL, &missing, &s->err), &s->err);
    fake_assert_asked(0, "<entity type=\"Folder\">group-d1</entity><sessionId>SESSION-KEY</sessionId><privId>");
    assert_string_equal(missing[0], "VirtualMachine.State.CreateSnapshot");
    assert_string_equal(missing[1], "VirtualMachine.State.RemoveSnapshot"); // not spoken of: not granted
    assert_null(missing[2]);
    free(missing);

    // Of a VM: what concerns datastores is asked of its datastores, and nothing else
    static const char vm[] = "<returnval><entity type=\"VirtualMachine\">vm-7</entity>" //
        GRANTED("VirtualMachine.Config.ChangeTracking")                                 //
        GRANTED("VirtualMachine.Provisioning.DiskRandomRead")                           //
        GRANTED("VirtualMachine.Provisioning.GetVmFiles")                               //
        GRANTED("VirtualMachine.State.CreateSnapshot")                                  //
        GRANTED("VirtualMachine.State.RemoveSnapshot")                                  //
        GRANTED("Datastore.Browse")                                                     //
        "</returnval><returnval><entity type=\"Datastore\">datastore-1</entity>"        //
        REFUSED("VirtualMachine.State.RemoveSnapshot")                                  //
        REFUSED("Datastore.Browse") "</returnval>";
    fake_again();
    objects("RetrievePropertiesEx",
            OBJ("VirtualMachine", "vm-7", VAL("datastore", "<m>datastore-1</m>") VAL("name", "x")));
    fake_answer("HasPrivilegeOnEntities", vm);
    assert_ok(vim_privileges(s->vim, "vm-7", &missing, &s->err), &s->err);
    fake_assert_asked(1,
                      "<entity type=\"VirtualMachine\">vm-7</entity><entity type=\"Datastore\">datastore-1</entity>");
    assert_string_equal(missing[0], "Datastore.Browse");
    assert_null(missing[1]);
    free(missing);
}

#define IN_SESSION(test) cmocka_unit_test_setup_teardown(test, fake_open, fake_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SESSION(a_vm_as_recorded),
        IN_SESSION(a_snapshots_disks),
        IN_SESSION(disks_of_all_kinds),
        IN_SESSION(a_vm_with_its_path_and_snapshots),
        IN_SESSION(what_is_not_found),
        IN_SESSION(lists_in_pages),
        IN_SESSION(a_list_that_ends_early),
        IN_SESSION(truncated_replies),
        IN_SESSION(privileges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
