// What hub, client and engine of another version, or another program, may say to each other, and none of ours does.
#include "codec/engine.h"
#include "codec/work.h"
#include "unit.h"

static void check(bool ok, Err *err, const char *text, const char *words)
{
    if (ok)
        fail_msg("accepted: %s", text);
    if (err->code != ERR_INVALID || !strstr(err->details, words))
        fail_msg("%s: %s: %s", text, err_name(err->code), err->details);
    err_clear(err);
}

static void engine_configurations(void **state)
{
    (void)state;
    static const char form[] = "{\"role\":\"serve\",\"export_name\":\"e\",\"control\":\"/c\",\"cluster_size\":%s,"
                               "\"hash_algorithm\":\"xxh3-128\",\"hash_seed\":\"0000000000000000\",\"layers\":%s}";
    static const struct {
        const char *cluster_size, *layers, *words;
    } cases[] = {
        {"2048", "[{\"image\":\"/i\",\"hashes\":\"/h\"}]", "cluster_size"},
        {"65537", "[{\"image\":\"/i\",\"hashes\":\"/h\"}]", "cluster_size"},
        {"4194304", "[{\"image\":\"/i\",\"hashes\":\"/h\"}]", "cluster_size"},
        {"65536", "null", "layers"},
        {"65536", "{}", "layers"},
        {"65536", "[[]]", "layer"},
        {"65536", "[{\"image\":\"/i\"}]", "hashes"},
        {"65536", "[{\"image\":\"/i\",\"hashes\":\"/h\",\"backing_name\":\"b\"}]", "backing file"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        EngineConfig c;
        cleanup_free char *text = mem_printf(&err, form, cases[i].cluster_size, cases[i].layers);
        assert_non_null(text);
        check(engine_config_decode(text, strlen(text), &c, &err), &err, text, cases[i].words);
    }
}

static void engine_answers(void **state)
{
    (void)state;
    static const char form[] =
        "{\"ok\":true,\"sealed\":true,\"connections\":%s,\"received_data\":1,\"received_zero\":1,"
        "\"stored_bytes\":%s,\"image_bytes\":1,\"stored_clusters\":1,\"zeroed_clusters\":1,"
        "\"skipped_clusters\":1,\"root\":%s,\"metadata\":\"\",\"hashes_digest\":\"\"}";
    static const struct {
        const char *connections, *stored, *root, *words;
    } cases[] = {
        {"-1", "1", "\"00\"", "connections"},      {"1", "\"1\"", "\"00\"", "stored_bytes"}, {"1", "1", "7", "root"},
        {"1", "1", "\"0\"", "root is not a hash"}, {"1", "1", "\"zz\"", "not a hash"},
    };
    Err err = ERR_INIT;
    EngineAnswer a;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        cleanup_free char *text = mem_printf(&err, form, cases[i].connections, cases[i].stored, cases[i].root);
        assert_non_null(text);
        check(engine_answer_decode(text, strlen(text), &a, &err), &err, text, cases[i].words);
    }
    // A failure stays one, also where its code says that nothing failed.
    static const char said[] = "{\"ok\":false,\"code\":\"none\",\"details\":\"d\"}";
    assert_ok(engine_answer_decode(said, strlen(said), &a, &err), &err);
    assert_false(a.ok);
    assert_int_equal(a.code, ERR_INTERNAL);
    assert_string_equal(a.details, "d");
}

#define DISK(members)                                                                                            \
    "{\"disk_key\":\"d\",\"label\":\"\",\"size\":1,\"backing_identity\":\"\",\"change_id\":\"u/1\"," members "," \
    "\"estimated_bytes\":5}"
#define ANNOUNCE(disk, left_out) "{\"disks\":[" disk "],\"left_out\":" left_out ",\"consistency\":\"crash\"}"

static void announcements(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {ANNOUNCE(DISK("\"tracking\":\"cbt\""), "[1]"), "left_out[0]"},
        {ANNOUNCE(DISK("\"tracking\":\"cbt\""), "[\"\"]"), "left_out[0]"},
        {ANNOUNCE(DISK("\"tracking\":\"cbt\""), "[\"a\",null]"), "left_out[1]"},
        {ANNOUNCE(DISK("\"tracking\":7"), "[]"), "tracking"},
        {ANNOUNCE(DISK("\"tracking\":\"cbt\",\"lost\":7"), "[]"), "lost"},
        {ANNOUNCE("[]", "[]"), "disks[0]"},
    };
    Err err = ERR_INIT;
    Announce a = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check(announce_decode(cases[i].text, strlen(cases[i].text), &a, &err), &err, cases[i].text, cases[i].words);
    // A client that does not say what a full would move: what it estimates counts.
    static const char old[] = ANNOUNCE(DISK("\"tracking\":\"cbt\""), "[]");
    assert_ok(announce_decode(old, strlen(old), &a, &err), &err);
    assert_int_equal(a.disks[0].allocated_bytes, 5);
    announce_clear(&a);
}

// A disk's key comes from a hypervisor: bytes that are no text are refused, not cut or replaced.
static void a_key_that_is_no_text(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char bad[] = "scsi\xff", none[] = "u/1", empty[] = "", crash[] = "crash", *keys[] = {none, bad}, *text = NULL;
    AnnounceDisk d = {
        .disk_key = none, .label = empty, .backing_identity = empty, .change_id = none, .tracking = "none", .size = 1};
    Announce a = {.disks = &d, .disks_len = 1, .left_out = keys, .left_out_len = 2, .consistency = crash};
    check(announce_encode(&a, &text, &err), &err, bad, "left_out[1] is not UTF-8");
    a.left_out_len = 0;
    d.label = bad;
    assert_fails(announce_encode(&a, &text, &err), &err, ERR_INVALID);
    assert_null(text);
}

#define ORDER(vm_id, excluded, parents)                                                    \
    "{\"job_id\":\"j\",\"vm_id\":" vm_id ",\"vm_name\":\"v\",\"excluded_disks\":" excluded \
    ",\"source\":{},\"backup_type\":\"full\",\"cluster_size\":65536,\"lease_seconds\":1,\"parent_disks\":" parents "}"
#define UUID "\"0b0c4a4e-7d5f-4a57-9d6e-0a3f5d5f2a10\""

static void work_orders(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {ORDER("7", "[]", "[]"), "vm_id"},
        {ORDER(UUID, "7", "[]"), "excluded_disks"},
        {ORDER(UUID, "[]", "7"), "parent_disks"},
        {ORDER(UUID, "[]", "[7]"), "parent_disks[0]"},
    };
    Err err = ERR_INIT;
    WorkOrder w = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check(work_order_decode(cases[i].text, strlen(cases[i].text), &w, &err), &err, cases[i].text, cases[i].words);
    WorkProgressAnswer a;
    static const char *const answers[] = {"{}", "{\"status\":\"resting\"}", "{\"cancel\":1,\"status\":\"running\"}"};
    for (size_t i = 0; i < ARRAY_LEN(answers); i++)
        check(work_progress_answer_decode(answers[i], strlen(answers[i]), &a, &err), &err, answers[i], "");
}

static void answers_to_announcements(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "{}",
        "{\"disks\":[7]}",
        "{\"disks\":[{\"disk_key\":\"d\",\"disk_id\":1,\"disk_no\":0,\"mode\":\"full\",\"reason\":\"first_backup\","
        "\"uri\":\"u\",\"leaves_uri\":\"l\",\"hash_algorithm\":\"x\",\"hash_seed\":\"0\"}]}",
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        AnnounceAnswer a = {0};
        check(announce_answer_decode(cases[i], strlen(cases[i]), &a, &err), &err, cases[i], "");
    }
}

static void completions(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"{\"change_id\":\"u/1\",\"disks\":[{\"disk_id\":1,\"change_id\":\"u/1\",\"tracking\":\"guess\"}]}",
         "tracking"},
        {"{\"change_id\":\"u/1\",\"disks\":[{\"disk_id\":\"1\",\"change_id\":\"u/1\"}]}", "disk_id"},
        {"{\"change_id\":\"u/1\",\"disks\":[{\"disk_id\":1}]}", "change_id"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        Completion c = {0};
        check(completion_decode(cases[i].text, strlen(cases[i].text), &c, &err), &err, cases[i].text, cases[i].words);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engine_configurations),
        cmocka_unit_test(engine_answers),
        cmocka_unit_test(announcements),
        cmocka_unit_test(a_key_that_is_no_text),
        cmocka_unit_test(answers_to_announcements),
        cmocka_unit_test(completions),
        cmocka_unit_test(work_orders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
