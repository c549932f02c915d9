// A process beside the client that outlives it: when the client is gone without having cleaned up (SIGKILL, out of
// memory), it thaws the guest and takes out of QEMU what the backup put there, before scratch space that nobody
// watches runs full and the guest's writes fail.
//
// A fork without exec: it holds no descriptor but a pipe to us, whose end is the news, and ignores the
// terminal's signals. Calls here are made by one thread.
#pragma once

#include "source/qemu/scratch.h"

typedef struct GuardSpec {              // all borrowed; the process has its own copy
    const char *qmp, *agent;            // sockets; agent NULL: none
    const char *prefix, *bitmap_prefix; // for sweep()
    const Scratch *scratch;
} GuardSpec;

typedef struct Guard {
    int pipe; // -1: none
    pid_t pid;
} Guard;

#define GUARD_NONE ((Guard){.pipe = -1})

typedef enum GuardWord {
    GUARD_FROZEN = 'F', // the guest's file systems are about to be frozen
    GUARD_THAWED = 'T',
    GUARD_VIEW = 'V',   // there is something to take out of QEMU from now on
    GUARD_SERVER = 'S', // an NBD server of ours too, maybe; the socket is the one in the folder now
    GUARD_CLEAN = 'C',  // QEMU is clean again
} GuardWord;

bool guard_start(const GuardSpec *spec, Guard *ret, Err *err) must_check;
void guard_tell(const Guard *g, GuardWord word); // what cannot be told, is found out by the guard
// It goes once it has nothing to do (any more); waited for only where it has nothing to do.
void guard_stop(Guard *g, bool idle);
