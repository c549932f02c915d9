#include "unit.h"

#include "base/mem.h"
#include "store/hosts.h"

#include <stdio.h>
#include <string.h>

static void test_one(void **state)
{
    (void)state;
    static const struct {
        const char *text, *name;
        unsigned port;
    } good[] = {
        {"localhost", "localhost", 3306},
        {"db.example", "db.example", 3306},
        {"db.example:1", "db.example", 1},
        {"10.0.0.1:65535", "10.0.0.1", 65535},
        {"::1", "::1", 3306}, // as it ever was
        {"fe80::1:3307", "fe80::1:3307", 3306},
        {"[::1]", "::1", 3306},
        {"[fe80::1]:3307", "fe80::1", 3307},
        {"/run/mysqld/mysqld.sock", "/run/mysqld/mysqld.sock", 3306},
        {"/with,comma:and colon", "/with,comma:and colon", 3306},
        {" a ", "a", 3306},
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        Err err = ERR_INIT;
        StoreHosts h;
        assert_ok(store_hosts_parse(good[i].text, 3306, &h, &err), &err);
        assert_int_equal(h.len, 1);
        assert_string_equal(h.at[0].name, good[i].name);
        assert_int_equal(h.at[0].port, good[i].port);
    }
}

static void test_several(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StoreHosts h;
    assert_ok(store_hosts_parse("a, b:1 ,[::1]:2,a:3", 9, &h, &err), &err);
    assert_int_equal(h.len, 4);
    static const struct {
        const char *name;
        unsigned port;
    } expected[] = {{"a", 9}, {"b", 1}, {"::1", 2}, {"a", 3}};
    for (size_t i = 0; i < h.len; i++) {
        assert_string_equal(h.at[i].name, expected[i].name);
        assert_int_equal(h.at[i].port, expected[i].port);
    }
    assert_ok(store_hosts_parse("1,2,3,4,5,6,7,8", 9, &h, &err), &err);
    assert_int_equal(h.len, STORE_HOSTS_MAX);
}

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "empty"},         {",", "empty"},          {"a,,b", "empty"},
        {"a,", "empty"},       {":3306", "empty"},      {"a:", "no port"},
        {"a:0", "no port"},    {"a:65536", "no port"},  {"a:x", "no port"},
        {"a:-1", "no port"},   {"a b", "space"},        {"a,::1", "brackets"},
        {"::1:x", "brackets"}, {"[::1", "in brackets"}, {"[a]", "in brackets"},
        {"[]", "empty"},       {"[::1]x", "no port"},   {"a,/run/s", "stands alone"},
        {"a,b,a", "twice"},    {"a,a:9", "twice"},      {"1,2,3,4,5,6,7,8,9", "more than 8"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Err err = ERR_INIT;
        StoreHosts h = {.len = 77};
        assert_false(store_hosts_parse(bad[i].text, 9, &h, &err));
        assert_int_equal(err.code, ERR_USAGE);
        if (!strstr(err.details, bad[i].says))
            fail_msg("\"%s\": %s", bad[i].text, err.details);
        assert_int_equal(h.len, 77);
    }
}

static void test_too_long(void **state)
{
    (void)state;
    char text[1024];
    for (size_t n = 250; n < sizeof(text); n += n < 310 ? 1 : 100) {
        Err err = ERR_INIT;
        StoreHosts h;
        memset(text, 'a', n);
        text[n] = '\0';
        bool ok = store_hosts_parse(text, 9, &h, &err);
        assert_int_equal(ok, n < sizeof(h.at[0].name));
        assert_true(ok || (err.code == ERR_USAGE && strstr(err.details, "too long")));
        text[0] = '/';
        err_clear(&err);
        assert_int_equal(store_hosts_parse(text, 9, &h, &err), n < sizeof(h.at[0].name));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_several),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
