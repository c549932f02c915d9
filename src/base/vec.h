// Typed vectors. VEC_DEFINE(ExtentVec, extent_vec, Extent) gives the struct ExtentVec
// {items, len, cap} and extent_vec_push(), _reserve() and _clear(). A zeroed struct is empty.
// _clear frees the array, not what the items point to.
#pragma once

#include "base/mem.h"

#define VEC_DEFINE(Type, prefix, Item)                                                         \
    typedef struct Type {                                                                      \
        Item *items;                                                                           \
        size_t len;                                                                            \
        size_t cap;                                                                            \
    } Type;                                                                                    \
    __attribute__((unused)) static inline bool prefix##_reserve(Type *v, size_t cap, Err *err) \
    {                                                                                          \
        if (cap <= v->cap)                                                                     \
            return true;                                                                       \
        size_t want = MAX(cap, v->cap + v->cap / 2 + 8);                                       \
        size_t bytes;                                                                          \
        if (__builtin_mul_overflow(want, sizeof(Item), &bytes))                                \
            return err_no_memory(err);                                                         \
        Item *items = realloc(v->items, bytes);                                                \
        if (!items)                                                                            \
            return err_no_memory(err);                                                         \
        v->items = items;                                                                      \
        v->cap = want;                                                                         \
        return true;                                                                           \
    }                                                                                          \
    __attribute__((unused)) static inline bool prefix##_push(Type *v, Item item, Err *err)     \
    {                                                                                          \
        if (!prefix##_reserve(v, v->len + 1, err))                                             \
            return false;                                                                      \
        v->items[v->len++] = item;                                                             \
        return true;                                                                           \
    }                                                                                          \
    __attribute__((unused)) static inline void prefix##_clear(Type *v)                         \
    {                                                                                          \
        free(v->items);                                                                        \
        *v = (Type){0};                                                                        \
    }
