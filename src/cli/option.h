// Every option of the CLI, in one table.
#pragma once

#include "cli/command.h"

typedef struct Option {
    const char *name; // NULL ends the table
    OptKind kind;
    size_t target; // offset in CliValues
    bool global;   // every command takes it, before its name and after
    const char *value;
    const char *help;
    uint64_t min, max;
} Option;

extern const Option option_table[];

const Option *option_find(const char *name); // NULL if there is none

#define OPTION_MAX 24
// The global options and those of `command` (may be NULL), for opt_parse(); targets lie in *values.
void option_collect(const Command *command, CliValues *values, Opt ret[OPTION_MAX]);
