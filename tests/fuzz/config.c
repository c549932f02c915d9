// Files of settings: what is taken is in range, and is written and read back as the same.
#include "fuzz.h"

#include "base/config.h"
#include "values.h"

#include <stdio.h>

static bool parse(unsigned slot, const void *p, size_t n, Values *v, Err *err)
{
    static const char *const except[] = {"not-here", NULL};
    const Opt table[] = {
        {"flag", OPT_FLAG, &v->flag, 0, 0, NULL, "a flag"},
        {"text", OPT_TEXT, &v->text, 0, 0, "TEXT", "a text"},
        {"number", OPT_U64, &v->number, 5, 8082, "N", "a number"},
        {"list", OPT_LIST, &v->list, 0, 0, "WORD", "words"},
        {"not-here", OPT_FLAG, &v->flag, 0, 0, NULL, "for command lines"},
        {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    *v = (Values){.number = 5};
    return config_file(fuzz_file(slot, p, n), table, except, err);
}

static void check_text(const char *s)
{
    size_t n = strlen(s);
    fuzz_check(n <= CONFIG_LINE_MAX && str_is_utf8(s, n) && !strpbrk(s, "\n"));
    fuzz_check(n == 0 || (!strchr(" \t\r", s[0]) && !strchr(" \t\r", s[n - 1])));
    for (; *s; s++)
        fuzz_check((unsigned char)*s >= 0x20 || *s == '\t');
}

// Written as it was read, it is read as it was.
static void again(const Values *v)
{
    Err err = ERR_INIT;
    Values second;
    cleanup(str_clear) StrBuf text = STR_BUF(16u << 20);
    fuzz_check(
        str_addf(&text, &err, "flag=%s\nnumber = %llu\n", v->flag ? "true" : "false", (unsigned long long)v->number));
    fuzz_check(!v->text || str_addf(&text, &err, " text\t= %s \r\n", v->text));
    for (size_t i = 0; i < v->list.len; i++)
        fuzz_check(str_addf(&text, &err, "# a comment\n\nlist=%s\n", v->list.items[i]));
    fuzz_check(parse(1, text.s, text.len, &second, &err));
    fuzz_check(second.flag == v->flag && second.number == v->number && second.list.len == v->list.len);
    fuzz_check(!v->text == !second.text && (!v->text || str_eq(v->text, second.text)));
    for (size_t i = 0; i < v->list.len; i++)
        fuzz_check(str_eq(v->list.items[i], second.list.items[i]));
    values_clear(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Err err = ERR_INIT;
    Values v;
    bool ok = parse(0, data, n, &v, &err);
    fuzz_check(ok || err.code == ERR_USAGE);
    fuzz_check(v.number >= 5 && v.number <= 8082);
    if (v.text)
        check_text(v.text);
    for (size_t i = 0; i < v.list.len; i++)
        check_text(v.list.items[i]);
    if (ok)
        again(&v);
    values_clear(&v);
    return 0;
}
