#include "unit.h"

#include "codec/json.h"
#include "source/vsphere/spec.h"

#define SENT "\"type\":\"vsphere\",\"source\":\"vc-1\",\"vm\":\"/DC0/vm/web\""

static void test_what_is_taken(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    json_t *spec = NULL;
    VsphereSpec s;
    static const char plain[] = "{" SENT "}";
    assert_ok(codec_json_parse(plain, strlen(plain), 4096, &spec, &err), &err);
    assert_ok(vsphere_spec_read(spec, &s, &err), &err);
    assert_string_equal(s.source, "vc-1");
    assert_string_equal(s.vm, "/DC0/vm/web");
    assert_null(s.moref);
    assert_null(s.instance_uuid);
    assert_null(s.path);
    assert_int_equal(s.quiesce, VSPHERE_QUIESCE_AUTO);
    assert_false(s.skip_unsupported);
    assert_false(s.unallocated_zero);
    json_decref(spec);

    static const char whole[] = "{" SENT ",\"quiesce\":\"require\",\"disks_unsupported\":\"skip\","
                                "\"unallocated\":\"zero\",\"moref\":\"vm-16\","
                                "\"instance_uuid\":\"52d0eb97-27ad-4c3d-874a-c34e85f2ea95\",\"path\":\"/DC0/vm/web\"}";
    assert_ok(codec_json_parse(whole, strlen(whole), 4096, &spec, &err), &err);
    assert_ok(vsphere_spec_read(spec, &s, &err), &err);
    assert_string_equal(s.moref, "vm-16");
    assert_string_equal(s.instance_uuid, "52d0eb97-27ad-4c3d-874a-c34e85f2ea95");
    assert_int_equal(s.quiesce, VSPHERE_QUIESCE_REQUIRE);
    assert_true(s.skip_unsupported);
    assert_true(s.unallocated_zero);
    json_decref(spec);
}

static void test_what_is_refused(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char *const bad[] = {
        "[]",
        "{\"type\":\"vsphere\",\"vm\":\"vm-1\"}",
        "{\"type\":\"vsphere\",\"source\":\"\",\"vm\":\"vm-1\"}",
        "{\"type\":\"vsphere\",\"source\":\"a\"}",
        "{\"type\":\"vsphere\",\"source\":\"a\",\"vm\":\"web\"}",
        "{\"type\":\"vsphere\",\"source\":\"a\",\"vm\":16}",
        "{" SENT ",\"quiesce\":\"maybe\"}",
        "{" SENT ",\"quiesce\":true}",
        "{" SENT ",\"disks_unsupported\":\"ignore\"}",
        "{" SENT ",\"unallocated\":\"skip\"}",
        "{" SENT ",\"password\":\"x\"}",
        "{" SENT ",\"moref\":\"snapshot-1\"}",
        "{" SENT ",\"instance_uuid\":\"x\"}",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        json_t *spec = NULL;
        VsphereSpec s;
        assert_ok(codec_json_parse(bad[i], strlen(bad[i]), 4096, &spec, &err), &err);
        assert_fails(vsphere_spec_read(spec, &s, &err), &err, ERR_INVALID);
        json_decref(spec);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_taken),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
