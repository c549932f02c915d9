#include "source/qemu/sweep.h"

#include "base/clock.h"
#include "base/str.h"

#include <ctype.h>

#define SWEEP_MS 30000 // for each kind
#define LOOK_MS 500    // without an event, how long until the next look

const char *const sweep_events[] = {"JOB_STATUS_CHANGE", "BLOCK_EXPORT_DELETED", NULL};

typedef struct SweepKind {
    const char *what, *query, *key;
    json_t *(*removal)(const char *name);
    const char *command;
    bool awaited; // goes some time after the answer
} SweepKind;

static json_t *remove_export(const char *name)
{
    return json_pack("{s:s, s:s}", "id", name, "mode", "hard");
}

static json_t *remove_job(const char *name)
{
    return json_pack("{s:s}", "id", name);
}

static json_t *remove_node(const char *name)
{
    return json_pack("{s:s}", "node-name", name);
}

static const SweepKind sweep_exports = {"export", "query-block-exports", "id", remove_export, "block-export-del", true};
static const SweepKind sweep_jobs = {"job", "query-jobs", "id", remove_job, "job-cancel", true};
static const SweepKind sweep_nodes = {"node", "query-named-block-nodes", "node-name", remove_node, "blockdev-del",
                                      false};

void sweep_vm_prefix(const char *vm, char out[SWEEP_NAME])
{
    static const char head[] = "sndns-";
    size_t n = strlen(head);
    memcpy(out, head, n);
    for (const char *p = vm; *p && n < strlen(head) + 12; p++)
        if (*p != '-')
            out[n++] = (char)tolower((unsigned char)*p);
    out[n++] = '-';
    out[n] = '\0';
}

bool sweep_call(Qmp *q, const char *command, json_t *args, Err *err)
{
    return args ? qmp_call(q, command, args, NULL, err) : err_no_memory(err);
}

bool sweep_query_nodes(Qmp *q, json_t **ret, Err *err)
{
    json_t *args = json_pack("{s:b}", "flat", 1);
    return args ? qmp_call(q, "query-named-block-nodes", args, ret, err) : err_no_memory(err);
}

static bool query(Qmp *q, const SweepKind *kind, json_t **ret, Err *err)
{
    return kind == &sweep_nodes ? sweep_query_nodes(q, ret, err) : qmp_call(q, kind->query, NULL, ret, err);
}

// Asks for the end of each that is there; *ret_left: how many.
static bool remove_each(Qmp *q, const SweepKind *kind, const char *prefix, size_t *ret_left, Err *refused, Err *err)
{
    json_t *list = NULL;
    if (!query(q, kind, &list, err))
        return false;
    size_t left = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(list, i), kind->key));
        if (!name || !str_starts(name, prefix))
            continue;
        left++;
        // A refusal counts when it is the last word: "is shutting down" is none.
        Err e = ERR_INIT;
        if (!sweep_call(q, kind->command, kind->removal(name), &e))
            *refused = e;
        else if (!kind->awaited)
            left--;
    }
    json_decref(list);
    *ret_left = left;
    return true;
}

static bool remove_kind(Qmp *q, const SweepKind *kind, const char *prefix, Err *err)
{
    int64_t deadline = clock_mono_ms() + SWEEP_MS;
    for (;;) {
        size_t left;
        Err refused = ERR_INIT;
        if (!remove_each(q, kind, prefix, &left, &refused, err))
            return err_context(err, "removing what the backup put into qemu");
        if (left == 0)
            return true;
        if (clock_mono_ms() > deadline || (!kind->awaited && refused.code != ERR_NONE)) {
            if (refused.code == ERR_NONE)
                return err_set(err, ERR_TIMEOUT, "qemu does not let go of %s %s…", kind->what, prefix);
            if (err->code == ERR_NONE)
                *err = refused;
            return false;
        }
        QmpEvent event;
        Err quiet = ERR_INIT; // no event in time: another look
        if (qmp_await(q, LOOK_MS, &event, &quiet))
            qmp_event_clear(&event);
        else if (quiet.code != ERR_TIMEOUT && err->code == ERR_NONE)
            *err = quiet;
        if (err->code != ERR_NONE && qmp_is_lost(q))
            return false;
    }
}

static bool remove_bitmaps(Qmp *q, const char *prefix, Err *err)
{
    json_t *nodes = NULL;
    if (!sweep_query_nodes(q, &nodes, err))
        return false;
    bool ok = true;
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const json_t *node = json_array_get(nodes, i), *list = json_object_get(node, "dirty-bitmaps");
        const char *node_name = json_string_value(json_object_get(node, "node-name"));
        for (size_t j = 0; node_name && j < json_array_size(list); j++) {
            const char *name = json_string_value(json_object_get(json_array_get(list, j), "name"));
            if (name && str_starts(name, prefix))
                ok = sweep_call(q, "block-dirty-bitmap-remove",
                                json_pack("{s:s, s:s}", "node", node_name, "name", name), err) &&
                    ok;
        }
    }
    json_decref(nodes);
    return ok;
}

// QEMU gives up a descriptor by itself only when its last monitor is closed, and libvirt never closes its own.
static bool remove_descriptors(Qmp *q, const char *prefix, Err *err)
{
    json_t *sets = NULL;
    if (!qmp_call(q, "query-fdsets", NULL, &sets, err))
        return false;
    bool ok = true;
    for (size_t i = 0; i < json_array_size(sets); i++) {
        const json_t *set = json_array_get(sets, i), *fds = json_object_get(set, "fds");
        for (size_t j = 0; j < json_array_size(fds); j++) {
            const json_t *fd = json_array_get(fds, j);
            const char *opaque = json_string_value(json_object_get(fd, "opaque"));
            if (opaque && str_starts(opaque, prefix))
                ok =
                    sweep_call(q, "remove-fd",
                               json_pack("{s:I, s:I}", "fdset-id", json_integer_value(json_object_get(set, "fdset-id")),
                                         "fd", json_integer_value(json_object_get(fd, "fd"))),
                               err) &&
                    ok;
        }
    }
    json_decref(sets);
    return ok;
}

// Looked for, not remembered: who started it may not have waited for the answer.
static bool stop_server(Qmp *q, const Scratch *server, Err *err)
{
    Err none = ERR_INIT; // it has been taken, or never came
    if (sweep_call(q, "closefd", json_pack("{s:s}", "fdname", SWEEP_FD), &none))
        return true;
    if (none.code != ERR_PROTOCOL) {
        if (err->code == ERR_NONE)
            *err = none;
        return false;
    }
    if (!scratch_is_served(server))
        return true;
    json_t *exports = NULL;
    if (!qmp_call(q, "query-block-exports", NULL, &exports, err))
        return false;
    bool nbd = false; // other kinds of exports need no NBD server
    for (size_t i = 0; i < json_array_size(exports); i++) {
        const char *type = json_string_value(json_object_get(json_array_get(exports, i), "type"));
        nbd = nbd || (type && str_eq(type, "nbd"));
    }
    json_decref(exports);
    if (nbd)
        return true;        // somebody put an export of his own on our server
    Err refused = ERR_INIT; // ERR_PROTOCOL: it does not run
    if (qmp_call(q, "nbd-server-stop", NULL, NULL, &refused) || refused.code == ERR_PROTOCOL)
        return true;
    if (err->code == ERR_NONE)
        *err = refused;
    return false;
}

bool sweep(Qmp *q, const SweepSpec *spec, Err *err)
{
    bool ok = remove_kind(q, &sweep_exports, spec->prefix, err);
    ok = remove_kind(q, &sweep_jobs, spec->prefix, err) && ok;
    ok = remove_kind(q, &sweep_nodes, spec->prefix, err) && ok;
    ok = remove_descriptors(q, spec->prefix, err) && ok;
    if (spec->bitmap_prefix)
        ok = remove_bitmaps(q, spec->bitmap_prefix, err) && ok;
    if (spec->server)
        ok = stop_server(q, spec->server, err) && ok;
    return ok;
}
