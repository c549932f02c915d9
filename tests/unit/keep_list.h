// For repo_recover(): the attempts that are kept are those of a list.
#pragma once

#include "base/str.h"

typedef struct KeepList {
    const char *const *items;
    size_t len;
} KeepList;

static inline bool keep_listed(void *ctx, const char *attempt)
{
    const KeepList *l = ctx;
    for (size_t i = 0; i < l->len; i++)
        if (str_eq(l->items[i], attempt))
            return true;
    return false;
}
