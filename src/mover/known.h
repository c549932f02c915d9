// What a sink holds already: hashes of its clusters, read a window at a time. For mover.c only.
#pragma once

#include "mover/mover.h"

#define KNOWN_WINDOWS 2 // requests complete out of order, and so straddle the end of a window

typedef struct KnownWindow {
    uint64_t number;
    bool there;
    uint8_t *leaves;
} KnownWindow;

typedef struct Known {
    const MoverSpec *spec;
    uint32_t hash_bytes;
    uint64_t clusters; // of the disk
    uint8_t *padded;   // one cluster: the disk's last one is hashed padded with zeros
    KnownWindow windows[KNOWN_WINDOWS];
} Known;

bool known_init(Known *k, const MoverSpec *spec, Err *err) must_check;
void known_clear(Known *k);
// Is the cluster at offset, of which p holds n bytes (all that the disk has of it), what the sink holds there? Blocks
// while a window is read; ERR_CANCELLED when the copy is.
bool known_is_same(Known *k, const uint8_t *p, uint64_t offset, uint32_t n, bool *ret_same, Err *err) must_check;
