#include "unit.h"

#include "base/config.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Values {
    uint64_t number;
    bool flag;
    char *text, *secret;
} Values;

static Values v;
static char folder[200];
static void *place;

static const char *const except[] = {"help", NULL};

static const Opt *table(void)
{
    static Opt all[6];
    const Opt fresh[] = {
        {"max-jobs", OPT_U64, &v.number, 1, 10, "N", ""}, {"auth", OPT_FLAG, &v.flag, 0, 0, NULL, ""},
        {"text", OPT_TEXT, &v.text, 0, 0, "T", ""},       {"db-pass", OPT_TEXT, &v.secret, 0, 0, "P", ""},
        {"help", OPT_FLAG, &v.flag, 0, 0, NULL, ""},      {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL}};
    memcpy(all, fresh, sizeof(fresh));
    return all;
}

static int setup(void **state)
{
    (void)state;
    v = (Values){0};
    if (unit_folder_setup(&place) != 0)
        return -1;
    (void)snprintf(folder, sizeof(folder), "%s", (const char *)place);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(v.text);
    free(v.secret);
    return unit_folder_teardown(&place);
}

static const char *write_file(const char *name, const char *text, size_t n)
{
    static char path[300];
    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

static void takes(const char *text)
{
    Err err = ERR_INIT;
    assert_ok(config_file(write_file("a", text, strlen(text)), table(), except, &err), &err);
}

static void test_what_a_file_says(void **state)
{
    (void)state;
    takes("# a comment\n\n  max-jobs=7\r\nauth = true\n\ttext =  a b # no comment \t\ndb-pass = p=q\n");
    assert_int_equal(v.number, 7);
    assert_true(v.flag);
    assert_string_equal(v.text, "a b # no comment");
    assert_string_equal(v.secret, "p=q");
    takes("text =\nauth = no"); // the last line without its end
    assert_string_equal(v.text, "");
    assert_false(v.flag);
    takes("");
}

static void test_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"max-jobs", "a:1: is not NAME = VALUE"},
        {"\n\nmaxjobs = 3\n", "a:3: there is no setting \"maxjobs\""},
        {"max-jobs = 11", "a:1: option --max-jobs"},
        {"max-jobs = 0x1", "a:1: option --max-jobs"},
        {"max-jobs =", "a:1: option --max-jobs"},
        {"auth = maybe", "true or false"},
        {"help = true", "there is no setting"},
        {"-max-jobs = 3", "there is no setting"},
        {"text = a\x01", "control character"},
        {"= 3", "there is no setting \"\""},
        {"text = \xff", "UTF-8"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        const char *path = write_file("a", cases[i].text, strlen(cases[i].text));
        assert_false(config_file(path, table(), except, &err));
        assert_int_equal(err.code, ERR_USAGE);
        if (!strstr(err.details, cases[i].words))
            fail_msg("\"%s\" does not say \"%s\"", err.details, cases[i].words);
    }
    Err err = ERR_INIT;
    assert_fails(config_file(write_file("a", "text = a\0b", 10), table(), except, &err), &err, ERR_USAGE);
    char lines[CONFIG_LINE_MAX + 100];
    memset(lines, 'a', sizeof(lines));
    memcpy(lines, "text = ", 7);
    assert_fails(config_file(write_file("a", lines, sizeof(lines)), table(), except, &err), &err, ERR_USAGE);
    assert_fails(config_file("/nowhere/x", table(), except, &err), &err, ERR_USAGE);
}

static void test_a_folder_in_the_order_of_its_names(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    (void)write_file("20.conf", "max-jobs = 2", 12);
    (void)write_file("10.conf", "max-jobs = 1\ntext = of 10", 25);
    (void)write_file("30.conf~", "max-jobs = 3", 12);
    (void)write_file(".40.conf", "max-jobs = 4", 12);
    assert_ok(config_folder(folder, table(), except, &err), &err);
    assert_int_equal(v.number, 2);
    assert_string_equal(v.text, "of 10");
    assert_ok(config_folder("/nowhere", table(), except, &err), &err);
    char loop[300];
    (void)snprintf(loop, sizeof(loop), "%s/loop", folder);
    assert_int_equal(symlink(loop, loop), 0); // it cannot be told whether there is one: not "none"
    assert_fails(config_folder(loop, table(), except, &err), &err, ERR_USAGE);
    (void)write_file("30.conf", "nonsense", 8);
    assert_false(config_folder(folder, table(), except, &err));
    assert_non_null(strstr(err.details, "30.conf:1"));
}

static void test_the_environment(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    assert_int_equal(setenv("TESTCONF_MAX_JOBS", "5", 1), 0);
    assert_int_equal(setenv("TESTCONF_TEXT", "", 1), 0);
    assert_int_equal(setenv("TESTCONF_HELP", "true", 1), 0);
    assert_ok(config_environment("TESTCONF", table(), except, &err), &err);
    assert_int_equal(v.number, 5);
    assert_null(v.text);
    assert_false(v.flag);
    assert_int_equal(setenv("TESTCONF_MAX_JOBS", "50", 1), 0);
    assert_false(config_environment("TESTCONF", table(), except, &err));
    assert_non_null(strstr(err.details, "TESTCONF_MAX_JOBS"));
    (void)unsetenv("TESTCONF_MAX_JOBS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_a_file_says, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_folder_in_the_order_of_its_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_environment, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
