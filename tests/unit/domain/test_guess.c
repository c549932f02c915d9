#include "unit.h"

#include "domain/guess.h"

#define S INT64_C(1000000)

static const GuessRule rule = {.burst = 3, .each_us = 10 * S};
static Guesses g;

static void wrong(const char *key, int64_t now)
{
    guesses_failed(&g, key, rule, now);
}

static int64_t wait(const char *key, int64_t now)
{
    return guesses_wait_s(&g, key, rule, now);
}

static void test_a_few_at_once_then_slowly(void **state)
{
    (void)state;
    memset(&g, 0, sizeof(g));
    int64_t t = 1000 * S;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(wait("a", t), 0);
        wrong("a", t);
    }
    assert_int_equal(wait("a", t), 10);
    assert_int_equal(wait("a", t + 1), 10);
    assert_int_equal(wait("a", t + 9 * S), 1);
    assert_int_equal(wait("a", t + 10 * S), 0);
    wrong("a", t + 10 * S);
    assert_int_equal(wait("a", t + 10 * S), 10); // one for one
    assert_int_equal(wait("b", t), 0);           // of others nothing
    assert_int_equal(wait("a", t + 40 * S), 0);
    for (int i = 0; i < 3; i++) { // all paid back: as at first
        assert_int_equal(wait("a", t + 1000 * S), 0);
        wrong("a", t + 1000 * S);
    }
    assert_int_equal(wait("a", t + 1000 * S), 10);
    guesses_forgive(&g, "a", rule);
    guesses_forgive(&g, "nobody", rule);
    assert_int_equal(wait("a", t + 1000 * S), 0);
    wrong("a", t + 1000 * S);
    assert_int_equal(wait("a", t + 1000 * S), 10);
    guesses_forget(&g, "a");
    assert_int_equal(wait("a", t + 1000 * S), 0);
    guesses_forget(&g, "a");
}

// A place that is taken again begins with nothing owed.
static void test_more_keys_than_places(void **state)
{
    (void)state;
    char key[32];
    memset(&g, 0, sizeof(g));
    for (int i = 0; i < 4; i++)
        wrong("bad", 50 * S);
    assert_int_equal(wait("bad", 50 * S), 20);
    for (int i = 0; i < 3; i++)
        wrong("old", S);
    for (int i = 0; i < 2 * GUESS_KEYS; i++) {
        (void)snprintf(key, sizeof(key), "key-%d", i);
        wrong(key, 60 * S);
        assert_int_equal(wait(key, 60 * S), 0);
    }
    assert_int_equal(g.len, GUESS_KEYS);
    assert_int_equal(wait("old", S), 0); // forgotten first
    assert_int_equal(wait("bad", 60 * S), 10);
    guesses_forget(&g, key);
    assert_int_equal(g.len, GUESS_KEYS - 1);
    wrong("new", 60 * S);
    wrong("new", 60 * S);
    assert_int_equal(wait("new", 60 * S), 0);
}

static void test_long_keys(void **state)
{
    (void)state;
    char a[GUESS_KEY_MAX + 50], b[GUESS_KEY_MAX + 50];
    memset(&g, 0, sizeof(g));
    memset(a, 'x', sizeof(a));
    a[sizeof(a) - 1] = '\0';
    memcpy(b, a, sizeof(b));
    b[sizeof(b) - 2] = 'y'; // differs where nobody looks: no fresh start
    for (int i = 0; i < 3; i++)
        wrong(a, S);
    assert_int_equal(wait(b, S), 10);
    wrong("x", S);
    assert_int_equal(wait("x", S), 0); // the beginning of one is another
}

// The fourth colon was looked for, as if all zeros were written out: "2001:db8::1" has three, and each address of that
// line, and of all that share a link, had a limit of its own.
static void test_addresses(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"192.0.2.7", "192.0.2.7"},
                                           {"::ffff:192.0.2.7", "192.0.2.7"},
                                           {"2001:db8::1", "2001:db8::"},
                                           {"2001:db8::a:b:c:d", "2001:db8::"},
                                           {"2001:db8:1::1", "2001:db8:1::"},
                                           {"2001:db8:1:0:a:b:c:d", "2001:db8:1::"},
                                           {"2001:db8:1:2:a:b:c:d", "2001:db8:1:2::"},
                                           {"2001:db8:1:2::", "2001:db8:1:2::"},
                                           {"fe80::a:b:c:d", "fe80::"},
                                           {"::1", "::"},
                                           {"", ""}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char key[GUESS_KEY_MAX];
        guesses_address(cases[i][0], key);
        assert_string_equal(key, cases[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_few_at_once_then_slowly),
        cmocka_unit_test(test_more_keys_than_places),
        cmocka_unit_test(test_long_keys),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
