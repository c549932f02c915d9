#include "base/opt.h"

#include "base/num.h"

#include <stdio.h>

static const Opt *find(const Opt *table, const char *name, size_t n)
{
    for (const Opt *o = table; o->name; o++)
        if (strlen(o->name) == n && memcmp(o->name, name, n) == 0)
            return o;
    return NULL;
}

// The option that an argument names, or NULL; *ret_value is what stands behind '=', or NULL.
static const Opt *match(const Opt *table, const char *arg, const char **ret_value)
{
    const char *name = arg + (arg[1] == '-' ? 2 : 1);
    const char *equals = strchr(name, '=');
    *ret_value = equals ? equals + 1 : NULL;
    return find(table, name, equals ? (size_t)(equals - name) : strlen(name));
}

static bool looks_like_option(const char *arg)
{
    return arg[0] == '-' && arg[1] != '\0'; // "-" alone is a name: standard input
}

static bool set_flag(const Opt *o, const char *value, Err *err)
{
    static const char *const yes[] = {"true", "1", "yes"}, *const no[] = {"false", "0", "no"};
    bool *target = o->target;
    for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
        if (!value || strcmp(value, yes[i]) == 0) {
            *target = true;
            return true;
        }
        if (strcmp(value, no[i]) == 0) {
            *target = false;
            return true;
        }
    }
    return err_set(err, ERR_USAGE, "option --%s: takes true or false", o->name);
}

static bool set_u64(const Opt *o, const char *value, Err *err)
{
    Err bad = ERR_INIT;
    if (num_u64(value, o->min, o->max, o->target, &bad))
        return true;
    return err_set(err, ERR_USAGE, "option --%s: %s", o->name, bad.details);
}

static bool list_push(OptList *l, const char *value, Err *err)
{
    char **items = reallocarray(l->items, l->len + 1, sizeof(*items));
    if (!items)
        return err_no_memory(err);
    l->items = items;
    items[l->len] = mem_strdup(value, err);
    if (!items[l->len])
        return false;
    l->len++;
    return true;
}

const Opt *opt_find(const Opt *table, const char *name)
{
    return find(table, name, strlen(name));
}

bool opt_set(const Opt *o, const char *value, Err *err)
{
    switch (o->kind) {
    case OPT_FLAG: return set_flag(o, value, err);
    case OPT_TEXT: return mem_replace(o->target, value, err);
    case OPT_LIST: return list_push(o->target, value, err);
    case OPT_U64: return set_u64(o, value, err);
    }
    return err_set(err, ERR_INTERNAL, "option --%s has no kind", o->name);
}

// One option at argv[*i]; *i moves to its last word.
static bool parse_option(int argc, char *const *argv, int *i, const Opt *table, Err *err)
{
    const char *value, *unused;
    const Opt *o = match(table, argv[*i], &value);
    if (!o) {
        // Not more than the name: what follows '=' may be a password.
        int n = (int)MIN(strcspn(argv[*i], "="), 60);
        return err_set(err, ERR_USAGE, "unknown option %.*s; --help lists them", n, argv[*i]);
    }
    if (o->kind != OPT_FLAG && !value) {
        if (*i + 1 >= argc)
            return err_set(err, ERR_USAGE, "option --%s: needs a value", o->name);
        // "--path --force" is a forgotten value far more often than a folder of that name.
        const char *next = argv[*i + 1];
        if (strcmp(next, "--") == 0 || (looks_like_option(next) && match(table, next, &unused)))
            return err_set(err, ERR_USAGE,
                           "option --%s: needs a value; write --%s=... where it starts with a dash",
                           o->name, o->name);
        value = next;
        (*i)++;
    }
    return opt_set(o, value, err);
}

bool opt_parse(int argc, char *const *argv, const Opt *table, bool stop_at_first, OptList *ret_args,
               Err *err)
{
    OptList args = {0};
    args.items =
        mem_calloc((size_t)MAX(argc, 0) + 1, sizeof(*args.items), err); // with a NULL at the end
    if (!args.items)
        return false;
    bool options = true;
    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && looks_like_option(argv[i])) {
            if (!parse_option(argc, argv, &i, table, err)) {
                free(args.items);
                return false;
            }
        } else {
            args.items[args.len++] = argv[i];
            options = options && !stop_at_first;
        }
    }
    *ret_args = args;
    return true;
}

void opt_list_clear(OptList *l)
{
    for (size_t i = 0; i < l->len; i++)
        free(l->items[i]);
    opt_list_clear_borrowed(l);
}

void opt_list_clear_borrowed(OptList *l)
{
    free(l->items);
    *l = (OptList){0};
}

void opt_print_help(const Opt *table)
{
    size_t width = 0;
    for (const Opt *o = table; o->name; o++)
        if (o->help)
            width = MAX(width, strlen(o->name) + (o->value ? strlen(o->value) + 1 : 0));
    for (const Opt *o = table; o->name; o++) {
        if (!o->help)
            continue;
        const char *value = o->value ? o->value : "";
        int pad = (int)(width - strlen(o->name) - (o->value ? strlen(value) + 1 : 0));
        printf("  --%s%s%s%*s   %s\n", o->name, o->value ? " " : "", value, pad, "", o->help);
    }
}
