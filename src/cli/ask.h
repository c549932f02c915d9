// Secrets that people give to the command line: never as an argument, never in the environment.
#pragma once

#include "base/secret.h"

// what: "password" or "token". From the file (--password-file), else the descriptor (--password-fd; a number), else
// from the terminal; one line. ERR_USAGE: both are given, there is no terminal, or it is not one line.
bool ask_secret(const char *what, const char *file, const char *fd, Secret *ret, Err *err) must_check;
