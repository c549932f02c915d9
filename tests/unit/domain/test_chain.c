#include "unit.h"

#include "domain/chain.h"

#define ID "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/446"

// Everything as it should be: tracked.
static ChainInput fine(void)
{
    return (ChainInput){
        .have_parent_point = true,
        .chain_length = 3,
        .chain_limit = 30,
        .have_parent_disk = true,
        .size = 1 << 30,
        .parent_size = 1 << 30,
        .source_tracks = true,
        .base_change_id = ID,
        .parent_change_id = ID,
        .parent_tracking = true,
    };
}

static void expect(const ChainInput *in, DiskMode mode, ChainReason reason)
{
    ChainReason r = CHAIN_REASONS;
    DiskMode m = chain_decide(in, &r);
    if (m != mode || r != reason)
        fail_msg("%s (%s) instead of %s (%s)", disk_mode_name(m), chain_reason_name(r), disk_mode_name(mode),
                 chain_reason_name(reason));
}

static void test_each_rule(void **state)
{
    (void)state;
    ChainInput in = fine();
    expect(&in, DISK_TRACKED, CHAIN_NONE);
    in = fine(), in.full_requested = true;
    expect(&in, DISK_FULL, CHAIN_REQUESTED);
    in = fine(), in.have_parent_point = false;
    expect(&in, DISK_FULL, CHAIN_FIRST);
    in = fine(), in.have_parent_disk = false;
    expect(&in, DISK_FULL, CHAIN_NEW_DISK);
    in = fine(), in.parent_damaged = true;
    expect(&in, DISK_FULL, CHAIN_PARENT_DAMAGED);
    in = fine(), in.parent_suspect = true;
    expect(&in, DISK_COMPARE, CHAIN_PARENT_SUSPECT);
    in = fine(), in.size++;
    expect(&in, DISK_COMPARE, CHAIN_RESIZED);
    in = fine(), in.size--;
    expect(&in, DISK_COMPARE, CHAIN_RESIZED);
    in = fine(), in.source_tracks = false;
    expect(&in, DISK_COMPARE, CHAIN_NOT_TRACKED);
}

static void test_limit(void **state)
{
    (void)state;
    ChainInput in = fine();
    in.chain_length = 29;
    expect(&in, DISK_TRACKED, CHAIN_NONE);
    in.chain_length = 30;
    expect(&in, DISK_FULL, CHAIN_LIMIT);
    in.chain_length = 31; // the limit was lowered
    expect(&in, DISK_FULL, CHAIN_LIMIT);
    in = fine(), in.chain_limit = 1, in.chain_length = 1;
    expect(&in, DISK_FULL, CHAIN_LIMIT);
}

// The rule that a chain lives by: the change set starts at the parent, byte for byte, or nothing is tracked.
static void test_base_and_parent_never_differ(void **state)
{
    (void)state;
    static const char *const others[] = {
        NULL,
        "",
        "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/445",
        "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/4460",
        "52D0EB97-27AD-4C3D-874A-C34E85F2EA95/446",
        " " ID,
        ID " ",
    };
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        ChainInput in = fine();
        in.base_change_id = others[i];
        expect(&in, DISK_COMPARE, CHAIN_TRACKING_LOST);
        in = fine(), in.parent_change_id = others[i];
        expect(&in, DISK_COMPARE, CHAIN_TRACKING_LOST);
    }
    ChainInput in = fine();
    in.base_change_id = in.parent_change_id = NULL;
    expect(&in, DISK_COMPARE, CHAIN_TRACKING_LOST);
    in = fine(), in.parent_tracking = false; // a minted ID is never a hypervisor's
    expect(&in, DISK_COMPARE, CHAIN_NEVER_TRACKED);
}

// What the source says of its loss is the reason; what is no loss cannot be said to be one.
static void test_loss_by_its_name(void **state)
{
    (void)state;
    unsigned losses = 0;
    for (ChainReason r = CHAIN_NONE; r < CHAIN_REASONS; r++) {
        ChainInput in = fine();
        in.lost = r;
        expect(&in, DISK_TRACKED, CHAIN_NONE); // nothing is lost
        in.base_change_id = NULL;
        expect(&in, DISK_COMPARE, chain_reason_is_loss(r) ? r : CHAIN_TRACKING_LOST);
        losses += chain_reason_is_loss(r);
        in = fine(), in.lost = r, in.base_change_id = "another/1"; // the source is wrong about itself
        expect(&in, DISK_COMPARE, CHAIN_TRACKING_LOST);
    }
    assert_int_equal(losses, 5);
}

// Of all combinations of faults: the first rule of the enum wins, and only the faultless one is tracked.
static void test_first_rule_wins(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 1024; bits++) {
        ChainInput in = fine();
        in.full_requested = bits & 1;
        in.have_parent_point = !(bits & 2);
        in.chain_length = bits & 4 ? 30 : 1;
        in.have_parent_disk = !(bits & 8);
        in.parent_damaged = bits & 16;
        in.parent_suspect = bits & 32;
        in.parent_size = bits & 64 ? 512 : in.size;
        in.source_tracks = !(bits & 128);
        in.parent_tracking = !(bits & 256);
        in.base_change_id = bits & 512 ? NULL : ID;
        ChainReason want = bits == 512 ? CHAIN_TRACKING_LOST
            : bits                     ? (ChainReason)(CHAIN_REQUESTED + __builtin_ctz(bits))
                                       : CHAIN_NONE;
        DiskMode mode = bits == 0 ? DISK_TRACKED : want <= CHAIN_PARENT_DAMAGED ? DISK_FULL : DISK_COMPARE;
        expect(&in, mode, want);
    }
}

static void test_names(void **state)
{
    (void)state;
    for (ChainReason r = CHAIN_NONE; r < CHAIN_REASONS; r++) {
        ChainReason again = CHAIN_REASONS;
        Err err = ERR_INIT;
        assert_ok(chain_reason_parse(chain_reason_name(r), &again, &err), &err);
        assert_int_equal(again, r);
        assert_int_equal(chain_reason_text(r)[0] == '\0', r == CHAIN_NONE);
    }
    assert_string_equal(chain_reason_name(CHAIN_NONE), "");
    assert_string_equal(chain_reason_name(CHAIN_LIMIT), "chain_limit");
    ChainReason r = CHAIN_FIRST;
    DiskMode m = DISK_FULL;
    Err err = ERR_INIT;
    assert_fails(chain_reason_parse("because", &r, &err), &err, ERR_INVALID);
    assert_int_equal(r, CHAIN_FIRST);
    static const char *const modes[] = {"full", "tracked", "compare"};
    for (DiskMode i = DISK_FULL; i <= DISK_COMPARE; i++) {
        assert_string_equal(disk_mode_name(i), modes[i]);
        assert_ok(disk_mode_parse(modes[i], &m, &err), &err);
        assert_int_equal(m, i);
    }
    assert_fails(disk_mode_parse("Full", &m, &err), &err, ERR_INVALID);
    assert_fails(disk_mode_parse("", &m, &err), &err, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_rule),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_base_and_parent_never_differ),
        cmocka_unit_test(test_loss_by_its_name),
        cmocka_unit_test(test_first_rule_wins),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
