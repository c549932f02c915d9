// Takes out of a QEMU what a backup put into it: exports, jobs, nodes, descriptors, temporary bitmaps, the NBD
// server. By name, whether it is the run's own end or that of an earlier one that was killed.
#pragma once

#include "source/qemu/bitmaps.h"
#include "source/qemu/scratch.h"
#include "wire/qmp.h"

#define SWEEP_NAME 32 // a block node's name with NUL: QEMU takes 31 characters

// "sndns-<12 digits of the VM>-": what all runs of a VM have in common.
void sweep_vm_prefix(const char *vm, char out[SWEEP_NAME]);

typedef struct SweepSpec {
    const char *prefix;        // of exports, jobs and nodes, and of what descriptors are told to be for
    const char *bitmap_prefix; // of temporary bitmaps; NULL: none
    const Scratch *server;     // an NBD server that answers here is ours and goes, unless it has exports of others
} SweepSpec;

#define SWEEP_FD "sendense" // the listening socket's name in QEMU, until its server has taken it

extern const char *const sweep_events[]; // for qmp_open()

// Each step is awaited. Does as much as it can; the first error is reported.
bool sweep(Qmp *q, const SweepSpec *spec, Err *err) must_check;

// qmp_call() with arguments that json_pack() made: NULL is lack of memory.
bool sweep_call(Qmp *q, const char *command, json_t *args, Err *err) must_check;
bool sweep_query_nodes(Qmp *q, json_t **ret, Err *err) must_check; // query-named-block-nodes, flat
