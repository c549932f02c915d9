// The guest's file systems, frozen by its agent for the instant of the snapshot, and thawed whatever happens.
#pragma once

#include "source/qemu/guard.h"
#include "source/qemu/spec.h"
#include "wire/agent.h"

#define FREEZE_SYNC_MS 3000 // an agent that is there answers at once
#define FREEZE_MS 30000     // databases flush
#define THAW_MS 60000

typedef struct Freeze {
    const char *agent_path;
    Agent *agent; // NULL: nothing was, or is, frozen
    bool frozen;
    bool stuck;    // the thaw is not confirmed: the guard goes on trying
    char why[256]; // why the state is not the applications' own; "" if it is
} Freeze;

// running: the VM's CPUs run. Where the guest need not be frozen (auto, off), a failure is only written down in why.
bool freeze_begin(const QemuSpec *spec, bool running, const Guard *guard, const atomic_bool *cancel, Freeze *ret,
                  Err *err) must_check;

// Right after the snapshot. Afterwards `frozen` says whether it lasted until now.
void freeze_end(Freeze *f, const Guard *guard);

// Thaw, on new connections where need be, until the agent says so or THAW_MS are over. ret_count (may be NULL): file
// systems that were frozen until now. False: it did not say so.
bool freeze_thaw(const char *agent_path, uint64_t *ret_count);
