// Change IDs: "UUID/sequence" where we mint them; opaque text where a hypervisor gives them.
#pragma once

#include "base/mem.h"

#define CHANGEID_MAX 255   // bytes
#define CHANGEID_MINTED 64 // a minted one with NUL fits

// Length 1..255, printable ASCII (blanks inside are fine, at its ends not), exactly one slash, something on
// both sides. ERR_INVALID.
bool changeid_check(const char *id, Err *err) must_check;
// uuid in either case, sequence 1 or more; ERR_INTERNAL otherwise.
bool changeid_mint(const char *uuid, uint64_t sequence, char out[CHANGEID_MINTED], Err *err)
    must_check;
// Of one that we minted: its UUID (lower case) and sequence (1 or more). ERR_INVALID for any other text, another
// spelling (upper case, leading zeros) included.
bool changeid_parse(const char *id, char ret_uuid[37], uint64_t *ret_sequence, Err *err) must_check;
