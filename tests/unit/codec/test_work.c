#include "unit.h"

#include "base/str.h"
#include "codec/work.h"

#define UUID "0b0c4a4e-7d5f-4a57-9d6e-0a3f5d5f2a10"
#define ORDER                                                                                               \
    "{\"audit_blocks\":3000,\"audit_percent\":3,\"backup_type\":\"incremental\",\"cluster_size\":65536,"    \
    "\"excluded_disks\":[\"d2\"],"                                                                          \
    "\"interrupted_backup_id\":\"backup-a-9\",\"interrupted_disks\":[{\"disk_key\":\"d1\",\"size\":512,"    \
    "\"token\":\"t\"}],\"job_id\":\"backup-a-1\",\"lease_seconds\":30,\"parent_backup_id\":\"backup-a-0\"," \
    "\"parent_disks\":[{\"backing_identity\":\"\",\"change_id\":\"u/1\",\"disk_id\":2000,"                  \
    "\"disk_key\":\"d1\",\"size\":512,\"tracking\":true}],\"repository_uuid\":\"" UUID "\","                \
    "\"source\":{\"type\":\"file\"},\"vm_id\":\"" UUID "\",\"vm_name\":\"a\"}"
#define VCENTER_ORDER                                                                                           \
    "{\"backup_type\":\"full\",\"cluster_size\":65536,\"excluded_disks\":[],"                                   \
    "\"interrupted_backup_id\":null,\"interrupted_disks\":[],\"job_id\":\"backup-a-1\","                        \
    "\"lease_seconds\":30,\"parent_backup_id\":null,\"parent_disks\":[],\"repository_uuid\":null,"              \
    "\"source\":{\"type\":\"vsphere\"},\"vcenter\":{\"ca_pem\":null,\"host\":\"vc:443\",\"password\":\"p\\n\"," \
    "\"thumbprint\":\"ab\",\"user\":\"u\"},\"vm_id\":\"" UUID "\",\"vm_name\":\"a\"}"
#define ANNOUNCE                                                                                 \
    "{\"consistency\":\"crash\",\"consistency_detail\":null,\"disks\":[{\"allocated_bytes\":8,"  \
    "\"backing_identity\":\"b\",\"base_change_id\":null,\"change_id\":\"u/2\",\"disk_id\":2000," \
    "\"disk_key\":\"d1\",\"estimated_bytes\":7,\"label\":\"\",\"lost\":\"bitmap is gone\","      \
    "\"lost_code\":\"id_refused\","                                                              \
    "\"resumes\":true,\"size\":512,\"token\":\"t\",\"tracking\":\"bitmap\"}],\"left_out\":[\"d2\"]}"
#define ANSWER                                                                              \
    "{\"disks\":[{\"disk_id\":2000,\"disk_key\":\"d1\",\"disk_no\":0,\"mode\":\"compare\"," \
    "\"reason\":\"tracking_lost\",\"resume\":true,\"uri\":\"nbd+unix:///x?socket=/s\"}]}"
#define ANSWER_WITH_LEAVES                                                    \
    "{\"disks\":[{\"disk_id\":2000,\"disk_key\":\"d1\",\"disk_no\":0,"        \
    "\"hash_algorithm\":\"xxh3-128\",\"hash_seed\":\"00000000000000ff\","     \
    "\"leaves_uri\":\"nbd+unix:///x.leaves?socket=/s\",\"mode\":\"compare\"," \
    "\"reason\":\"tracking_lost\",\"resume\":true,\"uri\":\"nbd+unix:///x?socket=/s\"}]}"
#define PROGRESS                                                                                        \
    "{\"disks\":[{\"changed_bytes\":1,\"disk_id\":2000,\"done_bytes\":2,\"kept_bytes\":5,\"size\":512," \
    "\"transferred_bytes\":3,\"zero_bytes\":4}],\"phase\":\"copying\"}"
#define COMPLETION                                                                                                     \
    "{\"bytes_transferred\":9,\"change_id\":\"u/2\",\"disks\":[{\"area_bytes\":3,\"areas\":2,\"bytes_transferred\":9," \
    "\"change_id\":\"u/2\",\"covered_bytes\":512,\"digest\":\"00000000000000ff\",\"disk_id\":2000,"                    \
    "\"extents\":1,\"read_bytes\":4,\"tracking\":\"none\"}]}"
#define AUDIT "{\"checked_blocks\":3,\"disk_id\":2000,\"unchanged_blocks\":4,\"wrong_at\":65536,\"wrong_blocks\":1}"

// Decoding and encoding gives the text back; with any one member missing it fails or still round-trips to a text; every
// truncation fails. T: type, f: prefix of its functions.
#define round_trip(T, f, text)                                    \
    do {                                                          \
        Err e_ = ERR_INIT;                                        \
        T v_ = {0};                                               \
        cleanup_free char *again_ = NULL;                         \
        assert_ok(f##_decode(text, strlen(text), &v_, &e_), &e_); \
        assert_ok(f##_encode(&v_, &again_, &e_), &e_);            \
        assert_string_equal(again_, text);                        \
        f##_clear(&v_);                                           \
        for (size_t n_ = 0; n_ < strlen(text); n_++) {            \
            assert_false(f##_decode(text, n_, &v_, &e_));         \
            assert_int_equal(e_.code, ERR_INVALID);               \
            err_clear(&e_);                                       \
        }                                                         \
    } while (0)

static void everything_round_trips(void **state)
{
    (void)state;
    round_trip(WorkOrder, work_order, ORDER);
    round_trip(WorkOrder, work_order, VCENTER_ORDER);
    round_trip(Announce, announce, ANNOUNCE);
    round_trip(AnnounceAnswer, announce_answer, ANSWER);
    round_trip(AnnounceAnswer, announce_answer, ANSWER_WITH_LEAVES);
    round_trip(WorkProgress, work_progress, PROGRESS);
    round_trip(WorkFailure, work_failure, "{\"cancelled\":true,\"details\":\"why\",\"error\":\"cancelled\"}");
    round_trip(Completion, completion, COMPLETION);
    round_trip(Completion, completion, "{\"change_id\":\"u/2\"}");
    round_trip(ChangeIdReport, changeid_report, "{\"change_id\":\"u/2\",\"disk_id\":2000}");
    round_trip(ChangeIdReport, changeid_report, "{\"change_id\":\"u/2\"}");
}

// text with its first `what` replaced by `with`
static char *edited(const char *text, const char *what, const char *with)
{
    Err err = ERR_INIT;
    const char *at = strstr(text, what);
    assert_non_null(at);
    char *s = mem_printf(&err, "%.*s%s%s", (int)(at - text), text, with, at + strlen(what));
    assert_non_null(s);
    return s;
}

#define refuses(T, f, text, what, with)                                       \
    do {                                                                      \
        Err e_ = ERR_INIT;                                                    \
        T v_ = {0};                                                           \
        cleanup_free char *s_ = edited(text, what, with);                     \
        assert_fails(f##_decode(s_, strlen(s_), &v_, &e_), &e_, ERR_INVALID); \
    } while (0)

static void audits(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_free char *again = NULL;
    WorkAudit a;
    assert_ok(work_audit_decode(AUDIT, strlen(AUDIT), &a, &err), &err);
    assert_ok(work_audit_encode(&a, &again, &err), &err);
    assert_string_equal(again, AUDIT);
    refuses(WorkAudit, work_audit, AUDIT, ":4", ":2"); // more checked than there are
    refuses(WorkAudit, work_audit, AUDIT, "\"wrong_blocks\":1", "\"wrong_blocks\":4");
    refuses(WorkAudit, work_audit, AUDIT, "disk_id", "disk");
    refuses(WorkAudit, work_audit, AUDIT, ":3", ":-3");
}

static void claim_and_answer_to_progress(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_free char *text = NULL, *answer = NULL;
    char uuid[37];
    WorkProgressAnswer a = {0};
    assert_ok(work_claim_encode(UUID, &text, &err), &err);
    assert_ok(work_claim_decode(text, strlen(text), uuid, &err), &err);
    assert_string_equal(uuid, UUID);
    assert_fails(work_claim_decode("{\"claim\":\"x\"}", 13, uuid, &err), &err, ERR_INVALID);
    assert_ok(work_progress_answer_encode(&(WorkProgressAnswer){.cancel = true, .status = JOB_RUNNING}, &answer, &err),
              &err);
    assert_ok(work_progress_answer_decode(answer, strlen(answer), &a, &err), &err);
    assert_true(a.cancel && a.status == JOB_RUNNING);
}

static void bad_values_are_refused(void **state)
{
    (void)state;
    refuses(WorkOrder, work_order, ORDER, "65536", "65537");
    refuses(WorkOrder, work_order, ORDER, "65536", "4194304");
    refuses(WorkOrder, work_order, ORDER, "incremental", "differential");
    refuses(WorkOrder, work_order, ORDER, "{\"type\":\"file\"}", "\"file\"");
    refuses(WorkOrder, work_order, ORDER, ":30", ":0");
    refuses(WorkOrder, work_order, ORDER, "\"repository_uuid\":\"0b", "\"repository_uuid\":\"zz");
    refuses(WorkOrder, work_order, ORDER, "[\"d2\"]", "[2]");
    refuses(WorkOrder, work_order, ORDER, "true", "\"true\"");
    refuses(WorkOrder, work_order, VCENTER_ORDER, "\"ab\"", "null"); // nothing to trust the server by
    refuses(WorkOrder, work_order, VCENTER_ORDER, "\"ca_pem\":null", "\"ca_pem\":\"x\"");
    refuses(WorkOrder, work_order, VCENTER_ORDER, "\"vc:443\"", "\"\"");
    refuses(WorkOrder, work_order, VCENTER_ORDER, "\"password\":\"p\\n\",", "");
    refuses(WorkOrder, work_order, ORDER, ":3000", ":3000000");
    refuses(Announce, announce, ANNOUNCE, "id_refused", "chain_limit"); // no loss
    refuses(Announce, announce, ANNOUNCE, ":512", ":0");
    refuses(Announce, announce, ANNOUNCE, ":512", ":-512");
    refuses(Announce, announce, ANNOUNCE, ":512", ":512.0");
    refuses(Announce, announce, ANNOUNCE, ":512", ":99999999999999999999");
    refuses(Announce, announce, ANNOUNCE, "u/2", "u2");
    refuses(Announce, announce, ANNOUNCE, "bitmap\"", "guess\"");
    refuses(Announce, announce, ANNOUNCE, "crash", "none");
    refuses(Announce, announce, ANNOUNCE, "\"label\"", "\"lable\"");
    refuses(AnnounceAnswer, announce_answer, ANSWER, "compare", "guess");
    refuses(AnnounceAnswer, announce_answer, ANSWER, "nbd+unix:///x?socket=/s", "");
    refuses(WorkProgress, work_progress, PROGRESS, "\"phase\"", "\"x\":1,\"phase\"");
    refuses(WorkProgress, work_progress, PROGRESS, ":3", ":-3");
    refuses(WorkFailure, work_failure, "{\"error\":\"a\",\"details\":\"\"}", "\"a\"", "\"\"");
}

// Pitfalls 4 and 5: what joins disks must be of one disk only.
static void the_same_disk_twice_is_refused(void **state)
{
    (void)state;
    const char *disk = strstr(ANNOUNCE, "{\"allocated");
    Err err = ERR_INIT;
    cleanup_free char *twice = mem_printf(&err, "[%.*s,{", (int)(strchr(disk, '}') + 1 - disk), disk);
    cleanup_free char *other_id = edited(ANNOUNCE, "[{", twice);
    cleanup_free char *other_key = edited(other_id, "\"d1\"", "\"d3\"");
    refuses(Announce, announce, other_id, ":2000", ":2001");
    refuses(Announce, announce, other_key, "\"d3\"", "\"d4\"");
    refuses(Announce, announce, "{\"disks\":[],\"left_out\":[],\"consistency\":\"crash\"}", "[]", "[]");
}

static void check_completion(const char *text, const char *title)
{
    Err err = ERR_INIT;
    Completion c = {0};
    ChangeIdReport r = {0};
    assert_false(completion_decode(text, strlen(text), &c, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err_short(&err), title);
    err_clear(&err);
    if (strstr(text, "disks"))
        return;
    assert_false(changeid_report_decode(text, strlen(text), &r, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err_short(&err), title);
}

static void completion_says_what_the_contract_says(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "",
        "x",
        "[]",
        "null",
        "\"a\"",
        "{\"change_id\":1}",
        "{\"change_id\":\"a\"",
        "{\"change_id\":\"a\",\"change_id\":\"b\"}",
        "{\"change_id\":\"a\",\"bytes_transferred\":\"1\"}",
        "{\"change_id\":\"a\",\"bytes_transferred\":-1}",
        "{\"bytes_transferred\":true}",
        "{\"change_id\":\"a\\nb\"}",
        "{\"change_id\":\"a\",\"disks\":{}}",
        "{\"change_id\":\"a\",\"disks\":[1]}",
        "{\"change_id\":\"a\",\"disks\":[{\"change_id\":\"a\"}]}",
        "{\"change_id\":\"a\",\"disks\":[{\"change_id\":\"a\",\"disk_id\":1},{\"change_id\":\"a\",\"disk_id\":1}]}",
        "{\"change_id\":\"a\",\"disks\":[{\"change_id\":\"a\",\"disk_id\":1,\"extents\":1}]}"};
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++)
        check_completion(bodies[i], "invalid request body");
    static const char *const missing[] = {"{}", "{\"change_id\":\"\"}", "{\"change_id\":null}",
                                          "{\"bytes_transferred\":5,\"who\":1}",
                                          "{\"change_id\":\"a\",\"disks\":[{\"disk_id\":1}]}"};
    for (size_t i = 0; i < ARRAY_LEN(missing); i++)
        check_completion(missing[i], "missing change_id");
}

// A hypervisor's ID is opaque: blanks, several slashes or none are kept as they came.
static void completion_keeps_the_change_id(void **state)
{
    (void)state;
    static const char *const ids[] = {"52 d0 eb 97/446", "no-slash", "a/b/c",
                                      "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/446"};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        Err err = ERR_INIT;
        Completion c = {0};
        cleanup_free char *text = mem_printf(&err, "{\"change_id\":\"%s\",\"more\":[{}]}", ids[i]);
        assert_ok(completion_decode(text, strlen(text), &c, &err), &err);
        assert_string_equal(c.change_id, ids[i]);
        assert_int_equal(c.disks_len, 0);
        completion_clear(&c);
    }
}

static void long_failures_are_cut_between_characters(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char details[2000], error[200];
    cleanup_free char *text = NULL;
    WorkFailure f = {.error = error, .details = details}, back = {0};
    for (size_t i = 0; i + 2 < sizeof(details); i += 2)
        memcpy(details + 1 + i, "\xc3\xa4", 3);
    details[0] = 'x';
    memset(error, 'e', sizeof(error));
    error[sizeof(error) - 1] = '\0';
    assert_ok(work_failure_encode(&f, &text, &err), &err);
    assert_ok(work_failure_decode(text, strlen(text), &back, &err), &err);
    assert_true(strlen(back.details) >= ERR_DETAILS_MAX - 1 && strlen(back.details) <= ERR_DETAILS_MAX);
    assert_true(str_is_utf8(back.details, strlen(back.details)));
    work_failure_clear(&back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_round_trips),         cmocka_unit_test(audits),
        cmocka_unit_test(claim_and_answer_to_progress),   cmocka_unit_test(bad_values_are_refused),
        cmocka_unit_test(the_same_disk_twice_is_refused), cmocka_unit_test(completion_says_what_the_contract_says),
        cmocka_unit_test(completion_keeps_the_change_id), cmocka_unit_test(long_failures_are_cut_between_characters),
    };
    return cmocka_run_group_tests_name("work", tests, NULL, NULL);
}
