// The root hash of a disk, from nothing but its bytes and the definition in src/image/hash.h: an implementation of
// its own, as plain as can be, to judge the engine's by.
#pragma once

#include "image/hash.h"

bool merkle_root(const HashSpec *spec, uint32_t cluster_size, const uint8_t *bytes, uint64_t size, Hash *ret, Err *err)
    must_check;
