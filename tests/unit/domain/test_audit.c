#include "unit.h"

#include "domain/audit.h"

#include <math.h>

static void test_the_issue_s_figure(void **state)
{
    (void)state;
    AuditFigures a = {.unchanged = 1000000, .checked = 3000};
    assert_int_equal(audit_at_most_ppm(&a), 999); // 0.1 %
}

// Never less than what the binomial distribution gives: (1 - p)^n = 5 %.
static void test_the_bound_is_on_the_safe_side(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 2000000; n += 1 + n / 7) {
        AuditFigures a = {.unchanged = UINT64_MAX, .checked = n};
        double exact = 1e6 * (1 - pow(0.05, 1.0 / (double)n));
        double ours = audit_at_most_ppm(&a);
        assert_true(ours >= fmin(exact, 1e6));
        assert_true(ours <= fmax(4 * exact, exact + 2)); // and says something
    }
}

static void test_edges(void **state)
{
    (void)state;
    assert_int_equal(audit_at_most_ppm(&(AuditFigures){.unchanged = 7, .checked = 7}), 0);
    assert_int_equal(audit_at_most_ppm(&(AuditFigures){.unchanged = 7}), AUDIT_PPM_ALL);
    assert_int_equal(audit_at_most_ppm(&(AuditFigures){.unchanged = 70, .checked = 2}), AUDIT_PPM_ALL);
    assert_int_equal(audit_at_most_ppm(&(AuditFigures){.unchanged = 7, .checked = 7, .wrong = 1}), AUDIT_PPM_ALL);
}

static void test_clean(void **state)
{
    (void)state;
    assert_true(audit_is_clean(&(AuditFigures){.unchanged = 1 << 20, .checked = 300}));
    assert_false(audit_is_clean(&(AuditFigures){.unchanged = 1 << 20, .checked = 299})); // no time: no evidence
    assert_false(audit_is_clean(&(AuditFigures){.unchanged = 1 << 20, .checked = 3000, .wrong = 1}));
    assert_true(audit_is_clean(&(AuditFigures){.unchanged = 3, .checked = 3}));
    assert_false(audit_is_clean(&(AuditFigures){0})); // there was none
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_issue_s_figure),
        cmocka_unit_test(test_the_bound_is_on_the_safe_side),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
