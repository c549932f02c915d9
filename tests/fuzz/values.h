// A setting of each kind, for the targets that read them.
#pragma once

#include "base/opt.h"

typedef struct Values {
    bool flag;
    char *text;
    uint64_t number;
    OptList list;
} Values;

static inline void values_clear(Values *v)
{
    free(v->text);
    opt_list_clear(&v->list);
}
