// What killed runs of a VM left in its QEMU and in the scratch folder, when no run lives: named, and taken away.
// docs/internals/clean.md.
#include "source/qemu/clean.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/str.h"
#include "source/qemu/parts.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define OLD_S 600         // an image of a run that lives has its name for a moment
#define FILES_MAX 1000000 // in the scratch folder

typedef struct Left {
    const char *kind;
    char *name, *where;
} Left;

VEC_DEFINE(LeftVec, left_vec, Left)

static void left_clear(LeftVec *v)
{
    for (size_t i = 0; i < v->len; i++) {
        free(v->items[i].name);
        free(v->items[i].where);
    }
    left_vec_clear(v);
}

typedef struct Clean {
    const SourceSweep *s;
    QemuSpec spec;
    Qmp *q;
    char prefix[SWEEP_NAME];
} Clean;

static bool push(LeftVec *v, const char *kind, const char *name, const char *where, Err *err)
{
    Left l = {.kind = kind, .name = mem_strdup(name, err), .where = mem_strdup(where, err)};
    if (l.name && l.where && left_vec_push(v, l, err))
        return true;
    free(l.name);
    free(l.where);
    return false;
}

static bool tell(const Clean *c, const char *kind, const char *name, const char *where, SourceFate fate,
                 const char *why, Err *err)
{
    SourceLeft left = {.kind = kind, .name = name, .where = where, .fate = fate, .why = why};
    return c->s->found(c->s->ctx, &left, err);
}

// ---- exports, jobs, nodes, descriptors

// Of QEMU's list (stolen) those whose key begins like what a run of this VM makes.
static bool add_ours(const Clean *c, json_t *list, const char *kind, const char *key, LeftVec *v, Err *err)
{
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(list); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(list, i), key));
        ok = !name || !str_starts(name, c->prefix) || push(v, kind, name, "", err);
    }
    json_decref(list);
    return ok;
}

// A paused QEMU shows those that were given back, too.
static bool add_descriptors(const Clean *c, LeftVec *v, Err *err)
{
    json_t *status = NULL, *sets = NULL;
    if (!qmp_call(c->q, "query-status", NULL, &status, err))
        return false;
    bool running = json_is_true(json_object_get(status, "running"));
    json_decref(status);
    if (!running)
        return true;
    if (!qmp_call(c->q, "query-fdsets", NULL, &sets, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(sets); i++)
        ok = add_ours(c, json_incref(json_object_get(json_array_get(sets, i), "fds")), "descriptor", "opaque", v, err);
    json_decref(sets);
    return ok;
}

static bool look(const Clean *c, LeftVec *v, Err *err)
{
    json_t *list = NULL;
    return qmp_call(c->q, "query-block-exports", NULL, &list, err) && add_ours(c, list, "qemu_export", "id", v, err) &&
        qmp_call(c->q, "query-jobs", NULL, &list, err) && add_ours(c, list, "qemu_job", "id", v, err) &&
        sweep_query_nodes(c->q, &list, err) && add_ours(c, list, "qemu_node", "node-name", v, err) &&
        add_descriptors(c, v, err);
}

static bool is_in(const LeftVec *v, const Left *l)
{
    for (size_t i = 0; i < v->len; i++)
        if (str_eq(v->items[i].kind, l->kind) && str_eq(v->items[i].name, l->name))
            return true;
    return false;
}

// ret_why: of what the sweep could not remove.
static bool clean_objects(const Clean *c, const Scratch *server, Err *ret_why, Err *err)
{
    cleanup(left_clear) LeftVec before = {0}, after = {0};
    SweepSpec spec = {.prefix = c->prefix, .server = server};
    if (!look(c, &before, err) || (c->s->remove && !sweep(c->q, &spec, ret_why) && qmp_is_lost(c->q))) {
        if (err->code == ERR_NONE)
            *err = *ret_why;
        return false;
    }
    bool ok = !c->s->remove || look(c, &after, err);
    for (size_t i = 0; ok && i < before.len; i++) {
        const Left *l = &before.items[i];
        bool there = is_in(&after, l);
        ok = tell(c, l->kind, l->name, c->spec.qmp,
                  !c->s->remove ? SOURCE_THERE
                      : there   ? SOURCE_FAILED
                                : SOURCE_REMOVED,
                  !there                          ? NULL
                      : ret_why->code == ERR_NONE ? "QEMU does not let go of it"
                                                  : ret_why->details,
                  err);
    }
    return ok;
}

// ---- bitmaps

static bool is_known(const SourceSweep *s, const char *repository)
{
    for (size_t i = 0; i < s->repositories_len; i++)
        if (str_eq(s->repositories[i], repository))
            return true;
    return false;
}

static bool is_left(const SourceSweep *s, const BitmapsNeed *needs, const Bitmap *b)
{
    return !b->line[0] || s->all_tracking || (is_known(s, b->repository) && !bitmaps_is_needed(b, needs, s->needs_len));
}

static bool is_read_only(const json_t *nodes, const char *name)
{
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const json_t *node = json_array_get(nodes, i);
        const char *its = json_string_value(json_object_get(node, "node-name"));
        if (its && str_eq(its, name))
            return json_is_true(json_object_get(node, "ro"));
    }
    return false;
}

static bool clean_bitmap(const Clean *c, const json_t *nodes, const Bitmap *b, Err *err)
{
    Err why = ERR_INIT;
    if (is_read_only(nodes, b->node))
        return tell(c, "bitmap", b->name, b->node, SOURCE_STAYS,
                    "QEMU removes none of a read-only node; it counts for "
                    "nothing",
                    err);
    if (!c->s->remove)
        return tell(c, "bitmap", b->name, b->node, SOURCE_THERE, NULL, err);
    if (sweep_call(c->q, "block-dirty-bitmap-remove", json_pack("{s:s, s:s}", "node", b->node, "name", b->name), &why))
        return tell(c, "bitmap", b->name, b->node, SOURCE_REMOVED, NULL, err);
    return tell(c, "bitmap", b->name, b->node, SOURCE_FAILED, why.details, err);
}

static bool clean_bitmaps(const Clean *c, Err *err)
{
    const SourceSweep *s = c->s;
    BitmapsOwner owner = {.vm = s->vm_id};
    BitmapVec bitmaps = {0};
    json_t *nodes = NULL;
    cleanup_free BitmapsNeed *needs = mem_calloc(s->needs_len, sizeof(*needs), err);
    for (size_t i = 0; needs && i < s->needs_len; i++)
        needs[i] = (BitmapsNeed){.repository = s->needs[i].repository_uuid, .change_id = s->needs[i].change_id};
    bool ok = needs && sweep_query_nodes(c->q, &nodes, err) && bitmaps_collect(nodes, &owner, &bitmaps, err);
    for (size_t i = 0; ok && i < bitmaps.len; i++)
        ok = !is_left(s, needs, &bitmaps.items[i]) || clean_bitmap(c, nodes, &bitmaps.items[i], err);
    bitmap_vec_clear(&bitmaps);
    json_decref(nodes);
    return ok;
}

// ---- the scratch folder

static bool clean_server(const Clean *c, const Scratch *scratch, const Err *why, Err *err)
{
    bool there = c->s->remove && scratch_is_served(scratch);
    if (c->s->remove && !there)
        scratch_unlink(scratch);
    if (!there)
        return tell(c, "nbd_server", scratch->socket, c->spec.qmp, c->s->remove ? SOURCE_REMOVED : SOURCE_THERE, NULL,
                    err);
    return why->code == ERR_NONE
        ? tell(c, "nbd_server", scratch->socket, c->spec.qmp, SOURCE_STAYS, "somebody else has an export on it", err)
        : tell(c, "nbd_server", scratch->socket, c->spec.qmp, SOURCE_FAILED, why->details, err);
}

// An image that a client made, and was killed before it had taken its name away.
static bool is_old_image(const char *path, const char *name)
{
    struct stat st;
    return uuid_is_valid(name) && lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
        clock_utc_us() / 1000000 - st.st_mtime > OLD_S;
}

static bool clean_files(const Clean *c, const Scratch *scratch, Err *err)
{
    FileList list;
    if (!file_list(scratch->folder, FILES_MAX, &list, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < list.len; i++) {
        Err why = ERR_INIT;
        cleanup_free char *path = file_join(scratch->folder, list.names[i], err);
        if (!path || !is_old_image(path, list.names[i])) {
            ok = path != NULL;
            continue;
        }
        bool gone = c->s->remove && file_unlink(path, &why);
        ok = tell(c, "scratch_file", path, "",
                  !c->s->remove ? SOURCE_THERE
                      : gone    ? SOURCE_REMOVED
                                : SOURCE_FAILED,
                  c->s->remove && !gone ? why.details : NULL, err);
    }
    file_list_clear(&list);
    return ok;
}

static bool open_qmp(Clean *c, Err *err)
{
    if (!qmp_open(c->spec.qmp, QMP_GREETING_MS, sweep_events, &c->q, err))
        return false;
    qmp_set_cancel(c->q, c->s->cancel);
    return true;
}

bool qemu_sweep(const SourceSweep *s, Err *err)
{
    Clean c = {.s = s};
    Scratch scratch = SCRATCH_NONE;
    Err none = ERR_INIT, why = ERR_INIT; // without the folder there is nothing of ours in it
    char socket_name[SWEEP_NAME + 4];
    if (!qemu_spec_read(s->spec, &c.spec, err))
        return false;
    sweep_vm_prefix(s->vm_id, c.prefix);
    (void)snprintf(socket_name, sizeof(socket_name), "%snbd", c.prefix);
    bool ours = scratch_find(c.spec.scratch, socket_name, &scratch, &none);
    bool ok = !ours || clean_files(&c, &scratch, err);
    ok = ok && open_qmp(&c, err);
    bool server = ok && ours && scratch_is_served(&scratch);
    ok = ok && clean_objects(&c, server ? &scratch : NULL, &why, err) &&
        (!server || clean_server(&c, &scratch, &why, err)) && clean_bitmaps(&c, err);
    qmp_free(c.q);
    scratch_clear(&scratch);
    return ok;
}
