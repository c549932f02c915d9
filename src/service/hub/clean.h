// What the two parts of cleaning up share.
#pragma once

#include "service/hub/internal.h"

typedef struct CleanItem {
    const char *kind, *name, *where, *action, *details; // where, details: may be NULL
} CleanItem;
// Into the answer; and what was done, into the log.
bool hub_clean_item(json_t *items, const CleanItem *item, Err *err) must_check;
