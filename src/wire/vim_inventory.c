// VMs with their paths: all of them, or one. And what hangs on one: its snapshot's disks, privileges.
#include "wire/vim_parts.h"

#include "base/vec.h"

#include <stdio.h>

#define LEVELS_MAX 64 // folders above a VM

// ---- folders, data centres, vApps and hosts

typedef struct Place {
    char *moref, *name, *parent; // encoded names; "" for what is not said
} Place;

VEC_DEFINE(PlaceVec, place_vec, Place)

typedef struct Inventory {
    Vim *v;
    PlaceVec places;
    bool sorted;
    Place reading;       // the object that is being read, as long as it is no VM
    char *parent_folder; // of a vApp
    VimVmReader vm;
    bool is_vm;
    bool found; // there was a VM
    VimOnVm on_vm;
    void *ctx;
} Inventory;

static void place_clear(Place *p)
{
    free(p->moref);
    free(p->name);
    free(p->parent);
    *p = (Place){0};
}

static void inventory_clear(Inventory *in)
{
    for (size_t i = 0; i < in->places.len; i++)
        place_clear(&in->places.items[i]);
    place_vec_clear(&in->places);
    place_clear(&in->reading);
    free(in->parent_folder);
    vim_vm_reader_clear(&in->vm);
}

static int compare_places(const void *a, const void *b)
{
    return strcmp(((const Place *)a)->moref, ((const Place *)b)->moref);
}

static const Place *find_place(Inventory *in, const char *moref)
{
    Place key = {.moref = (char *)moref}; // only compared
    if (!in->sorted && in->places.len > 0)
        qsort(in->places.items, in->places.len, sizeof(Place), compare_places);
    in->sorted = true;
    return in->places.len == 0 ? NULL : bsearch(&key, in->places.items, in->places.len, sizeof(Place), compare_places);
}

static bool begin_object(void *ctx, const char *type, const char *moref, Err *err)
{
    Inventory *in = ctx;
    in->is_vm = str_eq(type, "VirtualMachine");
    if (in->is_vm)
        return vim_vm_begin(&in->vm, moref, err);
    place_clear(&in->reading);
    free(mem_take(in->parent_folder));
    in->reading.moref = mem_strdup(moref, err);
    return in->reading.moref != NULL;
}

static bool read_object_property(void *ctx, const char *name, XmlReader *r, Err *err)
{
    Inventory *in = ctx;
    if (in->is_vm)
        return vim_vm_property(&in->vm, name, r, err);
    char **to = str_eq(name, "name")   ? &in->reading.name
        : str_eq(name, "parent")       ? &in->reading.parent
        : str_eq(name, "parentFolder") ? &in->parent_folder
                                       : NULL;
    return !to || vim_read_text(r, to, err);
}

static bool keep_place(Inventory *in, Err *err)
{
    Place *p = &in->reading;
    // A vApp's parent is a resource pool; people see it in a folder
    if (in->parent_folder && *in->parent_folder && !mem_replace(&p->parent, in->parent_folder, err))
        return false;
    if ((!p->name && !mem_replace(&p->name, "", err)) || (!p->parent && !mem_replace(&p->parent, "", err)) ||
        !place_vec_push(&in->places, *p, err))
        return false;
    *p = (Place){0};
    in->sorted = false;
    return true;
}

// "/DC0/vm/Folder/NAME", from the end on. "" when a place above is not known.
static bool make_path(Inventory *in, Err *err)
{
    const VimVmReader *r = &in->vm;
    const Place *places[LEVELS_MAX];
    size_t n = 0;
    StrBuf b = STR_BUF(VIM_TEXT_MAX);
    const char *above = *r->parent ? r->parent : r->parent_vapp;
    bool known = true;
    while (known && !str_eq(above, in->v->root_folder)) {
        const Place *p = n < LEVELS_MAX ? find_place(in, above) : NULL;
        known = p && *p->name;
        if (known) {
            places[n++] = p;
            above = p->parent;
        }
    }
    bool fine = true;
    while (known && fine && n > 0)
        fine = str_addf(&b, err, "/%s", places[--n]->name);
    fine =
        fine && (!known || str_addf(&b, err, "/%s", r->vm.name)) && mem_replace(&in->vm.vm.path, known ? b.s : "", err);
    str_clear(&b);
    return fine;
}

static bool finish_vm(Inventory *in, Err *err)
{
    if (!make_path(in, err))
        return false;
    vim_name_decode(in->vm.vm.name);
    const Place *host = find_place(in, in->vm.vm.host);
    return !host || mem_replace(&in->vm.vm.host_name, host->name, err);
}

// ---- one VM

static bool end_one(void *ctx, Err *err)
{
    Inventory *in = ctx;
    if (!in->is_vm)
        return keep_place(in, err);
    in->found = true;
    return vim_vm_end(&in->vm, err);
}

static const char *const place_paths[] = {"name", "parent", NULL};
static const char *const vapp_paths[] = {"name", "parent", "parentFolder", NULL};
static const char *const host_paths[] = {"name", NULL};

bool vim_vm(Vim *v, const char *moref, VimVm *ret, Err *err)
{
    // From the VM up: its folders, or its vApp, that one's folders
    static const char up[] =
        "<selectSet xsi:type=\"TraversalSpec\"><name>up</name><type>ManagedEntity</type><path>parent</path>"
        "<skip>false</skip><selectSet xsi:type=\"SelectionSpec\"><name>up</name></selectSet></selectSet>"
        "<selectSet xsi:type=\"TraversalSpec\"><name>in</name><type>VirtualApp</type><path>parentFolder</path>"
        "<skip>false</skip><selectSet xsi:type=\"SelectionSpec\"><name>up</name></selectSet></selectSet>"
        "<selectSet xsi:type=\"TraversalSpec\"><type>VirtualMachine</type><path>parentVApp</path>"
        "<skip>false</skip><selectSet xsi:type=\"SelectionSpec\"><name>up</name></selectSet>"
        "<selectSet xsi:type=\"SelectionSpec\"><name>in</name></selectSet></selectSet>";
    const VimPaths sets[] = {{"VirtualMachine", vim_vm_paths},
                             {"Folder", place_paths},
                             {"Datacenter", place_paths},
                             {"VirtualApp", vapp_paths}};
    cleanup(inventory_clear) Inventory in = {.v = v};
    const VimObjects objects = {begin_object, read_object_property, end_one, &in};
    if (!vim_properties(v, "VirtualMachine", moref, up, sets, ARRAY_LEN(sets), &objects, err))
        return false;
    if (!in.found)
        return err_set(err, ERR_NOT_FOUND, "no VM %s at %s", moref, v->host);
    // The path could not be made before: the VM comes before its folders
    if (!finish_vm(&in, err))
        return false;
    *ret = in.vm.vm;
    in.vm.vm = (VimVm){0};
    return true;
}

typedef struct Found {
    char *type, *moref;
} Found;

static bool on_found(void *ctx, XmlReader *r, Err *err)
{
    Found *f = ctx;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (!xml_is(r, "returnval"))
            continue;
        free(mem_take(f->type));
        if (!xml_attribute(r, "type", &f->type, err) || !vim_read_text(r, &f->moref, err))
            return false;
    }
    return false;
}

static bool find_path(Vim *v, const char *path, Found *f, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = xml_add_element(&b, "inventoryPath", path + (*path == '/'), err);
    VimCall c = {.method = "FindByInventoryPath",
                 .type = "SearchIndex",
                 .moref = v->search_index,
                 .arguments = b.s,
                 .on_reply = on_found,
                 .ctx = f,
                 .repeats = true};
    fine = fine && vim_call(v, &c, err);
    str_clear(&b);
    if (fine && (!f->moref || !*f->moref))
        return err_set(err, ERR_NOT_FOUND, "no VM %s at %s; a \"/\" within a name is written %%2f", path, v->host);
    if (fine && (!f->type || !str_eq(f->type, "VirtualMachine")))
        return err_set(err, ERR_NOT_FOUND, "%s at %s is no VM but a %s", path, v->host, f->type ? f->type : "thing");
    return fine;
}

bool vim_find(Vim *v, const char *moref_or_path, VimVm *ret, Err *err)
{
    Found f = {0};
    if (!strchr(moref_or_path, '/'))
        return vim_vm(v, moref_or_path, ret, err);
    bool fine = find_path(v, moref_or_path, &f, err) && vim_vm(v, f.moref, ret, err);
    free(f.type);
    free(f.moref);
    return fine;
}

// ---- all VMs

static bool end_listed(void *ctx, Err *err)
{
    Inventory *in = ctx;
    if (!in->is_vm)
        return true;
    if (!vim_vm_end(&in->vm, err) || !finish_vm(in, err))
        return false;
    return in->on_vm(in->ctx, &in->vm.vm, err);
}

bool vim_list(Vim *v, VimOnVm on_vm, void *ctx, Err *err)
{
    // Places first, so that a VM's path is known when it comes
    static const char *const place_types[] = {"Folder", "Datacenter", "VirtualApp", "HostSystem", NULL};
    static const char *const vm_types[] = {"VirtualMachine", NULL};
    const VimPaths place_sets[] = {
        {"Folder", place_paths}, {"Datacenter", place_paths}, {"VirtualApp", vapp_paths}, {"HostSystem", host_paths}};
    const VimPaths vm_sets[] = {{"VirtualMachine", vim_vm_paths}};
    cleanup(inventory_clear) Inventory in = {.v = v, .on_vm = on_vm, .ctx = ctx};
    const VimObjects places = {begin_object, read_object_property, end_one, &in};
    const VimObjects vms = {begin_object, read_object_property, end_listed, &in};
    return vim_view(v, place_types, place_sets, ARRAY_LEN(place_sets), &places, err) &&
        vim_view(v, vm_types, vm_sets, ARRAY_LEN(vm_sets), &vms, err);
}

// ---- a snapshot's disks

typedef struct Devices {
    VimDisks disks;
    bool found;
} Devices;

static bool on_devices(void *ctx, const char *name, XmlReader *r, Err *err)
{
    Devices *d = ctx;
    if (!str_eq(name, "config.hardware.device"))
        return true;
    d->found = true;
    return vim_devices_read(r, &d->disks, err);
}

bool vim_snapshot_disks(Vim *v, const char *snapshot, VimDisks *ret, Err *err)
{
    static const char *const paths[] = {"config.hardware.device", NULL};
    const VimPaths set = {"VirtualMachineSnapshot", paths};
    Devices d = {0};
    const VimObjects objects = {.property = on_devices, .ctx = &d};
    bool fine = vim_properties(v, "VirtualMachineSnapshot", snapshot, NULL, &set, 1, &objects, err);
    if (fine && !d.found)
        fine = err_set(err, ERR_FORBIDDEN, "%s does not tell the devices of %s; the user may lack the right to read it",
                       v->host, snapshot);
    if (fine)
        *ret = d.disks;
    else
        vim_disks_clear(&d.disks);
    return fine;
}

// ---- privileges

static const char *const needed[] = {
    "VirtualMachine.Config.ChangeTracking",   "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles", "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",    "Datastore.Browse",
};
#define DATASTORE_BROWSE (ARRAY_LEN(needed) - 1)

typedef struct Granted {
    bool asked[ARRAY_LEN(needed)], refused[ARRAY_LEN(needed)];
    bool has_datastores; // then they are asked for what concerns datastores, and the VM for the rest
    bool is_datastore;   // the entity that is being read
} Granted;

static bool read_privilege(Granted *g, XmlReader *r, Err *err)
{
    cleanup_free char *id = NULL;
    bool more, granted = false;
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, err)) {
        if (!more) {
            for (size_t i = 0; i < ARRAY_LEN(needed); i++) {
                bool is_asked = !g->has_datastores || g->is_datastore == (i == DATASTORE_BROWSE);
                if (!is_asked || !id || !str_eq(id, needed[i]))
                    continue;
                g->asked[i] = true;
                g->refused[i] |= !granted;
            }
            return true;
        }
        if ((xml_is(r, "privId") && !vim_read_text(r, &id, err)) ||
            (xml_is(r, "isGranted") && !vim_read_bool(r, &granted, err)))
            return false;
    }
    return false;
}

static bool read_entity(Granted *g, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "entity")) {
            cleanup_free char *type = NULL;
            if (!xml_attribute(r, "type", &type, err))
                return false;
            g->is_datastore = type && str_eq(type, "Datastore");
        }
        if (xml_is(r, "privAvailability") && !read_privilege(g, r, err))
            return false;
    }
    return false;
}

static bool on_granted(void *ctx, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    *(Granted *)ctx = (Granted){.has_datastores = ((Granted *)ctx)->has_datastores}; // nothing of a broken answer
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "returnval") && !read_entity(ctx, r, err))
            return false;
    }
    return false;
}

static bool add_entities(Vim *v, const char *moref, StrBuf *b, bool *ret_has_datastores, Err *err)
{
    VimVm vm = {0};
    if (!moref)
        return vim_add_moref(b, "entity", "Folder", v->root_folder, err);
    bool fine = vim_vm(v, moref, &vm, err) && vim_add_moref(b, "entity", "VirtualMachine", moref, err);
    for (size_t i = 0; fine && i < vm.datastores_len; i++)
        fine = vim_add_moref(b, "entity", "Datastore", vm.datastores[i], err);
    *ret_has_datastores = vm.datastores_len > 0;
    vim_vm_clear(&vm);
    return fine;
}

static bool ask_privileges(Vim *v, const char *moref, Granted *g, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine =
        add_entities(v, moref, &b, &g->has_datastores, err) && xml_add_element(&b, "sessionId", v->session_key, err);
    for (size_t i = 0; fine && i < ARRAY_LEN(needed); i++)
        fine = xml_add_element(&b, "privId", needed[i], err);
    VimCall c = {.method = "HasPrivilegeOnEntities",
                 .type = "AuthorizationManager",
                 .moref = v->authorization_manager,
                 .arguments = b.s,
                 .on_reply = on_granted,
                 .ctx = g,
                 .repeats = true};
    fine = fine && vim_call(v, &c, err);
    str_clear(&b);
    return fine;
}

bool vim_privileges(Vim *v, const char *moref, const char ***ret_missing, Err *err)
{
    Granted g = {0};
    size_t n = 0;
    if (!ask_privileges(v, moref, &g, err))
        return false;
    const char **missing = mem_calloc(ARRAY_LEN(needed) + 1, sizeof(*missing), err);
    if (!missing)
        return false;
    for (size_t i = 0; i < ARRAY_LEN(needed); i++)
        if (!g.asked[i] || g.refused[i]) // what the server did not speak of is not granted
            missing[n++] = needed[i];
    *ret_missing = missing;
    return true;
}
