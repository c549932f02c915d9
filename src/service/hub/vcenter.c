// What asks a vCenter: its certificate, the test of a source, discovery, finding a VM. Each opens a session of its own
// and logs out; no lock is held and no transaction open meanwhile.
#include "base/log.h"
#include "base/str.h"
#include "domain/vsphere.h"
#include "service/hub/internal.h"
#include "source/vsphere/spec.h"
#include "wire/vim.h"

#define SILENCE_MS 30000 // of the vCenter: somebody waits for the answer

#define cleanup_source cleanup(store_source_clear)

static void vim_cleanup(Vim **v)
{
    vim_close(*v);
}

// A vCenter's refusal is not the caller's: 401 and 403 of ours would speak of tokens, 400 of the request, 409 of our
// own state. What is not here is the peer's refusal, 502.
static bool from_vcenter(const char *address, Err *err)
{
    static const struct {
        ErrCode code, ours;
        const char *title;
    } known[] = {
        {ERR_NO_MEMORY, ERR_NO_MEMORY, NULL},
        {ERR_INTERNAL, ERR_INTERNAL, NULL},
        {ERR_TIMEOUT, ERR_TIMEOUT, "vcenter did not answer"},
        {ERR_UNAVAILABLE, ERR_UNAVAILABLE, "vcenter not reachable"},
        {ERR_CANCELLED, ERR_UNAVAILABLE, "the hub is stopping"},
        {ERR_UNAUTHORIZED, ERR_PROTOCOL, "vcenter refused the login"},
        {ERR_FORBIDDEN, ERR_PROTOCOL, "privilege missing in vcenter"},
        {ERR_NOT_FOUND, ERR_NOT_FOUND, "vm not found in vcenter"},
    };
    size_t i = 0;
    while (i < ARRAY_LEN(known) && known[i].code != err->code)
        i++;
    err->code = i < ARRAY_LEN(known) ? known[i].ours : ERR_PROTOCOL;
    if (i < ARRAY_LEN(known) && known[i].title)
        (void)err_title(err, known[i].title);
    return err_context(err, "vcenter %s", address);
}

static bool log_in(Hub *h, const StoreSource *s, const Secret *password, Vim **ret, Err *err)
{
    VimSpec spec = {.host = s->address,
                    .user = s->user,
                    .password = password,
                    .thumbprint = s->thumbprint,
                    .ca_pem = s->ca_pem,
                    .timeout_ms = SILENCE_MS,
                    .cancel = &h->closing};
    return vim_open(&spec, ret, err);
}

static bool open_session(Hub *h, const StoreSource *s, Vim **ret, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    return hub_source_password(h, s, &password, err) &&
        (log_in(h, s, &password, ret, err) || from_vcenter(s->address, err));
}

// ---- the certificate

bool hub_source_certificate(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    const char *address;
    TlsCertificate c;
    if (!codec_json_text(body, "vcenter", VSPHERE_ADDRESS_MAX, &address, err) || !vsphere_check_address(address, err))
        return false;
    if (!vim_certificate(address, SILENCE_MS, &h->closing, &c, err))
        return from_vcenter(address, err);
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "vcenter", address, err) &&
        codec_json_set_text(o, "sha256", c.sha256, err) && codec_json_set_text(o, "subject", c.subject, err) &&
        codec_json_set_text(o, "issuer", c.issuer, err) && codec_json_set_time(o, "not_before", c.not_before_us, err) &&
        codec_json_set_time(o, "not_after", c.not_after_us, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// ---- the test

typedef struct Test {
    json_t *checks;
    bool ok;
    uint64_t vms;
    char *moref, *path; // of a VM to look for privileges on
} Test;

static void test_clear(Test *t)
{
    json_decref(t->checks);
    free(t->moref);
    free(t->path);
}

// why: NULL where it went well.
static bool check(Test *t, const char *name, const char *why, Err *err)
{
    json_t *o = json_object();
    if (!codec_json_push(t->checks, o, err))
        return false;
    t->ok = t->ok && !why;
    return codec_json_set_text(o, "check", name, err) && codec_json_set_bool(o, "ok", !why, err) &&
        codec_json_set_text(o, "details", why ? why : "", err);
}

// How far the opening of a session came, told by how it failed.
static bool checks_of_failed_login(Test *t, const Err *why, Err *err)
{
    bool login = why->code == ERR_UNAUTHORIZED || why->code == ERR_FORBIDDEN;
    bool trust = why->code == ERR_INVALID || str_eq(err_short(why), "certificate not trusted");
    if (!login && !trust)
        return check(t, "connect", why->details, err);
    return check(t, "connect", NULL, err) && check(t, "certificate", trust ? why->details : NULL, err) &&
        (trust || check(t, "login", why->details, err));
}

static bool count_vm(void *ctx, const VimVm *vm, Err *err)
{
    Test *t = ctx;
    t->vms++;
    return t->moref || vm->is_template ||
        (mem_replace(&t->moref, vm->moref, err) && mem_replace(&t->path, *vm->path ? vm->path : vm->name, err));
}

static bool check_privileges(Vim *v, Test *t, json_t *missing, Err *err)
{
    cleanup_free const char **names = NULL;
    cleanup_free char *why = NULL;
    Err e = ERR_INIT;
    const char *where = t->moref ? t->path : "the root folder";
    if (!vim_privileges(v, t->moref, &names, &e))
        return check(t, "privileges", e.details, err);
    for (size_t i = 0; names[i]; i++)
        if (!codec_json_push(missing, json_string(names[i]), err))
            return false;
    if (names[0] && !(why = mem_printf(err, "%zu privileges are missing on %s", json_array_size(missing), where)))
        return false;
    return check(t, "privileges", why, err);
}

// Looks as far as it can; false only for what is not the vCenter's.
static bool try_source(Hub *h, const StoreSource *s, Test *t, json_t *o, Err *err)
{
    cleanup(vim_cleanup) Vim *v = NULL;
    cleanup(secret_clear) Secret password = {0};
    Err e = ERR_INIT;
    json_t *missing = json_array();
    if (!codec_json_set(o, "missing_privileges", missing, err) || !hub_source_password(h, s, &password, err))
        return false;
    if (!log_in(h, s, &password, &v, &e))
        return checks_of_failed_login(t, &e, err);
    VimAbout about = vim_about(v);
    if (!codec_json_set_text(o, "about", about.full_name, err) ||
        !codec_json_set_text(o, "api_version", about.api_version, err) || !check(t, "connect", NULL, err) ||
        !check(t, "certificate", NULL, err) || !check(t, "login", NULL, err))
        return false;
    if (!vim_list(v, count_vm, t, &e))
        return check(t, "inventory", e.details, err);
    return codec_json_set_u64(o, "vms", t->vms, err) && check(t, "inventory", NULL, err) &&
        check_privileges(v, t, missing, err);
}

bool hub_source_test(Hub *h, const char *source, json_t **ret, Err *err)
{
    StoreSource cleanup_source s = {0};
    cleanup(test_clear) Test t = {.ok = true, .checks = json_array()};
    if (!t.checks)
        return err_no_memory(err);
    if (!store_source_find(h->store, source, &s, err))
        return false;
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "name", s.name, err) &&
        codec_json_set_text(o, "about", NULL, err) && codec_json_set_text(o, "api_version", NULL, err) &&
        codec_json_set(o, "vms", json_null(), err) && try_source(h, &s, &t, o, err) &&
        codec_json_set_bool(o, "ok", t.ok, err) && codec_json_set(o, "checks", json_incref(t.checks), err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    log_info("source tested", LOG_STR("source", s.name), LOG_STR("result", t.ok ? "ok" : "not ok"));
    *ret = o;
    return true;
}

// ---- discovery

typedef struct Discovery {
    json_t *list;
    json_t *registered; // instance UUID: list of names in the hub
    VsphereDisk *disks; // of the VM that is being looked at
    VsphereObstacle *obstacles;
    size_t cap; // of disks
} Discovery;

static void discovery_clear(Discovery *d)
{
    json_decref(d->list);
    json_decref(d->registered);
    free(d->disks);
    free(d->obstacles);
}

// Under what names the VMs of this source are registered.
static bool load_registered(Hub *h, const StoreSource *s, json_t *registered, Err *err)
{
    StoreVm *vms = NULL;
    size_t len = 0;
    bool ok = store_source_vms(h->store, s->id, &vms, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        cleanup_json json_t *spec = NULL;
        const char *uuid;
        ok = codec_json_parse(vms[i].source, strlen(vms[i].source), 1u << 20, &spec, err) &&
            codec_json_text_opt(spec, "instance_uuid", 64, &uuid, err);
        if (!ok || !uuid)
            continue;
        json_t *names = json_object_get(registered, uuid);
        if (!names)
            ok = codec_json_set(registered, uuid, names = json_array(), err);
        ok = ok && codec_json_push(names, json_string(vms[i].name), err);
    }
    STORE_LIST_FREE(vms, len, store_vm_clear);
    return ok;
}

static bool room_for(Discovery *d, size_t disks, Err *err)
{
    if (disks <= d->cap)
        return true;
    free(mem_take(d->disks));
    free(mem_take(d->obstacles));
    d->cap = 0;
    if (!(d->disks = mem_calloc(disks, sizeof(*d->disks), err)) ||
        !(d->obstacles = mem_calloc(disks + VSPHERE_VM_OBSTACLES, sizeof(*d->obstacles), err)))
        return false;
    d->cap = disks;
    return true;
}

static bool add_obstacles(Discovery *d, const VimVm *vm, json_t *list, Err *err)
{
    if (!room_for(d, MAX(vm->disks.len, 1), err))
        return false;
    for (size_t i = 0; i < vm->disks.len; i++) {
        const VimDisk *disk = &vm->disks.items[i];
        d->disks[i] = (VsphereDisk){.key = disk->key,
                                    .backing = disk->backing,
                                    .disk_mode = disk->disk_mode,
                                    .compatibility_mode = disk->compatibility_mode,
                                    .sharing = disk->sharing,
                                    .bus_sharing = disk->bus_sharing};
    }
    VsphereVm rule = {.hardware_version = vm->hardware_version,
                      .connection_state = vm->connection_state,
                      .is_described = vm->is_described,
                      .is_template = vm->is_template,
                      .cbt_on = vm->tracking == VIM_YES,
                      .cbt_unsupported = vm->tracking_supported == VIM_NO,
                      .consolidation_needed = vm->consolidation_needed,
                      .snapshots = vm->snapshots_len,
                      .disks = d->disks,
                      .disks_len = vm->disks.len};
    size_t n = vsphere_obstacles(&rule, d->obstacles);
    for (size_t i = 0; i < n; i++) {
        const VsphereObstacle *found = &d->obstacles[i];
        json_t *o = json_object();
        if (!codec_json_push(list, o, err) || !codec_json_set_text(o, "code", found->code, err) ||
            !codec_json_set_text(o, "text", found->text, err) ||
            !(found->disk ? codec_json_set(o, "disk_id", json_integer(found->disk->key), err)
                          : codec_json_set(o, "disk_id", json_null(), err)))
            return false;
    }
    return true;
}

static bool add_disks(const VimVm *vm, json_t *list, Err *err)
{
    for (size_t i = 0; i < vm->disks.len; i++) {
        const VimDisk *disk = &vm->disks.items[i];
        json_t *o = json_object();
        if (!codec_json_push(list, o, err) || !codec_json_set(o, "disk_id", json_integer(disk->key), err) ||
            !codec_json_set_text(o, "label", disk->label, err) || !codec_json_set_u64(o, "size", disk->capacity, err) ||
            !codec_json_set_text(o, "file", disk->file, err) ||
            !codec_json_set_text(o, "disk_mode", disk->disk_mode, err))
            return false;
    }
    return true;
}

static bool add_snapshots(const VimVm *vm, json_t *list, Err *err)
{
    for (size_t i = 0; i < vm->snapshots_len; i++) {
        const VimSnapshot *snapshot = &vm->snapshots[i];
        json_t *o = json_object();
        if (!codec_json_push(list, o, err) || !codec_json_set_text(o, "moref", snapshot->moref, err) ||
            !codec_json_set_text(o, "name", snapshot->name, err) ||
            !codec_json_set_text(o, "created", snapshot->created, err))
            return false;
    }
    return true;
}

static json_t *list_in(json_t *o, const char *key, Err *err)
{
    json_t *list = json_array();
    return codec_json_set(o, key, list, err) ? list : NULL;
}

static bool discover_vm(void *ctx, const VimVm *vm, Err *err)
{
    static const char *const tracking[] = {[VIM_UNSAID] = "unknown", [VIM_NO] = "off", [VIM_YES] = "on"};
    Discovery *d = ctx;
    json_t *o = json_object(), *disks, *snapshots, *obstacles;
    json_t *names = json_object_get(d->registered, vm->instance_uuid);
    return codec_json_push(d->list, o, err) &&
        codec_json_set(o, "registered_as", names ? json_incref(names) : json_array(), err) &&
        codec_json_set_text(o, "moref", vm->moref, err) && codec_json_set_text(o, "name", vm->name, err) &&
        codec_json_set_text(o, "path", *vm->path ? vm->path : NULL, err) &&
        codec_json_set_text(o, "instance_uuid", vm->instance_uuid, err) &&
        codec_json_set_text(o, "power_state", vm->power_state, err) &&
        codec_json_set_text(o, "host", vm->host_name, err) &&
        codec_json_set_u64(o, "hardware_version", vm->hardware_version, err) &&
        codec_json_set_bool(o, "template", vm->is_template, err) &&
        codec_json_set_text(o, "cbt", tracking[vm->tracking], err) && (disks = list_in(o, "disks", err)) &&
        add_disks(vm, disks, err) && (snapshots = list_in(o, "snapshots", err)) && add_snapshots(vm, snapshots, err) &&
        (obstacles = list_in(o, "obstacles", err)) && add_obstacles(d, vm, obstacles, err);
}

bool hub_source_vms(Hub *h, const char *source, json_t **ret, Err *err)
{
    StoreSource cleanup_source s = {0};
    cleanup(vim_cleanup) Vim *v = NULL;
    cleanup(discovery_clear) Discovery d = {.list = json_array(), .registered = json_object()};
    if (!d.list || !d.registered)
        return err_no_memory(err);
    if (!store_source_find(h->store, source, &s, err) || !load_registered(h, &s, d.registered, err))
        return false;
    if (!open_session(h, &s, &v, err))
        return false;
    if (!vim_list(v, discover_vm, &d, err))
        return from_vcenter(s.address, err);
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "source", s.name, err) &&
        codec_json_set(o, "vms", json_incref(d.list), err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// ---- finding a VM

bool hub_vcenter_find(Hub *h, json_t *spec, char **ret_source_id, Err *err)
{
    StoreSource cleanup_source s = {0};
    cleanup(vim_cleanup) Vim *v = NULL;
    cleanup(vim_vm_clear) VimVm vm = {0};
    VsphereSpec read;
    if (!vsphere_spec_read(spec, &read, err) || !store_source_find(h->store, read.source, &s, err))
        return false;
    if (!open_session(h, &s, &v, err))
        return false;
    if (!vim_find(v, read.vm, &vm, err))
        return from_vcenter(s.address, err);
    static const char *const quiesce[] = {
        [VSPHERE_QUIESCE_AUTO] = "auto", [VSPHERE_QUIESCE_OFF] = "off", [VSPHERE_QUIESCE_REQUIRE] = "require"};
    return codec_json_set_text(spec, "source", s.name, err) && codec_json_set_text(spec, "moref", vm.moref, err) &&
        codec_json_set_text(spec, "instance_uuid", *vm.instance_uuid ? vm.instance_uuid : NULL, err) &&
        codec_json_set_text(spec, "path", *vm.path ? vm.path : NULL, err) &&
        codec_json_set_text(spec, "quiesce", quiesce[read.quiesce], err) &&
        codec_json_set_text(spec, "disks_unsupported", read.skip_unsupported ? "skip" : "fail", err) &&
        codec_json_set_text(spec, "unallocated", read.unallocated_zero ? "zero" : "read", err) &&
        mem_replace(ret_source_id, s.id, err);
}
