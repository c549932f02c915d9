// What a guest agent says.
#include "fuzz.h"

#include "peer.h"
#include "wire/agent.h"

#define CALL_MS 1000

static void checked(bool ok, Err *err)
{
    if (!ok)
        peer_check(err);
    err_clear(err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Err err = ERR_INIT;
    Agent *a = NULL;
    uint64_t count;
    bool frozen;
    peer_start(data, n);
    checked(agent_open("/agent", CALL_MS, &a, &err), &err);
    if (a) {
        checked(agent_freeze(a, CALL_MS, &count, &err), &err);
        checked(agent_is_frozen(a, CALL_MS, &frozen, &err), &err);
        checked(agent_thaw(a, CALL_MS, &count, &err), &err);
    }
    agent_free(a);
    peer_end();
    return 0;
}
