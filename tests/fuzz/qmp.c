// What a monitor says: greeting, answers, events.
#include "fuzz.h"

#include "peer.h"
#include "wire/qmp.h"

static void calls(Qmp *q)
{
    static const char *const commands[] = {"query-block", "query-named-block-nodes", "transaction"};
    fuzz_check(qmp_version(q) < 1000 * 1000);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        Err err = ERR_INIT;
        json_t *result = NULL;
        if (!qmp_call(q, commands[i], json_object(), &result, &err))
            peer_check(&err);
        else
            fuzz_check(result != NULL);
        json_decref(result);
    }
    for (;;) {
        Err err = ERR_INIT;
        QmpEvent e;
        if (!qmp_await(q, 0, &e, &err)) {
            peer_check(&err);
            break;
        }
        fuzz_check(str_eq(e.name, "JOB_STATUS_CHANGE"));
        qmp_event_clear(&e);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char *const events[] = {"JOB_STATUS_CHANGE", NULL};
    Err err = ERR_INIT;
    Qmp *q = NULL;
    peer_start(data, n);
    if (qmp_open("/monitor", QMP_GREETING_MS, events, &q, &err))
        calls(q);
    else
        peer_check(&err);
    qmp_free(q);
    peer_end();
    return 0;
}
