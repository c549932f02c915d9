#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "service/hub/internal.h"
#include "source/source.h"

#include <stdio.h>

#define SOURCE_JSON_MAX (1u << 20)
#define LIST_STEP 500 // VMs in one question

// File disks are known by a key that is given once, at registration; never by their place in the list.
static bool give_keys(json_t *source, Err *err)
{
    json_t *disks = json_object_get(source, "disks"), *disk;
    size_t i;
    unsigned next = 0;
    json_array_foreach(disks, i, disk)
    {
        if (!json_is_object(disk) || json_object_get(disk, "key"))
            continue;
        char key[32];
        bool taken;
        do {
            (void)snprintf(key, sizeof(key), "disk-%u", next++);
            taken = false;
            size_t k;
            json_t *other;
            json_array_foreach(disks, k, other)
            {
                const char *name = json_string_value(json_object_get(other, "key"));
                taken = taken || (name && strcmp(name, key) == 0);
            }
        } while (taken);
        if (!codec_json_set_text(disk, "key", key, err))
            return false;
    }
    return true;
}

static bool check_source(Hub *h, const char *type, json_t *source, char **ret_source_id, Err *err)
{
    if (strcmp(type, "vsphere") == 0)
        return hub_vcenter_find(h, source, ret_source_id, err);
    const SourceOps *ops = source_find(type, err);
    return ops && (strcmp(type, "file") != 0 || give_keys(source, err)) && ops->check_spec(source, err);
}

// ret_source_id: NULL where the VM is read through no source.
static bool read_source(Hub *h, const json_t *body, char **ret_text, char **ret_source_id, Err *err)
{
    json_t *given = json_object_get(body, "source");
    const char *type;
    if (!codec_json_object(given, "source", err) || !codec_json_text(given, "type", 32, &type, err))
        return false;
    json_t *source = json_deep_copy(given);
    if (!source)
        return err_no_memory(err);
    cleanup_free char *source_id = NULL, *text = NULL;
    bool ok = check_source(h, type, source, &source_id, err) && codec_json_dump(source, &text, err);
    json_decref(source);
    if (ok && strlen(text) > SOURCE_JSON_MAX)
        ok = err_set(err, ERR_INVALID, "source is too large");
    if (!ok)
        return false;
    free(*ret_text);
    free(*ret_source_id);
    *ret_text = mem_take(text);
    *ret_source_id = mem_take(source_id);
    return true;
}

static bool read_excluded(const json_t *body, char **ret_text, Err *err)
{
    json_t *list = json_object_get(body, "excluded_disks"), *key;
    size_t i;
    if (!list) {
        *ret_text = mem_strdup("[]", err);
        return *ret_text != NULL;
    }
    if (!json_is_array(list) || json_array_size(list) > 256)
        return err_set(err, ERR_INVALID, "excluded_disks is a list of at most 256 disk keys");
    json_array_foreach(list, i, key) if (!json_is_string(key) ||
                                         !name_check("a disk key", json_string_value(key),
                                                     err)) return err_set(err, ERR_INVALID,
                                                                          "excluded_disks is a list of disk keys");
    return codec_json_dump(list, ret_text, err);
}

// null: as the hub has it.
static bool read_audit(const json_t *body, int64_t *ret, Err *err)
{
    uint64_t blocks;
    bool present;
    if (!codec_json_u64_opt(body, "audit_blocks", AUDIT_BLOCKS_MAX, &blocks, &present, err))
        return false;
    *ret = present ? (int64_t)blocks : -1;
    return true;
}

static bool view_audit(const StoreVm *v, bool registered, json_t *o, Err *err)
{
    return registered && v->audit_blocks >= 0 ? codec_json_set_u64(o, "audit_blocks", (uint64_t)v->audit_blocks, err)
                                              : codec_json_set_text(o, "audit_blocks", NULL, err);
}

static bool view_last(const StoreVmSummary *s, json_t **ret, Err *err)
{
    json_t *o = s->last_id ? json_object() : json_null();
    bool ok = (o != NULL || err_no_memory(err)) &&
        (!s->last_id ||
         (codec_json_set_text(o, "backup_id", s->last_id, err) &&
          codec_json_set_text(o, "status", s->last_status, err) &&
          codec_json_set_time(o, "created_at", s->last_us, err)));
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool view(const StoreVmSummary *s, bool registered, json_t **ret, Err *err)
{
    const StoreVm *v = &s->vm;
    json_t *source = NULL, *excluded = NULL, *o = json_object(), *last = NULL;
    bool ok = (o != NULL || err_no_memory(err)) && view_last(s, &last, err) &&
        (!v->source || codec_json_parse(v->source, strlen(v->source), SOURCE_JSON_MAX, &source, err)) &&
        hub_view_strings(v->excluded, &excluded, err);
    ok = ok && codec_json_set_text(o, "vm_id", v->id, err) && codec_json_set_text(o, "name", v->name, err) &&
        codec_json_set_time(o, "created_at", v->created_us, err) &&
        codec_json_set_bool(o, "registered", registered, err) && codec_json_set_u64(o, "points", s->points, err) &&
        view_audit(v, registered, o, err);
    if (ok)
        ok = codec_json_set(o, "source", source ? mem_take(source) : json_null(), err);
    if (ok)
        ok = codec_json_set(o, "excluded_disks", mem_take(excluded), err);
    if (ok)
        ok = codec_json_set(o, "last_backup", mem_take(last), err);
    json_decref(source);
    json_decref(excluded);
    json_decref(last);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool view_registered(Hub *h, const char *vm_id, json_t **ret, Err *err)
{
    StoreVmSummary s = {0};
    bool found;
    if (!store_vm_summary(h->store, vm_id, &s, &found, err))
        return false;
    if (!found)
        return err_set(err, ERR_NOT_FOUND, "VM %s was removed meanwhile", vm_id);
    bool ok = view(&s, true, ret, err);
    store_vm_summary_clear(&s);
    return ok;
}

// The identity of old points that a new registration takes over: by UUID, or by the name on them.
static bool adopted_id(Hub *h, const char *adopt, char **ret_id, Err *err)
{
    StoreVm *orphans = NULL;
    size_t len = 0;
    if (!store_vm_orphans(h->store, &orphans, &len, err))
        return false;
    const char *id = NULL;
    unsigned hits = 0;
    for (size_t i = 0; i < len; i++)
        if (strcmp(orphans[i].id, adopt) == 0 || strcmp(orphans[i].name, adopt) == 0) {
            id = orphans[i].id;
            hits++;
        }
    bool ok = hits == 1 ? mem_replace(ret_id, id, err)
        : hits == 0
        ? err_set(err, ERR_NOT_FOUND,
                  "no points of an unregistered VM \"%s\" are in the catalogue; scan the repository first", adopt)
        : err_set(err, ERR_CONFLICT, "several VMs named \"%s\" left points; give the UUID of one", adopt);
    STORE_LIST_FREE(orphans, len, store_vm_clear);
    return ok;
}

bool hub_vm_add(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    StoreVm cleanup_vm v = {0}, taken = {0};
    const char *name, *adopt;
    char id[UUID_TEXT];
    if (!codec_json_text(body, "name", NAME_MAX_BYTES, &name, err) || !name_check("name", name, err) ||
        !codec_json_text_opt(body, "adopt", NAME_MAX_BYTES, &adopt, err) || !read_excluded(body, &v.excluded, err) ||
        !read_audit(body, &v.audit_blocks, err) || !mem_replace(&v.name, name, err))
        return false;
    Err missing = ERR_INIT;
    if (store_vm_find(h->store, name, &taken, &missing)) {
        store_vm_clear(&taken);
        return err_set(err, ERR_EXISTS, "a VM named \"%s\" is registered already", name);
    }
    if (!read_source(h, body, &v.source, &v.source_id, err))
        return false;
    if (adopt ? !adopted_id(h, adopt, &v.id, err) : (!uuid_new(id, err) || !mem_replace(&v.id, id, err)))
        return false;
    v.created_us = clock_utc_us();
    if (!store_vm_add(h->store, &v, err))
        return false;
    log_info("vm registered", LOG_STR("vm", v.name), LOG_STR("vm_id", v.id));
    return view_registered(h, v.id, ret, err);
}

static bool push_all(const StoreVmSummary *rows, size_t len, bool registered, json_t *list, Err *err)
{
    for (size_t i = 0; i < len; i++) {
        json_t *item = NULL;
        if (!view(&rows[i], registered, &item, err) || !codec_json_push(list, item, err))
            return false;
    }
    return true;
}

// limit 0: all of them, in pages all the same, so that nobody else waits long for the database. *ret_next: the last
// one's name, where there may be more.
static bool view_registered_ones(Hub *h, const char *after, uint64_t limit, json_t *list, char **ret_next, Err *err)
{
    uint64_t step = limit ? limit : LIST_STEP;
    cleanup_free char *place = NULL;
    bool full = true, ok = mem_replace(&place, after, err);
    while (ok && full) {
        StoreVmSummary *rows = NULL;
        size_t len = 0;
        ok = store_vm_summaries(h->store, place, step, &rows, &len, err) && push_all(rows, len, true, list, err) &&
            (len == 0 || mem_replace(&place, rows[len - 1].vm.name, err));
        full = len == step;
        STORE_LIST_FREE(rows, len, store_vm_summary_clear);
        if (limit)
            break;
    }
    if (ok && limit && full)
        *ret_next = mem_take(place);
    return ok;
}

static bool view_orphans(Hub *h, json_t *list, Err *err)
{
    StoreVmSummary *rows = NULL;
    size_t len = 0;
    bool ok = store_vm_orphan_summaries(h->store, &rows, &len, err) && push_all(rows, len, false, list, err);
    STORE_LIST_FREE(rows, len, store_vm_summary_clear);
    return ok;
}

bool hub_vm_list(Hub *h, const HubVmFilter *f, json_t **ret, Err *err)
{
    cleanup_free char *next = NULL;
    if (f->all && (f->limit > 0 || f->after))
        return err_set(err, ERR_INVALID,
                       "all goes without limit and after: those that are not registered come at the"
                       " end of the whole list");
    if (f->after && f->limit == 0)
        return err_set(err, ERR_INVALID, "after goes with limit");
    json_t *o = json_object(), *list = json_array();
    bool ok = ((o && list) || err_no_memory(err)) && view_registered_ones(h, f->after, f->limit, list, &next, err) &&
        (!f->all || view_orphans(h, list, err)) && codec_json_set_text(o, "next", next, err);
    ok = codec_json_set(o, "vms", list, err) && ok;
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_vm_show(Hub *h, const char *vm, json_t **ret, Err *err)
{
    StoreVm cleanup_vm v = {0};
    return store_vm_find(h->store, vm, &v, err) && view_registered(h, v.id, ret, err);
}

static bool no_job_runs(Hub *h, const StoreVm *v, Err *err)
{
    StoreBackup *jobs = NULL;
    size_t len = 0;
    if (!store_backup_active(h->store, &jobs, &len, err))
        return false;
    bool any = false;
    for (size_t i = 0; i < len; i++)
        any = any || strcmp(jobs[i].vm_id, v->id) == 0;
    STORE_LIST_FREE(jobs, len, store_backup_clear);
    return !any || err_set(err, ERR_BUSY, "a job of VM \"%s\" runs; wait for it, or cancel it", v->name);
}

// source: what the VM is read from from now on; NULL: as it was.
static bool change(Hub *h, const char *vm, const json_t *body, const char *source, const char *source_id, StoreVm *v,
                   Err *err)
{
    const char *name;
    if (!store_vm_find(h->store, vm, v, err) || !no_job_runs(h, v, err) ||
        !codec_json_text_opt(body, "name", NAME_MAX_BYTES, &name, err))
        return false;
    if (name && strcmp(name, v->name) != 0) {
        StoreVm cleanup_vm taken = {0};
        Err missing = ERR_INIT;
        if (!name_check("name", name, err))
            return false;
        if (store_vm_find(h->store, name, &taken, &missing))
            return err_set(err, ERR_EXISTS, "a VM named \"%s\" is registered already", name);
        if (!mem_replace(&v->name, name, err))
            return false;
    }
    if (source && (!mem_replace(&v->source, source, err) || !mem_replace(&v->source_id, source_id, err)))
        return false;
    if (json_object_get(body, "excluded_disks")) {
        free(mem_take(v->excluded));
        if (!read_excluded(body, &v->excluded, err))
            return false;
    }
    if (json_object_get(body, "audit_blocks") && !read_audit(body, &v->audit_blocks, err))
        return false;
    return store_vm_update(h->store, v, err);
}

bool hub_vm_change(Hub *h, const char *vm, const json_t *body, json_t **ret, Err *err)
{
    StoreVm cleanup_vm v = {0}, known = {0};
    cleanup_free char *source = NULL, *source_id = NULL;
    // before the transaction: a vCenter may be asked
    if (!store_vm_find(h->store, vm, &known, err))
        return false;
    store_vm_clear(&known);
    if (json_object_get(body, "source") && !read_source(h, body, &source, &source_id, err))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_vm_clear(&v);
        t.ok = change(h, vm, body, source, source_id, &v, err);
    }
    return t.ok && view_registered(h, v.id, ret, err);
}

bool hub_vm_remove(Hub *h, const char *vm, json_t **ret, Err *err)
{
    StoreVm cleanup_vm v = {0};
    uint64_t points = 0;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_vm_clear(&v);
        t.ok = store_vm_find(h->store, vm, &v, err) && no_job_runs(h, &v, err) &&
            store_vm_points(h->store, v.id, &points, err) && store_backup_forget_interrupted(h->store, 0, v.id, err) &&
            store_vm_remove(h->store, v.id, err);
    }
    if (!t.ok)
        return false;
    log_info("vm removed; its points stay", LOG_STR("vm", v.name), LOG_NUM("points", points));
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", "removed", err) &&
        codec_json_set_text(o, "vm_id", v.id, err) && codec_json_set_u64(o, "points_kept", points, err);
    *ret = o;
    return ok;
}
