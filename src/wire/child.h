// A qemu-nbd or nbdkit as a supervised child: it serves on a socket that only its starter reaches, and is gone when its
// starter is, however that ends.
//
// The socket listens before the child runs, and is handed over (socket activation): there is nothing to wait
// for and no name left in any folder. The child dies with the thread that called child_start() (PDEATHSIG), so
// call it from one that lives as long as the child is needed; besides, qemu-nbd ends by itself when its last
// client leaves, so keep one connection open.
#pragma once

#include "base/proc.h"
#include "base/secret.h"

typedef struct Child Child;

#define CHILD_SECRET_FD "4"

// argv: NULL-terminated, argv[0] the program; no option for the socket. secret (NULL: none): the child finds it in its
// descriptor CHILD_SECRET_FD.
bool child_start(const char *const *argv, const Secret *secret, Child **ret, Err *err) must_check;

// A path to connect to, of this process only. Lives as long as the Child.
const char *child_socket(const Child *c);

bool child_alive(const Child *c);

// The first lines that the child said on standard output and standard error, in new memory; waits up to a second
// for the end of a child that is about to fail. "" if it said nothing.
bool child_said(Child *c, char **ret_text, Err *err) must_check;

// Ends the child; fine on NULL.
void child_stop(Child *c);
