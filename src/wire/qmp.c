#include "wire/qmp.h"

#include "base/clock.h"
#include "base/str.h"
#include "codec/json.h"

#include <stdio.h>

#define EVENTS_MAX 1024 // beyond, the oldest goes: an awaited change can be asked for, too

struct Qmp {
    Stream *stream;
    const char *const *wanted;
    json_t *events; // array
    unsigned version;
    uint64_t last_id;
};

static bool is_wanted(const Qmp *q, const char *name)
{
    for (size_t i = 0; q->wanted[i]; i++)
        if (str_eq(q->wanted[i], name))
            return true;
    return false;
}

// Takes value when it is an event.
static bool keep_event(Qmp *q, json_t *value, bool *ret_is_event, Err *err)
{
    const char *name = json_string_value(json_object_get(value, "event"));
    *ret_is_event = name != NULL;
    if (!name)
        return true;
    if (!is_wanted(q, name)) {
        json_decref(value);
        return true;
    }
    if (json_array_size(q->events) >= EVENTS_MAX)
        (void)json_array_remove(q->events, 0); // cannot fail: there is one
    return json_array_append_new(q->events, value) == 0 || err_no_memory(err);
}

static bool receive(Qmp *q, int64_t deadline, json_t **ret, bool *ret_is_event, Err *err)
{
    json_t *value;
    return stream_receive(q->stream, deadline, &value, err) && keep_event(q, value, ret_is_event, err) &&
        ((*ret = value), true);
}

static bool refused(const char *command, const json_t *error, Err *err)
{
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *desc = json_string_value(json_object_get(error, "desc"));
    ErrCode code = ERR_PROTOCOL;
    if (class && str_eq(class, "CommandNotFound"))
        code = ERR_UNSUPPORTED;
    else if (class && str_eq(class, "DeviceNotFound"))
        code = ERR_NOT_FOUND;
    return err_set(err, code, "qemu refused %s: %s", command, desc ? desc : "without a reason");
}

static char *format_command(Qmp *q, const char *command, json_t *args, Err *err)
{
    json_t *message = json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)++q->last_id);
    if (message && args && json_object_set(message, "arguments", args) != 0) {
        json_decref(message);
        message = NULL;
    }
    char *text = NULL;
    bool ok = message ? codec_json_dump(message, &text, err) : err_no_memory(err);
    json_decref(message);
    return ok ? text : NULL;
}

static bool call(Qmp *q, const char *command, json_t *args, int fd, json_t **ret, Err *err)
{
    int64_t deadline = clock_mono_ms() + QMP_CALL_MS;
    cleanup_free char *text = format_command(q, command, args, err);
    if (!text || !stream_send(q->stream, text, strlen(text), fd, deadline, err))
        return false;
    for (;;) {
        json_t *answer;
        bool is_event;
        if (!receive(q, deadline, &answer, &is_event, err))
            return false;
        if (is_event)
            continue;
        const json_t *id = json_object_get(answer, "id");
        if (!json_is_integer(id) || json_integer_value(id) != (json_int_t)q->last_id) {
            json_decref(answer); // late, of a command that we gave up
            continue;
        }
        json_t *result = json_object_get(answer, "return"), *error = json_object_get(answer, "error");
        bool ok = result && !error;
        if (error)
            (void)refused(command, error, err);
        else if (!result)
            (void)err_set(err, ERR_PROTOCOL, "an answer with neither a result nor an error");
        else if (ret)
            *ret = json_incref(result);
        json_decref(answer);
        return ok;
    }
}

bool qmp_call_fd(Qmp *q, const char *command, json_t *args, int fd, json_t **ret, Err *err)
{
    bool ok = call(q, command, args, fd, ret, err) || err_context(err, "qmp %s", command);
    json_decref(args);
    return ok;
}

bool qmp_call(Qmp *q, const char *command, json_t *args, json_t **ret, Err *err)
{
    return qmp_call_fd(q, command, args, -1, ret, err);
}

static bool greet(Qmp *q, const char *path, int greeting_ms, Err *err)
{
    json_t *greeting;
    if (!stream_receive(q->stream, clock_mono_ms() + greeting_ms, &greeting, err)) {
        if (err->code != ERR_TIMEOUT)
            return false;
        err_clear(err);
        return err_set(err, ERR_BUSY,
                       "%s: no greeting within %d ms: another client holds this monitor, or QEMU hangs; HINT: end that "
                       "client, or give the VM a second QMP socket",
                       path, greeting_ms);
    }
    const json_t *qmp = json_object_get(greeting, "QMP");
    const json_t *version = json_object_get(json_object_get(qmp, "version"), "qemu");
    json_int_t major = json_integer_value(json_object_get(version, "major"));
    json_int_t minor = json_integer_value(json_object_get(version, "minor"));
    bool ok = json_is_object(version) && major >= 0 && major < 1000 && minor >= 0 && minor < 1000;
    q->version = ok ? (unsigned)(major * 1000 + minor) : 0;
    json_decref(greeting);
    if (!ok)
        return err_set(err, ERR_PROTOCOL, "%s: this is no QMP socket", path);
    return qmp_call(q, "qmp_capabilities", NULL, NULL, err);
}

bool qmp_open(const char *path, int greeting_ms, const char *const *events, Qmp **ret, Err *err)
{
    Qmp *q = mem_calloc(1, sizeof(*q), err);
    if (!q)
        return false;
    q->wanted = events;
    q->events = json_array();
    bool ok = q->events || err_no_memory(err);
    if (!ok || !stream_open(path, &q->stream, err) || !greet(q, path, greeting_ms, err)) {
        qmp_free(q);
        return err_context(err, "qmp");
    }
    *ret = q;
    return true;
}

void qmp_set_cancel(Qmp *q, const atomic_bool *cancel)
{
    stream_set_cancel(q->stream, cancel);
}

unsigned qmp_version(const Qmp *q)
{
    return q->version;
}

bool qmp_await(Qmp *q, int timeout_ms, QmpEvent *ret, Err *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    while (json_array_size(q->events) == 0) {
        json_t *value;
        bool is_event;
        if (!receive(q, deadline, &value, &is_event, err))
            return false;
        if (!is_event)
            json_decref(value); // late, of a command that we gave up
    }
    json_t *value = json_incref(json_array_get(q->events, 0));
    (void)json_array_remove(q->events, 0); // cannot fail: there is one
    *ret = (QmpEvent){
        .value = value,
        .name = json_string_value(json_object_get(value, "event")),
        .data = json_object_get(value, "data"),
    };
    return true;
}

void qmp_event_clear(QmpEvent *e)
{
    json_decref(e->value);
    *e = (QmpEvent){0};
}

bool qmp_is_lost(const Qmp *q)
{
    return stream_is_lost(q->stream);
}

int qmp_fd(const Qmp *q)
{
    return stream_fd(q->stream);
}

void qmp_free(Qmp *q)
{
    if (!q)
        return;
    stream_free(q->stream);
    json_decref(q->events);
    free(q);
}
