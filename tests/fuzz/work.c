// What client and hub say to each other: every decoder of codec/work.h sees every input.
#include "fuzz.h"

#include "codec/work.h"

static void claim(const char *text, size_t n)
{
    Err err = ERR_INIT;
    char uuid[37] = "", again[37] = "", *encoded = NULL;
    if (!work_claim_decode(text, n, uuid, &err))
        return;
    fuzz_check(work_claim_encode(uuid, &encoded, &err));
    fuzz_check(work_claim_decode(encoded, strlen(encoded), again, &err));
    fuzz_check(str_eq(uuid, again));
    free(encoded);
}

static void nothing(const WorkProgressAnswer *unused)
{
    (void)unused;
}

static void nothing_of_an_audit(const WorkAudit *unused)
{
    (void)unused;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    claim((const char *)data, n);
    fuzz_round_trip(WorkOrder, data, n, work_order_decode, work_order_encode, work_order_clear);
    fuzz_round_trip(Announce, data, n, announce_decode, announce_encode, announce_clear);
    fuzz_round_trip(AnnounceAnswer, data, n, announce_answer_decode, announce_answer_encode, announce_answer_clear);
    fuzz_round_trip(WorkProgress, data, n, work_progress_decode, work_progress_encode, work_progress_clear);
    fuzz_round_trip(WorkProgressAnswer, data, n, work_progress_answer_decode, work_progress_answer_encode, nothing);
    fuzz_round_trip(WorkAudit, data, n, work_audit_decode, work_audit_encode, nothing_of_an_audit);
    fuzz_round_trip(WorkFailure, data, n, work_failure_decode, work_failure_encode, work_failure_clear);
    fuzz_round_trip(Completion, data, n, completion_decode, completion_encode, completion_clear);
    fuzz_round_trip(ChangeIdReport, data, n, changeid_report_decode, changeid_report_encode, changeid_report_clear);
    return 0;
}
