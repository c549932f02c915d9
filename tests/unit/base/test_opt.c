#include "unit.h"

#include "base/opt.h"
#include "base/str.h"

#include <fcntl.h>
#include <unistd.h>

typedef struct Values {
    bool json, auth;
    char *name, *pass;
    OptList files;
    uint64_t port;
} Values;

typedef struct Table {
    Opt opts[8];
} Table;

static Table table_of(Values *v)
{
    return (Table){{
        {.name = "json", .kind = OPT_FLAG, .target = &v->json, .help = "one JSON value"},
        {.name = "auth", .kind = OPT_FLAG, .target = &v->auth, .help = "tokens are needed"},
        {.name = "db-name",
         .kind = OPT_TEXT,
         .target = &v->name,
         .value = "NAME",
         .help = "database"},
        {.name = "db-pass", .kind = OPT_TEXT, .target = &v->pass, .value = "WORD"},
        {.name = "file", .kind = OPT_LIST, .target = &v->files, .value = "IMAGE", .help = "a disk"},
        {.name = "port",
         .kind = OPT_U64,
         .target = &v->port,
         .min = 1,
         .max = 65535,
         .value = "N",
         .help = "TCP port"},
        {.name = NULL},
    }};
}

static void values_clear(Values *v)
{
    free(v->name);
    free(v->pass);
    opt_list_clear(&v->files);
}

#define MAX_WORDS 12

typedef struct Case {
    const char *words[MAX_WORDS];
    bool stop;
    bool ok;
    bool json, auth;
    uint64_t port;
    const char *name;
    const char *files[4];
    const char *args[6];
} Case;

static const Case cases[] = {
    {.words = {"p"}, .ok = true, .auth = true},
    {.words = {NULL}, .ok = true, .auth = true}, // argc 0
    // the four spellings
    {.words = {"p", "-port=8082"}, .ok = true, .auth = true, .port = 8082},
    {.words = {"p", "--port=8082"}, .ok = true, .auth = true, .port = 8082},
    {.words = {"p", "-port", "8082"}, .ok = true, .auth = true, .port = 8082},
    {.words = {"p", "--port", "8082"}, .ok = true, .auth = true, .port = 8082},
    {.words = {"p", "-port=8082", "-auth=false", "-db-name=migratekit_oma"},
     .ok = true,
     .port = 8082,
     .name = "migratekit_oma"},
    // flags
    {.words = {"p", "--json"}, .ok = true, .json = true, .auth = true},
    {.words = {"p", "--json=true", "--auth=0"}, .ok = true, .json = true},
    {.words = {"p", "--json", "--json=no"}, .ok = true, .auth = true},
    {.words = {"p", "--json=maybe"}, .auth = true},
    {.words = {"p", "--json="}, .auth = true},
    {.words = {"p", "--json", "false"}, .ok = true, .json = true, .auth = true, .args = {"false"}},
    // last one wins, every one is kept
    {.words = {"p", "--db-name=a", "--db-name=b"}, .ok = true, .auth = true, .name = "b"},
    {.words = {"p", "--db-name="}, .ok = true, .auth = true, .name = ""},
    {.words = {"p", "--db-name=a=b"}, .ok = true, .auth = true, .name = "a=b"},
    {.words = {"p", "--file", "a", "--file=b", "-file", "c"},
     .ok = true,
     .auth = true,
     .files = {"a", "b", "c"}},
    // values that look like options
    {.words = {"p", "--db-name", "-x"}, .ok = true, .auth = true, .name = "-x"},
    {.words = {"p", "--db-name", "-"}, .ok = true, .auth = true, .name = "-"},
    {.words = {"p", "--db-name", "--json"}, .auth = true},
    {.words = {"p", "--db-name", "-port=1"}, .auth = true},
    {.words = {"p", "--db-name", "--"}, .auth = true},
    {.words = {"p", "--db-name=--json"}, .ok = true, .auth = true, .name = "--json"},
    // missing and bad
    {.words = {"p", "--db-name"}, .auth = true},
    {.words = {"p", "--port"}, .auth = true},
    {.words = {"p", "--port="}, .auth = true},
    {.words = {"p", "--port=0"}, .auth = true},
    {.words = {"p", "--port=65536"}, .auth = true},
    {.words = {"p", "--port=-1"}, .auth = true},
    {.words = {"p", "--port=80x"}, .auth = true},
    {.words = {"p", "--nope"}, .auth = true},
    {.words = {"p", "-j"}, .auth = true},
    {.words = {"p", "--por=1"}, .auth = true}, // no abbreviations
    {.words = {"p", "--porty=1"}, .auth = true},
    {.words = {"p", "---port=1"}, .auth = true},
    {.words = {"p", "--=1"}, .auth = true},
    {.words = {"p", "-=1"}, .auth = true},
    // positional
    {.words = {"p", "vm", "add", "--file=a", "web", "--json"},
     .ok = true,
     .json = true,
     .auth = true,
     .files = {"a"},
     .args = {"vm", "add", "web"}},
    {.words = {"p", "-", "", "x"}, .ok = true, .auth = true, .args = {"-", "", "x"}},
    {.words = {"p", "a", "--", "--json", "--", "-x"},
     .ok = true,
     .auth = true,
     .args = {"a", "--json", "--", "-x"}},
    {.words = {"p", "--json", "vm", "--nope", "--", "x"},
     .stop = true,
     .ok = true,
     .json = true,
     .auth = true,
     .args = {"vm", "--nope", "--", "x"}},
    {.words = {"p", "--", "--json", "vm"},
     .stop = true,
     .ok = true,
     .auth = true,
     .args = {"--json", "vm"}},
};

static void check_case(size_t i)
{
    const Case *c = &cases[i];
    Values v = {.auth = true};
    Table t = table_of(&v);
    char *argv[MAX_WORDS + 1] = {0};
    int argc = 0;
    while (argc < MAX_WORDS && c->words[argc]) {
        argv[argc] = strdup(c->words[argc]);
        assert_non_null(argv[argc++]);
    }
    char *marker = (char *)&v;
    OptList args = {.items = &marker, .len = 4711};
    Err err = ERR_INIT;
    bool ok = opt_parse(argc, argv, t.opts, c->stop, &args, &err);
    if (ok != c->ok)
        fail_msg("case %zu: %s", i, ok ? "accepted" : err.details);
    if (!ok) {
        assert_int_equal(err.code, ERR_USAGE);
        assert_int_equal(args.len, 4711);
        assert_ptr_equal(args.items, &marker);
    } else {
        assert_int_equal(v.json, c->json);
        assert_int_equal(v.auth, c->auth);
        assert_true(v.port == c->port);
        assert_true((v.name == NULL) == (c->name == NULL));
        if (c->name)
            assert_string_equal(v.name, c->name);
        size_t n = 0;
        for (; n < ARRAY_LEN(c->files) && c->files[n]; n++)
            assert_string_equal(v.files.items[n], c->files[n]);
        assert_int_equal(v.files.len, n);
        for (n = 0; n < ARRAY_LEN(c->args) && c->args[n]; n++)
            assert_string_equal(args.items[n], c->args[n]);
        assert_int_equal(args.len, n);
        assert_null(args.items[n]);
        opt_list_clear_borrowed(&args);
    }
    values_clear(&v);
    for (int k = 0; k < argc; k++)
        free(argv[k]);
}

static void test_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check_case(i);
}

static void test_messages_keep_secrets(void **state)
{
    (void)state;
    static const char *const lines[] = {"--db-passs=hunter2", "--dbpass=hunter2",
                                        "--db-pas=hunter2"};
    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        Values v = {0};
        Table t = table_of(&v);
        char *word = strdup(lines[i]);
        char *argv[] = {word, word, NULL};
        OptList args;
        Err err = ERR_INIT;
        assert_false(opt_parse(2, argv, t.opts, false, &args, &err));
        assert_int_equal(err.code, ERR_USAGE);
        assert_null(strstr(err.details, "hunter2"));
        assert_non_null(strstr(err.details, "--db"));
        values_clear(&v);
        free(word);
    }
}

static void test_help(void **state)
{
    Values v = {0};
    Table t = table_of(&v);
    const char *path = unit_path(state, "help");
    (void)fflush(stdout);
    int saved = dup(STDOUT_FILENO), fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(saved >= 0 && fd >= 0 && dup2(fd, STDOUT_FILENO) >= 0);
    opt_print_help(t.opts);
    (void)fflush(stdout);
    assert_true(dup2(saved, STDOUT_FILENO) >= 0);
    (void)close(saved);
    char text[1024] = "";
    assert_true(pread(fd, text, sizeof(text) - 1, 0) > 0);
    (void)close(fd);
    assert_string_equal(text,
                        "  --json           one JSON value\n"
                        "  --auth           tokens are needed\n"
                        "  --db-name NAME   database\n"
                        "  --file IMAGE     a disk\n"
                        "  --port N         TCP port\n"); // --db-pass is hidden
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_messages_keep_secrets),
        cmocka_unit_test_setup_teardown(test_help, unit_folder_setup, unit_folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
