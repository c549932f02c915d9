#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "service/hub/internal.h"

static bool view_change(const StoreChangeId *c, json_t **ret, Err *err)
{
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) &&
        codec_json_set(o, "disk_id", c->disk_id < 0 ? json_null() : json_integer(c->disk_id), err) &&
        codec_json_set_text(o, "change_id", c->change_id, err) &&
        codec_json_set_time(o, "recorded_at", c->recorded_us, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// history: everything; disks: the newest of each disk.
static bool view_changes(Hub *h, const char *job_id, json_t *disks, json_t *history, Err *err)
{
    StoreChangeId *rows = NULL;
    size_t len = 0;
    bool ok = store_replication_history(h->store, job_id, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        bool newest = true;
        for (size_t k = 0; k < i; k++)
            newest = newest && rows[k].disk_id != rows[i].disk_id;
        ok = view_change(&rows[i], &item, err) && (!newest || codec_json_push(disks, json_deep_copy(item), err));
        if (ok)
            ok = codec_json_push(history, mem_take(item), err);
        json_decref(item);
    }
    STORE_LIST_FREE(rows, len, store_changeid_clear);
    return ok;
}

static bool view(Hub *h, const StoreReplication *r, json_t **ret, Err *err)
{
    json_t *o = json_object(), *disks = json_array(), *history = json_array();
    bool ok = ((o && disks && history) || err_no_memory(err)) && view_changes(h, r->id, disks, history, err) &&
        codec_json_set_text(o, "job_id", r->id, err) && codec_json_set_text(o, "vm_name", r->vm_name, err) &&
        codec_json_set_text(o, "target", r->target, err) && codec_json_set_text(o, "status", r->status, err) &&
        codec_json_set_text(o, "change_id", r->change_id, err) &&
        codec_json_set_time(o, "created_at", r->created_us, err);
    ok = codec_json_set(o, "disks", disks, err) && ok;
    ok = codec_json_set(o, "history", history, err) && ok;
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_replication_add(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    const char *vm_name, *target, *job_id;
    char uuid[UUID_TEXT];
    StoreReplication r = {.created_us = clock_utc_us()};
    if (!codec_json_text(body, "vm_name", NAME_MAX_BYTES, &vm_name, err) || !name_check("vm_name", vm_name, err) ||
        !codec_json_text_opt(body, "target", 1024, &target, err) ||
        !codec_json_text_opt(body, "job_id", NAME_BACKUP_ID - 1, &job_id, err) || !uuid_new(uuid, err))
        return false;
    if (job_id && !str_starts(job_id, "replication-"))
        return err_set(err, ERR_INVALID, "job_id \"%s\" does not start with \"replication-\"", job_id);
    if (job_id && !name_check_job_id(job_id, err))
        return false;
    cleanup_free char *minted = job_id ? NULL : mem_printf(err, "replication-%s", uuid);
    r.updated_us = r.created_us;
    bool ok = (job_id || minted) && mem_replace(&r.id, job_id ? job_id : minted, err) &&
        mem_replace(&r.vm_name, vm_name, err) && mem_replace(&r.target, target, err) &&
        mem_replace(&r.status, "registered", err);
    Err adding = ERR_INIT;
    if (ok && !store_replication_add(h->store, &r, &adding)) {
        if (adding.code == ERR_EXISTS)
            ok = err_set(err, ERR_EXISTS, "replication job \"%s\" is registered already", r.id);
        else
            ok = (*err = adding, false);
    }
    ok = ok && view(h, &r, ret, err);
    store_replication_clear(&r);
    return ok;
}

bool hub_replication_list(Hub *h, json_t **ret, Err *err)
{
    StoreReplication *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_replication_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(h, &rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_replication_clear);
    return codec_json_wrap(ok, "replications", list, ret, err);
}

bool hub_replication_show(Hub *h, const char *id, json_t **ret, Err *err)
{
    StoreReplication r = {0};
    bool ok = store_replication_get(h->store, id, &r, err) && view(h, &r, ret, err);
    store_replication_clear(&r);
    return ok;
}

bool hub_replication_record(Hub *h, const char *id, const ChangeIdReport *report, json_t **ret, Err *err)
{
    StoreReplication job = {0};
    StoreChangeId c = {.disk_id = report->have_disk_id ? (int64_t)report->disk_id : -1, .recorded_us = clock_utc_us()};
    bool ok = store_replication_get(h->store, id, &job, err) && mem_replace(&c.job_id, id, err) &&
        mem_replace(&c.change_id, report->change_id, err) && store_replication_record(h->store, &c, err);
    store_replication_clear(&job);
    store_changeid_clear(&c);
    if (!ok)
        return false;
    log_info("change ID recorded", LOG_STR("job", id), LOG_STR("change_id", report->change_id));
    json_t *o = json_object();
    ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", "recorded", err) &&
        codec_json_set_text(o, "job_id", id, err) && codec_json_set_text(o, "change_id", report->change_id, err) &&
        codec_json_set(o, "disk_id", report->have_disk_id ? json_integer((json_int_t)report->disk_id) : json_null(),
                       err) &&
        codec_json_set_text(o, "message", "change_id recorded", err) && hub_set_now(o, "timestamp", err);
    *ret = o;
    return ok;
}
