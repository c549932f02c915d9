// Command lines: an argument a line.
#include "fuzz.h"

#include "values.h"

#define ARGS_MAX 64

static void parse(int argc, char **argv, bool stop_at_first)
{
    Err err = ERR_INIT;
    Values v = {.number = 5};
    OptList args = {0};
    const Opt table[] = {
        {"flag", OPT_FLAG, &v.flag, 0, 0, NULL, "a flag"},   {"f", OPT_FLAG, &v.flag, 0, 0, NULL, "another"},
        {"text", OPT_TEXT, &v.text, 0, 0, "TEXT", "a text"}, {"number", OPT_U64, &v.number, 5, 8082, "N", "a number"},
        {"list", OPT_LIST, &v.list, 0, 0, "WORD", "words"},  {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    bool ok = opt_parse(argc, argv, table, stop_at_first, &args, &err);
    fuzz_check(ok || err.code == ERR_USAGE);
    fuzz_check(v.number >= 5 && v.number <= 8082 && v.list.len + args.len < (size_t)argc);
    if (ok) {
        fuzz_check(args.items[args.len] == NULL);
        for (size_t i = 0, at = 1; i < args.len; i++, at++) { // in their order
            while (at < (size_t)argc && argv[at] != args.items[i])
                at++;
            fuzz_check(at < (size_t)argc);
        }
        opt_list_clear_borrowed(&args);
    } else if (v.text && strlen(v.text) >= 8 && !strstr("unknown option --; --help lists them", v.text)) {
        // It may be a password. One that is an unknown option, too, is named as such.
        int holding = 0;
        for (int i = 1; i < argc; i++)
            holding += strstr(argv[i], v.text) != NULL;
        fuzz_check(!strstr(err.details, v.text) || strlen(v.text) < 16 || holding > 1);
    }
    values_clear(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = fuzz_text(data, n), *argv[ARGS_MAX + 2] = {text}, *rest = text;
    int argc = 1;
    for (char *word; argc <= ARGS_MAX && (word = strsep(&rest, "\n")) != NULL;)
        argv[argc++] = word;
    parse(argc, argv, false);
    parse(argc, argv, true);
    free(text);
    return 0;
}
