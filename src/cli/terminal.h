// Questions to whoever sits at the terminal, whatever standard input and output are: by way of /dev/tty. ERR_USAGE
// where there is none, and hint says what to do instead; ERR_CANCELLED on a signal or at the end of input.
#pragma once

#include "base/secret.h"

bool terminal_password(const char *prompt, const char *hint, Secret *ret, Err *err) must_check; // without echo
bool terminal_confirm(const char *question, const char *hint, bool *ret, Err *err) must_check;  // "yes", or not
