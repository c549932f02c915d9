// What the code under test asks of the machine, and gets from the oracle instead (the linker's --wrap): UUIDs from
// the history's seed, syncs that cost nothing, and a death at the n-th change of a file.
#pragma once

#include "rng.h"

// Randomness of UUIDs and repository seeds from now on.
void world_seed(uint64_t seed);
// The n-th call from now on that changes a file (n from 0) does not happen, nor any after it, until world_revive().
void world_kill_at(unsigned n);
bool world_is_dead(void);
void world_revive(void);
