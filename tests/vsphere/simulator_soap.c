// vsphere-simulator: SOAP at /sdk. Each call is a function; the table at the end names them, with the privilege that
// each needs.
#include "simulator.h"

#include "base/clock.h"
#include "simulator_collector.h"

#include <libxml/parser.h>

typedef struct Call {
    const xmlNode *node;
    Session *session;
    Ref target; // _this
    FILE *out;
    Fault *fault;
    Answer *answer;
    const char *cookie;
} Call;

static bool invalid(Fault *fault, const char *property)
{
    char body[128];
    snprintf(body, sizeof body, "<invalidProperty>%s</invalidProperty>", property);
    return fault_set(fault, "InvalidArgument", body, "A specified parameter was not correct: %s", property);
}

static bool not_found(Fault *fault, const char *type, const char *id)
{
    char body[256];
    snprintf(body, sizeof body, "<obj type=\"%s\">%s</obj>", type, id);
    return fault_set(fault, "ManagedObjectNotFound", body, "managed object not found: %s:%s", type, id);
}

// ---- the service, sessions

static bool retrieve_service_content(Call *c)
{
    static const char *const managers[][3] = {
        {"setting", "OptionManager", "VpxSettings"},
        {"userDirectory", "UserDirectory", "UserDirectory"},
        {"sessionManager", "SessionManager", "SessionManager"},
        {"authorizationManager", "AuthorizationManager", "AuthorizationManager"},
        {"serviceManager", "ServiceManager", "ServiceMgr"},
        {"perfManager", "PerformanceManager", "PerfMgr"},
        {"scheduledTaskManager", "ScheduledTaskManager", "ScheduledTaskManager"},
        {"alarmManager", "AlarmManager", "AlarmManager"},
        {"eventManager", "EventManager", "EventManager"},
        {"taskManager", "TaskManager", "TaskManager"},
        {"extensionManager", "ExtensionManager", "ExtensionManager"},
        {"customizationSpecManager", "CustomizationSpecManager", "CustomizationSpecManager"},
        {"customFieldsManager", "CustomFieldsManager", "CustomFieldsManager"},
        {"diagnosticManager", "DiagnosticManager", "DiagMgr"},
        {"licenseManager", "LicenseManager", "LicenseManager"},
        {"searchIndex", "SearchIndex", "SearchIndex"},
        {"fileManager", "FileManager", "FileManager"},
        {"datastoreNamespaceManager", "DatastoreNamespaceManager", "DatastoreNamespaceManager"},
        {"virtualDiskManager", "VirtualDiskManager", "virtualDiskManager"},
        {"snmpSystem", "HostSnmpSystem", "SnmpSystem"},
        {"vmProvisioningChecker", "VirtualMachineProvisioningChecker", "ProvChecker"},
        {"vmCompatibilityChecker", "VirtualMachineCompatibilityChecker", "CompatChecker"},
        {"ovfManager", "OvfManager", "OvfManager"},
        {"ipPoolManager", "IpPoolManager", "IpPoolManager"},
        {"dvSwitchManager", "DistributedVirtualSwitchManager", "DVSManager"},
        {"hostProfileManager", "HostProfileManager", "HostProfileManager"},
        {"clusterProfileManager", "ClusterProfileManager", "ClusterProfileManager"},
        {"complianceManager", "ProfileComplianceManager", "MoComplianceManager"},
        {"localizationManager", "LocalizationManager", "LocalizationManager"},
        {"storageResourceManager", "StorageResourceManager", "StorageResourceManager"},
        {"guestOperationsManager", "GuestOperationsManager", "guestOperationsManager"},
        {"overheadMemoryManager", "OverheadMemoryManager", "OverheadMemoryManager"},
        {"certificateManager", "CertificateManager", "certificateManager"},
        {"ioFilterManager", "IoFilterManager", "IoFilterManager"},
        {"vStorageObjectManager", "VcenterVStorageObjectManager", "VStorageObjectManager"},
        {"hostSpecManager", "HostSpecificationManager", "HostSpecificationManager"},
        {"cryptoManager", "CryptoManagerKmip", "CryptoManager"},
        {"healthUpdateManager", "HealthUpdateManager", "HealthUpdateManager"},
        {"failoverClusterConfigurator", "FailoverClusterConfigurator", "FailoverClusterConfigurator"},
        {"failoverClusterManager", "FailoverClusterManager", "FailoverClusterManager"},
        {"tenantManager", "TenantTenantManager", "TenantManager"},
    };
    fputs("<returnval>", c->out);
    x_ref(c->out, "rootFolder", "Folder", sim.root->id);
    x_ref(c->out, "propertyCollector", "PropertyCollector", "propertyCollector");
    x_ref(c->out, "viewManager", "ViewManager", "ViewManager");
    fputs("<about><name>VMware vCenter Server</name><fullName>VMware vCenter Server 8.0.1 (Sendense's simulator)"
          "</fullName><vendor>Sendense</vendor><version>8.0.1</version><build>1</build>"
          "<localeVersion>INTL</localeVersion><localeBuild>000</localeBuild><osType>linux-x64</osType>"
          "<productLineId>vpx</productLineId><apiType>VirtualCenter</apiType><apiVersion>8.0.1.0</apiVersion>"
          "<instanceUuid>2e465beb-9b97-5df6-ae2b-823baa05739c</instanceUuid>"
          "<licenseProductName>VMware VirtualCenter Server</licenseProductName>"
          "<licenseProductVersion>8.0</licenseProductVersion></about>",
          c->out);
    for (size_t i = 0; i < ARRAY_LEN(managers); i++)
        x_ref(c->out, managers[i][0], managers[i][1], managers[i][2]);
    fputs("</returnval>", c->out);
    return true;
}

static size_t live_sessions(void)
{
    size_t n = 0;
    for (size_t i = 0; i < sim.n_sessions; i++)
        n += !sim.sessions[i]->gone;
    return n;
}

static bool login(Call *c)
{
    const char *user = node_text(node_child(c->node, "userName"));
    const char *password = node_text(node_child(c->node, "password"));
    if (strcmp(user, sim.user) != 0 || strcmp(password, sim.password) != 0)
        return fault_set(c->fault, "InvalidLogin", NULL,
                         "Cannot complete login due to an incorrect user name or password.");
    if (c->session)
        return fault_set(c->fault, "InvalidState", NULL,
                         "The operation is not allowed in the current state: this session is logged in");
    if (sim.max_sessions && live_sessions() >= sim.max_sessions)
        return fault_set(c->fault, "OutOfBounds", NULL, "The maximum number of sessions has been exceeded.");
    Session *s = session_new(user);
    memcpy(c->answer->cookie, s->key, sizeof s->key);
    char time[40];
    x_time(s->login_us, time);
    fputs("<returnval>", c->out);
    x_element(c->out, "key", "%s", s->key);
    x_element(c->out, "userName", "%s", user);
    x_element(c->out, "fullName", "%s", user);
    fprintf(c->out, "<loginTime>%s</loginTime><lastActiveTime>%s</lastActiveTime>", time, time);
    fputs("<locale>en_US</locale><messageLocale>en_US</messageLocale><extensionSession>false</extensionSession>"
          "<ipAddress>127.0.0.1</ipAddress><userAgent>client</userAgent><callCount>1</callCount></returnval>",
          c->out);
    return true;
}

static bool logout(Call *c)
{
    session_end(c->session);
    return true;
}

static bool session_is_active(Call *c)
{
    const Session *s = session_find(node_text(node_child(c->node, "sessionID")));
    bool active = s && strcmp(s->user, node_text(node_child(c->node, "userName"))) == 0;
    x_element(c->out, "returnval", "%s", active ? "true" : "false");
    return true;
}

static bool current_time(Call *c)
{
    char time[40];
    x_time(clock_utc_us(), time);
    x_element(c->out, "returnval", "%s", time);
    return true;
}

// ---- privileges

bool sim_lacks(const char *privilege)
{
    for (size_t i = 0; i < sim.n_missing_privileges; i++) {
        if (strcmp(sim.missing_privileges[i], privilege) == 0)
            return true;
    }
    return false;
}

static bool has_privilege_on_entities(Call *c)
{
    for (const xmlNode *e = node_child(c->node, "entity"); e; e = node_next(e, "entity")) {
        Ref ref;
        if (!ref_find(node_text(e), &ref, c->session))
            return not_found(c->fault, "ManagedEntity", node_text(e));
        fputs("<returnval>", c->out);
        x_ref(c->out, "entity", ref.type, ref.id);
        for (const xmlNode *p = node_child(c->node, "privId"); p; p = node_next(p, "privId")) {
            fputs("<privAvailability>", c->out);
            x_element(c->out, "privId", "%s", node_text(p));
            x_element(c->out, "isGranted", "%s", sim_lacks(node_text(p)) ? "false" : "true");
            fputs("</privAvailability>", c->out);
        }
        fputs("</returnval>", c->out);
    }
    return true;
}

static bool fetch_user_privilege_on_entities(Call *c)
{
    static const char *const all[] = {"System.Anonymous",
                                      "System.Read",
                                      "System.View",
                                      "Sessions.ValidateSession",
                                      "VirtualMachine.Config.ChangeTracking",
                                      "VirtualMachine.Provisioning.DiskRandomRead",
                                      "VirtualMachine.Provisioning.GetVmFiles",
                                      "VirtualMachine.State.CreateSnapshot",
                                      "VirtualMachine.State.RemoveSnapshot",
                                      "Datastore.Browse"};
    for (const xmlNode *e = node_child(c->node, "entities"); e; e = node_next(e, "entities")) {
        Ref ref;
        if (!ref_find(node_text(e), &ref, c->session))
            return not_found(c->fault, "ManagedEntity", node_text(e));
        fputs("<returnval>", c->out);
        x_ref(c->out, "entity", ref.type, ref.id);
        for (size_t i = 0; i < ARRAY_LEN(all); i++) {
            if (!sim_lacks(all[i]))
                x_element(c->out, "privileges", "%s", all[i]);
        }
        fputs("</returnval>", c->out);
    }
    return true;
}

// ---- inventory and properties: simulator_collector.c does the work

static bool find_by_inventory_path(Call *c)
{
    const Entity *e = state_find(node_text(node_child(c->node, "inventoryPath")));
    if (e && e != sim.root)
        x_ref(c->out, "returnval", entity_type_name(e->type), e->id);
    return true;
}

static bool create_container_view(Call *c)
{
    return collector_create_view(c->node, c->session, c->out, c->fault);
}

static bool destroy_view(Call *c)
{
    ((View *)c->target.p)->gone = true;
    return true;
}

static bool retrieve_properties_ex(Call *c)
{
    return collector_retrieve(c->node, c->session, c->out, c->fault);
}

static bool continue_retrieve_properties_ex(Call *c)
{
    return collector_continue(c->node, c->session, c->out, c->fault);
}

static bool create_filter(Call *c)
{
    return collector_create_filter(c->node, c->session, c->out, c->fault);
}

static bool destroy_property_filter(Call *c)
{
    return collector_destroy_filter(node_text(node_child(c->node, "_this")), c->session, c->fault);
}

static bool wait_for_updates_ex(Call *c)
{
    return collector_wait(c->node, c->session, c->out, c->fault);
}

// ---- virtual machines

static bool reconfig_vm(Call *c)
{
    Vm *vm = ((Entity *)c->target.p)->vm;
    Task *task = task_new("ReconfigVM_Task", vm);
    const xmlNode *cbt = node_child(node_child(c->node, "spec"), "changeTrackingEnabled");
    if (cbt)
        task->cbt = strcmp(node_text(cbt), "true") == 0 ? CBT_ON : CBT_OFF;
    x_ref(c->out, "returnval", "Task", task->id);
    return true;
}

// As vCenter writes names
static char *escape_name(const char *name)
{
    char *out = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&out, &len);
    for (; *name; name++)
        fprintf(to, strchr("/\\%", *name) ? "%%%02x" : "%c", (unsigned char)*name);
    fclose(to);
    return out;
}

static bool cancel_task(Call *c)
{
    Task *task = c->target.p;
    if (task->state != TASK_RUNNING)
        return fault_set(c->fault, "InvalidState", NULL, "The task is over");
    if (task->not_cancelable)
        return fault_set(c->fault, "NotSupported", NULL, "The task cannot be cancelled");
    fault_set(&task->fault, "RequestCanceled", NULL, "The task was canceled by a user.");
    task->held = false;
    task->due_ms = clock_mono_ms();
    pthread_cond_broadcast(&sim.changed);
    return true;
}

static bool create_snapshot(Call *c)
{
    const xmlNode *name = node_child(c->node, "name");
    if (!name || !node_child(c->node, "memory") || !node_child(c->node, "quiesce"))
        return fault_set(c->fault, "InvalidRequest", NULL, "Required parameter is missing");
    Task *task = task_new("CreateSnapshot_Task", ((Entity *)c->target.p)->vm);
    task->name = escape_name(node_text(name));
    task->description = sim_strdup(node_text(node_child(c->node, "description")));
    task->quiesce = strcmp(node_text(node_child(c->node, "quiesce")), "true") == 0;
    x_ref(c->out, "returnval", "Task", task->id);
    return true;
}

static bool remove_snapshot(Call *c)
{
    Snapshot *s = c->target.p;
    Task *task = task_new("RemoveSnapshot_Task", s->vm);
    task->snapshot = s;
    task->children = strcmp(node_text(node_child(c->node, "removeChildren")), "true") == 0;
    x_ref(c->out, "returnval", "Task", task->id);
    return true;
}

// ---- what has changed

static bool file_fault(Fault *fault, const char *file)
{
    char body[300];
    snprintf(body, sizeof body, "<file>%s</file>", file);
    return fault_set(fault, "FileFault", body, "Error caused by file %s", file);
}

// A change ID in either spelling: its epoch without blanks and hyphens, and its number.
static bool parse_change_id(const char *text, char epoch[128], uint32_t *ret_sequence)
{
    const char *slash = strchr(text, '/');
    if (!slash || slash == text || strlen(text) > 190 || !slash[1] ||
        strspn(slash + 1, "0123456789") != strlen(slash + 1))
        return false;
    size_t n = 0;
    for (const char *s = text; s < slash; s++) {
        if (*s != ' ' && *s != '-' && n < 127)
            epoch[n++] = *s;
    }
    epoch[n] = 0;
    *ret_sequence = (uint32_t)strtoul(slash + 1, NULL, 10);
    return n > 0;
}

static bool same_epoch(const char *bare, const char *epoch)
{
    for (; *epoch; epoch++) {
        if (*epoch != '-' && *epoch != ' ' && *bare++ != *epoch)
            return false;
    }
    return *bare == 0;
}

static bool areas_for(const Vm *vm, const Layer *layer, const char *change_id, Bits *ret_areas, Fault *fault)
{
    const Disk *disk = layer->disk;
    uint64_t n = (layer->capacity + sim.granule - 1) / sim.granule;
    if (vm->cbt_poisoned) {
        *ret_areas = (Bits){.n = n};
        return true;
    }
    bool tracked = disk->tracking && !disk->lost && layer->epoch[0] && strcmp(layer->epoch, disk->epoch) == 0;
    if (!tracked)
        return file_fault(fault, layer->file);
    if (strcmp(change_id, "*") == 0) {
        if (strcmp(disk->star, "fault") == 0)
            return file_fault(fault, layer->file);
        *ret_areas = (Bits){.n = n, .words = sim_more(NULL, 0, (n + 63) / 64 * 8)};
        if (strcmp(disk->star, "whole") == 0)
            memset(ret_areas->words, 0xff, (n + 63) / 64 * 8);
        else if (layer->allocated.words)
            memcpy(ret_areas->words, layer->allocated.words, (n + 63) / 64 * 8);
        return true;
    }
    char epoch[128];
    uint32_t since;
    if (!parse_change_id(change_id, epoch, &since))
        return invalid(fault, "changeId");
    if (!same_epoch(epoch, disk->epoch) || since > layer->sequence)
        return file_fault(fault, layer->file);
    *ret_areas = layer_changed(layer, since);
    return true;
}

static void put_area(FILE *out, uint64_t start, uint64_t length)
{
    fprintf(out, "<changedArea><start>%ju</start><length>%ju</length></changedArea>", (uintmax_t)start,
            (uintmax_t)length);
}

// The next area at or behind `at`, without what a lie hides; false when there is none before `end`.
static bool next_area(const Bits *areas, const Bits *hidden, uint64_t *at, uint64_t end, uint64_t *ret_start)
{
    for (;;) {
        uint64_t g = bits_next(areas, *at / sim.granule, true);
        if (*at >= end || g >= areas->n || g * sim.granule >= end)
            return false;
        uint64_t start = MAX(*at, g * sim.granule), stop = g;
        if (bits_get(hidden, g)) {
            *at = (g + 1) * sim.granule;
            continue;
        }
        while (stop < areas->n && bits_get(areas, stop) && !bits_get(hidden, stop))
            stop++;
        *ret_start = start;
        *at = MIN(stop * sim.granule, end);
        return true;
    }
}

static void put_lies(FILE *out, Lie lie, uint64_t start, uint64_t length, uint64_t capacity)
{
    uint64_t g = sim.granule;
    if (lie == LIE_UNORDERED) {
        put_area(out, start + g, g);
        put_area(out, start, g);
    } else if (lie == LIE_OVERLAP) {
        put_area(out, start, 2 * g);
        put_area(out, start + g, g);
    } else if (lie == LIE_PAST_END) {
        put_area(out, start + length - MIN(length, g), 2 * g + capacity);
    } else if (lie == LIE_BEFORE) {
        put_area(out, start - g, g);
    }
}

static bool query_changed_disk_areas(Call *c)
{
    const Vm *vm = ((Entity *)c->target.p)->vm;
    const char *id = node_text(node_child(c->node, "snapshot"));
    const Snapshot *s = state_snapshot(id);
    if (!s || s->vm != vm)
        return not_found(c->fault, "VirtualMachineSnapshot", id);
    int key = (int)strtol(node_text(node_child(c->node, "deviceKey")), NULL, 10);
    const Layer *layer = NULL;
    for (size_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].disk->key == key)
            layer = &s->layers[i];
    }
    if (!layer)
        return invalid(c->fault, "deviceKey");
    uint64_t start = strtoull(node_text(node_child(c->node, "startOffset")), NULL, 10);
    if (start >= layer->capacity)
        return invalid(c->fault, "startOffset");
    Bits areas;
    if (!areas_for(vm, layer, node_text(node_child(c->node, "changeId")), &areas, c->fault))
        return false;

    Lie lie = layer->disk->lie;
    const Bits *hidden = &layer->disk->hidden;
    uint64_t end = sim.max_length ? MIN(layer->capacity, start + sim.max_length) : layer->capacity;
    uint64_t at = start, from, n = 0;
    while (n < sim.max_areas && next_area(&areas, hidden, &at, end, &from))
        n++;
    uint64_t length = (n == sim.max_areas ? at : end) - start;
    fprintf(c->out, "<returnval><startOffset>%ju</startOffset><length>%ju</length>",
            (uintmax_t)(lie == LIE_START ? start + sim.granule : start),
            (uintmax_t)(lie == LIE_ZERO_LENGTH ? 0 : length));
    // An answer without areas would be a lie that nobody can see: where there is nothing before it, this one is true.
    bool lies = lie >= LIE_UNORDERED && !(lie == LIE_BEFORE && start < sim.granule);
    for (at = start; n > 0 && !lies && next_area(&areas, hidden, &at, end, &from); n--)
        put_area(c->out, from, at - from);
    if (lies)
        put_lies(c->out, lie, start, length, layer->capacity);
    fputs("</returnval>", c->out);
    free(areas.words);
    return true;
}

// ---- one request

static const struct {
    const char *name;
    bool (*f)(Call *c);
    const char *target;    // the type of _this, where it is no singleton
    const char *privilege; // NULL: none
} calls[] = {
    {"RetrieveServiceContent", retrieve_service_content, NULL, NULL},
    {"Login", login, NULL, NULL},
    {"Logout", logout, NULL, NULL},
    {"SessionIsActive", session_is_active, NULL, "Sessions.ValidateSession"},
    {"CurrentTime", current_time, NULL, NULL},
    {"HasPrivilegeOnEntities", has_privilege_on_entities, NULL, NULL},
    {"FetchUserPrivilegeOnEntities", fetch_user_privilege_on_entities, NULL, NULL},
    {"FindByInventoryPath", find_by_inventory_path, NULL, NULL},
    {"CreateContainerView", create_container_view, NULL, NULL},
    {"DestroyView", destroy_view, "ContainerView", NULL},
    {"RetrievePropertiesEx", retrieve_properties_ex, NULL, NULL},
    {"ContinueRetrievePropertiesEx", continue_retrieve_properties_ex, NULL, NULL},
    {"CreateFilter", create_filter, NULL, NULL},
    {"DestroyPropertyFilter", destroy_property_filter, NULL, NULL},
    {"WaitForUpdatesEx", wait_for_updates_ex, NULL, NULL},
    {"ReconfigVM_Task", reconfig_vm, "VirtualMachine", "VirtualMachine.Config.ChangeTracking"},
    {"CreateSnapshot_Task", create_snapshot, "VirtualMachine", "VirtualMachine.State.CreateSnapshot"},
    {"RemoveSnapshot_Task", remove_snapshot, "VirtualMachineSnapshot", "VirtualMachine.State.RemoveSnapshot"},
    {"CancelTask", cancel_task, "Task", NULL},
    {"QueryChangedDiskAreas", query_changed_disk_areas, "VirtualMachine", "VirtualMachine.Provisioning.DiskRandomRead"},
};

static bool permitted(Call *c, const char *name, const char *privilege, const char *type, const char *id)
{
    bool open = strcmp(name, "RetrieveServiceContent") == 0 || strcmp(name, "Login") == 0;
    char body[256];
    snprintf(body, sizeof body, "<object type=\"%s\">%s</object><privilegeId>%s</privilegeId>", type, id,
             c->session ? privilege : "System.View");
    if (!c->session && !open)
        return fault_set(c->fault, "NotAuthenticated", body, "%s", "");
    if (c->session)
        c->session->active_ms = clock_mono_ms();
    if (privilege && sim_lacks(privilege))
        return fault_set(c->fault, "NoPermission", body, "Permission to perform this operation was denied.");
    return true;
}

static bool dispatch(Call *c)
{
    const char *name = (const char *)c->node->name;
    const xmlNode *this = node_child(c->node, "_this");
    const char *type = node_attribute(this, "type"), *id = node_text(this);
    if (!this || !*type)
        return fault_set(c->fault, "InvalidRequest", NULL, "%s without a _this that has a type", name);
    for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
        if (strcmp(calls[i].name, name) != 0)
            continue;
        if (!permitted(c, name, calls[i].privilege, type, id))
            return false;
        if (calls[i].target && (!ref_find(id, &c->target, c->session) || strcmp(c->target.type, calls[i].target) != 0))
            return not_found(c->fault, type, id);
        return calls[i].f(c);
    }
    return fault_set(c->fault, "InvalidRequest", NULL, "no vmomi type defined for '%s'", name);
}

static void answer_call(const xmlNode *node, Answer *answer)
{
    Fault fault = {0};
    char *inside = NULL;
    size_t inside_len = 0;
    Call c = {.node = node,
              .out = open_memstream(&inside, &inside_len),
              .fault = &fault,
              .answer = answer,
              .cookie = answer->cookie};
    const char *name = (const char *)node->name;
    c.session = session_find(answer->cookie);
    answer->cookie[0] = 0;
    bool ok;
    if (answer->injected && answer->injection.kind == INJECT_FAULT) {
        fault = answer->injection.fault;
        ok = false;
    } else {
        ok = dispatch(&c);
    }
    fclose(c.out);

    FILE *out = open_memstream(&answer->text, &answer->len);
    fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<soapenv:Envelope "
          "xmlns:soapenc=\"http://schemas.xmlsoap.org/soap/encoding/\" "
          "xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" "
          "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>",
          out);
    if (ok) {
        fprintf(out, "<%sResponse xmlns=\"urn:vim25\"%s", name, inside_len ? ">" : "/>");
        fwrite(inside, 1, inside_len, out);
        if (inside_len)
            fprintf(out, "</%sResponse>", name);
    } else {
        fputs("<soapenv:Fault><faultcode>ServerFaultCode</faultcode>", out);
        if (fault.text[0])
            x_element(out, "faultstring", "%s", fault.text);
        else
            fputs("<faultstring/>", out);
        fprintf(out, "<detail><%sFault xmlns=\"urn:vim25\" xsi:type=\"%s\"%s%s", fault.type, fault.type,
                fault.body[0] ? ">" : "/>", fault.body);
        if (fault.body[0])
            fprintf(out, "</%sFault>", fault.type);
        fputs("</detail></soapenv:Fault>", out);
    }
    fputs("</soapenv:Body></soapenv:Envelope>\n", out);
    fclose(out);
    free(inside);
    answer->status = ok ? 200 : 500;
}

void soap_answer(const char *body, size_t len, const char *cookie, Answer *ret_answer)
{
    *ret_answer = (Answer){.status = 400};
    xmlDoc *doc = len > 1 << 24 ? NULL
                                : xmlReadMemory(body, (int)len, NULL, NULL,
                                                XML_PARSE_NONET | XML_PARSE_NOENT | XML_PARSE_NOERROR |
                                                    XML_PARSE_NOWARNING | XML_PARSE_NOBLANKS);
    const xmlNode *call = node_first(node_child(doc ? xmlDocGetRootElement(doc) : NULL, "Body"));
    if (call) {
        snprintf(ret_answer->cookie, sizeof ret_answer->cookie, "%s", cookie);
        sim_count((const char *)call->name);
        ret_answer->injected = inject_take((const char *)call->name, NULL, &ret_answer->injection);
        const Injection *i = &ret_answer->injection;
        if (ret_answer->injected && i->kind == INJECT_DELAY)
            sim_wait((int64_t)i->amount);
        if (sim.soap_latency_ms)
            sim_wait(sim.soap_latency_ms);
        if (ret_answer->injected && (i->kind == INJECT_503 || i->kind == INJECT_DROP_BEFORE))
            ret_answer->cookie[0] = 0;
        else
            answer_call(call, ret_answer);
    }
    xmlFreeDoc(doc);
}
