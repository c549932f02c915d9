#include "source/qemu/freeze.h"

#include "base/clock.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#define THAW_TRY_MS 10000
#define THAW_PAUSE_MS 200

bool freeze_thaw(const char *agent_path, uint64_t *ret_count)
{
    int64_t deadline = clock_mono_ms() + THAW_MS;
    do {
        Err err = ERR_INIT;
        Agent *a;
        uint64_t count = 0;
        bool ok = false;
        if (agent_open(agent_path, THAW_TRY_MS, &a, &err)) {
            ok = agent_thaw(a, THAW_TRY_MS, &count, &err);
            agent_free(a);
        }
        if (ok && ret_count)
            *ret_count = count;
        if (ok)
            return true;
        (void)poll(NULL, 0, THAW_PAUSE_MS); // nothing tells when the agent can be reached again
    } while (clock_mono_ms() < deadline);
    return false;
}

static void thaw(Freeze *f, const Guard *guard, uint64_t *ret_count)
{
    agent_free(f->agent); // its socket takes one client at a time
    f->agent = NULL;
    f->stuck = !freeze_thaw(f->agent_path, ret_count);
    if (!f->stuck)
        guard_tell(guard, GUARD_THAWED);
    else
        (void)snprintf(f->why, sizeof(f->why),
                       "the guest agent does not confirm the thaw; HINT: look after the guest now");
}

static bool try_freeze(Freeze *f, const Guard *guard, Err *err)
{
    if (!agent_open(f->agent_path, FREEZE_SYNC_MS, &f->agent, err))
        return false;
    guard_tell(guard, GUARD_FROZEN);
    uint64_t count = 0;
    bool ok = agent_freeze(f->agent, FREEZE_MS, &count, err);
    f->frozen = ok && count > 0;
    if (f->frozen)
        return true;
    // Some may be frozen, or will be as soon as the agent gets to it.
    thaw(f, guard, &count);
    return ok ? err_set(err, ERR_UNSUPPORTED, "the guest agent found no file system to freeze") : false;
}

bool freeze_begin(const QemuSpec *spec, bool running, const Guard *guard, const atomic_bool *cancel, Freeze *ret,
                  Err *err)
{
    Freeze f = {.agent_path = spec->agent};
    Err why = ERR_INIT;
    if (spec->freeze == FREEZE_OFF)
        (void)err_set(&why, ERR_UNSUPPORTED, "freezing is switched off");
    else if (!spec->agent)
        (void)err_set(&why, ERR_UNSUPPORTED, "no guest agent is configured");
    else if (!running)
        (void)err_set(&why, ERR_UNAVAILABLE, "the VM is not running, so its guest agent cannot answer");
    else if (cancel && atomic_load(cancel))
        return err_set(err, ERR_CANCELLED, "cancelled before the guest was frozen");
    else
        (void)try_freeze(&f, guard, &why);
    if (!f.frozen && spec->freeze == FREEZE_REQUIRE) {
        *err = why;
        return err_context(err, "the guest could not be frozen, which its backup requires");
    }
    if (!f.frozen && !f.why[0])
        (void)snprintf(f.why, sizeof(f.why), "%.*s", (int)sizeof(f.why) - 1, why.details);
    *ret = f;
    return true;
}

void freeze_end(Freeze *f, const Guard *guard)
{
    if (!f->frozen)
        return;
    uint64_t count = 0;
    thaw(f, guard, &count);
    f->frozen = count > 0;
    if (!f->frozen && !f->why[0])
        (void)snprintf(f->why, sizeof(f->why), "the guest thawed by itself before the snapshot was done");
}
