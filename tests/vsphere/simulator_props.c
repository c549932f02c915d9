// vsphere-simulator: properties of managed objects.
#include "simulator.h"

#include "base/clock.h"

// A plain machine's devices besides its disks, as vcsim tells of them; @ stands for the attribute xsi:type.
static const char devices_before[] =
    "<VirtualDevice @='VirtualPCIController'><key>100</key><deviceInfo @='Description'>"
    "<label>PCI controller 0</label><summary>PCI controller 0</summary></deviceInfo><busNumber>0</busNumber>"
    "<device>500</device><device>12000</device></VirtualDevice>"
    "<VirtualDevice @='VirtualIDEController'><key>200</key><deviceInfo @='Description'><label>IDE 0</label>"
    "<summary>IDE 0</summary></deviceInfo><busNumber>0</busNumber></VirtualDevice>"
    "<VirtualDevice @='VirtualIDEController'><key>201</key><deviceInfo @='Description'><label>IDE 1</label>"
    "<summary>IDE 1</summary></deviceInfo><busNumber>1</busNumber></VirtualDevice>"
    "<VirtualDevice @='VirtualPS2Controller'><key>300</key><deviceInfo @='Description'>"
    "<label>PS2 controller 0</label><summary>PS2 controller 0</summary></deviceInfo><busNumber>0</busNumber>"
    "<device>600</device><device>700</device></VirtualDevice>"
    "<VirtualDevice @='VirtualSIOController'><key>400</key><deviceInfo @='Description'>"
    "<label>SIO controller 0</label><summary>SIO controller 0</summary></deviceInfo><busNumber>0</busNumber>"
    "</VirtualDevice>"
    "<VirtualDevice @='VirtualKeyboard'><key>600</key><deviceInfo @='Description'><label>Keyboard </label>"
    "<summary>Keyboard</summary></deviceInfo><controllerKey>300</controllerKey><unitNumber>0</unitNumber>"
    "</VirtualDevice>"
    "<VirtualDevice @='VirtualPointingDevice'><key>700</key><deviceInfo @='Description'>"
    "<label>Pointing device</label><summary>Pointing device; Device</summary></deviceInfo>"
    "<backing @='VirtualPointingDeviceDeviceBackingInfo'><deviceName/><useAutoDetect>false</useAutoDetect>"
    "<hostPointingDevice>autodetect</hostPointingDevice></backing><controllerKey>300</controllerKey>"
    "<unitNumber>1</unitNumber></VirtualDevice>"
    "<VirtualDevice @='VirtualMachineVideoCard'><key>500</key><deviceInfo @='Description'><label>Video card "
    "</label><summary>Video card</summary></deviceInfo><controllerKey>100</controllerKey><unitNumber>0"
    "</unitNumber><videoRamSizeInKB>4096</videoRamSizeInKB><numDisplays>1</numDisplays><useAutoDetect>false"
    "</useAutoDetect><enable3DSupport>false</enable3DSupport><use3dRenderer>automatic</use3dRenderer>"
    "<graphicsMemorySizeInKB>262144</graphicsMemorySizeInKB></VirtualDevice>"
    "<VirtualDevice @='VirtualMachineVMCIDevice'><key>12000</key><deviceInfo @='Description'>"
    "<label>VMCI device</label>"
    "<summary>Device on the virtual machine PCI bus that provides support for the virtual machine "
    "communication interface"
    "</summary></deviceInfo><controllerKey>100</controllerKey><unitNumber>17</unitNumber><id>-1</id>"
    "<allowUnrestrictedCommunication>false</allowUnrestrictedCommunication><filterEnable>true</filterEnable>"
    "</VirtualDevice>"
    "<VirtualDevice @='ParaVirtualSCSIController'><key>202</key><deviceInfo @='Description'><label>pvscsi-202"
    "</label><summary>pvscsi-202</summary></deviceInfo><busNumber>0</busNumber><device>201</device>"
    "<sharedBus>noSharing</sharedBus><scsiCtlrUnitNumber>7</scsiCtlrUnitNumber></VirtualDevice>"
    "<VirtualDevice @='VirtualCdrom'><key>203</key><deviceInfo @='Description'><label>cdrom-203</label>"
    "<summary>cdrom-203</summary></deviceInfo><backing @='VirtualCdromAtapiBackingInfo'>"
    "<deviceName>cdrom--201-824637928888</deviceName><useAutoDetect>false</useAutoDetect></backing>"
    "<connectable><startConnected>true</startConnected><allowGuestControl>true</allowGuestControl>"
    "<connected>true</connected></connectable><controllerKey>202</controllerKey><unitNumber>0</unitNumber>"
    "</VirtualDevice>";

static const char devices_after[] =
    "<VirtualDevice @='VirtualE1000'><key>4000</key><deviceInfo @='Description'><label>ethernet-0</label>"
    "<summary>DVSwitch: a86ec114-1915-5fba-b48e-5c2b06075be0</summary></deviceInfo>"
    "<backing @='VirtualEthernetCardDistributedVirtualPortBackingInfo'><port>"
    "<switchUuid>a86ec114-1915-5fba-b48e-5c2b06075be0</switchUuid><portgroupKey>dvportgroup-12</portgroupKey>"
    "</port></backing><connectable><startConnected>true</startConnected><allowGuestControl>true"
    "</allowGuestControl><connected>true</connected><status>untried</status></connectable>"
    "<slotInfo @='VirtualDevicePciBusSlotInfo'><pciSlotNumber>32</pciSlotNumber></slotInfo><controllerKey>100"
    "</controllerKey><unitNumber>7</unitNumber><addressType>generated</addressType>"
    "<macAddress>00:0c:29:63:65:61</macAddress><wakeOnLanEnabled>true</wakeOnLanEnabled><resourceAllocation>"
    "<reservation>0</reservation><share><shares>50</shares><level>normal</level></share><limit>-1</limit>"
    "</resourceAllocation></VirtualDevice>";

static void put_devices(FILE *out, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "@'");
        fwrite(text, 1, n, out);
        text += n;
        if (*text == '@')
            fprintf(out, "%s:type", sim.prefix);
        else if (*text)
            fputc('"', out);
        text += *text != 0;
    }
}

static void val(FILE *out, const char *type)
{
    fprintf(out, "<val xmlns:%s=\"http://www.w3.org/2001/XMLSchema-instance\" %s:type=\"%s\">", sim.prefix, sim.prefix,
            type);
}

static bool put(FILE *out, const char *type, const char *text)
{
    val(out, type);
    x_text(out, text);
    fputs("</val>", out);
    return true;
}

static bool put_bool(FILE *out, bool value)
{
    return put(out, "xsd:boolean", value ? "true" : "false");
}

static bool put_ref(FILE *out, const char *type, const char *id)
{
    fprintf(out,
            "<val xmlns:%s=\"http://www.w3.org/2001/XMLSchema-instance\" type=\"%s\" "
            "%s:type=\"ManagedObjectReference\">%s</val>",
            sim.prefix, type, sim.prefix, id);
    return true;
}

static void put_array_ref(FILE *out, const char *type, const char *id)
{
    fprintf(out, "<ManagedObjectReference type=\"%s\" %s:type=\"ManagedObjectReference\">%s</ManagedObjectReference>",
            type, sim.prefix, id);
}

// ---- disks

// The one host, or datastore, of a datacenter
static const Entity *neighbour(const Entity *e, const char *folder)
{
    while (e && e->type != DATACENTER)
        e = e->parent;
    for (size_t i = 0; e && i < e->n_children; i++) {
        if (strcmp(e->children[i]->name, folder) == 0)
            return e->children[i]->children[0];
    }
    return sim.root;
}

// layer NULL: as the disk is now
static void put_disk(FILE *out, const Vm *vm, const Disk *disk, const Layer *layer)
{
    uint64_t capacity = layer ? layer->capacity : disk->capacity;
    bool mapping = strncmp(disk->backing, "RawDiskMapping", 14) == 0;
    cleanup_free char *file = layer ? sim_strdup(layer->file) : state_file_now(vm, disk);
    fprintf(out, "<VirtualDevice %s:type=\"VirtualDisk\"><key>%d</key>", sim.prefix, disk->key);
    fprintf(out,
            "<deviceInfo %s:type=\"Description\"><label>Hard disk %d</label><summary>%ju KB</summary></deviceInfo>",
            sim.prefix, disk->unit + 1, (uintmax_t)capacity / 1024);
    fprintf(out, "<backing %s:type=\"VirtualDisk%sBackingInfo\">", sim.prefix, disk->backing);
    x_element(out, "fileName", "%s", file);
    x_ref(out, "datastore", "Datastore", neighbour(vm->entity, "datastore")->id);
    if (mapping) {
        x_element(out, "lunUuid", "%s", disk->uuid);
        x_element(out, "compatibilityMode", "%s", disk->compatibility);
    }
    x_element(out, "diskMode", "%s", disk->mode);
    if (!mapping) {
        fputs("<split>false</split><writeThrough>false</writeThrough><thinProvisioned>true</thinProvisioned>", out);
        fputs("<eagerlyScrub>false</eagerlyScrub>", out);
    }
    x_element(out, "uuid", "%s", disk->uuid);
    char id[192] = "";
    if (layer && layer->epoch[0])
        state_change_id(layer->epoch, layer->sequence, id);
    else if (!layer && disk->tracking)
        state_change_id(disk->epoch, disk->sequence, id);
    if (id[0])
        x_element(out, "changeId", "%s", id);
    if (!mapping)
        fputs("<digestEnabled>false</digestEnabled>", out);
    if (disk->sharing)
        x_element(out, "sharing", "%s", disk->sharing);
    fprintf(out, "</backing><controllerKey>202</controllerKey><unitNumber>%d</unitNumber>", disk->unit);
    fprintf(out, "<capacityInKB>%ju</capacityInKB><capacityInBytes>%ju</capacityInBytes>", (uintmax_t)capacity / 1024,
            (uintmax_t)capacity);
    fputs("<storageIOAllocation><limit>-1</limit></storageIOAllocation></VirtualDevice>", out);
}

static bool put_hardware(FILE *out, const Vm *vm, const Snapshot *snapshot)
{
    val(out, "ArrayOfVirtualDevice");
    put_devices(out, devices_before);
    // Backwards in a snapshot: whoever joins by position finds out
    for (size_t i = 0; i < (snapshot ? snapshot->n_layers : vm->n_disks); i++) {
        const Layer *layer = snapshot ? &snapshot->layers[snapshot->n_layers - 1 - i] : NULL;
        put_disk(out, vm, layer ? layer->disk : vm->disks[i], layer);
    }
    for (size_t i = 0; snapshot && i < vm->n_disks; i++) {
        if (!disk_can_freeze(vm->disks[i]))
            put_disk(out, vm, vm->disks[i], NULL);
    }
    put_devices(out, devices_after);
    fputs("</val>", out);
    return true;
}

// ---- snapshots: a chain, each the child of the one before

static void put_tree(FILE *out, const Vm *vm, size_t i, const char *name, const char *type)
{
    const Snapshot *s = vm->snapshots[i];
    char time[40];
    x_time(s->created_us, time);
    fprintf(out, "<%s%s%s%s%s>", name, type ? " " : "", type ? sim.prefix : "", type ? ":type=" : "", type ? type : "");
    x_ref(out, "snapshot", "VirtualMachineSnapshot", s->id);
    x_ref(out, "vm", "VirtualMachine", vm->entity->id);
    x_element(out, "name", "%s", s->name);
    x_element(out, "description", "%s", s->description);
    fprintf(out, "<id>%d</id><createTime>%s</createTime><state>%s</state><quiesced>%s</quiesced>", s->number, time,
            vm->power, s->quiesced ? "true" : "false");
    if (i + 1 < vm->n_snapshots)
        put_tree(out, vm, i + 1, "childSnapshotList", NULL);
    fprintf(out, "<replaySupported>false</replaySupported></%s>", name);
}

static bool put_snapshots(FILE *out, const Vm *vm, const char *rest)
{
    if (vm->n_snapshots == 0)
        return false;
    const char *current = vm->snapshots[vm->n_snapshots - 1]->id;
    if (strcmp(rest, "currentSnapshot") == 0)
        return put_ref(out, "VirtualMachineSnapshot", current);
    if (strcmp(rest, "rootSnapshotList") == 0) {
        val(out, "ArrayOfVirtualMachineSnapshotTree");
        put_tree(out, vm, 0, "VirtualMachineSnapshotTree", NULL);
    } else {
        val(out, "VirtualMachineSnapshotInfo");
        x_ref(out, "currentSnapshot", "VirtualMachineSnapshot", current);
        put_tree(out, vm, 0, "rootSnapshotList", NULL);
    }
    fputs("</val>", out);
    return true;
}

// ---- by type

static bool put_entity(const Entity *e, const char *path, FILE *out, bool *ret_known)
{
    if (strcmp(path, "name") == 0)
        return put(out, "xsd:string", e->name);
    if (strcmp(path, "parent") == 0) {
        // A VM's or a folder's parent; the root folder has none
        return e->parent && put_ref(out, entity_type_name(e->parent->type), e->parent->id);
    }
    if (strcmp(path, "childEntity") == 0 && e->type == FOLDER) {
        val(out, "ArrayOfManagedObjectReference");
        for (size_t i = 0; i < e->n_children; i++)
            put_array_ref(out, entity_type_name(e->children[i]->type), e->children[i]->id);
        fputs("</val>", out);
        return true;
    }
    for (size_t i = 0; e->type == DATACENTER && i < e->n_children; i++) {
        const char *name = e->children[i]->name;
        if (strncmp(path, name, strlen(name)) == 0 && strcmp(path + strlen(name), "Folder") == 0)
            return put_ref(out, "Folder", e->children[i]->id);
    }
    *ret_known = false;
    return false;
}

static bool put_vm(const Vm *vm, const char *path, FILE *out, bool *ret_known)
{
    static const char *const fixed[][3] = {
        {"capability.changeTrackingSupported", "xsd:boolean", "true"},
        {"config.guestFullName", "xsd:string", "Other (64-bit)"},
        {"config.guestId", "xsd:string", "otherGuest64"},
        {"config.hardware.numCPU", "xsd:int", "1"},
        {"config.hardware.memoryMB", "xsd:int", "1024"},
        {"config.firmware", "xsd:string", "bios"},
        {"runtime.connectionState", "VirtualMachineConnectionState", "connected"},
        {"guest.toolsRunningStatus", "xsd:string", "guestToolsRunning"},
        {"guest.toolsStatus", "VirtualMachineToolsStatus", "toolsOk"},
    };
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++) {
        if (strcmp(path, fixed[i][0]) == 0)
            return put(out, fixed[i][1], fixed[i][2]);
    }
    if (strcmp(path, "config.hardware.device") == 0)
        return put_hardware(out, vm, NULL);
    if (strcmp(path, "config.changeTrackingEnabled") == 0)
        return vm->cbt != CBT_UNSET && put_bool(out, vm->cbt == CBT_ON);
    if (strcmp(path, "config.name") == 0)
        return put(out, "xsd:string", vm->entity->name);
    if (strcmp(path, "config.uuid") == 0)
        return put(out, "xsd:string", vm->uuid);
    if (strcmp(path, "config.instanceUuid") == 0)
        return put(out, "xsd:string", vm->instance_uuid);
    if (strcmp(path, "config.version") == 0)
        return put(out, "xsd:string", vm->version);
    if (strcmp(path, "config.template") == 0)
        return put_bool(out, vm->is_template);
    if (strcmp(path, "config.files.vmPathName") == 0) {
        cleanup_free char *file = sim_printf("[%s] %s/%s.vmx", vm->datastore, vm->folder_name, vm->folder_name);
        return put(out, "xsd:string", file);
    }
    if (strcmp(path, "runtime.powerState") == 0)
        return put(out, "VirtualMachinePowerState", vm->power);
    if (strcmp(path, "runtime.consolidationNeeded") == 0)
        return put_bool(out, vm->consolidation_needed);
    if (strcmp(path, "runtime.host") == 0)
        return put_ref(out, "HostSystem", neighbour(vm->entity, "host")->id);
    if (strcmp(path, "datastore") == 0) {
        val(out, "ArrayOfManagedObjectReference");
        put_array_ref(out, "Datastore", neighbour(vm->entity, "datastore")->id);
        fputs("</val>", out);
        return true;
    }
    if (strcmp(path, "recentTask") == 0) {
        val(out, "ArrayOfManagedObjectReference");
        for (size_t i = 0; i < sim.n_tasks; i++) {
            if (sim.tasks[i]->vm == vm)
                put_array_ref(out, "Task", sim.tasks[i]->id);
        }
        fputs("</val>", out);
        return true;
    }
    if (strcmp(path, "parentVApp") == 0)
        return false; // there are none
    if (strncmp(path, "snapshot", 8) == 0 && (path[8] == 0 || path[8] == '.'))
        return put_snapshots(out, vm, path[8] ? path + 9 : "");
    return put_entity(vm->entity, path, out, ret_known);
}

const char *const prop_paths_vm[] = {
    "name", "parent", "config.changeTrackingEnabled", "config.hardware.device", "runtime.powerState", "snapshot", NULL};

static bool put_snapshot(const Snapshot *s, const char *path, FILE *out, bool *ret_known)
{
    if (strcmp(path, "config.hardware.device") == 0)
        return put_hardware(out, s->vm, s);
    if (strcmp(path, "config.changeTrackingEnabled") == 0)
        return put_bool(out, s->cbt);
    if (strcmp(path, "vm") == 0)
        return put_ref(out, "VirtualMachine", s->vm->entity->id);
    if (strcmp(path, "childSnapshot") == 0)
        return false;
    if (strncmp(path, "config.", 7) == 0)
        return put_vm(s->vm, path, out, ret_known);
    *ret_known = false;
    return false;
}

static const char *const task_states[] = {"running", "success", "error"};

static bool put_task_info(const Task *task, FILE *out)
{
    char queued[40], done[40];
    x_time(task->queued_us, queued);
    x_time(task->done_us, done);
    val(out, "TaskInfo");
    x_element(out, "key", "%s", task->id);
    x_ref(out, "task", "Task", task->id);
    x_element(out, "name", "%s", task->method);
    x_ref(out, "entity", "VirtualMachine", task->vm->entity->id);
    x_element(out, "entityName", "%s", task->vm->entity->name);
    fprintf(out, "<state>%s</state><cancelled>false</cancelled><cancelable>false</cancelable>",
            task_states[task->state]);
    if (task->state == TASK_ERROR) {
        fputs("<error>", out);
        x_fault(out, &task->fault);
        fputs("</error>", out);
    } else if (task->state == TASK_SUCCESS && strcmp(task->method, "CreateSnapshot_Task") == 0) {
        fprintf(out,
                "<result xmlns:%s=\"http://www.w3.org/2001/XMLSchema-instance\" type=\"VirtualMachineSnapshot\" "
                "%s:type=\"ManagedObjectReference\">%s</result>",
                sim.prefix, sim.prefix, task->snapshot->id);
    }
    fprintf(out, "<queueTime>%s</queueTime><startTime>%s</startTime>", queued, queued);
    if (task->state != TASK_RUNNING)
        fprintf(out, "<completeTime>%s</completeTime>", done);
    fputs("<eventChainId>0</eventChainId></val>", out);
    return true;
}

static bool put_task(const Task *task, const char *path, FILE *out, bool *ret_known)
{
    if (strcmp(path, "info") == 0)
        return put_task_info(task, out);
    if (strcmp(path, "info.state") == 0)
        return put(out, "TaskInfoState", task_states[task->state]);
    if (strcmp(path, "info.entity") == 0)
        return put_ref(out, "VirtualMachine", task->vm->entity->id);
    if (strcmp(path, "info.progress") == 0) {
        char number[16];
        snprintf(number, sizeof number, "%d", task->progress);
        return put(out, "xsd:int", number);
    }
    if (strcmp(path, "info.error") == 0) {
        if (task->state != TASK_ERROR)
            return false;
        val(out, "LocalizedMethodFault");
        x_fault(out, &task->fault);
        fputs("</val>", out);
        return true;
    }
    if (strcmp(path, "info.result") == 0) {
        return task->state == TASK_SUCCESS && strcmp(task->method, "CreateSnapshot_Task") == 0 &&
            put_ref(out, "VirtualMachineSnapshot", task->snapshot->id);
    }
    *ret_known = false;
    return false;
}

static bool put_current_session(const Session *s, const char *path, FILE *out, bool *ret_known)
{
    *ret_known = strcmp(path, "currentSession") == 0;
    if (!*ret_known || !s)
        return false;
    val(out, "UserSession");
    x_element(out, "key", "%s", s->key);
    x_element(out, "userName", "%s", s->user);
    fputs("</val>", out);
    return true;
}

bool prop_render(const Ref *ref, const char *path, FILE *out, bool *ret_known)
{
    *ret_known = true;
    if (strcmp(ref->type, "VirtualMachine") == 0)
        return put_vm(((const Entity *)ref->p)->vm, path, out, ret_known);
    if (strcmp(ref->type, "VirtualMachineSnapshot") == 0)
        return put_snapshot(ref->p, path, out, ret_known);
    if (strcmp(ref->type, "Task") == 0)
        return put_task(ref->p, path, out, ret_known);
    if (strcmp(ref->type, "SessionManager") == 0)
        return put_current_session(ref->p, path, out, ret_known);
    if (strcmp(ref->type, "ContainerView") == 0 || strcmp(ref->type, "PropertyCollector") == 0) {
        *ret_known = false;
        return false;
    }
    return put_entity(ref->p, path, out, ret_known);
}

bool entity_is(const Entity *entity, const char *type)
{
    return strcmp(type, "ManagedEntity") == 0 || strcmp(type, entity_type_name(entity->type)) == 0;
}

bool ref_is(const Ref *ref, const char *type)
{
    return strcmp(ref->type, type) == 0 ||
        (strcmp(type, "ManagedEntity") == 0 &&
         (strcmp(ref->type, "VirtualMachine") == 0 || strcmp(ref->type, "Folder") == 0 ||
          strcmp(ref->type, "Datacenter") == 0 || strcmp(ref->type, "HostSystem") == 0 ||
          strcmp(ref->type, "Datastore") == 0));
}

bool ref_find(const char *id, Ref *ret_ref, Session *session)
{
    if (strcmp(id, "SessionManager") == 0) {
        *ret_ref = (Ref){"SessionManager", "SessionManager", session};
        return true;
    }
    Entity *e = state_entity(id);
    if (e) {
        *ret_ref = (Ref){entity_type_name(e->type), e->id, e};
        return true;
    }
    Snapshot *snapshot = state_snapshot(id);
    if (snapshot) {
        *ret_ref = (Ref){"VirtualMachineSnapshot", snapshot->id, snapshot};
        return true;
    }
    for (size_t i = 0; i < sim.n_tasks; i++) {
        if (strcmp(sim.tasks[i]->id, id) == 0) {
            *ret_ref = (Ref){"Task", sim.tasks[i]->id, sim.tasks[i]};
            return true;
        }
    }
    for (size_t i = 0; session && i < session->n_views; i++) {
        if (strcmp(session->views[i]->id, id) == 0 && !session->views[i]->gone) {
            *ret_ref = (Ref){"ContainerView", session->views[i]->id, session->views[i]};
            return true;
        }
    }
    return false;
}
