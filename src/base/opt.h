// Command lines, from one table: "-port=8082", "--port 8082" and "--port=8082" are the same.
// "--" ends the options. Short clusters (-abc) do not exist.
#pragma once

#include "base/mem.h"

typedef enum OptKind {
    OPT_FLAG, // bool *: "--json"; also "--auth=false" (true, false, yes, no, 1, 0)
    OPT_TEXT, // char **: last one wins; NULL or allocated before, owned by the caller after
    OPT_LIST, // OptList *: every one
    OPT_U64,  // uint64_t *: within min..max; set max
} OptKind;

typedef struct OptList {
    char **items;
    size_t len;
} OptList;

typedef struct Opt {
    const char *name; // without dashes; NULL ends the table
    OptKind kind;
    void *target;
    uint64_t min, max;
    const char *value; // what the value is called in the help, "DIR"; NULL for flags
    const char *help;  // one line; NULL: hidden
} Opt;

// Parses argv[1..]; positional arguments are collected in order. With stop_at_first, parsing ends
// at the first positional one and everything from there on is positional (for sub-commands).
// An unknown option, a missing or bad value: ERR_USAGE, and targets of earlier options are set. Messages
// never repeat a text value, which may be a password. A value that is the name of another option counts as
// missing. ret_args->items borrow from argv, with a NULL behind the last; the caller frees the array by
// opt_list_clear_borrowed().
bool opt_parse(int argc, char *const *argv, const Opt *table, bool stop_at_first, OptList *ret_args, Err *err)
    must_check;
// One option's value, as text: what a command line or a file says. NULL is what "--flag" alone is.
const Opt *opt_find(const Opt *table, const char *name); // NULL: there is none
bool opt_set(const Opt *o, const char *value, Err *err) must_check;
void opt_list_clear(OptList *l);          // items owned (OPT_LIST)
void opt_list_clear_borrowed(OptList *l); // items borrowed (positional)
// "  --name VALUE   help" lines of a table, to stdout.
void opt_print_help(const Opt *table);
