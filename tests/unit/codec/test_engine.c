#include "codec/engine.h"
#include "unit.h"

static void test_config_round_trip(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    EngineLayer layers[] = {{"/i1", "/h1", "i0"}, {"/i0", "/h0", NULL}};
    EngineConfig c = {.role = ENGINE_INGEST,
                      .export_name = "disk-0",
                      .control = "/run/c",
                      .cluster_size = 65536,
                      .hash_algorithm = "sha256",
                      .hash_seed = UINT64_MAX,
                      .image = "/i2",
                      .hashes = "/h2",
                      .backing_name = "i1",
                      .size = 12345,
                      .mode = DISK_COMPARE,
                      .compression = 3,
                      .layers = layers,
                      .layers_len = 2};
    EngineConfig back;
    char *text = NULL, *again = NULL;
    assert_ok(engine_config_encode(&c, &text, &err), &err);
    assert_ok(engine_config_decode(text, strlen(text), &back, &err), &err);
    assert_int_equal(back.size, 12345);
    assert_int_equal(back.mode, DISK_COMPARE);
    assert_int_equal(back.compression, 3);
    assert_int_equal(back.hash_seed, UINT64_MAX);
    assert_string_equal(back.layers[0].backing_name, "i0");
    assert_null(back.layers[1].backing_name);
    assert_ok(engine_config_encode(&back, &again, &err), &err);
    assert_string_equal(text, again);
    free(text);
    free(again);
    engine_config_clear(&back);
    c.role = ENGINE_SERVE;
    assert_ok(engine_config_encode(&c, &text, &err), &err);
    assert_ok(engine_config_decode(text, strlen(text), &back, &err), &err);
    assert_int_equal(back.role, ENGINE_SERVE);
    assert_null(back.image);
    engine_config_clear(&back);
    free(text);
}

#define COMMON                                                                                         \
    "\"export_name\":\"e\",\"control\":\"/c\",\"cluster_size\":65536,\"hash_algorithm\":\"xxh3-128\"," \
    "\"hash_seed\":\"0000000000000000\","
#define LAYER "{\"image\":\"/i\",\"hashes\":\"/h\"}"

#define INGEST \
    "{" COMMON "\"role\":\"ingest\",\"layers\":[],\"image\":\"/i\",\"hashes\":\"/h\",\"size\":1,\"mode\":\"full\""

static void test_config_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "[]",
        "{}",
        "{" COMMON "\"role\":\"serve\",\"layers\":[]}",
        "{" COMMON "\"role\":\"serve\",\"layers\":[" LAYER "],\"size\":1}",
        "{" COMMON "\"role\":\"serve\",\"layers\":[" LAYER "," LAYER "]}",
        "{" COMMON "\"role\":\"guess\",\"layers\":[" LAYER "]}",
        "{" COMMON "\"role\":\"serve\",\"layers\":[{\"image\":\"\",\"hashes\":\"/h\"}]}",
        "{" COMMON "\"role\":\"ingest\",\"layers\":[],\"image\":\"/i\",\"hashes\":\"/h\",\"size\":0,\"mode\":\"full\"}",
        "{" COMMON
        "\"role\":\"ingest\",\"layers\":[],\"image\":\"/i\",\"hashes\":\"/h\",\"size\":1,\"mode\":\"tracked\"}",
        "{" COMMON "\"role\":\"ingest\",\"layers\":[" LAYER
        "],\"image\":\"/i\",\"hashes\":\"/h\",\"size\":1,\"mode\":\"full\"}",
        "{" COMMON "\"role\":\"ingest\",\"layers\":[],\"hashes\":\"/h\",\"size\":1,\"mode\":\"full\"}",
        INGEST ",\"journal\":\"/j\",\"resume_image\":\"/r\"}", // all three or none
        INGEST ",\"journal\":\"/j\",\"resume_journal\":\"/r\"}",
        INGEST ",\"resume_image\":\"/r\",\"resume_journal\":\"/r\"}",
    };
    Err err = ERR_INIT;
    EngineConfig c;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(engine_config_decode(bad[i], strlen(bad[i]), &c, &err), &err, ERR_INVALID);
}

static void test_requests(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const EngineRequest requests[] = {
        {.op = ENGINE_STATUS},
        {.op = ENGINE_STOP},
        {.op = ENGINE_SEAL},
        {.op = ENGINE_SEAL, .have_expect = true, .extents = 3, .bytes = DISK_SIZE_MAX, .digest = UINT64_MAX},
    };
    for (size_t i = 0; i < ARRAY_LEN(requests); i++) {
        char *line = NULL;
        EngineRequest back;
        assert_ok(engine_request_encode(&requests[i], &line, &err), &err);
        size_t n = strlen(line);
        assert_int_equal(line[n - 1], '\n');
        assert_null(memchr(line, '\n', n - 1));
        assert_ok(engine_request_decode(line, n, &back, &err), &err);
        assert_int_equal(back.op, requests[i].op);
        assert_int_equal(back.have_expect, requests[i].have_expect);
        assert_int_equal(back.extents, requests[i].extents);
        assert_int_equal(back.bytes, requests[i].bytes);
        assert_int_equal(back.digest, requests[i].digest);
        free(line);
    }
    static const char *const bad[] = {"",
                                      "{}",
                                      "{\"op\":\"x\"}",
                                      "{\"op\":\"seal\",\"bytes\":1}",
                                      "{\"op\":\"status\",\"extents\":1,\"bytes\":1,\"digest\":\"0000000000000000\"}",
                                      "{\"op\":\"seal\",\"extents\":-1,\"bytes\":1,\"digest\":\"0000000000000000\"}"};
    EngineRequest r;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(engine_request_decode(bad[i], strlen(bad[i]), &r, &err), &err, ERR_INVALID);
}

static void test_answers(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    EngineAnswer a = {.ok = true,
                      .received_data = 1,
                      .received_zero = 2,
                      .stored_bytes = 3,
                      .connections = 4,
                      .sealed = true,
                      .image_bytes = 5,
                      .stored_clusters = 6,
                      .zeroed_clusters = 7,
                      .skipped_clusters = 8,
                      .root = "00ff",
                      .metadata = "01",
                      .hashes_digest = ""};
    EngineAnswer back;
    char *line = NULL;
    assert_ok(engine_answer_encode(&a, &line, &err), &err);
    assert_ok(engine_answer_decode(line, strlen(line), &back, &err), &err);
    assert_memory_equal(&a, &back, sizeof a);
    free(line);
    // A message with a path that is not UTF-8 still arrives.
    a = (EngineAnswer){.code = ERR_NO_SPACE, .details = "cannot write /x/\xff\xfe: full"};
    assert_ok(engine_answer_encode(&a, &line, &err), &err);
    assert_ok(engine_answer_decode(line, strlen(line), &back, &err), &err);
    assert_false(back.ok);
    assert_int_equal(back.code, ERR_NO_SPACE);
    assert_string_equal(back.details, "cannot write /x/??: full");
    free(line);
    static const char *const bad[] = {"{\"ok\":true}", "{\"ok\":false}", "{\"ok\":1}", "[]",
                                      "{\"ok\":false,\"code\":\"io\"}"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(engine_answer_decode(bad[i], strlen(bad[i]), &back, &err), &err, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_round_trip),
        cmocka_unit_test(test_config_refused),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
