#include "mem_blocks.h"

#include "base/clock.h"
#include "mover/audit.h"

#define CLUSTER 4096u

// A disk, the hashes of what its parent held, and what of it tracking calls changed.
typedef struct Case {
    MemBlocks *from, *leaves;
    MoverKnown known;
    uint64_t size, clusters;
    Audit *audit;
    bool *sent;
} Case;

static Case make_case(UnitRandom *r, uint64_t size, uint64_t blocks, bool later)
{
    Err err = ERR_INIT;
    Case c = {.size = size, .clusters = (size + CLUSTER - 1) / CLUSTER};
    c.from = mem_new(size, CLUSTER, later, r);
    c.leaves = mem_new(c.clusters * 16, 16, later, r);
    c.known = (MoverKnown){.leaves = &c.leaves->blocks, .hash = {.seed = unit_random_next(r)}};
    c.sent = calloc(c.clusters, sizeof(bool));
    assert_non_null(c.sent);
    for (uint64_t i = 0; i < c.clusters; i++) {
        uint64_t at = i * CLUSTER, n = MIN(CLUSTER, size - at);
        uint8_t cluster[CLUSTER] = {0};
        Hash hash;
        memset(c.from->bytes + at, (int)(1 + i % 251), n);
        memcpy(cluster, c.from->bytes + at, n);
        hash_bytes(&c.known.hash, cluster, CLUSTER, &hash);
        memcpy(c.leaves->bytes + i * 16, hash.bytes, 16);
    }
    AuditSpec spec = {.size = size, .cluster_size = CLUSTER, .blocks = blocks};
    assert_ok(audit_new(&spec, &c.audit, &err), &err);
    return c;
}

static void free_case(Case *c)
{
    audit_free(c->audit);
    free(c->sent);
    mem_free(&c->from->blocks);
    mem_free(&c->leaves->blocks);
}

// The guest changed it, and nobody says so.
static void change(Case *c, uint64_t cluster)
{
    c->from->bytes[MIN(cluster * CLUSTER + 7, c->size - 1)] ^= 0x80;
}

static void send_cluster(Case *c, uint64_t first, uint64_t n)
{
    audit_planned(c->audit, first * CLUSTER, MIN(n * CLUSTER, c->size - first * CLUSTER));
    for (uint64_t i = first; i < first + n; i++)
        c->sent[i] = true;
}

static bool run(Case *c, AuditResult *ret, Err *err)
{
    AuditRun r = {.from = &c->from->blocks, .known = &c->known};
    return audit_run(c->audit, &r, ret, err);
}

static void test_all_of_a_small_disk(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int later = 0; later < 2; later++) {
        Err err = ERR_INIT;
        Case c = make_case(&r, 37 * CLUSTER + 5, 1000, later); // an odd tail
        AuditResult result;
        send_cluster(&c, 3, 2);
        send_cluster(&c, 20, 1);
        change(&c, 4); // it is sent: not looked at
        assert_ok(run(&c, &result, &err), &err);
        assert_int_equal(result.figures.unchanged, 35);
        assert_int_equal(result.figures.checked, 35);
        assert_int_equal(result.figures.wrong, 0);
        assert_int_equal(result.read_bytes, 34 * CLUSTER + 5);
        free_case(&c);
    }
}

static void test_a_lie_is_found_wherever_it_is(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (uint64_t at = 0; at < 38; at++) {
        Err err = ERR_INIT;
        Case c = make_case(&r, 37 * CLUSTER + 5, 1000, at % 2);
        AuditResult result;
        bool sent = at >= 10 && at < 15;
        send_cluster(&c, 10, 5);
        change(&c, at);
        assert_ok(run(&c, &result, &err), &err);
        assert_int_equal(result.figures.wrong, !sent);
        if (!sent)
            assert_int_equal(result.wrong_at, at * CLUSTER);
        free_case(&c);
    }
}

// Each unchanged block is looked at about as often as any other, the changed ones never: else the bound means nothing.
static void test_drawn_evenly(void **state)
{
    (void)state;
    enum { CLUSTERS = 400, BLOCKS = 20, ROUNDS = 3000 };
    static unsigned hits[CLUSTERS];
    UnitRandom r = unit_random();
    uint64_t looked_at = 0;
    for (int round = 0; round < ROUNDS; round++) {
        Err err = ERR_INIT;
        Case c = make_case(&r, CLUSTERS * CLUSTER, BLOCKS, false);
        AuditResult result;
        for (uint64_t i = 0; i < CLUSTERS; i += 4)
            send_cluster(&c, i, 1);
        for (uint64_t i = 0; i < CLUSTERS; i++)
            change(&c, i); // the first that is looked at is the one that is found, of several under way the lowest
        c.from->blocks.max_in_flight = 1;
        assert_ok(run(&c, &result, &err), &err);
        assert_true(result.figures.wrong == 1 && result.figures.unchanged == 300);
        hits[result.wrong_at / CLUSTER]++;
        looked_at += result.figures.checked;
        free_case(&c);
    }
    assert_int_equal(looked_at, ROUNDS);
    double chi = 0, mean = ROUNDS / 300.0;
    for (int i = 0; i < CLUSTERS; i++) {
        if (i % 4 == 0)
            assert_int_equal(hits[i], 0);
        else
            chi += (hits[i] - mean) * (hits[i] - mean) / mean;
    }
    assert_true(chi < 420); // 299 degrees of freedom: 1 in 200,000 where all is well
}

static void test_as_many_as_asked_for(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (int i = 0; i < 50; i++) {
        Err err = ERR_INIT;
        Case c = make_case(&r, 1000 * CLUSTER, 100, i % 2);
        AuditResult result;
        send_cluster(&c, unit_random_below(&r, 500), 400); // more than a quarter is left, so 100 are
        assert_ok(run(&c, &result, &err), &err);
        assert_int_equal(result.figures.checked, 100);
        assert_int_equal(result.figures.unchanged, 600);
        assert_int_equal(c.from->bytes_read, 100 * CLUSTER);
        free_case(&c);
    }
}

static void test_all_changed(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    Err err = ERR_INIT;
    Case c = make_case(&r, 50 * CLUSTER, 10, false);
    AuditResult result;
    send_cluster(&c, 0, 50);
    assert_ok(run(&c, &result, &err), &err);
    assert_true(result.figures.unchanged == 0 && result.figures.checked == 0);
    free_case(&c);
}

static void test_no_time_left(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    Err err = ERR_INIT;
    Case c = make_case(&r, 50 * CLUSTER, 10, true);
    AuditResult result;
    AuditRun run = {.from = &c.from->blocks, .known = &c.known, .until_ms = clock_mono_ms() - 1};
    assert_ok(audit_run(c.audit, &run, &result, &err), &err);
    assert_true(result.figures.unchanged == 50 && result.figures.checked == 0);
    free_case(&c);
}

// Every request of both ends failing, on the start and on the completion: an error, and nothing is under way still.
static void test_each_request_fails(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    for (unsigned i = 0; i < 4 * 2 * 10; i++) {
        Err err = ERR_INIT;
        Case c = make_case(&r, 50 * CLUSTER, 10, i % 2);
        MemBlocks *end = i / 2 % 2 ? c.from : c.leaves;
        AuditResult result;
        end->fault_at = 1 + i / 8;
        end->fault = i / 4 % 2 ? MEM_FAULT_START : MEM_FAULT_DONE;
        assert_false(run(&c, &result, &err));
        assert_int_equal(err.code, ERR_IO);
        assert_int_equal(c.from->pending_len + c.leaves->pending_len, 0);
        free_case(&c);
    }
}

static void test_cancel(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    atomic_bool cancel = false;
    Err err = ERR_INIT;
    Case c = make_case(&r, 50 * CLUSTER, 10, true);
    AuditResult result;
    c.from->fault_at = 3;
    c.from->fault = MEM_FAULT_CANCEL;
    c.from->cancel = &cancel;
    c.from->silent = true; // nothing would ever be answered
    AuditRun run = {.from = &c.from->blocks, .known = &c.known, .cancel = &cancel};
    assert_false(audit_run(c.audit, &run, &result, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    free_case(&c);
}

static void test_hashes_of_another_disk(void **state)
{
    (void)state;
    UnitRandom r = unit_random();
    Err err = ERR_INIT;
    Case c = make_case(&r, 50 * CLUSTER, 10, false);
    AuditResult result;
    c.leaves->blocks.size -= 16;
    assert_false(run(&c, &result, &err));
    assert_int_equal(err.code, ERR_PROTOCOL);
    c.leaves->blocks.size += 16;
    free_case(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_of_a_small_disk),
        cmocka_unit_test(test_a_lie_is_found_wherever_it_is),
        cmocka_unit_test(test_drawn_evenly),
        cmocka_unit_test(test_as_many_as_asked_for),
        cmocka_unit_test(test_all_changed),
        cmocka_unit_test(test_no_time_left),
        cmocka_unit_test(test_each_request_fails),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_hashes_of_another_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
