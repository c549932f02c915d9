#include "wire/agent.h"

#include "base/clock.h"
#include "base/str.h"
#include "base/uuid.h"

#include <stdio.h>

#define AGENT_MARK '\xff' // no byte of JSON

struct Agent {
    Stream *stream;
};

static bool refused(const char *command, const json_t *error, Err *err)
{
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *desc = json_string_value(json_object_get(error, "desc"));
    ErrCode code = class && str_eq(class, "CommandNotFound") ? ERR_UNSUPPORTED : ERR_PROTOCOL;
    return err_set(err, code, "the guest agent refused %s: %s", command, desc ? desc : "without a reason");
}

// The agent answers in order, and has no IDs: each call synchronises first, so that the answer is ours.
static bool synchronise(Agent *a, int64_t deadline, Err *err)
{
    uint32_t id;
    char text[96];
    if (!uuid_random_bytes(&id, sizeof(id), err))
        return false;
    id &= 0x7fffffff;
    int n = snprintf(text, sizeof(text), "%c{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%u}}\n",
                     AGENT_MARK, (unsigned)id);
    if (!stream_send(a->stream, text, (size_t)n, -1, deadline, err))
        return false;
    for (;;) {
        json_t *answer;
        if (!stream_skip(a->stream, AGENT_MARK, deadline, err) || !stream_receive(a->stream, deadline, &answer, err))
            return false;
        const json_t *result = json_object_get(answer, "return");
        bool ours = json_is_integer(result) && json_integer_value(result) == (json_int_t)id;
        json_decref(answer);
        if (ours)
            return true;
    }
}

static bool call(Agent *a, const char *command, int timeout_ms, json_t **ret, Err *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;
    char text[96];
    int n = snprintf(text, sizeof(text), "{\"execute\":\"%s\"}\n", command);
    json_t *answer;
    if (!synchronise(a, deadline, err) || !stream_send(a->stream, text, (size_t)n, -1, deadline, err) ||
        !stream_receive(a->stream, deadline, &answer, err))
        return err_context(err, "guest agent, %s", command);
    json_t *result = json_object_get(answer, "return"), *error = json_object_get(answer, "error");
    bool ok = result && !error;
    if (ok)
        *ret = json_incref(result);
    else if (error)
        (void)refused(command, error, err);
    else
        (void)err_set(err, ERR_PROTOCOL, "the guest agent's answer to %s is neither a result nor an error", command);
    json_decref(answer);
    return ok;
}

bool agent_open(const char *path, int timeout_ms, Agent **ret, Err *err)
{
    Agent *a = mem_calloc(1, sizeof(*a), err);
    if (!a)
        return false;
    if (!stream_open(path, &a->stream, err) || !synchronise(a, clock_mono_ms() + timeout_ms, err)) {
        agent_free(a);
        return err_context(err, "guest agent");
    }
    *ret = a;
    return true;
}

static bool call_count(Agent *a, const char *command, int timeout_ms, uint64_t *ret, Err *err)
{
    json_t *result = NULL;
    if (!call(a, command, timeout_ms, &result, err))
        return false;
    json_int_t n = json_is_integer(result) ? json_integer_value(result) : -1;
    json_decref(result);
    if (n < 0)
        return err_set(err, ERR_PROTOCOL, "the guest agent's answer to %s is no count", command);
    *ret = (uint64_t)n;
    return true;
}

bool agent_freeze(Agent *a, int timeout_ms, uint64_t *ret_count, Err *err)
{
    return call_count(a, "guest-fsfreeze-freeze", timeout_ms, ret_count, err);
}

bool agent_thaw(Agent *a, int timeout_ms, uint64_t *ret_count, Err *err)
{
    return call_count(a, "guest-fsfreeze-thaw", timeout_ms, ret_count, err);
}

bool agent_is_frozen(Agent *a, int timeout_ms, bool *ret, Err *err)
{
    json_t *result = NULL;
    if (!call(a, "guest-fsfreeze-status", timeout_ms, &result, err))
        return false;
    const char *status = json_string_value(result);
    bool known = status && (str_eq(status, "frozen") || str_eq(status, "thawed"));
    if (known)
        *ret = str_eq(status, "frozen");
    json_decref(result);
    return known || err_set(err, ERR_PROTOCOL, "the guest agent's answer is neither frozen nor thawed");
}

void agent_free(Agent *a)
{
    if (!a)
        return;
    stream_free(a->stream);
    free(a);
}
