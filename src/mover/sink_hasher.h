// A sink that keeps nothing: it hashes what arrives as image/hash.h has it, for verifying a restore point through
// the very path that a restore takes.
#pragma once

#include "image/hash.h"
#include "wire/blocks.h"

// Takes whole clusters (cut at the disk's end), each once, in any order: anything else is ERR_INVALID. Memory: a hash
// for each group of the disk, and the leaves of the groups that are begun (at most 64, else ERR_TOO_LARGE).
// geo is borrowed. Requests complete at once.
bool sink_hasher_open(const HashGeometry *geo, uint64_t size, Blocks **ret, Err *err) must_check;
// The Merkle root, once every cluster has arrived (else ERR_CONFLICT).
bool sink_hasher_root(Blocks *b, Hash *ret, Err *err) must_check;
