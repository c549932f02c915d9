#include "unit.h"

#include "base/mem.h"
#include "domain/role.h"

static void test_names(void **state)
{
    (void)state;
    for (unsigned r = 0; r < ROLES; r++) {
        Err err = ERR_INIT;
        Role got;
        assert_ok(role_parse(role_name((Role)r), &got, &err), &err);
        assert_int_equal(got, r);
    }
    static const char *const bad[] = {"", "Admin", "admin ", "root"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        Role got = ROLE_NODE;
        assert_fails(role_parse(bad[i], &got, &err), &err, ERR_INVALID);
        assert_int_equal(got, ROLE_NODE);
    }
}

static void test_sets_for_people(void **state)
{
    (void)state;
    static const struct {
        unsigned set;
        const char *text;
    } cases[] = {{0, ""},
                 {MAY_ADMIN, "admin"},
                 {MAY_OPERATE, "operator or admin"},
                 {MAY_LOOK, "viewer, operator or admin"},
                 {MAY_ANY_ROLE, "viewer, operator, admin or node"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char text[ROLE_SET_TEXT];
        role_set_text(cases[i].set, text);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names), cmocka_unit_test(test_sets_for_people)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
