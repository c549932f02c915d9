// What killed runs of a VM left in its hypervisor. docs/internals/clean.md.
#include "base/log.h"
#include "base/str.h"
#include "service/hub/clean.h"
#include "source/source.h"

typedef struct Call {
    Hub *h;
    StoreVm vm;
    json_t *spec;
    const SourceOps *ops;
    bool bitmaps, remove;
    json_t *items; // borrowed
} Call;

static void call_clear(Call *c)
{
    store_vm_clear(&c->vm);
    json_decref(c->spec);
}

typedef struct Needs { // what later backups of a VM will ask for
    char **repositories;
    size_t repositories_len;
    SourceNeed *items; // texts owned
    size_t len;
} Needs;

static void needs_clear(Needs *n)
{
    hub_texts_free(n->repositories, n->repositories_len);
    for (size_t i = 0; i < n->len; i++) {
        free((void *)(uintptr_t)n->items[i].repository_uuid);
        free((void *)(uintptr_t)n->items[i].change_id);
    }
    free(n->items);
}

static bool push_need(Needs *n, const char *repository, const char *change_id, Err *err)
{
    SourceNeed *more = reallocarray(n->items, n->len + 1, sizeof(*more));
    if (!more)
        return err_no_memory(err);
    n->items = more;
    SourceNeed *item = &n->items[n->len++];
    *item = (SourceNeed){.repository_uuid = mem_strdup(repository, err)};
    item->change_id = mem_strdup(change_id, err);
    return item->repository_uuid && item->change_id;
}

// tokens: an interrupted job, whose disks are known by these.
static bool needs_of(Hub *h, const char *id, const char *repository, bool tokens, Needs *n, Err *err)
{
    StoreDisk *disks = NULL;
    size_t len = 0;
    if (!store_disk_list(h->store, id, &disks, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < len; i++) {
        const char *change_id = tokens ? disks[i].token : disks[i].change_id;
        bool tracked = tokens || (disks[i].tracking && strcmp(disks[i].tracking, "none") != 0);
        ok = !change_id || !tracked || push_need(n, repository, change_id, err);
    }
    STORE_LIST_FREE(disks, len, store_disk_clear);
    return ok;
}

static bool needs_in(Hub *h, const StoreRepository *r, const char *vm_id, Needs *n, Err *err)
{
    StoreBackup cleanup_backup newest = {0}, interrupted = {0};
    bool stale, found, any;
    if (!store_is_stale(h->store, r->id, &stale, err))
        return false;
    if (stale) // nobody knows what its newest point is
        return true;
    if (!(n->repositories[n->repositories_len] = mem_strdup(r->uuid, err)))
        return false;
    n->repositories_len++;
    return store_backup_newest(h->store, r->id, vm_id, &newest, &found, err) &&
        (!found || needs_of(h, newest.id, r->uuid, false, n, err)) &&
        store_backup_interrupted(h->store, r->id, vm_id, &interrupted, &any, err) &&
        (!any || needs_of(h, interrupted.id, r->uuid, true, n, err));
}

static bool needs_load(Hub *h, const char *vm_id, Needs *n, Err *err)
{
    StoreRepository *rows = NULL;
    size_t len = 0;
    if (!store_repository_list(h->store, &rows, &len, err))
        return false;
    bool ok = (n->repositories = mem_calloc(len, sizeof(char *), err)) != NULL;
    for (size_t i = 0; ok && i < len; i++)
        ok = needs_in(h, &rows[i], vm_id, n, err);
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

static bool on_found(void *ctx, const SourceLeft *left, Err *err)
{
    static const char *const actions[] = {[SOURCE_THERE] = "would_remove",
                                          [SOURCE_REMOVED] = "removed",
                                          [SOURCE_FAILED] = "failed",
                                          [SOURCE_STAYS] = "kept"};
    return hub_clean_item(ctx,
                          &(CleanItem){.kind = left->kind,
                                       .name = left->name,
                                       .where = left->where,
                                       .action = actions[left->fate],
                                       .details = left->why},
                          err);
}

static bool say_vm(const Call *c, const char *action, const char *details, Err *err)
{
    return hub_clean_item(c->items,
                          &(CleanItem){.kind = "vm", .name = c->vm.name, .action = action, .details = details}, err);
}

static bool sweep_vm(Hub *h, const StoreVm *vm, const SourceOps *ops, SourceSweep *s, Err *err)
{
    WorkVcenter login = {0};
    bool ok = !vm->source_id || hub_source_order(h, vm->source_id, &login, err);
    SourceVcenter vcenter = {.host = login.host,
                             .user = login.user,
                             .password = &login.password,
                             .thumbprint = login.thumbprint,
                             .ca_pem = login.ca_pem};
    s->vcenter = vm->source_id ? &vcenter : NULL;
    ok = ok && ops->sweep(s, err);
    free(login.host);
    free(login.user);
    secret_clear(&login.password);
    free(login.thumbprint);
    free(login.ca_pem);
    return ok;
}

// What keeps us from looking is an item of the answer, like what cannot be removed.
static bool clean_held(const Call *c, Err *err)
{
    cleanup(needs_clear) Needs needs = {0};
    Err why = ERR_INIT;
    if (!needs_load(c->h, c->vm.id, &needs, err))
        return false;
    SourceSweep s = {.vm_id = c->vm.id,
                     .spec = c->spec,
                     .repositories = (const char *const *)needs.repositories,
                     .repositories_len = needs.repositories_len,
                     .needs = needs.items,
                     .needs_len = needs.len,
                     .all_tracking = c->bitmaps,
                     .remove = c->remove,
                     .cancel = &c->h->closing,
                     .found = on_found,
                     .ctx = c->items};
    if (sweep_vm(c->h, &c->vm, c->ops, &s, &why))
        return true;
    if (why.code == ERR_NO_MEMORY) {
        *err = why;
        return false;
    }
    // a QEMU that does not run holds nothing but bitmaps that are stored in its images; a vCenter is another matter
    bool off = !c->vm.source_id && (why.code == ERR_UNAVAILABLE || why.code == ERR_NOT_FOUND) && !c->bitmaps;
    return say_vm(c, off ? "kept" : "failed", why.details, err);
}

static bool clean_vm(const Call *c, Err *err)
{
    Err busy = ERR_INIT;
    if (!c->ops->sweep) // its runs leave nothing in it
        return true;
    if (!hub_vm_hold(c->h, c->vm.id, &busy)) {
        if (busy.code == ERR_BUSY)
            return say_vm(c, "kept", busy.details, err);
        *err = busy;
        return false;
    }
    bool ok = clean_held(c, err);
    hub_vm_release(c->h, c->vm.id);
    return ok;
}

bool hub_clean_vm(Hub *h, const char *name, const json_t *body, json_t **ret, Err *err)
{
    cleanup(call_clear) Call c = {.h = h};
    const char *type;
    bool dry_run;
    if (!codec_json_bool_opt(body, "dry_run", true, &dry_run, err) ||
        !codec_json_bool_opt(body, "bitmaps", false, &c.bitmaps, err) || !store_vm_find(h->store, name, &c.vm, err) ||
        !codec_json_parse(c.vm.source, strlen(c.vm.source), 1u << 20, &c.spec, err) ||
        !codec_json_text(c.spec, "type", 32, &type, err) || !(c.ops = source_find(type, err)))
        return false;
    c.remove = !dry_run;
    json_t *o = json_object();
    c.items = json_array();
    bool ok = codec_json_set(o, "items", c.items, err) && codec_json_set_bool(o, "dry_run", dry_run, err) &&
        codec_json_set_text(o, "vm_id", c.vm.id, err) && codec_json_set_text(o, "vm_name", c.vm.name, err) &&
        clean_vm(&c, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}
