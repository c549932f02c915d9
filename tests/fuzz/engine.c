// What hub and engine say to each other: the plugin's configuration, and the lines of its control socket.
#include "fuzz.h"

#include "codec/engine.h"

static void no_request(const EngineRequest *unused)
{
    (void)unused;
}

static void no_answer(const EngineAnswer *unused)
{
    (void)unused;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    fuzz_round_trip(EngineConfig, data, n, engine_config_decode, engine_config_encode, engine_config_clear);
    fuzz_round_trip(EngineRequest, data, n, engine_request_decode, engine_request_encode, no_request);
    fuzz_round_trip(EngineAnswer, data, n, engine_answer_decode, engine_answer_encode, no_answer);
    return 0;
}
