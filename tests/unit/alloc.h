// The n-th allocation of a story fails, for every third n from a random one on, or with ALLOC_EVERY=1 for every n: it
// says that memory is lacking, and gives back all it took. The program's malloc() and its kin stand before glibc's,
// for the libraries as well: include this in one file of it.
#pragma once

#include "unit.h"

#include "base/num.h"

#include <errno.h>
#include <malloc.h>
#include <unistd.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static struct {
    bool on;
    uint64_t calls, fail_at; // fail_at 0: never
    int64_t live;            // blocks that were taken while it was on, less those that were given back
} alloc_state;

static bool alloc_fails(void)
{
    if (!alloc_state.on || ++alloc_state.calls != alloc_state.fail_at)
        return false;
    errno = ENOMEM;
    return true;
}

static void *alloc_taken(void *p)
{
    alloc_state.live += alloc_state.on && p;
    return p;
}

void *malloc(size_t n)
{
    return alloc_fails() ? NULL : alloc_taken(__libc_malloc(n));
}

void *calloc(size_t n, size_t size)
{
    return alloc_fails() ? NULL : alloc_taken(__libc_calloc(n, size));
}

void *realloc(void *p, size_t n)
{
    bool shrinks = p && malloc_usable_size(p) >= n; // as vasprintf() does at its end, which can do without
    if (!shrinks && alloc_fails())
        return NULL;
    void *moved = __libc_realloc(p, n);
    return p ? moved : alloc_taken(moved);
}

void *aligned_alloc(size_t align, size_t n)
{
    return alloc_fails() ? NULL : alloc_taken(__libc_memalign(align, n));
}

int posix_memalign(void **ret, size_t align, size_t n)
{
    if (alloc_fails())
        return ENOMEM;
    *ret = alloc_taken(__libc_memalign(align, n));
    return *ret ? 0 : ENOMEM;
}

void free(void *p)
{
    alloc_state.live -= alloc_state.on && p;
    __libc_free(p);
}

// Here no power is lost, and a disk that is waited for thousands of times takes minutes.
int fsync(int fd)
{
    (void)fd;
    return 0;
}

int fdatasync(int fd)
{
    (void)fd;
    return 0;
}

// What the tests do with a story: `before` makes ready and `after` looks at what came of it and cleans up, both with
// memory enough. `story` frees what it takes.
typedef struct AllocStory {
    const char *name;
    void (*before)(void *ctx);
    bool (*story)(void *ctx, Err *err);
    void (*after)(void *ctx, bool ok); // may be NULL, as may before
    unsigned
        optional; // so many at most may fail without harm; vasprintf() can do without one of its own, of short texts
} AllocStory;

static bool alloc_run(const AllocStory *s, void *ctx, uint64_t fail_at, Err *err)
{
    if (s->before)
        s->before(ctx);
    alloc_state.calls = 0;
    alloc_state.live = 0;
    alloc_state.fail_at = fail_at;
    alloc_state.on = true;
    bool ok = s->story(ctx, err);
    alloc_state.on = false;
    if (s->after)
        s->after(ctx, ok);
    return ok;
}

static uint64_t alloc_step(void)
{
    const char *text = getenv("ALLOC_EVERY");
    uint64_t step = 3;
    Err err = ERR_INIT;
    if (text)
        assert_ok(num_u64(text, 1, 1000, &step, &err), &err);
    return step;
}

static void alloc_every(const AllocStory *s, void *ctx)
{
    Err err = ERR_INIT;
    assert_ok(alloc_run(s, ctx, 0, &err), &err); // libraries set themselves up
    assert_ok(alloc_run(s, ctx, 0, &err), &err);
    assert_int_equal(alloc_state.live, 0);
    uint64_t total = alloc_state.calls, step = alloc_step();
    UnitRandom random = unit_random();
    unsigned harmless = 0;
    assert_true(total > 0);
    for (uint64_t n = 1 + unit_random_below(&random, step); n <= total; n += step) {
        bool ok = alloc_run(s, ctx, n, &err);
        harmless += ok;
        if (!ok && err.code != ERR_NO_MEMORY)
            fail_msg("%s: allocation %llu of %llu: %s: %s", s->name, (unsigned long long)n, (unsigned long long)total,
                     err_name(err.code), err.details);
        if (alloc_state.live != 0)
            fail_msg("%s: allocation %llu of %llu: %lld blocks are lost (%s)", s->name, (unsigned long long)n,
                     (unsigned long long)total, (long long)alloc_state.live, ok ? "done" : err.details);
        err_clear(&err);
    }
    print_message("%s: %llu allocations, %u may fail\n", s->name, (unsigned long long)total, harmless);
    if (harmless > s->optional)
        fail_msg("%s: %u allocations failed without a word", s->name, harmless);
}
