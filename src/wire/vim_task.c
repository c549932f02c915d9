// Tasks, and what runs as one: switching CBT, making and removing snapshots.
#include "wire/vim_parts.h"

#include "base/clock.h"

#include <stdio.h>

#define WAIT_S 20 // at most so long in one WaitForUpdatesEx
#define PAUSE_MS 1000

typedef struct TaskState {
    Vim *v;
    const char *task;
    char *version; // of the collector's data; "": from the start
    char *state;   // "queued", "running", "success", "error"
    char *result;  // a reference
    VimFault fault;
} TaskState;

// info.error: a LocalizedMethodFault, whose fault is as that of a call
static bool read_error(TaskState *t, XmlReader *r, Err *err)
{
    cleanup_free char *text = NULL;
    Vim *v = t->v;
    XmlWalk w = xml_walk(r);
    bool more;
    vim_fault_clear(v);
    while (xml_next(r, &w, &more, err)) {
        if (!more) {
            t->fault = v->fault;
            vim_fault_clear(v); // the call itself went well
            return true;
        }
        if (xml_is(r, "fault") && !vim_fault_read(v, r, err))
            return false;
        if (!xml_is(r, "localizedMessage"))
            continue;
        if (!vim_read_text(r, &text, err))
            return false;
        (void)snprintf(v->fault.text, sizeof(v->fault.text), "%s", text); // cut to what fits
        str_make_utf8(v->fault.text);
        v->fault.quiescing |= strcasestr(text, "quiesc") != NULL;
    }
    return false;
}

static bool read_change(TaskState *t, XmlReader *r, Err *err)
{
    cleanup_free char *name = NULL;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "name") && !vim_read_text(r, &name, err))
            return false;
        if (!xml_is(r, "val") || !name)
            continue;
        if ((str_eq(name, "info.state") && !vim_read_text(r, &t->state, err)) ||
            (str_eq(name, "info.error") && !read_error(t, r, err)))
            return false;
        if (str_eq(name, "info.result")) {
            cleanup_free char *type = NULL; // a reference has a type without a namespace; other results are of no use
            if (!xml_attribute(r, "type", &type, err) || (type && !vim_read_text(r, &t->result, err)))
                return false;
        }
    }
    return false;
}

// An objectSet: only of our task.
static bool read_object(TaskState *t, XmlReader *r, Err *err)
{
    cleanup_free char *moref = NULL;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "obj") && !vim_read_text(r, &moref, err))
            return false;
        if (xml_is(r, "changeSet") && moref && str_eq(moref, t->task) && !read_change(t, r, err))
            return false;
    }
    return false;
}

static bool read_filter(TaskState *t, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "objectSet") && !read_object(t, r, err))
            return false;
    }
    return false;
}

static bool read_update(TaskState *t, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if ((xml_is(r, "version") && !vim_read_text(r, &t->version, err)) ||
            (xml_is(r, "filterSet") && !read_filter(t, r, err)))
            return false;
    }
    return false;
}

// No returnval: nothing happened in that time.
static bool on_update(void *ctx, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "returnval") && !read_update(ctx, r, err))
            return false;
    }
    return false;
}

static bool create_filter(Vim *v, const char *task, char **ret, Err *err)
{
    static const char *const paths[] = {"info.state", "info.error", "info.result", NULL};
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = str_add(&b, "<spec>", err) && vim_add_paths(&b, &(VimPaths){"Task", paths}, 1, err) &&
        str_add(&b, "<objectSet>", err) && vim_add_moref(&b, "obj", "Task", task, err) &&
        str_add(&b, "</objectSet></spec><partialUpdates>false</partialUpdates>", err);
    VimCall c = {.method = "CreateFilter",
                 .type = "PropertyCollector",
                 .moref = v->property_collector,
                 .arguments = b.s,
                 .repeats = true};
    fine = fine && vim_call_text(v, c, ret, err);
    str_clear(&b);
    return fine;
}

static bool wait_once(TaskState *t, int64_t left_ms, Err *err)
{
    int seconds = (int)MIN((left_ms + 999) / 1000, WAIT_S);
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = xml_add_element(&b, "version", t->version, err) &&
        str_addf(&b, err, "<options><maxWaitSeconds>%d</maxWaitSeconds></options>", MAX(seconds, 1));
    VimCall c = {.method = "WaitForUpdatesEx",
                 .type = "PropertyCollector",
                 .moref = t->v->property_collector,
                 .arguments = b.s,
                 .on_reply = on_update,
                 .ctx = t,
                 .repeats = true,
                 .bound = true,
                 .wait_ms = WAIT_S * 1000};
    fine = fine && vim_call(t->v, &c, err);
    str_clear(&b);
    return fine;
}

// The filter, or what it is known by, went with a session or with the server: a new one says how things stand.
static bool needs_new_filter(const Vim *v, const Err *err)
{
    if (!*v->fault.type)
        return err->code == ERR_UNAVAILABLE || err->code == ERR_TIMEOUT;
    return str_eq(v->fault.type, "InvalidCollectorVersion");
}

static bool has_ended(const TaskState *t)
{
    return str_eq(t->state, "success") || str_eq(t->state, "error");
}

// With one filter until the task ends, or the filter is of no more use.
static bool wait_with_filter(TaskState *t, int64_t deadline, Err *err)
{
    Vim *v = t->v;
    cleanup_free char *filter = NULL;
    if (!create_filter(v, t->task, &filter, err) || !mem_replace(&t->version, "", err))
        return false;
    bool fine = true;
    while (fine && !has_ended(t)) {
        int64_t left = deadline - clock_mono_ms();
        fine = left > 0 ? wait_once(t, left, err) : err_set(err, ERR_TIMEOUT, "the task %s takes too long", t->task);
    }
    VimCall destroy = {.method = "DestroyPropertyFilter", .type = "PropertyFilter", .moref = filter, .repeats = true};
    vim_call_anyway(v, &destroy);
    return fine;
}

static bool wait_for_end(TaskState *t, int64_t deadline, Err *err)
{
    while (!wait_with_filter(t, deadline, err)) {
        if (clock_mono_ms() >= deadline || !needs_new_filter(t->v, err))
            return false;
        vim_pause(t->v, PAUSE_MS);
        err_clear(err);
    }
    return true;
}

bool vim_task_wait(Vim *v, const char *task, int64_t deadline, char **ret_result, Err *err)
{
    TaskState t = {.v = v, .task = task};
    bool fine = mem_replace(&t.version, "", err) && mem_replace(&t.state, "", err) && mem_replace(&t.result, "", err) &&
        wait_for_end(&t, deadline, err);
    if (!fine && (err->code == ERR_TIMEOUT || err->code == ERR_CANCELLED)) {
        VimCall cancel = {.method = "CancelTask", .type = "Task", .moref = task, .repeats = true};
        vim_call_anyway(v, &cancel); // what cannot be stopped goes on
    }
    if (fine && str_eq(t.state, "error")) {
        v->fault = t.fault;
        if (!*v->fault.type)
            (void)snprintf(v->fault.type, sizeof(v->fault.type), "Fault");
        fine = vim_fault_fail(v, task, err);
    }
    if (fine && ret_result)
        *ret_result = mem_take(t.result);
    free(t.version);
    free(t.state);
    free(t.result);
    return fine;
}

// ---- what there is of snapshots

typedef struct Look {
    VimVmReader vm;
    char **tasks; // that ran lately: morefs
    size_t tasks_len;
} Look;

static void look_clear(Look *l)
{
    for (size_t i = 0; i < l->tasks_len; i++)
        free(l->tasks[i]);
    free(l->tasks);
    vim_vm_reader_clear(&l->vm);
    *l = (Look){0};
}

static bool look_begin(void *ctx, const char *type, const char *moref, Err *err)
{
    (void)type; // only the VM was asked for
    look_clear(ctx);
    return vim_vm_begin(&((Look *)ctx)->vm, moref, err);
}

static bool look_property(void *ctx, const char *name, XmlReader *r, Err *err)
{
    Look *l = ctx;
    bool more;
    if (!str_eq(name, "recentTask"))
        return vim_vm_property(&l->vm, name, r, err);
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        char **tasks = realloc(l->tasks, (l->tasks_len + 1) * sizeof(*tasks));
        if (!tasks)
            return err_no_memory(err);
        l->tasks = tasks;
        l->tasks[l->tasks_len] = NULL;
        if (!vim_read_text(r, &l->tasks[l->tasks_len], err))
            return false;
        l->tasks_len++;
    }
    return false;
}

static bool look(Vim *v, const char *moref, Look *l, Err *err)
{
    static const char *const paths[] = {"snapshot", "recentTask", NULL};
    const VimPaths set = {"VirtualMachine", paths};
    const VimObjects objects = {.begin = look_begin, .property = look_property, .ctx = l};
    return vim_properties(v, "VirtualMachine", moref, NULL, &set, 1, &objects, err);
}

// The snapshot of that name; NULL: there is none.
static const char *find_snapshot(const Look *l, const char *name)
{
    for (size_t i = 0; i < l->vm.vm.snapshots_len; i++)
        if (str_eq(l->vm.vm.snapshots[i].name, name))
            return l->vm.vm.snapshots[i].moref;
    return NULL;
}

// ---- switching CBT

bool vim_set_cbt(Vim *v, const char *moref, bool on, int timeout_ms, Err *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    cleanup(look_clear) Look l = {0};
    cleanup_free char *task = NULL;
    if (!look(v, moref, &l, err))
        return false;
    if (on && l.vm.vm.snapshots_len > 0)
        return err_set(err, ERR_CONFLICT,
                       "change tracking of %s cannot be switched on while it has snapshots (%zu, '%.80s' among them); "
                       "remove them first",
                       moref, l.vm.vm.snapshots_len, l.vm.vm.snapshots[0].name);
    VimCall c = {.method = "ReconfigVM_Task",
                 .type = "VirtualMachine",
                 .moref = moref,
                 .arguments = on ? "<spec><changeTrackingEnabled>true</changeTrackingEnabled></spec>"
                                 : "<spec><changeTrackingEnabled>false</changeTrackingEnabled></spec>",
                 .repeats = true};
    return vim_call_text(v, c, &task, err) && vim_task_wait(v, task, deadline, NULL, err);
}

// ---- making a snapshot

typedef struct Wish {
    const char *moref, *name;
    char *arguments;
    int64_t deadline;
} Wish;

// *ret_started: there is a task.
static bool create_once(Vim *v, const Wish *w, bool *ret_started, char **ret, Err *err)
{
    cleanup_free char *task = NULL;
    VimCall c = {
        .method = "CreateSnapshot_Task", .type = "VirtualMachine", .moref = w->moref, .arguments = w->arguments};
    *ret_started = false;
    if (!vim_call_text(v, c, &task, err))
        return false;
    *ret_started = true;
    free(mem_take(*ret));
    return vim_task_wait(v, task, w->deadline, ret, err);
}

static bool settle(Vim *v, const char *moref, int64_t deadline, Err *err)
{
    cleanup(look_clear) Look now = {0};
    if (!look(v, moref, &now, err))
        return false;
    for (size_t i = 0; i < now.tasks_len; i++) {
        Err ignored = ERR_INIT; // another task's failure is not ours
        if (!vim_task_wait(v, now.tasks[i], deadline, NULL, &ignored) &&
            (ignored.code == ERR_CANCELLED || ignored.code == ERR_TIMEOUT)) {
            *err = ignored;
            return false;
        }
    }
    return true;
}

bool vim_settle(Vim *v, const char *moref, int timeout_ms, Err *err)
{
    return settle(v, moref, clock_mono_ms() + timeout_ms, err);
}

// After a call without an answer. Whatever runs on the VM is awaited first: the snapshot may be in the making.
static bool look_again(Vim *v, const Wish *w, char **ret, Err *err)
{
    cleanup(look_clear) Look after = {0};
    if (!settle(v, w->moref, w->deadline, err) || !look(v, w->moref, &after, err))
        return false;
    const char *found = find_snapshot(&after, w->name);
    return mem_replace(ret, found ? found : "", err);
}

// A server that was started anew knows its old tasks no more.
static bool lost_task(const Vim *v, bool started)
{
    return started && str_eq(v->fault.type, "ManagedObjectNotFound");
}

static bool create(Vim *v, const Wish *w, char **ret, Err *err)
{
    bool started;
    if (create_once(v, w, &started, ret, err))
        return true;
    bool unclear = !*v->fault.type && (err->code == ERR_UNAVAILABLE || err->code == ERR_TIMEOUT);
    if ((!unclear && !lost_task(v, started)) || clock_mono_ms() >= w->deadline)
        return false;
    Err first = *err;
    err_clear(err);
    vim_pause(v, PAUSE_MS);
    if (!look_again(v, w, ret, err)) {
        *err = first;
        return false;
    }
    return **ret || create_once(v, w, &started, ret, err);
}

static bool make_wish(const char *name, const char *description, bool quiesce, char **ret, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    if (!xml_add_element(&b, "name", name, err) || !xml_add_element(&b, "description", description, err) ||
        !xml_add_element(&b, "memory", "false", err) ||
        !xml_add_element(&b, "quiesce", quiesce ? "true" : "false", err)) {
        str_clear(&b);
        return false;
    }
    *ret = b.s;
    return true;
}

// A task that does not say what it made: by its name.
static bool name_result(Vim *v, const Wish *w, char **ret, Err *err)
{
    cleanup(look_clear) Look l = {0};
    if (**ret)
        return true;
    if (!look(v, w->moref, &l, err))
        return false;
    const char *found = find_snapshot(&l, w->name);
    return found ? mem_replace(ret, found, err)
                 : err_set(err, ERR_PROTOCOL, "%s made the snapshot %s, and does not have it", v->host, w->name);
}

bool vim_snapshot_create(Vim *v, const char *moref, const char *name, const char *description, bool quiesce,
                         int timeout_ms, char **ret_moref, Err *err)
{
    Wish w = {.moref = moref, .name = name, .deadline = clock_mono_ms() + timeout_ms};
    cleanup_free char *arguments = NULL, *made = mem_strdup("", err);
    cleanup(look_clear) Look l = {0};
    if (!made)
        return false;
    if (!*name || strpbrk(name, "/\\%"))
        return err_set(err, ERR_INVALID, "a snapshot cannot be named '%.80s'", name);
    if (!look(v, moref, &l, err) || !make_wish(name, description, quiesce, &arguments, err))
        return false;
    if (find_snapshot(&l, name))
        return err_set(err, ERR_EXISTS, "%s has a snapshot of the name %.80s", moref, name);
    w.arguments = arguments;
    if (!create(v, &w, &made, err) || !name_result(v, &w, &made, err))
        return false;
    *ret_moref = mem_take(made);
    return true;
}

// ---- removing one

static bool remove_once(Vim *v, const char *snapshot, int64_t deadline, bool *ret_started, Err *err)
{
    cleanup_free char *task = NULL;
    VimCall c = {.method = "RemoveSnapshot_Task",
                 .type = "VirtualMachineSnapshot",
                 .moref = snapshot,
                 .arguments = "<removeChildren>false</removeChildren><consolidate>true</consolidate>",
                 .repeats = true};
    *ret_started = false;
    if (!vim_call_text(v, c, &task, err))
        return false;
    *ret_started = true;
    return vim_task_wait(v, task, deadline, NULL, err);
}

// What runs on the VM, our own removal perhaps. True: it has ended, whatever way.
static bool await_other(Vim *v, int64_t deadline)
{
    cleanup_free char *other = mem_take(v->fault_task);
    Err ignored = ERR_INIT;
    return other && *other &&
        (vim_task_wait(v, other, deadline, NULL, &ignored) ||
         (ignored.code != ERR_CANCELLED && ignored.code != ERR_TIMEOUT));
}

bool vim_snapshot_remove(Vim *v, const char *snapshot, int timeout_ms, Err *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    bool started;
    while (!remove_once(v, snapshot, deadline, &started, err)) {
        if (!started && str_eq(v->fault.type, "ManagedObjectNotFound")) {
            err_clear(err); // gone already, or by a call whose answer was lost
            return true;
        }
        bool again = lost_task(v, started) || (str_eq(v->fault.type, "TaskInProgress") && await_other(v, deadline));
        if (!again || clock_mono_ms() >= deadline)
            return false;
        vim_pause(v, PAUSE_MS);
        err_clear(err);
    }
    return true;
}
