// Judging a repository, and single disks of it, by what the model remembers.
#pragma once

#include "history.h"

// Every point is listed and gives back its bytes, and nothing else is there.
bool check_all(History *h, bool at_the_end, Err *err) must_check;
// One image, by stock tools.
bool check_by_qemu(History *h, const char *image, const Reference *ref, Err *err) must_check;
// Is one of its layers one whose .hashes the oracle damaged?
bool check_is_affected(History *h, const RepoChain *chain, const char *key);

// restore.c: a restore of an open point, to a file, an image or a hasher.
bool restore_check(History *h, Reader *r, const Reference *ref, Err *err) must_check;
