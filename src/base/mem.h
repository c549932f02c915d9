// Memory and ownership: cleanup attributes, checked arithmetic, allocation that can fail.
#pragma once

#include "base/err.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define cleanup(f) __attribute__((cleanup(f)))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

// `cleanup_free char *p = NULL;` frees p when it goes out of scope.
#define cleanup_free cleanup(mem_cleanup_free)
// `cleanup_close int fd = -1;` closes fd when it goes out of scope.
#define cleanup_close cleanup(mem_cleanup_close)

void mem_cleanup_free(void *pointer_to_pointer);
void mem_cleanup_close(int *fd);

// Give ownership away: returns *p and sets *p to NULL (or -1 for a file descriptor).
#define mem_take(p)               \
    ({                            \
        __auto_type taken_ = (p); \
        (p) = NULL;               \
        taken_;                   \
    })
int mem_take_fd(int *fd);

// n * size bytes of zeros. NULL and ERR_NO_MEMORY on failure or overflow. n, size may be 0.
void *mem_calloc(size_t n, size_t size, Err *err) must_check;
// A copy of s. NULL and ERR_NO_MEMORY on failure.
char *mem_strdup(const char *s, Err *err) must_check;
// printf into new memory. NULL and ERR_NO_MEMORY on failure.
char *mem_printf(Err *err, const char *fmt, ...) printf_like(2, 3) must_check;
// Replace *p (freed) by a copy of s (which may be NULL). False on lack of memory; *p untouched.
bool mem_replace(char **p, const char *s, Err *err) must_check;

// Checked arithmetic: false on overflow, *ret untouched.
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

// Bounds of this product: no disk is larger, so offset + length never overflows below.
#define DISK_SIZE_MAX (UINT64_C(1) << 56)

static inline uint64_t align_down(uint64_t v, uint64_t a) // a: a power of two
{
    return v & ~(a - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t a) // a: a power of two; v <= DISK_SIZE_MAX
{
    return (v + a - 1) & ~(a - 1);
}
