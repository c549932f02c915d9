// Restore points between their two homes: commit records in a repository, rows in the database.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "domain/name.h"
#include "service/hub/internal.h"

bool hub_repo_open(Hub *h, const StoreRepository *r, Repo *ret, Err *err)
{
    (void)h;
    Err why = ERR_INIT;
    if (repo_open(r->path, r->uuid, ret, &why))
        return true;
    (void)err_set(err, why.code == ERR_DAMAGED ? ERR_DAMAGED : ERR_UNAVAILABLE,
                  "repository \"%s\" cannot be used: %s%s", r->name, why.details,
                  strstr(why.details, "mounted?") ? "" : "; is its disk or share mounted?");
    return err_title(err, "repository not available");
}

static bool hash_of(const HashSpec *spec, const char *text, Hash *ret, Err *err)
{
    return hash_from_text(spec, text ? text : "", ret, err);
}

static bool record_disk_from_row(const StoreDisk *d, const HashSpec *hash, RecordDisk *ret, Err *err)
{
    RecordDisk r = {.disk_id = d->disk_id,
                    .disk_no = (unsigned)d->disk_no,
                    .size = d->size,
                    .tracking = d->tracking && strcmp(d->tracking, "none") != 0,
                    .chain_length = (unsigned)d->chain_length,
                    .image_bytes = d->image_bytes,
                    .stored_bytes = d->stored_bytes,
                    .transferred_bytes = d->transferred_bytes,
                    .changed_bytes = d->changed_bytes,
                    .areas = d->areas,
                    .area_bytes = d->area_bytes,
                    .read_bytes = d->read_bytes,
                    .kept_bytes = d->kept_bytes,
                    .audit = {d->audited, d->unchanged_blocks, d->checked_blocks, d->wrong_blocks}};
    bool ok = mem_replace(&r.disk_key, d->disk_key, err) && mem_replace(&r.label, d->label ? d->label : "", err) &&
        mem_replace(&r.backing_identity, d->backing_identity ? d->backing_identity : "", err) &&
        mem_replace(&r.reason_text, d->reason_text ? d->reason_text : "", err) &&
        mem_replace(&r.change_id, d->change_id, err) && mem_replace(&r.parent_backup_id, d->parent_backup_id, err) &&
        mem_replace(&r.image, d->image, err) && mem_replace(&r.hashes, d->hashes, err) &&
        mem_replace(&r.backing_name, d->backing_name, err) && disk_mode_parse(d->mode, &r.mode, err) &&
        chain_reason_parse(d->reason ? d->reason : "", &r.reason, err) && hash_of(hash, d->root, &r.root, err) &&
        hash_of(hash, d->metadata, &r.metadata, err) && hash_of(hash, d->hashes_digest, &r.hashes_digest, err);
    if (!ok) {
        record_disk_clear(&r);
        return err_context(err, "disk %s", d->disk_key);
    }
    *ret = r;
    return true;
}

// ["a","b"] as "a,b"; a key cannot hold a comma unescaped, so it is percent-encoded there
static bool joined(const char *json_list, char **ret, Err *err)
{
    json_t *list = NULL;
    StrBuf b = STR_BUF(1u << 20);
    bool ok = hub_view_strings(json_list, &list, err) && str_add(&b, "", err);
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (ok && i > 0)
            ok = str_add(&b, ",", err);
        for (const char *p = json_string_value(item); ok && p && *p; p++)
            ok = *p == ',' || *p == '%' ? str_addf(&b, err, "%%%02X", (unsigned char)*p) : str_add_bytes(&b, p, 1, err);
    }
    json_decref(list);
    if (!ok) {
        str_clear(&b);
        return false;
    }
    free(*ret);
    *ret = b.s;
    return true;
}

static bool split(const char *text, char **ret_json, Err *err)
{
    json_t *list = json_array();
    bool ok = list != NULL || err_no_memory(err);
    while (ok && text && *text) {
        size_t n = strcspn(text, ",");
        cleanup_free char *key = mem_calloc(n + 1, 1, err);
        size_t out = 0;
        for (size_t i = 0; key && i < n; i++) {
            char hex[3] = {0};
            unsigned char byte;
            if (text[i] == '%' && i + 2 < n) {
                memcpy(hex, text + i + 1, 2);
                if (str_unhex(hex, &byte, 1)) {
                    key[out++] = (char)byte;
                    i += 2;
                    continue;
                }
            }
            key[out++] = text[i];
        }
        ok = key && codec_json_push(list, json_string(key), err);
        text += n + (text[n] == ',');
    }
    free(*ret_json);
    *ret_json = NULL;
    ok = ok && codec_json_dump(list, ret_json, err);
    json_decref(list);
    return ok;
}

bool hub_record_from_rows(const StoreBackup *b, const StoreDisk *disks, size_t n, const char *source_type,
                          const Repo *repo, Record *ret, Err *err)
{
    Record r = {
        .sequence = b->sequence, .partial = b->partial, .created_us = b->created_us, .completed_us = b->completed_us};
    bool ok = mem_replace(&r.backup_id, b->id, err) && mem_replace(&r.vm_id, b->vm_id, err) &&
        mem_replace(&r.vm_name, b->vm_name, err) && mem_replace(&r.source_type, source_type, err) &&
        mem_replace(&r.repository_uuid, repo->info.uuid, err) && mem_replace(&r.context, b->context, err) &&
        mem_replace(&r.parent_backup_id, b->parent_id, err) &&
        mem_replace(&r.consistency, b->consistency ? b->consistency : "crash", err) &&
        mem_replace(&r.consistency_detail, b->consistency_detail, err) && joined(b->left_out, &r.left_out, err) &&
        backup_type_parse(b->requested_type, &r.requested_type, err) &&
        backup_type_parse(b->backup_type, &r.type, err) &&
        chain_reason_parse(b->reason ? b->reason : "", &r.reason, err) &&
        (r.disks = mem_calloc(n, sizeof(*r.disks), err));
    for (size_t i = 0; ok && i < n; i++) {
        ok = record_disk_from_row(&disks[i], &repo->info.hash, &r.disks[i], err);
        if (ok)
            r.disks_len++;
    }
    if (!ok) {
        record_clear(&r);
        return err_context(err, "backup %s", b->id);
    }
    *ret = r;
    return true;
}

static bool row_from_record_disk(const Record *rec, const RecordDisk *d, const HashSpec *hash, StoreDisk *ret, Err *err)
{
    char root[HASH_TEXT_MAX], metadata[HASH_TEXT_MAX], digest[HASH_TEXT_MAX];
    hash_text(hash, &d->root, root);
    hash_text(hash, &d->metadata, metadata);
    hash_text(hash, &d->hashes_digest, digest);
    StoreDisk r = {.disk_id = d->disk_id,
                   .disk_no = d->disk_no,
                   .size = d->size,
                   .chain_length = d->chain_length,
                   .transferred_bytes = d->transferred_bytes,
                   .changed_bytes = d->changed_bytes,
                   .areas = d->areas,
                   .area_bytes = d->area_bytes,
                   .read_bytes = d->read_bytes,
                   .kept_bytes = d->kept_bytes,
                   .audited = d->audit.made,
                   .unchanged_blocks = d->audit.unchanged,
                   .checked_blocks = d->audit.checked,
                   .wrong_blocks = d->audit.wrong,
                   .done_bytes = d->size,
                   .stored_bytes = d->stored_bytes,
                   .image_bytes = d->image_bytes};
    // what tracked it is known to the hypervisor's own kind of ID; the record keeps whether anything did
    const char *tracking = !d->tracking ? "none" : (strcmp(rec->source_type, "vsphere") == 0 ? "cbt" : "bitmap");
    bool ok = mem_replace(&r.backup_id, rec->backup_id, err) && mem_replace(&r.disk_key, d->disk_key, err) &&
        mem_replace(&r.label, d->label, err) && mem_replace(&r.backing_identity, d->backing_identity, err) &&
        mem_replace(&r.mode, disk_mode_name(d->mode), err) &&
        mem_replace(&r.reason, chain_reason_name(d->reason), err) && mem_replace(&r.reason_text, d->reason_text, err) &&
        mem_replace(&r.change_id, d->change_id, err) && mem_replace(&r.tracking, tracking, err) &&
        mem_replace(&r.parent_backup_id, d->parent_backup_id, err) && mem_replace(&r.image, d->image, err) &&
        mem_replace(&r.hashes, d->hashes, err) && mem_replace(&r.backing_name, d->backing_name, err) &&
        mem_replace(&r.root, root, err) && mem_replace(&r.metadata, metadata, err) &&
        mem_replace(&r.hashes_digest, digest, err);
    *ret = r;
    if (!ok)
        store_disk_clear(ret);
    return ok;
}

bool hub_rows_from_record(const Record *rec, const char *stem, const StoreRepository *repository,
                          StoreBackup *ret_backup, StoreDisk **ret_disks, size_t *ret_len, Err *err)
{
    Err geometry = ERR_INIT; // only the algorithm's name is needed to write hashes as text
    HashSpec hash = {0};
    if (!hash_algorithm_parse(repository->hash_algorithm, &hash.algorithm, &geometry)) {
        *err = geometry;
        return false;
    }
    StoreBackup b = {.repository_id = repository->id,
                     .sequence = rec->sequence,
                     .partial = rec->partial,
                     .created_us = rec->created_us,
                     .started_us = rec->created_us,
                     .completed_us = rec->completed_us};
    StoreDisk *disks = mem_calloc(rec->disks_len, sizeof(*disks), err);
    size_t n = 0;
    bool ok = disks && mem_replace(&b.id, rec->backup_id, err) && mem_replace(&b.vm_id, rec->vm_id, err) &&
        mem_replace(&b.vm_name, rec->vm_name, err) && mem_replace(&b.status, job_state_name(JOB_COMPLETED), err) &&
        mem_replace(&b.backup_type, backup_type_name(rec->type), err) &&
        mem_replace(&b.requested_type, backup_type_name(rec->requested_type), err) &&
        mem_replace(&b.parent_id, rec->parent_backup_id, err) &&
        mem_replace(&b.reason, chain_reason_name(rec->reason), err) &&
        mem_replace(&b.reason_text, chain_reason_text(rec->reason), err) &&
        mem_replace(&b.consistency, rec->consistency, err) &&
        mem_replace(&b.consistency_detail, rec->consistency_detail, err) && split(rec->left_out, &b.left_out, err) &&
        mem_replace(&b.context, rec->context, err) && mem_replace(&b.stem, stem, err) &&
        mem_replace(&b.change_id, rec->disks_len ? rec->disks[0].change_id : NULL, err);
    for (; ok && n < rec->disks_len; n++) {
        ok = row_from_record_disk(rec, &rec->disks[n], &hash, &disks[n], err);
        b.bytes_transferred += rec->disks[n].transferred_bytes;
        b.stored_bytes += rec->disks[n].stored_bytes;
        b.total_bytes += rec->disks[n].size;
    }
    b.done_bytes = b.total_bytes;
    if (!ok) {
        store_backup_clear(&b);
        STORE_LIST_FREE(disks, n, store_disk_clear);
        return false;
    }
    *ret_backup = b;
    *ret_disks = disks;
    *ret_len = n;
    return true;
}

// Says nothing of what is stored: a disk or a system that fails now, and may not the next time.
static bool passes(const Err *err)
{
    return err_retryable(err->code) || err->code == ERR_IO;
}

static bool load(Points *p, const char *backup_id, Record **ret, Err *err)
{
    StoreBackup cleanup_backup b = {0};
    cleanup_free char *path = NULL, *text = NULL;
    size_t n;
    if (!store_backup_get(p->hub->store, backup_id, &b, err))
        return false;
    if (!b.context || !b.stem || !(path = repo_path_record(p->repo, b.context, b.stem, err)))
        return err_set(err, ERR_DAMAGED, "point %s has no commit record", backup_id);
    Err reading = ERR_INIT;
    Record *r = mem_calloc(1, sizeof(*r), err);
    if (!r)
        return false;
    if (!file_read(path, RECORD_MAX_BYTES, &text, &n, &reading) ||
        !record_decode(text, n, &p->repo->info.hash, r, &reading) ||
        (strcmp(r->backup_id, backup_id) != 0 && !err_set(&reading, ERR_DAMAGED, "it is another point's"))) {
        record_clear(r);
        free(r);
        if (passes(&reading))
            return err_set(err, reading.code, "the commit record %s/%s.json cannot be read: %s", b.context, b.stem,
                           reading.details);
        return err_set(err, ERR_DAMAGED, "the commit record %s/%s.json is not what was written: %s", b.context, b.stem,
                       reading.details);
    }
    *ret = r;
    return true;
}

const Record *hub_points_find(void *points, const char *backup_id)
{
    Points *p = points;
    for (size_t i = 0; i < p->len; i++)
        if (strcmp(p->items[i]->backup_id, backup_id) == 0)
            return p->items[i];
    Record *r;
    p->err = ERR_INIT;
    if (!load(p, backup_id, &r, &p->err))
        return NULL;
    if (p->len == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 16;
        Record **items = reallocarray(p->items, cap, sizeof(*items));
        if (!items) {
            record_clear(r);
            free(r);
            (void)err_no_memory(&p->err);
            return NULL;
        }
        p->items = items;
        p->cap = cap;
    }
    p->items[p->len++] = r;
    return r;
}

void hub_points_clear(Points *p)
{
    for (size_t i = 0; i < p->len; i++) {
        record_clear(p->items[i]);
        free(p->items[i]);
    }
    free(p->items);
    p->items = NULL;
    p->len = p->cap = 0;
}

bool hub_chain_open(Points *p, const char *backup_id, const char *disk_key, RepoCheckDepth depth, RepoChain *ret,
                    char **ret_layer_backup, Err *err)
{
    p->err = ERR_INIT;
    const Record *rec = hub_points_find(p, backup_id);
    if (!rec) {
        *err = p->err;
        Err memory = ERR_INIT; // without memory for the name the damage is still reported
        if (ret_layer_backup)
            (void)!mem_replace(ret_layer_backup, backup_id, &memory);
        return false;
    }
    RepoChain chain;
    Err why = ERR_INIT;
    if (!repo_chain(p->repo, rec, disk_key, hub_points_find, p, &chain, &why)) {
        *err = passes(&p->err) ? p->err : why; // a parent's record that cannot be read now is not missing
        return false;
    }
    for (size_t i = 0; i < chain.len; i++) {
        if (p->stop && atomic_load(p->stop)) {
            repo_chain_clear(&chain);
            return err_set(err, ERR_CANCELLED, "cancelled while the parent was looked at");
        }
        if (!repo_check_layer(p->repo, chain.records[i], chain.disks[i], depth, err)) {
            Err memory = ERR_INIT; // without memory for the name the damage is still reported
            if (ret_layer_backup)
                (void)!mem_replace(ret_layer_backup, chain.records[i]->backup_id, &memory);
            repo_chain_clear(&chain);
            return false;
        }
    }
    *ret = chain;
    return true;
}

static bool has_text(const json_t *texts, const char *text)
{
    size_t i;
    json_t *t;
    json_array_foreach(texts, i, t) if (strcmp(json_string_value(t), text) == 0) return true;
    return false;
}

// Does that disk, or with a NULL any, have one of these points as its parent?
static bool rests_on(const json_t *ids, const StoreDisk *disks, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if ((!key || strcmp(disks[i].disk_key, key) == 0) && disks[i].parent_backup_id &&
            has_text(ids, disks[i].parent_backup_id))
            return true;
    return false;
}

// Completed points whose disk rests on that point's image (itself included), as a list of IDs.
static bool affected(Hub *h, const StoreBackup *layer, const char *disk_key, json_t **ret_ids, Err *err)
{
    StoreBackup *points = NULL;
    size_t len = 0;
    json_t *ids = json_array();
    bool ok = ids ? store_backup_points(h->store, layer->repository_id, layer->vm_id, &points, &len, err)
                  : err_no_memory(err);
    // oldest first: a point is hit when its disk's parent is in the list already
    for (size_t i = 0; ok && i < len; i++) {
        StoreDisk *disks = NULL;
        size_t disks_len = 0;
        if (strcmp(points[i].id, layer->id) == 0) {
            ok = codec_json_push(ids, json_string(points[i].id), err);
            continue;
        }
        ok = store_disk_list(h->store, points[i].id, &disks, &disks_len, err);
        if (ok && rests_on(ids, disks, disks_len, disk_key))
            ok = codec_json_push(ids, json_string(points[i].id), err);
        STORE_LIST_FREE(disks, disks_len, store_disk_clear);
    }
    STORE_LIST_FREE(points, len, store_backup_clear);
    if (!ok) {
        json_decref(ids);
        return false;
    }
    *ret_ids = ids;
    return true;
}

bool hub_mark_damaged_in(Hub *h, const StoreBackup *layer, const char *disk_key, json_t **ret_ids, Err *err)
{
    int64_t now = clock_utc_us();
    json_t *ids = NULL;
    bool ok = affected(h, layer, disk_key, &ids, err);
    for (size_t i = 0; ok && i < json_array_size(ids); i++) {
        const char *id = json_string_value(json_array_get(ids, i));
        ok = store_backup_set_suspect(h->store, id, true, true, err) &&
            store_backup_set_verified(h->store, id, "damaged", now, err);
    }
    if (!ok) {
        json_decref(ids);
        return false;
    }
    *ret_ids = ids;
    return true;
}

// One transaction: a child that completes meanwhile is either seen here, or sees what is marked here.
bool hub_mark_damaged(Hub *h, const StoreBackup *layer, const char *disk_key, json_t **ret_ids, Err *err)
{
    json_t *ids = NULL;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        json_decref(ids);
        ids = NULL;
        t.ok = hub_mark_damaged_in(h, layer, disk_key, &ids, err);
    }
    if (!t.ok) {
        json_decref(ids);
        return false;
    }
    *ret_ids = ids;
    return true;
}

// The caller has a transaction open.
bool hub_inherit_damage(Hub *h, const char *id, const StoreDisk *disks, size_t n, Err *err)
{
    for (size_t i = 0; i < n; i++) {
        StoreBackup cleanup_backup parent = {0};
        Err gone = ERR_INIT; // a parent that is not in the catalogue (yet) says nothing
        if (!disks[i].parent_backup_id || !store_backup_get(h->store, disks[i].parent_backup_id, &parent, &gone) ||
            !parent.damaged)
            continue;
        log_error("the point rests on one that was found to be damaged", LOG_STR("job", id),
                  LOG_STR("parent", parent.id));
        return store_backup_set_suspect(h->store, id, true, true, err);
    }
    return true;
}

bool hub_engine_layers(const RepoChain *chain, EngineConfig *config, Err *err)
{
    config->layers = mem_calloc(chain->len, sizeof(*config->layers), err);
    if (!config->layers)
        return false;
    for (size_t i = 0; i < chain->len; i++) {
        EngineLayer *l = &config->layers[config->layers_len++];
        if (!mem_replace(&l->image, chain->layers[i].image, err) ||
            !mem_replace(&l->hashes, chain->layers[i].hashes, err) ||
            !mem_replace(&l->backing_name, chain->layers[i].backing_name, err))
            return false;
    }
    return true;
}
