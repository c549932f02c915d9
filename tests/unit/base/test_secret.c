#include "unit.h"

#include "base/secret.h"
#include "base/str.h"

static void test_set_and_equal(void **state)
{
    (void)state;
    Secret s = {0};
    Err err = ERR_INIT;
    assert_false(secret_is_set(&s));
    assert_false(secret_equal(&s, ""));
    assert_string_equal(secret_reveal(&s), "");
    assert_ok(secret_set(&s, "hunter2", &err), &err);
    assert_true(secret_is_set(&s));
    assert_true(secret_equal(&s, "hunter2"));
    static const char *const others[] = {"", "hunter", "hunter22", "Hunter2", "hunter3", "xunter2"};
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        assert_false(secret_equal(&s, others[i]));
    assert_false(secret_equal(&s, NULL));
    assert_ok(secret_set(&s, secret_reveal(&s), &err), &err); // of itself
    assert_string_equal(secret_reveal(&s), "hunter2");
    secret_clear(&s);
    assert_false(secret_is_set(&s));
    assert_false(secret_equal(&s, "hunter2"));
    secret_clear(&s);
}

// An empty token in a file or in the environment must not make "" the password.
static void test_empty_is_none(void **state)
{
    (void)state;
    Secret s = {0};
    Err err = ERR_INIT;
    assert_ok(secret_set(&s, "x", &err), &err);
    assert_ok(secret_set(&s, "", &err), &err);
    assert_false(secret_is_set(&s));
    assert_false(secret_equal(&s, ""));
    assert_ok(secret_set(&s, NULL, &err), &err);
    assert_false(secret_is_set(&s));
}

static void test_ceiling(void **state)
{
    (void)state;
    char text[SECRET_MAX + 2];
    memset(text, 'x', sizeof(text));
    text[SECRET_MAX + 1] = '\0';
    Secret s = {0};
    Err err = ERR_INIT;
    assert_fails(secret_set(&s, text, &err), &err, ERR_INVALID);
    assert_false(secret_is_set(&s));
    char whole[SECRET_MAX + 1];
    memcpy(whole, text, SECRET_MAX);
    whole[SECRET_MAX] = '\0';
    assert_ok(secret_set(&s, whole, &err), &err);
    assert_true(secret_equal(&s, whole));
    assert_false(secret_equal(&s, text));
    secret_clear(&s);
}

static void test_random(void **state)
{
    (void)state;
    Secret a = {0}, b = {0};
    Err err = ERR_INIT;
    assert_ok(secret_random(&a, &err), &err);
    assert_ok(secret_random(&b, &err), &err);
    unsigned char raw[32];
    assert_true(str_unhex(secret_reveal(&a), raw, sizeof(raw)));
    assert_false(secret_equal(&a, secret_reveal(&b)));
    secret_clear(&a);
    secret_clear(&b);
}

static void test_digest(void **state)
{
    (void)state;
    char out[SECRET_DIGEST_TEXT];
    Err err = ERR_INIT;
    assert_ok(secret_digest("abc", out, &err), &err); // FIPS 180-4's example
    assert_string_equal(out, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_ok(secret_digest("", out, &err), &err);
    assert_string_equal(out, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

static void test_passwords(void **state)
{
    (void)state;
    char a[SECRET_PASSWORD_TEXT], b[SECRET_PASSWORD_TEXT];
    Err err = ERR_INIT;
    cleanup(secret_clear) Secret right = {0}, wrong = {0}, none = {0};
    bool same = true;
    assert_ok(secret_set(&right, "correct horse", &err) && secret_set(&wrong, "correct horsf", &err), &err);
    assert_ok(secret_password_hash(&right, a, &err) && secret_password_hash(&right, b, &err), &err);
    assert_memory_equal(a, "$argon2id$v=19$m=65536,t=2,p=1$", 31);
    assert_string_not_equal(a, b); // a salt each
    assert_ok(secret_password_check(&right, a, &same, &err), &err);
    assert_true(same);
    const Secret *const others[] = {&wrong, &none};
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        same = true;
        assert_ok(secret_password_check(others[i], a, &same, &err), &err);
        assert_false(same);
    }
    const char *const hashes[] = {NULL, "", "x", "$argon2id$v=19$m=65536,t=2,p=1$"};
    for (size_t i = 0; i < ARRAY_LEN(hashes); i++) {
        same = true;
        assert_ok(secret_password_check(&right, hashes[i], &same, &err), &err);
        assert_false(same);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_and_equal), cmocka_unit_test(test_empty_is_none),
        cmocka_unit_test(test_ceiling),       cmocka_unit_test(test_random),
        cmocka_unit_test(test_digest),        cmocka_unit_test(test_passwords),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
