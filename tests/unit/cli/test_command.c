#include "unit.h"

#include "base/str.h"
#include "cli/help.h"
#include "cli/option.h"

#include <unistd.h>

static const Command *command(const char *name)
{
    for (const Command *c = command_table; c->name; c++)
        if (str_eq(c->name, name))
            return c;
    fail_msg("no command %s", name);
    return NULL;
}

// Every option that a command takes exists, and is in its usage; every option is taken by a command.
static void the_tables_agree(void **state)
{
    (void)state;
    for (const Command *c = command_table; c->name; c++) {
        size_t n = 0;
        for (; n < COMMAND_OPTIONS && c->options[n]; n++) {
            char word[64];
            (void)snprintf(word, sizeof(word), "--%s", c->options[n]);
            if (!option_find(c->options[n]) || !strstr(c->usage, word))
                fail_msg("%s %s", c->name, word);
        }
        assert_true(n < COMMAND_OPTIONS); // a NULL ends them
        assert_non_null(c->run);
        assert_true(c->min_words <= c->max_words);
        assert_true(*c->summary && !str_ends(c->summary, "."));
    }
    for (const Option *o = option_table; o->name; o++) {
        bool used = o->global;
        for (const Command *c = command_table; c->name; c++)
            for (size_t i = 0; i < COMMAND_OPTIONS && c->options[i]; i++)
                used = used || str_eq(c->options[i], o->name);
        if (!used)
            fail_msg("no command takes --%s", o->name);
        assert_true(o->kind == OPT_FLAG ? !o->value : o->value != NULL);
        assert_non_null(o->help);
    }
}

static bool parse(const char *name, CliValues *v, int argc, const char *const *argv, OptList *words, Err *err)
{
    Opt opts[OPTION_MAX];
    option_collect(command(name), v, opts);
    return opt_parse(argc, (char *const *)argv, opts, false, words, err);
}

static void options_stand_anywhere(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    CliValues v = {0};
    OptList words = {0};
    const char *const argv[] = {"backup", "--repo", "main", "pgtest1", "--json", "--full", "-hub=http://h:1"};
    assert_ok(parse("backup", &v, (int)ARRAY_LEN(argv), argv, &words, &err), &err);
    assert_int_equal(words.len, 1);
    assert_string_equal(words.items[0], "pgtest1");
    assert_string_equal(v.repo, "main");
    assert_string_equal(v.hub, "http://h:1");
    assert_true(v.json && v.full && !v.incremental);
    opt_list_clear_borrowed(&words);
    free(v.repo);
    free(v.hub);
}

static void files_keep_their_order(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    CliValues v = {0};
    OptList words = {0};
    const char *const argv[] = {"add", "pgtest1", "--file", "b", "--file=a", "--exclude="};
    assert_ok(parse("vm add", &v, (int)ARRAY_LEN(argv), argv, &words, &err), &err);
    assert_int_equal(v.file.len, 2);
    assert_string_equal(v.file.items[0], "b");
    assert_string_equal(v.file.items[1], "a");
    assert_int_equal(v.exclude.len, 1);
    assert_string_equal(v.exclude.items[0], "");
    opt_list_clear_borrowed(&words);
    opt_list_clear(&v.file);
    opt_list_clear(&v.exclude);
}

static void other_commands_options_are_refused(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    CliValues v = {0};
    OptList words = {0};
    const char *const argv[] = {"list", "--force"};
    assert_fails(parse("repo list", &v, 2, argv, &words, &err), &err, ERR_USAGE);
    const char *const limit[] = {"backups", "--limit", "1001"};
    assert_fails(parse("backups", &v, 3, limit, &words, &err), &err, ERR_USAGE);
}

static void groups_are_known(void **state)
{
    (void)state;
    assert_true(help_is_group("repo"));
    assert_true(help_is_group("vm"));
    assert_true(help_is_group("export"));
    assert_false(help_is_group("backup"));
    assert_false(help_is_group("rep"));
    assert_false(help_is_group(""));
}

static void queries_are_encoded(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    StrBuf path = STR_BUF(200);
    assert_ok(str_add(&path, "/api/v1/backups", &err), &err);
    assert_ok(cli_query(&path, "vm_name", NULL, &err), &err);
    assert_ok(cli_query(&path, "vm_name", "a&b=ü", &err), &err);
    assert_ok(cli_query(&path, "limit", "5", &err), &err);
    assert_string_equal(path.s, "/api/v1/backups?vm_name=a%26b%3D%C3%BC&limit=5");
    str_clear(&path);
    char *one = cli_path("backups", "backup-a/b-1", "cancel", &err);
    assert_string_equal(one, "/api/v1/backups/backup-a%2Fb-1/cancel");
    free(one);
}

static void paths_become_absolute(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char here[4096];
    char expected[4200];
    assert_non_null(getcwd(here, sizeof(here)));
    char *same = cli_absolute("/a/b", &err);
    assert_string_equal(same, "/a/b");
    free(same);
    char *relative = cli_absolute("a b", &err);
    (void)snprintf(expected, sizeof(expected), "%s/a b", here);
    assert_string_equal(relative, expected);
    free(relative);
    assert_fails(cli_absolute("", &err) != NULL, &err, ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tables_agree),       cmocka_unit_test(options_stand_anywhere),
        cmocka_unit_test(files_keep_their_order), cmocka_unit_test(other_commands_options_are_refused),
        cmocka_unit_test(groups_are_known),       cmocka_unit_test(queries_are_encoded),
        cmocka_unit_test(paths_become_absolute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
