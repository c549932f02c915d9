#include "codec/work.h"

#include "base/str.h"
#include "base/uuid.h"
#include "codec/work_parts.h"
#include "domain/changeid.h"

#define LEASE_SECONDS_MAX 86400
#define CLUSTER_SIZE_MIN (UINT64_C(1) << 12)
#define CLUSTER_SIZE_MAX (UINT64_C(1) << 21)

const char *work_tracking(const char *name)
{
    static const char *const known[] = {"bitmap", "cbt", "none"};
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (str_eq(name, known[i]))
            return known[i];
    return NULL;
}

// ---- pieces

json_t *work_object(Err *err)
{
    json_t *o = json_object();
    if (!o)
        (void)err_no_memory(err);
    return o;
}

json_t *work_array(Err *err)
{
    json_t *a = json_array();
    if (!a)
        (void)err_no_memory(err);
    return a;
}

bool work_text(const json_t *object, const char *key, size_t min, size_t max, char **ret, Err *err)
{
    const char *s;
    if (!codec_json_text(object, key, max, &s, err))
        return false;
    if (strlen(s) < min)
        return err_set(err, ERR_INVALID, "%s is empty", key);
    char *copy = mem_strdup(s, err);
    if (!copy)
        return false;
    *ret = copy;
    return true;
}

bool work_text_opt(const json_t *object, const char *key, size_t max, char **ret, Err *err)
{
    const char *s;
    if (!codec_json_text_opt(object, key, max, &s, err))
        return false;
    char *copy = s ? mem_strdup(s, err) : NULL;
    if (s && !copy)
        return false;
    *ret = copy;
    return true;
}

bool work_uuid(const json_t *object, const char *key, char **ret, Err *err)
{
    const char *s;
    if (!codec_json_text(object, key, UUID_TEXT, &s, err))
        return false;
    if (!uuid_is_valid(s))
        return err_set(err, ERR_INVALID, "%s is not a UUID", key);
    return work_text(object, key, 1, UUID_TEXT, ret, err);
}

void work_keys_clear(char ***keys, size_t *len)
{
    for (size_t i = 0; i < *len; i++)
        free((*keys)[i]);
    free(*keys);
    *keys = NULL;
    *len = 0;
}

bool work_keys(const json_t *object, const char *key, char ***ret, size_t *ret_len, Err *err)
{
    json_t *array;
    if (!codec_json_array(object, key, WORK_DISKS_MAX, &array, err))
        return false;
    size_t len = 0;
    char **keys = mem_calloc(json_array_size(array), sizeof(*keys), err);
    if (!keys)
        return false;
    for (; len < json_array_size(array); len++) {
        const char *s = json_string_value(json_array_get(array, len));
        if (!s || *s == '\0' || strlen(s) > WORK_KEY_MAX) {
            (void)err_set(err, ERR_INVALID, "%s[%zu] is not a text of 1 to %d bytes", key, len, WORK_KEY_MAX);
            break;
        }
        keys[len] = mem_strdup(s, err);
        if (!keys[len])
            break;
    }
    if (len < json_array_size(array)) {
        work_keys_clear(&keys, &len);
        return false;
    }
    *ret = keys;
    *ret_len = len;
    return true;
}

bool work_set_keys(json_t *object, const char *key, char *const *keys, size_t len, Err *err)
{
    cleanup_json json_t *array = work_array(err);
    if (!array)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!str_is_utf8(keys[i], strlen(keys[i])))
            return err_set(err, ERR_INVALID, "%s[%zu] is not UTF-8", key, i);
        if (!codec_json_push(array, json_string_nocheck(keys[i]), err))
            return false;
    }
    return codec_json_set(object, key, mem_take(array), err);
}

bool work_parse(const char *text, size_t n, const char *const *known, json_t **ret, Err *err)
{
    cleanup_json json_t *value = NULL;
    if (!codec_json_parse(text, n, WORK_BODY_MAX, &value, err) || !codec_json_object(value, "the body", err))
        return false;
    if (known && !codec_json_only(value, known, err))
        return false;
    *ret = mem_take(value);
    return true;
}

bool work_disks(const json_t *object, const char *key, json_t **ret, Err *err)
{
    json_t *array;
    if (!codec_json_array(object, key, WORK_DISKS_MAX, &array, err))
        return false;
    for (size_t i = 0; i < json_array_size(array); i++)
        if (!json_is_object(json_array_get(array, i)))
            return err_set(err, ERR_INVALID, "%s[%zu] is not an object", key, i);
    *ret = array;
    return true;
}

// ---- claim

bool work_claim_encode(const char *claim_uuid, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    return o && codec_json_set_text(o, "claim", claim_uuid, err) && codec_json_dump(o, ret_text, err);
}

bool work_claim_decode(const char *text, size_t n, char ret_uuid[37], Err *err)
{
    static const char *const known[] = {"claim", NULL};
    cleanup_json json_t *o = NULL;
    cleanup_free char *uuid = NULL;
    if (!work_parse(text, n, known, &o, err) || !work_uuid(o, "claim", &uuid, err))
        return false;
    memcpy(ret_uuid, uuid, UUID_TEXT);
    return true;
}

// ---- work order

static json_t *parent_encode(const WorkParentDisk *d, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    if (!o || !codec_json_set_text(o, "disk_key", d->disk_key, err) ||
        !codec_json_set_u64(o, "disk_id", d->disk_id, err) || !codec_json_set_u64(o, "size", d->size, err) ||
        !codec_json_set_text(o, "change_id", d->change_id, err) ||
        !codec_json_set_bool(o, "tracking", d->tracking, err) ||
        !codec_json_set_text(o, "backing_identity", d->backing_identity, err))
        return NULL;
    return mem_take(o);
}

static bool parents_encode(json_t *o, const WorkOrder *w, Err *err)
{
    cleanup_json json_t *array = work_array(err);
    if (!array)
        return false;
    for (size_t i = 0; i < w->parent_disks_len; i++) {
        json_t *disk = parent_encode(&w->parent_disks[i], err);
        if (!disk || !codec_json_push(array, disk, err))
            return false;
    }
    return codec_json_set(o, "parent_disks", mem_take(array), err);
}

static bool interrupted_encode(json_t *o, const WorkOrder *w, Err *err)
{
    cleanup_json json_t *array = work_array(err);
    if (!array)
        return false;
    for (size_t i = 0; i < w->interrupted_disks_len; i++) {
        const WorkInterrupted *d = &w->interrupted_disks[i];
        cleanup_json json_t *disk = work_object(err);
        if (!disk || !codec_json_set_text(disk, "disk_key", d->disk_key, err) ||
            !codec_json_set_u64(disk, "size", d->size, err) || !codec_json_set_text(disk, "token", d->token, err) ||
            !codec_json_push(array, mem_take(disk), err))
            return false;
    }
    return codec_json_set_text(o, "interrupted_backup_id", w->interrupted_backup_id, err) &&
        codec_json_set(o, "interrupted_disks", mem_take(array), err);
}

static bool vcenter_encode(json_t *o, const WorkVcenter *v, Err *err)
{
    if (!v->host)
        return true;
    cleanup_json json_t *vcenter = work_object(err);
    return vcenter && codec_json_set_text(vcenter, "host", v->host, err) &&
        codec_json_set_text(vcenter, "user", v->user, err) &&
        codec_json_set_text(vcenter, "password", secret_reveal(&v->password), err) &&
        codec_json_set_text(vcenter, "thumbprint", v->thumbprint, err) &&
        codec_json_set_text(vcenter, "ca_pem", v->ca_pem, err) && codec_json_set(o, "vcenter", mem_take(vcenter), err);
}

bool work_order_encode(const WorkOrder *w, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    return o && codec_json_set_text(o, "job_id", w->job_id, err) && codec_json_set_text(o, "vm_id", w->vm_id, err) &&
        codec_json_set_text(o, "vm_name", w->vm_name, err) &&
        codec_json_set_text(o, "repository_uuid", w->repository_uuid, err) &&
        codec_json_set_u64(o, "cluster_size", w->cluster_size, err) &&
        codec_json_set_text(o, "backup_type", backup_type_name(w->backup_type), err) &&
        codec_json_set(o, "source", json_incref(w->source), err) &&
        work_set_keys(o, "excluded_disks", w->excluded_disks, w->excluded_disks_len, err) &&
        codec_json_set_text(o, "parent_backup_id", w->parent_backup_id, err) && parents_encode(o, w, err) &&
        interrupted_encode(o, w, err) && vcenter_encode(o, &w->vcenter, err) &&
        codec_json_set_u64(o, "lease_seconds", w->lease_seconds, err) &&
        (w->audit_blocks == 0 ||
         (codec_json_set_u64(o, "audit_blocks", w->audit_blocks, err) &&
          codec_json_set_u64(o, "audit_percent", w->audit_percent, err))) &&
        codec_json_dump(o, ret_text, err);
}

static void parent_clear(WorkParentDisk *d)
{
    free(d->disk_key);
    free(d->change_id);
    free(d->backing_identity);
    *d = (WorkParentDisk){0};
}

void work_order_clear(WorkOrder *w)
{
    free(w->job_id);
    free(w->vm_id);
    free(w->vm_name);
    free(w->repository_uuid);
    free(w->parent_backup_id);
    json_decref(w->source);
    work_keys_clear(&w->excluded_disks, &w->excluded_disks_len);
    for (size_t i = 0; i < w->parent_disks_len; i++)
        parent_clear(&w->parent_disks[i]);
    free(w->parent_disks);
    free(w->interrupted_backup_id);
    for (size_t i = 0; i < w->interrupted_disks_len; i++) {
        free(w->interrupted_disks[i].disk_key);
        free(w->interrupted_disks[i].token);
    }
    free(w->interrupted_disks);
    free(w->vcenter.host);
    free(w->vcenter.user);
    free(w->vcenter.thumbprint);
    free(w->vcenter.ca_pem);
    secret_clear(&w->vcenter.password);
    *w = (WorkOrder){0};
}

static bool parent_decode(const json_t *o, WorkParentDisk *d, Err *err)
{
    return work_text(o, "disk_key", 1, WORK_KEY_MAX, &d->disk_key, err) &&
        codec_json_u64(o, "disk_id", WORK_NUMBER_MAX, &d->disk_id, err) &&
        codec_json_u64(o, "size", DISK_SIZE_MAX, &d->size, err) &&
        work_text(o, "change_id", 1, CHANGEID_MAX, &d->change_id, err) &&
        codec_json_bool_opt(o, "tracking", false, &d->tracking, err) &&
        work_text(o, "backing_identity", 0, WORK_TEXT_MAX, &d->backing_identity, err);
}

static bool parents_decode(const json_t *o, WorkOrder *w, Err *err)
{
    json_t *array;
    if (!work_disks(o, "parent_disks", &array, err))
        return false;
    w->parent_disks = mem_calloc(json_array_size(array), sizeof(*w->parent_disks), err);
    if (!w->parent_disks)
        return false;
    for (size_t i = 0; i < json_array_size(array); i++) {
        w->parent_disks_len = i + 1;
        if (!parent_decode(json_array_get(array, i), &w->parent_disks[i], err))
            return err_context(err, "parent_disks[%zu]", i);
    }
    return true;
}

// An older hub says nothing of it.
static bool interrupted_decode(const json_t *o, WorkOrder *w, Err *err)
{
    json_t *array;
    if (!json_object_get(o, "interrupted_disks"))
        return true;
    if (!work_text_opt(o, "interrupted_backup_id", WORK_TEXT_MAX, &w->interrupted_backup_id, err) ||
        !work_disks(o, "interrupted_disks", &array, err))
        return false;
    w->interrupted_disks = mem_calloc(json_array_size(array), sizeof(*w->interrupted_disks), err);
    if (!w->interrupted_disks)
        return false;
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *disk = json_array_get(array, i);
        WorkInterrupted *d = &w->interrupted_disks[i];
        w->interrupted_disks_len = i + 1;
        if (!work_text(disk, "disk_key", 1, WORK_KEY_MAX, &d->disk_key, err) ||
            !codec_json_u64(disk, "size", DISK_SIZE_MAX, &d->size, err) ||
            !work_text(disk, "token", 1, WORK_TEXT_MAX, &d->token, err))
            return err_context(err, "interrupted_disks[%zu]", i);
    }
    return true;
}

static bool vcenter_decode(const json_t *o, WorkVcenter *v, Err *err)
{
    const json_t *vcenter = json_object_get(o, "vcenter");
    const char *password;
    if (!vcenter || json_is_null(vcenter))
        return true;
    bool ok = codec_json_object(vcenter, "vcenter", err) &&
        work_text(vcenter, "host", 1, WORK_TEXT_MAX, &v->host, err) &&
        work_text(vcenter, "user", 1, WORK_TEXT_MAX, &v->user, err) &&
        codec_json_text(vcenter, "password", SECRET_MAX, &password, err) && secret_set(&v->password, password, err) &&
        work_text_opt(vcenter, "thumbprint", WORK_TEXT_MAX, &v->thumbprint, err) &&
        work_text_opt(vcenter, "ca_pem", WORK_CA_MAX, &v->ca_pem, err);
    if (ok && !v->thumbprint == !v->ca_pem)
        ok = err_set(err, ERR_INVALID, "either thumbprint or ca_pem is needed");
    return ok || err_context(err, "vcenter");
}

static bool order_fields(const json_t *o, WorkOrder *w, Err *err)
{
    const char *type;
    uint64_t cluster_size, lease, percent;
    bool present;
    json_t *source = json_object_get(o, "source");
    if (!codec_json_object(source, "source", err) || !codec_json_text(o, "backup_type", 32, &type, err) ||
        !backup_type_parse(type, &w->backup_type, err) ||
        !codec_json_u64(o, "cluster_size", CLUSTER_SIZE_MAX, &cluster_size, err) ||
        !codec_json_u64(o, "lease_seconds", LEASE_SECONDS_MAX, &lease, err) ||
        !codec_json_u64_opt(o, "audit_blocks", AUDIT_BLOCKS_MAX, &w->audit_blocks, &present, err) ||
        !codec_json_u64_opt(o, "audit_percent", 100, &percent, &present, err))
        return false;
    if (cluster_size < CLUSTER_SIZE_MIN || (cluster_size & (cluster_size - 1)) != 0)
        return err_set(err, ERR_INVALID, "cluster_size is no power of two from 4 KiB to 2 MiB");
    if (lease == 0)
        return err_set(err, ERR_INVALID, "lease_seconds is 0");
    w->source = json_incref(source);
    w->cluster_size = (uint32_t)cluster_size;
    w->lease_seconds = (unsigned)lease;
    w->audit_percent = (unsigned)percent;
    return true;
}

bool work_order_decode(const char *text, size_t n, WorkOrder *ret, Err *err)
{
    cleanup_json json_t *o = NULL;
    if (!work_parse(text, n, NULL, &o, err))
        return err_context(err, "work order");
    cleanup(work_order_clear) WorkOrder w = {0};
    if (!work_text(o, "job_id", 1, WORK_TEXT_MAX, &w.job_id, err) || !work_uuid(o, "vm_id", &w.vm_id, err) ||
        !work_text(o, "vm_name", 1, WORK_KEY_MAX, &w.vm_name, err) ||
        !work_text_opt(o, "repository_uuid", UUID_TEXT, &w.repository_uuid, err) ||
        !work_keys(o, "excluded_disks", &w.excluded_disks, &w.excluded_disks_len, err) ||
        !work_text_opt(o, "parent_backup_id", WORK_TEXT_MAX, &w.parent_backup_id, err) || !order_fields(o, &w, err) ||
        !parents_decode(o, &w, err) || !interrupted_decode(o, &w, err) || !vcenter_decode(o, &w.vcenter, err))
        return err_context(err, "work order");
    if (w.repository_uuid && !uuid_is_valid(w.repository_uuid)) {
        (void)err_set(err, ERR_INVALID, "repository_uuid is not a UUID");
        return err_context(err, "work order");
    }
    *ret = w;
    w = (WorkOrder){0};
    return true;
}
