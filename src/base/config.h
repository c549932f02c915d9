// Settings from files and from the environment, into the targets of the same table as a command line's options (opt.h).
// Whoever comes last wins: files first, then the environment, then the options.
//
// A file has lines of the form "name = value": names as options have them, without dashes; blanks around both are not
// part of them; '#' begins a comment at the start of a line only, so that a value may hold one. Texts are UTF-8 without
// control characters.
#pragma once

#include "base/opt.h"

#define CONFIG_LINE_MAX 4096

// ERR_USAGE: what is wrong, with file and line; a text's value is never repeated, it may be a password.
// except: names that stand for nothing in a file, NULL-terminated.
bool config_file(const char *path, const Opt *table, const char *const *except, Err *err) must_check;
// ERR_USAGE where that cannot be told: settings that cannot be reached must not become defaults.
bool config_is_there(const char *path, bool *ret, Err *err) must_check;
// Every *.conf in the folder, in the order of their names; fine where there is no such folder.
bool config_folder(const char *path, const Opt *table, const char *const *except, Err *err) must_check;
// For each option NAME the variable PREFIX_NAME in capitals, '_' for '-'; one that is empty is none.
bool config_environment(const char *prefix, const Opt *table, const char *const *except, Err *err) must_check;
